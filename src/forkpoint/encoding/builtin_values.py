"""Values of Python's own types that MessagePack does not have: how they are stored, and restored.

Each is a MessagePack extension of one of these codes:

====  ==========  =================================================================================
code  what        content
====  ==========  =================================================================================
32    VALUE       array of a name of `_VALUES` and what its function there returns
33    TUPLE       array of the elements
34    SET         array of the elements, each packed, in the order of these bytes
35    FROZENSET   the same
36    ITEMS       array of keys and values by turns: a dict with keys that a map cannot hold
37    INT         an integer beyond 64 bits, big-endian and in two's complement
38    TEXT        a string with lone surrogates, in UTF-8 with `surrogatepass`
====  ==========  =================================================================================
"""

from __future__ import annotations

import array
import datetime
import decimal
import fractions
import gc
import ipaddress
import pathlib
import re
import sys
import types
import uuid
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar

import ormsgpack  # a dependency of langgraph-checkpoint
import pydantic_core

from forkpoint.encoding import time_values
from forkpoint.encoding.contents import (
    CannotStore,
    Described,
    cached_names,
    check_hashes,
    check_storable,
    only,
    only_int,
)

VALUE, TUPLE, SET, FROZENSET, ITEMS, INT, TEXT = range(32, 39)

PLAIN_ONLY = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
"""Options to take the plainest types only: else a subclass, an enum or a date packs as if it were
one of them."""


class _Value(NamedTuple):
    """How values of a type are stored under a name of its own."""

    kind: type
    dump: Callable[[Any], Any]
    load: Callable[[Any], Any]


_BUFFERS = frozenset({bytearray, memoryview})
_BYTES = _BUFFERS | {bytes}
_CONTAINERS = frozenset({list, dict})


def may_hold_bytes(packed: bytes) -> bool:
    """Return whether there may be bytes in what was packed, by its marks for them."""
    return 0xC4 in packed or 0xC5 in packed or 0xC6 in packed


def holds_buffer(value: Any) -> bool:
    """Return whether lists and dicts hold what packs as if it were `bytes`."""
    return _holds(value, _BUFFERS)


def holds_bytes(value: Any) -> bool:
    """Return whether lists and dicts hold bytes of any type."""
    return _holds(value, _BYTES)


def _holds(value: Any, kinds: frozenset[type]) -> bool:
    level = [value]
    while True:
        present = set(map(type, level))
        if not present.isdisjoint(kinds):
            return True
        if present.isdisjoint(_CONTAINERS):
            return False
        # All that is in them at once: one by one, it takes longer than to pack them.
        level = gc.get_referents(*[each for each in level if type(each) in _CONTAINERS])


# Collections


def pairs(value: dict[Any, Any]) -> list[Any]:
    """Return the keys and values of a dict by turns."""
    return _by_turns(list(dict.items(value)))


def ordered_pairs(value: OrderedDict[Any, Any]) -> list[Any]:
    """Return the keys and values of an `OrderedDict`, in its order: keys may have been moved."""
    return _by_turns(list(OrderedDict.items(value)))


def _by_turns(items: list[tuple[Any, Any]]) -> list[Any]:
    check_storable([key for key, _ in items])
    return [part for item in items for part in item]


def from_pairs(content: Any) -> dict[Any, Any]:
    """Return the dict of these keys and values.

    Raises:
        ValueError: There are too many with the same hash: each would be compared with all others.
            Or two are equal, which were not where they were written.
    """
    keys = only(content, list)[::2]
    check_hashes(keys)
    return _all_of(keys, dict(zip(keys, content[1::2], strict=True)))


_Collection = TypeVar("_Collection", bound=Collection[Any])


def _all_of(elements: list[Any], collection: _Collection) -> _Collection:
    if len(collection) != len(elements):
        raise ValueError("some of its elements are equal here")
    return collection


def _dump_set(value: set[Any] | frozenset[Any]) -> list[Any]:
    elements = list(value)  # other threads may change the set
    check_storable(elements)
    return elements


def _load_set(content: Any) -> set[Any]:
    check_hashes(only(content, list))
    return _all_of(content, set(content))


# What a defaultdict may call. Another type could be anything by the time that it is called.
_FACTORIES = {
    kind.__name__: kind for kind in (bool, bytes, dict, float, int, list, set, str, tuple, complex)
}


def _dump_defaultdict(value: defaultdict[Any, Any]) -> Any:
    factory = value.default_factory
    if factory is not None and _FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
        raise CannotStore(f"has a default_factory that is not one of {', '.join(_FACTORIES)}")
    return [None if factory is None else factory.__name__, pairs(value)]


