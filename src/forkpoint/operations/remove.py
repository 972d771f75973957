"""Removing: threads, the checkpoints of runs, the newest, the oldest. What stays keeps its state.

Each function that takes a `Context` first is one operation. Those that remove much do so in turns;
see `forkpoint.operations.turns`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from langchain_core.runnables import RunnableConfig

from forkpoint.errors import CorruptChunk, StaleLease, stale_lease
from forkpoint.operations.context import Context
from forkpoint.operations.gc import Collected, collect, uncollected
from forkpoint.operations.places import existing_thread, place_of, replay_bound, thread_config
from forkpoint.operations.remove_in_turns import Choose, Removal, outlines, remove
from forkpoint.operations.rollback_plan import Rollback
from forkpoint.operations.turns import Rest, Turns, Work, in_turns
from forkpoint.results import PurgeReport
from forkpoint.runtime.steps import Steps
from forkpoint.storage import plan as removal
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import CheckpointRow, Counts, LeaseRow, ThreadRow


def delete_thread(context: Context, thread_id: str) -> Steps[None]:
    """Remove a thread. One that does not exist is no error."""

    def work(turns: Turns) -> Work[str | None]:
        thread = turns.session.threads.find(thread_id)
        if thread is None:
            turns.session.threads.note_deletion(thread_id)
            thread = turns.session.threads.find(thread_id)  # it may have been made meanwhile
        if thread is not None:
            turns.session.threads.delete(thread)
        else:
            thread = turns.session.threads.find_deleted(thread_id)
        if thread is None:
            return None
        yield
        return (yield from collect(turns, thread.family)).missing

    missing = yield from in_turns(context.storage, work)
    yield from finish(context, [thread_id], missing)


def delete_for_runs(context: Context, run_ids: Sequence[str]) -> Steps[None]:
    """Remove the checkpoints that runs made, and their writes."""
    doomed_runs = set(run_ids)

    def made_by_runs(rows: Sequence[CheckpointRow]) -> set[removal.Place]:
        return {place_of(row) for row in rows if row.run_id in doomed_runs}

    def work(turns: Turns) -> Work[str | None]:
        missing = None
        threads = turns.session.threads.of_runs(run_ids)
        for thread in threads:
            yield from remove(context, turns, thread, Removal(made_by_runs))
            yield
        for family in dict.fromkeys(thread.family for thread in threads):
            missing = (yield from collect(turns, family)).missing or missing
        return missing

    missing = yield from in_turns(context.storage, work)
    yield from finish(context, (), missing)


def prune(
    context: Context, thread_ids: Sequence[str], strategy: str, keep_last: int | None
) -> Steps[None]:
    """Remove all checkpoints of threads, or all but the newest of each namespace."""
    if strategy != "keep_latest":
        for thread_id in thread_ids:
            yield from delete_thread(context, thread_id)
        return
    choose = (
        _all_but_latest if keep_last is None else partial(_beyond, kept=removal.Kept(keep_last))
    )
    for thread_id in thread_ids:
        removal_ = partial(_prune, context, thread_id, choose)
        missing = yield from in_turns(context.storage, removal_)
        yield from finish(context, [thread_id], missing)


def _prune(context: Context, thread_id: str, choose: Choose, turns: Turns) -> Work[str | None]:
    thread = turns.session.threads.find(thread_id)
    if thread is None:
        return None
    yield from remove(context, turns, thread, Removal(choose))
    yield
    return (yield from collect(turns, thread.family)).missing


def _all_but_latest(rows: Sequence[CheckpointRow]) -> set[removal.Place]:
    places = {place_of(row) for row in rows}
    return places - removal.latest(places)


def finish(context: Context, thread_ids: Sequence[str], missing: str | None) -> Steps[None]:
    """Forget threads, give free space back, and raise if chunks could not be collected."""
    for thread_id in thread_ids:
        context.memory.threads.pop(thread_id)
    while context.storage.tidy():
        yield Rest(0)
    if missing is not None:
        raise uncollected(missing, "what was to go")


# Under names of their own


def purge(context: Context, thread_id: str) -> Steps[PurgeReport]:
    """Remove a thread with its whole history."""

    def work(turns: Turns) -> Work[tuple[Counts, Collected]]:
        thread = existing_thread(turns.session, thread_id)
        counts = turns.session.threads.delete(thread)
        yield
        return counts, (yield from collect(turns, thread.family))

    return (yield from _reported(context, thread_id, work))


def trim(
    context: Context, thread_id: str, kept: removal.Kept, seen: ThreadRow | None = None
) -> Steps[PurgeReport]:
    """Remove all checkpoints of a thread but those that are to stay.

    Raises:
        Stale: The thread was active, leased or deleted since it was seen. Nothing was done.
    """

    def work(turns: Turns) -> Work[tuple[Counts, Collected]]:
        thread = existing_thread(turns.session, thread_id)
        if seen is not None:
            now = turns.session.records.get(thread_id)
            if now is None or _state_of(now) != _state_of(seen):
                raise Stale
        counts = yield from remove(
            context, turns, thread, Removal(lambda rows: _beyond(rows, kept))
        )
        yield
        return counts, (yield from collect(turns, thread.family))

    return (yield from _reported(context, thread_id, work))


def _state_of(row: ThreadRow) -> tuple[object, ...]:
    """Return what is another once something has happened to a thread."""
    return row.thread.key, row.updated_at, row.fence, row.lease is None


def _reported(
    context: Context, thread_id: str, work: Callable[[Turns], Work[tuple[Counts, Collected]]]
) -> Steps[PurgeReport]:
    counts, collected = yield from in_turns(context.storage, work)
    yield from finish(context, [thread_id], collected.missing)
    return PurgeReport(counts.number, counts.more, collected.chunks, collected.bytes)


def is_longer(context: Context, thread_id: str, kept: removal.Kept) -> Steps[bool]:
    """Return whether `trim` would remove anything from a thread."""

    def work(turns: Turns) -> Work[bool]:
        rows, _ = yield from outlines(turns, existing_thread(turns.session, thread_id))
        return bool(_beyond([row for row in rows if not row.hidden], kept))

    return (yield from in_turns(context.storage, work, only_reads=True))


def _beyond(rows: Sequence[CheckpointRow], kept: removal.Kept) -> set[removal.Place]:
    sources = {place_of(row): replay_bound(row) for row in rows if row.checkpoint_ns == ""}
    return removal.surplus({place_of(row) for row in rows}, kept, sources)


def withdraw(context: Context, thread_id: str, lease: LeaseRow) -> Steps[None]:
    """Remove what runs stored whose lease was taken over to roll them back.

    Their checkpoints go, and their writes at those that stay. So the thread goes on where it did
    before. A run stored everything under its own fence, and can store nothing more.

    Raises:
        StaleLease: The lease is another's by now.
    """

    def work(turns: Turns) -> Work[str | None]:
        session = turns.session
        row = session.records.get(thread_id)
        if row is None or row.fence != lease.fence or lease.rollback_from is None:
            raise StaleLease(stale_lease(thread_id))
        if type(lease.rollback_from) is not int:
            raise CorruptChunk(f"the record of thread {thread_id!r} is not what was written")
        fences = range(lease.rollback_from, lease.fence)
        places = set(session.checkpoints.stored_under(row.thread, fences))
        removal_ = Removal(
            lambda rows: {place_of(each) for each in rows} & places,
            lambda plan, _: plan._replace(withdrawn=fences),
            may_empty=True,
        )
        yield from remove(context, turns, row.thread, removal_)
        turns.session.leases.end_rollback(row.thread, lease.fence)
        yield
        return (yield from collect(turns, row.thread.family)).missing

    missing = yield from in_turns(context.storage, work)
    yield from finish(context, [thread_id], missing)


def rollback(context: Context, thread_id: str, steps: int) -> Steps[RunnableConfig | None]:
    """Remove the newest checkpoints of a thread, and reopen the one before."""
    rollback = Rollback(thread_id, steps)

    def work(turns: Turns) -> Work[str | None]:
        thread = existing_thread(turns.session, thread_id)
        removal_ = Removal(rollback.choose, rollback.begin_again, divide=rollback.divide)
        yield from remove(context, turns, thread, removal_)
        yield
        return (yield from collect(turns, thread.family)).missing

    missing = yield from in_turns(context.storage, work)
    yield from finish(context, [thread_id], missing)
    return None if rollback.head is None else thread_config(thread_id)
