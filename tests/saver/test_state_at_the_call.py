"""What is stored is the state at the call, whatever its owner does to it afterwards."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypedDict

import pydantic.v1
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.channels import Topic
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send
from pydantic import BaseModel

from checking import checkpoint, config, one_by_one, put, value_of
from forkpoint import SafeSerializer, TypeCodec
from forkpoint.saver.saver import ForkpointSaver
from state_types import Line, Order
from stores import Store


class Model(BaseModel):
    count: int = 0
    items: list[int] = []


def _append(value: Any) -> None:
    value.append(value[0])


def _rename(value: Any) -> None:
    value[0].content = "another"


def _set(value: Any) -> None:
    value["new"] = value["old"] = "another"


def _deep(value: Any) -> None:
    value["a"][3]["b"].append("another")


def _grow(value: Any) -> None:
    value.extend(b"more")


def _change(value: Any) -> None:
    value.count += 1
    value.items.append(1)


def _order(value: Any) -> None:
    value.name = "another"
    value.lines.append(value.lines[0])


LIVE: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "short list": (lambda: [1, 2, 3], _append),
    "long list": (lambda: [f"item {n}" * 9 for n in range(500)], _append),
    "messages": (lambda: [HumanMessage("Hello", id="1"), AIMessage("Hi" * 900, id="2")], _rename),
    "many messages": (lambda: [HumanMessage("Hello" * 90, id=f"{n}") for n in range(99)], _append),
    "dict": (lambda: {"old": 1}, _set),
    "large dict": (lambda: {"old": 1, **{f"{n}": "x" * 99 for n in range(300)}}, _set),
    "nested": (lambda: {"a": [0, 1, 2, {"b": ["x" * 200] * 90}]}, _deep),
    "bytearray": (lambda: bytearray(b"x" * 9000), _grow),
    "model": (lambda: Model(items=[1, 2]), _change),
    "data class": (lambda: Order("book", [Line("x", 1)]), _order),
}


@one_by_one("make, change", LIVE.values())
@pytest.mark.parametrize("when", ["called", "scheduled", "running"])
async def test_a_value_that_changes_after_the_call_is_stored_as_it_was(
    when: str, make: Callable[[], Any], change: Callable[[Any], None], saver: ForkpointSaver
) -> None:
    value, written = make(), make()
    made = checkpoint({"c": value})
    at = config(checkpoint_id=made["id"])
    calls = [
        saver.aput(config(), made, {}, {"c": 1}),
        saver.aput_writes(at, [("c", written)], "task"),
    ]
    tasks = calls if when == "called" else [asyncio.ensure_future(call) for call in calls]
    if when == "running":
        await asyncio.sleep(0)
    change(value)
    change(written)
    await asyncio.gather(*tasks)

    found = await saver.aget_tuple(at)
    assert found is not None
    assert value_of(found) == {"c": make()}
    assert found.pending_writes == [("task", "c", make())]


async def test_the_other_fields_of_a_checkpoint_are_those_at_the_call_as_well(
    saver: ForkpointSaver,
) -> None:
    made = checkpoint({"c": 1}, {"c": 1})
    made["versions_seen"] = {"node": {"c": 1}}
    metadata, given = {"step": 1, "parents": {}}, copy.deepcopy(made)
    call = saver.aput(config(), made, metadata, made["channel_versions"])
    metadata["step"] = 2
    made["channel_versions"]["c"] = 2
    made["versions_seen"]["node"]["c"] = 2
    made["channel_values"]["c"] = 2
    found = await saver.aget_tuple(await call)
    assert found is not None
    assert found.checkpoint == given
    assert found.metadata["step"] == 1


async def test_an_async_put_raises_its_error_where_it_is_awaited(saver: ForkpointSaver) -> None:
    calls = [
        saver.aput(config(), checkpoint({"c": object()}), {}, {"c": 1}),
        saver.aput_writes(config(checkpoint_id="1"), [("c", object())], "task"),
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert ["cannot be stored" in str(outcome) for outcome in outcomes] == [True, True]


@pytest.mark.parametrize("happens", ["collected", "deleted"])
async def test_a_write_that_is_repeated_stores_the_values_at_the_call(
    happens: str, saver: ForkpointSaver, store: Store
) -> None:
    """Another process collects the thread's chunks between the call and the write."""
    text = "a text that is long enough for a chunk " * 100
    first = put(saver, {"n": 1, "text": text}, metadata={"run_id": "run"})
    second = put(saver, {"n": 1, "text": text}, parent=first)
    values = {"text": text, "items": [text], "n": 2}
    call = saver.aput(second, checkpoint(values, {"text": 1, "n": 2}), {}, {"n": 2, "items": 2})
    values["items"].append("late")  # type: ignore[attr-defined]
    with store.saver() as other:
        if happens == "collected":
            other.delete_for_runs(["run"])
        else:  # and made again, with a checkpoint of the same id
            other.copy_thread("thread", "copy")
            other.delete_thread("thread")
            other.copy_thread("copy", "thread")
            saver.get_tuple(second)
    found = await saver.aget_tuple(await call)
    assert found is not None
    assert value_of(found) == {"text": text, "items": [text], "n": 2}
    assert store.problems(saver) == []


