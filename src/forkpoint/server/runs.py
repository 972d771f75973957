"""The runs of this process, and what is sent of their threads."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from forkpoint.server.requests import RequestScope
from forkpoint.server.run import Run
from forkpoint.server.thread_streams import ThreadStreams

RUNS_KEPT = 200
"""How many runs of an owner that have ended can still be asked for, and threads followed."""


class Runs:
    """The runs of this process: those that go on, and the last ones that ended."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._streams: OrderedDict[tuple[str | None, str], ThreadStreams] = OrderedDict()

    async def start(self, request: RequestScope, run: Run) -> None:
        """Begin a run, and keep it until others have ended after it.

        Raises:
            ThreadBusy: Another run is going on, and this one is not to wait, or to end it.
            ThreadNotFound: The thread was deleted meanwhile.
        """
        self._runs[run.run_id] = run  # at once: who deletes the thread ends this run as well
        try:
            await run.begin(self.streams_of(request, run.thread_id), self._cancel_others)
        except BaseException:
            del self._runs[run.run_id]
            raise
        known = self._runs.items()
        ended = [key for key, other in known if other.is_over and other.owner == run.owner]
        for key in ended[:-RUNS_KEPT]:
            del self._runs[key]

    def of_thread(self, request: RequestScope, thread_id: str) -> list[Run]:
        """Return the runs on a thread that the owner began, the newest first."""
        return [
            run
            for run in reversed(self._runs.values())
            if run.thread_id == thread_id and run.owner == request.owner
        ]

    def find(self, request: RequestScope, thread_id: str, run_id: str) -> Run | None:
        """Return a run on a thread, if this process has it, and its owner asks."""
        runs = self.of_thread(request, thread_id)
        return next((run for run in runs if run.run_id == run_id), None)

    def streams_of(self, request: RequestScope, thread_id: str) -> ThreadStreams:
        """Return what is sent of a thread to its owner."""
        key = request.owner, thread_id
        streams = self._streams.pop(key, None) or ThreadStreams()
        self._streams[key] = streams
        known = self._streams.items()
        unused = [key for key, each in known if key[0] == request.owner and not each.is_needed]
        for key in unused[:-RUNS_KEPT]:
            del self._streams[key]
        return streams

    async def end_thread(self, request: RequestScope, thread_id: str) -> None:
        """Cancel all runs on a thread, in this process: none of them begins any more."""
        waiting = self._cancel(thread_id, "pending")
        self._cancel(thread_id, "running")
        await _ended(waiting)
        if streams := self._streams.pop((request.owner, thread_id), None):
            streams.end()

    async def close(self) -> None:
        """Cancel all runs, and wait for their ends."""
        going_on = [run for run in self._runs.values() if not run.is_over]
        for run in going_on:
            run.cancel()
        await _ended(going_on)

    def _cancel_others(self, run: Run) -> list[Run]:
        """Cancel the runs that a run is to end, and return them."""
        return self._cancel(run.thread_id, "running")

    def _cancel(self, thread_id: str, status: str) -> list[Run]:
        """Cancel the runs on a thread that have a status, and return them."""
        runs = [
            run
            for run in self._runs.values()
            if run.thread_id == thread_id and run.status == status
        ]
        for run in runs:
            run.cancel()
        return runs


async def _ended(runs: Sequence[Run]) -> None:
    await asyncio.gather(*(run.ended() for run in runs))
