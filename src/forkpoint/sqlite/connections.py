"""SQLite: how a saver gets its connection, and whether that still is to the file of that name."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qs, unquote

from forkpoint import inputs
from forkpoint.at_fork import no_fork
from forkpoint.errors import (
    InvalidInput,
    SaverClosed,
    StorageBusy,
    StorageError,
    StorageInherited,
    StorageReplaced,
)
from forkpoint.runtime.open_files import (
    DatabaseFile,
    Identity,
    identity,
    inherited,
    is_left_behind,
    left_open,
    name_in_use,
)
from forkpoint.runtime.steps import Locked
from forkpoint.sqlite.connection_lock import ConnectionLock, lock_of_passed
from forkpoint.sqlite.errors import typed_errors
from forkpoint.untrusted import url_start


class Opener:
    """Opens a file, or a database in memory, by its name. The connection is the saver's own.

    The caller of each method keeps other threads away.

    Args:
        database: A path, `":memory:"` or a `file:` URI. A relative path is resolved here, once.
        timeout: For how many seconds a call waits for others of this process that use a file.

    Attributes:
        is_owned: Whether nobody else uses the connection, and it is the saver's to close.
        lock: The lock under which the connection is used.
        may_be_inherited: Whether a forked child may use the connection: it is to no file.
        disconnect: Closes the connection, unless somebody uses it; see `DatabaseFile`.

    Raises:
        InvalidInput: This names no database.
    """

    is_owned = True

    def __init__(self, database: object, timeout: float) -> None:
        self._name, path, self._options = _parsed(database)
        self._timeout = timeout
        self.lock = ConnectionLock()
        self.disconnect = _is_closed
        self._file = None if path is None else DatabaseFile(path, lambda: self.disconnect())
        self.may_be_inherited = path is None
        self._opened: Identity | None = None
        if path is not None:
            self._check(path)

    @property
    def path(self) -> str | None:
        """The path of the file; None for a database in memory."""
        return None if self._file is None else self._file.path

    def connect(self) -> sqlite3.Connection:
        """Return a connection, in which SQLite does not wait for others.

        Raises:
            Locked: It cannot be opened at the moment.
        """
        if self._file is None:
            return self._connect(self._name, is_uri=self._options is not None)
        path = self._file.path
        file = identity(path)
        if file is None:
            _check_reachable(path)
        else:
            self._check_open(path, file)
            path = name_in_use(file) or _only_name(path)
        if self._options is None:
            connection = self._connect(path, is_uri=False)
        else:
            connection = self._connect(Path(path).as_uri() + self._options, is_uri=True)
        self._opened = identity(path)  # SQLite has opened it by now, and made it if need be
        if file in (None, self._opened):
            return connection
        connection.close()  # it was replaced meanwhile
        return self.connect()

    def _check_open(self, path: str, file: Identity) -> None:
        """Refuse a file that this process has open in a way that SQLite does not know of."""
        if inherited.has(file):
            raise StorageInherited(
                f"a connection to {path} was open when this process was forked, and SQLite would "
                "take its locks for those of this process; close it before the fork, or start the "
                "process in another way"
            )
        for other in left_open(file):
            if not other.disconnect():
                message = f"{path} was restored while another saver uses what was there"
                raise Locked(StorageBusy(message), self._timeout)

    def _connect(self, name: str, *, is_uri: bool) -> sqlite3.Connection:
        return sqlite3.connect(
            name,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            uri=is_uri,
        )

    def note_opened(self, connection: sqlite3.Connection) -> None:
        """Remember which file a connection has open. The connection has been used by now."""
        if self._file is not None:
            self._file.note_opened(_path_of(connection) or self._file.path, self._opened)

    def note_log(self) -> None:
        """Within a transaction: others may have changed how the file keeps its journal."""
        if self._file is not None:
            self._file.note_log()

    def is_current(self) -> bool:
        """Return whether the connection still is one to the file that has the name."""
        return self._file is None or self._file.is_in_place()

    def close(self, connection: sqlite3.Connection) -> None:
        """Close the connection.

        Raises:
            StorageBusy: Another process keeps it from being closed. It is still open.
        """
        file = self._file
        if file is None or file.is_in_place():
            connection.close()
        elif file.has_file_in_place():
            _close_without_log(connection)
        else:
            if file.has_log_in_place():
                _take_log_away(connection, file)
            connection.close()
        if file is not None:
            file.note_closed()

    def _check(self, path: str) -> None:
        """Refuse a file that SQLite does not take for a database. Only SQLite may open it."""
        if os.path.isdir(path):
            raise InvalidInput(f"{path} is a directory; give the path of a file in it")
        if not os.path.isdir(os.path.dirname(path)):
            raise InvalidInput(f"there is no directory {os.path.dirname(path)}")
        if not os.path.exists(path) or os.path.getsize(path) == 0:
            return
        if os.path.getsize(path) == 1:  # which SQLite takes for an empty one
            raise InvalidInput(f"{path} is no SQLite database")
        with suppress(Locked):  # the first use waits for it
            self._check_content(path)

    def _check_content(self, path: str) -> None:
        with typed_errors(), no_fork(), closing(self.connect()) as connection:
            try:
                connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                pass  # locked, for example: the first use says so
            except sqlite3.DatabaseError as error:
                raise InvalidInput(f"{path} is no SQLite database: {error}") from error


class PassedConnection:
    """A connection that the caller opened, and closes. The methods are those of `Opener`."""

    is_owned = False
    may_be_inherited = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.lock = lock_of_passed(connection)
        self.disconnect = _is_closed
        self._connection = connection
        self._process = os.getpid()
        self._file: DatabaseFile | None = None
        self._opened: Identity | None = None

    @property
    def path(self) -> str | None:
        return None if self._file is None else self._file.path

    def connect(self) -> sqlite3.Connection:
        if os.getpid() != self._process:
            raise SaverClosed(
                "the connection that was passed cannot be used in a forked process; make a saver "
                "from the path there"
            )
        if getattr(self._connection, "autocommit", -1) is False:
            raise InvalidInput(
                "the sqlite3.Connection was opened with autocommit=False, so a transaction is "
                "always open; open it with autocommit=True, or without"
            )
        if self._file is None and (path := _path_of(self._connection)):
            self._opened = identity(path)
            if is_left_behind(path, self._opened):  # since the caller opened it
                raise _replaced(path)
        return self._connection

    def note_opened(self, connection: sqlite3.Connection) -> None:
        if self._file is None and self._opened is not None:
            path = _path_of(connection)
            self._file = DatabaseFile(path, self._is_closed)
            self._file.note_opened(path, self._opened)

    def note_log(self) -> None:
        if self._file is not None:
            self._file.note_log()

    def is_current(self) -> bool:
        """Return True.

        Raises:
            StorageReplaced: The file is another by now, which only the caller can open.
        """
        if self._file is not None and not self._file.is_in_place():
            _ = self._connection.in_transaction  # raises SQLite's own error if it is closed
            raise _replaced(self._file.path)
        return True

    def _is_closed(self) -> bool:
        try:
            _ = self._connection.in_transaction  # of what any thread may ask
        except sqlite3.ProgrammingError:
            return True
        return False

    def close(self, connection: sqlite3.Connection) -> None:
        raise NotImplementedError("a connection that was passed is the caller's to close")


Connector: TypeAlias = Opener | PassedConnection
"""Where a connection comes from."""


def _is_closed() -> bool:
    return True


def _replaced(path: str) -> StorageReplaced:
    return StorageReplaced(
        f"{path} was removed, replaced or restored, and the connection that was passed is to the "
        "file that was there before; pass one that is opened now"
    )


def _check_reachable(path: str) -> None:
    """Say why a file cannot be opened, unless it is not there: then SQLite makes it."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # too long a name, or a directory that nobody may look into
        raise StorageError(f"{path!r:.80} cannot be opened: {error.strerror}") from error


