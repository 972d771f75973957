"""Threads whose graph is not served, and what the Platform does not have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from calling import calling_at
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from served import Client, chat, said, serving


@pytest.fixture
def stored(saver: ForkpointSaver) -> list[Any]:
    """The states of a thread with two turns, by its graph, newest first."""
    graph = chat().copy({"checkpointer": saver})
    at: Any = {"configurable": {"thread_id": "t"}}
    for text in ("one", "two"):
        asyncio.run(graph.ainvoke(said(text), at))
    return list(graph.get_state_history(at))


@pytest.fixture
def address(saver: ForkpointSaver, stored: list[Any]) -> Iterator[str]:
    with serving(create_app(ThreadCatalog(saver))) as address:
        yield address


async def test_states_are_read_from_the_checkpoints(client: Client, stored: list[Any]) -> None:
    head = await client.threads.get_state("t")
    assert head["values"]["turns"] == 2
    assert [message["content"] for message in head["values"]["messages"]][-1] == "Hello two"
    assert set(head["values"]) == {"messages", "turns"}
    history = await client.threads.get_history("t", limit=100)
    ids = [state.config["configurable"]["checkpoint_id"] for state in stored]
    assert [state["checkpoint"]["checkpoint_id"] for state in history] == ids
    assert (await client.threads.search())[0]["values"] == head["values"]
    assert (await client.threads.get_state("t", checkpoint_id=ids[-1]))["values"] in (
        {},
        history[-1]["values"],
    )


async def test_what_needs_a_graph_says_so(client: Client) -> None:
    for call in (
        lambda: client.threads.update_state("t", {"turns": 1}),
        lambda: client.runs.wait("t", "chat", input=said("you")),
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await call()
        assert refused.value.response.status_code in (400, 422)
    assert await client.assistants.search() == []


async def test_forks_families_and_differences(address: str, stored: list[Any]) -> None:
    ids = [state.config["configurable"]["checkpoint_id"] for state in stored]
    place = f"{address}/forkpoint"
    async with calling_at(place) as client:
        new = {"checkpoint_id": ids[3], "new_thread_id": "f", "values": {"turns": 9}}
        forked = (await client.post("/threads/t/fork", json=new)).raise_for_status().json()
        assert forked["thread"]["values"]["turns"] == 9
        assert forked["configurable"]["thread_id"] == "f"
        assert (await client.post("/threads/t/fork", json=new)).status_code == 409
        lineage = (await client.get("/threads/f/lineage")).json()
        assert [entry["thread_id"] for entry in lineage] == ["f", "t"]
        root = (await client.get("/threads/f/family")).json()
        assert root["entry"]["thread_id"] == "t"
        assert root["children"][0]["is_current"]
        picture = await client.get("/threads/f/family.svg")
        assert picture.headers["content-type"] == "image/svg+xml"
        assert picture.text.startswith("<svg")
        difference = (await client.get("/threads/t/diff", params={"a": ids[3]})).json()
        assert difference["turns"]["status"] == "changed"
        to_fork = (await client.get("/threads/t/diff", params={"a": ids[3], "other": "f"})).json()
        assert to_fork["messages"]["status"] == "unchanged"


FORM = {"content-type": "application/x-www-form-urlencoded"}  # as curl -d has it


async def test_history_is_taken_back_and_removed(address: str, client: Client) -> None:
    place = f"{address}/forkpoint"
    async with calling_at(place) as raw:
        assert (await raw.get("/threads/t/stats")).json()["checkpoints"] == 6
        rolled = (await raw.post("/threads/t/rollback", json={"steps": 3})).json()
        assert rolled["configurable"]["thread_id"] == "t"
        assert (await client.threads.get_state("t"))["values"]["turns"] == 1
        for body, reason in (
            ({"steps": 0}, "body.steps: "),
            ({"step": 2}, "body.step: there is no such field"),
            (None, "body: Field required"),
            ([], "body: it must be a JSON object, sent as content-type: application/json"),
        ):
            refused = await raw.post("/threads/t/rollback", json=body)
            assert (refused.status_code, refused.json()["detail"][: len(reason)]) == (422, reason)
        form = await raw.post("/threads/t/rollback", content=b'{"steps": 2}', headers=FORM)
        assert form.json()["detail"] == reason
        trimmed = (await raw.post("/threads/t/trim", json={"keep": 1})).json()
        assert trimmed["checkpoints"] == 2
        policy = {"max_checkpoints_per_thread": 1}
        for days in (0, -1, 1e9, 1e-12, "1"):
            refused = await raw.post("/retention/dry-run", json={"max_idle_days": days})
            assert refused.status_code == 422
        dry = (await raw.post("/retention/dry-run", json=policy)).raise_for_status().json()
        assert dry["dry_run"] is True or "deleted" in dry
        assert (await raw.post("/threads/t/purge")).json()["checkpoints"] == 1
        assert await client.threads.count() == 0
