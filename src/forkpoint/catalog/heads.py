"""What the catalog shows of a thread beside its record: what its newest checkpoint waits for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from forkpoint.catalog.threads import PendingInterrupt, Thread
from forkpoint.clocks import time_of
from forkpoint.encoding.codec import Chunk, Codec, split_refs
from forkpoint.errors import CorruptChunk, EncryptionMismatch, UnreadableValue
from forkpoint.langgraph_rules import ERROR_IDX, INTERRUPT_IDX
from forkpoint.operations.context import Context
from forkpoint.operations.read import load_write, order_of
from forkpoint.storage.interface import Session
from forkpoint.storage.receipts import WRITES
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.row_checksums import preview_in
from forkpoint.storage.rows import ThreadRow, WriteRow
from forkpoint.untrusted import shown

INTERRUPTS = 100
"""How many interrupts of a thread are shown."""
INTERRUPT_CHUNKS = 1
"""In how many chunks an interrupt may be that is shown. A chunk takes 64 KiB at most."""
ERROR_CHARACTERS = 1000
"""How long the text of an error is shown."""


def threads_of(context: Context, rows: Sequence[ThreadRow]) -> list[Thread]:
    """Return threads as users see them, of records that were checked, and read with their heads."""
    wanted = _wanted_chunks(rows)
    if not wanted:
        return [_thread_of(context, row, {}) for row in rows]
    with context.storage.reading() as session:
        stored = session.chunks.of_families(wanted, follow=False)
    return [_thread_of(context, row, stored.get(row.thread.family, {})) for row in rows]


def thread_of(context: Context, session: Session, row: ThreadRow) -> Thread:
    """Return a thread as users see it.

    Raises:
        CorruptChunk: Its record is not what was written.
    """
    check_record(context.codec.hashing, row)
    (whole,) = session.records.with_heads([row])
    assert whole is not None
    wanted = _wanted_chunks([whole])
    stored = session.chunks.of_families(wanted, follow=False) if wanted else {}
    return _thread_of(context, whole, stored.get(row.thread.family, {}))


def _thread_of(context: Context, row: ThreadRow, stored: Mapping[bytes, Chunk]) -> Thread:
    described, codec = row.described, _codec_of(context, row)
    has_time = described.ttl is not None and not row.is_swept
    expires = time_of(row.updated_at + described.ttl) if has_time and described.ttl else None
    waiting, failed = _shown_rows(row)
    errors = [_error(codec, write, stored) for write in failed[:1]]
    return Thread(
        row.thread_id,
        described.label,
        tuple(described.tags),
        json.loads(described.metadata),
        row.thread.owner,
        row.status,  # type: ignore[arg-type]
        time_of(row.created_at),
        time_of(row.updated_at),
        expires,
        row.source_thread_id,
        row.source_checkpoint_id,
        row.checkpoint_count,
        described.on_expiry,  # type: ignore[arg-type]
        time_of(row.state_updated_at) if row.state_updated_at else None,
        tuple(one for write in waiting for one in _interrupts(codec, write, stored)),
        errors[0] if errors else None,
        values_of(context, row),
    )


def values_of(context: Context, row: ThreadRow) -> dict[str, Any]:
    """Return what is shown of a thread's state."""
    newest = max((write.checkpoint_id for write in row.head), default="")
    preview = preview_in(_codec_of(context, row), row.head, newest)
    values: dict[str, Any] = {} if preview is None else json.loads(preview)
    return values


def _codec_of(context: Context, row: ThreadRow) -> Codec:
    """Return what reads the values of a thread, or what reads none of it without the key."""
    try:
        return context.codec_of(row.thread)
    except EncryptionMismatch:
        return context.codec


def _shown_rows(row: ThreadRow) -> tuple[list[WriteRow], list[WriteRow]]:
    """Return the interrupts, and the errors, that are shown of a thread."""
    done = {write.task_id for write in row.head if write.idx <= WRITES}
    rows = sorted((write for write in row.head if write.task_id not in done), key=order_of)
    waiting = [write for write in rows if write.idx == INTERRUPT_IDX]
    return waiting[:INTERRUPTS], [write for write in rows if write.idx == ERROR_IDX]


def _wanted_chunks(rows: Sequence[ThreadRow]) -> dict[Any, set[bytes]]:
    """Return the digests of the chunks that are needed to show threads, by family."""
    wanted: dict[Any, set[bytes]] = {}
    for row in rows:
        waiting, failed = _shown_rows(row)
        for write in [*waiting, *failed[:1]]:
            if _is_short(write) and write.refs:
                wanted.setdefault(row.thread.family, set()).update(split_refs(write.refs))
    return wanted


def _is_short(write: WriteRow) -> bool:
    return len(split_refs(write.refs)) <= INTERRUPT_CHUNKS


def _interrupts(
    codec: Codec, write: WriteRow, stored: Mapping[bytes, Chunk]
) -> list[PendingInterrupt]:
    value = _value(codec, write, stored)
    given = value if isinstance(value, (list, tuple)) else [value]
    return [
        PendingInterrupt(write.task_id, _field(one, "id"), _field(one, "value")) for one in given
    ]


def _field(value: Any, name: str) -> Any:
    """Return a field of an object, or of one that is restored as a mapping of its fields."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _error(codec: Codec, write: WriteRow, stored: Mapping[bytes, Chunk]) -> str:
    error = _value(codec, write, stored)
    if error is None:
        return "an error that cannot be shown"
    return error[:ERROR_CHARACTERS] if type(error) is str else shown(error, ERROR_CHARACTERS)


def _value(codec: Codec, write: WriteRow, stored: Mapping[bytes, Chunk]) -> Any:
    """Return what a task wrote, or None if it is too long or cannot be read: others can be."""
    refs = split_refs(write.refs)
    is_there = all(digest in stored and not stored[digest][0] for digest in refs)
    if not _is_short(write) or not is_there:
        return None
    try:
        return load_write(codec, write, stored)[2]
    except (CorruptChunk, UnreadableValue, EncryptionMismatch):
        return None
