"""What tells of a thread's record whether it is as it was written."""

from __future__ import annotations

from forkpoint.errors import CorruptChunk, EncryptionMismatch
from forkpoint.hashing import Hashing
from forkpoint.storage import Description, ThreadRecord, ThreadRow


def check_record(hashing: Hashing, row: ThreadRow) -> None:
    """Check a thread's record, as far as that can be done without the secret.

    Raises:
        CorruptChunk: It is not what was written.
    """
    thread = row.thread
    if hashing.is_told(row.checksums):
        hashing.check_identity(thread.thread_id, thread.owner, thread.salt, row.checksums)
    hashing.check_lineage(thread.thread_id, thread.salt, row.checksums, *row.lineage[:-1])
    source = row.lineage[-1]
    hashing.check_description(thread.thread_id, thread.salt, row.checksums, source, row.described)


def is_intact(hashing: Hashing, row: ThreadRow) -> bool:
    """Return whether a thread's record is what was written, as far as that can be known."""
    try:
        check_record(hashing, row)
    except CorruptChunk:
        return False
    return True


def check_kinship(hashing: Hashing, record: ThreadRecord) -> None:
    """Check what a thread was made of, as far as that can be done without the secret.

    Raises:
        CorruptChunk: It is not what was written.
    """
    parent = record.parent if record.parent is None else str(record.parent)
    lineage = record.edge, parent, record.parent_checkpoint_id
    hashing.check_lineage(record.thread_id, record.salt, record.checksums, *lineage)


def described_anew(hashing: Hashing, seen: ThreadRow, described: Description) -> bytes:
    """Return the checksums of a record of which something else is to be said.

    Raises:
        CorruptChunk: The record is not what was written.
        EncryptionMismatch: It was written with an encrypting serializer, and none is set.
    """
    thread = seen.thread
    if not hashing.is_told(seen.checksums):
        raise EncryptionMismatch(
            f"thread {thread.thread_id!r} is encrypted; pass the EncryptedSerializer that wrote it "
            "as serde="
        )
    check_record(hashing, seen)
    return hashing.with_description(seen.checksums, thread.salt, seen.lineage[-1], described)
