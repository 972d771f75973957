"""A store under what processes do to each other, in any order, mixed with ordinary load.

Savers come and go, others open and close the file, processes are forked, and backups are restored.
A model knows which checkpoints were acknowledged since the backup. After each step all of them are
there, there are no others, and nothing else is broken.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from children import Child
from forkpoint import ThreadExists, ThreadNotFound
from forkpoint.saver import ForkpointSaver
from stores import SqliteStore, Store
from support import checkpoint, config

STEPS = 12
TEXTS = [f"{n} " * 700 for n in range(4)]  # few, so that chunks are shared, die and come back


class Machine:
    """Two savers, what else happens to their store, and what there must be in it."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.savers = [store.saver(), store.saver()]
        self.threads: dict[str, Counter[str]] = {}
        """The ids of the checkpoints of each thread."""
        self.backup: tuple[Any, dict[str, Counter[str]]] | None = None
        self.made = 0

    @property
    def saver(self) -> ForkpointSaver:
        return self.random.choice(self.savers)

    def thread_id(self) -> str:
        return f"thread-{self.random.randrange(4)}"

    def acknowledge(self, thread_id: str, checkpoint_id: str) -> None:
        self.threads.setdefault(thread_id, Counter())[checkpoint_id] += 1

    # Load

    def put(self) -> None:
        thread_id = self.thread_id()
        new = checkpoint({"text": self.random.choice(TEXTS), "n": self.random.random()})
        self.saver.put(config(thread_id), new, {}, new["channel_versions"])
        self.acknowledge(thread_id, new["id"])

    def put_after_the_newest(self) -> None:
        """What did not change is inherited from the parent."""
        thread_id, saver = self.thread_id(), self.saver
        newest = saver.get_tuple(config(thread_id))
        if newest is not None:
            values = newest.checkpoint["channel_values"] | {"n": self.random.random()}
            new = checkpoint(values, {"text": 1, "n": 2})
            saver.put(newest.config, new, {}, {"n": 2})
            saver.put_writes(config(thread_id, new["id"]), [("c", TEXTS[0])], "task")
            self.acknowledge(thread_id, new["id"])

    def put_by_many_async_calls(self) -> None:
        thread_id, saver = self.thread_id(), self.saver
        made = [checkpoint({"text": text}) for text in TEXTS]

        async def put_all() -> None:
            await asyncio.gather(
                *(saver.aput(config(thread_id), new, {}, {"text": 1}) for new in made)
            )

        asyncio.run(put_all())
        for new in made:
            self.acknowledge(thread_id, new["id"])

    def delete(self) -> None:
        thread_id = self.thread_id()
        self.saver.delete_thread(thread_id)
        self.threads.pop(thread_id, None)

    def copy(self) -> None:
        source, target = self.thread_id(), self.thread_id()
        try:
            self.saver.copy_thread(source, target)
        except (ThreadExists, ThreadNotFound):
            assert target in self.threads or source not in self.threads
        else:
            self.threads[target] = Counter(self.threads[source])

    # What processes do

    def reopen(self) -> None:
        number = self.random.randrange(2)
        self.savers[number].close()
        self.savers[number] = self.store.saver()

    def open_and_close_another(self) -> None:
        with self.store.saver() as other:
            other.setup()

    def open_plainly(self) -> None:
        if isinstance(self.store, SqliteStore):
            Child(partial(use_plainly, self.store)).join()

    def fork_a_child_that_puts(self) -> None:
        saver, made = self.saver, [(self.thread_id(), checkpoint({"text": t})) for t in TEXTS[:2]]

        def work() -> None:
            for thread_id, new in made:
                saver.put(config(thread_id), new, {}, {"text": 1})
            if self.random.random() < 0.5:
                saver.close()

        with self.load() as acknowledged:
            Child(work).join()
        for thread_id, new in made + acknowledged:
            self.acknowledge(thread_id, new["id"])

    @contextmanager
    def load(self) -> Iterator[list[Any]]:
        """Put by another thread meanwhile."""
        acknowledged: list[Any] = []
        is_over = threading.Event()
        saver = self.saver

        def work() -> None:
            while not is_over.is_set():
                new = checkpoint({"text": TEXTS[0]})
                saver.put(config("busy"), new, {}, {"text": 1})
                acknowledged.append(("busy", new))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield acknowledged
        finally:
            is_over.set()
            thread.join()

    def back_up(self) -> None:
        if isinstance(self.store, SqliteStore):
            self.made += 1
            path = self.store.path.with_name(f"backup-{self.made}.db")
            copy_database(self.store.path, path)
            self.backup = path, {name: Counter(ids) for name, ids in self.threads.items()}

    def restore(self) -> None:
        if self.backup is not None and isinstance(self.store, SqliteStore):
            path, threads = self.backup
            restore = self.random.choice([restore_by_rename, restore_in_place, copy_database])
            Child(partial(restore, path, self.store.path)).join()
            self.backup = None
            self.threads = threads

    # What must be true

    def check(self) -> None:
        for saver in (self.saver, self.store.saver()):
            seen: dict[str, Counter[str]] = {}
            for found in saver.list(None):
                place = found.config["configurable"]
                seen.setdefault(place["thread_id"], Counter())[place["checkpoint_id"]] += 1
            assert seen == self.threads
        assert self.store.problems(saver) == []
        saver.close()

    def close(self) -> None:
        for saver in self.savers:
            saver.close()


def use_plainly(store: SqliteStore) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection.close()


def copy_database(source: Any, target: Any) -> None:
    """What the `.backup` and `.restore` of the SQLite shell do."""
    connections = [sqlite3.connect(path) for path in (source, target)]
    connections[0].backup(connections[1])
    for connection in connections:
        connection.close()


def restore_by_rename(backup: Any, path: Any) -> None:
    backup.rename(path)


def restore_in_place(backup: Any, path: Any) -> None:
    path.write_bytes(backup.read_bytes())
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


STEPS_OF: list[Callable[[Machine], None]] = [
    Machine.put,
    Machine.put,
    Machine.put_after_the_newest,
    Machine.put_after_the_newest,
    Machine.put_by_many_async_calls,
    Machine.delete,
    Machine.copy,
    Machine.reopen,
    Machine.open_and_close_another,
    Machine.open_plainly,
    Machine.fork_a_child_that_puts,
    Machine.back_up,
    Machine.restore,
]


def run(store: Store, seed: int) -> None:
    machine = Machine(store, seed)
    taken = []
    try:
        for _ in range(STEPS):
            step = machine.random.choice(STEPS_OF)
            taken.append(step.__name__)
            step(machine)
            machine.check()
    except BaseException as error:
        raise AssertionError(f"with seed {seed}, after {', '.join(taken)}") from error
    finally:
        machine.close()


def test_whatever_processes_do_nothing_is_lost(new_store: Callable[[], Store]) -> None:
    for seed in range(new_store().times(5)):
        run(new_store(), seed)


@pytest.mark.slow
def test_whatever_processes_do_nothing_is_lost_in_many_rounds(
    new_store: Callable[[], Store],
) -> None:
    for seed in range(1000, 2000):
        store = new_store()
        run(store, seed)
        store.close()
