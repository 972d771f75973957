"""Runs by HTTP: streamed, waited for, joined and cancelled."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal, get_args
from uuid import uuid4

from fastapi import APIRouter, Header, HTTPException, Query, Response
from fastapi import Body as Given
from sse_starlette import ServerSentEvent

from forkpoint.errors import ForkpointError
from forkpoint.operations import remove
from forkpoint.runtime.runner import completed
from forkpoint.saver import parts_of
from forkpoint.server import bodies
from forkpoint.server.assistants import Assistant, find_assistant
from forkpoint.server.bodies import Json
from forkpoint.server.requests import LISTED, InPath, Request, RequestScope, StrictRoute, ThreadId
from forkpoint.server.run import Run, RunOptions
from forkpoint.server.run_answers import STREAM, Outcome, place_of, sent, streamed
from forkpoint.server.states import command_of

router = APIRouter(route_class=StrictRoute, tags=["runs"])
RunId = InPath
ThreadModes = Annotated[
    list[Literal["run_modes", "lifecycle", "state_update"]] | None, LISTED, Query()
]
CancelAction = Annotated[Literal["interrupt", "rollback"], Query()]


@router.post("/threads/{thread_id}/runs/stream", responses=STREAM, response_class=Response)
async def stream(request: Request, thread_id: ThreadId, body: bodies.NewRun) -> Response:
    """Run a graph on a thread, and send what it streams as it comes."""
    run = await start_run(request, thread_id, body)
    return streamed(run, cancels=run.ends_with_client)


@router.post("/runs/stream", responses=STREAM, response_class=Response)
async def stream_without_thread(request: Request, body: bodies.NewRun) -> Response:
    """Run a graph on a thread of its own, which is deleted afterwards unless told otherwise."""
    run = await _started_on_new_thread(request, body)
    has_thread = body.on_completion == "keep"
    return streamed(run, cancels=run.ends_with_client, has_thread=has_thread)


@router.post("/threads/{thread_id}/runs/wait", response_model=None)
async def wait(request: Request, thread_id: ThreadId, body: bodies.NewRun) -> Any:
    """Run a graph on a thread, and return its last state."""
    return Outcome(await start_run(request, thread_id, body))


@router.post("/runs/wait", response_model=None)
async def wait_without_thread(request: Request, body: bodies.NewRun) -> Any:
    """Run a graph on a thread of its own, and return its last state."""
    return Outcome(await _started_on_new_thread(request, body))


@router.post("/threads/{thread_id}/runs", response_model=Json)
async def create(
    request: Request, thread_id: ThreadId, body: bodies.NewRun, response: Response
) -> Json:
    """Begin a run on a thread. It is known to this process, and goes with it."""
    run = await start_run(request, thread_id, body)
    response.headers["Content-Location"] = place_of(run)
    return run.shown()


@router.post("/runs", response_model=Json)
async def create_without_thread(request: Request, body: bodies.NewRun, response: Response) -> Json:
    """Begin a run on a thread of its own, which is deleted afterwards unless told otherwise."""
    run = await _started_on_new_thread(request, body)
    response.headers["Content-Location"] = place_of(run)
    return run.shown()


@router.post("/runs/batch", response_model=list[Json])
async def create_batch(
    request: Request, body: Annotated[list[bodies.NewRun], Given(min_length=1)]
) -> list[Json]:
    """Begin runs without a thread, all of them or none, and return each as it began."""
    for asked in body:
        _check_without_thread(request, asked)
    runs: list[Run] = []
    begun: list[Json] = []
    try:
        for asked in body:
            runs.append(await _started_on_new_thread(request, asked))
            begun.append(runs[-1].shown())
    except BaseException:
        for run in runs:
            run.cancel()
        for run in runs:
            await _delete_unknown(request, run.thread_id)
        raise
    return begun


@router.get("/threads/{thread_id}/runs", response_model=list[Json])
async def list_runs(
    request: Request,
    thread_id: ThreadId,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
    offset: Annotated[int, Query(ge=0)] = 0,
    status: Annotated[str | None, Query()] = None,
    select: Annotated[list[bodies.RunField] | None, LISTED, Query()] = None,
) -> list[Json]:
    """Return the runs on a thread that this process knows, newest first."""
    await request.thread(thread_id)
    runs = request.server.runs.of_thread(request, thread_id)
    shown = [run.shown() for run in runs if status is None or run.status == status]
    page = shown[offset:][:limit]
    return [{name: run[name] for name in select} for run in page] if select else page


@router.get("/threads/{thread_id}/runs/{run_id}", response_model=Json)
async def get(request: Request, thread_id: ThreadId, run_id: RunId) -> Json:
    """Return a run that this process knows."""
    return _known(request, thread_id, run_id).shown()


@router.get("/threads/{thread_id}/runs/{run_id}/join", response_model=None)
async def join(request: Request, thread_id: ThreadId, run_id: RunId) -> Any:
    """Wait for a run's end, and return its last state."""
    return Outcome(_known(request, thread_id, run_id), is_own=False)


