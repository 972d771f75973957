"""SQLite: running statements within a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

from forkpoint.clocks import StoreClock
from forkpoint.sqlite.errors import is_locked

_NOTED_AFTER = 1_000_000  # microseconds by which the store's time is later than it was noted
_READ_PER_CHANGE = 4  # rows that are read in the time in which one is changed, or in less
_INSERTED = 50  # rows inserted by one statement
_LONGEST_MILLISECONDS = 2**31 - 1  # of a busy timeout
_BATCH = 500  # values bound in one statement; SQLite's own limit was 999 once


class Statements:
    """The statements of one transaction.

    Args:
        connection: The connection.
        patience: For how many seconds to wait for a lock. The transaction holds all that it needs,
            but for a moment in which another process mends what a third one left as it died.
        clock: The store's time.

    Attributes:
        turn_rows: How many rows long work reads or changes before its transaction ends.
    """

    turn_rows = 1000

    def __init__(self, connection: sqlite3.Connection, patience: float, clock: StoreClock) -> None:
        self._clock = clock
        self._connection = connection
        self._patience = patience
        self._changes_before = connection.total_changes
        self._read = 0

    def now(self) -> int:
        """Return the store's time, in microseconds since 1970."""
        return self._clock.now()

    def keep_time(self, *, is_write: bool) -> None:
        """Look which time the store has had, and note a later one."""
        row = self.one("SELECT value FROM forkpoint_settings WHERE name = 'clock'")
        noted = 0 if row is None else int(row[0])
        self._clock.learn(noted)
        now = self._clock.now()
        if is_write and now > noted + _NOTED_AFTER:
            self.run(
                "INSERT OR REPLACE INTO forkpoint_settings (name, value) VALUES ('clock', ?)", now
            )

    def is_spent(self) -> bool:
        changed = self._connection.total_changes - self._changes_before
        return changed + self._read // _READ_PER_CHANGE >= self.turn_rows

    def count_read(self, rows: int) -> None:
        """Let rows that were read count for what a transaction has done."""
        self._read += rows

    def run(self, sql: str, *values: Any, **named: Any) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        cursor.row_factory = None  # a connection that was passed may have one
        try:
            return cursor.execute(sql, named or values)
        except sqlite3.OperationalError as error:
            if not (is_locked(error) and self._patience):
                raise
        milliseconds = min(int(1000 * self._patience), _LONGEST_MILLISECONDS)
        self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
        try:
            return cursor.execute(sql, named or values)
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")

    def create_function(self, name: str, arguments: int, function: Callable[..., Any]) -> None:
        """Let statements call a function from now on."""
        self._connection.create_function(name, arguments, function)

    def insert(self, statement: str, rows: Sequence[tuple[Any, ...]], end: str = "") -> None:
        """Insert rows by as few statements as possible: each lets go of the interpreter's lock."""
        for start in range(0, len(rows), _INSERTED):
            batch = rows[start : start + _INSERTED]
            sql = _insertion(statement, len(batch), len(batch[0]), end)
            self.run(sql, *chain.from_iterable(batch))

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self.run(sql, *values).fetchone()
        return row

    def all(self, sql: str, *values: Any, **named: Any) -> list[tuple[Any, ...]]:
        return self.run(sql, *values, **named).fetchall()


@lru_cache
def _insertion(statement: str, rows: int, columns: int, end: str) -> str:
    return statement + ", ".join([f"({marks(range(columns))})"] * rows) + end


def marks(values: Collection[Any]) -> str:
    """Return a question mark for each value."""
    return ", ".join("?" * len(values))


_T = TypeVar("_T")


def batches(values: Collection[_T], size: int = _BATCH) -> Iterator[list[_T]]:
    """Return values in lists that fit into one statement."""
    listed = list(values)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]
