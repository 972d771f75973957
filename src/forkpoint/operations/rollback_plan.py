"""Planning a rollback: which checkpoints it removes, and in which parts.

Each part is a rollback itself. So a thread whose rollback was interrupted is as it was some steps
before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from forkpoint.errors import CheckpointNotFound
from forkpoint.langgraph_rules import is_stateful
from forkpoint.operations.places import place_of, replay_bound
from forkpoint.storage.interface import Session
from forkpoint.storage.plan import Header, Place, Plan, in_order, latest
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.rows import CheckpointRow, RemovalPart, ThreadRef

PLACES_AT_ONCE = 250
"""How many checkpoints a part removes, beside the rest of the step that it ends in."""


class Rollback:
    """A rollback.

    Args:
        thread_id: The thread.
        steps: How many checkpoints of the graph itself are to go.

    Attributes:
        head: The checkpoint that is to be the newest then; None if none is left.
    """

    def __init__(self, thread_id: str, steps: int) -> None:
        self.head: str | None = None
        self._thread_id = thread_id
        self._steps = steps
        self._doomed: set[Place] | None = None

    def tail(self, session: Session, thread: ThreadRef) -> list[CheckpointRow] | None:
        """Return the checkpoints that go, the one before, and the states of subgraphs before it.

        None if it takes all checkpoints to tell what goes.
        """
        if self._doomed is not None:
            return None
        query = CheckpointQuery(thread.thread_id, "", None, None, None, None, 1, self._steps)
        head = next((stored.row for stored in session.checkpoints.page(query)), None)
        if head is None:
            return None
        bound = replay_bound(head)
        moment = session.checkpoints.moment(thread, head.checkpoint_id, bound)
        states = [row for row in moment.heads if _is_state(place_of(row))]
        later = session.checkpoints.since(thread, bound)
        if _ids(later)[-1 - self._steps :][:1] != [head.checkpoint_id]:
            return None  # somebody has put one meanwhile
        return [*(row for row in states if row.checkpoint_id < bound), *later]

    def choose(self, rows: Sequence[CheckpointRow]) -> set[Place]:
        """Return which checkpoints go, or are left of those that were to go.

        Raises:
            CheckpointNotFound: There are not so many steps.
        """
        if self._doomed is not None:  # what was put meanwhile stays
            return self._doomed & {place_of(row) for row in rows}
        ids = _ids(rows)
        if self._steps > len(ids):
            raise CheckpointNotFound(
                f"thread {self._thread_id!r} has {len(ids)} checkpoints, and cannot go "
                f"{self._steps} back"
            )
        self._doomed = {place_of(row) for row in rows}
        if self._steps < len(ids):
            self.head = head = ids[-1 - self._steps]
            (bound,) = (replay_bound(row) for row in rows if place_of(row) == ("", head))
            self._doomed = {place_of(row) for row in rows if _is_later(row, head, bound)}
        return set(self._doomed)

    def begin_again(self, plan: Plan, staying: Sequence[CheckpointRow]) -> Plan:
        """Return a plan by which the newest checkpoint that stays is to run again."""
        heads = latest(place_of(row) for row in staying if row.checkpoint_ns)
        return self._reopening(plan, self.head, {place for place in heads if _is_state(place)})

    def divide(
        self, plan: Plan, rows: Sequence[CheckpointRow], headers: Mapping[Place, Header]
    ) -> list[RemovalPart]:
        """Return the parts of a rollback of all that a plan removes or hides."""
        going = plan.removed | plan.hidden
        ordered = in_order(going, headers)
        if self.head is None:
            return [RemovalPart(ordered, plan)]
        heads = _heads(rows, going, self.head)
        parts = _parts(rows, going, heads)
        if not _is_safe(parts, headers):
            heads = heads[-1:]
            parts = dict.fromkeys(parts, 0)
        divided: list[list[Place]] = [[] for _ in heads]
        for place in ordered:
            divided[parts[place]].append(place)
        states = _States(rows, parts)
        return [
            RemovalPart(places, self._reopening(_within(plan, places), head, states.after(part)))
            for part, (head, places) in enumerate(zip(heads, divided, strict=True))
        ]

    def _reopening(self, plan: Plan, head: str | None, states: set[Place]) -> Plan:
        if head is None:
            return plan  # somebody put what stays when all was to go
        return plan._replace(reopened={("", head), *states}, restarted=states)


class _States:
    """The checkpoints of subgraphs that keep their state, from one part to the next.

    Args:
        rows: All checkpoints of a thread.
        parts: In which part those are removed that are.
    """

    def __init__(self, rows: Sequence[CheckpointRow], parts: Mapping[Place, int]) -> None:
        self._parts = parts
        self._left: dict[str, list[Place]] = {}
        for place in sorted(place_of(row) for row in rows if not row.hidden):
            if _is_state(place):
                self._left.setdefault(place[0], []).append(place)

    def after(self, part: int) -> set[Place]:
        """Return the newest of each namespace after a part; of a later part each time."""
        newest: set[Place] = set()
        for places in self._left.values():
            while places and self._parts.get(places[-1], part + 1) <= part:
                places.pop()
            newest.update(places[-1:])
        return newest


def _ids(rows: Sequence[CheckpointRow]) -> list[str]:
    """Return the ids of the checkpoints of the graph itself, the oldest first."""
    return sorted(row.checkpoint_id for row in rows if row.checkpoint_ns == "")


def _is_state(place: Place) -> bool:
    return bool(place[0]) and is_stateful(place[0])


def _is_later(row: CheckpointRow, head: str, bound: str) -> bool:
    """Return whether a checkpoint goes if another one is to be the newest.

    Args:
        row: The checkpoint.
        head: The id of the other.
        bound: What `replay_bound` returns of that.
    """
    is_late_state = _is_state(place_of(row)) and row.checkpoint_id >= bound
    return row.checkpoint_id > head or is_late_state


def _within(plan: Plan, places: Sequence[Place]) -> Plan:
    """Return what a plan says of some checkpoints."""
    return Plan(plan.removed.intersection(places), plan.hidden.intersection(places))


def _heads(rows: Sequence[CheckpointRow], going: set[Place], head: str) -> list[str]:
    """Return the newest checkpoint after each part, the one that is the newest in the end last."""
    seen = [row for row in rows if not row.hidden and place_of(row) in going]
    later = _ids(seen)
    ids = sorted((row.checkpoint_id for row in seen), reverse=True)
    heads: list[str] = []
    for lowest in ids[PLACES_AT_ONCE - 1 :: PLACES_AT_ONCE]:
        older = bisect_left(later, lowest)
        if older == 0:
            break
        if not heads or later[older - 1] < heads[-1]:
            heads.append(later[older - 1])
    return [*heads, head]


def _parts(
    rows: Sequence[CheckpointRow], going: set[Place], heads: Sequence[str]
) -> dict[Place, int]:
    """Return in which part each checkpoint goes: the first after which it is too late to stay."""
    bounds = {row.checkpoint_id: replay_bound(row) for row in rows if row.checkpoint_ns == ""}
    lowest = accumulate((bounds.get(head, head) for head in heads), min)
    by_head, by_bound = list(reversed(heads)), list(reversed(list(lowest)))
    last = len(heads) - 1
    parts: dict[Place, int] = {}
    for row in rows:
        place = place_of(row)
        if place not in going:
            continue
        part = len(heads) - bisect_left(by_head, row.checkpoint_id)
        if _is_state(place):
            part = min(part, len(heads) - bisect_right(by_bound, row.checkpoint_id))
        parts[place] = last if row.hidden else min(part, last)
    return parts


def _is_safe(parts: Mapping[Place, int], headers: Mapping[Place, Header]) -> bool:
    """Return whether none goes before another that may be rebuilt from it.

    So it is if the ids are in the order in which the checkpoints were made.
    """
    for place, part in parts.items():
        parent = headers[place].parent if place in headers else None
        if parent is not None and parts.get(parent, part) < part:
            return False
    return True
