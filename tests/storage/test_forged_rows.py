"""Whoever can write to the database can compute checksums. What fits them is checked too."""

from __future__ import annotations

import ipaddress
import uuid
from contextlib import suppress
from hashlib import sha256
from typing import Any

import ormsgpack
import pytest
from hypothesis import strategies as st

from checking import Api, checkpoint, config, drawn, one_by_one
from forkpoint import (
    CorruptChunk,
    ForkpointError,
    InvalidInput,
    SafeSerializer,
    StoredObject,
    UnreadableValue,
)
from forkpoint.encoding.chunk import Chunk
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import DICT, LIST, OPAQUE, SNAPSHOT
from stores import Store

LOOP = sha256(b"\0\x91\x01").digest()  # a run that is the list [1]
BODY = ormsgpack.packb({"id": "1"})


class Counting(dict[bytes, Chunk]):
    """Chunks that count how often they are opened."""

    opened = 0

    def get(self, digest: Any, default: Any = None) -> Any:
        self.opened += 1
        return super().get(digest, default)


def chunk(refs: bytes, content: bytes) -> tuple[bytes, Chunk]:
    codec = Codec(SafeSerializer())
    return codec.digest((refs, content)), codec.encrypt_chunk((refs, content))


def doubled(height: int) -> tuple[bytes, Counting]:
    """Return a tree of which every level has the one below twice."""
    digest, stored = chunk(b"", b"\xdc\x10\x00" + b"\x01" * 4096)
    chunks = Counting({digest: stored})
    for _ in range(height):
        digest, stored = chunk(digest * 2, b"")
        chunks[digest] = stored
    return digest, chunks


MANIFESTS: dict[str, Any] = {
    "no list": 1,
    "too short": ["msgpack", BODY],
    "too long": ["msgpack", BODY, {}, 1],
    "the type is no text": [1, BODY, {}],
    "the body is no bytes": ["msgpack", "text", {}],
    "the entries are no map": ["msgpack", BODY, []],
    "the body is no map": ["msgpack", b"\x01", {}],
    "the body is not MessagePack": ["msgpack", b"\xc1", {}],
    "the versions are no map": ["msgpack", ormsgpack.packb({"channel_versions": 1}), {}],
}
ENTRIES: dict[str, Any] = {
    "no list": 7,
    "nothing": None,
    "empty": [],
    "too short": [LIST, "msgpack", 0],
    "no height": [LIST, "", 1],
    "too long": [LIST, "", 1, 0, 0],
    "the kind is text": ["2", "", 1, 0],
    "the kind is a boolean": [True, "", 1, 0],
    "an unknown kind": [9, "", 1, 0],
    "a snapshot of a snapshot": [8 | SNAPSHOT, "", 1, 0],
    "a negative kind": [-2, "", 1, 0],
    "the type is a number": [OPAQUE, 1, 1, 0],
    "negative refs": [LIST, "", -1, 0],
    "no refs": [LIST, "", 0, 0],
    "2**50 refs": [LIST, "", 2**50, 0],
    "a negative height": [LIST, "", 1, -1],
    "a height of 2**50": [LIST, "", 1, 2**50],
    "a height of 2**50 over nothing": [LIST, "", 0, 2**50],
    "a leaf that should be a node": [LIST, "", 1, 1],
    "inline text": [0, "msgpack", "text"],
    "inline nothing": [0, "msgpack", None],
    "a list for a dict": [DICT, "", 1, 0],
}


def forge(store: Store, api: Api, content: bytes, refs: bytes, metadata: str = "{}") -> None:
    """Let a checkpoint have this content, with a checksum that fits."""
    codec = store.codec(api.saver)
    (row,) = store.rows("checkpoints")
    checksum = codec.checksum("", ID, None, metadata, refs, content)
    store.change(
        "checkpoints",
        row.key,
        content=codec.encrypt(content),
        refs=refs,
        metadata=metadata,
        checksum=checksum,
        binding=store.binding(row, checksum),
    )


ID = "1f000000-0000-6000-8000-000000000001"


@pytest.fixture
def codec() -> Codec:
    return Codec(SafeSerializer())


def fill(store: Store, api: Api) -> bytes:
    """Put a checkpoint whose id is known and a chunk. Return the digest of the chunk."""
    made = checkpoint({"list": ["text " * 200]}) | {"id": ID}
    api.saver.put(config(), made, {}, made["channel_versions"])
    (only,) = store.rows("chunks")
    return bytes(only.digest)


@pytest.fixture
def digest(store: Store, api: Api) -> bytes:
    return fill(store, api)


@one_by_one("shape", MANIFESTS)
async def test_a_forged_manifest_is_refused(
    store: Store, api: Api, digest: bytes, shape: str
) -> None:
    forge(store, api, ormsgpack.packb(MANIFESTS[shape]), b"")

    with pytest.raises((CorruptChunk, UnreadableValue), match=f"thread 'thread'.*{ID}"):
        await api.get_tuple(config())


@one_by_one("shape", ENTRIES)
async def test_a_forged_entry_is_refused(store: Store, api: Api, digest: bytes, shape: str) -> None:
    forge(store, api, ormsgpack.packb(["msgpack", BODY, {"list": ENTRIES[shape]}]), digest)

    with pytest.raises(CorruptChunk, match=f"thread 'thread'.*{ID}"):
        await api.get_tuple(config())


