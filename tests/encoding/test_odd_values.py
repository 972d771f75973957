"""Values that are seldom: what a class overrides, what was changed after an object was made."""

from __future__ import annotations

import array
import builtins
import collections
import dataclasses
import datetime
import enum
import functools
import io
import re
import uuid
import weakref
import zoneinfo
from collections import Counter, OrderedDict, defaultdict
from fractions import Fraction
from importlib.resources import files
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar

import attrs
import numpy
import ormsgpack
import pandas
import pydantic
import pydantic.v1
import pydantic_core
import pytest
from pydantic_core import PydanticCustomError

from checking import config, put
from forkpoint import (
    NotStorable,
    SafeSerializer,
    SqliteSaver,
    StoredObject,
    UnreadableValue,
)
from forkpoint.encoding import type_names
from forkpoint.encoding.base_values import BASES
from value_types import Level, Phase, is_same

SERDE = SafeSerializer()
T = TypeVar("T")


class Ordered(OrderedDict):  # type: ignore[type-arg]
    pass


class Ratio(Fraction):
    pass


class Place(PurePosixPath):
    def __new__(cls, *parts: Any) -> Any:
        calls.append("Place")
        return super().__new__(cls, *parts)


class Lists(defaultdict):  # type: ignore[type-arg]
    pass


class Span(datetime.timedelta):
    @property
    def days(self) -> Any:
        return 0


class Day(datetime.date):
    @property
    def year(self) -> Any:
        return 1


class Moment(datetime.datetime):
    @property
    def fold(self) -> Any:
        return 0


@dataclasses.dataclass
class Watched:
    x: int

    def __getattribute__(self, name: str) -> Any:
        calls.append(name)
        return object.__getattribute__(self, name)


@dataclasses.dataclass
class Parts:
    names: list[str] = dataclasses.field(default_factory=list)


@attrs.define
class Size:
    width: int = 1
    height: int = 2


class Row(pydantic.BaseModel):
    __slots__ = ("note",)
    a: int
    b: int = 2
    at: Any = None


class OldRow(pydantic.v1.BaseModel):
    __slots__ = ("note",)
    a: int = 1
    b: int = 2


class Unread(OSError):
    def __init__(self, name: str) -> None:
        self.filename = name


class Ending(Exception):
    def __del__(self) -> None:
        calls.append("Ending")


@dataclasses.dataclass
class Ended:
    x: int

    def __del__(self) -> None:
        calls.append("Ended")


class Sized(pydantic.BaseModel):
    x: int

    @functools.cached_property
    def doubled(self) -> int:
        calls.append("doubled")
        return self.x * 2


Wide = pydantic.create_model("Wide", **{f"f{n}": (int, n) for n in range(70)})  # type: ignore[call-overload]


class Shy:
    def __repr__(self) -> str:
        raise ValueError("no")


def sized() -> Sized:
    value = Sized(x=1)
    assert value.doubled == 2
    return value


def refused(error: Exception) -> pydantic.ValidationError:
    """Return what a model raises whose validator raises an error."""

    class Refusing(pydantic.BaseModel):
        a: int

        @pydantic.field_validator("a")
        def check(cls, _: Any) -> Any:
            raise error

    with pytest.raises(pydantic.ValidationError) as caught:
        Refusing(a=1)
    return caught.value


def failures() -> Any:
    """Return a group of exceptions that is made of something else than its arguments."""
    base: Any = getattr(builtins, "ExceptionGroup", None)
    if base is None:  # before Python 3.11
        return None

    def make(kind: Any, errors: list[Exception], code: int) -> Any:
        made = base.__new__(kind, "failures", errors)
        made.code = code
        return made

    return type("Failures", (base,), {"__new__": make})([ValueError(1)], 5)


calls: list[str] = []


def with_(value: Any, **attributes: Any) -> Any:
    for name, each in attributes.items():
        object.__setattr__(value, name, each)
    return value


def without(value: Any, *names: str) -> Any:
    for name in names:
        delattr(value, name)
    return value


def moved(kind: Any) -> Any:
    value = kind(a=1, b=2, c=3)
    value.move_to_end("a")
    return value


