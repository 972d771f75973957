"""A chat that asks back, for LangGraph's own server."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt


class State(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]


def answer(state: State) -> State:
    text = str(state["messages"][-1].content)
    if text.endswith("?"):
        return {"messages": [AIMessage(f"Then it is {interrupt('What do you think?')}.")]}
    return {"messages": [AIMessage(f"You said: {text}")]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
graph = builder.compile()
