"""forkpoint: a LangGraph checkpointer with content-addressed storage.

saver          what LangGraph calls; runner: in the sync and the async world; workers: threads
time_travel    fork, lineage, purge, diff as a user calls them; listing: pages as iterators
operations     what each call does; memory: what a process remembers between them;
               caches: within how many bytes
forking        threads made of others; removing; diffing; finding: messages
types          what these return; render, render_svg, render_diff: pictures of it; printing
shown          what shows itself as these pictures
storage        the interface of a backend, and the stored format
sqlite         the SQLite backend, with sqlite_storage, _session, _catalog, _statements, _schema
mongodb        the MongoDB backend: mongodb_storage, _puts, and _session, which builds on _removing,
               _reading, _catalog, _documents and _records
group_commit   puts that wait at the same time share a commit
codec          values to chunks and back; chunking: where to cut
serde          the safe serializer; messages: serializing messages faster the second time
removal        which checkpoints may go; collect: which chunks may go
catalog        the catalog of threads as a user calls it; threads: what it returns
cataloguing    records of threads, searching them; searching: filters and cursors
leases         one active run a thread; retention: what may go, and the archive
owners         a saver that is confined to the threads of one owner
inputs         the gate for everything from outside, with options, json_text and untrusted
filters        matching metadata
errors         the error tree
"""

from typing import TYPE_CHECKING, Any

from forkpoint.catalog import UNCHANGED, ThreadCatalog
from forkpoint.errors import (
    CheckpointNotFound,
    CorruptChunk,
    EncryptionMismatch,
    ForkpointError,
    InvalidInput,
    MissingFeature,
    NotStorable,
    NoWorkerThread,
    SaverClosed,
    SchemaVersionError,
    StaleLease,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageInherited,
    StorageReadOnly,
    StorageReplaced,
    StorageUnauthorized,
    StorageUnavailable,
    ThreadBusy,
    ThreadDeleted,
    ThreadExists,
    ThreadNotFound,
    UnreadableValue,
)
from forkpoint.leases import Lease
from forkpoint.retention import RetentionPolicy, RetentionResult, Sweeper
from forkpoint.serde import SafeSerializer
from forkpoint.shown import FamilyTree, StateDiff
from forkpoint.sqlite import SqliteSaver
from forkpoint.stored_object import StoredObject
from forkpoint.threads import (
    LeaseHolder,
    Page,
    PendingInterrupt,
    Thread,
    ThreadFilter,
    ThreadStats,
)
from forkpoint.type_codecs import TypeCodec
from forkpoint.types import (
    ChannelDiff,
    FamilyNode,
    LineageEntry,
    MessageOrigin,
    PurgeReport,
)

if TYPE_CHECKING:
    # Not in __all__: what is imported with a star must not need the optional driver.
    from forkpoint.mongodb import MongoDBSaver as MongoDBSaver

__all__ = [
    "UNCHANGED",
    "ChannelDiff",
    "CheckpointNotFound",
    "CorruptChunk",
    "EncryptionMismatch",
    "FamilyNode",
    "FamilyTree",
    "ForkpointError",
    "InvalidInput",
    "Lease",
    "LeaseHolder",
    "LineageEntry",
    "MessageOrigin",
    "MissingFeature",
    "NoWorkerThread",
    "NotStorable",
    "Page",
    "PendingInterrupt",
    "PurgeReport",
    "RetentionPolicy",
    "RetentionResult",
    "SafeSerializer",
    "SaverClosed",
    "SchemaVersionError",
    "SqliteSaver",
    "StaleLease",
    "StateDiff",
    "StorageBusy",
    "StorageError",
    "StorageFull",
    "StorageInherited",
    "StorageReadOnly",
    "StorageReplaced",
    "StorageUnauthorized",
    "StorageUnavailable",
    "StoredObject",
    "Sweeper",
    "Thread",
    "ThreadBusy",
    "ThreadCatalog",
    "ThreadDeleted",
    "ThreadExists",
    "ThreadFilter",
    "ThreadNotFound",
    "ThreadStats",
    "TypeCodec",
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
