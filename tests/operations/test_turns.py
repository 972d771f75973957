"""Long work leaves the store to others between its transactions, and may end after any of them.

What is a turn long is made short here: so a small thread takes many of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosqlite
import pytest
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME
from langgraph.types import Interrupt
from test_removals import ALL_SHAPES, TELLING_SHAPES, Lab, each_shape, newest, returned_to

from checking import checkpoint, config, id_of, put, value_of
from forkpoint import RetentionPolicy, SqliteSaver, ThreadCatalog, ThreadExists, ThreadNotFound
from forkpoint.catalog.lease_operations import renew
from forkpoint.catalog.leases import Lease
from forkpoint.langgraph_rules import COUNTERS
from forkpoint.mongodb import gc as mongodb_gc
from forkpoint.mongodb.turns import Turns
from forkpoint.operations import remove_in_turns, remove_oldest, turns
from forkpoint.operations import rollback_plan as rolling_back
from forkpoint.runtime import runner
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite import chunks as sqlite_chunks
from forkpoint.sqlite import storage as sqlite_storage
from forkpoint.sqlite.statements import Statements
from gates import call_between_turns
from processes import fork_server
from servers import PATIENCE_SECONDS
from stores import KINDS, MongoStore, SqliteStore, Store

ROWS = 20

TEXTS = [f"{n} " * 800 for n in range(40)]


class Ended(BaseException):
    """The end of a process, as far as its transactions are concerned."""


@pytest.fixture(params=["sqlite", pytest.param("mongodb", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> str:
    """MongoDB has some tests of its own in every run; see `test_mongodb_turns`."""
    return str(request.param)


@pytest.fixture
def new_store(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], Store]]:
    with ExitStack() as made:

        def make() -> Store:
            store: Store = SqliteStore(tmp_path / f"{uuid4().hex}.db")
            if backend == "mongodb":
                server = request.getfixturevalue("mongo_server")
                store = MongoStore(server.uri, f"test-{uuid4().hex}")
            made.callback(store.close)
            return store

        yield make


@pytest.fixture
def copied(new_store: Callable[[], Store]) -> Callable[[Store], Store]:
    """Return a store with the same content."""

    def copy(store: Store) -> Store:
        target = new_store()
        if isinstance(store, MongoStore):
            assert isinstance(target, MongoStore)
            with target.saver() as saver:
                saver.setup()
            target.restore(list(store.collection.find()))
        elif isinstance(store, SqliteStore):
            assert isinstance(target, SqliteStore)
            from_, into = sqlite3.connect(store.path), sqlite3.connect(target.path)
            from_.backup(into)
            from_.close()
            into.close()
        return target

    return copy


def shorten(set_: Callable[[Any, str, int], None]) -> None:
    """Make turns short."""
    set_(Statements, "default_turn_rows", ROWS)
    set_(Turns, "turn_rows", ROWS)
    set_(mongodb_gc, "_READ_AT_ONCE", 1)
    set_(rolling_back, "PLACES_AT_ONCE", ROWS // 4)
    set_(sqlite_chunks, "CHUNKS_AT_ONCE", ROWS)


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch.setattr)


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Have a function called between two turns, with how many there were."""
    return partial(call_between_turns, monkeypatch)


EndedAfterEachTurn = Callable[[Callable[[ForkpointSaver], Any]], Iterator[Store]]


@pytest.fixture
def ended_after_each_turn(
    store: Store, copied: Callable[[Store], Store], short_turns: None, at_rest: Any
) -> EndedAfterEachTurn:
    """Yields copies of the store in which some work was ended: after one turn, after two, ..."""

    def stores(work: Callable[[ForkpointSaver], Any]) -> Iterator[Store]:
        for last in count(1):
            one = copied(store)

            def hook(number: int, last: int = last) -> None:
                if number == last:
                    raise Ended

            at_rest(hook)
            with one.saver() as saver:
                try:
                    work(saver)
                    return
                except Ended:
                    at_rest(lambda _: None)
            assert one.problems(after_crash=True) == []
            yield one

    return stores


