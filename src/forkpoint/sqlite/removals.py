"""SQLite: how checkpoints, threads and chunks are removed, some at a time, while others write.

Every removal gives the thread another epoch, one that the family never had. So a collection sees
that something was removed since it began, and a write that relies on what was removed is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import ormsgpack

from forkpoint.encoding.hashing import UNBOUND
from forkpoint.langgraph_rules import ERROR_IDX, INTERRUPT_IDX, NULL_TASK_ID
from forkpoint.sqlite.rows import HEAD_OF, READ_CHECKPOINT, RESTORED, checkpoint_row
from forkpoint.sqlite.statements import marks
from forkpoint.sqlite.threads import SqliteThreads
from forkpoint.storage.interface import CHUNKS_AT_ONCE, Choose, Stale
from forkpoint.storage.plan import DROPPED, KEPT, Place, Plan
from forkpoint.storage.queries import Batch
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    HIDDEN,
    RESTARTS,
    ChangeCount,
    CheckpointRow,
    Counts,
    RemovalPart,
    RemovalResult,
    ThreadRef,
)

ABANDONED_SECONDS = 60
"""After which time others take the work over that a process began, and did not end."""

# What the newest checkpoint waits for.
_UPDATE_STATUS = (
    "UPDATE forkpoint_threads SET status = coalesce(("
    f"SELECT CASE idx WHEN {INTERRUPT_IDX} THEN 'interrupted' ELSE 'error' END"
    f" FROM forkpoint_writes WHERE thread = key AND checkpoint_ns = '' AND checkpoint_id ="
    f" {HEAD_OF.format(thread='key')} AND idx IN ({INTERRUPT_IDX}, {ERROR_IDX})"
    " ORDER BY idx LIMIT 1"
    "), 'idle') WHERE key = ?"
)
_OUTLINE = (
    "checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id, metadata, x'', x'', x'', hidden"
)
_PLACE = "WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
_HIDE, _RESTART = (
    f"UPDATE forkpoint_checkpoints SET {flag} = 1, binding = binding + {counts} {_PLACE}"
    f" AND NOT {flag}"
    for flag, counts in (("hidden", HIDDEN), ("restarts", RESTARTS))
)
# Nobody misses a checkpoint that is hidden.
UNRECEIPT = (
    f"DELETE FROM forkpoint_writes {_PLACE} AND task_id = '{NULL_TASK_ID}' AND idx = {RECEIPT}"
)
_WRITES_AT = f"SELECT count(*) FROM forkpoint_writes {{}} AND idx > {RECEIPT}"
# What the tasks after a checkpoint have done; see `removal.reopens`.
_DONE = f"{_PLACE} AND idx NOT IN {KEPT} AND (task_id != '{NULL_TASK_ID}' OR idx IN {DROPPED})"
_UNDER = "WHERE thread = ? AND fence >= ? AND fence < ?"
_REFERRING = {
    "checkpoints": "refs",
    "writes": "CAST(refs || coalesce(before_refs, x'') AS BLOB)",
}
"""Where references stand."""

_CHUNKS_PER_ROW = 5  # where little is done in a transaction: a full disk has no room for more


def _unpacked(before: Any, columns: int) -> list[Any] | None:
    """Return what a write was before; None if that is damaged: then its receipt tells."""
    try:
        values = ormsgpack.unpackb(before)
    except (ValueError, TypeError):
        return None
    is_row = isinstance(values, list) and len(values) == columns
    # Nothing else could be stored, and the column's rules would refuse nothing.
    is_stored = is_row and all(type(value) in (str, bytes, int) for value in values[:-1])
    return values if is_stored and type(values[-1]) in (int, type(None)) else None


def _bounds(fences: range) -> tuple[int, int]:
    return fences.start, fences.stop


class SqliteRemoving(SqliteThreads):
    """The primitives of `forkpoint.storage.interface.Session` that remove."""

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        before = self.count_rows(thread)
        rows = self.all(
            f"SELECT {READ_CHECKPOINT} FROM forkpoint_checkpoints WHERE thread = ?", thread.key
        )
        plan = choose([checkpoint_row(row) for row in rows])
        head = self._head(thread)
        for table in ("writes", "checkpoints"):
            self.many(
                f"DELETE FROM forkpoint_{table} {_PLACE}",
                ((thread.key, *place) for place in plan.removed),
            )
        self.many(
            _HIDE,
            ((thread.key, *place) for place in plan.hidden),
        )
        self.many(UNRECEIPT, ((thread.key, *place) for place in plan.hidden))
        self._begin_again(thread, plan)
        self.count_checkpoints(thread.key)
        if plan.removed or plan.hidden or plan.is_whole:
            self._look_at_head(thread, head, is_reopened=plan.is_whole)
            self.note_removal(thread)
        return Counts(
            *(old - new for old, new in zip(before, self.count_rows(thread), strict=True))
        )

    def count_checkpoints(self, thread: int) -> None:
        self.run(
            "UPDATE forkpoint_threads SET checkpoint_count = (SELECT count(*) FROM"
            " forkpoint_checkpoints WHERE thread = ? AND NOT hidden) WHERE key = ?",
            thread,
            thread,
        )

    # Removing in turns

    def is_long(self, thread: ThreadRef) -> bool:
        for table in ("checkpoints", "writes"):
            row = self.one(
                f"SELECT count(*) FROM (SELECT 1 FROM forkpoint_{table} WHERE thread = ? LIMIT ?)",
                thread.key,
                self.turn_rows,
            )
            if row is not None and row[0] == self.turn_rows:
                return True
        return False

    def extent(self, thread: ThreadRef) -> ChangeCount:
        row = self.one(
            "SELECT checkpoint_count, removals FROM forkpoint_threads"
            " WHERE key = ? AND deleted_at IS NULL",
            thread.key,
        )
        if row is None:
            raise Stale
        return ChangeCount(*row)

    def rows_after(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        columns, made = (
            (READ_CHECKPOINT, checkpoint_row) if with_content else (_OUTLINE, _outline_row)
        )
        part = self.part_after("checkpoints", columns, thread.key, after)
        return Batch([made(row) for row in part.items], part.after)

    def rows_from(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        rows: list[tuple[Any, ...]] = []
        for where in ("checkpoint_ns = ''", "checkpoint_ns > ''"):
            rows += self.all(
                f"SELECT {_OUTLINE} FROM forkpoint_checkpoints WHERE thread = ? AND {where}"
                " AND checkpoint_id >= ? AND NOT hidden",
                thread.key,
                checkpoint_id,
            )
        return [_outline_row(row) for row in rows]

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        return self.all(
            f"SELECT checkpoint_ns, checkpoint_id FROM forkpoint_checkpoints {_UNDER}",
            thread.key,
            *_bounds(fences),
        )

    def remove_part(
        self, thread: ThreadRef, part: RemovalPart, check: Callable[[], None]
    ) -> RemovalResult:
        check()
        plan = part.plan
        checkpoints = writes = unseen = done = 0
        head = self._head(thread)
        for place in part.going:
            if checkpoints + writes + unseen >= self.turn_rows and not plan.is_whole:
                break
            done += 1
            at = (thread.key, *place)
            row = self.one(f"SELECT hidden FROM forkpoint_checkpoints {_PLACE}", *at)
            unseen += row is not None and not row[0]
            if place in plan.hidden:
                self.run(_HIDE, *at)
                self.run(UNRECEIPT, *at)
                continue
            writes += self._drop_writes(_PLACE, *at)
            checkpoints += self.run(f"DELETE FROM forkpoint_checkpoints {_PLACE}", *at).rowcount
        self.run(
            "UPDATE forkpoint_threads SET checkpoint_count = checkpoint_count - ? WHERE key = ?",
            unseen,
            thread.key,
        )
        writes += self._begin_again(thread, plan)
        self._look_at_head(thread, head, is_reopened=plan.is_whole)
        self.note_removal(thread)
        return RemovalResult(Counts(checkpoints, writes), done, self.extent(thread))

    def _begin_again(self, thread: ThreadRef, plan: Plan) -> int:
        """Drop what was done after some checkpoints, and return how many writes that were."""
        number = 0
        for place in plan.restarted:
            at = (thread.key, *place)
            self.run(_RESTART, *at)
        for place in plan.reopened:
            number += self._drop_writes(_DONE, thread.key, *place)
        if plan.withdrawn is not None:
            self._restore(thread, plan.withdrawn)
            number += self._drop_writes(_UNDER, thread.key, *_bounds(plan.withdrawn))
        if plan.reopened:
            self.run(
                "UPDATE forkpoint_threads SET updated_at = max(updated_at, ?) WHERE key = ?",
                self.now(),
                thread.key,
            )
        return number

    def _head(self, thread: ThreadRef) -> str | None:
        """Return the newest checkpoint of a thread's own graph."""
        row = self.one(f"SELECT {HEAD_OF.format(thread='?')}", thread.key)
        return row[0] if row else None

    def _look_at_head(self, thread: ThreadRef, before: str | None, *, is_reopened: bool) -> None:
        """Let the record say what it is to say of the newest checkpoint, which may be another."""
        self.run(_UPDATE_STATUS, thread.key)
        if is_reopened or self._head(thread) != before:
            self._unlist(thread.key)  # which it is sorted and found by
            self.run(
                "UPDATE forkpoint_threads SET state_updated_at = max(state_updated_at, ?)"
                " WHERE key = ?",
                self.now(),
                thread.key,
            )

    def _restore(self, thread: ThreadRef, fences: range) -> None:
        """Let writes be what they were before runs replaced them."""
        rows = self.all(
            f"SELECT id, before FROM forkpoint_writes {_UNDER} AND before IS NOT NULL",
            thread.key,
            *_bounds(fences),
        )
        columns = RESTORED.split(", ")
        unpacked = [(_unpacked(before, len(columns)), id_) for id_, before in rows]
        self.many(
            f"UPDATE forkpoint_writes SET {', '.join(f'{column} = ?' for column in columns)},"
            " before = NULL, before_refs = NULL WHERE id = ?",
            [(*before, id_) for before, id_ in unpacked if before is not None],
        )

    def _drop_writes(self, where: str, *values: Any) -> int:
        """Remove writes with their receipts, and return how many writes that were."""
        row = self.one(_WRITES_AT.format(where), *values)
        self.run(f"DELETE FROM forkpoint_writes {where}", *values)
        return row[0] if row else 0

    # Collecting

    def uncollected(self) -> list[Any]:
        rows = self.all(
            "SELECT DISTINCT family FROM forkpoint_threads"
            " WHERE removed_at IS NOT NULL AND removed_at < ?",
            self.now() - 1_000_000 * ABANDONED_SECONDS,
        )
        return [family for (family,) in rows]

    def clear(self, family: Any) -> bool:
        left = self.turn_rows
        removed = "WHERE family = ? AND removed_at IS NOT NULL"
        self.abandon(family, "building < ?", self.now())
        for (key,) in self.all(
            "SELECT key FROM forkpoint_threads"
            f" {removed} AND deleted_at IS NOT NULL AND coalesce(building, 0) = 0",
            family,
        ):
            for table in ("writes", "checkpoints"):
                left -= self.run(
                    f"DELETE FROM forkpoint_{table} WHERE id IN"
                    f" (SELECT id FROM forkpoint_{table} WHERE thread = ? LIMIT ?)",
                    key,
                    left,
                ).rowcount
                if left == 0:
                    return True
        return False

    def abandon(self, family: Any, which: str, value: Any) -> None:
        """Take copies for abandoned: what is in them is to be removed, as of a deleted thread."""
        self.run(
            "UPDATE forkpoint_threads SET building = 0, epoch ="
            " (SELECT max(epoch) + 1 FROM forkpoint_threads WHERE family = ?)"
            f" WHERE family = ? AND removed_at IS NOT NULL AND building > 0 AND {which}",
            family,
            family,
            value,
        )

    def begin_collection(self, family: Any) -> int:
        row = self.one("SELECT max(epoch) + 1 FROM forkpoint_threads WHERE family = ?", family)
        epoch: int = row[0] or 0 if row else 0
        self.run("UPDATE forkpoint_threads SET epoch = ? WHERE family = ?", epoch, family)
        self.run(
            "UPDATE forkpoint_threads SET removed_at = ?"
            " WHERE family = ? AND removed_at IS NOT NULL",
            self.now(),
            family,
        )
        return epoch

    def is_undisturbed(self, family: Any, collection: int) -> bool:
        return self._epochs(family) == (collection, collection)

    def is_overtaken(self, family: Any, collection: int) -> bool:
        lowest, _ = self._epochs(family)
        return lowest is None or lowest > collection

    def _epochs(self, family: Any) -> tuple[int | None, int | None]:
        """Return the lowest and the highest epoch in a family, if anything is left of it."""
        lowest, highest = (
            self.one(f"SELECT {which}(epoch) FROM forkpoint_threads WHERE family = ?", family)
            for which in ("min", "max")
        )
        assert lowest is not None
        assert highest is not None
        return lowest[0], highest[0]

    def references(self, family: Any, after: Any = None) -> Batch[tuple[Any, bytes]]:
        if after is None:
            keys = self.all("SELECT key FROM forkpoint_threads WHERE family = ?", family)
            after = [(key, table, None) for (key,) in keys for table in _REFERRING]
        items: list[tuple[Any, bytes]] = []
        while after and len(items) < self.turn_rows:
            key, table, place = after.pop()
            part = self.part_after(table, _REFERRING[table], key, place)
            items += ((key, row[0]) for row in part.items)
            if part.after is not None:
                after.append((key, table, part.after))
        return Batch(items, after or None)

    def links(self, family: Any, after: Any = None) -> Batch[tuple[bytes, bytes]]:
        rows = self._chunks_after(family, "digest, refs", after)
        return Batch([row for row in rows if row[1]], self._after(rows))

    def digests(self, family: Any, after: Any = None) -> Batch[bytes]:
        rows = self._chunks_after(family, "digest", after)
        return Batch([digest for (digest,) in rows], self._after(rows))

    def _chunks_after(self, family: Any, columns: str, after: Any) -> list[tuple[Any, ...]]:
        rows = self.all(
            f"SELECT {columns} FROM forkpoint_chunks WHERE family = ? AND digest > ?"
            " ORDER BY digest LIMIT ?",
            family,
            after or b"",
            self.turn_rows,
        )
        self.count_read(len(rows))
        return rows

    def _after(self, rows: list[tuple[Any, ...]]) -> Any:
        return rows[-1][0] if len(rows) == self.turn_rows else None

    def chunks_at_once(self) -> int:
        return min(CHUNKS_AT_ONCE, _CHUNKS_PER_ROW * self.turn_rows)

    def drop_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: int
    ) -> Counts | None:
        if not self.is_undisturbed(family, collection):
            return None
        if digests is None:
            rows = self.all(
                "SELECT digest FROM forkpoint_chunks WHERE family = ? AND epoch != ? LIMIT ?",
                family,
                collection,
                self.chunks_at_once(),
            )
            digests = [digest for (digest,) in rows]
        which = f"WHERE family = ? AND epoch != ? AND digest IN ({marks(digests)})"
        values = (family, collection, *digests)
        counts = self.one(
            "SELECT count(*), total(length(refs) + length(content)) FROM forkpoint_chunks " + which,
            *values,
        )
        assert counts is not None
        self.run(f"DELETE FROM forkpoint_chunks {which}", *values)
        return Counts(counts[0], int(counts[1]))

    def end_collection(self, family: Any, collection: int) -> bool:
        if not self.is_undisturbed(family, collection):
            return False
        self.run(
            "UPDATE forkpoint_threads SET removed_at = NULL"
            " WHERE family = ? AND removed_at IS NOT NULL AND building IS NULL",
            family,
        )
        self.run(  # copies that were never seen
            "DELETE FROM forkpoint_threads"
            " WHERE family = ? AND removed_at IS NOT NULL AND building = 0",
            family,
        )
        self.forget_threads(family)
        return True


def _outline_row(values: Sequence[Any]) -> CheckpointRow:
    """Return as much of a checkpoint as a choice may depend on."""
    return checkpoint_row([*values, 0, UNBOUND])
