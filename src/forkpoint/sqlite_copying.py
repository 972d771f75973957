"""SQLite: how a thread is copied, at once or in turns while others write.

A copy in turns is that of a moment: it takes the rows whose ids are below those of two empty rows
that it inserts when it begins. No id is given twice while these are there. Until it is complete,
its record looks like that of a deleted thread, of which something is left.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import uuid4

from forkpoint.errors import StorageBusy, ThreadExists
from forkpoint.sqlite_removing import ABANDONED_SECONDS, SqliteRemoving
from forkpoint.sqlite_rows import CHECKPOINT, REBOUND, WRITE
from forkpoint.sqlite_statements import time_now
from forkpoint.storage import Description, Stale, ThreadRef

# What a clone has of its source.
_COPIED_RECORD = (
    "owner, label, tags, metadata, fixed_keys, ttl, on_expiry, status, state_updated_at,"
    " checkpoint_count"
)
# The copies do not belong to the runs that made the originals: deleting those leaves them.
_COLUMNS = {
    "checkpoints": (CHECKPOINT, CHECKPOINT.replace("run_id", "NULL")),
    "writes": (WRITE, WRITE),
}
_ORDER = {
    "checkpoints": ("checkpoint_ns, checkpoint_id", "?, ?", ("", "")),
    "writes": (
        "checkpoint_ns, checkpoint_id, task_id, idx",
        "?, ?, ?, ?",
        ("", "", "", -(1 << 62)),
    ),
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


class _Copying(NamedTuple):
    """A copy that is not complete."""

    source: ThreadRef
    removals: int
    """How often something had been removed from the source when it began."""
    key: int | None
    """That of the copy."""
    target_id: str
    bounds: dict[str, int | None]
    """The ids of the empty rows, by table."""
    places: dict[str, tuple[Any, ...] | None]
    """Up to where each table is copied; None where that is done."""


class SqliteCopying(SqliteRemoving):
    """The primitives of `forkpoint.storage.Session` that copy threads."""

    def copy(self, source: ThreadRef, target_id: str, described: Description | None = None) -> None:
        self._check_free(target_id)
        key = self._add_copy(source, target_id, described)
        for table, (columns, copied) in _COLUMNS.items():
            self.run(
                f"INSERT INTO forkpoint_{table} (thread, {columns}, binding)"
                f" SELECT ?, {copied}, {REBOUND} FROM forkpoint_{table} WHERE thread = ?",
                key,
                key,
                source.key,
            )
        self._show(key, target_id)

    def begin_copy(
        self, source: ThreadRef, target_id: str, described: Description | None = None
    ) -> _Copying:
        self._check_free(target_id)
        removals = self.extent(source).removals
        # Under a name of its own: what the target's id means does not change yet.
        key = self._add_copy(source, f"{target_id}\0{uuid4()}", described)
        bounds = {table: self.run(empty, key).lastrowid for table, empty in _EMPTY_ROWS.items()}
        places = {table: first for table, (_, _, first) in _ORDER.items()}
        return _Copying(source, removals, key, target_id, bounds, {**places})

    def copy_part(self, copying: Any) -> bool:
        assert isinstance(copying, _Copying)
        if self.extent(copying.source).removals != copying.removals:
            raise Stale
        if not self.run(
            "UPDATE forkpoint_threads SET building = ? WHERE key = ? AND building > 0",
            _patience(),
            copying.key,
        ).rowcount:
            raise StorageBusy("copying took too long, and was taken for abandoned; try again")
        for table, place in copying.places.items():
            if place is not None:
                copying.places[table] = self._copy_rows(copying, table, place)
                return True
        self._check_free(copying.target_id)
        for table, bound in copying.bounds.items():
            self.run(f"DELETE FROM forkpoint_{table} WHERE id = ?", bound)
        self._show(copying.key, copying.target_id)
        return False

    def abandon_copy(self, copying: Any) -> None:
        assert isinstance(copying, _Copying)
        self.abandon(copying.source.family, "key = ?", copying.key)

    def _copy_rows(
        self, copying: _Copying, table: str, place: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        """Copy rows that come after a place, and return up to where, or None if it was the end."""
        columns, copied = _COLUMNS[table]
        order, marks, _ = _ORDER[table]
        of_source = f"FROM forkpoint_{table} WHERE thread = ? AND ({order}) > ({marks})"
        at = (copying.source.key, *place)
        last = self.one(
            f"SELECT {order} {of_source} ORDER BY {order} LIMIT 1 OFFSET ?",
            *at,
            self.turn_rows - 1,
        )
        until, end = ("", ()) if last is None else (f"AND ({order}) <= ({marks})", last)
        self.run(
            f"INSERT INTO forkpoint_{table} (thread, {columns}, binding)"
            f" SELECT ?, {copied}, {REBOUND} {of_source} {until} AND id < ?",
            copying.key,
            copying.key,
            *at,
            *end,
            copying.bounds[table],
        )
        return last

    def _check_free(self, target_id: str) -> None:
        if self.thread(target_id) is not None:
            raise ThreadExists(f"there is a thread {target_id!r} already")

    def _add_copy(
        self, source: ThreadRef, thread_id: str, described: Description | None
    ) -> int | None:
        now = time_now()
        key = self.run(
            "INSERT INTO forkpoint_threads (thread_id, family, epoch, edge, parent, created_at,"
            f" updated_at, deleted_at, removed_at, provisional, building, {_COPIED_RECORD})"
            f" SELECT ?, family, epoch, 'clone', key, ?, ?, ?, ?, 1, ?, {_COPIED_RECORD}"
            " FROM forkpoint_threads WHERE key = ?",
            thread_id,
            *[now] * 4,
            _patience(),
            source.key,
        ).lastrowid
        if described is not None:
            self._describe(key, described)
        return key

    def _show(self, key: int | None, target_id: str) -> None:
        """Let a copy be seen that is complete."""
        now = time_now()
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


def _patience() -> int:
    """Return until when a copy is not taken for abandoned."""
    return time_now() + 1_000_000 * ABANDONED_SECONDS
