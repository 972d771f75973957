"""What a fork takes along of a thread: which checkpoints, and which of their writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from forkpoint import langgraph_rules
from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.hashing import new_salt
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.encoding.manifest import Manifest
from forkpoint.errors import (
    CheckpointNotFound,
    InvalidInput,
)
from forkpoint.inputs import Address, as_json, merged_description
from forkpoint.operations.context import Context
from forkpoint.operations.places import (
    at_place,
    existing_thread,
    place_of,
    replay_bound,
)
from forkpoint.previews import preview_after
from forkpoint.storage.interface import Session
from forkpoint.storage.plan import Place, reopens
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.row_checksums import (
    check_end,
    checkpoint_receipt,
    metadata_of,
    open_checkpoint,
    preview_in,
    rebind,
    stored_chunks,
    stored_row,
)
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    ForkRequest,
    Moment,
    StoredCheckpoint,
    ThreadRef,
    WriteRow,
)

NextVersion = Callable[[Any, None], Any]


class NewFork(NamedTuple):
    """A fork to be made, checked."""

    source: Address
    target_id: str
    values: Mapping[str, Any]
    metadata: Mapping[str, Any]
    whole_path: bool
    next_version: NextVersion


class Source(NamedTuple):
    """The checkpoint that a fork begins at, as it was read, and opened."""

    stored: StoredCheckpoint
    codec: Codec
    body: dict[str, Any]
    manifest: Manifest

    @property
    def row(self) -> CheckpointRow:
        return self.stored.row

    @property
    def thread(self) -> ThreadRef:
        return self.stored.thread


class Parts(NamedTuple):
    """What a fork is made of."""

    source: Source
    moment: Moment
    heads: Sequence[CheckpointRow]
    """The checkpoints of subgraphs that it goes on with."""
    rows: Mapping[Place, CheckpointRow]
    """Its checkpoints, by place."""


def _runs_again(new: NewFork, moment: Moment) -> bool:
    return bool(new.values) or not moment.is_head


def heads_of(source: Source, moment: Moment, new: NewFork) -> list[CheckpointRow]:
    """Return the checkpoints of subgraphs that a fork goes on with."""
    before = _before_step(moment, source.row)
    if _runs_again(new, moment):
        return [head._replace(restarts=True) for head in before]
    heads = _of_subgraphs(moment, source.row)
    if new.whole_path:
        return heads
    # A time travel to the checkpoint, and a fork of the fork, go on with those from before it.
    return list({place_of(head): head for head in (*before, *heads)}.values())


def request_of(context: Context, session: Session, new: NewFork, parts: Parts) -> ForkRequest:
    source, moment, heads, rows = parts
    thread, row = source.thread, source.row
    ends = {place_of(end) for end in (row, *heads)} if _runs_again(new, moment) else set()
    writes = _writes(session, source, rows, ends)
    target = source.codec.root.of_salt(new_salt(thread.salt))
    with at_place(thread.thread_id, *place_of(row)):
        target_rows = rebind(rows.values(), source.codec, target)
        target_writes = rebind(writes, source.codec, target)
    chunks: Chunks = {}
    if new.values:
        top, chunks = _with_values(target, source, new)
        target_rows.append(top)
        before = preview_in(source.codec, source.stored.writes, row.checkpoint_id)
        preview = preview_after(before, new.values, context.preview)
        target_writes.append(checkpoint_receipt(target, top, preview))
    return ForkRequest(
        thread,
        source.stored.thread_id,
        new.target_id,
        row.checkpoint_id,
        thread.owner,
        _described(moment.described, new.metadata),
        "idle" if new.values else _status(session, source, target_writes),
        # The copies do not belong to the runs that made the originals.
        [target_row._replace(run_id=None) for target_row in target_rows],
        target_writes,
        chunks,
        target.hashing,
        target.salt,
    )


def source_of(context: Context, session: Session, address: Address) -> Source:
    stored = session.checkpoints.get(*address)
    if stored is None:
        existing_thread(session, address.thread_id)
        which = "" if address.checkpoint_id is None else f" {address.checkpoint_id!r}"
        raise CheckpointNotFound(f"thread {address.thread_id!r} has no checkpoint{which}")
    with at_place(stored.thread_id, *place_of(stored.row)):
        codec = context.codec_of(stored.thread)
        return Source(stored, codec, *open_checkpoint(codec, stored.row))


def moment_of(session: Session, source: Source) -> Moment:
    """Return what there was around the checkpoint, with what the source's record says."""
    thread, row = source.thread, source.row
    moment = session.checkpoints.moment(thread, row.checkpoint_id, replay_bound(row))
    source.codec.hashing.check_description(
        thread.thread_id, thread.salt, moment.checksums, moment.source, moment.described
    )
    return moment


