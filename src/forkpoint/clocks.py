"""The time of a store, which never goes backwards, even if the clock of a host is set back."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_BEHIND_SPEED = (9, 10)  # of a store's time, while the host's clock is behind it
_LEARNS_AFTER = 10_000_000  # microseconds
_ASKS_AFTER = 600_000_000  # microseconds


# Those that go on while a machine sleeps: the first one on Linux, the second one on macOS.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def elapsed_microseconds() -> int:
    """Return the microseconds of a clock that cannot be set, and goes on while a machine sleeps."""
    nanoseconds = time.monotonic_ns() if _CLOCK is None else time.clock_gettime_ns(_CLOCK)
    return nanoseconds // 1000


def time_of(microseconds: int) -> datetime:
    """Return a time in UTC that is stored as microseconds since 1970."""
    return EPOCH + timedelta(microseconds=microseconds)


_LATEST = (datetime.max.replace(tzinfo=timezone.utc) - EPOCH) // timedelta(microseconds=1)


def noted_time(stored: object) -> int:
    """Return the time that is noted in a store; 0 if it is none, which is noted anew then."""
    return stored if isinstance(stored, int) and stored <= _LATEST else 0


class StoreClock:
    """The time of a store that has no clock of its own, in microseconds since 1970.

    It is the time of the host, unless that is behind a time that the store is known to have had: a
    process that writes notes the time in the store every ten seconds, and reads what others noted.
    While the host's clock is behind, the time of the store runs at nine tenths of its speed.
    """

    def __init__(self) -> None:
        self._since = (0, 0)  # a time of the store, and when it was
        self._learns_at = {False: 0, True: 0}

    def now(self) -> int:
        """Return the time."""
        host, elapsed = time.time_ns() // 1000, elapsed_microseconds()
        since, began = self._since
        numerator, denominator = _BEHIND_SPEED
        slow = since + (elapsed - began) * numerator // denominator
        if host < slow:
            return slow
        self._since = (host, elapsed)
        return host

    def learn(self, stored: int) -> None:
        """Note a time that the store has had: from now on the time is later."""
        if stored > self.now():
            self._since = (stored, elapsed_microseconds())

    def is_to_learn(self, *, is_write: bool) -> bool:
        """Return whether the caller is to read the time that is noted in the store: now and then.

        Args:
            is_write: Whether the caller can note a later time.
        """
        elapsed = elapsed_microseconds()
        if elapsed < self._learns_at[is_write]:
            return False
        self._learns_at[is_write] = elapsed + _LEARNS_AFTER
        return True


class ServerClock:
    """The time of a server, in microseconds since 1970, which is asked for every ten minutes.

    It is behind the server's by as long as the answer took, and never ahead of it: what is written
    with it would not expire when it should by the server's own.

    Args:
        ask: Asks the server for its time.
    """

    def __init__(self, ask: Callable[[], int]) -> None:
        self._ask = ask
        self._since = (0, 0)  # a time of the server, and when it was
        self._asks_at = 0

    def now(self) -> int:
        """Return the time."""
        elapsed = elapsed_microseconds()
        if elapsed >= self._asks_at:
            answer = self._ask()
            elapsed = elapsed_microseconds()
            self._since = (answer, elapsed)
            self._asks_at = elapsed + _ASKS_AFTER
        since, began = self._since
        return since + elapsed - began
