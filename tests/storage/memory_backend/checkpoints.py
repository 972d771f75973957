"""Checkpoints, writes, chunks and what is collected of them, in dictionaries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from forkpoint.clocks import StoreClock
from forkpoint.encoding.chunk import Chunk
from forkpoint.errors import lost_secret
from forkpoint.filters import contains_json
from forkpoint.storage import interface
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import Batch, CheckpointQuery
from forkpoint.storage.receipts import RECEIPT, is_encrypted
from forkpoint.storage.rows import (
    CheckpointRow,
    Counts,
    Moment,
    StoredCheckpoint,
    StoredContent,
    ThreadRef,
    Usage,
    WriteRow,
)
from forkpoint.storage.shared import ABANDONED_SECONDS, ancestors_of

from .tables import Tables, Thread


class MemoryCheckpoints(interface.Checkpoints):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
        *,
        with_chunks: bool = False,
    ) -> StoredCheckpoint | None:
        tables = self._tables
        thread = tables.live(thread_id)
        if thread is None or owner not in (None, thread.owner):
            return None
        named = checkpoint_id or tables.head(thread.key, checkpoint_ns) or ""
        row = tables.checkpoint(thread.key, (checkpoint_ns, named))
        if row is None or row.hidden:
            return None
        return self._stored(thread, row)._replace(metadata=thread.described.metadata)

    def _stored(self, thread: Thread, row: CheckpointRow) -> StoredCheckpoint:
        writes = self._tables.writes_at(thread.key, (row.checkpoint_ns, row.checkpoint_id))
        return StoredCheckpoint(thread.thread_id, self._tables.ref(thread), row, writes)

    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        def place(thread: Thread, row: CheckpointRow) -> list[Any]:
            fields = {
                "checkpoint_id": row.checkpoint_id,
                "thread": thread.key,
                "checkpoint_ns": row.checkpoint_ns,
            }
            return [fields[name] for name in query.order]

        after = list(query.passed.values())
        result = []
        for thread in self._tables.threads.values():
            if thread.deleted_at is not None or query.owner not in (None, thread.owner):
                continue
            if query.thread_id not in (None, thread.thread_id):
                continue
            for stored in self._tables.checkpoints_of(thread.key).values():
                at = place(thread, stored.row)
                is_passed = bool(after) and (at <= after if query.oldest_first else at >= after)
                if not is_passed and _matches(query, stored.row):
                    result.append((at, thread, stored.row))
        result.sort(key=lambda entry: entry[0], reverse=not query.oldest_first)
        page = result[query.offset : query.offset + query.limit]
        return [self._stored(thread, row) for _, thread, row in page]

    def all(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        return iter([stored.row for stored in self._tables.checkpoints_of(thread.key).values()])

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        def checkpoint(id_: str) -> CheckpointRow | None:
            return self._tables.checkpoint(thread.key, (checkpoint_ns, id_))

        return ancestors_of(checkpoint, checkpoint_id)

    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        places = [(checkpoint_ns, id_) for id_ in checkpoint_ids]
        return [row for row in self.writes(thread, places) if row.channel in channels]

    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        record = self._tables.threads[thread.key]
        rows = self._tables.visible(thread.key)
        is_head = not any(row[0] == "" and row.checkpoint_id > checkpoint_id for row in rows)
        heads: dict[tuple[str, bool], CheckpointRow] = {}
        for row in sorted(rows, key=lambda row: row.checkpoint_id):
            if row.checkpoint_ns:
                heads[row.checkpoint_ns, row.checkpoint_id < before] = row
        return Moment(is_head, [*heads.values()], record.described, record.checksums, None)

    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        stored = self._tables.writes_of(thread.key).values()
        return [each.row for each in stored if each.row[:2] in places]

    def batch(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        return Batch(self.all(thread), None)

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        checkpoints = self._tables.checkpoints_of(thread.key)
        return [place for place, stored in checkpoints.items() if stored.is_under(fences)]

    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        checkpoints = list(self.all(thread))
        writes = [stored.row for stored in self._tables.writes_of(thread.key).values()]
        size = sum(len(row.metadata) for row in checkpoints)
        for row in (*checkpoints, *writes):
            size += len(row.refs) + len(row.content) + len(row.checksum)
        number = sum(not row.hidden for row in checkpoints)
        runs = frozenset(row.run_id for row in checkpoints if row.run_id is not None)
        return Batch([Usage(number, sum(row.idx > RECEIPT for row in writes), runs, size)], None)


def _matches(query: CheckpointQuery, row: CheckpointRow) -> bool:
    return (
        (query.with_hidden or not row.hidden)
        and query.checkpoint_ns in (None, row.checkpoint_ns)
        and query.checkpoint_id in (None, row.checkpoint_id)
        and (query.before is None or row.checkpoint_id < query.before)
        and (not query.filter or contains_json(row.metadata, query.filter))
    )


class MemoryChunks(interface.ChunkReads):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def get(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        chunks = self._tables.chunks.get(family, {})
        return {digest: chunks[digest][:2] for digest in digests if digest in chunks}

    def sizes(self, family: Any, digests: Collection[bytes]) -> Mapping[bytes, int]:
        chunks = self.get(family, digests).items()
        return {digest: len(refs) + len(content) for digest, (refs, content) in chunks}


class MemoryCollections(interface.Collections):
    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._tables = tables
        self._clock = clock

    def pending(self) -> list[Any]:
        long_ago = self._clock.now() - 1_000_000 * ABANDONED_SECONDS
        return [family for family, at in self._tables.removed_at.items() if at < long_ago]

    def clear(self, family: Any) -> bool:
        return False  # a deletion leaves no rows

    def begin(self, family: Any) -> int:
        tables = self._tables
        epoch = tables.epochs.get(family, 0) + 1
        tables.epochs[family] = epoch
        return epoch

    def is_undisturbed(self, family: Any, collection: int) -> bool:
        return self._tables.epochs.get(family, 0) == collection

    def references(self, family: Any, after: Any = None) -> Batch[tuple[Any, bytes]]:
        references: list[tuple[Any, bytes]] = []
        for thread in self._tables.threads.values():
            if thread.family == family:
                key = thread.key
                rows = [stored.row for stored in self._tables.checkpoints_of(key).values()]
                for stored in self._tables.writes_of(key).values():
                    rows += [each.row for each in (stored, stored.before) if each is not None]
                references += ((key, row.refs) for row in rows)
        return Batch(references, None)

    def links(self, family: Any, after: Any = None) -> Batch[tuple[bytes, bytes]]:
        chunks = self._tables.chunks.get(family, {})
        return Batch([(digest, chunk[0]) for digest, chunk in chunks.items() if chunk[0]], None)

    def digests(self, family: Any, after: Any = None) -> Batch[bytes]:
        return Batch(list(self._tables.chunks.get(family, {})), None)

    def delete_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: int
    ) -> Counts | None:
        if not self.is_undisturbed(family, collection):
            return None
        chunks = self._tables.chunks.get(family, {})
        old = [digest for digest, chunk in chunks.items() if chunk[2] != collection]
        going = old[: self.chunks_at_once()] if digests is None else set(digests) & set(old)
        removed = [chunks.pop(digest) for digest in going]
        return Counts(len(removed), sum(len(refs) + len(content) for refs, content, _ in removed))

    def end(self, family: Any, collection: int) -> bool:
        if not self.is_undisturbed(family, collection):
            return False
        tables = self._tables
        tables.removed_at.pop(family, None)
        needed = tables.ancestors()
        for thread in list(tables.threads.values()):
            is_left = thread.deleted_at is not None and thread.key not in needed
            if thread.family == family and is_left:
                del tables.threads[thread.key]
        return True


class MemorySecrets(interface.Secrets):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def store_key(self) -> bytes | None:
        return self._tables.store_key

    def add_store_key(self, key: bytes) -> None:
        self._tables.store_key = self._tables.store_key or key

    def all(self) -> list[bytes]:
        return self._tables.secrets

    def add(self, stored: bytes, seen: Sequence[bytes]) -> None:
        if self._tables.secrets != seen:
            return
        if not seen and any(thread.deleted_at is None for thread in self._tables.threads.values()):
            raise lost_secret()
        self._tables.secrets.append(stored)

    def remove(self, stored: bytes) -> None:
        if stored in self._tables.secrets:
            self._tables.secrets.remove(stored)


class MemoryContents(interface.Contents):
    """A place is the name of a kind, the key of a table, and that of a record in it."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def batch(self, after: Any = None) -> Batch[StoredContent]:
        kinds = ("checkpoints", "writes", "chunks")
        kind = after or kinds[0]
        contents = []
        for key, table in getattr(self._tables, kind).items():
            for name, stored in table.items():
                for depth, (idx, content) in enumerate(_contents_of(stored)):
                    if is_encrypted(idx, content):
                        contents.append(StoredContent((kind, key, name, depth), content))
        following = kinds.index(kind) + 1
        return Batch(contents, kinds[following] if following < len(kinds) else None)

    def replace(self, changes: Sequence[tuple[StoredContent, bytes]]) -> None:
        for ((kind, key, name, depth), content), new in changes:
            table = getattr(self._tables, kind)[key]
            if name in table:
                table[name] = _replaced(table[name], depth, content, new)


def _contents_of(stored: Any) -> list[tuple[int, bytes]]:
    """Return the idx and the content of a chunk, or of a row and what it has replaced."""
    if isinstance(stored, tuple):
        return [(RECEIPT, stored[1])]
    below = [] if stored.before is None else _contents_of(stored.before)
    return [(getattr(stored.row, "idx", RECEIPT), stored.row.content), *below]


def _replaced(stored: Any, depth: int, content: bytes, new: bytes) -> Any:
    if isinstance(stored, tuple):
        return (stored[0], new, stored[2]) if stored[1] == content else stored
    if depth:
        before = stored.before and _replaced(stored.before, depth - 1, content, new)
        return replace(stored, before=before)
    if stored.row.content != content:
        return stored
    return replace(stored, row=stored.row._replace(content=new))
