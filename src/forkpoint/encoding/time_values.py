"""Dates, times and their zones: how they are stored, and restored."""

from __future__ import annotations

import datetime
import zoneinfo
from pickle import PicklingError
from typing import Any, NamedTuple

import pydantic_core

from forkpoint.encoding.contents import CannotStore


class _Real(NamedTuple):
    date: type[datetime.date]
    datetime: type[datetime.datetime]


REAL = _Real(datetime.date, datetime.datetime)
"""Python's own types. What stops the clock in tests replaces them in the modules themselves."""


def dump_time(value: datetime.datetime | datetime.time) -> Any:
    """Return a date or a time as text, its fold, and its zone."""
    if value.tzinfo is None and not value.fold:
        return [value.isoformat(), 0, None]
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, value.tzinfo]


def load_datetime(content: Any) -> datetime.datetime:
    """Return the datetime of such a content."""
    text, fold, zone = content
    return REAL.datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def load_time(content: Any) -> datetime.time:
    """Return the time of such a content."""
    text, fold, zone = content
    return datetime.time.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def dump_timedelta(value: datetime.timedelta) -> Any:
    """Return the days, seconds and microseconds."""
    return [value.days, value.seconds, value.microseconds]


def load_timedelta(content: Any) -> datetime.timedelta:
    """Return the span of such a content."""
    days, seconds, microseconds = content
    return datetime.timedelta(days, seconds, microseconds)


def dump_timezone(value: datetime.timezone) -> Any:
    """Return the offset of a zone, and its name if it has one."""
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    return [dump_timedelta(offset), *name]


def load_timezone(content: Any) -> datetime.timezone:
    """Return the zone of such a content."""
    offset, *name = content
    offset = load_timedelta(offset)
    return datetime.timezone(offset, *name) if name or offset else datetime.timezone.utc


def zone_key(value: zoneinfo.ZoneInfo) -> str:
    """Return the key of a time zone, by which it is found again."""
    try:
        reduced: Any = zoneinfo.ZoneInfo.__reduce__(value)
    except PicklingError:
        raise CannotStore("was read from a file, and has no key that finds it again") from None
    key: str = reduced[1][0]
    return key


def dump_offset(value: datetime.tzinfo) -> Any:
    """Return the offset of a zone of Pydantic's."""
    return dump_timedelta(value.utcoffset(None) or datetime.timedelta())


def load_offset(content: Any) -> datetime.tzinfo:
    """Return the zone of Pydantic's that has an offset."""
    return pydantic_core.TzInfo(load_timedelta(content).total_seconds())
