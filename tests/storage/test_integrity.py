"""No row is lost or damaged without being noticed where it decides what is read."""

from __future__ import annotations

from typing import Any

import pytest

from checking import Api, config, id_of, put
from forkpoint import CorruptChunk
from graphs import SHAPES
from stores import Store


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("checkpoints", "parent_checkpoint_id", "other"),
        ("checkpoints", "parent_checkpoint_id", None),
        ("checkpoints", "restarts", 1),
        ("checkpoints", "run_id", "other"),
        ("writes", "task_path", "other"),
        ("writes", "channel", "other"),
        ("writes", "task_id", "other"),
    ],
)
def test_a_field_that_decides_what_is_read_is_covered_by_a_checksum(
    store: Store, kind: str, field: str, value: Any
) -> None:
    with store.saver() as saver:
        first = put(saver, {"n": 1}, metadata={"run_id": "run"})
        second = put(saver, {"n": 2}, parent=first, metadata={"run_id": "run"})
        saver.put_writes(second, [("n", 3)], "task", "path")
        store.change(kind, store.rows(kind)[-1].key, **{field: value})
        with pytest.raises(CorruptChunk, match="thread 'thread'"):
            saver.get_tuple(config())
        with pytest.raises(CorruptChunk, match="thread 'thread'"):
            list(saver.list(config()))


# Chains of ancestors


@pytest.mark.on_each_backend
@pytest.mark.parametrize("name", ["deltas", "snapshots", "deltas, durability exit"])
def test_a_channel_is_not_rebuilt_from_a_chain_that_ends_too_early(store: Store, name: str) -> None:
    shape = SHAPES[name]
    with store.saver() as saver:
        graph = shape.build(saver)
        for value in shape.inputs:
            graph.invoke(value, config(), **shape.options)
        ids = [id_of(found) for found in saver.list(config())]
        saver.trim("thread", 2)
        expected = graph.get_state(config()).values
        raised = 0
        for key, row in store.stored("checkpoints").items():
            if row["checkpoint_id"] == ids[0]:
                continue
            store.take("checkpoints", key)
            try:
                assert graph.get_state(config()).values == expected
            except CorruptChunk:
                raised += 1
                with pytest.raises(CorruptChunk, match="which is missing"):
                    saver.fork("thread")
            store.put_back("checkpoints", key, row)
        assert raised >= (name != "snapshots")
        assert graph.get_state(config()).values == expected


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_parent_that_never_was_stored_is_no_missing_one(store: Store, durability: Any) -> None:
    with store.saver() as saver:
        graph = SHAPES["deltas"].build(saver)
        foreign = config(checkpoint_id="00000000-0000-6000-8000-000000000000")
        first = graph.invoke({"log": ["start"]}, foreign, durability=durability)
        assert graph.get_state(config()).values["log"] == first["log"]
        second = graph.invoke({"log": ["again"]}, config(), durability=durability)
        assert graph.get_state(config()).values["log"] == second["log"]
        assert len(second["log"]) > len(first["log"])


async def test_a_task_that_named_two_channels_for_one_write_is_read_by_either(api: Api) -> None:
    """Its writes are stored once: of those of one number, the first one counts."""
    place = put(api.saver, {"n": 1})
    await api.put_writes(place, [("c", 1), ("d", 2)], "task")
    await api.put_writes(place, [("__error__", "again"), ("c", 3)], "task")
    child = put(api.saver, {"n": 2}, parent=place)
    read = await api.get_delta_channel_history(config=child, channels=["c", "d", "e"])
    assert [write[2] for write in read["c"]["writes"]] == [1]
    assert [write[2] for write in read["d"]["writes"]] == [2]
    for channel in "cd":
        read = await api.get_delta_channel_history(config=child, channels=[channel])
        assert len(read[channel]["writes"]) == 1
