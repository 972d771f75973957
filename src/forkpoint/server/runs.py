"""The runs of this process, and what is sent of their threads."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from itertools import accumulate
from typing import TypeVar
from weakref import WeakValueDictionary

from fastapi import HTTPException

from forkpoint.errors import ThreadNotFound
from forkpoint.server.requests import RequestScope
from forkpoint.server.run import Run, end, ended
from forkpoint.server.thread_streams import ThreadStreams

RUNS_KEPT = 200
"""How many runs of an owner that have ended can still be asked for, and threads followed."""
CHARACTERS_KEPT = 16 * 1024 * 1024
"""How much text these may have together: the last one is kept in any case."""
RUNS_KEPT_OF_ALL = 10_000
CHARACTERS_KEPT_OF_ALL = 256 * 1024 * 1024
"""The same of all owners together: there may be any number of owners."""

_T = TypeVar("_T")


class Runs:
    """The runs of this process: those that go on, and the last ones that ended."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._streams: OrderedDict[tuple[str | None, str], ThreadStreams] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ending: list[Run] = []
        self._is_closed = False

    async def start(self, request: RequestScope, run: Run) -> None:
        """Begin a run, and keep it until others have ended after it.

        Raises:
            ThreadBusy: Another run is going on, and this one is not to wait, or to end it.
            ThreadNotFound: The thread was deleted meanwhile.
            HTTPException: 503: The server is told to end.
        """
        turn = self._turn_on(run.thread_id)
        async with turn:  # in the order in which they come
            if self._is_closed:  # nobody would end it
                raise HTTPException(503, "the server is about to end")
            others = [
                other for other in self.of_thread(request, run.thread_id) if not other.is_over
            ]
            self._runs[run.run_id] = run  # at once: who deletes the thread ends this run as well
            try:
                await run.begin(self.streams_of(request, run.thread_id), others, turn)
            except BaseException:
                self._runs.pop(run.run_id, None)
                raise
        over = {key: other for key, other in self._runs.items() if other.is_over}
        own = {key: each.characters for key, each in over.items() if each.owner == run.owner}
        for key in _too_many(own):
            del self._runs[key], over[key]
        for key in _too_many({key: each.characters for key, each in over.items()}, of_all=True):
            del self._runs[key]

    def of_thread(self, request: RequestScope, thread_id: str) -> list[Run]:
        """Return the runs on a thread that the owner began, the newest first."""
        return [run for run in self.of(request) if run.thread_id == thread_id]

    def of(self, request: RequestScope) -> list[Run]:
        """Return the runs that the owner began, the newest first."""
        return [run for run in reversed(self._runs.values()) if run.owner == request.owner]

    def find(self, request: RequestScope, thread_id: str, run_id: str) -> Run | None:
        """Return a run on a thread, if this process has it, and its owner asks."""
        runs = self.of_thread(request, thread_id)
        return next((run for run in runs if run.run_id == run_id), None)

    def streams_of(self, request: RequestScope, thread_id: str) -> ThreadStreams:
        """Return what is sent of a thread to its owner.

        It ends once it is forgotten, or the thread deleted. Who is about to follow it looks for the
        thread afterwards: so nobody follows what nothing is sent to any more.
        """
        key = request.owner, thread_id
        streams = self._streams.pop(key, None)
        if streams is None or streams.has_ended:
            streams = ThreadStreams()
        self._streams[key] = streams
        unused = {
            other: each.characters
            for other, each in self._streams.items()
            if other != key and not each.is_needed
        }
        own = {other: size for other, size in unused.items() if other[0] == request.owner}
        for other in {*_too_many(own), *_too_many(unused, of_all=True)}:
            self._streams.pop(other).end()
        return streams

    async def roll_back(self, request: RequestScope, run: Run) -> bool:
        """Cancel a run, and remove all that it stored. Return false if it has ended before.

        A run that has no lease has stored nothing, and whoever has the lease goes on. Nothing is
        left of a run whose thread was deleted elsewhere.
        """
        async with self._turn_on(run.thread_id), AsyncExitStack() as stack:
            if run.is_over:
                return False
            with suppress(ThreadNotFound):
                holder = await request.catalog.alease(run.thread_id)
                if holder is not None and holder.holder == run.holder:
                    await stack.enter_async_context(request.lease(run.thread_id, "rollback"))
            run.cancel()
            return True

    def forget(self, run: Run) -> None:
        """Know no more of a run that has ended, or is about to: what it stored is removed."""
        self._runs.pop(run.run_id, None)
        self._ending = [each for each in (*self._ending, run) if not each.is_over]

    async def delete_thread(
        self, request: RequestScope, thread_id: str, delete: Callable[[str], Awaitable[_T]]
    ) -> _T:
        """Delete a thread, and end the runs on it, and what is sent of it, in this process.

        Args:
            request: By whom it is deleted.
            thread_id: The thread.
            delete: Deletes it. Of the runs that were there before, none begins any more.
        """
        waiting = self._cancel(thread_id, "pending")
        self._cancel(thread_id, "running")
        await ended(waiting)
        known = self._on(thread_id)
        deleted = await delete(thread_id)
        for run in known:
            self.forget(run)
        if streams := self._streams.pop((request.owner, thread_id), None):
            streams.end()  # now: who comes later does not find the thread any more
        return deleted

    def open(self) -> None:
        """Let runs begin, again after `close`."""
        self._is_closed = False

    async def close(self) -> None:
        """Cancel all runs, and wait for their ends. None begins any more."""
        self._is_closed = True
        await end([*self._runs.values(), *self._ending])

    def _turn_on(self, thread_id: str) -> asyncio.Lock:
        """Return what those have, one after the other, who begin or roll back runs on a thread."""
        turn = self._turns.get(thread_id) or asyncio.Lock()
        self._turns[thread_id] = turn
        return turn

    def _on(self, thread_id: str) -> list[Run]:
        return [run for run in self._runs.values() if run.thread_id == thread_id]

    def _cancel(self, thread_id: str, status: str) -> list[Run]:
        """Cancel the runs on a thread that have a status, and return them."""
        runs = [run for run in self._on(thread_id) if run.status == status]
        for run in runs:
            run.cancel()
        return runs


def _too_many(characters: Mapping[_T, int], *, of_all: bool = False) -> list[_T]:
    """Return which ones are forgotten of what is over, of an owner or of all."""
    most, size_of_most = RUNS_KEPT, CHARACTERS_KEPT
    if of_all:
        most, size_of_most = RUNS_KEPT_OF_ALL, CHARACTERS_KEPT_OF_ALL
    newest = list(reversed(list(characters.items())))
    totals = accumulate(size for _, size in newest)
    return [
        key
        for place, ((key, _), total) in enumerate(zip(newest, totals, strict=True))
        if place >= most or (place > 0 and total > size_of_most)
    ]
