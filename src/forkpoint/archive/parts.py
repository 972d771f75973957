"""What a thread consists of when it is moved, part by part. Pure.

A thread is a `ThreadPart`, then its checkpoints, oldest first, and an `EndPart`. The chunks that a
checkpoint refers to come before it, each once: they are numbered from 0, in the order in which they
come. Where there were many, they are forgotten: what is referred to from then on comes again. So
whoever reads a thread keeps only so many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from forkpoint.encoding.chunk import Chunk
from forkpoint.encoding.entries import Entry, split_refs
from forkpoint.storage.rows import Description, RecordTimes

NUMBERS = 100_000
"""After how many chunks all are forgotten, between two checkpoints."""

CHUNK_BYTES = 1_000_000
"""About how many bytes of chunks are in one part."""


class Ancestor(NamedTuple):
    """A thread that another was made of, and how itself was made.

    The checkpoint is that of its own parent.
    """

    thread_id: str
    edge: str | None
    parent_checkpoint_id: str | None
    created_at: int


class ThreadPart(NamedTuple):
    """The record of a thread. Its times are in microseconds since 1970."""

    thread_id: str
    owner: str | None
    described: Description
    status: str
    times: RecordTimes
    lineage: Sequence[Ancestor] = ()
    """Itself, its parent, and so on."""
    is_swept: bool = False
    """Whether a sweep has trimmed it since it was active last."""


class ChunkPart(NamedTuple):
    """Some chunks in plaintext."""

    first: int
    """The number of the first one."""
    oldest: int
    """That of the first one that may still be referred to."""
    chunks: Sequence[tuple[Sequence[int], bytes]]
    """Of each the numbers of those that it refers to, and bytes of its own."""


class ValuePart(NamedTuple):
    """A value: `forkpoint.encoding.entries.Entry`, with the numbers of chunks for its refs."""

    kind: int
    type: str
    content: bytes
    chunks: tuple[int, ...]
    height: int


class WritePart(NamedTuple):
    """A write of a task."""

    task_id: str
    idx: int
    task_path: str
    channel: str
    value: ValuePart


class CheckpointPart(NamedTuple):
    """A checkpoint with its writes; see `forkpoint.storage.rows.CheckpointRow`."""

    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    run_id: str | None
    """The run that its metadata name, if it belongs to that run: a copy does not."""
    metadata: str
    body: tuple[str, bytes]
    """The checkpoint without its values, as the serializer's type and bytes."""
    channels: Mapping[str, ValuePart]
    writes: Sequence[WritePart]
    hidden: bool = False
    restarts: bool = False
    preview: str | None = None
    """What is shown of its state, as JSON."""

    @property
    def place(self) -> tuple[str, str]:
        """The namespace and the id."""
        return self.checkpoint_ns, self.checkpoint_id


class EndPart(NamedTuple):
    """The end of a thread, and of how many checkpoints and writes."""

    checkpoints: int
    writes: int


Part = ThreadPart | ChunkPart | CheckpointPart | EndPart


class Numbering:
    """The numbers of chunks, and the chunks that were numbered and not yet taken.

    Args:
        limit: After how many all are forgotten.
    """

    def __init__(self, limit: int = NUMBERS) -> None:
        self._limit = limit
        self._numbers: dict[bytes, int] = {}
        self._oldest = self._next = self._first = 0
        self._new: list[tuple[Sequence[int], bytes]] = []

    def begin_checkpoint(self) -> None:
        """Forget all chunks if there are many."""
        if len(self._numbers) >= self._limit:
            self._numbers.clear()
            self._oldest = self._next

    def knows(self, digest: bytes) -> bool:
        """Return whether a chunk has a number."""
        return digest in self._numbers

    def value(self, entry: Entry, chunk_of: Callable[[bytes], Chunk]) -> ValuePart:
        """Return an entry with the numbers of its chunks.

        Args:
            entry: The entry.
            chunk_of: Takes a digest, and returns that chunk in plaintext. It is asked for those
                that have no number yet.
        """
        numbers = tuple(self._number(digest, chunk_of) for digest in split_refs(entry.refs))
        return ValuePart(entry.kind, entry.type, entry.content, numbers, entry.height)

    def _number(self, digest: bytes, chunk_of: Callable[[bytes], Chunk]) -> int:
        waiting = [digest]
        while waiting:
            current = waiting[-1]
            if current in self._numbers:
                waiting.pop()
                continue
            refs, content = chunk_of(current)
            below = split_refs(refs)
            unknown = [ref for ref in below if ref not in self._numbers]
            if unknown:
                waiting += unknown
                continue
            self._new.append(([self._numbers[ref] for ref in below], content))
            self._numbers[current] = self._next
            self._next += 1
            waiting.pop()
        return self._numbers[digest]

    def take(self) -> Iterator[ChunkPart]:
        """Yield the chunks that were numbered since the last time."""
        run: list[tuple[Sequence[int], bytes]] = []
        size = 0
        new, self._new = self._new, []
        for chunk in new:
            run.append(chunk)
            size += len(chunk[1])
            if size >= CHUNK_BYTES:
                yield self._part(run)
                run, size = [], 0
        if run:
            yield self._part(run)

    def _part(self, run: Sequence[tuple[Sequence[int], bytes]]) -> ChunkPart:
        part = ChunkPart(self._first, self._oldest, run)
        self._first += len(run)
        return part
