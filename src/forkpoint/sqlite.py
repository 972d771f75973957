"""SQLite: the saver, and every way to give it a database."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import aiosqlite
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.errors import InvalidInput, SaverClosed
from forkpoint.runner import AiosqliteRunner, WorkerRunner
from forkpoint.saver import ForkpointSaver, durability_of
from forkpoint.sqlite_storage import BUSY_TIMEOUT_SECONDS, SqliteStorage

_WORKERS = 4  # while one commits, the others prepare


class SqliteSaver(ForkpointSaver):
    """Keep LangGraph checkpoints in SQLite.

    One object serves `invoke` and `ainvoke`, from any thread and any event loop. It works under
    `with`, under `async with`, and plain, with `close` or `aclose` at the end.

    Args:
        database: A path, `":memory:"`, a `file:` URI, an open `sqlite3.Connection` (opened with
            `check_same_thread=False`), or an open `aiosqlite.Connection`. A connection that is
            passed stays the caller's to close.
        serde: The serializer. By default `SafeSerializer`, which imports and calls nothing that
            a stored row names, data classes of modules that are already imported aside.
        durability: With `"full"`, a write that was acknowledged survives the loss of power; with
            `"normal"`, the crash of the process.
        busy_timeout: For how many seconds a call waits while another process or connection writes,
            before it raises `StorageBusy`. By default 60, or what a connection that is passed has
            as its own. Reads do not wait for those who write.

    Raises:
        InvalidInput: `database` is none of these, or a file that is no SQLite database.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | sqlite3.Connection | aiosqlite.Connection,
        *,
        serde: SerializerProtocol | None = None,
        durability: str = "full",
        busy_timeout: float | None = None,
    ) -> None:
        durability = durability_of(durability)
        timeout = None if busy_timeout is None else _seconds(busy_timeout)
        if isinstance(database, aiosqlite.Connection):
            connect, owned = _passed(_of_aiosqlite(database)), False
        elif isinstance(database, sqlite3.Connection):
            connect, owned = _passed(database), False
        else:
            timeout = BUSY_TIMEOUT_SECONDS if timeout is None else timeout
            connect, owned = _opener(database, timeout), True
        storage = SqliteStorage(connect, owned=owned, durability=durability, busy_timeout=timeout)
        runner = (
            AiosqliteRunner(database)
            if isinstance(database, aiosqlite.Connection)
            else WorkerRunner(_WORKERS, storage)
        )
        super().__init__(storage, runner, serde)

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        serde: SerializerProtocol | None = None,
        durability: str = "full",
        busy_timeout: float | None = None,
    ) -> SqliteSaver:
        """Return a saver for a path, `":memory:"` or a `file:` URI."""
        if not isinstance(conn_string, str):
            raise InvalidInput(f"conn_string must be a string, not {type(conn_string).__name__}")
        return cls(conn_string, serde=serde, durability=durability, busy_timeout=busy_timeout)


def _seconds(busy_timeout: object) -> float:
    """Return a busy timeout that SQLite can keep.

    Raises:
        InvalidInput: It is none.
    """
    is_number = isinstance(busy_timeout, (int, float)) and not isinstance(busy_timeout, bool)
    if not is_number or not 0 <= busy_timeout <= _LONGEST_TIMEOUT:  # type: ignore[operator]
        raise InvalidInput(
            f"busy_timeout must be a number of seconds from 0 to {_LONGEST_TIMEOUT}, not "
            f"{busy_timeout!r:.80}"
        )
    return float(busy_timeout)  # type: ignore[arg-type]


_LONGEST_TIMEOUT = 2_000_000


def _passed(connection: sqlite3.Connection) -> Callable[[], sqlite3.Connection]:
    """Return how to get at a connection that the caller opened, if it can be used."""
    process = os.getpid()

    def connect() -> sqlite3.Connection:
        if os.getpid() != process:
            raise SaverClosed(
                "the connection that was passed cannot be used in a forked process; make a saver "
                "from the path there"
            )
        if getattr(connection, "autocommit", -1) is False:
            raise InvalidInput(
                "the sqlite3.Connection was opened with autocommit=False, so a transaction is "
                "always open; open it with autocommit=True, or without"
            )
        return connection

    return connect


def _of_aiosqlite(connection: aiosqlite.Connection) -> sqlite3.Connection:
    try:
        return connection._conn  # aiosqlite has no public way to what it wraps
    except ValueError:
        raise InvalidInput(
            "the aiosqlite.Connection is not open; await it, or enter it with async with, first"
        ) from None


def _opener(database: object, timeout: float) -> Callable[[], sqlite3.Connection]:
    """Return what opens a database, after a look at whether it can be one."""
    if not isinstance(database, (str, os.PathLike)):
        raise InvalidInput(
            "database must be a path, a sqlite3.Connection or an aiosqlite.Connection, not "
            f"{type(database).__name__}"
        )
    name = os.fspath(database)
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidInput(f"database must be a path, not {name!r:.80}")
    is_uri = name.startswith("file:")
    if not is_uri and name != ":memory:":
        _check_path(Path(name))

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            name,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
            uri=is_uri,
        )

    return connect


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise InvalidInput(f"{path} is a directory; give the path of a file in it")
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no directory {path.parent}")
    if path.exists():
        with path.open("rb") as file:
            header = file.read(len(_SQLITE_HEADER))
        if header not in (b"", _SQLITE_HEADER):
            raise InvalidInput(f"{path} is no SQLite database")


_SQLITE_HEADER = b"SQLite format 3\0"
