"""Values of any size come back, and what a store cannot hold is refused before it is written."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import Api, checkpoint, config, put, value_of
from forkpoint import InvalidInput, inputs
from forkpoint.saver.saver import ForkpointSaver
from stores import KINDS, Store

MB = 1_000_000


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def text(count: int, seed: int = 0) -> str:
    return noise(count // 2, seed).hex()


VALUES: dict[str, Callable[[], dict[str, Any]]] = {
    "many channels": lambda: {f"c{n}": text(100_000, n) for n in range(400)},
    "text": lambda: {"c": text(40 * MB)},
    "bytes": lambda: {"c": noise(40 * MB)},
    "messages": lambda: {"c": [HumanMessage(text(10_000, n), id=str(n)) for n in range(4000)]},
    "dict": lambda: {"c": {f"{n}.txt": {"text": text(40_000, n)} for n in range(1000)}},
    "numbers": lambda: {"c": list(range(MB))},
}


mostly_mongodb = pytest.mark.parametrize(
    "new_store", ["mongodb", pytest.param("sqlite", marks=pytest.mark.slow)], indirect=True
)
"""For what has a limit on MongoDB only."""


def rows(store: Store) -> list[int]:
    """Return how many rows there are, records of deleted threads included."""
    return [len(store.threads()), *(store.count(kind) for kind in KINDS)]


@mostly_mongodb
@pytest.mark.parametrize(
    "kind",
    [
        "bytes",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in VALUES if kind != "bytes"),
    ],
)
def test_a_state_of_forty_megabytes_comes_back_and_goes(
    kind: str, saver: ForkpointSaver, store: Store
) -> None:
    values = VALUES[kind]()
    stored = put(saver, values)
    chunks = store.count("chunks")
    put(saver, values, parent=stored)
    saver.copy_thread("thread", "copy")
    assert store.count("chunks") == chunks

    assert [value_of(one) == values for one in saver.list(config())] == [True] * 2
    saver.delete_thread("thread")
    assert value_of(saver.get_tuple(config("copy"))) == values
    saver.delete_thread("copy")
    assert [store.count(kind) for kind in KINDS] == [0, 0, 0, 0]


@mostly_mongodb
async def test_a_write_of_forty_megabytes_comes_back_and_goes(api: Api, store: Store) -> None:
    value = text(40 * MB)
    stored = await api.put(config(), checkpoint({"n": 1}), {}, {"n": 1})
    await api.put_writes(stored, [("before", 1), ("c", value), ("after", 2)], "task")

    found = (await api.get_tuple(config())).pending_writes
    assert [channel for _, channel, _ in found] == ["before", "c", "after"]
    assert found[1][2] == value
    await api.delete_thread("thread")
    assert [store.count(kind) for kind in KINDS] == [0, 0, 0, 0]


@pytest.mark.slow
async def test_a_value_of_a_hundred_and_twenty_megabytes_comes_back_and_goes(
    api: Api, store: Store
) -> None:
    """More than a reply, a message, or what the server follows references through, can hold."""
    value = noise(120 * MB)
    stored = await api.put(config(), checkpoint({"c": value}), {}, {"c": 1})
    await api.put_writes(stored, [("c", value)], "task")

    found = await api.get_tuple(config())
    assert value_of(found) == {"c": value}
    assert found.pending_writes == [("task", "c", value)]
    await api.delete_thread("thread")
    assert [store.count(kind) for kind in KINDS] == [0, 0, 0, 0]


@mostly_mongodb
@pytest.mark.parametrize(
    ("number", "length"), [(2_000, 10_000), pytest.param(20_000, 1_000, marks=pytest.mark.slow)]
)
def test_thousands_of_writes_of_one_step_come_back(
    number: int, length: int, saver: ForkpointSaver, store: Store
) -> None:
    """Together they are more than fits into one document of MongoDB."""
    stored = put(saver, {"n": 1})
    writes = [(f"c{n}", text(length, n)) for n in range(number)]
    saver.put_writes(stored, writes, "task")

    expected = [("task", *write) for write in writes]
    found = saver.get_tuple(config())
    assert found is not None
    assert found.pending_writes == expected
    (found,) = saver.list(config())
    assert found.pending_writes == expected
    saver.delete_thread("thread")
    assert store.count("writes") == 0


# What may not fit


@mostly_mongodb
@pytest.mark.parametrize(
    "length",
    [pytest.param(10, marks=pytest.mark.slow), 400],
    ids=lambda length: f"{length} characters each",
)
def test_fifty_thousand_channels_are_stored_or_refused(
    length: int, saver: ForkpointSaver, store: Store
) -> None:
    put(saver, {"n": 1})
    values = {f"c{n}": text(length, n) for n in range(50_000)}
    stored_or_refused(saver, store, lambda: put(saver, values, thread_id="large"), values)


@mostly_mongodb
def test_what_is_too_much_after_many_chunks_is_refused_before_them(
    saver: ForkpointSaver, store: Store
) -> None:
    """The chunks alone are more than one message to a server holds."""
    put(saver, {"n": 1})
    large = noise(50 * MB)
    values = {f"c{n}": text(400, n) for n in range(50_000)} | {"large": large}
    stored_or_refused(saver, store, lambda: put(saver, values, thread_id="new"), values)

    before = rows(store)
    try:
        saver.put_writes(config("new", "c"), [("c", 1), ("c", large), ("x" * 17 * MB, 1)], "task")
    except InvalidInput:
        assert rows(store) == before
    assert store.problems() == []


@mostly_mongodb
def test_a_checkpoint_that_replaces_a_large_one_is_stored_or_refused(
    saver: ForkpointSaver, store: Store
) -> None:
    """On MongoDB, there is a moment when the document has to hold both."""
    old, new = ({f"c{n}": text(400, n) for n in range(35_000)} for _ in range(2))
    new["c1"] = "new"
    made = checkpoint(old)
    saver.put(config(), made, {}, {})
    before = rows(store)
    try:
        saver.put(config(), {**made, "channel_values": new}, {}, {})
    except InvalidInput:
        new = old
    assert rows(store) == before
    assert value_of(saver.get_tuple(config())) == new
    assert store.problems(saver) == []


def stored_or_refused(
    saver: ForkpointSaver, store: Store, call: Callable[[], Any], values: dict[str, Any]
) -> None:
    before = rows(store)
    try:
        stored = call()
    except InvalidInput:
        assert rows(store) == before
    else:
        assert value_of(saver.get_tuple(stored)) == values
    assert store.problems(saver) == []


NAMES: dict[str, Callable[[Api, str], Any]] = {
    "thread": lambda api, name: api.put(config(name), checkpoint({"n": 1}), {}, {"n": 1}),
    "namespace": lambda api, name: api.put(config(ns=name), checkpoint({"n": 1}), {}, {"n": 1}),
    "checkpoint": lambda api, name: api.put(
        config(), {**checkpoint({"n": 1}), "id": name}, {}, {"n": 1}
    ),
    "parent": lambda api, name: api.put(
        config(checkpoint_id=name), checkpoint({"n": 1}), {}, {"n": 1}
    ),
    "channel": lambda api, name: api.put(config(), checkpoint({name: 1}), {}, {name: 1}),
    "task": lambda api, name: api.put_writes(config(checkpoint_id="c"), [("c", 1)], name),
    "path": lambda api, name: api.put_writes(config(checkpoint_id="c"), [("c", 1)], "t", name),
    "channel of a write": lambda api, name: api.put_writes(
        config(checkpoint_id="c"), [("before", 1), (name, 1)], "task"
    ),
    "checkpoint of a write": lambda api, name: api.put_writes(
        config(checkpoint_id=name), [("c", 1)], "task"
    ),
    "thread of a write": lambda api, name: api.put_writes(
        config(name, checkpoint_id="c"), [("c", 1)], "task"
    ),
    "run": lambda api, name: api.put(
        config(), checkpoint({"n": 1}), {"run_id": name[: 4 * MB]}, {"n": 1}
    ),
    "deleted thread": lambda api, name: api.delete_thread(name),
    "deleted run": lambda api, name: api.delete_for_runs([name]),
    "pruned thread": lambda api, name: api.prune([name]),
    "target": lambda api, name: api.copy_thread("thread", name),
    "wanted thread": lambda api, name: api.get_tuple(config(name)),
    "wanted checkpoint": lambda api, name: api.get_tuple(config(checkpoint_id=name)),
    "listed namespace": lambda api, name: api.list(config(ns=name)),
    "listed before": lambda api, name: api.list(None, before=config(checkpoint_id=name)),
    "wanted channel": lambda api, name: api.get_delta_channel_history(
        config=config(), channels=[name]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", NAMES)
async def test_a_name_of_seventeen_megabytes_works_or_is_refused(
    what: str, saver: ForkpointSaver, store: Store
) -> None:
    put(saver, {"text": "text " * 500})
    before = rows(store)
    try:
        await NAMES[what](Api(saver, "sync"), "x" * 17 * MB)
    except InvalidInput:
        assert rows(store) == before
    assert store.problems(saver) == []


# Metadata


def metadata_of(count: int) -> dict[str, Any]:
    """Return metadata that take this many bytes as JSON."""
    return {"text": "x" * (count - len('{"text":""}'))}


async def test_metadata_that_are_too_long_are_refused_with_the_limit(
    api: Api, store: Store
) -> None:
    stored = put(api.saver, {"text": "text " * 500})
    before = rows(store)
    long = metadata_of(inputs.METADATA_BYTES + 1)
    in_config = {"configurable": {"thread_id": "new", "checkpoint_id": "c", **long}}
    calls = [
        api.put(config(), checkpoint({"other": "x" * 9000}), long, {"other": 1}),
        api.put(config("new"), checkpoint({"other": "x" * 9000}), long, {"other": 1}),
        api.put(in_config, checkpoint({"other": "x" * 9000}), {}, {"other": 1}),
        api.put_writes(in_config, [("c", "x" * 9000)], "task"),
        api.list(config(), filter=long),
        api.list(None, filter={"nested": {"list": [long]}}),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match=str(inputs.METADATA_BYTES)):
            await call
    assert rows(store) == before
    assert value_of(await api.get_tuple(stored)) == {"text": "text " * 500}


LONGEST: dict[str, dict[str, Any]] = {
    "one text": metadata_of(inputs.METADATA_BYTES),
    "many numbers": {"text": list(range(590_000))},
    "many keys": {"text": {f"{n:x}": n for n in range(250_000)}},
}


@pytest.mark.parametrize(
    "kind", ["one text", pytest.param("many numbers", marks=pytest.mark.slow), "many keys"]
)
def test_metadata_that_are_just_short_enough_come_back_and_are_found(
    kind: str, saver: ForkpointSaver, store: Store
) -> None:
    metadata = LONGEST[kind]
    parent = put(saver, {"text": "text " * 500}, metadata=metadata)
    put(saver, {"text": "text " * 500}, parent=parent, metadata={**metadata, "text": "other"})

    found = list(saver.list(config()))
    assert [one.metadata for one in found] == [{"text": "other"}, metadata]
    some = metadata["text"]
    if isinstance(some, list):
        some = some[-2:]
    elif isinstance(some, dict):
        some = {"ff": 255}
    assert len(list(saver.list(None, filter={"text": some}))) == 1
    assert list(saver.list(None, filter={"text": "another"})) == []
    assert store.problems(saver) == []


@mostly_mongodb
def test_a_page_of_long_metadata_is_read(saver: ForkpointSaver) -> None:
    metadata = metadata_of(inputs.METADATA_BYTES)
    for n in range(21):
        put(saver, {"n": n}, metadata=metadata)
    for one in (config(), None):
        found = list(saver.list(one))
        assert len(found) == 21
        assert all(item.metadata == metadata for item in found)
