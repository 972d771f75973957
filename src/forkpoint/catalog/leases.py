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
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from langchain_core.runnables import RunnableConfig

from forkpoint import inputs
from forkpoint.at_fork import renew_in_child
from forkpoint.catalog.records import Changes, create, existing_record
from forkpoint.catalog.threads import LeaseHolder
from forkpoint.catalog.tool_calls import NextVersion, answer_tool_calls
from forkpoint.clocks import time_of
from forkpoint.errors import (
    ForkpointError,
    SaverClosed,
    StaleLease,
    ThreadBusy,
    ThreadNotFound,
    stale_lease,
)
from forkpoint.operations import remove as removing
from forkpoint.operations.context import Context
from forkpoint.runtime.runner import Runner, completed
from forkpoint.runtime.workers import start_thread
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import LeaseRow, ThreadRef

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("forkpoint")
_PAUSES_SECONDS = (0.01, 0.5)  # between two looks whether a lease is free: at first, and at most
_RENEWALS = 3  # in the time of a lease
_SHORTEST_SECONDS = 0.01  # between two renewals


class Held(NamedTuple):
    """A lease, and the thread that it is of."""

    thread: ThreadRef
    lease: LeaseRow
    is_taken_over: bool = False
    """Whether another run had it until then."""


def acquire(
    context: Context, thread_id: str, holder: str, ttl: int, if_busy: str, must_exist: bool
) -> Held | LeaseHolder | None:
    """Return the lease of a thread, which is made if need be, or who has it.

    Returns:
        None where nobody has it, and somebody who came before waits for it.
    """
    rolls_back, waits = if_busy == "rollback", if_busy == "wait"
    take_over = if_busy in ("cancel", "rollback")
    while True:
        with context.storage.writing() as session:
            row = session.records.get(thread_id)
            if row is not None:
                try:
                    leased = session.leases.acquire(
                        row.thread,
                        holder,
                        ttl,
                        take_over=take_over,
                        waits=waits,
                        rolls_back=rolls_back,
                    )
                except Stale:
                    continue  # it was deleted in between
                if leased is not None:
                    return Held(row.thread, leased, take_over and row.lease is not None)
                row = session.records.get(thread_id)
                if row is not None and row.lease is not None:
                    return _holder_of(row.lease)
                if waits:
                    return None
                continue  # it has ended in between
        if must_exist:
            raise ThreadNotFound(f"there is no thread {thread_id!r}")
        create(context, thread_id, Changes(), may_exist=True)


def renew(context: Context, held: Held, ttl: int) -> bool:
    """Make a lease last for longer, and return whether it still holds."""
    with context.storage.writing() as session:
        return session.leases.renew(held.thread, held.lease.fence, ttl)


def release(context: Context, held: Held) -> None:
    """End a lease, if it still holds."""
    with context.storage.writing() as session:
        session.leases.release(held.thread, held.lease.fence)


def leave_queue(context: Context, thread_id: str, holder: str) -> None:
    """Wait no longer for the lease of a thread."""
    with context.storage.writing() as session:
        row = session.records.get(thread_id)
        if row is not None:
            session.leases.leave_queue(row.thread, holder)


