"""Puts that wait at the same time are stored together, and nobody waits for longer than needed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from forkpoint.errors import StorageBusy
from forkpoint.runtime.group_commit import GroupCommit, Pending, Relay, Submission
from forkpoint.runtime.runner import WorkerRunner
from forkpoint.runtime.steps import Locked, Steps, finish
from forkpoint.runtime.workers import Workers
from servers import PATIENCE_SECONDS, wait_until

LIMIT = PATIENCE_SECONDS


class Store:
    """Keeps the batches that it is given, each as soon as it may."""

    def __init__(self) -> None:
        self.batches: list[list[Submission]] = []
        self.may_go_on = threading.Semaphore(0)
        self.begun = 0

    def __call__(self, batch: list[Submission]) -> None:
        self.begun += 1
        self.may_go_on.acquire()
        self.batches.append(batch)
        for one in batch:
            one.done = True


def operation(relay: Relay[Submission], *, may_wait: bool = False) -> Steps[Submission]:
    one = submission(relay, may_wait=may_wait)
    yield one
    one.check()
    return one


def submission(relay: Relay[Submission], *, may_wait: bool = False) -> Submission:
    return Submission(relay, may_wait=may_wait)


@pytest.fixture
def store() -> Store:
    return Store()


def begin(
    relay: Relay[Submission],
    store: Store,
    executor: ThreadPoolExecutor,
    submissions: list[Submission],
) -> list[Future[None]]:
    """Put the first of these, and the others while it is stored."""
    puts = [executor.submit(relay.put, submissions[0])]
    wait_until(lambda: store.begun == 1, "the first batch")
    puts += [executor.submit(relay.put, one) for one in submissions[1:]]
    wait_until(lambda: len(relay._queue) == len(submissions) - 1, "the others")
    return puts


def test_puts_that_come_during_a_batch_make_the_next_batch(store: Store) -> None:
    relay: Relay[Submission] = Relay(store)
    submissions = [submission(relay) for _ in range(10)]
    with ThreadPoolExecutor(10) as executor:
        puts = begin(relay, store, executor, submissions)
        store.may_go_on.release(2)
        for put in puts:
            put.result(LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 9]


def test_a_put_that_may_wait_waits_for_one_that_may_not(store: Store) -> None:
    store.may_go_on.release(9)
    relay: Relay[Submission] = Relay(store, moment=LIMIT)
    waiting, urgent = submission(relay, may_wait=True), submission(relay)
    with ThreadPoolExecutor(1) as executor:
        put = executor.submit(relay.put, waiting)
        wait_until(lambda: waiting in relay._queue, "the one that may wait")
        relay.put(urgent)
        put.result(LIMIT)
    assert store.batches == [[waiting, urgent]]


def test_a_put_that_may_wait_waits_for_a_limited_time(store: Store) -> None:
    store.may_go_on.release(9)
    relay: Relay[Submission] = Relay(store, moment=0.001)
    one = submission(relay, may_wait=True)
    relay.put(one)
    assert store.batches == [[one]]


def test_the_error_of_a_put_is_raised_for_that_put_only(store: Store) -> None:
    def fail(batch: list[Submission]) -> None:
        for one in batch:
            one.done, one.error = True, ValueError("no")

    relay: Relay[Submission] = Relay(fail)
    with pytest.raises(ValueError, match="no"):
        finish(operation(relay))


def test_an_interrupt_of_the_leader_does_not_interrupt_its_followers(store: Store) -> None:
    interrupts = [KeyboardInterrupt()]

    def store_or_end(batch: list[Submission]) -> None:
        if len(batch) > 1 and interrupts:
            raise interrupts.pop()
        store(batch)

    relay: Relay[Submission] = Relay(store_or_end)
    submissions = [submission(relay) for _ in range(6)]
    with ThreadPoolExecutor(6) as executor:
        puts = begin(relay, store, executor, submissions)
        store.may_go_on.release(9)
        failures = [put.exception(LIMIT) for put in puts]
    assert [type(one) for one in failures if one] == [KeyboardInterrupt]
    assert [one.done for one in submissions] == [failure is None for failure in failures]
    assert relay._leader is None


async def test_many_threads_and_calls_all_get_through() -> None:
    stored: list[Submission] = []

    def store(batch: list[Submission]) -> None:
        time.sleep(0.0005)
        for one in batch:
            stored.append(one)
            one.done = True

    relay: Relay[Submission] = Relay(store, moment=0.0003)
    runner = WorkerRunner(Workers(4))

    def load(seed: int) -> None:
        for n in range(100):
            finish(operation(relay, may_wait=(n + seed) % 2 == 0))

    async def aload(seed: int) -> None:
        for n in range(100):
            await runner.arun(operation, relay)
            await runner.arun(partial(operation, may_wait=(n + seed) % 2 == 0), relay)

    with ThreadPoolExecutor(8) as executor:
        threads = [executor.submit(load, seed) for seed in range(8)]
        await asyncio.wait_for(asyncio.gather(*map(aload, range(16))), LIMIT)
        for thread in threads:
            await asyncio.to_thread(thread.result, LIMIT)
    assert len(stored) == len(set(map(id, stored))) == 800 + 3200
    assert (relay._leader, len(relay._queue)) == (None, 0)


# Calls that no thread waits with


async def queued(relay: Relay[Submission], count: int) -> None:
    await asyncio.to_thread(wait_until, lambda: len(relay._queue) == count, "the queue")


async def test_a_call_that_follows_a_leader_blocks_no_worker(store: Store) -> None:
    relay: Relay[Submission] = Relay(store)
    runner = WorkerRunner(Workers(2))  # one of them leads
    calls = [asyncio.create_task(runner.arun(operation, relay)) for _ in range(30)]
    await queued(relay, 29)
    store.may_go_on.release(2)
    await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 29]


async def test_the_results_of_a_batch_wake_the_loop_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay: Relay[Submission] = Relay(store)
    runner = WorkerRunner(Workers(2))
    done: list[Submission] = []

    def noted(relay: Relay[Submission]) -> Steps[Submission]:
        done.append((yield from operation(relay)))
        return done[-1]

    calls = [asyncio.create_task(runner.arun(noted, relay)) for _ in range(30)]
    await queued(relay, 29)
    loop = asyncio.get_running_loop()
    wakings: list[object] = []
    waken = loop.call_soon_threadsafe

    def wake(*args: Any, **kwargs: Any) -> Any:
        wakings.append(args)
        return waken(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", wake)
    store.may_go_on.release(2)
    # As a loop that is busy: it goes on when all is done, but for what each worker is just saying.
    wait_until(lambda: len(done) == 30, "all calls")
    await asyncio.gather(*calls)
    assert len(wakings) < 10


async def test_threads_and_async_calls_lead_each_other(store: Store) -> None:
    relay: Relay[Submission] = Relay(store)
    runner = WorkerRunner(Workers(2))
    for leads, follows in ((relay.put, runner.arun), (runner.arun, relay.put)):
        store.begun = 0

        def begin(way: Any) -> asyncio.Future[Any]:
            if way == relay.put:
                return asyncio.ensure_future(asyncio.to_thread(way, submission(relay)))
            return asyncio.ensure_future(way(operation, relay))

        calls = [begin(leads)]
        await asyncio.to_thread(wait_until, lambda: store.begun == 1, "the first batch")
        calls += [begin(follows), begin(leads), begin(follows)]
        await queued(relay, 3)
        store.may_go_on.release(2)
        await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 3, 1, 3]


async def test_a_call_that_may_wait_does_so_for_a_moment(store: Store) -> None:
    store.may_go_on.release(9)
    relay: Relay[Submission] = Relay(store, moment=0.001)
    waiting = await WorkerRunner(Workers(1)).arun(partial(operation, may_wait=True), relay)
    assert store.batches == [[waiting]]


async def test_a_failing_call_does_not_hold_up_the_others_of_its_batch() -> None:
    """It may have more to do, which may take long; and what it raises is its own."""
    may_fail, gate = threading.Event(), threading.Event()

    def store(batch: list[Submission]) -> None:
        gate.wait(LIMIT)
        for one in batch:
            one.done = True
        if len(batch) > 1:
            batch[0].error = ValueError("no")

    def long_operation(relay: Relay[Submission]) -> Steps[None]:
        try:
            yield from operation(relay)
        finally:
            may_fail.wait(LIMIT)

    relay: Relay[Submission] = Relay(store)
    runner = WorkerRunner(Workers(3))
    first = asyncio.create_task(runner.arun(operation, relay))
    await asyncio.to_thread(
        wait_until, lambda: relay._leader is not None and not relay._queue, "the first batch"
    )
    failing = asyncio.create_task(runner.arun(long_operation, relay))
    await queued(relay, 1)
    others = [asyncio.create_task(runner.arun(operation, relay)) for _ in range(9)]
    await queued(relay, 10)
    gate.set()
    await asyncio.wait_for(asyncio.gather(first, *others), LIMIT)
    assert not failing.done()
    may_fail.set()
    with pytest.raises(ValueError, match="no"):
        await asyncio.wait_for(failing, LIMIT)


@pytest.mark.parametrize("leads", ["its own call", "one that was appointed"])
async def test_an_error_of_the_store_is_raised_for_the_leader(leads: str, store: Store) -> None:
    failures = [RuntimeError("a defect")]

    def store_or_fail(batch: list[Submission]) -> None:
        if (len(batch) > 1) == (leads != "its own call") and failures:
            raise failures.pop()
        store(batch)

    relay: Relay[Submission] = Relay(store_or_fail)
    runner = WorkerRunner(Workers(3))
    if leads == "its own call":
        with pytest.raises(RuntimeError, match="a defect"):
            await asyncio.wait_for(runner.arun(operation, relay), LIMIT)
    calls = [asyncio.create_task(runner.arun(operation, relay)) for _ in range(6)]
    await queued(relay, 5)
    store.may_go_on.release(9)
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT)
    failed = [one for one in results if isinstance(one, RuntimeError)]
    assert len(failed) == (leads != "its own call")
    assert sum(map(len, store.batches)) == 6 - len(failed)
    assert (relay._leader, len(relay._queue)) == (None, 0)


async def test_a_call_that_is_cancelled_while_it_is_on_its_way_is_stored(store: Store) -> None:
    relay: Relay[Submission] = Relay(store)
    runner = WorkerRunner(Workers(2))
    calls = [asyncio.create_task(runner.arun(operation, relay)) for _ in range(3)]
    await queued(relay, 2)
    for call in calls:
        call.cancel()
    done, _ = await asyncio.wait(calls, timeout=0.1)
    assert not done
    store.may_go_on.release(2)
    done, _ = await asyncio.wait(calls, timeout=LIMIT)
    assert all(call.cancelled() for call in done)
    assert [len(batch) for batch in store.batches] == [1, 2]


# A lock of the store, for which workers wait


class Lock:
    """The lock of a store, as `GroupCommit` uses it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, timeout: float | None = None, *, since: float | None = None) -> None:
        assert self._lock.acquire(timeout=LIMIT)

    def let_go(self) -> None:
        with suppress(RuntimeError):
            self._lock.release()


