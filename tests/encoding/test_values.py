"""What was put comes back as it was, or the put says no; and no thread is ever stuck."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import os
import pickle
import re
import socket
import subprocess
import sys
import time
import uuid
import zoneinfo
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import attrs
import dateutil.tz
import numpy
import ormsgpack
import pandas
import pydantic
import pytest
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checking import config, drawn, encrypted_serde, put, value_of
from forkpoint import (
    InvalidInput,
    NotStorable,
    SafeSerializer,
    SqliteSaver,
    StoredObject,
    TypeCodec,
    UnreadableValue,
)
from forkpoint.caches import CacheBudget
from forkpoint.encoding.message_cache import MessageMemo
from forkpoint.encoding.serializer import packer_of
from forkpoint.saver.saver import ForkpointSaver
from stores import Store
from value_types import (
    PARIS,
    VALUES,
    Base,
    Box,
    Derived,
    Holder,
    Label,
    Level,
    Old,
    Order,
    Part,
    Phase,
    Point,
    Price,
    is_same,
)

SERDE = SafeSerializer()


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_was(name: str) -> None:
    for value in (VALUES[name], [VALUES[name]], {"k": VALUES[name]}, (VALUES[name],)):
        stored = SERDE.dumps_typed(value)
        restored = SERDE.loads_typed(stored)
        assert is_same(restored, value), restored
        assert SERDE.dumps_typed(restored) == stored


@pytest.mark.in_turns
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_values_come_back_from_a_store(is_encrypted: bool, store: Store) -> None:
    serde = encrypted_serde()
    values = {**VALUES, "all": list(VALUES.values()), "mapped": dict(VALUES)}
    with store.saver(serde=serde) if is_encrypted else store.saver() as saver:
        head = put(saver, values)
        saver.put_writes(head, list(values.items()), "task")
    with store.saver(serde=serde) if is_encrypted else store.saver() as saver:
        found = saver.get_tuple(config())
    assert found is not None
    restored = found.checkpoint["channel_values"]
    written = {channel: value for _, channel, value in found.pending_writes or ()}
    for name, value in values.items():
        assert is_same(restored[name], value), name
        assert is_same(written[name], value), name


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.binary().map(bytearray)
    | st.datetimes(timezones=st.none() | st.just(PARIS) | st.just(datetime.timezone.utc))
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.sampled_from([Level.LOW, Phase.FIRST, Order.Status.OPEN])
)
HASHABLE = st.recursive(
    SCALARS.filter(lambda value: not isinstance(value, bytearray)),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
LONGS = st.integers(-(2**63), 2**63 - 1)
ANY = st.recursive(
    SCALARS | HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
        | st.lists(inner, max_size=3).map(lambda each: collections.deque(each, maxlen=5))
        | st.builds(Point, st.integers(), inner)
        | st.builds(Part, st.integers(), st.lists(st.text(max_size=3), max_size=2))
        | st.builds(lambda x, y: Holder(base=Derived(x=x, y=y)), st.integers(), st.integers())
        | st.builds(lambda content: Box(content=content), inner)
        | st.builds(lambda text: Old(name=text), st.text(max_size=3))
        | st.builds(lambda numbers: numpy.array(numbers, "i8"), st.lists(LONGS, max_size=3))
        | st.builds(ValueError, st.text(max_size=3), st.tuples(st.integers()))
        | st.builds(lambda parts: Price(1.0, parts=parts), st.lists(inner, max_size=2))
        | st.builds(
            lambda text, extra: AIMessage(text, additional_kwargs={"k": extra}), st.text(), inner
        )
    ),
    max_leaves=12,
)


@drawn(60, 10_000, ANY)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    for saved in (value, [value], {"k": value}):
        stored = SERDE.dumps_typed(saved)
        restored = SERDE.loads_typed(stored)
        assert is_same(restored, saved)
        assert SERDE.dumps_typed(restored) == stored


@pytest.fixture
def any_saver(store: Store, request: pytest.FixtureRequest) -> Any:
    """A saver whose parameter says whether it encrypts."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"k" * 16) if request.param else None
    with store.saver(serde=serde) as saver:
        yield saver


