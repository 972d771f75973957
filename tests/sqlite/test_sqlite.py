"""SQLite: every way to give a saver its database, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from checking import Api, checkpoint, config, counts_of, put, value_of
from forkpoint import (
    InvalidInput,
    SaverClosed,
    SqliteSaver,
    StorageBusy,
    StorageReadOnly,
    ThreadCatalog,
    ThreadExists,
    ThreadFilter,
)
from forkpoint.saver import parts_of
from forkpoint.sqlite.full_disk import restart_log
from stores import SqliteStore


@pytest.mark.parametrize("kind", ["path", "string", "memory", "uri", "connection"])
async def test_every_kind_of_database_serves_both_worlds(kind: str, path: Path) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    database: Any = {
        "path": path,
        "string": str(path),
        "memory": ":memory:",
        "uri": path.as_uri(),
        "connection": connection,
    }[kind]
    with SqliteSaver(database) as saver:
        first = put(saver, {"n": 1})
        await saver.aput(first, checkpoint({"n": 2}), {}, {"n": 1})
        assert value_of(saver.get_tuple(config())) == {"n": 2}
        assert value_of(await saver.aget_tuple(config())) == {"n": 2}
        seen = await asyncio.gather(*(asyncio.to_thread(saver.get_tuple, config()) for _ in "123"))
        assert [value_of(entry) for entry in seen] == [{"n": 2}] * 3
    assert connection.execute("SELECT 1").fetchone() == (1,)  # what was passed stays open
    connection.close()


CALLS: dict[str, Callable[[Api], Awaitable[Any]]] = {
    "setup": lambda api: api.setup(),
    "get_tuple": lambda api: api.get_tuple(config()),
    "get": lambda api: api.get(config()),
    "list": lambda api: api.list(config()),
    "get_delta_channel_history": lambda api: api.get_delta_channel_history(
        config=config(), channels=["c"]
    ),
    "put": lambda api: api.put(config(), checkpoint({"n": 1}), {}, {"n": 1}),
    "put_writes": lambda api: api.put_writes(config("thread", "1"), [("c", 1)], "task"),
    "delete_thread": lambda api: api.delete_thread("thread"),
    "delete_for_runs": lambda api: api.delete_for_runs(["run"]),
    "copy_thread": lambda api: api.copy_thread("thread", "copy"),
    "prune": lambda api: api.prune(["thread"], strategy="delete"),
    "at": lambda api: api.at("thread", 0),
    "latest": lambda api: api.latest({"a": 1}),
    "value": lambda api: api.value("thread", "n"),
    "find_message": lambda api: api.find_message("thread", "message"),
    "diff": lambda api: api.diff("thread", "thread"),
    "fork": lambda api: api.fork("thread"),
    "lineage": lambda api: api.lineage("thread"),
    "family": lambda api: api.family("thread"),
    "rollback": lambda api: api.rollback("thread"),
    "trim": lambda api: api.trim("thread", 1),
    "purge": lambda api: api.purge("thread"),
}


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_every_call_tells_that_the_aiosqlite_connection_was_closed(
    world: str, path: Path
) -> None:
    async with aiosqlite.connect(path) as connection:
        saver = SqliteSaver(connection)
        await saver.aput(config(), checkpoint({"n": 1}), {}, {"n": 1})

    for call in CALLS.values():
        with pytest.raises(SaverClosed, match="aiosqlite"):
            await call(Api(saver, world))
    with pytest.raises(SaverClosed):
        await Api(ThreadCatalog(saver), world).search()


async def test_a_value_error_of_an_operation_is_not_taken_for_a_closed_connection(
    path: Path,
) -> None:
    async with aiosqlite.connect(path) as connection:
        saver = SqliteSaver(connection)
        await saver.aput(config(), checkpoint({"n": 1}), {}, {"n": 1})
        with pytest.raises(ThreadExists):  # which is one, too
            await saver.afork("thread", new_thread_id="thread")


async def test_savers_of_one_aiosqlite_connection_may_be_called_by_each_other(path: Path) -> None:
    async with aiosqlite.connect(path) as connection:
        saver, other = SqliteSaver(connection), SqliteSaver(connection)
        await saver.aput(config(), checkpoint({"n": 1}), {}, {"n": 1})
        seen: list[Any] = []
        await saver.acheck(on_progress=lambda _: seen.append(value_of(other.get_tuple(config()))))
        assert seen == [{"n": 1}]


def test_asyncio_run_waits_at_its_end_for_a_call_on_an_aiosqlite_connection(path: Path) -> None:
    began, cancelled, ended = threading.Event(), threading.Event(), threading.Event()
    tasks = []

    def operation() -> None:
        began.set()
        assert cancelled.wait(60)
        time.sleep(0.1)  # while `asyncio.run` would end
        ended.set()

    async def notice_cancellation() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def main() -> tuple[aiosqlite.Connection, SqliteSaver]:
        connection = await aiosqlite.connect(path)
        saver = SqliteSaver(connection)
        tasks.append(asyncio.create_task(parts_of(saver).runner.arun(operation)))
        tasks.append(asyncio.create_task(notice_cancellation()))
        await asyncio.to_thread(began.wait)
        return connection, saver

    connection, saver = asyncio.run(main())
    assert ended.is_set()
    assert tasks[0].cancelled()
    put(saver, {"n": 1})  # its thread goes on
    asyncio.run(connection.close())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_aiosqlite_connection_whose_thread_has_ended_says_so(path: Path) -> None:
    began, is_closed = threading.Event(), threading.Event()

    def operation() -> None:
        began.set()
        assert is_closed.wait(60)

    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(_opened(path))
    saver = SqliteSaver(connection)
    task = loop.create_task(parts_of(saver).runner.arun(operation))
    loop.run_until_complete(asyncio.to_thread(began.wait))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    is_closed.set()
    connection._thread.join()
    with pytest.raises(SaverClosed, match="thread has ended"):
        saver.get_tuple(config())


async def _opened(path: Path) -> aiosqlite.Connection:
    return await aiosqlite.connect(path)


@pytest.mark.parametrize("where", ["file", ":memory:"])
async def test_an_aiosqlite_connection_serves_both_worlds(where: str, path: Path) -> None:
    async with aiosqlite.connect(where if where == ":memory:" else path) as connection:
        connection.row_factory = aiosqlite.Row
        saver = SqliteSaver(connection)
        first = await saver.aput(config(), checkpoint({"n": 1}), {}, {"n": 1})
        saver.put(first, checkpoint({"n": 2}), {}, {"n": 1})  # sync, on the loop's own thread
        assert value_of(await saver.aget_tuple(config())) == {"n": 2}
        assert value_of(await asyncio.to_thread(saver.get_tuple, config())) == {"n": 2}
        assert [value_of(entry) async for entry in saver.alist(config())] == [{"n": 2}, {"n": 1}]
        await saver.aclose()
        async with connection.execute("SELECT 1") as cursor:
            assert tuple(await cursor.fetchone() or ()) == (1,)


def test_a_passed_connection_that_is_closed_says_so(path: Path) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection)
    put(saver, {"n": 1})
    connection.close()

    with pytest.raises(SaverClosed):
        saver.get_tuple(config())


def test_the_file_may_hold_other_tables_those_of_other_savers_too(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE checkpoints (mine); CREATE TABLE writes (mine); INSERT INTO writes VALUES (1)"
    )
    connection.commit()
    with SqliteSaver(path) as saver:
        put(saver, {"text": "x" * 9000})
        saver.delete_thread("thread")
    assert connection.execute("SELECT * FROM writes").fetchall() == [(1,)]
    connection.close()


BAD_DATABASES: dict[str, Callable[[Path], Any]] = {
    "a directory": lambda directory: directory,
    "no such directory": lambda directory: directory / "nowhere" / "x.db",
    "no database": lambda directory: directory / "text.txt",
    "a number": lambda _: 5,
    "nothing": lambda _: None,
    "empty": lambda _: "",
    "bytes": lambda _: b"x.db",
    "nul": lambda _: "x\0.db",
    "a closed aiosqlite connection": lambda directory: aiosqlite.connect(directory / "x.db"),
}


@pytest.mark.parametrize("which", BAD_DATABASES)
def test_what_is_no_database_is_refused_at_once(which: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no database, and long enough to be read as its header")

    with pytest.raises(InvalidInput):
        SqliteSaver(BAD_DATABASES[which](tmp_path))


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("sqlite:///x.db", "; write the path alone, such as agent.db"),
        ("sqlite+aiosqlite:///x.db", "; write the path alone, such as agent.db"),
        ("mongodb://user:secret@host/db", "; a store in MongoDB needs MongoDBSaver"),
        ("mongodb+srv://user:secret@host/db", "; a store in MongoDB needs MongoDBSaver"),
        ("postgresql://user:secret@host/db", ""),
    ],
)
def test_a_url_is_refused_without_what_is_secret_in_it(url: str, advice: str) -> None:
    for given in (SqliteSaver, SqliteSaver.from_conn_string):
        with pytest.raises(InvalidInput, match="must be a path or a file: URI, not ") as refused:
            given(url)
        assert "secret" not in str(refused.value)
        assert str(refused.value).endswith(f"...{advice}")


def test_a_file_that_breaks_later_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "late.db"
    saver = SqliteSaver(path)
    path.write_bytes(b"no database at all, but only after the saver was made" * 100)

    with pytest.raises(InvalidInput, match="no SQLite database"):
        saver.get_tuple(config())
    saver.close()


@pytest.mark.parametrize("bad", ["FULL", "off", None, 1])
def test_an_unknown_durability_is_refused(path: Path, bad: Any) -> None:
    with pytest.raises(InvalidInput, match="durability"):
        SqliteSaver(path, durability=bad)


@pytest.mark.parametrize(("durability", "level", "is_flushed"), [("full", 2, 1), ("normal", 1, 0)])
def test_durability_sets_how_sqlite_syncs(
    path: Path, durability: str, level: int, is_flushed: int
) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection, durability=durability)
    saver.setup()

    assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
    assert connection.execute("PRAGMA fullfsync").fetchone() == (is_flushed,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_connection_bound_to_one_thread_says_how_to_open_it(path: Path) -> None:
    connection = sqlite3.connect(path)
    saver = SqliteSaver(connection)
    put(saver, {"n": 1})  # on its own thread it works

    with pytest.raises(InvalidInput, match="check_same_thread=False"):
        asyncio.run(saver.aget_tuple(config()))
    connection.close()


def test_a_connection_with_an_open_transaction_is_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection)
    saver.setup()
    connection.execute("CREATE TABLE mine (n)")
    connection.execute("INSERT INTO mine VALUES (1)")

    with pytest.raises(InvalidInput, match="open transaction"):
        put(saver, {"n": 1})
    assert connection.in_transaction
    connection.commit()
    put(saver, {"n": 1})
    assert connection.execute("SELECT * FROM mine").fetchall() == [(1,)]
    connection.close()


if sys.version_info >= (3, 12):

    def test_a_connection_that_never_commits_by_itself_is_refused(path: Path) -> None:
        connection = sqlite3.connect(path, check_same_thread=False, autocommit=False)

        with pytest.raises(InvalidInput, match="autocommit"):
            put(SqliteSaver(connection), {"n": 1})
        connection.close()


def test_savers_of_one_connection_take_turns(path: Path) -> None:
    """As a server has them that makes a saver for each request."""
    connection = sqlite3.connect(path, check_same_thread=False)

    def request(n: int) -> None:
        put(SqliteSaver(connection), {"n": n}, thread_id=f"thread-{n % 4}")

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(request, range(40)))
    store, saver = SqliteStore(path), SqliteSaver(connection)
    assert counts_of(saver) == {f"thread-{n}": 10 for n in range(4)}
    assert store.problems(saver) == []
    connection.close()


def test_a_database_that_is_attached_stays_as_it_is(path: Path) -> None:
    attached = path.with_name("attached.db")
    other = sqlite3.connect(attached)
    other.execute("CREATE TABLE mine (n)")
    other.close()
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("ATTACH ? AS theirs", (str(attached),))
    settings = "journal_mode", "secure_delete", "synchronous"

    def read() -> list[Any]:
        return [connection.execute(f"PRAGMA theirs.{name}").fetchone() for name in settings]

    before = read()
    put(SqliteSaver(connection), {"n": 1})
    assert read() == before
    assert connection.execute("PRAGMA main.journal_mode").fetchone() == ("wal",)
    connection.close()


OLD_FUNCTIONS = {"abs", "char", "coalesce", "count", "instr", "json_each", "length", "like", "max"}
OLD_FUNCTIONS |= {"min", "random", "substr", "total", "typeof"}
"""Of those that SQLite has, which it had in release 3.26 already."""


def test_statements_call_no_functions_that_older_releases_of_sqlite_lack(path: Path) -> None:
    functions: set[str] = set()

    def note(action: int, _: str | None, function: str | None, *__: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION and function is not None:
            functions.add(function)
        return sqlite3.SQLITE_OK

    connection = sqlite3.connect(path, check_same_thread=False)
    connection.set_authorizer(note)
    with SqliteSaver(connection) as saver:
        catalog = ThreadCatalog(saver)
        for n in range(3):
            put(saver, {"n": n, "text": "x" * 9000}, metadata={"long": "x" * 999, "run_id": "a"})
        saver.fork("thread", new_thread_id="fork")
        catalog.clone("thread", "clone", tags=["a", "b"])
        assert len(list(saver.list(config(), filter={"long": "x" * 999}))) == 3
        saver.rollback("clone")
        saver.trim("thread", 1)
        catalog.rollover("thread", "new")
        for sort_by in ("updated_at", "state_updated_at", "status"):
            filter = ThreadFilter(any_tags=["a", "c"], label_contains="x", status=["idle", "busy"])
            catalog.search(filter, sort_by=sort_by)
        catalog.count()
        with catalog.run("thread"):
            pass
        saver.delete_for_runs(["a"])
        saver.delete_thread("clone")
        assert saver.check().is_clean
    connection.close()
    assert {name for name in functions if not name.startswith("forkpoint_")} <= OLD_FUNCTIONS


def test_the_row_factory_of_a_connection_is_not_called(path: Path) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("it was called")

    connection = sqlite3.connect(path, check_same_thread=False)
    connection.row_factory = refuse
    saver = SqliteSaver(connection)
    put(saver, {"blob": os.urandom(500_000)})
    saver.delete_thread("thread")  # and gives the space back
    restart_log(connection)  # as on a full disk
    assert ThreadCatalog(saver).count() == 0
    connection.close()


def test_space_is_not_given_back_within_a_transaction_of_the_caller(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    connection.execute("CREATE TABLE mine (blob)")
    connection.execute("INSERT INTO mine VALUES (zeroblob(1000000))")
    connection.execute("DELETE FROM mine")
    saver = SqliteSaver(connection)
    saver.setup()
    connection.execute("BEGIN")  # between a deletion and what tidies up after it
    connection.execute("INSERT INTO mine VALUES (1)")
    assert not parts_of(saver).context.storage.tidy()
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    assert parts_of(saver).context.storage.tidy() is False
    assert connection.execute("SELECT * FROM mine").fetchall() == []
    assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
    connection.close()


def test_a_connection_that_does_not_return_texts_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    for factory in (bytes, bytearray):  # before there are tables, and while there are
        connection.text_factory = factory
        with pytest.raises(InvalidInput, match="returns texts as byte"):
            put(SqliteSaver(connection), {"n": 1})
        connection.text_factory = str
        put(SqliteSaver(connection), {"n": 1})
    connection.close()


@pytest.mark.parametrize("how", ["uri", "connection"])
def test_a_read_only_database_can_be_read_and_not_written(path: Path, how: str) -> None:
    with SqliteSaver(path) as saver:
        stored = put(saver, {"n": 1, "text": "x" * 9000})
        saver.put_writes(stored, [("c", 1)], "task")
    uri = f"{path.as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    saver = SqliteSaver(uri if how == "uri" else connection)

    entry = saver.get_tuple(config())
    assert entry is not None
    assert entry.pending_writes == [("task", "c", 1)]
    assert len(list(saver.list(None))) == 1
    writes: list[Callable[[], Any]] = [
        lambda: put(saver, {"n": 2}),
        lambda: saver.put_writes(stored, [("c", 2)], "other"),
        lambda: saver.delete_thread("thread"),
        lambda: saver.copy_thread("thread", "copy"),
        lambda: saver.prune(["thread"]),
    ]
    for write in writes:
        with pytest.raises(StorageReadOnly):
            write()
    assert value_of(saver.get_tuple(config())) == {"n": 1, "text": "x" * 9000}
    saver.close()
    connection.close()


def test_a_file_without_write_permission_can_be_read() -> None:
    """By an ordinary user: permissions do not stop the superuser."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "checkpoints.db"
        with SqliteSaver(path) as saver:
            put(saver, {"n": 1})
        path.chmod(0o444)
        Path(directory).chmod(0o777)
        script = f"""
import os
from forkpoint import SqliteSaver, StorageReadOnly
if os.getuid() == 0:
    os.setuid(65534)
saver = SqliteSaver({str(path)!r})
config = {{"configurable": {{"thread_id": "thread"}}}}
assert saver.get_tuple(config).checkpoint["channel_values"] == {{"n": 1}}
try:
    saver.delete_thread("thread")
except StorageReadOnly:
    print("refused")
"""
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout == "refused\n"