def _only_name(path: str) -> str:
    """Return the path of a file, unless there is another name by which a process may have it open.

    The log is named after the database, so two processes with two names have two logs, each of
    which overwrites what the other one has written.
    """
    try:
        status = os.stat(path)
    except OSError:  # it was removed meanwhile
        return path
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        raise StorageError(
            f"{path} has more than one name (hard links), and processes that open it by "
            "different ones would destroy it; remove the others, or make them copies with "
            "VACUUM INTO"
        )
    return path


def _path_of(connection: sqlite3.Connection) -> str:
    """Return the path of a connection's file as SQLite resolved it; empty for one in memory.

    Nothing of the file is read.
    """
    cursor = connection.cursor()
    cursor.row_factory = None  # a connection that was passed may have one
    usual, connection.text_factory = connection.text_factory, os.fsdecode  # it may be no Unicode
    try:
        rows = cursor.execute("PRAGMA database_list").fetchall()
    finally:
        connection.text_factory = usual
    return next((path for _, name, path in rows if name == "main"), "")


_ADVICE = {
    "mongodb": "; a store in MongoDB needs MongoDBSaver",
    "sqlite": "; write the path alone, such as agent.db",
}


def _parsed(database: object) -> tuple[str, str | None, str | None]:
    """Return a name of a database, its absolute path, and the options if it is a URI.

    The path is None for a database in memory.
    """
    if not isinstance(database, (str, os.PathLike)):
        raise InvalidInput(
            "database must be a path, a sqlite3.Connection or an aiosqlite.Connection, not "
            f"{type(database).__name__}"
        )
    name = inputs.path(database, "database")
    if name == ":memory:":
        return name, None, None
    if start := url_start(name):
        advice = _ADVICE.get(re.split(r"\W", start.lower())[0], "")
        raise InvalidInput(f"database must be a path or a file: URI, not {start}...{advice}")
    if not name.startswith("file:"):
        return name, os.path.abspath(name), None
    end = min((at for at in map(name.find, "?#") if at >= 0), default=len(name))
    path, options = _path_of_uri(name[5:end]), name[end:]
    values = parse_qs(options.partition("#")[0].removeprefix("?"))
    if path == ":memory:" or values.get("mode") == ["memory"] or values.get("vfs") == ["memdb"]:
        return name, None, options
    if not path or "\0" in path:
        raise InvalidInput(f"database names no file: {name!r:.80}")
    return name, os.path.abspath(path), options


