"""Graphs of every shape, each with the inputs that take it through its paths."""

from __future__ import annotations

import functools
import operator
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool as as_tool
from langgraph.channels.delta import DeltaChannel
from langgraph.config import get_config
from langgraph.errors import EmptyInputError
from langgraph.func import entrypoint, task
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, Send, interrupt

RAN: list[tuple[Any, str]] = []
"""Which nodes ran, each with its step. Kept outside of any state, where nothing takes it back."""


def note(name: str) -> None:
    """Write down that a node runs."""
    metadata = get_config()["metadata"]
    depth = metadata["langgraph_checkpoint_ns"].count("|")
    RAN.append(((depth, metadata["langgraph_step"]), name))


def noted(name: str, node: Any) -> Any:
    """Return a node that writes down that it runs."""

    @functools.wraps(node)
    def run(*args: Any, **kwargs: Any) -> Any:
        note(name)
        return node(*args, **kwargs)

    return run


class Failure(RuntimeError):
    """One that is equal to another: what comes back of a store is another object."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Failure and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


class StateGraph(PlainGraph):
    """A graph whose nodes write down that they run, but for those that are graphs themselves."""

    def add_node(self, node: Any, action: Any = None, **options: Any) -> Any:
        name, action = (node, action) if isinstance(node, str) else (node.__name__, node)
        is_graph = hasattr(action, "invoke")
        return super().add_node(name, action if is_graph else noted(name, action), **options)


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
    said: dict[str, Any] = field(default_factory=dict)
    """What a `Command` says besides an answer."""


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
            raise Failure("the first time")
        return {"items": ["recovered"]}

    builder = StateGraph(Sums)
    builder.add_node("steady", lambda _: {"items": ["steady"]})
    builder.add_node(unstable)
    builder.add_edge(START, "steady")
    builder.add_edge(START, "unstable")
    # One after the other, so that the one that fails does not do so before the other is done. They
    # run in the order of their names, or in that in which they were added.
    return builder.compile(checkpointer=saver).with_config(max_concurrency=1)


def subgraph(middle: Any, inner: Any) -> Callable[[Any], Any]:
    """A graph in a graph in a graph, each with the checkpointer that it is told."""

    def build(saver: Any) -> Any:
        def ask(state: Sums) -> dict[str, Any]:
            return {"answers": [interrupt(f"question {len(state['answers'])}")]}

        inmost = StateGraph(Sums)
        inmost.add_node("before", lambda _: {"items": ["inner"]})
        inmost.add_node(ask)
        inmost.add_edge(START, "before")
        inmost.add_edge("before", "ask")
        between = StateGraph(Sums)
        between.add_node("inner", inmost.compile(checkpointer=inner))
        between.add_node("then", lambda _: {"items": ["middle"]})
        between.add_edge(START, "inner")
        between.add_edge("inner", "then")
        outer = StateGraph(Sums)
        outer.add_node("middle", between.compile(checkpointer=middle))
        outer.add_node("last", lambda state: {"total": len(state["items"])})
        outer.add_edge(START, "middle")
        outer.add_edge("middle", "last")
        return outer.compile(checkpointer=saver)

    return build


class Inner(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]
    seen: Annotated[list[Any], operator.add]
    log: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=3)]


def newest_only(value: list[Any], more: list[Any]) -> list[Any]:
    """Keep what came last: a subgraph gives back what it was given, and all of it would double."""
    return [*value, *more][-40:]


class Newest(TypedDict, total=False):
    items: Annotated[list[Any], newest_only]
    total: int


def remembering(saver: Any) -> Any:
    """A stateful subgraph, whose channels are its own, that runs three times in a turn."""
    inner = StateGraph(Inner)
    inner.add_node("look", lambda state: {"seen": [len(state["items"])], "log": ["look"]})
    inner.add_node(
        "tell", lambda state: {"log": ["tell"], "items": [[len(state["seen"]), *state["log"]]]}
    )
    inner.add_edge(START, "look")
    inner.add_edge("look", "tell")
    outer = StateGraph(Newest)
    outer.add_node("count", lambda state: {"total": state.get("total", 0) + 1})
    outer.add_node("inner", inner.compile(checkpointer=True))
    outer.add_edge(START, "count")
    outer.add_edge("count", "inner")
    outer.add_conditional_edges("inner", lambda state: "count" if state["total"] % 3 else END)
    return outer.compile(checkpointer=saver)


def called(checkpointer: Any) -> Callable[[Any], Any]:
    """A graph that is called by a node, and asks twice."""

    def build(saver: Any) -> Any:
        inner = StateGraph(Sums)
        inner.add_node("first", lambda _: {"answers": [interrupt("first")]})
        inner.add_node("second", lambda _: {"answers": [interrupt("second")], "items": ["inner"]})
        inner.add_edge(START, "first")
        inner.add_edge("first", "second")
        graph = inner.compile(checkpointer=checkpointer)

        def call(state: Sums) -> dict[str, Any]:
            done = graph.invoke({"answers": [], "items": []})
            return {"answers": done["answers"], "items": done["items"]}

        outer = StateGraph(Sums)
        outer.add_node(call)
        outer.add_node("last", lambda state: {"total": len(state["answers"])})
        outer.add_edge(START, "call")
        outer.add_edge("call", "last")
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
    double = task(noted("double", lambda n: n * 2))

    def workflow(n: int, *, previous: Any = None) -> Any:
        doubled = [double(n).result(), double(n + 1).result()]
        answer = interrupt("go on?")
        return entrypoint.final(
            value={"doubled": doubled, "answer": answer, "previous": previous},
            save={"history": [*(previous or {"history": []})["history"], *doubled]},
        )

    return entrypoint(checkpointer=saver)(noted("workflow", workflow))


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


def question(saver: Any) -> Any:
    """One question, after a node, and before another."""
    builder = StateGraph(Sums)
    builder.add_node("before", lambda _: {"items": ["before"]})
    builder.add_node("ask", lambda state: {"answers": [interrupt(f"after {state['items']}")]})
    builder.add_node("after", lambda state: {"total": len(state["answers"])})
    builder.add_edge(START, "before")
    builder.add_edge("before", "ask")
    builder.add_edge("ask", "after")
    return builder.compile(checkpointer=saver)


def questions(saver: Any) -> Any:
    """Questions of different nodes, and of several tasks of one, that wait at the same time."""

    def ask(state: Any) -> dict[str, Any]:
        return {"answers": [[state["n"], interrupt(f"question {state['n']}")]]}

    builder = StateGraph(Sums)
    builder.add_node("quick", lambda _: {"items": ["quick"]})
    builder.add_node("one", lambda _: {"answers": [["one", interrupt("one")]]})
    builder.add_node("two", lambda _: {"answers": [["two", interrupt("two"), interrupt("more")]]})
    builder.add_node("plan", lambda _: {"items": ["plan"]})
    builder.add_node("ask", ask)
    builder.add_node("swift", lambda _: {"items": ["swift"]})
    builder.add_node("after", lambda state: {"total": len(state["answers"])})
    for name in ("one", "quick", "two"):
        builder.add_edge(START, name)
        builder.add_edge(name, "plan")
    builder.add_conditional_edges(
        "plan", lambda _: [Send("swift", {}), *(Send("ask", {"n": n}) for n in range(3))]
    )
    builder.add_edge("ask", "after")
    return builder.compile(checkpointer=saver)


def asked_deltas(saver: Any) -> Any:
    """Writes to a `DeltaChannel` that wait, with a question, for the end of their step."""
    builder = StateGraph(Deltas)
    builder.add_node("ask", lambda _: {"log": [interrupt("first")], "never": [interrupt("second")]})
    builder.add_node("sibling", lambda _: {"log": ["sibling"], "never": ["sibling"]})
    builder.add_node("after", lambda state: {"n": len(state["log"]), "never": ["after"]})
    builder.add_edge(START, "ask")
    builder.add_edge(START, "sibling")
    builder.add_edge(["ask", "sibling"], "after")
    return builder.compile(checkpointer=saver)


def deferred(saver: Any) -> Any:
    """A branch of two nodes beside one of one, and a node that waits for both."""
    builder = StateGraph(Sums)
    for name in ("short", "long", "longer"):
        builder.add_node(name, lambda _, name=name: {"items": [name]})
    builder.add_node("last", lambda state: {"total": len(state["items"])}, defer=True)
    builder.add_edge(START, "short")
    builder.add_edge(START, "long")
    builder.add_edge("long", "longer")
    builder.add_edge("short", "last")
    builder.add_edge("longer", "last")
    return builder.compile(checkpointer=saver)


class Scripted(BaseChatModel):
    """A model that calls two tools at once, and then is done."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        note("model")
        count = len(messages)
        if isinstance(messages[-1], ToolMessage):
            answer = AIMessage("done", id=f"done-{count}")
        else:
            calls = [
                {"name": name, "args": {"n": count}, "id": f"{name}-{count}"}
                for name in ("look", "approve")
            ]
            answer = AIMessage("", tool_calls=calls, id=f"calls-{count}")
        return ChatResult(generations=[ChatGeneration(message=answer)])


