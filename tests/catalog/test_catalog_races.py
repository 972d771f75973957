"""Many who use the catalog at once: no error, nothing twice, nothing skipped, nothing torn."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from checking import put
from forkpoint import Page, ThreadCatalog, ThreadExists, ThreadFilter, ThreadNotFound
from forkpoint.catalog.criteria import criteria_of, query_of
from forkpoint.catalog.cursors import cursor_of
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES
from processes import fork_server
from servers import PATIENCE_SECONDS, Mongod
from stores import MongoStore, SqliteStore, Store

PROCESSES = 8


@pytest.fixture(params=[16, pytest.param(200, marks=pytest.mark.slow)])
def rounds(request: pytest.FixtureRequest, store: Store) -> int:
    """How often each process does what costs nothing."""
    return store.times(request.param)


# Many processes


def get_or_create(catalog: ThreadCatalog, process: int, n: int) -> Any:
    return catalog.get_or_create(f"t{n}", label=str(process), metadata={"by": process})


def create(catalog: ThreadCatalog, process: int, n: int) -> Any:
    with contextlib.suppress(ThreadExists):
        return catalog.create(f"t{n}", metadata={"by": process})


def update(catalog: ThreadCatalog, process: int, n: int) -> Any:
    return catalog.update("t", metadata={f"{process}-{n}": 1})


def delete(catalog: ThreadCatalog, process: int, n: int) -> Any:
    catalog.get_or_create(f"t{n % 5}", tags=["a"])
    with contextlib.suppress(ThreadNotFound):
        catalog.delete(f"t{n % 5}")
    catalog.count(ThreadFilter(tags=["a"]))


def work(store: Store, call: Any, process: int, rounds: int, barrier: Any, done: Any) -> None:
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        barrier.wait()
        try:
            done.put((process, [call(catalog, process, n) for n in range(rounds)]))
        except Exception:
            done.put((process, []))
            raise


def race(store: Store, call: Any, rounds: int) -> dict[int, list[Any]]:
    """Call the same in many processes, and return what each got."""
    context = fork_server()
    barrier, done = context.Barrier(PROCESSES, timeout=PATIENCE_SECONDS), context.Queue()
    workers = [
        context.Process(target=work, args=(store, call, process, rounds, barrier, done))
        for process in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    got = dict(done.get(timeout=PATIENCE_SECONDS) for _ in workers)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    return got


def test_a_thread_that_many_processes_ask_for_is_made_once(
    store: Store, saver: ForkpointSaver, rounds: int
) -> None:
    got = race(store, get_or_create, rounds)
    threads_by_id = {thread.thread_id: thread for thread in ThreadCatalog(saver).walk()}
    assert threads_by_id.keys() == {f"t{n}" for n in range(rounds)}
    for threads in got.values():
        assert threads == [threads_by_id[f"t{n}"] for n in range(rounds)]
    assert ThreadCatalog(saver).count() == store.count("threads") == rounds
    assert store.problems(saver) == []


def test_of_many_processes_that_make_a_thread_one_does(
    store: Store, saver: ForkpointSaver, rounds: int
) -> None:
    rounds = max(rounds // 8, 1)
    got = race(store, create, rounds)
    for n in range(rounds):
        (new_thread,) = [threads[n] for threads in got.values() if threads[n] is not None]
        assert ThreadCatalog(saver).get(f"t{n}") == new_thread
    assert store.problems(saver) == []


def test_updates_by_many_processes_are_all_kept(
    store: Store, saver: ForkpointSaver, rounds: int
) -> None:
    rounds = max(rounds // 8, 1)
    ThreadCatalog(saver).create("t")
    race(store, update, rounds)
    thread = ThreadCatalog(saver).get("t")
    assert thread is not None
    keys = {f"{process}-{n}" for process in range(PROCESSES) for n in range(rounds)}
    assert thread.metadata.keys() == keys
    assert store.problems(saver) == []


@pytest.mark.in_turns
def test_threads_that_are_made_and_deleted_all_the_time_leave_nothing(
    store: Store, saver: ForkpointSaver, rounds: int
) -> None:
    race(store, delete, max(rounds // 8, 1))
    catalog = ThreadCatalog(saver)
    for thread in list(catalog.walk()):
        catalog.delete(thread.thread_id)
    assert catalog.count() == store.count("threads") == 0
    assert store.problems(saver) == []


# Walks

THREADS = 40
KEPT = [f"t{n:03}" for n in range(THREADS)]


def fill(saver: ForkpointSaver) -> ThreadCatalog:
    catalog = ThreadCatalog(saver)
    for n, thread_id in enumerate(KEPT):
        catalog.create(
            thread_id,
            label="kept",
            tags=["kept", f"tag {n % 2}"],
            metadata={"list": [{"n": n % 3, "k": 1}], "kept": {}},
        )
    return catalog


@contextmanager
def writers(store: Store) -> Iterator[None]:
    """Four who change all threads, make others, and list what changed, until the end."""
    is_over = threading.Event()
    failures: list[Exception] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        try:
            with store.saver() as own:
                catalog = ThreadCatalog(own)
                graph = SHAPES["loop"].build(own)
                while not is_over.is_set():
                    change(rng, catalog, graph, rng.choice(KEPT))
        except Exception as error:  # noqa: BLE001 - it is raised below
            failures.append(error)

    running = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in running:
        writer.start()
    try:
        yield
    finally:
        is_over.set()
        for writer in running:
            writer.join()
    assert failures == []


def change(rng: random.Random, catalog: ThreadCatalog, graph: Any, thread_id: str) -> None:
    match rng.randrange(6):
        case 0:
            catalog.update(thread_id, metadata={"n": rng.random()})
        case 1:
            catalog.update(thread_id, tags=["kept", *rng.choice([["tag 0"], ["tag 1", "more"]])])
        case 2:
            catalog.search(limit=2)  # it lists what changed
        case 3:
            new_thread = catalog.create(tags=["kept", "tag 0"], metadata={"kept": {}})
            catalog.delete(new_thread.thread_id)
        case 4:
            with contextlib.suppress(Exception):  # two runs of a thread, which no lease keeps apart
                graph.invoke({"items": [1]}, {"configurable": {"thread_id": thread_id}})
        case _:
            put(catalog.saver, {"n": rng.random()}, thread_id=thread_id)


def walk(catalog: ThreadCatalog, thread_filter: ThreadFilter, **options: Any) -> Iterator[str]:
    cursor = None
    while True:
        page = catalog.search(thread_filter, cursor=cursor, **options)
        yield from (thread.thread_id for thread in page)
        if (cursor := page.next_cursor) is None:
            return


WAYS = {
    "ids": ThreadFilter(ids=KEPT),
    "any tags": ThreadFilter(tags=["kept"], any_tags=["tag 0", "tag 1"]),
    "a list in metadata": ThreadFilter(metadata={"list": [{"k": 1}]}),
    "something empty in metadata": ThreadFilter(label="kept", metadata={"kept": {}}),
}


def walks() -> Iterator[Any]:
    """Each way to find threads, in each order; in every run each way in one of them."""
    orders = ["updated_at", "status", "created_at"]
    for number, (way, sort_by) in enumerate(itertools.product(WAYS, orders)):
        marks = () if number in (0, 4, 8, 9) else pytest.mark.slow
        yield pytest.param(WAYS[way], sort_by, marks=marks, id=f"{way}-{sort_by}")


@pytest.mark.parametrize(("thread_filter", "sort_by"), list(walks()))
def test_a_walk_meets_each_thread_once_however_it_is_found(
    thread_filter: ThreadFilter, sort_by: str, saver: ForkpointSaver, store: Store
) -> None:
    catalog = fill(saver)
    with writers(store):
        for descending in (True, False):
            thread_ids = list(
                walk(catalog, thread_filter, sort_by=sort_by, descending=descending, limit=7)
            )
            kept_ids = [thread_id for thread_id in thread_ids if thread_id in KEPT]
            assert sorted(kept_ids) == KEPT
            assert len(thread_ids) == len(set(thread_ids))
    assert store.problems(saver) == []


@pytest.mark.parametrize("sort_by", ["updated_at", "status", "created_at", "thread_id"])
def test_a_walk_whose_snapshot_expired_follows_the_present_order(
    sort_by: str, saver: ForkpointSaver, store: Store
) -> None:
    catalog = fill(saver)
    thread_filter = ThreadFilter(tags=["kept"])
    first = catalog.search(thread_filter, sort_by=sort_by, limit=25)
    assert first.next_cursor is not None
    cursor = first.next_cursor
    if isinstance(store, SqliteStore):
        second = catalog.search(thread_filter, sort_by=sort_by, limit=3, cursor=cursor)
        assert second.next_cursor is not None
        cursor = second.next_cursor
        first = Page([*first, *second])
        with store.connection() as connection:
            connection.execute("UPDATE forkpoint_snapshots SET began_at = 0")
    else:  # what the server kept of that moment is gone
        criteria = criteria_of(thread_filter)
        query = query_of(criteria, sort_by, True, 25)
        last = first.items[-1]
        place = getattr(last, sort_by)
        if sort_by.endswith("_at"):
            place = round(place.timestamp() * 1_000_000)
        long_ago = [1, 1]
        cursor = cursor_of(
            parts_of(saver).context.store_key,
            query._replace(after=(place, last.thread_id), snapshot=long_ago),
            criteria,
        )
    catalog.update(first.items[0].thread_id, metadata={"n": 1})
    catalog.count()
    rest = catalog.search(thread_filter, sort_by=sort_by, limit=1000, cursor=cursor)
    thread_ids = [thread.thread_id for thread in (*first, *rest)]
    assert sorted(thread_ids) == KEPT
    assert store.problems(saver) == []


@pytest.fixture
def standalone_store(standalone_server: Mongod) -> Iterator[MongoStore]:
    store = MongoStore(standalone_server.uri, f"test-{uuid4().hex}")
    yield store
    store.close()


@pytest.mark.parametrize(
    "sort_by",
    [
        "updated_at",
        "thread_id",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("status", "created_at")),
    ],
)
def test_a_walk_without_snapshots_follows_the_present_order(
    sort_by: str, standalone_store: MongoStore
) -> None:
    with standalone_store.saver() as saver:
        catalog = fill(saver)
        thread_ids = walk(catalog, ThreadFilter(tags=["kept"]), sort_by=sort_by, limit=7)
        kept_ids = [next(thread_ids) for _ in range(10)]
        catalog.update(kept_ids[0], metadata={"n": 1})
        catalog.create()
        assert sorted([*kept_ids, *thread_ids]) == KEPT
        assert standalone_store.problems(saver) == []


@pytest.mark.parametrize("sort_by", ["created_at", "thread_id"])
@pytest.mark.parametrize("change", ["rollback", "handover"])
def test_a_thread_whose_state_or_parent_changes_is_on_the_next_page(
    change: str, sort_by: str, saver: ForkpointSaver, store: Store
) -> None:
    catalog, ann = ThreadCatalog(saver), saver.for_owner("ann")
    put(ann, {"n": 2}, thread_id="t0", parent=put(ann, {"n": 1}, thread_id="t0"))
    for number in range(1, 4):
        ann.copy_thread("t0", f"t{number}")
    options: dict[str, Any] = {"sort_by": sort_by, "descending": False}
    first = catalog.search(limit=2, **options)
    if change == "rollback":
        saver.rollback("t2")
    else:
        catalog.update("t0", owner="bob")
    rest = catalog.search(cursor=first.next_cursor, **options)
    assert [thread.thread_id for thread in (*first, *rest)] == ["t0", "t1", "t2", "t3"]
    assert store.problems(saver) == []


# Clones


@pytest.mark.in_turns
def test_a_clone_of_a_running_thread_is_of_one_moment(store: Store, saver: ForkpointSaver) -> None:
    graph = SHAPES["snapshots"].build(saver)
    at: Callable[[str], Any] = lambda thread_id: {"configurable": {"thread_id": thread_id}}  # noqa: E731
    graph.invoke({"log": ["start"]}, at("source"))
    is_over = threading.Event()

    def run() -> None:
        with store.saver() as own:
            running = SHAPES["snapshots"].build(own)
            while not is_over.is_set():
                running.invoke({"log": ["again"]}, at("source"))

    runner = threading.Thread(target=run)
    runner.start()
    catalog = ThreadCatalog(saver)
    try:
        clones = [catalog.clone("source", f"clone {n}") for n in range(10)]
    finally:
        is_over.set()
        runner.join()
    for clone in clones:
        history = list(saver.list(at(clone.thread_id)))
        assert clone.checkpoint_count == len(history)
        assert clone == catalog.get(clone.thread_id)
        values = graph.get_state(at(clone.thread_id)).values
        ended = graph.invoke(None, at(clone.thread_id))
        assert ended["log"][: len(values["log"])] == values["log"]
        assert ended["n"] % 4 == 0  # it went on from where it was to the end of that run
    assert store.problems(saver) == []


@pytest.mark.slow
def test_a_template_is_cloned_a_thousand_times_and_outlived(
    store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    SHAPES["tools"].build(saver).invoke(
        SHAPES["tools"].inputs[0], {"configurable": {"thread_id": "template"}}
    )
    catalog.update("template", tags=["template"], metadata={"plan": "pro"})
    chunks = store.count("chunks")
    for n in range(1000):
        catalog.clone("template", f"c{n}", tags=["clone"])
    assert store.count("chunks") == chunks
    cloned = ThreadFilter(source_thread_id="template", tags=["clone"], metadata={"plan": "pro"})
    assert catalog.count(cloned) == 1000
    assert len({thread.thread_id for thread in catalog.walk(cloned)}) == 1000
    catalog.delete("template")
    assert store.count("chunks") == chunks
    assert store.problems(saver) == []
    assert catalog.bulk_delete(ThreadFilter(tags=["clone"])) == 1000
    assert store.count("chunks") == 0
