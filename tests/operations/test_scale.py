"""What an operation reads depends on what it touches, and not on how long the thread is.

It is counted: the instructions of SQLite's virtual machine, and the keys and documents that MongoDB
examines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from checking import config, put
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.mongodb.turns import Turns
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from stores import MongoStore, Store

SHORT, LONG = 40, 160

FLAT: dict[str, Callable[[ForkpointSaver, Any], Any]] = {
    "put": lambda saver, head: put(saver, {"n": -1}, parent=head),
    "get_tuple": lambda saver, _: saver.get_tuple(config()),
    "list 5": lambda saver, _: list(saver.list(config(), limit=5)),
    "fork": lambda saver, _: saver.fork("thread"),
    "rollback of 1": lambda saver, _: saver.rollback("thread"),
    "rollback of 3": lambda saver, _: saver.rollback("thread", 3),
}
LINEAR: dict[str, Callable[[ForkpointSaver, Any], Any]] = {
    "list, no match": lambda saver, _: list(saver.list(config(), filter={"no": 1})),
    "stats": lambda saver, _: ThreadCatalog(saver).stats("thread"),
    "fork with its path": lambda saver, _: saver.fork("thread", history="path"),
    "copy": lambda saver, _: saver.copy_thread("thread", "copy"),
    "trim": lambda saver, _: saver.trim("thread", 5),
    "purge": lambda saver, _: saver.purge("thread"),
}


@pytest.fixture
def work(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, Any], int]:
    """Returns how much a call reads in a thread of a given length, whose turns are short."""
    monkeypatch.setattr(Statements, "default_turn_rows", 20)
    monkeypatch.setattr(Turns, "turn_rows", 20)

    def measured(length: int, call: Callable[[ForkpointSaver, Any], Any]) -> int:
        store = new_store()
        with store.saver() as saver:
            head = None
            for n in range(length):
                head = put(saver, {"n": n, "text": f"{n} " * 400}, parent=head)
            for _ in range(2):  # what is known after the first time
                saver.get_tuple(config())
            before = counter(store, saver)
            call(saver, head)
            return counter(store, saver) - before

    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def counter(store: Store, saver: ForkpointSaver) -> int:
        if isinstance(store, MongoStore):
            status = store.collection.database.client.admin.command("serverStatus")
            executed = status["metrics"]["queryExecutor"]
            return int(executed["scanned"] + executed["scannedObjects"])
        assert isinstance(saver, SqliteSaver)
        parts_of(saver).context.storage._connection.set_progress_handler(step, 10)  # type: ignore[attr-defined]
        return steps

    return measured


@pytest.mark.parametrize(
    "operation",
    [pytest.param(name, marks=() if "rollback" in name else pytest.mark.slow) for name in FLAT],
)
def test_it_reads_as_much_of_a_long_thread_as_of_a_short_one(
    operation: str, work: Callable[[int, Any], int]
) -> None:
    short, long = (work(length, FLAT[operation]) for length in (SHORT, LONG))
    assert long <= 1.3 * short + 30


@pytest.mark.parametrize(
    "operation",
    [pytest.param(name, marks=() if name == "trim" else pytest.mark.slow) for name in LINEAR],
)
def test_it_reads_in_proportion_to_what_it_touches(
    operation: str, work: Callable[[int, Any], int]
) -> None:
    half, long = (work(length, LINEAR[operation]) for length in (LONG // 2, LONG))
    assert long <= 1.3 * 2 * half + 30
