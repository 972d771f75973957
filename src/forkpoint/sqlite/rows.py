"""SQLite: the columns of threads, checkpoints and writes, and the records made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from forkpoint.encoding.hashing import IDENTITY_BYTES
from forkpoint.errors import damaged_row
from forkpoint.langgraph_rules import ERROR_IDX, INTERRUPT_IDX, NULL_TASK_ID
from forkpoint.sqlite.metadata import packed, unpacked
from forkpoint.sqlite.statements import Statements, numbered, placeholders
from forkpoint.storage.queries import Batch
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    ThreadRef,
    WriteRow,
    binding_of,
    stored_binding,
)

CHECKPOINT = (
    "checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id, metadata, refs, content, checksum,"
    " hidden, restarts"
)
WRITE = "checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, refs, content, checksum"
RESTORED = "task_path, channel, refs, content, checksum, binding, fence"
"""The columns of a write that are kept, packed, when a run replaces it under a lease."""


def read_checkpoint(table: str = "forkpoint_checkpoints") -> str:
    """Return the columns that `checkpoint_row` takes.

    Args:
        table: The name of the table of checkpoints in the statement.
    """
    columns = f"{CHECKPOINT}, binding".split(", ")
    return ", ".join(
        unpacked(table) if column == "metadata" else f"{table}.{column}" for column in columns
    )


READ_CHECKPOINT = read_checkpoint()
"""The columns that `checkpoint_row` takes."""
READ_WRITE = f"{WRITE}, binding"
"""The columns that `write_row` takes."""
REBOUND = "forkpoint_rebound(checksum, binding)"
"""The binding of a copy of a row, by a function of `SqliteCopies`."""
_THREAD = (
    "{0}key, {0}family, {0}epoch, {0}owner, {0}thread_id, {0}salt,"
    f" substr({{0}}checksums, 1, {IDENTITY_BYTES})"
)
THREAD = _THREAD.format("")
"""The columns of a `ThreadRef`."""
THREAD_OF = _THREAD.format("t.")
"""The same columns of a table that is called `t`."""
THREAD_COLUMNS = len(ThreadRef._fields)
DESCRIPTION = "label, tags, metadata, ttl, fixed_keys, on_expiry"
"""The columns that `description` takes, and a `Description` has."""
NEWEST_CHECKPOINT = (
    "(SELECT max(checkpoint_id) FROM forkpoint_checkpoints"
    " WHERE thread = {thread} AND checkpoint_ns = '' AND NOT hidden)"
)
"""The id of the newest checkpoint of a thread's own graph."""
_WRITES_AFTER = (
    " FROM forkpoint_writes WHERE thread = key AND checkpoint_ns = {checkpoint_ns}"
    " AND checkpoint_id = {checkpoint_id} AND idx"
)
STATUS_AFTER = (
    f"coalesce((SELECT CASE idx WHEN {INTERRUPT_IDX} THEN 'interrupted' ELSE 'error' END"
    f"{_WRITES_AFTER} IN ({INTERRUPT_IDX}, {ERROR_IDX}) ORDER BY idx LIMIT 1), 'idle')"
)
"""The status of a thread whose newest checkpoint is this one, by the writes after it."""
STATUS_AGAIN = (
    f"CASE WHEN status = 'error' AND EXISTS (SELECT 1{_WRITES_AFTER} = {ERROR_IDX})"
    f" THEN status ELSE {STATUS_AFTER} END"
)
"""The same where the record was kept up with the writes; see `langgraph_rules.status_of`."""
END_LEASE = "lease_holder = NULL, lease_since = NULL, lease_until = NULL, fence = fence + 1"
AT_PLACE = "WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
INSERT_CHECKPOINT, in_order_to_insert = numbered(
    f"INSERT OR IGNORE INTO forkpoint_checkpoints (thread, {CHECKPOINT}, binding, fence) VALUES"
    f" (?1, ?2, ?3, ?4, ?5, {packed('?6', '?1')}, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
)
INSERT_WRITES = f"INSERT OR IGNORE INTO forkpoint_writes (thread, {WRITE}, binding, fence) VALUES "
# The receipt of a checkpoint that is hidden, or was replaced: nothing is to miss it.
DELETE_RECEIPT = (
    f"DELETE FROM forkpoint_writes {AT_PLACE} AND task_id = '{NULL_TASK_ID}' AND idx = {RECEIPT}"
)


