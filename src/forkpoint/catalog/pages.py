"""Reading threads page by page, so that each is met once, whatever is written meanwhile.

Where a store does not keep the past by itself, a first page costs nothing but its reading: many are
never followed by a second one. The cursor after it says which threads were on it. With the second
page a walk begins: all is selected again, as of one moment, but for those threads. The last page
ends the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from forkpoint.catalog.search import shown_digests
from forkpoint.errors import StorageFull
from forkpoint.storage.interface import Session, Storage
from forkpoint.storage.queries import NO_SNAPSHOT, ThreadQuery, ThreadRowPage
from forkpoint.storage.rows import ThreadRow

_T = TypeVar("_T")
_PAGE_ROWS = 500


def indexed(storage: Storage, read: Callable[[Session, bool], _T]) -> _T:
    """Return what is read with an index that is brought up to date for it, stored if there is room.

    Args:
        storage: The store.
        read: Is called with a session, and whether what it writes is stored.
    """
    try:
        with storage.writing() as session:
            return read(session, True)
    except StorageFull:
        with storage.unstored() as session:
            return read(session, False)


class ThreadPages:
    """The rest of a search, from its beginning or from where a cursor says.

    Args:
        storage: The store.
        selection: Where it goes on.
        shown: The digests of threads that it leaves out: those of its first page, if need be.
        with_heads: Whether to look at the newest checkpoints of the threads, too.

    Attributes:
        is_at_end: Whether the thread that came last is the last of all.
    """

    def __init__(
        self,
        storage: Storage,
        selection: ThreadQuery,
        shown: set[bytes],
        *,
        with_heads: bool = False,
    ) -> None:
        self._storage = storage
        self._selection = selection
        self._shown = shown
        self._with_heads = with_heads
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
                digests = shown_digests([str(place[1])])
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

    def stop(self, place: tuple[Any, str], page: Sequence[str]) -> tuple[ThreadQuery, set[bytes]]:
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

    @property
    def _is_first_page(self) -> bool:
        return self._selection.after is None or self._begins_walk

    def _select(self) -> ThreadRowPage:
        if self._is_first_page or self._selection.walk == NO_SNAPSHOT:
            selection, selected = indexed(self._storage, self._select_first)
        else:
            with self._storage.reading() as session:
                selection, selected = self._selection, self._page(session, self._selection)
        self._begins_walk = False
        self._is_walk |= not selected.goes_on
        self._selection = selection._replace(walk=selected.walk)
        return selected

    def _select_first(self, session: Session, is_stored: bool) -> tuple[ThreadQuery, ThreadRowPage]:
        """Select a page that is the first one of all or of a walk, or stands for itself."""
        selection = self._selection
        if self._begins_walk:
            limit = selection.limit + len(self._shown)
            selection = selection._replace(
                after=None, walk=session.search.begin_snapshot(), limit=limit
            )
        selected = self._page(session, selection)
        return selection, selected if is_stored else selected._replace(walk=NO_SNAPSHOT)

    def _page(self, session: Session, selection: ThreadQuery) -> ThreadRowPage:
        selected = session.search.page(selection)
        if not self._with_heads:
            return selected
        return selected._replace(rows=session.records.with_heads(selected.rows))

    def _end_walk(self) -> None:
        if self._is_walk and self._selection.walk is not None:
            with suppress(StorageFull), self._storage.writing() as session:
                session.search.end_snapshot(self._selection.walk)  # else it ends by its age
