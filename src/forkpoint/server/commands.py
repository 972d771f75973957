"""LangGraph's streaming protocol by HTTP: commands on a thread, and its events.

It is what `client.threads.stream` speaks. A command is answered in the protocol's own form, errors
of the command included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response
from fastapi import Body as Given
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sse_starlette import ServerSentEvent

from forkpoint.errors import ForkpointError
from forkpoint.server import bodies
from forkpoint.server.bodies import Body, Json
from forkpoint.server.failures import failure_of
from forkpoint.server.protocol import CHANNELS, EventRequest
from forkpoint.server.requests import Request, StrictRoute, ThreadId
from forkpoint.server.run import RunOptions
from forkpoint.server.run_routes import STREAM, sent, start_run
from forkpoint.server.thread_streams import as_text

router = APIRouter(route_class=StrictRoute, tags=["streaming protocol"])
_OF_A_SOCKET = ("subscription.subscribe", "subscription.unsubscribe", "subscription.reconnect")


class RunStart(Body):
    assistant_id: str
    input: Any = None
    config: Json | None = None
    metadata: Json | None = None
    multitaskStrategy: bodies.MultitaskStrategy | None = None  # as it is sent


class InputResponse(Body):
    interrupt_id: str
    namespace: list[str] | None = None
    response: Any = None


class InputRespond(Body):
    responses: list[InputResponse]
    update: Any = None
    goto: Any = None
    config: Json | None = None
    metadata: Json | None = None


class _Refused(Exception):
    """A command that is not done."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@router.post("/threads/{thread_id}/commands", response_model=Json)
async def command(request: Request, thread_id: ThreadId, body: Annotated[Json, Given()]) -> Any:
    """Begin a run, or answer an interrupt."""
    number, method = body.get("id"), body.get("method")
    if not isinstance(number, int) or not isinstance(method, str):
        message = "a command has an integer as its id, and a text as its method"
        refusal = _error(number, "invalid_argument", message)
        return JSONResponse({**refusal, "detail": message}, 400)
    params = body.get("params")
    params = params if isinstance(params, dict) else {}
    before = request.server.runs.streams_of(request, thread_id).events.last
    try:
        result = await _done(request, thread_id, method, params)
    except _Refused as error:
        return _error(number, error.code, str(error))
    except ValidationError as error:
        place, reason = error.errors()[0]["loc"], error.errors()[0]["msg"]
        where = ".".join(str(part) for part in place)
        return _error(number, "invalid_argument", f"{method}: {where}: {reason}")
    except (ForkpointError, HTTPException) as error:
        failure = failure_of(error)
        return _error(number, "unknown_error", f"{failure.status}: {failure.detail}")
    meta = {"applied_through_seq": before}
    return {"type": "success", "id": number, "result": result, "meta": meta}


@router.post("/threads/{thread_id}/stream/events", responses=STREAM, response_class=Response)
async def events(request: Request, thread_id: ThreadId, body: EventRequest) -> Response:
    """Send the events of a thread that are asked for. It does not end.

    They are those of the runs that commands began, in this process.
    """
    unknown = [
        name for name in body.channels if name not in CHANNELS and not name.startswith("custom:")
    ]
    if unknown or not body.channels:
        known = ", ".join(sorted(CHANNELS))
        raise HTTPException(400, f"channels must be some of {known} and custom:<name>")
    await request.thread(thread_id)
    streams = request.server.runs.streams_of(request, thread_id)

    async def shown() -> AsyncIterator[ServerSentEvent]:
        async for event in streams.follow_events(body):
            yield ServerSentEvent(as_text(event), event=event["method"], id=str(event["seq"]))

    return sent(shown(), {})


async def _done(request: Request, thread_id: str, method: str, params: Json) -> Json:
    """Do what a command says, and return its result."""
    if method == "run.start":
        return await _start(request, thread_id, RunStart.model_validate(params))
    if method == "input.respond":
        one = {"responses": [params]}
        whole = params if "responses" in params else {**params, **one}
        return await _respond(request, thread_id, InputRespond.model_validate(whole))
    if method == "agent.getTree":
        raise _Refused("no_such_run", "runs are told of by their events")
    if method in _OF_A_SOCKET:
        raise _Refused("not_supported", "a subscription is a request for /stream/events")
    raise _Refused("unknown_command", f"there is no command {method!r}")


async def _start(request: Request, thread_id: str, params: RunStart) -> Json:
    thread = await request.catalog.aget(thread_id)
    configurable = (params.config or {}).get("configurable")
    place = configurable.get("checkpoint_id") if isinstance(configurable, Mapping) else None
    if place is not None and (not isinstance(place, str) or not place.strip()):
        raise _Refused("invalid_argument", "config.configurable.checkpoint_id must be a text")
    # As the Platform has it: while a thread waits for an answer, an input is the answer.
    is_answer = params.input is not None and thread is not None and bool(thread.interrupts)
    body = bodies.NewRun(
        assistant_id=params.assistant_id,
        input=None if is_answer else params.input,
        command=bodies.Command(resume=params.input) if is_answer else None,
        config=params.config,
        metadata=params.metadata,
        checkpoint_id=place,
        multitask_strategy=params.multitaskStrategy,
        if_not_exists="create",
    )
    run = await start_run(request, thread_id, body, RunOptions(sends_events=True))
    return {"run_id": run.run_id}


async def _respond(request: Request, thread_id: str, params: InputRespond) -> Json:
    resume = {each.interrupt_id: each.response for each in params.responses}
    if not resume:
        raise _Refused("invalid_argument", "input.respond: there is no response")
    for run in request.server.runs.of_thread(request, thread_id):
        if not run.asked.isdisjoint(resume):
            await run.ended()  # it has asked, and is about to store that
    thread = await request.catalog.aget(thread_id)
    if thread is None:
        raise _Refused("no_such_run", "no run on this thread waits for an answer")
    unknown = resume.keys() - {pending.id for pending in thread.interrupts}
    if unknown:
        raise _Refused("no_such_interrupt", f"nothing waits for an answer to {min(unknown)!r}")
    name = request.graph_name(thread.metadata.get("graph_id"))
    if name is None:
        raise _Refused("no_such_run", "the graph of this thread is not served")
    answer = bodies.Command(resume=resume, update=params.update, goto=params.goto)
    body = bodies.NewRun(
        assistant_id=name, command=answer, config=params.config, metadata=params.metadata
    )
    await start_run(request, thread_id, body, RunOptions(sends_events=True))
    return {}


def _error(number: Any, code: str, message: str) -> Json:
    return {"type": "error", "id": number, "error": code, "message": message}
