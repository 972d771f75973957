"""SQLite: the SQL of each primitive, but for those of the catalog."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import ormsgpack

from forkpoint.encoding.codec import Chunk, Chunks
from forkpoint.encoding.hashing import IDENTITY_BYTES
from forkpoint.errors import StaleLease, ThreadExists, lost_checkpoint, stale_lease
from forkpoint.langgraph_rules import ERROR_IDX, INTERRUPT_IDX, NULL_TASK_ID
from forkpoint.sqlite.heads import SqliteHeads
from forkpoint.sqlite.pages import page_statement
from forkpoint.sqlite.removals import UNRECEIPT
from forkpoint.sqlite.rows import (
    CHECKPOINT,
    DESCRIPTION,
    READ_CHECKPOINT,
    READ_WRITE,
    RESTORED,
    THREAD,
    THREAD_COLUMNS,
    THREAD_OF,
    WRITE,
    checkpoint_row,
    checkpoint_values,
    description,
    write_row,
    write_values,
)
from forkpoint.sqlite.statements import batches, marks
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import CheckpointQuery, in_order, span_of
from forkpoint.storage.receipts import RECEIPT, replaces
from forkpoint.storage.rows import (
    CheckpointRow,
    FamilyMember,
    ForkRequest,
    Moment,
    PutRequest,
    StoredCheckpoint,
    ThreadRef,
    WriteRow,
)
from forkpoint.storage.tombstones import is_deleted_since

_CHECKPOINT_OF = [
    f"SELECT {THREAD_OF}, t.metadata, "
    + ", ".join(f"c.{column}" for column in READ_CHECKPOINT.split(", "))
    + " FROM forkpoint_threads AS t JOIN forkpoint_checkpoints AS c ON c.thread = t.key"
    " WHERE t.thread_id = ? AND t.deleted_at IS NULL AND t.owner IS coalesce(?, t.owner)"
    " AND c.checkpoint_ns = ? AND NOT c.hidden" + which
    for which in (" ORDER BY c.checkpoint_id DESC LIMIT 1", " AND c.checkpoint_id = ?")
]
_WRITES_OF, _WRITES_FROM = (
    f"SELECT {READ_WRITE} FROM forkpoint_writes"
    f" WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id {is_at} ?"
    for is_at in ("=", ">=")
)
_RECEIPT_OF = (
    "SELECT w.checkpoint_id FROM forkpoint_threads AS t JOIN forkpoint_writes AS w"
    " ON w.thread = t.key WHERE t.thread_id = ? AND t.deleted_at IS NULL"
    " AND t.owner IS coalesce(?, t.owner) AND w.checkpoint_ns = ?"
    f" AND w.checkpoint_id = coalesce(?, w.checkpoint_id) AND w.task_id = '{NULL_TASK_ID}'"
    f" AND w.idx = {RECEIPT} LIMIT 1"
)
# A new checkpoint makes a thread idle, unless a task's interrupt or error came before it. Those of
# a checkpoint that is not the newest do not count.
_UPDATE_THREAD = (
    "UPDATE forkpoint_threads SET checkpoint_count = checkpoint_count + ?1,"
    " updated_at = max(updated_at, ?2),"
    " state_updated_at = iif(?3 IS NULL, state_updated_at, max(updated_at, ?2)),"
    " status = CASE ?3 WHEN 'idle' THEN coalesce(("
    f"SELECT CASE idx WHEN {INTERRUPT_IDX} THEN 'interrupted' ELSE 'error' END"
    " FROM forkpoint_writes WHERE thread = key AND checkpoint_ns = ?4 AND checkpoint_id = ?5"
    f" AND idx IN ({INTERRUPT_IDX}, {ERROR_IDX}) ORDER BY idx LIMIT 1"
    "), 'idle') ELSE iif(?3 IS NULL OR EXISTS (SELECT 1 FROM forkpoint_checkpoints"
    " WHERE thread = key AND checkpoint_ns = ?4 AND checkpoint_id > ?5 AND NOT hidden),"
    " status, ?3) END"
    " WHERE provisional <= ?6 AND key = ?7 AND epoch = ?8 AND deleted_at IS NULL"
    " AND dead_until IS ?9 AND fence = coalesce(?10, fence)"
)
_SAME_THREAD = (
    "SELECT 1 FROM forkpoint_threads"
    " WHERE key = ? AND epoch = ? AND deleted_at IS NULL AND dead_until IS ?"
    " AND fence = coalesce(?, fence)"
)
_FORKED = (
    "(SELECT c.metadata FROM forkpoint_checkpoints AS c WHERE c.thread = {thread}"
    " AND c.checkpoint_ns = '' AND c.checkpoint_id = t.parent_checkpoint_id)"
)
_RECORD = (
    "t.key, t.thread_id, t.edge, t.parent, t.parent_checkpoint_id,"
    f" coalesce({_FORKED.format(thread='t.key')}, {_FORKED.format(thread='t.parent')}),"
    " t.checkpoint_count, t.created_at, t.deleted_at, t.salt, t.checksums"
    " FROM forkpoint_threads AS t"
)
_PUT = (
    f"INSERT OR IGNORE INTO forkpoint_checkpoints (thread, {CHECKPOINT}, binding, fence)"
    f" VALUES ({marks(range(13))})"
)
_REPLACE = (
    "UPDATE forkpoint_checkpoints SET parent_checkpoint_id = ?, run_id = ?,"
    " metadata = ?, refs = ?, content = ?, checksum = ?, hidden = ?, restarts = ?, binding = ?,"
    " fence = ? WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
)
# A task's writes are stored once; its error, interrupt and resume replace each other.
_PUT_WRITES, _REPLACE_WRITES = (
    f"INSERT OR {verb} INTO forkpoint_writes (thread, {WRITE}, binding, fence) VALUES "
    for verb in ("IGNORE", "REPLACE")
)
_REPLACE_UNDER = (
    f"INSERT OR REPLACE INTO forkpoint_writes (thread, {WRITE}, binding, fence, before,"
    " before_refs) VALUES "
)
_REPLACED = (
    f"SELECT before, before_refs, {RESTORED} FROM forkpoint_writes"
    " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ? AND task_id = ? AND idx = ?"
)
_REPLACED_REFS = (
    "SELECT refs FROM forkpoint_writes WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
    " AND task_id = ? AND idx = ?"
)
_PUT_CHUNKS = "INSERT INTO forkpoint_chunks (family, digest, refs, content, epoch) VALUES "
# A chunk that is there already, but is not known to be: it stays if it is being collected.
_KEEP_CHUNKS = (
    " ON CONFLICT (family, digest) DO UPDATE SET epoch = excluded.epoch"
    " WHERE epoch != excluded.epoch"
)


class SqliteSession(SqliteHeads):
    """The primitives of `forkpoint.storage.interface.Session` within one transaction."""

    # Reading

    def checkpoint(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
    ) -> StoredCheckpoint | None:
        row = self.one(
            _CHECKPOINT_OF[checkpoint_id is not None],
            thread_id,
            owner,
            checkpoint_ns,
            *(() if checkpoint_id is None else (checkpoint_id,)),
        )
        if row is None:
            lost = self.one(_RECEIPT_OF, thread_id, owner, checkpoint_ns, checkpoint_id)
            if lost is not None:
                raise lost_checkpoint(thread_id, checkpoint_ns, lost[0])
            return None
        *fields, metadata = row[: THREAD_COLUMNS + 1]
        thread, found = ThreadRef(*fields), checkpoint_row(row[THREAD_COLUMNS + 1 :])
        statement = _WRITES_FROM if checkpoint_id is None else _WRITES_OF
        rows = self.all(statement, thread.key, checkpoint_ns, found.checkpoint_id)
        writes = [write_row(write) for write in rows]
        later = [write for write in writes if write.checkpoint_id != found.checkpoint_id]
        if later:
            lost = next((write for write in later if write.idx == RECEIPT), None)
            if lost is not None:
                raise lost_checkpoint(thread_id, checkpoint_ns, lost.checkpoint_id)
            writes = [write for write in writes if write.checkpoint_id == found.checkpoint_id]
        return StoredCheckpoint(thread_id, thread, found, writes, metadata)

    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        thread: ThreadRef | None = None
        if query.thread_id is not None:
            thread = self.thread(query.thread_id)
            if thread is None:
                return []
        sql, values = page_statement(query, READ_CHECKPOINT, thread.key if thread else None)
        found = [
            StoredCheckpoint(
                row[4], ThreadRef(*row[:THREAD_COLUMNS]), checkpoint_row(row[THREAD_COLUMNS:]), []
            )
            for row in self.all(sql, *values)
        ]
        span = span_of(query, found)
        if span is None:
            self._add_writes(found)
            return found
        at = (
            found[0].thread.key,
            query.checkpoint_ns,
            span.low,
            *([span.high] if span.high else []),
        )
        rows = self.all(_WRITES_FROM + " AND checkpoint_id <= ?" * (span.high is not None), *at)
        writes = [write_row(row) for row in rows]
        by_id = {one.row.checkpoint_id: one for one in found}
        for write in writes:
            if write.checkpoint_id in by_id:
                by_id[write.checkpoint_id].writes.append(write)
        return in_order(query, found + span.lost(found, writes))

    def _add_writes(self, page: list[StoredCheckpoint]) -> None:
        places = {(f.thread.key, f.row.checkpoint_ns, f.row.checkpoint_id): f for f in page}
        if not places:
            return
        columns = ", ".join(f"w.{column}" for column in READ_WRITE.split(", "))
        rows = self.all(
            f"WITH wanted (thread, checkpoint_ns, checkpoint_id) AS"
            f" (VALUES {', '.join(['(?, ?, ?)'] * len(places))})"
            f" SELECT w.thread, {columns} FROM wanted JOIN forkpoint_writes AS w"
            " USING (thread, checkpoint_ns, checkpoint_id)",
            *(value for place in places for value in place),
        )
        for key, *columns_ in rows:
            write = write_row(columns_)
            places[key, write.checkpoint_ns, write.checkpoint_id].writes.append(write)

    def chunks(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        found: dict[bytes, Chunk] = {}
        for batch in batches(digests):
            rows = self.all(
                "SELECT digest, refs, content FROM forkpoint_chunks"
                f" WHERE family = ? AND digest IN ({marks(batch)})",
                family,
                *batch,
            )
            for digest, refs, content in rows:
                found[digest] = (refs, content)
        return found

    def chunks_of(
        self, wanted: Mapping[Any, Collection[bytes]], *, follow: bool = True
    ) -> Mapping[Any, Mapping[bytes, Chunk]]:
        return {family: self.chunks(family, digests) for family, digests in wanted.items()}

    def rows(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        for row in self.run(
            f"SELECT {READ_CHECKPOINT} FROM forkpoint_checkpoints WHERE thread = ?", thread.key
        ):
            yield checkpoint_row(row)

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        following: str | None = checkpoint_id
        while following is not None:
            row = self.one(
                f"SELECT {READ_CHECKPOINT} FROM forkpoint_checkpoints"
                " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
                thread.key,
                checkpoint_ns,
                following,
            )
            if row is None:
                return
            found = checkpoint_row(row)
            yield found
            following = found.parent_checkpoint_id

    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        found = []
        for batch in batches(checkpoint_ids):
            found += self.all(
                f"SELECT {READ_WRITE} FROM forkpoint_writes WHERE thread = ? AND checkpoint_ns = ?"
                f" AND checkpoint_id IN ({marks(batch)})"
                f" AND channel IN ({marks(channels)})",
                thread.key,
                checkpoint_ns,
                *batch,
                *channels,
            )
        return [write_row(row) for row in found]

    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        newer = self.one(
            "SELECT 1 FROM forkpoint_checkpoints WHERE thread = ? AND checkpoint_ns = ''"
            " AND checkpoint_id > ? AND NOT hidden",
            thread.key,
            checkpoint_id,
        )
        # From one namespace to the next through the index, whatever there is in each.
        heads = self.all(
            "WITH RECURSIVE namespaces (ns) AS ("
            " SELECT min(checkpoint_ns) FROM forkpoint_checkpoints"
            " WHERE thread = :thread AND checkpoint_ns > ''"
            " UNION ALL SELECT (SELECT min(checkpoint_ns) FROM forkpoint_checkpoints"
            " WHERE thread = :thread AND checkpoint_ns > ns) FROM namespaces WHERE ns IS NOT NULL"
            "), heads (ns, head) AS ("
            " SELECT ns, (SELECT max(checkpoint_id) FROM forkpoint_checkpoints"
            " WHERE thread = :thread AND checkpoint_ns = ns AND NOT hidden) FROM namespaces"
            " UNION SELECT ns, (SELECT max(checkpoint_id) FROM forkpoint_checkpoints"
            " WHERE thread = :thread AND checkpoint_ns = ns AND checkpoint_id < :before"
            " AND NOT hidden) FROM namespaces"
            f") SELECT {READ_CHECKPOINT} FROM heads JOIN forkpoint_checkpoints"
            " ON thread = :thread AND checkpoint_ns = ns AND checkpoint_id = head",
            thread=thread.key,
            before=before,
        )
        record = self.one(
            f"SELECT checksums, {DESCRIPTION} FROM forkpoint_threads WHERE key = ?", thread.key
        )
        assert record is not None
        checksums, *said = record
        rows = [checkpoint_row(row) for row in heads]
        return Moment(newer is None, rows, description(said), checksums, None)

    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        found: list[WriteRow] = []
        for place in places:
            found += [write_row(row) for row in self.all(_WRITES_OF, thread.key, *place)]
        return found

    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        rows = self.all(
            "WITH RECURSIVE line (key, height) AS (VALUES (?, 0) UNION ALL"
            " SELECT t.parent, height + 1 FROM line JOIN forkpoint_threads AS t USING (key)"
            # A parent is older: so no damage makes this go on for ever.
            f" WHERE t.parent < t.key) SELECT {_RECORD} JOIN line ON line.key = t.key"
            " ORDER BY height",
            thread.key,
        )
        return [FamilyMember(*row) for row in rows]

    def family(self, family: Any) -> list[FamilyMember]:
        rows = self.all(f"SELECT {_RECORD} WHERE t.family = ? AND t.thread_id != ''", family)
        return [FamilyMember(*row) for row in rows]

    def threads_of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        found: dict[Any, ThreadRef] = {}
        for batch in batches(run_ids):
            for row in self.all(
                f"SELECT {THREAD} FROM forkpoint_threads"
                " WHERE deleted_at IS NULL AND key IN (SELECT thread FROM forkpoint_checkpoints"
                f" WHERE run_id IS NOT NULL AND run_id IN ({marks(batch)}))",
                *batch,
            ):
                found[row[0]] = ThreadRef(*row)
        return list(found.values())

    # Writing

    def put(self, put: PutRequest) -> ThreadRef | None:
        thread = put.expected
        now = self.now()
        if thread is None or not self._update_thread(thread, put, now, None):
            thread = self._admit(put, now)
            if thread is None:
                return None
        if put.chunks:
            self._put_chunks(thread, put.chunks)
        key = thread.key
        if put.row is not None:
            values = checkpoint_values(key, put.row, put.fence)
            if not self.run(_PUT, *values).rowcount:
                self._replace(thread, values)
        once: list[tuple[Any, ...]] = []
        special: list[tuple[Any, ...]] = []
        for write in put.writes:
            (special if replaces(write.idx) else once).append(write_values(key, write, put.fence))
        self.insert(_PUT_WRITES, once)
        if special:
            self._replace_writes(thread, special)
        return thread

    def _replace_writes(self, thread: ThreadRef, rows: Sequence[tuple[Any, ...]]) -> None:
        key = thread.key
        replaced = [self.one(_REPLACED_REFS, *row[:5]) for row in rows if row[4] > RECEIPT]
        if any(row and row[0] for row in replaced):
            self.note_removal(thread)
        elif any(replaced):
            self.run("UPDATE forkpoint_threads SET removals = removals + 1 WHERE key = ?", key)
        if rows[0][-1] is None:
            self.insert(_REPLACE_WRITES, rows)
        else:
            self.insert(_REPLACE_UNDER, [(*row, *self._before(row)) for row in rows])

    def _before(self, row: tuple[Any, ...]) -> tuple[bytes | None, bytes | None]:
        """Return what was in the place of a write before the run that puts it, to be restored."""
        known = self.one(_REPLACED, *row[:5])
        if known is None:
            return None, None
        before, before_refs, *replaced = known
        if replaced[-1] == row[-1]:  # the run's own
            return before, before_refs
        return ormsgpack.packb(replaced), replaced[2]

    def _put_chunks(self, thread: ThreadRef, chunks: Chunks) -> None:
        rows = [(thread.family, digest, *chunk, thread.epoch) for digest, chunk in chunks.items()]
        self.insert(_PUT_CHUNKS, rows, _KEEP_CHUNKS)

    def _replace(self, thread: ThreadRef, values: tuple[Any, ...]) -> None:
        self.run(_REPLACE, *values[3:], *values[:3])
        self.run(UNRECEIPT, *values[:3])  # which may show another state
        self.count_checkpoints(thread.key)
        self.note_removal(thread)

    def _update_thread(
        self, thread: ThreadRef, put: PutRequest, now: int, dead_until: str | None
    ) -> bool:
        """Keep the record of a thread up, if it still is as it is known to be."""
        if put.row is None and put.status is None:  # nothing in it changes
            return bool(self.one(_SAME_THREAD, thread.key, thread.epoch, dead_until, put.fence))
        updated = self.run(
            _UPDATE_THREAD,
            put.row is not None,
            now,
            put.status,
            put.checkpoint_ns,
            put.checkpoint_id,
            put.row is None,
            thread.key,
            thread.epoch,
            dead_until,
            put.fence,
        )
        return updated.rowcount == 1

    def _admit(self, put: PutRequest, now: int) -> ThreadRef | None:
        """Return the thread to write to, made if need be, where more than one look is needed."""
        row = self.one(
            f"SELECT {THREAD}, dead_until, fence FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            put.thread_id,
        )
        thread = ThreadRef(*row[:THREAD_COLUMNS]) if row else None
        if thread != put.expected:
            raise Stale
        if row and put.fence not in (None, row[-1]):
            raise StaleLease(stale_lease(put.thread_id))
        dead_until = row[-2] if row else self.dead_until(put.thread_id)
        if self._is_refused(put, thread, dead_until):
            return None
        if thread is None:
            thread = self._add_thread(put, dead_until, now)
        if put.row is not None:
            self.run("UPDATE forkpoint_threads SET provisional = 0 WHERE key = ?", thread.key)
        self._update_thread(thread, put, now, dead_until)
        return thread

    def _is_refused(
        self, put: PutRequest, thread: ThreadRef | None, dead_until: str | None
    ) -> bool:
        """Return whether a write is that of a run that began before its thread was deleted."""
        if put.began is not None:
            return thread is None and is_deleted_since(
                put.began.deletion, self.last_deletion(put.thread_id, put.owner)
            )
        if dead_until is not None and put.owner is not None:
            dead_until = self.dead_until(put.thread_id, put.owner)  # of others' it is not told
        if dead_until is None:
            return False
        if self._is_late(put, thread, dead_until):
            self._remove_traces(put, thread)
            return True
        # Where a thread was deleted, the next one begins with a checkpoint.
        return thread is None and not (put.row or put.is_announced)

    def _add_thread(self, put: PutRequest, dead_until: str | None, now: int) -> ThreadRef:
        key = self.run(
            "INSERT INTO forkpoint_threads (thread_id, family, owner, salt, checksums, metadata,"
            " ttl, on_expiry, created_at, updated_at, provisional, dead_until)"
            " VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)",
            put.thread_id,
            put.owner,
            put.salt,
            put.checksums,
            put.metadata,
            *put.expiry,
            now,
            now,
            dead_until,
        ).lastrowid
        self.run("UPDATE forkpoint_threads SET family = key WHERE key = ?", key)
        return ThreadRef(
            key, key, 0, put.owner, put.thread_id, put.salt, put.checksums[:IDENTITY_BYTES]
        )

    def _is_late(self, put: PutRequest, thread: ThreadRef | None, dead_until: str) -> bool:
        """Return whether a write comes after a checkpoint that went with its thread."""
        return any(
            checkpoint_id <= dead_until
            and (thread is None or not self._exists(thread.key, checkpoint_ns, checkpoint_id))
            for checkpoint_ns, checkpoint_id in put.ancestry
        )

    def _exists(self, thread: int, checkpoint_ns: str, checkpoint_id: str) -> bool:
        return bool(
            self.one(
                "SELECT 1 FROM forkpoint_checkpoints"
                " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
                thread,
                checkpoint_ns,
                checkpoint_id,
            )
        )

    def _remove_traces(self, put: PutRequest, thread: ThreadRef | None) -> None:
        """Remove writes that came before the late checkpoint they belong to, and expect more."""
        self.run(
            "UPDATE forkpoint_threads SET dead_until = max(dead_until, ?) WHERE key = ?",
            put.checkpoint_id,
            thread.key if thread else None,
        )
        self.die_later(put.thread_id, put.owner, put.checkpoint_id)
        if thread is None or self._exists(thread.key, put.checkpoint_ns, put.checkpoint_id):
            return
        self.run(
            "DELETE FROM forkpoint_writes"
            " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
            thread.key,
            put.checkpoint_ns,
            put.checkpoint_id,
        )
        self.note_removal(thread)
        provisional = self.run(
            "DELETE FROM forkpoint_threads WHERE key = ? AND provisional"
            " AND NOT EXISTS (SELECT 1 FROM forkpoint_writes WHERE thread = ?)",
            thread.key,
            thread.key,
        ).rowcount
        if provisional:
            self.run("DELETE FROM forkpoint_chunks WHERE family = ?", thread.family)

    def graft(self, graft: ForkRequest) -> None:
        source = graft.source
        if self.thread(graft.target_id) is not None:
            raise ThreadExists(f"there is a thread {graft.target_id!r} already")
        now = self.now()
        described = graft.described
        checksums = graft.hashing.checksums(
            (graft.target_id, graft.owner, graft.salt),
            described,
            (graft.edge, str(source.key), graft.parent_checkpoint_id),
        )
        key = self.run(
            "INSERT INTO forkpoint_threads (thread_id, family, epoch, edge, parent,"
            " parent_checkpoint_id, owner, salt, checksums, status, checkpoint_count, created_at,"
            " updated_at, state_updated_at, dead_until)"
            " SELECT ?, family, epoch, ?, key, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
            " FROM forkpoint_threads WHERE key = ?",
            graft.target_id,
            graft.edge,
            graft.parent_checkpoint_id,
            graft.owner,
            graft.salt,
            checksums,
            graft.status,
            sum(not row.hidden for row in graft.rows),
            now,
            now,
            now if graft.rows else 0,
            self.dead_until(graft.target_id),
            source.key,
        ).lastrowid
        self._describe(key, described, checksums)
        self._put_chunks(source, graft.chunks)
        assert key is not None
        self.many(_PUT, [checkpoint_values(key, row) for row in graft.rows])
        self.insert(_PUT_WRITES, [write_values(key, write) for write in graft.writes])

    # Secrets

    def secrets(self) -> list[bytes]:
        rows = self.all("SELECT value FROM forkpoint_settings WHERE name LIKE 'secret:%'")
        return [value for (value,) in rows]

    def add_secret(self, stored: bytes) -> None:
        self.run(
            "INSERT INTO forkpoint_settings (name, value) VALUES (?, ?)",
            f"secret:{len(self.secrets()) + 1}",
            stored,
        )
