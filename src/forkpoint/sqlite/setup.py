"""SQLite: making the tables that are missing, and the settings of a connection."""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from forkpoint.errors import CorruptChunk, InvalidInput, StorageError
from forkpoint.filters import may_contain_json
from forkpoint.sqlite.errors import callback_of, typed_errors
from forkpoint.sqlite.metadata import add_functions
from forkpoint.sqlite.schema import SCHEMA
from forkpoint.storage.interface import SCHEMA_VERSION
from forkpoint.storage.shared import check_schema_version

BUSY_TIMEOUT_SECONDS = 60.0
"""How long to wait for another process's write transaction."""

INCREMENTAL = 2
"""The value of `PRAGMA auto_vacuum` with which a database gives back space."""

_LOG = logging.getLogger("forkpoint")
_OF_LANGGRAPH = {"checkpoints", "writes"}  # the tables of LangGraph's own saver
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}
_INDEXES = frozenset(re.findall(r"INDEX .*?(forkpoint_\w+)\s+ON (forkpoint_\w+)", SCHEMA))
_TABLES = frozenset(re.findall(r"CREATE TABLE .*?(forkpoint_\w+)", SCHEMA))
_NAMES = _INDEXES | {(table, table) for table in _TABLES}  # each with that of its table


def has_tables(path: str) -> bool:
    """Return whether a file is a database with the tables in it. Nothing is made or changed.

    Raises:
        StorageError: The file cannot be read.
    """
    if not os.path.isfile(path):
        return False
    try:
        uri = Path(path).absolute().as_uri() + "?mode=ro"
        with typed_errors(), closing(sqlite3.connect(uri, uri=True)) as connection:
            return bool(_tables(connection))
    except InvalidInput:
        return False  # it is no database


def prepare(connection: sqlite3.Connection, durability: str) -> None:
    """Make the tables and indexes that are missing, and set the options of a connection.

    Other databases that are attached to a connection that was passed stay as they are.

    Raises:
        SchemaVersionError: They were made by a newer forkpoint.
        CorruptChunk: Some tables are missing, and others have rows.
    """
    contains = callback_of(_contains)
    connection.create_function("forkpoint_contains", 2, contains, deterministic=True)
    add_functions(connection)
    all_names = _all_names(connection)
    names = all_names & _NAMES
    if not names:
        _tell_of_others({table for _, table in all_names})
        if not pragma(connection, "page_count"):
            connection.execute(f"PRAGMA main.auto_vacuum = {INCREMENTAL}")
        _plain_cursor(connection).execute("PRAGMA main.journal_mode = WAL").fetchall()
    if ("forkpoint_settings", "forkpoint_settings") in names:
        _check_version(connection)
    if not names >= _NAMES:
        _create(connection)
        _check_version(connection)  # another process may have been faster
    connection.execute("PRAGMA main.secure_delete = ON")  # what is deleted is overwritten
    connection.execute(f"PRAGMA main.synchronous = {_SYNCHRONOUS[durability]}")
    if durability == "full":  # on macOS, a disk keeps what is synced in its cache without this
        connection.execute("PRAGMA fullfsync = ON")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {table for _, table in _all_names(connection)} & _TABLES


def _all_names(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return the names of all tables and indexes, each with that of its table.

    Raises:
        InvalidInput: The connection, which was passed, returns texts as something else.
    """
    rows = _plain_cursor(connection).execute("SELECT name, tbl_name FROM sqlite_master").fetchall()
    if rows and type(rows[0][0]) is not str:
        raise InvalidInput(
            f"the sqlite3.Connection returns texts as {type(rows[0][0]).__name__}: leave its "
            "text_factory as it is, and register no converter of TEXT"
        )
    return set(rows)


def _tell_of_others(tables: set[str]) -> None:
    """Warn whoever has replaced LangGraph's saver by this one: its threads seem to be gone."""
    if tables >= _OF_LANGGRAPH:
        _LOG.warning(
            "the database has checkpoints of langgraph-checkpoint-sqlite, which stay where they are"
            " and are not found here; forkpoint.transfer.import_threads(path, saver,"
            ' kind="langgraph-sqlite") brings them into the same file, or another'
        )


def _check_version(connection: sqlite3.Connection) -> None:
    sql = "SELECT value FROM forkpoint_settings WHERE name = 'schema_version'"
    row = _plain_cursor(connection).execute(sql).fetchone()
    check_schema_version(None if row is None else row[0])


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        _check_tables(connection)
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        _check_indexes(connection)
        connection.execute(
            "INSERT OR IGNORE INTO forkpoint_settings (name, value) VALUES ('schema_version', ?)",
            (SCHEMA_VERSION,),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_tables(connection: sqlite3.Connection) -> None:
    """Refuse to make a table in the place of one that is lost, while the others have their rows."""
    tables = _tables(connection)
    missing = _TABLES - tables
    with_rows = [
        table
        for table in sorted(tables - {"forkpoint_settings"})
        if missing and _scalar(connection, f"SELECT 1 FROM {table} LIMIT 1")
    ]
    if with_rows:
        raise CorruptChunk(
            f"the database has lost {', '.join(sorted(missing))}, and has rows in "
            f"{', '.join(with_rows)}: bring back what is lost, or drop all tables of forkpoint"
        )


def _check_indexes(connection: sqlite3.Connection) -> None:
    """Refuse a store whose tables were renamed: SQLite left them the indexes."""
    missing = _NAMES - _all_names(connection)
    if missing:
        raise StorageError(
            f"another table has the index {min(missing)[0]}: was a table of forkpoint renamed? "
            "Rename it back, or drop the index"
        )


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """Return the value of one of SQLite's settings, a number."""
    return _scalar(connection, f"PRAGMA {name}") or 0


def _scalar(connection: sqlite3.Connection, sql: str) -> int | None:
    row = _plain_cursor(connection).execute(sql).fetchone()
    return None if row is None else int(row[0])


def _plain_cursor(connection: sqlite3.Connection) -> sqlite3.Cursor:
    cursor = connection.cursor()
    cursor.row_factory = None  # a connection that was passed may have one
    return cursor


def _contains(stored: str, part: str) -> bool:
    return may_contain_json(stored, json.loads(part))
