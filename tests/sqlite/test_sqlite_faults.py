"""What SQLite refuses is a typed error; nothing of it is stored, and afterwards all goes on."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from checking import config, counts_of, put, value_of
from children import Child
from forkpoint import (
    CorruptChunk,
    InvalidInput,
    SqliteSaver,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageReplaced,
    ThreadCatalog,
    ThreadDeleted,
    ThreadFilter,
)
from forkpoint.catalog import records
from forkpoint.catalog.arguments import NewThread
from forkpoint.sqlite import setup, storage
from forkpoint.sqlite.statements import Statements
from gates import call_between_turns
from stores import SqliteStore

Call = Callable[[SqliteSaver], Any]
WRITES: dict[str, Call] = {
    "put": lambda saver: put(saver, {"n": 2}),
    "update": lambda saver: ThreadCatalog(saver).update("thread", label="x"),
}


@contextlib.contextmanager
def reader(name: str | Path) -> Iterator[sqlite3.Connection]:
    """Another connection that reads, and does not end that."""
    uri = str(name).startswith("file:")
    connection = sqlite3.connect(name, uri=uri, isolation_level=None)
    with contextlib.closing(connection):
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM forkpoint_threads").fetchall()
        yield connection
        connection.execute("ROLLBACK")


@pytest.mark.parametrize("write", WRITES)
def test_without_a_log_a_commit_waits_for_who_reads(write: str, path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    with SqliteSaver(path, busy_timeout=0.05) as saver:
        with reader(path), pytest.raises(StorageBusy, match="locked"):
            WRITES[write](saver)
        (thread,) = ThreadCatalog(saver).search()
        assert (value_of(saver.get_tuple(config())), thread.label) == ({"n": 1}, None)
        WRITES[write](saver)
        assert SqliteStore(path).problems(saver) == []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with SqliteSaver(path, busy_timeout=0.05) as saver:
            with pytest.raises(StorageBusy):
                saver.get_tuple(config())
            other.execute("ROLLBACK")
            assert saver.get_tuple(config()) is not None


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("is_passed", [True, False])
def test_a_table_of_a_shared_cache_may_be_locked(write: str, is_passed: bool) -> None:
    name = f"file:{write}-{is_passed}?mode=memory&cache=shared"
    passed = sqlite3.connect(name, uri=True, check_same_thread=False, timeout=0.05)
    saver = SqliteSaver(passed) if is_passed else SqliteSaver(name, busy_timeout=0.05)
    put(saver, {"n": 1})
    with reader(name), pytest.raises(StorageBusy, match="table is locked"):
        WRITES[write](saver)
    assert value_of(saver.get_tuple(config())) == {"n": 1}
    WRITES[write](saver)
    saver.close()
    passed.close()


def test_a_broken_file_is_a_typed_error(path: Path) -> None:
    with SqliteSaver(path) as saver:
        for n in range(30):
            put(saver, {"n": n, "text": "x" * 2000}, thread_id=f"t{n}")
    pages = os.path.getsize(path) // 4096
    with path.open("r+b") as file:
        file.seek(pages // 2 * 4096)
        file.write(b"\xff" * (pages - pages // 2) * 4096)
    with SqliteSaver(path) as saver:
        for call in (lambda: list(saver.list(None)), saver.check, lambda: put(saver, {"n": 1})):
            with pytest.raises(StorageError, match="malformed"):
                call()


def test_tables_that_do_not_fit_are_not_made(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        connection.execute("PRAGMA max_page_count = 8")
        saver = SqliteSaver(connection)
        with pytest.raises(StorageFull):
            saver.setup()
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
        connection.execute("PRAGMA max_page_count = 1000")
        put(saver, {"n": 1})
        assert value_of(saver.get_tuple(config())) == {"n": 1}


def test_a_caller_that_is_deep_in_a_recursion_is_not_told_of_an_interrupt(path: Path) -> None:
    """SQLite hides what a function raised that it called."""

    def nested(levels: int, call: Callable[[], Any]) -> Any:
        return call() if levels == 0 else nested(levels - 1, call)

    with SqliteSaver(path) as saver:
        put(saver, {"n": 1}, metadata={"run_id": "run", "text": "x" * 500})
        outcomes = set()
        frames = len(inspect.stack())
        for levels in range(sys.getrecursionlimit() - frames - 60, sys.getrecursionlimit()):
            try:
                nested(levels, lambda: list(saver.list(config(), filter={"run_id": "run"})))
                outcomes.add("it is read")
            except RecursionError:
                outcomes.add("it is too deep")
            except InvalidInput:
                pass  # of the filter
        assert outcomes == {"it is read", "it is too deep"}


def test_threads_are_found_by_many_terms_at_once(path: Path) -> None:
    with SqliteSaver(path) as saver:
        catalog = ThreadCatalog(saver)
        tags = [f"tag {n}" for n in range(12)]
        catalog.create("all", tags=tags)
        catalog.create("most", tags=tags[:-1])
        for sort_by in ("updated_at", "status"):
            found = catalog.search(ThreadFilter(tags=tags), sort_by=sort_by)
            assert [thread.thread_id for thread in found] == ["all"]
        assert catalog.count(ThreadFilter(tags=tags[:-1])) == 2


@pytest.mark.parametrize("value", ["'x'", "x'ff'", "9e30", "1 << 62"])
def test_a_time_that_is_none_is_noted_anew(value: str, path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
    change_setting(path, "clock", value)
    with SqliteSaver(path) as saver:
        put(saver, {"n": 2})
        thread = ThreadCatalog(saver).get("thread")
        assert thread is not None
        assert abs(thread.updated_at - datetime.now(timezone.utc)) < timedelta(days=1)
        assert SqliteStore(path).problems(saver) == []


@pytest.mark.parametrize("value", ["'x'", "1 << 62"])
@pytest.mark.parametrize("name", ["store_key", "secret:1"])
def test_a_key_that_is_none_is_damage(name: str, value: str, path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
        saver.delete_thread("another")
    change_setting(path, name, value)
    with SqliteSaver(path) as saver:
        with pytest.raises(CorruptChunk, match="the key of the store"):
            put(saver, {"n": 1}, thread_id="new")
        with pytest.raises(CorruptChunk, match="the key of the store"):
            saver.delete_thread("thread")


def change_setting(path: Path, name: str, value: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        statement = f"UPDATE OR IGNORE forkpoint_settings SET value = {value} WHERE name = ?"
        connection.execute(statement, (name,))
        connection.commit()


def test_a_waiter_that_is_none_is_damage(path: Path) -> None:
    store = SqliteStore(path)
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
        with store.connection() as connection:
            connection.execute('UPDATE forkpoint_threads SET lease_queue = \'{"a": "x"}\'')
        with pytest.raises(CorruptChunk, match="'thread'"):
            ThreadCatalog(saver).run("thread").__enter__()


def test_many_threads_are_not_made_in_two_stores(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CREATED_AT_ONCE", 2)
    with SqliteSaver(tmp_path / "other.db") as other:
        put(other, {"n": 1})

    def replace(number: int) -> None:
        if number == 1:
            os.replace(tmp_path / "other.db", path)

    with SqliteSaver(path) as saver:
        catalog = ThreadCatalog(saver)
        put(saver, {"n": 0}, thread_id="old")
        call_between_turns(monkeypatch, replace)
        with pytest.raises(StorageReplaced, match="create_many again"):
            catalog.create_many([NewThread(f"t{n}") for n in range(5)], if_exists="do_nothing")
        made = catalog.create_many([NewThread(f"t{n}") for n in range(5)])
        assert len(made) == 5
        assert catalog.count() == 6


def test_an_id_that_was_deleted_is_marked_when_many_threads_are_made(path: Path) -> None:
    with SqliteSaver(path) as saver:
        catalog = ThreadCatalog(saver)
        late = put(saver, {"n": 1}, thread_id="t1")
        catalog.delete("t1")
        catalog.create_many([NewThread(f"t{n}") for n in range(3)])
        with SqliteSaver(path) as other, pytest.raises(ThreadDeleted):
            put(other, {"n": 2}, parent=late)
        assert catalog.count() == 3


def test_a_copy_that_was_taken_for_abandoned_is_begun_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 4)
    store = SqliteStore(path)

    def abandon(number: int) -> None:
        if number == 2:
            with store.connection() as connection:
                select = "SELECT key FROM forkpoint_threads WHERE copy_deadline > 0"
                (key,) = connection.execute(select).fetchone()
                for table in ("checkpoints", "writes"):
                    connection.execute(f"DELETE FROM forkpoint_{table} WHERE thread = ?", (key,))
                connection.execute("DELETE FROM forkpoint_threads WHERE key = ?", (key,))

    with SqliteSaver(path) as saver:
        head: Any = None
        for n in range(20):
            head = put(saver, {"n": n}, parent=head)
        call_between_turns(monkeypatch, abandon)
        with pytest.raises(StorageBusy, match="taken for abandoned"):
            saver.copy_thread("thread", "copy")
        saver.copy_thread("thread", "copy")
        assert len(list(saver.list(config("copy")))) == 20
        assert store.problems(saver) == []


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT * FROM forkpoint_threads").fetchall()
print("it reads", flush=True)
sys.stdin.read()
"""


