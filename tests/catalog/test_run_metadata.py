"""A thread is found by what its runs say, whoever made it; what a person said of it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langgraph.graph import START, StateGraph

from checking import Api, checkpoint, config, put
from forkpoint import InvalidInput, ThreadCatalog, ThreadFilter
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from stores import Store


def graph(saver: Any) -> Any:
    builder = StateGraph(dict)
    builder.add_node("node", lambda _: {"n": 1})
    builder.add_edge(START, "node")
    return builder.compile(checkpointer=saver)


async def invoke(api: Api, thread_id: str, *, metadata: Any = None, **configurable: Any) -> None:
    run: Any = {
        "configurable": {"thread_id": thread_id, **configurable},
        "metadata": metadata or {},
    }
    if api.world == "sync":
        graph(api.saver).invoke({"n": 0}, run)
    else:
        await graph(api.saver).ainvoke({"n": 0}, run)


@pytest.fixture
def catalog(saver: ForkpointSaver) -> ThreadCatalog:
    return ThreadCatalog(saver)


def ids_by_metadata(catalog: ThreadCatalog, **metadata: Any) -> list[str]:
    return sorted(thread.thread_id for thread in catalog.search(ThreadFilter(metadata=metadata)))


MAKERS: dict[str, Callable[[ThreadCatalog], Any]] = {
    "create": lambda catalog: catalog.create("a"),
    "create with metadata": lambda catalog: catalog.create("a", metadata={"topic": "x"}),
    "get_or_create": lambda catalog: catalog.get_or_create("a"),
    "clone": lambda catalog: catalog.clone(catalog.create("b").thread_id, "a", checkpoints=False),
    "another run": lambda catalog: graph(catalog.saver).invoke(
        {"n": 0}, {"configurable": {"thread_id": "a"}}
    ),
    "writes": lambda catalog: catalog.saver.put_writes(
        config("a", checkpoint_id="c"), [("n", 1)], "task"
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("is_searched_before", [False, True])
@pytest.mark.in_turns
async def test_a_thread_that_exists_before_a_run_is_found_by_what_the_run_says(
    make: Any, is_searched_before: bool, api: Api, catalog: ThreadCatalog
) -> None:
    make(catalog)
    if is_searched_before:
        assert ids_by_metadata(catalog, user_id="u1") == []
    await invoke(api, "a", user_id="u1", metadata={"plan": "pro"})
    assert ids_by_metadata(catalog, user_id="u1", plan="pro") == ["a"]
    await invoke(api, "a", user_id="u2")
    assert ids_by_metadata(catalog, user_id="u1") == []
    assert ids_by_metadata(catalog, user_id="u2", plan="pro") == ["a"]


async def test_a_thread_made_by_its_lease_is_found_by_what_the_run_says(
    api: Api, catalog: ThreadCatalog
) -> None:
    with catalog.run("new") as lease:
        run: Any = {"configurable": {**lease.config["configurable"], "user_id": "u1"}}
        if api.world == "sync":
            graph(api.saver).invoke({"n": 0}, run)
        else:
            await graph(api.saver).ainvoke({"n": 0}, run)
    assert ids_by_metadata(catalog, user_id="u1") == ["new"]


async def test_what_a_person_set_wins_over_what_a_run_says(
    api: Api, catalog: ThreadCatalog
) -> None:
    catalog.create("a", metadata={"user_id": "person", "kept": True})
    await invoke(api, "a", user_id="run", kept=1, other="x")
    assert catalog.get("a").metadata == {"user_id": "person", "kept": True, "other": "x"}  # type: ignore[union-attr]
    catalog.update("a", metadata={"other": "set"})
    await invoke(api, "a", other="y", more=1)
    expected = {"user_id": "person", "kept": True, "other": "set", "more": 1}
    assert catalog.get("a").metadata == expected  # type: ignore[union-attr]

    clone = catalog.clone("a", "b", metadata={"more": "clone"})
    assert clone.metadata == {**expected, "more": "clone"}
    fork = api.saver.fork("a", new_thread_id="c", metadata={"more": "fork"})
    api.saver.copy_thread("a", "d")
    for thread_id in "bcd":
        await invoke(api, thread_id, user_id="run", other="z", more=2, last=3)
    assert fork["configurable"]["thread_id"] == "c"
    for thread_id, more in (("b", "clone"), ("c", "fork"), ("d", 2)):
        metadata = {**expected, "more": more, "last": 3}
        assert catalog.get(thread_id).metadata == metadata  # type: ignore[union-attr]


async def test_the_id_of_a_run_is_that_of_its_checkpoints_alone(
    api: Api, catalog: ThreadCatalog
) -> None:
    catalog.create("a")
    for thread_id in "ab":
        await invoke(api, thread_id, metadata={"run_id": "r", "plan": "pro"})
        assert catalog.get(thread_id).metadata == {"plan": "pro"}  # type: ignore[union-attr]
    assert {stored.metadata["run_id"] for stored in api.saver.list(None)} == {"r"}
    await api.delete_for_runs(["r"])
    assert list(api.saver.list(None)) == []


async def test_types_are_told_apart(api: Api, catalog: ThreadCatalog) -> None:
    catalog.create("a")
    for value in (1, True, 1.5, "1", True, 1):
        await invoke(api, "a", value=value)
        assert ids_by_metadata(catalog, value=value) == ["a"]
        stored = catalog.get("a").metadata["value"]  # type: ignore[union-attr]
        assert (stored, type(stored)) == (value, type(value))


async def test_a_run_does_not_fail_for_what_does_not_fit_into_its_threads_metadata(
    api: Api, catalog: ThreadCatalog
) -> None:
    for n in range(4):
        await invoke(api, "a", **{f"prompt{n}": "x" * 30_000, "n": n})
    assert set(catalog.get("a").metadata) == {"prompt0", "prompt1", "n"}  # type: ignore[union-attr]
    await invoke(api, "a", prompt1="x" * 60_000, n=9)
    assert ids_by_metadata(catalog, n=9) == ["a"]
    assert set(catalog.get("a").metadata) == {"prompt0", "n"}  # type: ignore[union-attr]
    newest = await api.get_tuple(config("a"))
    assert len(newest.metadata["prompt1"]) == 60_000

    await invoke(api, "b", prompt="x" * 100_000, user_id="u1")
    assert catalog.get("b").metadata == {"user_id": "u1"}  # type: ignore[union-attr]
    catalog.update("b", metadata={"topic": "x"})
    assert ids_by_metadata(catalog, topic="x", user_id="u1") == ["b"]


async def test_the_metadata_of_a_fork_are_those_that_a_thread_may_have(
    api: Api, catalog: ThreadCatalog
) -> None:
    await invoke(api, "a", user_id="u1")
    for metadata in ({"x": "x" * 65_536}, {"__x": 1}, {"x": float("nan")}):
        with pytest.raises(InvalidInput):
            await api.fork("a", new_thread_id="b", metadata=metadata)
    await api.fork("a", new_thread_id="b", metadata={"x": "x" * 40_000})
    with pytest.raises(InvalidInput):
        await api.fork("b", new_thread_id="c", metadata={"y": "x" * 40_000})
    await api.fork("b", new_thread_id="c", metadata={"x": None, "y": "x" * 40_000})
    assert catalog.get("c").metadata.keys() == {"user_id", "x", "y"}  # type: ignore[union-attr]


async def test_a_deleted_thread_leaves_nothing_of_it_to_the_next_of_its_id(
    api: Api, catalog: ThreadCatalog
) -> None:
    catalog.create("a", metadata={"user_id": "person"})
    await invoke(api, "a", user_id="run", other=1)
    catalog.delete("a")
    await invoke(api, "a", user_id="run")
    assert catalog.get("a").metadata == {"user_id": "run"}  # type: ignore[union-attr]


async def test_a_run_of_another_process_is_merged_too(
    store: Store, api: Api, catalog: ThreadCatalog
) -> None:
    await invoke(api, "a", user_id="u1")
    with store.saver() as another:
        await invoke(Api(another, api.world), "a", user_id="u2")
    assert ids_by_metadata(catalog, user_id="u2") == ["a"]
    await invoke(api, "a", user_id="u1")
    assert ids_by_metadata(catalog, user_id="u1") == ["a"]


async def test_only_what_is_new_is_looked_at(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    with parts_of(saver).context.storage.reading() as session:
        kind = type(session.records)
    record = kind.get

    def counted(self: Any, thread_id: str) -> Any:
        nonlocal looks
        looks += 1
        return record(self, thread_id)

    monkeypatch.setattr(kind, "get", counted)
    place = put(saver, {"n": 0})
    for n in range(5):
        place = saver.put(place, checkpoint({"n": n}), {}, {"n": 1})
    assert looks == 0
    catalog = ThreadCatalog(saver)
    catalog.create("made")
    looks = 0
    for n in range(5):
        saver.put(config("made"), checkpoint({"n": n}), {}, {"n": 1})
    assert looks == 0  # they say nothing
    config_: Any = {"configurable": config("made")["configurable"] | {"user_id": "u1"}}
    for n in range(5):
        saver.put(config_, checkpoint({"n": n}), {}, {"n": 1})
        looks, before = 0, looks
        assert (before > 0) is (n == 0)
    run = graph(saver)
    configurable: Any = {"configurable": {"thread_id": "run", "user_id": "u1"}}
    for n in range(3):  # what the look for the thread read is known
        looks = 0
        run.invoke({"n": n}, configurable)
        assert looks == 0
