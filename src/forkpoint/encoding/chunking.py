"""Where to cut a value, and how its pieces join again. Pure: no I/O, no serializer, no hashing.

A long `list` or `dict` is cut between its elements into *runs*. The cuts depend on content, not on
position: whether a run ends after an element is decided by a checksum of the last bytes up to that
element's end. So an append, a removal at the front, an insertion or an edit in the middle moves
only the cuts near it, and every other run keeps its bytes and its digest. (The idea is that of
content-defined chunking in rsync and LBFS; here the elements are the units.)

The digests of the runs form a list too, and are cut the same way into *nodes*, level upon level,
until few enough remain for the manifest. So one more element costs one run and one node a level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import pack
from zlib import crc32

RUN_BYTES = 2048
"""How long a run is on average, in bytes. An element longer than this is a run of its own."""

RUN_BYTES_MAX = 8 * RUN_BYTES
"""Where a run ends at the latest, should its content never call for a cut."""

WINDOW_BYTES = 32
"""How much content decides about a cut, where elements are shorter than this."""

PIECE_BYTES = 64 * 1024
"""The size at which opaque values are cut."""

NODE_DIGESTS = 16
"""How many digests a node holds on average."""

NODE_DIGESTS_MAX = 8 * NODE_DIGESTS

TOP_DIGESTS = 8
"""How many digests a manifest holds for one value at most; beyond that they go into nodes."""


def runs(elements: Sequence[bytes], start: int = 0) -> Iterator[slice]:
    """Yield the runs that cover `elements`, in order, from one that begins at `start`.

    The chance of a cut after an element is proportional to its length, so that runs are about
    `RUN_BYTES` long whatever the size of the elements.
    """
    size = 0
    window = b"".join(elements[max(0, start - WINDOW_BYTES) : start])[-WINDOW_BYTES:]
    for index in range(start, len(elements)):
        element = elements[index]
        length = len(element)
        size += length
        window = element if length >= WINDOW_BYTES else (window + element)[-WINDOW_BYTES:]
        if crc32(window) * RUN_BYTES < length << 32 or size >= RUN_BYTES_MAX:
            yield slice(start, index + 1)
            start, size = index + 1, 0
    if start < len(elements):
        yield slice(start, len(elements))


def pieces(value: bytes) -> Iterator[bytes]:
    """Yield the pieces of an opaque value, cut by size."""
    for start in range(0, len(value), PIECE_BYTES):
        yield value[start : start + PIECE_BYTES]


def nodes(digests: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield the groups of digests that become the nodes of one level.

    A digest is as good as random, so its own first bytes decide about the cut after it. A node
    holds two digests at least, but for the last of its level, so that each level is shorter than
    the one below, whatever repeats.
    """
    start = 0
    for index, digest in enumerate(digests):
        length = index - start + 1
        cut = length > 1 and int.from_bytes(digest[:2], "big") % NODE_DIGESTS == 0
        if cut or length >= NODE_DIGESTS_MAX:
            yield digests[start : index + 1]
            start = index + 1
    if start < len(digests):
        yield digests[start:]


def array_header(length: int) -> bytes:
    """Return the header of a MessagePack array, to be followed by its elements.

    Source: the MessagePack specification, "array format family".
    """
    if length < 16:
        return pack("B", 0x90 | length)
    if length < 1 << 16:
        return pack(">BH", 0xDC, length)
    return pack(">BI", 0xDD, length)


def map_header(length: int) -> bytes:
    """Return the header of a MessagePack map, to be followed by its keys and values.

    Source: the MessagePack specification, "map format family".
    """
    if length < 16:
        return pack("B", 0x80 | length)
    if length < 1 << 16:
        return pack(">BH", 0xDE, length)
    return pack(">BI", 0xDF, length)


def extension_header(code: int, length: int) -> bytes:
    """Return the header of a MessagePack extension, to be followed by so many bytes: 17 at least.

    Source: the MessagePack specification, "ext format family".
    """
    if length < 1 << 8:
        return pack("BBB", 0xC7, length, code)
    if length < 1 << 16:
        return pack(">BHB", 0xC8, length, code)
    return pack(">BIB", 0xC9, length, code)
