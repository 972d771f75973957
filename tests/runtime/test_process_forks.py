"""A fork of the process takes nothing open along: nothing acknowledged is lost, nobody hangs."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from checking import checkpoint, config, counts_of, put, repeated, value_of
from children import Child, Signal
from forkpoint import SaverClosed, SqliteSaver, StaleLease, StorageInherited, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from stores import SqliteStore, Store


def put_many(saver: ForkpointSaver, thread_id: str, count: int) -> None:
    for n in range(count):
        put(saver, {"n": n, "text": f"{thread_id}-{n}" * 200}, thread_id=thread_id)


def stored(store: Store) -> dict[str, int]:
    """Return how many checkpoints there are of each thread, read by a saver of its own."""
    with store.saver() as saver:
        assert store.problems(saver) == []
        return counts_of(saver)


def test_a_child_goes_on_when_the_parent_closes(store: Store) -> None:
    saver = store.saver()
    saver.setup()
    has_put, is_closed = Signal(), Signal()

    def work() -> None:
        put_many(saver, "child", 1)
        has_put.set()
        is_closed.wait()
        put_many(saver, "child", 5)

    child = Child(work)
    has_put.wait()
    saver.close()
    is_closed.set()
    child.join()
    assert stored(store) == {"child": 6}


def test_a_parent_goes_on_when_the_child_closes(store: Store) -> None:
    saver = store.saver()
    put_many(saver, "parent", 3)

    def work() -> None:
        put_many(saver, "child", 3)
        saver.close()

    Child(work).join()
    put_many(saver, "parent", 3)
    saver.close()
    assert stored(store) == {"parent": 6, "child": 3}


@repeated(8, 20)
def test_parent_child_and_grandchild_put_at_once(times: int, store: Store) -> None:
    saver = store.saver()
    put_many(saver, "parent", 2)

    def grandchild() -> None:
        put_many(saver, "grandchild", times)
        saver.close()

    def work() -> None:
        put_many(saver, "child", 2)
        inner = Child(grandchild)
        put_many(saver, "child", times - 2)
        inner.join()

    child = Child(work)
    put_many(saver, "parent", times - 2)
    child.join()
    saver.close()
    assert stored(store) == dict.fromkeys(("parent", "child", "grandchild"), times)


def test_a_daemon_whose_opener_exits_loses_nothing(store: Store) -> None:
    is_orphan, is_done = Signal(), Signal()

    def daemon(saver: ForkpointSaver) -> None:
        put_many(saver, "daemon", 2)
        is_orphan.wait()
        put_many(saver, "daemon", 8)
        is_done.set()

    def opener() -> None:
        saver = store.saver()
        put_many(saver, "opener", 2)
        if os.fork() == 0:
            os.setsid()
            try:
                daemon(saver)
            finally:
                os._exit(0)
        saver.close()

    child = Child(opener)
    child.join()
    is_orphan.set()
    is_done.wait()
    assert stored(store) == {"opener": 2, "daemon": 10}


@contextmanager
def busy(savers: list[ForkpointSaver]) -> Iterator[dict[str, int]]:
    """Put by several threads at once, sync and async; the result says how many returned."""
    acknowledged: dict[str, int] = {}
    stop = threading.Event()

    def work(saver: ForkpointSaver, name: str) -> None:
        while not stop.is_set():
            put(saver, {"text": "x" * 3000}, thread_id=name)
            acknowledged[name] = acknowledged.get(name, 0) + 1

    async def awork(saver: ForkpointSaver, name: str) -> None:
        while not stop.is_set():
            await saver.aput(config(name), checkpoint({"text": "x" * 3000}), {}, {"text": 1})
            acknowledged[name] = acknowledged.get(name, 0) + 1

    threads = []
    for number, saver in enumerate(savers):
        threads.append(threading.Thread(target=work, args=(saver, f"sync-{number}")))
        threads.append(
            threading.Thread(
                target=lambda saver=saver, name=f"async-{number}": asyncio.run(awork(saver, name))  # type: ignore[misc]
            )
        )
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@repeated(3, 400)
def test_a_fork_while_other_threads_put_hangs_nobody(times: int, store: Store) -> None:
    saver, other = store.saver(), store.saver()
    with busy([saver, other]) as acknowledged:
        for number in range(times):
            Child(partial(put_many, saver, f"child-{number}", 3)).join()
            acknowledged[f"child-{number}"] = 3
    saver.close()
    other.close()
    assert stored(store) == acknowledged


@repeated(2, 5)
def test_threads_that_fork_at_once_do_not_wait_for_each_other(times: int, store: Store) -> None:
    savers = [store.saver(), store.saver()]
    for saver in savers:
        saver.setup()

    def work(number: int) -> None:
        for n in range(times):
            Child(partial(put_many, savers[n % 2], f"{number}-{n}", 1)).join()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for saver in savers:
        saver.close()
    assert stored(store) == {f"{number}-{n}": 1 for number in range(3) for n in range(times)}


def test_processes_of_multiprocessing_and_commands_with_preexec_fn(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    with store.saver() as saver:
        put_many(saver, "parent", 1)
        processes = [
            context.Process(target=put_many, args=(saver, f"child-{n}", 4)) for n in range(2)
        ]
        for process in processes:
            process.start()
        command = subprocess.run([sys.executable, "-c", "pass"], preexec_fn=os.setsid, check=False)
        put_many(saver, "parent", 3)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert command.returncode == 0
    assert stored(store) == {"parent": 4, "child-0": 4, "child-1": 4}


async def test_a_fork_within_an_event_loop_leaves_both_worlds_working(store: Store) -> None:
    saver = store.saver()
    await saver.aput(config("parent"), checkpoint({"n": 1}), {}, {"n": 1})
    on_their_way = [
        asyncio.create_task(saver.aput(config("parent"), checkpoint({"n": n}), {}, {"n": 1}))
        for n in range(20)
    ]
    await asyncio.sleep(0)

    def work() -> None:
        asyncio.set_event_loop(None)
        asyncio._set_running_loop(None)
        asyncio.run(aput_many(saver, "child", 5))
        put_many(saver, "child", 5)

    child = Child(work)
    await asyncio.gather(*on_their_way)
    await asyncio.to_thread(child.join)
    await saver.aclose()
    assert stored(store) == {"parent": 21, "child": 10}


async def aput_many(saver: ForkpointSaver, thread_id: str, count: int) -> None:
    for n in range(count):
        await saver.aput(config(thread_id), checkpoint({"n": n}), {}, {"n": 1})


def test_a_fork_within_a_call_harms_nobody(store: Store) -> None:
    """As a signal handler may: the child does something else, and what matters is the parent."""
    children: list[Child] = []
    forks = False

    def fork(_: str) -> None:
        if forks:
            children.append(Child(lambda: None))

    with store.watched(fork) as saver:
        put_many(saver, "parent", 1)
        forks = True
        put_many(saver, "parent", 2)
        forks = False
    for child in children:
        child.join()
    assert len(children) > 1
    assert stored(store) == {"parent": 3}


@pytest.mark.slow
def test_a_fork_by_a_signal_handler_within_a_call_harms_nobody(store: Store) -> None:
    children = []

    def handler(*_: object) -> None:
        children.append(Child(lambda: None))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with store.saver() as saver:
            put_many(saver, "parent", 1)
            sent = 0
            for n in range(50):
                signal.setitimer(signal.ITIMER_REAL, 0.0001 * (1 + n % 10))
                put_many(saver, "parent", 1)
                sent += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    for child in children:
        child.join()
    assert stored(store) == {"parent": 1 + sent}


def test_a_child_leaves_the_lease_to_its_parent(store: Store) -> None:
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        lease = catalog.run("thread", ttl=timedelta(minutes=1))
        with lease:
            Child(lambda: lease.__exit__(None, None, None)).join()
            saver.put(lease.config, checkpoint({"n": 1}), {}, {"n": 1})
            record = catalog.get("thread")
            assert record is not None
            assert record.status == "busy"

        def ended() -> None:
            with pytest.raises(StaleLease):
                _ = lease.config

        Child(ended).join()


@repeated(3, 10)
def test_a_sweeper_of_the_parent_can_be_stopped_in_the_child(times: int, store: Store) -> None:
    with store.saver() as saver, ThreadCatalog(saver).sweeper(timedelta(milliseconds=1)) as sweeper:
        for _ in range(times):
            Child(sweeper.stop).join()


def locks_of(root: object) -> Iterator[tuple[str, Any]]:
    """Yield all locks that can be reached from an object, with the names of what leads there."""
    ours = ("forkpoint.", "threading")
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [(type(root).__name__, root)]
    while waiting:
        name, member = waiting.pop()
        if id(member) in seen:
            continue
        seen.add(id(member))
        if isinstance(member, (type(threading.Lock()), type(threading.RLock()))):
            yield name, member
        elif isinstance(member, (dict, list, tuple, set)) or type(member).__module__.startswith(
            ours
        ):
            waiting += [
                (f"{name}.{type(inner).__name__}", inner)
                for inner in gc.get_referents(member)
                if not isinstance(inner, (type, threading.Thread))  # Python renews its own
            ]


def test_a_child_holds_no_lock_of_its_parent(store: Store) -> None:
    """A lock that is held at the fork, by whoever, is another one in the child."""
    with store.saver() as saver, ThreadCatalog(saver).sweeper(timedelta(hours=1)) as sweeper:
        lease = ThreadCatalog(saver).run("thread", ttl=timedelta(minutes=1))
        with lease:
            put_many(saver, "other", 1)
            asyncio.run(aput_many(saver, "other", 1))
            roots = [saver, saver.with_allowlist([("a", "B")]), saver.for_owner("o")]
            roots += [lease, sweeper]  # type: ignore[list-item]
            before = {id(lock): name for root in roots for name, lock in locks_of(root)}
            assert len(before) >= 3

            def work() -> None:
                after = {id(lock) for root in roots for _, lock in locks_of(root)}
                kept = [name for lock, name in before.items() if lock in after]
                assert kept == []

            keep = [lock for root in roots for _, lock in locks_of(root)]  # ids stay theirs
            Child(work).join()
            del keep


# SQLite: what cannot be closed


def test_a_connection_that_was_passed_cannot_be_used_in_a_child(path: Path) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection)
    put_many(saver, "parent", 3)

    def work() -> None:
        with pytest.raises(SaverClosed, match="forked"):
            put_many(saver, "child", 1)
        with pytest.raises(StorageInherited, match="forked"), SqliteSaver(path) as other:
            put_many(other, "child", 1)

    Child(work).join()
    put_many(saver, "parent", 3)
    saver.close()
    connection.close()
    assert stored(SqliteStore(path)) == {"parent": 6}


def test_a_connection_of_other_code_to_the_file_is_noticed_too(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put_many(saver, "parent", 1)
    connection = sqlite3.connect(path)
    connection.execute("SELECT count(*) FROM forkpoint_threads").fetchone()

    def work() -> None:
        with pytest.raises(StorageInherited, match="forked"):
            SqliteSaver(path)
        with SqliteSaver(path.with_name("another.db")) as other:
            put_many(other, "child", 1)

    Child(work).join()
    connection.close()

    def later() -> None:
        with SqliteSaver(path) as other:
            put_many(other, "child", 1)

    Child(later).join()
    assert stored(SqliteStore(path)) == {"parent": 1, "child": 1}


async def test_an_aiosqlite_connection_cannot_be_used_in_a_child(path: Path) -> None:
    async with aiosqlite.connect(path) as connection:
        saver = SqliteSaver(connection)
        await aput_many(saver, "parent", 2)
        await asyncio.to_thread(put_many, saver, "parent", 1)

        def work() -> None:
            with pytest.raises(SaverClosed, match="forked"):
                put_many(saver, "child", 1)

        await asyncio.to_thread(Child(work).join)
        await aput_many(saver, "parent", 2)
        await saver.aclose()
    assert stored(SqliteStore(path)) == {"parent": 5}


@pytest.mark.parametrize("name", [":memory:", "file::memory:", "file:x?mode=memory&cache=shared"])
def test_a_database_in_memory_is_copied(name: str) -> None:
    with SqliteSaver(name) as saver, busy([saver]):
        put_many(saver, "parent", 2)

        def work() -> None:
            assert value_of(saver.get_tuple(config("parent")))["n"] == 1
            put_many(saver, "child", 3)
            asyncio.run(aput_many(saver, "child", 3))
            assert len(list(saver.list(config("child")))) == 6

        Child(work).join()
        put_many(saver, "parent", 2)
        assert len(list(saver.list(config("parent")))) == 4
        assert list(saver.list(config("child"))) == []
