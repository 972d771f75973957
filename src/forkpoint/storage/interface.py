"""What a backend must do; the operations are written against it, and know nothing of SQL.

`format.md`, beside this file, says what is stored.

`Storage.writing` runs a block of calls as one transaction where the backend has them. Where it has
none, each call of a `Session` is atomic, and the operations call in such an order that stopping
between two leaves nothing dangling.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any

from forkpoint.encoding.codec import Chunk
from forkpoint.encoding.hashing import Hashing
from forkpoint.runtime.steps import Again, Steps
from forkpoint.storage.plan import Place, Plan
from forkpoint.storage.queries import Batch, CheckpointQuery, ThreadQuery, ThreadRowPage
from forkpoint.storage.rows import (
    ChangeCount,
    CheckpointRow,
    Counts,
    Description,
    FamilyMember,
    ForkRequest,
    LeaseRow,
    Moment,
    PutRequest,
    RecordTimes,
    RemovalPart,
    RemovalResult,
    StoredCheckpoint,
    ThreadRef,
    ThreadRow,
    Usage,
    WriteRow,
)

SCHEMA_VERSION = 1


STORE_KEY_BYTES = 32


CHUNKS_AT_ONCE = 500
"""How many chunks are removed before others may have their turn, as a rule."""


Choose = Callable[[Sequence[CheckpointRow]], Plan]
"""Chooses which of a thread's checkpoints, hidden ones included, are to be removed or hidden."""


class Stale(Exception):
    """The `ThreadRef` that a write was prepared for no longer holds. Nothing was written."""


class HistoryChanged(Stale, Again):
    """The store is another, or went back: what is remembered of it no longer holds.

    Its file was replaced, say, or a backup was restored. Nothing was written.
    """


