"""Removing many checkpoints of a thread in turns, each of which leaves a thread like any other.

First the thread is read, part by part, and it is planned what is to go. Then that is removed, some
at a time: each checkpoint before those that its own state is rebuilt from, and those of the graph
before those of its subgraphs, whose state they may have to return to. Before each part it is seen
what has happened since the thread was read. If it was more than new checkpoints, all begins again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from forkpoint import removal
from forkpoint.operations import Context, place_of
from forkpoint.rows import metadata_of, open_checkpoint
from forkpoint.storage import CheckpointRow, Counts, Extent, RemovalPart, Session, Stale, ThreadRef
from forkpoint.turns import Turns, Work

_ATTEMPTS = 3  # before a thread in which others remove at the same time is removed from as a whole
_NEWEST = 200  # ids by which checkpoints that are new are told from those that were read

Choose = Callable[[Sequence[CheckpointRow]], set[removal.Place]]
BeginAgain = Callable[[removal.Plan, Sequence[CheckpointRow]], removal.Plan]


class Removal(NamedTuple):
    """What is to be removed of a thread."""

    choose: Choose
    """Which of those that can be seen."""
    begin_again: BeginAgain | None = None
    """What else is to be done, together with all of that."""
    may_empty: bool = False
    """Whether the thread stays if none is left."""


def remove(context: Context, turns: Turns, thread: ThreadRef, wanted: Removal) -> Work[Counts]:
    """Remove those checkpoints of a thread that are chosen out of all that can be seen.

    If none is left, the thread is deleted, so that nothing late brings it back.
    """
    number = more = 0
    is_complete = False
    for _ in range(_ATTEMPTS if turns.session.is_long(thread) else 0):
        try:
            counts, is_complete = yield from _Removing(context, turns, thread, wanted).run()
        except Stale:  # it is deleted, and with it what was to go
            turns.only_reads = False
            is_complete = True
            counts = Counts(0, 0)
        number += counts.number
        more += counts.more
        if is_complete:
            return Counts(number, more)
    counts = _remove_whole(context, turns.session, thread, wanted)
    return Counts(number + counts.number, more + counts.more)


def _remove_whole(context: Context, session: Session, thread: ThreadRef, wanted: Removal) -> Counts:
    is_emptied = False

    def plan(rows: Sequence[CheckpointRow]) -> removal.Plan:
        nonlocal is_emptied
        planned = _plan(rows, lambda: _headers(context, thread, rows), wanted)
        is_emptied = planned is None
        return planned or removal.Plan(set(), set())

    counts = session.remove(thread, plan)
    return session.bury(thread) if is_emptied else counts


def _plan(
    rows: Sequence[CheckpointRow],
    headers: Callable[[], Mapping[removal.Place, removal.Header]],
    wanted: Removal,
) -> removal.Plan | None:
    """Return what is to be done, or None if that leaves nothing to be seen."""
    seen = [row for row in rows if not row.hidden]
    doomed = wanted.choose(seen)
    if seen and not wanted.may_empty and all(place_of(row) in doomed for row in seen):
        return None
    doomed |= {place_of(row) for row in rows if row.hidden}
    planned = removal.plan(headers(), doomed)
    if wanted.begin_again is None:
        return planned
    staying = [row for row in seen if place_of(row) not in doomed]
    return wanted.begin_again(planned, staying)


def _headers(
    context: Context, thread: ThreadRef, rows: Sequence[CheckpointRow]
) -> dict[removal.Place, removal.Header]:
    # Manifests matter only in threads that have channels to rebuild.
    rebuilds = any(removal.COUNTERS in row.metadata for row in rows)
    return {place_of(row): _header(context, thread, row, rebuilds=rebuilds) for row in rows}


def _header(
    context: Context, thread: ThreadRef, row: CheckpointRow, *, rebuilds: bool
) -> removal.Header:
    parent = row.parent_checkpoint_id
    stored: Collection[str] = ()
    rebuilt: Collection[str] = ()
    if rebuilds:
        body, manifest = open_checkpoint(context.codec_of(thread), row)
        versions = body.get("channel_versions", {})
        stored = frozenset(manifest)
        rebuilt = removal.rebuilt_channels(metadata_of(row), versions, stored)
    return removal.Header((row.checkpoint_ns, parent) if parent else None, stored, rebuilt)


class _Removing:
    """A removal from a long thread."""

    def __init__(self, context: Context, turns: Turns, thread: ThreadRef, wanted: Removal) -> None:
        self._context = context
        self._turns = turns
        self._thread = thread
        self._wanted = wanted
        self._number = self._more = 0
        self._extent = Extent(0, 0)
        self._bound = ""
        self._known: set[removal.Place] = set()

    def run(self) -> Work[tuple[Counts, bool]]:
        """Remove, and return what was, and whether that is all."""
        self._extent = self._turns.session.extent(self._thread)
        self._turns.only_reads = True
        yield
        rows, rebuilds = yield from outlines(self._turns, self._thread)
        headers: Mapping[removal.Place, removal.Header] = {}
        if rebuilds:
            headers = yield from self._read_headers()
        plan = yield from self._turns.apart(lambda: self._planned(rows, headers))
        self._turns.only_reads = False
        yield
        if plan is None:
            is_same = self._is_valid(())
            return (self._turns.session.bury(self._thread) if is_same else Counts(0, 0)), is_same
        return (yield from self._execute(plan))

    def _planned(
        self,
        rows: Sequence[CheckpointRow],
        headers: Mapping[removal.Place, removal.Header],
    ) -> RemovalPart | None:
        self._note_newest(rows)
        plan = _plan(rows, lambda: headers, self._wanted)
        if plan is None:
            return None
        return RemovalPart(removal.in_order(plan.removed | plan.hidden, headers), plan)

    def _execute(self, planned: RemovalPart) -> Work[tuple[Counts, bool]]:
        plan = planned.plan
        going = plan.removed | plan.hidden
        waiting = list(planned.going)
        is_one_step = self._wanted.begin_again is not None
        while waiting or is_one_step:
            if not self._is_valid(going):
                return Counts(self._number, self._more), False
            part = RemovalPart(waiting, plan)
            removed = self._turns.session.remove_part(self._thread, part, whole=is_one_step)
            self._number += removed.counts.number
            self._more += removed.counts.more
            del waiting[: removed.places]
            self._extent = self._turns.session.extent(self._thread)
            if is_one_step:
                break
            yield
        return Counts(self._number, self._more), True

    def _read_headers(self) -> Work[dict[removal.Place, removal.Header]]:
        headers: dict[removal.Place, removal.Header] = {}
        after: object = None
        while True:
            part = self._turns.session.rows_after(self._thread, after, with_content=True)
            for row in part.items:
                header = _header(self._context, self._thread, row, rebuilds=True)
                headers[place_of(row)] = header
            yield
            if part.after is None:
                return headers
            after = part.after

    def _note_newest(self, rows: Iterable[CheckpointRow]) -> None:
        places = [place_of(row) for row in rows]
        ids = sorted(checkpoint_id for _, checkpoint_id in places)
        self._bound = ids[-_NEWEST] if len(ids) >= _NEWEST else ""
        self._known = {place for place in places if place[1] >= self._bound}

    def _is_valid(self, going: Collection[removal.Place]) -> bool:
        """Return whether the plan is still right.

        Raises:
            Stale: The thread is deleted.
        """
        session, before = self._turns.session, self._extent
        self._extent = session.extent(self._thread)
        if self._extent.removals != before.removals:
            return False
        if self._extent.checkpoints == before.checkpoints:
            return True
        if not going:
            return False  # nothing was to be left
        new = [
            row
            for row in session.rows_from(self._thread, self._bound)
            if place_of(row) not in self._known
        ]
        self._known |= {place_of(row) for row in new}
        parents = {(row.checkpoint_ns, row.parent_checkpoint_id) for row in new if _rebuilds(row)}
        is_known = len(new) == self._extent.checkpoints - before.checkpoints
        return is_known and parents.isdisjoint(going)


def _rebuilds(row: CheckpointRow) -> bool:
    return removal.COUNTERS in row.metadata


def outlines(turns: Turns, thread: ThreadRef) -> Work[tuple[list[CheckpointRow], bool]]:
    """Return the checkpoints of a thread, with as little of each as is needed to choose.

    And whether any has channels that are rebuilt from its ancestors.
    """
    names: dict[str, str] = {}
    rows: list[CheckpointRow] = []
    rebuilds = False
    after: object = None
    while True:
        part = turns.session.rows_after(thread, after, with_content=False)
        for row in part.items:
            rebuilds = rebuilds or _rebuilds(row)
            rows.append(_outline(row, names))
        yield
        if part.after is None:
            return rows, rebuilds
        after = part.after


def _outline(row: CheckpointRow, names: dict[str, str]) -> CheckpointRow:
    """Return what a choice may depend on, with each string once."""
    parent, run_id = (name and names.setdefault(name, name) for name in row[2:4])
    return CheckpointRow(
        names.setdefault(row.checkpoint_ns, row.checkpoint_ns),
        names.setdefault(row.checkpoint_id, row.checkpoint_id),
        parent,
        run_id,
        _outlined(row),
        b"",
        b"",
        b"",
        row.hidden,
    )


def _outlined(row: CheckpointRow) -> str:
    is_update = row.checkpoint_ns == "" and metadata_of(row).get("source") in (
        "update",
        "fork",
    )
    return _UPDATE if is_update else "{}"


_UPDATE = json.dumps({"source": "update"})
