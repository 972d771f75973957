"""SQLite: the chunks of families: putting, reading and collecting them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from forkpoint.encoding.chunk import Chunk, Chunks
from forkpoint.sqlite.rows import rows_after
from forkpoint.sqlite.statements import BATCH, Statements, placeholders
from forkpoint.sqlite.thread_table import NEXT_EPOCH, ThreadTable
from forkpoint.storage.interface import (
    CHUNKS_AT_ONCE,
    MOST_UNCOLLECTED,
    ChunkReads,
    Collections,
)
from forkpoint.storage.queries import Batch
from forkpoint.storage.rows import Counts, ThreadRef
from forkpoint.storage.shared import ABANDONED_SECONDS, batches

_INSERT = "INSERT INTO forkpoint_chunks (family, digest, refs, content, epoch) VALUES "
# A chunk that exists, unknown to the writer: it stays even if it is being collected.
_KEEP = (
    " ON CONFLICT (family, digest) DO UPDATE SET epoch = excluded.epoch"
    " WHERE epoch != excluded.epoch"
)
_SIZE = "length(refs) + length(content)"
_REFS = {
    "checkpoints": "refs",
    "writes": "CAST(refs || coalesce(before_refs, x'') AS BLOB)",
}
"""The references of the rows of each table."""

_CHUNKS_PER_ROW = 5  # where little is done in a transaction: a full disk has no room for more


def put_chunks(sql: Statements, thread: ThreadRef, chunks: Chunks) -> None:
    """Store chunks of a thread's family, those that exist with a new epoch."""
    family, epoch = thread.family, thread.epoch
    rows = ((family, digest, *chunk, epoch) for digest, chunk in chunks.items())
    sql.insert(_INSERT, rows, _KEEP)


