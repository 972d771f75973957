"""The gate for what is moved: an archive, or another saver's table, may say anything. Pure."""

from __future__ import annotations

import json
from typing import Any

from forkpoint import inputs
from forkpoint.archive.parts import CheckpointPart, ChunkPart, ThreadPart, ValuePart
from forkpoint.encoding.entries import DICT, HEIGHT_MAX, INLINE, LIST, OPAQUE, SNAPSHOT
from forkpoint.errors import InvalidInput
from forkpoint.json_text import as_json
from forkpoint.results import STATUSES
from forkpoint.storage.receipts import is_receipt

_NONE = type(None)
_LAST_MOMENT = 200_000_000_000_000_000  # as in `record_checksums`


def check_thread(part: ThreadPart) -> None:
    """Raise unless a record is of the shape that is stored.

    Raises:
        InvalidInput: It is not.
    """
    described = part.described
    inputs.identifier(part.thread_id, "thread_id")
    for value, name in ((part.owner, "owner"), (described.label, "label")):
        if value is not None:
            inputs.identifier(value, name)
    inputs.tags(list(described.tags), "tags")
    for key in described.fixed_keys:
        inputs.text(key, "a key of fixed_keys")
    _metadata(described.metadata)
    inputs.choice(described.on_expiry, "on_expiry", ("delete", "keep_latest"))
    inputs.choice(part.status, "status", STATUSES)
    _check(described.ttl, "ttl", int, _NONE)
    if described.ttl is not None and not 0 < described.ttl <= inputs.LONGEST:
        raise InvalidInput(f"ttl is none that can be stored: {described.ttl}")
    _check(part.is_swept, "is_swept", bool)
    for name, time in part.times._asdict().items():
        _check(time, name, int)
        if not 0 <= time < _LAST_MOMENT:
            raise InvalidInput(f"{name} is no time that can be stored: {time}")
    for ancestor in part.lineage:
        inputs.identifier(ancestor.thread_id, "a thread_id of the lineage")
        _check(ancestor.edge, "edge", str, _NONE)
        if ancestor.edge not in ("fork", "clone", None):
            raise InvalidInput(f"edge must be 'fork' or 'clone', not {ancestor.edge!r:.80}")
        if ancestor.parent_checkpoint_id is not None:
            inputs.identifier(ancestor.parent_checkpoint_id, "parent_checkpoint_id")


def check_chunks(part: ChunkPart) -> None:
    """Raise unless chunks are of the shape that is stored, as `check_thread` does."""
    for number in (part.first, part.oldest, *(each for below, _ in part.chunks for each in below)):
        _check(number, "the number of a chunk", int)


def check_checkpoint(part: CheckpointPart) -> None:
    """Raise unless a checkpoint is of the shape that is stored, as `check_thread` does."""
    inputs.text(part.checkpoint_ns, "checkpoint_ns")
    inputs.identifier(part.checkpoint_id, "checkpoint_id")
    if part.parent_checkpoint_id is not None:
        inputs.identifier(part.parent_checkpoint_id, "the parent's checkpoint_id")
    if part.run_id not in (None, inputs.run_id(_metadata(part.metadata))):
        raise InvalidInput("run_id is not that of the metadata")
    kind, body = part.body
    _check(kind, "the type of a body", str)
    _check(body, "a body", bytes)
    for flag in (part.hidden, part.restarts):
        _check(flag, "a flag of a checkpoint", bool)
    for name, value in part.channels.items():
        inputs.text(name, "the name of a channel")
        _check_value(value)
    for write in part.writes:
        inputs.text(write.task_id, "task_id")
        inputs.text(write.task_path, "task_path")
        inputs.text(write.channel, "the channel of a write")
        _check(write.idx, "idx", int)
        if is_receipt(write.idx) or write.idx >= 1 << 31:
            raise InvalidInput(f"idx is none that a write has: {write.idx}")
        _check_value(write.value)


def _check_value(value: ValuePart) -> None:
    _check(value.kind, "the kind of a value", int)
    _check(value.type, "the type of a value", str)
    _check(value.content, "the content of a value", bytes)
    _check(value.height, "the height of a value", int)
    kinds = (OPAQUE, LIST, DICT) if value.chunks else (INLINE,)
    if value.kind & ~SNAPSHOT not in kinds or not 0 <= value.height <= HEIGHT_MAX:
        raise InvalidInput("a value is not of the shape that is stored")
    for number in value.chunks:
        _check(number, "the number of a chunk", int)


def _metadata(text: str) -> dict[str, Any]:
    """Return metadata that are neither too long nor too deep."""
    metadata = json.loads(text)
    _check(metadata, "metadata", dict)
    as_json(metadata, "metadata")
    return dict(metadata)


def _check(value: Any, what: str, *types: type) -> None:
    is_flag = isinstance(value, bool) and bool not in types
    if is_flag or not isinstance(value, types):  # MongoDB has integers of its own
        raise InvalidInput(f"{what} is of the type {type(value).__name__}")
