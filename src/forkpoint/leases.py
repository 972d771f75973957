"""Leases: the right to be the only active run on a thread, for a time.

A lease ends when it is released, when its holder dies and its time passes, or when another run
takes it over. Each beginning and each end raises the thread's fence. A run shows the fence of its
lease with everything that it puts, and is refused once it is another: so a holder that was held up
writes nothing after somebody else began. All times are those of the database.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from langchain_core.runnables import RunnableConfig

from forkpoint import inputs
from forkpoint.cataloguing import Changes, create, existing_record, time_of
from forkpoint.errors import ForkpointError, ThreadBusy, ThreadNotFound
from forkpoint.operations import Context
from forkpoint.runner import Runner
from forkpoint.storage import LeaseRow, Stale, ThreadRef
from forkpoint.threads import LeaseHolder

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("forkpoint")
_PAUSES_SECONDS = (0.01, 0.5)  # between two looks whether a lease is free: at first, and at most
_RENEWALS = 3  # in the time of a lease


class Held(NamedTuple):
    """A lease, and the thread that it is of."""

    thread: ThreadRef
    lease: LeaseRow


def acquire(
    context: Context, thread_id: str, holder: str, ttl: int, take_over: bool, must_exist: bool
) -> Held | LeaseHolder:
    """Return the lease of a thread, which is made if need be, or who has it."""
    while True:
        if not must_exist:
            create(context, thread_id, Changes(), may_exist=True)
        with context.storage.writing() as session:
            row = session.record(thread_id)
            if row is None:  # it was deleted in between
                if must_exist:
                    raise ThreadNotFound(f"there is no thread {thread_id!r}")
                continue
            try:
                leased = session.lease(row.thread, holder, ttl, take_over=take_over)
            except Stale:
                continue
            if leased is not None:
                return Held(row.thread, leased)
            row = session.record(thread_id)
            if row is not None and row.lease is not None:
                return _holder_of(row.lease)


def renew(context: Context, held: Held, ttl: int) -> bool:
    """Make a lease last for longer, and return whether it still holds."""
    with context.storage.writing() as session:
        return session.renew(held.thread, held.lease.fence, ttl)


def release(context: Context, held: Held) -> None:
    """End a lease, if it still holds."""
    with context.storage.writing() as session:
        session.release(held.thread, held.lease.fence)


def abandon(context: Context, thread_id: str, holder: str) -> None:
    """End a lease that nobody will hold, if it was given out."""
    with context.storage.writing() as session:
        row = session.record(thread_id)
        if row is not None and row.lease is not None and row.lease.holder == holder:
            session.release(row.thread, row.lease.fence)


def holder_of(context: Context, thread_id: str) -> LeaseHolder | None:
    """Return who is running on a thread."""
    with context.storage.reading() as session:
        row = existing_record(session, thread_id)
    return None if row.lease is None else _holder_of(row.lease)


def _holder_of(lease: LeaseRow) -> LeaseHolder:
    return LeaseHolder(lease.holder, time_of(lease.since), time_of(lease.until))


class Lease:
    """The right to be the only active run on a thread, while the block runs.

    It works under `with` and under `async with`, and is renewed meanwhile.

    Attributes:
        thread_id: The thread.
        holder: Who has it: the host, the process and a random part.
    """

    def __init__(
        self,
        context: Context,
        runner: Runner,
        thread_id: str,
        if_busy: str,
        ttl: int,
        timeout_seconds: float | None,
        *,
        must_exist: bool = False,
    ) -> None:
        self.thread_id = thread_id
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:12]}"
        self._context = context
        self._runner = runner
        self._if_busy = if_busy
        self._ttl = ttl
        self._timeout_seconds = timeout_seconds
        self._must_exist = must_exist
        self._held: Held | None = None
        self._is_lost = False
        self._ended = threading.Event()

    @property
    def config(self) -> RunnableConfig:
        """The config to run the graph with. What is put under it is refused once it is lost."""
        if self._held is None:
            raise RuntimeError("a lease has a config within its with block only")
        shown = inputs.shown_lease(self._held.thread.key, self._held.lease.fence)
        return {"configurable": {"thread_id": self.thread_id, inputs.LEASE: shown}}

    @property
    def is_lost(self) -> bool:
        """Whether it is known that another run has taken it over, or that the thread is deleted."""
        return self._is_lost

    def __enter__(self) -> Self:
        for pause in self._pauses():
            if self._is_acquired(self._runner.run(acquire, *self._asked())):
                break
            time.sleep(pause)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.run(release, self._context, self._end())

    async def __aenter__(self) -> Self:
        for pause in self._pauses():
            try:
                outcome = await self._runner.arun(acquire, *self._asked())
            except asyncio.CancelledError:  # it was done, or not at all
                await self._runner.arun(abandon, self._context, self.thread_id, self.holder)
                raise
            if self._is_acquired(outcome):
                break
            await asyncio.sleep(pause)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.arun(release, self._context, self._end())

    def _asked(self) -> tuple[Context, str, str, int, bool, bool]:
        if self._held is not None:
            raise RuntimeError("a lease can be entered once")
        takes_over = self._if_busy == "cancel"
        asked = self._context, self.thread_id, self.holder, self._ttl
        return *asked, takes_over, self._must_exist

    def _pauses(self) -> Iterator[float]:
        """Return how long to wait between one attempt and the next, until the time is up."""
        patience = self._timeout_seconds
        until = None if patience is None else time.monotonic() + patience
        shortest, longest = _PAUSES_SECONDS
        while True:
            left = longest if until is None else until - time.monotonic()
            # Not in step with others that wait.
            yield max(0.0, min(shortest * random.uniform(0.5, 1), left))
            shortest = min(2 * shortest, longest)
            if until is not None and time.monotonic() >= until:
                self._if_busy = "raise"

    def _is_acquired(self, outcome: Held | LeaseHolder) -> bool:
        if isinstance(outcome, Held):
            self._held = outcome
            renewing = threading.Thread(target=self._renew, name="forkpoint lease", daemon=True)
            renewing.start()
            return True
        if self._if_busy == "raise":
            raise ThreadBusy(
                f"thread {self.thread_id!r} is busy: {outcome.holder} runs on it since "
                f"{outcome.since.isoformat(timespec='seconds')}"
            )
        return False

    def _renew(self) -> None:
        assert self._held is not None
        while not self._ended.wait(self._ttl / 1_000_000 / _RENEWALS):
            try:
                if not self._runner.run(renew, self._context, self._held, self._ttl):
                    self._is_lost = True
                    return
            except ForkpointError as error:
                # The lease has time left; and if that passes, its fence protects the thread.
                _LOG.warning("the lease on thread %r is not renewed: %s", self.thread_id, error)

    def _end(self) -> Held:
        assert self._held is not None
        self._ended.set()
        return self._held
