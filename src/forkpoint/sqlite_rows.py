"""SQLite: the columns of checkpoints and writes, and what binds a row to its thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forkpoint.storage import CheckpointRow, WriteRow, binding

_THREAD_UNIT = 4  # above the two flags of a checkpoint

CHECKPOINT = (
    "checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id, metadata, refs, content, checksum,"
    " hidden, restarts"
)
WRITE = "checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, refs, content, checksum"
READ_CHECKPOINT = f"{CHECKPOINT}, thread, binding"
"""What a `checkpoint_row` is made of."""
READ_WRITE = f"{WRITE}, thread, binding"
"""What a `write_row` is made of."""
REBOUND = f"binding + {_THREAD_UNIT} * (? - thread)"
"""The binding of a copy of a row, of another thread. What did not fit before does not fit then."""


def checkpoint_values(thread: int, row: CheckpointRow) -> tuple[Any, ...]:
    """Return what is stored of a checkpoint: the thread, `CHECKPOINT` and the binding."""
    flags = binding(row.checksum, hidden=row.hidden, restarts=row.restarts)
    return thread, *row, flags + _THREAD_UNIT * thread


def write_values(thread: int, row: WriteRow) -> tuple[Any, ...]:
    """Return what is stored of a write: the thread, `WRITE` and the binding."""
    return thread, *row, binding(row.checksum) + _THREAD_UNIT * thread


def checkpoint_row(values: Sequence[Any]) -> CheckpointRow:
    """Return a checkpoint as it was read, without a checksum if its thread or flags changed."""
    row = CheckpointRow._make(values[:10])
    return row if _fits(row, values[10], values[11]) else row._replace(checksum=b"")


def write_row(values: Sequence[Any]) -> WriteRow:
    """Return a write as it was read, without a checksum if its thread changed."""
    row = WriteRow._make(values[:9])
    checksum = row.checksum
    if type(checksum) is bytes and values[10] == binding(checksum) + _THREAD_UNIT * values[9]:
        return row
    return row._replace(checksum=b"")


def _fits(row: CheckpointRow, thread: Any, bound: Any) -> bool:
    checksum, hidden, restarts = row[7:]
    if type(checksum) is not bytes or type(thread) is not int:
        return False
    if hidden not in (0, 1) or restarts not in (0, 1):
        return False
    flags = binding(checksum, hidden=hidden, restarts=restarts)
    return bool(bound == flags + _THREAD_UNIT * thread)
