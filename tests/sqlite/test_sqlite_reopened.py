"""SQLite: calls before and in which a connection is opened anew, or to another store."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checking import config, counts_of, put, value_of
from children import Child
from forkpoint import SqliteSaver, StorageBusy, ThreadCatalog
from forkpoint.saver import parts_of
from forkpoint.sqlite.statements import Statements
from gates import call_between_turns
from stores import SqliteStore

Call = Callable[[SqliteSaver], Any]


def process_fork(_: Path) -> None:
    """Before which each connection is closed."""
    Child(lambda: None).join()


def new_table(path: Path) -> None:
    """Of the application, say; it might as well be a backup that was restored."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (number,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute(f"CREATE TABLE mine_{number} (n)")


def another_store(path: Path) -> None:
    """With keys of its own, in which there is a thread of that name, too."""
    other = path.with_name("other.db")
    with SqliteSaver(other) as saver:
        fill(saver, "thread", 3)
    os.replace(other, path)


CALLS: dict[str, Call] = {
    "get": lambda saver: ThreadCatalog(saver).get("thread"),
    "update": lambda saver: ThreadCatalog(saver).update("thread", label="new"),
    "clone": lambda saver: ThreadCatalog(saver).clone("thread", "copy"),
    "rollover": lambda saver: ThreadCatalog(saver).rollover("thread"),
    "stats": lambda saver: ThreadCatalog(saver).stats("thread"),
    "copy": lambda saver: saver.copy_thread("thread", "copy") or saver.get_tuple(config("copy")),
    "fork": lambda saver: saver.fork("thread", new_thread_id="copy"),
    "fork with values": lambda saver: saver.fork("thread", new_thread_id="copy", values={"n": 5}),
    "fork with the path": lambda saver: saver.fork("thread", new_thread_id="copy", history="path"),
    "get_delta_channel_history": lambda saver: saver.get_delta_channel_history(
        config=config(), channels=["n"]
    ),
}


def fill(saver: SqliteSaver, thread_id: str, count: int, run_id: str = "run") -> None:
    parent = None
    for n in range(count):
        metadata = {"run_id": run_id}
        parent = put(saver, {"n": n}, thread_id=thread_id, parent=parent, metadata=metadata)


@pytest.mark.parametrize("event", [process_fork, new_table, another_store])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_works_though_its_connection_has_to_be_prepared_again(
    call: str, event: Callable[[Path], None], path: Path
) -> None:
    with SqliteSaver(path) as saver:
        fill(saver, "thread", 3)
        event(path)
        assert CALLS[call](saver) is not None
        assert SqliteStore(path).problems(saver) == []


@pytest.mark.parametrize("event", [process_fork, new_table])
@pytest.mark.parametrize("call", ["clone", "fork with the path"])
def test_long_work_goes_on_though_its_connection_has_to_be_prepared_again(
    call: str, event: Callable[[Path], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 4)
    with SqliteSaver(path) as saver:
        fill(saver, "thread", 20)
        events: list[int] = []

        def act(number: int) -> None:
            events.append(number)
            event(path)

        call_between_turns(monkeypatch, act)
        CALLS[call](saver)
        assert events
        assert counts_of(saver) == {"thread": 20, "copy": 20}
        assert SqliteStore(path).problems(saver) == []


@pytest.mark.parametrize("turn", [1, 3, 5])
@pytest.mark.parametrize(
    "call",
    [
        lambda saver: saver.delete_for_runs(["run"]),
        lambda saver: saver.trim("thread", 3),
        lambda saver: saver.prune(["thread"]),
        lambda saver: saver.delete_thread("thread"),
    ],
    ids=["delete_for_runs", "trim", "prune", "delete_thread"],
)
def test_a_thread_that_has_the_key_of_another_in_a_restored_store_is_left_alone(
    call: Call, turn: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is newer than a backup is removed from, in turns, as that is restored."""
    monkeypatch.setattr(Statements, "default_turn_rows", 4)
    restored = path.with_name("restored.db")
    with SqliteSaver(path) as saver:
        fill(saver, "old", 1)
    restored.write_bytes(path.read_bytes())
    with SqliteSaver(restored) as other:
        fill(other, "newer", 20, "another")
    with SqliteSaver(path) as saver:
        fill(saver, "thread", 20)

        def restore(number: int) -> None:
            if number == turn:
                os.replace(restored, path)

        call_between_turns(monkeypatch, restore)
        call(saver)
        assert not restored.exists()
        assert counts_of(saver)["newer"] == 20
        assert SqliteStore(path).problems(saver) == []


def test_a_repair_takes_nothing_out_of_a_backup_that_is_restored_meanwhile(path: Path) -> None:
    store, backup = SqliteStore(path), path.with_name("backup.db")
    with SqliteSaver(path) as saver:
        fill(saver, "thread", 3)
    backup.write_bytes(path.read_bytes())
    store.change("checkpoints", store.rows("checkpoints")[-1].key, content=b"damaged")
    with SqliteSaver(path) as saver:

        def restore(_: object) -> None:
            if backup.exists():
                os.replace(backup, path)

        quarantine = path.with_name("quarantine.jsonl")
        report = saver.repair(quarantine=quarantine, on_progress=restore)
        assert not backup.exists()
        assert report.repaired == ()
        assert counts_of(saver) == {"thread": 3}
        assert store.problems(saver) == []


def test_stats_are_of_one_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 4)
    with SqliteSaver(path) as saver:
        fill(saver, "thread", 20)
        events: list[int] = []

        def replace(number: int) -> None:
            events.append(number)
            if number == 3:
                another_store(path)

        call_between_turns(monkeypatch, replace)
        stats = ThreadCatalog(saver).stats("thread")
        assert len(events) > 3
        assert stats.checkpoints == 3
        assert stats == ThreadCatalog(saver).stats("thread")


@pytest.mark.parametrize("turn", [3, 4])
def test_a_collection_removes_no_chunk_of_another_store_that_takes_the_place_of_its_own(
    turn: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In which a family has the same key, and something was removed from it as often."""
    monkeypatch.setattr(Statements, "default_turn_rows", 4)
    state = {"texts": [str(n) * 100 for n in range(100)]}
    other = path.with_name("other.db")
    with SqliteSaver(other) as saver:
        for n in range(2):
            put(saver, {**state, "n": n}, thread_id="other")
        saver.trim("other", 1)
    with SqliteSaver(path) as saver:
        put(saver, state)

        def replace(number: int) -> None:
            if number == turn:
                os.replace(other, path)

        call_between_turns(monkeypatch, replace)
        saver.purge("thread")
        assert not other.exists()
        assert value_of(saver.get_tuple(config("other"))) == {**state, "n": 1}
        assert SqliteStore(path).problems(saver) == []


def test_a_transaction_within_another_one_of_the_same_thread_is_refused(path: Path) -> None:
    with SqliteSaver(path) as saver:
        fill(saver, "thread", 2)
        storage = parts_of(saver).context.storage
        with storage.writing() as session:
            thread = session.threads.find("thread")
            assert thread is not None
            session.threads.delete(thread)
            with pytest.raises(StorageBusy), storage.reading():
                pass
        assert saver.get_tuple(config()) is None
