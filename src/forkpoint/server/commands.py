"""LangGraph's streaming protocol: commands on a thread, and its events, by HTTP or by a socket.

It is what `client.threads.stream` speaks. A command is answered in the protocol's own form, errors
of the command included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, HTTPException, Response, WebSocket, WebSocketDisconnect
from fastapi import Body as Given
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sse_starlette import ServerSentEvent
from starlette.websockets import WebSocketState

from forkpoint.catalog.heads import INTERRUPTS
from forkpoint.catalog.threads import PendingInterrupt, Thread
from forkpoint.errors import ForkpointError
from forkpoint.server import bodies
from forkpoint.server.access import refuse_socket
from forkpoint.server.bodies import Body, Json
from forkpoint.server.failures import failure_of
from forkpoint.server.lost_ends import lost_end
from forkpoint.server.protocol import CHANNELS, EventRequest
from forkpoint.server.requests import (
    Request,
    RequestScope,
    StrictRoute,
    ThreadId,
    read_json,
    scope_of,
)
from forkpoint.server.run import RunOptions
from forkpoint.server.run_answers import STREAM, sent
from forkpoint.server.run_routes import start_run
from forkpoint.server.states import read_stored
from forkpoint.server.thread_streams import ThreadStreams, as_text

if TYPE_CHECKING:
    from typing_extensions import Self

router = APIRouter(route_class=StrictRoute, tags=["streaming protocol"])
_PATIENCE_SECONDS = 5
"""How long an answer waits for a run that goes on to store what it has asked."""
_PAUSE_SECONDS = 0.05


class RunStart(Body):
    assistant_id: str
    input: Any = None
    config: bodies.RunConfig | None = None
    metadata: Json | None = None
    multitaskStrategy: bodies.MultitaskStrategy | None = None  # as it is sent
    langsmith_tracer: bodies.NotDone = None


class InputResponse(Body):
    interrupt_id: str
    namespace: list[str] | None = None
    response: Any = None


class InputRespond(Body):
    responses: list[InputResponse]
    update: Any = None
    goto: Any = None
    config: bodies.RunConfig | None = None
    metadata: Json | None = None


class _Refused(Exception):
    """A command that is not done."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@router.post("/threads/{thread_id}/commands", response_model=Json)
async def command(request: Request, thread_id: ThreadId, body: Annotated[Json, Given()]) -> Any:
    """Begin a run, or answer an interrupt."""
    answer = await answer_to(body, partial(_done, request, thread_id))
    if answer.get("detail") is None:
        return answer
    return JSONResponse(answer, 400)


@router.websocket("/threads/{thread_id}/stream/events")
async def socket(websocket: WebSocket, thread_id: ThreadId) -> None:
    """Take commands on a thread, and send the events of subscriptions to it."""
    try:
        request = await scope_of(websocket)
        await request.thread(thread_id)
    except (ForkpointError, HTTPException) as error:
        failure = failure_of(error)
        await refuse_socket(websocket, failure.status, failure.detail)
        return
    await websocket.accept()
    async with _Subscriptions(websocket, request, thread_id) as subscriptions:
        while True:
            try:
                body = read_json(await websocket.receive_text())
            except (ValueError, KeyError):  # it is no JSON, or no text
                body = None
            await websocket.send_text(as_text(await answer_to(body, subscriptions.do)))


Do = Callable[[str, Json], Awaitable[Json]]
"""Does a command with parameters, and returns its result."""


