"""Runs that are rolled back: `if_busy="rollback"` leaves a thread as it was when they began."""

from __future__ import annotations

import contextlib
import re
import secrets
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from test_tool_calls import entered, left, stuck

from agents import Agent
from checking import Api, checkpoint, config, put, value_of
from forkpoint import CorruptChunk, StaleLease, StorageBusy, ThreadCatalog
from forkpoint.catalog import leases
from forkpoint.operations import remove as removing
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from graphs import MORE_SHAPES, SHAPES, Shape
from stores import MongoStore, SqliteStore, Store

KINDS = ("checkpoints", "writes", "chunks")
ALL_SHAPES = {**SHAPES, **MORE_SHAPES}
SOME = ["deltas", "interrupts", "stateful subgraphs", "questions"]


def rows(store: Store) -> Any:
    return [sorted(repr(row._replace(key=None)) for row in store.rows(kind)) for kind in KINDS]


def described(store: Store) -> Any:
    thread = store.thread("thread")
    return thread.checkpoint_count, thread.status, thread.metadata


def without_ids(state: Any) -> str:
    """Return what a state is, but for ids that LangGraph makes up whenever it is looked at."""
    parts = state.values, state.next, state.config, state.tasks
    return re.sub(r" id='[0-9a-f-]{36}'", "", repr(parts))


def run(graph: Any, shape: Shape, number: int, config: Any) -> None:
    """Give a graph its next input. Some graphs fail, as they are to."""
    with contextlib.suppress(ValueError, RuntimeError):
        graph.invoke(shape.inputs[number], config, **shape.options)


def ways() -> Any:
    for name in ALL_SHAPES:
        for number in range(len(ALL_SHAPES[name].inputs)):
            marks = () if name in SOME and number == 1 else pytest.mark.slow
            yield pytest.param(name, number, marks=marks, id=f"{name}-{number}")


@pytest.mark.parametrize(("name", "number"), list(ways()))
@pytest.mark.in_turns
async def test_the_thread_is_as_it_was_when_the_run_began(
    name: str, number: int, api: Api, store: Store
) -> None:
    catalog = ThreadCatalog(api.saver)
    catalog.create("thread", label="L")
    shape = ALL_SHAPES[name]
    graph = shape.build(api.saver)
    for earlier in range(number):
        run(graph, shape, earlier, config())
    before = rows(store), described(store), graph.get_state(config(), subgraphs=True)
    first = await entered(catalog.run("thread"), api.world)
    run(graph, shape, number, first.config)
    assert rows(store) != before[0] or name == "breakpoints"  # the same is stored again
    second = await entered(catalog.run("thread", if_busy="rollback"), api.world)
    assert rows(store) == before[0]
    assert described(store) == before[1]
    after = shape.build(api.saver).get_state(config(), subgraphs=True)
    assert without_ids(after) == without_ids(before[2])
    with pytest.raises(StaleLease):
        await api.put(first.config, checkpoint({"late": 1}), {}, {"late": 1})
    with contextlib.suppress(StaleLease):  # where it has something to store
        run(graph, shape, number, first.config)
    assert rows(store) == before[0]
    run(graph, shape, number, second.config)
    await left(second, api.world)
    await left(first, api.world)
    thread = catalog.get("thread")
    assert thread is not None
    assert (thread.label, thread.status == "busy") == ("L", False)
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_run_that_goes_on_is_refused_and_the_next_turn_begins_where_it_did(
    api: Api, store: Store
) -> None:
    catalog = ThreadCatalog(api.saver)
    agent = Agent(api.saver, parallel=True)
    first = await entered(catalog.run("thread"), api.world)
    await agent.graph.ainvoke(agent.input("Hello"), first.config)
    await left(first, api.world)
    before = rows(store)
    second = await entered(catalog.run("thread"), api.world)
    going_on = await stuck(agent, second.config, has_answer=True)
    third = await entered(catalog.run("thread", if_busy="rollback"), api.world)
    assert rows(store) == before
    agent.may_return.set()
    with pytest.raises(StaleLease):
        await going_on
    assert rows(store) == before
    done = await agent.graph.ainvoke(agent.input("Never mind"), third.config)
    contents = [message.content for message in done["messages"]]
    assert contents == ["Hello", "Done.", "Never mind", "Done."]
    for lease in (second, third):
        await left(lease, api.world)
    assert store.problems(api.saver) == []


