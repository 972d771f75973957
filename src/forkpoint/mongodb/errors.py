"""MongoDB: the typed error for what the driver or the server reports, and what to try again."""

from __future__ import annotations

import re

from bson.errors import InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    DocumentTooLarge,
    ExecutionTimeout,
    InvalidOperation,
    OperationFailure,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WTimeoutError,
)

from forkpoint.errors import (
    ForkpointError,
    InvalidInput,
    SaverClosed,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageReadOnly,
    StorageUnauthorized,
    StorageUnavailable,
)

_TRANSIENT = {
    6,  # HostUnreachable
    7,  # HostNotFound
    89,  # NetworkTimeout
    91,  # ShutdownInProgress
    112,  # WriteConflict
    133,  # FailedToSatisfyReadPreference, of a router: a shard has no primary
    134,  # ReadConcernMajorityNotAvailableYet: the primary has just started
    189,  # PrimarySteppedDown
    202,  # NetworkInterfaceExceededTimeLimit, of a router
    262,  # ExceededTimeLimit
    9001,  # SocketException
    10107,  # NotWritablePrimary
    10058,  # LegacyNotPrimary
    11600,  # InterruptedAtShutdown
    11602,  # InterruptedDueToReplStateChange
    13435,  # NotPrimaryNoSecondaryOk
    13436,  # NotPrimaryOrSecondary
}
_OF_ATLAS = 8000  # for all that it refuses by itself: credentials, and what is above the quota
_UNAUTHENTICATED = {18, _OF_ATLAS}  # AuthenticationFailed
UNAUTHORIZED = 13
_WRITING = {"insert", "update", "delete", "createIndexes"}
_NO_SPACE = {14031, 12501}  # OutOfDiskSpace, and a quota's
_TOO_LARGE = {10334, 17280, 17419, 17420}


def is_transient(error: Exception) -> bool:
    if isinstance(error, ServerSelectionTimeoutError):
        return False  # it has waited already
    if isinstance(error, OperationFailure):
        return error.code in _TRANSIENT
    return isinstance(error, AutoReconnect)


def typed_error(error: Exception) -> ForkpointError:
    """Return the `ForkpointError` for what the driver or the server reports."""
    message = str(error)
    if isinstance(error, ServerSelectionTimeoutError):
        reason = re.sub(r" \(configured timeouts: [^)]*\)|, Topology Description: .*", "", message)
        return StorageUnavailable(
            f"no MongoDB primary can be reached ({reason:.300}); check that the server runs, its "
            "address, the network and the name of the replica set"
        )
    if isinstance(error, (WTimeoutError, WriteConcernError)):
        return StorageUnavailable(
            f"a majority of the replica set did not confirm the write in time ({message:.300}); "
            "check the health of its members. The write may or may not survive"
        )
    if isinstance(error, ExecutionTimeout):
        return StorageBusy(f"MongoDB did not answer in time: {message:.300}")
    if isinstance(error, OperationFailure):
        return _of_server(error, message)
    if isinstance(error, AutoReconnect):
        return StorageUnavailable(f"the connection to MongoDB was lost: {message:.300}")
    if isinstance(error, ConnectionFailure):  # the pool is exhausted
        return StorageBusy(f"no connection to MongoDB became free in time: {message:.300}")
    if isinstance(error, (DocumentTooLarge, InvalidDocument)):
        return InvalidInput(
            f"MongoDB cannot hold this as one document; values may be of any size, but metadata, "
            f"names and the number of channels may not: {message:.300}"
        )
    if isinstance(error, InvalidOperation) and "close" in message:
        return SaverClosed("the MongoDB client is closed")
    return StorageError(f"MongoDB failed: {message:.300}")


def _of_server(error: OperationFailure, message: str) -> ForkpointError:
    if error.code in _NO_SPACE or (error.code == _OF_ATLAS and "quota" in message):
        return StorageFull(f"MongoDB has no room: {message:.300}")
    if error.code in _UNAUTHENTICATED:
        return StorageUnauthorized(
            f"MongoDB refuses the credentials ({message:.300}); check user, password and authSource"
        )
    if error.code == UNAUTHORIZED:
        command = re.search(r"to execute command \{ (\w+):", message)
        if command is not None and (command[1] in _WRITING or "$merge" in message):
            return StorageReadOnly(
                f"the MongoDB user may not write ({message:.300}); grant it readWrite"
            )
        return StorageUnauthorized(
            f"the MongoDB user may not read ({message:.300}); grant it readWrite"
        )
    if error.code in _TRANSIENT:
        return StorageUnavailable(f"MongoDB kept changing its primary: {message:.300}")
    if "too large" in message or "Exceeds" in message or error.code in _TOO_LARGE:
        return InvalidInput(f"MongoDB cannot hold this as one document: {message:.300}")
    return StorageError(f"MongoDB failed: {message:.300}")
