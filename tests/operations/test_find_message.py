"""Finding the checkpoint in which a message came, as a chat does to edit it or to answer anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.types import Overwrite

from checking import Api, config, encrypted_serde, id_of, put
from forkpoint import CorruptChunk, InvalidInput, MessageOrigin, ThreadNotFound
from forkpoint.operations import find_message as finding
from forkpoint.operations.find_message import is_left
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES, said
from stores import Store

THREAD: Any = {"configurable": {"thread_id": "thread"}}


def merged(value: list[Any], writes: list[Any]) -> list[Any]:
    for write in writes:
        value = add_messages(value, write)  # type: ignore[assignment]
    return value


class Delta(TypedDict):
    messages: Annotated[list[Any], DeltaChannel(merged, snapshot_frequency=4)]


class Plain(TypedDict):
    messages: Annotated[list[Any], add_messages]


def answering(saver: Any, schema: Any) -> Any:
    """A graph that answers, unless it is told to remove or to replace messages."""

    def answer(state: Any) -> dict[str, Any]:
        count = len(state["messages"])
        last = state["messages"][-1]
        if last.content == "forget":
            return {"messages": [RemoveMessage(state["messages"][0].id)]}
        if last.content == "forget all":
            kept = AIMessage("empty", id=f"ai-{last.id}")
            return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), kept]}
        if last.content == "overwrite":
            return {"messages": Overwrite([AIMessage("over", id=f"ai-{last.id}")])}
        return {"messages": [AIMessage(f"answer {count} " * 40, id=f"ai-{last.id}")]}

    builder = StateGraph(schema)
    builder.add_node(answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def ids(state: Any) -> list[str]:
    return [message.id for message in state.values.get("messages", [])]


async def test_a_message_is_edited_and_an_answer_is_made_anew(api: Api, store: Store) -> None:
    graph = SHAPES["chat"].build(api.saver)
    for n in range(4):
        graph.invoke(said(n), THREAD)
    edited = await api.find_message("thread", "human-2")
    assert isinstance(edited, MessageOrigin)
    fork = await api.fork(edited.before.config)
    done = graph.invoke({"messages": [HumanMessage("instead", id="new")]}, fork)["messages"]
    assert [message.id for message in done] == ["human-0", "ai-1", "human-1", "ai-3", "new", "ai-5"]

    answered = await api.find_message("thread", "ai-5")
    assert id_of(answered.before) == id_of(edited.first)
    fork = await api.fork(answered.before.config)
    done = graph.invoke(None, fork)["messages"]
    assert [message.id for message in done][-2:] == ["human-2", "ai-5"]
    assert await api.find_message(fork["configurable"]["thread_id"], "human-3") is None

    first = await api.find_message("thread", "human-0")
    assert first.before is None  # there is nothing before it to fork
    assert await api.find_message("thread", "unknown") is None
    assert store.problems(api.saver) == []


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("schema", [Plain, Delta])
async def test_each_message_is_found_in_its_first_checkpoint(
    schema: Any, durability: Any, api: Api, store: Store
) -> None:
    """Also those that were removed since, whatever the channel stores."""
    graph = answering(api.saver, schema)
    texts = ["a", "b", "forget", "c", "forget all", "d", "overwrite", "e"]
    for n, text in enumerate(texts):
        graph.invoke({"messages": [HumanMessage(text, id=f"h{n}")]}, THREAD, durability=durability)
    path = list(api.saver.history("thread"))
    states = [ids(graph.get_state(one.config)) for one in path]
    known = {id_ for state in states for id_ in state}
    assert len(known) == (13 if durability == "exit" else 15)
    for id_ in known:
        origin = await api.find_message("thread", id_)
        number = next(n for n, state in enumerate(states) if id_ in state)
        assert origin.first == path[number], id_
        is_given = path[number - 1].metadata.get("source") == "input"
        before = number - 1 - is_given
        assert origin.before == (path[before] if before >= 0 else None), id_
        if durability == "sync":
            assert is_given == id_.startswith("h")
    assert store.problems(api.saver) == []


async def test_a_message_of_a_branch_that_was_abandoned_is_not_found(api: Api) -> None:
    graph = answering(api.saver, Plain)
    for n in range(3):
        graph.invoke({"messages": [HumanMessage("x", id=f"h{n}")]}, THREAD)
    origin = await api.find_message("thread", "h1")
    graph.invoke({"messages": [HumanMessage("y", id="other")]}, origin.before.config)
    assert ids(graph.get_state(THREAD)) == ["h0", "ai-h0", "other", "ai-other"]
    assert await api.find_message("thread", "h1") is None
    assert (await api.find_message("thread", "other")).before.config == origin.before.config
    assert (await api.find_message("thread", "h0")).before is None


@pytest.mark.on_each_backend
async def test_a_message_is_found_in_what_a_trim_has_left(api: Api, store: Store) -> None:
    """Though the channel is rebuilt from checkpoints that are not seen any more."""
    graph = answering(api.saver, Delta)
    for n in range(3):
        graph.invoke({"messages": [HumanMessage("text", id=f"h{n}")]}, THREAD)
    await api.trim("thread", 2)
    left = list(api.saver.history("thread"))
    assert len(left) == 2
    origin = await api.find_message("thread", "h0")
    assert (origin.first, origin.before) == (left[0], None)
    assert await api.find_message("thread", "h3") is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[{"id": "m"}]], True),
        ([{"id": "m"}, {"id": "other"}], True),
        ([[{"id": "m"}], {"type": "remove", "id": "m"}], False),
        ([[{"id": "m"}], {"__overwrite__": [{"id": "other"}]}], False),
        ([[{"id": "other"}], {"__overwrite__": [{"id": "m"}]}], True),
        ([[{"id": "m"}], Overwrite([])], False),
    ],
)
def test_messages_that_are_mappings_are_found_too(values: list[Any], expected: bool) -> None:
    assert is_left("m", values) == expected


def test_a_message_is_not_found_where_the_checkpoint_before_is_lost(store: Store) -> None:
    with store.saver() as saver:
        parent = None
        messages = [HumanMessage("x", id=str(n)) for n in range(5)]
        for n in range(1, 6):
            parent = put(saver, {"messages": messages[:n]}, parent=parent)
        lost = list(saver.history("thread"))[1].config["configurable"]["checkpoint_id"]
        rows = store.stored("checkpoints")
        taken = store.take("checkpoints", next(k for k in rows if rows[k]["checkpoint_id"] == lost))
        for id_ in ("0", "1", "2"):  # all of these the oldest checkpoint has that is left
            with pytest.raises(CorruptChunk, match=lost):
                saver.find_message("thread", id_)
        origin = saver.find_message("thread", "3")
        assert origin is not None
        assert origin.before is not None
        store.give_back("checkpoints", taken)
        saver.trim("thread", 3)  # what is removed on purpose is not lost
        assert saver.find_message("thread", "1") is not None


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_finding_a_message_in_a_long_thread_reads_few_states(
    is_encrypted: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cipher = encrypted_serde()
    opened: list[Any] = []
    open_checkpoint: Callable[..., Any] = finding.open_checkpoint

    def recording(codec: Any, row: Any) -> Any:
        opened.append(row)
        return open_checkpoint(codec, row)

    monkeypatch.setattr(finding, "open_checkpoint", recording)
    with store.saver(serde=cipher if is_encrypted else None) as saver:
        head: Any = None
        messages: list[Any] = []
        for n in range(120):
            messages.append({"id": f"m{n}", "type": "human", "content": f"text {n} " * 30})
            head = put(saver, {"chat": messages, "n": n}, parent=head)
        for n in (0, 1, 60, 118, 119):
            opened.clear()
            origin = saver.find_message("thread", f"m{n}", channel="chat")
            assert origin is not None
            assert len(opened) <= 10
            assert origin.first.checkpoint["channel_values"]["n"] == n
            before = origin.before and origin.before.checkpoint["channel_values"]["n"]
            assert before == (n - 1 if n else None)
        saver.trim("thread", 5)
        origin = saver.find_message("thread", "m7", channel="chat")
        assert origin is not None
        assert (id_of(origin.first), origin.before) == (id_of(saver.at("thread", 0)), None)
        assert saver.find_message("thread", "m7") is None  # in another channel


async def test_invalid_arguments_of_find_message_are_refused(
    api: Api, saver: ForkpointSaver
) -> None:
    await api.put_writes(config("writes", "1f100000-0000-6000-8000-000000000000"), [("n", 1)], "t")
    assert await api.find_message("writes", "m") is None
    with pytest.raises(ThreadNotFound, match="'nobody'"):
        await api.find_message("nobody", "m")
    for arguments, named in (
        (("thread", None), "message_id"),
        (("thread", ""), "message_id"),
        ((THREAD, "m"), "thread_id"),
    ):
        with pytest.raises(InvalidInput, match=named):
            await api.find_message(*arguments)
    with pytest.raises(InvalidInput, match="channel"):
        await api.find_message("thread", "m", channel=7)