async def test_the_first_put_of_an_encrypting_saver_stores_the_values_at_the_call(
    store: Store,
) -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(SafeSerializer(), key=b"k" * 32)
    with store.saver(serde=serde) as saver:
        value = ["x" * 900]
        call = asyncio.ensure_future(saver.aput(config(), checkpoint({"c": value}), {}, {"c": 1}))
        await asyncio.sleep(0)
        value.append("late")
        found = await saver.aget_tuple(await call)
    assert found is not None
    assert value_of(found) == {"c": ["x" * 900]}


async def test_a_parent_that_the_process_does_not_know_is_inherited_from_all_the_same(
    saver: ForkpointSaver, store: Store
) -> None:
    """A channel that the run does not name as changed keeps what is stored for it."""
    first = put(saver, {"kept": ["x" * 900], "n": 1})
    with store.saver() as other:
        made = checkpoint({"kept": ["changed in place"], "n": 2}, {"kept": 1, "n": 2})
        found = await other.aget_tuple(await other.aput(first, made, {}, {"n": 2}))
    assert found is not None
    assert value_of(found) == {"kept": ["x" * 900], "n": 2}
    assert store.problems(saver) == []


@pytest.mark.parametrize("read", ["get_tuple", "list"])
def test_a_channel_with_another_version_is_stored_whatever_was_done_to_the_checkpoint_before_it(
    read: str, saver: ForkpointSaver
) -> None:
    """Applications go on with the checkpoint that they have read, as LangGraph does."""
    first = put(saver, {"c": "old", "n": 1})
    found = saver.get_tuple(first) if read == "get_tuple" else next(saver.list(first))
    assert found is not None
    versions = found.checkpoint["channel_versions"]
    versions.update(c=2, n=2)
    made = checkpoint({"c": "new", "n": 2}, dict(versions))
    stored = saver.get_tuple(saver.put(first, made, {}, {"n": 2}))
    assert stored is not None
    assert value_of(stored) == {"c": "new", "n": 2}


# Other threads change values while they are taken


def test_a_list_that_another_thread_changes_is_stored_as_it_was_at_some_moment(
    saver: ForkpointSaver,
) -> None:
    """The other one adds 1 to each element in turn: at any time they differ by 1 at most."""
    rows: list[Any] = [{"n": 0, "text": "x" * 40} for _ in range(300)]
    nested: dict[str, Any] = {"rows": [{"n": 0, "text": "x" * 40} for _ in range(300)]}
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for row, other in zip(rows, nested["rows"], strict=True):
                row["n"] += 1
                other["n"] += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(20):
            put(saver, {"rows": rows, "nested": nested})
    finally:
        done.set()
        thread.join()
    for found in saver.list(config()):
        for stored in (value_of(found)["rows"], value_of(found)["nested"]["rows"]):
            numbers = [row["n"] for row in stored]
            assert numbers == sorted(numbers, reverse=True)
            assert numbers[0] - numbers[-1] <= 1


class Part:
    """Stored by a codec, which runs Python code: other threads run then, too."""


def _parts(number: int) -> list[Any]:
    return [{"n": 0, "text": "x" * 40, "part": Part()} for _ in range(number)]


def _while_packed(store: Store, change: Callable[[], None], at: int = 1) -> ForkpointSaver:
    """Return a saver during whose work something changes: when it comes to this part."""
    packed: list[Part] = []

    def encode(part: Part) -> None:
        packed.append(part)
        if len(packed) == at:
            change()

    codec = TypeCodec(Part, "part", encode, lambda _: None)
    return store.saver(serde=SafeSerializer(types=[codec]))


EMPTIED: dict[str, Callable[[list[Any]], tuple[Any, Any]]] = {
    "list": lambda parts: (parts, parts),
    "dict": lambda parts: (table := {str(n): part for n, part in enumerate(parts)}, table),
    "list within a list": lambda parts: ([parts], parts),
    "list within a tuple": lambda parts: ((parts, "x" * 600), parts),
    "list of a data class": lambda parts: (Order("book", parts), parts),
    "dict with numbers for keys": lambda parts: (table := dict(enumerate(parts)), table),
}


