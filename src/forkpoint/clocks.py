"""Times that a host's clock does not stop or turn back when it is set, or wrong for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_BEHIND_SPEED = (9, 10)  # of a store's time, while the host's clock is behind it
_LEARNS_AFTER = 10_000_000  # microseconds
_ASKS_AFTER = 600_000_000  # microseconds


def _elapsed() -> int:
    """Return microseconds of a clock that nobody sets."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)  # it does not stop while a machine sleeps
    nanoseconds = time.monotonic_ns() if boot is None else time.clock_gettime_ns(boot)
    return nanoseconds // 1000


def time_of(microseconds: int) -> datetime:
    """Return a time in UTC that is stored as microseconds since 1970."""
    return EPOCH + timedelta(microseconds=microseconds)


class StoreClock:
    """The time of a store that has no clock of its own, in microseconds since 1970.

    It is that of the host, but never earlier than it was, as far as that is known: a process notes
    the time in the store every ten seconds in which it writes, and looks at what was noted. Where
    the host's clock is behind, because it was set back, or was ahead before, the time of the store
    goes on a little slower than usual, until the other one has caught up.
    """

    def __init__(self) -> None:
        self._since = (0, 0)  # a time of the store, and when it was
        self._learns_at = {False: 0, True: 0}

    def now(self) -> int:
        """Return the time."""
        host, elapsed = time.time_ns() // 1000, _elapsed()
        since, began = self._since
        numerator, denominator = _BEHIND_SPEED
        slow = since + (elapsed - began) * numerator // denominator
        if host < slow:
            return slow
        self._since = (host, elapsed)
        return host

    def learn(self, stored: int) -> None:
        """Take a time for past that the store has had."""
        if stored > self.now():
            self._since = (stored, _elapsed())

    def is_to_learn(self, *, is_write: bool) -> bool:
        """Return, now and then, whether to look which time the store has had.

        Args:
            is_write: Whether a later one can be noted.
        """
        elapsed = _elapsed()
        if elapsed < self._learns_at[is_write]:
            return False
        self._learns_at[is_write] = elapsed + _LEARNS_AFTER
        return True


class ServerClock:
    """The time of a server, in microseconds since 1970, without asking it each time.

    Args:
        ask: Asks it.
    """

    def __init__(self, ask: Callable[[], int]) -> None:
        self._ask = ask
        self._since = (0, 0)  # a time of the server, and when it was
        self._asks_at = 0

    def now(self) -> int:
        """Return the time."""
        elapsed = _elapsed()
        if elapsed >= self._asks_at:
            self._since = (self._ask(), elapsed)
            self._asks_at = elapsed + _ASKS_AFTER
        since, began = self._since
        return since + elapsed - began
