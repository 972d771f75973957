"""Reading a thread of a store part by part, oldest checkpoint first.

Nothing is decoded: the values are those that were stored, in plaintext. Each chunk is read once,
and verified. Between two pages others may write. Whoever reads is told in the end if they did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from forkpoint.archive.parts import (
    Ancestor,
    CheckpointPart,
    EndPart,
    Numbering,
    Part,
    ThreadPart,
    WritePart,
)
from forkpoint.encoding.chunk import Chunk, Chunks
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import split_refs, unpack, unpack_only_entry
from forkpoint.encoding.manifest import unpack_manifest
from forkpoint.errors import CorruptChunk, ThreadNotFound
from forkpoint.operations.context import Context
from forkpoint.operations.listing import PAGE_ROWS, following_page
from forkpoint.operations.places import at_place, place_of
from forkpoint.operations.read import order_of
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.record_checksums import check_kinship, check_record
from forkpoint.storage.row_checksums import complete_writes, open_checkpoint, open_write, preview_in
from forkpoint.storage.rows import ChangeCount, RecordTimes, StoredCheckpoint, ThreadRow, WriteRow


class _State(NamedTuple):
    """By what it is seen that nothing was written to a thread."""

    extent: ChangeCount
    updated_at: int


class _Page(NamedTuple):
    stored: Sequence[StoredCheckpoint]
    chunks: Chunks
    following: CheckpointQuery | None


def read_thread(
    context: Context,
    thread_id: str,
    needed: Collection[Place] | None = None,
    *,
    is_steady: bool = False,
) -> Iterator[Part]:
    """Yield a thread part by part.

    Args:
        context: The store.
        thread_id: The thread.
        needed: The checkpoints that are read, beside hidden ones; None for all.
        is_steady: Whether nobody writes to it meanwhile.

    Raises:
        ThreadNotFound: There is none.
        Stale: Somebody wrote to it, before the last part.
        CorruptChunk: What is stored is not what was written.
    """
    hashing = context.prepare().hashing
    with context.storage.reading() as session:
        row = session.records.get(thread_id)
        if row is None:
            raise ThreadNotFound(f"there is no thread {thread_id!r}")
        check_record(hashing, row)
        lineage = _lineage(context, session, row)
        before = _state(session, row)
    yield _thread_part(row, lineage)
    checkpoints = writes = 0
    numbering = Numbering()
    newest: Sequence[StoredCheckpoint] = ()
    query = CheckpointQuery(thread_id, None, None, None, None, None, PAGE_ROWS, oldest_first=True)
    following: CheckpointQuery | None = query._replace(with_hidden=True)
    while following is not None:
        numbering.begin_checkpoint()
        page = _read(context, following, row, numbering, needed)
        for stored in page.stored:
            part = _checkpoint_part(context.codec_of(row.thread), stored, page.chunks, numbering)
            yield from numbering.take()
            yield part
            checkpoints += 1
            writes += len(part.writes)
        following = page.following
        newest = page.stored or newest
    if not is_steady:
        _check_unchanged(context, row, before, newest)
    yield EndPart(checkpoints, writes)


def _check_unchanged(
    context: Context, row: ThreadRow, before: _State, newest: Sequence[StoredCheckpoint]
) -> None:
    """Raise an error if somebody wrote to a thread since it began to be read."""
    with context.storage.reading() as session:
        now = session.records.get(row.thread.thread_id)
        if now is None or now.thread.key != row.thread.key or _state(session, now) != before:
            raise Stale
        places = [place_of(stored.row) for stored in newest]
        # What a task writes to a checkpoint that was there before is not in the record.
        if len(session.checkpoints.writes(row.thread, places)) != sum(
            len(stored.writes) for stored in newest
        ):
            raise Stale


def _state(session: Session, row: ThreadRow) -> _State:
    return _State(session.removals.extent(row.thread), row.updated_at)


def _lineage(context: Context, session: Session, row: ThreadRow) -> list[Ancestor]:
    line = session.threads.lineage(row.thread)
    for member in line:
        check_kinship(context.codec.hashing, member)
    return [
        Ancestor(
            member.thread_id,
            None if member.edge is None else str(member.edge),
            member.parent_checkpoint_id,
            member.created_at,
        )
        for member in line
        if member.thread_id
    ]


def _thread_part(row: ThreadRow, lineage: Sequence[Ancestor]) -> ThreadPart:
    return ThreadPart(
        row.thread_id,
        row.thread.owner,
        row.described,
        row.status,
        RecordTimes(row.created_at, row.updated_at, row.state_updated_at),
        lineage,
        row.is_swept,
    )


def _read(
    context: Context,
    query: CheckpointQuery,
    row: ThreadRow,
    numbering: Numbering,
    needed: Collection[Place] | None,
) -> _Page:
    """Return what is needed of a page, and is hidden, with those chunks that have no number yet."""
    with context.storage.reading() as session:
        stored = session.checkpoints.page(query)
        if any(each.thread.key != row.thread.key for each in stored):
            raise Stale
        following = following_page(query, stored)
        if needed is not None:
            stored = [each for each in stored if each.row.hidden or place_of(each.row) in needed]
        chunks: Chunks = {}
        refs = (refs for each in stored for refs in (each.row.refs, *(w.refs for w in each.writes)))
        missing = {digest for joined in refs for digest in split_refs(joined)}
        while missing := {digest for digest in missing if not numbering.knows(digest)}:
            read = session.chunks.get(row.thread.family, missing)
            chunks.update(read)
            below = {digest for refs, _ in read.values() for digest in split_refs(refs)}
            missing = below - chunks.keys()
    return _Page(stored, chunks, following)


def _checkpoint_part(
    codec: Codec, stored: StoredCheckpoint, chunks: Chunks, numbering: Numbering
) -> CheckpointPart:
    row = stored.row

    def chunk_of(digest: bytes) -> Chunk:
        stored_chunk = chunks.get(digest)
        if stored_chunk is None:
            raise CorruptChunk(f"chunk {digest.hex()} is missing")
        refs, content = stored_chunk
        chunk = refs, codec.decrypt(content) if content else b""
        if codec.digest(chunk) != digest:
            raise CorruptChunk(f"chunk {digest.hex()} is not what was written")
        return chunk

    with at_place(stored.thread_id, *place_of(row)):
        open_checkpoint(codec, row)  # it verifies
        kind, body, manifest = unpack_manifest(codec.decrypt(row.content), row.refs)
        channels = {name: numbering.value(entry, chunk_of) for name, entry in manifest.items()}
        kept = sorted(complete_writes(codec, stored.writes), key=order_of)
        writes = [_write_part(codec, write, numbering, chunk_of) for write in kept]
    return CheckpointPart(
        row.checkpoint_ns,
        row.checkpoint_id,
        row.parent_checkpoint_id,
        row.run_id,
        row.metadata,
        (kind, body),
        channels,
        writes,
        bool(row.hidden),  # SQLite has numbers
        bool(row.restarts),
        preview_in(codec, stored.writes, row.checkpoint_id) if not row.checkpoint_ns else None,
    )


def _write_part(codec: Codec, write: WriteRow, numbering: Numbering, chunk_of: object) -> WritePart:
    entry = unpack_only_entry(unpack(open_write(codec, write), "a write"), write.refs)
    value = numbering.value(entry, chunk_of)  # type: ignore[arg-type]
    return WritePart(write.task_id, write.idx, write.task_path, write.channel, value)