def release_of(context: Context, thread_id: str, holder: str) -> None:
    """End the lease that somebody may have begun as he was interrupted."""
    with context.storage.reading() as session:  # which waits for nobody who writes
        row = session.records.get(thread_id)
    if row is not None and row.lease is not None and row.lease.holder == holder:
        release(context, Held(row.thread, row.lease))


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
        next_version: NextVersion | None = None,
    ) -> None:
        self.thread_id = thread_id
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:12]}"
        self._context = context
        self._runner = runner
        self._if_busy = if_busy
        self._ttl = ttl
        self._timeout_seconds = timeout_seconds
        self._must_exist = must_exist
        self._next_version = next_version
        self._held: Held | None = None
        self._is_lost = False
        self._ended = threading.Event()
        self._process = os.getpid()
        renew_in_child(self)

    def _become_child(self) -> None:
        """In a forked child: another thread of the parent may have held the event's lock."""
        is_ended, self._ended = self._ended.is_set(), threading.Event()
        if is_ended:
            self._ended.set()

    @property
    def config(self) -> RunnableConfig:
        """The config to run the graph with. What is put under it is refused once it is lost.

        Raises:
            StaleLease: The block has ended.
        """
        if self._held is None:
            raise RuntimeError("a lease has a config within its with block only")
        if self._ended.is_set():
            raise StaleLease(stale_lease(self.thread_id))
        shown = inputs.shown_lease(self._held.thread.key, self._held.lease.fence)
        return {"configurable": {"thread_id": self.thread_id, inputs.LEASE: shown}}

    @property
    def is_lost(self) -> bool:
        """Whether it is known that another run has taken it over, or that the thread is deleted."""
        return self._is_lost

    def answer_tool_calls(self) -> list[str]:
        """Answer calls of tools that the last run left without an answer, and return their ids.

        Call it before a person's next message, where the last run crashed or was cancelled: models
        refuse a conversation in which a call has no answer. What a tool returned and had stored is
        its answer; else it is a `ToolMessage` with `status="error"`. The answers are in a new
        checkpoint, from which nothing is to run: so a run that is to go on where the last one
        ended, with None for its input, needs it not to be called. A thread that waits for a
        person's answer is left alone. With `if_busy="cancel"` it is done on taking the lease over.

        Raises:
            StaleLease: The lease is lost, or its block has ended.
        """
        return self._runner.run(answer_tool_calls, *self._answering())

    async def aanswer_tool_calls(self) -> list[str]:
        """Do what `answer_tool_calls` does."""
        return await self._runner.arun(answer_tool_calls, *self._answering())

    def _answering(self) -> tuple[Context, RunnableConfig, NextVersion]:
        assert self._next_version is not None
        return self._context, self.config, self._next_version

    def _rolling_back(self) -> tuple[Context, str, LeaseRow]:
        assert self._held is not None
        return self._context, self.thread_id, self._held.lease

    @property
    def _is_to_roll_back(self) -> bool:
        """Whether a run is to be rolled back, by this lease or by one that did not come to it."""
        return self._held is not None and self._held.lease.rollback_from is not None

    @property
    def _is_taken_over(self) -> bool:
        return self._held is not None and self._held.is_taken_over

    def __enter__(self) -> Self:
        self._check_new()
        try:
            for pause in self._pauses():
                if self._is_held(self._runner.run(self._acquire), pause):
                    break
                time.sleep(pause or 0)
            if self._is_to_roll_back:
                self._runner.run(removing.withdraw, *self._rolling_back())
            elif self._is_taken_over:
                self.answer_tool_calls()
        except ForkpointError:
            self._runner.run(self._release)
            raise
        except BaseException:  # an interrupt, maybe before it was known that it had begun
            self._runner.run(self._release_unseen)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self._release)
        except ForkpointError:
            raise
        except BaseException:  # an interrupt, maybe before it was released
            self._runner.run(self._release)
            raise

    async def __aenter__(self) -> Self:
        self._check_new()
        try:
            for pause in self._pauses():
                if self._is_held(await self._runner.arun(self._acquire), pause):
                    break
                await asyncio.sleep(pause or 0)
            if self._is_to_roll_back:
                await self._runner.arun(removing.withdraw, *self._rolling_back())
            elif self._is_taken_over:
                await self.aanswer_tool_calls()
        except BaseException:
            await completed(self._runner.arun(self._release))
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await completed(self._runner.arun(self._release))

    # Operations. They keep themselves what they did: who called may be cancelled meanwhile.

    def _acquire(self) -> str | None:
        """Begin the lease, or return why it cannot begin yet."""
        asked = self._context, self.thread_id, self.holder, self._ttl
        outcome = acquire(*asked, self._if_busy, self._must_exist)
        if outcome is None:
            return "a run that came before waits for it"
        if isinstance(outcome, LeaseHolder):
            since = outcome.since.isoformat(timespec="seconds")
            return f"{outcome.holder} runs on it since {since}"
        self._held = outcome
        args = weakref.ref(self), self._ended, self._ttl
        start_thread(
            threading.Thread(target=_renew, args=args, name="forkpoint lease", daemon=True)
        )
        return None

    def _release(self) -> None:
        """End the lease, if it began."""
        if self._held is None and self._if_busy == "wait":
            leave_queue(self._context, self.thread_id, self.holder)
        if self._held is not None:
            self._ended.set()
            if self._process == os.getpid():  # a forked child leaves the lease to its parent
                release(self._context, self._held)

    def _release_unseen(self) -> None:
        """End the lease, whether it is known to have begun or not."""
        self._ended.set()
        release_of(self._context, self.thread_id, self.holder)
        if self._if_busy == "wait":
            leave_queue(self._context, self.thread_id, self.holder)

    def _check_new(self) -> None:
        if self._held is not None:
            raise RuntimeError("a lease can be entered once")

    def _pauses(self) -> Iterator[float | None]:
        """Return how long to wait after each attempt to have it, or None after the last one."""
        patience = 0.0 if self._if_busy == "raise" else self._timeout_seconds
        until = None if patience is None else time.monotonic() + patience
        shortest, longest = _PAUSES_SECONDS
        while until is None or (left := until - time.monotonic()) > 0:
            pause = shortest * random.uniform(0.5, 1)  # not in step with others that wait
            yield pause if until is None else min(pause, left)
            shortest = min(2 * shortest, longest)
        yield None

    def _is_held(self, reason: str | None, pause: float | None) -> bool:
        """Return whether it has begun, and raise if that was the last attempt."""
        if reason is not None and pause is None:
            raise ThreadBusy(f"thread {self.thread_id!r} is busy: {reason}")
        return reason is None

    def renew(self) -> bool:
        """Make it last for longer, and return whether there is more to renew.

        As long as the block runs, a thread does this from time to time.
        """
        assert self._held is not None
        try:
            if self._runner.run(renew, self._context, self._held, self._ttl):
                return True
        except SaverClosed:
            return False
        except ForkpointError as error:
            if not self._ended.is_set():
                # It has time left; and if that passes, its fence protects the thread.
                _LOG.warning("the lease on %r is not renewed: %s", self.thread_id, error)
            return True
        self._is_lost = not self._ended.is_set()
        return False


def _renew(lease: weakref.ref[Lease], ended: threading.Event, ttl: int) -> None:
    """Renew a lease until it has ended, or nobody has it any more: its block was interrupted."""
    pause = max(ttl / 1_000_000 / _RENEWALS, _SHORTEST_SECONDS)
    while not ended.wait(pause):
        held = lease()
        if held is None or not held.renew():
            return
        del held
