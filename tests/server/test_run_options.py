"""What a run is asked for is done, or refused: no part of it is passed over."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

import langgraph.errors
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import APIStatusError, NotFoundError, UnprocessableEntityError
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from calling import calling
from forkpoint import StorageBusy, ThreadCatalog
from forkpoint.catalog import leases
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from served import Chat, chat, said

needs_strict_resume = pytest.mark.skipif(
    not hasattr(langgraph.errors, "UnknownInterruptError"), reason="LangGraph is older"
)


@pytest.fixture
async def client(saver: ForkpointSaver) -> Any:
    client = LangGraphClient(calling(create_app(saver, {"chat": chat()})))
    await client.threads.create(thread_id="t")
    return client


def texts(values: Any) -> list[str]:
    return [message["content"] for message in values["messages"]]


@pytest.mark.parametrize("how", ["checkpoint_id", "checkpoint", "configurable"])
async def test_a_run_begins_at_the_checkpoint_that_is_named(how: str, client: Any) -> None:
    await client.runs.wait("t", "chat", input=said("one"))
    (head,) = await client.threads.get_history("t", limit=1)
    await client.runs.wait("t", "chat", input=said("two"))
    here = {"checkpoint_id": head["checkpoint"]["checkpoint_id"]}
    place = {
        "checkpoint_id": here,
        "checkpoint": {"checkpoint": here},
        "configurable": {"config": {"configurable": here}},
    }
    values = await client.runs.wait("t", "chat", input=said("three"), **place[how])
    assert texts(values) == ["one", "Hello one", "three", "Hello three"]


async def test_nothing_begins_at_a_checkpoint_that_is_not_there(client: Any) -> None:
    """A graph would begin anew there, and the thread go on without its history."""
    await client.runs.wait("t", "chat", input=said("one"))
    missing: Any = {"checkpoint_id": "nothing"}
    with pytest.raises(Exception, match="CheckpointNotFound: thread 't' has no checkpoint"):
        await client.runs.wait("t", "chat", input=said("two"), **missing)
    with pytest.raises(NotFoundError, match="has no checkpoint 'nothing'"):
        await client.threads.update_state("t", {"turns": 5}, **missing)
    assert texts((await client.threads.get_state("t"))["values"]) == ["one", "Hello one"]
    assert (await client.threads.get("t"))["status"] == "idle"


async def test_an_update_of_a_command_may_be_pairs(client: Any) -> None:
    await client.runs.wait("t", "chat", input=said("you"))
    values = await client.runs.wait("t", "chat", command={"update": [["turns", 5], ["turns", 10]]})
    assert values["turns"] == 16


@pytest.mark.parametrize("is_during", [True, False])
async def test_when_checkpoints_are_kept_may_be_said_as_older_clients_do(
    is_during: bool, client: Any
) -> None:
    with pytest.warns(DeprecationWarning, match="checkpoint_during"):
        await client.runs.wait("t", "chat", input=said("you"), checkpoint_during=is_during)
    assert (len(await client.threads.get_history("t")) > 1) is is_during


async def test_the_metadata_of_a_config_are_those_of_its_checkpoints(client: Any) -> None:
    config = {"metadata": {"a": 1, "b": 1}}
    await client.runs.wait("t", "chat", input=said("you"), config=config, metadata={"b": 2})
    metadata = (await client.threads.get_state("t"))["metadata"]
    assert (metadata["a"], metadata["b"]) == (1, 2)


@pytest.mark.parametrize(
    "asked",
    [
        {"after_seconds": 1},
        {"after_seconds": -1},
        {"webhook": "https://example.com/hook"},
        {"feedback_keys": ["score"]},
        {"langsmith_tracer": {"project_name": "p"}},
    ],
)
async def test_what_is_not_done_for_a_run_is_refused(asked: Any, client: Any) -> None:
    given = {"assistant_id": "chat", "input": said("you"), **asked}
    for place in ("/threads/t/runs", "/runs/wait", "/threads/t/runs/stream"):
        refused = await client.http.client.post(place, json=given)
        name = next(iter(asked))
        assert refused.status_code == 422
        assert refused.json() == {"detail": f"body.{name}: this server does not do that"}
    nothing = {**given, "after_seconds": 0, "webhook": None, "feedback_keys": []}
    nothing = {**nothing, "langsmith_tracer": None}
    assert (await client.http.client.post("/threads/t/runs/wait", json=nothing)).json()[
        "turns"
    ] == 1


async def test_no_client_says_to_nodes_who_asks(saver: ForkpointSaver) -> None:
    """`langgraph_auth_user` is what LangGraph's server says, and nodes may rely on that."""

    def tell(_: Chat, config: RunnableConfig) -> dict[str, Any]:
        given = config["configurable"]
        known = {"langgraph_auth_user", "langgraph_auth_user_id", "model"}
        return {"messages": [("ai", " ".join(sorted(known & {*given})))]}

    builder = StateGraph(Chat)
    builder.add_node("tell", tell)
    builder.add_edge(START, "tell")
    forged = {"langgraph_auth_user": {"identity": "admin"}, "langgraph_auth_user_id": "admin"}
    config = {"configurable": {"model": "m", **forged}}
    client = LangGraphClient(calling(create_app(saver, {"chat": builder.compile()})))
    for thread_id in (None, "t"):
        options: Any = {"input": said("you"), "config": config, "if_not_exists": "create"}
        assert texts(await client.runs.wait(thread_id, "chat", **options)) == ["you", "model"]
    assert "langgraph_auth_user_id" not in (await client.threads.get("t"))["metadata"]


