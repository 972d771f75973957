"""A command that fails, for want of room, say: its error is typed, or there is a way around it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymongo
import pytest
from bson.errors import InvalidDocument
from pymongo.cursor import CursorType
from pymongo.errors import (
    ConfigurationError,
    DocumentTooLarge,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
from pymongo.monitoring import CommandStartedEvent

from checking import checkpoint, config, counts_of, put, value_of
from commands import Started
from forkpoint import (
    InvalidInput,
    MongoDBSaver,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageUnauthorized,
    StorageUnavailable,
    ThreadCatalog,
)
from forkpoint.mongodb.errors import typed_error
from forkpoint.mongodb.turns import Turns
from forkpoint.saver import parts_of
from servers import wait_until
from stores import MongoStore

Command = Any
FAILED, NO_ROOM, TOO_LARGE, SNAPSHOT_TOO_OLD, CURSOR_NOT_FOUND = 8, 14031, 10334, 239, 43
LATER = {"times": 1}
ALWAYS = "alwaysOn"


class Fault(Started):
    """Lets a command of a saver fail, the first one of its kind since `begin`.

    Args:
        store: The store. The saver has its name for the name of its application.
        command: The command.
        how: How it fails: what the fail point `failCommand` takes.
        which: Which of these commands is meant.
        mode: How often it fails then.
    """

    def __init__(
        self,
        store: MongoStore,
        command: str,
        how: dict[str, Any],
        which: Callable[[Command], bool] = bool,
        mode: Any = LATER,
    ) -> None:
        super().__init__(self._before)
        self._admin = store.collection.database.client.admin
        self._command, self._which = command, which
        data = {"failCommands": [command], "appName": store.name, **how}
        self._arm = {"configureFailPoint": "failCommand", "mode": mode, "data": data}
        self._is_due = False
        self.has_failed = False

    def begin(self) -> None:
        self._is_due = True

    def end(self) -> None:
        self._is_due = False
        self._admin.command({"configureFailPoint": "failCommand", "mode": "off"})

    def _before(self, event: CommandStartedEvent) -> None:
        if self._is_due and event.command_name == self._command and self._which(event.command):
            self._is_due, self.has_failed = False, True
            self._admin.command(self._arm)


@contextmanager
def failing(
    store: MongoStore, *fault: Any, patience: int = 30_000, **options: Any
) -> Iterator[tuple[MongoDBSaver, Fault]]:
    """Open a saver, one of whose commands fails once `begin` is called."""
    made = Fault(store, *fault, **options)
    client = {"appname": store.name, "serverSelectionTimeoutMS": patience}
    try:
        with store.saver(event_listeners=[made], **client) as saver:
            yield saver, made
    finally:
        made.end()


def is_snapshot(command: Command) -> bool:
    return bool(command.get("readConcern", {}).get("level") == "snapshot")


# Typed errors


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (FAILED, StorageError, "MongoDB failed"),
        (NO_ROOM, StorageFull, "has no room"),
        (TOO_LARGE, InvalidInput, "as one document"),
        (112, StorageUnavailable, "kept changing its primary"),
    ],
)
def test_what_a_command_fails_by_is_a_typed_error(
    code: int, error: type[Exception], message: str, mongo_store: MongoStore
) -> None:
    fault = Fault(mongo_store, "update", {"errorCode": code}, mode=ALWAYS)
    options = {"appname": mongo_store.name, "serverSelectionTimeoutMS": 500}
    with mongo_store.saver(event_listeners=[fault], **options) as saver:
        fault.begin()
        try:
            with pytest.raises(error, match=message) as raised:
                ThreadCatalog(saver).create("thread")
        finally:
            fault.end()
        assert type(raised.value) is error
        assert counts_of(saver) == {}
        ThreadCatalog(saver).create("thread")
        assert mongo_store.problems(saver, after_crash=True) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DocumentTooLarge("BSON document too large"), InvalidInput),
        (InvalidDocument("key must not contain NUL"), InvalidInput),
        (ExecutionTimeout("operation exceeded time limit", 50), StorageBusy),
        (WTimeoutError("waiting for replication timed out", 64), StorageUnavailable),
        (OperationFailure("bad auth : authentication failed", 8000), StorageUnauthorized),
        (
            OperationFailure("you are over your space quota, using 513 MB of 512 MB", 8000),
            StorageFull,
        ),
        (ConfigurationError("this deployment has no sessions"), StorageError),
    ],
)
def test_what_the_driver_raises_is_a_typed_error(
    error: PyMongoError | InvalidDocument, kind: type[Exception]
) -> None:
    assert type(typed_error(error)) is kind
    assert str(error).partition(",")[0] in str(typed_error(error))


def test_a_pool_that_others_have_exhausted_is_busy(mongo_store: MongoStore) -> None:
    with pymongo.MongoClient[Any](mongo_store.uri, maxPoolSize=1, waitQueueTimeoutMS=50) as client:
        saver = MongoDBSaver(client, db_name=mongo_store.name)
        put(saver, {"n": 1})
        ThreadCatalog(saver).create("other")
        documents = client[mongo_store.name][mongo_store.collection.name]
        cursor = documents.find({}, cursor_type=CursorType.EXHAUST, batch_size=2)
        next(cursor)  # it keeps its connection
        with pytest.raises(StorageBusy, match="no connection"):
            put(saver, {"n": 2}, thread_id="third")
        cursor.close()
        put(saver, {"n": 2}, thread_id="third")
        assert counts_of(saver) == {"thread": 1, "third": 1}


@pytest.mark.parametrize("code", [133, 134, 202])
def test_what_a_primary_cannot_read_yet_is_read_again(code: int, mongo_store: MongoStore) -> None:
    how = {"errorCode": code}
    with failing(mongo_store, "aggregate", how, mode={"times": 3}) as (saver, fault):
        put(saver, {"n": 1})
        fault.begin()
        assert ThreadCatalog(saver).get("thread") is not None
        assert fault.has_failed


def test_an_insertion_is_tried_again(mongo_store: MongoStore) -> None:
    conflict = {"errorCode": 112}
    with failing(mongo_store, "insert", conflict, mode={"times": 2}) as (saver, fault):
        put(saver, {"n": 1})
        fault.begin()
        saver.copy_thread("thread", "copy")
        assert fault.has_failed
        assert counts_of(saver) == {"thread": 1, "copy": 1}
        assert mongo_store.problems(saver) == []


def test_a_connection_that_is_lost_again_and_again_is_told(mongo_store: MongoStore) -> None:
    lost = {"closeConnection": True}
    with failing(mongo_store, "insert", lost, mode=ALWAYS, patience=300) as (saver, fault):
        put(saver, {"n": 1})
        fault.begin()
        with pytest.raises(StorageUnavailable, match=r"MongoDB was lost|no MongoDB"):
            saver.copy_thread("thread", "copy")
        fault.end()
        assert counts_of(saver) == {"thread": 1}
        saver.copy_thread("thread", "copy")
        assert counts_of(saver) == {"thread": 1, "copy": 1}
        assert mongo_store.problems(saver, after_crash=True) == []


def test_a_checkpoint_as_large_as_a_document_is_refused_or_read(mongo_store: MongoStore) -> None:
    """It is read together with what its thread's record says, in one document."""
    with mongo_store.saver() as saver, mongo_store.saver() as reader:
        ThreadCatalog(saver).create("thread", metadata={"k": "v" * 65_000})
        state = checkpoint({"c" * (16 * 2**20 - 30_000): 1})
        with pytest.raises(InvalidInput, match="as one document"):
            saver.put(config(), {**state, "channel_versions": {}}, {}, {})
        state = checkpoint({"c" * (16 * 2**20 - 160_000): 1})
        saver.put(config(), {**state, "channel_versions": {}}, {}, {})
        assert value_of(reader.get_tuple(config())) == state["channel_values"]


