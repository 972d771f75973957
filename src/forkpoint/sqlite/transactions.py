"""SQLite: the transactions of one connection, which an interrupt at any point leaves usable.

All threads and savers of a process that use the connection share its lock. An exception at a bad
moment, from a signal handler for example, may leave the lock held and the transaction open.
`Transactions.let_go` ends both. It may be called at any time and any number of times. A
transaction calls it at its end. An interrupt can come even there, so whoever runs operations calls
it again after each exception (see `forkpoint.runtime.runner`).

The lock is never held while a call waits for another process: reads go on meanwhile.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable

from forkpoint.clocks import StoreClock
from forkpoint.errors import InvalidInput, StorageBusy
from forkpoint.runtime.steps import Locked, Patience, Retry, running
from forkpoint.sqlite.connections import Connector
from forkpoint.sqlite.errors import busy_error, is_locked, typed_error
from forkpoint.sqlite.session import SqliteSession
from forkpoint.storage.interface import HistoryChanged

OWN_CALLS_SECONDS = 10.0
"""For how long a call waits for others of the connection, though it may not wait for processes."""


class Transactions:
    """The transactions of one connection: one at a time, whichever thread they are of.

    Args:
        connect: Returns the connection, ready for use. It is called with the lock held, and calls
            `adopt` first. SQLite does not wait for others in a connection of our own.
        is_prepared: Returns whether it still is ready, asked within a transaction.
        connector: Where it comes from, which has its lock, and knows whether nobody else uses it,
            and whether it still is one to the file that has the name.
        timeout: For how many seconds a call waits for a lock that somebody else holds. By default
            that is the busy timeout of the connection.
        tombstone_ttl: For how many microseconds it is known that a thread was deleted.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        is_prepared: Callable[[sqlite3.Connection], bool],
        connector: Connector,
        *,
        timeout: float | None,
        tombstone_ttl: int,
    ) -> None:
        self._connect = connect
        self._is_prepared = is_prepared
        self.is_current = connector.is_current
        self._lock = connector.lock
        self._is_owned = connector.is_owned
        self._timeout = timeout
        # See `Statements`.
        self._patience = timeout if self._is_owned and timeout is not None else 0.0
        self._clock = StoreClock()
        self._tombstone_ttl = tombstone_ttl
        self.turn_rows: int | None = None
        """How many rows long work changes in a transaction, if not as many as usual."""
        self._forget_connection()

    def renew(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock.renew()
        self._forget_connection()

    def _forget_connection(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._session: SqliteSession | None = None
        self._milliseconds = 0  # its busy timeout, between our statements

    @property
    def timeout(self) -> float:
        """For how many seconds a call waits for a lock that somebody else holds."""
        return self._milliseconds / 1000 if self._timeout is None else self._timeout

    # The lock

    def acquire(self, timeout: float | None = None, *, since: float | None = None) -> None:
        """Wait for the lock.

        Args:
            timeout: For how many seconds. By default, as long as a call waits for others, or what
                those of this process may take.
            since: When that time began, by `time.monotonic`; now by default.

        Raises:
            StorageBusy: Other calls of this process held it for too long.
        """
        if self._lock.rlock.acquire(blocking=False):
            return
        seconds = left = max(self.timeout, OWN_CALLS_SECONDS) if timeout is None else timeout
        if since is not None:
            left = max(since + seconds - time.monotonic(), 0)
        if self._connection is None:  # it is being opened, which takes as long as it takes
            left = threading.TIMEOUT_MAX
        if not self._lock.rlock.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
            raise StorageBusy(
                f"other calls of this process held the connection for {seconds:g} seconds"
            )

    def is_acquired(self) -> bool:
        """Return whether the lock was free, and is this thread's now."""
        return self._lock.rlock.acquire(blocking=False)

    @property
    def is_held_here(self) -> bool:
        """Whether this thread holds the lock: it was interrupted in the middle of a call."""
        is_owned: bool = self._lock.rlock._is_owned()  # type: ignore[attr-defined] # as Condition does
        return is_owned

    @property
    def session_here(self) -> SqliteSession | None:
        """The session of the transaction that this thread is in."""
        return self._session if self._lock.thread == threading.get_ident() else None

    def check_free(self) -> None:
        """Refuse a call in the middle of another one of this thread.

        Raises:
            StorageBusy: This is such a call, from a signal handler for example.
        """
        if self._lock.thread == threading.get_ident():
            raise StorageBusy(
                "the saver was called in the middle of another call of the same thread, by a "
                "signal handler or a callback of SQLite; call it from another thread there"
            )

    def let_go(self) -> None:
        """Roll back the transaction of this thread, if it has one, and release its lock."""
        try:
            if self._lock.thread == threading.get_ident():
                self.roll_back()
        finally:
            # Not by `contextlib.suppress`, which takes longer than the rest.
            try:  # noqa: SIM105
                self._lock.rlock.release()
            except RuntimeError:
                pass  # this thread does not hold it

    # What happens under the lock

    def begin(self, *, is_write: bool) -> SqliteSession:
        """Begin a transaction.

        Raises:
            Locked: Another process writes, or repairs what a dead one left. Nothing was begun.
        """
        try:
            connection = self._begin(is_write)
            while not self._is_prepared(connection):  # somebody changed the tables
                connection.execute("ROLLBACK")
                connection = self._begin(is_write)
            session = self._session
            assert session is not None
            session.statements.begin_transaction(self.turn_rows)
            if self._clock.is_to_learn(is_write=is_write):
                session.statements.keep_time(is_write=is_write)
        except sqlite3.Error as error:
            if self._lock.thread is not None:
                self.roll_back()
            if is_locked(error):
                raise Locked(busy_error(error), self.timeout) from error
            raise typed_error(error) from error
        return session

    def _begin(self, is_write: bool) -> sqlite3.Connection:
        connection = self._connect()
        self.adopt(connection)  # again in a forked child, of a database in memory
        self.end_leftover(connection)
        self._lock.thread = threading.get_ident()
        try:
            if not is_write:
                connection.execute("BEGIN")
            elif self._is_owned:
                connection.execute("BEGIN IMMEDIATE")
            else:
                self.without_waiting(connection, lambda: connection.execute("BEGIN IMMEDIATE"))
        except sqlite3.Error:
            self._lock.thread = None  # an open transaction, if there is one, is not ours
            raise
        return connection

    def adopt(self, connection: sqlite3.Connection) -> None:
        """Begin to use a connection, before anything is done that may wait for others."""
        if connection is self._connection:
            return  # an interrupt may have left it without its own busy timeout
        if not self._is_owned:
            cursor = connection.cursor()
            cursor.row_factory = None  # the connection may have one
            (self._milliseconds,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        self._session = SqliteSession(connection, self._patience, self._clock, self._tombstone_ttl)
        self._connection = connection  # last: an interrupt before it has all of it done again

    def end_leftover(self, connection: sqlite3.Connection) -> None:
        """Roll back what an interrupt left open.

        Raises:
            InvalidInput: It is the transaction of somebody else, whose connection was passed.
        """
        if not connection.in_transaction:
            return
        if not self._is_owned:
            raise InvalidInput(
                "the connection that was passed has an open transaction; commit it or roll it "
                "back first"
            )
        connection.execute("ROLLBACK")  # nobody else uses it: an interrupt left it open

    def without_waiting(self, connection: sqlite3.Connection, action: Callable[[], object]) -> None:
        """Run an action on a connection, in which SQLite does not wait for others."""
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            action()
        finally:
            self._restore_timeout(connection)

    def _restore_timeout(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {self._milliseconds}")

    def commit(self) -> None:
        """Commit the transaction of this thread."""
        connection, session = self._connection, self._session
        assert connection is not None
        assert session is not None
        try:
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            # Without WAL, a commit waits for those who read.
            session.statements.run("COMMIT")
        self._lock.thread = None

    def roll_back(self) -> None:
        """Roll back the transaction of this thread, if it has not ended."""
        connection = self._connection
        assert connection is not None
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not self._is_owned:
                self._restore_timeout(connection)
        except sqlite3.Error as error:
            raise typed_error(error) from error
        finally:
            self._lock.thread = None


class Transaction:
    """A transaction, from its beginning to its commit, or to its rollback after an exception.

    Args:
        transactions: The transactions of the connection.
        is_write: Whether it may write.
        is_kept: Whether what it writes is committed. If not, it is rolled back at the end.
    """

    def __init__(self, transactions: Transactions, *, is_write: bool, is_kept: bool = True) -> None:
        self._transactions = transactions
        self._is_write = is_write
        self._is_kept = is_kept

    def __enter__(self) -> SqliteSession:
        self._transactions.check_free()  # what is begun is not to be rolled back
        patience: Patience | None = None
        while True:
            try:
                self._transactions.acquire()
                return self._transactions.begin(is_write=self._is_write)
            except Locked as locked:
                self._transactions.let_go()
                patience = patience or Patience()
                _wait_for_lock(locked, patience)
            except BaseException:
                self._transactions.let_go()
                raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None and self._is_kept:
                self._transactions.commit()
                if self._is_write:
                    running.may_leave = False  # it would write that again
                    if not self._transactions.is_current():  # that was to a file that is gone
                        raise HistoryChanged
        except sqlite3.Error as failure:
            error = failure
        finally:
            self._transactions.let_go()
        if error is not None and isinstance(error, sqlite3.Error):
            raise typed_error(error) from error


def _wait_for_lock(locked: Locked, patience: Patience) -> None:
    """Wait a moment, or leave the operation if it can be run again later.

    Raises:
        Retry: It can be run again.
        StorageBusy: It has waited for long enough.
    """
    if running.may_leave:
        raise Retry(locked)
    pause = patience.pause(locked.timeout)
    if pause is None:
        raise locked.error
    time.sleep(pause)
