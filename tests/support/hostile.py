"""Values that a program may pass by mistake, or that somebody may send to it on purpose."""

from __future__ import annotations

import collections
import enum
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from hypothesis import strategies as st


class Named(NamedTuple):
    """A value that may not be able to say itself what it is."""

    name: str
    value: Any

    def __repr__(self) -> str:
        return self.name


class Failing(Exception):
    """What hostile objects raise."""


class Raising(Mapping[str, Any]):
    """A mapping that cannot be read, with a key that it says it has."""

    def __getitem__(self, key: str) -> Any:
        raise Failing

    def __iter__(self) -> Iterator[str]:
        yield "thread_id"
        raise Failing

    def __len__(self) -> int:
        return 1


class RaisingDict(dict[str, Any]):
    """A dict that says that it has what it cannot be asked for."""

    def __getitem__(self, key: str) -> Any:
        raise Failing

    def get(self, key: str, default: Any = None) -> Any:
        raise Failing

    def items(self) -> Any:
        raise Failing


class RaisingSequence(Sequence[Any]):
    def __getitem__(self, index: Any) -> Any:
        raise Failing

    def __len__(self) -> int:
        return 2


class Unspeakable:
    """An object that cannot be printed, compared, hashed or called a truth."""

    def __repr__(self) -> str:
        raise Failing

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise Failing

    def __hash__(self) -> int:
        raise Failing

    def __bool__(self) -> bool:
        raise Failing


