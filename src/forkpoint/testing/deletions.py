"""Deletions: what a run stores late is refused, and an id may be used again."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from forkpoint.errors import ThreadDeleted, ThreadExists
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, checkpoint, config, fill, id_of, put, value_of
from forkpoint.testing.graphs import question
from forkpoint.testing.invariants import problems

LAST = "ffffffff-ffff-6fff-bfff-ffffffffffff"


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """Return the kind of error that a call raises, or what it returns."""
    try:
        return call(*args)
    except (ThreadDeleted, ThreadExists) as error:
        return type(error)


def put_of(api: Api, at: Any, made: Any) -> Any:
    return api.put(at, made, {"run_id": "run"}, {})


class DeletionContract(Contract):
    """A deleted thread stays deleted, for those who may know of it."""

    @pytest.fixture
    def savers(self, api: Api) -> tuple[Api, Api]:
        """The savers of two owners."""
        return api.of_owner("acme"), api.of_owner("other")

    def test_what_comes_after_a_rollback_to_nothing_does_not_bring_the_thread_back(
        self, api: Api
    ) -> None:
        head = put(api.saver, {"n": 1})
        assert api.rollback("thread") is None

        with pytest.raises(ThreadDeleted):
            api.put_writes(head, [("c", 1)], "task")
        with pytest.raises(ThreadDeleted):
            api.put(head, checkpoint({"n": 2}), {}, {"n": 2})
        assert api.list(None) == []
        assert problems(api.saver) == []

    def test_a_run_of_a_purged_thread_cannot_bring_it_back(self, api: Api) -> None:
        head = fill(api.saver, 3)[-1]
        api.fork("thread", new_thread_id="fork")
        api.purge("thread")
        late: list[Callable[[], Any]] = [
            lambda: api.put(head, checkpoint({"n": 1}), {}, {"n": 1}),
            lambda: api.put_writes(head, [("c", 1)], "late"),
        ]
        for call in late:
            with pytest.raises(ThreadDeleted, match="'thread'"):
                call()
        put(api.saver, {"n": "new"})
        for call in late:
            with pytest.raises(ThreadDeleted):
                call()
        assert [value_of(item)["n"] for item in api.history("thread")] == ["new"]
        with pytest.raises(ThreadDeleted, match="goes on from one of its checkpoints"):
            # This run begins after the deletion.
            api.of(question(api.saver)).invoke({"items": ["new"]}, head)
        forked = api.at("fork", -1).config  # of the same id, and not deleted
        api.put(forked, checkpoint({"n": 1}), {}, {"n": 1})
        assert problems(api.saver) == []

    def test_what_an_owner_deletes_makes_no_writes_of_others_late(
        self, api: Api, savers: tuple[Api, Api]
    ) -> None:
        acme, other = savers
        put_of(other, config(), {**checkpoint({"n": 1}), "id": LAST})
        other.delete_thread("thread")
        assert outcome(put_of, other, config(checkpoint_id=LAST), checkpoint({})) is ThreadDeleted

        first = put_of(acme, config(), checkpoint({"n": 1}))
        second = put_of(acme, first, checkpoint({"n": 2}))
        acme.put_writes(second, [("c", 1)], "task")
        # What the other one stores late meanwhile changes nothing either.
        for at in (config(checkpoint_id=LAST), config(checkpoint_id=id_of(first))):
            made = {**checkpoint({}), "id": LAST[:-1] + "e"}
            assert outcome(put_of, other, at, made) is ThreadExists
        third = put_of(acme, second, checkpoint({"n": 3}))
        assert id_of(acme.get_tuple(config())) == id_of(third)
        assert problems(api.saver) == []

    def test_late_writes_are_refused_while_another_owner_has_the_id(
        self, api: Api, savers: tuple[Api, Api]
    ) -> None:
        acme, other = savers
        first = put_of(acme, config(), checkpoint({"n": 1}))
        acme.delete_thread("thread")
        theirs = put_of(other, config(), checkpoint({"n": "theirs"}))
        assert outcome(put_of, acme, config(), checkpoint({})) is ThreadExists
        assert outcome(put_of, acme, first, checkpoint({"n": 2})) in (
            ThreadExists,
            ThreadDeleted,
        )
        assert outcome(acme.put_writes, first, [("c", 2)], "t") in (
            ThreadExists,
            ThreadDeleted,
        )

        other.delete_thread("thread")
        assert outcome(put_of, acme, first, checkpoint({"n": 2})) is ThreadDeleted
        assert outcome(put_of, other, theirs, checkpoint({"n": 2})) is ThreadDeleted
        again = put_of(acme, config(), checkpoint({"n": "again"}))
        assert id_of(acme.get_tuple(config())) == id_of(again)
        assert problems(api.saver) == []

    def test_who_is_confined_to_nobody_knows_all_deletions(
        self, api: Api, savers: tuple[Api, Api]
    ) -> None:
        acme, other = savers
        first = put_of(acme, config(), checkpoint({"n": 1}))
        acme.delete_thread("thread")
        assert outcome(put_of, api, first, checkpoint({"n": 2})) is ThreadDeleted
        put_of(other, config(), checkpoint({"n": "theirs"}))
        assert outcome(put_of, api, first, checkpoint({"n": 2})) is ThreadDeleted
        assert len(other.list(config())) == 1
        assert problems(api.saver) == []

    @pytest.mark.parametrize("deletes", ["other", "acme", None])
    def test_a_run_that_has_stored_nothing_ends_by_its_owners_deletions_only(
        self, deletes: str | None, api: Api, savers: tuple[Api, Api]
    ) -> None:
        acme, _ = savers
        run = SimpleNamespace(control=object())
        at = {"configurable": {"thread_id": "thread", "checkpoint_ns": "", "__pregel_runtime": run}}
        assert acme.get_tuple(at) is None
        deleter = api.saver if deletes is None else api.saver.for_owner(deletes)
        deleter.delete_thread("thread")
        made = outcome(put_of, acme, at, checkpoint({"n": 1}))
        assert (made is ThreadDeleted) == (deletes != "other")
        assert problems(api.saver) == []

    def test_a_late_checkpoint_does_not_bring_the_thread_back(self, api: Api) -> None:
        head = put(api.saver, {"n": 1})
        api.delete_thread("thread")

        with pytest.raises(ThreadDeleted, match="'thread'"):
            api.put(head, checkpoint({"n": 2}), {}, {"n": 2})
        assert api.get_tuple(config()) is None
        assert api.list(None) == []
        assert problems(api.saver) == []

    def test_late_writes_do_not_bring_the_thread_back(self, api: Api) -> None:
        head = put(api.saver, {"n": 1})
        api.delete_thread("thread")

        with pytest.raises(ThreadDeleted):
            api.put_writes(head, [("c", "x" * 9000)], "task")
        assert problems(api.saver) == []

    @pytest.mark.parametrize("writes_first", [True, False])
    def test_the_writes_of_a_late_checkpoint_leave_nothing_in_either_order(
        self, api: Api, writes_first: bool
    ) -> None:
        head = put(api.saver, {"n": 1})
        api.delete_thread("thread")
        late = checkpoint({"n": 2})
        writing = config(checkpoint_id=late["id"])

        if writes_first:  # a new run would begin with a checkpoint
            with pytest.raises(ThreadDeleted):
                api.put_writes(writing, [("c", "x" * 9000)], "task")
        with pytest.raises(ThreadDeleted):
            api.put(head, late, {}, {"n": 2})
        if not writes_first:
            with pytest.raises(ThreadDeleted):
                api.put_writes(writing, [("c", "x" * 9000)], "task")

        assert api.get_tuple(config()) is None
        assert api.catalog().count() == 0
        assert problems(api.saver) == []

    def test_a_late_subgraph_does_not_bring_the_thread_back(self, api: Api) -> None:
        head = put(api.saver, {"n": 1})
        api.delete_thread("thread")
        inner = config(ns="node:1")
        inner["configurable"]["checkpoint_map"] = {"": id_of(head)}

        with pytest.raises(ThreadDeleted):
            api.put(inner, checkpoint({"n": 1}), {}, {"n": 1})
        assert api.list(None) == []
