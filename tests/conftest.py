from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from commands import Commands
from forkpoint.saver import ForkpointSaver
from servers import Mongod, ReplicaSet, RunningServer
from stores import MongoStore, SqliteStore, Store
from support import Api

BACKENDS = ["sqlite", "mongodb"]
WORLDS = ["sync", "async"]

settings.register_profile(  # no test is about time
    "forkpoint", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("forkpoint")


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker for each core: each takes seconds to begin."""
    usable = getattr(os, "sched_getaffinity", None)  # on Linux: maybe fewer than there are
    return len(usable(0)) if usable else os.cpu_count() or 1


def pytest_configure() -> None:
    """Let Ctrl-C be what it is on a terminal: in the background, a shell has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before those are taken away that are not to run
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave each test two of the four pairs of a backend and a world, and the others to `slow`.

    The two together have both backends and both worlds. Which two they are differs from test to
    test, and from case to case. Of those marked as `in_turns`, a case has one pair, or one backend.
    """
    cases: Counter[Any] = Counter()
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        backend = parameters.get("new_store")
        world = parameters.get("api", parameters.get("world"))
        if backend not in BACKENDS or "new_store" in _chosen(item):
            continue
        test = item.nodeid.partition("[")[0]
        case = len(test) + cases[test, backend, world]
        cases[test, backend, world] += 1
        is_left_out = False
        if world in WORLDS:
            is_left_out = (case + BACKENDS.index(backend) + WORLDS.index(world)) % 2 == 1
            case //= 2
        if item.get_closest_marker("in_turns"):
            is_left_out |= (case + BACKENDS.index(backend)) % 2 == 1
        if is_left_out:
            item.add_marker(pytest.mark.slow)


def _chosen(item: pytest.Item) -> str:
    """Return the parameters that a test itself chooses the values of."""
    return " ".join(str(mark.args[0]) for mark in item.iter_markers("parametrize"))


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[ReplicaSet | RunningServer]:
    """A replica set of one member: the smallest server that can do everything."""
    running = os.environ.get("FORKPOINT_TEST_MONGODB_URI")
    if running:
        yield RunningServer(running)
        return
    with ReplicaSet() as server:
        yield server


@pytest.fixture(scope="session")
def standalone_server() -> Iterator[Mongod]:
    """A server that is no member of a replica set, and so has no transactions."""
    with Mongod() as server:
        yield server


@pytest.fixture(scope="session")
def guarded_server() -> Iterator[ReplicaSet]:
    """A server on which users must authenticate."""
    with ReplicaSet(key="between members") as server:
        yield server


@pytest.fixture(scope="module")
def replica_set() -> Iterator[ReplicaSet]:
    """Three members, any of which a test may kill and start again."""
    with ReplicaSet(3, is_mortal=True) as server:
        yield server


@pytest.fixture(params=BACKENDS)
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Makes new stores of one backend."""
    with ExitStack() as made:

        def make() -> Store:
            store: Store
            if request.param == "sqlite":
                store = SqliteStore(tmp_path / f"{uuid4().hex}.db")
            else:
                server = request.getfixturevalue("mongo_server")
                store = MongoStore(server.uri, f"test-{uuid4().hex}")
            made.callback(store.close)
            return store

        yield make


@pytest.fixture
def mongo_store(mongo_server: ReplicaSet) -> Iterator[MongoStore]:
    """A store for what is about MongoDB only."""
    store = MongoStore(mongo_server.uri, f"test-{uuid4().hex}")
    yield store
    store.close()


@pytest.fixture
def commands() -> Commands:
    """Keeps the commands of a client that it is given to."""
    return Commands()


@pytest.fixture
def store(new_store: Callable[[], Store]) -> Store:
    return new_store()


@pytest.fixture
def saver(store: Store) -> Iterator[ForkpointSaver]:
    with store.saver() as saver:
        yield saver


@pytest.fixture(params=WORLDS)
def api(request: pytest.FixtureRequest, saver: ForkpointSaver) -> Api:
    return Api(saver, request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test that is about SQLite has its database."""
    return tmp_path / "checkpoints.db"