# Ways around


@pytest.mark.parametrize(
    ("command", "code", "is_copied"),
    [
        ("find", SNAPSHOT_TOO_OLD, True),  # the copy is made in one turn
        ("find", FAILED, False),
        ("getMore", SNAPSHOT_TOO_OLD, True),  # it is begun again
        ("getMore", CURSOR_NOT_FOUND, True),
        ("getMore", 112, True),
        ("getMore", FAILED, False),
    ],
)
def test_the_snapshot_of_a_copy_in_turns_may_be_lost(
    command: str,
    code: int,
    is_copied: bool,
    mongo_store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Turns, "turn_rows", 4)
    which = is_snapshot if command == "find" else bool
    with failing(mongo_store, command, {"errorCode": code}, which) as (saver, fault):
        parent: Any = None
        for number in range(10):
            parent = put(saver, {"n": number}, parent=parent)
        fault.begin()
        if is_copied:
            saver.copy_thread("thread", "copy")
        else:
            with pytest.raises(StorageError):
                saver.copy_thread("thread", "copy")
            assert counts_of(saver) == {"thread": 10}
            saver.copy_thread("thread", "copy")
        assert fault.has_failed
        assert counts_of(saver) == {"thread": 10, "copy": 10}
        assert mongo_store.problems(saver, after_crash=True) == []


