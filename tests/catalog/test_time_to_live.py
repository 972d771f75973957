"""Threads that expire: which time to live they have, and what becomes of them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base.id import uuid6

from checking import Api, checkpoint, config, put
from forkpoint import InvalidInput, RetentionPolicy, ThreadCatalog, ThreadExists, ThreadFilter
from forkpoint.langgraph_rules import made_at
from forkpoint.storage.plan import Kept
from graphs import SHAPES
from stores import Store

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def catalog(store: Store, api: Api) -> Any:
    with store.saver(ttl=DAY) as saver:
        yield Api(ThreadCatalog(saver), api.world)


async def lives(catalog: Api, thread_id: str) -> timedelta | None:
    """Return how long after its last activity a thread expires."""
    thread = await catalog.get(thread_id)
    return None if thread.expires_at is None else thread.expires_at - thread.updated_at


async def test_a_thread_that_a_graph_makes_has_the_saver_s_time_to_live(catalog: Api) -> None:
    saver = catalog.saver.saver
    graph = SHAPES["chat"].build(saver)
    graph.invoke({"messages": [HumanMessage("Hello")]}, config())
    assert await lives(catalog, "thread") == DAY
    before = await catalog.get("thread")
    graph.invoke({"messages": [HumanMessage("Again")]}, config())
    assert (await catalog.get("thread")).expires_at > before.expires_at


async def test_an_explicit_time_to_live_goes_before_the_default(catalog: Api) -> None:
    await catalog.create("default")
    await catalog.get_or_create("default too", label="L")
    await catalog.create("short", ttl=HOUR)
    await catalog.create("endless", ttl=None)
    with catalog.saver.run("leased"):
        pass
    saver = catalog.saver.saver
    for name in ("default", "short", "endless"):
        put(saver, {"n": 1}, thread_id=name)
    expected = {"default": DAY, "default too": DAY, "short": HOUR, "endless": None, "leased": DAY}
    assert {name: await lives(catalog, name) for name in expected} == expected
    await catalog.update("default", ttl=None)
    put(saver, {"n": 2}, thread_id="default")
    assert await lives(catalog, "default") is None


async def test_a_fork_and_a_copy_have_the_time_to_live_of_their_source(catalog: Api) -> None:
    saver = catalog.saver.saver
    for name, ttl in (("short", HOUR), ("endless", None)):
        await catalog.create(name, ttl=ttl)
        put(saver, {"n": 1}, thread_id=name)
        saver.fork(name, new_thread_id=f"{name} fork")
        saver.fork(name, new_thread_id=f"{name} with values", values={"n": 2})
        saver.copy_thread(name, f"{name} copy")
        await catalog.clone(name, f"{name} clone")
        await catalog.clone(name, f"{name} empty", checkpoints=False)
        await catalog.rollover(name, f"{name} next")
        for kind in ("fork", "with values", "copy", "clone", "empty", "next"):
            assert await lives(catalog, f"{name} {kind}") == ttl, kind


async def test_a_new_thread_of_a_deleted_one_s_id_begins_with_the_default(catalog: Api) -> None:
    saver = catalog.saver.saver
    await catalog.create("thread", ttl=HOUR)
    await catalog.delete("thread")
    put(saver, {"n": 1})
    assert await lives(catalog, "thread") == DAY


async def test_every_saver_for_the_store_has_its_own_default(catalog: Api, store: Store) -> None:
    confined = catalog.saver.saver.for_owner("acme")
    put(confined, {"n": 1}, thread_id="confined")
    assert await lives(catalog, "confined") == DAY
    with store.saver() as other:
        put(other, {"n": 1}, thread_id="other")
        put(other, {"n": 1}, thread_id="confined too")
    assert await lives(catalog, "other") is None


@pytest.mark.parametrize(
    ("ttl", "told"),
    [
        (3600, r"ttl must be a timedelta, such as timedelta\(hours=1\), not 3600"),
        ("1d", r"ttl must be a timedelta, such as timedelta\(hours=1\), not '1d'"),
        (timedelta(0), "ttl must be positive, not 0:00:00"),
        (timedelta(seconds=-1), "ttl must be positive, not -1 day, 23:59:59"),
    ],
)
def test_a_bad_time_to_live_is_refused(store: Store, ttl: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        store.saver(ttl=ttl)


async def make_old(catalog: Api, store: Store, *names: str) -> None:
    """Make threads, and let 25 hours pass for those that are named."""
    for name in ("a", "b", "c", "d"):
        put(catalog.saver.saver, {"n": 1}, thread_id=name)
        await catalog.update(name, tags=["tagged"], metadata={"user": {"id": 1}})
    await catalog.create("endless", ttl=None)
    for name in (*names, "endless"):
        store.age(name, updated_at=25 * 3600 * 1_000_000)


async def test_expired_threads_are_not_there_before_they_are_swept(
    catalog: Api, store: Store
) -> None:
    await make_old(catalog, store, "a", "c")
    assert [await catalog.get(name) for name in "ac"] == [None, None]
    assert (await catalog.get("b")).thread_id == "b"
    for limit in (1, 2, 50):
        ids: list[str] = []
        cursor = None
        while True:
            page = await catalog.search(sort_by="thread_id", limit=limit, cursor=cursor)
            ids += [thread.thread_id for thread in page]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(ids) == ["b", "d", "endless"]
    assert await catalog.count() == 3
    tagged = ThreadFilter(tags={"tagged"}, status="idle")
    assert (await catalog.count(tagged), len(await catalog.search(tagged))) == (2, 2)
    assert await catalog.count(ThreadFilter(ids=["a", "b"])) == 1
    assert await catalog.count(ThreadFilter(metadata={"user": {"id": 1}})) == 2
    ago = datetime.now(timezone.utc) - DAY
    assert await catalog.count(ThreadFilter(updated_before=ago)) == 1
    assert sorted((await catalog.sweep()).deleted) == ["a", "c"]
    assert await catalog.count() == 3


@pytest.mark.parametrize("how", ["put", "update", "get_or_create", "do_nothing"])
async def test_activity_renews_a_thread_that_was_not_swept(
    catalog: Api, store: Store, how: str
) -> None:
    await make_old(catalog, store, "a")
    saver = catalog.saver.saver
    if how == "put":
        put(saver, {"n": 2}, thread_id="a")
    elif how == "update":
        await catalog.update("a", label="L")
    elif how == "get_or_create":
        assert (await catalog.get_or_create("a")).expires_at > datetime.now(timezone.utc)
    else:
        await catalog.create("a", if_exists="do_nothing")
    assert (await catalog.get("a")).tags == ("tagged",)
    assert saver.get_tuple(config("a")) is not None
    assert (await catalog.count(), len(await catalog.search())) == (5, 5)
    assert (await catalog.sweep()).deleted == ()


async def test_a_run_renews_a_thread_that_was_not_swept(catalog: Api, store: Store) -> None:
    graph = SHAPES["loop"].build(catalog.saver.saver)
    graph.invoke({"items": [1]}, config())
    store.age("thread", updated_at=25 * 3600 * 1_000_000)
    assert await catalog.get("thread") is None
    with catalog.saver.run("thread") as lease:
        assert (await catalog.get("thread")).status == "busy"
        assert (await catalog.count(), len(await catalog.search())) == (1, 1)
        assert (await catalog.sweep()).deleted == ()
        graph.invoke({"items": [1]}, lease.config)
    assert (await catalog.get("thread")).status == "idle"
    assert (await catalog.count(), len(await catalog.search())) == (1, 1)
    assert (await catalog.sweep()).deleted == ()


async def test_an_expired_thread_s_id_is_taken_until_it_is_swept(
    catalog: Api, store: Store
) -> None:
    await make_old(catalog, store, "a")
    with pytest.raises(ThreadExists):
        await catalog.create("a")
    await catalog.sweep()
    assert (await catalog.create("a")).tags == ()


async def test_bulk_operations_reach_expired_threads(catalog: Api, store: Store) -> None:
    await make_old(catalog, store, "a", "b")
    assert await catalog.bulk_delete(ThreadFilter(ids=["a"])) == 1
    policy = RetentionPolicy(max_idle=HOUR)
    assert sorted((await catalog.apply_retention(policy)).deleted) == ["b", "endless"]
    assert store.problems(catalog.saver.saver) == []


# The age of checkpoints


def id_at(ago: timedelta) -> str:
    """Return an id as LangGraph makes them, of some time ago."""
    now = int(uuid6().hex, 16)
    ticks = (now >> 80 << 12 | now >> 64 & 0xFFF) - ago // timedelta(microseconds=1) * 10
    return str(UUID(int=ticks >> 12 << 80 | 6 << 76 | (ticks & 0xFFF) << 64 | 2 << 62))


async def test_old_checkpoints_of_an_active_thread_go_but_the_newest_of_each_namespace(
    catalog: Api, store: Store
) -> None:
    saver = catalog.saver.saver
    days: dict[str, list[int]] = {"": [9, 8, 2, 0], "child": [9, 8]}
    for ns, ages in days.items():
        parent = None
        for n in ages:
            checkpoint_ = {**checkpoint({"n": n, "text": f"{n}" * 5000}), "id": id_at(n * DAY)}
            parent_config = parent or config(ns=ns)
            parent = saver.put(
                parent_config, checkpoint_, {"source": "loop", "step": n}, {"n": "1", "text": "1"}
            )
    put(saver, {"n": 1}, thread_id="new")
    put(saver, {"n": 2}, thread_id="new")
    policy = RetentionPolicy(max_checkpoint_age=5 * DAY)
    for dry_run in (True, False):
        assert (await catalog.apply_retention(policy, dry_run=dry_run)).trimmed == ("thread",)
    kept = {
        ns: [
            checkpoint_tuple.checkpoint["channel_values"]["n"]
            for checkpoint_tuple in saver.list(config(ns=ns))
        ]
        for ns in days
    }
    assert kept == {"": [0, 2], "child": [8]}
    assert (await catalog.apply_retention(policy)).trimmed == ()
    both = RetentionPolicy(max_checkpoint_age=5 * DAY, max_checkpoints_per_thread=1)
    assert sorted((await catalog.apply_retention(both)).trimmed) == ["new", "thread"]
    assert len(list(saver.list(config(ns="")))) == 1
    assert store.problems(saver) == []


@pytest.mark.parametrize("shape", ["deltas", "stateful subgraphs"])
async def test_what_stays_when_old_checkpoints_go_has_the_state_that_it_had(
    catalog: Api, store: Store, shape: str
) -> None:
    saver = catalog.saver.saver
    graph = SHAPES[shape].build(saver)
    for given in SHAPES[shape].inputs:
        graph.invoke(given, config(), **SHAPES[shape].options)
    states = {
        state.config["configurable"]["checkpoint_id"]: (state.values, state.next)
        for state in graph.get_state_history(config())
    }
    policy = RetentionPolicy(max_checkpoint_age=timedelta(microseconds=1))
    assert (await catalog.apply_retention(policy)).trimmed == ("thread",)
    (left,) = graph.get_state_history(config())
    assert (left.values, left.next) == states[left.config["configurable"]["checkpoint_id"]]
    assert store.problems(saver) == []


def test_an_id_that_is_not_langgraphs_has_no_age() -> None:
    old = id_at(9 * DAY)
    ids = ["1", old, str(uuid4()), id_at(DAY), "z"]
    since = made_at(id_at(2 * DAY))
    assert list(Kept(since=since).of(ids)) == [id_ for id_ in ids if id_ != old]
    assert list(Kept(since=since).of([old])) == [old]


async def test_a_bad_age_of_checkpoints_is_refused(catalog: Api) -> None:
    for bad in (timedelta(0), 5, "1d"):
        with pytest.raises(InvalidInput, match="max_checkpoint_age"):
            await catalog.apply_retention(RetentionPolicy(max_checkpoint_age=bad))  # type: ignore[arg-type]
