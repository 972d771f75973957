"""Manifests and chunks to values: verifying, decrypting, joining and restoring. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.encoding import chunking
from forkpoint.encoding.chunk import Chunk, StoredChunks, digest_of
from forkpoint.encoding.encryption import Encryption
from forkpoint.encoding.entries import (
    DIGEST_BYTES,
    INLINE,
    LIST,
    NEST_DEPTH,
    OPAQUE,
    SNAPSHOT,
    Entry,
    Volume,
    split_refs,
    unpack,
    unpack_nested,
    unpack_only_entry,
)
from forkpoint.encoding.hashing import Hashing
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.encoding.manifest import Manifest, unpack_manifest
from forkpoint.encoding.message_cache import MessageMemo
from forkpoint.encoding.other_serializers import is_of_default_serializer
from forkpoint.errors import CorruptChunk, ForkpointError, UnreadableValue

_MSGPACK = "msgpack"
_NIL = b"\xc0"


class Decoder:
    """Turns manifests and chunks back into values.

    Args:
        serde: The serializer, without its encryption.
        encryption: Decrypts the chunks.
        hashing: The hashes of the family that they belong to.
        memo: Remembers messages.
        own: Reads what forkpoint's default serializer wrote; None if `serde` does, or may.
    """

    def __init__(
        self,
        serde: SerializerProtocol,
        encryption: Encryption,
        hashing: Hashing,
        memo: MessageMemo,
        own: SerializerProtocol | None = None,
    ) -> None:
        self._serde = serde
        self._own = own
        self._encryption = encryption
        self._hashing = hashing
        self._memo = memo

    def decode_manifest(self, content: bytes, refs: bytes) -> tuple[dict[str, Any], Manifest]:
        """Return the body of a checkpoint and its manifest, without reading any chunk."""
        kind, packed_body, manifest = unpack_manifest(content, refs)
        body = self._load(kind, packed_body)
        if type(body) is not dict:
            raise CorruptChunk("the body of the checkpoint is not of the shape that is written")
        if not isinstance(body.get("channel_versions", {}), dict):
            raise CorruptChunk("the versions of the channels are not what was written")
        return body, manifest

    def decode_entry(self, entry: Entry, chunks: Mapping[bytes, Chunk]) -> Any:
        """Return the value of one channel.

        Args:
            entry: What the manifest says of it.
            chunks: Everything that its refs lead to, as the store has it; see `gather`.

        Raises:
            CorruptChunk: A chunk is missing, or is not what was written.
            UnreadableValue: A value names a type that may not, or cannot, be restored.
        """
        if entry.kind == INLINE:
            return self._load(entry.type, entry.content)
        return self._decode(entry, chunks, Volume())

    def decode_write(self, content: bytes, refs: bytes, chunks: Mapping[bytes, Chunk]) -> Any:
        """Return the value of a write; see `decode_entry`."""
        entry = unpack_only_entry(unpack(content, "a write"), refs)
        return self._decode(entry, chunks, Volume())

    def _decode(
        self, entry: Entry, chunks: Mapping[bytes, Chunk], volume: Volume, depth: int = 0
    ) -> Any:
        if depth > NEST_DEPTH:
            raise CorruptChunk("a value is cut at more levels than any is")
        if entry.kind & SNAPSHOT:
            if DeltaSnapshot is None:
                raise UnreadableValue("a DeltaChannel needs a newer langgraph-checkpoint")
            plain = entry._replace(kind=entry.kind ^ SNAPSHOT)
            return DeltaSnapshot(self._decode(plain, chunks, volume, depth))
        if entry.kind == INLINE:
            return self._load(entry.type, entry.content)
        leaves = split_refs(entry.refs)
        for _ in range(entry.height):
            leaves = self.next_level(leaves, chunks, volume)
        if entry.kind == OPAQUE:
            pieces = []
            for leaf in leaves:
                pieces.append(self._open(leaf, chunks)[1])
                volume.add(leaf, len(pieces[-1]))
            return self._load(entry.type, b"".join(pieces))
        return self._join(entry.kind, leaves, chunks, volume, depth)

    def next_level(
        self, nodes: list[bytes], chunks: Mapping[bytes, Chunk], volume: Volume
    ) -> list[bytes]:
        """Return the digests that the nodes of one level of a tree hold, one after the other.

        Raises:
            CorruptChunk: One is missing, is no node, or they repeat each other too often.
        """
        opened: dict[bytes, list[bytes]] = {}
        leaves: list[bytes] = []
        for node in nodes:
            if node not in opened:
                opened[node] = self._below(node, chunks)
            volume.add(node, len(opened[node]) * DIGEST_BYTES)
            leaves += opened[node]
        return leaves

    def _below(self, node: bytes, chunks: Mapping[bytes, Chunk]) -> list[bytes]:
        refs, content = self._open(node, chunks)
        if not refs or len(refs) % DIGEST_BYTES or content:
            raise CorruptChunk(f"chunk {node.hex()} is no node of a tree")
        return split_refs(refs)

    def decode_leaves(self, kind: int, leaves: list[bytes], chunks: Mapping[bytes, Chunk]) -> Any:
        """Return the elements of a list, or the items of a dict, that some of its leaves hold."""
        return self._join(kind, leaves, chunks, Volume(), 0)

    def _join(
        self,
        kind: int,
        leaves: list[bytes],
        chunks: Mapping[bytes, Chunk],
        volume: Volume,
        depth: int,
    ) -> Any:
        elements: list[Any] = []
        mapping: dict[Any, Any] = {}
        for leaf in leaves:
            refs, content = self._open(leaf, chunks)
            volume.add(leaf, len(content))
            if refs:
                key, entry = unpack_nested(content, refs)
                value = self._decode(entry, chunks, volume, depth + 1)
                if kind == LIST:
                    elements.append(value)
                else:
                    mapping.update(self._load_item(key, value))
            elif kind == LIST:
                elements += self._restore_run(leaf, content)
            else:
                mapping.update(self._load_run(content, dict))
        return elements if kind == LIST else mapping

    def _load_item(self, packed_key: bytes, value: Any) -> dict[Any, Any]:
        item = self._load_run(chunking.map_header(1) + packed_key + _NIL, dict)
        return dict.fromkeys(item, value)

    def _load_run(self, content: bytes, type_: type) -> Any:
        run = self._load(_MSGPACK, content)
        if type(run) is not type_ or not run:
            raise CorruptChunk("a run of elements is not of the shape that is written")
        return run

    def _restore_run(self, digest: bytes, content: bytes) -> list[Any]:
        messages: list[Any] | None = self._memo.restore(digest)
        if messages is None:
            messages = self._load_run(content, list)
            self._memo.remember_run(digest, messages)
        return messages

    def _open(self, digest: bytes, chunks: Mapping[bytes, Chunk]) -> Chunk:
        """Return the chunk that was stored under a digest, once it is known to be that."""
        opened = chunks.opened if isinstance(chunks, StoredChunks) else None
        chunk = opened.get(digest) if opened else None
        if chunk is not None:
            return chunk
        row = chunks.get(digest)
        if row is None:
            raise CorruptChunk(f"chunk {digest.hex()} is missing")
        chunk = self.open_chunk(digest, row)
        if opened is not None:
            opened[digest] = chunk
        return chunk

    def open_chunk(self, digest: bytes, row: Chunk) -> Chunk:
        """Return a chunk that was read, decrypted.

        Raises:
            CorruptChunk: It is not what was stored under the digest.
        """
        refs, content = row
        if not isinstance(refs, bytes) or not isinstance(content, bytes):
            raise CorruptChunk(f"chunk {digest.hex()} is not what was written")
        chunk = (refs, self._encryption.decrypt(content) if content else b"")
        if digest_of(chunk, self._hashing) != digest:
            raise CorruptChunk(f"chunk {digest.hex()} is not what was written")
        return chunk

    def _load(self, kind: str, content: bytes) -> Any:
        serde = self._serde
        if self._own is not None and kind == _MSGPACK and is_of_default_serializer(content):
            serde = self._own
        try:
            return serde.loads_typed((kind, content))
        except ForkpointError:
            raise
        except Exception as error:
            # The digest says that these are the bytes that were written.
            raise UnreadableValue(
                f"the serializer {type(self._serde).__name__} cannot read back a value of type "
                f"{kind!r}: {type(error).__name__}: {error}"
            ) from error
