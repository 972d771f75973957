"""The threads that async calls run on: how many there are, and what if there can be no more."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pymongo
import pytest

from checking import checkpoint, config, value_of
from forkpoint import NoWorkerThread, SqliteSaver, ThreadCatalog
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.runtime.runner import WorkerRunner
from forkpoint.runtime.workers import Workers
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from servers import wait_until
from stores import MongoStore, Store

LIMIT_SECONDS = 60
MORE_THAN_THERE_IS = 1 << 46  # bytes for the stack of a thread


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "forkpoint"]


@pytest.fixture(autouse=True)
def no_workers_before() -> None:
    def have_ended() -> bool:
        if workers():  # which may be those of a saver that is garbage
            gc.collect()
        return workers() == []

    wait_until(have_ended, "the threads of other tests to end")


@contextmanager
def no_new_threads() -> Iterator[None]:
    """Let the system refuse every new thread."""
    threading.stack_size(MORE_THAN_THERE_IS)
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(0)


async def together(number: int) -> Callable[[], Any]:
    """Return an operation that ends when so many of it run at once."""
    barrier = threading.Barrier(number)
    return lambda: barrier.wait(LIMIT_SECONDS)


async def rest(saver: ForkpointSaver) -> None:
    """Return when the threads of a saver have told what they did, and wait for more."""
    runner: Any = parts_of(saver).runner
    threads = getattr(runner, "runner", runner)._workers  # one that is traced stands before it
    free = lambda: len(threads._free) == len(threads._threads)  # noqa: E731
    await asyncio.to_thread(wait_until, free, "all threads to be free")


async def use(saver: ForkpointSaver, name: str) -> None:
    await saver.aput(config(name), checkpoint({"n": name}), {}, {"n": 1})
    assert value_of(await saver.aget_tuple(config(name))) == {"n": name}


# How many


async def test_one_call_after_the_other_takes_one_thread(saver: ForkpointSaver) -> None:
    for n in range(5):
        await saver.aput(config(), checkpoint({"n": n}), {}, {"n": n})
        await rest(saver)

    assert len(workers()) == 1


async def test_there_are_as_many_threads_as_calls_at_once_up_to_the_limit() -> None:
    runner = WorkerRunner(Workers(6))
    for number in (2, 5, 3, 6, 4):
        meet = await together(number)
        await asyncio.gather(*(runner.arun(meet) for _ in range(number)))
    assert len(workers()) == 6

    seen = 0
    meet = await together(6)

    def look() -> None:
        nonlocal seen
        meet()
        seen = max(seen, len(workers()))

    await asyncio.gather(*(runner.arun(look) for _ in range(60)))
    assert seen == 6


async def test_event_loops_that_call_at_once_start_no_more_than_the_limit() -> None:
    runner = WorkerRunner(Workers(4))
    barrier = threading.Barrier(8)

    async def call() -> None:
        await asyncio.gather(*(runner.arun(lambda: None) for _ in range(20)))

    def first_calls() -> None:
        barrier.wait()
        asyncio.run(call())

    loops = [threading.Thread(target=first_calls) for _ in range(8)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    assert len(workers()) <= 4


@pytest.mark.parametrize("connections", [None, 3])
async def test_savers_of_one_client_share_their_threads(
    connections: int | None, mongo_store: MongoStore
) -> None:
    options = {} if connections is None else {"maxPoolSize": connections}
    with pymongo.MongoClient[Any](mongo_store.uri, **options) as client:
        tenants = [MongoDBSaver(client, db_name=mongo_store.name) for _ in range(12)]
        for n, tenant in enumerate(tenants):
            await tenant.aget_tuple(config(f"{n}"))
            await rest(tenant)
        assert len(workers()) == 1

        await asyncio.gather(*(use(tenant, f"{n}") for n, tenant in enumerate(tenants)))
        assert len(workers()) <= (connections or 64)

        for tenant in tenants[1:]:
            await tenant.aclose()
        await use(tenants[0], "last")
        assert workers() != []
        await tenants[0].aclose()
        wait_until(lambda: workers() == [], "the threads to end with the last saver")

        another = MongoDBSaver(client, db_name=mongo_store.name)
        await use(another, "another")
        assert workers() != []
        await another.aclose()


async def test_savers_of_clients_that_are_equal_have_threads_of_their_own(
    mongo_store: MongoStore,
) -> None:
    with (
        pymongo.MongoClient[Any](mongo_store.uri) as a,
        pymongo.MongoClient[Any](mongo_store.uri) as b,
    ):
        savers = [MongoDBSaver(client, db_name=mongo_store.name) for client in (a, b)]
        assert a == b
        for saver in savers:
            await saver.aget_tuple(config())
        assert len(workers()) == 2
        for saver in savers:
            await saver.aclose()


async def test_a_call_that_is_on_its_way_ends_though_the_saver_is_closed(
    saver: ForkpointSaver,
) -> None:
    calls = [asyncio.create_task(saver.aget_tuple(config())) for _ in range(30)]
    await asyncio.sleep(0)
    saver.close()

    await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_SECONDS)
    wait_until(lambda: workers() == [], "the threads to end")


# If there can be no more


CALLS: dict[str, Callable[[ForkpointSaver], Any]] = {
    "a first async call": lambda saver: asyncio.run(saver.aget_tuple(config())),
    "a first async put": lambda saver: asyncio.run(
        saver.aput(config(), checkpoint({"n": 0}), {}, {"n": 1})
    ),
    "a lease": lambda saver: ThreadCatalog(saver).run("t").__enter__(),
    "a sweeper": lambda saver: ThreadCatalog(saver).sweeper(timedelta(hours=1)),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_thread_that_cannot_be_started_is_a_typed_error(
    call: str, saver: ForkpointSaver, store: Store
) -> None:
    if call in ("a lease", "a sweeper"):
        saver.setup()  # where the driver has its threads
    with no_new_threads():
        for _ in range(3):
            with pytest.raises(NoWorkerThread):
                CALLS[call](saver)

    asyncio.run(use(saver, "t"))
    with ThreadCatalog(saver).run("t"):  # nobody has its lease
        pass
    assert store.problems(saver) == []


def test_a_driver_that_cannot_start_its_threads_is_a_typed_error(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        with no_new_threads():
            for _ in range(2):
                with pytest.raises(NoWorkerThread):
                    saver.get_tuple(config())
        asyncio.run(use(saver, "t"))


def open_selectors() -> int:
    """Return how many loops have their selector open: files, other threads open and close too."""
    count = 0
    for file in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []:
        with suppress(FileNotFoundError):  # it is that of the list itself, or was closed
            count += os.readlink(f"/proc/self/fd/{file}") == "anon_inode:[eventpoll]"
    return count


async def test_a_loop_that_cannot_have_its_thread_is_closed(path: Path) -> None:
    async with aiosqlite.connect(path) as connection:
        saver = SqliteSaver(connection)
        gc.collect()  # what tests before have left open
        selectors = open_selectors()
        with no_new_threads():
            for _ in range(3):
                with pytest.raises(NoWorkerThread):
                    saver.get_tuple(config())
        assert open_selectors() <= selectors
        assert saver.get_tuple(config()) is None


async def test_calls_at_once_share_the_threads_that_there_are(saver: ForkpointSaver) -> None:
    await saver.aget_tuple(config())
    with no_new_threads():
        uses = asyncio.gather(*(use(saver, f"{n}") for n in range(20)))
        await asyncio.wait_for(uses, LIMIT_SECONDS)
        assert len(workers()) == 1
