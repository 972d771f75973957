"""SQLite: one connection for all threads, its transactions, its set-up and its errors."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

from forkpoint.errors import ForkpointError, SaverClosed, SchemaVersionError, StaleLease
from forkpoint.filters import contains_json
from forkpoint.group_commit import GroupCommit, Pending
from forkpoint.sqlite_errors import typed_errors
from forkpoint.sqlite_schema import SCHEMA
from forkpoint.sqlite_session import SqliteSession
from forkpoint.sqlite_transactions import Transaction, Transactions
from forkpoint.steps import Steps
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
        busy_timeout: For how many seconds a call waits for others who write.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        owned: bool,
        durability: str,
        busy_timeout: float | None,
    ) -> None:
        self._connect = connect
        self._owned = owned
        self._durability = durability
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._closed = False
        self._transactions = Transactions(self._open, owned=owned, timeout=busy_timeout)
        self._commits = GroupCommit(self._transactions, self._put_all)
        _storages.add(self)

    def setup(self) -> None:
        with self._locked(), typed_errors():
            self._open()

    def reading(self) -> Transaction:
        return Transaction(self._transactions, is_write=False)

    def writing(self) -> Transaction:
        return Transaction(self._transactions, is_write=True)

    def check_free(self) -> None:
        self._transactions.check_free()

    def let_go(self) -> None:
        self._transactions.let_go()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._transactions.acquire()
            yield
        finally:
            self._transactions.let_go()

    def put(self, put: Put) -> Steps[ThreadRef | None]:
        pending = _Put(put, self._commits)
        yield pending
        pending.check()
        return pending.written

    def _put_all(self, batch: Sequence[_Put]) -> None:
        """Put what is waiting in one transaction, so that many share the cost of one commit."""
        transactions = self._transactions
        session = transactions.begin(is_write=True)
        try:
            with typed_errors():
                for pending in batch:
                    pending.store(session)
                transactions.commit()
        except ForkpointError as error:
            transactions.roll_back()
            if len(batch) > 1:  # one of them may be what failed
                for pending in batch:
                    self._put_all([pending])
                return
            batch[0].error = error
        for pending in batch:
            pending.done = True

    def tidy(self) -> bool:
        with self._locked(), typed_errors():
            connection = self._open()
            if _pragma(connection, "auto_vacuum") != _INCREMENTAL:
                return False
            free = _pragma(connection, "freelist_count")
            if free < _TIDY_PAGES:
                return False
            # Space that a busy database keeps now is given back after the next deletion.
            with contextlib.suppress(sqlite3.OperationalError):
                self._transactions.at_once(connection, lambda: _vacuum(connection))
                return 0 < _pragma(connection, "freelist_count") < free
            return False

    def close(self) -> None:
        with self._locked():
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


class _Put(Pending):
    """A `Put` on its way into the database, and the thread that it was written to."""

    def __init__(self, put: Put, commits: GroupCommit[_Put]) -> None:
        super().__init__(commits)
        self._put = put
        self.written: ThreadRef | None = None

    def store(self, session: SqliteSession) -> None:
        try:
            self.written, self.error = session.put(self._put), None
        except (Stale, StaleLease) as stale:  # raised before anything is written
            self.error = stale


_storages: weakref.WeakSet[SqliteStorage] = weakref.WeakSet()


def _renew_locks() -> None:
    for storage in _storages:
        storage._transactions.renew()
        storage._commits.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

_INCREMENTAL = 2  # the value of PRAGMA auto_vacuum
_TIDY_PAGES = 64  # free pages, of 4 KB as a rule, that are worth giving back
_TIDIED_PAGES = 1024  # at once, while all others wait
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


def _vacuum(connection: sqlite3.Connection) -> None:
    # As a script: `execute` would stop after the first page.
    connection.executescript(f"PRAGMA incremental_vacuum({_TIDIED_PAGES})")
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


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
