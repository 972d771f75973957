"""Runs as a chat page needs them: streamed, resumed, made again, cancelled, one at a time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph.graph import START, StateGraph
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import (
    APIStatusError,
    ConflictError,
    NotFoundError,
    UnprocessableEntityError,
)
from pydantic import BaseModel
from starlette.requests import Request
from typing_extensions import TypedDict

from calling import calling_at
from forkpoint import StorageBusy, StorageUnavailable, ThreadCatalog
from forkpoint.catalog import leases
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import ApiKeys, create_app
from forkpoint.server.assistants import Assistant
from forkpoint.server.bodies import NewRun
from forkpoint.server.requests import RequestScope, Server
from forkpoint.server.run import Run, RunOptions
from forkpoint.server.runs import Runs
from served import Chat, Client, Gates, chat, said, serving
from servers import PATIENCE_SECONDS
from stores import Store


async def entered(gates: Gates) -> None:
    """Wait until a run is in the middle of its node."""
    assert await asyncio.to_thread(gates.entered.acquire, timeout=PATIENCE_SECONDS)


HTTP = {"type": "http", "method": "POST", "path": "/", "headers": []}


def names(parts: Any) -> list[str]:
    return [part.event for part in parts]


async def test_a_run_streams_in_several_ways_at_once(client: Client) -> None:
    await client.threads.create(thread_id="t")
    parts = await client.runs.stream(
        "t", "chat", input=said("you"), stream_mode=["values", "messages", "updates", "tasks"]
    )
    assert parts[0].event == "metadata"
    assert parts[0].data["attempt"] == 1
    kinds = names(parts)
    assert kinds.index("messages/metadata") < kinds.index("messages/partial")
    texts = [part.data[0]["content"] for part in parts if part.event == "messages/partial"]
    assert texts[-1] == "Hello you"
    assert all(text == "Hello you"[: len(text)] for text in texts)
    assert next(p.data for p in parts if p.event == "updates")["answer"]["turns"] == 1
    last = [part.data for part in parts if part.event == "values"][-1]
    assert last["messages"][-1]["content"] == "Hello you"
    assert kinds.count("tasks") == 2
    assert last == (await client.threads.get("t"))["values"]


async def test_tokens_come_as_pairs_where_these_are_asked_for(client: Client) -> None:
    await client.threads.create(thread_id="t")
    parts = await client.runs.stream(
        "t", "chat", input=said("you"), stream_mode=["messages-tuple", "custom", "debug"]
    )
    pairs = [part.data for part in parts if part.event == "messages"]
    assert "".join(message["content"] for message, _ in pairs) == "Hello you"
    assert {metadata["langgraph_node"] for _, metadata in pairs} == {"answer"}
    assert "values" not in names(parts)


async def test_a_conversation_with_an_interrupt_goes_on_after_a_restart(
    saver: ForkpointSaver, world: str
) -> None:
    with serving(create_app(saver, {"chat": chat()})) as address:
        client = Client(address, world)
        parts = await client.runs.stream(
            "t", "chat", input=said("ask"), if_not_exists="create", stream_mode="values"
        )
        assert parts[-1].data["__interrupt__"][0]["value"] == {"question": "sure?"}
    with serving(create_app(saver, {"chat": chat()})) as address:
        client = Client(address, world)
        parts = await client.runs.stream("t", "chat", command={"resume": "no"})
        assert parts[-1].data["messages"][-1]["content"] == "You said no."
        states = await client.threads.get_history("t")
        asked = next(state for state in states if state["next"] == ["__start__"])
        again = await client.runs.wait(
            "t", "chat", input=said("you"), checkpoint=asked["checkpoint"]
        )
        assert [message["content"] for message in again["messages"]] == ["you", "Hello you"]


async def test_a_failed_run_says_what_failed(client: Client) -> None:
    await client.threads.create(thread_id="t")
    parts = await client.runs.stream("t", "chat", input=said("fail"))
    assert (parts[-1].event, parts[-1].data) == (
        "error",
        {"error": "ValueError", "message": "broken"},
    )
    assert (await client.runs.list("t"))[0]["status"] == "error"


@pytest.mark.parametrize("bad", [{"assistant_id": "nobody"}, {"stream_mode": "nothing"}])
async def test_a_run_that_cannot_begin_stores_nothing(bad: Any, client: Client) -> None:
    given: Any = {"assistant_id": "chat", "input": said("you"), "if_not_exists": "create", **bad}
    with pytest.raises((UnprocessableEntityError, APIStatusError)):
        await client.runs.stream("t", **given)
    assert await client.threads.count() == 0


async def test_a_run_needs_its_thread(client: Client) -> None:
    with pytest.raises((NotFoundError, httpx.HTTPStatusError)):
        await client.runs.wait("nobody", "chat", input=said("you"))
    assert (await client.runs.wait(None, "chat", input=said("you")))["turns"] == 1
    parts = await client.runs.stream(None, "chat", input=said("you"))
    assert parts[-1].data["turns"] == 1
    assert await client.threads.count() == 0


@pytest.fixture
def busy(address: str) -> Any:
    return get_client(url=address)


async def begin(client: Any, text: str, **options: Any) -> Any:
    await client.threads.create(thread_id="t", if_exists="do_nothing")
    return await client.runs.create("t", "chat", input=said(text), **options)


async def test_a_second_run_is_rejected_or_waits(busy: Any, gates: Gates) -> None:
    first = await begin(busy, "wait")
    await entered(gates)
    with pytest.raises(ConflictError):
        await begin(busy, "you", multitask_strategy="reject")
    with pytest.raises(ConflictError):
        await busy.threads.update_state("t", {"turns": 1})
    second = await begin(busy, "you", multitask_strategy="enqueue")
    assert (await busy.threads.get("t"))["status"] == "busy"
    assert (await busy.runs.get("t", second["run_id"]))["status"] == "pending"
    gates.left.release()
    assert (await busy.runs.join("t", first["run_id"]))["turns"] == 1
    assert (await busy.runs.join("t", second["run_id"]))["turns"] == 2


@pytest.mark.parametrize(("strategy", "left"), [("interrupt", 3), ("rollback", 2)])
async def test_a_second_run_ends_the_first(
    strategy: Any, left: int, busy: Any, gates: Gates
) -> None:
    first = await begin(busy, "wait")
    await entered(gates)
    second = await begin(busy, "you", multitask_strategy=strategy)
    values = await busy.runs.join("t", second["run_id"])
    assert len(values["messages"]) == left
    assert "__error__" in await busy.runs.join("t", first["run_id"])
    assert (await busy.runs.get("t", first["run_id"]))["status"] == "interrupted"


@pytest.mark.parametrize("how", ["ids", "all", "pending"])
async def test_runs_are_cancelled_together(how: str, busy: Any, gates: Gates) -> None:
    first = await begin(busy, "wait")
    await entered(gates)
    second = await begin(busy, "you", multitask_strategy="enqueue")
    ids = [first["run_id"], second["run_id"]]
    if how == "ids":
        await busy.runs.cancel_many(thread_id="t", run_ids=[*ids, "unknown"])
    else:
        await busy.runs.cancel_many(status=how)
    gates.left.release()
    ends = [await busy.runs.join("t", run_id) for run_id in ids]
    assert ["__error__" in end for end in ends] == [how != "pending", True]
    await busy.runs.cancel_many(status="all")  # there is none
    with pytest.raises(NotFoundError):
        await busy.runs.cancel_many(thread_id="t", run_ids=ids)
    for unclear in ({}, {"run_ids": ids}, {"status": "all", "thread_id": "t"}):
        with pytest.raises(UnprocessableEntityError, match="either a status"):
            await busy.runs.cancel_many(**unclear)


@pytest.mark.parametrize("how", ["one", "all"])
async def test_a_run_is_taken_back_though_its_thread_was_deleted_elsewhere(
    how: str, busy: Any, gates: Gates, saver: ForkpointSaver
) -> None:
    run = await begin(busy, "wait")
    await entered(gates)
    await saver.adelete_thread("t")
    if how == "one":
        await busy.runs.cancel("t", run["run_id"], action="rollback")
    else:
        await busy.runs.cancel_many(status="all", action="rollback")
    assert (await busy.runs.join("t", run["run_id"]))["__error__"]["error"] == "UserInterrupt"


async def test_a_run_that_cannot_be_taken_back_keeps_no_other_from_that(
    gates: Gates, saver: ForkpointSaver, store: Store
) -> None:
    client = local_client(create_app(saver, {"chat": chat(gates)}))
    runs = {}
    for thread_id in "ab":
        await client.threads.create(thread_id=thread_id)
        runs[thread_id] = await client.runs.create(thread_id, "chat", input=said("wait"))
        await entered(gates)
    store.change("threads", store.thread("b").key, checksums=b"damaged")
    with pytest.raises(APIStatusError, match="record of thread 'b'"):
        await client.runs.cancel_many(status="all", action="rollback")
    gates.left.release(2)
    ends = {name: await client.runs.join(name, run["run_id"]) for name, run in runs.items()}
    assert (ends["a"]["__error__"]["error"], ends["b"]["turns"]) == ("UserInterrupt", 1)


@pytest.mark.parametrize(("action", "left"), [("interrupt", 1), ("rollback", 0)])
async def test_a_run_is_cancelled(action: Any, left: int, busy: Any, gates: Gates) -> None:
    run = await begin(busy, "wait")
    await entered(gates)
    await busy.runs.cancel("t", run["run_id"], wait=True, action=action)
    assert (await busy.runs.get("t", run["run_id"]))["status"] == "interrupted"
    values = (await busy.threads.get("t"))["values"] or {"messages": []}
    assert len(values["messages"]) == left
    with pytest.raises(NotFoundError):
        await busy.runs.cancel("t", run["run_id"])
    await busy.runs.delete("t", run["run_id"])
    assert (await begin(busy, "you", multitask_strategy="reject"))["status"] in (
        "pending",
        "running",
    )


async def test_a_client_that_goes_does_not_harm_the_run(
    address: str, busy: Any, gates: Gates
) -> None:
    await busy.threads.create(thread_id="t")
    async with (
        calling_at(address) as raw,
        raw.stream(
            "POST",
            "/threads/t/runs/stream",
            json={"assistant_id": "chat", "input": said("wait"), "stream_mode": ["values"]},
        ) as answer,
    ):
        place = answer.headers["Content-Location"]
        assert answer.headers["Location"] == f"{place}/stream"
        await entered(gates)
    gates.left.release()
    run_id = place.rpartition("/")[2]
    assert (await busy.runs.join("t", run_id))["turns"] == 1
    parts = [part async for part in busy.runs.join_stream("t", run_id)]
    assert names(parts) == ["metadata", "values", "values"]
    later = [part async for part in busy.runs.join_stream("t", run_id, last_event_id="2")]
    assert later == parts[2:]


async def test_a_client_may_ask_that_its_run_ends_with_it(
    address: str, busy: Any, gates: Gates
) -> None:
    await busy.threads.create(thread_id="t")
    given = {"assistant_id": "chat", "input": said("wait"), "on_disconnect": "cancel"}
    async with (
        calling_at(address) as raw,
        raw.stream("POST", "/threads/t/runs/stream", json=given) as answer,
    ):
        run_id = answer.headers["Content-Location"].rpartition("/")[2]
        await entered(gates)
    ended = await busy.runs.join("t", run_id)
    assert ended == {"__error__": {"error": "UserInterrupt", "message": "the run was cancelled"}}


async def test_who_joins_a_thread_sees_its_later_runs(busy: Any, gates: Gates) -> None:
    await busy.threads.create(thread_id="t")
    stream = await busy.threads.join_stream("t")
    following = asyncio.create_task(anext(stream))
    run = await begin(busy, "wait")
    part = await following
    gates.left.release()
    assert (part.event, part.data["run_id"]) == ("metadata", run["run_id"])
    await stream.aclose()


async def test_who_joins_a_thread_may_come_back_and_choose(busy: Any, client: Client) -> None:
    await busy.threads.create(thread_id="t")
    all_parts = await busy.threads.join_stream("t", last_event_id="-")
    modes: Any = {"stream_mode": ["lifecycle", "state_update"], "last_event_id": "-"}
    states = await busy.threads.join_stream("t", **modes)
    run = await begin(busy, "you")
    parts = [await anext(all_parts) for _ in range(4)]
    assert names(parts) == ["metadata", "values", "values", "metadata"]
    assert parts[3].data == {"status": "run_done", "run_id": run["run_id"]}
    again = await busy.threads.join_stream("t", last_event_id=parts[1].id)
    assert [await anext(again) for _ in range(2)] == parts[2:]
    await client.threads.update_state("t", {"turns": 5}, as_node="answer")
    told = [await anext(states) for _ in range(3)]
    assert names(told) == ["metadata", "metadata", "state_update"]
    assert told[2].data["state"] == await busy.threads.get_state("t")
    for stream in (states, all_parts, again):
        await stream.aclose()
    for bad in ({"stream_mode": "nothing"}, {"last_event_id": "x"}):
        with pytest.raises(UnprocessableEntityError):
            await anext(await busy.threads.join_stream("t", **bad))


async def test_a_run_without_a_thread_leaves_none_if_its_client_goes(
    address: str, busy: Any, gates: Gates, saver: ForkpointSaver
) -> None:
    given = {"assistant_id": "chat", "input": said("wait")}
    async with (
        calling_at(address) as raw,
        raw.stream("POST", "/runs/stream", json=given) as answer,
    ):
        thread_id, _, run_id = answer.headers["Content-Location"].split("/")[2:]
        await entered(gates)
        stream = await busy.threads.join_stream(thread_id)
        assert (await anext(stream)).event == "metadata"
        join = asyncio.create_task(busy.runs.join(thread_id, run_id))
    assert ThreadCatalog(saver).count() == 1
    gates.left.release()
    assert (await join)["turns"] == 1
    assert ThreadCatalog(saver).count() == 0
    async for _ in stream:  # which ends, as the thread is deleted
        pass


async def test_a_deleted_thread_ends_its_run(busy: Any, gates: Gates) -> None:
    run = await begin(busy, "wait")
    await entered(gates)
    await busy.threads.delete("t")
    assert await busy.threads.count() == 0
    assert run["run_id"]


async def test_assistants_are_the_graphs(client: Client) -> None:
    assistant = (await client.assistants.search())[0]
    assert assistant["graph_id"] == assistant["name"] == "chat"
    assert await client.assistants.get(assistant["assistant_id"]) == assistant
    drawn = await client.assistants.get_graph(assistant["assistant_id"])
    assert {node["id"] for node in drawn["nodes"]} == {"__start__", "answer", "__end__"}
    assert await client.assistants.search(graph_id="other") == []
    assert await client.assistants.count() == 1
    with pytest.raises(NotFoundError):
        await client.assistants.get("nobody")


async def test_assistants_are_searched_page_by_page(saver: ForkpointSaver) -> None:
    graph = chat()
    client = local_client(create_app(saver, dict.fromkeys(("Chat b", "chat a", "c"), graph)))
    search = client.assistants.search
    names = [each["name"] for each in await search()]
    assert names == ["Chat b", "chat a", "c"]
    page = await search(limit=2, select=["name"], response_format="object")
    assert page == {"assistants": [{"name": "Chat b"}, {"name": "chat a"}], "next": "2"}
    page = await search(limit=2, offset=2, response_format="object")
    assert ([each["name"] for each in page["assistants"]], page["next"]) == (["c"], None)
    sorted_ones = await search(sort_by="name", sort_order="desc", select=["name"])
    assert [each["name"] for each in sorted_ones] == ["chat a", "c", "Chat b"]
    assert len(await search(name="CHAT")) == await client.assistants.count(name="CHAT") == 2
    assert len(await search(metadata={"created_by": "system"})) == 3
    assert await client.assistants.count(metadata={"created_by": "me"}) == 0


async def test_a_graph_may_have_any_name(saver: ForkpointSaver) -> None:
    for name in ("team/chat", "50%", "50%25", "a b?#", ".."):
        client = local_client(create_app(saver, {name: chat()}))
        assert (await client.assistants.get(name))["graph_id"] == name
        assert (await client.assistants.get_graph(name))["nodes"]
        assert (await client.runs.wait(None, name, input=said("you")))["turns"] == 1


async def test_the_last_runs_of_each_owner_are_known(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.server.runs.RUNS_KEPT", 2)
    app = create_app(saver, {"chat": chat()}, ApiKeys({"key-a": "a", "key-b": "b"}))
    with serving(app) as address:
        known = {}
        for owner, count in (("a", 1), ("b", 4)):
            client = Client(address, "async", api_key=f"key-{owner}")
            await client.threads.create(thread_id=owner)
            for _ in range(count):
                await client.runs.wait(owner, "chat", input=said("you"))
            known[owner] = client
        assert len(await known["a"].runs.list("a")) == 1
        assert len(await known["b"].runs.list("b")) == 3  # the last one had not ended by then


async def test_no_run_that_waits_makes_a_deleted_thread_anew(client: Client, gates: Gates) -> None:
    await client.threads.create(thread_id="t")
    running = await client.runs.create("t", "chat", input=said("wait"))
    await entered(gates)
    waiting = await client.runs.create("t", "chat", input=said("you"))
    joins = [client.runs.join("t", run["run_id"]) for run in (running, waiting)]
    joining = [asyncio.create_task(join) for join in joins]
    await client.threads.delete("t")
    await asyncio.wait(joining)
    with pytest.raises(NotFoundError):
        await client.threads.get("t")


class Deleting:
    """A graph whose thread is deleted just before a run of it has begun, or an update."""

    def __init__(self, graph: Any, saver: ForkpointSaver) -> None:
        self._graph, self._catalog = graph, ThreadCatalog(saver)
        self.astream = graph.astream

    def copy(self, options: Any) -> Any:
        if self._catalog.get("t") is not None:
            self._catalog.delete("t")
        return self._graph.copy(options)


@pytest.mark.parametrize("strategy", ["reject", "enqueue", "interrupt", "rollback"])
async def test_a_thread_that_is_deleted_as_a_run_begins_stays_deleted(
    strategy: Any, saver: ForkpointSaver
) -> None:
    with serving(create_app(saver, {"chat": Deleting(chat(), saver)})) as address:
        client = Client(address, "async")
        await client.threads.create(thread_id="t")
        given: Any = {"input": said("you"), "multitask_strategy": strategy}
        with pytest.raises(NotFoundError):
            await client.runs.create("t", "chat", **given)
        await client.threads.create(thread_id="t")
        with pytest.raises(NotFoundError):
            await client.threads.update_state("t", {"turns": 1})
        assert await client.threads.count() == 0


@pytest.mark.parametrize("strategy", ["reject", "enqueue"])
async def test_a_run_that_is_cancelled_before_it_begins_ends(
    strategy: Any, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    catalog.create("t")
    runs = Runs()
    request = RequestScope(Server(catalog, {"chat": chat()}, None, runs), None, Request(HTTP))
    body = NewRun(assistant_id="chat", input=said("you"), multitask_strategy=strategy)
    run = Run(request, "t", Assistant("chat", "chat"), body, RunOptions())
    starting = asyncio.create_task(runs.start(request, run))
    while not runs.of_thread(request, "t"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await runs.delete_thread(request, "t", catalog.aget)  # its task has not begun
    await starting
    assert (await run.join())["__error__"]["error"] == "UserInterrupt"
    assert run.status == "interrupted"
    assert catalog.lease("t") is None


class Panic(BaseException):
    """What a library of another language raises, say."""


class Mute(Exception):
    def __str__(self) -> str:
        return str(self.args[0])


@pytest.mark.parametrize(("error", "told"), [(Panic("broken"), "broken"), (Mute(), "?")])
async def test_a_run_ends_whatever_its_graph_raises(
    error: BaseException, told: str, saver: ForkpointSaver
) -> None:
    def fail(_: Chat) -> Chat:
        raise error

    builder = StateGraph(Chat)
    builder.add_node("fail", fail)
    builder.add_edge(START, "fail")
    with serving(create_app(saver, {"failing": builder.compile()})) as address:
        client = Client(address, "async")
        await client.threads.create(thread_id="t")
        parts = await client.runs.stream("t", "failing", input={"turns": 1})
        assert parts[-1].data == {"error": type(error).__name__, "message": told}
        assert (await client.runs.list("t"))[0]["status"] == "error"


async def test_a_run_that_was_deleted_is_not_known_any_more(busy: Any) -> None:
    run = await begin(busy, "you")
    await busy.runs.join("t", run["run_id"])
    await busy.runs.delete("t", run["run_id"])
    assert await busy.runs.list("t") == []
    for method in (busy.runs.get, busy.runs.delete):
        with pytest.raises(NotFoundError):
            await method("t", run["run_id"])


async def test_a_run_is_followed_from_its_beginning_after_what_is_no_number(
    address: str, busy: Any
) -> None:
    run = await begin(busy, "you")
    await busy.runs.join("t", run["run_id"])
    async with calling_at(address) as raw:
        for last in ("9" * 5000, "x", "-1", "٣"):
            place = f"/threads/t/runs/{run['run_id']}/stream"
            answer = await raw.get(place, headers=[(b"last-event-id", last.encode())])
            assert answer.status_code == 200
            assert "event: metadata" in answer.text


class Unreadable:
    """A graph whose states can be written, and not be read."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self.astream, self.aupdate_state = graph.astream, graph.aupdate_state

    def copy(self, options: Any) -> Any:
        return Unreadable(self._graph.copy(options))

    async def aget_state(self, *_: Any, **__: Any) -> Any:
        raise StorageUnavailable("the store is away")


