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
from datetime import datetime
from io import FileIO
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.errors import InvalidInput
from forkpoint.open_files import is_in_use
from forkpoint.threads import Thread

if sys.platform != "win32":
    import fcntl

Archive = Callable[[Thread, Iterator[CheckpointTuple]], object]
"""Is called with a thread that is to be deleted and its checkpoints. If it raises, the thread
stays."""


class JsonLines:
    """Appends each thread to a file, which is on the disk when it returns.

    Several processes may append to one file. A thread may be in it twice, if it was not deleted
    then: because the process ended, or because somebody went on with it.

    Args:
        path: The file. It is made if it is not there; a last line that was not finished is removed.
        serde: How values become bytes.

    Raises:
        InvalidInput: The file belongs to a database that a saver of this process uses.
    """

    def __init__(self, path: str | os.PathLike[str], serde: SerializerProtocol) -> None:
        if is_in_use(path):
            raise InvalidInput(f"the archive {os.fspath(path)!r} is a file of the store itself")
        self._path = path
        self._serde = serde

    def __call__(self, thread: Thread, checkpoints: Iterator[CheckpointTuple]) -> None:
        with open(self._path, "a+b", buffering=0) as file:
            _lock(file)
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
        yield f'{{"thread": {said}, "checkpoints": ['.encode()
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


def _lock(file: FileIO) -> None:
    """Keep other processes out of a file until it is closed, where the system can do that."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX)


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
