"""The catalog of threads: what it knows of them, clones and successors."""

from __future__ import annotations

import contextlib
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from langgraph.types import Command

from catalogs import content
from checking import Api, config, one_by_one, put, value_of
from forkpoint import (
    InvalidInput,
    Thread,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES
from stores import KINDS, Store

DAY = timedelta(days=1)


def thread(thread_id: str, **configurable: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, **configurable}}


async def all_threads(
    catalog: Api, filter: ThreadFilter | None = None, **options: Any
) -> list[Thread]:
    """Return all threads that are found, page by page."""
    found_threads: list[Thread] = []
    cursor = None
    while True:
        page = await catalog.search(filter, cursor=cursor, **options)
        found_threads += page
        cursor = page.next_cursor
        if cursor is None:
            return found_threads
        assert len(page) == options.get("limit", 50)


async def test_threads_that_graphs_ran_on_are_in_it(catalog: Api, api: Api) -> None:
    graph = SHAPES["chat"].build(api.saver)
    graph.invoke(SHAPES["chat"].inputs[0], thread("ran", user_id="u1", n=1))
    (first,) = await all_threads(catalog, ThreadFilter(metadata={"user_id": "u1"}))
    assert (first.thread_id, first.status) == ("ran", "idle")
    assert first.metadata["n"] == 1
    assert first.checkpoint_count == len(await api.list(None))
    graph.invoke(SHAPES["chat"].inputs[1], thread("ran", user_id="u2"))
    again = await catalog.get("ran")
    assert again.updated_at > first.updated_at
    assert again.created_at == first.created_at
    assert again.checkpoint_count == len(await api.list(None)) > first.checkpoint_count
    assert again.metadata == {**first.metadata, "user_id": "u2"}  # what the last run says


async def test_a_status_says_what_a_thread_waits_for(catalog: Api, api: Api, store: Store) -> None:
    async def status(thread_id: str) -> str:
        current = await catalog.get(thread_id)
        (listed,) = await all_threads(catalog, ThreadFilter(ids=[thread_id], status=current.status))
        assert listed == current
        return str(current.status)

    graph = SHAPES["interrupts"].build(api.saver)
    graph.invoke({"items": []}, thread("asks"))
    assert await status("asks") == "interrupted"
    await api.fork("asks", new_thread_id="fork")
    await api.copy_thread("asks", "copy")
    graph.invoke(Command(resume="one"), thread("asks"))
    assert await status("asks") == "interrupted"
    graph.invoke(Command(resume="two"), thread("asks"))
    assert [await status(thread_id) for thread_id in ("asks", "fork", "copy")] == [
        "idle",
        "interrupted",
        "interrupted",
    ]
    failing = SHAPES["failing"].build(api.saver)
    with contextlib.suppress(RuntimeError, ValueError):
        failing.invoke({"items": []}, thread("fails"))
    assert await status("fails") == "error"
    failing.invoke(None, thread("fails"))
    assert await status("fails") == "idle"
    assert store.problems(api.saver) == []


async def test_deleting_takes_everything_and_a_run_cannot_bring_it_back(
    catalog: Api, api: Api, store: Store
) -> None:
    await catalog.create("empty", tags=["a"])
    first = put(api.saver, {"a": 1, "long": ["text " * 900]}, thread_id="full")
    assert (await catalog.delete("full")).checkpoints == 1
    assert (await catalog.delete("empty")).checkpoints == 0
    assert [store.count(kind) for kind in KINDS] == [0, 0, 0, 0]
    assert await catalog.count() == 0
    for thread_id in ("full", "empty"):
        with pytest.raises(ThreadNotFound, match=thread_id):
            await catalog.delete(thread_id)
    with pytest.raises(ThreadDeleted):
        put(api.saver, {"a": 2}, thread_id="full", parent=first)
    assert await catalog.get("full") is None
    again = await catalog.create("empty")
    assert again.tags == ()
    assert await all_threads(catalog, ThreadFilter(tags=["a"])) == []


async def test_no_method_reads_a_checkpoint(catalog: Api, api: Api, store: Store) -> None:
    put(api.saver, {"a": 1}, thread_id="thread")
    (row,) = store.rows("checkpoints")
    store.change("checkpoints", row.key, content=b"\xff damaged")
    assert (await catalog.get("thread")).checkpoint_count == 1
    assert await catalog.count() == 1
    assert len(await all_threads(catalog)) == 1
    await catalog.update("thread", label="x")
    assert (await catalog.clone("thread", "clone")).checkpoint_count == 1
    assert (await catalog.stats("thread")).checkpoints == 1
    await catalog.delete("thread")
    await catalog.delete("clone")


