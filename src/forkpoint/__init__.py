"""forkpoint: a LangGraph checkpointer with content-addressed storage.

saver          what LangGraph calls; runner: in the sync and the async world
time_travel    fork, lineage, purge, diff as a user calls them
operations     what each call does; memory: what a process remembers between them
forking        threads made of others; removing; diffing
types          what these return; render: its pictures
storage        the interface of a backend, and the stored format
sqlite         the SQLite backend, with sqlite_storage and sqlite_session
mongodb        the MongoDB backend, with mongodb_storage, _session, _puts and _records
group_commit   puts that wait at the same time share a commit
codec          values to chunks and back; chunking: where to cut
serde          the safe serializer; messages: serializing messages faster the second time
removal        which checkpoints may go; collect: which chunks may go
inputs         the gate for everything from outside; filters: matching metadata
errors         the error tree
"""

from typing import TYPE_CHECKING, Any

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
    StorageUnauthorized,
    StorageUnavailable,
    ThreadBusy,
    ThreadDeleted,
    ThreadExists,
    ThreadNotFound,
    UnreadableValue,
)
from forkpoint.serde import SafeSerializer
from forkpoint.sqlite import SqliteSaver
from forkpoint.types import (
    ChannelDiff,
    FamilyNode,
    FamilyTree,
    LineageEntry,
    PurgeReport,
    StateDiff,
)

if TYPE_CHECKING:
    from forkpoint.mongodb import MongoDBSaver

__all__ = [
    "ChannelDiff",
    "CheckpointNotFound",
    "CorruptChunk",
    "EncryptionMismatch",
    "FamilyNode",
    "FamilyTree",
    "ForkpointError",
    "InvalidInput",
    "LineageEntry",
    "MongoDBSaver",
    "PurgeReport",
    "SafeSerializer",
    "SaverClosed",
    "SchemaVersionError",
    "SqliteSaver",
    "StaleLease",
    "StateDiff",
    "StorageBusy",
    "StorageError",
    "StorageFull",
    "StorageReadOnly",
    "StorageUnauthorized",
    "StorageUnavailable",
    "ThreadBusy",
    "ThreadDeleted",
    "ThreadExists",
    "ThreadNotFound",
    "UnreadableValue",
]


def __getattr__(name: str) -> Any:
    """Import the MongoDB backend when it is asked for: its driver is an optional dependency."""
    if name != "MongoDBSaver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from forkpoint.mongodb import MongoDBSaver
    except ModuleNotFoundError as error:
        raise ImportError("MongoDBSaver needs PyMongo: pip install 'forkpoint[mongodb]'") from error
    return MongoDBSaver
