"""Listing: a page costs the same wherever it is, and what cannot be read blocks nothing else."""

from __future__ import annotations

import copy
import gc
import pickle
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checking import Api, config, id_of, put, value_of
from commands import Commands
from forkpoint import (
    NOT_READ,
    CorruptChunk,
    InvalidInput,
    SafeSerializer,
    SqliteSaver,
    UnreadableValue,
)
from forkpoint.encoding.decoder import Decoder
from forkpoint.saver.saver import ForkpointSaver
from stores import MongoStore, Store

COUNT = 200
NAMESPACES = ("", "child", "task:{}")
"""The graph's own, that of a subgraph that keeps its state, and a new one for each call."""


def fill(saver: ForkpointSaver, count: int = COUNT, others: int = 1) -> list[str]:
    """Put checkpoints of a graph and of its subgraphs in turn, and return their ids.

    After each of them come some of another thread.
    """
    parents: dict[str, Any] = {}
    ids = []
    for n in range(count):
        ns = NAMESPACES[n % len(NAMESPACES)].format(n)
        metadata = {"parity": n % 2, "n": n}
        parents[ns] = put(saver, {"n": n}, parent=parents.get(ns), ns=ns, metadata=metadata)
        ids.append(id_of(parents[ns]))
        for _ in range(others):
            put(saver, {"n": n}, thread_id="another", ns=ns, metadata=metadata)
    return ids


class SqliteWork:
    """Counts the steps of SQLite's virtual machine."""

    def __init__(self, path: Path) -> None:
        connection = sqlite3.connect(path, check_same_thread=False)
        self._steps = 0
        connection.set_progress_handler(self._step, 10)
        self.saver: ForkpointSaver = SqliteSaver(connection)

    def _step(self) -> int:
        self._steps += 1
        return 0

    def of(self, call: Callable[[], Any]) -> int:
        before = self._steps
        call()
        return self._steps - before


class MongoWork:
    """Counts the keys and documents that the server examines, as it explains it."""

    def __init__(self, store: MongoStore) -> None:
        self._store = store.collection
        self._commands = Commands()
        self.saver: ForkpointSaver = store.saver(event_listeners=[self._commands])

    def of(self, call: Callable[[], Any]) -> int:
        self._commands.clear()
        call()
        read = [sent.command for sent in self._commands.sent if sent.command_name == "aggregate"]
        assert read
        return sum(self._examined(command) for command in read)

    def _examined(self, command: Any) -> int:
        """Return how many keys and documents a command examines.

        What a `$lookup` looks for is explained as if it were looked for alone: what the server
        says of one whose documents are taken apart at once is always 0.
        """
        joined = [lookup for lookup in lookups_of(command["pipeline"]) if lookup["as"] == "row"]
        if not joined:
            names = ("aggregate", "pipeline", "cursor")
            return self._total({name: command[name] for name in names})
        thread = self._store.find_one({"kind": "thread", "thread_id": "thread"})
        assert thread is not None
        return sum(self._total(find_of(command, lookup, thread["_id"])) for lookup in joined)

    def _total(self, command: Any) -> int:
        explained = self._store.database.command("explain", command, verbosity="executionStats")
        read = explained["stages"][0]["$cursor"] if "stages" in explained else explained
        plan = str(read["queryPlanner"]["winningPlan"])
        assert "IXSCAN" in plan
        assert "'SORT'" not in plan
        total = read["executionStats"]
        return int(total["totalKeysExamined"] + total["totalDocsExamined"])


def lookups_of(pipeline: Any) -> Iterator[Any]:
    for stage in pipeline:
        if "$lookup" in stage:
            yield stage["$lookup"]
        if "$unionWith" in stage:
            yield from lookups_of(stage["$unionWith"]["pipeline"])


def find_of(command: Any, lookup: Any, thread: Any) -> dict[str, Any]:
    """Return the command that finds what a `$lookup` finds for a thread."""
    stages = {name: value for stage in lookup["pipeline"] for name, value in stage.items()}
    conditions = {name: value for name, value in stages["$match"].items() if name != "$expr"}
    return {
        "find": command["aggregate"],
        "filter": {**conditions, lookup["foreignField"]: thread},
        "sort": stages["$sort"],
        "limit": stages["$limit"],
    }


@pytest.fixture
def work(store: Store, tmp_path: Path) -> Iterator[SqliteWork | MongoWork]:
    counted = MongoWork(store) if isinstance(store, MongoStore) else SqliteWork(tmp_path / "w.db")
    yield counted
    counted.saver.close()


LISTED = {"thread": config(), "everywhere": {"configurable": {"thread_id": "thread"}}, "all": None}


