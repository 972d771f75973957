"""Pages of a list of threads by a part of their label, and by an offset."""

from __future__ import annotations

from itertools import cycle, product

import pytest
from test_catalog_index import many

from checking import Api, put
from forkpoint import InvalidInput, NewThread, ThreadCatalog, ThreadFilter
from stores import Store

LABELS = [
    "Refund for Ann",
    "100% sure",
    "1000 sure",
    "snake_case",
    "snakeXcase",
    "a.b*c",
    "aXbc",
    "[brackets] (and) $more^",
    "back\\slash",
    "ÄRGER in der Straße",
    "e\u0301cole",
    "ΣΊΣΥΦΟΣ",
    "日本語 label",
    "emoji 👍🏽 here",
    "'; DROP TABLE forkpoint_threads; --",
    "$folded_label",
]
PARTS = {
    "REFUND": [0],
    "d for a": [0],
    "%": [1],
    "0_": [],
    "_": [3, 14, 15],
    "e_c": [3],
    ".": [5],
    "B*C": [5],
    ".*": [],
    "(and) $": [7],
    "\\": [8],
    "ärger": [9],
    "arger": [],
    "STRASSE": [9],
    "\u00c9COLE": [10],
    "ecole": [],
    "σίσυφοσ": [11],
    "σίσυφος": [11],
    "本語": [12],
    "👍": [13],
    "'; drop": [14],
    "$folded": [15],
    "x" * 5000: [],
}


async def test_a_part_of_a_label_is_found_as_it_is_whatever_the_case(
    api: Api, store: Store
) -> None:
    catalog = Api(ThreadCatalog(api.saver), api.world)
    for n, label in enumerate(LABELS):
        await catalog.create(f"t{n:02}", label=label, tags=["labelled"])
    await catalog.create("none")
    orders = product(("updated_at", "created_at", "status"), ([], ["labelled"]))
    for (part, expected), (sort_by, tags) in zip(PARTS.items(), cycle(orders)):
        filter = ThreadFilter(label_contains=part, tags=tags)
        page = await catalog.search(filter, sort_by=sort_by)
        assert sorted(thread.thread_id for thread in page) == [f"t{n:02}" for n in expected], part
        assert await catalog.count(filter) == len(page), part
    await catalog.update("t00", label="Another")
    await catalog.update("t01", label=None)
    await catalog.clone("t03", "clone")
    await catalog.clone("t03", "named", label="Other")
    assert await catalog.count(ThreadFilter(label_contains="refund")) == 0
    assert await catalog.count(ThreadFilter(label_contains="100%")) == 0
    assert await catalog.count(ThreadFilter(label_contains="OTHER")) == 2
    assert await catalog.count(ThreadFilter(label_contains="SNAKE_")) == 2
    assert await catalog.bulk_delete(ThreadFilter(label_contains="snake_")) == 2
    assert await catalog.count(ThreadFilter(label_contains="Snake")) == 1
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_an_owner_finds_a_part_of_labels_of_its_own_only(api: Api) -> None:
    for owner in ("acme", "other"):
        ThreadCatalog(api.saver, owner=owner).create(f"of {owner}", label="Hello")
    confined = Api(ThreadCatalog(api.saver, owner="acme"), api.world)
    page = await confined.search(ThreadFilter(label_contains="hell"))
    assert [thread.thread_id for thread in page] == ["of acme"]
    assert await confined.count(ThreadFilter(label_contains="hell")) == 1


@pytest.mark.in_turns
async def test_pages_by_offset_have_each_thread_once(api: Api, store: Store) -> None:
    catalog = Api(ThreadCatalog(api.saver), api.world)
    for n in range(23):
        put(api.saver, {"a": n}, thread_id=f"t{n:02}", metadata={"even": n % 2 == 0})
        await catalog.update(f"t{n:02}", metadata={"even": n % 2 == 0}, tags=["a"])
    for filter, sort_by in (
        (None, "updated_at"),
        (ThreadFilter(tags=["a"], metadata={"even": True}), "thread_id"),
        (ThreadFilter(any_tags=["a", "b"]), "status"),
    ):
        everything = [thread.thread_id for thread in await catalog.search(filter, sort_by=sort_by)]
        paged: list[str] = []
        while page := await catalog.search(filter, sort_by=sort_by, limit=5, offset=len(paged)):
            assert not paged or page.next_cursor is None
            paged += [thread.thread_id for thread in page]
        assert paged == everything
    assert len(await catalog.search(offset=10_000)) == 0
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
@pytest.mark.parametrize("by", ["walk", "awalk"])
async def test_more_than_a_page_of_threads_is_walked_counted_and_deleted(
    by: str, api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.catalog.bulk._WALK_PAGE", 3)
    monkeypatch.setattr("forkpoint.catalog.search._PAGE_ROWS", 2)
    monkeypatch.setattr("forkpoint.catalog.retention_pass._BATCH", 3)
    catalog = ThreadCatalog(api.saver)
    catalog.create_many([NewThread(f"t{n}", label=f"l{n % 2}") for n in range(8)])
    if by == "walk":
        ids = [thread.thread_id for thread in catalog.walk()]
    else:
        ids = [thread.thread_id async for thread in catalog.awalk()]
    assert sorted(ids) == sorted(f"t{n}" for n in range(8))
    filter = ThreadFilter(label_contains="l")
    assert catalog.count(filter) == 8
    assert await Api(catalog, api.world).bulk_delete(filter) == 8
    assert catalog.count() == store.count("threads") == 0


@pytest.mark.slow
async def test_an_offset_reaches_beyond_what_is_read_at_once(api: Api, store: Store) -> None:
    api.saver.setup()
    store.add_threads(many(1100))
    catalog = Api(ThreadCatalog(api.saver), api.world)
    for sort_by in ("updated_at", "created_at"):
        ids = [thread.thread_id for thread in catalog.saver.walk(sort_by=sort_by)]
        page = await catalog.search(sort_by=sort_by, limit=7, offset=1095)
        assert [thread.thread_id for thread in page] == ids[1095:]
    page = await catalog.search(limit=1000, offset=600)
    assert len(page) == 500
    assert store.problems() == []


@pytest.mark.in_turns
async def test_a_bad_offset_or_label_is_refused(api: Api) -> None:
    catalog = Api(ThreadCatalog(api.saver), api.world)
    for n in range(3):
        await catalog.create(f"t{n}")
    cursor = (await catalog.search(limit=1)).next_cursor
    for wrong in (-1, 10_001, "1", 1.0, True, None):
        with pytest.raises(InvalidInput, match="offset"):
            await catalog.search(offset=wrong)
    with pytest.raises(InvalidInput, match="both"):
        await catalog.search(offset=1, cursor=cursor)
    for wrong_label in ("", 5, b"x", "a\0b", "\ud800", {"$ne": ""}, ["a"]):
        with pytest.raises(InvalidInput, match="label_contains"):
            await catalog.search(ThreadFilter(label_contains=wrong_label))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        await catalog.search(ThreadFilter(label_contains="x"), limit=1, cursor=cursor)
