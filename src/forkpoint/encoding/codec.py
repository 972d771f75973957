"""Values to chunks and back: serializing, cutting, hashing, encrypting, verifying. No I/O.

What is stored, byte by byte, is described in `format.md` of `forkpoint.storage`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ormsgpack  # a dependency of langgraph-checkpoint
from langgraph.checkpoint.serde.base import CipherProtocol, SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from forkpoint.caches import ENTRY_BYTES, Cache, CacheBudget, size_of_entry
from forkpoint.encoding import chunking
from forkpoint.encoding.builtin_values import PLAIN_ONLY
from forkpoint.encoding.entries import (
    DICT as DICT,
)
from forkpoint.encoding.entries import (
    DIGEST_BYTES as DIGEST_BYTES,
)
from forkpoint.encoding.entries import (
    INLINE,
    OPAQUE,
    REPEATED_BYTES,
    Volume,
    pack_entry,
    repeats_too_often,
    unpack_entry,
    unpack_nested,
    unpack_only_entry,
    unpacked,
    unpacked_manifest,
)
from forkpoint.encoding.entries import (
    LIST as LIST,
)
from forkpoint.encoding.entries import (
    SNAPSHOT as SNAPSHOT,
)
from forkpoint.encoding.entries import (
    Entry as Entry,
)
from forkpoint.encoding.entries import (
    split_refs as split_refs,
)
from forkpoint.encoding.hashing import Hashing
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.encoding.message_cache import MessageMemo
from forkpoint.encoding.serializer import SafeSerializer, packer_of
from forkpoint.errors import (
    CorruptChunk,
    EncryptionMismatch,
    ForkpointError,
    InvalidInput,
    NotStorable,
    UnreadableValue,
)

INLINE_BYTES = 512
"""A value that serializes to no more than this stays in the manifest."""

WRITE_INLINE_BYTES = 1024
"""The same for the value of a write, which is stored once, while a manifest is stored with every
checkpoint."""

NEST_BYTES = 4096
"""An element that is itself a list or a dict, and serializes to more than this, is cut too."""

NEST_DEPTH = 8
"""How many lists and dicts within each other are cut."""

_ELEMENT_BYTES = 60  # what a remembered element takes beside what it is serialized to
_CODEC_BYTES = 1200  # what the codec of a thread takes

_MSGPACK = "msgpack"
_PLAIN_TYPES = frozenset({dict, list, str, int, float})
_FEW = 4  # elements: so many are serialized in one piece as fast as one by one
_ONE_ITEM = b"\x81"  # the header of a map
_NIL = b"\xc0"


Chunk = tuple[bytes, bytes]
"""An immutable piece of a value: the chunks that it refers to, joined, and bytes of its own."""


class _CutList(NamedTuple):
    """A list as it was cut: its elements, its runs and their digests."""

    packed: list[bytes]
    leaves: list[bytes]
    runs: list[Chunk]
    last_start: int
    packed_bytes: int


class _Elements(NamedTuple):
    """A list or a dict, and its elements as they were serialized one by one."""

    kind: int
    packed: list[bytes]
    values: list[Any]
    keys: list[Any] | None

    @property
    def header(self) -> Callable[[int], bytes]:
        return chunking.array_header if self.kind == LIST else chunking.map_header

    def is_all_of(self, whole: bytes | None) -> bool:
        """Return whether the elements add up to what the value serialized to in one piece."""
        return whole is None or self.header(len(self.packed)) + b"".join(self.packed) == whole


Manifest = dict[str, Entry]
Chunks = dict[bytes, Chunk]
ReadChunks = Callable[[Collection[bytes]], Mapping[bytes, Chunk]]
"""Takes digests, and gives those chunks that the store has, still encrypted."""


@dataclass(frozen=True)
class Encoded:
    """What is to be stored for a checkpoint or a write: plaintext, and the chunks it refers to."""

    content: bytes
    refs: bytes
    chunks: Chunks = field(repr=False)

    def rehashed(self, codec: Codec) -> Encoded:
        """Return what another codec encoded for a write, with digests of this one's."""
        if not self.refs:
            return self
        entry = unpack_only_entry(unpacked(self.content, "a write"), self.refs)
        entry, chunks = codec.rehashed(entry, self.chunks)
        return Encoded(ormsgpack.packb(pack_entry(entry)), entry.refs, chunks)


