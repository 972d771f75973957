"""Values of types that derive from one of Python's own.

The value of that one is taken, and given back, by its own methods, whatever the class says.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import pathlib
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from forkpoint.encoding.builtin_values import (
    from_pairs,
    ordered_pairs,
    pairs,
    plain_uuid,
    uuid_content,
)
from forkpoint.encoding.contents import only, only_int
from forkpoint.encoding.time_values import REAL, zone_key


class Base(NamedTuple):
    kind: type
    dump: Callable[[Any], Any]
    make: Callable[[Any, Any], Any]


def _make_dict(kind: Any, content: Any) -> Any:
    instance = dict.__new__(kind)
    dict.update(instance, from_pairs(content))
    return instance


def _make_list(kind: Any, content: Any) -> Any:
    instance = list.__new__(kind)
    list.extend(instance, only(content, list))
    return instance


def _make_set(kind: Any, content: Any) -> Any:
    instance = set.__new__(kind)
    set.update(instance, only(content, set))
    return instance


def _make_ordered(kind: Any, content: Any) -> Any:
    instance = OrderedDict.__new__(kind)
    OrderedDict.update(instance, from_pairs(content))
    return instance


def _make_defaultdict(kind: Any, content: Any) -> Any:
    plain = only(content, defaultdict)
    instance = defaultdict.__new__(kind)
    defaultdict.__init__(instance, plain.default_factory)
    dict.update(instance, plain)
    return instance


def _make_deque(kind: Any, content: Any) -> Any:
    plain = only(content, deque)
    instance = deque.__new__(kind)
    deque.__init__(instance, plain, plain.maxlen)
    return instance


def _make_datetime(kind: Any, content: Any) -> Any:
    plain = only(content, REAL.datetime)
    instance = REAL.datetime.__new__(kind, *plain.timetuple()[:6], plain.microsecond, plain.tzinfo)
    return instance if not plain.fold else REAL.datetime.replace(instance, fold=plain.fold)


def _make_date(kind: Any, content: Any) -> Any:
    plain = only(content, REAL.date)
    return REAL.date.__new__(kind, plain.year, plain.month, plain.day)


def _parts(kind: type, value: Any, names: Iterable[str]) -> list[Any]:
    """Return attributes of a value as the type has them that its class derives from."""
    return [getattr(kind, name).__get__(value) for name in names]


def _plain_datetime(value: datetime.datetime) -> datetime.datetime:
    *each, fold = _parts(REAL.datetime, value, (*_DATETIME, "fold"))
    return REAL.datetime(*each, fold=fold)


def _plain_time(value: datetime.time) -> datetime.time:
    *each, fold = _parts(datetime.time, value, (*_DATETIME[3:], "fold"))
    return datetime.time(*each, fold=fold)


def _make_time(kind: Any, content: Any) -> Any:
    plain = only(content, datetime.time)
    each = [getattr(plain, name) for name in _DATETIME[3:]]
    return datetime.time.__new__(kind, *each, fold=plain.fold)


def _make_bytearray(kind: Any, content: Any) -> Any:
    instance = bytearray.__new__(kind)
    bytearray.extend(instance, only(content, bytes))
    return instance


_TIMEDELTA = ("days", "seconds", "microseconds")
_DATETIME = ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo")

BASES: dict[str, Base] = {
    "ordereddict": Base(OrderedDict, ordered_pairs, _make_ordered),
    "defaultdict": Base(defaultdict, lambda value: _plain_defaultdict(value), _make_defaultdict),
    "counter": Base(Counter, pairs, _make_dict),
    "dict": Base(dict, pairs, _make_dict),
    "list": Base(list, lambda value: list(list.__iter__(value)), _make_list),
    "tuple": Base(
        tuple,
        lambda value: list(tuple.__iter__(value)),
        lambda kind, content: tuple.__new__(kind, only(content, list)),
    ),
    "set": Base(set, lambda value: set(set.__iter__(value)), _make_set),
    "frozenset": Base(
        frozenset,
        lambda value: frozenset(frozenset.__iter__(value)),
        lambda kind, content: frozenset.__new__(kind, only(content, frozenset)),
    ),
    "deque": Base(
        deque,
        lambda value: deque(deque.__iter__(value), *_parts(deque, value, ("maxlen",))),
        _make_deque,
    ),
    "str": Base(
        str,
        lambda value: str.__getitem__(value, slice(None)),
        lambda kind, content: str.__new__(kind, only(content, str)),
    ),
    "bytes": Base(
        bytes,
        lambda value: bytes.__getitem__(value, slice(None)),
        lambda kind, content: bytes.__new__(kind, only(content, bytes)),
    ),
    "int": Base(int, int.__int__, lambda kind, content: int.__new__(kind, only(content, int))),
    "float": Base(
        float, float.__float__, lambda kind, content: float.__new__(kind, only(content, float))
    ),
    "datetime": Base(datetime.datetime, _plain_datetime, _make_datetime),
    "date": Base(
        datetime.date,
        lambda value: REAL.date(*_parts(REAL.date, value, _DATETIME[:3])),
        _make_date,
    ),
    "time": Base(datetime.time, _plain_time, _make_time),
    "timedelta": Base(
        datetime.timedelta,
        lambda value: datetime.timedelta(*_parts(datetime.timedelta, value, _TIMEDELTA)),
        lambda kind, content: datetime.timedelta.__new__(
            kind, content.days, content.seconds, content.microseconds
        ),
    ),
    "complex": Base(
        complex,
        lambda value: complex(*_parts(complex, value, ("real", "imag"))),
        lambda kind, content: complex.__new__(kind, only(content, complex)),
    ),
    "bytearray": Base(bytearray, lambda value: bytes(memoryview(value)), _make_bytearray),
    "decimal": Base(
        decimal.Decimal,
        decimal.Decimal.__str__,
        lambda kind, content: decimal.Decimal.__new__(kind, only(content, str)),
    ),
    "fraction": Base(
        fractions.Fraction,
        lambda value: _parts(fractions.Fraction, value, ("numerator", "denominator")),
        lambda kind, content: fractions.Fraction.__new__(kind, *map(only_int, content)),
    ),
    "zoneinfo": Base(
        zoneinfo.ZoneInfo,
        zone_key,
        lambda kind, content: zoneinfo.ZoneInfo.__new__(kind, only(content, str)),
    ),
    "uuid": Base(uuid.UUID, uuid_content, lambda kind, content: _make_uuid(kind, content)),
    "path": Base(
        pathlib.PurePath,
        pathlib.PurePath.__str__,
        lambda kind, content: _make_path(kind, content),
    ),
}


def _make_uuid(kind: Any, content: Any) -> Any:
    plain, instance = plain_uuid(content), object.__new__(kind)
    for name in ("int", "is_safe"):
        object.__setattr__(instance, name, getattr(plain, name))
    return instance


def _make_path(kind: Any, content: Any) -> Any:
    instance = pathlib.PurePath.__new__(kind, only(content, str))
    init: Any = pathlib.PurePath.__init__
    if init is not object.__init__:  # since Python 3.12
        init(instance, content)
    return instance


def _plain_defaultdict(value: Any) -> Any:
    plain: defaultdict[Any, Any] = defaultdict(*_parts(defaultdict, value, ["default_factory"]))
    dict.update(plain, dict.items(value))
    return plain


def base_of(kind: type) -> tuple[str, Base] | None:
    """Return the type of Python's own that a type derives from, with its name here."""
    return next(((name, base) for name, base in BASES.items() if issubclass(kind, base.kind)), None)
