"""What is imported from a store of forkpoint's own has its record, too."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checking import checkpoint, config, id_of, put
from forkpoint import (
    SqliteSaver,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.mongodb.turns import Turns
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from forkpoint.transfer import (
    TransferProgress,
    aimport_threads,
    archive_threads,
    import_threads,
    own,
    restore_threads,
)
from graphs import SHAPES, THREAD
from stores import SqliteStore, Store
from transferring import messages, told


@pytest.fixture
def second(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(path) as saver:
        yield saver


def run(saver: Any, *thread_ids: str, shape: str = "loop", user: str = "u1") -> None:
    graph = SHAPES[shape].build(saver)
    for thread_id in thread_ids:
        named: Any = {"configurable": {"thread_id": thread_id, "user_id": user}}
        graph.invoke(SHAPES[shape].inputs[0], named)


@pytest.mark.in_turns
def test_records_and_lineage_come_along(saver: ForkpointSaver, second: SqliteSaver) -> None:
    run(saver.for_owner("alice"), "a")
    catalog = ThreadCatalog(saver)
    catalog.update("a", label="L", tags=["x"], metadata={"n": 1}, ttl=timedelta(days=1))
    saver.fork("a", new_thread_id="b")
    saver.fork("b", new_thread_id="c", values={"total": 5})
    catalog.create("empty", label="nothing yet")
    report = import_threads(catalog, second, kind="forkpoint", verify=True)
    assert report.is_complete
    assert report.threads == 4
    for thread in catalog.walk():
        assert ThreadCatalog(second).get(thread.thread_id) == thread
        assert second.lineage(thread.thread_id) == saver.lineage(thread.thread_id)
        assert told(second, thread.thread_id) == told(saver, thread.thread_id)
    mine = ThreadFilter(owner="alice", label="L")
    report = import_threads(saver, second, kind="forkpoint", threads=mine)
    assert (report.threads, report.unchanged) == (0, 1)
    run(saver, "a", user="u2")
    report = import_threads(saver, second, kind="forkpoint", verify=True)
    assert (report.threads, report.unchanged) == (1, 3)
    assert told(second, "a") == told(saver, "a")
    saver.trim("a", 1)
    run(saver, "a")
    before = len(told(second, "a"))
    report = import_threads(saver, second, kind="forkpoint")
    assert report.threads == 1
    assert len(told(second, "a")) == before + report.checkpoints  # what it had stays
    run(second, "a")
    run(saver, "a")
    report = import_threads(saver, second, kind="forkpoint")
    assert isinstance(report.failed["a"], ThreadExists)


@pytest.mark.in_turns
def test_all_kinds_of_catalogs_are_sources(saver: ForkpointSaver, second: SqliteSaver) -> None:
    run(saver.for_owner("alice"), "hers")
    run(saver, "nobody's")
    report = import_threads(saver.for_owner("alice"), second, kind="forkpoint")
    assert report.threads == 1
    bobs = ThreadCatalog(second, owner="bob")
    some = ["nobody's", "mistyped"]
    report = import_threads(saver, bobs, kind="forkpoint", threads=some)
    assert (report.threads, list(report.failed)) == (1, ["mistyped"])
    since = datetime.now(timezone.utc)  # none was active since, but they may be there
    assert import_threads(saver, bobs, kind="forkpoint", threads=some, since=since).is_complete
    owners = {thread.thread_id: thread.owner for thread in ThreadCatalog(second).walk()}
    assert owners == {"hers": "alice", "nobody's": "bob"}


def test_what_the_serializer_of_the_target_cannot_read_is_named(
    second: SqliteSaver, tmp_path: Path
) -> None:
    pickling = JsonPlusSerializer(pickle_fallback=True)
    with SqliteSaver(tmp_path / "pickling.db", serde=pickling) as source:
        made = put(source, {"n": threading.Event})
        put(source, {"n": 1}, parent=made)
        report = import_threads(source, second, kind="forkpoint", verify=True)
    (difference,) = report.differences
    assert difference.checkpoint_id == id_of(made)
    assert "pickle" in difference.what


async def test_an_async_import_shows_how_far_it_is(second: SqliteSaver) -> None:
    theirs = InMemorySaver()
    run(theirs, "a", "b")
    steps: list[TransferProgress] = []
    report = await aimport_threads(
        theirs, second, kind="saver", verify=True, on_progress=steps.append
    )
    assert report.is_complete
    assert {step.total for step in steps} == {2}
    assert steps[-1].threads == 2
    assert sum(step.is_verifying for step in steps) == report.verified == report.checkpoints
    cancelled = asyncio.create_task(
        aimport_threads(theirs, second, kind="saver", on_progress=lambda _: cancelled.cancel())
    )
    with pytest.raises(asyncio.CancelledError):
        await cancelled


@pytest.mark.in_turns
def test_of_a_large_store_the_threads_that_were_active_since_are_imported(
    saver: ForkpointSaver, store: Store, second: SqliteSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_PAGE", 2)
    for number in range(6):
        put(saver, {"n": number}, thread_id=str(number))
    store.age("0", updated_at=10**10)
    since = datetime.now(timezone.utc) - timedelta(hours=1)
    report = import_threads(saver, second, kind="forkpoint", since=since)
    assert (report.threads, report.is_complete) == (5, True)
    middle = ThreadCatalog(saver).get("3").updated_at  # type: ignore[union-attr]
    since_then = ThreadFilter(updated_after=middle)
    report = import_threads(saver, second, kind="forkpoint", threads=since_then, since=since)
    assert report.unchanged == 3


@pytest.mark.parametrize("backend", ["sqlite", "mongodb"])
def test_a_thread_of_many_rows_is_looked_at_part_by_part(
    backend: str,
    second: SqliteSaver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 3)
    monkeypatch.setattr(Turns, "turn_rows", 3)
    is_sqlite = backend == "sqlite"
    store = SqliteStore(tmp_path / "b") if is_sqlite else request.getfixturevalue("mongo_store")
    with store.saver() as saver:
        run(saver, "thread", shape="stateful subgraphs")
        report = import_threads(saver, second, kind="forkpoint", verify=True)
        assert (report.is_complete, report.checkpoints) == (True, len(told(saver)))
        run(saver, "thread", shape="stateful subgraphs")
        report = import_threads(saver, second, kind="forkpoint", verify=True)
        assert report.is_complete
        assert told(second) == told(saver)


def test_a_source_that_is_in_use_is_read_again(second: SqliteSaver, tmp_path: Path) -> None:
    with SqliteSaver(tmp_path / "source.db") as source:
        for name, limit in (("thread", 3), ("busy", 100)):
            head = put(source, {"n": 0}, thread_id=name)
            times = iter(range(limit))

            def write(progress: TransferProgress) -> None:
                nonlocal head
                if progress.thread_id == name and next(times, None) is not None:  # noqa: B023
                    head = put(source, {"n": 1}, parent=head, thread_id=name)  # noqa: B023

            report = import_threads(source, second, kind="forkpoint", on_progress=write)
            assert list(report.failed) == ([name] if name == "busy" else [])
        assert "written to all the time" in str(report.failed["busy"])
        assert import_threads(source, second, kind="forkpoint", verify=True).is_complete
        for name in ("thread", "busy"):
            assert told(second, name) == told(source, name)


class Ended(Exception):
    """Ends an import."""


def begin_import(source: ForkpointSaver, target: ForkpointSaver) -> None:
    """Import two checkpoints of a thread, and no more."""

    def end(progress: TransferProgress) -> None:
        if progress.checkpoints == 2:
            raise Ended

    with pytest.raises(Ended):
        import_threads(source, target, kind="forkpoint", on_progress=end)
    assert len(told(target)) == 2


@pytest.mark.in_turns
def test_of_a_source_that_was_trimmed_before_the_import_went_on_nothing_else_is_left(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    with SqliteSaver(tmp_path / "source.db") as source:
        messages(source, "thread", 4)
        begin_import(source, saver)
        source.trim("thread", 2)
        assert import_threads(source, saver, kind="forkpoint", verify=True).is_complete
        assert told(saver) == told(source)
    assert store.problems(saver) == []


def test_what_is_hidden_in_the_source_is_hidden_where_an_import_went_on(
    second: SqliteSaver, tmp_path: Path
) -> None:
    shape = SHAPES["deltas"]
    with SqliteSaver(tmp_path / "source.db") as source:
        graph = shape.build(source)
        for given in shape.inputs[:2]:
            graph.invoke(given, THREAD)
        source.trim("thread", 1)  # all others are hidden: what stays is rebuilt from them
        begin_import(source, second)
        assert import_threads(source, second, kind="forkpoint", verify=True).is_complete
        assert told(second) == told(source)


@pytest.mark.in_turns
def test_what_was_trimmed_in_the_source_is_still_seen_in_the_target(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    shape = SHAPES["deltas"]
    with SqliteSaver(tmp_path / "source.db") as source:
        graph = shape.build(source)
        graph.invoke(shape.inputs[0], THREAD)
        assert import_threads(source, saver, kind="forkpoint").is_complete
        before = told(saver)
        next(graph.stream(shape.inputs[1], THREAD))
        source.trim("thread", 3)  # all others are hidden: what stays is rebuilt from them
        assert import_threads(source, saver, kind="forkpoint").checkpoints
        assert told(saver)[: len(before)] == before
        assert told(saver)[-3:] == told(source)
    assert store.problems(saver) == []


@pytest.mark.in_turns
def test_new_states_are_whole_that_are_rebuilt_from_what_was_trimmed_in_the_target(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    shape = SHAPES["snapshots"]
    with SqliteSaver(tmp_path / "source.db") as source:
        graph = shape.build(source)
        for given in shape.inputs[:2]:
            graph.invoke(given, THREAD)
        (old,) = [found for found in source.history("thread") if found.metadata["step"] == 4]
        assert import_threads(source, saver, kind="forkpoint").is_complete
        saver.trim("thread", 1)
        left = told(saver)
        graph.invoke(shape.inputs[2], old.config)
        report = import_threads(source, saver, kind="forkpoint")
        assert report.is_complete
        new = told(saver)[len(left) :]
        assert told(saver) == [*left, *told(source)[-len(new) :]]
        states = [shape.build(each).get_state_history(THREAD) for each in (saver, source)]
        for mine, theirs in zip(*states, strict=False):
            assert mine.values == theirs.values
    assert saver.check().is_clean
    assert store.problems(saver) == []


@pytest.mark.in_turns
def test_new_states_are_whole_that_have_a_value_again_which_was_trimmed_in_the_target(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    values = [random.Random(n).randbytes(5000) for n in (1, 2)]
    with SqliteSaver(tmp_path / "source.db") as source:
        parent: Any = None
        for value in values:
            parent = put(source, {"value": value}, parent=parent)
        assert import_threads(source, saver, kind="forkpoint").is_complete
        saver.trim("thread", 1)
        put(source, {"value": values[0]}, parent=parent)
        assert import_threads(source, saver, kind="forkpoint").is_complete
        assert told(saver) == told(source)[1:]
    assert store.problems(saver) == []


@pytest.mark.in_turns
@pytest.mark.parametrize("is_put_again", [False, True])
def test_new_states_are_whole_that_have_what_the_target_has_another_value_of(
    saver: ForkpointSaver, store: Store, tmp_path: Path, is_put_again: bool
) -> None:
    """As the source put a checkpoint again since, or the same task ran here, too."""
    first, second = (random.Random(n).randbytes(5000) for n in (1, 2))
    made = checkpoint({"value": first})
    with SqliteSaver(tmp_path / "source.db") as source:
        head = source.put(config(), made, {}, made["channel_versions"])
        assert import_threads(source, saver, kind="forkpoint").is_complete
        if is_put_again:
            again: Any = {**made, "channel_values": {"value": second}}
            source.put(config(), again, {}, made["channel_versions"])
        else:
            saver.put_writes(head, [("value", first)], "task")
            source.put_writes(head, [("value", second)], "task")
        put(source, {"value": second}, parent=head)
        assert import_threads(source, saver, kind="forkpoint").is_complete
        assert told(saver)[-1] == told(source)[-1]
    assert store.problems(saver) == []


def test_a_thread_that_is_not_complete_is_completed_from_the_same_source_alone(
    second: SqliteSaver, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    with SqliteSaver(tmp_path / "source.db") as source:
        messages(source, "thread", 4)
        archive_threads(source, archive)
        begin_import(source, second)
        (failure,) = restore_threads(second, archive).failed.values()
        assert isinstance(failure, ThreadExists)
        assert "comes from elsewhere" in str(failure)
        assert import_threads(source, second, kind="forkpoint", verify=True).is_complete
        (failure,) = restore_threads(second, archive).failed.values()
        assert isinstance(failure, ThreadExists)
        assert "already" in str(failure)


def test_an_empty_thread_of_the_same_id_gets_nothing_of_another_owners(
    second: SqliteSaver, tmp_path: Path
) -> None:
    with SqliteSaver(tmp_path / "source.db") as source:
        messages(source.for_owner("alice"), "thread", 2)
        theirs = ThreadCatalog(second, owner="bob").create("thread", label="bob's")
        report = import_threads(source, second, kind="forkpoint")
    assert {type(error) for error in report.failed.values()} == {ThreadExists}
    assert ThreadCatalog(second).get("thread") == theirs


@pytest.mark.in_turns
def test_threads_that_are_deleted_meanwhile_fail_and_stay_deleted(
    saver: ForkpointSaver, store: Store, second: SqliteSaver
) -> None:
    for name in ("a", "b", "c"):
        messages(second, name, 2)

    def delete(progress: TransferProgress) -> None:
        if (progress.thread_id, progress.checkpoints) == ("a", 2):
            second.delete_thread("b")
            saver.delete_thread("a")

    report = import_threads(second, saver, kind="forkpoint", on_progress=delete)
    assert {name: type(error) for name, error in report.failed.items()} == {
        "a": ThreadDeleted,
        "b": ThreadNotFound,
    }
    assert [thread.thread_id for thread in ThreadCatalog(saver).walk()] == ["c"]
    assert store.problems(saver) == []
