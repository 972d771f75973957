"""Which checkpoints may be removed, so that the others keep their state. Pure.

A checkpoint stores its values, but for those of a `DeltaChannel`: these are rebuilt from the writes
of its ancestors, back to the nearest one that stores the channel. Such ancestors stay in the store,
hidden, for as long as a visible checkpoint needs them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from forkpoint.langgraph_rules import (
    ERROR_IDX,
    INTERRUPT_IDX,
    NULL_TASK_ID,
    RESUME_IDX,
    depth_of,
    is_stateful,
    made_at,
)
from forkpoint.storage.receipts import RECEIPT, receipt_of

Place = tuple[str, str]
"""A checkpoint within its thread: namespace and id."""


class Header(NamedTuple):
    """What of a checkpoint decides whether it may be removed."""

    parent: Place | None
    """Its parent."""
    stored: Collection[str]
    """The channels that it stores."""
    rebuilt: Collection[str]
    """The channels that are rebuilt from its ancestors."""


class Plan(NamedTuple):
    """What a removal does to the checkpoints of a thread."""

    removed: set[Place]
    """These are removed, with their writes."""
    hidden: set[Place]
    """These are hidden, and lose their receipt. Their writes stay."""
    reopened: Collection[Place] = ()
    """The step after these runs again: the writes of its tasks are removed, unless `reopens`."""
    restarted: Collection[Place] = ()
    """These get the flag `CheckpointRow.restarts`."""
    withdrawn: range | None = None
    """The fences of runs that are rolled back, as in `Checkpoints.stored_under`. A write that
    one of them replaced is restored, and all other writes with these fences are removed."""

    @property
    def is_whole(self) -> bool:
        """Whether all of it is one transaction, as the thread goes on from another state then."""
        return bool(self.reopened) or self.withdrawn is not None


HEAD_ROWS = RECEIPT, INTERRUPT_IDX, ERROR_IDX
"""The `idx` of the rows of a thread's newest checkpoint with which its record is shown, beside the
receipts that tell which of its tasks are done."""

KEPT = INTERRUPT_IDX, receipt_of(INTERRUPT_IDX)
DROPPED = RESUME_IDX, receipt_of(RESUME_IDX)
"""The `idx` of writes and receipts, of any task, that stay where a step is to run again, and of
those that are removed."""


def reopens(task_id: str, idx: int) -> bool:
    """Return whether a write stays where a step is to run again.

    Questions stay, so that they can be answered differently, and so do the writes of a `Command`,
    but for answers. Finished work, failures and old answers are removed.
    """
    return idx in KEPT or (task_id == NULL_TASK_ID and idx not in DROPPED)


def newest(places: Iterable[Place]) -> Place | None:
    """Return the newest checkpoint of a graph itself."""
    return max((place for place in places if place[0] == ""), default=None)


def plan(headers: Mapping[Place, Header], doomed: Iterable[Place]) -> Plan:
    """Return how to remove checkpoints so that all others keep their state.

    Args:
        headers: All checkpoints of a thread.
        doomed: Those that are to be removed. Those that are hidden already are among them.
    """
    places = set(doomed)
    needed: set[tuple[Place, str]] = set()
    for place in headers.keys() - places:
        for channel in headers[place].rebuilt:
            ancestor = headers[place].parent
            while ancestor is not None and ancestor in headers:
                if (ancestor, channel) in needed:
                    break
                needed.add((ancestor, channel))
                if channel in headers[ancestor].stored:
                    break
                ancestor = headers[ancestor].parent
    hidden = {place for place, _ in needed} & places
    return Plan(places - hidden, hidden)


def in_order(places: Collection[Place], headers: Mapping[Place, Header]) -> list[Place]:
    """Return checkpoints in an order in which they can be removed one by one.

    Those of the graph itself come before those of its subgraphs, and each before its ancestors.

    Args:
        places: The checkpoints.
        headers: All checkpoints of the thread, if any has channels that are rebuilt.
    """
    ages: dict[Place, int] = {}
    for place in places if headers else ():
        path: list[Place] = []
        following: Place | None = place
        while following is not None and following not in ages and following in headers:
            ages[following] = -1  # on the path: it may be its own ancestor
            path.append(following)
            following = headers[following].parent
        age = ages.get(following, 0) if following is not None else 0
        for ancestor in reversed(path):
            age += 1
            ages[ancestor] = age

    def key(place: Place) -> tuple[int, int, str]:
        checkpoint_ns, checkpoint_id = place
        return -depth_of(checkpoint_ns), ages.get(place, 0), checkpoint_id

    return sorted(places, key=key, reverse=True)


def latest(places: Iterable[Place]) -> set[Place]:
    """Return the newest checkpoint of each namespace."""
    newest: dict[str, str] = {}
    for checkpoint_ns, checkpoint_id in places:
        newest[checkpoint_ns] = max(checkpoint_id, newest.get(checkpoint_ns, ""))
    return set(newest.items())


class Kept(NamedTuple):
    """Which checkpoints of each namespace stay: the newest one, and those within these limits."""

    newest: int | None = None
    """How many there are at most; None for any number."""
    since: int | None = None
    """When they were made at the earliest, in microseconds since 1970; None for ever."""

    def of(self, ids: Sequence[str]) -> Sequence[str]:
        """Return those that stay of a namespace, given the oldest first."""
        if self.newest is not None:
            ids = ids[-self.newest :]
        since = self.since
        if since is None:
            return ids
        return [*(id_ for id_ in ids[:-1] if (made_at(id_) or since) >= since), *ids[-1:]]


def surplus(
    places: Collection[Place], kept: Kept, replays: Mapping[Place, str], floor: str | None = None
) -> set[Place]:
    """Return the checkpoints that are not to stay.

    A time travel to a checkpoint that stays finds the state that its subgraphs had then, if they
    are of those that keep one from call to call: these checkpoints stay as well.

    Args:
        places: All checkpoints.
        kept: Which stay.
        replays: For each checkpoint of the graph itself the id before which a time travel to it
            looks for the state of subgraphs.
        floor: The id from which on all checkpoints of the graph itself stay; None for none.
    """
    namespaces: dict[str, list[str]] = {}
    for checkpoint_ns, checkpoint_id in sorted(places):
        namespaces.setdefault(checkpoint_ns, []).append(checkpoint_id)
    staying = {(ns, id_) for ns, ids in namespaces.items() for id_ in kept.of(ids)}
    if floor is not None:
        staying |= {("", id_) for id_ in namespaces.get("", ()) if id_ >= floor}
    bounds = [replays[place] for place in staying if place in replays]
    for checkpoint_ns, ids in namespaces.items():
        if checkpoint_ns and is_stateful(checkpoint_ns):
            before = (bisect_left(ids, bound) - 1 for bound in bounds)
            staying |= {(checkpoint_ns, ids[index]) for index in before if index >= 0}
    return set(places) - staying
