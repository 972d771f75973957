"""Values to chunks and back, with one serializer, for the threads of a store. No I/O.

What is stored, byte by byte, is described in `format.md` of `forkpoint.storage`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint import untrusted
from forkpoint.caches import Cache, CacheBudget, size_of_entry
from forkpoint.encoding.chunk import Chunk, Chunks, Encoded, Serialized, digest_of
from forkpoint.encoding.decoder import Decoder
from forkpoint.encoding.encoder import Encoder, KnownCuts
from forkpoint.encoding.encryption import Encryption, cipher_of
from forkpoint.encoding.entries import Entry, Volume, pack_entry
from forkpoint.encoding.hashing import Hashing
from forkpoint.encoding.manifest import NO_CHANNELS, Manifest, pack_manifest
from forkpoint.encoding.message_cache import MessageMemo
from forkpoint.encoding.other_serializers import reader_beside
from forkpoint.encoding.trees import Trees
from forkpoint.errors import CorruptChunk, ForkpointError, InvalidInput, NotStorable

INLINE_BYTES = 512
"""A value that serializes to no more than this stays in the manifest."""

WRITE_INLINE_BYTES = 1024
"""The same for the value of a write, which is stored once, while a manifest is stored with every
checkpoint."""

_CODEC_BYTES = 1800  # what the codec of a thread takes


class Codec:
    """Turn values into manifests and chunks, and back, with one serializer.

    Args:
        serde: `JsonPlusSerializer`, or `EncryptedSerializer` around it, has its lists and dicts
            cut; what any other serializer writes is opaque.
        secret: The key of the digests, see `new_secret`; None if `serde` cannot open it.
        budget: What it may take to remember what it has serialized and restored.
    """

    def __init__(
        self,
        serde: SerializerProtocol,
        secret: bytes | None = b"",
        budget: CacheBudget | None = None,
    ) -> None:
        self.cipher = cipher_of(serde)
        self.secret = secret
        self.hashing = Hashing(secret, self.cipher is not None)
        self.root = self
        """The codec of all threads of the store."""
        self.salt = b""
        budget = budget or CacheBudget()
        self._of_salts: Cache[bytes, Codec] = Cache(budget, lambda *_: _CODEC_BYTES)
        self._of_threads: Cache[tuple[Any, ...], Codec] = Cache(budget, size_of_entry)
        self._memo = MessageMemo(budget)
        self._cuts = KnownCuts(budget)
        if isinstance(serde, EncryptedSerializer) and self.cipher is not None:
            serde = serde.serde
        self._serde = serde
        self._own = reader_beside(serde)
        self._encryption = Encryption(self.cipher)
        self._set_family(self.hashing)

    def _set_family(self, hashing: Hashing) -> None:
        self._in_family = hashing
        self._encoder = Encoder(self._serde, hashing, self._memo, self._cuts)
        self._decoder = Decoder(self._serde, self._encryption, hashing, self._memo, self._own)

    # Of one thread

    def of_salt(self, salt: bytes) -> Codec:
        """Return the codec of a thread: what it hashes fits no other family, or no other thread."""
        codec = self._of_salts.get(salt)
        if codec is None:
            codec = copy.copy(self)
            codec.salt = salt
            codec._set_family(Hashing(self.hashing.of_family(salt)))
            self._of_salts.put(salt, codec)
        return codec

    def of_thread(self, thread_id: str, owner: str | None, salt: bytes, checksum: bytes) -> Codec:
        """Return the codec of a thread whose record was read.

        Raises:
            CorruptChunk: The record says another id or owner than was written.
        """
        identity = thread_id, owner, salt, checksum
        codec = self._of_threads.get(identity)
        if codec is None:
            self.hashing.check_identity(*identity)
            codec = self.of_salt(salt)
            self._of_threads.put(identity, codec)
        return codec

    def is_kin(self, other: Codec) -> bool:
        """Return whether both hash the same, but for what is of one thread of a family."""
        return self.root is other.root and self._in_family.secret == other._in_family.secret

    def binding(self, checksum: bytes) -> int:
        """Return what binds a row with this checksum to the thread."""
        return self.hashing.binding(self.salt, checksum)

    # What another codec encoded

    def own_write(self, write: Encoded) -> Encoded:
        """Return a write that another codec encoded, with digests of this one's."""
        return Trees(self._in_family).of_write(write)

    def own_state(self, state: Serialized) -> Serialized:
        """Return a state that another codec serialized, with digests of this one's."""
        return Trees(self._in_family).of_state(state)

    # Writing

    def encode_checkpoint(
        self, checkpoint: Mapping[str, Any], inherited: Manifest = NO_CHANNELS
    ) -> tuple[Encoded, Manifest]:
        """Encode a checkpoint; the channels in `inherited` take their entries from there.

        Raises:
            InvalidInput: A value cannot be serialized.
        """
        return self.join(checkpoint, self.serialize(checkpoint, inherited), inherited)

    def serialize(
        self, checkpoint: Mapping[str, Any], inherited: Manifest = NO_CHANNELS
    ) -> Serialized:
        """Serialize a checkpoint, but for the channels in `inherited`.

        Raises:
            InvalidInput: A value cannot be serialized.
        """
        stored = dict(checkpoint["channel_values"])
        if there := inherited.stored:
            stored = {channel: value for channel, value in stored.items() if channel not in there}
        chunks: dict[str, Chunks] = {}
        with _Naming(self._serde, "the channels", stored):  # a metaclass may raise something
            channels = self._encoder.not_plain(stored)
        for channel in channels:
            self._serialize_channel(channel, stored[channel], stored, chunks)
        body = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        with _Naming(self._serde, "the checkpoint", body):
            kind, content = self._serde.dumps_typed(body)
        return Serialized((kind, bytes(content)), stored, chunks)

    def _serialize_channel(
        self, channel: str, value: Any, stored: dict[str, Any], chunks: dict[str, Chunks]
    ) -> None:
        chunks_of_value: Chunks = {}
        with _Naming(self._serde, f"channel {channel}", value):
            stored[channel] = self._encoder.encode(value, chunks_of_value, INLINE_BYTES)
        if chunks_of_value:
            chunks[channel] = chunks_of_value

    def join(
        self,
        checkpoint: Mapping[str, Any],
        serialized: Serialized,
        inherited: Manifest = NO_CHANNELS,
    ) -> tuple[Encoded, Manifest]:
        """Encode a checkpoint of what it inherits, and for the rest of what was serialized.

        It inherits channels without values, too: the graph that puts it may not have them.
        """
        body, stored, chunks_of_channels = serialized
        values = checkpoint["channel_values"]
        if len(stored) < len(values):
            for channel in values.keys() - stored.keys() - inherited.keys():
                # What the parent stored of it is gone since.
                self._serialize_channel(channel, values[channel], stored, chunks_of_channels)
        if inherited:
            known = {**stored, **inherited.stored}
            stored = {channel: known[channel] for channel in values}
            if len(stored) < len(known):
                stored.update(known)
        manifest = Manifest(stored)
        chunks: Chunks = {}
        for channel, chunks_of_value in chunks_of_channels.items():
            if channel not in inherited:
                chunks.update(chunks_of_value)
        return Encoded(pack_manifest(*body, manifest), manifest.refs, chunks), manifest

    def encode_write(self, channel: str, value: Any) -> Encoded:
        """Encode the value of one write.

        Raises:
            InvalidInput: The value cannot be serialized.
        """
        chunks: Chunks = {}
        with _Naming(self._serde, f"the write to channel {channel}", value):
            entry = self._encoder.encode(value, chunks, WRITE_INLINE_BYTES)
        return Encoded(ormsgpack.packb(pack_entry(entry)), entry.refs, chunks)

    def fingerprint(self, value: Any) -> bytes:
        """Return bytes that are the same for values that are stored as the same."""
        kind, content = self._serde.dumps_typed(value)
        return kind.encode() + b"\0" + content

    # Reading

    def decode_manifest(self, content: bytes, refs: bytes) -> tuple[dict[str, Any], Manifest]:
        """Return the body of a checkpoint and its manifest, without reading any chunk."""
        return self._decoder.decode_manifest(content, refs)

    def decode_values(self, manifest: Manifest, chunks: Mapping[bytes, Chunk]) -> dict[str, Any]:
        """Return the value of each channel; see `decode_entry`."""
        values = manifest.stored.copy()
        for channel, entry in manifest.entries.items():
            values[channel] = self._decoder.decode_entry(entry, chunks)
        return values

    def decode_entry(self, entry: Entry, chunks: Mapping[bytes, Chunk]) -> Any:
        """Return the value of one channel.

        Args:
            entry: What the manifest says of it.
            chunks: Everything that its refs lead to, as the store has it; see `gather`.

        Raises:
            CorruptChunk: A chunk is missing, or is not what was written.
            UnreadableValue: A value names a type that may not, or cannot, be restored.
        """
        return self._decoder.decode_entry(entry, chunks)

    def decode_write(self, content: bytes, refs: bytes, chunks: Mapping[bytes, Chunk]) -> Any:
        """Return the value of a write; see `decode_entry`."""
        return self._decoder.decode_write(content, refs, chunks)

    def next_level(
        self, nodes: list[bytes], chunks: Mapping[bytes, Chunk], volume: Volume
    ) -> list[bytes]:
        """Return the digests that the nodes of one level of a tree hold, one after the other.

        Raises:
            CorruptChunk: One is missing, is no node, or they repeat each other too often.
        """
        return self._decoder.next_level(nodes, chunks, volume)

    def decode_leaves(self, kind: int, leaves: list[bytes], chunks: Mapping[bytes, Chunk]) -> Any:
        """Return the elements of a list, or the items of a dict, that some of its leaves hold."""
        return self._decoder.decode_leaves(kind, leaves, chunks)

    def open_chunk(self, digest: bytes, row: Chunk) -> Chunk:
        """Return a chunk that was read, decrypted.

        Raises:
            CorruptChunk: It is not what was stored under the digest.
        """
        return self._decoder.open_chunk(digest, row)

    # Hashing and encryption

    def digest(self, chunk: Chunk) -> bytes:
        """Return the digest that names a chunk."""
        return digest_of(chunk, self._in_family)

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
        return self._encryption.encrypt(content)

    def decrypt(self, stored_bytes: bytes) -> bytes:
        """Return what `encrypt` was given.

        Raises:
            EncryptionMismatch: It is unencrypted and must not be, or the reverse.
            CorruptChunk: It cannot be decrypted.
        """
        return self._encryption.decrypt(stored_bytes)

    def encrypt_chunk(self, chunk: Chunk) -> Chunk:
        """Return a chunk as it is stored. What it refers to stays readable, for collecting."""
        refs, content = chunk
        return refs, self.encrypt(content) if content else b""


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
        if isinstance(error, ForkpointError) and not isinstance(error, NotStorable):
            return
        try:
            self._serde.dumps_typed(self._value)  # in one piece, so that the path is whole
        except NotStorable as whole:
            error = whole
        except Exception:  # noqa: BLE001 - it is told as it was
            pass
        if isinstance(error, NotStorable):
            raise NotStorable(error.path, error.reason, self._what) from None
        said = untrusted.message(error)
        raise InvalidInput(f"{self._what} cannot be serialized: {said}") from error
