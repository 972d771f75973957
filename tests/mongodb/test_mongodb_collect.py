"""MongoDBSaver has no transactions: whatever is in the middle of what, nothing needed is collected.

Two operations meet: each is stopped before commands of choice, also in the middle of a bulk, whose
statements are sent one by one for that. Others may come between any two of them on a server, too.
"""

from __future__ import annotations

import itertools
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import pymongo
import pytest

from checking import checkpoint, collected, config, id_of, put, value_of
from commands import Started
from forkpoint import (
    CheckpointNotFound,
    StorageBusy,
    ThreadCatalog,
    ThreadDeleted,
    ThreadNotFound,
)
from forkpoint.encoding.entries import split_refs
from forkpoint.mongodb import locks as mongodb_locks
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import is_chunk
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.mongodb.statements import Outcome
from forkpoint.operations import fork as forking
from forkpoint.operations.gc import reachable
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from processes import fork_server
from stores import MongoStore

MANY = 1_000
"""In how many ways two meet in a long run, drawn anew each time; in all, if there are less.

Two that go on in turns may meet in as many as 6,000 ways.
"""


SHARED = "in all threads of the family " * 100
DYING = {
    name: f"in an old checkpoint of {name} only " * 100 for name in ("own", "sibling", "other")
}
NEW = "not stored yet " * 100
WRITES = [("c", NEW), *DYING.items(), ("n", 1)]
SMALL_WRITES = [("c", 1), ("n", 2)]
MANY_WRITES = [("c", n) for n in range(12)]


# Operations that meet. Some write, and the others remove and collect.


class Start(NamedTuple):
    """A store with a family of threads, to which each meeting goes back."""

    store: MongoStore
    documents: Sequence[Any]
    head: Any
    """The newest checkpoint of the thread `own`."""
    dying: Any
    """One before the newest of the thread `sibling`."""
    ids: dict[str, list[str]]
    """The ids of all checkpoints, newest first."""
    known: dict[str, Sequence[Any]]
    """The checkpoints that a writer remembers, which have all chunks, and those of a remover."""

    def restore(self) -> None:
        self.store.restore(self.documents)


Work = Callable[[ForkpointSaver, Start], None]
Way = TypeVar("Way")


def put_new(saver: ForkpointSaver, start: Start) -> None:
    values = {"shared": SHARED, "text": NEW, **DYING}
    made = checkpoint(values, {**dict.fromkeys(values, 3), "shared": 1})
    changed = {channel: 3 for channel in values if channel != "shared"}
    saver.put(start.head, {**made, "id": NEWEST}, {}, changed)


def put_writes(saver: ForkpointSaver, start: Start) -> None:
    saver.put_writes(start.head, WRITES, "task")


def put_small_writes(saver: ForkpointSaver, start: Start) -> None:
    saver.put_writes(start.head, SMALL_WRITES, "task")


def put_many_writes(saver: ForkpointSaver, start: Start) -> None:
    saver.put_writes(start.head, MANY_WRITES, "task")


def copy(saver: ForkpointSaver, _: Start) -> None:
    saver.copy_thread("sibling", "copy")


def fork(saver: ForkpointSaver, start: Start) -> None:
    saver.fork(start.dying, new_thread_id="copy", values={"shared": NEW})


def copy_in_turns(saver: ForkpointSaver, start: Start) -> None:
    """In turns, each of which copies one row."""
    shorten_turns(saver)
    saver.copy_thread("sibling", "copy")


def shorten_turns(saver: ForkpointSaver) -> None:
    with parts_of(saver).context.storage.reading() as session:
        session.copies._turns.turn_rows = 1  # type: ignore[attr-defined] # of this thread


def fork_with_path(saver: ForkpointSaver, start: Start) -> None:
    """In turns, each of which copies one checkpoint."""
    shorten_turns(saver)
    saver.fork(start.dying, new_thread_id="copy", history="path")


