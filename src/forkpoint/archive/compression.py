"""How an archive is compressed: each thread in a stream of its own, one after the other."""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any, BinaryIO, NamedTuple, cast

from forkpoint.errors import InvalidInput, MissingLibrary

_READ_BYTES = 65536
_BEGIN_BYTES = 1024


class Compression(NamedTuple):
    """A way to compress.

    Attributes:
        magic: With what each stream begins.
        decompressor: Makes what decompresses one stream, and tells by `eof` and `unused_data` when
            it ends.
        writer: Makes a file that compresses into another one, which stays open.
        errors: What a damaged stream raises.
    """

    magic: bytes
    decompressor: Callable[[], Any]
    writer: Callable[[FileIO], BinaryIO]
    errors: type[Exception]


def _gzip() -> Compression:
    return Compression(
        b"\x1f\x8b\x08",
        lambda: zlib.decompressobj(31),
        lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file, filename="", mode="wb", mtime=0)),
        zlib.error,
    )


def _zstandard() -> Compression:
    zstd = _zstandard_module()
    return Compression(
        b"\x28\xb5\x2f\xfd",
        zstd.ZstdDecompressor,
        lambda file: cast(BinaryIO, zstd.ZstdFile(file, "wb")),
        zstd.ZstdError,
    )


def _zstandard_module() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise MissingLibrary(
        "an archive named .zst needs Zstandard, which Python has from 3.14 on; else "
        "pip install 'forkpoint[zstd]'"
    )


_KINDS: dict[str, tuple[bytes, Callable[[], Compression]]] = {
    ".gz": (b"\x1f\x8b\x08", _gzip),
    ".zst": (b"\x28\xb5\x2f\xfd", _zstandard),
}


def compression_of(path: str) -> Compression | None:
    """Return how a file of this name is compressed, or None if it is not.

    Raises:
        MissingLibrary: Nothing that is installed can do that.
    """
    for ending, (_, make) in _KINDS.items():
        if path.lower().endswith(ending):
            return make()
    return None


def compression_in(begin: bytes) -> Compression | None:
    """Return how a file that begins like this is compressed, or None if it is not."""
    for magic, make in _KINDS.values():
        if begin.startswith(magic):
            return make()
    return None


def end_of_streams(file: FileIO, compression: Compression, begin: bytes) -> int:
    """Return where the last stream ends that was finished.

    Args:
        file: The file.
        compression: How it is compressed.
        begin: With what each stream begins that is worth anything, decompressed.

    Raises:
        InvalidInput: The file is damaged.
    """
    file.seek(0)
    end = position = 0
    left = b""
    decompressor = compression.decompressor()
    while content := left or file.read(_READ_BYTES):
        if not left:
            position += len(content)
        left = b""
        try:
            decompressor.decompress(content)
        except compression.errors as error:
            raise _damaged(end, error) from error
        if decompressor.eof:
            left = decompressor.unused_data
            end = position - len(left)
            decompressor = compression.decompressor()
    # A stream that is damaged may go on through those behind it, without an error.
    if end < position and _next_stream(file, end + 1, compression, begin) < position:
        raise _damaged(end, "a part of it is missing")
    return end


def _damaged(end: int, reason: object) -> InvalidInput:
    return InvalidInput(
        f"the archive is damaged after byte {end}: {reason}; restore it, and choose another path "
        "to archive to"
    )


def decompressed(
    file: FileIO, compression: Compression, begin: bytes
) -> Iterator[bytes | Exception]:
    """Yield what a file holds, and where a stream is damaged an error, and then the next one.

    Args:
        file: The file.
        compression: How it is compressed.
        begin: With what a stream begins that follows a damaged one, decompressed.
    """
    file.seek(0)
    start = position = 0
    left = b""
    decompressor = compression.decompressor()
    is_begun = False
    while True:
        content = left or file.read(_READ_BYTES)
        position += 0 if left else len(content)
        left = b""
        try:
            if is_begun and not content:
                raise EOFError("its end is missing")
            plain = decompressor.decompress(content)
        except (EOFError, compression.errors) as error:
            yield error
            # It may have gone on into the next one, before that was seen.
            start = position = file.seek(_next_stream(file, start + 1, compression, begin))
            decompressor, is_begun = compression.decompressor(), False
            continue
        if not content:
            return
        is_begun = True
        if plain:
            yield plain
        if decompressor.eof:
            left = decompressor.unused_data
            start = position - len(left)
            decompressor, is_begun = compression.decompressor(), False


def _next_stream(file: FileIO, start: int, compression: Compression, begin: bytes) -> int:
    """Return where the next stream begins, or the end of the file."""
    magic = compression.magic
    position = file.seek(start)
    content = b""
    while more := file.read(_READ_BYTES):
        content = content[1 - len(magic) :] + more
        position += len(more)
        at = content.find(magic)
        while at >= 0:
            place = position - len(content) + at
            if _begins(file, place, compression, begin):
                return place
            at = content.find(magic, at + 1)
        file.seek(position)
    return position


def _begins(file: FileIO, place: int, compression: Compression, begin: bytes) -> bool:
    """Return whether what begins at a place is a stream, and no bytes that look alike."""
    file.seek(place)
    decompressor = compression.decompressor()
    plain = b""
    try:
        while len(plain) < len(begin) and not decompressor.eof:
            content = file.read(_BEGIN_BYTES)  # what comes later may be damaged
            if not content:
                break
            plain += decompressor.decompress(content)
    except compression.errors:
        pass
    return plain.startswith(begin)
