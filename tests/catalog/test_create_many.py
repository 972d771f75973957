"""Threads that are created by the hundred: each is as `create` makes it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from checking import Api, checkpoint, one_by_one, put
from forkpoint import (
    UNCHANGED,
    InvalidInput,
    NewThread,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadFilter,
)
from forkpoint.catalog import records
from stores import MongoStore, SqliteStore, Store

DAY = timedelta(days=1)
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"label": "Größe", "tags": ["b", "a", "b"], "metadata": {"k": {"n": [1, None]}}},
    {"ttl": DAY, "on_expiry": "keep_latest"},
    {"ttl": None, "on_expiry": UNCHANGED},
]


def without_times(thread: Any) -> Any:
    lasts = thread.expires_at and thread.expires_at - thread.updated_at
    return replace(thread, thread_id="", created_at=None, updated_at=None, expires_at=None), lasts


async def test_each_is_as_create_makes_it(
    catalog: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CREATED_AT_ONCE", 3)
    many = [
        NewThread(f"{part}-{number}", **arguments)
        for part in range(2)
        for number, arguments in enumerate(ARGUMENTS)
    ]
    made = await catalog.create_many(iter([*many, NewThread(), NewThread()]))
    assert [thread.thread_id for thread in made[:8]] == [new.thread_id for new in many]
    assert made[8].thread_id != made[9].thread_id
    for number, arguments in enumerate(ARGUMENTS):
        one = await catalog.create(**arguments)
        for part in range(2):
            assert without_times(made[4 * part + number]) == without_times(one)
            assert await catalog.get(f"{part}-{number}") == made[4 * part + number]
    found = await catalog.search(ThreadFilter(tags={"a", "b"}, metadata={"k": {"n": [1, None]}}))
    assert {thread.thread_id for thread in found} > {"0-1", "1-1"}
    assert await catalog.count() == len(many) + 2 + len(ARGUMENTS)
    assert await catalog.create_many([]) == []
    assert store.problems(catalog.saver.saver) == []


@pytest.mark.in_turns
async def test_the_id_of_a_deleted_thread_is_used_again_and_its_late_run_refused(
    catalog: Api, api: Api, store: Store
) -> None:
    late = put(api.saver, {"n": 1}, thread_id="again")
    await catalog.delete("again")
    (made, _) = await catalog.create_many([NewThread("again", label="new"), NewThread("other")])
    assert (made.label, made.checkpoint_count) == ("new", 0)
    with store.saver() as other, pytest.raises(ThreadDeleted):
        other.put(late, checkpoint({"n": 2}), {}, {"n": 2})
    assert (await catalog.get("again")).checkpoint_count == 0
    put(api.saver, {"n": 3}, thread_id="other")
    assert (await catalog.get("other")).checkpoint_count == 1
    assert store.problems(api.saver) == []


async def test_one_that_exists_is_refused_or_returned_as_it_is(catalog: Api, store: Store) -> None:
    known = await catalog.create("known", label="old", ttl=DAY)
    many = [NewThread("first"), NewThread("known", label="new"), NewThread("last")]
    with pytest.raises(ThreadExists, match="'known'"):
        await catalog.create_many(many)
    assert await catalog.count() == 1
    made = await catalog.create_many(many, if_exists="do_nothing")
    assert [thread.thread_id for thread in made] == ["first", "known", "last"]
    assert made[1] == known
    store.age("known", updated_at=2 * 86_400_000_000)
    assert await catalog.get("known") is None
    renewed = (await catalog.create_many(many, if_exists="do_nothing"))[1]
    assert (renewed.label, renewed.updated_at > known.created_at) == ("old", True)
    assert await catalog.count() == 3
    assert store.problems(catalog.saver.saver) == []


@pytest.mark.in_turns
async def test_one_of_another_owner_is_refused_and_its_batch_is_not_made(
    api: Api, store: Store
) -> None:
    ThreadCatalog(api.saver, owner="b").create("theirs")
    catalog = Api(ThreadCatalog(api.saver, owner="a"), api.world)
    many = [NewThread("mine"), NewThread("theirs")]
    for if_exists in ("raise", "do_nothing"):
        with pytest.raises(ThreadExists, match="'theirs'"):
            await catalog.create_many(many, if_exists=if_exists)
    (mine,) = await catalog.create_many(many[:1], if_exists="do_nothing")
    assert mine.owner == "a"
    assert store.problems(api.saver) == []


INVALID: dict[str, Any] = {
    "threads must be an iterable": [None, 7, "a", {"a": 1}],
    "threads.1. must be a NewThread": [[NewThread("a"), "b"], [NewThread("a"), {"thread_id": "b"}]],
    "two of the id 'a'": [[NewThread("a"), NewThread("b"), NewThread("a")]],
    "thread_id": [[NewThread("a"), NewThread("")], [NewThread("a"), NewThread(7)]],  # type: ignore[arg-type]
    "label": [[NewThread("a"), NewThread("b", label=7)]],  # type: ignore[arg-type]
    "tags": [[NewThread("a"), NewThread("b", tags="ab")]],
    "metadata": [[NewThread("a"), NewThread("b", metadata={"__x": 1})]],
    "ttl": [[NewThread("a"), NewThread("b", ttl=-DAY)]],
    "on_expiry": [[NewThread("a"), NewThread("b", on_expiry="never")]],  # type: ignore[arg-type]
}


@one_by_one("message, threads", [(name, each) for name, all_ in INVALID.items() for each in all_])
async def test_invalid_arguments_are_refused_before_anything_is_created(
    message: str, threads: Any, catalog: Api
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await catalog.create_many(threads)
    with pytest.raises(InvalidInput, match="if_exists"):
        await catalog.create_many([NewThread("a")], if_exists="replace")
    assert await catalog.count() == 0


def test_a_thread_takes_one_statement_of_sqlite_in_a_batch_and_no_command_of_mongodb(
    store: Store,
) -> None:
    sent: list[str] = []
    with store.watched(sent.append) as saver:
        catalog = ThreadCatalog(saver)
        counts = {}
        for size in (0, 1, 25, 49):
            sent.clear()
            catalog.create_many(NewThread(f"{size}-{n}", tags=["t"]) for n in range(size))
            counts[size] = len(sent)
    each = 1 if isinstance(store, SqliteStore) else 0
    assert counts[49] - counts[25] <= 24 * each + 2  # fifty rows are inserted by one statement
    assert counts[49] < 90


def test_who_is_late_for_one_of_them_makes_the_others_nevertheless(
    mongo_store: MongoStore,
) -> None:
    """Another caller makes it when it was asked already whether it is there."""
    rival = ThreadCatalog(mongo_store.saver())
    rivals = ["b"]

    def before(command: str) -> None:
        if command == "update" and rivals:
            rival.create(rivals.pop(), label="theirs")

    many = [NewThread(thread_id) for thread_id in "abc"]
    with mongo_store.watched(before) as saver:
        catalog = ThreadCatalog(saver)
        made = catalog.create_many(many, if_exists="do_nothing")
        labels = [(each.thread_id, each.label) for each in made]
        assert (labels, rivals) == ([("a", None), ("b", "theirs"), ("c", None)], [])
        assert mongo_store.problems(saver) == []
        rivals.append("e")
        with pytest.raises(ThreadExists, match="'e'"):
            catalog.create_many([NewThread(thread_id) for thread_id in "def"])
        assert {thread.thread_id for thread in catalog.search()} == set("abcdef")
        assert mongo_store.problems(saver) == []
    rival.saver.close()
