"""What the catalog takes and returns: threads, filters on them, pages of them, their leases."""

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
    """What a task of a thread waits for.

    Attributes:
        task_id: The task.
        id: What an answer names it by, or None where the value is.
        value: What the task asks. None where it takes more than 64 KiB, or cannot be read: then it
            is to be had by the state of the thread.
    """

    task_id: str
    id: str | None
    value: Any


@dataclass(frozen=True)
class Thread:
    """A thread as the catalog knows it. Its times are in UTC.

    Attributes:
        thread_id: Its id.
        label: A name for people.
        tags: In alphabetical order.
        metadata: What somebody said of it, and the scalar keys of the configs of its runs, of which
            the last one counts. A key that somebody set stays as it is.
        owner: Whose it is, or None.
        status: `busy` while there is a lease, `interrupted` while a task waits for an answer,
            `error` after a task failed, else `idle`.
        created_at: When it was made.
        updated_at: When a run stored something in it, or somebody said something of it, last.
        expires_at: When it expires if nothing happens until then, or None: it has no time to live,
            or a sweep has trimmed it since it was active last.
        source_thread_id: The thread that it was forked, cloned or rolled over from, or None.
        source_checkpoint_id: The checkpoint of it, or None where it was cloned.
        checkpoint_count: How many checkpoints it has, those in subgraphs' namespaces included.
        on_expiry: What a sweep does when it has expired: `delete` it, or `keep_latest`, which
            leaves the newest checkpoint of each namespace.
        state_updated_at: When its newest checkpoint became that, or an interrupt or an error came
            to it, last. None before the first one.
        interrupts: What its newest checkpoint waits for, 100 at most.
        values: What is shown of its newest state: of the channels that the saver's `preview` names,
            those that the run's own saver chose. Plain JSON is as it is, if it takes 1,000 bytes
            at most and has 64 parts at most; of a text there are the first 200 characters; of a
            message, or of the last one of a list, there are `type` and `content`, its text. The
            others are left out.
        error: What the first task that failed after it raised, as text, 1,000 characters at most.
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
    """Which threads are meant: those for which everything holds that is given.

    Attributes:
        ids: One of these ids.
        label: This label.
        label_contains: A label that contains this text. Upper and lower case are the same, as
            Unicode folds them, and so are the ways to write a letter with an accent.
        tags: All of these tags.
        any_tags: One of these tags.
        metadata: These metadata contain it: exactly, and by type; see `saver.list`.
        values: Their `Thread.values` contain it, in the same way.
        owner: This owner.
        status: This status, or one of these.
        created_after: Made then or later. All times must be aware of their time zone.
        created_before: Made before then.
        updated_after: Active then or later.
        updated_before: Not active since then.
        source_thread_id: Made from this thread.
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
    """A part of what a search finds.

    Attributes:
        items: In order.
        next_cursor: What to pass to get the part after it, or None if there is none.
        damaged: Why threads are left out whose records are not what was written.
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
    """Who is running on a thread.

    Attributes:
        holder: The host, the process and a random part.
        since: Since when.
        until: When the lease ends, unless it is renewed.
    """

    holder: str
    since: datetime
    until: datetime


@dataclass(frozen=True)
class ThreadStats:
    """What a thread takes.

    Attributes:
        checkpoints: How many checkpoints.
        writes: How many writes of tasks.
        runs: How many runs made checkpoints that are still there.
        bytes_stored: The bytes of its rows, and of all chunks that they lead to.
        bytes_shared: The bytes of those chunks that other threads of its family lead to as well.
        first_activity: When it was made.
        last_activity: When it was updated last.
    """

    checkpoints: int
    writes: int
    runs: int
    bytes_stored: int
    bytes_shared: int
    first_activity: datetime
    last_activity: datetime
