"""Leases: one run at a time on a thread, and nothing from one that lost its turn."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from forkpoint.catalog.leases import Lease
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.errors import StaleLease, ThreadBusy, ThreadDeleted, ThreadNotFound
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, checkpoint, config, everything, put, value_of
from forkpoint.testing.invariants import problems


def at(lease: Lease, **part: Any) -> Any:
    """Return the config of a lease, for the graph itself."""
    return {"configurable": {**lease.config["configurable"], "checkpoint_ns": "", **part}}


class LeaseContract(Contract):
    """Who has the lease of a thread runs on it, and nobody else."""

    def test_a_thread_is_busy_while_its_lease_is_held(self, catalog: Api, api: Api) -> None:
        put(api.saver, {"a": 1})
        assert catalog.lease("thread") is None
        with catalog.run() as lease:
            holder = catalog.lease("thread")
            assert holder.holder == lease.holder
            assert str(os.getpid()) in holder.holder
            assert holder.since < holder.until
            assert catalog.is_busy("thread")
            assert catalog.get("thread").status == "busy"
            assert catalog.count(ThreadFilter(status="busy")) == 1
            assert catalog.count(ThreadFilter(status="idle")) == 0
            api.put(at(lease), checkpoint({"a": 2}), {}, {"a": 2})
        assert not catalog.is_busy("thread")
        assert catalog.get("thread").status == "idle"
        assert catalog.count(ThreadFilter(status="busy")) == 0
        assert catalog.count(ThreadFilter(status="idle")) == 1
        assert catalog.get("thread").checkpoint_count == 2

    def test_a_thread_that_is_not_there_is_made(self, catalog: Api) -> None:
        with pytest.raises(ThreadNotFound):
            catalog.lease("thread")
        with catalog.run():
            assert catalog.get("thread").checkpoint_count == 0
        assert catalog.get("thread").status == "idle"

    def test_of_two_one_is_told_that_the_other_runs(self, catalog: Api) -> None:
        with catalog.run() as lease:
            with pytest.raises(ThreadBusy, match=lease.holder):
                catalog.run().__enter__()
            with pytest.raises(ThreadBusy, match=lease.holder):
                catalog.run(if_busy="wait", timeout=timedelta(milliseconds=60)).__enter__()
            with catalog.run("other"):
                pass
        with catalog.run():
            pass

    def test_a_deleted_thread_knows_its_leases_no_more(self, catalog: Api, api: Api) -> None:
        with catalog.run() as old:
            api.put(at(old), checkpoint({"a": 1}), {}, {"a": 1})
            catalog.delete("thread")
            for is_again in (False, True):
                with pytest.raises(ThreadDeleted):
                    api.put(at(old), checkpoint({"a": 2}), {}, {"a": 2})
                with pytest.raises(ThreadDeleted):
                    api.put_writes(at(old, checkpoint_id="x"), [("a", 1)], "task")
                assert catalog.get("thread") is None or is_again
                with catalog.run():  # another thread of this id
                    pass
        assert catalog.get("thread").checkpoint_count == 0
        with pytest.raises(ThreadNotFound):
            catalog.lease("other")

    def test_an_exception_ends_the_lease(self, catalog: Api) -> None:
        with pytest.raises(KeyError), catalog.run():
            raise KeyError
        assert not catalog.is_busy("thread")

    def test_after_its_block_a_lease_has_no_config(self, catalog: Api, api: Api) -> None:
        with catalog.run() as lease:
            shown = at(lease)
        with pytest.raises(StaleLease, match="'thread'"):
            _ = lease.config
        assert not lease.is_lost
        with pytest.raises(StaleLease, match="'thread'"):
            api.put(shown, checkpoint({"a": 1}), {}, {"a": 1})
        with pytest.raises(RuntimeError, match="once"):
            catalog.entered(lease).__enter__()
        assert not catalog.is_busy("thread")

    def test_who_was_refused_may_try_again(self, catalog: Api) -> None:
        again = catalog.saver.run("thread")
        with catalog.run() as lease:
            with pytest.raises(ThreadBusy):
                catalog.entered(again).__enter__()
            assert catalog.lease("thread").holder == lease.holder
        with catalog.entered(again):
            assert catalog.lease("thread").holder == again.holder

    def test_who_lost_the_lease_writes_nothing(self, catalog: Api, api: Api) -> None:
        with catalog.run() as lost:
            stored = api.put(at(lost), checkpoint({"a": 1}), {}, {"a": 1})
            parent = at(lost, **stored["configurable"])
            with catalog.run(if_busy="cancel") as lease:
                late: list[Callable[[], Any]] = [
                    lambda: api.put(parent, checkpoint({"a": "late " * 900}), {}, {"a": 2}),
                    lambda: api.put_writes(parent, [("a", "late")], "task"),
                    lambda: api.put_writes(parent, [("__error__", "late")], "task"),
                ]
                for call in late:
                    with pytest.raises(StaleLease, match="'thread'"):
                        call()
                api.put(at(lease), checkpoint({"a": 3}), {}, {"a": 3})
        assert [value_of(result)["a"] for result in api.list(config())] == [3, 1]
        assert api.get_tuple(stored).pending_writes == []
        assert problems(api.saver) == []

    def test_a_rollback_leaves_what_others_stored(self, catalog: Api, api: Api) -> None:
        head = put(api.saver, {"n": 1})
        api.put_writes(head, [("n", 2), ("__resume__", "before")], "task")
        before = everything(api.saver, "thread")
        with catalog.run() as lease:
            under = at(lease, **head["configurable"])
            api.put_writes(under, [("n", 3)], "of the run")
            api.put_writes(under, [("__resume__", "of the run")], "task")
            api.put(under, checkpoint({"n": 4}), {}, {"n": 4})
            with catalog.run(if_busy="rollback"):
                assert everything(api.saver, "thread") == before
        assert problems(api.saver) == []
