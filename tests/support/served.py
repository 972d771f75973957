"""A server on this machine, the graphs that it serves, and clients of it."""

from __future__ import annotations

import asyncio
import inspect
import operator
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypedDict

import uvicorn
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt
from langgraph_sdk import get_client, get_sync_client

from servers import wait_until


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application in a thread of its own, and give its address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serve = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    serve.start()
    try:
        wait_until(lambda: server.started or not serve.is_alive(), "the server")
        assert server.started
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        serve.join()
        listening.close()


class Chat(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    turns: Annotated[int, operator.add]


class Gates:
    """Where nodes of served graphs wait until a test lets them go on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.left = threading.Semaphore(0)


def chat(gates: Gates | None = None) -> Any:
    """Return a chat that answers in two words, asks back, fails, or waits, as it is told to."""

    async def answer(state: Chat) -> Chat:
        text = str(state["messages"][-1].content)
        if text == "fail":
            raise ValueError("broken")
        if text == "ask":
            said = interrupt({"question": "sure?"})
            return {"messages": [AIMessage(f"You said {said}.")], "turns": 1}
        if text == "wait":
            assert gates is not None
            gates.entered.release()
            while not gates.left.acquire(blocking=False):  # noqa: ASYNC110  # of another thread
                await asyncio.sleep(0.002)
        model = GenericFakeChatModel(messages=iter([AIMessage(f"Hello {text}")]))
        return {"messages": [await model.ainvoke(state["messages"])], "turns": 1}

    builder = StateGraph(Chat)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile()


def said(text: str) -> dict[str, Any]:
    """Return the input of a turn."""
    return {"messages": [{"role": "user", "content": text}]}


class Client:
    """The client of LangGraph's SDK, the sync or the async one, called alike."""

    def __init__(self, address: str, world: str, **options: Any) -> None:
        make = get_client if world == "async" else get_sync_client
        client = make(url=address, **options)
        self.threads = _Part(client.threads)
        self.runs = _Part(client.runs)
        self.assistants = _Part(client.assistants)


class _Part:
    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)

        async def call(*args: Any, **options: Any) -> Any:
            answer = method(*args, **options)
            if inspect.isawaitable(answer):
                return await answer
            if inspect.isasyncgen(answer) or hasattr(answer, "__aiter__"):
                return [part async for part in answer]
            return list(answer) if inspect.isgenerator(answer) else answer

        return call
