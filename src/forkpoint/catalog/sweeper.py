"""A thread that sweeps in the background."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from forkpoint.at_fork import renew_in_child
from forkpoint.catalog.retention import RetentionResult
from forkpoint.errors import SaverClosed
from forkpoint.runtime.workers import start_thread

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("forkpoint.sweeper")


class Sweeper:
    """Deletes expired threads in the background, until it is stopped.

    It works under `with` and under `async with`, and ends with its saver at the latest. Several
    processes may each run a sweeper.

    Attributes:
        last_result: What the last sweep that worked did, or None before there is one.
        last_error: The error of the last sweep, or None if it worked. A failed sweep is no end: the
            next one comes after the interval.
    """

    def __init__(self, sweep: Callable[[], RetentionResult], interval_seconds: float) -> None:
        self._sweep = sweep
        self._interval_seconds = interval_seconds
        self._become_child()
        renew_in_child(self)
        self.last_result: RetentionResult | None = None
        self.last_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="forkpoint sweeper", daemon=True)
        start_thread(self._thread)

    def _become_child(self) -> None:
        """In a forked child: the thread is gone, and may have held the event's lock."""
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop sweeping. A sweep that is going on is waited for."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while True:
            try:
                self.last_result, self.last_error = self._sweep(), None
                deleted, trimmed = len(self.last_result.deleted), len(self.last_result.trimmed)
                level = logging.INFO if deleted or trimmed else logging.DEBUG
                _LOG.log(level, "a sweep deleted %d threads and trimmed %d", deleted, trimmed)
                for thread_id, error in self.last_result.failed.items():
                    _LOG.warning("a sweep left thread %r alone: %s", thread_id, error)
            except SaverClosed as error:
                self.last_error = error
                _LOG.debug("the saver of a sweeper is closed, which ends it")
                return
            except Exception as error:  # noqa: BLE001 - the next one may work
                self.last_error = error
                _LOG.warning("a sweep failed, and the next one will try again: %s", error)
            if self._stopped.wait(self._interval_seconds):
                return
