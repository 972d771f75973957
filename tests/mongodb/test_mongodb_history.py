"""What a process remembers of a store is valid for that store's history only, and no longer.

A collection is dropped, a backup is restored, a server is started on other data, all of it under a
saver that lives on. What it puts then is there and can be read, or it raises an error with a type.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo.monitoring import CommandStartedEvent

from checking import Api, checkpoint, config, put, value_of
from commands import Commands, Started
from forkpoint import MongoDBSaver, StaleLease, StorageBusy, StorageUnavailable, ThreadCatalog
from graphs import chat
from servers import Mongod, ReplicaSet
from stores import MongoStore

TEXT = "a text that is long enough for a chunk " * 100

Loss = Callable[[MongoStore, list[Any]], None]


def drop(store: MongoStore, _: list[Any]) -> None:
    store.collection.drop()


def drop_database(store: MongoStore, _: list[Any]) -> None:
    store.collection.database.client.drop_database(store.name)


def restore(store: MongoStore, backup: list[Any]) -> None:
    store.restore_dump(backup, store.collection.index_information())


def restore_documents(store: MongoStore, backup: list[Any]) -> None:
    store.restore_dump(backup)


def restore_in_place(store: MongoStore, backup: list[Any]) -> None:
    store.restore(backup)


LOSSES: dict[str, Loss] = {
    "the collection is dropped": drop,
    "the database is dropped": drop_database,
    "a backup is restored": restore,
    "a backup is restored without its indexes": restore_documents,
}


def texts(n: int) -> dict[str, Any]:
    return {"n": n, "text": TEXT, "more": f"{n % 3} " * 1000}


def chain(
    saver: MongoDBSaver, numbers: range, parent: Any = None, thread_id: str = "thread"
) -> Any:
    """Put checkpoints, one after the other, most of whose values are those of the one before."""
    for n in numbers:
        versions = {"n": n, "text": 1, "more": n}
        made = checkpoint(texts(n), versions)
        after = parent or config(thread_id)
        parent = saver.put(after, made, {}, versions if parent is None else {"n": n, "more": n})
        saver.put_writes(parent, [("c", n)], f"task {n}")
    return parent


def assert_whole(store: MongoStore, head: Any, n: int) -> None:
    """Look at a put from outside: it is there, it can be read, and nothing is out of order."""
    with store.saver() as reader:
        item = reader.get_tuple(head)
        assert item is not None, "an acknowledged put is not there"
        assert value_of(item) == texts(n)
        assert item.pending_writes == [(f"task {n}", "c", n)]
        assert store.problems(reader) == []
        assert ThreadCatalog(reader).get(head["configurable"]["thread_id"]) is not None
    assert "forkpoint_log" in store.collection.index_information()


def run(saver: MongoDBSaver) -> None:
    with ThreadCatalog(saver).run("thread"):
        pass


@pytest.mark.parametrize(
    ("loss", "thread_id"),
    [
        ("the collection is dropped", "thread"),
        ("a backup is restored without its indexes", "newer"),
        pytest.param("the collection is dropped", "newer", marks=pytest.mark.slow),
        pytest.param("the database is dropped", "thread", marks=pytest.mark.slow),
        pytest.param("the database is dropped", "newer", marks=pytest.mark.slow),
        pytest.param("a backup is restored", "thread", marks=pytest.mark.slow),
        pytest.param("a backup is restored", "newer", marks=pytest.mark.slow),
        pytest.param("a backup is restored without its indexes", "thread", marks=pytest.mark.slow),
    ],
)
def test_what_is_put_after_it_is_there(loss: str, thread_id: str, mongo_store: MongoStore) -> None:
    """In its own log, which it has begun before the backup and after it."""
    saver: Any
    with mongo_store.saver() as saver:
        heads = {"thread": chain(saver, range(3))}
        backup = list(mongo_store.collection.find())
        heads["thread"] = chain(saver, range(3, 6), heads["thread"])
        heads["newer"] = chain(saver, range(6), thread_id="newer")
        LOSSES[loss](mongo_store, backup)
        head = chain(saver, range(6, 8), heads[thread_id], thread_id)
        assert_whole(mongo_store, head, 7)
        head = chain(saver, range(8), thread_id="another")
        assert_whole(mongo_store, head, 7)


@pytest.mark.parametrize(
    ("loss", "small"),
    [
        ("the collection is dropped", False),
        pytest.param("the collection is dropped", True, marks=pytest.mark.slow),
        pytest.param("a backup is restored without its indexes", False, marks=pytest.mark.slow),
        pytest.param("a backup is restored", True, marks=pytest.mark.slow),
        pytest.param("a backup is restored", False, marks=pytest.mark.slow),
    ],
)
def test_the_first_thing_after_it_may_be_anything(
    loss: str, small: bool, mongo_store: MongoStore
) -> None:
    """An insert into a log, or a bulk with chunks; writes; a new thread; a read; the catalog."""
    values = {"n": 1} if small else {"text": TEXT[::-1]}
    firsts: list[Callable[[Any, Any], Any]] = [
        lambda saver, head: put(saver, values, parent=head),
        lambda saver, head: saver.put_writes(head, list(values.items()), "task"),
        lambda saver, _: put(saver, values, thread_id="another"),
        lambda saver, _: saver.get_tuple(config()),
        lambda saver, _: list(saver.list(None)),
        lambda saver, _: saver.setup(),
        lambda saver, _: saver.delete_thread("thread"),
        lambda saver, _: ThreadCatalog(saver).get_or_create("thread"),
        lambda saver, _: run(saver),
        lambda saver, _: ThreadCatalog(saver).search(),
    ]
    for first in firsts:
        mongo_store.collection.drop()
        saver: Any
        with mongo_store.saver() as saver:
            head = chain(saver, range(2))
            backup = list(mongo_store.collection.find())
            head = chain(saver, range(2, 4), head)
            LOSSES[loss](mongo_store, backup)
            first(saver, head)
            assert_whole(mongo_store, chain(saver, range(3)), 2)


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_what_others_made_since_is_read(world: str, mongo_store: MongoStore) -> None:
    """They know threads by another key of the store."""
    saver: Any
    with mongo_store.saver() as saver:
        chain(saver, range(3))
        mongo_store.collection.drop()
        with mongo_store.saver() as another:
            head = await asyncio.to_thread(chain, another, range(1))
        item = await Api(saver, world).get_tuple(config())
        assert item is not None
        assert item.config == head


@pytest.mark.slow
def test_a_large_put_is_not_stored_into_nothing(mongo_store: MongoStore) -> None:
    saver: Any
    with mongo_store.saver() as saver:
        head = put(saver, {"n": 1})
        mongo_store.collection.drop()
        large = os.urandom(20_000_000)
        head = put(saver, {"large": large}, parent=head)
        with mongo_store.saver() as reader:
            assert value_of(reader.get_tuple(head)) == {"large": large}
            assert mongo_store.problems(reader) == []
        assert "forkpoint_log" in mongo_store.collection.index_information()


@pytest.mark.slow
async def test_async_calls_in_flight_are_stored_again(mongo_store: MongoStore) -> None:
    saver: Any
    with mongo_store.saver() as saver:
        heads = [chain(saver, range(2), thread_id=f"thread-{n}") for n in range(10)]
        mongo_store.collection.drop()
        api = Api(saver, "async")
        heads = await asyncio.gather(
            *(api.put(head, checkpoint(texts(5)), {}, {"n": 5}) for head in heads)
        )
        for head in heads:
            await api.put_writes(head, [("c", 5)], "task 5")
            await asyncio.to_thread(assert_whole, mongo_store, head, 5)


def test_documents_that_are_taken_away_are_missed_by_what_names_them(
    mongo_store: MongoStore,
) -> None:
    """Without a drop: a put with chunks names the thread's record, unless it is of a run."""
    saver: Any
    with mongo_store.saver() as saver:
        head = chain(saver, range(3))
        backup = list(mongo_store.collection.find())
        saver.trim("thread", 10)  # ends the log, as anything else may
        head = chain(saver, range(3, 5), head)
        mongo_store.restore(backup)
        put(saver, {"text": "other " * 1000}, parent=head)
        assert_whole(mongo_store, chain(saver, range(5, 7), head), 6)
        others = {"_id": {"$not": {"$regex": "^(settings|store_key|secret:.*)$"}}}
        mongo_store.collection.delete_many(others)
        put(saver, {"text": "another " * 1000}, parent=head)
        assert_whole(mongo_store, chain(saver, range(7, 9), head), 8)