class Places(NamedTuple):
    """The columns by which an index has the rows of a thread in order."""

    columns: str
    first: tuple[Any, ...]
    """A place before all rows."""


PLACES = {
    "checkpoints": Places("checkpoint_ns, checkpoint_id", ("", "")),
    "writes": Places("checkpoint_ns, checkpoint_id, task_id, idx", ("", "", "", -(1 << 62))),
}
"""The places of each table."""


def rows_after(
    sql: Statements, table: str, columns: str, thread: int, after: tuple[Any, ...] | None
) -> Batch[tuple[Any, ...]]:
    """Read rows of a thread, in the order of their places.

    Args:
        sql: The statements.
        table: The table.
        columns: What to read of it.
        thread: The key of the thread.
        after: The place of the last row of the part before; None for the first part.
    """
    order, first = PLACES[table]
    place = first if after is None else after
    width = len(place)
    rows = sql.rows(
        f"SELECT {columns}, {order} FROM forkpoint_{table} WHERE thread = ?"
        f" AND ({order}) > ({placeholders(place)}) ORDER BY {order} LIMIT ?",
        (thread, *place, sql.turn_rows),
    )
    sql.count_read(len(rows))
    following = rows[-1][-width:] if len(rows) == sql.turn_rows else None
    return Batch([row[:-width] for row in rows], following)


_NONE = type(None)
_CHECKPOINT_TYPES = {
    (str, str, parent, run, str, bytes, bytes, bytes, int, int)
    for parent in (str, _NONE)
    for run in (str, _NONE)
}
_WRITE_TYPES = (str, str, str, int, str, str, bytes, bytes, bytes)


def checkpoint_values(thread: int, row: CheckpointRow, fence: int | None = None) -> tuple[Any, ...]:
    """Return the values of a checkpoint: thread, the columns `CHECKPOINT`, binding, fence."""
    return thread, *row[:-1], stored_binding(row), fence


def write_values(thread: int, row: WriteRow, fence: int | None = None) -> tuple[Any, ...]:
    """Return the values of a write: thread, the columns `WRITE`, binding, fence."""
    return thread, *row[:-1], stored_binding(row), fence


def checkpoint_row(values: Sequence[Any]) -> CheckpointRow:
    """Return a checkpoint that was read; without a binding if its flags were changed.

    Raises:
        CorruptChunk: A field is not of the type that was written.
    """
    *fields, binding = values
    if tuple(map(type, fields)) not in _CHECKPOINT_TYPES:
        raise damaged_row("checkpoint", fields[1])
    hidden, restarts = fields[-2:]
    bound = binding_of(binding, hidden=hidden, restarts=restarts)
    return CheckpointRow._make([*fields, bound])


def write_row(values: Sequence[Any]) -> WriteRow:
    """Return a write that was read, as `checkpoint_row` does."""
    *fields, binding = values
    if tuple(map(type, fields)) != _WRITE_TYPES:
        raise damaged_row("write", fields[1])
    return WriteRow._make([*fields, binding_of(binding)])


def description(values: Sequence[Any]) -> Description:
    """Return the description of a thread, given the columns `DESCRIPTION`."""
    label, tags, metadata, ttl, fixed_keys, on_expiry = values
    return Description(label, json_list(tags), metadata, ttl, json_list(fixed_keys), on_expiry)


def json_list(packed: Any) -> tuple[str, ...]:
    """Return a list that is stored as JSON; if it was damaged, one that no thread has."""
    try:
        return tuple(json.loads(packed))
    except (TypeError, ValueError, RecursionError):
        return (f"damaged: {packed!r:.80}",)
