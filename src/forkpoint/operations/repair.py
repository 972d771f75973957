"""Repairing a store, as far as it can be proved what is right.

Counts, statuses and the index of searches follow from the rows, so they are made anew. A checkpoint
that cannot be read is taken out of sight, so that the newest readable one is the head; what it had
is written to a file first. No state comes to be that was not put.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import FileIO
from typing import Any

from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import split_refs
from forkpoint.errors import CorruptChunk, InvalidInput, StorageError
from forkpoint.operations.check import CheckProgress, check
from forkpoint.operations.context import Context
from forkpoint.operations.gc import collect
from forkpoint.operations.places import place_of
from forkpoint.operations.remove_in_turns import header_of
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.results import Problem, RepairReport
from forkpoint.runtime.open_files import refuse_database, write_all
from forkpoint.runtime.steps import Again, Steps
from forkpoint.storage.interface import Session
from forkpoint.storage.plan import Header, Place, Plan, plan
from forkpoint.storage.rows import CheckpointRow, ThreadRef, WriteRow

_LINE = b'{"'
"""With what each line of a quarantine begins."""


def repair(
    context: Context, quarantine: str | None, is_dry: bool, on_progress: CheckProgress
) -> Steps[RepairReport]:
    """Check all threads, and repair what can be.

    Args:
        context: The store.
        quarantine: The file to which unreadable checkpoints are written. Without it they stay.
        is_dry: Whether to change nothing.
        on_progress: Is called with what the check found so far.

    Raises:
        InvalidInput: The file is a database, or another file that is not made of lines of JSON.
        StorageError: The file cannot be written.
    """
    if quarantine is not None:
        refuse_database(quarantine, _named(quarantine))
    context.prepare()
    history = context.storage.history
    report = yield from check(context, on_progress)
    threads: dict[str, list[Problem]] = {}
    for problem in report.problems:
        threads.setdefault(problem.thread_id, []).append(problem)
    repaired: list[Problem] = []
    for thread_id, problems in threads.items():
        able = [problem for problem in problems if _can_be_repaired(problem, quarantine)]
        if any(problem.kind == "record" for problem in problems):
            continue  # who owns it, and where it is from, is not known
        if able and not is_dry:
            work = partial(_repair, context, history, thread_id, able, quarantine)
            yield from in_turns(context.storage, work)
            context.memory.threads.pop(thread_id)
        repaired += able
    left = [problem for problem in report.problems if problem not in repaired]
    return RepairReport(report, tuple(repaired), tuple(left))


def _can_be_repaired(problem: Problem, quarantine: str | None) -> bool:
    if problem.checkpoint_id is None:
        return problem.kind in ("count", "index")
    return quarantine is not None


def _repair(
    context: Context,
    history: int,
    thread_id: str,
    problems: Sequence[Problem],
    quarantine: str | None,
    turns: Turns,
) -> Work[None]:
    session = turns.session
    if context.storage.history != history:
        raise Again  # a backup was restored, maybe, in which nothing is damaged
    thread = session.threads.find(thread_id)
    if thread is None:
        return
    doomed = {
        (problem.checkpoint_ns or "", problem.checkpoint_id)
        for problem in problems
        if problem.checkpoint_id is not None
    }
    if doomed and quarantine is not None:
        try:
            _write_down(session, thread, doomed, problems, quarantine)
        except OSError as error:
            raise StorageError(f"the quarantine cannot be written: {error}") from error
    codec = context.codec_of(thread)
    if doomed:
        session.removals.remove(thread, lambda rows: _plan(codec, rows, doomed))
    session.removals.recount(thread)
    row = session.records.get(thread_id)
    if row is not None:
        session.records.describe(row, row.described, row.checksums)  # it is listed anew
    yield
    if doomed:
        yield from collect(turns, thread.family)


def _plan(codec: Codec, rows: Sequence[CheckpointRow], doomed: set[Place]) -> Plan:
    """Return how to remove checkpoints; also those of which nothing but the receipt is left."""
    chosen = plan({place_of(row): _header(codec, row) for row in rows}, doomed)
    return chosen._replace(removed=chosen.removed | (doomed - chosen.hidden))


def _header(codec: Codec, row: CheckpointRow) -> Header:
    try:
        return header_of(codec, row)
    except CorruptChunk:
        return header_of(None, row)


def _write_down(
    session: Session,
    thread: ThreadRef,
    places: set[Place],
    problems: Iterable[Problem],
    quarantine: str,
) -> None:
    """Write what is stored of checkpoints to the end of a file, a line of JSON each."""
    rows = {place_of(row): row for row in session.checkpoints.all(thread)}
    writes: dict[Place, list[WriteRow]] = {}
    for write in session.checkpoints.writes(thread, sorted(places)):
        writes.setdefault((write.checkpoint_ns, write.checkpoint_id), []).append(write)
    with _opened(quarantine) as file:
        for place in sorted(places):
            row, its_writes = rows.get(place), writes.get(place, [])
            refs = b"".join(each.refs for each in (row, *its_writes) if each is not None)
            chunks = session.chunks.get(thread.family, split_refs(refs)) if refs else {}
            line = {
                "thread_id": thread.thread_id,
                "checkpoint_ns": place[0],
                "checkpoint_id": place[1],
                "reasons": [
                    problem.reason
                    for problem in problems
                    if (problem.checkpoint_ns, problem.checkpoint_id) == place
                ],
                "checkpoint": None if row is None else _fields(row),
                "writes": [_fields(write) for write in its_writes],
                "chunks": _chunks(chunks),
            }
            write_all(file, json.dumps(line).encode() + b"\n")


def _named(quarantine: str) -> str:
    return f"the quarantine {quarantine!r}"


@contextmanager
def _opened(quarantine: str) -> Iterator[FileIO]:
    """Open a file to add lines to it: all that are written within, or none.

    Raises:
        InvalidInput: It is a database, or another file that is not made of lines of JSON.
    """
    refuse_database(quarantine, _named(quarantine))  # something else may be there by now
    with open(quarantine, "a+b", buffering=0) as file:
        file.seek(0)
        if not _LINE.startswith(begin := file.read(len(_LINE))):
            raise InvalidInput(
                f"{_named(quarantine)} is another file: it begins with {begin!r}; choose another "
                "path"
            )
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        is_finished = file.read(1) in (b"\n", b"")  # or whoever wrote the last line was stopped
        try:
            if not is_finished:
                write_all(file, b"\n")
            yield file
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def _fields(row: CheckpointRow | WriteRow) -> dict[str, Any]:
    return {name: _plain(value) for name, value in row._asdict().items()}


def _plain(value: Any) -> Any:
    return b64encode(value).decode() if isinstance(value, bytes) else value


def _chunks(chunks: Chunks | Any) -> dict[str, list[Any]]:
    return {digest.hex(): [_plain(part) for part in chunk] for digest, chunk in chunks.items()}
