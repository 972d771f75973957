"""Putting checkpoints and writes.

LangGraph hands over values that it goes on changing. So a put has two parts: a capture, which
encodes the values at the call and reads nothing, and the operation, which stores the capture.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig

from forkpoint import langgraph_rules
from forkpoint.collector import pauses_collector
from forkpoint.encoding.chunk import Chunks, Encoded, Serialized
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.manifest import NO_CHANNELS, Manifest
from forkpoint.filters import stored_value_terms
from forkpoint.inputs import Address, Origin, as_json
from forkpoint.operations.cache import Described, KnownManifest, Memory
from forkpoint.operations.context import Context
from forkpoint.operations.inherited_preview import complete_preview
from forkpoint.operations.run_metadata import has_run, merge_run, of_config
from forkpoint.operations.write import PreparedPut, write
from forkpoint.previews import preview_of
from forkpoint.runtime.steps import Steps
from forkpoint.storage.plan import Place
from forkpoint.storage.row_checksums import (
    checkpoint_receipt,
    metadata_of,
    open_checkpoint,
    stored_chunks,
    stored_row,
    with_receipts,
)
from forkpoint.storage.rows import CheckpointRow, Description, PutRequest, ThreadRef, WriteRow


class NewCheckpoint(NamedTuple):
    """The arguments of `put`, checked, and with the metadata as JSON."""

    config: RunnableConfig
    address: Address
    """The thread, the namespace and the parent."""
    origin: Origin
    checkpoint: Mapping[str, Any]
    metadata: str
    run_id: str | None
    new_versions: Mapping[str, Any]
    is_fork: bool = False
    """Whether LangGraph begins a branch with it, and puts the state of the parent again."""

    @property
    def changed(self) -> Collection[str]:
        """The channels that are stored with the values that are given.

        Where no version is new these are all that have values, but for a fork: LangGraph may have
        gone on, and changed values in place, before it calls for the fork to be put.
        """
        if self.new_versions or self.is_fork:
            return self.new_versions
        values: Mapping[str, Any] = self.checkpoint["channel_values"]
        return values


class NewWrites(NamedTuple):
    """The arguments of `put_writes`, checked."""

    config: RunnableConfig
    address: Address
    origin: Origin
    place: Place
    writes: Mapping[int, tuple[str, Any]]
    """The channel and the value of each, by its idx."""
    task_id: str
    task_path: str


class Inherited(NamedTuple):
    """What a checkpoint has of its parent."""

    manifest: Manifest
    """The channels that did not change."""
    counters: Mapping[str, Any]
    """What the parent counts for each `DeltaChannel` that did not change, and that it does not
    store: they are rebuilt of its ancestors, whether the graph has them or not."""


_NOTHING = Inherited(NO_CHANNELS, {})


class CapturedCheckpoint(NamedTuple):
    """A checkpoint to be put, with its state as it was at the call."""

    new: NewCheckpoint
    state: Serialized
    codec: Codec
    """That of the thread, or of one that is to be made."""
    thread: ThreadRef | None
    """The thread, as far as it was known at the call without reading the store."""
    inherited: Inherited | None
    """What the checkpoint inherits in that thread; None if its parent has to be read for it."""
    memory: Memory
    """What was remembered at the call."""
    preview: str | None
    """What the thread's record shows of the state; None if no channels were chosen for that."""


class CapturedWrites(NamedTuple):
    """Writes to be put, with their values as they were at the call."""

    new: NewWrites
    values: Sequence[Encoded]
    rows: Sequence[WriteRow]
    codec: Codec
    """That of the thread, or of one that is to be made."""

    @property
    def chunks(self) -> Chunks:
        """The chunks of all values."""
        return {digest: chunk for value in self.values for digest, chunk in value.chunks.items()}


class NewRows(NamedTuple):
    """The rows that a put stores."""

    checkpoint: CheckpointRow | None
    writes: Sequence[WriteRow]
    """The writes of a task, or the receipt of the checkpoint."""
    chunks: Chunks
    """All chunks that the rows refer to."""
    status: str | None
    """The status of the thread afterwards; None if it stays."""


