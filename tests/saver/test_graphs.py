"""A graph behaves with forkpoint exactly as with LangGraph's own in-memory saver."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from checking import checkpoint, config, put
from forkpoint import ThreadDeleted
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES, THREAD, WORLDS, Shape, append_all, call, error_text
from stores import Store


async def run(shape: Shape, saver: Any, world: str) -> tuple[Any, list[Any]]:
    graph = shape.build(saver)
    return graph, [plain(await call(graph, world, one, shape.options)) for one in shape.inputs]


async def history(graph: Any, world: str) -> list[Any]:
    if world == "sync":
        return list(graph.get_state_history(THREAD))
    return [snapshot async for snapshot in graph.aget_state_history(THREAD)]


def plain(value: Any) -> Any:
    """Return a value without what is random: the ids of interrupts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return ("interrupt", value.value) if type(value).__name__ == "Interrupt" else value


def described(snapshot: Any) -> Any:
    metadata = {key: value for key, value in snapshot.metadata.items() if key != "parents"}
    return {
        "values": plain(snapshot.values),
        "next": snapshot.next,
        "metadata": metadata,
        "interrupts": plain(snapshot.interrupts),
        "tasks": [
            # An exception comes back as one, where LangGraph's own serializer makes it a text.
            (one.name, one.path, error_text(one.error), plain(one.interrupts), plain(one.result))
            for one in snapshot.tasks
        ],
        "has parent": snapshot.parent_config is not None,
    }


def every_other(shapes: list[str], first: int) -> list[Any]:
    """Return cases of these shapes, in every run only every other of them."""
    return [
        pytest.param(shape, marks=pytest.mark.slow if number % 2 != first else ())
        for number, shape in enumerate(shapes)
    ]


@pytest.mark.by_halves
@pytest.mark.parametrize("world", sorted(set(WORLDS)))
@pytest.mark.parametrize("shape", SHAPES)
async def test_outputs_and_history_are_those_of_the_in_memory_saver(
    shape: str, world: str, saver: ForkpointSaver, store: Store
) -> None:
    expected_graph, expected = await run(SHAPES[shape], InMemorySaver(), world)
    graph, outputs = await run(SHAPES[shape], saver, world)

    assert outputs == expected
    ours = [described(snapshot) for snapshot in await history(graph, world)]
    assert ours == [described(snapshot) for snapshot in await history(expected_graph, world)]
    assert len(ours) >= len(SHAPES[shape].inputs) / 2
    assert store.problems(saver) == []


@pytest.mark.by_halves
@pytest.mark.parametrize("shape", every_other(sorted(SHAPES), 1))
async def test_a_thread_goes_on_in_another_process(shape: str, store: Store) -> None:
    """Each input in a saver of its own, sync and async by turns."""
    expected = (await run(SHAPES[shape], InMemorySaver(), "sync"))[1]
    build, inputs, options = SHAPES[shape].build, SHAPES[shape].inputs, SHAPES[shape].options
    outputs = []
    graph = None
    for turn, given in enumerate(inputs):
        with store.saver() as saver:
            if graph is None or shape != "failing":  # whose node counts its attempts
                graph = build(saver)
            else:
                graph.checkpointer = saver
            world = WORLDS[turn % 2]
            outputs.append(plain(await call(graph, world, given, options)))
    assert outputs == expected


# The node of the failing graph counts its attempts, so that no two runs of it are alike.
@pytest.mark.by_halves
@pytest.mark.parametrize("shape", every_other(sorted(SHAPES.keys() - {"failing"}), 0))
async def test_time_travel_from_every_checkpoint_is_that_of_the_in_memory_saver(
    shape: str, saver: ForkpointSaver, store: Store
) -> None:
    expected_graph, _ = await run(SHAPES[shape], InMemorySaver(), "sync")
    graph, _ = await run(SHAPES[shape], saver, "sync")
    theirs = list(expected_graph.get_state_history(THREAD))
    ours = list(graph.get_state_history(THREAD))
    for their, our in zip(theirs, ours, strict=True):
        expected = await call(expected_graph, "sync", None, SHAPES[shape].options, their.config)
        output = await call(graph, "sync", None, SHAPES[shape].options, our.config)
        assert plain(output) == plain(expected)
        assert described(graph.get_state(THREAD)) == described(expected_graph.get_state(THREAD))
    assert store.problems(saver) == []


