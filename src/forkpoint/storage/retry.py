"""Trying again what was refused because somebody else was faster."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from forkpoint.errors import StorageBusy
from forkpoint.runtime.steps import Steps
from forkpoint.runtime.telemetry import current
from forkpoint.storage.interface import HistoryChanged, Stale

ATTEMPTS = 20
"""How often something is tried."""

_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 1.0
_FEW = 4  # attempts, as where two or three disturb each other

_T = TypeVar("_T")


def attempts(limit: int = ATTEMPTS) -> Iterator[int]:
    """Yield the numbers of attempts, from 0, with a pause before each but the first two.

    The pauses are of random lengths, which grow with the number of attempts, so that of several
    who disturb each other one is the first. Where many do, they grow with how long an attempt
    takes, too: else most of them would be over before each had its turn.

    Args:
        limit: How many attempts there are.
    """
    took = 0.0
    for attempt in range(limit):
        if attempt and current.tally is not None:
            current.tally.retries += 1
        if attempt > 1:
            longest = max(_PAUSE_SECONDS, took if attempt > _FEW else 0) * attempt
            time.sleep(random.uniform(0, min(longest, _LONGEST_PAUSE_SECONDS)))
        began = time.monotonic()
        yield attempt
        took = time.monotonic() - began


def retry(action: Callable[[], _T], change: str) -> _T:
    """Call a function until it does not raise `Stale`, and return what it returns.

    Args:
        action: The function. It looks at the store anew each time.
        change: What the error says has happened, such as "thread 'a' changed".

    Raises:
        StorageBusy: It was `Stale` each time.
        HistoryChanged: The store is another one: the whole operation has to begin again.
    """
    for _ in attempts():
        try:
            return action()
        except HistoryChanged:
            raise
        except Stale:
            continue
    raise busy(change)


def retry_steps(action: Callable[[], Steps[_T]], change: str) -> Steps[_T]:
    """Do what `retry` does, for a function that returns steps."""
    for _ in attempts():
        try:
            return (yield from action())
        except HistoryChanged:
            raise
        except Stale:
            continue
    raise busy(change)


def busy(change: str) -> StorageBusy:
    """Return the error of an operation that others disturbed each time that it was tried."""
    return StorageBusy(f"{change} {ATTEMPTS} times in a row; try again when fewer others write")
