"""Archiving: each thread is appended to the file as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from forkpoint.archive.file import ArchiveFile
from forkpoint.archive.parts import CheckpointPart, Part
from forkpoint.errors import ForkpointError, ThreadBusy
from forkpoint.storage.interface import Stale
from forkpoint.transfer.importing import Done
from forkpoint.transfer.own import OwnSource
from forkpoint.transfer.reports import TransferReport

_ATTEMPTS = 5  # to read a thread that somebody writes to


def archive_all(source: OwnSource, file: ArchiveFile, done: Done) -> TransferReport:
    """Append the threads of a store. One that fails does not keep the others from it."""
    for thread_id in source.thread_ids():
        try:
            _archive(source, file, thread_id, done)
            done.threads += 1
        except ForkpointError as error:
            done.failed[thread_id] = error
        done.show(thread_id)
    file.sync()
    return done.report()


def _archive(source: OwnSource, file: ArchiveFile, thread_id: str, done: Done) -> None:
    encrypt = source.context.codec.encrypt
    note = partial(done.note_checkpoint, thread_id)
    for _ in range(_ATTEMPTS):
        read: Counter[str] = Counter()
        try:
            file.append(_counted(source.parts(thread_id), read, note), encrypt, sync=False)
        except Stale:
            continue
        done.checkpoints += read["checkpoints"]
        done.writes += read["writes"]
        return
    raise ThreadBusy(f"thread {thread_id!r} is written to all the time; archive it again later")


def _counted(
    parts: Iterator[Part], read: Counter[str], note: Callable[[], object]
) -> Iterator[Part]:
    for part in parts:
        yield part
        if isinstance(part, CheckpointPart):
            read["checkpoints"] += 1
            read["writes"] += len(part.writes)
            note()
