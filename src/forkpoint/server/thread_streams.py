"""What the runs on a thread send, one after the other, to those who follow the thread."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from forkpoint.server.bodies import Json
from forkpoint.server.log import Log
from forkpoint.server.protocol import Event, EventRequest

LostEnd = Callable[[Callable[[], bool]], Awaitable[Sequence[Event] | None]]
"""Returns how the last run on a thread ended, where this process has not sent it.

It returns nothing once what it is called with is true, as a later run has begun, and None if there
is no such thread any more.
"""
_AHEAD_SECONDS = 24 * 60 * 60
"""How far ahead the clock of another server may be whose numbers clients come with."""


class ThreadStreams:
    """What is sent of a thread: what its runs stream, and the events of the streaming protocol.

    Their numbers are times, in microseconds, so that they grow over restarts of the server and from
    one server to another: clients come back with them.

    Attributes:
        parts: Names and JSON, of all runs.
        events: Of the runs that commands began. Each is with its run and its time.
        followers: How many clients are there.
    """

    def __init__(self) -> None:
        first = _microseconds()
        self.parts: Log[tuple[str, str]] = Log(first)
        self.events: Log[tuple[str, int, Event]] = Log(first)
        self.followers = 0
        self._going_on: dict[str, int] = {}
        self._before_first = self._before_run = self._told = self.events.last

    @property
    def is_needed(self) -> bool:
        """Whether a run is going on, or a client is there."""
        return bool(self._going_on or self.followers)

    @property
    def has_ended(self) -> bool:
        """Whether nobody is sent anything any more."""
        return self.parts.has_ended

    @property
    def characters(self) -> int:
        """How much text is kept."""
        return self.parts.characters + self.events.characters

    def begin(self, run_id: str) -> None:
        """Note that a run is going to send something."""
        self._going_on[run_id] = self.parts.last

    def finish(self, run_id: str) -> None:
        """Note that a run sends nothing any more."""
        self._going_on.pop(run_id, None)

    def begin_events(self, run_id: str, graph_name: str) -> None:
        """Say that a run begins, which a command asked for."""
        self._before_run = self.events.last
        self.add(run_id, Event("lifecycle", [], {"event": "running", "graph_name": graph_name}))

    def add(self, run_id: str, event: Event) -> None:
        """Send an event of a run."""
        entry = run_id, time.time_ns() // 1_000_000, event
        self.events.skip_to(_microseconds())
        self.events.append(entry, len(as_text(event.data)))

    def publish(self, name: str, data: str) -> None:
        """Send a part of what a run streams, or of what is told of the thread."""
        self.parts.skip_to(_microseconds())
        self.parts.append((name, data), len(data))

    def end(self) -> None:
        """Let all clients go: there is no such thread any more, or nothing is kept of it."""
        self.parts.end()
        self.events.end()

    async def follow_parts(self, after: int | None) -> AsyncIterator[tuple[int, str, str]]:
        """Return what runs stream after a number; by default all of those that are going on."""
        self.followers += 1
        try:
            start = after
            if start is None:
                start = min(self._going_on.values(), default=self.parts.last)
            self.parts.skip_to(_known(start))
            async for number, (name, data) in self.parts.follow(start):
                yield number, name, data
        finally:
            self.followers -= 1

    async def follow_events(self, request: EventRequest, lost_end: LostEnd) -> AsyncIterator[Json]:
        """Return the events that a client asks for, from the beginning of the newest run.

        How that ended is told once to clients that watch for it and say nothing of where they
        begin: such a client comes before it begins a run, or for the end of a run that it missed.
        Others get the events of the newest run again. A client that comes back with a number that
        was not sent here, of another server or from before these streams were made, is told how the
        run ended that it knows of.
        """
        after = self._before_run if request.since is None else request.since
        if request.is_watch and request.since is None:
            after = max(after, self._told)
        self.followers += 1
        try:
            self.events.skip_to(_known(after))
            if request.since and not self._before_first <= request.since <= self.events.last:
                begins = partial(self.events.has_after, request.since)
                events = await lost_end(begins)
                if events is None:
                    return
                for number, event in enumerate(events):
                    if request.matches(event):
                        milliseconds = time.time_ns() // 1_000_000
                        yield event.shown(f"end-{number}", request.since, milliseconds)
            async for number, (run_id, milliseconds, event) in self.events.follow(after):
                if request.matches(event):
                    yield event.shown(run_id, number, milliseconds)
                if request.is_watch and event.is_end:
                    self._told = max(self._told, number)
        finally:
            self.followers -= 1


def _known(number: int) -> int:
    """Return a number that a client has come with, or 0 if no server can have sent it yet."""
    return number if number <= _microseconds() + _AHEAD_SECONDS * 1_000_000 else 0


def _microseconds() -> int:
    return time.time_ns() // 1000


def as_text(data: Any) -> str:
    """Return what is sent of a value that JSON has."""
    return json.dumps(data, ensure_ascii=False)
