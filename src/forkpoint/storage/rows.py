"""What backends store and return, as plain records. What is in them is described in `format.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, NamedTuple

from forkpoint.encoding.chunk import Chunk, Chunks
from forkpoint.encoding.hashing import FLAG_BITS, UNBOUND, Hashing
from forkpoint.filters import folded
from forkpoint.storage.plan import Place, Plan


class ThreadRef(NamedTuple):
    """A thread, as a call has found it.

    Two of them are equal as long as the id means the same thread, in the same epoch. A write names
    the `ThreadRef` that it was prepared for, and is refused with `Stale` if that of its id is
    another by then: the thread was deleted or made, or chunks may be gone that the write needs.
    """

    key: Any
    """What tells it from all threads that there ever were."""
    family: Any
    """The key of the family's first thread. Threads of a family share chunks."""
    epoch: Any
    """Which every removal and collection replaces; see `Collections`."""
    owner: str | None = None
    thread_id: str = ""
    salt: bytes = b""
    """Random bytes. What is hashed with them fits no other thread; see `encoding.hashing`."""
    checksum: bytes = b""
    """That of the id, the owner and the salt: the first bytes of the record's checksums."""


class CheckpointRow(NamedTuple):
    """A checkpoint as it is stored. A backend keeps all fields, and looks into none of them."""

    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    run_id: str | None
    metadata: str
    """A JSON object, in ASCII."""
    refs: bytes
    """The digests of the chunks that it leads to, joined."""
    content: bytes
    checksum: bytes = b""
    """See `storage.row_checksums`."""
    hidden: bool = False
    """Whether it was removed, and stays because the state of another is rebuilt from it."""
    restarts: bool = False
    """Whether a resumed run that finds it as a subgraph's newest applies the subgraph's input.

    So it is in a fork of an older checkpoint, and after a rollback: the state is from before the
    step that runs again."""
    binding: int = UNBOUND
    """What binds it to its thread; `UNBOUND` if a flag was changed. See `stored_binding`."""


class WriteRow(NamedTuple):
    """A write of a task, or a receipt, as it is stored.

    The first four fields are its place in its thread. A run under a lease may replace a write: then
    the backend keeps the one before and its fence beside it, for `Plan.withdrawn`.
    """

    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    idx: int
    task_path: str
    channel: str
    refs: bytes
    content: bytes
    checksum: bytes = b""
    binding: int = UNBOUND
    """See `CheckpointRow`."""


HIDDEN, RESTARTS = 1, 2
"""By how much a flag of a checkpoint raises the binding as it is stored."""


def stored_binding(row: CheckpointRow | WriteRow) -> int:
    """Return the binding of a row as it is stored: with its flags, so that a change is noticed."""
    if row.binding == UNBOUND:
        return UNBOUND
    flags = 0
    if isinstance(row, CheckpointRow):
        flags = HIDDEN * row.hidden + RESTARTS * row.restarts
    return row.binding << FLAG_BITS | flags


def binding_of(stored: Any, *, hidden: Any = False, restarts: Any = False) -> int:
    """Return the binding of a row that was read, if its flags are those that were stored."""
    if not isinstance(stored, int) or hidden not in (0, 1) or restarts not in (0, 1):
        return UNBOUND
    flags = HIDDEN * hidden + RESTARTS * restarts
    return int(stored) >> FLAG_BITS if stored & (1 << FLAG_BITS) - 1 == flags else UNBOUND


class StoredCheckpoint(NamedTuple):
    """A checkpoint that was read, with its thread and its writes."""

    thread_id: str
    thread: ThreadRef
    row: CheckpointRow
    writes: list[WriteRow]
    metadata: str | None = None
    """The metadata of the thread's record, if the record was read too."""
    chunks: Mapping[bytes, Chunk] = MappingProxyType({})
    """Chunks that were read with it. Others that it needs are to be read."""


