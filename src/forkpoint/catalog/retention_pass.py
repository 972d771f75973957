"""One pass of retention over the threads: finding those that a rule is for, and removing them.

Each thread is looked at once more at the moment at which it is removed. Threads are deleted one by
one, each as a whole: a process that ends in the middle leaves the rest for the next pass, and of
several passes at once each thread is deleted by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.archive.file import ArchiveFile
from forkpoint.archive.reading import read_thread
from forkpoint.catalog.criteria import Criteria, matches
from forkpoint.catalog.heads import thread_of
from forkpoint.catalog.lease_operations import LeaseRequest
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.retention import Action, Archive, Progress, RetentionResult, Rules
from forkpoint.catalog.search import ThreadSearch, all_rows, has_values
from forkpoint.catalog.threads import Thread
from forkpoint.errors import CorruptChunk, ThreadBusy, ThreadNotFound
from forkpoint.operations import listing, remove
from forkpoint.operations.context import Context
from forkpoint.operations.gc import collect, incomplete_collection
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.runtime.runner import Runner
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.plan import Kept
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.record_checksums import is_intact
from forkpoint.storage.rows import ThreadRow

_BATCH = 100
_DELETED_AT_ONCE = 20  # threads in one transaction
_LEASE = 10_000_000  # microseconds; it is renewed


class RetentionTask(NamedTuple):
    """The checked arguments of retention."""

    rules: Rules
    criteria: Criteria = {}  # noqa: RUF012 - never changed
    dry_run: bool = False
    archive: Archive | ArchiveFile | None = None
    on_progress: Progress | None = None


def apply_retention(
    context: Context, runner: Runner, task: RetentionTask
) -> Steps[RetentionResult]:
    """Delete and trim the threads that a policy does not keep."""
    context.prepare()
    return (yield from _Pass(context, runner, task).run())


def bulk_delete(context: Context, runner: Runner, task: RetentionTask) -> Steps[int]:
    """Delete the threads that a filter matches, and return how many."""
    result = yield from apply_retention(context, runner, task)
    return len(result.deleted)


class _Pass:
    """One pass over the threads, and what it did so far."""

    def __init__(self, context: Context, runner: Runner, task: RetentionTask) -> None:
        self._context = context
        self._storage = context.storage
        self._runner = runner
        self._task = task
        self._deleted: list[str] = []
        self._trimmed: list[str] = []
        self._busy: list[str] = []
        self._failed: dict[str, Exception] = {}
        self._incomplete: CorruptChunk | None = None
        """Why chunks of what was deleted are left, where they are."""

    def run(self) -> Steps[RetentionResult]:
        """Do all of it."""
        if not self._task.dry_run:
            yield from in_turns(self._storage, _finish_removals)
        handled_keys: set[Any] = set()
        for batch in self._candidates():
            rows = [row for row in batch if row.thread.key not in handled_keys]
            for waiting in self._handle(rows):
                self._report_progress()  # a thread may take long
                yield waiting
            handled_keys.update(row.thread.key for row in batch)
            self._report_progress()
        if not self._task.dry_run:
            yield from remove.finish(self._context, (), None)
        if self._incomplete is not None:
            raise self._incomplete
        return self._result()

    def _result(self) -> RetentionResult:
        return RetentionResult(
            tuple(self._deleted),
            tuple(self._trimmed),
            tuple(self._busy),
            dict(self._failed),
            self._task.dry_run,
        )

    def _report_progress(self) -> None:
        if self._task.on_progress is not None:
            self._task.on_progress(self._result())

    # Finding

    def _candidates(self) -> Iterator[list[ThreadRow]]:
        """Return batches of threads that a rule may be for."""
        rules = self._task.rules
        now = self._now()
        if rules.everything:
            yield from self._matching("thread_id")
        if rules.max_age is not None:
            yield from self._matching("created_at", "created_before", now - rules.max_age)
        if rules.max_idle is not None:
            yield from self._matching("updated_at", "updated_before", now - rules.max_idle)
        if rules.expired:
            yield from self._expired()
        if rules.trims_more_than is not None:
            yield from self._larger_than(rules.trims_more_than)

    def _matching(
        self, sort_by: str, bound: str | None = None, before: int = 0
    ) -> Iterator[list[ThreadRow]]:
        """Return the threads that match the filter, and whose time is before a bound."""
        criteria = self._task.criteria
        if bound is not None:
            criteria = {**criteria, bound: min(before, criteria.get(bound, before))}
        search = ThreadSearch(criteria, sort_by, False, _BATCH, with_expired=True)
        return all_rows(self._context, search)

    def _expired(self) -> Iterator[list[ThreadRow]]:
        after: tuple[int, Any] | None = None
        while True:
            with self._storage.reading() as session:
                rows = session.search.expired(after, _BATCH)
            yield self._removable(rows)
            if len(rows) < _BATCH:
                return
            last = rows[-1]
            after = last.updated_at + (last.described.ttl or 0), last.thread.key

    def _larger_than(self, checkpoints: int) -> Iterator[list[ThreadRow]]:
        after: Any = None
        while True:
            with self._storage.reading() as session:
                rows = session.search.larger_than(checkpoints, after, _BATCH)
            if not rows:
                return
            after = rows[-1].thread.key
            yield self._removable(rows)

    def _removable(self, rows: list[ThreadRow]) -> list[ThreadRow]:
        """Return the threads whose records are as they were written, and whose values match."""
        with self._storage.reading() as session:
            return self._with_these_values(session, rows)

    def _with_these_values(self, session: Session, rows: list[ThreadRow]) -> list[ThreadRow]:
        context, criteria = self._context, self._task.criteria
        intact = [row for row in rows if is_intact(context.codec.hashing, row)]
        if "values" not in criteria:
            return intact
        read = session.records.with_heads(intact)
        return [row for row in read if row is not None and has_values(context, row, criteria)]

    def _now(self) -> int:
        with self._storage.reading() as session:
            return session.now()

    # Removing

    def _handle(self, rows: Sequence[ThreadRow]) -> Steps[None]:
        """Do with threads what the rules say, unless somebody runs on them."""
        task, now = self._task, self._now()
        doomed: list[ThreadRow] = []
        for row in rows:
            action = self._action(row, now)
            if action is None:
                continue
            if row.lease is not None:
                self._busy.append(row.thread_id)
            elif action == "delete" and task.dry_run:
                self._deleted.append(row.thread_id)
            elif action == "delete" and task.archive is None:
                doomed.append(row)
            else:
                try:
                    if action != "delete":
                        yield from self._trim(row, action)
                    elif task.archive is not None:
                        yield from self._archive(row, task.archive)
                except CorruptChunk as error:  # it keeps no other thread from its turn
                    self._failed[row.thread_id] = error
        for start in range(0, len(doomed), _DELETED_AT_ONCE):
            yield from self._delete(doomed[start : start + _DELETED_AT_ONCE])

    def _action(self, row: ThreadRow, now: int) -> Action | None:
        """Return what is to be done with a thread, its values aside."""
        is_meant = matches(row, self._task.criteria, with_times=True)
        return self._task.rules.action(row, now) if is_meant else None

    def _trim(self, row: ThreadRow, action: Action) -> Steps[None]:
        """Trim a thread, unless no namespace of it is too long: only all together may be."""
        is_expired = action == "keep_latest"
        kept = Kept(1) if is_expired else self._task.rules.kept(self._now())
        is_due = partial(self._is_due, row, action)
        try:
            is_longer = yield from remove.would_trim(self._context, row.thread_id, kept)
            if is_longer and not self._task.dry_run:
                yield from remove.trim(self._context, row.thread_id, kept, is_due)
        except ThreadNotFound:
            return  # somebody else deleted it
        except Stale:
            with self._storage.reading() as session:
                self._note_if_busy(session.records.get(row.thread_id))
            return
        if is_longer:
            self._trimmed.append(row.thread_id)
        if is_expired and not self._task.dry_run:
            with self._storage.writing() as session:
                session.records.note_sweep(row)

    def _is_due(self, seen: ThreadRow, action: Action, session: Session) -> bool:
        """Return whether a thread is still to be trimmed, and nobody runs on it.

        One that has expired is not if anything happened to it since it was seen. Another one may be
        active all the time.
        """
        row = session.records.get(seen.thread_id)
        if row is None or row.lease is not None:
            return False
        if action == "keep_latest" and _state_of(row) != _state_of(seen):
            return False
        is_meant = bool(self._with_these_values(session, [row]))
        return is_meant and self._action(row, session.now()) == action

    def _note_if_busy(self, row: ThreadRow | None) -> None:
        if row is not None and row.lease is not None and row.thread_id not in self._busy:
            self._busy.append(row.thread_id)

    def _delete(self, rows: Sequence[ThreadRow]) -> Steps[None]:
        """Delete threads, but those to which something happened since they were read.

        The chunks of a family are collected once, for all of its threads that are deleted. Where a
        family is damaged, those of the others are deleted without it.
        """
        families = _by_family(rows)
        deleted: list[ThreadRow] = []
        try:
            missing = yield from in_turns(
                self._storage, lambda turns: self._delete_families(turns, families, deleted)
            )
        except CorruptChunk as error:
            left = self._left_of(rows)
            self._note_deleted([row for row in deleted if row not in left])  # others were not
            if not left:
                self._incomplete = self._incomplete or error
            elif len(families) == 1:
                self._failed.update((row.thread_id, error) for row in left)
            else:
                for relatives in _by_family(left).values():
                    yield from self._delete(relatives)
            return
        self._note_deleted(deleted)
        if missing is not None and self._incomplete is None:
            self._incomplete = incomplete_collection(missing, "what was to go")

    def _delete_families(
        self, turns: Turns, families: Mapping[Any, list[ThreadRow]], deleted: list[ThreadRow]
    ) -> Work[str | None]:
        missing: str | None = None
        for family, threads in families.items():
            for row in threads:
                try:
                    turns.session.threads.delete(row.thread, row)
                    deleted.append(row)
                except Stale:
                    self._note_if_busy(turns.session.records.get(row.thread_id))
                yield
            missing = (yield from collect(turns, family)).missing or missing
        return missing

    def _left_of(self, rows: Sequence[ThreadRow]) -> list[ThreadRow]:
        """Return the threads that are there."""
        with self._storage.reading() as session:
            present = session.records.get_many([row.thread_id for row in rows])
        keys = {row.thread.key for row in present.values()}
        return [row for row in rows if row.thread.key in keys]

    def _note_deleted(self, rows: Sequence[ThreadRow]) -> None:
        for row in rows:
            self._deleted.append(row.thread_id)
            self._context.memory.threads.pop(row.thread_id)

    def _archive(self, row: ThreadRow, archive: Archive | ArchiveFile) -> Steps[None]:
        """Archive a thread and delete it, while nobody else runs on it, or does the same."""
        request = LeaseRequest(row.thread_id, "raise", _LEASE, must_exist=True)
        try:
            with Lease(self._context, self._runner, request):
                with self._storage.reading() as session:
                    current = session.records.get(row.thread_id)
                    if current is None or _version(current) != _version(row):
                        return
                    thread = thread_of(self._context, session, current)
                if self._is_archived(thread, archive):
                    yield from self._delete([current])
        except ThreadBusy:
            self._busy.append(row.thread_id)
        except ThreadNotFound:
            pass  # somebody else deleted it

    def _is_archived(self, thread: Thread, archive: Archive | ArchiveFile) -> bool:
        """Archive a thread, and return whether that worked."""
        try:
            if isinstance(archive, ArchiveFile):
                parts = read_thread(self._context, thread.thread_id)
                archive.append(parts, self._context.codec.encrypt)
                return True
            outcome = archive(thread, _checkpoints_of(self._context, thread.thread_id))
            if inspect.isawaitable(outcome):
                raise TypeError("the archive callback must not be async: nobody awaits it")
        except Stale:
            return False  # somebody writes to it without a lease, or deletes it
        except Exception as error:  # noqa: BLE001 - it is reported, and the thread stays
            self._failed[thread.thread_id] = error
            return False
        return True


def _finish_removals(turns: Turns) -> Work[None]:
    """Finish the removals of processes that ended in the middle, and forget old ones."""
    while turns.session.threads.forget_deletions():
        yield
    for family in turns.session.collections.pending():
        try:
            yield from collect(turns, family)
        except CorruptChunk:  # the others are finished without it
            turns.only_reads = False
            yield


def _by_family(rows: Sequence[ThreadRow]) -> dict[Any, list[ThreadRow]]:
    families: dict[Any, list[ThreadRow]] = {}
    for row in rows:
        families.setdefault(row.thread.family, []).append(row)
    return families


def _state_of(row: ThreadRow) -> tuple[object, ...]:
    """Return what changes whenever a thread is active, leased or deleted."""
    return row.thread.key, row.updated_at, row.fence, row.lease is None


def _version(row: ThreadRow) -> tuple[Any, int]:
    return row.thread.key, row.updated_at


def _checkpoints_of(context: Context, thread_id: str) -> Iterator[CheckpointTuple]:
    """Return all checkpoints of a thread, newest first."""
    everything = CheckpointQuery(thread_id, None, None, None, None, None, listing.PAGE_ROWS)
    # Hidden checkpoints, too: the state of others is rebuilt from them.
    following: CheckpointQuery | None = everything._replace(must_exist=True, with_hidden=True)
    while following is not None:
        items, following = listing.page(context, following)
        yield from map(listing.checkpoint_of, items)
