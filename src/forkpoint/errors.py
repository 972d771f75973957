"""The error tree.

Everything that forkpoint raises on purpose derives from `ForkpointError`, and each leaf also from
the built-in exception that a caller would already catch.
"""

from __future__ import annotations

from typing import Any


class ForkpointError(Exception):
    """The root of everything that forkpoint raises on purpose."""


class InvalidInput(ForkpointError, ValueError):
    """An argument is of the wrong type or shape. Nothing was written."""


class NotStorable(InvalidInput):
    """A value cannot be stored.

    Attributes:
        path: Where it is in what was to be stored, such as `[3].tool_calls[0].args['n']`.
        reason: What it is, and why it cannot.
    """

    def __init__(self, path: str, reason: str, what: str = "the value") -> None:
        super().__init__(
            f"{what}{path} cannot be stored: {reason}; give the saver a TypeCodec for it (types=), "
            "keep it out of the state, or pass serde=JsonPlusSerializer(pickle_fallback=True)"
        )
        self.path = path
        self.reason = reason

    def __reduce__(self) -> Any:
        return _not_storable, (self.path, self.reason, str(self))


def _not_storable(path: str, reason: str, message: str) -> NotStorable:
    error = NotStorable(path, reason)
    error.args = (message,)
    return error


class ThreadNotFound(ForkpointError, LookupError):
    """The operation needs a thread that does not exist."""


class CheckpointNotFound(ForkpointError, LookupError):
    """The operation needs a checkpoint that does not exist."""


class ThreadExists(ForkpointError, ValueError):
    """The target of a fork, copy or clone exists already."""


class ThreadDeleted(ForkpointError, LookupError):
    """A run tried to write to a deleted thread: it began before, or goes on from its checkpoint."""


class ThreadBusy(ForkpointError, RuntimeError):
    """Another run holds the thread's lease."""


class StaleLease(ForkpointError, RuntimeError):
    """The run lost its lease on the thread and may not write any more."""


class CorruptChunk(ForkpointError, ValueError):
    """Stored bytes are missing, or are not what was written."""


class UnreadableValue(ForkpointError, TypeError):
    """A stored value names a type that may not, or cannot, be restored here."""


class EncryptionMismatch(CorruptChunk):
    """A row is unencrypted where it must be encrypted, or encrypted with another key."""


class SchemaVersionError(ForkpointError, RuntimeError):
    """The store was written by a newer forkpoint than this one."""


class SaverClosed(ForkpointError, RuntimeError):
    """The saver, or the connection that was passed to it, is closed."""


class NoWorkerThread(ForkpointError, RuntimeError):
    """The process cannot start a thread that the call needs. Nothing was written."""


class StorageError(ForkpointError, OSError):
    """The database failed. What was being written has been rolled back."""


class StorageFull(StorageError):
    """The disk, or the database's size limit, is full."""


class StorageReadOnly(StorageError, PermissionError):
    """The database cannot be written to."""


class StorageBusy(StorageError, TimeoutError):
    """Another process held the database for longer than the busy timeout."""


class StorageReplaced(StorageError):
    """A connection that was passed is to a file that is not there any more under its name."""


class StorageInherited(StorageError):
    """A connection to the database was open when this process was forked, and still is."""


class StorageUnavailable(StorageError, ConnectionError):
    """The database server cannot be reached, or has no primary."""


class StorageUnauthorized(StorageError, PermissionError):
    """The database server refuses the credentials, or what they are used for."""


class MissingFeature(StorageError, NotImplementedError):
    """The database server lacks something that forkpoint needs."""


class SourceError(ForkpointError, ValueError):
    """What threads are to be imported from cannot be read, or is not of the kind that was named."""


class MissingLibrary(ForkpointError, ImportError):
    """The call needs a library that is optional, and is not installed."""


class DamagedArchive(ForkpointError, ValueError):
    """A part of an archive is missing, or is not what was written.

    Attributes:
        line: The number of the line, from 1.
        thread_id: The thread that it belongs to, if that is known.
    """

    def __init__(self, line: int, thread_id: str | None, reason: str) -> None:
        of_thread = "" if thread_id is None else f" of thread {thread_id!r}"
        super().__init__(f"line {line} of the archive{of_thread}: {reason}")
        self.line = line
        self.thread_id = thread_id
        self.reason = reason

    def __reduce__(self) -> Any:
        return DamagedArchive, (self.line, self.thread_id, self.reason)


def stale_lease(thread_id: str) -> str:
    """Return the message of a `StaleLease`."""
    return (
        f"the run's lease on thread {thread_id!r} has ended, or another run has taken it over; "
        "nothing was written"
    )


def lost_checkpoint(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> CorruptChunk:
    """Return the error of a checkpoint that was stored, as its receipt says, and is not there."""
    where = f" of namespace {checkpoint_ns!r}" if checkpoint_ns else ""
    return CorruptChunk(
        f"thread {thread_id!r}, checkpoint {checkpoint_id!r}{where}: it was stored, and is missing"
    )


def damaged_record(thread_id: object) -> CorruptChunk:
    """Return the error of a thread's record."""
    return CorruptChunk(
        f"the record of thread {thread_id!r} is not what was written: it was changed, or written "
        "with another key"
    )


PASS_SERDE = "; pass the EncryptedSerializer that wrote it as serde="
"""The advice of an error where something is encrypted, and the serializer at hand is not such."""
SERDE_ENCRYPTS = ", and serde= is an EncryptedSerializer"
"""What it says of the reverse."""


def other_encryption(what: str, is_encrypted: bool) -> EncryptionMismatch:
    """Return the error of something that another serializer wrote.

    Args:
        what: A thread, or the store.
        is_encrypted: Whether the serializer at hand encrypts.
    """
    if is_encrypted:
        return EncryptionMismatch(f"{what} is not encrypted, or with another key{SERDE_ENCRYPTS}")
    return EncryptionMismatch(f"{what} is encrypted{PASS_SERDE}")


def lost_secret() -> CorruptChunk:
    """Return the error of a store that has threads, and not the secret that they are read with."""
    return CorruptChunk(
        "the secret of the store is missing, without which nothing can be verified that is stored "
        "there; restore it from a backup, with the other settings"
    )


def damaged_settings(what: str) -> CorruptChunk:
    """Return the error of a setting of a store that is of another type than is written."""
    return CorruptChunk(
        f"the {what} of the store is not what was written; restore its settings from a backup"
    )


def damaged_row(kind: str, checkpoint_id: object) -> CorruptChunk:
    """Return the error of a row of which a field is of another type than is written."""
    return CorruptChunk(f"a {kind} at checkpoint {checkpoint_id!r:.80} is not what was written")
