"""What a backend is asked for in pages: checkpoints of threads, and threads of a catalog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from forkpoint.results import STATUSES
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import CheckpointRow, StoredCheckpoint, ThreadRow, WriteRow


class CheckpointQuery(NamedTuple):
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
    values: bool = True
    """Whether values are read and decoded. The stores return the same rows either way."""

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


class Span(NamedTuple):
    """The ids between which a page has all checkpoints of a namespace."""

    low: str
    high: str | None
    """None if there is no limit."""

    def lost(
        self, page: Sequence[StoredCheckpoint], writes: Iterable[WriteRow]
    ) -> list[StoredCheckpoint]:
        """Return an unreadable row for each checkpoint of which only the receipt is stored.

        Args:
            page: The checkpoints that were read.
            writes: The writes and receipts of all checkpoints of the span.
        """
        stored_ids = {stored.row.checkpoint_id for stored in page} | {self.low, self.high}
        ids = {row.checkpoint_id for row in writes if row.idx == RECEIPT} - stored_ids
        first = page[0]
        return [
            StoredCheckpoint(
                first.thread_id,
                first.thread,
                CheckpointRow(first.row.checkpoint_ns, id_, None, None, "{}", b"", b""),
                [],
            )
            for id_ in ids
        ]


def span_of(query: CheckpointQuery, page: Sequence[StoredCheckpoint]) -> Span | None:
    """Return the span of a page, if it is one of all checkpoints of a namespace, unfiltered."""
    of_namespace = query.thread_id is not None and query.checkpoint_ns is not None
    if not page or not of_namespace or query.checkpoint_id or query.filter or query.offset:
        return None
    begin = query.after[0] if query.after else None
    end = page[-1].row.checkpoint_id if len(page) >= query.limit else None
    if query.oldest_first:
        return Span(begin or "", end or query.before)
    return Span(end or "", begin or query.before)


def in_order(query: CheckpointQuery, page: list[StoredCheckpoint]) -> list[StoredCheckpoint]:
    """Return the checkpoints of one namespace in the order of a page."""
    return sorted(page, key=lambda stored: stored.row.checkpoint_id, reverse=not query.oldest_first)


NO_SNAPSHOT = 0
"""The snapshot of a search for which the disk has no room: each page is read as of the present."""

Operator = Literal["in", ">=", "<", "contains"]


class Condition(NamedTuple):
    """A comparison of one field of a thread's record with a value; each backend translates it."""

    field: str
    """The name of an attribute of `ThreadRow` or of `Description`."""
    operator: Operator
    value: Any
    """For `in`, a sequence of the values that match; for `contains`, a part of a text."""

    def holds(self, row: ThreadRow) -> bool:
        """Return whether a thread's record matches."""
        owner = row if hasattr(row, self.field) else row.described
        stored = getattr(owner, self.field)
        if self.operator == "in":
            return stored in self.value
        if self.operator == "contains":
            return self.value in (stored or "")
        return bool(stored >= self.value if self.operator == ">=" else stored < self.value)


class ThreadQuery(NamedTuple):
    """Which threads to list, and in which order.

    A backend may return more threads than match the terms: terms are hashes, and of lists they do
    not tell the items apart. The caller compares the records.
    """

    owner: str | None
    """Whose threads are listed; None for those of all owners."""
    terms: Sequence[int]
    """A thread must have all of these terms; there is at least one."""
    any_terms: Sequence[int] = ()
    """A thread must have at least one of these terms, unless there are none."""
    conditions: Sequence[Condition] = ()
    """A thread's record must match all of these."""
    sort_by: str = "updated_at"
    descending: bool = True
    after: tuple[Any, str] | None = None
    """The place of the last thread of the page before: the value it is sorted by, and its id."""
    snapshot: Any = None
    """Names the moment as of which all pages of this search are read; None for the present."""
    limit: int = 50

    @property
    def ids(self) -> Sequence[str] | None:
        """The ids of which a thread must have one, or None for any id."""
        return self._choices("thread_id")

    @property
    def statuses(self) -> Sequence[str]:
        """The statuses of which a thread must have one."""
        return self._choices("status") or STATUSES

    def _choices(self, field: str) -> Sequence[str] | None:
        choices = (each.value for each in self.conditions if each[:2] == (field, "in"))
        return next(choices, None)

    def conditions_on(self, *fields: str) -> list[Condition]:
        """Return the conditions on some fields."""
        return [condition for condition in self.conditions if condition.field in fields]


class ThreadRowPage(NamedTuple):
    """A page of threads."""

    rows: Sequence[ThreadRow | None]
    """None for a thread that was deleted meanwhile."""
    places: Sequence[tuple[Any, str]]
    """The place of each row in the snapshot, which may differ from its place by now."""
    snapshot: Any
    is_last: bool
    goes_on: bool = True
    """Whether the next page begins after the last place of this one. Otherwise the next page
    begins a snapshot with `Search.begin_snapshot`, reads it from its start, and leaves out the
    threads of this page."""


_T_co = TypeVar("_T_co", covariant=True)


@dataclass(frozen=True)
class Batch(Generic[_T_co]):
    """A part of all that is to be read.

    Attributes:
        items: What it is.
        after: What to ask for the next part with, or None if this is the last one.
    """

    items: Iterable[_T_co]
    after: Any
