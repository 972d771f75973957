"""Removing threads, runs and checkpoints, and copying threads: what stays keeps its state."""

from __future__ import annotations

from typing import Any

import pytest

from forkpoint.errors import InvalidInput, ThreadExists, ThreadNotFound
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, config, everything, fill, id_of, put, value_of
from forkpoint.testing.invariants import problems


class RemovalContract(Contract):
    """What is removed is gone with all that only it needed, and nothing else is."""

    def test_deleting_a_thread_leaves_the_others(self, api: Api) -> None:
        for name in ("a", "b"):
            stored = put(api.saver, {"text": "shared text " * 100}, thread_id=name)
            api.put_writes(stored, [("c", 1)], "task")
            put(api.saver, {"n": 1}, thread_id=name, ns="child")

        api.delete_thread("a")

        assert api.get_tuple(config("a")) is None
        assert api.list({"configurable": {"thread_id": "a"}}) == []
        assert len(api.list(None)) == 2
        assert api.get_tuple(config("b")).pending_writes == [("task", "c", 1)]

    def test_deleting_what_does_not_exist_is_no_error(self, api: Api) -> None:
        api.delete_thread("nobody")
        api.delete_for_runs(["no run"])
        api.delete_for_runs([])
        api.prune(["nobody"])
        api.prune([], strategy="delete")

    def test_deleting_runs_removes_their_checkpoints_in_all_threads(self, api: Api) -> None:
        for name in ("a", "b"):
            first = put(api.saver, {"n": 1}, thread_id=name, metadata={"run_id": "one"})
            put(api.saver, {"n": 2}, thread_id=name, parent=first, metadata={"run_id": "two"})
            put(api.saver, {"n": 2}, thread_id=name, ns="child", metadata={"run_id": "one"})

        api.delete_for_runs(["one", "three"])

        left = api.list(None)
        assert [item.metadata["run_id"] for item in left] == ["two", "two"]

    def test_deleting_a_run_leaves_the_copies_that_were_made_of_it(self, api: Api) -> None:
        put(api.saver, {"n": 1}, thread_id="source", metadata={"run_id": "run"})
        api.copy_thread("source", "copy")

        api.delete_for_runs(["run"])

        assert api.get_tuple(config("source")) is None
        assert api.get_tuple(config("copy")).metadata["run_id"] == "run"

    @pytest.mark.parametrize("strategy", ["delete", "delete_all"])
    def test_pruning_with_delete_removes_threads(self, api: Api, strategy: str) -> None:
        put(api.saver, {"n": 1}, thread_id="a")
        put(api.saver, {"n": 1}, thread_id="b")

        api.prune(["a"], strategy=strategy)

        assert [item.config["configurable"]["thread_id"] for item in api.list(None)] == ["b"]

    def test_pruning_keeps_the_newest_checkpoint_of_each_namespace(self, api: Api) -> None:
        kept = []
        for ns in ("", "child"):
            parent = None
            for n in range(5):
                parent = put(api.saver, {"n": n, "text": "x" * 5000}, parent=parent, ns=ns)
                api.put_writes(parent, [("c", n)], "task")
            kept.append(id_of(parent))

        api.prune(["thread"], strategy="keep_latest")

        result = api.list({"configurable": {"thread_id": "thread"}})
        assert sorted(map(id_of, result)) == sorted(kept)
        assert [item.pending_writes for item in result] == [[("task", "c", 4)]] * 2
        assert result[0].checkpoint["channel_values"] == {"n": 4, "text": "x" * 5000}

    @pytest.mark.parametrize("keep_last", [1, 2, 9])
    def test_pruning_keeps_as_many_of_each_namespace_as_are_asked_for(
        self, api: Api, keep_last: int
    ) -> None:
        for ns in ("", "child"):
            parent = None
            for n in range(4):
                parent = put(api.saver, {"n": n, "text": f"{n}" * 5000}, parent=parent, ns=ns)
        api.copy_thread("thread", "copy")
        api.prune(["thread", "nobody"], keep_last=keep_last)
        for ns in ("", "child"):
            asked = config("thread", ns=ns)
            kept = [item.checkpoint["channel_values"]["n"] for item in api.list(asked)]
            assert kept == [3, 2, 1, 0][:keep_last]
        api.trim("copy", keep_last)
        pruned = [id_of(item) for item in api.list(config("thread"))]
        trimmed = [id_of(item) for item in api.list(config("copy"))]
        assert pruned == trimmed
        assert problems(api.saver) == []

    @pytest.mark.parametrize(
        "arguments",
        [{"keep_last": 0}, {"keep_last": True}, {"keep_last": 1.5}, {"keep_last": "2"}]
        + [{"keep_last": 1, "strategy": strategy} for strategy in ("delete", "delete_all")],
    )
    def test_pruning_to_what_is_no_number_of_checkpoints_is_refused(
        self, api: Api, arguments: dict[str, Any]
    ) -> None:
        put(api.saver, {"n": 1})
        with pytest.raises(InvalidInput, match="keep_last"):
            api.prune(["thread"], **arguments)
        assert len(api.list(config())) == 1

    def test_a_copy_has_everything_and_is_independent(self, api: Api) -> None:
        parent = None
        for n in range(3):
            parent = put(api.saver, {"n": n, "text": f"{n}" * 5000}, parent=parent)
            api.put_writes(parent, [("c", n)], "task")
        put(api.saver, {"deep": True}, ns="child")
        before = api.list({"configurable": {"thread_id": "thread"}})

        api.copy_thread("thread", "copy")
        copied = api.list({"configurable": {"thread_id": "copy"}})
        api.delete_thread("thread")
        after = api.list({"configurable": {"thread_id": "copy"}})

        def content(result: list[Any]) -> list[Any]:
            return [(item.checkpoint, item.metadata, item.pending_writes) for item in result]

        assert content(before) == content(copied) == content(after)

    def test_copying_refuses_a_target_that_exists_and_a_missing_source(self, api: Api) -> None:
        put(api.saver, {"n": 1}, thread_id="a")
        put(api.saver, {"n": 2}, thread_id="b")

        with pytest.raises(ThreadExists):
            api.copy_thread("a", "b")
        with pytest.raises(ThreadExists):
            api.copy_thread("a", "a")
        with pytest.raises(ThreadNotFound):
            api.copy_thread("nobody", "c")
        assert api.get_tuple(config("b")).checkpoint["channel_values"] == {"n": 2}
        assert api.get_tuple(config("c")) is None

    def test_a_thread_is_gone_with_the_last_of_its_runs(self, api: Api) -> None:
        put(api.saver, {"n": 1}, thread_id="emptied", metadata={"run_id": "run"})
        put(api.saver, {"n": 2}, thread_id="source")
        api.delete_for_runs(["run"])

        assert problems(api.saver) == []
        with pytest.raises(ThreadNotFound):
            api.lineage("emptied")
        api.copy_thread("source", "emptied")  # the id is free
        assert value_of(api.get_tuple(config("emptied"))) == {"n": 2}

    def test_trimming_keeps_the_newest_as_they_were(self, api: Api) -> None:
        configs = fill(api.saver, 6)
        for n in range(4):
            put(api.saver, {"n": n}, ns="child", metadata={"n": n})
        before = everything(api.saver, "thread")
        kept = [item for item in before if item.config in configs[-2:]]
        kept_inside = [item for item in before if item.config["configurable"]["checkpoint_ns"]][:2]

        report = api.trim("thread", 2)
        assert (report.checkpoints, report.writes) == (4 + 2, 4 * 2)
        assert [item for item in everything(api.saver, "thread") if item in kept] == kept
        assert [item for item in everything(api.saver, "thread") if item not in kept] == kept_inside
        assert api.history("thread") == kept[::-1]
