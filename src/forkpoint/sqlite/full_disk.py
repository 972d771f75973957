"""SQLite on a full disk: what can be done without room, and what room can be made."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator

from forkpoint.errors import StorageFull

ROWS_ON_FULL_DISK = 20
"""How many rows are removed in a transaction, each of which is overwritten through the log."""

RESERVED_BYTES = 16 * 2**20
_SECONDS_BETWEEN_LOOKS = 0.1
_MOST_PAGES = 2**30  # of a database, in all versions of SQLite
_ROOM_BYTES = 64 * 1024  # SQLite needs 32 KB beside a database to open it


@contextlib.contextmanager
def unlimited_pages(connection: sqlite3.Connection) -> Iterator[None]:
    """Let transactions of a connection take as many pages as they like, all of them in memory.

    They are not to be committed.
    """
    cursor = connection.cursor()
    cursor.row_factory = None  # a connection that was passed may have one
    before = {
        name: cursor.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("max_page_count", "cache_spill")
    }
    try:
        cursor.execute(f"PRAGMA max_page_count = {_MOST_PAGES}").fetchall()
        cursor.execute("PRAGMA cache_spill = 0")
        yield
    finally:
        for name, value in before.items():
            cursor.execute(f"PRAGMA {name} = {value}").fetchall()


def restart_log(connection: sqlite3.Connection) -> None:
    """Write all of the log into the database, and let the next transaction begin at its start.

    The log keeps its length: that is room for what comes.
    """
    connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def is_full(path: str | None) -> bool:
    """Return whether the disk of a database has no more room than the reserve."""
    if path is None:
        return False
    try:
        return shutil.disk_usage(os.path.dirname(path)).free < RESERVED_BYTES
    except OSError:  # whoever opens the database says what is wrong
        return False


class Reserve:
    """The last of a disk, which no checkpoint is put into: deleting needs room before it makes any.

    To delete is to write to the log first. The log is begun anew once all of it is in the database,
    which grows by what was put since: so it takes as much as a log, and once more.
    """

    def __init__(self) -> None:
        self._looks_next = 0.0

    def check(self, path: str | None) -> None:
        """Look now and then at the disk that a database is on.

        Raises:
            StorageFull: It has no more room than the reserve.
        """
        now = time.monotonic()
        if now < self._looks_next:
            return
        if is_full(path):
            raise StorageFull(
                f"the disk of {path} is full but for {RESERVED_BYTES // 2**20} MB, which are kept "
                "for deleting; nothing was written. Delete threads, or free some space"
            )
        self._looks_next = now + _SECONDS_BETWEEN_LOOKS


def check_room(path: str | None, error: sqlite3.Error) -> None:
    """Say of an error as a database was opened whether it is for lack of room.

    Raises:
        StorageFull: It is.
    """
    if path is None or "I/O error" not in str(error):
        return
    directory = os.path.dirname(path)
    if shutil.disk_usage(directory).free < _ROOM_BYTES:
        raise StorageFull(
            f"{error}: the disk of {directory} is full, and to open {path} SQLite needs "
            f"{_ROOM_BYTES} bytes beside it; free as much, and delete threads then"
        ) from error
