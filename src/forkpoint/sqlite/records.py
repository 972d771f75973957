"""SQLite: the records of threads, as the catalog shows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import CorruptChunk
from forkpoint.sqlite.rows import (
    NEWEST_CHECKPOINT,
    READ_WRITE,
    THREAD_COLUMNS,
    THREAD_OF,
    description,
    write_row,
)
from forkpoint.sqlite.search_index import SearchIndex
from forkpoint.sqlite.statements import BATCH, Statements, placeholders
from forkpoint.sqlite.thread_table import NEXT_EPOCH, ThreadTable, description_columns
from forkpoint.sqlite.tombstones import Tombstones
from forkpoint.storage.interface import Records
from forkpoint.storage.plan import HEAD_ROWS
from forkpoint.storage.receipts import WRITES
from forkpoint.storage.rows import (
    Description,
    FamilyMember,
    LeaseRow,
    RecordTimes,
    ThreadRef,
    ThreadRow,
    WriteRow,
)
from forkpoint.storage.shared import batches, is_expired

RECORD = (
    f"SELECT {THREAD_OF}, t.checksums, t.edge, t.parent, t.label, t.tags, t.metadata, t.ttl,"
    " t.fixed_keys, t.on_expiry, t.status, t.created_at, t.updated_at, s.thread_id,"
    " t.parent_checkpoint_id, t.checkpoint_count, t.lease_holder, t.lease_since, t.lease_until,"
    " t.fence, t.swept_at, t.state_updated_at FROM forkpoint_threads AS t"
    " LEFT JOIN forkpoint_threads AS s ON s.key = t.parent"
    " WHERE t.deleted_at IS NULL AND NOT t.provisional"
)
"""The query whose rows `thread_row` takes. A further condition may follow."""

_HEADS = (
    f"SELECT w.thread, {', '.join(f'w.{column}' for column in READ_WRITE.split(', '))}"
    " FROM forkpoint_threads AS t JOIN forkpoint_writes AS w"
    " ON w.thread = t.key AND w.checkpoint_ns = ''"
    f" AND w.checkpoint_id = {NEWEST_CHECKPOINT.format(thread='t.key')}"
    f" WHERE (w.idx IN {HEAD_ROWS} OR w.idx <= {WRITES}) AND t.key IN "
)
_NO_PARENT = "edge = NULL, parent = NULL, parent_checkpoint_id = NULL"


class SqliteRecords(Records):
    """The role `Records`."""

    def __init__(
        self, sql: Statements, table: ThreadTable, tombstones: Tombstones, index: SearchIndex
    ) -> None:
        self._sql = sql
        self._table = table
        self._tombstones = tombstones
        self._index = index

    def get(self, thread_id: str) -> ThreadRow | None:
        return self.get_many([thread_id]).get(thread_id)

    def get_many(self, thread_ids: Collection[str]) -> dict[str, ThreadRow]:
        now = self._sql.now()
        records: dict[str, ThreadRow] = {}
        for batch in batches(thread_ids, BATCH):
            for row in self._sql.rows(
                f"{RECORD} AND t.thread_id IN ({placeholders(batch)})", batch
            ):
                record = thread_row(row, now)
                records[record.thread_id] = record
        return records

    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        heads: dict[int, list[WriteRow]] = {}
        # A thread without checkpoints has nothing to be seen.
        keys = [row.thread.key for row in rows if row is not None and row.checkpoint_count != 0]
        for batch in batches(keys, BATCH):
            for key, *values in self._sql.rows(f"{_HEADS} ({placeholders(batch)})", batch):
                with suppress(CorruptChunk):  # it is not shown, and keeps nobody from the rest
                    heads.setdefault(key, []).append(write_row(values))
        return [row and row._replace(head=heads.get(row.thread.key, ())) for row in rows]

    def create(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        row = self._sql.row(
            "SELECT key, salt, provisional, owner FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            (thread_id,),
        )
        if row is None:
            watermark = self._tombstones.watermark(thread_id)
            columns = self._columns(thread_id, owner, described, hashing)
            self._index.add(self._table.insert(**columns, watermark=watermark), columns)
            return True
        key, salt, is_provisional, known_owner = row
        if not is_provisional or known_owner != owner:
            return False
        self._table.update(key, "provisional = 0")
        checksums = hashing.checksums((thread_id, owner, salt), described)
        self._table.describe(key, described, checksums)
        self._index.update(key)
        return True

    def create_many(
        self, new: Mapping[str, Description], owner: str | None, hashing: Hashing
    ) -> Set[str]:
        known: set[str] = set()
        for batch in batches(new, BATCH):
            rows = self._sql.rows(
                "SELECT thread_id FROM forkpoint_threads"
                f" WHERE thread_id IN ({placeholders(batch)}) AND deleted_at IS NULL",
                batch,
            )
            known.update(thread_id for (thread_id,) in rows)
        watermarks = self._tombstones.watermarks([id_ for id_ in new if id_ not in known])
        records = [
            {**self._columns(id_, owner, new[id_], hashing), "watermark": watermark}
            for id_, watermark in watermarks.items()
        ]
        if records:
            self._index.add_since(self._table.add_many(records), len(records))
        adopted = (id_ for id_ in known if self.create(id_, owner, new[id_], hashing))
        return watermarks.keys() | set(adopted)

    def _columns(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> dict[str, Any]:
        """Return the columns of the record of a new thread."""
        now, salt = self._sql.now(), new_salt()
        checksums = hashing.checksums((thread_id, owner, salt), described)
        columns = {"thread_id": thread_id, "owner": owner, "salt": salt}
        times = {"created_at": now, "updated_at": now}
        return {**columns, **times, **description_columns(described, checksums)}

    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        key = seen.thread.key
        self._index.remove(key)
        self._table.describe(key, described, checksums)
        if times is None:
            self._table.update(key, "updated_at = max(updated_at + 1, ?)", self._sql.now())
        else:
            changes = "created_at = ?, updated_at = ?, state_updated_at = ?"
            self._table.update(key, changes, *times)
        self._index.update(key)
        return True

    def hand_over(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        key, family = seen.thread.key, seen.thread.family
        self._index.remove(key)
        self._table.describe(key, described, checksums)
        if seen.thread.owner is not None:
            watermark = self._table.highest_checkpoint_id(key)
            self._tombstones.add(key, seen.thread_id, seen.thread.owner, watermark)
        self._table.update(
            key,
            f"{_NO_PARENT}, owner = ?, removals = removals + 1, epoch = {NEXT_EPOCH},"
            " updated_at = max(updated_at + 1, ?)",
            *(owner, family, self._sql.now()),
        )
        self._table.forget_ids(family)
        self._index.update(key)
        return True

    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        self._index.remove(kin.key)
        self._table.update(kin.key, f"{_NO_PARENT}, checksums = ?", checksums)
        self._index.update(kin.key)
        return True

    def note_sweep(self, seen: ThreadRow) -> None:
        self._table.update(seen.thread.key, "swept_at = ?", seen.updated_at)


def thread_row(row: Sequence[Any], now: int) -> ThreadRow:
    """Return the record of a thread.

    Args:
        row: A row of the query `RECORD`.
        now: The store's time.
    """
    thread = ThreadRef(*row[:THREAD_COLUMNS])
    checksums, edge, parent, *rest = row[THREAD_COLUMNS:]
    described, rest = description(rest[:6]), rest[6:]
    status, created_at, updated_at, source, parent_checkpoint, count, *rest = rest
    holder, since, until, fence, swept_at, state_updated_at = rest
    is_leased = isinstance(until, int) and until > now
    lease = LeaseRow(holder, since, until, fence) if is_leased else None
    has_times = isinstance(described.ttl, int) and isinstance(updated_at, int)  # not damaged
    return ThreadRow(
        thread,
        thread.thread_id,
        described,
        "busy" if is_leased else status,
        created_at=created_at,
        updated_at=updated_at,
        source_thread_id=source,
        source_checkpoint_id=parent_checkpoint,
        checkpoint_count=count,
        lease=lease,
        fence=fence,
        is_expired=has_times and is_expired(described, updated_at, now, is_leased=is_leased),
        is_swept=swept_at == updated_at,
        state_updated_at=state_updated_at,
        checksums=checksums,
        lineage=(edge, parent if parent is None else str(parent), parent_checkpoint, None),
    )
