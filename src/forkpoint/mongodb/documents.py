"""MongoDB: the documents of checkpoints, writes and chunks, their names, and what is in them.

What belongs to a family has an `_id` that begins with its 12 bytes, and the kinds differ in length,
so that the index of `_id` lists the chunks of a family, or its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import ormsgpack
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.objectid import ObjectId

from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.entries import split_refs
from forkpoint.errors import CorruptChunk, damaged_row
from forkpoint.filters import terms
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.storage.rows import (
    CheckpointRow,
    ThreadRef,
    WriteRow,
    binding_of,
    stored_binding,
)

Document = dict[str, Any]

NOW = {"$multiply": [{"$toLong": "$$NOW"}, 1000]}
"""The server's time, in microseconds since 1970."""

ROWS = {"$in": ["checkpoint", "write"]}
"""Of which kind the documents of a thread are that go with it."""

DIGEST_BYTES = 32
_EPOCHS = 16  # of a chunk that are kept: more puts of one chunk do not come late at once
_ROW_HASH_BYTES = 16
_FAMILY_BYTES = 12


class Stored(dict[str, Any]):
    """A document that was read. A missing field is an error: somebody has damaged the document."""

    def __missing__(self, field: str) -> Any:
        if field == "$ref":  # the driver looks for it in each document within another
            raise KeyError(field)
        raise CorruptChunk(
            f"a stored document is not what was written: the {self.get('kind', 'document')} "
            f"{self.get('_id')!r} has no field {field!r}"
        )


