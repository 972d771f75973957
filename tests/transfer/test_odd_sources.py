"""Sources of another kind that somebody changes meanwhile, or in which there are odd things."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from operator import add
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from checking import config
from forkpoint import InvalidInput, MissingLibrary, SourceError, SqliteSaver, ThreadCatalog
from forkpoint.langgraph_rules import COUNTERS, SENT_TASKS
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import TransferProgress, import_threads
from graphs import THREAD, append_all
from officials import official
from servers import ReplicaSet
from stores import Store
from transferring import checkpoint_in, numbers, told


class Counts(TypedDict):
    counts: Annotated[list[int], add]


class Lists(TypedDict, total=False):
    items: Annotated[list[str], add]
    log: Annotated[list[str], add]


class DeltaLists(TypedDict, total=False):
    items: Annotated[list[str], add]
    log: Annotated[list[str], DeltaChannel(append_all)]


@pytest.fixture
def second(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(path) as saver:
        yield saver


@pytest.mark.parametrize("kind", ["langgraph-sqlite", "langgraph-mongodb", "saver"])
def test_of_a_thread_that_is_removed_meanwhile_what_was_read_is_imported(
    kind: Any, second: SqliteSaver, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with official(kind, tmp_path, request.getfixturevalue) as (theirs, source):
        for number in range(4):
            checkpoint_in(theirs, n=number)
        expected = told(theirs)

        def remove(progress: TransferProgress) -> None:
            if progress.checkpoints == 1:
                theirs.delete_thread("thread")

        report = import_threads(source, second, kind=kind, on_progress=remove)
    assert (report.is_complete, report.threads, report.checkpoints) == (True, 1, 2)
    assert told(second) == [expected[0], expected[-1]]  # the newest one is read first


def test_a_table_that_is_lost_meanwhile_is_an_error_of_the_source(
    second: SqliteSaver, tmp_path: Path
) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        for number in range(3):
            checkpoint_in(theirs, n=number)

        def drop(_: TransferProgress) -> None:
            theirs.conn.execute("DROP TABLE IF EXISTS writes")

        report = import_threads(source, second, kind="langgraph-sqlite", on_progress=drop)
    assert isinstance(report.failed["thread"], SourceError)
    assert "no such table" in str(report.failed["thread"])


def test_a_thread_without_a_name_is_refused_and_the_others_are_imported(
    second: SqliteSaver, tmp_path: Path
) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        for name in ("", "thread"):
            checkpoint_in(theirs, name, n=1)
        report = import_threads(source, second, kind="langgraph-sqlite")
        assert {name: type(error) for name, error in report.failed.items()} == {"": InvalidInput}
        assert report.threads == 1
        assert told(second) == told(theirs)


def test_threads_whose_ids_are_no_strings_are_named(
    second: SqliteSaver, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with official("langgraph-mongodb", tmp_path, request.getfixturevalue) as (theirs, source):
        for name in ("1", "thread"):
            checkpoint_in(theirs, name, n=1)
        theirs.checkpoint_collection.update_many({"thread_id": "1"}, {"$set": {"thread_id": 1}})
        report = import_threads(source, second, kind="langgraph-mongodb")
        assert {name: type(error) for name, error in report.failed.items()} == {"1": InvalidInput}
        assert report.threads == 1
        some = import_threads(
            source, second, kind="langgraph-mongodb", threads=lambda name: name.startswith("t")
        )
        assert (some.is_complete, some.unchanged) == (True, 1)
    memory = InMemorySaver()
    for odd in (1, "another", None):
        named: Any = {"configurable": {"thread_id": odd, "checkpoint_ns": ""}}
        memory.put(named, empty_checkpoint(), {}, {})
    report = import_threads(memory, second, kind="saver")
    assert (report.failed.keys(), report.threads) == ({"1", "None"}, 1)


def test_tasks_that_were_sent_in_an_old_format_wait_in_the_store_too(
    second: SqliteSaver, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def send(_: object) -> list[Send]:
        return [Send("work", n) for n in range(3)]

    def built(saver: Any) -> Any:
        builder: Any = StateGraph(Counts)
        builder.add_node("start", lambda _: {})
        builder.add_node("work", lambda n: {"counts": [n]})
        builder.add_edge(START, "start")
        builder.add_conditional_edges("start", send, ["work"])
        return builder.compile(checkpointer=saver, interrupt_before=["work"])

    with official("langgraph-postgres", tmp_path, request.getfixturevalue) as (theirs, source):
        built(theirs).invoke({"counts": []}, THREAD)
        with theirs._cursor() as cursor:  # as LangGraph 0.4 stored it
            cursor.execute(
                "UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint #- %s, %s, %s)",
                (["channel_versions", SENT_TASKS], ["v"], "3"),
            )
        waiting = theirs.get_tuple(THREAD).checkpoint
        assert len(waiting["channel_values"][SENT_TASKS]) == 3
        report = import_threads(source, second, kind="langgraph-postgres", verify=True)
        assert report.is_complete
    imported = second.get(THREAD)
    assert imported is not None
    assert imported["channel_values"] == waiting["channel_values"]
    assert imported["channel_versions"] == numbers(waiting["channel_versions"])
    assert built(second).invoke(None, THREAD) == {"counts": [0, 1, 2]}


def test_a_graph_whose_channel_became_a_delta_channel_travels_to_before_its_first_value(
    saver: ForkpointSaver, store: Store
) -> None:
    """LangGraph asks the saver for a first version, which it compares with those that came."""

    def built(saver: Any, state: type) -> Any:
        builder: Any = StateGraph(state)
        builder.add_node("first", lambda _: {"log": ["first"]})
        builder.add_node("second", lambda state: {"items": state["log"], "log": ["second"]})
        builder.add_edge(START, "first")
        builder.add_edge("first", "second")
        return builder.compile(checkpointer=saver)

    theirs = InMemorySaver()
    built(theirs, Lists).invoke({"items": ["given"]}, THREAD)
    assert import_threads(theirs, saver, kind="saver", verify=True).is_complete
    for each in (theirs, saver):
        graph = built(each, DeltaLists)
        before = next(one for one in graph.get_state_history(THREAD) if one.next == ("first",))
        done = {"items": ["given", "first"], "log": ["first", "second"]}
        assert graph.invoke(None, before.config) == done
        assert graph.get_state(THREAD).values == done
    assert store.problems(saver) == []


@pytest.mark.parametrize("versions", [("1.1", "1.2"), ("a", "b")])
def test_versions_of_another_shape_stay(versions: tuple[str, str], second: SqliteSaver) -> None:
    """They may begin with the same number."""
    theirs = InMemorySaver()
    made: Any = {**empty_checkpoint(), "channel_values": {"n": 1, "m": 2}}
    made["channel_versions"] = dict(zip("nm", versions, strict=True))
    theirs.put(config(), made, {}, made["channel_versions"])
    assert import_threads(theirs, second, kind="saver", verify=True).is_complete
    assert second.get(config()) == made


def test_checkpoints_whose_ids_tell_no_time_are_imported(second: SqliteSaver) -> None:
    theirs = InMemorySaver()
    for name in ("first", "second"):
        made: Any = {**empty_checkpoint(), "id": name, "channel_values": {"n": name}}
        made["channel_versions"] = {"n": 1}
        theirs.put(config(), made, {"source": "loop"}, {"n": 1})
    assert import_threads(theirs, second, kind="saver", verify=True).is_complete
    assert told(second) == told(theirs)
    thread = ThreadCatalog(second).get("thread")
    assert thread is not None
    assert thread.created_at <= thread.updated_at


def test_a_checkpoint_that_cannot_be_stored_is_named(second: SqliteSaver) -> None:
    theirs = InMemorySaver()
    deep: Any = []
    for _ in range(150):
        deep = [deep]
    made = empty_checkpoint()
    theirs.put(config(), made, {"source": "loop", "deep": deep}, {})
    error = import_threads(theirs, second, kind="saver").failed["thread"]
    assert isinstance(error, InvalidInput)
    assert str(error).startswith(f"thread 'thread', checkpoint {made['id']!r} of namespace ''")


def test_a_database_without_the_collections_is_refused(
    second: SqliteSaver, mongo_server: ReplicaSet
) -> None:
    host, _, options = mongo_server.uri.partition("/?")
    with pytest.raises(SourceError, match="'nothing' has no collection 'checkpoints'"):
        import_threads(f"{host}/nothing?{options}", second, kind="langgraph-mongodb")


@pytest.mark.parametrize(
    ("kind", "driver"), [("langgraph-mongodb", "pymongo"), ("langgraph-postgres", "psycopg")]
)
def test_a_driver_that_is_missing_is_named(
    kind: Any, driver: str, second: SqliteSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(MissingLibrary, match="pip install"):
        import_threads("mongodb://127.0.0.1:1/x", second, kind=kind)


DAMAGED: list[tuple[str, Any]] = [
    ("metadata = ?", b'{"n": '),
    ("metadata = ?", b"\xff"),
    ("metadata = ?", "[]"),
    ("metadata = ?", "[" * 100_000),
    ("checkpoint = ?", []),
    ("checkpoint = ?", {**empty_checkpoint(), "id": 1}),
    ("checkpoint = ?", {**empty_checkpoint(), "channel_values": [1]}),
    ("checkpoint = ?", {**empty_checkpoint(), "channel_versions": [1]}),
    (f"metadata = '{{\"{COUNTERS}\": {{}}}}', checkpoint = ?",
     {**empty_checkpoint(), "versions_seen": {"node": [1]}}),
    ("checkpoint_ns = ?", b"\xff"),
]  # fmt: skip


@pytest.mark.parametrize("since", [None, datetime(2024, 1, 1, tzinfo=timezone.utc)])
def test_a_damaged_row_keeps_no_other_thread(
    since: datetime | None, second: SqliteSaver, tmp_path: Path
) -> None:
    serialized = JsonPlusSerializer().dumps_typed
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        for number, (change, value) in enumerate(DAMAGED):
            checkpoint_in(theirs, name := f"damaged {number}", n=1)
            stored = serialized(value)[1] if isinstance(value, (dict, list)) else value
            change = f"UPDATE checkpoints SET {change} WHERE thread_id = ?"
            theirs.conn.execute(change, (stored, name))
        checkpoint_in(theirs, n=1)
        report = import_threads(source, second, kind="langgraph-sqlite", since=since)
        assert report.threads == 1
        assert len(report.failed) == len(DAMAGED)
        assert {*map(type, report.failed.values())} == {InvalidInput, SourceError}
        assert told(second) == told(theirs)
        assert ThreadCatalog(second).count() == 1


def test_a_saver_that_cannot_be_read_is_an_error_of_the_source(
    second: SqliteSaver, tmp_path: Path
) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, _):
        checkpoint_in(theirs, n=1)
        theirs.conn.close()
        with pytest.raises(SourceError, match="closed database"):
            import_threads(theirs, second, kind="saver")
