"""A primary that is killed under load takes nothing with it that was acknowledged."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from checking import checkpoint, config, put
from forkpoint import MongoDBSaver, ThreadDeleted, ThreadExists
from servers import PATIENCE_SECONDS, ReplicaSet, wait_until
from stores import MongoStore

if TYPE_CHECKING:
    from typing_extensions import Self

WRITERS = 3
LENGTH = 100  # of the threads that are copied: what is written at a time stays the same


def saver_of(uri: str, name: str) -> MongoDBSaver:
    """Return a saver that waits for a new primary for as long as it takes a busy machine."""
    patience = int(1000 * PATIENCE_SECONDS)
    return MongoDBSaver.from_conn_string(uri, db_name=name, serverSelectionTimeoutMS=patience)


class Load:
    """Writers, each on a thread of its own, and what they were told is stored."""

    def __init__(self, saver: MongoDBSaver) -> None:
        self._saver = saver
        self._is_over = threading.Event()
        self._goes_on = threading.Event()
        self._goes_on.set()
        self.acknowledged: dict[str, dict[str, int]] = {}
        self.written: set[tuple[str, str, int]] = set()
        self._failures: list[Exception] = []
        works: list[Callable[[int], None]] = [self._sync, self._sync, self._async]
        self._threads = [
            threading.Thread(target=self._guarded, args=(works[n % len(works)], n), daemon=True)
            for n in range(WRITERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._goes_on.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a writer does not end"
        for failure in self._failures:
            raise failure

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have the writers begin nothing new meanwhile."""
        self._goes_on.clear()
        yield
        self._goes_on.set()

    def wait_for_more(self) -> None:
        """Wait until some more puts have been acknowledged."""
        enough = self._count() + 2 * WRITERS
        wait_until(lambda: self._count() >= enough, "the writers to recover")

    def _count(self) -> int:
        return sum(map(len, list(self.acknowledged.values())))

    def _is_wanted(self) -> bool:
        self._goes_on.wait()
        return not self._is_over.is_set()

    def _guarded(self, work: Callable[[int], None], seed: int) -> None:
        try:
            work(seed)
        except Exception as error:  # noqa: BLE001 - raised where the load ends
            self._failures.append(error)

    def _values(self, seed: int, n: int) -> dict[str, Any]:
        return {"n": n, "text": f"text {n % 5} of {seed} " * 200}

    def _sync(self, seed: int) -> None:
        rng = random.Random(seed)
        thread_id, parent, n = "", None, 0
        while self._is_wanted():
            if n % LENGTH == 0:
                thread_id, parent = f"thread-{seed}-{n}", None
                mine = self.acknowledged.setdefault(thread_id, {})
            n += 1
            parent = put(self._saver, self._values(seed, n), parent=parent, thread_id=thread_id)
            mine[parent["configurable"]["checkpoint_id"]] = n
            self._saver.put_writes(parent, [("c", n), ("d", "x" * 3000)], "task")
            self.written.add((thread_id, parent["configurable"]["checkpoint_id"], n))
            if rng.randrange(20) == 0:
                copy = f"copy-{seed}-{n}"
                with suppress(ThreadExists):  # the answer to the first attempt was lost
                    self._saver.copy_thread(thread_id, copy)
                self._saver.prune([copy])
                self._saver.delete_thread(copy)

    def _async(self, seed: int) -> None:
        async def work() -> None:
            thread_id, parent, n = f"thread-{seed}", config(f"thread-{seed}"), 0
            mine = self.acknowledged.setdefault(thread_id, {})
            while self._is_wanted():
                n += 1
                made = checkpoint(self._values(seed, n))
                parent = await self._saver.aput(parent, made, {}, made["channel_versions"])
                mine[made["id"]] = n
                await self._saver.aput_writes(parent, [("c", n)], "task")
                self.written.add((thread_id, made["id"], n))

        asyncio.run(work())


def check(uri: str, name: str, load: Load) -> None:
    """Read everything back, through a client of its own, and look at all invariants."""
    with saver_of(uri, name) as saver:
        for thread_id, acknowledged in load.acknowledged.items():
            items = {
                item.config["configurable"]["checkpoint_id"]: item
                for item in saver.list(config(thread_id))
            }
            for checkpoint_id, n in acknowledged.items():
                assert checkpoint_id in items, f"put {n} of {thread_id} is lost"
                assert items[checkpoint_id].checkpoint["channel_values"]["n"] == n
                if (thread_id, checkpoint_id, n) in load.written:
                    assert ("task", "c", n) in (items[checkpoint_id].pending_writes or [])
        for thread_id in load.acknowledged:
            saver.prune([thread_id])  # collects what a lost bulk may have left, and counts again
        store = MongoStore(uri, name)
        assert store.problems(saver) == []
        store.close()


@pytest.fixture
def name() -> str:
    return f"failover-{time.time_ns()}"


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_primary_is_killed_under_load(kills: int, replica_set: ReplicaSet, name: str) -> None:
    rng = random.Random(1)
    with (
        saver_of(replica_set.uri, name) as saver,
        Load(saver) as load,
    ):
        for _ in range(kills):
            load.wait_for_more()
            time.sleep(rng.random() / 10)
            killed = replica_set.kill_primary()
            load.wait_for_more()
            killed.start()
            with load.paused():  # two members that are not behind: the next primary can go, too
                replica_set.wait_until_whole()
    check(replica_set.uri, name, load)


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_the_only_server_is_killed_and_started_again(kills: int, name: str) -> None:
    rng = random.Random(2)
    with ReplicaSet(is_mortal=True) as server:
        with (
            saver_of(server.uri, name) as saver,
            Load(saver) as load,
        ):
            for _ in range(kills):
                load.wait_for_more()
                time.sleep(rng.random() / 10)
                server.kill_primary().start()
            load.wait_for_more()
        check(server.uri, name, load)


def test_a_thread_that_is_deleted_while_the_primary_changes_stays_deleted(
    replica_set: ReplicaSet, name: str
) -> None:
    with saver_of(replica_set.uri, name) as saver:
        head = put(saver, {"text": "text " * 2000})
        killed = replica_set.kill_primary()
        saver.delete_thread("thread")
        with pytest.raises(ThreadDeleted):
            saver.put(head, checkpoint({"n": 2}), {}, {"n": 2})
        assert saver.get_tuple(config()) is None
        killed.start()
        replica_set.wait_until_whole()
        store = MongoStore(replica_set.uri, name)
        assert store.problems(saver) == []
        store.close()
