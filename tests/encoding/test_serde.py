"""What a stored row names is neither imported nor called, and yet users' own types come back."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import pickle
import re
import subprocess
import sys
import zoneinfo
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Any

import numpy
import ormsgpack
import pydantic
import pytest
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.store.base import Item
from langgraph.types import Command, Interrupt, Overwrite, Send

import state_types
from checking import config, encrypted_serde, one_by_one, put
from forkpoint import NotStorable, SafeSerializer, StoredObject, TypeCodec, UnreadableValue
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.row_checksums import with_checksum
from forkpoint.storage.rows import CheckpointRow
from processes import environment
from state_types import Colour, Counted, Customer, Line, Old, Order, Outer, Plain, Point
from stores import Store

NOW = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=zoneinfo.ZoneInfo("UTC"))
OWN = [
    Order("order", [Line("one", 1), Line("two", 2)]),
    Counted("counted"),
    Colour.RED,
    Colour.BLUE,
    Point(1, 2),
    Customer(name="c", tags={"a"}, parent=Customer(name="p")),
    Old(name="old"),
    Outer.Inner(n=5),
]
KNOWN = [
    HumanMessage("hi", id="1"),
    Document("text", metadata={"a": 1}),
    Send("node", {"a": 1}),
    Interrupt(value="question", id="i"),
    Command(goto="node", update={"a": 1}),
    Overwrite(5),
    Item(value={"a": 1}, key="k", namespace=("n",), created_at=NOW, updated_at=NOW),
    NOW,
    NOW.date(),
    NOW.time(),
    datetime.timedelta(1, 2, 3),
    datetime.timezone(datetime.timedelta(hours=1), "name"),
    {1, 2},
    frozenset({1}),
    Path("a/b"),
    re.compile("a.*b", re.DOTALL),
    IPv4Address("127.0.0.1"),
    IPv6Network("::/64"),
    pydantic.SecretStr("secret"),
]


@one_by_one("value", OWN + KNOWN)
def test_types_of_the_application_and_the_framework_need_no_setting(
    value: Any, saver: ForkpointSaver
) -> None:
    stored = put(saver, {"c": value, "l": [value] * 3, "d": {"k": value}})
    saver.put_writes(stored, [("c", value)], "task")

    found = saver.get_tuple(config())
    assert found is not None
    values = found.checkpoint["channel_values"]
    assert values == {"c": value, "l": [value] * 3, "d": {"k": value}}
    assert type(values["c"]) is type(value)
    assert found.pending_writes == [("task", "c", value)]


@pytest.mark.parametrize("value", OWN + KNOWN, ids=lambda value: type(value).__name__)
def test_what_langgraph_has_stored_is_read(value: Any) -> None:
    stored = JsonPlusSerializer().dumps_typed({"a": [value]})

    assert SafeSerializer().loads_typed(stored) == {"a": [value]}


@pytest.mark.parametrize(
    "array", [numpy.arange(6).reshape(2, 3), numpy.asfortranarray(numpy.eye(3)), numpy.zeros(0)]
)
def test_arrays_come_back(array: Any, saver: ForkpointSaver) -> None:
    put(saver, {"c": array})
    found = saver.get_tuple(config())
    assert found is not None
    restored = found.checkpoint["channel_values"]["c"]
    assert restored.dtype == array.dtype
    assert numpy.array_equal(restored, array)


@pytest.mark.parametrize("writer", [SafeSerializer(), JsonPlusSerializer()], ids=["own", "theirs"])
def test_a_model_that_is_no_longer_valid_comes_back_unchecked(writer: Any) -> None:
    invalid = state_types.Strict.model_construct(n=-1)

    restored = SafeSerializer().loads_typed(writer.dumps_typed(invalid))
    assert type(restored) is state_types.Strict
    assert restored.n == -1


@dataclasses.dataclass
class Summed:
    n: int
    total: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.total = 2 * self.n


def test_a_field_that_its_constructor_does_not_take_is_read_of_what_langgraph_has_stored() -> None:
    value = Summed(1)
    value.total = 7

    assert SafeSerializer().loads_typed(JsonPlusSerializer().dumps_typed(value)).total == 7


def test_a_packet_with_a_timeout_is_read_of_what_langgraph_has_stored() -> None:
    value = Send("node", {"n": 1}, timeout=3)

    restored = SafeSerializer().loads_typed(JsonPlusSerializer().dumps_typed(value))
    assert (restored, restored.timeout) == (value, value.timeout)


def ext(code: int, *fields: Any) -> tuple[str, bytes]:
    packed = ormsgpack.packb(fields, option=ormsgpack.OPT_NON_STR_KEYS)
    return "msgpack", ormsgpack.packb(ormsgpack.Ext(code, packed))


MARK = "forkpoint-attack-mark"
ATTACKS: dict[str, tuple[str, bytes]] = {
    **{
        f"ext {code} {module}.{name}": ext(code, module, name, argument, *rest)
        for code, argument, rest in (
            (0, f"touch {MARK}", ()),
            (1, [f"touch {MARK}"], ()),
            (2, {"command": f"touch {MARK}"}, ()),
            (3, f"touch {MARK}", ("__call__",)),
            (4, {"command": f"touch {MARK}"}, ()),
            (5, {"command": f"touch {MARK}"}, ("model_validate_json",)),
        )
        for module, name in (
            ("os", "system"),
            ("posix", "system"),
            ("subprocess", "Popen"),
            ("subprocess", "run"),
            ("builtins", "eval"),
            ("builtins", "type"),
            ("state_types", "side_effect"),
            ("state_types", "Plain"),
            ("state_types", "dataclasses"),
            ("antigravity", "fly"),
            ("this", "s"),
        )
    },
    "method of a safe type": ext(3, "pathlib", "Path", MARK, "touch"),
    "method of an own type": ext(3, "state_types", "Customer", "{}", "model_validate_json"),
    "method of datetime": ext(3, "datetime", "datetime", 0, "fromtimestamp"),
    "nested": ext(0, "builtins", "set", [ormsgpack.Ext(0, ext(0, "os", "system", MARK)[1])]),
    "json constructor": (
        "json",
        json.dumps(
            {"lc": 2, "type": "constructor", "id": ["os", "system"], "args": [f"touch {MARK}"]}
        ).encode(),
    ),
    "json langchain": (
        "json",
        json.dumps(
            {"lc": 1, "type": "constructor", "id": ["langchain_core", "x"], "kwargs": {}}
        ).encode(),
    ),
    "pickle": ("pickle", pickle.dumps(Path(MARK))),
    "unknown code": ("msgpack", ormsgpack.packb(ormsgpack.Ext(99, b"x"))),
    "malformed ext": ("msgpack", ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb("x")))),
    "malformed names": ext(0, 1, 2, 3),
    "names that are numbers": ext(5, "state_types", "Customer", {1: "name"}),
    "other fields": ext(2, "uuid", "UUID", {"other": 1}),
    "fields of no model": ext(4, "uuid", "UUID", {"other": 1}),
    "malformed array": ext(6, "O", [1], "C", b"12345678"),
    "not msgpack": ("msgpack", b"\xc1"),
    "unknown type": ("yaml", b"!!python/object/apply:os.system [x]"),
}


@pytest.fixture
def no_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that nothing was run: every attack would leave a file, a call or a module."""
    monkeypatch.chdir(tmp_path)
    Plain.calls.clear()
    yield
    assert not (tmp_path / MARK).exists()
    assert not Plain.calls
    assert not {"antigravity", "this"} & sys.modules.keys()


