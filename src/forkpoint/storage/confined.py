"""Confining a saver to the threads of one owner.

Each call that looks for a thread, by its id or by its content, finds those of the owner only. The
other calls take a thread that was found before. So the threads of others cannot be reached. What
removes, or goes on for long, sees once more that the thread was not given away since. New
threads belong to the owner. Forks and clones belong to the owner of their source. A thread that is
given to another owner loses its edges to parent and children. So lineages have one owner, while a
family, which shares chunks, may have several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

from forkpoint.encoding.hashing import Hashing
from forkpoint.filters import search_terms
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import (
    Checkpoints,
    Choose,
    Contents,
    Leases,
    Records,
    Removals,
    Search,
    Session,
    Stale,
    Storage,
    Threads,
)
from forkpoint.storage.plan import Place, Plan
from forkpoint.storage.queries import Batch, CheckpointQuery, ThreadQuery, ThreadRowPage
from forkpoint.storage.rows import (
    ChangeCount,
    CheckpointRow,
    Counts,
    Description,
    FamilyMember,
    LeaseRow,
    Moment,
    PutRequest,
    RecordTimes,
    RemovalPart,
    RemovalResult,
    StoredCheckpoint,
    StoredContent,
    ThreadRef,
    ThreadRow,
    Usage,
    WriteRow,
)
from forkpoint.storage.shared import thread_exists


class ConfinedStorage(Storage):
    """A store in which there are an owner's threads only."""

    def __init__(self, storage: Storage, owner: str) -> None:
        self._storage = storage
        self._owner = owner

    @property
    def history(self) -> int:
        return self._storage.history

    def look(self) -> None:
        self._storage.look()

    @property
    def open_session(self) -> Session | None:
        session = self._storage.open_session
        return None if session is None else self._confined(session)

    def setup(self) -> None:
        self._storage.setup()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._storage.reading() as session:
            yield self._confined(session)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self._storage.writing() as session:
            yield self._confined(session)

    @contextmanager
    def unstored(self) -> Iterator[Session]:
        with self._storage.unstored() as session:
            yield self._confined(session)

    def save_room(self) -> None:
        self._storage.save_room()

    def _confined(self, session: Session) -> Session:
        return _ConfinedSession(session, self._owner)

    def put(self, put: PutRequest) -> Steps[ThreadRef | None]:
        try:
            return (yield from self._storage.put(put._replace(owner=self._owner)))
        except Stale:
            with self._storage.reading() as session:
                thread = session.threads.find(put.thread_id, self._owner)
            is_known = put.expected is not None  # then it was given to somebody else
            if thread is not None and thread.owner != self._owner and not is_known:
                raise thread_exists(put.thread_id) from None
            raise

    def tidy(self) -> bool:
        return self._storage.tidy()

    def close(self) -> None:
        self._storage.close()


class _ConfinedSession(Session):
    """A session in which there are an owner's threads, and no others.

    Some roles are passed on as they are: their methods take threads that were found, and no ids.
    """

    def __init__(self, session: Session, owner: str) -> None:
        self._session = session
        self.threads = _ConfinedThreads(session.threads, owner)
        self.checkpoints = _ConfinedCheckpoints(session.checkpoints, self.threads, owner)
        self.records = _ConfinedRecords(session.records, session.threads, owner)
        self.search = _ConfinedSearch(session.search, owner)
        self.leases = _ConfinedLeases(session.leases, self.threads)
        self.copies = session.copies
        self.removals = _ConfinedRemovals(session.removals, self.threads)
        self.chunks = session.chunks
        self.collections = session.collections
        self.secrets = session.secrets
        self.contents = _ConfinedContents()

    def now(self) -> int:
        return self._session.now()

    def is_spent(self) -> bool:
        return self._session.is_spent()


class _GivenAway(Stale):
    """A thread is not the owner's any more."""


