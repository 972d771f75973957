"""SQLite: pages of threads, through the search index."""

from __future__ import annotations

from typing import Any

from forkpoint.sqlite.records import RECORD, SqliteRecords, thread_row
from forkpoint.sqlite.schema import EXPIRES
from forkpoint.sqlite.search_index import SearchIndex
from forkpoint.sqlite.search_statement import SearchStatement, is_by_time
from forkpoint.sqlite.statements import Statements
from forkpoint.storage.interface import Search
from forkpoint.storage.queries import NO_SNAPSHOT, ThreadQuery, ThreadRowPage
from forkpoint.storage.rows import ThreadRow

_SAMPLE = 20  # threads by which it is estimated how rare a term is
_FEW = 1000  # threads that are sorted rather than looked for among all in their order


class SqliteSearch(Search):
    """The role `Search`."""

    def __init__(self, sql: Statements, index: SearchIndex, records: SqliteRecords) -> None:
        self._sql = sql
        self._index = index
        self._records = records

    def catch_up(self) -> bool:
        return self._index.catch_up()

    def page(self, query: ThreadQuery) -> ThreadRowPage:
        snapshot = query.snapshot
        is_first = query.after is None and snapshot is None
        if is_first or snapshot == NO_SNAPSHOT:
            self._index.refresh()
        if snapshot is not None and not self._index.has_snapshot(snapshot):
            snapshot = None  # what it showed is not kept any more
        statement = self._statement(query._replace(snapshot=snapshot, limit=query.limit + 1))
        places = self._sql.rows(statement.ordered(), statement.values)
        is_last = len(places) <= query.limit
        places = places[: query.limit]
        rows = self._records.get_many([thread_id for _, thread_id in places])
        return ThreadRowPage(
            [rows.get(thread_id) for _, thread_id in places],
            places,
            query.snapshot,
            is_last,
            goes_on=not is_first or query.sort_by in ("created_at", "thread_id"),
        )

    def begin_snapshot(self) -> int:
        return self._index.begin_snapshot()

    def end_snapshot(self, snapshot: Any) -> None:
        self._index.end_snapshot(snapshot)

    def count(self, query: ThreadQuery) -> int:
        self._index.refresh()
        statement = self._statement(query._replace(snapshot=None, after=None))
        row = self._sql.row(
            f"SELECT count(*) FROM ({statement.unordered()}) WHERE thread_id NOT IN"
            f" (SELECT thread_id FROM forkpoint_threads WHERE {EXPIRES}"
            " AND updated_at + ttl <= :now AND on_expiry = 'delete'"
            " AND deleted_at IS NULL AND NOT provisional"
            " AND (lease_until IS NULL OR lease_until <= :now))",
            {**statement.values, "now": self._sql.now()},
        )
        assert row is not None
        return int(row[0])

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = self._sql.now()
        rows = self._sql.rows(
            f"{RECORD} AND t.ttl IS NOT NULL AND t.swept_at IS NOT t.updated_at"
            " AND t.updated_at + t.ttl <= ?"
            " AND (t.updated_at + t.ttl, t.key) > (?, ?) AND (? IS NULL OR t.owner = ?)"
            " ORDER BY t.updated_at + t.ttl, t.key LIMIT ?",
            (now, *(after or (0, 0)), owner, owner, limit),
        )
        return [thread_row(row, now) for row in rows]

    def larger_than(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = self._sql.now()
        rows = self._sql.rows(
            f"{RECORD} AND t.checkpoint_count > ? AND t.key > ? AND (? IS NULL OR t.owner = ?)"
            " ORDER BY t.key LIMIT ?",
            (more_than, after or 0, owner, owner, limit),
        )
        return [thread_row(row, now) for row in rows]

    def _statement(self, query: ThreadQuery) -> SearchStatement:
        """Return a statement that goes through the threads with the rarest of the terms."""
        terms = [*query.terms, *query.any_terms]
        if query.ids is not None or (is_by_time(query) and len(terms) == 1):
            return SearchStatement(query)
        if len(terms) > 1:
            rarity = {term: self._rarity(query, term) for term in terms}
            query = query._replace(terms=sorted(query.terms, key=rarity.__getitem__))
        first = query.terms[0]
        if is_by_time(query):
            is_rarer = any(rarity[first] < rarity[term] for term in query.any_terms)
            return SearchStatement(query, first if is_rarer else None)
        return SearchStatement(query, first if self._is_rare(first) else None)

    def _rarity(self, query: ThreadQuery, term: int) -> tuple[int, int]:
        """Return what is less for a term that fewer threads have: its page goes further back."""
        sample = SearchStatement(
            query._replace(
                terms=[term],
                any_terms=(),
                conditions=query.conditions_on("status", "updated_at"),
                sort_by="updated_at",
                after=query.after if is_by_time(query) else None,
                limit=_SAMPLE,
            )
        )
        places = self._sql.rows(sample.ordered(), sample.values)
        last = places[-1][0] if places else 0
        return len(places), last if query.descending else -last

    def _is_rare(self, term: int) -> bool:
        rows = self._sql.rows(
            "SELECT 1 FROM forkpoint_listing WHERE term = ? AND valid_to IS NULL LIMIT ?",
            (term, _FEW),
        )
        return len(rows) < _FEW