def test_writes_that_fit_into_no_document_are_read_by_themselves(mongo_store: MongoStore) -> None:
    def has_writes(command: Command) -> bool:
        return "writes" in [stage.get("$lookup", {}).get("as") for stage in command["pipeline"]]

    with mongo_store.saver() as writer:
        stored = put(writer, {"n": 1})
        writer.put_writes(stored, [("c", 1), ("d", 2)], "task")
    with failing(mongo_store, "aggregate", {"errorCode": TOO_LARGE}, has_writes) as (saver, fault):
        fault.begin()
        found = saver.get_tuple(config())
        assert fault.has_failed
        assert value_of(found) == {"n": 1}
        assert found is not None
        assert found.pending_writes == [("task", "c", 1), ("task", "d", 2)]


def test_threads_are_found_where_there_is_no_room_to_bring_the_index_up_to_date(
    mongo_store: MongoStore,
) -> None:
    with mongo_store.saver() as writer:
        put(writer, {"n": 1}, thread_id="a")
    no_room = {"errorCode": NO_ROOM}
    with failing(mongo_store, "update", no_room, mode=ALWAYS) as (saver, fault):
        with mongo_store.saver() as writer:
            put(writer, {"n": 1}, thread_id="b")
        fault.begin()
        for _ in range(2):
            assert {thread.thread_id for thread in ThreadCatalog(saver).search()} == {"a", "b"}
        assert fault.has_failed
        fault.end()
        assert {thread.thread_id for thread in ThreadCatalog(saver).search()} == {"a", "b"}


def test_a_put_that_is_refused_has_no_effect(mongo_store: MongoStore) -> None:
    with failing(mongo_store, "insert", {"errorCode": TOO_LARGE}) as (saver, fault):
        head = put(saver, {"n": 0})
        fault.begin()
        with pytest.raises(InvalidInput, match="as one document"):
            put(saver, {"n": 1}, parent=head)
        assert counts_of(saver) == {"thread": 1}
        put(saver, {"n": 1}, parent=head)
        assert counts_of(saver) == {"thread": 2}
        assert mongo_store.problems(saver) == []


def test_what_a_search_stores_must_be_confirmed(mongo_store: MongoStore) -> None:
    unconfirmed = {"writeConcernError": {"code": 64, "errmsg": "waiting timed out"}}
    with failing(mongo_store, "insert", unconfirmed) as (saver, fault):
        put(saver, {"n": 0})
        fault.begin()
        with pytest.raises(StorageUnavailable, match="did not confirm"):
            ThreadCatalog(saver).search()
        assert fault.has_failed
        assert [thread.thread_id for thread in ThreadCatalog(saver).search()] == ["thread"]
        assert mongo_store.problems(saver) == []


async def test_of_puts_in_one_bulk_that_is_refused_each_is_sent_alone(
    mongo_store: MongoStore,
) -> None:
    sizes: list[int] = []

    def is_of_many(command: Command) -> bool:
        sizes.append(len(command["documents"]))
        if len(sizes) == 1:  # it waits for others to wait for it
            relay = parts_of(saver).context.storage._relays.small  # type: ignore[attr-defined]
            wait_until(lambda: len(relay._queue) == 3, "the other puts")
        return len(sizes) == 2

    with failing(mongo_store, "insert", {"errorCode": TOO_LARGE}, is_of_many) as (saver, fault):
        heads = [put(saver, {"n": 0}, thread_id=str(number)) for number in range(4)]
        fault.begin()
        made = [saver.aput(head, checkpoint({"n": 1}), {}, {"n": 1}) for head in heads]
        await asyncio.gather(*made)
        assert fault.has_failed
        assert sizes[1] == 3 * sizes[0]
        assert set(counts_of(saver).values()) == {2}
        assert mongo_store.problems(saver) == []


