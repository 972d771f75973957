"""What the forms of the pages do: run, answer, fork, roll back, delete, log in."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from starlette.requests import Request as HttpRequest

from forkpoint.errors import ThreadBusy
from forkpoint.server import bodies
from forkpoint.server.page_rendering import (
    PageRequest,
    PageRoute,
    SentForm,
    redirect,
    render,
    with_key,
    with_key_of_cookie,
)
from forkpoint.server.pages import checkpoints_after
from forkpoint.server.requests import RequestScope, Server, read_json
from forkpoint.server.run import Run
from forkpoint.server.run_routes import start_run
from forkpoint.server.states import config_at

router = APIRouter(route_class=PageRoute, prefix="/pages", include_in_schema=False)
_PATIENCE_SECONDS = 2
"""How long the answer to a form waits for the run that it began. The page shows the rest."""


@router.post("/run")
async def run(request: PageRequest, form: SentForm) -> Response:
    """Go on with a thread, with an input or as it is."""
    thread_id = form.needed("thread_id")
    body = await _run_on(request, thread_id, input=_input(form))
    await _begin(request, thread_id, body)
    return redirect(request.http, "thread", thread_id=thread_id, notice="running")


@router.post("/answer")
async def answer(request: PageRequest, form: SentForm) -> Response:
    """Answer an interrupt, and go on."""
    thread_id = form.needed("thread_id")
    given: Any = form.get("answer", "")
    if form.get("kind") == "json":
        given = _json(given, "answer")
    interrupt_id = form.get("interrupt_id")
    resume = {interrupt_id: given} if interrupt_id else given
    body = await _run_on(request, thread_id, command=bodies.Command(resume=resume))
    run = await _begin(request, thread_id, body)
    if run.error is not None and run.error["error"] == "UnknownInterruptError":
        raise HTTPException(409, "the thread does not wait for this answer any more")
    return redirect(request.http, "thread", thread_id=thread_id, notice="answered")


@router.post("/fork")
async def fork(request: PageRequest, form: SentForm) -> Response:
    """Fork a thread at a checkpoint, and go on in the fork, with an input or as it is."""
    thread_id = form.needed("thread_id")
    source: Any = thread_id
    if form.get("checkpoint_id"):
        place = bodies.CheckpointPlace(checkpoint_id=form["checkpoint_id"], checkpoint_ns="")
        source = config_at(thread_id, place)
    is_run = form.get("kind", "only") != "only"
    body = await _run_on(request, thread_id, input=_input(form)) if is_run else None
    config = await request.catalog.saver.afork(
        source, new_thread_id=form.get("new_thread_id") or None
    )
    new_thread_id = config["configurable"]["thread_id"]
    if body is not None:
        await _begin(request, new_thread_id, body)
    return redirect(request.http, "thread", thread_id=new_thread_id, notice="forked")


@router.post("/rollback")
async def rollback(request: PageRequest, form: SentForm) -> Response:
    """Remove the checkpoints after one, if there are as many as the page said."""
    thread_id = form.needed("thread_id")
    try:
        async with request.lease(thread_id):
            steps = await checkpoints_after(request, thread_id, form.needed("checkpoint_id"))
            if str(steps) != form.needed("steps") or steps == 0:
                changed = "the thread has changed since you were asked: look at it again"
                raise HTTPException(409, changed)
            await request.catalog.saver.arollback(thread_id, steps)
    except ThreadBusy as error:
        raise HTTPException(409, "a run is going on: roll back when it has ended") from error
    return redirect(request.http, "thread", thread_id=thread_id, notice="rolled-back")


@router.post("/delete")
async def delete(request: PageRequest, form: SentForm) -> Response:
    """Delete a thread with its whole history."""
    thread_id = form.needed("thread_id")
    await request.check_thread(thread_id)
    await request.server.runs.delete_thread(request, thread_id, request.catalog.adelete)
    return redirect(request.http, "", notice="deleted")


@router.post("/login")
async def login(http: HttpRequest, form: SentForm) -> Response:
    """Keep an API key in a cookie for the pages, if it is one of this server."""
    server: Server = http.app.state.forkpoint
    key = form.get("key", "").strip()
    if not server.takes_keys:
        raise HTTPException(404, "this server takes no API keys")
    try:
        await server.identity(with_key_of_cookie(http, key))
    except HTTPException:
        return render(http, "login.html", 401, is_refused=True)
    return with_key(http, redirect(http, ""), key)


@router.post("/logout")
async def logout(http: HttpRequest) -> Response:
    """Have the browser forget the API key."""
    return with_key(http, redirect(http, "login"), None)


async def _run_on(
    request: RequestScope,
    thread_id: str,
    *,
    input: Any = None,
    command: bodies.Command | None = None,
) -> bodies.NewRun:
    """Return a run of a thread's graph.

    Raises:
        ThreadNotFound: There is no such thread.
        HTTPException: 400: Its graph is not served.
    """
    thread = await request.thread(thread_id)
    name = request.graph_name(thread.metadata.get("graph_id"))
    if name is None:
        raise HTTPException(400, "the graph of this thread is not served")
    return bodies.NewRun(
        assistant_id=name,
        input=input,
        command=command,
        multitask_strategy="reject",
        strict_resume=True,
    )


async def _begin(request: RequestScope, thread_id: str, body: bodies.NewRun) -> Run:
    """Begin a run, wait a little for its end, and return it."""
    begun = await start_run(request, thread_id, body)
    with suppress(asyncio.TimeoutError):  # then the page says that it is going on
        await asyncio.wait_for(begun.join(), _PATIENCE_SECONDS)
    return begun


def _input(form: SentForm) -> Any:
    """Return the input that a form has, or None to go on without one."""
    kind = form.needed("kind")
    if kind == "as-it-is":
        return None
    text = form.needed("input")
    if kind == "message":
        return {"messages": [{"role": "user", "content": text}]}
    return _json(text, "input")


def _json(text: str, what: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise HTTPException(422, f"the {what} is no JSON: {error}") from error
