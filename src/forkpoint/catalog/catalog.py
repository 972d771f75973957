"""The catalog of threads: each method checks its input and runs one operation."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from forkpoint import inputs
from forkpoint.catalog import leases, retention
from forkpoint.catalog import records as cataloguing
from forkpoint.catalog import search as searching
from forkpoint.catalog.archive import Archive, JsonLines
from forkpoint.catalog.criteria import SORT_KEYS, Criteria, criteria_of
from forkpoint.catalog.handover import hand_over
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.records import Changes, NewRollover
from forkpoint.catalog.retention import (
    Progress,
    RetentionPolicy,
    RetentionResult,
    Rules,
    Sweeper,
    Task,
)
from forkpoint.catalog.search import ThreadSearch
from forkpoint.catalog.threads import (
    LeaseHolder,
    Page,
    Thread,
    ThreadFilter,
    ThreadStats,
)
from forkpoint.encoding.codec import cipher_of
from forkpoint.errors import InvalidInput
from forkpoint.operations import remove as removing
from forkpoint.results import OnExpiry, PurgeReport
from forkpoint.saver import ForkpointSaver, parts_of

_LARGEST_PAGE = 1000
_LARGEST_OFFSET = 10_000
_WALKED = 200  # threads in each page of `walk`


class _Unchanged(Enum):
    UNCHANGED = "what it was"


UNCHANGED = _Unchanged.UNCHANGED
"""The default of what an update or a clone leaves as it is."""


class ThreadCatalog:
    """Find, describe, clone, lease, expire and retain threads.

    Threads that a graph ran on are in it without anybody making them. No method but `rollover`
    reads a checkpoint. Each method that does I/O has an async twin, prefixed with `a`, that takes
    the same arguments and does the same.

    Args:
        saver: The saver that the graphs run with.
        owner: Whose threads alone there are: those of others do not exist for this catalog, and
            what it makes is the owner's. Ids are one space: an id that somebody else uses is taken.

    Raises:
        InvalidInput: The saver is confined to another owner.
    """

    def __init__(self, saver: ForkpointSaver, *, owner: str | None = None) -> None:
        if not isinstance(saver, ForkpointSaver):
            raise InvalidInput(
                f"saver must be a SqliteSaver or a MongoDBSaver, not {type(saver).__name__}"
            )
        self._saver = saver if owner is None else saver.for_owner(owner)
        self._context, self._runner = parts_of(self._saver)

    @property
    def saver(self) -> ForkpointSaver:
        """The saver to compile graphs with, which reaches the same threads as this catalog."""
        return self._saver

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
        """Make a thread.

        Args:
            thread_id: Its id; a UUID of version 7 by default.
            label: A name for people.
            tags: Words to find it by.
            metadata: JSON values, of 64 KiB at most. Keys that begin with `__` are reserved.
            ttl: How long after its last activity it expires, or None for never. By default, the
                saver's `ttl`.
            on_expiry: What `sweep` does then; by default, the saver's `on_expiry`.
            if_exists: With `"do_nothing"`, a thread that exists is returned as it is; one that
                has expired, and was not swept yet, is renewed.

        Raises:
            ThreadExists: There is a thread of this id, or somebody else has one. That of a
                thread that has expired is taken until it is swept.
            InvalidInput: An argument is of the wrong type.
        """
        new = _new(thread_id, label, tags, metadata, ttl, on_expiry, if_exists)
        return self._runner.run(_create, self._context, *new)

    async def acreate(
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
        """Do what `create` does."""
        new = _new(thread_id, label, tags, metadata, ttl, on_expiry, if_exists)
        return await self._runner.arun(_create, self._context, *new)

    def get(self, thread_id: str) -> Thread | None:
        """Return a thread, or None if there is none, or it has expired."""
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(cataloguing.get, self._context, checked)

    async def aget(self, thread_id: str) -> Thread | None:
        """Do what `get` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(cataloguing.get, self._context, checked)

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
        """Return a thread, as it is, or make it. Of several that do so at once, one makes it.

        One that has expired, and was not swept yet, is renewed.

        Raises:
            ThreadExists: Somebody else has a thread of this id.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        new = _new(checked, label, tags, metadata, ttl, on_expiry, "do_nothing")
        return self._runner.run(_create, self._context, *new)

    async def aget_or_create(
        self,
        thread_id: str,
        *,
        label: str | None = None,
        tags: Collection[str] = (),
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | Literal[_Unchanged.UNCHANGED] | None = UNCHANGED,
        on_expiry: OnExpiry | Literal[_Unchanged.UNCHANGED] = UNCHANGED,
    ) -> Thread:
        """Do what `get_or_create` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        new = _new(checked, label, tags, metadata, ttl, on_expiry, "do_nothing")
        return await self._runner.arun(_create, self._context, *new)

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
        """Say something else of a thread. What is not given stays as it is.

        Args:
            thread_id: The thread.
            label: Another name, or None for none.
            tags: The tags that it has from now on.
            metadata: Merged into what there is, key by key.
            ttl: How long after its last activity it expires, or None for never.
            on_expiry: What `sweep` does then.
            owner: Whose it is from now on, or None for nobody's. A catalog of one owner gives no
                thread away. Threads that it was made from, or that were made from it, stay whose
                they are, and it is said no longer that they were. For its owner before, it is as if
                it had been deleted, for runs that are going on, too.

        Raises:
            ThreadNotFound: There is no such thread.
            InvalidInput: An argument is of the wrong type, or the catalog is that of one owner.
        """
        update, *checked = self._update(thread_id, owner, label, tags, metadata, ttl, on_expiry)
        updated: Thread = self._runner.run(update, self._context, *checked)
        return updated

    async def aupdate(
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
        """Do what `update` does."""
        update, *checked = self._update(thread_id, owner, label, tags, metadata, ttl, on_expiry)
        updated: Thread = await self._runner.arun(update, self._context, *checked)
        return updated

    def _update(self, thread_id: object, owner: object, *said: Any) -> Any:
        checked = inputs.identifier(thread_id, "thread_id"), _changes(*said)
        if owner is UNCHANGED:
            return cataloguing.update, *checked
        if self._context.owner is not None:
            raise InvalidInput(
                f"the catalog is confined to owner {self._context.owner!r}, and gives no thread "
                "away; update(owner=...) is for a catalog of all owners"
            )
        heir = None if owner is None else inputs.identifier(owner, "owner")
        return hand_over, *checked, heir

    def delete(self, thread_id: str) -> PurgeReport:
        """Remove a thread with everything that it stores.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(removing.purge, self._context, checked)

    async def adelete(self, thread_id: str) -> PurgeReport:
        """Do what `delete` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(removing.purge, self._context, checked)

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
        """Make a thread like another, which stays as it is. No chunk is copied.

        Args:
            source_thread_id: The other. While it is running, it is cloned as it is at one moment.
            new_thread_id: The id of the clone; a UUID of version 7 by default.
            checkpoints: Whether it has the other's checkpoints and writes.
            label: As in `update`: what is not given is as in the source.
            tags: As in `update`.
            metadata: As in `update`.
            ttl: As in `update`.
            on_expiry: As in `update`.

        Raises:
            ThreadNotFound: There is no source.
            ThreadExists: There is a thread `new_thread_id`, or somebody else has one.
        """
        given = _changes(label, tags, metadata, ttl, on_expiry)
        new = _clone(source_thread_id, new_thread_id, given, checkpoints)
        return self._runner.run(cataloguing.clone, self._context, *new)

    async def aclone(
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
        """Do what `clone` does."""
        given = _changes(label, tags, metadata, ttl, on_expiry)
        new = _clone(source_thread_id, new_thread_id, given, checkpoints)
        return await self._runner.arun(cataloguing.clone, self._context, *new)

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
        """Make a successor of a thread that has grown too long. The old one stays as it is.

        Args:
            thread_id: The old thread.
            new_thread_id: The id of the new one; a UUID of version 7 by default.
            channels: What of the old one's newest state the new one begins with.
            values: What else it begins with, by channel, such as a summary.
            label: As in `clone`.
            tags: As in `clone`.
            metadata: As in `clone`.
            ttl: As in `clone`.
            on_expiry: As in `clone`.

        Raises:
            ThreadNotFound: There is no such thread.
            ThreadExists: There is a thread `new_thread_id`, or somebody else has one.
            InvalidInput: There is no such channel, or its value is not stored (`DeltaChannel`).
        """
        given = _changes(label, tags, metadata, ttl, on_expiry)
        new = self._rollover(thread_id, new_thread_id, channels, values, given)
        return self._runner.run(cataloguing.rollover, self._context, new)

    async def arollover(
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
        """Do what `rollover` does."""
        given = _changes(label, tags, metadata, ttl, on_expiry)
        new = self._rollover(thread_id, new_thread_id, channels, values, given)
        return await self._runner.arun(cataloguing.rollover, self._context, new)

    def _rollover(
        self, source: object, target: object, channels: object, values: object, changes: Changes
    ) -> NewRollover:
        return NewRollover(
            inputs.identifier(source, "thread_id"),
            _id(target, "new_thread_id"),
            inputs.channels(channels),
            inputs.named_values(values, "values"),
            changes,
            self._saver.get_next_version,
        )

    def stats(self, thread_id: str) -> ThreadStats:
        """Return what a thread takes. The larger its family, the longer it takes to say.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(cataloguing.stats, self._context, checked)

    async def astats(self, thread_id: str) -> ThreadStats:
        """Do what `stats` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(cataloguing.stats, self._context, checked)

    # Searching

    def search(
        self,
        filter: ThreadFilter | None = None,
        *,
        sort_by: str = "updated_at",
        descending: bool = True,
        limit: int = 50,
        cursor: str | None = None,
        offset: int = 0,
    ) -> Page[Thread]:
        """Return a page of the threads that match, and have not expired.

        Going on from page to page, each thread that matches all the time is on one page and on no
        other, whatever is written meanwhile. The order is that of the moment of the first page in
        MongoDB, and of the second one in SQLite, where a first page alone leaves nothing behind.
        It is kept for an hour in SQLite, until the last page is read or 100 other searches have
        come to their second one, and in MongoDB for as long as the server keeps snapshots, five
        minutes by default, if it is not a standalone server. Then the walk goes on in the order
        that there is by then: a thread that changed since may be left out or come twice.

        Args:
            filter: Which threads; all by default.
            sort_by: `"updated_at"`, `"state_updated_at"`, `"created_at"`, `"thread_id"` or
                `"status"`; then by id.
            descending: Whether the newest, or the last, comes first.
            limit: How many, 1,000 at most.
            cursor: The `next_cursor` of the page before, with the same filter and order.
            offset: Instead of a cursor, how many threads to leave out before the first one, 10,000
                at most. Such a page is read as it is at the moment, and has no `next_cursor`. The
                higher it is, the longer it takes.

        Raises:
            InvalidInput: An argument is of the wrong type, or the cursor is of another search.
        """
        request = self._search(filter, sort_by, descending, limit, cursor, offset)
        return self._runner.run(searching.search, self._context, request)

    async def asearch(
        self,
        filter: ThreadFilter | None = None,
        *,
        sort_by: str = "updated_at",
        descending: bool = True,
        limit: int = 50,
        cursor: str | None = None,
        offset: int = 0,
    ) -> Page[Thread]:
        """Do what `search` does."""
        request = self._search(filter, sort_by, descending, limit, cursor, offset)
        return await self._runner.arun(searching.search, self._context, request)

    def walk(
        self,
        filter: ThreadFilter | None = None,
        *,
        sort_by: str = "updated_at",
        descending: bool = True,
    ) -> Iterator[Thread]:
        """Return all threads that match, read in pages as the iterator goes on; see `search`."""
        request = self._search(filter, sort_by, descending, _WALKED, None)
        return self._walk(request)

    def _walk(self, request: ThreadSearch) -> Iterator[Thread]:
        while True:
            page = self._runner.run(searching.search, self._context, request)
            yield from page
            if page.next_cursor is None:
                return
            request = request._replace(cursor=page.next_cursor)

    def awalk(
        self,
        filter: ThreadFilter | None = None,
        *,
        sort_by: str = "updated_at",
        descending: bool = True,
    ) -> AsyncIterator[Thread]:
        """Do what `walk` does."""
        request = self._search(filter, sort_by, descending, _WALKED, None)
        return self._awalk(request)

    async def _awalk(self, request: ThreadSearch) -> AsyncIterator[Thread]:
        while True:
            page = await self._runner.arun(searching.search, self._context, request)
            for thread in page:
                yield thread
            if page.next_cursor is None:
                return
            request = request._replace(cursor=page.next_cursor)

    def count(self, filter: ThreadFilter | None = None) -> int:
        """Return how many threads match, and have not expired."""
        return self._runner.run(searching.count, self._context, self._criteria(filter))

    async def acount(self, filter: ThreadFilter | None = None) -> int:
        """Do what `count` does."""
        return await self._runner.arun(searching.count, self._context, self._criteria(filter))

    def _search(
        self,
        filter: object,
        sort_by: object,
        descending: object,
        limit: object,
        cursor: object,
        offset: object = 0,
    ) -> ThreadSearch:
        left_out = inputs.count(offset, "offset", 0)
        if left_out and cursor is not None:
            raise InvalidInput("a search goes on at a cursor or at an offset, and not at both")
        if left_out > _LARGEST_OFFSET:
            raise InvalidInput(
                f"offset is {left_out}, and {_LARGEST_OFFSET} at most is allowed; go on by cursors"
            )
        return ThreadSearch(
            self._criteria(filter),
            inputs.choice(sort_by, "sort_by", SORT_KEYS),
            inputs.flag(descending, "descending"),
            min(inputs.count(limit, "limit", 1), _LARGEST_PAGE),
            None if cursor is None else inputs.text(cursor, "cursor"),
            left_out,
        )

    def _criteria(self, filter: object) -> Criteria:
        criteria = criteria_of(filter)
        if "values" in criteria and cipher_of(self._saver.serde) is not None:
            raise InvalidInput(
                "values cannot be searched by where the serializer encrypts: nothing of them is "
                "stored in the clear"
            )
        owner = self._context.owner
        if owner is None:
            return criteria
        if criteria.get("owner", owner) != owner:
            return {**criteria, "owner": owner, "ids": ()}  # other owners' threads do not exist
        return {**criteria, "owner": owner}

    # Leases

    def run(
        self,
        thread_id: str,
        *,
        if_busy: str = "raise",
        ttl: timedelta = timedelta(seconds=30),
        timeout: timedelta | None = None,
    ) -> Lease:
        """Return the right to be the only active run on a thread, across processes and hosts.

        It is had within a `with` or an `async with` block, and renewed while the block runs. Run
        the graph with its `.config`: once the lease is lost, what the run puts is refused with
        `StaleLease`. A thread that does not exist is made.

        Args:
            thread_id: The thread.
            if_busy: While another has the lease, `"raise"` raises, `"wait"` waits, and those who
                wait have it in the order in which they came; `"cancel"` takes it over, and answers
                calls of tools that it finds without an answer; see `Lease.answer_tool_calls`;
                `"rollback"` takes it over and removes what was stored under it: checkpoints, and
                writes at those that stay. If that is cut off, the next run ends it first.
            ttl: How long the lease lasts if its holder dies.
            timeout: How long to wait at most.

        Raises:
            ThreadBusy: Another run has the lease; on entering the block.
        """
        return Lease(
            self._context,
            self._runner,
            inputs.identifier(thread_id, "thread_id"),
            inputs.choice(if_busy, "if_busy", ("raise", "wait", "cancel", "rollback")),
            inputs.duration(ttl, "ttl"),
            None if timeout is None else inputs.duration(timeout, "timeout") / 1_000_000,
            next_version=self._saver.get_next_version,
        )

    arun = run
    """The same: what `run` returns works under `async with`."""

    def lease(self, thread_id: str) -> LeaseHolder | None:
        """Return who runs on a thread, or None.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(leases.holder_of, self._context, checked)

    async def alease(self, thread_id: str) -> LeaseHolder | None:
        """Do what `lease` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(leases.holder_of, self._context, checked)

    def is_busy(self, thread_id: str) -> bool:
        """Return whether somebody runs on a thread under a lease.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        return self.lease(thread_id) is not None

    async def ais_busy(self, thread_id: str) -> bool:
        """Do what `is_busy` does."""
        return await self.alease(thread_id) is not None

    # Retention

    def apply_retention(
        self,
        policy: RetentionPolicy,
        filter: ThreadFilter | None = None,
        *,
        dry_run: bool = False,
        archive: Archive | str | os.PathLike[str] | None = None,
        on_progress: Progress | None = None,
    ) -> RetentionResult:
        """Delete and trim the threads that a policy does not keep, in batches.

        It may be stopped anywhere, and run again. Threads that are busy are left alone.

        Args:
            policy: The rules.
            filter: Which threads alone they are for.
            dry_run: Only say what would be done.
            archive: The path of a file to which each thread is appended as a line of JSON, or what
                is called with it and an iterator over its checkpoints. Only when that is done is
                the thread deleted.
            on_progress: Is called after each batch with what was done so far, and meanwhile where a
                thread takes long.

        Raises:
            InvalidInput: The policy has no rule, or an argument is of the wrong type.
        """
        task = self._task(policy, filter, dry_run, archive, on_progress)
        return self._runner.run(retention.apply, self._context, self._runner, task)

    async def aapply_retention(
        self,
        policy: RetentionPolicy,
        filter: ThreadFilter | None = None,
        *,
        dry_run: bool = False,
        archive: Archive | str | os.PathLike[str] | None = None,
        on_progress: Progress | None = None,
    ) -> RetentionResult:
        """Do what `apply_retention` does. The callbacks are called on another thread."""
        task = self._task(policy, filter, dry_run, archive, on_progress)
        return await self._runner.arun(retention.apply, self._context, self._runner, task)

    def bulk_delete(self, filter: ThreadFilter, *, dry_run: bool = False) -> int:
        """Delete all threads that match and are not busy, and return how many.

        Those that have expired are among them, though `search` and `count` leave them out.

        Args:
            filter: Which; one that matches all threads is refused.
            dry_run: Only count them.

        Raises:
            InvalidInput: The filter is empty.
        """
        task = self._bulk(filter, dry_run)
        done = self._runner.run(retention.apply, self._context, self._runner, task)
        return len(done.deleted)

    async def abulk_delete(self, filter: ThreadFilter, *, dry_run: bool = False) -> int:
        """Do what `bulk_delete` does."""
        task = self._bulk(filter, dry_run)
        done = await self._runner.arun(retention.apply, self._context, self._runner, task)
        return len(done.deleted)

    def sweep(
        self,
        *,
        archive: Archive | str | os.PathLike[str] | None = None,
        on_progress: Progress | None = None,
    ) -> RetentionResult:
        """Delete the threads whose time to live has passed, or trim them, as `on_expiry` says.

        One with `"keep_latest"` is found all the time. A sweep after its time to live removes all
        but the newest checkpoint of each namespace, whose state is as it was. That is no activity:
        the thread is left alone until it is active again, and its time to live has passed again.

        Args:
            archive: As in `apply_retention`, for threads that are deleted.
            on_progress: As in `apply_retention`.

        Returns:
            Which threads were `deleted`, and which were `trimmed`.
        """
        policy = RetentionPolicy(expired=True)
        return self.apply_retention(policy, archive=archive, on_progress=on_progress)

    async def asweep(
        self,
        *,
        archive: Archive | str | os.PathLike[str] | None = None,
        on_progress: Progress | None = None,
    ) -> RetentionResult:
        """Do what `sweep` does."""
        policy = RetentionPolicy(expired=True)
        return await self.aapply_retention(policy, archive=archive, on_progress=on_progress)

    def sweeper(
        self,
        interval: timedelta,
        *,
        archive: Archive | str | os.PathLike[str] | None = None,
    ) -> Sweeper:
        """Start to sweep in the background, now and again after each interval.

        Returns:
            What stops it: by `stop`, or at the end of a `with` or an `async with` block.
        """
        seconds = inputs.duration(interval, "interval") / 1_000_000
        task = self._task(RetentionPolicy(expired=True), None, False, archive, None)
        return Sweeper(
            lambda: self._runner.run(retention.apply, self._context, self._runner, task), seconds
        )

    def _task(
        self, policy: object, filter: object, dry_run: object, archive: Any, on_progress: Any
    ) -> Task:
        is_dry = inputs.flag(dry_run, "dry_run")
        if on_progress is not None:
            inputs.callback(on_progress, "on_progress")
        rules, criteria = _rules(policy), self._criteria(filter)
        if isinstance(archive, (str, os.PathLike)):
            path = inputs.path(archive, "archive")
            archive = None if is_dry else JsonLines(path, self._saver.serde)
        elif archive is not None:
            inputs.callback(archive, "archive")
        return Task(rules, criteria, is_dry, archive, on_progress)

    def _bulk(self, filter: object, dry_run: object) -> Task:
        is_dry = inputs.flag(dry_run, "dry_run")
        if not criteria_of(filter):
            raise InvalidInput("the filter is empty, and would delete all threads")
        return Task(Rules(everything=True), self._criteria(filter), is_dry)


def _create(context: Any, thread_id: str, said: Changes, may_exist: bool) -> Thread:
    return cataloguing.create(context, thread_id, said, may_exist=may_exist)


def _id(value: object, what: str) -> str:
    return str(uuid7()) if value is None else inputs.identifier(value, what)


def _new(
    thread_id: object,
    label: object,
    tags: object,
    metadata: object,
    ttl: object,
    on_expiry: object,
    if_exists: object,
) -> tuple[str, Changes, bool]:
    choice = inputs.choice(if_exists, "if_exists", ("raise", "do_nothing"))
    said = _changes(label, tags, metadata, ttl, on_expiry)
    return _id(thread_id, "thread_id"), said, choice == "do_nothing"


def _clone(
    source: object, target: object, changes: Changes, checkpoints: object
) -> tuple[str, str, Changes, bool]:
    checked = inputs.identifier(source, "source_thread_id"), _id(target, "new_thread_id")
    return *checked, changes, inputs.flag(checkpoints, "checkpoints")


def _changes(
    label: object, tags: object, metadata: object, ttl: object, on_expiry: object
) -> Changes:
    cleared = {name for name, value in (("label", label), ("ttl", ttl)) if value is None}
    return Changes(
        None if label is None or label is UNCHANGED else inputs.identifier(label, "label"),
        None if tags is UNCHANGED else inputs.tags(tags, "tags"),
        inputs.described_metadata(metadata),
        None if ttl is None or ttl is UNCHANGED else inputs.duration(ttl, "ttl"),
        None
        if on_expiry is UNCHANGED
        else inputs.choice(on_expiry, "on_expiry", ("delete", "keep_latest")),
        frozenset(cleared),
    )


def _rules(policy: object) -> Rules:
    if not isinstance(policy, RetentionPolicy):
        raise InvalidInput(f"policy must be a RetentionPolicy, not {type(policy).__name__}")
    keep, made = policy.max_checkpoints_per_thread, policy.max_checkpoint_age
    rules = Rules(
        None if policy.max_age is None else inputs.duration(policy.max_age, "max_age"),
        None if policy.max_idle is None else inputs.duration(policy.max_idle, "max_idle"),
        None if keep is None else inputs.count(keep, "max_checkpoints_per_thread", 1),
        inputs.flag(policy.expired, "expired"),
        frozenset(inputs.tags(policy.keep_tags, "keep_tags")),
        max_checkpoint_age=None if made is None else inputs.duration(made, "max_checkpoint_age"),
    )
    if rules._replace(keep_tags=frozenset()) == Rules():
        raise InvalidInput("the policy has no rule; give it max_age, max_idle, or another")
    return rules


def uuid7() -> UUID:
    """Return a UUID of version 7, which begins with the time (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    high, low = random >> 62, random & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low)
