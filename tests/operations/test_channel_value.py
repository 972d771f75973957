"""The value of one channel of a checkpoint is read, and nothing of the others."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph

from checking import Api, config, put
from forkpoint import CheckpointNotFound, CorruptChunk, InvalidInput, ThreadNotFound
from forkpoint.encoding.decoder import Decoder
from stores import Store


def append_all(value: Any, writes: Any) -> list[Any]:
    return [*(value or []), *(item for write in writes for item in write)]


class State(TypedDict):
    items: Annotated[list[str], DeltaChannel(append_all, snapshot_frequency=1000)]
    plain: str


VALUES = {"texts": [f"{n} " * 900 for n in range(30)], "numbers": list(range(9000)), "n": 5}


async def test_each_channel_of_each_checkpoint_is_read_alone(api: Api) -> None:
    first = put(api.saver, VALUES)
    put(api.saver, {**VALUES, "n": 6, "new": {"a": None}}, parent=first)
    put(api.saver, {"n": "of a subgraph"}, ns="child")

    for source, whole in ((first, VALUES), ("thread", {**VALUES, "n": 6, "new": {"a": None}})):
        for channel, value in whole.items():
            assert await api.value(source, channel) == value
    assert await api.value(config(), "n") == 6
    assert await api.value(config(ns="child"), "n") == "of a subgraph"
    item = await api.at("thread", 0, values=False)
    assert await api.value(item.config, "texts") == VALUES["texts"]


async def test_chunks_of_other_channels_are_not_read(
    store: Store, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(api.saver, {"n": 5, "text": "text " * 3000})
    opened: list[bytes] = []
    open_chunk = Decoder.open_chunk

    def note(self: Decoder, digest: bytes, row: Any) -> Any:
        opened.append(digest)
        return open_chunk(self, digest, row)

    monkeypatch.setattr(Decoder, "open_chunk", note)
    assert await api.value("thread", "n") == 5
    assert opened == []
    (chunk,) = store.rows("chunks")
    store.take("chunks", chunk.key)
    with store.saver() as reader:
        assert await Api(reader, api.world).value("thread", "n") == 5
        with pytest.raises(CorruptChunk, match="thread 'thread', checkpoint"):
            await Api(reader, api.world).value("thread", "text")


async def test_what_is_not_there_is_said(api: Api) -> None:
    put(api.saver, {"a": 1, "b": None, "__pregel_tasks": []})

    assert await api.value("thread", "b") is None
    with pytest.raises(InvalidInput, match=r"no channel 'c'; it has \['a', 'b'\]"):
        await api.value("thread", "c")
    with pytest.raises(ThreadNotFound):
        await api.value("nobody", "a")
    with pytest.raises(CheckpointNotFound):
        await api.value(config(checkpoint_id="nothing"), "a")


@pytest.mark.in_turns
async def test_a_value_that_the_graph_rebuilds_is_said_to_be_that(api: Api) -> None:
    builder: Any = StateGraph(State)
    builder.add_node("node", lambda _: {"items": ["b"], "plain": "text"})
    builder.add_edge(START, "node")
    graph = builder.compile(checkpointer=api.saver)
    await graph.ainvoke({"items": ["a"]}, config())

    assert await api.value("thread", "plain") == "text"
    with pytest.raises(InvalidInput, match=r"rebuilt from writes: graph\.get_state"):
        await api.value("thread", "items")
