"""Making a saver, using it from anywhere, and being done with it."""

from __future__ import annotations

import asyncio
import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from checking import checkpoint, config, put, repeated, value_of
from forkpoint import SaverClosed, SchemaVersionError, ThreadCatalog, ThreadNotFound
from forkpoint.saver.saver import ForkpointSaver
from processes import fork_server
from servers import PATIENCE_SECONDS, wait_until
from stores import MongoStore, SqliteStore, Store


async def test_a_saver_works_under_with_under_async_with_and_plain(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"n": 1})
    async with store.saver() as saver:
        assert value_of(await saver.aget_tuple(config())) == {"n": 1}
    saver = store.saver()
    assert value_of(saver.get_tuple(config())) == {"n": 1}
    saver.close()
    saver.close()  # twice is no error
    saver = store.saver()
    assert value_of(await saver.aget_tuple(config())) == {"n": 1}
    await saver.aclose()


@pytest.mark.parametrize("used", [True, False])
async def test_a_closed_saver_says_so(store: Store, used: bool) -> None:
    saver = store.saver()
    if used:
        put(saver, {"n": 1})
    saver.close()

    with pytest.raises(SaverClosed):
        saver.get_tuple(config())
    with pytest.raises(SaverClosed):
        await saver.aput(config(), checkpoint({}), {}, {})


def test_one_saver_serves_one_event_loop_after_another(store: Store) -> None:
    with store.saver() as saver:
        for n in range(5):
            asyncio.run(saver.aput(config(), checkpoint({"n": n}), {}, {"n": 1}))
        assert len(list(saver.list(config()))) == 5


def test_one_saver_serves_several_event_loops_at_once(store: Store) -> None:
    async def work(saver: ForkpointSaver, name: str) -> None:
        for n in range(10):
            await saver.aput(config(name), checkpoint({"n": n}), {}, {"n": 1})

    with store.saver() as saver:
        threads = [
            threading.Thread(target=lambda name=name: asyncio.run(work(saver, name)))  # type: ignore[misc]
            for name in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(saver.list(None))) == 40
        assert store.problems(saver) == []


@repeated(3, 10)
def test_event_loops_that_make_the_first_call_at_the_same_time_all_get_an_answer(
    times: int, store: Store
) -> None:
    for _ in range(times):
        with store.saver() as saver:
            barrier = threading.Barrier(8, timeout=PATIENCE_SECONDS)
            answered: list[int] = []

            def first_call(
                saver: ForkpointSaver, barrier: threading.Barrier, answered: list[int]
            ) -> None:
                barrier.wait()
                asyncio.run(asyncio.wait_for(saver.aget_tuple(config()), PATIENCE_SECONDS))
                answered.append(1)

            threads = [
                threading.Thread(target=first_call, args=(saver, barrier, answered))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(answered) == 8


@repeated(5, 20)
@pytest.mark.parametrize("fails", [False, True])
def test_the_worker_threads_end_with_their_saver(fails: bool, times: int, store: Store) -> None:
    before = threading.active_count()
    for _ in range(times):
        with store.saver() as saver:
            asyncio.run(saver.aget_tuple(config()))
            if fails:
                with pytest.raises(ThreadNotFound):
                    asyncio.run(saver.afork(config()))
    del saver

    def have_ended() -> bool:
        gc.collect()  # an error and its traceback have each other, and a worker may just have both
        return threading.active_count() <= before

    wait_until(have_ended, "the threads to end")


def test_a_loop_that_is_closed_too_early_does_no_harm(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"n": 0})
        for _ in range(20):
            loop = asyncio.new_event_loop()
            task = loop.create_task(saver.aput(config(), checkpoint({"n": 1}), {}, {"n": 1}))
            loop.run_until_complete(asyncio.sleep(0))
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.close()
        assert value_of(asyncio.run(saver.aget_tuple(config()))) in ({"n": 0}, {"n": 1})
        # What is still running may come to its end.
        wait_until(lambda: store.problems(saver) == [], "a store without problems")