@one_by_one("make", EMPTIED.values())
def test_a_container_that_is_emptied_while_it_is_taken_is_stored_as_it_is_then(
    make: Callable[[list[Any]], tuple[Any, Any]], store: Store
) -> None:
    """ormsgpack would read on where a list was, and say that a dict has what it has not."""
    value, emptied = make(_parts(100))
    with _while_packed(store, emptied.clear) as saver:
        put(saver, {"value": value})
        found = saver.get_tuple(config())
    assert found is not None
    assert value_of(found)["value"] == value


class Emptying:
    """LangGraph's serializer asks it for its fields, and Python code runs then as well."""

    emptied: Any = None

    def _asdict(self) -> dict[str, Any]:
        if Emptying.emptied is not None:
            Emptying.emptied.clear()
        return {}


class Rows(list):  # type: ignore[type-arg]
    pass


class Named(NamedTuple):
    rows: Any


EMPTIED_BY_LANGGRAPH: dict[str, Callable[[list[Any]], tuple[Any, Any]]] = {
    **EMPTIED,
    "list of a Send": lambda parts: (Send("node", {"parts": parts}), parts),
    "list of a Command": lambda parts: ([Command(update={"parts": parts})], parts),
    "list of a named tuple": lambda parts: (Named(parts), parts),
    "list in a deque": lambda parts: (deque([parts]), parts),
    "of another class": lambda parts: (rows := Rows(parts), rows),
    "dict of another class": lambda parts: (table := OrderedDict(enumerate(parts)), table),
}


