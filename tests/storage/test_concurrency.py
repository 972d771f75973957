"""Many processes and threads on one store: no error, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import checkpoint, config, put
from forkpoint import ThreadExists
from forkpoint.saver.saver import ForkpointSaver
from processes import fork_server
from servers import PATIENCE_SECONDS
from stores import Store

PROCESSES = 8


def same_thread(saver: ForkpointSaver, process: int, n: int) -> None:
    text = random.Random(f"{process}-{n}").randbytes(500).hex()
    put(saver, {"text": text, "who": [process, n]}, thread_id="same")


def distinct_threads(saver: ForkpointSaver, process: int, n: int) -> None:
    text = random.Random(f"{process}-{n}").randbytes(500).hex()
    put(saver, {"text": text, "who": [process, n]}, thread_id=f"thread-{process}")


def identical_content(saver: ForkpointSaver, process: int, n: int) -> None:
    text = random.Random(n).randbytes(500).hex()
    put(saver, {"text": text, "who": [process, n]}, thread_id="same")


WORKLOADS: dict[str, Callable[[ForkpointSaver, int, int], None]] = {
    work.__name__: work for work in (same_thread, distinct_threads, identical_content)
}


def run(store: Store, workload: str, process: int, puts: int, barrier: Any) -> None:
    with store.saver() as saver:
        barrier.wait()
        for n in range(puts):
            WORKLOADS[workload](saver, process, n)


@pytest.mark.parametrize("puts", [12, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_eight_processes_lose_nothing_and_store_each_chunk_once(
    store: Store, workload: str, puts: int
) -> None:
    puts = store.times(puts)
    context = fork_server()
    barrier = context.Barrier(PROCESSES, timeout=PATIENCE_SECONDS)
    workers = [
        context.Process(target=run, args=(store, workload, process, puts, barrier))
        for process in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    with store.saver() as saver:
        stored = [found.checkpoint["channel_values"]["who"] for found in saver.list(None)]
        assert sorted(stored) == [[p, n] for p in range(PROCESSES) for n in range(puts)]
    assert store.problems() == []
    shared = workload == "identical_content"
    assert store.count("chunks") == (puts if shared else PROCESSES * puts)


@pytest.mark.parametrize("rounds", [12, pytest.param(40, marks=pytest.mark.slow)])
async def test_sync_threads_and_async_tasks_share_one_saver(
    rounds: int, saver: ForkpointSaver, store: Store
) -> None:
    messages = [HumanMessage("x" * 400, id=str(n)) for n in range(60)]

    def sync_work(name: str) -> None:
        parent = None
        for n in range(rounds):
            parent = put(saver, {"messages": messages[:n]}, parent=parent, thread_id=name)
            saver.put_writes(parent, [("c", n)], "task")

    async def async_work(name: str) -> None:
        parent = config(name)
        for n in range(rounds):
            made = checkpoint({"messages": messages[:n]})
            parent = await saver.aput(parent, made, {}, {"messages": 1})
            await saver.aput_writes(parent, [("c", n)], "task")
            await saver.aget_tuple(config(name))

    threads = [threading.Thread(target=sync_work, args=(f"sync-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.gather(*(async_work(f"async-{n}") for n in range(8)))
    for thread in threads:
        thread.join()

    found = list(saver.list(None))
    assert len(found) == 12 * rounds
    assert all(len(one.pending_writes or []) == 1 for one in found)
    assert store.problems(saver) == []


@pytest.mark.parametrize("rounds", [4, pytest.param(15, marks=pytest.mark.slow)])
def test_deleting_and_copying_while_others_write_breaks_nothing(store: Store, rounds: int) -> None:
    """One family, in which chunks die and come back all the time."""
    errors: list[BaseException] = []
    with store.saver() as saver:
        put(saver, {"text": "seed " * 500}, thread_id="root")

        def work(seed: int) -> None:
            rng = random.Random(seed)
            with store.saver() as own:
                for round_ in range(rounds):
                    name = f"copy-{seed}-{round_}"
                    own.copy_thread("root", name)
                    head = own.get_tuple(config(name))
                    assert head is not None
                    text = f"text {rng.randrange(3)} " * 500
                    stored = put(own, {"text": text}, parent=head.config, thread_id=name)
                    kept = checkpoint({"text": text, "n": 1}, {"text": 1, "n": 2})
                    own.put(stored, kept, {}, {"n": 2})
                    read = own.get_tuple(config(name))
                    assert read is not None
                    assert read.checkpoint["channel_values"]["text"] == text
                    if rng.randrange(4):
                        own.delete_thread(name)

        def guarded(seed: int) -> None:
            try:
                work(seed)
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert store.problems(saver) == []


async def test_of_several_copies_to_one_target_at_the_same_time_one_is_made(
    saver: ForkpointSaver, store: Store
) -> None:
    for name in ("one", "other"):
        put(saver, {"text": f"{name} " * 500}, thread_id=name)
    for round_ in range(4):
        target = f"copy-{round_}"
        copies = [saver.acopy_thread(("one", "other")[n % 2], target) for n in range(6)]
        results = await asyncio.gather(*copies, return_exceptions=True)
        assert results.count(None) == 1
        assert sum(isinstance(result, ThreadExists) for result in results) == 5
    assert store.count("threads") == 6
    assert store.problems(saver) == []