@pytest.mark.in_turns
def test_a_process_that_never_closes_its_saver_ends(store: Store) -> None:
    script = f"""
import asyncio
import copy
{store.script}
asyncio.run(saver.aget_tuple({{"configurable": {{"thread_id": "t"}}}}))
saver.get_tuple({{"configurable": {{"thread_id": "t"}}}})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE_SECONDS)


def test_a_saver_made_before_a_fork_works_in_the_child_and_in_the_parent(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"n": "before"}, thread_id="before")
        asyncio.run(saver.aget_tuple(config()))

        def work(name: str) -> None:
            assert value_of(asyncio.run(saver.aget_tuple(config("before")))) == {"n": "before"}
            for n in range(8):
                put(saver, {"n": n}, thread_id=name)

        children = [
            multiprocessing.get_context("fork").Process(target=work, args=(f"child-{n}",))
            for n in range(2)
        ]
        for child in children:
            child.start()
        work("parent")
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        assert len(list(saver.list(None))) == 25
        assert store.problems(saver) == []


async def test_setup_may_be_called_at_any_time_and_often(store: Store) -> None:
    saver = store.saver()
    saver.setup()
    await saver.asetup()
    put(saver, {"n": 1})
    saver.setup()
    assert value_of(saver.get_tuple(config())) == {"n": 1}
    saver.close()


def race_to_set_up(store: Store, barrier: Any) -> None:
    barrier.wait()
    with store.saver() as saver:
        put(saver, {"n": 1}, thread_id=f"{os.getpid()}")


@repeated(1, 3)
def test_several_processes_may_race_to_set_up(times: int, new_store: Callable[[], Store]) -> None:
    context = fork_server()
    number = 8 if times > 1 else 4
    for _ in range(times):
        store = new_store()
        barrier = context.Barrier(number, timeout=PATIENCE_SECONDS)
        children = [
            context.Process(target=race_to_set_up, args=(store, barrier)) for _ in range(number)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * number
        with store.saver() as saver:
            assert len(list(saver.list(None))) == number


def test_a_newer_schema_is_refused(store: Store) -> None:
    with store.saver() as saver:
        saver.setup()
    store.set_schema_version(99)

    with store.saver() as saver, pytest.raises(SchemaVersionError, match="99"):
        saver.get_tuple(config())


def test_a_saver_that_was_given_an_allowlist_shares_the_store(store: Store) -> None:
    with store.saver() as saver:
        derived = saver.with_allowlist([("a", "B")])
        put(saver, {"n": 1})
        put(derived, {"n": 2}, thread_id="derived")
        assert len(list(saver.list(None))) == len(list(derived.list(None))) == 2
        assert saver.with_allowlist([]) is saver


@pytest.mark.parametrize("take", [pickle.dumps, copy.deepcopy])
def test_a_saver_that_is_to_go_to_another_process_says_what_to_do(
    take: Callable[[Any], Any], store: Store
) -> None:
    with store.saver() as saver:
        for each in (saver, ThreadCatalog(saver)):
            with pytest.raises(TypeError, match="make a saver of the same store"):
                take(each)
        put(copy.copy(saver), {"n": 1})
        assert value_of(saver.get_tuple(config())) == {"n": 1}


def test_a_saver_and_a_catalog_show_their_store_and_owner(
    store: SqliteStore | MongoStore,
) -> None:
    with store.saver() as saver:
        where = (
            str(store.path) if isinstance(store, SqliteStore) else f"{store.name}.forkpoint_store"
        )
        name = f"{type(saver).__name__}({where!r})"
        assert repr(saver) == name
        assert repr(ThreadCatalog(saver)) == f"ThreadCatalog({name})"
        acme = ThreadCatalog(saver, owner="acme")
        assert repr(acme) == f"ThreadCatalog({name}.for_owner('acme'))"
