"""Threads, their records and their leases, in dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any

from forkpoint.clocks import StoreClock
from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.storage import interface
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import HEAD_ROWS
from forkpoint.storage.receipts import RECEIPT, WRITES
from forkpoint.storage.rows import (
    Counts,
    Description,
    FamilyMember,
    LeaseRow,
    RecordTimes,
    ThreadRef,
    ThreadRow,
)
from forkpoint.storage.shared import granted, is_expired
from forkpoint.storage.tombstones import TOMBSTONE_MICROSECONDS

from .tables import ALL, OWNED, Tables, Thread


class MemoryThreads(interface.Threads):
    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._tables = tables
        self._clock = clock

    def find(self, thread_id: str, viewer: str | None = None) -> ThreadRef | None:
        thread = self._tables.live(thread_id)
        return None if thread is None else self._tables.ref(thread)

    def deletions(self, thread_id: str, owner: str | None = None) -> Set[Any]:
        return frozenset(item.number for item in self._tables.tombstones_of(thread_id, owner))

    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        mark = (thread_id, ALL) if owner is None else (thread_id, OWNED, owner)
        self._tables.entomb(mark, self._clock.now())

    def forget_deletions(self) -> bool:
        known_since = self._clock.now() - TOMBSTONE_MICROSECONDS
        tombstones = self._tables.tombstones
        for mark in [mark for mark in tombstones if tombstones[mark].made_at < known_since]:
            del tombstones[mark]
        return False

    def find_deleted(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        for tombstone in self._tables.tombstones_of(thread_id, owner):
            thread = self._tables.threads.get(tombstone.thread or 0)
            if thread is not None and thread.deleted_at is not None:
                return self._tables.ref(thread)
        return None

    def delete(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        if check is not None:
            check()
        tables, key = self._tables, thread.key
        record = tables.threads.get(key)
        if record is None or record.deleted_at is not None:
            raise Stale
        if seen is not None and (record.updated_at, record.fence) != (seen.updated_at, seen.fence):
            raise Stale
        now = self._clock.now()
        mark = (record.thread_id, OWNED, record.owner)
        tables.entomb(mark, now, key, tables.newest_id(key))
        checkpoints = tables.checkpoints.pop(key, {})
        number = sum(place[3] > RECEIPT for place in tables.writes.pop(key, {}))
        tables.threads[key] = _without_description(record, now)
        tables.note_removal(record, now)
        return Counts(len(checkpoints), number)

    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        members: list[FamilyMember] = []
        record = self._tables.threads.get(thread.key)
        while record is not None:
            members.append(self._member(record))
            record = self._tables.threads.get(record.parent or 0)
        return members

    def family(self, family: Any) -> list[FamilyMember]:
        threads = self._tables.threads.values()
        return [self._member(thread) for thread in threads if thread.family == family]

    def _member(self, thread: Thread) -> FamilyMember:
        forked = ("", thread.parent_checkpoint_id or "")
        sources = [self._tables.checkpoint(key or 0, forked) for key in (thread.key, thread.parent)]
        return FamilyMember(
            thread.key,
            thread.thread_id,
            thread.edge,
            thread.parent,
            thread.parent_checkpoint_id,
            next((row.metadata for row in sources if row is not None), None),
            len(self._tables.visible(thread.key)),
            thread.created_at,
            thread.deleted_at,
            thread.salt,
            thread.checksums,
            thread.owner,
        )

    def of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        return [
            self._tables.ref(thread)
            for thread in self._tables.threads.values()
            if thread.deleted_at is None
            and any(
                stored.row.run_id in run_ids
                for stored in self._tables.checkpoints_of(thread.key).values()
            )
        ]


def _without_description(thread: Thread, now: int) -> Thread:
    """Return what is left of the record of a deleted thread."""
    return replace(
        thread,
        owner=None,
        described=Description(),
        status="idle",
        state_updated_at=0,
        lease=None,
        waiting=(),
        rollback_from=None,
        watermark=None,
        deleted_at=now,
    )


def thread_row(tables: Tables, thread: Thread, now: int) -> ThreadRow:
    """Return the record of a thread as the catalog shows it."""
    lease = thread.lease if thread.lease is not None and thread.lease.until > now else None
    parent = tables.threads.get(thread.parent or 0)
    is_leased = lease is not None
    return ThreadRow(
        tables.ref(thread),
        thread.thread_id,
        thread.described,
        "busy" if is_leased else thread.status,
        thread.created_at,
        thread.updated_at,
        None if parent is None else parent.thread_id,
        thread.parent_checkpoint_id,
        len(tables.visible(thread.key)),
        lease,
        thread.fence,
        is_expired(thread.described, thread.updated_at, now, is_leased=is_leased),
        thread.swept_at == thread.updated_at,
        thread.state_updated_at,
        checksums=thread.checksums,
        lineage=(
            thread.edge,
            None if thread.parent is None else str(thread.parent),
            thread.parent_checkpoint_id,
            None,
        ),
    )


class MemoryRecords(interface.Records):
    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._tables = tables
        self._clock = clock

    def get(self, thread_id: str) -> ThreadRow | None:
        thread = self._tables.live(thread_id)
        if thread is None or thread.is_provisional:
            return None
        return thread_row(self._tables, thread, self._clock.now())

    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        return [row and row._replace(head=self._head(row.thread.key)) for row in rows]

    def _head(self, key: int) -> list[Any]:
        writes = self._tables.writes_at(key, ("", self._tables.head(key) or ""))
        return [write for write in writes if write.idx in HEAD_ROWS or write.idx <= WRITES]

    def create(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        tables, now = self._tables, self._clock.now()
        thread = tables.live(thread_id)
        if thread is not None and (not thread.is_provisional or thread.owner != owner):
            return False
        if thread is None:
            thread = add_thread(tables, now, thread_id, owner, new_salt())
        checksums = hashing.checksums((thread_id, owner, thread.salt), described)
        tables.update(thread.key, is_provisional=False, described=described, checksums=checksums)
        return True

    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        self._change(seen, described=described, checksums=checksums)
        if times is not None:
            self._tables.update(seen.thread.key, **times._asdict())
        return True

    def _change(self, seen: ThreadRow, **fields: Any) -> None:
        key = seen.thread.key
        updated_at = max(self._tables.threads[key].updated_at + 1, self._clock.now())
        self._tables.update(key, updated_at=updated_at, **fields)

    def hand_over(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        tables, key, before = self._tables, seen.thread.key, seen.thread.owner
        if before is not None:
            mark = (seen.thread_id, OWNED, before)
            tables.entomb(mark, self._clock.now(), key, tables.newest_id(key))
        self._change(
            seen,
            described=described,
            checksums=checksums,
            owner=owner,
            edge=None,
            parent=None,
            parent_checkpoint_id=None,
        )
        tables.note_removal(tables.threads[key], self._clock.now())
        return True

    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        lineage = dict.fromkeys(("edge", "parent", "parent_checkpoint_id"))
        self._tables.update(kin.key, **lineage, checksums=checksums)
        return True

    def note_sweep(self, seen: ThreadRow) -> None:
        self._tables.update(seen.thread.key, swept_at=seen.updated_at)


def add_thread(
    tables: Tables, now: int, thread_id: str, owner: str | None, salt: bytes, **fields: Any
) -> Thread:
    """Make the record of a thread, the first one of a family unless it has another's."""
    key = tables.number()
    values = {"family": key, "checksums": b"", "described": Description(), **fields}
    watermark = tables.watermark(thread_id)
    made = Thread(
        key=key,
        thread_id=thread_id,
        owner=owner,
        salt=salt,
        created_at=now,
        updated_at=now,
        watermark=watermark,
        **values,
    )
    tables.threads[key] = made
    return made


