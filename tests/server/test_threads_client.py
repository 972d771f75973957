"""Each method of the SDK's client of threads, with each of its parameters."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph_sdk.errors import (
    BadRequestError,
    ConflictError,
    NotFoundError,
    UnprocessableEntityError,
)

from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from served import Client, said


async def filled(client: Client, thread_id: str = "thread", turns: int = 2) -> str:
    """Make a thread with some turns of a chat."""
    await client.threads.create(thread_id=thread_id, graph_id="chat", metadata={"user": "u1"})
    for turn in range(turns):
        await client.runs.wait(thread_id, "chat", input=said(f"there {turn}"))
    return thread_id


async def test_a_thread_is_made_and_read(client: Client) -> None:
    made = await client.threads.create(metadata={"user": "u1"}, graph_id="chat")
    assert made["metadata"] == {"user": "u1", "graph_id": "chat"}
    assert (made["status"], made["values"], made["interrupts"]) == ("idle", None, {})
    assert made["created_at"] == made["updated_at"] == made["state_updated_at"]
    assert made["created_at"].endswith("+00:00")
    assert await client.threads.get(made["thread_id"]) == made


async def test_an_id_that_is_taken_is_refused_or_returned_as_it_is(client: Client) -> None:
    await client.threads.create(thread_id="t", metadata={"n": 1})
    with pytest.raises(ConflictError):
        await client.threads.create(thread_id="t")
    with pytest.raises(ConflictError):
        await client.threads.create(thread_id="t", if_exists="raise")
    same = await client.threads.create(thread_id="t", if_exists="do_nothing", metadata={"n": 2})
    assert same["metadata"] == {"n": 1}


@pytest.mark.parametrize("thread_id", ["a/b", "..", "%2F", "a b?c#d", "ü\n", "x" * 500])
async def test_any_text_is_an_id(thread_id: str, client: Client) -> None:
    await client.threads.create(thread_id=thread_id)
    assert (await client.threads.get(thread_id))["thread_id"] == thread_id
    await client.threads.update(thread_id, metadata={"n": 1})
    assert (await client.threads.get_state(thread_id))["values"] == {}
    await client.threads.delete(thread_id)
    with pytest.raises(NotFoundError):
        await client.threads.get(thread_id)


@pytest.mark.parametrize("ttl", [90, {"ttl": 90, "strategy": "keep_latest"}])
async def test_a_time_to_live_is_in_minutes(ttl: Any, client: Client) -> None:
    await client.threads.create(thread_id="t", ttl=ttl)
    assert "ttl" not in await client.threads.get("t")
    shown = (await client.threads.get("t", include=["ttl", "unknown"]))["ttl"]
    strategy = "delete" if ttl == 90 else "keep_latest"
    assert (shown["strategy"], shown["ttl_minutes"]) == (strategy, 90)
    await client.threads.update("t", metadata={}, ttl=30)
    shown = (await client.threads.get("t", include=["ttl"]))["ttl"]
    assert (shown["strategy"], shown["ttl_minutes"]) == ("delete", 30)


async def test_supersteps_are_the_states_of_a_new_thread(client: Client) -> None:
    steps = [
        {"updates": [{"values": said("one"), "as_node": "__start__"}]},
        {"updates": [{"values": {"messages": [], "turns": 5}, "as_node": "answer"}]},
    ]
    made = await client.threads.create(thread_id="t", graph_id="chat", supersteps=steps)
    assert made["values"]["turns"] == 5
    assert len(await client.threads.get_history("t")) == 2
    bad = [{"updates": [{"values": {}, "as_node": "nobody"}]}]
    with pytest.raises(BadRequestError):
        await client.threads.create(thread_id="bad", graph_id="chat", supersteps=bad)
    with pytest.raises(NotFoundError):
        await client.threads.get("bad")
    with pytest.raises(BadRequestError):
        await client.threads.create(thread_id="bad", graph_id="nobody", supersteps=steps)


async def test_metadata_are_merged(client: Client) -> None:
    await client.threads.create(thread_id="t", metadata={"a": 1, "b": {"c": 1}})
    changed = await client.threads.update("t", metadata={"b": {"d": 2}, "e": None})
    assert changed["metadata"] == {"a": 1, "b": {"d": 2}, "e": None}
    assert await client.threads.update("t", metadata={"f": 1}, return_minimal=True) is None
    assert (await client.threads.get("t"))["metadata"]["f"] == 1
    with pytest.raises(NotFoundError):
        await client.threads.update("nobody", metadata={})


async def test_a_thread_is_deleted_with_all_that_is_its(
    client: Client, saver: ForkpointSaver
) -> None:
    thread_id = await filled(client)
    await client.threads.delete(thread_id)
    assert list(saver.list({"configurable": {"thread_id": thread_id}})) == []
    for call in (client.threads.delete, client.threads.get, client.threads.get_state):
        with pytest.raises(NotFoundError):
            await call(thread_id)


async def test_a_search_is_by_metadata_values_ids_and_status(client: Client) -> None:
    for number in range(5):
        await client.threads.create(thread_id=f"t{number}", metadata={"n": number % 2})
    await filled(client, "asked", 1)
    await client.runs.wait("asked", "chat", input=said("ask"))

    async def ids(**asked: Any) -> list[str]:
        return [thread["thread_id"] for thread in await client.threads.search(**asked)]

    assert await ids() == ["asked", "t4", "t3", "t2", "t1", "t0"]
    assert await ids(metadata={"n": 1}) == ["t3", "t1"]
    assert await ids(metadata={"n": True}) == []
    assert await ids(ids=["t1", "t2", "nobody"]) == ["t2", "t1"]
    assert await ids(status="interrupted") == ["asked"]
    assert await ids(values={"turns": 1}) == ["asked"]
    assert await ids(values={"turns": 1.0, "messages": [{"type": "ai"}]}) == ["asked"]
    assert await ids(values={"turns": True}) == []
    assert await ids(values={"turns": 1}, metadata={"n": 1}) == []
    assert await ids(limit=2, offset=1) == ["t4", "t3"]
    assert await ids(sort_by="thread_id", sort_order="asc", limit=2) == ["asked", "t0"]
    assert await ids(sort_by="created_at", sort_order="desc", limit=2) == ["asked", "t4"]
    assert await ids(sort_by="status", limit=1) == ["asked"]
    assert await client.threads.count() == 6
    assert await client.threads.count(metadata={"n": 1}) == 2
    assert await client.threads.count(values={"turns": 1}) == 1
    assert await client.threads.count(status="interrupted", metadata={"user": "u1"}) == 1


async def test_a_search_shows_what_is_chosen(client: Client) -> None:
    await filled(client)
    chosen = await client.threads.search(
        select=["thread_id", "status"],
        extract={"last": "values.messages[-1].content", "user": "metadata.user", "no": "values.x"},
    )
    extracted = {"last": "Hello there 1", "user": "u1", "no": None}
    assert chosen == [{"thread_id": "thread", "status": "idle", "extracted": extracted}]
    for extract in ({"a b": "values.x"}, {"last": "checkpoint.x"}, {"status": "values.x"}):
        with pytest.raises(UnprocessableEntityError):
            await client.threads.search(extract=extract)
    with pytest.raises(UnprocessableEntityError):
        await client.threads.search(select=["nothing"])


async def test_a_copy_has_the_states_and_goes_its_own_way(client: Client) -> None:
    thread_id = await filled(client)
    copied = (await client.threads.search(metadata={"user": "u1"}))[0]
    copy = await client.threads.copy(thread_id)
    made = next(t for t in await client.threads.search() if t["thread_id"] != thread_id)
    assert copy is None or copy["thread_id"] == made["thread_id"]
    assert (made["values"], made["metadata"]) == (copied["values"], copied["metadata"])
    await client.runs.wait(made["thread_id"], "chat", input=said("you"))
    assert (await client.threads.get(thread_id))["values"]["turns"] == 2
    with pytest.raises(ConflictError):
        await client.threads.copy("nobody")


async def test_threads_are_pruned(client: Client) -> None:
    await filled(client)
    await filled(client, "other")
    pruned = await client.threads.prune(["thread", "nobody"], strategy="keep_latest")
    assert pruned == {"pruned_count": 1}
    assert len(await client.threads.get_history("thread")) == 1
    assert (await client.threads.get("thread"))["values"]["turns"] == 2
    assert await client.threads.prune(["other", "nobody"]) == {"pruned_count": 1}
    with pytest.raises(NotFoundError):
        await client.threads.get("other")
    assert await client.threads.prune([]) == {"pruned_count": 0}


async def test_a_state_is_read_at_any_checkpoint(client: Client) -> None:
    thread_id = await filled(client)
    states = await client.threads.get_history(thread_id)
    assert [state["metadata"]["step"] for state in states] == [4, 3, 2, 1, 0, -1]
    head = await client.threads.get_state(thread_id)
    assert head == states[0]
    assert head["next"] == []
    assert head["checkpoint"]["thread_id"] == thread_id
    assert head["parent_checkpoint"]["checkpoint_id"] == states[1]["checkpoint"]["checkpoint_id"]
    assert states[1]["next"] == ["answer"]
    assert states[1]["tasks"][0]["name"] == "answer"
    earlier = states[3]["checkpoint"]
    by_id = await client.threads.get_state(thread_id, checkpoint_id=earlier["checkpoint_id"])
    by_place = await client.threads.get_state(thread_id, checkpoint=earlier)
    assert by_id == by_place == states[3]
    unknown = await client.threads.get_state(thread_id, checkpoint_id="nothing")
    assert (unknown["values"], unknown["checkpoint"]["checkpoint_id"]) == ({}, "nothing")
    chosen = await client.threads.get_state(thread_id, select=["next", "values.turns"])
    assert chosen == {"next": [], "values": {"turns": 2}}


async def test_a_history_begins_before_whatever_names_a_checkpoint(client: Client) -> None:
    thread_id = await filled(client)
    states = await client.threads.get_history(thread_id)
    place = states[1]["checkpoint"]
    expected = states[2:]
    for before in (place["checkpoint_id"], place, {"configurable": place}):
        assert await client.threads.get_history(thread_id, before=before) == expected
    assert await client.threads.get_history(thread_id, limit=2) == states[:2]
    assert await client.threads.get_history(thread_id, metadata={"step": 3}) == [states[1]]
    at = {"checkpoint_ns": "", "checkpoint_id": place["checkpoint_id"]}
    assert await client.threads.get_history(thread_id, checkpoint=at, limit=1) == [states[1]]
    assert await client.threads.get_history(thread_id, select=["next"], limit=1) == [{"next": []}]
    with pytest.raises(UnprocessableEntityError):
        await client.threads.get_history(thread_id, before={"no": "place"})
    with pytest.raises(NotFoundError):
        await client.threads.get_history("nobody")


async def test_a_state_is_updated_as_a_node_would(client: Client) -> None:
    thread_id = await filled(client)
    states = await client.threads.get_history(thread_id)
    written = await client.threads.update_state(thread_id, {"turns": 5}, as_node="answer")
    head = await client.threads.get_state(thread_id)
    assert head["values"]["turns"] == 7
    assert written["checkpoint"]["checkpoint_id"] == head["checkpoint"]["checkpoint_id"]
    earlier = states[3]["checkpoint"]
    for at in ({"checkpoint": earlier}, {"checkpoint_id": earlier["checkpoint_id"]}):
        await client.threads.update_state(thread_id, {"turns": 10}, **at)
        assert (await client.threads.get_state(thread_id))["values"]["turns"] == 11
    with pytest.raises(BadRequestError):
        await client.threads.update_state(thread_id, {"turns": 1}, as_node="nobody")
    with pytest.raises(NotFoundError):
        await client.threads.update_state("nobody", {"turns": 1})


async def test_an_interrupt_is_shown_until_it_is_answered(client: Client) -> None:
    thread_id = await filled(client)
    values = await client.runs.wait(thread_id, "chat", input=said("ask"))
    pending = values["__interrupt__"][0]
    assert pending["value"] == {"question": "sure?"}
    thread = await client.threads.get(thread_id)
    state = await client.threads.get_state(thread_id, subgraphs=True)
    assert thread["status"] == "interrupted"
    assert thread["interrupts"] == {state["tasks"][0]["id"]: [pending]}
    assert state["interrupts"] == state["tasks"][0]["interrupts"] == [pending]
    values = await client.runs.wait(thread_id, "chat", command={"resume": "yes"})
    assert values["messages"][-1]["content"] == "You said yes."
    assert (await client.threads.get(thread_id))["interrupts"] == {}


async def test_an_error_is_shown(client: Client) -> None:
    thread_id = await filled(client, turns=1)
    with pytest.raises(Exception, match="ValueError: broken"):
        await client.runs.wait(thread_id, "chat", input=said("fail"))
    thread = await client.threads.get(thread_id)
    assert thread["status"] == "error"
    assert thread["error"] == {"error": "ValueError", "message": "ValueError('broken')"}


async def test_a_thread_that_a_graph_ran_on_elsewhere_is_there(
    client: Client, saver: ForkpointSaver
) -> None:
    ThreadCatalog(saver).create("elsewhere")
    values = await client.runs.wait("elsewhere", "chat", input=said("you"))
    assert values["turns"] == 1
    metadata = (await client.threads.get("elsewhere"))["metadata"]
    assert metadata["graph_id"] == "chat"
    assert "run_id" not in metadata
