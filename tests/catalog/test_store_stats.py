"""What a store takes, and what sharing saves."""

from __future__ import annotations

from typing import Any

from checking import Api, checkpoint, put
from forkpoint import StoreStats, ThreadCatalog, ThreadFilter
from forkpoint.saver.saver import ForkpointSaver
from stores import Store

TEXT = "text " * 3000


def put_more(saver: ForkpointSaver, head: Any, times: int) -> Any:
    """Put checkpoints in which nothing changes."""
    for _ in range(times):
        made = checkpoint({"text": TEXT})
        made["channel_values"]["n"], made["channel_versions"]["n"] = 1, made["id"]
        head = saver.put(head, made, {}, {"n": made["id"]})
    return head


async def test_what_is_shared_is_stored_once(store: Store, saver: ForkpointSaver, api: Api) -> None:
    calls = Api(ThreadCatalog(saver), api.world)
    assert await calls.store_stats() == StoreStats()
    head = put(saver, {"text": TEXT})
    first = await calls.store_stats()
    assert (first.threads, first.checkpoints, first.writes) == (1, 1, 0)
    assert first.bytes_unshared == first.bytes_stored > len(TEXT)

    put_more(saver, head, 4)
    saver.put_writes(head, [("other", TEXT)], "task")
    saver.fork("thread", new_thread_id="fork")
    saver.copy_thread("thread", "copy")
    put(saver, {"n": 1}, thread_id="small")
    seen: list[StoreStats] = []
    found = await calls.store_stats(on_progress=seen.append)
    assert (found.threads, found.checkpoints, found.writes) == (4, 12, 2)
    chunks = sum(len(row.refs) + len(row.content) for row in store.rows("chunks"))
    # Each of the checkpoints but the small one, and each of the writes, leads to the text.
    assert found.bytes_unshared - found.bytes_stored == 12 * chunks
    assert seen[-1] == found

    alone = [await calls.stats(name) for name in ("thread", "fork", "copy", "small")]
    assert found.bytes_stored == sum(one.bytes_stored for one in alone) - 2 * chunks
    small = await calls.store_stats(ThreadFilter(ids=["small"]))
    assert (small.threads, small.bytes_stored) == (1, alone[-1].bytes_stored)


async def test_what_chunks_lead_to_is_counted_with_them(
    store: Store, saver: ForkpointSaver, api: Api
) -> None:
    put(saver, {"nested": {"list": [{"deep": f"{n}" * 9000, "n": n} for n in range(9)]}})
    saver.copy_thread("thread", "copy")
    chunks = sum(len(row.links) + len(row.content) for row in store.rows("chunks"))
    found = await Api(ThreadCatalog(saver), api.world).store_stats()
    assert found.bytes_unshared - found.bytes_stored == chunks > 9 * 9000


async def test_an_owner_sees_what_is_the_owners(saver: ForkpointSaver, api: Api) -> None:
    theirs = saver.for_owner("acme")
    put_more(theirs, put(theirs, {"text": TEXT}), 1)
    put(saver, {"text": TEXT}, thread_id="mine")
    found = await Api(ThreadCatalog(saver, owner="acme"), api.world).store_stats()
    assert (found.threads, found.checkpoints) == (1, 2)
    everything = await Api(ThreadCatalog(saver), api.world).store_stats()
    assert (everything.threads, everything.checkpoints) == (2, 3)
    assert everything.bytes_stored > found.bytes_stored
