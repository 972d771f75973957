"""Deletions count for the owner whose thread it was, and for nobody else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from checking import Api, checkpoint, config, id_of, put
from forkpoint import InvalidInput, SqliteSaver, ThreadCatalog, ThreadDeleted, ThreadExists
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from servers import wait_until
from stores import MongoStore, SqliteStore, Store

LAST = "ffffffff-ffff-6fff-bfff-ffffffffffff"
FIRST = "00000000-0000-6000-8000-000000000000"

OLD: dict[str, Callable[[ForkpointSaver], object]] = {
    "deleted": lambda saver: saver.delete_thread("thread"),
    "purged": lambda saver: saver.purge("thread"),
    "deleted by its catalog": lambda saver: ThreadCatalog(saver, owner="acme").delete("thread"),
    "emptied": lambda saver: saver.delete_for_runs(["run"]),
    "pruned": lambda saver: saver.prune(["thread"], strategy="delete_all"),
}


@pytest.fixture
def savers(api: Api) -> tuple[Api, Api]:
    """The savers of two owners."""
    acme, other = (Api(api.saver.for_owner(owner), api.world) for owner in ("acme", "other"))
    return acme, other


async def outcome(made: Any) -> Any:
    """Return the kind of error that a call raised, or what it returned."""
    try:
        return await made
    except (ThreadDeleted, ThreadExists) as error:
        return type(error)


def put_of(api: Api, at: Any, made: Any) -> Any:
    return api.put(at, made, {"run_id": "run"}, {})


@pytest.mark.parametrize("how", OLD)
@pytest.mark.parametrize("bound", [FIRST, "its own", LAST])
@pytest.mark.in_turns
async def test_an_id_that_another_owner_has_deleted_is_as_one_never_used(
    bound: str, how: str, api: Api, savers: tuple[Api, Api], store: Store
) -> None:
    acme, other = savers
    first = await put_of(acme, config(), checkpoint({"n": 1}))
    await acme.put_writes(first, [("c", 1)], "task")
    OLD[how](acme.saver)

    # Below, at and beyond the checkpoint that was deleted: a search by halves learns nothing.
    parent = id_of(first) if bound == "its own" else bound
    for thread_id in ("thread", f"never used, {bound}"):
        assert await stored(other, config(thread_id, parent)) == ["checkpoint", "writes"]

    # The owner's own late writes are known as before.
    assert await outcome(put_of(acme, first, checkpoint({"n": 3}))) is ThreadExists
    await other.delete_thread("thread")
    assert await outcome(put_of(acme, first, checkpoint({"n": 3}))) is ThreadDeleted
    assert await outcome(acme.put_writes(first, [("c", 2)], "late")) is ThreadDeleted
    assert store.problems(api.saver) == []


async def stored(api: Api, at: Any) -> list[str]:
    """Store a checkpoint and writes after one that is not there; return what was stored."""
    made = checkpoint({"n": 2})
    config_ = await put_of(api, at, made)
    assert id_of(config_) == made["id"]
    await api.put_writes(config_, [("c", 1)], "task")
    found = await api.get_tuple(config_)
    return ["checkpoint"] + ["writes"] * (found.pending_writes == [("task", "c", 1)])


SECRETS = {
    "thread_id": "case-of-mr-smith",
    "owner": "smith@example.com",
    "label": "the label of a case",
    "tag": "the tag of a case",
    "metadata": "the metadata of a case",
    "value": "the value of a case " * 200,
    "write": "the write of a case " * 200,
    "namespace": "the namespace of a case",
}


async def made(api: Api, thread_id: str) -> Any:
    """Make a thread with all that a person may say in one."""
    confined = Api(api.saver.for_owner(SECRETS["owner"]), api.world)
    catalog = ThreadCatalog(api.saver, owner=SECRETS["owner"])
    catalog.create(
        thread_id,
        label=SECRETS["label"],
        tags=[SECRETS["tag"]],
        metadata={"said": SECRETS["metadata"]},
    )
    with catalog.run(thread_id):
        pass
    values = {"value": SECRETS["value"], "list": [SECRETS["value"]] * 3}
    at = config(thread_id)
    for _ in range(3):
        at = await confined.put(at, checkpoint(values), {"run_id": "run"}, dict.fromkeys(values, 1))
        await confined.put_writes(at, [("c", SECRETS["write"])], "task")
    below = config(thread_id, ns=SECRETS["namespace"])
    await confined.put(below, checkpoint(values), {}, dict.fromkeys(values, 1))
    return at


def left(store: Store) -> set[str]:
    """Return what of the secrets can be read in the store's bytes."""
    if isinstance(store, SqliteStore):
        with store.connection() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = store.content()
    return {name for name, secret in SECRETS.items() if secret[:20].encode() in content}