class Serialized(NamedTuple):
    """A checkpoint's state at one moment, in pieces; what it inherits may be known only later."""

    body: tuple[str, bytes]
    channels: dict[str, tuple[Entry, Chunks]]

    def rehashed(self, codec: Codec) -> Serialized:
        """Return what another codec serialized, with digests of this one's."""
        channels = {name: codec.rehashed(*channel) for name, channel in self.channels.items()}
        return self._replace(channels=channels)


class Codec:
    """Turn values into manifests and chunks, and back, with one serializer.

    Args:
        serde: `JsonPlusSerializer`, or `EncryptedSerializer` around it, has its lists and dicts
            cut; what any other serializer writes is opaque.
        secret: The key of the digests, where `serde` encrypts; see `new_secret`.
        budget: What it may take to remember what it has serialized and restored.
    """

    def __init__(
        self,
        serde: SerializerProtocol,
        secret: bytes | None = None,
        budget: CacheBudget | None = None,
    ) -> None:
        self.cipher = cipher_of(serde)
        self.secret = secret
        self.hashing = Hashing(secret)
        self.root = self
        """The codec of all threads of the store."""
        self.salt = b""
        self._in_family = self.hashing
        budget = budget or CacheBudget()
        self._of_salts: Cache[bytes, Codec] = Cache(budget, lambda *_: _CODEC_BYTES)
        self._of_threads: Cache[tuple[Any, ...], Codec] = Cache(budget, size_of_entry)
        self._memo = MessageMemo(budget)
        # By the family's secret, and their first elements.
        self._lists: Cache[tuple[bytes | None, bytes], _CutList] = Cache(budget, _size_of_list)
        if isinstance(serde, EncryptedSerializer) and self.cipher is not None:
            serde = serde.serde
        self._serde = serde
        self._splits = _unchanged(self._serde, SafeSerializer) or _unchanged(
            self._serde, JsonPlusSerializer
        )

        self._pack_element: Callable[[Any], bytes | None] = self._pack_in_list
        self._pack_message: Callable[[Any], bytes | None] = self._pack_in_list
        if isinstance(self._serde, SafeSerializer) and self._splits:
            packer = packer_of(self._serde)
            self._pack_element, self._pack_message = packer.pack, packer.pack_object

    # Of one thread

    def of_salt(self, salt: bytes) -> Codec:
        """Return the codec of a thread: what it hashes fits no other family, or no other thread."""
        known = self._of_salts.get(salt)
        if known is None:
            known = copy.copy(self)
            known.salt = salt
            known._in_family = Hashing(self.hashing.of_family(salt))
            self._of_salts.put(salt, known)
        return known

    def of_thread(self, thread_id: str, owner: str | None, salt: bytes, checksum: bytes) -> Codec:
        """Return the codec of a thread whose record was read.

        Raises:
            CorruptChunk: The record says another id or owner than was written.
        """
        identity = thread_id, owner, salt, checksum
        known = self._of_threads.get(identity)
        if known is None:
            self.hashing.check_identity(*identity)
            known = self.of_salt(salt)
            self._of_threads.put(identity, known)
        return known

    def is_kin(self, other: Codec) -> bool:
        """Return whether both hash the same, but for what is of one thread of a family."""
        return self.root is other.root and self._in_family.secret == other._in_family.secret

    def binding(self, checksum: bytes) -> int:
        """Return what binds a row with this checksum to the thread."""
        return self.hashing.binding(self.salt, checksum)

    def rehashed(self, entry: Entry, chunks: Chunks) -> tuple[Entry, Chunks]:
        """Return what another codec encoded, as this one would have: with its own digests."""
        if not entry.refs:
            return entry, {}
        leaves = split_refs(entry.refs)
        for _ in range(entry.height):
            leaves = [digest for node in leaves for digest in split_refs(chunks[node][0])]
        rehashed: Chunks = {}
        digests = []
        for refs, content in (chunks[leaf] for leaf in leaves):
            chunk = refs, content
            if refs:
                key, nested = unpack_nested(content, refs)
                nested, below = self.rehashed(nested, chunks)
                rehashed.update(below)
                chunk = nested.refs, ormsgpack.packb([key, pack_entry(nested)])
            digests.append(self._add(chunk, rehashed))
        return self._tree(entry.kind, entry.type, digests, rehashed, 0), rehashed

    # Writing

    def encode_checkpoint(
        self, checkpoint: Mapping[str, Any], inherited: Mapping[str, Entry]
    ) -> tuple[Encoded, Manifest]:
        """Encode a checkpoint; the channels in `inherited` take their entries from there.

        Raises:
            InvalidInput: A value cannot be serialized.
        """
        return self.join(checkpoint, self.serialize(checkpoint, inherited), inherited)

    def serialize(self, checkpoint: Mapping[str, Any], inherited: Container[str]) -> Serialized:
        """Serialize a checkpoint, but for the channels in `inherited`.

        Raises:
            InvalidInput: A value cannot be serialized.
        """
        channels = {
            channel: self._serialize_channel(channel, value)
            for channel, value in checkpoint["channel_values"].items()
            if channel not in inherited
        }
        body = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        with _Naming(self._serde, "the checkpoint", body):
            kind, content = self._serde.dumps_typed(body)
        return Serialized((kind, bytes(content)), channels)

    def _serialize_channel(self, channel: str, value: Any) -> tuple[Entry, Chunks]:
        chunks: Chunks = {}
        with _Naming(self._serde, f"channel {channel}", value):
            return self._encode(value, chunks), chunks

    def join(
        self,
        checkpoint: Mapping[str, Any],
        serialized: Serialized,
        inherited: Mapping[str, Entry],
    ) -> tuple[Encoded, Manifest]:
        """Encode a checkpoint of what it inherits, and for the rest of what was serialized."""
        chunks: Chunks = {}
        manifest: Manifest = {}
        (kind, content), channels = serialized
        for channel, value in checkpoint["channel_values"].items():
            entry = inherited.get(channel)
            if entry is None:
                if channel not in channels:  # what the parent stored of it is gone since
                    channels[channel] = self._serialize_channel(channel, value)
                entry, needed = channels[channel]
                chunks.update(needed)
            manifest[channel] = entry
        packed = ormsgpack.packb(
            [kind, content, {channel: pack_entry(entry) for channel, entry in manifest.items()}]
        )
        refs = b"".join(entry.refs for entry in manifest.values())
        return Encoded(packed, refs, chunks), manifest

    def encode_write(self, channel: str, value: Any) -> Encoded:
        """Encode the value of one write.

        Raises:
            InvalidInput: The value cannot be serialized.
        """
        chunks: Chunks = {}
        with _Naming(self._serde, f"the write to channel {channel}", value):
            entry = self._encode(value, chunks, WRITE_INLINE_BYTES)
        return Encoded(ormsgpack.packb(pack_entry(entry)), entry.refs, chunks)

    def _encode(
        self,
        value: Any,
        chunks: Chunks,
        inline: int = INLINE_BYTES,
        depth: int = 0,
        whole: bytes | None = None,
    ) -> Entry:
        """Encode a value, as it is now, or as it was when it was serialized to `whole`.

        A list or a dict may change while it is serialized piece by piece, for other threads run in
        between. So it is serialized in one piece before, and the pieces must add up to that.
        """
        if self._splits and depth < NEST_DEPTH:
            if DeltaSnapshot is not None and type(value) is DeltaSnapshot:
                entry = self._encode(value.value, chunks, inline, depth)
                return entry._replace(kind=entry.kind | SNAPSHOT)
            if type(value) is list or type(value) is dict:
                if whole is None and not self._is_steady(value):
                    kind, whole = self._serde.dumps_typed(value)
                    if kind != _MSGPACK or len(whole) <= inline:
                        return self._encode_opaque(kind, whole, chunks, inline)
                elements = self._pack_all(value, whole)
                if elements is not None and elements.is_all_of(whole):
                    return self._cut(elements, chunks, inline, depth)
        if whole is not None:
            return self._encode_opaque(_MSGPACK, whole, chunks, inline)
        kind, content = self._serde.dumps_typed(value)
        return self._encode_opaque(kind, bytes(content), chunks, inline)

    def _is_steady(self, value: list[Any] | dict[Any, Any]) -> bool:
        """Return whether the elements of a value do not change while they are serialized.

        They are taken out of it in one piece. Then strings do not change, and of messages each is
        serialized in one piece.
        """
        if isinstance(value, dict):
            return len(value) > _FEW and {str}.issuperset(map(type, list(value.values())))
        return len(value) > _FEW and (
            self._memo.knows[type(value[-1])] or {str}.issuperset(map(type, value.copy()))
        )

    def _pack_all(self, value: list[Any] | dict[Any, Any], whole: bytes | None) -> _Elements | None:
        if isinstance(value, list):
            values = value.copy()
            packed = self._pack_elements(values, whole)
            return None if packed is None else _Elements(LIST, packed, values, None)
        items = list(value.items())
        packed = self._pack_items(items)
        if packed is None:
            return None
        return _Elements(DICT, packed, [element for _, element in items], [key for key, _ in items])

    def _pack_elements(self, values: list[Any], whole: bytes | None) -> list[bytes] | None:
        """Serialize the elements of a list one by one.

        Returns None if one of them needs something other than MessagePack.
        """
        if _PLAIN_TYPES.issuperset(map(type, values)):
            with suppress(ormsgpack.MsgpackEncodeError):  # something in one of them is not so plain
                packed = [ormsgpack.packb(value, option=PLAIN_ONLY) for value in values]
                # Without a whole, these are strings; else a `bytearray` shows by that.
                if whole is None or _Elements(LIST, packed, values, None).is_all_of(whole):
                    return packed
        memo, pack = self._memo, self._pack_element
        pack_message = self._pack_message
        packed = []
        for value in values:
            is_known = memo.knows[type(value)]
            content = memo.packed(value, pack_message) if is_known else pack(value)
            if content is None:
                return None
            packed.append(content)
        return packed

    def _pack_in_list(self, value: Any) -> bytes | None:
        kind, single = self._serde.dumps_typed([value])
        return single[1:] if kind == _MSGPACK else None  # without the header of the list

    def _pack_items(self, items: list[tuple[Any, Any]]) -> list[bytes] | None:
        """Serialize the keys and values of a dict one by one, as `_pack_elements` does."""
        packed = []
        for key, value in items:
            kind, single = self._serde.dumps_typed({key: value})
            if kind != _MSGPACK or single[:1] != _ONE_ITEM:  # a map cannot hold the key
                return None
            packed.append(single[1:])
        return packed

    def _cut(self, elements: _Elements, chunks: Chunks, inline: int, depth: int) -> Entry:
        """Cut a list or a dict between its elements."""
        kind, packed, values, keys = elements
        header = elements.header
        size = sum(map(len, packed))
        if size <= inline:
            return Entry(INLINE, _MSGPACK, header(len(packed)) + b"".join(packed), b"", 0)
        nested: list[int] = []
        if max(map(len, packed)) > NEST_BYTES:
            nested = [
                index
                for index, element in enumerate(packed)
                if len(element) > NEST_BYTES
                and (type(values[index]) in (list, dict) or len(element) > chunking.PIECE_BYTES)
            ]
        if kind == LIST and not nested:
            return self._tree(kind, "", self._cut_again(packed, size, chunks), chunks, size)
        leaves: list[bytes] = []
        done = 0
        for index in [*nested, len(packed)]:
            for run in chunking.runs(packed[done:index]):
                cut = packed[done + run.start : done + run.stop]
                leaves.append(self._add((b"", header(len(cut)) + b"".join(cut)), chunks))
            if index < len(packed):
                key = b"" if keys is None else self._pack_key(keys[index])
                leaves.append(self._add_nested(key, packed[index], values[index], chunks, depth))
            done = index + 1
        return self._tree(kind, "", leaves, chunks, size)

    def _pack_key(self, key: Any) -> bytes:
        return self._serde.dumps_typed({key: None})[1][1:-1]  # neither header nor value

    def _add_nested(
        self, packed_key: bytes, packed: bytes, value: Any, chunks: Chunks, depth: int
    ) -> bytes:
        """Add an element that is cut itself; a list's has no key."""
        whole = packed[len(packed_key) :]
        if type(value) in (list, dict):
            entry = self._encode(value, chunks, 0, depth + 1, whole)
        else:
            entry = self._encode_opaque(_MSGPACK, whole, chunks, 0)
        content = ormsgpack.packb([packed_key, pack_entry(entry)])
        return self._add((entry.refs, content), chunks)

    def _cut_again(self, packed: list[bytes], size: int, chunks: Chunks) -> list[bytes]:
        """Cut the elements of a list into runs.

        Often they are those of the time before and some more. Then all runs but the last are the
        same, and need not be joined and hashed again.
        """
        known = self._lists.get((self._in_family.secret, packed[0]))
        if known is None or packed[: len(known.packed)] != known.packed:
            known = _CutList([], [], [], 0, 0)
        leaves, runs, start = known.leaves[:-1], known.runs[:-1], known.last_start
        chunks.update(zip(leaves, runs, strict=True))
        for run in chunking.runs(packed, start):
            chunk = (b"", chunking.array_header(run.stop - run.start) + b"".join(packed[run]))
            leaves.append(self._add(chunk, chunks))
            runs.append(chunk)
            start = run.start
        cut = _CutList(packed, leaves, runs, start, size)
        self._lists.put((self._in_family.secret, packed[0]), cut)
        return leaves

    def _encode_opaque(self, kind: str, content: bytes, chunks: Chunks, inline: int) -> Entry:
        if len(content) <= inline:
            return Entry(INLINE, kind, content, b"", 0)
        leaves = [self._add((b"", piece), chunks) for piece in chunking.pieces(content)]
        return self._tree(OPAQUE, kind, leaves, chunks, len(content))

    def _tree(
        self, kind: int, type_: str, digests: list[bytes], chunks: Chunks, size: int
    ) -> Entry:
        # Twice: a reader counts the nodes too.
        if size * 2 > REPEATED_BYTES and repeats_too_often(
            size * 2, sum(len(content) for _, content in chunks.values())
        ):
            raise InvalidInput(f"it is {size} bytes long, nearly all of which repeat the others")
        height = 0
        while len(digests) > chunking.TOP_DIGESTS:
            digests = [self._add((b"".join(node), b""), chunks) for node in chunking.nodes(digests)]
            height += 1
        return Entry(kind, type_, b"", b"".join(digests), height)

    def _add(self, chunk: Chunk, chunks: Chunks) -> bytes:
        digest = self.digest(chunk)
        chunks[digest] = chunk
        return digest

    def fingerprint(self, value: Any) -> bytes:
        """Return bytes that are the same for values that are stored as the same."""
        kind, content = self._serde.dumps_typed(value)
        return kind.encode() + b"\0" + content

    # Reading

    def decode_manifest(self, content: bytes, refs: bytes) -> tuple[dict[str, Any], Manifest]:
        """Return the body of a checkpoint and its manifest, without reading any chunk."""
        kind, packed_body, entries = unpacked_manifest(content)
        manifest: Manifest = {}
        done = 0
        for channel, packed in entries.items():
            entry = unpack_entry(packed, refs, done)
            done += len(entry.refs)
            manifest[channel] = entry
        body = self._load(kind, packed_body)
        if done != len(refs) or type(body) is not dict:
            raise CorruptChunk("the manifest is not of the shape that is written")
        if not isinstance(body.get("channel_versions", {}), dict):
            raise CorruptChunk("the versions of the channels are not what was written")
        return body, manifest

    def decode_entry(self, entry: Entry, stored: Mapping[bytes, Chunk]) -> Any:
        """Return the value of one channel.

        Args:
            entry: What the manifest says of it.
            stored: Everything that its refs lead to, as the store has it; see `gather`.

        Raises:
            CorruptChunk: A chunk is missing, or is not what was written.
            UnreadableValue: A value names a type that may not, or cannot, be restored.
        """
        return self._decode(entry, stored, Volume())

    def decode_write(self, content: bytes, refs: bytes, stored: Mapping[bytes, Chunk]) -> Any:
        """Return the value of a write; see `decode_entry`."""
        entry = unpack_only_entry(unpacked(content, "a write"), refs)
        return self._decode(entry, stored, Volume())

    def _decode(
        self, entry: Entry, stored: Mapping[bytes, Chunk], volume: Volume, depth: int = 0
    ) -> Any:
        if depth > NEST_DEPTH:
            raise CorruptChunk("a value is cut at more levels than any is")
        if entry.kind & SNAPSHOT:
            if DeltaSnapshot is None:
                raise UnreadableValue("a DeltaChannel needs a newer langgraph-checkpoint")
            plain = entry._replace(kind=entry.kind ^ SNAPSHOT)
            return DeltaSnapshot(self._decode(plain, stored, volume, depth))
        if entry.kind == INLINE:
            return self._load(entry.type, entry.content)
        leaves = split_refs(entry.refs)
        for _ in range(entry.height):
            leaves = self.next_level(leaves, stored, volume)
        if entry.kind == OPAQUE:
            pieces = []
            for leaf in leaves:
                pieces.append(self._open(leaf, stored)[1])
                volume.add(leaf, len(pieces[-1]))
            return self._load(entry.type, b"".join(pieces))
        return self._join(entry.kind, leaves, stored, volume, depth)

    def next_level(
        self, nodes: list[bytes], stored: Mapping[bytes, Chunk], volume: Volume
    ) -> list[bytes]:
        """Return the digests that the nodes of one level of a tree hold, one after the other.

        Raises:
            CorruptChunk: One is missing, is no node, or they repeat each other too often.
        """
        opened: dict[bytes, list[bytes]] = {}
        leaves: list[bytes] = []
        for node in nodes:
            if node not in opened:
                opened[node] = self._below(node, stored)
            volume.add(node, len(opened[node]) * DIGEST_BYTES)
            leaves += opened[node]
        return leaves

    def _below(self, node: bytes, stored: Mapping[bytes, Chunk]) -> list[bytes]:
        refs, content = self._open(node, stored)
        if not refs or len(refs) % DIGEST_BYTES or content:
            raise CorruptChunk(f"chunk {node.hex()} is no node of a tree")
        return split_refs(refs)

    def decode_leaves(self, kind: int, leaves: list[bytes], stored: Mapping[bytes, Chunk]) -> Any:
        """Return the elements of a list, or the items of a dict, that some of its leaves hold."""
        return self._join(kind, leaves, stored, Volume(), 0)

    def _join(
        self,
        kind: int,
        leaves: list[bytes],
        stored: Mapping[bytes, Chunk],
        volume: Volume,
        depth: int,
    ) -> Any:
        elements: list[Any] = []
        mapping: dict[Any, Any] = {}
        for leaf in leaves:
            refs, content = self._open(leaf, stored)
            volume.add(leaf, len(content))
            if refs:
                key, entry = unpack_nested(content, refs)
                value = self._decode(entry, stored, volume, depth + 1)
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
        restored: list[Any] | None = self._memo.restored(digest)
        if restored is None:
            restored = self._load_run(content, list)
            self._memo.remember_run(digest, restored)
        return restored

    def _open(self, digest: bytes, stored: Mapping[bytes, Chunk]) -> Chunk:
        """Return the chunk that was stored under a digest, once it is known to be that."""
        row = stored.get(digest)
        if row is None:
            raise CorruptChunk(f"chunk {digest.hex()} is missing")
        return self.open_chunk(digest, row)

    def open_chunk(self, digest: bytes, row: Chunk) -> Chunk:
        """Return a chunk that was read, decrypted.

        Raises:
            CorruptChunk: It is not what was stored under the digest.
        """
        refs, content = row
        if not isinstance(refs, bytes) or not isinstance(content, bytes):
            raise CorruptChunk(f"chunk {digest.hex()} is not what was written")
        chunk = (refs, self.decrypt(content) if content else b"")
        if self.digest(chunk) != digest:
            raise CorruptChunk(f"chunk {digest.hex()} is not what was written")
        return chunk

    def _load(self, kind: str, content: bytes) -> Any:
        try:
            return self._serde.loads_typed((kind, content))
        except ForkpointError:
            raise
        except Exception as error:
            # The digest says that these are the bytes that were written.
            raise UnreadableValue(
                f"the serializer {type(self._serde).__name__} cannot read back a value of type "
                f"{kind!r}: {type(error).__name__}: {error}"
            ) from error

    # Hashing and encryption

    def digest(self, chunk: Chunk) -> bytes:
        """Return the digest that names a chunk."""
        refs, content = chunk
        if not refs:
            return self._in_family.hash(b"\0" + content)
        length = len(refs) // DIGEST_BYTES
        return self._in_family.hash(b"\1" + length.to_bytes(4, "big") + refs + content)

    def checksum(self, *fields: str | int | bytes | None) -> bytes:
        """Return the hash that shows later whether a row is as it was written.

        Raises:
            CorruptChunk: The row has fields that none is written with.
        """
        try:
            return self._in_family.hash(b"\2" + ormsgpack.packb(fields))
        except (TypeError, ValueError) as error:
            raise CorruptChunk(f"a stored row is not what was written: {error}") from error

    def encrypt(self, content: bytes) -> bytes:
        """Return `content` as it is stored: encrypted if the serializer encrypts, and labelled."""
        if self.cipher is None:
            return b"\0" + content
        name, encrypted = self.cipher.encrypt(content)
        label = name.encode()
        return bytes([len(label)]) + label + encrypted

    def decrypt(self, stored: bytes) -> bytes:
        """Return what `encrypt` was given.

        Raises:
            EncryptionMismatch: It is unencrypted and must not be, or the reverse.
            CorruptChunk: It cannot be decrypted.
        """
        if not stored or not isinstance(stored, bytes):
            raise CorruptChunk("a stored value is empty, or no bytes")
        label_bytes = stored[0]
        if self.cipher is None:
            if label_bytes:
                raise EncryptionMismatch(
                    "a stored value is encrypted; pass the EncryptedSerializer that wrote it "
                    "as serde="
                )
            return stored[1:]
        if not label_bytes:
            raise EncryptionMismatch(
                "a stored value is not encrypted, and serde= is an EncryptedSerializer"
            )
        content = stored[1 + label_bytes :]
        try:
            return self.cipher.decrypt(stored[1 : 1 + label_bytes].decode(), content)
        except Exception as error:
            raise CorruptChunk(
                "a stored value cannot be decrypted: it was changed, or written with another key"
            ) from error

    def encrypt_chunk(self, chunk: Chunk) -> Chunk:
        """Return a chunk as it is stored. What it refers to stays readable, for collecting."""
        refs, content = chunk
        return refs, self.encrypt(content) if content else b""