@pytest.mark.in_turns
@pytest.mark.parametrize("any_saver", [False, True], ids=["plain", "encrypted"], indirect=True)
@drawn(5, 10_000, st.lists(ANY, min_size=1, max_size=4))
def test_any_value_comes_back_from_a_store(any_saver: ForkpointSaver, values: list[Any]) -> None:
    thread_id = str(uuid.uuid4())
    channels = {f"c{at}": value for at, value in enumerate([*values, values])}
    head = put(any_saver, channels, thread_id=thread_id)
    any_saver.put_writes(head, list(channels.items()), "task")

    found = any_saver.get_tuple(config(thread_id))
    assert found is not None
    assert is_same(value_of(found), channels)
    assert is_same({channel: value for _, channel, value in found.pending_writes or ()}, channels)


def test_a_restored_class_runs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = SERDE.dumps_typed([VALUES["dataclass"], VALUES["aliases"]])

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("was run")

    for kind in (Price, type(VALUES["aliases"])):
        for name in ("__init__", "__post_init__", "__setattr__"):
            monkeypatch.setattr(kind, name, fail, raising=False)
    assert len(SERDE.loads_typed(stored)) == 2


def test_a_field_that_is_new_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def versions() -> Any:
        @dataclasses.dataclass
        class Row:
            a: int

        old = Row

        @dataclasses.dataclass
        class Row:  # type: ignore[no-redef]
            a: int
            d: int = dataclasses.field(kw_only=True)
            b: list[int] = dataclasses.field(default_factory=lambda: [1])
            c: str = "c"

        return old, Row

    old, new = versions()
    stored = SERDE.dumps_typed(old(1))
    SERDE.dumps_typed(new(1, d=4))  # from now on, this is what the name means

    loaded = SERDE.loads_typed(stored)
    assert (type(loaded), loaded.a, loaded.b, loaded.c) == (new, 1, [1], "c")
    assert not hasattr(loaded, "d")  # which has no default


def test_a_class_that_is_made_again_is_the_one_that_is_read() -> None:
    """In a notebook, say, whose cell runs twice."""

    def made() -> Any:
        class Row(pydantic.BaseModel):
            a: int

        return Row

    old, new = made(), made()
    stored = SERDE.dumps_typed(old(a=1))
    assert type(SERDE.loads_typed(stored)) is old
    SERDE.dumps_typed(new(a=1))
    assert type(SERDE.loads_typed(stored)) is new


def test_new_fields_of_any_kind_of_class_have_their_defaults() -> None:
    def versions(*new: str) -> list[Any]:
        options = {name: attrs.field(default=5) for name in new}
        return [
            collections.namedtuple("Named", ["a", *new], defaults=[5] * len(new)),
            dataclasses.make_dataclass(
                "Slots", ["a", *[(name, int, 5) for name in new]], slots=True
            ),
            attrs.make_class("Attrs", {"a": attrs.field(), **options}),
        ]

    for old, new in zip(versions(), versions("b"), strict=True):
        stored = SERDE.dumps_typed(old(1))
        SERDE.dumps_typed(new(1))
        assert is_same(SERDE.loads_typed(stored), new(1, 5)), old


def test_a_hash_that_was_kept_is_not_stored() -> None:
    """It would be that of another process."""
    label = Label("t")
    hash(label)

    (restored,) = SERDE.loads_typed(SERDE.dumps_typed([label]))
    assert vars(Label)["_attrs_cached_hash"].__get__(restored) is None
    assert hash(restored) == hash(label)


# What cannot be stored

