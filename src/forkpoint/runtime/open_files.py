"""The files that the databases of this process have open.

A POSIX lock belongs to a process and a file: closing any descriptor of the file releases all locks
that the process has on it. SQLite allows for that with a table of its own connections. So no other
code may open a file that a connection of this process may have open. A process fork copies that
table without the locks: a child must not open a file that was open to a connection at the fork.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from itertools import chain

from forkpoint.at_fork import Living
from forkpoint.errors import InvalidInput

SQLITE_ENDINGS = ("-wal", "-shm", "-journal")
"""What SQLite adds to the name of a database for the files beside it."""

Identity = tuple[int, int]
"""A file, whatever its names are: its device and its inode number."""


def identity(path: str | os.PathLike[str]) -> Identity | None:
    """Return the file that a path leads to; None if there is none that this process may see."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class DatabaseFile:
    """A database file that a saver of this process uses, under the name that it was given.

    Args:
        path: An absolute path.
        disconnect: Closes the connection to the file, and returns whether it could: somebody may
            be using it. It is called by any thread.
    """

    def __init__(self, path: str, disconnect: Callable[[], bool]) -> None:
        self.path = path
        self.disconnect = disconnect
        self.resolved, self.log_path, self.index_path = path, f"{path}-wal", f"{path}-shm"
        """The name by which SQLite has the file open, and the names of its log and index."""
        self.opened: Identity | None = None
        """The file, while it is open."""
        self._log: Identity | None = None
        self._index: Identity | None = None
        _in_use.add(self)

    def note_opened(self, resolved: str, opened: Identity | None) -> None:
        """Remember which files a connection has open.

        Args:
            resolved: The name by which SQLite has the file open.
            opened: What `identity` said as it was opened: it may have been replaced since.
        """
        self.resolved = resolved
        self.log_path, self.index_path = f"{resolved}-wal", f"{resolved}-shm"
        self.opened, self._log = opened, identity(self.log_path)
        self._index = identity(self.index_path)

    def note_log(self) -> None:
        """Remember the log, if there is one by now. A transaction is open, so it stays."""
        if self._log is None:
            self._log, self._index = identity(self.log_path), identity(self.index_path)

    def note_closed(self) -> None:
        self.opened = self._log = self._index = None

    def is_in_place(self) -> bool:
        """Return whether the paths of the file, its log and its index lead to those that are open.

        SQLite keeps them as long as a connection is open. Whoever finds no index of the log makes
        another one, and its locks are in that.
        """
        # Without calls of the methods below: this runs before and after each transaction.
        if self.opened is not None and identity(self.path) != self.opened:
            return False
        if self._log is not None and identity(self.log_path) != self._log:
            return False
        return self._index is None or identity(self.index_path) == self._index

    def has_file_in_place(self) -> bool:
        return self.opened is None or identity(self.path) == self.opened

    def has_log_in_place(self) -> bool:
        """Return whether the path of the log still leads to the log that is open."""
        return self._log is not None and identity(self.log_path) == self._log

    def names(self) -> Sequence[str]:
        """Return the name of the file, and those of the files that SQLite may have beside it."""
        return self.path, self.resolved, self.log_path, self.index_path, f"{self.resolved}-journal"


_in_use: Living[DatabaseFile] = Living()


def name_in_use(file: Identity) -> str | None:
    """Return the name by which SQLite has a file open in this process; None if it has not.

    A file must not be opened by two names: the log is named after the database, and two names would
    make two logs.
    """
    return next(
        (
            database.resolved
            for database in _in_use.members()
            if database.opened == file and database.is_in_place()
        ),
        None,
    )


def left_open(file: Identity) -> Iterator[DatabaseFile]:
    """Yield the databases that have a file open, while its path, or its log's, leads elsewhere.

    All connections to a file share one index of its log. So these have to be closed before the file
    is opened with another log.
    """
    for database in _in_use.members():
        if database.opened == file and not database.is_in_place():
            yield database


def is_left_behind(path: str, file: Identity | None) -> bool:
    """Return whether the file that this process has opened by a path is not there any more.

    Then no descriptor of the process is one of the file that is there.

    Args:
        path: The path.
        file: The file that is there.
    """
    if os.name == "nt":  # where a file that is open stays in its place
        return False
    if file is None:  # removed, unless there never was one: SQLite has databases without files
        return any(_name_of(descriptor) == f"{path} (deleted)" for descriptor in _descriptors())
    # Where few are listed, all are tried.
    numbers = chain(_descriptors(), _all_descriptors())
    return not any(_open_file(descriptor) == file for descriptor in numbers)


def is_in_use(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to a file that belongs to a database of this process."""
    resolved, file = os.path.realpath(path), identity(path)
    return any(
        os.path.realpath(name) == resolved or (file is not None and identity(name) == file)
        for database in _in_use.members()
        for name in database.names()
    )


def refuse_database(path: str | os.PathLike[str], what: str) -> None:
    """Raise if a path leads to a database, or to a file that SQLite has beside one.

    No file is opened: to close it would drop the locks that this process has on it.

    Args:
        path: The path.
        what: What it is to be, with its name, for the error.

    Raises:
        InvalidInput: It does, as far as that is seen without opening it.
    """
    resolved = os.path.realpath(path)
    if is_in_use(resolved):
        raise InvalidInput(f"{what} is a file of the store itself")
    for ending in SQLITE_ENDINGS:
        if resolved.endswith(ending) and os.path.exists(resolved.removesuffix(ending)):
            raise InvalidInput(f"{what} has the name of a database's {ending} file")
        if os.path.exists(resolved + ending):
            raise InvalidInput(f"{what} is a database: there is a {ending} file")


def write_all(file: FileIO, content: bytes) -> None:
    """Write all of it to a file without a buffer, which may take a part at a time."""
    while content:
        content = content[file.write(content) :]


class _Inherited:
    """The files that were open when this process was forked."""

    def __init__(self) -> None:
        self._descriptors: dict[Identity, list[int]] = {}

    def note(self) -> None:
        self._descriptors = {}
        for descriptor in _descriptors():
            file = _open_file(descriptor)
            if file is not None:
                self._descriptors.setdefault(file, []).append(descriptor)

    def has(self, file: Identity) -> bool:
        """Return whether a file was open then, and still is."""
        return any(_open_file(descriptor) == file for descriptor in self._descriptors.get(file, ()))


def _descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:  # there is no such directory everywhere
        return _all_descriptors()


def _all_descriptors() -> Iterable[int]:
    return range(min(os.sysconf("SC_OPEN_MAX"), 65536))


def _name_of(descriptor: int) -> str | None:
    """Return the name of an open file, as Linux tells it."""
    try:
        return os.readlink(f"/dev/fd/{descriptor}")
    except OSError:  # it is closed, or has no name
        return None


def _open_file(descriptor: int) -> Identity | None:
    try:
        status = os.fstat(descriptor)
    except OSError:  # it is closed
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


inherited = _Inherited()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=inherited.note)