class MemoryLeases(interface.Leases):
    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._tables = tables
        self._clock = clock

    def acquire(
        self,
        thread: ThreadRef,
        holder: str,
        ttl: int,
        *,
        take_over: bool,
        waits: bool,
        rolls_back: bool = False,
    ) -> LeaseRow | None:
        record = self._tables.threads.get(thread.key)
        if record is None or record.deleted_at is not None:
            raise Stale
        now = self._clock.now()
        lease, queue = granted(
            LeaseRow(holder, now, now + ttl, record.fence, record.rollback_from),
            record.lease,
            dict(record.waiting),
            take_over=take_over,
            waits=waits,
            rolls_back=rolls_back,
        )
        self._tables.update(thread.key, waiting=tuple(queue.items()))
        if lease is not None:
            rollback_from = lease.rollback_from
            self._tables.update(
                thread.key, lease=lease, fence=lease.fence, rollback_from=rollback_from
            )
        return lease

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        record = self._tables.threads.get(thread.key)
        if record is None or record.lease is None or record.fence != fence:
            return False
        until = max(record.lease.until, self._clock.now() + ttl)
        self._tables.update(thread.key, lease=record.lease._replace(until=until))
        return True

    def release(self, thread: ThreadRef, fence: int) -> None:
        record = self._tables.threads.get(thread.key)
        if record is not None and record.fence == fence:
            self._tables.update(thread.key, lease=None, fence=fence + 1)

    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        record = self._tables.threads.get(thread.key)
        if record is not None:
            waiting = tuple(place for place in record.waiting if place[0] != holder)
            self._tables.update(thread.key, waiting=waiting)

    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        record = self._tables.threads.get(thread.key)
        if record is not None and record.fence == fence:
            self._tables.update(thread.key, rollback_from=None)
