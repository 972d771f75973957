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


def end_of_streams(file: FileIO, compression: Compression) -> int:
    """Return where the last stream ends that was finished.

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
            raise InvalidInput(
                f"the archive is damaged after byte {end}: {error}; restore it, and choose another "
                "path to archive to"
            ) from error
        if decompressor.eof:
            left = decompressor.unused_data
            end = position - len(left)
            decompressor = compression.decompressor()
    return end


def decompressed(file: FileIO, compression: Compression) -> Iterator[bytes | Exception]:
    """Yield what a file holds, and where a stream is damaged an error, and then the next one."""
    file.seek(0)
    left = b""
    decompressor = compression.decompressor()
    is_begun = False
    while content := left or file.read(_READ_BYTES):
        left = b""
        try:
            plain = decompressor.decompress(content)
        except compression.errors as error:
            yield error
            left = _from_next_stream(file, content[1:], compression.magic)
            decompressor, is_begun = compression.decompressor(), False
            continue
        is_begun = True
        if plain:
            yield plain
        if decompressor.eof:
            left = decompressor.unused_data
            decompressor, is_begun = compression.decompressor(), False
    if is_begun:
        yield EOFError("its end is missing")


def _from_next_stream(file: FileIO, content: bytes, magic: bytes) -> bytes:
    """Return what follows from where the next stream may begin."""
    while (at := content.find(magic)) < 0:
        more = file.read(_READ_BYTES)
        if not more:
            return b""
        content = content[-len(magic) :] + more
    return content[at:]
