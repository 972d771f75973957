"""SQLite: how a thread is copied, at once or in turns while others write.

A copy in turns is that of a moment: it takes the rows whose ids are below those of two empty rows
that it inserts when it begins. No id is given twice while these are there. Until it is complete,
its record looks like that of a deleted thread, of which something is left.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import StorageBusy, ThreadExists
from forkpoint.sqlite.errors import noting
from forkpoint.sqlite.removals import ABANDONED_SECONDS, SqliteRemoving
from forkpoint.sqlite.rows import CHECKPOINT, DESCRIPTION, PLACES, REBOUND, WRITE, description
from forkpoint.sqlite.statements import marks
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import Description, ThreadRef

# What a clone has of its source, beside what is said of it.
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


class _Copy(NamedTuple):
    """The record of a copy."""

    key: int | None
    salt: bytes


class _Copying(NamedTuple):
    """A copy that is not complete."""

    source: ThreadRef
    hashing: Hashing
    removals: int
    """How often something had been removed from the source when it began."""
    copy: _Copy
    target_id: str
    bounds: dict[str, int | None]
    """The ids of the empty rows, by table."""
    places: dict[str, tuple[Any, ...] | None]
    """Up to where each table is copied; None where that is done."""


class SqliteCopying(SqliteRemoving):
    """The primitives of `forkpoint.storage.interface.Session` that copy threads."""

    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        self._check_free(target_id)
        copy = self._add_copy(source, target_id, target_id, hashing, described)
        self._bind_to(hashing, source, copy)
        for table, (columns, copied) in _COLUMNS.items():
            self.run(
                f"INSERT INTO forkpoint_{table} (thread, {columns}, binding)"
                f" SELECT ?, {copied}, {REBOUND} FROM forkpoint_{table} WHERE thread = ?",
                copy.key,
                source.key,
            )
        self._show(copy.key, target_id)

    def _bind_to(self, hashing: Hashing, source: ThreadRef, copy: _Copy) -> None:
        """Let the rows of a thread that are copied from now on be bound to the copy."""
        rebound = partial(hashing.rebound, source.salt, copy.salt)
        self.create_function("forkpoint_rebound", 2, noting(rebound))

    def begin_copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> _Copying:
        self._check_free(target_id)
        removals = self.extent(source).removals
        # Under a name of its own: what the target's id means does not change yet.
        name = f"{target_id}\0{uuid4()}"
        copy = self._add_copy(source, name, target_id, hashing, described)
        bounds = {
            table: self.run(empty, copy.key).lastrowid for table, empty in _EMPTY_ROWS.items()
        }
        places: dict[str, tuple[Any, ...] | None] = {
            table: first for table, (_, first) in PLACES.items()
        }
        return _Copying(source, hashing, removals, copy, target_id, bounds, places)

    def copy_part(self, copying: Any) -> bool:
        assert isinstance(copying, _Copying)
        if self.extent(copying.source).removals != copying.removals:
            raise Stale
        if not self.run(
            "UPDATE forkpoint_threads SET building = ? WHERE key = ? AND building > 0",
            self._abandoned_at(),
            copying.copy.key,
        ).rowcount:
            raise StorageBusy("copying took too long, and was taken for abandoned; try again")
        for table, place in copying.places.items():
            if place is not None:
                copying.places[table] = self._copy_rows(copying, table, place)
                return True
        self._check_free(copying.target_id)
        for table, bound in copying.bounds.items():
            self.run(f"DELETE FROM forkpoint_{table} WHERE id = ?", bound)
        self._show(copying.copy.key, copying.target_id)
        return False

    def _abandoned_at(self) -> int:
        """Return from when on a copy is taken for abandoned."""
        return self.now() + 1_000_000 * ABANDONED_SECONDS

    def abandon_copy(self, copying: Any) -> None:
        assert isinstance(copying, _Copying)
        self.abandon(copying.source.family, "key = ?", copying.copy.key)

    def _copy_rows(
        self, copying: _Copying, table: str, place: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        """Copy rows that come after a place, and return up to where, or None if it was the end."""
        self._bind_to(copying.hashing, copying.source, copying.copy)
        columns, copied = _COLUMNS[table]
        order, _ = PLACES[table]
        at_place = marks(place)
        of_source = f"FROM forkpoint_{table} WHERE thread = ? AND ({order}) > ({at_place})"
        at = (copying.source.key, *place)
        last = self.one(
            f"SELECT {order} {of_source} ORDER BY {order} LIMIT 1 OFFSET ?",
            *at,
            self.turn_rows - 1,
        )
        until, end = ("", ()) if last is None else (f"AND ({order}) <= ({at_place})", last)
        self.run(
            f"INSERT INTO forkpoint_{table} (thread, {columns}, binding)"
            f" SELECT ?, {copied}, {REBOUND} {of_source} {until} AND id < ?",
            copying.copy.key,
            *at,
            *end,
            copying.bounds[table],
        )
        return last

    def _check_free(self, target_id: str) -> None:
        if self.thread(target_id) is not None:
            raise ThreadExists(f"there is a thread {target_id!r} already")

    def _add_copy(
        self,
        source: ThreadRef,
        name: str,
        target_id: str,
        hashing: Hashing,
        described: Description | None,
    ) -> _Copy:
        """Make the record of a copy, under a name of its own until it is shown."""
        record = self.one(
            f"SELECT owner, checksums, {DESCRIPTION} FROM forkpoint_threads WHERE key = ?",
            source.key,
        )
        assert record is not None
        owner, copied, *said = record
        if described is None:
            described = description(said)
            hashing.check_description(source.thread_id, source.salt, copied, None, described)
        salt = new_salt(source.salt)
        checksums = hashing.checksums(
            (target_id, owner, salt),
            described,
            ("clone", str(source.key), None),
        )
        now = self.now()
        key = self.run(
            "INSERT INTO forkpoint_threads (thread_id, family, epoch, edge, parent, salt,"
            " created_at, updated_at, deleted_at, removed_at, provisional, building,"
            f" {_COPIED_RECORD})"
            " SELECT ?, family, epoch, 'clone', key, ?, ?, ?, ?, ?, 1, ?,"
            f" {_COPIED_RECORD} FROM forkpoint_threads WHERE key = ?",
            name,
            salt,
            *[now] * 4,
            self._abandoned_at(),
            source.key,
        ).lastrowid
        self._describe(key, described, checksums)
        return _Copy(key, salt)

    def _show(self, key: int | None, target_id: str) -> None:
        """Let a copy be seen that is complete."""
        now = self.now()
        self.run(
            "UPDATE forkpoint_threads SET thread_id = ?, dead_until = ?, created_at = ?,"
            " updated_at = ?, state_updated_at = iif(state_updated_at = 0, 0, ?),"
            " deleted_at = NULL, removed_at = NULL, provisional = 0,"
            " building = NULL WHERE key = ?",
            target_id,
            self.dead_until(target_id),
            *[now] * 3,
            key,
        )
