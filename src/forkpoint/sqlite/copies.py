"""SQLite: threads that are made of others: clones, at once or in turns, and forks.

A copy in turns is that of a moment: it takes the rows whose ids are below those of two empty rows
that it inserts when it begins. No id is given twice while these exist. Until it is complete, its
record looks like that of a deleted thread of which rows are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import StorageBusy
from forkpoint.sqlite.chunks import put_chunks
from forkpoint.sqlite.errors import callback_of
from forkpoint.sqlite.metadata import COPY_DICTIONARY, choose_dictionary
from forkpoint.sqlite.rows import (
    CHECKPOINT,
    DESCRIPTION,
    INSERT_CHECKPOINT,
    INSERT_WRITES,
    PLACES,
    REBOUND,
    WRITE,
    checkpoint_values,
    description,
    in_order_to_insert,
    write_values,
)
from forkpoint.sqlite.statements import Statements, placeholders
from forkpoint.sqlite.thread_table import ThreadTable
from forkpoint.sqlite.tombstones import Tombstones
from forkpoint.storage.interface import Copies, Stale
from forkpoint.storage.rows import CheckpointRow, Description, ForkRequest, ThreadRef, WriteRow
from forkpoint.storage.shared import ABANDONED_SECONDS

# What a clone takes from its source's record, beside the description.
_COPIED_RECORD = "owner, status, state_updated_at, checkpoint_count"
# The copies do not belong to the runs that made the originals: deleting those leaves them.
_COLUMNS = {
    "checkpoints": (CHECKPOINT, CHECKPOINT.replace("run_id", "NULL")),
    "writes": (WRITE, WRITE),
}
_EMPTY_ROWS = {
    "checkpoints": (
        "INSERT INTO forkpoint_checkpoints (thread, checkpoint_ns, checkpoint_id, metadata, refs,"
        " content, checksum, binding, hidden) VALUES (?, '', '', '{}', x'', x'', x'', 0, 1)"
    ),
    "writes": (
        "INSERT INTO forkpoint_writes (thread, checkpoint_ns, checkpoint_id, task_id, idx,"
        " task_path, channel, refs, content, checksum, binding)"
        " VALUES (?, '', '', '', 0, '', '', x'', x'', x'', 0)"
    ),
}


class _Record(NamedTuple):
    """The record of a copy."""

    key: int
    salt: bytes


class _UnfinishedCopy(NamedTuple):
    """A copy that is not complete."""

    source: ThreadRef
    hashing: Hashing
    removals: int
    """How often something had been removed from the source when it began."""
    record: _Record
    target_id: str
    bounds: dict[str, int | None]
    """The ids of the empty rows, by table."""
    places: dict[str, tuple[Any, ...] | None]
    """Up to where each table is copied; None where that is done."""


class _UnfinishedFork(NamedTuple):
    """A fork that is not complete."""

    source: ThreadRef
    removals: int
    record: _Record
    target_id: str


class SqliteCopies(Copies):
    """The role `Copies`."""

    def __init__(self, sql: Statements, table: ThreadTable, tombstones: Tombstones) -> None:
        self._sql = sql
        self._table = table
        self._tombstones = tombstones

    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        self._table.check_free(target_id)
        record = self._add_record(source, target_id, target_id, hashing, described)
        self._bind_to(hashing, source, record)
        for table, (columns, values) in _COLUMNS.items():
            self._sql.run(
                f"INSERT INTO forkpoint_{table} (thread, {columns}, binding)"
                f" SELECT ?, {values}, {REBOUND} FROM forkpoint_{table} WHERE thread = ?",
                (record.key, source.key),
            )
        self._show(record.key, target_id)

    def _bind_to(self, hashing: Hashing, source: ThreadRef, record: _Record) -> None:
        """Let the rows of a thread that are copied from now on be bound to the copy."""
        rebound = partial(hashing.rebind, source.salt, record.salt)
        self._sql.create_function("forkpoint_rebound", 2, callback_of(rebound))

    def begin(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> _UnfinishedCopy:
        self._table.check_free(target_id)
        removals = self._table.change_count(source).removals
        # Under a name of its own: what the target's id means does not change yet.
        name = f"{target_id}\0{uuid4()}"
        record = self._add_record(source, name, target_id, hashing, described)
        bounds = {
            table: self._sql.run(insert, (record.key,)).lastrowid
            for table, insert in _EMPTY_ROWS.items()
        }
        places: dict[str, tuple[Any, ...] | None] = {
            table: first for table, (_, first) in PLACES.items()
        }
        return _UnfinishedCopy(source, hashing, removals, record, target_id, bounds, places)

    def copy_more(self, copying: Any) -> bool:
        assert isinstance(copying, _UnfinishedCopy)
        self._go_on(copying)
        for table, place in copying.places.items():
            if place is not None:
                copying.places[table] = self._copy_rows(copying, table, place)
                return True
        self._table.check_free(copying.target_id)
        for table, bound in copying.bounds.items():
            self._sql.run(f"DELETE FROM forkpoint_{table} WHERE id = ?", (bound,))
        self._show(copying.record.key, copying.target_id)
        return False

    def _go_on(self, copying: _UnfinishedCopy | _UnfinishedFork) -> None:
        """Check that a source is as it was, and that nobody took what is made for abandoned."""
        if self._table.change_count(copying.source).removals != copying.removals:
            raise Stale
        if not self._sql.run(
            "UPDATE forkpoint_threads SET copy_deadline = ?"
            " WHERE key = ? AND salt = ? AND copy_deadline > 0",
            (self._abandoned_at(), *copying.record),
        ).rowcount:
            raise StorageBusy("copying took too long, and was taken for abandoned; try again")

    def abandon(self, copying: Any) -> None:
        assert isinstance(copying, (_UnfinishedCopy, _UnfinishedFork))
        self._table.abandon_copies(copying.source.family, "key = ?", copying.record.key)

    def _abandoned_at(self) -> int:
        """Return when a copy that is being worked on now is taken for abandoned."""
        return self._sql.now() + 1_000_000 * ABANDONED_SECONDS

    def _copy_rows(
        self, copying: _UnfinishedCopy, table: str, place: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        """Copy rows that come after a place, and return up to where, or None at the end."""
        self._bind_to(copying.hashing, copying.source, copying.record)
        columns, values = _COLUMNS[table]
        order, _ = PLACES[table]
        at_place = placeholders(place)
        of_source = f"FROM forkpoint_{table} WHERE thread = ? AND ({order}) > ({at_place})"
        begin = (copying.source.key, *place)
        last = self._sql.row(
            f"SELECT {order} {of_source} ORDER BY {order} LIMIT 1 OFFSET ?",
            (*begin, self._sql.turn_rows - 1),
        )
        until, end = ("", ()) if last is None else (f"AND ({order}) <= ({at_place})", last)
        self._sql.run(
            f"INSERT INTO forkpoint_{table} (thread, {columns}, binding)"
            f" SELECT ?, {values}, {REBOUND} {of_source} {until} AND id < ?",
            (copying.record.key, *begin, *end, copying.bounds[table]),
        )
        return last

    def _add_record(
        self,
        source: ThreadRef,
        name: str,
        target_id: str,
        hashing: Hashing,
        described: Description | None,
    ) -> _Record:
        """Insert the record of a copy, hidden and under a name of its own until it is shown."""
        row = self._sql.row(
            f"SELECT owner, checksums, {DESCRIPTION} FROM forkpoint_threads WHERE key = ?",
            (source.key,),
        )
        assert row is not None
        owner, source_checksums, *source_description = row
        if described is None:
            described = description(source_description)
            hashing.check_description(
                source.thread_id, source.salt, source_checksums, None, described
            )
        salt = new_salt(source.salt)
        lineage = ("clone", str(source.key), None)
        checksums = hashing.checksums((target_id, owner, salt), described, lineage)
        now = self._sql.now()
        key = self._sql.run(
            "INSERT INTO forkpoint_threads (thread_id, family, epoch, edge, parent, salt,"
            " created_at, updated_at, deleted_at, removed_at, provisional, copy_deadline,"
            f" {_COPIED_RECORD})"
            " SELECT ?, family, epoch, 'clone', key, ?, ?, ?, ?, ?, 1, ?,"
            f" {_COPIED_RECORD} FROM forkpoint_threads WHERE key = ?",
            (name, salt, *[now] * 4, self._abandoned_at(), source.key),
        ).lastrowid
        assert key is not None
        self._table.describe(key, described, checksums)
        self._sql.run(COPY_DICTIONARY, (key, source.key))
        return _Record(key, salt)

    def _show(self, key: int, target_id: str) -> None:
        """Make a complete copy visible."""
        now = self._sql.now()
        self._table.update(
            key,
            "thread_id = ?, watermark = ?, created_at = ?, updated_at = ?,"
            " state_updated_at = CASE state_updated_at WHEN 0 THEN 0 ELSE ? END, deleted_at = NULL,"
            " removed_at = NULL, provisional = 0, copy_deadline = NULL",
            *(target_id, self._tombstones.watermark(target_id), now, now, now),
        )

    def fork(self, graft: ForkRequest) -> None:
        self._table.check_free(graft.target_id)
        put_chunks(self._sql, graft.source, graft.chunks)
        self._insert(self._add_fork(graft, graft.target_id), graft.rows, graft.writes)

    def begin_fork(self, graft: ForkRequest) -> _UnfinishedFork:
        self._table.check_free(graft.target_id)
        removals = self._table.change_count(graft.source).removals
        put_chunks(self._sql, graft.source, graft.chunks)
        # Under a name of its own, as a copy is.
        record = _Record(self._add_fork(graft, f"{graft.target_id}\0{uuid4()}"), graft.salt)
        self._table.update(
            record.key,
            "deleted_at = created_at, removed_at = created_at, provisional = 1, copy_deadline = ?",
            self._abandoned_at(),
        )
        self._insert(record.key, graft.rows, graft.writes)
        return _UnfinishedFork(graft.source, removals, record, graft.target_id)

    def fork_more(
        self, forking: Any, rows: Sequence[CheckpointRow], writes: Sequence[WriteRow]
    ) -> None:
        assert isinstance(forking, _UnfinishedFork)
        self._go_on(forking)
        self._insert(forking.record.key, rows, writes)
        shown = sum(not row.hidden for row in rows)
        changes = "checkpoint_count = checkpoint_count + ?"
        self._table.update(forking.record.key, changes, shown)

    def end_fork(self, forking: Any) -> None:
        assert isinstance(forking, _UnfinishedFork)
        self._go_on(forking)
        self._table.check_free(forking.target_id)
        self._show(forking.record.key, forking.target_id)

    def _add_fork(self, graft: ForkRequest, name: str) -> int:
        """Insert the record of a fork, and return its key."""
        source, now = graft.source, self._sql.now()
        checksums = graft.hashing.checksums(
            (graft.target_id, graft.owner, graft.salt),
            graft.described,
            (graft.edge, str(source.key), graft.parent_checkpoint_id),
        )
        key = self._sql.run(
            "INSERT INTO forkpoint_threads (thread_id, family, epoch, edge, parent,"
            " parent_checkpoint_id, owner, salt, status, checkpoint_count, created_at,"
            " updated_at, state_updated_at, watermark)"
            " SELECT ?, family, epoch, ?, key, ?, ?, ?, ?, ?, ?, ?, ?, ?"
            " FROM forkpoint_threads WHERE key = ?",
            (
                name,
                graft.edge,
                graft.parent_checkpoint_id,
                graft.owner,
                graft.salt,
                graft.status,
                sum(not row.hidden for row in graft.rows),
                now,
                now,
                now if graft.rows else 0,
                self._tombstones.watermark(graft.target_id),
                source.key,
            ),
        ).lastrowid
        assert key is not None
        self._table.describe(key, graft.described, checksums)
        return key

    def _insert(self, key: int, rows: Sequence[CheckpointRow], writes: Sequence[WriteRow]) -> None:
        """Insert the rows of a fork."""
        choose_dictionary(self._sql, key, rows)
        values = [in_order_to_insert(checkpoint_values(key, row)) for row in rows]
        self._sql.run_each(INSERT_CHECKPOINT, values)
        self._sql.insert(INSERT_WRITES, [write_values(key, write) for write in writes])