def rows_of(
    context: Context,
    session: Session,
    source: Source,
    heads: Sequence[CheckpointRow],
    whole_path: bool,
) -> dict[Place, CheckpointRow]:
    """Return the checkpoints that a fork takes along, by place.

    Args:
        context: The store.
        session: What they are read with.
        source: The checkpoint that the fork begins at.
        heads: The checkpoints of subgraphs that it goes on with.
        whole_path: Whether the ancestors are to be seen in the fork.
    """
    ends = [source.row, *heads]
    rows = {place_of(end): end for end in ends}
    for end in ends:
        for ancestor in _ancestors(context, session, source.stored, end, whole_path):
            rows.setdefault(place_of(ancestor), ancestor)
    return rows


def _writes(
    session: Session,
    source: Source,
    rows: Mapping[Place, CheckpointRow],
    ends: Collection[Place],
) -> list[WriteRow]:
    """Return the writes that a fork takes along.

    Args:
        session: What they are read with.
        source: The checkpoint that the fork begins at.
        rows: All checkpoints that the fork takes along.
        ends: Those after which the step runs again: their finished tasks stay behind.
    """
    others = [place for place in rows if place != place_of(source.row)]
    writes = [*session.checkpoints.writes(source.thread, others), *source.stored.writes]
    return [
        write
        for write in writes
        if (write[:2] not in ends or reopens(write.task_id, write.idx))
        and not (write.idx == RECEIPT and rows[write[:2]].hidden)
    ]


def _described(source: Description, metadata: Mapping[str, Any]) -> Description:
    """Return what the record of a fork says: the source's metadata and
    time to live, and the metadata of the fork."""
    merged = merged_description(source.metadata, metadata)
    fixed_keys = sorted({*source.fixed_keys, *metadata})
    return source._replace(label=None, tags=(), metadata=merged, fixed_keys=fixed_keys)


def _of_subgraphs(moment: Moment, row: CheckpointRow) -> list[CheckpointRow]:
    """Return the newest checkpoints of subgraphs with which the head of a thread goes on."""
    heads, head_id = _newest(moment.heads), row.checkpoint_id
    states = {
        head.checkpoint_ns: head.checkpoint_id
        for head in heads
        if langgraph_rules.is_stateful(head.checkpoint_ns)
    }

    def goes_on(head: CheckpointRow) -> bool:
        """Return whether a subgraph keeps its state, or is called by a task that goes on."""
        if head.checkpoint_ns in states:
            return True
        # Its namespace is of one task. That is of the newest checkpoint of a graph around it, which
        # may have waited there for long.
        around = states.get(langgraph_rules.state_around(head.checkpoint_ns), head_id)
        return head.checkpoint_id > min(head_id, around)

    return [head for head in heads if goes_on(head)]


def _before_step(moment: Moment, row: CheckpointRow) -> list[CheckpointRow]:
    """Return the checkpoints of subgraphs from before the step that runs again."""
    bound = replay_bound(row)
    return _newest(
        head
        for head in moment.heads
        if langgraph_rules.is_stateful(head.checkpoint_ns) and head.checkpoint_id < bound
    )


def _newest(heads: Iterable[CheckpointRow]) -> list[CheckpointRow]:
    """Return the newest checkpoint of each namespace."""
    newest: dict[str, CheckpointRow] = {}
    for head in heads:
        known = newest.get(head.checkpoint_ns)
        if known is None or head.checkpoint_id > known.checkpoint_id:
            newest[head.checkpoint_ns] = head
    return list(newest.values())


