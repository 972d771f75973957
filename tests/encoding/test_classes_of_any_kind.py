"""Classes that are made, named or laid out as few are, and what only some of their values have."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import gc
import io
import ipaddress
import sys
import types
import warnings
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import attrs
import numpy
import pandas
import pydantic
import pydantic_core
import pytest

from checking import put
from forkpoint import (
    NotStorable,
    SafeSerializer,
    SqliteSaver,
    StoredObject,
    TypeCodec,
    UnreadableValue,
)
from forkpoint.encoding import contents, object_values, type_names
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from value_types import is_same

SERDE = SafeSerializer()
T = TypeVar("T")


def back(value: Any) -> Any:
    (restored,) = SERDE.loads_typed(SERDE.dumps_typed([value]))
    return restored


# What `exec` makes says that it is one of Python's own types

SOURCE = """
import attrs, dataclasses, pydantic, typing

@dataclasses.dataclass(slots=True)
class Slotted:
    a: typing.Any

@attrs.define
class Defined:
    a: typing.Any

class Model(pydantic.BaseModel):
    __slots__ = ("note",)
    a: int

class Listed(list):
    __slots__ = ("a",)

class Failed(Exception):
    def __init__(self, a):
        calls.append("Failed")
        self.a = a

class Unread(OSError):
    __slots__ = ("a",)
    def __init__(self, a):
        calls.append("Unread")
        self.a = a

class TimeoutError(Exception):
    a = 1
"""
calls: list[str] = []


@pytest.fixture(scope="module")
def executed() -> dict[str, Any]:
    made: dict[str, Any] = {"calls": calls}
    exec(SOURCE, made)
    assert made["Slotted"].__module__ == "builtins"
    return made


@pytest.mark.parametrize("name", ["Slotted", "Defined", "Failed", "Unread"])
def test_what_exec_makes_comes_back(name: str, executed: dict[str, Any]) -> None:
    value = executed[name]((1,))
    stored = SERDE.dumps_typed([value])
    calls.clear()
    (restored,) = SERDE.loads_typed(stored)
    assert not calls
    assert type(restored) is executed[name]
    assert restored.a == (1,)


def test_slots_of_what_exec_makes_come_back(executed: dict[str, Any]) -> None:
    value = executed["Listed"]([1])
    value.a = (1,)
    assert back(value).a == (1,)
    model = executed["Model"](a=1)
    object.__setattr__(model, "note", (1,))
    assert back(model).note == (1,)


def test_what_exec_makes_is_not_taken_for_a_type_of_pythons_own(executed: dict[str, Any]) -> None:
    own, pythons = executed["TimeoutError"](1), TimeoutError(1)
    assert type(back(own)) is executed["TimeoutError"]
    assert type(back(pythons)) is TimeoutError
    assert type(back(own)) is executed["TimeoutError"]


class Text(str):
    pass


@pytest.mark.parametrize("module", [None, 5, Text("m"), "\ud800", ["m"]])
@pytest.mark.parametrize("is_error", [False, True])
def test_a_class_may_say_anything_of_its_module(module: Any, is_error: bool) -> None:
    kind: Any = type("E", (Exception,), {}) if is_error else dataclasses.make_dataclass("D", ["a"])
    kind.__module__ = module
    assert type(back(kind(1))) is kind


# Classes that are made again

CELL = """
import dataclasses, pydantic, typing
T = typing.TypeVar("T")

@dataclasses.dataclass
class Row:
    a: int = 1

class Outer:
    class Inner(pydantic.BaseModel):
        a: int = 1

class Box(pydantic.BaseModel, typing.Generic[T]):
    a: T
