"""MongoDB: how a single checkpoint is looked for, with its writes.

It takes one round trip, and its chunks another. Where the thread is known, and a checkpoint that is
about the newest, both are read by one query, with the chunks of the checkpoint that is known; else
a pipeline begins at the thread's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from bson.objectid import ObjectId

from forkpoint.caches import ENTRY_BYTES, Cache
from forkpoint.encoding.chunk import Chunk
from forkpoint.encoding.entries import split_refs
from forkpoint.errors import lost_checkpoint
from forkpoint.mongodb.chunks import MongoChunks
from forkpoint.mongodb.commands import IN_ONE_COMMAND, MongoCommands
from forkpoint.mongodb.documents import (
    ROWS,
    Document,
    bytes_of,
    checkpoint_row,
    digest_of,
    is_chunk,
    refs_in,
    rows_of,
    write_row,
)
from forkpoint.mongodb.known_threads import KnownThreads
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.pipelines import join, joined_rows, named_record
from forkpoint.mongodb.tail import STATE
from forkpoint.mongodb.thread_documents import IDENTITY, LISTED_PLACE, named_ref, thread_ref
from forkpoint.storage.interface import Stale
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import StoredCheckpoint, ThreadRef

_STATE = {**IDENTITY, **dict.fromkeys(STATE, 1)}
_NEWEST: list[Document] = [{"$sort": {"checkpoint_id": -1}}, {"$limit": 1}]
_NOT_LOOKED_AT = dict.fromkeys(
    (
        *("family", "thread", "terms", "visible"),
        *("label", "folded_label", "tags", "fixed_keys", "checksums", "salt", "lease_queue"),
        *(*LISTED_PLACE, "created_at", "thread_id", "owner"),
    ),
    0,
)
"""What need not be sent and decoded: what is known, or says how a thread is to be found."""
_SINCE = 1000  # rows after a checkpoint, at most, for which it counts as one of the newest


class _Newest(NamedTuple):
    """A checkpoint, and the digests of the chunks that it leads to."""

    checkpoint_id: str
    refs: bytes


class Lookup:
    """Looks for checkpoints, and remembers which are the newest.

    Args:
        commands: Those of the collection.
        logs: The logs of threads.
        known: Which threads ids meant.
        chunks: Knows which chunks lead to which others.
    """

    def __init__(
        self, commands: MongoCommands, logs: Logs, known: KnownThreads, chunks: MongoChunks
    ) -> None:
        self._commands = commands
        self._logs = logs
        self._known = known
        self._chunks = chunks
        self._newest: Cache[tuple[ObjectId, str], _Newest] = Cache(
            commands.budget,
            lambda place, newest: ENTRY_BYTES + len(place[1]) + sum(map(len, newest)),
        )

    def remember_newest(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str, refs: bytes
    ) -> None:
        """Remember a checkpoint that is the newest, or about the newest, of its namespace."""
        self._newest.put((thread.key, checkpoint_ns), _Newest(checkpoint_id, refs))

    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
        *,
        with_chunks: bool = False,
    ) -> StoredCheckpoint | None:
        """Do what `Checkpoints.get` does."""
        known = self._known.get(thread_id)
        if known is not None and owner in (None, known.owner):
            place = checkpoint_ns, checkpoint_id
            checkpoint = self._from_known(thread_id, known, *place, with_chunks=with_chunks)
            if checkpoint is not None:
                return checkpoint
        missed: str | None = None
        while True:
            checkpoint, lost = self._look_up(thread_id, checkpoint_ns, checkpoint_id, owner)
            if lost is None:
                return checkpoint
            if lost == missed:
                raise lost_checkpoint(thread_id, checkpoint_ns, lost)
            missed = lost  # somebody may have put it, or removed it, while this was read

    def _look_up(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, owner: str | None
    ) -> tuple[StoredCheckpoint | None, str | None]:
        """Return a checkpoint; if only its receipt is stored, its id instead."""
        document = self._read_whole(thread_id, checkpoint_ns, checkpoint_id, owner)
        if document is None:
            return None, None
        thread = named_ref(document["record"], thread_id)
        if [thread_ref(record) for record in document["still"]] != [thread]:
            raise Stale  # something was removed while this was read
        row_id = document["row"]["checkpoint_id"] if "row" in document else None
        lost = _receipt_without(row_id, document.get("writes", ()))
        if row_id is None or lost is not None:
            return None, lost
        self._known.remember(thread_id, thread)
        self._logs.look_at_tail(thread, document["still"][0], document["newest"])
        writes: list[Document] | None = document.get("writes")
        if writes is not None:
            writes = [write for write in writes if write["checkpoint_id"] == row_id]
        checkpoint = self._checkpoint(thread_id, thread, document["row"], writes)
        if checkpoint_id is None:
            self.remember_newest(thread, checkpoint_ns, row_id, checkpoint.row.refs)
        return checkpoint._replace(metadata=document["record"]["metadata"]), None

    def _read_whole(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, owner: str | None
    ) -> Document | None:
        """Return a checkpoint, its writes, and the thread's record before and after these.

        Without the writes, if these are more than fit into one document.
        """
        commands = self._commands
        match = {"kind": "checkpoint", "checkpoint_ns": checkpoint_ns, "visible": True}
        writes = {**match, "kind": "write"}
        if checkpoint_id is not None:
            match["checkpoint_id"] = writes["checkpoint_id"] = checkpoint_id
        begin = [
            *named_record(commands, thread_id, owner),
            joined_rows(commands, "row", match, _NEWEST),
            {"$unwind": {"path": "$row", "preserveNullAndEmptyArrays": True}},
        ]
        state: list[Document] = [{"$project": _STATE}]
        fields = {"record": {**IDENTITY, "metadata": 1}}
        end = [
            self._logs.newest_entry("record.log", "$home"),
            join(commands, "still", ("key", "_id"), {"deleted_at": None}, state),
            {"$project": {**fields, "row": 1, "writes": 1, "newest": 1, "still": 1}},
        ]
        since = {"$ifNull": ["$row.checkpoint_id", ""]} if checkpoint_id is None else None
        with_writes = joined_rows(commands, "writes", writes, [], since=since)
        documents = commands.aggregate_if_it_fits([*begin, with_writes, *end])
        if documents is None:
            documents = commands.aggregate([*begin, *end])
        return documents[0] if documents else None

    def _from_known(
        self,
        thread_id: str,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        *,
        with_chunks: bool,
    ) -> StoredCheckpoint | None:
        """Return what `get` does, by what is known of the thread; None if that does not suffice.

        With the thread's record, and the rows from there on, the server need not look for either.
        """
        newest = self._newest.get((thread.key, checkpoint_ns))
        since = checkpoint_id or (newest and newest.checkpoint_id)
        if since is None:
            return None
        ids: dict[str, Any] = {"$gte": since} if checkpoint_id is None else {"$eq": since}
        rows = {"thread": thread.key, "checkpoint_ns": checkpoint_ns, "checkpoint_id": ids}
        knows_chunks = with_chunks and newest is not None and newest.checkpoint_id == since
        refs = newest.refs if newest is not None and knows_chunks else b""
        read = self._read_together(thread, {**rows, "kind": ROWS, "visible": True}, refs)
        kinds, chunks = _sorted(read)
        if not kinds["thread"] or not kinds["checkpoint"]:
            self._known.forget(thread_id)
            return None
        self._logs.look_at_tail(thread, kinds["thread"][0], read)
        row = max(kinds["checkpoint"], key=lambda document: str(document["checkpoint_id"]))
        if checkpoint_id is None:
            refs = bytes_of(row, "refs")
            self.remember_newest(thread, checkpoint_ns, row["checkpoint_id"], refs)
        if _receipt_without(row["checkpoint_id"], kinds["write"]) is not None:
            return None  # it is to be seen whether it was put or removed just now
        writes = [
            document
            for document in kinds["write"]
            if document["checkpoint_id"] == row["checkpoint_id"]
        ]
        checkpoint = self._checkpoint(thread_id, thread, row, writes)
        return checkpoint._replace(metadata=kinds["thread"][0]["metadata"], chunks=chunks)

    def _read_together(self, thread: ThreadRef, rows: Document, refs: bytes) -> list[Document]:
        """Return the record of a thread, rows of it, and chunks with what they lead to."""
        same = {"_id": thread.key, "epoch": thread.epoch, "deleted_at": None}
        parts, limit = [same, rows], _SINCE
        chunk_ids = self._chunks.known_below(thread.family, split_refs(refs)) if refs else []
        if 0 < len(chunk_ids) <= IN_ONE_COMMAND:
            parts.append({"_id": {"$in": chunk_ids}})
            limit += len(chunk_ids)
        match = {"family": thread.family, "$or": parts}
        return self._commands.snapshots.find_together(match, _NOT_LOOKED_AT, limit)

    def _checkpoint(
        self, thread_id: str, thread: ThreadRef, row: Document, writes: list[Document] | None
    ) -> StoredCheckpoint:
        if writes is None:
            place = {name: row[name] for name in ("checkpoint_ns", "checkpoint_id")}
            match = {**rows_of(thread, "write"), **place, "visible": True}
            writes = self._commands.find(match)
        rows = [write_row(write) for write in writes]
        return StoredCheckpoint(thread_id, thread, checkpoint_row(row), rows)


def _sorted(read: Iterable[Document]) -> tuple[dict[str, list[Document]], dict[bytes, Chunk]]:
    """Return the documents of a reading by their kinds, and the chunks among them."""
    kinds: dict[str, list[Document]] = {"thread": [], "checkpoint": [], "write": []}
    chunks: dict[bytes, Chunk] = {}
    for document in read:
        if is_chunk(document):
            chunks[digest_of(document["_id"])] = refs_in(document), document["content"]
        else:
            kinds[document["kind"]].append(document)
    return kinds, chunks


def _receipt_without(checkpoint_id: str | None, writes: Iterable[Document]) -> str | None:
    """Return the id of a checkpoint other than this that has a receipt among some writes."""
    for write in writes:
        if write.get("idx") == RECEIPT and write["checkpoint_id"] != checkpoint_id:
            return str(write["checkpoint_id"])
    return None
