"""Running operations for sync callers, in their own thread, and for async ones, in workers.

An operation is an ordinary function that blocks, or a generator that yields what it waits for; see
`forkpoint.runtime.steps`. An async operation that meets a locked store blocks no worker: it runs
again after a pause.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from types import GeneratorType
from typing import Any, Protocol, TypeVar, overload

from forkpoint.at_fork import renew_in_child
from forkpoint.errors import NoWorkerThread
from forkpoint.runtime.steps import (
    Again,
    Claim,
    Locked,
    Patience,
    Retry,
    Steps,
    Waiting,
    begin,
    finish,
)
from forkpoint.runtime.workers import Job, Workers

_T = TypeVar("_T")


class Runner(Protocol):
    """Runs operations."""

    def close(self) -> object:
        """Let its threads end, unless other runners use them."""
        ...

    @overload
    def run(self, operation: Callable[..., Steps[_T]], *args: Any) -> _T: ...
    @overload
    def run(self, operation: Callable[..., _T], *args: Any) -> _T: ...
    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Run an operation, and return when it is done."""
        ...

    @overload
    async def arun(self, operation: Callable[..., Steps[_T]], *args: Any) -> _T: ...
    @overload
    async def arun(self, operation: Callable[..., _T], *args: Any) -> _T: ...
    async def arun(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Run an operation without blocking the event loop.

        If the call is cancelled, the operation has run entirely, or not at all, by the time that
        the `CancelledError` leaves this method.
        """
        ...


class _Uncancelled(asyncio.Task[_T]):
    """A task that nobody cancels: at its end, `asyncio.run` cancels all that there are."""

    def cancel(self, msg: Any = None) -> bool:
        return False


async def completed(
    running: Coroutine[Any, Any, _T], when_cancelled: Callable[[], object] | None = None
) -> _T:
    """Return the result of a coroutine, which ends even if the call is cancelled.

    Args:
        running: The coroutine.
        when_cancelled: Called at once if the call is cancelled.
    """
    task = _Uncancelled(running, loop=asyncio.get_running_loop())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if when_cancelled is not None:
            when_cancelled()
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # the call is cancelled already
        if not task.cancelled():
            task.exception()  # so that asyncio does not report it: nobody awaits it any more
        raise


def finished(operation: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Run an operation in this thread, and return what it returns."""
    while True:
        try:
            outcome = operation(*args)
            return finish(outcome) if isinstance(outcome, GeneratorType) else outcome
        except Again:
            continue


class Guard(Protocol):
    """The locks of a store, as a runner knows them."""

    def check_free(self) -> None:
        """Raise if this thread holds a lock: it is within another operation."""
        ...

    def let_go(self) -> None:
        """Release what this thread holds, after an exception that may have kept it from that."""
        ...


class WorkerRunner:
    """Runs sync operations in the caller's thread, and async ones in worker threads.

    The workers serve any number of event loops. While an operation waits for a put that another
    thread stores, its worker runs other operations.

    Args:
        workers: The threads.
        guard: The locks of the store: checked before each sync operation, and released after an
            exception.
    """

    def __init__(self, workers: Workers, guard: Guard | None = None) -> None:
        self._workers = workers
        self._guard = guard
        self.close = weakref.finalize(self, workers.leave)
        """Lets the threads end, unless other runners use them. A later call starts new ones."""
        workers.join()
        self._become_child()
        renew_in_child(self)

    def _become_child(self) -> None:
        """Forget the event loops of the parent, in a forked child."""
        self._inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Inbox]
        self._inboxes = weakref.WeakKeyDictionary()

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        if self._guard is None:
            return finished(operation, args)
        self._guard.check_free()
        try:
            return finished(operation, args)
        except BaseException:
            _let_go(self._guard)
            raise

    async def arun(self, operation: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        call = _Call(self._workers, self._inboxes.setdefault(loop, _Inbox()), operation, args)
        self._workers.submit(call.run)
        return await call.outcome()


def _let_go(guard: Guard) -> None:
    while True:
        try:
            guard.let_go()
        except KeyboardInterrupt:
            continue  # pressed again; the first one is raised
        return


def _resume_all(done: Iterable[Waiting]) -> None:
    """Resume the operations that waited for these, unless another thread does."""
    ready = deque(done)
    while ready:
        waiting = ready.popleft()
        if waiting.caller is not None and waiting.claim.take():
            ready.extend(waiting.caller.step())


class _Inbox:
    """The jobs of worker threads for an event loop, which is woken once for all that have come."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._is_announced = False

    def send(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        """Have a loop call a function. If the loop is closed, nobody waits for it any more."""
        self._jobs.append(job)
        if self._is_announced:
            return
        self._is_announced = True
        try:
            loop.call_soon_threadsafe(self._open, loop)
        except RuntimeError:
            if not loop.is_closed():
                raise
            self._jobs.clear()
            self._is_announced = False

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._is_announced = False  # first: a job that comes from now on wakes the loop again
            while self._jobs:
                self._jobs[0]()
                self._jobs.popleft()
        except BaseException:  # an interrupt; the loop may run again
            loop.call_soon(self._open, loop)
            raise


class _Call:
    """A call in an event loop of an operation that workers run."""

    def __init__(
        self,
        workers: Workers,
        inbox: _Inbox,
        operation: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._workers = workers
        self._inbox = inbox
        self._operation = operation
        self._args = args
        self._steps: Steps[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Any] = self._loop.create_future()
        self._finished: asyncio.Future[None] | None = None
        self._is_finished = False
        self._is_cancelled = False
        self._claim = Claim()  # taken by the worker that runs it, or by the cancellation
        self._patience: Patience | None = None  # once it waits for a locked store

    # On worker threads

    def run(self) -> None:
        """Run the operation, unless it was withdrawn."""
        if self._claim.take():
            _resume_all(self.step())

    def wake(self, waiting: Waiting) -> None:
        self._submit(partial(self._resume, waiting))

    def wake_later(self, waiting: Waiting, seconds: float) -> None:
        self._put_later(partial(self._resume, waiting), seconds)

    def _submit(self, job: Job) -> None:
        """Have a worker do a job. The operation has begun, so the job must be done sometime."""
        try:
            self._workers.submit(job)
        except NoWorkerThread:
            self._put_later(job, _UNTIL_A_THREAD_SECONDS)

    def _put_later(self, job: Job, seconds: float) -> None:
        self._inbox.send(self._loop, partial(self._start_timer, job, seconds))

    def _resume(self, waiting: Waiting) -> None:
        try:
            if self._is_cancelled and waiting.withdraw() and waiting.claim.take():
                self._withdraw()
                return
            done = waiting.resume()
        except BaseException as error:  # noqa: BLE001 - as below
            self._deliver(None, error)
        else:
            _resume_all(done)

    def step(self) -> Sequence[Waiting]:
        try:
            if self._steps is None:
                outcome = begin(self._operation, self._args)
                if not isinstance(outcome, GeneratorType):
                    self._deliver(outcome, None)
                    return ()
                self._steps = outcome
            return next(self._steps).submit(self)
        except StopIteration as end:
            self._deliver(end.value, None)
        except Retry as retry:
            self._begin_later(retry.locked)
        except Again:
            self._steps = None
            return self.step()
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
            self._deliver(None, error)
        return ()

    def _begin_later(self, locked: Locked) -> None:
        """Run the operation again when the store may be free."""
        if self._patience is None:
            self._patience = Patience()
        pause = self._patience.pause(locked.timeout)
        if pause is None:
            self._deliver(None, locked.error)
        else:
            self._put_later(self._begin_again, pause)

    def _begin_again(self) -> None:
        if self._is_cancelled:
            self._withdraw()
        else:
            _resume_all(self.step())

    def _withdraw(self) -> None:
        """End an operation that was cancelled while it waited, before it has written anything."""
        if self._steps is not None:
            self._steps.close()
        self._deliver(None, None)

    def _deliver(self, value: Any, failure: BaseException | None) -> None:
        self._inbox.send(self._loop, partial(self._finish, value, failure))

    # In the event loop

    async def outcome(self) -> Any:
        """Return what the operation returns, or raise what it raises."""
        try:
            return await self._result
        except asyncio.CancelledError:
            self._is_cancelled = True
            if not self._claim.take():
                await self._wait()
            raise

    def _start_timer(self, job: Job, seconds: float) -> None:
        self._loop.call_later(seconds, self._submit, job)

    async def _wait(self) -> None:
        while not self._is_finished:
            self._finished = self._loop.create_future()
            try:
                await self._finished
            except asyncio.CancelledError:
                continue  # the call is cancelled already

    def _finish(self, value: Any, failure: BaseException | None) -> None:
        self._is_finished = True
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)
        if self._result.done():
            return
        if failure is None:
            self._result.set_result(value)
        else:
            self._result.set_exception(failure)


_UNTIL_A_THREAD_SECONDS = 0.05  # before the next attempt to start a thread
