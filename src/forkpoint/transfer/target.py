"""The thread that is moved to, written part by part.

While it is not complete, its metadata have a mark, which says what it comes from. So who goes on
with it knows it again, after the process that began was killed. Each checkpoint is stored together
with its writes, in the order in which they were made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint import inputs
from forkpoint.archive.parts import (
    Ancestor,
    CheckpointPart,
    ChunkPart,
    ThreadPart,
    ValuePart,
    WritePart,
)
from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.entries import Entry, pack_entry, split_refs
from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.encoding.manifest import Manifest, pack_manifest
from forkpoint.errors import CorruptChunk, StorageBusy, ThreadDeleted, ThreadExists
from forkpoint.filters import stored_value_terms
from forkpoint.langgraph_rules import status_of
from forkpoint.operations.context import Context
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.receipts import is_receipt, replaces
from forkpoint.storage.record_checksums import check_record
from forkpoint.storage.retry import attempts, busy
from forkpoint.storage.row_checksums import (
    checkpoint_receipt,
    with_checksum,
    with_receipts,
)
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    ForkRequest,
    PutRequest,
    RunStart,
    ThreadRef,
    ThreadRow,
    WriteRow,
)
from forkpoint.storage.shared import thread_exists
from forkpoint.transfer.checks import check_chunks, check_thread

MARK = "__forkpoint_incoming"
"""The key in the metadata of a thread that is not complete. Nobody else may use such keys."""


class Arrival(NamedTuple):
    """A thread that is to be written to."""

    thread: ThreadRef
    is_incoming: bool
    """Whether it is not complete."""
    places: frozenset[Place] = frozenset()
    """The checkpoints that it has, hidden ones too."""
    created_at: int = 0


# Opening


def find(context: Context, thread_id: str, origin: str) -> Arrival | None:
    """Return a thread that is there already.

    Args:
        context: The store.
        thread_id: The thread.
        origin: What names the thread that it comes from.

    Raises:
        ThreadExists: It is being moved here from elsewhere.
    """
    hashing = context.prepare().hashing
    with context.storage.reading() as session:
        row = session.records.get(thread_id)
        if row is None:
            return None
        check_record(hashing, row)
        mark = json.loads(row.described.metadata).get(MARK)
        if mark not in (None, origin):
            raise ThreadExists(
                f"thread {thread_id!r} is not complete, and comes from elsewhere; delete it, or "
                "finish that first"
            )
        places: set[Place] = set()
        after: Any = None
        while True:
            batch = session.checkpoints.batch(row.thread, after, with_content=False)
            places.update((row.checkpoint_ns, row.checkpoint_id) for row in batch.items)
            after = batch.after
            if after is None:
                return Arrival(row.thread, mark is not None, frozenset(places), row.created_at)


def begin(
    context: Context, part: ThreadPart, thread_id: str, origin: str, parent: ThreadRow | None
) -> Arrival:
    """Make a thread that is not complete.

    Args:
        context: The store.
        part: The thread that it comes from.
        thread_id: Its id.
        origin: What names the thread that it comes from.
        parent: The record of the thread that it was made from, if that is there.

    Raises:
        InvalidInput: What is said of it is of another shape than is stored.
        ThreadExists: There is a thread of this id.
    """
    check_thread(part)
    inputs.identifier(thread_id, "thread_id")
    hashing = context.prepare().hashing
    owner = _owner_of(context, part)
    described = Description(metadata=json.dumps({MARK: origin}, separators=(",", ":")))
    for _ in attempts():
        with context.storage.writing() as session:
            if parent is not None:
                parent = _thread_of(session, hashing, parent.thread_id, parent.created_at, owner)
            try:
                if parent is None:
                    if not session.records.create(thread_id, owner, described, hashing):
                        raise thread_exists(thread_id)
                else:
                    request = _empty_fork(context, part.lineage[0], thread_id, parent)
                    request = request._replace(owner=owner, described=described)
                    session.copies.fork(request)
            except Stale:
                continue
            context.memory.threads.pop(thread_id)
            row = session.records.get(thread_id)
            if row is not None:
                return Arrival(row.thread, is_incoming=True)
    raise busy(f"the family of thread {thread_id!r} changed")


def _empty_fork(
    context: Context, origin: Ancestor, thread_id: str, parent: ThreadRow
) -> ForkRequest:
    return ForkRequest(
        parent.thread,
        parent.thread_id,
        thread_id,
        origin.parent_checkpoint_id,
        None,
        Description(),
        "idle",
        [],
        [],
        {},
        context.codec.hashing,
        new_salt(parent.thread.salt),
        edge=origin.edge or "fork",
    )


def parent_of(
    context: Context, part: ThreadPart, renamed: Callable[[str], str]
) -> ThreadRow | None:
    """Return the record of the thread that another was made from, if its owner has that."""
    if len(part.lineage) < 2 or part.lineage[0].edge is None:
        return None
    parent = part.lineage[1]
    parent_id = renamed(parent.thread_id)  # which may ask the store
    hashing = context.prepare().hashing
    with context.storage.reading() as session:
        owner = _owner_of(context, part)
        return _thread_of(session, hashing, parent_id, parent.created_at, owner)


def _owner_of(context: Context, part: ThreadPart) -> str | None:
    return part.owner if context.owner is None else context.owner


def _thread_of(
    session: Session, hashing: Hashing, thread_id: str, created_at: int, owner: str | None
) -> ThreadRow | None:
    """Return the record of a thread; None if there is none, or another one has its id."""
    row = session.records.get(thread_id)
    if row is None or (row.created_at, row.thread.owner) != (created_at, owner):
        return None
    check_record(hashing, row)
    return row


# Writing


class ThreadWriter:
    """Writes checkpoints to a thread.

    Args:
        context: The store.
        thread: The thread.
        status: The status that it had where it comes from.
    """

    def __init__(self, context: Context, thread: ThreadRef, status: str) -> None:
        self._context = context
        self._thread = thread
        self._status = status
        self._codec = context.codec_of(thread)
        self._digests: dict[int, bytes] = {}
        self._oldest = 0
        # Those that are not known to be stored.
        self._waiting: Chunks = {}

    def add(self, part: ChunkPart) -> None:
        """Take chunks, to be stored with the first checkpoint that refers to them.

        One that refers to a chunk which is missing is left out.

        Raises:
            InvalidInput: They are of another shape.
        """
        check_chunks(part)
        if part.oldest > self._oldest:
            self._oldest = part.oldest
            self._digests = {n: digest for n, digest in self._digests.items() if n >= part.oldest}
            self._waiting.clear()
        for number, (numbers, content) in enumerate(part.chunks, part.first):
            if all(below in self._digests for below in numbers):
                chunk = b"".join(self._digests[below] for below in numbers), content
                digest = self._codec.digest(chunk)
                self._digests[number] = digest
                self._waiting[digest] = chunk

    def put(self, part: CheckpointPart) -> Steps[None]:
        """Store a checkpoint with its writes.

        Raises:
            CorruptChunk: It refers to a chunk that is missing.
            ThreadDeleted: Somebody deleted the thread meanwhile.
        """
        row = self._row(part)
        writes = self._write_rows(part, part.writes)
        receipt = checkpoint_receipt(self._codec, row, part.preview)
        kinds = {write.idx for write in part.writes}
        request = self._request(part, [row.refs, *(write.refs for write in writes)])._replace(
            row=row,
            writes=[*writes, receipt],
            status=status_of(kinds, self._status) if part.checkpoint_ns == "" else None,
        )
        if part.preview is not None:
            terms = stored_value_terms(self._thread.owner, receipt.content)
            request = request._replace(value_terms=terms)
        yield from self._store(request)

    def complete(self, part: CheckpointPart) -> Steps[int]:
        """Store those writes of a checkpoint that are missing, and return how many.

        An error, an interrupt or an answer replaces the one before.
        """
        stored_writes, stored_refs = self._stored(part.place)
        there = {(row.task_id, row.idx): row.checksum for row in stored_writes}
        tasks: set[str] = set()
        number = 0
        for row in self._write_rows(part, part.writes):
            checksum = there.get((row.task_id, row.idx))
            if checksum is None or (replaces(row.idx) and checksum != row.checksum):
                tasks.add(row.task_id)
                number += not is_receipt(row.idx)
        if tasks:
            # Of a task all at once: so its receipts are of all.
            missing = [write for write in part.writes if write.task_id in tasks]
            writes = self._write_rows(part, missing)
            kinds = {write.idx for write in part.writes}
            status = status_of(kinds, self._status) if part.checkpoint_ns == "" else "idle"
            request = self._request(part, [write.refs for write in writes])
            yield from self._store(
                request._replace(writes=writes, status=None if status == "idle" else status)
            )
        self._forget(self._waiting_below(stored_refs))
        return number

    def _stored(self, place: Place) -> tuple[list[WriteRow], list[bytes]]:
        """Return the writes of a checkpoint that is here, and the refs of all its rows.

        They may have other values than where it comes from: it was put there again, or a run has
        done a task of it in both places.
        """
        thread = self._thread
        query = CheckpointQuery(thread.thread_id, *place, None, None, None, 1, with_hidden=True)
        with self._context.storage.reading() as session:
            page = session.checkpoints.page(query)
        for stored in page:
            if stored.thread.key == thread.key:
                refs = [stored.row.refs, *(write.refs for write in stored.writes)]
                return stored.writes, refs
        return [], []

    def _row(self, part: CheckpointPart) -> CheckpointRow:
        kind, body = part.body
        manifest = Manifest({name: self._entry(value) for name, value in part.channels.items()})
        content = pack_manifest(kind, body, manifest)
        row = CheckpointRow(
            *part.place,
            part.parent_checkpoint_id,
            part.run_id,
            part.metadata,
            manifest.refs,
            self._codec.encrypt(content),
            restarts=part.restarts,
        )
        return with_checksum(self._codec, row, content)

    def _write_rows(self, part: CheckpointPart, writes: Iterable[WritePart]) -> list[WriteRow]:
        tasks: dict[str, list[WriteRow]] = {}
        for write in writes:
            entry = self._entry(write.value)
            content = ormsgpack.packb(pack_entry(entry))
            encrypted = self._codec.encrypt(content)
            task_id, idx, task_path, channel, _ = write
            place = part.checkpoint_ns, part.checkpoint_id, task_id, idx
            row = WriteRow(*place, task_path, channel, entry.refs, encrypted)
            row = with_checksum(self._codec, row, content)
            tasks.setdefault(write.task_id, []).append(row)
        return [row for rows in tasks.values() for row in with_receipts(self._codec, rows)]

    def _entry(self, value: ValuePart) -> Entry:
        missing = [number for number in value.chunks if number not in self._digests]
        if missing:
            raise CorruptChunk(f"it refers to chunk {missing[0]}, which is missing or damaged")
        refs = b"".join(self._digests[number] for number in value.chunks)
        return Entry(value.kind, value.type, value.content, refs, value.height)

    def _request(self, part: CheckpointPart, refs: Iterable[bytes]) -> PutRequest:
        chunks = self._waiting_below(refs)
        return PutRequest(
            self._thread.thread_id,
            self._thread,
            "{}",
            (part.place,),
            *part.place,
            {digest: self._codec.encrypt_chunk(chunk) for digest, chunk in chunks.items()},
            began=RunStart(self._thread.key, None),
            history=self._context.memory.history,
            owner=self._thread.owner,
        )

    def _waiting_below(self, refs: Iterable[bytes]) -> Chunks:
        """Return the chunks that some refs lead to, and that are not known to be stored."""
        chunks: Chunks = {}
        digests = [digest for joined in refs for digest in split_refs(joined)]
        while digests:
            digest = digests.pop()
            if digest in self._waiting and digest not in chunks:
                chunks[digest] = self._waiting[digest]
                digests += split_refs(chunks[digest][0])
        return chunks

    def _forget(self, digests: Iterable[bytes]) -> None:
        """Forget chunks that are stored."""
        for digest in digests:
            self._waiting.pop(digest, None)

    def _store(self, request: PutRequest) -> Steps[None]:
        storage, thread_id = self._context.storage, request.thread_id
        for _ in attempts():
            try:
                written = yield from storage.put(request._replace(expected=self._thread))
            except Stale:
                self._look_again(request)
                continue
            assert written is not None  # what is too late is `Stale` where a thread is expected
            self._thread = written
            self._forget(request.chunks)
            return
        raise busy(f"thread {thread_id!r} changed")

    def _look_again(self, request: PutRequest) -> None:
        """Look at a thread that is not as it was known, and at the chunks that are counted on.

        Raises:
            ThreadDeleted: It was deleted.
            StorageBusy: Some were removed.
        """
        with self._context.storage.reading() as session:
            thread = session.threads.find(request.thread_id)
            if thread is None or thread.key != self._thread.key:
                raise deleted_meanwhile(request.thread_id)
            self._thread = thread
            rows = [row for row in (request.row, *request.writes) if row is not None]
            joined = [row.refs for row in rows] + [refs for refs, _ in request.chunks.values()]
            digests_needed = {digest for refs in joined for digest in split_refs(refs)}
            seen: set[bytes] = set()
            while digests_needed := digests_needed - request.chunks.keys() - seen:
                stored = session.chunks.get(thread.family, digests_needed)
                if not digests_needed <= stored.keys():
                    raise StorageBusy(
                        f"checkpoints were removed from thread {request.thread_id!r} before it was "
                        "complete; do it again"
                    )
                seen |= stored.keys()
                digests_needed = {ref for refs, _ in stored.values() for ref in split_refs(refs)}


def deleted_meanwhile(thread_id: str) -> ThreadDeleted:
    return ThreadDeleted(f"thread {thread_id!r} was deleted before it was complete")
