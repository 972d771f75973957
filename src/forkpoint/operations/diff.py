"""What differs between two states, read from the chunks that differ and from no others.

Values are compared by their entries in the manifests: what has the same digests is the same. Where
two lists or dicts differ, their trees are followed side by side, from the top. What both have, a
node or a run, is left out on both sides without being read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from forkpoint import untrusted
from forkpoint.encoding.chunk import Chunks, gather
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import DICT, LIST, SNAPSHOT, Entry, Volume, split_refs
from forkpoint.encoding.manifest import Manifest
from forkpoint.inputs import Address
from forkpoint.langgraph_rules import is_internal, rebuilt_channels
from forkpoint.operations.context import Context
from forkpoint.operations.delta_channels import History, load_history, read_history
from forkpoint.operations.places import at_place, existing_checkpoint, place_of
from forkpoint.operations.read import consistently
from forkpoint.pictures.shown import StateDiff
from forkpoint.results import ChannelDiff
from forkpoint.storage.interface import Session
from forkpoint.storage.row_checksums import metadata_of, open_checkpoint
from forkpoint.storage.rows import StoredCheckpoint


class _Side(NamedTuple):
    """One of two states."""

    codec: Codec
    checkpoint: StoredCheckpoint
    versions: Mapping[str, Any]
    manifest: Manifest
    rebuilt: set[str]
    """The channels whose values are rebuilt from ancestors."""

    @property
    def place(self) -> tuple[str, str, str]:
        """The thread, the namespace and the id of the checkpoint."""
        return self.checkpoint.thread_id, *place_of(self.checkpoint.row)


class _Part(NamedTuple):
    """What the other side lacks of a value: some leaves of its tree, or the value as a whole."""

    entry: Entry
    leaves: list[bytes] | None
    """None for the value as a whole."""

    @property
    def refs(self) -> bytes:
        """The digests of the chunks to read."""
        return self.entry.refs if self.leaves is None else b"".join(self.leaves)


_Pair = tuple[_Part, _Part]


class _Reading(NamedTuple):
    """What is read of two states."""

    before: _Side
    after: _Side
    pairs: dict[str, _Pair]
    """The channels that both sides store, and whose entries differ."""
    chunks: Chunks
    alike: set[str]
    """Channels that are rebuilt, and known to have the same value on both sides."""
    histories: Mapping[str, Sequence[History | None]]
    """What other ones of the same version are rebuilt from, on each side."""


def diff(context: Context, first: Address, second: Address) -> StateDiff:
    """Return how the state differs between two checkpoints, of any threads.

    Raises:
        ThreadNotFound: There is no such thread.
        CheckpointNotFound: There is no such checkpoint.
    """
    context.prepare()
    return consistently(
        context, lambda session: _read(context, session, first, second), partial(_compare, context)
    )


def _read(context: Context, session: Session, first: Address, second: Address) -> _Reading:
    sides = _side(context, session, first), _side(context, session, second)
    pairs: dict[str, _Pair] = {}
    chunks: Chunks = {}
    for channel in _names(*sides):
        before, after = (side.manifest.get(channel) for side in sides)
        if before is not None and after is not None and _plain(before) != _plain(after):
            pairs[channel] = _parts(session, sides, (before, after), chunks)
    for position, side in enumerate(sides):
        other = sides[1 - position]
        refs = [pair[position].refs for pair in pairs.values()]
        refs += [entry.refs for name, entry in side.manifest.items() if name not in other.manifest]
        chunks |= gather(refs, partial(session.chunks.get, side.checkpoint.thread.family))
    alike, unknown = _alike(session, *sides)
    histories = {
        channel: tuple(
            read_history(context, session, Address(*side.place), [channel]) for side in sides
        )
        for channel in unknown
    }
    return _Reading(*sides, pairs, chunks, alike, histories)


def _compare(context: Context, reading: _Reading) -> StateDiff:
    before, after, pairs, chunks, alike, histories = reading

    def compared(channel: str) -> ChannelDiff:
        if channel not in before.rebuilt | after.rebuilt:
            return _channel(channel, before, after, pairs.get(channel), chunks)
        is_same = channel in alike or _same_history(context, channel, histories.get(channel, ()))
        return ChannelDiff("unchanged" if is_same else "changed", is_rebuilt=True)

    with at_place(*after.place):
        return StateDiff({channel: compared(channel) for channel in _names(before, after)})


def _same_history(context: Context, channel: str, histories: Sequence[History | None]) -> bool:
    """Return whether a channel is rebuilt from the same value and the same writes."""
    fingerprints = set()
    for history in histories:
        loaded = load_history(context, history, [channel])[channel]
        parts = [*([loaded["seed"]] if "seed" in loaded else []), None]
        parts += [value for _, _, value in loaded["writes"]]
        fingerprints.add(tuple(map(context.codec.fingerprint, parts)))
    return len(fingerprints) == 1


def _side(context: Context, session: Session, address: Address) -> _Side:
    checkpoint = existing_checkpoint(session, address)
    with at_place(checkpoint.thread_id, *place_of(checkpoint.row)):
        codec = context.codec_of(checkpoint.thread)
        body, manifest = open_checkpoint(codec, checkpoint.row)
    versions = body.get("channel_versions", {})
    rebuilt = rebuilt_channels(metadata_of(checkpoint.row), versions, manifest)
    return _Side(codec, checkpoint, versions, manifest, rebuilt)


def _alike(session: Session, before: _Side, after: _Side) -> tuple[set[str], set[str]]:
    """Return the channels that are rebuilt, and have the same value on both sides.

    Of one version they have one value on the path to a checkpoint. On another path they may have
    another one: threads that were forked count on from the same version. So there must be a
    checkpoint on both paths since which neither changed.

    Also returns those of the same version of which this does not tell.
    """
    channels = {
        channel
        for channel in before.rebuilt | after.rebuilt
        if before.versions.get(channel) == after.versions.get(channel)
    }
    if not channels or before.place == after.place:
        return channels, set()
    first, last = (_unchanged_since(session, side, channels) for side in (before, after))
    alike = {channel for channel in channels if not first[channel].isdisjoint(last[channel])}
    return alike, (channels - alike) & before.rebuilt & after.rebuilt


def _unchanged_since(
    session: Session, side: _Side, channels: Collection[str]
) -> Mapping[str, set[str]]:
    """Return the ids of a checkpoint and its ancestors in which a channel has the same version."""
    row = side.checkpoint.row
    ids = {channel: {row.checkpoint_id} for channel in channels}
    same, passed = set(channels), {row.checkpoint_id}
    ancestors = session.checkpoints.ancestors(side.checkpoint.thread, *place_of(row))
    next(ancestors, None)  # itself
    for ancestor in ancestors:
        with at_place(side.checkpoint.thread_id, *place_of(ancestor)):
            body, _ = open_checkpoint(side.codec, ancestor)
        versions = body.get("channel_versions", {})
        same = {name for name in same if versions.get(name) == side.versions.get(name)}
        if not same or ancestor.checkpoint_id in passed:  # one that was put as its own ancestor
            break
        passed.add(ancestor.checkpoint_id)
        for name in same:
            ids[name].add(ancestor.checkpoint_id)
    return ids


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
    chunks: Chunks,
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
                family = side.checkpoint.thread.family
                chunks |= session.chunks.get(family, set(nodes), follow=False)
                with at_place(*side.place):
                    levels[position] = side.codec.next_level(nodes, chunks, volumes[position])
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
    chunks: Chunks,
) -> ChannelDiff:
    if channel not in before.manifest:
        return ChannelDiff("added", after=_whole(after, channel, chunks))
    if channel not in after.manifest:
        return ChannelDiff("removed", before=_whole(before, channel, chunks))
    if pair is None:
        return ChannelDiff("unchanged")
    old, new = (
        _decoded(side.codec, part, chunks) for side, part in zip((before, after), pair, strict=True)
    )
    if type(old) is list and type(new) is list:
        return _lists(before.codec, old, new)
    if type(old) is dict and type(new) is dict:
        return _dicts(before.codec, old, new)
    if before.codec.fingerprint(old) == after.codec.fingerprint(new):
        return ChannelDiff("unchanged")  # families that encrypt have digests of their own
    return ChannelDiff("changed", before=old, after=new)


def _whole(side: _Side, channel: str, chunks: Chunks) -> Any:
    return _decoded(side.codec, _Part(side.manifest[channel], None), chunks)


def _decoded(codec: Codec, part: _Part, chunks: Chunks) -> Any:
    if part.leaves is not None:
        return codec.decode_leaves(part.entry.kind & ~SNAPSHOT, part.leaves, chunks)
    value = codec.decode_entry(part.entry, chunks)
    return value.value if part.entry.kind & SNAPSHOT else value


def _lists(codec: Codec, old: list[Any], new: list[Any]) -> ChannelDiff:
    """Compare what two lists that differ do not have in common."""
    elements = {codec.fingerprint(element): element for element in (*old, *new)}
    before, after = ([codec.fingerprint(element) for element in part] for part in (old, new))
    # Where nothing is left of either, it is whole runs that are in another order.
    is_changed = before != after or not before
    removed, added = (
        [elements[fingerprint] for fingerprint in rest] for rest in _without_common(before, after)
    )
    first, last = _positions(removed), _positions(added)
    both = [id_ for id_ in first if id_ in last]
    old_versions, new_versions = {first[id_] for id_ in both}, {last[id_] for id_ in both}
    return ChannelDiff(
        "changed" if is_changed else "unchanged",
        added=_except(added, new_versions),
        removed=_except(removed, old_versions),
        changed={id_: (removed[first[id_]], added[last[id_]]) for id_ in both},
    )


def _except(elements: list[Any], positions: set[int]) -> tuple[Any, ...]:
    """Return elements without those at some positions."""
    return tuple(element for position, element in enumerate(elements) if position not in positions)


def _positions(elements: list[Any]) -> dict[str, int]:
    """Return the position of each element that has an id; of those with the same id, the last."""
    ids = ((_id_of(element), position) for position, element in enumerate(elements))
    return {id_: position for id_, position in ids if id_ is not None}


def _id_of(element: Any) -> str | None:
    """Return the id of an element, such as a message: elements of one id are versions of one."""
    id_ = untrusted.field(element, "id")
    return id_ if isinstance(id_, str) else None


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
