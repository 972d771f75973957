"""While one saver alone puts to a thread, a put is one insert, and others see no difference."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo.database import Database
from pymongo.errors import AutoReconnect, BulkWriteError

from checking import checkpoint, config, id_of, put, value_of
from commands import Commands
from forkpoint import StaleLease, ThreadCatalog, ThreadDeleted
from forkpoint.mongodb import log as mongodb_log
from forkpoint.mongodb import put_batch as mongodb_put
from forkpoint.mongodb import tail as mongodb_tail
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.mongodb.statements import Outcome
from forkpoint.saver import parts_of
from forkpoint.storage.rows import ThreadRef
from graphs import SHAPES
from stores import MongoStore


@pytest.fixture
def store(mongo_store: MongoStore) -> MongoStore:
    return mongo_store


@pytest.fixture
def saver(store: MongoStore, commands: Commands) -> Iterator[MongoDBSaver]:
    with store.saver(event_listeners=[commands]) as saver:
        yield saver  # type: ignore[misc]


@pytest.fixture
def other(store: MongoStore) -> Iterator[MongoDBSaver]:
    """A saver that is not told what the first one does."""
    with store.saver() as saver:
        yield saver  # type: ignore[misc]


def puts(saver: MongoDBSaver, numbers: range, parent: Any = None) -> Any:
    for n in numbers:
        parent = put(saver, {"n": n}, parent=parent)
    return parent


def numbers(saver: MongoDBSaver) -> list[int]:
    """Return what was put, oldest first."""
    return [value_of(item)["n"] for item in saver.history("thread")]


def count(saver: MongoDBSaver) -> int:
    thread = ThreadCatalog(saver).get("thread")
    assert thread is not None
    return thread.checkpoint_count


def session_of(saver: MongoDBSaver) -> Any:
    """Return what a saver knows of threads and their logs."""
    return parts_of(saver).context.storage._open()  # type: ignore[attr-defined]


# By one saver


def test_a_put_is_one_insert_after_the_first(saver: MongoDBSaver, commands: Commands) -> None:
    saver.setup()
    commands.clear()
    head = puts(saver, range(3))
    saver.put_writes(head, [("c", 1), ("d", 2)], "task")
    assert commands.names == ["aggregate", "update", "insert", "insert", "insert"]
    commands.clear()
    saver.put_writes(head, [("c", "long " * 1000)], "another task")
    put(saver, {"n": 3, "text": "as long " * 1000}, parent=head)
    assert commands.names == ["update", "update"]  # for the chunks
    assert not commands.statements("$inc", "$max")  # the record is not among them


def in_run(config: Any) -> Any:
    """Return a config of the run that looked for the thread first, as a graph's does."""
    return {"configurable": {**config["configurable"], "__pregel_runtime": RUNTIME}}


RUNTIME = SimpleNamespace(control=object())


def test_a_put_of_a_run_is_one_insert_with_its_chunks(
    saver: MongoDBSaver, commands: Commands
) -> None:
    head = in_run(puts(saver, range(3)))
    saver.get_tuple(in_run(config()))
    commands.clear()
    saver.put_writes(head, [("c", "long " * 1000)], "task")
    put(saver, {"n": 3, "text": "as long " * 1000}, parent=head)
    assert commands.names == ["insert", "insert"]
    assert commands.chunks() == 2


@pytest.mark.parametrize("stored", ["first", "second", "both"])
def test_a_chunk_that_is_there_already_gets_its_epoch_and_the_log_goes_on(
    stored: str, saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore, commands: Commands
) -> None:
    """Another thread of the family has it: it may be about to be collected."""
    head = puts(saver, range(1))
    texts = {name: f"{name} text " * 200 for name in ("first", "second")}
    fork = other.fork("thread", new_thread_id="fork")
    known = texts if stored == "both" else {stored: texts[stored]}
    put(other, known, thread_id="fork", parent=fork)
    saver.get_tuple(in_run(config()))
    head = puts(saver, range(1, 2), head)
    commands.clear()
    head = put(saver, texts, parent=in_run(head))
    put(saver, {**texts, "third": "a third text " * 200}, parent=in_run(head))
    assert commands.names == ["insert", "update", "insert"]
    record = store.collection.find_one({"kind": "thread", "thread_id": "thread"})
    assert record is not None
    chunks = list(store.collection.find({"content": {"$exists": True}, "kind": None}))
    assert [chunk["epochs"][-1] for chunk in chunks] == [record["epoch"]] * 3
    assert store.problems(saver) == []


