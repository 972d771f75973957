"""Pages of threads, which are looked through one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from forkpoint.clocks import StoreClock
from forkpoint.filters import stored_value_terms, thread_terms
from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.storage import interface
from forkpoint.storage.queries import NO_SNAPSHOT, ThreadQuery, ThreadRowPage
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import ThreadRow
from forkpoint.storage.shared import is_expired

from .tables import Tables, Thread
from .threads import thread_row

_SNAPSHOTS = 100


class Entry(NamedTuple):
    """A thread as searches find it."""

    row: ThreadRow
    terms: frozenset[int]

    @property
    def key(self) -> int:
        return int(self.row.thread.key)

    def place(self, sort_by: str) -> tuple[Any, str]:
        return getattr(self.row, sort_by), self.row.thread_id

    def matches(self, query: ThreadQuery) -> bool:
        return (
            self.terms.issuperset(query.terms)
            and (not query.any_terms or not self.terms.isdisjoint(query.any_terms))
            and all(condition.holds(self.row) for condition in query.conditions)
        )


class MemorySearch(interface.Search):
    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._tables = tables
        self._clock = clock

    def page(self, query: ThreadQuery) -> ThreadRowPage:
        is_first = query.after is None and query.snapshot in (None, NO_SNAPSHOT)
        entries = self._tables.snapshots.get(query.snapshot or NO_SNAPSHOT)
        listed = entries.values() if entries is not None else self._entries()
        result = [entry for entry in listed if entry.matches(query)]
        result.sort(key=lambda entry: entry.place(query.sort_by), reverse=query.descending)
        if query.after is not None:
            result = [entry for entry in result if _is_beyond(entry, query)]
        page = result[: query.limit]
        goes_on = not is_first or query.sort_by in ("created_at", "thread_id")
        return ThreadRowPage(
            [self._row(entry) for entry in page],
            [entry.place(query.sort_by) for entry in page],
            query.snapshot,
            len(result) == len(page),
            goes_on,
        )

    def _row(self, entry: Entry) -> ThreadRow | None:
        """Return the record of a thread as it is by now."""
        thread = self._tables.threads.get(entry.key)
        if thread is None or thread.deleted_at is not None:
            return None
        if thread.owner != entry.row.thread.owner:
            return None  # it was given to somebody else
        return thread_row(self._tables, thread, self._clock.now())

    def _entries(self) -> Iterable[Entry]:
        now = self._clock.now()
        return [self._entry(thread, now) for thread in self._tables.seen()]

    def _entry(self, thread: Thread, now: int) -> Entry:
        row = thread_row(self._tables, thread, now)
        said = row.described
        terms = thread_terms(
            thread.owner, said.label, said.tags, said.metadata, row.source_thread_id
        )
        head = ("", self._tables.head(thread.key) or "", NULL_TASK_ID, RECEIPT)
        receipt = self._tables.writes_of(thread.key).get(head)
        preview = b"" if receipt is None else receipt.row.content
        return Entry(row, frozenset([*terms, *(stored_value_terms(thread.owner, preview) or ())]))

    def begin_snapshot(self) -> int:
        snapshots = self._tables.snapshots
        number = self._tables.number()
        snapshots[number] = {entry.key: entry for entry in self._entries()}
        for old in list(snapshots)[:-_SNAPSHOTS]:
            del snapshots[old]
        return number

    def end_snapshot(self, snapshot: Any) -> None:
        self._tables.snapshots.pop(snapshot, None)

    def count(self, query: ThreadQuery) -> int:
        entries = (entry for entry in self._entries() if entry.matches(query))
        return sum(not entry.row.is_expired for entry in entries)

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = self._clock.now()
        result: list[tuple[tuple[int, int], ThreadRow]] = []
        for thread in self._seen_by(owner):
            said, at = thread.described, thread.updated_at
            is_over = is_expired(said, at, now, is_leased=False, is_deleting=False)
            place = (at + (said.ttl or 0), thread.key)
            if is_over and thread.swept_at != at and (after is None or place > after):
                result.append((place, thread_row(self._tables, thread, now)))
        result.sort(key=lambda each: each[0])
        return [row for _, row in result[:limit]]

    def larger_than(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        now = self._clock.now()
        keys = sorted(thread.key for thread in self._seen_by(owner))
        rows = [
            thread_row(self._tables, self._tables.threads[key], now)
            for key in keys
            if key > (after or 0)
        ]
        return [row for row in rows if row.checkpoint_count > more_than][:limit]

    def _seen_by(self, owner: str | None) -> list[Thread]:
        return [thread for thread in self._tables.seen() if owner in (None, thread.owner)]


def _is_beyond(entry: Entry, query: ThreadQuery) -> bool:
    assert query.after is not None
    place, after = entry.place(query.sort_by), tuple(query.after)
    return place < after if query.descending else place > after
