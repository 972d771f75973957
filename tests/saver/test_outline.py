"""What runs next and what changed is known without the graph, and without reading values."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import one_by_one, put
from forkpoint import NOT_READ, InvalidInput, SqliteSaver, changed_channels, next_nodes
from graphs import MORE_SHAPES, SHAPES, THREAD, call

CASES = [name for name in SHAPES if "durability" not in name] + ["deferred", "goto"]


@one_by_one("name", CASES)
async def test_the_next_nodes_are_those_that_the_graph_says(name: str) -> None:
    shape = (SHAPES | MORE_SHAPES)[name]
    with SqliteSaver(":memory:") as saver:
        graph = shape.build(saver)
        for given in shape.inputs:
            await call(graph, "sync", given, shape.options)
        for found in saver.history("thread", values=False):
            tasks = graph.get_state(found.config).tasks
            expected = sorted({task.name for task in tasks})
            if name == "functional" and next_nodes(found) == ("__start__",):
                expected = ["__start__"]  # nothing has run yet that says its name
            assert list(next_nodes(found)) == expected, found.metadata
            assert next_nodes(saver.get_tuple(found.config)) == tuple(expected)


async def test_tasks_that_were_sent_and_take_much_are_named_by_their_channel() -> None:
    shape = MORE_SHAPES["agent"]
    with SqliteSaver(":memory:") as saver:
        graph = shape.build(saver)
        question = {"messages": [HumanMessage("question " * 1000)]}
        await call(graph, "sync", question, shape.options, THREAD)
        (sent,) = [
            found
            for found in saver.history("thread", values=False)
            if next_nodes(found) == ("__pregel_tasks",)
        ]
        assert sent.checkpoint["channel_values"]["__pregel_tasks"] is NOT_READ
        whole: Any = saver.get_tuple(sent.config)
        assert next_nodes(whole) == ("tools",)


def test_a_checkpoint_of_no_graph_has_no_next_nodes() -> None:
    with SqliteSaver(":memory:") as saver:
        put(saver, {"n": 1})
        (found,) = saver.history("thread", values=False)
        assert next_nodes(found) == changed_channels(found) == ()


async def test_the_changed_channels_are_those_of_the_state() -> None:
    shape = SHAPES["chat"]
    with SqliteSaver(":memory:") as saver:
        await call(shape.build(saver), "sync", shape.inputs[0], shape.options)
        changed = [changed_channels(found) for found in saver.history("thread", values=False)]
    assert changed == [(), ("document", "messages"), ("messages",)]


def test_what_is_no_checkpoint_is_refused() -> None:
    for outline in (next_nodes, changed_channels):
        with pytest.raises(InvalidInput, match=r"must be a CheckpointTuple.*, not dict"):
            outline({"configurable": {}})  # type: ignore[arg-type]
