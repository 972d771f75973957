"""What an operation may cost on MongoDB, counted: commands, documents written, documents read."""

from __future__ import annotations

import asyncio
import functools
import gc
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bson
import pytest
from bson.objectid import ObjectId
from langchain_core.messages import HumanMessage

from checking import Api, checkpoint, config, one_by_one, put
from commands import Commands
from forkpoint.mongodb import saver as mongodb
from forkpoint.mongodb.documents import chunk_documents
from forkpoint.mongodb.put_batch import Attempt
from forkpoint.mongodb.put_size import checked_size
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.saver import parts_of
from forkpoint.storage.rows import PutRequest, ThreadRef
from servers import PATIENCE_SECONDS, wait_until
from stores import MongoStore


@functools.cache
def message(number: int) -> HumanMessage:
    return HumanMessage(random.Random(number).randbytes(270).hex(), id=str(number))


def messages(count: int) -> list[HumanMessage]:
    return [message(number) for number in range(count)]


@pytest.fixture
def store(mongo_store: MongoStore) -> MongoStore:
    return mongo_store


@pytest.fixture
def saver(store: MongoStore, commands: Commands) -> Iterator[MongoDBSaver]:
    with store.saver(event_listeners=[commands]) as saver:
        saver.setup()
        commands.clear()
        yield saver


def fill(
    saver: MongoDBSaver, *, steps: int = 25, length: int = 36, thread_id: str = "thread"
) -> Any:
    """Put checkpoints with a growing list and with writes, and return the last one's config."""
    parent = None
    for n in range(steps):
        values = {"messages": messages(length + n), "n": n}
        parent = put(saver, values, parent=parent, thread_id=thread_id, metadata={"n": n})
        saver.put_writes(parent, [("c", n), ("d", f"{n} " * 1000)], "task")
    return parent


# Round trips

Call = Callable[[Api, Any], Awaitable[Any]]
CALLS: dict[str, tuple[Call, list[str]]] = {
    "put": (
        lambda api, head: api.put(
            head, checkpoint({"messages": messages(61)}), {}, {"messages": 2}
        ),
        ["update"],
    ),
    "put of an unchanged value": (
        lambda api, head: api.put(
            head, checkpoint({"messages": None, "n": 1}, {"messages": 1, "n": 2}), {}, {"n": 2}
        ),
        ["insert"],
    ),
    "put_writes": (
        lambda api, head: api.put_writes(head, [(f"c{n}", "x" * 2000) for n in range(5)], "other"),
        ["update"],
    ),
    "first put": (
        lambda api, _: api.put(config("new"), checkpoint({"n": 1}), {}, {"n": 1}),
        ["aggregate", "update"],
    ),
    "first put_writes": (
        lambda api, _: api.put_writes(config("more", checkpoint_id="c"), [("c", 1)], "task"),
        ["aggregate", "update"],
    ),
    "get_tuple of the newest": (
        lambda api, _: api.get_tuple(config()),
        ["find"],
    ),
    "get_tuple of the one named": (
        lambda api, head: api.get_tuple(head),
        ["find", "find"],
    ),
    "list of one page": (
        lambda api, _: api.list(config(), limit=20),
        ["aggregate", "find", "find"],
    ),
}


async def test_a_call_takes_as_many_round_trips_as_it_may(api: Api, commands: Commands) -> None:
    head = fill(api.saver)
    for name, (make, expected) in CALLS.items():
        commands.clear()
        await make(api, head)
        assert commands.names == expected, name


def test_a_thread_that_was_looked_for_in_vain_is_made_in_one_round_trip(
    saver: MongoDBSaver, store: MongoStore, commands: Commands
) -> None:
    """As each run does that begins a thread; also where another process was faster."""
    for thread_id, expected in (
        ("new", ["aggregate", "update"]),
        ("taken", ["aggregate", "update", "find", "find", "aggregate", "update"]),
    ):
        commands.clear()
        assert saver.get_tuple(config(thread_id)) is None
        if thread_id == "taken":
            with store.saver() as another:
                put(another, {"n": 0}, thread_id=thread_id)
        put(saver, {"n": 1}, thread_id=thread_id)
        assert commands.names == expected
    assert [item.checkpoint["channel_values"] for item in saver.list(config("taken"))] == [
        {"n": 1},
        {"n": 0},
    ]


