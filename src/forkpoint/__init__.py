"""forkpoint: a LangGraph checkpointer with content-addressed storage.

saver          what LangGraph calls; runner: in the sync and the async world
operations     what each call does; memory: what a process remembers between them
storage        the interface of a backend, and the stored format
sqlite         the SQLite backend, with sqlite_storage and sqlite_session
codec          values to chunks and back; chunking: where to cut
serde          the safe serializer; messages: serializing messages faster the second time
removal        which checkpoints may go; collect: which chunks may go
inputs         the gate for everything from outside; filters: matching metadata
errors         the error tree
"""

from forkpoint.errors import (
    CheckpointNotFound,
    CorruptChunk,
    EncryptionMismatch,
    ForkpointError,
    InvalidInput,
    SaverClosed,
    SchemaVersionError,
    StaleLease,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageReadOnly,
    ThreadBusy,
    ThreadDeleted,
    ThreadExists,
    ThreadNotFound,
    UnreadableValue,
)
from forkpoint.serde import SafeSerializer
from forkpoint.sqlite import SqliteSaver

__all__ = [
    "CheckpointNotFound",
    "CorruptChunk",
    "EncryptionMismatch",
    "ForkpointError",
    "InvalidInput",
    "SafeSerializer",
    "SaverClosed",
    "SchemaVersionError",
    "SqliteSaver",
    "StaleLease",
    "StorageBusy",
    "StorageError",
    "StorageFull",
    "StorageReadOnly",
    "ThreadBusy",
    "ThreadDeleted",
    "ThreadExists",
    "ThreadNotFound",
    "UnreadableValue",
]
