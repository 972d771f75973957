"""SQLite: which thread an id means, what it descends from, and its deletion."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

from forkpoint.sqlite.metadata import unpacked
from forkpoint.sqlite.rows import THREAD
from forkpoint.sqlite.search_index import SearchIndex
from forkpoint.sqlite.statements import BATCH, Statements, placeholders
from forkpoint.sqlite.thread_table import ThreadTable
from forkpoint.sqlite.tombstones import Tombstones
from forkpoint.storage.interface import Stale, Threads
from forkpoint.storage.rows import Counts, FamilyMember, ThreadRef, ThreadRow
from forkpoint.storage.shared import batches

_FORK_METADATA = (
    f"(SELECT {unpacked('c')} FROM forkpoint_checkpoints AS c WHERE c.thread = {{thread}}"
    " AND c.checkpoint_ns = '' AND c.checkpoint_id = t.parent_checkpoint_id)"
)
# What a `FamilyMember` is made of.
_MEMBER = (
    "t.key, t.thread_id, t.edge, t.parent, t.parent_checkpoint_id,"
    f" coalesce({_FORK_METADATA.format(thread='t.key')},"
    f" {_FORK_METADATA.format(thread='t.parent')}),"
    " t.checkpoint_count, t.created_at, t.deleted_at, t.salt, t.checksums, t.owner"
    " FROM forkpoint_threads AS t"
)
_BLANK_RECORD = (
    "deleted_at = ?, watermark = NULL, owner = NULL,"
    " label = NULL, folded_label = NULL,"
    " tags = '[]', metadata = '{}', fixed_keys = '[]', lease_queue = '[]',"
    " status = 'idle', checkpoint_count = 0, state_updated_at = 0, ttl = NULL,"
    " on_expiry = 'delete', swept_at = NULL, rollback_from = NULL, lease_holder = NULL,"
    " lease_since = NULL, lease_until = NULL"
)


class SqliteThreads(Threads):
    """The role `Threads`."""

    def __init__(
        self, sql: Statements, table: ThreadTable, tombstones: Tombstones, index: SearchIndex
    ) -> None:
        self._sql = sql
        self._table = table
        self._tombstones = tombstones
        self._index = index

    def find(self, thread_id: str, viewer: str | None = None) -> ThreadRef | None:
        return self._table.find(thread_id)

    def deletions(self, thread_id: str, owner: str | None = None) -> Set[Any]:
        return self._tombstones.deletions(thread_id, owner)

    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        self._tombstones.add_unknown(thread_id, owner)

    def forget_deletions(self) -> bool:
        return self._tombstones.forget_old()

    def find_deleted(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        return self._tombstones.deleted_thread(thread_id, owner)

    def delete(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        if check is not None:
            check()
        if seen is not None and not self._sql.row(
            "SELECT 1 FROM forkpoint_threads"
            " WHERE key = ? AND updated_at = ? AND fence = ? AND deleted_at IS NULL",
            (thread.key, seen.updated_at, seen.fence),
        ):
            raise Stale
        row = self._sql.row(
            "SELECT thread_id, owner, salt FROM forkpoint_threads"
            " WHERE key = ? AND deleted_at IS NULL",
            (thread.key,),
        )
        if row is not None and row[-1] != thread.salt:
            raise Stale  # another thread has its key in a store that was restored meanwhile
        self._index.remove(thread.key)
        self._index.forget_past(thread.key)
        if row is not None:
            thread_id, owner, _ = row
            watermark = self._table.highest_checkpoint_id(thread.key)
            self._tombstones.add(thread.key, thread_id, owner, watermark)
        self._table.update(thread.key, _BLANK_RECORD, self._sql.now())
        self._table.forget_ids(thread.family)
        counts = self._table.count_rows(thread)
        self._table.note_removal(thread, counts.number)
        return counts

    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        rows = self._sql.rows(
            "WITH RECURSIVE line (key, height) AS (VALUES (?, 0) UNION ALL"
            " SELECT t.parent, height + 1 FROM line JOIN forkpoint_threads AS t USING (key)"
            # A parent is older: so damage cannot make this endless.
            f" WHERE t.parent < t.key) SELECT {_MEMBER} JOIN line ON line.key = t.key"
            " ORDER BY height",
            (thread.key,),
        )
        return [FamilyMember(*row) for row in rows]

    def family(self, family: Any) -> list[FamilyMember]:
        rows = self._sql.rows(
            f"SELECT {_MEMBER} WHERE t.family = ? AND t.thread_id != ''", (family,)
        )
        return [FamilyMember(*row) for row in rows]

    def of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        threads: dict[Any, ThreadRef] = {}
        for batch in batches(run_ids, BATCH):
            for row in self._sql.rows(
                f"SELECT {THREAD} FROM forkpoint_threads"
                " WHERE deleted_at IS NULL AND key IN (SELECT thread FROM forkpoint_checkpoints"
                f" WHERE run_id IS NOT NULL AND run_id IN ({placeholders(batch)}))",
                batch,
            ):
                threads[row[0]] = ThreadRef(*row)
        return list(threads.values())
