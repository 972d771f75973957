"""Retention: which threads may go, and letting them go.

First it is planned which rule holds for a thread, without touching anything; then each thread is
looked at once more at the moment at which it goes. Each is deleted as a whole, so that a process
that ends in the middle leaves the rest for the next one, and of several that run at once each
thread is deleted by one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.at_fork import renew_in_child
from forkpoint.catalog.archive import Archive
from forkpoint.catalog.criteria import Criteria, matches
from forkpoint.catalog.heads import thread_of
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.search import ThreadSearch, all_rows
from forkpoint.errors import ThreadBusy, ThreadNotFound
from forkpoint.operations import listing
from forkpoint.operations import remove as removing
from forkpoint.operations.context import Context
from forkpoint.operations.gc import collect, uncollected
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.runtime.runner import Runner
from forkpoint.runtime.steps import Steps
from forkpoint.runtime.workers import start_thread
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import Kept
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.record_checksums import is_intact
from forkpoint.storage.rows import ThreadRow

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("forkpoint")
_BATCH = 100
_AT_ONCE = 20  # threads that are deleted in one transaction
_LEASE = 10_000_000  # microseconds; it is renewed

Action = Literal["delete", "trim", "keep_latest"]


@dataclass(frozen=True)
class RetentionPolicy:
    """Which threads are deleted, and which are trimmed. At least one rule must be given.

    Attributes:
        max_age: Delete those that were made longer ago.
        max_idle: Delete those that were not active for longer.
        max_checkpoints_per_thread: Keep the newest of each namespace, and remove the others.
        max_checkpoint_age: Remove checkpoints that were made longer ago, as their ids say, but the
            newest of each namespace. Those with other ids than LangGraph's have no age.
        expired: Delete those whose time to live has passed, or trim them to the newest checkpoint
            of each namespace, as their `on_expiry` says; see `ThreadCatalog.sweep`.
        keep_tags: Leave those alone that have one of these tags.
    """

    max_age: timedelta | None = None
    max_idle: timedelta | None = None
    max_checkpoints_per_thread: int | None = None
    max_checkpoint_age: timedelta | None = None
    expired: bool = False
    keep_tags: Sequence[str] | frozenset[str] | set[str] = ()


@dataclass(frozen=True)
class RetentionResult:
    """What retention did, or would do.

    Attributes:
        deleted: The ids of threads that were deleted.
        trimmed: The ids of threads of which old checkpoints were removed.
        busy: The ids of threads that were left alone because a run has their lease, or because
            another process is archiving them.
        failed: The ids of threads that were left alone because archiving them failed, and why.
        dry_run: Whether nothing was touched.
    """

    deleted: Sequence[str] = ()
    trimmed: Sequence[str] = ()
    busy: Sequence[str] = ()
    failed: Mapping[str, Exception] = field(default_factory=dict)
    dry_run: bool = False


Progress = Callable[[RetentionResult], object]
"""Is called with what was done so far: after each batch, and between the turns of long work."""


class Rules(NamedTuple):
    """A policy, checked, with times in microseconds."""

    max_age: int | None = None
    max_idle: int | None = None
    max_checkpoints: int | None = None
    expired: bool = False
    keep_tags: frozenset[str] = frozenset()
    everything: bool = False
    """Whether all threads are to be deleted, of those that are wanted."""
    max_checkpoint_age: int | None = None

    def action(self, row: ThreadRow, now: int) -> Action | None:
        """Return what is to be done with a thread."""
        described = row.described
        if not self.keep_tags.isdisjoint(described.tags):
            return None
        if self.everything:
            return "delete"
        if self.max_age is not None and row.created_at < now - self.max_age:
            return "delete"
        if self.max_idle is not None and row.updated_at < now - self.max_idle:
            return "delete"
        if self.expired and described.ttl is not None and row.updated_at + described.ttl <= now:
            if described.on_expiry == "delete":
                return "delete"
            if not row.is_swept:
                return "keep_latest"
        if self.max_checkpoints is not None and row.checkpoint_count > self.max_checkpoints:
            return "trim"
        if self.max_checkpoint_age is not None and row.checkpoint_count > 1:
            return "trim"
        return None

    @property
    def trims_more_than(self) -> int | None:
        """How many checkpoints a thread that is to be trimmed has more than, if any is."""
        return self.max_checkpoints if self.max_checkpoint_age is None else 1

    def kept(self, now: int) -> Kept:
        """Return which checkpoints of a thread stay."""
        age = self.max_checkpoint_age
        return Kept(self.max_checkpoints, None if age is None else now - age)


class Task(NamedTuple):
    """What retention is to do."""

    rules: Rules
    criteria: Criteria = {}  # noqa: RUF012 - never changed
    dry_run: bool = False
    archive: Archive | None = None
    on_progress: Progress | None = None

    def show(self, done: _Done) -> None:
        """Tell whoever wants to know what was done so far."""
        if self.on_progress is not None:
            self.on_progress(done.result())


def apply(context: Context, runner: Runner, task: Task) -> Steps[RetentionResult]:
    """Delete and trim the threads that a policy does not keep."""
    if not task.dry_run:
        yield from in_turns(context.storage, _collect_after_others)
    done = _Done(task.dry_run)
    seen: set[Any] = set()
    for batch in _candidates(context, task):
        rows = [row for row in batch if row.thread.key not in seen]
        yield from _showing(_handle(context, runner, task, rows, done), task, done)
        seen.update(row.thread.key for row in batch)
        task.show(done)
    if not task.dry_run:
        yield from removing.finish(context, (), None)
    return done.result()


def _showing(steps: Steps[None], task: Task, done: _Done) -> Steps[None]:
    """Do what takes long, and show between its turns what was done so far."""
    for waiting in steps:
        task.show(done)
        yield waiting


def _collect_after_others(turns: Turns) -> Work[None]:
    """Finish the removals of processes that ended in the middle, and forget old ones."""
    while turns.session.threads.forget_deletions():
        yield
    for family in turns.session.collections.pending():
        yield from collect(turns, family)


class _Done:
    """What was done so far."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.deleted: list[str] = []
        self.trimmed: list[str] = []
        self.busy: list[str] = []
        self.failed: dict[str, Exception] = {}

    def result(self) -> RetentionResult:
        return RetentionResult(
            tuple(self.deleted),
            tuple(self.trimmed),
            tuple(self.busy),
            dict(self.failed),
            self.dry_run,
        )