# Checkpoints


@pauses_collector
def capture_checkpoint(context: Context, new: NewCheckpoint) -> CapturedCheckpoint:
    """Return a checkpoint with its state as it is now, without reading the store.

    Raises:
        InvalidInput: A value cannot be stored.
    """
    context = context.for_present_history()
    thread = context.memory.threads.get(new.address.thread_id)
    inherited = _inherited_if_known(context, thread, new)
    codec = context.codec_to_capture(new.address.thread_id, thread)
    state = codec.serialize(new.checkpoint, (inherited or _NOTHING).manifest)
    preview: str | None = None
    if context.preview and new.address.checkpoint_ns == "":
        preview = preview_of(new.checkpoint.get("channel_values", {}), context.preview)
    return CapturedCheckpoint(new, state, codec, thread, inherited, context.memory, preview)


def announce(context: Context, capture: CapturedCheckpoint) -> None:
    """Note that a checkpoint is about to be put: its writes may come first.

    `end_announcement` is to be called after it in any case.
    """
    new = capture.new
    announced = context.memory.announced
    announced.add(id(capture), new.address.thread_id, new.checkpoint["id"])


def end_announcement(context: Context, capture: CapturedCheckpoint) -> None:
    """Note that a checkpoint was put, or was not."""
    context.memory.announced.remove(id(capture))


def put_checkpoint(context: Context, capture: CapturedCheckpoint) -> Steps[None]:
    """Store a checkpoint."""
    context = context.for_present_history()
    new = capture.new
    thread_id, checkpoint_ns, _ = new.address
    thread, stored = yield from write(
        context, thread_id, new.origin, lambda thread: _prepare(context, capture, thread)
    )
    versions = new.checkpoint.get("channel_versions", {})
    counters = _counters(stored.request.row)
    known = KnownManifest(thread.epoch, stored.manifest, versions, stored.packed_bytes, counters)
    context.memory.add_manifest(thread, (checkpoint_ns, new.checkpoint["id"]), known)
    if checkpoint_ns == "":
        _merge_run_metadata(context, thread, new)


@pauses_collector
def _prepare(
    context: Context, capture: CapturedCheckpoint, thread: ThreadRef | None
) -> PreparedPut:
    """Return what is to be stored of a checkpoint in a thread, or in one that is made."""
    new, inherited = capture.new, capture.inherited
    is_as_captured = thread == capture.thread and context.memory is capture.memory
    if inherited is None or not is_as_captured:
        inherited = _inherited(context, thread, new)
    codec = _codec_to_put(context, thread, capture.codec)
    is_kin = codec.is_kin(capture.codec)
    state = capture.state if is_kin else codec.own_state(capture.state)
    encoded, manifest = codec.join(new.checkpoint, state, inherited.manifest)
    row = _checkpoint_row(codec, new, _metadata(new, inherited, manifest), encoded)
    preview = capture.preview
    if preview is not None and thread is not None:
        lacking = manifest.keys() - new.checkpoint.get("channel_values", {}).keys()
        preview = complete_preview(context, new.address, thread, preview, lacking)
    receipt = checkpoint_receipt(codec, row, preview)
    status = "idle" if row.checkpoint_ns == "" else None
    request = _request(context, new, thread, codec, NewRows(row, [receipt], encoded.chunks, status))
    if preview is not None:
        owner = context.owner if thread is None else thread.owner
        request = request._replace(value_terms=stored_value_terms(owner, receipt.content))
    packed_bytes = len(encoded.content) + len(encoded.refs)
    return PreparedPut(request, encoded.chunks, manifest, packed_bytes)


def _checkpoint_row(
    codec: Codec, new: NewCheckpoint, metadata: str, encoded: Encoded
) -> CheckpointRow:
    _, checkpoint_ns, parent_id = new.address
    row = CheckpointRow(
        checkpoint_ns, new.checkpoint["id"], parent_id, new.run_id, metadata, b"", b""
    )
    return stored_row(codec, row, encoded)