def _path_of_uri(rest: str) -> str:
    """Return the path in a `file:` URI, without the host name that SQLite allows before it."""
    if rest.startswith("//"):
        authority, _, rest = rest[2:].partition("/")
        if authority not in ("", "localhost"):
            raise InvalidInput(f"a file: URI may name localhost only, not {authority!r:.80}")
        rest = f"/{rest}"
    path = unquote(rest)
    is_drive = os.name == "nt" and path[:1] == "/" and path[2:3] == ":"
    return path[1:] if is_drive else path


def _close_without_log(connection: sqlite3.Connection) -> None:
    """Close a connection whose log was removed, and leave the file as it is.

    SQLite would write the contents of the log into the file, over what was restored there. An
    interrupted connection stops before the first page.
    """
    configure = getattr(connection, "setconfig", None)  # since Python 3.12
    if configure is not None:
        configure(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)  # type: ignore[attr-defined]
    connection.interrupt()
    connection.close()


def _take_log_away(connection: sqlite3.Connection, file: DatabaseFile) -> None:
    """Remove the log of the file that had the name before.

    SQLite would take it for the log of the file that has the name now. Its contents go into its
    own file first, which may have another name.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    is_busy, *_ = connection.execute("PRAGMA main.wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise StorageBusy(
            f"{file.path} was replaced while another process reads what was there before"
        )
    # Other processes may be about to do the same. Each removes only the log that it has open.
    connection.execute("BEGIN IMMEDIATE")
    try:
        if file.has_log_in_place():
            for name in (file.log_path, file.index_path):
                with suppress(FileNotFoundError):
                    os.remove(name)
    finally:
        connection.execute("ROLLBACK")