class RunStart(NamedTuple):
    """What a thread id meant when a run began. It tells whether the thread was deleted since."""

    key: Any
    """The key of the thread; None if there was none."""
    deletion: Any
    """The id's tombstones, as `Threads.deletions` returned them; None if they were not read."""


class Expiry(NamedTuple):
    """When a thread expires, and what a sweep does with it."""

    ttl: int | None = None
    """How long after its last activity, in microseconds; None for never."""
    on_expiry: str = "delete"
    """`delete`, or `keep_latest`: the thread is trimmed, and users see it all the time."""


class PutRequest(NamedTuple):
    """A checkpoint, or writes of a task, to be stored with the chunks that they need."""

    thread_id: str
    expected: ThreadRef | None
    """The thread that it was prepared for; None if it makes the thread."""
    metadata: str
    """The thread's metadata, if this makes the thread."""
    ancestry: Sequence[tuple[str, str]]
    """The places of checkpoints that it comes after. None of them may be of a deleted thread."""
    checkpoint_ns: str
    checkpoint_id: str
    chunks: Chunks
    """Those of its chunks that the store may lack."""
    row: CheckpointRow | None = None
    """The checkpoint; None if it is writes only. One of the same place is replaced."""
    writes: Sequence[WriteRow] = ()
    """The writes, and the receipts of what is put. A backend stores receipts last."""
    status: str | None = None
    """The thread's status after this; None leaves it. See `shared.status_after`."""
    owner: str | None = None
    """The owner of the saver; of the thread, if this makes it."""
    fence: int | None = None
    """The fence of the lease that the run holds; None if it shows none."""
    history: int = 0
    """The store's history that this was prepared for; see `Storage.history`."""
    began: RunStart | None = None
    """What the thread id meant when the run began, if that is known. If not, the ids of checkpoints
    tell whether the run is one of a deleted thread."""
    is_announced: bool = False
    """Whether the checkpoint that these writes belong to is about to be put."""
    expiry: Expiry = Expiry()
    """When the thread expires, if this makes it."""
    value_terms: Sequence[int] | None = None
    """The search terms of the values that the record shows; None if it shows none."""
    salt: bytes = b""
    """The salt of the thread, if this makes it."""
    checksums: bytes = b""
    """Those of the thread's record, if this makes it; see `encoding.hashing`."""
    now: int = 0
    """The time of the store, for a backend whose statements cannot all ask for it."""


class Moment(NamedTuple):
    """What a fork of a checkpoint needs to know of the thread; see `Checkpoints.moment`."""

    is_head: bool
    """Whether the checkpoint is the newest of the graph itself, which has the namespace ""."""
    heads: Sequence[CheckpointRow]
    """The newest visible checkpoint of each namespace of a subgraph that keeps its state, and the
    newest before a given id. Of other namespaces the newest, if it is newer than the head, or than
    the newest of the nearest graph around it that keeps its state."""
    described: Description
    checksums: bytes
    """Those of the thread's record."""
    source: str | None
    """The id of the thread's parent, if the record has a field for it; see `ThreadRow.lineage`."""


class Description(NamedTuple):
    """What people and applications say of a thread."""

    label: str | None = None
    tags: Sequence[str] = ()
    metadata: str = "{}"
    ttl: int | None = None
    fixed_keys: Sequence[str] = ()
    """The keys of the metadata that somebody set, in order. Runs leave these as they are."""
    on_expiry: str = "delete"
    """See `Expiry`."""


class RecordTimes(NamedTuple):
    """The times in a thread's record; see `Thread`."""

    created_at: int
    updated_at: int
    state_updated_at: int


class LeaseRow(NamedTuple):
    """The right to be the only active run on a thread, and who has it."""

    holder: str
    since: int
    until: int
    fence: int
    rollback_from: int | None = None
    """The first fence whose run is to be rolled back before this one begins, if any is."""


