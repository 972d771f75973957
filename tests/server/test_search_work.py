"""Searches over HTTP go through the catalog's index: what they look at is what they return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy
import pytest
from langchain_core.messages import AIMessage

from calling import calling
from checking import encrypted_serde, put
from commands import Commands
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.server import create_app
from index_work import FEW, WORK, Looked, looked_at_by, many
from stores import Known, MongoStore, Store

PAGE = 50
SEARCHES: dict[str, Any] = {
    "all": {},
    "status": {"status": "interrupted"},
    "rare metadata": {"metadata": {"user_id": "u7"}},
    "unique metadata": {"metadata": {"n": 17}},
    "unknown metadata": {"metadata": {"user_id": 7}},
    "frequent metadata": {"metadata": {"plan": {"name": "free"}}},
    "metadata, status": {"metadata": {"plan": {"name": "pro"}}, "status": "error"},
    "a later page": {"status": "interrupted", "offset": PAGE},
}


@pytest.fixture
def saver(store: Store, commands: Commands) -> Iterator[ForkpointSaver]:
    options = {"event_listeners": [commands]} if isinstance(store, MongoStore) else {}
    with store.saver(preview=["title", "n", "list"], **options) as saver:
        saver.setup()
        yield saver


@pytest.fixture
def looked(store: Store, saver: ForkpointSaver, commands: Commands) -> Looked:
    return looked_at_by(saver, store, commands)


def matches(thread: Known, asked: Any) -> bool:
    metadata = asked.get("metadata", {})
    plan = metadata.get("plan", {}).get("name", thread.metadata["plan"]["name"])
    return (
        asked.get("status", thread.status) == thread.status
        and all(thread.metadata[key] == metadata[key] for key in metadata if key != "plan")
        and thread.metadata["plan"]["name"] == plan
    )


async def worked(looked: Looked, client: httpx.AsyncClient, asked: Any) -> tuple[Any, int]:
    """Return the threads that a search returns, and what the store looked at for it."""
    with looked.watching() as work:
        answer = await client.post("/threads/search", json=asked)
    return answer.raise_for_status().json(), work()


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.on_each_backend
async def test_a_search_looks_at_little_more_than_it_returns(
    count: int, store: Store, saver: ForkpointSaver, looked: Looked
) -> None:
    threads = many(count)
    store.add_threads(threads)
    newest_first = sorted(threads, key=lambda each: (each.updated_at, each.thread_id), reverse=True)
    figures = {}
    async with calling(create_app(saver), timeout=600) as client:
        for name, asked in SEARCHES.items():
            matching = [each.thread_id for each in newest_first if matches(each, asked)]
            assert await counted(client, asked) == len(matching)
            rows, work = await worked(looked, client, {"limit": PAGE, **asked})
            offset = asked.get("offset", 0)
            assert [row["thread_id"] for row in rows] == matching[offset : offset + PAGE]
            figures[name] = len(rows), work
            assert work <= WORK * max(len(rows), FEW), (name, figures[name])
    print(f"looked at, of {count}, for pages of:", figures)


async def counted(client: httpx.AsyncClient, asked: Any) -> int:
    body = {name: part for name, part in asked.items() if name != "offset"}
    answer = await client.post("/threads/count", json=body)
    return int(answer.raise_for_status().json())


async def test_values_that_a_preview_shows_are_found_by_the_index(
    store: Store, saver: ForkpointSaver, looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 300
    for n in range(60):
        values = {"title": f"title {n % 20}", "n": n, "list": [n], "text": f"text {n % 2}"}
        put(saver, values if n else {**values, "title": long}, thread_id=f"t{n:02}")
    # A text of a class of LangChain's, and a number of NumPy's.
    put(saver, {"title": AIMessage("Hello").text, "n": numpy.int64(61)}, thread_id="t60")
    reads: list[Any] = []
    read = saver.aget_tuple

    async def noted(config: Any) -> Any:
        reads.append(config["configurable"]["thread_id"])
        return await read(config)

    monkeypatch.setattr(saver, "aget_tuple", noted)
    cases: list[tuple[Any, set[int], int]] = [
        ({"title": "title 7"}, {7, 27, 47}, 0),
        ({"title": "title 7", "n": 27.0}, {27}, 0),
        ({"title": "title 7", "n": True}, set(), 0),
        ({"title": "title 7", "text": "text 1"}, {7, 27, 47}, 3),
        ({"title": "title 8", "text": "text 1"}, set(), 3),
        ({"n": 7, "list": [7]}, {7}, 1),
        ({"title": long}, {0}, 61),
        ({"text": "text 1", "title": "nothing"}, set(), 0),
        ({"title": "Hello", "n": 61}, {60}, 0),
    ]
    async with calling(create_app(saver)) as client:
        assert await counted(client, {}) == 61  # which lists them
        for values, numbers, expected_reads in cases:
            reads.clear()
            asked = {"values": values, "select": ["thread_id"], "limit": 100}
            rows, work = await worked(looked, client, asked)
            assert {row["thread_id"] for row in rows} == {f"t{n:02}" for n in numbers}, values
            assert len(reads) == expected_reads, values
            assert work <= WORK * max(len(rows), FEW), values
            assert await counted(client, {"values": values}) == len(numbers)


async def test_values_of_an_encrypted_store_are_found(store: Store) -> None:
    with store.saver(preview=["title"], serde=encrypted_serde()) as saver:
        for n in range(3):
            put(saver, {"title": f"title {n}"}, thread_id=f"t{n}")
        async with calling(create_app(saver)) as client:
            asked = {"values": {"title": "title 1"}}
            rows = (await client.post("/threads/search", json=asked)).json()
            assert [row["thread_id"] for row in rows] == ["t1"]
            assert await counted(client, asked) == 1
