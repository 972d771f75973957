"""Who waits for a lease has it in the order in which they came, whatever process they are of."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from children import Child, Signal
from forkpoint import StaleLease, ThreadBusy, ThreadCatalog
from forkpoint.catalog.leases import Lease
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from gates import Gate
from servers import wait_until
from stores import MongoStore, SqliteStore, Store

COUNT = 5


def queue(store: Store) -> list[str]:
    """Return the holders that wait, as they are stored."""
    if isinstance(store, MongoStore):
        record = store.collection.find_one({"kind": "thread", "thread_id": "t"})
        return [waiter["by"] for waiter in record["lease_queue"]]
    assert isinstance(store, SqliteStore)
    with store.connection() as connection:
        (row,) = connection.execute(
            "SELECT lease_queue FROM forkpoint_threads WHERE thread_id = 't'"
        )
    return [holder for holder, _ in json.loads(row[0])]


def waits_for(store: Store, count: int) -> None:
    wait_until(lambda: len(queue(store)) == count, f"{count} to wait for the lease")


def test_waiting_threads_get_the_lease_in_the_order_in_which_they_came(store: Store) -> None:
    came: list[int] = []
    savers = [store.saver() for _ in range(COUNT)]

    def wait(n: int) -> None:
        with ThreadCatalog(savers[n]).run("t", if_busy="wait"):
            came.append(n)

    with store.saver() as saver:
        with ThreadCatalog(saver).run("t"):
            threads = [threading.Thread(target=wait, args=(n,)) for n in range(COUNT)]
            for n, thread in enumerate(threads):
                thread.start()
                waits_for(store, n + 1)
        for thread in threads:
            thread.join()
    assert came == list(range(COUNT))
    assert queue(store) == []
    for saver in savers:
        saver.close()


async def test_waiting_tasks_get_the_lease_in_the_order_in_which_they_came(
    store: Store, saver: ForkpointSaver
) -> None:
    came: list[int] = []
    catalog = ThreadCatalog(saver)

    async def wait(n: int) -> None:
        async with catalog.run("t", if_busy="wait"):
            came.append(n)

    async with catalog.run("t"):
        tasks = []
        for n in range(COUNT):
            tasks.append(asyncio.create_task(wait(n)))
            await asyncio.to_thread(waits_for, store, n + 1)
    await asyncio.gather(*tasks)
    assert came == list(range(COUNT))


def test_who_asks_first_and_enters_later_has_the_lease_first(saver: ForkpointSaver) -> None:
    came: list[str] = []
    catalog = ThreadCatalog(saver)
    first, second, third, fourth = (catalog.run("t", if_busy="wait") for _ in range(4))

    def enter(lease: Lease, name: str) -> threading.Thread:
        def run() -> None:
            with lease:
                came.append(name)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    assert first.ask()
    assert not second.ask()
    assert not third.ask()
    threads = [enter(fourth, "fourth"), enter(second, "second")]
    with first:
        came.append("first")
    third.__exit__()  # it gives up its place
    for thread in threads:
        thread.join()
    assert came == ["first", "second", "fourth"]
    with pytest.raises(StaleLease, match="has begun before"):
        first.ask()
    assert not catalog.is_busy("t")


async def test_who_asked_and_never_enters_leaves_nothing(
    store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    lease, waiting = catalog.run("t", if_busy="wait"), catalog.run("t", if_busy="wait")
    assert await lease.aask()
    assert not await waiting.aask()
    for asked in (waiting, lease):
        await asked.__aexit__()
    assert queue(store) == []
    assert not await catalog.ais_busy("t")


async def test_who_is_cancelled_as_it_asks_leaves_nothing(store: Store) -> None:
    gate = Gate()
    with store.watched(gate.pass_through) as saver:
        catalog = ThreadCatalog(saver)
        await catalog.acreate("t")
        for is_free in (True, False):
            async with AsyncExitStack() as stack:
                if not is_free:
                    await stack.enter_async_context(catalog.run("t"))
                lease = catalog.run("t", if_busy="wait")
                gate.close(0)
                asking = asyncio.create_task(lease.aask())
                assert await gate.is_reached(asking)
                asking.cancel()
                await asyncio.sleep(0)
                gate.open()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                assert queue(store) == []
            assert not await catalog.ais_busy("t")


def test_a_lease_that_was_asked_for_and_given_back_does_not_begin_again(
    saver: ForkpointSaver,
) -> None:
    lease = ThreadCatalog(saver).run("t")
    assert lease.ask()
    lease.__exit__()
    with pytest.raises(StaleLease, match="has begun before"):
        lease.__enter__()


@pytest.mark.on_each_backend
def test_a_lease_that_was_made_before_a_fork_is_of_one_process(
    store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    lease, waiting = catalog.run("t"), catalog.run("t", if_busy="wait")
    has_begun, may_end = Signal(), Signal()

    def hold() -> None:
        with lease:
            has_begun.set()
            may_end.wait()

    child = Child(hold)
    has_begun.wait()
    with pytest.raises(ThreadBusy):
        lease.__enter__()
    assert not waiting.ask()
    Child(waiting.__exit__).join()  # it has no place to give up
    assert queue(store) == [waiting.holder]
    waiting.__exit__()
    may_end.set()
    child.join()
    with lease:
        assert catalog.is_busy("t")


def test_who_waits_asks_again_before_its_place_in_the_queue_ends(saver: ForkpointSaver) -> None:
    ttl = timedelta(milliseconds=90)
    for lease, longest in (
        (ThreadCatalog(saver).run("t", if_busy="wait", ttl=ttl), ttl.total_seconds() / 2),
        (ThreadCatalog(saver).run("t", if_busy="wait"), 0.5),
    ):
        pauses = [pause or 0 for pause in itertools.islice(lease._pauses(), 20)]
        assert longest / 4 < max(pauses) <= longest


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_waiter_that_gives_up_holds_up_nobody(
    how: str, store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)

    async def wait(timeout: timedelta | None = None) -> None:
        async with catalog.run("t", if_busy="wait", timeout=timeout):
            pass

    async with catalog.run("t"):
        if how == "timeout":
            with pytest.raises(ThreadBusy, match="runs on it"):
                await wait(timedelta(milliseconds=1))
        else:
            task = asyncio.create_task(wait())
            await asyncio.to_thread(waits_for, store, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert queue(store) == []
    await wait()


def test_a_waiter_that_died_holds_up_others_for_its_time_to_live_at_most(
    store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    with catalog.run("t"):
        thread = parts_of(saver).context.storage.reading
        with thread() as session:
            record = session.records.get("t")
        assert record is not None
        with parts_of(
            saver
        ).context.storage.writing() as session:  # as a process that is killed then
            waits = {"take_over": False, "waits": True}
            assert session.leases.acquire(record.thread, "dead", 1, **waits) is None
        assert queue(store) == ["dead"]
    with catalog.run("t", if_busy="wait"):
        assert catalog.is_busy("t")
    assert queue(store) == []


def test_a_deleted_thread_keeps_nobody_in_its_queue(store: Store, saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    came = threading.Event()

    def wait() -> None:
        with ThreadCatalog(saver).run("t", if_busy="wait"):
            came.set()

    with catalog.run("t"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        waits_for(store, 1)
        catalog.delete("t")
        waiter.join()  # it makes the thread anew
    assert came.is_set()