STORED: CodecOptions[Any] = CodecOptions(
    document_class=Stored,
    unicode_decode_error_handler="replace",
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""How documents are decoded: a damaged text or time keeps nobody from what is read with it."""

# Names and filters


def record_of(thread: ThreadRef) -> Document:
    """Return a filter for the record of a thread."""
    return {"_id": thread.key, "family": thread.family}


def rows_of(thread: ThreadRef, kind: Any = ROWS) -> Document:
    """Return a filter for the checkpoints and writes of a thread, or those of one kind."""
    return {"family": thread.family, "thread": thread.key, "kind": kind}


def row_id(thread: ThreadRef, *place: str | int) -> bytes:
    """Return the `_id` of a checkpoint (namespace, id) or a write (and task, idx)."""
    digest = sha256(ormsgpack.packb([thread.key.binary, *place])).digest()
    return bytes(thread.family.binary) + digest[:_ROW_HASH_BYTES]


def chunk_id(family: ObjectId, digest: bytes) -> bytes:
    """Return the `_id` of a chunk."""
    return family.binary + digest


def digest_of(chunk: bytes) -> bytes:
    """Return the digest in the `_id` of a chunk."""
    return chunk[_FAMILY_BYTES:]


def is_chunk(document: Document) -> bool:
    """Return whether a document is a chunk."""
    id_ = document["_id"]
    return isinstance(id_, bytes) and len(id_) == _FAMILY_BYTES + DIGEST_BYTES


def family_of(chunk: bytes) -> bytes:
    """Return the bytes of the family in the `_id` of a chunk."""
    return chunk[:_FAMILY_BYTES]


def family_rows(family: ObjectId) -> Document:
    """Return a filter for the checkpoints and writes of a family."""
    return _range(family, _ROW_HASH_BYTES)


def chunks_of(family: ObjectId) -> Document:
    """Return a filter for the chunks of a family."""
    return _range(family, DIGEST_BYTES)


def _range(family: ObjectId, length: int) -> Document:
    return {
        "_id": {"$gte": family.binary + bytes(length), "$lte": family.binary + b"\xff" * length},
        "family": family,
    }


def chunk_size() -> Document:
    """Return the expression for how many bytes a chunk takes; a damaged field of it takes none."""
    is_content = {"$eq": [{"$type": "$content"}, "binData"]}
    content = {"$cond": [is_content, {"$binarySize": "$content"}, 0]}
    refs = {"$multiply": [DIGEST_BYTES, {"$size": array_of("$refs")}]}
    return {"$add": [content, refs]}


def array_of(field: str) -> Document:
    """Return the expression for an array; empty if it is missing, or damaged."""
    return {"$cond": [{"$isArray": field}, field, []]}


# Writing


def checkpoint_document(thread: ThreadRef, row: CheckpointRow) -> tuple[Document, Document]:
    """Return the fields that tell the place of a checkpoint, and those with its content."""
    place = {
        "family": thread.family,
        "kind": "checkpoint",
        "thread": thread.key,
        "checkpoint_ns": row.checkpoint_ns,
        "checkpoint_id": row.checkpoint_id,
    }
    content: Document = {
        "parent_checkpoint_id": row.parent_checkpoint_id,
        "metadata": row.metadata,
        "terms": sorted(terms(row.metadata)),
        "refs": row.refs,
        "content": row.content,
        "checksum": row.checksum,
        "binding": stored_binding(row),
    }
    if row.run_id is not None:
        content["run_id"] = row.run_id
    if row.restarts:
        content["restarts"] = True
    if row.hidden or (row.parent_checkpoint_id or "") >= row.checkpoint_id:
        content["irregular"] = True
    return place, content


def write_document(thread: ThreadRef, row: WriteRow) -> tuple[Document, Document]:
    """Return the fields that tell the place of a write, and those with its content."""
    place = {
        "family": thread.family,
        "kind": "write",
        "thread": thread.key,
        "checkpoint_ns": row.checkpoint_ns,
        "checkpoint_id": row.checkpoint_id,
        "task_id": row.task_id,
        "idx": row.idx,
    }
    content = {
        "task_path": row.task_path,
        "channel": row.channel,
        "refs": row.refs,
        "content": row.content,
        "checksum": row.checksum,
        "binding": stored_binding(row),
    }
    return place, content


def chunk_documents(thread: ThreadRef, chunks: Chunks) -> list[Document]:
    """Return chunks as documents.

    The epoch protects them from a collection that goes on at this moment.
    """
    family, epoch = thread.family, thread.epoch
    documents: list[Document] = []
    for digest, (refs, content) in chunks.items():
        document = {"_id": chunk_id(family, digest), "family": family, "content": content}
        if refs:
            document["refs"] = refs_of(family, refs)
        document["epochs"] = [epoch]
        documents.append(document)
    return documents


def chunk_statement(chunk: Document, *, is_sharded: bool) -> Statement:
    """Return the statement that stores a chunk, or gives it its epoch if it is there.

    It keeps the epochs before: a put that comes late, and is refused after this, does not take
    those of others away.
    """
    inserted = dict(chunk)
    match = {"_id": inserted.pop("_id")}
    if is_sharded:  # a server finds it in two thirds of the time by nothing but its `_id`
        match["family"] = chunk["family"]
    epochs = {"$each": inserted.pop("epochs"), "$slice": -_EPOCHS}
    return update_one(match, {"$setOnInsert": inserted, "$push": {"epochs": epochs}}, upsert=True)


def refs_of(family: ObjectId, refs: bytes) -> list[bytes]:
    """Return the refs of a chunk as they are stored: each the `_id` of another."""
    return [chunk_id(family, digest) for digest in split_refs(refs)]


# Reading


def checkpoint_row(document: Document) -> CheckpointRow:
    """Return a checkpoint as it was read, and unbound if its flags changed.

    Raises:
        CorruptChunk: A field is of another type.
    """
    fields = [document.get(field) for field in CheckpointRow._fields[:-3]]
    if tuple(map(type, fields)) not in _CHECKPOINT_TYPES:
        raise damaged_row("checkpoint", fields[1])
    hidden, restarts = (document.get(field, False) for field in ("hidden", "restarts"))
    bound = binding_of(document.get("binding"), hidden=hidden, restarts=restarts)
    return CheckpointRow._make([*fields, hidden is True, restarts is True, bound])


def write_row(document: Document) -> WriteRow:
    """Return a write as it was read, as `checkpoint_row` does."""
    fields = [document.get(field) for field in WriteRow._fields[:-1]]
    if tuple(map(type, fields)) != _WRITE_TYPES:
        raise damaged_row("write", fields[1])
    return WriteRow._make([*fields, binding_of(document.get("binding"))])


_NONE = type(None)
_CHECKPOINT_TYPES = {
    (str, str, parent, run, str, bytes, bytes, bytes)
    for parent in (str, _NONE)
    for run in (str, _NONE)
}
_WRITE_TYPES = (str, str, str, int, str, str, bytes, bytes, bytes)


def place_in(row: Document) -> list[Any]:
    """Return the values that identify a checkpoint or a write within its thread."""
    fields = ["checkpoint_ns", "checkpoint_id"]
    if row.get("kind") == "write":
        fields += ["task_id", "idx"]
    return [row.get(field) for field in fields]


def refs_in(chunk: Document) -> bytes:
    """Return the refs of a chunk as they are hashed: without the family."""
    refs = chunk.get("refs")
    if not refs:
        return b""
    family = chunk["_id"][:-DIGEST_BYTES]
    if all(len(ref) == len(chunk["_id"]) and ref.startswith(family) for ref in refs):
        return b"".join(digest_of(ref) for ref in refs)
    return b"".join(refs)  # damaged: nothing that the digest could match


def bytes_of(document: Mapping[str, Any], field: str) -> bytes:
    """Return the bytes of a field; empty if it is damaged, which no checksum fits."""
    value = document.get(field)
    return value if isinstance(value, bytes) else b""
