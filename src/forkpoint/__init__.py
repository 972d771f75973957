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

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
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

    # Not in __all__: what is imported with a star must not need the optional driver.
    from forkpoint.mongodb.saver import MongoDBSaver as MongoDBSaver
    from forkpoint.sqlite.saver import SqliteSaver

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


_IMPORTED_WHEN_USED = {
    "Lease": "catalog.leases",
    "LeaseHolder": "catalog.threads",
    "MongoDBSaver": "mongodb.saver",
    "NewThread": "catalog.arguments",
    "Page": "catalog.threads",
    "PendingInterrupt": "catalog.threads",
    "RetentionPolicy": "catalog.retention",
    "RetentionResult": "catalog.retention",
    "SqliteSaver": "sqlite.saver",
    "StoreStats": "catalog.threads",
    "Sweeper": "catalog.sweeper",
    "Thread": "catalog.threads",
    "ThreadCatalog": "catalog.catalog",
    "ThreadFilter": "catalog.threads",
    "ThreadStats": "catalog.threads",
    "UNCHANGED": "catalog.arguments",
}
"""Where the public names are that not every program needs. A backend needs its driver, too."""

_NAMES_ELSEWHERE = {"AsyncSqliteSaver": "SqliteSaver", "AsyncMongoDBSaver": "MongoDBSaver"}
"""What users of LangGraph's savers look for, and what they find here."""


def __getattr__(name: str) -> Any:
    """Import what is imported when it is used."""
    if name in _NAMES_ELSEWHERE:
        own = _NAMES_ELSEWHERE[name]
        raise ImportError(f"forkpoint has no {name}: its {own} serves sync and async code alike")
    module = _IMPORTED_WHEN_USED.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if name != "MongoDBSaver" or missing not in ("pymongo", "bson"):
            raise
        advice = "MongoDBSaver needs PyMongo: pip install 'forkpoint[mongodb]'"
        raise MissingLibrary(advice) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
