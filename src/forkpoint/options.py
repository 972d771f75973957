"""Checks of options that callers pass: choices, numbers, times, paths and callbacks.

Each function returns a value of the right type, or raises `InvalidInput`, as in `forkpoint.inputs`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from forkpoint.clocks import EPOCH
from forkpoint.errors import InvalidInput
from forkpoint.untrusted import characters, integer, reading, shown

_LARGEST = 2**31 - 1  # fits into a column of every database
_MICROSECOND = timedelta(microseconds=1)
LONGEST = 2**53
"""How many microseconds a length of time has at most: 285 years."""


def choice(value: object, what: str, options: Sequence[str]) -> str:
    """Return a string that is one of the options."""
    if isinstance(value, str) and (plain := characters(value)) in options:
        return plain
    raise InvalidInput(f"{what} must be one of {list(options)}, not {shown(value)}")


def flag(value: object, what: str) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{what} must be True or False, not {shown(value)}")
    return value


def callback(value: object, what: str) -> None:
    """Check that a value can be called, and is not async: another thread calls it."""
    if not callable(value):
        raise InvalidInput(f"{what} cannot be called: {shown(value)}")
    if inspect.iscoroutinefunction(value):
        raise InvalidInput(f"{what} must not be async: it is called on another thread")


def path(value: str | os.PathLike[str], what: str) -> str:
    """Return the path of a file as a string that the operating system accepts."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise InvalidInput(f"{what} must be a path, not {shown(value)}")
    return reading(what, _path, value, what)


def _path(value: str | os.PathLike[str], what: str) -> str:
    plain = os.fsdecode(characters(value) if isinstance(value, str) else value)
    if not plain or b"\0" in os.fsencode(plain):
        raise InvalidInput(f"{what} names no file: {plain!r:.80}")
    return characters(plain)


def count(value: object, what: str, at_least: int) -> int:
    """Return an integer of at least `at_least`. Huge ones become the largest that is stored."""
    number = integer(value)
    if number is None:
        raise InvalidInput(f"{what} must be an integer, not {shown(value)}")
    if number < at_least:
        raise InvalidInput(f"{what} must be {at_least} or more, not {shown(number)}")
    return min(number, _LARGEST)


def index(value: object) -> int:
    """Return a position, which may be negative."""
    number = integer(value)
    if number is None:
        raise InvalidInput(f"index must be an integer, not {shown(value)}")
    return max(-_LARGEST, min(number, _LARGEST))


def limit(value: object) -> int | None:
    """Return a number of items, or None for all of them."""
    if value is None:
        return None
    number = integer(value)
    if number is None:
        raise InvalidInput(f"limit must be an integer or None, not {shown(value)}")
    if number < 0:
        raise InvalidInput(f"limit must not be negative: {shown(number)}")
    return min(number, _LARGEST)


def size(value: object, what: str) -> int:
    """Return a number of bytes."""
    number = integer(value)
    if number is None or number < 0:
        raise InvalidInput(f"{what} must be a number of bytes, 0 or more, not {shown(value)}")
    return number


def serializer(value: object) -> Any:
    """Return a serializer: an object with the methods of one of LangGraph's two protocols."""
    for names in (("dumps_typed", "loads_typed"), ("dumps", "loads")):
        if all(callable(reading("serde", getattr, value, name, None)) for name in names):
            return value
    raise InvalidInput(f"serde must have dumps_typed and loads_typed, unlike {shown(value)}")


def duration(value: object, what: str) -> int:
    """Return a positive length of time in microseconds."""
    if not isinstance(value, timedelta):
        raise InvalidInput(
            f"{what} must be a timedelta, such as timedelta(hours=1), not {shown(value)}"
        )
    microseconds = timedelta.__floordiv__(value, _MICROSECOND)
    if microseconds <= 0:
        raise InvalidInput(f"{what} must be positive, not {timedelta.__str__(value)}")
    return min(microseconds, LONGEST)


def moment(value: object, what: str) -> int | None:
    """Return a time in microseconds since 1970, or None."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidInput(f"{what} must be a datetime, not {shown(value)}")
    return reading(what, _microseconds, value, what)


def _microseconds(value: datetime, what: str) -> int:
    if value.utcoffset() is None:
        raise InvalidInput(
            f"{what} must be aware of its time zone, as datetime.now(timezone.utc) is; {value} is "
            "not"
        )
    return (value - EPOCH) // _MICROSECOND
