"""Giving a thread to another owner.

All threads that forks and clones join have one owner, and see each other. So a thread that is given
away leaves them: from then on neither knows that the thread was made from another, or another from
it. What they store stays shared. For its owner before, the thread is as if it had been deleted.
"""

from __future__ import annotations

import random
import time

from forkpoint.cataloguing import Changes, existing_record
from forkpoint.errors import StorageBusy
from forkpoint.hashing import Hashing
from forkpoint.operations import Context
from forkpoint.records import check_kinship, check_record, described_anew
from forkpoint.storage import Session, ThreadRow
from forkpoint.thread_heads import thread_of
from forkpoint.threads import Thread

_ATTEMPTS = 20  # to change a record that others change at the same moment


def hand_over(context: Context, thread_id: str, changes: Changes, owner: str | None) -> Thread:
    """Let a thread be another owner's, and say something else of it."""
    hashing = context.prepare().hashing
    for attempt in range(_ATTEMPTS):
        time.sleep(random.uniform(0, 0.002) * attempt)
        with context.storage.writing() as session:
            seen = existing_record(session, thread_id)
            check_record(hashing, seen)
            described = changes.applied(seen.described)
            checksums = described_anew(hashing, seen, described)
            if owner == seen.thread.owner:
                is_done = session.describe(seen, described, checksums)
            else:
                identity = thread_id, owner, seen.thread.salt
                checksums = hashing.checksums(identity, described)
                is_done = _detach_children(hashing, session, seen) and session.give(
                    seen, described, owner, checksums
                )
                # Where there are no transactions, one may have been made meanwhile.
                is_done = is_done and _detach_children(hashing, session, seen)
            if is_done:
                context.memory.forget(thread_id)
                return thread_of(context, session, existing_record(session, thread_id))
    raise StorageBusy(f"thread {thread_id!r} changed {_ATTEMPTS} times while it was given away")


def _detach_children(hashing: Hashing, session: Session, parent: ThreadRow) -> bool:
    """Let no thread be known as one made from another, unless one of them changes meanwhile."""
    for kin in session.family(parent.thread.family):
        if kin.parent != parent.thread.key:
            continue
        check_kinship(hashing, kin)
        child = session.record(kin.thread_id) if kin.deleted_at is None else None
        described = None
        if child is not None:
            check_record(hashing, child)
            described = child.described
        checksums = hashing.without_lineage(kin.checksums, kin.salt, described)
        if not session.detach(parent.thread, kin, child, checksums):
            return False
    return True
