"""How an operation runs for a sync caller and for an async one: in one hop to another thread.

An operation is an ordinary function that blocks, or a generator that yields whatever is to be
stored before it goes on (see `forkpoint.steps`). Of an async one, no thread waits for a store that
another process has locked: it runs again after a pause.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from queue import SimpleQueue
from types import GeneratorType
from typing import Any, Protocol, TypeVar, overload

from forkpoint.steps import Claim, Locked, Patience, Retry, Steps, Waiting, begin, finish

_T = TypeVar("_T")


class Runner(Protocol):
    """Runs operations."""

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


async def completed(
    running: Awaitable[_T], when_cancelled: Callable[[], object] | None = None
) -> _T:
    """Return what something returns. If the call is cancelled, it is waited for nevertheless."""
    task = asyncio.ensure_future(running)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if when_cancelled is not None:
            when_cancelled()
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # it is on its way out already
        if not task.cancelled():
            task.exception()  # seen: the caller is not there any more to be told
        raise


def finished(outcome: Any) -> Any:
    """Return what an operation returned, or returns in the end if it is one that stops."""
    return finish(outcome) if isinstance(outcome, GeneratorType) else outcome


class Guard(Protocol):
    """What an operation may hold of a store while it runs."""

    def check_free(self) -> None:
        """Raise if this thread holds something, and so is in the middle of an operation."""
        ...

    def let_go(self) -> None:
        """Give up what this thread holds, if it was interrupted as it was about to do so."""
        ...


class WorkerRunner:
    """Runs sync operations where they are called, and async ones on worker threads.

    The threads serve any number of event loops, outlive those that close early, and do not keep
    the process from ending. They take their work from a `SimpleQueue`: a hop costs a third of what
    it costs through a `concurrent.futures` executor. While what an operation waits for is stored by
    another thread, its own does something else.

    Args:
        workers: How many async operations run at once.
        guard: What is checked before each sync operation, and given up after an exception.
    """

    def __init__(self, workers: int, guard: Guard | None = None) -> None:
        self._workers = workers
        self._guard = guard
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Inbox]
        self._inboxes = weakref.WeakKeyDictionary()
        self._process = 0

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        if self._guard is None:
            return finished(operation(*args))
        self._guard.check_free()
        try:
            return finished(operation(*args))
        except BaseException:
            _let_go(self._guard)
            raise

    async def arun(self, operation: Callable[..., Any], *args: Any) -> Any:
        if self._process != os.getpid():  # threads end where forks begin
            self._start()
        loop = asyncio.get_running_loop()
        call = _Call(self._jobs, self._inboxes.setdefault(loop, _Inbox()), operation, args)
        self._jobs.put(call.run)
        return await call.outcome()

    def _start(self) -> None:
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # They end with the runner, not when the saver is closed: a call may be on its way then.
        weakref.finalize(self, _stop, jobs, self._workers)
        for _ in range(self._workers):
            threading.Thread(target=_work, args=(jobs,), name="forkpoint", daemon=True).start()
        # In this order: who sees the process must find a queue that has workers.
        self._inboxes = weakref.WeakKeyDictionary()
        self._jobs = jobs
        self._process = os.getpid()


def _let_go(guard: Guard) -> None:
    while True:
        try:
            guard.let_go()
        except KeyboardInterrupt:
            continue  # pressed again; the first one is raised
        return


_Job = Callable[[], None]


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # it has what was read, and maybe an error, which has the runner in its traceback


def _stop(jobs: SimpleQueue[_Job | None], workers: int) -> None:
    for _ in range(workers):
        jobs.put(None)


def _go_on(stored: Iterable[Waiting]) -> None:
    """Go on with the operations that waited for this to be stored, as far as nobody else does."""
    ready = deque(stored)
    while ready:
        waiting = ready.popleft()
        if waiting.caller is not None and waiting.claim.take():
            ready.extend(waiting.caller.step())


class _Inbox:
    """What an event loop is to do for worker threads. It is woken once for all that has come."""

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._is_announced = False

    def send(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        """Have a loop call a function, unless it is closed: then nobody waits any more."""
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
            self._is_announced = False  # first: what comes from now on announces itself
            while self._jobs:
                self._jobs[0]()
                self._jobs.popleft()
        except BaseException:  # an interrupt of the loop, which may run again
            loop.call_soon(self._open, loop)
            raise


class _Call:
    """An operation that an event loop waits for while workers run it."""

    def __init__(
        self,
        jobs: SimpleQueue[_Job | None],
        inbox: _Inbox,
        operation: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._jobs = jobs
        self._inbox = inbox
        self._operation = operation
        self._args = args
        self._steps: Steps[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Any] = self._loop.create_future()
        self._finished: asyncio.Future[None] | None = None
        self._is_finished = False
        self._is_cancelled = False
        self._claim = Claim()  # whoever takes it decides: run it, or withdraw it
        self._patience: Patience | None = None  # once it waits for a locked store

    # On worker threads

    def run(self) -> None:
        """Run the operation, unless it was withdrawn."""
        if self._claim.take():
            _go_on(self.step())

    def wake(self, waiting: Waiting) -> None:
        self._jobs.put(partial(self._resume, waiting))

    def wake_later(self, waiting: Waiting, seconds: float) -> None:
        self._put_later(partial(self._resume, waiting), seconds)

    def _put_later(self, job: _Job, seconds: float) -> None:
        self._inbox.send(self._loop, partial(self._start_timer, job, seconds))

    def _resume(self, waiting: Waiting) -> None:
        try:
            if self._is_cancelled and waiting.withdraw() and waiting.claim.take():
                self._withdraw()
                return
            stored = waiting.resume()
        except BaseException as error:  # noqa: BLE001 - as below
            self._deliver(None, error)
        else:
            _go_on(stored)

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
            _go_on(self.step())

    def _withdraw(self) -> None:
        """End an operation that was cancelled while it waited, and has written nothing."""
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

    def _start_timer(self, job: _Job, seconds: float) -> None:
        self._loop.call_later(seconds, self._jobs.put, job)

    async def _wait(self) -> None:
        while not self._is_finished:
            self._finished = self._loop.create_future()
            try:
                await self._finished
            except asyncio.CancelledError:
                continue  # it is on its way out already

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
