"""Puts that wait at the same time are stored together, and nobody waits for longer than needed."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from servers import PATIENCE_SECONDS, wait_until

from forkpoint.runtime.group_commit import Relay, Submission
from forkpoint.runtime.runner import WorkerRunner
from forkpoint.runtime.steps import Steps, finish
from forkpoint.runtime.workers import Workers

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


def operation(relay: Relay[Submission], *, is_patient: bool = False) -> Steps[Submission]:
    one = submission(relay, is_patient=is_patient)
    yield one
    one.check()
    return one


def submission(
    relay: Relay[Submission], *, is_patient: bool = False, key: object = None
) -> Submission:
    return Submission(relay, is_patient=is_patient, key=key)


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


def test_what_comes_while_a_batch_is_stored_makes_the_next_one(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=LIMIT)
    submissions = [submission(relay) for _ in range(10)]
    with ThreadPoolExecutor(10) as executor:
        puts = begin(relay, store, executor, submissions)
        store.may_go_on.release(2)
        for put in puts:
            put.result(LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 9]


def test_so_many_batches_are_on_their_way_as_there_are_in_flight(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=2, moment=0, patience=LIMIT)
    with ThreadPoolExecutor(6) as executor:
        puts = []
        for begun in (1, 2):
            puts.append(executor.submit(relay.put, submission(relay)))
            wait_until(lambda begun=begun: store.begun == begun, "a batch")  # type: ignore[misc]
        puts += [executor.submit(relay.put, submission(relay)) for _ in range(4)]
        wait_until(lambda: len(relay._queue) == 4, "the others")
        assert store.begun == 2
        store.may_go_on.release(3)
        for put in puts:
            put.result(LIMIT)
    assert sorted(len(batch) for batch in store.batches) == [1, 1, 4]


@pytest.mark.parametrize("patience", [LIMIT, 0.001])
def test_there_are_no_two_batches_with_the_same_key_on_their_way(
    patience: float, store: Store
) -> None:
    """However long the first one takes; who comes with another key does not wait for it."""
    relay: Relay[Submission] = Relay(store, in_flight=2, moment=0, patience=patience)
    first, *others = [submission(relay, key=key) for key in ("a", "a", "b", "a")]
    with ThreadPoolExecutor(4) as executor:
        puts = begin(relay, store, executor, [first])
        puts += [executor.submit(relay.put, one) for one in others]
        wait_until(lambda: store.begun == 2, "the other key")
        wait_until(lambda: set(relay._queue) == {others[0], others[2]}, "the rest")
        time.sleep(5 * min(patience, 0.01))
        assert store.begun == 2
        store.may_go_on.release(3)
        for put in puts:
            put.result(LIMIT)
    batches = [[one.key for one in batch] for batch in store.batches]
    assert sorted(batches) == [["a"], ["a", "a"], ["b"]]


async def test_many_of_few_keys_all_get_through() -> None:
    busy: list[object] = []

    def store(batch: list[Submission]) -> None:
        keys = {one.key for one in batch}
        assert keys.isdisjoint(busy)
        busy.extend(keys)
        time.sleep(random.random() / 2000)
        for key in keys:
            busy.remove(key)
        for one in batch:
            one.done = True

    relay: Relay[Submission] = Relay(store, in_flight=3, moment=0.0005, patience=0.005)
    runner = WorkerRunner(Workers(8))
    rng = random.Random(1)

    def work(seed: int) -> None:
        for n in range(100):
            relay.put(submission(relay, key=(seed + n) % 4, is_patient=n % 3 == 0))

    async def call(n: int) -> None:
        one = submission(relay, key=n % 4, is_patient=rng.random() < 0.3)

        def operation() -> Steps[None]:
            yield one
            one.check()

        await runner.arun(operation)
        assert one.done

    with ThreadPoolExecutor(4) as executor:
        threads = [executor.submit(work, n) for n in range(4)]
        for _ in range(20):
            await asyncio.gather(*(call(n) for n in range(20)))
        for thread in threads:
            await asyncio.wait_for(asyncio.wrap_future(thread), LIMIT)


@pytest.mark.parametrize("count", [5, 20])
def test_another_batch_is_begun_unless_the_store_is_busy_with_many(
    count: int, store: Store
) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=LIMIT)
    with ThreadPoolExecutor(22) as executor:
        puts = begin(relay, store, executor, [submission(relay) for _ in range(count + 1)])
        store.may_go_on.release()
        wait_until(lambda: store.begun == 2, "the large batch")
        relay._in_flight = 2
        one = submission(relay)
        puts.append(executor.submit(relay.put, one))
        if count == 5:
            wait_until(lambda: store.begun == 3, "the small batch")
        else:
            wait_until(lambda: one in relay._queue, "one more")
            assert relay._leader is None
        store.may_go_on.release(9)
        for put in puts:
            put.result(LIMIT)
    assert sorted(len(batch) for batch in store.batches) == [1, 1, count]


def test_the_patient_wait_for_a_batch_although_there_is_another_may_begin(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=2, moment=0, patience=LIMIT)
    patient = submission(relay, is_patient=True)
    with ThreadPoolExecutor(3) as executor:
        puts = [executor.submit(relay.put, submission(relay))]
        wait_until(lambda: store.begun == 1, "the first batch")
        puts.append(executor.submit(relay.put, patient))
        wait_until(lambda: patient in relay._queue, "the patient one")
        assert relay._leader is None
        urgent = submission(relay)
        puts.append(executor.submit(relay.put, urgent))
        wait_until(lambda: store.begun == 2, "the second batch")
        store.may_go_on.release(2)
        for put in puts:
            put.result(LIMIT)
    assert [patient, urgent] in store.batches


def test_the_patient_wait_for_one_that_is_not_and_that_one_for_nobody(store: Store) -> None:
    store.may_go_on.release(9)
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=LIMIT, patience=LIMIT)
    patient, urgent = submission(relay, is_patient=True), submission(relay)
    with ThreadPoolExecutor(1) as executor:
        put = executor.submit(relay.put, patient)
        wait_until(lambda: patient in relay._queue, "the patient one")
        relay.put(urgent)
        put.result(LIMIT)
    assert store.batches == [[patient, urgent]]


def test_the_patient_do_not_wait_for_long(store: Store) -> None:
    store.may_go_on.release(9)
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0.001, patience=LIMIT)
    one = submission(relay, is_patient=True)
    relay.put(one)
    assert store.batches == [[one]]


def test_nobody_waits_for_a_batch_that_takes_long(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=0.01)
    with ThreadPoolExecutor(2) as executor:
        puts = [executor.submit(relay.put, submission(relay))]
        wait_until(lambda: store.begun == 1, "the first batch")
        puts.append(executor.submit(relay.put, submission(relay)))
        wait_until(lambda: store.begun == 2, "the second batch")
        store.may_go_on.release(2)
        for put in puts:
            put.result(LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 1]


def test_what_goes_wrong_with_one_is_raised_for_that_one(store: Store) -> None:
    def fail(batch: list[Submission]) -> None:
        for one in batch:
            one.done, one.error = True, ValueError("no")

    relay: Relay[Submission] = Relay(fail, in_flight=1, moment=0, patience=LIMIT)
    with pytest.raises(ValueError, match="no"):
        finish(operation(relay))


def test_an_interrupt_of_the_one_that_stores_is_not_one_of_the_others(store: Store) -> None:
    interrupts = [KeyboardInterrupt()]

    def store_or_end(batch: list[Submission]) -> None:
        if len(batch) > 1 and interrupts:
            raise interrupts.pop()
        store(batch)

    relay: Relay[Submission] = Relay(store_or_end, in_flight=1, moment=0, patience=LIMIT)
    submissions = [submission(relay) for _ in range(6)]
    with ThreadPoolExecutor(6) as executor:
        puts = begin(relay, store, executor, submissions)
        store.may_go_on.release(9)
        failures = [put.exception(LIMIT) for put in puts]
    assert [type(one) for one in failures if one] == [KeyboardInterrupt]
    assert [one.done for one in submissions] == [failure is None for failure in failures]
    assert relay._leader is None


@pytest.mark.parametrize("in_flight", [1, 3])
async def test_many_threads_and_calls_all_get_through(in_flight: int) -> None:
    stored: list[Submission] = []

    def store(batch: list[Submission]) -> None:
        time.sleep(0.0005)
        for one in batch:
            stored.append(one)
            one.done = True

    relay: Relay[Submission] = Relay(store, in_flight=in_flight, moment=0.0003, patience=0.002)
    runner = WorkerRunner(Workers(4))

    def load(seed: int) -> None:
        for n in range(100):
            finish(operation(relay, is_patient=(n + seed) % 2 == 0))

    async def aload(seed: int) -> None:
        for n in range(100):
            await runner.arun(operation, relay)
            await runner.arun(partial(operation, is_patient=(n + seed) % 2 == 0), relay)

    with ThreadPoolExecutor(8) as executor:
        threads = [executor.submit(load, seed) for seed in range(8)]
        await asyncio.wait_for(asyncio.gather(*map(aload, range(16))), LIMIT)
        for thread in threads:
            await asyncio.to_thread(thread.result, LIMIT)
    assert len(stored) == len(set(map(id, stored))) == 800 + 3200
    assert (relay._leader, len(relay._queue), relay._batches) == (None, 0, {})


# Calls that no thread waits with


async def queued(relay: Relay[Submission], count: int) -> None:
    await asyncio.to_thread(wait_until, lambda: len(relay._queue) == count, "the queue")


async def test_a_call_that_is_taken_along_keeps_no_worker(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=LIMIT)
    runner = WorkerRunner(Workers(2))  # one of them leads
    calls = [asyncio.create_task(runner.arun(operation, relay)) for _ in range(30)]
    await queued(relay, 29)
    store.may_go_on.release(2)
    await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 29]


async def test_the_results_of_a_batch_wake_the_loop_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=LIMIT)
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


async def test_threads_take_calls_along_and_calls_threads(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=LIMIT)
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


async def test_a_call_does_not_wait_for_a_batch_that_takes_long(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=0.01)
    runner = WorkerRunner(Workers(3))
    calls = []
    for begun in (1, 2):
        calls.append(asyncio.create_task(runner.arun(operation, relay)))
        await asyncio.to_thread(wait_until, lambda begun=begun: store.begun == begun, "a batch")  # type: ignore[misc]
        await asyncio.sleep(0.02)
    store.may_go_on.release(2)
    await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
    assert [len(batch) for batch in store.batches] == [1, 1]


async def test_the_patient_call_waits_a_moment_and_not_for_long(store: Store) -> None:
    store.may_go_on.release(9)
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0.001, patience=LIMIT)
    patient = await WorkerRunner(Workers(1)).arun(partial(operation, is_patient=True), relay)
    assert store.batches == [[patient]]


async def test_a_call_that_fails_keeps_the_others_of_its_batch_from_nothing() -> None:
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

    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=LIMIT)
    runner = WorkerRunner(Workers(3))
    first = asyncio.create_task(runner.arun(operation, relay))
    await asyncio.to_thread(wait_until, lambda: len(relay._batches) == 1, "the first batch")
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
async def test_what_a_store_raises_is_for_the_one_that_leads(leads: str, store: Store) -> None:
    failures = [RuntimeError("a defect")]

    def store_or_fail(batch: list[Submission]) -> None:
        if (len(batch) > 1) == (leads != "its own call") and failures:
            raise failures.pop()
        store(batch)

    relay: Relay[Submission] = Relay(store_or_fail, in_flight=1, moment=0, patience=LIMIT)
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
    assert (relay._leader, len(relay._queue), relay._batches) == (None, 0, {})


async def test_a_call_that_is_cancelled_while_it_is_on_its_way_is_stored(store: Store) -> None:
    relay: Relay[Submission] = Relay(store, in_flight=1, moment=0, patience=LIMIT)
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