def _load_defaultdict(content: Any) -> defaultdict[Any, Any]:
    factory, items = content
    return defaultdict(None if factory is None else _FACTORIES[factory], from_pairs(items))


def _dump_deque(value: deque[Any]) -> Any:
    return [value.maxlen, list(value)]


def _load_deque(content: Any) -> deque[Any]:
    longest, elements = content
    return deque(only(elements, list), longest)


def _load_counter(content: Any) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    dict.update(counter, from_pairs(content))
    return counter


def _dump_chainmap(value: ChainMap[Any, Any]) -> Any:
    _check_attributes(value, {"maps", *cached_names(ChainMap)})
    if type(value.maps) is not list:
        raise CannotStore("has maps that are no list")
    return value.maps


def _check_attributes(value: Any, usual: Collection[str]) -> None:
    """Refuse a value with attributes beside those that each of its type has.

    Raises:
        CannotStore: It has.
    """
    if not vars(value).keys() <= usual:
        raise CannotStore("has attributes of its own")


def _dump_mappingproxy(value: Any) -> Any:
    (inner,) = gc.get_referents(value)
    return inner


def _dump_network(value: Any) -> str:
    text = str(value)
    _check_attributes(value, {*vars(type(value)(text)), *cached_names(type(value))})
    return text


def _load_chainmap(content: Any) -> ChainMap[Any, Any]:
    return ChainMap(*only(content, list))


# Numbers and bytes


def _dump_fraction(value: fractions.Fraction) -> Any:
    return [value.numerator, value.denominator]


def _load_fraction(content: Any) -> fractions.Fraction:
    numerator, denominator = content
    return fractions.Fraction(only_int(numerator), only_int(denominator))  # no text: `1e999999999`


def _load_complex(content: Any) -> complex:
    real, imaginary = content
    return complex(real, imaginary)


def _dump_span(value: range | slice[Any, Any, Any]) -> Any:
    return [value.start, value.stop, value.step]


def _load_range(content: Any) -> range:
    start, stop, step = content
    return range(start, stop, step)


def _load_slice(content: Any) -> slice[Any, Any, Any]:
    start, stop, step = content
    return slice(start, stop, step)


def _dump_array(value: array.array[Any]) -> Any:
    if value.typecode in "uw":
        return [value.typecode, value.tounicode()]
    swapped = value
    if sys.byteorder == "big":
        swapped = value[:]
        swapped.byteswap()
    return [value.typecode, value.itemsize, swapped.tobytes()]


def _load_array(content: Any) -> array.array[Any]:
    typecode, *_, data = content
    loaded: array.array[Any] = array.array(typecode)
    if typecode in "uw":
        loaded.fromunicode(data)
        return loaded
    if content[1] != loaded.itemsize:
        raise ValueError(f"its items have {content[1]} bytes, and {loaded.itemsize} here")
    loaded.frombytes(data)
    if sys.byteorder == "big":
        loaded.byteswap()
    return loaded


def _dump_memoryview(value: memoryview) -> Any:
    if value.ndim != 1 or value.format != "B":
        raise CannotStore("is no plain row of bytes")
    return bytes(value) if value.readonly else bytearray(value)


# Texts


def _dump_pattern(value: re.Pattern[Any]) -> Any:
    if value.flags & re.DEBUG:
        raise CannotStore("prints what it is made of")
    return [value.pattern, int(value.flags)]


def _load_pattern(content: Any) -> re.Pattern[Any]:
    pattern, flags = content
    if only_int(flags) & re.DEBUG:
        raise ValueError("it prints")
    return re.compile(pattern, flags)


def uuid_content(value: uuid.UUID) -> Any:
    """Return the bytes of a UUID, and whether it was made safely, if that is known."""
    is_safe = value.is_safe
    return value.bytes if is_safe is _UNKNOWN else [value.bytes, is_safe.value]


_UNKNOWN = uuid.SafeUUID.unknown


def plain_uuid(content: Any) -> uuid.UUID:
    """Return the UUID of such a content."""
    if type(content) is bytes:
        return uuid.UUID(bytes=content)
    number, is_safe = only(content, list)
    return uuid.UUID(bytes=only(number, bytes), is_safe=uuid.SafeUUID(is_safe))


def _dump_namespace(value: types.SimpleNamespace) -> Any:
    return vars(value)


def _load_namespace(content: Any) -> types.SimpleNamespace:
    namespace = types.SimpleNamespace()
    vars(namespace).update(only(content, dict))
    return namespace


def _load_ellipsis(_: Any) -> Any:
    return ...