def test_who_has_no_time_left_sends_the_puts_of_others_nevertheless(
    mongo_store: MongoStore,
) -> None:
    """The first put that waits sends those that wait behind it."""
    is_sent, goes_on = threading.Event(), threading.Event()
    failures: list[Exception] = []

    def hold(event: CommandStartedEvent) -> None:
        if "the first" in str(event.command):
            is_sent.set()
            goes_on.wait()

    def write(task: str, seconds: float | None) -> None:
        try:
            with pymongo.timeout(seconds):
                saver.put_writes(head, [("c", 1)], task)
        except Exception as error:  # noqa: BLE001 - of another thread
            failures.append(error)

    with mongo_store.saver(event_listeners=[Started(hold)]) as saver:
        head = put(saver, {"n": 1})
        queue = parts_of(saver).context.storage._relays.small._queue  # type: ignore[attr-defined]
        puts = [("the first", None), ("without time", 1e-6), ("behind it", None)]
        writers = [threading.Thread(target=write, args=each) for each in puts]
        for waiting, writer in enumerate(writers):
            writer.start()
            is_sent.wait()
            wait_until(lambda number=waiting: len(queue) == number, "the put")  # type: ignore[misc]
        goes_on.set()
        for writer in writers:
            writer.join()
        assert failures == []
        stored = saver.get_tuple(head)
        assert stored is not None
        assert len(stored.pending_writes or ()) == 3


# Opening


def check_opened_after(fault: Fault, saver: MongoDBSaver, stored: Any) -> None:
    """Check that a saver is refused while the server fails, and then has what is stored."""
    fault.begin()
    try:
        with pytest.raises(StorageError, match="MongoDB failed"):
            saver.setup()
    finally:
        fault.end()
    saver.setup()
    assert value_of(saver.get_tuple(stored)) == {"n": 1}


@pytest.mark.parametrize(
    ("command", "which"),
    [
        ("listIndexes", bool),
        ("find", lambda command: "hint" in command),
        ("listCollections", bool),
    ],
)
def test_a_store_is_opened_when_the_server_answers_again(
    command: str, which: Callable[[Command], bool], mongo_store: MongoStore
) -> None:
    with mongo_store.saver() as writer:
        stored = put(writer, {"n": 1})
    fault = Fault(mongo_store, command, {"errorCode": FAILED}, which)
    with pymongo.MongoClient[Any](
        mongo_store.uri, event_listeners=[fault], appname=mongo_store.name
    ) as client:
        saver = MongoDBSaver(client, db_name=mongo_store.name)
        check_opened_after(fault, saver, stored)


def test_it_may_be_unknown_whether_a_store_is_the_same(mongo_store: MongoStore) -> None:
    def names_store(command: Command) -> bool:
        return "collectionUUID" in command

    fault = Fault(mongo_store, "aggregate", {"errorCode": FAILED}, names_store)
    with pymongo.MongoClient[Any](
        mongo_store.uri, event_listeners=[fault], appname=mongo_store.name
    ) as client:
        saver = MongoDBSaver(client, db_name=mongo_store.name)
        stored = put(saver, {"n": 1})
        check_opened_after(fault, saver, stored)


def test_a_store_that_is_dropped_while_it_is_opened_is_made_anew(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as writer:
        put(writer, {"n": 1}, thread_id="gone")
    dropped: list[bool] = []

    def drop(event: CommandStartedEvent) -> None:
        if event.command_name == "listCollections" and not dropped:
            dropped.append(True)
            mongo_store.collection.drop()

    with mongo_store.saver(event_listeners=[Started(drop)]) as saver:
        with suppress(StorageUnavailable):
            put(saver, {"n": 1})
        put(saver, {"n": 2}, thread_id="second")
        assert dropped
        assert "gone" not in counts_of(saver)
        assert counts_of(saver)["second"] == 1
        assert mongo_store.problems(saver) == []
    with mongo_store.saver() as reader:
        assert counts_of(reader)["second"] == 1
