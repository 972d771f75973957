"""Iterators over checkpoints, which are read in pages.

They are no generators, which end where they raise: after a checkpoint that cannot be read, the
next call goes on with the one after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.operations import operations
from forkpoint.operations.operations import Context, Item
from forkpoint.runtime.runner import Runner
from forkpoint.storage.queries import CheckpointQuery


class _Listing:
    """What is left of a listing: the rest of a page, and what to ask for next.

    Args:
        runner: Reads the pages.
        context: The store.
        query: The first page.
        limit: How many checkpoints to return at most; None for all.
    """

    def __init__(
        self, runner: Runner, context: Context, query: CheckpointQuery, limit: int | None
    ) -> None:
        self._runner = runner
        self._context = context
        self._following: CheckpointQuery | None = query
        self._left = limit
        self._items: deque[Item] = deque()

    def _next_page(self) -> CheckpointQuery | None:
        """Return what to read before an item can be taken, or None if there is nothing to read."""
        if self._items or self._following is None or self._left == 0:
            return None
        rows = operations.PAGE_ROWS
        return self._following._replace(limit=rows if self._left is None else min(self._left, rows))

    def _keep(self, page: tuple[list[Item], CheckpointQuery | None]) -> None:
        items, self._following = page
        self._items.extend(items)
        if self._left is not None:
            self._left -= len(items)

    def _end(self) -> None:
        self._following = None
        self._items.clear()


class Checkpoints(_Listing, Iterator[CheckpointTuple]):
    """Checkpoints for `for`."""

    def __next__(self) -> CheckpointTuple:
        while (query := self._next_page()) is not None:
            self._keep(self._runner.run(operations.page, self._context, query))
        if not self._items:
            raise StopIteration
        return operations.checkpoint_of(self._items.popleft())

    def close(self) -> None:
        """End the iteration, as a generator would."""
        self._end()


class AsyncCheckpoints(_Listing, AsyncIterator[CheckpointTuple]):
    """Checkpoints for `async for`."""

    async def __anext__(self) -> CheckpointTuple:
        while (query := self._next_page()) is not None:
            self._keep(await self._runner.arun(operations.page, self._context, query))
        if not self._items:
            raise StopAsyncIteration
        return operations.checkpoint_of(self._items.popleft())

    async def aclose(self) -> None:
        """End the iteration, as a generator would."""
        self._end()
