"""Forks of threads with subgraphs that keep their state: what they go on with, called by their id.

`test_fork_shapes` compares them with time travels. Here is what only a fork is asked.
"""

from __future__ import annotations

import sys
import uuid
from typing import Any

import pytest
from langgraph.graph import START
from langgraph.types import Command, interrupt

from checking import Api, id_of
from forkpoint import InvalidInput
from forkpoint.saver.saver import ForkpointSaver
from graphs import RAN, StateGraph, Sums
from stateful_graphs import STATEFUL_SHAPES, asking, call
from stores import Store

# LangGraph's `interrupt` needs Python 3.11 under asyncio.
WORLDS = ("sync", "async") if sys.version_info >= (3, 11) else ("sync",)
FIRST, SECOND = "to inner 0", "to inner 1"


def thread(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


class Caller:
    """A graph that is called in one of the two worlds."""

    def __init__(self, saver: ForkpointSaver, world: str, name: str = "stateful in a node") -> None:
        self.graph = STATEFUL_SHAPES[name].build(saver)
        self.world = world

    async def call(self, given: Any, at: Any) -> Any:
        """Call the graph, and return what it asks, or else what it says."""
        RAN.clear()
        if self.world == "sync":
            output = self.graph.invoke(given, at)
        else:
            output = await self.graph.ainvoke(given, at)
        asked = sorted(one.value for one in output.get("__interrupt__", ()))
        return asked or output["items"]

    async def turn(self, at: Any) -> Any:
        """Give the graph an input, and answer its question."""
        (question,) = await self.call({"items": []}, at)
        return await self.call(Command(resume=f"to {question}"), at)

    def before_call(self, at: Any) -> Any:
        """Return the newest state in which the node is about to call the subgraph."""
        return next(one for one in self.graph.get_state_history(at) if one.next == ("call",))


@pytest.fixture(params=WORLDS)
async def two_turns(request: pytest.FixtureRequest, saver: ForkpointSaver) -> Caller:
    """A thread whose subgraph asked twice, and was answered."""
    caller = Caller(saver, request.param)
    for _ in range(2):
        await caller.turn(thread("thread"))
    return caller


@pytest.mark.parametrize("history", ["head", "path"])
async def test_a_question_that_was_answered_is_asked_again_in_a_fork_from_before_it(
    history: str, two_turns: Caller, saver: ForkpointSaver, store: Store
) -> None:
    before = two_turns.before_call(thread("thread"))
    source = list(saver.list(thread("thread")))
    fork = await Api(saver, two_turns.world).fork(before.config, history=history)

    assert await two_turns.call(None, fork) == ["inner 1"]
    assert [name for _, name in RAN] == ["call", "before", "ask"]
    assert await two_turns.call(None, fork) == ["inner 1"]  # the question waits, as any does
    assert [name for _, name in RAN] == ["call", "ask"]
    answers, log = (await two_turns.call(Command(resume="otherwise"), fork))[-2:]
    assert answers == [FIRST, "otherwise"]
    assert log == ["0 0", "2 1"]

    answers, log = (await two_turns.turn(fork))[-2:]  # what it keeps, it keeps
    assert answers == [FIRST, "otherwise", "to inner 2"]
    assert log == ["0 0", "2 1", "4 2"]
    assert list(saver.list(thread("thread"))) == source
    assert store.problems(saver) == []


async def test_a_fork_shows_the_state_that_its_subgraph_had_then(
    two_turns: Caller, saver: ForkpointSaver
) -> None:
    before = two_turns.before_call(thread("thread"))
    fork = await Api(saver, two_turns.world).fork(before.config)
    for _ in range(2):  # looking at it changes nothing
        (task,) = two_turns.graph.get_state(fork, subgraphs=True).tasks
        assert task.state.values == {"answers": [FIRST], "log": ["0 0"], "given": "0"}
        assert task.state.next == ()
    inner = list(two_turns.graph.get_state_history(task.state.config))
    assert [one.values for one in inner] == [task.state.values]
    assert await two_turns.call(None, fork) == ["inner 1"]
    (task,) = two_turns.graph.get_state(fork, subgraphs=True).tasks
    assert task.state.next == ("ask",)
    assert task.state.values == {"answers": [FIRST], "log": ["0 0", "2 1"], "given": "2"}


async def test_a_fork_of_a_fork_that_has_not_run_asks_the_same_question(
    two_turns: Caller, saver: ForkpointSaver, store: Store
) -> None:
    api = Api(saver, two_turns.world)
    first = await api.fork(two_turns.before_call(thread("thread")).config)
    again = await api.fork(first)
    await api.copy_thread(again["configurable"]["thread_id"], "copy")
    await api.trim("copy", 1)
    for one in (thread("copy"), again, first):
        assert await two_turns.call(None, one) == ["inner 1"]
        assert (await two_turns.call(Command(resume=SECOND), one))[-2:] == [
            [FIRST, SECOND],
            ["0 0", "2 1"],
        ]
    assert store.problems(saver) == []


@pytest.mark.parametrize("history", ["head", "path"])
async def test_the_step_of_a_waiting_fork_runs_again_from_the_state_before_it(
    history: str, two_turns: Caller, saver: ForkpointSaver, store: Store
) -> None:
    api = Api(saver, two_turns.world)
    await two_turns.call({"items": []}, thread("thread"))
    await api.copy_thread("thread", "copy")
    fork = await api.fork("thread", history=history)
    changed = await api.fork(fork, values={"items": ["changed"]})
    again = await api.fork(fork, history=history)
    for one in (thread("copy"), fork, again):  # by a time travel to where it waits
        at = two_turns.graph.get_state(one).config
        assert await two_turns.call(None, at) == ["inner 2"]
        assert [name for _, name in RAN] == ["call", "before", "ask"]
    assert await two_turns.call(None, changed) == ["inner 2"]
    for one in (fork, changed):
        answers, _ = (await two_turns.call(Command(resume="third"), one))[-2:]
        assert answers == [FIRST, SECOND, "third"]
    assert store.problems(saver) == []


async def test_a_subgraph_sees_an_update_of_the_fork(
    two_turns: Caller, saver: ForkpointSaver
) -> None:
    api = Api(saver, two_turns.world)
    before = two_turns.before_call(thread("thread")).config
    updated, valued = await api.fork(before), await api.fork(before, values={"items": [1] * 5})
    two_turns.graph.update_state(updated, {"items": ["more"] * 3})
    for one in (updated, valued):
        assert await two_turns.call(None, one) == ["inner 1"]
        assert (await two_turns.call(Command(resume=SECOND), one))[-1] == ["0 0", "5 1"]


async def test_under_new_values_a_subgraph_that_waits_is_called_anew(
    two_turns: Caller, saver: ForkpointSaver, store: Store
) -> None:
    """At the head of a thread, too: it was called with the old ones."""
    api = Api(saver, two_turns.world)
    assert await two_turns.call({"items": []}, thread("thread")) == ["inner 2"]
    fork = await api.fork("thread", values={"items": []})
    assert await two_turns.call(None, fork) == ["inner 2"]
    answers, log = await two_turns.call(Command(resume="third"), fork)
    assert answers == [FIRST, SECOND, "third"]
    assert log == ["0 0", "2 1", "0 2"]
    assert store.problems(saver) == []


async def test_a_thread_that_was_rolled_back_asks_again(
    two_turns: Caller, saver: ForkpointSaver, store: Store
) -> None:
    api = Api(saver, two_turns.world)
    before = id_of(two_turns.before_call(thread("thread")))
    later = [one for one in saver.history("thread") if id_of(one) > before]
    await api.rollback("thread", len(later))
    assert await two_turns.call(None, thread("thread")) == ["inner 1"]
    assert (await two_turns.call(Command(resume="otherwise"), thread("thread")))[-2:] == [
        [FIRST, "otherwise"],
        ["0 0", "2 1"],
    ]
    assert store.problems(saver) == []


async def test_a_thread_that_was_rolled_back_to_an_update_knows_nothing_of_the_step_before_it(
    two_turns: Caller, saver: ForkpointSaver, store: Store
) -> None:
    """As a fork of it, and a time travel to it: that step was begun again."""
    api = Api(saver, two_turns.world)
    assert await two_turns.call({"items": []}, thread("thread")) == ["inner 2"]
    two_turns.graph.update_state(thread("thread"), {"items": ["update"]}, as_node="__start__")
    update = two_turns.before_call(thread("thread"))
    assert update.metadata["source"] == "update"
    assert await two_turns.call(None, thread("thread")) == ["inner 2"]
    await two_turns.call(Command(resume="third"), thread("thread"))

    await api.copy_thread("thread", "traveled")
    there = {"configurable": {**update.config["configurable"], "thread_id": "traveled"}}
    fork = await api.fork(update.config)
    later = [one for one in saver.history("thread") if id_of(one) > id_of(update)]
    await api.rollback("thread", len(later))
    for one, beginning in (
        (thread("traveled"), there),
        (fork, fork),
        (thread("thread"), thread("thread")),
    ):
        assert await two_turns.call(None, beginning) == ["inner 2"]
        assert (await two_turns.call(Command(resume="third"), one))[-1] == ["0 0", "2 1", "5 2"]
    assert store.problems(saver) == []


async def test_a_subgraph_that_is_called_after_a_question_is_run_and_not_taken_for_finished(
    saver: ForkpointSaver,
) -> None:
    """Where LangGraph alone would return what the subgraph said in an earlier turn."""
    subgraph = asking("inner")

    def node(state: Sums) -> dict[str, Any]:
        return {"answers": [interrupt("first")], "items": call(subgraph, "call")}

    builder = StateGraph(Sums)
    builder.add_node("call", node)
    builder.add_edge(START, "call")
    graph = builder.compile(checkpointer=saver)
    graph.invoke({"items": []}, thread("thread"))
    graph.invoke(Command(resume="yes"), thread("thread"))
    graph.invoke(Command(resume="inner"), thread("thread"))
    graph.invoke({"items": []}, thread("thread"))
    head = graph.get_state(thread("thread"))
    newer = graph.update_state(thread("thread"), {"items": []}, as_node="call")
    assert newer["configurable"]["checkpoint_id"] > id_of(head)

    fork = saver.fork(head.config)
    assert [one.value for one in graph.invoke(None, fork)["__interrupt__"]] == ["first"]
    asked = graph.invoke(Command(resume="yes"), fork)["__interrupt__"]
    assert [one.value for one in asked] == ["inner 1"]
    done = graph.invoke(Command(resume="again"), fork)["items"]
    assert done[-2:] == [["inner", "again"], ["call 0", "call 1"]]


def asking_in_two(saver: ForkpointSaver, *, stops: bool) -> Any:
    """A subgraph that asks, in one that keeps its state, which may stop before it."""
    inmost = StateGraph(Sums)
    inmost.add_node("begin", lambda _: {"items": ["begun"]})
    inmost.add_node("ask", lambda _: {"items": [interrupt("inmost")]})
    inmost.add_edge(START, "begin")
    inmost.add_edge("begin", "ask")
    between = StateGraph(Sums)
    between.add_node("inmost", inmost.compile())
    between.add_edge(START, "inmost")
    builder = StateGraph(Sums)
    builder.add_node("first", lambda _: {"items": ["first"]})
    before = ["inmost"] if stops else None
    builder.add_node("between", between.compile(checkpointer=True, interrupt_before=before))
    builder.add_edge(START, "first")
    builder.add_edge("first", "between")
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("history", ["head", "path"])
async def test_a_subgraph_goes_on_that_waits_in_one_that_keeps_its_state_since_before_the_head(
    history: str, stops: bool, saver: ForkpointSaver, store: Store
) -> None:
    """As in the thread, which an update has moved on meanwhile."""
    graph = asking_in_two(saver, stops=stops)
    graph.invoke({"items": []}, thread("thread"))
    for _ in range(2):
        graph.update_state(thread("thread"), {"items": ["update"]}, as_node="first")
        graph.invoke(None, thread("thread"))
    graph.update_state(thread("thread"), {"items": ["update"]}, as_node="first")
    forks = [thread("thread")]
    for _ in range(2):
        forks.insert(0, saver.fork(forks[0], history=history))
    for fork in forks:
        RAN.clear()
        (asked,) = graph.invoke(None, fork)["__interrupt__"]
        assert asked.value == "inmost"
        assert graph.invoke(Command(resume="yes"), fork)["items"][-2:] == ["begun", "yes"]
        assert [name for _, name in RAN] == ["ask", "ask"]
    assert store.problems(saver) == []


async def test_a_fork_whose_id_is_given_as_no_string_says_that_it_cannot_go_on(
    two_turns: Caller, saver: ForkpointSaver
) -> None:
    """LangGraph then asks for the state of the subgraph in a way in which it cannot be told."""
    api = Api(saver, two_turns.world)
    id_ = uuid.uuid4()
    before = two_turns.before_call(thread("thread"))
    fork = await api.fork(before.config, new_thread_id=str(id_))
    with pytest.raises(InvalidInput, match=f"must be the string '{id_}'.*subgraph 'call'"):
        await two_turns.call(None, {"configurable": {"thread_id": id_}})
    assert await two_turns.call(None, fork) == ["inner 1"]
    assert (await two_turns.call(Command(resume=SECOND), fork))[-2][-1] == SECOND