@pytest.mark.usefixtures("no_marks")
@one_by_one("attack", ATTACKS)
def test_a_forged_value_does_nothing(attack: str) -> None:
    with pytest.raises(UnreadableValue):
        SafeSerializer(unknown="raise").loads_typed(ATTACKS[attack])
    with suppress(UnreadableValue):
        restored = SafeSerializer().loads_typed(ATTACKS[attack])
        assert isinstance(restored, StoredObject) or restored == {MARK}


@pytest.fixture
def stored(saver: ForkpointSaver) -> Any:
    return put(saver, {"c": 1})


@pytest.mark.usefixtures("no_marks")
@one_by_one("attack", ATTACKS)
def test_a_forged_row_does_nothing(
    attack: str, store: Store, saver: ForkpointSaver, stored: Any
) -> None:
    """Even by one who knows the format well enough to forge digests and checksums too."""
    kind, content = ATTACKS[attack]
    codec = store.codec(saver)
    packed = ormsgpack.packb([*codec._serde.dumps_typed({"id": "x"}), {"c": [0, kind, content]}])
    checkpoint_id = stored["configurable"]["checkpoint_id"]
    forged = CheckpointRow("", checkpoint_id, None, None, "{}", b"", codec.encrypt(packed))
    checksum = with_checksum(codec, forged, packed).checksum
    (row,) = store.rows("checkpoints")
    fields = {"content": forged.content, "checksum": checksum, "refs": b""}
    store.change("checkpoints", row.key, **fields, binding=store.binding(row, checksum))

    try:
        found = saver.get_tuple(config())
    except UnreadableValue as error:
        outcome: Any = str(error)
    else:
        assert found is not None
        outcome = found.checkpoint["channel_values"]["c"]
    assert isinstance(outcome, StoredObject) or outcome == {MARK} or "thread 'thread'" in outcome


