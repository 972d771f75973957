"""MongoDB: how large a put is, and whether documents can hold it."""

from __future__ import annotations

from typing import NamedTuple

import bson
from bson.objectid import ObjectId
from pymongo.common import MAX_BSON_SIZE

from forkpoint.errors import InvalidInput
from forkpoint.mongodb.documents import checkpoint_document, write_document
from forkpoint.storage.rows import CheckpointRow, PutRequest, ThreadRef, WriteRow

LARGE = 1_000_000
"""Characters or bytes; less cannot exceed a document."""

LARGE_CHUNKS = 8_000_000
"""Bytes of chunks; less, with rows that are not large, cannot exceed a command."""

TERM_BYTES = 15
"""What a term of a value takes in a document."""


class Size(NamedTuple):
    """About how many characters or bytes a put takes."""

    rows: int
    chunks: int


def checked_size(request: PutRequest) -> Size:
    """Return about how large a put is, and refuse one with a row that no document can hold.

    Raises:
        InvalidInput: There is one.
    """
    total = 0
    if request.row is not None:
        ns, id_, parent, run, metadata, refs, content, *_ = request.row
        total = len(ns) + len(id_) + len(parent or "") + len(run or "") + len(metadata)
        total += len(refs) + len(content)
        if total >= LARGE:
            _check_size(request, request.row)
    for write in request.writes:
        ns, id_, task, _, path, channel, refs, content, *_ = write
        size = len(ns) + len(id_) + len(task) + len(path) + len(channel)
        size += len(refs) + len(content)
        if size >= LARGE:
            _check_size(request, write)
        total += size
    chunks = request.chunks.values()
    return Size(total, sum(_REFS * len(refs) + len(content) for refs, content in chunks))


def _check_size(request: PutRequest, row: CheckpointRow | WriteRow) -> None:
    thread = request.expected or ThreadRef(ObjectId(), ObjectId(), ObjectId())
    if isinstance(row, CheckpointRow):
        place, content = checkpoint_document(thread, row)
    else:
        place, content = write_document(thread, row)
    size = len(bson.encode({**place, "next": content}))
    if size > MAX_BSON_SIZE - _ENVELOPE:
        raise InvalidInput(
            f"MongoDB cannot hold this as one document of {size} bytes; values may be of any "
            "size, but metadata, names and the number of channels may not"
        )


_REFS = 2  # times what they take here: with the family, and their places in an array
_ENVELOPE = 150_000  # bytes of a document apart from what it says, and of a record read with it
