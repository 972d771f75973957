"""Forks, clones and rollbacks: what they hold, and where a thread came from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import pytest

from forkpoint.errors import CheckpointNotFound, ThreadNotFound
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import (
    Api,
    checkpoint,
    config,
    everything,
    fill,
    id_of,
    put,
    thread,
    value_of,
)
from forkpoint.testing.invariants import problems


class ForkContract(Contract):
    """A fork goes its own way, and its lineage says where it came from."""

    def test_a_fork_is_a_thread_of_one_checkpoint_and_goes_its_own_way(self, api: Api) -> None:
        configs = fill(api.saver, 4)
        source = everything(api.saver, "thread")

        made = api.fork(configs[1], new_thread_id="fork")
        assert made == thread("fork")
        (result,) = api.list(made)
        original = api.get_tuple(configs[1])
        assert result.config == config("fork", id_of(configs[1]))
        assert result.checkpoint == original.checkpoint
        assert result.metadata == original.metadata

        api.put(result.config, checkpoint({"n": 100}), {}, {"n": 100})
        assert [value_of(item)["n"] for item in api.history("fork")] == [1, 100]
        assert everything(api.saver, "thread") == source
        api.delete_thread("thread")
        assert value_of(api.at("fork", 0)) == value_of(original)
        assert problems(api.saver) == []

    def test_a_thread_id_is_forked_at_its_head_and_a_fork_is_given_an_id(self, api: Api) -> None:
        configs = fill(api.saver, 3)
        ids = set()
        for source in ("thread", thread("thread"), config()):
            made = api.fork(source)
            (result,) = api.list(made)
            assert id_of(result) == id_of(configs[-1])
            ids.add(made["configurable"]["thread_id"])
        assert len(ids) == 3

    def test_lineage_says_where_each_thread_came_from(self, api: Api) -> None:
        configs = fill(api.saver, 4, thread_id="root")
        api.fork(configs[2], new_thread_id="fork")
        api.copy_thread("fork", "clone")
        api.fork("clone", new_thread_id="last")

        entries = api.lineage("last")
        assert [entry.thread_id for entry in entries] == ["last", "clone", "fork", "root"]
        assert [entry.edge for entry in entries] == ["fork", "clone", "fork", None]
        assert [entry.parent_thread_id for entry in entries] == ["clone", "fork", "root", None]
        forked = id_of(configs[2])
        assert [entry.parent_checkpoint_id for entry in entries] == [forked, None, forked, None]
        assert [entry.step for entry in entries] == [2, None, 2, None]
        assert [entry.forked_from is not None for entry in entries] == [True, False, True, False]
        assert [entry.checkpoint_count for entry in entries] == [1, 1, 1, 4]
        assert all(entry.exists for entry in entries)
        for entry in entries:
            assert entry.created_at.tzinfo is timezone.utc
        assert api.lineage("root") == entries[3:]
        assert api.lineage("fork") == entries[2:]

    def test_when_a_forked_checkpoint_was_made_is_told_by_its_id(self, api: Api) -> None:
        for name, id_ in (
            ("told", "1eda8a58-ab15-6000-8000-000000000000"),
            ("random", "1f100000-0000-4000-8000-000000000000"),
            ("no UUID", "0007"),
        ):
            made = {**checkpoint({"n": 1}), "id": id_}
            api.put(config(name), made, {}, {"n": 1})
            api.fork(name, new_thread_id=f"fork of {name}")
            entry = api.lineage(f"fork of {name}")[0]
            assert entry.parent_checkpoint_id == id_
            assert entry.step is None
            expected = datetime(2023, 2, 9, 18, 14, 6, 829977, tzinfo=timezone.utc)
            assert entry.forked_from == (expected if name == "told" else None)

    def test_a_purged_ancestor_stays_in_the_lineage_as_one_that_does_not_exist(
        self, api: Api
    ) -> None:
        configs = fill(api.saver, 3, thread_id="root")
        api.fork(configs[1], new_thread_id="child")
        api.purge("root")
        made = api.fork("child", new_thread_id="grandchild")
        api.copy_thread("child", "clone")

        entries = api.lineage("grandchild")
        assert [(item.thread_id, item.exists) for item in entries] == [
            ("grandchild", True),
            ("child", True),
            ("root", False),
        ]
        assert [item.parent_checkpoint_id for item in entries] == [id_of(configs[1])] * 2 + [None]
        assert [item.step for item in entries] == [1, 1, None]
        assert entries[-1].checkpoint_count == 0
        assert api.lineage("clone")[1:] == entries[1:]

        put(api.saver, {"n": 1}, thread_id="root")  # a new thread under the old id
        assert api.lineage("grandchild") == entries
        assert [item.exists for item in api.lineage("root")] == [True]
        assert [node.entry.thread_id for node in api.family("root")] == ["root"]
        assert len(list(api.family("grandchild"))) == 4

        put(api.saver, {"n": 2}, parent=api.at("grandchild", -1).config, thread_id="grandchild")
        api.trim("child", 1)
        api.trim("grandchild", 1)
        assert api.get_tuple(config("grandchild", id_of(configs[1]))) is None
        assert api.lineage("grandchild")[0].step == 1  # its parent still has it
        api.purge("child")
        assert [item.step for item in api.lineage("grandchild")] == [None, None, None]
        assert made == thread("grandchild")
        assert problems(api.saver) == []

    def test_a_family_is_a_tree_of_all_that_forks_and_clones_join(self, api: Api) -> None:
        fill(api.saver, 2, thread_id="root")
        put(api.saver, {"n": 1}, thread_id="stranger")
        for source, target in (
            ("root", "b"),
            ("root", "a"),
            ("b", "b1"),
            ("b", "b2"),
            ("b2", "b21"),
        ):
            api.fork(source, new_thread_id=target)

        def shape(node: Any) -> Any:
            return node.entry.thread_id, [shape(child) for child in node.children]

        tree = api.family("b2")
        b: Any = ("b", [("b1", []), ("b2", [("b21", [])])])
        assert shape(tree.root) == ("root", [b, ("a", [])])
        assert [node.entry.thread_id for node in tree] == ["root", "b", "b1", "b2", "b21", "a"]
        assert [node.entry.thread_id for node in tree if node.is_current] == ["b2"]
        entries = {node.entry.thread_id: node.entry for node in tree}
        assert [entries[name] for name in ("b21", "b2", "b", "root")] == api.lineage("b21")

        for name in ("root", "b", "a", "b1"):
            api.purge(name)  # those that nothing came of are in no tree any more
        tree = api.family("b21")
        assert shape(tree.root) == ("root", [("b", [("b2", [("b21", [])])])])
        assert [node.entry.exists for node in tree] == [False, False, True, True]

    def test_a_history_is_oldest_first_and_that_of_the_graph_itself(self, api: Api) -> None:
        configs = fill(api.saver, 25)
        put(api.saver, {"n": 1}, ns="child")
        result = api.history("thread")
        assert [item.config for item in result] == configs
        assert (
            result
            == [item for item in everything(api.saver, "thread") if item.config in configs][::-1]
        )
        for limit in (0, 1, 20, 21, 100):
            assert api.history("thread", limit=limit) == result[:limit]

        assert [api.at("thread", n).config for n in (0, 3, 24)] == [configs[n] for n in (0, 3, 24)]
        assert [api.at("thread", n).config for n in (-1, -3, -25)] == [
            configs[n] for n in (-1, -3, -25)
        ]
        for index in (25, -26, 10**9):
            with pytest.raises(CheckpointNotFound, match=f"index {index} .* 'thread'"):
                api.at("thread", index)
        with pytest.raises(ThreadNotFound, match="'nobody'"):
            api.history("nobody")
        with pytest.raises(ThreadNotFound, match="'nobody'"):
            api.at("nobody", 0)

    def test_the_latest_is_the_newest_of_any_thread_with_these_metadata(self, api: Api) -> None:
        assert api.latest({}) is None
        for n in range(6):
            metadata = {"graph_id": "support", "nested": {"n": n, "even": n % 2 == 0}}
            put(api.saver, {"n": n}, thread_id=f"thread-{n % 2}", metadata=metadata)
        put(api.saver, {"n": 6}, thread_id="other", metadata={"graph_id": "sales"})

        def latest(metadata: Mapping[str, Any]) -> Any:
            result = api.latest(metadata)
            return result and value_of(result)["n"]

        assert latest({}) == 6
        assert latest({"graph_id": "support"}) == 5
        assert latest({"nested": {"even": True}}) == 4
        assert latest({"graph_id": "support", "nested": {"n": 0}}) == 0
        assert latest({"nested": {"n": 7}}) is None
        api.purge("thread-1")
        assert latest({"graph_id": "support"}) == 4

    def test_a_path_is_forked_with_all_ancestors_and_none_of_their_other_children(
        self, api: Api
    ) -> None:
        configs = fill(api.saver, 3)
        abandoned = put(api.saver, {"n": 10}, parent=configs[0])
        branch = put(api.saver, {"n": 11}, parent=configs[1])

        api.fork(branch, new_thread_id="path", history="path")
        result = api.history("path")
        path = [configs[0], configs[1], branch]
        assert [id_of(item) for item in result] == [id_of(item) for item in path]
        for item, origin in zip(result, path, strict=True):
            original = api.get_tuple(origin)
            assert item.checkpoint == original.checkpoint
            assert item.pending_writes == original.pending_writes
            parent = original.parent_config
            assert item.parent_config == (parent and config("path", id_of(parent)))
        assert api.get_tuple(config("path", id_of(abandoned))) is None
        assert api.catalog().get("path").checkpoint_count == 3
        assert problems(api.saver) == []

    def test_a_fork_has_the_metadata_of_its_thread_and_what_is_merged_into_them(
        self, api: Api
    ) -> None:
        first = {"configurable": {"thread_id": "thread", "checkpoint_ns": "", "user_id": "u1"}}
        api.put(first, checkpoint({"n": 1}), {}, {"n": 1})
        api.fork("thread", new_thread_id="fork", metadata={"tags": ["a"], "user_id": "u2"})
        api.fork("fork", new_thread_id="again", metadata={"n": 1})
        catalog = api.catalog()
        assert catalog.get("thread").metadata == {"user_id": "u1"}
        assert catalog.get("fork").metadata == {"user_id": "u2", "tags": ["a"]}
        assert catalog.get("again").metadata == {"user_id": "u2", "tags": ["a"], "n": 1}

    def test_a_fork_does_not_go_with_the_run_of_its_source(self, api: Api) -> None:
        configs = fill(api.saver, 3)
        api.fork(configs[1], new_thread_id="head")
        api.fork(configs[1], new_thread_id="path", history="path")
        before = everything(api.saver, "path")
        api.delete_for_runs([f"run-{n}" for n in range(3)])
        assert everything(api.saver, "path") == before
        assert len(api.history("head")) == 1
        with pytest.raises(ThreadNotFound):
            api.at("thread", 0)
        assert problems(api.saver) == []

    @pytest.mark.parametrize(
        ("channel", "status"), [("__interrupt__", "interrupted"), ("__error__", "error")]
    )
    def test_the_status_of_a_fork_is_what_it_waits_for(
        self, channel: str, status: str, api: Api
    ) -> None:
        configs = fill(api.saver, 2)
        for item in configs:
            api.put_writes(item, [(channel, "x")], "asking")
        statuses = {}
        for name, source, values in (
            ("head", "thread", None),
            ("older", configs[0], None),
            ("with values", "thread", {"n": 7}),
        ):
            api.fork(source, new_thread_id=name, values=values)
            statuses[name] = api.catalog().get(name).status
        older = "interrupted" if status == "interrupted" else "idle"  # a failure is not taken along
        assert statuses == {"head": status, "older": older, "with values": "idle"}

    def test_values_replace_those_of_a_checkpoint_in_a_new_one_on_top(self, api: Api) -> None:
        configs = fill(api.saver, 3)
        original = api.get_tuple(configs[1])
        api.fork(configs[1], new_thread_id="fork", values={"n": "other", "messages": []})

        below, top = api.history("fork")
        assert below.checkpoint == original.checkpoint
        assert top.parent_config == below.config
        assert id_of(top) > id_of(below)
        assert value_of(top) == {"n": "other", "messages": []}
        assert top.checkpoint["channel_versions"]["n"] > below.checkpoint["channel_versions"]["n"]
        assert top.checkpoint["versions_seen"] == below.checkpoint["versions_seen"]
        assert top.metadata == {**below.metadata, "source": "update", "step": 2}
        assert top.pending_writes == []
        assert problems(api.saver) == []
