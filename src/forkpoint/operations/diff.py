"""What differs between two states, read from the chunks that differ and from no others.

Values are compared by their entries in the manifests: what has the same digests is the same. Where
two lists or dicts differ, their trees are followed side by side, from the top. What both have, a
node or a run, is left out on both sides without being read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from forkpoint.encoding.codec import (
    DICT,
    LIST,
    SNAPSHOT,
    Chunks,
    Codec,
    Entry,
    Manifest,
    gather,
    split_refs,
)
from forkpoint.encoding.entries import Volume
from forkpoint.errors import CheckpointNotFound
from forkpoint.inputs import Address
from forkpoint.langgraph_rules import is_internal, rebuilt_channels
from forkpoint.operations.context import Context
from forkpoint.operations.places import at_place, existing_thread, place_of
from forkpoint.operations.read import consistently
from forkpoint.pictures.shown import StateDiff
from forkpoint.results import ChannelDiff
from forkpoint.storage.interface import Session
from forkpoint.storage.row_checksums import metadata_of, open_checkpoint
from forkpoint.storage.rows import StoredCheckpoint


class _Side(NamedTuple):
    """One of two states."""

    codec: Codec
    found: StoredCheckpoint
    versions: Mapping[str, Any]
    manifest: Manifest
    rebuilt: set[str]


class _Part(NamedTuple):
    """What of a value the other side does not have: some leaves, or the value as a whole."""

    entry: Entry
    leaves: list[bytes] | None


_Pair = tuple[_Part, _Part]


def diff(context: Context, first: Address, second: Address) -> StateDiff:
    """Return how the state differs between two checkpoints, of any threads."""
    context.prepare()

    def read(session: Session) -> tuple[_Side, _Side, dict[str, _Pair], Chunks]:
        sides = _side(context, session, first), _side(context, session, second)
        pairs: dict[str, _Pair] = {}
        stored: Chunks = {}
        for channel in _names(*sides):
            before, after = (side.manifest.get(channel) for side in sides)
            if before is not None and after is not None and _plain(before) != _plain(after):
                pairs[channel] = _parts(session, sides, (before, after), stored)
        for position, side in enumerate(sides):
            refs = [pair[position] for pair in pairs.values()]
            wanted = [
                part.entry.refs if part.leaves is None else b"".join(part.leaves) for part in refs
            ]
            other = sides[1 - position]
            wanted += [
                entry.refs
                for channel, entry in side.manifest.items()
                if channel not in other.manifest
            ]
            family = side.found.thread.family
            stored |= gather(wanted, partial(session.chunks.get, family))
        return *sides, pairs, stored

    def load(read: tuple[_Side, _Side, dict[str, _Pair], Chunks]) -> StateDiff:
        before, after, pairs, stored = read
        with at_place(after.found.thread_id, *place_of(after.found.row)):
            return StateDiff(
                {
                    channel: _channel(channel, before, after, pairs.get(channel), stored)
                    for channel in _names(before, after)
                }
            )

    return consistently(context, read, load)


def _side(context: Context, session: Session, address: Address) -> _Side:
    found = session.checkpoints.get(*address)
    if found is None:
        existing_thread(session, address.thread_id)
        raise CheckpointNotFound(
            f"thread {address.thread_id!r} has no checkpoint {address.checkpoint_id!r}"
        )
    with at_place(found.thread_id, *place_of(found.row)):
        codec = context.codec_of(found.thread)
        body, manifest = open_checkpoint(codec, found.row)
    versions = body.get("channel_versions", {})
    return _Side(codec, found, versions, manifest, _rebuilt(found, versions, manifest))


def _rebuilt(found: StoredCheckpoint, versions: Mapping[str, Any], manifest: Manifest) -> set[str]:
    return rebuilt_channels(metadata_of(found.row), versions, manifest)


def _names(before: _Side, after: _Side) -> list[str]:
    names = before.manifest.keys() | after.manifest.keys() | before.rebuilt | after.rebuilt
    return sorted(name for name in names if not is_internal(name))


def _plain(entry: Entry) -> Entry:
    """Return an entry as it is where the value is no snapshot of a `DeltaChannel`."""
    return entry._replace(kind=entry.kind & ~SNAPSHOT)


def _parts(
    session: Session,
    sides: tuple[_Side, _Side],
    entries: tuple[Entry, Entry],
    stored: Chunks,
) -> _Pair:
    """Return what each of two values has that the other does not, but for runs that both have."""
    kinds = {entry.kind & ~SNAPSHOT for entry in entries}
    if kinds not in ({LIST}, {DICT}):
        return _Part(entries[0], None), _Part(entries[1], None)
    levels = [split_refs(entry.refs) for entry in entries]
    heights = [entry.height for entry in entries]
    volumes = Volume(), Volume()
    for height in range(max(heights), 0, -1):
        if heights[0] == heights[1]:
            levels = _without_common(*levels)
        for position, side in enumerate(sides):
            if heights[position] == height:
                nodes = levels[position]
                family = side.found.thread.family
                stored |= session.chunks.get(family, set(nodes), follow=False)
                with at_place(side.found.thread_id, *place_of(side.found.row)):
                    levels[position] = side.codec.next_level(nodes, stored, volumes[position])
                heights[position] -= 1
    first, second = _without_common(*levels)
    return _Part(entries[0], first), _Part(entries[1], second)


def _without_common(first: list[Any], second: list[Any]) -> list[list[Any]]:
    """Return two lists without the elements that both have, as often as both have them."""
    common = Counter(first) & Counter(second)
    return [_less(first, common.copy()), _less(second, common.copy())]


def _less(elements: Iterable[Any], left_out: Counter[Any]) -> list[Any]:
    kept = []
    for element in elements:
        if left_out[element]:
            left_out[element] -= 1
        else:
            kept.append(element)
    return kept


def _channel(
    channel: str,
    before: _Side,
    after: _Side,
    pair: _Pair | None,
    stored: Chunks,
) -> ChannelDiff:
    if channel in before.rebuilt or channel in after.rebuilt:
        is_same = before.versions.get(channel) == after.versions.get(channel)
        return ChannelDiff("unchanged" if is_same else "changed", is_rebuilt=True)
    if channel not in before.manifest:
        return ChannelDiff("added", after=_whole(after, channel, stored))
    if channel not in after.manifest:
        return ChannelDiff("removed", before=_whole(before, channel, stored))
    if pair is None:
        return ChannelDiff("unchanged")
    old, new = (
        _decoded(side.codec, part, stored) for side, part in zip((before, after), pair, strict=True)
    )
    if type(old) is list and type(new) is list:
        return _lists(before.codec, old, new)
    if type(old) is dict and type(new) is dict:
        return _dicts(before.codec, old, new)
    if before.codec.fingerprint(old) == after.codec.fingerprint(new):
        return ChannelDiff("unchanged")  # families that encrypt have digests of their own
    return ChannelDiff("changed", before=old, after=new)


def _whole(side: _Side, channel: str, stored: Chunks) -> Any:
    return _decoded(side.codec, _Part(side.manifest[channel], None), stored)


def _decoded(codec: Codec, part: _Part, stored: Chunks) -> Any:
    if part.leaves is not None:
        return codec.decode_leaves(part.entry.kind & ~SNAPSHOT, part.leaves, stored)
    value = codec.decode_entry(part.entry, stored)
    return value.value if part.entry.kind & SNAPSHOT else value


def _lists(codec: Codec, old: list[Any], new: list[Any]) -> ChannelDiff:
    """Compare what two lists that differ do not have in common."""
    known = {codec.fingerprint(element): element for element in (*old, *new)}
    before, after = ([codec.fingerprint(element) for element in one] for one in (old, new))
    # Where nothing is left of either, it is whole runs that are in another order.
    is_changed = before != after or not before
    gone, come = ([known[one] for one in rest] for rest in _without_common(before, after))
    first, last = _versions(gone), _versions(come)
    both = [id_ for id_ in first if id_ in last]
    old_ones, new_ones = {first[id_] for id_ in both}, {last[id_] for id_ in both}
    return ChannelDiff(
        "changed" if is_changed else "unchanged",
        added=tuple(one for position, one in enumerate(come) if position not in new_ones),
        removed=tuple(one for position, one in enumerate(gone) if position not in old_ones),
        changed={id_: (gone[first[id_]], come[last[id_]]) for id_ in both},
    )


def _versions(elements: list[Any]) -> dict[str, int]:
    """Return where the elements are that have an id: of those with the same, the last."""
    found = ((_identity(element), position) for position, element in enumerate(elements))
    return {id_: position for id_, position in found if id_ is not None}


def _identity(element: Any) -> str | None:
    """Return what says that two elements of lists are versions of one, as messages have it."""
    found = element.get("id") if isinstance(element, dict) else getattr(element, "id", None)
    return found if isinstance(found, str) else None


def _dicts(codec: Codec, old: dict[Any, Any], new: dict[Any, Any]) -> ChannelDiff:
    changed = {
        key: (old[key], new[key])
        for key in old
        if key in new and codec.fingerprint(old[key]) != codec.fingerprint(new[key])
    }
    added = {key: value for key, value in new.items() if key not in old}
    removed = {key: value for key, value in old.items() if key not in new}
    status = "changed" if changed or added or removed else "unchanged"
    return ChannelDiff(status, added=added, removed=removed, changed=changed)  # type: ignore[arg-type]
