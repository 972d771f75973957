"""What a value becomes: the chunks that hold it, and what refers to them. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from forkpoint.encoding.entries import DIGEST_BYTES, split_refs
from forkpoint.encoding.hashing import Hashing

Chunk = tuple[bytes, bytes]
"""An immutable piece of a value: the chunks that it refers to, joined, and bytes of its own."""

Chunks = dict[bytes, Chunk]


class StoredChunks(dict[bytes, Chunk]):
    """Chunks as the store has them, of one family, that several values are decoded of.

    Attributes:
        opened: Those of them that were verified and decrypted before.
    """

    def __init__(self, chunks: Chunks) -> None:
        super().__init__(chunks)
        self.opened: Chunks = {}


ReadChunks = Callable[[Collection[bytes]], Mapping[bytes, Chunk]]
"""Takes digests, and gives those chunks that the store has, still encrypted."""


@dataclass(frozen=True)
class Encoded:
    """What is to be stored for a checkpoint or a write: plaintext, and the chunks it refers to."""

    content: bytes
    refs: bytes
    chunks: Chunks = field(repr=False)


class Serialized(NamedTuple):
    """A checkpoint's state at one moment, in pieces; what it inherits may be known only later."""

    body: tuple[str, bytes]
    stored: dict[str, Any]
    """What is stored of each channel; see `Manifest`."""
    chunks: dict[str, Chunks]
    """Those of each channel that has some."""


def digest_of(chunk: Chunk, hashing: Hashing) -> bytes:
    """Return the digest that names a chunk in the family of a thread."""
    refs, content = chunk
    if not refs:
        return hashing.hash(b"\0" + content)
    length = len(refs) // DIGEST_BYTES
    return hashing.hash(b"\1" + length.to_bytes(4, "big") + refs + content)


def gather(refs: Iterable[bytes], read_chunks: ReadChunks) -> Chunks:
    """Read everything that these refs lead to, one level of the trees after the other.

    What the store does not have is missing from the result. Nothing is verified or decrypted yet.
    """
    chunks: Chunks = {}
    missing = {digest for joined in refs for digest in split_refs(joined)}
    while missing:
        level = read_chunks(missing)
        chunks.update(level)
        missing = {digest for refs, _ in level.values() for digest in split_refs(refs)}
        missing -= chunks.keys()
    return chunks
