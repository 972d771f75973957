"""Retention: what expires is swept, what is too long is trimmed, and searches miss nothing."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from forkpoint.catalog.retention import RetentionPolicy
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, fill, put, value_of
from forkpoint.testing.invariants import problems

AT_ONCE = timedelta(microseconds=1)


def let_expire() -> None:
    """Let the time of any store go on, whatever its resolution."""
    time.sleep(0.01)


class RetentionContract(Contract):
    """Old threads go by themselves, and by policies, with all that only they need."""

    def test_a_thread_that_has_expired_is_swept(self, catalog: Api, api: Api) -> None:
        catalog.create("stays", ttl=timedelta(days=1))
        catalog.create("expires", ttl=AT_ONCE)
        fill(api.saver, 2, thread_id="expires")
        fill(api.saver, 2, thread_id="plain")
        let_expire()
        assert catalog.get("expires") is None
        assert catalog.count() == len(catalog.search()) == 2
        assert catalog.sweep().deleted == ("expires",)
        assert catalog.sweep().deleted == ()
        assert api.list({"configurable": {"thread_id": "expires"}}) == []
        assert {item.thread_id for item in catalog.search()} == {"stays", "plain"}
        assert problems(api.saver) == []

    def test_a_thread_may_be_trimmed_where_others_are_deleted(self, catalog: Api, api: Api) -> None:
        catalog.create("thread", ttl=AT_ONCE, on_expiry="keep_latest")
        head = fill(api.saver, 4)[-1]
        let_expire()
        assert catalog.get("thread").checkpoint_count == 4
        assert catalog.sweep().trimmed == ("thread",)
        assert catalog.get("thread").checkpoint_count == 1
        assert catalog.sweep().trimmed == ()
        put(api.saver, {"n": 9}, parent=head)
        let_expire()
        assert catalog.sweep().trimmed == ("thread",)
        assert [value_of(item)["n"] for item in api.history("thread")] == [9]
        assert problems(api.saver) == []

    def test_long_threads_are_trimmed(self, catalog: Api, api: Api) -> None:
        for n in range(5):
            fill(api.saver, n + 1, thread_id=f"of {n + 1}")
        catalog.apply_retention(RetentionPolicy(max_checkpoints_per_thread=2))
        counts = {item.thread_id: item.checkpoint_count for item in catalog.search()}
        assert counts == {"of 1": 1, "of 2": 2, "of 3": 2, "of 4": 2, "of 5": 2}
        assert value_of(api.at("of 5", -1))["n"] == 4
        assert problems(api.saver) == []

    def test_what_matches_a_filter_is_deleted_at_once(self, catalog: Api, api: Api) -> None:
        for n in range(6):
            catalog.create(f"t{n}", tags=["even" if n % 2 == 0 else "odd"], label=f"Case {n}")
            fill(api.saver, 1, thread_id=f"t{n}")
        assert catalog.bulk_delete(ThreadFilter(tags=["odd"], label_contains="case 3")) == 1
        assert catalog.bulk_delete(ThreadFilter(any_tags=["odd", "none"])) == 2
        assert {item.thread_id for item in catalog.search()} == {"t0", "t2", "t4"}
        assert problems(api.saver) == []

    @pytest.mark.parametrize("sort_by", ["updated_at", "created_at", "thread_id", "status"])
    def test_a_search_meets_each_thread_once_whatever_changes_meanwhile(
        self, sort_by: str, catalog: Api, api: Api
    ) -> None:
        ids = [f"t{n:02}" for n in range(12)]
        for thread_id in ids:
            catalog.create(thread_id, tags=["kept"])
        met: list[str] = []
        cursor: Any = None
        while True:
            page = catalog.search(
                ThreadFilter(tags=["kept"]), sort_by=sort_by, limit=3, cursor=cursor
            )
            met += [item.thread_id for item in page]
            if (cursor := page.next_cursor) is None:
                break
            for thread_id in (ids[len(met) % 12], met[0], ids[-1]):
                catalog.update(thread_id, metadata={"page": len(met)})
            put(api.saver, {"n": 1}, thread_id=met[-1])
            catalog.create(f"new {len(met)}", tags=["new"])
        assert sorted(met) == ids
        assert catalog.count(ThreadFilter(tags=["kept"])) == 12
