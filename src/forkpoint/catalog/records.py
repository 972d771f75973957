"""The records of threads: what each operation of the catalog does.

Each function that takes a `Context` first is one operation in one piece; see
`forkpoint.operations`. None of them decodes a checkpoint but `rollover`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.base import empty_checkpoint

from forkpoint import langgraph_rules
from forkpoint.catalog.heads import thread_of
from forkpoint.catalog.threads import Thread, ThreadStats
from forkpoint.clocks import time_of
from forkpoint.encoding.codec import Chunks, Codec, Manifest, split_refs
from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import (
    InvalidInput,
    StorageBusy,
    ThreadExists,
    ThreadNotFound,
)
from forkpoint.inputs import DESCRIPTION_BYTES, as_json
from forkpoint.langgraph_rules import is_internal
from forkpoint.operations.context import Context
from forkpoint.operations.copy import copy
from forkpoint.operations.fork import NextVersion
from forkpoint.operations.gc import reachable, read_all
from forkpoint.operations.places import at_place, place_of
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.previews import part_of, preview_after
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import Session
from forkpoint.storage.record_checksums import check_record, described_anew
from forkpoint.storage.retry import attempts, busy, retry, retry_steps
from forkpoint.storage.row_checksums import (
    checkpoint_receipt,
    open_checkpoint,
    preview_in,
    stored_chunks,
    stored_row,
)
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    ForkRequest,
    StoredCheckpoint,
    ThreadRef,
    ThreadRow,
    Usage,
    WriteRow,
)
from forkpoint.storage.shared import thread_exists

_PAGE_ROWS = 500
_CHUNKS_MEASURED = 5000  # before others have their turn


class Changes(NamedTuple):
    """What is to be said of a thread; None leaves it as it is, but for what is under `cleared`."""

    label: str | None = None
    tags: Sequence[str] | None = None
    metadata: Mapping[str, Any] = {}
    ttl: int | None = None
    on_expiry: str | None = None
    cleared: frozenset[str] = frozenset()

    def applied(self, before: Description) -> Description:
        """Return what is said of a thread after these changes."""
        metadata = before.metadata
        if self.metadata:
            metadata = as_json({**json.loads(metadata), **self.metadata}, "metadata")
            if len(metadata) > DESCRIPTION_BYTES:
                raise InvalidInput(
                    f"metadata would take {len(metadata)} bytes as JSON, and {DESCRIPTION_BYTES} "
                    "at most are kept of a thread"
                )
        return Description(
            None if "label" in self.cleared else self.label or before.label,
            before.tags if self.tags is None else self.tags,
            metadata,
            None if "ttl" in self.cleared else self.ttl or before.ttl,
            sorted({*before.fixed_keys, *self.metadata}),
            self.on_expiry or before.on_expiry,
        )


# One thread


def get(context: Context, thread_id: str) -> Thread | None:
    """Return a thread, if there is one that has not expired."""
    hashing = context.prepare().hashing
    with context.storage.reading() as session:
        row = session.records.get(thread_id)
        if row is not None:
            check_record(hashing, row)
        return None if row is None or row.is_expired else thread_of(context, session, row)


def create(context: Context, thread_id: str, said: Changes, *, may_exist: bool) -> Thread:
    """Make a thread, or return the one that there is."""
    hashing = context.prepare().hashing
    described = said.applied(Description(**context.expiry._asdict()))
    for _ in attempts():
        with context.storage.writing() as session:
            row = session.records.get(thread_id)
            if row is not None and not may_exist:
                raise thread_exists(thread_id)
            if row is None:
                if not session.records.create(thread_id, context.owner, described, hashing):
                    if not may_exist:
                        raise thread_exists(thread_id)
                    continue  # somebody made it just now, and may have deleted it by now
                context.memory.threads.pop(thread_id)
                row = session.records.get(thread_id)
            elif row.is_expired:
                check_record(hashing, row)
                checksums = described_anew(hashing, row, row.described)
                if not session.records.describe(row, row.described, checksums):  # which is activity
                    continue
                row = session.records.get(thread_id)
            if row is not None:
                return thread_of(context, session, row)
    with context.storage.reading() as session:
        if session.threads.find(thread_id) is not None:
            raise thread_exists(thread_id)  # an owner is about to put its first checkpoint
    raise StorageBusy(f"thread {thread_id!r} is made and deleted again and again")


def update(context: Context, thread_id: str, changes: Changes) -> Thread:
    """Say something else of a thread."""
    hashing = context.codec.hashing
    return change(
        context,
        thread_id,
        changes,
        lambda session, seen, described: session.records.describe(
            seen, described, described_anew(hashing, seen, described)
        ),
    )


def change(
    context: Context,
    thread_id: str,
    changes: Changes,
    store: Callable[[Session, ThreadRow, Description], bool],
) -> Thread:
    """Change the record of a thread, again if others do so at the same moment.

    Args:
        context: The store.
        thread_id: The thread.
        changes: What is to be said of it.
        store: Takes the record and what is said then. Returns whether it stored that, and nobody
            else changed the record in between.
    """
    hashing = context.codec.hashing
    for _ in attempts():
        with context.storage.writing() as session:
            seen = existing_record(session, thread_id)
            check_record(hashing, seen)
            if store(session, seen, changes.applied(seen.described)):
                return thread_of(context, session, existing_record(session, thread_id))
    raise busy(f"thread {thread_id!r} changed")


def clone(
    context: Context, source_id: str, target_id: str, changes: Changes, checkpoints: bool
) -> Steps[Thread]:
    """Make a thread like another, with its checkpoints or without."""
    if source_id == target_id:
        raise ThreadExists(f"thread {target_id!r} cannot be cloned onto itself")
    hashing = context.codec.hashing

    def work(turns: Turns) -> Work[Thread]:
        source = existing_record(turns.session, source_id)
        check_record(hashing, source)
        described = changes.applied(source.described)
        if checkpoints:
            yield from copy(turns, hashing, source.thread, target_id, described)
        else:
            turns.session.copies.fork(_empty(hashing, source, target_id, described))
        context.memory.threads.pop(target_id)
        made = existing_record(turns.session, target_id)
        return thread_of(context, turns.session, made)

    return (
        yield from retry_steps(
            lambda: in_turns(context.storage, work), f"thread {source_id!r} changed"
        )
    )


def _empty(
    hashing: Hashing, source: ThreadRow, target_id: str, described: Description
) -> ForkRequest:
    return ForkRequest(
        source.thread,
        source.thread_id,
        target_id,
        None,
        source.thread.owner,
        described,
        "idle",
        [],
        [],
        {},
        hashing,
        new_salt(source.thread.salt),
        edge="clone",
    )


def stats(context: Context, thread_id: str) -> Steps[ThreadStats]:
    """Return what a thread takes, alone and with others of its family.

    What others write meanwhile counts or not: nobody waits for it to be read.
    """

    hashing = context.prepare().hashing

    def work(turns: Turns) -> Work[ThreadStats]:
        row = existing_record(turns.session, thread_id)
        check_record(hashing, row)
        thread = row.thread
        used: list[Usage] = []
        yield from read_all(
            turns, lambda after: turns.session.checkpoints.usage(thread, after), used.extend
        )
        live, shared = yield from _chunks_of(turns, thread)
        live_bytes = yield from _size_of(turns, thread, live)
        shared_bytes = yield from _size_of(turns, thread, shared)
        return ThreadStats(
            sum(part.checkpoints for part in used),
            sum(part.writes for part in used),
            len(frozenset().union(*(part.runs for part in used))),
            sum(part.bytes for part in used) + live_bytes,
            shared_bytes,
            time_of(row.created_at),
            time_of(row.updated_at),
        )

    return (yield from in_turns(context.storage, work, only_reads=True))


def _chunks_of(turns: Turns, thread: ThreadRef) -> Work[tuple[set[bytes], set[bytes]]]:
    """Return the chunks that a thread leads to, and those of them that others lead to as well."""
    family = thread.family
    own: set[bytes] = set()
    others: set[bytes] = set()
    links: dict[bytes, bytes] = {}

    def add_roots(part: Iterable[tuple[Any, bytes]]) -> None:
        for key, refs in part:
            (own if key == thread.key else others).update(split_refs(refs))

    yield from read_all(
        turns, lambda after: turns.session.collections.references(family, after), add_roots
    )
    yield from read_all(
        turns, lambda after: turns.session.collections.links(family, after), links.update
    )
    live = yield from turns.apart(lambda: reachable(own, links))
    also = yield from turns.apart(lambda: reachable(others, links))
    return live, live & also


def _size_of(turns: Turns, thread: ThreadRef, digests: Collection[bytes]) -> Work[int]:
    """Return how many bytes chunks take."""
    listed = list(digests)
    size = 0
    for start in range(0, len(listed), _CHUNKS_MEASURED):
        size += turns.session.chunks.total_bytes(
            thread.family, listed[start : start + _CHUNKS_MEASURED]
        )
        yield
    return size


def existing_record(session: Session, thread_id: str) -> ThreadRow:
    """Return the record of a thread.

    Raises:
        ThreadNotFound: There is none.
    """
    row = session.records.get(thread_id)
    if row is None:
        raise ThreadNotFound(f"there is no thread {thread_id!r}")
    return row


# Going on elsewhere


class NewRollover(NamedTuple):
    """A successor of a thread, checked."""

    source_id: str
    target_id: str
    channels: Sequence[str]
    values: Mapping[str, Any]
    changes: Changes
    next_version: NextVersion


def rollover(context: Context, new: NewRollover) -> Thread:
    """Make a thread that begins with a part of another's state."""
    context.prepare()

    def attempt() -> Thread:
        with context.storage.writing() as session:
            source = existing_record(session, new.source_id)
            session.copies.fork(_successor(context, session, source, new))
            context.memory.threads.pop(new.target_id)
            return thread_of(context, session, existing_record(session, new.target_id))

    return retry(attempt, f"thread {new.source_id!r} changed")