class _ConfinedThreads(Threads):
    def __init__(self, threads: Threads, owner: str) -> None:
        self._threads = threads
        self._owner = owner

    def find(self, thread_id: str, viewer: str | None = None) -> ThreadRef | None:
        thread = self._threads.find(thread_id, self._owner)
        return thread if thread is not None and thread.owner == self._owner else None

    def deletions(self, thread_id: str, owner: str | None = None) -> Set[Any]:
        return self._threads.deletions(thread_id, self._owner)

    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        self._threads.note_deletion(thread_id, self._owner)

    def forget_deletions(self) -> bool:
        return self._threads.forget_deletions()

    def find_deleted(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        return self._threads.find_deleted(thread_id, self._owner)

    def delete(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        def check_all() -> None:
            self.check_own(thread)
            if check is not None:
                check()

        if seen is not None:  # it changes when it is given away
            return self._threads.delete(thread, seen, check=check)
        try:
            return self._threads.delete(thread, check=check_all)
        except Stale:
            if check is not None:
                raise
            return Counts(0, 0)  # as if somebody else had deleted it

    def check_own(self, thread: ThreadRef) -> None:
        """Check that a thread that was found before is there, and was not given away since.

        Raises:
            Stale: It is not.
        """
        present = self.find(thread.thread_id)
        if present is None or present.key != thread.key:
            raise _GivenAway

    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        return self._threads.lineage(thread)

    def family(self, family: Any) -> list[FamilyMember]:
        return self._threads.family(family)

    def of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        threads = self._threads.of_runs(run_ids)
        return [thread for thread in threads if thread.owner == self._owner]


class _ConfinedCheckpoints(Checkpoints):
    def __init__(self, checkpoints: Checkpoints, threads: Threads, owner: str) -> None:
        self._checkpoints = checkpoints
        self._threads = threads
        self._owner = owner

    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
        *,
        with_chunks: bool = False,
    ) -> StoredCheckpoint | None:
        place = thread_id, checkpoint_ns, checkpoint_id
        return self._checkpoints.get(*place, self._owner, with_chunks=with_chunks)

    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        if query.thread_id is not None and self._threads.find(query.thread_id) is None:
            return []
        page = self._checkpoints.page(query._replace(owner=self._owner))
        return [stored for stored in page if stored.thread.owner == self._owner]

    def all(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        return self._checkpoints.all(thread)

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        return self._checkpoints.ancestors(thread, checkpoint_ns, checkpoint_id)

    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        return self._checkpoints.channel_writes(thread, checkpoint_ns, checkpoint_ids, channels)

    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        return self._checkpoints.moment(thread, checkpoint_id, before)

    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        return self._checkpoints.writes(thread, places)

    def batch(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        return self._checkpoints.batch(thread, after, with_content=with_content)

    def since(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        return self._checkpoints.since(thread, checkpoint_id)

    def older(self, thread: ThreadRef, checkpoint_id: str, limit: int) -> list[str]:
        return self._checkpoints.older(thread, checkpoint_id, limit)

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        return self._checkpoints.stored_under(thread, fences)

    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        return self._checkpoints.usage(thread, after)


class _ConfinedRecords(Records):
    def __init__(self, records: Records, threads: Threads, owner: str) -> None:
        self._records = records
        self._threads = threads
        self._owner = owner

    def get(self, thread_id: str) -> ThreadRow | None:
        row = self._records.get(thread_id)
        return row if row is not None and row.thread.owner == self._owner else None

    def get_many(self, thread_ids: Collection[str]) -> Mapping[str, ThreadRow]:
        rows = self._records.get_many(thread_ids)
        return {id_: row for id_, row in rows.items() if row.thread.owner == self._owner}

    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        return self._records.with_heads(rows)

    def create(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        if self._records.create(thread_id, self._owner, described, hashing):
            return True
        thread = self._threads.find(thread_id, self._owner)
        if thread is not None and thread.owner != self._owner:
            raise thread_exists(thread_id)
        return False

    def create_many(
        self, new: Mapping[str, Description], owner: str | None, hashing: Hashing
    ) -> Set[str]:
        return self._records.create_many(new, self._owner, hashing)

    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        return self._records.describe(seen, described, checksums, times)

    def hand_over(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        return self._records.hand_over(seen, described, owner, checksums)

    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        return self._records.detach(parent, kin, row, checksums)

    def note_sweep(self, seen: ThreadRow) -> None:
        self._records.note_sweep(seen)


class _ConfinedSearch(Search):
    def __init__(self, search: Search, owner: str) -> None:
        self._search = search
        self._owner = owner

    def catch_up(self) -> bool:
        return self._search.catch_up()

    def page(self, query: ThreadQuery) -> ThreadRowPage:
        page = self._search.page(self._confined(query))
        rows = [row if row and row.thread.owner == self._owner else None for row in page.rows]
        return page._replace(rows=rows)

    def count(self, query: ThreadQuery) -> int:
        return self._search.count(self._confined(query))

    def _confined(self, query: ThreadQuery) -> ThreadQuery:
        if query.owner == self._owner:
            return query  # all its terms are those of the owner's threads
        return query._replace(terms=[*query.terms, *search_terms(self._owner)])

    def begin_snapshot(self) -> Any:
        return self._search.begin_snapshot()

    def end_snapshot(self, snapshot: Any) -> None:
        self._search.end_snapshot(snapshot)

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        return self._search.expired(after, limit, self._owner)

    def larger_than(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        return self._search.larger_than(more_than, after, limit, self._owner)


class _ConfinedLeases(Leases):
    def __init__(self, leases: Leases, threads: _ConfinedThreads) -> None:
        self._leases = leases
        self._threads = threads

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
        return self._leases.acquire(
            thread, holder, ttl, take_over=take_over, waits=waits, rolls_back=rolls_back
        )

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        try:
            self._threads.check_own(thread)
        except _GivenAway:
            return False
        return self._leases.renew(thread, fence, ttl)

    def release(self, thread: ThreadRef, fence: int) -> None:
        self._leases.release(thread, fence)

    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        self._leases.leave_queue(thread, holder)

    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        self._leases.end_rollback(thread, fence)


class _ConfinedRemovals(Removals):
    def __init__(self, removals: Removals, threads: _ConfinedThreads) -> None:
        self._removals = removals
        self._threads = threads

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        def choose_of_own(rows: Sequence[CheckpointRow]) -> Plan:
            self._threads.check_own(thread)
            return choose(rows)

        try:
            return self._removals.remove(thread, choose_of_own)
        except _GivenAway:
            return Counts(0, 0)

    def recount(self, thread: ThreadRef) -> None:
        self._removals.recount(thread)

    def is_long(self, thread: ThreadRef) -> bool:
        return self._removals.is_long(thread)

    def is_ordered(self, thread: ThreadRef) -> bool:
        return self._removals.is_ordered(thread)

    def extent(self, thread: ThreadRef) -> ChangeCount:
        return self._removals.extent(thread)

    def remove_batch(
        self, thread: ThreadRef, part: RemovalPart, check: Callable[[], None]
    ) -> RemovalResult:
        def check_all() -> None:
            self._threads.check_own(thread)
            check()

        return self._removals.remove_batch(thread, part, check_all)


class _ConfinedContents(Contents):
    """None: they are encrypted with one key for all owners, which no owner changes."""

    def batch(self, after: Any = None) -> Batch[StoredContent]:
        return Batch([], None)

    def replace(self, changes: Sequence[tuple[StoredContent, bytes]]) -> None:
        pass
