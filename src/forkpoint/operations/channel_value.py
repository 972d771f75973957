"""Reading the value of one channel of a checkpoint, and nothing of the others."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from forkpoint.collector import pauses_collector
from forkpoint.encoding.chunk import Chunks, gather
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.manifest import Manifest
from forkpoint.errors import InvalidInput
from forkpoint.inputs import Address
from forkpoint.langgraph_rules import is_internal, rebuilt_channels
from forkpoint.operations.context import Context
from forkpoint.operations.places import at_place, existing_checkpoint, place_of
from forkpoint.operations.read import consistently
from forkpoint.storage.interface import Session
from forkpoint.storage.row_checksums import metadata_of, open_checkpoint


class _Reading(NamedTuple):
    """What is read of the store."""

    place: tuple[str, str, str]
    codec: Codec
    manifest: Manifest
    is_rebuilt: bool
    """Whether the channel's value is rebuilt from ancestors."""
    chunks: Chunks


def channel_value(context: Context, address: Address, channel: str) -> Any:
    """Return the value that a channel has in a checkpoint.

    Raises:
        ThreadNotFound: There is no such thread.
        CheckpointNotFound: There is no such checkpoint.
        InvalidInput: It has no such channel, or one whose value is rebuilt from ancestors.
    """
    context.prepare()

    def read(session: Session) -> _Reading:
        checkpoint = existing_checkpoint(session, address)
        thread, row = checkpoint.thread, checkpoint.row
        place = checkpoint.thread_id, *place_of(row)
        with at_place(*place):
            codec = context.codec_of(thread)
            body, manifest = open_checkpoint(codec, row)
        versions = body.get("channel_versions", {})
        rebuilt = rebuilt_channels(metadata_of(row), versions, manifest)
        refs = manifest[channel].refs if channel in manifest else b""
        chunks = gather([refs], partial(session.chunks.get, thread.family))
        return _Reading(place, codec, manifest, channel in rebuilt, chunks)

    return consistently(context, read, partial(_load, channel))


@pauses_collector
def _load(channel: str, reading: _Reading) -> Any:
    entry = reading.manifest.get(channel)
    if entry is not None:
        with at_place(*reading.place):
            return reading.codec.decode_entry(entry, reading.chunks)
    if reading.is_rebuilt:
        raise InvalidInput(
            f"the value of channel {channel!r} is rebuilt from writes: graph.get_state shows it"
        )
    names = sorted(name for name in reading.manifest if not is_internal(name))
    raise InvalidInput(f"the checkpoint has no channel {channel!r}; it has {names}")
