"""Any value comes back as the serializer would give it back; an edit costs what it changes."""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ormsgpack
import pytest
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checking import drawn, encrypted_serde
from forkpoint import CorruptChunk, InvalidInput, SafeSerializer, UnreadableValue
from forkpoint.caches import CacheBudget
from forkpoint.encoding import chunking
from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.encryption import cipher_of, new_secret, open_secret
from forkpoint.encoding.entries import LIST, OPAQUE
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.encoding.message_cache import MessageMemo


def plain() -> Codec:
    return Codec(SafeSerializer())


def encrypted() -> Codec:
    serde = encrypted_serde()
    cipher = cipher_of(serde)
    assert cipher is not None
    return Codec(serde, open_secret(cipher, new_secret(cipher)))


def encode(codec: Codec, value: Any) -> tuple[Any, Chunks]:
    encoded, manifest = codec.encode_checkpoint({"channel_values": {"c": value}})
    return manifest["c"], encoded.chunks


def round_trip(codec: Codec, value: Any) -> Any:
    encoded, _ = codec.encode_checkpoint({"id": "1", "channel_values": {"c": value}})
    stored = {digest: codec.encrypt_chunk(chunk) for digest, chunk in encoded.chunks.items()}
    content = codec.decrypt(codec.encrypt(encoded.content))
    body, manifest = codec.decode_manifest(content, encoded.refs)
    assert body == {"id": "1"}
    return codec.decode_values(manifest, stored)["c"]


def typed(value: Any) -> Any:
    """Return what tells apart what `==` does not: types, and the order of keys."""
    if isinstance(value, dict):
        return (type(value), [(typed(key), typed(item)) for key, item in value.items()])
    if isinstance(value, (list, tuple, deque)):
        return (type(value), [typed(item) for item in value])
    if isinstance(value, float):
        return (type(value), repr(value))
    return (type(value), value)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
)
messages = st.builds(
    lambda kind, text, id_, extra: kind(text, id=id_, additional_kwargs=extra),
    st.sampled_from([HumanMessage, AIMessage]),
    st.text(max_size=900),
    st.none() | st.text(max_size=9),
    st.dictionaries(st.text(max_size=5), st.booleans() | st.integers(0, 9), max_size=2),
)
elements = st.deferred(lambda: _elements)
_elements = st.recursive(
    scalars | messages,
    lambda inner: (
        st.lists(inner, max_size=9)
        | st.dictionaries(st.text(max_size=9), inner, max_size=9)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(0, 99), max_size=5)
    ),
    max_leaves=40,
)
wide = st.tuples(elements, st.integers(1, 400)).map(lambda pair: [pair[0]] * pair[1])
long_texts = st.tuples(st.text(min_size=1), st.integers(1, 40_000)).map(lambda p: p[0] * p[1])
values = (
    elements
    | wide
    | long_texts
    | st.lists(messages, max_size=60)
    | st.lists(long_texts | elements, max_size=6)
    | st.dictionaries(st.text(max_size=9) | st.integers(0, 99), elements | wide, max_size=30)
    | st.lists(st.integers(0, 3), min_size=2000, max_size=4000)
)


@drawn(12, 200, values)
def test_any_value_comes_back_as_the_serializer_gives_it_back(value: Any) -> None:
    serde = SafeSerializer()
    expected = serde.loads_typed(serde.dumps_typed(value))

    codec = plain()
    assert typed(round_trip(codec, value)) == typed(expected)
    assert typed(round_trip(codec, value)) == typed(expected)  # and from what is remembered