GAPS = {"names": ["a"], "formats": ["i4"], "offsets": [4], "itemsize": 16}


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ([{"a": (1, object())}], "[0]['a'][1]", "builtins.object"),
        ({1: [lambda: 1]}, "[1][0]", "builtins.function"),
        ({10**5000: print}, "[a value of type int]", "builtin_function"),
        (
            AIMessage("x", additional_kwargs={"q": [socket.socket]}),
            ".additional_kwargs['q'][0]",
            "",
        ),
        (collections.defaultdict(lambda: 1), "", "default_factory"),
        ([Point(1, {2: object})], "[0][1][2]", "builtins.type"),
        ({"s": {1, (3, print)}}, "['s']{...}[1]", "builtin_function"),
        ([time.gmtime(0)], "[0]", "time.struct_time could not be restored"),
        ([numpy.zeros(1, GAPS)], "[0]", "has the dtype"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path(
    value: Any, path: str, reason: str, saver_of_a_file: ForkpointSaver
) -> None:
    with pytest.raises(NotStorable) as refused:
        put(saver_of_a_file, {"n": 1, "c": value})
    assert refused.value.path == path
    assert reason in refused.value.reason
    assert str(refused.value).startswith(f"channel c{path} cannot be stored: ")
    assert "TypeCodec" in str(refused.value)
    assert saver_of_a_file.get_tuple(config()) is None

    head = put(saver_of_a_file, {"n": 1})
    with pytest.raises(NotStorable, match="the write to channel c"):
        saver_of_a_file.put_writes(head, [("n", 2), ("c", value)], "task")
    found = saver_of_a_file.get_tuple(config())
    assert found is not None
    assert not found.pending_writes


@pytest.fixture
def saver_of_a_file(tmp_path: Path) -> Any:
    with SqliteSaver(tmp_path / "values.db") as saver:
        yield saver


def test_the_path_is_that_of_the_whole_value(saver_of_a_file: ForkpointSaver) -> None:
    """Also where a list is serialized element by element."""
    messages: list[Any] = [AIMessage(f"{n}" * 500) for n in range(20)]
    messages[17].tool_calls.append({"name": "f", "args": {"n": object()}, "id": "1"})

    with pytest.raises(
        NotStorable, match=r"channel messages\[17\]\.tool_calls\[0\]\['args'\]\['n'\]"
    ):
        put(saver_of_a_file, {"messages": messages})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: (value,),
        lambda value: ([value],),
        lambda value: {1: value},
        lambda value: Part(1, [{"below": value}]),
        lambda value: frozenset({value}),
    ],
)
def test_what_is_nested_deep_comes_back(wrap: Any) -> None:
    deep: Any = 1
    for _ in range(210):
        deep = wrap(deep)
    assert SERDE.loads_typed(SERDE.dumps_typed(deep)) == deep


def within(calls: int, function: Callable[[Any], Any], argument: Any) -> Any:
    """Return what a function returns that is called within so many other calls."""
    return within(calls - 1, function, argument) if calls else function(argument)


def test_what_is_large_and_deep_is_read_wherever_it_was_stored() -> None:
    deep: Any = "x" * 70_000
    for _ in range(240):
        deep = (deep,)
    stored = within(250, SERDE.dumps_typed, deep)
    assert within(250, SERDE.loads_typed, stored) == deep


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,)])
def test_what_is_nested_too_deep_is_refused(wrap: Any) -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(300):
        deep = wrap(deep)

    for value in (endless, deep):
        with pytest.raises(NotStorable, match="nested"):
            SERDE.dumps_typed(value)


def test_an_exception_is_stored_whatever_it_holds() -> None:
    error = ValueError("text", object(), socket.socket)
    error.note = print  # type: ignore[attr-defined]

    restored = SERDE.loads_typed(SERDE.dumps_typed(error))
    assert type(restored) is ValueError
    assert restored.args[0] == "text"
    assert restored.args[2] == repr(socket.socket)
    assert restored.note == repr(print)


