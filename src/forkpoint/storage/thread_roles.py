"""What a backend does with threads: their identity, their records, searches and leases.

Each method is atomic: others see all of what it does, or nothing. In a backend with transactions
that is so by itself, as all calls between the entry and the exit of `Storage.writing` are one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

from forkpoint.encoding.hashing import Hashing
from forkpoint.storage.queries import ThreadQuery, ThreadRowPage
from forkpoint.storage.rows import (
    Counts,
    Description,
    FamilyMember,
    LeaseRow,
    RecordTimes,
    ThreadRef,
    ThreadRow,
)


class Threads(ABC):
    """Which thread an id means, what it descends from, and its deletion."""

    @abstractmethod
    def find(self, thread_id: str, viewer: str | None = None) -> ThreadRef | None:
        """Return the thread that an id means, or None. A deleted thread is not there.

        A thread that has writes and no checkpoint yet is there: it is provisional.

        Args:
            thread_id: The id.
            viewer: The owner who looks; None for who may see all threads. A thread of somebody else
                is returned as well, but must stay as if nobody had looked.
        """

    @abstractmethod
    def deletions(self, thread_id: str, owner: str | None = None) -> Set[Any]:
        """Return the tombstones of a thread id: one for each owner, that of the last deletion.

        Each deletion has a value of its own, by which it is told from those before.

        Args:
            thread_id: The id.
            owner: Only what this owner may know counts: deletions of own threads, and deletions
                for all. None for all deletions.
        """

    @abstractmethod
    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        """Add a tombstone for an id that means no thread, for runs that have not stored anything.

        Atomic: a thread of this id that somebody makes at the same moment stays.

        Args:
            thread_id: The id.
            owner: Whose runs end by it; None for those of all owners.
        """

    @abstractmethod
    def forget_deletions(self) -> bool:
        """Remove tombstones that are older than any run, and return whether there are more."""

    @abstractmethod
    def find_deleted(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        """Return the deleted thread that an id meant last, if some of its rows or chunks are left.

        That is so if the process that deleted it ended in the middle.
        """

    @abstractmethod
    def delete(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        """Mark a thread as deleted, and return how many checkpoints and writes it had.

        From now on nobody sees it or writes to it, and its tombstone says the highest checkpoint id
        that it had. Its rows may stay until `Collections.clear` removes them.

        Atomic: between the call of `check` and the deletion nobody writes to the thread. No write
        is stored after the deletion.

        Args:
            thread: The thread.
            seen: Its record as the caller has read it, if it must not have changed since.
            check: What this raises ends the deletion, with nothing done.

        Raises:
            Stale: The thread was updated, leased or deleted since it was seen. Nothing was done.
        """

    @abstractmethod
    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        """Return a thread, its parent, and so on. Deleted ancestors are included."""

    @abstractmethod
    def family(self, family: Any) -> list[FamilyMember]:
        """Return all threads of a family, in any order. Deleted ancestors are included."""

    @abstractmethod
    def of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        """Return the threads in which these runs made checkpoints."""


class Records(ABC):
    """The records of threads: what the catalog shows of them."""

    @abstractmethod
    def get(self, thread_id: str) -> ThreadRow | None:
        """Return the record of a thread; None if it is provisional or deleted."""

    def get_many(self, thread_ids: Collection[str]) -> Mapping[str, ThreadRow]:
        """Return the records of those of some threads that `get` returns one for, by id."""
        rows = {thread_id: self.get(thread_id) for thread_id in thread_ids}
        return {thread_id: row for thread_id, row in rows.items() if row is not None}

    @abstractmethod
    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        """Return records with some rows of the newest checkpoint of each thread's own graph.

        These are the rows among its writes whose `idx` is in `plan.HEAD_ROWS`, and the receipts of
        what its tasks did, whose `idx` is at most `receipts.WRITES`.
        """

    @abstractmethod
    def create(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        """Make the record of a thread, and return whether there was none of this id.

        A provisional thread of the same owner gets the record. Atomic: of several who make the same
        thread at once, one is told that there was none.
        """

    def create_many(
        self, new: Mapping[str, Description], owner: str | None, hashing: Hashing
    ) -> Set[str]:
        """Make the records of threads, and return the ids of those that there were not.

        Each is made as by `create`; all of them at once, if the backend has transactions.
        """
        return {
            thread_id
            for thread_id, described in new.items()
            if self.create(thread_id, owner, described, hashing)
        }

    @abstractmethod
    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        """Replace the description of a thread, and return whether nobody else did in between.

        Atomic: it compares the record with the one that was read, and writes it, at once.

        Args:
            seen: The record as it was read.
            described: The new description.
            checksums: Those of the record with it.
            times: The times of the record; by default it was active now.
        """

    @abstractmethod
    def hand_over(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        """Give a thread to another owner, with a new description, as `describe` does.

        Its edge and its parent are removed. For the owner before it is as if the thread had been
        deleted: there is a tombstone, and pages of snapshots do not show it. Writes that were
        prepared before are refused with `Stale`.
        """

    @abstractmethod
    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        """Remove a thread's edge and its parent, and return whether its record was as it was seen.

        Args:
            parent: The parent.
            kin: The thread.
            row: Its record, if it is not deleted.
            checksums: Those of its record then.
        """

    @abstractmethod
    def note_sweep(self, seen: ThreadRow) -> None:
        """Note that a sweep has trimmed a thread, until it is active again."""


class Search(ABC):
    """Pages of records, through an index."""

    def catch_up(self) -> bool:
        """Bring the index up to date for some threads, and return whether there are more.

        It is called until there are no more, each time in a transaction of its own, and in the last
        one before a first page is read, a snapshot begun or anything counted.
        """
        return False

    @abstractmethod
    def page(self, query: ThreadQuery) -> ThreadRowPage:
        """Return a page of threads.

        The first page lists the threads as they are. Later pages with the same snapshot list the
        others as they were at its moment: each thread that is not deleted is on exactly one page.
        """

    @abstractmethod
    def begin_snapshot(self) -> Any:
        """Return a name for the present moment, as of which the pages of one search are read.

        The name is a JSON value. A backend whose first page takes a snapshot by itself returns
        None.
        """

    @abstractmethod
    def end_snapshot(self, snapshot: Any) -> None:
        """Release what the store keeps only for a snapshot, if there is such a snapshot.

        Most snapshots are never ended, as their last page is never read: the backend releases the
        oldest by itself, and then reads their pages as of the present.
        """

    @abstractmethod
    def count(self, query: ThreadQuery) -> int:
        """Return how many threads match and have not expired; `after` and `limit` do not count."""

    @abstractmethod
    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        """Return threads whose time to live has passed, by the time at which it did, then by key.

        Threads that a sweep has trimmed since they were last active are left out.

        Args:
            after: The place of the last thread of the batch before: its time of expiry, and its
                key. None for the first batch.
            limit: How many threads at most.
            owner: Whose threads; None for those of all owners.
        """

    @abstractmethod
    def larger_than(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        """Return threads with more than `more_than` checkpoints, in the order of their keys.

        Args:
            more_than: The number of checkpoints.
            after: The key of the last thread of the batch before; None for the first batch.
            limit: How many threads at most.
            owner: Whose threads; None for those of all owners.
        """


class Leases(ABC):
    """Who may run on a thread, and who waits for it.

    The fence of a thread is a number that goes up whenever a lease begins, by what
    `shared.fence_step` returns, or is released.
    """

    @abstractmethod
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
        """Give out the lease of a thread, or return None if somebody has it.

        `shared.granted` says who gets it and who waits. Atomic: nobody else gets it, and no write
        under the lease before is stored any more once it is given out.

        Args:
            thread: The thread.
            holder: Who asks.
            ttl: How long the lease lasts unless it is renewed, in microseconds.
            take_over: Whether to take it from the one who has it.
            waits: Whether the holder waits behind those who asked before. One who does not ask
                again within `ttl` loses its place.
            rolls_back: Whether the run of a lease that is taken over is to be rolled back. Then
                the thread keeps its fence as `rollback_from` until `end_rollback`.

        Raises:
            Stale: The thread is deleted.
        """

    @abstractmethod
    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        """Extend a lease, and return whether the thread still has this fence and a lease."""

    @abstractmethod
    def release(self, thread: ThreadRef, fence: int) -> None:
        """End a lease, if the thread still has this fence, and raise the fence.

        Later writes with the fence of the lease are refused.
        """

    @abstractmethod
    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        """Remove a holder from those who wait for the lease of a thread."""

    @abstractmethod
    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        """Forget `rollback_from`, if the thread still has this fence."""