def _metadata(new: NewCheckpoint, inherited: Inherited, manifest: Manifest) -> str:
    """Return the metadata of a checkpoint, as JSON.

    A graph counts for the channels that it has. What the parent counts for others is added: they
    tell what a channel is rebuilt of, to whatever removes checkpoints or copies some.
    """
    counters = inherited.counters
    if not counters:
        return new.metadata
    metadata = json.loads(new.metadata)
    own = langgraph_rules.delta_counters(metadata)
    added = {name: counters[name] for name in counters if name not in own and name not in manifest}
    if not added:
        return new.metadata
    return as_json(langgraph_rules.with_counters(metadata, {**own, **added}), "metadata")


def _inherited(context: Context, thread: ThreadRef | None, new: NewCheckpoint) -> Inherited:
    """Return what a checkpoint has of its parent, which is read if need be."""
    inherited = _inherited_if_known(context, thread, new)
    if inherited is not None or thread is None:
        return inherited or _NOTHING
    with context.storage.reading() as session:
        parent = session.checkpoints.get(*new.address)
    if parent is None or parent.thread != thread:
        return _NOTHING
    if isinstance(parent.metadata, str):  # else the record is damaged
        context.memory.described.put(thread.key, Described(None, parent.metadata))
    body, manifest = open_checkpoint(context.codec_of(thread), parent.row)
    versions = body.get("channel_versions", {})
    counters = _counters(parent.row)
    return _unchanged(KnownManifest(thread.epoch, manifest, versions, 0, counters), new)


def _inherited_if_known(
    context: Context, thread: ThreadRef | None, new: NewCheckpoint
) -> Inherited | None:
    """Return what `_inherited` does, or None if the parent has to be read for it.

    It is not where each channel has a value that is to be stored.
    """
    _, checkpoint_ns, parent_id = new.address
    if thread is None or parent_id is None:
        return _NOTHING
    known = context.memory.manifest(thread, (checkpoint_ns, parent_id))
    if known is None:
        return _NOTHING if _all_changed(new) else None
    return _unchanged(known, new)


def _counters(row: CheckpointRow | None) -> Mapping[str, Any]:
    """Return what the metadata of a checkpoint count for each `DeltaChannel`."""
    if row is None or langgraph_rules.COUNTERS not in row.metadata:
        return {}
    return langgraph_rules.delta_counters(metadata_of(row))


def _all_changed(new: NewCheckpoint) -> bool:
    changed = new.changed
    return all(channel in changed for channel in new.checkpoint.get("channel_versions", {}))


def _unchanged(known: KnownManifest, new: NewCheckpoint) -> Inherited:
    """Return what a checkpoint inherits of its parent.

    A channel without a value is inherited as well: a graph that does not have it, or does not store
    it with each checkpoint, leaves its version as it was.
    """
    versions = new.checkpoint.get("channel_versions", {})
    changed = new.changed

    def unchanged(channels: Iterable[str]) -> list[str]:
        return [
            channel
            for channel in channels
            if channel not in changed
            and channel in known.versions
            and known.versions[channel] == versions.get(channel)
        ]

    manifest = known.manifest.only(unchanged(known.manifest))
    if not known.counters:
        return Inherited(manifest, {})
    return Inherited(manifest, {name: known.counters[name] for name in unchanged(known.counters)})


def _merge_run_metadata(context: Context, thread: ThreadRef, new: NewCheckpoint) -> None:
    """Have the metadata of the run's config in those of its thread; see `run_metadata`."""
    described, run = context.memory.described, new.origin.run
    known = described.get(thread.key)
    if known is not None and run is not None and known.run is run:
        return  # an earlier checkpoint of the run has seen to it
    metadata = of_config(new.config)
    if metadata == "{}" and run is None:
        return
    if known is not None and has_run(known.metadata, metadata):
        merged = known.metadata
    else:
        hashing = context.codec.hashing
        merged = merge_run(context.storage, hashing, thread, metadata)
    described.put(thread.key, Described(run, merged))


# Writes


