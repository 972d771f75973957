"""The catalog of threads: what it knows of them, how it finds them, and who may reach them."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from checking import Api, config, drawn, one_by_one, put, value_of
from graphs import MORE_SHAPES, SHAPES
from hypothesis import example
from hypothesis import strategies as st
from langgraph.types import Command
from stores import KINDS, Store

from forkpoint import (
    ForkpointError,
    InvalidInput,
    Thread,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.filters import contains
from forkpoint.saver.saver import ForkpointSaver

DAY = timedelta(days=1)


@pytest.fixture
def catalog(api: Api) -> Api:
    """A catalog whose sync methods or async twins a test calls."""
    return Api(ThreadCatalog(api.saver), api.world)


def thread(thread_id: str, **configurable: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, **configurable}}


def content(store: Store) -> Any:
    return [sorted(map(repr, store.rows(kind))) for kind in KINDS[1:]], sorted(
        map(repr, store.threads())
    )


async def walked(catalog: Api, filter: ThreadFilter | None = None, **options: Any) -> list[Thread]:
    """Return all threads that are found, page by page."""
    found: list[Thread] = []
    cursor = None
    while True:
        page = await catalog.search(filter, cursor=cursor, **options)
        found += page
        cursor = page.next_cursor
        if cursor is None:
            return found
        assert len(page) == options.get("limit", 50)


# Records


async def test_threads_that_graphs_ran_on_are_in_it(catalog: Api, api: Api) -> None:
    graph = SHAPES["chat"].build(api.saver)
    graph.invoke(SHAPES["chat"].inputs[0], thread("ran", user_id="u1", n=1))
    (found,) = await walked(catalog, ThreadFilter(metadata={"user_id": "u1"}))
    assert (found.thread_id, found.status) == ("ran", "idle")
    assert found.metadata["n"] == 1
    assert found.checkpoint_count == len(await api.list(None))
    graph.invoke(SHAPES["chat"].inputs[1], thread("ran", user_id="u2"))
    again = await catalog.get("ran")
    assert again.updated_at > found.updated_at
    assert again.created_at == found.created_at
    assert again.checkpoint_count == len(await api.list(None)) > found.checkpoint_count
    assert again.metadata == {**found.metadata, "user_id": "u2"}  # what the last run says


async def test_a_status_says_what_a_thread_waits_for(catalog: Api, api: Api, store: Store) -> None:
    async def status(thread_id: str) -> str:
        found = await catalog.get(thread_id)
        (listed,) = await walked(catalog, ThreadFilter(ids=[thread_id], status=found.status))
        assert listed == found
        return str(found.status)

    graph = SHAPES["interrupts"].build(api.saver)
    graph.invoke({"items": []}, thread("asks"))
    assert await status("asks") == "interrupted"
    await api.fork("asks", new_thread_id="fork")
    await api.copy_thread("asks", "copy")
    graph.invoke(Command(resume="one"), thread("asks"))
    assert await status("asks") == "interrupted"
    graph.invoke(Command(resume="two"), thread("asks"))
    assert [await status(one) for one in ("asks", "fork", "copy")] == [
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
    assert await walked(catalog, ThreadFilter(tags=["a"])) == []


async def test_no_method_reads_a_checkpoint(catalog: Api, api: Api, store: Store) -> None:
    put(api.saver, {"a": 1}, thread_id="thread")
    (row,) = store.rows("checkpoints")
    store.change("checkpoints", row.key, content=b"\xff damaged")
    assert (await catalog.get("thread")).checkpoint_count == 1
    assert await catalog.count() == 1
    assert len(await walked(catalog)) == 1
    await catalog.update("thread", label="x")
    assert (await catalog.clone("thread", "clone")).checkpoint_count == 1
    assert (await catalog.stats("thread")).checkpoints == 1
    await catalog.delete("thread")
    await catalog.delete("clone")


# Searching, against a model

WORDS = ["a", "b", "c", "$ne", "x' OR '1'='1", "é", "a.b"]
VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 1.0, 1.5, "1", "", "a"]),
    st.lists(st.sampled_from([1, True, "a", {"k": 1}, {"k": 1, "l": 2}]), max_size=2),
    st.dictionaries(st.sampled_from(WORDS), st.sampled_from([1, True, "a", {}]), max_size=2),
)
METADATA = st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=2)
TAGS = st.sets(st.sampled_from(WORDS), max_size=3)
THREADS = st.lists(
    st.tuples(st.sampled_from([None, *WORDS[:3]]), TAGS, METADATA), min_size=1, max_size=8
)
FILTERS = st.builds(
    ThreadFilter,
    ids=st.none() | st.lists(st.sampled_from([f"t{n}" for n in range(8)]), max_size=4),
    label=st.none() | st.sampled_from(WORDS[:3]),
    tags=st.sets(st.sampled_from(WORDS), max_size=2),
    any_tags=st.sets(st.sampled_from(WORDS), max_size=2),
    metadata=METADATA,
    status=st.none() | st.sampled_from(["idle", "busy", "error"]),
)


def is_wanted(thread: Thread, wanted: ThreadFilter) -> bool:
    return (
        (wanted.ids is None or thread.thread_id in wanted.ids)
        and wanted.label in (None, thread.label)
        and set(wanted.tags) <= set(thread.tags)
        and (not wanted.any_tags or bool(set(wanted.any_tags) & set(thread.tags)))
        and contains(thread.metadata, wanted.metadata)
        and wanted.status in (None, thread.status)
    )


@drawn(5, 30, threads=THREADS, filters=st.lists(FILTERS, max_size=6), data=st.data())
def test_a_search_finds_what_a_look_at_each_thread_finds(
    threads: list[Any], filters: list[ThreadFilter], data: st.DataObject, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    for known in list(catalog.walk()):
        catalog.delete(known.thread_id)
    for n, (label, tags, metadata) in enumerate(threads):
        catalog.create(f"t{n}", label=label, tags=tags, metadata=metadata)
    everything = list(catalog.walk())
    assert len(everything) == len(threads)
    for wanted in (*filters, ThreadFilter()):
        sort_by = data.draw(st.sampled_from(["updated_at", "created_at", "thread_id", "status"]))
        descending = data.draw(st.booleans())
        expected = sorted(
            (one for one in everything if is_wanted(one, wanted)),
            key=lambda one: (getattr(one, sort_by), one.thread_id),
            reverse=descending,
        )
        found: list[Thread] = []
        cursor = None
        while True:
            page = catalog.search(
                wanted, sort_by=sort_by, descending=descending, limit=3, cursor=cursor
            )
            found += page
            if (cursor := page.next_cursor) is None:
                break
        assert found == expected
        assert catalog.count(wanted) == len(expected)


@pytest.mark.parametrize("sort_by", ["updated_at", "created_at", "thread_id", "status"])
@pytest.mark.in_turns
def test_a_walk_meets_each_thread_once_while_others_write(
    sort_by: str, saver: ForkpointSaver, store: Store
) -> None:
    catalog = ThreadCatalog(saver)
    for n in range(60):
        catalog.create(f"t{n:03}", tags=["kept"])
    is_over = threading.Event()
    failures: list[Exception] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        own = store.saver()
        mine = ThreadCatalog(own)
        try:
            while not is_over.is_set():
                thread_id = f"t{rng.randrange(60):03}"
                match rng.randrange(5):
                    case 0:
                        mine.update(thread_id, metadata={"n": rng.random()})
                    case 1:
                        mine.search(limit=2)  # it brings the order up to date
                    case 2:
                        made = mine.create(tags=["other"])
                        mine.delete(made.thread_id)
                    case _:
                        put(own, {"n": rng.random()}, thread_id=thread_id)
        except Exception as error:  # noqa: BLE001 - it is raised below
            failures.append(error)
        finally:
            own.close()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    try:
        for descending in (True, False):
            found: list[str] = []
            cursor = None
            while True:
                page = catalog.search(
                    ThreadFilter(tags=["kept"]),
                    sort_by=sort_by,
                    descending=descending,
                    limit=10,
                    cursor=cursor,
                )
                found += (one.thread_id for one in page)
                if (cursor := page.next_cursor) is None:
                    break
            assert sorted(found) == [f"t{n:03}" for n in range(60)]
    finally:
        is_over.set()
        for writer in writers:
            writer.join()
    assert failures == []
    assert store.problems(saver) == []


# Clones and successors


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
    assert [one.thread_id for one in await api.lineage("clone")] == ["clone", "source"]

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
    for given_ in SHAPES["chat"].inputs:
        graph.invoke(given_, thread("old"))
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
    went = graph.invoke(SHAPES["chat"].inputs[1], thread("new"))
    assert len(went["messages"]) == 2
    assert went["document"] == state["document"]

    await catalog.rollover("old", "short", values={"messages": state["messages"][-1:]})
    assert len(graph.invoke(SHAPES["chat"].inputs[1], thread("short"))["messages"]) == 3
    assert (await catalog.rollover("old", "empty")).checkpoint_count == 0
    assert graph.get_state(thread("old")).values == state
    lineage = await api.lineage("new")
    assert [one.thread_id for one in lineage] == ["new", "old"]

    deltas = SHAPES["deltas"].build(api.saver)
    deltas.invoke({"log": ["start"]}, thread("deltas"))
    with pytest.raises(InvalidInput, match="DeltaChannel"):
        await catalog.rollover("deltas", channels=["log"])
    assert store.problems(api.saver) == []


# Bad input


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
async def test_what_is_wrong_is_refused_by_name_and_changes_nothing(
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


# Owners

IDS = st.sampled_from(["theirs", "theirs-2", "new", "$ne", "theirs\x1f", "Theirs"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8
)


@drawn(6, 40, thread_id=IDS, wanted=FILTERS, owner=st.none() | st.sampled_from(["acme", "other"]))
@example(thread_id="secret", wanted=ThreadFilter(), owner=None)
@example(thread_id="acme", wanted=ThreadFilter(), owner=None)
def test_what_is_another_owners_does_not_exist(
    thread_id: str, wanted: ThreadFilter, owner: str | None, saver: ForkpointSaver, store: Store
) -> None:
    for known in list(ThreadCatalog(saver).walk()):
        saver.delete_thread(known.thread_id)
    acme = ThreadCatalog(saver, owner="acme")
    other = ThreadCatalog(saver, owner="other")
    for name in ("theirs", "theirs-2"):
        acme.create(name, label="a", tags=WORDS, metadata=dict.fromkeys(WORDS, 1))
        put(acme.saver, {"secret": name}, thread_id=name, metadata={"run_id": "run"})
    before = content(store)
    seen = list(acme.walk())

    wanted = dataclasses.replace(wanted, owner=owner)
    assert len(other.search(wanted)) == other.count(wanted) == 0
    assert other.bulk_delete(dataclasses.replace(wanted, tags=["a"])) == 0
    assert other.get(thread_id) is None
    for call in READS:
        with pytest.raises(ForkpointError) as caught:
            list(call(other, thread_id) or [])
        assert not isinstance(caught.value, ThreadExists)
        told = str(caught.value).replace(repr(thread_id), "")
        assert "secret" not in told
        assert "acme" not in told
    assert other.saver.get_tuple(config(thread_id)) is None
    assert list(other.saver.list(config(thread_id))) == list(other.saver.list(None)) == []
    assert other.saver.latest({}) is None
    other.saver.delete_thread(thread_id)
    other.saver.delete_for_runs(["run"])
    other.saver.prune([thread_id])
    if thread_id in ("theirs", "theirs-2"):
        for make in MAKES:
            with pytest.raises(ThreadExists) as taken:
                make(other, thread_id)
            assert str(taken.value) == f"there is a thread {thread_id!r} already"
    assert content(store) == before
    assert list(acme.walk()) == seen


READS: list[Callable[[ThreadCatalog, str], Any]] = [
    lambda catalog, id_: catalog.update(id_, label="x"),
    lambda catalog, id_: catalog.delete(id_),
    lambda catalog, id_: catalog.clone(id_, "copied"),
    lambda catalog, id_: catalog.rollover(id_, "copied"),
    lambda catalog, id_: catalog.stats(id_),
    lambda catalog, id_: catalog.lease(id_),
    lambda catalog, id_: catalog.is_busy(id_),
    lambda catalog, id_: catalog.saver.fork(id_),
    lambda catalog, id_: catalog.saver.copy_thread(id_, "copied"),
    lambda catalog, id_: catalog.saver.purge(id_),
    lambda catalog, id_: catalog.saver.trim(id_, 1),
    lambda catalog, id_: catalog.saver.rollback(id_),
    lambda catalog, id_: catalog.saver.lineage(id_),
    lambda catalog, id_: catalog.saver.family(id_),
    lambda catalog, id_: catalog.saver.history(id_),
    lambda catalog, id_: catalog.saver.at(id_, 0),
    lambda catalog, id_: catalog.saver.diff(id_, id_),
]
MAKES: list[Callable[[ThreadCatalog, str], Any]] = [
    lambda catalog, id_: catalog.create(id_),
    lambda catalog, id_: catalog.create(id_, if_exists="do_nothing"),
    lambda catalog, id_: catalog.get_or_create(id_),
    lambda catalog, id_: put(catalog.saver, {"a": 1}, thread_id=id_),
    lambda catalog, id_: catalog.saver.put_writes(config(id_, "c"), [("a", 1)], "task"),
    lambda catalog, id_: catalog.run(id_).__enter__(),
]


async def test_what_an_owner_makes_is_the_owners(api: Api, store: Store) -> None:
    saver = api.saver
    confined = saver.for_owner("acme")
    graph = SHAPES["chat"].build(confined)
    graph.invoke(SHAPES["chat"].inputs[0], thread("chat"))
    catalog = ThreadCatalog(saver, owner="acme")
    catalog.clone("chat", "clone")
    confined.fork("chat", new_thread_id="fork")
    confined.copy_thread("chat", "copy")
    catalog.rollover("chat", "next", channels=["messages"])
    catalog.create("made")
    with catalog.run("leased"):
        pass
    ids = {"chat", "clone", "fork", "copy", "next", "made", "leased"}
    assert {one.thread_id for one in catalog.walk()} == ids
    assert {one.owner for one in ThreadCatalog(saver).walk()} == {"acme"}
    assert ThreadCatalog(saver).count(ThreadFilter(owner="acme")) == len(ids)
    assert ThreadCatalog(saver).count(ThreadFilter(owner="other")) == 0

    theirs = MORE_SHAPES["question"].build(saver.for_owner("other"))
    assert theirs.get_state(thread("chat")).values == {}
    assert list(theirs.get_state_history(thread("chat"))) == []
    with pytest.raises(ThreadExists):
        theirs.invoke(MORE_SHAPES["question"].inputs[0], thread("chat"))
    assert len(graph.get_state(thread("chat")).values["messages"]) == 2
    assert store.problems(saver) == []


def test_threads_are_made_once_however_many_ask(store: Store, saver: ForkpointSaver) -> None:
    number = store.times(200) // 4
    made: list[list[Thread]] = [[] for _ in range(8)]

    def ask(position: int) -> None:
        with store.saver() as own:
            catalog = ThreadCatalog(own)
            made[position] = [
                catalog.get_or_create(f"t{n}", label=str(position)) for n in range(number)
            ]

    askers = [threading.Thread(target=ask, args=(position,)) for position in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    catalog = ThreadCatalog(saver)
    known = {one.thread_id: one for one in catalog.walk()}
    assert len(known) == catalog.count() == number
    for threads in made:
        assert threads == [known[f"t{n}"] for n in range(number)]
