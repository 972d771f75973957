"""Retention: what a policy says, which threads it deletes or trims, and what was done. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.catalog.threads import Thread
from forkpoint.storage.plan import Kept
from forkpoint.storage.rows import ThreadRow

Action = Literal["delete", "trim", "keep_latest"]

Archive = Callable[[Thread, Iterator[CheckpointTuple]], object]
"""A function that takes a thread before it is deleted, and its checkpoints. If it raises, the
thread stays."""


@dataclass(frozen=True)
class RetentionPolicy:
    """Which threads are deleted, and which are trimmed. At least one rule must be given.

    Attributes:
        max_age: Delete threads that were created longer ago than this.
        max_idle: Delete threads that were not active for longer than this.
        max_checkpoints_per_thread: Keep this many of the newest checkpoints in each namespace of a
            thread, and remove the older ones.
        max_checkpoint_age: Remove checkpoints that were made longer ago than this, by the times in
            their ids, but not the newest of each namespace. Checkpoints whose ids are not
            LangGraph's have no age.
        expired: Delete threads whose time to live has passed, or trim them to the newest checkpoint
            of each namespace, as their `on_expiry` says; see `ThreadCatalog.sweep`.
        keep_tags: Leave threads alone that have one of these tags.
    """

    max_age: timedelta | None = None
    max_idle: timedelta | None = None
    max_checkpoints_per_thread: int | None = None
    max_checkpoint_age: timedelta | None = None
    expired: bool = False
    keep_tags: Sequence[str] | frozenset[str] | set[str] = ()


@dataclass(frozen=True)
class RetentionResult:
    """What retention did, or would do.

    Attributes:
        deleted: The ids of threads that were deleted.
        trimmed: The ids of threads of which old checkpoints were removed.
        busy: The ids of threads that were left alone because a run has their lease, or because
            another process is archiving them.
        failed: The ids of threads that could not be archived, trimmed or deleted, and why. They
            keep no others from their turn.
        dry_run: Whether nothing was touched.
    """

    deleted: Sequence[str] = ()
    trimmed: Sequence[str] = ()
    busy: Sequence[str] = ()
    failed: Mapping[str, Exception] = field(default_factory=dict)
    dry_run: bool = False


Progress = Callable[[RetentionResult], object]
"""Takes what was done so far: after each batch of threads, and during long work."""


class Rules(NamedTuple):
    """A checked policy, with times in microseconds."""

    max_age: int | None = None
    max_idle: int | None = None
    max_checkpoints: int | None = None
    expired: bool = False
    keep_tags: frozenset[str] = frozenset()
    everything: bool = False
    """Whether all threads that match the filter are deleted."""
    max_checkpoint_age: int | None = None

    def action(self, row: ThreadRow, now: int) -> Action | None:
        """Return what is to be done with a thread; None if it stays as it is."""
        description = row.described
        if not self.keep_tags.isdisjoint(description.tags):
            return None
        if self.everything:
            return "delete"
        if self.max_age is not None and row.created_at < now - self.max_age:
            return "delete"
        if self.max_idle is not None and row.updated_at < now - self.max_idle:
            return "delete"
        if self.expired and description.ttl is not None and row.updated_at + description.ttl <= now:
            if description.on_expiry == "delete":
                return "delete"
            if not row.is_swept:
                return "keep_latest"
        least = self.trims_more_than
        return "trim" if least is not None and row.checkpoint_count > least else None

    @property
    def trims_more_than(self) -> int | None:
        """The number of checkpoints above which a thread may have to be trimmed, if any is."""
        return self.max_checkpoints if self.max_checkpoint_age is None else 1

    def kept(self, now: int) -> Kept:
        """Return which checkpoints of a trimmed thread stay."""
        age = self.max_checkpoint_age
        return Kept(self.max_checkpoints, None if age is None else now - age)
