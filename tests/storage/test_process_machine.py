"""A store under what processes do to each other, in any order, mixed with ordinary load.

Savers come and go, others open and close the file, processes are forked, calls are interrupted and
cancelled, backups are restored, and all is dropped. A model knows which checkpoints were
acknowledged since the backup. After each such event, and in the end, all of them are there with
what they said, there are no others, and nothing else is broken.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pymongo
import pytest

from checking import apart, checkpoint, config, id_of, value_of
from children import Child
from forkpoint import ThreadDeleted, ThreadExists, ThreadNotFound
from forkpoint.saver.saver import ForkpointSaver
from interrupting import InterruptAt
from stores import MongoStore, SqliteStore, Store

STEPS = 8
TEXTS = [f"{n} " * 700 for n in range(3)]  # few, so that chunks are shared, die and come back
BUSY = 3  # puts by another thread while a process is forked
INSTRUCTIONS = 1500  # of ours, at one of which a put is interrupted; most have fewer

Threads = dict[str, dict[str, Any]]
"""Of each thread its checkpoints, by their ids, and their values."""


class Machine:
    """Two savers, what else happens to their store, and what there must be in it."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.savers = [store.saver(), store.saver()]
        self.threads: Threads = {}
        self.deleted: dict[str, str] = {}
        """The newest checkpoints of threads that were deleted, and not forgotten by a restore."""
        self.backup: tuple[Any, Threads] | None = None

    @property
    def saver(self) -> ForkpointSaver:
        return self.random.choice(self.savers)

    def thread_id(self) -> str:
        return f"thread-{self.random.randrange(4)}"

    def new(self) -> Any:
        return checkpoint({"text": self.random.choice(TEXTS), "n": self.random.random()})

    def acknowledge(self, thread_id: str, new: Any) -> None:
        self.threads.setdefault(thread_id, {})[new["id"]] = new["channel_values"]

    def look_for(self, thread_id: str, new: Any) -> None:
        """Acknowledge a checkpoint whose put was interrupted, if it was stored."""
        if self.saver.get_tuple(config(thread_id, new["id"])) is not None:
            self.acknowledge(thread_id, new)

    # Load

    def put(self) -> None:
        thread_id, new = self.thread_id(), self.new()
        self.saver.put(config(thread_id), new, {}, new["channel_versions"])
        self.acknowledge(thread_id, new)

    def put_after_the_newest(self) -> None:
        """What did not change is inherited from the parent."""
        thread_id, saver = self.thread_id(), self.saver
        newest = saver.get_tuple(config(thread_id))
        assert (newest is None) == (thread_id not in self.threads)
        if newest is not None:
            values = newest.checkpoint["channel_values"] | {"n": self.random.random()}
            new = checkpoint(values, {"text": 1, "n": 2})
            saver.put(newest.config, new, {}, {"n": 2})
            saver.put_writes(config(thread_id, new["id"]), [("c", TEXTS[0])], "task")
            self.acknowledge(thread_id, new)

    def put_by_many_async_calls(self) -> None:
        thread_id, saver = self.thread_id(), self.saver
        made = [self.new() for _ in range(3)]

        async def put_all() -> None:
            await asyncio.gather(
                *(saver.aput(config(thread_id), new, {}, new["channel_versions"]) for new in made)
            )

        asyncio.run(put_all())
        for new in made:
            self.acknowledge(thread_id, new)

    def put_after_what_was_deleted(self) -> None:
        if self.deleted:
            thread_id = self.random.choice(sorted(self.deleted))
            head = self.deleted[thread_id]
            if head not in self.threads.get(thread_id, {}):  # it may have been copied back
                new = self.new()
                with pytest.raises(ThreadDeleted):
                    self.saver.put(config(thread_id, head), new, {}, new["channel_versions"])

    def delete(self) -> None:
        thread_id = self.thread_id()
        self.saver.delete_thread(thread_id)
        deleted = self.threads.pop(thread_id, None)
        if deleted is not None:
            self.deleted[thread_id] = max(deleted)

    def trim(self) -> None:
        thread_id = self.thread_id()
        try:
            self.saver.trim(thread_id, 2)
        except ThreadNotFound:
            assert thread_id not in self.threads
        else:
            kept = self.threads[thread_id]
            self.threads[thread_id] = {id_: kept[id_] for id_ in sorted(kept)[-2:]}

    def copy(self) -> None:
        source, target = self.thread_id(), self.thread_id()
        try:
            self.saver.copy_thread(source, target)
        except (ThreadExists, ThreadNotFound):
            assert target in self.threads or source not in self.threads
        else:
            self.threads[target] = dict(self.threads[source])

    def fork(self) -> None:
        source, target = self.thread_id(), self.thread_id()
        try:
            self.saver.fork(source, new_thread_id=target)
        except (ThreadExists, ThreadNotFound):
            assert target in self.threads or source not in self.threads
        else:
            head = max(self.threads[source])
            self.threads[target] = {head: self.threads[source][head]}

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
        """While another thread of this process puts."""
        saver, busy = self.saver, self.saver
        made = [(self.thread_id(), self.new()) for _ in range(2)]
        by_another = [("busy", self.new()) for _ in range(BUSY)]
        closes = self.random.random() < 0.5

        def put_all(saver: ForkpointSaver, made: Sequence[tuple[str, Any]]) -> None:
            for thread_id, new in made:
                saver.put(config(thread_id), new, {}, new["channel_versions"])

        def work() -> None:
            put_all(saver, made)
            if closes:
                saver.close()

        thread = threading.Thread(target=put_all, args=(busy, by_another))
        thread.start()
        try:
            Child(work).join()
        finally:
            thread.join()
        for thread_id, new in made + by_another:
            self.acknowledge(thread_id, new)

    @apart
    def interrupt_a_put(self) -> None:
        thread_id, new, saver = self.thread_id(), self.new(), self.saver
        try:
            with InterruptAt(self.random.randrange(1, INSTRUCTIONS)):
                saver.put(config(thread_id), new, {}, new["channel_versions"])
        except KeyboardInterrupt:
            self.look_for(thread_id, new)
        else:
            self.acknowledge(thread_id, new)

    def cancel_a_put(self) -> None:
        thread_id, new, saver = self.thread_id(), self.new(), self.saver
        pauses = self.random.randrange(4)

        async def cancel() -> None:
            put = asyncio.ensure_future(
                saver.aput(config(thread_id), new, {}, new["channel_versions"])
            )
            for _ in range(pauses):
                await asyncio.sleep(0)
            put.cancel()
            await asyncio.wait([put])

        asyncio.run(cancel())
        self.look_for(thread_id, new)

    # What happens to the store

    def back_up(self) -> None:
        copied = {thread_id: dict(rows) for thread_id, rows in self.threads.items()}
        self.backup = BACK_UPS[type(self.store)](self.store), copied

    def restore(self) -> None:
        if self.backup is not None:
            content, self.threads = self.backup
            self.backup = None
            self.deleted = {}
            self.random.choice(RESTORES[type(self.store)])(self.store, content)

    def drop(self) -> None:
        self.threads, self.deleted = {}, {}
        self.random.choice(DROPS[type(self.store)])(self.store)

    # What must be true

    def check(self, saver: ForkpointSaver) -> None:
        listed = list(saver.list(None))
        seen: Threads = {}
        for found in listed:
            thread_id = found.config["configurable"]["thread_id"]
            seen.setdefault(thread_id, {})[id_of(found)] = value_of(found)
        assert seen == self.threads
        assert len(listed) == sum(map(len, seen.values()))
        assert self.store.problems() == []

    def close(self) -> None:
        for saver in self.savers:
            saver.close()


