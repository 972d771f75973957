"""MongoDB: the documents of checkpoints, writes, chunks and threads, and what is in them."""

from __future__ import annotations

from bson.objectid import ObjectId
from pymongo import UpdateOne

from forkpoint.codec import split_refs
from forkpoint.filters import terms
from forkpoint.mongodb_records import DIGEST_BYTES, Document, chunk_id, digest_of, found_by
from forkpoint.storage import CheckpointRow, ThreadRecord, ThreadRef, WriteRow

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
        "seal": row.seal,
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
        "seal": row.seal,
    }
    return place, said


def checkpoint_row(found: Document) -> CheckpointRow:
    return CheckpointRow(
        found["checkpoint_ns"],
        found["checkpoint_id"],
        found["parent_checkpoint_id"],
        found.get("run_id"),
        found["metadata"],
        found["refs"],
        found["content"],
        found["seal"],
        found.get("hidden", False),
        found.get("restarts", False),
    )


def write_row(found: Document) -> WriteRow:
    return WriteRow(*(found[field] for field in WriteRow._fields))


def thread_record(found: Document) -> ThreadRecord:
    forked = [*found["own"], *found["parents"]]
    return ThreadRecord(
        found["_id"],
        found["thread_id"],
        found["edge"],
        found["parent"],
        found["parent_checkpoint_id"],
        forked[0]["metadata"] if forked else None,
        found["checkpoint_count"],
        found["created_at"],
        found["deleted_at"],
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
) -> UpdateOne:
    """Return the statement that stores a chunk, if it is not there."""
    inserted: Document = {"family": thread.family, "content": content}
    if refs:
        inserted["refs"] = refs_of(thread.family, refs)
    return UpdateOne(
        found_by(chunk_id(thread.family, digest), thread.family, is_sharded=is_sharded),
        # The epoch protects it from a collection that goes on at this moment.
        {"$setOnInsert": inserted, "$set": {"epoch": thread.epoch}},
        upsert=True,
    )