def test_nothing_of_a_put_with_chunks_is_stored_once_the_log_has_ended(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore, commands: Commands
) -> None:
    head = in_run(puts(saver, range(2)))
    saver.get_tuple(in_run(config()))
    other.delete_thread("thread")
    commands.clear()
    with pytest.raises(ThreadDeleted):
        put(saver, {"text": "long " * 1000, "other": "other " * 1000}, parent=head)
    assert commands.chunks() > 0
    assert store.count("chunks") == 0
    assert store.problems(other) == []


@pytest.mark.parametrize("first", ["a put", "a run"])
def test_the_next_run_begins_a_log(
    first: str, saver: MongoDBSaver, other: MongoDBSaver, commands: Commands
) -> None:
    """Of a thread that it does not know, and that another one has a log of."""
    head = puts(other, range(3))
    saver.setup()
    if first == "a run":
        assert saver.get_tuple(config()) is not None
    commands.clear()
    puts(saver, range(3, 6), head)
    looked = [] if first == "a run" else ["aggregate"]
    assert commands.names == [*looked, "update", "insert", "insert"]
    assert numbers(other) == list(range(6))
    assert count(other) == 6


def test_each_run_after_a_search_begins_a_log(
    saver: MongoDBSaver, other: MongoDBSaver, commands: Commands
) -> None:
    head = puts(saver, range(2))
    for n in range(2, 11, 3):
        assert ThreadCatalog(other).count() == 1
        commands.clear()
        assert saver.get_tuple(config()) is not None
        head = puts(saver, range(n, n + 3), head)
        assert commands.names == ["find", "update", "insert", "insert"]
    assert count(other) == 11


def test_what_the_catalog_shows_is_what_was_put(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore
) -> None:
    catalog = ThreadCatalog(other)
    head = None
    before: Any = None
    for n in range(4):
        head = puts(saver, range(n, n + 1), head)
        shown = catalog.get("thread")
        assert shown is not None
        assert (shown.checkpoint_count, shown.status) == (n + 1, "idle")
        assert before is None or shown.updated_at > before.updated_at
        before = shown
    (node,) = saver.lineage("thread")
    assert node.checkpoint_count == 4
    assert saver.family("thread").root.entry.checkpoint_count == 4
    saver.put_writes(head, [("__interrupt__", 1)], "task")
    assert catalog.get("thread").status == "interrupted"  # type: ignore[union-attr]
    assert store.thread("thread").status == "interrupted"
    (record,) = store.collection.find({"kind": "thread"})
    assert (record["checkpoint_count"], record["status"]) == (0, "idle")  # it is behind

    (thread,) = catalog.search().items
    assert (thread.checkpoint_count, thread.status) == (4, "interrupted")
    (record,) = store.collection.find({"kind": "thread"})
    assert (record["checkpoint_count"], record["status"]) == (4, "interrupted")
    assert record["log"] is None
    assert store.problems(saver) == []


def test_what_a_task_writes_again_replaces_what_it_wrote(
    saver: MongoDBSaver, commands: Commands, store: MongoStore
) -> None:
    """In one round trip: questions and answers are stored again as a run goes on."""
    head = puts(saver, range(2))
    for n in range(3):
        commands.clear()
        saver.put_writes(head, [("__interrupt__", n)], "task")
        assert commands.names == ["update"]
    assert saver.get_tuple(head).pending_writes == [("task", "__interrupt__", 2)]  # type: ignore[union-attr]
    puts(saver, range(2, 4), head)
    assert count(saver) == 4
    assert store.problems(saver) == []


