"""What searches leave in the store: what is read page by page, and nothing of what is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checking import Api, put, repeated
from forkpoint import SqliteSaver, ThreadCatalog, ThreadFilter
from forkpoint.catalog.criteria import query_of
from forkpoint.catalog.cursors import cursor_of, id_digests, resume
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite import search_index
from stores import Known, MongoStore, SqliteStore, Store

LISTED = ThreadFilter(metadata={"list": [1]})  # which the store's index cannot tell alone
SORTS = [
    "updated_at",
    "status",
    pytest.param("created_at", marks=pytest.mark.slow),  # in an order that never changes
    pytest.param("thread_id", marks=pytest.mark.slow),
]


def index_rows(store: Store) -> int:
    """Return how many rows, or entries, the index has by which threads are searched."""
    if isinstance(store, SqliteStore):
        with store.connection() as connection:
            return int(connection.execute("SELECT count(*) FROM forkpoint_listing").fetchone()[0])
    assert isinstance(store, MongoStore)
    return sum(len(thread["terms"]) for thread in store.collection.find({"kind": "thread"}))


def everything(store: Store) -> int:
    """Return how many rows, or documents, there are, whatever they are for."""
    if isinstance(store, SqliteStore):
        with store.connection() as connection:
            tables = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'forkpoint%'"
            )
            counts = [connection.execute(f"SELECT count(*) FROM {name}") for (name,) in tables]
            return sum(int(count.fetchone()[0]) for count in counts)
    assert isinstance(store, MongoStore)
    return int(store.collection.count_documents({}))


def filled(saver: ForkpointSaver, threads: int) -> ThreadCatalog:
    catalog = ThreadCatalog(saver)
    for n in range(threads):
        catalog.create(f"t{n:03}", tags=["kept"], metadata={"list": [1], "n": n})
    return catalog


@pytest.mark.parametrize("sort_by", SORTS)
@repeated(12, 800)
async def test_first_pages_leave_nothing_behind_while_threads_change(
    sort_by: str, times: int, api: Api, store: Store
) -> None:
    catalog = Api(filled(api.saver, 20), api.world)
    await catalog.search(limit=5)  # with the key of cursors
    rows, total = index_rows(store), everything(store)
    for n in range(times):
        await catalog.update(f"t{n % 20:03}", label="even" if n % 2 else "odd!")
        page = await catalog.search(LISTED if n % 3 else None, sort_by=sort_by, limit=5)
        assert len(page) == 5
        assert page.next_cursor is not None
    assert index_rows(store) <= rows + 2 * 20  # each has a label by now, for all and for its owner
    assert everything(store) <= total + 2 * 20


@pytest.mark.parametrize("sort_by", SORTS[:2])
@repeated(2, 200)
async def test_a_search_that_was_read_to_its_end_leaves_nothing_behind(
    sort_by: str, times: int, api: Api, store: Store
) -> None:
    catalog = Api(filled(api.saver, 12), api.world)
    await catalog.search(limit=5)  # with the key of cursors
    rows, total = index_rows(store), everything(store)
    for n in range(times):
        left_alone = await catalog.search(sort_by=sort_by, limit=5)
        cursor = None
        thread_ids: list[str] = []
        while not thread_ids or cursor is not None:
            page = await catalog.search(sort_by=sort_by, limit=5, cursor=cursor)
            thread_ids += [thread.thread_id for thread in page]
            cursor = page.next_cursor
            await catalog.update(f"t{n % 12:03}", metadata={"n": -1})
            await catalog.update(thread_ids[0], metadata={"n": -1})
        assert sorted(thread_ids) == [f"t{n:03}" for n in range(12)]
        assert left_alone.next_cursor is not None
    await catalog.search()
    assert index_rows(store) == rows
    assert everything(store) == total


@pytest.mark.in_turns
def test_a_search_in_which_a_list_is_looked_for_leaves_nothing_behind(
    store: Store, saver: ForkpointSaver
) -> None:
    """One page of it takes several looks at the store."""
    catalog = filled(saver, 12)
    store.add_threads(
        [Known(f"other {n:03}", None, [], {"list": [n]}, "idle", n + 1, n + 1) for n in range(600)]
    )
    catalog.search(limit=5)
    for n in range(2, 7):
        catalog.update(f"other {n:03}", metadata={"n": 0})
    catalog.search()
    rows, total = index_rows(store), everything(store)
    for n in range(2, 7):
        assert catalog.search(LISTED, descending=False, limit=5).next_cursor is not None
        assert catalog.count(LISTED) == 13
        catalog.update(f"other {n:03}", metadata={"n": -1})
    catalog.search()
    assert (index_rows(store), everything(store)) == (rows, total)


def test_searches_that_are_read_no_further_keep_a_bounded_past(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "MOST_SNAPSHOTS", 5)
    with SqliteSaver(str(path)) as saver:
        catalog = filled(saver, 3)
        store = SqliteStore(path)

        def read_on() -> None:
            first = catalog.search(limit=1)
            catalog.search(limit=1, cursor=first.next_cursor)
            catalog.update("t000", metadata={"n": -1})

        for _ in range(5):
            read_on()
        rows, total = index_rows(store), everything(store)
        for _ in range(5):
            read_on()
        assert (index_rows(store), everything(store)) == (rows, total)


def test_an_old_search_does_not_keep_what_only_later_ones_saw(path: Path) -> None:
    with SqliteSaver(str(path)) as saver:
        catalog = filled(saver, 12)
        first = catalog.search(limit=5)
        catalog.search(limit=5, cursor=first.next_cursor)
        rows = index_rows(store := SqliteStore(path))
        for _ in range(10):
            assert len(list(walked(catalog, limit=5))) == 12
            catalog.update("t000", metadata={"n": -1})
        terms = rows // 12
        assert index_rows(store) == rows + terms  # as it was for the search that may go on


@pytest.mark.parametrize(
    ("sort_by", "descending"),
    [
        ("updated_at", True),
        ("status", False),
        *(
            pytest.param(sort_by, descending, marks=pytest.mark.slow)
            for sort_by in ("updated_at", "status", "created_at", "thread_id")
            for descending in (True, False)
        ),
    ],
)
def test_between_two_pages_every_thread_may_change(
    sort_by: str, descending: bool, store: Store, saver: ForkpointSaver
) -> None:
    catalog = filled(saver, 10)
    cursor = None
    thread_ids: list[str] = []
    while not thread_ids or cursor is not None:
        page = catalog.search(sort_by=sort_by, descending=descending, limit=3, cursor=cursor)
        thread_ids += [thread.thread_id for thread in page]
        cursor = page.next_cursor
        for n in random.Random(len(thread_ids)).sample(range(10), 10):
            catalog.update(f"t{n:03}", metadata={"n": len(thread_ids)})
        for thread_id in thread_ids[:2]:
            put(saver, {"n": 1}, thread_id=thread_id)
    assert sorted(thread_ids) == [f"t{n:03}" for n in range(10)]


@pytest.mark.in_turns
def test_a_cursor_may_be_used_again(store: Store, saver: ForkpointSaver) -> None:
    catalog = filled(saver, 9)
    first = catalog.search(limit=3)
    ids = [
        [thread.thread_id for thread in catalog.search(limit=3, cursor=first.next_cursor)]
        for _ in range(3)
    ]
    assert ids[0] == ids[1] == ids[2]
    second = catalog.search(limit=3, cursor=first.next_cursor)
    last = [catalog.search(limit=3, cursor=second.next_cursor).items for _ in range(2)]
    assert last[0] == last[1]


def test_the_longest_cursor_is_taken() -> None:
    ids = [f"{n:04}" + "\ud800" * 996 for n in range(1000)]
    query = query_of({}, "updated_at", True, 1000)
    rest = query._replace(after=(2**60, ids[0]), snapshot=2**60)
    first_page = id_digests(ids)
    cursor = cursor_of(b"key", rest, {}, first_page)
    assert resume(b"key", query, {}, cursor) == (rest, first_page)


@pytest.mark.slow
def test_the_largest_first_page_has_a_cursor_that_is_taken(
    store: Store, saver: ForkpointSaver
) -> None:
    threads = [
        Known(f"{n:04}" + "x" * 996, None, ["a"], {}, "idle", n + 1, n + 1) for n in range(1003)
    ]
    saver.setup()
    store.add_threads(threads)
    catalog = ThreadCatalog(saver)
    first = catalog.search(limit=1000)
    second = catalog.search(limit=1000, cursor=first.next_cursor)
    ids = {thread.thread_id for thread in (*first, *second)}
    assert ids == {thread.thread_id for thread in threads}


def walked(catalog: ThreadCatalog, **options: Any) -> Iterator[str]:
    cursor = None
    while True:
        page = catalog.search(cursor=cursor, **options)
        yield from (thread.thread_id for thread in page)
        if (cursor := page.next_cursor) is None:
            return