def test_a_page_costs_the_same_at_any_place_of_a_long_thread(work: SqliteWork | MongoWork) -> None:
    ids = fill(work.saver)
    for n in range(100):
        newer = put(work.saver, {"n": n}, thread_id="another", metadata={"parity": n % 2})
    ids.append(id_of(newer))

    def cost(listed: Any, place: int, filter: Any, limit: int = 5) -> int:
        before = config(checkpoint_id=ids[place])
        pages = work.saver.list(listed, before=before, filter=filter, limit=limit)
        return work.of(lambda: list(pages))

    for name, listed in LISTED.items():
        for filter in (None, {"parity": 1}):
            costs = [cost(listed, place, filter) for place in (-1, 190, 50)]
            assert max(costs) <= 2 * min(costs), (name, filter)
    # The next page does not pass over those before again.
    for name, listed in LISTED.items():
        two, six = cost(listed, 190, None, 40), cost(listed, 190, None, 120)
        assert six <= 4 * two, name
    first = work.of(lambda: next(iter(work.saver.history("thread"))))
    assert work.of(lambda: next(iter(work.saver.list(config(), before=None)))) <= 2 * first


def test_the_checkpoints_of_all_namespaces_come_in_the_order_of_their_ids(
    store: Store, saver: ForkpointSaver
) -> None:
    ids = fill(saver, 70)
    everywhere = LISTED["everywhere"]
    assert [id_of(found) for found in saver.list(everywhere)] == ids[::-1]
    before = config(checkpoint_id=ids[50])
    assert [id_of(found) for found in saver.list(everywhere, before=before)] == ids[49::-1]
    odd = saver.list(everywhere, before=before, filter={"parity": 1}, limit=23)
    assert [id_of(found) for found in odd] == ids[49::-2][:23]
    children = saver.list(config(ns="child"), before=before)
    assert [id_of(found) for found in children] == ids[49:0:-3]
    exact = {"configurable": {"thread_id": "thread", "checkpoint_id": ids[4]}}
    assert [id_of(found) for found in saver.list(exact)] == [ids[4]]


def test_checkpoints_of_one_id_in_several_namespaces_are_all_listed_once(
    saver: ForkpointSaver,
) -> None:
    place = put(saver, {"n": 0})
    for n in range(30):
        again = {"configurable": {**config(ns=f"child:{n}")["configurable"]}}
        made = saver.get_tuple(place)
        assert made is not None
        saver.put(again, made.checkpoint, {}, {"n": 1})
    listed = list(saver.list({"configurable": {"thread_id": "thread"}}))
    namespaces = [found.config["configurable"]["checkpoint_ns"] for found in listed]
    assert sorted(namespaces, reverse=True) == namespaces
    assert len(set(namespaces)) == 31
    assert len(list(saver.list(None))) == 31


# What cannot be read


async def take(listing: Any, count: int) -> list[Any]:
    """Return what an iterator gives, with what it raises in its place."""
    items: list[Any] = []
    for _ in range(count):
        try:
            items.append(await anext(listing) if hasattr(listing, "__anext__") else next(listing))
        except (CorruptChunk, UnreadableValue) as error:
            items.append(error)
    return items


def listing_of(api: Api, *args: Any, **kwargs: Any) -> Any:
    return (api.saver.list if api.world == "sync" else api.saver.alist)(*args, **kwargs)


def history_of(api: Api, thread_id: str) -> Any:
    return (api.saver.history if api.world == "sync" else api.saver.ahistory)(thread_id)


async def is_at_its_end(listing: Any) -> bool:
    try:
        await anext(listing) if hasattr(listing, "__anext__") else next(listing)
    except (StopIteration, StopAsyncIteration):
        return True
    return False


@pytest.mark.parametrize("where", [0, 22, 44])
async def test_a_damaged_checkpoint_is_raised_in_its_place_and_the_others_are_listed(
    where: int, store: Store, api: Api
) -> None:
    api.saver.setup()
    parent = None
    for n in range(45):
        before = {row.key for row in store.rows("checkpoints")}
        parent = put(api.saver, {"n": n}, parent=parent, metadata={"n": n})
        if n == where:
            (row,) = [row for row in store.rows("checkpoints") if row.key not in before]
    store.change("checkpoints", row.key, content=row.content[:-1])

    for listing, order in (
        (listing_of(api, config()), range(44, -1, -1)),
        (listing_of(api, None), range(44, -1, -1)),
        (history_of(api, "thread"), range(45)),
    ):
        items = await take(listing, 45)
        for n, item in zip(order, items, strict=True):
            if n == where:
                assert isinstance(item, CorruptChunk)
            else:
                assert value_of(item) == {"n": n}
        assert await is_at_its_end(listing)

    some = listing_of(api, config(), limit=44 - where + 1)
    assert isinstance((await take(some, 44 - where + 1))[-1], CorruptChunk)
    assert await is_at_its_end(some)
    with pytest.raises(CorruptChunk):
        await api.at("thread", where)
    with pytest.raises(CorruptChunk):
        await api.latest({"n": where})


