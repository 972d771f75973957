"""What a backend must do; the operations are written against it, and know nothing of SQL.

`format.md`, beside this file, says what is stored.

`Storage.writing` runs a block of calls as one transaction where the backend has them. Where it has
none, each call of a `Session` is atomic, and the operations call in such an order that stopping
between two leaves nothing dangling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from forkpoint.encoding.codec import Chunk, Chunks
from forkpoint.encoding.hashing import FLAG_BITS, UNBOUND, Hashing
from forkpoint.runtime.steps import Again, Steps
from forkpoint.storage.plan import Place, Plan
from forkpoint.storage.receipts import RECEIPT

SCHEMA_VERSION = 1

STORE_KEY_BYTES = 32

CHUNKS_AT_ONCE = 500
"""How many chunks are removed before others may have their turn, as a rule."""

_T_co = TypeVar("_T_co", covariant=True)


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


class Found(NamedTuple):
    """A checkpoint that was read, with its thread and its writes."""

    thread_id: str
    thread: ThreadRef
    row: CheckpointRow
    writes: list[WriteRow]
    metadata: str | None = None
    """The metadata of the thread's record, if the record was read too."""


class Query(NamedTuple):
    """Which checkpoints to list, newest first unless told otherwise; None means any.

    `after` is the place of the last one of the page before: `(checkpoint_id, key, checkpoint_ns)`.
    """

    thread_id: str | None
    checkpoint_ns: str | None
    checkpoint_id: str | None
    before: str | None
    filter: Mapping[str, Any] | None
    after: tuple[str, Any, str] | None
    limit: int
    offset: int = 0
    oldest_first: bool = False
    must_exist: bool = False
    """Whether it is an error if there is no such thread."""
    owner: str | None = None
    """Whose threads alone are listed; None for all."""
    with_hidden: bool = False

    @property
    def is_of_all_namespaces(self) -> bool:
        """Whether it lists a thread's graph together with its subgraphs."""
        is_narrowed = self.checkpoint_ns is not None or self.checkpoint_id is not None
        return self.thread_id is not None and not is_narrowed

    @property
    def order(self) -> list[str]:
        """The fields that the listing is in the order of, but for those that are the same."""
        thread = ["thread"] if self.thread_id is None else []
        namespace = ["checkpoint_ns"] if self.checkpoint_ns is None else []
        return ["checkpoint_id", *thread, *namespace]

    @property
    def passed(self) -> dict[str, Any]:
        """The value of each field of the order that the page before ended with, if there is one."""
        if self.after is None:
            return {}
        place = dict(zip(("checkpoint_id", "thread", "checkpoint_ns"), self.after, strict=True))
        return {name: place[name] for name in self.order}


class Beginning(NamedTuple):
    """What a thread id meant when a run began: how it is told whether it is deleted since."""

    key: Any
    """The key of the thread; None if there was none."""
    deletion: Any
    """What `Session.last_deletion` returned; None if it was not read."""


class Span(NamedTuple):
    """Which checkpoints of a namespace a page has, all of them: those between two ids."""

    low: str
    high: str | None
    """None if there is no limit."""

    def lost(self, page: Sequence[Found], writes: Iterable[WriteRow]) -> list[Found]:
        """Return a row that cannot be read for each checkpoint that has nothing but its receipt.

        Args:
            page: What was read.
            writes: The writes and receipts after all checkpoints of the span.
        """
        there = {found.row.checkpoint_id for found in page} | {self.low, self.high}
        ids = {row.checkpoint_id for row in writes if row.idx == RECEIPT} - there
        first = page[0]
        return [
            Found(
                first.thread_id,
                first.thread,
                CheckpointRow(first.row.checkpoint_ns, id_, None, None, "{}", b"", b""),
                [],
            )
            for id_ in ids
        ]


