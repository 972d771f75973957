"""Restoring: the threads of an archive, each after the one that it was made from.

First the file is read to see which threads are in it. Then it is read once more, and again as long
as there are threads that come before what they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from forkpoint.archive.file import Line, length_of, lines_in
from forkpoint.archive.lines import (
    BEGIN,
    Verified,
    is_whole,
    mark_in,
    part_of,
    second_begin,
    verified,
)
from forkpoint.archive.parts import CheckpointPart, ChunkPart, EndPart, ThreadPart
from forkpoint.errors import (
    CorruptChunk,
    DamagedArchive,
    EncryptionMismatch,
    ForkpointError,
    InvalidInput,
    ThreadExists,
)
from forkpoint.operations import remove as removing
from forkpoint.storage.plan import Place
from forkpoint.transfer import target as arriving
from forkpoint.transfer.checks import check_checkpoint, check_thread
from forkpoint.transfer.finishing import finish
from forkpoint.transfer.importing import Done, Target
from forkpoint.transfer.reports import TransferReport
from forkpoint.transfer.sources import IsSelected, NamedThreads, not_there
from forkpoint.transfer.target import Arrival, ThreadWriter

Rename = Mapping[str, str] | Callable[[str], str]
"""The ids that threads get, by those that they had, or what takes the one and returns the other."""

_END = b'{"end": '
_OF_NONE = "it belongs to no thread, as the line that begins it is damaged"


class _Section(NamedTuple):
    """A thread in an archive."""

    line: int
    """The number of its first line."""
    mark: bytes
    thread_id: str
    created_at: int
    parent: tuple[str, int] | None
    """The id of the thread that it was made from, and when that was made."""
    is_complete: bool = False
    of_another: int | None = None
    """The number of the first line of another thread, whose own first line is damaged."""


def restore_all(
    path: str, target: Target, is_selected: IsSelected | None, rename: Rename, done: Done
) -> TransferReport:
    """Restore the threads of an archive. One that fails does not keep the others from it."""
    sections: dict[str, _Section] = {}
    absent = dict.fromkeys(rename) if isinstance(rename, Mapping) else {}
    renamed = (lambda id_: rename.get(id_, id_)) if isinstance(rename, Mapping) else rename
    mixed: dict[int, _Section] = {}
    length = length_of(path)  # of what is appended meanwhile nothing counts: it may be half there
    for section in _survey(path, length, done):
        absent.pop(section.thread_id, None)
        if section.of_another is not None:
            mixed[section.of_another] = section
        if is_selected is not None and not is_selected(section.thread_id):
            continue
        before = sections.get(section.thread_id)
        if before is None or section.is_complete or not before.is_complete:
            sections[section.thread_id] = section
    done.damaged += [
        DamagedArchive(line, None, _OF_NONE)
        for line, section in mixed.items()
        if section != sections.get(section.thread_id)  # else it is noted as that is restored
    ]
    _restore_each(path, target, length, sections, renamed, done)
    done.failed.update(NamedThreads.missing(is_selected, "the archive"))
    done.failed.update(not_there(absent, "the archive"))
    return done.report()


def _restore_each(
    path: str,
    target: Target,
    length: int,
    sections: Mapping[str, _Section],
    renamed: Callable[[str], str],
    done: Done,
) -> None:
    """Restore the threads of some sections, each after the one that it was made from."""
    done.total = len(sections)
    parents = {(section.thread_id, section.created_at) for section in sections.values()}
    waiting = {section.line: section for section in sections.values()}
    while waiting:
        number = len(waiting)
        for line, lines in _sections(path, length):
            following = waiting.get(line)
            if following is None or following.parent in parents:
                continue
            _restore(target, following, lines, renamed, done)
            del waiting[line]
            parents.discard((following.thread_id, following.created_at))
        if len(waiting) == number:
            if not parents:
                break  # they are not there any more
            parents.clear()  # none of them is the first one: their records are damaged
    for section in waiting.values():
        done.failed[section.thread_id] = _changed_meanwhile(section)


def _sections(path: str, length: int) -> Iterator[tuple[int, Iterator[Line]]]:
    """Yield the lines of each thread, with the number of the first one; 0 if there is none."""
    first = 0

    def section_of(line: Line) -> int:
        nonlocal first
        if line.content.startswith(BEGIN):
            first = line.number
        return first

    return groupby(_lines(path, length), section_of)


def _lines(path: str, length: int) -> Iterator[Line]:
    for line in lines_in(path, length):
        at = second_begin(line.content)
        before = line.content[:at]
        if before.startswith(BEGIN):  # it was to begin a thread, of which nothing follows
            yield Line(line.number, b"", "it is cut off; its thread is left out")
        elif at:
            yield line._replace(content=before)
        yield line._replace(content=line.content[at:])


def _survey(path: str, length: int, done: Done) -> Iterator[_Section]:
    """Yield which threads are in an archive, and note what is in it of no thread."""
    for number, lines in _sections(path, length):
        section: _Section | None = None
        stray: Line | None = None
        of_another: int | None = None
        is_complete = number == 0
        for line in lines:
            if line.number == number:
                section = _section(line, done)
            elif is_complete:
                stray = stray or line
            elif _is_of_another(line, section):
                of_another = of_another or line.number
            else:
                is_complete = line.content.startswith(_END)
        if stray is not None:
            done.damaged.append(DamagedArchive(stray.number, None, stray.damage or _OF_NONE))
        if section is not None:
            yield section._replace(is_complete=is_complete, of_another=of_another)


def _section(line: Line, done: Done) -> _Section | None:
    """Return the thread that a line begins, unless that is damaged."""
    try:
        mark, record = _record(line)
        check_thread(record)
    except (CorruptChunk, InvalidInput) as error:
        done.damaged.append(DamagedArchive(line.number, None, f"{error}; its thread is left out"))
        return None
    line_age = record.lineage[1:2]
    parent = (line_age[0].thread_id, line_age[0].created_at) if line_age else None
    return _Section(line.number, mark, record.thread_id, record.times.created_at, parent)


def _record(line: Line) -> tuple[bytes, ThreadPart]:
    first = verified(line.content)
    record = part_of(first, bytes)
    assert isinstance(record, ThreadPart)
    return first.mark, record


def _is_of_another(line: Line, section: _Section | None) -> bool:
    """Return whether a line is whole, and not of the thread in whose section it is."""
    if section is None or mark_in(line.content) == section.mark:
        return False
    return is_whole(line.content)


def _restore(
    target: Target,
    section: _Section,
    lines: Iterator[Line],
    renamed: Callable[[str], str],
    done: Done,
) -> None:
    thread_id = section.thread_id
    try:
        _restore_thread(target, section, lines, renamed, done)
        done.threads += 1
    except ForkpointError as error:
        done.failed[thread_id] = error
    done.show(thread_id)


def _changed_meanwhile(section: _Section) -> DamagedArchive:
    reason = "the archive was changed while it was read; restore the thread again"
    return DamagedArchive(section.line, section.thread_id, reason)


def _restore_thread(
    target: Target,
    section: _Section,
    lines: Iterator[Line],
    renamed: Callable[[str], str],
    done: Done,
) -> None:
    context, runner = target
    mark, record = _record(next(lines))
    if (mark, record.thread_id) != (section.mark, section.thread_id):
        raise _changed_meanwhile(section)
    thread_id = renamed(record.thread_id)
    origin = f"archive:{mark.decode()}"
    arrival = runner.run(arriving.find, context, thread_id, origin)
    if arrival is not None and not arrival.is_incoming:
        raise ThreadExists(
            f"there is a thread {thread_id!r} already; rename the one in the archive, or delete "
            "that one first"
        )
    if arrival is None:
        parent = runner.run(arriving.parent_of, context, record, renamed)
        arrival = runner.run(arriving.begin, context, record, thread_id, origin, parent)
    restoring = _Restoring(target, arrival, mark, record, done)
    try:
        for line in lines:
            restoring.add(line)
            if restoring.is_ended:
                break
    except EncryptionMismatch:
        if not (arrival.places or restoring.checkpoints):
            runner.run(removing.delete_thread, context, thread_id)
        raise
    restoring.check_end()
    runner.run(finish, context, arrival, record, restoring.hidden)


class _Restoring:
    """A thread on its way from an archive into a store."""

    def __init__(
        self, target: Target, arrival: Arrival, mark: bytes, record: ThreadPart, done: Done
    ) -> None:
        self._target = target
        self._arrival = arrival
        self._mark = mark
        self._thread_id = record.thread_id
        self._done = done
        self._writer = ThreadWriter(target.context, arrival.thread, record.status)
        self._decrypt = target.context.codec.decrypt
        self._last_line = 0
        self.is_ended = False
        self.checkpoints = self._damaged = 0
        self.hidden: set[Place] = set()

    def add(self, line: Line) -> None:
        """Restore what a line says, or note that it is damaged."""
        self._last_line = line.number
        if line.damage is not None:
            self._note_damage(line.damage)
            return
        try:
            self._add(verified(line.content))
        except EncryptionMismatch:
            raise
        except (CorruptChunk, InvalidInput) as error:
            self._note_damage(str(error))

    def _note_damage(self, reason: str) -> None:
        self._damaged += 1
        self._done.damaged.append(DamagedArchive(self._last_line, self._thread_id, reason))

    def _add(self, line: Verified) -> None:
        if line.mark != self._mark:
            self.is_ended = True
            self._note_damage("it is of another thread, as the line that begins that is damaged")
            return
        part = part_of(line, self._decrypt)
        if isinstance(part, ChunkPart):
            self._writer.add(part)
        elif isinstance(part, CheckpointPart):
            self._put(part)
        else:
            assert isinstance(part, EndPart)  # one with a record is the first line of a thread
            self.is_ended = True
            missing = part.checkpoints - self.checkpoints
            if missing and not self._damaged:
                self._note_damage(f"{missing} lines of checkpoints are missing before it")

    def _put(self, part: CheckpointPart) -> None:
        check_checkpoint(part)
        runner, done = self._target.runner, self._done
        if part.place in self._arrival.places:
            done.writes += runner.run(self._writer.complete, part)
        else:
            runner.run(self._writer.put, part)
            done.checkpoints += 1
            done.writes += len(part.writes)
        if part.hidden:
            self.hidden.add(part.place)
        self.checkpoints += 1
        done.note_checkpoint(self._thread_id)

    def check_end(self) -> None:
        """Note if the end of the thread is missing."""
        if not self.is_ended and not self._damaged:
            self._last_line += 1
            self._note_damage("the end of the thread is missing")
