"""A page of threads is found through an index, whatever there is beside: plans and work."""

from __future__ import annotations

import random
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from checking import checkpoint, config, put
from commands import Commands
from forkpoint import ThreadCatalog, ThreadFilter
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from stores import Known, MongoStore, SqliteStore, Store

PAGE = 50
WORK = 20
"""How many rows, or keys, or documents, may be looked at for each that is returned."""
FEW = 10
"""A page with fewer may cost as much as one with this many."""

START = 1_700_000_000_000_000  # microseconds since 1970
DAY = 86_400_000_000
TAGS = {"frequent": 0.6, "common": 0.1, "rare": 0.002}
OWNERS = {"acme": 50, "one": 20, "two": 10, "three": 10, None: 10}
STATUSES = {"idle": 85, "interrupted": 10, "error": 5}


def many(count: int) -> list[Known]:
    """Return threads of several owners, with tags and metadata that are frequent and rare."""
    rng = random.Random(1)
    threads = []
    for n in range(count):
        created_at = START + rng.randrange(30 * DAY)
        threads.append(
            Known(
                f"t{n:06}",
                rng.choices(list(OWNERS), list(OWNERS.values()))[0],
                [tag for tag, share in TAGS.items() if rng.random() < share],
                {
                    "user_id": f"u{rng.randrange(count // 20)}",
                    "plan": {"name": rng.choice(["free", "free", "pro"]), "seats": n % 7},
                    "n": n,
                },
                rng.choices(list(STATUSES), list(STATUSES.values()))[0],
                created_at,
                created_at + rng.randrange(DAY),
                f"label {n % 500}",
            )
        )
    return threads


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


class Looked(ABC):
    """What a backend looks at, for all that a call asks of it."""

    @abstractmethod
    def work(self, call: Callable[[], Any]) -> int:
        """Return how many rows, or keys and documents, a search looks at.

        The plans are checked on the way: each goes through a range of an index.
        """


class SqliteLooked(Looked):
    """It counts how often a statement asks whether a row of the search index is still meant."""

    def __init__(self, store: SqliteStore, saver: ForkpointSaver) -> None:
        self._store = store
        self._connection: sqlite3.Connection = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]

    def work(self, call: Callable[[], Any]) -> int:
        sent: list[str] = []
        self._connection.set_trace_callback(sent.append)
        try:
            call()
        finally:
            self._connection.set_trace_callback(None)
        return sum(
            self._looked(statement) for statement in sent if "FROM forkpoint_listing" in statement
        )

    def _looked(self, statement: str) -> int:
        looked = rows = 0

        def is_current(valid_to: int | None) -> bool:
            nonlocal looked
            looked += 1
            return valid_to is None

        if statement.startswith("DELETE"):
            return 0  # of what no search reads any more
        counted = re.sub(r"(\w+\.)?\bvalid_to IS NULL", r"is_current(\1valid_to)", statement)
        assert counted != statement
        with self._store.connection() as connection:
            connection.create_function("is_current", 1, is_current)
            plan, counted_plan = (
                [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {each}")]
                for each in (statement, counted)
            )
            rows = len(connection.execute(counted).fetchall())
        assert plan == counted_plan
        for step in plan:
            if re.match(r"(SEARCH|SCAN) [to]\b", step):
                assert re.search(r"SEARCH . USING (PRIMARY KEY|INDEX) .*\(", step), step
        assert looked >= rows
        return looked


class MongoLooked(Looked):
    """It asks the server to explain."""

    def __init__(self, store: MongoStore, commands: Commands) -> None:
        self._store = store
        self._commands = commands

    def work(self, call: Callable[[], Any]) -> int:
        self._commands.clear()
        call()
        finds = [sent.command for sent in self._commands.sent if sent.command_name == "find"]
        searches = [find for find in finds if "sort" in find]  # not what asks if there is a log
        assert searches
        return sum(self._looked(search) for search in searches)

    def _looked(self, search: Any) -> int:
        options = ("find", "filter", "projection", "sort", "limit", "batchSize", "singleBatch")
        explained = self._store.collection.database.command(
            "explain", {name: search[name] for name in options}, verbosity="executionStats"
        )
        stages = list(_stages(explained["executionStats"]["executionStages"]))
        assert {"SORT", "COLLSCAN"}.isdisjoint(stage["stage"] for stage in stages)
        indexes = {stage["indexName"] for stage in stages if "indexName" in stage}
        assert indexes == {"forkpoint_listing"}
        total = explained["executionStats"]
        return int(max(total["totalKeysExamined"], total["totalDocsExamined"]))


def _stages(stage: Any) -> Iterator[Any]:
    yield stage
    for name in ("inputStage", "outerStage", "innerStage"):
        if name in stage:
            yield from _stages(stage[name])
    for inner in stage.get("inputStages", ()):
        yield from _stages(inner)


@pytest.fixture
def saver(store: Store, commands: Commands) -> Iterator[ForkpointSaver]:
    options = {"event_listeners": [commands]} if isinstance(store, MongoStore) else {}
    with store.saver(**options) as saver:
        saver.setup()
        yield saver


@pytest.fixture
def looked(store: Store, saver: ForkpointSaver, commands: Commands) -> Looked:
    if isinstance(store, MongoStore):
        return MongoLooked(store, commands)
    assert isinstance(store, SqliteStore)
    return SqliteLooked(store, saver)


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
    # SQLite's statements, those that begin and commit included, and MongoDB's commands.
    "get": (lambda catalog: catalog.get("t"), 4, ["aggregate"]),
    "get of nothing": (lambda catalog: catalog.get("none"), 3, ["aggregate"]),
    "create": (
        lambda catalog: catalog.create("new", tags=["a"]),
        14,
        ["aggregate", "find", "update", "aggregate"],
    ),
    "get_or_create": (lambda catalog: catalog.get_or_create("t"), 4, ["aggregate"]),
    "update": (
        lambda catalog: catalog.update("t", label="x", metadata={"k": 2}),
        16,
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
        9,
        ["aggregate", "update", "update", "find", "aggregate"],
    ),
    "search of a second page": (
        lambda catalog: catalog.search(TAGGED, limit=2, cursor=CURSORS[0]),
        12,
        ["find", "aggregate"],
    ),
    "search of a later page": (
        lambda catalog: catalog.search(TAGGED, limit=2, cursor=CURSORS[1]),
        10,  # it is the last one: what kept the order is removed
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