class Whole(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]
    document: str
    log: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=3)]


class Part(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]


@pytest.mark.parametrize("durability", ["sync", "exit"])
def test_what_a_graph_does_not_have_is_kept_for_those_that_have_it(
    durability: Any, saver: ForkpointSaver, store: Store
) -> None:
    """Of two versions of an application, one runs a thread, and then the other."""

    def states(saver: Any) -> list[Any]:
        whole, part = (_listing(schema, saver) for schema in (Whole, Part))
        found = []

        def note() -> None:
            found.append([snapshot.values for snapshot in whole.get_state_history(THREAD)])

        given: Any = {"items": [0], "document": "text " * 400, "log": [1]}
        whole.invoke(given, THREAD, durability=durability)
        part.invoke({"items": [2]}, THREAD, durability=durability)
        note()
        part.update_state(THREAD, None, "__end__")
        part.invoke(None, [*part.get_state_history(THREAD)][-2].config, durability=durability)
        note()
        part.update_state(part.get_state(THREAD).config, None, "__copy__")
        note()
        whole.invoke({"log": [3]}, THREAD, durability=durability)
        note()
        return found

    expected = states(InMemorySaver())
    assert states(saver) == expected
    assert expected[-1][0]["document"] == "text " * 400
    assert store.problems(saver) == []


def test_a_delta_channel_that_the_graph_of_the_head_does_not_have_is_rebuilt_after_a_removal(
    saver: ForkpointSaver, store: Store
) -> None:
    whole, part = (_listing(schema, saver) for schema in (Whole, Part))
    for given in ([1], [2]):
        whole.invoke({"log": given}, THREAD)
    part.invoke({"items": [0]}, THREAD)
    part.update_state(THREAD, None, "__end__")
    assert whole.get_state(THREAD).values["log"] == [1, 2]

    fork = saver.fork("thread")
    assert whole.get_state(fork).values["log"] == [1, 2]
    saver.trim("thread", 2)
    assert [state.values["log"] for state in whole.get_state_history(THREAD)] == [[1, 2]] * 2
    saver.prune(["thread"])
    assert whole.get_state(THREAD).values["log"] == [1, 2]
    whole.invoke({"log": [3]}, THREAD)
    assert whole.get_state(THREAD).values["log"] == [1, 2, 3]
    assert store.problems(saver) == []


def _listing(schema: Any, saver: Any) -> Any:
    builder = StateGraph(schema)
    builder.add_node("step", lambda _: {"items": ["step"]})
    builder.add_edge(START, "step")
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize(
    "shape",  # `test_removals` prunes threads of each shape
    [
        "snapshots",
        "stateful subgraphs",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in sorted(SHAPES.keys() - {"failing", "snapshots", "stateful subgraphs"})
        ),
    ],
)
def test_pruning_keeps_the_state_of_the_remaining_checkpoints(
    shape: str, saver: ForkpointSaver, store: Store
) -> None:
    graph = SHAPES[shape].build(saver)
    for given in SHAPES[shape].inputs:
        graph.invoke(given, THREAD, **SHAPES[shape].options)
    before = {
        snapshot.config["configurable"]["checkpoint_id"]: described(snapshot)
        for snapshot in graph.get_state_history(THREAD)
    }

    saver.prune(["thread"])

    after = list(graph.get_state_history(THREAD))
    namespaces = {snapshot.config["configurable"]["checkpoint_ns"] for snapshot in after}
    assert len(after) == len(namespaces) == 1
    for snapshot in after:
        assert described(snapshot) == before[snapshot.config["configurable"]["checkpoint_id"]]
    assert store.problems(saver) == []


