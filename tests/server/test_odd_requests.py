"""What is asked for seldom, or is seldom there: pages, forms and states answer all the same."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from langgraph.func import entrypoint
from langgraph.graph import START, StateGraph
from test_pages import check_structure, get, id_at, post, talked  # noqa: F401 - a fixture

from calling import calling, calling_at
from checking import checkpoint, config, put
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app, page_actions, threads
from forkpoint.server.access import BodyLimit, Guard
from forkpoint.server.page_views import Tree
from forkpoint.server.protocol import Event, EventRequest, events_of
from served import Chat, Client, Gates, chat, said, serving
from servers import PATIENCE_SECONDS
from stores import Known, Store

# Pages


@pytest.mark.parametrize(
    ("made_at", "shown"),
    [
        (5, "5 UTC"),
        ("soon", "soon UTC"),
        ("9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59-14:00 UTC"),
        ("2024-01-01T00:00:00Z", "2024-01-01 00:00:00 UTC"),
        ({"a": 1}, "{&#39;a&#39;: 1} UTC"),
    ],
)
async def test_a_checkpoint_may_say_any_time(
    made_at: Any, shown: str, saver: ForkpointSaver
) -> None:
    made: Any = {**checkpoint({"n": 1}), "ts": made_at}
    saver.put(config(), made, {}, {})
    async with calling(create_app(saver)) as client:
        for page in ("thread", "history", "compare"):
            place = {"thread_id": "thread", "a": "thread", "b": "thread"}
            assert shown in await get(client, page, **place)
        state = (await client.get("/threads/thread/state")).json()
        assert state["created_at"] == str(made_at)


async def test_a_checkpoint_need_not_say_when_it_was_made(saver: ForkpointSaver) -> None:
    made = checkpoint({"n": 1})
    del made["ts"]
    saver.put(config(), made, {}, {})
    async with calling(create_app(saver)) as client:
        assert "n</bdi>" in await get(client, "thread", thread_id="thread")
        state = (await client.get("/threads/thread/state")).json()
        assert (state["values"], state["created_at"]) == ({"n": 1}, "")


async def test_a_checkpoint_need_not_say_at_which_step_it_was_made(saver: ForkpointSaver) -> None:
    saver.put(config(), checkpoint({"n": 1}), {"user": "u1"}, {})
    async with calling(create_app(saver)) as client:
        for page in ("thread", "history", "compare"):
            place = {"thread_id": "thread", "a": "thread", "b": "thread"}
            assert "None" not in await get(client, page, **place)


async def test_channels_of_the_graph_itself_are_not_shown(saver: ForkpointSaver) -> None:
    message = {"type": "human", "content": [{"type": "text", "text": "Hello"}, None, 5]}
    internal = {"branch:to:node": None, "join:a+b:node": ["a"], "__previous__": 1}
    put(saver, {**internal, "n": 1, "messages": [message]})
    async with calling(create_app(saver)) as client:
        state = (await client.get("/threads/thread/state")).json()
        assert state["values"].keys() == {"n", "messages"}
        text = await get(client, "thread", thread_id="thread")
        assert "Hello" in text
        assert "part 3" in text
        assert "part 2" not in text


def test_of_broad_values_so_much_is_shown_as_a_page_can_have() -> None:
    tree = Tree()
    broad = {str(number): {str(part): part for part in range(150)} for number in range(100)}
    node = tree.node("broad", broad)
    assert node.left_out == 100 - len(node.children) > 0
    assert node.children[-1].left_out > 0
    total = sum(1 + len(child.children) for child in node.children)
    assert 1000 < total < 3000
    assert tree.node("next", [1, 2]).left_out == 2


async def test_a_lane_is_used_again_where_its_branch_began(saver: ForkpointSaver) -> None:
    """Two branches, one of the newer and one of the older checkpoints, stand on one lane."""
    first = put(saver, {"n": 0})
    second = put(saver, {"n": 1}, parent=first)
    put(saver, {"n": 10}, parent=first)  # a branch
    third = put(saver, {"n": 2}, parent=second)
    fourth = put(saver, {"n": 3}, parent=third)
    put(saver, {"n": 11}, parent=third)  # a branch
    put(saver, {"n": 4}, parent=fourth)
    async with calling(create_app(saver)) as client:
        text = await get(client, "history", thread_id="thread")
    assert text.count('<li class="lane-0') == 5
    assert text.count('<li class="lane-1') == 2
    assert text.count("end of a branch") == 2


async def test_a_state_that_is_no_mapping_is_shown(saver: ForkpointSaver) -> None:
    doubling = entrypoint(checkpointer=saver)(_doubled)
    await doubling.ainvoke(21, config("t"))
    ThreadCatalog(saver).update("t", metadata={"graph_id": "doubling"})
    async with calling(create_app(saver, {"doubling": doubling})) as client:
        assert "42" in await get(client, "thread", thread_id="t")


async def _doubled(n: int) -> int:
    return 2 * n


async def test_forms_that_cannot_be_done_say_why(
    saver: ForkpointSaver,
    talked: list[Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gates = Gates()
    async with calling(create_app(saver, {"chat": chat(gates)})) as client:
        form = {"content-type": "application/x-www-form-urlencoded", "origin": "http://localhost"}
        for content in (b"thread_id=%ff", b"\xff", b"&".join([b"a=1"] * 60)):
            refused = await client.post("/pages/run", content=content, headers=form)
            assert refused.status_code == 422
            check_structure(refused.text)
        from_nowhere = {"referer": "http://["}
        missing = await client.get("/pages/thread?thread_id=nobody", headers=from_nowhere)
        assert missing.status_code == 404
        asked = {"thread_id": "t", "checkpoint_id": "nothing"}
        await get(client, "rollback", 404, **asked)
        assert (await post(client, "rollback", **asked, steps="1")).status_code == 404
        assert await get(client, "status", thread_id="t") == "interrupted"

        bad = await post(client, "answer", thread_id="t", kind="json", answer="{")
        assert bad.status_code == 422
        answered = await post(client, "answer", thread_id="t", kind="json", answer='{"a": [1]}')
        assert answered.status_code == 303
        assert (
            "You said {&#39;a&#39;: [1]}." in (await client.get(answered.headers["location"])).text
        )

        new = {"thread_id": "t", "checkpoint_id": id_at(talked, 2), "new_thread_id": "f"}
        forked = await post(client, "fork", **new)  # and no more
        assert forked.status_code == 303
        assert ThreadCatalog(saver).get("f") is not None
        assert saver.at("f", -1).checkpoint["id"] == id_at(talked, 2)

        monkeypatch.setattr(page_actions, "_PATIENCE_SECONDS", 0)
        await post(client, "run", thread_id="f", kind="message", input="wait")
        assert await asyncio.to_thread(gates.entered.acquire, timeout=PATIENCE_SECONDS)
        busy = {"thread_id": "f", "checkpoint_id": id_at(talked, 2), "steps": "1"}
        refused = await post(client, "rollback", **busy)
        assert (refused.status_code, "a run is going on" in refused.text) == (409, True)
        gates.left.release()


async def test_threads_are_searched_by_texts_and_numbers(saver: ForkpointSaver) -> None:
    for name, user in (("a", "smith"), ("b", 7)):
        ThreadCatalog(saver).create(f"of-{name}", metadata={"user": user})
    async with calling(create_app(saver)) as client:
        assert "of-a" in await get(client, "", metadata="user=smith")
        assert "of-b" in await get(client, "", metadata="user = 7")
        assert "of-" not in await get(client, "", metadata="user=[7]")


# States and threads


async def test_a_page_that_is_full_is_the_last_or_not(
    saver: ForkpointSaver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver.setup()
    store.add_threads(
        [Known(f"t{n:04}", None, [], {}, "idle", 10**15 + n, 10**15 + n) for n in range(1001)]
    )
    async with calling(create_app(saver)) as client:
        for body, number, following in (
            ({"limit": 1000}, 1000, "1000"),
            ({"limit": 1000, "offset": 1}, 1000, None),
            ({"limit": 1000, "offset": 2}, 999, None),
            ({"limit": 11, "offset": 990}, 11, None),
            ({"limit": 10, "offset": 990}, 10, "1000"),
        ):
            found = await client.post("/threads/search", json=body)
            assert len(found.json()) == number
            assert found.headers.get("x-pagination-next") == following


async def test_a_search_by_values_goes_on_over_many_threads(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_ROWS_AT_ONCE", 2)
    for number in range(7):
        put(saver, {"kind": {"is_odd": bool(number % 2)}}, thread_id=str(number))
    async with calling(create_app(saver)) as client:
        asked = {"values": {"kind": {"is_odd": True}}, "sort_by": "thread_id", "sort_order": "asc"}
        for page, ids in (({}, ["1", "3", "5"]), ({"offset": 1, "limit": 1}, ["3"])):
            found = (await client.post("/threads/search", json={**asked, **page})).json()
            assert [thread["thread_id"] for thread in found] == ids


async def test_what_a_search_extracts_may_be_missing(saver: ForkpointSaver) -> None:
    put(saver, {"list": [1, 2], "n": 3})
    paths = {
        "last": "values.list[-1]",
        "beyond": "values.list[2]",
        "of_no_list": "values.n[0]",
        "of_no_mapping": "values.list.key",
    }
    async with calling(create_app(saver)) as client:
        (found,) = (await client.post("/threads/search", json={"extract": paths})).json()
        assert found["extracted"] == {
            "last": 2,
            **dict.fromkeys(("beyond", "of_no_list", "of_no_mapping")),
        }


async def test_a_time_to_live_may_be_a_number_of_minutes(saver: ForkpointSaver) -> None:
    async with calling(create_app(saver)) as client:
        await client.post("/threads", json={"thread_id": "t", "ttl": 90})
    thread = ThreadCatalog(saver).get("t")
    assert thread is not None
    assert thread.expires_at is not None
    assert (thread.expires_at - thread.updated_at).total_seconds() == 5400


async def test_a_state_that_is_not_there_is_named(
    saver: ForkpointSaver,
    talked: list[Any],  # noqa: F811
) -> None:
    ThreadCatalog(saver).update("t", metadata={"graph_id": "chat"})
    async with calling(create_app(saver, {"chat": chat()})) as client:
        place = {"checkpoint": {"checkpoint_ns": "nowhere:1"}}
        for path, nothing in (("state/checkpoint", {}), ("history", [])):
            answer = await client.post(f"/threads/t/{path}", json=place)
            if answer.status_code != 404:  # which older ones of LangGraph lead to
                found = answer.json()
                assert (found["values"] if found else found) == nothing
        for name in ("nothing", "next.n", ""):
            refused = await client.post("/threads/t/history", json={"select": [name]})
            assert refused.status_code == 422
        asked = {"select": ["values.nothing", "values.turns"], "limit": 1}
        (state,) = (await client.post("/threads/t/history", json=asked)).json()
        assert state == {"values": {"turns": 1}}


async def test_a_damaged_state_is_not_one_that_is_not_there(
    saver: ForkpointSaver, store: Store
) -> None:
    graph = chat().copy({"checkpointer": saver})
    await graph.ainvoke(said("a long text " * 1000), config("t"))
    ThreadCatalog(saver).update("t", metadata={"graph_id": "chat"})
    for row in store.rows("chunks"):
        store.take("chunks", row.key)
    app = create_app(saver, {"chat": chat()})
    async with calling(app) as client:
        for answer in (
            await client.get("/threads/t/state"),
            await client.post("/threads/t/history", json={}),
        ):
            assert (answer.status_code, "missing" in answer.json()["detail"]) == (500, True)


async def test_a_damaged_state_keeps_no_other_thread_from_being_found(
    saver: ForkpointSaver, store: Store
) -> None:
    graph = chat().copy({"checkpointer": saver})
    for thread_id, text in (("damaged", "a long text " * 1000), ("whole", "you")):
        await graph.ainvoke(said(text), config(thread_id))
    for row in store.rows("chunks"):
        store.take("chunks", row.key)
    async with calling(create_app(saver, {"chat": chat()})) as client:
        found = {each["thread_id"]: each for each in await posted(client, "search", {})}
        assert (found["damaged"]["values"], found["whole"]["values"]["turns"]) == (None, 1)
        assert found["damaged"]["error"]["error"] == "CorruptChunk"
        changed = await client.patch("/threads/damaged", json={"metadata": {"n": 1}})
        assert changed.json()["metadata"]["n"] == 1
        by_values = {"values": {"turns": 1}}
        assert [each["thread_id"] for each in await posted(client, "search", by_values)] == [
            "whole"
        ]
        assert await posted(client, "count", by_values) == 1


@pytest.mark.parametrize("how", ["prune", "delete", "purge", "page"])
async def test_a_damaged_thread_is_deleted_and_keeps_no_other_from_that(
    how: str, saver: ForkpointSaver, store: Store
) -> None:
    for thread_id in "abc":
        ThreadCatalog(saver).create(thread_id, metadata={"n": thread_id})
    store.change("threads", store.thread("b").key, checksums=b"damaged")
    async with calling(create_app(saver)) as client:
        assert (await client.get("/threads/b")).status_code == 500
        if how == "prune":
            pruned = await client.post("/threads/prune", json={"thread_ids": ["a", "b", "c"]})
            assert pruned.json() == {"pruned_count": 3}
        elif how == "delete":
            assert (await client.delete("/threads/b")).status_code == 204
        elif how == "purge":
            assert (await client.post("/forkpoint/threads/b/purge")).status_code == 200
        else:
            assert "is damaged" in await get(client, "delete", thread_id="b")
            assert (await post(client, "delete", thread_id="b")).status_code == 303
        assert (await client.delete("/threads/b")).status_code == 404
    assert ThreadCatalog(saver).count() == (0 if how == "prune" else 2)


async def posted(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    return (await client.post(f"/threads/{path}", json=body)).json()


# Runs


def around_chat() -> Any:
    """Return a graph whose only node is another one."""
    outer = StateGraph(Chat)
    outer.add_node("inner", chat())
    outer.add_edge(START, "inner")
    return outer.compile()


async def test_of_checkpoints_nothing_is_streamed_that_is_for_the_graph_alone(
    saver: ForkpointSaver,
) -> None:
    run = {"assistant_id": "outer", "input": said("you"), "if_not_exists": "create"}
    run |= {"stream_mode": ["checkpoints", "debug", "messages"], "stream_subgraphs": True}
    async with calling(create_app(saver, {"outer": around_chat()})) as client:
        answer = await client.post("/threads/t/runs/stream", json=run)
    lines = answer.text.splitlines()
    assert "event: messages/partial" in lines  # of a subgraph, and by the name that clients know
    assert any(line.startswith("event: debug|inner:") for line in lines)
    assert '"configurable"' in answer.text
    assert re.search(r'"__\w+":', answer.text) is None


async def test_of_subgraphs_only_messages_are_streamed_unless_more_is_asked_for(
    saver: ForkpointSaver,
) -> None:
    with serving(create_app(saver, {"outer": around_chat()})) as address:
        runs = Client(address, "async").runs
        asked: Any = {"input": said("you"), "stream_mode": ["messages-tuple", "updates", "values"]}
        parts = await runs.stream(None, "outer", **asked)
        names = {part.event for part in parts}
        assert names == {"metadata", "messages", "updates", "values"}
        texts = [part.data[0]["content"] for part in parts if part.event == "messages"]
        assert "".join(texts) == "Hello you"
        whole = await runs.stream(None, "outer", **asked, stream_subgraphs=True)
        nested = {part.event.partition("|")[0] for part in whole if "|inner:" in part.event}
        assert nested == {"messages", "updates", "values"}


async def test_a_run_without_a_thread_ends_where_that_is_deleted_meanwhile(
    saver: ForkpointSaver,
) -> None:
    gates = Gates()
    with serving(create_app(saver, {"chat": chat(gates)})) as address:
        runs = Client(address, "async").runs
        waiting = asyncio.create_task(runs.wait(None, "chat", input=said("wait")))
        assert await asyncio.to_thread(gates.entered.acquire, timeout=PATIENCE_SECONDS)
        (thread,) = ThreadCatalog(saver).search()
        saver.delete_thread(thread.thread_id)
        gates.left.release()
        with pytest.raises(Exception, match="ThreadDeleted"):
            await waiting
        assert ThreadCatalog(saver).count() == 0


async def test_an_answer_to_a_graph_that_is_not_served_is_refused(
    saver: ForkpointSaver,
    talked: list[Any],  # noqa: F811
) -> None:
    ThreadCatalog(saver).update("t", metadata={"graph_id": "another"})
    (asked,) = talked[0].interrupts
    params = {"interrupt_id": asked.id, "response": "yes"}
    command = {"id": 1, "method": "input.respond", "params": params}
    async with calling(create_app(saver, {"chat": chat()})) as client:
        answer = (await client.post("/threads/t/commands", json=command)).json()
    assert answer["error"] == "no_such_run"
    assert "not served" in answer["message"]


@pytest.mark.parametrize(
    ("namespaces", "depth", "namespace", "is_sent"),
    [
        (None, None, ["inner:1"], True),
        ([[]], 0, [], True),
        ([[]], 0, ["inner:1"], False),
        ([["inner"]], None, [], False),
        ([["inner"]], 0, ["inner:1"], True),
        ([["inner"]], 0, ["inner:1", "deep:1"], False),
        ([["inner"]], 1, ["inner:1", "deep:1"], True),
        ([["inner:2"], ["other"]], None, ["inner:1"], False),
    ],
)
def test_events_are_sent_of_the_parts_that_are_asked_for(
    namespaces: Any, depth: int | None, namespace: list[str], is_sent: bool
) -> None:
    asked = EventRequest(channels=["values"], namespaces=namespaces, depth=depth)
    assert asked.matches(Event("values", namespace, {})) is is_sent
    assert not asked.matches(Event("updates", namespace, {}))


def test_of_what_a_graph_streams_that_is_sent_which_clients_know() -> None:
    streamed = {"params": {"namespace": [], "data": {"n": 1}}}
    for method, number in (("custom", 1), ("debug", 0)):
        assert len(list(events_of({"method": method, **streamed}, set()))) == number


# Requests


async def test_a_server_that_cannot_refuse_a_socket_by_an_answer_closes_it() -> None:
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"elsewhere.example")]
    scope = {"type": "websocket", "path": "/", "headers": headers, "client": ("127.0.0.1", 1)}
    await Guard(app, is_open=True, origins=())(scope, receive, send)
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 4403)]


async def test_of_a_client_that_is_gone_before_its_body_came_nothing_is_done() -> None:
    messages = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def app(*_: Any) -> None:
        raise AssertionError

    async def receive() -> Any:
        return next(messages)

    async def send(_: Any) -> None:
        raise AssertionError

    await BodyLimit(app, max_bytes=100)({"type": "http"}, receive, send)
    assert list(messages) == []


async def test_head_is_answered_as_get_but_without_a_body(saver: ForkpointSaver) -> None:
    with serving(create_app(saver, {"chat": chat()})) as address:
        async with calling_at(address) as http:
            await http.post("/threads", json={"thread_id": "t"})
            given = {"assistant_id": "chat", "input": said("you")}
            run = (await http.post("/threads/t/runs/wait", json=given)).headers["content-location"]
            ending = [
                "/",
                "/ok",
                "/info",
                "/pages/",
                "/threads/t",
                "/threads/t/state",
                "/threads/no",
            ]
            for path in (*ending, run, f"{run}/join", f"{run}/stream"):
                head, whole = await http.head(path), await http.get(path)
                assert (head.status_code, head.content) == (whole.status_code, b"")
                assert head.headers.get("content-type") == whole.headers.get("content-type")
            assert (await http.head("/threads/t/stream")).status_code == 200  # which never ends
            assert (await http.head("/threads")).status_code == 405
