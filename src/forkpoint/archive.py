"""An archive of threads: a line of JSON for each.

A line is an object with `thread`, the fields of `Thread` with times in ISO 8601, and `checkpoints`,
newest first, each with its `config`, `parent_config` and `metadata`, its `checkpoint` and its
`writes` (`task_id`, `channel`, `value`). A value is a pair of the serializer's type, and its bytes
in base64.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.threads import Thread

Archive = Callable[[Thread, Iterator[CheckpointTuple]], object]
"""Is called with a thread that is to be deleted and its checkpoints. If it raises, the thread
stays."""


class JsonLines:
    """Appends each thread to a file, which is on the disk when it returns.

    A thread may be in the file twice, if the process ended before it was deleted.

    Args:
        path: The file. It is made if it is not there; a last line that was not finished is removed.
        serde: How values become bytes.
    """

    def __init__(self, path: str | os.PathLike[str], serde: SerializerProtocol) -> None:
        self._path = path
        self._serde = serde
        _remove_unfinished_line(path)

    def __call__(self, thread: Thread, checkpoints: Iterator[CheckpointTuple]) -> None:
        said = {
            "thread": dataclasses.asdict(thread),
            "checkpoints": [self._checkpoint(found) for found in checkpoints],
        }
        line = json.dumps(said, default=_plain).encode() + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = 0
            while written < len(line):
                written += os.write(file, line[written:])
            os.fsync(file)
        finally:
            os.close(file)

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


def _remove_unfinished_line(path: str | os.PathLike[str]) -> None:
    if not os.path.exists(path):
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                file.truncate(start + at + 1)
                return
            end = start
        file.truncate(0)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")