def span_of(query: Query, page: Sequence[Found]) -> Span | None:
    """Return the span of a page, if it has all of a thread's checkpoints in one."""
    of_namespace = query.thread_id is not None and query.checkpoint_ns is not None
    if not page or not of_namespace or query.checkpoint_id or query.filter or query.offset:
        return None
    begin = query.after[0] if query.after else None
    end = page[-1].row.checkpoint_id if len(page) >= query.limit else None
    if query.oldest_first:
        return Span(begin or "", end or query.before)
    return Span(end or "", begin or query.before)


def in_order(query: Query, page: list[Found]) -> list[Found]:
    """Return the checkpoints of one namespace in the order of a page."""
    return sorted(page, key=lambda one: one.row.checkpoint_id, reverse=not query.oldest_first)


class Expiry(NamedTuple):
    """When a thread expires, and what a sweep does then."""

    ttl: int | None = None
    """How long after its last activity, in microseconds, if ever."""
    on_expiry: str = "delete"
    """`delete`, or `keep_latest`: then it is trimmed, and is there all the time."""


class Put(NamedTuple):
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
    began: Beginning | None = None
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


UNSTORED = 0
"""The walk of a search that the disk has no room for: each page shows what there is by then."""


class Selection(NamedTuple):
    """Which threads to list, and in which order.

    The rows found may be more than are asked for: what a term stands for is to be compared.
    """

    owner: str | None
    """Whose threads alone; None for all."""
    ids: Sequence[str] | None
    terms: Sequence[int]
    """All of which a thread must have."""
    any_terms: Sequence[int]
    """Of which a thread must have one, unless there are none."""
    statuses: Sequence[str]
    """Of which a thread must have one, unless there are none."""
    created: tuple[int | None, int | None] = (None, None)
    """The range of times, the first one included."""
    updated: tuple[int | None, int | None] = (None, None)
    sort_by: str = "updated_at"
    descending: bool = True
    after: tuple[Any, str] | None = None
    """The place of the last one of the page before: what it is sorted by, and its thread id."""
    label_contains: str | None = None
    """What the folded label must contain; see `forkpoint.filters.folded`."""
    walk: Any = None
    """What names the moment at which a search began that is being read page by page."""
    limit: int = 50


class Selected(NamedTuple):
    """A page of threads."""

    rows: Sequence[ThreadRow | None]
    """None for one that was deleted meanwhile."""
    places: Sequence[tuple[Any, str]]
    """Of each row the place that it has in the walk, which may not be what it has by now."""
    walk: Any
    is_last: bool
    goes_on: bool = True
    """Whether the page after it begins at its last place. Else, with `Session.begin_walk`, all
    begins again, and what was on this page is left out."""


class Usage(NamedTuple):
    """What some of a thread's rows take, without the chunks."""

    checkpoints: int
    writes: int
    runs: Set[str]
    """The ids of those that made them."""
    bytes: int


class Graft(NamedTuple):
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


class ThreadRecord(NamedTuple):
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


Choose = Callable[[Sequence[CheckpointRow]], Plan]
"""Chooses which of a thread's checkpoints, hidden ones included, are to be removed or hidden."""


class Stale(Exception):
    """The `ThreadRef` that a write was prepared for no longer holds. Nothing was written."""


class Extent(NamedTuple):
    """By what it is seen whether something has happened to a thread."""

    checkpoints: int
    """How many can be seen."""
    removals: int
    """How often something was removed or replaced."""


class Removed(NamedTuple):
    """What was done of a part of a removal."""

    counts: Counts
    places: int
    """How many of the checkpoints that were to go are dealt with."""
    extent: Extent
    """What the thread is then."""


@dataclass(frozen=True)
class Part(Generic[_T_co]):
    """A part of all that is to be read.

    Attributes:
        items: What it is.
        after: What to ask for the next part with, or None if this is the last one.
    """

    items: Iterable[_T_co]
    after: Any


class Rewound(Stale, Again):
    """The store is another, or went back: what is remembered of it no longer holds.

    Its file was replaced, say, or a backup was restored. Nothing was written.
    """