@one_by_one("make", EMPTIED_BY_LANGGRAPH.values())
def test_nor_does_it_harm_langgraphs_own_serializer(
    make: Callable[[list[Any]], tuple[Any, Any]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, emptied = make([{"text": "x" * 40, "part": Emptying()} for _ in range(100)])
    monkeypatch.setattr(Emptying, "emptied", emptied)
    with store.saver(serde=JsonPlusSerializer()) as saver:
        put(saver, {"value": value})
        found = saver.get_tuple(config())
    assert found is not None
    assert repr(value_of(found)["value"]).count("'text': 'xxxx") in (0, 100)


class Late:
    """It empties a list the second time that all 100 parts of it were looked at."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.calls = 0

    def clear(self) -> None:
        self.calls += 1
        if self.calls > 100:
            self.parts.clear()


def test_nor_does_it_where_it_comes_to_pickle(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Any] = [{"text": "x" * 40, "part": Emptying()} for _ in range(100)]
    parts.append(1j)
    monkeypatch.setattr(Emptying, "emptied", Late(parts))
    with store.saver(serde=JsonPlusSerializer(pickle_fallback=True)) as saver:
        put(saver, {"value": parts})
        found = saver.get_tuple(config())
    assert found is not None
    assert len(value_of(found)["value"]) in (0, 101)


class Changing(set):  # type: ignore[type-arg]
    """The names of the fields that a model was given. It is changed as they are looked at."""

    model: Any = None

    def __contains__(self, name: object) -> bool:
        vars(self.model).pop("b", None)
        (getattr(self.model, "__pydantic_extra__", None) or {}).clear()
        return super().__contains__(name)


class Open(BaseModel):
    model_config = {"extra": "allow"}
    a: int
    b: int


class Old(pydantic.v1.BaseModel):
    a: int
    b: int


@one_by_one("kind, name", [(Open, "__pydantic_fields_set__"), (Old, "__fields_set__")])
def test_a_model_that_loses_fields_while_it_is_taken_is_stored_as_it_was(
    kind: Any, name: str, store: Store
) -> None:
    value = kind(a=1, b=2, c=3)
    given_names = Changing(getattr(value, name))
    given_names.model = value
    object.__setattr__(value, name, given_names)
    with store.saver() as saver:
        put(saver, {"value": kind(a=1, b=2)})  # of the first of a class it tries out how it goes
        put(saver, {"value": value})
        found = saver.get_tuple(config())
    assert found is not None
    restored = value_of(found)["value"]
    assert restored == kind(a=1, b=2, c=3)
    assert getattr(restored, name) == given_names


@one_by_one("kind", [list, tuple, dict, Order])
def test_what_changes_while_it_is_taken_is_stored_as_it_was_at_one_moment(
    kind: type, store: Store
) -> None:
    parts = _parts(100)
    value = {
        list: lambda: parts,
        tuple: lambda: tuple(parts),
        dict: lambda: {str(n): part for n, part in enumerate(parts)},
        Order: lambda: Order("book", parts),
    }[kind]()

    def count() -> None:
        for part in parts:
            part["n"] += 1

    with _while_packed(store, count, at=50) as saver:
        put(saver, {"value": value})
        found = saver.get_tuple(config())
    assert found is not None
    stored = value_of(found)["value"]
    rows = {dict: lambda: stored.values(), Order: lambda: stored.lines}.get(kind, lambda: stored)()
    assert {row["n"] for row in rows} in ({0}, {1})


# Graphs whose nodes change values in place


def _extended(value: list[int], more: list[int]) -> list[int]:
    value.extend(more)  # a reducer that changes what it is given
    return value


def _replayed(value: list[int], writes: list[list[int]]) -> list[int]:
    return [*value, *(number for write in writes for number in write)]


class State(TypedDict):
    items: list[Any]
    table: dict[str, Any]
    model: Model
    silent: list[int]
    log: Annotated[list, Topic(int, accumulate=True)]
    total: Annotated[list[int], _extended]
    delta: Annotated[list[int], DeltaChannel(_replayed)]


NODES = 8
THREAD = {"configurable": {"thread_id": "thread"}}


def _start() -> Any:
    return {
        "items": [{"n": 0}],
        "table": {"n": 0, "below": {"list": ["x" * 600]}},
        "model": Model(),
        "silent": [0],
        "log": [0],
        "total": [0],
        "delta": [0],
    }


def changing(saver: Any) -> Any:
    """Return a graph of nodes that change the values they are given, and return most of them."""

    def step(state: State) -> dict[str, Any]:
        number = state["table"]["n"] + 1
        state["items"].append({"n": number})
        state["items"][0]["n"] = number
        state["table"]["n"] = number
        state["table"]["below"]["list"].append("x" * 600)
        state["model"].count = number
        state["model"].items.append(number)
        state["silent"].append(number)  # nobody is told
        more = {name: [number] for name in ("log", "total", "delta")}
        return {**{name: state[name] for name in ("items", "table", "model")}, **more}  # type: ignore[literal-required]

    async def astep(state: State) -> dict[str, Any]:
        return step(state)

    builder = StateGraph(State)
    before = START
    for number in range(NODES):
        builder.add_node(f"node-{number}", RunnableLambda(step, astep))
        builder.add_edge(before, f"node-{number}")
        before = f"node-{number}"
    return builder.compile(checkpointer=saver)


async def _history(saver: Any, world: str, durability: Any) -> list[Any]:
    graph = changing(saver)
    if world == "invoke":
        graph.invoke(_start(), THREAD, durability=durability)
    elif world == "ainvoke":
        await graph.ainvoke(_start(), THREAD, durability=durability)
    else:
        async for _ in graph.astream(_start(), THREAD, durability=durability):
            pass
    return [state.values for state in graph.get_state_history(THREAD)][::-1]


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("world", ["invoke", "ainvoke", "astream"])
async def test_each_state_of_a_graph_that_changes_values_in_place_is_that_of_its_checkpoint(
    world: str, durability: str, saver: ForkpointSaver
) -> None:
    expected = await _history(InMemorySaver(), world, durability)
    assert await _history(saver, world, durability) == expected
    if durability == "sync":
        lengths = [len(values.get("log", [])) for values in expected]
        assert lengths == [0, *range(1, NODES + 2)]


@pytest.mark.parametrize("world", ["ainvoke", "astream"])
async def test_a_graph_that_goes_on_while_it_is_stored_stores_no_state_that_never_was(
    world: str, saver: ForkpointSaver
) -> None:
    """LangGraph calls for a checkpoint when the one before is stored, and its values may be newer.

    Even so they are of one moment.
    """
    states = await _history(saver, world, "async")
    assert len(states) == NODES + 2
    for values in states[1:]:
        number = values["table"]["n"]
        assert values["items"] == [{"n": number}, *({"n": n} for n in range(1, number + 1))]
        assert values["model"] == Model(count=number, items=list(range(1, number + 1)))
        assert len(values["table"]["below"]["list"]) == number + 1
        assert values["silent"] == states[1]["silent"]
    assert states[-1]["table"]["n"] == NODES
    assert len(states[-1]["log"]) == NODES + 1


def test_a_time_travel_begins_with_the_state_that_it_goes_back_to_however_late_that_is_stored(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = threading.Event()
    put = saver.put

    def put_late(*arguments: Any) -> Any:
        if arguments[2]["source"] == "fork":
            assert changed.wait(60)
        return put(*arguments)

    def change(state: Any) -> dict[str, Any]:
        state["items"].append("changed")
        changed.set()
        return {"total": [1]}

    builder = StateGraph(State)
    builder.add_node("change", change)
    builder.add_edge(START, "change")
    graph = builder.compile(checkpointer=saver)
    graph.invoke({"items": ["given"]}, THREAD)
    (_, before, _) = graph.get_state_history(THREAD)
    changed.clear()
    monkeypatch.setattr(saver, "put", put_late)
    graph.invoke(None, before.config)
    (_, fork, *_) = graph.get_state_history(THREAD)
    assert fork.metadata["source"] == "fork"
    assert fork.values == before.values
