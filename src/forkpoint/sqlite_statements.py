"""SQLite: running statements within a transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

_INSERTED = 50  # rows inserted by one statement
_BATCH = 500  # values bound in one statement; SQLite's own limit was 999 once


class Statements:
    """The statements of one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, sql: str, *values: Any, **named: Any) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        cursor.row_factory = None  # a connection that was passed may have one
        return cursor.execute(sql, named or values)

    def insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows by as few statements as possible: each lets go of the interpreter's lock."""
        for batch in batches(rows, _INSERTED):
            row = f"({marks(batch[0])})"
            values = (value for one in batch for value in one)
            self.run(statement + ", ".join([row] * len(batch)), *values)

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self.run(sql, *values).fetchone()
        return row

    def all(self, sql: str, *values: Any, **named: Any) -> list[tuple[Any, ...]]:
        return self.run(sql, *values, **named).fetchall()


def time_now() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1000


def marks(values: Collection[Any]) -> str:
    """Return a question mark for each value."""
    return ", ".join("?" * len(values))


_T = TypeVar("_T")


def batches(values: Collection[_T], size: int = _BATCH) -> Iterator[list[_T]]:
    """Return values in lists that fit into one statement."""
    listed = list(values)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]
