"""Rules that every backend keeps. They are stated here once, without I/O.

What a checkpoint needs of its ancestors is in `forkpoint.storage.plan`, what is noted of deleted
threads in `forkpoint.storage.tombstones`, and which rows a put stores beside its own in
`forkpoint.storage.receipts`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Set
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from forkpoint.encoding.hashing import Hashing
from forkpoint.errors import SchemaVersionError, ThreadExists, damaged_settings
from forkpoint.langgraph_rules import status_of
from forkpoint.storage.interface import SCHEMA_VERSION
from forkpoint.storage.plan import Place
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    LeaseRow,
    PutRequest,
    WriteRow,
    binding_of,
    stored_binding,
)
from forkpoint.storage.tombstones import is_deleted_since

ABANDONED_SECONDS = 60
"""After this time others take over the work that a process began, and did not end."""

_T = TypeVar("_T")


def thread_exists(thread_id: str) -> ThreadExists:
    """Return the error that says that an id cannot be used, whoever uses it."""
    return ThreadExists(f"there is a thread {thread_id!r} already")


def check_schema_version(version: Any) -> None:
    """Check that this code knows the format of a store.

    Args:
        version: What the store says; None if it says nothing yet.

    Raises:
        SchemaVersionError: The store was written by a newer forkpoint.
        CorruptChunk: What it says is no version.
    """
    if version is None:
        return
    if not isinstance(version, int):
        raise damaged_settings("schema version")
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has forkpoint's schema version {version}, and this forkpoint knows "
            f"{SCHEMA_VERSION}; upgrade forkpoint"
        )


def batches(values: Collection[_T], size: int) -> Iterator[list[_T]]:
    """Return values in lists of at most `size`."""
    listed = list(values)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]


# Late writers: runs that began before their thread was deleted


class Admission(Enum):
    """What becomes of a put."""

    STORE = "it is stored"
    REFUSE = "nothing is stored"
    REFUSE_AND_CLEAN = "nothing is stored, and what its run left behind is removed"


def admission(
    put: PutRequest,
    *,
    exists: bool,
    deletions: Callable[[], Set[Any]],
    watermark: str | None,
    own_watermark: Callable[[], str | None],
    is_stored: Callable[[Place], bool],
) -> Admission:
    """Return whether a put is to be stored, or comes from a run whose thread was deleted.

    Args:
        put: The put, for a thread that is the expected one.
        exists: Whether there is a thread of its id.
        deletions: Returns what `Threads.deletions` does for the id and the owner of the put.
        watermark: The highest checkpoint id in the tombstones of the id, whoever's they are; None
            if there is none. Of a thread that exists, that when it was made: its record has it.
        own_watermark: Returns the highest one in the tombstones that the owner of the put may know.
            What others have deleted is not told.
        is_stored: Returns whether the thread has a checkpoint in this place.
    """
    if put.began is not None:  # it is known what the id meant when the run began
        is_deleted = not exists and is_deleted_since(put.began.deletion, deletions())
        return Admission.REFUSE if is_deleted else Admission.STORE
    if watermark is not None and put.owner is not None:
        watermark = own_watermark()
    if watermark is None:
        return Admission.STORE
    if _is_late(put, watermark, is_stored if exists else None):
        return Admission.REFUSE_AND_CLEAN
    # Where a thread was deleted, the next one begins with a checkpoint.
    begins = exists or put.row is not None or put.is_announced
    return Admission.STORE if begins else Admission.REFUSE


def would_make(put: PutRequest, metadata: Any, deletions: Callable[[], Set[Any]]) -> bool:
    """Return whether a put that may make a thread would have made one as another put made it.

    Tasks of a run, and the checkpoint that follows, race for a new thread.

    Args:
        put: The put.
        metadata: Those that the thread was made with, as JSON.
        deletions: Returns the tombstones of the thread's id, as the thread was made or later.
    """
    if metadata != put.metadata:
        return False
    return put.began is None or not is_deleted_since(put.began.deletion, deletions())


def _is_late(put: PutRequest, watermark: str, is_stored: Callable[[Place], bool] | None) -> bool:
    """Return whether a put comes after a checkpoint that went with its thread.

    Args:
        put: The put.
        watermark: See `admission`.
        is_stored: Returns whether the thread has a checkpoint in this place; None without a thread.
    """
    return any(
        place[1] <= watermark and (is_stored is None or not is_stored(place))
        for place in put.ancestry
    )


# Threads


def status_after(
    put: PutRequest, before: str, *, kinds: Callable[[], Collection[int]], is_newest: bool
) -> str:
    """Return the status of a thread after a put.

    A new checkpoint makes a thread idle, unless a task's interrupt or error came before it. One
    that is not the newest changes nothing, nor does what tasks write after it.

    Args:
        put: The put.
        before: The status before.
        kinds: Returns the `idx` of the writes that are stored at the put's checkpoint.
        is_newest: Whether its namespace has no newer checkpoint.
    """
    if put.status is None or not is_newest:
        return before
    return put.status if put.row is None else status_of(kinds())


def is_expired(
    described: Description, updated_at: int, now: int, *, is_leased: bool, is_deleting: bool = True
) -> bool:
    """Return whether the time to live of a thread has passed, and no run has its lease.

    Args:
        described: What is said of the thread.
        updated_at: When it was active last.
        now: The time of the store.
        is_leased: Whether a run has its lease.
        is_deleting: Whether only threads count that are deleted then, and not trimmed.
    """
    if is_leased or described.ttl is None or (is_deleting and described.on_expiry != "delete"):
        return False
    return updated_at + described.ttl <= now


def fence_step() -> int:
    """Return by how much the fence of a thread goes up as a lease begins.

    A lease lasts for long, and a backup may be restored meanwhile, from before it began, where
    another one begins: so it is a number that nobody guesses.
    """
    return 1 + secrets.randbelow(_LARGEST_STEP)


_LARGEST_STEP = 2**32  # a fence stays below 2**63 for as many leases as a thread has


class Queue(NamedTuple):
    """A lease that was asked for: who has it then, and who waits for it."""

    lease: LeaseRow | None
    """The lease, if it was given out."""
    waiting: dict[str, int]
    """Who waits, the first one first, and until when."""


def granted(
    request: LeaseRow,
    current: LeaseRow | None,
    waiting: dict[str, int],
    *,
    take_over: bool,
    waits: bool,
    rolls_back: bool,
) -> Queue:
    """Return what becomes of a request for a lease.

    Args:
        request: The lease as it is asked for, with the fence and `rollback_from` of the thread.
        current: The lease that was given out last and not released; it may have ended by itself.
        waiting: Who waits for it.
        take_over: Whether a lease that somebody has is taken over.
        waits: Whether the holder waits behind those who came before.
        rolls_back: Whether the run of a lease that is taken over is to be rolled back.
    """
    now, holder = request.since, request.holder
    queue = {name: until for name, until in waiting.items() if until > now or name == holder}
    is_free = current is None or current.until <= now
    is_next = not waits or next(iter(queue), holder) == holder
    if not take_over and not (is_free and is_next):
        if waits and queue.get(holder, 0) < now + (request.until - now) // 2:
            queue[holder] = request.until  # a place that is known is kept
        return Queue(None, queue if waits else waiting)
    rollback_from = request.rollback_from
    if rolls_back and not is_free and rollback_from is None:
        rollback_from = request.fence
    queue.pop(holder, None)
    lease = request._replace(fence=request.fence + fence_step(), rollback_from=rollback_from)
    return Queue(lease, queue)


# Checkpoints and writes


def ancestors_of(
    checkpoint: Callable[[str], CheckpointRow | None], checkpoint_id: str
) -> Iterator[CheckpointRow]:
    """Return a checkpoint, its parent, and so on, up to one that is not stored.

    Args:
        checkpoint: Returns the checkpoint of an id, in one namespace of one thread.
        checkpoint_id: Where to begin.
    """
    following: str | None = checkpoint_id
    while following is not None:
        row = checkpoint(following)
        if row is None:
            return
        yield row
        following = row.parent_checkpoint_id


_Row = TypeVar("_Row", CheckpointRow, WriteRow)


def rebound(row: _Row, hashing: Hashing, source: bytes, target: bytes) -> _Row:
    """Return the copy of a row for another thread of the family.

    What does not fit its own thread does not fit the other one either.

    Args:
        row: The row.
        hashing: The hashes of the store.
        source: The salt of the thread that the row is of.
        target: That of the other one.
    """
    bound = hashing.rebind(source, target, row.checksum, stored_binding(row))
    if isinstance(row, CheckpointRow):
        binding = binding_of(bound, hidden=row.hidden, restarts=row.restarts)
        # A copy does not belong to the run that made the original: deleting that leaves the copy.
        return row._replace(run_id=None, binding=binding)
    return row._replace(binding=binding_of(bound))
