"""The catalog of threads: each method checks its arguments and runs one operation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from forkpoint import inputs
from forkpoint.catalog import lease_operations, records
from forkpoint.catalog.arguments import UNCHANGED, _Unchanged, changes_of, new_id
from forkpoint.catalog.bulk import BulkCatalog
from forkpoint.catalog.handover import hand_over
from forkpoint.catalog.lease_operations import LeaseRequest
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.rollover import RolloverRequest, rollover
from forkpoint.catalog.stats import stats as thread_stats
from forkpoint.catalog.threads import LeaseHolder, Thread, ThreadStats
from forkpoint.catalog.twins import async_twin
from forkpoint.errors import InvalidInput
from forkpoint.operations import remove
from forkpoint.results import OnExpiry, PurgeReport


class ThreadCatalog(BulkCatalog):
    """Find, describe, clone, lease, expire and retain threads.

    A thread that a graph ran on is in the catalog without anybody creating it. No method but
    `rollover` decodes a checkpoint. Each method that does I/O has an async twin, whose name begins
    with `a`: it takes the same arguments, and does the same.

    Args:
        saver: The saver with which the graphs run.
        owner: Confines the catalog to the threads of one owner: it finds and changes no others, and
            what it creates belongs to that owner. All owners share one space of ids: an id that
            another owner uses is taken.

    Raises:
        InvalidInput: The saver is confined to another owner.
    """

    # One thread

    def create(
        self,
        thread_id: str | None = None,
        *,
        label: str | None = None,
        tags: Collection[str] = (),
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        on_expiry: OnExpiry | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
        if_exists: str = "raise",
    ) -> Thread:
        """Create a thread.

        Args:
            thread_id: Its id; a UUID of version 7 by default.
            label: A name for people.
            tags: Words to find it by.
            metadata: JSON values, of 64 KiB at most. Keys that begin with `__` are reserved.
            ttl: How long after its last activity it expires, or None for never. By default, the
                saver's `ttl`.
            on_expiry: What `sweep` does then; by default, the saver's `on_expiry`.
            if_exists: `"raise"`, or `"do_nothing"`: return the existing thread as it is. A thread
                that has expired and was not swept yet is renewed.

        Raises:
            ThreadExists: There is a thread with this id, or another owner has one. The id of an
                expired thread is taken until the thread is swept.
            InvalidInput: An argument is of the wrong type.
        """
        choice = inputs.choice(if_exists, "if_exists", ("raise", "do_nothing"))
        changes = changes_of(label, tags, metadata, ttl, on_expiry)
        checked = new_id(thread_id, "thread_id")
        return self._operations.run(records.create, checked, changes, choice == "do_nothing")

    acreate = async_twin(create)

    def get(self, thread_id: str) -> Thread | None:
        """Return a thread, or None if there is none or it has expired."""
        return self._operations.run(records.get, inputs.identifier(thread_id, "thread_id"))

    aget = async_twin(get)

    def get_or_create(
        self,
        thread_id: str,
        *,
        label: str | None = None,
        tags: Collection[str] = (),
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        on_expiry: OnExpiry | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
    ) -> Thread:
        """Return a thread as it is, or create it. Of several callers at once, one creates it.

        A thread that has expired and was not swept yet is renewed. The arguments are those of
        `create`, and count only for a new thread.

        Raises:
            ThreadExists: Another owner has a thread with this id.
            InvalidInput: An argument is of the wrong type.
        """
        changes = changes_of(label, tags, metadata, ttl, on_expiry)
        checked = inputs.identifier(thread_id, "thread_id")
        return self._operations.run(records.create, checked, changes, True)

    aget_or_create = async_twin(get_or_create)

    def update(
        self,
        thread_id: str,
        *,
        label: str | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        tags: Collection[str] | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        on_expiry: OnExpiry | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
        owner: str | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
    ) -> Thread:
        """Change the description of a thread. What is not passed stays as it is.

        Args:
            thread_id: The thread.
            label: Another name, or None for none.
            tags: All tags of the thread from now on.
            metadata: Merged into the metadata of the thread, key by key.
            ttl: How long after its last activity it expires, or None for never.
            on_expiry: What `sweep` does then.
            owner: To whom it belongs from now on, or None for nobody. Its sources, forks and clones
                stay with their owner, and the lineage between them and this thread is forgotten.
                For its former owner it is as if it had been deleted, even for runs that go on.

        Raises:
            ThreadNotFound: There is no such thread.
            InvalidInput: An argument is of the wrong type, or `owner` is passed to a catalog that
                is confined to one owner.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        changes = changes_of(label, tags, metadata, ttl, on_expiry)
        if owner is UNCHANGED:
            return self._operations.run(records.update, checked, changes)
        if self._context.owner is not None:
            raise InvalidInput(
                f"the catalog is confined to owner {self._context.owner!r}, and gives no thread "
                "away; update(owner=...) is for a catalog of all owners"
            )
        new_owner = None if owner is None else inputs.identifier(owner, "owner")
        return self._operations.run(hand_over, checked, changes, new_owner)

    aupdate = async_twin(update)

    def delete(self, thread_id: str) -> PurgeReport:
        """Delete a thread with everything that it stores.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        return self._operations.run(remove.purge, inputs.identifier(thread_id, "thread_id"))

    adelete = async_twin(delete)

    def clone(
        self,
        source_thread_id: str,
        new_thread_id: str | None = None,
        *,
        checkpoints: bool = True,
        label: str | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        tags: Collection[str] | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        on_expiry: OnExpiry | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
    ) -> Thread:
        """Create a thread like another one, which stays as it is. No chunk is copied.

        Args:
            source_thread_id: The thread to clone, as it is at one moment, even while it is busy.
            new_thread_id: The id of the clone; a UUID of version 7 by default.
            checkpoints: Whether the clone has the checkpoints and writes of the source.
            label, tags, metadata, ttl, on_expiry: As in `update`. What is not passed is as in the
                source.

        Raises:
            ThreadNotFound: There is no source.
            ThreadExists: There is a thread `new_thread_id`, or another owner has one.
            InvalidInput: An argument is of the wrong type.
        """
        return self._operations.run(
            records.clone,
            inputs.identifier(source_thread_id, "source_thread_id"),
            new_id(new_thread_id, "new_thread_id"),
            changes_of(label, tags, metadata, ttl, on_expiry),
            inputs.flag(checkpoints, "checkpoints"),
        )

    aclone = async_twin(clone)

    def rollover(
        self,
        thread_id: str,
        new_thread_id: str | None = None,
        *,
        channels: Sequence[str] = (),
        values: Mapping[str, Any] | None = None,
        label: str | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        tags: Collection[str] | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        on_expiry: OnExpiry | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
    ) -> Thread:
        """Create a successor of a thread that has grown too long. The old thread stays as it is.

        Args:
            thread_id: The old thread.
            new_thread_id: The id of the new thread; a UUID of version 7 by default.
            channels: The channels whose values the new thread takes over from the old one's newest
                state.
            values: Further values that the new thread begins with, by channel, such as a summary.
            label, tags, metadata, ttl, on_expiry: As in `clone`.

        Raises:
            ThreadNotFound: There is no such thread.
            ThreadExists: There is a thread `new_thread_id`, or another owner has one.
            InvalidInput: There is no such channel, its value is not stored (`DeltaChannel`), or an
                argument is of the wrong type.
        """
        request = RolloverRequest(
            inputs.identifier(thread_id, "thread_id"),
            new_id(new_thread_id, "new_thread_id"),
            inputs.channels(channels),
            inputs.named_values(values, "values"),
            changes_of(label, tags, metadata, ttl, on_expiry),
            self._saver.get_next_version,
        )
        return self._operations.run(rollover, request)

    arollover = async_twin(rollover)

    def stats(self, thread_id: str) -> ThreadStats:
        """Return how much a thread stores. The larger its family, the longer this takes.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        return self._operations.run(thread_stats, inputs.identifier(thread_id, "thread_id"))

    astats = async_twin(stats)

    # Leases

    def run(
        self,
        thread_id: str,
        *,
        if_busy: str = "raise",
        ttl: timedelta = timedelta(seconds=30),
        timeout: timedelta | None = None,
        must_exist: bool = False,
    ) -> Lease:
        """Return the right to be the only active run on a thread, across processes and hosts.

        The lease holds within a `with` or an `async with` block, and is renewed while the block
        runs. Run the graph with the lease's `.config`: once the lease is lost, what the run puts is
        refused with `StaleLease`. A thread that does not exist is created.

        Args:
            thread_id: The thread.
            if_busy: What to do while another run has the lease. `"raise"` raises. `"wait"` waits:
                those who wait get the lease in the order in which they came. `"cancel"` takes the
                lease over, and answers the tool calls that the other run left open; see
                `Lease.answer_tool_calls`. `"rollback"` takes the lease over, and removes the
                checkpoints and writes that were stored under it; if that is cut off, the next run
                finishes it first.
            ttl: How long the lease lasts if its holder dies.
            timeout: How long to wait at most; for ever by default.
            must_exist: Whether to refuse a thread that does not exist, or that is deleted by the
                time the lease begins.

        Raises:
            ThreadBusy: Another run has the lease. It is raised when the block is entered.
            ThreadNotFound: There is no such thread, and it must exist. It is raised then as well.
            InvalidInput: An argument is of the wrong type.
        """
        request = LeaseRequest(
            inputs.identifier(thread_id, "thread_id"),
            inputs.choice(if_busy, "if_busy", ("raise", "wait", "cancel", "rollback")),
            inputs.duration(ttl, "ttl"),
            None if timeout is None else inputs.duration(timeout, "timeout") / 1_000_000,
            inputs.flag(must_exist, "must_exist"),
        )
        return Lease(self._context, self._runner, request, self._saver.get_next_version)

    arun = run
    """The same: what `run` returns works under `async with`."""

    def lease(self, thread_id: str) -> LeaseHolder | None:
        """Return who runs on a thread under a lease, or None.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        return self._operations.run(
            lease_operations.holder_of, inputs.identifier(thread_id, "thread_id")
        )

    alease = async_twin(lease)

    def is_busy(self, thread_id: str) -> bool:
        """Return whether somebody runs on a thread under a lease.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        return self._operations.run(
            lease_operations.is_busy, inputs.identifier(thread_id, "thread_id")
        )

    ais_busy = async_twin(is_busy)