@pytest.mark.parametrize(
    ("is_released", "if_busy"),
    [(True, "raise"), (True, "wait"), (False, "cancel"), (False, "rollback")],
)
@pytest.mark.in_turns
async def test_a_rollback_that_failed_is_done_by_the_next_run(
    is_released: bool, if_busy: str, api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = ThreadCatalog(api.saver)
    head = put(api.saver, {"n": 1})
    holder = await entered(catalog.run("thread"), api.world)
    under: Any = {"configurable": {**head["configurable"], **holder.config["configurable"]}}
    api.saver.put(under, checkpoint({"n": 2}), {}, {"n": 2})

    def fail(*_: Any) -> None:
        raise StorageBusy("another process removes")

    with monkeypatch.context() as patch:
        patch.setattr(removing, "withdraw", fail)
        if not is_released:  # as if the process was killed
            patch.setattr(leases, "release", lambda *_: None)
        with pytest.raises(StorageBusy):
            await entered(catalog.run("thread", if_busy="rollback"), api.world)
    assert [value_of(each) for each in api.saver.list(config())] == [{"n": 2}, {"n": 1}]
    following = await entered(catalog.run("thread", if_busy=if_busy), api.world)
    assert [value_of(each) for each in api.saver.list(config())] == [{"n": 1}]
    await left(following, api.world)
    again = await entered(catalog.run("thread"), api.world)
    under = {"configurable": {**head["configurable"], **again.config["configurable"]}}
    api.saver.put(under, checkpoint({"n": 3}), {}, {"n": 3})
    await left(again, api.world)
    last = await entered(catalog.run("thread", if_busy="rollback"), api.world)  # nobody has it
    assert [value_of(each) for each in api.saver.list(config())] == [{"n": 3}, {"n": 1}]
    await left(last, api.world)
    await left(holder, api.world)
    assert store.problems(api.saver) == []


def test_a_long_run_is_rolled_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 10)
    store = SqliteStore(path)
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        for shape in ("deltas", "chat"):
            graph = SHAPES[shape].build(saver)
            at = config(shape)
            for _ in range(3):
                graph.invoke(SHAPES[shape].inputs[0], at)
            before = rows(store)
            with catalog.run(shape) as holder:
                for _ in range(10):
                    graph.invoke(SHAPES[shape].inputs[0], holder.config)
                with catalog.run(shape, if_busy="rollback"):
                    assert rows(store) == before
        assert store.problems(saver) == []


@pytest.mark.in_turns
def test_a_large_answer_is_what_it_was(store: Store, saver: ForkpointSaver) -> None:
    """Its chunks stay as long as a run may be rolled back that replaced it."""
    catalog = ThreadCatalog(saver)
    put(saver, {"n": 0})
    head = put(saver, {"n": 1})
    first = ["a" * 100_000]
    saver.put_writes(head, [("__resume__", first)], "task")
    before = rows(store)
    with catalog.run("thread") as holder:
        under: Any = {"configurable": {**head["configurable"], **holder.config["configurable"]}}
        for answer in ("b", "c"):
            saver.put_writes(under, [("__resume__", [*first, answer * 100_000])], "task")
        saver.trim("thread", 1)
        with catalog.run("thread", if_busy="rollback"):
            checkpoint_tuple = saver.get_tuple(head)
            assert checkpoint_tuple is not None
            assert checkpoint_tuple.pending_writes == [("task", "__resume__", first)]
    assert rows(store)[1:] == before[1:]  # of the checkpoints one was trimmed
    assert store.problems(saver) == []


def damaged_sqlite(store: SqliteStore, before: Any) -> None:
    with store.connection() as connection:
        connection.execute(
            "UPDATE forkpoint_writes SET before = ? WHERE before IS NOT NULL", (before,)
        )


@pytest.mark.parametrize("before", [b"\xc1", ["a"] * 7, {"refs": 1}])
@pytest.mark.in_turns
def test_what_was_before_is_not_trusted(before: Any, store: Store, saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    head = put(saver, {"n": 1})
    saver.put_writes(head, [("__resume__", ["a"])], "task")
    with catalog.run("thread") as holder:
        under: Any = {"configurable": {**head["configurable"], **holder.config["configurable"]}}
        saver.put_writes(under, [("__resume__", ["b"])], "task")
        if isinstance(store, SqliteStore):
            packed = ormsgpack.packb(before) if isinstance(before, (list, dict)) else before
            damaged_sqlite(store, packed)
        else:
            assert isinstance(store, MongoStore)
            query = {"before": {"$exists": True}}
            assert store.collection.update_many(query, {"$set": {"before": before}}).matched_count
        with catalog.run("thread", if_busy="rollback"):
            try:
                answers = saver.get_tuple(head).pending_writes  # type: ignore[union-attr]
            except CorruptChunk:
                return
            assert answers in ([], [("task", "__resume__", ["a"])])


def test_a_run_is_rolled_back_whatever_the_fence_of_its_lease(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fence goes up by a number that nobody guesses, and may take more than 32 bits."""
    monkeypatch.setattr(secrets, "randbelow", lambda bound: bound - 1)
    catalog, head = ThreadCatalog(saver), put(saver, {"n": 1})
    with catalog.run("thread") as lease:
        under: Any = {"configurable": {**head["configurable"], **lease.config["configurable"]}}
        saver.put(under, checkpoint({"n": 2}), {}, {"n": 2})
        with catalog.run("thread", if_busy="rollback"):
            assert value_of(saver.get_tuple(config())) == {"n": 1}


@pytest.mark.in_turns
def test_a_record_in_which_a_number_is_damaged_is_refused(
    store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    put(saver, {"n": 1})
    for damage in ("text", b"", 1.5):
        if isinstance(store, SqliteStore):
            with store.connection() as connection:
                connection.execute("UPDATE forkpoint_threads SET rollback_from = ?", (damage,))
        else:
            assert isinstance(store, MongoStore)
            store.collection.update_one({"kind": "thread"}, {"$set": {"rollback_from": damage}})
        with pytest.raises(CorruptChunk), catalog.run("thread"):
            pass
    assert value_of(saver.get_tuple(config())) == {"n": 1}
