"""What LangGraph expects of a checkpointer, in the sync and the async world alike."""

from __future__ import annotations

from typing import Any

import pytest
from checking import Api, checkpoint, config, id_of, one_by_one, put
from langchain_core.messages import AIMessage, HumanMessage
from stores import Store

from forkpoint import InvalidInput, ThreadExists, ThreadNotFound
from forkpoint.saver.saver import ForkpointSaver


async def test_a_checkpoint_comes_back_as_it_was_put(api: Api) -> None:
    made = checkpoint(
        {"messages": [HumanMessage("hi", id="1")], "n": 3, "nested": {"a": [1, None]}}
    )
    made["versions_seen"] = {"node": {"messages": 1}}
    made["updated_channels"] = ["messages"]

    stored = await api.put(config(), made, {"source": "loop", "step": 1}, {"messages": 1})
    found = await api.get_tuple(config())

    assert found.checkpoint == made
    assert found.metadata == {"source": "loop", "step": 1}
    assert found.config == stored == config(checkpoint_id=made["id"])
    assert found.parent_config is None
    assert found.pending_writes == []


async def test_the_newest_checkpoint_of_the_namespace_is_found_without_an_id(api: Api) -> None:
    first = put(api.saver, {"n": 1})
    second = put(api.saver, {"n": 2}, parent=first)
    put(api.saver, {"n": 3}, ns="child:1")

    assert id_of(await api.get_tuple(config())) == id_of(second)
    assert (await api.get_tuple(first)).checkpoint["channel_values"] == {"n": 1}
    assert (await api.get_tuple(config(ns="child:1"))).checkpoint["channel_values"] == {"n": 3}
    assert (await api.get_tuple(second)).parent_config == first


async def test_what_does_not_exist_is_none(api: Api) -> None:
    assert await api.get_tuple(config("nobody")) is None
    put(api.saver, {"n": 1})
    assert await api.get_tuple(config(checkpoint_id="no such id")) is None
    assert await api.get_tuple(config(ns="no such namespace")) is None
    assert await api.list(config("nobody")) == []


async def test_an_unchanged_channel_keeps_its_value_without_being_stored_again(api: Api) -> None:
    document = "a long document " * 500
    first = checkpoint({"document": document, "n": 1})
    after_first = await api.put(config(), first, {}, {"document": 1, "n": 1})

    class Unserializable:
        pass

    second = checkpoint({"document": Unserializable(), "n": 2}, {"document": 1, "n": 2})
    await api.put(after_first, second, {}, {"n": 2})  # not looked at, for it has not changed

    found = await api.get_tuple(config())
    assert found.checkpoint["channel_values"] == {"document": document, "n": 2}


async def test_values_count_as_given_where_new_versions_are_empty(api: Api) -> None:
    first = await api.put(config(), checkpoint({"n": 1}), {}, {"n": 1})
    await api.put(first, checkpoint({"n": 2}), {}, {})

    assert (await api.get_tuple(config())).checkpoint["channel_values"] == {"n": 2}


async def test_a_value_counts_as_given_where_its_version_is_not_the_parents(api: Api) -> None:
    first = await api.put(config(), checkpoint({"n": 1, "m": 1}), {}, {"n": 1, "m": 1})
    await api.put(first, checkpoint({"n": 5, "m": 2}, {"n": 4, "m": 2}), {}, {"m": 2})

    assert (await api.get_tuple(config())).checkpoint["channel_values"] == {"n": 5, "m": 2}


async def test_a_channel_that_is_gone_stays_gone(api: Api) -> None:
    first = await api.put(config(), checkpoint({"a": 1, "b": 2}), {}, {"a": 1, "b": 1})
    await api.put(first, checkpoint({"a": 2}, {"a": 2}), {}, {"a": 2})

    assert (await api.get_tuple(config())).checkpoint["channel_values"] == {"a": 2}