def remove_and_reuse(saver: ForkpointSaver, start: Start) -> None:
    saver.delete_thread("other")
    put_new(saver, start)


def delete_sibling(saver: ForkpointSaver, _: Start) -> None:
    saver.delete_thread("sibling")


def delete_own(saver: ForkpointSaver, _: Start) -> None:
    saver.delete_thread("own")


def prune_sibling(saver: ForkpointSaver, _: Start) -> None:
    saver.prune(["sibling"])


def prune_own(saver: ForkpointSaver, _: Start) -> None:
    saver.prune(["own"])


def delete_runs(saver: ForkpointSaver, _: Start) -> None:
    saver.delete_for_runs(["dying", "head"])


WRITERS = (
    put_new,
    put_writes,
    put_small_writes,
    copy,
    copy_in_turns,
    fork,
    fork_with_path,
    remove_and_reuse,
)
MAY_HAVE_LOG = (put_new, put_writes, put_small_writes)
REMOVERS = (
    delete_sibling,
    delete_own,
    prune_sibling,
    prune_own,
    delete_runs,
)
NEWEST = "ffffffff-0000-6000-8000-000000000000"  # the id of what a writer puts


@pytest.fixture(scope="module")
def start(mongo_server: Any) -> Iterator[Start]:
    store = MongoStore(mongo_server.uri, "test-meetings")
    with store.saver() as saver:
        first = put(saver, {"shared": SHARED, "n": 1}, thread_id="own")
        for name in ("sibling", "other"):
            saver.copy_thread("own", name)
        heads: dict[str, Any] = {}
        dying_ones: dict[str, Any] = {}
        for name, run in (("own", "own"), ("sibling", "dying"), ("other", "other")):
            parent = config(name, id_of(first))
            values = {"shared": SHARED, "text": DYING[name]}
            dying = put(saver, values, parent=parent, metadata={"run_id": run})
            made = checkpoint({"shared": SHARED, "text": name * 500}, {"shared": 1, "text": 2})
            run = "head" if name == "own" else "of another head"
            head = saver.put(dying, made, {"run_id": run}, {"text": 2})
            saver.put_writes(head, [("c", f"{name} writes " * 500)], "task before")
            heads[name], dying_ones[name] = head, dying
        ids = {name: [id_of(item) for item in saver.list(config(name))] for name in DYING}
    assert store.problems() == []
    known = {
        "writer": [heads["own"], *dying_ones.values()],
        "remover": [heads["own"], heads["sibling"]],
    }
    documents = list(store.collection.find())
    yield Start(store, documents, heads["own"], dying_ones["sibling"], ids, known)
    store.close()


class Party(Started):
    """An operation on a thread of its own, which stops before a command of choice."""

    def __init__(self, start: Start, known: Sequence[Any]) -> None:
        super().__init__(self._before)
        self.client: pymongo.MongoClient[Any] = pymongo.MongoClient(
            start.store.uri, event_listeners=[self]
        )
        self._start = start
        self._known = known
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, work: Work, *, has_log: bool = False) -> None:
        """Make an operation ready to go, by a saver that remembers what is stored.

        It may have a log of the thread `own`.
        """
        self._saver = MongoDBSaver(self.client, self._start.store.name)
        for place in self._known:
            assert self._saver.get_tuple(place) is not None
        if has_log:
            self._saver.put_writes(self._start.head, [("c", 1)], "task that begins a log")
        self._begin(work)

    def again(self, work: Work) -> None:
        """Do an operation after it was refused for now."""
        self._begin(work)
        self.end()

    def _begin(self, work: Work) -> None:
        self.sent = 0
        self.error: Exception | None = None
        self.is_done = self.is_stopped = self.is_waiting = False
        self._until: float = 0
        self._thread = threading.Thread(target=self._run, args=(work, self._saver), daemon=True)
        self._thread.start()

    def go(self, until: float = math.inf) -> None:
        """Let it go until it has sent so many commands, is done, or waits for another's lock."""
        with self._changed:
            self._until = until
            self.is_stopped = self.is_waiting = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.is_done or self.is_stopped or self.is_waiting)

    def end(self) -> None:
        """Let it go to its end. Nobody keeps it from that any more."""
        self.go()
        assert self._thread is not None
        self._thread.join()

    def note_waiting(self) -> None:
        if threading.current_thread() is self._thread:
            with self._changed:
                self.is_waiting = True
                self._changed.notify_all()

    def _before(self, _: Any) -> None:
        if threading.current_thread() is not self._thread:
            return
        with self._changed:
            while self.sent >= self._until:
                self.is_stopped = True
                self._changed.notify_all()
                self._changed.wait()
            self.sent += 1

    def _run(self, work: Work, saver: ForkpointSaver) -> None:
        try:
            work(saver, self._start)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        with self._changed:
            self.is_done = True
            self._changed.notify_all()


