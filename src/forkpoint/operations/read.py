"""Reading checkpoints with their values and pending writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple, PendingWrite

from forkpoint import inputs, langgraph_rules
from forkpoint.collector import pauses_collector
from forkpoint.encoding.chunk import Chunk, Chunks
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import split_refs
from forkpoint.encoding.manifest import Manifest
from forkpoint.errors import CorruptChunk
from forkpoint.inputs import Address
from forkpoint.operations import resume
from forkpoint.operations.cache import Described, KnownManifest
from forkpoint.operations.context import Context
from forkpoint.operations.places import at_place, config_of, place_of
from forkpoint.results import NOT_READ
from forkpoint.runtime.telemetry import current
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.row_checksums import (
    complete_writes,
    metadata_of,
    open_checkpoint,
    open_write,
)
from forkpoint.storage.rows import CheckpointRow, RunStart, StoredCheckpoint, WriteRow

_Reading = TypeVar("_Reading")
_Loaded = TypeVar("_Loaded")


class _TupleReading(NamedTuple):
    """What `get_tuple` reads of the store."""

    checkpoint: StoredCheckpoint | None
    chunks: Chunks
    run_start: RunStart | None
    """What the thread's id meant at this moment; None if that was not asked for."""


def get_tuple(
    context: Context, address: Address, config: RunnableConfig, run: object = None
) -> CheckpointTuple | None:
    """Return a checkpoint, or the newest of its namespace; None if there is none.

    Args:
        context: The store.
        address: The checkpoint, or the thread and the namespace.
        config: The config that the address was taken from.
        run: The run that begins with this look for its thread; None for any other look.
    """
    context = context.for_present_history()
    begins_run = run is not None and address.checkpoint_id is None

    def load(reading: _TupleReading) -> tuple[_TupleReading, CheckpointTuple | None]:
        if reading.checkpoint is None:
            return reading, None
        return reading, load_checkpoint(context, reading.checkpoint, reading.chunks)

    reading, loaded = consistently(
        context, lambda session: _read_tuple(session, address, begins_run), load
    )
    _remember(context, address.thread_id, reading)
    stored = reading.checkpoint
    if stored is not None and stored.row.restarts and address.checkpoint_id is None:
        resume.apply_input(address, config)
    if run is not None:
        context.memory.runs.note(address.thread_id, run, reading.run_start)
    if loaded is not None and address.checkpoint_id is not None:
        return loaded._replace(config=config)
    return loaded


def _read_tuple(session: Session, address: Address, begins_run: bool) -> _TupleReading:
    stored = session.checkpoints.get(*address, with_chunks=True)
    if stored is not None:
        chunks = chunks_of(session, [stored])[stored.thread.family]
        return _TupleReading(stored, chunks, RunStart(stored.thread.key, None))
    if not begins_run:
        return _TupleReading(None, {}, None)
    thread = session.threads.find(address.thread_id)
    deletions = session.threads.deletions(address.thread_id)
    return _TupleReading(None, {}, RunStart(thread and thread.key, deletions))


def _remember(context: Context, thread_id: str, reading: _TupleReading) -> None:
    """Remember what a write to the thread needs to know."""
    memory, stored = context.memory, reading.checkpoint
    if stored is None:
        memory.missing.put(thread_id, True)
        return
    memory.threads.put(thread_id, stored.thread)
    if isinstance(stored.metadata, str):  # else the record is damaged
        memory.described.put(stored.thread.key, Described(None, stored.metadata))
    memory.add_chunks(stored.thread, reading.chunks)


# For all that read


def consistently(
    context: Context, read: Callable[[Session], _Reading], load: Callable[[_Reading], _Loaded]
) -> _Loaded:
    """Load what was read, and read again if that looks damaged and was changed meanwhile.

    Args:
        context: The store.
        read: Reads the store.
        load: Makes of it what is to be returned.

    Raises:
        CorruptChunk: What was read is damaged, and it was the same when it was read again.
    """
    damage: CorruptChunk | None = None
    for reading in readings(context, read):
        try:
            return load(reading)
        except CorruptChunk as error:
            damage = error
    assert damage is not None
    raise damage


def readings(context: Context, read: Callable[[Session], _Reading]) -> Iterator[_Reading]:
    """Yield what is read, again and again, until it is the same twice.

    Where there are no transactions, what somebody removes during a reading looks like damage. It is
    damage if it looks the same at the next reading.
    """
    before: _Reading | None = None
    while True:
        with context.storage.reading() as session:
            try:
                reading = read(session)
            except Stale:
                continue
        yield reading
        if reading == before:
            return
        before = reading


def count(checkpoints: Sequence[StoredCheckpoint], chunks: Mapping[Any, Chunks]) -> None:
    """Count what was read, if somebody traces the operation."""
    tally = current.tally
    if tally is None:
        return
    rows: list[CheckpointRow | WriteRow] = [stored.row for stored in checkpoints]
    rows += [write for stored in checkpoints for write in stored.writes]
    tally.rows_read += len(rows)
    tally.bytes_read += sum(len(row.content) + len(row.refs) for row in rows)
    for of_family in chunks.values():
        tally.bytes_read += sum(len(refs) + len(content) for refs, content in of_family.values())


