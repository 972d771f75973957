"""Two servers of one store: a client goes from one to the other, and a run ends that of another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import websockets
from langgraph_sdk.client import LangGraphClient

from agents import Agent
from calling import calling_at
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import commands, create_app, lost_ends, thread_streams
from served import chat, said, serving
from stores import Store


class Follower:
    """A client that follows a thread, now on one server and now on another."""

    def __init__(self) -> None:
        self.number = 0
        self.is_there = asyncio.Event()

    async def start(self, address: str, text: str) -> None:
        """Begin a run, as the client of the SDK does: it knows of all events before it then."""
        params = {"assistant_id": "chat", "input": said(text)}
        async with calling_at(address) as http:
            command = {"id": 1, "method": "run.start", "params": params}
            answer = (await http.post("/threads/t/commands", json=command)).json()
            self.number = max(self.number, answer["meta"]["applied_through_seq"])

    async def follow(self, address: str, since: int | None = None) -> list[str]:
        """Return what it is told by a server, from the number that it knows, to a run's end."""
        told: list[str] = []
        body = {
            "channels": ["lifecycle", "input"],
            "since": self.number if since is None else since,
        }
        async with (
            calling_at(address) as http,
            http.stream("POST", "/threads/t/stream/events", json=body) as answer,
        ):
            assert answer.status_code == 200
            self.is_there.set()
            async for line in answer.aiter_lines():
                part = json.loads(line[6:]) if line.startswith("data: ") else {}
                if part.get("type") == "event":
                    self.number = max(self.number, part["seq"])
                    told.append(part["params"]["data"]["event"])
                    if told[-1] != "running":
                        break
        return told


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lost_ends, commands):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def addresses(store: Store) -> Iterator[list[str]]:
    with store.saver() as one, store.saver() as other:
        ThreadCatalog(one).create("t")
        apps = [create_app(saver, {"chat": chat()}) for saver in (one, other)]
        with serving(apps[0]) as first, serving(apps[1]) as second:
            yield [first, second]


async def test_a_client_that_changes_servers_misses_nothing(addresses: list[str]) -> None:
    client = Follower()
    for turn, address in enumerate([addresses[1], addresses[0], addresses[1]]):
        await client.start(address, f"turn {turn}")
        assert await client.follow(address) == ["running", "completed"]
    # A run that it knows of from the second server ended there: the first one has sent older ones.
    assert await client.follow(addresses[0]) == ["completed"]
    assert await client.follow(addresses[0]) == ["completed"]
    await client.start(addresses[0], "last")
    assert await client.follow(addresses[0]) == ["running", "completed"]


async def test_a_client_may_come_from_a_server_whose_clock_is_ahead(addresses: list[str]) -> None:
    client = Follower()
    await client.start(addresses[0], "now")
    assert await client.follow(addresses[0]) == ["running", "completed"]
    client.number += 3600 * 1_000_000
    assert await client.follow(addresses[0]) == ["completed"]
    assert await client.follow(addresses[0]) == ["completed"]
    following = asyncio.create_task(client.follow(addresses[0]))
    await client.start(addresses[0], "later")
    assert (await following)[-1] == "completed"
    before = client.number
    await client.start(addresses[0], "last")
    assert await client.follow(addresses[0], before) == ["running", "completed"]
    assert client.number > before
    assert thread_streams._known(10**18) == 0


@asynccontextmanager
async def lost_run(saver: ForkpointSaver, address: str) -> AsyncIterator[asyncio.Task[list[str]]]:
    """A run elsewhere, of which a server is asked what it does not know: how it ends."""
    client = Follower()
    client.number = 1
    async with ThreadCatalog(saver).run("t"):
        following = asyncio.create_task(client.follow(address))
        await client.is_there.wait()
        yield following


async def test_the_end_of_a_lost_run_is_told_while_a_run_without_events_goes_on(
    addresses: list[str], store: Store
) -> None:
    with store.saver() as saver:
        async with (
            lost_run(saver, addresses[0]) as following,
            calling_at(addresses[0]) as http,
        ):
            new = {"assistant_id": "chat", "input": said("you")}
            waiting = (await http.post("/threads/t/runs", json=new)).json()
        async with calling_at(addresses[0]) as http:
            await http.get(f"/threads/t/runs/{waiting['run_id']}/join")
        assert await following == ["completed"]


async def test_who_waits_for_the_end_of_a_lost_run_leaves_if_its_thread_is_deleted(
    addresses: list[str], store: Store
) -> None:
    with store.saver() as saver:
        async with lost_run(saver, addresses[0]) as following:
            await ThreadCatalog(saver).adelete("t")
        assert await following == []


