"""Leases: the right to be the only active run on a thread, for a time.

A lease ends when it is released, when its holder dies and its time passes, or when another run
takes it over. Each beginning and each end raises the thread's fence, a counter. A run passes the
fence of its lease along with everything that it stores, and is refused once the thread has another
fence: so a holder that was held up stores nothing after another run began. All times are those of
the database.
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.runnables import RunnableConfig

from forkpoint import inputs
from forkpoint.at_fork import renew_in_child
from forkpoint.catalog.lease_operations import (
    LeaseGrant,
    LeaseRequest,
    acquire,
    leave_queue,
    release,
    release_of,
    renew,
)
from forkpoint.catalog.threads import LeaseHolder
from forkpoint.catalog.tool_calls import answer_tool_calls
from forkpoint.errors import (
    ForkpointError,
    NoWorkerThread,
    SaverClosed,
    StaleLease,
    StorageBusy,
    StorageUnavailable,
    ThreadBusy,
    stale_lease,
)
from forkpoint.operations import remove
from forkpoint.operations.context import Context
from forkpoint.operations.fork_parts import NextVersion
from forkpoint.runtime.runner import Runner, completed
from forkpoint.runtime.telemetry import count_leases
from forkpoint.runtime.workers import start_thread

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("forkpoint.leases")
_PAUSES_SECONDS = (0.01, 0.5)  # between two attempts to get a lease: at first, and at most
_RENEWALS = 3  # in the time of a lease
_SHORTEST_SECONDS = 0.01  # between two renewals


class Lease:
    """The right to be the only active run on a thread, while a block of code runs.

    It works under `with` and under `async with`, and a background thread renews it meanwhile.

    Attributes:
        thread_id: The thread.
        holder: Who has the lease: the host, the process and a random part.
        answers_calls: Whether `if_busy="cancel"` answers the tool calls that the other run left
            open. Set it to False, before the block, for a run that goes on where that one ended.
    """

    def __init__(
        self,
        context: Context,
        runner: Runner,
        request: LeaseRequest,
        next_version: NextVersion | None = None,
    ) -> None:
        self.thread_id = request.thread_id
        self.holder = _new_holder()
        self.answers_calls = True
        self._context = context
        self._runner = runner
        self._request = request
        self._next_version = next_version
        self._grant: LeaseGrant | None = None
        self._is_lost = False
        self._has_asked = False
        self._is_released = False
        self._ended = threading.Event()
        self._process = os.getpid()
        renew_in_child(self)

    def _become_child(self) -> None:
        """In a forked child: what has not begun is not the parent's."""
        if self._grant is None:
            self.holder, self._process = _new_holder(), os.getpid()
        ended = threading.Event()  # another thread of the parent may have held the event's lock
        if self._ended.is_set():
            ended.set()
        self._ended = ended

    @property
    def config(self) -> RunnableConfig:
        """The config to run the graph with. What is put with it is refused once the lease is lost.

        Raises:
            StaleLease: The block has not begun, or has ended.
        """
        grant = self._begun()
        if self._ended.is_set():
            raise StaleLease(stale_lease(self.thread_id))
        token = inputs.lease_token(grant.thread.key, grant.lease.fence)
        return {"configurable": {"thread_id": self.thread_id, inputs.LEASE: token}}

    @property
    def is_lost(self) -> bool:
        """Whether it is known that another run took the lease over, or the thread was deleted."""
        return self._is_lost

    def answer_tool_calls(self) -> list[str]:
        """Answer the tool calls that the last run left without an answer, and return their ids.

        Call it before a person's next message where the last run crashed or was cancelled: models
        refuse a conversation in which a call has no answer. The answer to a call is what its tool
        returned, if that was stored, and otherwise a `ToolMessage` with `status="error"`. The
        answers are put into a new checkpoint from which nothing is to run. So do not call it for a
        run that is to go on where the last one ended, with None as its input. A thread that waits
        for a person's answer is left alone. A lease with `if_busy="cancel"` does this by itself
        when it takes another one over.

        Raises:
            StaleLease: The lease is lost, or its block has not begun or has ended.
        """
        return self._runner.run(answer_tool_calls, *self._answering())

    async def aanswer_tool_calls(self) -> list[str]:
        """Do what `answer_tool_calls` does."""
        return await self._runner.arun(answer_tool_calls, *self._answering())

    def _answering(self) -> tuple[Context, RunnableConfig, NextVersion]:
        assert self._next_version is not None
        return self._context, self.config, self._next_version

    def _cleanup(self) -> tuple[Any, ...] | None:
        """Return the operation that cleans up after the last run, and its arguments, if need be."""
        assert self._grant is not None
        if self._grant.lease.rollback_from is not None:  # set by this lease, or by one that died
            return remove.withdraw, self._context, self.thread_id, self._grant.lease
        if self._grant.is_taken_over and self.answers_calls:
            return answer_tool_calls, *self._answering()
        return None

    def __enter__(self) -> Self:
        self._check_new()
        try:
            for pause in self._pauses():
                if self._has_begun(self._runner.run(self._acquire), pause):
                    break
                time.sleep(pause or 0)
            if cleanup := self._cleanup():
                self._runner.run(*cleanup)
        except BaseException as error:
            self._give_up(error)
            raise
        return self

    def _give_up(self, error: BaseException) -> None:
        """Release what an attempt has got that raises an error."""
        self._has_asked = False
        is_known = isinstance(error, ForkpointError)  # else an interrupt: it may have begun unseen
        self._give_back(self._release if is_known else self._release_unseen)

    def __exit__(self, *_: object) -> None:
        self._has_asked = False
        try:
            self._give_back(self._release)
        except ForkpointError:
            raise
        except BaseException:  # an interrupt, maybe before the lease was released
            self._give_back(self._release)
            raise

    def ask(self) -> bool:
        """Begin the lease, or take the place in the queue that the block will wait in.

        For whoever enters the block later: nobody who asks meanwhile comes before it. The place is
        kept for the lease's time to live. Whoever does not enter the block after all calls
        `__exit__` or `__aexit__`.

        Returns:
            Whether the lease has begun.

        Raises:
            StaleLease: It has begun before.
            ThreadNotFound: There is no such thread, and it must exist.
        """
        self._check_new()
        self._has_asked = True
        try:
            return self._runner.run(self._acquire) is None
        except BaseException as error:
            self._give_up(error)
            raise

    async def aask(self) -> bool:
        """Do what `ask` does."""
        self._check_new()
        self._has_asked = True
        try:
            return await self._runner.arun(self._acquire) is None
        except BaseException:
            await self.__aexit__()
            raise

    async def __aenter__(self) -> Self:
        self._check_new()
        try:
            for pause in self._pauses():
                if self._has_begun(await self._runner.arun(self._acquire), pause):
                    break
                await asyncio.sleep(pause or 0)
            if cleanup := self._cleanup():
                await self._runner.arun(*cleanup)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._has_asked = False
        await completed(self._agive_back())

    def _give_back(self, end: Callable[[], None]) -> None:
        """Run an operation that ends the lease, or leaves the queue; again later if it fails."""
        try:
            self._runner.run(end)
        except (StorageBusy, StorageUnavailable):
            self._give_back_later()
            raise

    async def _agive_back(self) -> None:
        try:
            await self._runner.arun(self._release)
        except (StorageBusy, StorageUnavailable):
            self._give_back_later()
            raise

    def _give_back_later(self) -> None:
        """End the lease, or leave the queue, once the store is there again: others wait for it."""
        end: partial[None]
        if self._grant is not None:
            end = partial(release, self._context, self._grant)
        elif self._request.if_busy == "wait":
            end = partial(leave_queue, self._context, self.thread_id, self.holder)
        else:
            return
        args, name = (self._runner, self._request.ttl, end), "forkpoint lease ending"
        with suppress(NoWorkerThread):
            start_thread(
                threading.Thread(target=_repeat_until_done, args=args, name=name, daemon=True)
            )

    # Operations. Each notes on the lease what it did: its caller may be cancelled meanwhile.

    def _acquire(self) -> str | None:
        """Begin the lease, unless it has begun, or return why it cannot begin yet."""
        if self._grant is not None:
            return None
        outcome = acquire(self._context, self._request, self.holder)
        if outcome is None:
            return "a run that came before waits for it"
        if isinstance(outcome, LeaseHolder):
            since = outcome.since.isoformat(timespec="seconds")
            return f"{outcome.holder} runs on it since {since}"
        self._grant = outcome
        count_leases(1)
        args = weakref.ref(self), self._ended, self._request.ttl
        start_thread(
            threading.Thread(target=_renew, args=args, name="forkpoint lease", daemon=True)
        )
        return None

    def _release(self) -> None:
        """End the lease, if it began and has not ended."""
        if self._is_released:
            return
        if self._grant is None:
            self._leave_queue()
            return
        self._end()
        if self._process == os.getpid():  # a forked child leaves the lease to its parent
            release(self._context, self._grant)
        self._is_released = True

    def _release_unseen(self) -> None:
        """End the lease, whether it is known to have begun or not."""
        self._end()
        release_of(self._context, self.thread_id, self.holder)
        self._leave_queue()

    def _end(self) -> None:
        if self._grant is not None and not self._ended.is_set():
            count_leases(-1)
        self._ended.set()

    def _leave_queue(self) -> None:
        if self._request.if_busy == "wait":
            leave_queue(self._context, self.thread_id, self.holder)

    def _check_new(self) -> None:
        if self._grant is not None and not self._has_asked:
            raise StaleLease(
                f"the lease on thread {self.thread_id!r} has begun before, and begins once; call "
                "run() for another one"
            )
        self._has_asked = False

    def _begun(self) -> LeaseGrant:
        if self._grant is None:
            raise StaleLease(
                f"the lease on thread {self.thread_id!r} has not begun: it is held within its "
                "with block"
            )
        return self._grant

    def _pauses(self) -> Iterator[float | None]:
        """Return how many seconds to wait after each attempt, or None after the last one."""
        request = self._request
        patience = 0.0 if request.if_busy == "raise" else request.timeout_seconds
        until = None if patience is None else time.monotonic() + patience
        shortest, longest = _PAUSES_SECONDS
        longest = max(shortest, min(longest, request.ttl / 3_000_000))  # or it loses its place
        while until is None or (left := until - time.monotonic()) > 0:
            pause = shortest * random.uniform(0.5, 1)  # not in step with others that wait
            yield pause if until is None else min(pause, left)
            shortest = min(2 * shortest, longest)
        yield None

    def _has_begun(self, reason: str | None, pause: float | None) -> bool:
        """Return whether the lease has begun, and raise if that was the last attempt."""
        if reason is not None and pause is None:
            raise ThreadBusy(f"thread {self.thread_id!r} is busy: {reason}")
        return reason is None

    def renew(self) -> bool:
        """Let the lease last for its time to live from now. A thread does so while the block runs.

        Returns:
            Whether there will be more to renew: not once the lease has ended or is lost.

        Raises:
            StaleLease: The block has not begun.
        """
        grant = self._begun()
        try:
            if self._runner.run(renew, self._context, grant, self._request.ttl):
                return True
        except SaverClosed:
            return False
        except ForkpointError as error:
            if not self._ended.is_set():
                # The lease has time left; and once that has passed, its fence protects the thread.
                _LOG.warning("the lease on %r is not renewed: %s", self.thread_id, error)
            return True
        self._is_lost = not self._ended.is_set()
        return False


def _new_holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:12]}"


def _renew(reference: weakref.ref[Lease], ended: threading.Event, ttl: int) -> None:
    """Renew a lease until it has ended, or nobody has it any more: its block was interrupted."""
    pause = max(ttl / 1_000_000 / _RENEWALS, _SHORTEST_SECONDS)
    while not ended.wait(pause):
        lease = reference()
        if lease is None:
            if not ended.is_set():
                count_leases(-1)
            return
        if not lease.renew():
            return
        del lease


def _repeat_until_done(runner: Runner, ttl: int, end: Callable[[], None]) -> None:
    """Try to end a lease, or to leave the queue, until that has ended by itself."""
    until = time.monotonic() + ttl / 1_000_000
    pause, longest = _PAUSES_SECONDS
    while time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, longest)
        try:
            runner.run(end)
        except SaverClosed:
            return
        except ForkpointError:
            continue
        return
