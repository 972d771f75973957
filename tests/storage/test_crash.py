"""A process that is killed at any moment leaves a whole store, with all it acknowledged."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import config, put
from processes import fork_server
from stores import Store

ACKNOWLEDGED = 24  # at most, before a process is killed


def load(store: Store, seed: int, acknowledged: Any) -> None:
    """Put, write, copy, prune and delete until killed, and say what was acknowledged."""
    rng = random.Random(seed)
    saver = store.saver()
    messages = [HumanMessage(f"{seed} {n} " * 60, id=f"{seed}-{n}") for n in range(200)]
    mine = f"thread-{seed}"
    parent = None
    os.write(acknowledged, b"ready\n")
    for n in range(100_000):
        values = {"messages": messages[: 50 + n % 150], "n": n, "text": f"{n} " * 800}
        parent = put(saver, values, parent=parent, thread_id=mine)
        os.write(acknowledged, f"put {parent['configurable']['checkpoint_id']} {n}\n".encode())
        saver.put_writes(parent, [("c", [n] * 500), ("d", n)], "task")
        os.write(acknowledged, f"write {parent['configurable']['checkpoint_id']} {n}\n".encode())
        match rng.randrange(8):
            case 0:
                saver.copy_thread(mine, f"copy-{seed}-{n}")
            case 1:
                saver.delete_thread(f"copy-{seed}-{rng.randrange(n + 1)}")
            case 2:
                copy = f"pruned-{seed}-{n}"
                saver.copy_thread(mine, copy)
                saver.prune([copy])


@pytest.mark.parametrize("rounds", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_process_killed_at_random_points_loses_nothing_that_it_acknowledged(
    rounds: int, store: Store
) -> None:
    context = fork_server()
    rng = random.Random(1)
    kills = store.times(rounds)
    killed = acknowledged = 0
    for seed in range(kills):
        reading, writing = os.pipe()
        process = context.Process(target=load, args=(store, seed, FileDescriptor(writing)))
        process.start()
        os.close(writing)
        log = os.fdopen(reading)
        assert log.readline() == "ready\n"
        said = [log.readline() for _ in range(rng.randrange(1, ACKNOWLEDGED))]
        time.sleep(rng.random() * 0.005)  # so that it is within a call
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store.await_end_of(process.pid)
        killed += process.exitcode == -signal.SIGKILL
        said += log.readlines()
        lines = [line.split() for line in said if line.endswith("\n")]
        log.close()

        with store.saver() as saver:
            saver.setup()  # it may have been killed in the middle of that
            for kind, checkpoint_id, n in lines:
                found = saver.get_tuple(config(f"thread-{seed}", checkpoint_id))
                assert found is not None, f"put {n} of process {seed} was acknowledged and is lost"
                assert found.checkpoint["channel_values"]["n"] == int(n)
                if kind == "write":
                    assert ("task", "d", int(n)) in (found.pending_writes or [])
                acknowledged += 1
            assert store.problems(saver if seed % 20 == 0 else None, after_crash=True) == []
            store.outlast()
            for thread in store.threads():  # so that the next round is as quick
                if thread.is_live:
                    saver.delete_thread(thread.thread_id)
            assert store.problems() == []
    assert killed == kills
    assert acknowledged >= kills


class FileDescriptor(int):
    """A file descriptor that is passed to a child process."""

    def __reduce__(self) -> Any:
        from multiprocessing.reduction import DupFd

        return _detach, (DupFd(int(self)),)


def _detach(passed: Any) -> int:
    return int(passed.detach())
