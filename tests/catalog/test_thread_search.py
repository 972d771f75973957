"""Searching threads, compared with a look at each of them."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from catalogs import FILTERS, THREADS
from checking import drawn, put
from hypothesis import strategies as st
from stores import Store

from forkpoint import (
    Thread,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.filters import contains
from forkpoint.saver.saver import ForkpointSaver


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
