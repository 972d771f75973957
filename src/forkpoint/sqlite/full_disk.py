"""SQLite on a full disk: what works without free space, and how some is made."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator

from forkpoint.errors import StorageFull

ROWS_ON_FULL_DISK = 20
"""How many rows a transaction removes: each of them is overwritten by way of the log."""

RESERVED_BYTES = 16 * 2**20
_SECONDS_BETWEEN_LOOKS = 0.1
_SOON_FULL_BYTES = 16 * RESERVED_BYTES  # less than that others may fill between two looks
_MOST_PAGES = 2**30  # of a database, in all versions of SQLite
_ROOM_BYTES = 64 * 1024  # SQLite needs 32 KB beside a database to open it


@contextlib.contextmanager
def unlimited_pages(connection: sqlite3.Connection) -> Iterator[None]:
    """A context in which the transactions of a connection may take any number of pages, in memory.

    They must not be committed.
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
    """Copy the whole log into the database, so that the next transaction writes from its start.

    The log keeps its length, which is space for what comes.
    """
    cursor = connection.cursor()
    cursor.row_factory = None  # a connection that was passed may have one
    cursor.execute("PRAGMA main.wal_checkpoint(RESTART)").fetchall()


def is_full(path: str | None) -> bool:
    """Return whether the disk of a database has no more free space than the reserve."""
    return path is not None and _free_bytes(path) < RESERVED_BYTES


def _free_bytes(path: str) -> int:
    """Return the free space of the disk that a file is on; its name may be a link on another."""
    try:
        return shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    except OSError:  # opening the database reports what is wrong
        return RESERVED_BYTES


class Reserve:
    """Space on a disk that puts leave free, because a deletion takes space before it frees any.

    A deletion first writes to the log. The log starts over only when all of it is in the database,
    and that grows by what the log has: so it takes the space of the log once more.
    """

    def __init__(self) -> None:
        self._next_look = 0.0

    def check(self, path: str | None) -> None:
        """Check that the disk of a database has more free space than the reserve.

        Now and then, and each time where there is not much more of it.

        Raises:
            StorageFull: It has not.
        """
        now = time.monotonic()
        if path is None or now < self._next_look:
            return
        free = _free_bytes(path)
        if free < RESERVED_BYTES:
            raise StorageFull(
                f"the disk of {path} is full but for {RESERVED_BYTES // 2**20} MB, which are kept "
                "for deleting; nothing was written. Delete threads, or free some space"
            )
        if free > _SOON_FULL_BYTES:
            self._next_look = now + _SECONDS_BETWEEN_LOOKS


def check_disk(path: str | None, error: sqlite3.Error) -> None:
    """Check that a database could not be opened for another reason than a full disk.

    Args:
        path: The path of the database.
        error: The error that SQLite raised.

    Raises:
        StorageFull: The disk is full.
    """
    if path is None or "I/O error" not in str(error):
        return
    directory = os.path.dirname(os.path.realpath(path))
    if _free_bytes(path) < _ROOM_BYTES:
        raise StorageFull(
            f"{error}: the disk of {directory} is full, and to open {path} SQLite needs "
            f"{_ROOM_BYTES} bytes beside it; free as much, and delete threads then"
        ) from error