def fill(saver: ForkpointSaver, thread_id: str = "long", length: int = 60) -> Any:
    """Make a thread that takes many turns, and a fork that shares chunks with it."""
    parent = None
    for n in range(length):
        values = {"text": TEXTS[n % len(TEXTS)], "messages": [f"{m} " * 50 for m in range(n)]}
        run = {"run_id": "odd" if n % 2 else "even"}
        parent = put(saver, values, parent=parent, thread_id=thread_id, metadata=run)
        saver.put_writes(parent, [("c", TEXTS[-n % len(TEXTS)]), ("d", n)], "task")
    saver.fork(config(thread_id), new_thread_id="fork" if thread_id == "long" else None)
    return parent


REMOVALS: dict[str, Callable[[ForkpointSaver], Any]] = {
    "purge": lambda saver: saver.purge("long"),
    "delete_thread": lambda saver: saver.delete_thread("long"),
    "delete_for_runs": lambda saver: saver.delete_for_runs(["odd", "even"]),
    "catalog.delete": lambda saver: ThreadCatalog(saver).delete("long"),
    "trim": lambda saver: saver.trim("long", 5),
    "prune": lambda saver: saver.prune(["long"]),
    "rollback": lambda saver: saver.rollback("long"),
    "rollback of many": lambda saver: saver.rollback("long", 20),
    "retention": lambda saver: ThreadCatalog(saver).apply_retention(
        RetentionPolicy(max_checkpoints_per_thread=5)
    ),
    "delete_for_runs of some": lambda saver: saver.delete_for_runs(["odd"]),
}


ALIKE = ("delete_thread", "catalog.delete", "retention")
"""Removals that go as others do once it is known what is to go."""
COPIES: dict[str, Callable[[ForkpointSaver], Any]] = {
    "copy_thread": lambda saver: saver.copy_thread("long", "copy"),
    "clone": lambda saver: ThreadCatalog(saver).clone("long", "copy", label="copied"),
}
LONG = {**REMOVALS, **COPIES}


def of_each_kind(operations: Collection[str]) -> Any:
    """Run a test with these operations, in every run with those that differ in how they go."""
    return pytest.mark.parametrize(
        "removal",
        [
            pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ())
            for name in operations
        ],
    )


@of_each_kind([name for name in LONG if name != "rollback"])  # that of one takes one turn
def test_others_read_write_and_renew_leases_between_two_turns(
    removal: str, saver: ForkpointSaver, short_turns: None, at_rest: Any
) -> None:
    fill(saver)
    other = put(saver, {"n": 1}, thread_id="other")
    seen: list[Any] = []

    def work(lease: Lease) -> None:
        put(saver, {"n": 2}, parent=other, thread_id="other")
        found = saver.get_tuple(config("other"))
        assert found is not None
        assert lease._grant is not None
        seen.extend((value_of(found)["n"], renew(parts_of(saver).context, lease._grant, 1_000_000)))

    with ThreadCatalog(saver).run("other") as lease:

        def hook(number: int) -> None:
            if number == 1:
                others = threading.Thread(target=work, args=(lease,))
                others.start()
                others.join(PATIENCE_SECONDS)
                assert not others.is_alive()

        at_rest(hook)
        LONG[removal](saver)
    assert seen == [2, True]


@pytest.mark.parametrize("of_aiosqlite", [False, True])
async def test_async_calls_have_their_turn_while_every_worker_has_a_long_removal(
    of_aiosqlite: bool, path: Path, short_turns: None
) -> None:
    """What is asked for later is done before the end of what takes long."""
    with SqliteSaver(path) as saver:
        for n in range(6):
            fill(saver, f"long-{n}", 12)
    connection = await aiosqlite.connect(path) if of_aiosqlite else None
    saver = SqliteSaver(path if connection is None else connection)
    await saver.asetup()
    ended: list[str] = []

    async def removed(thread_id: str) -> None:
        await saver.apurge(thread_id)
        ended.append(thread_id)

    async def written() -> None:
        await saver.aput(config("other"), checkpoint({"n": 1}), {}, {"n": 1})
        assert await saver.aget_tuple(config("other")) is not None
        ended.append("other")

    await asyncio.gather(*(removed(f"long-{n}") for n in range(6)), written())
    assert ended[0] == "other"
    await saver.aclose()
    if connection is not None:
        await connection.close()
    assert SqliteStore(path).problems() == []