class Threads(ABC):
    """Which thread an id means, what it descends from, and its deletion."""

    @abstractmethod
    def find(self, thread_id: str) -> ThreadRef | None:
        """Return which thread an id means, if it is not deleted."""

    @abstractmethod
    def deletions(self, thread_id: str, owner: str | None = None) -> Set[Any]:
        """Return what tells the deletions of a thread id from those before.

        Of each owner it is the last. Given one, those of threads of others are left out.
        """

    @abstractmethod
    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        """Let `last_deletion` return more, for the runs of a thread not stored yet.

        Given an owner, it does so for that one's runs, else for all.
        A thread of this id that was made meanwhile stays.
        """

    @abstractmethod
    def forget_deletions(self) -> bool:
        """Remove what tells of deletions that are so old that no run is on its way any more.

        Returns whether there is more to remove.
        """

    @abstractmethod
    def find_deleted(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        """Return the deleted thread that an id meant last, if something of it may be left.

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
        """Mark a thread as deleted: from now on nobody sees it, or writes to it.

        What is left of it is removed by `clear`. What `check` raises ends it, with nothing done.
        Returns how many checkpoints and writes it had.

        Raises:
            Stale: The thread was updated, leased or deleted since it was seen. Nothing was done.
        """

    @abstractmethod
    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        """Return a thread, its parent, and so on."""

    @abstractmethod
    def family(self, family: Any) -> list[FamilyMember]:
        """Return all threads of a family, deleted ones too, in no order."""

    @abstractmethod
    def of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        """Return the threads in which these runs made checkpoints."""


class Checkpoints(ABC):
    """The checkpoints of threads and their writes, as they are read."""

    @abstractmethod
    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
    ) -> StoredCheckpoint | None:
        """Return a checkpoint, or the newest of its namespace.

        Given an owner, threads of others are not there: nothing of them is read.
        """

    @abstractmethod
    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        """Return a page of checkpoints, newest first."""

    @abstractmethod
    def all(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        """Return all checkpoints of a thread, hidden ones too, in no order."""

    @abstractmethod
    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        """Return a checkpoint, its parent, and so on, hidden ones too."""

    @abstractmethod
    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        """Return the writes of some checkpoints to some channels, in no order."""

    @abstractmethod
    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        """Return what there was around a checkpoint of the thread's graph.

        `before` is the checkpoint id that a time travel looks for the state of subgraphs before.
        """

    @abstractmethod
    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        """Return the writes of some checkpoints, in no order."""

    @abstractmethod
    def batch(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        """Return checkpoints of a thread, hidden ones too, without refs and content maybe.

        All of them, but for those that are put while they are read.
        """

    def since(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        """Return the visible checkpoints of a long thread from an id on, without refs and content.

        See `Removals.is_long`.
        """
        raise NotImplementedError

    @abstractmethod
    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        """Return the checkpoints that runs stored under leases with these fences."""

    @abstractmethod
    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        """Return what a thread's rows take."""


class Records(ABC):
    """The records of threads: what the catalog shows of them."""

    @abstractmethod
    def get(self, thread_id: str) -> ThreadRow | None:
        """Return the record of a thread."""

    @abstractmethod
    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        """Return records with some rows of the newest checkpoint of each thread's own graph.

        These are its receipt, the interrupts and errors of its tasks, and the receipts of what the
        tasks did.
        """

    @abstractmethod
    def create(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        """Make the record of a thread, and return whether there was none of this id."""

    @abstractmethod
    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        """Say something else of a thread, and return whether nobody else did in between.

        Its times are those that are given, or else it was active now.
        """

    @abstractmethod
    def hand_over(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        """Let a thread be another owner's, and say something else of it, as `describe` does.

        It is said no longer what it was made of. A write that was prepared before is refused with
        `Stale`, and for the owner before it is as if the thread had been deleted.
        """

    @abstractmethod
    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        """Say no longer what a thread was made of, and return whether it was as it was seen.

        Args:
            parent: The thread that it was made of.
            kin: The thread.
            row: Its record, if it is not deleted.
            checksums: Those of its record then.
        """

    @abstractmethod
    def note_sweep(self, seen: ThreadRow) -> None:
        """Note that a sweep has trimmed a thread, as it was after its last activity."""


class Search(ABC):
    """Pages of records, through an index."""

    @abstractmethod
    def page(self, query: ThreadQuery) -> ThreadRowPage:
        """Return a page of threads.

        The first page lists the threads as they are. Later pages with the same snapshot list the
        others as they were at its moment: each thread that is not deleted is on exactly one page.
        """

    @abstractmethod
    def begin_snapshot(self) -> Any:
        """Return a name for the present moment, as of which the pages of one search are read.

        A backend whose first page takes a snapshot by itself returns None.
        """

    @abstractmethod
    def end_snapshot(self, snapshot: Any) -> None:
        """Release what the store keeps only for a snapshot, if there is such a snapshot."""

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
        """Return threads with more than `more_than` checkpoints, in the order of their keys."""


class Leases(ABC):
    """Who may run on a thread, and who waits for it."""

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

        Who `waits` has it after those who came before, as long as these ask again within their
        `ttl`. With `rolls_back`, it is noted what is to be rolled back if it is taken over.

        Raises:
            Stale: The thread is deleted.
        """

    @abstractmethod
    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        """Make a lease last for longer, and return whether it is still the same."""

    @abstractmethod
    def release(self, thread: ThreadRef, fence: int) -> None:
        """End a lease, if it is still the same. What was written under it is not any more."""

    @abstractmethod
    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        """Wait for the lease of a thread no longer."""

    @abstractmethod
    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        """Note, under a lease, that what was to be rolled back is."""


class Copies(ABC):
    """Threads that are made of others: clones and forks."""

    @abstractmethod
    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        """Make a thread with all checkpoints and writes of another, as a clone of it.

        It is described as the other is, unless told otherwise.

        Raises:
            ThreadExists: There is a thread of this id.
            Stale: The other thread was deleted.
        """

    def begin(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> Any:
        """Begin what `copy` does, for a thread that `is_long`, and return what names the copy.

        None if it cannot be done in turns.

        Raises:
            ThreadExists: There is a thread of this id.
            Stale: The other thread was deleted.
        """
        return None

    def copy_more(self, copying: Any) -> bool:
        """Copy some more, or show a copy that is complete, and return whether there is more to do.

        Raises:
            ThreadExists: There is a thread of this id by now. Nothing was written.
            Stale: Something was removed from the other thread. Nothing was written.
            StorageBusy: The copy was taken for abandoned.
        """
        raise NotImplementedError

    def abandon(self, copying: Any) -> None:
        """Leave a copy that is not complete to `Collections.clear`."""
        raise NotImplementedError

    @abstractmethod
    def fork(self, graft: ForkRequest) -> None:
        """Make a thread of rows of another, as a fork of it.

        Raises:
            ThreadExists: There is a thread of this id.
            Stale: The other thread is not as it was when its rows were read.
        """


class Removals(ABC):
    """How checkpoints are removed from a thread that stays."""

    @abstractmethod
    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        """Remove checkpoints with their writes, hide others, and reopen others, as is chosen.

        Nobody writes to the thread in between. Nothing is done if the thread is deleted by now.
        Only reopening counts as activity.
        Returns how many checkpoints and writes were removed.
        """

    # A backend whose `remove` and `copy` keep others out for long says which threads are long. Then
    # it has these as well, and `Copies.begin`, `copy_more`, `abandon` and `Checkpoints.since`.

    def is_long(self, thread: ThreadRef) -> bool:
        """Return whether to remove from a thread, and to copy it, in turns.

        Others read and write between two turns.
        """
        return False

    def extent(self, thread: ThreadRef) -> ChangeCount:
        """Return what tells whether something has happened to a thread that is long.

        Raises:
            Stale: It is deleted.
        """
        raise NotImplementedError

    def remove_batch(
        self, thread: ThreadRef, part: RemovalPart, check: Callable[[], None]
    ) -> RemovalResult:
        """Do some of what is left of a removal, in order; all of it if it is to be done as a whole.

        Nobody writes to the thread in between. What `check` raises then ends it, with nothing done.

        Raises:
            Stale: The thread is deleted.
        """
        raise NotImplementedError


class ChunkReads(ABC):
    """The chunks of families."""

    @abstractmethod
    def get(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        """Return those of these chunks that the store has.

        With `follow` it may return what they lead to as well.
        """

    def of_families(
        self, wanted: Mapping[Any, Collection[bytes]], *, follow: bool = True
    ) -> Mapping[Any, Mapping[bytes, Chunk]]:
        """Return what `get` does, for several families at once."""
        return {
            family: self.get(family, digests, follow=follow) for family, digests in wanted.items()
        }

    @abstractmethod
    def total_bytes(self, family: Any, digests: Collection[bytes]) -> int:
        """Return how many bytes some chunks of a family take."""


class Collections(ABC):
    """How chunks that nothing refers to are found and deleted."""

    @abstractmethod
    def pending(self) -> list[Any]:
        """Return the families in which somebody has removed, and did not collect for a while."""

    @abstractmethod
    def clear(self, family: Any) -> bool:
        """Remove some of what is left of a family's deleted threads, and return if there is more.

        So it does with copies that nobody makes any more.
        """

    @abstractmethod
    def begin(self, family: Any) -> Any:
        """Tell the writers of a family that chunks may go, and return what names this collection.

        A write that was prepared before, and is not stored yet, is refused with `Stale`.
        """

    @abstractmethod
    def is_undisturbed(self, family: Any, collection: Any) -> bool:
        """Return whether nobody removed or collected in a family since a collection began."""

    @abstractmethod
    def is_overtaken(self, family: Any, collection: Any) -> bool:
        """Return whether another collection of the family has begun since, and leaves nothing."""

    @abstractmethod
    def references(self, family: Any, after: Any = None) -> Batch[tuple[Any, bytes]]:
        """Return the refs of checkpoints and writes in a family, with the threads' keys."""

    @abstractmethod
    def links(self, family: Any, after: Any = None) -> Batch[tuple[bytes, bytes]]:
        """Return the digests and the refs of chunks of a family that have any."""

    @abstractmethod
    def digests(self, family: Any, after: Any = None) -> Batch[bytes]:
        """Return the digests of chunks of a family."""

    def chunks_at_once(self) -> int:
        """Return how many chunks are removed before others may have their turn."""
        return CHUNKS_AT_ONCE

    @abstractmethod
    def delete_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: Any
    ) -> Counts | None:
        """Remove chunks of a family, but none written since `collection` began.

        With None for `digests`, remove as many as there are, or `chunks_at_once` at least.

        Returns how many there were, and how many bytes they took; None, with nothing removed, if
        somebody removed or collected in the family meanwhile.
        """

    @abstractmethod
    def end(self, family: Any, collection: Any) -> bool:
        """Note that a family is collected, unless somebody removed or collected there meanwhile.

        Returns whether it is.
        """


class Secrets(ABC):
    """What the store keeps to compute MACs and digests with."""

    @abstractmethod
    def store_key(self) -> bytes | None:
        """Return the random bytes by which this store knows again what it gave away."""

    @abstractmethod
    def add_store_key(self, key: bytes) -> None:
        """Set the store's key, unless somebody else sets one at the same moment."""

    @abstractmethod
    def all(self) -> list[bytes]:
        """Return the encrypted keys of digests."""

    @abstractmethod
    def add(self, stored: bytes) -> None:
        """Add an encrypted key of digests, unless somebody else adds one at the same moment."""


class Session(ABC):
    """A transaction, by what can be done in it.

    Everything that is read is as it is stored: unverified, encrypted.
    """

    threads: Threads
    checkpoints: Checkpoints
    records: Records
    search: Search
    leases: Leases
    copies: Copies
    removals: Removals
    chunks: ChunkReads
    collections: Collections
    secrets: Secrets

    @abstractmethod
    def now(self) -> int:
        """Return the time of the database, in microseconds since 1970."""

    def is_spent(self) -> bool:
        """Return whether this transaction is to end soon, so that others have their turn.

        Long work asks now and then, and goes on in another transaction.
        """
        return False


class Storage(ABC):
    """A store of threads, checkpoints, writes and chunks."""

    @property
    def history(self) -> int:
        """A number that goes up when the store turns out to be another, or to have gone back.

        What is remembered of a store is valid for one history. A store that no backup can replace
        has one.
        """
        return 0

    @abstractmethod
    def setup(self) -> None:
        """Make what is not there yet, and check the schema's version."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Session]:
        """Return a context in which to read one consistent state."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Session]:
        """Return a context in which to read and write, as one transaction if there are any."""

    def unstored(self) -> AbstractContextManager[Session]:
        """Return a context in which to read and write what is forgotten at its end.

        It is for what a full disk has no room for, and takes none itself: it is entered after
        `writing` has raised `StorageFull`.
        """
        raise NotImplementedError

    def save_room(self) -> None:  # noqa: B027 - most stores have nothing to do here
        """Where the disk is nearly full, have the work that comes take little more of it."""

    @abstractmethod
    def put(self, put: PutRequest) -> Steps[ThreadRef | None]:
        """Store a checkpoint or writes, chunks first, and keep the thread's record up.

        Returns None, and removes what else its run left behind, if it belongs to a run that began
        before its thread was deleted. A new run begins with a checkpoint: where it is not known
        when the run began, writes that would make a thread where one was deleted are taken for
        late, unless their checkpoint is announced.

        Raises:
            Stale: The thread is not the expected one.
            Rewound: It was prepared for another history.
        """

    def tidy(self) -> bool:
        """Give some free space back to the file system, and return whether there is more."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Close what the store opened itself."""