def _load_url(content: Any) -> pydantic_core.Url:
    url = pydantic_core.Url(content)
    if str(url) == content:
        return url
    return pydantic_core.Url(content, preserve_empty_path=True)  # type: ignore[call-arg]


_VALUES: dict[str, _Value] = {
    "bytearray": _Value(bytearray, bytes, lambda content: bytearray(only(content, bytes))),
    "memoryview": _Value(memoryview, _dump_memoryview, memoryview),
    "complex": _Value(complex, lambda value: [value.real, value.imag], _load_complex),
    "fraction": _Value(fractions.Fraction, _dump_fraction, _load_fraction),
    "decimal": _Value(decimal.Decimal, str, decimal.Decimal),
    "range": _Value(range, _dump_span, _load_range),
    "slice": _Value(slice, _dump_span, _load_slice),
    "ellipsis": _Value(type(...), lambda _: None, _load_ellipsis),
    "array": _Value(array.array, _dump_array, _load_array),
    "date": _Value(datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "datetime": _Value(datetime.datetime, time_values.dump_time, time_values.load_datetime),
    "time": _Value(datetime.time, time_values.dump_time, time_values.load_time),
    "timedelta": _Value(datetime.timedelta, time_values.dump_timedelta, time_values.load_timedelta),
    "timezone": _Value(datetime.timezone, time_values.dump_timezone, time_values.load_timezone),
    "zoneinfo": _Value(zoneinfo.ZoneInfo, time_values.zone_key, zoneinfo.ZoneInfo),
    "uuid": _Value(uuid.UUID, uuid_content, plain_uuid),
    "pattern": _Value(re.Pattern, _dump_pattern, _load_pattern),
    "deque": _Value(deque, _dump_deque, _load_deque),
    "defaultdict": _Value(defaultdict, _dump_defaultdict, _load_defaultdict),
    "counter": _Value(Counter, pairs, _load_counter),
    "ordereddict": _Value(
        OrderedDict, ordered_pairs, lambda content: OrderedDict(from_pairs(content))
    ),
    "chainmap": _Value(ChainMap, _dump_chainmap, _load_chainmap),
    "mappingproxy": _Value(types.MappingProxyType, _dump_mappingproxy, types.MappingProxyType),
    "namespace": _Value(types.SimpleNamespace, _dump_namespace, _load_namespace),
    "tzinfo": _Value(pydantic_core.TzInfo, time_values.dump_offset, time_values.load_offset),
    "url": _Value(pydantic_core.Url, str, _load_url),
    "multihosturl": _Value(pydantic_core.MultiHostUrl, str, pydantic_core.MultiHostUrl),
    **{
        kind.__name__.lower(): _Value(kind, _dump_network, kind)
        for kind in (
            ipaddress.IPv4Interface,
            ipaddress.IPv4Network,
            ipaddress.IPv6Interface,
            ipaddress.IPv6Network,
        )
    },
    **{
        kind.__name__.lower(): _Value(kind, str, kind)
        for kind in (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            pathlib.PurePosixPath,
            pathlib.PureWindowsPath,
            pathlib.PosixPath,
            pathlib.WindowsPath,
        )
    },
}
_NAMES = {value.kind: name for name, value in _VALUES.items()}


def _describe_value(value: Any) -> Described:
    name = _NAMES[type(value)]
    return VALUE, [name, _VALUES[name].dump(value)]


def _describe_int(value: int) -> Described:
    return INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


DESCRIBERS: dict[type, Callable[[Any], Described]] = {
    tuple: lambda value: (TUPLE, list(value)),
    set: lambda value: (SET, _dump_set(value)),
    frozenset: lambda value: (FROZENSET, _dump_set(value)),
    dict: lambda value: (ITEMS, pairs(value)),
    int: _describe_int,
    str: lambda value: (TEXT, value.encode("utf-8", "surrogatepass")),
    **dict.fromkeys(_NAMES, _describe_value),
}
"""How values of exactly these types are stored."""

RAW = frozenset({INT, TEXT})
"""The codes whose content is bytes, and no MessagePack."""


def _restore_value(content: Any) -> Any:
    name, stored = content
    return _VALUES[name].load(stored)


RESTORERS: dict[int, Callable[[Any], Any]] = {
    VALUE: _restore_value,
    TUPLE: lambda content: tuple(only(content, list)),
    SET: _load_set,
    FROZENSET: lambda content: frozenset(_load_set(content)),
    ITEMS: from_pairs,
    INT: lambda content: int.from_bytes(content, "big", signed=True),
    TEXT: lambda content: content.decode("utf-8", "surrogatepass"),
}
"""How they are restored from what was unpacked, or from the bytes of a `RAW` code."""
