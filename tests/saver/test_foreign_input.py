"""What others send harms nobody but themselves: configs, cursors, metadata and long filters."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import pytest

from checking import Api, checkpoint, config, one_by_one, put, value_of
from forkpoint import InvalidInput, RetentionPolicy, ThreadCatalog, ThreadFilter
from forkpoint.saver.saver import ForkpointSaver
from stores import Store


def mapped(around: Any, thread_id: str = "thread", **more: Any) -> Any:
    place = config(thread_id, **more)["configurable"]
    return {"configurable": {**place, "checkpoint_map": around}}


NO_MAPS: list[Any] = [
    {"\ud800": "0"},
    {"": "\udfff"},
    {"a\0b": "0"},
    {"": "0\0"},
    {"": 1},
    {1: "0"},
    {"": {"$gt": ""}},
    {"": None},
    ["a"],
    "ab",
]


@one_by_one("around", NO_MAPS)
async def test_a_checkpoint_map_is_checked_like_the_rest_of_a_config(
    around: Any, store: Store, api: Api
) -> None:
    put(api.saver, {"n": 0})
    api.saver.delete_thread("thread")  # the id was used before
    put(api.saver, {"n": 1})
    before = store.content()
    with pytest.raises(InvalidInput, match="checkpoint_map"):
        await api.put(mapped(around), checkpoint({"n": 2}), {}, {"n": 2})
    with pytest.raises(InvalidInput, match="checkpoint_map"):
        await api.put_writes(mapped(around, checkpoint_id="c"), [("c", 1)], "task")
    assert store.content() == before


async def test_a_bad_config_does_not_harm_puts_at_the_same_time(
    saver: ForkpointSaver,
) -> None:
    put(saver, {"n": 0}, thread_id="used")
    saver.delete_thread("used")

    async def attack() -> None:
        with pytest.raises(InvalidInput):
            await saver.aput(mapped(NO_MAPS[0], "used"), checkpoint({"n": 1}), {}, {"n": 1})

    async def call(n: int) -> None:
        await saver.aput(config(f"{n}"), checkpoint({"n": n}), {}, {"n": 1})

    await asyncio.gather(*(each for n in range(40) for each in (attack(), call(n))))
    assert [value_of(saver.get_tuple(config(f"{n}"))) for n in range(40)] == [
        {"n": n} for n in range(40)
    ]


# Cursors


@pytest.fixture
def catalog(saver: ForkpointSaver) -> ThreadCatalog:
    catalog = ThreadCatalog(saver)
    for n in range(5):
        catalog.create(f"{n}")
    return catalog


def taken_apart(cursor: str) -> bytes:
    return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))


def put_together(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


PLACES: list[Any] = [
    {"$where": "sleep(1000)"},
    {"$gt": 0},
    {"$expr": {"$eq": [1, 1]}},
    None,
    "x",
    [],
    1e308,
    -1,
    2**63,
    2**70,
    True,
]


async def test_a_forged_cursor_is_refused(catalog: ThreadCatalog, api: Api) -> None:
    search = Api(catalog, api.world).search
    cursor = catalog.search(limit=2).next_cursor
    assert cursor is not None
    content = taken_apart(cursor)
    said = ["0" * 16, "2026-01-01", "3", 0, ""]  # as far as a client can guess it
    forged = [cursor + "A", cursor[:-1], cursor[1:], "", "A", "=" * 8, cursor * 2, "A" * 10_000_000]
    forged += [
        put_together(content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :]) for n in (0, 20)
    ]
    for place in PLACES:
        for changed in ([*said[:n], place, *said[n + 1 :]] for n in range(len(said))):
            body = json.dumps(changed).encode()
            for mac in (
                content[:16],
                blake2b(b"forkpoint cursor" + body, digest_size=16).digest(),
                blake2b(b"forkpoint cursor" + body, digest_size=8).digest(),
                bytes(16),
            ):
                forged.append(put_together(mac + body))
    for one in forged:
        with pytest.raises(InvalidInput, match="cursor"):
            await search(limit=2, cursor=one)
    rest = await search(limit=5, cursor=cursor)
    assert len(rest.items) == 3


def test_a_cursor_holds_for_one_store_and_all_its_savers(
    catalog: ThreadCatalog, store: Store, new_store: Callable[[], Store]
) -> None:
    cursor = catalog.search(limit=2).next_cursor
    with store.saver() as another:
        assert len(ThreadCatalog(another).search(cursor=cursor).items) == 3
    with new_store().saver() as elsewhere:
        theirs = ThreadCatalog(elsewhere)
        for n in range(5):
            theirs.create(f"{n}")
        with pytest.raises(InvalidInput, match="cursor"):
            theirs.search(cursor=cursor)


def test_a_cursor_may_name_the_longest_of_ids(saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    for character in "ab":
        catalog.create(character * 1000)
    cursor = catalog.search(sort_by="thread_id", limit=1).next_cursor
    assert len(catalog.search(sort_by="thread_id", cursor=cursor).items) == 1


# Metadata


def nested(levels: int) -> Any:
    value: Any = 1
    for n in range(levels):
        value = {"a": value} if n % 2 else [value]
    return value


@pytest.mark.parametrize("levels", [100, 990, 100_000])
async def test_metadata_that_are_too_deep_are_refused_before_anything_is_stored(
    levels: int, store: Store, api: Api
) -> None:
    put(api.saver, {"n": 1})
    before = store.content()
    for call in (
        lambda: api.put(config("x"), checkpoint({"n": 1}), {"deep": nested(levels)}, {"n": 1}),
        lambda: api.fork("thread", new_thread_id="x", metadata={"deep": nested(levels)}),
        lambda: api.list(None, filter={"deep": nested(levels)}),
        lambda: api.latest({"deep": nested(levels)}),
    ):
        with pytest.raises(InvalidInput):
            await call()
    assert store.content() == before
    await api.put(config(), checkpoint({"n": 2}), {"deep": nested(98)}, {"n": 2})
    assert [len(await api.list(None, filter={"deep": nested(98)}))] == [1]
    assert (await api.latest({"deep": nested(98)})).metadata["deep"] == nested(98)


async def test_a_nul_in_metadata_comes_back_where_langgraph_leaves_it(api: Api) -> None:
    catalog = Api(ThreadCatalog(api.saver), api.world)
    metadata = {"list": ["\0"], "inner": {"a": "x\0y"}}
    await api.put(config(), checkpoint({"n": 1}), metadata, {"n": 1})
    assert (await api.get_tuple(config())).metadata == metadata
    assert len(await api.list(None, filter=metadata)) == 1
    await catalog.create("made", metadata={"a": "x\0y"})
    assert (await catalog.get("made")).metadata == {"a": "x\0y"}
    assert await catalog.count(ThreadFilter(metadata={"a": "x\0y"})) == 1
    assert await catalog.count(ThreadFilter(metadata={"a": "xy"})) == 0


@one_by_one("counters", [1, True, 0.5, "n", ["n"], [["n"]], None])
def test_metadata_under_a_key_of_langgraphs_own_stop_no_operation(
    counters: Any, store: Store, saver: ForkpointSaver
) -> None:
    """So a run's config may have it: one thread of these ended the retention of all others."""
    catalog = ThreadCatalog(saver)
    metadata = {"counters_since_delta_snapshot": counters, "step": "first"}
    for thread_id in ("bad", "good"):
        parent = config(thread_id)
        for n in range(4):
            parent = put(saver, {"n": n}, parent=parent, metadata=metadata)
    assert saver.get_delta_channel_history(config=parent, channels=["n"])
    for source in ("bad", saver.at("bad", 1).config):  # type: ignore[union-attr]
        fork = saver.fork(source, values={"n": 9})
        found = saver.get_tuple(fork)
        assert found is not None
        assert value_of(found) == {"n": 9}
        saver.purge(fork["configurable"]["thread_id"])
    saver.rollback("bad")
    result = catalog.apply_retention(RetentionPolicy(max_checkpoints_per_thread=1))
    assert (set(result.trimmed), result.failed) == ({"bad", "good"}, {})
    assert saver.check().is_clean
    for thread_id in ("bad", "good"):
        saver.purge(thread_id)
    assert store.problems(saver) == []