def test_a_file_that_was_replaced_is_opened_when_nobody_reads_the_old_one(path: Path) -> None:
    """For its log has the name that that of the new one is to have."""
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
        backup = path.with_name("backup.db")
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(backup)) as target,
        ):
            source.backup(target)
        put(saver, {"n": 2})
        command = [sys.executable, "-c", READER, str(path)]
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "it reads\n"
            put(saver, {"n": 3})
            os.rename(backup, path)
            for _ in range(2):
                with pytest.raises(StorageBusy, match="was replaced while another process reads"):
                    put(saver, {"n": 4})
            process.communicate("")
        assert value_of(saver.get_tuple(config())) == {"n": 1}
        put(saver, {"n": 5})
    with SqliteSaver(path) as other:
        assert value_of(other.get_tuple(config())) == {"n": 5}
        assert SqliteStore(path).problems(other) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is told
def test_a_connection_that_cannot_be_closed_before_a_fork_keeps_no_other_open(path: Path) -> None:
    others = [path.with_name(f"other-{n}.db") for n in range(2)]
    with SqliteSaver(path) as saver, SqliteSaver(others[0]) as one, SqliteSaver(others[1]) as two:
        for each in (saver, one, two):
            put(each, {"n": 1})
        command = [sys.executable, "-c", READER, str(path)]
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "it reads\n"
            put(saver, {"n": 2})
            path.rename(path.with_name("moved.db"))
            shutil.copyfile(others[0], path)  # it has not been given its log yet

            def work() -> None:
                for each in (one, two):
                    put(each, {"n": 2})

            Child(work).join()
            process.communicate("")
        for each in (one, two):
            put(each, {"n": 3})
            assert counts_of(each) == {"thread": 3}


