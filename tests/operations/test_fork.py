"""Forks: where they come from, what they hold, what they cost, and what removing leaves of them."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.types import Command

from checking import Api, checkpoint, config, drawn, encrypted_serde, id_of, put, value_of
from forkpoint import (
    CheckpointNotFound,
    ForkpointError,
    InvalidInput,
    SqliteSaver,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadNotFound,
)
from forkpoint.mongodb.chunks import MongoChunks
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.chunks import SqliteChunkReads
from graphs import MORE_SHAPES, SHAPES
from stores import SqliteStore, Store


def thread(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


def message(n: int, text: str = "") -> HumanMessage:
    return HumanMessage(text or random.Random(n).randbytes(270).hex(), id=f"m{n}")


def messages(count: int) -> list[HumanMessage]:
    return [message(n) for n in range(count)]


def fill(
    saver: ForkpointSaver, steps: int, *, thread_id: str = "thread", length: int = 1
) -> list[Any]:
    """Put checkpoints, each after the one before, and return their configs."""
    configs: list[Any] = []
    for n in range(steps):
        values = {"messages": messages(length + n), "n": n}
        metadata = {"source": "loop", "step": n, "run_id": f"run-{n}"}
        parent = configs[-1] if configs else None
        configs.append(put(saver, values, parent=parent, thread_id=thread_id, metadata=metadata))
        saver.put_writes(configs[-1], [("n", n), ("text", f"{thread_id} {n} " * 300)], f"task-{n}")
    return configs


async def history(api: Api, *args: Any, **kwargs: Any) -> list[Any]:
    if api.world == "sync":
        return list(api.saver.history(*args, **kwargs))
    return [found async for found in api.saver.ahistory(*args, **kwargs)]


def everything(saver: ForkpointSaver, thread_id: str) -> list[Any]:
    """Return all that can be read of a thread."""
    return list(saver.list(thread(thread_id)))


def content(store: Store) -> Any:
    """Return everything that is stored, but for what only says that somebody looked at it."""
    if isinstance(store, SqliteStore):
        with store.connection() as connection:
            return list(connection.iterdump())
    left_out = ("epoch", "lock", "unlisted")
    return [
        {field: value for field, value in found.items() if field not in left_out}
        for found in store.collection.find(sort=[("_id", 1)])  # type: ignore[attr-defined]
    ]


def rows_of(store: Store, thread_id: str) -> Any:
    """Return everything that is stored for one thread, as it is stored."""
    record = store.thread(thread_id)
    kinds = ("checkpoints", "writes")
    return record, [{row for row in store.rows(kind) if row.thread == record.key} for kind in kinds]


# Where a fork comes from


# Looking back


# What a fork holds


@pytest.mark.in_turns
def test_a_fork_with_its_path_keeps_states_that_are_rebuilt_from_hidden_checkpoints(
    saver: ForkpointSaver, store: Store
) -> None:
    """Also where the newest of its checkpoints needs nothing of that, because it stores all."""
    graph = SHAPES["snapshots"].build(saver)
    for given_ in SHAPES["snapshots"].inputs:
        graph.invoke(given_, thread("thread"))
    while len(found := list(saver.history("thread"))) > 1:
        for one in found[::-3]:
            fork = saver.fork(one.config, history="path")
            path = list(saver.history(fork["configurable"]["thread_id"]))
            assert [id_of(other) for other in path] == [id_of(other) for other in found][
                : len(path)
            ]
            assert len(path) == found.index(one) + 1
            for other in path:
                origin = config("thread", id_of(other))
                assert graph.get_state(other.config).values == graph.get_state(origin).values
        saver.trim("thread", max(len(found) - 4, 1))
    assert store.problems(saver) == []


async def test_a_fork_may_take_the_id_of_a_thread_that_was_deleted(api: Api, store: Store) -> None:
    """Although its checkpoints are older than those of which late writes are refused."""
    shape = MORE_SHAPES["stateful in stateless subgraphs"]
    graph = shape.build(api.saver)
    given = shape.inputs[0]
    graph.invoke(given, thread("thread"))
    for _ in range(2):
        graph.invoke(given, thread("old"))
        await api.purge("old")
        await api.fork("thread", new_thread_id="old")
        answered = graph.invoke(Command(resume="yes"), thread("old"))
        assert answered["answers"] == ["yes"]
        await api.purge("old")
    assert graph.get_state(thread("thread")).next == ("middle",)
    assert store.problems(api.saver) == []


# Values


async def test_a_fork_with_values_shares_the_chunks_of_unchanged_values(
    api: Api, store: Store
) -> None:
    put(api.saver, {"long": messages(600), "other": messages(300), "n": 1})
    before = store.count("chunks")
    await api.fork("thread", new_thread_id="same", values={"long": messages(600), "n": 2})
    assert store.count("chunks") == before
    await api.fork("thread", new_thread_id="more", values={"long": messages(601)})
    assert store.count("chunks") - before <= 3
    await api.fork("thread", new_thread_id="new", values={"other": [message(9999)]})
    assert store.count("chunks") - before <= 4
    assert value_of(await api.at("more", -1)) == {
        "long": messages(601),
        "other": messages(300),
        "n": 1,
    }
    assert store.problems(api.saver) == []


async def test_an_unknown_channel_is_refused_with_those_that_there_are(
    api: Api, store: Store
) -> None:
    graph = SHAPES["chat"].build(api.saver)
    graph.invoke(SHAPES["chat"].inputs[0], thread("thread"))
    before = content(store)
    with pytest.raises(InvalidInput, match=r"\['massages', 'x'\].*\['document', 'messages'\]"):
        await api.fork("thread", values={"massages": [], "x": 1, "document": ""})
    assert content(store) == before


async def test_values_of_a_state_without_one_kind_of_versions_are_refused(
    api: Api, store: Store
) -> None:
    made = {**checkpoint({"a": 1, "b": 2}), "channel_versions": {"a": 1, "b": "x"}}
    await api.put(config(), made, {}, made["channel_versions"])
    before = content(store)
    with pytest.raises(InvalidInput, match=r"some versions .* are numbers"):
        await api.fork("thread", values={"a": 2})
    assert content(store) == before
    assert value_of(await api.get_tuple(await api.fork("thread"))) == {"a": 1, "b": 2}


async def test_a_checkpoint_that_is_its_own_ancestor_is_forked(api: Api, store: Store) -> None:
    made = {**checkpoint({"a": 1}), "id": "only"}
    await api.put(config(checkpoint_id="only"), made, {}, {"a": 1})
    fork = await api.fork("thread", history="path")
    assert value_of(await api.get_tuple(fork)) == {"a": 1}
    assert len(list(api.saver.history(fork["configurable"]["thread_id"]))) == 1
    assert store.problems(api.saver) == []


async def test_a_fork_with_values_still_runs_the_next_step(api: Api, store: Store) -> None:
    """As an update of LangGraph's does."""
    graph = SHAPES["parallel"].build(api.saver)
    graph.invoke({"items": ["start"]}, thread("thread"), interrupt_before=["join"])
    fork = await api.fork("thread", values={"items": ["a", "b"]})
    assert graph.get_state(fork).next == ("join",)
    assert graph.invoke(None, fork)["total"] == 2
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
@pytest.mark.parametrize("name", ["snapshots", "deltas", "deltas, durability exit"])
def test_values_of_a_delta_channel_are_replaced_at_any_checkpoint(
    name: str, saver: ForkpointSaver, store: Store
) -> None:
    shape = SHAPES[name]
    graph = shape.build(saver)
    for given_ in shape.inputs:
        graph.invoke(given_, thread("thread"), **shape.options)
    changes = itertools.cycle([{"log": ["new"]}, {"n": 2}, {"log": [], "n": 1}])
    for found, values in zip(saver.history("thread"), changes, strict=False):
        if not values.keys() <= found.checkpoint["channel_versions"].keys():
            continue
        expected = {**graph.get_state(found.config).values, **values}
        fork = saver.fork(found.config, values=values)
        assert graph.get_state(fork).values == expected
        went = graph.invoke({"log": ["more"]}, fork, **shape.options)
        assert went["log"][: len(expected["log"]) + 1] == [*expected["log"], "more"]
    assert store.problems(saver) == []


