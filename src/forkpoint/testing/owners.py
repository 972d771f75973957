"""Owners: for a saver or a catalog of one owner, the threads of others do not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.errors import InvalidInput, ThreadExists, ThreadNotFound
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, checkpoint, config, everything, fill, put, value_of
from forkpoint.testing.invariants import problems


class OwnerContract(Contract):
    """What is another owner's does not exist, in whatever way it is asked for."""

    def test_an_owner_may_be_called_anything(self, api: Api) -> None:
        names = ["$ne", '{"$ne": ""}', "x' OR '1'='1", "None", "acme\n", "Acme", "acme "]
        for name in names:
            catalog = api.catalog(name)
            catalog.create(f"of {name}", tags=["a"])
        for name in names:
            catalog = api.catalog(name)
            for criteria in (None, ThreadFilter(tags=["a"]), ThreadFilter(owner=name)):
                page = catalog.search(criteria)
                assert [item.thread_id for item in page] == [f"of {name}"]
                assert catalog.count(criteria) == 1
            page = api.catalog().search(ThreadFilter(owner=name))
            assert [item.owner for item in page] == [name]
        assert ThreadCatalog(api.saver).count(ThreadFilter(owner="nobody")) == 0

    def test_a_cursor_goes_on_for_the_owner_that_has_it(self, api: Api) -> None:
        mine, theirs = (ThreadCatalog(api.saver, owner=owner) for owner in ("acme", "other"))
        for n in range(3):
            mine.create(f"mine {n}")
            theirs.create(f"theirs {n}")
        cursor = mine.search(limit=1).next_cursor
        for catalog in (theirs, ThreadCatalog(api.saver)):
            with pytest.raises(InvalidInput, match="another search"):
                api.of(catalog).search(cursor=cursor)
        by_filter = ThreadCatalog(api.saver).search(ThreadFilter(owner="acme"), limit=1).next_cursor
        page = api.of(mine).search(cursor=by_filter)
        assert [item.thread_id for item in page] == ["mine 1", "mine 0"]

    def test_threads_of_others_do_not_exist(self, api: Api) -> None:
        theirs = fill(api.saver.for_owner("acme"), 3)
        before = everything(api.saver, "thread")
        other, catalog = api.of_owner("other"), api.catalog("other")
        assert other.get_tuple(config()) is other.get_tuple(theirs[0]) is None
        assert other.list(None) == other.list(config()) == []
        assert other.latest({}) is None
        assert catalog.get("thread") is None
        assert catalog.count() == len(catalog.search()) == 0
        for call in (other.purge, other.lineage, other.fork, other.history, catalog.stats):
            with pytest.raises(ThreadNotFound):
                call("thread")
        other.delete_thread("thread")
        other.delete_for_runs(["run-0"])
        other.prune(["thread"])
        takes: list[Callable[[], Any]] = [
            lambda: other.put(config(), checkpoint({"n": 1}), {}, {"n": 1}),
            lambda: other.put_writes(config(checkpoint_id="c"), [("n", 1)], "task"),
            lambda: catalog.create("thread"),
        ]
        for take in takes:
            with pytest.raises(ThreadExists, match="there is a thread 'thread' already"):
                take()
        assert everything(api.saver, "thread") == before
        assert problems(api.saver) == []

    def test_a_thread_that_is_handed_over_is_its_new_owners_alone(self, api: Api) -> None:
        acme, other = api.of_owner("acme"), api.of_owner("other")
        fill(acme.saver, 2, thread_id="root")
        acme.fork("root", new_thread_id="thread")
        acme.fork("thread", new_thread_id="fork")
        head = acme.at("thread", -1).config
        api.catalog().update("thread", owner="other", label="given")
        assert acme.get_tuple(config()) is None
        assert value_of(other.get_tuple(config()))["n"] == 1
        assert [item.thread_id for item in api.catalog("other").search()] == ["thread"]
        for saver, thread_id in ((acme, "root"), (other, "thread"), (acme, "fork")):
            assert [entry.thread_id for entry in saver.lineage(thread_id)] == [thread_id]
        with pytest.raises(ThreadExists):
            acme.put(head, checkpoint({"n": 2}), {}, {"n": 2})
        put(other.saver, {"n": 3}, parent=head)
        for thread_id in ("root", "fork"):
            acme.purge(thread_id)
        assert [value_of(item)["n"] for item in other.history("thread")] == [1, 3]
        assert problems(api.saver) == []
