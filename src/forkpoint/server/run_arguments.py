"""What a graph is called with for a run: its input, its config and its context."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from inspect import isclass, signature
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from forkpoint.langgraph_rules import STRICT_RESUME
from forkpoint.server import bodies
from forkpoint.server.assistants import Assistant, schema_of
from forkpoint.server.bodies import Json
from forkpoint.server.requests import Graph
from forkpoint.server.states import command_of, config_at


def input_of(body: bodies.NewRun) -> Any:
    """Return what a graph goes on with."""
    return body.input if body.command is None else command_of(body.command)


def options_of(graph: Graph, body: bodies.NewRun) -> Json:
    """Return how a graph runs."""
    return {
        "context": _context_of(graph, body),
        "interrupt_before": body.interrupt_before,
        "interrupt_after": body.interrupt_after,
        "durability": body.asked_durability,
    }


def config_of(
    run_id: str, assistant: Assistant, body: bodies.NewRun, lease: Mapping[str, Any]
) -> Any:
    """Return the config of a run, which tells its nodes what LangGraph's server tells them, too.

    Args:
        run_id: The id of the run.
        assistant: Of which graph it is.
        body: What the client asks for.
        lease: The `configurable` of the lease that it has.
    """
    given = body.config or bodies.RunConfig()
    named = {
        "graph_id": assistant.graph_id,
        "assistant_id": assistant.assistant_id,
        "run_id": run_id,
    }
    strict = {STRICT_RESUME: True} if body.strict_resume else {}
    configurable = {**_given(body), **named, **strict, **lease}
    return {
        **config_at(lease["thread_id"], body.place, configurable),
        **given.model_dump(include={"recursion_limit", "tags"}, exclude_none=True),
        "metadata": {**(given.metadata or {}), **(body.metadata or {}), **named},
        "run_id": UUID(run_id),  # of what is traced, which clients give feedback on
    }


def _context_of(graph: Graph, body: bodies.NewRun) -> Json | None:
    """Return the context of a run, as LangGraph's server has it.

    Without one in the request it is what the config says, as older clients send it, and if that
    says nothing, the defaults. What the graph's context does not have is left out.
    """
    kind = getattr(graph, "context_schema", None)
    context = body.context or _given(body)
    if kind is not None and (known := _names_in(kind, graph)) is not None:
        context = {name: value for name, value in context.items() if name in known}
    return context if context or _has_defaults(kind) else None


def _names_in(kind: Any, graph: Graph) -> Collection[str] | None:
    """Return the names of what a context of this kind has, or None if it takes any."""
    if isclass(kind) and is_dataclass(kind):  # whatever its types are: of some there is no schema
        return signature(kind).parameters
    schema = schema_of(graph.get_context_jsonschema) or {}
    names: Collection[str] | None = schema.get("properties")
    return names


def _has_defaults(kind: Any) -> bool:
    """Return whether a context of this kind can be made of nothing."""
    if not isclass(kind) or not (is_dataclass(kind) or issubclass(kind, BaseModel)):
        return False  # it is a mapping
    try:
        signature(kind).bind()
    except TypeError:
        return False
    return True


def _given(body: bodies.NewRun) -> Json:
    configurable = body.config.configurable if body.config is not None else None
    return {} if configurable is None else configurable.given
