"""Listings of checkpoints: pages, and iterators that read one page after the other.

The iterators are no generators, because a generator ends when it raises: after a checkpoint that
cannot be read, the next call returns the one after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.collector import pauses_collector
from forkpoint.encoding.chunk import StoredChunks
from forkpoint.errors import CorruptChunk, UnreadableValue
from forkpoint.operations.context import Context
from forkpoint.operations.places import existing_thread
from forkpoint.operations.read import (
    chunks_of,
    count,
    load_checkpoint,
    load_without_values,
    readings,
)
from forkpoint.runtime.runner import Runner
from forkpoint.storage.interface import Session
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.rows import StoredCheckpoint

PAGE_ROWS = 20
"""How many checkpoints a listing reads at once."""

Item = CheckpointTuple | CorruptChunk | UnreadableValue
"""A checkpoint of a page, or why it cannot be read."""


class CheckpointPage(NamedTuple):
    """A page of a listing."""

    items: list[Item]
    following: CheckpointQuery | None
    """The query of the next page; None after the last."""


def page(context: Context, query: CheckpointQuery) -> CheckpointPage:
    """Return a page of checkpoints. Where one cannot be read, the error stands in its place."""
    try:
        return _page(context, query)
    except CorruptChunk as error:  # the store itself cannot read one of the rows
        if query.limit > 1:
            items, following = page(context, query._replace(limit=1))
            return CheckpointPage(items, following and following._replace(limit=query.limit))
        return CheckpointPage([error], query._replace(offset=query.offset + 1))


def _page(context: Context, query: CheckpointQuery) -> CheckpointPage:
    context = context.for_present_history()

    def read(session: Session) -> tuple[list[StoredCheckpoint], dict[Any, StoredChunks]]:
        checkpoints = session.checkpoints.page(query)
        if not checkpoints and query.thread_id is not None:
            _check_empty(session, query, query.thread_id)
        if query.values:
            chunks = chunks_of(session, checkpoints)
            return checkpoints, {family: StoredChunks(each) for family, each in chunks.items()}
        count(checkpoints, {})
        return checkpoints, {}

    items: list[Item] = []
    following: CheckpointQuery | None = None
    for checkpoints, chunks in readings(context, read):
        items = _load(context, query, checkpoints, chunks)
        following = following_page(query, checkpoints)
        if not any(isinstance(item, CorruptChunk) for item in items):
            break
    return CheckpointPage(items, following)


@pauses_collector
def _load(
    context: Context,
    query: CheckpointQuery,
    checkpoints: Sequence[StoredCheckpoint],
    chunks: Mapping[Any, StoredChunks],
) -> list[Item]:
    """Return the checkpoints that were read, or why one cannot be."""
    items: list[Item] = []
    for stored in checkpoints:
        try:
            if query.values:
                items.append(load_checkpoint(context, stored, chunks[stored.thread.family]))
            else:
                items.append(load_without_values(context, stored))
        except (CorruptChunk, UnreadableValue) as error:
            items.append(error)
    return items


def _check_empty(session: Session, query: CheckpointQuery, thread_id: str) -> None:
    """Check that a page may be empty.

    Raises:
        ThreadNotFound: The query needs its thread to exist.
        CorruptChunk: A checkpoint was stored, as its receipt says, and is missing.
    """
    if query.must_exist:
        existing_thread(session, thread_id)
    is_first = query.after is None and query.before is None and not query.filter
    if is_first and query.checkpoint_ns is not None:
        session.checkpoints.get(thread_id, query.checkpoint_ns, query.checkpoint_id)


def following_page(
    query: CheckpointQuery, checkpoints: Sequence[StoredCheckpoint]
) -> CheckpointQuery | None:
    """Return the query of the page after this one, if there may be one."""
    if len(checkpoints) < query.limit:
        return None
    last = checkpoints[-1]
    place = (last.row.checkpoint_id, last.thread.key, last.row.checkpoint_ns)
    return query._replace(after=place, offset=0)


def checkpoint_of(item: Item) -> CheckpointTuple:
    """Return the checkpoint of an item of a page, or raise why it cannot be read."""
    if isinstance(item, CheckpointTuple):
        return item
    raise item


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
        rows = PAGE_ROWS
        return self._following._replace(limit=rows if self._left is None else min(self._left, rows))

    def _add(self, more: CheckpointPage) -> None:
        items, self._following = more
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
            self._add(self._runner.run(page, self._context, query))
        if not self._items:
            raise StopIteration
        return checkpoint_of(self._items.popleft())

    def close(self) -> None:
        """End the iteration, as a generator would."""
        self._end()


class AsyncCheckpoints(_Listing, AsyncIterator[CheckpointTuple]):
    """Checkpoints for `async for`."""

    async def __anext__(self) -> CheckpointTuple:
        while (query := self._next_page()) is not None:
            self._add(await self._runner.arun(page, self._context, query))
        if not self._items:
            raise StopAsyncIteration
        return checkpoint_of(self._items.popleft())

    async def aclose(self) -> None:
        """End the iteration, as a generator would."""
        self._end()