def _successor(
    context: Context, session: Session, source: ThreadRow, new: NewRollover
) -> ForkRequest:
    check_record(context.codec.hashing, source)
    found = session.checkpoints.get(new.source_id, "", None)
    target = context.codec.of_salt(new_salt(source.thread.salt))
    rows: list[CheckpointRow] = []
    receipts: list[WriteRow] = []
    chunks: Chunks = {}
    if new.channels or new.values:
        if found is None:
            raise InvalidInput(f"thread {new.source_id!r} has no state to carry over")
        row, chunks = _carried(context, target, found, new)
        rows.append(row)
        codec = context.codec_of(source.thread)
        before = preview_in(codec, found.writes, found.row.checkpoint_id)
        preview = preview_after(part_of(before, new.channels), new.values, context.preview)
        receipts.append(checkpoint_receipt(target, row, preview))
    described = new.changes.applied(source.described)
    return ForkRequest(
        source.thread,
        new.source_id,
        new.target_id,
        found.row.checkpoint_id if found is not None else None,
        source.thread.owner,
        described,
        "idle",
        rows,
        receipts,
        chunks,
        target.hashing,
        target.salt,
    )


def _carried(
    context: Context, codec: Codec, found: StoredCheckpoint, new: NewRollover
) -> tuple[CheckpointRow, Chunks]:
    """Return a first checkpoint, of some channels' values as they are and of new ones."""
    with at_place(found.thread_id, *place_of(found.row)):
        body, manifest = open_checkpoint(context.codec_of(found.thread), found.row)
    _check_channels(new, set(body.get("channel_versions", {})), manifest)
    inherited = {name: manifest[name] for name in new.channels if name not in new.values}
    made: dict[str, Any] = {
        **empty_checkpoint(),
        "id": langgraph_rules.new_checkpoint_id(),
        "channel_values": {**dict.fromkeys(inherited), **new.values},
    }
    made["channel_versions"] = dict.fromkeys(made["channel_values"], new.next_version(None, None))
    made["updated_channels"] = None
    encoded, _ = codec.encode_checkpoint(made, inherited)
    metadata = as_json({"source": "update", "step": -1, "parents": {}}, "metadata")
    row = CheckpointRow("", made["id"], None, None, metadata, b"", b"")
    return stored_row(codec, row, encoded), stored_chunks(codec, encoded.chunks)


def _check_channels(new: NewRollover, versions: set[str], manifest: Manifest) -> None:
    known = sorted(name for name in versions | set(manifest) if not is_internal(name))
    unknown = sorted({*new.channels, *new.values} - set(known))
    if unknown:
        raise InvalidInput(f"unknown channels {unknown}; there are {known}")
    rebuilt = sorted(set(new.channels) - set(manifest) - set(new.values))
    if rebuilt:
        raise InvalidInput(
            f"channels {rebuilt} are not stored in the newest checkpoint, as those of a "
            "DeltaChannel are not; pass their values instead"
        )
