"""The threads of a store of forkpoint's own as a source, with their records."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from forkpoint import inputs
from forkpoint.archive.parts import Part
from forkpoint.archive.reading import read_thread
from forkpoint.catalog import search
from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.criteria import Criteria
from forkpoint.catalog.search import ThreadSearch
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.operations.context import Context
from forkpoint.runtime.runner import Runner
from forkpoint.storage.plan import Place
from forkpoint.transfer.sources import IsSelected, NamedThreads, Places, Source, oldest_first

_PAGE = 200


class OwnSource(Source):
    """Threads of a store of forkpoint's own.

    Args:
        context: The store.
        runner: How its operations run.
        criteria: Which threads.
        is_selected: Whether one of these is to be imported; None for all.
    """

    name = "forkpoint"

    def __init__(
        self,
        context: Context,
        runner: Runner,
        criteria: Criteria,
        is_selected: IsSelected | None = None,
    ) -> None:
        self.context = context
        self._runner = runner
        self._criteria = criteria
        self._is_selected = is_selected

    def thread_ids(self) -> Iterator[str]:
        # In the order in which they were made, those that have expired too.
        request = ThreadSearch(self._criteria, "created_at", False, _PAGE, with_expired=True)
        while True:
            page = self._runner.run(search.search_rows, self.context, request)
            for row in page.rows:
                if self._is_selected is None or self._is_selected(row.thread_id):
                    yield row.thread_id
            if page.next_cursor is None:
                return
            request = request._replace(cursor=page.next_cursor)

    def count(self) -> int | None:
        if self._is_selected is not None:
            return None
        return self._runner.run(search.count, self.context, self._criteria)

    def missing(self) -> Mapping[str, Exception]:
        if "updated_after" in self._criteria:
            return {}  # it may be there, and not have been active since
        return NamedThreads.missing(self._is_selected, "the source")

    def places(self, thread_id: str) -> Places:
        return self._runner.run(_places, self.context, thread_id)

    def parts(self, thread_id: str, needed: Collection[Place] | None = None) -> Iterator[Part]:
        return read_thread(self.context, thread_id, needed)


def _places(context: Context, thread_id: str) -> Places:
    places: list[tuple[str, str, str | None]] = []
    after: Any = None
    with context.storage.reading() as session:
        thread = session.threads.find(thread_id)
        while thread is not None:
            batch = session.checkpoints.batch(thread, after, with_content=False)
            places += [row[:3] for row in batch.items]
            after = batch.after
            if after is None:
                break
    return oldest_first(places)


def filter_of(
    catalog: ThreadCatalog, filter: ThreadFilter | None, since: datetime | None
) -> Criteria:
    """Return the criteria of a filter, for threads that were active then or later."""
    criteria = catalog._criteria(filter)
    if since is None:
        return criteria
    after = max(inputs.moment(since, "since") or 0, criteria.get("updated_after", 0))
    return {**criteria, "updated_after": after}
