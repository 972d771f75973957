"""Zones of dateutil and of pytz: how they are stored, and restored.

Neither is imported unless a zone of it is stored or read. Each zone is an array that begins with
its name, as in `forkpoint.encoding.array_values`:

==========  ========================================================================================
name        what follows
==========  ========================================================================================
tzutc       dateutil: nothing
tzoffset    dateutil: its name, or nil, and how far it is ahead of UTC
tzlocal     dateutil: how far it is ahead of UTC in winter and in summer, and the names of both
tzfile      dateutil: the name by which its `gettz` finds it
pytz        pytz: the name of the zone; if it has several offsets the one that is meant, in seconds
            ahead of UTC, how many of these are for the summer, and what it is called
pytzoffset  pytz: how many minutes it is ahead of UTC
==========  ========================================================================================
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from forkpoint.encoding.contents import CannotStore, imported_member, only, only_int


def describer_of(kind: type) -> Callable[[Any], list[Any]] | None:
    """Return how values of a type are stored, if it is one of these zones."""
    for (module, name), dump in _DUMPS.items():
        if kind is imported_member(module, name):
            return dump
    base = imported_member("pytz.tzinfo", "BaseTzInfo")
    return _dump_pytz if base is not None and issubclass(kind, base) else None


# Of dateutil


def _dateutil() -> Any:
    """Return dateutil, which most graphs import late: with boto3, say, and where a tool runs."""
    return import_module("dateutil.tz.tz")


def _restore_utc() -> Any:
    return _dateutil().tzutc()


def _restore_offset(name: Any, offset: Any) -> Any:
    return _dateutil().tzoffset(name, only(offset, datetime.timedelta))


def _dump_local(value: Any) -> list[Any]:
    return ["tzlocal", value._std_offset, value._dst_offset, list(value._tznames)]


def _restore_local(winter: Any, summer: Any, names: Any) -> Any:
    """Return the local zone. Where it changes its clocks, another machine does so at other times.

    Raises:
        ValueError: It does, and the local zone is another one here.
    """
    zone = _dateutil().tzlocal()
    saved = only(summer, datetime.timedelta) - only(winter, datetime.timedelta)
    stored = {
        "_std_offset": winter,
        "_dst_offset": summer,
        "_dst_saved": saved,
        "_hasdst": bool(saved),
        "_tznames": tuple(only(name, str) for name in only(names, list)),
    }
    if saved and {name: vars(zone)[name] for name in stored} != stored:
        raise ValueError("the local time is that of another place here")
    vars(zone).update(stored)
    return zone


def _dump_file(value: Any) -> list[Any]:
    names = getattr(value, "_key", None), str(value._filename).rpartition("zoneinfo/")[2]
    for name in names:
        if isinstance(name, str) and _NAME.fullmatch(name):
            known = _dateutil().gettz(name)
            if type(known) is type(value) and known == value:
                return ["tzfile", name]
    raise CannotStore("was read from a file, and has no name that finds it again")


def _restore_file(name: Any) -> Any:
    if not _NAME.fullmatch(only(name, str)):  # which could be any file
        raise ValueError("it is no name of a zone")
    zone = _dateutil().gettz(name)
    if type(zone) is not _dateutil().tzfile:
        raise ValueError(f"there is no zone {name} here")
    return zone


_NAME = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


# Of pytz


def _pytz() -> Any:
    return import_module("pytz")


def _dump_pytz(value: Any) -> list[Any]:
    restore, arguments = value.__reduce__()
    if restore is _pytz()._p:
        return ["pytz", *arguments]
    if value is _pytz().utc:
        return ["pytz", value.zone]
    raise CannotStore("is no zone of pytz's own")


def _restore_pytz(name: Any, *offset: Any) -> Any:
    if not offset:
        return _pytz().timezone(only(name, str))
    seconds, saved, called = offset
    return _pytz()._p(only(name, str), only_int(seconds), only_int(saved), only(called, str))


def _restore_pytz_offset(minutes: Any) -> Any:
    return _pytz().FixedOffset(only_int(minutes))


_DUMPS: dict[tuple[str, str], Callable[[Any], list[Any]]] = {
    ("dateutil.tz.tz", "tzutc"): lambda _: ["tzutc"],
    ("dateutil.tz.tz", "tzoffset"): lambda value: [
        "tzoffset",
        value.tzname(None),
        value.utcoffset(None),
    ],
    ("dateutil.tz.tz", "tzlocal"): _dump_local,
    ("dateutil.tz.tz", "tzfile"): _dump_file,
    ("pytz", "_FixedOffset"): lambda value: ["pytzoffset", value._minutes],
}

RESTORERS: dict[str, Callable[..., Any]] = {
    "tzutc": _restore_utc,
    "tzoffset": _restore_offset,
    "tzlocal": _restore_local,
    "tzfile": _restore_file,
    "pytz": _restore_pytz,
    "pytzoffset": _restore_pytz_offset,
}
"""How they are restored, by the names in the store."""
