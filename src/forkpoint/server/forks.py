"""What the threads API does not have: forks, families, differences, undoing, retention."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from forkpoint.catalog.retention import RetentionPolicy
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.results import FamilyNode, LineageEntry, PurgeReport
from forkpoint.server import bodies
from forkpoint.server.as_json import as_json
from forkpoint.server.bodies import Json
from forkpoint.server.requests import Request, StrictRoute, ThreadId
from forkpoint.server.states import config_at
from forkpoint.server.threads import shown_thread

router = APIRouter(route_class=StrictRoute, prefix="/forkpoint", tags=["forkpoint"])


Days = Annotated[float, Field(gt=0, le=1e5)]


class NewFork(bodies.OwnBody):
    checkpoint_id: str | None = None
    checkpoint_ns: str | None = None
    new_thread_id: bodies.Identifier | None = None
    values: Json | None = None
    metadata: Json | None = None
    history: Literal["head", "path"] = "head"


class Steps(bodies.OwnBody):
    steps: Annotated[int, Field(ge=1), bodies.WHOLE] = 1


class Keep(bodies.OwnBody):
    keep: Annotated[int, Field(ge=1), bodies.WHOLE]


class Retention(bodies.OwnBody):
    """A policy of retention, in days. Nothing is removed by asking what it would remove."""

    max_age_days: Days | None = None
    max_idle_days: Days | None = None
    max_checkpoint_age_days: Days | None = None
    max_checkpoints_per_thread: Annotated[int, Field(ge=1), bodies.WHOLE] | None = None
    keep_tags: list[str] | None = None
    metadata: Json | None = None


@router.post("/threads/{thread_id}/fork", response_model=Json)
async def fork(request: Request, thread_id: ThreadId, body: NewFork) -> Json:
    """Make a thread of a checkpoint of another: the newest one, or one of its history."""
    source: Any = thread_id
    if body.checkpoint_id is not None:
        place = bodies.CheckpointPlace(
            checkpoint_id=body.checkpoint_id, checkpoint_ns=body.checkpoint_ns or ""
        )
        source = config_at(thread_id, place)
    config = await request.catalog.saver.afork(
        source,
        new_thread_id=body.new_thread_id,
        values=body.values,
        metadata=body.metadata,
        history=body.history,
    )
    made = await request.thread(config["configurable"]["thread_id"])
    return {"thread": await shown_thread(request, made), "configurable": config["configurable"]}


@router.get("/threads/{thread_id}/lineage", response_model=list[Json])
async def lineage(request: Request, thread_id: ThreadId) -> list[Json]:
    """Return where a thread came from: itself first, the root last."""
    entries = await request.catalog.saver.alineage(thread_id)
    return [shown_entry(entry) for entry in entries]


@router.get("/threads/{thread_id}/family", response_model=Json)
async def family(request: Request, thread_id: ThreadId) -> Json:
    """Return the tree of forks and clones that a thread belongs to."""
    tree = await request.catalog.saver.afamily(thread_id)
    return _shown_node(tree.root)


@router.get(
    "/threads/{thread_id}/family.svg",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}}},
)
async def family_picture(request: Request, thread_id: ThreadId) -> Response:
    """Return the tree that a thread belongs to as a picture."""
    tree = await request.catalog.saver.afamily(thread_id)
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(tree.svg(), media_type="image/svg+xml", headers=policy)


@router.get("/threads/{thread_id}/diff", response_model=Json)
async def diff(
    request: Request,
    thread_id: ThreadId,
    a: Annotated[str, Query(description="An id of a checkpoint of the thread.")],
    b: Annotated[str | None, Query(description="Another; by default the newest.")] = None,
    other: Annotated[str | None, Query(description="The thread of `b`, if it is another.")] = None,
) -> Json:
    """Return what differs between two checkpoints, channel by channel."""
    first = config_at(thread_id, bodies.CheckpointPlace(checkpoint_id=a, checkpoint_ns=""))
    second: Any = other or thread_id
    if b is not None:
        place = bodies.CheckpointPlace(checkpoint_id=b, checkpoint_ns="")
        second = config_at(other or thread_id, place)
    difference = await request.catalog.saver.adiff(first, second)
    return {channel: as_json(difference[channel]) for channel in difference}


@router.post("/threads/{thread_id}/rollback", response_model=Json)
async def rollback(request: Request, thread_id: ThreadId, body: Steps) -> Json:
    """Remove the newest checkpoints. The one before them becomes the head.

    Refused while a run is going on.
    """
    async with request.lease(thread_id):
        config = await request.catalog.saver.arollback(thread_id, body.steps)
    return {"configurable": config and config["configurable"]}


@router.post("/threads/{thread_id}/trim", response_model=Json)
async def trim(request: Request, thread_id: ThreadId, body: Keep) -> Json:
    """Remove all but the newest checkpoints of each namespace."""
    return _shown_report(await request.catalog.saver.atrim(thread_id, body.keep))


@router.post("/threads/{thread_id}/purge", response_model=Json)
async def purge(request: Request, thread_id: ThreadId) -> Json:
    """Remove the whole history of a thread, and its record."""
    await request.check_thread(thread_id)
    purge = request.catalog.saver.apurge
    return _shown_report(await request.server.runs.delete_thread(request, thread_id, purge))


@router.get("/threads/{thread_id}/stats", response_model=Json)
async def stats(request: Request, thread_id: ThreadId) -> Json:
    """Return what a thread takes."""
    shown: Json = as_json(await request.catalog.astats(thread_id))
    return shown


@router.post("/retention/dry-run", response_model=Json)
async def retention(request: Request, body: Retention) -> Json:
    """Return what a policy would remove."""
    policy = RetentionPolicy(
        max_age=_days(body.max_age_days),
        max_idle=_days(body.max_idle_days),
        max_checkpoint_age=_days(body.max_checkpoint_age_days),
        max_checkpoints_per_thread=body.max_checkpoints_per_thread,
        keep_tags=set(body.keep_tags or ()),
    )
    filter = ThreadFilter(metadata=body.metadata or {})
    result: Json = as_json(await request.catalog.aapply_retention(policy, filter, dry_run=True))
    return result


def shown_entry(entry: LineageEntry) -> Json:
    """Return a thread of a lineage."""
    shown: Json = as_json(entry)
    return shown


def _shown_node(node: FamilyNode) -> Json:
    """Return a tree. Families are as deep as people fork, so nothing recurs."""
    root: Json = {}
    waiting = [(node, root)]
    while waiting:
        member, shown = waiting.pop()
        children: list[Json] = [{} for _ in member.children]
        shown.update(
            entry=shown_entry(member.entry), is_current=member.is_current, children=children
        )
        waiting += zip(member.children, children, strict=True)
    return root


def _shown_report(report: PurgeReport) -> Json:
    shown: Json = as_json(report)
    return shown


def _days(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)
