"""What runs answer with: what they stream as it comes, or their last state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from forkpoint.server.run import Run
from forkpoint.server.thread_streams import as_text

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""How routes whose answers are events are described."""
_HEARTBEAT_SECONDS = 5


def streamed(
    run: Run,
    *,
    cancels: bool,
    modes: Sequence[str] = (),
    after: int = 0,
    has_thread: bool = True,
) -> Response:
    """Return what a run streams, as an answer.

    Args:
        run: The run.
        cancels: Whether a client that goes takes the run along.
        modes: Those of its modes that are sent; by default all.
        after: After which event to begin.
        has_thread: Whether the client may come back to it.
    """

    async def events() -> AsyncIterator[ServerSentEvent]:
        async for number, name, data in run.parts(after):
            if not modes or _mode_of(name) in (None, *modes):
                yield ServerSentEvent(data, event=name, id=str(number))

    def leave() -> None:
        if cancels and not run.is_over:
            run.cancel()

    place = {"Content-Location": place_of(run)}
    return sent(events(), _headers_of(run, "stream") if has_thread else place, leave)


def _mode_of(name: str) -> str | None:
    """Return the mode that an event is of, or None for what is of each run."""
    kind = name.partition("|")[0]
    if kind in ("metadata", "error"):
        return None
    # As the Platform has it: of pairs, the name is that of the other mode.
    return "messages-tuple" if kind == "messages" else kind.partition("/")[0]


class Outcome(Response):
    """The last state of a run, once it has ended.

    Until then blanks are sent, which JSON may begin with, as the Platform does: else those between
    the client and the server, and the client itself, would take the connection for a dead one.

    Args:
        run: The run.
        is_own: Whether the client has begun the run, which may end with it.
    """

    media_type = "application/json"

    def __init__(self, run: Run, *, is_own: bool = True) -> None:
        super().__init__(headers=_headers_of(run, "join"))
        del self.headers["content-length"]
        self._run = run
        self._is_own = is_own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        joining = asyncio.ensure_future(self._run.join())
        leaving = asyncio.ensure_future(_left(receive))
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            while not joining.done():
                await asyncio.wait(
                    [joining, leaving],
                    timeout=_HEARTBEAT_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if leaving.done():
                    break
                if not joining.done():
                    await send({"type": "http.response.body", "body": b"\n", "more_body": True})
            if joining.done():
                content = as_text(joining.result()).encode()
                await send({"type": "http.response.body", "body": content})
        finally:
            if self._is_own and self._run.ends_with_client and not self._run.is_over:
                self._run.cancel()
            joining.cancel()
            leaving.cancel()


async def _left(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


def sent(
    events: AsyncIterator[ServerSentEvent],
    headers: Mapping[str, str],
    leave: Callable[[], None] | None = None,
) -> Response:
    """Return an answer of server-sent events.

    Args:
        events: The events.
        headers: Those of the answer.
        leave: Called as the client leaves, maybe before the first event, or has them all.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers}
    return _Events(events, headers, leave)


class _Events(EventSourceResponse):
    def __init__(
        self,
        events: AsyncIterator[ServerSentEvent],
        headers: Mapping[str, str],
        leave: Callable[[], None] | None,
    ) -> None:
        super().__init__(events, headers=headers, ping=_HEARTBEAT_SECONDS)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._leave is not None:
                self._leave()


def _headers_of(run: Run, ending: str) -> dict[str, str]:
    """Return the headers by which clients know a run, and come back to it."""
    return {"Content-Location": place_of(run), "Location": f"{place_of(run)}/{ending}"}


def place_of(run: Run) -> str:
    """Return where a client finds a run."""
    return f"/threads/{quote(run.thread_id, safe='')}/runs/{run.run_id}"
