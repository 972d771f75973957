"""The checksums by which it is noticed that the record of a thread was changed."""

from __future__ import annotations

from forkpoint.encoding.hashing import Hashing
from forkpoint.errors import CorruptChunk, damaged_record, other_encryption
from forkpoint.results import STATUSES
from forkpoint.storage.rows import Description, FamilyMember, ThreadRow

_LAST_MOMENT = 200_000_000_000_000_000  # in the year 8307; a `datetime` ends with 9999


def check_record(hashing: Hashing, row: ThreadRow) -> None:
    """Check the record of a thread. What only the secret can check is left out if there is none.

    Raises:
        CorruptChunk: It is not what was written.
    """
    thread = row.thread
    check_types(row)
    if hashing.can_check:
        hashing.check_identity(thread.thread_id, thread.owner, thread.salt, row.checksums)
    hashing.check_lineage(thread.thread_id, thread.salt, row.checksums, *row.lineage[:-1])
    source = row.lineage[-1]
    hashing.check_description(thread.thread_id, thread.salt, row.checksums, source, row.described)


def check_types(row: ThreadRow) -> None:
    """Check the fields that change with each put, and so have no checksum, by type and range.

    Raises:
        CorruptChunk: One of them is not what was written.
    """
    numbers = (row.checkpoint_count, row.fence, row.created_at, row.updated_at)
    of_lease = () if row.lease is None else (row.lease.since, row.lease.until)
    times = (*numbers[2:], row.state_updated_at, *of_lease)
    if not (
        all(isinstance(number, int) for number in (*numbers, *times))
        and all(0 <= time < _LAST_MOMENT for time in times)
        and row.status in STATUSES
    ):
        raise damaged_record(row.thread_id)


def is_intact(hashing: Hashing, row: ThreadRow) -> bool:
    """Return whether a thread's record is what was written, as far as that can be known."""
    try:
        check_record(hashing, row)
    except CorruptChunk:
        return False
    return True


def check_kinship(hashing: Hashing, record: FamilyMember) -> None:
    """Check the edge and the parent of a thread, and whose it is, as `check_record` does.

    Raises:
        CorruptChunk: It is not what was written.
    """
    numbers = [record.checkpoint_count, record.created_at]
    numbers += [] if record.deleted_at is None else [record.deleted_at]
    is_number = all(isinstance(one, int) and not isinstance(one, bool) for one in numbers)
    if not is_number or not 0 <= record.created_at < _LAST_MOMENT:
        raise damaged_record(record.thread_id)
    parent = record.parent if record.parent is None else str(record.parent)
    lineage = record.edge, parent, record.parent_checkpoint_id
    if hashing.can_check and record.deleted_at is None:  # else its owner was removed
        hashing.check_identity(record.thread_id, record.owner, record.salt, record.checksums)
    hashing.check_lineage(record.thread_id, record.salt, record.checksums, *lineage)


def checksums_with_description(hashing: Hashing, seen: ThreadRow, described: Description) -> bytes:
    """Return the checksums of a record with another description.

    Args:
        hashing: The hashes of the store.
        seen: The record, which was checked.
        described: The description.

    Raises:
        EncryptionMismatch: It was written with an encrypting serializer, and none is set.
    """
    if not hashing.can_check:
        raise other_encryption(f"thread {seen.thread_id!r}", hashing.is_encrypted)
    return hashing.with_description(seen.checksums, seen.thread.salt, seen.lineage[-1], described)