async def test_a_run_without_a_thread_has_one_of_its_own(
    client: Any, saver: ForkpointSaver
) -> None:
    made: list[Any] = []
    options: Any = {"input": said("you"), "on_run_created": made.append}
    run = await client.runs.create(None, "chat", **options)
    values = await client.runs.join(run["thread_id"], run["run_id"])
    assert texts(values) == ["you", "Hello you"]
    kept = await client.runs.create(None, "chat", **options, on_completion="keep")
    await client.runs.join(kept["thread_id"], kept["run_id"])
    await client.runs.wait(None, "chat", **options)
    assert [each["run_id"] for each in made[:2]] == [run["run_id"], kept["run_id"]]
    assert len(made) == 3
    left = {thread.thread_id for thread in ThreadCatalog(saver).search()}
    assert left == {"t", kept["thread_id"]}
    command: Any = {"update": said("me"), "goto": "answer"}
    assert "Hello me" in texts(await client.runs.wait(None, "chat", command=command))
    for bad in ({"command": {"resume": 1}}, {"checkpoint_id": "x"}):
        with pytest.raises(UnprocessableEntityError):
            await client.runs.create(None, "chat", **bad)


async def test_lists_in_addresses_may_be_those_of_the_client_in_javascript(client: Any) -> None:
    given: Any = {"input": said("you"), "stream_mode": ["values", "updates", "custom"]}
    run = await client.runs.create("t", "chat", **given)
    await client.runs.join("t", run["run_id"])

    async def sent(**query: Any) -> set[str]:
        place = f"/threads/t/runs/{run['run_id']}/stream"
        answer = await client.http.client.get(place, params=query)
        return {line[7:] for line in answer.text.splitlines() if line.startswith("event: ")}

    modes = ["values", "updates"]
    assert await sent(stream_mode=json.dumps(modes)) == {"metadata", *modes}
    assert await sent(stream_mode=modes) == await sent(stream_mode="[]") == {"metadata", *modes}
    assert await sent(stream_mode="updates") == {"metadata", "updates"}
    for bad in ('["nothing"]', "[", '["values"'):
        answer = await client.http.client.get(
            f"/threads/t/runs/{run['run_id']}/stream", params={"stream_mode": bad}
        )
        assert answer.status_code == 422
    chosen = {"run_id": run["run_id"], "status": "success"}
    for select in (["run_id", "status"], '["run_id", "status"]'):
        params = {"select": select}
        assert (await client.http.client.get("/threads/t/runs", params=params)).json() == [chosen]
    assert await client.runs.list("t", select=["run_id", "status"]) == [chosen]
    with pytest.raises(UnprocessableEntityError):
        await client.runs.list("t", select=["nothing"])


