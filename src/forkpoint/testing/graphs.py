"""Graphs that run on the saver: they stop, go on, are forked in the middle, and rolled back."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, everything, thread
from forkpoint.testing.invariants import problems


class State(TypedDict):
    items: Annotated[list[str], operator.add]
    answers: Annotated[list[str], operator.add]


def question(saver: ForkpointSaver) -> Any:
    """Return a graph that asks a question beside a task that is done meanwhile."""

    def ask(_: State) -> Any:
        return {"answers": [interrupt("yes or no?")]}

    builder: Any = StateGraph(State)
    builder.add_node("before", lambda _: {"items": ["before"]})
    builder.add_node("ask", ask)
    builder.add_node("sibling", lambda _: {"items": ["sibling"]})
    builder.add_node("after", lambda _: {"items": ["after"]})
    builder.add_edge(START, "before")
    builder.add_edge("before", "ask")
    builder.add_edge("before", "sibling")
    builder.add_edge(["ask", "sibling"], "after")
    builder.add_edge("after", END)
    return builder.compile(checkpointer=saver)


class GraphContract(Contract):
    """A graph runs, waits, and is answered, in its thread and in forks of it."""

    def test_a_question_is_answered_in_the_thread_and_in_each_fork(self, api: Api) -> None:
        graph = question(api.saver)
        api.of(graph).invoke({"items": ["start"]}, thread("thread"))
        assert graph.get_state(thread("thread")).next == ("ask",)
        assert api.catalog().get("thread").status == "interrupted"
        for answer in ("yes", "no"):
            fork = api.fork("thread")
            done = api.of(graph).invoke(Command(resume=answer), fork)
            assert done["answers"] == [answer]
            assert done["items"] == ["start", "before", "sibling", "after"]
        assert graph.get_state(thread("thread")).next == ("ask",)
        assert problems(api.saver) == []

    def test_after_a_rollback_the_question_is_answered_differently(self, api: Api) -> None:
        graph = question(api.saver)
        api.of(graph).invoke({"items": []}, thread("thread"))
        asked = graph.get_state(thread("thread"))
        api.of(graph).invoke(Command(resume="yes"), thread("thread"))
        assert api.catalog().get("thread").status == "idle"
        api.rollback("thread", 2)
        state = graph.get_state(thread("thread"))
        assert (state.config, state.interrupts) == (asked.config, asked.interrupts)
        assert state.values == {"items": ["before"], "answers": []}  # the sibling runs again
        assert api.catalog().get("thread").status == "interrupted"
        done = api.of(graph).invoke(Command(resume="no"), thread("thread"))
        assert done["answers"] == ["no"]
        assert problems(api.saver) == []

    def test_runs_go_on_where_the_thread_was_left(self, api: Api) -> None:
        graph = question(api.saver)
        for n in range(2):
            api.of(graph).invoke({"items": [f"turn {n}"]}, thread("thread"))
            api.of(graph).invoke(Command(resume=f"answer {n}"), thread("thread"))
        assert graph.get_state(thread("thread")).values["answers"] == ["answer 0", "answer 1"]
        states = [graph.get_state(result.config).values for result in api.history("thread")]
        api.copy_thread("thread", "copy")
        api.trim("thread", 3)
        kept = [graph.get_state(result.config).values for result in api.history("thread")]
        assert kept == states[-3:]
        api.delete_thread("thread")
        assert everything(api.saver, "thread") == []
        copied = [graph.get_state(result.config).values for result in api.history("copy")]
        assert copied == states
        assert problems(api.saver) == []
