"""Bad input gets a typed error that says what is wrong, before anything is written."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Collection
from typing import Any

import pytest

from checking import Api, checkpoint, config, one_by_one, put, value_of
from forkpoint import ForkpointError, InvalidInput
from forkpoint.saver.saver import ForkpointSaver
from stores import KINDS, Store

BAD_IDENTIFIERS: list[Any] = [
    "",
    1,
    1.5,
    True,
    b"bytes",
    uuid.UUID(int=1),
    ["list"],
    {"$ne": ""},
    {"$where": "1"},
    "nul\0byte",
    "lone \ud800 surrogate",
]
TAKEN_LITERALLY = [
    "x') OR '1'='1",
    "x') UNION SELECT 1,2,3,4,5,6,7 --",
    "'; DROP TABLE forkpoint_checkpoints; --",
    "trailing newline\n",
    "%",
    "*",
    "$where",
    "ünïcödé 🎉",
    " ",
    "x" * 5000,
]


class Unreadable(Collection[Any]):
    """What raises something that cannot be printed."""

    class Error(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    def __contains__(self, _: object) -> bool:
        raise self.Error

    def __iter__(self) -> Any:
        raise self.Error

    def __len__(self) -> int:
        return 1


def rows(store: Store) -> list[int]:
    return [store.count(kind) for kind in KINDS]


@pytest.fixture
def filled(api: Api, store: Store) -> list[int]:
    stored = put(api.saver, {"text": "text " * 500})
    api.saver.put_writes(stored, [("c", 1)], "task")
    return rows(store)


@one_by_one("bad", [*BAD_IDENTIFIERS, None])
async def test_bad_thread_ids_are_refused_everywhere(
    api: Api, store: Store, filled: list[int], bad: Any
) -> None:
    bad_config = config(bad, checkpoint_id="c")
    calls = [
        api.get_tuple(bad_config),
        api.list(bad_config),
        api.put(bad_config, checkpoint({"n": 1}), {}, {"n": 1}),
        api.put_writes(bad_config, [("c", 1)], "task"),
        api.get_delta_channel_history(config=bad_config, channels=["c"]),
        api.delete_thread(bad),
        api.copy_thread(bad, "target"),
        api.copy_thread("thread", bad),
        api.prune([bad]),
        api.prune(["thread", bad], strategy="delete"),
        api.delete_for_runs([bad]),
    ]
    for call in calls:
        with pytest.raises(InvalidInput):
            await call
    assert rows(store) == filled


@one_by_one("bad", BAD_IDENTIFIERS)
async def test_other_bad_identifiers_are_refused_everywhere(
    api: Api, store: Store, filled: list[int], bad: Any
) -> None:
    bad_id = config(checkpoint_id=bad)
    calls = [
        api.put_writes(bad_id, [("c", 1)], "task"),
        api.put(config(), {**checkpoint({}), "id": bad}, {}, {}),
        api.put_writes(config(checkpoint_id="c"), [("c", 1)], bad),
    ]
    if bad != "":  # no checkpoint, the namespace of the graph itself, and a task without a path
        bad_ns = config(ns=bad, checkpoint_id="c")
        calls += [
            api.get_tuple(bad_id),
            api.list(bad_id),
            api.list(None, before=bad_id),
            api.put(bad_id, checkpoint({}), {}, {}),
            api.get_tuple(bad_ns),
            api.list(bad_ns),
            api.put(bad_ns, checkpoint({}), {}, {}),
            api.put_writes(bad_ns, [("c", 1)], "task"),
            api.put_writes(config(checkpoint_id="c"), [("c", 1)], "task", bad),
        ]
    for call in calls:
        with pytest.raises(InvalidInput):
            await call
    assert rows(store) == filled


@pytest.mark.parametrize("name", TAKEN_LITERALLY, ids=lambda name: name[:20])
async def test_identifiers_are_data_whatever_they_look_like(api: Api, name: str) -> None:
    put(api.saver, {"n": 0}, thread_id="bystander")
    given = config(name, ns=name)
    made = {**checkpoint({name: 1}), "id": name}
    stored = await api.put(given, made, {name: name}, {name: 1})
    await api.put_writes(stored, [(name, name)], name, name)

    found = await api.get_tuple(stored)
    assert found.checkpoint["channel_values"] == {name: 1}
    assert found.pending_writes == [(name, name, name)]
    assert len(await api.list(given, filter={name: name})) == 1
    assert await api.list(None, filter={name: "other"}) == []
    await api.copy_thread(name, name + "2")
    await api.delete_thread(name)
    left = {one.config["configurable"]["thread_id"] for one in await api.list(None)}
    assert left == {"bystander", name + "2"}


@one_by_one("bad", [None, "thread", 1, [], {}, {"configurable": None}, {"configurable": {}}])
async def test_configs_without_a_thread_are_refused(
    api: Api, store: Store, filled: list[int], bad: Any
) -> None:
    calls = [
        api.get_tuple(bad),
        api.put(bad, checkpoint({}), {}, {}),
        api.put_writes(bad, [("c", 1)], "task"),
        api.get_delta_channel_history(config=bad, channels=["c"]),
    ]
    calls += [] if bad is None else [api.list(bad)]
    for call in calls:
        with pytest.raises(InvalidInput):
            await call
    assert rows(store) == filled


@one_by_one("bad", ["1", "1 UNION SELECT 1", 1.0, True, -1, [1], {"$gt": 0}])
def test_a_limit_must_be_a_whole_number_and_is_checked_at_once(
    saver: ForkpointSaver, bad: Any
) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        saver.list(config(), limit=bad)
    with pytest.raises(InvalidInput, match="limit"):
        saver.alist(config(), limit=bad)


@one_by_one("bad", ["x", 1, ["x"], {1: 2}, {"x": object()}, {"x": {1, 2}}])
def test_a_filter_must_be_a_mapping_of_json(saver: ForkpointSaver, bad: Any) -> None:
    with pytest.raises(InvalidInput, match="filter"):
        saver.list(config(), filter=bad)


@one_by_one(
    "made, metadata, versions",
    [
        ("no mapping", {}, {}),
        ({"id": "x", "channel_values": []}, {}, {}),
        ({"channel_values": {}}, {}, {}),
        ({"id": "x", "channel_values": {1: 2}}, {}, {}),
        ({"id": "x", "channel_values": {"c": object()}}, {}, {}),
        ({"id": "x", "channel_values": {"c": [object()]}}, {}, {}),
        ({"id": "x", "channel_values": {"c": {"k": lambda: 0}}}, {}, {}),
        ({"id": "x", "other": object()}, {}, {}),
        ({"id": "x"}, "metadata", {}),
        ({"id": "x"}, {"m": object()}, {}),
        ({"id": "x"}, {"m": {1, 2}}, {}),
        ({"id": "x"}, {}, "versions"),
    ],
)
async def test_a_checkpoint_with_a_value_that_cannot_be_stored_is_refused_whole(
    api: Api, store: Store, filled: list[int], made: Any, metadata: Any, versions: Any
) -> None:
    with pytest.raises(InvalidInput):
        await api.put(config(), made, metadata, versions)
    assert rows(store) == filled


@one_by_one(
    "bad", [None, "cw", {"c": 1}, [("c",)], [("c", 1, 2)], ["cw"], [(1, 2)], [("c", object())]]
)
async def test_writes_must_be_pairs_that_can_be_stored(
    api: Api, store: Store, filled: list[int], bad: Any
) -> None:
    with pytest.raises(InvalidInput):
        await api.put_writes(config(checkpoint_id="c"), bad, "task")
    with pytest.raises(InvalidInput):
        await api.put_writes(config(), [("c", 1)], "task")  # names no checkpoint
    assert rows(store) == filled


async def test_no_writes_are_no_error_and_leave_no_trace(
    api: Api, store: Store, filled: list[int]
) -> None:
    await api.put_writes(config("new", checkpoint_id="c"), [], "task")
    assert rows(store) == filled


@one_by_one("bad", [None, "thread", b"x", {"thread": 1}, 5])
async def test_lists_of_identifiers_must_be_sequences(
    api: Api, store: Store, filled: list[int], bad: Any
) -> None:
    for call in (api.prune(bad), api.delete_for_runs(bad)):
        with pytest.raises(InvalidInput):
            await call
    assert rows(store) == filled


@one_by_one("bad", ["keep_none", "", None, 1])
async def test_an_unknown_strategy_is_refused(
    api: Api, store: Store, filled: list[int], bad: Any
) -> None:
    with pytest.raises(InvalidInput, match="strategy"):
        await api.prune(["thread"], strategy=bad)
    assert rows(store) == filled


def test_every_error_is_a_forkpoint_error_and_a_built_in_one() -> None:
    import forkpoint

    leaves = [
        getattr(forkpoint, name)
        for name in forkpoint.__all__
        if isinstance(getattr(forkpoint, name), type)
        and issubclass(getattr(forkpoint, name), Exception)
    ]
    builtin = (ValueError, LookupError, RuntimeError, OSError, TypeError, ImportError)
    assert len(leaves) > 10
    assert all(issubclass(leaf, ForkpointError) for leaf in leaves)
    assert all(leaf is ForkpointError or issubclass(leaf, builtin) for leaf in leaves)


def test_errors_come_from_another_process_as_they_were() -> None:
    import forkpoint

    for error in (
        forkpoint.NotStorable("[3]", "is a socket", "channel c"),
        forkpoint.DamagedArchive(5, "thread", "it is cut off"),
        forkpoint.DamagedArchive(5, None, "it is cut off"),
        forkpoint.StorageBusy("busy"),
    ):
        restored = pickle.loads(pickle.dumps(error))
        assert type(restored) is type(error)
        assert str(restored) == str(error)
        assert vars(restored) == vars(error)


@one_by_one("bad", [5, "state_types.Plain", {"a": "b"}, [5], [("a",)], [b"a.b"], Unreadable()])
def test_an_allowlist_must_be_a_collection_of_names(saver: ForkpointSaver, bad: Any) -> None:
    with pytest.raises(InvalidInput):
        saver.with_allowlist(bad)


class Version(str):
    pass


async def test_versions_may_be_of_a_class_of_ones_own(api: Api) -> None:
    versions = {"c": Version("2.5")}
    await api.put(config(), {**checkpoint({"c": 1}), "channel_versions": versions}, {}, versions)
    found = await api.get_tuple(config())
    assert (found.checkpoint["channel_versions"], value_of(found)) == (versions, {"c": 1})
