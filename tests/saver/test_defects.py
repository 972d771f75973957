"""Defects of other savers that were reproduced, and must not be ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6

from checking import Api, checkpoint, config, put
from forkpoint import ThreadDeleted
from forkpoint.saver.saver import ForkpointSaver
from servers import PATIENCE_SECONDS
from stores import Store


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("aget_tuple", (config(),)),
        ("adelete_thread", ("thread",)),
        ("adelete_for_runs", (["run"],)),
        ("aprune", (["thread"],)),
        ("aput", (config(), checkpoint({"n": 1}), {}, {"n": 1})),
        ("aput_writes", (config(checkpoint_id="c"), [("c", 1)], "task")),
    ],
)
async def test_every_method_works_on_a_fresh_store(
    name: str, arguments: tuple[Any, ...], saver: ForkpointSaver
) -> None:
    await getattr(saver, name)(*arguments)


async def test_a_put_inside_an_async_listing_does_not_block(saver: ForkpointSaver) -> None:
    for n in range(45):
        put(saver, {"n": n})

    async def put_while_listing() -> int:
        count = 0
        async for found in saver.alist(config()):
            await saver.aput(found.config, checkpoint({"n": -1}), {}, {"n": 1})
            saver.put(found.config, checkpoint({"n": -2}), {}, {"n": 1})
            count += 1
        return count

    assert await asyncio.wait_for(put_while_listing(), PATIENCE_SECONDS) == 45
    assert len(list(saver.list(config()))) == 135


async def test_a_listing_that_is_abandoned_holds_no_lock(
    saver: ForkpointSaver, store: Store
) -> None:
    for n in range(45):
        put(saver, {"n": n})
    listing, alisting = saver.list(config()), saver.alist(config())
    next(listing)
    await anext(alisting)

    with store.saver() as other:
        put(saver, {"n": 1})  # or else it would be refused, as the store is busy
        other.delete_thread("thread")
    assert store.problems() == []


async def test_sync_calls_on_the_loops_thread_do_not_hang(saver: ForkpointSaver) -> None:
    background = [
        asyncio.create_task(saver.aput(config(f"{n}"), checkpoint({"n": n}), {}, {"n": 1}))
        for n in range(50)
    ]
    for n in range(50):
        put(saver, {"n": n}, thread_id="sync")
        await asyncio.sleep(0)
    await asyncio.gather(*background)
    assert len(list(saver.list(None))) == 100


async def test_a_delete_that_is_cancelled_is_never_half_done(
    saver: ForkpointSaver, store: Store
) -> None:
    for delay in (0, 0.0001, 0.0005, 0.001, 0.01):
        stored = put(saver, {"text": "text " * 5000})
        saver.put_writes(stored, [("c", 1)], "task")
        task = asyncio.create_task(saver.adelete_thread("thread"))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        put(saver, {"n": 1}, thread_id="unrelated")  # commits nothing of the delete
        found = saver.get_tuple(stored)
        assert found is None or found.pending_writes == [("task", "c", 1)]
        assert store.problems(saver) == []


class TestLateWrites:
    """What a run does after its thread was deleted under it."""

    async def test_a_new_run_may_use_the_id_again(self, api: Api, store: Store) -> None:
        old = put(api.saver, {"n": "old"})
        await api.delete_thread("thread")

        new = checkpoint({"n": "new"})
        # Writes may be stored while the first checkpoint still is.
        putting = asyncio.ensure_future(api.saver.aput(config(), new, {}, {"n": 1}))
        await asyncio.sleep(0)
        await api.put_writes(config(checkpoint_id=new["id"]), [("c", "early")], "task")
        stored = await putting
        await api.put(stored, checkpoint({"n": "newer"}), {}, {"n": 1})
        with pytest.raises(ThreadDeleted):
            await api.put(old, checkpoint({"n": "late"}), {}, {"n": 1})
        with pytest.raises(ThreadDeleted):
            await api.put_writes(old, [("c", "late")], "task")

        found = await api.list(config())
        assert [one.checkpoint["channel_values"]["n"] for one in found] == ["newer", "new"]
        assert (await api.get_tuple(stored)).pending_writes == [("task", "c", "early")]
        assert store.problems(api.saver) == []

    async def test_a_thread_may_be_deleted_and_made_again_many_times(
        self, api: Api, store: Store
    ) -> None:
        heads = []
        for n in range(5):
            heads.append(put(api.saver, {"n": n}))
            await api.delete_thread("thread")
        for head in heads:
            with pytest.raises(ThreadDeleted):
                await api.put_writes(head, [("c", 1)], "task")
        put(api.saver, {"n": 6})
        assert len(await api.list(None)) == 1
        assert store.problems(api.saver) == []

    def test_another_process_deletes_the_thread(self, saver: ForkpointSaver, store: Store) -> None:
        head = put(saver, {"n": 1})
        with store.saver() as other:
            other.delete_thread("thread")

        with pytest.raises(ThreadDeleted):
            saver.put(head, checkpoint({"n": 2}), {}, {"n": 2})
        assert saver.get_tuple(config()) is None

    async def test_a_target_of_a_copy_may_have_been_deleted_before(self, api: Api) -> None:
        late = put(api.saver, {"n": "old"}, thread_id="target")
        await api.delete_thread("target")
        put(api.saver, {"n": "new"}, thread_id="source")

        await api.copy_thread("source", "target")
        with pytest.raises(ThreadDeleted):
            await api.put(late, checkpoint({"n": "late"}), {}, {"n": 1})
        found = await api.get_tuple(config("target"))
        assert found.checkpoint["channel_values"] == {"n": "new"}


def test_a_write_that_relies_on_chunks_which_another_process_collected_writes_them_again(
    saver: ForkpointSaver, store: Store
) -> None:
    text = "a text that is long enough for a chunk " * 100
    first = put(saver, {"text": text}, metadata={"run_id": "run"})
    with store.saver() as other:
        put(other, {"n": 1}, parent=first)
        other.delete_for_runs(["run"])  # and with the run the chunk

    unchanged = checkpoint({"text": text, "n": 2}, {"text": 1, "n": 2})
    saver.put(first, unchanged, {}, {"n": 2})

    found = saver.get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == {"text": text, "n": 2}
    assert store.problems(saver) == []


def test_checkpoint_ids_that_are_no_uuids_work_as_well(saver: ForkpointSaver, store: Store) -> None:
    parent = config()
    for n in range(9):
        made = {**checkpoint({"n": n}), "id": f"{n}"}
        parent = saver.put(parent, made, {}, {"n": 1})
    saver.delete_thread("thread")
    saver.put(config(), {**checkpoint({"n": 1}), "id": "0"}, {}, {"n": 1})
    saver.put_writes(config(checkpoint_id="0"), [("c", 1)], str(uuid6()))

    found = saver.get_tuple(config())
    assert found is not None
    assert len(found.pending_writes or []) == 1
    assert store.problems(saver) == []
