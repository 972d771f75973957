"""Threads by HTTP: made, found, changed, copied, removed."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, HTTPException, Query, Response

from forkpoint.catalog.arguments import LARGEST_PAGE
from forkpoint.catalog.threads import Thread, ThreadFilter
from forkpoint.encoding.encryption import cipher_of
from forkpoint.errors import (
    CorruptChunk,
    ThreadDeleted,
    ThreadExists,
    ThreadNotFound,
    UnreadableValue,
)
from forkpoint.filters import contains
from forkpoint.previews import PREVIEW_CHARACTERS
from forkpoint.runtime.runner import completed
from forkpoint.saver import ForkpointSaver, parts_of
from forkpoint.server import bodies
from forkpoint.server.as_json import as_json
from forkpoint.server.bodies import Json
from forkpoint.server.failures import message_of
from forkpoint.server.requests import Request, StrictRoute, ThreadId
from forkpoint.server.states import read_stored, update_in_supersteps

router = APIRouter(route_class=StrictRoute, tags=["threads"])
_LOG = logging.getLogger("forkpoint.server")
_ROWS_AT_ONCE = 100
_UNREADABLE = (CorruptChunk, UnreadableValue)
"""What is raised where a state is damaged, or not for this process to read."""
_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"(values|metadata|config|interrupts)((?:\.[^.\[\]]+|\[-?\d{1,9}\])*)")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(-?\d+)\]")


@router.post("/threads", response_model=bodies.ThreadReply, response_model_exclude_unset=True)
async def create(request: Request, body: bodies.NewThread) -> Json:
    """Make a thread."""
    thread_id = body.thread_id or str(uuid4())
    catalog = request.catalog
    graph = None
    if body.supersteps:
        graph = request.graph_named((body.metadata or {}).get("graph_id"))
    options: Json = {"metadata": body.metadata, **_time_to_live(body.ttl)}
    try:
        thread = await catalog.acreate(thread_id, **options)
    except ThreadExists:
        if body.if_exists != "do_nothing":
            raise
        thread = await catalog.acreate(thread_id, if_exists="do_nothing", **options)
        graph = None  # it has states of its own
    if graph is not None and body.supersteps:
        async with request.lease(thread_id) as lease:  # a run that comes now waits, or is refused
            try:
                await update_in_supersteps(graph, lease, body.supersteps)
            except BaseException:
                await completed(catalog.adelete(thread_id))
                raise
        thread = await request.thread(thread_id)
    return await shown_thread(request, thread)


@router.post("/threads/search", response_model=list[Json])
async def search(request: Request, response: Response, body: bodies.ThreadSearch) -> list[Json]:
    """Return a page of the threads that match, newest first unless told otherwise."""
    extract = {alias: _extraction(alias, path) for alias, path in (body.extract or {}).items()}
    threads, has_more = await _page(request, body)
    total = body.offset + len(threads) + has_more
    response.headers["X-Pagination-Total"] = str(total)
    if has_more:
        response.headers["X-Pagination-Next"] = str(body.offset + len(threads))
    needs_values = not body.select or "values" in body.select
    needs_values |= any(root == "values" for root, _ in extract.values())
    rows = []
    for thread in threads:
        row = await shown_thread(request, thread, with_values=needs_values)
        chosen: Json = {name: row.get(name) for name in body.select} if body.select else row
        if extract:
            chosen["extracted"] = {
                alias: _at_path(row.get(root), steps) for alias, (root, steps) in extract.items()
            }
        rows.append(chosen)
    return rows


@router.post("/threads/count", response_model=int)
async def count(request: Request, body: bodies.ThreadCount) -> int:
    """Return how many threads match."""
    search = _ValueSearch(request, body)
    if not search.rest:
        return await request.catalog.acount(search.filter)
    return len([thread async for thread in search.threads()])


@router.post("/threads/prune", response_model=bodies.PruneReply)
async def prune(request: Request, body: bodies.ThreadPruning) -> Json:
    """Delete threads, or all but their newest checkpoints. Unknown ids are left out.

    A damaged thread keeps no other from that, and is named at the end.
    """
    pruned = 0
    damaged: list[CorruptChunk] = []
    for thread_id in dict.fromkeys(body.thread_ids):
        try:
            if body.strategy == "keep_latest":
                await request.catalog.saver.atrim(thread_id, 1)
            else:
                await delete(request, thread_id)
        except (ThreadNotFound, ThreadDeleted):
            continue
        except CorruptChunk as error:
            damaged.append(error)
            continue
        pruned += 1
    if damaged:
        raise damaged[0]
    return {"pruned_count": pruned}


@router.get(
    "/threads/{thread_id}", response_model=bodies.ThreadReply, response_model_exclude_unset=True
)
async def get(
    request: Request, thread_id: ThreadId, include: Annotated[str | None, Query()] = None
) -> Json:
    """Return a thread, with its state. `include=ttl` adds when it expires."""
    thread = await request.thread(thread_id)
    shown = await shown_thread(request, thread)
    if "ttl" in (include or "").split(",") and thread.expires_at is not None:
        last = thread.updated_at
        shown["ttl"] = {
            "strategy": thread.on_expiry,
            "ttl_minutes": (thread.expires_at - last).total_seconds() / 60,
            "expires_at": thread.expires_at.isoformat(),
        }
    return shown


@router.patch(
    "/threads/{thread_id}",
    response_model=bodies.ThreadReply,
    response_model_exclude_unset=True,
    responses={204: {"description": "Done; asked for with `Prefer: return=minimal`"}},
)
async def update(
    request: Request,
    thread_id: ThreadId,
    body: bodies.ThreadChange,
    prefer: Annotated[str | None, Header()] = None,
) -> Any:
    """Merge metadata into those of a thread, and set its time to live."""
    thread = await request.catalog.aupdate(
        thread_id, metadata=body.metadata or {}, **_time_to_live(body.ttl)
    )
    if prefer is not None and "return=minimal" in prefer:
        return Response(status_code=204)
    return await shown_thread(request, thread)


@router.delete("/threads/{thread_id}", status_code=204, response_class=Response)
async def delete(request: Request, thread_id: ThreadId) -> None:
    """Delete a thread with all its checkpoints."""
    await request.check_thread(thread_id)
    await request.server.runs.delete_thread(request, thread_id, request.catalog.adelete)


@router.post(
    "/threads/{thread_id}/copy",
    response_model=bodies.ThreadReply,
    response_model_exclude_unset=True,
)
async def copy(request: Request, thread_id: ThreadId) -> Json:
    """Make a thread like another, with its checkpoints. No content is copied.

    There being no thread to copy is a conflict, as on the Platform.
    """
    try:
        clone = await request.catalog.aclone(thread_id, str(uuid4()))
    except (ThreadNotFound, ThreadDeleted) as error:
        raise HTTPException(409, str(error)) from error
    return await shown_thread(request, clone)


async def shown_thread(request: Request, thread: Thread, *, with_values: bool = True) -> Json:
    """Return a thread as clients expect it."""
    stored: Json | None = None
    unread: Exception | None = None
    if with_values and thread.checkpoint_count:
        try:
            stored = await read_stored(request.catalog.saver, thread.thread_id)
        except _UNREADABLE as error:  # it keeps no other thread from being shown
            unread = error
    reply: Json = {
        "thread_id": as_json(thread.thread_id),
        "created_at": thread.created_at.isoformat(),
        "updated_at": thread.updated_at.isoformat(),
        "state_updated_at": _iso(thread.state_updated_at or thread.created_at),
        "metadata": as_json(thread.metadata),
        "config": {},
        "status": thread.status,
        "values": stored and stored["values"],
        "interrupts": shown_interrupts(thread, stored["tasks"] if stored else ()),
    }
    if unread is not None:
        reply["error"] = {"error": type(unread).__name__, "message": message_of(unread)}
    elif thread.error is not None:
        kind = re.match(r"\w+(?=\()", thread.error)
        reply["error"] = {"error": kind[0] if kind else "Error", "message": as_json(thread.error)}
    return reply


def shown_interrupts(thread: Thread, tasks: Iterable[Json]) -> dict[str, list[Json]]:
    """Return what a thread waits for, by task.

    Args:
        thread: The thread.
        tasks: Those of its state, if that was read: its record has nothing of what is long.
    """
    whole = {task["id"]: task["interrupts"] for task in tasks}
    interrupts: dict[str, list[Json]] = {}
    for pending in thread.interrupts:
        shown = [{"id": pending.id, "value": as_json(pending.value)}]
        if pending.id is None and pending.value is None:
            stored = whole.get(pending.task_id, ())
            shown = [{**shown[0], **each} for each in stored if isinstance(each, dict)] or shown
        interrupts.setdefault(pending.task_id, []).extend(shown)
    return interrupts


def _iso(time: datetime) -> str:
    return time.isoformat()


def _time_to_live(ttl: bodies.TimeToLive | float | None) -> Json:
    if ttl is None:
        return {}
    if isinstance(ttl, bodies.TimeToLive):
        return {"ttl": ttl.duration, "on_expiry": ttl.strategy}
    return {"ttl": timedelta(minutes=ttl)}


async def _page(request: Request, body: bodies.ThreadSearch) -> tuple[Sequence[Thread], bool]:
    """Return a page of threads, and whether there are more after it."""
    search = _ValueSearch(request, body)
    if search.rest:
        return await _page_with_values(search, body)
    limit = min(body.limit + 1, LARGEST_PAGE)
    found = await request.catalog.asearch(
        search.filter, limit=limit, offset=body.offset, **search.order
    )
    threads = list(found)
    has_more = len(threads) > body.limit
    if not has_more and len(threads) == LARGEST_PAGE:
        more = await request.catalog.asearch(
            search.filter, limit=1, offset=body.offset + limit, **search.order
        )
        has_more = bool(more.items)
    return threads[: body.limit], has_more


async def _page_with_values(
    search: _ValueSearch, body: bodies.ThreadSearch
) -> tuple[Sequence[Thread], bool]:
    threads: list[Thread] = []
    passed = 0
    async for thread in search.threads():
        passed += 1
        if passed > body.offset:
            if len(threads) == body.limit:
                return threads, True
            threads.append(thread)
    return threads, False


def _indexed_part(saver: ForkpointSaver, values: Json) -> Json:
    """Return the part of a filter on values that the catalog's index answers.

    These are short scalars of the channels that the saver keeps a preview of. Other values the
    preview may not have whole.
    """
    if cipher_of(saver.serde) is not None:
        return {}  # nothing of a preview is in the index
    channels = parts_of(saver).context.preview
    return {
        name: value
        for name, value in values.items()
        if name in channels
        and not isinstance(value, list | dict)
        and not (isinstance(value, str) and len(value) >= PREVIEW_CHARACTERS)
    }


class _ValueSearch:
    """What a search asks of the catalog, and what only the states of threads tell.

    Attributes:
        filter: What the catalog finds by its index.
        rest: The values that are compared with the state of each thread that the catalog finds.
        order: How the catalog sorts the threads.
    """

    def __init__(self, request: Request, body: bodies.ThreadCount) -> None:
        values = body.values or {}
        indexed = _indexed_part(request.catalog.saver, values)
        self.rest = {name: value for name, value in values.items() if name not in indexed}
        ids = body.ids if isinstance(body, bodies.ThreadSearch) else None
        self.filter = ThreadFilter(
            ids=ids, metadata=body.metadata or {}, status=body.status, values=indexed
        )
        self.order: Json = {}
        if isinstance(body, bodies.ThreadSearch):
            is_descending = body.sort_order != "asc"
            self.order = {"sort_by": body.sort_by or "updated_at", "descending": is_descending}
        self._catalog = request.catalog

    async def threads(self) -> AsyncIterator[Thread]:
        """Read the states of the threads that the catalog finds, and return those that match."""
        cursor: str | None = None
        while True:
            page = await self._catalog.asearch(
                self.filter, limit=_ROWS_AT_ONCE, cursor=cursor, **self.order
            )
            for thread in page:
                try:
                    stored = await read_stored(self._catalog.saver, thread.thread_id)
                except _UNREADABLE as error:
                    _LOG.warning("a thread is left out of a search by values: %s", error)
                    continue
                if contains(stored and stored["values"], self.rest):
                    yield thread
            cursor = page.next_cursor
            if cursor is None:
                return


def _extraction(alias: str, path: str) -> tuple[str, list[str | int]]:
    """Return the field that a path begins at, and the keys and indices that lead on.

    Raises:
        HTTPException: 422: The alias or the path is not of the right form.
    """
    if not _ALIAS.fullmatch(alias) or alias in bodies.ThreadReply.model_fields:
        raise HTTPException(422, f"extract: {alias!r} is no name of its own")
    parsed = _PATH.fullmatch(path)
    if parsed is None:
        raise HTTPException(422, f"extract: {path!r} is no path like values.key[-1].key")
    steps = [key or int(index) for key, index in _STEP.findall(parsed[2])]
    return parsed[1], steps


def _at_path(value: Any, steps: Sequence[str | int]) -> Any:
    for step in steps:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, Mapping) else None
        elif isinstance(value, list) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value
