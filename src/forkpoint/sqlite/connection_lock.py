"""SQLite: the lock of a connection, which all savers share that the connection was passed to."""

from __future__ import annotations

import sqlite3
import threading

from forkpoint.at_fork import Living


class ConnectionLock:
    """The lock under which a connection is used.

    Args:
        connection: The connection, if it was passed: others may share the lock.

    Attributes:
        rlock: The lock itself.
        thread: The thread that is in a transaction of the connection.
    """

    def __init__(self, connection: sqlite3.Connection | None = None) -> None:
        self.connection = connection
        self.renew()

    def renew(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self.rlock = threading.RLock()  # it knows its thread, so that no other can release it
        self.thread: int | None = None


_of_passed: Living[ConnectionLock] = Living()


def lock_of_passed(connection: sqlite3.Connection) -> ConnectionLock:
    """Return the lock of a connection that was passed: one for all its savers."""
    _of_passed.add(new := ConnectionLock(connection))
    # The oldest: that is the same for two threads that make a saver at once.
    return next((lock for lock in _of_passed.members() if lock.connection is connection), new)