@drawn(7, 60, values)
def test_any_value_comes_back_through_encryption(value: Any) -> None:
    serde = SafeSerializer()

    assert typed(round_trip(encrypted(), value)) == typed(
        serde.loads_typed(serde.dumps_typed(value))
    )


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "",
        b"",
        bytearray(b"x" * 100_000),
        {"nested": {"list": [{"deep": "x" * 9000, "n": n} for n in range(30)]}},
        [[["x" * 5000] * 5] * 5] * 5,
        dict.fromkeys(range(500), "v" * 300),
        {None: 1, True: "y" * 5000, 1.5: ["z" * 5000]},
        {datetime.date(2024, 1, 2): "x" * 600},
        [None] * 50_000,
        [AIMessage("x" * 100_000, id="1"), "text"],
        [ToolMessage("x" * 900, tool_call_id="1", artifact={"a": (1, 2)})] * 9,
        [HumanMessage([{"type": "text", "text": "x" * 900}]), None],
        [decimal.Decimal("1.10"), uuid.UUID(int=5), {1, 2, 3}, deque([1])] * 200,
        [{"k": bytearray(b"x" * 900)}, {"k": b"x" * 900}] * 5,
        {"k": DeltaSnapshot([1, 2, 3] * 400)},
        DeltaSnapshot([HumanMessage("x" * 700, id=str(n)) for n in range(50)]),
        DeltaSnapshot(5),
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:20]}",
)
@pytest.mark.parametrize("codec", [plain, encrypted])
def test_values_of_every_shape_come_back(codec: Callable[[], Codec], value: Any) -> None:
    serde = SafeSerializer()
    assert typed(round_trip(codec(), value)) == typed(serde.loads_typed(serde.dumps_typed(value)))


class Mood(str, enum.Enum):
    GOOD = "good"


class Shout(str):
    pass