async def test_a_fork_with_values_runs_the_step_again(api: Api, store: Store) -> None:
    """So what a finished sibling wrote to a `DeltaChannel` is not in the state already."""
    shape = MORE_SHAPES["deltas with questions"]
    graph = shape.build(api.saver)
    graph.invoke({"log": ["start"], "n": 1}, thread("thread"))
    head = graph.get_state(thread("thread"))
    assert head.next == ("ask",)
    assert head.values["log"] == ["start", "sibling"]

    fork = await api.fork("thread", values={"n": 5})
    state = graph.get_state(fork)
    assert set(state.next) == {"ask", "sibling"}
    assert state.values["log"] == ["start"]
    graph.invoke(None, fork)
    graph.invoke(Command(resume="one"), fork)
    done = graph.invoke(Command(resume="two"), fork)
    assert done["log"] == ["start", "one", "sibling"]
    assert store.problems(api.saver) == []


async def test_reducers_are_applied_by_an_update_of_the_graph(api: Api) -> None:
    graph = SHAPES["chat"].build(api.saver)
    graph.invoke(SHAPES["chat"].inputs[0], thread("thread"))
    before = graph.get_state(thread("thread")).values["messages"]
    fork = await api.fork("thread")
    graph.update_state(fork, {"messages": [HumanMessage("added", id="added")]}, as_node="answer")
    assert [one.id for one in graph.get_state(fork).values["messages"]] == [
        *(one.id for one in before),
        "added",
    ]
    assert graph.get_state(thread("thread")).values["messages"] == before