@pytest.mark.parametrize("how", OLD)
@pytest.mark.in_turns
async def test_nothing_is_left_of_a_deleted_thread_that_can_be_read(
    how: str, api: Api, store: Store
) -> None:
    thread_id = SECRETS["thread_id"]
    catalog = ThreadCatalog(api.saver)
    for number in range(3):
        put(api.saver, {"n": number}, thread_id=f"other {number}")
    await made(api, thread_id)
    assert left(store) >= {"thread_id", "owner", "label"}
    page = catalog.search(limit=1)  # it goes on meanwhile
    catalog.update(thread_id, label="another label")
    if how == "emptied":
        api.saver.delete_for_runs(["run"])
    delete = {"purged": api.saver.purge, "deleted by its catalog": catalog.delete}
    delete.get(how, api.saver.delete_thread)(thread_id)
    assert left(store) == set()
    assert catalog.search(limit=1, cursor=page.next_cursor).items
    assert left(store) == set()
    assert store.problems(api.saver) == []


async def test_an_ancestor_keeps_its_id_until_its_last_descendant_goes(
    api: Api, store: Store
) -> None:
    thread_id = SECRETS["thread_id"]
    await made(api, thread_id)
    for number in range(2):
        api.saver.fork(thread_id, new_thread_id=f"fork {number}", metadata={"said": "nothing"})
    api.saver.fork("fork 0", new_thread_id="fork of the fork")
    await api.delete_thread(thread_id)
    await api.delete_thread("fork 0")
    ids = [entry.thread_id for entry in await api.lineage("fork of the fork")]
    assert ids == ["fork of the fork", "fork 0", thread_id]
    dead = [one for one in store.stored("threads").values() if one["deleted_at"] is not None]
    assert {one["thread_id"] for one in dead} == {thread_id, "fork 0"}
    assert all(one["owner"] is None and one["label"] is None for one in dead)

    await api.delete_thread("fork 1")
    assert thread_id in [entry.thread_id for entry in await api.lineage("fork of the fork")]
    assert len(list(await api.family("fork of the fork"))) == 3
    await api.delete_thread("fork of the fork")
    assert left(store) == set()
    assert store.count("threads") == 0
    assert store.problems(api.saver) == []


async def test_what_is_left_of_deleted_threads_is_removed_later(api: Api, store: Store) -> None:
    first = put(api.saver, {"n": 1})
    await api.delete_thread("thread")
    await api.delete_thread("never used")
    assert await outcome(put_of(api, first, checkpoint({"n": 2}))) is ThreadDeleted
    if isinstance(store, SqliteStore):
        with store.connection() as connection:
            connection.execute("UPDATE forkpoint_tombstones SET made_at = made_at - 86400000001")
        put(api.saver, {"n": 1}, thread_id="other")
        await api.delete_thread("other")
        with store.connection() as connection:
            rows = connection.execute("SELECT count(*) FROM forkpoint_tombstones").fetchone()
        assert rows == (1,)
        return
    assert isinstance(store, MongoStore)
    expiring = list(store.collection.find({"expires": {"$exists": True}}))
    names = [one for one in expiring if str(one["_id"]).startswith("name:")]
    assert len(names) == 2
    assert len(list(store.collection.find({"kind": "thread", "expires": None}))) == 0
    put(api.saver, {"n": 1})  # the id means a thread again
    assert (
        store.collection.count_documents(
            {"_id": {"$in": [n["_id"] for n in names]}, "expires": {"$exists": True}}
        )
        == 1
    )


