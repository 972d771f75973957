from __future__ import annotations

import gc
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from checking import Api
from commands import Commands
from forkpoint.saver.saver import ForkpointSaver
from servers import MEMORY, Mongod, ReplicaSet, RunningServer
from stores import MongoStore, SqliteStore, Store

BACKENDS = ["sqlite", "mongodb"]
WORLDS = ["sync", "async"]
MEMORY_BYTES = 2 << 30
GARBAGE_OBJECTS = 5_000
SLOW_SECONDS = 4 * 3600  # after which a slow test hangs, however busy the machine is
ABOVE_STORAGE = ("tests/server/", "tests/cli/")
"""Where nothing knows which backend it has, which has tests of its own below."""
TURNS = [("sqlite", "sync"), ("mongodb", "async"), ("sqlite", "async"), ("mongodb", "sync")]

settings.register_profile(  # no test is about time
    "forkpoint", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("forkpoint")


def pytest_xdist_auto_num_workers() -> int:
    """Return a worker for each core, and one more, for tests wait for servers and processes."""
    usable = getattr(os, "sched_getaffinity", None)  # on Linux: maybe fewer than there are
    return 1 + (len(usable(0)) if usable else os.cpu_count() or 1)


def pytest_configure() -> None:
    """Have the files of tests in memory: SQLite waits for a disk, at each commit for milliseconds.

    And let Ctrl-C be what it is on a terminal: in the background, a shell has it ignored.
    """
    if MEMORY is not None and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Look for garbage neither in what is imported nor in the tests: it would take seconds.

    And in what the tests make not as often as Python does: what is kept would be looked at again
    and again. A test that is about what becomes garbage collects it itself.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(GARBAGE_OBJECTS)
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before those are taken away that are not to run
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `slow` what shows on another backend or in another world the same again.

    A test of one case has two of the four pairs of a backend and a world, which together have both
    backends and both worlds. Of a test of several cases, and of those marked as `in_turns`, each
    case has one pair, or one backend, or one world, as has a test of what is above the storage;
    with `on_each_backend` it has as many as if it were the only one. Which ones they are differs
    from test to test, and from case to case. Of tests that take `by_halves` every other two cases
    are left out, too: each case is one of several such tests, or much like those beside it. What is
    slow anyway takes as long as it takes.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS), append=False)
    items = [item for item in items if not item.get_closest_marker("slow")]
    counts = Counter(map(_place_of, items))
    cases: Counter[Any] = Counter()
    for item in items:
        if "new_store" in _chosen(item):
            continue
        test, backend, world = place = _place_of(item)
        case = len(test) + cases[place]
        cases[place] += 1
        if item.get_closest_marker("by_halves") and case // 2 % 2:
            item.add_marker(pytest.mark.slow)
            continue
        takes_turns = counts[place] > 1 or test.startswith(ABOVE_STORAGE)
        is_on_each = item.get_closest_marker("on_each_backend")
        if (takes_turns and not is_on_each) or item.get_closest_marker("in_turns"):
            turns = [TURNS[case % 4]]
        elif backend is None or world is None:
            continue
        else:
            turns = TURNS[:2] if case % 2 else TURNS[2:]
        pairs = [(backend or its_backend, world or its_world) for its_backend, its_world in turns]
        if not set(pairs) & set(turns):
            item.add_marker(pytest.mark.slow)


def _place_of(item: pytest.Item) -> tuple[str, str | None, str | None]:
    """Return the test that an item is a case of, its backend and its world, where it has them."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("new_store")
    world = parameters.get("api", parameters.get("world"))
    test = item.nodeid.partition("[")[0]
    return test, backend if backend in BACKENDS else None, world if world in WORLDS else None


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
