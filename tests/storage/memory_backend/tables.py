"""What a memory store keeps, as dictionaries of records that are never changed, only replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.hashing import IDENTITY_BYTES
from forkpoint.langgraph_rules import NULL_TASK_ID, status_of
from forkpoint.storage.plan import Place
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import CheckpointRow, Description, LeaseRow, ThreadRef, WriteRow

WritePlace = tuple[str, str, str, int]
"""A write within its thread: namespace, checkpoint, task and idx."""


@dataclass(frozen=True)
class Thread:
    """The record of a thread, which stays for its descendants when it is deleted."""

    key: int
    thread_id: str
    family: int
    owner: str | None
    salt: bytes
    checksums: bytes
    described: Description
    created_at: int
    updated_at: int
    state_updated_at: int = 0
    status: str = "idle"
    edge: str | None = None
    parent: int | None = None
    parent_checkpoint_id: str | None = None
    lease: LeaseRow | None = None
    fence: int = 0
    rollback_from: int | None = None
    waiting: tuple[tuple[str, int], ...] = ()
    swept_at: int | None = None
    removals: int = 0
    is_provisional: bool = False
    deleted_at: int | None = None
    watermark: str | None = None
    """The highest checkpoint id of the deleted threads of this id, when this one was made."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint or a write, and the fence of the run that stored it."""

    row: Any
    fence: int | None = None
    before: Stored | None = None
    """What a run under a lease replaced by it."""

    def is_under(self, fences: range) -> bool:
        """Return whether a run stored it under a lease with one of these fences."""
        return self.fence is not None and self.fence in fences


@dataclass(frozen=True)
class Tombstone:
    """The last deletion of a thread id for one owner."""

    number: int
    thread: int | None
    watermark: str | None
    made_at: int