def test_what_may_be_more_than_data_is_stored_if_it_is_allowed(saver: ForkpointSaver) -> None:
    with pytest.raises(NotStorable, match=r"channel c\[0\] cannot be stored: a state_types\.Plain"):
        put(saver, {"c": [Plain()]})

    allowed = saver.with_allowlist([Plain])
    plain = Plain()
    plain.n = 5  # type: ignore[attr-defined]
    put(allowed, {"c": plain})
    found, strange = allowed.get_tuple(config()), saver.get_tuple(config())
    assert found is not None
    assert strange is not None
    restored = found.checkpoint["channel_values"]["c"]
    assert type(restored) is Plain
    assert vars(restored) == {"n": 5}
    stored = strange.checkpoint["channel_values"]["c"]  # the first one is as strict as before
    assert stored == {"n": 5} or dict(stored) == {"n": 5}
    assert stored.type_name == "state_types.Plain"


def test_the_error_names_the_type_and_how_to_allow_it() -> None:
    written = SafeSerializer([Plain]).dumps_typed(Plain())

    with pytest.raises(UnreadableValue) as caught:
        SafeSerializer(unknown="raise").loads_typed(written)
    assert "state_types.Plain" in str(caught.value)
    assert "saver.with_allowlist([('state_types', 'Plain')])" in str(caught.value)


def test_a_type_that_was_defined_in_a_function_comes_back(saver: ForkpointSaver) -> None:
    class Local(pydantic.BaseModel):
        n: int

    put(saver, {"c": Local(n=1)})

    found = saver.get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"]["c"] == Local(n=1)


def test_what_a_constructor_refuses_is_an_error_and_not_the_bare_payload() -> None:
    serde = SafeSerializer(unknown="raise")
    with pytest.raises(UnreadableValue, match=r"state_types\.Colour.*'green'"):
        serde.loads_typed(ext(0, "state_types", "Colour", "green"))
    with pytest.raises(UnreadableValue, match=r"state_types\.Line"):
        serde.loads_typed(ext(2, "state_types", "Line", {"other": 1}))


def test_allowed_types_survive_copies_and_further_allowing() -> None:
    serde = SafeSerializer([Plain]).with_msgpack_allowlist([("a.b", "C")])
    written = serde.dumps_typed(Plain())

    for one in (serde, copy.copy(serde), copy.deepcopy(serde)):
        assert isinstance(one.loads_typed(written), Plain)
    assert serde.with_msgpack_allowlist([Plain]) is serde


class Shifted(SafeSerializer):
    """A serializer of the application's, which does more than the one that it derives from."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        kind, content = super().dumps_typed(obj)
        return f"shifted-{kind}", bytes((byte + self.by) % 256 for byte in content)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        kind, content = data
        shifted_back = bytes((byte - self.by) % 256 for byte in content)
        return super().loads_typed((kind.removeprefix("shifted-"), shifted_back))


def test_a_serializer_that_derives_from_the_default_one_stays_what_it_is(store: Store) -> None:
    """LangGraph asks for the same with an allowlist when a graph is compiled in strict mode."""
    serde = Shifted(by=7)
    with store.saver(serde=serde) as saver:
        allowed = saver.with_allowlist([("state_types", "Plain")])
        put(allowed, {"c": Plain()})
        found = allowed.get_tuple(config())
        assert found is not None
        assert type(found.checkpoint["channel_values"]["c"]) is Plain
        assert saver.get_tuple(config()) is not None
    for other in (allowed.serde, copy.copy(serde), copy.deepcopy(serde)):
        assert other.dumps_typed([1, 2]) == serde.dumps_typed([1, 2])


def test_with_allowlist_works_under_encryption(store: Store) -> None:
    serde = encrypted_serde()
    with store.saver(serde=serde) as saver:
        allowed = saver.with_allowlist([("state_types", "Plain")])
        put(allowed, {"c": Plain()})
        for one, kind in ((saver, StoredObject), (allowed, Plain)):
            found = one.get_tuple(config())
            assert found is not None
            assert type(found.checkpoint["channel_values"]["c"]) is kind


@pytest.mark.in_turns
def test_modules_are_imported_only_where_the_user_or_the_framework_says_so(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"c": Customer(name="c"), "m": HumanMessage("hi")}, thread_id="own")
        put(saver, {"m": [HumanMessage("hi")]}, thread_id="messages")
    script = f"""
