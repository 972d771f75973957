"""SQLite: the statements that search threads through the search index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from forkpoint.filters import ALL_TERM
from forkpoint.sqlite.schema import OF_ALL
from forkpoint.sqlite.statements import marks
from forkpoint.storage.queries import ThreadQuery

# Places of a row of the index. When the state changed stands in the row for the term of all.
_SORTED_ROWS = {
    "updated_at": "t.listed_at",
    "status": "t.status",
    "state_updated_at": (
        "(SELECT a.state_updated_at FROM forkpoint_listing AS a"
        f" WHERE a.term = {ALL_TERM} AND a.status = t.status AND a.listed_at = t.listed_at"
        " AND a.thread_id = t.thread_id AND a.born = t.born)"
    ),
}
_MOST_SEPARATE = 8  # terms that are looked for one by one, the rarest first


_NOW = "o.gone IS NULL"
_INDEXED = {"thread_id", "status", "updated_at"}  # fields that the search index has, too
_COMPARED = {
    "in": "{} IN (SELECT value FROM json_each(?))",
    "contains": "instr({}, ?) > 0",
    ">=": "{} >= ?",
    "<": "{} < ?",
}


def is_by_time(selection: ThreadQuery) -> bool:
    """Return whether threads are asked for in the order that the search index has."""
    return selection.sort_by == "updated_at" and selection.ids is None


class SearchStatement:
    """The SQL that selects the places and ids of threads, and the values that it binds.

    Args:
        selection: Which threads.
        driver: The term whose rows of the index are gone through; None leaves it to the order: all
            threads, or those of the first term, or of any of several.
    """

    def __init__(self, selection: ThreadQuery, driver: int | None = None) -> None:
        self._selection = selection
        self._driver = driver
        self._order = "DESC" if selection.descending else "ASC"
        self._beyond = "<" if selection.descending else ">"
        self.values: list[Any] = []

    def ordered(self) -> str:
        """Return the SQL for a page in order."""
        if not is_by_time(self._selection):
            return self._sorted(is_page=True)
        streams = [f"SELECT * FROM ({stream})" for stream in self._streams(is_page=True)]
        order = f"ORDER BY place {self._order}, thread_id {self._order} LIMIT ?"
        self.values.append(self._selection.limit)
        return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(streams)}) {order}"

    def unordered(self) -> str:
        """Return the SQL for all that there are, to be counted."""
        if not is_by_time(self._selection):
            return self._sorted()
        return f"SELECT DISTINCT thread_id FROM ({' UNION ALL '.join(self._streams())})"

    def _streams(self, *, is_page: bool = False) -> Iterable[str]:
        """Return a query for each range of the search index, sorted by time as the index is."""
        selection = self._selection
        driver = self._driver
        if driver is None and not selection.any_terms:
            driver = selection.terms[0]
        drivers = selection.any_terms if driver is None else (driver,)
        for term, status in product(drivers, selection.statuses):
            self.values += [term, status]
            conditions = ["t.term = ?", "t.status = ?", self._seen("t")]
            conditions += self._compare("t.listed_at", "updated_at")
            conditions += self._by_record()
            conditions += self._terms("t", but=term if driver is None else driver)
            order = ""
            if is_page:
                conditions += self._after("t.listed_at")
                order = f" ORDER BY t.listed_at {self._order}, t.thread_id {self._order} LIMIT ?"
                self.values.append(selection.limit)
            yield (
                "SELECT t.listed_at AS place, t.thread_id AS thread_id"
                f" FROM forkpoint_listing AS t WHERE {' AND '.join(conditions)}{order}"
            )

    def _sorted(self, *, is_page: bool = False) -> str:
        """Return a query that goes through threads in another order, or sorts some."""
        if self._selection.sort_by in _SORTED_ROWS:
            return self._sorted_rows(is_page)
        return self._sorted_threads(is_page)

    def _sorted_rows(self, is_page: bool) -> str:
        """Return a query on rows of the index, which stay while a search is read."""
        selection = self._selection
        if self._driver is not None:
            table, conditions = "forkpoint_listing AS t", ["t.term = ?"]
            self.values.append(self._driver)
        else:
            table = "forkpoint_listing AS t INDEXED BY forkpoint_listing_status"
            conditions = [f"t.{OF_ALL}"]
        statuses = selection.statuses
        conditions.append(f"t.status IN ({marks(statuses)})")
        self.values += statuses
        conditions.append(self._seen("t"))
        conditions += self._compare("t.listed_at", "updated_at")
        conditions += self._by_record()
        place = _SORTED_ROWS[selection.sort_by]
        return self._rest(table, conditions, place, "t", is_page)

    def _sorted_threads(self, is_page: bool) -> str:
        """Return a query on threads, by what of them never changes."""
        selection = self._selection
        table = "forkpoint_threads AS t"
        if self._driver is not None:
            table = (
                "(SELECT thread_id AS id FROM forkpoint_listing WHERE term = ? AND gone IS NULL)"
                f" CROSS JOIN {table} ON t.thread_id = id"
            )
            self.values.append(self._driver)
        conditions = ["t.deleted_at IS NULL", "NOT t.provisional"]
        conditions += self._compare("t.listed_status", "status")
        conditions += self._compare("t.listed_at", "updated_at")
        conditions += self._of_record("t")
        return self._rest(table, conditions, f"t.{selection.sort_by}", "listed", is_page)

    def _rest(
        self, table: str, conditions: list[str], place: str, alias: str, is_page: bool
    ) -> str:
        selection = self._selection
        conditions += self._compare("t.thread_id", "thread_id")
        conditions += self._terms(alias, but=self._driver)
        order = ""
        if is_page:
            conditions += self._after(place)
            by = f"{place} {self._order}, " if place != "t.thread_id" else ""
            order = f" ORDER BY {by}t.thread_id {self._order} LIMIT ?"
            self.values.append(selection.limit)
        return (
            f"SELECT {place} AS place, t.thread_id AS thread_id FROM {table}"
            f" WHERE {' AND '.join(conditions)}{order}"
        )

    def _seen(self, alias: str) -> str:
        """Return the condition that a row of the index is one that the walk sees."""
        walk = self._selection.snapshot
        if walk is None:
            return f"{alias}.gone IS NULL"
        self.values += [walk, walk]
        return f"{alias}.born < ? AND ({alias}.gone IS NULL OR {alias}.gone >= ?)"

    def _terms(self, of: str, but: int | None) -> list[str]:
        """Return the conditions that a row of the index, or a thread, has the other terms, too."""
        selection = self._selection
        all_terms = [term for term in selection.terms if term not in (but, ALL_TERM)]
        if len(all_terms) > _MOST_SEPARATE:  # SQLite limits how often a statement names a table
            self.values.append(len(all_terms))
            conditions = [f"? = (SELECT count(DISTINCT o.term) {self._rows_of(all_terms, of)})"]
        else:
            conditions = [f"EXISTS (SELECT 1 {self._rows_of([term], of)})" for term in all_terms]
        if selection.any_terms and but not in selection.any_terms:
            conditions.append(f"EXISTS (SELECT 1 {self._rows_of(selection.any_terms, of)})")
        return conditions

    def _rows_of(self, terms: Sequence[int], of: str) -> str:
        """Return the rest of a query for the rows of the index that a thread has for some terms."""
        self.values.append(terms[0] if len(terms) == 1 else json.dumps(list(terms)))
        which = "= ?" if len(terms) == 1 else "IN (SELECT value FROM json_each(?))"
        status, seen = ("t.status", self._seen("o")) if of == "t" else ("t.listed_status", _NOW)
        return (
            f"FROM forkpoint_listing AS o WHERE o.term {which}"
            f" AND {seen} AND o.status = {status} AND o.listed_at = t.listed_at"
            " AND o.thread_id = t.thread_id"
        )

    def _by_record(self) -> list[str]:
        """Return the conditions on what the record alone says of the thread of a row `t`."""
        conditions = self._of_record("c")
        if not conditions:
            return []
        return [
            "EXISTS (SELECT 1 FROM forkpoint_threads AS c WHERE c.thread_id = t.thread_id"
            f" AND c.deleted_at IS NULL AND {' AND '.join(conditions)})"
        ]

    def _of_record(self, alias: str) -> list[str]:
        fields = {condition.field for condition in self._selection.conditions} - _INDEXED
        return [sql for name in sorted(fields) for sql in self._compare(f"{alias}.{name}", name)]

    def _compare(self, column: str, field: str) -> list[str]:
        """Return the conditions on a field of the record, which stands in a column."""
        conditions = []
        for _, operator, value in self._selection.conditions_on(field):
            conditions.append(_COMPARED[operator].format(column))
            self.values.append(json.dumps(list(value)) if operator == "in" else value)
        return conditions

    def _after(self, place: str) -> list[str]:
        if self._selection.after is None:
            return []
        self.values += self._selection.after
        return [f"({place}, t.thread_id) {self._beyond} (?, ?)"]
