"""Sweeping in the background, and several sweeps at once."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from catalogs import HOUR, HOURS, archived_in
from checking import put
from forkpoint import (
    RetentionResult,
    SaverClosed,
    StorageError,
    Sweeper,
    ThreadCatalog,
)
from forkpoint.saver.saver import ForkpointSaver
from servers import wait_until
from stores import Store


def is_stored(store: Store, thread_id: str) -> bool:
    """Return whether there is a thread, whether it has expired or not."""
    return any(thread.thread_id == thread_id and thread.is_live for thread in store.threads())


def test_a_sweeper_sweeps_until_it_is_stopped(saver: ForkpointSaver, store: Store) -> None:
    catalog = ThreadCatalog(saver)
    with catalog.sweeper(timedelta(milliseconds=20)) as sweeper:
        for round_ in range(3):
            catalog.create(f"t{round_}", ttl=HOUR)
            store.age(f"t{round_}", updated_at=2 * HOURS)
            wait_until(lambda n=round_: not is_stored(store, f"t{n}"), "a sweep")  # type: ignore[misc]
    assert sweeper.last_error is None
    assert sweeper.last_result is not None
    catalog.create("late", ttl=HOUR)
    store.age("late", updated_at=2 * HOURS)
    time.sleep(0.1)
    assert is_stored(store, "late")


def test_a_failed_sweep_is_reported_and_the_next_one_works(
    saver: ForkpointSaver, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = ThreadCatalog(saver)
    failures = iter([StorageError("gone"), ValueError("of a callback")])

    def fail_twice() -> RetentionResult:
        for failure in failures:
            raise failure
        return catalog.sweep()

    catalog.create("thread", ttl=HOUR)
    store.age("thread", updated_at=2 * HOURS)
    with Sweeper(fail_twice, 0.01) as sweeper:
        wait_until(lambda: not is_stored(store, "thread"), "a sweep")
    assert sweeper.last_error is None
    assert sum("a sweep failed" in record.message for record in caplog.records) == 2


def test_a_sweeper_says_which_threads_it_left(
    saver: ForkpointSaver, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def archive(*_: object) -> None:
        raise OSError("no space left")

    catalog = ThreadCatalog(saver)
    catalog.create("thread", ttl=HOUR)
    store.age("thread", updated_at=2 * HOURS)
    with catalog.sweeper(HOUR, archive=archive) as sweeper:
        wait_until(lambda: sweeper.last_result is not None, "a sweep")
    assert "a sweep left thread 'thread' alone: no space left" in caplog.messages


async def test_a_sweeper_stops_with_its_block(saver: ForkpointSaver) -> None:
    async with ThreadCatalog(saver).sweeper(HOUR) as sweeper:
        assert sweeper._thread.is_alive()
    assert not sweeper._thread.is_alive()


def test_a_sweeper_ends_with_its_saver(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with store.saver() as saver:
        sweeper = ThreadCatalog(saver).sweeper(timedelta(milliseconds=20))
    sweeper._thread.join()
    assert isinstance(sweeper.last_error, SaverClosed)
    assert caplog.records == []
    sweeper.stop()


@pytest.mark.in_turns
def test_of_several_sweepers_one_handles_each_thread(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    number = 16
    path = tmp_path / "archive.jsonl"
    catalog = ThreadCatalog(saver)
    for n in range(number):
        catalog.create(f"t{n}", ttl=HOUR)
        put(saver, {"n": n}, thread_id=f"t{n}")
        store.age(f"t{n}", updated_at=2 * HOURS)
    deleted: list[str] = []

    def sweep() -> None:
        with store.saver() as own:
            deleted.extend(ThreadCatalog(own).sweep(archive=path).deleted)

    sweepers = [threading.Thread(target=sweep) for _ in range(4)]
    for sweeper in sweepers:
        sweeper.start()
    for sweeper in sweepers:
        sweeper.join()
    expected = sorted(f"t{n}" for n in range(number))
    assert sorted(archived_in(path)) == sorted(deleted) == expected
    assert catalog.count() == 0
    assert store.problems(saver) == []