def _ancestors(
    context: Context,
    session: Session,
    source: StoredCheckpoint,
    row: CheckpointRow,
    whole_path: bool,
) -> list[CheckpointRow]:
    """Return the ancestors of a checkpoint that a fork takes along.

    These are those that its `DeltaChannel`s are rebuilt from, hidden, and with `whole_path` all.
    """
    _, rebuilt = channels_of(context, source, row)
    missing = set(rebuilt)
    if not missing and not whole_path:
        return []
    oldest = row
    path: dict[Place, CheckpointRow] = {}
    ancestors = session.checkpoints.ancestors(source.thread, row.checkpoint_ns, row.checkpoint_id)
    next(ancestors, None)  # itself
    for ancestor in ancestors:
        place = place_of(ancestor)
        if place in path or place == place_of(row):
            break  # one that was put as its own ancestor
        is_seen = whole_path and not ancestor.hidden
        if not missing and not is_seen:
            break
        path[place] = ancestor._replace(hidden=not is_seen)
        oldest = ancestor
        stored, rebuilt = channels_of(context, source, ancestor)
        missing -= stored
        if is_seen:
            missing |= rebuilt
    else:
        with at_place(source.thread_id, *place_of(row)):
            check_end(oldest, missing & rebuilt)
    return list(path.values())


def channels_of(
    context: Context, source: StoredCheckpoint, row: CheckpointRow
) -> tuple[set[str], set[str]]:
    """Return the channels that a checkpoint stores, and those rebuilt from its ancestors."""
    with at_place(source.thread_id, *place_of(row)):
        body, manifest = open_checkpoint(context.codec_of(source.thread), row)
    versions = body.get("channel_versions", {})
    rebuilt = langgraph_rules.rebuilt_channels(metadata_of(row), versions, manifest)
    return set(manifest), rebuilt


def _with_values(codec: Codec, source: Source, new: NewFork) -> tuple[CheckpointRow, Chunks]:
    """Return a checkpoint on top of the source's, in which channels have other values.

    Args:
        codec: That of the fork.
        source: The checkpoint below.
        new: The fork, with the values.
    """
    manifest = source.manifest
    versions = dict(source.body.get("channel_versions", {}))
    _check_known(new.values, versions.keys() | manifest.keys())
    metadata = langgraph_rules.update_metadata(metadata_of(source.row))
    counters = langgraph_rules.delta_counters(metadata)
    newest = _newest_version(versions)
    values: dict[str, Any] = dict.fromkeys(manifest)
    for channel, value in new.values.items():
        versions[channel] = new.next_version(newest, None)
        if counters.pop(channel, None) is not None and DeltaSnapshot is not None:
            value = DeltaSnapshot(value)
        values[channel] = value
    metadata = langgraph_rules.with_counters(metadata, counters)
    updated = source.body.get("updated_channels")
    checkpoint = {
        **source.body,
        "id": langgraph_rules.new_checkpoint_id(),
        "ts": datetime.now(timezone.utc).isoformat(),
        "channel_versions": versions,
        "channel_values": values,
        # LangGraph looks only here for what a run goes on with; None is everywhere.
        "updated_channels": updated and sorted({*updated, *new.values}),
    }
    encoded, _ = codec.encode_checkpoint(checkpoint, manifest.without(new.values))
    parent_id, text = source.row.checkpoint_id, as_json(metadata, "metadata")
    top = CheckpointRow("", checkpoint["id"], parent_id, None, text, b"", b"")
    return stored_row(codec, top, encoded), stored_chunks(codec, encoded.chunks)


def _check_known(values: Mapping[str, Any], channels: Collection[str]) -> None:
    unknown = sorted(values.keys() - set(channels))
    if unknown:
        known = sorted(name for name in channels if not langgraph_rules.is_internal(name))
        raise InvalidInput(f"unknown channels in values: {unknown}; there are {known}")


def _newest_version(versions: Mapping[str, Any]) -> Any:
    try:
        return max(versions.values(), default=None)
    except TypeError:
        raise InvalidInput(
            f"some versions of the channels are numbers, and others are strings: {versions!r:.200}"
        ) from None


def _status(session: Session, source: Source, writes: Sequence[WriteRow]) -> str:
    """Return the status of a fork that goes on with these writes."""
    place = place_of(source.row)
    kinds = {write.idx for write in writes if write[:2] == place}
    recorded: str | None = None
    if langgraph_rules.is_ambiguous(kinds):  # so it is the head: elsewhere no error comes along
        record = session.records.get(source.stored.thread_id)
        recorded = record and record.status
    return langgraph_rules.status_of(kinds, recorded)
