"""SQLite: the index by which threads are searched.

It is brought up to date by the first page of each search, and not by each put: then a put changes
nothing that is sorted by when a thread was active last. A row of the index is kept as long as a
snapshot may need it, which a search that is read page by page has.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from forkpoint.filters import ALL_TERM, packed, stored_value_terms, thread_terms, unpacked
from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.sqlite.rows import END_LEASE, NEWEST_CHECKPOINT, json_list
from forkpoint.sqlite.schema import UNLISTED
from forkpoint.sqlite.statements import BATCH, Statements, placeholders
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.shared import batches

SNAPSHOT_SECONDS = 3600
"""How long a snapshot is kept. A search that takes longer goes on with what there is by then."""
MOST_SNAPSHOTS = 100
"""How many snapshots are kept. The oldest gives way to the next one."""

_LISTED_AT_ONCE = 10_000
_NEW = ("owner", "label", "tags", "metadata", "updated_at")
_INSERT = (
    "INSERT OR REPLACE INTO forkpoint_listing"
    " (term, status, listed_at, thread_id, valid_from, state_updated_at) VALUES "
)
# What the receipt of a thread's newest checkpoint shows of the state.
_PREVIEW = (
    "(SELECT w.content FROM forkpoint_writes AS w WHERE w.thread = t.key AND w.checkpoint_ns = ''"
    f" AND w.checkpoint_id = {NEWEST_CHECKPOINT.format(thread='t.key')}"
    f" AND w.task_id = '{NULL_TASK_ID}' AND w.idx = {RECEIPT})"
)
_UNLISTED_THREADS = (
    "SELECT t.key, t.thread_id, t.updated_at, t.state_updated_at,"
    " CASE WHEN t.lease_until IS NULL THEN t.status ELSE 'busy' END,"
    f" t.owner, t.label, t.tags, t.metadata, s.thread_id, t.terms, {_PREVIEW}"
    " FROM (SELECT key AS k FROM forkpoint_threads"
    f" WHERE {UNLISTED}{{}} LIMIT ?) JOIN forkpoint_threads AS t ON t.key = k"
    " LEFT JOIN forkpoint_threads AS s ON s.key = t.parent"
)


class SearchIndex:
    """The rows of the search index: one for each term of each thread."""

    def __init__(self, sql: Statements) -> None:
        self._sql = sql

    def refresh(self) -> None:
        """Bring the index up to date, end leases whose time is over, and drop old snapshots."""
        self._sql.keep_time(is_write=True)
        now = self._sql.now()
        self._sql.run(f"UPDATE forkpoint_threads SET {END_LEASE} WHERE lease_until <= ?", (now,))
        self._drop_snapshots("began_at < ?", now - SNAPSHOT_SECONDS * 1_000_000)
        while self._list("", _LISTED_AT_ONCE):
            pass

    def catch_up(self) -> bool:
        """Bring the index up to date for some threads, and return whether there are more."""
        return self._list("", self._sql.turn_rows)

    def update(self, key: int) -> None:
        """Bring the rows of one thread up to date."""
        self._list(" AND key = ?", key, 1)

    def add(self, key: int, columns: Mapping[str, Any]) -> None:
        """List a thread that was just made, and has no state yet, with a family of its own.

        Args:
            key: The thread.
            columns: Those of its record.
        """
        owner, label, tags, metadata, now = (columns[name] for name in _NEW)
        terms = thread_terms(owner, label, json_list(tags), metadata, None)
        place = "idle", now, columns["thread_id"], self._last_snapshot()
        rows = [(term, *place, 0 if term == ALL_TERM else None) for term in sorted(terms)]
        self._sql.insert(_INSERT, rows)
        self._sql.run(
            "UPDATE forkpoint_threads SET family = key, terms = ?, value_terms = x'',"
            " listed_at = ?, listed_status = 'idle' WHERE key = ?",
            (packed(terms), now, key),
        )

    def add_since(self, key: int, number: int) -> None:
        """List the threads with keys above this one, of which there are so many."""
        self._list(" AND key > ?", key, number)

    def _list(self, condition: str, *values: int) -> bool:
        """List threads as they are now, and return whether there may be more of them.

        Args:
            condition: A further condition.
            values: The values that it binds, and how many threads to list.
        """
        threads = self._sql.rows(_UNLISTED_THREADS.format(condition), values)
        if not threads:
            return False
        valid_from = self._last_snapshot()
        rows: list[tuple[Any, ...]] = []
        changes: list[tuple[Any, ...]] = []
        for key, thread_id, updated_at, state_updated_at, status, *record in threads:
            owner, label, tags, metadata, source, known_terms, preview = record
            if type(known_terms) is bytes:
                self.remove(key)
                terms = unpacked(known_terms)
            else:
                terms = thread_terms(owner, label, json_list(tags), metadata, source)
            at = updated_at if isinstance(updated_at, int) else 0  # damaged: `Records.get` says so
            value_terms = stored_value_terms(owner, b"" if preview is None else preview) or []
            for term in [*terms, *value_terms]:
                state = state_updated_at if term == ALL_TERM else None
                rows.append((term, status, at, thread_id, valid_from, state))
            changes.append((packed(terms), packed(value_terms), at, status, key))
        rows.sort(key=itemgetter(0, 1, 2, 3))  # neighbours together
        self._sql.insert(_INSERT, rows)
        self._sql.run_each(
            "UPDATE forkpoint_threads SET terms = ?, value_terms = ?, listed_at = ?,"
            " listed_status = ? WHERE key = ?",
            changes,
        )
        return len(threads) == values[-1]

    def remove(self, key: int) -> None:
        """Remove the rows of a thread, except for what snapshots see."""
        row = self._sql.row(
            "SELECT thread_id, listed_status, listed_at, terms, value_terms FROM forkpoint_threads"
            " WHERE key = ? AND listed_at IS NOT NULL",
            (key,),
        )
        if row is None:
            return
        *place, terms, value_terms = row
        snapshot = self._last_snapshot()
        for batch in batches(unpacked(terms) + unpacked(value_terms), BATCH):
            of_thread = (
                f"WHERE term IN ({placeholders(batch)}) AND valid_to IS NULL AND thread_id = ?"
                " AND status = ? AND listed_at = ?"
            )
            self._sql.run(
                f"DELETE FROM forkpoint_listing {of_thread} AND valid_from >= ?",
                (*batch, *place, snapshot),
            )
            if snapshot:
                self._sql.run(
                    f"UPDATE forkpoint_listing SET valid_to = ? {of_thread}",
                    (snapshot, *batch, *place),
                )
        self._sql.run(
            "UPDATE forkpoint_threads SET terms = NULL, value_terms = NULL, listed_at = NULL,"
            " listed_status = NULL WHERE key = ?",
            (key,),
        )

    def forget_past(self, key: int) -> None:
        """Remove what only snapshots see of a thread: they show nothing of it any more."""
        self._sql.run(
            "DELETE FROM forkpoint_listing WHERE valid_to IS NOT NULL AND thread_id ="
            " (SELECT thread_id FROM forkpoint_threads WHERE key = ?)",
            (key,),
        )

    # Snapshots

    def begin_snapshot(self) -> int:
        """Keep what the index has now, and return the number of the snapshot."""
        self.refresh()
        number = self._sql.run(
            "INSERT INTO forkpoint_snapshots (began_at) VALUES (?)", (self._sql.now(),)
        ).lastrowid
        assert number is not None
        self._drop_snapshots("number <= ?", number - MOST_SNAPSHOTS)
        return number

    def end_snapshot(self, number: int) -> None:
        """Drop a snapshot."""
        self._drop_snapshots("number = ?", number)

    def has_snapshot(self, number: int) -> bool:
        """Return whether a snapshot is still kept."""
        return bool(self._sql.row("SELECT 1 FROM forkpoint_snapshots WHERE number = ?", (number,)))

    def _drop_snapshots(self, condition: str, value: int) -> None:
        if self._sql.run(f"DELETE FROM forkpoint_snapshots WHERE {condition}", (value,)).rowcount:
            self._sql.run(
                "DELETE FROM forkpoint_listing WHERE valid_to IS NOT NULL AND NOT EXISTS"
                " (SELECT 1 FROM forkpoint_snapshots"
                " WHERE number > valid_from AND number <= valid_to)"
            )

    def _last_snapshot(self) -> int:
        row = self._sql.row("SELECT max(number) FROM forkpoint_snapshots")
        return row[0] or 0 if row else 0