async def test_a_sync_call_on_an_aiosqlite_connection_does_not_wait_for_a_long_one(
    path: Path, short_turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aiosqlite.connect(path) as connection:
        saver = SqliteSaver(connection)
        await asyncio.to_thread(fill, saver)
        ended: list[str] = []
        is_on_its_way, may_end = threading.Event(), threading.Event()
        sleep = asyncio.sleep

        async def rest(seconds: float) -> None:
            is_on_its_way.set()
            await (sleep(seconds) if may_end.is_set() else asyncio.to_thread(wait))

        def wait() -> None:
            assert may_end.wait(PATIENCE_SECONDS)

        monkeypatch.setattr(runner.asyncio, "sleep", rest)

        def purged() -> None:
            saver.purge("long")
            ended.append("purge")

        def written() -> None:
            is_on_its_way.wait(PATIENCE_SECONDS)
            put(saver, {"n": 1}, thread_id="other")
            ended.append("put")
            may_end.set()

        await asyncio.gather(asyncio.to_thread(purged), asyncio.to_thread(written))
        assert ended == ["put", "purge"]


@of_each_kind(LONG)
def test_a_transaction_changes_a_bounded_number_of_rows(
    removal: str, path: Path, short_turns: None
) -> None:
    saver = SqliteSaver(path)
    fill(saver)
    connection: sqlite3.Connection = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
    changes = [connection.total_changes]

    def trace(statement: str) -> None:
        if statement == "COMMIT":
            changes.append(connection.total_changes)

    connection.set_trace_callback(trace)
    LONG[removal](saver)
    connection.set_trace_callback(None)
    saver.close()
    in_each = [after - before for before, after in pairwise(changes)]
    assert sum(in_each) > (4 if removal == "rollback" else 80)
    assert max(in_each) <= 3 * ROWS


@of_each_kind(REMOVALS)
def test_a_removal_reports_the_same_however_many_turns_it_takes(
    removal: str, store: Store, copied: Callable[[Store], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.saver() as saver:
        fill(saver)
    copy = copied(store)
    with copy.saver() as saver:
        expected = REMOVALS[removal](saver)
    shorten(monkeypatch.setattr)
    with store.saver() as saver:
        assert REMOVALS[removal](saver) == expected
        if removal == "rollback":  # the chunks of one checkpoint can wait
            store.outlast()
            ThreadCatalog(saver).sweep()
    for kind in KINDS:
        assert store.count(kind) == copy.count(kind)
    assert store.problems() == []


COMPLETIONS: dict[str, Callable[[ForkpointSaver], object]] = {
    "the same thread": lambda saver: saver.delete_thread("long"),
    "a relative": lambda saver: saver.delete_thread("fork"),
    "a sweep": lambda saver: ThreadCatalog(saver).sweep(),
}


@pytest.mark.parametrize("completion", COMPLETIONS)
def test_a_removal_that_was_interrupted_after_any_turn_is_completed_later(
    completion: str, store: Store, ended_after_each_turn: EndedAfterEachTurn
) -> None:
    with store.saver() as saver:
        fill(saver, length=24)
    ended = 0
    for one in ended_after_each_turn(lambda saver: saver.purge("long")):
        ended += 1
        with one.saver() as saver:
            with pytest.raises(ThreadNotFound):
                saver.trim("long", 1)
            assert {id_of_thread(found) for found in saver.list(None)} == {"fork"}
            assert saver.get_tuple(config("fork")) is not None
            one.outlast()
            COMPLETIONS[completion](saver)
            assert one.problems(saver) == []
    assert ended > 7


@pytest.mark.parametrize(
    "removal", ["trim", "prune", "rollback of many", "delete_for_runs of some"]
)
def test_work_that_was_interrupted_after_any_turn_leaves_a_complete_thread(
    removal: str,
    store: Store,
    copied: Callable[[Store], Store],
    ended_after_each_turn: EndedAfterEachTurn,
) -> None:
    with store.saver() as saver:
        fill(saver, length=30)
        before = {id_of(found): found for found in saver.list(config("long"))}
    expected = copied(store)
    with expected.saver() as saver:
        REMOVALS[removal](saver)
        left = {id_of(found): found for found in saver.list(config("long"))}
    ended = 0
    for one in ended_after_each_turn(REMOVALS[removal]):
        ended += 1
        with one.saver() as saver:
            found = {id_of(found): found for found in saver.list(config("long"))}
            assert left.keys() <= found.keys()
            if removal == "rollback of many":  # by fewer steps
                steps = len(before) - len(found)
                assert found == (rolled_back(copied(store), steps) if steps else before)
                if steps < 20:
                    saver.rollback("long", 20 - steps)
                assert {id_of(one) for one in saver.list(config("long"))} == left.keys()
                saver.delete_thread("fork")
            else:
                assert all(found[id_] == before[id_] for id_ in found)
                REMOVALS[removal](saver)
                assert {id_of(one) for one in saver.list(config("long"))} == left.keys()
                one.outlast()
                ThreadCatalog(saver).sweep()
            assert one.problems(saver) == []
    assert ended > 2


def test_others_write_while_the_stats_of_a_long_thread_are_read(
    saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    fill(saver)
    before = ThreadCatalog(saver).stats("long")
    stored: list[Any] = []
    at_rest(lambda n: stored.append(put(saver, {"n": n}, thread_id="long" if n > 4 else "other")))
    during = ThreadCatalog(saver).stats("long")
    at_rest(lambda _: None)
    assert len(stored) > 4
    after = ThreadCatalog(saver).stats("long")
    assert before.checkpoints <= during.checkpoints <= after.checkpoints
    assert (before.writes, before.runs) == (during.writes, during.runs) == (120, 2)
    assert before.bytes_shared == during.bytes_shared == after.bytes_shared > 0
    assert before.bytes_stored <= during.bytes_stored <= after.bytes_stored


def rolled_back(store: Store, steps: int) -> dict[str, Any]:
    """Return a thread as it is when it was rolled back by some steps at once."""
    with pytest.MonkeyPatch.context() as patch, store.saver() as saver:
        patch.setattr(rolling_back, "PLACES_AT_ONCE", 1000)
        saver.rollback("long", steps)
        return {id_of(found): found for found in saver.list(config("long"))}


@pytest.mark.parametrize("steps", [1, 2])
@each_shape
def test_a_rollback_of_a_long_thread_reads_only_its_end_and_does_the_same(
    shape: str,
    steps: int,
    store: Store,
    copied: Callable[[Store], Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with store.saver() as saver:
        length = len(Lab(ALL_SHAPES[shape], saver).heads())
    copy = copied(store)
    with copy.saver() as saver:
        saver.rollback("thread", steps)
    for rows in (Statements, "default_turn_rows"), (Turns, "turn_rows"):
        monkeypatch.setattr(*rows, 3)
    monkeypatch.setattr(rolling_back, "PLACES_AT_ONCE", 3)
    if steps < length:  # else nothing is left, and all of it is read
        monkeypatch.delattr(remove_in_turns, "outlines")
    with store.saver() as saver:
        saver.rollback("thread", steps)
        assert left_in(store) == left_in(copy)
        saver.delete_thread("thread")
        assert store.problems(saver) == []


def test_a_rollback_of_all_of_a_long_thread_deletes_it(
    saver: ForkpointSaver, store: Store, short_turns: None
) -> None:
    head: Any = None
    for n in range(20):
        head = put(saver, {"n": n}, parent=head)
    assert saver.rollback("thread", 20) is None
    assert ThreadCatalog(saver).get("thread") is None
    assert store.problems(saver) == []


TRIMS: dict[str, Callable[[ForkpointSaver], Any]] = {
    "trim to 1": lambda saver: saver.trim("thread", 1),
    "trim to 2": lambda saver: saver.trim("thread", 2),
    "prune": lambda saver: saver.prune(["thread"]),
}


@pytest.mark.parametrize("trim", TRIMS)
@each_shape
def test_a_long_thread_is_trimmed_as_a_short_one_is(
    shape: str,
    trim: str,
    store: Store,
    copied: Callable[[Store], Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with store.saver() as saver:
        Lab(ALL_SHAPES[shape], saver)
    copy = copied(store)
    with copy.saver() as saver:
        expected = TRIMS[trim](saver)
    for rows in (Statements, "default_turn_rows"), (Turns, "turn_rows"):
        monkeypatch.setattr(*rows, 3)
    with store.saver() as saver:
        assert TRIMS[trim](saver) == expected
        assert left_in(store) == left_in(copy)
        assert store.problems(saver) == []


@pytest.mark.parametrize("trim", ["trim", "prune"])
def test_a_trim_knows_of_a_bounded_number_of_checkpoints_at_once(
    trim: str, saver: ForkpointSaver, short_turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(saver)
    role = type(removals_of(saver))
    remove_batch, sizes = role.remove_batch, []

    def remove(self: Any, thread: Any, part: Any, check: Any) -> Any:
        sizes.append(len(part.going))
        return remove_batch(self, thread, part, check)

    outlines = remove_in_turns.outlines

    def outline(*arguments: Any) -> Any:
        rows, rebuilds = yield from outlines(*arguments)
        sizes.append(len(rows))
        return rows, rebuilds

    monkeypatch.setattr(role, "remove_batch", remove)
    monkeypatch.setattr(remove_oldest, "_AT_ONCE", 10)
    monkeypatch.setattr(remove_in_turns, "outlines", outline)
    REMOVALS[trim](saver)
    assert (len(sizes) > 5, max(sizes)) == (True, 10)


def removals_of(saver: ForkpointSaver) -> Any:
    with parts_of(saver).context.storage.reading() as session:
        return session.removals


def left_in(store: Store) -> list[Any]:
    """Return the rows of a store, and what its record says of them."""
    rows = [sorted(map(repr, store.stored(kind))) for kind in ("checkpoints", "writes")]
    return [*rows, [(thread.checkpoint_count, thread.status) for thread in store.threads()]]


def test_a_rollback_keeps_what_is_rebuilt_from_a_checkpoint_that_is_not_seen(
    store: Store, short_turns: None
) -> None:
    with store.saver() as saver:
        head = put(saver, {"d": ["seed"]})
        for n in range(30):
            head = grown(saver, head, n)
        saver.trim("thread", 5)
        saver.rollback("thread")
        history = saver.get_delta_channel_history(config=config(), channels=["d"])["d"]
        assert [write[2] for write in history["writes"]] == [[n] for n in range(29)]
        assert store.problems(saver) == []


def test_a_rollback_keeps_a_checkpoint_from_which_an_older_one_is_rebuilt(
    saver: ForkpointSaver, store: Store, short_turns: None
) -> None:
    """So it is if the clocks of two hosts differ."""
    parent = fill(saver, "thread", 20)
    early = checkpoint({}, {"d": 2})
    seed = put(saver, {"d": ["seed"]}, parent=parent)
    saver.put_writes(seed, [("d", [1])], "task")
    late = saver.put(seed, early, {COUNTERS: {"d": [1, 1]}}, {"d": 2})
    assert id_of(late) < id_of(seed)
    saver.rollback("thread")
    history = saver.get_delta_channel_history(config=late, channels=["d"])["d"]
    assert (history["seed"], [write[2] for write in history["writes"]]) == (["seed"], [[1]])
    assert store.problems(saver) == []


def test_the_chunks_of_a_rollback_are_collected_when_there_are_enough_of_them(
    saver: ForkpointSaver, store: Store, short_turns: None
) -> None:
    parent = None
    for n in range(40):
        parent = put(saver, {"text": f"{n} " * 800}, parent=parent, thread_id="long")
    counts = [store.count("chunks")]
    for _ in range(5):
        saver.rollback("long")
        counts.append(store.count("chunks"))
    assert counts == [40, 40, 40, 40, 40, 35]
    saver.rollback("long")
    store.outlast()
    ThreadCatalog(saver).sweep()
    assert store.count("chunks") == 34
    assert store.problems(saver) == []


def test_retention_shows_meanwhile_that_it_goes_on(
    saver: ForkpointSaver, short_turns: None
) -> None:
    fill(saver)
    shown: list[Any] = []
    catalog = ThreadCatalog(saver)

    def show(result: Any) -> None:
        put(saver, {"n": 1}, thread_id=f"other-{len(shown)}")  # nothing is locked
        shown.append(result)

    policy = RetentionPolicy(max_checkpoints_per_thread=5)
    done = catalog.apply_retention(policy, on_progress=show)
    assert done.trimmed == ("long",)
    assert len(shown) > 5
    assert [one.trimmed for one in shown] == [()] * (len(shown) - 1) + [("long",)]


def test_a_checkpoint_put_meanwhile_stays_whatever_it_follows(
    saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    fill(saver)
    ids = [id_of(found) for found in saver.list(config("long"))]
    rows = store.count("checkpoints")
    stored: list[tuple[str, Any]] = []

    def hook(number: int) -> None:
        if store.count("checkpoints") == rows:
            return  # it is not planned yet
        values = {"n": number, "text": TEXTS[number % len(TEXTS)]}
        parent = config("long", ids[0] if number % 2 else ids[-1 - number % 20])
        stored.append((id_of(put(saver, values, parent=parent, thread_id="long")), values))

    at_rest(hook)
    saver.trim("long", 5)
    at_rest(lambda _: None)
    assert len(stored) > 10
    for id_, values in stored:
        found = saver.get_tuple(config("long", id_))
        assert found is not None
        assert value_of(found) == values
    assert len(list(saver.list(config("long")))) == 5 + len(stored)
    assert store.problems(saver) == []


def test_a_channel_is_rebuilt_for_a_checkpoint_that_was_put_meanwhile_on_an_old_one(
    saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    """Its ancestors were to be removed when it was not there yet."""
    parents = [put(saver, {"d": ["seed"]})]
    for n in range(40):
        parents.append(grown(saver, parents[-1], n))
    head = put(saver, {"d": ["seed", "and more"]}, parent=parents[-1])
    for n in range(4):
        head = grown(saver, head, n)
    rows = store.count("checkpoints")
    meanwhile: list[Any] = []

    def hook(_: int) -> None:
        if store.count("checkpoints") < rows and len(meanwhile) < 3:
            meanwhile.append(grown(saver, parents[5 + len(meanwhile)], 100))

    at_rest(hook)
    saver.trim("thread", 5)
    at_rest(lambda _: None)
    assert len(meanwhile) == 3
    for steps, at in enumerate(meanwhile, 6):
        history = saver.get_delta_channel_history(config=at, channels=["d"])["d"]
        assert [write[2] for write in history["writes"]] == [[n] for n in range(steps)]
        assert history["seed"] == ["seed"]
    assert store.problems(saver) == []


def grown(saver: ForkpointSaver, parent: Any, n: int) -> Any:
    """Put a checkpoint whose channel is rebuilt from its ancestors, of which the last adds `n`."""
    saver.put_writes(parent, [("d", [n])], "task")
    made = checkpoint({}, {"d": n + 2})
    return saver.put(parent, made, {COUNTERS: {"d": [1, 1]}}, {"d": n + 2})


@pytest.mark.parametrize("removal", ["trim", "prune"])
def test_a_thread_deleted_or_removed_from_meanwhile_is_no_error(
    removal: str, saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    for other, at in (("delete_for_runs of some", 3), ("trim", 4), ("purge", 6)):
        fill(saver)

        def hook(number: int, at: int = at, other: str = other) -> None:
            if number == at:
                REMOVALS[other](saver)

        at_rest(hook)
        REMOVALS[removal](saver)
        at_rest(lambda _: None)
        assert store.problems(saver) == []
        assert len(list(saver.list(config("long")))) <= (0 if other == "purge" else 5)
        saver.delete_thread("long")
        saver.delete_thread("fork")


@pytest.mark.parametrize("shape", TELLING_SHAPES)
@pytest.mark.parametrize("rows", [1, 4])
def test_the_remaining_checkpoints_keep_their_state_after_each_turn(
    shape: str, rows: int, saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch, at_rest: Any
) -> None:
    """Rebuilt channels and the states of subgraphs included, whatever is not removed yet."""
    lab = Lab(ALL_SHAPES[shape], saver)
    monkeypatch.setattr(Statements, "default_turn_rows", rows)
    at_rest(lambda _: lab.check("thread", lab.places("thread")))
    saver.trim("thread", 2)
    staying = newest(lab.before, 2)
    staying |= returned_to(lab.before, staying)
    lab.check("thread", staying)
    saver.prune(["thread"])
    lab.check("thread", newest(lab.before, 1))


def id_of_thread(found: Any) -> str:
    return str(found.config["configurable"]["thread_id"])


def test_unused_chunks_can_be_used_again_between_any_two_turns(
    saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    """By who knows them of what was removed, and by who inherits, copies and forks."""
    fill(saver)
    stored: list[tuple[str, Any]] = []

    def hook(number: int) -> None:
        values = {"text": TEXTS[number % len(TEXTS)], "more": TEXTS[-number % len(TEXTS)]}
        stored.append((id_of(put(saver, values, parent=config("fork"), thread_id="fork")), values))
        if number % 5 == 0:
            saver.fork(config("fork"), new_thread_id=f"fork-{number}", values={"more": TEXTS[1]})

    at_rest(hook)
    saver.purge("long")
    assert len(stored) > 12
    for id_, values in stored:
        found = saver.get_tuple(config("fork", id_))
        assert found is not None
        assert value_of(found) == values
    at_rest(lambda _: None)
    saver.prune(["fork"])
    assert store.problems(saver) == []


def test_two_collections_of_one_family_both_end(
    saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    fill(saver)
    for n in range(3):
        saver.copy_thread("long", f"copy-{n}")

    def hook(number: int) -> None:
        if number in (4, 9, 14):  # while it removes, reads and collects; each has turns of its own
            at = {4: 0, 9: 1, 14: 2}[number]
            saver.purge(f"copy-{at}")

    at_rest(hook)
    saver.purge("long")
    assert store.problems(saver) == []
    assert {thread.thread_id for thread in store.threads() if thread.is_live} == {"fork"}


def purge_until_killed(store: Store, end: int) -> None:
    shorten(setattr)
    number = 0

    def rest(_: float) -> None:
        nonlocal number
        number += 1
        if number == end:
            os.kill(os.getpid(), signal.SIGKILL)

    turns.rest = rest
    with store.saver() as saver:
        saver.purge("long")


@pytest.mark.parametrize("end", [1, 5, 12])
def test_a_killed_process_leaves_its_removal_to_the_next(
    end: int, store: Store, short_turns: None
) -> None:
    with store.saver() as saver:
        fill(saver)
    process = fork_server().Process(target=purge_until_killed, args=(store, end))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert store.problems(after_crash=True) == []
    with store.saver() as saver:
        saver.delete_thread("long")
        assert store.problems(saver) == []


# Copies


def content(saver: ForkpointSaver, thread_id: str) -> list[Any]:
    """Return all that there is to read of a thread, without its id."""
    found = saver.list({"configurable": {"thread_id": thread_id}})
    return [
        (
            id_of(one),
            one.checkpoint,
            one.metadata,
            one.parent_config and id_of(one.parent_config),
            sorted(one.pending_writes or (), key=repr),
        )
        for one in found
    ]


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_that_of_the_moment_at_which_it_began(
    copy: str, saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    head = fill(saver)
    saver.put_writes(head, [(INTERRUPT, [Interrupt("?", id="1")])], "other")
    before, count = content(saver, "long"), store.thread("long").checkpoint_count

    def hook(number: int) -> None:
        put(saver, {"n": number}, parent=head, thread_id="long")
        put(saver, {"n": number}, thread_id="long", ns=f"child:{number}")
        saver.put_writes(head, [("e", TEXTS[number % len(TEXTS)])], f"task-{number}")
        assert saver.get_tuple(config("copy")) is None
        assert "copy" not in str(saver.family("long"))

    at_rest(hook)
    COPIES[copy](saver)
    at_rest(lambda _: None)
    assert content(saver, "copy") == before
    assert store.thread("copy").checkpoint_count == count
    assert store.thread("copy").status == "interrupted"
    assert store.problems(saver) == []
    saver.purge("long")
    assert content(saver, "copy") == before
    assert store.problems(saver) == []


REMOVED: dict[str, Callable[[ForkpointSaver, Any], Any]] = {
    "trim": lambda saver, _: saver.trim("long", 30),
    "rollback": lambda saver, _: saver.rollback("long"),
    "another answer": lambda saver, head: saver.put_writes(head, [(RESUME, [2])], "other"),
}


@pytest.mark.parametrize("removed", REMOVED)
@pytest.mark.parametrize("ends", [1, 100])
def test_what_is_removed_meanwhile_is_not_half_in_a_copy(
    removed: str, ends: int, saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    """Once, or between any two turns."""
    head = fill(saver)
    saver.put_writes(head, [(RESUME, [1])], "other")
    seen: list[Any] = [content(saver, "long")]

    def hook(number: int) -> None:
        if 3 <= number < 3 + ends and len(seen) < 12:
            at_rest(lambda _: None)
            REMOVED[removed](saver, head)
            seen.append(content(saver, "long"))
            at_rest(lambda more: hook(number + more))

    at_rest(hook)
    saver.copy_thread("long", "copy")
    at_rest(lambda _: None)
    assert len(seen) > ends / 20
    assert content(saver, "copy") in seen
    store.outlast()
    ThreadCatalog(saver).sweep()  # a rollback leaves the chunks of so few to it
    assert store.problems(saver) == []


def test_a_copy_of_what_is_deleted_meanwhile_leaves_nothing(
    saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    fill(saver)
    at_rest(lambda number: saver.delete_thread("long") if number == 4 else None)
    with pytest.raises(ThreadNotFound):
        saver.copy_thread("long", "copy")
    at_rest(lambda _: None)
    assert saver.get_tuple(config("copy")) is None
    saver.delete_thread("fork")
    assert store.problems(saver) == []
    assert store.count("checkpoints") == 0


def test_a_copy_to_an_id_that_is_taken_meanwhile_is_refused(
    saver: ForkpointSaver, store: Store, short_turns: None, at_rest: Any
) -> None:
    fill(saver)
    at_rest(lambda number: put(saver, {"n": 1}, thread_id="copy") if number == 4 else None)
    with pytest.raises(ThreadExists):
        saver.copy_thread("long", "copy")
    at_rest(lambda _: None)
    found = saver.get_tuple(config("copy"))
    assert found is not None
    assert value_of(found) == {"n": 1}
    assert store.problems(saver) == []


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_that_ended_after_any_turn_is_not_there(
    copy: str, store: Store, ended_after_each_turn: EndedAfterEachTurn
) -> None:
    with store.saver() as saver:
        fill(saver, length=20)
        expected = content(saver, "long")
    ended = 0
    for one in ended_after_each_turn(COPIES[copy]):
        ended += 1
        with one.saver() as saver:
            assert {id_of_thread(found) for found in saver.list(None)} == {"fork", "long"}
            assert ThreadCatalog(saver).get("copy") is None
            COPIES[copy](saver)
            assert content(saver, "copy") == expected
            saver.purge("copy")  # what has begun lately may go on
            assert len(one.stored("checkpoints")) > len(expected) + 1
            one.outlast()
            ThreadCatalog(saver).sweep()
            assert one.problems(saver) == []
            assert len(one.stored("checkpoints")) == len(expected) + 1
    assert ended > 2


@pytest.mark.parametrize("removal", ["purge", "trim"])
def test_free_space_is_given_back_after_each_turn(
    removal: str, path: Path, short_turns: None, at_rest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite looks for each page that it gives back among all that are free."""
    monkeypatch.setattr(sqlite_storage, "_FEWEST_FREE_PAGES", 1)
    saver = SqliteSaver(path)
    fill(saver, length=120)
    saver.delete_thread("fork")
    connection: sqlite3.Connection = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]

    def pragma(name: str) -> int:
        return int(connection.execute(f"PRAGMA {name}").fetchone()[0])

    before, free = pragma("page_count"), []
    at_rest(lambda _: free.append(pragma("freelist_count")))
    REMOVALS[removal](saver)
    after = pragma("page_count")
    saver.close()
    assert before - after > 100
    assert max(free) == 0
