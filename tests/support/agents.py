"""An agent whose tools a test holds up, and a model that refuses calls without an answer."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Sequence
from typing import Annotated, Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from forkpoint.saver.saver import ForkpointSaver


def append(left: list[Any], batches: Sequence[Any]) -> list[Any]:
    return [*left, *(case for batch in batches for case in batch)]


class Chat(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    note: str


class Replaced(TypedDict, total=False):
    messages: list[Any]
    note: str


class Plain(TypedDict, total=False):
    messages: Annotated[list[Any], operator.add]
    note: str


class Rebuilt(TypedDict, total=False):
    messages: Annotated[list[Any], DeltaChannel(append, snapshot_frequency=1000)]
    note: str


class Snapshots(TypedDict, total=False):
    messages: Annotated[list[Any], DeltaChannel(append, snapshot_frequency=1)]
    note: str


CALLS: list[Any] = [
    {"name": "fast", "args": {}, "id": "c1"},
    {"name": "slow", "args": {}, "id": "c2"},
]


def refuse_unanswered(messages: Sequence[Any]) -> None:
    """Do what the interfaces of models do."""
    waiting: set[str] = set()
    for message in messages:
        if message.type == "tool":
            assert message.tool_call_id in waiting, "an answer to nothing, or a second one"
            waiting.remove(message.tool_call_id)
            continue
        assert not waiting, f"calls without an answer: {waiting}"
        waiting = {call["id"] for call in getattr(message, "tool_calls", ())}
    assert not waiting


class Agent:
    """A model that asks for tools, and tools, one of which does not return while it is `stuck`."""

    def __init__(
        self,
        saver: ForkpointSaver,
        state: Any = Chat,
        *,
        parallel: bool = False,
    ) -> None:
        self.is_running = asyncio.Event()
        self.may_return = asyncio.Event()
        self.error: Exception | None = None
        self.asks = False
        self._is_replacing = state is Replaced
        builder = StateGraph(state)
        builder.add_node("model", self._model)
        builder.add_node("tools", self._tools)
        builder.add_node("tool", self._tool)
        builder.add_edge(START, "model")
        to_tools = [Send("tool", call) for call in CALLS] if parallel else "tools"
        builder.add_conditional_edges(
            "model",
            lambda state: to_tools if is_calling(state) else END,
            ["tools", "tool", END],
        )
        builder.add_edge("tools", "model")
        builder.add_edge("tool", "model")
        self.graph = builder.compile(checkpointer=saver)

    def _says(self, state: Any, *messages: Any) -> Any:
        return {"messages": [*state["messages"], *messages] if self._is_replacing else [*messages]}

    def _model(self, state: Any) -> Any:
        refuse_unanswered(state["messages"])
        if state["messages"][-1].content == "use tools":
            return self._says(
                state, AIMessage("", id=f"ai {len(state['messages'])}", tool_calls=CALLS)
            )
        return self._says(state, AIMessage("Done."))

    async def _tool(self, call: Any) -> Any:
        if call["id"] == "c2":
            self.is_running.set()
            await self.may_return.wait()
        return {"messages": [ToolMessage("returned", tool_call_id=call["id"])]}

    async def _tools(self, state: Any) -> Any:
        if self.asks:
            interrupt("May I?")
        self.is_running.set()
        await self.may_return.wait()
        if self.error is not None:
            raise self.error
        answers = [ToolMessage("returned", tool_call_id=call["id"]) for call in CALLS]
        return self._says(state, *answers)

    def input(self, text: str, before: Sequence[Any] = ()) -> Any:
        message = HumanMessage(text)
        return {"messages": [*before, message] if self._is_replacing else [message]}


def is_calling(state: Any) -> bool:
    return bool(getattr(state["messages"][-1], "tool_calls", ()))