def test_an_exception_may_hold_itself() -> None:
    error = ValueError(1)
    error.args = (error, [error, {"e": KeyError(print)}])

    first, (second, third) = SERDE.loads_typed(SERDE.dumps_typed(error)).args
    assert first == second == repr(error)
    assert third["e"].args == (repr(print),)


# What is not known


@pytest.mark.in_turns
def test_a_process_without_the_types_reads_and_writes_them_back(store: Store) -> None:
    values = {**VALUES, "list": [Base(x=1), Derived(x=1, y=2)] * 30}
    with store.saver() as saver:
        put(saver, values)
    script = f"""
import sys
{store.script}
one = {{"configurable": {{"thread_id": "thread", "checkpoint_ns": ""}}}}
found = saver.get_tuple(one)
values = found.checkpoint["channel_values"]
assert "value_types" not in sys.modules
assert values["dataclass"].type_name == "value_types.Price", values["dataclass"]
assert values["dataclass"]["amount"] == 150.0
assert values["functional enum"].value == "B"
assert values["list"][1] == values["list"][3] != values["list"][0]
saver.fork("thread", new_thread_id="fork")
saver.copy_thread("thread", "copy")
print(saver.diff("thread", "fork"))
from langgraph.checkpoint.base import empty_checkpoint
again = {{**found.checkpoint, "id": empty_checkpoint()["id"]}}
saver.put({{"configurable": {{"thread_id": "again", "checkpoint_ns": ""}}}}, again, {{}}, {{}})
"""
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if not path.endswith("tests")),
        },
        cwd="/",
    )
    with store.saver() as saver:
        for thread_id in ("thread", "fork", "copy", "again"):
            found = saver.get_tuple(config(thread_id))
            assert found is not None
            for name, value in values.items():
                assert is_same(found.checkpoint["channel_values"][name], value), (thread_id, name)


def stranger(value: Any) -> Any:
    """Return what a value comes back as where its type is not known."""
    kind, content = SERDE.dumps_typed(value)
    return SERDE.loads_typed((kind, content.replace(b"value_types", b"value_typez")))


def test_a_stored_object_is_a_mapping_that_cannot_be_changed() -> None:
    stored = stranger(Derived(x=1, y=2))

    assert isinstance(stored, StoredObject)
    assert dict(stored) == {"x": 1, "y": 2}
    assert stored == stranger(Derived(x=1, y=2)) != stranger(Base(x=1))
    assert hash(stored) == hash(stranger(Derived(x=1, y=2)))
    assert "value_typez.Derived" in repr(stored)
    with pytest.raises(TypeError, match="cannot be changed"):
        stored["x"] = 2
    with pytest.raises(TypeError, match="cannot be changed"):
        stored.update(x=2)
    assert Derived.model_validate(stored) == Derived(x=1, y=2)  # as a schema of Pydantic takes it
    for same in (copy.copy(stored), copy.deepcopy(stored), pickle.loads(pickle.dumps(stored))):
        assert type(same) is StoredObject
        assert (same, dict(same), same.type_name) == (stored, dict(stored), stored.type_name)


def test_an_unknown_type_can_be_an_error_instead() -> None:
    kind, content = SERDE.dumps_typed([Base(x=1)])
    content = content.replace(b"value_types", b"value_typez")

    with pytest.raises(UnreadableValue, match=r"value_typez\.Base"):
        SafeSerializer(unknown="raise").loads_typed((kind, content))


def test_it_is_said_once_for_a_type_that_it_is_not_known(caplog: pytest.LogCaptureFixture) -> None:
    serde = SafeSerializer()
    kind, content = serde.dumps_typed([Base(x=1), Base(x=2)])
    for _ in range(3):
        serde.loads_typed((kind, content.replace(b"value_types", b"value_typez")))

    (record,) = caplog.records
    assert "with_allowlist" in record.getMessage()


