"""An archive of threads: a line of JSON for each.

A line is an object with `thread`, the fields of `Thread` with times in ISO 8601, and `checkpoints`,
newest first, each with its `config`, `parent_config` and `metadata`, its `checkpoint` and its
`writes` (`task_id`, `channel`, `value`). Those are among them that were trimmed, but are what the
state of others is rebuilt from. A value is a pair of the serializer's type, and its bytes in
base64.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.catalog.threads import Thread
from forkpoint.errors import InvalidInput
from forkpoint.runtime.open_files import identity, is_in_use

if sys.platform != "win32":
    import fcntl

SQLITE_ENDINGS = ("-wal", "-shm", "-journal")
"""What SQLite adds to the name of a database for the files beside it."""

_BEGIN = b'{"thread": '

Archive = Callable[[Thread, Iterator[CheckpointTuple]], object]
"""Is called with a thread that is to be deleted and its checkpoints. If it raises, the thread
stays."""


class JsonLines:
    """Appends each thread to a file, which is on the disk when it returns.

    Several processes may append to one file: each waits until the others have finished a line. A
    thread may be in it twice, if it was not deleted then: because the process ended, or because
    somebody went on with it.

    Args:
        path: The file. It is made if it is not there; a last line that was not finished is removed.
            A file that does not begin as an archive does is left alone.
        serde: How values become bytes.

    Raises:
        InvalidInput: The path leads to something that is no archive, such as a database or what
            belongs to one, or nothing can be written there.
    """

    def __init__(self, path: str | os.PathLike[str], serde: SerializerProtocol) -> None:
        self._path = os.path.abspath(os.fsdecode(path))
        self._serde = serde
        try:
            _check_place(self._path)
            if os.path.exists(self._path):
                with open(self._path, "rb", buffering=0) as file:
                    _check_content(self._path, file)
        except (OSError, ValueError) as error:  # such as a name that is too long, or has a NUL
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"the archive {self._path!r:.80} cannot be used: {error}") from error

    def __call__(self, thread: Thread, checkpoints: Iterator[CheckpointTuple]) -> None:
        with _opened(self._path) as file:
            _check_content(self._path, file)
            end = _end_of_lines(file)
            file.truncate(end)
            try:
                for part in self._line(thread, checkpoints):
                    _write(file, part)
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
        if end == 0:
            _sync_name(self._path)

    def _line(self, thread: Thread, checkpoints: Iterator[CheckpointTuple]) -> Iterator[bytes]:
        """Return a line in parts: a whole thread may be more than fits into memory."""
        said = json.dumps(dataclasses.asdict(thread), default=_plain)
        yield _BEGIN + f'{said}, "checkpoints": ['.encode()
        for number, found in enumerate(checkpoints):
            part = json.dumps(self._checkpoint(found))
            yield (f", {part}" if number else part).encode()
        yield b"]}\n"

    def _checkpoint(self, found: CheckpointTuple) -> dict[str, Any]:
        return {
            "config": found.config,
            "parent_config": found.parent_config,
            "metadata": found.metadata,
            "checkpoint": self._value(found.checkpoint),
            "writes": [
                {"task_id": task_id, "channel": channel, "value": self._value(value)}
                for task_id, channel, value in found.pending_writes or []
            ],
        }

    def _value(self, value: object) -> list[str]:
        kind, encoded = self._serde.dumps_typed(value)
        return [kind, base64.b64encode(encoded).decode()]


# Which files may be written to


def _check_place(named: str) -> None:
    """Raise unless an archive may be at a path, as far as that is known without opening a file.

    To close a database, or what belongs to one, would drop the locks that this process has on it.

    Raises:
        InvalidInput: It may not.
    """
    path = os.path.realpath(named)
    if is_in_use(path):
        raise InvalidInput(f"the archive {named!r} is a file of the store itself")
    for ending in SQLITE_ENDINGS:
        if path.endswith(ending) and os.path.exists(path.removesuffix(ending)):
            raise InvalidInput(f"the archive {named!r} has the name of a database's {ending} file")
        if os.path.exists(path + ending):
            raise InvalidInput(f"the archive {named!r} is a database: there is a {ending} file")
    directory = os.path.dirname(path)
    if os.path.lexists(path) and not os.path.isfile(path):
        raise InvalidInput(f"the archive {named!r} is no regular file")
    if not os.path.isdir(directory):
        raise InvalidInput(f"the archive {named!r} cannot be made: there is no such directory")
    is_writable = os.access(path, os.R_OK | os.W_OK)
    if not is_writable and (os.path.exists(path) or not os.access(directory, os.W_OK | os.X_OK)):
        raise InvalidInput(f"the archive {named!r} cannot be written to")


def _check_content(path: str, file: FileIO) -> None:
    """Raise unless a file is an archive, or empty.

    Raises:
        InvalidInput: It is something else, and stays as it is.
    """
    for start in (0, _end_of_lines(file)):
        file.seek(start)
        begin = file.read(len(_BEGIN))
        if not _BEGIN.startswith(begin):
            raise InvalidInput(
                f"the file {path!r} is no archive of threads: a line of it begins with "
                f"{begin!r}; choose another path"
            )


@contextmanager
def _opened(path: str) -> Iterator[FileIO]:
    """Open a file, and keep other processes out of it, where the system can do that."""
    while True:
        _check_place(path)
        with open(path, "a+b", buffering=0) as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)
            status = os.fstat(file.fileno())
            if identity(path) == (status.st_dev, status.st_ino):
                yield file
                return
            # It was moved or removed meanwhile: what is written must be found under its name.


def _end_of_lines(file: FileIO) -> int:
    """Return where the last line ends that was finished."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _write(file: FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]


def _sync_name(path: str | os.PathLike[str]) -> None:
    """Put on the disk that there is a file of this name, where the system can do that."""
    if sys.platform != "win32":
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")
