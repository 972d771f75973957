"""Reading threads page by page, so that each is met once, whatever is written meanwhile.

Where a store does not keep the past by itself, a first page costs nothing but its reading: many are
never followed by a second one. The cursor after it says which threads were on it. With the second
page a walk begins: all is selected again, as of one moment, but for those threads. The last page
ends the walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from forkpoint.searching import shown_digests
from forkpoint.storage import Selected, Selection, Storage, ThreadRow

_PAGE_ROWS = 500


class ThreadPages:
    """The rest of a search, from its beginning or from where a cursor says.

    Args:
        storage: The store.
        selection: Where it goes on.
        shown: The digests of threads that it leaves out: those of its first page, if need be.

    Attributes:
        is_at_end: Whether the thread that came last is the last of all.
    """

    def __init__(self, storage: Storage, selection: Selection, shown: set[bytes]) -> None:
        self._storage = storage
        self._selection = selection
        self._shown = shown
        self._is_first = selection.after is None
        self._begins_walk = bool(shown) and selection.walk is None
        self._is_walk = bool(shown)
        self.is_at_end = False

    def rows(self) -> Iterator[tuple[ThreadRow, tuple[Any, str]]]:
        """Return threads with their places."""
        met: set[bytes] = set()
        while True:
            selected = self._select()
            last = len(selected.places) - 1
            for position, (row, place) in enumerate(
                zip(selected.rows, selected.places, strict=True)
            ):
                self.is_at_end = selected.is_last and position == last
                digests = shown_digests([place[1]])
                if row is not None and self._shown.isdisjoint(digests):
                    met |= digests
                    yield row, place
            if selected.is_last:
                self._end_walk()
                return
            if not selected.goes_on:
                self._begins_walk, self._shown = True, met
            # Where few of those that are read match, more are read at once.
            limit = max(self._selection.limit, _PAGE_ROWS)
            self._selection = self._selection._replace(after=selected.places[-1], limit=limit)

    def stop(self, place: tuple[Any, str], page: Sequence[str]) -> tuple[Selection, set[bytes]]:
        """Return where the next page goes on, and which threads it leaves out.

        Args:
            place: That of the last thread of this page.
            page: The ids of the threads on it.
        """
        following = self._selection._replace(after=place)
        if not (self._is_first and self._is_walk):
            return following, self._shown
        self._end_walk()
        return following._replace(walk=None), shown_digests(page)

    def _select(self) -> Selected:
        writes = self._selection.after is None or self._begins_walk
        with self._storage.writing() if writes else self._storage.reading() as session:
            if self._begins_walk:
                limit = self._selection.limit + len(self._shown)
                walk = session.begin_walk()
                self._selection = self._selection._replace(after=None, walk=walk, limit=limit)
                self._begins_walk = False
            selected = session.select(self._selection)
        self._is_walk |= not selected.goes_on
        self._selection = self._selection._replace(walk=selected.walk)
        return selected

    def _end_walk(self) -> None:
        if self._is_walk and self._selection.walk is not None:
            with self._storage.writing() as session:
                session.end_walk(self._selection.walk)
