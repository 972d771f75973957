"""What backends store and return, as plain records. What is in them is described in `format.md`."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from forkpoint.encoding.codec import Chunks
from forkpoint.encoding.hashing import FLAG_BITS, UNBOUND, Hashing
from forkpoint.filters import folded
from forkpoint.storage.plan import Place, Plan


class ThreadRef(NamedTuple):
    """Which thread an id means at the moment, and how often its family was collected.

    A write names the `ThreadRef` that it was prepared for, and is refused with `Stale` if it no
    longer holds: then the thread was deleted or made, or chunks may be gone that it counts on.
    """

    key: Any
    family: Any
    epoch: Any
    owner: str | None = None
    thread_id: str = ""
    salt: bytes = b""
    """What is hashed with it fits no other thread; see `forkpoint.encoding.hashing`."""
    checksum: bytes = b""
    """That of the id, the owner and the salt, unverified."""


class CheckpointRow(NamedTuple):
    """A checkpoint as it is stored."""

    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    run_id: str | None
    metadata: str
    refs: bytes
    content: bytes
    checksum: bytes = b""
    """See `forkpoint.storage.row_checksums`."""
    hidden: bool = False
    restarts: bool = False
    """Whether a resumed run that finds it as a subgraph's newest applies the subgraph's input.

    So it is in a fork of an older checkpoint, and after a rollback: the state is from before the
    step that runs again."""
    binding: int = UNBOUND
    """What binds it to its thread; `UNBOUND` if the store finds that a flag was changed."""


class WriteRow(NamedTuple):
    """A write as it is stored."""

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


class RunStart(NamedTuple):
    """What a thread id meant when a run began: how it is told whether it is deleted since."""

    key: Any
    """The key of the thread; None if there was none."""
    deletion: Any
    """What `Session.last_deletion` returned; None if it was not read."""


class Expiry(NamedTuple):
    """When a thread expires, and what a sweep does then."""

    ttl: int | None = None
    """How long after its last activity, in microseconds, if ever."""
    on_expiry: str = "delete"
    """`delete`, or `keep_latest`: then it is trimmed, and is there all the time."""


class PutRequest(NamedTuple):
    """A checkpoint, or writes, to be stored with the chunks that they need."""

    thread_id: str
    expected: ThreadRef | None
    metadata: str
    """What the thread's metadata are, if this makes the thread."""
    ancestry: Sequence[tuple[str, str]]
    checkpoint_ns: str
    checkpoint_id: str
    chunks: Chunks
    row: CheckpointRow | None = None
    writes: Sequence[WriteRow] = ()
    status: str | None = None
    """The thread's status after this, if it changes. That of a checkpoint, `idle`, gives way to
    that of its writes, should they have come before it."""
    owner: str | None = None
    """Whose the thread is, if this makes it."""
    fence: int | None = None
    """The lease that the run holds, if it holds one."""
    history: int = 0
    """The store's history that this was prepared for; see `Storage.history`."""
    began: RunStart | None = None
    """Where it is known of the run. Else the ids of checkpoints tell what is late."""
    is_announced: bool = False
    """Whether the checkpoint that these writes belong to is on its way."""
    expiry: Expiry = Expiry()
    """When the thread expires, if this makes it."""
    value_terms: Sequence[int] | None = None
    """The terms of what is shown of the state of a checkpoint; None if nothing was chosen."""
    salt: bytes = b""
    """The salt of the thread, if this makes it."""
    checksums: bytes = b""
    """Those of the thread's record, if this makes it; see `forkpoint.encoding.hashing`."""
    now: int = 0
    """The time of the database, which a store sets whose statements cannot all ask for it."""


class Moment(NamedTuple):
    """What there was around a checkpoint of a graph, in the namespaces of its subgraphs."""

    is_head: bool
    """Whether there is no newer checkpoint of the graph itself."""
    heads: Sequence[CheckpointRow]
    """Of each subgraph's namespace the newest checkpoint, and the newest before a given one."""
    described: Description
    checksums: bytes
    """Those of the thread's record."""
    source: str | None
    """The id that the thread's parent had, if that is stored."""


class Description(NamedTuple):
    """What a thread's record says of it that its runs do not change."""

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
    """With `busy` in the place of what its runs left, while there is a lease."""
    created_at: int
    updated_at: int
    source_thread_id: str | None
    source_checkpoint_id: str | None
    checkpoint_count: int
    lease: LeaseRow | None
    fence: int = 0
    is_expired: bool = False
    """Whether its time to live has passed, it is to be deleted then, and no run has its lease."""
    is_swept: bool = False
    """Whether a sweep has trimmed it since it was active last."""
    state_updated_at: int = 0
    """0 before the first checkpoint of the thread's graph."""
    shown_at: str | None = None
    """The checkpoint that `Session.with_heads` looks at, if the backend needs to know it."""
    head: Sequence[WriteRow] = ()
    """What `Session.with_heads` found."""
    checksums: bytes = b""
    lineage: tuple[Any, ...] = ()
    """The edge, the parent's key as text, its checkpoint's id, and its id if that is stored."""

    @property
    def folded_label(self) -> str:
        """The label as it is searched by a part of it; empty without a label."""
        return folded(self.described.label or "")


class Usage(NamedTuple):
    """What some of a thread's rows take, without the chunks."""

    checkpoints: int
    writes: int
    runs: Set[str]
    """The ids of those that made them."""
    bytes: int


class ForkRequest(NamedTuple):
    """A new thread, to be made of rows of another."""

    source: ThreadRef
    source_id: str
    target_id: str
    parent_checkpoint_id: str | None
    owner: str | None
    described: Description
    status: str
    rows: Sequence[CheckpointRow]
    writes: Sequence[WriteRow]
    chunks: Chunks
    hashing: Hashing
    salt: bytes
    """That of the new thread, which its rows are bound to."""
    edge: str = "fork"


class FamilyMember(NamedTuple):
    """What a family's tree is drawn from."""

    key: Any
    thread_id: str
    edge: str | None
    parent: Any
    parent_checkpoint_id: str | None
    fork_metadata: str | None
    """The metadata of the checkpoint that it was forked from, as far as it is still there."""
    checkpoint_count: int
    created_at: int
    deleted_at: int | None
    salt: bytes = b""
    checksums: bytes = b""


class Counts(NamedTuple):
    """How many checkpoints and writes were removed, or how many chunks and their bytes."""

    number: int
    more: int


class RemovalPart(NamedTuple):
    """What is left to do of a removal."""

    going: list[Place]
    """What is to be removed or hidden, in order."""
    plan: Plan


class ChangeCount(NamedTuple):
    """By what it is seen whether something has happened to a thread."""

    checkpoints: int
    """How many can be seen."""
    removals: int
    """How often something was removed or replaced."""


class RemovalResult(NamedTuple):
    """What was done of a part of a removal."""

    counts: Counts
    places: int
    """How many of the checkpoints that were to go are dealt with."""
    extent: ChangeCount
    """What the thread is then."""
