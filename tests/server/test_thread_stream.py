"""`client.threads.stream`: LangGraph's streaming protocol, as its client speaks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websockets
from langgraph.config import get_stream_writer
from langgraph.func import entrypoint
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from langgraph_sdk import get_client, get_sync_client

from calling import calling_at
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import ApiKeys, create_app
from served import Chat, Gates, chat, said, serving
from servers import PATIENCE_SECONDS


def outer(gates: Gates | None = None) -> Any:
    """Return a graph that has the chat as a subgraph, and writes something of its own."""

    def write(_: Chat) -> Chat:
        get_stream_writer()({"written": 1})
        return {}

    builder = StateGraph(Chat)
    builder.add_node("write", write)
    builder.add_node("inner", chat(gates))
    builder.add_edge(START, "write")
    builder.add_edge("write", "inner")
    return builder.compile()


@pytest.fixture
def address(saver: ForkpointSaver, gates: Gates) -> Iterator[str]:
    with serving(create_app(saver, {"chat": chat(gates), "outer": outer(gates)})) as address:
        yield address


@pytest.fixture
def threads(address: str) -> Any:
    return get_client(url=address).threads


TRANSPORTS = pytest.mark.parametrize("transport", ["sse", "websocket"])


@TRANSPORTS
async def test_a_run_is_begun_and_followed(transport: Any, threads: Any) -> None:
    async with threads.stream(assistant_id="chat", transport=transport) as stream:
        begun = await stream.run.start(input=said("you"), metadata={"m": 1}, config={"tags": ["a"]})
        messages = [message async for message in stream.messages]  # with all of their parts
        texts = [await message.text for message in messages]
        output = await stream.output
    assert texts == ["Hello you"]
    assert output["turns"] == 1
    states = await threads.get_history(stream.thread_id)
    assert output == states[0]["values"]
    assert {state["metadata"]["run_id"] for state in states} == {begun["run_id"]}
    assert states[0]["metadata"]["m"] == 1
    async with threads.stream(stream.thread_id, assistant_id="chat") as again:
        assert await again.output == await again.values == output


def test_the_sync_client_does_the_same(address: str) -> None:
    threads = get_sync_client(url=address).threads
    with threads.stream(
        assistant_id="outer", headers={"x-some": "1"}, run_start_timeout=PATIENCE_SECONDS
    ) as stream:
        stream.run.start(input=said("ask"))
        values = list(stream.values)
        assert stream.interrupted
        assert stream.interrupts[0]["value"] == {"question": "sure?"}
        stream.run.respond("yes")
        assert stream.output["messages"][-1]["content"] == "You said yes."
        assert [node["id"] for node in stream.agent.get_tree()["nodes"]][1:3] == ["write", "inner"]
    assert values[-1]["messages"][0]["content"] == "ask"


async def test_an_interrupt_is_asked_once_and_answered(threads: Any) -> None:
    async with threads.stream(assistant_id="outer") as stream:
        await stream.run.start(input=said("ask"))
        async for _ in stream.values:
            pass
        assert [asked["value"] for asked in stream.interrupts] == [{"question": "sure?"}]
    # Another client, later: it is told of the interrupt, and answers it.
    async with threads.stream(stream.thread_id, assistant_id="outer") as later:
        await until(lambda: later.interrupted)
        assert later.interrupts[0]["namespace"][0].startswith("inner:")
        with pytest.raises(RuntimeError, match="does not match"):
            await later.run.respond("no", interrupt_id="another")
        await later.run.respond("yes", interrupt_id=later.interrupts[0]["interrupt_id"])
        assert (await later.output)["messages"][-1]["content"] == "You said yes."
    assert (await threads.get(stream.thread_id))["status"] == "idle"


async def test_a_failure_is_told(threads: Any) -> None:
    async with threads.stream(assistant_id="chat") as stream:
        await stream.run.start(input=said("fail"))
        with pytest.raises(RuntimeError, match="Run errored: broken"):
            await stream.output


@TRANSPORTS
async def test_a_second_run_is_not_taken_for_the_first(transport: Any, threads: Any) -> None:
    thread_id = (await threads.create())["thread_id"]
    for turn in (1, 2, 3):
        options: Any = {"assistant_id": "chat", "transport": transport}
        async with threads.stream(thread_id, **options) as stream:
            await stream.run.start(input=said(f"there {turn}"))
            assert (await stream.output)["turns"] == turn


async def test_a_thread_that_a_run_makes_may_have_any_id(threads: Any) -> None:
    async with threads.stream("a/b %", assistant_id="chat") as stream:
        await stream.run.start(input=said("you"))
        assert (await stream.output)["turns"] == 1


async def test_a_client_may_leave_at_once(threads: Any) -> None:
    await threads.create(thread_id="t")
    for _ in range(10):
        async with threads.stream("t", assistant_id="chat") as stream:
            assert await stream.output == {}


async def test_parts_of_a_graph_are_followed(threads: Any) -> None:
    async with threads.stream(assistant_id="outer") as stream:
        await stream.run.start(input=said("you"))
        handles = [handle async for handle in stream.subgraphs]
        assert [(handle.graph_name, handle.status) for handle in handles] == [
            ("inner", "completed")
        ]
        messages = [message async for message in handles[0].messages]
        assert [await message.text for message in messages] == ["Hello you"]
    async with threads.stream(assistant_id="outer") as stream:
        await stream.run.start(input=said("you"))
        items = [item async for item in stream.interleave_projections(["updates", "checkpoints"])]
        kinds = [kind for kind, _ in items]
        assert kinds.count("checkpoints") == 4
        assert [item["node"] for kind, item in items if kind == "updates"] == ["write", "inner"]
        steps = [item["step"] for kind, item in items if kind == "checkpoints"]
        assert steps == [-1, 0, 1, 2]
        methods = [event["method"] async for event in until_its_end(stream.events)]
        assert set(methods) == {
            *("lifecycle", "values", "custom", "updates", "messages", "checkpoints")
        }
        scoped = stream.subscribe(["values"], namespaces=[["inner"]], depth=0)
        assert scoped is not None


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # the client has no event for it
        await asyncio.sleep(0.01)


async def until_its_end(events: Any) -> Any:
    """Return the events up to the end of a run."""
    async for event in events:
        yield event
        if event["method"] == "lifecycle" and not event["params"]["namespace"]:
            ended = event["params"]["data"]["event"] in ("completed", "failed")
            if ended:
                return


class Raw:
    """A client that sends what it is told to."""

    def __init__(self, address: str, thread_id: str, **headers: str) -> None:
        place = f"{address}/threads/{thread_id}"
        self._http = calling_at(place, headers=headers)
        self.follows = asyncio.Event()

    async def command(self, method: Any, params: Any = None, number: Any = 1) -> Any:
        body = {"id": number, "method": method, "params": params}
        return await self._http.post("/commands", json=body)

    async def error(self, method: str, params: Any) -> str:
        answer = (await self.command(method, params)).json()
        assert (answer["type"], answer["id"]) == ("error", 1)
        assert answer["message"]
        return str(answer["error"])

    async def start(self, text: str) -> Any:
        params = {"assistant_id": "chat", "input": said(text)}
        answer = (await self.command("run.start", params)).json()
        assert answer["type"] == "success"
        return answer

    async def events(self, **asked: Any) -> Any:
        """Return events, to the end of a run."""
        async with self._http.stream("POST", "/stream/events", json=asked) as answer:
            assert answer.status_code == 200
            self.follows.set()
            lines = (line async for line in answer.aiter_lines() if line.startswith("data: "))
            parsed = (json.loads(line.removeprefix("data: ")) async for line in lines)
            sent = (part async for part in parsed if part["type"] == "event")
            return [event async for event in until_its_end(sent)]

    async def asked(self) -> None:
        """Wait until a run that was just begun waits for an answer."""
        asked = {"channels": ["lifecycle", "input"]}
        async with self._http.stream("POST", "/stream/events", json=asked) as answer:
            async for line in answer.aiter_lines():
                if '"interrupted"' in line:
                    return

    async def end_of(self, began: Any) -> None:
        """Wait for the end of a run that was begun."""
        await self._http.get(f"/runs/{began['result']['run_id']}/join")

    async def status(self, **asked: Any) -> int:
        return (await self._http.post("/stream/events", json=asked)).status_code


@pytest.fixture
async def raw(address: str, threads: Any) -> Raw:
    await threads.create(thread_id="t")
    return Raw(address, "t")


async def test_events_go_on_after_a_number(raw: Raw) -> None:
    began = await raw.start("you")
    asked = {"channels": ["values", "messages", "lifecycle"]}
    events = await raw.events(**asked)
    numbers = [event["seq"] for event in events]
    assert numbers == sorted({*numbers})
    assert numbers[0] > began["meta"]["applied_through_seq"]
    assert len({event["event_id"] for event in events}) == len(events)
    assert await raw.events(**asked, since=numbers[2]) == events[3:]
    assert await raw.events(**asked) == events
    assert await raw.events(**asked, since=0) == events
    second = await raw.start("again")
    later = await raw.events(**asked, since=second["meta"]["applied_through_seq"])
    assert later[0]["seq"] > numbers[-1]
    assert await raw.events(**asked) == later
    assert (await raw.events(**asked, since=numbers[2]))[-1] == events[-1]


async def test_an_input_answers_what_is_asked(raw: Raw, threads: Any) -> None:
    await raw.start("ask")
    await raw.asked()
    state = await threads.get_state("t")
    asked = state["interrupts"][0]["id"]
    assert await raw.error("input.respond", {"interrupt_id": "x"}) == "no_such_interrupt"
    respond = {"responses": [{"interrupt_id": asked, "response": "so", "namespace": []}]}
    answer = (await raw.command("input.respond", {**respond, "update": {"turns": 4}})).json()
    assert answer["result"] == {}
    await raw.events(channels=["lifecycle"])
    values = (await threads.get("t"))["values"]
    assert (values["messages"][-1]["content"], values["turns"]) == ("You said so.", 5)
    await raw.start("ask")
    await raw.asked()
    await raw.command("run.start", {"assistant_id": "chat", "input": "yes"})
    await raw.events(channels=["lifecycle"])
    assert (await threads.get("t"))["values"]["messages"][-1]["content"] == "You said yes."


async def test_a_run_goes_on_from_a_checkpoint(raw: Raw, threads: Any) -> None:
    await raw.start("you")
    await raw.events(channels=["lifecycle"])
    states = await threads.get_history("t")
    config = {"configurable": {"checkpoint_id": states[1]["checkpoint"]["checkpoint_id"]}}
    await raw.command("run.start", {"assistant_id": "chat", "config": config})
    await raw.events(channels=["lifecycle"])
    assert len(await threads.get_history("t")) > len(states)


@pytest.fixture
def asking(saver: ForkpointSaver, gates: Gates) -> Iterator[str]:
    """The address of a graph that asks, and takes its time to do so and to hear the answer."""

    async def pause() -> None:
        gates.entered.release()
        while not gates.left.acquire(blocking=False):  # noqa: ASYNC110  # of another thread
            await asyncio.sleep(0.002)

    async def answer(state: Chat) -> Chat:
        if state["messages"][-1].content == "slowly":
            await pause()
        elif state["messages"][-1].content != "ask":
            return {"turns": 1}
        said = interrupt("sure?")
        if said == "slowly":
            await pause()
        return {"messages": [("ai", f"You said {said}.")]}

    builder = StateGraph(Chat)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    with serving(create_app(saver, {"chat": builder.compile()})) as address:
        yield address


async def test_an_input_is_no_answer_to_what_was_answered_before(asking: str, gates: Gates) -> None:
    threads = get_client(url=asking).threads
    await threads.create(thread_id="t")
    raw = Raw(asking, "t")
    await raw.start("ask")
    await raw.asked()
    answer = {"interrupt_id": (await threads.get_state("t"))["interrupts"][0]["id"]}
    await raw.command("input.respond", {**answer, "response": "slowly"})
    assert await asyncio.to_thread(gates.entered.acquire, timeout=PATIENCE_SECONDS)
    began = await raw.start("my next message")  # which waits for its turn
    gates.left.release()
    await raw.end_of(began)
    values = (await threads.get("t"))["values"]
    texts = [message["content"] for message in values["messages"]]
    assert (texts, values["turns"]) == (["ask", "You said slowly.", "my next message"], 1)


async def test_an_input_is_no_answer_to_what_was_not_asked_yet(asking: str, gates: Gates) -> None:
    threads = get_client(url=asking).threads
    await threads.create(thread_id="t")
    raw = Raw(asking, "t")
    await raw.start("slowly")
    assert await asyncio.to_thread(gates.entered.acquire, timeout=PATIENCE_SECONDS)
    began = await raw.start("my next message")
    gates.left.release()
    await raw.end_of(began)
    values = (await threads.get("t"))["values"]
    texts = [message["content"] for message in values["messages"]]
    assert (texts, values["turns"]) == (["slowly", "my next message"], 1)


async def test_a_function_as_a_graph_returns_what_is_no_mapping(saver: ForkpointSaver) -> None:
    @entrypoint()
    async def greet(name: str) -> str:
        return f"Hello {name}"

    with serving(create_app(saver, {"chat": greet})) as address:
        raw, client = Raw(address, "t"), get_client(url=address)
        answer = await raw.command("run.start", {"assistant_id": "chat", "input": "you"})
        events = await raw.events(channels=["values", "lifecycle"])
        assert [event["params"]["data"] for event in events][1:-1] == ["Hello you"]
        assert events[-1]["params"]["data"]["event"] == "completed"
        run_id = answer.json()["result"]["run_id"]
        assert await client.runs.join("t", run_id) == "Hello you"


BAD_PLACE = '{"assistant_id": "chat", "config": {"configurable": {"checkpoint_id": 1}}}'


async def test_a_command_that_cannot_be_done_says_why(raw: Raw, threads: Any) -> None:
    errors = {
        ("run.start", None): "invalid_argument",
        ("run.start", "[]"): "invalid_argument",
        ("run.start", '{"assistant_id": 1}'): "invalid_argument",
        ("run.start", '{"assistant_id": "nobody"}'): "unknown_error",
        (
            "run.start",
            '{"assistant_id": "chat", "config": {"configurable": {"checkpoint_id": 1}}}',
        ): ("invalid_argument"),
        ("input.respond", "{}"): "invalid_argument",
        ("input.respond", '{"responses": []}'): "invalid_argument",
        ("input.respond", '{"responses": [1]}'): "invalid_argument",
        ("input.respond", '{"interrupt_id": "x", "response": 1}'): "no_such_interrupt",
        ("agent.getTree", None): "no_such_run",
        ("subscription.subscribe", "{}"): "not_supported",
        ("nothing", None): "unknown_command",
    }
    for (method, params), error in errors.items():
        assert await raw.error(method, None if params is None else json.loads(params)) == error
    for method, number in ((1, 1), ("run.start", "1"), ("run.start", None)):
        assert (await raw.command(method, {}, number)).status_code == 400
    assert await raw.status(channels=[]) == await raw.status(channels=["x"]) == 400
    assert await raw.status(channels=["values"], since=-1) == 422
    assert await threads.get_history("t") == []
    assert await threads.count() == 1


async def test_nobody_follows_a_thread_that_is_not_there(address: str, threads: Any) -> None:
    missing = Raw(address, "nobody")
    assert await missing.status(channels=["values"]) == 404
    assert await missing.error("input.respond", {"interrupt_id": "x"}) == "no_such_run"
    assert await threads.count() == 0


async def test_for_another_owner_there_is_no_such_thread(saver: ForkpointSaver) -> None:
    app = create_app(saver, {"chat": chat()}, ApiKeys({"a": "ann", "b": "bob"}))
    with serving(app) as address:
        threads = get_client(url=address, api_key="a").threads
        await threads.create(thread_id="t")
        ann, bob, nobody = (
            Raw(address, thread_id, **{"x-api-key": key})
            for thread_id, key in (("t", "a"), ("t", "b"), ("nobody", "b"))
        )
        await ann.start("ask")
        await ann.asked()
        before = await threads.get_state("t")
        answer = {"interrupt_id": before["interrupts"][0]["id"], "response": "yes"}
        for one in (bob, nobody):
            assert await one.error("input.respond", answer) == "no_such_run"
            assert await one.status(channels=["values"], since=0) == 404
        refused = await bob.command("run.start", {"assistant_id": "chat", "input": said("you")})
        assert refused.json()["message"] == "409: there is a thread 't' already"
        assert await threads.get_state("t") == before
        # Once its owner has deleted it, the id is free, and nothing of what was sent is there.
        await threads.delete("t")
        await bob.start("you")
        events = await bob.events(channels=["values", "input", "lifecycle"], since=0)
        assert "sure?" not in json.dumps(events)


def socket(address: str, thread_id: str, **options: Any) -> Any:
    place = address.replace("http", "ws", 1)
    return websockets.connect(f"{place}/threads/{thread_id}/stream/events", **options)


async def test_a_socket_takes_commands_until_its_thread_is_gone(address: str, threads: Any) -> None:
    await threads.create(thread_id="t")

    async with socket(address, "t") as open_socket:

        async def asked(method: Any, number: Any = 1, **params: Any) -> Any:
            command = {"id": number, "method": method, "params": params}
            await open_socket.send(json.dumps(command))
            return json.loads(await open_socket.recv())

        for bad in (b"\xff", "{", "[]", '{"id": "1"}'):
            await open_socket.send(bad)
            assert json.loads(await open_socket.recv())["error"] == "invalid_argument"
        assert (await asked("subscription.subscribe", channels=["x"]))["type"] == "error"
        assert (await asked("subscription.unsubscribe"))["error"] == "no_such_subscription"
        values = await asked("subscription.subscribe", channels=["values"])
        one = {"subscription_id": values["result"]["subscription_id"]}
        assert (await asked("subscription.unsubscribe", **one))["type"] == "success"
        ends = {"channels": ["lifecycle"], "namespaces": [[]], "depth": 0}
        assert (await asked("subscription.subscribe", **ends))["type"] == "success"
        run = {
            "id": 2,
            "method": "run.start",
            "params": {"assistant_id": "chat", "input": said("a")},
        }
        await open_socket.send(json.dumps(run))
        told = [json.loads(await open_socket.recv()) for _ in range(3)]
        assert {part["type"] for part in told} == {"success", "event"}
        methods = [part["params"]["data"]["event"] for part in told if part["type"] == "event"]
        assert methods == ["running", "completed"]
        await threads.delete("t")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await open_socket.recv()
        assert closed.value.rcvd.code == 4404


async def test_a_socket_may_subscribe_long_after_it_was_opened(
    address: str, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.server.runs.RUNS_KEPT", 1)
    await threads.create(thread_id="t")
    async with socket(address, "t") as open_socket:
        for other in "abc":
            raw = Raw(address, other)
            await raw.end_of(await raw.start("you"))
        params = {"channels": ["lifecycle"], "namespaces": [[]], "depth": 0}
        command = {"id": 1, "method": "subscription.subscribe", "params": params}
        await open_socket.send(json.dumps(command))
        assert json.loads(await open_socket.recv())["type"] == "success"
        await Raw(address, "t").start("you")
        told = [json.loads(await open_socket.recv()) for _ in range(2)]
        assert [part["params"]["data"]["event"] for part in told] == ["running", "completed"]


async def test_a_socket_is_opened_for_those_who_may(saver: ForkpointSaver) -> None:
    ThreadCatalog(saver, owner="ann").create("t")
    keys = ApiKeys({"a": "ann", "b": "bob"})
    with serving(create_app(saver, {"chat": chat()}, keys, max_body_bytes=1000)) as address:
        for headers, status in (
            ({}, 401),
            ({"x-api-key": "b"}, 404),
            ({"x-api-key": "a", "origin": "https://evil.example"}, 403),
        ):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await socket(address, "t", additional_headers=headers)
            assert refused.value.response.status_code == status
            assert json.loads(refused.value.response.body)["detail"]
        own = {"x-api-key": "a", "origin": address}
        async with socket(address, "t", additional_headers=own) as open_socket:
            await open_socket.send("x" * 1001)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await open_socket.recv()
            assert closed.value.rcvd.code == 1009


async def test_who_follows_a_thread_leaves_with_it(raw: Raw, threads: Any, gates: Gates) -> None:
    await raw.start("wait")
    assert await asyncio.to_thread(gates.entered.acquire, timeout=PATIENCE_SECONDS)
    following = asyncio.create_task(raw.events(channels=["lifecycle", "values"]))
    joined = await threads.join_stream("t")
    first = await anext(joined)
    assert first.event == "metadata"
    await raw.follows.wait()
    await threads.delete("t")
    assert (await following)[0]["method"] == "lifecycle"
    async for _ in joined:  # which ends as well
        pass