# Types of users


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.cents == other.cents

    __hash__ = None  # type: ignore[assignment]


MONEY = TypeCodec(Money, "shop.Money", lambda value: value.cents, Money)


@pytest.mark.in_turns
def test_a_codec_stores_what_is_not_known(store: Store) -> None:
    with store.saver(types=[MONEY]) as saver:
        put(saver, {"c": [Money(5), {"m": Money(6)}]})
        found = saver.get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"]["c"] == [Money(5), {"m": Money(6)}]
    with store.saver() as saver:
        strange = saver.get_tuple(config())
    assert strange is not None
    stored = strange.checkpoint["channel_values"]["c"][0]
    assert (stored.type_name, stored.value) == ("shop.Money", 5)


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        (Base, Base(x=1)),
        ((Derived, lambda fields: {**fields, "y": fields["x"] + 1}), Derived(x=1, y=2)),
    ],
)
def test_an_alias_is_what_a_stored_name_means_now(alias: Any, expected: Any) -> None:
    kind, content = SERDE.dumps_typed([Base(x=1)])
    content = content.replace(b"value_types", b"value_typez")
    serde = SafeSerializer(types=[{("value_typez", "Base"): alias}])

    assert is_same(serde.loads_typed((kind, content)), [expected])


def test_an_alias_counts_within_generics_and_for_named_tuples() -> None:
    kind, content = SERDE.dumps_typed([Box[Base](content=Base(x=1)), Point(1, 2)])
    content = content.replace(b"value_types", b"value_typez")
    serde = SafeSerializer(
        types=[
            {("value_typez", "Box"): Box, ("value_typez", "Base"): Base},
            {("value_typez", "Point"): (Point, lambda fields: {**fields, "y": 5})},
        ]
    )
    assert is_same(serde.loads_typed((kind, content)), [Box[Base](content=Base(x=1)), Point(1, 5)])


def test_an_enum_has_no_fields_for_an_alias_to_change() -> None:
    kind, content = SERDE.dumps_typed([Phase.FIRST])
    content = content.replace(b"value_types", b"value_typez")
    serde = SafeSerializer(types=[{("value_typez", "Phase"): (Phase, dict)}])

    assert type(serde.loads_typed((kind, content))[0]) is StoredObject


@pytest.mark.parametrize(
    "options",
    [
        {"allowed": 5},
        {"allowed": ["Order"]},
        {"allowed": [("a", 1)]},
        {"allowed": [()]},
        {"types": 5},
        {"types": MONEY},
        {"types": [Money]},
        {"types": [{"Order": Base}]},
        {"types": [{("a", "B"): "Base"}]},
        {"types": [TypeCodec(Money, "m", 1, Money)]},  # type: ignore[arg-type]
        {"types": [TypeCodec(tuple, "m", list, tuple)]},
        {"types": [MONEY, TypeCodec(int, MONEY.name, str, int)]},
        {"types": [MONEY, TypeCodec(Order, MONEY.name, str, Order)]},
        {"unknown": "x"},
    ],
    ids=lambda options: " ".join(options),
)
def test_what_is_said_of_types_is_checked(options: Any) -> None:
    with pytest.raises(InvalidInput):
        SafeSerializer(**options)
    with pytest.raises(InvalidInput):
        SafeSerializer().with_msgpack_allowlist([5])  # type: ignore[list-item]


def test_what_is_encrypted_is_what_the_default_serializer_writes(tmp_path: Path) -> None:
    obvious = EncryptedSerializer.from_pycryptodome_aes(key=b"k" * 16)
    chosen = EncryptedSerializer.from_pycryptodome_aes(JsonPlusSerializer(), key=b"k" * 16)
    for serde, types, expected in ((obvious, [MONEY], [(1,), Money(5)]), (chosen, [], [[1], 5])):
        with SqliteSaver(tmp_path / "x.db", serde=serde, types=types) as saver:
            put(saver, {"c": [(1,), expected[1]]})
            assert value_of(saver.get_tuple(config()))["c"] == expected
    with pytest.raises(InvalidInput, match="types"):
        SqliteSaver(tmp_path / "x.db", serde=chosen, types=[MONEY])


