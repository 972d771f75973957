"""Importing: thread by thread from a source into a store, and comparing both afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from forkpoint import inputs
from forkpoint.archive.parts import CheckpointPart, ChunkPart, Part, ThreadPart
from forkpoint.archive.reading import read_thread
from forkpoint.errors import (
    ForkpointError,
    ThreadBusy,
    ThreadExists,
    UnreadableValue,
)
from forkpoint.inputs import Address
from forkpoint.langgraph_rules import COUNTERS, delta_counters, rebuilt_channels
from forkpoint.operations import remove as removing
from forkpoint.operations.context import Context
from forkpoint.operations.places import config_of
from forkpoint.operations.read import get_tuple
from forkpoint.runtime.runner import Runner
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import Header, Place, plan
from forkpoint.transfer import target as arriving
from forkpoint.transfer.checks import check_checkpoint
from forkpoint.transfer.comparing import differences
from forkpoint.transfer.finishing import finish
from forkpoint.transfer.reports import Difference, OnProgress, TransferProgress, TransferReport
from forkpoint.transfer.sources import Places, Source
from forkpoint.transfer.target import Arrival, ThreadWriter

_ATTEMPTS = 5  # to read a thread of a source that somebody writes to
_DIFFERENCES = 1000


class Stopped(Exception):
    """The call was cancelled."""


class Done:
    """What was done so far, and what is told of it.

    Args:
        total: How many threads there are, if that is known.
        on_progress: Is told.
        stop: Is set when nothing more is to be done.
    """

    def __init__(
        self, total: int | None, on_progress: OnProgress | None, stop: threading.Event
    ) -> None:
        self.total = total
        self.threads = self.unchanged = self.checkpoints = self.writes = self.verified = 0
        self.read = 0
        self.failed: dict[str, Exception] = {}
        self.damaged: list[Any] = []
        self.differences: list[Difference] = []
        self._on_progress = on_progress
        self._stop = stop

    def note_checkpoint(self, thread_id: str, *, is_verifying: bool = False) -> None:
        """Note that a checkpoint was read.

        Raises:
            Stopped: Nothing more is to be done.
        """
        self.read += 1
        self.verified += is_verifying
        self.show(thread_id, is_verifying=is_verifying)

    def show(self, thread_id: str, *, is_verifying: bool = False) -> None:
        """Tell how far it is."""
        if self._stop.is_set():
            raise Stopped
        if self._on_progress is not None:
            dealt_with = self.threads + self.unchanged + len(self.failed)
            total = None if self.total is None else max(self.total, dealt_with)
            progress = (thread_id, dealt_with, total, self.read, is_verifying)
            self._on_progress(TransferProgress(*progress))

    def add_difference(self, difference: Difference) -> None:
        """Note that something differs, unless enough does."""
        if len(self.differences) < _DIFFERENCES:
            self.differences.append(difference)

    def report(self) -> TransferReport:
        return TransferReport(
            self.threads,
            self.unchanged,
            self.checkpoints,
            self.writes,
            dict(self.failed),
            tuple(self.damaged),
            self.verified,
            tuple(self.differences),
        )


class Target(NamedTuple):
    """The store that threads are moved to."""

    context: Context
    runner: Runner


def import_all(source: Source, target: Target, done: Done, *, verify: bool) -> TransferReport:
    """Import the threads of a source. One that fails does not keep the others from it."""
    for thread_id in source.thread_ids():
        try:
            inputs.identifier(thread_id, "thread_id")
            _import(source, target, thread_id, done)
            if verify:
                _verify(source, target, thread_id, done)
        except ForkpointError as error:
            done.failed[str(thread_id)] = error  # another saver may have taken one of any type
        except Stale:
            done.failed[thread_id] = ThreadBusy(
                f"thread {thread_id!r} was written to while it was compared; compare it again later"
            )
        done.show(str(thread_id))
    done.failed.update(source.missing())
    return done.report()


def _import(source: Source, target: Target, thread_id: str, done: Done) -> None:
    for _ in range(_ATTEMPTS):
        try:
            written = _import_once(source, target, thread_id, done)
        except Stale:
            continue
        if written:
            done.threads += 1
        else:
            done.unchanged += 1
        return
    raise ThreadBusy(
        f"thread {thread_id!r} of the source is written to all the time; import it again later"
    )


def _import_once(source: Source, target: Target, thread_id: str, done: Done) -> bool:
    """Import a thread, and return whether anything was missing of it."""
    context, runner = target
    origin = f"{source.name}:{thread_id}"
    arrival = runner.run(arriving.find, context, thread_id, origin)
    places = source.places(thread_id)
    if arrival is not None and not arrival.places <= places.keys():
        if arrival.is_incoming:  # some were removed from the source meanwhile
            runner.run(removing.delete_thread, context, thread_id)
            arrival = None
        elif _newest(arrival) not in places:
            raise ThreadExists(
                f"there is a thread {thread_id!r} already, whose newest checkpoint the source does "
                "not have; import into another store, or delete it first"
            )
    selection = _selection(source, thread_id, places, arrival)
    parts = source.parts(thread_id, selection.needed)
    record = next(parts)
    assert isinstance(record, ThreadPart)
    if arrival is not None and not arrival.is_incoming and _is_another(arrival, record):
        raise ThreadExists(
            f"there is another thread {thread_id!r} already; import into another store, or delete "
            "it first"
        )
    if arrival is None:
        parent = runner.run(arriving.parent_of, context, record, str)
        arrival = runner.run(arriving.begin, context, record, thread_id, origin, parent)
    written = _store(target, arrival, record, parts, selection, done)
    if not arrival.is_incoming and not written.number:
        return False
    runner.run(finish, context, arrival, record, written.hidden)
    return True


def _is_another(arrival: Arrival, record: ThreadPart) -> bool:
    """Return whether a thread is known to be another one: a store of forkpoint's own tells it."""
    is_known = bool(record.lineage)
    return is_known and record.times.created_at != arrival.created_at


