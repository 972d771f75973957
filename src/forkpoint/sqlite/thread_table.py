"""SQLite: the statements on the table of threads that several roles need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from forkpoint.filters import folded
from forkpoint.sqlite.rows import DESCRIPTION, THREAD
from forkpoint.sqlite.statements import Statements, placeholders
from forkpoint.storage.interface import Stale
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import ChangeCount, Counts, Description, ThreadRef
from forkpoint.storage.shared import thread_exists

NEXT_EPOCH = (
    "(SELECT max(epoch) + 1 + abs(random() % 1000000000) FROM forkpoint_threads WHERE family = ?)"
)
"""An epoch that a family never had, and a family of another store, with the same key, has not."""

# The ancestors of the threads of a family that exist, or are being copied.
_ANCESTORS = (
    "WITH RECURSIVE ancestors (key) AS (SELECT parent FROM forkpoint_threads WHERE family = :family"
    " AND parent IS NOT NULL AND (deleted_at IS NULL OR copy_deadline > 0)"
    " UNION SELECT t.parent FROM ancestors JOIN forkpoint_threads AS t USING (key)"
    " WHERE t.parent IS NOT NULL)"
)
_IS_USELESS = (
    "family = :family AND deleted_at IS NOT NULL AND copy_deadline IS NULL"
    " AND key NOT IN (SELECT key FROM ancestors)"
)


def description_columns(described: Description, checksums: bytes) -> dict[str, Any]:
    """Return what a thread's record says that its runs do not change, by column."""
    label, tags, metadata, ttl, fixed_keys, on_expiry = described
    texts = label, json.dumps(list(tags)), metadata, ttl, json.dumps(list(fixed_keys)), on_expiry
    return {
        **dict(zip(DESCRIPTION.split(", "), texts, strict=True)),
        "folded_label": None if label is None else folded(label),
        "checksums": checksums,
    }


class ThreadTable:
    """The table of threads."""

    def __init__(self, sql: Statements) -> None:
        self._sql = sql

    def find(self, thread_id: str) -> ThreadRef | None:
        """Return the thread of an id that is not deleted."""
        row = self._sql.row(
            f"SELECT {THREAD} FROM forkpoint_threads WHERE thread_id = ? AND deleted_at IS NULL",
            (thread_id,),
        )
        return ThreadRef(*row) if row else None

    def check_free(self, thread_id: str) -> None:
        """Refuse an id that a thread has.

        Raises:
            ThreadExists: There is a thread of this id.
        """
        if self.find(thread_id) is not None:
            raise thread_exists(thread_id)

    def add_first(self, **columns: Any) -> int:
        """Insert the first thread of a new family, and return its key."""
        key = self.insert(**columns)
        self.update(key, "family = key")
        return key

    def insert(self, **columns: Any) -> int:
        """Insert a thread that is to be the first one of a family, and return its key."""
        key = self._sql.run(
            f"INSERT INTO forkpoint_threads (family, {', '.join(columns)})"
            f" VALUES (0, {placeholders(columns)})",
            list(columns.values()),
        ).lastrowid
        assert key is not None
        return key

    def add_many(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert first threads of new families, and return the key that all theirs are above."""
        last = self._sql.row("SELECT coalesce(max(key), 0) FROM forkpoint_threads")
        assert last is not None
        columns = ", ".join(rows[0])
        self._sql.insert(
            f"INSERT INTO forkpoint_threads (family, {columns}) VALUES ",
            [(0, *row.values()) for row in rows],
        )
        self._sql.run("UPDATE forkpoint_threads SET family = key WHERE family = 0")
        return int(last[0])

    def update(self, key: int, changes: str, *values: Any) -> None:
        """Change the record of a thread."""
        self._sql.run(f"UPDATE forkpoint_threads SET {changes} WHERE key = ?", (*values, key))

    def describe(self, key: int, described: Description, checksums: bytes) -> None:
        """Set what a thread's record says that its runs do not change."""
        columns = description_columns(described, checksums)
        self.update(key, ", ".join(f"{name} = ?" for name in columns), *columns.values())

    def highest_checkpoint_id(self, key: int) -> str | None:
        """Return the highest id of a checkpoint that a thread has, or has writes for."""
        row = self._sql.row(
            "SELECT max(id) FROM (SELECT max(checkpoint_id) AS id FROM forkpoint_checkpoints"
            " WHERE thread = ? UNION ALL"
            " SELECT max(checkpoint_id) FROM forkpoint_writes WHERE thread = ?)",
            (key, key),
        )
        return row[0] if row else None

    def count_rows(self, thread: ThreadRef) -> Counts:
        """Return how many checkpoints and writes a thread has."""
        counts = self._sql.row(
            "SELECT (SELECT count(*) FROM forkpoint_checkpoints WHERE thread = ?),"
            f" (SELECT count(*) FROM forkpoint_writes WHERE thread = ? AND idx > {RECEIPT})",
            (thread.key, thread.key),
        )
        assert counts is not None
        return Counts(*counts)

    def count_checkpoints(self, key: int) -> None:
        """Set the number of a thread's visible checkpoints in its record."""
        self.update(
            key,
            "checkpoint_count ="
            " (SELECT count(*) FROM forkpoint_checkpoints WHERE thread = key AND NOT hidden)",
        )

    def change_count(self, thread: ThreadRef) -> ChangeCount:
        """Return what tells whether something has happened to a thread.

        Raises:
            Stale: It is deleted, or in a store that was restored meanwhile another has its key.
        """
        row = self._sql.row(
            "SELECT checkpoint_count, removals FROM forkpoint_threads"
            " WHERE key = ? AND salt = ? AND deleted_at IS NULL",
            (thread.key, thread.salt),
        )
        if row is None:
            raise Stale
        return ChangeCount(*row)

    def note_removal(self, thread: ThreadRef, checkpoints: int = 0) -> None:
        """Note that something was removed from a thread, and its chunks are to be collected.

        The thread gets an epoch that the family never had. So a collection sees that something was
        removed since it began, and a write that relies on what was removed is refused.

        Args:
            thread: The thread.
            checkpoints: How many checkpoints were removed.
        """
        changes = (
            "removals = removals + 1, removed_at = ?, uncollected = uncollected + ?,"
            f" epoch = {NEXT_EPOCH}"
        )
        values = self._sql.now(), max(1, checkpoints), thread.family
        self.update(thread.key, changes, *values)

    def abandon_copies(self, family: Any, condition: str, value: Any) -> None:
        """Give incomplete copies up: their rows are to be removed, as those of a deleted thread."""
        self._sql.run(
            f"UPDATE forkpoint_threads SET copy_deadline = 0, epoch = {NEXT_EPOCH}"
            f" WHERE family = ? AND removed_at IS NOT NULL AND copy_deadline > 0 AND {condition}",
            (family, family, value),
        )

    def forget_ids(self, family: int) -> None:
        """Blank the ids of deleted threads, except for ancestors of those that exist."""
        self._sql.run(
            f"{_ANCESTORS} UPDATE forkpoint_threads SET thread_id = ''"
            f" WHERE {_IS_USELESS} AND thread_id != ''",
            {"family": family},
        )

    def forget_threads(self, family: int) -> None:
        """Remove the records of deleted threads that are no ancestors of those that exist."""
        self._sql.run(
            f"{_ANCESTORS} DELETE FROM forkpoint_threads WHERE {_IS_USELESS}"
            " AND removed_at IS NULL",
            {"family": family},
        )
