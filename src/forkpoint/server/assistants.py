"""The graphs that are served, as assistants: clients ask for them before anything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID, uuid5

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import Field, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from typing_extensions import TypedDict

from forkpoint.filters import contains
from forkpoint.server.as_json import as_json
from forkpoint.server.bodies import WHOLE, Body, Json
from forkpoint.server.requests import Graph, InPath, Request, Server, StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["assistants"])
_NAMESPACE = UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")
"""That of LangGraph Platform: an assistant's id is the same here and there."""
_NO_SCHEMA = (PydanticUserError, PydanticSchemaGenerationError, ValueError, NameError)
"""What Pydantic raises where a type has no schema, and LangGraph where a context has none."""


class Assistant(NamedTuple):
    """A graph that is served."""

    assistant_id: str
    graph_id: str


AssistantField = Literal[
    "assistant_id",
    "graph_id",
    "name",
    "description",
    "config",
    "context",
    "metadata",
    "version",
    "created_at",
    "updated_at",
]


class AssistantCount(Body):
    graph_id: str | None = None
    name: str | None = None
    """A part of it, in small letters or capitals."""
    metadata: Json | None = None


class AssistantSearch(AssistantCount):
    limit: Annotated[int, Field(ge=1, le=1000), WHOLE] = 10
    offset: Annotated[int, Field(ge=0), WHOLE] = 0
    sort_by: Literal["assistant_id", "graph_id", "name", "created_at", "updated_at"] | None = None
    sort_order: Literal["asc", "desc"] | None = None
    select: list[AssistantField] | None = None


def assistants_of(server: Server) -> list[Assistant]:
    """Return an assistant for each graph."""
    return [Assistant(str(uuid5(_NAMESPACE, name)), name) for name in server.graphs]


def find_assistant(server: Server, name: str) -> Assistant | None:
    """Return the assistant of an id, or of a graph's name."""
    return next((one for one in assistants_of(server) if name in one), None)


@router.post("/assistants/search", response_model=list[Json])
async def search(request: Request, response: Response, body: AssistantSearch) -> list[Json]:
    """Return a page of the assistants that match, in the order of the graphs unless told otherwise.

    All were made at one time.
    """
    matching = _matching(request.server, body)
    if body.sort_by is not None:
        matching.sort(key=itemgetter(body.sort_by), reverse=body.sort_order == "desc")
    page = matching[body.offset :][: body.limit]
    end = body.offset + len(page)
    response.headers["X-Pagination-Total"] = str(len(matching))
    if end < len(matching):
        response.headers["X-Pagination-Next"] = str(end)
    return [{name: one[name] for name in body.select} for one in page] if body.select else page


@router.post("/assistants/count", response_model=int)
async def count(request: Request, body: AssistantCount) -> int:
    """Return how many assistants match."""
    return len(_matching(request.server, body))


@router.get("/assistants/{assistant_id}", response_model=Json)
async def get(request: Request, assistant_id: InPath) -> Json:
    """Return an assistant."""
    return _shown(request.server, _known(request.server, assistant_id))


@router.get("/assistants/{assistant_id}/graph", response_model=Json)
async def graph(
    request: Request, assistant_id: InPath, xray: Annotated[str, Query()] = "false"
) -> Json:
    """Return the nodes and edges of an assistant's graph."""
    served = request.server.graphs[_known(request.server, assistant_id).graph_id]
    depth = int(xray) if re.fullmatch("[0-9]{1,9}", xray) else xray == "true"
    drawn: Json = (await served.aget_graph(xray=depth)).to_json()
    return drawn


@router.get("/assistants/{assistant_id}/schemas", response_model=Json)
async def schemas(request: Request, assistant_id: InPath) -> Json:
    """Return the schemas of what a graph takes, keeps and returns."""
    assistant = _known(request.server, assistant_id)
    served: Any = request.server.graphs[assistant.graph_id]
    context = schema_of(served.get_context_jsonschema)
    return {
        "graph_id": assistant.graph_id,
        "input_schema": schema_of(served.get_input_jsonschema),
        "output_schema": schema_of(served.get_output_jsonschema),
        "state_schema": schema_of(partial(_state_schema, served)),
        "config_schema": context or {},
        "context_schema": context,
    }


def _state_schema(served: Graph) -> Json:
    """Return the schema of all channels of a graph, each with what it takes."""
    channels = served.stream_channels_list
    fields = {name: _kind(served.channels[name].UpdateType) for name in channels}
    state: Any = TypedDict(served.get_name("State"), fields, total=False)  # type: ignore[misc]
    schema: Json = TypeAdapter(state).json_schema()
    return schema


def _kind(kind: Any) -> Any:
    """Return a type that has a schema: that of anything, if it has none itself."""
    try:
        TypeAdapter(kind).json_schema()
    except _NO_SCHEMA:
        return Any
    return kind


def schema_of(make: Callable[[], Json | None]) -> Json | None:
    """Return a schema, or None where there is none for the type, as the Platform does."""
    try:
        schema: Json | None = as_json(make())
    except _NO_SCHEMA:
        return None
    return schema


def _matching(server: Server, body: AssistantCount) -> list[Json]:
    part = (body.name or "").lower()
    return [
        shown
        for shown in (_shown(server, one) for one in assistants_of(server))
        if body.graph_id in (None, shown["graph_id"])
        and part in shown["name"].lower()
        and contains(shown["metadata"], body.metadata or {})
    ]


def _known(server: Server, name: str) -> Assistant:
    assistant = find_assistant(server, name)
    if assistant is None:
        raise HTTPException(404, f"there is no assistant {name!r}")
    return assistant


def _shown(server: Server, assistant: Assistant) -> Json:
    return {
        "assistant_id": assistant.assistant_id,
        "graph_id": assistant.graph_id,
        "name": assistant.graph_id,
        "description": None,
        "config": {},
        "context": {},
        "metadata": {"created_by": "system"},
        "version": 1,
        "created_at": server.started_at,
        "updated_at": server.started_at,
    }
