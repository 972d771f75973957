"""The typed views of `client.threads.stream`: tool calls, extensions, parts of a graph."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.stream import StreamChannel, StreamTransformer
from langgraph_sdk import get_client, get_sync_client

from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from served import Chat, said, serving
from servers import PATIENCE_SECONDS

CALLS: list[Any] = [
    {"name": "look_up", "args": {"place": "Rome"}, "id": "c1"},
    {"name": "break_down", "args": {}, "id": "c2"},
]


@tool
def look_up(place: str, runtime: ToolRuntime) -> str:
    """Look up a place, bit by bit."""
    for part in ("sun", "ny"):
        runtime.emit_output_delta(part)
    return f"{place} is sunny"


@tool
def break_down() -> str:
    """Fail."""
    raise ValueError("broken")


class Progress(StreamTransformer):
    """Sends a name and a number for each state, under names of its own."""

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._steps: StreamChannel[Any] = StreamChannel("steps")
        self._texts: StreamChannel[Any] = StreamChannel("texts")

    def init(self) -> dict[str, Any]:
        return {"steps": self._steps, "texts": self._texts}

    def process(self, event: Any) -> bool:
        if event["method"] == "values" and not event["params"]["namespace"]:
            count = len(event["params"]["data"].get("messages", []))
            self._steps.push({"count": count})
            self._texts.push("one more")
        return True


def agent() -> Any:
    """Return an agent that calls two tools at once, one of which fails."""

    def model(state: Chat) -> Chat:
        if state["messages"][-1].type == "human":
            return {"messages": [AIMessage("", tool_calls=CALLS)]}
        return {"messages": [AIMessage("Done.")]}

    builder = StateGraph(Chat)
    builder.add_node("model", model)
    builder.add_node("tools", ToolNode([look_up, break_down], handle_tool_errors=True))
    builder.add_edge(START, "model")
    builder.add_conditional_edges(
        "model", lambda state: "tools" if state["messages"][-1].tool_calls else "__end__"
    )
    builder.add_edge("tools", "model")
    return builder.compile(transformers=[Progress])


def outer() -> Any:
    """Return a graph that has the agent as a part."""
    builder = StateGraph(Chat)
    builder.add_node("agent", agent())
    builder.add_edge(START, "agent")
    return builder.compile()


@pytest.fixture
def address(saver: ForkpointSaver) -> Iterator[str]:
    with serving(create_app(saver, {"agent": agent(), "outer": outer()})) as address:
        yield address


@pytest.fixture
def threads(address: str) -> Any:
    return get_client(url=address).threads


TRANSPORTS = pytest.mark.parametrize("transport", ["sse", "websocket"])


async def listed(items: Any) -> list[Any]:
    async def collect() -> list[Any]:
        return [item async for item in items]

    return await asyncio.wait_for(collect(), PATIENCE_SECONDS)


async def check_calls(handles: Any) -> None:
    first, second = sorted(handles, key=lambda handle: str(handle.tool_call_id))
    assert (first.tool_call_id, first.name) == ("c1", "look_up")
    assert first.input["place"] == "Rome"
    assert [part async for part in first.deltas] == ["sun", "ny"]
    output = await first.output
    assert (output["type"], output["tool_call_id"]) == ("tool", "c1")
    assert output["content"] == "Rome is sunny"
    assert (second.tool_call_id, second.name) == ("c2", "break_down")
    with pytest.raises(RuntimeError, match="broken"):
        await second.output


@TRANSPORTS
async def test_tool_calls_are_followed(transport: Any, threads: Any) -> None:
    async with threads.stream(assistant_id="agent", transport=transport) as stream:
        await stream.run.start(input=said("Hello"))
        await check_calls(await listed(stream.tool_calls))
        assert (await stream.output)["messages"][-1]["content"] == "Done."


@TRANSPORTS
async def test_extensions_are_what_transformers_send(transport: Any, threads: Any) -> None:
    expected: dict[str, list[Any]] = {
        "steps": [{"count": count} for count in (1, 2, 4, 5)],
        "texts": ["one more"] * 4,
    }
    for name, payloads in expected.items():  # of a run that has ended the client opens one view
        async with threads.stream(assistant_id="agent", transport=transport) as stream:
            await stream.run.start(input=said("Hello"))
            parts = await listed(stream.extensions[name])
        assert parts == [{"name": name, "payload": payload} for payload in payloads]


async def test_several_views_come_interleaved(threads: Any) -> None:
    async with threads.stream(assistant_id="agent") as stream:
        await stream.run.start(input=said("Hello"))
        views = ["values", "tool_calls", "steps", "tasks", "messages"]
        items = await listed(stream.interleave_projections(views))
        kinds = [kind for kind, _ in items]
        assert {kind: kinds.count(kind) for kind in ("values", "steps", "tool_calls")} == {
            "values": 4,
            "steps": 4,
            "tool_calls": 2,
        }
        assert kinds.index("tool_calls") > kinds.index("values")


async def test_what_parts_of_a_graph_do_is_theirs(threads: Any) -> None:
    async with threads.stream(assistant_id="outer") as stream:
        await stream.run.start(input=said("Hello"))
        (part,) = await listed(stream.subgraphs)
        assert (part.graph_name, part.status) == ("agent", "completed")
        await check_calls(await listed(part.tool_calls))


def test_the_sync_client_has_the_same_views(address: str) -> None:
    threads = get_sync_client(url=address).threads
    with threads.stream(assistant_id="agent") as stream:
        stream.run.start(input=said("Hello"))
        first, second = sorted(stream.tool_calls, key=lambda handle: str(handle.tool_call_id))
        assert (first.input["place"], list(first.deltas)) == ("Rome", ["sun", "ny"])
        assert first.output["content"] == "Rome is sunny"
        with pytest.raises(RuntimeError, match="broken"):
            assert second.output is None
    with threads.stream(assistant_id="agent") as stream:
        stream.run.start(input=said("Hello"))
        steps = [step["payload"] for step in stream.extensions["steps"]]
    assert steps == [{"count": count} for count in (1, 2, 4, 5)]