def test_a_long_question_that_is_asked_again_is_one_round_trip_and_no_new_epoch(
    saver: MongoDBSaver, commands: Commands, store: MongoStore
) -> None:
    """Of many tasks that ask again at once, each new epoch would have all others begin again."""
    head = puts(saver, range(2))
    question = [("__interrupt__", "a question that is long enough for a chunk " * 100)]
    saver.put_writes(head, question, "task")
    (epoch,) = store.collection.distinct("epoch")
    for _ in range(2):
        commands.clear()
        saver.put_writes(head, question, "task")
        assert commands.names == ["update"]
    assert store.collection.distinct("epoch") == [epoch]
    assert store.problems(saver) == []


@pytest.mark.slow
async def test_many_tasks_that_ask_another_long_question_at_once_are_all_stored(
    store: MongoStore,
) -> None:
    """Each gives the thread a new epoch, and has all the others begin again."""
    saver = store.saver()
    head = put(saver, {"n": 1})
    for asked in ("a question ", "another one "):
        questions = [[("__interrupt__", f"{number} {asked}" * 300)] for number in range(30)]
        puts = (
            saver.aput_writes(head, question, f"task {number}")
            for number, question in enumerate(questions)
        )
        await asyncio.gather(*puts)
        stored = await saver.aget_tuple(head)
        assert stored is not None
        texts = sorted(value for _, _, value in stored.pending_writes or ())
        assert texts == sorted(value for ((_, value),) in questions)


def test_what_is_put_twice_is_there_once(saver: MongoDBSaver, store: MongoStore) -> None:
    head = puts(saver, range(2))
    made = checkpoint({"n": 2})
    for value in (2, 3):
        saver.put(head, {**made, "channel_values": {"n": value}}, {}, {"n": 1})
        saver.put_writes(head, [("c", value), ("d", value)], "task")
    assert numbers(saver) == [0, 1, 3]
    assert count(saver) == 3
    item = saver.get_tuple(head)
    assert item is not None
    assert item.pending_writes == [("task", "c", 2), ("task", "d", 2)]  # the first ones stay
    assert store.problems(saver) == []


@pytest.mark.parametrize("first", ["the checkpoint", "the writes"])
async def test_a_new_thread_and_its_first_writes_are_stored_without_looking_for_it_again(
    first: str, saver: MongoDBSaver, commands: Commands, store: MongoStore
) -> None:
    """As LangGraph does that: it does not wait for the one before it begins with the other."""
    saver.setup()
    assert await saver.aget_tuple(config()) is None
    commands.clear()
    made = checkpoint({"n": 0})
    calls = [
        saver.aput(config(), made, {}, {"n": 1}),
        *(
            saver.aput_writes(config(checkpoint_id=made["id"]), [("c", n)], f"task {n}")
            for n in range(3)
        ),
    ]
    await asyncio.gather(*(calls if first == "the checkpoint" else reversed(calls)))
    assert set(commands.names) <= {"update", "insert"}
    item = await saver.aget_tuple(config())
    assert item is not None
    assert sorted(item.pending_writes or []) == [(f"task {n}", "c", n) for n in range(3)]
    await asyncio.to_thread(puts, saver, range(1, 3), item.config)
    assert count(saver) == 3
    assert store.problems(saver) == []


def test_a_thread_whose_id_was_used_before_has_a_log_too(
    saver: MongoDBSaver, other: MongoDBSaver, commands: Commands, store: MongoStore
) -> None:
    old = puts(saver, range(3))
    saver.delete_thread("thread")
    assert saver.get_tuple(config()) is None
    head = puts(saver, range(3, 5))
    commands.clear()
    head = puts(saver, range(5, 7), head)
    assert commands.names == ["insert", "insert"]

    commands.clear()
    assert other.get_tuple(config()) is not None
    head = puts(other, range(7, 9), head)
    for writer in (saver, other):  # what they had of the thread before is late
        with pytest.raises(ThreadDeleted):
            put(writer, {"n": 99}, parent=old)
        with pytest.raises(ThreadDeleted):
            writer.put_writes(old, [("c", 1)], "task")
        head = puts(writer, range(9, 11), head)
    assert numbers(saver) == [*range(3, 11), 9, 10]
    assert count(saver) == 10
    assert store.problems(saver) == []