@dataclass
class Tables:
    """A state of the store. A transaction works on a copy, which replaces the state at its end."""

    threads: dict[int, Thread] = field(default_factory=dict)
    checkpoints: dict[int, dict[Place, Stored]] = field(default_factory=dict)
    writes: dict[int, dict[WritePlace, Stored]] = field(default_factory=dict)
    chunks: dict[int, dict[bytes, tuple[bytes, bytes, int]]] = field(default_factory=dict)
    """Of each family the refs, the content and the epoch of each chunk."""
    epochs: dict[int, int] = field(default_factory=dict)
    """How often something was removed or collected in a family."""
    removed_at: dict[int, int] = field(default_factory=dict)
    """When something was removed in a family that was not collected since."""
    tombstones: dict[tuple[Any, ...], Tombstone] = field(default_factory=dict)
    snapshots: dict[int, dict[int, Any]] = field(default_factory=dict)
    """What searches see that are read page by page."""
    secrets: list[bytes] = field(default_factory=list)
    store_key: bytes | None = None
    last_number: int = 0

    def copied(self) -> Tables:
        """Return a copy, of which each table can be changed."""
        made = copy(self)
        for name in ("threads", "epochs", "removed_at", "tombstones", "snapshots"):
            setattr(made, name, dict(getattr(self, name)))
        for name in ("checkpoints", "writes", "chunks"):
            tables = getattr(self, name)
            setattr(made, name, {key: dict(table) for key, table in tables.items()})
        made.secrets = list(self.secrets)
        return made

    def number(self) -> int:
        """Return a number that was never used."""
        self.last_number += 1
        return self.last_number

    # Threads

    def live(self, thread_id: str) -> Thread | None:
        """Return the thread that an id means."""
        there = (item for item in self.threads.values() if item.thread_id == thread_id)
        return next((item for item in there if item.deleted_at is None), None)

    def seen(self) -> Iterator[Thread]:
        """Return the threads that the catalog shows."""
        for thread in self.threads.values():
            if thread.deleted_at is None and not thread.is_provisional:
                yield thread

    def ref(self, thread: Thread) -> ThreadRef:
        """Return which thread it is, at the present epoch of its family."""
        identity = thread.checksums[:IDENTITY_BYTES]
        at = thread.key, thread.family, self.epochs.get(thread.family, 0)
        return ThreadRef(*at, thread.owner, thread.thread_id, thread.salt, identity)

    def update(self, key: int, **fields: Any) -> Thread:
        """Change the record of a thread."""
        changed = self.threads[key] = replace(self.threads[key], **fields)
        return changed

    def note_removal(self, thread: Thread, now: int) -> None:
        """Note that something was removed, so that prepared writes and collections begin again."""
        self.epochs[thread.family] = self.epochs.get(thread.family, 0) + 1
        self.removed_at[thread.family] = now
        self.update(thread.key, removals=self.threads[thread.key].removals + 1)

    # Rows

    def checkpoints_of(self, key: int) -> dict[Place, Stored]:
        return self.checkpoints.get(key, {})

    def writes_of(self, key: int) -> dict[WritePlace, Stored]:
        return self.writes.get(key, {})

    def checkpoint(self, key: int, place: Place) -> CheckpointRow | None:
        stored = self.checkpoints_of(key).get(place)
        return None if stored is None else stored.row

    def visible(self, key: int) -> list[CheckpointRow]:
        """Return the checkpoints of a thread that are not hidden."""
        rows = [stored.row for stored in self.checkpoints_of(key).values()]
        return [row for row in rows if not row.hidden]

    def head(self, key: int, checkpoint_ns: str = "") -> str | None:
        """Return the id of the newest checkpoint of a namespace."""
        rows = [row for row in self.visible(key) if row.checkpoint_ns == checkpoint_ns]
        return max((row.checkpoint_id for row in rows), default=None)

    def newest_id(self, key: int) -> str | None:
        """Return the highest id of a checkpoint that a thread has, or has writes for."""
        places = [*self.checkpoints_of(key), *self.writes_of(key)]
        return max((place[1] for place in places), default=None)

    def writes_at(self, key: int, place: Place) -> list[WriteRow]:
        rows = (stored.row for stored in self.writes_of(key).values())
        return [row for row in rows if row[:2] == place]

    def status(self, key: int, *, is_known: bool = False) -> str:
        """Return what the newest checkpoint of a thread's graph waits for."""
        head = self.head(key)
        kinds = {write.idx for write in self.writes_at(key, ("", head or ""))}
        return status_of(kinds, self.threads[key].status if is_known else None)

    def drop_writes(self, key: int, goes: Callable[[Stored], bool]) -> int:
        """Remove writes with their receipts, and return how many writes that were."""
        writes = self.writes_of(key)
        dropped = [place for place, stored in writes.items() if goes(stored)]
        for place in dropped:
            del writes[place]
        return sum(place[3] > RECEIPT for place in dropped)

    def drop_receipt(self, key: int, place: Place) -> None:
        """Remove the receipt of a checkpoint."""
        self.writes_of(key).pop((*place, NULL_TASK_ID, RECEIPT), None)

    def put_chunks(self, family: int, chunks: Chunks) -> None:
        """Store chunks, and let those that are there already be new."""
        table = self.chunks.setdefault(family, {})
        epoch = self.epochs.get(family, 0)
        for digest, (refs, content) in chunks.items():
            table[digest] = (refs, content, epoch)

    # Deletions

    def tombstones_of(self, thread_id: str, owner: str | None) -> list[Tombstone]:
        """Return the deletions of an id that an owner may know, or all."""
        counted = {(thread_id, OWNED, owner), (thread_id, ALL)}
        return [
            tombstone
            for (id_, *mark), tombstone in self.tombstones.items()
            if id_ == thread_id and (owner is None or (id_, *mark) in counted)
        ]

    def watermark(self, thread_id: str, owner: str | None = None) -> str | None:
        """Return the highest checkpoint id that is known to be of a deleted thread of an id."""
        ids = [item.watermark for item in self.tombstones_of(thread_id, owner)]
        return max((id_ for id_ in ids if id_ is not None), default=None)

    def entomb(
        self,
        mark: tuple[Any, ...],
        now: int,
        thread: int | None = None,
        watermark: str | None = None,
    ) -> None:
        """Note a deletion in the place of the one before."""
        before = self.tombstones.pop(mark, None)
        ids = [id_ for id_ in (watermark, before and before.watermark) if id_ is not None]
        thread = thread or (before and before.thread)
        made = Tombstone(self.number(), thread, max(ids, default=None), now)
        self.tombstones[mark] = made

    def ancestors(self) -> Set[int]:
        """Return the keys of the threads that those which are there descend from."""
        needed: set[int] = set()
        for thread in self.threads.values():
            parent = thread.parent if thread.deleted_at is None else None
            while parent is not None and parent in self.threads and parent not in needed:
                needed.add(parent)
                parent = self.threads[parent].parent
        return needed


OWNED, ALL = "owner", "all"
