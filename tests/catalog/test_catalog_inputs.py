"""Names are nothing but names to the catalog, and what is no JSON is refused."""

from __future__ import annotations

import enum
import itertools
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from checking import Api, one_by_one, put
from forkpoint import InvalidInput, ThreadFilter
from injection import FILTERS, METADATA, OPERATORS, words_of
from stores import Store


class Name(str, enum.Enum):
    """What `str` makes of a member is not its value."""

    THREAD = "thread"
    TAG = "a"
    KEY = "updated_at"
    STATUS = "idle"
    RAISE = "raise"


async def ids(catalog: Api, thread_filter: ThreadFilter, **options: Any) -> list[str]:
    page = await catalog.search(thread_filter, **options)
    assert await catalog.count(thread_filter) == len(page)
    return sorted(thread.thread_id for thread in page)


@pytest.mark.in_turns
async def test_whatever_a_thread_is_called_it_is_found_by_that_alone(
    catalog: Api, store: Store
) -> None:
    words = words_of(store)
    for word in words:
        thread = await catalog.create(word, label=word, tags=[word], metadata={word: word})
        assert (thread.thread_id, thread.label, thread.tags) == (word, word, (word,))
        assert thread.metadata == {word: word}
    await catalog.create("bystander", label="x", tags=["x"], metadata={"x": "x"})
    orders = itertools.cycle(["updated_at", "created_at", "thread_id", "status"])
    for word in words:
        for thread_filter in (
            ThreadFilter(ids=[word]),
            ThreadFilter(label=word),
            ThreadFilter(tags=[word]),
            ThreadFilter(any_tags=[word]),
            ThreadFilter(metadata={word: word}),
        ):
            assert await ids(catalog, thread_filter, sort_by=next(orders)) == [word]
        assert await ids(catalog, ThreadFilter(metadata={word: word + "x"})) == []
        clone = await catalog.clone(word, word + "2", checkpoints=False)
        assert clone.source_thread_id == word
        assert await ids(catalog, ThreadFilter(source_thread_id=word)) == [word + "2"]
        await catalog.update(word, label=None, tags=[], metadata={word: {word: [word]}})
        assert await ids(catalog, ThreadFilter(metadata={word: {word: [word]}})) == [word]
        await catalog.delete(word)
        await catalog.delete(word + "2")
    assert await ids(catalog, ThreadFilter()) == ["bystander"]
    assert store.problems() == []


async def test_a_filter_on_metadata_has_no_operators_and_no_paths(catalog: Api) -> None:
    for n, metadata in enumerate(METADATA):
        await catalog.create(str(n), metadata={"in": metadata})
    for part, expected in FILTERS:
        thread_ids = await ids(catalog, ThreadFilter(metadata={"in": part}))
        assert sorted(map(int, thread_ids)) == expected, part


async def test_a_subclass_of_str_is_stored_as_its_characters(catalog: Api) -> None:
    thread = await catalog.create(
        Name.THREAD,
        label=Name.TAG,
        tags=[Name.TAG],
        metadata={Name.TAG: Name.TAG},
        if_exists=Name.RAISE,
    )
    assert (thread.thread_id, thread.label, thread.tags) == ("thread", "a", ("a",))
    assert {type(text) for text in (thread.thread_id, thread.label, *thread.tags)} == {str}
    assert thread.metadata == {"a": "a"}
    thread_filter = ThreadFilter(
        ids=[Name.THREAD],
        label=Name.TAG,
        tags=[Name.TAG],
        any_tags=[Name.TAG],
        metadata={Name.TAG: Name.TAG},
        status=Name.STATUS,  # type: ignore[arg-type]
    )
    assert (await catalog.search(thread_filter, sort_by=Name.KEY)).items == [thread]
    assert (await catalog.get(Name.THREAD)) == thread


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


NO_JSON: dict[str, Any] = {
    "NaN": {"k": math.nan},
    "Infinity": {"k": [math.inf]},
    "bytes": {"k": b"bytes"},
    "set": {"k": {1, 2}},
    "datetime": {"k": datetime(2026, 1, 1, tzinfo=timezone.utc)},
    "more digits than Python writes": {"k": 10**5000},
    "key": {("a", "b"): 1},
    "nested key": {"k": {("a", "b"): 1}},
    **{
        f"{kind.__name__} in {depth}": {"k": nested(depth, kind)}
        for depth in (100, 400, 900, 5000)
        for kind in (list, dict)
    },
}