# With others


def test_savers_that_take_turns_count_right(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore
) -> None:
    head = None
    for n in range(12):
        writer = saver if n % 3 else other
        if n % 2:
            writer.get_tuple(config())
        head = puts(writer, range(2 * n, 2 * n + 2), head)
    assert numbers(saver) == list(range(24))
    assert count(saver) == 24
    assert store.problems(saver) == []


def test_savers_that_put_at_the_same_time_count_right(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore
) -> None:
    head = puts(saver, range(1))

    def work(writer: MongoDBSaver) -> None:
        for n in range(40):
            if n % 5 == 0:
                writer.get_tuple(config())
            put(writer, {"n": n}, parent=head)

    workers = [threading.Thread(target=work, args=[writer]) for writer in (saver, other) * 2]
    for worker in workers:
        worker.start()
    catalog = ThreadCatalog(other)
    while any(worker.is_alive() for worker in workers):
        catalog.count()  # ends what logs there are
    assert count(saver) == 161
    assert store.problems(saver) == []


ENDING: dict[str, Callable[[MongoDBSaver], object]] = {
    "a search": lambda saver: ThreadCatalog(saver).search(),
    "a lease": lambda saver: ThreadCatalog(saver).run("thread").__enter__(),
    "a rollback": lambda saver: saver.rollback("thread"),
    "a trim": lambda saver: saver.trim("thread", 1),
    "a deletion": lambda saver: saver.delete_thread("thread"),
    "a new thread of this id": lambda saver: (
        saver.delete_thread("thread"),
        puts(saver, range(9)),
    ),
    "a copy": lambda saver: saver.copy_thread("thread", "copy"),
    "another saver": lambda saver: puts(saver, range(5, 7), config()),
}


@pytest.mark.by_halves
@pytest.mark.parametrize("ending", ENDING)
@pytest.mark.parametrize("unseen", [0, 3])
def test_who_does_not_know_that_its_log_has_ended_finds_out(
    unseen: int, ending: str, saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore
) -> None:
    """Also if rows that it does not know of were there, and are gone."""
    head = puts(saver, range(4))
    if unseen:
        puts(other, range(20, 20 + unseen), head)
    ENDING[ending](other)
    is_gone = ending in ("a deletion", "a new thread of this id")
    before = len(list(saver.list(config())))
    made = {**checkpoint({"n": 99}), "id": "ffffffff-0000-6000-8000-000000000000"}
    if is_gone:
        with pytest.raises(ThreadDeleted):
            saver.put(head, made, {}, {"n": 1})
    else:
        saver.put(head, made, {}, {"n": 1})
    assert len(list(other.list(config()))) == before + (not is_gone)
    assert store.problems(saver) == []


def test_a_slot_that_is_free_again_is_not_taken(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore
) -> None:
    """An end outlasts the rows before it, and the thread."""
    head = puts(saver, range(3))
    session = session_of(saver)
    assert session.logs.tail(session.threads.find("thread")).slot == 6  # with receipts
    other.delete_thread("thread")
    assert [entry["slot"] for entry in store.collection.find({"slot": {"$gt": 0}})] == [7]
    with pytest.raises(ThreadDeleted):
        put(saver, {"n": 3}, parent=head)
    assert store.rows("checkpoints") == []


def test_who_knows_of_a_part_of_a_log_only_finds_out(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore
) -> None:
    head = puts(saver, range(4))
    item = other.get_tuple(config())
    assert item is not None
    session = session_of(other)
    ref: ThreadRef = session.threads.find("thread")
    session.logs.remember_tail(ref, session.logs.tail(ref)._replace(slot=2))
    puts(other, range(4, 6), head)
    puts(saver, range(6, 8), head)
    assert count(saver) == 8
    assert store.problems(saver) == []


