"""SQLite: which thread an id means, deleting it, and what tells later that it was deleted."""

from __future__ import annotations

from collections.abc import Callable

from forkpoint.sqlite.rows import THREAD
from forkpoint.sqlite.search import SqliteCatalog
from forkpoint.storage.interface import Stale
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import Counts, Description, FamilyMember, ThreadRef, ThreadRow


class SqliteThreads(SqliteCatalog):
    """The primitives of `Session` that find threads by id, and delete them."""

    def thread(self, thread_id: str) -> ThreadRef | None:
        row = self.one(
            f"SELECT {THREAD} FROM forkpoint_threads WHERE thread_id = ? AND deleted_at IS NULL",
            thread_id,
        )
        return ThreadRef(*row) if row else None

    def bury(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        if check is not None:
            check()
        if seen is not None and not self.one(
            "SELECT 1 FROM forkpoint_threads"
            " WHERE key = ? AND updated_at = ? AND fence = ? AND deleted_at IS NULL",
            thread.key,
            seen.updated_at,
            seen.fence,
        ):
            raise Stale
        self._unlist(thread.key)
        self.forget_walks(thread.key)
        latest = self.one(
            "SELECT key, thread_id, owner, (SELECT max(id) FROM ("
            " SELECT max(checkpoint_id) AS id FROM forkpoint_checkpoints WHERE thread = key"
            " UNION ALL SELECT max(checkpoint_id) FROM forkpoint_writes WHERE thread = key))"
            " FROM forkpoint_threads WHERE key = ? AND deleted_at IS NULL",
            thread.key,
        )
        if latest is not None:
            self.entomb(*latest)
        self.run(
            "UPDATE forkpoint_threads SET deleted_at = ?, dead_until = NULL, owner = NULL,"
            " label = NULL, folded_label = NULL,"
            " tags = '[]', metadata = '{}', fixed_keys = '[]', waiting = '[]',"
            " status = 'idle', checkpoint_count = 0, state_updated_at = 0, ttl = NULL,"
            " on_expiry = 'delete', swept_at = NULL, rollback_from = NULL, lease_holder = NULL,"
            " lease_since = NULL, lease_until = NULL WHERE key = ?",
            self.now(),
            thread.key,
        )
        self.forget_ids(thread.family)
        self.note_removal(thread)
        return Counts(*self.count_rows(thread))

    def give(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        key, before = seen.thread.key, seen.thread.owner
        self._unlist(key)
        self.forget_walks(key)
        self._describe(key, described, checksums)
        if before is not None:
            self.entomb(key, seen.thread_id, before, self._newest_id(key))
        self.run(
            "UPDATE forkpoint_threads SET owner = ?, edge = NULL, parent = NULL,"
            " parent_checkpoint_id = NULL, removals = removals + 1, epoch ="
            " (SELECT max(epoch) + 1 FROM forkpoint_threads WHERE family = ?),"
            " updated_at = max(updated_at + 1, ?) WHERE key = ?",
            owner,
            seen.thread.family,
            self.now(),
            key,
        )
        self.forget_ids(seen.thread.family)
        self._list_some(key)
        return True

    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        self._unlist(kin.key)
        self.run(
            "UPDATE forkpoint_threads SET edge = NULL, parent = NULL, parent_checkpoint_id = NULL,"
            " checksums = ? WHERE key = ?",
            checksums,
            kin.key,
        )
        return True

    def _newest_id(self, key: int) -> str | None:
        """Return the highest id of a checkpoint that a thread has, or has writes for."""
        row = self.one(
            "SELECT max(id) FROM (SELECT max(checkpoint_id) AS id FROM forkpoint_checkpoints"
            " WHERE thread = ? UNION ALL"
            " SELECT max(checkpoint_id) FROM forkpoint_writes WHERE thread = ?)",
            key,
            key,
        )
        return row[0] if row else None

    def note_removal(self, thread: ThreadRef) -> None:
        """Let everybody know that something was removed, and its chunks are to be collected.

        The thread gets an epoch that the family never had. So a collection sees that something was
        removed since it began, and a write that relies on what was removed is refused.
        """
        self.run(
            "UPDATE forkpoint_threads SET removals = removals + 1, removed_at = ?, epoch ="
            " (SELECT max(epoch) + 1 FROM forkpoint_threads WHERE family = ?) WHERE key = ?",
            self.now(),
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
