"""Comparing a thread with a copy of it, part by part. Pure.

Both come in the same order. Values are compared by the bytes that were stored of them, or by the
digests of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.archive.parts import CheckpointPart, ChunkPart, Part, ValuePart
from forkpoint.storage.plan import Place
from forkpoint.transfer.reports import Difference


def differences(
    thread_id: str, source: Iterator[Part], copy: Iterator[Part]
) -> Iterator[Difference | Place]:
    """Yield how a copy differs from its source, and where each checkpoint is that both have."""
    theirs, ours = _checkpoints(source), _checkpoints(copy)
    mine = next(ours, None)
    for checkpoint, values in theirs:
        order = _order(checkpoint)
        while mine is not None and _order(mine[0]) < order:
            yield Difference(thread_id, *mine[0].place, "the source does not have it")
            mine = next(ours, None)
        if mine is None or _order(mine[0]) > order:
            yield Difference(thread_id, *checkpoint.place, "it is missing")
            continue
        for what in _between(checkpoint, values, *mine):
            yield Difference(thread_id, *checkpoint.place, what)
        yield checkpoint.place
        mine = next(ours, None)
    while mine is not None:
        yield Difference(thread_id, *mine[0].place, "the source does not have it")
        mine = next(ours, None)


def _order(part: CheckpointPart) -> tuple[str, str]:
    return part.checkpoint_id, part.checkpoint_ns


Values = dict[str, Any]


def _checkpoints(parts: Iterator[Part]) -> Iterator[tuple[CheckpointPart, Values]]:
    """Yield checkpoints, each with its values in a form that does not depend on numbers."""
    digests: dict[int, bytes] = {}
    oldest = 0
    for part in parts:
        if isinstance(part, ChunkPart):
            if part.oldest > oldest:
                oldest = part.oldest
                digests = {n: digest for n, digest in digests.items() if n >= oldest}
            for number, (numbers, content) in enumerate(part.chunks, part.first):
                below = [digests[ref] for ref in numbers]
                digests[number] = sha256(ormsgpack.packb([below, content])).digest()
        elif isinstance(part, CheckpointPart):
            values = {
                f"channel {name!r}": _plain(value, digests) for name, value in part.channels.items()
            }
            for write in part.writes:
                what = f"the write {write.idx} of task {write.task_id!r} to {write.channel!r}"
                values[what] = write.task_path, _plain(write.value, digests)
            yield part, values


def _plain(value: ValuePart, digests: dict[int, bytes]) -> tuple[Any, ...]:
    return (*value[:3], [digests[number] for number in value.chunks], value.height)


def _between(a: CheckpointPart, first: Values, b: CheckpointPart, second: Values) -> Iterator[str]:
    """Yield what differs between a checkpoint and a copy of it."""
    for name in ("parent_checkpoint_id", "metadata", "body", "hidden", "restarts"):
        if getattr(a, name) != getattr(b, name):
            yield name
    for what in sorted(first.keys() | second.keys()):
        if what not in second:
            yield f"{what} is missing"
        elif what not in first:
            yield f"{what} is not in the source"
        elif first[what] != second[what]:
            yield what
    if not {*first} ^ {*second} and [w[:2] for w in a.writes] != [w[:2] for w in b.writes]:
        yield "the order of the writes"