class Session(Protocol):
    """A dozen primitives. Everything that is read is as it is stored: unverified, encrypted."""

    def is_spent(self) -> bool:
        """Return whether a transaction has done so much that others should have their turn."""

    # Reading

    def thread(self, thread_id: str) -> ThreadRef | None:
        """Return which thread an id means, if it is not deleted."""

    def last_deletion(self, thread_id: str, owner: str | None = None) -> Set[Any]:
        """Return what tells the deletions of a thread id from those before.

        Of each owner it is the last. Given one, those of threads of others are left out.
        """

    def checkpoint(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
    ) -> Found | None:
        """Return a checkpoint, or the newest of its namespace.

        Given an owner, threads of others are not there: nothing of them is read.
        """

    def page(self, query: Query) -> list[Found]:
        """Return a page of checkpoints, newest first."""

    def chunks(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        """Return those of these chunks that the store has.

        With `follow` it may return what they lead to as well.
        """

    def chunks_of(
        self, wanted: Mapping[Any, Collection[bytes]], *, follow: bool = True
    ) -> Mapping[Any, Mapping[bytes, Chunk]]:
        """Return what `chunks` does, for several families at once."""

    def rows(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        """Return all checkpoints of a thread, hidden ones too, in no order."""

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        """Return a checkpoint, its parent, and so on, hidden ones too."""

    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        """Return the writes of some checkpoints to some channels, in no order."""

    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        """Return what there was around a checkpoint of the thread's graph.

        `before` is the checkpoint id that a time travel looks for the state of subgraphs before.
        """

    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        """Return the writes of some checkpoints, in no order."""

    def lineage(self, thread: ThreadRef) -> list[ThreadRecord]:
        """Return a thread, its parent, and so on."""

    def family(self, family: Any) -> list[ThreadRecord]:
        """Return all threads of a family, deleted ones too, in no order."""

    def threads_of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        """Return the threads in which these runs made checkpoints."""

    # The catalog

    def now(self) -> int:
        """Return the time of the database, in microseconds since 1970."""

    def record(self, thread_id: str) -> ThreadRow | None:
        """Return the record of a thread."""

    def select(self, selection: Selection) -> Selected:
        """Return a page of threads.

        The first page of a walk lists all threads as they are. The others have those that were
        not on a page before, whatever changed since: each thread that stays is on one page.
        """

    def begin_walk(self) -> Any:
        """Return what names this moment, so that pages can be selected as of it."""

    def end_walk(self, walk: Any) -> None:
        """Keep no longer what only a walk sees, if it was begun."""

    def count(self, selection: Selection) -> int:
        """Return how many threads there are to be selected."""

    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        """Return records with some rows of the newest checkpoint of each thread's own graph.

        These are its receipt, the interrupts and errors of its tasks, and the receipts of what the
        tasks did.
        """

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        """Return threads whose time is up, in the order of when it was, and of their keys.

        Those that a sweep has trimmed since they were active last are left out.

        `after` is the place of the last one of the batch before: when its time was up, and its key.
        """

    def grown(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        """Return threads with more checkpoints than this, in the order of their keys."""

    def note_sweep(self, seen: ThreadRow) -> None:
        """Note that a sweep has trimmed a thread, as it was after its last activity."""

    def add(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        """Make the record of a thread, and return whether there was none of this id."""

    def describe(self, seen: ThreadRow, described: Description, checksums: bytes) -> bool:
        """Say something else of a thread, and return whether nobody else did in between."""

    def give(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        """Let a thread be another owner's, and say something else of it, as `describe` does.

        It is said no longer what it was made of. A write that was prepared before is refused with
        `Stale`, and for the owner before it is as if the thread had been deleted.
        """

    def detach(
        self, parent: ThreadRef, kin: ThreadRecord, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        """Say no longer what a thread was made of, and return whether it was as it was seen.

        Args:
            parent: The thread that it was made of.
            kin: The thread.
            row: Its record, if it is not deleted.
            checksums: Those of its record then.
        """

    def lease(
        self,
        thread: ThreadRef,
        holder: str,
        ttl: int,
        *,
        take_over: bool,
        waits: bool,
        rolls_back: bool = False,
    ) -> LeaseRow | None:
        """Give out the lease of a thread, or return None if somebody has it.

        Who `waits` has it after those who came before, as long as these ask again within their
        `ttl`. With `rolls_back`, it is noted what is to be rolled back if it is taken over.

        Raises:
            Stale: The thread is deleted.
        """

    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        """Note, under a lease, that what was to be rolled back is."""

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        """Make a lease last for longer, and return whether it is still the same."""

    def release(self, thread: ThreadRef, fence: int) -> None:
        """End a lease, if it is still the same. What was written under it is not any more."""

    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        """Wait for the lease of a thread no longer."""

    def usage(self, thread: ThreadRef, after: Any = None) -> Part[Usage]:
        """Return what a thread's rows take."""

    def sizes(self, family: Any, digests: Collection[bytes]) -> int:
        """Return how many bytes some chunks of a family take."""

    # Writing

    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        """Make a thread with all checkpoints and writes of another, as a clone of it.

        It is described as the other is, unless told otherwise.

        Raises:
            ThreadExists: There is a thread of this id.
            Stale: The other thread was deleted.
        """

    def begin_copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> Any:
        """Begin what `copy` does, for a thread that `is_long`, and return what names the copy.

        None if it cannot be done in turns.

        Raises:
            ThreadExists: There is a thread of this id.
            Stale: The other thread was deleted.
        """

    def copy_part(self, copying: Any) -> bool:
        """Copy some more, or show a copy that is complete, and return whether there is more to do.

        Raises:
            ThreadExists: There is a thread of this id by now. Nothing was written.
            Stale: Something was removed from the other thread. Nothing was written.
            StorageBusy: The copy was taken for abandoned.
        """

    def abandon_copy(self, copying: Any) -> None:
        """Leave a copy to `clear`."""

    def graft(self, graft: Graft) -> None:
        """Make a thread of rows of another, as a fork of it.

        Raises:
            ThreadExists: There is a thread of this id.
            Stale: The other thread is not as it was when its rows were read.
        """

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        """Remove checkpoints with their writes, hide others, and reopen others, as is chosen.

        Nobody writes to the thread in between. Nothing is done if the thread is deleted by now.
        Only reopening counts as activity.
        Returns how many checkpoints and writes were removed.
        """

    def is_long(self, thread: ThreadRef) -> bool:
        """Return whether to remove from a thread in turns, by `extent` and `remove_part`.

        Else it is for `remove` to do so, which may take long and keeps others out.
        """

    def extent(self, thread: ThreadRef) -> Extent:
        """Return what tells whether something has happened to a thread.

        Raises:
            Stale: It is deleted.
        """

    def rows_after(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Part[CheckpointRow]:
        """Return checkpoints of a thread, hidden ones too, without refs and content maybe.

        All of them, but for those that are put while they are read.
        """

    def rows_from(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        """Return the checkpoints that can be seen from an id on, without refs and content."""

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        """Return the checkpoints that runs stored under leases with these fences."""

    def remove_part(
        self, thread: ThreadRef, part: RemovalPart, check: Callable[[], None]
    ) -> Removed:
        """Do some of what is left of a removal, in order; all of it if it is to be done as a whole.

        Nobody writes to the thread in between. What `check` raises then ends it, with nothing done.

        Raises:
            Stale: The thread is deleted.
        """

    def bury(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        """Mark a thread as deleted: from now on nobody sees it, or writes to it.

        What is left of it is removed by `clear`. What `check` raises ends it, with nothing done.
        Returns how many checkpoints and writes it had.

        Raises:
            Stale: The thread was updated, leased or deleted since it was seen. Nothing was done.
        """

    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        """Let `last_deletion` return more, for the runs of a thread not stored yet.

        Given an owner, it does so for that one's runs, else for all.
        A thread of this id that was made meanwhile stays.
        """

    def forget_deletions(self) -> bool:
        """Remove what tells of deletions that are so old that no run is on its way any more.

        Returns whether there is more to remove.
        """

    def buried(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        """Return the deleted thread that an id meant last, if something of it may be left.

        That is so if the process that deleted it ended in the middle.
        """

    # Collecting

    def uncollected(self) -> list[Any]:
        """Return the families in which somebody has removed, and did not collect for a while."""

    def clear(self, family: Any) -> bool:
        """Remove some of what is left of a family's deleted threads, and return if there is more.

        So it does with copies that nobody makes any more.
        """

    def begin_collection(self, family: Any) -> Any:
        """Tell the writers of a family that chunks may go, and return what names this collection.

        A write that was prepared before, and is not stored yet, is refused with `Stale`.
        """

    def is_undisturbed(self, family: Any, collection: Any) -> bool:
        """Return whether nobody removed or collected in a family since a collection began."""

    def is_overtaken(self, family: Any, collection: Any) -> bool:
        """Return whether another collection of the family has begun since, and leaves nothing."""

    def references(self, family: Any, after: Any = None) -> Part[tuple[Any, bytes]]:
        """Return the refs of checkpoints and writes in a family, with the threads' keys."""

    def links(self, family: Any, after: Any = None) -> Part[tuple[bytes, bytes]]:
        """Return the digests and the refs of chunks of a family that have any."""

    def digests(self, family: Any, after: Any = None) -> Part[bytes]:
        """Return the digests of chunks of a family."""

    def chunks_at_once(self) -> int:
        """Return how many chunks are removed before others may have their turn."""

    def drop_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: Any
    ) -> Counts | None:
        """Remove chunks of a family, but none written since `collection` began.

        With None for `digests`, remove as many as there are, or `chunks_at_once` at least.

        Returns how many there were, and how many bytes they took; None, with nothing removed, if
        somebody removed or collected in the family meanwhile.
        """

    def end_collection(self, family: Any, collection: Any) -> bool:
        """Note that a family is collected, unless somebody removed or collected there meanwhile.

        Returns whether it is.
        """

    # Secrets

    def store_key(self) -> bytes | None:
        """Return the random bytes by which this store knows again what it gave away."""

    def add_store_key(self, key: bytes) -> None:
        """Set the store's key, unless somebody else sets one at the same moment."""

    def secrets(self) -> list[bytes]:
        """Return the protected keys of digests."""

    def add_secret(self, stored: bytes) -> None:
        """Add a protected key of digests, unless somebody else adds one at the same moment."""


class Storage(Protocol):
    """A store of threads, checkpoints, writes and chunks."""

    @property
    def history(self) -> int:
        """A number that goes up when the store turns out to be another, or to have gone back.

        What is remembered of a store is valid for one history.
        """

    def setup(self) -> None:
        """Make what is not there yet, and check the schema's version."""

    def reading(self) -> AbstractContextManager[Session]:
        """Return a context in which to read one consistent state."""

    def writing(self) -> AbstractContextManager[Session]:
        """Return a context in which to read and write, as one transaction if there are any."""

    def unstored(self) -> AbstractContextManager[Session]:
        """Return a context in which to read and write what is forgotten at its end.

        It is for what a full disk has no room for, and takes none itself.
        """

    def save_room(self) -> None:
        """Where the disk is nearly full, have the work that comes take little more of it."""

    def put(self, put: Put) -> Steps[ThreadRef | None]:
        """Store a checkpoint or writes, chunks first, and keep the thread's record up.

        Returns None, and removes what else its run left behind, if it belongs to a run that began
        before its thread was deleted. A new run begins with a checkpoint: where it is not known
        when the run began, writes that would make a thread where one was deleted are taken for
        late, unless their checkpoint is announced.

        Raises:
            Stale: The thread is not the expected one.
            Rewound: It was prepared for another history.
        """

    def tidy(self) -> bool:
        """Give some free space back to the file system, and return whether there is more."""

    def close(self) -> None:
        """Close what the store opened itself."""
