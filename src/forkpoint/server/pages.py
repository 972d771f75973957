"""Pages that show threads, their histories and families, and how their states differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest

from forkpoint.catalog.threads import Thread, ThreadFilter
from forkpoint.errors import CheckpointNotFound, CorruptChunk
from forkpoint.results import STATUSES, ChannelDiff, FamilyNode
from forkpoint.server import bodies
from forkpoint.server.as_json import as_json
from forkpoint.server.bodies import Json
from forkpoint.server.forks import family_picture
from forkpoint.server.page_rendering import HEADERS, PageRequest, PageRoute, redirect, render
from forkpoint.server.page_views import Node, Tree, state_view, timeline
from forkpoint.server.requests import RequestScope
from forkpoint.server.states import config_at, read_state
from forkpoint.server.threads import shown_interrupts

router = APIRouter(route_class=PageRoute, include_in_schema=False)
THREADS_ON_PAGE = 50
CHECKPOINTS_ON_PAGE = 50
_FORKS_SHOWN = 1000
_FAMILY_SHOWN = 1000
_SORTS = {
    "updated_at": "last activity",
    "created_at": "creation",
    "thread_id": "id",
    "status": "status",
}
NOTICES = {
    "forked": "This is the fork.",
    "running": "The run has begun.",
    "answered": "The answer was given.",
    "rolled-back": "The newest checkpoints were removed.",
    "deleted": "The thread was deleted.",
}
Text = Annotated[str, Query(max_length=10_000)]


class ThreadQuery(BaseModel):
    """What the form above the list of threads asks for."""

    text: str = ""
    metadata: str = ""
    status: Literal["", "idle", "busy", "interrupted", "error"] = ""
    tags: str = ""
    owner: str = ""
    since: str = ""
    until: str = ""
    sort: Literal["updated_at", "created_at", "thread_id", "status"] = "updated_at"
    order: Literal["desc", "asc"] = "desc"


@router.get("/")
async def root(http: HttpRequest) -> Response:
    """Lead to the list of threads."""
    return redirect(http, "")


@router.get("/pages/")
async def threads(
    request: PageRequest,
    asked: Annotated[ThreadQuery, Query()],
    cursor: Text = "",
    notice: Text = "",
) -> Response:
    """Show a page of the threads that match."""
    catalog = request.catalog
    filter = _filter(request, asked)
    page = await catalog.asearch(
        filter,
        sort_by=asked.sort,
        descending=asked.order == "desc",
        limit=THREADS_ON_PAGE,
        cursor=cursor or None,
    )
    named = await catalog.aget(asked.text) if asked.text and not cursor else None
    return render(
        request.http,
        "threads.html",
        threads=[named] * (named is not None) + [each for each in page if each != named],
        total=await catalog.acount(filter),
        next_cursor=page.next_cursor,
        damaged=len(page.damaged),
        asked=asked.model_dump(),
        is_filtered=any(asked.model_dump(exclude={"sort", "order"}).values()),
        is_first=not cursor,
        has_owners=request.owner is None,
        statuses=STATUSES,
        sorts=_SORTS,
        notice=NOTICES.get(notice),
    )


@router.get("/pages/thread")
async def thread(
    request: PageRequest,
    thread_id: Text,
    checkpoint_id: Text = "",
    messages: Literal["last", "all"] = "last",
    notice: Text = "",
) -> Response:
    """Show a thread: its newest state, or that of a checkpoint, and what can be done there."""
    shown = await request.thread(thread_id)
    state = await _state(request, thread_id, checkpoint_id)
    view = state_view(state["values"], all_messages=messages == "all")
    runs = request.server.runs.of_thread(request, thread_id)
    graph_name = request.graph_name(shown.metadata.get("graph_id"))
    return render(
        request.http,
        "thread.html",
        thread=shown,
        metadata=Tree().node("metadata", as_json(shown.metadata)),
        checkpoint_id=checkpoint_id,
        state=state,
        view=view,
        tasks=[_task(task) for task in state["tasks"]],
        questions=[] if checkpoint_id else _questions(shown, state["tasks"]),
        graph_name=graph_name,
        has_messages=_has_messages(request, graph_name),
        run=runs[0] if runs else None,
        notice=NOTICES.get(notice),
    )


@router.get("/pages/value")
async def value(
    request: PageRequest, thread_id: Text, channel: Text, checkpoint_id: Text = ""
) -> Response:
    """Show a channel of a state whole, as JSON."""
    values = (await _state(request, thread_id, checkpoint_id))["values"]
    if not isinstance(values, Mapping) or channel not in values:
        raise HTTPException(404, f"the state has no channel {channel!r}")
    text = json.dumps(values[channel], indent=2, ensure_ascii=False)
    return Response(text.encode("utf-8", "replace"), 200, HEADERS, "text/plain; charset=utf-8")


@router.get("/pages/status")
async def status(request: PageRequest, thread_id: Text) -> Response:
    """Say how a thread is doing, to the script of a page that waits for a run."""
    text = (await request.thread(thread_id)).status
    return Response(text, 200, HEADERS, "text/plain; charset=utf-8")


@router.get("/pages/history")
async def history(
    request: PageRequest,
    thread_id: Text,
    before: Text = "",
    index: Annotated[int | None, Query()] = None,
) -> Response:
    """Show a page of the checkpoints of a thread, newest first. No values are read.

    It begins with the newest; or with that before an id; or with that of an index, 0 the oldest.
    """
    shown = await request.thread(thread_id)
    config = config_at(thread_id, bodies.CheckpointPlace(checkpoint_ns=""))
    if index is not None:
        before = await _id_after(request, thread_id, index)
    place = bodies.CheckpointPlace(checkpoint_id=before)
    listed = request.catalog.saver.alist(
        config,
        before=config_at(thread_id, place) if before else None,
        limit=CHECKPOINTS_ON_PAGE + 1,
        values=False,
    )
    items = [item async for item in listed]
    forks = await request.catalog.asearch(
        ThreadFilter(source_thread_id=thread_id), limit=_FORKS_SHOWN
    )
    rows = timeline(items[:CHECKPOINTS_ON_PAGE], forks, is_newest=not before)
    return render(
        request.http,
        "history.html",
        thread=shown,
        rows=rows,
        older=rows[-1].checkpoint_id if len(items) > CHECKPOINTS_ON_PAGE else None,
        is_newest=not before,
        oldest_page=CHECKPOINTS_ON_PAGE - 1,
    )


@router.get("/pages/family")
async def family(request: PageRequest, thread_id: Text) -> Response:
    """Show the tree of forks and clones that a thread belongs to, and where it came from."""
    members = _with_depths((await request.catalog.saver.afamily(thread_id)).root)
    return render(
        request.http,
        "family.html",
        thread=await request.thread(thread_id),
        lineage=await request.catalog.saver.alineage(thread_id),
        members=members[:_FAMILY_SHOWN],
        left_out=len(members[_FAMILY_SHOWN:]),
    )


@router.get("/pages/family.svg")
async def picture(request: PageRequest, thread_id: Text) -> Response:
    """Draw the tree that a thread belongs to."""
    drawn = await family_picture(request, thread_id)
    for name, text in HEADERS.items():
        drawn.headers.setdefault(name, text)
    return drawn


@router.get("/pages/compare")
async def compare(
    request: PageRequest,
    a: Text,
    b: Text,
    a_checkpoint: Text = "",
    b_checkpoint: Text = "",
) -> Response:
    """Show two states side by side, and what differs between them, channel by channel."""
    first, second = await request.thread(a), await request.thread(b)
    states = [await _state(request, a, a_checkpoint), await _state(request, b, b_checkpoint)]
    difference = await request.catalog.saver.adiff(
        _source(a, a_checkpoint), _source(b, b_checkpoint)
    )
    values = [state["values"] for state in states]
    views = [state_view(values[0], other=values[1]), state_view(values[1], other=values[0])]
    return render(
        request.http,
        "compare.html",
        sides=list(zip(("first", "second"), (first, second), states, views, strict=True)),
        changes=[
            (name, _change(difference[name]))
            for name in difference
            if difference[name].status != "unchanged"
        ],
        unchanged=difference.of("unchanged"),
    )


@router.get("/pages/rollback")
async def ask_rollback(request: PageRequest, thread_id: Text, checkpoint_id: Text) -> Response:
    """Ask whether the checkpoints after one are to be removed."""
    return render(
        request.http,
        "rollback.html",
        thread=await request.thread(thread_id),
        checkpoint_id=checkpoint_id,
        steps=await checkpoints_after(request, thread_id, checkpoint_id),
    )


@router.get("/pages/delete")
async def ask_delete(request: PageRequest, thread_id: Text) -> Response:
    """Ask whether a thread is to be deleted."""
    thread: Thread | None = None
    try:
        thread = await request.thread(thread_id)
    except CorruptChunk:  # it can be deleted all the same
        await request.check_thread(thread_id)
    return render(request.http, "delete.html", thread_id=thread_id, thread=thread)


@router.get("/pages/login")
async def login(http: HttpRequest) -> Response:
    """Ask for an API key."""
    return render(http, "login.html", is_refused=False)


@router.get("/pages/{page:path}")
async def missing_page(page: str) -> Response:
    """Say that there is no such page. An address of a form that was sent is one of these."""
    raise HTTPException(404, f"there is no page {page!r}")


async def checkpoints_after(request: RequestScope, thread_id: str, checkpoint_id: str) -> int:
    """Return how many checkpoints of a thread's graph are newer than one.

    Raises:
        CheckpointNotFound: There is no such checkpoint.
    """
    config = config_at(thread_id, bodies.CheckpointPlace(checkpoint_ns=""))
    number = 0
    async for item in request.catalog.saver.alist(config, values=False):
        if item.checkpoint["id"] == checkpoint_id:
            return number
        number += 1
    raise CheckpointNotFound(f"thread {thread_id!r} has no checkpoint {checkpoint_id!r}")


async def _id_after(request: RequestScope, thread_id: str, index: int) -> str:
    """Return the id of the checkpoint after that of an index; none after the newest.

    Raises:
        CheckpointNotFound: There are not as many checkpoints.
    """
    saver = request.catalog.saver
    await saver.aat(thread_id, index)
    try:
        following = await saver.aat(thread_id, index + 1) if index != -1 else None
    except CheckpointNotFound:  # it is the newest
        following = None
    return str(following.checkpoint["id"]) if following else ""


async def _state(request: RequestScope, thread_id: str, checkpoint_id: str) -> Json:
    """Return a state of a thread.

    Raises:
        ThreadNotFound: There is no such thread.
        CheckpointNotFound: There is no such checkpoint.
    """
    place = bodies.CheckpointPlace(checkpoint_id=checkpoint_id or None)
    state = await read_state(request, thread_id, place, subgraphs=False)
    if checkpoint_id and state["created_at"] is None:
        raise CheckpointNotFound(f"thread {thread_id!r} has no checkpoint {checkpoint_id!r}")
    return state


def _source(thread_id: str, checkpoint_id: str) -> Any:
    if not checkpoint_id:
        return thread_id
    place = bodies.CheckpointPlace(checkpoint_id=checkpoint_id, checkpoint_ns="")
    return config_at(thread_id, place)


def _questions(thread: Thread, tasks: Iterable[Json]) -> list[tuple[str | None, Node]]:
    """Return what a thread waits for: the id of each interrupt, and what it asks."""
    tree = Tree()
    asked = chain.from_iterable(shown_interrupts(thread, tasks).values())
    return [(each["id"], tree.node("question", each["value"])) for each in asked]


def _task(task: Json) -> tuple[Json, Node, list[Node]]:
    """Return a task, what it returned, and what it asks."""
    tree = Tree()
    questions = [tree.node("question", pending.get("value")) for pending in task["interrupts"]]
    return task, tree.node("result", task["result"]), questions


def _has_messages(request: RequestScope, graph_name: str | None) -> bool:
    """Return whether a graph's input is a conversation."""
    return graph_name is not None and "messages" in request.server.graphs[graph_name].channels