# Rolling back


async def test_a_rollback_restores_the_earlier_head(api: Api, store: Store) -> None:
    shape = SHAPES["loop"]
    graph = shape.build(api.saver)
    graph.invoke({"items": [1]}, thread("thread"))
    seen = [graph.get_state(found.config) for found in await history(api, "thread")]
    assert len(seen) > 4
    for steps in (1, 2, 1):
        assert await api.rollback("thread", steps=steps) == thread("thread")
        del seen[-steps:]
        head = graph.get_state(thread("thread"))
        assert head[:3] == seen[-1][:3]  # values, next, config
        assert store.thread("thread").checkpoint_count == len(seen)
    assert graph.invoke(None, thread("thread"))["total"] >= 9
    assert store.problems(api.saver) == []


async def test_a_rollback_removes_later_checkpoints_of_subgraphs(api: Api, store: Store) -> None:
    shape = MORE_SHAPES["remembering"]
    graph = shape.build(api.saver)
    graph.invoke({"items": []}, thread("thread"))
    before = everything(api.saver, "thread")
    count = len(await history(api, "thread"))
    first = graph.invoke({"items": ["again"]}, thread("thread"))
    await api.rollback("thread", len(await history(api, "thread")) - count)

    after = everything(api.saver, "thread")
    assert [one.config for one in after] == [one.config for one in before]
    assert graph.invoke({"items": ["again"]}, thread("thread")) == first
    assert store.problems(api.saver) == []


async def test_a_rollback_of_all_checkpoints_deletes_the_thread(api: Api, store: Store) -> None:
    configs = fill(api.saver, 3)
    put(api.saver, {"n": 1}, ns="child")
    await api.fork(configs[0], new_thread_id="fork")
    ThreadCatalog(api.saver).count()  # type: ignore[arg-type] # ends logs, as a refusal may
    before = content(store)
    with pytest.raises(CheckpointNotFound, match=r"'thread' has 3 checkpoints.* 4 back"):
        await api.rollback("thread", 4)
    assert content(store) == before
    assert await api.rollback("thread", 3) is None
    assert everything(api.saver, "thread") == []
    with pytest.raises(ThreadNotFound):
        await api.rollback("thread")
    assert [entry.exists for entry in await api.lineage("fork")] == [True, False]
    assert value_of(await api.at("fork", 0))["n"] == 0
    assert store.problems(api.saver) == []


# Trimming and purging


def stored(store: Store) -> tuple[int, int, int, int]:
    """Return what a report counts."""
    chunks = store.rows("chunks")
    size = sum(len(row.content) + len(row.links) for row in chunks)
    return store.count("checkpoints"), store.count("writes"), len(chunks), size


async def test_reports_count_what_was_removed(api: Api, store: Store) -> None:
    configs = fill(api.saver, 12, length=60)
    child = put(api.saver, {"text": "inner " * 500}, ns="child")
    await api.put_writes(child, [("c", 1)], "task")
    await api.fork(configs[5], new_thread_id="fork")
    before = stored(store)
    for call in (
        lambda: api.trim("thread", 20),
        lambda: api.trim("thread", 3),
        lambda: api.trim("thread", 3),
        lambda: api.purge("fork"),
        lambda: api.purge("thread"),
    ):
        report = await call()
        after = stored(store)
        counted = (report.checkpoints, report.writes, report.chunks, report.bytes)
        assert counted == tuple(old - new for old, new in zip(before, after, strict=True))
        before = after
        assert store.problems(api.saver) == []
    assert before == (0, 0, 0, 0)


async def test_trimming_a_delta_channel_keeps_its_state(api: Api, store: Store) -> None:
    graph = SHAPES["deltas"].build(api.saver)
    for given_ in SHAPES["deltas"].inputs:
        graph.invoke(given_, thread("thread"))
    states = [graph.get_state(one.config) for one in await history(api, "thread")]
    assert len(states) > 8
    before = stored(store)
    await api.trim("thread", 3)
    assert [graph.get_state(one.config).values for one in await history(api, "thread")] == [
        state.values for state in states[-3:]
    ]
    fork = await api.fork((await api.at("thread", 0)).config)
    assert graph.get_state(fork).values == states[-3].values
    await api.purge("thread")
    assert graph.get_state(fork).values == states[-3].values
    assert stored(store) < before
    assert store.problems(api.saver) == []


async def test_purging_a_thread_under_a_running_graph_ends_the_run(
    saver: ForkpointSaver, store: Store
) -> None:
    graph = SHAPES["loop"].build(saver)
    steps = graph.stream({"items": [1]}, thread("thread"), durability="sync")
    next(steps)
    next(steps)
    fork = saver.fork("thread")
    saver.purge("thread")
    with pytest.raises(ThreadDeleted):
        list(steps)
    assert everything(saver, "thread") == []
    assert graph.invoke(None, fork)["total"] >= 9
    assert store.problems(saver) == []