# Many terms


@pytest.mark.in_turns
async def test_as_much_as_may_be_asked_for_is_found_in_any_order(
    catalog: ThreadCatalog, api: Api
) -> None:
    tags = [f"t{n}" for n in range(1000)]
    metadata = {f"k{n}": n for n in range(1000)}
    catalog.create("many", tags=tags, metadata=metadata)
    catalog.create("fewer", tags=tags[:99], metadata=metadata)
    catalog.update("many", label="changed")
    asked = {f"k{n}": n for n in range(100)}
    search, count = Api(catalog, api.world).search, Api(catalog, api.world).count
    orders = itertools.cycle(["updated_at", "created_at", "thread_id", "status", "thread_id"])
    for filter, ids in (
        (ThreadFilter(tags=tags[:100]), ["many"]),
        (ThreadFilter(any_tags=tags[:100]), ["fewer", "many"]),
        (ThreadFilter(metadata=asked), ["fewer", "many"]),
        (ThreadFilter(tags=tags[:100], any_tags=tags[50:150], metadata=asked), ["many"]),
        (ThreadFilter(tags=tags[:98], any_tags=tags[:100], metadata=asked), ["fewer", "many"]),
        (ThreadFilter(ids=[*map(str, range(9_998)), "many"]), ["0", "1", "2", "3", "4", "many"]),
    ):
        page = await search(filter, sort_by=next(orders))
        assert sorted(thread.thread_id for thread in page) == ids
        assert await count(filter) == len(ids)


@pytest.mark.parametrize(
    "filter",
    [
        ThreadFilter(tags=[f"{n}" for n in range(101)]),
        ThreadFilter(any_tags=[f"{n}" for n in range(20_000)]),
        ThreadFilter(metadata={f"{n}": n for n in range(101)}),
        ThreadFilter(metadata={"list": list(range(101))}),
        ThreadFilter(ids=[f"{n}" for n in range(10_001)]),
    ],
    ids=["tags", "any_tags", "metadata", "list", "ids"],
)
async def test_more_than_may_be_asked_for_is_refused(
    filter: ThreadFilter, catalog: ThreadCatalog, api: Api
) -> None:
    with pytest.raises(InvalidInput):
        await Api(catalog, api.world).search(filter)
    with pytest.raises(InvalidInput):
        await Api(catalog, api.world).count(filter)
    with pytest.raises(InvalidInput):
        await Api(catalog, api.world).bulk_delete(filter)


async def test_a_thread_has_no_more_tags_than_can_be_kept(catalog: ThreadCatalog, api: Api) -> None:
    tags = [f"{n}" for n in range(1001)]
    with pytest.raises(InvalidInput, match="1000"):
        await Api(catalog, api.world).create("many", tags=tags)
    with pytest.raises(InvalidInput, match="1000"):
        await Api(catalog, api.world).update("0", tags=tags)
    assert catalog.get("many") is None
