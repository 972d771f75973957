"""Removing many checkpoints of a thread, in turns.

A turn is one transaction of several; see `forkpoint.operations.turns`. After each, the thread is
complete: its checkpoints can be read, and it can run on.

1. Read the thread, batch by batch, and plan what to remove.
2. Remove it, batch by batch: each checkpoint before those that its state is rebuilt from, and those
   of a graph before those of its subgraphs, to whose state they may have to return.
3. Before each batch, see what has happened since step 1. New checkpoints are all right; after
   anything else, begin again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from forkpoint import langgraph_rules
from forkpoint.encoding.codec import Codec
from forkpoint.operations.context import Context
from forkpoint.operations.gc import read_all
from forkpoint.operations.places import place_of
from forkpoint.operations.turns import Turns, Work
from forkpoint.storage.interface import Session, Stale
from forkpoint.storage.plan import Header, Place, Plan, in_order
from forkpoint.storage.plan import plan as plan_removal
from forkpoint.storage.row_checksums import metadata_of, open_checkpoint
from forkpoint.storage.rows import ChangeCount, CheckpointRow, Counts, RemovalPart, ThreadRef

_ATTEMPTS = 3  # before a thread in which others remove at the same time is removed from as a whole
_NEWEST = 200  # ids by which checkpoints that are new are told from those that were read

Headers = Mapping[Place, Header]
Choose = Callable[[Sequence[CheckpointRow]], set[Place]]
BeginAgain = Callable[[Plan, Sequence[CheckpointRow]], Plan]
Tail = Callable[[Session, ThreadRef], list[CheckpointRow] | None]
Divide = Callable[[Plan, Sequence[CheckpointRow], Headers], list[RemovalPart]]


class Removal(NamedTuple):
    """What is to be removed from a thread."""

    choose: Choose
    """Returns which of the checkpoints that are not hidden are to be removed."""
    begin_again: BeginAgain | None = None
    """Adds to the plan which of the checkpoints that stay begin again; see `Plan`."""
    may_empty: bool = False
    """Whether the thread stays if no checkpoint is left. Else it is deleted."""
    divide: Divide | None = None
    """Returns the parts of the plan, if each is to be done in one transaction."""
    tail: Tail | None = None
    """Returns the checkpoints of a long thread of which anything is to be known, if these are not
    all of them. None if all have to be read."""


class _Changed(Stale):
    """The thread has changed since the removal was planned. Nothing was done."""


def remove(context: Context, turns: Turns, thread: ThreadRef, removal: Removal) -> Work[Counts]:
    """Remove checkpoints of a thread, and return how many checkpoints and writes were removed.

    If no checkpoint is left, the thread is deleted, so that no late write brings it back.
    """
    number = more = 0
    is_complete = False
    for _ in range(_ATTEMPTS if turns.session.removals.is_long(thread) else 0):
        removing = _Removing(context, turns, thread, removal)
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
    counts = _remove_whole(context, turns.session, thread, removal)
    return Counts(number + counts.number, more + counts.more)


def _remove_whole(
    context: Context, session: Session, thread: ThreadRef, removal: Removal
) -> Counts:
    is_emptied = False

    def plan(rows: Sequence[CheckpointRow]) -> Plan:
        nonlocal is_emptied
        planned = _plan(rows, lambda: _headers(context, thread, rows), removal)
        is_emptied = planned is None
        return planned or Plan(set(), set())

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
    removal: Removal,
) -> Plan | None:
    """Return the plan of a removal; None if it leaves no checkpoint that is not hidden."""
    seen = [row for row in rows if not row.hidden]
    chosen = removal.choose(seen)
    if seen and not removal.may_empty and all(place_of(row) in chosen for row in seen):
        return None
    chosen |= {place_of(row) for row in rows if row.hidden}
    planned = plan_removal(headers(), chosen)
    if removal.begin_again is None:
        return planned
    staying = [row for row in seen if place_of(row) not in chosen]
    return removal.begin_again(planned, staying)


def _headers(
    context: Context, thread: ThreadRef, rows: Sequence[CheckpointRow]
) -> dict[Place, Header]:
    # Manifests matter only in threads that have channels to rebuild.
    rebuilds = any(langgraph_rules.COUNTERS in row.metadata for row in rows)
    codec = context.codec_of(thread) if rebuilds else None
    return {place_of(row): header_of(codec, row) for row in rows}


def header_of(codec: Codec | None, row: CheckpointRow) -> Header:
    """Return what of a checkpoint decides whether it may be removed.

    Args:
        codec: The codec of the thread; None if no channel of the thread is rebuilt.
        row: The checkpoint.

    Raises:
        CorruptChunk: It is not what was written.
    """
    parent = row.parent_checkpoint_id
    stored: Collection[str] = ()
    rebuilt: Collection[str] = ()
    if codec is not None:
        body, manifest = open_checkpoint(codec, row)
        versions = body.get("channel_versions", {})
        stored = frozenset(manifest)
        rebuilt = langgraph_rules.rebuilt_channels(metadata_of(row), versions, stored)
    return Header((row.checkpoint_ns, parent) if parent else None, stored, rebuilt)


class _Removing:
    """A removal from a long thread, in turns."""

    def __init__(self, context: Context, turns: Turns, thread: ThreadRef, removal: Removal) -> None:
        self._context = context
        self._turns = turns
        self._thread = thread
        self._removal = removal
        self.number = self.more = 0
        """How many checkpoints and writes it has removed so far."""
        self._extent = ChangeCount(0, 0)
        self._bound = self._lowest = ""
        self._known: set[Place] = set()

    def run(self) -> Work[None]:
        """Remove all that is to go.

        Raises:
            _Changed: Others removed something, or put what is rebuilt from what was to go.
            Stale: The thread is deleted.
        """
        self._extent = self._turns.session.removals.extent(self._thread)
        self._turns.only_reads = True
        yield
        headers: Headers = {}
        rows = self._tail()
        if rows is None:
            rows, rebuilds = yield from outlines(self._turns, self._thread)
            # What is put meanwhile is among them, or is new.
            shown = sum(not row.hidden for row in rows)
            self._extent = self._extent._replace(checkpoints=shown)
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

    def _tail(self) -> list[CheckpointRow] | None:
        """Return the checkpoints that the removal is about, if no others need be known."""
        read, session = self._removal.tail, self._turns.session
        if read is None or not session.removals.is_ordered(self._thread):
            return None
        before = session.removals.extent(self._thread)
        rows = read(session, self._thread)
        if rows is not None:
            self._extent = self._extent._replace(checkpoints=before.checkpoints)
            self._lowest = min(row.checkpoint_id for row in rows if row.checkpoint_ns == "")
        return rows

    def _planned(self, rows: Sequence[CheckpointRow], headers: Headers) -> list[RemovalPart] | None:
        self._note_newest(rows)
        plan = _plan(rows, lambda: headers, self._removal)
        if plan is None:
            return None
        if self._removal.divide is not None:
            return self._removal.divide(plan, rows, headers)
        return [RemovalPart(in_order(plan.removed | plan.hidden, headers), plan)]

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

    def _read_headers(self) -> Work[dict[Place, Header]]:
        headers: dict[Place, Header] = {}
        codec = self._context.codec_of(self._thread)
        yield from read_all(
            self._turns,
            lambda after: self._turns.session.checkpoints.batch(
                self._thread, after, with_content=True
            ),
            lambda rows: headers.update((place_of(row), header_of(codec, row)) for row in rows),
        )
        return headers

    def _note_newest(self, rows: Iterable[CheckpointRow]) -> None:
        places = [place_of(row) for row in rows]
        ids = sorted(checkpoint_id for _, checkpoint_id in places)
        self._bound = ids[-_NEWEST] if len(ids) >= _NEWEST else self._lowest
        self._known = {place for place in places if place[1] >= self._bound}

    def _check(self, going: Collection[Place]) -> None:
        """Check that the plan still holds.

        Raises:
            _Changed: It does not.
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

    Also returns whether any of them has channels that are rebuilt from its ancestors.
    """
    names: dict[str, str] = {}
    rows: list[CheckpointRow] = []
    rebuilds = False

    def take(batch: Iterable[CheckpointRow]) -> None:
        nonlocal rebuilds
        for row in batch:
            rebuilds = rebuilds or _rebuilds(row)
            rows.append(_outline(row, names))

    yield from read_all(
        turns,
        lambda after: turns.session.checkpoints.batch(thread, after, with_content=False),
        take,
    )
    return rows, rebuilds


def _outline(row: CheckpointRow, names: dict[str, str]) -> CheckpointRow:
    """Return what a choice may depend on. Equal strings are one object, to save memory."""
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
