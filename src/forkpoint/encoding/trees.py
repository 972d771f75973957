"""The trees of digests of long values, and those that another family has made. No I/O."""

from __future__ import annotations

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.encoding import chunking
from forkpoint.encoding.chunk import Chunk, Chunks, Encoded, Serialized, digest_of
from forkpoint.encoding.entries import (
    REPEATED_BYTES,
    Entry,
    pack_entry,
    repeats_too_often,
    split_refs,
    unpack,
    unpack_nested,
    unpack_only_entry,
)
from forkpoint.encoding.hashing import Hashing
from forkpoint.errors import InvalidInput


class Trees:
    """Adds chunks under their digests, and trees of them.

    Args:
        hashing: The hashes of the family that the chunks belong to.
    """

    def __init__(self, hashing: Hashing) -> None:
        self.hashing = hashing

    def add(self, chunk: Chunk, chunks: Chunks) -> bytes:
        """Add a chunk to those that are to be stored, and return its digest."""
        digest = digest_of(chunk, self.hashing)
        chunks[digest] = chunk
        return digest

    def build(
        self, kind: int, type_: str, digests: list[bytes], chunks: Chunks, size: int
    ) -> Entry:
        """Return the entry of a value, and add the nodes above its leaves.

        Args:
            kind: Its kind, one of those of `entries`.
            type_: What the serializer calls its type, if it is opaque.
            digests: Those of its leaves.
            chunks: The leaves, and what else is to be stored. The nodes are added.
            size: The bytes of the value.

        Raises:
            InvalidInput: It is long, and hardly anything but repetitions.
        """
        # Twice: a reader counts the nodes too.
        if size * 2 > REPEATED_BYTES and repeats_too_often(
            size * 2, sum(len(content) for _, content in chunks.values())
        ):
            raise InvalidInput(f"it is {size} bytes long, nearly all of which repeat the others")
        height = 0
        while len(digests) > chunking.TOP_DIGESTS:
            digests = [self.add((b"".join(node), b""), chunks) for node in chunking.nodes(digests)]
            height += 1
        return Entry(kind, type_, b"", b"".join(digests), height)

    # What another family has encoded

    def of_value(self, entry: Entry, chunks: Chunks) -> tuple[Entry, Chunks]:
        """Return a value as it would have been encoded here: with digests of this family."""
        if not entry.refs:
            return entry, {}
        leaves = split_refs(entry.refs)
        for _ in range(entry.height):
            leaves = [digest for node in leaves for digest in split_refs(chunks[node][0])]
        own: Chunks = {}
        digests = []
        for refs, content in (chunks[leaf] for leaf in leaves):
            chunk = refs, content
            if refs:
                key, nested = unpack_nested(content, refs)
                nested, below = self.of_value(nested, chunks)
                own.update(below)
                chunk = nested.refs, ormsgpack.packb([key, pack_entry(nested)])
            digests.append(self.add(chunk, own))
        return self.build(entry.kind, entry.type, digests, own, 0), own

    def of_write(self, write: Encoded) -> Encoded:
        """Return a write as it would have been encoded here."""
        if not write.refs:
            return write
        entry = unpack_only_entry(unpack(write.content, "a write"), write.refs)
        entry, chunks = self.of_value(entry, write.chunks)
        return Encoded(ormsgpack.packb(pack_entry(entry)), entry.refs, chunks)

    def of_state(self, state: Serialized) -> Serialized:
        """Return a serialized checkpoint as it would have been serialized here."""
        stored, chunks = state.stored.copy(), {}
        for channel, chunks_of_value in state.chunks.items():
            stored[channel], chunks[channel] = self.of_value(stored[channel], chunks_of_value)
        return Serialized(state.body, stored, chunks)