"""


def test_a_cell_that_has_run_again_says_which_classes_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also before anything of the new ones was stored: a thread goes on with what it has."""
    notebook = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)

    def kinds() -> list[Any]:
        exec(CELL, vars(notebook))
        made: Any = notebook
        return [made.Row, made.Outer.Inner, made.Box[int]]

    serde = SafeSerializer()
    values = [kind(a=1) for kind in kinds()]
    stored = serde.dumps_typed(values)
    assert list(map(type, serde.loads_typed(stored))) == list(map(type, values))
    again = kinds()
    assert list(map(type, serde.loads_typed(stored))) == again
    assert list(map(type, SafeSerializer().loads_typed(stored))) == again


def test_a_nested_class_is_not_taken_for_one_of_its_name_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In a module with a name as long as the other one, which is written over it.
    gone = pydantic.create_model("Inner", a=(int, 1), __module__="shop.aaaaa")
    kind, stored = SafeSerializer().dumps_typed(gone(a=1))
    shop = types.ModuleType("shop.bbbbb")
    monkeypatch.setitem(sys.modules, shop.__name__, shop)
    exec(CELL, vars(shop))

    restored = SafeSerializer().loads_typed((kind, stored.replace(b".aaaaa", b".bbbbb")))
    assert isinstance(restored, StoredObject)
    assert (restored.type_name, dict(restored)) == ("shop.bbbbb.Inner", {"a": 1})


