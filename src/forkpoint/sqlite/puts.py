"""SQLite: how a checkpoint or writes are stored within a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ormsgpack

from forkpoint.encoding.hashing import IDENTITY_BYTES
from forkpoint.errors import StaleLease, stale_lease
from forkpoint.sqlite.chunks import put_chunks
from forkpoint.sqlite.metadata import choose_dictionary
from forkpoint.sqlite.rows import (
    AT_PLACE,
    DELETE_RECEIPT,
    INSERT_CHECKPOINT,
    INSERT_WRITES,
    RESTORED,
    STATUS_AFTER,
    THREAD,
    THREAD_COLUMNS,
    WRITE,
    checkpoint_values,
    in_order_to_insert,
    write_values,
)
from forkpoint.sqlite.statements import Statements, numbered
from forkpoint.sqlite.thread_table import ThreadTable
from forkpoint.sqlite.tombstones import Tombstones
from forkpoint.storage.interface import Stale
from forkpoint.storage.receipts import RECEIPT, replaces
from forkpoint.storage.rows import PutRequest, ThreadRef
from forkpoint.storage.shared import Admission, admission, would_make

# A new checkpoint makes a thread idle, unless a task's interrupt or error came before it. What is
# put into the past changes nothing.
_IS_OF_THE_PAST = (
    "?3 IS NULL OR EXISTS (SELECT 1 FROM forkpoint_checkpoints"
    " WHERE thread = key AND checkpoint_ns = ?4 AND checkpoint_id > ?5 AND NOT hidden)"
)
_UPDATE_THREAD, _in_order_to_update = numbered(
    "UPDATE forkpoint_threads SET checkpoint_count = checkpoint_count + ?1,"
    " updated_at = max(updated_at, ?2),"
    f" state_updated_at = CASE WHEN {_IS_OF_THE_PAST} THEN state_updated_at"
    " ELSE max(updated_at, ?2) END,"
    f" status = CASE WHEN {_IS_OF_THE_PAST} THEN status WHEN ?3 = 'idle' THEN"
    f" {STATUS_AFTER.format(checkpoint_ns='?4', checkpoint_id='?5')} ELSE ?3 END"
    " WHERE provisional <= ?6 AND key = ?7 AND epoch = ?8 AND deleted_at IS NULL"
    " AND watermark IS ?9 AND fence = coalesce(?10, fence)"
)
_SAME_THREAD = (
    "SELECT 1 FROM forkpoint_threads"
    " WHERE key = ? AND epoch = ? AND deleted_at IS NULL AND watermark IS ?"
    " AND fence = coalesce(?, fence)"
)
_REPLACE_CHECKPOINT = (
    "UPDATE forkpoint_checkpoints SET parent_checkpoint_id = ?, run_id = ?,"
    " metadata = ?, refs = ?, content = ?, checksum = ?, hidden = ?, restarts = ?, binding = ?,"
    f" fence = ? {AT_PLACE}"
)
# A task's writes are stored once; its error, interrupt and resume replace each other.
_REPLACE_WRITES = INSERT_WRITES.replace("IGNORE", "REPLACE")
_REPLACE_WRITES_OF_RUN = (
    f"INSERT OR REPLACE INTO forkpoint_writes (thread, {WRITE}, binding, fence, before,"
    " before_refs) VALUES "
)
_AT_WRITE = f"{AT_PLACE} AND task_id = ? AND idx = ?"
_REPLACED_WRITE = f"SELECT before, before_refs, {RESTORED} FROM forkpoint_writes {_AT_WRITE}"
_REPLACED_REFS = f"SELECT refs FROM forkpoint_writes {_AT_WRITE}"


class Puts:
    """Stores checkpoints and writes."""

    def __init__(self, sql: Statements, table: ThreadTable, tombstones: Tombstones) -> None:
        self._sql = sql
        self._table = table
        self._tombstones = tombstones

    def store(self, put: PutRequest) -> ThreadRef | None:
        """Store a checkpoint or writes, as `Storage.put` describes it."""
        thread = put.expected
        now = self._sql.now()
        if thread is None or not self._update_thread(thread, put, now, None):
            thread = self._admit(put, now)
            if thread is None:
                return None
        if put.chunks:
            put_chunks(self._sql, thread, put.chunks)
        if put.row is not None:
            choose_dictionary(self._sql, thread.key, [put.row])
            values = checkpoint_values(thread.key, put.row, put.fence)
            if not self._sql.run(INSERT_CHECKPOINT, in_order_to_insert(values)).rowcount:
                self._replace_checkpoint(thread, values)
        plain_rows: list[tuple[Any, ...]] = []
        replacing_rows: list[tuple[Any, ...]] = []
        for write in put.writes:
            rows = replacing_rows if replaces(write.idx) else plain_rows
            rows.append(write_values(thread.key, write, put.fence))
        if self._sql.insert(INSERT_WRITES, plain_rows) < len(plain_rows) and put.chunks:
            self._table.note_removal(thread)  # nothing may lead to the chunks of the others
        if replacing_rows:
            self._replace_writes(thread, replacing_rows)
        return thread

    def _replace_checkpoint(self, thread: ThreadRef, values: tuple[Any, ...]) -> None:
        place = values[:3]
        self._sql.run(_REPLACE_CHECKPOINT, (*values[3:], *place))
        self._sql.run(DELETE_RECEIPT, place)  # which may show another state
        self._table.count_checkpoints(thread.key)
        self._table.note_removal(thread)

    def _replace_writes(self, thread: ThreadRef, rows: Sequence[tuple[Any, ...]]) -> None:
        old_refs = [self._sql.row(_REPLACED_REFS, row[:5]) for row in rows if row[4] > RECEIPT]
        if any(row and row[0] for row in old_refs):
            self._table.note_removal(thread)
        elif any(old_refs):
            self._table.update(thread.key, "removals = removals + 1")
        if rows[0][-1] is None:
            self._sql.insert(_REPLACE_WRITES, rows)
        else:
            self._sql.insert(_REPLACE_WRITES_OF_RUN, [(*row, *self._before(row)) for row in rows])

    def _before(self, row: tuple[Any, ...]) -> tuple[bytes | None, bytes | None]:
        """Return what stood in a write's place before the run that puts it, to be restored."""
        old_row = self._sql.row(_REPLACED_WRITE, row[:5])
        if old_row is None:
            return None, None
        before, before_refs, *fields = old_row
        if fields[-1] == row[-1]:  # the run's own
            return before, before_refs
        return ormsgpack.packb(fields), fields[2]

    # The thread's record

    def _update_thread(
        self, thread: ThreadRef, put: PutRequest, now: int, watermark: str | None
    ) -> bool:
        """Update the record of a thread, if it still is as it is known to be."""
        conditions = (thread.key, thread.epoch, watermark, put.fence)
        if put.row is None and put.status is None:  # nothing in it changes
            return bool(self._sql.row(_SAME_THREAD, conditions))
        place = (put.checkpoint_ns, put.checkpoint_id)
        change = (put.row is not None, now, put.status, *place, put.row is None)
        values = _in_order_to_update((*change, *conditions))
        updated = self._sql.run(_UPDATE_THREAD, values)
        return updated.rowcount == 1

    def _admit(self, put: PutRequest, now: int) -> ThreadRef | None:
        """Return the thread to write to, a new one if need be, or None if the put is too late."""
        row = self._sql.row(
            f"SELECT {THREAD}, metadata, watermark, fence FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            (put.thread_id,),
        )
        thread = ThreadRef(*row[:THREAD_COLUMNS]) if row else None
        if thread != put.expected and not (row and self._is_made_for(put, thread, row[-3])):
            raise Stale
        if row and put.fence not in (None, row[-1]):
            raise StaleLease(stale_lease(put.thread_id))
        watermark = row[-2] if row else self._tombstones.watermark(put.thread_id)
        decision = admission(
            put,
            exists=thread is not None,
            deletions=lambda: self._tombstones.deletions(put.thread_id, put.owner),
            watermark=watermark,
            own_watermark=lambda: self._tombstones.watermark(put.thread_id, put.owner),
            is_stored=lambda place: self._exists(thread, *place),
        )
        if decision is Admission.REFUSE_AND_CLEAN:
            self._remove_traces(put, thread)
        if decision is not Admission.STORE:
            return None
        if thread is None:
            thread = self._add_thread(put, watermark, now)
        if put.row is not None:
            self._table.update(thread.key, "provisional = 0")
        self._update_thread(thread, put, now, watermark)
        return thread

    def _is_made_for(self, put: PutRequest, thread: ThreadRef | None, metadata: Any) -> bool:
        """Return whether a put that may make a thread would have made it as it is."""
        if put.expected is not None or thread is None:
            return False
        return (thread.salt, thread.owner) == (put.salt, put.owner) and would_make(
            put, metadata, lambda: self._tombstones.deletions(put.thread_id, put.owner)
        )

    def _exists(self, thread: ThreadRef | None, checkpoint_ns: str, checkpoint_id: str) -> bool:
        return thread is not None and bool(
            self._sql.row(
                f"SELECT 1 FROM forkpoint_checkpoints {AT_PLACE}",
                (thread.key, checkpoint_ns, checkpoint_id),
            )
        )

    def _add_thread(self, put: PutRequest, watermark: str | None, now: int) -> ThreadRef:
        key = self._table.add_first(
            thread_id=put.thread_id,
            owner=put.owner,
            salt=put.salt,
            checksums=put.checksums,
            metadata=put.metadata,
            ttl=put.expiry.ttl,
            on_expiry=put.expiry.on_expiry,
            created_at=now,
            updated_at=now,
            provisional=1,
            watermark=watermark,
        )
        identity = put.checksums[:IDENTITY_BYTES]
        return ThreadRef(key, key, 0, put.owner, put.thread_id, put.salt, identity)

    def _remove_traces(self, put: PutRequest, thread: ThreadRef | None) -> None:
        """Remove writes that came before the late checkpoint they belong to, and refuse more."""
        self._tombstones.raise_watermark(put.thread_id, put.owner, put.checkpoint_id)
        if thread is None:
            return
        self._table.update(thread.key, "watermark = max(watermark, ?)", put.checkpoint_id)
        place = (put.checkpoint_ns, put.checkpoint_id)
        if self._exists(thread, *place):
            return
        self._sql.run(f"DELETE FROM forkpoint_writes {AT_PLACE}", (thread.key, *place))
        self._table.note_removal(thread)
        removed = self._sql.run(
            "DELETE FROM forkpoint_threads WHERE key = ? AND provisional"
            " AND NOT EXISTS (SELECT 1 FROM forkpoint_writes WHERE thread = ?)",
            (thread.key, thread.key),
        ).rowcount
        if removed:
            self._sql.run("DELETE FROM forkpoint_chunks WHERE family = ?", (thread.family,))
