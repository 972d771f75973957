"""A server is killed, or told to end, and started again: nobody waits for what is gone."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from langgraph_sdk import get_client

from calling import calling_at
from forkpoint import ThreadCatalog
from forkpoint.server import create_app
from processes import fork_server
from served import Gates, chat, said
from servers import PATIENCE_SECONDS
from stores import Store


def serve(store: Store, listening: socket.socket) -> None:
    """Serve a store until this process ends. Leases of the dead end after a second."""
    assert ThreadCatalog.run.__kwdefaults__ is not None
    ThreadCatalog.run.__kwdefaults__["ttl"] = timedelta(seconds=1)
    with store.saver() as saver:
        app = create_app(saver, {"chat": chat(Gates())})
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


class Restarted:
    """A server in a process of its own. Who connects while there is none, waits for the next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(100)
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._process: Any = None
        self.start()

    def start(self) -> None:
        arguments = (self._store, self._listening)
        self._process = fork_server().Process(target=serve, args=arguments, daemon=True)
        self._process.start()

    async def end(self, *, is_killed: bool) -> None:
        end = self._process.kill if is_killed else self._process.terminate
        end()
        await asyncio.to_thread(self._process.join)
        self._store.await_end_of(self._process.pid)

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._listening.close()


@pytest.fixture
def server(store: Store) -> Iterator[Restarted]:
    server = Restarted(store)
    yield server
    server.close()


def client_of(server: Restarted) -> Any:
    return get_client(url=server.address, timeout=PATIENCE_SECONDS)


TRANSPORTS = pytest.mark.parametrize(
    "transport", ["sse", pytest.param("websocket", marks=pytest.mark.slow)]
)


def patient(stream: Any) -> None:
    """Have a client try again until the next server is there: by default it gives up soon."""
    stream._lifecycle_max_reconnect_attempts = 10_000


async def within_patience(waiting: Any) -> Any:
    return await asyncio.wait_for(waiting, PATIENCE_SECONDS)


async def is_stored(client: Any, thread_id: str, text: str) -> None:
    """Wait for the checkpoint that has a message, which is told of before it is stored."""
    while True:
        messages = (await client.threads.get_state(thread_id))["values"]["messages"]
        if messages[-1]["content"] == text:
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("is_killed", "transport"),
    [
        (True, "websocket"),
        (False, "sse"),
        pytest.param(True, "sse", marks=pytest.mark.slow),
        pytest.param(False, "websocket", marks=pytest.mark.slow),
    ],
)
async def test_who_follows_a_run_is_told_that_it_ended_with_its_server(
    is_killed: bool, transport: Any, server: Restarted
) -> None:
    client = client_of(server)
    options: Any = {"assistant_id": "chat", "transport": transport}
    async with client.threads.stream(**options) as stream:
        await stream.run.start(input=said("you"))
        assert (await within_patience(stream.output))["turns"] == 1
        thread_id = stream.thread_id
    async with client.threads.stream(thread_id, **options) as stream:
        patient(stream)
        await stream.run.start(input=said("wait"))
        async for state in stream.values:
            if state["messages"][-1]["content"] == "wait":
                break
        output = asyncio.ensure_future(stream.output)
        await is_stored(client, thread_id, "wait")
        await server.end(is_killed=is_killed)
        server.start()
        with pytest.raises(RuntimeError, match="Run errored"):
            await within_patience(output)
    state = await client.threads.get_state(thread_id)
    messages = state["values"]["messages"]
    assert ([message["type"] for message in messages], messages[-1]["content"]) == (
        ["human", "ai", "human"],
        "wait",
    )
    async with client.threads.stream(thread_id, **options) as stream:
        await stream.run.start(input=said("again"))
        output = await within_patience(stream.output)
        assert (output["turns"], len(output["messages"])) == (2, 5)


@TRANSPORTS
async def test_an_interrupt_is_answered_after_a_restart(transport: Any, server: Restarted) -> None:
    client = client_of(server)
    options: Any = {"assistant_id": "chat", "transport": transport}
    async with client.threads.stream(**options) as stream:
        patient(stream)
        await stream.run.start(input=said("ask"))
        while not stream.interrupted:  # noqa: ASYNC110  # the client has no event for it
            await asyncio.sleep(0.01)
        number = stream._lifecycle_cursor
        # Told of before it is stored.
        while (await client.threads.get(stream.thread_id))["status"] != "interrupted":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await server.end(is_killed=True)
        server.start()
        await stream.run.respond("yes")
        values = (await within_patience(stream.output))["messages"]
        assert values[-1]["content"] == "You said yes."
    # One who comes back without having seen the question is asked.
    thread_id = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread_id, "chat", input=said("ask"))
    asked = await told_since(server, thread_id, number)
    assert [event["method"] for event in asked] == ["input.requested", "lifecycle"]
    assert asked[0]["params"]["data"]["value"] == {"question": "sure?"}
    assert asked[1]["params"]["data"]["event"] == "interrupted"
    assert len({event["event_id"] for event in asked}) == 2


async def told_since(server: Restarted, thread_id: str, number: int) -> list[Any]:
    """Return what one is told who comes back with a number, up to how the run ended."""
    told = []
    body = {"channels": ["lifecycle", "input"], "since": number}
    async with (
        calling_at(server.address) as http,
        http.stream("POST", f"/threads/{thread_id}/stream/events", json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            part = json.loads(line[6:]) if line.startswith("data: ") else {}
            if part.get("type") == "event":
                told.append(part)
                if part["method"] == "lifecycle":
                    break
    return told


@pytest.mark.filterwarnings("ignore:Request failed, attempting reconnect")
async def test_who_joins_runs_and_threads_is_not_left_waiting(server: Restarted) -> None:
    client = client_of(server)
    thread_id = (await client.threads.create())["thread_id"]
    parts = client.runs.stream(thread_id, "chat", input=said("wait"), stream_mode=["values"])
    assert (await anext(parts)).event == "metadata"
    assert (await anext(parts)).event == "values"
    joined = await client.threads.join_stream(thread_id, last_event_id="-")
    last = [await anext(joined) for _ in range(2)][-1].id
    run = (await client.runs.list(thread_id))[0]
    waiting = asyncio.create_task(client.runs.join(thread_id, run["run_id"]))
    await is_stored(client, thread_id, "wait")
    await server.end(is_killed=True)
    server.start()
    for ending in (anext(parts), anext(joined), waiting):
        with pytest.raises(httpx.HTTPError):
            await within_patience(ending)
    again = await client.threads.join_stream(thread_id, last_event_id=last)
    done = await client.runs.wait(thread_id, "chat", input=said("you"))
    assert [message["content"] for message in done["messages"]] == ["wait", "you", "Hello you"]
    assert (await within_patience(anext(again))).event == "metadata"
    await again.aclose()
