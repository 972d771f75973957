"""Collecting chunks that nothing refers to any more, and checking a store.

The order of steps matters where a backend has no transactions. First all writers of the family
are told, by a new epoch. A checkpoint that was stored before that is seen here. One that is stored
later was prepared later, so the chunks that it counts on were written since, and stay, or belong to
a checkpoint that is seen here too, unless that was removed meanwhile: then all begins again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from forkpoint.codec import split_refs
from forkpoint.errors import CorruptChunk
from forkpoint.storage import Session

_ATTEMPTS = 8  # while others remove in the same family; the last of them collects for all


class Collected(NamedTuple):
    """What a collection removed."""

    chunks: int = 0
    bytes: int = 0
    missing: str | None = None
    """The digest of a chunk that is missing. Then nothing was collected, for what it led to cannot
    be told from what is not needed."""


def collect(session: Session, family: Any) -> Collected:
    """Remove the chunks of a family that no checkpoint and no write leads to.

    It may stop anywhere, and be run again.
    """
    for _ in range(_ATTEMPTS):
        collection = session.begin_collection(family)
        roots = {digest for _, refs in session.references(family) for digest in split_refs(refs)}
        links = dict(session.links(family)) if roots else {}
        stored = set(session.digests(family)) if roots else set()
        live = reachable(roots, links)
        if live <= stored:
            dropped = session.drop_chunks(family, stored - live if roots else None, collection)
            if dropped is not None:
                return Collected(dropped.number, dropped.more)
        elif session.is_undisturbed(family, collection):
            return Collected(missing=min(live - stored).hex())
    return Collected()


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
