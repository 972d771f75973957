"""Making `Thread`s of records: with interrupts, error and values of the newest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from forkpoint.catalog.threads import PendingInterrupt, Thread
from forkpoint.clocks import time_of
from forkpoint.encoding.chunk import Chunk
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import split_refs
from forkpoint.errors import CorruptChunk, EncryptionMismatch, UnreadableValue
from forkpoint.langgraph_rules import ERROR_IDX, INTERRUPT_IDX
from forkpoint.operations.context import Context
from forkpoint.operations.read import load_write, order_of
from forkpoint.storage.interface import Session
from forkpoint.storage.receipts import WRITES
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.row_checksums import preview_in
from forkpoint.storage.rows import ThreadRow, WriteRow
from forkpoint.untrusted import field, shown

INTERRUPTS = 100
"""The largest number of interrupts that a `Thread` has."""
INTERRUPT_CHUNKS = 1
"""The largest number of chunks of an interrupt that is read. A chunk takes 64 KiB at most."""
ERROR_CHARACTERS = 1000
"""The length at which the text of an error is cut."""


def threads_of(context: Context, rows: Sequence[ThreadRow]) -> list[Thread]:
    """Return threads from checked records that were read with their heads.

    A head is the writes of a thread's newest checkpoint.
    """
    digests = _chunks_of(rows)
    if not digests:
        return [_thread_of(context, row, {}) for row in rows]
    with context.storage.reading() as session:
        stored = session.chunks.of_families(digests, follow=False)
    return [_thread_of(context, row, stored.get(row.thread.family, {})) for row in rows]


def thread_of(context: Context, session: Session, row: ThreadRow) -> Thread:
    """Return a thread from its record.

    Raises:
        CorruptChunk: Its record is not what was written.
    """
    check_record(context.codec.hashing, row)
    (whole,) = session.records.with_heads([row])
    assert whole is not None
    digests = _chunks_of([whole])
    stored = session.chunks.of_families(digests, follow=False) if digests else {}
    return _thread_of(context, whole, stored.get(row.thread.family, {}))


def _thread_of(context: Context, row: ThreadRow, stored: Mapping[bytes, Chunk]) -> Thread:
    description, codec = row.described, _codec_of(context, row)
    has_time = description.ttl is not None and not row.is_swept
    expires = time_of(row.updated_at + description.ttl) if has_time and description.ttl else None
    waiting, failed = _open_writes(row)
    errors = [_error(codec, write, stored) for write in failed[:1]]
    return Thread(
        row.thread_id,
        description.label,
        tuple(description.tags),
        json.loads(description.metadata),
        row.thread.owner,
        row.status,  # type: ignore[arg-type]
        time_of(row.created_at),
        time_of(row.updated_at),
        expires,
        row.source_thread_id,
        row.source_checkpoint_id,
        row.checkpoint_count,
        description.on_expiry,  # type: ignore[arg-type]
        time_of(row.state_updated_at) if row.state_updated_at else None,
        tuple(each for write in waiting for each in _interrupts(codec, write, stored)),
        errors[0] if errors else None,
        values_of(context, row),
    )


def values_of(context: Context, row: ThreadRow) -> dict[str, Any]:
    """Return the values of a thread's state that its record shows; see `Thread.values`."""
    newest = max((write.checkpoint_id for write in row.head), default="")
    preview = preview_in(_codec_of(context, row), row.head, newest)
    values: dict[str, Any] = {} if preview is None else json.loads(preview)
    return values


def _codec_of(context: Context, row: ThreadRow) -> Codec:
    """Return the codec for a thread. Without its key, one that reads nothing of the thread."""
    try:
        return context.codec_of(row.thread)
    except EncryptionMismatch:
        return context.codec


def _open_writes(row: ThreadRow) -> tuple[list[WriteRow], list[WriteRow]]:
    """Return the interrupts and the errors of tasks that have not finished."""
    finished = {write.task_id for write in row.head if write.idx <= WRITES}
    rows = sorted((write for write in row.head if write.task_id not in finished), key=order_of)
    waiting = [write for write in rows if write.idx == INTERRUPT_IDX]
    return waiting[:INTERRUPTS], [write for write in rows if write.idx == ERROR_IDX]


def _chunks_of(rows: Sequence[ThreadRow]) -> dict[Any, set[bytes]]:
    """Return the digests of the chunks of interrupts and errors, by family."""
    digests: dict[Any, set[bytes]] = {}
    for row in rows:
        waiting, failed = _open_writes(row)
        for write in [*waiting, *failed[:1]]:
            if _is_short(write) and write.refs:
                digests.setdefault(row.thread.family, set()).update(split_refs(write.refs))
    return digests


def _is_short(write: WriteRow) -> bool:
    return len(split_refs(write.refs)) <= INTERRUPT_CHUNKS


def _interrupts(
    codec: Codec, write: WriteRow, stored: Mapping[bytes, Chunk]
) -> list[PendingInterrupt]:
    value = _value(codec, write, stored)
    interrupts = value if isinstance(value, (list, tuple)) else [value]
    return [
        PendingInterrupt(write.task_id, field(each, "id"), field(each, "value"))
        for each in interrupts
    ]


def _error(codec: Codec, write: WriteRow, stored: Mapping[bytes, Chunk]) -> str:
    error = _value(codec, write, stored)
    if error is None:
        return "an error that cannot be shown"
    return error[:ERROR_CHARACTERS] if type(error) is str else shown(error, ERROR_CHARACTERS)


def _value(codec: Codec, write: WriteRow, stored: Mapping[bytes, Chunk]) -> Any:
    """Return what a task wrote, or None if that is too long or cannot be read."""
    refs = split_refs(write.refs)
    is_there = all(digest in stored and not stored[digest][0] for digest in refs)
    if not _is_short(write) or not is_there:
        return None
    try:
        return load_write(codec, write, stored)[2]
    except (CorruptChunk, UnreadableValue, EncryptionMismatch):
        return None
