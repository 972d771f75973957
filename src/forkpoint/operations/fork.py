"""Forking: threads made of others, without copying a chunk, and how they are related.

What a fork takes along decides how it goes on. At the head of a thread that is everything that the
thread would go on with: pending writes as they are, and the newest state of each subgraph. At an
older checkpoint it is what LangGraph's own time travel would use: the step runs again, so finished
work and old answers stay behind, and the state of subgraphs is the newest from before that moment,
marked as one to which the step applies an input. With new values the step runs again, too.
What a `DeltaChannel` is rebuilt from comes along out of sight, from the ancestors on the path.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base.id import uuid6

from forkpoint import clocks
from forkpoint.encoding.codec import Chunks, Codec, Manifest
from forkpoint.encoding.hashing import new_salt
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.errors import (
    CheckpointNotFound,
    CorruptChunk,
    InvalidInput,
    StorageBusy,
    ThreadExists,
)
from forkpoint.inputs import Address, as_json
from forkpoint.operations.copy import copy
from forkpoint.operations.operations import (
    Context,
    at_place,
    existing_thread,
    place_of,
    replays_before,
    thread_config,
)
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.outline import is_internal
from forkpoint.pictures.shown import FamilyTree
from forkpoint.previews import preview_after
from forkpoint.results import FamilyNode, LineageEntry
from forkpoint.runtime.steps import Steps
from forkpoint.storage import plan as removal
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.record_checksums import check_kinship
from forkpoint.storage.row_checksums import (
    check_end,
    checkpoint_receipt,
    checkpoint_with_checksum,
    json_object,
    metadata_of,
    moved,
    open_checkpoint,
    preview_in,
)
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    FamilyMember,
    ForkRequest,
    Moment,
    StoredCheckpoint,
    WriteRow,
)

_LOOKS = 5  # before it is believed that something is damaged
_ATTEMPTS = 20  # to fork a thread that changes again and again meanwhile

NextVersion = Callable[[Any, None], Any]


class NewFork(NamedTuple):
    """A fork to be made, checked."""

    source: Address
    target_id: str
    values: Mapping[str, Any]
    metadata: Mapping[str, Any]
    whole_path: bool
    next_version: NextVersion


def fork(context: Context, new: NewFork) -> RunnableConfig:
    """Make a thread that begins at a checkpoint of another."""
    context.prepare()
    damage: CorruptChunk | None = None
    for attempt in range(_ATTEMPTS):
        try:
            with context.storage.writing() as session:
                _fork(context, session, new)
        except Stale:
            time.sleep(0.001 * attempt)  # at once for the first time
            continue
        except CorruptChunk as error:
            # Where there are no transactions, what others are removing looks like damage.
            if attempt >= _LOOKS and damage is not None and str(error) == str(damage):
                raise
            damage = error
            time.sleep(0.001 * attempt)
            continue
        context.memory.threads.pop(new.target_id)
        return thread_config(new.target_id)
    if damage is not None:
        raise damage
    raise StorageBusy(f"thread {new.source.thread_id!r} changed {_ATTEMPTS} times in a row")


def _fork(context: Context, session: Session, new: NewFork) -> None:
    found = _found(session, new.source)
    thread, row = found.thread, found.row
    with at_place(found.thread_id, *place_of(row)):
        codec = context.codec_of(thread)
        opened = open_checkpoint(codec, row)
    target = codec.root.of_salt(new_salt(thread.salt))
    moment = session.checkpoints.moment(thread, row.checkpoint_id, replays_before(row))
    identity = thread.thread_id, thread.salt
    codec.hashing.check_description(*identity, moment.checksums, moment.source, moment.described)
    runs_again = bool(new.values) or not moment.is_head
    heads = _before_step(moment, row) if runs_again else _of_subgraphs(moment, row)
    taken = {place_of(one): one for one in (row, *heads)}
    for one in (row, *heads):
        for ancestor in _ancestors(context, session, found, one, new.whole_path):
            taken.setdefault(place_of(ancestor), ancestor)
    writes = session.checkpoints.writes(
        thread, [place for place in taken if place != place_of(row)]
    )
    writes += found.writes
    ends = {place_of(one) for one in (row, *heads)} if runs_again else set()
    hidden = {place for place, one in taken.items() if one.hidden}
    writes = [
        write
        for write in writes
        if (write[:2] not in ends or removal.reopens(write.task_id, write.idx))
        and not (write.idx == RECEIPT and write[:2] in hidden)
    ]
    chunks: Chunks = {}
    with at_place(found.thread_id, *place_of(row)):
        rows = moved(taken.values(), codec, target)
        writes = moved(writes, codec, target)
    if new.values:
        top, chunks = _with_values(target, found, opened, new)
        rows.append(top)
        before = preview_in(codec, found.writes, row.checkpoint_id)
        preview = preview_after(before, new.values, context.preview)
        writes.append(checkpoint_receipt(target, top, preview))
    session.copies.fork(
        ForkRequest(
            thread,
            found.thread_id,
            new.target_id,
            row.checkpoint_id,
            thread.owner,
            _described(moment.described, new.metadata),
            "idle" if new.values else _status(row, writes),
            # The copies do not belong to the runs that made the originals.
            [one._replace(run_id=None) for one in rows],
            writes,
            chunks,
            target.hashing,
            target.salt,
        )
    )


def _described(source: Description, metadata: Mapping[str, Any]) -> Description:
    """Return what the record of a fork says: the source's metadata and
    time to live, and the metadata of the fork."""
    merged = as_json({**json.loads(source.metadata), **metadata}, "metadata")
    fixed_keys = sorted({*source.fixed_keys, *metadata})
    return source._replace(label=None, tags=(), metadata=merged, fixed_keys=fixed_keys)


def _found(session: Session, source: Address) -> StoredCheckpoint:
    found = session.checkpoints.get(*source)
    if found is None:
        existing_thread(session, source.thread_id)
        which = "" if source.checkpoint_id is None else f" {source.checkpoint_id!r}"
        raise CheckpointNotFound(f"thread {source.thread_id!r} has no checkpoint{which}")
    return found


def _of_subgraphs(moment: Moment, row: CheckpointRow) -> list[CheckpointRow]:
    """Return the newest checkpoints of subgraphs with which the head of a thread goes on."""
    # A subgraph that keeps no state has a namespace for each task: only one that runs matters.
    return _newest(
        head
        for head in moment.heads
        if removal.is_stateful(head.checkpoint_ns) or head.checkpoint_id > row.checkpoint_id
    )


def _before_step(moment: Moment, row: CheckpointRow) -> list[CheckpointRow]:
    """Return the checkpoints of subgraphs from before the step that runs again."""
    bound = replays_before(row)
    heads = _newest(
        head
        for head in moment.heads
        if removal.is_stateful(head.checkpoint_ns) and head.checkpoint_id < bound
    )
    return [head._replace(restarts=True) for head in heads]


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
    found: StoredCheckpoint,
    row: CheckpointRow,
    whole_path: bool,
) -> list[CheckpointRow]:
    """Return the ancestors of a checkpoint that a fork needs, hidden unless the path is wanted."""
    _, rebuilt = _channels(context, found, row)
    missing = set(rebuilt)
    if not missing and not whole_path:
        return []
    last = row
    taken: dict[removal.Place, CheckpointRow] = {}
    ancestors = session.checkpoints.ancestors(found.thread, row.checkpoint_ns, row.checkpoint_id)
    next(ancestors, None)  # itself
    for ancestor in ancestors:
        place = place_of(ancestor)
        if place in taken or place == place_of(row):
            break  # one that was put as its own ancestor
        is_seen = whole_path and not ancestor.hidden
        if not missing and not is_seen:
            break
        taken[place] = ancestor._replace(hidden=not is_seen)
        last = ancestor
        stored, rebuilt = _channels(context, found, ancestor)
        missing -= stored
        if is_seen:
            missing |= rebuilt
    else:
        with at_place(found.thread_id, *place_of(row)):
            check_end(last, missing & rebuilt)
    return list(taken.values())


def _channels(
    context: Context, found: StoredCheckpoint, row: CheckpointRow
) -> tuple[set[str], set[str]]:
    """Return the channels that a checkpoint stores, and those rebuilt from its ancestors."""
    with at_place(found.thread_id, *place_of(row)):
        body, manifest = open_checkpoint(context.codec_of(found.thread), row)
    versions = body.get("channel_versions", {})
    rebuilt = removal.rebuilt_channels(metadata_of(row), versions, manifest)
    return set(manifest), rebuilt


def _with_values(
    codec: Codec, found: StoredCheckpoint, opened: tuple[dict[str, Any], Manifest], new: NewFork
) -> tuple[CheckpointRow, Chunks]:
    """Return a checkpoint on top of another, in which channels have other values."""
    row, (body, manifest) = found.row, opened
    versions = dict(body.get("channel_versions", {}))
    unknown = new.values.keys() - manifest.keys() - versions.keys()
    if unknown:
        names = versions.keys() | manifest.keys()
        known = sorted(name for name in names if not is_internal(name))
        raise InvalidInput(f"unknown channels in values: {sorted(unknown)}; there are {known}")
    metadata = metadata_of(row)
    counters = metadata.pop(removal.COUNTERS, None) or {}
    newest = _newest_version(versions)
    values: dict[str, Any] = dict.fromkeys(manifest)
    for channel, value in new.values.items():
        versions[channel] = new.next_version(newest, None)
        if counters.pop(channel, None) is not None and DeltaSnapshot is not None:
            value = DeltaSnapshot(value)
        values[channel] = value
    if counters:
        metadata[removal.COUNTERS] = counters
    metadata |= {"source": "update", "step": metadata.get("step", -1) + 1}
    updated = body.get("updated_channels")
    made = {
        **body,
        "id": str(uuid6()),
        "ts": datetime.now(timezone.utc).isoformat(),
        "channel_versions": versions,
        "channel_values": values,
        # LangGraph looks only here for what a run goes on with; None is everywhere.
        "updated_channels": updated and sorted({*updated, *new.values}),
    }
    inherited = {name: entry for name, entry in manifest.items() if name not in new.values}
    encoded, _ = codec.encode_checkpoint(made, inherited)
    written = as_json(metadata, "metadata")
    content = codec.encrypt(encoded.content)
    top = CheckpointRow("", made["id"], row.checkpoint_id, None, written, encoded.refs, content)
    top = checkpoint_with_checksum(codec, top, encoded.content)
    chunks = {digest: codec.encrypt_chunk(chunk) for digest, chunk in encoded.chunks.items()}
    return top, chunks


def _newest_version(versions: Mapping[str, Any]) -> Any:
    try:
        return max(versions.values(), default=None)
    except TypeError:
        raise InvalidInput(
            f"some versions of the channels are numbers, and others are strings: {versions!r:.200}"
        ) from None


def _status(row: CheckpointRow, writes: Sequence[WriteRow]) -> str:
    """Return the status of a thread whose newest checkpoint this is."""
    place = place_of(row)
    own = [write for write in writes if (write.checkpoint_ns, write.checkpoint_id) == place]
    return removal.status_of({write.idx for write in own})


def copy_thread(context: Context, source_id: str, target_id: str) -> Steps[None]:
    """Make a thread with all checkpoints and writes of another. No chunk is written."""
    if source_id == target_id:
        raise ThreadExists(f"thread {target_id!r} cannot be copied onto itself")
    hashing = context.codec.hashing

    def work(turns: Turns) -> Work[None]:
        source = existing_thread(turns.session, source_id)
        yield from copy(turns, hashing, source, target_id)

    while True:
        try:
            yield from in_turns(context.storage, work)
        except Stale:
            continue  # the source was deleted meanwhile: it is gone, or another one
        context.memory.threads.pop(target_id)
        return


# How threads are related


def lineage(context: Context, thread_id: str) -> list[LineageEntry]:
    """Return a thread, the one it was made from, and so on."""
    with context.storage.reading() as session:
        records = session.threads.lineage(existing_thread(session, thread_id))
    for record in records:
        check_kinship(context.codec.hashing, record)
    parents = [*(record.thread_id for record in records[1:]), None]
    return [_entry(record, parent) for record, parent in zip(records, parents, strict=True)]


def family(context: Context, thread_id: str) -> FamilyTree:
    """Return the tree of all threads that forks and clones join to one."""
    with context.storage.reading() as session:
        thread = existing_thread(session, thread_id)
        records = {record.key: record for record in session.threads.family(thread.family)}
    for record in records.values():
        check_kinship(context.codec.hashing, record)
    children: dict[Any, list[FamilyMember]] = {}
    for record in records.values():
        children.setdefault(record.parent, []).append(record)
    nodes: dict[Any, FamilyNode] = {}
    for record in _children_first(children):
        made = _in_order(children.get(record.key, []))
        below = [nodes[child.key] for child in made if child.key in nodes]
        if record.deleted_at is not None and not below:
            continue
        parent = records[record.parent].thread_id if record.parent in records else None
        is_current = record.key == thread.key
        nodes[record.key] = FamilyNode(_entry(record, parent), tuple(below), is_current)
    first = thread.key
    while first in records and records[first].parent is not None:
        first = records[first].parent
    if first not in nodes:
        raise CorruptChunk(f"the first thread of the family of {thread_id!r} is missing")
    return FamilyTree(nodes[first])


def _children_first(children: Mapping[Any, list[FamilyMember]]) -> list[FamilyMember]:
    found: list[FamilyMember] = []
    waiting = [None]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [record.key for record in below]
    return found[::-1]


def _in_order(records: list[FamilyMember]) -> list[FamilyMember]:
    return sorted(records, key=lambda record: (record.created_at, record.thread_id))


def _entry(record: FamilyMember, parent: str | None) -> LineageEntry:
    step = None
    if record.fork_metadata:
        step = json_object(record.fork_metadata, record.parent_checkpoint_id).get("step")
    return LineageEntry(
        record.thread_id,
        record.deleted_at is None,
        record.edge,  # type: ignore[arg-type]
        parent,
        record.parent_checkpoint_id,
        step if isinstance(step, int) else None,
        time_of(record.parent_checkpoint_id),
        clocks.time_of(record.created_at),
        record.checkpoint_count,
    )


_GREGORIAN = datetime(1582, 10, 15, tzinfo=timezone.utc)


def time_of(checkpoint_id: str | None) -> datetime | None:
    """Return when a checkpoint was made, if its id is a UUID of version 6 (RFC 9562)."""
    try:
        id_ = UUID(checkpoint_id or "")
    except ValueError:
        return None
    if id_.version != 6:
        return None
    ticks = (id_.int >> 80) << 12 | (id_.int >> 64) & 0xFFF  # of 100 ns, without the version
    return _GREGORIAN + timedelta(microseconds=ticks // 10)
