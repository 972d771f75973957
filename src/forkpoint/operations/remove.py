"""Removing threads and checkpoints: by thread, by run, from the newest or from the oldest.

The checkpoints that stay keep their state. Each function that takes a `Context` first is one
operation. One that removes much does so in several transactions; see `forkpoint.operations.turns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from langchain_core.runnables import RunnableConfig

from forkpoint.errors import CorruptChunk, StaleLease, stale_lease
from forkpoint.operations.chunk_usage import own_chunks, threads_of
from forkpoint.operations.context import Context
from forkpoint.operations.gc import CollectionResult, collect, incomplete_collection
from forkpoint.operations.places import existing_thread, place_of, replay_bound, thread_config
from forkpoint.operations.remove_in_turns import Removal, outlines, remove
from forkpoint.operations.remove_oldest import RemovedOldest, floor_of, remove_oldest
from forkpoint.operations.rollback_plan import Rollback
from forkpoint.operations.turns import Rest, Turns, Work, in_turns
from forkpoint.results import PurgeReport
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.plan import Kept, Place, latest, surplus
from forkpoint.storage.rows import CheckpointRow, Counts, LeaseRow, ThreadRef


def delete_thread(context: Context, thread_id: str) -> Steps[None]:
    """Remove a thread. One that does not exist is no error."""
    context.prepare()

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
    """Remove the checkpoints that runs made, and their writes.

    Raises:
        CorruptChunk: A thread is damaged. Those of the runs are removed from the others.
    """
    context.prepare()
    run_set = set(run_ids)

    def made_by_runs(rows: Sequence[CheckpointRow]) -> set[Place]:
        return {place_of(row) for row in rows if row.run_id in run_set}

    def work(turns: Turns, only: Any = None) -> Work[str | None]:
        missing = None
        threads = turns.session.threads.of_runs(run_ids)
        threads = [thread for thread in threads if only in (None, thread.key)]
        for thread in threads:
            yield from remove(context, turns, thread, Removal(made_by_runs))
            yield
        for family in dict.fromkeys(thread.family for thread in threads):
            missing = (yield from collect(turns, family)).missing or missing
        return missing

    try:
        missing = yield from in_turns(context.storage, work)
    except CorruptChunk:
        with context.storage.reading() as session:
            keys = [thread.key for thread in session.threads.of_runs(run_ids)]
        works = (partial(work, only=key) for key in keys)
        yield from _one_after_the_other(partial(_removing, context, (), work) for work in works)
    else:
        yield from finish(context, (), missing)


def _removing(
    context: Context, thread_ids: Sequence[str], work: Callable[[Turns], Work[str | None]]
) -> Steps[None]:
    missing = yield from in_turns(context.storage, work)
    yield from finish(context, thread_ids, missing)


def _one_after_the_other(removals: Iterable[Callable[[], Steps[None]]]) -> Steps[None]:
    """Do one removal after the other. What is damaged keeps no other from its turn.

    Raises:
        CorruptChunk: What was damaged first.
    """
    damage: CorruptChunk | None = None
    for removal in removals:
        try:
            yield from removal()
        except CorruptChunk as error:
            damage = damage or error
    if damage is not None:
        raise damage


def delete_run(context: Context, thread_id: str, run_id: str) -> Steps[bool]:
    """Remove the checkpoints that a run made on a thread, and their writes. The thread stays.

    Returns whether there were any.

    Raises:
        ThreadNotFound: There is no such thread.
    """
    context.prepare()
    number = 0

    def made_by_run(rows: Sequence[CheckpointRow]) -> set[Place]:
        return {place_of(row) for row in rows if row.run_id == run_id}

    def work(turns: Turns) -> Work[str | None]:
        nonlocal number
        thread = existing_thread(turns.session, thread_id)
        removal = Removal(made_by_run, may_empty=True)
        number += (yield from remove(context, turns, thread, removal)).number
        yield
        return (yield from collect(turns, thread.family)).missing

    missing = yield from in_turns(context.storage, work)
    yield from finish(context, [thread_id], missing)
    return number > 0


def prune(
    context: Context, thread_ids: Sequence[str], strategy: str, keep_last: int | None
) -> Steps[None]:
    """Remove all checkpoints of threads, or all but the newest of each namespace.

    Raises:
        CorruptChunk: A thread is damaged. The others are pruned.
    """
    context.prepare()
    if strategy != "keep_latest":
        each = [partial(delete_thread, context, thread_id) for thread_id in thread_ids]
    else:
        each = [
            partial(_removing, context, [id_], partial(_prune, context, id_, keep_last))
            for id_ in thread_ids
        ]
    yield from _one_after_the_other(each)


def _prune(
    context: Context, thread_id: str, keep_last: int | None, turns: Turns
) -> Work[str | None]:
    thread = turns.session.threads.find(thread_id)
    if thread is None:
        return None
    oldest = yield from remove_oldest(turns, thread, 1 if keep_last is None else keep_last)
    yield
    choose = partial(_all_but_latest, floor=oldest.floor)
    if keep_last is not None:
        choose = partial(_not_kept, kept=Kept(keep_last), floor=oldest.floor)
    yield from remove(context, turns, thread, Removal(choose))
    yield
    return (yield from collect(turns, thread.family)).missing


def _all_but_latest(rows: Sequence[CheckpointRow], floor: str | None) -> set[Place]:
    places = {place_of(row) for row in rows}
    since = {("", id_) for ns, id_ in places if floor is not None and ns == "" and id_ >= floor}
    return places - latest(places) - since


def finish(context: Context, thread_ids: Sequence[str], missing: str | None) -> Steps[None]:
    """Forget threads, give free space back, and raise if chunks could not be collected.

    Args:
        context: The store.
        thread_ids: The threads that something was removed from.
        missing: See `CollectionResult`.

    Raises:
        CorruptChunk: A chunk is missing. What was to be removed is.
    """
    for thread_id in thread_ids:
        context.memory.threads.pop(thread_id)
    while context.storage.tidy():
        yield Rest(0)
    if missing is not None:
        raise incomplete_collection(missing, "what was to go")


def purge(context: Context, thread_id: str) -> Steps[PurgeReport]:
    """Remove a thread with its whole history, and return what was removed.

    Raises:
        ThreadNotFound: There is no such thread.
    """

    def work(turns: Turns) -> Work[tuple[Counts, CollectionResult]]:
        thread = existing_thread(turns.session, thread_id)
        counts = turns.session.threads.delete(thread)
        yield
        return counts, (yield from collect(turns, thread.family))

    return (yield from _reported(context, thread_id, work))


def trim(
    context: Context,
    thread_id: str,
    kept: Kept,
    is_due: Callable[[Session], bool] | None = None,
) -> Steps[PurgeReport]:
    """Remove all checkpoints of a thread but those that are to stay.

    Args:
        context: The store.
        thread_id: The thread.
        kept: Which checkpoints stay.
        is_due: Returns whether the thread is still to be trimmed; asked just before it is.

    Raises:
        ThreadNotFound: There is no such thread.
        Stale: It is not to be trimmed any more. Nothing was done.
    """
    context.prepare()

    def work(turns: Turns) -> Work[tuple[Counts, CollectionResult]]:
        thread = existing_thread(turns.session, thread_id)
        if is_due is not None and not is_due(turns.session):
            raise Stale
        oldest = RemovedOldest(Counts(0, 0), None)
        if kept.newest is not None and kept.since is None:
            oldest = yield from remove_oldest(turns, thread, kept.newest)
            yield
        choose = partial(_not_kept, kept=kept, floor=oldest.floor)
        number, more = yield from remove(context, turns, thread, Removal(choose))
        yield
        counts = Counts(oldest.counts.number + number, oldest.counts.more + more)
        return counts, (yield from collect(turns, thread.family))

    return (yield from _reported(context, thread_id, work))


def _reported(
    context: Context, thread_id: str, work: Callable[[Turns], Work[tuple[Counts, CollectionResult]]]
) -> Steps[PurgeReport]:
    def measured(turns: Turns) -> Work[tuple[Counts, CollectionResult]]:
        family = yield from _family_of_several(context, turns, thread_id)
        if family is None:
            return (yield from work(turns))
        before = yield from own_chunks(family, turns)
        counts, collected = yield from work(turns)
        after = yield from own_chunks(family, turns)
        freed: list[int] = []  # where something is damaged, nothing is
        if before is not None and after is not None:
            freed = [size for digest, size in before.items() if digest not in after]
        return counts, collected._replace(chunks=len(freed), bytes=sum(freed))

    counts, collected = yield from in_turns(context.storage, measured)
    yield from finish(context, [thread_id], collected.missing)
    return PurgeReport(counts.number, counts.more, collected.chunks, collected.bytes)


def _family_of_several(context: Context, turns: Turns, thread_id: str) -> Work[Any]:
    """Return the family of a thread if threads of other owners share its chunks, or else None.

    What a collection removes would tell an owner of them.
    """
    thread = None if context.owner is None else turns.session.threads.find(thread_id)
    if thread is None:
        return None
    members = turns.session.threads.family(thread.family)
    own = threads_of(turns.session, members)
    yield
    is_shared = any(kin.key not in own for kin in members if kin.deleted_at is None)
    return thread.family if is_shared else None


def would_trim(context: Context, thread_id: str, kept: Kept) -> Steps[bool]:
    """Return whether `trim` would remove anything from a thread."""
    context.prepare()

    def work(turns: Turns) -> Work[bool]:
        session, thread = turns.session, existing_thread(turns.session, thread_id)
        if kept.newest is not None and kept.since is None:
            floor = floor_of(session, thread, kept.newest)
            if floor is not None and session.checkpoints.older(thread, floor, 1):
                return True
        rows, _ = yield from outlines(turns, thread)
        return bool(_not_kept([row for row in rows if not row.hidden], kept))

    return (yield from in_turns(context.storage, work, only_reads=True))


def _not_kept(rows: Sequence[CheckpointRow], kept: Kept, floor: str | None = None) -> set[Place]:
    sources = {place_of(row): replay_bound(row) for row in rows if row.checkpoint_ns == ""}
    return surplus({place_of(row) for row in rows}, kept, sources, floor)


def _collect_if_due(turns: Turns, thread: ThreadRef) -> Work[str | None]:
    """Collect a thread's family, unless so little was removed from a long thread that it can wait.

    Returns what `CollectionResult.missing` says.
    """
    session = turns.session
    if session.removals.is_long(thread) and not session.collections.is_due(thread.family):
        return None
    return (yield from collect(turns, thread.family)).missing


def withdraw(context: Context, thread_id: str, lease: LeaseRow) -> Steps[None]:
    """Remove what runs have stored whose lease was taken over in order to roll them back.

    Their checkpoints are removed, and their writes after checkpoints that stay. So the thread goes
    on from where it was before them. Each row names the fence of the run that stored it.

    Args:
        context: The store.
        thread_id: The thread.
        lease: The lease that took over theirs: they can store nothing any more.

    Raises:
        StaleLease: The lease has ended, or another run has taken it over.
    """

    context.prepare()

    def work(turns: Turns) -> Work[str | None]:
        session = turns.session
        row = session.records.get(thread_id)
        if row is None or row.fence != lease.fence or lease.rollback_from is None:
            raise StaleLease(stale_lease(thread_id))
        if not isinstance(lease.rollback_from, int):
            raise CorruptChunk(f"the record of thread {thread_id!r} is not what was written")
        fences = range(lease.rollback_from, lease.fence)
        places = set(session.checkpoints.stored_under(row.thread, fences))
        removal = Removal(
            lambda rows: {place_of(each) for each in rows} & places,
            lambda plan, _: plan._replace(withdrawn=fences),
            may_empty=True,
        )
        yield from remove(context, turns, row.thread, removal)
        turns.session.leases.end_rollback(row.thread, lease.fence)
        yield
        return (yield from _collect_if_due(turns, row.thread))

    missing = yield from in_turns(context.storage, work)
    yield from finish(context, [thread_id], missing)


def rollback(context: Context, thread_id: str, steps: int) -> Steps[RunnableConfig | None]:
    """Remove the newest checkpoints of a thread, and reopen the one before.

    Returns the config of the thread; None if no checkpoint is left.

    Raises:
        ThreadNotFound: There is no such thread.
        CheckpointNotFound: It has fewer checkpoints.
    """
    context.prepare()
    plan = Rollback(thread_id, steps)

    def work(turns: Turns) -> Work[str | None]:
        thread = existing_thread(turns.session, thread_id)
        removal = Removal(plan.choose, plan.begin_again, divide=plan.divide, tail=plan.tail)
        yield from remove(context, turns, thread, removal)
        yield
        return (yield from _collect_if_due(turns, thread))

    missing = yield from in_turns(context.storage, work)
    yield from finish(context, [thread_id], missing)
    return None if plan.head is None else thread_config(thread_id)