# Input that is wrong

Call = Callable[[Api, Any], Awaitable[Any]]
REFUSED: dict[str, tuple[Call, type[ForkpointError], str]] = {
    "fork of nobody": (lambda api, _: api.fork("nobody"), ThreadNotFound, "'nobody'"),
    "fork of a config of nobody": (
        lambda api, _: api.fork(config("nobody", "x")),
        ThreadNotFound,
        "'nobody'",
    ),
    "fork of an unknown checkpoint": (
        lambda api, _: api.fork(config("thread", "unknown")),
        CheckpointNotFound,
        "'thread' has no checkpoint 'unknown'",
    ),
    "fork to a thread that exists": (
        lambda api, _: api.fork("thread", new_thread_id="other"),
        ThreadExists,
        "'other'",
    ),
    "fork to itself": (
        lambda api, _: api.fork("thread", new_thread_id="thread"),
        ThreadExists,
        "'thread'",
    ),
    "fork to a thread that exists, with values": (
        lambda api, _: api.fork("thread", new_thread_id="other", values={"messages": messages(99)}),
        ThreadExists,
        "'other'",
    ),
    "fork of a subgraph": (
        lambda api, _: api.fork(config(ns="child")),
        InvalidInput,
        "namespace of a subgraph, 'child'",
    ),
    "fork of None": (lambda api, _: api.fork(None), InvalidInput, "a thread is named by its id"),
    "fork of a number": (lambda api, _: api.fork(7), InvalidInput, "by a config, not by int"),
    "fork of a checkpoint": (
        lambda api, stored: api.fork(api.saver.get_tuple(stored)),
        InvalidInput,
        "not CheckpointTuple; pass its .config",
    ),
    "fork of ''": (lambda api, _: api.fork(""), InvalidInput, "thread_id is empty"),
    "fork to a number": (
        lambda api, _: api.fork("thread", new_thread_id=7),
        InvalidInput,
        "new_thread_id must be a string",
    ),
    "fork to ''": (
        lambda api, _: api.fork("thread", new_thread_id=""),
        InvalidInput,
        "new_thread_id is empty",
    ),
    "fork with a list of values": (
        lambda api, _: api.fork("thread", values=["n"]),
        InvalidInput,
        "values must be a mapping",
    ),
    "fork with a value of no name": (
        lambda api, _: api.fork("thread", values={1: 1}),
        InvalidInput,
        "a key of values",
    ),
    "fork with a value that cannot be stored": (
        lambda api, _: api.fork("thread", values={"n": threading.Lock()}),
        InvalidInput,
        "n",
    ),
    "fork with metadata that are no mapping": (
        lambda api, _: api.fork("thread", metadata="n"),
        InvalidInput,
        "metadata must be a mapping",
    ),
    "fork with metadata that are no JSON": (
        lambda api, _: api.fork("thread", metadata={"n": {1, 2}}),
        InvalidInput,
        "metadata cannot be written as JSON",
    ),
    "fork with a history of its own": (
        lambda api, _: api.fork("thread", history="x"),
        InvalidInput,
        r"history must be one of \['head', 'path'\], not 'x'",
    ),
    "fork with the history True": (
        lambda api, _: api.fork("thread", history=True),
        InvalidInput,
        r"history must be one of \['head', 'path'\], not True",
    ),
    "at an index that is out of range": (
        lambda api, _: api.at("thread", 3),
        CheckpointNotFound,
        "index 3",
    ),
    "at an index that is no integer": (
        lambda api, _: api.at("thread", "0"),
        InvalidInput,
        "index must be an integer",
    ),
    "latest of no mapping": (lambda api, _: api.latest("n"), InvalidInput, "must be a mapping"),
    "history of a config": (
        lambda api, head: history(api, head),
        InvalidInput,
        "thread_id must be a string",
    ),
    "history with a limit of -1": (
        lambda api, _: history(api, "thread", limit=-1),
        InvalidInput,
        "limit must not be negative",
    ),
    "history of nobody": (lambda api, _: history(api, "nobody"), ThreadNotFound, "'nobody'"),
    "lineage of nobody": (lambda api, _: api.lineage("nobody"), ThreadNotFound, "'nobody'"),
    "lineage of None": (lambda api, _: api.lineage(None), InvalidInput, "thread_id"),
    "family of nobody": (lambda api, _: api.family("nobody"), ThreadNotFound, "'nobody'"),
    "family of a config": (lambda api, head: api.family(head), InvalidInput, "thread_id"),
    "rollback of nobody": (lambda api, _: api.rollback("nobody"), ThreadNotFound, "'nobody'"),
    "rollback by nothing": (
        lambda api, _: api.rollback("thread", 0),
        InvalidInput,
        "steps must be 1 or more, not 0",
    ),
    "rollback by True": (
        lambda api, _: api.rollback("thread", True),
        InvalidInput,
        "steps must be an integer",
    ),
    "rollback by more than there are": (
        lambda api, _: api.rollback("thread", 4),
        CheckpointNotFound,
        "has 3 checkpoints",
    ),
    "trim of nobody": (lambda api, _: api.trim("nobody", 1), ThreadNotFound, "'nobody'"),
    "trim to nothing": (
        lambda api, _: api.trim("thread", keep=0),
        InvalidInput,
        "keep must be 1 or more, not 0",
    ),
    "trim to 1.5": (
        lambda api, _: api.trim("thread", 1.5),
        InvalidInput,
        "keep must be an integer",
    ),
    "purge of nobody": (lambda api, _: api.purge("nobody"), ThreadNotFound, "'nobody'"),
    "purge of a config": (lambda api, head: api.purge(head), InvalidInput, "thread_id"),
    "diff with nobody": (lambda api, _: api.diff("thread", "nobody"), ThreadNotFound, "'nobody'"),
    "diff with an unknown checkpoint": (
        lambda api, _: api.diff(config(checkpoint_id="unknown"), "thread"),
        CheckpointNotFound,
        "'unknown'",
    ),
    "diff with a subgraph": (
        lambda api, _: api.diff("thread", config(ns="child")),
        InvalidInput,
        "namespace of a subgraph",
    ),
    "diff with None": (
        lambda api, _: api.diff("thread", None),
        InvalidInput,
        "a thread is named by its id",
    ),
}


