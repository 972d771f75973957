"""How an operation runs for a sync caller and for an async one: in one piece, in one hop."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import aiosqlite

_T = TypeVar("_T")


class Runner(Protocol):
    """Runs operations, which are ordinary functions that block."""

    def run(self, operation: Callable[..., _T], *args: Any) -> _T:
        """Run an operation, and return when it is done."""
        ...

    async def arun(self, operation: Callable[..., _T], *args: Any) -> _T:
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


class WorkerRunner:
    """Runs sync operations where they are called, and async ones on worker threads.

    The threads serve any number of event loops, outlive those that close early, and do not keep
    the process from ending. They take their work from a `SimpleQueue`: a hop costs a third of what
    it costs through a `concurrent.futures` executor.

    Args:
        workers: How many async operations run at once.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._process = 0

    def run(self, operation: Callable[..., _T], *args: Any) -> _T:
        return operation(*args)

    async def arun(self, operation: Callable[..., _T], *args: Any) -> _T:
        if self._process != os.getpid():  # threads end where forks begin
            self._start()
        call = _Call(operation, args)
        self._calls.put(call)
        return await call.outcome()

    def _start(self) -> None:
        calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        for _ in range(self._workers):
            threading.Thread(target=_work, args=(calls,), name="forkpoint", daemon=True).start()
        # They end with the runner, not when the saver is closed: a call may be on its way then.
        weakref.finalize(self, _stop, calls, self._workers)
        # In this order: who sees the process must find a queue that has workers.
        self._calls = calls
        self._process = os.getpid()


def _work(calls: SimpleQueue[_Call[Any] | None]) -> None:
    while (call := calls.get()) is not None:
        call.run()


def _stop(calls: SimpleQueue[_Call[Any] | None], workers: int) -> None:
    for _ in range(workers):
        calls.put(None)


class _Call(Generic[_T]):
    """An operation that an event loop waits for while a worker runs it."""

    def __init__(self, operation: Callable[..., _T], args: tuple[Any, ...]) -> None:
        self._operation = operation
        self._args = args
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[_T] = self._loop.create_future()
        self._finished: asyncio.Future[None] | None = None
        self._is_finished = False
        self._unclaimed = [True]  # whoever pops it first decides: run it, or withdraw it

    def run(self) -> None:
        """Run the operation, on a worker thread, unless it was withdrawn."""
        if not self._claim():
            return
        value: _T | None = None
        failure: BaseException | None = None
        try:
            value = self._operation(*self._args)
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
            failure = error
        try:
            self._loop.call_soon_threadsafe(self._finish, value, failure)
        except RuntimeError:
            if not self._loop.is_closed():  # else nobody waits any more
                raise

    async def outcome(self) -> _T:
        """Return what the operation returns, or raise what it raises."""
        try:
            return await self._result
        except asyncio.CancelledError:
            if not self._claim():
                await self._wait()
            raise

    async def _wait(self) -> None:
        while not self._is_finished:
            self._finished = self._loop.create_future()
            try:
                await self._finished
            except asyncio.CancelledError:
                continue  # it is on its way out already

    def _claim(self) -> bool:
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False

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

    def run(self, operation: Callable[..., _T], *args: Any) -> _T:
        if threading.get_ident() == self._thread:
            return operation(*args)  # from a callback of an operation that is running there
        # In a loop of its own, on another thread: the caller's thread may be running one.
        if self._caller is None:
            self._caller = ThreadPoolExecutor(1, thread_name_prefix="forkpoint")
        return self._caller.submit(asyncio.run, self.arun(operation, *args)).result()

    async def arun(self, operation: Callable[..., _T], *args: Any) -> _T:
        # aiosqlite has no public way to run a function on its thread.
        execute: Any = self._connection._execute
        return await completed(execute(self._call, operation, args))

    def _call(self, operation: Callable[..., _T], args: tuple[Any, ...]) -> _T:
        self._thread = threading.get_ident()
        try:
            return operation(*args)
        finally:
            self._thread = None
