"""What is stored of the channels of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.encoding.entries import INLINE, Entry, pack_entry, unpack, unpack_entry
from forkpoint.errors import CorruptChunk

PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})
"""Of a value that may stand for itself."""


class Manifest(Mapping[str, Entry]):
    """The entry of each channel, in the order of the channels.

    A number, a short text or None stands for itself, and becomes an entry where it is asked for: a
    state may have many of them.

    Args:
        stored: The plain value or the entry of each channel.

    Attributes:
        stored: The same.
        entries: Those of them that are entries.
    """

    __slots__ = ("entries", "stored")

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored = stored
        self.entries: dict[str, Entry] = {}
        if Entry in map(type, stored.values()):
            self.entries = {
                channel: entry for channel, entry in stored.items() if type(entry) is Entry
            }

    def __getitem__(self, channel: str) -> Entry:
        stored = self.stored[channel]
        if type(stored) is Entry:
            return stored
        if stored is None:
            return Entry(INLINE, "null", b"", b"", 0)
        return Entry(INLINE, "msgpack", ormsgpack.packb(stored), b"", 0)

    def __contains__(self, channel: object) -> bool:
        return channel in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def refs(self) -> bytes:
        """The digests of the chunks that hold values, in the order of the channels."""
        return b"".join([entry.refs for entry in self.entries.values()])

    def without(self, channels: Collection[str]) -> Manifest:
        """Return what is stored of all channels but these."""
        return self.only([channel for channel in self.stored if channel not in channels])

    def only(self, channels: Collection[str]) -> Manifest:
        """Return what is stored of these channels, in their order.

        Raises:
            KeyError: Nothing is stored of one.
        """
        return Manifest({channel: self.stored[channel] for channel in channels})


NO_CHANNELS = Manifest({})


def pack_manifest(kind: str, body: bytes, manifest: Manifest) -> bytes:
    """Return the content of a checkpoint, of its body as it was serialized, and of its manifest."""
    packed: dict[str, Any] = manifest.stored
    if manifest.entries:
        entries = {channel: pack_entry(entry) for channel, entry in manifest.entries.items()}
        packed = {**packed, **entries}
    return ormsgpack.packb([kind, body, packed])


def unpack_manifest(content: Any, refs: bytes) -> tuple[str, bytes, Manifest]:
    """Return what `pack_manifest` was given.

    Args:
        content: The content of a checkpoint.
        refs: The digests of the chunks that it refers to.

    Raises:
        CorruptChunk: It is of another shape, or there are more refs, or fewer.
    """
    packed = unpack(content, "the manifest")
    if type(packed) is not list or [type(part) for part in packed] != [str, bytes, dict]:
        raise CorruptChunk("the manifest is not of the shape that is written")
    kind, body, stored = packed
    position = 0
    for channel, packed_entry in stored.items():
        if type(packed_entry) not in PLAIN_TYPES:
            stored[channel] = entry = unpack_entry(packed_entry, refs, position)
            position += len(entry.refs)
    if position != len(refs):
        raise CorruptChunk("the manifest is not of the shape that is written")
    return kind, body, Manifest(stored)
