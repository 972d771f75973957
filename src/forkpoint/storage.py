"""The storage interface, and the stored format (version 1).

A backend implements `Storage` and `Session`; `forkpoint.operations` is written against them, and
knows nothing of SQL or documents.

The stored format
=================

Four kinds of record, in tables or a collection prefixed ``forkpoint_``, and one for settings:

``threads``
    ``key`` (the identity of this thread: never reused, so a thread that is deleted and made again
    has another), ``thread_id``, ``family`` (the key of the family's first thread), ``epoch``
    (replaced by every removal, and in the whole family by every collection; in SQLite by the next
    number), the edge it was made by (``edge``: ``fork``, ``clone`` or none; ``parent`` key and
    ``parent_checkpoint_id``), ``owner``, ``salt``, ``checksums``, ``label``, ``folded_label`` (the
    same as searches compare it: see `forkpoint.filters.folded`), ``tags`` (JSON list),
    ``metadata`` (JSON object), ``fixed_keys`` (JSON list of those of its keys that somebody set),
    ``status``, ``checkpoint_count``, ``created_at``, ``updated_at``, ``state_updated_at`` (when its
    newest checkpoint became that, or an interrupt or an error came to it, last; 0 before the first
    one), ``ttl`` (how long after that it expires, if ever), ``on_expiry`` (``delete`` or
    ``keep_latest``), ``swept_at`` (what ``updated_at`` was when a sweep trimmed it last), the lease
    (``lease_holder``, ``lease_since``, ``lease_until``, the ``fence`` that goes up whenever a lease
    begins or ends, ``rollback_from``, the first fence of runs that are being rolled back, if any
    are, and who is ``waiting`` for it, the first one first: in SQLite a JSON list of holders and
    until when they wait, in MongoDB documents of ``by`` and ``until``), ``dead_until`` (the highest
    checkpoint id of the tombstones of its id, whoever's they are, when it was made), and
    ``deleted_at``. ``removals`` counts how often something of it was removed or replaced.
    ``removed_at`` is when something of it was removed, until the chunks of that were collected;
    until then there may be rows of a deleted thread, which nobody sees. Then its record is removed
    (in MongoDB by the server, when it ``expires``), unless a thread that is there descends from it.
    Its ``thread_id`` is empty, unless one does. A copy that is not complete is ``provisional``, and
    deleted; ``building`` is until when it is not taken for abandoned, or 0.
    Times are microseconds since 1970 in UTC. At most one thread of an id is not deleted. A thread
    is ``provisional`` while there are writes for it, and no checkpoint yet. How the search index
    knows it is derived: ``terms`` (see `forkpoint.filters`), ``listed_at`` and ``listed_status``,
    its ``updated_at`` and its status when it was listed last. A search first lists what changed
    since. ``value_terms`` are the terms of what is shown of the state, as far as that is not
    encrypted: in SQLite those that it is listed by. What is shown itself, what a thread waits for,
    and why it failed, is not in its record: the writes and the receipt of its newest checkpoint say
    it.

``checkpoints``
    ``thread`` (key), ``checkpoint_ns``, ``checkpoint_id``, ``parent_checkpoint_id``, ``run_id`` (of
    the metadata), ``metadata`` (JSON, ASCII), ``refs``, ``content``, ``checksum``, ``binding``,
    ``fence`` (that of the lease that it was stored under, if it was under one), ``hidden`` (the
    checkpoint was removed, and is kept because the state of another is rebuilt from it),
    ``restarts`` (a subgraph's step from it runs again: see `CheckpointRow`).
    ``content`` is a protected MessagePack array ``[type, body, manifest]``: the checkpoint without
    its channel values, as the serializer's type and bytes, and a map from channel to entry.

``writes``
    ``thread``, ``checkpoint_ns``, ``checkpoint_id``, ``task_id``, ``idx``, ``task_path``,
    ``channel``, ``refs``, ``content``, ``checksum``, ``binding``, ``fence``. ``content`` is one
    protected entry. A write may come before its checkpoint. Where a run under a lease replaced what
    was stored before its lease, ``before`` has that until the write is replaced or removed: in
    MongoDB a document of these fields, in SQLite a MessagePack array of ``task_path``, ``channel``,
    ``refs``, ``content``, ``checksum``, ``binding`` and ``fence``, and ``before_refs`` its refs.

``chunks``
    ``family``, ``digest``, ``refs``, ``content``, ``epoch`` (that of the thread when it was written
    last; a collection leaves those of its own). Four forms: a *run* (``content`` is a
    MessagePack array or map of consecutive elements of a list or a dict, no ``refs``), a *piece*
    (a part of an opaque value, no ``refs``), a *node* (``refs``, and ``content`` empty), and a
    *nested element* (``refs`` those of an entry, ``content`` a MessagePack array ``[key, entry]``
    where ``key`` is the packed key, empty in a list).

``settings``
    ``schema_version``, and ``store_key``: 32 random bytes, the key of
    the MACs of cursors and of marks; and ``secret:<n>``: protected ``forkpoint digest key:`` and
    32 random bytes, one for each cipher that wrote to the store. In SQLite ``clock``, a time that
    the store has had: its time is that of the host, but never earlier (see `forkpoint.clocks`).

In SQLite each is a table. There ``forkpoint_listing`` is the search index, a row for each term of a
thread: ``term``, ``status``, ``listed_at``, ``thread_id``, in the row for the term of all threads
``state_updated_at``, and of which walks it is seen: those
numbered above ``born``, and not above ``gone``. ``forkpoint_walks`` has the searches of which the
second page was read, and the last one was not: ``number`` and ``began_at``.
``forkpoint_tombstones`` has the last deletion of an id for each owner: ``key`` (never used again),
``id_mark``, ``owner_mark``, ``dead_until`` and ``made_at``, and which ``thread`` was deleted (a
key).

In MongoDB all are documents of the collection ``forkpoint_store``, with the fields above and
``family``, the shard key:

- A thread: ``_id`` is its key, an ObjectId, and ``kind`` is ``thread``. ``epoch`` is an ObjectId
  that every collection and removal replaces; ``status_for`` is the checkpoint that the status is
  that of; ``value_terms`` are null or missing if nothing was chosen to be shown, and
  ``listed_values`` those that are among its ``terms``; ``listed_state_at`` is its
  ``state_updated_at`` when it was listed; ``unlisted`` is true while the search index does not know
  it as it is; ``source`` is the id of the thread that it was made from;
  ``lock`` (``by``, ``until``) keeps writers out during a removal or a copy, or a part of these;
  ``awaited`` is true if somebody waited for its end; ``building`` marks a copy that is not
  finished, by what locks its source, or the copy itself;
  ``log`` is the id of the log that goes on from the record, if
  there is one. Its name is a document of its own: ``_id`` and ``family`` are ``name:`` and the mark
  of the id in hexadecimal digits, ``key`` and ``home`` the key and the family of the thread that
  the id means, or meant last (if there was one). ``tombstones`` are an array with the last deletion
  of the id for each owner: ``mark``, ``deletion`` (an ObjectId of its own), ``dead_until`` and
  ``made_at``. ``deletion`` is that of the last of all. A name that means no thread ``expires``.
- A checkpoint or a write: ``kind`` is ``checkpoint`` or ``write``; ``_id`` is the 12 bytes of the
  family and the first 16 of the SHA-256 of a MessagePack array: the 12 bytes of the thread's key,
  namespace, id, and of a write the task and idx. ``visible`` is true unless it is hidden, pending
  (what it is to say is under ``next``) or ``doomed`` (to be deleted by a removal that has begun).
  ``terms`` of a checkpoint are CRC-32 hashes, less 2^31, of the paths and scalars of its metadata.
- Checkpoints and writes may be in a log: ``log`` is its id, an ObjectId, ``slot`` their number in
  it, from 1, and ``record`` what the thread's record is to say: ``checkpoint_count``,
  ``updated_at`` (or the record's own, if that is later), ``state_updated_at``, ``status``,
  ``status_for``, and ``value_terms`` if it says any. While the record names the log, that of the
  newest document in it counts. A log that has ended has a document of the kind ``end``, with the
  first ``slot`` that was not taken and the last ``record``; its ``_id`` is that of the log, and the
  server deletes it when it ``expires``.
- A chunk: ``_id`` is the family and the digest, 44 bytes; ``refs`` a list of such ids, or missing.
- ``settings`` and ``secret:<n>`` are the ``_id`` of documents of the family ``settings``.

**Tombstone**: that a thread was deleted, or an id that meant none, for runs that had begun before.
``dead_until`` is the highest checkpoint id that a write of these is known to name. It is named by
**marks**: the first 16 bytes of the HMAC-SHA-256, by the store's key, of a MessagePack array:
``[thread_id]`` of an id; ``[thread_id, "owner", owner]`` of an owner (or nil) who had the thread,
or who deleted the id; ``[thread_id, "all"]`` where a saver of all owners deleted an id that meant
none.

**Entry**: a MessagePack array ``[kind, type, ...]``. Kinds: 0 inline ``[0, type, bytes]``, the
serializer's type and bytes; 1 opaque, 2 list, 3 dict ``[kind, type, count, height]``: the next
``count`` digests of the record's ``refs``, with ``height`` levels of nodes between these and the
leaves. A type is stored for 0 and 1; leaves of 2 and 3 are runs and nested elements, whose type is
``msgpack``. Add 4 to a kind where the value is that of a ``DeltaChannel`` snapshot.

**refs**: digests of 32 bytes, joined; always readable, so that chunks can be collected without
the key of an encrypting serializer.

**Protected**: one byte, the length of a cipher's name; the name in UTF-8; the bytes, encrypted by
that cipher. A length of 0: plain bytes. A chunk's content is protected unless it is empty.

**Values**, where the default serializer writes them: MessagePack, with the extensions of
`forkpoint.builtin_values` (32 to 38), `forkpoint.array_values` (39), `forkpoint.object_values` (40)
and `forkpoint.packing` (41).

**Hash**: SHA-256; or HMAC-SHA-256 (RFC 2104) with the store's secret where the serializer
encrypts; always of plaintext. **Hash of the family**: the same, but the key is the hash of ``04``
and the first half of the salt. So nobody without the secret makes a hash that fits, and equal
values of two families have hashes that differ.

**salt**: 32 random bytes of each thread. Threads of a family share the first half.

The digest of a chunk without refs is the hash of the family of ``00`` and the content; with refs
of ``01``, the number of refs in four bytes (big-endian), the refs, the content.

**checksum**: the hash of the family of ``02`` and the MessagePack array of what a row says in every
thread that it is copied to: for a checkpoint ``[checkpoint_ns, checkpoint_id, parent_checkpoint_id,
metadata, refs, content]``, for a write ``[checkpoint_ns, checkpoint_id, task_id, idx, task_path,
channel, refs, content]``. The content is hashed as it is before it is protected. A ``run_id`` is
that of the metadata, or missing.

**binding**: what binds a row to its thread. The first eight bytes (big-endian) of the hash of
``03``, the salt and the checksum, less the last three bits; times 4, plus 1 if the row is
``hidden``, plus 2 if it ``restarts``. Or -1: of a copy of a row that did not fit its thread, and of
the receipt of a checkpoint. A change of the flags needs no secret; a copy of the row does.

**checksums** of a thread: a byte, 1 if the hash has a key, else 0; and the first 16 bytes of each
of three hashes, each of a byte and a MessagePack array: ``05`` and ``[thread_id, owner, salt]``;
``06`` and ``[salt, edge, parent, parent_checkpoint_id]``, with the parent's key as text; ``07`` and
``[salt, source, label, tags, metadata, ttl, fixed_keys, on_expiry]``, where ``source`` is nil in
SQLite. Those of a deleted thread, but for the second one, are not kept up.

**Receipts** stand among the writes, with an ``idx`` of -1000 or less, the channel ``""``, and a
content that is not protected. They are stored after what they are for, and removed before it.
-1000, with the task `forkpoint.removal.NULL_TASK_ID`: of a checkpoint that can be seen. Its content
is empty, and it has no checksum; or the content is protected, and is the JSON (ASCII) of what is
shown of the state, a mapping of channels to values; see `forkpoint.previews`. -1000 and the ``idx``
of one of a task's writes that replace each other, without content: of that one. -2000 and less: of
the other writes of one put, with a MessagePack array ``[channel, first idx, number]`` of each run
of them (and the ``idx`` is -2000 less a quarter of its CRC-32).

What is noticed
===============

By reading: a chunk, checkpoint or write, or a field of one, that was changed, or is of another
thread now; a write whose receipt is there; a checkpoint that is asked for by its id, or would be
the newest, or be in an unfiltered listing of a namespace, and whose receipt is there; an ancestor
from which a `DeltaChannel` is rebuilt. A receipt alone is not missed: nothing is lost with it. Of a
thread's record: its id, owner, lineage, and what is said of it (label, tags, metadata, time to
live).

Not noticed: rows that are lost together with their receipts, such as the whole of a put, or
everything since an older copy of the database; a row of a listing with a filter, of all namespaces,
or that begins at a position, as `at` does; the record of a thread as a whole (without it there is
no thread), or what it says of leases, status, counts and times; what an older record of the same
thread said; the flags of a row by one who changes its binding too; and, without an encrypting
serializer, changes by one who computes the checksums.

Atomicity
=========

`Storage.writing` runs a block of calls as one transaction where the backend has them. Where it has
none, each call of a `Session` is atomic, and the order of calls in `forkpoint.operations` and
`forkpoint.collect` is such that stopping between two leaves nothing dangling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from forkpoint.codec import Chunk, Chunks
from forkpoint.hashing import FLAG_BITS, UNBOUND, Hashing
from forkpoint.receipts import RECEIPT
from forkpoint.removal import Place, Plan
from forkpoint.steps import Again, Steps

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
    """What is hashed with it fits no other thread; see `forkpoint.hashing`."""
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
    """See `forkpoint.rows`."""
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
    """Those of the thread's record, if this makes it; see `forkpoint.hashing`."""
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