def capture_writes(context: Context, new: NewWrites) -> CapturedWrites:
    """Return writes with their values as they are now, as `capture_checkpoint` does."""
    context = context.for_present_history()
    thread = context.memory.threads.get(new.address.thread_id)
    codec = context.codec_to_capture(new.address.thread_id, thread)
    values = [codec.encode_write(channel, value) for channel, value in new.writes.values()]
    return CapturedWrites(new, values, _write_rows(codec, new, values), codec)


def put_writes(context: Context, capture: CapturedWrites) -> Steps[None]:
    """Store the writes of a task."""
    context = context.for_present_history()
    new = capture.new
    if capture.rows:
        yield from write(
            context,
            new.address.thread_id,
            new.origin,
            lambda thread: _prepare_writes(context, capture, thread),
        )


def _prepare_writes(
    context: Context, capture: CapturedWrites, thread: ThreadRef | None
) -> PreparedPut:
    """Return what is to be stored of writes in a thread, or in one that is made."""
    new = capture.new
    codec = _codec_to_put(context, thread, capture.codec)
    if codec is not capture.codec:  # the thread, or the store, is another than it was at the call
        values = capture.values
        if not codec.is_kin(capture.codec):
            values = [codec.own_write(value) for value in values]
        capture = CapturedWrites(new, values, _write_rows(codec, new, values), codec)
    status = _status_after(new.writes.values()) if new.place[0] == "" else None
    rows = NewRows(None, capture.rows, capture.chunks, status)
    return PreparedPut(_request(context, new, thread, codec, rows), rows.chunks)


def _write_rows(codec: Codec, new: NewWrites, values: Sequence[Encoded]) -> list[WriteRow]:
    """Return the rows of writes, with their receipts."""
    rows = []
    for (idx, (channel, _)), encoded in zip(new.writes.items(), values, strict=True):
        row = WriteRow(*new.place, new.task_id, idx, new.task_path, channel, b"", b"")
        rows.append(stored_row(codec, row, encoded))
    return with_receipts(codec, rows) if rows else []


def _status_after(writes: Iterable[tuple[str, Any]]) -> str | None:
    """Return the status of a thread after writes of a task of its graph; None if it stays."""
    channels = {channel for channel, _ in writes}
    if langgraph_rules.INTERRUPT in channels:
        return "interrupted"
    return "error" if langgraph_rules.ERROR in channels else None


# Both


def _codec_to_put(context: Context, thread: ThreadRef | None, capture_codec: Codec) -> Codec:
    """Return the codec of a thread, or of one that is made, with the salt of the capture."""
    codec = context.codec_to_write
    if thread is not None:
        return context.codec_of(thread)
    return capture_codec if capture_codec.root is codec else codec.of_salt(capture_codec.salt)


def _request(
    context: Context,
    new: NewCheckpoint | NewWrites,
    thread: ThreadRef | None,
    codec: Codec,
    rows: NewRows,
) -> PutRequest:
    """Return the request that stores rows in a thread, with the chunks that the store may lack.

    Args:
        context: The store.
        new: What the rows were made of.
        thread: The thread; None if it is to be made.
        codec: That of the thread.
        rows: The rows.
    """
    memory = context.memory
    thread_id = new.address.thread_id
    ancestry, lease, run = new.origin
    began = memory.runs.beginning(thread_id, run)
    checkpoint_ns, checkpoint_id = rows.writes[0][:2]
    metadata, checksums = "{}", b""
    if thread is None:
        metadata = of_config(new.config)
        described = Description(metadata=metadata, **context.expiry._asdict())
        identity = thread_id, context.owner, codec.salt
        checksums = codec.hashing.checksums(identity, described)
    return PutRequest(
        thread_id,
        thread,
        metadata,
        ancestry,
        checkpoint_ns,
        checkpoint_id,
        stored_chunks(codec, memory.unknown(thread, rows.chunks)),
        rows.checkpoint,
        rows.writes,
        rows.status,
        fence=None if lease is None else lease.fence,
        began=began,
        is_announced=began is None and memory.announced.has(thread_id, checkpoint_id),
        history=memory.history,
        owner=context.owner,
        expiry=context.expiry,
        salt=codec.salt,
        checksums=checksums,
    )