def test_a_codec_may_take_a_message(tmp_path: Path) -> None:
    def encode(value: Any) -> Any:
        if not value.content:
            raise ValueError("is empty")
        return value.content

    codec = TypeCodec(HumanMessage, "quiet", encode, HumanMessage)
    messages: list[Any] = [HumanMessage(str(n) * 900) for n in range(9)]
    with SqliteSaver(tmp_path / "x.db", types=[codec]) as saver:
        put(saver, {"c": messages})
        assert value_of(saver.get_tuple(config()))["c"] == messages
        with pytest.raises(NotStorable, match="is empty") as caught:
            put(saver, {"c": [*messages, HumanMessage("")]})
    assert caught.value.path == "[9]"


def raising(error: BaseException) -> Any:
    def fail(_: Any) -> Any:
        raise error

    return fail


def test_what_a_codec_raises_says_what_it_is() -> None:
    """A codec may end as badly as any other code, and Ctrl-C may come while it runs."""
    written = SafeSerializer(types=[MONEY]).dumps_typed([Money(5)])
    inner = NotStorable("", "is no money")
    for error, encoded, decoded in (
        (KeyboardInterrupt(), KeyboardInterrupt, KeyboardInterrupt),
        (RecursionError("deep"), NotStorable, UnreadableValue),
        (inner, NotStorable, UnreadableValue),
    ):
        failing = TypeCodec(Money, "shop.Money", raising(error), raising(error))
        serde = SafeSerializer(types=[failing], unknown="raise")
        with pytest.raises(encoded):
            serde.dumps_typed([Money(5)])
        with pytest.raises(decoded):
            serde.loads_typed(written)
        assert serde.loads_typed(serde.dumps_typed([1])) == [1]


def test_types_belong_to_the_default_serializer(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="types"):
        SqliteSaver(tmp_path / "x.db", serde=SafeSerializer(), types=[MONEY])


# Forged


def forged(code: int, content: Any) -> tuple[str, bytes]:
    return "msgpack", ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(content)))


def nested_name(depth: int) -> list[Any]:
    """Return the name of a generic within generics."""
    name: list[Any] = ["builtins", "int"]
    for _ in range(depth):
        name = ["value_types", "Box", [name]]
    return name


