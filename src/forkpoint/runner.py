"""How an operation runs for a sync caller and for an async one: in one hop to another thread.

An operation is an ordinary function that blocks, or a generator that yields whatever is to be
stored before it goes on (see `forkpoint.group_commit`).
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from types import GeneratorType
from typing import Any, Protocol, TypeVar, overload

import aiosqlite

from forkpoint.group_commit import Claim, Rider, Steps, Waiting, finish

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


async def completed(running: Awaitable[_T]) -> _T:
    """Return what something returns. If the call is cancelled, it is waited for nevertheless."""
    task = asyncio.ensure_future(running)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # it is on its way out already
        if not task.cancelled():
            task.exception()  # seen: the caller is not there any more to be told
        raise


def _finished(outcome: Any) -> Any:
    return finish(outcome) if isinstance(outcome, GeneratorType) else outcome


class WorkerRunner:
    """Runs sync operations where they are called, and async ones on worker threads.

    The threads serve any number of event loops, outlive those that close early, and do not keep
    the process from ending. They take their work from a `SimpleQueue`: a hop costs a third of what
    it costs through a `concurrent.futures` executor. While what an operation waits for is stored by
    another thread, its own does something else.

    Args:
        workers: How many async operations run at once.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._mails: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mail]
        self._mails = weakref.WeakKeyDictionary()
        self._process = 0

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        return _finished(operation(*args))

    async def arun(self, operation: Callable[..., Any], *args: Any) -> Any:
        if self._process != os.getpid():  # threads end where forks begin
            self._start()
        loop = asyncio.get_running_loop()
        call = _Call(self._jobs, self._mails.setdefault(loop, _Mail()), operation, args)
        self._jobs.put(call.run)
        return await call.outcome()

    def _start(self) -> None:
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # They end with the runner, not when the saver is closed: a call may be on its way then.
        weakref.finalize(self, _stop, jobs, self._workers)
        for _ in range(self._workers):
            threading.Thread(target=_work, args=(jobs,), name="forkpoint", daemon=True).start()
        # In this order: who sees the process must find a queue that has workers.
        self._mails = weakref.WeakKeyDictionary()
        self._jobs = jobs
        self._process = os.getpid()


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


class _Mail:
    """What worker threads have for an event loop, which is woken once for all that has come."""

    def __init__(self) -> None:
        self._letters: deque[Callable[[], None]] = deque()
        self._is_announced = False

    def send(self, loop: asyncio.AbstractEventLoop, letter: Callable[[], None]) -> None:
        """Have a loop call a function, unless it is closed: then nobody waits any more."""
        self._letters.append(letter)
        if self._is_announced:
            return
        self._is_announced = True
        try:
            loop.call_soon_threadsafe(self._open)
        except RuntimeError:
            if not loop.is_closed():
                raise
            self._letters.clear()
            self._is_announced = False

    def _open(self) -> None:
        self._is_announced = False  # first: what comes from now on announces itself
        while self._letters:
            self._letters.popleft()()


class _Call:
    """An operation that an event loop waits for while workers run it."""

    def __init__(
        self,
        jobs: SimpleQueue[_Job | None],
        mail: _Mail,
        operation: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._jobs = jobs
        self._mail = mail
        self._operation = operation
        self._args = args
        self._steps: Steps[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Any] = self._loop.create_future()
        self._finished: asyncio.Future[None] | None = None
        self._is_finished = False
        self._claim = Claim()  # whoever takes it decides: run it, or withdraw it

    # On worker threads

    def run(self) -> None:
        """Run the operation, unless it was withdrawn."""
        if self._claim.take():
            _go_on(self.step())

    def wake(self, rider: Rider) -> None:
        self._jobs.put(partial(self._resume, rider))

    def _resume(self, rider: Rider) -> None:
        try:
            stored = [rider] if rider.done else rider.lead()
        except BaseException as error:  # noqa: BLE001 - as below
            self._deliver(None, error)
        else:
            _go_on(stored)

    def step(self) -> Sequence[Waiting]:
        try:
            if self._steps is None:
                outcome = self._operation(*self._args)
                if not isinstance(outcome, GeneratorType):
                    self._deliver(outcome, None)
                    return ()
                self._steps = outcome
            return next(self._steps).board(self)
        except StopIteration as end:
            self._deliver(end.value, None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
            self._deliver(None, error)
        return ()

    def _deliver(self, value: Any, failure: BaseException | None) -> None:
        self._mail.send(self._loop, partial(self._finish, value, failure))

    # In the event loop

    async def outcome(self) -> Any:
        """Return what the operation returns, or raise what it raises."""
        try:
            return await self._result
        except asyncio.CancelledError:
            if not self._claim.take():
                await self._wait()
            raise

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


class AiosqliteRunner:
    """Runs everything on the thread of an `aiosqlite.Connection`, to which SQLite may bind it."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._caller: ThreadPoolExecutor | None = None
        self._thread: int | None = None

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        if threading.get_ident() == self._thread:
            return _finished(operation(*args))  # from a callback of one that is running there
        # In a loop of its own, on another thread: the caller's thread may be running one.
        if self._caller is None:
            self._caller = ThreadPoolExecutor(1, thread_name_prefix="forkpoint")
        return self._caller.submit(asyncio.run, self.arun(operation, *args)).result()

    async def arun(self, operation: Callable[..., Any], *args: Any) -> Any:
        # aiosqlite has no public way to run a function on its thread.
        execute: Any = self._connection._execute
        return await completed(execute(self._call, operation, args))

    def _call(self, operation: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._thread = threading.get_ident()
        try:
            return _finished(operation(*args))
        finally:
            self._thread = None