import sys
{store.script}
get = lambda saver, t: saver.get_tuple({{"configurable": {{"thread_id": t}}}})
assert get(saver, "messages").checkpoint["channel_values"]["m"][0].content == "hi"
stored = get(saver, "own").checkpoint["channel_values"]["c"]
assert stored.type_name == "state_types.Customer" and stored["name"] == "c", stored
assert "state_types" not in sys.modules
allowed = saver.with_allowlist([("state_types", "Customer")])
assert get(allowed, "own").checkpoint["channel_values"]["c"].name == "c"
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=environment())


@pytest.mark.in_turns
def test_strict_mode_allows_what_the_graphs_schema_names_and_nothing_else(store: Store) -> None:
    script = f"""
from typing import TypedDict
from langchain_core.messages import HumanMessage
from langgraph.graph import START, StateGraph
from forkpoint import StoredObject
from state_types import Customer, Line
{store.script}

class State(TypedDict):
    customer: Customer
    anything: object

def node(state):
    assert type(state["customer"]) is Customer
    return {{"anything": [HumanMessage("hi"), {{1}}]}}

builder = StateGraph(State)
builder.add_node(node)
builder.add_edge(START, "node")
graph = builder.compile(checkpointer=saver)
config = {{"configurable": {{"thread_id": "t"}}}}
graph.invoke({{"customer": Customer(name="c")}}, config)
assert graph.get_state(config).values["customer"] == Customer(name="c")
assert graph.get_state(config).values["anything"][0].content == "hi"
graph.update_state(config, {{"anything": Line("x", 1)}})
stored = graph.get_state(config).values["anything"]
assert isinstance(stored, StoredObject) and stored.type_name == "state_types.Line", stored
"""
    strict = {**environment(), "LANGGRAPH_STRICT_MSGPACK": "true"}
    subprocess.run([sys.executable, "-c", script], check=True, env=strict)


def test_a_serializer_that_was_passed_is_used_as_it_is(store: Store) -> None:
    with store.saver(serde=JsonPlusSerializer(pickle_fallback=True)) as saver:
        put(saver, {"c": complex(1, 2), "l": [HumanMessage("x" * 900, id="1")] * 20})
        found = saver.get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"]["c"] == complex(1, 2)
    assert len(found.checkpoint["channel_values"]["l"]) == 20


class Opaque:
    """What only pickle takes."""


VALUES_OF_DEFAULT: dict[str, Any] = {
    "messages": [HumanMessage("x" * 900, id=str(number)) for number in range(20)],
    "order": Customer(name="c"),
    "inner": {"send": Send("node", (1, Line("x", 1))), "keys": {(1, 2): {3}}},
    "array": numpy.arange(3),
    "text": "\xd4!" * 9,
}


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_langgraphs_own_serializer_goes_on_where_the_default_one_stored(
    is_encrypted: bool, store: Store
) -> None:
    """It reads what it does not know as None, and an error advises to pass it."""
    serde = encrypted_serde() if is_encrypted else SafeSerializer()
    with store.saver(serde=serde) as saver:
        head = put(saver, VALUES_OF_DEFAULT)
        saver.put_writes(head, [("write", (1, 2))], "task")
    pickling: Any = JsonPlusSerializer(pickle_fallback=True)
    if is_encrypted:
        pickling = EncryptedSerializer(serde.cipher, pickling)
    with store.saver(serde=pickling) as saver:
        found = saver.get_tuple(config())
        assert found is not None
        assert repr(found.checkpoint["channel_values"]) == repr(VALUES_OF_DEFAULT)
        assert found.pending_writes == [("task", "write", (1, 2))]
        put(saver, {**VALUES_OF_DEFAULT, "new": Opaque()}, parent=head)
        changed = saver.get_tuple(config())
        assert changed is not None
        assert isinstance(changed.checkpoint["channel_values"].pop("new"), Opaque)
        assert repr(changed.checkpoint["channel_values"]["messages"]) == repr(
            VALUES_OF_DEFAULT["messages"]
        )


def test_what_langgraphs_own_serializer_would_store_as_a_dict_is_not_read(store: Store) -> None:
    money = TypeCodec(Opaque, "Money", lambda _: {"cents": 5}, lambda _: Opaque())
    with store.saver(types=[money]) as saver:
        put(saver, {"price": Opaque()})
    with (
        store.saver(serde=JsonPlusSerializer()) as saver,
        pytest.raises(UnreadableValue, match="of the type 'Money' is stored, which types= must"),
    ):
        saver.get_tuple(config())