class Clock:
    """What waiting for a lock knows of time: it tells the parties that one of them waits."""

    def __init__(self, parties: Sequence[Party]) -> None:
        self._parties = parties
        self.monotonic = time.monotonic

    def sleep(self, seconds: float) -> None:
        for party in self._parties:
            party.note_waiting()
        time.sleep(seconds)


_whole = MongoCommands.bulk


def _one_by_one(
    commands: MongoCommands,
    statements: Sequence[Any],
    *,
    once: bool = False,
    is_small: bool = False,
) -> Outcome:
    hits, made = 0, set()
    for index, statement in enumerate(statements):
        outcome = _whole(commands, [statement], once=once, is_small=is_small)
        if outcome.is_lost:
            return outcome
        hits += outcome.hits
        made |= {index for _ in outcome.made}
        if outcome.failed is not None:
            return outcome._replace(hits=hits, made=made, failed=index)
    return Outcome(hits, made)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the statements of a bulk sent one by one, so that others can come in between."""
    monkeypatch.setattr(MongoCommands, "bulk", _one_by_one)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "_COPIED_AT_ONCE", 1)


@pytest.fixture
def parties(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Party, Party]]:
    """Two who meet: one who writes, and one who removes."""
    made = Party(start, start.known["writer"]), Party(start, start.known["remover"])
    monkeypatch.setattr(mongodb_locks, "time", Clock(made))
    yield made
    for party in made:
        party.client.close()


@pytest.fixture(scope="module")
def counted() -> dict[tuple[Any, ...], int]:
    """How many commands operations sent, so that no test has to count again."""
    return {}


def points(
    party: Party,
    start: Start,
    work: Work,
    counted: dict[tuple[Any, ...], int],
    *,
    has_log: bool = False,
) -> range:
    """Return after how many commands an operation may be stopped."""
    key = work, has_log, MongoCommands.bulk
    if key not in counted:
        start.restore()
        party.begin(work, has_log=has_log)
        party.end()
        assert party.error is None
        counted[key] = party.sent
    return range(counted[key] + 1)


def each_two() -> Any:
    """Run a test with each writer and each remover; in every run, each writer meets one of them.

    Those of every run meet in one way, and those of a long run in many.
    """
    cases = []
    for write, remove in itertools.product(WRITERS, REMOVERS):
        is_left_out = (WRITERS.index(write) + REMOVERS.index(remove)) % len(REMOVERS)
        marks = pytest.mark.slow if is_left_out else ()
        cases.append(pytest.param(write, remove, 1, marks=marks))
    for write, remove in itertools.product(WRITERS, REMOVERS):
        cases.append(pytest.param(write, remove, MANY, marks=pytest.mark.slow))
    return pytest.mark.parametrize(("write", "remove", "number"), cases)


def some_of(ways: Sequence[Way], number: int) -> list[Way]:
    """Return so many of the ways, in any order; all of them if there are less."""
    return random.Random(time.time_ns()).sample(ways, min(number, len(ways)))


def logs(work: Work) -> Sequence[bool]:
    """Return whether an operation is to begin with a log of its thread, and without."""
    return (False, True) if work in MAY_HAVE_LOG else (False,)


def read(reader: ForkpointSaver) -> dict[str, list[str]]:
    """Read everything that can be seen. A chunk that is missing is an error."""
    # First what the copy has: it may appear meanwhile, all of it at once.
    copied = [id_of(item) for item in reader.list(config("copy"))]
    seen: dict[str, list[str]] = {}
    for item in reader.list(None):
        seen.setdefault(item.config["configurable"]["thread_id"], []).append(id_of(item))
    assert copied in ([], seen.get("copy", []))
    return seen


def check(start: Start, reader: ForkpointSaver) -> dict[str, list[str]]:
    """Nothing dangles, and after another collection nothing is left over."""
    store = start.store
    assert store.problems(after_crash=True) == []
    for family in {thread.family for thread in store.threads()}:
        assert collected(reader, family).missing is None
    assert store.problems() == []
    living = [thread.key for thread in store.threads() if thread.is_live]
    rows = {"thread": {"$exists": True, "$nin": living}}
    marks = [{mark: {"$exists": True}} for mark in ("next", "doomed", "building")]
    assert list(store.collection.find({"$or": [rows, *marks]})) == []
    seen = read(reader)
    assert [id_of(item) for item in reader.list(config("copy"))] == seen.get("copy", [])
    return seen


def check_done(
    start: Start, reader: ForkpointSaver, seen: dict[str, list[str]], write: Work, remove: Work
) -> None:
    """What was acknowledged is there, once, and what was removed is gone."""
    own, sibling = start.ids["own"], start.ids["sibling"]
    left: dict[Work, tuple[set[str], set[str]]] = {
        delete_sibling: (set(own), set()),
        delete_own: (set(), set(sibling)),
        prune_sibling: (set(own), set(sibling[:1])),
        prune_own: (set(own[:1]), set(sibling)),
        delete_runs: (set(own[1:]), {sibling[0], sibling[2]}),
    }
    own_left, sibling_left = left[remove]
    assert set(seen.get("sibling", ())) == sibling_left
    if write in (put_new, remove_and_reuse) and own_left:
        assert seen["own"][0] == NEWEST
        item = reader.get_tuple(config("own", NEWEST))
        assert value_of(item) == {"shared": SHARED, "text": NEW, **DYING}
        assert own_left >= set(seen["own"][1:]) >= own_left - {own[0]}
    else:
        assert set(seen.get("own", ())) == own_left
    if write in (put_writes, put_small_writes) and own[0] in own_left:
        item = reader.get_tuple(start.head)
        assert item is not None
        written = [
            (channel, value) for task, channel, value in item.pending_writes or () if task == "task"
        ]
        assert written == (WRITES if write is put_writes else SMALL_WRITES)
    if write in (copy, copy_in_turns):
        assert set(seen["copy"]) in ({*sibling}, sibling_left)
    if write is fork_with_path:
        assert set(seen["copy"]) == {*sibling[1:]}
    if write is fork:
        assert len(seen["copy"]) == 2
        item = reader.get_tuple(config("copy"))
        assert value_of(item) == {"shared": NEW, "text": DYING["sibling"]}


def meet(reader: ForkpointSaver, party: Party, other: Party, points: tuple[int, int]) -> None:
    """Let one go up to a point, the other too, and then each to its end."""
    party.go(points[0])
    read(reader)
    other.go(points[1])
    read(reader)
    party.go()
    read(reader)
    other.go()
    party.end()
    other.end()


def outlast(start: Start, reader: ForkpointSaver, party: Party, other: Party, point: int) -> None:
    """Let one go up to a point, and then no more until nobody waits for it."""
    party.go(point)
    read(reader)
    start.store.outlast()
    other.end()
    read(reader)
    party.end()


def ask_again(writer: Party, write: Work, remover: Party, remove: Work) -> None:
    """Do again what was told to try again: on a busy machine, a lock may be taken over."""
    for party, work in ((writer, write), (remover, remove)):
        if type(party.error) is StorageBusy:
            party.again(work)


def errors(write: Work, remove: Work) -> set[type[Exception]]:
    """Return what a writer may be told because of what was removed meanwhile."""
    expected: set[type[Exception]] = set()
    if remove is delete_own:
        expected.add(ThreadDeleted)
    if remove is delete_sibling and write in (copy, copy_in_turns, fork, fork_with_path):
        expected.add(ThreadNotFound)
    if write in (fork, fork_with_path):
        expected.add(CheckpointNotFound)
    return expected


@pytest.mark.by_halves
@each_two()
def test_nothing_dangles_where_one_writes_and_another_removes(
    write: Work,
    remove: Work,
    number: int,
    start: Start,
    counted: dict[tuple[Any, ...], int],
    one_by_one: None,
    parties: tuple[Party, Party],
) -> None:
    writer, remover = parties
    ways = [
        (i, j, ends_first, has_log)
        for has_log in logs(write)
        for i in points(writer, start, write, counted, has_log=has_log)
        for j in points(remover, start, remove, counted)
        for ends_first in (True, False)
    ]
    with start.store.saver() as reader:
        for way in some_of(ways, number):
            i, j, writer_ends_first, has_log = way
            start.restore()
            writer.begin(write, has_log=has_log)
            remover.begin(remove)
            if writer_ends_first:
                meet(reader, writer, remover, (i, j))
            else:
                meet(reader, remover, writer, (j, i))
            ask_again(writer, write, remover, remove)
            assert remover.error is None, way
            seen = check(start, reader)
            if writer.error is None:
                check_done(start, reader, seen, write, remove)
            else:
                assert type(writer.error) in errors(write, remove), way


def fork_as_its_source_is_deleted(
    start: Start, parties: tuple[Party, Party], commands: int
) -> Exception | None:
    """Have the source of a fork in turns deleted after so many commands of the fork.

    Returns the error of who forks.
    """
    writer, remover = parties
    start.restore()
    writer.begin(fork_with_path)
    writer.go(commands)
    remover.begin(delete_sibling)
    remover.end()
    writer.end()
    assert remover.error is None
    return writer.error


def test_a_fork_in_turns_of_a_thread_that_is_deleted_meanwhile_does_not_call_it_damaged(
    start: Start, one_by_one: None, parties: tuple[Party, Party]
) -> None:
    for commands in range(7):  # as many as it sends before it writes
        error = fork_as_its_source_is_deleted(start, parties, commands)
        assert type(error) in (ThreadNotFound, CheckpointNotFound)


def test_a_fork_that_is_given_up_leaves_no_trace_of_a_thread_that_was_deleted_meanwhile(
    start: Start, one_by_one: None, parties: tuple[Party, Party]
) -> None:
    """Its record is kept as long as there may be a fork of it, and found by a sweep afterwards."""
    for commands in range(8, 11):  # as many as it sends before it may be known to have begun
        error = fork_as_its_source_is_deleted(start, parties, commands)
        assert type(error) is ThreadNotFound
        with start.store.saver() as saver:
            assert start.store.problems(after_crash=True) == []
            start.store.outlast()
            ThreadCatalog(saver).sweep()
        assert start.store.problems() == []
        assert "sibling" not in {thread.thread_id for thread in start.store.threads()}


@pytest.mark.by_halves
@each_two()
def test_nothing_dangles_where_one_stops_for_so_long_that_nobody_waits_for_it(
    write: Work,
    remove: Work,
    number: int,
    start: Start,
    counted: dict[tuple[Any, ...], int],
    parties: tuple[Party, Party],
) -> None:
    writer, remover = parties
    ways = [
        (stopped, point, has_log)
        for has_log in logs(write)
        for stopped, work in ((writer, write), (remover, remove))
        for point in points(stopped, start, work, counted, has_log=has_log and stopped is writer)
    ]
    with start.store.saver() as reader:
        for stopped, point, has_log in some_of(ways, number):
            start.restore()
            writer.begin(write, has_log=has_log)
            remover.begin(remove)
            outlast(start, reader, stopped, remover if stopped is writer else writer, point)
            ask_again(writer, write, remover, remove)
            assert remover.error is None, point
            seen = check(start, reader)
            if writer.error is None:
                check_done(start, reader, seen, write, remove)
            else:
                assert type(writer.error) in errors(write, remove), point


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("has_log", [True, False])
def test_many_writes_leave_nothing_if_their_thread_is_deleted_on_the_way(
    has_log: bool,
    every: int,
    start: Start,
    counted: dict[tuple[Any, ...], int],
    one_by_one: None,
    parties: tuple[Party, Party],
) -> None:
    writer, remover = parties
    for point in points(writer, start, put_many_writes, counted, has_log=has_log)[:-1:every]:
        start.restore()
        writer.begin(put_many_writes, has_log=has_log)
        remover.begin(delete_own)
        writer.go(point)
        remover.end()
        writer.end()
        assert type(writer.error) is ThreadDeleted, point
        assert remover.error is None, point
        assert start.store.problems() == [], point


def test_a_put_that_comes_late_leaves_a_chunk_to_one_that_has_stored_it_since(
    start: Start, one_by_one: None
) -> None:
    """A collection goes on meanwhile, which has not seen any of the two."""
    start.restore()
    family = start.store.thread("own").family
    values = {"shared": SHARED, "text": NEW}
    made = {**checkpoint(values, {"shared": 1, "text": 3}), "id": NEWEST}
    seen: list[Any] = []

    def meanwhile(event: Any) -> None:
        statements = event.command.get("updates", [{"q": {}}])
        stores_chunk = is_chunk({"_id": statements[0]["q"].get("_id")})
        if stores_chunk and not seen:
            seen.append(collections.begin(family))
            refs = [refs for _, refs in collections.references(family).items]
            links = dict(collections.links(family).items)
            seen.append(reachable(split_refs(b"".join(refs)), links))
            other.put(config("sibling", start.ids["sibling"][0]), made, {}, {"text": 3})
        elif len(seen) == 2 and not stores_chunk:
            unused = set(collections.digests(family).items) - seen[1]
            seen.append(collections.delete_chunks(family, unused, seen[0]))
            seen.append(value_of(reader.get_tuple(config("sibling"))))

    client: pymongo.MongoClient[Any] = pymongo.MongoClient(
        start.store.uri, event_listeners=[Started(meanwhile)]
    )
    with (
        client,
        MongoDBSaver(client, start.store.name) as saver,
        start.store.saver() as other,
        start.store.saver() as reader,
        parts_of(other).context.storage.reading() as session,
    ):
        collections = session.collections
        put_new(saver, start)
        assert seen[2] == (0, 0)  # nothing disturbed the collection, and nothing was unused
        assert seen[3] == values
        assert value_of(saver.get_tuple(config("own"))) == {**values, **DYING}
    assert start.store.problems(after_crash=True) == []


# Many at once

TEXTS = [f"text {n} that all threads of the family have at times " * 100 for n in range(6)]


class Family:
    """Four writers whose chunks die and are used again, and who collects until they are done.

    They are done after so many rounds each, and as many collections.
    """

    def __init__(self, store: MongoStore, rounds: int) -> None:
        self._store = store
        self._rounds = rounds
        self._writing = 4
        self._lock = threading.Lock()
        self.failures: list[BaseException] = []
        self.collections = 0

    def run(self) -> None:
        with self._store.saver() as saver:
            put(saver, {"text": TEXTS[0]}, thread_id="writer-0")
            for n in (1, 2, 3):
                saver.copy_thread("writer-0", f"writer-{n}")
        works: list[Callable[[], None]] = [lambda n=n: self._write(n) for n in range(4)]  # type: ignore[misc]
        threads = [
            threading.Thread(target=self._guarded, args=(work,)) for work in (*works, self._collect)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.failures.append(error)

    def _write(self, number: int) -> None:
        rng = random.Random(number)
        mine, parent = f"writer-{number}", config(f"writer-{number}")
        with self._store.saver() as saver, self._counted():
            done = 0
            while not self.failures and (done < self._rounds or self.collections < self._rounds):
                values = {"text": rng.choice(TEXTS), "other": rng.choice(TEXTS)}
                written = rng.choice(TEXTS)
                try:
                    parent = put(saver, values, parent=parent, thread_id=mine)
                    saver.put_writes(parent, [("c", written), ("n", 1)], "task")
                except StorageBusy:  # on a machine on which all that takes long
                    continue
                done += 1
                item = saver.get_tuple(config(mine))
                assert item is not None
                assert value_of(item) == values
                assert ("task", "c", written) in (item.pending_writes or ())
                match rng.randrange(4):
                    case 0:
                        saver.prune([mine])
                    case 1:
                        saver.copy_thread(mine, f"copy-{number}")
                        saver.delete_thread(f"copy-{number}")
                    case 2:
                        with suppress(StorageBusy):
                            fork = saver.fork(parent, new_thread_id=f"fork-{number}")
                            item = saver.get_tuple(fork)
                            assert item is not None
                            assert value_of(item) == values
                        saver.delete_thread(f"fork-{number}")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        yield
        with self._lock:
            self._writing -= 1

    def _collect(self) -> None:
        with self._store.saver() as saver:
            family = self._store.thread("writer-0").family
            while self._writing and not self.failures:
                assert collected(saver, family).missing is None
                self.collections += 1
                time.sleep(0.02)  # so that they come to something, too


@pytest.mark.parametrize("rounds", [4, pytest.param(400, marks=pytest.mark.slow)])
def test_chunks_that_just_died_are_used_again_while_others_are_collected(
    rounds: int, mongo_server: Any
) -> None:
    store = MongoStore(mongo_server.uri, f"test-reuse-{uuid4().hex}")
    family = Family(store, rounds)
    family.run()
    assert family.failures == []
    assert family.collections >= rounds
    with store.saver() as saver:
        assert [
            each for each in store.problems(saver, after_crash=True) if "orphan" not in each
        ] == []
        saver.prune([f"writer-{n}" for n in range(4)])
        assert store.problems(saver) == []
    store.close()


# Killed in the middle


def remove_until_killed(start: Start, remove: Work, commands: int) -> None:
    remove(start.store.mortal(commands), start)


@pytest.mark.parametrize("number", [1, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("remove", REMOVERS)
def test_a_removal_that_was_killed_can_be_run_again(
    remove: Work, number: int, start: Start, parties: tuple[Party, Party]
) -> None:
    context = fork_server()
    kills = points(parties[1], start, remove, {})[:-1]
    with start.store.saver() as reader:
        expected = read(reader)
        assert check(start, reader) == expected
        for kill in some_of(kills, number):
            start.restore()
            process = context.Process(target=remove_until_killed, args=(start, remove, kill))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            assert process.pid is not None
            start.store.await_end_of(process.pid)
            assert start.store.problems(reader, after_crash=True) == [], kill
            living = {thread.thread_id for thread in start.store.threads() if thread.is_live}
            assert read(reader).keys() <= living, kill
            start.store.outlast()
            remove(reader, start)
            assert check(start, reader) == expected, kill
