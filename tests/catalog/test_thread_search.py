"""Searching threads, compared with a look at each of them."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import strategies as st

from catalogs import FILTERS, THREADS
from checking import drawn, put
from forkpoint import (
    NewThread,
    Thread,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.filters import contains
from forkpoint.saver.saver import ForkpointSaver
from stores import Store


def matches(thread: Thread, thread_filter: ThreadFilter) -> bool:
    return (
        (thread_filter.ids is None or thread.thread_id in thread_filter.ids)
        and thread_filter.label in (None, thread.label)
        and set(thread_filter.tags) <= set(thread.tags)
        and (not thread_filter.any_tags or bool(set(thread_filter.any_tags) & set(thread.tags)))
        and contains(thread.metadata, thread_filter.metadata)
        and thread_filter.status in (None, thread.status)
    )


def all_pages(catalog: ThreadCatalog, thread_filter: ThreadFilter, **options: Any) -> list[Thread]:
    """Return the threads of all pages of a search."""
    page = catalog.search(thread_filter, **options)
    threads = [*page]
    while page.next_cursor is not None:
        page = catalog.search(thread_filter, cursor=page.next_cursor, **options)
        threads += page
    return threads


@drawn(5, 30, threads=THREADS, filters=st.lists(FILTERS, max_size=6), data=st.data())
def test_a_search_finds_what_a_look_at_each_thread_finds(
    threads: list[Any], filters: list[ThreadFilter], data: st.DataObject, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    for thread_ in list(catalog.walk()):
        catalog.delete(thread_.thread_id)
    for n, (label, tags, metadata) in enumerate(threads):
        catalog.create(f"t{n}", label=label, tags=tags, metadata=metadata)
    everything = list(catalog.walk())
    assert len(everything) == len(threads)
    for thread_filter in (*filters, ThreadFilter()):
        sort_by = data.draw(st.sampled_from(["updated_at", "created_at", "thread_id", "status"]))
        descending = data.draw(st.booleans())
        expected = sorted(
            (thread for thread in everything if matches(thread, thread_filter)),
            key=lambda thread: (getattr(thread, sort_by), thread.thread_id),
            reverse=descending,
        )
        options: dict[str, Any] = {"sort_by": sort_by, "descending": descending, "limit": 3}
        assert all_pages(catalog, thread_filter, **options) == expected
        assert catalog.count(thread_filter) == len(expected)


@contextlib.contextmanager
def random_writers(store: Store) -> Iterator[None]:
    """Let four threads update, search, create, delete and put, and raise what they raise."""
    is_over = threading.Event()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        with store.saver() as saver:
            catalog = ThreadCatalog(saver)
            while not is_over.is_set():
                thread_id = f"t{rng.randrange(60):03}"
                match rng.randrange(5):
                    case 0:
                        catalog.update(thread_id, metadata={"n": rng.random()})
                    case 1:
                        catalog.search(limit=2)  # it brings the order up to date
                    case 2:
                        catalog.delete(catalog.create(tags=["other"]).thread_id)
                    case _:
                        put(saver, {"n": rng.random()}, thread_id=thread_id)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, seed) for seed in range(4)]
        try:
            yield
        finally:
            is_over.set()
        for writer in writers:
            writer.result()


@pytest.mark.parametrize("sort_by", ["updated_at", "created_at", "thread_id", "status"])
@pytest.mark.in_turns
def test_a_walk_meets_each_thread_once_while_others_write(
    sort_by: str, saver: ForkpointSaver, store: Store
) -> None:
    catalog = ThreadCatalog(saver)
    for n in range(60):
        catalog.create(f"t{n:03}", tags=["kept"])
    options: dict[str, Any] = {"sort_by": sort_by, "limit": 10}
    with random_writers(store):
        for descending in (True, False):
            threads = all_pages(
                catalog, ThreadFilter(tags=["kept"]), descending=descending, **options
            )
            assert sorted(thread.thread_id for thread in threads) == [f"t{n:03}" for n in range(60)]
    assert store.problems(saver) == []


@pytest.mark.parametrize("letter", ["x", "é"])
def test_threads_with_long_ids_are_walked_through(
    letter: str, saver: ForkpointSaver, store: Store
) -> None:
    catalog = ThreadCatalog(saver)
    thread_ids = [f"{letter * 20_000}{n}" for n in range(3)]
    catalog.create_many([NewThread(thread_id, tags=["long"]) for thread_id in thread_ids])
    for sort_by in ("updated_at", "thread_id"):
        threads = all_pages(catalog, ThreadFilter(), sort_by=sort_by, limit=1)
        assert sorted(thread.thread_id for thread in threads) == thread_ids
    assert catalog.bulk_delete(ThreadFilter(tags=["long"])) == 3
    assert store.problems(saver) == []