async def test_an_update_is_answered_even_if_others_cannot_be_told_of_it(
    saver: ForkpointSaver,
) -> None:
    app = create_app(saver, {"chat": Unreadable(chat())})
    client = local_client(app)
    await client.threads.create(thread_id="t")
    server: Server = app.state.forkpoint
    streams = server.runs.streams_of(RequestScope(server, None, Request(HTTP)), "t")
    following = asyncio.ensure_future(anext(streams.follow_parts(None), None))
    await asyncio.sleep(0)
    assert streams.followers == 1
    await client.threads.update_state("t", {"turns": 1}, as_node="answer")
    assert (await client.threads.get("t"))["values"]["turns"] == 1
    streams.end()
    assert await following is None


def local_client(app: Any) -> Any:
    """Return a client of an application that runs in this event loop."""
    transport = httpx.ASGITransport(app)
    return LangGraphClient(httpx.AsyncClient(transport=transport, base_url="http://localhost"))


async def wait_for_turn(turn: Any, count: int) -> None:
    """Wait until some wait for their turn on a thread."""
    while len(turn._waiters or ()) < count:  # noqa: ASYNC110  # of no event
        await asyncio.sleep(0.002)


async def test_who_takes_back_a_run_that_has_succeeded_is_told_so(
    saver: ForkpointSaver, gates: Gates
) -> None:
    app = create_app(saver, {"chat": chat(gates)})
    client = local_client(app)
    run = await begin(client, "wait")
    await entered(gates)
    async with (turn := app.state.forkpoint.runs._turn_on("t")):
        gates.left.release()
        await wait_for_turn(turn, 1)
        taking_back = asyncio.create_task(
            client.runs.cancel("t", run["run_id"], action="rollback", wait=True)
        )
        await wait_for_turn(turn, 2)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        await taking_back
    assert (await client.runs.get("t", run["run_id"]))["status"] == "success"
    assert (await client.threads.get("t"))["values"]["turns"] == 1