class Loud(str):
    """A string that is not what it looks like."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise Failing

    def __str__(self) -> str:
        return "another"

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def encode(self, *_: Any) -> bytes:
        raise Failing


class Word(str, enum.Enum):
    HEAD = "head"
    DELETE = "delete"
    RAISE = "raise"
    CREATED = "created_at"
    IDLE = "idle"


class Number(enum.IntEnum):
    TWO = 2


class RaisingPath:
    def __fspath__(self) -> str:
        raise Failing


class Later(timedelta):
    """A timedelta that cannot be divided."""

    def __floordiv__(self, other: Any) -> Any:
        raise Failing


class Zone(tzinfo):
    def utcoffset(self, when: Any) -> timedelta:
        raise Failing


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


def cyclic_list() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def cyclic_dict() -> Any:
    value: dict[str, Any] = {}
    value["thread_id"] = value["configurable"] = value["id"] = value
    return value


EAST = timezone(timedelta(hours=14))
WEST = timezone(timedelta(hours=-12))

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "2": lambda: 2,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "-2**63": lambda: -(2**63),
    "2**64": lambda: 2**64,
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "10**5000": lambda: 10**5000,  # too long for Python to print
    "-10**5000": lambda: -(10**5000),
    "1.0": lambda: 1.0,
    "0.5": lambda: 0.5,
    "-0.0": lambda: -0.0,
    "1e308": lambda: 1e308,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1j": lambda: 1j,
    "numpy.int64": lambda: numpy.int64(2),
    "numpy.uint64": lambda: numpy.uint64(2**63),
    "numpy.float64": lambda: numpy.float64(2.0),
    "numpy.bool": lambda: numpy.bool_(True),
    "numpy.str": lambda: numpy.str_("head"),
    "numpy.bytes": lambda: numpy.bytes_(b"head"),
    "numpy.datetime64": lambda: numpy.datetime64("2020-01-01"),
    "numpy.array": lambda: numpy.array([1, 2]),
    "numpy.array of strings": lambda: numpy.array(["head", "delete"]),
    "numpy.array of objects": lambda: numpy.array([None, {}], dtype=object),
    "''": lambda: "",
    "'a'": lambda: "a",
    "' '": lambda: " ",
    "'mine'": lambda: "mine",
    "'head'": lambda: "head",
    "'delete'": lambda: "delete",
    "'idle'": lambda: "idle",
    "NUL": lambda: "a\0b",
    "only NUL": lambda: "\0",
    "lone surrogate": lambda: "a\ud800",
    "surrogate pair": lambda: "\ud83d\ude00",
    "non-characters": lambda: "\ufffe\uffff\U0010ffff",
    "emoji": lambda: "🎉",
    "decomposed": lambda: "e\u0301",
    "composed": lambda: "\u00e9",
    "'$where'": lambda: "$where",
    "'a.b'": lambda: "a.b",
    "'.'": lambda: ".",
    "quotes": lambda: "x') OR '1'='1; --",
    "newline": lambda: "a\n",
    "2,000 characters": lambda: "x" * 2_000,
    "100,000 characters": lambda: "x" * 100_000,
    "100,000 emoji": lambda: "🎉" * 100_000,
    "'__reserved'": lambda: "__reserved",
    "bytes": lambda: b"bytes",
    "no bytes": lambda: b"",
    "bytearray": lambda: bytearray(b"bytes"),
    "memoryview": lambda: memoryview(b"bytes"),
    "Loud": lambda: Loud("a"),
    "Loud surrogate": lambda: Loud("\ud800"),
    "Word.HEAD": lambda: Word.HEAD,
    "Word.DELETE": lambda: Word.DELETE,
    "Word.RAISE": lambda: Word.RAISE,
    "Word.CREATED": lambda: Word.CREATED,
    "Word.IDLE": lambda: Word.IDLE,
    "Number.TWO": lambda: Number.TWO,
    "UserString": lambda: collections.UserString("a"),
    "[]": list,
    "()": tuple,
    "{}": dict,
    "set()": set,
    "['a']": lambda: ["a"],
    "['a', 'a']": lambda: ["a", "a"],
    "{'a'}": lambda: {"a"},
    "frozenset": lambda: frozenset({"a"}),
    "['']": lambda: [""],
    "[None]": lambda: [None],
    "[1]": lambda: [1],
    "[[]]": lambda: [[]],
    "[surrogate]": lambda: ["\udfff"],
    "range": lambda: range(3),
    "vast range": lambda: range(2**62),
    "deque": lambda: collections.deque(["a"]),
    "iterator": lambda: _Once(),
    "20,000 strings": lambda: [f"s{n}" for n in range(20_000)],
    "{'a': 1}": lambda: {"a": 1},
    "{'': ''}": lambda: {"": ""},
    "{1: 2}": lambda: {1: 2},
    "{None: 1}": lambda: {None: 1},
    "{(): 1}": lambda: {(): 1},
    "{NUL: NUL}": lambda: {"\0": "\0"},
    "{surrogate: surrogate}": lambda: {"\ud800": "\ud800"},
    "{Loud: 1}": lambda: {Loud("a"): 1},
    "{'$where': '1'}": lambda: {"$where": "1"},
    "{'a': {'$gt': ''}}": lambda: {"a": {"$gt": ""}},
    "{'a.b': {'$ne': None}}": lambda: {"a.b": {"$ne": None}},
    "{'a': nan}": lambda: {"a": float("nan")},
    "{'a': 10**400}": lambda: {"a": 10**400},
    "{'a': object()}": lambda: {"a": object()},
    "{'a': set()}": lambda: {"a": {1}},
    "20,000 keys": lambda: {f"k{n}": n for n in range(20_000)},
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "defaultdict": lambda: collections.defaultdict(list, a=1),
    "MappingProxy": lambda: types.MappingProxyType({"a": 1}),
    "UserDict": lambda: collections.UserDict(a=1),
    "Counter": lambda: collections.Counter("aab"),
    "Raising": Raising,
    "RaisingDict": lambda: RaisingDict(thread_id="mine", a=1),
    "RaisingSequence": RaisingSequence,
    "Unspeakable": Unspeakable,
    "[Unspeakable]": lambda: [Unspeakable()],
    "{'a': Unspeakable}": lambda: {"a": Unspeakable()},
    "100 lists": lambda: nested(100, lambda inner: [inner]),
    "1,000 lists": lambda: nested(1_000, lambda inner: [inner]),
    "1,000 dicts": lambda: nested(1_000, lambda inner: {"a": inner}),
    "100,000 tuples": lambda: nested(100_000, lambda inner: (inner,)),
    "cyclic list": cyclic_list,
    "cyclic dict": cyclic_dict,
    "naive datetime": lambda: datetime(2020, 1, 1),
    "aware datetime": lambda: datetime(2020, 1, 1, tzinfo=timezone.utc),
    "datetime.min": lambda: datetime.min.replace(tzinfo=EAST),
    "datetime.max": lambda: datetime.max.replace(tzinfo=WEST),
    "raising time zone": lambda: datetime(2020, 1, 1, tzinfo=Zone()),
    "timedelta.max": lambda: timedelta.max,
    "timedelta.min": lambda: timedelta.min,
    "no time": lambda: timedelta(0),
    "a microsecond": lambda: timedelta(microseconds=1),
    "a day": lambda: timedelta(days=1),
    "Later": lambda: Later(days=1),
    "uuid": lambda: uuid.UUID(int=1),
    "path": lambda: Path("nowhere"),
    "RaisingPath": RaisingPath,
    "object": object,
    "class": lambda: dict,
    "lambda": lambda: lambda *_: None,
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "exception": lambda: Failing("a"),
}


class _Once:
    """An iterable that is no collection."""

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])


def _inside(inner: st.SearchStrategy[Named]) -> st.SearchStrategy[Named]:
    keys = st.sampled_from(["a", "id", "thread_id", "configurable", "metadata", "", "\ud800"])
    return (
        inner.map(lambda one: Named(f"[{one}]", [one.value]))
        | inner.map(lambda one: Named(f"({one},)", (one.value,)))
        | st.tuples(inner, inner).map(
            lambda two: Named(f"[{two[0]}, {two[1]}]", [one.value for one in two])
        )
        | st.tuples(keys, inner).map(
            lambda two: Named(f"{{{two[0]!r}: {two[1]}}}", {two[0]: two[1].value})
        )
    )


LEAVES = st.sampled_from(sorted(VALUES)).map(lambda name: Named(name, VALUES[name]()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=10,
).map(lambda value: Named(repr(value), value))
ANYTHING = LEAVES | st.recursive(LEAVES, _inside, max_leaves=3) | JSON
"""Any JSON value, with surrogates, and whatever else Python allows."""
