"""Writing to a thread, prepared for the thread as this process remembers it.

So most writes read nothing first. The store refuses one whose thread has changed since, and it is
prepared again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.manifest import NO_CHANNELS, Manifest
from forkpoint.errors import CorruptChunk, ThreadDeleted
from forkpoint.inputs import Origin
from forkpoint.operations.cache import Described
from forkpoint.operations.context import Context
from forkpoint.runtime.steps import Steps
from forkpoint.runtime.telemetry import Tally, current
from forkpoint.storage.interface import HistoryChanged, Stale
from forkpoint.storage.retry import retry_steps
from forkpoint.storage.rows import CheckpointRow, PutRequest, ThreadRef, WriteRow
from forkpoint.storage.tombstones import is_deleted_since


class PreparedPut(NamedTuple):
    """What is to be stored in a thread, and what is to be remembered of it afterwards."""

    request: PutRequest
    chunks: Chunks
    """All chunks that its rows refer to."""
    manifest: Manifest = NO_CHANNELS
    """That of the checkpoint; without channels for writes."""
    packed_bytes: int = 0
    """How many bytes the manifest takes, with its refs."""


def write(
    context: Context,
    thread_id: str,
    origin: Origin,
    prepare: Callable[[ThreadRef | None], PreparedPut],
) -> Steps[tuple[ThreadRef, PreparedPut]]:
    """Store rows in a thread, and return the thread, and what was stored.

    Args:
        context: The store.
        thread_id: The thread.
        origin: What the rows come from.
        prepare: Returns what is to be stored in a thread, or in one that is made, given None. It
            is called again each time that the thread has changed.

    Raises:
        ThreadDeleted: The thread was deleted since the run began.
        StorageBusy: The thread changed again and again.
    """

    def attempt() -> Steps[tuple[ThreadRef, PreparedPut]]:
        thread = _thread_of_run(context, thread_id, origin)
        try:
            prepared_put = prepare(thread)
            stored_thread = yield from context.storage.put(prepared_put.request)
        except HistoryChanged:
            raise
        except Stale:
            context.memory.forget(thread_id)
            raise
        except CorruptChunk:
            if context.memory.history != context.storage.history:
                raise HistoryChanged from None  # the thread is of one store, the key of another
            raise
        if stored_thread is None:
            context.memory.forget(thread_id)
            raise _deleted(thread_id)
        _remember(context, prepared_put, stored_thread, origin)
        return stored_thread, prepared_put

    return (yield from retry_steps(attempt, f"thread {thread_id!r} changed"))


def _remember(
    context: Context, prepared_put: PreparedPut, thread: ThreadRef, origin: Origin
) -> None:
    """Remember what was stored, and in which thread."""
    memory, request = context.memory, prepared_put.request
    if current.tally is not None:
        _count(current.tally, prepared_put)
    thread_id = request.thread_id
    memory.missing.pop(thread_id)
    memory.salts.pop(thread_id)
    memory.threads.put(thread_id, thread)
    if request.expected is None:
        memory.described.put(thread.key, Described(None, request.metadata))
    if request.began is not None and request.began.key is None:
        memory.runs.begin(thread_id, origin.run, request.began._replace(key=thread.key))
    if prepared_put.chunks:
        memory.add_chunks(thread, prepared_put.chunks)


def _count(tally: Tally, prepared_put: PreparedPut) -> None:
    """Count what was stored, for who traces the operation."""
    request, chunks = prepared_put.request, prepared_put.request.chunks
    rows: list[CheckpointRow | WriteRow] = [*request.writes]
    if request.row is not None:
        rows.append(request.row)
    tally.rows_written += len(rows)
    tally.bytes_written += sum(len(row.content) + len(row.refs) for row in rows)
    tally.bytes_written += sum(len(refs) + len(content) for refs, content in chunks.values())
    tally.chunks_written += len(chunks)
    tally.chunks_shared += len(prepared_put.chunks.keys() - chunks.keys())


def _thread_of_run(context: Context, thread_id: str, origin: Origin) -> ThreadRef | None:
    """Return the thread that a run writes to, or None if the run may make it.

    Raises:
        ThreadDeleted: It was deleted since the run began.
    """
    memory, lease = context.memory, origin.lease
    began = None if origin.run is None else memory.runs.beginning(thread_id, origin.run)
    key = began.key if began is not None else None

    def is_of_run(thread: ThreadRef | None) -> bool:
        if thread is None:
            return key is None and lease is None
        return key in (None, thread.key) and (lease is None or str(thread.key) == lease.key)

    thread = memory.threads.get(thread_id)
    if thread is None:
        if is_of_run(None) and memory.missing.get(thread_id):
            return None
    elif is_of_run(thread) and (began is None or key is not None):
        return thread
    with context.storage.reading() as session:
        thread = session.threads.find(thread_id)
        if not is_of_run(thread):
            raise _deleted(thread_id)
        # Somebody else may have made it, before or after it was deleted.
        if (
            began is not None
            and key is None
            and is_deleted_since(began.deletion, session.threads.deletions(thread_id))
        ):
            raise _deleted(thread_id)
    return thread


def _deleted(thread_id: str) -> ThreadDeleted:
    return ThreadDeleted(
        f"thread {thread_id!r} was deleted: no run stores anything that began before, or goes on "
        "from one of its checkpoints; a new run may use the id"
    )
