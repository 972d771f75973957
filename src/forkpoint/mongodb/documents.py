"""MongoDB: the documents of checkpoints, writes, chunks and threads, and what is in them."""

from __future__ import annotations

from typing import Any

from bson.objectid import ObjectId

from forkpoint.encoding.codec import split_refs
from forkpoint.errors import damaged_row
from forkpoint.filters import terms
from forkpoint.mongodb.commands import (
    DIGEST_BYTES,
    Document,
    chunk_id,
    digest_of,
    found_by,
)
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.storage.rows import (
    CheckpointRow,
    FamilyMember,
    ThreadRef,
    WriteRow,
    binding_of,
    stored_binding,
)

ROWS = {"$in": ["checkpoint", "write"]}
"""Of which kind the documents of a thread are that go with it."""


def checkpoint_document(thread: ThreadRef, row: CheckpointRow) -> tuple[Document, Document]:
    """Return where a checkpoint is, and what it says there."""
    place = {
        "family": thread.family,
        "kind": "checkpoint",
        "thread": thread.key,
        "checkpoint_ns": row.checkpoint_ns,
        "checkpoint_id": row.checkpoint_id,
    }
    said: Document = {
        "parent_checkpoint_id": row.parent_checkpoint_id,
        "metadata": row.metadata,
        "terms": sorted(terms(row.metadata)),
        "refs": row.refs,
        "content": row.content,
        "checksum": row.checksum,
        "binding": stored_binding(row),
    }
    if row.run_id is not None:
        said["run_id"] = row.run_id
    if row.restarts:
        said["restarts"] = True
    return place, said


def write_document(thread: ThreadRef, row: WriteRow) -> tuple[Document, Document]:
    """Return where a write is, and what it says there."""
    place = {
        "family": thread.family,
        "kind": "write",
        "thread": thread.key,
        "checkpoint_ns": row.checkpoint_ns,
        "checkpoint_id": row.checkpoint_id,
        "task_id": row.task_id,
        "idx": row.idx,
    }
    said = {
        "task_path": row.task_path,
        "channel": row.channel,
        "refs": row.refs,
        "content": row.content,
        "checksum": row.checksum,
        "binding": stored_binding(row),
    }
    return place, said


def checkpoint_row(found: Document) -> CheckpointRow:
    """Return a checkpoint as it was read, and unbound if its flags changed.

    Raises:
        CorruptChunk: A field is of another type.
    """
    fields = [found.get(field) for field in CheckpointRow._fields[:-3]]
    if tuple(map(type, fields)) not in _CHECKPOINT_TYPES:
        raise damaged_row("checkpoint", fields[1])
    hidden, restarts = (found.get(field, False) for field in ("hidden", "restarts"))
    bound = binding_of(found.get("binding"), hidden=hidden, restarts=restarts)
    return CheckpointRow._make([*fields, hidden is True, restarts is True, bound])


def write_row(found: Document) -> WriteRow:
    """Return a write as it was read, as `checkpoint_row` does."""
    fields = [found.get(field) for field in WriteRow._fields[:-1]]
    if tuple(map(type, fields)) != _WRITE_TYPES:
        raise damaged_row("write", fields[1])
    return WriteRow._make([*fields, binding_of(found.get("binding"))])


_NONE = type(None)
_CHECKPOINT_TYPES = {
    (str, str, parent, run, str, bytes, bytes, bytes)
    for parent in (str, _NONE)
    for run in (str, _NONE)
}
_WRITE_TYPES = (str, str, str, int, str, str, bytes, bytes, bytes)


def place_in(row: Document) -> list[Any]:
    """Return what tells a checkpoint or a write apart from the others of its thread."""
    fields = ["checkpoint_ns", "checkpoint_id"]
    if row.get("kind") == "write":
        fields += ["task_id", "idx"]
    return [row.get(field) for field in fields]


def thread_record(found: Document) -> FamilyMember:
    forked = [*found["own"], *found["parents"]]
    return FamilyMember(
        found["_id"],
        found["thread_id"],
        found["edge"],
        found["parent"],
        found["parent_checkpoint_id"],
        forked[0]["metadata"] if forked else None,
        found["checkpoint_count"],
        found["created_at"],
        found["deleted_at"],
        found.get("salt", b""),
        found.get("checksums", b""),
    )


def refs_in(chunk: Document) -> bytes:
    """Return the refs of a chunk as they are hashed: without the family."""
    refs = chunk.get("refs")
    if not refs:
        return b""
    family = chunk["_id"][:-DIGEST_BYTES]
    if all(len(ref) == len(chunk["_id"]) and ref.startswith(family) for ref in refs):
        return b"".join(digest_of(ref) for ref in refs)
    return b"".join(refs)  # damaged: nothing that the digest could match


def refs_of(family: ObjectId, refs: bytes) -> list[bytes]:
    """Return the refs of a chunk as they are stored: each the `_id` of another."""
    return [chunk_id(family, digest) for digest in split_refs(refs)]


def chunk_statement(
    thread: ThreadRef, digest: bytes, refs: bytes, content: bytes, *, is_sharded: bool
) -> Statement:
    """Return the statement that stores a chunk, if it is not there."""
    inserted: Document = {"family": thread.family, "content": content}
    if refs:
        inserted["refs"] = refs_of(thread.family, refs)
    return update_one(
        found_by(chunk_id(thread.family, digest), thread.family, is_sharded=is_sharded),
        # The epoch protects it from a collection that goes on at this moment.
        {"$setOnInsert": inserted, "$set": {"epoch": thread.epoch}},
        upsert=True,
    )
