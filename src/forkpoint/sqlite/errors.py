"""SQLite: its errors as `ForkpointError`s."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from forkpoint.errors import (
    CorruptChunk,
    InvalidInput,
    SaverClosed,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageReadOnly,
)

_T = TypeVar("_T")


class typed_errors:
    """A context in which SQLite's errors become `ForkpointError`s."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise typed_error(error) from error


def is_locked(error: sqlite3.Error) -> bool:
    """Return whether another process or connection holds a lock that a statement needs."""
    return "locked" in str(error)


def busy_error(error: sqlite3.Error) -> StorageBusy:
    """Return the error of a call that has waited for a lock for as long as it may."""
    return StorageBusy(f"{error}: another process or connection holds a transaction open")


class _CallbackError(threading.local):
    error: BaseException | None = None


_callback_error = _CallbackError()
"""What a function of ours raised last when SQLite called it on this thread.

SQLite reports the same error whatever it was."""


def callback_of(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return a function for SQLite to call. `typed_error` returns what it raises: an interrupt."""

    def call(*arguments: Any) -> _T:
        try:
            return function(*arguments)
        except BaseException as error:
            _callback_error.error = error
            raise

    return call


def typed_error(error: sqlite3.Error) -> BaseException:
    """Return the `ForkpointError` for an error of SQLite, or the interrupt that it hides.

    It goes by the message: Python 3.10 does not give the error's code.
    """
    message = str(error)
    inside, _callback_error.error = _callback_error.error, None
    if "user-defined function" in message:  # ours raises nothing by itself
        return inside or KeyboardInterrupt()
    if "is full" in message:
        return StorageFull(
            f"{message}; nothing was written. Reading and searching go on to work, and so does "
            "deleting while the log of the database has room: delete threads, or free some space"
        )
    if "readonly" in message:
        return StorageReadOnly(
            f"the database is read-only: {message}; a saver, also one that only reads, needs to "
            "write to the file and its directory"
        )
    if "unable to open" in message:
        return StorageError(
            f"{message}: its directory must be there, and whoever runs this must be allowed to "
            "read and write the file and its directory"
        )
    if is_locked(error):
        return busy_error(error)
    if "not a database" in message or "file is encrypted" in message:
        return InvalidInput(f"the file is no SQLite database: {message}")
    if "decode to UTF-8" in message:
        return CorruptChunk(f"a stored value is not of the type that was written: {message}")
    if "closed" in message:
        return SaverClosed(message)
    if "created in a thread" in message:
        return InvalidInput(
            "the sqlite3.Connection may be used in one thread only; open it with "
            "check_same_thread=False"
        )
    return StorageError(f"SQLite failed: {message}")