VALUES: dict[str, Any] = {
    "moved key": moved(OrderedDict),
    "moved key of a subclass": moved(Ordered),
    "attribute of a fraction": with_(Ratio(1, 3), note=(1,)),
    "attribute of a path": with_(Place("a/b"), note=(1,)),
    "subclass of a defaultdict": Lists(list, {1: [2]}),
    "overridden timedelta": Span(5, 6),
    "overridden date": Day(2024, 5, 6),
    "overridden fold": Moment(2024, 10, 27, 2, 30, fold=1),
    "row of characters": [array.array("u", "aé"), array.array("d", [0.5])],
    "safe UUID": uuid.UUID(int=1, is_safe=uuid.SafeUUID.safe),
    "memory to be written to": memoryview(bytearray(b"a")),
    "zone of Pydantic": Row(a=1, at=pydantic_core.TzInfo(-12600)),
    "address without a path": pydantic_core.Url("http://a.b", preserve_empty_path=True),
    "odd attribute": with_(Parts(), **{"\ud800": (1,)}),
    "model in part": without(Row(a=1), "a", "b"),
    "model with a slot": with_(Row(a=1), note=(1,)),
    "model with odd names": Row.model_construct(_fields_set={"a", "other"}, a=1),
    "old model in part": without(OldRow(), "b"),
    "old model with a slot": with_(OldRow(), note=(1,)),
    "long integers of C": [numpy.longlong(1), numpy.array([1], "q")],
    "empty scalars": [numpy.str_(""), numpy.bytes_(b""), numpy.void(b"")],
    "nothing at the end": [numpy.str_("a\0"), numpy.bytes_(b"a\0"), numpy.str_("\ud800")],
    "long span": pandas.Timedelta(numpy.timedelta64(10**15, "s")),
    "changed error": with_(SyntaxError("m"), lineno=5),
    "errors of texts": [UnicodeTranslateError("ab", 0, 1, "no"), UnicodeError("no")],
    "changed error of a text": with_(UnicodeDecodeError("utf-8", b"ab", 0, 1, "no"), start=1),
    "error that is not made whole": Unread("f"),
    "group of its own": failures(),
    "error of a validator": refused(PydanticCustomError("odd", "{n} is odd", {"n": 1})),
    "error of a validator that says no more": refused(PydanticCustomError("odd", "{n} is odd")),
    "many elements": {(number,) for number in range(65)},
    "model of many fields": Wide(f3=1, f68=1),
    "model with a kept property": sized(),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_seldom_value_comes_back_as_it_was(name: str) -> None:
    for value in (VALUES[name], [VALUES[name]], {(1,): VALUES[name]}):
        stored = SERDE.dumps_typed(value)
        calls.clear()
        restored = SERDE.loads_typed(stored)
        assert not calls
        assert is_same(restored, value), restored
        assert details_of(restored) == details_of(value)
        assert SERDE.dumps_typed(restored) == stored


OF_BASES: dict[str, tuple[Any, ...]] = {
    "ordereddict": ([("b", 1), ("a", 2)],),
    "defaultdict": (list, {"a": [1]}),
    "counter": ("abca",),
    "dict": ({"b": 1, 2: (3,)},),
    "list": ([1, (2,)],),
    "tuple": ([1, (2,)],),
    "set": ({1, (2,)},),
    "frozenset": ({1, (2,)},),
    "deque": ([1, 2, 3], 2),
    "str": ("text",),
    "bytes": (b"bytes",),
    "int": (2**70,),
    "float": (0.1,),
    "datetime": (2024, 10, 27, 2, 30, 0, 1, zoneinfo.ZoneInfo("Europe/Paris")),
    "date": (2024, 10, 27),
    "time": (2, 30),
    "timedelta": (1, 2, 3),
    "complex": (1.5, -0.0),
    "bytearray": (b"bytes",),
    "decimal": ("1.50",),
    "fraction": (1, 3),
    "zoneinfo": ("Europe/Paris",),
    "uuid": ("12345678123456781234567812345678",),
    "path": ("a", "b.txt"),
}


@pytest.mark.parametrize("name", BASES)
def test_an_object_of_a_class_of_ones_own_comes_back(name: str) -> None:
    """With the attributes that it has beside what its base keeps, and without its code."""
    kind = PurePosixPath if name == "path" else BASES[name].kind

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("its code runs")

    own: Any = type(f"Own {name}", (kind,), {"__module__": __name__})
    value = with_(own(*OF_BASES[name]), note=(1,))
    stored = SERDE.dumps_typed([value])
    own.__init__ = own.__new__ = own.__setstate__ = refuse
    (restored,) = SERDE.loads_typed(stored)
    assert type(restored) is own
    assert vars(restored) == vars(value)
    assert repr(restored) == repr(value)
    assert SERDE.dumps_typed([restored]) == stored


def details_of(value: Any) -> Any:
    """Return what `is_same` does not compare."""
    if isinstance(value, (list, dict)):
        return [details_of(each) for each in (value if isinstance(value, list) else value.values())]
    if isinstance(value, pydantic.ValidationError):
        return value.errors(), str(value)
    names = (
        *("start", "note", "lineno", "errno", "strerror", "filename", "is_safe", "readonly"),
        *("code", "message", "days"),
    )
    each = [getattr(value, name, "none") for name in names]
    order = list(value) if isinstance(value, OrderedDict) else None
    text = "" if isinstance(value, memoryview) else repr(value)
    return each, order, text, getattr(value, "dtype", None)


def test_a_field_that_was_deleted_stays_so() -> None:
    for value, name in ((Parts(), "names"), (Size(), "width")):
        delattr(value, name)
        (restored,) = SERDE.loads_typed(SERDE.dumps_typed([value]))
        assert not hasattr(restored, name)


def test_code_that_looks_up_attributes_is_not_run() -> None:
    stored = SERDE.dumps_typed([Watched(1)])
    calls.clear()
    (restored,) = SERDE.loads_typed(stored)
    assert not calls
    assert restored == Watched(1)


def test_what_stands_for_a_masked_text_may_be_longer_than_a_text() -> None:
    value = numpy.ma.array(["a"], mask=[True])
    (restored,) = SERDE.loads_typed(SERDE.dumps_typed([value]))
    assert restored.fill_value == value.fill_value == "N/A"


def test_an_object_that_ends_something_is_not_made_to_compare() -> None:
    for value in (Ending(1, "b"), Ended(1)):
        calls.clear()
        stored = SERDE.dumps_typed([value])
        assert not calls
        (restored,) = SERDE.loads_typed(stored)
        assert vars(restored) == vars(value)
        assert getattr(restored, "args", None) == getattr(value, "args", None)


def test_an_error_that_cannot_be_made_again_is_known_by_its_arguments() -> None:
    error = UnicodeDecodeError.__new__(UnicodeDecodeError)
    error.args = ("a", 1)
    (stored,) = SERDE.loads_typed(SERDE.dumps_typed([error]))
    assert type(stored) is StoredObject
    assert stored["args"] == ["a", 1]


def test_an_error_is_stored_whatever_has_no_text_in_it() -> None:
    (restored,) = SERDE.loads_typed(SERDE.dumps_typed([KeyError(Shy())]))
    assert restored.args == ("<Shy whose repr raises ValueError>",)


# What would not come back


@dataclasses.dataclass(frozen=True)
class Key:
    number: int

    def __hash__(self) -> int:
        return 1


class Names(tuple):  # type: ignore[type-arg]
    _fields = ("a",)


class Inner:
    __slots__ = ("a",)


class Outer(Inner):
    __slots__ = ("a",)


@dataclasses.dataclass
class Hiding(Outer):
    b: int


class Float(numpy.float64):
    pass


def hiding() -> Any:
    value = with_(Hiding(1), a=1)
    vars(Inner)["a"].__set__(value, 2)
    return value


def no_member() -> Any:
    return with_(object.__new__(Phase), _name_="THIRD", _value_=9)


def zone(key: str) -> Any:
    with files("tzdata").joinpath("zoneinfo/Europe/Paris").open("rb") as stream:
        return zoneinfo.ZoneInfo.from_file(io.BytesIO(stream.read()), key=key)


KEYS = [Key(number) for number in range(100)]
REFUSED: dict[str, tuple[Any, str]] = {
    "set of one hash": (set(KEYS), "same hash"),
    "frozenset of one hash": (frozenset(KEYS), "same hash"),
    "dict of one hash": (dict.fromkeys(KEYS), "same hash"),
    "ordered dict of one hash": (OrderedDict.fromkeys(KEYS), "same hash"),
    "counter of one hash": (Counter(KEYS), "same hash"),
    "view of one hash": (MappingProxyType(dict.fromkeys(KEYS)), "same hash"),
    "numbers of one hash": ({number * (2**61 - 1) for number in range(100)}, "same hash"),
    "names for others": ([Names((1,)), Names((1, 2))], "2 elements"),
    "hidden slot": (hiding(), "two attributes"),
    "zone of a file": (zone("Europe/Paris"), "from a file"),
    "fields that are objects": (numpy.zeros(1, [("a", "O")]), "objects"),
    "scalar of objects": (numpy.zeros(1, [("a", "O")])[0], "objects"),
    "texts of any length": (numpy.array(["a"], numpy.dtypes.StringDType()), "dtype"),
    "no member of an enum": (no_member(), "no member"),
    "dtype that says more": (numpy.zeros(1, numpy.dtype("i4", metadata={"a": 1})), "metadata"),
    "rows of memory": (memoryview(b"abcd").cast("B", [2, 2]), "no plain row"),
    "pattern that is shown": (re.compile("a", re.DEBUG), "prints"),
    "subclass of a scalar": (Float(1.5), "could not be restored"),
    "record": (numpy.rec.array([(1,)], dtype=[("a", "i4")])[0], "dtype"),
    "records": (numpy.rec.array([(1,)], dtype=[("a", "i4")]).view(numpy.ndarray), "dtype"),
    "elements of nothing": (numpy.zeros(2, "V0"), "no bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_come_back_is_refused(name: str) -> None:
    value, reason = REFUSED[name]
    with pytest.raises(NotStorable, match=reason):
        SERDE.dumps_typed({"k": value})


def test_the_text_of_an_error_may_not_be_elsewhere() -> None:
    """Python would read it there, and end."""
    before = [*("utf-8", b"x", -(10**12)), 1 - 10**12, "no"]
    name = ["builtins", "UnicodeDecodeError"]
    for code, content in (
        (40, ["exception", name, before, {}]),
        (40, ["exception", name, ["utf-8", b"x", 0, 1, "no"], {"object": 5}]),
        (40, ["exception", name, ["utf-8", b"x", 0, 1, "no"], {"start": -(10**12)}]),
        (1, [*name, before]),
    ):
        forged = ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(content)))
        with pytest.raises(UnreadableValue):
            SafeSerializer(unknown="raise").loads_typed(("msgpack", forged))
        stored = SERDE.loads_typed(("msgpack", forged))
        assert type(stored) is StoredObject


# Types that are named by what they are made of, or not at all


class Named(pydantic.BaseModel, Generic[T]):
    content: T


def some(value: Any) -> bool:
    return bool(value)


ARGUMENTS = [
    None,
    Annotated[int, pydantic.Field(gt=0)],
    Annotated[int, pydantic.Field(gt=5)],
    Annotated[int, pydantic.AfterValidator(some)],
    Literal[Level.LOW, None],
    NewType("Number", int),
    collections.abc.Callable[[int], int],
]


def test_a_generic_is_known_whatever_it_is_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [Named[argument].model_construct(content=1) for argument in ARGUMENTS]  # type: ignore[valid-type]
    stored = SERDE.dumps_typed(values)
    assert is_same(SERDE.loads_typed(stored), values)
    forget_types(monkeypatch)
    assert is_same(SafeSerializer().loads_typed(stored), values)


def forget_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process know as little of types as one that has stored nothing."""
    monkeypatch.setattr(type_names, "_seen", weakref.WeakValueDictionary())


class Strange(type):
    __eq__ = __hash__ = None  # type: ignore[assignment]


class Neighbour(metaclass=Strange):
    """A class of the same module that cannot be compared."""


Bound = enum.Enum("Functional", "A B")


def test_a_type_is_found_under_another_name_whatever_else_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = [Bound.B, Named[Bound](content=Bound.B)]
    stored = SERDE.dumps_typed(values)
    forget_types(monkeypatch)
    assert SafeSerializer().loads_typed(stored) == values


@dataclasses.dataclass(eq=False)
class Same:
    """Of which two are never equal."""

    number: int


@pytest.mark.parametrize("kind", [set, frozenset, dict.fromkeys])
def test_elements_that_are_equal_where_they_are_not_known_are_kept(kind: Any) -> None:
    name, content = SERDE.dumps_typed([kind([Same(1), Same(1)])])
    content = content.replace(b"test_odd_values", b"test_odd_valuez")
    strange = SERDE.loads_typed((name, content))
    assert type(strange[0]) is StoredObject
    assert SERDE.dumps_typed(strange) == (name, content)


# Classes that change


@pytest.mark.parametrize("of_version", [pydantic, pydantic.v1])
def test_what_a_model_has_got_since_has_its_default(of_version: Any) -> None:
    def first() -> Any:
        class Changed(of_version.BaseModel):  # type: ignore[misc]
            a: int

        return Changed

    def second() -> Any:
        class Changed(of_version.BaseModel):  # type: ignore[misc]
            a: int
            _size: int = of_version.PrivateAttr(5)
            _names: list[str] = of_version.PrivateAttr(default_factory=list)
            b: int = 2
            c: list[int] = of_version.Field(default_factory=lambda: [3])

        return Changed

    old, new = first(), second()
    new.__qualname__ = old.__qualname__
    stored = SERDE.dumps_typed([old(a=1)])
    value = new(a=1)
    del value._size
    stored_in_part = SERDE.dumps_typed([value])

    (restored,) = SERDE.loads_typed(stored)
    assert (type(restored), restored._size, restored._names) == (new, 5, [])
    assert (restored.a, restored.b, restored.c) == (1, 2, [3])
    (restored,) = SERDE.loads_typed(stored_in_part)
    assert not hasattr(restored, "_size")


def test_a_default_may_depend_on_the_other_fields() -> None:
    def made(**fields: Any) -> Any:
        return pydantic.create_model("Depending", a=(int, ...), **fields)

    class Depending(pydantic.BaseModel):
        a: int
        b: int = pydantic.Field(default_factory=lambda fields: fields["a"] + 1)
        _c: int = pydantic.PrivateAttr(default_factory=lambda fields: fields["a"] + 2)

    old = made()
    Depending.__module__, Depending.__qualname__ = old.__module__, old.__qualname__
    stored = SERDE.dumps_typed([old(a=1)])
    SERDE.dumps_typed(Depending(a=1))
    (restored,) = SERDE.loads_typed(stored)
    assert (restored.a, restored.b, restored._c) == (1, 2, 3)


def test_a_model_that_is_open_since_takes_more() -> None:
    def made(extra: Any) -> Any:
        return pydantic.create_model(
            "Opened", __config__=pydantic.ConfigDict(extra=extra), a=(int, ...)
        )

    old, new = made("ignore"), made("allow")
    stored = SERDE.dumps_typed([old(a=1)])
    SERDE.dumps_typed(new(a=1))
    (restored,) = SERDE.loads_typed(stored)
    restored.b = 2
    assert restored == new(a=1, b=2)


@dataclasses.dataclass
class AsDataclass:
    x: int
    y: Any = None


class AsModel(pydantic.BaseModel):
    x: int
    y: Any = None


class AsOldModel(pydantic.v1.BaseModel):
    x: int
    y: Any = None


class AsTuple(NamedTuple):
    x: int
    y: Any = None


SHAPES: list[Any] = [AsDataclass, AsModel, AsOldModel, AsTuple]


@pytest.mark.parametrize("old", SHAPES)
@pytest.mark.parametrize("new", SHAPES)
def test_an_alias_may_be_of_another_kind(old: Any, new: Any) -> None:
    stored = SERDE.dumps_typed([old(x=1, y=(2,))])
    renamed = SafeSerializer(types=[{(__name__, old.__name__): new}])
    assert is_same(renamed.loads_typed(stored), [new(x=1, y=(2,))])
    changed = SafeSerializer(
        types=[{(__name__, old.__name__): (new, lambda fields: {"x": 5, "y": fields["x"]})}]
    )
    assert is_same(changed.loads_typed(stored), [new(x=5, y=1)])


def test_a_model_without_such_a_field_does_not_take_it() -> None:
    stored = SERDE.dumps_typed([AsDataclass(x=1)])
    changed = SafeSerializer(
        types=[{(__name__, "AsDataclass"): (AsModel, lambda fields: {**fields, "z": 1})}]
    )
    (restored,) = changed.loads_typed(stored)
    assert restored.type_name == f"{__name__}.AsDataclass"


def test_a_class_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with SqliteSaver(tmp_path / "values.db") as saver:
        for value, path in (
            (Neighbour(), "['c']"),
            ([Neighbour()], "[0]"),
            ({"k": (Neighbour(),)}, "['k'][0]"),
        ):
            with pytest.raises(NotStorable) as refused:
                put(saver, {"c": value})
            assert refused.value.path == path
        assert saver.get_tuple(config()) is None