async def answer_to(body: Any, do: Do) -> Json:
    """Do a command, and return what it is answered with. What is no command has a detail."""
    body = body if isinstance(body, dict) else {}
    number, method = body.get("id"), body.get("method")
    if not isinstance(number, int) or not isinstance(method, str):
        message = "a command has an integer as its id, and a text as its method"
        return {**_error(number, "invalid_argument", message), "detail": message}
    params = body.get("params")
    try:
        result = await do(method, params if isinstance(params, dict) else {})
    except _Refused as error:
        return _error(number, error.code, str(error))
    except ValidationError as error:
        place, reason = error.errors()[0]["loc"], error.errors()[0]["msg"]
        where = ".".join(str(part) for part in place)
        return _error(number, "invalid_argument", f"{method}: {where}: {reason}")
    except (ForkpointError, HTTPException) as error:
        failure = failure_of(error)
        return _error(number, "unknown_error", f"{failure.status}: {failure.detail}")
    meta = {"applied_through_seq": result.pop("before")}
    return {"type": "success", "id": number, "result": result, "meta": meta}


@router.post("/threads/{thread_id}/stream/events", responses=STREAM, response_class=Response)
async def events(request: Request, thread_id: ThreadId, body: EventRequest) -> Response:
    """Send the events of a thread that are asked for. It does not end.

    They are those of the runs that commands began, in this process.
    """
    _check(body)
    streams = request.server.runs.streams_of(request, thread_id)
    await request.thread(thread_id)

    async def shown() -> AsyncIterator[ServerSentEvent]:
        if body.is_watch:
            # As a socket answers a subscription. On Python before 3.12, a client that leaves as
            # this begins may notice only once something comes, and wait for that.
            meta = {"applied_through_seq": streams.events.last}
            first = {"type": "success", "id": 0, "result": {}, "meta": meta}
            yield ServerSentEvent(as_text(first), event="success")
        async for event in streams.follow_events(body, partial(lost_end, request, thread_id)):
            yield ServerSentEvent(as_text(event), event=event["method"], id=str(event["seq"]))

    return sent(shown(), {})


def _check(body: EventRequest) -> None:
    unknown = [
        name for name in body.channels if name not in CHANNELS and not name.startswith("custom:")
    ]
    if unknown or not body.channels:
        known = ", ".join(sorted(CHANNELS))
        raise HTTPException(400, f"channels must be some of {known} and custom:<name>")


class _Subscriptions:
    """What one socket is sent of a thread."""

    def __init__(self, websocket: WebSocket, request: RequestScope, thread_id: str) -> None:
        self._websocket = websocket
        self._request = request
        self._thread_id = thread_id
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Any, error: Any, _: Any) -> bool:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        is_closed = self._websocket.application_state is WebSocketState.DISCONNECTED
        return is_closed or isinstance(error, WebSocketDisconnect)

    async def do(self, method: str, params: Json) -> Json:
        """Do a command that came by the socket."""
        if method == "subscription.subscribe":
            request = EventRequest.model_validate(params)
            _check(request)
            streams = self._streams()
            await self._request.thread(self._thread_id)
            key = str(uuid4())
            self._tasks[key] = asyncio.create_task(self._send(request, streams))
            result = {"subscription_id": key, "replayed_events": 0}
            return {**result, "before": streams.events.last}
        if method == "subscription.unsubscribe":
            task = self._tasks.pop(str(params.get("subscription_id")), None)
            if task is None:
                raise _Refused("no_such_subscription", "there is no such subscription")
            task.cancel()
            return {"before": self._streams().events.last}
        return await _done(self._request, self._thread_id, method, params)

    def _streams(self) -> ThreadStreams:
        return self._request.server.runs.streams_of(self._request, self._thread_id)

    async def _send(self, request: EventRequest, streams: ThreadStreams) -> None:
        end = partial(lost_end, self._request, self._thread_id)
        try:
            async for event in streams.follow_events(request, end):
                await self._websocket.send_text(as_text(event))
        except Exception:
            await self._websocket.close(1011)  # else the client would wait for what nobody sends
            raise
        await self._websocket.close(4404)  # there is no such thread any more


