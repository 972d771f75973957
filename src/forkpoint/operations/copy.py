"""Copying a thread with all its checkpoints and writes. A copy is visible once it is complete."""

from __future__ import annotations

from forkpoint.encoding.hashing import Hashing
from forkpoint.errors import ThreadExists
from forkpoint.operations.context import Context
from forkpoint.operations.gc import collect
from forkpoint.operations.places import existing_thread
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import Stale
from forkpoint.storage.retry import retry_steps
from forkpoint.storage.rows import Description, ThreadRef

_ATTEMPTS = 3  # before a thread from which others remove is copied in one transaction


def copy_thread(context: Context, source_id: str, target_id: str) -> Steps[None]:
    """Make a thread with all checkpoints and writes of another. No chunk is written.

    Raises:
        ThreadNotFound: There is no source.
        ThreadExists: There is a thread of the target's id.
    """
    if source_id == target_id:
        raise ThreadExists(f"thread {target_id!r} cannot be copied onto itself")
    hashing = context.prepare().hashing

    def work(turns: Turns) -> Work[None]:
        source = existing_thread(turns.session, source_id)
        yield from copy(turns, hashing, source, target_id)

    # A source that is deleted meanwhile is looked for again, and may be another thread then.
    yield from retry_steps(
        lambda: in_turns(context.storage, work), f"thread {source_id!r} was deleted and made anew"
    )
    context.memory.threads.pop(target_id)


def copy(
    turns: Turns,
    hashing: Hashing,
    source: ThreadRef,
    target_id: str,
    described: Description | None = None,
) -> Work[None]:
    """Make a thread with all checkpoints and writes of another, as a clone of it.

    The copy has the state of the source at one moment, without what is written meanwhile.

    Args:
        turns: The transactions to copy in. A short thread is copied in one.
        hashing: What the records' checksums are computed with.
        source: The thread to copy.
        target_id: The id of the copy.
        described: What the record of the copy says; by default, what that of the source does.

    Raises:
        ThreadExists: There is a thread of the target's id.
        Stale: The source was deleted, or given to another owner.
        CorruptChunk: The record of the source is not what was written.
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
        yield from collect(turns, source.family)  # the copy kept chunks that were removed meanwhile
        turns.is_over = True
        yield
        if isinstance(error, ThreadExists):
            raise error
        present = turns.session.threads.find(source.thread_id)
        if present is None or (present.key, present.owner) != (source.key, source.owner):
            raise Stale
    turns.session.copies.copy(source, target_id, hashing, described)
