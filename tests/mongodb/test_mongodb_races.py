"""What others do just before a command is sent, where there are no transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson.objectid import ObjectId
from pymongo.errors import AutoReconnect
from pymongo.monitoring import CommandStartedEvent

from checking import checkpoint, config, counts_of, put, value_of
from commands import Started
from forkpoint import (
    MongoDBSaver,
    RetentionPolicy,
    SqliteSaver,
    StorageBusy,
    StorageUnavailable,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.statements import Outcome, Statement
from forkpoint.saver import parts_of
from forkpoint.transfer import archive_threads, import_threads, restore_threads
from stores import MongoStore
from transferring import messages, tuples

Sent = Callable[[CommandStartedEvent], bool]


@contextmanager
def interrupted(
    store: MongoStore, is_meant: Sent, act: Callable[[], object], **options: Any
) -> Iterator[tuple[MongoDBSaver, list[bool]]]:
    """Open a saver, and yield it and a list: something is done before a command, if it is empty."""
    acted = [True]

    def before(event: CommandStartedEvent) -> None:
        if not acted and is_meant(event):
            acted.append(True)
            act()

    with store.saver(event_listeners=[Started(before)], **options) as saver:
        yield saver, acted  # type: ignore[misc]


def asks_for_extent(event: CommandStartedEvent) -> bool:
    last = event.command.get("pipeline", [{}])[-1]
    return bool(last.get("$project", {}).keys() == {"checkpoint_count", "removals"})


@pytest.mark.parametrize("by", ["archive_threads", "retention"])
def test_a_thread_that_is_deleted_as_it_is_archived_keeps_no_other_from_it(
    by: str, mongo_store: MongoStore, tmp_path: Path
) -> None:
    path = tmp_path / "archive.jsonl"
    with mongo_store.saver() as other:
        for name in ("a", "b"):
            messages(other, name, 2)
        mongo_store.be_old("updated_at")

        def delete() -> None:
            other.delete_thread("a")

        with interrupted(mongo_store, asks_for_extent, delete) as (saver, acted):
            saver.get_tuple(config("b"))
            acted.clear()
            if by == "archive_threads":
                report = archive_threads(saver, path)
                failed = {name: type(error) for name, error in report.failed.items()}
                assert failed == {"a": ThreadNotFound}
                assert report.threads == 1
            else:
                idle = RetentionPolicy(max_idle=timedelta(seconds=1))
                done = ThreadCatalog(saver).apply_retention(idle, archive=path)
                assert "b" in done.deleted
                assert not done.failed
            assert acted
        assert "a" not in counts_of(other)
        assert mongo_store.problems(other) == []
    with SqliteSaver(tmp_path / "restored.db") as restored:
        assert restore_threads(restored, path).is_complete
        assert len(tuples(restored, "b")) == 2


WORK: dict[str, Callable[[Any], object]] = {
    "delete_thread": lambda saver: saver.delete_thread("thread"),
    "trim": lambda saver: saver.trim("thread", 1),
    "copy_thread": lambda saver: saver.copy_thread("thread", "copy"),
}


def names_lock(event: CommandStartedEvent) -> bool:
    return event.command_name == "update" and "lock.by" in event.command["updates"][0]["q"]


def reads_record(event: CommandStartedEvent) -> bool:
    return event.command_name == "find" and event.command["filter"].keys() == {"_id", "family"}


@pytest.mark.parametrize(
    ("work", "is_meant"), [*((work, names_lock) for work in WORK), ("copy_thread", reads_record)]
)
def test_who_loses_the_lock_of_a_thread_does_nothing_more(
    work: str, is_meant: Sent, mongo_store: MongoStore
) -> None:
    """Another process has taken it for one that has stopped, and is done."""

    def lose() -> None:
        mongo_store.collection.update_one({"lock": {"$ne": None}}, {"$set": {"lock": None}})

    def comes_while_it_is_locked(event: CommandStartedEvent) -> bool:
        return is_meant(event) and mongo_store.collection.count_documents(locked) > 0

    locked = {"lock": {"$ne": None}, "kind": "thread"}
    with interrupted(mongo_store, comes_while_it_is_locked, lose) as (saver, acted):
        messages(saver, "thread", 3)
        expected = tuples(saver)
        acted.clear()
        with pytest.raises(StorageBusy, match="took too long"):
            WORK[work](saver)
        assert tuples(saver) == expected
        assert counts_of(saver) == {"thread": 3}
        WORK[work](saver)
        left = {"delete_thread": {}, "trim": {"thread": 1}, "copy_thread": {"thread": 3, "copy": 3}}
        assert counts_of(saver) == left[work]
        assert mongo_store.problems(saver, after_crash=True) == []


@pytest.mark.parametrize("work", ["delete_thread", "trim"])
def test_who_comes_too_late_to_remove_a_thread_is_done(work: str, mongo_store: MongoStore) -> None:
    def takes_lock(event: CommandStartedEvent) -> bool:
        updates = event.command.get("updates", ())
        return any({"lock": None} in update["q"].get("$or", ()) for update in updates)

    with mongo_store.saver() as other:

        def delete() -> None:
            other.delete_thread("thread")

        with interrupted(mongo_store, takes_lock, delete) as (saver, acted):
            messages(saver, "thread", 3)
            acted.clear()
            WORK[work](saver)
            assert acted
            assert counts_of(saver) == {}
            assert mongo_store.problems(saver) == []


LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)
LOCKED = {"kind": "thread", "lock": {"$ne": None}}


@pytest.mark.parametrize("sent", [1, 2, 3, 4, 5])
def test_what_is_left_is_counted_where_a_lock_ends_within_a_bulk(
    sent: int, mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes its time for many rows: who waits takes the lock after five seconds."""
    bulk = MongoCommands._bulk

    with mongo_store.saver() as other, mongo_store.saver() as saver:
        messages(saver, "thread", 4)
        is_done = []

        def slow(commands: MongoCommands, statements: Sequence[Statement], small: bool) -> Outcome:
            if is_done or len(statements) < 5:
                return bulk(commands, statements, small)
            is_done.append(True)
            first = bulk(commands, statements[:sent], small)
            assert first.hits
            mongo_store.collection.update_many(LOCKED, {"$set": {"lock.until": LONG_AGO}})
            put(other, {"n": 77})
            rest = bulk(commands, statements[sent:], small)
            return rest if rest.failed is None else rest._replace(failed=sent + rest.failed)

        monkeypatch.setattr(MongoCommands, "_bulk", slow)
        with pytest.raises(StorageBusy, match="took too long"):
            saver.rollback("thread")
        assert is_done
        assert value_of(other.get_tuple(config())) == {"n": 77}
        assert mongo_store.problems(other, after_crash=True) == []


