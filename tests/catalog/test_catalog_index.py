"""A page of threads is found through an index, whatever there is beside: plans and work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from checking import checkpoint, config, put
from commands import Commands
from forkpoint import ThreadCatalog, ThreadFilter
from forkpoint.catalog import search as searching
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from index_work import FEW, START, WORK, Looked, looked_at_by, many
from stores import Known, MongoStore, SqliteStore, Store

PAGE = 50


def matches(thread: Known, thread_filter: ThreadFilter) -> bool:
    tags = set(thread.tags)
    statuses = (
        [thread_filter.status] if isinstance(thread_filter.status, str) else thread_filter.status
    )
    after = thread_filter.updated_after
    return (
        thread_filter.owner in (None, thread.owner)
        and thread_filter.label in (None, thread.label)
        and set(thread_filter.tags) <= tags
        and (not thread_filter.any_tags or bool(tags & set(thread_filter.any_tags)))
        and (statuses is None or thread.status in statuses)
        and all(
            thread.metadata[key].items() >= value.items()
            if isinstance(value, dict)
            else thread.metadata[key] == value
            for key, value in thread_filter.metadata.items()
        )
        and (after is None or thread.updated_at >= after.timestamp() * 1_000_000)
    )


FILTERS: dict[str, ThreadFilter] = {
    "all": ThreadFilter(),
    "owner": ThreadFilter(owner="acme"),
    "status": ThreadFilter(status="interrupted"),
    "some statuses": ThreadFilter(status=["interrupted", "error"]),
    "label": ThreadFilter(label="label 7"),
    "owner, frequent tag, status": ThreadFilter(
        owner="acme", tags=["frequent"], status="interrupted"
    ),
    "owner, common tag, status": ThreadFilter(owner="acme", tags=["common"], status="idle"),
    "owner, rare tag, status": ThreadFilter(owner="acme", tags=["rare"], status="idle"),
    "rare owner, rare tag, status": ThreadFilter(owner="two", tags=["rare"], status="error"),
    "frequent tag": ThreadFilter(tags=["frequent"]),
    "rare tag": ThreadFilter(tags=["rare"]),
    "unknown tag": ThreadFilter(tags=["unknown"]),
    "rare metadata": ThreadFilter(metadata={"user_id": "u7"}),
    "unique metadata": ThreadFilter(metadata={"n": 17}),
    "frequent metadata": ThreadFilter(metadata={"plan": {"name": "free"}}),
    "owner, metadata, status": ThreadFilter(
        owner="acme", metadata={"plan": {"name": "pro"}}, status="idle"
    ),
    "rare and frequent metadata": ThreadFilter(
        metadata={"user_id": "u7", "plan": {"name": "free"}}
    ),
    "frequent and common tag": ThreadFilter(owner="acme", tags=["frequent", "common"]),
    "frequent and rare tag": ThreadFilter(owner="acme", tags=["frequent", "rare"], status="idle"),
    "any tag": ThreadFilter(owner="acme", any_tags=["common", "rare"], status="idle"),
    "any tag, frequent metadata": ThreadFilter(
        any_tags=["rare", "frequent"], metadata={"plan": {"name": "pro"}}, status="idle"
    ),
    "any tag, rare metadata": ThreadFilter(
        any_tags=["rare", "frequent"], metadata={"user_id": "u7"}
    ),
    "time": ThreadFilter(
        owner="acme",
        tags=["frequent"],
        updated_after=datetime.fromtimestamp(START / 1e6 + 20 * 86_400, timezone.utc),
    ),
    "everything": ThreadFilter(
        owner="acme",
        label=None,
        tags=["frequent"],
        any_tags=["common", "frequent"],
        status="idle",
        metadata={"plan": {"name": "free"}},
        updated_after=datetime.fromtimestamp(START / 1e6 + 86_400, timezone.utc),
    ),
}


@pytest.fixture
def saver(store: Store, commands: Commands) -> Iterator[ForkpointSaver]:
    options = {"event_listeners": [commands]} if isinstance(store, MongoStore) else {}
    with store.saver(**options) as saver:
        saver.setup()
        yield saver


@pytest.fixture
def looked(store: Store, saver: ForkpointSaver, commands: Commands) -> Looked:
    return looked_at_by(saver, store, commands)


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_page_is_found_by_looking_at_little_more_than_it(
    count: int, store: Store, saver: ForkpointSaver, looked: Looked
) -> None:
    catalog = ThreadCatalog(saver)
    threads = many(count)
    store.add_threads(threads)
    assert catalog.count() == count
    newest_first = sorted(
        threads, key=lambda thread: (thread.updated_at, thread.thread_id), reverse=True
    )
    figures = {}
    for name, thread_filter in FILTERS.items():
        matching = [thread.thread_id for thread in newest_first if matches(thread, thread_filter)]
        first = catalog.search(thread_filter, limit=PAGE)
        assert [thread.thread_id for thread in first] == matching[:PAGE]
        work = looked.work(
            lambda thread_filter=thread_filter: catalog.search(thread_filter, limit=PAGE)
        )
        figures[name] = len(first), work
        assert work <= WORK * max(len(first), FEW), (name, figures[name])
        assert catalog.count(thread_filter) == len(matching)
        if first.next_cursor is not None:
            second = catalog.search(thread_filter, limit=PAGE, cursor=first.next_cursor)
            assert [thread.thread_id for thread in second] == matching[PAGE : 2 * PAGE]
    print(f"looked at, of {count}, for pages of:", figures)
    assert store.problems() == []


@pytest.mark.parametrize("sort_by", ["created_at", "thread_id", "status"])
def test_few_matches_are_sorted_and_not_searched_among_all_threads(
    sort_by: str, store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    threads = many(2000)
    store.add_threads(threads)
    for name in ("all", "owner, frequent tag, status", "rare tag", "rare metadata", "any tag"):
        thread_filter = FILTERS[name]
        for descending in (True, False):
            expected = sorted(
                (thread for thread in threads if matches(thread, thread_filter)),
                key=lambda thread: (getattr(thread, sort_by), thread.thread_id),
                reverse=descending,
            )
            page = catalog.search(thread_filter, sort_by=sort_by, descending=descending, limit=PAGE)
            assert [thread.thread_id for thread in page] == [
                thread.thread_id for thread in expected[:PAGE]
            ]
    if isinstance(store, SqliteStore):
        connection: Any = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        connection.set_progress_handler(count, 1000)
        catalog.search(FILTERS["rare metadata"], sort_by=sort_by)
        connection.set_progress_handler(None, 1000)
        assert steps < 10  # thousand instructions; a look at each thread takes a hundred thousand


# What calls cost

TAGGED = ThreadFilter(tags=["a"])
CALLS: dict[str, tuple[Callable[[ThreadCatalog], Any], int, list[str]]] = {
    # SQLite's statements, those that begin and commit included, and MongoDB's commands. What is
    # found has no checkpoints; of threads that have some, SQLite reads the newest as well.
    "get": (lambda catalog: catalog.get("t"), 3, ["aggregate"]),
    "get of nothing": (lambda catalog: catalog.get("none"), 3, ["aggregate"]),
    "create": (
        lambda catalog: catalog.create("new", tags=["a"]),
        9,
        ["find", "update", "aggregate"],
    ),
    "get_or_create": (lambda catalog: catalog.get_or_create("t"), 3, ["aggregate"]),
    "update": (
        lambda catalog: catalog.update("t", label="x", metadata={"k": 2}),
        15,
        ["aggregate", "update", "aggregate"],
    ),
    "count": (
        lambda catalog: catalog.count(TAGGED),
        7,
        [
            "aggregate",
            "update",
            "update",
            "aggregate",
            "aggregate",
        ],  # are there any that can expire?
    ),
    "search": (
        lambda catalog: catalog.search(TAGGED, limit=2),
        8,
        ["aggregate", "update", "update", "find", "aggregate"],
    ),
    "search of a second page": (
        lambda catalog: catalog.search(TAGGED, limit=2, cursor=CURSORS[0]),
        11,
        ["find", "aggregate"],
    ),
    "search of a later page": (
        lambda catalog: catalog.search(TAGGED, limit=2, cursor=CURSORS[1]),
        9,  # it is the last one: what kept the order is removed
        ["find", "aggregate"],
    ),
}
CURSORS: list[str] = []


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_as_many_statements_whatever_there_is(
    name: str, store: Store, saver: ForkpointSaver, commands: Commands
) -> None:
    catalog = ThreadCatalog(saver)
    store.add_threads(many(200))
    for n in range(5):
        catalog.create(f"more {n}", tags=["a"])
    catalog.create("t", tags=["a", "b"], metadata={"k": 1})
    first = catalog.search(TAGGED, limit=2).next_cursor
    assert first is not None
    second = catalog.search(TAGGED, limit=2, cursor=first).next_cursor
    assert second is not None
    CURSORS[:] = [first, second]
    call, statements, expected = CALLS[name]
    sent: list[str] = []
    connection: Any = getattr(parts_of(saver).context.storage, "_connection", None)
    if connection is not None:
        connection.set_trace_callback(sent.append)
    commands.clear()
    call(catalog)
    if connection is not None:
        connection.set_trace_callback(None)
        # Each transaction looks whether the file is still the one that it was, and some for the
        # time of the store.
        looks = (
            "PRAGMA schema_version",
            "SELECT value FROM forkpoint_settings WHERE name = 'clock'",
        )
        sent = [statement for statement in sent if statement not in looks]
        assert len(sent) == statements, sent
    else:
        assert commands.names == expected


def test_what_a_graph_puts_changes_no_index_that_searches_use(
    store: Store, saver: ForkpointSaver, commands: Commands
) -> None:
    """But for the first put after a search: it says that the thread is to be listed again."""
    head = put(saver, {"n": 0})
    assert ThreadCatalog(saver).count() == 1
    head = put(saver, {"n": 1}, parent=head)
    listed = place_in_index(store)
    if isinstance(store, SqliteStore):
        changed: list[str] = []
        connection: Any = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
        connection.set_trace_callback(changed.append)
        for n in range(5):
            head = saver.put(head, checkpoint({"n": n}), {}, {"n": n})
            saver.put_writes(head, [("c", n)], "task")
        connection.set_trace_callback(None)
        # Begin, a look whether the file is the same, the record, the row (of a checkpoint with
        # its receipt in another statement), commit.
        assert len(changed) == 5 * 6 + 5 * 5
        assert not any("listing" in statement or "terms" in statement for statement in changed)
    else:
        commands.clear()
        for n in range(5):
            head = saver.put(head, checkpoint({"n": n}), {}, {"n": n})
            saver.put_writes(head, [("c", n)], "task")
        assert commands.names == ["insert"] * 10  # into the thread's log
        of_index = ("listed_at", "listed_status")
        assert not any(
            name in str(statement["u"]) for statement in commands.statements() for name in of_index
        )
    assert place_in_index(store) == listed
    assert saver.get_tuple(config()) is not None
    assert store.problems(saver) == []


def place_in_index(store: Store) -> Any:
    if isinstance(store, SqliteStore):
        with store.connection() as connection:
            return connection.execute("SELECT * FROM forkpoint_listing").fetchall()
    assert isinstance(store, MongoStore)
    (record,) = store.collection.find({"kind": "thread"})
    return record["terms"], record["listed_at"], record["listed_status"]


@pytest.mark.parametrize("call", ["search", "count"])
def test_what_many_puts_have_changed_is_listed_some_at_a_time(
    call: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write in between, and what they write is found as well."""
    monkeypatch.setattr(Statements, "default_turn_rows", 20)
    store = SqliteStore(path)
    with store.saver() as saver, store.saver() as other:
        for n in range(90):
            put(saver, {"n": n}, thread_id=f"thread-{n}")
        connection: Any = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
        listed: list[int] = []

        def rest(_: float) -> None:
            (number,) = connection.execute(
                "SELECT count(*) FROM forkpoint_threads WHERE listed_at IS NOT NULL"
            ).fetchone()
            listed.append(number)
            put(other, {"n": number}, thread_id=f"other-{len(listed)}")

        monkeypatch.setattr(searching, "rest", rest)
        catalog = ThreadCatalog(saver)
        found = len(catalog.search(limit=200)) if call == "search" else catalog.count()
    assert listed[:4] == [20, 40, 60, 80]
    assert found == 90 + len(listed)