class SqliteChunkReads(ChunkReads):
    """The role `ChunkReads`."""

    def __init__(self, sql: Statements) -> None:
        self._sql = sql

    def get(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        chunks: dict[bytes, Chunk] = {}
        for batch in batches(digests, BATCH):
            rows = self._sql.rows(
                "SELECT digest, refs, content FROM forkpoint_chunks"
                f" WHERE family = ? AND digest IN ({placeholders(batch)})",
                (family, *batch),
            )
            for digest, refs, content in rows:
                chunks[digest] = (refs, content)
        return chunks

    def sizes(self, family: Any, digests: Collection[bytes]) -> Mapping[bytes, int]:
        sizes: dict[bytes, int] = {}
        for batch in batches(digests, BATCH):
            rows = self._sql.rows(
                f"SELECT digest, {_SIZE} FROM forkpoint_chunks"
                f" WHERE family = ? AND digest IN ({placeholders(batch)})",
                (family, *batch),
            )
            sizes.update(rows)
        return sizes


class SqliteCollections(Collections):
    """The role `Collections`."""

    def __init__(self, sql: Statements, table: ThreadTable) -> None:
        self._sql = sql
        self._table = table

    def pending(self) -> list[Any]:
        rows = self._sql.rows(
            "SELECT DISTINCT family FROM forkpoint_threads"
            " WHERE removed_at IS NOT NULL AND removed_at < ?",
            (self._sql.now() - 1_000_000 * ABANDONED_SECONDS,),
        )
        return [family for (family,) in rows]

    def is_due(self, family: Any) -> bool:
        row = self._sql.row(
            "SELECT total(uncollected) * ? >= total(checkpoint_count) FROM forkpoint_threads"
            " WHERE family = ?",
            (MOST_UNCOLLECTED, family),
        )
        return row is not None and bool(row[0])

    def clear(self, family: Any) -> bool:
        self._table.abandon_copies(family, "copy_deadline < ?", self._sql.now())
        left = self._sql.turn_rows
        for (key,) in self._sql.rows(
            "SELECT key FROM forkpoint_threads WHERE family = ? AND removed_at IS NOT NULL"
            " AND deleted_at IS NOT NULL AND coalesce(copy_deadline, 0) = 0",
            (family,),
        ):
            for table in ("writes", "checkpoints"):
                left -= self._sql.run(
                    f"DELETE FROM forkpoint_{table} WHERE id IN"
                    f" (SELECT id FROM forkpoint_{table} WHERE thread = ? LIMIT ?)",
                    (key, left),
                ).rowcount
                if left == 0:
                    return True
            self._sql.run("DELETE FROM forkpoint_dictionaries WHERE thread = ?", (key,))
        return False

    def begin(self, family: Any) -> int:
        row = self._sql.row(f"SELECT {NEXT_EPOCH}", (family,))
        epoch: int = row[0] or 0 if row else 0
        self._sql.run("UPDATE forkpoint_threads SET epoch = ? WHERE family = ?", (epoch, family))
        self._sql.run(
            "UPDATE forkpoint_threads SET removed_at = ?"
            " WHERE family = ? AND removed_at IS NOT NULL",
            (self._sql.now(), family),
        )
        return epoch

    def is_undisturbed(self, family: Any, collection: int) -> bool:
        return self._epochs(family) == (collection, collection)

    def is_overtaken(self, family: Any, collection: int) -> bool:
        lowest, _ = self._epochs(family)
        return lowest is None or lowest > collection

    def _epochs(self, family: Any) -> tuple[int | None, int | None]:
        """Return the lowest and the highest epoch in a family, if anything is left of it."""
        # Each subquery is answered by the index; `min` and `max` in one query would read it all.
        epochs = self._sql.row(
            "SELECT (SELECT min(epoch) FROM forkpoint_threads WHERE family = ?),"
            " (SELECT max(epoch) FROM forkpoint_threads WHERE family = ?)",
            (family, family),
        )
        assert epochs is not None
        return epochs[0], epochs[1]

    def references(self, family: Any, after: Any = None) -> Batch[tuple[Any, bytes]]:
        if after is None:
            keys = self._sql.rows("SELECT key FROM forkpoint_threads WHERE family = ?", (family,))
            after = [(key, table, None) for (key,) in keys for table in _REFS]
        items: list[tuple[Any, bytes]] = []
        while after and len(items) < self._sql.turn_rows:
            key, table, place = after.pop()
            part = rows_after(self._sql, table, _REFS[table], key, place)
            items += ((key, row[0]) for row in part.items)
            if part.after is not None:
                after.append((key, table, part.after))
        return Batch(items, after or None)

    def links(self, family: Any, after: Any = None) -> Batch[tuple[bytes, bytes]]:
        part = self._chunks_after(family, "digest, refs", after)
        return Batch([(digest, refs) for digest, refs in part.items if refs], part.after)

    def digests(self, family: Any, after: Any = None) -> Batch[bytes]:
        part = self._chunks_after(family, "digest", after)
        return Batch([digest for (digest,) in part.items], part.after)

    def _chunks_after(self, family: Any, columns: str, after: Any) -> Batch[tuple[Any, ...]]:
        rows = self._sql.rows(
            f"SELECT {columns} FROM forkpoint_chunks WHERE family = ? AND digest > ?"
            " ORDER BY digest LIMIT ?",
            (family, after or b"", self._sql.turn_rows),
        )
        self._sql.count_read(len(rows))
        return Batch(rows, rows[-1][0] if len(rows) == self._sql.turn_rows else None)

    def chunks_at_once(self) -> int:
        return min(CHUNKS_AT_ONCE, _CHUNKS_PER_ROW * self._sql.turn_rows)

    def delete_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: int
    ) -> Counts | None:
        if not self.is_undisturbed(family, collection):
            return None
        if digests is None:
            rows = self._sql.rows(
                "SELECT digest FROM forkpoint_chunks WHERE family = ? AND epoch != ? LIMIT ?",
                (family, collection, self.chunks_at_once()),
            )
            digests = [digest for (digest,) in rows]
        condition = f"WHERE family = ? AND epoch != ? AND digest IN ({placeholders(digests)})"
        values = (family, collection, *digests)
        counts = self._sql.row(
            f"SELECT count(*), total({_SIZE}) FROM forkpoint_chunks {condition}", values
        )
        assert counts is not None
        self._sql.run(f"DELETE FROM forkpoint_chunks {condition}", values)
        return Counts(counts[0], int(counts[1]))

    def end(self, family: Any, collection: int) -> bool:
        if not self.is_undisturbed(family, collection):
            return False
        self._sql.run(
            "UPDATE forkpoint_threads SET removed_at = NULL, uncollected = 0"
            " WHERE family = ? AND removed_at IS NOT NULL AND copy_deadline IS NULL",
            (family,),
        )
        self._sql.run(  # copies that were never complete
            "DELETE FROM forkpoint_threads"
            " WHERE family = ? AND removed_at IS NOT NULL AND copy_deadline = 0",
            (family,),
        )
        self._table.forget_threads(family)
        return True