@contextmanager
def unanswered(store: MongoStore, code: int, name: str) -> Iterator[Callable[[], object]]:
    """Yield what has the next update of an application be executed, and fail all the same."""
    lost = {"writeConcernError": {"code": code, "errmsg": "no answer"}}
    data = {"failCommands": ["update"], "appName": name, **lost}
    point = {"configureFailPoint": "failCommand"}
    with pymongo.MongoClient(store.uri) as client:
        try:
            yield lambda: client.admin.command({**point, "mode": {"times": 1}, "data": data})
        finally:
            client.admin.command({**point, "mode": "off"})


def test_a_lock_that_was_left_is_taken_over_though_no_answer_came(mongo_store: MongoStore) -> None:
    """What the one before did in part is counted."""
    name = "forkpoint-takes-over"
    options = {"appname": name, "retryWrites": False, "heartbeatFrequencyMS": 500}

    def takes_over(event: CommandStartedEvent) -> bool:
        updates = event.command.get("updates", ())
        return any("$expr" in update["q"] and "lock" in update["q"] for update in updates)

    with (
        unanswered(mongo_store, 91, name) as lose,
        interrupted(mongo_store, takes_over, lose, **options) as (saver, acted),
    ):
        messages(saver, "thread", 3)
        assert ThreadCatalog(saver).count() == 1
        half_done = {"lock": {"by": ObjectId(), "until": LONG_AGO}, "checkpoint_count": 1}
        mongo_store.collection.update_one({"kind": "thread"}, {"$set": half_done})
        acted.clear()
        put(saver, {"n": 9})
        assert acted
        assert mongo_store.problems(saver) == []


MAKING: dict[str, Callable[[Any], object]] = {
    "fork": lambda saver: saver.fork("thread", new_thread_id="new"),
    "copy_thread": lambda saver: saver.copy_thread("thread", "new"),
}