@router.get("/threads/{thread_id}/runs/{run_id}/stream", responses=STREAM, response_class=Response)
async def join_stream(
    request: Request,
    thread_id: ThreadId,
    run_id: RunId,
    stream_mode: Annotated[list[bodies.RunMode | Literal[""]] | None, LISTED, Query()] = None,
    cancel_on_disconnect: Annotated[bool, Query()] = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Send what a run streams, or some of its modes, from the beginning or from after an event."""
    is_number = re.fullmatch("[0-9]{1,18}", last_event_id or "")
    after = int(is_number[0]) if is_number else 0
    run = _known(request, thread_id, run_id)
    modes = [mode for mode in stream_mode or () if mode]  # clients send an empty one for all
    return streamed(run, modes=modes, after=after, cancels=cancel_on_disconnect)


@router.get("/threads/{thread_id}/stream", responses=STREAM, response_class=Response)
async def join_thread(
    request: Request,
    thread_id: ThreadId,
    stream_mode: ThreadModes = None,
    stream_modes: ThreadModes = None,
    last_event_id: Annotated[str | None, Header(pattern=r"^(-1?|\d{1,18}(-\d{1,9})?)$")] = None,
) -> Response:
    """Send what the runs on a thread stream, those that begin later included. It does not end.

    `run_modes` are all of it, `lifecycle` says when runs begin and end, and `state_update` has the
    states that are written without a run. After an id, `-` for that of the first, it goes on there.
    """
    modes = {part for asked in (stream_mode, stream_modes) for part in asked or ()}
    streams = request.server.runs.streams_of(request, thread_id)
    await request.thread(thread_id)
    after = None
    if last_event_id is not None:
        after = int(last_event_id.partition("-")[0] or 0)

    async def events() -> AsyncIterator[ServerSentEvent]:
        async for number, name, data in streams.follow_parts(after):
            mode = "state_update" if name == "state_update" else "run_modes"
            if mode in (modes or {"run_modes"}) or (name == "metadata" and "lifecycle" in modes):
                yield ServerSentEvent(data, event=name, id=str(number))

    return sent(events(), {})


@router.post("/threads/{thread_id}/runs/{run_id}/cancel", response_model=Json)
async def cancel(
    request: Request,
    thread_id: ThreadId,
    run_id: RunId,
    wait: Annotated[bool, Query()] = False,
    action: CancelAction = "interrupt",
) -> Json:
    """Cancel a run. With `rollback`, all that it stored is removed."""
    run = request.server.runs.find(request, thread_id, run_id)
    if run is None or not await _has_cancelled(request, run, action):
        raise HTTPException(404, "No runs found to cancel.")
    if wait:
        await run.join()
    return {}


@router.post("/runs/cancel", status_code=204, response_class=Response)
async def cancel_many(
    request: Request, body: bodies.RunsToCancel, action: CancelAction = "interrupt"
) -> None:
    """Cancel runs of this process: some on a thread, or all that wait or go on.

    One that cannot be rolled back keeps no other from that, and why is said at the end.
    """
    if body.status is None:
        on_thread = request.server.runs.of_thread(request, body.thread_id or "")
        runs = [run for run in on_thread if run.run_id in (body.run_ids or ())]
    else:
        statuses = ("pending", "running") if body.status == "all" else (body.status,)
        runs = [run for run in request.server.runs.of(request) if run.status in statuses]
    cancelled: list[bool] = []
    failed: list[ForkpointError] = []
    for run in runs:
        try:
            cancelled.append(await _has_cancelled(request, run, action))
        except ForkpointError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    if body.status is None and not any(cancelled):
        raise HTTPException(404, "No runs found to cancel.")


async def _has_cancelled(request: Request, run: Run, action: str) -> bool:
    """Cancel a run, and return false if it has ended before."""
    if run.is_over:
        return False
    if action == "rollback":
        return await request.server.runs.roll_back(request, run)
    run.cancel()
    return True


@router.delete("/threads/{thread_id}/runs/{run_id}", status_code=204, response_class=Response)
async def delete(request: Request, thread_id: ThreadId, run_id: RunId) -> None:
    """Remove the checkpoints that a run made on a thread. The thread stays."""
    await request.thread(thread_id)
    run = request.server.runs.find(request, thread_id, run_id)
    if run is not None and not run.is_over:
        raise HTTPException(409, "the run is going on: cancel it first")
    context, runner = parts_of(request.catalog.saver)
    async with request.lease(thread_id):  # maybe it goes on elsewhere
        has_removed = await runner.arun(remove.delete_run, context, thread_id, run_id)
    if run is not None:
        request.server.runs.forget(run)
    elif not has_removed:
        raise HTTPException(404, f"there is no run {run_id!r} on the thread")


async def start_run(
    request: RequestScope,
    thread_id: str,
    body: bodies.NewRun,
    options: RunOptions = RunOptions(),  # noqa: B008  # it does not change
) -> Run:
    """Begin a run of a graph on a thread.

    Raises:
        ThreadNotFound: There is no such thread, and it is not to be made.
        ThreadBusy: Another run is going on, and this one is not to wait, or to end it.
        HTTPException: 422: There is no such graph, a mode is unknown, or a command is none.
    """
    assistant = _assistant_for(request, body)
    if body.if_not_exists == "create":
        await request.catalog.acreate(thread_id, if_exists="do_nothing")
    else:
        await request.thread(thread_id)
    run = Run(request, thread_id, assistant, body, options)
    await request.server.runs.start(request, run)
    return run


def _assistant_for(request: RequestScope, body: bodies.NewRun) -> Assistant:
    """Return the assistant of a run that is asked for as it can be."""
    assistant = find_assistant(request.server, body.assistant_id)
    if assistant is None:
        raise HTTPException(422, f"there is no assistant {body.assistant_id!r}")
    unknown = sorted({*_modes(body)} - {*get_args(bodies.RunMode)})
    if unknown:
        raise HTTPException(422, f"stream_mode: there is no {unknown[0]!r}")
    if body.command is not None:
        command_of(body.command)
    return assistant


def _check_without_thread(request: Request, body: bodies.NewRun) -> None:
    _assistant_for(request, body)
    if body.thread_id is not None:  # else that thread would not have what is said on it
        raise HTTPException(422, "thread_id: on a thread, runs begin at /threads/{thread_id}/runs")
    is_answer = body.command is not None and body.command.resume is not None
    if is_answer or body.place.checkpoint_id is not None:
        raise HTTPException(422, "a run without a thread has no checkpoint to go on from")


async def _started_on_new_thread(request: Request, body: bodies.NewRun) -> Run:
    _check_without_thread(request, body)
    new = body.model_copy(update={"if_not_exists": "create"})
    options = RunOptions(is_temporary=body.on_completion != "keep")
    thread_id = str(uuid4())
    try:
        return await start_run(request, thread_id, new, options)
    except BaseException:
        await _delete_unknown(request, thread_id)
        raise


async def _delete_unknown(request: Request, thread_id: str) -> None:
    """Delete a thread that was made for a run, and end the run: nobody was told of them."""
    with suppress(ForkpointError):  # it was not made, or the store cannot be reached
        delete = request.server.runs.delete_thread
        await completed(delete(request, thread_id, request.catalog.adelete))


def _modes(body: bodies.NewRun) -> list[str]:
    modes = body.stream_mode or []
    return [modes] if isinstance(modes, str) else modes


def _known(request: Request, thread_id: str, run_id: str) -> Run:
    run = request.server.runs.find(request, thread_id, run_id)
    if run is None:
        raise HTTPException(404, f"there is no run {run_id!r} in this process")
    return run
