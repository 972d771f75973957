"""SQLite: the statements that search threads through the search index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from typing import Any

from forkpoint.filters import ALL_TERM
from forkpoint.sqlite.schema import OF_ALL
from forkpoint.storage.queries import ThreadQuery

# What a row of the index is sorted by. When the state changed stands in the row for `ALL_TERM`.
_INDEX_PLACES = {
    "updated_at": "t.listed_at",
    "status": "t.status",
    "state_updated_at": (
        "(SELECT a.state_updated_at FROM forkpoint_listing AS a"
        f" WHERE a.term = {ALL_TERM} AND a.status = t.status AND a.listed_at = t.listed_at"
        " AND a.thread_id = t.thread_id AND a.valid_from = t.valid_from)"
    ),
}
_MOST_SEPARATE = 8  # terms that are looked for one by one, the rarest first
_INDEXED_FIELDS = {"thread_id", "status", "updated_at"}
_IN = "IN (SELECT value FROM json_each({}))"
_COMPARISONS = {
    "in": f"{{}} {_IN}",
    "contains": "instr({}, {}) > 0",
    ">=": "{} >= {}",
    "<": "{} < {}",
}


def is_by_time(query: ThreadQuery) -> bool:
    """Return whether threads are asked for in the order that the search index has."""
    return query.sort_by == "updated_at" and query.ids is None


class SearchStatement:
    """The SQL that selects the places and ids of threads.

    Args:
        query: Which threads.
        driver: The term whose rows of the index are read, and compared with the rest of the query.
            None leaves it to the order: all threads, or those of the first term, or of any of
            several.

    Attributes:
        values: The values to bind, by name.
    """

    def __init__(self, query: ThreadQuery, driver: int | None = None) -> None:
        self._query = query
        self._driver = driver
        self._direction = "DESC" if query.descending else "ASC"
        self.values: dict[str, Any] = {}

    def _bind(self, value: Any) -> str:
        """Return the name that stands for a value in the SQL."""
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f":{name}"

    def ordered(self) -> str:
        """Return the SQL for a page in order."""
        if not is_by_time(self._query):
            return self._sorted(is_page=True)
        parts = [f"SELECT * FROM ({part})" for part in self._by_time(is_page=True)]
        return (
            f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)}) ORDER BY place"
            f" {self._direction}, thread_id {self._direction} LIMIT {self._bind(self._query.limit)}"
        )

    def unordered(self) -> str:
        """Return the SQL for all threads, to be counted."""
        if not is_by_time(self._query):
            return self._sorted(is_page=False)
        parts = self._by_time(is_page=False)
        return f"SELECT DISTINCT thread_id FROM ({' UNION ALL '.join(parts)})"

    def _by_time(self, *, is_page: bool) -> list[str]:
        """Return a query for each range of the search index, sorted by time as the index is."""
        query, driver = self._query, self._driver
        if driver is None and not query.any_terms:
            driver = query.terms[0]
        return [
            self._select(
                "t.listed_at",
                "forkpoint_listing AS t",
                [
                    f"t.term = {self._bind(term)}",
                    f"t.status = {self._bind(status)}",
                    *self._of_index_row(),
                    *self._other_terms(term if driver is None else driver, "t.status"),
                ],
                is_page=is_page,
            )
            for term, status in product(
                query.any_terms if driver is None else (driver,), query.statuses
            )
        ]

    def _sorted(self, *, is_page: bool) -> str:
        """Return a query that goes through threads in another order, or sorts some."""
        query, driver = self._query, self._driver
        if query.sort_by in _INDEX_PLACES:  # on rows of the index, which a snapshot keeps
            place, status = _INDEX_PLACES[query.sort_by], "t.status"
            table = "forkpoint_listing AS t"
            if driver is None:
                table = f"{table} INDEXED BY forkpoint_listing_status"
            term = OF_ALL if driver is None else f"term = {self._bind(driver)}"
            statuses = ", ".join(map(self._bind, query.statuses))
            conditions = [f"t.{term}", f"t.status IN ({statuses})", *self._of_index_row()]
        else:  # on threads, by what of them never changes
            place, status = f"t.{query.sort_by}", "t.listed_status"
            table = "forkpoint_threads AS t"
            if driver is not None:
                table = (
                    "(SELECT thread_id AS id FROM forkpoint_listing"
                    f" WHERE term = {self._bind(driver)} AND valid_to IS NULL)"
                    f" CROSS JOIN {table} ON t.thread_id = id"
                )
            conditions = ["t.deleted_at IS NULL", "NOT t.provisional"]
            conditions += self._compare("t.listed_status", "status")
            conditions += self._compare("t.listed_at", "updated_at")
            conditions += self._of_record("t")
        conditions += self._compare("t.thread_id", "thread_id")
        conditions += self._other_terms(driver, status)
        return self._select(place, table, conditions, is_page=is_page)

    def _select(self, place: str, table: str, conditions: list[str], *, is_page: bool) -> str:
        order = ""
        if is_page:
            if self._query.after is not None:
                beyond = "<" if self._query.descending else ">"
                after = ", ".join(map(self._bind, self._query.after))
                conditions = [*conditions, f"({place}, t.thread_id) {beyond} ({after})"]
            by = f"{place} {self._direction}, " if place != "t.thread_id" else ""
            order = (
                f" ORDER BY {by}t.thread_id {self._direction} LIMIT {self._bind(self._query.limit)}"
            )
        return (
            f"SELECT {place} AS place, t.thread_id AS thread_id FROM {table}"
            f" WHERE {' AND '.join(conditions)}{order}"
        )

    def _is_visible(self, alias: str) -> str:
        """Return the condition that the snapshot of the query has a row of the index."""
        if self._query.snapshot is None:
            return f"{alias}.valid_to IS NULL"
        snapshot = self._bind(self._query.snapshot)
        return (
            f"{alias}.valid_from < {snapshot}"
            f" AND ({alias}.valid_to IS NULL OR {alias}.valid_to >= {snapshot})"
        )

    def _other_terms(self, driver: int | None, status: str) -> list[str]:
        """Return the conditions that a thread has the other terms, too.

        Args:
            driver: The term that it is known to have.
            status: The column of its status: `t.status` where `t` is a row of the index.
        """
        query = self._query
        terms = [term for term in query.terms if term not in (driver, ALL_TERM)]
        if len(terms) > _MOST_SEPARATE:  # SQLite limits how often a statement names a table
            rows = self._rows_of(terms, status)
            conditions = [f"{len(terms)} = (SELECT count(DISTINCT o.term) {rows})"]
        else:
            conditions = [f"EXISTS (SELECT 1 {self._rows_of([term], status)})" for term in terms]
        if query.any_terms and driver not in query.any_terms:
            conditions.append(f"EXISTS (SELECT 1 {self._rows_of(query.any_terms, status)})")
        return conditions

    def _rows_of(self, terms: Iterable[int], status: str) -> str:
        """Return the rest of a query for the rows of the index that a thread has for some terms."""
        first, *more = terms
        if more:
            is_term = _IN.format(self._bind(json.dumps([first, *more])))
        else:
            is_term = f"= {self._bind(first)}"
        visible = self._is_visible("o") if status == "t.status" else "o.valid_to IS NULL"
        return (
            f"FROM forkpoint_listing AS o WHERE o.term {is_term}"
            f" AND {visible} AND o.status = {status} AND o.listed_at = t.listed_at"
            " AND o.thread_id = t.thread_id"
        )

    def _of_index_row(self) -> list[str]:
        """Return the conditions on a row of the index, its status and terms aside."""
        conditions = [self._is_visible("t"), *self._compare("t.listed_at", "updated_at")]
        if of_record := self._of_record("c"):
            conditions.append(
                "EXISTS (SELECT 1 FROM forkpoint_threads AS c WHERE c.thread_id = t.thread_id"
                f" AND c.deleted_at IS NULL AND {' AND '.join(of_record)})"
            )
        return conditions

    def _of_record(self, alias: str) -> list[str]:
        """Return the conditions on fields of the record that the index does not have."""
        fields = {condition.field for condition in self._query.conditions} - _INDEXED_FIELDS
        return [sql for name in sorted(fields) for sql in self._compare(f"{alias}.{name}", name)]

    def _compare(self, column: str, field: str) -> list[str]:
        """Return the conditions on a field of the record, whose value a column has."""
        return [
            _COMPARISONS[operator].format(
                column, self._bind(json.dumps(list(value)) if operator == "in" else value)
            )
            for _, operator, value in self._query.conditions_on(field)
        ]