def test_a_database_that_another_holds_too_long_is_a_typed_error(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=0.1, check_same_thread=False, isolation_level=None)
    saver = SqliteSaver(connection)
    put(saver, {"n": 1})
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StorageBusy):
        put(saver, {"n": 2})
    assert value_of(saver.get_tuple(config())) == {"n": 1}  # reading goes on
    other.execute("ROLLBACK")
    put(saver, {"n": 3})
    other.close()
    connection.close()


def test_the_file_shrinks_when_much_is_deleted(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1}, thread_id="stays")
        put(saver, {"blob": os.urandom(8_000_000)}, thread_id="goes")
        large = path.stat().st_size + path.with_name(path.name + "-wal").stat().st_size
        saver.delete_thread("goes")
        assert value_of(saver.get_tuple(config("stays"))) == {"n": 1}
    assert large > 8_000_000
    assert path.stat().st_size < 400_000


def test_an_operation_that_fails_commits_nothing(path: Path) -> None:
    saver = SqliteSaver(path)
    put(saver, {"n": 1})
    storage = parts_of(saver).context.storage

    def fail_in_between() -> None:
        with storage.writing() as session:
            thread = session.threads.find("thread")
            assert thread is not None
            session.threads.delete(thread)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail_in_between()
    assert saver.get_tuple(config()) is not None
    assert SqliteStore(path).problems(saver) == []
    saver.close()
