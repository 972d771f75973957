"""The operations on leases: to begin, to renew and to end one, and to say who has it."""

from __future__ import annotations

from typing import NamedTuple

from forkpoint.catalog.records import Changes, create, existing_record
from forkpoint.catalog.threads import LeaseHolder
from forkpoint.clocks import time_of
from forkpoint.errors import ThreadNotFound
from forkpoint.operations.context import Context
from forkpoint.storage.interface import Stale
from forkpoint.storage.record_checksums import check_types
from forkpoint.storage.rows import LeaseRow, ThreadRef


class LeaseRequest(NamedTuple):
    """The checked arguments of a lease."""

    thread_id: str
    if_busy: str
    """`raise`, `wait`, `cancel` or `rollback`; see `ThreadCatalog.run`."""
    ttl: int
    """How long the lease lasts without a renewal, in microseconds."""
    timeout_seconds: float | None = None
    must_exist: bool = False
    """Whether the thread is not made if there is none."""


class LeaseGrant(NamedTuple):
    """A lease that has begun, and its thread."""

    thread: ThreadRef
    lease: LeaseRow
    is_taken_over: bool = False
    """Whether another run had the lease until then."""


def acquire(
    context: Context, request: LeaseRequest, holder: str
) -> LeaseGrant | LeaseHolder | None:
    """Begin a lease, if the thread has none or it may be taken over.

    Returns:
        The lease, or who has it. None where nobody has it, but a run that came before waits for it.
    """
    context.prepare()
    rolls_back, waits = request.if_busy == "rollback", request.if_busy == "wait"
    take_over = request.if_busy in ("cancel", "rollback")
    while True:
        with context.storage.writing() as session:
            row = session.records.get(request.thread_id)
            if row is not None:
                check_types(row)
                if context.codec.hashing.can_check:
                    context.codec_of(row.thread)  # else a damaged one would be looked for for ever
                try:
                    lease = session.leases.acquire(
                        row.thread,
                        holder,
                        request.ttl,
                        take_over=take_over,
                        waits=waits,
                        rolls_back=rolls_back,
                    )
                except Stale:
                    continue  # the thread was deleted meanwhile
                if lease is not None:
                    return LeaseGrant(row.thread, lease, take_over and row.lease is not None)
                row = session.records.get(request.thread_id)
                if row is not None and row.lease is not None:
                    return _holder_of(row.lease)
                if waits:
                    return None
                continue  # the other lease has ended meanwhile
        if request.must_exist:
            raise ThreadNotFound(f"there is no thread {request.thread_id!r}")
        create(context, request.thread_id, Changes(), may_exist=True)


def renew(context: Context, grant: LeaseGrant, ttl: int) -> bool:
    """Let a lease last for `ttl` microseconds from now, and return whether it still holds."""
    with context.storage.writing() as session:
        return session.leases.renew(grant.thread, grant.lease.fence, ttl)


def release(context: Context, grant: LeaseGrant) -> None:
    """End a lease, if it still holds."""
    with context.storage.writing() as session:
        session.leases.release(grant.thread, grant.lease.fence)


def leave_queue(context: Context, thread_id: str, holder: str) -> None:
    """Wait no longer for the lease of a thread."""
    with context.storage.writing() as session:
        row = session.records.get(thread_id)
        if row is not None:
            session.leases.leave_queue(row.thread, holder)


def release_of(context: Context, thread_id: str, holder: str) -> None:
    """End the lease of a holder who was interrupted and does not know whether it had begun."""
    with context.storage.reading() as session:  # which waits for no writer
        row = session.records.get(thread_id)
    if row is not None and row.lease is not None and row.lease.holder == holder:
        release(context, LeaseGrant(row.thread, row.lease))


def holder_of(context: Context, thread_id: str) -> LeaseHolder | None:
    """Return who runs on a thread.

    Raises:
        ThreadNotFound: There is no such thread.
    """
    with context.storage.reading() as session:
        row = existing_record(session, thread_id)
    check_types(row)
    return None if row.lease is None else _holder_of(row.lease)


def is_busy(context: Context, thread_id: str) -> bool:
    """Return whether somebody runs on a thread."""
    return holder_of(context, thread_id) is not None


def _holder_of(lease: LeaseRow) -> LeaseHolder:
    return LeaseHolder(lease.holder, time_of(lease.since), time_of(lease.until))