def chunks_of(session: Session, checkpoints: Sequence[StoredCheckpoint]) -> dict[Any, Chunks]:
    """Read the chunks of checkpoints and their writes, by family.

    A chunk may refer to others: these are read with the next query, of all families at once.
    """
    chunks: dict[Any, Chunks] = {stored.thread.family: {} for stored in checkpoints}
    missing: dict[Any, set[bytes]] = {family: set() for family in chunks}
    for stored in checkpoints:
        chunks[stored.thread.family].update(stored.chunks)
        digests = missing[stored.thread.family]
        for refs, _ in stored.chunks.values():
            digests.update(split_refs(refs))
        for refs in (stored.row.refs, *(write.refs for write in stored.writes)):
            if refs:
                digests.update(split_refs(refs))
        digests.difference_update(chunks[stored.thread.family])
    while missing := {family: digests for family, digests in missing.items() if digests}:
        for family, level in session.chunks.of_families(missing).items():
            chunks[family].update(level)
            below = {digest for refs, _ in level.values() for digest in split_refs(refs)}
            missing[family] = below - chunks[family].keys()
    count(checkpoints, chunks)
    return chunks


@pauses_collector
def load_checkpoint(
    context: Context, stored: StoredCheckpoint, chunks: Mapping[bytes, Chunk]
) -> CheckpointTuple:
    """Return a checkpoint that was read, with its values and pending writes.

    Raises:
        CorruptChunk: It is not what was written; the error names it.
        UnreadableValue: A value cannot be restored; the error names the checkpoint.
    """
    thread_id, thread, row, writes, *_ = stored
    with at_place(thread_id, row.checkpoint_ns, row.checkpoint_id):
        codec = context.codec_of(thread)
        body, manifest, metadata = _open(codec, row)
        values = codec.decode_values(manifest, chunks)
        complete = complete_writes(codec, writes)
        pending = [load_write(codec, write, chunks) for write in sorted(complete, key=order_of)]
    versions = {**body.get("channel_versions", {})}  # callers go on with those that they are given
    packed_bytes = len(row.content) + len(row.refs)
    counters = langgraph_rules.delta_counters(metadata)
    known = KnownManifest(thread.epoch, manifest, versions, packed_bytes, counters)
    context.memory.add_manifest(thread, place_of(row), known)
    return _tuple_of(stored, {**body, "channel_values": values}, metadata, pending)


def load_without_values(context: Context, stored: StoredCheckpoint) -> CheckpointTuple:
    """Return a checkpoint with `NOT_READ` for each value, but for those that say what runs next.

    These are no part of the state, and stand in the row itself, unless they take much.
    """
    thread_id, thread, row, writes, *_ = stored
    with at_place(thread_id, row.checkpoint_ns, row.checkpoint_id):
        codec = context.codec_of(thread)
        body, manifest, metadata = _open(codec, row)
        values = {
            channel: codec.decode_entry(manifest[channel], {})
            if langgraph_rules.says_next(channel) and not manifest[channel].refs
            else NOT_READ
            for channel in manifest
        }
        complete = sorted(complete_writes(codec, writes), key=order_of)
    pending: list[PendingWrite] = [(write.task_id, write.channel, NOT_READ) for write in complete]
    return _tuple_of(stored, {**body, "channel_values": values}, metadata, pending)


def _open(codec: Codec, row: CheckpointRow) -> tuple[dict[str, Any], Manifest, Any]:
    """Return the body, the manifest and the metadata of a checkpoint, verified."""
    body, manifest = open_checkpoint(codec, row)
    metadata = metadata_of(row)
    if row.run_id not in (None, inputs.run_id(metadata)):
        raise CorruptChunk("the run of the checkpoint is not that which was written")
    return body, manifest, metadata


def _tuple_of(
    stored: StoredCheckpoint,
    checkpoint: dict[str, Any],
    metadata: Any,
    pending: list[PendingWrite],
) -> CheckpointTuple:
    row = stored.row
    parent = row.parent_checkpoint_id
    return CheckpointTuple(
        config=config_of(stored.thread_id, row.checkpoint_ns, row.checkpoint_id),
        checkpoint=cast(Checkpoint, checkpoint),
        metadata=metadata,
        parent_config=config_of(stored.thread_id, row.checkpoint_ns, parent) if parent else None,
        pending_writes=pending,
    )


def load_write(codec: Codec, row: WriteRow, chunks: Mapping[bytes, Chunk]) -> PendingWrite:
    """Return a write that was read, with its value."""
    content = open_write(codec, row)
    return row.task_id, row.channel, codec.decode_write(content, row.refs, chunks)


def order_of(row: WriteRow) -> tuple[str, str, int]:
    """Return the key by which a run orders the writes of one step when it applies them."""
    return row.task_path, row.task_id, row.idx