@pytest.mark.parametrize("method", MAKING)
def test_a_thread_that_is_shown_though_no_answer_came_keeps_what_others_put_to_it(
    method: str, mongo_store: MongoStore
) -> None:
    name = "forkpoint-shows"
    sent = ["the source"]

    def before(event: CommandStartedEvent) -> None:
        updates = event.command.get("updates", ())
        if not sent and any("home" in str(update["u"]) for update in updates):  # as a name has it
            lose()
            sent.append("it is shown")
        elif sent == ["it is shown"]:
            sent.append("put")
            put(other, {"n": 77}, thread_id="new")

    with (
        unanswered(mongo_store, 64, name) as lose,
        mongo_store.saver() as other,
        mongo_store.saver(appname=name, event_listeners=[Started(before)]) as saver,
    ):
        messages(saver, "thread", 2)
        other.get_tuple(config("thread"))
        sent.clear()
        with pytest.raises(StorageUnavailable, match="may or may not survive"):
            MAKING[method](saver)
        assert sent == ["it is shown", "put"]
        assert value_of(other.get_tuple(config("new"))) == {"n": 77}
        assert mongo_store.problems(other) == []


def test_a_thread_that_begins_as_late_writes_are_removed_stays(mongo_store: MongoStore) -> None:
    def is_about_to_delete(event: CommandStartedEvent) -> bool:
        groups = [
            stage["$group"] for stage in event.command.get("pipeline", ()) if "$group" in stage
        ]
        return any("newest" in group for group in groups)

    with mongo_store.saver() as other:

        def begin() -> None:
            put(other, {"n": "new"})

        with interrupted(mongo_store, is_about_to_delete, begin) as (saver, acted):
            old = put(saver, {"n": "old"})
            other.delete_thread("thread")
            late = checkpoint({"n": "late"})
            announced = parts_of(saver).context.memory.announced
            announced.add(1, "thread", late["id"])  # a task may be faster than its checkpoint
            saver.put_writes(config(checkpoint_id=late["id"]), [("c", "x" * 9000)], "task")
            announced.remove(1)
            acted.clear()
            with pytest.raises(ThreadDeleted):
                saver.put(old, late, {}, {"n": 1})
            assert acted
        assert value_of(other.get_tuple(config())) == {"n": "new"}
        assert mongo_store.problems(other, after_crash=True) == []


def test_a_sweep_that_loses_the_lock_of_a_thread_looks_at_it_again(mongo_store: MongoStore) -> None:
    def lose() -> None:
        mongo_store.collection.update_one({"lock": {"$ne": None}}, {"$set": {"lock": None}})

    with interrupted(mongo_store, names_lock, lose) as (saver, acted):
        messages(saver, "thread", 3)
        mongo_store.be_old("updated_at")
        acted.clear()
        catalog = ThreadCatalog(saver)
        idle = RetentionPolicy(max_idle=timedelta(seconds=1))
        first = catalog.apply_retention(idle).deleted
        assert acted
        assert first + catalog.apply_retention(idle).deleted == ("thread",)
        assert counts_of(saver) == {}
        assert mongo_store.problems(saver) == []


@pytest.mark.parametrize("moment", ["acquired", "released"])
def test_a_search_that_ends_the_log_of_a_thread_does_not_keep_its_lease(
    moment: str, mongo_store: MongoStore
) -> None:
    """It ends the log just before the one who found it there would."""

    def looks_for_log(event: CommandStartedEvent) -> bool:
        asked = event.command.get("filter", {}), event.command.get("projection")
        return event.command_name == "find" and ("log" in asked[0] or asked[1] == {"log": 1})

    with mongo_store.saver() as other:
        catalog = ThreadCatalog(other)
        with interrupted(mongo_store, looks_for_log, catalog.search) as (saver, acted):
            head = put(saver, {"n": 0})
            if moment == "acquired":
                acted.clear()
            with ThreadCatalog(saver).run("thread", if_busy="raise") as run:
                if moment == "released":
                    under_lease = {**run.config["configurable"], **head["configurable"]}
                    put(saver, {"n": 1}, parent={"configurable": under_lease})
                    acted.clear()
            assert acted
        assert catalog.lease("thread") is None
        assert mongo_store.problems(other) == []


