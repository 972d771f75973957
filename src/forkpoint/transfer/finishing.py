"""The end of moving a thread: from then on it is as the one that it comes from."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from forkpoint.archive.parts import ThreadPart
from forkpoint.operations.context import Context
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import Session
from forkpoint.storage.plan import Place, Plan
from forkpoint.storage.record_checksums import check_record, checksums_with_description
from forkpoint.storage.retry import attempts, busy
from forkpoint.storage.rows import CheckpointRow, ThreadRef
from forkpoint.transfer.target import Arrival, deleted_meanwhile


def finish(
    context: Context, arrival: Arrival, part: ThreadPart, hidden: Collection[Place]
) -> Steps[None]:
    """Let a thread be as the one that it comes from.

    Args:
        context: The store.
        arrival: The thread.
        part: What its record is to say.
        hidden: The checkpoints that are to be hidden.
    """
    thread_id = arrival.thread.thread_id
    if hidden:
        yield from in_turns(context.storage, lambda turns: _hide(turns, arrival.thread, hidden))
    for _ in attempts():
        with context.storage.writing() as session:
            if _describe(context, session, arrival, part):
                context.memory.forget(thread_id)
                return
    raise busy(f"thread {thread_id!r} changed")


def _hide(turns: Turns, thread: ThreadRef, hidden: Collection[Place]) -> Work[None]:
    def plan(rows: Sequence[CheckpointRow]) -> Plan:
        seen = {(row.checkpoint_ns, row.checkpoint_id) for row in rows if not row.hidden}
        return Plan(set(), seen & set(hidden))

    turns.session.removals.remove(thread, plan)
    yield


def _describe(context: Context, session: Session, arrival: Arrival, part: ThreadPart) -> bool:
    hashing = context.codec.hashing
    row = session.records.get(arrival.thread.thread_id)
    if row is None or row.thread.key != arrival.thread.key:
        raise deleted_meanwhile(arrival.thread.thread_id)
    check_record(hashing, row)
    described = part.described if arrival.is_incoming else row.described
    times = part.times if part.times.created_at else None
    checksums = checksums_with_description(hashing, row, described)
    if not session.records.describe(row, described, checksums, times):
        return False
    if part.is_swept:
        session.records.note_sweep(row._replace(updated_at=part.times.updated_at))
    return True
