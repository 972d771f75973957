"""Collecting chunks that nothing refers to any more.

It takes several turns, and others write in between. So the order of steps matters. First what is
left of deleted threads is removed. Then all writers of the family are told, by a new epoch. A
checkpoint that was stored before that is seen here. One that is stored later was prepared later,
so the chunks that it counts on were written since, and stay, or belong to a checkpoint that is seen
here too, unless that was removed meanwhile: then all begins again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from forkpoint.encoding.codec import split_refs
from forkpoint.errors import CorruptChunk
from forkpoint.operations.turns import Turns, Work
from forkpoint.storage.queries import Batch
from forkpoint.storage.rows import Counts

_ATTEMPTS = 8  # while others remove in the same family

_T = TypeVar("_T")


class Collected(NamedTuple):
    """What a collection removed."""

    chunks: int = 0
    bytes: int = 0
    missing: str | None = None
    """The digest of a chunk that is missing. Then nothing was collected, for what it led to cannot
    be told from what is not needed."""


def collect(turns: Turns, family: Any) -> Work[Collected]:
    """Remove the chunks of a family that no checkpoint and no write leads to.

    It may stop wherever it yields, and be done again, by anybody.
    """
    number = size = 0
    for _ in range(_ATTEMPTS):
        while turns.session.collections.clear(family):
            yield
        collection = turns.session.collections.begin(family)
        turns.only_reads = True
        yield
        unused = yield from _unused(turns, family)
        turns.only_reads = False
        yield
        if unused.missing is not None:
            if turns.session.collections.is_undisturbed(family, collection):
                return Collected(number, size, unused.missing)
            continue
        dropped, is_done = yield from _drop(turns, family, unused, collection)
        number += dropped.number
        size += dropped.more
        if is_done or turns.session.collections.is_overtaken(family, collection):
            break  # another collection finds what this one leaves
    return Collected(number, size)


class _Unused(NamedTuple):
    """The chunks that nothing leads to."""

    digests: Sequence[bytes] | None = None
    """None if they are all of the family."""
    missing: str | None = None

    def batches(self, size: int) -> Iterable[Sequence[bytes] | None]:
        if self.digests is None:
            return itertools.repeat(None)
        starts = range(0, len(self.digests), size)
        return (self.digests[start : start + size] for start in starts)


def _drop(turns: Turns, family: Any, unused: _Unused, collection: Any) -> Work[tuple[Counts, bool]]:
    """Remove chunks, and return what was removed, and whether nobody disturbed that."""
    number = size = 0
    at_once = turns.session.collections.chunks_at_once()
    for batch in unused.batches(at_once):
        dropped = turns.session.collections.delete_chunks(family, batch, collection)
        if dropped is None:
            return Counts(number, size), False
        number += dropped.number
        size += dropped.more
        if batch is None and dropped.number < at_once:
            break
        yield
    return Counts(number, size), turns.session.collections.end(family, collection)


def _unused(turns: Turns, family: Any) -> Work[_Unused]:
    live = yield from _live(turns, family)
    if not live:
        return _Unused()
    dead: list[bytes] = []

    def compare(part: Iterable[bytes]) -> None:
        for digest in part:
            if digest in live:
                live.remove(digest)
            else:
                dead.append(digest)

    yield from read_all(
        turns, lambda after: turns.session.collections.digests(family, after), compare
    )
    return _Unused(dead, min(live).hex() if live else None)


def _live(turns: Turns, family: Any) -> Work[set[bytes]]:
    """Return the chunks that checkpoints and writes lead to, before it is seen which there are."""
    roots: set[bytes] = set()

    def add_roots(part: Iterable[tuple[Any, bytes]]) -> None:
        for _, refs in part:
            roots.update(split_refs(refs))

    yield from read_all(
        turns, lambda after: turns.session.collections.references(family, after), add_roots
    )
    links: dict[bytes, bytes] = {}
    if roots:
        yield from read_all(
            turns, lambda after: turns.session.collections.links(family, after), links.update
        )
    return (yield from turns.apart(lambda: reachable(roots, links)))


def read_all(
    turns: Turns, read: Callable[[Any], Batch[_T]], use: Callable[[Iterable[_T]], object]
) -> Work[None]:
    """Use all that is to be read, part by part."""
    after: Any = None
    while True:
        part = read(after)
        use(part.items)
        yield
        if part.after is None:
            return
        after = part.after


def reachable(roots: Iterable[bytes], links: dict[bytes, bytes]) -> set[bytes]:
    """Return the digests that these lead to, themselves included."""
    live: set[bytes] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in live:
            live.add(digest)
            waiting += split_refs(links.get(digest, b""))
    return live


def uncollected(missing: str, what: str) -> CorruptChunk:
    """Return the error that says that a removal was done, and a collection was not."""
    return CorruptChunk(
        f"{what} was removed, but unused chunks were not collected: chunk {missing}, which another "
        "checkpoint of the family needs, is missing from the store"
    )