CHANGED: dict[str, tuple[str, str, str]] = {
    "a flag": ("class X(enum.Flag): A = 1; B = 2", "X.A | X.B", "class X(enum.Enum): A = 1; B = 2"),
    "a text": ("class X(str): pass", "X('a')", "class X(str, enum.Enum): A = 'a'"),
    "a number": ("class X(int): pass", "X(5)", "class X(enum.IntFlag): A = 1"),
    "a tuple": ("class X(tuple): pass", "X([1])", "X = collections.namedtuple('X', 'a b')"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_value_that_its_class_cannot_have_any_more_is_kept_as_it_was_stored(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a flag there was None."""
    before, value, after = CHANGED[name]
    shop = types.ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", shop)
    vars(shop).update(enum=enum, collections=collections)
    exec(before, vars(shop))
    stored = SafeSerializer().dumps_typed(eval(value, vars(shop)))
    exec(after, vars(shop))
    restored = SafeSerializer().loads_typed(stored)
    assert isinstance(restored, StoredObject)
    assert SafeSerializer().dumps_typed(restored) == stored


def test_a_class_is_known_again_after_one_of_its_name_is_gone() -> None:
    def made() -> Any:
        class Local(Exception):  # of exceptions, least is remembered
            pass

        return Local

    old, newer, newest = made(), made(), made()
    stored = SERDE.dumps_typed([old(1)])
    SafeSerializer().dumps_typed([newer(1)])
    SafeSerializer().dumps_typed([newest(1)])
    assert type(SafeSerializer().loads_typed(stored)[0]) is newest
    contents._layout_of.cache_clear()
    object_values.fits.cache_clear()
    del newest
    gc.collect()
    assert type(SafeSerializer().loads_typed(stored)[0]) is newer


class Registry(type):
    def __len__(cls) -> int:
        return 0


@dataclasses.dataclass
class Registered(metaclass=Registry):
    a: int


class Of(pydantic.BaseModel, Generic[T]):
    a: T


def test_a_class_may_be_false(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [Registered(1), Of[Registered](a=Registered(1)), Of[list[Registered]](a=[])]
    stored = SERDE.dumps_typed(values)
    monkeypatch.setattr(type_names, "_seen", WeakValueDictionary())
    assert SafeSerializer().loads_typed(stored) == values


# Fields where a base class computes something


class Base:
    @cached_property
    def total(self) -> int:
        return 1


@dataclasses.dataclass
class AsDataclass(Base):
    total: int  # type: ignore[assignment]


@attrs.define(slots=False)
class AsAttrs(Base):
    total: int  # type: ignore[assignment]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Pydantic says that it is there already

    class AsModel(Base, pydantic.BaseModel):
        total: int  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [AsDataclass, AsAttrs, AsModel])
def test_a_field_may_stand_where_a_base_computes_something(kind: Any) -> None:
    assert back(kind(total=5)).total == 5


# Attributes


def with_note(value: Any) -> Any:
    value.note = (1,)
    return value


@pytest.mark.parametrize("value", [Counter("aab"), OrderedDict(a=1)])
def test_attributes_beside_what_is_in_a_value_come_back(value: Any) -> None:
    restored = back(with_note(value))
    assert type(restored) is type(value)
    assert restored == value
    assert restored.note == (1,)


@dataclasses.dataclass
class Veiled:
    a: int

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        return {"a": 2}


class InSlot:
    __slots__ = ("a",)


@dataclasses.dataclass
class Twice(InSlot):
    b: int


def twice() -> Any:
    value: Any = Twice(1)
    value.a = 2
    vars(value)["a"] = 3
    return value


def of_a_tuple() -> Any:
    value: Any = ChainMap({})
    value.maps = ({},)
    return value


@dataclasses.dataclass
class Pretender:
    a: Any

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return ValueError


REFUSED: dict[str, tuple[Any, str]] = {
    "chain": (with_note(ChainMap({})), "attributes of its own"),
    "network": (with_note(ipaddress.ip_network("10.0.0.0/8")), "attributes of its own"),
    "interface": (with_note(ipaddress.ip_interface("10.0.0.1/8")), "attributes of its own"),
    "masked": (with_note(numpy.ma.array([1])), "attributes of its own"),
    "maps of a tuple": (of_a_tuple(), "no list"),
    "slot and attribute": (twice(), "two attributes"),
    "veiled": (Veiled(1), "says itself"),
    "no exception": (Pretender(object()), "builtins.object"),
    "view of a class": (types.MappingProxyType(collections.UserDict()), "UserDict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_something_is_refused(name: str) -> None:
    value, reason = REFUSED[name]
    with pytest.raises(NotStorable, match=reason):
        SERDE.dumps_typed([value])


def test_an_exception_is_stored_whatever_it_says_of_its_attributes() -> None:
    kind: Any = type("E", (Exception,), {"__dict__": property(lambda _: 1 / 0)})
    assert back(kind(1)).args == (1,)


class Custom(pydantic_core.PydanticCustomError):
    pass


def with_args(error: Exception, *args: Any) -> Exception:
    error.args = args
    return error


@pytest.mark.parametrize(
    "error",
    [
        pydantic_core.PydanticSerializationError("no"),
        pydantic_core.PydanticKnownError("greater_than", {"gt": 1}),
        Custom("kind", "not {a}", {"a": 1}),
        with_args(OSError(2, "no"), "at", "no", "more"),
        with_args(FileNotFoundError(2, "no", "f"), "at"),
        with_args(SyntaxError("no", ("f", 1, 2, "t")), "at", 5),
    ],
    ids=repr,
)
def test_an_exception_says_what_it_said(error: Exception) -> None:
    restored = back(error)
    assert type(restored) is type(error)
    assert (restored.args, str(restored)) == (error.args, str(error))


@pytest.mark.parametrize("inner", [OrderedDict(a=1), defaultdict(list, a=1), ChainMap({"a": 1})])
def test_a_view_is_of_a_mapping_of_its_type(inner: Any) -> None:
    view = types.MappingProxyType(inner)
    assert repr(back(view)) == repr(view)


def test_a_snapshot_may_be_of_bytes() -> None:
    assert back(DeltaSnapshot(b"\x81")) == DeltaSnapshot(b"\x81")


def test_times_are_pythons_own_while_a_test_stops_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, day = datetime.datetime, datetime.date

    class Stopped(real):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return real.__new__(cls, *args, **kwargs)

    class StoppedDay(day):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return day.__new__(cls, *args, **kwargs)

    values = [
        real(2024, 1, 2, fold=1),
        day(2024, 1, 2),
        Stopped(2024, 1, 2),
        StoppedDay(2024, 1, 2),
    ]
    monkeypatch.setattr(datetime, "datetime", Stopped)
    monkeypatch.setattr(datetime, "date", StoppedDay)
    assert is_same(back(values), values)


class Opaque:
    pass


class Ending(io.BytesIO):
    pass


class Member(Enum):
    A = 1


def of_another_name() -> Any:
    value: Any = object.__new__(Member)
    value._name_, value._value_ = "A", 2
    return value


@pytest.mark.parametrize("value", [Ending(b"a"), of_another_name()], ids=["ending", "no member"])
def test_what_is_more_than_its_attributes_is_refused(value: Any) -> None:
    with pytest.raises(NotStorable):
        SafeSerializer([Ending]).dumps_typed([value])


class Names(str, Enum):
    OPAQUE = "opaque"


def test_the_name_of_a_codec_is_text() -> None:
    def serde(name: str) -> SafeSerializer:
        return SafeSerializer(types=[TypeCodec(Opaque, name, vars, lambda _: Opaque())])

    stored = serde(Names.OPAQUE).dumps_typed([Opaque()])
    assert stored == serde("opaque").dumps_typed([Opaque()])


def test_a_codec_may_add_to_what_it_is_in() -> None:
    whole: list[Any] = [{1: 2}, Opaque()]

    def encode(_: Opaque) -> None:
        assert len(whole) < 100
        whole.append(Opaque())

    serde = SafeSerializer(types=[TypeCodec(Opaque, "opaque", encode, lambda _: Opaque())])
    assert len(serde.loads_typed(serde.dumps_typed(whole))) < len(whole)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_a_codec_may_raise_what_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> Any:
        raise Mute

    codec = TypeCodec(Opaque, "opaque", fail, fail)
    with SqliteSaver(tmp_path / "values.db", types=[codec]) as saver:
        with pytest.raises(NotStorable) as refused:
            put(saver, {"c": [Opaque()]})
        assert refused.value.path == "[0]"

    stored = SafeSerializer(types=[dataclasses.replace(codec, encode=vars)]).dumps_typed(Opaque())
    assert type(SafeSerializer(types=[codec]).loads_typed(stored)) is StoredObject
    with pytest.raises(UnreadableValue, match="opaque could not be restored"):
        SafeSerializer(types=[codec], unknown="raise").loads_typed(stored)
    assert "a StoredObject: ?" in caplog.text


# Where what cannot be stored is


class Pairs(dict):  # type: ignore[type-arg]
    pass


class Zone(datetime.tzinfo):
    def utcoffset(self, _: Any) -> datetime.timedelta:
        return datetime.timedelta(0)


BAD = object()
PATHS: dict[str, Any] = {
    "[1]": deque([1, BAD]),
    "['a'][0]": Counter(a=[BAD]),  # type: ignore[list-item]
    "['b']": OrderedDict(a=1, b=BAD),
    "['c']": defaultdict(list, {"c": BAD}),  # type: ignore[dict-item]
    "['d']": Pairs(d=BAD),
    ".maps[1]['e']": ChainMap({}, {"e": BAD}),
    ".stop": slice(BAD),
    ".x": types.SimpleNamespace(x=BAD),
    ".tzinfo": datetime.datetime(2024, 1, 1, tzinfo=Zone()),
    ".tz": pandas.Timestamp("2024-01-01", tz=Zone()),
    "[0]": numpy.ma.array([BAD], dtype=object),
    "[(1,)]": {(1,): BAD},
    ".keys()": {(1,): 1, Opaque(): 2},
    "": [Opaque()],
}


@pytest.mark.parametrize("path", PATHS)
def test_the_path_leads_into_values_of_pythons_own(path: str) -> None:
    def serialize(_: Opaque) -> Any:
        return SERDE.dumps_typed(BAD)

    serde = (
        SafeSerializer(types=[TypeCodec(Opaque, "opaque", serialize, str)]) if not path else SERDE
    )
    with pytest.raises(NotStorable) as refused:
        serde.dumps_typed({"k": PATHS[path]})
    assert refused.value.path == (f"['k']{path}" if path else "['k'][0]")
