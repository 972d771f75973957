"""SQLite: one connection for all threads, its transactions, its set-up and its errors."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable

from forkpoint.errors import (
    CorruptChunk,
    ForkpointError,
    InvalidInput,
    SaverClosed,
    SchemaVersionError,
    StaleLease,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageReadOnly,
)
from forkpoint.filters import contains_json
from forkpoint.group_commit import GroupCommit, Steps, Waiting
from forkpoint.sqlite_schema import SCHEMA
from forkpoint.sqlite_session import SqliteSession
from forkpoint.storage import SCHEMA_VERSION, Put, Stale, ThreadRef

BUSY_TIMEOUT_SECONDS = 60.0
"""How long to wait for another process's write transaction."""


class SqliteStorage:
    """One SQLite connection, shared by all threads of a process under a lock.

    Args:
        connect: Opens the connection. It is called again in a forked child process, where a
            connection of the parent must not be used.
        owned: Whether to close the connection.
        durability: `"full"` or `"normal"`; see `SqliteSaver`.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], *, owned: bool, durability: str
    ) -> None:
        self._connect = connect
        self._owned = owned
        self._durability = durability
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._closed = False
        self._commits = GroupCommit(self._put_all)
        _storages.add(self)

    def setup(self) -> None:
        with self._lock, _typed_errors():
            self._open()

    def reading(self) -> _Transaction:
        return _Transaction(self, "BEGIN")

    def writing(self) -> _Transaction:
        return _Transaction(self, "BEGIN IMMEDIATE")

    def put(self, put: Put) -> Steps[ThreadRef | None]:
        waiting = _Put(put, self._commits)
        yield waiting
        waiting.check()
        return waiting.written

    def _put_all(self, batch: list[_Put]) -> None:
        """Put what is waiting in one transaction, so that many share the cost of one commit."""
        try:
            with _typed_errors():
                connection = self._open()
                _begin(connection, "BEGIN IMMEDIATE")
                try:
                    session = SqliteSession(connection)
                    for waiting in batch:
                        waiting.store(session)
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        except ForkpointError as error:
            if len(batch) == 1:
                batch[0].error = error
            else:  # one of them may be what failed
                for waiting in batch:
                    self._put_all([waiting])
        for waiting in batch:
            waiting.done = True

    def tidy(self) -> None:
        with self._lock, _typed_errors():
            connection = self._open()
            if _pragma(connection, "auto_vacuum") != _INCREMENTAL:
                return
            if _pragma(connection, "freelist_count") < _TIDY_PAGES:
                return
            # Space that a busy database keeps now is given back after the next deletion.
            with contextlib.suppress(sqlite3.OperationalError):
                # As a script: `execute` would stop after the first page.
                connection.executescript("PRAGMA incremental_vacuum")
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
            if connection is not None and self._owned and self._process == os.getpid():
                connection.close()

    def _open(self) -> sqlite3.Connection:
        """Return the connection, ready for use. The caller holds the lock."""
        if self._connection is None or self._process != os.getpid():
            if self._closed:
                raise SaverClosed("the saver is closed")
            # A connection that a forked child inherits must be neither used nor closed there: that
            # would release the parent's locks on the file.
            self._inherited = self._connection
            connection = self._connect()
            _prepare(connection, self._durability)
            self._connection, self._process = connection, os.getpid()
        return self._connection

    @property
    def _lock(self) -> threading.Lock:
        return self._commits.lock


class _Put(Waiting):
    """A `Put` on its way into the database, and the thread that it was written to."""

    def __init__(self, put: Put, commits: GroupCommit[_Put]) -> None:
        super().__init__()
        self._put = put
        self._commits = commits
        self.written: ThreadRef | None = None

    def ride(self) -> None:
        self._commits.put(self)

    def store(self, session: SqliteSession) -> None:
        try:
            self.written, self.error = session.put(self._put), None
        except (Stale, StaleLease) as stale:  # raised before anything is written
            self.error = stale


class _Transaction:
    """A transaction, from its beginning to its commit, or to its rollback after an exception."""

    def __init__(self, storage: SqliteStorage, begin: str) -> None:
        self._storage = storage
        self._begin = begin

    def __enter__(self) -> SqliteSession:
        self._lock = self._storage._lock
        self._lock.acquire()
        try:
            with _typed_errors():
                self._connection = self._storage._open()
                _begin(self._connection, self._begin)
        except BaseException:
            self._lock.release()
            raise
        return SqliteSession(self._connection)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None:
                self._connection.execute("COMMIT")
        except sqlite3.Error as failure:
            error = failure
        finally:
            try:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            finally:
                self._lock.release()
        if isinstance(error, sqlite3.Error):
            raise _typed(error) from error


def _begin(connection: sqlite3.Connection, begin: str) -> None:
    if connection.in_transaction:
        raise InvalidInput(
            "the connection that was passed has an open transaction; commit it or roll it back "
            "first"
        )
    connection.execute(begin)


_storages: weakref.WeakSet[SqliteStorage] = weakref.WeakSet()


def _renew_locks() -> None:
    for storage in _storages:
        storage._commits.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

_INCREMENTAL = 2  # the value of PRAGMA auto_vacuum
_TIDY_PAGES = 64  # free pages, of 4 KB as a rule, that are worth giving back
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}


def _prepare(connection: sqlite3.Connection, durability: str) -> None:
    """Make the tables if they are missing, and set what holds for a connection."""
    connection.create_function("forkpoint_contains", 2, _contains, deterministic=True)
    version = _version(connection)
    if version is None:
        if not _pragma(connection, "page_count"):
            connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        _retry_while_locked(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchall())
        _create(connection)
        version = _version(connection)
    if version is not None and version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has forkpoint's schema version {version}, and this forkpoint knows "
            f"{SCHEMA_VERSION}; upgrade forkpoint"
        )
    connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(
            "INSERT OR IGNORE INTO forkpoint_settings (name, value) VALUES ('schema_version', ?)",
            (SCHEMA_VERSION,),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int | None:
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'forkpoint_settings'"
    if _scalar(connection, known) is None:
        return None
    return _scalar(connection, "SELECT value FROM forkpoint_settings WHERE name = 'schema_version'")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return _scalar(connection, f"PRAGMA {name}") or 0


def _scalar(connection: sqlite3.Connection, sql: str) -> int | None:
    cursor = connection.cursor()
    cursor.row_factory = None  # a connection that was passed may have one
    row = cursor.execute(sql).fetchone()
    return None if row is None else int(row[0])


def _contains(stored: str, wanted: str) -> bool:
    try:
        return contains_json(stored, json.loads(wanted))
    except (ValueError, RecursionError, TypeError):
        return True  # whoever reads the row finds that it is damaged, and which one it is


def _retry_while_locked(action: Callable[[], object]) -> None:
    """Switching to WAL does not wait for other connections by itself."""
    until = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


class _typed_errors:
    """Turn what SQLite raises into a `ForkpointError`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise _typed(error) from error


def _typed(error: sqlite3.Error) -> Exception:
    """Return the `ForkpointError` for what SQLite reports.

    By message: Python 3.10 does not give the error's code.
    """
    message = str(error)
    if "is full" in message:
        return StorageFull(f"{message}; nothing was written")
    if "readonly" in message:
        return StorageReadOnly(f"the database is read-only: {message}")
    if "locked" in message:
        return StorageBusy(f"{message}: another process or connection holds a transaction open")
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
