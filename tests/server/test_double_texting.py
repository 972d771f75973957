"""A second message while a run is going on: whatever the order, one of them counts as promised."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from langgraph.graph import START, StateGraph
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError

from agents import Agent
from forkpoint import ThreadCatalog
from forkpoint.catalog import leases
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from forkpoint.server import run as run_module
from gates import Gate
from served import Chat, Gates, chat, said
from stores import Store


def client_of(saver: ForkpointSaver, **graphs: Any) -> Any:
    """Return a client of an application that runs in this event loop."""
    transport = httpx.ASGITransport(create_app(saver, graphs))
    return LangGraphClient(httpx.AsyncClient(transport=transport, base_url="http://localhost"))


class Talk:
    """A thread on which runs meet each other."""

    def __init__(self, client: Any, thread_id: str, graph: str) -> None:
        self.client, self.thread_id, self.graph = client, thread_id, graph
        self.sent: dict[str, str] = {}

    async def send(self, text: str, strategy: Any = "enqueue", before: Any = ()) -> str:
        """Begin a run, and return its id."""
        given = {"messages": [*before, *said(text)["messages"]]}
        run = await self.client.runs.create(
            self.thread_id, self.graph, input=given, multitask_strategy=strategy
        )
        self.sent[run["run_id"]] = text
        return str(run["run_id"])

    async def cancel(self, run_id: str, **options: Any) -> None:
        await self.client.runs.cancel(self.thread_id, run_id, **options)

    async def cancel_all(self, but: str | None = None) -> None:
        """Cancel each run that has not ended, those whose beginning is not answered too."""
        for run in await self.client.runs.list(self.thread_id):
            if run["status"] in ("pending", "running") and run["run_id"] != but:
                await self.cancel(run["run_id"])

    async def joined(self, run_id: str) -> Any:
        return await self.client.runs.join(self.thread_id, run_id)

    async def ends(self, run_id: str) -> str:
        """Return how a run ends."""
        await self.joined(run_id)
        return str((await self.client.runs.get(self.thread_id, run_id))["status"])

    async def texts(self) -> list[str]:
        """Return what was said."""
        values = (await self.client.threads.get(self.thread_id))["values"]
        return [message["content"] for message in values["messages"]]

    async def messages(self) -> Any:
        return (await self.client.threads.get(self.thread_id))["values"]["messages"]


async def entered(gates: Gates) -> None:
    """Wait until a run is in the middle of its node."""
    while not gates.entered.acquire(blocking=False):  # noqa: ASYNC110  # of no event loop
        await asyncio.sleep(0.002)


Meanwhile = Callable[[Talk, str, Gates], Awaitable[Any]]


async def nothing(*_: Any) -> None:
    return


async def the_first_ends(_: Talk, __: str, gates: Gates) -> None:
    gates.left.release()


async def the_first_is_cancelled(talk: Talk, first: str, _: Gates) -> None:
    await talk.cancel(first)


async def the_first_is_rolled_back(talk: Talk, first: str, _: Gates) -> None:
    await talk.cancel(first, action="rollback")


async def the_second_is_cancelled(talk: Talk, first: str, _: Gates) -> None:
    await talk.cancel_all(but=first)


async def all_are_cancelled(talk: Talk, _: str, __: Gates) -> None:
    await talk.cancel_all()


async def a_third_comes(talk: Talk, _: str, __: Gates) -> str:
    return await talk.send("third", "rollback")


async def a_third_interrupts(talk: Talk, _: str, __: Gates) -> str:
    return await talk.send("third", "interrupt")


async def a_third_waits(talk: Talk, _: str, __: Gates) -> str:
    return await talk.send("third", "enqueue")


EVENTS = [
    nothing,
    the_first_ends,
    the_first_is_cancelled,
    the_first_is_rolled_back,
    the_second_is_cancelled,
    all_are_cancelled,
    a_third_comes,
    a_third_interrupts,
    a_third_waits,
]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


async def let_go_on(gate: Gate, second: asyncio.Task[str], event: Awaitable[Any]) -> None:
    """Let something begin while the second run is held at the gate, and then both go on."""
    meanwhile = asyncio.ensure_future(event)
    for _ in range(10):
        await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(second, meanwhile, return_exceptions=True)


def forget_left(gates: Gates) -> None:
    """Take back what nobody was let go by."""
    while gates.left.acquire(blocking=False):
        pass


@pytest.mark.by_halves
@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
async def test_a_run_is_rolled_back_whatever_happens_as_the_second_begins(
    event: Meanwhile, every: int, store: Store, gate: Gate, gates: Gates
) -> None:
    with store.watched(gate.pass_through) as saver:
        client = client_of(saver, chat=chat(gates))

        for stop_at in itertools.count(0, every):
            talk = Talk(client, f"t {stop_at}", "chat")
            await client.threads.create(thread_id=talk.thread_id)
            await talk.ends(await talk.send("before"))
            first = await talk.send("wait")
            await entered(gates)
            gate.close(stop_at)
            second = asyncio.create_task(talk.send("second", "rollback"))
            is_reached = await gate.is_reached(second)
            await let_go_on(gate, second, event(talk, first, gates))
            await check(talk, event)
            assert ThreadCatalog(saver).lease(talk.thread_id) is None
            forget_left(gates)
            if not is_reached:
                break
        assert stop_at > 0
        assert store.problems(saver) == []


SECOND = {"second", "Hello second"}
LEFT = {
    the_first_is_cancelled: {"wait"},
    the_second_is_cancelled: SECOND,
    all_are_cancelled: {"wait", *SECOND},
    a_third_interrupts: SECOND,
}
"""What may stay of runs that did not succeed: of what was interrupted, not rolled back."""


async def check(talk: Talk, event: Meanwhile) -> None:
    """Check what is left of the runs, in the order in which they came, and that the next works."""
    runs = [run["run_id"] for run in reversed(await talk.client.runs.list(talk.thread_id))]
    ends = [await talk.ends(run) for run in runs]
    if event not in (the_second_is_cancelled, all_are_cancelled):
        assert ends[-1] == "success"  # the last message is always heard
    heard = []
    for run, end in zip(runs, ends, strict=True):
        if end == "success":
            heard += [talk.sent[run], f"Hello {talk.sent[run]}"]
    texts = await talk.texts()
    assert [text for text in texts if text in heard] == heard
    left = LEFT.get(event, set())
    if event is a_third_interrupts and talk.sent[runs[2]] == "third":  # it came before the second
        left = {"wait"}
    assert {*texts} - {*heard} <= left
    assert await talk.ends(await talk.send("last", "reject")) == "success"
    assert (await talk.texts())[-2:] == ["last", "Hello last"]


async def test_a_run_that_waits_is_ended_by_one_that_replaces_it(
    saver: ForkpointSaver, gates: Gates
) -> None:
    for strategy in ("interrupt", "rollback"):
        client = client_of(saver, chat=chat(gates))
        talk = Talk(client, strategy, "chat")
        await client.threads.create(thread_id=talk.thread_id)
        first = await talk.send("wait")
        await entered(gates)
        waiting = [await talk.send(text) for text in ("a", "b")]
        with pytest.raises(ConflictError):
            await talk.send("c", "reject")
        last = await talk.send("you", strategy)
        assert [await talk.ends(run) for run in (first, *waiting)] == ["interrupted"] * 3
        assert await talk.ends(last) == "success"
        left = ["wait"] if strategy == "interrupt" else []
        assert await talk.texts() == [*left, "you", "Hello you"]


async def test_taking_back_a_run_that_waits_leaves_the_one_that_goes_on(
    saver: ForkpointSaver, gates: Gates
) -> None:
    client = client_of(saver, chat=chat(gates))
    talk = Talk(client, "t", "chat")
    await client.threads.create(thread_id="t")
    first = await talk.send("wait")
    await entered(gates)
    waiting = await talk.send("you")
    await talk.cancel(waiting, action="rollback", wait=True)
    gates.left.release()
    assert [await talk.ends(run) for run in (waiting, first)] == ["interrupted", "success"]
    assert await talk.texts() == ["wait", "Hello wait"]


async def test_the_end_of_a_run_is_told_before_the_next_one_begins(
    saver: ForkpointSaver, gates: Gates
) -> None:
    for strategy in ("enqueue", "interrupt", "rollback"):
        client = client_of(saver, chat=chat(gates))
        talk = Talk(client, strategy, "chat")
        await client.threads.create(thread_id=talk.thread_id)
        first = await talk.send("wait")
        await entered(gates)
        second = await talk.send("you", strategy)
        gates.left.release()
        for run in (first, second):
            await talk.joined(run)
        app = client.http.client._transport.app
        streams = app.state.forkpoint.runs._streams[None, talk.thread_id]
        told = [json.loads(data) async for _, name, data in parts(streams) if name == "metadata"]
        assert [(part["run_id"], part.get("status")) for part in told] == [
            *((first, None), (first, "run_done")),
            *((second, None), (second, "run_done")),
        ]
        forget_left(gates)


async def parts(streams: Any) -> Any:
    streams.end()
    async for part in streams.follow_parts(0):
        yield part


def agent_of(saver: ForkpointSaver, *, parallel: bool) -> tuple[Agent, Any]:
    agent = Agent(saver, parallel=parallel)
    return agent, client_of(saver, agent=agent.graph)


def answers(messages: Any) -> list[tuple[str, str]]:
    return [
        (message["tool_call_id"], message["status"])
        for message in messages
        if message["type"] == "tool"
    ]


async def is_stuck(agent: Agent, talk: Talk) -> None:
    """Wait until a tool does not return, and what was before is stored."""
    await agent.is_running.wait()
    agent.is_running.clear()
    while not any(name.startswith("tool") for name in await next_of(talk)):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def next_of(talk: Talk) -> list[str]:
    state = await talk.client.threads.get_state(talk.thread_id)
    return list(state["next"])


@pytest.mark.parametrize("parallel", [False, True])
async def test_calls_of_tools_that_were_interrupted_are_answered(
    parallel: bool, saver: ForkpointSaver
) -> None:
    agent, client = agent_of(saver, parallel=parallel)
    talk = Talk(client, "t", "agent")
    await client.threads.create(thread_id="t")
    first = await talk.send("use tools")
    await is_stuck(agent, talk)
    second = await talk.send("never mind", "interrupt")
    assert [await talk.ends(run) for run in (first, second)] == ["interrupted", "success"]
    messages = await talk.messages()
    assert [message["type"] for message in messages] == [
        *("human", "ai", "tool", "tool", "human", "ai")
    ]
    assert dict(answers(messages))["c2"] == "error"
    assert await talk.ends(await talk.send("and now?", "reject")) == "success"


async def test_a_client_that_answers_calls_itself_is_left_to_do_so(saver: ForkpointSaver) -> None:
    agent, client = agent_of(saver, parallel=False)
    talk = Talk(client, "t", "agent")
    await client.threads.create(thread_id="t")
    await talk.send("use tools")
    await is_stuck(agent, talk)
    own: Any = [
        {"type": "tool", "tool_call_id": call, "content": "no", "status": "success"}
        for call in ("c1", "c2")
    ]
    assert await talk.ends(await talk.send("never mind", "interrupt", own)) == "success"
    assert answers(await talk.messages()) == [("c1", "success"), ("c2", "success")]


async def test_a_run_that_interrupts_and_goes_on_keeps_the_calls_open(
    saver: ForkpointSaver,
) -> None:
    agent, client = agent_of(saver, parallel=False)
    talk = Talk(client, "t", "agent")
    await client.threads.create(thread_id="t")
    await talk.send("use tools")
    await is_stuck(agent, talk)
    agent.may_return.set()
    run = await client.runs.create("t", "agent", multitask_strategy="interrupt")
    assert await talk.ends(run["run_id"]) == "success"
    assert answers(await talk.messages()) == [("c1", "success"), ("c2", "success")]


AGENT_EVENTS = [nothing, the_first_is_cancelled, the_second_is_cancelled, a_third_interrupts]


@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("event", AGENT_EVENTS, ids=lambda event: event.__name__)
async def test_the_next_turn_is_taken_whatever_happens_as_a_run_interrupts(
    event: Meanwhile, every: int, store: Store, gate: Gate, gates: Gates
) -> None:
    with store.watched(gate.pass_through) as saver:
        agent, client = agent_of(saver, parallel=True)
        for stop_at in itertools.count(0, every):
            talk = Talk(client, f"t {stop_at}", "agent")
            await client.threads.create(thread_id=talk.thread_id)
            first = await talk.send("use tools")
            await is_stuck(agent, talk)
            gate.close(stop_at)
            second = asyncio.create_task(talk.send("second", "interrupt"))
            is_reached = await gate.is_reached(second)
            await let_go_on(gate, second, event(talk, first, gates))
            last = await talk.send("last", "interrupt")
            assert await talk.ends(last) == "success"
            messages = await talk.messages()
            assert messages[0]["content"] == "use tools"
            assert [call for call, _ in answers(messages)] in (["c1", "c2"], ["c2", "c1"])
            assert ThreadCatalog(saver).lease(talk.thread_id) is None
            if not is_reached:
                break
        assert stop_at > 0
        assert store.problems(saver) == []


async def test_runs_that_wait_have_their_turns_in_the_order_in_which_they_came(
    saver: ForkpointSaver, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it takes the first one long to ask for its turn, while others wait for theirs."""
    acquire, asked, calls = leases.acquire, threading.Event(), itertools.count()

    def slow_at_first(*args: Any) -> Any:
        if next(calls) == 0:
            asked.wait(0.2)  # it passes where the others wait for this one, as they should
            return acquire(*args)
        outcome = acquire(*args)
        asked.set()
        return outcome

    monkeypatch.setattr(leases, "acquire", slow_at_first)
    client = client_of(saver, chat=chat(gates))
    await client.threads.create(thread_id="t")
    talk = Talk(client, "t", "chat")
    runs = [await talk.send(text) for text in "abc"]
    assert [(await talk.joined(run))["turns"] for run in runs] == [1, 2, 3]
    assert (await talk.texts())[::2] == ["a", "b", "c"]
    assert await ThreadCatalog(saver).alease("t") is None


def stubborn(is_running: asyncio.Event, may_end: asyncio.Event) -> Any:
    """Return a graph whose node does not pass on that it is cancelled."""

    async def answer(state: Chat) -> Chat:
        if state["messages"][-1].content == "wait":
            is_running.set()
            while not may_end.is_set():
                with suppress(asyncio.CancelledError):
                    await may_end.wait()
        return {"turns": 1}

    builder = StateGraph(Chat)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile()


@pytest.mark.parametrize("how", ["interrupt", "rollback", "close"])
async def test_a_run_whose_graph_does_not_heed_that_it_is_cancelled_ends(
    how: str, saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_PATIENCE_SECONDS", 0.05)
    is_running, may_end = asyncio.Event(), asyncio.Event()
    client = client_of(saver, chat=stubborn(is_running, may_end))
    await client.threads.create(thread_id="t")
    talk = Talk(client, "t", "chat")
    first = await talk.send("wait")
    await is_running.wait()
    if how == "close":
        await client.http.client._transport.app.state.forkpoint.runs.close()
    else:
        assert await talk.ends(await talk.send("you", how)) == "success"
    assert await talk.ends(first) == "interrupted"
    may_end.set()
    while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  # LangGraph's
        await asyncio.sleep(0.005)
