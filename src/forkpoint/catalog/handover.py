"""Giving a thread to another owner.

All threads of a family have one owner. So a thread that is given away forgets its parent, and its
forks and clones forget it. The chunks that they store stay shared. For its former owner, the thread
is as if it had been deleted.
"""

from __future__ import annotations

from forkpoint.catalog.records import Changes, change
from forkpoint.catalog.threads import Thread
from forkpoint.encoding.hashing import Hashing
from forkpoint.operations.context import Context
from forkpoint.storage.interface import Session
from forkpoint.storage.record_checksums import (
    check_kinship,
    check_record,
    checksums_with_description,
)
from forkpoint.storage.retry import attempts, busy
from forkpoint.storage.rows import Description, ThreadRow


def hand_over(context: Context, thread_id: str, changes: Changes, owner: str | None) -> Thread:
    """Give a thread to another owner, and change its description.

    Raises:
        ThreadNotFound: There is no such thread.
    """
    hashing = context.prepare().hashing

    def give(session: Session, row: ThreadRow, description: Description) -> bool:
        checksums = checksums_with_description(hashing, row, description)
        if owner == row.thread.owner:
            return session.records.describe(row, description, checksums)
        checksums = hashing.checksums((thread_id, owner, row.thread.salt), description)
        is_given = _detach_children(hashing, session, row) and session.records.hand_over(
            row, description, owner, checksums
        )
        if is_given:
            context.memory.forget(thread_id)
            # Without transactions, somebody may have made a fork or a clone meanwhile.
            if not any(_detach_children(hashing, session, row) for _ in attempts()):
                raise busy(f"a fork or clone of thread {thread_id!r}, which is given away, changed")
        return is_given

    return change(context, thread_id, changes, give)


def _detach_children(hashing: Hashing, session: Session, parent: ThreadRow) -> bool:
    """Make a thread's forks and clones forget it; return False if one of them changed meanwhile."""
    for kin in session.threads.family(parent.thread.family):
        if kin.parent != parent.thread.key:
            continue
        check_kinship(hashing, kin)
        child = session.records.get(kin.thread_id) if kin.deleted_at is None else None
        description = None
        if child is not None:
            check_record(hashing, child)
            description = child.described
        checksums = hashing.without_lineage(kin.checksums, kin.salt, description)
        if not session.records.detach(parent.thread, kin, child, checksums):
            return False
    return True
