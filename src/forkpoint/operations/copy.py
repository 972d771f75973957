"""Copying a thread, in turns if it is long. A copy is seen when it is complete."""

from __future__ import annotations

from forkpoint.encoding.hashing import Hashing
from forkpoint.errors import ThreadExists
from forkpoint.operations.gc import collect
from forkpoint.operations.turns import Turns, Work
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import Description, ThreadRef

_ATTEMPTS = 3  # before a thread from which others remove is copied as a whole


def copy(
    turns: Turns,
    hashing: Hashing,
    source: ThreadRef,
    target_id: str,
    described: Description | None = None,
) -> Work[None]:
    """Make a thread with all checkpoints and writes of another, as a clone of it.

    It is as the other was at a moment: what is written to that one meanwhile is not in the copy.

    Raises:
        ThreadExists: There is a thread of this id.
        Stale: The other thread was deleted.
        CorruptChunk: The record of the other thread is not what was written.
    """
    hashing.check_identity(source.thread_id, source.owner, source.salt, source.checksum)
    for _ in range(_ATTEMPTS if turns.session.removals.is_long(source) else 0):
        copying = turns.session.copies.begin(source, target_id, hashing, described)
        if copying is None:
            break
        yield
        error: Exception
        try:
            while turns.session.copies.copy_more(copying):
                yield
            return
        except (Stale, ThreadExists) as failure:  # nothing of this part was written
            error = failure
        turns.session.copies.abandon(copying)
        yield
        yield from collect(turns, source.family)  # what was removed meanwhile is in the copy
        turns.is_over = True
        yield
        if isinstance(error, ThreadExists):
            raise error
    turns.session.copies.copy(source, target_id, hashing, described)