def _size_of_list(_: tuple[bytes | None, bytes], known: _CutList) -> int:
    # Each element is there twice, in a run too.
    return ENTRY_BYTES + 2 * known.packed_bytes + _ELEMENT_BYTES * len(known.packed)


def gather(refs: Iterable[bytes], read_chunks: ReadChunks) -> Chunks:
    """Read everything that these refs lead to, one level of the trees after the other.

    What the store does not have is missing from the result. Nothing is verified or decrypted yet.
    """
    found: Chunks = {}
    wanted = {digest for joined in refs for digest in split_refs(joined)}
    while wanted:
        chunks = read_chunks(wanted)
        found.update(chunks)
        wanted = {digest for refs, _ in chunks.values() for digest in split_refs(refs)}
        wanted -= found.keys()
    return found


def cipher_of(serde: SerializerProtocol) -> CipherProtocol | None:
    """Return the cipher of an `EncryptedSerializer`, and None for any other serializer."""
    if isinstance(serde, EncryptedSerializer) and _unchanged(serde, EncryptedSerializer):
        return serde.cipher
    return None


def new_secret(cipher: CipherProtocol) -> bytes:
    """Return a new random key for digests, encrypted so that it can be stored."""
    return Codec(EncryptedSerializer(cipher)).encrypt(_SECRET_LABEL + os.urandom(DIGEST_BYTES))


