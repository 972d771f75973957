"""One run at a time on a thread, and nothing from one that lost its turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

import aiosqlite
import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from catalogs import at, stored_rows
from checking import Api, checkpoint, config, one_by_one, put
from forkpoint import (
    InvalidInput,
    Lease,
    SaverClosed,
    SqliteSaver,
    StaleLease,
    StorageBusy,
    ThreadBusy,
    ThreadCatalog,
    ThreadDeleted,
    ThreadNotFound,
)
from forkpoint.catalog import leases
from forkpoint.saver.saver import ForkpointSaver
from gates import Gate
from graphs import SHAPES
from servers import PATIENCE_SECONDS
from stores import KINDS, Store

SHORT = timedelta(milliseconds=400)  # of a lease that is to end by itself


@contextlib.asynccontextmanager
async def entered(catalog: Api, lease: Lease) -> AsyncIterator[Lease]:
    """Enter a lease as its world does."""
    if catalog.world == "sync":
        with lease:
            yield lease
    else:
        async with lease:
            yield lease


def run(catalog: Api, thread_id: str = "thread", **options: Any) -> Any:
    return entered(catalog, catalog.saver.run(thread_id, **options))


async def test_a_run_waits_until_the_other_run_is_done(catalog: Api, store: Store) -> None:
    order: list[str] = []
    with store.saver() as own:
        first = ThreadCatalog(own).run("thread")
        first.__enter__()
        order.append("first")

        def end() -> None:
            order.append("end")
            first.__exit__(None, None, None)

        timer = threading.Timer(0.2, end)
        timer.start()
        async with run(catalog, if_busy="wait"):
            order.append("second")
        timer.join()
    assert order == ["first", "end", "second"]


async def test_a_lease_may_need_its_thread(catalog: Api, store: Store) -> None:
    with pytest.raises(ThreadNotFound):
        async with run(catalog, must_exist=True):
            pass
    await catalog.create("thread")
    with store.saver() as own:
        first = ThreadCatalog(own).run("thread")
        first.__enter__()

        def end() -> None:
            own.delete_thread("thread")
            first.__exit__(None, None, None)

        timer = threading.Timer(0.1, end)
        timer.start()
        with pytest.raises(ThreadNotFound):
            async with run(catalog, if_busy="wait", must_exist=True):
                pass
        timer.join()
    assert await catalog.count() == 0


class State(TypedDict):
    n: int


async def invoked(api: Api, graph: Any, config: Any, durability: Any) -> Any:
    """Run a graph as its world does."""
    if api.world == "sync":
        return graph.invoke({"n": 5}, config, durability=durability)
    return await graph.ainvoke({"n": 5}, config, durability=durability)


async def test_a_graph_ends_where_its_lease_is_taken_over(
    catalog: Api, api: Api, store: Store
) -> None:
    def take_over(_: State) -> dict[str, Any]:
        with store.saver() as own, ThreadCatalog(own).run("thread", if_busy="cancel"):
            return {"n": 1}

    builder = StateGraph(State)
    builder.add_node("first", lambda _: {"n": 0})
    builder.add_node("take_over", take_over)
    builder.add_edge(START, "first")
    builder.add_edge("first", "take_over")
    graph = builder.compile(checkpointer=api.saver)
    async with run(catalog) as lease:
        with pytest.raises(StaleLease):
            await invoked(api, graph, lease.config, "sync")
    state = graph.get_state({"configurable": {"thread_id": "thread"}})
    assert (state.values, state.next) == ({"n": 0}, ("take_over",))
    assert store.problems(api.saver) == []


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize(
    "name",
    [
        "stateful subgraphs",
        "functional",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("chat", "interrupts", "stateless subgraphs")
        ),
    ],
)
def test_graphs_run_with_the_config_of_a_lease(
    name: str, durability: Any, saver: ForkpointSaver, store: Store
) -> None:
    catalog = ThreadCatalog(saver)
    graph = SHAPES[name].build(saver)
    expected = SHAPES[name].build(saver)
    for given in SHAPES[name].inputs:
        plain: Any = {"configurable": {"thread_id": "plain"}}
        expected_result = expected.invoke(given, plain, durability=durability)
        with catalog.run("thread") as lease:
            result = graph.invoke(given, lease.config, durability=durability)
        result, expected_result = (
            re.sub("id='[0-9a-f]+'", "", repr(each)) for each in (result, expected_result)
        )
        assert result == expected_result
    for checkpoint_tuple in saver.list(config("thread")):
        assert not any("forkpoint" in key for key in checkpoint_tuple.metadata)
    thread = catalog.get("thread")
    assert thread is not None
    assert not any("forkpoint" in key for key in thread.metadata)
    assert store.problems(saver) == []


async def test_an_answer_is_given_under_a_lease(catalog: Api, api: Api) -> None:
    graph = SHAPES["interrupts"].build(api.saver)
    async with run(catalog) as lease:
        graph.invoke({"items": []}, lease.config)
    assert (await catalog.get("thread")).status == "interrupted"
    async with run(catalog) as lease:
        graph.invoke(Command(resume="one"), lease.config)
        assert (await catalog.get("thread")).status == "busy"
        assert graph.invoke(Command(resume="two"), lease.config)["total"] == 2
    assert (await catalog.get("thread")).status == "idle"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have leases renewed often, although they last for long."""
    monkeypatch.setattr(leases, "_RENEWALS", 60_000)


