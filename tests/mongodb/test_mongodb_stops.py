"""Operations that the server stops in the middle: a record always agrees with its checkpoints."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymongo
import pytest
from pymongo.errors import OperationFailure, PyMongoError
from test_mongodb_faults import METHODS, fill

from checking import config, put
from forkpoint import ForkpointError, MongoDBSaver, ThreadCatalog
from servers import PATIENCE_SECONDS, ReplicaSet, wait_until
from stores import MongoStore

HANG = "hangDuringBatchUpdate"  # the server's own name for a pause before a statement
WRITING = [method for method in METHODS if method not in ("get_tuple", "list")]
QUICK = {("put", False), ("first put", True), ("put_writes", False), ("rollback", True)}


@contextmanager
def fail_point(admin: Any, name: str, mode: Any, **data: Any) -> Iterator[None]:
    admin.command({"configureFailPoint": name, "mode": mode, "data": data})
    try:
        yield
    finally:
        admin.command({"configureFailPoint": name, "mode": "off"})


def operations(admin: Any, **match: Any) -> list[Any]:
    """Return what the server is doing."""
    return [
        operation["opid"] for operation in admin.aggregate([{"$currentOp": {}}, {"$match": match}])
    ]


def killed_at(admin: Any, statement: int, call: Callable[[], object]) -> bool:
    """Kill an operation as it is about to execute an update; return whether it got that far."""
    is_over = threading.Event()

    def run() -> None:
        with suppress(ForkpointError):
            call()
        is_over.set()

    killed = False

    def is_done() -> bool:
        nonlocal killed
        for operation in operations(admin, failpointMsg=HANG):
            admin.command("killOp", op=operation)
            killed = True
        return killed or is_over.is_set()

    thread = threading.Thread(target=run, daemon=True)
    with fail_point(admin, HANG, {"skip": statement}, shouldCheckForInterrupt=True):
        thread.start()
        wait_until(is_done, "the operation")
    thread.join(PATIENCE_SECONDS)
    assert is_over.is_set(), "an operation that was killed does not end"
    return killed


def cases() -> Iterator[Any]:
    for method, owns_log in itertools.product(WRITING, (True, False)):
        if (method, owns_log) in QUICK:
            yield pytest.param(method, owns_log, 5, id=f"{method}-{owns_log}-some")
        yield pytest.param(method, owns_log, 1, marks=pytest.mark.slow)


@pytest.mark.by_halves
@pytest.mark.parametrize(("method", "owns_log", "every"), list(cases()))
def test_an_operation_is_killed_before_each_of_its_statements(
    method: str, owns_log: bool, every: int, mongo_server: Any, mongo_store: MongoStore
) -> None:
    """What was done of it counts, what was not does not, and it can be done again."""
    with pymongo.MongoClient(mongo_server.uri) as client:
        statement, killed, kills = random.randrange(every), True, 0
        while killed:
            mongo_store.collection.delete_many({})
            with mongo_store.saver() as saver, mongo_store.saver() as reader:
                head = fill(saver)  # type: ignore[arg-type]
                caller: Any = saver if owns_log else reader
                caller.get_tuple(config())
                call = METHODS[method]
                killed = killed_at(client.admin, statement, lambda: call(caller, head))  # noqa: B023
                at = f"before statement {statement}"
                assert mongo_store.problems(after_crash=True) == [], at
                put(saver, {"n": 9})  # nothing stands in the way, and a majority has it all
                assert mongo_store.problems(reader, after_crash=True) == [], at
                mongo_store.outlast()
                for thread in mongo_store.threads():
                    if thread.is_live:
                        reader.trim(thread.thread_id, 1)  # collects what was left, too
                assert mongo_store.problems(reader) == [], at
            statement += every
            kills += killed
    assert kills or method in ("put", "put_writes")


# At random


class Operations:
    """Threads that put, write, interrupt, trim, roll back, delete and search, by several savers."""

    THREADS = ("long", "trimmed", "deleted")

    def __init__(self, savers: list[MongoDBSaver], seed: int) -> None:
        self._savers = savers
        self._is_over = threading.Event()
        self._rng = random.Random(seed)
        self.acknowledged: dict[str, int] = {}
        """The checkpoints of the thread of which nothing is removed."""
        self.failures: list[BaseException] = []
        self._workers = [
            threading.Thread(target=self._work, args=[random.Random(f"{seed} {n}"), n], daemon=True)
            for n in range(2 * len(savers))
        ]

    def __enter__(self) -> Operations:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for worker in self._workers:
            worker.join(PATIENCE_SECONDS)
        assert not any(worker.is_alive() for worker in self._workers), "an operation hangs"
        for failure in self.failures:
            raise failure

    def _work(self, rng: random.Random, number: int) -> None:
        saver = self._savers[number % len(self._savers)]
        heads: dict[str, Any] = {}
        while not self._is_over.is_set():
            try:
                self._one(rng, saver, heads)
            except ForkpointError:
                heads.clear()
            except BaseException as error:  # noqa: BLE001 - raised where the load ends
                self.failures.append(error)
                return

    def _one(self, rng: random.Random, saver: MongoDBSaver, heads: dict[str, Any]) -> None:
        thread_id = rng.choice(self.THREADS)
        kind = rng.randrange(12)
        head = heads.get(thread_id)
        if kind < 6 or head is None:
            n = rng.randrange(10**9)
            values = {"n": n, "text": f"text {n % 7} " * rng.choice([1, 400])}
            heads[thread_id] = put(saver, values, parent=head, thread_id=thread_id)
            if thread_id == "long":
                self.acknowledged[heads[thread_id]["configurable"]["checkpoint_id"]] = n
        elif kind < 8:
            writes = rng.choice([[("c", 1)], [("c", "x" * 3000)], [("__interrupt__", 1)]])
            saver.put_writes(head, writes, f"task {rng.randrange(3)}")
        elif kind == 8:
            saver.get_tuple(config(thread_id))
        elif kind == 9:
            ThreadCatalog(saver).search()
        elif thread_id == "deleted":
            saver.delete_thread(thread_id)
        elif thread_id == "trimmed":
            heads.clear()
            saver.trim(thread_id, 5) if kind == 10 else saver.rollback(thread_id)


APPLICATION = "forkpoint-stops"
COMMANDS = ["insert", "update", "delete", "find", "aggregate", "findAndModify"]
DISTURBANCES: list[dict[str, Any]] = [
    {"closeConnection": True},
    *({"errorCode": code} for code in (50, 91, 112, 189, 262, 11601)),
    *({"writeConcernError": {"code": code, "errmsg": "not confirmed"}} for code in (64, 91, 11601)),
    {"blockConnection": True, "blockTimeMS": 30},
]


def disturb(servers: ReplicaSet, client: pymongo.MongoClient[Any], rng: random.Random) -> None:
    """Let some commands fail, kill some operations, or take the primary its role."""
    admin = client.admin
    with suppress(PyMongoError):
        kind = rng.randrange(10)
        if kind == 0:
            with suppress(OperationFailure):
                admin.command("replSetStepDown", 1, secondaryCatchUpPeriodSecs=1, force=True)
            servers.primary()
        elif kind == 1:
            admin.command("killAllSessions", [])
        elif kind < 5:
            with fail_point(
                admin, HANG, {"activationProbability": 0.1}, shouldCheckForInterrupt=True
            ):
                for _ in range(10):
                    for operation in operations(admin, failpointMsg=HANG):
                        admin.command("killOp", op=operation)
                    time.sleep(0.01)
        else:
            data = {"failCommands": COMMANDS, "appName": APPLICATION, **rng.choice(DISTURBANCES)}
            with fail_point(admin, "failCommand", {"activationProbability": 0.1}, **data):
                time.sleep(0.1)


def disturb_and_check(servers: ReplicaSet, seed: int, disturbances: int, savers: int) -> int:
    rng = random.Random(seed)
    store = MongoStore(servers.uri, f"stops-{time.time_ns()}")
    options = {"appname": APPLICATION, "heartbeatFrequencyMS": 500}
    members: list[Any] = [store.saver(**options) for _ in range(savers)]
    for member in members:
        member.setup()
    with servers.client() as client, Operations(members, seed) as load:
        for _ in range(disturbances):
            disturb(servers, client, rng)
    servers.wait_until_whole()
    for member in members:
        member.close()
    with store.saver() as saver:
        assert store.problems(saver, after_crash=True) == []
        stored = {item.checkpoint["id"]: item for item in saver.list(config("long"))}
        for checkpoint_id, n in load.acknowledged.items():
            assert stored[checkpoint_id].checkpoint["channel_values"]["n"] == n
        store.outlast()
        for thread_id in load.THREADS:
            put(saver, {"n": 1}, thread_id=thread_id)
            saver.trim(thread_id, 10**6)
        # Chunks of a thread that was deleted while they came may be left: nothing refers to them.
        assert store.problems(saver, after_crash=True) == []
    store.close()
    return len(load.acknowledged)


def test_operations_are_stopped_at_random(mongo_server: Any) -> None:
    assert disturb_and_check(mongo_server, seed=1, disturbances=8, savers=2) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_operations_of_a_replica_set_are_stopped_at_random(
    seed: int, replica_set: ReplicaSet
) -> None:
    assert disturb_and_check(replica_set, seed, disturbances=100, savers=3) > 0
