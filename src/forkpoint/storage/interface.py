"""What a backend must do; the operations are written against it, and know nothing of SQL.

`README.md` beside this file says how to write a backend, `format.md` what the records mean.

A `Session` is a transaction. Its roles stand in `thread_roles` and `checkpoint_roles`. A backend
without transactions makes each method atomic by itself: the operations call them in such an order
that stopping between two leaves nothing dangling.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from forkpoint.runtime.steps import Again, Steps
from forkpoint.storage.checkpoint_roles import (
    CHUNKS_AT_ONCE,
    MOST_UNCOLLECTED,
    Checkpoints,
    Choose,
    ChunkReads,
    Collections,
    Copies,
    Removals,
)
from forkpoint.storage.content_roles import Contents, Secrets
from forkpoint.storage.rows import PutRequest, ThreadRef
from forkpoint.storage.thread_roles import Leases, Records, Search, Threads

SCHEMA_VERSION = 1
"""The version of the stored format, which a store says it has."""

STORE_KEY_BYTES = 32
"""How long a store's key is."""


class Stale(Exception):
    """What a call was prepared for no longer holds. Nothing was written, and it begins again."""


class HistoryChanged(Stale, Again):
    """The store is another, or went back: what is remembered of it no longer holds.

    Its file was replaced, say, or a backup was restored. Nothing was written.
    """


class Session(ABC):
    """A transaction: what can be read and done in it, by role.

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
    contents: Contents

    @abstractmethod
    def now(self) -> int:
        """Return the time of the store, in microseconds since 1970. It never goes back."""

    def is_spent(self) -> bool:
        """Return whether this transaction has read or changed so much that it should end.

        Long work asks now and then. It goes on in another transaction, and others have their turn
        in between.
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

    def look(self) -> None:  # noqa: B027 - only a file is replaced behind a connection
        """Notice now whether the store was replaced, before a call relies on what is remembered."""

    @property
    def open_session(self) -> Session | None:
        """The session that this thread is in, if it can open no other one meanwhile."""
        return None

    @abstractmethod
    def setup(self) -> None:
        """Make what is not there yet, and check the schema's version.

        It may be called at any time, by several processes at once. See
        `shared.check_schema_version`.
        """

    @abstractmethod
    def reading(self) -> AbstractContextManager[Session]:
        """Return a context in which to read one consistent state."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Session]:
        """Return a context in which to read and write, as one transaction if there are any.

        An exception that leaves the context undoes everything.
        """

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
        """Store a checkpoint or writes, make their thread if need be, and keep its record up.

        It is a generator, so that it can wait for others without keeping a thread of the process.
        One that has nothing to wait for begins with `yield from ()`.

        Atomic: a checkpoint is seen with all its chunks, its receipt and its count, or not at all.
        Nothing is stored unless the thread is the expected one, in its epoch, and has the fence.
        A task's writes are stored once; those for which `receipts.replaces` holds replace the ones
        before. What a run under a lease replaces is kept for `Plan.withdrawn`.

        Returns:
            The thread. None, with nothing stored, if the put belongs to a run that began before
            its thread was deleted; see `shared.admission`.

        Raises:
            Stale: The thread is not the expected one.
            StaleLease: The thread has another fence.
            HistoryChanged: It was prepared for another history.
        """

    def tidy(self) -> bool:
        """Give some free space back to the file system, and return whether there is more."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Close what the store opened itself."""


__all__ = [
    "CHUNKS_AT_ONCE",
    "MOST_UNCOLLECTED",
    "SCHEMA_VERSION",
    "STORE_KEY_BYTES",
    "Checkpoints",
    "Choose",
    "ChunkReads",
    "Collections",
    "Contents",
    "Copies",
    "HistoryChanged",
    "Leases",
    "Records",
    "Removals",
    "Search",
    "Secrets",
    "Session",
    "Stale",
    "Storage",
    "Threads",
]
