"""Runs whose thread is deleted under them, while others use its id again at once."""

from __future__ import annotations

import asyncio
import operator
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import aiosqlite
import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from checking import checkpoint, config, id_of, put, value_of
from children import Child
from forkpoint import MongoDBSaver, SqliteSaver, ThreadDeleted
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import archive_threads, restore_threads
from servers import PATIENCE_SECONDS
from stores import SqliteStore, Store

LIMIT = PATIENCE_SECONDS

Open = Callable[[], Any]


at_once = pytest.mark.parametrize(
    ("open_saver", "width"),
    [
        pytest.param(opened, width, marks=() if is_in_every_run else pytest.mark.slow)
        for opened in ("path", "sqlite3", "aiosqlite", "mongodb")
        for width, is_in_every_run in ((2, opened != "mongodb"), (60, opened == "mongodb"))
    ],
    indirect=["open_saver"],
)
"""The more workers there are, the more tasks it takes to have all of them wait."""


@pytest.fixture(params=["path", "sqlite3", "aiosqlite", "mongodb"])
def open_saver(request: pytest.FixtureRequest, path: Path) -> Open:
    """Opens a saver in each of the ways in which operations get their threads."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[ForkpointSaver]:
        if request.param == "aiosqlite":
            async with aiosqlite.connect(path) as connection:
                yield SqliteSaver(connection)
        elif request.param == "sqlite3":
            plain = sqlite3.connect(path, check_same_thread=False)
            yield SqliteSaver(plain)
            plain.close()
        elif request.param == "path":
            async with SqliteSaver(path) as saver:
                yield saver
        else:
            mongo_store = request.getfixturevalue("mongo_store")
            async with MongoDBSaver.from_conn_string(
                mongo_store.uri, db_name=mongo_store.name
            ) as saver:
                yield saver

    return opened


async def test_late_writes_hold_up_neither_a_new_run_nor_reads_of_others(open_saver: Open) -> None:
    async with open_saver() as saver:
        await saver.aput(config("other"), checkpoint({"n": 1}), {}, {"n": 1})
        old = await saver.aput(config(), checkpoint({"n": "old"}), {}, {"n": 1})
        await saver.adelete_thread("thread")
        new = checkpoint({"n": "new"})
        late = [saver.aput_writes(old, [("c", n)], f"task-{n}") for n in range(80)]
        calls = [*late, saver.aput(config(), new, {}, {"n": 1}), saver.aget_tuple(config("other"))]
        done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT)

        assert all(isinstance(outcome, ThreadDeleted) for outcome in done[:80])
        assert done[80] == config(checkpoint_id=new["id"])
        assert done[81] is not None
        head = await saver.aget_tuple(config())
        assert head is not None
        assert head.pending_writes == []


async def test_threads_that_write_late_hold_up_neither_a_new_run_nor_reads(
    open_saver: Open,
) -> None:
    async with open_saver() as saver:
        await saver.aput(config("other"), checkpoint({"n": 1}), {}, {"n": 1})
        old = await saver.aput(config(), checkpoint({"n": "old"}), {}, {"n": 1})
        await saver.adelete_thread("thread")
        new = checkpoint({"n": "new"})
        calls = [
            *(asyncio.to_thread(saver.put_writes, old, [("c", 1)], f"{n}") for n in range(12)),
            asyncio.to_thread(saver.put, config(), new, {}, {"n": 1}),
            asyncio.to_thread(saver.get_tuple, config("other")),
        ]
        done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT)

        assert all(isinstance(outcome, ThreadDeleted) for outcome in done[:12])
        assert done[12] == config(checkpoint_id=new["id"])
        assert done[13] is not None


class State(TypedDict):
    run: str
    done: Annotated[list[str], operator.add]


class Gate:
    """Where the nodes of one run wait, until the test lets them go on."""

    def __init__(self, run: str, nodes: int) -> None:
        self._run = run
        self._nodes = nodes
        self.opened = threading.Event()
        self.aopened = asyncio.Event()
        self._lock = threading.Lock()
        self._number = 0
        self.is_reached = threading.Event()

    def pass_by(self, run: str) -> bool:
        """Return whether a node of this run may go on."""
        return run != self._run or self.opened.is_set()

    def reach(self, run: str) -> None:
        if run == self._run:
            with self._lock:
                self._number += 1
                if self._number == self._nodes:
                    self.is_reached.set()

    def open(self) -> None:
        """Let them go on; called on the thread of the event loop, if there is one."""
        self.opened.set()
        self.aopened.set()


def fan_out(saver: ForkpointSaver, gate: Gate, width: int, steps: int = 1) -> Any:
    """Return a graph whose parallel tasks, and those after them, wait at the gate."""

    def work(state: State) -> dict[str, Any]:
        gate.reach(state["run"])
        if not gate.pass_by(state["run"]):
            assert gate.opened.wait(LIMIT)
        return {"done": [state["run"]]}

    async def awork(state: State) -> dict[str, Any]:
        gate.reach(state["run"])
        if not gate.pass_by(state["run"]):
            await asyncio.wait_for(gate.aopened.wait(), LIMIT)
        return {"done": [state["run"]]}

    def spread(state: State) -> list[Send]:
        return [Send("work", state) for _ in range(width)]

    builder = StateGraph(State)
    builder.add_node("work", RunnableLambda(work, awork))
    builder.add_conditional_edges(START, spread, ["work"])
    before = "work"
    for step in range(steps):
        after = f"after-{step}"
        builder.add_node(after, lambda state: {"done": [state["run"]]})
        builder.add_edge(before, after)
        before = after
    return builder.compile(checkpointer=saver)


THREAD = {"configurable": {"thread_id": "thread"}}


@at_once
async def test_a_graph_of_parallel_tasks_whose_id_is_used_again_at_once(
    width: int, open_saver: Open
) -> None:
    async with open_saver() as saver:
        gate = Gate("old", width)
        graph = fan_out(saver, gate, width)
        await saver.aput(config("other"), checkpoint({"n": 1}), {}, {"n": 1})
        old = asyncio.create_task(graph.ainvoke({"run": "old", "done": []}, THREAD))
        await asyncio.wait_for(asyncio.to_thread(gate.is_reached.wait, LIMIT), LIMIT)
        await saver.adelete_thread("thread")
        gate.open()
        new = graph.ainvoke({"run": "new", "done": []}, THREAD)
        calls = asyncio.gather(old, new, saver.aget_tuple(config("other")), return_exceptions=True)
        done = await asyncio.wait_for(calls, LIMIT)

        assert isinstance(done[0], ThreadDeleted)
        assert done[1] == {"run": "new", "done": ["new"] * (width + 1)}
        assert done[2] is not None
        runs = [state.values.get("run") async for state in graph.aget_state_history(THREAD)]
        assert runs == ["new", "new", "new", None]


@at_once
async def test_a_graph_of_threads_whose_id_is_used_again_at_once(
    width: int, open_saver: Open
) -> None:
    async with open_saver() as saver:
        gate = Gate("old", width)
        graph = fan_out(saver, gate, width)
        limited = {**THREAD, "max_concurrency": width + 4}
        old = asyncio.create_task(
            asyncio.to_thread(graph.invoke, {"run": "old", "done": []}, limited)
        )
        await asyncio.to_thread(gate.is_reached.wait, LIMIT)
        await saver.adelete_thread("thread")
        gate.open()
        new = asyncio.to_thread(graph.invoke, {"run": "new", "done": []}, limited)
        read = asyncio.to_thread(saver.get_tuple, config("other"))
        calls = asyncio.gather(old, new, read, return_exceptions=True)
        done = await asyncio.wait_for(calls, LIMIT)

        assert isinstance(done[0], ThreadDeleted)
        assert done[1] == {"run": "new", "done": ["new"] * (width + 1)}
        assert done[2] is None
        head = await saver.aget_tuple(config())
        assert head is not None
        assert value_of(head)["run"] == "new"


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_what_a_deleted_run_stores_late_is_never_among_what_the_next_one_stores(
    durability: str, saver: ForkpointSaver, store: Store
) -> None:
    """However many steps it takes after the deletion, and although it takes them beside it."""
    gate = Gate("old", 3)
    graph = fan_out(saver, gate, 3, steps=8)
    alone = {"configurable": {"thread_id": "alone"}}
    graph.invoke({"run": "new", "done": []}, alone, durability=durability)
    usual = store.count("writes")
    saver.delete_thread("alone")
    failures: list[BaseException] = []

    def run_old() -> None:
        try:
            graph.invoke({"run": "old", "done": []}, THREAD, durability=durability)
        except ThreadDeleted as error:
            failures.append(error)

    old = threading.Thread(target=run_old)
    old.start()
    assert gate.is_reached.wait(LIMIT)
    saver.delete_thread("thread")
    for step in graph.stream({"run": "new", "done": []}, THREAD, durability=durability):
        assert step
        gate.open()  # from the first step of the new run on, both run
    old.join(LIMIT)
    assert not old.is_alive()
    assert len(failures) == 1
    assert graph.get_state(THREAD).values["done"] == ["new"] * 11
    assert store.count("writes") == usual
    assert store.problems(saver) == []


# A run of which nothing is stored yet


@pytest.fixture(params=["same saver", "another"])
def deleter(request: pytest.FixtureRequest, saver: ForkpointSaver, store: Store) -> Iterator[Any]:
    """Deletes threads: the saver of the run, or that of another process."""
    if request.param == "same saver":
        yield saver
    else:
        with store.saver() as other:
            yield other


@pytest.mark.parametrize("durability", ["exit", "async"])
@pytest.mark.parametrize("was_used", [False, True])
async def test_a_first_run_whose_thread_is_deleted_meanwhile_stores_nothing(
    was_used: bool,
    durability: str,
    saver: ForkpointSaver,
    deleter: ForkpointSaver,
    store: Store,
) -> None:
    """`durability="exit"` stores at the end only, of a thread that nobody knows until then."""
    gate = Gate("old", 1)
    graph = fan_out(saver, gate, 1, steps=2)
    if was_used:
        graph.invoke({"run": "before", "done": []}, THREAD)
        deleter.delete_thread("thread")
    run = graph.ainvoke({"run": "old", "done": []}, THREAD, durability=durability)
    old = asyncio.create_task(run)
    await asyncio.to_thread(gate.is_reached.wait, LIMIT)
    await deleter.adelete_thread("thread")
    gate.open()
    with pytest.raises(ThreadDeleted):
        await asyncio.wait_for(old, LIMIT)
    assert await saver.aget_tuple(config()) is None
    assert store.count("checkpoints") == store.count("writes") == store.count("threads") == 0
    assert store.problems(saver) == []

    await graph.ainvoke({"run": "new", "done": []}, THREAD, durability=durability)
    assert (await graph.aget_state(THREAD)).values["run"] == "new"


def test_a_first_run_is_told_from_the_one_that_uses_its_id_after_a_deletion(
    saver: ForkpointSaver, deleter: ForkpointSaver, store: Store
) -> None:
    gate = Gate("old", 1)
    graph = fan_out(saver, gate, 1)
    steps = graph.stream({"run": "old", "done": []}, THREAD, durability="exit")
    gate.open()
    next(steps)
    deleter.delete_thread("thread")
    graph.invoke({"run": "new", "done": []}, THREAD, durability="exit")
    with pytest.raises(ThreadDeleted):
        list(steps)
    assert graph.get_state(THREAD).values["done"] == ["new", "new"]
    assert len(list(saver.list(config()))) == 1
    assert store.problems(saver) == []


@pytest.mark.parametrize("was_used", [False, True])
def test_a_run_is_late_even_if_the_store_was_opened_anew_since_it_began(
    was_used: bool, saver: ForkpointSaver, store: Store
) -> None:
    graph = fan_out(saver, Gate("nobody", 1), 1)
    if was_used:
        graph.invoke({"run": "before", "done": []}, THREAD)
    steps = graph.stream({"run": "old", "done": []}, THREAD, durability="exit")
    next(steps)
    with store.saver() as other:
        other.delete_thread("thread")
    open_anew(saver, store)
    with pytest.raises(ThreadDeleted):
        list(steps)
    assert saver.get_tuple(config()) is None
    assert store.problems(saver) == []


def open_anew(saver: ForkpointSaver, store: Store) -> None:
    """Do to a saver what a fork does to its file, or the start of another server."""
    if isinstance(store, SqliteStore):
        Child(lambda: None).join()
    else:
        parts_of(saver).context.storage._commands.identity.lose()  # type: ignore[attr-defined]


def test_first_runs_at_the_same_time_are_no_late_ones(saver: ForkpointSaver, store: Store) -> None:
    put(saver, {"n": 1})
    saver.delete_thread("thread")
    graph = fan_out(saver, Gate("nobody", 1), 2)
    runs = [graph.stream({"run": f"{n}", "done": []}, THREAD, durability="exit") for n in range(2)]
    for run in runs:
        next(run)
    for run in runs:
        list(run)
    assert len(list(saver.list(config()))) == 2
    assert store.problems(saver) == []


def test_a_subgraph_belongs_to_the_run_that_began_before_the_deletion(
    saver: ForkpointSaver, store: Store
) -> None:
    inner = fan_out(True, Gate("nobody", 1), 1)  # type: ignore[arg-type]
    builder = StateGraph(State)

    def delete(state: State) -> dict[str, Any]:
        saver.delete_thread("thread")
        return {"done": []}

    builder.add_node("delete", delete)
    builder.add_node("inner", inner)
    builder.add_edge(START, "delete")
    builder.add_edge("delete", "inner")
    graph = builder.compile(checkpointer=saver)
    for durability in ("exit", "sync", "async"):
        with pytest.raises(ThreadDeleted):
            graph.invoke({"run": "old", "done": []}, THREAD, durability=durability)
        assert store.count("checkpoints") == store.count("writes") == 0
    assert store.problems(saver) == []


def test_deleting_a_thread_that_never_existed_leaves_one_tombstone(
    saver: ForkpointSaver, store: Store
) -> None:
    for _ in range(5):
        saver.delete_thread("thread")
    assert len(store.threads()) <= 1
    assert store.count("threads") == 0
    stored = put(saver, {"n": 1})
    saver.put_writes(stored, [("c", 1)], "task")
    assert saver.fork("thread", new_thread_id="fork")
    assert [entry.thread_id for entry in saver.lineage("fork")] == ["fork", "thread"]
    assert id_of(saver.get_tuple(config("fork"))) == id_of(stored)
    assert store.problems(saver) == []


@pytest.mark.parametrize("make", ["fork", "copy_thread"])
def test_a_copy_may_take_the_id_of_a_deleted_thread_that_never_existed(
    make: str, saver: ForkpointSaver, store: Store
) -> None:
    put(saver, {"n": 1}, thread_id="source")
    saver.delete_thread("thread")
    if make == "fork":
        saver.fork("source", new_thread_id="thread")
    else:
        saver.copy_thread("source", "thread")
    assert saver.get_tuple(config()) is not None
    assert store.problems(saver) == []


def test_writes_that_came_before_their_late_checkpoint_go_with_it(
    saver: ForkpointSaver, store: Store
) -> None:
    """A task of a run may be faster than the checkpoint that it belongs to."""
    head = put(saver, {"n": 1})
    saver.delete_thread("thread")
    late = checkpoint({"n": 2})
    with store.saver() as other:  # which knows of no run
        other.setup()
        announced = parts_of(other).context.memory.announced
        announced.add(1, "thread", late["id"])
        other.put_writes(config(checkpoint_id=late["id"]), [("c", "x" * 9000)], "task")
        announced.remove(1)
        assert store.count("writes") > 0
        with pytest.raises(ThreadDeleted):
            other.put(head, late, {}, {"n": 2})
    assert [store.count(kind) for kind in ("threads", "writes")] == [0, 0]
    assert store.problems(saver) == []


def test_what_was_restored_stays_where_a_late_run_puts_it_again(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    first = put(saver, {"n": 1})
    made = checkpoint({"n": 2})
    second = saver.put(first, made, {}, {"n": 2})
    saver.put_writes(second, [("c", "x" * 9000)], "task")
    saver.trim("thread", 1)
    archive_threads(saver, tmp_path / "archive")
    expected = list(saver.list(config()))
    saver.delete_thread("thread")
    assert restore_threads(saver, tmp_path / "archive").is_complete
    with store.saver() as other, pytest.raises(ThreadDeleted):
        other.put(first, made, {}, {"n": 2})
    assert list(saver.list(config())) == expected
    assert store.problems(saver) == []