async def asked_by(client: Any) -> str:
    """Have the thread wait for an answer, and return the id of what is asked."""
    await client.runs.wait("t", "chat", input=said("ask"))
    (interrupts,) = (await client.threads.get("t"))["interrupts"].values()
    return str(interrupts[0]["id"])


@needs_strict_resume
async def test_a_second_answer_to_one_question_is_none(client: Any) -> None:
    assert (await client.http.get("/info"))["flags"]["strict_resume"]
    asked = await asked_by(client)
    answer = {"command": {"resume": {asked: "yes"}}, "strict_resume": True}
    assert texts(await client.runs.wait("t", "chat", **answer))[-1] == "You said yes."
    before = await client.threads.get_history("t")
    with pytest.raises(Exception, match="UnknownInterruptError"):
        await client.runs.wait("t", "chat", **answer)
    assert await client.threads.get_history("t") == before

    asked = await asked_by(client)
    params = {"interrupt_id": asked, "response": "no"}
    command = {"id": 1, "method": "input.respond", "params": params}
    both = [client.http.client.post("/threads/t/commands", json=command) for _ in range(2)]
    told = [answer.json()["type"] for answer in await asyncio.gather(*both)]
    runs = await client.runs.list("t", limit=told.count("success"))
    ends = [await client.runs.join("t", run["run_id"]) for run in runs]
    assert [texts(end)[-1] for end in ends if "messages" in end] == ["You said no."]
    assert told[0] == "success"
    for end in ends:
        assert "messages" in end or end["__error__"]["error"] == "UnknownInterruptError"


@needs_strict_resume
async def test_a_form_whose_question_was_answered_says_so(client: Any) -> None:
    asked = await asked_by(client)
    form = {"thread_id": "t", "interrupt_id": asked, "answer": "yes"}
    http, origin = client.http.client, {"origin": "http://localhost"}
    assert (await http.post("/pages/answer", data=form, headers=origin)).status_code == 303
    refused = await http.post("/pages/answer", data=form, headers=origin)
    assert refused.status_code == 409
    assert "does not wait for this answer" in refused.text


async def test_runs_without_a_thread_begin_together_or_not_at_all(
    client: Any, saver: ForkpointSaver
) -> None:
    given: Any = {"assistant_id": "chat", "input": said("you")}
    kept = {**given, "on_completion": "keep"}
    runs = await client.runs.create_batch([given, kept])
    assert [run["status"] for run in runs] == ["pending"] * 2  # as each began
    ends = [await client.runs.join(run["thread_id"], run["run_id"]) for run in runs]
    assert [texts(values) for values in ends] == [["you", "Hello you"]] * 2
    left = {"t", runs[1]["thread_id"]}
    assert {thread.thread_id for thread in ThreadCatalog(saver).search()} == left
    for bad in (
        {"assistant_id": "nobody"},
        {**given, "checkpoint_id": "x"},
        {**given, "thread_id": "t"},
        {"input": said("you")},
    ):
        with pytest.raises(UnprocessableEntityError):
            await client.runs.create_batch([kept, bad])
    for none in ([], {}, None):
        refused = await client.http.client.post("/runs/batch", json=none)
        assert refused.status_code == 422
    assert {thread.thread_id for thread in ThreadCatalog(saver).search()} == left