async def test_state_that_was_changed_in_place_between_two_puts_is_stored_as_it_is_then(
    api: Api,
) -> None:
    messages = [AIMessage(f"message {n} " * 40, id=str(n)) for n in range(100)]
    files = {f"{n}.txt": {"text": f"file {n} " * 50} for n in range(50)}
    values = {"messages": messages, "files": files}
    first = await api.put(config(), checkpoint(values), {}, dict.fromkeys(values, 1))

    messages[50].content = "changed in place"
    messages[70].additional_kwargs["flag"] = 1
    files["25.txt"]["text"] = "changed too"
    second = await api.put(first, checkpoint(values), {}, dict.fromkeys(values, 2))
    messages[70].additional_kwargs["flag"] = True  # equal to 1, and not the same
    third = await api.put(second, checkpoint(values), {}, dict.fromkeys(values, 3))

    old, new, newest = [
        (await api.get_tuple(one)).checkpoint["channel_values"] for one in (first, second, third)
    ]
    assert old["messages"][50].content == "message 50 " * 40
    assert old["messages"][70].additional_kwargs == {}
    assert old["files"]["25.txt"] == {"text": "file 25 " * 50}
    assert new["messages"][50].content == "changed in place"
    assert new["messages"][70].additional_kwargs["flag"] is not True
    assert newest["messages"][70].additional_kwargs["flag"] is True
    assert new["files"] == newest["files"] == files


async def test_two_readers_never_share_an_object(api: Api) -> None:
    put(api.saver, {"messages": [AIMessage(f"m{n} " * 50, id=str(n)) for n in range(50)]})

    first = (await api.get_tuple(config())).checkpoint["channel_values"]["messages"]
    first[3].content = "scribbled"
    first[4].additional_kwargs["x"] = 1
    second = (await api.get_tuple(config())).checkpoint["channel_values"]["messages"]

    assert second[3].content == "m3 " * 50
    assert second[4].additional_kwargs == {}
    assert not {id(message) for message in first} & {id(message) for message in second}


async def test_a_checkpoint_of_the_same_id_is_replaced(api: Api) -> None:
    made = checkpoint({"n": 1})
    await api.put(config(), made, {"step": 1}, {"n": 1})
    await api.put(config(), {**made, "channel_values": {"n": 2}}, {"step": 2}, {"n": 2})

    (found,) = await api.list(config())
    assert (found.checkpoint["channel_values"], found.metadata["step"]) == ({"n": 2}, 2)


async def test_writes_are_stored_once_and_special_ones_replaced(api: Api) -> None:
    stored = put(api.saver, {"n": 1})
    await api.put_writes(stored, [("a", 1), ("__interrupt__", "old")], "task")
    await api.put_writes(stored, [("a", 2), ("__interrupt__", "new")], "task")

    writes = (await api.get_tuple(stored)).pending_writes
    assert writes == [("task", "__interrupt__", "new"), ("task", "a", 1)]


async def test_writes_come_in_the_order_in_which_a_run_applies_them(api: Api) -> None:
    stored = put(api.saver, {"n": 1})
    await api.put_writes(stored, [("c", "second path")], "a-task", "~2")
    await api.put_writes(stored, [("c", "first path"), ("d", "after")], "z-task", "~1")
    await api.put_writes(stored, [("c", "no path")], "m-task")

    writes = [value for _, _, value in (await api.get_tuple(stored)).pending_writes]
    assert writes == ["no path", "first path", "after", "second path"]


async def test_the_same_write_on_a_second_path_is_no_error(api: Api) -> None:
    stored = put(api.saver, {"n": 1})
    await api.put_writes(stored, [("c", 1)], "task", "~1")
    await api.put_writes(stored, [("c", 1)], "task", "~2")

    assert (await api.get_tuple(stored)).pending_writes == [("task", "c", 1)]


async def test_writes_may_come_before_their_checkpoint(api: Api) -> None:
    made = checkpoint({"n": 1})
    await api.put_writes(config(checkpoint_id=made["id"]), [("c", "early")], "task")
    assert await api.get_tuple(config()) is None

    await api.put(config(), made, {}, {"n": 1})
    assert (await api.get_tuple(config())).pending_writes == [("task", "c", "early")]


async def test_large_values_of_writes_come_back(api: Api) -> None:
    stored = put(api.saver, {"n": 1})
    values = [
        "x" * 300_000,
        [HumanMessage("y" * 700, id=str(n)) for n in range(200)],
        b"z" * 70_000,
    ]
    await api.put_writes(stored, [("c", value) for value in values], "task")

    assert [value for *_, value in (await api.get_tuple(stored)).pending_writes] == values


async def test_listing_goes_from_new_to_old_in_pages(api: Api) -> None:
    parent, ids = None, []
    for step in range(53):
        parent = put(api.saver, {"n": step}, parent=parent, metadata={"step": step})
        ids.append(id_of(parent))

    found = await api.list(config())
    assert [id_of(one) for one in found] == ids[::-1]
    assert [one.checkpoint["channel_values"]["n"] for one in found] == list(range(53))[::-1]
    for limit in (0, 1, 19, 20, 21, 40, 53, 99):
        assert [id_of(one) for one in await api.list(config(), limit=limit)] == ids[::-1][:limit]
    before = config(checkpoint_id=ids[30])
    assert [id_of(one) for one in await api.list(config(), before=before)] == ids[:30][::-1]
    assert [id_of(one) for one in await api.list(config(), before=before, limit=25)] == (
        ids[5:30][::-1]
    )
    (one,) = await api.list(config(checkpoint_id=ids[7]))
    assert id_of(one) == ids[7]