async def test_a_lease_is_renewed_as_long_as_its_block_runs(catalog: Api, often: None) -> None:
    async with run(catalog) as lease:
        for _ in range(3):
            last = (await catalog.lease("thread")).until
            until = time.monotonic() + PATIENCE_SECONDS
            while (await catalog.lease("thread")).until <= last:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
        with pytest.raises(ThreadBusy, match=lease.holder):
            async with run(catalog):
                pass
        assert not lease.is_lost


@pytest.mark.parametrize("durability", ["sync", "async"])
@pytest.mark.parametrize("deleting", ["delete", "expire", "purge", "delete_thread"])
@pytest.mark.in_turns
async def test_a_run_ends_whose_thread_is_deleted(
    deleting: str, durability: str, catalog: Api, api: Api, store: Store
) -> None:
    def delete(_: State) -> dict[str, Any]:
        with store.saver() as own:
            mine = ThreadCatalog(own)
            while mine.get("thread") is None:  # it is being stored while this runs
                time.sleep(0.002)
            if deleting == "delete":
                mine.delete("thread")
            elif deleting == "expire":
                mine.update("thread", ttl=timedelta(microseconds=1))
                while not mine.sweep().deleted:  # something was stored just then
                    pass
            else:
                getattr(own, deleting)("thread")
        return {"n": 1}

    builder = StateGraph(State)
    builder.add_node("first", lambda _: {"n": 0})
    builder.add_node("delete", delete)
    builder.add_edge(START, "first")
    builder.add_edge("first", "delete")
    graph = builder.compile(checkpointer=api.saver)
    with pytest.raises(ThreadDeleted):
        await invoked(api, graph, {"configurable": {"thread_id": "thread"}}, durability)
    assert [store.count(kind) for kind in KINDS] == [0, 0, 0, 0]
    assert await catalog.count() == 0