@one_by_one("name", NO_JSON)
async def test_metadata_that_are_no_json_are_refused(name: str, catalog: Api) -> None:
    metadata = NO_JSON[name]
    thread = await catalog.get_or_create("thread", metadata={"k": nested(98, list)})
    for call in (
        catalog.create("new", metadata=metadata),
        catalog.get_or_create("new", metadata=metadata),
        catalog.update("thread", metadata=metadata),
        catalog.clone("thread", "new", metadata=metadata),
        catalog.rollover("thread", "new", metadata=metadata),
    ):
        with pytest.raises(InvalidInput, match="metadata"):
            await call
    assert (await catalog.search()).items == [thread]
    if name not in ("NaN", "Infinity"):  # a run may bring them
        with pytest.raises(InvalidInput, match="metadata"):
            await catalog.search(ThreadFilter(metadata=metadata))


async def test_what_a_run_brings_that_is_no_json_is_counted_as_it_is_found(
    catalog: Api, api: Api
) -> None:
    """A config may say anything that Python writes as JSON."""
    named = {"thread_id": "thread", "checkpoint_ns": ""}
    api.saver.put_writes({"configurable": {**named, "checkpoint_id": "c"}}, [("n", 1)], "task")
    await api.delete_thread("thread")
    put(api.saver, {"n": 1}, parent={"configurable": {**named, "share": math.nan}})
    (thread,) = await catalog.search()
    assert math.isnan(thread.metadata["share"])
    for part in ({"share": math.nan}, {"share": 1}):
        assert await ids(catalog, ThreadFilter(metadata=part)) == []
    await catalog.update("thread", metadata={"k": 1})
    assert await ids(catalog, ThreadFilter(metadata={"k": 1})) == ["thread"]


async def test_each_method_refuses_values_that_are_no_names(catalog: Api) -> None:
    thread = await catalog.create("thread", tags=["a"], metadata={"k": 1})
    for bad in OPERATORS:
        for name, call in calls_with(bad, catalog):
            with pytest.raises(InvalidInput, match=name):
                await call
    assert (await catalog.search()).items == [thread]


def calls_with(bad: Any, catalog: Api) -> list[tuple[str, Any]]:
    """Return calls to be awaited, each with the name of the argument that is wrong."""
    return [
        ("thread_id", catalog.create(bad)),
        ("label", catalog.create("new", label=bad)),
        ("tags", catalog.create("new", tags=[bad])),
        ("metadata", catalog.create("new", metadata=[bad])),
        ("ttl", catalog.create("new", ttl=bad)),
        ("if_exists", catalog.create("new", if_exists=bad)),
        ("label", catalog.get_or_create("thread", label=bad)),
        ("tags", catalog.update("thread", tags=bad)),
        ("ttl", catalog.update("thread", ttl=bad)),
        ("label", catalog.clone("thread", label=bad)),
        ("new_thread_id", catalog.rollover("thread", bad)),
        ("sort_by", catalog.search(sort_by=bad)),
        ("filter", catalog.search(bad)),
        ("cursor", catalog.search(cursor=bad)),
        ("filter", catalog.count(bad)),
        *(
            (name, catalog.search(ThreadFilter(**{field: given})))
            for name, field, given in (
                ("id", "ids", [bad]),
                ("label", "label", bad),
                ("tags", "tags", [bad]),
                ("any_tags", "any_tags", [bad]),
                ("owner", "owner", bad),
                ("status", "status", [bad]),
                ("created_after", "created_after", bad),
                ("created_before", "created_before", bad),
                ("updated_after", "updated_after", bad),
                ("updated_before", "updated_before", bad),
                ("source_thread_id", "source_thread_id", bad),
            )
        ),
    ]


@pytest.mark.parametrize("limit", [2**31, 2**63, 2**70])
async def test_numbers_beyond_the_range_of_databases_are_accepted(limit: int, catalog: Api) -> None:
    thread = await catalog.create("thread", metadata={"n": limit}, ttl=timedelta.max)
    assert (await catalog.search(limit=limit)).items == [thread]
    assert await ids(catalog, ThreadFilter(metadata={"n": limit})) == ["thread"]
    far = datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
    long_ago = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
    assert await ids(catalog, ThreadFilter(created_after=long_ago, updated_before=far)) == [
        "thread"
    ]


async def test_a_cursor_is_taken_as_it_was_given(catalog: Api) -> None:
    for n in range(3):
        await catalog.create(str(n))
    cursor = (await catalog.search(limit=1)).next_cursor
    for forged in (cursor + "\n", "!" + cursor, cursor.replace(cursor[5], "*")):
        with pytest.raises(InvalidInput, match="cursor"):
            await catalog.search(limit=1, cursor=forged)
    assert len((await catalog.search(cursor=cursor)).items) == 2