async def test_if_one_of_several_runs_cannot_begin_nothing_is_left_of_the_others(
    client: Any, saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, calls = leases.acquire, itertools.count(1)

    def refuse_the_third(*args: Any) -> Any:
        if next(calls) == 3:
            raise StorageBusy("the store is locked")
        return acquire(*args)

    monkeypatch.setattr(leases, "acquire", refuse_the_third)
    given: Any = {"assistant_id": "chat", "input": said("you")}
    with pytest.raises(APIStatusError, match="locked"):
        await client.runs.create_batch([given, {**given, "on_completion": "keep"}, given])
    assert [thread.thread_id for thread in ThreadCatalog(saver).search()] == ["t"]


class Settings(TypedDict, total=False):
    model: str


@dataclass
class Defaults:
    model: str = "small"


@dataclass
class Needed:
    model: str


class Opaque:
    """What has no schema."""


@dataclass
class OpaqueDefaults(Defaults):
    kept: ClassVar[int] = 1
    tool: Opaque = field(default_factory=Opaque, repr=False)


@dataclass
class Nested(Defaults):
    inner: Nested | None = field(default=None, repr=False)


class OpaqueModel(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str = "small"
    tool: Opaque | None = Field(None, repr=False)


SCHEMAS = [Settings, Defaults, Needed, OpaqueDefaults, Nested, OpaqueModel, None]


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_nodes_have_a_context_whether_or_not_the_client_says_one(
    schema: Any, saver: ForkpointSaver
) -> None:
    """As on LangGraph's server: older clients say it in the config, and defaults are relied on."""

    def tell(_: Chat, runtime: Runtime[Any]) -> dict[str, Any]:
        context = runtime.context
        if isinstance(context, Defaults | Needed | OpaqueModel):
            context = {"model": context.model}
        return {"messages": [("ai", str(context))]}

    builder = StateGraph(Chat, context_schema=schema)
    builder.add_node("tell", tell)
    builder.add_edge(START, "tell")
    client = LangGraphClient(calling(create_app(saver, {"chat": builder.compile()})))

    async def told(**options: Any) -> str:
        return texts(await client.runs.wait(None, "chat", input=said("you"), **options))[-1]

    nothing = None if schema in (Settings, Needed, None) else {"model": "small"}
    assert await told() == await told(context={}) == str(nothing)
    assert await told(context={"model": "large"}) == str({"model": "large"})
    older = {"configurable": {"model": "large"}}
    assert (
        await told(config=older) == await told(config=older, context={}) == str({"model": "large"})
    )
    more = {"model": "large", "other": 1}
    known = more if schema is None else {"model": "large"}
    assert await told(context=more) == await told(config={"configurable": more}) == str(known)
    other = {"other": 1} if schema is None else nothing
    assert await told(config={"configurable": {"other": 1}}) == str(other)


class Traces(BaseCallbackHandler):
    """Notes the ids under which runs are traced."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def on_chain_start(
        self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any
    ) -> None:
        if parent_run_id is None:
            self.ids.append(str(run_id))


async def test_nodes_and_traces_are_told_which_run_it_is(saver: ForkpointSaver) -> None:
    def tell(_: Chat, config: RunnableConfig) -> dict[str, Any]:
        given = config["configurable"]
        names = ("run_id", "graph_id", "assistant_id", "thread_id")
        return {"messages": [("ai", " ".join(given[name] for name in names))]}

    builder = StateGraph(Chat)
    builder.add_node("tell", tell)
    builder.add_edge(START, "tell")
    traces = Traces()
    graph = builder.compile().with_config({"callbacks": [traces]})
    client = LangGraphClient(calling(create_app(saver, {"chat": graph})))
    await client.threads.create(thread_id="t")
    config = {"configurable": {"run_id": "forged", "graph_id": "forged"}}
    run = await client.runs.create("t", "chat", input=said("you"), config=config)
    values = await client.runs.join("t", run["run_id"])
    assert texts(values)[-1] == f"{run['run_id']} chat {run['assistant_id']} t"
    assert traces.ids == [run["run_id"]]


async def test_an_empty_command_is_none(client: Any) -> None:
    given = {"assistant_id": "chat", "input": said("you"), "command": {}}
    answer = await client.http.client.post("/threads/t/runs/wait", json=given)
    assert texts(answer.json()) == ["you", "Hello you"]
    nothing = {"assistant_id": "chat", "command": {"resume": None}}
    answer = await client.http.client.post("/threads/t/runs/wait", json=nothing)
    assert texts(answer.json()) == ["you", "Hello you"]
    for command in ({}, {"resume": None}):
        step = {"values": said("one"), "command": command, "as_node": "answer"}
        made = await client.threads.create(graph_id="chat", supersteps=[{"updates": [step]}])
        assert texts(made["values"]) == ["one"]
