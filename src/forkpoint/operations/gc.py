"""Collecting chunks that nothing refers to any more.

A collection takes several turns, and others write in between. So the order of steps matters:

1. Remove what is left of deleted threads.
2. Raise the epoch of the family. Writes that were prepared under the old one are refused.
3. Read what checkpoints and writes refer to. All that were stored under the old epoch are seen.
4. Remove the chunks that nothing refers to, but none written since step 2. A checkpoint that is
   stored later refers to chunks that were written since, or that a checkpoint seen in step 3 has.

If checkpoints were removed meanwhile, the last may not hold, and all begins again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from forkpoint.encoding.entries import split_refs
from forkpoint.errors import CorruptChunk
from forkpoint.operations.turns import Turns, Work
from forkpoint.storage.queries import Batch
from forkpoint.storage.rows import Counts

_ATTEMPTS = 8  # while others remove in the same family

_T = TypeVar("_T")


class CollectionResult(NamedTuple):
    """What a collection removed."""

    chunks: int = 0
    bytes: int = 0
    missing: str | None = None
    """Which chunk is missing from the store, or what cannot be read, if anything is so. Then
    nothing was collected: it is not known which chunks that refers to."""


def collect(turns: Turns, family: Any) -> Work[CollectionResult]:
    """Remove the chunks of a family that no checkpoint and no write refers to, however indirectly.

    It may be stopped wherever it yields: the next collection does the rest.
    """
    number = size = 0
    for _ in range(_ATTEMPTS):
        while turns.session.collections.clear(family):
            yield
        collection = turns.session.collections.begin(family)
        turns.only_reads = True
        yield
        try:
            unused = yield from _unused(turns, family)
        except CorruptChunk as error:
            unused = _Unused(missing=str(error))
        turns.only_reads = False
        yield
        if unused.missing is not None:
            if turns.session.collections.is_undisturbed(family, collection):
                return CollectionResult(number, size, unused.missing)
            continue
        removed, is_done = yield from _drop(turns, family, unused, collection)
        number += removed.number
        size += removed.more
        if is_done or turns.session.collections.is_overtaken(family, collection):
            break  # another collection finds what this one leaves
    return CollectionResult(number, size)


class _Unused(NamedTuple):
    """The chunks of a family that nothing refers to."""

    digests: Sequence[bytes] | None = None
    """None if nothing refers to any chunk."""
    missing: str | None = None
    """See `CollectionResult`."""

    def batches(self, size: int) -> Iterable[Sequence[bytes] | None]:
        if self.digests is None:
            return itertools.repeat(None)
        starts = range(0, len(self.digests), size)
        return (self.digests[start : start + size] for start in starts)


def _drop(turns: Turns, family: Any, unused: _Unused, collection: Any) -> Work[tuple[Counts, bool]]:
    """Remove chunks, and return what was removed, and whether the collection is complete."""
    number = size = 0
    at_once = turns.session.collections.chunks_at_once()
    for batch in unused.batches(at_once):
        removed = turns.session.collections.delete_chunks(family, batch, collection)
        if removed is None:
            return Counts(number, size), False
        number += removed.number
        size += removed.more
        if batch is None and removed.number < at_once:
            break
        yield
    return Counts(number, size), turns.session.collections.end(family, collection)


def _unused(turns: Turns, family: Any) -> Work[_Unused]:
    live = yield from _live(turns, family)
    if not live:
        return _Unused()
    unused: list[bytes] = []

    def compare(part: Iterable[bytes]) -> None:
        for digest in part:
            if digest in live:
                live.remove(digest)
            else:
                unused.append(digest)

    yield from read_all(
        turns, lambda after: turns.session.collections.digests(family, after), compare
    )
    return _Unused(unused, _lost(min(live)) if live else None)


def _lost(digest: bytes) -> str:
    return (
        f"chunk {digest.hex()}, which another checkpoint of the family needs, is missing from the "
        "store"
    )


def _live(turns: Turns, family: Any) -> Work[set[bytes]]:
    """Return the digests that checkpoints and writes refer to, whether or not the chunks exist."""
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
    """Read batch after batch, and pass each to a function.

    Args:
        turns: The transactions to read in.
        read: Returns the batch after a position; after None, the first.
        use: Is given the items of each batch.
    """
    after: Any = None
    while True:
        part = read(after)
        use(part.items)
        yield
        if part.after is None:
            return
        after = part.after


def reachable(roots: Iterable[bytes], links: dict[bytes, bytes]) -> set[bytes]:
    """Return some digests, and those that their chunks refer to, however indirectly.

    Args:
        roots: The digests to start from.
        links: The refs of each chunk that has any.
    """
    live: set[bytes] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in live:
            live.add(digest)
            waiting += split_refs(links.get(digest, b""))
    return live


def incomplete_collection(missing: str, what: str) -> CorruptChunk:
    """Return the error of a removal that was done, while its chunks could not be collected."""
    return CorruptChunk(f"{what} was removed, but unused chunks were not collected: {missing}")