@pytest.mark.parametrize("length", [10, 1000, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_long_list_is_read_in_as_many_round_trips_as_a_short_one(
    length: int, saver: MongoDBSaver, store: MongoStore, commands: Commands
) -> None:
    head = put(saver, {"messages": messages(length)})
    long_writes = [(f"c{n}", messages(length)) for n in range(3)]
    saver.put_writes(head, [*long_writes, *((f"d{n}", f"{n} " * 900) for n in range(30))], "task")

    commands.clear()
    item = saver.get_tuple(config())
    assert item is not None
    assert item.checkpoint["channel_values"] == {"messages": messages(length)}
    assert len(item.pending_writes or []) == 33
    assert commands.names == ["find", "find"]  # the second one for the writes

    commands.clear()
    assert len(list(saver.list(config(), limit=20))) == 1
    assert commands.names == ["aggregate", "find", "find"]


def test_a_thousand_messages_make_a_tree_of_two_levels(
    saver: MongoDBSaver, store: MongoStore
) -> None:
    """So that the test above is about trees, too."""
    put(saver, {"messages": messages(1000)})
    links = {row.digest: row.links for row in store.rows("chunks")}

    def height(digest: bytes) -> int:
        refs = links[digest]
        return max((1 + height(refs[n : n + 32]) for n in range(0, len(refs), 32)), default=0)

    assert max(map(height, links)) == 2


@pytest.mark.parametrize("length", [36, 1000])
def test_a_saver_that_knows_nothing_reads_in_two_round_trips_too(
    length: int, saver: MongoDBSaver, store: MongoStore
) -> None:
    head = fill(saver, steps=3, length=length)
    commands = Commands()
    for place in (config(), head):
        with store.saver(event_listeners=[commands]) as cold:
            cold.setup()
            commands.clear()
            assert cold.get_tuple(place) is not None
            assert commands.names == ["aggregate", "aggregate"]


def test_a_saver_that_knows_nothing_looks_at_the_thread_and_the_parent_before_it_puts(
    saver: MongoDBSaver, store: MongoStore
) -> None:
    head = fill(saver, steps=3)
    commands = Commands()
    with store.saver(event_listeners=[commands]) as cold:
        cold.setup()
        commands.clear()
        unchanged = checkpoint({"messages": None, "n": 1}, {"messages": 1, "n": 2})
        cold.put(head, unchanged, {}, {"n": 2})
        assert commands.names == ["aggregate", "find", "update"]
        assert commands.chunks() == 0


@pytest.mark.parametrize("length", [36, 1000])
def test_a_page_takes_as_many_round_trips_whatever_its_length(
    length: int, saver: MongoDBSaver, commands: Commands
) -> None:
    """In particular, there is none for each row, or for the writes of each row."""
    fill(saver, length=length)
    for limit in (5, 20):
        for place in (config(), {"configurable": {"thread_id": "thread"}}, None):
            commands.clear()
            assert len(list(saver.list(place, limit=limit))) == limit
            assert commands.names == ["aggregate", "find", "find"]


@pytest.mark.parametrize("rows", [5, 20])
def test_a_page_of_many_threads_takes_as_many_round_trips_as_one_of_few(
    rows: int, saver: MongoDBSaver, commands: Commands
) -> None:
    for n in range(rows):
        stored = put(saver, {"text": f"{n} " * 500}, thread_id=f"thread-{n}")
        saver.put_writes(stored, [("c", f"{n} " * 1000)], "task")
    commands.clear()
    assert len(list(saver.list(None, limit=rows))) == rows
    assert len(commands.names) <= 4


def test_writes_by_the_hundred_are_read_in_one_go(saver: MongoDBSaver, commands: Commands) -> None:
    stored = put(saver, {"n": 1})
    saver.put_writes(stored, [(f"c{n}", n) for n in range(500)], "task")
    commands.clear()
    (item,) = saver.list(config(), limit=20)
    assert len(item.pending_writes or []) == 500
    assert commands.names == ["aggregate", "find"]


async def test_the_first_item_of_a_listing_comes_before_the_rest_is_read(
    api: Api, commands: Commands
) -> None:
    fill(api.saver, steps=61)
    commands.clear()
    if api.world == "sync":
        listing = api.saver.list(config())
        assert commands.names == []
        next(listing)
    else:
        alisting = api.saver.alist(config())
        assert commands.names == []
        await anext(alisting)
    assert commands.names == ["aggregate", "find", "find"]


WHOLE: dict[str, Callable[[MongoDBSaver, str], object]] = {
    "delete_thread": lambda saver, thread_id: saver.delete_thread(thread_id),
    "prune": lambda saver, thread_id: saver.prune([thread_id]),
    "delete_for_runs": lambda saver, thread_id: saver.delete_for_runs([thread_id]),
    "copy_thread": lambda saver, thread_id: saver.copy_thread(thread_id, f"copy of {thread_id}"),
    "fork": lambda saver, thread_id: saver.fork(thread_id),
    "rollback": lambda saver, thread_id: saver.rollback(thread_id),
    "trim": lambda saver, thread_id: saver.trim(thread_id, 2),
    "purge": lambda saver, thread_id: saver.purge(thread_id),
}


@pytest.mark.by_halves
@pytest.mark.parametrize("call", WHOLE)
def test_what_is_done_to_a_whole_thread_takes_as_many_commands_whatever_it_holds(
    call: str, saver: MongoDBSaver, commands: Commands
) -> None:
    counts = []
    for thread_id, steps, length in (("short", 3, 20), ("long", 20, 300)):
        parent = None
        for n in range(steps):
            values = {"messages": messages(length + n)}
            metadata = {"run_id": thread_id}
            parent = put(saver, values, parent=parent, thread_id=thread_id, metadata=metadata)
            saver.put_writes(parent, [("c", f"{n} " * 1000)], "task")
        commands.clear()
        WHOLE[call](saver, thread_id)
        counts.append(len([name for name in commands.names if name != "getMore"]))
    assert counts[0] == counts[1] <= 36


# Puts that share a bulk


@pytest.mark.parametrize("count", [10, 50])
async def test_puts_that_wait_at_the_same_time_share_a_bulk(
    count: int, saver: MongoDBSaver, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first; but those that no worker was free for may be alone."""
    heads = [put(saver, {"n": 0}, thread_id=f"thread-{n}") for n in range(count)]
    commands.clear()
    relay = parts_of(saver).context.storage._relays.small  # type: ignore[attr-defined]
    waiting = min(count, mongodb._WORKERS)
    gate = threading.Event()
    store = relay._store

    def store_later(batch: list[Any]) -> None:
        gate.wait(PATIENCE_SECONDS)
        store(batch)

    monkeypatch.setattr(relay, "_store", store_later)
    puts = [
        asyncio.create_task(saver.aput(head, checkpoint({"n": 1}), {}, {"n": 1})) for head in heads
    ]
    await asyncio.to_thread(wait_until, lambda: len(relay._queue) == waiting - 1, "the puts")
    gate.set()
    await asyncio.gather(*puts)

    assert set(commands.names) == {"insert"}
    assert len(commands.names) <= 2 + count - waiting < count
    assert len(list(saver.list(None))) == 2 * count


def test_small_puts_wait_for_a_large_one_to_their_own_thread_only(
    saver: MongoDBSaver, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is large takes long to transfer."""
    mine, other = [put(saver, {"n": 0}, thread_id=thread_id) for thread_id in ("mine", "other")]
    large = parts_of(saver).context.storage._relays.large  # type: ignore[attr-defined]
    gate, begun = threading.Event(), threading.Event()
    send = large._store

    def send_later(batch: list[Any]) -> None:
        begun.set()
        gate.wait(PATIENCE_SECONDS)
        send(batch)

    monkeypatch.setattr(large, "_store", send_later)
    with ThreadPoolExecutor(2) as executor:
        values = {"n": random.Random(1).randbytes(2_000_000)}
        puts = [executor.submit(put, saver, values, parent=mine, thread_id="mine")]
        assert begun.wait(PATIENCE_SECONDS)
        put(saver, {"n": 1}, parent=other, thread_id="other")
        puts.append(executor.submit(saver.put_writes, mine, [("c", 1)], "task"))
        wait_until(lambda: len(large._queue) == 1, "the writes")
        gate.set()
        for result in puts:
            result.result(PATIENCE_SECONDS)
    assert len(list(saver.list(None))) == 4
    assert store.problems(saver) == []


def test_a_put_counts_for_no_less_than_is_sent_of_it() -> None:
    """Else what is taken for small does not fit into one command."""
    leaves = {bytes([n]) * 32: (b"", bytes(2000)) for n in range(50)}
    nodes = {bytes([n]) * 32: (bytes(32) * 1000, b"") for n in range(50, 100)}
    for chunks in (leaves, nodes):
        request = PutRequest("thread", None, "{}", (), "", "id", chunks)
        documents = chunk_documents(ThreadRef(ObjectId(), ObjectId(), ObjectId()), chunks)
        assert sum(len(bson.encode(each)) for each in documents) < 1.1 * sum(checked_size(request))


# Documents that are written


def test_a_small_state_is_put_without_a_chunk(saver: MongoDBSaver, commands: Commands) -> None:
    first = put(saver, {"n": 1, "text": "short"})
    saver.put_writes(first, [("c", 1)], "task")
    assert commands.chunks() == 0
    commands.clear()
    put(saver, {"n": 2}, parent=first)
    assert commands.names == ["insert"]
    assert len(commands.sent[0].command["documents"]) == 2  # the checkpoint and its receipt


def test_what_did_not_change_is_not_sent_again(saver: MongoDBSaver, commands: Commands) -> None:
    values = {"messages": messages(300), "document": "a long document " * 5000, "n": 1}
    first = put(saver, values)
    commands.clear()
    unchanged = checkpoint({**values, "n": 2}, {"messages": 1, "document": 1, "n": 2})
    second = saver.put(first, unchanged, {}, {"n": 2})
    assert commands.chunks() == 0

    saver.put(second, checkpoint({**values, "n": 3}), {}, dict.fromkeys(values, 2))
    assert commands.chunks() == 0  # the versions are new, the values are not


def test_one_more_message_sends_as_many_chunks_for_a_long_list_as_for_a_short_one(
    saver: MongoDBSaver, commands: Commands
) -> None:
    def sent(length: int) -> int:
        thread_id = f"thread-{length}"
        head = put(saver, {"messages": messages(length)}, thread_id=thread_id)
        commands.clear()
        for more in range(1, 13):
            values = {"messages": messages(length + more)}
            head = put(saver, values, parent=head, thread_id=thread_id)
        return commands.chunks()

    assert sent(2000) <= sent(200) + 12  # a level of nodes more, at most


@pytest.mark.parametrize("call", ["copy_thread", "fork"])
@pytest.mark.parametrize("length", [20, 1000])
def test_copies_and_forks_write_no_chunk(
    length: int, call: str, saver: MongoDBSaver, store: MongoStore, commands: Commands
) -> None:
    fill(saver, steps=3, length=length)
    before = store.count("chunks")
    commands.clear()
    WHOLE[call](saver, "thread")
    assert commands.chunks() == 0
    assert store.count("chunks") == before
    assert len(commands.names) <= 15


def test_a_store_is_made_by_few_commands_and_opened_by_fewer(store: MongoStore) -> None:
    for limit in 16, 8:
        commands = Commands()
        with store.saver(event_listeners=[commands]) as saver:
            saver.setup()
            assert len(commands.names) <= limit


# What is kept in memory


async def test_nothing_that_was_stored_waits_for_the_collector_of_cycles(api: Api) -> None:
    """It would keep all documents until then, and have the collector run more often."""
    head = fill(api.saver, steps=1, length=3)
    gc.collect()
    gc.disable()
    try:
        for n in range(20):
            puts = (
                api.put_writes(head, [("c", n)], f"task {n}"),
                api.put(head, checkpoint({"n": n}), {}, {"n": 2}),
            )
            await asyncio.gather(*puts)
        kept = [each for each in gc.get_objects() if type(each) is Attempt]
        assert len(kept) <= 2  # worker threads may still have the last ones
    finally:
        gc.enable()


# Documents that are read


class Reads:
    """Counts the documents that the server looks at, as its storage engine does.

    An explanation of a pipeline leaves out what `$lookup` followed by `$unwind` reads.
    """

    def __init__(self, store: MongoStore) -> None:
        self._collection = store.collection

    def of(self, call: Callable[[], object]) -> int:
        before, scans_before = self._now()
        call()
        after, scans_after = self._now()
        assert scans_after == scans_before, "the whole collection was read"
        return after - before

    def _now(self) -> tuple[int, int]:
        stages = {"storageStats": {}, "queryExecStats": {}}
        (statistics,) = self._collection.aggregate([{"$collStats": stages}])
        cursor = statistics["storageStats"]["wiredTiger"]["cursor"]
        calls = ("search calls", "search near calls", "next calls", "prev calls")
        return (
            sum(cursor[name] for name in calls),
            statistics["queryExecStats"]["collectionScans"]["total"],
        )


SMALL, LARGE = 10, 120
"""How many checkpoints there are in the threads that are asked for, and in the ones around."""

QUERIES: dict[str, tuple[Callable[[MongoDBSaver], object], int]] = {
    # The thread's name and record, what is wanted, its writes, and the record once more.
    "the newest checkpoint": (lambda saver: saver.get_tuple(config("old")), 1 + 1 + 4),
    "the newest of a long thread": (lambda saver: saver.get_tuple(config("long")), 1 + 1 + 4),
    "a page of a thread": (lambda saver: list(saver.list(config("old"), limit=5)), 5 + 3 * 5 + 4),
    "a page of a long thread": (
        lambda saver: list(saver.list(config("long"), limit=5)),
        5 + 3 * 5 + 4,
    ),
    "a page of all threads": (lambda saver: list(saver.list(None, limit=5)), 6 * 5 + 4),
    "the newest of all threads": (lambda saver: saver.latest({}), 4 + 4),
    "a checkpoint by its position": (lambda saver: saver.at("long", -2), 2 + 1 + 4),
    "the oldest checkpoint": (lambda saver: saver.at("long", 0), 1 + 1 + 4),
    "no thread": (lambda saver: saver.get_tuple(config("nobody")), 0),
    "no runs": (lambda saver: saver.delete_for_runs(["no such run"]), 0),
    "a put": (lambda saver: put(saver, {"n": 1}, thread_id="old"), 6),
    "writes": (
        lambda saver: saver.put_writes(
            config("old", checkpoint_id="c"), [("c", 1)], f"task {time.time_ns()}"
        ),
        6,
    ),
}
REMOVALS: dict[str, Callable[[MongoDBSaver], object]] = {
    "of a run": lambda saver: saver.delete_for_runs(["old-3"]),
    "of a thread": lambda saver: saver.delete_thread("old"),
    "of all but the newest": lambda saver: saver.prune(["old"]),
}


@pytest.fixture(scope="module")
def threads(mongo_server: Any) -> Sequence[Any]:
    """The documents of a small old thread, a long one, and a small new one."""
    store = MongoStore(mongo_server.uri, "test-budgets")
    with store.saver() as saver:
        for thread_id, steps in (("old", SMALL), ("long", LARGE), ("new", SMALL)):
            parent = None
            for n in range(steps):
                metadata = {"run_id": f"{thread_id}-{n}"}
                parent = put(saver, {"n": n}, parent=parent, thread_id=thread_id, metadata=metadata)
                saver.put_writes(parent, [("c", n)], "task")
    documents = list(store.collection.find())
    store.close()
    return documents


@pytest.fixture
def busy(store: MongoStore, threads: Sequence[Any]) -> Iterator[MongoDBSaver]:
    """A saver of a store with these threads."""
    with store.saver() as saver:
        saver.setup()
    store.restore(threads)
    with store.saver() as saver:
        yield saver


@one_by_one("query", QUERIES)
def test_a_query_reads_what_it_returns_and_little_else(
    query: str, busy: MongoDBSaver, store: MongoStore
) -> None:
    call, at_most = QUERIES[query]
    call(busy)  # the server tries out plans for a kind of query that it does not know
    assert Reads(store).of(lambda: call(busy)) <= at_most


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_removal_reads_the_thread_that_it_is_about_and_no_other(
    removal: str, busy: MongoDBSaver, store: MongoStore
) -> None:
    """Each row of the thread a few times: to plan, to remove, to count, to collect."""
    rows = 4 * SMALL  # with receipts
    assert rows < Reads(store).of(lambda: REMOVALS[removal](busy)) <= 13 * rows


@pytest.mark.parametrize("length", [50, 1000])
def test_a_state_is_read_with_its_own_chunks_and_no_others(
    length: int, saver: MongoDBSaver, store: MongoStore
) -> None:
    fill(saver, steps=20)
    fill(saver, thread_id="other")
    stored = put(saver, {"messages": messages(length)}, ns="child")
    before = store.count("chunks")
    put(saver, {"messages": messages(length)}, thread_id="same")
    chunks = store.count("chunks") - before

    reads = Reads(store)
    # Where a tree is cut depends on digests, which are others in each family.
    assert 0.9 * chunks < reads.of(lambda: saver.get_tuple(stored)) <= 1.1 * chunks + 8


def test_nothing_reads_the_whole_collection(saver: MongoDBSaver, store: MongoStore) -> None:
    fill(saver)
    fill(saver, thread_id="other")

    def everything() -> None:
        fill(saver, steps=3)
        list(saver.list(None, limit=40))
        list(saver.list(None, filter={"n": 7}, before=config(checkpoint_id="2")))
        list(saver.list({"configurable": {"thread_id": "thread"}}, limit=40))
        saver.get_delta_channel_history(config=config(), channels=["c", "d"])
        saver.delete_for_runs(["run"])
        saver.at("thread", -2)
        saver.latest({"n": 7})
        list(saver.history("thread", limit=25))
        saver.fork("thread", new_thread_id="fork")
        saver.diff("thread", "fork")
        saver.lineage("fork")
        saver.family("fork")
        saver.rollback("fork")
        saver.copy_thread("thread", "copy")
        saver.trim("copy", 2)
        saver.prune(["thread", "nobody"])
        saver.purge("copy")
        saver.delete_thread("thread")
        fill(saver, steps=3)
        with store.saver() as another:
            another.setup()

    Reads(store).of(everything)
