"""SQLite: the records of threads, the index by which they are searched, and leases.

The search index is brought up to date by the first page of each search, and not by each put: then
a put changes nothing that is sorted by when a thread was active last. A row of the index is not
removed as long as a search that is read page by page may come to it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from operator import itemgetter
from typing import Any

from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.filters import ALL_TERM, folded, packed, stored_value_terms, thread_terms, unpacked
from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.sqlite.rows import (
    HEAD_OF,
    PLACES,
    THREAD_COLUMNS,
    THREAD_OF,
    description,
    json_list,
)
from forkpoint.sqlite.schema import EXPIRES, OF_ALL, UNLISTED
from forkpoint.sqlite.statements import batches, marks
from forkpoint.sqlite.tombstones import SqliteTombstones
from forkpoint.storage.interface import Stale
from forkpoint.storage.queries import NO_SNAPSHOT, Batch, ThreadQuery, ThreadRowPage
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    Description,
    LeaseRow,
    RecordTimes,
    ThreadRef,
    ThreadRow,
    Usage,
)

WALK_SECONDS = 3600
"""How long a search may be read page by page before it goes on with what there is by then."""
WALKS = 100
"""How many searches may be read page by page at once before the first one does so."""

_RECORD = (
    f"SELECT {THREAD_OF}, t.checksums, t.edge, t.parent, t.label, t.tags, t.metadata, t.ttl,"
    " t.fixed_keys, t.on_expiry, t.status, t.created_at, t.updated_at, s.thread_id,"
    " t.parent_checkpoint_id, t.checkpoint_count, t.lease_holder, t.lease_since, t.lease_until,"
    " t.fence, t.swept_at, t.state_updated_at FROM forkpoint_threads AS t"
    " LEFT JOIN forkpoint_threads AS s ON s.key = t.parent"
    " WHERE t.deleted_at IS NULL AND NOT t.provisional"
)
_LIST = (
    "INSERT OR REPLACE INTO forkpoint_listing"
    " (term, status, listed_at, thread_id, born, state_updated_at) VALUES "
)
# Places of a row of the index. When the state changed stands in the one row that each thread has.
_SORTED_ROWS = {
    "updated_at": "t.listed_at",
    "status": "t.status",
    "state_updated_at": (
        "(SELECT a.state_updated_at FROM forkpoint_listing AS a"
        f" WHERE a.term = {ALL_TERM} AND a.status = t.status AND a.listed_at = t.listed_at"
        " AND a.thread_id = t.thread_id AND a.born = t.born)"
    ),
}
# What the newest checkpoint of a thread says is shown of its state.
_PREVIEW = (
    "(SELECT w.content FROM forkpoint_writes AS w WHERE w.thread = t.key AND w.checkpoint_ns = ''"
    f" AND w.checkpoint_id = {HEAD_OF.format(thread='t.key')}"
    f" AND w.task_id = '{NULL_TASK_ID}' AND w.idx = {RECEIPT})"
)
_SAMPLE = 20  # threads by which it is found out how rare a term is
_FEW = 1000  # threads that are sorted rather than looked for among all in their order
_NO_QUEUE = "[]"
_SEPARATE = 8  # terms that are looked for one by one, the rarest first
_LISTED_AT_ONCE = 10_000


class SqliteCatalog(SqliteTombstones):
    """The primitives of `forkpoint.storage.interface.Session` for the catalog."""

    def record(self, thread_id: str) -> ThreadRow | None:
        row = self.one(f"{_RECORD} AND t.thread_id = ?", thread_id)
        return _thread_row(row, self.now()) if row else None

    # Searching

    def select(self, selection: ThreadQuery) -> ThreadRowPage:
        walk = selection.snapshot
        is_first = selection.after is None and walk is None
        if is_first or walk == NO_SNAPSHOT:
            self._list_anew()
        if (
            walk is not None
            and self.one("SELECT 1 FROM forkpoint_walks WHERE number = ?", walk) is None
        ):
            walk = None  # what it is to see is not kept any more
        found = self._places(selection._replace(snapshot=walk, limit=selection.limit + 1))
        is_last = len(found) <= selection.limit
        places = found[: selection.limit]
        rows = self._records([thread_id for _, thread_id in places])
        goes_on = not is_first or selection.sort_by in ("created_at", "thread_id")
        return ThreadRowPage(
            [rows.get(place[1]) for place in places], places, selection.snapshot, is_last, goes_on
        )

    def begin_walk(self) -> int | None:
        self._list_anew()
        begun = self.run("INSERT INTO forkpoint_walks (began_at) VALUES (?)", self.now())
        self._forget_walks("number <= ?", (begun.lastrowid or 0) - WALKS)
        return begun.lastrowid

    def end_walk(self, walk: int) -> None:
        self._forget_walks("number = ?", walk)

    def _forget_walks(self, which: str, *values: int) -> None:
        """Keep no longer what only these walks see."""
        if self.run(f"DELETE FROM forkpoint_walks WHERE {which}", *values).rowcount:
            self.run(
                "DELETE FROM forkpoint_listing WHERE gone IS NOT NULL AND NOT EXISTS"
                " (SELECT 1 FROM forkpoint_walks WHERE number > born AND number <= gone)"
            )

    def count(self, selection: ThreadQuery) -> int:
        self._list_anew()
        counted = self._query(selection._replace(snapshot=None, after=None))
        now = self.now()
        listed = self.one(
            f"SELECT count(*) FROM ({counted.unordered()}) WHERE thread_id NOT IN"
            f" (SELECT thread_id FROM forkpoint_threads WHERE {EXPIRES}"
            " AND updated_at + ttl <= ? AND on_expiry = 'delete'"
            " AND deleted_at IS NULL AND NOT provisional"
            " AND (lease_until IS NULL OR lease_until <= ?))",
            *counted.values,
            now,
            now,
        )
        assert listed is not None
        return int(listed[0])

    def _places(self, selection: ThreadQuery) -> list[tuple[Any, str]]:
        query = self._query(selection)
        return self.all(query.ordered(), *query.values)

    def _query(self, selection: ThreadQuery) -> _Query:
        """Return a query that goes through the threads with the rarest of the terms."""
        terms = [*selection.terms, *selection.any_terms]
        if selection.ids is not None or (is_by_time(selection) and len(terms) == 1):
            return _Query(selection)
        if len(terms) > 1:
            rarity = {term: self._rarity(selection, term) for term in terms}
            selection = selection._replace(terms=sorted(selection.terms, key=rarity.__getitem__))
        first = selection.terms[0]
        if is_by_time(selection):
            is_rarer = any(rarity[first] < rarity[term] for term in selection.any_terms)
            return _Query(selection, first if is_rarer else None)
        return _Query(selection, first if self._are_few(first) else None)

    def _rarity(self, selection: ThreadQuery, term: int) -> tuple[int, int]:
        """Return what is less for a term that fewer threads have: its page goes further back."""
        after = selection.after if is_by_time(selection) else None
        sample = _Query(
            selection._replace(
                terms=[term],
                any_terms=(),
                conditions=selection.conditions_on("status", "updated_at"),
                sort_by="updated_at",
                after=after,
                limit=_SAMPLE,
            )
        )
        found = self.all(sample.ordered(), *sample.values)
        last = found[-1][0] if found else 0
        return len(found), last if selection.descending else -last

    def _are_few(self, term: int) -> bool:
        found = self.all(
            "SELECT 1 FROM forkpoint_listing WHERE term = ? AND gone IS NULL LIMIT ?", term, _FEW
        )
        return len(found) < _FEW

    def _records(self, thread_ids: Collection[str]) -> dict[str, ThreadRow]:
        now = self.now()
        found: dict[str, ThreadRow] = {}
        for batch in batches(thread_ids):
            for row in self.all(f"{_RECORD} AND t.thread_id IN ({marks(batch)})", *batch):
                one = _thread_row(row, now)
                found[one.thread_id] = one
        return found

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = self.now()
        rows = self.all(
            f"{_RECORD} AND t.ttl IS NOT NULL AND t.swept_at IS NOT t.updated_at"
            " AND t.updated_at + t.ttl <= ?"
            " AND (t.updated_at + t.ttl, t.key) > (?, ?) AND (? IS NULL OR t.owner = ?)"
            " ORDER BY t.updated_at + t.ttl, t.key LIMIT ?",
            now,
            *(after or (0, 0)),
            owner,
            owner,
            limit,
        )
        return [_thread_row(row, now) for row in rows]

    def note_sweep(self, seen: ThreadRow) -> None:
        self.run(
            "UPDATE forkpoint_threads SET swept_at = ? WHERE key = ?",
            seen.updated_at,
            seen.thread.key,
        )

    def grown(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = self.now()
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
        """Bring the search index up to date, and forget the walks that take too long."""
        self.keep_time(is_write=True)
        now = self.now()
        self.run(
            "UPDATE forkpoint_threads SET lease_holder = NULL, lease_since = NULL,"
            " lease_until = NULL, fence = fence + 1 WHERE lease_until <= ?",
            now,
        )
        self._forget_walks("began_at < ?", now - WALK_SECONDS * 1_000_000)
        while self._list_some():
            pass

    def _list_some(self, only: int | None = None) -> bool:
        """Bring some threads up to date in the search index; return if there may be more."""
        which = "" if only is None else " AND key = ?"
        rows = self.all(
            "SELECT t.key, t.thread_id, t.owner, t.label, t.tags, t.metadata, s.thread_id,"
            " t.updated_at, t.state_updated_at,"
            " CASE WHEN t.lease_until IS NULL THEN t.status ELSE 'busy' END,"
            f" t.terms, {_PREVIEW} FROM (SELECT key AS k FROM forkpoint_threads"
            f" WHERE {UNLISTED}{which} LIMIT ?) JOIN forkpoint_threads AS t ON t.key = k"
            " LEFT JOIN forkpoint_threads AS s ON s.key = t.parent",
            *(() if only is None else (only,)),
            _LISTED_AT_ONCE,
        )
        born = self._walk()
        listed: list[tuple[Any, ...]] = []
        changed: list[tuple[Any, ...]] = []
        for key, thread_id, owner, label, tags, metadata, source, *place, terms, preview in rows:
            at, state, status = place
            if type(terms) is bytes:
                self._unlist(key)
                found = unpacked(terms)
            else:
                found = thread_terms(owner, label, json_list(tags), metadata, source)
                terms = packed(found)
            at = at if isinstance(at, int) else 0  # damaged, as who reads the record is told
            listed += (
                (term, status, at, thread_id, born, state if term == ALL_TERM else None)
                for term in found
            )
            values = stored_value_terms(owner, preview or b"") or []
            listed += ((term, status, at, thread_id, born, None) for term in values)
            changed.append((terms, packed(values), at, status, key))
        listed.sort(key=itemgetter(0, 1, 2, 3))  # neighbours together
        self.insert(_LIST, listed)
        self.many(
            "UPDATE forkpoint_threads SET terms = ?, value_terms = ?, listed_at = ?,"
            " listed_status = ? WHERE key = ?",
            changed,
        )
        return len(rows) == _LISTED_AT_ONCE

    def _unlist(self, key: int) -> None:
        """Take a thread out of the search index, but for walks that have begun."""
        row = self.one(
            "SELECT thread_id, listed_status, listed_at, terms, value_terms FROM forkpoint_threads"
            " WHERE key = ? AND listed_at IS NOT NULL",
            key,
        )
        if row is None:
            return
        *place, terms, value_terms = row
        walk = self._walk()
        for batch in batches(unpacked(terms + value_terms)):
            which = (
                f"WHERE term IN ({marks(batch)}) AND gone IS NULL AND thread_id = ?"
                " AND status = ? AND listed_at = ?"
            )
            self.run(f"DELETE FROM forkpoint_listing {which} AND born >= ?", *batch, *place, walk)
            if walk:
                self.run(f"UPDATE forkpoint_listing SET gone = ? {which}", walk, *batch, *place)
        self.run(
            "UPDATE forkpoint_threads SET terms = NULL, value_terms = NULL, listed_at = NULL,"
            " listed_status = NULL WHERE key = ?",
            key,
        )

    def forget_walks(self, key: int) -> None:
        """Have no search that is being read page by page see what a thread was listed as."""
        self.run(
            "DELETE FROM forkpoint_listing WHERE gone IS NOT NULL AND thread_id ="
            " (SELECT thread_id FROM forkpoint_threads WHERE key = ?)",
            key,
        )

    def _walk(self) -> int:
        """Return the number of the walk that began last."""
        row = self.one("SELECT max(number) FROM forkpoint_walks")
        return row[0] or 0 if row else 0

    # Describing

    def add(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        known = self.one(
            "SELECT key, provisional, owner, salt FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            thread_id,
        )
        if known is not None:
            key, is_provisional, theirs, salt = known
            if not is_provisional or theirs != owner:
                return False
        else:
            now, salt = self.now(), new_salt()
            key = self.run(
                "INSERT INTO forkpoint_threads (thread_id, family, owner, salt, created_at,"
                " updated_at, dead_until) VALUES (?, 0, ?, ?, ?, ?, ?)",
                thread_id,
                owner,
                salt,
                now,
                now,
                self.dead_until(thread_id),
            ).lastrowid
            self.run("UPDATE forkpoint_threads SET family = key WHERE key = ?", key)
        self.run("UPDATE forkpoint_threads SET provisional = 0 WHERE key = ?", key)
        checksums = hashing.checksums((thread_id, owner, salt), described)
        self._describe(key, described, checksums)
        self._list_some(key)
        return True

    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        self._unlist(seen.thread.key)
        self._describe(seen.thread.key, described, checksums)
        if times is None:
            self.run(
                "UPDATE forkpoint_threads SET updated_at = max(updated_at + 1, ?) WHERE key = ?",
                self.now(),
                seen.thread.key,
            )
        else:
            self.run(
                "UPDATE forkpoint_threads SET created_at = ?, updated_at = ?, state_updated_at = ?"
                " WHERE key = ?",
                *times,
                seen.thread.key,
            )
        self._list_some(seen.thread.key)
        return True

    def _describe(self, key: int | None, described: Description, checksums: bytes) -> None:
        self.run(
            "UPDATE forkpoint_threads SET label = ?, folded_label = ?, tags = ?, metadata = ?,"
            " ttl = ?, fixed_keys = ?, on_expiry = ?, checksums = ? WHERE key = ?",
            described.label,
            None if described.label is None else folded(described.label),
            json.dumps(list(described.tags)),
            described.metadata,
            described.ttl,
            json.dumps(list(described.fixed_keys)),
            described.on_expiry,
            checksums,
            key,
        )

    # Leases

    def lease(
        self,
        thread: ThreadRef,
        holder: str,
        ttl: int,
        *,
        take_over: bool,
        waits: bool,
        rolls_back: bool = False,
    ) -> LeaseRow | None:
        self.keep_time(is_write=True)  # who began it may have learned of a later time
        now = self.now()
        row = self.one(
            "SELECT lease_until, fence, waiting, rollback_from FROM forkpoint_threads"
            " WHERE key = ? AND deleted_at IS NULL",
            thread.key,
        )
        if row is None:
            raise Stale
        until, fence, waiting, rollback_from = row
        queue = {name: last for name, last in json.loads(waiting) if last > now or name == holder}
        is_free = until is None or until <= now
        is_next = not waits or next(iter(queue), holder) == holder
        if not take_over and not (is_free and is_next):
            if waits and queue.get(holder, 0) < now + ttl // 2:
                queue[holder] = now + ttl  # a place that is known is kept
                self._set_queue(thread, queue)
            return None
        if rolls_back and not is_free and rollback_from is None:
            rollback_from = fence
        leased = LeaseRow(holder, now, now + ttl, fence + 1, rollback_from)
        self.run(
            "UPDATE forkpoint_threads SET lease_holder = ?, lease_since = ?, lease_until = ?,"
            " fence = ?, rollback_from = ? WHERE key = ?",
            *leased,
            thread.key,
        )
        queue.pop(holder, None)
        if waiting != _NO_QUEUE:
            self._set_queue(thread, queue)
        return leased

    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        row = self.one("SELECT waiting FROM forkpoint_threads WHERE key = ?", thread.key)
        queue = dict(json.loads(row[0])) if row else {}
        if queue.pop(holder, None) is not None:
            self._set_queue(thread, queue)

    def _set_queue(self, thread: ThreadRef, queue: Mapping[str, int]) -> None:
        self.run(
            "UPDATE forkpoint_threads SET waiting = ? WHERE key = ?",
            json.dumps(list(queue.items())),
            thread.key,
        )

    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        self.run(
            "UPDATE forkpoint_threads SET rollback_from = NULL WHERE key = ? AND fence = ?",
            thread.key,
            fence,
        )

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        renewed = self.run(
            "UPDATE forkpoint_threads SET lease_until = max(lease_until, ?) WHERE key = ?"
            " AND fence = ? AND lease_until IS NOT NULL AND deleted_at IS NULL",
            self.now() + ttl,
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

    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        table, place = after or ("checkpoints", None)
        part = self.part_after(table, _MEASURED[table], thread.key, place)
        rows = part.items
        following: Any = None if part.after is None else (table, part.after)
        size = sum(row[2] for row in rows)
        if table == "writes":
            return Batch([Usage(0, sum(row[0] for row in rows), frozenset(), size)], following)
        runs = frozenset(row[1] for row in rows if row[1] is not None)
        used = Usage(sum(row[0] for row in rows), 0, runs, size)
        return Batch([used], following or ("writes", None))

    def part_after(
        self, table: str, columns: str, thread: int, after: tuple[Any, ...] | None
    ) -> Batch[tuple[Any, ...]]:
        """Return rows of a thread, in the order of their places.

        Args:
            table: The table.
            columns: What to read of it.
            thread: The key of the thread.
            after: The place of the last one of the part before; None for the first part.
        """
        order, first = PLACES[table]
        place = first if after is None else after
        width = len(place)
        rows = self.all(
            f"SELECT {columns}, {order} FROM forkpoint_{table} WHERE thread = ?"
            f" AND ({order}) > ({marks(place)}) ORDER BY {order} LIMIT ?",
            thread,
            *place,
            self.turn_rows,
        )
        self.count_read(len(rows))
        following = rows[-1][-width:] if len(rows) == self.turn_rows else None
        return Batch([row[:-width] for row in rows], following)

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


_MEASURED = {
    "checkpoints": (
        "NOT hidden, run_id, length(metadata) + length(refs) + length(content) + length(checksum)"
    ),
    "writes": f"idx > {RECEIPT}, NULL, length(refs) + length(content) + length(checksum)",
}
"""What tells whether a row counts, the run that made it, and its size."""


def _thread_row(row: Sequence[Any], now: int) -> ThreadRow:
    thread = ThreadRef(*row[:THREAD_COLUMNS])
    checksums, edge, parent, *rest = row[THREAD_COLUMNS:]
    described, rest = description(rest[:6]), rest[6:]
    status, created_at, updated_at, source, forked, count, *rest = rest
    holder, since, until, fence, swept_at, state_updated_at = rest
    ttl = described.ttl
    is_leased = isinstance(until, int) and until > now
    lease = LeaseRow(holder, since, until, fence) if is_leased else None
    is_over = isinstance(ttl, int) and isinstance(updated_at, int) and updated_at + ttl <= now
    return ThreadRow(
        thread,
        thread.thread_id,
        described,
        "busy" if lease is not None else status,
        created_at=created_at,
        updated_at=updated_at,
        source_thread_id=source,
        source_checkpoint_id=forked,
        checkpoint_count=count,
        lease=lease,
        fence=fence,
        is_expired=lease is None and described.on_expiry == "delete" and is_over,
        is_swept=swept_at == updated_at,
        state_updated_at=state_updated_at,
        checksums=checksums,
        lineage=(edge, parent if parent is None else str(parent), forked, None),
    )


def is_by_time(selection: ThreadQuery) -> bool:
    """Return whether threads are asked for in the order that the search index has."""
    return selection.sort_by == "updated_at" and selection.ids is None


class _Query:
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
        if len(all_terms) > _SEPARATE:  # SQLite limits how often a statement names a table
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


_NOW = "o.gone IS NULL"
_INDEXED = {"thread_id", "status", "updated_at"}  # fields that the search index has, too
_COMPARED = {
    "in": "{} IN (SELECT value FROM json_each(?))",
    "contains": "instr({}, ?) > 0",
    ">=": "{} >= ?",
    "<": "{} < ?",
}
