"""Graphs with subgraphs that keep their state from one call to the next."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langgraph.channels.delta import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import END, START
from langgraph.types import interrupt

from graphs import Shape, StateGraph, Sums, append_all, noted


class Kept(TypedDict, total=False):
    answers: Annotated[list[Any], operator.add]
    log: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=3)]
    given: str


class Mixed(Sums, total=False):
    given: str


def asking(name: str) -> Any:
    """A subgraph that asks a question, and knows all answers that it was ever given."""
    builder = StateGraph(Kept)
    builder.add_node("before", lambda state: {"log": [f"{state['given']} {len(state['log'])}"]})
    builder.add_node(
        "ask", lambda state: {"answers": [interrupt(f"{name} {len(state['answers'])}")]}
    )
    builder.add_edge(START, "before")
    builder.add_edge("before", "ask")
    return builder.compile(checkpointer=True)


def counting() -> Any:
    """A subgraph that does not ask, and counts its calls."""
    builder = StateGraph(Kept)
    builder.add_node("count", lambda state: {"log": [len(state["log"])]})
    builder.add_edge(START, "count")
    return builder.compile(checkpointer=True)


def call(subgraph: Any, name: str) -> list[Any]:
    done = subgraph.invoke({"given": name})
    return [done["answers"], done["log"]]


def in_a_node(saver: Any) -> Any:
    subgraph = asking("inner")
    builder = StateGraph(Sums)
    builder.add_node("call", lambda state: {"items": call(subgraph, str(len(state["items"])))})
    builder.add_node("last", lambda state: {"total": len(state["items"])})
    builder.add_edge(START, "call")
    builder.add_edge("call", "last")
    return builder.compile(checkpointer=saver)


def in_a_loop(saver: Any) -> Any:
    """Called three times in a run, each time by another task."""
    subgraph = asking("inner")

    def again(state: Sums) -> dict[str, Any]:
        total = state.get("total", 0) + 1
        return {"items": call(subgraph, str(total)), "total": total}

    builder = StateGraph(Sums)
    builder.add_node("again", again)
    builder.add_edge(START, "again")
    builder.add_conditional_edges("again", lambda state: "again" if state["total"] % 3 else END)
    return builder.compile(checkpointer=saver)


def thrice_in_a_node(saver: Any) -> Any:
    """Two subgraphs, the first called twice, and a question of the node's own."""
    counted, asked = counting(), asking("inner")

    def thrice(state: Sums) -> dict[str, Any]:
        counts = [counted.invoke({"log": [name]})["log"] for name in ("first", "second")]
        answers = call(asked, str(len(state["items"])))
        return {"items": [*counts, answers], "answers": [interrupt("after")]}

    builder = StateGraph(Sums)
    builder.add_node("thrice", thrice)
    builder.add_edge(START, "thrice")
    return builder.compile(checkpointer=saver)


def in_parallel(saver: Any) -> Any:
    """Three beside each other: one is a node, one is called by a node, and one does not ask."""
    counted, asked = counting(), asking("called")
    builder = StateGraph(Mixed)
    builder.add_node("begin", lambda state: {"given": str(len(state["items"]))})
    builder.add_node("call", lambda state: {"items": call(asked, state["given"])})
    builder.add_node("node", asking("node"))
    builder.add_node("count", lambda _: {"items": [counted.invoke({"log": ["new"]})["log"]]})
    builder.add_node("last", lambda state: {"total": len(state["items"])})
    builder.add_edge(START, "begin")
    for name in ("call", "node", "count"):
        builder.add_edge("begin", name)
    builder.add_edge(["call", "node", "count"], "last")
    # One after the other, so that their nodes run in an order.
    return builder.compile(checkpointer=saver).with_config(max_concurrency=1)


def nested(saver: Any) -> Any:
    """One that is called in one that is called, each with a question of its own."""
    inmost = asking("inmost")

    def middle(state: Kept) -> dict[str, Any]:
        answers, log = call(inmost, str(len(state["log"])))
        return {"answers": [[interrupt(f"middle {len(state['answers'])}"), *answers]], "log": log}

    between = StateGraph(Kept)
    between.add_node("middle", middle)
    between.add_node("then", lambda state: {"log": [len(state["answers"])]})
    between.add_edge(START, "middle")
    between.add_edge("middle", "then")
    subgraph = between.compile(checkpointer=True)
    builder = StateGraph(Sums)
    builder.add_node("call", lambda state: {"items": call(subgraph, str(len(state["items"])))})
    builder.add_edge(START, "call")
    return builder.compile(checkpointer=saver)


def in_a_task(saver: Any) -> Any:
    """A workflow that is called by a workflow, and a graph that is called by a task."""
    asked = asking("graph")

    def count(n: int, *, previous: Any = None) -> Any:
        known = [*(previous or []), n]
        return entrypoint.final(value=known, save=known)

    counted = entrypoint(checkpointer=True)(noted("count", count))
    ask = task(lambda n: call(asked, str(n)))

    def workflow(n: int, *, previous: Any = None) -> Any:
        value = [n, counted.invoke(n), ask(n).result()]
        return entrypoint.final(value=value, save=[*(previous or []), value])

    return entrypoint(checkpointer=saver)(noted("workflow", workflow))


_INPUTS = [{"items": []}, {"items": ["more"]}]
_BUILDS: dict[str, Callable[[Any], Any]] = {
    "stateful in a node": in_a_node,
    "stateful in a loop": in_a_loop,
    "stateful thrice in a node": thrice_in_a_node,
    "stateful in parallel": in_parallel,
    "stateful in stateful, called": nested,
}
STATEFUL_SHAPES = {
    **{name: Shape(build, _INPUTS) for name, build in _BUILDS.items()},
    "stateful in a task": Shape(in_a_task, [1, 2]),
}
for _name in list(STATEFUL_SHAPES):
    for _durability in ("sync", "exit"):
        _shape = STATEFUL_SHAPES[_name]
        STATEFUL_SHAPES[f"{_name}, durability {_durability}"] = Shape(
            _shape.build, _shape.inputs, {"durability": _durability}
        )
