"""Storing checkpoints and writes, copying threads, and removing from them, in dictionaries."""

from __future__ import annotations

from typing import Any

from forkpoint.clocks import StoreClock
from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import StaleLease, stale_lease
from forkpoint.storage import interface
from forkpoint.storage.interface import Choose, Stale
from forkpoint.storage.plan import Place, Plan, reopens
from forkpoint.storage.receipts import RECEIPT, replaces
from forkpoint.storage.rows import (
    Counts,
    Description,
    ForkRequest,
    PutRequest,
    ThreadRef,
    WriteRow,
)
from forkpoint.storage.shared import Admission, admission, rebound, status_after, thread_exists

from .tables import Stored, Tables, Thread
from .threads import add_thread


def put(tables: Tables, clock: StoreClock, put: PutRequest) -> ThreadRef | None:
    """Store a checkpoint or writes; see `Storage.put`."""
    thread = tables.live(put.thread_id)
    if (None if thread is None else tables.ref(thread)) != put.expected:
        raise Stale
    if thread is not None and put.fence not in (None, thread.fence):
        raise StaleLease(stale_lease(put.thread_id))
    now = clock.now()
    admitted = _admission(tables, put, thread)
    if admitted is not Admission.STORE:
        if admitted is Admission.REFUSE_AND_CLEAN:
            _clean(tables, put, thread, now)
        return None
    if thread is None:
        described = Description(metadata=put.metadata, **put.expiry._asdict())
        thread = add_thread(
            tables,
            now,
            put.thread_id,
            put.owner,
            put.salt,
            described=described,
            checksums=put.checksums,
            is_provisional=True,
        )
    tables.put_chunks(thread.family, put.chunks)
    if put.row is not None:
        _put_checkpoint(tables, thread, put, now)
    for write in put.writes:
        _put_write(tables, thread, Stored(write, put.fence), now)
    _update_thread(tables, thread.key, put, now)
    return tables.ref(tables.threads[thread.key])


def _admission(tables: Tables, put: PutRequest, thread: Thread | None) -> Admission:
    watermark = tables.watermark(put.thread_id) if thread is None else thread.watermark
    key = 0 if thread is None else thread.key
    return admission(
        put,
        exists=thread is not None,
        deletions=lambda: {item.number for item in tables.tombstones_of(put.thread_id, put.owner)},
        watermark=watermark,
        own_watermark=lambda: tables.watermark(put.thread_id, put.owner),
        is_stored=lambda place: tables.checkpoint(key, place) is not None,
    )


def _clean(tables: Tables, put: PutRequest, thread: Thread | None, now: int) -> None:
    """Remove writes that came before the late checkpoint they belong to, and expect more."""
    for mark, tombstone in tables.tombstones.items():
        is_known = tombstone in tables.tombstones_of(put.thread_id, put.owner)
        if is_known and tombstone.watermark is not None:
            watermark = max(tombstone.watermark, put.checkpoint_id)
            tables.tombstones[mark] = type(tombstone)(
                tombstone.number, tombstone.thread, watermark, tombstone.made_at
            )
    place = (put.checkpoint_ns, put.checkpoint_id)
    if thread is None:
        return
    tables.update(thread.key, watermark=max(thread.watermark or "", put.checkpoint_id))
    if tables.checkpoint(thread.key, place) is not None:
        return
    tables.drop_writes(thread.key, lambda stored: stored.row[:2] == place)
    tables.note_removal(thread, now)
    if thread.is_provisional and not tables.writes_of(thread.key):
        del tables.threads[thread.key]
        tables.chunks.pop(thread.family, None)


def _put_checkpoint(tables: Tables, thread: Thread, put: PutRequest, now: int) -> None:
    place = (put.checkpoint_ns, put.checkpoint_id)
    checkpoints = tables.checkpoints.setdefault(thread.key, {})
    if place in checkpoints:
        tables.drop_receipt(thread.key, place)  # which may show another state
        tables.note_removal(thread, now)
    checkpoints[place] = Stored(put.row, put.fence)


def _put_write(tables: Tables, thread: Thread, stored: Stored, now: int) -> None:
    row: WriteRow = stored.row
    place = row[:4]
    writes = tables.writes.setdefault(thread.key, {})
    known = writes.get(place)
    if known is None:
        writes[place] = stored
        return
    if not replaces(row.idx):
        return  # a task's writes are stored once
    if row.idx > RECEIPT:
        tables.note_removal(thread, now)
    before = None
    if stored.fence is not None:
        before = known.before if known.fence == stored.fence else known
    writes[place] = Stored(row, stored.fence, before)


def _update_thread(tables: Tables, key: int, put: PutRequest, now: int) -> None:
    if put.row is None and put.status is None:
        return
    thread = tables.threads[key]
    place = (put.checkpoint_ns, put.checkpoint_id)
    updated_at = max(thread.updated_at, now)
    is_newest = (tables.head(key, put.checkpoint_ns) or "") <= put.checkpoint_id
    status = status_after(
        put,
        thread.status,
        kinds=lambda: {write.idx for write in tables.writes_at(key, place)},
        is_newest=is_newest,
    )
    tables.update(
        key,
        status=status,
        updated_at=updated_at,
        state_updated_at=updated_at if put.status and is_newest else thread.state_updated_at,
        is_provisional=thread.is_provisional and put.row is None,
    )