class _Selection(NamedTuple):
    """What is to be read and stored of a thread."""

    needed: Collection[Place] | None
    """The checkpoints; None for all."""
    hidden: Collection[Place]
    """Those of them that are not to be seen."""


def _selection(
    source: Source, thread_id: str, places: Places, arrival: Arrival | None
) -> _Selection:
    """Return what is to be read and stored.

    To a thread that is complete only newer checkpoints come, so that none comes back that was
    removed. Stored ones may lack writes: those that were stored last, since their process was
    killed, or since there were none yet; and the parents of new ones, which the run that made these
    began at.
    """
    if arrival is None or not arrival.places:
        return _Selection(None, ())
    newest = _newest(arrival)[1]
    stored = arrival.places
    missing = {
        place
        for place in places
        if place not in stored and (arrival.is_incoming or place[1] > newest)
    }
    last = {place[0]: place for place in places if place in stored}
    parents = {parent for place in missing if (parent := places[place]) in stored}
    hidden = _needed_ancestors(source, thread_id, places, missing, stored)
    return _Selection(missing | parents | hidden | set(last.values()), hidden)


def _needed_ancestors(
    source: Source,
    thread_id: str,
    places: Places,
    missing: Collection[Place],
    stored: Collection[Place],
) -> set[Place]:
    """Return those removed checkpoints from which channels of missing ones are rebuilt."""
    removed: set[Place] = set()
    for place in missing:
        ancestor = places[place]
        while ancestor is not None and ancestor in places:
            if ancestor in stored or ancestor in missing or ancestor in removed:
                break
            removed.add(ancestor)
            ancestor = places[ancestor]
    if not removed:
        return set()
    headers = {
        part.place: _header(part)
        for part in source.parts(thread_id, removed | set(missing))
        if isinstance(part, CheckpointPart)
    }
    return plan({place: headers[place] for place in headers if place not in stored}, removed).hidden


def _header(part: CheckpointPart) -> Header:
    counters = delta_counters(json.loads(part.metadata))
    rebuilt = rebuilt_channels({COUNTERS: counters}, counters, part.channels)
    parent = part.parent_checkpoint_id
    return Header((part.checkpoint_ns, parent) if parent else None, set(part.channels), rebuilt)


def _newest(arrival: Arrival) -> Place:
    return max(arrival.places, key=lambda place: (place[1], place[0]))


class Written(NamedTuple):
    """What was written of a thread."""

    number: int
    """How many checkpoints and writes."""
    hidden: set[Place]


def _store(
    target: Target,
    arrival: Arrival,
    record: ThreadPart,
    parts: Iterator[Part],
    selection: _Selection,
    done: Done,
) -> Written:
    """Store the checkpoints of a thread, but for those that are there already."""
    runner, needed = target.runner, selection.needed
    thread_id = arrival.thread.thread_id
    writer = ThreadWriter(target.context, arrival.thread, record.status)
    hidden = set(selection.hidden)
    number = 0
    for part in parts:
        if isinstance(part, ChunkPart):
            writer.add(part)
        if not isinstance(part, CheckpointPart):
            continue
        check_checkpoint(part)
        is_stored = part.place in arrival.places
        if part.hidden and (arrival.is_incoming or not is_stored):
            hidden.add(part.place)
        # Of one that was removed here, others may need the chunks.
        is_needed = needed is None or part.place in needed
        if is_needed and is_stored:
            added = runner.run(writer.complete, part)
            done.writes += added
            number += added
        elif is_needed:
            runner.run(writer.put, part)
            done.checkpoints += 1
            done.writes += len(part.writes)
            number += 1
        done.note_checkpoint(thread_id)
    return Written(number, hidden)


def _verify(source: Source, target: Target, thread_id: str, done: Done) -> None:
    """Compare a thread of a source with what is stored of it, checkpoint by checkpoint."""
    stored = read_thread(target.context, thread_id, is_steady=True)
    for outcome in differences(thread_id, source.parts(thread_id), stored):
        if isinstance(outcome, Difference):
            done.add_difference(outcome)
            continue
        done.note_checkpoint(thread_id, is_verifying=True)
        address = Address(thread_id, *outcome)
        config = config_of(*address[:2], outcome[1])
        try:
            target.runner.run(get_tuple, target.context, address, config)
        except UnreadableValue as error:
            done.add_difference(Difference(thread_id, *outcome, f"it cannot be read: {error}"))
