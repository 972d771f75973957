"""A server that fails in the middle: an operation has its effect once, or says that it has none."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pymongo
import pytest
from pymongo.errors import AutoReconnect

from checking import checkpoint, config, put
from commands import Commands
from forkpoint import ForkpointError, MongoDBSaver, NewThread, StorageError, ThreadCatalog
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.statements import Outcome
from forkpoint.mongodb.turns import Turns
from stores import MongoStore

APPLICATION = "forkpoint-faults"
NEXT = "next"  # a thread that is written to after the fault
COMMANDS = ["update", "find", "aggregate", "delete", "insert"]
FAULTS: dict[str, dict[str, Any]] = {
    "closed connection": {"closeConnection": True},
    "ShutdownInProgress": {"errorCode": 91},
    "PrimarySteppedDown": {"errorCode": 189},
    "WriteConflict": {"errorCode": 112},
    "not confirmed": {"writeConcernError": {"code": 91, "errmsg": "shutting down"}},
    "never confirmed": {"writeConcernError": {"code": 64, "errmsg": "waiting timed out"}},
}
TEXT = "a text that is long enough for a chunk " * 100

Method = Callable[[MongoDBSaver, Any], Any]
METHODS: dict[str, Method] = {
    "put": lambda saver, head: saver.put(
        head, checkpoint({"text": TEXT, "n": 9}, {"text": 1, "n": 2}), {}, {"n": 2}
    ),
    "put with chunks": lambda saver, head: put(saver, {"other": TEXT[::-1]}, parent=head),
    "first put": lambda saver, _: put(saver, {"text": TEXT}, thread_id="new"),
    "put_writes": lambda saver, head: saver.put_writes(head, [("c", 1), ("d", TEXT)], "other"),
    "get_tuple": lambda saver, _: saver.get_tuple(config()),
    "list": lambda saver, _: list(saver.list(None)),
    "copy_thread": lambda saver, _: saver.copy_thread("thread", "copy"),
    "fork": lambda saver, head: saver.fork(head, new_thread_id="fork"),
    "prune": lambda saver, _: saver.prune(["thread"]),
    "rollback": lambda saver, _: saver.rollback("thread"),
    "delete_for_runs": lambda saver, _: saver.delete_for_runs(["run"]),
    "delete_thread": lambda saver, _: saver.delete_thread("thread"),
    "purge": lambda saver, _: saver.purge("relative"),
    "create": lambda saver, _: ThreadCatalog(saver).create("made", metadata={"n": 1}),
    "search": lambda saver, _: list(ThreadCatalog(saver).search()),
}

DELETED = {"delete_thread": "thread", "purge": "relative"}


def fill(saver: MongoDBSaver) -> Any:
    """Put three checkpoints, the second by a run; make a clone; begin a log; return the newest."""
    head = put(saver, {"text": TEXT, "n": 0})
    head = put(saver, {"text": TEXT * 2, "n": 1}, parent=head, metadata={"run_id": "run"})
    head = put(saver, {"text": TEXT, "n": 2}, parent=head)
    saver.copy_thread("thread", "relative")
    saver.get_tuple(head)
    saver.put_writes(head, [("c", 1), ("d", TEXT)], "task")
    return head


def content(saver: MongoDBSaver, store: MongoStore) -> Any:
    """Return all that there is, apart from ids and times."""
    items = [
        (
            item.config["configurable"]["thread_id"],
            repr(item.checkpoint["channel_values"]),
            sorted(map(repr, item.pending_writes or [])),
        )
        for item in saver.list(None)
        if item.config["configurable"]["thread_id"] != NEXT
    ]
    threads = [thread for thread in store.threads() if thread.is_live and thread.thread_id != NEXT]
    counts = [(t.thread_id, t.checkpoint_count, t.status) for t in threads]
    return sorted(map(repr, items)), sorted(counts)


@contextmanager
def failing(
    client: pymongo.MongoClient[Any], command: str, fault: str, times: int
) -> Iterator[None]:
    data = {"failCommands": [command], "appName": APPLICATION, **FAULTS[fault]}
    arm = {"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data}
    client.admin.command(arm)
    try:
        yield
    finally:
        client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.fixture(scope="module")
def undisturbed(mongo_server: Any) -> dict[str, tuple[Any, set[str]]]:
    """What there is after each method, if nothing fails, and the commands that it sent."""
    results = {}
    for number, (method, call) in enumerate(METHODS.items()):
        store = MongoStore(mongo_server.uri, f"undisturbed-{number}")
        commands = Commands()
        with store.saver(event_listeners=[commands]) as saver, store.saver() as reader:
            head = fill(saver)  # type: ignore[arg-type]
            commands.clear()
            call(saver, head)  # type: ignore[arg-type]
            results[method] = content(reader, store), set(commands.names)  # type: ignore[arg-type]
        store.close()
    return results


@pytest.fixture(scope="module")
def expected(undisturbed: dict[str, tuple[Any, set[str]]]) -> dict[str, Any]:
    return {method: there for method, (there, _) in undisturbed.items()}


def cases() -> Iterator[Any]:
    """Each method with every fault of each command, once and three times in a row.

    In every run it is one of them; or one for each command, where a thread is made.
    """
    for number, method in enumerate(METHODS):
        quick = ("closed connection", "WriteConflict")[number % 2]
        yield pytest.param(method, quick, 1, number, id=f"{method}-{quick}")
        for fault, times in itertools.product(FAULTS, (1, 3)):
            yield pytest.param(method, fault, times, None, marks=pytest.mark.slow)


@pytest.mark.by_halves
@pytest.mark.parametrize(("method", "fault", "times", "turn"), list(cases()))
def test_a_method_has_its_effect_once_or_none(
    method: str,
    fault: str,
    times: int,
    turn: int | None,
    mongo_server: Any,
    undisturbed: dict[str, tuple[Any, set[str]]],
    expected: dict[str, Any],
) -> None:
    call = METHODS[method]
    _, sent = undisturbed[method]
    failing_commands = [name for name in COMMANDS if name in sent]
    assert failing_commands
    if turn is not None and method not in ("first put", "create"):
        failing_commands = [failing_commands[turn % len(failing_commands)]]
    with pymongo.MongoClient(mongo_server.uri) as client:
        for command in failing_commands:
            if fault.endswith("confirmed") and command in ("find", "aggregate"):
                continue
            store = MongoStore(mongo_server.uri, f"faults-{time.time_ns()}")
            # The driver takes a server that shuts down for gone until it looks again.
            options: dict[str, Any] = {
                "appname": APPLICATION,
                "heartbeatFrequencyMS": 500,
            }
            with store.saver(**options) as saver, store.saver() as reader:
                head = fill(saver)  # type: ignore[arg-type]
                before = content(reader, store)  # type: ignore[arg-type]
                done = False
                with failing(client, command, fault, times), suppress(ForkpointError):
                    call(saver, head)  # type: ignore[arg-type]
                    done = True
                # What was not confirmed may yet have its effect, and is read once a later write is.
                put(saver, {"n": 5}, thread_id=NEXT)
                after = content(reader, store)  # type: ignore[arg-type]
                assert after == expected[method] or (not done and after == before), command
                if (
                    not done and method in DELETED
                ):  # what it may have left behind goes with the next
                    reader.delete_thread(DELETED[method])
                    assert content(reader, store) == expected[method], command  # type: ignore[arg-type]
                    done = True
                assert store.problems(reader, after_crash=not done) == [], command
            store.close()


# A server that ends within a bulk


Losses = Mapping[int, int]
"""Within which bulks the connection is lost, and after how many of their statements."""


class Loss:
    """Loses the connection within a bulk: a part of it was executed, and nobody knows which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        """How many statements each bulk had that was sent since `begin`."""
        self._losses: Losses = {}
        monkeypatch.setattr(MongoCommands, "_bulk", self._lossy(MongoCommands._bulk, _disconnect))
        monkeypatch.setattr(
            MongoCommands, "insert_once", self._lossy(MongoCommands.insert_once, _lost)
        )

    def begin(self, losses: Losses) -> None:
        """Lose some of the bulks that are sent from now on."""
        self.sizes = []
        self._losses = losses

    def _lossy(
        self, send: Callable[..., Outcome], lose: Callable[[], Outcome]
    ) -> Callable[..., Outcome]:
        def send_or_lose(commands: MongoCommands, sent: Sequence[Any], *how: bool) -> Outcome:
            executed = self._losses.get(len(self.sizes))
            self.sizes.append(len(sent))
            if executed is None:
                return send(commands, sent, *how)
            if executed:
                send(commands, sent[:executed], *how)
            return lose()

        return send_or_lose


