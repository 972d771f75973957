"""forkpoint: a LangGraph checkpointer with content-addressed storage.

The folders, of which each knows only those below it:

cli                the command `forkpoint`
transfer           threads from other savers, into archives and back
catalog            threads as people see them: search, leases, retention
sqlite, mongodb    a backend each, with its saver; neither knows the other, or the catalog
saver              what LangGraph and a user call
archive            threads in parts, and the file that they are archived to
operations         the one logic of each call, without a backend
storage            what a backend must do, and what all backends share
encoding           values to chunks, and back
pictures           what is drawn for people
runtime            how an operation runs in the sync and in the async world

The files beside them are known to all: errors, results, the rules that are LangGraph's
(langgraph_rules), checks of what callers pass (inputs, options, json_text, untrusted), filters,
clocks, caches.
"""

from typing import TYPE_CHECKING, Any

from forkpoint.catalog.arguments import UNCHANGED, NewThread
from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.leases import Lease
from forkpoint.catalog.retention import RetentionPolicy, RetentionResult
from forkpoint.catalog.sweeper import Sweeper
from forkpoint.catalog.threads import (
    LeaseHolder,
    Page,
    PendingInterrupt,
    StoreStats,
    Thread,
    ThreadFilter,
    ThreadStats,
)
from forkpoint.encoding.encryption import key_ring
from forkpoint.encoding.serializer import SafeSerializer
from forkpoint.encoding.stored_object import StoredObject
from forkpoint.encoding.type_codecs import TypeCodec
from forkpoint.errors import (
    CheckpointNotFound,
    CorruptChunk,
    DamagedArchive,
    EncryptionMismatch,
    ForkpointError,
    InvalidInput,
    MissingFeature,
    MissingLibrary,
    NotStorable,
    NoWorkerThread,
    SaverClosed,
    SchemaVersionError,
    SourceError,
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
from forkpoint.outline import changed_channels, next_nodes
from forkpoint.pictures.shown import FamilyTree, StateDiff
from forkpoint.results import (
    NOT_READ,
    ChannelDiff,
    CheckReport,
    FamilyNode,
    LineageEntry,
    MessageOrigin,
    Problem,
    PurgeReport,
    RekeyReport,
    RepairReport,
)
from forkpoint.sqlite.saver import SqliteSaver

if TYPE_CHECKING:
    # Not in __all__: what is imported with a star must not need the optional driver.
    from forkpoint.mongodb.saver import MongoDBSaver as MongoDBSaver

__all__ = [
    "NOT_READ",
    "UNCHANGED",
    "ChannelDiff",
    "CheckReport",
    "CheckpointNotFound",
    "CorruptChunk",
    "DamagedArchive",
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
    "MissingLibrary",
    "NewThread",
    "NoWorkerThread",
    "NotStorable",
    "Page",
    "PendingInterrupt",
    "Problem",
    "PurgeReport",
    "RekeyReport",
    "RepairReport",
    "RetentionPolicy",
    "RetentionResult",
    "SafeSerializer",
    "SaverClosed",
    "SchemaVersionError",
    "SourceError",
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
    "StoreStats",
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
    "changed_channels",
    "key_ring",
    "next_nodes",
]


def __getattr__(name: str) -> Any:
    """Import the MongoDB backend when it is asked for: its driver is an optional dependency."""
    if name != "MongoDBSaver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from forkpoint.mongodb.saver import MongoDBSaver
    except ModuleNotFoundError as error:
        raise ImportError("MongoDBSaver needs PyMongo: pip install 'forkpoint[mongodb]'") from error
    return MongoDBSaver
