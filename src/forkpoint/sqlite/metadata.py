"""SQLite: the metadata of checkpoints, packed: what repeats in a thread is stored once.

Servers of graphs add the same to the metadata of each checkpoint: ids, versions, who is asking. So
longer metadata are compressed with DEFLATE (RFC 1951), and the dictionary of a thread is the first
of its metadata that are that long. Statements see JSON, by functions that SQLite calls.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence

from forkpoint.sqlite.errors import callback_of
from forkpoint.sqlite.statements import Statements
from forkpoint.storage.rows import CheckpointRow

_SHORTEST, _LONGEST = 256, 64 * 1024  # characters of what is packed
_WINDOW_BITS = 13  # 8 KB; what is farther back than that in the dictionary is not found
_MEMORY_LEVEL = 6  # so that making a compressor takes microseconds

_DICTIONARY = "(SELECT dictionary FROM forkpoint_dictionaries WHERE thread = {thread})"


def packed(metadata: str, thread: str) -> str:
    """Return the expression for metadata as they are stored.

    Args:
        metadata: The expression for the JSON.
        thread: The expression for the key of the thread.
    """
    return (
        f"CASE WHEN length({metadata}) BETWEEN {_SHORTEST} AND {_LONGEST} THEN"
        f" forkpoint_packed({metadata}, {_DICTIONARY.format(thread=thread)}) ELSE {metadata} END"
    )


def unpacked(table: str = "forkpoint_checkpoints") -> str:
    """Return the expression for the metadata of a checkpoint; NULL if they are damaged.

    Args:
        table: The name of the table in the statement.
    """
    dictionary = _DICTIONARY.format(thread=f"{table}.thread")
    metadata = f"{table}.metadata"
    return (
        f"CASE typeof({metadata}) WHEN 'text' THEN {metadata}"
        f" ELSE forkpoint_unpacked({metadata}, {dictionary}) END"
    )


COPY_DICTIONARY = (
    "INSERT INTO forkpoint_dictionaries (thread, dictionary)"
    " SELECT ?, dictionary FROM forkpoint_dictionaries WHERE thread = ?"
)
"""Give a thread, the first value, the dictionary of another."""


def choose_dictionary(sql: Statements, thread: int, rows: Sequence[CheckpointRow]) -> None:
    """Let a thread that has no dictionary have one, if one of these checkpoints is to be packed."""
    for row in rows:
        if _SHORTEST <= len(row.metadata) <= _LONGEST:
            sql.run(
                "INSERT OR IGNORE INTO forkpoint_dictionaries (thread, dictionary) VALUES (?, ?)",
                (thread, row.metadata),
            )
            return


def add_functions(connection: sqlite3.Connection) -> None:
    """Let the statements of a connection call the functions that the expressions name."""
    for name, function in (("forkpoint_packed", _pack), ("forkpoint_unpacked", _unpack)):
        connection.create_function(name, 2, callback_of(function), deterministic=True)


def _pack(metadata: str, dictionary: object) -> str | bytes:
    if not isinstance(dictionary, str):
        return metadata
    compressor = zlib.compressobj(
        wbits=-_WINDOW_BITS, memLevel=_MEMORY_LEVEL, zdict=dictionary.encode()
    )
    return compressor.compress(metadata.encode()) + compressor.flush()


def _unpack(metadata: object, dictionary: object) -> str | None:
    if not isinstance(metadata, bytes) or not isinstance(dictionary, str):
        return None
    try:
        decompressor = zlib.decompressobj(wbits=-_WINDOW_BITS, zdict=dictionary.encode())
        json = decompressor.decompress(metadata, _LONGEST + 1)
        is_whole = decompressor.eof and not decompressor.unused_data and len(json) <= _LONGEST
        return json.decode("ascii") if is_whole else None
    except (zlib.error, ValueError):
        return None