@pytest.mark.parametrize("refs", [b"short", b"x" * 31, b"x" * 33])
async def test_refs_of_a_wrong_length_are_refused(store: Store, api: Api, refs: bytes) -> None:
    fill(store, api)
    forge(store, api, ormsgpack.packb(["msgpack", BODY, {"list": [LIST, "", 1, 0]}]), refs)

    with pytest.raises(CorruptChunk, match=f"thread 'thread'.*{ID}"):
        await api.get_tuple(config())


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize("metadata", ["[]", "1", "no JSON", DEEP], ids=["list", "1", "no", "deep"])
async def test_damaged_metadata_are_named_by_every_reader(
    store: Store, api: Api, metadata: str
) -> None:
    fill(store, api)
    forge(store, api, ormsgpack.packb(["msgpack", BODY, {}]), b"", metadata)
    at = config(checkpoint_id=ID)

    for call in (
        lambda: api.get_tuple(config()),
        lambda: api.diff(at, at),
        lambda: api.fork(at, new_thread_id="fork"),
        lambda: api.get_delta_channel_history(config=config(), channels=["c"]),
    ):
        with pytest.raises(CorruptChunk, match=ID):
            await call()


def test_a_tree_of_a_few_chunks_is_not_followed_as_often_as_it_says(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("trees", "entries"):  # half a GiB otherwise
        monkeypatch.setattr(f"forkpoint.encoding.{module}.REPEATED_BYTES", 16 * 1024 * 1024)
    digest, chunks = doubled(50)
    manifest = ormsgpack.packb(["msgpack", BODY, {"c": [LIST, "", 1, 50]}])
    _, entries = codec.decode_manifest(manifest, digest)

    with pytest.raises(CorruptChunk, match="repeat"):
        codec.decode_entry(entries["c"], chunks)
    assert chunks.opened < 1000


def test_a_value_that_repeats_itself_is_read(codec: Codec) -> None:
    digest, chunks = doubled(4)
    manifest = ormsgpack.packb(["msgpack", BODY, {"c": [LIST, "", 1, 4]}])
    _, entries = codec.decode_manifest(manifest, digest)

    assert codec.decode_entry(entries["c"], chunks) == [1] * (16 * 4096)


def test_a_value_that_no_reader_would_take_is_refused(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("trees", "entries"):  # half a GiB otherwise
        monkeypatch.setattr(f"forkpoint.encoding.{module}.REPEATED_BYTES", 1024 * 1024)
    value = b"x" * (3 * 1024 * 1024)

    with pytest.raises(InvalidInput, match="repeat"):
        codec.encode_write("c", value)


def extension(code: int, *fields: Any) -> Any:
    return ormsgpack.Ext(code, ormsgpack.packb(list(fields)))


NETWORK = extension(0, "ipaddress", "IPv4Network", "0.0.0.0/0")


@pytest.mark.parametrize(
    "value",
    [
        extension(0, "builtins", "set", NETWORK),
        extension(0, "builtins", "frozenset", NETWORK),
        extension(0, "collections", "deque", NETWORK),
        extension(1, "builtins", "set", [NETWORK]),
        extension(1, "builtins", "set", NETWORK),
        extension(1, "decimal", "Decimal", NETWORK),
        extension(1, "collections", "deque", [NETWORK]),
        extension(6, "<i4", NETWORK, "C", b""),
        extension(
            0,
            "builtins",
            "set",
            [extension(0, "uuid", "UUID", uuid.UUID(int=n * (2**61 - 1)).hex) for n in range(100)],
        ),
    ],
)
def test_a_collection_is_not_made_of_what_goes_on_for_ever(value: Any) -> None:
    with pytest.raises(UnreadableValue):
        SafeSerializer(unknown="raise").loads_typed(("msgpack", ormsgpack.packb(value)))
    with suppress(UnreadableValue):  # some do not even name a type
        restored = SafeSerializer().loads_typed(("msgpack", ormsgpack.packb(value)))
        assert isinstance(restored, StoredObject)


def test_networks_and_sets_are_read() -> None:
    serde = SafeSerializer()
    value = {"set": {1, 2}, "net": ipaddress.IPv4Network("10.0.0.0/8"), "ids": {uuid.uuid4()}}
    assert serde.loads_typed(serde.dumps_typed(value)) == value


numbers = st.integers(-3, 70) | st.sampled_from([2**50, 2**63, -(2**50)])
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
entries = st.tuples(numbers, st.text(max_size=8), numbers | st.binary(max_size=8), numbers)
manifests = anything | st.tuples(
    st.sampled_from(["msgpack", "null", "bytes", "json"]),
    st.just(BODY) | anything.map(ormsgpack.packb),
    st.dictionaries(st.text(max_size=3), entries | anything, max_size=3),
)


@drawn(40, 5000, manifest=manifests, refs=st.lists(st.integers(0, 12), max_size=6))
def test_whatever_is_forged_is_refused_or_read(manifest: Any, refs: list[int]) -> None:
    codec = Codec(SafeSerializer())
    digest, chunks = doubled(8)
    digests = [*chunks, *(sha256(bytes([n])).digest() for n in range(2))]
    joined = b"".join(digests[n % len(digests)] for n in refs)
    for content in (b"\x01", b"\x80", b"\xc1", ormsgpack.packb([b"", [LIST, "", 1, 0]])):
        name, stored = chunk(digest, content)
        chunks[name] = stored
    try:
        _, decoded = codec.decode_manifest(ormsgpack.packb(manifest), joined)
        for entry in decoded.values():
            codec.decode_entry(entry, chunks)
    except ForkpointError:
        pass
    assert chunks.opened < 10_000