async def test_a_clone_is_a_thread_of_its_own(catalog: Api, api: Api, store: Store) -> None:
    graph = SHAPES["chat"].build(api.saver)
    graph.invoke(SHAPES["chat"].inputs[0], thread("source"))
    source = await catalog.update(
        "source", label="L", tags=["a"], metadata={"k": 1, "l": 1}, ttl=DAY
    )
    chunks = store.count("chunks")
    clone = await catalog.clone("source", "clone", label="other", metadata={"k": 2})
    assert (clone.label, clone.tags, clone.source_thread_id) == ("other", ("a",), "source")
    assert clone.metadata == {**source.metadata, "k": 2}
    assert clone.checkpoint_count == source.checkpoint_count
    assert clone.expires_at == clone.updated_at + DAY
    assert store.count("chunks") == chunks
    assert graph.get_state(thread("clone")).values == graph.get_state(thread("source")).values

    before = graph.get_state(thread("source"))
    graph.invoke(SHAPES["chat"].inputs[1], thread("clone"))
    assert graph.get_state(thread("source")) == before
    assert await catalog.get("source") == source
    await catalog.delete("source")
    assert len(graph.get_state(thread("clone")).values["messages"]) == 4
    assert [entry.thread_id for entry in await api.lineage("clone")] == ["clone", "source"]

    empty = await catalog.clone("clone", checkpoints=False, tags=[], ttl=None)
    assert (empty.checkpoint_count, empty.tags, empty.expires_at) == (0, (), None)
    assert empty.metadata == clone.metadata
    assert empty.source_thread_id == "clone"
    for source_id, target_id, error in (
        ("none", "new", ThreadNotFound),
        ("clone", "clone", ThreadExists),
        ("clone", empty.thread_id, ThreadExists),
    ):
        with pytest.raises(error):
            await catalog.clone(source_id, target_id)
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
def test_a_template_is_cloned_a_thousand_times(saver: ForkpointSaver, store: Store) -> None:
    catalog = ThreadCatalog(saver)
    long = [{"id": str(n), "text": "text " * 40} for n in range(200)]
    put(saver, {"long": long}, thread_id="template")
    chunks = store.count("chunks")
    number = store.times(1000) // 4
    for n in range(number):
        catalog.clone("template", f"c{n}", tags=["clone"])
    assert store.count("chunks") == chunks
    assert catalog.count(ThreadFilter(source_thread_id="template", tags=["clone"])) == number
    catalog.delete("template")
    assert value_of(saver.get_tuple(config(f"c{number - 1}"))) == {"long": long}


async def test_a_successor_begins_with_a_part_of_the_state(
    catalog: Api, api: Api, store: Store
) -> None:
    graph = SHAPES["chat"].build(api.saver)
    for graph_input in SHAPES["chat"].inputs:
        graph.invoke(graph_input, thread("old"))
    state = graph.get_state(thread("old")).values
    before = content(store)
    for channels, values, message in (
        (["massages"], {}, "massages"),
        ([], {"other": 1}, "other"),
    ):
        with pytest.raises(InvalidInput, match=message):
            await catalog.rollover("old", "new", channels=channels, values=values)
    assert content(store) == before

    chunks = store.count("chunks")
    new = await catalog.rollover("old", "new", channels=["document"], tags=["next"])
    assert store.count("chunks") == chunks
    assert (new.source_thread_id, new.tags) == ("old", ("next",))
    assert graph.get_state(thread("new")).values["document"] == state["document"]
    result = graph.invoke(SHAPES["chat"].inputs[1], thread("new"))
    assert len(result["messages"]) == 2
    assert result["document"] == state["document"]

    await catalog.rollover("old", "short", values={"messages": state["messages"][-1:]})
    assert len(graph.invoke(SHAPES["chat"].inputs[1], thread("short"))["messages"]) == 3
    assert (await catalog.rollover("old", "empty")).checkpoint_count == 0
    with pytest.raises(InvalidInput, match="no state to carry over"):
        await catalog.rollover("empty", values={"document": "x"})
    assert graph.get_state(thread("old")).values == state
    lineage = await api.lineage("new")
    assert [entry.thread_id for entry in lineage] == ["new", "old"]

    deltas = SHAPES["deltas"].build(api.saver)
    deltas.invoke({"log": ["start"]}, thread("deltas"))
    with pytest.raises(InvalidInput, match="DeltaChannel"):
        await catalog.rollover("deltas", channels=["log"])
    assert store.problems(api.saver) == []


@pytest.fixture
async def kept(catalog: Api, store: Store) -> Any:
    await catalog.create("kept", metadata={"k": "x" * 1000})
    return content(store)


