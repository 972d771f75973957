"""Graphs of every shape, each with the inputs that take it through its paths."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt


class Chat(TypedDict):
    messages: Annotated[list[Any], add_messages]
    document: str


class Sums(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]
    total: int
    answers: Annotated[list[Any], operator.add]


def append_all(value: list[Any], writes: list[Any]) -> list[Any]:
    return [*value, *(item for write in writes for item in write)]


class Deltas(TypedDict, total=False):
    log: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=3)]
    never: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=1000)]
    n: int


@dataclass(frozen=True)
class Shape:
    """A graph, and what it is invoked with, one after the other."""

    build: Callable[[Any], Any]
    inputs: list[Any]
    options: dict[str, Any] = field(default_factory=dict)


def chat(saver: Any) -> Any:
    def answer(state: Chat) -> dict[str, Any]:
        count = len(state["messages"])
        return {"messages": [AIMessage(f"answer {count} " * 30, id=f"ai-{count}")]}

    builder = StateGraph(Chat)
    builder.add_node(answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def loop(saver: Any) -> Any:
    def step(state: Sums) -> dict[str, Any]:
        return {"items": [len(state["items"])], "total": sum(state["items"])}

    builder = StateGraph(Sums)
    builder.add_node(step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: "step" if state["total"] < 9 else END)
    return builder.compile(checkpointer=saver)


def parallel(saver: Any) -> Any:
    builder = StateGraph(Sums)
    for name in ("b", "a", "c"):
        builder.add_node(name, lambda _, name=name: {"items": [name]})
        builder.add_edge(START, name)
        builder.add_edge(name, "join")
    builder.add_node("join", lambda state: {"total": len(state["items"])})
    return builder.compile(checkpointer=saver)


def send(saver: Any) -> Any:
    builder = StateGraph(Sums)
    builder.add_node("plan", lambda _: {"total": 0})
    builder.add_node("work", lambda state: {"items": [state["n"] * 10]})
    builder.add_node("join", lambda state: {"total": sum(state["items"])})
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", lambda _: [Send("work", {"n": n}) for n in range(5)])
    builder.add_edge("work", "join")
    return builder.compile(checkpointer=saver)


def interrupts(saver: Any) -> Any:
    def ask(_: Sums) -> dict[str, Any]:
        return {"answers": [interrupt("first question"), interrupt("second question")]}

    builder = StateGraph(Sums)
    builder.add_node(ask)
    builder.add_node("sibling", lambda _: {"items": ["sibling"]})
    builder.add_node("after", lambda state: {"total": len(state["answers"])})
    builder.add_edge(START, "ask")
    builder.add_edge(START, "sibling")
    builder.add_edge(["ask", "sibling"], "after")
    return builder.compile(checkpointer=saver)


def breakpoints(saver: Any) -> Any:
    builder = StateGraph(Sums)
    builder.add_node("one", lambda _: {"items": [1]})
    builder.add_node("two", lambda _: {"items": [2]})
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    return builder.compile(
        checkpointer=saver, interrupt_before=["two"], interrupt_after=["one", "two"]
    )


def failing(saver: Any) -> Any:
    attempts: list[int] = []

    def unstable(_: Sums) -> dict[str, Any]:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("the first time")
        return {"items": ["recovered"]}

    builder = StateGraph(Sums)
    builder.add_node(unstable)
    builder.add_node("steady", lambda _: {"items": ["steady"]})
    builder.add_edge(START, "unstable")
    builder.add_edge(START, "steady")
    return builder.compile(checkpointer=saver)


def subgraph(checkpointer: Any) -> Callable[[Any], Any]:
    def build(saver: Any) -> Any:
        def ask(state: Sums) -> dict[str, Any]:
            return {"answers": [interrupt(f"question {len(state['answers'])}")]}

        inner = StateGraph(Sums)
        inner.add_node("before", lambda _: {"items": ["inner"]})
        inner.add_node(ask)
        inner.add_edge(START, "before")
        inner.add_edge("before", "ask")
        middle = StateGraph(Sums)
        middle.add_node("inner", inner.compile(checkpointer=checkpointer))
        middle.add_node("then", lambda _: {"items": ["middle"]})
        middle.add_edge(START, "inner")
        middle.add_edge("inner", "then")
        outer = StateGraph(Sums)
        outer.add_node("middle", middle.compile(checkpointer=checkpointer))
        outer.add_node("last", lambda state: {"total": len(state["items"])})
        outer.add_edge(START, "middle")
        outer.add_edge("middle", "last")
        return outer.compile(checkpointer=saver)

    return build


class Snapshots(TypedDict, total=False):
    log: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=3)]
    n: int


def snapshots(saver: Any) -> Any:
    return counting(saver, Snapshots, lambda count: {})


def deltas(saver: Any) -> Any:
    return counting(saver, Deltas, lambda count: {"never": [count] if count % 2 else []})


def counting(saver: Any, schema: Any, more: Callable[[int], dict[str, Any]]) -> Any:
    def step(state: Any) -> dict[str, Any]:
        count = state.get("n", 0) + 1
        return {"log": [f"log {count}"], "n": count, **more(count)}

    builder = StateGraph(schema)
    builder.add_node(step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: "step" if state["n"] % 4 else END)
    return builder.compile(checkpointer=saver)


def functional(saver: Any) -> Any:
    @task
    def double(n: int) -> int:
        return n * 2

    @entrypoint(checkpointer=saver)
    def workflow(n: int, *, previous: Any = None) -> Any:
        doubled = [double(n).result(), double(n + 1).result()]
        answer = interrupt("go on?")
        return entrypoint.final(
            value={"doubled": doubled, "answer": answer, "previous": previous},
            save={"history": [*(previous or {"history": []})["history"], *doubled]},
        )

    return workflow


def commands(saver: Any) -> Any:
    def route(state: Sums) -> Command[Any]:
        where = "even" if len(state["items"]) % 2 == 0 else "odd"
        return Command(goto=where, update={"items": [where]})

    builder = StateGraph(Sums)
    builder.add_node("route", route, destinations=("even", "odd"))
    builder.add_node("even", lambda _: {"total": 2})
    builder.add_node("odd", lambda _: {"total": 1})
    builder.add_edge(START, "route")
    return builder.compile(checkpointer=saver)


def tools(saver: Any) -> Any:
    def model(state: Chat) -> dict[str, Any]:
        count = len(state["messages"])
        if isinstance(state["messages"][-1], ToolMessage):
            return {"messages": [AIMessage("done", id=f"done-{count}")]}
        call = {"name": "look", "args": {"n": count}, "id": f"call-{count}"}
        return {"messages": [AIMessage("", tool_calls=[call], id=f"call-{count}")]}

    def tool(state: Chat) -> dict[str, Any]:
        (call,) = state["messages"][-1].tool_calls
        text = f"result {call['args']['n']} " * 40
        return {"messages": [ToolMessage(text, tool_call_id=call["id"], id=f"r-{call['id']}")]}

    builder = StateGraph(Chat)
    builder.add_node(model)
    builder.add_node(tool)
    builder.add_edge(START, "model")
    builder.add_conditional_edges(
        "model", lambda state: "tool" if state["messages"][-1].tool_calls else END
    )
    builder.add_edge("tool", "model")
    return builder.compile(checkpointer=saver)


def said(n: int) -> dict[str, Any]:
    return {"messages": [HumanMessage(f"question {n} " * 30, id=f"human-{n}")]}


SHAPES: dict[str, Shape] = {
    "chat": Shape(chat, [{**said(0), "document": "text " * 400}, said(1), said(2)]),
    "loop": Shape(loop, [{"items": [1]}, {"items": [2]}]),
    "parallel": Shape(parallel, [{"items": ["start"]}, {"items": ["again"]}]),
    "send": Shape(send, [{"items": []}, {"items": [1]}]),
    "interrupts": Shape(
        interrupts, [{"items": []}, Command(resume="one"), Command(resume="two"), {"items": [1]}]
    ),
    "breakpoints": Shape(breakpoints, [{"items": []}, None, None, None]),
    "failing": Shape(failing, [{"items": []}, None, {"items": ["again"]}]),
    "stateless subgraphs": Shape(
        subgraph(None), [{"items": [], "answers": []}, Command(resume="one"), {"items": ["more"]}]
    ),
    "stateful subgraphs": Shape(
        subgraph(True),
        [{"items": [], "answers": []}, Command(resume="one"), {"items": []}, Command(resume="two")],
    ),
    "deltas": Shape(deltas, [{"log": ["start"]}, {"log": ["again"]}, {"never": ["third"]}]),
    "snapshots": Shape(snapshots, [{"log": ["start"]}, {"log": ["again"]}, {"log": ["third"]}]),
    "functional": Shape(functional, [1, Command(resume="yes"), 2, Command(resume="no")]),
    "commands": Shape(commands, [{"items": []}, {"items": [1, 2]}]),
    "tools": Shape(tools, [said(0), said(1)]),
}
for _durability in ("sync", "async", "exit"):
    for _name in ("chat", "deltas", "interrupts"):
        SHAPES[f"{_name}, durability {_durability}"] = Shape(
            SHAPES[_name].build, SHAPES[_name].inputs, {"durability": _durability}
        )