async def test_no_run_begins_once_the_server_is_told_to_end(
    saver: ForkpointSaver, gates: Gates
) -> None:
    app = create_app(saver, {"chat": chat(gates)})
    client, runs = local_client(app), app.state.forkpoint.runs
    await client.threads.create(thread_id="t")
    async with (turn := runs._turn_on("t")):
        waiting = asyncio.create_task(client.runs.wait("t", "chat", input=said("wait")))
        await wait_for_turn(turn, 1)
        await runs.close()
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        await waiting
    assert await client.runs.list("t") == []
    async with app.router.lifespan_context(app):  # again
        assert (await client.runs.wait("t", "chat", input=said("you")))["turns"] == 1


async def test_a_run_that_cannot_begin_leaves_no_thread_of_its_own(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise StorageBusy("the store is locked")

    client = local_client(create_app(saver, {"chat": chat()}))
    with monkeypatch.context() as patch:
        patch.setattr(leases, "acquire", refuse)
        for on_completion in ("delete", "keep"):
            with pytest.raises(httpx.HTTPStatusError, match="503"):
                await client.runs.wait(None, "chat", input={}, on_completion=on_completion)
    assert await client.threads.count() == 0


async def test_who_joins_a_run_that_cannot_begin_is_told(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_refuse = threading.Event(), threading.Event()

    def refuse(*_: Any) -> Any:
        asked.set()
        assert may_refuse.wait(PATIENCE_SECONDS)
        raise StorageBusy("the store is locked")

    client = local_client(create_app(saver, {"chat": chat()}))
    await client.threads.create(thread_id="t")
    monkeypatch.setattr(leases, "acquire", refuse)
    beginning = asyncio.create_task(client.runs.create("t", "chat", input=said("you")))
    assert await asyncio.to_thread(asked.wait, PATIENCE_SECONDS)
    (run,) = await client.runs.list("t")
    joining = asyncio.create_task(client.runs.join("t", run["run_id"]))
    await client.threads.get("t")
    may_refuse.set()
    with pytest.raises(APIStatusError):
        await beginning
    assert (await joining)["__error__"]["error"] == "StorageBusy"
    assert await client.runs.list("t") == []


@pytest.mark.parametrize(("text", "status"), [("you", "success"), ("fail", "error")])
async def test_a_run_ends_as_it_did_if_its_lease_cannot_be_released(
    text: str, status: str, saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it stored is stored, and the lease ends by itself."""

    def refuse(*_: Any) -> None:
        raise StorageUnavailable("the store is away")

    monkeypatch.setattr(leases, "release", refuse)
    client = local_client(create_app(saver, {"chat": chat()}))
    run = await begin(client, text)
    ended = await client.runs.join("t", run["run_id"])
    if status == "success":
        assert ended["turns"] == 1
    else:
        assert ended == {"__error__": {"error": "ValueError", "message": "broken"}}
    assert (await client.runs.get("t", run["run_id"]))["status"] == status


async def test_what_was_done_under_a_lease_is_answered_if_that_cannot_be_released(
    saver: ForkpointSaver, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise StorageUnavailable("the store is away")

    client = local_client(create_app(saver, {"chat": chat(gates)}))
    for thread_id in "abcd":
        await client.runs.wait(thread_id, "chat", input=said("you"), if_not_exists="create")
    old = (await client.runs.list("c"))[0]
    await client.runs.join("c", old["run_id"])
    run = await client.runs.create("d", "chat", input=said("wait"))
    await entered(gates)
    monkeypatch.setattr(leases, "release", refuse)
    await client.threads.update_state("a", {"turns": 1}, as_node="answer")
    assert (await client.threads.get("a"))["values"]["turns"] == 2
    back = await client.http.post("/forkpoint/threads/b/rollback", json={"steps": 1})
    assert back["configurable"]
    await client.runs.delete("c", old["run_id"])
    await client.runs.cancel("d", run["run_id"], action="rollback", wait=True)
    assert (await client.threads.get("d"))["values"]["turns"] == 1


async def test_a_thread_that_is_made_again_has_no_runs(client: Client, gates: Gates) -> None:
    runs = []
    for _ in range(2):
        await client.threads.create(thread_id="t")
        assert await client.runs.list("t") == []
        new: Any = {"input": said("wait"), "multitask_strategy": "reject"}
        runs.append(await client.runs.create("t", "chat", **new))
        await entered(gates)
        await client.threads.delete("t")
        with pytest.raises(NotFoundError):
            await client.runs.get("t", runs[-1]["run_id"])


async def test_the_runs_of_another_owner_are_no_reason_to_refuse_one(
    saver: ForkpointSaver, gates: Gates
) -> None:
    """Those that go on, although their thread was deleted, by another server say."""
    app = create_app(saver, {"chat": chat(gates)}, ApiKeys({"a": "ann", "b": "bob"}))
    with serving(app) as address:
        ann, bob = (Client(address, "async", api_key=key) for key in "ab")
        await ann.threads.create(thread_id="t")
        run = await ann.runs.create("t", "chat", input=said("wait"))
        await entered(gates)
        await ThreadCatalog(saver).adelete("t")
        await bob.threads.create(thread_id="t")
        new: Any = {"input": said("you"), "multitask_strategy": "reject"}
        assert (await bob.runs.wait("t", "chat", **new))["turns"] == 1
        gates.left.release()
        assert "__error__" in await ann.runs.join("t", run["run_id"])


async def test_who_joins_a_thread_as_it_is_deleted_leaves_with_it(saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    catalog.create("t")
    runs = Runs()
    request = RequestScope(Server(catalog, {"chat": chat()}, None, runs), None, Request(HTTP))
    joined = []

    async def join() -> None:
        joined.append(anext(runs.streams_of(request, "t").follow_parts(None), None))

    async def fail(_: str) -> None:
        await join()
        raise StorageBusy("the store is locked")

    async def delete(thread_id: str) -> None:
        await join()
        await catalog.adelete(thread_id)

    with pytest.raises(StorageBusy):
        await runs.delete_thread(request, "t", fail)
    assert not runs.streams_of(request, "t").has_ended
    await runs.delete_thread(request, "t", delete)
    assert await asyncio.gather(*joined) == [None, None]


class Settings(BaseModel):
    model: str = "small"


class Outcome(TypedDict):
    total: int


class Sums(Outcome, total=False):
    _kept: int
    anything: Path


class Opaque:
    """What has no schema."""


class Whole(Sums, total=False):
    opaque: Opaque


@pytest.mark.filterwarnings("error::DeprecationWarning")
async def test_the_schemas_of_a_graph_are_those_of_its_parts(saver: ForkpointSaver) -> None:
    builder = StateGraph(Whole, context_schema=Settings, input_schema=Sums, output_schema=Outcome)
    builder.add_node("add", lambda _: {"total": 1})
    builder.add_edge(START, "add")
    with serving(create_app(saver, {"sums": builder.compile(), "chat": chat()})) as address:
        client = Client(address, "async")
        schemas = await client.assistants.get_schemas("sums")
        assert schemas["graph_id"] == "sums"
        assert schemas["context_schema"] == schemas["config_schema"] == Settings.model_json_schema()
        assert list(schemas["output_schema"]["properties"]) == ["total"]
        state = schemas["state_schema"]["properties"]
        assert set(state) == {"total", "_kept", "anything", "opaque"}
        assert state["opaque"] == {"title": "Opaque"}
        without = await client.assistants.get_schemas("chat")
        assert (without["context_schema"], without["config_schema"]) == (None, {})
        assert set(without["state_schema"]["properties"]) == {"messages", "turns"}
