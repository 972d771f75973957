"""SQLite: how checkpoints are removed from a thread that stays, some at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ormsgpack

from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.sqlite.rows import (
    AT_PLACE,
    DELETE_RECEIPT,
    NEWEST_CHECKPOINT,
    READ_CHECKPOINT,
    RESTORED,
    STATUS_AFTER,
    STATUS_AGAIN,
    checkpoint_row,
)
from forkpoint.sqlite.schema import IS_IRREGULAR
from forkpoint.sqlite.search_index import SearchIndex
from forkpoint.sqlite.statements import Statements
from forkpoint.sqlite.thread_table import ThreadTable
from forkpoint.storage.interface import Choose, Removals, Stale
from forkpoint.storage.plan import DROPPED, KEPT, Plan
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    HIDDEN,
    RESTARTS,
    ChangeCount,
    Counts,
    RemovalPart,
    RemovalResult,
    ThreadRef,
)

_STATUS, _SAME_STATUS = (
    status.format(checkpoint_ns="''", checkpoint_id=NEWEST_CHECKPOINT.format(thread="key"))
    for status in (STATUS_AFTER, STATUS_AGAIN)
)
_HIDE, _RESTART = (
    f"UPDATE forkpoint_checkpoints SET {flag} = 1, binding = binding + {value} {AT_PLACE}"
    f" AND NOT {flag}"
    for flag, value in (("hidden", HIDDEN), ("restarts", RESTARTS))
)
# What the tasks after a checkpoint have done; see `forkpoint.storage.plan.reopens`.
_WORK_AT = f"{AT_PLACE} AND idx NOT IN {KEPT} AND (task_id != '{NULL_TASK_ID}' OR idx IN {DROPPED})"
_UNDER_FENCES = "WHERE thread = ? AND fence >= ? AND fence < ?"


class SqliteRemovals(Removals):
    """The role `Removals`."""

    def __init__(self, sql: Statements, table: ThreadTable, index: SearchIndex) -> None:
        self._sql = sql
        self._table = table
        self._index = index

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        try:
            self._table.change_count(thread)
        except Stale:
            return Counts(0, 0)
        before = self._table.count_rows(thread)
        rows = self._sql.rows(
            f"SELECT {READ_CHECKPOINT} FROM forkpoint_checkpoints WHERE thread = ?", (thread.key,)
        )
        plan = choose([checkpoint_row(row) for row in rows])
        newest = self._newest(thread)
        removed, hidden = (
            [(thread.key, *place) for place in places] for places in (plan.removed, plan.hidden)
        )
        for table in ("writes", "checkpoints"):
            self._sql.run_each(f"DELETE FROM forkpoint_{table} {AT_PLACE}", removed)
        self._sql.run_each(_HIDE, hidden)
        self._sql.run_each(DELETE_RECEIPT, hidden)
        self._reopen(thread, plan)
        self._table.count_checkpoints(thread.key)
        if removed or hidden or plan.is_whole:
            self._update_newest(thread, newest, is_reopened=plan.is_whole)
            self._table.note_removal(thread, len(removed))
        after = self._table.count_rows(thread)
        return Counts(before.number - after.number, before.more - after.more)

    def recount(self, thread: ThreadRef) -> None:
        self._index.remove(thread.key)
        self._table.count_checkpoints(thread.key)
        self._table.update(thread.key, f"status = {_SAME_STATUS}")
        self._index.update(thread.key)

    def is_long(self, thread: ThreadRef) -> bool:
        limit = self._sql.turn_rows
        return any(
            (limit,)
            == self._sql.row(
                f"SELECT count(*) FROM (SELECT 1 FROM forkpoint_{table} WHERE thread = ? LIMIT ?)",
                (thread.key, limit),
            )
            for table in ("checkpoints", "writes")
        )

    def is_ordered(self, thread: ThreadRef) -> bool:
        irregular = f"SELECT 1 FROM forkpoint_checkpoints WHERE thread = ? AND {IS_IRREGULAR}"
        return self._sql.row(irregular, (thread.key,)) is None

    def extent(self, thread: ThreadRef) -> ChangeCount:
        return self._table.change_count(thread)

    def remove_batch(
        self, thread: ThreadRef, part: RemovalPart, check: Callable[[], None]
    ) -> RemovalResult:
        check()
        plan = part.plan
        checkpoints = writes = no_longer_visible = places = 0
        newest = self._newest(thread)
        for place in part.going:
            if (
                checkpoints + writes + no_longer_visible >= self._sql.turn_rows
                and not plan.is_whole
            ):
                break
            places += 1
            at = (thread.key, *place)
            row = self._sql.row(f"SELECT hidden FROM forkpoint_checkpoints {AT_PLACE}", at)
            no_longer_visible += row is not None and not row[0]
            if place in plan.hidden:
                self._sql.run(_HIDE, at)
                self._sql.run(DELETE_RECEIPT, at)
                continue
            writes += self._delete_writes(AT_PLACE, *at)
            checkpoints += self._sql.run(
                f"DELETE FROM forkpoint_checkpoints {AT_PLACE}", at
            ).rowcount
        self._table.update(thread.key, "checkpoint_count = checkpoint_count - ?", no_longer_visible)
        writes += self._reopen(thread, plan)
        self._update_newest(thread, newest, is_reopened=plan.is_whole)
        self._table.note_removal(thread, checkpoints)
        return RemovalResult(Counts(checkpoints, writes), places, self.extent(thread))

    def _reopen(self, thread: ThreadRef, plan: Plan) -> int:
        """Remove what was done after some checkpoints, and return how many writes that were."""
        number = 0
        for place in plan.restarted:
            self._sql.run(_RESTART, (thread.key, *place))
        for place in plan.reopened:
            number += self._delete_writes(_WORK_AT, thread.key, *place)
        if plan.withdrawn is not None:
            fences = (plan.withdrawn.start, plan.withdrawn.stop)
            self._restore_writes(thread, *fences)
            number += self._delete_writes(_UNDER_FENCES, thread.key, *fences)
        if plan.reopened:
            now = self._sql.now()
            self._table.update(thread.key, "updated_at = max(updated_at, ?)", now)
        return number

    def _newest(self, thread: ThreadRef) -> str | None:
        """Return the newest checkpoint of a thread's own graph."""
        row = self._sql.row(f"SELECT {NEWEST_CHECKPOINT.format(thread='?')}", (thread.key,))
        return row[0] if row else None

    def _update_newest(self, thread: ThreadRef, before: str | None, *, is_reopened: bool) -> None:
        """Bring the record up to date with the newest checkpoint.

        Args:
            thread: The thread.
            before: The newest checkpoint before the removal.
            is_reopened: Whether it counts as another one even if it is the same.
        """
        if is_reopened or self._newest(thread) != before:
            self._index.remove(thread.key)
            change = f"status = {_STATUS}, state_updated_at = max(state_updated_at, ?)"
            self._table.update(thread.key, change, self._sql.now())
            self._index.update(thread.key)

    def _restore_writes(self, thread: ThreadRef, *fences: int) -> None:
        """Let writes be what they were before the runs with these fences replaced them."""
        rows = self._sql.rows(
            f"SELECT before, id FROM forkpoint_writes {_UNDER_FENCES} AND before IS NOT NULL",
            (thread.key, *fences),
        )
        columns = RESTORED.split(", ")
        restored = [(unpacked_write(before, len(columns)), id_) for before, id_ in rows]
        self._sql.run_each(
            f"UPDATE forkpoint_writes SET {', '.join(f'{column} = ?' for column in columns)},"
            " before = NULL, before_refs = NULL WHERE id = ?",
            [(*values, id_) for values, id_ in restored if values is not None],
        )

    def _delete_writes(self, condition: str, *values: Any) -> int:
        """Delete writes with their receipts, and return how many writes that were."""
        row = self._sql.row(
            f"SELECT count(*) FROM forkpoint_writes {condition} AND idx > {RECEIPT}", values
        )
        self._sql.run(f"DELETE FROM forkpoint_writes {condition}", values)
        return row[0] if row else 0


def unpacked_write(before: Any, columns: int) -> list[Any] | None:
    """Return what a write was before; None if that is damaged: then its receipt tells."""
    try:
        values = ormsgpack.unpackb(before)
    except (ValueError, TypeError):
        return None
    is_row = isinstance(values, list) and len(values) == columns
    # Nothing else could be stored, and the column's rules would refuse nothing.
    is_stored = is_row and all(type(value) in (str, bytes, int) for value in values[:-1])
    return values if is_stored and type(values[-1]) in (int, type(None)) else None
