"""Which checkpoints may go, so that what stays keeps its state. Pure.

A checkpoint's values are its own, but for those of a `DeltaChannel`: these are rebuilt from the
writes of its ancestors, back to the nearest that stores the channel. Such ancestors stay in the
store, hidden from view, for as long as a checkpoint needs them.
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
    """What decides about a checkpoint's removal."""

    parent: Place | None
    stored: Collection[str]
    """The channels that it stores."""
    rebuilt: Collection[str]
    """The channels that are rebuilt from its ancestors."""


class Plan(NamedTuple):
    """What a removal does: some checkpoints are removed, some hidden, others begin again."""

    removed: set[Place]
    hidden: set[Place]
    reopened: Collection[Place] = ()
    """What their tasks did is dropped, so that the step after them runs again; see `reopens`."""
    restarted: Collection[Place] = ()
    """The states of subgraphs to which that step applies an input; see `CheckpointRow`."""
    withdrawn: range | None = None
    """The fences of runs whose writes are removed, wherever they are."""

    @property
    def is_whole(self) -> bool:
        """Whether it is to be done as a whole, since the thread goes on from another state."""
        return bool(self.reopened) or self.withdrawn is not None


HEAD_ROWS = RECEIPT, INTERRUPT_IDX, ERROR_IDX
"""What of a thread's newest checkpoint its record is shown with, beside the receipts that tell
which of its tasks are done."""

KEPT = INTERRUPT_IDX, receipt_of(INTERRUPT_IDX)
DROPPED = RESUME_IDX, receipt_of(RESUME_IDX)
"""What stays of any task where a step is to run again, and what goes: writes and their receipts."""


def reopens(task_id: str, idx: int) -> bool:
    """Return whether a write stays where a step is to run again.

    Questions stay, so that they can be answered differently, and what a `Command` said apart from
    answers. Finished work, failures and old answers go.
    """
    return idx in KEPT or (task_id == NULL_TASK_ID and idx not in DROPPED)


def newest(places: Iterable[Place]) -> Place | None:
    """Return the newest checkpoint of a graph itself."""
    return max((place for place in places if place[0] == ""), default=None)


def plan(headers: Mapping[Place, Header], doomed: Iterable[Place]) -> Plan:
    """Return what to do so that the doomed checkpoints are gone, and all others are as before.

    Args:
        headers: All checkpoints of a thread. Those that are hidden already are doomed too.
        doomed: Those that are to go.
    """
    going = set(doomed)
    needed: set[tuple[Place, str]] = set()
    for place in headers.keys() - going:
        for channel in headers[place].rebuilt:
            ancestor = headers[place].parent
            while ancestor is not None and ancestor in headers:
                if (ancestor, channel) in needed:
                    break
                needed.add((ancestor, channel))
                if channel in headers[ancestor].stored:
                    break
                ancestor = headers[ancestor].parent
    hidden = {place for place, _ in needed} & going
    return Plan(going - hidden, hidden)


def in_order(going: Collection[Place], headers: Mapping[Place, Header]) -> list[Place]:
    """Return checkpoints in an order in which they can be removed one by one.

    Those of the graph itself come before those of its subgraphs, and each before its ancestors.

    Args:
        going: The checkpoints.
        headers: All checkpoints of the thread, if any has channels that are rebuilt.
    """
    ages: dict[Place, int] = {}
    for place in going if headers else ():
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

    return sorted(going, key=key, reverse=True)


def latest(places: Iterable[Place]) -> set[Place]:
    """Return the newest checkpoint of each namespace."""
    newest: dict[str, str] = {}
    for checkpoint_ns, checkpoint_id in places:
        newest[checkpoint_ns] = max(checkpoint_id, newest.get(checkpoint_ns, ""))
    return set(newest.items())


class Kept(NamedTuple):
    """Which checkpoints of each namespace stay: the newest, and others that keep to this."""

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


def beyond(places: Collection[Place], kept: Kept, replays: Mapping[Place, str]) -> set[Place]:
    """Return all checkpoints but those that are to stay.

    What a time travel to one of those that stay finds of the subgraphs that keep their state stays
    as well.

    Args:
        places: All checkpoints.
        kept: Which stay.
        replays: For each checkpoint of the graph itself the id that it looks before.
    """
    namespaces: dict[str, list[str]] = {}
    for checkpoint_ns, checkpoint_id in sorted(places):
        namespaces.setdefault(checkpoint_ns, []).append(checkpoint_id)
    staying = {(ns, id_) for ns, ids in namespaces.items() for id_ in kept.of(ids)}
    bounds = [replays[place] for place in staying if place in replays]
    for checkpoint_ns, ids in namespaces.items():
        if checkpoint_ns and is_stateful(checkpoint_ns):
            before = (bisect_left(ids, bound) - 1 for bound in bounds)
            staying |= {(checkpoint_ns, ids[index]) for index in before if index >= 0}
    return set(places) - staying
