"""Threads that a sweep trims when they have expired, instead of deleting them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from checking import Api, config, put
from forkpoint import InvalidInput, RetentionPolicy, ThreadCatalog, ThreadFilter
from forkpoint.operations import remove as removing
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES
from stores import Store

HOUR = timedelta(hours=1)
TWO_HOURS = 2 * 3600 * 1_000_000


async def expired(catalog: Api, store: Store, name: str, on_expiry: str = "keep_latest") -> None:
    """Make a thread of two checkpoints whose time is up."""
    await catalog.create(name, ttl=HOUR, on_expiry=on_expiry, tags=["t"])
    saver = catalog.saver.saver
    put(saver, {"n": 2}, parent=put(saver, {"n": 1}, thread_id=name))
    store.age(name, updated_at=TWO_HOURS)


def count(saver: ForkpointSaver, name: str) -> int:
    return len(list(saver.list(config(name))))


async def test_a_sweep_tells_what_it_deleted_and_what_it_trimmed(
    catalog: Api, api: Api, store: Store
) -> None:
    await expired(catalog, store, "kept")
    await expired(catalog, store, "gone", "delete")
    await catalog.create("young", ttl=HOUR, on_expiry="keep_latest")
    plan = await catalog.apply_retention(RetentionPolicy(expired=True), dry_run=True)
    done = await catalog.sweep()
    assert (plan.deleted, plan.trimmed) == (done.deleted, done.trimmed) == (("gone",), ("kept",))
    assert count(api.saver, "kept") == 1
    assert api.saver.get(config("kept"))["channel_values"] == {"n": 2}  # type: ignore[index]
    assert (await catalog.get("kept")).checkpoint_count == 1
    again = await catalog.sweep()
    assert (again.deleted, again.trimmed) == ((), ())
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_kept_thread_is_found_before_and_after_the_sweep(
    catalog: Api, store: Store
) -> None:
    await expired(catalog, store, "kept")
    before = await catalog.get("kept")
    assert before.on_expiry == "keep_latest"
    assert before.expires_at == before.updated_at + HOUR
    for expires_at in (before.expires_at, None):
        kept = await catalog.get("kept")
        assert (kept.expires_at, kept.updated_at) == (expires_at, before.updated_at)
        for thread_filter in (None, ThreadFilter(tags=["t"]), ThreadFilter(status="idle")):
            assert [thread.thread_id for thread in await catalog.search(thread_filter)] == ["kept"]
            assert await catalog.count(thread_filter) == 1
        assert (await catalog.get_or_create("kept")).updated_at == before.updated_at
        await catalog.sweep()


@pytest.mark.parametrize("activity", ["put", "update"])
@pytest.mark.in_turns
async def test_a_swept_thread_expires_again_after_new_activity(
    activity: str, catalog: Api, api: Api, store: Store
) -> None:
    await expired(catalog, store, "kept")
    await catalog.sweep()
    head = api.saver.get_tuple(config("kept"))
    assert head is not None
    if activity == "put":
        put(api.saver, {"n": 3}, parent=head.config)
    else:
        await catalog.update("kept", label="L")
    kept = await catalog.get("kept")
    assert kept.expires_at == kept.updated_at + HOUR
    assert (await catalog.sweep()).trimmed == ()  # not yet
    store.age("kept", updated_at=TWO_HOURS)
    assert (await catalog.sweep()).trimmed == (("kept",) if activity == "put" else ())
    assert (await catalog.get("kept")).expires_at is None
    assert count(api.saver, "kept") == 1


SOME = [
    "deltas",
    "stateful subgraphs",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("chat", "snapshots", "interrupts")),
]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.in_turns
async def test_a_sweep_keeps_the_state(name: str, catalog: Api, api: Api, store: Store) -> None:
    await catalog.create("thread", ttl=HOUR, on_expiry="keep_latest")
    graph = SHAPES[name].build(api.saver)
    for given in SHAPES[name].inputs:
        graph.invoke(given, config())
    before = graph.get_state(config(), subgraphs=True)
    store.age("thread", updated_at=TWO_HOURS)
    assert (await catalog.sweep()).trimmed == ("thread",)
    after = SHAPES[name].build(api.saver).get_state(config(), subgraphs=True)
    assert (after.values, after.next, after.config) == (before.values, before.next, before.config)
    assert repr(after.tasks) == repr(before.tasks)
    assert len(list(api.saver.history("thread"))) == 1
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_every_way_to_create_a_thread_takes_on_expiry(api: Api, store: Store) -> None:
    with store.saver(ttl=HOUR, on_expiry="keep_latest") as saver:
        catalog = Api(ThreadCatalog(saver), api.world)
        put(saver, {"n": 1}, thread_id="by a graph")
        put(saver.for_owner("acme"), {"n": 1}, thread_id="by an owner's graph")
        await catalog.create("by default")
        with catalog.saver.run("by a run"):
            pass
        saver.fork("by a graph", new_thread_id="by fork")
        saver.copy_thread("by a graph", "by copy")
        await catalog.clone("by a graph", "by clone")
        await catalog.rollover("by a graph", "by rollover")
        kept = [thread async for thread in catalog.saver.awalk()]
        assert len(kept) == 8
        assert {thread.on_expiry for thread in kept} == {"keep_latest"}
        await catalog.create("deleted", on_expiry="delete")
        await catalog.get_or_create("deleted too", on_expiry="delete")
        await catalog.update("by fork", on_expiry="delete")
        await catalog.clone("by a graph", "deleted clone", on_expiry="delete")
        await catalog.rollover("by a graph", "deleted rollover", on_expiry="delete")
        for name in ("deleted", "deleted too", "by fork", "deleted clone", "deleted rollover"):
            assert (await catalog.get(name)).on_expiry == "delete"
        await catalog.update("by fork", label="L")
        assert (await catalog.get("by fork")).on_expiry == "delete"
    put(api.saver, {"n": 1}, thread_id="plain")
    assert (await Api(ThreadCatalog(api.saver), api.world).get("plain")).on_expiry == "delete"


@pytest.mark.in_turns
async def test_a_copy_of_what_was_swept_expires(catalog: Api, api: Api, store: Store) -> None:
    await expired(catalog, store, "kept")
    await catalog.sweep()
    await catalog.clone("kept", "clone")
    api.saver.copy_thread("kept", "copy")
    api.saver.fork("kept", new_thread_id="fork")
    for name in ("clone", "copy", "fork"):
        thread = await catalog.get(name)
        assert thread.expires_at == thread.updated_at + HOUR, name


@pytest.mark.in_turns
async def test_a_busy_thread_is_not_swept(catalog: Api, store: Store) -> None:
    await expired(catalog, store, "kept")
    with catalog.saver.run("kept"):
        done = await catalog.sweep()
        assert (done.trimmed, done.busy) == ((), ("kept",))
    assert (await catalog.sweep()).trimmed == ("kept",)


@pytest.mark.parametrize("event", ["activity", "lease", "deletion"])
@pytest.mark.in_turns
def test_what_changes_at_the_last_moment_is_not_trimmed(
    event: str, saver: ForkpointSaver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = ThreadCatalog(saver)
    catalog.create("kept", ttl=HOUR, on_expiry="keep_latest")
    head = put(saver, {"n": 2}, parent=put(saver, {"n": 1}, thread_id="kept"))
    store.age("kept", updated_at=TWO_HOURS)
    other = store.saver()
    lease = ThreadCatalog(other).run("kept")
    trim = removing.trim

    def meanwhile(*args: Any, **options: Any) -> Any:
        if event == "activity":
            put(other, {"n": 3}, parent=head)
        elif event == "lease":
            lease.__enter__()
        else:
            ThreadCatalog(other).delete("kept")
        return trim(*args, **options)

    monkeypatch.setattr(removing, "trim", meanwhile)
    done = catalog.sweep()
    assert (done.deleted, done.trimmed) == ((), ())
    assert done.busy == (("kept",) if event == "lease" else ())
    assert count(saver, "kept") == {"activity": 3, "lease": 2, "deletion": 0}[event]
    if event == "lease":
        lease.__exit__(None, None, None)
    other.close()
    monkeypatch.undo()
    assert catalog.sweep().trimmed == (("kept",) if event == "lease" else ())
    assert store.problems(saver) == []


@pytest.mark.in_turns
async def test_what_is_deleted_at_the_last_moment_is_not_trimmed(
    catalog: Api, api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "gone"):
        put(api.saver, {"n": 1}, parent=put(api.saver, {"n": 0}, thread_id=name))
    would_trim = removing.would_trim

    def meanwhile(context: Any, thread_id: str, kept: Any) -> Any:
        if thread_id == "gone":
            api.saver.delete_thread("gone")
        return would_trim(context, thread_id, kept)

    monkeypatch.setattr(removing, "would_trim", meanwhile)
    done = await catalog.apply_retention(RetentionPolicy(max_checkpoints_per_thread=1))
    assert (done.trimmed, done.failed) == (("a",), {})
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_swept_thread_is_trimmed_where_another_rule_says_so(
    catalog: Api, store: Store
) -> None:
    await expired(catalog, store, "kept")
    put(catalog.saver.saver, {"n": 3}, thread_id="kept", ns="child")
    store.age("kept", updated_at=TWO_HOURS)
    policy = RetentionPolicy(expired=True, max_checkpoints_per_thread=1)
    assert (await catalog.apply_retention(policy)).trimmed == ("kept",)
    assert (await catalog.get("kept")).checkpoint_count == 2  # the newest of each namespace
    done = await catalog.apply_retention(policy)
    assert (done.deleted, done.trimmed) == ((), ())


@pytest.mark.in_turns
async def test_only_what_is_deleted_is_archived(catalog: Api, store: Store) -> None:
    await expired(catalog, store, "kept")
    await expired(catalog, store, "gone", "delete")
    archived: list[str] = []
    await catalog.sweep(archive=lambda thread, _: archived.append(thread.thread_id))
    assert archived == ["gone"]


@pytest.mark.in_turns
async def test_an_unknown_on_expiry_is_refused(catalog: Api, store: Store) -> None:
    await catalog.create("thread")
    for value in ("keep", "DELETE", None, True, ["delete"], {"$ne": ""}):
        await is_refused(value, catalog, store)
    assert [thread.thread_id for thread in store.threads()] == ["thread"]


async def is_refused(value: Any, catalog: Api, store: Store) -> None:
    calls: list[Any] = [
        lambda: catalog.create("new", on_expiry=value),
        lambda: catalog.get_or_create("new", on_expiry=value),
        lambda: catalog.update("thread", on_expiry=value),
        lambda: catalog.clone("thread", "new", on_expiry=value),
        lambda: catalog.rollover("thread", "new", on_expiry=value),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="on_expiry"):
            await call()
    with pytest.raises(InvalidInput, match="on_expiry"):
        store.saver(on_expiry=value)