@pytest.mark.in_turns
def test_ancestors_of_a_delta_channel_are_hidden_and_removed_when_no_longer_needed(
    saver: ForkpointSaver, store: Store
) -> None:
    graph = SHAPES["snapshots"].build(saver)
    kept, expected = [], []
    for n in range(12):
        graph.invoke({"log": [f"input {n}"]}, THREAD)
        expected.append(graph.get_state(THREAD).values)
        parent = graph.get_state(THREAD).parent_config
        saver.prune(["thread"])
        assert graph.get_state(THREAD).values == expected[-1]
        assert saver.get_tuple(parent) is None
        assert len(list(saver.list(None))) == 1
        kept.append(store.count("checkpoints"))
    assert max(kept) > 1  # something was needed
    assert max(kept) <= 8  # back to the last time that it was stored
    saver.copy_thread("thread", "copy")
    saver.delete_thread("thread")
    copy: Any = {"configurable": {"thread_id": "copy"}}
    assert graph.get_state(copy).values == expected[-1]
    assert store.problems(saver) == []


def test_deleting_a_run_keeps_the_state_of_the_remaining_checkpoints(
    saver: ForkpointSaver, store: Store
) -> None:
    graph = SHAPES["snapshots"].build(saver)
    for n in range(6):
        graph.invoke({"log": [f"input {n}"]}, {**THREAD, "metadata": {"run_id": f"run-{n}"}})
    before = {
        snapshot.config["configurable"]["checkpoint_id"]: snapshot.values
        for snapshot in graph.get_state_history(THREAD)
    }

    saver.delete_for_runs([f"run-{n}" for n in range(5)])

    after = list(graph.get_state_history(THREAD))
    assert {snapshot.metadata["run_id"] for snapshot in after} == {"run-5"}
    for snapshot in after:
        assert snapshot.values == before[snapshot.config["configurable"]["checkpoint_id"]]
    assert store.problems(saver) == []


def test_a_thread_is_registered_as_its_graph_runs(saver: ForkpointSaver, store: Store) -> None:
    graph = SHAPES["interrupts"].build(saver)
    graph.invoke({"items": []}, THREAD)
    count = len(list(saver.list(config())))
    thread = store.thread("thread")
    assert json.loads(thread.metadata) == {"user_id": "u1"}
    assert (thread.status, thread.checkpoint_count) == ("interrupted", count)
    assert thread.created_at <= thread.updated_at

    graph.invoke(Command(resume="one"), THREAD)
    graph.invoke(Command(resume="two"), THREAD)
    thread = store.thread("thread")
    assert (thread.status, thread.checkpoint_count) == ("idle", len(list(saver.list(config()))))

    failing = SHAPES["failing"].build(saver)
    saver.delete_thread("thread")
    with pytest.raises(RuntimeError):
        failing.invoke({"items": []}, THREAD)
    assert store.thread("thread").status == "error"


@pytest.mark.parametrize(
    ("channel", "status"), [("__interrupt__", "interrupted"), ("__error__", "error")]
)
@pytest.mark.parametrize("writes_first", [True, False])
def test_the_status_is_the_same_whether_writes_or_their_checkpoint_come_first(
    channel: str, status: str, writes_first: bool, saver: ForkpointSaver, store: Store
) -> None:
    """A graph stores both in the background, in either order."""
    first = put(saver, {"n": 0})
    made = checkpoint({"n": 1})
    at = config(checkpoint_id=made["id"])
    if writes_first:
        saver.put_writes(at, [("c", 1), (channel, "x")], "task")
    saver.put(first, made, {}, {"n": 2})
    if not writes_first:
        saver.put_writes(at, [("c", 1), (channel, "x")], "task")
    assert store.thread("thread").status == status

    put(saver, {"n": 2}, parent=at)
    assert store.thread("thread").status == "idle"


async def test_deleting_a_thread_under_a_running_graph_ends_the_run(
    saver: ForkpointSaver, store: Store
) -> None:
    graph = SHAPES["loop"].build(saver)
    steps = graph.stream({"items": [1]}, THREAD, durability="sync")
    next(steps)
    next(steps)
    saver.delete_thread("thread")
    with pytest.raises(ThreadDeleted):
        list(steps)
    assert list(saver.list(None)) == []
    assert store.problems(saver) == []
    assert graph.invoke({"items": [1]}, THREAD)["total"] >= 9