def test_a_log_that_is_written_to_again_and_again_comes_to_its_end(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its saver puts between when the server looks for the end and when it takes the next slot."""
    head = puts(saver, range(2))
    merge = MongoCommands.merge
    in_between = iter(range(2, 7))

    def in_two_steps(commands: MongoCommands, pipeline: Any) -> bool:
        if pipeline[-1]["$merge"]["whenNotMatched"] != "insert":
            return merge(commands, pipeline)
        ends = list(store.collection.aggregate(pipeline[:-1]))
        for n in in_between:
            puts(saver, range(n, n + 1), head)
            break
        try:
            store.collection.insert_many(ends)
        except BulkWriteError:
            return False
        return True

    monkeypatch.setattr(MongoCommands, "merge", in_two_steps)
    other.trim("thread", 6)
    assert list(in_between) == []
    assert numbers(saver) == [1, 2, 3, 4, 5, 6]
    assert count(saver) == 6
    assert store.problems(saver) == []


def test_a_run_whose_lease_was_taken_over_stores_nothing_after_a_put_without_a_lease(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore
) -> None:
    """That put begins a log, into which goes what follows without a look at the record."""
    head = puts(saver, range(1))
    with ThreadCatalog(saver).run("thread") as run:
        saver.get_tuple(config())
        with ThreadCatalog(other).run("thread", if_busy="cancel"):
            head = puts(saver, range(1, 2), head)
            under_lease = {**run.config["configurable"], **head["configurable"]}
            with pytest.raises(StaleLease):
                puts(saver, range(2, 3), {"configurable": under_lease})
    assert numbers(other) == [0, 1]
    assert count(other) == 2
    assert store.problems(other) == []


# In time


def test_a_log_is_left_for_another_one_after_a_while(
    saver: MongoDBSaver, commands: Commands, store: MongoStore
) -> None:
    head = puts(saver, range(2))
    session = session_of(saver)
    ref = session.threads.find("thread")
    tail = session.logs.tail(ref)
    session.logs.remember_tail(
        ref, tail._replace(began=tail.began - 1_000_000 * mongodb_tail.LOG_SECONDS)
    )
    commands.clear()
    puts(saver, range(2, 4), head)
    assert commands.names == ["update", "insert"]
    (end,) = store.collection.find({"kind": "end"})
    assert (end["_id"], end["log"], end["slot"]) == (tail.log, tail.log, tail.slot + 1)
    assert count(saver) == 4
    assert store.problems(saver) == []


def test_a_saver_of_a_machine_that_slept_looks_at_the_thread_again(
    saver: MongoDBSaver, other: MongoDBSaver, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have ended its log meanwhile, and the end may have expired."""
    head = puts(saver, range(2))
    other.delete_thread("thread")
    assert store.collection.delete_many({"kind": "end"}).deleted_count == 1
    time_of_clock = time.clock_gettime_ns
    slept = int(1e9) * mongodb_tail.END_SECONDS

    def after_sleep(clock: int) -> int:  # `time.monotonic` does not tell of it
        return time_of_clock(clock) + slept

    monkeypatch.setattr(time, "clock_gettime_ns", after_sleep)
    with pytest.raises(ThreadDeleted):
        put(saver, {"n": 2}, parent=head)
    assert store.count("checkpoints") == 0
    assert store.problems(saver) == []


def test_an_end_lasts_longer_than_anybody_goes_on_with_its_log(
    saver: MongoDBSaver, store: MongoStore
) -> None:
    puts(saver, range(2))
    ThreadCatalog(saver).count()
    (end,) = store.collection.find({"kind": "end"})
    left = end["expires"].replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)
    assert timedelta(seconds=3 * mongodb_tail.LOG_SECONDS) < left
    index = store.collection.index_information()["forkpoint_expires"]
    assert index["expireAfterSeconds"] == 0


