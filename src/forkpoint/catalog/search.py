"""Searching and counting threads, page by page, so that each thread is met once.

A store that keeps no past by itself takes no snapshot for a first page, since most first pages are
never followed by a second one. The cursor behind a first page names the threads on it. The second
page takes a snapshot and selects everything again as of that moment, without the threads of the
first page. The last page ends the snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from forkpoint.catalog.criteria import Criteria, is_exact, matches, query_of
from forkpoint.catalog.cursors import cursor_of, id_digests, resume
from forkpoint.catalog.heads import threads_of, values_of
from forkpoint.catalog.threads import Page, Thread
from forkpoint.errors import CorruptChunk, StorageFull
from forkpoint.filters import contains
from forkpoint.operations.context import Context
from forkpoint.operations.turns import rest
from forkpoint.storage.interface import Session, Storage
from forkpoint.storage.queries import NO_SNAPSHOT, ThreadQuery, ThreadRowPage
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.rows import ThreadRow

_T = TypeVar("_T")
_REST = 0.5  # of the time that a transaction took
_PAGE_ROWS = 500  # read at once where few of the threads match


class ThreadSearch(NamedTuple):
    """A page of a search, with checked arguments."""

    criteria: Criteria
    sort_by: str
    descending: bool
    limit: int
    cursor: str | None = None
    offset: int = 0
    """How many threads are left out before the first one. A page with an offset has no cursor."""
    with_expired: bool = False
    """Whether threads are returned as well that have expired and wait for a sweep."""


class RowPage(NamedTuple):
    """The records of a page of a search."""

    rows: list[ThreadRow]
    next_cursor: str | None
    damaged: list[CorruptChunk]
    """Why records are left out that are not what was written."""


def search(context: Context, request: ThreadSearch) -> Page[Thread]:
    """Return a page of threads."""
    page = search_rows(context, request, with_heads=True)
    return Page(threads_of(context, page.rows), page.next_cursor, page.damaged)


def search_rows(context: Context, request: ThreadSearch, *, with_heads: bool = False) -> RowPage:
    """Return the records of a page.

    Args:
        context: The store.
        request: The search.
        with_heads: Whether to read the newest checkpoints of the threads, too.
    """
    context.prepare()
    criteria, limit = request.criteria, request.limit
    at_once = max(limit, min(limit + request.offset, _PAGE_ROWS))
    query = query_of(criteria, request.sort_by, request.descending, at_once)
    first_page: set[bytes] = set()
    if request.cursor is not None:
        query, first_page = resume(context.store_key, query, criteria, request.cursor)
    with_heads = with_heads or "values" in criteria
    pages = ThreadPages(context.storage, query, first_page, with_heads=with_heads)
    page = RowPage([], None, [])
    passed: list[str] = []
    skipped = 0
    for row, place in pages.rows():
        try:
            check_record(context.codec.hashing, row)
        except CorruptChunk as error:
            passed.append(row.thread_id)
            page.damaged.append(error)
            continue
        if not _is_match(context, row, request):
            continue
        passed.append(row.thread_id)
        if skipped < request.offset:
            skipped += 1
            continue
        page.rows.append(row)
        if len(page.rows) == limit and not pages.is_at_end:
            rest, first_page = pages.stop(place, passed)
            if request.offset:
                return page
            cursor = cursor_of(context.store_key, rest, criteria, first_page)
            return page._replace(next_cursor=cursor)
    return page


def _is_match(context: Context, row: ThreadRow, request: ThreadSearch) -> bool:
    if not matches(row, request.criteria) or (row.is_expired and not request.with_expired):
        return False
    return has_values(context, row, request.criteria)


def has_values(context: Context, row: ThreadRow, criteria: Criteria) -> bool:
    """Return whether the values of a thread match, whose record was read with its head."""
    values = criteria.get("values")
    return values is None or contains(values_of(context, row), values)


def all_rows(context: Context, request: ThreadSearch) -> Iterator[list[ThreadRow]]:
    """Return the records of all pages of a search."""
    cursor: str | None = None
    while True:
        page = search_rows(context, request._replace(cursor=cursor))
        yield page.rows
        cursor = page.next_cursor
        if cursor is None:
            return


def count(context: Context, criteria: Criteria) -> int:
    """Return how many threads match and have not expired."""
    context.prepare()
    if is_exact(criteria):
        query = query_of(criteria, "updated_at", True, _PAGE_ROWS)
        return _with_current_index(context.storage, lambda session, _: session.search.count(query))
    request = ThreadSearch(criteria, "updated_at", True, _PAGE_ROWS)
    return sum(len(rows) for rows in all_rows(context, request))


def _with_current_index(storage: Storage, read: Callable[[Session, bool], _T]) -> _T:
    """Return what is read with a search index that is brought up to date first.

    Args:
        storage: The store.
        read: Takes a session, and whether what it writes is stored: not if the disk is full.
    """
    try:
        while True:
            began = time.monotonic()
            with storage.writing() as session:
                if not session.search.catch_up():
                    return read(session, True)
            rest(_REST * (time.monotonic() - began))  # others who write have their turn
    except StorageFull:
        with storage.unstored() as session:
            return read(session, False)


class ThreadPages:
    """The rest of a search, from its beginning or from where a cursor says.

    Args:
        storage: The store.
        query: Where it goes on.
        first_page: The digests of the threads that it leaves out: those of its first page.
        with_heads: Whether to read the newest checkpoints of the threads, too.

    Attributes:
        is_at_end: Whether the thread that was returned last is the last one of all.
    """

    def __init__(
        self,
        storage: Storage,
        query: ThreadQuery,
        first_page: set[bytes],
        *,
        with_heads: bool = False,
    ) -> None:
        self._storage = storage
        self._query = query
        self._first_page = first_page
        self._with_heads = with_heads
        self._is_first = query.after is None
        self._begins_snapshot = bool(first_page) and query.snapshot is None
        self._has_snapshot = bool(first_page)
        self.is_at_end = False

    def rows(self) -> Iterator[tuple[ThreadRow, tuple[Any, str]]]:
        """Return threads with their places."""
        returned: set[bytes] = set()
        while True:
            page = self._read()
            last = len(page.places) - 1
            for position, (row, place) in enumerate(zip(page.rows, page.places, strict=True)):
                self.is_at_end = page.is_last and position == last
                digests = id_digests([str(place[1])])
                if row is not None and self._first_page.isdisjoint(digests):
                    returned |= digests
                    yield row, place
            if page.is_last:
                self._end_snapshot()
                return
            if not page.goes_on:
                self._begins_snapshot, self._first_page = True, returned
            # Where few of the threads match, more are read at once.
            limit = max(self._query.limit, _PAGE_ROWS)
            self._query = self._query._replace(after=page.places[-1], limit=limit)

    def stop(self, place: tuple[Any, str], page: Sequence[str]) -> tuple[ThreadQuery, set[bytes]]:
        """Return where the next page goes on, and the digests of the threads that it leaves out.

        Args:
            place: The place of the last thread of this page.
            page: The ids of the threads on this page.
        """
        rest = self._query._replace(after=place)
        if not (self._is_first and self._has_snapshot):
            return rest, self._first_page
        self._end_snapshot()
        return rest._replace(snapshot=None), id_digests(page)

    def _read(self) -> ThreadRowPage:
        """Read the next page from the store."""
        is_first = self._query.after is None or self._begins_snapshot
        if is_first or self._query.snapshot == NO_SNAPSHOT:
            query, page = _with_current_index(self._storage, self._read_first)
        else:
            with self._storage.reading() as session:
                query, page = self._query, self._page(session, self._query)
        self._begins_snapshot = False
        self._has_snapshot |= not page.goes_on
        self._query = query._replace(snapshot=page.snapshot)
        return page

    def _read_first(self, session: Session, is_stored: bool) -> tuple[ThreadQuery, ThreadRowPage]:
        """Read the first page of a search or of a snapshot, or one that has no snapshot."""
        query = self._query
        if self._begins_snapshot:
            limit = query.limit + len(self._first_page)
            snapshot = session.search.begin_snapshot()
            query = query._replace(after=None, snapshot=snapshot, limit=limit)
        page = self._page(session, query)
        return query, page if is_stored else page._replace(snapshot=NO_SNAPSHOT)

    def _page(self, session: Session, query: ThreadQuery) -> ThreadRowPage:
        page = session.search.page(query)
        if not self._with_heads:
            return page
        return page._replace(rows=session.records.with_heads(page.rows))

    def _end_snapshot(self) -> None:
        if self._has_snapshot and self._query.snapshot is not None:
            with suppress(StorageFull), self._storage.writing() as session:
                session.search.end_snapshot(self._query.snapshot)  # otherwise it ends by its age