async def test_listing_without_a_config_covers_all_threads_and_namespaces(api: Api) -> None:
    stored = [
        put(api.saver, {"n": n}, thread_id=f"thread-{n % 3}", ns="" if n % 2 else "child")
        for n in range(45)
    ]
    everything = await api.list(None)

    assert [id_of(one) for one in everything] == [id_of(one) for one in reversed(stored)]
    one_thread = await api.list({"configurable": {"thread_id": "thread-1"}})
    assert len(one_thread) == 15
    assert {one.config["configurable"]["checkpoint_ns"] for one in one_thread} == {"", "child"}


async def test_equal_ids_in_several_threads_are_all_listed(api: Api) -> None:
    made = checkpoint({"n": 1})
    for n in range(45):
        await api.put(config(f"thread-{n:02}"), made, {}, {"n": 1})

    found = await api.list(None)
    assert len({one.config["configurable"]["thread_id"] for one in found}) == len(found) == 45


METADATA: list[dict[str, Any]] = [
    {"k": 1},
    {"k": True},
    {"k": "1"},
    {"k": 1.5},
    {"k": None},
    {"k": [1, 2, 3]},
    {"k": {"a": 1, "b": {"c": "d"}}},
    {"user.id": "u1"},
    {"user": {"id": "u1"}},
    {"$.k": 1, 'quo"te': "it's", "": "empty key"},
    {"k": "\ud800 lone"},
    {"k": "true"},
    {"k": 2**60},
]


@pytest.fixture
def stored(saver: ForkpointSaver) -> list[str]:
    """The ids of checkpoints with these metadata."""
    return [id_of(put(saver, {}, metadata=metadata)) for metadata in METADATA]


@one_by_one(
    "wanted, matches",
    [
        ({"k": 1}, [0]),
        ({"k": 1.0}, [0]),
        ({"k": True}, [1]),
        ({"k": "1"}, [2]),
        ({"k": 1.5}, [3]),
        ({"k": None}, [4]),
        ({"k": [2]}, [5]),
        ({"k": [1, 2, 3]}, [5]),
        ({"k": [4]}, []),
        ({"k": {"a": 1}}, [6]),
        ({"k": {"b": {"c": "d"}}}, [6]),
        ({"k": {"b": {"c": "e"}}}, []),
        ({"k": {}}, [6]),
        ({"user.id": "u1"}, [7]),
        ({"user": {"id": "u1"}}, [8]),
        ({"$.k": 1}, [9]),
        ({'quo"te': "it's"}, [9]),
        ({"": "empty key"}, [9]),
        ({"k": "\ud800 lone"}, [10]),
        ({"k": "\ufffd lone"}, []),
        ({"k": "true"}, [11]),
        ({"k": 2**60}, [12]),
        ({"k": 2**60 + 1}, []),
        ({"missing": None}, []),
        ({"k": 1, "user.id": "u1"}, []),
        ({}, list(range(13))),
    ],
)
async def test_filters_are_exact_and_typed(
    api: Api, stored: list[str], wanted: dict[str, Any], matches: list[int]
) -> None:
    found = [stored.index(id_of(one)) for one in await api.list(config(), filter=wanted)]

    assert sorted(found) == matches


async def test_metadata_come_back_as_they_were(api: Api) -> None:
    metadata = {"text": "ü \ud800 \n", "n": 1, "f": 0.1, "b": False, "none": None, "l": [{}, []]}
    put(api.saver, {}, metadata=metadata)

    assert (await api.get_tuple(config())).metadata == metadata


async def test_scalar_keys_of_the_config_become_metadata(api: Api) -> None:
    given = {
        "configurable": {"thread_id": "thread", "user_id": "u1", "__hidden": 1, "obj": object()},
        "metadata": {"graph": "support", "score": 0.5},
    }
    await api.put(given, checkpoint({}), {"source": "input"}, {})

    metadata = (await api.get_tuple(config())).metadata
    assert metadata == {"source": "input", "user_id": "u1", "graph": "support", "score": 0.5}