def agent(saver: Any) -> Any:
    """LangGraph's own loop of a model and its tools, one of which asks."""

    def look(n: int) -> str:
        """Look."""
        return f"result {n}"

    def approve(n: int) -> str:
        """Ask."""
        return str(interrupt(f"approve {n}?"))

    tools = [as_tool(noted("look", look)), as_tool(noted("approve", approve))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has moved to another package
        return create_react_agent(Scripted(), tools, checkpointer=saver)


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
        subgraph(None, None),
        [{"items": [], "answers": []}, Command(resume="one"), {"items": ["more"]}],
    ),
    "stateful subgraphs": Shape(
        subgraph(True, True),
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

MORE_SHAPES: dict[str, Shape] = {
    "question": Shape(question, [{"items": []}, {"items": [1]}]),
    "questions": Shape(questions, [{"items": []}, {"items": [1]}]),
    "interrupts, answered with updates": Shape(
        interrupts, [{"items": []}, {"items": [1]}], said={"update": {"items": ["said"]}}
    ),
    "deltas with questions": Shape(asked_deltas, [{"log": ["start"]}, {"log": ["again"]}]),
    "deltas with questions, answered with updates": Shape(
        asked_deltas,
        [{"log": ["start"]}, {"log": ["again"]}],
        said={"update": {"log": ["said"], "never": ["said"]}},
    ),
    "stateful in stateless subgraphs": Shape(
        subgraph(None, True), [{"items": [], "answers": []}, {"items": ["more"]}]
    ),
    "stateless in stateful subgraphs": Shape(
        subgraph(True, None), [{"items": [], "answers": []}, {"items": ["more"]}]
    ),
    "remembering": Shape(remembering, [{"items": []}, {"items": ["more"]}]),
    "called": Shape(called(None), [{"items": []}, {"items": ["more"]}]),
    "called, stateful": Shape(called(True), [{"items": []}, {"items": ["more"]}]),
    "goto": Shape(commands, [{"items": []}, Command(goto="odd", update={"items": [1]})]),
    "deferred": Shape(deferred, [{"items": []}, {"items": ["more"]}]),
    "agent": Shape(agent, [said(0), said(1)]),
}
for _name in ("stateless subgraphs", "stateful subgraphs", "functional"):
    MORE_SHAPES[f"{_name}, durability exit"] = Shape(
        SHAPES[_name].build, SHAPES[_name].inputs, {"durability": "exit"}
    )
for _name in ("questions", "deltas with questions", "remembering", "agent"):
    MORE_SHAPES[f"{_name}, durability exit"] = Shape(
        MORE_SHAPES[_name].build, MORE_SHAPES[_name].inputs, {"durability": "exit"}
    )


# LangGraph's `interrupt` needs Python 3.11 under asyncio.
WORLDS = ("sync", "async") if sys.version_info >= (3, 11) else ("sync", "sync")


THREAD: Any = {"configurable": {"thread_id": "thread", "user_id": "u1"}}


async def call(
    graph: Any, world: str, given: Any, options: dict[str, Any], at: Any = THREAD
) -> Any:
    try:
        if world == "sync":
            return graph.invoke(given, at, **options)
        return await graph.ainvoke(given, at, **options)
    except (RuntimeError, EmptyInputError) as error:
        return repr(error)


def error_text(error: Any) -> Any:
    """Return what a task's error says: two exceptions that say the same are not equal."""
    return repr(error) if isinstance(error, BaseException) else error
