"""What a `DeltaChannel` is rebuilt from: the writes of the ancestors, back to a stored value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from forkpoint.encoding.chunk import Chunks, gather
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import Entry
from forkpoint.encoding.manifest import Manifest
from forkpoint.inputs import Address
from forkpoint.langgraph_rules import rebuilt_channels
from forkpoint.operations.context import Context
from forkpoint.operations.places import at_place
from forkpoint.operations.read import consistently, load_write, order_of
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.receipts import NO_CHANNEL
from forkpoint.storage.row_checksums import check_end, complete_writes, metadata_of, open_checkpoint
from forkpoint.storage.rows import CheckpointRow, StoredCheckpoint, WriteRow


def delta_channel_history(
    context: Context, address: Address, channels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return what rebuilds each channel: the writes to it since it was last stored, and that value.

    The writes are in the order in which a run applied them, oldest first.

    Args:
        context: The store.
        address: The checkpoint, or the thread and the namespace of which the newest is meant.
        channels: The names of the channels.

    Raises:
        CorruptChunk: Something that a channel is rebuilt from is missing, or not what was written.
    """
    if not channels:
        return {}
    context.prepare()
    return consistently(
        context,
        lambda session: read_history(context, session, address, channels),
        lambda history: load_history(context, history, channels),
    )


class History(NamedTuple):
    """What the channels of a checkpoint are rebuilt from."""

    checkpoint: StoredCheckpoint
    path: _Path
    writes: list[WriteRow]
    """Those of all ancestors on the path, and their receipts."""
    chunks: Chunks


def read_history(
    context: Context, session: Session, address: Address, channels: Sequence[str]
) -> History | None:
    """Read what channels are rebuilt from; None if there is no such checkpoint."""
    checkpoint = session.checkpoints.get(*address)
    if checkpoint is None:
        return None
    thread, row = checkpoint.thread, checkpoint.row
    path = _Path(context.codec_of(thread), checkpoint, channels)
    ancestors = session.checkpoints.ancestors(thread, row.checkpoint_ns, row.checkpoint_id)
    next(ancestors, None)  # its own writes are for its child
    path.follow(ancestors)
    writes = session.checkpoints.channel_writes(
        thread, row.checkpoint_ns, list(path.distances), [*channels, NO_CHANNEL]
    )
    refs = [entry.refs for _, entry in path.seeds.values()]
    refs += [write.refs for write in path.since_seeds(writes)]
    chunks = gather(refs, lambda digests: session.chunks.get(thread.family, digests))
    if session.threads.find(checkpoint.thread_id) != thread:
        raise Stale  # some of the path may have been removed meanwhile
    return History(checkpoint, path, writes, chunks)


def load_history(
    context: Context, history: History | None, channels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return what was read, as `delta_channel_history` does."""
    loaded: dict[str, dict[str, Any]] = {channel: {"writes": []} for channel in channels}
    if history is None:
        return loaded
    checkpoint, path = history.checkpoint, history.path
    row, codec = checkpoint.row, context.codec_of(checkpoint.thread)
    with at_place(checkpoint.thread_id, row.checkpoint_ns, row.checkpoint_id):
        check_end(path.oldest, path.unrooted)
        for write in path.since_seeds(complete_writes(codec, history.writes, channels)):
            value = load_write(codec, write, history.chunks)
            loaded[write.channel]["writes"].append(value)
        for channel, (_, entry) in path.seeds.items():
            loaded[channel]["seed"] = codec.decode_entry(entry, history.chunks)
    return loaded


class _Path:
    """The ancestors of a checkpoint, back to those that store the values of channels.

    Attributes:
        distances: How many steps back each ancestor is, by its id; 0 for the parent.
        seeds: For each channel the distance of the ancestor that stores it, and its entry there.
        oldest: The last checkpoint of the path.
    """

    def __init__(self, codec: Codec, checkpoint: StoredCheckpoint, channels: Sequence[str]) -> None:
        self.distances: dict[str, int] = {}
        self.seeds: dict[str, tuple[int, Entry]] = {}
        self.oldest = checkpoint.row
        self._codec = codec
        self._thread_id = checkpoint.thread_id
        self._channels = channels
        body, manifest = self._open(checkpoint.row)
        self._needed = self._rebuilt(checkpoint.row, body, manifest) & set(channels)
        self._last = body, manifest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Path) and vars(self) == vars(other)

    def follow(self, ancestors: Iterable[CheckpointRow]) -> None:
        """Take in ancestors until each channel is stored in one, or there are no more."""
        for distance, row in enumerate(ancestors):
            if row.checkpoint_id in self.distances:
                self._needed.clear()
                break  # one that was put as its own ancestor
            self.distances[row.checkpoint_id] = distance
            self.oldest = row
            self._last = _, manifest = self._open(row)
            for channel in self._channels:
                if channel in manifest and channel not in self.seeds:
                    self.seeds[channel] = distance, manifest[channel]
            if len(self.seeds) == len(self._channels):
                break

    def since_seeds(self, writes: Iterable[WriteRow]) -> list[WriteRow]:
        """Return those writes that came after the stored values, in order."""
        distances, seeds = self.distances, self.seeds
        since = [
            row
            for row in writes
            if row.channel not in seeds or distances[row.checkpoint_id] <= seeds[row.channel][0]
        ]
        return sorted(since, key=lambda row: (-distances[row.checkpoint_id], *order_of(row)))

    @property
    def unrooted(self) -> set[str]:
        """The channels whose stored value must be further back than the path goes."""
        missing = self._needed - self.seeds.keys()
        return missing and missing & self._rebuilt(self.oldest, *self._last)

    def _open(self, row: CheckpointRow) -> tuple[dict[str, Any], Manifest]:
        with at_place(self._thread_id, row.checkpoint_ns, row.checkpoint_id):
            return open_checkpoint(self._codec, row)

    def _rebuilt(self, row: CheckpointRow, body: dict[str, Any], manifest: Manifest) -> set[str]:
        versions = body.get("channel_versions", {})
        return rebuilt_channels(metadata_of(row), versions, manifest)
