"""A run, who began it, and a second tab: who comes, who goes, and what each of them is sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError, NotFoundError, UnprocessableEntityError

from calling import calling, calling_at
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app, run_answers, threads
from served import Gates, chat, said
from servers import PATIENCE_SECONDS
from stores import Store


@pytest.fixture
async def client(address: str) -> Any:
    client = get_client(url=address)
    await client.threads.create(thread_id="t")
    return client


async def entered(gates: Gates) -> None:
    """Wait until a run is in the middle of its node."""
    assert await asyncio.to_thread(gates.entered.acquire, timeout=PATIENCE_SECONDS)


CANCELLED = {"__error__": {"error": "UserInterrupt", "message": "the run was cancelled"}}


@pytest.mark.parametrize("place", ["/threads/t/runs/wait", "/runs/wait"])
async def test_who_waits_may_ask_that_the_run_ends_with_the_client(
    place: str, address: str, client: Any, gates: Gates
) -> None:
    given = {"assistant_id": "chat", "input": said("wait"), "on_disconnect": "cancel"}
    async with calling_at(address) as raw:
        done = await raw.post(place, json={**given, "input": said("you")})
        assert done.json()["turns"] == 1
        waiting = asyncio.create_task(raw.post(place, json=given))
        await entered(gates)
        threads = {thread["thread_id"] for thread in await client.threads.search()}
        (thread_id,) = threads - {"t"} or {"t"}
        run = (await client.runs.list(thread_id))[0]
        waiting.cancel()
        assert await client.runs.join(thread_id, run["run_id"]) == CANCELLED


async def test_who_waits_for_long_is_kept_and_may_come_back(
    address: str, client: Any, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_answers, "_HEARTBEAT_SECONDS", 0.01)
    given = {"assistant_id": "chat", "input": said("wait")}
    async with calling_at(address) as raw:
        for place in ("/threads/t/runs/wait", "/runs/wait"):
            async with raw.stream("POST", place, json=given) as first:
                blanks = first.aiter_bytes()
                assert await anext(blanks) == b"\n"
            async with raw.stream("GET", first.headers["location"]) as second:
                whole = second.aiter_bytes()
                assert await anext(whole) == b"\n"
                gates.left.release()
                values = json.loads(b"".join([part async for part in whole]))
            assert values["turns"] == 1


async def test_no_run_begins_on_a_thread_whose_states_are_being_made(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, has_begun, may_go_on = threads.update_in_supersteps, asyncio.Event(), asyncio.Event()

    async def write_slowly(*args: Any) -> None:
        has_begun.set()
        await may_go_on.wait()
        await write(*args)

    monkeypatch.setattr(threads, "update_in_supersteps", write_slowly)
    client = LangGraphClient(calling(create_app(saver, {"chat": chat()})))
    given: Any = {"thread_id": "new", "graph_id": "chat"}
    steps = [{"updates": [{"values": said("one"), "as_node": "answer"}]}]
    making = asyncio.create_task(client.threads.create(**given, supersteps=steps))
    await has_begun.wait()
    assert (await client.threads.create(**given, if_exists="do_nothing"))["status"] == "busy"
    with pytest.raises(ConflictError):
        await client.runs.create("new", "chat", input=said("two"), multitask_strategy="reject")
    run = await client.runs.create("new", "chat", input=said("two"))
    may_go_on.set()
    assert (await making)["values"]["messages"][0]["content"] == "one"
    values = await client.runs.join("new", run["run_id"])
    assert [each["content"] for each in values["messages"]] == ["one", "two", "Hello two"]


@pytest.mark.parametrize("place", ["/threads/t/runs/stream", "/runs/stream"])
async def test_a_client_that_goes_before_it_is_answered_takes_its_run_along(
    place: str, saver: ForkpointSaver, gates: Gates
) -> None:
    """It sends its request through other layers, each with a task of its own."""
    app = create_app(saver, {"chat": chat(gates)})
    await ThreadCatalog(saver).acreate("t")
    given = {"assistant_id": "chat", "input": said("wait"), "on_disconnect": "cancel"}
    body = {"type": "http.request", "body": json.dumps(given).encode()}
    messages = iter([body])

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    async def send(_: Any) -> None:
        await asyncio.sleep(0)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": place, "query_string": b""}
    await app({**scope, "headers": headers}, receive, send)
    (run,) = app.state.forkpoint.runs._runs.values()
    assert await run.join() == CANCELLED
    assert [thread.thread_id for thread in ThreadCatalog(saver).search()] == ["t"]


async def test_a_second_tab_takes_the_run_along_only_if_it_asks_for_that(
    address: str, client: Any, gates: Gates
) -> None:
    given = {"assistant_id": "chat", "input": said("wait"), "on_disconnect": "cancel"}
    async with (
        calling_at(address) as raw,
        raw.stream("POST", "/threads/t/runs/stream", json=given) as first,
    ):
        run_id = first.headers["Content-Location"].rpartition("/")[2]
        await entered(gates)
        async for _ in client.runs.join_stream("t", run_id):
            break
        await client.threads.get("t")
        gates.left.release()
        assert (await client.runs.join("t", run_id))["turns"] == 1
    run = await client.runs.create("t", "chat", input=said("wait"))
    await entered(gates)
    second = client.runs.join_stream("t", run["run_id"], cancel_on_disconnect=True)
    await anext(second)
    await second.aclose()
    assert await client.runs.join("t", run["run_id"]) == CANCELLED


async def test_a_second_tab_chooses_what_it_is_sent(client: Any) -> None:
    modes: Any = ["values", "messages", "messages-tuple", "updates"]
    run = await client.runs.create("t", "chat", input=said("you"), stream_mode=modes)
    await client.runs.join("t", run["run_id"])

    async def names(**asked: Any) -> set[str]:
        return {part.event async for part in client.runs.join_stream("t", run["run_id"], **asked)}

    partial = {"messages/metadata", "messages/partial", "messages/complete"}
    assert await names() - partial == {"metadata", "values", "messages", "updates"}
    assert await names(stream_mode=["values"]) == {"metadata", "values"}
    assert await names(stream_mode="messages-tuple") == {"metadata", "messages"}
    assert await names(stream_mode=["messages", "updates"]) - partial == {"metadata", "updates"}
    assert await names(stream_mode="tasks") == {"metadata"}
    with pytest.raises(UnprocessableEntityError):
        await names(stream_mode="nothing")
    joined = await client.threads.join_stream("t", last_event_id="-1")
    assert (await anext(joined)).data["run_id"] == run["run_id"]
    await joined.aclose()


async def test_what_is_there_is_not_deleted_by_who_would_make_it(client: Any) -> None:
    await client.threads.update("t", metadata={"n": 1})
    bad: Any = [{"updates": [{"values": 5, "as_node": "answer"}]}]
    again = {"thread_id": "t", "graph_id": "chat", "supersteps": bad}
    assert (await client.threads.create(**again, if_exists="do_nothing"))["metadata"] == {"n": 1}


@pytest.mark.parametrize(
    "config",
    [
        {"configurable": [1]},
        {"configurable": "x"},
        {"tags": [{}]},
        {"tags": "x"},
        {"recursion_limit": True},
        {"recursion_limit": 0},
        {"recursion_limit": 1e30},
    ],
)
async def test_a_malformed_config_is_refused_before_anything_is_made(
    config: Any, address: str, client: Any
) -> None:
    given = {"assistant_id": "chat", "input": said("you"), "config": config}
    async with calling_at(address) as raw:
        new = {**given, "if_not_exists": "create"}
        assert (await raw.post("/threads/new/runs/wait", json=new)).status_code == 422
        command = {"id": 1, "method": "run.start", "params": given}
        answer = (await raw.post("/threads/new/commands", json=command)).json()
        assert answer["error"] == "invalid_argument"
    assert await client.threads.count() == 1


async def test_deleting_a_run_removes_what_it_stored_on_its_thread_and_nothing_else(
    client: Any, gates: Gates, saver: ForkpointSaver, store: Store
) -> None:
    await client.threads.create(thread_id="other")
    run = await client.runs.create("t", "chat", input=said("wait"))
    await entered(gates)
    for thread_id, error in (("other", NotFoundError), ("t", ConflictError)):
        with pytest.raises(error):
            await client.runs.delete(thread_id, run["run_id"])
    gates.left.release()
    assert (await client.runs.join("t", run["run_id"]))["turns"] == 1
    with pytest.raises(NotFoundError):
        await client.runs.delete("other", run["run_id"])
    copy = await client.threads.copy("t")
    assert (await client.threads.get("t"))["values"]["turns"] == 1
    await client.threads.update("t", metadata={"n": 1})
    with ThreadCatalog(saver).run("t"), pytest.raises(ConflictError):  # on another server, say
        await client.runs.delete("t", run["run_id"])
    await client.runs.delete("t", run["run_id"])
    left = await client.threads.get("t")
    assert (left["values"], left["metadata"]["n"]) == (None, 1)
    assert (await client.threads.get_state(copy["thread_id"]))["values"]["turns"] == 1
    assert (await client.runs.wait("t", "chat", input=said("you")))["turns"] == 1
    assert store.problems(saver) == []


@pytest.mark.parametrize("how", ["delete", "prune", "purge"])
async def test_however_a_thread_is_deleted_its_runs_and_streams_end(
    how: str, address: str, client: Any, gates: Gates
) -> None:
    run = await client.runs.create("t", "chat", input=said("wait"))
    waiting = await client.runs.create("t", "chat", input=said("you"))
    await entered(gates)
    stream = await client.threads.join_stream("t")
    assert (await anext(stream)).event == "metadata"
    async with (
        calling_at(address) as raw,
        raw.stream("GET", f"/threads/t/runs/{run['run_id']}/join") as first,
        raw.stream("GET", f"/threads/t/runs/{waiting['run_id']}/join") as second,
    ):
        steps = await raw.post("/forkpoint/threads/t/rollback", json={"steps": 1})
        assert steps.status_code == 409
        if how == "purge":
            assert (await raw.post("/forkpoint/threads/t/purge")).status_code == 200
        elif how == "prune":
            assert await client.threads.prune(["t", "nobody"]) == {"pruned_count": 1}
        else:
            await client.threads.delete("t")
        assert [json.loads(await end.aread()) for end in (first, second)] == [CANCELLED] * 2
    async for _ in stream:  # which ends
        pass
    assert await client.threads.count() == 0
