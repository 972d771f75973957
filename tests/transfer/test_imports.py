"""What is imported is as it was in the source, and goes on from there."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pymongo
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver as OfficialSaver
from langgraph.types import Command

from checking import config, encrypted_serde, id_of, put, value_of
from forkpoint import (
    InvalidInput,
    SourceError,
    SqliteSaver,
    StorageBusy,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
    UnreadableValue,
)
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import (
    KINDS,
    TransferProgress,
    import_threads,
)
from forkpoint.transfer.foreign import PostgresReader, SqliteReader
from graphs import MORE_SHAPES, SHAPES, THREAD, call
from officials import official
from stores import Store
from transferring import checkpoint_in, outcome, plain, told

ALL_SHAPES = {**SHAPES, **MORE_SHAPES}
OFFICIAL = [kind for kind in KINDS if kind != "forkpoint"]
QUICK = {
    ("interrupts", "langgraph-sqlite"),
    ("stateful subgraphs", "langgraph-sqlite"),
    ("send", "langgraph-mongodb"),
    ("deltas", "langgraph-mongodb"),
    ("deltas", "saver"),
    ("interrupts", "saver"),
}
CASES = [
    pytest.param(name, kind, marks=() if (name, kind) in QUICK else pytest.mark.slow)
    for kind in OFFICIAL
    for name in ALL_SHAPES
]


@pytest.fixture
def second(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(path) as saver:
        yield saver


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.in_turns
async def test_a_graph_goes_on_in_the_store_as_it_would_in_the_source(
    name: str,
    kind: Any,
    saver: ForkpointSaver,
    store: Store,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    shape = ALL_SHAPES[name]
    with official(kind, tmp_path, request.getfixturevalue) as (theirs, source):
        graph = shape.build(theirs)
        for given in shape.inputs[:-1]:
            await call(graph, "sync", given, shape.options)
        states = list(graph.get_state_history(THREAD))

        report = import_threads(source, saver, kind=kind, verify=True)

        assert report.is_complete
        assert (report.threads, report.verified) == (1, len(told(theirs)))
        assert told(saver) == told(theirs)
        ours = shape.build(saver)
        for their, our in zip(states, ours.get_state_history(THREAD), strict=True):
            assert plain(our.values) == plain(their.values)
            assert our.next == their.next
            assert our.config == their.config
            assert plain(our.interrupts) == plain(their.interrupts)
        thread = ThreadCatalog(saver).get("thread")
        assert thread is not None
        stored = next(theirs.list(THREAD)).metadata  # before 0.5, MongoDB's had no scalars of runs
        assert thread.metadata == {key: stored[key] for key in ("user_id",) if key in stored}
        assert thread.checkpoint_count == report.checkpoints
        assert bool(thread.interrupts) == bool(states and states[0].interrupts)
        if states:
            newest = datetime.fromisoformat(states[0].created_at)
            assert abs(thread.updated_at - newest) < timedelta(minutes=1)
        again = import_threads(source, saver, kind=kind, verify=True)
        assert (again.threads, again.unchanged, again.checkpoints) == (0, 1, 0)
        assert not again.differences
        if name != "failing":  # whose node counts its attempts
            last = shape.inputs[-1], shape.options
            outputs = [await outcome(each, *last) for each in (graph, ours)]
            assert outputs[0] == outputs[1]
            assert plain(ours.get_state(THREAD).values) == plain(graph.get_state(THREAD).values)
    assert store.problems(saver) == []


# What is in the tables


def run(saver: Any, *thread_ids: str, shape: str = "loop", user: str = "u1") -> None:
    graph = SHAPES[shape].build(saver)
    for thread_id in thread_ids:
        named: Any = {"configurable": {"thread_id": thread_id, "user_id": user}}
        graph.invoke(SHAPES[shape].inputs[0], named)


def test_paths_and_numbers_of_writes_come_along(second: SqliteSaver, tmp_path: Path) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        made = checkpoint_in(theirs)
        theirs.put_writes(made, [("a", 1), ("__interrupt__", "?"), ("b", 2)], "second", "~path, 1")
        theirs.put_writes(made, [("c", 3)], "first", "~path, 2")
        assert import_threads(source, second, kind="langgraph-sqlite").writes == 4
    with parts_of(second).context.storage.reading() as session:
        thread = session.threads.find("thread")
        assert thread is not None
        rows = session.checkpoints.writes(thread, [("", id_of(made))])
    stored = {(row.task_id, row.idx, row.task_path, row.channel) for row in rows if row.channel}
    assert stored == {
        ("second", 0, "~path, 1", "a"),
        ("second", -3, "~path, 1", "__interrupt__"),
        ("second", 2, "~path, 1", "b"),
        ("first", 0, "~path, 2", "c"),
    }
    order = [task for task, _, _ in next(iter(second.list(config()))).pending_writes or ()]
    assert order == ["second"] * 3 + ["first"]


def test_a_database_of_before_task_paths_is_read(second: SqliteSaver, tmp_path: Path) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        theirs.put_writes(checkpoint_in(theirs), [("a", 1)], "task", "~path")
        theirs.conn.execute("ALTER TABLE writes DROP COLUMN task_path")
        theirs.conn.commit()
        assert import_threads(source, second, kind="langgraph-sqlite").is_complete
    ((write,),) = (found.pending_writes for found in second.list(config()))
    assert write == ("task", "a", 1)


@pytest.mark.parametrize("is_open", [False, True])
def test_nothing_is_written_to_a_database(
    is_open: bool, second: SqliteSaver, tmp_path: Path
) -> None:
    directory = tmp_path / "source"
    directory.mkdir()
    with official("langgraph-sqlite", directory, str) as (theirs, source):
        run(theirs, "thread")
        if not is_open:
            theirs.conn.close()
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert len(before) == (3 if is_open else 1)
        assert import_threads(source, second, kind="langgraph-sqlite", verify=True).threads == 1
        after = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert after.keys() == before.keys()
        for name in before.keys() - {"official.db-shm"}:  # which says who reads
            assert after[name] == before[name]
        if is_open:
            run(theirs, "later")
            assert import_threads(source, second, kind="langgraph-sqlite").threads == 1


def test_what_somebody_writes_meanwhile_is_read_with_care(tmp_path: Path) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        run(theirs, "a")
        theirs.conn.close()
        reader = SqliteReader(source, JsonPlusSerializer())
        assert list(reader.thread_ids()) == ["a"]
        with OfficialSaver.from_conn_string(source) as writing:
            run(writing, "b")
            assert list(reader.thread_ids()) == ["a", "b"]
            run(writing, "c")
            assert list(reader.thread_ids()) == ["a", "b", "c"]
        reader.close()


@pytest.mark.slow
def test_nothing_is_written_to_a_server(
    second: SqliteSaver, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with official("langgraph-mongodb", tmp_path, request.getfixturevalue) as (theirs, source):
        run(theirs, "thread")
        with pymongo.MongoClient(source) as client:
            database = client.get_default_database()

            def content() -> Any:
                return {
                    name: (list(database[name].find()), database[name].index_information())
                    for name in database.list_collection_names()
                }

            before = content()
            assert import_threads(source, second, kind="langgraph-mongodb").threads == 1
            assert content() == before
    with official("langgraph-postgres", tmp_path, request.getfixturevalue) as (theirs, source):
        run(theirs, "of postgres")
        assert import_threads(source, second, kind="langgraph-postgres").threads == 1
        reader = PostgresReader(source, JsonPlusSerializer())
        with pytest.raises(SourceError, match="read-only"):
            reader._run("DELETE FROM checkpoints")
        reader.close()


# Which threads, and again


@pytest.mark.parametrize("kind", ["langgraph-sqlite", "saver"])
def test_some_threads_are_imported(kind: Any, second: SqliteSaver, tmp_path: Path) -> None:
    with official(kind, tmp_path, str) as (theirs, source):
        run(theirs, "a", "b", "c")
        named = import_threads(source, second, kind=kind, threads=["a", "nobody"])
        assert (named.threads, list(named.failed), named.is_complete) == (1, ["nobody"], False)
        assert isinstance(named.failed["nobody"], ThreadNotFound)
        chosen = import_threads(source, second, kind=kind, threads=lambda name: name != "c")
        assert (chosen.threads, chosen.unchanged) == (1, 1)
        now = datetime.now(timezone.utc)
        assert import_threads(source, second, kind=kind, since=now) == type(chosen)()
        hour = now - timedelta(hours=1)
        assert import_threads(source, second, kind=kind, since=hour).threads == 1
    assert ThreadCatalog(second).count() == 3


@pytest.mark.in_turns
def test_an_import_that_is_repeated_brings_what_is_new(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    shape = SHAPES["interrupts"]
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        graph = shape.build(theirs)
        first = None
        for given in shape.inputs:
            graph.invoke(given, THREAD)
            report = import_threads(source, saver, kind="langgraph-sqlite", verify=True)
            assert report.is_complete
            assert report.threads == 1
            assert told(saver) == told(theirs)
            created = ThreadCatalog(saver).get("thread").created_at  # type: ignore[union-attr]
            first = first or created
            assert created == first
        ThreadCatalog(saver).update("thread", label="here")
        saver.trim("thread", 1)
        report = import_threads(source, saver, kind="langgraph-sqlite")
        assert (report.threads, report.unchanged) == (0, 1)  # what was removed stays removed
        thread = ThreadCatalog(saver).get("thread")
        assert thread is not None
        assert thread.label == "here"
    assert store.problems(saver) == []


@pytest.mark.parametrize("kind", ["langgraph-sqlite", "langgraph-mongodb"])
@pytest.mark.in_turns
def test_what_was_done_at_an_old_checkpoint_since_is_imported(
    kind: Any,
    saver: ForkpointSaver,
    store: Store,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    shape = MORE_SHAPES["deltas with questions"]
    with official(kind, tmp_path, request.getfixturevalue) as (theirs, source):
        graph = shape.build(theirs)
        graph.invoke(shape.inputs[0], THREAD)
        asked = graph.get_state(THREAD).config
        graph.update_state(THREAD, {"log": ["updated"]}, as_node="after")
        assert import_threads(source, saver, kind=kind, verify=True).is_complete
        for answer in ("one", "two"):
            graph.invoke(Command(resume=answer), asked)
        report = import_threads(source, saver, kind=kind, verify=True)
        assert report.is_complete
        assert told(saver) == told(theirs)
        states = [shape.build(each).get_state(THREAD).values for each in (saver, theirs)]
        assert states[0] == states[1]
        assert "one" in states[0]["log"]
    assert store.problems(saver) == []


@pytest.mark.in_turns
def test_what_somebody_removes_meanwhile_is_imported_again(
    saver: ForkpointSaver, store: Store
) -> None:
    theirs = InMemorySaver()
    run(theirs, "thread", shape="chat")
    parent: Any = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
    for number in range(1, 8):
        made: Any = {**empty_checkpoint(), "id": str(uuid6())}
        texts = [f"text {n} " * 300 for n in range(number)]
        changing = {"texts": texts, "turns": [f"{number % 2}" * 3000]}
        made["channel_values"] = {**changing, "fixed": ["fixed " * 500]}
        made["channel_versions"] = {"fixed": 1, **dict.fromkeys(changing, number)}
        versions = dict.fromkeys(changing, number) if number > 1 else made["channel_versions"]
        parent = theirs.put(parent, made, {"source": "loop", "step": number}, versions)

    def interfering(action: Any) -> Any:
        actions = iter([action])

        def act(progress: TransferProgress) -> None:
            if progress.checkpoints == 6:
                next(actions, lambda: None)()

        return act

    trim = interfering(lambda: saver.trim("thread", 1))
    first = import_threads(theirs, saver, kind="saver", on_progress=trim)
    assert store.problems(saver) == []
    assert isinstance(first.failed["thread"], StorageBusy)  # what was removed was needed
    assert import_threads(theirs, saver, kind="saver", verify=True).is_complete
    assert told(saver) == told(theirs)
    trim_less = interfering(lambda: saver.trim("thread", 2))
    saver.delete_thread("thread")
    report = import_threads(theirs, saver, kind="saver", on_progress=trim_less)
    assert report.is_complete  # what was removed was not needed
    assert told(saver) == told(theirs)[-len(told(saver)) :]
    delete = interfering(lambda: saver.delete_thread("thread"))
    saver.delete_thread("thread")
    report = import_threads(theirs, saver, kind="saver", on_progress=delete)
    assert isinstance(report.failed["thread"], ThreadDeleted)
    rolled_back = interfering(lambda: saver.rollback("thread", 3))
    import_threads(theirs, saver, kind="saver", on_progress=rolled_back)
    assert store.problems(saver) == []
    saver.delete_thread("thread")
    assert import_threads(theirs, saver, kind="saver", verify=True).is_complete
    assert told(saver) == told(theirs)
    assert store.problems(saver) == []


def test_a_thread_of_another_origin_stays(second: SqliteSaver, tmp_path: Path) -> None:
    put(second, {"n": 1})
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        run(theirs, "thread", "other")
        report = import_threads(source, second, kind="langgraph-sqlite", verify=True)
    assert isinstance(report.failed["thread"], ThreadExists)
    assert report.threads == 1
    assert value_of(second.get_tuple(config())) == {"n": 1}
    assert len(list(second.list(config()))) == 1


def test_what_differs_is_named(second: SqliteSaver, tmp_path: Path) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        made = checkpoint_in(theirs, n=1, m=[1] * 1000)
        theirs.put_writes(made, [("a", 1)], "task")
        last = checkpoint_in(theirs, n=1)
        assert import_threads(source, second, kind="langgraph-sqlite").is_complete
        changed = {**theirs.get(made), "channel_values": {"n": 2, "m": [1] * 999}}
        theirs.put(config(), changed, {"source": "loop"}, {})
        theirs.put_writes(made, [("b", 1)], "later")
        theirs.conn.execute("DELETE FROM checkpoints WHERE checkpoint_id = ?", [id_of(last)])
        theirs.conn.commit()
        report = import_threads(
            source, second, kind="langgraph-sqlite", verify=True, threads=["thread"]
        )
        assert isinstance(report.failed["thread"], ThreadExists)  # it has what the source has not
        second.rollback("thread")
        report = import_threads(source, second, kind="langgraph-sqlite", verify=True)
    assert [difference.what for difference in report.differences] == [
        "metadata",
        "channel 'm'",
        "channel 'n'",
    ]
    assert {difference.checkpoint_id for difference in report.differences} == {id_of(made)}
    assert not report.is_complete


def test_what_cannot_be_read_or_stored_keeps_no_other_thread(
    second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "official.db"
    pickling = JsonPlusSerializer(pickle_fallback=True)
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        theirs.serde = pickling
        checkpoint_in(theirs, "pickled", n=threading.Event)
        checkpoint_in(theirs, "unstorable", n=1)
        checkpoint_in(theirs, "good", n=1)
        report = import_threads(source, second, kind="langgraph-sqlite")
        assert report.threads == 3 - len(report.failed)
        assert all(isinstance(error, UnreadableValue) for error in report.failed.values())
        with SqliteSaver(tmp_path / "pickling.db", serde=pickling) as saver:
            done = import_threads(path, saver, kind="langgraph-sqlite", verify=True)
            assert done.is_complete
            assert told(saver, "pickled") == told(theirs, "pickled")


def test_into_an_encrypted_store(second: SqliteSaver, tmp_path: Path) -> None:
    with (
        official("langgraph-sqlite", tmp_path, str) as (theirs, source),
        SqliteSaver(tmp_path / "encrypted.db", serde=encrypted_serde()) as saver,
    ):
        run(theirs, "thread", shape="chat")
        assert import_threads(source, saver, kind="langgraph-sqlite", verify=True).is_complete
        assert told(saver) == told(theirs)
        connection = sqlite3.connect(tmp_path / "encrypted.db")
        contents = connection.execute("SELECT content FROM forkpoint_chunks").fetchall()
        connection.close()
        assert contents
        assert not any(b"question" in content for (content,) in contents)
        assert import_threads(saver, second, kind="forkpoint", verify=True).is_complete
        assert told(second) == told(theirs)


# What is refused


async def nobody(_: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("kind", "source", "options", "error"),
    [
        ("langgraph-sqlite", "missing.db", {}, SourceError),
        ("langgraph-sqlite", "empty.db", {}, SourceError),
        ("langgraph-sqlite", "text.db", {}, SourceError),
        ("langgraph-sqlite", 1, {}, InvalidInput),
        ("langgraph-mongodb", "mongodb://127.0.0.1:1/x?timeoutMS=100", {}, SourceError),
        ("langgraph-postgres", "postgresql://127.0.0.1:1/x", {}, SourceError),
        ("forkpoint", InMemorySaver(), {}, InvalidInput),
        ("saver", "text", {}, InvalidInput),
        ("other", "text", {}, InvalidInput),
        ("saver", InMemorySaver(), {"threads": ThreadFilter(ids=["a"])}, InvalidInput),
        ("saver", InMemorySaver(), {"threads": "a"}, InvalidInput),
        ("saver", InMemorySaver(), {"threads": nobody}, InvalidInput),
        ("saver", InMemorySaver(), {"since": 1}, InvalidInput),
        ("saver", InMemorySaver(), {"verify": 1}, InvalidInput),
        ("saver", InMemorySaver(), {"serde": 1}, InvalidInput),
        ("saver", InMemorySaver(), {"on_progress": 1}, InvalidInput),
    ],
)
def test_a_wrong_source_is_refused(
    kind: Any, source: Any, options: Any, error: Any, second: SqliteSaver, tmp_path: Path
) -> None:
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "text.db").write_text("text " * 1000)
    if str(source).endswith(".db"):
        source = tmp_path / source
    with pytest.raises(error):
        import_threads(source, second, kind=kind, **options)
    assert ThreadCatalog(second).count() == 0
    assert not os.path.exists(tmp_path / "missing.db")
