"""SQLite: all that is encrypted in a store, in the order in which it was stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ormsgpack

from forkpoint.sqlite.removals import unpacked_write
from forkpoint.sqlite.rows import RESTORED
from forkpoint.sqlite.statements import Statements
from forkpoint.storage.interface import Contents
from forkpoint.storage.queries import Batch
from forkpoint.storage.receipts import RECEIPT, is_encrypted
from forkpoint.storage.rows import StoredContent

# By table: the idx that a row has, and what it has replaced.
_OTHER_COLUMNS = {
    "checkpoints": f"{RECEIPT}, NULL",
    "writes": "idx, before",
    "chunks": f"{RECEIPT}, NULL",
}
_FOLLOWING = {"checkpoints": "writes", "writes": "chunks", "chunks": None}
_ROWS_AT_ONCE = 200
_REPLACED_COLUMNS = RESTORED.split(", ")
_CONTENT = _REPLACED_COLUMNS.index("content")


class SqliteContents(Contents):
    """The role `Contents`. A place is a table, an id, and the packed row if that is in `before`."""

    def __init__(self, sql: Statements) -> None:
        self._sql = sql

    def batch(self, after: Any = None) -> Batch[StoredContent]:
        table, last = after or ("checkpoints", 0)
        limit = min(_ROWS_AT_ONCE, self._sql.turn_rows)
        rows = self._sql.rows(
            f"SELECT id, content, {_OTHER_COLUMNS[table]} FROM forkpoint_{table}"
            " WHERE id > ? ORDER BY id LIMIT ?",
            (last, limit),
        )
        self._sql.count_read(len(rows))
        contents: list[StoredContent] = []
        for id_, content, idx, before in rows:
            replaced = unpacked_write(before, len(_REPLACED_COLUMNS))
            if is_encrypted(idx, content):
                contents.append(StoredContent((table, id_, None), content))
            if replaced is not None and is_encrypted(idx, replaced[_CONTENT]):
                contents.append(StoredContent((table, id_, before), replaced[_CONTENT]))
        if len(rows) == limit:
            return Batch(contents, (table, rows[-1][0]))
        following = _FOLLOWING[table]
        return Batch(contents, None if following is None else (following, 0))

    def replace(self, changes: Sequence[tuple[StoredContent, bytes]]) -> None:
        for ((table, id_, before), content), new in changes:
            column = "content"
            if before is not None:
                replaced = ormsgpack.unpackb(before)
                replaced[_CONTENT] = new
                column, content, new = "before", before, ormsgpack.packb(replaced)
            self._sql.run(
                f"UPDATE forkpoint_{table} SET {column} = ? WHERE id = ? AND {column} = ?",
                (new, id_, content),
            )