async def test_a_thread_whose_type_cannot_be_restored_does_not_hide_the_other_threads(
    store: Store, api: Api
) -> None:
    for thread_id in ("first", "second", "third"):
        pickles = JsonPlusSerializer(pickle_fallback=True) if thread_id == "second" else None
        with store.saver(serde=pickles) as writer:
            put(writer, {"c": object if pickles else 1}, thread_id=thread_id)
    listing = listing_of(api, None)
    third, second, first = await take(listing, 3)
    assert [value_of(one) for one in (third, first)] == [{"c": 1}, {"c": 1}]
    assert isinstance(second, UnreadableValue)
    assert "second" in str(second)
    assert await is_at_its_end(listing)


def replace_metadata(path: Path, n: int, text: bytes) -> None:
    """Put these bytes in the place of the metadata whose `n` is this, as text."""
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE forkpoint_checkpoints SET metadata = CAST(? AS TEXT)"
            " WHERE json_extract(metadata, '$.n') = ?",
            (text, n),
        )
    connection.close()


def test_a_cell_that_sqlite_cannot_decode_damages_one_checkpoint_only(path: Path) -> None:
    with SqliteSaver(path) as saver:
        for n in range(50):
            put(saver, {"n": n}, metadata={"n": n})
        replace_metadata(path, 25, b"{\xff}")
        for listing, order in (
            (saver.list(config()), range(49, -1, -1)),
            (saver.list(None), range(49, -1, -1)),
            (saver.history("thread"), range(50)),
        ):
            items = []
            while True:
                try:
                    items.append(value_of(next(listing))["n"])
                except CorruptChunk:
                    items.append(25)
                except StopIteration:
                    break
            assert items == list(order)


def test_a_cell_of_metadata_that_is_no_json_does_not_break_a_filter(path: Path) -> None:
    with SqliteSaver(path) as saver:
        for n in range(3):
            put(saver, {"n": n}, metadata={"n": n})
        replace_metadata(path, 1, b"{")
        listing = saver.list(config(), filter={"n": 0})
        with pytest.raises(CorruptChunk):
            next(listing)
        assert value_of(next(listing)) == {"n": 0}
        with pytest.raises(StopIteration):
            next(listing)


# Without values


