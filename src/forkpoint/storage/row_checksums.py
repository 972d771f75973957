"""The checksums and receipts by which it is noticed that a stored row was changed or is lost."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from forkpoint.encoding.chunk import Chunks, Encoded
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import DIGEST_BYTES
from forkpoint.encoding.manifest import Manifest
from forkpoint.errors import CorruptChunk
from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.storage.receipts import NO_CHANNEL, RECEIPT, receipts_of, writes_of
from forkpoint.storage.rows import CheckpointRow, WriteRow

_Row = TypeVar("_Row", CheckpointRow, WriteRow)


def stored_row(codec: Codec, row: _Row, encoded: Encoded) -> _Row:
    """Return a row with a value as it is stored: encrypted, with the checksum of the plain value.

    Args:
        codec: That of the thread, to which the row is bound.
        row: The row, without the value.
        encoded: The value. Its chunks are stored apart; see `stored_chunks`.
    """
    refs, content = encoded.refs, encoded.content
    checksum = _checksum(codec, row, refs, content)
    binding, encrypted = codec.binding(checksum), codec.encrypt(content)
    # At once: each put does this.
    return row._replace(refs=refs, content=encrypted, checksum=checksum, binding=binding)


def stored_chunks(codec: Codec, chunks: Chunks) -> Chunks:
    """Return chunks as they are stored: encrypted."""
    return {digest: codec.encrypt_chunk(chunk) for digest, chunk in chunks.items()}


def with_checksum(codec: Codec, row: _Row, content: bytes) -> _Row:
    """Return a row with its checksum, bound to a thread.

    Args:
        codec: That of the thread.
        row: The row.
        content: Its content, unencrypted.
    """
    checksum = _checksum(codec, row, row.refs, content)
    return row._replace(checksum=checksum, binding=codec.binding(checksum))


def _checksum(codec: Codec, row: CheckpointRow | WriteRow, refs: bytes, content: bytes) -> bytes:
    """Return the checksum of a row with these refs and this content, unencrypted."""
    if isinstance(row, CheckpointRow):
        ns, checkpoint_id, parent, _, metadata, *_ = row
        return codec.checksum(ns, checkpoint_id, parent, metadata, refs, content)
    fields: tuple[Any, ...] = row[:-4]
    return codec.checksum(*fields, refs, content)


def rebind(rows: Iterable[_Row], source: Codec, target: Codec) -> list[_Row]:
    """Return rows of a thread, bound to another thread of its family.

    Args:
        rows: The rows as they were read.
        source: The codec of the thread.
        target: The codec of the other thread.

    Raises:
        CorruptChunk: A row was not written in the thread that it was read of.
    """
    bound = []
    for row in rows:
        if isinstance(row, WriteRow) and row.idx == RECEIPT and not _is_bound(source, row):
            bound.append(row)
            continue
        _check_bound(source, row)
        bound.append(row._replace(binding=target.binding(row.checksum)))
    return bound


def _is_bound(codec: Codec, row: CheckpointRow | WriteRow) -> bool:
    return type(row.checksum) is bytes and row.binding == codec.binding(row.checksum)


def _check_bound(codec: Codec, row: CheckpointRow | WriteRow) -> None:
    if not _is_bound(codec, row):
        raise CorruptChunk("a row is not what was written, or was written in another thread")


def open_checkpoint(codec: Codec, row: CheckpointRow) -> tuple[dict[str, Any], Manifest]:
    """Return the body of a checkpoint and its manifest.

    Raises:
        CorruptChunk: It is not what was written.
    """
    _check_refs(row.refs)
    content = codec.decrypt(row.content)
    if _checksum(codec, row, row.refs, content) != row.checksum:
        raise CorruptChunk("the checkpoint is not what was written")
    _check_bound(codec, row)
    return codec.decode_manifest(content, row.refs)


def open_write(codec: Codec, row: WriteRow) -> bytes:
    """Return the content of a write.

    Raises:
        CorruptChunk: It is not what was written.
    """
    _check_refs(row.refs)
    content = codec.decrypt(row.content)
    if _checksum(codec, row, row.refs, content) != row.checksum:
        raise CorruptChunk(f"a write to channel {row.channel!r} is not what was written")
    _check_bound(codec, row)
    return content


def _check_refs(refs: Any) -> None:
    if not isinstance(refs, bytes) or len(refs) % DIGEST_BYTES:
        raise CorruptChunk("the refs of a stored row are not what was written")


def metadata_of(row: CheckpointRow) -> Any:
    """Return the metadata of a checkpoint.

    Raises:
        CorruptChunk: They are not what was written; it names the checkpoint.
    """
    return json_object(row.metadata, row.checkpoint_id)


def json_object(metadata: Any, checkpoint_id: str | None) -> dict[str, Any]:
    """Return the metadata of a checkpoint, as `metadata_of` does."""
    try:
        loaded = json.loads(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptChunk(
            f"the metadata of checkpoint {checkpoint_id!r} cannot be read: {error}"
        ) from error
    if not isinstance(loaded, dict):
        raise CorruptChunk(f"the metadata of checkpoint {checkpoint_id!r} are no object")
    return loaded


def check_end(oldest: CheckpointRow, rebuilt: Collection[str]) -> None:
    """Check that no ancestor is missing from which channels are rebuilt.

    Args:
        oldest: The oldest ancestor that the store has.
        rebuilt: The channels that are still to be rebuilt from ancestors of it.

    Raises:
        CorruptChunk: There are such channels, and its parent is missing.
    """
    if rebuilt and oldest.parent_checkpoint_id is not None:
        raise CorruptChunk(
            f"the channels {sorted(rebuilt)} are rebuilt from checkpoint "
            f"{oldest.parent_checkpoint_id!r}, which is missing"
        )


def checkpoint_receipt(codec: Codec, row: CheckpointRow, preview: str | None = None) -> WriteRow:
    """Return the receipt of a checkpoint.

    Args:
        codec: The codec of the thread.
        row: The checkpoint.
        preview: The values that are shown with the thread's record, if any, as JSON.
    """
    place = row.checkpoint_ns, row.checkpoint_id
    receipt = WriteRow(*place, NULL_TASK_ID, RECEIPT, "", NO_CHANNEL, b"", b"")
    if preview is None:
        return receipt
    return stored_row(codec, receipt, Encoded(preview.encode(), b"", {}))


def preview_in(codec: Codec, writes: Iterable[WriteRow], checkpoint_id: str) -> str | None:
    """Return the preview in the receipt of a checkpoint of a graph itself.

    None if there is none, or if it cannot be read: nothing else depends on it.
    """
    place = ("", checkpoint_id, NULL_TASK_ID, RECEIPT)
    for write in writes:
        if write[:4] == place and write.content:
            try:
                return open_write(codec, write).decode()
            except (CorruptChunk, UnicodeDecodeError):
                return None
    return None


def with_receipts(codec: Codec, writes: Sequence[WriteRow]) -> list[WriteRow]:
    """Return the writes that a task puts, and behind them their receipts."""
    rows = list(writes)
    for idx, content in receipts_of([(write.idx, write.channel) for write in writes]):
        place, path = writes[0][:3], writes[0].task_path
        receipt = WriteRow(*place, idx, path, NO_CHANNEL, b"", content)
        rows.append(with_checksum(codec, receipt, content))
    return rows


def complete_writes(
    codec: Codec, rows: Sequence[WriteRow], channels: Collection[str] | None = None
) -> list[WriteRow]:
    """Return the writes among rows, and check by their receipts that none is missing.

    Args:
        codec: The codec of the thread.
        rows: The writes of some checkpoints, all or those to some channels, and their receipts.
        channels: The channels; None for all.

    Raises:
        CorruptChunk: A write is missing, or a receipt is not what was written.
    """
    writes = [row for row in rows if row.idx > RECEIPT]
    if len(writes) == len(rows):
        return writes
    stored = {row[:4] for row in writes}
    named: dict[tuple[Any, ...], set[str | None]] = {}
    for row in rows:
        if row.idx >= RECEIPT:
            continue
        # The content of a receipt is not encrypted.
        if _checksum(codec, row, row.refs, row.content) != row.checksum:
            raise CorruptChunk("a receipt of writes is not what was written")
        _check_bound(codec, row)
        for idx, channel in writes_of(row.idx, row.content):
            named.setdefault((*row[:3], idx), set()).add(channel)
    # A task that put twice may have named two channels for one write, and the first one counts.
    missing = [
        place
        for place, names in named.items()
        if place not in stored and (channels is None or names <= set(channels))
    ]
    if missing:
        _, checkpoint_id, task_id, _ = missing[0]
        raise CorruptChunk(
            f"{len(missing)} of the writes of task {task_id!r} after checkpoint {checkpoint_id!r} "
            "are missing"
        )
    return writes
