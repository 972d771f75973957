"""SQLite: how operations run on the thread of an aiosqlite connection, never for long."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from types import GeneratorType
from typing import Any

import aiosqlite

from forkpoint.at_fork import renew_in_child
from forkpoint.errors import NoWorkerThread, SaverClosed
from forkpoint.runtime.runner import completed, finished
from forkpoint.runtime.steps import Again, Patience, Retry, Steps, Waiting, begin
from forkpoint.runtime.workers import start_thread


class AiosqliteRunner:
    """Runs everything on the thread of an `aiosqlite.Connection`, to which SQLite may bind it.

    An operation leaves the thread to others while it waits for a locked store, and between its
    turns.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._become_child()
        renew_in_child(self)

    def _become_child(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._starting = threading.Lock()

    def close(self) -> None:
        """Do nothing: the thread ends with the connection."""

    def run(self, operation: Callable[..., Any], *args: Any) -> Any:
        if threading.current_thread() is _thread_of(self._connection):
            return finished(operation, args)  # from a callback of one that is running there
        self._check_usable()
        # In a loop on another thread: the caller's thread may be running one.
        loop = self._own_loop()
        future = asyncio.run_coroutine_threadsafe(self.arun(operation, *args), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # it may wait for the store; an interrupted call need not
            raise

    async def arun(self, operation: Callable[..., Any], *args: Any) -> Any:
        self._check_usable()
        call = _Attempts(operation, args)
        return await completed(self._run(call), call.cancel)

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise SaverClosed(
                "the connection that was passed cannot be used in a forked process; make a saver "
                "from the path there"
            )
        if not _thread_of(self._connection).is_alive():  # a call would wait for ever
            raise SaverClosed(
                "the aiosqlite connection that was passed is closed, or its thread has ended, as "
                "it does where an event loop is closed while a call in it is going on; open another"
            )

    async def _run(self, call: _Attempts) -> Any:
        # aiosqlite has no public way to run a function on its thread.
        execute: Any = self._connection._execute
        while True:
            attempts = call.attempts
            try:
                pause = await execute(call.attempt)
            except ValueError as error:
                if call.attempts > attempts:
                    raise
                # It is what aiosqlite raises without trying.
                raise SaverClosed("the aiosqlite connection that was passed is closed") from error
            if pause is None:
                return call.outcome
            await asyncio.sleep(pause)

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that runs sync calls. It ends with the runner."""
        with self._starting:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=_run_loop, args=(loop,), name="forkpoint loop", daemon=True
                )
                try:
                    start_thread(thread)
                except NoWorkerThread:
                    loop.close()
                    raise
                weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)
                self._loop = loop
            return self._loop


def _thread_of(connection: Any) -> threading.Thread:
    """Return the thread of an aiosqlite connection, which is one itself before release 0.22."""
    thread: threading.Thread = getattr(connection, "_thread", connection)
    return thread


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


class _Attempts:
    """An operation, run in several attempts: it is suspended where it would block the thread.

    Attributes:
        outcome: What the operation returned.
        attempts: How many attempts were made.
    """

    def __init__(self, operation: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.outcome: Any = None
        self.attempts = 0
        self._operation = operation
        self._args = args
        self._steps: Steps[Any] | None = None
        self._waiting: Waiting | None = None
        self._patience = Patience()
        self._is_cancelled = False

    def cancel(self) -> None:
        """End the operation at the next attempt, if what it waits for can still be withdrawn."""
        self._is_cancelled = True

    def attempt(self) -> float | None:
        """Run up to the end, or return how long to wait before the next attempt."""
        self.attempts += 1
        if self._is_cancelled and self._is_withdrawn():
            return None
        try:
            return self._go_on()
        except Retry as retry:
            pause = self._patience.pause(retry.locked.timeout)
            if pause is None:
                raise retry.locked.error from None
            return pause
        except Again:
            self._steps = self._waiting = None
            return 0.0

    def _go_on(self) -> float | None:
        if self._steps is None:
            outcome = begin(self._operation, self._args)
            if not isinstance(outcome, GeneratorType):
                self.outcome = outcome
                return None
            self._steps = outcome
        while True:
            if self._waiting is None:
                try:
                    self._waiting = next(self._steps)
                except StopIteration as end:
                    self.outcome = end.value
                    return None
            pause = self._waiting.attempt()
            if pause is not None:
                return pause
            self._waiting = None

    def _is_withdrawn(self) -> bool:
        if self._waiting is None:
            return True
        if not self._waiting.withdraw():
            return False
        if self._steps is not None:
            self._steps.close()
        return True