@one_by_one(
    "method, args, options, name",
    [
        *(
            (method, [bad], {}, "thread_id")
            for method in ("create", "get", "get_or_create", "update", "delete", "stats", "lease")
            for bad in ({"$ne": ""}, 1, "", "\0", "\ud800")
        ),
        ("create", [], {"label": 1}, "label"),
        ("create", [], {"tags": "abc"}, "tags"),
        ("create", [], {"tags": [1]}, "tags"),
        ("create", [], {"tags": [""]}, "tags"),
        ("create", [], {"metadata": [1]}, "metadata"),
        ("create", [], {"metadata": {"k": object()}}, "metadata"),
        ("create", [], {"metadata": {1: 1}}, "metadata"),
        ("create", [], {"metadata": {"__k": 1}}, "reserved"),
        ("create", [], {"metadata": {"k": "x" * 70_000}}, "metadata"),
        ("create", [], {"ttl": 5}, "ttl"),
        ("create", [], {"ttl": timedelta(0)}, "ttl"),
        ("create", [], {"ttl": timedelta(seconds=-1)}, "ttl"),
        ("create", [], {"if_exists": "x"}, "if_exists"),
        ("update", ["kept"], {"tags": None}, "tags"),
        ("update", ["kept"], {"metadata": {"j": "x" * 65_000}}, "metadata"),
        ("clone", ["kept"], {"checkpoints": 1}, "checkpoints"),
        ("clone", ["kept", {"$ne": 1}], {}, "new_thread_id"),
        ("clone", [None], {}, "source_thread_id"),
        ("rollover", ["kept"], {"channels": "abc"}, "channels"),
        ("rollover", ["kept"], {"values": [1]}, "values"),
        ("search", [{"owner": "x"}], {}, "filter"),
        ("search", [], {"sort_by": "label"}, "sort_by"),
        ("search", [], {"descending": 1}, "descending"),
        ("search", [], {"limit": 0}, "limit"),
        ("search", [], {"limit": "1 UNION SELECT 1"}, "limit"),
        ("search", [], {"cursor": 1}, "cursor"),
        *(
            (method, [ThreadFilter(**{field: bad})], {}, field.removesuffix("s"))
            for method in ("search", "count", "bulk_delete")
            for field, bad in (
                ("ids", "abc"),
                ("ids", [{"$ne": 1}]),
                ("label", {"$ne": 1}),
                ("tags", [{"$ne": 1}]),
                ("any_tags", "abc"),
                ("metadata", [1]),
                ("metadata", {"k": object()}),
                ("owner", {"$ne": 1}),
                ("status", "waiting"),
                ("status", [{"$ne": 1}]),
                ("created_after", datetime(2026, 1, 1)),
                ("updated_before", "2026-01-01"),
                ("source_thread_id", 1),
            )
        ),
    ],
)
async def test_invalid_arguments_of_a_fork_are_named_and_change_nothing(
    method: str, args: list[Any], options: Any, name: str, catalog: Api, store: Store, kept: Any
) -> None:
    if method == "create" and args == []:
        args = ["new"]
    with pytest.raises(InvalidInput, match=name):
        await getattr(catalog, method)(*args, **options)
    assert content(store) == kept


def test_a_catalog_needs_a_saver_and_an_owner_a_name(saver: ForkpointSaver) -> None:
    with pytest.raises(InvalidInput, match="saver"):
        ThreadCatalog(object())
    for owner in ("", {"$ne": ""}, 1, "\0"):
        with pytest.raises(InvalidInput, match="owner"):
            ThreadCatalog(saver, owner=owner)
    confined = saver.for_owner("acme")
    assert ThreadCatalog(confined).saver is confined
    with pytest.raises(InvalidInput, match="acme"):
        ThreadCatalog(confined, owner="other")


def test_many_callers_at_once_create_each_thread_once(store: Store, saver: ForkpointSaver) -> None:
    number = store.times(200) // 4
    results: list[list[Thread]] = [[] for _ in range(8)]

    def ask(position: int) -> None:
        with store.saver() as own:
            catalog = ThreadCatalog(own)
            results[position] = [
                catalog.get_or_create(f"t{n}", label=str(position)) for n in range(number)
            ]

    askers = [threading.Thread(target=ask, args=(position,)) for position in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    catalog = ThreadCatalog(saver)
    threads_by_id = {thread_.thread_id: thread_ for thread_ in catalog.walk()}
    assert len(threads_by_id) == catalog.count() == number
    for threads in results:
        assert threads == [threads_by_id[f"t{n}"] for n in range(number)]
