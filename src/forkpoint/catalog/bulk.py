"""The part of the catalog for many threads: creating, finding, counting and removing them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import timedelta

from forkpoint import inputs
from forkpoint.catalog import records
from forkpoint.catalog import search as searches
from forkpoint.catalog.arguments import NewThread, archive_of, new_threads, rules_of, search_of
from forkpoint.catalog.criteria import Criteria, criteria_of
from forkpoint.catalog.retention import Archive, Progress, RetentionPolicy, RetentionResult, Rules
from forkpoint.catalog.retention_pass import RetentionTask, apply_retention, bulk_delete
from forkpoint.catalog.search import ThreadSearch
from forkpoint.catalog.stats import StatsProgress, store_stats
from forkpoint.catalog.sweeper import Sweeper
from forkpoint.catalog.threads import Page, StoreStats, Thread, ThreadFilter
from forkpoint.catalog.twins import Operations, async_twin
from forkpoint.encoding.encryption import cipher_of
from forkpoint.errors import InvalidInput
from forkpoint.saver import ForkpointSaver, parts_of

_WALK_PAGE = 200  # threads


class BulkCatalog:
    """Create, search, count, retain and delete many threads; see `forkpoint.ThreadCatalog`."""

    def __init__(self, saver: ForkpointSaver, *, owner: str | None = None) -> None:
        if not isinstance(saver, ForkpointSaver):
            raise InvalidInput(
                f"saver must be a SqliteSaver or a MongoDBSaver, not {type(saver).__name__}"
            )
        self._saver = saver if owner is None else saver.for_owner(owner)
        self._context, self._runner = parts_of(self._saver)
        self._operations = Operations(self._context, self._runner)

    def __repr__(self) -> str:
        return f"ThreadCatalog({self._saver!r})"

    @property
    def saver(self) -> ForkpointSaver:
        """The saver to compile graphs with, which reaches the same threads as this catalog."""
        return self._saver

    def create_many(
        self, threads: Iterable[NewThread], *, if_exists: str = "raise"
    ) -> list[Thread]:
        """Create threads, in less time than `create` takes for each.

        Args:
            threads: What `create` would be called with for each.
            if_exists: As in `create`: `"raise"`, or `"do_nothing"` for those that exist.

        Returns:
            The threads, in the same order.

        Raises:
            ThreadExists: There is one of them, or another owner has one. Nothing was created; if
                only somebody else knew of it, or made it at the same moment, others may have been.
            InvalidInput: An argument is of the wrong type, or two threads have one id. Nothing was
                created.
        """
        choice = inputs.choice(if_exists, "if_exists", ("raise", "do_nothing"))
        checked = new_threads(threads)
        return self._operations.run(records.create_many, checked, choice == "do_nothing")

    acreate_many = async_twin(create_many)

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
        """Return a page of the threads that match and have not expired.

        From page to page, each thread that matches all the time is on exactly one page, whatever is
        written meanwhile: the pages are read from a snapshot. MongoDB takes it with the first page
        and keeps it for five minutes by default, unless it is a standalone server; SQLite takes it
        with the second page and keeps it for an hour, until the last page is read, or until 100
        later searches have taken theirs. Without a snapshot, the pages follow the present order: a
        thread that changed meanwhile may be left out or come twice.

        Args:
            filter: Which threads; all by default.
            sort_by: `"updated_at"`, `"state_updated_at"`, `"created_at"`, `"thread_id"` or
                `"status"`; threads that are equal in that are sorted by id.
            descending: Whether the newest, or the last, comes first.
            limit: How many threads, 1,000 at most.
            cursor: The `next_cursor` of the page before, with the same filter and order.
            offset: Instead of a cursor, how many threads to leave out before the first one, 10,000
                at most. The page is that of the present moment, and has no `next_cursor`. A higher
                offset takes longer.

        Raises:
            InvalidInput: An argument is of the wrong type, or the cursor is of another search.
        """
        criteria = self._criteria(filter)
        request = search_of(criteria, sort_by, descending, limit, cursor, offset)
        return self._operations.run(searches.search, request)

    asearch = async_twin(search)

    def walk(
        self,
        filter: ThreadFilter | None = None,
        *,
        sort_by: str = "updated_at",
        descending: bool = True,
    ) -> Iterator[Thread]:
        """Return all threads that match. They are read in pages while you iterate; see `search`."""
        return self._walk(search_of(self._criteria(filter), sort_by, descending, _WALK_PAGE))

    def _walk(self, request: ThreadSearch) -> Iterator[Thread]:
        while True:
            page = self._operations.run(searches.search, request)
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
        return self._awalk(search_of(self._criteria(filter), sort_by, descending, _WALK_PAGE))

    async def _awalk(self, request: ThreadSearch) -> AsyncIterator[Thread]:
        while True:
            page = await self._runner.arun(searches.search, self._context, request)
            for thread in page:
                yield thread
            if page.next_cursor is None:
                return
            request = request._replace(cursor=page.next_cursor)

    def count(self, filter: ThreadFilter | None = None) -> int:
        """Return how many threads match and have not expired."""
        return self._operations.run(searches.count, self._criteria(filter))

    acount = async_twin(count)

    def store_stats(
        self,
        filter: ThreadFilter | None = None,
        *,
        on_progress: StatsProgress | None = None,
    ) -> StoreStats:
        """Return how much threads store together, and what that would be if they shared nothing.

        Threads that have expired are counted too. It takes time: all references are read.

        Args:
            filter: Which threads; all by default.
            on_progress: A function that takes what was measured so far. The async twin calls it on
                another thread of the process.
        """
        if on_progress is not None:
            inputs.callback(on_progress, "on_progress")
        progress = on_progress or (lambda _: None)
        return self._operations.run(store_stats, self._criteria(filter), progress)

    astore_stats = async_twin(store_stats)

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

        It may be stopped anywhere, and run again. Threads that are busy are left alone. The async
        twin calls `archive` and `on_progress` on another thread of the process.

        Args:
            policy: The rules.
            filter: Which threads the rules are for; all by default.
            dry_run: Only report what would be done.
            archive: The path of a file to which each thread is appended before it is deleted, as
                `forkpoint.transfer.archive_threads` does. Or a function that takes the thread and
                an iterator over its checkpoints; the thread is deleted once it has returned.
            on_progress: A function that takes the result so far: after each batch, and from time to
                time while a thread takes long.

        Raises:
            InvalidInput: The policy has no rule, or an argument is of the wrong type.
        """
        task = RetentionTask(
            rules_of(policy),
            self._criteria(filter),
            inputs.flag(dry_run, "dry_run"),
            archive_of(archive, dry_run=dry_run),
            on_progress,
        )
        if on_progress is not None:
            inputs.callback(on_progress, "on_progress")
        return self._operations.run(apply_retention, self._runner, task)

    aapply_retention = async_twin(apply_retention)

    def bulk_delete(self, filter: ThreadFilter, *, dry_run: bool = False) -> int:
        """Delete all threads that match and are not busy, and return how many.

        Threads that have expired are deleted, too, though `search` and `count` leave them out.

        Args:
            filter: Which threads. An empty filter, which would match all threads, is refused.
            dry_run: Only count the threads.

        Raises:
            InvalidInput: The filter is empty.
        """
        if not criteria_of(filter):
            raise InvalidInput("the filter is empty, and would delete all threads")
        rules, is_dry = Rules(everything=True), inputs.flag(dry_run, "dry_run")
        task = RetentionTask(rules, self._criteria(filter), is_dry)
        return self._operations.run(bulk_delete, self._runner, task)

    abulk_delete = async_twin(bulk_delete)

    def sweep(
        self,
        *,
        archive: Archive | str | os.PathLike[str] | None = None,
        on_progress: Progress | None = None,
    ) -> RetentionResult:
        """Delete the threads whose time to live has passed, or trim them, as `on_expiry` says.

        A thread with `"keep_latest"` is never hidden: `get` and `search` find it after its time to
        live, too. A sweep removes all its checkpoints but the newest of each namespace, whose state
        does not change. That is no activity of the thread: the next sweep leaves it alone, unless
        it was active and its time to live has passed again.

        Args:
            archive: As in `apply_retention`, for threads that are deleted.
            on_progress: As in `apply_retention`.

        Returns:
            Which threads were `deleted`, and which were `trimmed`.
        """
        policy = RetentionPolicy(expired=True)
        return self.apply_retention(policy, archive=archive, on_progress=on_progress)

    asweep = async_twin(sweep)

    def sweeper(
        self,
        interval: timedelta,
        *,
        archive: Archive | str | os.PathLike[str] | None = None,
    ) -> Sweeper:
        """Sweep in the background: now, and again after each interval.

        Returns:
            The sweeper. It ends with its `stop`, or with its `with` or `async with` block.
        """
        seconds = inputs.duration(interval, "interval") / 1_000_000
        task = RetentionTask(Rules(expired=True), self._criteria(None), False)
        task = task._replace(archive=archive_of(archive, dry_run=False))
        return Sweeper(lambda: self._operations.run(apply_retention, self._runner, task), seconds)
