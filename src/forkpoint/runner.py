"""How an operation runs for a sync caller and for an async one: in one piece, in one hop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import aiosqlite

_T = TypeVar("_T")

_WORKERS = 4
"""How many async operations of a saver run at once. While one commits, the others prepare."""


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

    def close(self) -> None:
        """Let go of what the runner started."""


class WorkerRunner:
    """Runs sync operations where they are called, and async ones on worker threads.

    The threads are a `ThreadPoolExecutor`'s. They serve any number of event loops, outlive those
    that close early, and do not keep the process from ending.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0

    def run(self, operation: Callable[..., _T], *args: Any) -> _T:
        return operation(*args)

    async def arun(self, operation: Callable[..., _T], *args: Any) -> _T:
        submitted = self._worker().submit(operation, *args)
        return await _settle(asyncio.wrap_future(submitted), submitted)

    def _worker(self) -> ThreadPoolExecutor:
        if self._executor is None or self._process != os.getpid():  # threads end where forks begin
            self._executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="forkpoint")
            self._process = os.getpid()
        return self._executor

    def close(self) -> None:
        """Let the worker threads end when they have done what they were given."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None


class AiosqliteRunner:
    """Runs everything on the thread of an `aiosqlite.Connection`, to which SQLite may bind it."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._caller = WorkerRunner()

    def run(self, operation: Callable[..., _T], *args: Any) -> _T:
        # A loop of its own, on another thread: the caller's thread may be running one.
        return self._caller._worker().submit(asyncio.run, self.arun(operation, *args)).result()

    async def arun(self, operation: Callable[..., _T], *args: Any) -> _T:
        return await _settle(asyncio.ensure_future(self._execute(operation, *args)))

    async def _execute(self, operation: Callable[..., _T], *args: Any) -> _T:
        # aiosqlite has no public way to run a function on its thread.
        execute: Any = self._connection._execute
        result: _T = await execute(operation, *args)
        return result

    def close(self) -> None:
        """Leave the connection, which is the caller's, open."""
        self._caller.close()


async def _settle(awaited: asyncio.Future[_T], submitted: Future[_T] | None = None) -> _T:
    """Wait for an operation; when cancelled, withdraw it or wait until it has run."""
    try:
        return await asyncio.shield(awaited)
    except asyncio.CancelledError:
        if submitted is None or not submitted.cancel():
            while not awaited.done():
                try:
                    await asyncio.wait([awaited])
                except asyncio.CancelledError:
                    continue
        if awaited.done() and not awaited.cancelled():
            awaited.exception()  # seen: the caller is not there any more to be told
        raise
