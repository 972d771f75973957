"""A graph whose saver is confined to an owner reaches nothing of anybody else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.errors import EmptyInputError
from langgraph.types import Command

from catalogs import HOURS, content
from checking import Api, checkpoint, config, id_of, one_by_one, put, value_of
from commands import use_everything, use_the_catalog
from forkpoint import (
    ForkpointError,
    InvalidInput,
    RetentionPolicy,
    SaverClosed,
    ThreadCatalog,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.sqlite.statements import Statements
from graphs import MORE_SHAPES, SHAPES, call
from stores import SqliteStore, Store

SECRET = "the secret of acme"


def thread(thread_id: str = "thread", **configurable: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, **configurable}}


@pytest.fixture
async def theirs(api: Api, store: Store) -> str:
    """Let acme have a thread that waits for an answer; return the id of its newest checkpoint."""
    graph = MORE_SHAPES["question"].build(api.saver.for_owner("acme"))
    await call(graph, api.world, {"items": [SECRET]}, {}, thread(run_id="run"))
    ThreadCatalog(api.saver, owner="acme").update(
        "thread", label=SECRET, tags=["a"], metadata={"k": SECRET}, ttl=timedelta(days=1)
    )
    return id_of(graph.get_state(thread()))


async def outcome(awaitable: Any) -> Any:
    """Return what a call returned, or the error that it raised, as text."""
    try:
        return repr(await awaitable)
    except ForkpointError as error:
        return f"{type(error).__name__}: {error}"


async def invoked(graph: Any, world: str, given: Any, at: Any) -> Any:
    return graph.invoke(given, at) if world == "sync" else await graph.ainvoke(given, at)


@pytest.mark.parametrize("names_checkpoint", [False, True])
async def test_a_graph_that_is_given_the_id_of_another_owners_thread(
    names_checkpoint: bool, theirs: str, api: Api, store: Store
) -> None:
    graph = MORE_SHAPES["question"].build(api.saver.for_owner("other"))
    at = thread(checkpoint_id=theirs) if names_checkpoint else thread()
    before = content(store)

    assert graph.get_state(at, subgraphs=True).values == {}
    assert (await graph.aget_state(at)).tasks == ()
    assert list(graph.get_state_history(at)) == []
    for given in ({"items": []}, Command(resume="an answer"), None):
        with pytest.raises((ThreadExists, EmptyInputError)) as error:
            await invoked(graph, api.world, given, at)
        assert SECRET not in str(error.value)
    with pytest.raises(ThreadExists) as error:
        graph.update_state(at, {"items": ["mine"]}, as_node="before")
    assert str(error.value) == "there is a thread 'thread' already"
    assert content(store) == before
    went_on = await call(
        MORE_SHAPES["question"].build(api.saver.for_owner("acme")),
        api.world,
        Command(resume="an answer"),
        {},
        thread(),
    )
    assert went_on["answers"] == ["an answer"]


CALLS: dict[str, Callable[[Api, str, str], Any]] = {
    "get_tuple": lambda api, id_, at: api.get_tuple(config(id_)),
    "get_tuple of a checkpoint": lambda api, id_, at: api.get_tuple(config(id_, at)),
    "list": lambda api, id_, at: api.list(config(id_)),
    "list of all": lambda api, id_, at: api.list(None),
    "list of all, filtered": lambda api, id_, at: api.list(None, filter={"run_id": "run"}),
    "list before": lambda api, id_, at: api.list(None, before=config(checkpoint_id=at + "~")),
    "latest": lambda api, id_, at: api.latest({"run_id": "run"}),
    "get_delta_channel_history": lambda api, id_, at: api.get_delta_channel_history(
        config=config(id_, at), channels=["items"]
    ),
    "at": lambda api, id_, at: api.at(id_, -1),
    "value": lambda api, id_, at: api.value(id_, "items"),
    "value in a checkpoint": lambda api, id_, at: api.value(config(id_, at), "items"),
    "find_message": lambda api, id_, at: api.find_message(id_, "m", channel="items"),
    "diff": lambda api, id_, at: api.diff(id_, "mine"),
    "diff of checkpoints": lambda api, id_, at: api.diff("mine", config(id_, at)),
    "lineage": lambda api, id_, at: api.lineage(id_),
    "family": lambda api, id_, at: api.family(id_),
    "fork": lambda api, id_, at: api.fork(id_),
    "fork of a checkpoint": lambda api, id_, at: api.fork(config(id_, at)),
    "copy_thread": lambda api, id_, at: api.copy_thread(id_, "copied"),
    "delete_thread": lambda api, id_, at: api.delete_thread(id_),
    "delete_for_runs": lambda api, id_, at: api.delete_for_runs(["run"]),
    "prune": lambda api, id_, at: api.prune([id_]),
    "prune, delete": lambda api, id_, at: api.prune([id_], strategy="delete_all"),
    "trim": lambda api, id_, at: api.trim(id_, 1),
    "rollback": lambda api, id_, at: api.rollback(id_),
    "purge": lambda api, id_, at: api.purge(id_),
}


@one_by_one("name", CALLS)
@pytest.mark.in_turns
async def test_a_call_answers_for_another_owners_thread_as_for_a_missing_one(
    name: str, theirs: str, api: Api, store: Store
) -> None:
    confined = Api(api.saver.for_owner("other"), api.world)
    put(confined.saver, {"n": 1}, thread_id="mine")
    before = content(store)
    given, none = [
        (await outcome(CALLS[name](confined, thread_id, theirs))).replace(repr(thread_id), "?")
        for thread_id in ("thread", "absent")
    ]
    assert given == none
    assert SECRET not in given
    assert "acme" not in given
    if name not in ("trim", "prune"):
        assert content(store) == before


DAMAGES = {
    "a checkpoint is missing": lambda store, key: store.take("checkpoints", key),
    "metadata is none": lambda store, key: store.change("checkpoints", key, metadata="{"),
    "content is none": lambda store, key: store.change("checkpoints", key, content=b"?"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.in_turns
async def test_damage_of_another_owners_thread_is_not_reported(
    damage: str, theirs: str, api: Api, store: Store
) -> None:
    confined = Api(api.saver.for_owner("other"), api.world)
    for row in store.rows("checkpoints"):
        DAMAGES[damage](store, row.key)
    put(confined.saver, {"n": 1}, thread_id="mine")
    for name, ask in CALLS.items():
        given, none = [
            (await outcome(ask(confined, thread_id, theirs))).replace(repr(thread_id), "?")
            for thread_id in ("thread", "absent")
        ]
        assert given == none, name


TAKEN: dict[str, Callable[[Api, Api], Any]] = {
    "put": lambda api, catalog: api.put(config(), checkpoint({"n": 1}), {}, {"n": 1}),
    "put_writes": lambda api, catalog: api.put_writes(
        config(checkpoint_id="c"), [("n", 1)], "task"
    ),
    "fork": lambda api, catalog: api.fork("mine", new_thread_id="thread"),
    "copy_thread": lambda api, catalog: api.copy_thread("mine", "thread"),
    "create": lambda api, catalog: catalog.create("thread"),
    "create, if it is not there": lambda api, catalog: catalog.create(
        "thread", if_exists="do_nothing"
    ),
    "get_or_create": lambda api, catalog: catalog.get_or_create("thread"),
    "clone": lambda api, catalog: catalog.clone("mine", "thread"),
    "clone, without checkpoints": lambda api, catalog: catalog.clone(
        "mine", "thread", checkpoints=False
    ),
    "rollover": lambda api, catalog: catalog.rollover("mine", "thread"),
}


@one_by_one("name", TAKEN)
async def test_an_id_that_somebody_has_is_taken(
    name: str, theirs: str, api: Api, store: Store
) -> None:
    confined = Api(api.saver.for_owner("other"), api.world)
    catalog = Api(ThreadCatalog(confined.saver), api.world)
    put(confined.saver, {"n": 1}, thread_id="mine")
    before = content(store)
    answer = await outcome(TAKEN[name](confined, catalog))
    assert answer == "ThreadExists: there is a thread 'thread' already"
    assert content(store) == before


async def test_writes_that_wait_for_their_checkpoint_are_their_owners(
    api: Api, store: Store
) -> None:
    acme, other = (Api(api.saver.for_owner(owner), api.world) for owner in ("acme", "other"))
    await acme.put_writes(config(checkpoint_id="c"), [("n", 1)], "task")
    before = content(store)
    for saver in (api.saver, other.saver):
        catalog = Api(ThreadCatalog(saver), api.world)
        assert await catalog.get("thread") is None
        for make in (catalog.create, catalog.get_or_create):
            with pytest.raises(ThreadExists):
                await make("thread")
    with pytest.raises(ThreadExists):
        await other.put(config(), checkpoint({"n": 1}), {}, {"n": 1})
    assert content(store) == before
    thread = await Api(ThreadCatalog(acme.saver), api.world).create("thread", label="mine")
    assert (thread.owner, thread.label) == ("acme", "mine")
    assert store.problems(api.saver) == []


async def test_what_a_saver_remembers_of_a_thread_is_not_the_next_owners(
    api: Api, store: Store
) -> None:
    acme, other = (Api(api.saver.for_owner(owner), api.world) for owner in ("acme", "other"))
    long = [f"{SECRET} {n} " * 50 for n in range(50)]
    head = await acme.put(config(), checkpoint({"long": long}), {}, {"long": 1})
    assert value_of(await acme.get_tuple(config()))["long"] == long
    await acme.delete_thread("thread")
    await other.put(config(), checkpoint({"n": 1}), {}, {"n": 1})
    assert await acme.get_tuple(config()) is None
    assert await acme.get_tuple(head) is None
    with pytest.raises(ForkpointError) as error:
        await acme.put(head, checkpoint({"long": long}), {}, {"n": 1})
    assert "other" not in str(error.value)
    with pytest.raises(ForkpointError):
        await acme.put_writes(head, [("n", 1)], "task")
    assert value_of(await other.get_tuple(config())) == {"n": 1}
    assert [thread.thread_id for thread in ThreadCatalog(api.saver).walk()] == ["thread"]
    assert store.problems(api.saver) == []


async def test_operations_on_all_threads_are_confined_to_the_owner(
    theirs: str, api: Api, store: Store
) -> None:
    catalog = Api(ThreadCatalog(api.saver, owner="other"), api.world)
    for n in range(3):
        await catalog.create(f"mine {n}", tags=["a"], ttl=timedelta(seconds=1))
    store.be_old("updated_at")
    store.be_old("created_at")
    before = ThreadCatalog(api.saver, owner="acme").get("thread")
    policies = [
        RetentionPolicy(max_idle=timedelta(seconds=1)),
        RetentionPolicy(max_age=timedelta(seconds=1)),
        RetentionPolicy(max_checkpoints_per_thread=1),
        RetentionPolicy(expired=True),
    ]
    for policy in policies:
        done = await catalog.apply_retention(policy, dry_run=True)
        thread_ids = {*done.deleted, *done.trimmed, *done.busy}
        assert thread_ids <= {f"mine {n}" for n in range(3)}
    assert await catalog.bulk_delete(ThreadFilter(tags=["a"]), dry_run=True) == 3
    assert await catalog.bulk_delete(ThreadFilter(owner="acme")) == 0
    assert set((await catalog.sweep()).deleted) == {f"mine {n}" for n in range(3)}
    for policy in policies:
        done = await catalog.apply_retention(policy)
        assert (done.deleted, done.trimmed, done.busy, done.failed) == ((), (), (), {})
    assert await catalog.count() == 0
    assert ThreadCatalog(api.saver, owner="acme").get("thread") == before
    assert store.problems(api.saver) == []


async def test_a_confined_saver_stays_so_whatever_is_made_of_it(theirs: str, api: Api) -> None:
    confined = api.saver.for_owner("other")
    for saver in (confined, confined.for_owner("other"), confined.with_allowlist([("a", "b")])):
        assert await Api(saver, api.world).get_tuple(config()) is None
        with pytest.raises(ThreadNotFound):
            await Api(saver, api.world).purge("thread")
    with pytest.raises(InvalidInput):
        confined.for_owner("acme")


@pytest.mark.parametrize("name", ["chat", "stateful subgraphs", "deltas", "interrupts"])
async def test_a_graph_runs_with_a_confined_saver_as_with_any(
    name: str, api: Api, store: Store
) -> None:
    shape = SHAPES[name]
    ends = []
    for saver, thread_id in ((api.saver, "free"), (api.saver.for_owner("acme"), "confined")):
        graph = shape.build(saver)
        for given in shape.inputs:
            await call(graph, api.world, given, shape.options, thread(thread_id))
        ends.append(graph.get_state(thread(thread_id)).values)
    assert ends[0] == ends[1]
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_saver_of_an_owner_does_all_that_one_of_all_owners_does(
    api: Api, store: Store
) -> None:
    put(api.saver.for_owner("other"), {"n": 1}, thread_id="others")
    before = list(api.saver.list(config("others")))
    own = api.saver.for_owner("acme")
    own.setup()
    await use_everything(Api(own, api.world))
    await use_the_catalog(Api(ThreadCatalog(own), api.world))
    owners = {found.thread_id: found.owner for found in ThreadCatalog(api.saver).search(limit=100)}
    assert owners.pop("others") == "other"
    assert set(owners.values()) == {"acme"}
    assert list(api.saver.list(config("others"))) == before
    assert store.problems(api.saver) == []


def test_what_is_done_in_turns_is_done_for_an_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 4)
    store = SqliteStore(path)
    saver = store.saver()
    own = saver.for_owner("acme")
    catalog = ThreadCatalog(own)
    head: Any = None
    for n in range(20):
        head = put(own, {"n": n}, parent=head)
    own.rollback("thread", 2)
    assert value_of(own.get_tuple(config())) == {"n": 17}
    with catalog.run("thread") as holder:
        for n in range(5):
            put(own, {"n": -n}, parent=holder.config)
        with catalog.run("thread", if_busy="rollback"):
            assert value_of(own.get_tuple(config())) == {"n": 17}
    own.trim("thread", 2)
    assert [value_of(found)["n"] for found in own.list(config())] == [17, 16]
    catalog.update("thread", ttl=timedelta(hours=1), on_expiry="keep_latest")
    store.age("thread", updated_at=2 * HOURS)
    assert catalog.sweep().trimmed == ("thread",)
    assert catalog.sweep().trimmed == ()
    assert store.problems(saver) == []
    own.close()
    with pytest.raises(SaverClosed):
        saver.get_tuple(config())