@pytest.mark.parametrize("is_entering", [True, False], ids=["entering", "leaving"])
async def test_cancelling_at_every_statement_leaves_no_lease(
    is_entering: bool, store: Store
) -> None:
    gate = Gate()
    with store.watched(gate.pass_through) as saver, store.saver() as own:
        catalog = ThreadCatalog(saver)
        for stop_at in itertools.count():
            lease = catalog.run("thread")
            if not is_entering:
                await lease.__aenter__()
            gate.close(stop_at)
            call = lease.__aenter__() if is_entering else lease.__aexit__(None, None, None)
            task = asyncio.ensure_future(call)
            is_reached = await gate.is_reached(task)
            for _ in range(3 if is_reached else 0):
                task.cancel()
                await asyncio.sleep(0)
            gate.open()
            if not is_reached:
                break
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not ThreadCatalog(own).is_busy("thread")
            own.delete_thread("thread")
        await task
        assert stop_at > 0
        assert ThreadCatalog(own).is_busy("thread") == is_entering
        if is_entering:
            await lease.__aexit__(None, None, None)


async def test_cancelling_while_the_end_waits_its_turn_leaves_no_lease(store: Store) -> None:
    gate = Gate()
    with store.watched(gate.pass_through) as saver, store.saver() as own:
        lease = ThreadCatalog(saver).run("thread")
        await lease.__aenter__()
        gate.close(0)
        others = [asyncio.ensure_future(saver.aget_tuple(config())) for _ in range(40)]
        assert await gate.is_reached(others[0])
        task = asyncio.ensure_future(lease.__aexit__(None, None, None))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.gather(*others)
        assert not ThreadCatalog(own).is_busy("thread")


async def test_a_cancelled_wait_leaves_no_lease(saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)

    async def hold() -> None:
        async with catalog.run("thread", if_busy="wait"):
            await asyncio.sleep(60)

    for pause in (0, 0.001, 0.005, 0.02, 0.1):
        holding = asyncio.create_task(hold())
        await asyncio.sleep(pause)
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        async with catalog.run("thread"):
            pass


