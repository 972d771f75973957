"""Removing the oldest checkpoints of a long thread's own graph, without reading the others.

It goes from the newest of those that are to go to the oldest, some at a time. So each is removed
before those that its state is rebuilt from, and little has to be known at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from forkpoint import langgraph_rules
from forkpoint.operations.places import place_of
from forkpoint.operations.turns import Turns, Work
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.plan import Place, Plan
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.rows import CheckpointRow, Counts, RemovalPart, ThreadRef

_AT_ONCE = 1000  # checkpoints


class _Changed(Stale):
    """Others removed something of the thread, or put what is rebuilt from what was to go."""


class RemovedOldest(NamedTuple):
    """What was removed."""

    counts: Counts
    floor: str | None
    """The id of the oldest checkpoint that stays; None if nothing was removed."""


def remove_oldest(turns: Turns, thread: ThreadRef, kept: int) -> Work[RemovedOldest]:
    """Remove all checkpoints of a long thread's own graph but the newest ones.

    It removes none if it takes more to know than which these are: one that stays may be rebuilt
    from others. What is put meanwhile stays.

    Args:
        turns: The transactions to remove in.
        thread: The thread.
        kept: How many stay; at least 1.
    """
    floor = floor_of(turns.session, thread, kept)
    number = more = 0
    if floor is None:
        return RemovedOldest(Counts(0, 0), None)
    extent = turns.session.removals.extent(thread)

    def check() -> None:
        now = turns.session.removals.extent(thread)
        if now.removals != extent.removals:
            raise _Changed
        if now != extent and _any_rebuilt(turns.session.checkpoints.since(thread, floor)):
            raise _Changed

    going: list[Place] = []
    while True:
        if not going:
            ids = turns.session.checkpoints.older(thread, floor, _AT_ONCE)
            going = [("", checkpoint_id) for checkpoint_id in ids]
        if not going:
            break
        part = RemovalPart(going, Plan(set(going), set()))
        try:
            removed = turns.session.removals.remove_batch(thread, part, check)
        except Stale:
            break  # nothing of this part was done
        number += removed.counts.number
        more += removed.counts.more
        extent = removed.extent
        going = going[removed.places :]
        yield
    return RemovedOldest(Counts(number, more), floor)


def floor_of(session: Session, thread: ThreadRef, kept: int) -> str | None:
    """Return the id of the oldest checkpoint that stays of a long thread's own graph.

    None if that is not all there is to be known, or if none goes.
    """
    if not (session.removals.is_long(thread) and session.removals.is_ordered(thread)):
        return None
    query = CheckpointQuery(thread.thread_id, "", None, None, None, None, 1, max(1, kept - 1))
    oldest = next((stored.row for stored in session.checkpoints.page(query)), None)
    if oldest is None:
        return None
    rows = session.checkpoints.since(thread, oldest.checkpoint_id)
    staying = sorted((row for row in rows if row.checkpoint_ns == ""), key=place_of)[-kept:]
    if len(staying) < kept or _any_rebuilt(staying):
        return None
    return staying[0].checkpoint_id


def _any_rebuilt(rows: Sequence[CheckpointRow]) -> bool:
    return any(langgraph_rules.COUNTERS in row.metadata for row in rows if row.checkpoint_ns == "")