async def test_deleting_a_thread_leaves_the_others(api: Api) -> None:
    for name in ("a", "b"):
        stored = put(api.saver, {"text": "shared text " * 100}, thread_id=name)
        await api.put_writes(stored, [("c", 1)], "task")
        put(api.saver, {"n": 1}, thread_id=name, ns="child")

    await api.delete_thread("a")

    assert await api.get_tuple(config("a")) is None
    assert await api.list({"configurable": {"thread_id": "a"}}) == []
    assert len(await api.list(None)) == 2
    assert (await api.get_tuple(config("b"))).pending_writes == [("task", "c", 1)]


async def test_deleting_what_does_not_exist_is_no_error(api: Api) -> None:
    await api.delete_thread("nobody")
    await api.delete_for_runs(["no run"])
    await api.delete_for_runs([])
    await api.prune(["nobody"])
    await api.prune([], strategy="delete")


async def test_deleting_runs_removes_their_checkpoints_in_all_threads(api: Api) -> None:
    for name in ("a", "b"):
        first = put(api.saver, {"n": 1}, thread_id=name, metadata={"run_id": "one"})
        put(api.saver, {"n": 2}, thread_id=name, parent=first, metadata={"run_id": "two"})
        put(api.saver, {"n": 2}, thread_id=name, ns="child", metadata={"run_id": "one"})

    await api.delete_for_runs(["one", "three"])

    left = await api.list(None)
    assert [one.metadata["run_id"] for one in left] == ["two", "two"]


async def test_deleting_a_run_leaves_the_copies_that_were_made_of_it(api: Api) -> None:
    put(api.saver, {"n": 1}, thread_id="source", metadata={"run_id": "run"})
    await api.copy_thread("source", "copy")

    await api.delete_for_runs(["run"])

    assert await api.get_tuple(config("source")) is None
    assert (await api.get_tuple(config("copy"))).metadata["run_id"] == "run"


@pytest.mark.parametrize("strategy", ["delete", "delete_all"])
async def test_pruning_with_delete_removes_threads(api: Api, strategy: str) -> None:
    put(api.saver, {"n": 1}, thread_id="a")
    put(api.saver, {"n": 1}, thread_id="b")

    await api.prune(["a"], strategy=strategy)

    assert [one.config["configurable"]["thread_id"] for one in await api.list(None)] == ["b"]


async def test_pruning_keeps_the_newest_checkpoint_of_each_namespace(api: Api) -> None:
    kept = []
    for ns in ("", "child"):
        parent = None
        for n in range(5):
            parent = put(api.saver, {"n": n, "text": "x" * 5000}, parent=parent, ns=ns)
            await api.put_writes(parent, [("c", n)], "task")
        kept.append(id_of(parent))

    await api.prune(["thread"], strategy="keep_latest")

    found = await api.list({"configurable": {"thread_id": "thread"}})
    assert sorted(map(id_of, found)) == sorted(kept)
    assert [one.pending_writes for one in found] == [[("task", "c", 4)]] * 2
    assert found[0].checkpoint["channel_values"] == {"n": 4, "text": "x" * 5000}


@pytest.mark.parametrize("keep_last", [1, 2, 9])
async def test_pruning_keeps_as_many_of_each_namespace_as_are_asked_for(
    api: Api, store: Store, keep_last: int
) -> None:
    for ns in ("", "child"):
        parent = None
        for n in range(4):
            parent = put(api.saver, {"n": n, "text": f"{n}" * 5000}, parent=parent, ns=ns)
    await api.copy_thread("thread", "copy")
    await api.prune(["thread", "nobody"], keep_last=keep_last)
    for ns in ("", "child"):
        asked = config("thread", ns=ns)
        kept = [one.checkpoint["channel_values"]["n"] for one in await api.list(asked)]
        assert kept == [3, 2, 1, 0][:keep_last]
    await api.trim("copy", keep_last)
    pruned = [id_of(one) for one in await api.list(config("thread"))]
    trimmed = [id_of(one) for one in await api.list(config("copy"))]
    assert pruned == trimmed
    assert store.problems(api.saver) == []


@pytest.mark.parametrize(
    "arguments",
    [{"keep_last": 0}, {"keep_last": True}, {"keep_last": 1.5}, {"keep_last": "2"}]
    + [{"keep_last": 1, "strategy": strategy} for strategy in ("delete", "delete_all")],
)
async def test_pruning_to_what_is_no_number_of_checkpoints_is_refused(
    api: Api, arguments: dict[str, Any]
) -> None:
    put(api.saver, {"n": 1})
    with pytest.raises(InvalidInput, match="keep_last"):
        await api.prune(["thread"], **arguments)
    assert len(await api.list(config())) == 1