# SQLite: in a child wherever a file is closed that is not closed by SQLite


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


def back_up_file(store: Any) -> Any:
    path = store.path.with_name(f"backup of {store.path.name}")
    copy_database(store.path, path)
    return path


def restore_by_backup(store: Any, backup: Any) -> None:
    Child(partial(copy_database, backup, store.path)).join()


def restore_by_rename(store: Any, backup: Any) -> None:
    backup.rename(store.path)
    remove_logs(store)


def restore_in_place(store: Any, backup: Any) -> None:
    def work() -> None:
        shutil.copyfile(backup, store.path)
        remove_logs(store)

    Child(work).join()


def remove(store: Any) -> None:
    store.path.unlink(missing_ok=True)
    remove_logs(store)


def remove_logs(store: Any) -> None:
    for suffix in ("-wal", "-shm"):
        store.path.with_name(store.path.name + suffix).unlink(missing_ok=True)


# MongoDB


def back_up_collection(store: Any) -> Any:
    return list(store.collection.find()), store.collection.index_information()


def restore_collection(store: Any, backup: Any) -> None:
    store.restore_dump(*backup)


def restore_documents(store: Any, backup: Any) -> None:
    store.restore_dump(backup[0])


def drop_collection(store: Any) -> None:
    store.collection.drop()


