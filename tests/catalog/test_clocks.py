"""Clocks of hosts that are wrong: nothing stops for as long as they are wrong by."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from checking import put
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.clocks import ServerClock, StoreClock
from forkpoint.saver.saver import ForkpointSaver
from processes import fork_server
from servers import PATIENCE_SECONDS
from stores import Store

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TTL = timedelta(hours=2)
PATIENCE = timedelta(seconds=PATIENCE_SECONDS)
SOON = timedelta(minutes=15)  # for a test that is slow; no clock that is wrong is so by so little


def set_clock(shift: timedelta) -> None:
    clock, clock_ns, seconds = time.time, time.time_ns, shift.total_seconds()
    time.time = lambda: clock() + seconds
    time.time_ns = lambda: clock_ns() + int(seconds * 10**9)


def work(store: Store, shift: timedelta, does: str, ready: Any) -> None:
    """Do something in a process whose clock is wrong, and be killed."""
    set_clock(shift)
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        if does == "hold":
            with catalog.run("thread", ttl=timedelta(seconds=1)) as lease:
                put(saver, {"n": 2}, parent=lease.config)
                ready.set()
                time.sleep(PATIENCE_SECONDS)
        put(saver, {"n": 2}, thread_id="thread")
        catalog.create("made there", ttl=TTL)
        ready.set()


def in_another_process(store: Store, shift: timedelta, does: str) -> None:
    """Do something by a clock that is wrong. The process has ended, or was killed, on return."""
    ready = fork_server().Event()
    process = fork_server().Process(target=work, args=(store, shift, does, ready))
    process.start()
    assert ready.wait(PATIENCE_SECONDS)
    if does == "hold":
        process.kill()
    process.join()


def is_soon(moment: datetime | None) -> bool:
    return moment is not None and abs(moment - datetime.now(timezone.utc)) < SOON


@pytest.mark.in_turns
@pytest.mark.parametrize("shift", [HOUR, -DAY], ids=["ahead", "back"])
def test_the_lease_of_a_process_that_was_killed_ends_whatever_its_clock_said(
    shift: timedelta, store: Store, saver: ForkpointSaver
) -> None:
    put(saver, {"n": 1})
    in_another_process(store, shift, "hold")
    # It would hang for an hour, or a day.
    with ThreadCatalog(saver).run("thread", if_busy="wait", timeout=PATIENCE) as lease:
        put(saver, {"n": 3}, parent=lease.config)
    assert store.problems(saver) == []


@pytest.mark.in_turns
@pytest.mark.parametrize("shift", [HOUR, -DAY], ids=["ahead", "back"])
def test_time_to_live_and_idleness_are_by_the_time_of_the_store(
    shift: timedelta, store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    catalog.create("thread", ttl=TTL)
    put(saver, {"n": 1}, thread_id="thread")
    before = catalog.get("thread")
    in_another_process(store, shift, "put")

    there, there_thread = catalog.get("thread"), catalog.get("made there")
    assert there is not None
    assert before is not None
    assert there.updated_at >= before.updated_at  # it never goes back
    assert there_thread is not None
    assert catalog.count() == 2
    assert catalog.sweep().deleted == ()  # by a day back, it would seem to be long ago
    if shift < timedelta(0):
        assert is_soon(there.updated_at)
        assert is_soon(there_thread.created_at)
    now = catalog.get("thread")
    put(saver, {"n": 3}, thread_id="thread")
    assert catalog.get("thread").updated_at >= now.updated_at

    for thread_id in ("thread", "made there"):
        store.age(thread_id, updated_at=int(TTL.total_seconds() + 60) * 1_000_000)
    # As the store sees it they are idle for that long, however far ahead its time is.
    assert set(catalog.sweep().deleted) == {"thread", "made there"}
    assert store.problems(saver) == []


def test_a_clock_that_is_set_back_does_not_hold_up_the_time_of_a_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, elapsed = [1_000_000.0], [0.0]
    monkeypatch.setattr(time, "time_ns", lambda: int(host[0] * 1e9))
    monkeypatch.setattr("forkpoint.clocks.elapsed_microseconds", lambda: int(elapsed[0] * 1e6))
    clock = StoreClock()
    times = [clock.now()]

    def passes(seconds: float, *, set_by: float = 0) -> float:
        """Let time pass, and set the host's clock; return how far the store's is ahead of it."""
        elapsed[0] += seconds
        host[0] += seconds + set_by
        times.append(clock.now())
        assert times[-1] >= times[-2]
        return times[-1] / 1e6 - host[0]

    assert passes(10) == 0
    assert passes(0, set_by=-86_400) == 86_400
    assert passes(1000) == 86_400 - 100  # it goes on, a little slower
    assert passes(0, set_by=86_400) == 0
    assert passes(0, set_by=3600) == 0
    assert passes(0, set_by=-3600) == 3600
    for _ in range(36_000):
        passes(1)
    assert passes(1) == 0  # it has caught up
    clock.learn(int((host[0] + 60) * 1e6))
    assert passes(0) == 60
    clock.learn(0)
    assert passes(0) == 60


def test_the_time_of_a_server_is_asked_for_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elapsed, questions = [0], []
    monkeypatch.setattr("forkpoint.clocks.elapsed_microseconds", lambda: elapsed[0])

    def ask() -> int:
        questions.append(1)
        return 5_000_000 + elapsed[0]

    clock = ServerClock(ask)
    for _ in range(1200):
        assert clock.now() == 5_000_000 + elapsed[0]
        elapsed[0] += 1_000_000
    assert len(questions) == 2


def test_a_server_that_can_hardly_be_reached_is_not_taken_to_be_in_the_future(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elapsed = [0]
    monkeypatch.setattr("forkpoint.clocks.elapsed_microseconds", lambda: elapsed[0])

    def ask() -> int:
        elapsed[0] += 3_000_000  # until there is a connection
        answer = 5_000_000 + elapsed[0]
        elapsed[0] += 20_000
        return answer

    clock = ServerClock(ask)
    for _ in range(3):
        now = clock.now()
        assert now <= 5_000_000 + elapsed[0] <= now + 20_000
        elapsed[0] += 400_000_000


def test_a_store_that_is_opened_anew_knows_its_time(path: Path) -> None:
    catalog: Callable[[SqliteSaver], ThreadCatalog] = ThreadCatalog
    with SqliteSaver(path) as saver:
        there_thread = catalog(saver).create("a")
    clock_ns = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: clock_ns() - int(DAY.total_seconds() * 10**9))
        with SqliteSaver(path) as saver:
            again = catalog(saver).create("b", ttl=TTL)
            # As of when the time was noted last.
            assert again.created_at >= there_thread.created_at - timedelta(seconds=10)
            assert catalog(saver).count() == 2
    with SqliteSaver(path) as saver:
        assert catalog(saver).sweep().deleted == ()
