"""SQLite: which thread an id means, deleting it, and what tells later that it was deleted."""

from __future__ import annotations

from typing import Any

from forkpoint.receipts import RECEIPT
from forkpoint.sqlite_catalog import SqliteCatalog
from forkpoint.sqlite_statements import time_now
from forkpoint.storage import Counts, Stale, ThreadRef, ThreadRow


class SqliteThreads(SqliteCatalog):
    """The primitives of `forkpoint.storage.Session` that find threads by id, and delete them."""

    def thread(self, thread_id: str) -> ThreadRef | None:
        row = self.one(
            "SELECT key, family, epoch, owner FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            thread_id,
        )
        return ThreadRef(*row) if row else None

    def last_deletion(self, thread_id: str) -> Any:
        return self.one(
            "SELECT (SELECT max(key) FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NOT NULL),"
            " (SELECT number FROM forkpoint_deletions WHERE thread_id = ?)",
            thread_id,
            thread_id,
        )

    def dead_until(self, thread_id: str) -> str | None:
        """Return the highest checkpoint id that is known to be of a deleted thread of this id."""
        row = self.one(
            "SELECT max(dead_until) FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NOT NULL",
            thread_id,
        )
        return row[0] if row else None

    def bury(self, thread: ThreadRef, seen: ThreadRow | None = None) -> Counts:
        if seen is not None and not self.one(
            "SELECT 1 FROM forkpoint_threads"
            " WHERE key = ? AND updated_at = ? AND fence = ? AND deleted_at IS NULL",
            thread.key,
            seen.updated_at,
            seen.fence,
        ):
            raise Stale
        self._unlist(thread.key)
        dead_until = self.one(
            "SELECT max(id) FROM ("
            " SELECT max(checkpoint_id) AS id FROM forkpoint_checkpoints WHERE thread = ?"
            " UNION ALL SELECT max(checkpoint_id) FROM forkpoint_writes WHERE thread = ?"
            " UNION ALL SELECT dead_until FROM forkpoint_threads WHERE key = ?)",
            thread.key,
            thread.key,
            thread.key,
        )
        self.run(
            "UPDATE forkpoint_threads SET deleted_at = ?, dead_until = ?, label = NULL,"
            " tags = '[]', metadata = '{}', fixed_keys = '[]', waiting = '[]',"
            " status = 'idle', checkpoint_count = 0, ttl = NULL, lease_holder = NULL,"
            " lease_since = NULL, lease_until = NULL WHERE key = ?",
            time_now(),
            dead_until[0] if dead_until else None,
            thread.key,
        )
        self.note_removal(thread)
        return Counts(*self.count_rows(thread))

    def note_deletion(self, thread_id: str) -> None:
        self.run(
            "INSERT INTO forkpoint_deletions (thread_id, number) VALUES (?, 1)"
            " ON CONFLICT (thread_id) DO UPDATE SET number = number + 1",
            thread_id,
        )

    def buried(self, thread_id: str) -> ThreadRef | None:
        row = self.one(
            "SELECT key, family, epoch, owner FROM forkpoint_threads WHERE thread_id = ?"
            " AND deleted_at IS NOT NULL AND removed_at IS NOT NULL ORDER BY key DESC",
            thread_id,
        )
        return ThreadRef(*row) if row else None

    def note_removal(self, thread: ThreadRef) -> None:
        """Let everybody know that something was removed, and its chunks are to be collected.

        The thread gets an epoch that the family never had. So a collection sees that something was
        removed since it began, and a write that relies on what was removed is refused.
        """
        self.run(
            "UPDATE forkpoint_threads SET removals = removals + 1, removed_at = ?, epoch ="
            " (SELECT max(epoch) + 1 FROM forkpoint_threads WHERE family = ?) WHERE key = ?",
            time_now(),
            thread.family,
            thread.key,
        )

    def count_rows(self, thread: ThreadRef) -> tuple[int, int]:
        """Return how many checkpoints and writes a thread has."""
        counts = self.one(
            "SELECT (SELECT count(*) FROM forkpoint_checkpoints WHERE thread = ?),"
            f" (SELECT count(*) FROM forkpoint_writes WHERE thread = ? AND idx > {RECEIPT})",
            thread.key,
            thread.key,
        )
        assert counts is not None
        return counts[0], counts[1]