def _disconnect() -> Outcome:
    raise AutoReconnect("connection closed")


def _lost() -> Outcome:
    return Outcome(0, set(), is_lost=True)


def losses() -> Iterator[Any]:
    """Each method by who has the log and by who has not, and twice; in every run by one of them."""
    methods = [name for name in METHODS if name not in ("get_tuple", "list")]
    for number, method in enumerate(methods):
        for owns_log, twice in itertools.product((True, False), (False, True)):
            is_quick = not twice and owns_log == bool(number % 2)
            marks = () if is_quick or (method.startswith("put") and not twice) else pytest.mark.slow
            yield pytest.param(method, owns_log, twice, marks=marks)


@pytest.mark.by_halves
@pytest.mark.parametrize(("method", "owns_log", "twice"), list(losses()))
def test_a_bulk_of_which_a_part_was_executed_has_its_effect_once(
    method: str,
    owns_log: bool,
    twice: bool,
    mongo_store: MongoStore,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = Loss(monkeypatch)

    def run(losses: Losses) -> list[int]:
        mongo_store.collection.delete_many({})
        with mongo_store.saver() as saver, mongo_store.saver() as reader:
            head = fill(saver)  # type: ignore[arg-type]
            loss.begin(losses)
            METHODS[method](saver if owns_log else reader, head)  # type: ignore[arg-type]
            sizes = loss.sizes
            loss.begin({})
            context = f"{losses} of {sizes}"
            assert content(reader, mongo_store) == expected[method], context  # type: ignore[arg-type]
            assert mongo_store.problems(reader) == [], context
        return sizes

    sizes = run({})
    assert sizes
    for number, size in enumerate(sizes):
        for executed in range(size + 1) if twice else {0, size // 2, size}:
            again = run({number: executed})
            for more in range(again[number + 1] + 1) if twice else ():
                run({number: executed, number + 1: more})


# A server that refuses a document


MORE_METHODS: dict[str, Method] = {
    **METHODS,
    "fork the path": lambda saver, head: saver.fork(head, new_thread_id="fork", history="path"),
    "create again": lambda saver, _: ThreadCatalog(saver).create("gone"),
    "create many": lambda saver, _: ThreadCatalog(saver).create_many(
        [NewThread(name) for name in ("first", "made")], if_exists="do_nothing"
    ),
}
MADE = {"thread_id": {"$in": ["copy", "fork", "made", "gone"]}}
SHOWN = {**MADE, "deleted_at": None, "building": {"$exists": False}}
OF_RUN = {"kind": "checkpoint", "metadata": {"$regex": "run_id"}}
REFUSED: dict[str, list[dict[str, Any]]] = {
    "put": [{"kind": "checkpoint"}],
    "put with chunks": [{"kind": {"$exists": False}, "content": {"$exists": True}}],
    "first put": [{"kind": "thread"}],
    "put_writes": [{"kind": "write"}],
    "copy_thread": [{"kind": "checkpoint"}, {"kind": "write"}, MADE, SHOWN],
    "fork": [{"kind": "write"}, SHOWN],
    "fork the path": [OF_RUN, MADE, SHOWN],
    "rollback": [{"doomed": True}],
    "delete_thread": [{"kind": "thread", "deleted_at": {"$ne": None}}],
    "create": [MADE, SHOWN],
    "create again": [SHOWN],
    "create many": [SHOWN],
    "search": [{"kind": "end"}],
}
"""Methods, and documents of theirs that the server refuses, as it does if it has no room."""
IN_TURNS = ("copy_thread", "fork the path", "rollback")


@contextmanager
def refusing(store: MongoStore, documents: dict[str, Any]) -> Iterator[None]:
    """Have the server refuse to store documents that match."""
    database, name = store.collection.database, store.collection.name
    database.command({"collMod": name, "validator": {"$nor": [documents]}})
    try:
        yield
    finally:
        database.command({"collMod": name, "validator": {}})


def refusals() -> Iterator[Any]:
    """Each method with the documents that are refused, and how many rows it takes in a turn.

    In every run once, and of two that differ in their turns in one of them.
    """
    for number, (method, each) in enumerate((m, d) for m, ds in REFUSED.items() for d in ds):
        turns = (1000, 4) if method in IN_TURNS else (1000,)
        for rows in turns:
            is_quick = rows == turns[number % len(turns)]
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param(method, each, rows, id=f"{method}-{number}-{rows}", marks=marks)


@pytest.mark.by_halves
@pytest.mark.parametrize(("method", "documents", "rows"), list(refusals()))
def test_what_is_refused_has_no_effect_and_is_done_later(
    method: str,
    documents: dict[str, Any],
    rows: int,
    mongo_store: MongoStore,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Turns, "turn_rows", rows)
    call = MORE_METHODS[method]
    with mongo_store.saver() as saver, mongo_store.saver() as reader:
        put(saver, {"n": 1}, thread_id="gone")
        saver.delete_thread("gone")
        head = fill(saver)  # type: ignore[arg-type]
        before = content(reader, mongo_store)  # type: ignore[arg-type]
        with refusing(mongo_store, documents), pytest.raises(StorageError, match="validation"):
            call(saver, head)  # type: ignore[arg-type]
        after = content(reader, mongo_store)  # type: ignore[arg-type]
        if method != "create many":  # which makes one after the other
            assert after == before
        assert mongo_store.problems(reader, after_crash=True) == []
        call(saver, head)  # type: ignore[arg-type]
        done = content(reader, mongo_store)  # type: ignore[arg-type]
        assert done == expected.get(method, done)
        assert done != before or method == "search"
        assert mongo_store.problems(reader, after_crash=True) == []


def test_a_thread_is_given_away_with_the_tombstone_of_its_owner_or_not_at_all(
    mongo_store: MongoStore,
) -> None:
    with mongo_store.saver() as saver:
        put(saver.for_owner("alice"), {"n": 1})
        catalog = ThreadCatalog(saver)
        tombstones = {"tombstones.0": {"$exists": True}}
        with refusing(mongo_store, tombstones), pytest.raises(StorageError, match="validation"):
            catalog.update("thread", owner="bob")
        for owner in ("alice", "bob"):
            thread = catalog.get("thread")
            assert thread is not None
            assert thread.owner == owner
            catalog.update("thread", owner="bob")
