"""Which threads of a family use which chunks.

All of it may be read in several turns: what others store meanwhile may be counted or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from forkpoint.encoding.entries import split_refs
from forkpoint.errors import CorruptChunk
from forkpoint.operations.gc import reachable, read_all
from forkpoint.operations.turns import Turns, Work
from forkpoint.storage.interface import Session
from forkpoint.storage.rows import FamilyMember

_MEASURED_AT_ONCE = 5000  # chunks, before others have their turn


def threads_of(session: Session, members: Sequence[FamilyMember]) -> set[Any]:
    """Return the keys of those of a family that there are; of a confined session, its own.

    A thread that was given to another owner still shares chunks with its former relatives.
    """
    rows = session.records.get_many([member.thread_id for member in members])
    return {member.key for member in members} & {row.thread.key for row in rows.values()}


class FamilyChunks(NamedTuple):
    """Which chunks the rows of a family use."""

    refs: Mapping[Any, Counter[bytes]]
    """How many rows refer to a chunk, by the key of the thread."""
    links: dict[bytes, bytes]
    """The refs of chunks that have any."""

    def used_by(self, keys: Iterable[Any]) -> Counter[bytes]:
        """Return how many rows of some threads refer to a chunk."""
        total: Counter[bytes] = Counter()
        for key in keys:
            total.update(self.refs.get(key, {}))
        return total


def chunks_of(family: Any, turns: Turns) -> Work[FamilyChunks]:
    """Return which chunks each thread of a family uses, whoever owns it."""
    refs: dict[Any, Counter[bytes]] = {}
    links: dict[bytes, bytes] = {}

    def add(part: Iterable[tuple[Any, bytes]]) -> None:
        for key, digests in part:
            refs.setdefault(key, Counter()).update(split_refs(digests))

    yield from read_all(
        turns, lambda after: turns.session.collections.references(family, after), add
    )
    yield from read_all(
        turns, lambda after: turns.session.collections.links(family, after), links.update
    )
    return FamilyChunks(refs, links)


def sizes_of(family: Any, digests: Collection[bytes], turns: Turns) -> Work[dict[bytes, int]]:
    """Return how many bytes chunks take in the store."""
    listed = list(digests)
    sizes: dict[bytes, int] = {}
    for start in range(0, len(listed), _MEASURED_AT_ONCE):
        sizes |= turns.session.chunks.sizes(family, listed[start : start + _MEASURED_AT_ONCE])
        yield
    return sizes


def own_chunks(family: Any, turns: Turns) -> Work[dict[bytes, int] | None]:
    """Return the chunks that the threads of a family use which there are, and the bytes of each.

    None if a row of the family is damaged: then it is not known.
    """
    turns.only_reads = turns.is_over = True
    yield
    sizes: dict[bytes, int] | None = None
    with suppress(CorruptChunk):
        chunks = yield from chunks_of(family, turns)
        roots = chunks.used_by(threads_of(turns.session, turns.session.threads.family(family)))
        used = yield from turns.apart(lambda: reachable(roots, chunks.links))
        sizes = yield from sizes_of(family, used, turns)
    turns.only_reads = False
    yield
    return sizes
