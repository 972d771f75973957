"""Runs that end between calls of tools and their answers, and the turn after them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.types import Command

from agents import CALLS, Agent, Chat, Plain, Rebuilt, Replaced, Snapshots, refuse_unanswered
from checking import Api, config, put, value_of
from forkpoint import StaleLease, ThreadCatalog
from forkpoint.catalog.tool_calls import unanswered
from forkpoint.saver.saver import ForkpointSaver
from stores import Store

THREAD = config()
LIMIT_SECONDS = 60  # of what takes no time: it only ends a test that hangs


SAYS_CANCELLED = "This call was cancelled: its run ended before there was an answer."


async def stuck(agent: Agent, config: Any, *, has_answer: bool = False) -> asyncio.Task[Any]:
    """Run until a tool does not return, and what was before is stored."""
    run = asyncio.create_task(agent.graph.ainvoke(agent.input("use tools"), config))

    async def look() -> None:
        await agent.is_running.wait()
        while True:
            snapshot = await agent.graph.aget_state(THREAD)
            is_stored = snapshot.next and snapshot.next[0].startswith("tool")
            if is_stored and (not has_answer or snapshot.values["messages"][-1].type == "tool"):
                return
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), LIMIT_SECONDS)
    return run


async def entered(lease: Any, world: str) -> Any:
    return lease.__enter__() if world == "sync" else await lease.__aenter__()


async def left(lease: Any, world: str) -> None:
    if world == "sync":
        lease.__exit__(None, None, None)
    else:
        await lease.__aexit__(None, None, None)


def ways() -> Any:
    """Each kind of channel for messages, and whether each call has a task of its own."""
    for state in (Chat, Plain, Replaced, Rebuilt, Snapshots):
        for parallel in (False, True):
            is_often = state is Rebuilt or (state, parallel) in (
                *((Chat, True), (Replaced, False), (Snapshots, False)),
            )
            if (state, parallel) != (Replaced, True):  # two answers at once need a reducer
                marks = () if is_often else pytest.mark.slow
                yield pytest.param(state, parallel, marks=marks)


@pytest.mark.parametrize(("state", "parallel"), list(ways()))
@pytest.mark.in_turns
async def test_after_a_run_was_cancelled_the_next_turn_is_taken(
    state: Any, parallel: bool, api: Api, store: Store
) -> None:
    catalog = ThreadCatalog(api.saver)
    agent = Agent(api.saver, state, parallel=parallel)
    first = await entered(catalog.run("thread"), api.world)
    run = await stuck(agent, first.config, has_answer=parallel)
    second = await entered(catalog.run("thread", if_busy="cancel"), api.world)
    snapshot = await agent.graph.aget_state(THREAD)
    assert snapshot.next == ()
    answers = {
        message.tool_call_id: message
        for message in snapshot.values["messages"]
        if message.type == "tool"
    }
    assert answers.keys() == {"c1", "c2"}
    assert (answers["c2"].status, answers["c2"].content) == ("error", SAYS_CANCELLED)
    assert answers["c2"].name == "slow"
    assert answers["c1"].content == ("returned" if parallel else SAYS_CANCELLED)
    if api.world == "sync":
        assert second.answer_tool_calls() == []
    else:
        assert await second.aanswer_tool_calls() == []
    agent.may_return.set()
    with pytest.raises(StaleLease):
        await run
    messages = snapshot.values["messages"]
    done = await agent.graph.ainvoke(agent.input("never mind", messages), second.config)
    refuse_unanswered(done["messages"])
    assert [message.type for message in done["messages"]] == [
        "human",
        "ai",
        "tool",
        "tool",
        "human",
        "ai",
    ]
    await left(second, api.world)
    await left(first, api.world)
    assert store.problems(api.saver) == []


@pytest.mark.parametrize("end", ["cancelled", "failed"])
@pytest.mark.in_turns
async def test_calls_of_a_run_that_ended_by_itself_are_answered_on_request(
    end: str, api: Api, store: Store
) -> None:
    agent = Agent(api.saver)
    run = await stuck(agent, THREAD)
    if end == "cancelled":
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    else:
        agent.error = ValueError("broken")
        agent.may_return.set()
        with pytest.raises(ValueError, match="broken"):
            await run
    lease = await entered(ThreadCatalog(api.saver).run("thread", if_busy="cancel"), api.world)
    before = await agent.graph.aget_state(THREAD)
    assert before.next == ("tools",)  # it may be what the run is to go on with
    unanswered_fork = api.saver.fork("thread")
    with pytest.raises(AssertionError, match="calls without an answer"):
        await agent.graph.ainvoke(agent.input("never mind"), unanswered_fork)
    answer = lease.answer_tool_calls if api.world == "sync" else lease.aanswer_tool_calls
    answered = answer() if api.world == "sync" else await answer()
    assert answered == ["c1", "c2"]
    done = await agent.graph.ainvoke(agent.input("never mind"), lease.config)
    refuse_unanswered(done["messages"])
    await left(lease, api.world)
    thread = ThreadCatalog(api.saver).get("thread")
    assert thread is not None
    assert thread.status == "idle"
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_thread_that_waits_for_a_person_is_left_alone(api: Api, store: Store) -> None:
    catalog = ThreadCatalog(api.saver)
    agent = Agent(api.saver)
    agent.asks = True
    first = await entered(catalog.run("thread"), api.world)
    await agent.graph.ainvoke(agent.input("use tools"), first.config)
    before = await agent.graph.aget_state(THREAD)
    second = await entered(catalog.run("thread", if_busy="cancel"), api.world)
    assert await agent.graph.aget_state(THREAD) == before
    agent.may_return.set()
    done = await agent.graph.ainvoke(Command(resume="yes"), second.config)
    assert [message.content for message in done["messages"] if message.type == "tool"] == [
        "returned"
    ] * 2
    await left(second, api.world)
    await left(first, api.world)


@pytest.mark.in_turns
async def test_nothing_is_stored_without_an_open_call(api: Api, store: Store) -> None:
    catalog = ThreadCatalog(api.saver)
    agent = Agent(api.saver)
    empty = await entered(catalog.run("empty"), api.world)
    other = await entered(catalog.run("empty", if_busy="cancel"), api.world)
    assert (catalog.stats("empty").checkpoints, other.answer_tool_calls()) == (0, [])
    agent.may_return.set()
    first = await entered(catalog.run("thread"), api.world)
    await agent.graph.ainvoke(agent.input("use tools"), first.config)
    before = await agent.graph.aget_state(THREAD)
    second = await entered(catalog.run("thread", if_busy="cancel"), api.world)
    assert await agent.graph.aget_state(THREAD) == before
    for lease in (empty, other, first, second):
        await left(lease, api.world)
    with pytest.raises(StaleLease):
        second.answer_tool_calls()


def as_openai_has_it(*ids: str) -> Any:
    calls = [{"id": id_, "type": "function", "function": {"name": "f"}} for id_ in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], []),
        ([HumanMessage("Hi")], []),
        ([AIMessage("Hi")], []),
        ([AIMessage("", tool_calls=CALLS)], ["c1", "c2"]),
        ([AIMessage("", tool_calls=CALLS), ToolMessage("", tool_call_id="c2")], ["c1"]),
        ([AIMessage("", tool_calls=CALLS), HumanMessage("Hi")], []),  # too late
        ([as_openai_has_it("a", "b"), {"role": "tool", "tool_call_id": "a"}], ["b"]),
        ([{"type": "ai", "tool_calls": CALLS[:1]}], ["c1"]),
        ([{"role": "assistant", "tool_calls": None}], []),
        ([{"role": "assistant", "tool_calls": [{"name": "no id"}]}], []),
        ([1, None, "text", {"tool_calls": CALLS}], []),
        ([as_openai_has_it("a"), 1], []),
    ],
)
def test_the_last_calls_are_looked_at(messages: list[Any], expected: list[str]) -> None:
    assert [id_ for _, id_, _ in unanswered(messages)] == expected


@pytest.mark.in_turns
def test_messages_that_are_mappings_are_answered_alike(saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    message = {"type": "ai", "content": "", "tool_calls": CALLS[:1]}
    put(saver, {"a": [as_openai_has_it("x")], "b": [message], "n": [1]})
    with catalog.run("thread") as lease:
        assert lease.answer_tool_calls() == ["x", "c1"]
    (head, _) = saver.list(THREAD)
    values = value_of(head)
    assert values["a"][1:] == [{"role": "tool", "tool_call_id": "x", "content": SAYS_CANCELLED}]
    (answer,) = values["b"][1:]
    assert (answer["type"], answer["tool_call_id"], answer["status"]) == ("tool", "c1", "error")
    assert values["n"] == [1]