class ThreadRow(NamedTuple):
    """The record of a thread, as the catalog shows it."""

    thread: ThreadRef
    thread_id: str
    described: Description
    status: str
    """`busy` while a run has the lease; else what its newest checkpoint waits for."""
    created_at: int
    updated_at: int
    source_thread_id: str | None
    source_checkpoint_id: str | None
    checkpoint_count: int
    lease: LeaseRow | None
    fence: int = 0
    is_expired: bool = False
    """Whether a sweep is to delete it; see `shared.is_expired`."""
    is_swept: bool = False
    """Whether a sweep has trimmed it since it was active last."""
    state_updated_at: int = 0
    """When its newest checkpoint changed or was asked something; 0 before the first one."""
    shown_at: str | None = None
    """The newest checkpoint, for a backend whose `Records.with_heads` needs it."""
    head: Sequence[WriteRow] = ()
    """The rows that `Records.with_heads` adds."""
    checksums: bytes = b""
    """See `storage.record_checksums`."""
    lineage: tuple[Any, ...] = ()
    """The edge, the parent's key as text, the parent's checkpoint's id, and the parent's id. The
    last one is None in a backend that looks it up in the parent's record."""

    @property
    def folded_label(self) -> str:
        """The label as it is searched by a part of it; empty without a label."""
        return folded(self.described.label or "")


class Usage(NamedTuple):
    """What some of a thread's rows take, without the chunks."""

    checkpoints: int
    writes: int
    runs: Set[str]
    """The ids of the runs that made the checkpoints."""
    bytes: int


class ForkRequest(NamedTuple):
    """A new thread, to be made of rows of another."""

    source: ThreadRef
    source_id: str
    target_id: str
    """The id of the new thread."""
    parent_checkpoint_id: str | None
    """The checkpoint of the source that it is forked from."""
    owner: str | None
    described: Description
    status: str
    rows: Sequence[CheckpointRow]
    """Its checkpoints, bound to the new thread."""
    writes: Sequence[WriteRow]
    """Its writes and receipts, bound to the new thread."""
    chunks: Chunks
    """The chunks that the family may lack."""
    hashing: Hashing
    salt: bytes
    """The salt of the new thread."""
    edge: str = "fork"
    """`fork`, or `clone` for a thread that is like the source and has no checkpoints."""


class FamilyMember(NamedTuple):
    """A thread among its relatives."""

    key: Any
    thread_id: str
    edge: str | None
    """How it was made of its parent: by `fork` or by `clone`. None if it was not."""
    parent: Any
    """The key of its parent."""
    parent_checkpoint_id: str | None
    fork_metadata: str | None
    """The metadata of the checkpoint that it was forked from: its own copy, or else that of its
    parent; None if neither is stored any more."""
    checkpoint_count: int
    created_at: int
    deleted_at: int | None
    salt: bytes = b""
    checksums: bytes = b""
    owner: str | None = None


class Counts(NamedTuple):
    """What was removed: checkpoints and writes, or chunks and bytes."""

    number: int
    """How many checkpoints, or chunks."""
    more: int
    """How many writes, or bytes."""


class RemovalPart(NamedTuple):
    """What is left to do of a removal from a long thread."""

    going: list[Place]
    """The checkpoints that are to be removed or hidden, in order."""
    plan: Plan


class ChangeCount(NamedTuple):
    """Two numbers of a thread, one of which changes with whatever is done to its rows."""

    checkpoints: int
    """How many visible checkpoints it has."""
    removals: int
    """How often a checkpoint or a write of it was removed or replaced."""


class RemovalResult(NamedTuple):
    """How much of a part of a removal was done."""

    counts: Counts
    """What was removed."""
    places: int
    """How many of the checkpoints in `RemovalPart.going` are done, from its beginning."""
    extent: ChangeCount
    """The numbers of the thread after it."""


class StoredContent(NamedTuple):
    """What is stored, encrypted, in one place.

    Attributes:
        place: Where, as the backend names it.
        content: What is stored.
    """

    place: Any
    content: bytes
