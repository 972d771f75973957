"""What retention deletes and trims, and what it leaves alone."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from checking import Api, config, encrypted_serde, one_by_one, put, value_of
from gates import Gate
from graphs import SHAPES
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from processes import fork_server
from servers import PATIENCE_SECONDS, wait_until
from stores import KINDS, SqliteStore, Store

from forkpoint import (
    InvalidInput,
    RetentionPolicy,
    RetentionResult,
    SafeSerializer,
    SqliteSaver,
    StorageError,
    Sweeper,
    Thread,
    ThreadCatalog,
    ThreadDeleted,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.catalog import retention_pass
from forkpoint.catalog.retention import Rules
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.rows import Description, ThreadRef, ThreadRow
from forkpoint.transfer import restore_threads

HOUR = timedelta(hours=1)
HOURS = 3600 * 1_000_000


@pytest.fixture
def catalog(api: Api) -> Api:
    return Api(ThreadCatalog(api.saver), api.world)


def content(store: Store) -> Any:
    rows = [sorted(map(repr, store.rows(kind))) for kind in KINDS[1:]]
    return rows, sorted(map(repr, store.threads()))


def ids(saver: ForkpointSaver) -> set[str]:
    return {one.thread_id for one in ThreadCatalog(saver).walk()}


async def fill(catalog: Api, store: Store) -> None:
    """Make threads that are made and active at different times: `made 3, idle 1` hours ago."""
    saver = catalog.saver.saver
    for made in (0, 2, 4):
        for idle in range(0, made + 1, 2):
            thread_id = f"made {made}, idle {idle}"
            await catalog.create(thread_id, tags=[f"idle {idle}"])
            for n in range(3):
                put(saver, {"n": n, "long": ["text " * 300]}, thread_id=thread_id)
            store.age(thread_id, created_at=made * HOURS, updated_at=idle * HOURS)


@pytest.mark.parametrize(
    ("policy", "deleted"),
    [
        (RetentionPolicy(max_age=3 * HOUR), {"made 4, idle 0", "made 4, idle 2", "made 4, idle 4"}),
        (RetentionPolicy(max_idle=3 * HOUR), {"made 4, idle 4"}),
        (
            RetentionPolicy(max_idle=HOUR, keep_tags={"idle 4"}),
            {"made 2, idle 2", "made 4, idle 2"},
        ),
        (
            RetentionPolicy(max_age=3 * HOUR, max_idle=HOUR),
            {"made 4, idle 0", "made 4, idle 2", "made 4, idle 4", "made 2, idle 2"},
        ),
        (RetentionPolicy(max_age=9 * HOUR), set()),
    ],
)
async def test_threads_go_by_their_age_and_by_how_long_they_were_idle(
    policy: RetentionPolicy, deleted: set[str], catalog: Api, api: Api, store: Store
) -> None:
    await fill(catalog, store)
    everything = ids(api.saver)
    before = content(store)
    would = await catalog.apply_retention(policy, dry_run=True)
    assert content(store) == before
    assert set(would.deleted) == deleted
    assert would.dry_run
    steps: list[RetentionResult] = []
    result = await catalog.apply_retention(policy, on_progress=steps.append)
    assert (set(result.deleted), result.trimmed, result.busy) == (deleted, (), ())
    assert not result.dry_run
    assert steps[-1] == result
    assert ids(api.saver) == everything - deleted
    assert (await catalog.apply_retention(policy)).deleted == ()
    assert store.problems(api.saver) == []


async def test_a_filter_says_for_whom_a_policy_is(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)
    old = RetentionPolicy(max_idle=HOUR)
    wanted = ThreadFilter(tags={"idle 2"})
    assert len((await catalog.apply_retention(old, wanted)).deleted) == 2
    acme = ThreadCatalog(api.saver, owner="acme")
    assert acme.apply_retention(old).deleted == ()
    recent = ThreadFilter(created_after=datetime.now(timezone.utc) - 3 * HOUR)
    assert (await catalog.apply_retention(old, recent)).deleted == ()
    assert (await catalog.apply_retention(old)).deleted == ("made 4, idle 4",)


async def test_a_filter_by_time_is_for_every_rule(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)
    for one in ids(api.saver):
        put(api.saver, {"n": 9}, thread_id=one)
        await catalog.update(one, ttl=HOUR)
        store.age(one, updated_at=(9 if "idle 0" in one else 2) * HOURS)
    policy = RetentionPolicy(max_checkpoints_per_thread=1, expired=True)
    now = datetime.now(timezone.utc)
    wanted = ThreadFilter(created_before=now - HOUR, updated_after=now - 5 * HOUR)
    result = await catalog.apply_retention(policy, wanted)
    assert set(result.deleted) == {"made 2, idle 2", "made 4, idle 2", "made 4, idle 4"}
    long = RetentionPolicy(max_checkpoints_per_thread=1)
    new = ThreadFilter(created_after=now - HOUR)
    for options in ({"dry_run": True}, {}):
        assert (await catalog.apply_retention(long, new, **options)).trimmed == ("made 0, idle 0",)
    assert store.problems(api.saver) == []


async def test_those_that_stay_are_in_nobodys_way(
    catalog: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_pass, "_BATCH", 5)
    number = 40
    for n in range(number):
        await catalog.create(f"t{n:02}", tags=["keep"] if n % 8 else [], ttl=HOUR)
    store.be_old("updated_at")  # all of them at the same moment
    policy = RetentionPolicy(expired=True, keep_tags={"keep"})
    expected = {f"t{n:02}" for n in range(0, number, 8)}
    would = await catalog.apply_retention(policy, dry_run=True)
    assert sorted(would.deleted) == sorted(expected)
    steps: list[RetentionResult] = []

    def archive(thread: Thread, _: Any) -> None:
        if thread.thread_id == "t00":
            raise OSError("never")

    result = await catalog.apply_retention(policy, archive=archive, on_progress=steps.append)
    assert set(result.deleted) == expected - {"t00"}
    assert list(result.failed) == ["t00"]
    assert len(steps) <= number / 5 + 1
    assert (await catalog.apply_retention(policy)).deleted == ("t00",)


async def test_removing_is_no_activity(catalog: Api, api: Api, store: Store) -> None:
    await catalog.create("thread", ttl=5 * HOUR)
    for n in range(3):
        put(api.saver, {"n": n})
    store.age("thread", updated_at=2 * HOURS)
    before = await catalog.get("thread")
    trimmed = await catalog.apply_retention(RetentionPolicy(max_checkpoints_per_thread=1))
    assert trimmed.trimmed == ("thread",)
    after = await catalog.get("thread")
    assert (after.updated_at, after.expires_at) == (before.updated_at, before.expires_at)
    assert after.checkpoint_count == 1
    assert (await catalog.apply_retention(RetentionPolicy(max_idle=HOUR))).deleted == ("thread",)


async def test_of_a_family_those_that_stay_keep_their_state(
    catalog: Api, api: Api, store: Store
) -> None:
    messages = [HumanMessage("text " * 100, id=str(n)) for n in range(40)]
    put(api.saver, {"messages": messages})
    for n in range(10):
        await catalog.clone("thread", f"t{n}", tags=["go"] if n % 2 else [])
        head = api.saver.get_tuple(config(f"t{n}"))
        more = [*messages, HumanMessage(f"own {n} " * 90, id="own")]
        put(api.saver, {"messages": more}, parent=head.config, thread_id=f"t{n}")  # type: ignore[union-attr]
    before = {one: value_of(api.saver.get_tuple(config(one))) for one in ids(api.saver)}
    assert await catalog.bulk_delete(ThreadFilter(tags=["go"])) == 5
    assert ids(api.saver) == {"thread", *(f"t{n}" for n in range(0, 10, 2))}
    for one in ids(api.saver):
        assert value_of(api.saver.get_tuple(config(one))) == before[one]
    assert store.problems(api.saver) == []


@pytest.mark.on_each_backend
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", ["lease", "put", "update", "delete"])
def test_what_changes_at_the_last_moment_is_deleted_as_a_whole_or_stays(
    change: str, every: int, store: Store
) -> None:
    changes: dict[str, Callable[[ThreadCatalog], Any]] = {
        "lease": lambda other: other.run("thread", if_busy="wait").__enter__(),
        "put": lambda other: put(other.saver, {"n": 2}, parent=head),
        "update": lambda other: other.update("thread", label="x"),
        "delete": lambda other: other.delete("thread"),
    }
    gate = Gate()
    with (
        store.watched(gate.pass_through) as saver,
        store.saver() as own,
        ThreadPoolExecutor(2) as pool,
    ):
        catalog, other = ThreadCatalog(saver), ThreadCatalog(own)
        for stop_at in itertools.count(0, every):
            head = put(own, {"n": 1, "text": "text " * 300})
            gate.close(stop_at)
            deleting = pool.submit(catalog.bulk_delete, ThreadFilter(ids=["thread"]))
            is_reached = gate.wait(deleting)
            if is_reached:
                changing = pool.submit(changes[change], other)
                wait([changing], 0.05)  # else it waits for the deletion to end
            gate.open()
            deleted = deleting.result()
            if not is_reached:
                break
            error = changing.exception()
            assert error is None or isinstance(error, (ThreadDeleted, ThreadNotFound))
            kept = other.get("thread")
            if change == "delete":
                assert kept is None
                assert deleted or error is None
            elif change == "lease":
                # It is that of the old thread, or that of another one after it.
                assert error is None
                assert kept is not None
                assert kept.checkpoint_count == 1 - deleted
                other.delete("thread")
            elif deleted:  # after the change, if that came before all, or without it
                assert kept is None
            else:
                assert error is None
                assert kept is not None
            assert store.problems(own) == []
            own.delete_thread("thread")
        assert stop_at > 3
        assert deleted == 1


async def test_long_threads_are_trimmed_and_keep_their_state(
    catalog: Api, api: Api, store: Store
) -> None:
    policy = RetentionPolicy(max_checkpoints_per_thread=2)
    states = {}
    for name in ("chat", "deltas", "snapshots", "stateful subgraphs"):
        graph = SHAPES[name].build(api.saver)
        for given_ in SHAPES[name].inputs:
            graph.invoke(given_, {"configurable": {"thread_id": name}})
        states[name] = graph.get_state({"configurable": {"thread_id": name}}, subgraphs=True)
    put(api.saver, {"n": 1}, thread_id="short")
    would = await catalog.apply_retention(policy, dry_run=True)
    result = await catalog.apply_retention(policy)
    assert set(result.trimmed) == set(would.trimmed) == states.keys()
    assert result.deleted == ()
    for name, state in states.items():
        graph = SHAPES[name].build(api.saver)
        found = graph.get_state({"configurable": {"thread_id": name}}, subgraphs=True)
        assert (found.values, found.next, found.config) == (state.values, state.next, state.config)
        assert repr(found.tasks) == repr(state.tasks)
        assert len(list(api.saver.history(name))) == 2
    assert (await catalog.apply_retention(policy)).trimmed == ()
    assert store.problems(api.saver) == []


async def test_what_has_expired_is_swept_and_activity_keeps_it(
    catalog: Api, api: Api, store: Store
) -> None:
    for name in ("expired", "active", "updated", "busy"):
        await catalog.create(name, ttl=HOUR)
        put(api.saver, {"n": 1}, thread_id=name)
        store.age(name, updated_at=2 * HOURS)
    await catalog.create("for ever")
    store.age("for ever", updated_at=2 * HOURS)
    put(api.saver, {"n": 2}, thread_id="active")
    await catalog.update("updated", label="x")
    with ThreadCatalog(api.saver).run("busy"):
        result = await catalog.sweep()
        assert (result.deleted, result.busy) == (("expired",), ("busy",))
    assert ids(api.saver) == {"active", "updated", "for ever"}  # its time is up without the lease
    assert (await catalog.sweep()).deleted == ("busy",)
    assert store.problems(api.saver) == []


async def test_a_busy_thread_is_left_alone_and_said_so(
    catalog: Api, api: Api, store: Store
) -> None:
    await fill(catalog, store)
    policy = RetentionPolicy(max_idle=HOUR, max_checkpoints_per_thread=1)
    with (
        ThreadCatalog(api.saver).run("made 4, idle 4"),
        ThreadCatalog(api.saver).run("made 0, idle 0"),
    ):
        for options in ({"dry_run": True}, {"archive": lambda *_: None}):
            result = await catalog.apply_retention(policy, **options)
            assert set(result.busy) == {"made 4, idle 4", "made 0, idle 0"}
        assert await catalog.bulk_delete(ThreadFilter(tags=["idle 4"])) == 0
    result = await catalog.apply_retention(policy)
    assert (result.deleted, result.trimmed) == (("made 4, idle 4",), ("made 0, idle 0",))


async def test_bulk_delete_deletes_what_matches(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)
    wanted = ThreadFilter(tags=["idle 0"])
    before = content(store)
    assert await catalog.bulk_delete(wanted, dry_run=True) == 3
    for empty in (ThreadFilter(), None, ThreadFilter(tags=set(), metadata={}, any_tags=[])):
        with pytest.raises(InvalidInput, match="empty"):
            await catalog.bulk_delete(empty)
    assert content(store) == before
    assert await catalog.bulk_delete(wanted) == 3
    assert ids(api.saver) == {"made 2, idle 2", "made 4, idle 2", "made 4, idle 4"}
    assert store.problems(api.saver) == []


# Archives


def archived_in(path: Path) -> list[str]:
    """Return the ids of the threads in an archive."""
    lines = map(json.loads, path.read_text().splitlines())
    return [line["thread"]["thread_id"] for line in lines if "thread" in line]


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_a_thread_is_in_the_archive_before_it_goes(
    is_encrypted: bool, store: Store, tmp_path: Path
) -> None:
    serde = encrypted_serde() if is_encrypted else SafeSerializer()
    path = tmp_path / "archive.jsonl"
    path.write_text('{"thread": {}, "sha256": "of an earlier one"}\n{"thread": {"not fin')
    with store.saver(serde=serde) as saver:
        catalog = ThreadCatalog(saver)
        messages = [HumanMessage(f"secret {n}", id=str(n)) for n in range(50)]
        first = put(saver, {"messages": messages[:25]}, metadata={"k": "v"})
        put(saver, {"messages": messages}, parent=first)
        saver.put_writes(first, [("c", "secret")], "task")
        catalog.update("thread", label="L", ttl=HOUR)
        expected = list(saver.list(config()))
        store.age("thread", updated_at=2 * HOURS)
        assert catalog.sweep(archive=path).deleted == ("thread",)
        earlier, *lines = path.read_bytes().splitlines()
        assert earlier == b'{"thread": {}, "sha256": "of an earlier one"}'
        encoded = base64.b64encode(b"secret 2")[:-4]
        assert (encoded in b"".join(lines)) is not is_encrypted

        report = restore_threads(saver, path)

        assert [damaged.line for damaged in report.damaged] == [1]
        assert list(saver.list(config())) == expected
        assert catalog.get("thread") is None  # its time is over all the same
        assert catalog.sweep().deleted == ("thread",)


async def test_a_trimmed_thread_is_restored_from_the_archive(
    catalog: Api, api: Api, store: Store, new_store: Callable[[], Store], tmp_path: Path
) -> None:
    graph = SHAPES["deltas"].build(api.saver)
    thread: Any = {"configurable": {"thread_id": "thread"}}
    for given_ in SHAPES["deltas"].inputs:
        graph.invoke(given_, thread)
    await catalog.apply_retention(RetentionPolicy(max_checkpoints_per_thread=2))
    expected = graph.get_state(thread)
    path = tmp_path / "archive.jsonl"
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    assert (await catalog.apply_retention(idle, archive=path)).deleted == ("thread",)

    with new_store().saver() as saver:
        assert restore_threads(saver, path).is_complete
        found = SHAPES["deltas"].build(saver).get_state(thread)
        assert len(list(saver.history("thread"))) == 2
    assert (found.values, found.next) == (expected.values, expected.next)


async def test_what_could_not_be_read_leaves_no_part_in_the_archive(
    catalog: Api, api: Api, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "archive.jsonl"
    for name in ("a", "b", "c"):
        put(api.saver, {"n": 1}, thread_id=name)
        put(api.saver, {"n": name}, thread_id=name)
    rows = [row for row in store.rows("checkpoints") if row.thread == store.thread("b").key]
    store.change("checkpoints", rows[-1].key, content=b"\0damaged")
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    result = await catalog.apply_retention(idle, archive=path)
    assert set(result.deleted) == {"a", "c"}
    assert list(result.failed) == ["b"]
    assert sorted(archived_in(path)) == ["a", "c"]
    assert ids(api.saver) == {"b"}


async def test_the_file_is_on_the_disk_before_the_thread_goes(
    catalog: Api, api: Api, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "archive.jsonl"
    put(api.saver, {"n": 1})
    synced: list[tuple[bytes, set[str]]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        fsync(file)
        synced.append((path.read_bytes(), ids(api.saver)))

    monkeypatch.setattr(os, "fsync", watched)
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    assert (await catalog.apply_retention(idle, archive=path)).deleted == ("thread",)
    assert len(synced) == 2  # the file and its name
    for content_, there in synced:
        assert content_ == path.read_bytes()
        assert there == {"thread"}


async def test_an_archive_that_nobody_awaits_deletes_nothing(
    catalog: Api, api: Api, store: Store
) -> None:
    async def archive(*_: Any) -> None:
        pass

    put(api.saver, {"n": 1})
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    for options in ({"archive": archive}, {"on_progress": archive}):
        with pytest.raises(InvalidInput, match=f"{next(iter(options))} must not be async"):
            await catalog.apply_retention(idle, **options)
    awaitable = asyncio.get_running_loop().create_future()
    result = await catalog.apply_retention(idle, archive=lambda *_: awaitable)
    assert isinstance(result.failed["thread"], TypeError)
    assert ids(api.saver) == {"thread"}


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_callbacks_may_use_the_saver(world: str, tmp_path: Path) -> None:
    """Also where all operations run on the one thread of a connection that was passed."""
    async with aiosqlite.connect(tmp_path / "passed.db") as connection:
        saver = SqliteSaver(connection)
        catalog = ThreadCatalog(saver)
        seen: list[Any] = []

        def archive(thread: Thread, checkpoints: Any) -> None:
            for found in checkpoints:
                seen.append((found.checkpoint["id"], catalog.stats(thread.thread_id).checkpoints))
                assert saver.get_tuple(found.config) == found

        for name in ("a", "b"):
            put(saver, {"n": 1}, thread_id=name)
        SqliteStore(tmp_path / "passed.db").be_old("updated_at")
        policy = RetentionPolicy(max_idle=HOUR)
        options: Any = {"archive": archive, "on_progress": lambda _: catalog.count()}
        if world == "sync":
            result = catalog.apply_retention(policy, **options)
        else:
            result = await catalog.aapply_retention(policy, **options)
        assert set(result.deleted) == {"a", "b"}
        assert [number for _, number in seen] == [1, 1]
        async with catalog.sweeper(HOUR):
            await catalog.acount()


async def test_what_cannot_be_archived_stays(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)

    def archive(thread: Thread, checkpoints: Any) -> None:
        assert len(list(checkpoints)) == thread.checkpoint_count == 3
        if thread.thread_id == "made 4, idle 2":
            raise OSError("no space left")
        if thread.thread_id == "made 4, idle 4":
            put(api.saver, {"n": 9}, thread_id=thread.thread_id)  # it is active again

    policy = RetentionPolicy(max_idle=HOUR)
    result = await catalog.apply_retention(policy, archive=archive)
    assert result.deleted == ("made 2, idle 2",)
    assert list(result.failed) == ["made 4, idle 2"]
    assert "no space" in str(result.failed["made 4, idle 2"])
    assert {"made 4, idle 2", "made 4, idle 4"} <= ids(api.saver)
    assert not await catalog.is_busy("made 4, idle 2")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if api.world == "sync":
        with pytest.raises(KeyboardInterrupt):
            await catalog.apply_retention(policy, archive=interrupt)
    assert not await catalog.is_busy("made 4, idle 2")
    assert store.problems(api.saver) == []


# In the background


def is_stored(store: Store, thread_id: str) -> bool:
    """Return whether there is a thread, whether it has expired or not."""
    return any(one.thread_id == thread_id and one.is_live for one in store.threads())


def test_a_sweeper_sweeps_until_it_is_stopped(saver: ForkpointSaver, store: Store) -> None:
    catalog = ThreadCatalog(saver)
    with catalog.sweeper(timedelta(milliseconds=20)) as sweeper:
        for round_ in range(3):
            catalog.create(f"t{round_}", ttl=HOUR)
            store.age(f"t{round_}", updated_at=2 * HOURS)
            wait_until(lambda n=round_: not is_stored(store, f"t{n}"), "a sweep")  # type: ignore[misc]
    assert sweeper.last_error is None
    assert sweeper.last_result is not None
    catalog.create("late", ttl=HOUR)
    store.age("late", updated_at=2 * HOURS)
    time.sleep(0.1)
    assert is_stored(store, "late")


def test_a_failed_sweep_is_told_and_the_next_one_works(
    saver: ForkpointSaver, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = ThreadCatalog(saver)
    failures = iter([StorageError("gone"), ValueError("of a callback")])

    def fail_twice() -> RetentionResult:
        for failure in failures:
            raise failure
        return catalog.sweep()

    catalog.create("thread", ttl=HOUR)
    store.age("thread", updated_at=2 * HOURS)
    with Sweeper(fail_twice, 0.01) as sweeper:
        wait_until(lambda: not is_stored(store, "thread"), "a sweep")
    assert sweeper.last_error is None
    assert sum("a sweep failed" in record.message for record in caplog.records) == 2


async def test_a_sweeper_stops_with_its_block(saver: ForkpointSaver) -> None:
    async with ThreadCatalog(saver).sweeper(HOUR) as sweeper:
        assert sweeper._thread.is_alive()
    assert not sweeper._thread.is_alive()


def test_of_several_that_sweep_one_handles_each_thread(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    number = 16
    path = tmp_path / "archive.jsonl"
    catalog = ThreadCatalog(saver)
    for n in range(number):
        catalog.create(f"t{n}", ttl=HOUR)
        put(saver, {"n": n}, thread_id=f"t{n}")
        store.age(f"t{n}", updated_at=2 * HOURS)
    deleted: list[str] = []

    def sweep() -> None:
        with store.saver() as own:
            deleted.extend(ThreadCatalog(own).sweep(archive=path).deleted)

    sweepers = [threading.Thread(target=sweep) for _ in range(4)]
    for sweeper in sweepers:
        sweeper.start()
    for sweeper in sweepers:
        sweeper.join()
    expected = sorted(f"t{n}" for n in range(number))
    assert sorted(archived_in(path)) == sorted(deleted) == expected
    assert catalog.count() == 0
    assert store.problems(saver) == []


# The rules


@given(
    age=st.integers(0, 9),
    idle=st.integers(0, 9),
    ttl=st.none() | st.integers(1, 9),
    count=st.integers(0, 5),
    tags=st.sets(st.sampled_from("ab")),
    max_age=st.none() | st.integers(1, 9),
    max_idle=st.none() | st.integers(1, 9),
    keep=st.none() | st.integers(1, 5),
    expired=st.booleans(),
    keep_tags=st.frozensets(st.sampled_from("ab")),
)
def test_the_rules_are_what_they_say(
    age: int,
    idle: int,
    ttl: int | None,
    count: int,
    tags: set[str],
    max_age: int | None,
    max_idle: int | None,
    keep: int | None,
    expired: bool,
    keep_tags: frozenset[str],
) -> None:
    now = 1000
    row = ThreadRow(
        ThreadRef(1, 1, 1),
        "thread",
        Description(None, sorted(tags), "{}", ttl),
        "idle",
        now - age,
        now - idle,
        None,
        None,
        count,
        None,
    )
    action = Rules(max_age, max_idle, keep, expired, keep_tags).action(row, now)
    goes = (
        (max_age is not None and age > max_age)
        or (max_idle is not None and idle > max_idle)
        or (expired and ttl is not None and idle >= ttl)
    )
    if tags & keep_tags:
        assert action is None
    elif goes:
        assert action == "delete"
    else:
        assert action == ("trim" if keep is not None and count > keep else None)


# Killed


def retain(store: Store, path: str | None, ready: Any) -> None:
    with store.saver() as saver:
        policy = RetentionPolicy(max_idle=HOUR, max_checkpoints_per_thread=1, keep_tags={"keep"})
        ready.set()
        ThreadCatalog(saver).apply_retention(policy, archive=path)


@pytest.mark.parametrize("is_archived", [False, True])
@pytest.mark.parametrize(
    ("number", "kills"),
    [(45, 2), pytest.param(10_000, 20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_retention_that_is_killed_is_done_by_the_next(
    number: int, kills: int, is_archived: bool, store: Store, saver: ForkpointSaver, tmp_path: Path
) -> None:
    catalog = ThreadCatalog(saver)
    long = ["text " * 300]
    for n in range(number):
        put(saver, {"n": n, "long": long}, thread_id=f"t{n}")
        if n % 3 == 0:
            store.age(f"t{n}", updated_at=2 * HOURS)
        elif n % 3 == 1:
            put(saver, {"n": -n}, thread_id=f"t{n}")
        if n % 9 == 0:
            catalog.update(f"t{n}", tags=["keep"])
            store.age(f"t{n}", updated_at=2 * HOURS)
    rng = random.Random(1)
    path = str(tmp_path / "archive.jsonl") if is_archived else None
    for _ in range(kills):
        ready = fork_server().Event()
        process = fork_server().Process(target=retain, args=(store, path, ready))
        process.start()
        assert ready.wait(PATIENCE_SECONDS)
        time.sleep(rng.random() * number / 4000)
        process.kill()
        process.join()
        store.await_end_of(process.pid)
    store.outlast()
    until = time.monotonic() + 300
    while True:
        result = catalog.apply_retention(
            RetentionPolicy(max_idle=HOUR, max_checkpoints_per_thread=1, keep_tags={"keep"}),
            archive=path,
        )
        if not result.busy or time.monotonic() > until:
            break  # a killed one's leases last for a minute
        time.sleep(1)

    expected = {f"t{n}" for n in range(number) if n % 3 or n % 9 == 0}
    assert ids(saver) == expected
    for n in range(1, number, 3):
        (only,) = saver.history(f"t{n}")
        assert value_of(only) == {"n": -n}
    if path is not None:
        assert set(archived_in(Path(path))) == {f"t{n}" for n in range(number)} - expected
    assert store.problems(saver) == []


def delete_until_killed(store: Store, commands: int) -> None:
    policy = RetentionPolicy(max_age=HOUR, max_checkpoints_per_thread=1)
    ThreadCatalog(store.mortal(commands)).apply_retention(policy)


@pytest.mark.parametrize("every", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_what_a_killed_one_left_is_finished_wherever_it_was(
    every: int, store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    for commands in itertools.count(0, every):
        for name in ("old", "long"):
            put(saver, {"text": "old text " * 300}, thread_id=name)
            put(saver, {"text": "text " * 300}, thread_id=name)
        store.age("old", created_at=2 * HOURS)
        process = fork_server().Process(target=delete_until_killed, args=(store, commands))
        process.start()
        process.join()
        assert process.pid is not None
        store.await_end_of(process.pid)
        store.outlast()
        catalog.apply_retention(RetentionPolicy(max_age=HOUR, max_checkpoints_per_thread=1))
        assert ids(saver) == {"long"}
        assert len(list(saver.history("long"))) == 1
        assert store.problems(saver) == [], commands
        saver.delete_thread("long")
        if process.exitcode == 0:
            break
    assert commands > 10


@pytest.fixture
async def filled(catalog: Api, store: Store) -> Any:
    await fill(catalog, store)
    return content(store)


@one_by_one(
    "method, args, options, name",
    [
        ("apply_retention", [{}], {}, "policy"),
        ("apply_retention", [RetentionPolicy()], {}, "no rule"),
        ("apply_retention", [RetentionPolicy(keep_tags={"a"})], {}, "no rule"),
        ("apply_retention", [RetentionPolicy(max_age=5)], {}, "max_age"),
        ("apply_retention", [RetentionPolicy(max_idle=-HOUR)], {}, "max_idle"),
        ("apply_retention", [RetentionPolicy(max_checkpoints_per_thread=0)], {}, "max_checkpoints"),
        ("apply_retention", [RetentionPolicy(expired=1)], {}, "expired"),
        ("apply_retention", [RetentionPolicy(HOUR, keep_tags="ab")], {}, "keep_tags"),
        ("apply_retention", [RetentionPolicy(HOUR), {"owner": "x"}], {}, "filter"),
        ("apply_retention", [RetentionPolicy(HOUR)], {"dry_run": 1}, "dry_run"),
        ("apply_retention", [RetentionPolicy(HOUR)], {"archive": 1}, "archive"),
        ("apply_retention", [RetentionPolicy(HOUR)], {"on_progress": "x"}, "on_progress"),
        ("bulk_delete", [ThreadFilter(owner="x")], {"dry_run": "no"}, "dry_run"),
        ("sweep", [], {"archive": 1}, "archive"),
    ],
)
async def test_what_is_wrong_is_refused_by_name_and_changes_nothing(
    method: str, args: list[Any], options: Any, name: str, catalog: Api, store: Store, filled: Any
) -> None:
    with pytest.raises(InvalidInput, match=name):
        await getattr(catalog, method)(*args, **options)
    for interval in (5, timedelta(0)):
        with pytest.raises(InvalidInput, match="interval"):
            catalog.saver.sweeper(interval)
    with pytest.raises(InvalidInput, match="archive"):
        catalog.saver.sweeper(HOUR, archive=1)
    assert content(store) == filled
