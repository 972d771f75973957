"""What a manifest says of a channel, packed and unpacked. Nothing of the packed form is trusted."""

from __future__ import annotations

from typing import Any, NamedTuple

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.errors import CorruptChunk

DIGEST_BYTES = 32
INLINE, OPAQUE, LIST, DICT = range(4)
SNAPSHOT = 4  # added to the kind: the value stands in a DeltaChannel's snapshot

NEST_DEPTH = 8
"""How many lists and dicts within each other are cut."""

HEIGHT_MAX = 64
"""Each level of nodes is at most half as long as the one below it, but for one node."""

REPEATED_BYTES = 512 * 1024 * 1024
"""How long a value may be, in bytes, whatever little of it is stored because the rest repeats."""

REPEATS = 64
"""How many times as long as what is stored of it a value may be beyond that."""


class Entry(NamedTuple):
    """What a manifest says of one channel: the value itself, or the chunks that hold it.

    `height` is how many levels of nodes lie between `refs` and the value's runs or pieces.
    """

    kind: int
    type: str
    content: bytes
    refs: bytes
    height: int


class Volume:
    """How much was read of a value. A few chunks can refer to each other's content many times."""

    def __init__(self) -> None:
        self._whole = 0
        self._stored = 0
        self._known: set[bytes] = set()

    def add(self, digest: bytes, size: int) -> None:
        """Count a chunk of so many bytes.

        Raises:
            CorruptChunk: It repeats what was read before more often than any value does.
        """
        self._whole += size
        if digest not in self._known:
            self._known.add(digest)
            self._stored += size
        if repeats_too_often(self._whole, self._stored):
            raise CorruptChunk("its chunks repeat each other more often than those of any value")


def repeats_too_often(whole: int, stored: int) -> bool:
    """Return whether a value of so many bytes has too few that are stored for it."""
    return whole > REPEATED_BYTES + REPEATS * stored


def unpack(content: Any, what: str) -> Any:
    """Return what was packed by forkpoint itself.

    Raises:
        CorruptChunk: It is not MessagePack.
    """
    try:
        return ormsgpack.unpackb(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptChunk(f"{what} is not what was written: {error}") from error


def pack_entry(entry: Entry) -> list[Any]:
    """Return an entry as it is packed, without its refs."""
    if entry.kind & ~SNAPSHOT == INLINE:
        return [entry.kind, entry.type, entry.content]
    return [entry.kind, entry.type, len(entry.refs) // DIGEST_BYTES, entry.height]


def unpack_entry(packed: Any, refs: bytes, start: int = 0) -> Entry:
    """Return an entry with those of the refs that are its own, from `start` on.

    Raises:
        CorruptChunk: It is of another shape, or there are not so many refs.
    """
    fields = packed if type(packed) is list else []
    types = [type(field) for field in fields]
    if types == [int, str, bytes] and fields[0] & ~SNAPSHOT == INLINE:
        return Entry(fields[0], fields[1], fields[2], b"", 0)
    if types == [int, str, int, int] and fields[0] & ~SNAPSHOT in (OPAQUE, LIST, DICT):
        kind, type_, length, height = fields
        end = start + length * DIGEST_BYTES
        if length > 0 and end <= len(refs) and 0 <= height <= HEIGHT_MAX:
            return Entry(kind, type_, b"", refs[start:end], height)
    raise CorruptChunk("an entry is not of the shape that is written, or has not so many chunks")


def unpack_only_entry(packed: Any, refs: bytes) -> Entry:
    """Return an entry whose refs are all that there are.

    Raises:
        CorruptChunk: It is of another shape, or there are more refs, or fewer.
    """
    entry = unpack_entry(packed, refs)
    if entry.refs != refs:
        raise CorruptChunk("an entry has not as many chunks as it says")
    return entry


def unpack_nested(content: Any, refs: bytes) -> tuple[bytes, Entry]:
    """Return the packed key of an element that was cut itself, and its entry.

    Raises:
        CorruptChunk: It is of another shape.
    """
    packed = unpack(content, "a nested element")
    if type(packed) is list and len(packed) == 2 and type(packed[0]) is bytes:
        return packed[0], unpack_only_entry(packed[1], refs)
    raise CorruptChunk("a nested element is not of the shape that is written")


def split_refs(refs: bytes) -> list[bytes]:
    """Return the digests that are joined in `refs`.

    Raises:
        CorruptChunk: They are no bytes.
    """
    if not refs:
        return []
    if not isinstance(refs, bytes):
        raise CorruptChunk("the refs of a stored row are not what was written")
    return [refs[start : start + DIGEST_BYTES] for start in range(0, len(refs), DIGEST_BYTES)]
