"""What LangGraph expects of a checkpointer: checkpoints and writes come back as they were put."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from forkpoint.errors import InvalidInput
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, checkpoint, config, id_of, put


class CheckpointContract(Contract):
    """Checkpoints and writes come back as they were put."""

    def test_a_checkpoint_comes_back_as_it_was_put(self, api: Api) -> None:
        made = checkpoint(
            {"messages": [HumanMessage("hi", id="1")], "n": 3, "nested": {"a": [1, None]}}
        )
        made["versions_seen"] = {"node": {"messages": 1}}
        made["updated_channels"] = ["messages"]

        stored = api.put(config(), made, {"source": "loop", "step": 1}, {"messages": 1})
        result = api.get_tuple(config())

        assert result.checkpoint == made
        assert result.metadata == {"source": "loop", "step": 1}
        assert result.config == stored == config(checkpoint_id=made["id"])
        assert result.parent_config is None
        assert result.pending_writes == []

    def test_the_newest_checkpoint_of_the_namespace_is_found_without_an_id(self, api: Api) -> None:
        first = put(api.saver, {"n": 1})
        second = put(api.saver, {"n": 2}, parent=first)
        put(api.saver, {"n": 3}, ns="child:1")

        assert id_of(api.get_tuple(config())) == id_of(second)
        assert api.get_tuple(first).checkpoint["channel_values"] == {"n": 1}
        assert api.get_tuple(config(ns="child:1")).checkpoint["channel_values"] == {"n": 3}
        assert api.get_tuple(second).parent_config == first

    def test_an_empty_id_of_a_checkpoint_is_none(self, api: Api) -> None:
        none = config(checkpoint_id="")
        first = api.put(none, checkpoint({"n": 1}), {}, {"n": 1})
        second = put(api.saver, {"n": 2}, parent=first)

        assert api.get_tuple(first).parent_config is None
        assert api.get_tuple(none).config == second
        assert [item.config for item in api.list(none, before=none)] == [second, first]
        writes = api.get_delta_channel_history(config=none, channels=["n"])
        assert writes == api.get_delta_channel_history(config=config(), channels=["n"])
        refused: list[Callable[[], Any]] = [
            lambda: api.fork(none),
            lambda: api.diff(none, first),
            lambda: api.put_writes(none, [("n", 1)], "task"),
        ]
        for call in refused:
            with pytest.raises(InvalidInput, match="checkpoint_id"):
                call()

    def test_what_does_not_exist_is_none(self, api: Api) -> None:
        assert api.get_tuple(config("nobody")) is None
        put(api.saver, {"n": 1})
        assert api.get_tuple(config(checkpoint_id="no such id")) is None
        assert api.get_tuple(config(ns="no such namespace")) is None
        assert api.list(config("nobody")) == []

    def test_an_unchanged_channel_keeps_its_value_without_being_stored_again(
        self, api: Api
    ) -> None:
        document = "a long document " * 500
        first = checkpoint({"document": document, "n": 1})
        after_first = api.put(config(), first, {}, {"document": 1, "n": 1})

        class Unserializable:
            pass

        second = checkpoint({"document": Unserializable(), "n": 2}, {"document": 1, "n": 2})
        api.put(after_first, second, {}, {"n": 2})  # not looked at, for it has not changed

        result = api.get_tuple(config())
        assert result.checkpoint["channel_values"] == {"document": document, "n": 2}

    def test_values_count_as_given_where_new_versions_are_empty(self, api: Api) -> None:
        first = api.put(config(), checkpoint({"n": 1}), {}, {"n": 1})
        api.put(first, checkpoint({"n": 2}), {}, {})

        assert api.get_tuple(config()).checkpoint["channel_values"] == {"n": 2}

    def test_a_fork_has_the_values_of_its_parent_where_their_versions_are_the_same(
        self, api: Api
    ) -> None:
        """LangGraph may have gone on, and changed values in place, before it is put."""
        first = api.put(config(), checkpoint({"n": 1, "m": 1}), {}, {"n": 1, "m": 1})
        fork = checkpoint({"n": 2, "m": 2}, {"n": 1, "m": 2})
        api.put(first, fork, {"source": "fork"}, {})

        assert api.get_tuple(config()).checkpoint["channel_values"] == {"n": 1, "m": 2}

    def test_a_value_counts_as_given_where_its_version_is_not_the_parents(self, api: Api) -> None:
        first = api.put(config(), checkpoint({"n": 1, "m": 1}), {}, {"n": 1, "m": 1})
        api.put(first, checkpoint({"n": 5, "m": 2}, {"n": 4, "m": 2}), {}, {"m": 2})

        assert api.get_tuple(config()).checkpoint["channel_values"] == {"n": 5, "m": 2}

    def test_a_channel_without_a_value_keeps_that_of_its_version(self, api: Api) -> None:
        """A graph that does not have the channel puts its version, and no value."""
        kept = {"document": "a long document " * 500, "small": 1}
        first = checkpoint({**kept, "emptied": 1, "n": 1})
        following = checkpoint({"n": 2}, {"document": 1, "small": 1, "emptied": 2, "n": 2})
        for thread_id, new_versions in [("named", {"emptied": 2, "n": 2}), ("unnamed", {})]:
            after_first = api.put(config(thread_id), first, {}, {})
            api.put(after_first, following, {}, new_versions)

            result = api.get_tuple(config(thread_id))
            assert result.checkpoint["channel_values"] == {**kept, "n": 2}

    def test_a_channel_that_is_gone_stays_gone(self, api: Api) -> None:
        first = api.put(config(), checkpoint({"a": 1, "b": 2}), {}, {"a": 1, "b": 1})
        api.put(first, checkpoint({"a": 2}, {"a": 2}), {}, {"a": 2})

        assert api.get_tuple(config()).checkpoint["channel_values"] == {"a": 2}

    def test_state_that_was_changed_in_place_between_two_puts_is_stored_as_it_is_then(
        self,
        api: Api,
    ) -> None:
        messages = [AIMessage(f"message {n} " * 40, id=str(n)) for n in range(100)]
        files = {f"{n}.txt": {"text": f"file {n} " * 50} for n in range(50)}
        values = {"messages": messages, "files": files}
        first = api.put(config(), checkpoint(values), {}, dict.fromkeys(values, 1))

        messages[50].content = "changed in place"
        messages[70].additional_kwargs["flag"] = 1
        files["25.txt"]["text"] = "changed too"
        second = api.put(first, checkpoint(values), {}, dict.fromkeys(values, 2))
        messages[70].additional_kwargs["flag"] = True  # equal to 1, and not the same
        third = api.put(second, checkpoint(values), {}, dict.fromkeys(values, 3))

        old, new, newest = [
            api.get_tuple(item).checkpoint["channel_values"] for item in (first, second, third)
        ]
        assert old["messages"][50].content == "message 50 " * 40
        assert old["messages"][70].additional_kwargs == {}
        assert old["files"]["25.txt"] == {"text": "file 25 " * 50}
        assert new["messages"][50].content == "changed in place"
        assert new["messages"][70].additional_kwargs["flag"] is not True
        assert newest["messages"][70].additional_kwargs["flag"] is True
        assert new["files"] == newest["files"] == files

    def test_two_readers_never_share_an_object(self, api: Api) -> None:
        put(api.saver, {"messages": [AIMessage(f"m{n} " * 50, id=str(n)) for n in range(50)]})

        first = api.get_tuple(config()).checkpoint["channel_values"]["messages"]
        first[3].content = "scribbled"
        first[4].additional_kwargs["x"] = 1
        second = api.get_tuple(config()).checkpoint["channel_values"]["messages"]

        assert second[3].content == "m3 " * 50
        assert second[4].additional_kwargs == {}
        assert not {id(message) for message in first} & {id(message) for message in second}

    def test_a_checkpoint_of_the_same_id_is_replaced(self, api: Api) -> None:
        made = checkpoint({"n": 1})
        api.put(config(), made, {"step": 1}, {"n": 1})
        api.put(config(), {**made, "channel_values": {"n": 2}}, {"step": 2}, {"n": 2})

        (result,) = api.list(config())
        assert (result.checkpoint["channel_values"], result.metadata["step"]) == ({"n": 2}, 2)

    def test_writes_are_stored_once_and_special_ones_replaced(self, api: Api) -> None:
        stored = put(api.saver, {"n": 1})
        api.put_writes(stored, [("a", 1), ("__interrupt__", "old")], "task")
        api.put_writes(stored, [("a", 2), ("__interrupt__", "new")], "task")

        writes = api.get_tuple(stored).pending_writes
        assert writes == [("task", "__interrupt__", "new"), ("task", "a", 1)]

    def test_of_writes_of_a_put_that_replace_each_other_the_last_counts(self, api: Api) -> None:
        stored = put(api.saver, {"n": 1})
        twice = [("__resume__", "first"), ("n", 1), ("__resume__", "last")]
        for _ in range(2):  # the second time they are there already
            api.put_writes(stored, twice, "task")
            pending = sorted(api.get_tuple(config()).pending_writes)
            assert pending == [("task", "__resume__", "last"), ("task", "n", 1)]

    def test_writes_come_in_the_order_in_which_a_run_applies_them(self, api: Api) -> None:
        stored = put(api.saver, {"n": 1})
        api.put_writes(stored, [("c", "second path")], "a-task", "~2")
        api.put_writes(stored, [("c", "first path"), ("d", "after")], "z-task", "~1")
        api.put_writes(stored, [("c", "no path")], "m-task")

        writes = [value for _, _, value in api.get_tuple(stored).pending_writes]
        assert writes == ["no path", "first path", "after", "second path"]

    def test_the_same_write_on_a_second_path_is_no_error(self, api: Api) -> None:
        stored = put(api.saver, {"n": 1})
        api.put_writes(stored, [("c", 1)], "task", "~1")
        api.put_writes(stored, [("c", 1)], "task", "~2")

        assert api.get_tuple(stored).pending_writes == [("task", "c", 1)]

    def test_writes_may_come_before_their_checkpoint(self, api: Api) -> None:
        made = checkpoint({"n": 1})
        api.put_writes(config(checkpoint_id=made["id"]), [("c", "early")], "task")
        assert api.get_tuple(config()) is None

        api.put(config(), made, {}, {"n": 1})
        assert api.get_tuple(config()).pending_writes == [("task", "c", "early")]

    def test_large_values_of_writes_come_back(self, api: Api) -> None:
        stored = put(api.saver, {"n": 1})
        values = [
            "x" * 300_000,
            [HumanMessage("y" * 700, id=str(n)) for n in range(200)],
            b"z" * 70_000,
        ]
        api.put_writes(stored, [("c", value) for value in values], "task")

        assert [value for *_, value in api.get_tuple(stored).pending_writes] == values

    def test_metadata_come_back_as_they_were(self, api: Api) -> None:
        metadata = {
            "text": "ü \ud800 \n",
            "n": 1,
            "f": 0.1,
            "b": False,
            "none": None,
            "l": [{}, []],
        }
        put(api.saver, {}, metadata=metadata)

        assert api.get_tuple(config()).metadata == metadata

    def test_scalar_keys_of_the_config_become_metadata(self, api: Api) -> None:
        given = {
            "configurable": {
                "thread_id": "thread",
                "user_id": "u1",
                "__hidden": 1,
                "obj": object(),
            },
            "metadata": {"graph": "support", "score": 0.5},
        }
        api.put(given, checkpoint({}), {"source": "input"}, {})

        metadata = api.get_tuple(config()).metadata
        assert metadata == {"source": "input", "user_id": "u1", "graph": "support", "score": 0.5}

    def test_versions_count_up_from_one(self, saver: ForkpointSaver) -> None:
        version = saver.get_next_version(None, None)
        assert version == 1
        assert saver.get_next_version(version, None) == 2
        assert saver.get_next_version(1.5, None) == 2.5

    def test_versions_that_another_saver_began_as_strings_go_on_as_such(
        self, saver: ForkpointSaver
    ) -> None:
        current = "00000000000000000000000000000009.0.1234567890123456"
        following = [current]
        for _ in range(5):
            following.append(saver.get_next_version(following[-1], None))

        assert following == sorted(following)
        assert len(set(following)) == 6
        assert [int(version.split(".")[0]) for version in following] == list(range(9, 15))
