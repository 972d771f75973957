"""A thread that has lost its last checkpoint is gone like any thread that was deleted."""

from __future__ import annotations

import pytest
from checking import Api, checkpoint, config, put, value_of
from stores import Store

from forkpoint import ThreadDeleted, ThreadNotFound


async def test_a_thread_is_gone_with_the_last_of_its_runs(api: Api, store: Store) -> None:
    put(api.saver, {"n": 1}, thread_id="emptied", metadata={"run_id": "run"})
    put(api.saver, {"n": 2}, thread_id="source")
    await api.delete_for_runs(["run"])

    assert store.problems(api.saver) == []
    with pytest.raises(ThreadNotFound):
        await api.lineage("emptied")
    await api.copy_thread("source", "emptied")  # the id is free
    assert value_of(await api.get_tuple(config("emptied"))) == {"n": 2}


async def test_what_comes_after_a_rollback_to_nothing_does_not_bring_the_thread_back(
    api: Api, store: Store
) -> None:
    head = put(api.saver, {"n": 1})
    assert await api.rollback("thread") is None

    with pytest.raises(ThreadDeleted):
        await api.put_writes(head, [("c", 1)], "task")
    with pytest.raises(ThreadDeleted):
        await api.put(head, checkpoint({"n": 2}), {}, {"n": 2})
    assert await api.list(None) == []
    assert store.problems(api.saver) == []
