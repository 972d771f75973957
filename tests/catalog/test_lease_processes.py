"""Leases between processes, which are killed or paused, or whose clocks are wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from catalogs import PATIENCE, at, stored_rows
from checking import checkpoint, put
from forkpoint import (
    StaleLease,
    ThreadBusy,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.catalog import leases
from forkpoint.saver.saver import ForkpointSaver
from processes import fork_server
from servers import PATIENCE_SECONDS
from stores import MongoStore, Store

SHORT = timedelta(milliseconds=400)  # of a lease that is to end by itself


def take_turns(store: Store, path: Path, rounds: int) -> None:
    """Note who holds the lease, and that nobody else does."""
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        for _ in range(rounds):
            with catalog.run("thread", if_busy="wait") as lease:
                mark = path.with_suffix(".held")
                with mark.open("x"):  # it is an error if it exists
                    pass
                config_ = {**lease.config["configurable"], "checkpoint_ns": ""}
                saver.put({"configurable": config_}, checkpoint({"n": 1}), {}, {"n": 1})
                mark.unlink()


def hold(store: Store, ready: Any, may_go_on: Any) -> None:
    """Hold a lease, say so, and write when told to."""
    with store.saver() as saver:
        lease = ThreadCatalog(saver).run("thread", ttl=SHORT)
        with lease:
            ready.set()
            may_go_on.wait()
            with contextlib.suppress(StaleLease):
                saver.put(at(lease), checkpoint({"late": 1}), {}, {"late": 1})
                os._exit(1)
            os._exit(7)


@pytest.mark.parametrize(
    "rounds", [20, pytest.param(1000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_two_processes_never_hold_a_lease_at_once(
    rounds: int, store: Store, saver: ForkpointSaver, tmp_path: Path
) -> None:
    rounds = rounds if rounds == 1000 else store.times(rounds)
    processes = [
        fork_server().Process(target=take_turns, args=(store, tmp_path / "lease", rounds // 2))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    thread = ThreadCatalog(saver).get("thread")
    assert thread is not None
    assert thread.checkpoint_count == rounds // 2 * 2
    assert store.problems(saver) == []


def holding_process(store: Store) -> tuple[Any, Any]:
    """Return a process that holds the lease, and what makes it go on."""
    ready, may_go_on = fork_server().Event(), fork_server().Event()
    process = fork_server().Process(target=hold, args=(store, ready, may_go_on))
    process.start()
    assert ready.wait(PATIENCE_SECONDS)
    return process, may_go_on


def test_the_lease_of_a_killed_process_ends_by_itself(store: Store, saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    process, _ = holding_process(store)
    process.kill()
    process.join()
    with catalog.run("thread", if_busy="wait", timeout=PATIENCE) as lease:
        put(saver, {"n": 1}, parent=at(lease))
    thread = catalog.get("thread")
    assert thread is not None
    assert (thread.status, thread.checkpoint_count) == ("idle", 1)


def test_a_paused_process_that_wakes_up_writes_nothing(store: Store, saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    process, may_go_on = holding_process(store)
    os.kill(process.pid, signal.SIGSTOP)
    with catalog.run("thread", if_busy="wait", timeout=PATIENCE) as lease:
        put(saver, {"n": 1}, parent=at(lease))
    before = stored_rows(store)
    os.kill(process.pid, signal.SIGCONT)
    may_go_on.set()
    process.join()
    assert process.exitcode == 7
    assert stored_rows(store) == before


def hold_by_another_clock(store: Store, hours: int, ready: Any, may_go_on: Any) -> None:
    """Hold a long and a short lease in a process whose clock is wrong."""
    clock, clock_ns = time.time, time.time_ns
    time.time = lambda: clock() + hours * 3600
    time.time_ns = lambda: clock_ns() + hours * 3600 * 10**9
    leases._RENEWALS = 60_000
    with store.saver() as saver, ThreadCatalog(saver).run("long"):
        hold(store, ready, may_go_on)


@pytest.mark.parametrize("hours", [-5, 5])
def test_the_clocks_of_clients_do_not_matter(hours: int, mongo_server: Any) -> None:
    store = MongoStore(mongo_server.uri, f"test-{uuid4().hex}")
    ready, may_go_on = fork_server().Event(), fork_server().Event()
    process = fork_server().Process(
        target=hold_by_another_clock, args=(store, hours, ready, may_go_on)
    )
    process.start()
    assert ready.wait(PATIENCE_SECONDS)
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        holder = catalog.lease("long")
        assert holder is not None
        while (now := catalog.lease("long")) is None or now.until <= holder.until:
            time.sleep(0.02)  # it is renewed
        assert abs(now.until - datetime.now(timezone.utc)) < timedelta(hours=1)
        with pytest.raises(ThreadBusy), catalog.run("long"):
            pass
        process.kill()
        process.join()
        with catalog.run("thread", if_busy="wait", timeout=PATIENCE):
            pass
    store.close()


def create_threads(store: Store, number: int) -> None:
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        for n in range(number):
            catalog.get_or_create(f"t{n}", tags=["raced"])


@pytest.mark.parametrize(
    "number", [8, pytest.param(200, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_processes_that_race_make_each_thread_once(
    number: int, store: Store, saver: ForkpointSaver
) -> None:
    processes = [
        fork_server().Process(target=create_threads, args=(store, number)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert ThreadCatalog(saver).count(ThreadFilter(tags=["raced"])) == number
    assert len(store.threads()) == number