def open_secret(cipher: CipherProtocol, stored: bytes) -> bytes | None:
    """Return the key that `new_secret` made, or None if another cipher encrypted it."""
    try:
        secret = Codec(EncryptedSerializer(cipher)).decrypt(stored)
    except CorruptChunk:
        return None
    return secret[len(_SECRET_LABEL) :] if secret.startswith(_SECRET_LABEL) else None


_SECRET_LABEL = b"forkpoint digest key:"


def _unchanged(serde: object, known: type) -> bool:
    """Return whether a serializer reads and writes as `known` does, with nothing overridden."""
    return isinstance(serde, known) and all(
        getattr(type(serde), name) is getattr(known, name)
        for name in ("dumps_typed", "loads_typed")
    )


class _Naming:
    """Turn what a serializer raises into an `InvalidInput` that names what it was given."""

    def __init__(self, serde: SerializerProtocol, what: str, value: Any) -> None:
        self._serde = serde
        self._what = what
        self._value = value

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if isinstance(error, NotStorable):
            try:
                self._serde.dumps_typed(self._value)  # in one piece, so that the path is whole
            except NotStorable as whole:
                error = whole
            raise NotStorable(error.path, error.reason, self._what) from None
        if not isinstance(error, ForkpointError):
            raise InvalidInput(f"{self._what} cannot be serialized: {error}") from error
