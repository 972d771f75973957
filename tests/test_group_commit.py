"""Puts that wait at the same time are stored together, and nobody waits for longer than needed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from forkpoint.group_commit import Relay, Rider
from servers import wait_until


class Store:
    """Keeps the batches that it is given, each as soon as it may."""

    def __init__(self) -> None:
        self.batches: list[list[Rider]] = []
        self.may_go_on = threading.Semaphore(0)
        self.begun = 0

    def __call__(self, batch: list[Rider]) -> None:
        self.begun += 1
        self.may_go_on.acquire()
        self.batches.append(batch)
        for one in batch:
            one.done = True


def rider(*, is_patient: bool = False) -> Rider:
    return Rider(is_patient=is_patient)


@pytest.fixture
def store() -> Store:
    return Store()


def begin(
    relay: Relay, store: Store, executor: ThreadPoolExecutor, riders: list[Rider]
) -> list[Future[None]]:
    """Put the first of these, and the others while it is stored."""
    puts = [executor.submit(relay.put, riders[0])]
    wait_until(lambda: store.begun == 1, "the first batch")
    puts += [executor.submit(relay.put, one) for one in riders[1:]]
    wait_until(lambda: len(relay._queue) == len(riders) - 1, "the others")
    return puts


def test_what_comes_while_a_batch_is_stored_makes_the_next_one(store: Store) -> None:
    relay = Relay(store, lanes=1, moment=0, patience=60)
    riders = [rider() for _ in range(10)]
    with ThreadPoolExecutor(10) as executor:
        puts = begin(relay, store, executor, riders)
        store.may_go_on.release(2)
        for put in puts:
            put.result(30)
    assert [len(batch) for batch in store.batches] == [1, 9]


def test_so_many_batches_are_on_their_way_as_there_are_lanes(store: Store) -> None:
    relay = Relay(store, lanes=2, moment=0, patience=60)
    with ThreadPoolExecutor(6) as executor:
        puts = []
        for begun in (1, 2):
            puts.append(executor.submit(relay.put, rider()))
            wait_until(lambda begun=begun: store.begun == begun, "a batch")  # type: ignore[misc]
        puts += [executor.submit(relay.put, rider()) for _ in range(4)]
        wait_until(lambda: len(relay._queue) == 4, "the others")
        assert store.begun == 2
        store.may_go_on.release(3)
        for put in puts:
            put.result(30)
    assert sorted(len(batch) for batch in store.batches) == [1, 1, 4]


def test_the_patient_wait_for_a_batch_although_there_is_another_lane(store: Store) -> None:
    relay = Relay(store, lanes=2, moment=0, patience=60)
    patient = rider(is_patient=True)
    with ThreadPoolExecutor(3) as executor:
        puts = [executor.submit(relay.put, rider())]
        wait_until(lambda: store.begun == 1, "the first batch")
        puts.append(executor.submit(relay.put, patient))
        wait_until(lambda: patient in relay._queue, "the patient one")
        assert relay._leader is None
        urgent = rider()
        puts.append(executor.submit(relay.put, urgent))
        wait_until(lambda: store.begun == 2, "the second batch")
        store.may_go_on.release(2)
        for put in puts:
            put.result(30)
    assert [patient, urgent] in store.batches


def test_the_patient_wait_for_one_that_is_not_and_that_one_for_nobody(store: Store) -> None:
    store.may_go_on.release(9)
    relay = Relay(store, lanes=1, moment=30, patience=60)
    patient, urgent = rider(is_patient=True), rider()
    with ThreadPoolExecutor(1) as executor:
        put = executor.submit(relay.put, patient)
        wait_until(lambda: patient in relay._queue, "the patient one")
        relay.put(urgent)
        put.result(10)
    assert store.batches == [[patient, urgent]]


def test_the_patient_do_not_wait_for_long(store: Store) -> None:
    store.may_go_on.release(9)
    one = rider(is_patient=True)
    Relay(store, lanes=1, moment=0.001, patience=60).put(one)
    assert store.batches == [[one]]


def test_nobody_waits_for_a_batch_that_takes_long(store: Store) -> None:
    relay = Relay(store, lanes=1, moment=0, patience=0.01)
    with ThreadPoolExecutor(2) as executor:
        puts = [executor.submit(relay.put, rider())]
        wait_until(lambda: store.begun == 1, "the first batch")
        puts.append(executor.submit(relay.put, rider()))
        wait_until(lambda: store.begun == 2, "the second batch")
        store.may_go_on.release(2)
        for put in puts:
            put.result(30)
    assert [len(batch) for batch in store.batches] == [1, 1]


def test_what_goes_wrong_with_one_is_raised_for_that_one(store: Store) -> None:
    def fail(batch: list[Rider]) -> None:
        for one in batch:
            one.done, one.error = True, ValueError("no")

    relay = Relay(fail, lanes=1, moment=0, patience=60)
    with pytest.raises(ValueError, match="no"):
        relay.put(rider())


def test_an_interrupt_of_the_one_that_stores_is_not_one_of_the_others(store: Store) -> None:
    interrupts = [KeyboardInterrupt()]

    def store_or_end(batch: list[Rider]) -> None:
        if len(batch) > 1 and interrupts:
            raise interrupts.pop()
        store(batch)

    relay = Relay(store_or_end, lanes=1, moment=0, patience=60)
    riders = [rider() for _ in range(6)]
    with ThreadPoolExecutor(6) as executor:
        puts = begin(relay, store, executor, riders)
        store.may_go_on.release(9)
        failures = [put.exception(30) for put in puts]
    assert [type(one) for one in failures if one] == [KeyboardInterrupt]
    assert [one.done for one in riders] == [failure is None for failure in failures]
    assert relay._leader is None


@pytest.mark.parametrize("lanes", [1, 3])
def test_many_threads_all_get_through(lanes: int) -> None:
    stored: list[Rider] = []

    def store(batch: list[Rider]) -> None:
        time.sleep(0.0005)
        for one in batch:
            stored.append(one)
            one.done = True

    relay = Relay(store, lanes=lanes, moment=0.0003, patience=0.002)

    def load(seed: int) -> None:
        for n in range(100):
            relay.put(rider(is_patient=(n + seed) % 2 == 0))

    with ThreadPoolExecutor(16) as executor:
        list(executor.map(load, range(16), timeout=60))
    assert len(stored) == len(set(map(id, stored))) == 1600
    assert (relay._leader, len(relay._queue), relay._batches) == (None, 0, {})
