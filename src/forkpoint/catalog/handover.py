"""Giving a thread to another owner.

All threads that forks and clones join have one owner, and see each other. So a thread that is given
away leaves them: from then on neither knows that the thread was made from another, or another from
it. What they store stays shared. For its owner before, the thread is as if it had been deleted.
"""

from __future__ import annotations

from forkpoint.catalog.records import Changes, change
from forkpoint.catalog.threads import Thread
from forkpoint.encoding.hashing import Hashing
from forkpoint.operations.context import Context
from forkpoint.storage.interface import Session
from forkpoint.storage.record_checksums import check_kinship, check_record, described_anew
from forkpoint.storage.rows import Description, ThreadRow


def hand_over(context: Context, thread_id: str, changes: Changes, owner: str | None) -> Thread:
    """Let a thread be another owner's, and say something else of it."""
    hashing = context.prepare().hashing

    def give(session: Session, seen: ThreadRow, described: Description) -> bool:
        checksums = described_anew(hashing, seen, described)
        if owner == seen.thread.owner:
            return session.records.describe(seen, described, checksums)
        checksums = hashing.checksums((thread_id, owner, seen.thread.salt), described)
        is_given = _detach_children(hashing, session, seen) and session.records.hand_over(
            seen, described, owner, checksums
        )
        # Where there are no transactions, one may have been made meanwhile.
        if not (is_given and _detach_children(hashing, session, seen)):
            return False
        context.memory.forget(thread_id)
        return True

    return change(context, thread_id, changes, give)


def _detach_children(hashing: Hashing, session: Session, parent: ThreadRow) -> bool:
    """Let no thread be known as one made from another, unless one of them changes meanwhile."""
    for kin in session.threads.family(parent.thread.family):
        if kin.parent != parent.thread.key:
            continue
        check_kinship(hashing, kin)
        child = session.records.get(kin.thread_id) if kin.deleted_at is None else None
        described = None
        if child is not None:
            check_record(hashing, child)
            described = child.described
        checksums = hashing.without_lineage(kin.checksums, kin.salt, described)
        if not session.records.detach(parent.thread, kin, child, checksums):
            return False
    return True