class MemoryCopies(interface.Copies):
    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._tables = tables
        self._clock = clock

    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        tables = self._tables
        original = self._source(source, target_id)
        if described is None:
            described, checksums = original.described, original.checksums
            hashing.check_description(source.thread_id, source.salt, checksums, None, described)
        salt = new_salt(source.salt)
        lineage = ("clone", str(source.key), None)
        made = self._add(target_id, original, described, hashing, salt, lineage)
        tables.checkpoints[made.key] = {
            place: Stored(rebound(stored.row, hashing, source.salt, salt))
            for place, stored in tables.checkpoints_of(source.key).items()
        }
        tables.writes[made.key] = {
            place: Stored(rebound(stored.row, hashing, source.salt, salt))
            for place, stored in tables.writes_of(source.key).items()
        }
        state_updated_at = made.created_at if original.state_updated_at else 0
        tables.update(made.key, status=original.status, state_updated_at=state_updated_at)

    def fork(self, graft: ForkRequest) -> None:
        tables = self._tables
        original = self._source(graft.source, graft.target_id)
        lineage = (graft.edge, str(graft.source.key), graft.parent_checkpoint_id)
        made = self._add(
            graft.target_id, original, graft.described, graft.hashing, graft.salt, lineage
        )
        tables.put_chunks(made.family, graft.chunks)
        tables.checkpoints[made.key] = {row[:2]: Stored(row) for row in graft.rows}
        tables.writes[made.key] = {row[:4]: Stored(row) for row in graft.writes}
        state_updated_at = made.created_at if graft.rows else 0
        tables.update(made.key, status=graft.status, state_updated_at=state_updated_at)

    def _source(self, source: ThreadRef, target_id: str) -> Thread:
        if self._tables.live(target_id) is not None:
            raise thread_exists(target_id)
        thread = self._tables.threads.get(source.key)
        if thread is None or self._tables.ref(thread) != source:
            raise Stale
        return thread

    def _add(
        self,
        target_id: str,
        original: Thread,
        described: Description,
        hashing: Hashing,
        salt: bytes,
        lineage: tuple[Any, ...],
    ) -> Thread:
        identity = (target_id, original.owner, salt)
        return add_thread(
            self._tables,
            self._clock.now(),
            *identity,
            family=original.family,
            described=described,
            checksums=hashing.checksums(identity, described, lineage),
            edge=lineage[0],
            parent=original.key,
            parent_checkpoint_id=lineage[2],
        )


class MemoryRemovals(interface.Removals):
    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._tables = tables
        self._clock = clock

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        tables, key = self._tables, thread.key
        record = tables.threads.get(key)
        if record is None or record.deleted_at is not None:
            return Counts(0, 0)
        now, head = self._clock.now(), tables.head(key)
        plan = choose([stored.row for stored in tables.checkpoints_of(key).values()])
        number = self._drop_writes(key, plan)
        for place in plan.removed:
            tables.checkpoints[key].pop(place, None)
        for place in plan.hidden:
            self._change(key, place, hidden=True)
            tables.drop_receipt(key, place)
        for place in plan.restarted:
            self._change(key, place, restarts=True)
        if plan.removed or plan.hidden or plan.is_whole:
            tables.note_removal(record, now)
            fields: dict[str, Any] = {}
            if plan.is_whole or tables.head(key) != head:
                fields["status"] = tables.status(key)
                fields["state_updated_at"] = max(record.state_updated_at, now)
            if plan.reopened:
                fields["updated_at"] = max(record.updated_at, now)
            tables.update(key, **fields)
        return Counts(len(plan.removed), number)

    def recount(self, thread: ThreadRef) -> None:
        record = self._tables.threads.get(thread.key)
        if record is not None and record.deleted_at is None:  # whose count is not stored
            self._tables.update(thread.key, status=self._tables.status(thread.key, is_known=True))

    def _change(self, key: int, place: Place, **flags: bool) -> None:
        stored = self._tables.checkpoints_of(key).get(place)
        if stored is not None:
            row = stored.row._replace(**flags)
            self._tables.checkpoints[key][place] = Stored(row, stored.fence)

    def _drop_writes(self, key: int, plan: Plan) -> int:
        """Remove writes and restore others, and return how many were removed."""
        withdrawn = plan.withdrawn or range(0)
        writes = self._tables.writes_of(key)
        for place, stored in list(writes.items()):
            if stored.is_under(withdrawn) and stored.before is not None:
                writes[place] = stored.before

        def goes(stored: Stored) -> bool:
            row: WriteRow = stored.row
            place = row[:2]
            is_done = place in plan.reopened and not reopens(row.task_id, row.idx)
            return place in plan.removed or is_done or stored.is_under(withdrawn)

        return self._tables.drop_writes(key, goes)
