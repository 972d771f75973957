"""What the catalog takes and returns: threads, filters, pages, lease holders and statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from forkpoint.errors import CorruptChunk
from forkpoint.results import OnExpiry, Status

_T = TypeVar("_T")


@dataclass(frozen=True)
class PendingInterrupt:
    """An interrupt: a question that a task of a thread waits to be answered.

    Attributes:
        task_id: The task.
        id: The id of the interrupt, by which an answer names it. None where `value` is.
        value: What the task asks. None if it takes more than 64 KiB or cannot be read; the state of
            the thread has it.
    """

    task_id: str
    id: str | None
    value: Any


@dataclass(frozen=True)
class Thread:
    """A thread as the catalog knows it. Its times are in UTC.

    Attributes:
        thread_id: Its id.
        label: A name for people, or None.
        tags: Its tags, in alphabetical order.
        metadata: What `create` and `update` set, and the scalar keys of the configs of its runs,
            but for `run_id`. Of several runs, the last one counts; a run changes no key that was
            set.
        owner: To whom it belongs, or None.
        status: `busy` while a run has its lease, `interrupted` while a task waits for an answer,
            `error` after a task failed, otherwise `idle`.
        created_at: When it was created.
        updated_at: Its last activity: when a run last stored something, or its description changed.
        expires_at: When it expires if it is not active until then. None without a time to live, or
            if a sweep has trimmed it since its last activity.
        source_thread_id: The thread that it was forked, cloned or rolled over from, or None.
        source_checkpoint_id: The checkpoint of that thread, or None for a clone.
        checkpoint_count: How many checkpoints it has, those in subgraphs' namespaces included.
        on_expiry: What a sweep does when it has expired: `delete` it, or `keep_latest`, which
            removes all checkpoints but the newest of each namespace.
        state_updated_at: When it last got a newest checkpoint, or an interrupt or an error came to
            that. None without a checkpoint.
        interrupts: What its newest checkpoint waits for, 100 at most.
        error: The text of the error of the first task that failed after the newest checkpoint, cut
            at 1,000 characters; or None.
        values: A preview of its newest state: the channels that the `preview` of its run's saver
            names. Plain JSON of at most 1,000 bytes and 64 parts is shown as it is, a longer text
            by its first 200 characters. A message, or the last message of a list, is shown by its
            `type` and the text of its `content`. Other values are left out.
    """

    thread_id: str
    label: str | None
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    owner: str | None
    status: Status
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    source_thread_id: str | None
    source_checkpoint_id: str | None
    checkpoint_count: int
    on_expiry: OnExpiry = "delete"
    state_updated_at: datetime | None = None
    interrupts: Sequence[PendingInterrupt] = ()
    error: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ThreadFilter:
    """Which threads a search is for: those that match all fields that are set.

    A new field is added as `forkpoint.catalog.criteria.SearchField` says.

    Attributes:
        ids: The thread has one of these ids.
        label: The thread has this label.
        label_contains: The label contains this text. Upper and lower case do not matter, as Unicode
            folds them, nor does the way in which a letter with an accent is written.
        tags: The thread has all of these tags.
        any_tags: The thread has at least one of these tags.
        metadata: The metadata contain this: exactly, and by type; see `saver.list`.
        values: The `Thread.values` contain this, in the same way.
        owner: The thread belongs to this owner.
        status: The thread has this status, or one of these.
        created_after: The thread was created then or later. All times must have a time zone.
        created_before: The thread was created before then.
        updated_after: The last activity of the thread was then or later.
        updated_before: The last activity of the thread was before then.
        source_thread_id: The thread was forked, cloned or rolled over from this thread.
    """

    ids: Sequence[str] | None = None
    label: str | None = None
    tags: Sequence[str] | frozenset[str] | set[str] = ()
    any_tags: Sequence[str] | frozenset[str] | set[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    owner: str | None = None
    status: Status | Sequence[Status] | set[Status] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None
    source_thread_id: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    label_contains: str | None = None


@dataclass(frozen=True)
class Page(Generic[_T]):
    """A page of the results of a search.

    Attributes:
        items: The results, in order.
        next_cursor: The `cursor` with which to get the next page, or None on the last page.
        damaged: An error for each thread that is left out because its record was damaged.
    """

    items: Sequence[_T]
    next_cursor: str | None = None
    damaged: Sequence[CorruptChunk] = ()

    def __iter__(self) -> Iterator[_T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class LeaseHolder:
    """Who has the lease of a thread. Its times are in UTC.

    Attributes:
        holder: The host, the process and a random part.
        since: When the lease began.
        until: When the lease ends, unless it is renewed.
    """

    holder: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class ThreadStats:
    """How much a thread stores. Its times are in UTC.

    Attributes:
        checkpoints: The number of checkpoints.
        writes: The number of writes of tasks.
        runs: The number of runs that made the checkpoints.
        bytes_stored: The bytes of its rows, and of all chunks that they use.
        bytes_shared: The bytes of those chunks that other threads of its family use as well. For a
            catalog of one owner, these are that owner's.
        first_activity: When it was created.
        last_activity: Its `updated_at`.
    """

    checkpoints: int
    writes: int
    runs: int
    bytes_stored: int
    bytes_shared: int
    first_activity: datetime
    last_activity: datetime


@dataclass(frozen=True)
class StoreStats:
    """How much threads store together.

    Attributes:
        threads: The number of threads.
        checkpoints: The number of their checkpoints.
        writes: The number of writes of tasks.
        bytes_stored: The bytes of their rows, and of all chunks that they use, each counted once.
        bytes_unshared: What that would be if nothing was shared: if each checkpoint and each write
            had its own copy of every chunk that it uses.
    """

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    bytes_stored: int = 0
    bytes_unshared: int = 0