@pytest.mark.parametrize(
    "one",
    [
        Mood.GOOD,
        Shout("good"),
        (1, 2),
        datetime.date(2024, 1, 2),
        uuid.UUID(int=1),
        1.0,
        True,
        b"x",
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "other",
    ["good", [1, 2], "2024-01-02", str(uuid.UUID(int=1)), 1, 1.0, bytearray(b"x")],
    ids=repr,
)
def test_messages_with_fields_that_only_look_alike_are_not_mixed_up(one: Any, other: Any) -> None:
    serde = SafeSerializer()
    codec = plain()
    for _ in range(2):
        for kept in (one, other):
            value = [
                AIMessage("x" * 500, id="1", additional_kwargs={"k": kept}, extra_field=kept),
                AIMessage("y" * 500, id="2", additional_kwargs={"k": kept}),
            ]
            restored = round_trip(codec, value)
            expected = serde.loads_typed(serde.dumps_typed(value))
            assert [typed(message.__dict__) for message in restored] == [
                typed(message.__dict__) for message in expected
            ]
            assert restored == expected
            assert typed(restored[0].__pydantic_extra__) == typed(expected[0].__pydantic_extra__)
            assert [message.__pydantic_fields_set__ for message in restored] == [
                message.__pydantic_fields_set__ for message in expected
            ]


def test_a_message_that_changes_while_it_is_taken_is_not_remembered_as_what_it_was() -> None:
    """Else all messages with the fields that it had are stored with those that it got."""
    memo, serde = MessageMemo(CacheBudget()), SafeSerializer()

    def changed(value: AIMessage) -> bytes:
        value.content = "after"  # as another thread may do
        return serde.dumps_typed(value)[1]

    changed_one = memo.pack(AIMessage("before"), changed)
    other = memo.pack(AIMessage("before"), lambda value: serde.dumps_typed(value)[1])
    contents = [serde.loads_typed(("msgpack", each)).content for each in (changed_one, other)]
    assert contents == ["after", "before"]


def message(n: int, size: int = 500) -> HumanMessage:
    return HumanMessage(random.Random(n).randbytes(size // 2).hex(), id=str(n))


MAKERS: dict[str, Callable[[int], Any]] = {
    "messages": message,
    "texts": lambda n: random.Random(n).randbytes(60).hex(),
    "small integers": lambda n: random.Random(n).randrange(100),
    "floats": lambda n: random.Random(n).random(),
    "equal elements": lambda _: {"same": "element"},
    "large texts": lambda n: random.Random(n).randbytes(3000).hex(),
}
EDITS: dict[str, Callable[[list[Any], Any], list[Any]]] = {
    "append": lambda base, new: [*base, new],
    "trim the front": lambda base, _: base[1:],
    "trim three": lambda base, _: base[3:],
    "insert in the middle": lambda base, new: [
        *base[: len(base) // 2],
        new,
        *base[len(base) // 2 :],
    ],
    "insert at the front": lambda base, new: [new, *base],
    "delete in the middle": lambda base, _: base[: len(base) // 2] + base[len(base) // 2 + 1 :],
    "replace in the middle": lambda base, new: [
        *base[: len(base) // 2],
        new,
        *base[len(base) // 2 + 1 :],
    ],
}


def rewritten(base: list[Any] | dict[Any, Any], edited: list[Any] | dict[Any, Any]) -> int:
    """Return the bytes that an edit adds to what is stored."""
    codec = plain()
    before, after = encode(codec, base)[1], encode(codec, edited)[1]
    return sum(
        len(refs) + len(content)
        for digest, (refs, content) in after.items()
        if digest not in before
    )


def edits() -> Iterator[Any]:
    """Each edit of lists of each kind; in every run, a third of these of one list."""
    for number, (kind, edit) in enumerate(itertools.product(MAKERS, EDITS)):
        marks = () if (number + number // len(EDITS)) % 3 == 0 else pytest.mark.slow
        yield pytest.param(kind, edit, 1, marks=marks)
        yield pytest.param(kind, edit, 4, marks=pytest.mark.slow)


@pytest.mark.by_halves
@pytest.mark.parametrize(("kind", "edit", "lists"), list(edits()))
def test_an_edit_rewrites_bytes_that_do_not_grow_with_the_list(
    kind: str, edit: str, lists: int
) -> None:
    make, change = MAKERS[kind], EDITS[edit]

    def typical(length: int) -> float:
        costs = []
        for seed in range(lists):
            start = seed * 100_000
            base = [make(start + n) for n in range(length)]
            costs.append(rewritten(base, change(base, make(start + length))))
        return sum(costs) / len(costs)

    few, many = typical(300), typical(3000)

    # A run and a node a level, and the neighbours that a cut may move into.
    assert many <= max(2.5 * few, 32_000)


def test_an_entry_of_a_dict_can_be_changed_added_and_removed_alone() -> None:
    base = {f"{n}.txt": random.Random(n).randbytes(1000).hex() for n in range(2000)}
    changed = {**base, "1000.txt": "new"}
    added = {**base, "new.txt": "new" * 500}
    removed = {key: value for key, value in base.items() if key != "1000.txt"}

    assert max(rewritten(base, edited) for edited in (changed, added, removed)) < 24_000


def test_a_list_inside_a_dict_is_shared_too() -> None:
    base = {"messages": [message(n) for n in range(2000)], "other": 1}
    edited = {"messages": [*base["messages"], message(2000)], "other": 1}  # type: ignore[misc]

    assert rewritten(base, edited) < 12_000


@drawn(7, 60, st.integers(0, 2**32), st.integers(50, 1500), st.integers(1, 3000))
def test_a_random_edit_rewrites_a_bounded_number_of_bytes(
    seed: int, length: int, size: int
) -> None:
    rng = random.Random(seed)
    base = [rng.randbytes(rng.randrange(1, size + 1)) for _ in range(length)]
    where = rng.randrange(length)
    edited = [*base]
    match rng.randrange(3):
        case 0:
            edited[where] = rng.randbytes(size)
        case 1:
            del edited[where]
        case _:
            edited.insert(where, rng.randbytes(size))

    # Cuts come together again within a few runs of at most 16 KB and nodes of at most 4 KB.
    assert rewritten(base, edited) <= 100_000


@drawn(
    12,
    100,
    st.integers(0, 2**32),
    st.sampled_from(sorted(MAKERS)),
    st.lists(st.tuples(st.sampled_from(sorted(EDITS)), st.integers(1, 60)), max_size=12),
)
def test_a_list_is_cut_the_same_whatever_was_cut_before(
    seed: int, kind: str, edits: list[tuple[str, int]]
) -> None:
    used = plain()
    value = [MAKERS[kind](seed + n) for n in range(40)]
    for edit, times in edits:
        for n in range(times):
            value = EDITS[edit](value, MAKERS[kind](seed + 1000 + n))
        if value:
            entry, chunks = encode(used, value)
            assert (entry, chunks) == encode(plain(), value)
            assert encode(used, value) == (entry, chunks)


def test_an_unknown_serializer_keeps_its_own_bytes() -> None:
    class Reversed:
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            kind, content = JsonPlusSerializer().dumps_typed(obj)
            return "reversed-" + kind, content[::-1]

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            kind, content = data
            return JsonPlusSerializer().loads_typed((kind.removeprefix("reversed-"), content[::-1]))

    codec = Codec(Reversed())
    value = [message(n) for n in range(300)]

    assert round_trip(codec, value) == value
    _, chunks = encode(codec, value)
    kept = b"".join(content for _, content in chunks.values())
    assert Reversed().dumps_typed(value)[1] in kept


def test_a_serializer_that_overrides_what_it_inherits_is_unknown() -> None:
    class Shouting(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            return f"{super().loads_typed(data)}!"

    for serde, kind in ((Shouting(), OPAQUE), (JsonPlusSerializer(), LIST)):
        entry, _ = encode(Codec(serde), ["x" * 100] * 100)
        assert entry.kind == kind


def test_a_value_that_needs_pickle_is_kept_whole() -> None:
    class_ = complex
    codec = Codec(JsonPlusSerializer(pickle_fallback=True))

    assert round_trip(codec, [class_(1, 2), "x" * 9000]) == [class_(1, 2), "x" * 9000]
    assert round_trip(codec, {"a": class_(1, 2), "b": "x" * 9000}) == {
        "a": class_(1, 2),
        "b": "x" * 9000,
    }
    messages = [message(n) for n in range(20)]
    messages[3].additional_kwargs["c"] = class_(1, 2)
    assert round_trip(codec, messages) == messages


class Gone:
    pass


def test_what_a_serializer_cannot_read_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(JsonPlusSerializer(pickle_fallback=True))
    entry, chunks = encode(codec, Gone())
    monkeypatch.delattr("test_codec.Gone")
    with pytest.raises(UnreadableValue, match=r"JsonPlusSerializer cannot read back.*Gone"):
        codec.decode_entry(entry, chunks)


def test_a_value_that_cannot_be_serialized_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"channel c\[0\] cannot be stored: a builtins\.object"):
        encode(plain(), [object()])
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="channel c"):
        encode(plain(), deep)


def test_equal_values_share_chunks() -> None:
    value = [message(n) for n in range(500)]

    assert encode(plain(), value)[0] == encode(plain(), value)[0]


def test_an_encrypted_value_shares_chunks_within_a_store_and_with_no_other() -> None:
    value = [message(n) for n in range(500)]
    one, other = encrypted(), encrypted()

    assert encode(one, value)[0] == encode(one, value)[0]
    assert not encode(one, value)[1].keys() & encode(other, value)[1].keys()
    assert not encode(one, value)[1].keys() & encode(plain(), value)[1].keys()
    for digest, chunk in encode(one, value)[1].items():
        assert len(chunk[1]) < 32 or chunk[1] not in one.encrypt_chunk(chunk)[1], digest


MIXED = {
    "list": [1],
    "short": "text",
    "none": None,
    "true": True,
    "one": 1,
    "float": 1.0,
    "long": 2**63,
    "longer": 2**80,
    "surrogate": "\ud800",
    "text": "x" * 129,
    "large": "y" * 5000,
    "bytes": b"1",
    "last": -0.0,
}


def test_channels_keep_their_order_and_the_types_of_their_values() -> None:
    codec = plain()
    encoded, manifest = codec.encode_checkpoint({"channel_values": MIXED})
    _, stored = codec.decode_manifest(encoded.content, encoded.refs)
    chunks = {digest: codec.encrypt_chunk(chunk) for digest, chunk in encoded.chunks.items()}
    assert typed(codec.decode_values(stored, chunks)) == typed(MIXED)
    assert dict(stored) == dict(manifest)
    assert list(stored.entries) == [
        "list",
        "longer",
        "surrogate",
        "text",
        "large",
        "bytes",
    ]
    for channel, entry in stored.items():
        assert typed(codec.decode_entry(entry, chunks)) == typed(MIXED[channel])


@pytest.mark.parametrize("inherited", [["none", "large", "one"], ["list"], [*MIXED]])
def test_what_is_inherited_takes_its_place_in_the_order(inherited: list[str]) -> None:
    codec = plain()
    _, manifest = codec.encode_checkpoint({"channel_values": MIXED})
    changed = {"channel_values": {**MIXED, "short": "other"}}
    for captured in (manifest.only(inherited), manifest.only([])):
        state = codec.serialize(changed, captured)
        _, joined = codec.join(changed, state, manifest.only(inherited))
        assert list(joined) == list(MIXED)
        own = "text" if "short" in inherited else "other"
        assert codec.decode_entry(joined["short"], {}) == own


@pytest.mark.parametrize(
    "forged", [b"bytes", {"kind": 0}, [0], [0, "msgpack"], [True, "msgpack", b""], [2, "", 1, 0]]
)
def test_what_stands_for_a_channel_is_a_plain_value_or_an_entry(forged: Any) -> None:
    codec = plain()
    content = ormsgpack.packb(["msgpack", ormsgpack.packb({}), {"one": 1, "forged": forged}])
    with pytest.raises(CorruptChunk):
        codec.decode_manifest(content, b"")


def test_a_tree_of_another_shape_than_any_is_damage() -> None:
    """Whoever knows the key of the digests can forge it; it is an error, and takes no time."""
    codec = plain()
    chunks: dict[bytes, Any] = {}

    def add(refs: bytes, content: Any) -> bytes:
        chunk = (refs, ormsgpack.packb(content))
        digest = codec.digest(chunk)
        chunks[digest] = codec.encrypt_chunk(chunk)
        return digest

    one_chunk = [LIST, "", 1, 0]
    content = ormsgpack.packb(one_chunk)
    leaf = add(b"", [5])
    assert codec.decode_write(content, add(leaf, [b"", one_chunk]), chunks) == [[5]]
    deep = leaf
    for _ in range(100):
        deep = add(deep, [b"", one_chunk])
    for forged, refs, reason in (
        (b"\xc1", b"", "a write is not what was written"),
        (content, leaf * 2, "not as many chunks"),
        (content, add(leaf, "element"), "a nested element is not"),
        (content, deep, "more levels"),
    ):
        with pytest.raises(CorruptChunk, match=reason):
            codec.decode_write(forged, refs, chunks)
    with pytest.raises(CorruptChunk, match="not what was written"):
        codec.open_chunk(leaf, ("", chunks[leaf][1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, 1, 15, 16, 2**16 - 1, 2**16])
def test_headers_are_those_of_messagepack(length: int) -> None:
    for header, value in (
        (chunking.array_header(length), [None] * length),
        (chunking.map_header(length), {str(n): None for n in range(length)}),
        (chunking.extension_header(9, length + 17), ormsgpack.Ext(9, bytes(length + 17))),
    ):
        assert ormsgpack.packb(value).startswith(header)