def put_of(commits: GroupCommit[Pending]) -> Steps[Pending]:
    pending = Pending(commits)
    yield pending
    pending.check()
    return pending


@pytest.fixture
def commits(store: Store) -> GroupCommit[Pending]:
    return GroupCommit(Lock(), store)  # type: ignore[arg-type]


async def join(commits: GroupCommit[Pending], count: int) -> None:
    await asyncio.to_thread(wait_until, lambda: len(commits._queue) == count, "the queue")


async def test_one_worker_waits_for_the_lock_for_all_calls(
    store: Store, commits: GroupCommit[Pending]
) -> None:
    runner = WorkerRunner(Workers(2))  # the other one begins the calls
    calls = [asyncio.create_task(runner.arun(put_of, commits)) for _ in range(30)]
    await join(commits, 30)
    store.may_go_on.release(2)
    await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 29]
    assert len(commits._queue) == 0


async def test_threads_and_calls_store_for_each_other(
    store: Store, commits: GroupCommit[Pending]
) -> None:
    runner = WorkerRunner(Workers(2))

    def begin(in_thread: bool) -> asyncio.Future[Any]:
        if in_thread:
            return asyncio.ensure_future(asyncio.to_thread(finish, put_of(commits)))
        return asyncio.ensure_future(runner.arun(put_of, commits))

    for in_thread in (True, False):
        store.begun = 0
        calls = [begin(in_thread)]
        await asyncio.to_thread(wait_until, lambda: store.begun == 1, "the first batch")
        calls += [begin(not in_thread), begin(in_thread), begin(not in_thread)]
        await join(commits, 4)
        store.may_go_on.release(2)
        await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
        assert len(commits._queue) == 0
    assert [len(batch) for batch in store.batches] == [1, 3, 1, 3]


