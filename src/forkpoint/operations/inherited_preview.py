"""What is shown of channels that the graph of a checkpoint does not have: what its parent shows."""

from __future__ import annotations

from collections.abc import Collection

from forkpoint.inputs import Address
from forkpoint.operations.context import Context
from forkpoint.previews import joined, part_of
from forkpoint.storage.row_checksums import preview_in
from forkpoint.storage.rows import ThreadRef


def complete_preview(
    context: Context, parent: Address, thread: ThreadRef, preview: str, lacking: Collection[str]
) -> str:
    """Return the preview of a checkpoint, with that of its parent where it lacks channels.

    Args:
        context: The store.
        parent: The parent.
        thread: The thread of both.
        preview: What is shown of the channels of the graph.
        lacking: The channels that the checkpoint has of its parent, without a value of its own.
    """
    channels = [channel for channel in context.preview if channel in lacking]
    if not channels:
        return preview
    with context.storage.reading() as session:
        stored = session.checkpoints.get(*parent)
    if stored is None or stored.thread.key != thread.key:
        return preview
    codec = context.codec_of(stored.thread)
    before = preview_in(codec, stored.writes, stored.row.checkpoint_id)
    return joined(part_of(before, channels), preview)
