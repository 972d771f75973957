"""Channels whose value is rebuilt from the writes of ancestors, `DeltaChannel`s, keep it."""

from __future__ import annotations

from typing import Any

from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, checkpoint, config, id_of, put
from forkpoint.testing.invariants import problems


class DeltaContract(Contract):
    """A `DeltaChannel` keeps its value, whatever is removed and forked."""

    def test_delta_history_follows_the_path_to_the_nearest_stored_value(self, api: Api) -> None:
        def step(parent: Any, value: Any, values: dict[str, Any], n: int) -> Any:
            stored = api.put(parent, checkpoint(values, {"d": n, "e": n}), {}, {"d": n, "e": n})
            api.put_writes(stored, [("d", f"{value}-2"), ("e", value)], "b", "~2")
            api.put_writes(stored, [("d", f"{value}-1")], "a", "~1")
            return stored

        root = step(config(), "root", {}, 1)
        seeded = step(root, "seeded", {"d": ["stored"]}, 2)
        abandoned = step(seeded, "abandoned", {}, 3)
        middle = step(seeded, "middle", {}, 4)
        head = step(middle, "head", {}, 5)

        history = api.get_delta_channel_history(config=head, channels=["d", "e", "nothing"])

        assert history["d"] == {
            "writes": [
                ("a", "d", "seeded-1"),
                ("b", "d", "seeded-2"),
                ("a", "d", "middle-1"),
                ("b", "d", "middle-2"),
            ],
            "seed": ["stored"],
        }
        assert [value for *_, value in history["e"]["writes"]] == ["root", "seeded", "middle"]
        assert "seed" not in history["e"]
        assert history["nothing"] == {"writes": []}
        newest = api.get_delta_channel_history(config=config(), channels=["d"])
        assert newest["d"] == history["d"]
        assert api.get_delta_channel_history(config=abandoned, channels=[]) == {}
        assert api.get_delta_channel_history(config=config("nobody"), channels=["d"]) == {
            "d": {"writes": []}
        }

    def test_a_checkpoint_that_was_put_as_its_own_ancestor_does_not_trap_the_reader(
        self,
        api: Api,
    ) -> None:
        stored = put(api.saver, {"n": 1})
        same = {**checkpoint({"n": 2}), "id": id_of(stored)}
        api.put(stored, same, {}, {"n": 1})

        history = api.get_delta_channel_history(config=stored, channels=["d"])
        assert history == {"d": {"writes": []}}
        api.prune(["thread"])
        assert api.get_tuple(config()).checkpoint["channel_values"] == {"n": 2}

    def test_what_a_value_is_rebuilt_from_stays_as_long_as_it_is_needed(self, api: Api) -> None:
        root = api.put(config(), checkpoint({"d": ["stored"]}), {}, {"d": 1})
        parent, steps = root, [root]
        for n in range(2, 8):
            metadata = {"step": n, "counters_since_delta_snapshot": {"d": [n, n]}}
            parent = api.put(parent, checkpoint({}, {"d": n}), metadata, {"d": n})
            api.put_writes(parent, [("d", f"{n} " * 400)], "task")
            steps.append(parent)

        def history(of: Any) -> Any:
            return api.get_delta_channel_history(config=of, channels=["d"])["d"]

        before = history(steps[-1])
        forked = api.fork(steps[-1], new_thread_id="fork")
        api.trim("thread", 1)
        assert len(api.list(config())) == 1
        assert history(steps[-1]) == before
        api.copy_thread("thread", "copy")
        api.delete_thread("thread")
        assert problems(api.saver) == []
        for other in (forked, config("copy")):
            assert history(other) == before
            api.delete_thread(other["configurable"]["thread_id"])
        assert api.list(None) == []