def drop_database(store: Any) -> None:
    store.collection.database.client.drop_database(store.name)


BACK_UPS: dict[type, Any] = {SqliteStore: back_up_file, MongoStore: back_up_collection}
RESTORES: dict[type, list[Any]] = {
    SqliteStore: [restore_by_rename, restore_in_place, restore_by_backup],
    MongoStore: [restore_collection, restore_documents],
}
DROPS: dict[type, list[Any]] = {
    SqliteStore: [remove],
    MongoStore: [drop_collection, drop_database],
}

LOAD: list[Callable[[Machine], None]] = [
    *[Machine.put, Machine.put_after_the_newest] * 3,
    Machine.put_by_many_async_calls,
    Machine.put_after_what_was_deleted,
    *[Machine.delete] * 2,
    Machine.trim,
    Machine.copy,
    Machine.fork,
]
EVENTS: list[Callable[[Machine], None]] = [
    Machine.reopen,
    Machine.open_and_close_another,
    Machine.open_plainly,
    Machine.fork_a_child_that_puts,
    Machine.interrupt_a_put,
    Machine.cancel_a_put,
    *[Machine.back_up, Machine.restore] * 2,
    Machine.drop,
]


def run(store: Store, seed: int) -> None:
    machine = Machine(store, seed)
    taken = []
    try:
        for _ in range(STEPS):
            step = machine.random.choice(LOAD + EVENTS)
            taken.append(step.__name__)
            step(machine)
            if step in EVENTS:
                machine.check(machine.saver)
        with store.saver() as reader:
            machine.check(reader)
        machine.drop()
    except BaseException as error:
        raise AssertionError(f"with seed {seed}, after {', '.join(taken)}") from error
    finally:
        machine.close()


@pytest.fixture
def room_for_drops(store: Store) -> Iterator[None]:
    """Have a server keep the files of what is dropped for a minute only.

    By default it does for five, and ends when it has more files open than a process may have.
    """
    if not isinstance(store, MongoStore):
        yield
        return
    name = "minSnapshotHistoryWindowInSeconds"
    with pymongo.MongoClient[Any](store.uri) as client:
        before = client.admin.command("getParameter", 1, **{name: 1})[name]
        client.admin.command("setParameter", 1, **{name: 60})
        yield
        client.admin.command("setParameter", 1, **{name: before})


@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_processes_do_nothing_is_lost(
    times: int, store: Store, room_for_drops: None
) -> None:
    """On MongoDB, where a round takes four times as long, by default not quite as often."""
    for seed in range(times if times > 50 or isinstance(store, SqliteStore) else 20):
        run(store, seed)
