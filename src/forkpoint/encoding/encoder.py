"""Values to entries and chunks: serializing, and cutting between elements. No I/O."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import compress, repeat
from operator import is_
from typing import Any, NamedTuple

import ormsgpack  # a dependency of langgraph-checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from forkpoint.caches import ENTRY_BYTES, Cache, CacheBudget
from forkpoint.encoding import array_values, chunking
from forkpoint.encoding.builtin_values import PLAIN_ONLY
from forkpoint.encoding.chunk import Chunk, Chunks
from forkpoint.encoding.copies import copy_for_langgraph
from forkpoint.encoding.encryption import is_unchanged
from forkpoint.encoding.entries import (
    DICT,
    INLINE,
    LIST,
    NEST_DEPTH,
    OPAQUE,
    SNAPSHOT,
    Entry,
    pack_entry,
)
from forkpoint.encoding.hashing import Hashing
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.encoding.manifest import PLAIN_TYPES
from forkpoint.encoding.message_cache import MessageMemo
from forkpoint.encoding.plain_runs import PlainItems, count_settled, plain_items
from forkpoint.encoding.serializer import SafeSerializer, packer_of
from forkpoint.encoding.trees import Trees

NEST_BYTES = 4096
"""An element that is itself a list or a dict, and serializes to more than this, is cut too."""

_ELEMENT_BYTES = 60  # what a remembered element takes beside what it is serialized to
_RUN_ENTRY_BYTES = 250  # what a remembered run takes beside its content
_FIRST_BYTES = 64  # of plain items, by which they are remembered
_MSGPACK, _PICKLE = "msgpack", "pickle"
_PLAIN_TYPES = frozenset({dict, list, str, int, float})
_SHORT = 128  # characters of a text that stands for itself: at most 512 bytes
_FEW = 4  # elements: so many are serialized in one piece as fast as one by one
_IN_ONE_PIECE = frozenset({str, bytes, bytearray, int})
_ATTEMPTS = 3  # to serialize a value that other threads are changing
_ONE_ITEM = b"\x81"  # the header of a map


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


class _CutItems(NamedTuple):
    """Plain items as they were cut, up to where it depends on what follows: packed, and runs."""

    content: memoryview
    leaves: list[bytes]
    runs: list[Chunk]
    length: int
    """How many items there are."""


class KnownCuts:
    """Lists and dicts as they were cut.

    Args:
        budget: What it may take to remember them, together with others.
    """

    def __init__(self, budget: CacheBudget) -> None:
        # What is remembered is there twice, in runs too.
        self.lists: Cache[tuple[bytes | None, bytes], _CutList] = Cache(
            budget,
            lambda _, known: (
                ENTRY_BYTES + 2 * known.packed_bytes + _ELEMENT_BYTES * len(known.packed)
            ),
        )
        """By the secret of the family and the first element."""
        self.items: Cache[tuple[bytes | None, int, bytes], _CutItems] = Cache(
            budget,
            lambda _, known: (
                ENTRY_BYTES + 2 * len(known.content) + _RUN_ENTRY_BYTES * len(known.runs)
            ),
        )
        """By the secret of the family, the kind, and the first bytes."""


class Encoder:
    """Turns values into entries, and into the chunks that these refer to.

    Args:
        serde: The serializer, without its encryption. Only LangGraph's own and forkpoint's have
            their lists and dicts cut; what any other writes is opaque.
        hashing: The hashes of the family that the chunks will belong to.
        memo: Remembers messages.
        cuts: Remembers lists and dicts.
    """

    def __init__(
        self, serde: SerializerProtocol, hashing: Hashing, memo: MessageMemo, cuts: KnownCuts
    ) -> None:
        self._serde = serde
        self._trees = Trees(hashing)
        self._memo = memo
        self._cuts = cuts
        self._is_ours = is_ours = is_unchanged(serde, SafeSerializer)
        self._splits = is_ours or is_unchanged(serde, JsonPlusSerializer)
        self._dumps: Callable[[Any], tuple[str, bytes]] = serde.dumps_typed
        if self._splits and not is_ours:
            self._dumps = self._dumps_copy
        self._pack_element: Callable[[Any], bytes | None] = self._pack_in_list
        self._pack_message: Callable[[Any], bytes | None] = self._pack_in_list
        if is_ours and isinstance(serde, SafeSerializer):
            packer = packer_of(serde)
            self._pack_element, self._pack_message = packer.pack, packer.pack_object

    def not_plain(self, values: Mapping[str, Any]) -> list[str]:
        """Return the channels whose values do not stand for themselves in a manifest."""
        if not self._splits:
            return list(values)
        channels: list[str] = []
        if not _are_plain(list(values.values())):
            channels = [
                channel
                for channel, value in values.items()
                if type(value) not in PLAIN_TYPES or (type(value) is str and len(value) > _SHORT)
            ]
        rest = values if not channels else {**values, **dict.fromkeys(channels)}
        if not _is_packable(list(rest.values())):
            channels += [channel for channel, value in rest.items() if not _is_packable(value)]
        return channels

    def encode(
        self,
        value: Any,
        chunks: Chunks,
        inline: int,
        depth: int = 0,
        whole: bytes | None = None,
    ) -> Entry:
        """Return the entry of a value, and add the chunks that hold it.

        A list or a dict may change while it is serialized piece by piece, for other threads run in
        between. So it is serialized in one piece before, and the pieces must add up to that.

        Args:
            value: The value, as it is now.
            chunks: The chunks are added to these.
            inline: How many bytes it may have to stand in the entry itself.
            depth: In how many lists and dicts it is that were cut.
            whole: What it was serialized to before: it is encoded as it was then.
        """
        if self._splits and depth < NEST_DEPTH:
            if DeltaSnapshot is not None and type(value) is DeltaSnapshot:
                entry = self.encode(value.value, chunks, inline, depth)
                return entry._replace(kind=entry.kind | SNAPSHOT)
            if type(value) is list or type(value) is dict:
                items = plain_items(value)
                if items is not None and whole in (None, items.packed):
                    container = LIST if type(value) is list else DICT
                    entry_of_items = self._encode_plain(container, items, chunks, inline)
                    if entry_of_items is not None:
                        return entry_of_items
                if whole is None and not self._is_steady(value):
                    kind, whole = self._dumps(value)
                    if kind != _MSGPACK or len(whole) <= inline:
                        return self._encode_opaque(kind, whole, chunks, inline)
                    elements, whole = self._pack_at_one_moment(value, whole)
                else:
                    elements = self._pack_all(value, whole)
                if elements is not None:
                    return self._cut(elements, chunks, inline, depth)
        if whole is not None:
            return self._encode_opaque(_MSGPACK, whole, chunks, inline)
        kind, content = self._serialize_at_one_moment(value, inline)
        return self._encode_opaque(kind, bytes(content), chunks, inline)

    def _dumps_copy(self, value: Any) -> tuple[str, bytes]:
        """Serialize with LangGraph's own, which gets copies of all that it reads."""
        copy = None
        with suppress(RecursionError, TypeError):
            copy = copy_for_langgraph(value)
        if copy is None:
            return self._serde.dumps_typed(value)
        kind, content = self._serde.dumps_typed(copy)
        if kind == _PICKLE:  # which knows what is there twice; not by MessagePack again
            content = pickle.dumps(value)
        return kind, content

    def _pack_at_one_moment(
        self, value: list[Any] | dict[Any, Any], whole: bytes
    ) -> tuple[_Elements | None, bytes]:
        """Do what `_pack_all` does, and again if the value was changed meanwhile.

        Even to serialize it in one piece takes more than a moment, unless it is all plain. But what
        is the same twice was so when the first time ended.

        Returns:
            The elements, and what the value was serialized to in one piece at last.
        """
        for _ in range(_ATTEMPTS):
            elements = self._pack_all(value, whole)
            if elements is not None:
                return elements, whole
            kind, again = self._dumps(value)
            if again == whole or kind != _MSGPACK:
                break
            whole = again
        return None, whole

    def _serialize_at_one_moment(self, value: Any, inline: int) -> tuple[str, bytes]:
        """Serialize a value, and again if it is an object that was changed meanwhile."""
        kind, content = self._dumps(value)
        if len(content) <= inline or not self._is_ours or _is_taken_at_once(type(value)):
            return kind, content
        for _ in range(_ATTEMPTS):
            before = content
            kind, content = self._dumps(value)
            if content == before:
                break
        return kind, content

    def _is_steady(self, value: list[Any] | dict[Any, Any]) -> bool:
        """Return whether the elements of a value do not change while they are serialized.

        They are taken out of it in one piece, and of messages each is serialized in one piece.
        """
        is_long_list = isinstance(value, list) and len(value) > _FEW
        return is_long_list and any(self._memo.knows[type(last)] for last in value[-1:])

    def _encode_plain(
        self, kind: int, items: PlainItems, chunks: Chunks, inline: int
    ) -> Entry | None:
        """Return the entry of what is packed already; None if some of it is to be cut itself.

        Often some items more than the time before. Then nearly all runs are the same.
        """
        if len(items.packed) <= inline:
            return Entry(INLINE, _MSGPACK, items.packed, b"", 0)
        key = self._trees.hashing.secret, kind, bytes(items.content[:_FIRST_BYTES])
        known = self._cuts.items.get(key)
        is_longer = known is not None and len(items.content) > len(known.content)
        if known is None or not (is_longer and items.begin_with(known.content)):
            known = _CutItems(memoryview(b""), [], [], 0)
        new_runs = items.runs(len(known.content), known.length)
        if new_runs is None:
            return None
        header = chunking.array_header if kind == LIST else chunking.map_header
        leaves, runs = known.leaves.copy(), known.runs.copy()
        chunks.update(zip(leaves, runs, strict=True))
        for run in new_runs:
            runs.append((b"", b"".join((header(run.length), run.content))))
            leaves.append(self._trees.add(runs[-1], chunks))
        rest = new_runs[count_settled(new_runs) :]
        count = len(runs) - len(rest)
        content = items.content[: -sum(len(run.content) for run in rest)]
        length = items.length - sum(run.length for run in rest)
        self._cuts.items.put(key, _CutItems(content, leaves[:count], runs[:count], length))
        return self._trees.build(kind, "", leaves, chunks, len(items.packed))

    def _pack_all(self, value: list[Any] | dict[Any, Any], whole: bytes | None) -> _Elements | None:
        """Serialize the elements one by one.

        Returns None if one of them needs something other than MessagePack, or they do not add up to
        the whole.
        """
        if isinstance(value, list):
            return self._pack_list(value.copy(), whole)
        items = list(value.items())
        packed = self._pack_items(items)
        if packed is None:
            return None
        values, keys = [element for _, element in items], [key for key, _ in items]
        elements = _Elements(DICT, packed, values, keys)
        return elements if elements.is_all_of(whole) else None

    def _pack_list(self, values: list[Any], whole: bytes | None) -> _Elements | None:
        if _PLAIN_TYPES.issuperset(map(type, values)):
            with suppress(ormsgpack.MsgpackEncodeError):  # something in one of them is not so plain
                plain = [ormsgpack.packb(value, option=PLAIN_ONLY) for value in values]
                elements = _Elements(LIST, plain, values, None)
                # A `bytearray` packs as `bytes`, and then they do not add up.
                if elements.is_all_of(whole):
                    return elements
        memo, pack, pack_message = self._memo, self._pack_element, self._pack_message
        packed = []
        for value in values:
            is_known = memo.knows[type(value)]
            content = memo.pack(value, pack_message) if is_known else pack(value)
            if content is None:
                return None
            packed.append(content)
        elements = _Elements(LIST, packed, values, None)
        return elements if elements.is_all_of(whole) else None

    def _pack_in_list(self, value: Any) -> bytes | None:
        kind, single = self._dumps([value])
        return single[1:] if kind == _MSGPACK else None  # without the header of the list

    def _pack_items(self, items: list[tuple[Any, Any]]) -> list[bytes] | None:
        """Serialize the keys and values of a dict one by one, as `_pack_all` does."""
        packed = []
        for key, value in items:
            kind, single = self._dumps({key: value})
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
            return self._trees.build(kind, "", self._cut_again(packed, size, chunks), chunks, size)
        leaves: list[bytes] = []
        done = 0
        for index in [*nested, len(packed)]:
            for run in chunking.runs(packed[done:index]):
                cut = packed[done + run.start : done + run.stop]
                leaves.append(self._trees.add((b"", header(len(cut)) + b"".join(cut)), chunks))
            if index < len(packed):
                key = b"" if keys is None else self._pack_key(keys[index])
                leaves.append(self._add_nested(key, packed[index], values[index], chunks, depth))
            done = index + 1
        return self._trees.build(kind, "", leaves, chunks, size)

    def _pack_key(self, key: Any) -> bytes:
        return self._dumps({key: None})[1][1:-1]  # neither header nor value

    def _add_nested(
        self, packed_key: bytes, packed: bytes, value: Any, chunks: Chunks, depth: int
    ) -> bytes:
        """Add an element that is cut itself; a list's has no key."""
        whole = packed[len(packed_key) :]
        if type(value) in (list, dict):
            entry = self.encode(value, chunks, 0, depth + 1, whole)
        else:
            entry = self._encode_opaque(_MSGPACK, whole, chunks, 0)
        content = ormsgpack.packb([packed_key, pack_entry(entry)])
        return self._trees.add((entry.refs, content), chunks)

    def _cut_again(self, packed: list[bytes], size: int, chunks: Chunks) -> list[bytes]:
        """Cut the elements of a list into runs.

        Often they are those of the time before and some more. Then all runs but the last are the
        same, and need not be joined and hashed again.
        """
        known = self._cuts.lists.get((self._trees.hashing.secret, packed[0]))
        if known is None or packed[: len(known.packed)] != known.packed:
            known = _CutList([], [], [], 0, 0)
        leaves, runs, start = known.leaves[:-1], known.runs[:-1], known.last_start
        chunks.update(zip(leaves, runs, strict=True))
        for run in chunking.runs(packed, start):
            chunk = (b"", chunking.array_header(run.stop - run.start) + b"".join(packed[run]))
            leaves.append(self._trees.add(chunk, chunks))
            runs.append(chunk)
            start = run.start
        cut = _CutList(packed, leaves, runs, start, size)
        self._cuts.lists.put((self._trees.hashing.secret, packed[0]), cut)
        return leaves

    def _encode_opaque(self, kind: str, content: bytes, chunks: Chunks, inline: int) -> Entry:
        if len(content) <= inline:
            return Entry(INLINE, kind, content, b"", 0)
        leaves = [self._trees.add((b"", piece), chunks) for piece in chunking.pieces(content)]
        return self._trees.build(OPAQUE, kind, leaves, chunks, len(content))


def _is_taken_at_once(kind: type) -> bool:
    """Return whether values of a type have nothing in them that other threads may change."""
    return kind in _IN_ONE_PIECE or array_values.describer_of(kind) is not None


def _are_plain(values: list[Any]) -> bool:
    """Return whether all values are numbers and short texts: without a step in Python for each."""
    types = list(map(type, values))
    texts = compress(values, map(is_, types, repeat(str)))
    return PLAIN_TYPES.issuperset(types) and max(map(len, texts), default=0) <= _SHORT


def _is_packable(value: Any) -> bool:
    """Return whether MessagePack has a value: it has no long integers, and no lone surrogates."""
    try:
        ormsgpack.packb(value)
    except ormsgpack.MsgpackEncodeError:
        return False
    return True