def _change(channel: ChannelDiff) -> Mapping[str, Any]:
    """Return how a channel differs: what is shown of it, in the order in which it is shown."""
    tree = Tree()
    parts: dict[str, Any] = {"removed": channel.removed, "added": channel.added}
    if channel.changed:
        pairs = {key: {"before": old, "after": new} for key, (old, new) in channel.changed.items()}
        parts["changed"] = pairs
    if channel.before is not None or channel.after is not None:
        parts |= {"before": channel.before, "after": channel.after}
    if channel.status == "added":
        parts.pop("before", None)
    if channel.status == "removed":
        parts.pop("after", None)
    shown = [
        tree.node(name, as_json(part)) for name, part in parts.items() if part not in ((), {}, [])
    ]
    return {"status": channel.status, "is_rebuilt": channel.is_rebuilt, "parts": shown}


def _with_depths(root: FamilyNode) -> list[tuple[int, FamilyNode]]:
    """Return the threads of a family, each before its children, and how deep each is."""
    members: list[tuple[int, FamilyNode]] = []
    waiting = [(0, root)]
    while waiting:
        depth, node = waiting.pop()
        members.append((depth, node))
        waiting += [(depth + 1, child) for child in reversed(node.children)]
    return members


def _filter(request: RequestScope, asked: ThreadQuery) -> ThreadFilter:
    until = _day(asked.until, "until", timedelta(days=1))
    return ThreadFilter(
        label_contains=asked.text or None,
        metadata=_metadata(asked.metadata),
        status=asked.status or None,
        tags={tag.strip() for tag in asked.tags.split(",") if tag.strip()},
        owner=asked.owner or None if request.owner is None else None,
        updated_after=_day(asked.since, "since"),
        updated_before=until,
    )


def _metadata(text: str) -> Json:
    """Return metadata that are written as JSON, or as `key=value` with commas between.

    Raises:
        HTTPException: 422: They cannot be read.
    """
    text = text.strip()
    if not text.startswith("{"):
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        if not all(key.strip() and sign for key, sign, _ in pairs):
            raise HTTPException(422, "metadata: key=value, or a JSON object")
        return {key.strip(): _scalar(value.strip()) for key, _, value in pairs}
    try:
        given = json.loads(text)
    except ValueError as error:
        raise HTTPException(422, f"metadata: this is no JSON: {error}") from error
    return dict(given)


def _scalar(text: str) -> Any:
    try:
        given = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(given, dict | list) else given


def _day(text: str, name: str, later: timedelta = timedelta(0)) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc) + later
    except (ValueError, OverflowError) as error:
        raise HTTPException(422, f"{name}: a day as 2026-01-31") from error
