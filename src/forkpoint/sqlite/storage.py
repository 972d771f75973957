"""SQLite: the store of a saver, over one connection that all its threads share."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator

from forkpoint.at_fork import close_at_fork, renew_in_child
from forkpoint.errors import SaverClosed, StorageBusy, StorageError
from forkpoint.runtime.steps import Locked, Steps
from forkpoint.sqlite.connections import Connector
from forkpoint.sqlite.errors import typed_errors
from forkpoint.sqlite.full_disk import (
    ROWS_ON_FULL_DISK,
    check_disk,
    is_full,
    restart_log,
    unlimited_pages,
)
from forkpoint.sqlite.put_queue import PutQueue
from forkpoint.sqlite.setup import INCREMENTAL, pragma, prepare
from forkpoint.sqlite.transactions import Transaction, Transactions
from forkpoint.storage.interface import Session, Storage
from forkpoint.storage.rows import PutRequest, ThreadRef


class SqliteStorage(Storage):
    """One SQLite connection, shared by all threads of a process under a lock.

    It is closed before a fork, and opened again where it is needed.

    Args:
        connector: Where the connection comes from.
        durability: `"full"` or `"normal"`; see `SqliteSaver`.
        busy_timeout: For how many seconds a call waits for others who write.
        tombstone_ttl: For how many microseconds it is known that a thread was deleted.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        durability: str,
        busy_timeout: float | None,
        tombstone_ttl: int,
    ) -> None:
        self._history = 0
        self._connector = connector
        self._durability = durability
        self._connection: sqlite3.Connection | None = None
        self._schema: int | None = None
        """SQLite's version of the schema when the tables were made or checked last."""
        self._was_prepared = False
        self._process = 0
        self._closed = False
        self._is_forking = False
        self._transactions = Transactions(
            self._open,
            self._is_prepared,
            connector,
            timeout=busy_timeout,
            tombstone_ttl=tombstone_ttl,
        )
        self._puts = PutQueue(self._transactions, connector, lambda: self._history)
        connector.disconnect = self._is_disconnected
        renew_in_child(self)
        close_at_fork(self)

    def __del__(self) -> None:
        # Closed by SQLite alone, it would write its log into a file that was restored meanwhile.
        with contextlib.suppress(Exception):
            self._disconnect()

    @property
    def history(self) -> int:
        return self._history

    def look(self) -> None:
        is_known = self._was_prepared and self.open_session is None
        if is_known and (self._connection is None or not self._connector.is_current()):
            with self.reading():
                pass  # it opens what is there now

    @property
    def open_session(self) -> Session | None:
        return self._transactions.session_here

    def setup(self) -> None:
        with self._locked():
            self._schema = None  # somebody may have dropped a table
        with self.reading():
            pass  # it makes what is missing

    def reading(self) -> Transaction:
        return Transaction(self._transactions, is_write=False)

    def writing(self) -> Transaction:
        return Transaction(self._transactions, is_write=True)

    @contextlib.contextmanager
    def unstored(self) -> Iterator[Session]:
        transaction = Transaction(self._transactions, is_write=True, is_kept=False)
        with (
            self._locked(),
            typed_errors(),
            unlimited_pages(self._open()),
            transaction as session,
        ):
            yield session

    def save_room(self) -> None:
        if not is_full(self._connector.path):
            self._transactions.turn_rows = None
            return
        self._transactions.turn_rows = ROWS_ON_FULL_DISK
        with contextlib.suppress(Locked, StorageError), self._locked(), typed_errors():
            connection = self._open()
            self._transactions.without_waiting(connection, lambda: restart_log(connection))

    def check_free(self) -> None:
        self._transactions.check_free()

    def let_go(self) -> None:
        self._transactions.let_go()
        self._puts.let_go()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._transactions.acquire()
            yield
        finally:
            self._transactions.let_go()

    def put(self, put: PutRequest) -> Steps[ThreadRef | None]:
        return self._puts.put(put)

    def tidy(self) -> bool:
        # The space that a busy database keeps now is given back after the next deletion.
        with contextlib.suppress(Locked, StorageBusy), self._locked(), typed_errors():
            connection = self._open()
            if pragma(connection, "auto_vacuum") != INCREMENTAL or connection.in_transaction:
                return False
            free = pragma(connection, "freelist_count")
            if free < _FEWEST_FREE_PAGES:
                return False
            with contextlib.suppress(sqlite3.OperationalError):
                self._transactions.without_waiting(connection, lambda: _vacuum(connection))
                return 0 < pragma(connection, "freelist_count") < free
        return False

    def close(self) -> None:
        with self._locked(), typed_errors():
            self._closed = True
            self._disconnect()

    # At a fork

    def before_fork(self) -> None:
        if self._transactions.is_held_here:
            return  # a signal handler forks: the child gets an error that says so
        self._is_forking = True  # first: `after_fork` releases what an interrupt leaves
        self._transactions.acquire(threading.TIMEOUT_MAX)
        if not self._connector.may_be_inherited:
            self._disconnect()

    def after_fork(self) -> None:
        if self._is_forking:
            self._transactions.let_go()
            self._is_forking = False

    def _become_child(self) -> None:
        self._is_forking = False
        self._transactions.renew()
        self._puts.renew()

    # The connection. The caller holds the lock.

    def _open(self) -> sqlite3.Connection:
        """Return the connection, ready for use."""
        connection = self._connection
        if connection is not None and not self._is_usable(connection):
            self._disconnect()
            connection = None
        if connection is None:
            if self._closed:
                raise SaverClosed("the saver is closed")
            connection = self._connect()
            self._connection, self._process = connection, os.getpid()
        elif self._schema is None:
            self._prepare(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = self._connector.connect()
        self._transactions.adopt(connection)
        try:
            self._prepare(connection)
        except BaseException as error:
            if self._connector.is_owned:
                connection.close()  # at once: the error would keep it
            if isinstance(error, sqlite3.OperationalError):
                check_disk(self._connector.path, error)
            raise
        self._connector.note_opened(connection)
        return connection

    def _is_disconnected(self) -> bool:
        """Close the connection to a file that lost its name, unless the connection is in use."""
        if self._transactions.is_held_here:
            return False
        try:
            if not self._transactions.is_acquired():
                return False
            self._disconnect()
            return True
        finally:
            self._transactions.let_go()

    def _is_usable(self, connection: sqlite3.Connection) -> bool:
        if self._process == os.getpid():
            return self._connector.is_current()
        return self._connector.may_be_inherited

    def _disconnect(self) -> None:
        connection = self._connection
        self._connection = self._schema = None
        if connection is None:
            return
        if self._process != os.getpid() and not self._connector.may_be_inherited:
            # A child that closed or dropped the connection of its parent would harm the parent.
            _inherited.append(connection)
            return
        if not self._connector.is_owned:
            return
        try:
            self._connector.close(connection)
        except StorageBusy:
            self._connection = connection
            raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._transactions.end_leftover(connection)
        self._transactions.without_waiting(
            connection, lambda: prepare(connection, self._durability)
        )
        self._schema = pragma(connection, "schema_version")
        if self._was_prepared:
            self._history += 1  # the database may be another one by now
        self._was_prepared = True

    def _is_prepared(self, connection: sqlite3.Connection) -> bool:
        """Return whether the tables still are those that were prepared.

        SQLite's version of the schema is another one if a table was dropped or a backup restored.
        """
        if pragma(connection, "schema_version") == self._schema:
            self._connector.note_log()
            return True
        self._schema = None
        return False


_inherited: list[sqlite3.Connection] = []
"""Connections of the parent, in a process that was forked without Python's knowledge."""


_FEWEST_FREE_PAGES = 64  # that are worth giving back; most databases have pages of 4 KB
_PAGES_AT_ONCE = 1024  # that are given back while all others wait


def _vacuum(connection: sqlite3.Connection) -> None:
    # As a script: `execute` would stop after the first page.
    connection.executescript(f"PRAGMA main.incremental_vacuum({_PAGES_AT_ONCE})")
    pragma(connection, "main.wal_checkpoint(PASSIVE)")