NETWORK = ormsgpack.Ext(32, ormsgpack.packb(["ipv4network", "0.0.0.0/0"]))
FORGED = {
    "set of a network": (34, NETWORK),
    "tuple of a network": (33, NETWORK),
    "deque of a network": (32, ["deque", [None, NETWORK]]),
    "counter of a network": (32, ["counter", NETWORK]),
    "bytes by number": (32, ["bytearray", 10**12]),
    "unknown value": (32, ["os.system", "x"]),
    "factory": (32, ["defaultdict", ["eval", []]]),
    "unknown kind": (40, ["call", ["os", "system"], "x"]),
    "no name": (40, ["dataclass", "os.system", {}]),
    "function": (40, ["dataclass", ["os", "system"], {}]),
    "not data": (40, ["dataclass", ["subprocess", "Popen"], {"pid": 1}]),
    "module": (40, ["dataclass", ["os", "path"], {}]),
    "wrong kind": (40, ["enum", ["value_types", "Base"], "x"]),
    "attributes": (40, ["dataclass", ["value_types", "Price"], [1]]),
    "array": (39, ["ndarray", "O", [10**9], "C", True, [1]]),
    "array size": (39, ["ndarray", "i8", [10**9], "C", True, b""]),
    "fraction": (32, ["fraction", ["1e999999999", 1]]),
    "printing pattern": (32, ["pattern", ["a" * 100, int(re.DEBUG)]]),
    "namespace": (32, ["namespace", [["a", 1]]]),
    "long dtype": (39, ["ndarray", "i4," * 10**5, [0], "C", True, b""]),
    "fields of objects": (39, ["ndarray", [["a", "O"]], [1], "C", True, b"12345678"]),
    "nested dtype": (39, ["ndarray", [["a", [["b", [["c", 5]]]]]], [1], "C", True, b""]),
    "bits": (40, ["pydantic", ["value_types", "Base"], {"x": 1}, 2**63, None, None]),
    "private": (40, ["pydantic", ["value_types", "Base"], {"x": 1}, 1, None, [1]]),
    "wide generic": (
        40,
        ["pydantic", ["value_types", "Box", [["builtins", "int"]] * 99], {}, 0, None, None],
    ),
    "deep generic": (40, ["pydantic", nested_name(20), {"content": 1}, 0, None, None]),
    "function of typing": (
        40,
        ["pydantic", ["value_types", "Box", [["typing", "cast", []]]], {}, 0, None, None],
    ),
    "flag": (40, ["enum", ["value_types", "Right"], ["READ"], 2**60]),
    "validation": (
        40,
        ["validation", ["value_types", "Base"], ["t", [{"type": "x"}], "python", 0]],
    ),
    "generic": (40, ["pydantic", ["value_types", "Box", [["os", "system"]]], {}, 0, None, None]),
    "generic of nothing": (
        40,
        [
            "pydantic",
            ["value_types", "Box", [["typing", "List", [["no", "X"]]]]],
            {},
            0,
            None,
            None,
        ],
    ),
    "scalar of other bytes": (39, ["scalar", "i8", b"1"]),
    "items of other bytes": (32, ["array", ["i", 8, b"12345678"]]),
    "names that are numbers": (40, ["dataclass", [1, 2], {}]),
    "too few elements": (
        40,
        ["namedtuple", ["value_types", "Point"], [1], {"_fields": ["x", "y"]}],
    ),
    "other elements": (40, ["namedtuple", ["value_types", "Point"], [1], {"_fields": ["z"]}]),
    "other base": (40, ["subclass", ["value_types", "Text"], "int", 5, {}]),
    "no such attribute": (40, ["attrs", ["value_types", "Part"], {"size": 1, "other": 2}]),
    "no such module": (
        40,
        ["pydantic", ["langchain_core.messages.none", "X"], {}, 0, None, None],
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_forged_does_nothing_and_takes_nothing(name: str) -> None:
    with pytest.raises(UnreadableValue):
        SafeSerializer(unknown="raise").loads_typed(forged(*FORGED[name]))
    try:
        restored = SERDE.loads_typed(forged(*FORGED[name]))
    except UnreadableValue:
        return
    assert isinstance(restored, StoredObject)


def test_a_depth_that_nobody_writes_is_an_error() -> None:
    """Even where Python would go on until its memory ends."""
    content = b"\xc0"
    for _ in range(20_000):
        content = ormsgpack.packb(ormsgpack.Ext(33, b"\x91" + content))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        with pytest.raises(UnreadableValue, match="deep"):
            SERDE.loads_typed(("msgpack", content))
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("wrap", [lambda value: (value,), lambda value: {1: (value,)}, ValueError])
def test_what_would_be_held_many_times_is_refused(
    wrap: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object that another stands in is held in memory beside it."""
    monkeypatch.setattr("forkpoint.encoding.contents.HELD_BYTES", 10**6)
    value: Any = "x" * 10**5
    for _ in range(55):
        value = (value,)
    stored = SERDE.dumps_typed([value, value])
    assert SERDE.loads_typed(stored) == [value, value]
    assert SERDE.dumps_typed([wrap(value), (0,)])

    for _ in range(10):
        value = (value,)
    with pytest.raises(NotStorable, match="too large"):
        SERDE.dumps_typed({"k": wrap(value)})
    assert SERDE.dumps_typed([1, {"a": (2,)}])  # and what is no larger than usual is stored


def test_objects_in_a_chain_are_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were stored, and never read again."""
    monkeypatch.setattr("forkpoint.encoding.contents.HELD_BYTES", 10**6)
    chain: Any = None
    for _ in range(30):
        chain = Point(chain, "x" * 10**5)
    assert SERDE.loads_typed(SERDE.dumps_typed(chain)) == chain


def test_what_is_forged_to_be_held_many_times_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    value: Any = "x" * 10**5
    for _ in range(100):
        value = (value,)
    stored = SERDE.dumps_typed(value)
    monkeypatch.setattr("forkpoint.encoding.contents.HELD_BYTES", 10**6)
    with pytest.raises(UnreadableValue, match="too large"):
        SERDE.loads_typed(stored)


def test_rows_have_so_many_classes_made_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkpoint.encoding.serializer._TYPES_MAX", 0)

    name = ["value_types", "Box", [["value_types", "Holder"]]]
    packed = ormsgpack.packb(["pydantic", name, {"content": 1}, 1, None, None])
    stored = ("msgpack", ormsgpack.packb(ormsgpack.Ext(40, packed)))
    serde = SafeSerializer()
    assert isinstance(serde.loads_typed(stored), StoredObject)
    own = Box[tuple[Holder, ...]](content=())
    assert type(serde.loads_typed(serde.dumps_typed(own))) is type(own)


def test_types_that_are_made_by_the_request_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkpoint.encoding.serializer._REMEMBERED_MAX", 10)
    serde = SafeSerializer()
    for number in range(30):
        kind = dataclasses.make_dataclass(f"Made{number}", ["a"])
        assert serde.loads_typed(serde.dumps_typed(kind(1))) == kind(1)
    assert len(serde._permitted) <= 10

    monkeypatch.setattr("forkpoint.encoding.message_cache.TYPES_MAX", 10)
    knows = MessageMemo(CacheBudget()).knows
    assert not any(knows[type(f"Made{number}", (), {})] for number in range(30))
    assert len(knows) <= 10


def test_zones_go_on_to_change_their_clocks() -> None:
    before = datetime.datetime(2024, 10, 26, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"))

    restored = SERDE.loads_typed(SERDE.dumps_typed(before))
    assert (restored + datetime.timedelta(days=1)).utcoffset() == datetime.timedelta(hours=1)


def test_what_only_a_library_has_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [pandas.NaT, numpy.ma.masked, datetime.time(1, tzinfo=dateutil.tz.UTC)]
    stored = SERDE.dumps_typed(values)
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "pandas")
        without.setitem(sys.modules, "dateutil.tz.tz", None)
        strange, known, time = SERDE.loads_typed(stored)
        assert (strange.type_name, known, time.type_name) == ("nat", numpy.ma.masked, "time")
        assert SERDE.dumps_typed([strange, known, time]) == stored
    assert SERDE.loads_typed(stored) == values


def test_a_program_may_make_types_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkpoint.encoding.packing._KNOWN_TYPES", 100)
    serde = SafeSerializer()
    for n in range(200):
        made = dataclasses.make_dataclass(f"Made{n}", ["n"])
        assert serde.loads_typed(serde.dumps_typed([made(n)])) == [made(n)]
        assert len(packer_of(serde)._describers) <= 101


@pytest.mark.parametrize("module", ["numpy", "numpy.ma", "pandas"])
def test_a_library_that_another_thread_imports_at_the_moment_is_in_nobodys_way(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module is known before it has anything in it."""
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    serde = SafeSerializer()
    message = HumanMessage("text", id="1", additional_kwargs={"path": PurePosixPath("a")})
    assert serde.loads_typed(serde.dumps_typed([message])) == [message]
