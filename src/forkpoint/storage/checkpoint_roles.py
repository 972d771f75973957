"""What a backend does with checkpoints, their writes, and the chunks that these lead to.

Each method is atomic: others see all of what it does, or nothing. In a backend with transactions
that is so by itself, as all calls between the entry and the exit of `Storage.writing` are one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from forkpoint.encoding.chunk import Chunk
from forkpoint.encoding.hashing import Hashing
from forkpoint.storage.plan import Place, Plan
from forkpoint.storage.queries import Batch, CheckpointQuery
from forkpoint.storage.rows import (
    ChangeCount,
    CheckpointRow,
    Counts,
    Description,
    ForkRequest,
    Moment,
    RemovalPart,
    RemovalResult,
    StoredCheckpoint,
    ThreadRef,
    Usage,
    WriteRow,
)

CHUNKS_AT_ONCE = 500
"""How many chunks are removed before others may have their turn, as a rule."""

MOST_UNCOLLECTED = 8
"""A family is due to be collected when one of so many checkpoints was removed."""

Choose = Callable[[Sequence[CheckpointRow]], Plan]
"""Chooses which of a thread's checkpoints, hidden ones included, are to be removed or hidden."""


class Checkpoints(ABC):
    """The checkpoints of threads and their writes, as they are read.

    A hidden checkpoint is one that was removed, and stays because the state of another is rebuilt
    from it. Users do not see it. The rows of receipts are among the writes.
    """

    @abstractmethod
    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
        *,
        with_chunks: bool = False,
    ) -> StoredCheckpoint | None:
        """Return a visible checkpoint with its writes and receipts, and its thread's metadata.

        Args:
            thread_id: The thread.
            checkpoint_ns: The namespace.
            checkpoint_id: The checkpoint; None for the newest of the namespace.
            owner: Only this owner's thread is there; None for whoever's.
            with_chunks: Whether the chunks are needed, too: then some may be read along.
        """

    @abstractmethod
    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        """Return a page of checkpoints with their writes and receipts, newest first."""

    @abstractmethod
    def all(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        """Return all checkpoints of a thread, hidden ones too, in any order."""

    @abstractmethod
    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        """Return a checkpoint, its parent, and so on, hidden ones too; see `shared.ancestors_of`.

        The caller stops where it knows enough.
        """

    @abstractmethod
    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        """Return the writes of some checkpoints to some channels, in any order."""

    @abstractmethod
    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        """Return what a fork of a checkpoint needs to know of its thread.

        Args:
            thread: The thread.
            checkpoint_id: A checkpoint of its own graph, in the namespace "".
            before: The checkpoint id that a time travel looks for the state of subgraphs before.
        """

    @abstractmethod
    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        """Return the writes and receipts of some checkpoints, in any order."""

    @abstractmethod
    def batch(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        """Return a batch of a thread's checkpoints, hidden ones too.

        Together the batches have all checkpoints but those that are put while they are read.

        Args:
            thread: The thread.
            after: What the batch before said; None for the first one.
            with_content: Whether refs and content are needed. A backend may leave them empty.
        """

    def since(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        """Return the visible checkpoints of a long thread from an id on, without refs and content.

        See `Removals.is_long`.
        """
        raise NotImplementedError

    def older(self, thread: ThreadRef, checkpoint_id: str, limit: int) -> list[str]:
        """Return visible checkpoints of a long thread's own graph before an id, newest first."""
        raise NotImplementedError

    @abstractmethod
    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        """Return the checkpoints that runs stored under leases with these fences.

        Args:
            thread: The thread.
            fences: From `start` to before `stop`, which lie far apart: compare with these. `in`
                goes through all of them where it is asked for None, as what has no fence has.
        """

    @abstractmethod
    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        """Return what some of a thread's rows take; the sum of all batches is all of it."""


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

        `shared.rebound` says what of a row differs in the copy. Atomic: the copy is that of one
        moment, is seen when it is complete, and is made only if its id means no thread.

        Args:
            source: The other thread.
            target_id: The id of the new one.
            hashing: The hashes of the store.
            described: The description of the new thread; by default that of the other one.

        Raises:
            ThreadExists: There is a thread of this id; see `shared.thread_exists`.
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
        """Leave a copy or a fork that is not complete to `Collections.clear`."""
        raise NotImplementedError

    def begin_fork(self, graft: ForkRequest) -> Any:
        """Begin what `fork` does, for a source that `is_long`, with some of the rows.

        Returns and raises what `begin` does.
        """
        raise NotImplementedError

    def fork_more(
        self, forking: Any, rows: Sequence[CheckpointRow], writes: Sequence[WriteRow]
    ) -> None:
        """Add rows to a fork. The same errors as those of `copy_more`."""
        raise NotImplementedError

    def end_fork(self, forking: Any) -> None:
        """Show a fork that is complete. The same errors as those of `copy_more`."""
        raise NotImplementedError

    @abstractmethod
    def fork(self, graft: ForkRequest) -> None:
        """Make a thread of rows of another, as a fork of it.

        Atomic: the thread is seen with all rows and chunks, and is made only if its id means no
        thread, and if the source is as it was when its rows were read.

        Raises:
            ThreadExists: There is a thread of this id.
            Stale: The source is not as it was. Nothing was written.
        """


class Removals(ABC):
    """How checkpoints are removed from a thread that stays."""

    @abstractmethod
    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        """Carry out a plan for a thread, and return how many checkpoints and writes were removed.

        The plan says which checkpoints are removed with their writes, which are hidden and lose
        their receipt, and where the work of tasks is undone; see `plan.Plan` and
        `plan.reopens`. Afterwards the record has the count and the status of what is
        left, and prepared writes are refused with `Stale`. Only reopening counts as activity.

        Atomic: between the call of `choose` and the end nobody writes to the thread. Nothing is
        done if the thread is deleted by now.

        Args:
            thread: The thread.
            choose: Is called with all its checkpoints, hidden ones too, and returns the plan.
        """

    @abstractmethod
    def recount(self, thread: ThreadRef) -> None:
        """Set the count and the status in a thread's record to what its rows say.

        Also what searches find it by of its state, which is nothing where that is encrypted.

        Atomic: nobody writes to the thread meanwhile. Nothing is done if it is deleted by now.
        """

    # A backend whose `remove` and `copy` keep others out for long says which threads are long. Then
    # it has these as well, all of `Copies`, and `Checkpoints.since` and `older`.

    def is_long(self, thread: ThreadRef) -> bool:
        """Return whether to remove from a thread, and to copy it, in turns.

        Others read and write between two turns.
        """
        return False

    def is_ordered(self, thread: ThreadRef) -> bool:
        """Return whether all checkpoints of a long thread are newer than their parents, and seen.

        Then none is rebuilt from a newer one, which can be removed without reading the others.
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
        """Carry out some of what is left of a plan, in order; all of it if the plan `is_whole`.

        Atomic: between the call of `check` and the end nobody writes to the thread. What `check`
        raises ends it, with nothing done.

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
        """Return those of these chunks that the store has, by digest.

        Args:
            family: The family.
            digests: Their digests.
            follow: Whether the chunks that they lead to may be returned as well.
        """

    def of_families(
        self, digests: Mapping[Any, Collection[bytes]], *, follow: bool = True
    ) -> Mapping[Any, Mapping[bytes, Chunk]]:
        """Return what `get` does, for several families at once."""
        return {family: self.get(family, named, follow=follow) for family, named in digests.items()}

    @abstractmethod
    def sizes(self, family: Any, digests: Collection[bytes]) -> Mapping[bytes, int]:
        """Return how many bytes the refs and the content take of those chunks that there are."""


class Collections(ABC):
    """How chunks that nothing refers to are found and deleted, while others write.

    A family has an epoch, which every collection and every removal replaces by one that it never
    had. It is part of each `ThreadRef`, so a write that was prepared in another epoch is `Stale`.
    A chunk has the epoch in which it was written last.
    """

    @abstractmethod
    def pending(self) -> list[Any]:
        """Return the families in which somebody removed something, and did not collect for long."""

    def is_due(self, family: Any) -> bool:
        """Return whether so much of a family was removed that reading all of it is worth it."""
        return True

    @abstractmethod
    def clear(self, family: Any) -> bool:
        """Remove some rows of a family's deleted threads and of abandoned copies.

        Returns:
            Whether there are more.
        """

    @abstractmethod
    def begin(self, family: Any) -> Any:
        """Begin an epoch of a family, and return it: the collection.

        Atomic: a write that was prepared before is stored before, or refused with `Stale`.
        """

    @abstractmethod
    def is_undisturbed(self, family: Any, collection: Any) -> bool:
        """Return whether a family still has the epoch of a collection."""

    def is_overtaken(self, family: Any, collection: Any) -> bool:
        """Return whether to leave a family to a later collection that has begun.

        Where none says so, each of two collections that disturb each other begins again.
        """
        return False

    @abstractmethod
    def references(self, family: Any, after: Any = None) -> Batch[tuple[Any, bytes]]:
        """Return the refs of a family's checkpoints and writes, with the keys of the threads.

        Refs of what a write under a lease has replaced are included; see `WriteRow`.
        """

    @abstractmethod
    def links(self, family: Any, after: Any = None) -> Batch[tuple[bytes, bytes]]:
        """Return the digests and the refs of those chunks of a family that have refs."""

    @abstractmethod
    def digests(self, family: Any, after: Any = None) -> Batch[bytes]:
        """Return the digests of a family's chunks."""

    def chunks_at_once(self) -> int:
        """Return how many chunks are removed before others may have their turn."""
        return CHUNKS_AT_ONCE

    @abstractmethod
    def delete_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: Any
    ) -> Counts | None:
        """Remove chunks of a family, but none that was written since the collection began.

        Atomic: it removes chunks only while `is_undisturbed` holds.

        Args:
            family: The family.
            digests: Which chunks; None for any, `chunks_at_once` of them at least if there are
                so many.
            collection: The collection.

        Returns:
            How many chunks were removed, and how many bytes they took. None, with nothing removed,
            if the collection was disturbed.
        """

    @abstractmethod
    def end(self, family: Any, collection: Any) -> bool:
        """Note that a family is collected, unless the collection was disturbed.

        Returns whether the family is collected, by this collection or by another one.
        Then records of deleted threads are removed that no thread descends from which is there.
        """