def test_documents_that_are_taken_away_are_missed_by_the_next_run(mongo_store: MongoStore) -> None:
    """Without a drop: each run first looks for its thread by name."""
    saver: Any

    def run_on(number: int, messages: int) -> None:
        graph.invoke({"messages": [f"question {number} " * 1000]}, config())
        with mongo_store.saver() as reader:
            item = reader.get_tuple(config())
            assert item is not None, "an acknowledged put is not there"
            assert len(value_of(item)["messages"]) == messages
            assert mongo_store.problems(reader) == []

    with mongo_store.saver() as saver:
        graph = chat(saver)
        run_on(1, 2)
        backup = list(mongo_store.collection.find())
        saver.trim("thread", 10)  # ends the log, as anything else may
        run_on(2, 4)
        mongo_store.restore(backup)
        run_on(3, 4)
        others = {"_id": {"$not": {"$regex": "^(settings|store_key|secret:.*)$"}}}
        mongo_store.collection.delete_many(others)
        run_on(4, 2)


@pytest.mark.parametrize("loss", [restore_documents, restore_in_place])
def test_a_lease_that_the_backup_does_not_have_is_not_that_which_begins_next(
    loss: Loss, mongo_store: MongoStore
) -> None:
    hour = timedelta(hours=1)
    saver: Any
    with mongo_store.saver() as saver:
        put(saver, {"n": 1})
        saver.trim("thread", 10)  # ends the log
        backup = list(mongo_store.collection.find())
        with ThreadCatalog(saver).run("thread", ttl=hour) as lost:
            loss(mongo_store, backup)
            with ThreadCatalog(saver).run("thread", ttl=hour) as lease:
                with pytest.raises(StaleLease):
                    saver.put(lost.config, checkpoint({"n": 2}), {}, {"n": 1})
                assert not lost.renew()
                saver.put(lease.config, checkpoint({"n": 3}), {}, {"n": 1})
        assert [value_of(item) for item in saver.list(config())] == [{"n": 3}, {"n": 1}]