def _candidates(context: Context, task: Task) -> Iterator[list[ThreadRow]]:
    """Return batches of threads for which a rule may hold."""
    rules, criteria = task.rules, task.criteria
    now = _now(context)
    if rules.everything:
        yield from _matching(context, criteria, "thread_id")
    if rules.max_age is not None:
        made = _before(criteria, "created_before", now - rules.max_age)
        yield from _matching(context, made, "created_at")
    if rules.max_idle is not None:
        idle = _before(criteria, "updated_before", now - rules.max_idle)
        yield from _matching(context, idle, "updated_at")
    if rules.expired:
        yield from _expired(context)
    if rules.trims_more_than is not None:
        after: Any = None
        while True:
            with context.storage.reading() as session:
                rows = session.search.larger_than(rules.trims_more_than, after, _BATCH)
            if not rows:
                return
            after = rows[-1].thread.key
            yield _intact(context, rows)


def _matching(context: Context, criteria: Criteria, sort_by: str) -> Iterator[list[ThreadRow]]:
    return all_rows(context, ThreadSearch(criteria, sort_by, False, _BATCH, with_expired=True))


def _expired(context: Context) -> Iterator[list[ThreadRow]]:
    after: tuple[int, Any] | None = None
    while True:
        with context.storage.reading() as session:
            rows = session.search.expired(after, _BATCH)
        yield _intact(context, rows)
        if len(rows) < _BATCH:
            return
        last = rows[-1]
        after = last.updated_at + (last.described.ttl or 0), last.thread.key


def _intact(context: Context, rows: list[ThreadRow]) -> list[ThreadRow]:
    """Return those threads whose records are as they were written: no others are removed."""
    hashing = context.codec.hashing
    return [row for row in rows if is_intact(hashing, row)]


def _before(criteria: Criteria, field: str, time: int) -> Criteria:
    """Return criteria that only threads match whose time is earlier than this, too."""
    return {**criteria, field: min(time, criteria.get(field, time))}


def _now(context: Context) -> int:
    with context.storage.reading() as session:
        return session.now()


def _handle(
    context: Context, runner: Runner, task: Task, batch: list[ThreadRow], done: _Done
) -> Steps[None]:
    """Do with threads what the rules say, unless somebody runs on them."""
    now = _now(context)
    going: list[ThreadRow] = []
    for row in batch:
        action = task.rules.action(row, now)
        if action is None or not matches(row, task.criteria, with_times=True):
            continue
        if row.lease is not None:
            done.busy.append(row.thread_id)
        elif action == "trim":
            yield from _trim(context, task, row, done)
        elif action == "keep_latest":
            yield from _keep_latest(context, task, row, done)
        elif task.dry_run:
            done.deleted.append(row.thread_id)
        elif task.archive is not None:
            yield from _archive(context, runner, task.archive, row, done)
        else:
            going.append(row)
    for start in range(0, len(going), _AT_ONCE):
        yield from _delete(context, going[start : start + _AT_ONCE], done)


