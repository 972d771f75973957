"""SQLite: the records of threads, the index by which they are searched, and leases.

The search index is brought up to date by the first page of each search, and not by each put: then
a put changes nothing that is sorted by when a thread was active last. A row of the index is not
removed as long as a search that is read page by page may come to it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from itertools import product
from typing import Any

from forkpoint.filters import ALL_TERM, packed, thread_terms, unpacked
from forkpoint.sqlite_schema import LIVING, OF_ALL, UNLISTED
from forkpoint.sqlite_statements import Statements, batches, marks, time_now
from forkpoint.storage import (
    Description,
    LeaseRow,
    Selected,
    Selection,
    Stale,
    ThreadRef,
    ThreadRow,
    Usage,
)

STATUSES = ("busy", "error", "idle", "interrupted")
WALK_SECONDS = 3600
"""How long a search may be read page by page before it goes on with what there is by then."""

_RECORD = (
    "SELECT t.key, t.family, t.epoch, t.owner, t.thread_id, t.label, t.tags, t.metadata, t.ttl,"
    " t.status, t.created_at, t.updated_at, s.thread_id, t.parent_checkpoint_id,"
    " t.checkpoint_count, t.lease_holder, t.lease_since, t.lease_until, t.fence"
    " FROM forkpoint_threads AS t LEFT JOIN forkpoint_threads AS s ON s.key = t.parent"
    " WHERE t.deleted_at IS NULL AND NOT t.provisional"
)
_LIST = (
    "INSERT OR REPLACE INTO forkpoint_listing (term, status, listed_at, thread_id, born) VALUES "
)
_ENOUGH = 1000  # threads with a term, beyond which it does not matter how many there are
_LISTED_AT_ONCE = 10_000


class SqliteCatalog(Statements):
    """The primitives of `forkpoint.storage.Session` for the catalog."""

    def now(self) -> int:
        return time_now()

    def record(self, thread_id: str) -> ThreadRow | None:
        row = self.one(f"{_RECORD} AND t.thread_id = ?", thread_id)
        return _thread_row(row, time_now()) if row else None

    # Searching

    def select(self, selection: Selection) -> Selected:
        walk = selection.walk
        if selection.after is None:
            self._list_anew()
        elif (
            walk is not None
            and self.one("SELECT 1 FROM forkpoint_walks WHERE number = ?", walk) is None
        ):
            walk = None  # it took too long: what it is to see is not kept any more
        found = self._places(selection._replace(walk=walk, limit=selection.limit + 1))
        is_last = len(found) <= selection.limit
        places = found[: selection.limit]
        if selection.after is None and not is_last:
            walk = self.run(
                "INSERT INTO forkpoint_walks (began_at) VALUES (?)", time_now()
            ).lastrowid
        rows = self._records([thread_id for _, thread_id in places])
        return Selected([rows.get(place[1]) for place in places], places, walk, is_last)

    def count(self, selection: Selection) -> int:
        self._list_anew()
        counted = _Query(selection._replace(walk=None, after=None))
        listed = self.one(f"SELECT count(*) FROM ({counted.unordered()})", *counted.values)
        assert listed is not None
        return int(listed[0])

    def _places(self, selection: Selection) -> list[tuple[Any, str]]:
        if len(selection.terms) > 1:
            selection = selection._replace(terms=sorted(selection.terms, key=self._frequency))
        query = _Query(selection)
        return self.all(query.ordered(), *query.values)

    def _frequency(self, term: int) -> int:
        counted = self.one(
            "SELECT count(*) FROM (SELECT 1 FROM forkpoint_listing WHERE term = ? LIMIT ?)",
            term,
            _ENOUGH,
        )
        assert counted is not None
        return int(counted[0])

    def _records(self, thread_ids: Collection[str]) -> dict[str, ThreadRow]:
        now = time_now()
        found: dict[str, ThreadRow] = {}
        for batch in batches(thread_ids):
            for row in self.all(f"{_RECORD} AND t.thread_id IN ({marks(batch)})", *batch):
                one = _thread_row(row, now)
                found[one.thread_id] = one
        return found

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = time_now()
        rows = self.all(
            f"{_RECORD} AND t.ttl IS NOT NULL AND t.updated_at + t.ttl <= ?"
            " AND (t.updated_at + t.ttl, t.key) > (?, ?) AND (? IS NULL OR t.owner = ?)"
            " ORDER BY t.updated_at + t.ttl, t.key LIMIT ?",
            now,
            *(after or (0, 0)),
            owner,
            owner,
            limit,
        )
        return [_thread_row(row, now) for row in rows]

    def grown(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = time_now()
        rows = self.all(
            f"{_RECORD} AND t.checkpoint_count > ? AND t.key > ? AND (? IS NULL OR t.owner = ?)"
            " ORDER BY t.key LIMIT ?",
            more_than,
            after or 0,
            owner,
            owner,
            limit,
        )
        return [_thread_row(row, now) for row in rows]

    # The search index

    def _list_anew(self) -> None:
        """Bring the search index up to date, and forget the walks that took too long."""
        now = time_now()
        self.run(
            "UPDATE forkpoint_threads SET lease_holder = NULL, lease_since = NULL,"
            " lease_until = NULL, fence = fence + 1 WHERE lease_until <= ?",
            now,
        )
        self.run("DELETE FROM forkpoint_walks WHERE began_at < ?", now - WALK_SECONDS * 1_000_000)
        self.run(
            "DELETE FROM forkpoint_listing WHERE gone IS NOT NULL AND gone <"
            " coalesce((SELECT min(number) FROM forkpoint_walks), gone + 1)"
        )
        while self._list_some():
            pass

    def _list_some(self) -> bool:
        rows = self.all(
            "SELECT t.key, t.thread_id, t.owner, t.label, t.tags, t.metadata, s.thread_id,"
            " t.updated_at, CASE WHEN t.lease_until IS NULL THEN t.status ELSE 'busy' END,"
            " t.terms FROM (SELECT key AS k FROM forkpoint_threads"
            f" WHERE {UNLISTED} LIMIT ?) JOIN forkpoint_threads AS t ON t.key = k"
            " LEFT JOIN forkpoint_threads AS s ON s.key = t.parent",
            _LISTED_AT_ONCE,
        )
        born = self._walk()
        listed: list[tuple[Any, ...]] = []
        changed: list[tuple[Any, ...]] = []
        for key, thread_id, owner, label, tags, metadata, source, at, status, terms in rows:
            if terms is None:
                found = thread_terms(owner, label, json.loads(tags), metadata, source)
                terms = packed(found)
            else:
                self._unlist(key)
                found = unpacked(terms)
            listed += ((term, status, at, thread_id, born) for term in found)
            changed.append((terms, at, status, key))
        self.insert(_LIST, sorted(listed))  # neighbours together
        self.many(
            "UPDATE forkpoint_threads SET terms = ?, listed_at = ?, listed_status = ?"
            " WHERE key = ?",
            changed,
        )
        return len(rows) == _LISTED_AT_ONCE

    def _unlist(self, key: int) -> None:
        """Take a thread out of the search index, but for walks that have begun."""
        row = self.one(
            "SELECT thread_id, listed_status, listed_at, terms FROM forkpoint_threads"
            " WHERE key = ? AND listed_at IS NOT NULL",
            key,
        )
        if row is None:
            return
        *place, terms = row
        walk = self._walk()
        for batch in batches(unpacked(terms)):
            which = (
                f"WHERE term IN ({marks(batch)}) AND gone IS NULL AND thread_id = ?"
                " AND status = ? AND listed_at = ?"
            )
            self.run(f"DELETE FROM forkpoint_listing {which} AND born >= ?", *batch, *place, walk)
            if walk:
                self.run(f"UPDATE forkpoint_listing SET gone = ? {which}", walk, *batch, *place)
        self.run(
            "UPDATE forkpoint_threads SET terms = NULL, listed_at = NULL, listed_status = NULL"
            " WHERE key = ?",
            key,
        )

    def _walk(self) -> int:
        """Return the number of the walk that began last."""
        row = self.one("SELECT max(number) FROM forkpoint_walks")
        return row[0] or 0 if row else 0

    # Describing

    def add(self, thread_id: str, owner: str | None, described: Description) -> bool:
        known = self.one(
            "SELECT key, provisional, owner FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            thread_id,
        )
        if known is not None:
            key, is_provisional, theirs = known
            if not is_provisional or theirs != owner:
                return False
        else:
            now = time_now()
            key = self.run(
                "INSERT INTO forkpoint_threads (thread_id, family, owner, created_at, updated_at,"
                " dead_until) VALUES (?, 0, ?, ?, ?, (SELECT max(dead_until) FROM"
                " forkpoint_threads WHERE thread_id = ? AND deleted_at IS NOT NULL))",
                thread_id,
                owner,
                now,
                now,
                thread_id,
            ).lastrowid
            self.run("UPDATE forkpoint_threads SET family = key WHERE key = ?", key)
        self.run("UPDATE forkpoint_threads SET provisional = 0 WHERE key = ?", key)
        self._describe(key, described)
        self._list_some()
        return True

    def describe(self, seen: ThreadRow, described: Description) -> bool:
        self._unlist(seen.thread.key)
        self._describe(seen.thread.key, described)
        self.run(
            "UPDATE forkpoint_threads SET updated_at = max(updated_at + 1, ?) WHERE key = ?",
            time_now(),
            seen.thread.key,
        )
        self._list_some()
        return True

    def _describe(self, key: int | None, described: Description) -> None:
        self.run(
            "UPDATE forkpoint_threads SET label = ?, tags = ?, metadata = ?, ttl = ? WHERE key = ?",
            described.label,
            json.dumps(list(described.tags)),
            described.metadata,
            described.ttl,
            key,
        )

    # Leases

    def lease(
        self, thread: ThreadRef, holder: str, ttl: int, *, take_over: bool
    ) -> LeaseRow | None:
        now = time_now()
        row = self.one(
            "SELECT lease_until, fence FROM forkpoint_threads WHERE key = ? AND deleted_at IS NULL",
            thread.key,
        )
        if row is None:
            raise Stale
        until, fence = row
        if until is not None and until > now and not take_over:
            return None
        leased = LeaseRow(holder, now, now + ttl, fence + 1)
        self.run(
            "UPDATE forkpoint_threads SET lease_holder = ?, lease_since = ?, lease_until = ?,"
            " fence = ? WHERE key = ?",
            *leased,
            thread.key,
        )
        return leased

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        renewed = self.run(
            "UPDATE forkpoint_threads SET lease_until = max(lease_until, ?) WHERE key = ?"
            " AND fence = ? AND lease_until IS NOT NULL AND deleted_at IS NULL",
            time_now() + ttl,
            thread.key,
            fence,
        )
        return renewed.rowcount == 1

    def release(self, thread: ThreadRef, fence: int) -> None:
        self.run(
            "UPDATE forkpoint_threads SET lease_holder = NULL, lease_since = NULL,"
            " lease_until = NULL, fence = fence + 1 WHERE key = ? AND fence = ?",
            thread.key,
            fence,
        )

    # What a thread takes

    def usage(self, thread: ThreadRef) -> Usage:
        checkpoints = self.one(
            "SELECT count(*) FILTER (WHERE NOT hidden), count(DISTINCT run_id),"
            " total(length(metadata) + length(refs) + length(content) + length(seal))"
            " FROM forkpoint_checkpoints WHERE thread = ?",
            thread.key,
        )
        writes = self.one(
            "SELECT count(*), total(length(refs) + length(content) + length(seal))"
            " FROM forkpoint_writes WHERE thread = ?",
            thread.key,
        )
        assert checkpoints is not None
        assert writes is not None
        size = int(checkpoints[2]) + int(writes[1])
        return Usage(checkpoints[0], writes[0], checkpoints[1], size)

    def sizes(self, family: Any, digests: Collection[bytes]) -> int:
        size = 0
        for batch in batches(digests):
            row = self.one(
                "SELECT total(length(refs) + length(content)) FROM forkpoint_chunks"
                f" WHERE family = ? AND digest IN ({marks(batch)})",
                family,
                *batch,
            )
            size += int(row[0]) if row else 0
        return size


def _thread_row(row: Sequence[Any], now: int) -> ThreadRow:
    label, tags, metadata, ttl, status = row[5:10]
    holder, since, until, fence = row[15:19]
    lease = LeaseRow(holder, since, until, fence) if until is not None and until > now else None
    return ThreadRow(
        ThreadRef(*row[:4]),
        row[4],
        Description(label, tuple(json.loads(tags)), metadata, ttl),
        "busy" if lease is not None else status,
        created_at=row[10],
        updated_at=row[11],
        source_thread_id=row[12],
        source_checkpoint_id=row[13],
        checkpoint_count=row[14],
        lease=lease,
        fence=fence,
    )


class _Query:
    """The SQL that selects the places and ids of threads, and the values that it binds."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._order = "DESC" if selection.descending else "ASC"
        self._beyond = "<" if selection.descending else ">"
        self.values: list[Any] = []

    def ordered(self) -> str:
        """Return the SQL for a page in order."""
        selection = self._selection
        if selection.sort_by == "updated_at" and selection.ids is None:
            streams = [f"SELECT * FROM ({stream})" for stream in self._streams(is_page=True)]
            order = f"ORDER BY place {self._order}, thread_id {self._order} LIMIT ?"
            self.values.append(selection.limit)
            return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(streams)}) {order}"
        return self._scan(is_page=True)

    def unordered(self) -> str:
        """Return the SQL for all that there are, to be counted."""
        selection = self._selection
        if selection.ids is None:
            return f"SELECT DISTINCT thread_id FROM ({' UNION ALL '.join(self._streams())})"
        return self._scan()

    def _streams(self, *, is_page: bool = False) -> Iterable[str]:
        """Return a query for each range of the search index, sorted by time as the index is."""
        selection = self._selection
        first, *others = selection.terms
        drivers = selection.any_terms or (first,)
        rest = [first, *others] if selection.any_terms else others
        for term, status in product(drivers, selection.statuses or STATUSES):
            conditions = ["l.term = ?", "l.status = ?"]
            self.values += [term, status]
            conditions.append(self._seen("l"))
            for low, high in [selection.updated]:
                conditions += self._range("l.listed_at", low, high)
            if selection.created != (None, None):
                created = " AND ".join(self._range("t.created_at", *selection.created))
                conditions.append(
                    "EXISTS (SELECT 1 FROM forkpoint_threads AS t WHERE t.thread_id = l.thread_id"
                    f" AND t.deleted_at IS NULL AND {created})"
                )
            conditions += [self._has(one, "l") for one in rest]
            order = ""
            if is_page:
                conditions += self._after("l.listed_at", "l.thread_id")
                order = f" ORDER BY l.listed_at {self._order}, l.thread_id {self._order} LIMIT ?"
                self.values.append(selection.limit)
            yield (
                "SELECT l.listed_at AS place, l.thread_id AS thread_id"
                f" FROM forkpoint_listing AS l WHERE {' AND '.join(conditions)}{order}"
            )

    def _scan(self, *, is_page: bool = False) -> str:
        """Return a query that goes through threads in their order, and looks at each."""
        selection = self._selection
        if selection.sort_by == "status" and selection.ids is None:
            table, of = "forkpoint_listing", "t"
            place = status = "t.status"
            listed = "t.listed_at"
            conditions = [f"t.{OF_ALL}", self._seen("t")]
        else:
            table, of = "forkpoint_threads", "l"
            status, listed = "t.listed_status", "t.listed_at"
            place = {"status": status, "updated_at": listed}.get(
                selection.sort_by, f"t.{selection.sort_by}"
            )
            conditions = [LIVING.replace("deleted_at", "t.deleted_at").replace("prov", "t.prov")]
        if selection.ids is not None:
            conditions.append("t.thread_id IN (SELECT value FROM json_each(?))")
            self.values.append(json.dumps(list(selection.ids)))
        if selection.statuses:
            conditions.append(f"{status} IN ({marks(selection.statuses)})")
            self.values += selection.statuses
        conditions += self._range(listed, *selection.updated)
        if selection.created != (None, None):
            if of == "t":
                created = " AND ".join(self._range("c.created_at", *selection.created))
                conditions.append(
                    "EXISTS (SELECT 1 FROM forkpoint_threads AS c WHERE c.thread_id = t.thread_id"
                    f" AND c.deleted_at IS NULL AND {created})"
                )
            else:
                conditions += self._range("t.created_at", *selection.created)
        for term in selection.terms:
            if term != ALL_TERM:
                conditions.append(self._has(term, "t", of == "l"))
        if selection.any_terms:
            some = [self._has(term, "t", of == "l") for term in selection.any_terms]
            conditions.append(f"({' OR '.join(some)})")
        order = ""
        if is_page:
            conditions += self._after(place, "t.thread_id")
            by = f"{place} {self._order}, " if place != "t.thread_id" else ""
            order = f" ORDER BY {by}t.thread_id {self._order} LIMIT ?"
            self.values.append(selection.limit)
        return (
            f"SELECT {place} AS place, t.thread_id AS thread_id FROM {table} AS t"
            f" WHERE {' AND '.join(conditions)}{order}"
        )

    def _seen(self, alias: str) -> str:
        """Return the condition that a row of the index is one that the walk sees."""
        walk = self._selection.walk
        if walk is None:
            return f"{alias}.gone IS NULL"
        self.values += [walk, walk]
        return f"{alias}.born < ? AND ({alias}.gone IS NULL OR {alias}.gone >= ?)"

    def _has(self, term: int, alias: str, of_thread: bool = False) -> str:
        """Return the condition that a thread has a term as well."""
        status = f"{alias}.{'listed_status' if of_thread else 'status'}"
        self.values.append(term)
        condition = (
            "EXISTS (SELECT 1 FROM forkpoint_listing AS o WHERE o.term = ?"
            f" AND o.status = {status} AND o.listed_at = {alias}.listed_at"
            f" AND o.thread_id = {alias}.thread_id AND "
        )
        return condition + ("o.gone IS NULL)" if of_thread else f"{self._seen('o')})")

    def _range(self, column: str, low: int | None, high: int | None) -> list[str]:
        conditions = []
        for bound, sign in ((low, ">="), (high, "<")):
            if bound is not None:
                conditions.append(f"{column} {sign} ?")
                self.values.append(bound)
        return conditions

    def _after(self, place: str, thread_id: str) -> list[str]:
        if self._selection.after is None:
            return []
        self.values += self._selection.after
        return [f"({place}, {thread_id}) {self._beyond} (?, ?)"]