class CountingSerializer(SafeSerializer):
    """Counts what it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded = 0

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.decoded += 1
        return super().loads_typed(data)


async def test_a_listing_without_values_reads_and_decodes_none(store: Store, api: Api) -> None:
    head: Any = None
    texts = [f"{number} " * 3000 for number in range(30)]
    for number in range(30):
        values = {"texts": texts[: number + 1], "n": number}
        head = put(api.saver, values, parent=head, metadata={"n": number})
    api.saver.put_writes(head, [("texts", "text " * 3000), ("__error__", "failed")], "task")

    counting = CountingSerializer()
    with store.saver(serde=counting) as reader:
        calls = Api(reader, api.world)
        listed = await calls.list(config(), values=False)
        other = await taken_of(reader, api.world)
        fifth = await calls.at("thread", 4, values=False)
    assert counting.decoded == 61  # the checkpoints themselves, of 30 each and of one
    whole = await api.list(config())
    assert fifth == other[4]
    assert [item.metadata for item in listed] == [item.metadata for item in whole]
    assert [item.config for item in other] == [item.config for item in reversed(whole)]
    for item, complete in zip(listed, whole, strict=True):
        assert value_of(item) == dict.fromkeys(value_of(complete), NOT_READ)
        assert {**item.checkpoint, "channel_values": {}} == {
            **complete.checkpoint,
            "channel_values": {},
        }
        assert item.parent_config == complete.parent_config
    writes = [(task_id, channel, NOT_READ) for task_id, channel, _ in whole[0].pending_writes]
    assert listed[0].pending_writes == writes
    assert len(writes) == 2


async def taken_of(saver: ForkpointSaver, world: str) -> list[Any]:
    if world == "sync":
        return list(saver.history("thread", values=False))
    return [item async for item in saver.ahistory("thread", values=False)]


async def test_a_listing_without_values_ignores_missing_chunks(store: Store, api: Api) -> None:
    put(api.saver, {"text": "text " * 3000})
    (chunk,) = store.rows("chunks")
    taken = store.take("chunks", chunk.key)
    with store.saver() as reader:
        (item,) = await Api(reader, api.world).list(config(), values=False)
        with pytest.raises(CorruptChunk):
            await Api(reader, api.world).list(config())
    store.give_back("chunks", taken)
    assert value_of(item) == {"text": NOT_READ}


def test_what_was_not_read_cannot_be_stored_in_the_place_of_a_value() -> None:
    with SqliteSaver(":memory:") as saver:
        head = put(saver, {"text": "text"})
        (item,) = saver.list(config(), values=False)
        with pytest.raises(InvalidInput, match="channel text"):
            saver.put(head, {**item.checkpoint, "id": "2"}, {}, {})


def test_what_was_not_read_is_one_object() -> None:
    for same in (
        copy.copy(NOT_READ),
        copy.deepcopy([NOT_READ])[0],
        pickle.loads(pickle.dumps(NOT_READ)),
    ):
        assert same is NOT_READ
    assert repr(NOT_READ) == "NOT_READ"


async def test_a_listing_that_is_closed_has_no_more(api: Api) -> None:
    for n in range(3):
        put(api.saver, {"n": n})
    if api.world == "sync":
        listed = api.saver.list(config())
        assert value_of(next(listed)) == {"n": 2}
        listed.close()
        assert list(listed) == []
    else:
        alisted = api.saver.alist(config())
        assert value_of(await anext(alisted)) == {"n": 2}
        await alisted.aclose()
        assert [item async for item in alisted] == []


@pytest.mark.in_turns
@pytest.mark.parametrize("named", ["config", "checkpoint", "id"])
async def test_a_listing_ends_before_whatever_names_a_checkpoint(named: str, api: Api) -> None:
    places = [put(api.saver, {"n": n}) for n in range(4)]
    place = places[2]["configurable"]
    before = {"config": places[2], "checkpoint": place, "id": place["checkpoint_id"]}[named]
    expected = [id_of(place) for place in places[1::-1]]
    assert [id_of(item) for item in await api.list(config(), before=before)] == expected


def put_turns(saver: ForkpointSaver, turns: int = 15) -> list[AIMessage]:
    """Put a state of messages once for each turn, each with one message more."""
    messages = [AIMessage("text " * 100, id=str(n), tool_calls=[]) for n in range(100)]
    head: Any = None
    for turn in range(turns):
        messages.append(AIMessage("answer", id=f"answer {turn}"))
        head = put(saver, {"messages": list(messages), "numbers": list(range(3000))}, parent=head)
    return messages


async def test_a_page_verifies_what_its_checkpoints_share_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = put_turns(api.saver)
    opened: Counter[bytes] = Counter()
    open_chunk = Decoder.open_chunk

    def count(self: Decoder, digest: bytes, row: Any) -> Any:
        opened[digest] += 1
        return open_chunk(self, digest, row)

    monkeypatch.setattr(Decoder, "open_chunk", count)
    items = await api.list(config())

    assert [len(value_of(item)["messages"]) for item in items] == list(range(115, 100, -1))
    assert value_of(items[0])["messages"] == messages
    assert len(opened) > 20
    assert set(opened.values()) == {1}


async def test_what_is_done_to_a_listed_state_reaches_no_other(api: Api) -> None:
    put_turns(api.saver)
    first, second, *_ = await api.list(config())
    before = [value.model_copy(deep=True) for value in value_of(second)["messages"]]
    for message in value_of(first)["messages"]:
        message.content = "changed"
        message.tool_calls.append({"name": "n", "args": {}, "id": "1"})
        message.additional_kwargs["key"] = "value"
        message.some_field = 1
    value_of(first)["numbers"].clear()

    for item in (second, (await api.list(config()))[1]):
        assert value_of(item)["messages"] == before
        assert value_of(item)["numbers"] == list(range(3000))


async def test_the_collector_of_cycles_is_on_after_a_reading_as_it_was_before(
    store: Store, api: Api
) -> None:
    put_turns(api.saver, 2)
    for was_enabled in (False, True):
        (gc.enable if was_enabled else gc.disable)()
        try:
            await api.get_tuple(config())
            await api.list(config())
            assert gc.isenabled() is was_enabled
        finally:
            gc.enable()
    for chunk in store.rows("chunks"):
        store.take("chunks", chunk.key)
    with store.saver() as reader:
        for read in (Api(reader, api.world).get_tuple, Api(reader, api.world).list):
            with pytest.raises(CorruptChunk):
                await read(config())
            assert gc.isenabled()