@pytest.mark.in_turns
@pytest.mark.parametrize("step", ["acquire", "release"])
def test_an_interrupted_begin_or_end_leaves_no_lease(
    step: str, saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = ThreadCatalog(saver)
    act = getattr(leases, step)

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(leases, step, act)
        if step == "acquire":
            act(*args)  # nobody gets to know that it has begun
        raise KeyboardInterrupt

    monkeypatch.setattr(leases, step, interrupted)
    with pytest.raises(KeyboardInterrupt), catalog.run("thread"):
        assert step == "release"
    assert not catalog.is_busy("thread")


@pytest.mark.parametrize("step", ["release", "leave_queue"])
async def test_what_could_not_be_given_back_is_given_back_once_the_store_is_there_again(
    step: str, catalog: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, errors = getattr(leases, step), [StorageBusy("the store is locked")]

    def refuse_once(*args: Any) -> None:
        if errors:
            raise errors.pop()
        act(*args)

    monkeypatch.setattr(leases, step, refuse_once)
    options: Any = {"if_busy": "wait", "ttl": timedelta(hours=1)}
    async with contextlib.AsyncExitStack() as other:
        if step == "leave_queue":
            await other.enter_async_context(run(catalog))
            options["timeout"] = timedelta(milliseconds=10)
        with pytest.raises(StorageBusy):
            async with run(catalog, **options):
                pass
    options["timeout"] = timedelta(seconds=20)
    async with run(catalog, **options):
        pass


@pytest.mark.in_turns
def test_a_lease_whose_saver_is_closed_is_taken_over(store: Store) -> None:
    saver = store.saver()
    lease = ThreadCatalog(saver).run("thread")
    lease.__enter__()
    saver.close()
    assert not lease.renew()
    assert not lease.is_lost
    with pytest.raises(SaverClosed):
        lease.__exit__(None, None, None)
    other = ThreadCatalog(store.saver())
    assert other.is_busy("thread")
    with other.run("thread", if_busy="cancel"):
        pass
    assert not other.is_busy("thread")


async def test_a_lease_belongs_to_the_thread_that_exists_now(
    catalog: Api, api: Api, store: Store
) -> None:
    put(api.saver, {"a": 1})  # it is remembered, and then another one takes its place
    with store.saver() as own:
        own.delete_thread("thread")
        put(own, {"a": 2})
    async with run(catalog) as lease:
        await api.put(at(lease), checkpoint({"a": 3}), {}, {"a": 3})
    assert (await catalog.get("thread")).checkpoint_count == 2
    assert store.problems(api.saver) == []


async def test_a_lost_lease_says_so(catalog: Api, often: None) -> None:
    async with run(catalog) as lost:
        since = (await catalog.lease("thread")).since
        async with run(catalog, if_busy="cancel"):
            until = time.monotonic() + PATIENCE_SECONDS
            while not lost.is_lost:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
            assert (await catalog.lease("thread")).since > since


async def test_a_node_runs_another_graph_on_another_thread(
    catalog: Api, api: Api, store: Store
) -> None:
    inner = SHAPES["loop"].build(api.saver)
    other: Any = {"configurable": {"thread_id": "other"}}

    def call(state: State) -> dict[str, Any]:
        return {"n": inner.invoke({"items": [state["n"]]}, other)["total"]}

    builder = StateGraph(State)
    builder.add_node("call", call)
    builder.add_edge(START, "call")
    graph = builder.compile(checkpointer=api.saver)
    async with run(catalog) as lease:
        assert (await invoked(api, graph, lease.config, "sync"))["n"] >= 9
    assert (await catalog.get("other")).checkpoint_count > 1
    assert store.problems(api.saver) == []


async def test_a_lease_is_renewed_and_released_over_a_connection_that_was_passed(
    tmp_path: Path, often: None
) -> None:
    async with aiosqlite.connect(tmp_path / "passed.db") as connection:
        saver = SqliteSaver(connection)
        catalog = ThreadCatalog(saver)
        async with catalog.run("thread") as lease:
            first = await catalog.alease("thread")
            assert first is not None
            until = time.monotonic() + PATIENCE_SECONDS
            while (now := await catalog.alease("thread")) and now.until <= first.until:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
            await saver.aput(at(lease), checkpoint({"a": 1}), {}, {"a": 1})
        assert not await catalog.ais_busy("thread")
        with catalog.run("thread"):
            assert catalog.is_busy("thread")
        assert not catalog.is_busy("thread")


FORGED = [1, True, "", "x", ":", "1:", ":1", "1:-1", "1:٣", b"1:1", {}, f"1:{10**30}", "1" * 9999]


@one_by_one("forged", [*FORGED, "1:" + "1" * 9999])
async def test_a_forged_lease_token_is_refused(forged: Any, api: Api, store: Store) -> None:
    put(api.saver, {"a": 1})
    before = stored_rows(store)
    passed: Any = config(checkpoint_id="c")
    passed["configurable"]["__forkpoint_lease"] = forged
    with pytest.raises(InvalidInput, match="lease"):
        await api.put(passed, checkpoint({"a": 2}), {}, {"a": 2})
    with pytest.raises(InvalidInput, match="lease"):
        await api.put_writes(passed, [("a", 1)], "task")
    assert stored_rows(store) == before


def test_bad_input_is_refused_before_anything_is_made(saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    bad: list[tuple[Any, dict[str, Any], str]] = [
        ({"$ne": ""}, {}, "thread_id"),
        ("thread", {"if_busy": "ask"}, "if_busy"),
        ("thread", {"ttl": 5}, "ttl"),
        ("thread", {"ttl": timedelta(0)}, "ttl"),
        ("thread", {"timeout": -1}, "timeout"),
        ("thread", {"must_exist": "no"}, "must_exist"),
    ]
    for thread_id, options, name in bad:
        with pytest.raises(InvalidInput, match=name):
            catalog.run(thread_id, **options)
    lease = catalog.run("thread")
    for use in (lambda: lease.config, lease.renew, lease.answer_tool_calls):
        with pytest.raises(StaleLease, match="'thread' has not begun"):
            use()
    with lease, pytest.raises(StaleLease, match="'thread' has begun before"):
        lease.__enter__()
    assert catalog.count() == 1
