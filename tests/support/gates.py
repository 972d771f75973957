"""Holding up what a saver sends, so that something else happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any

import pytest

from forkpoint.operations import turns
from servers import PATIENCE_SECONDS


class Gate:
    """Lets a saver send its statements, or commands, up to the one where a test wants to cancel."""

    def __init__(self) -> None:
        self.passed = 0
        self._stop_at: int | None = None
        self._reached = threading.Event()
        self._open = threading.Event()

    def close(self, stop_at: int) -> None:
        """Stop all that comes after this many statements."""
        self._reached.clear()
        self._open.clear()
        self.passed, self._stop_at = 0, stop_at

    def open(self) -> None:
        self._stop_at = None
        self._open.set()

    def pass_through(self, _: str) -> None:
        if self._stop_at is not None:
            self.passed += 1
            if self.passed > self._stop_at:
                self._reached.set()
                assert self._open.wait(PATIENCE_SECONDS)

    def wait(self, work: Future[Any]) -> bool:
        """Return what `is_reached` does, for work on another thread."""
        while not self._reached.wait(0.0005):
            if work.done():
                return False
        return True

    async def is_reached(self, task: asyncio.Future[Any]) -> bool:
        """Return true when it holds something up, and false when the task is done without."""
        while not self._reached.is_set():
            if task.done():
                return False
            await asyncio.sleep(0.0005)
        return True


def call_between_turns(patch: pytest.MonkeyPatch, hook: Callable[[int], None]) -> None:
    """Have a function called between two turns of long work, with how many there were."""
    numbers = count(1)
    patch.setattr(turns, "rest", lambda _: hook(next(numbers)))