def test_what_is_deleted_is_overwritten_whatever_the_connection_did_before(path: Path) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA secure_delete = OFF")
    saver = SqliteSaver(connection)
    put(saver, {"value": SECRETS["value"]}, thread_id=SECRETS["thread_id"])
    saver.delete_thread(SECRETS["thread_id"])
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert SECRETS["value"][:20].encode() not in path.read_bytes()
    assert SECRETS["thread_id"].encode() not in path.read_bytes()
    connection.close()


# How long they are kept


def tombstones(store: Store) -> list[Any]:
    """Return what is kept of deletions, but for what the server is about to delete by itself."""
    if isinstance(store, SqliteStore):
        with store.connection() as connection:
            rows = connection.execute("SELECT id_mark, owner_mark FROM forkpoint_tombstones")
            return rows.fetchall()
    assert isinstance(store, MongoStore)
    names = store.collection.find({"tombstones": {"$exists": True}})
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    kept = [name for name in names if name.get("expires", datetime.max) > now]
    return [tombstone for name in kept for tombstone in name["tombstones"]]


@pytest.mark.in_turns
@pytest.mark.parametrize("is_used_again", [False, True])
def test_a_sweep_removes_what_is_kept_of_deletions_for_too_long(
    is_used_again: bool, store: Store
) -> None:
    with store.saver(tombstone_ttl=timedelta(milliseconds=1)) as saver:
        first = put(saver, {"n": 1})
        saver.delete_thread("thread")
        saver.for_owner("acme").delete_thread("none")
        if is_used_again:
            put(saver, {"n": 2})

        def are_gone() -> bool:
            ThreadCatalog(saver).sweep()
            return tombstones(store) == []

        wait_until(are_gone, "a sweep that removes tombstones")
        if not is_used_again and isinstance(store, SqliteStore):
            put(saver, {"n": 3}, parent=first)  # it is taken for a new run
        assert store.problems(saver) == []


def test_a_sweep_removes_all_that_is_kept_for_too_long_in_turns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 2)
    store = SqliteStore(path)
    with store.saver() as saver:
        for n in range(5):
            put(saver, {"n": n}, thread_id=f"t{n}")
            saver.delete_thread(f"t{n}")
        with store.connection() as connection:
            connection.execute("UPDATE forkpoint_tombstones SET made_at = 1")
        put(saver, {"n": 5})
        saver.delete_thread("thread")
        ThreadCatalog(saver).sweep()
        assert len(tombstones(store)) == 1
        assert store.problems(saver) == []


def test_a_sweep_keeps_what_late_writes_are_known_by(saver: ForkpointSaver, store: Store) -> None:
    first = put(saver, {"n": 1})
    saver.delete_thread("thread")
    before = tombstones(store)
    ThreadCatalog(saver).sweep()
    assert tombstones(store) == before != []
    with pytest.raises(ThreadDeleted):
        put(saver, {"n": 2}, parent=first)


def test_an_ancestor_goes_with_the_last_of_its_descendants(
    saver: ForkpointSaver, store: Store
) -> None:
    put(saver, {"n": 1}, thread_id="ancestor")
    saver.fork("ancestor", new_thread_id="child")
    saver.fork("child", new_thread_id="grandchild")
    for deleted, is_named in (("ancestor", True), ("child", True), ("grandchild", False)):
        saver.delete_thread(deleted)
        ThreadCatalog(saver).sweep()
        named = [thread.thread_id for thread in store.threads()]
        assert ("ancestor" in named) == is_named
    if isinstance(store, SqliteStore):
        assert store.threads() == []
    else:
        assert isinstance(store, MongoStore)
        records = list(store.collection.find({"kind": "thread"}))
        assert len(records) == 3
        assert all("expires" in record for record in records)  # the server deletes them
    assert store.problems(saver) == []


@pytest.mark.parametrize("value", [timedelta(0), timedelta(days=-1), 3600, None])
def test_a_time_for_tombstones_that_is_none_is_refused(value: Any, path: Path) -> None:
    with pytest.raises(InvalidInput, match="tombstone_ttl"):
        SqliteSaver(path, tombstone_ttl=value)
    with pytest.raises(InvalidInput, match="tombstone_ttl"):
        MongoDBSaver.from_conn_string("mongodb://localhost", tombstone_ttl=value)
