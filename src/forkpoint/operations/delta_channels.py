"""What a `DeltaChannel` is rebuilt from: the writes of the ancestors, back to a stored value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from forkpoint.encoding.codec import Chunks, Codec, Entry, gather
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
    """Return what rebuilds each channel: the writes to it since it was last stored, and that.

    The writes come in the order in which a run applied them, oldest first.

    Raises:
        CorruptChunk: Something that it is rebuilt from is missing, or not what was written.
    """
    if not channels:
        return {}
    context.prepare()

    def read(session: Session) -> _History | None:
        found = session.checkpoints.get(*address)
        if found is None:
            return None
        codec = context.codec_of(found.thread)
        thread, checkpoint_ns = found.thread, found.row.checkpoint_ns
        walk = _Walk(codec, found, channels)
        ancestors = session.checkpoints.ancestors(thread, checkpoint_ns, found.row.checkpoint_id)
        next(ancestors, None)  # its own writes are for its child
        walk.follow(ancestors)
        with_receipts = [*channels, NO_CHANNEL]
        writes = session.checkpoints.channel_writes(
            thread, checkpoint_ns, list(walk.path), with_receipts
        )
        refs = [entry.refs for _, entry in walk.seeds.values()]
        refs += [row.refs for row in walk.since_seeds(writes)]
        stored = gather(refs, lambda digests: session.chunks.get(thread.family, digests))
        if session.threads.find(found.thread_id) != thread:
            raise Stale  # some of the path may have been removed on the way
        return _History(found, walk, writes, stored)

    def load(history: _History | None) -> dict[str, dict[str, Any]]:
        loaded: dict[str, dict[str, Any]] = {channel: {"writes": []} for channel in channels}
        if history is not None:
            row, walk = history.found.row, history.walk
            codec = context.codec_of(history.found.thread)
            with at_place(history.found.thread_id, row.checkpoint_ns, row.checkpoint_id):
                check_end(walk.oldest, walk.unrooted)
                for write in walk.since_seeds(complete_writes(codec, history.writes, channels)):
                    value = load_write(codec, write, history.stored)
                    loaded[write.channel]["writes"].append(value)
                for channel, (_, entry) in walk.seeds.items():
                    loaded[channel]["seed"] = codec.decode_entry(entry, history.stored)
        return loaded

    return consistently(context, read, load)


class _History(NamedTuple):
    """What the channels of a checkpoint are rebuilt from."""

    found: StoredCheckpoint
    walk: _Walk
    writes: list[WriteRow]
    """Those of all ancestors of the walk, and their receipts."""
    stored: Chunks


class _Walk:
    """A walk from a checkpoint along its ancestors, to the stored values of channels.

    Attributes:
        path: How far each ancestor is, by its id.
        seeds: Where each channel is stored: how far, and as what.
        oldest: The last checkpoint of the walk.
    """

    def __init__(self, codec: Codec, found: StoredCheckpoint, channels: Sequence[str]) -> None:
        self.path: dict[str, int] = {}
        self.seeds: dict[str, tuple[int, Entry]] = {}
        self.oldest = found.row
        self._codec = codec
        self._thread_id = found.thread_id
        self._channels = channels
        body, manifest = self._open(found.row)
        self._needed = self._rebuilt(found.row, body, manifest) & set(channels)
        self._last = body, manifest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Walk) and vars(self) == vars(other)

    def follow(self, ancestors: Iterable[CheckpointRow]) -> None:
        """Walk, until all channels are found, or there are no more ancestors."""
        for distance, row in enumerate(ancestors):
            if row.checkpoint_id in self.path:
                self._needed.clear()
                break  # one that was put as its own ancestor
            self.path[row.checkpoint_id] = distance
            self.oldest = row
            self._last = _, manifest = self._open(row)
            for channel in self._channels:
                if channel in manifest and channel not in self.seeds:
                    self.seeds[channel] = distance, manifest[channel]
            if len(self.seeds) == len(self._channels):
                break

    def since_seeds(self, writes: Iterable[WriteRow]) -> list[WriteRow]:
        """Return those writes that came after the stored values, in order."""
        path, seeds = self.path, self.seeds
        since = [
            row
            for row in writes
            if row.channel not in seeds or path[row.checkpoint_id] <= seeds[row.channel][0]
        ]
        return sorted(since, key=lambda row: (-path[row.checkpoint_id], *order_of(row)))

    @property
    def unrooted(self) -> set[str]:
        """The channels whose stored value must be further back than the walk went."""
        left = self._needed - self.seeds.keys()
        return left and left & self._rebuilt(self.oldest, *self._last)

    def _open(self, row: CheckpointRow) -> tuple[dict[str, Any], dict[str, Entry]]:
        with at_place(self._thread_id, row.checkpoint_ns, row.checkpoint_id):
            return open_checkpoint(self._codec, row)

    def _rebuilt(
        self, row: CheckpointRow, body: dict[str, Any], manifest: dict[str, Entry]
    ) -> set[str]:
        versions = body.get("channel_versions", {})
        return rebuilt_channels(metadata_of(row), versions, manifest)
