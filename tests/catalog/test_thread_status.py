"""The saver keeps the record of a thread up, whatever it does, and searches find it as it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from checking import Api, put
from forkpoint import RetentionPolicy, SqliteSaver, Thread, ThreadCatalog, ThreadFilter
from forkpoint.langgraph_rules import ERROR, INTERRUPT
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import archive_threads, import_threads, restore_threads
from graphs import MORE_SHAPES, SHAPES, WORLDS, Failure, Sums, call
from stores import Store

Operation = Callable[[Api], Awaitable[Any]]


@pytest.fixture(params=WORLDS[:1] if WORLDS[0] == WORLDS[1] else WORLDS)
def api(request: pytest.FixtureRequest, saver: Any) -> Api:
    return Api(saver, request.param)


def thread(thread_id: str = "thread", **configurable: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, **configurable}}


async def checked_thread(api: Api, store: Store, thread_id: str = "thread") -> Thread:
    """Return a thread as the catalog has it, which is the same for whoever asks in whatever way."""
    catalog = Api(ThreadCatalog(api.saver), api.world)
    current: Thread = await catalog.get(thread_id)
    every_checkpoint = {"configurable": {"thread_id": thread_id}}
    assert current.checkpoint_count == len(await api.list(every_checkpoint))
    others = {"idle", "error", "interrupted"} - {current.status}
    for thread_filter, expected in (
        (ThreadFilter(ids=[thread_id]), [current]),
        (ThreadFilter(ids=[thread_id], status=current.status), [current]),
        (ThreadFilter(ids=[thread_id], status=others), []),
        (ThreadFilter(ids=[thread_id], updated_after=current.updated_at), [current]),
        (ThreadFilter(ids=[thread_id], updated_before=current.updated_at), []),
    ):
        for sort_by in ("updated_at", "status"):
            assert (await catalog.search(thread_filter, sort_by=sort_by)).items == expected
        assert await catalog.count(thread_filter) == len(expected)
    everything = (await catalog.search()).items
    assert everything == sorted(
        everything, key=lambda each: (each.updated_at, each.thread_id), reverse=True
    )
    assert store.problems(api.saver) == []
    return current


SHAPES_THAT_ASK = {
    "interrupts": SHAPES["interrupts"],
    **{
        f"interrupts, durability {durability}": SHAPES[f"interrupts, durability {durability}"]
        for durability in ("sync", "async", "exit")
    },
    "stateless subgraphs": SHAPES["stateless subgraphs"],
    "stateful subgraphs": SHAPES["stateful subgraphs"],
    "functional": SHAPES["functional"],
    "question": MORE_SHAPES["question"],
    "called": MORE_SHAPES["called"],
}


@pytest.mark.parametrize("name", SHAPES_THAT_ASK)
@pytest.mark.in_turns
async def test_a_thread_is_interrupted_for_as_long_as_a_task_waits(
    name: str, api: Api, store: Store
) -> None:
    shape = SHAPES_THAT_ASK[name]
    graph = shape.build(api.saver)
    given = shape.inputs[0]
    for _ in range(10):
        await call(graph, api.world, given, shape.options, thread())
        waits = any(task.interrupts for task in graph.get_state(thread()).tasks)
        assert (await checked_thread(api, store)).status == ("interrupted" if waits else "idle")
        if not waits:
            return
        given = Command(resume="an answer")
    raise AssertionError("it asks for ever")


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_thread_is_in_error_until_the_task_that_failed_is_done(
    durability: str, api: Api, store: Store
) -> None:
    graph = SHAPES["failing"].build(api.saver)
    await call(graph, api.world, {"items": []}, {"durability": durability}, thread())
    assert (await checked_thread(api, store)).status == "error"
    await api.fork("thread", new_thread_id="fork")
    assert (await checked_thread(api, store, "fork")).status == "error"
    await call(graph, api.world, None, {"durability": durability}, thread())
    assert (await checked_thread(api, store)).status == "idle"
    assert (await checked_thread(api, store, "fork")).status == "error"


@pytest.mark.parametrize("is_newest", [True, False], ids=["newest", "older"])
def test_what_is_put_before_the_newest_checkpoint_does_not_change_the_status(
    is_newest: bool, store: Store, saver: ForkpointSaver
) -> None:
    def made(checkpoint_id: str) -> Any:
        new = {**empty_checkpoint(), "id": checkpoint_id}
        return saver.put(thread(checkpoint_ns=""), new, {}, {})

    catalog = ThreadCatalog(saver)
    saver.put_writes(made("5"), [(INTERRUPT, "a question")], "task")
    before = catalog.get("thread")
    there = made("7" if is_newest else "3")
    put_again = catalog.get("thread")
    saver.put_writes(there, [(ERROR, "a failure")], "task")
    after = catalog.get("thread")
    assert before
    assert put_again
    assert after
    assert put_again.status == ("idle" if is_newest else "interrupted")
    assert after.status == ("error" if is_newest else "interrupted")
    assert (after.state_updated_at == before.state_updated_at) != is_newest
    assert store.problems(saver) == []


async def failed_with_an_answer(api: Api, store: Store) -> None:
    """Run a graph to its question, and answer such that its task fails."""

    def ask(_: Any) -> Any:
        raise Failure(interrupt("a question"))

    builder = StateGraph(Sums)
    builder.add_node(ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=api.saver)
    for given in ({"items": []}, Command(resume="an answer")):
        await call(graph, api.world, given, {}, thread())
    assert (await checked_thread(api, store)).status == "error"


@pytest.mark.parametrize("history", ["head", "path"])
@pytest.mark.in_turns
async def test_a_fork_of_what_failed_with_an_answer_has_failed_too(
    history: str, api: Api, store: Store
) -> None:
    await failed_with_an_answer(api, store)
    await api.fork("thread", new_thread_id="fork", history=history)
    assert (await checked_thread(api, store, "fork")).status == "error"


@pytest.mark.parametrize(
    "change",
    [
        lambda api: api.trim("thread", 1),
        lambda api: api.prune(["thread"]),
        lambda api: Api(ThreadCatalog(api.saver), api.world).apply_retention(
            RetentionPolicy(max_checkpoints_per_thread=1)
        ),
    ],
    ids=["trim", "prune", "retention"],
)
@pytest.mark.in_turns
async def test_what_failed_with_an_answer_has_failed_after_a_removal_of_what_was_before(
    change: Operation, api: Api, store: Store
) -> None:
    await failed_with_an_answer(api, store)
    await change(api)
    assert (await checked_thread(api, store)).checkpoint_count == 1
    assert (await checked_thread(api, store)).status == "error"


async def test_what_failed_with_an_answer_has_failed_after_a_repair(api: Api, store: Store) -> None:
    await failed_with_an_answer(api, store)
    with parts_of(api.saver).context.storage.writing() as session:
        found = session.threads.find("thread")
        assert found is not None
        session.removals.recount(found)
    assert (await checked_thread(api, store)).status == "error"


async def test_what_failed_with_an_answer_has_failed_where_it_is_restored(
    api: Api, store: Store, tmp_path: Path
) -> None:
    await failed_with_an_answer(api, store)
    archive_threads(api.saver, tmp_path / "archive")
    restore_threads(api.saver, tmp_path / "archive", rename={"thread": "again"})
    assert (await checked_thread(api, store, "again")).status == "error"
    with SqliteSaver(tmp_path / "other.db") as other:
        import_threads(api.saver, other, kind="forkpoint", threads=["thread"])
        imported = ThreadCatalog(other).get("thread")
        assert imported is not None
        assert imported.status == "error"


async def asked_twice(api: Api, store: Store) -> Thread:
    """Run a graph to its end, and once more as far as its question."""
    graph = MORE_SHAPES["question"].build(api.saver)
    for run_id, given in (
        ("first", {"items": []}),
        ("first", Command(resume="an answer")),
        ("second", {"items": []}),
    ):
        await call(graph, api.world, given, {}, thread(run_id=run_id))
    put(api.saver, {"n": 1}, thread_id="later")
    current = await checked_thread(api, store)
    assert current.status == "interrupted"
    return current


REMOVALS: dict[str, tuple[Operation, str]] = {
    "the newest, which waits": (lambda api: api.rollback("thread"), "idle"),
    "all since the answer": (lambda api: api.rollback("thread", 5), "interrupted"),
    "the old ones": (lambda api: api.trim("thread", 2), "interrupted"),
    "all but the newest": (lambda api: api.prune(["thread"]), "interrupted"),
    "those of the run that waits": (lambda api: api.delete_for_runs(["second"]), "idle"),
    "those of the run before": (lambda api: api.delete_for_runs(["first"]), "interrupted"),
    "none": (lambda api: api.trim("thread", 1000), "interrupted"),
}


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.in_turns
async def test_after_a_removal_a_thread_is_what_its_newest_checkpoint_says(
    removal: str, api: Api, store: Store
) -> None:
    before = await asked_twice(api, store)
    remove, status = REMOVALS[removal]
    await remove(api)
    after = await checked_thread(api, store)
    assert after.status == status
    assert after.created_at == before.created_at
    assert after.updated_at >= before.updated_at
    assert (after.checkpoint_count < before.checkpoint_count) == (removal != "none")
    waits = any(
        task.interrupts
        for task in MORE_SHAPES["question"].build(api.saver).get_state(thread()).tasks
    )
    assert waits == (status == "interrupted")


async def test_after_the_last_run_is_removed_a_failure_before_counts_again(
    api: Api, store: Store
) -> None:
    graph = SHAPES["failing"].build(api.saver)
    await call(graph, api.world, {"items": []}, {}, thread(run_id="failed"))
    await call(graph, api.world, {"items": []}, {}, thread(run_id="done"))
    assert (await checked_thread(api, store)).status == "idle"
    await api.delete_for_runs(["done"])
    assert (await checked_thread(api, store)).status == "error"


@pytest.mark.parametrize(
    "make",
    [
        lambda api: api.fork("thread", new_thread_id="made"),
        lambda api: api.fork("thread", new_thread_id="made", history="path"),
        lambda api: api.copy_thread("thread", "made"),
        lambda api: Api(ThreadCatalog(api.saver), api.world).clone("thread", "made"),
    ],
    ids=["fork", "path", "copy_thread", "clone"],
)
@pytest.mark.in_turns
async def test_a_copy_of_a_waiting_thread_waits_too_and_is_answered_alone(
    make: Operation, api: Api, store: Store
) -> None:
    source = await asked_twice(api, store)
    await make(api)
    new_thread = await checked_thread(api, store, "made")
    assert (new_thread.status, new_thread.source_thread_id) == ("interrupted", "thread")
    assert new_thread.created_at == new_thread.updated_at > source.updated_at
    graph = MORE_SHAPES["question"].build(api.saver)
    await call(graph, api.world, Command(resume="an answer"), {}, thread("made"))
    assert (await checked_thread(api, store, "made")).status == "idle"
    assert await checked_thread(api, store) == source


async def test_a_lease_that_is_renewed_after_its_time_is_searched_as_held(
    api: Api, store: Store
) -> None:
    """Nobody has taken it over, so it is still the same."""
    catalog = ThreadCatalog(api.saver)
    catalog.create("thread")
    busy = ThreadFilter(status="busy")
    storage: Any = parts_of(api.saver).context.storage
    with storage.writing() as session:
        held = session.records.get("thread").thread
        lease = session.leases.acquire(held, "holder", 1, take_over=False, waits=False)
    while catalog.is_busy("thread"):
        pass
    put(api.saver, {"n": 1})
    assert catalog.count(busy) == 0
    with storage.writing() as session:
        is_held = session.leases.renew(held, lease.fence, 60_000_000)
    assert catalog.is_busy("thread") == is_held
    assert catalog.count(busy) == is_held
    assert store.problems(api.saver) == []