async def test_invalid_arguments_of_a_fork_are_named_and_change_nothing(
    api: Api, store: Store
) -> None:
    head = fill(api.saver, 3)[-1]
    put(api.saver, {"n": 1}, ns="child")
    put(api.saver, {"text": "text " * 500}, thread_id="other")
    ThreadCatalog(api.saver).count()  # type: ignore[arg-type] # ends logs, as a refusal may
    before = content(store)
    for name, (call, error, said) in REFUSED.items():
        with pytest.raises(error, match=said):
            await call(api, head)
        assert content(store) == before, name


# What a fork costs


def test_a_fork_is_one_transaction_or_four_round_trips_and_writes_no_chunk(store: Store) -> None:
    sent: list[str] = []
    saver = store.watched(sent.append)
    configs = fill(saver, 5, length=300)
    saver.fork("thread")  # now it knows all that it can
    for source in ("thread", configs[-1], configs[2]):
        before = store.count("chunks")
        sent.clear()
        saver.fork(source)
        if isinstance(store, SqliteStore):
            assert [one for one in sent if one.startswith(("BEGIN", "COMMIT"))] == [
                "BEGIN IMMEDIATE",
                "COMMIT",
            ]
            assert not any("forkpoint_chunks" in one for one in sent)
        else:
            assert len(sent) <= 4
        assert store.count("chunks") == before
    saver.close()


def size_of(store: Store) -> int:
    """Return how many bytes a store takes."""
    if not isinstance(store, SqliteStore):
        return len(store.content())
    with store.connection() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages * page)


