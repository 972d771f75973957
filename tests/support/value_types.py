"""Values of many types, and what it means that one came back as it was."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import re
import types
import uuid
import zoneinfo
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, Optional, TypeVar

import attrs
import numpy
import pydantic
import pydantic.v1
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.store.base import Item
from langgraph.types import Command, Interrupt, Overwrite, Send

PARIS = zoneinfo.ZoneInfo("Europe/Paris")
T = TypeVar("T")
NOW = datetime.datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=datetime.timezone.utc)


class Order:
    class Status(str, enum.Enum):
        OPEN = "open"


class Ticket:
    class Status(str, enum.Enum):
        OPEN = "open"


class Phase(enum.Enum):
    FIRST = (1, 2)
    SECOND = "2"


class Doc:
    class Phase(enum.Enum):
        FIRST = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Mode(enum.IntFlag):
    READ = 1
    WRITE = 2


class Planet(enum.Enum):
    """Whose members are made of a tuple, and have attributes."""

    EARTH = (5.9, 6.3)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass = mass
        self.radius = radius


class Level(enum.IntEnum):
    LOW = 1


Bound = enum.Enum("Functional", "A B")


class Point(NamedTuple):
    x: int
    y: Any = "y"


@dataclasses.dataclass
class Price:
    """Whose code, if it ran again, would change it."""

    amount: float
    currency: dataclasses.InitVar[str] = "EUR"
    parts: list[Any] = dataclasses.field(default_factory=list)
    rounds: int = dataclasses.field(init=False, default=1)

    def __post_init__(self, currency: str) -> None:
        self.amount *= 100
        self.text = f"{self.amount} {currency}"

    @cached_property
    def doubled(self) -> float:
        return self.amount * 2


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("size",)
    size: int


@dataclasses.dataclass(frozen=True)
class Keyed(Slotted):
    __slots__ = ("names",)
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Generic[T]):
    first: T
    second: T


@attrs.define
class Part:
    size: int
    names: list[str] = attrs.field(factory=list)


@attrs.frozen(cache_hash=True)
class Label:
    _text: str
    size: int = attrs.field(default=1, converter=lambda size: size * 2)


@attrs.define
class NotFound(Exception):
    code: int


class Base(pydantic.BaseModel):
    x: int


class Derived(Base):
    y: int


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", populate_by_name=True)
    first: int | None = pydantic.Field(None, alias="First")
    hidden: str = pydantic.Field("h", exclude=True)
    text: str = ""
    _private: int = pydantic.PrivateAttr(3)

    @pydantic.field_validator("text")
    @classmethod
    def louder(cls, text: str) -> str:
        return text + "!"

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return len(self.text)


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    n: int = 0


class Holder(pydantic.BaseModel):
    base: Base
    messages: list[Any] = []


class Box(pydantic.BaseModel, Generic[T]):
    content: T


class Names(pydantic.RootModel[list[Any]]):
    pass


@pydantic.dataclasses.dataclass
class Checked:
    n: int = pydantic.Field(alias="N")


class Later(pydantic.BaseModel):
    x: int
    y: int = pydantic.Field(default_factory=lambda fields: fields["x"] + 1)


class Links(pydantic.BaseModel):
    page: pydantic.HttpUrl
    database: pydantic.PostgresDsn


class Old(pydantic.v1.BaseModel):
    name: str
    _private: int = pydantic.v1.PrivateAttr(1)


class Attributed(dict):  # type: ignore[type-arg]
    pass


class Text(str):
    pass


class Rows(list):  # type: ignore[type-arg]
    pass


class Zone(zoneinfo.ZoneInfo):
    pass


class Clock(datetime.time):
    pass


class Wave(complex):
    pass


class Buffer(bytearray):
    pass


class Refused(ValueError):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


Made = pydantic.create_model("Made", n=(int, ...))


def _attributed() -> Attributed:
    value = Attributed(a=(1,))
    value.note = {2}
    return value


def _private() -> Aliased:
    value = Aliased(First=4, text="a")
    value._private = 9
    return value


def _invalid() -> pydantic.ValidationError:
    try:
        Later(x="no")  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


def _text() -> Price:
    value = Price(1.5)
    assert value.doubled == 300
    return value


VALUES: dict[str, Any] = {
    "tuples": (1, (2, [3, (4,)]), ()),
    "sets": [{(1, 2)}, frozenset({frozenset({1})}), set()],
    "keys": {1: "a", (2, 3): "b", None: "c", 1.5: "d", b"x": "e", True + 1: "f"},
    "odd keys": {uuid.UUID(int=1): 1, datetime.date(2024, 1, 1): 2, Level.LOW: 3, Phase.FIRST: 4},
    "long integers": [2**64, -(2**63) - 1, 2**400, {2**70: 2**63}],
    "surrogates": ["\ud800x", {"k\udfff": "v"}],
    "bytes": [b"a", bytearray(b"b"), memoryview(b"c"), {"k": [bytearray(b"d")]}],
    "nested enums": [Order.Status.OPEN, {Ticket.Status.OPEN: Order.Status.OPEN}],
    "enums of one name": [Phase.FIRST, Phase.SECOND, Doc.Phase.FIRST],
    "flags": [Right.READ, Right.READ | Right.RUN, Right(0), Mode(9), Mode(0)],
    "members of tuples": Planet.EARTH,
    "functional enum": Bound.B,
    "named tuple": Point(1, (2,)),
    "dataclass": _text(),
    "slots": [Slotted(1), Keyed(1, ("a",))],
    "aliases": _private(),
    "extra fields": Open(n=1, more=(1, 2)),  # type: ignore[call-arg]
    "derived in base": Holder(base=Derived(x=1, y=2), messages=[AIMessage("x", id="1")]),
    "tool calls": AIMessage(
        "", id="2", tool_calls=[{"name": "f", "args": {"n": 2**70}, "id": "c", "type": "tool_call"}]
    ),
    "artifact": ToolMessage("x", tool_call_id="c", artifact=({1}, (2,)), id="3"),
    "generics": [Box[int](content=1), Box[Derived](content=Derived(x=1, y=2)), Box(content=(1,))],
    "generics of more than classes": [
        Box[list[int]](content=[1]),
        Box[int | None](content=None),
        Box[Optional[int]](content=1),  # noqa: UP045
        Box[dict[str, Derived]](content={}),
        Box[tuple[int, ...]](content=(1,)),
        Box[Literal["a", 1]](content="a"),
        Box[Box[int]](content=Box[int](content=1)),
    ],
    "generic dataclass": Pair[int](first=1, second=(2,)),  # type: ignore[arg-type]
    "attrs": [Part(1, ["a"]), Label("t", 2)],
    "defaults of other fields": Later(x=1),
    "links": Links(page="http://a.b/c", database="postgres://u@h/d"),  # type: ignore[arg-type]
    "root model": Names([1, (2,)]),
    "created model": Made(n=1),
    "pydantic dataclass": Checked(N=1),
    "pydantic 1": Old(name="n"),
    "subclasses": [_attributed(), Text("t"), Rows([1, (2,)])],
    "more subclasses": [Zone("Europe/Paris"), Clock(1, 2, fold=1), Wave(1, 2), Buffer(b"x")],
    "zones": [PARIS, datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=PARIS), NOW],
    "times": [
        datetime.date(2024, 2, 29),
        datetime.time(1, 2, 3, 4, fold=1),
        datetime.timedelta(-1, 2, 3),
        datetime.timezone(datetime.timedelta(hours=2), "name"),
        datetime.datetime(1, 1, 1),
    ],
    "collections": [
        collections.defaultdict(list, {1: [2]}),
        collections.Counter("abca"),
        collections.OrderedDict(b=1, a=2),
        collections.deque([1, 2, 3], maxlen=3),
        collections.ChainMap({1: 2}, {3: 4}),
        types.MappingProxyType({"a": (1,)}),
        types.SimpleNamespace(a=(1,)),
    ],
    "numbers": [
        decimal.Decimal("1.50"),
        fractions.Fraction(1, 3),
        1 + 2j,
        -0.0,
        float("inf"),
        range(1, 5, 2),
        slice(1, None, 2),
        ...,
    ],
    "arrays": [array.array("i", [1, 2]), array.array("d")],
    "texts": [re.compile("a+", re.I), uuid.UUID(int=5), ipaddress.ip_network("10.0.0.0/8")],
    "paths": [pathlib.Path("/x/y"), pathlib.PureWindowsPath("c:/x")],
    "numpy": [
        numpy.arange(6).reshape(2, 3),
        numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        numpy.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        numpy.array(["2024-01-01"], dtype="M8[D]"),
        numpy.array([1, (2,), None], dtype=object),
        numpy.array([((1, 2.5), "x")], dtype=[("a", [("b", "i4"), ("c", "f8")]), ("d", "U2")]),
        numpy.ma.array([1, 2], mask=[False, True]),
        numpy.ma.array([1, 2], mask=[False, True], fill_value=7, hard_mask=True),
        numpy.ma.masked,
        numpy.zeros((0, 3)),
        numpy.array(3),
    ],
    "numpy scalars": [
        numpy.float64(1.5),
        numpy.int64(3),
        numpy.bool_(True),
        numpy.datetime64("2024-01-01T00:00:00.123456789"),
        numpy.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])[0],
    ],
    "framework": [
        HumanMessage("hi", id="1", additional_kwargs={"a": (1,)}),
        Document("text", metadata={"a": (1,)}),
        Send("node", {"a": (1,)}),
        Interrupt(value=("question",), id="i"),
        Command(goto=Send("node", 1), update={"a": (1,)}),
        Overwrite((5,)),
        Item(value={"a": (1,)}, key="k", namespace=("n",), created_at=NOW, updated_at=NOW),
        pydantic.SecretStr("secret"),
    ],
    "exceptions": [
        ValueError("a", (1,)),
        Refused("f", "r"),
        KeyError(1),
        OSError(2, "no", "f"),
        ImportError("no", name="n", path="p"),
        NotFound(404),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
    ],
    "invalid input": _invalid(),
}


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same type, and so is all within them."""
    if type(one) is not type(other):
        return False
    if isinstance(one, enum.Enum):
        return one is other
    if isinstance(one, (dict, types.MappingProxyType)):
        return (
            len(one) == len(other)
            and all(map(is_same, one, other))
            and all(map(is_same, one.values(), other.values()))
            and _has_same_attributes(one, other)
        )
    if isinstance(one, (list, tuple, collections.deque)):
        return (
            len(one) == len(other)
            and all(map(is_same, one, other))
            and getattr(one, "maxlen", None) == getattr(other, "maxlen", None)
        )
    if isinstance(one, (set, frozenset)):
        return {*map(_typed, one)} == {*map(_typed, other)}
    if isinstance(one, numpy.ma.MaskedArray) and one.hardmask != other.hardmask:
        return False
    if isinstance(one, numpy.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.flags.f_contiguous == other.flags.f_contiguous
            and one.flags.writeable == other.flags.writeable
            and repr(one) == repr(other)
        )
    if isinstance(one, BaseException):
        texts = [[str(each), *each.args] for each in (one, other)]
        return is_same(*texts) and _has_same_attributes(one, other)
    if isinstance(one, memoryview):
        return bool(one == other)
    if dataclasses.is_dataclass(one) or hasattr(type(one), "model_fields"):
        fields = dataclasses.fields(one) if dataclasses.is_dataclass(one) else ()
        names = [field.name for field in fields]
        return all(
            is_same(getattr(one, name), getattr(other, name)) for name in names
        ) and _has_same_attributes(one, other)
    return bool(one == other) and repr(one) == repr(other)


def _typed(value: Any) -> Any:
    """Return what is equal for values that are equal and of the same type."""
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(_typed, value))
    if isinstance(value, tuple):
        return type(value), tuple(map(_typed, value))
    return type(value), value


def _has_same_attributes(one: Any, other: Any) -> bool:
    hidden = ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
    own, others = ({**getattr(each, "__dict__", {})} for each in (one, other))
    for each in (own, others):
        each.pop("doubled", None)  # it is cached, and no part of the value
    return (
        own.keys() == others.keys()
        and all(is_same(own[name], others[name]) for name in own)
        and all(is_same(getattr(one, name, None), getattr(other, name, None)) for name in hidden)
    )
