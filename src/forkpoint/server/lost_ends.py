"""How a run ended whose events went with another process: a server that was restarted, say.

A client that comes back with the number of an event that this process did not send waits for the
end of that run, and nobody sends it any more. What the thread has stored tells how it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from forkpoint.catalog.threads import Thread
from forkpoint.errors import ThreadNotFound
from forkpoint.server import bodies
from forkpoint.server.bodies import Json
from forkpoint.server.protocol import Event, request_of
from forkpoint.server.requests import RequestScope
from forkpoint.server.states import read_state

_PAUSE_SECONDS = 1
"""Between two looks whether a run still has the lease of its thread, which its process renews."""


async def lost_end(
    request: RequestScope, thread_id: str, has_begun: Callable[[], bool]
) -> list[Event] | None:
    """Return how the last run on a thread ended, once it has, or nothing if a later one begins.

    None if there is no such thread any more. A run on another server goes on meanwhile. The lease
    of a run that was killed ends by itself.
    """
    while not has_begun():
        try:
            thread = await request.thread(thread_id)
            if thread.status != "busy":
                state = await read_state(request, thread_id, bodies.CheckpointPlace(), False)
                return list(_ends(thread, state))
        except ThreadNotFound:
            return None
        await asyncio.sleep(_PAUSE_SECONDS)
    return []


def _ends(thread: Thread, state: Json) -> Iterator[Event]:
    graph_name = thread.metadata.get("graph_id")
    for task in state["tasks"]:
        place = task["checkpoint"] or {}
        namespace = [part for part in str(place.get("checkpoint_ns", "")).split("|") if part]
        for interrupt in task["interrupts"]:
            yield request_of(namespace, interrupt["id"], interrupt["value"])
    data: Json = {"event": "completed", "graph_name": graph_name}
    if thread.interrupts:
        data["event"] = "interrupted"
    elif state["next"]:
        reason = thread.error or "the run ended with its server, before it was done"
        data.update(event="failed", error=reason)
    yield Event("lifecycle", [], data)
