"""States of threads by HTTP: by the graph where one is served, else as they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.types import Command, Send, StateSnapshot
from langgraph.types import StateUpdate as Update

from forkpoint.catalog.leases import Lease
from forkpoint.errors import CheckpointNotFound, ForkpointError
from forkpoint.langgraph_rules import ERROR, INTERRUPT, is_internal
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import bodies
from forkpoint.server.as_json import as_json
from forkpoint.server.bodies import Json
from forkpoint.server.failures import message_of
from forkpoint.server.requests import LISTED, Graph, InPath, Request, StrictRoute, ThreadId
from forkpoint.server.thread_streams import as_text

router = APIRouter(route_class=StrictRoute, tags=["states"])
Subgraphs = Annotated[bool, Query()]
Select = Annotated[list[str] | None, LISTED, Query()]
_CONFIG_KEYS = ("thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint_map")


@router.get("/threads/{thread_id}/state", response_model=bodies.StateReply | Json)
async def get_state(
    request: Request, thread_id: ThreadId, subgraphs: Subgraphs = False, select: Select = None
) -> Json:
    """Return the newest state of a thread."""
    state = await read_state(request, thread_id, bodies.CheckpointPlace(), subgraphs)
    return _selected(state, select)


@router.get("/threads/{thread_id}/state/{checkpoint_id}", response_model=bodies.StateReply | Json)
async def get_state_at(
    request: Request,
    thread_id: ThreadId,
    checkpoint_id: InPath,
    subgraphs: Subgraphs = False,
    select: Select = None,
) -> Json:
    """Return the state of a thread at a checkpoint."""
    place = bodies.CheckpointPlace(checkpoint_id=checkpoint_id)
    return _selected(await read_state(request, thread_id, place, subgraphs), select)


@router.post("/threads/{thread_id}/state/checkpoint", response_model=bodies.StateReply | Json)
async def get_state_of(request: Request, thread_id: ThreadId, body: bodies.StateRequest) -> Json:
    """Return the state of a thread, or of a subgraph, at a checkpoint."""
    state = await read_state(request, thread_id, body.checkpoint, body.subgraphs)
    return _selected(state, body.select)


@router.post("/threads/{thread_id}/state", response_model=Json)
async def update_state(request: Request, thread_id: ThreadId, body: bodies.StateUpdate) -> Json:
    """Write a state as a node of the graph would. Refused while a run is going on."""
    graph = await graph_of(request, thread_id)
    if graph is None:
        raise HTTPException(400, "a state is updated by its graph, and none is served for it")
    place = (body.checkpoint or bodies.CheckpointPlace()).at(body.checkpoint_id)
    async with request.lease(thread_id) as lease:
        await check_checkpoint(request.catalog.saver, thread_id, place)
        config = config_at(thread_id, place, lease.config["configurable"])
        with _refusals():
            written = await graph.aupdate_state(config, body.values, body.as_node)
    checkpoint = _place_of(written)
    streams = request.server.runs.streams_of(request, thread_id)
    if streams.followers:
        with suppress(ForkpointError, HTTPException):  # it is written, whoever can be shown it
            state = await read_state(request, thread_id, bodies.CheckpointPlace(), subgraphs=False)
            shown = as_text({"state": state, "thread_id": thread_id})
            streams.publish("state_update", shown)
    return {
        "checkpoint": checkpoint,
        "configurable": checkpoint,
        "checkpoint_id": checkpoint and checkpoint["checkpoint_id"],
    }


@router.post("/threads/{thread_id}/history", response_model=list[bodies.StateReply | Json])
async def history(request: Request, thread_id: ThreadId, body: bodies.HistoryRequest) -> list[Json]:
    """Return states of a thread, newest first."""
    return await _history(request, thread_id, body)


@router.get("/threads/{thread_id}/history", response_model=list[bodies.StateReply | Json])
async def get_history(
    request: Request,
    thread_id: ThreadId,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1,
    before: Annotated[str | None, Query()] = None,
    select: Select = None,
) -> list[Json]:
    """Return states of a thread, newest first."""
    body = bodies.HistoryRequest(limit=limit, before=before, select=select)
    return await _history(request, thread_id, body)


async def graph_of(request: Request, thread_id: str) -> Graph | None:
    """Return the graph of a thread: that which its metadata name, or the only one.

    Raises:
        ThreadNotFound: There is no such thread.
    """
    thread = await request.thread(thread_id)
    return request.find_graph(thread.metadata.get("graph_id"))


async def check_checkpoint(
    saver: ForkpointSaver, thread_id: str, place: bodies.CheckpointPlace
) -> None:
    """Check that there is the checkpoint that a place names: without it a graph begins anew.

    Raises:
        CheckpointNotFound: There is none.
    """
    if not place.checkpoint_id or place.checkpoint_ns:  # of a subgraph, that knows its own
        return
    stored = await saver.aget_tuple(config_at(thread_id, place, {"checkpoint_ns": ""}))
    if stored is None:
        raise CheckpointNotFound(f"thread {thread_id!r} has no checkpoint {place.checkpoint_id!r}")


async def read_stored(saver: ForkpointSaver, thread_id: str) -> Json | None:
    """Return the newest state of a thread as it is stored, or None before there is one."""
    stored = await saver.aget_tuple(config_at(thread_id, bodies.CheckpointPlace()))
    return None if stored is None else shown_stored(stored)


async def update_in_supersteps(
    graph: Graph, lease: Lease, supersteps: Iterable[bodies.Superstep]
) -> None:
    """Write the states that some supersteps of a graph would have made."""
    updates: Any = [
        [
            Update(command_of(one.command) if one.command else one.values, one.as_node)  # type: ignore[arg-type]
            for one in step.updates
        ]
        for step in supersteps
    ]
    place = bodies.CheckpointPlace()
    config = config_at(lease.thread_id, place, lease.config["configurable"])
    with _refusals():
        await graph.abulk_update_state(config, updates)


@contextmanager
def _refusals() -> Iterator[None]:
    """Answer 400 where a graph refuses an update: itself, or a reducer of its author.

    Raises:
        HTTPException: 400: It does.
    """
    try:
        yield
    except ForkpointError:
        raise
    except Exception as error:  # reducers raise anything
        raise HTTPException(400, f"{type(error).__name__}: {message_of(error)}") from error


def command_of(command: bodies.Command) -> Command[Any]:
    """Return a command as LangGraph has it."""
    goto = command.goto if isinstance(command.goto, list) else [command.goto]
    steps = [
        Send(step["node"], step.get("input")) if isinstance(step, dict) and "node" in step else step
        for step in goto
        if step is not None
    ]
    if not all(isinstance(step, str | Send) for step in steps):
        raise HTTPException(422, "command.goto: names of nodes, or {node, input}")
    update = command.update
    if isinstance(update, list) and all(_is_pair(part) for part in update):
        update = [(name, value) for name, value in update]
    return Command(resume=command.resume, update=update, goto=steps)


def _is_pair(part: Any) -> bool:
    """Return whether a part of an update is a channel and what is written to it."""
    return isinstance(part, list) and len(part) == 2 and isinstance(part[0], str)


def config_at(
    thread_id: str, place: bodies.CheckpointPlace, configurable: Mapping[str, Any] | None = None
) -> Any:
    """Return the config of a checkpoint of a thread, whatever thread the place names."""
    keys = {
        "checkpoint_ns": place.checkpoint_ns,
        "checkpoint_id": place.checkpoint_id,
        "checkpoint_map": place.checkpoint_map,
    }
    given = {name: value for name, value in keys.items() if value is not None}
    return {"configurable": {**(configurable or {}), **given, "thread_id": thread_id}}


async def read_state(
    request: Request, thread_id: str, place: bodies.CheckpointPlace, subgraphs: bool
) -> Json:
    """Return the state of a checkpoint as clients expect it: by the graph, where one is served.

    Raises:
        ThreadNotFound: There is no such thread.
        HTTPException: 404: The graph has no such subgraph.
    """
    graph = await graph_of(request, thread_id)
    config = config_at(thread_id, place)
    if graph is not None:
        with _known_subgraph():
            return shown_snapshot(await graph.aget_state(config, subgraphs=subgraphs))
    stored = await request.catalog.saver.aget_tuple(
        {"configurable": {"checkpoint_ns": "", **config["configurable"]}}
    )
    if stored is None:
        return _shown({}, _place_of(config) if place.checkpoint_id else None)
    return shown_stored(stored)


@contextmanager
def _known_subgraph() -> Iterator[None]:
    """Answer 404 where a graph says that it does not have a subgraph, as old ones do.

    Raises:
        HTTPException: 404: It does.
    """
    try:
        yield
    except ForkpointError:
        raise
    except ValueError as error:
        raise HTTPException(404, message_of(error)) from error


async def _history(request: Request, thread_id: str, body: bodies.HistoryRequest) -> list[Json]:
    graph = await graph_of(request, thread_id)
    place = body.checkpoint or bodies.CheckpointPlace()
    config = config_at(thread_id, place)
    options: Json = {"filter": body.metadata or None, "before": body.before, "limit": body.limit}
    if graph is not None:
        with _known_subgraph():
            states = [state async for state in graph.aget_state_history(config, **options)]
        return [_selected(shown_snapshot(state), body.select) for state in states]
    config["configurable"].setdefault("checkpoint_ns", "")
    tuples = request.catalog.saver.alist(config, **options)
    return [_selected(shown_stored(stored), body.select) async for stored in tuples]


def _selected(state: Json, select: Sequence[str] | None) -> Json:
    """Return the fields of a state that are asked for; `values.<name>` is one channel.

    Raises:
        HTTPException: 422: There is no such field.
    """
    if not select:
        return state
    chosen: Json = {}
    for name in select:
        field, _, channel = name.partition(".")
        if field not in bodies.StateReply.model_fields or (channel and field != "values"):
            raise HTTPException(422, f"select: a state has no field {name!r}")
        if not channel:
            chosen[field] = state[field]
        elif isinstance(state["values"], dict) and channel in state["values"]:
            chosen.setdefault("values", {})[channel] = state["values"][channel]
    return chosen


def shown_snapshot(snapshot: StateSnapshot) -> Json:
    """Return a state that a graph has read as clients expect it."""
    return {
        **_shown(
            as_json(snapshot.values),
            _place_of(snapshot.config) if snapshot.created_at else _asked(snapshot.config),
            metadata=as_json(snapshot.metadata),
            created_at=None if snapshot.created_at is None else str(snapshot.created_at),
            parent=_place_of(snapshot.parent_config),
        ),
        "next": list(snapshot.next),
        "tasks": [_shown_task(task) for task in snapshot.tasks],
        "interrupts": as_json(list(snapshot.interrupts)),
    }


def _shown_task(task: Any) -> Json:
    state = task.state
    nested = shown_snapshot(state) if isinstance(state, StateSnapshot) else None
    checkpoint = None
    if isinstance(state, Mapping):
        checkpoint = _place_of(state)
    return {
        "id": task.id,
        "name": task.name,
        "path": as_json(list(task.path)),
        "error": None if task.error is None else as_json(task.error),
        "interrupts": as_json(list(task.interrupts)),
        "checkpoint": checkpoint,
        "state": nested,
        "result": as_json(task.result),
    }


def shown_stored(stored: CheckpointTuple) -> Json:
    """Return a state as it is stored. What runs next only the graph knows."""
    interrupts: list[Any] = []
    tasks: dict[str, Json] = {}
    for task_id, channel, value in stored.pending_writes or []:
        if channel not in (INTERRUPT, ERROR):
            continue
        task = tasks.setdefault(task_id, _unnamed_task(task_id))
        if channel == ERROR:
            task["error"] = as_json(value)
        else:
            values = value if isinstance(value, list | tuple) else [value]
            task["interrupts"] = as_json(list(values))
            interrupts += task["interrupts"]
    return {
        **_shown(
            _values_of(stored),
            _place_of(stored.config),
            metadata=as_json(dict(stored.metadata)),
            created_at=str(stored.checkpoint.get("ts", "")),
            parent=_place_of(stored.parent_config),
        ),
        "tasks": list(tasks.values()),
        "interrupts": interrupts,
    }


def _unnamed_task(task_id: str) -> Json:
    return {
        "id": task_id,
        "name": "",
        "path": [],
        "error": None,
        "interrupts": [],
        "checkpoint": None,
        "state": None,
        "result": None,
    }


def _shown(
    values: Any,
    checkpoint: Json | None,
    *,
    metadata: Any = None,
    created_at: str | None = None,
    parent: Json | None = None,
) -> Json:
    nothing: Sequence[Any] = []
    return {
        "values": values,
        "next": nothing,
        "tasks": nothing,
        "metadata": metadata,
        "created_at": created_at,
        "checkpoint": checkpoint,
        "parent_checkpoint": parent,
        "interrupts": nothing,
        "checkpoint_id": checkpoint and checkpoint.get("checkpoint_id"),
        "parent_checkpoint_id": parent and parent.get("checkpoint_id"),
    }


def _place_of(config: Mapping[str, Any] | None) -> Json | None:
    if config is None:
        return None
    configurable = config.get("configurable", {})
    place = {name: configurable.get(name) for name in _CONFIG_KEYS if name in configurable}
    return {"checkpoint_ns": "", "checkpoint_id": None, **place}


def _asked(config: Mapping[str, Any]) -> Json | None:
    """Return the place of a checkpoint that is not there, if it was asked for by its id."""
    place = _place_of(config)
    return place if place and place["checkpoint_id"] else None


def _values_of(stored: CheckpointTuple) -> Json:
    values = stored.checkpoint["channel_values"]
    return {
        name: as_json(value)
        for name, value in values.items()
        if not (name.startswith("__") or is_internal(name))
    }