def test_two_that_go_on_with_a_thread_whose_maker_ended_make_one(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as maker:
        put(maker, {"n": 0})
    key = mongo_store.thread("thread").key
    mongo_store.collection.delete_many({"$or": [{"_id": key}, {"thread": key}]})

    def makes_record(event: CommandStartedEvent) -> bool:
        updates = event.command.get("updates", ())
        return any(update["q"].get("_id") == key for update in updates)

    with mongo_store.saver() as other:

        def make() -> None:
            put(other, {"n": 1})

        with interrupted(mongo_store, makes_record, make) as (saver, acted):
            acted.clear()
            put(saver, {"n": 2})
            assert acted
            assert counts_of(saver) == {"thread": 2}
            assert mongo_store.problems(saver) == []


@pytest.mark.parametrize(("change", "line"), [("trim", ["fork", "parent"]), ("delete", ["fork"])])
def test_a_fork_is_restored_though_its_parent_is_changed_meanwhile(
    change: str, line: list[str], mongo_store: MongoStore, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    with mongo_store.saver() as other:
        messages(other, "parent", 3)
        other.fork("parent", new_thread_id="fork")
        expected = tuples(other, "fork")
        archive_threads(other, path, ThreadFilter(ids=["fork"]))
        other.purge("fork")

        def makes_fork(event: CommandStartedEvent) -> bool:
            changes = [update["u"] for update in event.command.get("updates", ())]
            made = [one["$setOnInsert"] for one in changes if "$setOnInsert" in one]
            return any(one.get("thread_id") == "fork" for one in made)

        def act() -> None:
            if change == "trim":
                other.trim("parent", 1)
            else:
                other.delete_thread("parent")

        with interrupted(mongo_store, makes_fork, act) as (saver, acted):
            acted.clear()
            report = restore_threads(saver, path)
            assert acted
            assert not report.failed
            assert tuples(saver, "fork") == expected
            assert [entry.thread_id for entry in saver.lineage("fork")] == line
            assert mongo_store.problems(saver) == []


def test_a_record_that_is_changed_as_its_thread_is_finished_is_as_in_the_source(
    mongo_store: MongoStore, path: Path
) -> None:
    def describes(event: CommandStartedEvent) -> bool:
        return any("checksums" in update["q"] for update in event.command.get("updates", ()))

    with SqliteSaver(path) as source, mongo_store.saver() as other:
        messages(source, "thread", 2)
        ThreadCatalog(source).update("thread", label="L", tags=["a"])
        changed: list[Any] = []

        def change() -> None:
            changed.append(ThreadCatalog(other).update("thread", tags=["b"]))

        with interrupted(mongo_store, describes, change) as (saver, acted):
            saver.setup()
            acted.clear()
            report = import_threads(source, saver, kind="forkpoint", verify=True)
            assert report.is_complete
            assert [thread.tags for thread in changed] == [("b",)]
            assert ThreadCatalog(saver).get("thread") == ThreadCatalog(source).get("thread")
            assert mongo_store.problems(saver) == []


def test_a_thread_that_is_given_away_as_a_checkpoint_is_replaced_is_not_written_to_any_more(
    mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no logs, its epoch changes after the checkpoint."""
    bulk = MongoCommands._bulk
    given: list[Any] = []

    def slow(commands: MongoCommands, statements: Sequence[Statement], small: bool) -> Outcome:
        changes = [each.change if isinstance(each.change, dict) else {} for each in statements]
        last = [change.get("$set", {}).keys() == {"epoch"} for change in changes]
        if given or True not in last:
            return bulk(commands, statements, small)
        first = bulk(commands, statements[: last.index(True)], small)
        if first.failed is not None:
            return first
        given.append(ThreadCatalog(admin).update("thread", owner="other").owner)
        rest = bulk(commands, statements[last.index(True) :], small)
        return Outcome(first.hits + rest.hits, first.made)

    with mongo_store.saver() as admin:
        put(admin, {"n": 0}, thread_id="another")
        mongo_store.collection.drop_index("forkpoint_log")
    with mongo_store.saver() as admin, mongo_store.saver() as saver:
        acme = saver.for_owner("acme")
        head = put(acme, {"n": 1})
        made = {**checkpoint({"n": 2}), "id": head["configurable"]["checkpoint_id"]}
        monkeypatch.setattr(MongoCommands, "_bulk", slow)
        with pytest.raises(ThreadExists):
            acme.put(config(), made, {}, {})
        assert given == ["other"]
        assert counts_of(admin) == {"another": 1, "thread": 1}
        assert mongo_store.problems(admin) == []


def test_a_fork_that_is_made_as_its_parent_is_given_away_forgets_it(
    mongo_store: MongoStore,
) -> None:
    """Also if somebody changes the fork at that moment."""
    acts: list[Callable[[], object]] = []

    def before(event: CommandStartedEvent) -> None:
        fields = event.command.get("updates", [{"q": {}}])[0]["q"].keys()
        is_given = {"checksums", "lock"} <= fields
        if acts and (is_given or fields == {"_id", "family", "checksums"}):
            acts.pop(0)()

    with (
        mongo_store.saver() as saver,
        mongo_store.saver(event_listeners=[Started(before)]) as admin,
    ):
        acme = saver.for_owner("acme")
        put(acme, {"n": 1})
        acts += [
            lambda: acme.fork("thread", new_thread_id="fork"),
            lambda: ThreadCatalog(acme).update("fork", label="a fork"),
        ]
        ThreadCatalog(admin).update("thread", owner="other")
        assert acts == []
        assert [entry.thread_id for entry in acme.lineage("fork")] == ["fork"]
        assert mongo_store.problems(admin) == []


def test_a_thread_that_is_given_away_as_it_is_leased_is_not(mongo_store: MongoStore) -> None:
    def grants(event: CommandStartedEvent) -> bool:
        return event.command_name == "findAndModify"

    def give() -> None:
        ThreadCatalog(admin).update("thread", owner="other")

    with (
        mongo_store.saver() as admin,
        interrupted(mongo_store, grants, give) as (saver, acted),
    ):
        put(saver.for_owner("acme"), {"n": 1})
        acted.clear()
        with pytest.raises(ThreadExists), ThreadCatalog(saver, owner="acme").run("thread"):
            pass
        assert acted
        assert not ThreadCatalog(admin).is_busy("thread")
        with ThreadCatalog(saver, owner="other").run("thread"):
            pass


@pytest.mark.parametrize("method", MAKING)
@pytest.mark.parametrize("left", [1, 2])
def test_of_a_thread_that_is_given_away_no_fork_or_copy_is_shown(
    left: int, method: str, mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if all but the last statements were executed by then."""
    bulk = MongoCommands._bulk
    given: list[Any] = []

    def slow(commands: MongoCommands, statements: Sequence[Statement], small: bool) -> Outcome:
        if given or "building" not in statements[-1].match:
            return bulk(commands, statements, small)
        first = bulk(commands, statements[:-left], small)
        mongo_store.collection.update_many(LOCKED, {"$set": {"lock": None}})
        given.append(ThreadCatalog(admin).update("thread", owner="other"))
        rest = bulk(commands, statements[-left:], small)
        failed = None if rest.failed is None else len(statements) - left + rest.failed
        return Outcome(first.hits + rest.hits, first.made, failed)

    with mongo_store.saver() as admin, mongo_store.saver() as saver:
        acme = saver.for_owner("acme")
        put(acme, {"n": 1})
        monkeypatch.setattr(MongoCommands, "_bulk", slow)
        with pytest.raises(ThreadNotFound):
            MAKING[method](acme)
        assert given
        assert counts_of(admin) == {"thread": 1}
        assert mongo_store.problems(admin, after_crash=True) == []


def test_an_id_that_is_deleted_in_vain_is_known_though_others_name_it_at_that_moment(
    mongo_store: MongoStore,
) -> None:
    sent: list[Any] = []

    def appear(event: CommandStartedEvent) -> None:
        if event.command_name == "update" and "tombstones" in str(event.command):
            sent.append(event)
            if len(sent) == 2:
                mongo_store.collection.update_one({"_id": name}, [{"$set": {"family": "$_id"}}])

    with mongo_store.saver(event_listeners=[Started(appear)]) as saver:
        put(saver, {"n": 1}, thread_id="another")
        name = mongo_store.names()("thread")
        mongo_store.collection.insert_one({"_id": name, "family": "none yet"})
        saver.delete_thread("thread")
        with parts_of(saver).context.storage.reading() as session:
            assert len(session.threads.deletions("thread")) == 1


def test_what_is_removed_is_taken_off_once_though_no_answer_came(
    mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a collection gives all threads of the family another epoch meanwhile."""
    bulk = MongoCommands._bulk
    lost: list[Any] = []

    def lose(commands: MongoCommands, statements: Sequence[Statement], small: bool) -> Outcome:
        outcome = bulk(commands, statements, small)
        if not lost and "removals" in str(statements):
            lost.append(outcome)
            with parts_of(other).context.storage.reading() as session:
                session.collections.begin(mongo_store.thread("thread").family)
            raise AutoReconnect("the connection was lost")
        return outcome

    with mongo_store.saver() as other, mongo_store.saver() as saver:
        messages(saver, "thread", 4)
        monkeypatch.setattr(MongoCommands, "_bulk", lose)
        saver.trim("thread", 1)
        assert lost
        assert mongo_store.thread("thread").checkpoint_count == 1
        assert mongo_store.problems(saver) == []
