"""What tells of a stored row whether it is as it was written."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from forkpoint.codec import Codec, Manifest
from forkpoint.errors import CorruptChunk
from forkpoint.storage import CheckpointRow, WriteRow


def checkpoint_with_checksum(codec: Codec, row: CheckpointRow, content: bytes) -> CheckpointRow:
    """Return a checkpoint with the checksum of all that its thread does not decide.

    Args:
        codec: What hashes, with the key of the store if it encrypts.
        row: The checkpoint.
        content: Its content, unencrypted.
    """
    ns, checkpoint_id, parent, _, metadata, refs, *_ = row
    return row._replace(checksum=codec.checksum(ns, checkpoint_id, parent, metadata, refs, content))


def write_with_checksum(codec: Codec, row: WriteRow, content: bytes) -> WriteRow:
    """Return a write with the checksum of all that its thread does not decide."""
    fields: tuple[Any, ...] = row[:-2]
    return row._replace(checksum=codec.checksum(*fields, content))


def open_checkpoint(codec: Codec, row: CheckpointRow) -> tuple[dict[str, Any], Manifest]:
    """Return the body of a checkpoint and its manifest.

    Raises:
        CorruptChunk: It is not what was written.
    """
    content = codec.reveal(row.content)
    if checkpoint_with_checksum(codec, row, content).checksum != row.checksum:
        raise CorruptChunk("the checkpoint is not what was written")
    return codec.decode_manifest(content, row.refs)


def open_write(codec: Codec, row: WriteRow) -> bytes:
    """Return the content of a write.

    Raises:
        CorruptChunk: It is not what was written.
    """
    content = codec.reveal(row.content)
    if write_with_checksum(codec, row, content).checksum != row.checksum:
        raise CorruptChunk(f"a write to channel {row.channel!r} is not what was written")
    return content


def check_end(oldest: CheckpointRow, rebuilt: Collection[str]) -> None:
    """Check that a chain of ancestors ends where it may.

    Args:
        oldest: The last one that the store has.
        rebuilt: The channels that are to be rebuilt and are, at this one, from its ancestors.

    Raises:
        CorruptChunk: They are rebuilt from an ancestor that is missing.
    """
    if rebuilt and oldest.parent_checkpoint_id is not None:
        raise CorruptChunk(
            f"the channels {sorted(rebuilt)} are rebuilt from checkpoint "
            f"{oldest.parent_checkpoint_id!r}, which is missing"
        )