@pytest.mark.parametrize("number", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_forks_of_a_long_thread_take_no_chunk_and_two_kilobytes_each(
    number: int, saver: ForkpointSaver, store: Store
) -> None:
    put(saver, {"messages": messages(1000)})
    chunks, size = store.count("chunks"), size_of(store)
    assert size > 700_000
    for n in range(number):
        saver.fork("thread", new_thread_id=f"fork-{n}")
    assert store.count("chunks") == chunks
    assert size_of(store) - size < 2_000 * number
    assert value_of(saver.get_tuple(thread(f"fork-{number - 1}"))) == {"messages": messages(1000)}
    assert store.count("threads") == number + 1


@pytest.mark.parametrize("length", [500, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.in_turns
def test_a_copy_of_a_long_thread_writes_no_chunk_and_leaves_its_source_as_it_was(
    length: int, saver: ForkpointSaver, store: Store
) -> None:
    head: Any = None
    said = messages(100)
    for n in range(length):
        if n % 50 == 0:
            said = [*said, message(100 + n)]
        head = put(saver, {"messages": said, "n": n}, parent=head)
        if n % 10 == 0:
            saver.put_writes(head, [("n", n), ("text", f"{n} " * 500)], "task")
    before, chunks = rows_of(store, "thread"), store.count("chunks")
    saver.copy_thread("thread", "copy")
    assert store.count("chunks") == chunks
    assert rows_of(store, "thread") == before
    assert store.count("checkpoints") == 2 * length
    for position in (0, length // 2, -1):
        one, other = (saver.at(name, position) for name in ("thread", "copy"))
        assert (one.checkpoint, one.pending_writes) == (other.checkpoint, other.pending_writes)


@pytest.mark.parametrize("number", [29, pytest.param(99, marks=pytest.mark.slow)])
@pytest.mark.in_turns
def test_purging_the_root_of_a_large_family_changes_none_of_the_others(
    number: int, saver: ForkpointSaver, store: Store
) -> None:
    rng = random.Random(7)
    configs = fill(saver, 10, thread_id="root", length=100)
    names = ["root"]
    for n in range(number):
        name, parent = f"thread-{n}", rng.choice(names)
        if n % 10 == 9:
            saver.copy_thread(parent, name)
        elif parent == "root":
            saver.fork(rng.choice(configs[:-1]), new_thread_id=name)
        else:
            saver.fork(parent, new_thread_id=name, history=rng.choice(["head", "path"]))
        names.append(name)
        if n % 3 == 0:
            values = {"messages": [*messages(100), message(1000 + n)], "n": n}
            put(saver, values, parent=saver.at(name, -1).config, thread_id=name)
    clones = {name for name in names[1:] if saver.lineage(name)[0].edge == "clone"}
    for name in clones:
        saver.trim(name, 1)  # so that most of the root is the root's alone
    put(
        saver,
        {"messages": messages(100), "text": own(400_000)},
        parent=configs[-1],
        thread_id="root",
    )
    states = {name: everything(saver, name) for name in names[1:]}
    lineages = {name: saver.lineage(name) for name in names[1:]}
    before = stored(store)
    if isinstance(store, SqliteStore):
        shrinkable = file_size(store)

    report = saver.purge("root")
    after = stored(store)
    assert {name: everything(saver, name) for name in names[1:]} == states
    for name, lineage in lineages.items():
        *descendants, root = saver.lineage(name)
        assert descendants == lineage[:-1]
        assert (root.thread_id, root.exists, root.checkpoint_count) == ("root", False, 0)
    assert len(list(saver.family("thread-0"))) == number + 1
    assert report.chunks == before[2] - after[2] > 0
    assert report.bytes == before[3] - after[3] >= 400_000
    assert store.problems(saver) == []
    if isinstance(store, SqliteStore):
        assert file_size(store) < shrinkable - 300_000


def own(size: int) -> str:
    """Return a text that nothing else has a part of."""
    return random.Random(size).randbytes(size // 2).hex()


def file_size(store: SqliteStore) -> int:
    with store.connection() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return store.path.stat().st_size


# While others remove


@pytest.mark.parametrize("rounds", [4, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["purge", "trim", "rollback"])
def test_a_fork_that_is_made_while_another_removes_is_whole_or_none(
    name: str, rounds: int, store: Store
) -> None:
    """The thread is rebuilt and removed from without end, and forked at the same time."""
    removals: dict[str, Callable[[ForkpointSaver], object]] = {
        "purge": lambda saver: saver.purge("thread"),
        "trim": lambda saver: saver.trim("thread", 1),
        "rollback": lambda saver: saver.rollback("thread", 4),
    }
    graph_of = SHAPES["deltas"].build
    errors: list[BaseException] = []
    is_done = threading.Event()

    def remove() -> None:
        try:
            with store.saver() as saver:
                graph = graph_of(saver)
                for n in range(rounds):
                    graph.invoke({"log": [f"turn {n} " * 100]}, thread("thread"))
                    removals[name](saver)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            is_done.set()

    made: list[str] = []
    with store.saver() as saver:
        graph = graph_of(saver)
        graph.invoke({"log": ["first"]}, thread("thread"))
        worker = threading.Thread(target=remove)
        worker.start()
        while not is_done.wait(0.005):  # or the other would never get the lock of the file
            for history_ in ("head", "path"):
                try:
                    fork = saver.fork("thread", history=history_)
                except (ThreadNotFound, CheckpointNotFound):
                    continue
                made.append(fork["configurable"]["thread_id"])
        worker.join()
        assert errors == []
        assert made
        for one in made:
            state = graph.get_state(thread(one))
            if state.next != ("__start__",):
                assert state.values["log"][0] in (
                    "first",
                    *(f"turn {n} " * 100 for n in range(rounds)),
                )
        assert store.problems(saver) == []
        assert graph.invoke({"log": ["last"]}, thread(made[-1]))["log"].count("last") == 1


# Differences


async def test_a_diff_says_what_was_added_removed_and_changed(api: Api) -> None:
    first = put(
        api.saver,
        {
            "messages": [message(0, "a"), message(1, "b"), message(2, "c")],
            "files": {"kept": 1, "gone": 2, "edited": [1], "nested": {"x": 1}},
            "n": 1,
            "same": "same " * 500,
            "turned": [1, 2],
            "left": "left",
            "branch:to:node": None,
        },
    )
    second = put(
        api.saver,
        {
            "messages": [message(0, "a"), message(1, "edited"), AIMessage("new", id="ai")],
            "files": {"kept": 1, "edited": [2], "nested": {"x": 1}, "new": 3},
            "n": 2,
            "same": "same " * 500,
            "turned": {"1": 2},
            "come": [1],
        },
        parent=first,
    )
    diff = await api.diff(first, second)
    assert diff
    assert list(diff) == ["come", "files", "left", "messages", "n", "same", "turned"]
    assert {status: diff.of(status) for status in ("added", "removed", "changed", "unchanged")} == {
        "added": ["come"],
        "removed": ["left"],
        "changed": ["files", "messages", "n", "turned"],
        "unchanged": ["same"],
    }
    said = diff["messages"]
    assert list(said.added) == [AIMessage("new", id="ai")]
    assert list(said.removed) == [message(2, "c")]
    assert said.changed == {"m1": (message(1, "b"), message(1, "edited"))}
    files = diff["files"]
    assert (files.added, files.removed, files.changed) == (
        {"new": 3},
        {"gone": 2},
        {"edited": ([1], [2])},
    )
    assert (diff["n"].before, diff["n"].after) == (1, 2)
    assert (diff["turned"].before, diff["turned"].after) == ([1, 2], {"1": 2})
    assert (diff["come"].before, diff["come"].after) == (None, [1])
    assert (diff["left"].before, diff["left"].after) == ("left", None)
    assert not any(channel.is_rebuilt for channel in diff.channels.values())

    back = await api.diff(second, first)
    assert (back["messages"].added, back["messages"].removed) == (said.removed, said.added)
    assert back["messages"].changed == {"m1": (message(1, "edited"), message(1, "b"))}
    assert not await api.diff(first, first)
    assert not await api.diff("thread", second)


async def test_a_diff_is_between_any_two_threads(api: Api, new_store: Callable[[], Store]) -> None:
    configs = fill(api.saver, 3, length=300)
    put(api.saver, {"messages": messages(301), "n": 1}, thread_id="stranger")
    fork = await api.fork(configs[1], values={"n": "other"})
    for one, other, changed, added in (
        ("thread", fork, ["messages", "n"], []),
        (configs[1], fork, ["n"], []),
        (configs[1], "stranger", [], []),
        (configs[0], "stranger", ["messages", "n"], [message(300)]),
    ):
        diff = await api.diff(one, other)
        assert diff.of("changed") == changed
        assert list(diff["messages"].added) == added
        assert bool(diff) == bool(changed)


async def test_another_order_is_a_difference_for_a_list_and_none_for_a_dict(api: Api) -> None:
    pairs = {
        "short": ([1, 2, 3], [3, 1, 2], True),
        "long": (messages(400), messages(400)[::-1], True),
        "dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        "long dict": (
            {f"k{n}": message(n) for n in range(300)},
            {f"k{n}": message(n) for n in reversed(range(300))},
            False,
        ),
    }
    first = put(api.saver, {name: pair[0] for name, pair in pairs.items()})
    second = put(api.saver, {name: pair[1] for name, pair in pairs.items()}, parent=first)
    diff = await api.diff(first, second)
    assert diff
    for name, (_, _, is_changed) in pairs.items():
        channel = diff[name]
        assert (channel.status == "changed") == is_changed, name
        assert not [*channel.added, *channel.removed, *channel.changed], name


@dataclasses.dataclass
class Shy:
    number: int

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_diff_is_of_elements_that_raise_what_they_like(tmp_path: Path) -> None:
    with SqliteSaver(tmp_path / "shy.db") as saver:
        first = put(saver, {"list": [Shy(1), Shy(2)]})
        diff = saver.diff(first, put(saver, {"list": [Shy(1), Shy(3)]}, parent=first))
    assert (diff["list"].removed, diff["list"].added) == ((Shy(2),), (Shy(3),))


_ELEMENTS = st.one_of(
    st.integers(0, 5),
    st.builds(dict, id=st.sampled_from("abcd"), v=st.integers(0, 3)),
    st.builds(lambda n, text: message(n, text), st.integers(0, 5), st.sampled_from(["x", "y"])),
)


@drawn(
    10,
    60,
    before=st.lists(_ELEMENTS, max_size=12),
    after=st.lists(_ELEMENTS, max_size=12),
    around=st.sampled_from([0, 40]),
)
def test_a_diff_of_lists_accounts_for_each_element(
    before: list[Any], after: list[Any], around: int, saver: ForkpointSaver
) -> None:
    """Whatever they are, and whether or not they are stored in chunks."""
    ends = [message(100 + n) for n in range(around)]
    old, new = [*ends, *before, *ends], [*ends, *after, *ends]
    first = put(saver, {"list": old})
    diff = saver.diff(first, put(saver, {"list": new}, parent=first))["list"]
    rest = [repr(one) for one in old]
    for one in (*diff.removed, *(pair[0] for pair in diff.changed.values())):
        rest.remove(repr(one))
    come = [*diff.added, *(pair[1] for pair in diff.changed.values())]
    assert sorted([*rest, *map(repr, come)]) == sorted(map(repr, new))
    assert (diff.status == "changed") == (repr(old) != repr(new))


async def test_a_diff_of_encrypted_states(store: Store) -> None:
    serde = encrypted_serde()
    with store.saver(serde=serde) as saver:
        first = put(saver, {"messages": messages(300), "n": 1})
        fork = saver.fork(first, values={"messages": messages(301), "n": [1]})
        diff = saver.diff("thread", fork)
        assert list(diff["messages"].added) == [message(300)]
        assert (diff["n"].before, diff["n"].after) == (1, [1])
        assert value_of(saver.get_tuple(fork)) == {"messages": messages(301), "n": [1]}
        assert store.problems(saver) == []


async def test_a_diff_of_encrypted_threads_of_two_families(store: Store) -> None:
    """Which have other digests for the same values."""
    with store.saver(serde=encrypted_serde()) as saver:
        for thread_id in ("thread", "other"):
            put(saver, {"text": "x" * 3000, "messages": messages(3)}, thread_id=thread_id)
        diff = saver.diff("thread", "other")
        assert [diff[channel].status for channel in ("messages", "text")] == ["unchanged"] * 2


async def test_a_diff_marks_a_delta_channel_that_is_rebuilt(api: Api) -> None:
    graph = SHAPES["snapshots"].build(api.saver)
    for given_ in SHAPES["snapshots"].inputs:
        graph.invoke(given_, thread("thread"))
    found = [one for one in await history(api, "thread") if "n" in value_of(one)]
    is_stored = ["log" in value_of(one) for one in found]
    assert {*is_stored} == {True, False}
    logs = [graph.get_state(one.config).values["log"] for one in found]
    for before, after in zip(range(len(found) - 1), range(1, len(found)), strict=True):
        log = (await api.diff(found[before].config, found[after].config))["log"]
        assert log.is_rebuilt == (not (is_stored[before] and is_stored[after]))
        assert log.status == ("unchanged" if logs[before] == logs[after] else "changed")
    rebuilt = found[is_stored.index(False)].config
    same = (await api.diff(rebuilt, await api.fork(rebuilt)))["log"]
    assert (same.status, same.is_rebuilt) == ("unchanged", True)

    snapshots = [one.config for one, stored in zip(found, is_stored, strict=True) if stored]
    log = (await api.diff(snapshots[0], snapshots[1]))["log"]
    states = [graph.get_state(one).values["log"] for one in snapshots[:2]]
    assert [*states[0], *log.added] == states[1]
    assert not [*log.removed, *log.changed]
    assert not log.is_rebuilt


async def test_a_diff_tells_delta_channels_of_forks_apart_that_count_on_alike(api: Api) -> None:
    graph = SHAPES["deltas"].build(api.saver)
    graph.invoke({"log": ["start"]}, thread("thread"))
    for name in ("same", "other"):
        await api.fork("thread", new_thread_id=name)
    unchanged = (await api.diff("thread", "same")).channels
    assert {channel.status for channel in unchanged.values()} == {"unchanged"}
    for name, text in (("thread", "one"), ("same", "one"), ("other", "two")):
        graph.invoke({"log": [text]}, thread(name))
    for name, status in (("same", "unchanged"), ("other", "changed")):
        diff = await api.diff("thread", name)
        assert (diff["log"].status, diff["log"].is_rebuilt) == (status, True)
        assert (diff["never"].status, diff["n"].status) == ("unchanged", "unchanged")


@pytest.mark.parametrize(("role", "method"), [(SqliteChunkReads, "get"), (MongoChunks, "get")])
@pytest.mark.parametrize("kind", ["list", "dict"])
async def test_a_diff_reads_only_chunks_that_differ(
    kind: str, role: Any, method: str, api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(count: int) -> Any:
        listed = messages(count)
        return {"value": listed if kind == "list" else {one.id: one for one in listed}}

    first = put(api.saver, values(1000))
    second = put(api.saver, values(1001), parent=first)
    assert store.count("chunks") > 200
    read: set[bytes] = set()
    chunks = getattr(role, method)

    def recording(self: Any, family: Any, digests: Any, **options: Any) -> Any:
        found = chunks(self, family, digests, **options)
        read.update(found)
        return found

    monkeypatch.setattr(role, method, recording)
    diff = (await api.diff(first, second))["value"]
    assert list(diff.added) == [message(1000) if kind == "list" else "m1000"]
    assert not [*diff.removed, *diff.changed]
    is_own = isinstance(store, SqliteStore) == (role is SqliteChunkReads)
    assert (0 < len(read) < 20) == is_own
    assert is_own or not read
