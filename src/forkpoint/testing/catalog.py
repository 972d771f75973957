"""The catalog: the records of threads, how they are found, and what they take."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from forkpoint.catalog.arguments import NewThread
from forkpoint.catalog.threads import Thread, ThreadFilter
from forkpoint.errors import InvalidInput, ThreadExists, ThreadNotFound
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, config, put

DAY = timedelta(days=1)


def walked(catalog: Api, filter: ThreadFilter | None = None, **options: Any) -> list[Thread]:
    """Return all threads that are found, page by page."""
    result: list[Thread] = []
    cursor = None
    while True:
        page = catalog.search(filter, cursor=cursor, **options)
        result += page
        cursor = page.next_cursor
        if cursor is None:
            return result
        assert len(page) == options.get("limit", 50)


class CatalogContract(Contract):
    """A thread is described, found again, and is what its checkpoints make it."""

    def test_a_thread_is_described_and_found_again(self, catalog: Api) -> None:
        before = datetime.now(timezone.utc) - timedelta(seconds=1)
        made = catalog.create(
            "case", label="A case", tags={"b", "a"}, metadata={"n": 1, "in": {"k": [1]}}, ttl=DAY
        )
        assert (made.thread_id, made.label, made.tags) == ("case", "A case", ("a", "b"))
        assert made.metadata == {"n": 1, "in": {"k": [1]}}
        assert (made.owner, made.status, made.checkpoint_count) == (None, "idle", 0)
        assert (made.source_thread_id, made.source_checkpoint_id) == (None, None)
        assert before < made.created_at <= made.updated_at < before + timedelta(minutes=1)
        assert made.expires_at == made.updated_at + DAY
        assert catalog.get("case") == made
        assert catalog.get("other") is None
        with pytest.raises(ThreadExists, match="'case'"):
            catalog.create("case")
        assert catalog.create("case", label="x", if_exists="do_nothing") == made
        assert catalog.get_or_create("case", tags=["x"]) == made
        assert catalog.get_or_create("new", tags=["x"]).tags == ("x",)

    def test_an_id_is_made_that_sorts_by_time(self, catalog: Api) -> None:
        ids = [catalog.create().thread_id for _ in range(3)]
        assert [item[14] for item in ids] == ["7", "7", "7"]
        assert sorted(item[:13] for item in ids) == [item[:13] for item in ids]

    def test_an_update_changes_what_it_is_given(self, catalog: Api) -> None:
        made = catalog.create("case", label="A", tags=["a"], metadata={"k": 1, "l": 1}, ttl=DAY)
        after = catalog.update("case", metadata={"k": {"new": 2}})
        assert after == dataclasses.replace(
            made,
            metadata={"k": {"new": 2}, "l": 1},
            updated_at=after.updated_at,
            expires_at=after.updated_at + DAY,
        )
        assert after.updated_at > made.updated_at
        cleared = catalog.update("case", label=None, tags=[], ttl=None)
        assert (cleared.label, cleared.tags, cleared.expires_at) == (None, (), None)
        assert cleared.metadata == after.metadata
        assert walked(catalog, ThreadFilter(tags=["a"])) == []
        with pytest.raises(ThreadNotFound, match="'other'"):
            catalog.update("other", label="x")

    def test_writes_without_a_checkpoint_are_no_thread_yet(self, catalog: Api, api: Api) -> None:
        api.put_writes(config("thread", "c"), [("a", 1)], "task")
        assert catalog.get("thread") is None
        assert catalog.count() == 0
        made = catalog.create("thread", label="now it is")
        assert catalog.get("thread") == made
        put(api.saver, {"a": 1})
        assert catalog.get("thread").checkpoint_count == 1
        assert catalog.get("thread").label == "now it is"

    def test_time_to_live_is_renewed_by_activity(self, catalog: Api, api: Api) -> None:
        made = catalog.create("thread", ttl=DAY)
        put(api.saver, {"a": 1})
        after_put = catalog.get("thread")
        assert after_put.expires_at > made.expires_at
        updated = catalog.update("thread", label="x")
        assert updated.expires_at > after_put.expires_at

    def test_times_and_sources_are_searched(self, catalog: Api, api: Api) -> None:
        put(api.saver, {"a": 1}, thread_id="first")
        api.fork("first", new_thread_id="fork")
        catalog.clone("first", "clone")
        between = catalog.get("clone").created_at
        catalog.create("last")

        def ids(**criteria: Any) -> set[str]:
            return {item.thread_id for item in walked(catalog, ThreadFilter(**criteria))}

        assert ids(source_thread_id="first") == {"fork", "clone"}
        assert ids(created_before=between) == {"first", "fork"}
        assert ids(created_after=between) == {"clone", "last"}
        put(api.saver, {"a": 2}, thread_id="first")
        assert ids(updated_after=between) == {"first", "clone", "last"}
        assert ids(updated_before=between) == {"fork"}
        for criteria in ({"created_after": between}, {"updated_before": between}):
            assert catalog.count(ThreadFilter(**criteria)) == len(ids(**criteria))

    def test_a_cursor_belongs_to_its_search(self, catalog: Api, api: Api) -> None:
        for n in range(5):
            catalog.create(f"t{n}", tags=["a"])
        page = catalog.search(ThreadFilter(tags=["a"]), limit=2)
        cursor = page.next_cursor
        for criteria, options in (
            (ThreadFilter(tags=["b"]), {}),
            (None, {}),
            (ThreadFilter(tags=["a"]), {"sort_by": "created_at"}),
            (ThreadFilter(tags=["a"]), {"descending": False}),
        ):
            with pytest.raises(InvalidInput, match="another search"):
                catalog.search(criteria, cursor=cursor, **options)
        other = api.catalog("acme")
        with pytest.raises(InvalidInput, match="another search"):
            other.search(ThreadFilter(tags=["a"]), cursor=cursor)
        for forged in ("", "x", "é", cursor[:-2], "A" * 40, cursor + "AAAA"):
            with pytest.raises(InvalidInput, match="cursor"):
                catalog.search(ThreadFilter(tags=["a"]), cursor=forged)
        rest = catalog.search(ThreadFilter(tags=["a"]), limit=3, cursor=cursor)
        assert len(rest) == 3
        assert rest.next_cursor is None

    def test_many_threads_are_made_at_once_and_found_page_by_page(self, catalog: Api) -> None:
        catalog.create("t3")
        with pytest.raises(ThreadExists, match="'t3'"):
            catalog.create_many([NewThread("new"), NewThread("t3")])
        many = [NewThread(f"t{n}", label=f"L{n}", tags=["a"]) for n in range(5)]
        made = catalog.create_many(many, if_exists="do_nothing")
        assert [thread.thread_id for thread in made] == [f"t{n}" for n in range(5)]
        assert [thread.label for thread in made] == ["L0", "L1", "L2", None, "L4"]
        assert catalog.get("new") is None
        found = walked(catalog, ThreadFilter(tags=["a"]), limit=3, sort_by="thread_id")
        assert [thread.label for thread in found] == ["L4", "L2", "L1", "L0"]

    def test_stats_say_what_a_thread_takes_and_shares(self, catalog: Api, api: Api) -> None:
        long = [{"id": str(n), "text": "text " * 40} for n in range(200)]
        first = put(api.saver, {"long": long}, metadata={"run_id": "r1"})
        put(api.saver, {"long": long, "n": 1}, parent=first, metadata={"run_id": "r2"})
        api.put_writes(first, [("a", 1), ("b", 2)], "task")
        alone = catalog.stats("thread")
        assert (alone.checkpoints, alone.writes, alone.runs) == (2, 2, 2)
        assert alone.bytes_stored > 20_000
        assert alone.bytes_shared == 0
        known = catalog.get("thread")
        assert (alone.first_activity, alone.last_activity) == (known.created_at, known.updated_at)
        catalog.clone("thread", "clone")
        shared = catalog.stats("thread")
        assert shared.bytes_stored == alone.bytes_stored
        assert 20_000 < shared.bytes_shared < shared.bytes_stored
        with pytest.raises(ThreadNotFound):
            catalog.stats("other")