async def test_who_is_cancelled_before_its_turn_leaves_it_to_the_next(
    store: Store, commits: GroupCommit[Pending]
) -> None:
    runner = WorkerRunner(Workers(1))  # so that the first that is woken is cancelled before it runs
    blocked = threading.Event()
    calls = [asyncio.create_task(runner.arun(put_of, commits))]
    await asyncio.to_thread(wait_until, lambda: store.begun == 1, "the first batch")
    calls += [asyncio.create_task(runner.arun(put_of, commits)) for _ in range(5)]
    calls.append(asyncio.create_task(runner.arun(blocked.set)))
    await asyncio.sleep(0)
    calls[1].cancel()
    calls[2].cancel()
    store.may_go_on.release(9)
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT)
    assert blocked.is_set()
    stored = {one for batch in store.batches for one in batch}
    assert {one for one in outcomes if isinstance(one, Pending)} <= stored
    assert [type(one) for one in outcomes[3:6]] == [Pending] * 3
    assert len(commits._queue) == 0


async def test_threads_and_calls_all_get_through_to_a_store_that_others_lock() -> None:
    stored: list[Pending] = []
    attempts = count()

    def store(batch: Sequence[Pending]) -> None:
        if next(attempts) % 3 == 0:
            raise Locked(StorageBusy("locked"), timeout=LIMIT)
        for one in batch:
            stored.append(one)
            one.done = True

    commits: GroupCommit[Pending] = GroupCommit(Lock(), store)
    runner = WorkerRunner(Workers(4))

    def load() -> None:
        for _ in range(50):
            finish(put_of(commits))

    async def aload() -> None:
        for _ in range(50):
            await runner.arun(put_of, commits)

    with ThreadPoolExecutor(4) as executor:
        threads = [executor.submit(load) for _ in range(4)]
        await asyncio.wait_for(asyncio.gather(*(aload() for _ in range(16))), LIMIT)
        for thread in threads:
            await asyncio.to_thread(thread.result, LIMIT)
    assert len(stored) == len(set(map(id, stored))) == 4 * 50 + 16 * 50
    assert len(commits._queue) == 0