async def test_a_copy_has_everything_and_is_independent(api: Api) -> None:
    parent = None
    for n in range(3):
        parent = put(api.saver, {"n": n, "text": f"{n}" * 5000}, parent=parent)
        await api.put_writes(parent, [("c", n)], "task")
    put(api.saver, {"deep": True}, ns="child")
    before = await api.list({"configurable": {"thread_id": "thread"}})

    await api.copy_thread("thread", "copy")
    copied = await api.list({"configurable": {"thread_id": "copy"}})
    await api.delete_thread("thread")
    after = await api.list({"configurable": {"thread_id": "copy"}})

    def content(found: list[Any]) -> list[Any]:
        return [(one.checkpoint, one.metadata, one.pending_writes) for one in found]

    assert content(before) == content(copied) == content(after)


async def test_copying_refuses_a_target_that_exists_and_a_source_that_does_not(api: Api) -> None:
    put(api.saver, {"n": 1}, thread_id="a")
    put(api.saver, {"n": 2}, thread_id="b")

    with pytest.raises(ThreadExists):
        await api.copy_thread("a", "b")
    with pytest.raises(ThreadExists):
        await api.copy_thread("a", "a")
    with pytest.raises(ThreadNotFound):
        await api.copy_thread("nobody", "c")
    assert (await api.get_tuple(config("b"))).checkpoint["channel_values"] == {"n": 2}
    assert await api.get_tuple(config("c")) is None


def test_versions_count_up_from_one(saver: ForkpointSaver) -> None:
    version = saver.get_next_version(None, None)
    assert version == 1
    assert saver.get_next_version(version, None) == 2
    assert saver.get_next_version(1.5, None) == 2.5


def test_versions_that_another_saver_began_as_strings_go_on_as_such(saver: ForkpointSaver) -> None:
    current = "00000000000000000000000000000009.0.1234567890123456"
    following = [current]
    for _ in range(5):
        following.append(saver.get_next_version(following[-1], None))

    assert following == sorted(following)
    assert len(set(following)) == 6
    assert [int(version.split(".")[0]) for version in following] == list(range(9, 15))


async def test_delta_history_follows_the_path_to_the_nearest_stored_value(api: Api) -> None:
    async def step(parent: Any, value: Any, values: dict[str, Any], n: int) -> Any:
        stored = await api.put(parent, checkpoint(values, {"d": n, "e": n}), {}, {"d": n, "e": n})
        await api.put_writes(stored, [("d", f"{value}-2"), ("e", value)], "b", "~2")
        await api.put_writes(stored, [("d", f"{value}-1")], "a", "~1")
        return stored

    root = await step(config(), "root", {}, 1)
    seeded = await step(root, "seeded", {"d": ["stored"]}, 2)
    abandoned = await step(seeded, "abandoned", {}, 3)
    middle = await step(seeded, "middle", {}, 4)
    head = await step(middle, "head", {}, 5)

    history = await api.get_delta_channel_history(config=head, channels=["d", "e", "nothing"])

    assert history["d"] == {
        "writes": [
            ("a", "d", "seeded-1"),
            ("b", "d", "seeded-2"),
            ("a", "d", "middle-1"),
            ("b", "d", "middle-2"),
        ],
        "seed": ["stored"],
    }
    assert [value for *_, value in history["e"]["writes"]] == ["root", "seeded", "middle"]
    assert "seed" not in history["e"]
    assert history["nothing"] == {"writes": []}
    newest = await api.get_delta_channel_history(config=config(), channels=["d"])
    assert newest["d"] == history["d"]
    assert await api.get_delta_channel_history(config=abandoned, channels=[]) == {}
    assert await api.get_delta_channel_history(config=config("nobody"), channels=["d"]) == {
        "d": {"writes": []}
    }


async def test_a_checkpoint_that_was_put_as_its_own_ancestor_does_not_trap_the_reader(
    api: Api,
) -> None:
    stored = put(api.saver, {"n": 1})
    same = {**checkpoint({"n": 2}), "id": id_of(stored)}
    await api.put(stored, same, {}, {"n": 1})

    history = await api.get_delta_channel_history(config=stored, channels=["d"])
    assert history == {"d": {"writes": []}}
    await api.prune(["thread"])
    assert (await api.get_tuple(config())).checkpoint["channel_values"] == {"n": 2}
