"""Threads that wait for several answers, beside tasks that go on, or ask a long question."""

from __future__ import annotations

import operator
from typing import Annotated, Any

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from langgraph_sdk.client import LangGraphClient
from typing_extensions import TypedDict

from calling import calling
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app


class Answers(TypedDict, total=False):
    heard: Annotated[list[str], operator.add]


def ask(question: str) -> Any:
    def node(_: Answers) -> Answers:
        return {"heard": [f"{question[:1]}: {interrupt(question)}"]}

    return node


def go_on(_: Answers) -> Answers:
    return {"heard": ["on"]}


LONG = "C" * 100_000


def graph_of(**nodes: Any) -> Any:
    builder = StateGraph(Answers)
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(START, name)
    return builder.compile()


@pytest.fixture
async def client(saver: ForkpointSaver) -> Any:
    graphs = {
        "several": graph_of(a=ask("A"), b=ask("B"), c=go_on),
        "long": graph_of(a=ask(LONG)),
    }
    client = LangGraphClient(calling(create_app(saver, graphs)))
    for name in graphs:
        await client.threads.create(thread_id=name, graph_id=name)
    return client


def asked(values: Any) -> dict[str, str]:
    return {each["value"]: each["id"] for each in values.get("__interrupt__", ())}


async def test_all_that_a_run_waits_for_is_in_its_last_state(client: Any) -> None:
    values = await client.runs.wait("several", "several", input={"heard": []})
    questions = asked(values)
    assert list(questions) == ["A", "B"]
    run = (await client.runs.list("several"))[0]
    assert asked(await client.runs.join("several", run["run_id"])) == questions
    values = await client.runs.wait(
        "several", "several", command={"resume": {questions["A"]: "yes"}}
    )
    assert asked(values) == {"B": questions["B"]}
    values = await client.runs.wait(
        "several", "several", command={"resume": {questions["B"]: "no"}}
    )
    assert values == {"heard": ["A: yes", "B: no", "on"]}


async def test_a_run_beside_whose_question_a_task_goes_on_is_interrupted(client: Any) -> None:
    run = {"assistant_id": "several", "input": {"heard": []}}
    command = {"id": 1, "method": "run.start", "params": run}
    http = client.http.client
    started = (await http.post("/threads/several/commands", json=command)).json()
    await client.runs.join("several", started["result"]["run_id"])
    streams = list(http._transport.app.state.forkpoint.runs._streams.values())
    (ends,) = [
        event.data["event"]
        for _, _, event in streams[-1].events._entries
        if event.method == "lifecycle" and not event.namespace and event.data["event"] != "running"
    ]
    assert ends == "interrupted"


async def test_a_long_question_is_shown_and_answered(client: Any) -> None:
    http, origin = client.http.client, {"origin": "http://localhost"}
    for how in ("command", "page"):
        values = await client.runs.wait("long", "long", input={"heard": []})
        (question,) = values["__interrupt__"]
        (interrupts,) = (await client.threads.get("long"))["interrupts"].values()
        assert [(each["id"], each["value"]) for each in interrupts] == [(question["id"], LONG)]
        if how == "command":
            params = {"interrupt_id": question["id"], "response": how}
            command = {"id": 1, "method": "input.respond", "params": params}
            answer = (await http.post("/threads/long/commands", json=command)).json()
            assert answer["type"] == "success"
            run = (await client.runs.list("long", limit=1))[0]
            await client.runs.join("long", run["run_id"])
        else:
            page = (await http.get("/pages/thread", params={"thread_id": "long"})).text
            assert f'name="interrupt_id" value="{question["id"]}"' in page
            form = {"thread_id": "long", "interrupt_id": question["id"], "answer": how}
            assert (await http.post("/pages/answer", data=form, headers=origin)).status_code == 303
        heard = (await client.threads.get("long"))["values"]["heard"]
        assert heard[-1] == f"C: {how}"
