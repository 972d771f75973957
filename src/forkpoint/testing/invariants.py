"""What must hold in a store at any time, as it can be seen through the storage interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from forkpoint.encoding.entries import split_refs
from forkpoint.filters import search_terms
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.interface import Session
from forkpoint.storage.queries import Batch, ThreadQuery
from forkpoint.storage.rows import ThreadRow

_T = TypeVar("_T")
_MOST_THREADS = 10_000


def problems(saver: ForkpointSaver) -> list[str]:
    """Return where an invariant is broken, in the families of the threads that there are.

    Nothing else may be done in the store meanwhile.

    - Each checkpoint and write has the chunks that it leads to, and no other chunk is left.
    - No row of a deleted thread is left.
    - The record of a thread says how many checkpoints it has.
    - Each checkpoint can be read.
    """
    storage = parts_of(saver).context.storage
    with storage.writing() as session:
        rows = _threads(session)
    result: list[str] = []
    with storage.reading() as session:
        for row in rows:
            result += _wrong_count(session, row)
        for family in dict.fromkeys(row.thread.family for row in rows):
            result += _wrong_chunks(session, family)
    for row in rows:
        readable = list(saver.list({"configurable": {"thread_id": row.thread_id}}))
        if len(readable) != row.checkpoint_count:
            result.append(f"of thread {row.thread_id!r} {len(readable)} checkpoints can be read")
    return result


def chunks_of(saver: ForkpointSaver, thread_id: str) -> set[bytes]:
    """Return the digests of the chunks that a thread shares with its family."""
    with parts_of(saver).context.storage.reading() as session:
        thread = session.threads.find(thread_id)
        if thread is None:
            return set()
        family = thread.family
        return set(_all(lambda after: session.collections.digests(family, after)))


def _threads(session: Session) -> list[ThreadRow]:
    page = session.search.page(ThreadQuery(None, search_terms(None), limit=_MOST_THREADS))
    return [row for row in page.rows if row is not None]


def _wrong_count(session: Session, row: ThreadRow) -> list[str]:
    thread = row.thread
    stored = _all(lambda after: session.checkpoints.batch(thread, after, with_content=False))
    visible = sum(not checkpoint.hidden for checkpoint in stored)
    if visible == row.checkpoint_count:
        return []
    return [f"thread {row.thread_id!r} has {visible} checkpoints, not {row.checkpoint_count}"]


def _wrong_chunks(session: Session, family: Any) -> list[str]:
    live = {member.key for member in session.threads.family(family) if member.deleted_at is None}
    references = list(_all(lambda after: session.collections.references(family, after)))
    links = dict(_all(lambda after: session.collections.links(family, after)))
    stored = set(_all(lambda after: session.collections.digests(family, after)))
    result = [f"a row of the deleted thread {key!r} is left" for key, _ in references]
    result = [text for text, (key, _) in zip(result, references, strict=True) if key not in live]
    needed = _reachable((refs for _, refs in references), links)
    result += [f"chunk {digest.hex()} is missing" for digest in needed - stored]
    result += [f"chunk {digest.hex()} is left, and nothing needs it" for digest in stored - needed]
    return result


def _reachable(roots: Iterable[bytes], links: dict[bytes, bytes]) -> set[bytes]:
    """Return the digests that refs lead to."""
    waiting = [digest for refs in roots for digest in split_refs(refs)]
    needed: set[bytes] = set()
    while waiting:
        digest = waiting.pop()
        if digest not in needed:
            needed.add(digest)
            waiting += split_refs(links.get(digest, b""))
    return needed


def _all(read: Callable[[Any], Batch[_T]]) -> Iterator[_T]:
    """Return all that is to be read, part by part."""
    after: Any = None
    while True:
        part = read(after)
        yield from part.items
        if part.after is None:
            return
        after = part.after