def test_who_removes_from_a_store_that_is_dropped_leaves_nothing_in_the_next(
    mongo_store: MongoStore,
) -> None:
    def drop(event: CommandStartedEvent) -> None:
        if event.command_name == "update" and "lock.by" in event.command["updates"][0]["q"]:
            mongo_store.collection.drop()

    with mongo_store.saver(event_listeners=[Started(drop)]) as saver:
        put(saver, {"n": 2}, parent=put(saver, {"n": 1}))
        with pytest.raises(StorageBusy):
            saver.trim("thread", 1)
        assert mongo_store.collection.count_documents({}) == 0


def test_setup_makes_what_is_missing(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        saver.setup()
        before = set(mongo_store.collection.index_information())
        mongo_store.collection.drop_index("forkpoint_log")
        mongo_store.collection.drop_index("forkpoint_run")
        saver.setup()
        assert set(mongo_store.collection.index_information()) == before
        mongo_store.collection.drop()
        saver.setup()
        assert set(mongo_store.collection.index_information()) == before
        assert mongo_store.collection.find_one({"_id": "settings"}) is not None


def test_noticing_costs_no_round_trip(mongo_store: MongoStore) -> None:
    commands = Commands()
    with mongo_store.saver(event_listeners=[commands]) as saver:
        head = put(saver, {"n": 1})
        commands.clear()
        head = put(saver, {"n": 2}, parent=head)
        put(saver, {"text": TEXT}, parent=head)
        assert commands.names == ["insert", "update"]
        assert all("collectionUUID" in sent.command for sent in commands.sent)


# Servers that are started on other data


@pytest.fixture(params=["standalone", pytest.param("replica set", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> Iterator[Mongod | ReplicaSet]:
    made: Mongod | ReplicaSet = Mongod() if request.param == "standalone" else ReplicaSet()
    with made as server:
        yield server


def member_of(server: Mongod | ReplicaSet) -> Mongod:
    return server if isinstance(server, Mongod) else server.members[0]


def start_again(server: Mongod | ReplicaSet, change: Callable[[Path], object]) -> None:
    """Change a server's data while it is stopped."""
    member = member_of(server)
    member.stop()
    change(member.directory)
    member.start()
    if isinstance(server, ReplicaSet):
        server.primary()


@pytest.mark.parametrize("thread_id", [pytest.param("thread", marks=pytest.mark.slow), "newer"])
def test_a_server_is_started_on_older_data(
    thread_id: str, server: Mongod | ReplicaSet, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"

    def put_back(directory: Path) -> None:
        shutil.rmtree(directory)
        shutil.copytree(copied, directory)

    store = MongoStore(server.uri, f"history-{uuid4().hex}")
    saver: Any
    with store.saver(heartbeatFrequencyMS=500) as saver:
        heads = {"thread": chain(saver, range(3))}
        start_again(server, lambda directory: shutil.copytree(directory, copied))
        heads["thread"] = chain(saver, range(3, 6), heads["thread"])
        heads["newer"] = chain(saver, range(6), thread_id="newer")
        start_again(server, put_back)
        head = chain(saver, range(6, 8), heads[thread_id], thread_id)
        assert_whole(store, head, 7)
    store.close()


@pytest.mark.slow
def test_a_server_without_data_takes_the_place_of_another(
    server: Mongod | ReplicaSet,
) -> None:
    store = MongoStore(server.uri, f"history-{uuid4().hex}")
    saver: Any
    with store.saver(heartbeatFrequencyMS=500) as saver:
        head = chain(saver, range(3))
        member_of(server).stop()
        _empty(member_of(server).directory)
        server.start()
        assert_whole(store, chain(saver, range(3, 6), head), 5)
        assert len(list(saver.list(config()))) == 3
    store.close()


@pytest.mark.slow
def test_the_driver_refuses_a_replica_set_that_begins_anew() -> None:
    """If it knows that there was a later election. So nothing is sent, and nothing is lost."""
    with ReplicaSet() as server:
        options: dict[str, Any] = {"heartbeatFrequencyMS": 500, "serverSelectionTimeoutMS": 3000}
        with MongoDBSaver.from_conn_string(server.uri, **options) as saver:
            start_again(server, lambda directory: None)
            head = chain(saver, range(3))
            (member,) = server.members
            member.stop()
            _empty(member.directory)
            server.start()
            with pytest.raises(StorageUnavailable):
                chain(saver, range(3, 6), head)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


@pytest.mark.slow
def test_a_server_that_is_started_again_on_its_data_costs_nothing(
    server: Mongod | ReplicaSet,
) -> None:
    store = MongoStore(server.uri, f"history-{uuid4().hex}")
    saver: Any
    with store.saver(heartbeatFrequencyMS=500) as saver:
        head = chain(saver, range(3))
        start_again(server, lambda directory: None)
        head = chain(saver, range(3, 6), head)
        assert_whole(store, head, 5)
        assert len(list(saver.list(config()))) == 6
    store.close()