@pytest.mark.parametrize(
    "call",
    [
        lambda saver: put(saver, {"n": 2}),
        lambda saver: ThreadCatalog(saver).update("thread", label="new"),
        lambda saver: saver.fork("thread", new_thread_id="new"),
        lambda saver: saver.delete_thread("thread"),
    ],
    ids=["put", "update", "fork", "delete"],
)
def test_what_is_stored_in_a_file_that_is_just_replaced_is_stored_again(
    call: Call, path: Path
) -> None:
    store = SqliteStore(path)
    backup = path.with_name("backup.db")
    is_replaced = True

    def before(statement: str) -> None:
        nonlocal is_replaced
        if statement == "COMMIT" and not is_replaced:
            is_replaced = True
            os.rename(backup, path)

    with store.watched(before) as saver:
        put(saver, {"n": 1})
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(backup)) as target,
        ):
            source.backup(target)
        is_replaced = False
        call(saver)
        assert is_replaced
        after = described(saver)
    with store.saver() as other:
        assert described(other) == after
        assert store.problems(other) == []
        os.remove(path)
        put(other, {"n": 1})
        call(other)
        assert described(other) == after


def test_a_file_that_is_replaced_while_it_is_opened_is_not_taken_for_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = path.with_name("other.db")
    for name, n in ((path, 1), (other, 2)):
        with SqliteSaver(name) as saver:
            put(saver, {"n": n})

    def prepare(*args: Any) -> None:
        if other.exists():
            os.rename(other, path)
        setup.prepare(*args)

    monkeypatch.setattr(storage, "prepare", prepare)
    with SqliteSaver(path) as saver:
        put(saver, {"n": 3})
        assert [value_of(found)["n"] for found in saver.list(config())] == [3, 2]
    with SqliteSaver(path) as saver:
        assert [value_of(found)["n"] for found in saver.list(config())] == [3, 2]
        assert SqliteStore(path).problems(saver) == []


def described(saver: SqliteSaver) -> Any:
    """Return what the threads of a saver are called, and what they have."""
    threads = ThreadCatalog(saver).search(sort_by="thread_id").items
    return [
        (thread.thread_id, thread.label, [value_of(found) for found in saver.list(config(id_))])
        for thread in threads
        for id_ in [thread.thread_id]
    ]