async def _done(request: RequestScope, thread_id: str, method: str, params: Json) -> Json:
    """Do what a command says. Its result says the number of the last event before it, too."""
    before = request.server.runs.streams_of(request, thread_id).events.last
    if method == "run.start":
        result = await _start(request, thread_id, RunStart.model_validate(params))
        return {**result, "before": before}
    if method == "input.respond":
        one = {"responses": [params]}
        whole = params if "responses" in params else {**params, **one}
        await _respond(request, thread_id, InputRespond.model_validate(whole))
        return {"before": before}
    if method == "agent.getTree":
        raise _Refused("no_such_run", "runs are told of by their events")
    if method.startswith("subscription."):
        raise _Refused("not_supported", "a subscription is a request for /stream/events")
    raise _Refused("unknown_command", f"there is no command {method!r}")


async def _start(request: RequestScope, thread_id: str, params: RunStart) -> Json:
    thread = await request.catalog.aget(thread_id)
    configurable = params.config.configurable if params.config is not None else None
    place = configurable.checkpoint_id if configurable is not None else None
    if place is not None and not place.strip():
        raise _Refused("invalid_argument", "config.configurable.checkpoint_id must be a text")
    seen = () if thread is None else thread.interrupts
    asked = {
        id_
        for run in request.server.runs.of_thread(request, thread_id)
        if not run.is_over
        for id_ in run.asked  # and is about to store that
    }

    def is_known(pending: PendingInterrupt) -> bool:
        return pending in seen or pending.id in asked

    # As the Platform has it: while a thread waits for an answer, an input is the answer. A run that
    # goes on may answer first what this thread waits for, or ask what this client does not know.
    options = RunOptions(sends_events=True, answers=is_known)
    body = bodies.NewRun(
        assistant_id=params.assistant_id,
        input=params.input,
        config=params.config,
        metadata=params.metadata,
        multitask_strategy=params.multitaskStrategy,
        if_not_exists="create",
    )
    run = await start_run(request, thread_id, body, options)
    return {"run_id": run.run_id}


async def _respond(request: RequestScope, thread_id: str, params: InputRespond) -> None:
    resume = {each.interrupt_id: each.response for each in params.responses}
    if not resume:
        raise _Refused("invalid_argument", "input.respond: there is no response")
    for run in request.server.runs.of_thread(request, thread_id):
        if not run.asked.isdisjoint(resume):
            await run.ended()  # it has asked, and is about to store that
    thread = await _asking(request, thread_id, set(resume))
    name = request.graph_name(thread.metadata.get("graph_id"))
    if name is None:
        raise _Refused("no_such_run", "the graph of this thread is not served")
    answer = bodies.Command(resume=resume, update=params.update, goto=params.goto)
    body = bodies.NewRun(
        assistant_id=name,
        command=answer,
        config=params.config,
        metadata=params.metadata,
        strict_resume=True,  # if another client's answer comes first, this one is to none
    )
    await start_run(request, thread_id, body, RunOptions(sends_events=True))


async def _asking(request: RequestScope, thread_id: str, ids: set[str]) -> Thread:
    """Return a thread that waits for answers to these interrupts.

    While a run goes on, on another server, it may have asked, and be about to store that.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        thread = await request.catalog.aget(thread_id)
        if thread is None:
            raise _Refused("no_such_run", "no run on this thread waits for an answer")
        unknown = ids - {pending.id for pending in thread.interrupts}
        if unknown and _is_partial(thread.interrupts):
            stored = await read_stored(request.catalog.saver, thread_id)
            asked = stored["interrupts"] if stored else ()
            unknown -= {each["id"] for each in asked if isinstance(each, dict) and "id" in each}
        if not unknown:
            return thread
        if thread.status != "busy" or time.monotonic() > until:
            raise _Refused("no_such_interrupt", f"nothing waits for an answer to {min(unknown)!r}")
        await asyncio.sleep(_PAUSE_SECONDS)


def _is_partial(interrupts: Sequence[PendingInterrupt]) -> bool:
    """Return whether a thread's record does not say of all interrupts what their ids are."""
    return len(interrupts) >= INTERRUPTS or any(pending.id is None for pending in interrupts)


def _error(number: Any, code: str, message: str) -> Json:
    return {"type": "error", "id": number, "error": code, "message": message}
