"""A rollover: a new thread that begins with a part of another's newest state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.base import empty_checkpoint

from forkpoint import langgraph_rules
from forkpoint.catalog.heads import thread_of
from forkpoint.catalog.records import Changes, existing_record
from forkpoint.catalog.threads import Thread
from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.hashing import new_salt
from forkpoint.encoding.manifest import Manifest
from forkpoint.errors import InvalidInput
from forkpoint.inputs import as_json
from forkpoint.langgraph_rules import is_internal
from forkpoint.operations.context import Context
from forkpoint.operations.fork_parts import NextVersion
from forkpoint.operations.places import at_place, place_of
from forkpoint.previews import part_of, preview_after
from forkpoint.storage.interface import Session
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.retry import retry
from forkpoint.storage.row_checksums import (
    checkpoint_receipt,
    open_checkpoint,
    preview_in,
    stored_chunks,
    stored_row,
)
from forkpoint.storage.rows import CheckpointRow, ForkRequest, StoredCheckpoint, ThreadRow, WriteRow


class RolloverRequest(NamedTuple):
    """The checked arguments of a rollover."""

    thread_id: str
    target_id: str
    channels: Sequence[str]
    values: Mapping[str, Any]
    changes: Changes
    next_version: NextVersion


def rollover(context: Context, request: RolloverRequest) -> Thread:
    """Make a thread that begins with a part of another's state.

    Raises:
        ThreadNotFound: There is no source.
        ThreadExists: There is a thread with the new id.
        InvalidInput: A channel is unknown, or its value is not stored.
    """
    context.prepare()

    def attempt() -> Thread:
        with context.storage.writing() as session:
            source = existing_record(session, request.thread_id)
            session.copies.fork(_successor(context, session, source, request))
            context.memory.threads.pop(request.target_id)
            return thread_of(context, session, existing_record(session, request.target_id))

    return retry(attempt, f"thread {request.thread_id!r} changed")


def _successor(
    context: Context, session: Session, source: ThreadRow, request: RolloverRequest
) -> ForkRequest:
    """Return the new thread, with a first checkpoint if values are carried over."""
    check_record(context.codec.hashing, source)
    head = session.checkpoints.get(request.thread_id, "", None)
    target = context.codec.of_salt(new_salt(source.thread.salt))
    rows: list[CheckpointRow] = []
    receipts: list[WriteRow] = []
    chunks: Chunks = {}
    if request.channels or request.values:
        if head is None:
            raise InvalidInput(f"thread {request.thread_id!r} has no state to carry over")
        row, chunks = _carried(context, target, head, request)
        rows.append(row)
        codec = context.codec_of(source.thread)
        before = preview_in(codec, head.writes, head.row.checkpoint_id)
        preview = preview_after(part_of(before, request.channels), request.values, context.preview)
        receipts.append(checkpoint_receipt(target, row, preview))
    description = request.changes.applied(source.described)
    return ForkRequest(
        source.thread,
        request.thread_id,
        request.target_id,
        head.row.checkpoint_id if head is not None else None,
        source.thread.owner,
        description,
        "idle",
        rows,
        receipts,
        chunks,
        target.hashing,
        target.salt,
    )


def _carried(
    context: Context, codec: Codec, head: StoredCheckpoint, request: RolloverRequest
) -> tuple[CheckpointRow, Chunks]:
    """Return a first checkpoint: some channels with their values in `head`, some with new ones."""
    with at_place(head.thread_id, *place_of(head.row)):
        body, manifest = open_checkpoint(context.codec_of(head.thread), head.row)
    _check_channels(request, set(body.get("channel_versions", {})), manifest)
    inherited = manifest.only([name for name in request.channels if name not in request.values])
    values = {**dict.fromkeys(inherited), **request.values}
    checkpoint: dict[str, Any] = {
        **empty_checkpoint(),
        "id": langgraph_rules.new_checkpoint_id(),
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, request.next_version(None, None)),
        "updated_channels": None,
    }
    encoded, _ = codec.encode_checkpoint(checkpoint, inherited)
    metadata = as_json({"source": "update", "step": -1, "parents": {}}, "metadata")
    row = CheckpointRow("", checkpoint["id"], None, None, metadata, b"", b"")
    return stored_row(codec, row, encoded), stored_chunks(codec, encoded.chunks)


def _check_channels(request: RolloverRequest, versions: set[str], manifest: Manifest) -> None:
    """Refuse channels that the state does not have, or that are not stored with it."""
    known = sorted(name for name in versions | set(manifest) if not is_internal(name))
    unknown = sorted({*request.channels, *request.values} - set(known))
    if unknown:
        raise InvalidInput(f"unknown channels {unknown}; there are {known}")
    rebuilt = sorted(set(request.channels) - set(manifest) - set(request.values))
    if rebuilt:
        raise InvalidInput(
            f"channels {rebuilt} are not stored in the newest checkpoint, as those of a "
            "DeltaChannel are not; pass their values instead"
        )