async def test_an_answer_waits_until_another_server_has_stored_what_it_asked(
    store: Store, saver: ForkpointSaver
) -> None:
    graph = chat().copy({"checkpointer": saver})
    await graph.ainvoke(said("ask"), {"configurable": {"thread_id": "asked"}})
    asked = saver.get_tuple({"configurable": {"thread_id": "asked"}})
    assert asked is not None
    (pending,) = ThreadCatalog(saver).get("asked").interrupts  # type: ignore[union-attr]
    answer = {"interrupt_id": pending.id, "response": "yes"}
    command = {"id": 1, "method": "input.respond", "params": answer}
    sent: list[str] = []
    with store.watched(sent.append) as other:
        transport = httpx.ASGITransport(create_app(other, {"chat": chat()}))
        http = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        async with ThreadCatalog(saver).run("t") as lease:
            answering = asyncio.create_task(http.post("/threads/t/commands", json=command))
            before = len(sent)
            while not answering.done() and len(sent) < before + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            place = {**lease.config["configurable"], "checkpoint_ns": ""}
            versions = asked.checkpoint["channel_versions"]
            put = saver.put({"configurable": place}, asked.checkpoint, asked.metadata, versions)
            put["configurable"] = {**place, **put["configurable"]}
            for task_id, channel, value in asked.pending_writes or ():
                saver.put_writes(put, [(channel, value)], task_id)
        assert (await answering).json()["type"] == "success"
        run = (await http.get("/threads/t/runs")).json()[0]
        values = (await http.get(f"/threads/t/runs/{run['run_id']}/join")).json()
    assert values["messages"][-1]["content"] == "You said yes."


async def test_a_socket_ends_if_what_it_waits_for_cannot_be_told(store: Store) -> None:
    with store.saver() as other:
        saver = store.saver()
        catalog = ThreadCatalog(other)
        catalog.create("t")
        with serving(create_app(saver, {"chat": chat()})) as address, catalog.run("t"):
            place = f"{address.replace('http', 'ws', 1)}/threads/t/stream/events"
            async with websockets.connect(place) as socket:
                body = {"channels": ["lifecycle"], "since": 1}
                command = {"id": 1, "method": "subscription.subscribe", "params": body}
                await socket.send(json.dumps(command))
                assert json.loads(await socket.recv())["type"] == "success"
                await saver.aclose()
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await socket.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1011


def client_of(saver: ForkpointSaver, agent: Agent) -> Any:
    transport = httpx.ASGITransport(create_app(saver, {"agent": agent.graph}))
    return LangGraphClient(httpx.AsyncClient(transport=transport, base_url="http://localhost"))


@pytest.fixture
async def interrupted(store: Store, saver: ForkpointSaver) -> AsyncIterator[tuple[Agent, Any]]:
    """Another server, and its agent, while an agent of this one waits for its tools."""
    with store.saver() as other:
        agents = [Agent(saver), Agent(other)]
        clients = [client_of(saver, agents[0]), client_of(other, agents[1])]
        await clients[0].threads.create(thread_id="t")
        run = await clients[0].runs.create("t", "agent", input=said("use tools"))
        await agents[0].is_running.wait()
        while (await clients[1].threads.get_state("t"))["next"] != ["tools"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        yield agents[1], clients[1]
        await clients[0].runs.cancel("t", run["run_id"], wait=True)


async def answers(client: Any) -> list[tuple[str, str]]:
    messages = (await client.threads.get("t"))["values"]["messages"]
    return [(each["tool_call_id"], each["status"]) for each in messages if each["type"] == "tool"]


async def test_a_run_that_goes_on_after_one_of_another_server_keeps_the_calls_open(
    interrupted: tuple[Agent, Any],
) -> None:
    agent, client = interrupted
    agent.may_return.set()
    run = await client.runs.create("t", "agent", multitask_strategy="interrupt")
    assert "messages" in await client.runs.join("t", run["run_id"])
    assert await answers(client) == [("c1", "success"), ("c2", "success")]


async def test_a_client_answers_calls_of_another_server_itself(
    interrupted: tuple[Agent, Any],
) -> None:
    _, client = interrupted
    own: Any = [{"type": "tool", "tool_call_id": call, "content": "no"} for call in ("c1", "c2")]
    given = {"messages": [*own, *said("never mind")["messages"]]}
    run = await client.runs.create("t", "agent", input=given, multitask_strategy="interrupt")
    assert "messages" in await client.runs.join("t", run["run_id"])
    assert await answers(client) == [("c1", "success"), ("c2", "success")]


async def test_calls_that_a_run_of_another_server_left_open_are_answered(
    interrupted: tuple[Agent, Any],
) -> None:
    _, client = interrupted
    given: Any = {"input": said("never mind"), "multitask_strategy": "interrupt"}
    run = await client.runs.create("t", "agent", **given)
    assert "messages" in await client.runs.join("t", run["run_id"])
    assert await answers(client) == [("c1", "error"), ("c2", "error")]
