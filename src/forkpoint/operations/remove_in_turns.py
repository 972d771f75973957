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

from forkpoint import langgraph_rules
from forkpoint.operations.context import Context
from forkpoint.operations.places import place_of
from forkpoint.operations.turns import Turns, Work
from forkpoint.storage import plan as removal
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.row_checksums import metadata_of, open_checkpoint
from forkpoint.storage.rows import ChangeCount, CheckpointRow, Counts, RemovalPart, ThreadRef

_ATTEMPTS = 3  # before a thread in which others remove at the same time is removed from as a whole
_NEWEST = 200  # ids by which checkpoints that are new are told from those that were read

Headers = Mapping[removal.Place, removal.Header]
Choose = Callable[[Sequence[CheckpointRow]], set[removal.Place]]
BeginAgain = Callable[[removal.Plan, Sequence[CheckpointRow]], removal.Plan]
Divide = Callable[[removal.Plan, Sequence[CheckpointRow], Headers], list[RemovalPart]]


class Removal(NamedTuple):
    """What is to be removed of a thread."""

    choose: Choose
    """Which of those that can be seen."""
    begin_again: BeginAgain | None = None
    """What else is to be done, together with all of that."""
    may_empty: bool = False
    """Whether the thread stays if none is left."""
    divide: Divide | None = None
    """The parts of it, if each is to be done as a whole."""


class _Changed(Stale):
    """The thread is not what it was when it was planned what is to go. Nothing was done."""


def remove(context: Context, turns: Turns, thread: ThreadRef, wanted: Removal) -> Work[Counts]:
    """Remove those checkpoints of a thread that are chosen out of all that can be seen.

    If none is left, the thread is deleted, so that nothing late brings it back.
    """
    number = more = 0
    is_complete = False
    for _ in range(_ATTEMPTS if turns.session.removals.is_long(thread) else 0):
        removing = _Removing(context, turns, thread, wanted)
        try:
            yield from removing.run()
            is_complete = True
        except _Changed:
            pass
        except Stale:  # it is deleted, and with it what was to go
            is_complete = True
        turns.only_reads = False
        number += removing.number
        more += removing.more
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

    def check() -> None:
        plan(list(session.checkpoints.all(thread)))
        if not is_emptied:
            raise _Changed

    while True:
        counts = session.removals.remove(thread, plan)
        if not is_emptied:
            return counts
        try:
            return session.threads.delete(thread, check=check)
        except _Changed:
            continue
        except Stale:
            return counts  # it is deleted


def _plan(
    rows: Sequence[CheckpointRow],
    headers: Callable[[], Headers],
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
    rebuilds = any(langgraph_rules.COUNTERS in row.metadata for row in rows)
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
        rebuilt = langgraph_rules.rebuilt_channels(metadata_of(row), versions, stored)
    return removal.Header((row.checkpoint_ns, parent) if parent else None, stored, rebuilt)


class _Removing:
    """A removal from a long thread."""

    def __init__(self, context: Context, turns: Turns, thread: ThreadRef, wanted: Removal) -> None:
        self._context = context
        self._turns = turns
        self._thread = thread
        self._wanted = wanted
        self.number = self.more = 0
        """How many checkpoints and writes were removed."""
        self._extent = ChangeCount(0, 0)
        self._bound = ""
        self._known: set[removal.Place] = set()

    def run(self) -> Work[None]:
        """Remove all that is to go.

        Raises:
            _Changed: Others removed something, or put what is rebuilt from what was to go.
            Stale: The thread is deleted.
        """
        removals = self._turns.session.removals.extent(self._thread).removals
        self._turns.only_reads = True
        yield
        rows, rebuilds = yield from outlines(self._turns, self._thread)
        # What is put meanwhile is among them, or is new.
        self._extent = ChangeCount(sum(not row.hidden for row in rows), removals)
        headers: Headers = {}
        if rebuilds:
            headers = yield from self._read_headers()
        parts = yield from self._turns.apart(lambda: self._planned(rows, headers))
        self._turns.only_reads = False
        yield
        if parts is None:
            counts = self._turns.session.threads.delete(self._thread, check=lambda: self._check(()))
            self.number, self.more = counts
            return
        yield from self._execute(parts)

    def _planned(self, rows: Sequence[CheckpointRow], headers: Headers) -> list[RemovalPart] | None:
        self._note_newest(rows)
        plan = _plan(rows, lambda: headers, self._wanted)
        if plan is None:
            return None
        if self._wanted.divide is not None:
            return self._wanted.divide(plan, rows, headers)
        return [RemovalPart(removal.in_order(plan.removed | plan.hidden, headers), plan)]

    def _execute(self, parts: Sequence[RemovalPart]) -> Work[None]:
        going = {place for part in parts for place in part.going}
        for part in parts:
            waiting = RemovalPart(list(part.going), part.plan)
            while waiting.going or part.plan.is_whole:
                removed = self._turns.session.removals.remove_batch(
                    self._thread, waiting, lambda: self._check(going)
                )
                self.number += removed.counts.number
                self.more += removed.counts.more
                self._extent = removed.extent
                del waiting.going[: removed.places]
                yield
                if part.plan.is_whole:
                    break

    def _read_headers(self) -> Work[dict[removal.Place, removal.Header]]:
        headers: dict[removal.Place, removal.Header] = {}
        after: object = None
        while True:
            part = self._turns.session.checkpoints.batch(self._thread, after, with_content=True)
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

    def _check(self, going: Collection[removal.Place]) -> None:
        """Make sure that the plan is still right.

        Raises:
            _Changed: It is not.
            Stale: The thread is deleted.
        """
        session, before = self._turns.session, self._extent
        self._extent = session.removals.extent(self._thread)
        if self._extent.removals != before.removals:
            raise _Changed
        if self._extent.checkpoints == before.checkpoints:
            return
        if not going:
            raise _Changed  # nothing was to be left
        new = [
            row
            for row in session.checkpoints.since(self._thread, self._bound)
            if place_of(row) not in self._known
        ]
        self._known |= {place_of(row) for row in new}
        parents = {(row.checkpoint_ns, row.parent_checkpoint_id) for row in new if _rebuilds(row)}
        is_known = len(new) == self._extent.checkpoints - before.checkpoints
        if not is_known or not parents.isdisjoint(going):
            raise _Changed


def _rebuilds(row: CheckpointRow) -> bool:
    return langgraph_rules.COUNTERS in row.metadata


def outlines(turns: Turns, thread: ThreadRef) -> Work[tuple[list[CheckpointRow], bool]]:
    """Return the checkpoints of a thread, with as little of each as is needed to choose.

    And whether any has channels that are rebuilt from its ancestors.
    """
    names: dict[str, str] = {}
    rows: list[CheckpointRow] = []
    rebuilds = False
    after: object = None
    while True:
        part = turns.session.checkpoints.batch(thread, after, with_content=False)
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
    is_update = row.checkpoint_ns == "" and langgraph_rules.is_update(metadata_of(row))
    return _UPDATE if is_update else "{}"


_UPDATE = json.dumps(langgraph_rules.update_metadata({}))