def _trim(context: Context, task: Task, row: ThreadRow, done: _Done) -> Steps[None]:
    """Trim a thread, if anything of it is to go: all its namespaces together may be too long."""
    kept = task.rules.kept(_now(context))
    try:
        if not (yield from removing.is_longer(context, row.thread_id, kept)):
            return
        if not task.dry_run:
            yield from removing.trim(context, row.thread_id, kept)
    except ThreadNotFound:
        return  # somebody else deleted it
    done.trimmed.append(row.thread_id)


def _keep_latest(context: Context, task: Task, row: ThreadRow, done: _Done) -> Steps[None]:
    """Trim an expired thread, unless something happened to it since it was looked at."""
    kept = Kept(1)
    try:
        is_longer = yield from removing.is_longer(context, row.thread_id, kept)
        if is_longer and not task.dry_run:
            yield from removing.trim(context, row.thread_id, kept, seen=row)
    except ThreadNotFound:
        return  # somebody else deleted it
    except Stale:
        with context.storage.reading() as session:
            now = session.records.get(row.thread_id)
        if now is not None and now.lease is not None:
            done.busy.append(row.thread_id)
        return
    if is_longer:
        done.trimmed.append(row.thread_id)
    if not task.dry_run:
        with context.storage.writing() as session:
            session.records.note_sweep(row)


def _delete(context: Context, rows: Sequence[ThreadRow], done: _Done) -> Steps[None]:
    """Delete threads, but those to which something happened since they were looked at.

    The chunks of a family are collected once, for all of its threads that go.
    """
    families: dict[Any, list[ThreadRow]] = {}
    for row in rows:
        families.setdefault(row.thread.family, []).append(row)
    deleted: list[str] = []

    def work(turns: Turns) -> Work[str | None]:
        missing: str | None = None
        for family, threads in families.items():
            for row in threads:
                try:
                    turns.session.threads.delete(row.thread, row)
                    deleted.append(row.thread_id)
                except Stale:
                    now = turns.session.records.get(row.thread_id)
                    if now is not None and now.lease is not None:
                        done.busy.append(row.thread_id)
                yield
            missing = (yield from collect(turns, family)).missing or missing
        return missing

    missing = yield from in_turns(context.storage, work)
    done.deleted += deleted
    for thread_id in deleted:
        context.memory.threads.pop(thread_id)
    if missing is not None:
        raise uncollected(missing, "what was to go")


def _archive(
    context: Context, runner: Runner, archive: Archive, row: ThreadRow, done: _Done
) -> Steps[None]:
    """Archive a thread and delete it, while nobody else runs on it, or does the same."""
    try:
        with Lease(context, runner, row.thread_id, "raise", _LEASE, None, must_exist=True):
            with context.storage.reading() as session:
                now = session.records.get(row.thread_id)
                place = row.thread.key, row.updated_at
                if now is None or (now.thread.key, now.updated_at) != place:
                    return
                shown = thread_of(context, session, now)
            try:
                outcome = archive(shown, _history(context, row.thread_id))
                if inspect.isawaitable(outcome):
                    raise TypeError("the archive callback must not be async: nobody awaits it")
            except Exception as error:  # noqa: BLE001 - it is reported, and the thread stays
                done.failed[row.thread_id] = error
                return
            yield from _delete(context, [now], done)
    except ThreadBusy:
        done.busy.append(row.thread_id)
    except ThreadNotFound:
        pass  # somebody else deleted it


def _history(context: Context, thread_id: str) -> Iterator[CheckpointTuple]:
    everything = CheckpointQuery(thread_id, None, None, None, None, None, listing.PAGE_ROWS)
    # With those that are hidden: the state of others is rebuilt from them.
    following: CheckpointQuery | None = everything._replace(must_exist=True, with_hidden=True)
    while following is not None:
        items, following = listing.page(context, following)
        yield from map(listing.checkpoint_of, items)


class Sweeper:
    """Deletes expired threads in the background, until it is stopped.

    It works under `with` and under `async with`. Several processes may run one.

    Attributes:
        last_result: What the last sweep did, or None before the first has ended.
        last_error: What the last sweep ended with, or None if it did not fail. The next one comes.
    """

    def __init__(self, sweep: Callable[[], RetentionResult], interval_seconds: float) -> None:
        self._sweep = sweep
        self._interval_seconds = interval_seconds
        self._become_child()
        renew_in_child(self)
        self.last_result: RetentionResult | None = None
        self.last_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="forkpoint sweeper", daemon=True)
        start_thread(self._thread)

    def _become_child(self) -> None:
        """In a forked child: the thread is gone, and may have held the event's lock."""
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Return when no sweep is going on any more, and none will."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while True:
            try:
                self.last_result, self.last_error = self._sweep(), None
            except Exception as error:  # noqa: BLE001 - the next one may work
                self.last_error = error
                _LOG.warning("a sweep failed, and the next one will try again: %s", error)
            if self._stopped.wait(self._interval_seconds):
                return
