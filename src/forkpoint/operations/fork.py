"""Forking: threads made of others, without copying a chunk, and how they are related.

What a fork takes along decides how it goes on. At the head of a thread that is everything that the
thread would go on with: pending writes as they are, and the newest state of each subgraph, as well
as that from before the step, with which a time travel to the fork's own head goes on. At an older
checkpoint it is what LangGraph's own time travel would use: the step runs again, so finished
work and old answers stay behind, and the state of subgraphs is the newest from before that moment,
marked as one to which the step applies an input. With new values the step runs again, too.
What a `DeltaChannel` is rebuilt from comes along out of sight, from the ancestors on the path.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig

from forkpoint.errors import CorruptChunk, ForkpointError, ThreadExists
from forkpoint.operations.context import Context
from forkpoint.operations.fork_parts import (
    NewFork,
    Parts,
    Source,
    channels_of,
    heads_of,
    moment_of,
    request_of,
    rows_of,
    source_of,
)
from forkpoint.operations.gc import collect
from forkpoint.operations.places import at_place, existing_thread, place_of, thread_config
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import HistoryChanged, Session, Stale
from forkpoint.storage.retry import attempts, busy
from forkpoint.storage.row_checksums import check_end, rebind
from forkpoint.storage.rows import CheckpointRow

_ATTEMPTS = 3  # before a thread from which others remove is forked in one transaction
_COPIED_AT_ONCE = 100  # checkpoints
_LOOKS = 5  # before it is believed that something is damaged


def fork(context: Context, new: NewFork) -> Steps[RunnableConfig]:
    """Make a thread that begins at a checkpoint of another, and return its config.

    Raises:
        ThreadNotFound: There is no source.
        CheckpointNotFound: The source has no such checkpoint.
        ThreadExists: There is a thread of the target's id.
        InvalidInput: `values` names an unknown channel.
        CorruptChunk: What the fork needs is not what was written.
    """
    context.prepare()
    if new.whole_path and (yield from _fork_in_turns(context, new)):
        return thread_config(new.target_id)

    def work(turns: Turns) -> Work[None]:
        yield from ()  # in one turn
        _fork(context, turns.session, new)

    damage: CorruptChunk | None = None
    for attempt in attempts():
        try:
            yield from in_turns(context.storage, work)
        except HistoryChanged:
            raise
        except Stale:
            continue
        except CorruptChunk as error:
            # Where there are no transactions, what others are removing looks like damage.
            if attempt >= _LOOKS and damage is not None and str(error) == str(damage):
                raise
            damage = error
            continue
        context.memory.threads.pop(new.target_id)
        return thread_config(new.target_id)
    raise damage or busy(f"thread {new.source.thread_id!r} changed")


def _fork(context: Context, session: Session, new: NewFork) -> None:
    source = source_of(context, session, new.source)
    moment = moment_of(session, source)
    heads = heads_of(source, moment, new)
    rows = rows_of(context, session, source, heads, new.whole_path)
    session.copies.fork(request_of(context, session, new, Parts(source, moment, heads, rows)))


# A long path, in turns


def _fork_in_turns(context: Context, new: NewFork) -> Steps[bool]:
    """Fork a checkpoint of a long thread with its path; return False if that is not to be done."""

    def work(turns: Turns) -> Work[bool]:
        for _ in range(_ATTEMPTS):
            session = turns.session
            thread = existing_thread(session, new.source.thread_id)
            removals = session.removals
            if not (removals.is_long(thread) and removals.is_ordered(thread)):
                return False
            if (yield from _forked(context, turns, new)):
                return True
        return False  # others remove from it all the time

    if not (yield from in_turns(context.storage, work)):
        return False
    context.memory.threads.pop(new.target_id)
    return True


def _forked(context: Context, turns: Turns, new: NewFork) -> Work[bool]:
    """Make a fork with its path; return False if something of the source was removed meanwhile."""
    try:
        source = source_of(context, turns.session, new.source)
        moment = moment_of(turns.session, source)
        heads = heads_of(source, moment, new)
        ends = {place_of(end): end for end in (source.row, *heads)}
        request = request_of(context, turns.session, new, Parts(source, moment, heads, ends))
        forking = turns.session.copies.begin_fork(request)
    except HistoryChanged:
        raise
    except (Stale, CorruptChunk):  # of real damage, the fork in one turn tells
        return False
    yield
    error: ForkpointError | None = None
    try:
        for end in ends.values():
            yield from _copy_path(context, turns, source, end, _Target(forking, request.salt))
        turns.session.copies.end_fork(forking)
        return True
    except Stale:
        pass
    except (ThreadExists, CorruptChunk) as failure:  # nothing of this part was written
        error = failure
    turns.session.copies.abandon(forking)
    yield
    yield from collect(turns, source.thread.family)  # it kept chunks that were removed meanwhile
    turns.is_over = True
    yield
    if error is not None:
        raise error
    return False


class _Target(NamedTuple):
    """A fork that is not complete."""

    forking: Any
    salt: bytes


def _copy_path(
    context: Context, turns: Turns, source: Source, end: CheckpointRow, target: _Target
) -> Work[None]:
    """Copy the ancestors of a checkpoint, some at a time."""
    thread, codec = source.thread, source.codec.root.of_salt(target.salt)
    _, rebuilt = channels_of(context, source.stored, end)
    oldest, missing = end, set(rebuilt)
    while True:
        session = turns.session
        ancestors = session.checkpoints.ancestors(thread, *place_of(oldest))
        rows = list(islice(ancestors, 1, 1 + _COPIED_AT_ONCE))  # after the oldest itself
        for row in rows:
            stored, rebuilt = channels_of(context, source.stored, row)
            missing = (missing - stored) | rebuilt
            oldest = row
        writes = session.checkpoints.writes(thread, [place_of(row) for row in rows])
        with at_place(thread.thread_id, *place_of(oldest)):
            if len(rows) < _COPIED_AT_ONCE:
                check_end(oldest, missing & rebuilt)
            copies = rebind(rows, source.codec, codec)
            copied_writes = rebind(writes, source.codec, codec)
        copies = [row._replace(run_id=None) for row in copies]
        session.copies.fork_more(target.forking, copies, copied_writes)
        yield
        if len(rows) < _COPIED_AT_ONCE:
            return
