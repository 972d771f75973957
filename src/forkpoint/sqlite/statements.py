"""SQLite: running the statements of a transaction."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from operator import itemgetter
from typing import Any, TypeAlias

from forkpoint.clocks import StoreClock, noted_time
from forkpoint.sqlite.errors import is_locked

_CLOCK_NOTED_AFTER = 1_000_000  # microseconds by which the store's time is later than it was noted
_READS_PER_CHANGE = 4  # rows that are read in the time in which one is changed, or in less
_INSERTED_ROWS = 50  # by one statement
_LONGEST_MILLISECONDS = 2**31 - 1  # of a busy timeout
BATCH = 500
"""How many values are bound in one statement. SQLite's own limit was 999 once."""

Values: TypeAlias = Sequence[Any] | Mapping[str, Any]


class Statements:
    """The statements of a connection, which has one transaction at a time.

    Args:
        connection: The connection.
        patience: For how many seconds to wait for a lock. A transaction holds all that it needs,
            except for a moment in which another process repairs what a third one left as it died.
        clock: The store's time.

    Attributes:
        default_turn_rows: How many rows long work reads or changes before its transaction ends.
        turn_rows: The same for the current transaction.
    """

    default_turn_rows = 1000

    def __init__(self, connection: sqlite3.Connection, patience: float, clock: StoreClock) -> None:
        self._clock = clock
        self._connection = connection
        self._patience = patience
        self.begin_transaction(None)

    def begin_transaction(self, turn_rows: int | None) -> None:
        """Count anew what is read and changed.

        Args:
            turn_rows: As above, if it is not the default.
        """
        self.turn_rows = self.default_turn_rows if turn_rows is None else turn_rows
        self._changes_before = self._connection.total_changes
        self._rows_read = 0

    def is_spent(self) -> bool:
        """Return whether the transaction has done so much that others should have their turn."""
        changed = self._connection.total_changes - self._changes_before
        return changed + self._rows_read // _READS_PER_CHANGE >= self.turn_rows

    def count_read(self, rows: int) -> None:
        """Count rows that were read as work of the transaction."""
        self._rows_read += rows

    def now(self) -> int:
        """Return the store's time, in microseconds since 1970."""
        return self._clock.now()

    def keep_time(self, *, is_write: bool) -> None:
        """Read the latest time that the store is known to have had, and note a later one."""
        row = self.row("SELECT value FROM forkpoint_settings WHERE name = 'clock'")
        noted = 0 if row is None else noted_time(row[0])
        self._clock.learn(noted)
        now = self._clock.now()
        if is_write and now > noted + _CLOCK_NOTED_AFTER:
            self.run(
                "INSERT OR REPLACE INTO forkpoint_settings (name, value) VALUES ('clock', ?)",
                (now,),
            )

    def run(self, sql: str, values: Values = ()) -> sqlite3.Cursor:
        """Run a statement with values for its question marks, or for its names."""
        cursor = self._connection.cursor()
        cursor.row_factory = None  # a connection that was passed may have one
        try:
            return cursor.execute(sql, values)
        except sqlite3.OperationalError as error:
            if not (is_locked(error) and self._patience):
                raise
        milliseconds = min(int(1000 * self._patience), _LONGEST_MILLISECONDS)
        self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
        try:
            return cursor.execute(sql, values)
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")

    def row(self, sql: str, values: Values = ()) -> tuple[Any, ...] | None:
        """Run a query, and return its first row."""
        row: tuple[Any, ...] | None = self.run(sql, values).fetchone()
        return row

    def rows(self, sql: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Run a query, and return its rows."""
        return self.run(sql, values).fetchall()

    def run_each(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each row of values."""
        self._connection.executemany(sql, rows)

    def insert(self, statement: str, rows: Iterable[tuple[Any, ...]], end: str = "") -> int:
        """Insert rows by as few statements as possible: each releases the interpreter's lock.

        Returns:
            How many rows were inserted or changed.
        """
        rest = iter(rows)
        number = 0
        while batch := list(islice(rest, _INSERTED_ROWS)):
            sql = _insertion(statement, len(batch), len(batch[0]), end)
            number += self.run(sql, list(chain.from_iterable(batch))).rowcount
        return number

    def create_function(self, name: str, arguments: int, function: Callable[..., Any]) -> None:
        """Let statements call a function from now on."""
        self._connection.create_function(name, arguments, function)


@lru_cache
def _insertion(statement: str, rows: int, columns: int, end: str) -> str:
    return statement + ", ".join([f"({placeholders(range(columns))})"] * rows) + end


def numbered(statement: str) -> tuple[str, Callable[[Sequence[Any]], tuple[Any, ...]]]:
    """Return a statement that has `?1`, `?2` and so on with plain question marks instead.

    Python 3.12 warns of each of the others, which takes longer than the statement, and names would
    take longer everywhere.

    Returns:
        The statement, and what puts its values into the order of the question marks.
    """
    numbers = [int(number) - 1 for number in _NUMBERED.findall(statement)]
    return _NUMBERED.sub("?", statement), itemgetter(*numbers)


_NUMBERED = re.compile(r"\?(\d+)")


def placeholders(values: Collection[Any]) -> str:
    """Return a question mark for each value."""
    return ", ".join("?" * len(values))