def test_an_answer_that_comes_too_late_is_not_believed(
    saver: MongoDBSaver, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the end of the log may have expired."""
    head = puts(saver, range(2))
    monkeypatch.setattr(mongodb_put, "LOG_SECONDS", 30)
    session = session_of(saver)
    ref = session.threads.find("thread")
    insert = MongoCommands.insert_once

    def late(commands: MongoCommands, documents: Any) -> Outcome:
        outcome = insert(commands, documents)
        monkeypatch.setattr(mongodb_put, "LOG_SECONDS", 0)
        return outcome

    monkeypatch.setattr(MongoCommands, "insert_once", late)
    again: list[ThreadRef] = []
    end_log = mongodb_log.Logs.end_log

    def note(logs: Any, thread: ThreadRef) -> None:
        again.append(thread)
        monkeypatch.setattr(mongodb_put, "LOG_SECONDS", 30)
        end_log(logs, thread)

    monkeypatch.setattr(mongodb_log.Logs, "end_log", note)
    stored = put(saver, {"n": 2}, parent=head)
    assert set(again) == {ref}
    assert [id_of(item) for item in saver.list(config(), limit=1)] == [id_of(stored)]
    assert count(saver) == 3
    assert store.problems(saver) == []


@pytest.mark.parametrize("is_executed", [True, False])
@pytest.mark.parametrize("error", [AutoReconnect, KeyboardInterrupt])
def test_a_put_whose_answer_is_lost_is_not_sent_again_before_it_was_looked_for(
    error: type[BaseException],
    is_executed: bool,
    saver: MongoDBSaver,
    store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = puts(saver, range(2))
    command = Database.command
    sent = []

    def lose(database: Any, document: Any, *args: Any, **options: Any) -> Any:
        if "insert" not in document:
            return command(database, document, *args, **options)
        sent.append(document)
        if is_executed:
            command(database, document, *args, **options)
        raise error

    monkeypatch.setattr(Database, "command", lose)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            put(saver, {"n": 2}, parent=head)
    else:
        put(saver, {"n": 2}, parent=head)
    assert len(sent) == 1
    monkeypatch.undo()
    is_there = is_executed or error is AutoReconnect
    assert numbers(saver) == ([0, 1, 2] if is_there else [0, 1])
    puts(saver, range(3, 5), head)
    assert count(saver) == 4 + is_there
    assert store.problems(saver) == []


def test_a_hidden_checkpoint_that_is_put_again_is_seen_and_counted(
    saver: MongoDBSaver, store: MongoStore
) -> None:
    """One from which a `DeltaChannel` is rebuilt, though it was trimmed."""
    graph = SHAPES["deltas"].build(saver)
    for given in SHAPES["deltas"].inputs:
        graph.invoke(given, config())
    before = list(saver.list(config()))
    saver.trim("thread", 1)
    hidden = {row["checkpoint_id"] for row in store.collection.find({"hidden": True})}
    again = next(item for item in before if item.checkpoint["id"] in hidden)
    versions = again.checkpoint["channel_versions"]
    saver.put(again.parent_config or config(), again.checkpoint, again.metadata, versions)
    found = saver.get_tuple(again.config)
    assert found is not None
    assert value_of(found) == value_of(again)
    assert count(saver) == 2
    assert store.problems(saver) == []


@pytest.mark.slow
def test_many_writes_are_stored_to_a_thread_that_shows_many_values(
    mongo_store: MongoStore,
) -> None:
    """Each of them says what the thread's record would: together more than fits into a command."""
    channels = [f"channel {n}" for n in range(16)]
    values = {name: [f"{name} {n}" for n in range(60)] for name in channels}
    with mongo_store.saver(preview=channels) as saver:
        head = put(saver.for_owner("acme"), values)
        saver.for_owner("acme").put_writes(head, [("c", n) for n in range(650)], "task")
        item = saver.get_tuple(head)
        assert item is not None
        assert len(item.pending_writes or ()) == 650
