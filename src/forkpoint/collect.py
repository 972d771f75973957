"""Collecting chunks that nothing refers to any more, and checking a store.

The order of steps matters where a backend has no transactions: the epoch is raised before the
references are read, so that a writer that counted on a chunk either is seen, or notices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forkpoint.codec import split_refs
from forkpoint.errors import CorruptChunk
from forkpoint.storage import Session


def collect(session: Session, family: Any) -> str | None:
    """Remove the chunks of a family that no checkpoint and no write leads to.

    Returns None, or the digest of a chunk that is missing: then nothing was collected, for what
    the missing chunk led to cannot be told from what is not needed.
    """
    session.raise_epoch(family)
    roots = {digest for refs in session.references(family) for digest in split_refs(refs)}
    if not roots:
        session.drop_chunks(family, None)
        return None
    links = dict(session.links(family))
    stored = set(session.digests(family))
    live = reachable(roots, links)
    missing = live - stored
    if missing:
        return min(missing).hex()
    session.drop_chunks(family, stored - live)
    return None


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
