"""The file that threads are archived to: some lines for each, one after the other.

`docs/moving.md` describes what is in it, and `forkpoint.archive.lines` makes the lines.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import NamedTuple

from forkpoint.archive.compression import (
    compression_in,
    compression_of,
    decompressed,
    end_of_streams,
)
from forkpoint.archive.lines import BEGIN, MARK_DIGITS, Encrypt, is_whole, line_of
from forkpoint.archive.parts import Part
from forkpoint.errors import ForkpointError, InvalidInput, StorageError, StorageFull
from forkpoint.runtime.open_files import Identity, identity, is_in_use, refuse_database, write_all

if sys.platform != "win32":
    import fcntl

LONGEST_LINE = 512 * 1024 * 1024
"""How many bytes a line of an archive may have: whoever reads it has it in memory."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ANY_LINE = b'{"'
_READ_BYTES = 65536
_NO_LINE = 64  # bytes, in which no line is, however it is compressed


class _Known(NamedTuple):
    """Up to where a file is known to be whole."""

    file: Identity
    end: int


class ArchiveFile:
    """Appends each thread to a file.

    Several processes may append to one file: each waits until the others have finished a thread. A
    thread may be in it twice, if it was not deleted then: because the process ended, or because
    somebody went on with it.

    Args:
        path: The file. It is made if it is not there; a last line that was not finished is removed,
            and so is the last thread, where it is compressed. It is if its name ends in `.gz` or
            `.zst`. A file that does not begin as an archive does is left alone.

    Raises:
        InvalidInput: The path leads to something that is no archive, such as a database or what
            belongs to one, or nothing can be written there.
        MissingLibrary: There is nothing to compress it with.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fsdecode(path))
        self._compression = compression_of(self.path)
        self._known: _Known | None = None
        try:
            _check_place(self.path)
            if os.path.exists(self.path):
                with open(self.path, "rb", buffering=0) as file:
                    self._end(file)
        except (OSError, ValueError) as error:  # such as a name that is too long, or has a NUL
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"the archive {self.path!r:.80} cannot be used: {error}") from error

    def append(self, parts: Iterable[Part], encrypt: Encrypt, *, sync: bool = True) -> None:
        """Append a thread, all of it or, if its parts cannot be had, nothing.

        Args:
            parts: The thread.
            encrypt: Encrypts what somebody stored in it.
            sync: Whether it is to be on the disk when this returns.

        Raises:
            StorageFull: There is no room for it.
            StorageError: The file cannot be written.
        """
        with _typed_errors(self.path), _opened(self.path) as file:
            end = self._end(file)
            if self._compression is None:
                end = _with_last_line(file, end)
            file.truncate(end)
            file.seek(end)
            try:
                self._write(file, parts, encrypt)
                if sync:
                    os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
            self._known = _Known(_identity_of(file), file.seek(0, os.SEEK_END))
        if sync and end == 0:
            _sync_name(self.path)

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        with _typed_errors(self.path), _opened(self.path) as file:
            os.fsync(file.fileno())
        _sync_name(self.path)

    def _write(self, file: FileIO, parts: Iterable[Part], encrypt: Encrypt) -> None:
        mark = secrets.token_hex(MARK_DIGITS // 2).encode()
        lines = (line_of(part, mark, encrypt) for part in parts)
        if self._compression is None:
            for line in lines:
                write_all(file, line)
            return
        with self._compression.writer(_Whole(file)) as compressing:
            for line in lines:
                compressing.write(line)

    def _end(self, file: FileIO) -> int:
        """Return up to where a file is whole, of which it is known to be an archive, or raise."""
        size = file.seek(0, os.SEEK_END)
        if self._known == _Known(_identity_of(file), size):
            return size
        self._check_content(file)
        if self._compression is None:
            return _end_of_lines(file)
        return end_of_streams(file, self._compression, BEGIN)

    def _check_content(self, file: FileIO) -> None:
        """Raise unless a file is an archive, or empty.

        Raises:
            InvalidInput: It is something else, and stays as it is.
        """
        file.seek(0)
        begin = file.read(_READ_BYTES)
        if self._compression is None:
            _check_begin(self.path, begin, BEGIN)
            file.seek(_end_of_lines(file))
            _check_begin(self.path, file.read(len(_ANY_LINE)), _ANY_LINE)
        else:
            _check_begin(self.path, begin, self._compression.magic)
            plain = next(decompressed(file, self._compression, BEGIN), b"")
            if isinstance(plain, EOFError) and len(begin) < _NO_LINE:
                plain = b""  # whoever made it was stopped before a line was there
            if not isinstance(plain, bytes):
                raise InvalidInput(
                    f"the file {self.path!r} is damaged, or no archive of threads: {plain}; choose "
                    "another path"
                )
            _check_begin(self.path, plain, BEGIN)


class _Whole(FileIO):
    """A file whose writes are never partial; it is closed by somebody else."""

    def __init__(self, file: FileIO) -> None:
        super().__init__(file.fileno(), "ab", closefd=False)

    def write(self, content: object) -> int:
        whole = bytes(content)  # type: ignore[call-overload]
        done = 0
        while done < len(whole):
            done += super().write(whole[done:])
        return done


class Line(NamedTuple):
    """A line of an archive."""

    number: int
    """From 1."""
    content: bytes
    damage: str | None = None
    """Why there is no content: the file is damaged there, and some lines may be missing."""


def length_of(path: str) -> int:
    """Return how long an archive is, when nobody is in the middle of appending a thread.

    Raises:
        InvalidInput: There is no such file, or it is a file of a store.
    """
    with _opened_to_read(path) as file:
        if sys.platform != "win32":
            with suppress(OSError):  # not every file system can do that
                fcntl.flock(file, fcntl.LOCK_SH)
        with suppress(OSError):  # whoever reads it says why it cannot be
            return file.seek(0, os.SEEK_END)
    return 0


def lines_in(path: str, length: int | None = None) -> Iterator[Line]:
    """Yield the lines of an archive, compressed or not.

    Args:
        path: The file.
        length: Up to where to read it; None for all of it.

    Raises:
        InvalidInput: There is no such file, or it is a file of a store.
        MissingLibrary: There is nothing to decompress it with.
        StorageError: The file cannot be read.
    """
    with _opened_to_read(path, length) as file:
        number = 1
        left = b""
        for content in _contents(file, path):
            if isinstance(content, Exception):
                yield Line(number, b"", f"the file is damaged there: {content}")
                number, left = number + 1, b""
                continue
            *lines, last = content.split(b"\n")
            if lines:
                lines[0], left = left + lines[0], b""
            left += last
            for line in lines:
                yield Line(number, line)
                number += 1
            if len(left) > LONGEST_LINE:
                raise InvalidInput(f"line {number} of the archive {path!r} is longer than any is")
        if left:
            yield Line(number, left)


class _Begin(FileIO):
    """A file of which only the begin is read.

    Args:
        path: The file.
        length: How long that is; None for all of it.
    """

    def __init__(self, path: str, length: int | None) -> None:
        super().__init__(path, "rb")
        self._length = length

    def read(self, size: int | None = -1) -> bytes:
        if self._length is not None and size is not None:
            size = max(0, min(size, self._length - self.tell()))
        return super().read(size)


def _opened_to_read(path: str, length: int | None = None) -> FileIO:
    resolved = os.path.realpath(path)
    if is_in_use(resolved):
        raise InvalidInput(f"the archive {path!r} is a file of a store")
    try:
        return _Begin(resolved, length)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the archive {path!r:.80} cannot be read: {error}") from error


def _contents(file: FileIO, path: str) -> Iterator[bytes | Exception]:
    try:
        begin = file.read(4)
        file.seek(0)
        compression = compression_in(begin)
        if compression is None and not begin.startswith(_ANY_LINE):  # its begin may be damaged
            compression = compression_of(path)
        if compression is not None:
            yield from decompressed(file, compression, BEGIN)
            return
        while content := file.read(_READ_BYTES):
            yield content
    except OSError as error:
        raise StorageError(f"the archive {path!r} cannot be read: {error}") from error


# Which files may be written to


def _check_place(named: str) -> None:
    """Raise unless an archive may be at a path, as far as that is known without opening a file.

    Raises:
        InvalidInput: It may not.
    """
    refuse_database(named, f"the archive {named!r}")
    path = os.path.realpath(named)
    directory = os.path.dirname(path)
    with suppress(FileNotFoundError):  # any other error says why nothing can be there
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidInput(f"the archive {named!r} is no regular file")
    if not os.path.isdir(directory):
        raise InvalidInput(f"the archive {named!r} cannot be made: there is no such directory")
    is_writable = os.access(path, os.R_OK | os.W_OK)
    if not is_writable and (os.path.exists(path) or not os.access(directory, os.W_OK | os.X_OK)):
        raise InvalidInput(f"the archive {named!r} cannot be written to")


def _check_begin(path: str, begin: bytes, right: bytes) -> None:
    begin = begin[: len(right)]
    if not right.startswith(begin):
        raise InvalidInput(
            f"the file {path!r} is no archive of threads: a line of it begins with {begin!r}; "
            "choose another path"
        )


@contextmanager
def _typed_errors(path: str) -> Iterator[None]:
    """Turn the system's errors into those of the archive at a path."""
    try:
        yield
    except ForkpointError:
        raise
    except OSError as error:
        kind = StorageFull if error.errno in _FULL else StorageError
        raise kind(f"the archive {path!r} cannot be written: {error}") from error


@contextmanager
def _opened(path: str) -> Iterator[FileIO]:
    """Open a file, and keep other processes out of it, where the system can do that."""
    while True:
        _check_place(path)
        with open(path, "a+b", buffering=0) as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)
            if identity(path) == _identity_of(file):
                yield file
                return
            # It was moved or removed meanwhile: what is written must be found under its name.


def _identity_of(file: FileIO) -> Identity:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _end_of_lines(file: FileIO) -> int:
    """Return where the last line ends that was finished."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _with_last_line(file: FileIO, end: int) -> int:
    """Return where the last line ends, which may be whole but for its newline: then it gets one."""
    file.seek(end)
    last = file.read()
    if not is_whole(last):
        return end
    write_all(file, b"\n")
    return end + len(last) + 1


def _sync_name(path: str | os.PathLike[str]) -> None:
    """Put on the disk that there is a file of this name, where the system can do that."""
    if sys.platform != "win32":
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
