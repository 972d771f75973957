"""Searching and counting threads, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from forkpoint.catalog.criteria import Criteria, is_exact, matches, query_of
from forkpoint.catalog.cursors import cursor_of, resume
from forkpoint.catalog.heads import threads_of, values_of
from forkpoint.catalog.pages import PAGE_ROWS, ThreadPages, with_current_index
from forkpoint.catalog.threads import Page, Thread
from forkpoint.errors import CorruptChunk
from forkpoint.filters import contains
from forkpoint.operations.context import Context
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.rows import ThreadRow


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
    criteria, limit = request.criteria, request.limit
    at_once = max(limit, min(limit + request.offset, PAGE_ROWS))
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
    values = request.criteria.get("values")
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
    if is_exact(criteria):
        query = query_of(criteria, "updated_at", True, PAGE_ROWS)
        return with_current_index(context.storage, lambda session, _: session.search.count(query))
    request = ThreadSearch(criteria, "updated_at", True, PAGE_ROWS)
    return sum(len(rows) for rows in all_rows(context, request))
