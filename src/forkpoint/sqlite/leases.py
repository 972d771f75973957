"""SQLite: who may run on a thread, and who waits for it.

A lease lasts for long, and its store may be replaced meanwhile by one in which another thread has
the key of its thread, and a lease with the same fence. So the salt of the thread is compared, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from forkpoint.errors import damaged_record
from forkpoint.sqlite.rows import END_LEASE
from forkpoint.sqlite.statements import Statements
from forkpoint.sqlite.thread_table import ThreadTable
from forkpoint.storage.interface import Leases, Stale
from forkpoint.storage.rows import LeaseRow, ThreadRef
from forkpoint.storage.shared import granted

_UNDER_FENCE = "WHERE key = ? AND salt = ? AND fence = ?"


class SqliteLeases(Leases):
    """The role `Leases`."""

    def __init__(self, sql: Statements, table: ThreadTable) -> None:
        self._sql = sql
        self._table = table

    def acquire(
        self,
        thread: ThreadRef,
        holder: str,
        ttl: int,
        *,
        take_over: bool,
        waits: bool,
        rolls_back: bool = False,
    ) -> LeaseRow | None:
        self._sql.keep_time(is_write=True)  # another process may know of a later time
        row = self._sql.row(
            "SELECT lease_holder, lease_since, lease_until, fence, rollback_from, lease_queue"
            " FROM forkpoint_threads WHERE key = ? AND deleted_at IS NULL",
            (thread.key,),
        )
        if row is None:
            raise Stale
        *last, stored_queue = row
        if not all(number is None or isinstance(number, int) for number in last[1:]):
            raise damaged_record(thread.thread_id)
        now, last_lease, queue = self._sql.now(), LeaseRow(*last), _queue(thread, stored_queue)
        lease, new_queue = granted(
            last_lease._replace(holder=holder, since=now, until=now + ttl),
            None if last_lease.until is None else last_lease,
            queue,
            take_over=take_over,
            waits=waits,
            rolls_back=rolls_back,
        )
        if lease is not None:
            columns = "lease_holder = ?, lease_since = ?, lease_until = ?, fence = ?"
            self._table.update(thread.key, f"{columns}, rollback_from = ?", *lease)
        if new_queue != queue:
            self._set_queue(thread, new_queue)
        return lease

    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        row = self._sql.row(
            "SELECT lease_queue FROM forkpoint_threads WHERE key = ?", (thread.key,)
        )
        queue = _queue(thread, row[0]) if row else {}
        if queue.pop(holder, None) is not None:
            self._set_queue(thread, queue)

    def _set_queue(self, thread: ThreadRef, queue: Mapping[str, int]) -> None:
        self._table.update(thread.key, "lease_queue = ?", json.dumps(list(queue.items())))

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        renewed = self._sql.run(
            f"UPDATE forkpoint_threads SET lease_until = max(lease_until, ?) {_UNDER_FENCE}"
            " AND lease_until IS NOT NULL AND deleted_at IS NULL",
            (self._sql.now() + ttl, thread.key, thread.salt, fence),
        )
        return renewed.rowcount == 1

    def release(self, thread: ThreadRef, fence: int) -> None:
        self._change(thread, END_LEASE, fence)

    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        self._change(thread, "rollback_from = NULL", fence)

    def _change(self, thread: ThreadRef, changes: str, fence: int) -> None:
        values = thread.key, thread.salt, fence
        self._sql.run(f"UPDATE forkpoint_threads SET {changes} {_UNDER_FENCE}", values)


def _queue(thread: ThreadRef, stored: Any) -> dict[str, int]:
    """Return until when each waits for the lease of a thread, by holder.

    Raises:
        CorruptChunk: It is not what was written.
    """
    try:
        queue = dict(json.loads(stored))
    except (TypeError, ValueError, RecursionError):
        raise damaged_record(thread.thread_id) from None
    if not all(isinstance(until, int) for until in queue.values()):
        raise damaged_record(thread.thread_id)
    return queue
