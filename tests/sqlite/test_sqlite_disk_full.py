"""A full disk is a typed error; what was being written is gone, and the rest still works."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import config, put
from forkpoint import SqliteSaver, StorageFull, ThreadCatalog, ThreadFilter
from forkpoint.saver import parts_of
from processes import environment
from servers import wait_until
from stores import SqliteStore

MESSAGES = [HumanMessage(f"{n} " * 200, id=str(n)) for n in range(80)]


def write(saver: SqliteSaver, parent: Any) -> None:
    put(saver, {"messages": MESSAGES, "text": "new " * 3000}, parent=parent)


def put_writes(saver: SqliteSaver, parent: Any) -> None:
    saver.put_writes(parent, [("c", MESSAGES), ("d", "x" * 900)], "late task")


def copy(saver: SqliteSaver, _: Any) -> None:
    for n in range(40):
        saver.copy_thread("thread", f"copy-{n}")


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "operation", [write, put_writes, copy], ids=lambda operation: operation.__name__
)
def test_at_every_page_count_a_write_that_does_not_fit_leaves_no_trace(
    tmp_path: Path, operation: Callable[[SqliteSaver, Any], None], every: int
) -> None:
    failures = 0
    for spare in range(0, 1000, every):
        path = tmp_path / f"{spare}.db"
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        saver = SqliteSaver(connection, durability="normal")
        first = put(saver, {"messages": MESSAGES[:20]})
        saver.put_writes(first, [("c", "y" * 3000)], "task")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + spare}")
        before = len(list(saver.list(None)))

        try:
            operation(saver, first)
        except StorageFull:
            failures += 1
            if operation is not copy:  # which is forty operations, of which some had room
                assert len(list(saver.list(None))) == before
                entry = saver.get_tuple(config())
                assert entry is not None
                assert entry.checkpoint["channel_values"] == {"messages": MESSAGES[:20]}
                assert entry.pending_writes == [("task", "c", "y" * 3000)]
            assert SqliteStore(path).problems(saver) == []
            saver.delete_thread("thread")
            assert saver.get_tuple(config()) is None
            assert SqliteStore(path).problems(saver) == []
            connection.close()
            path.unlink()
        else:
            assert SqliteStore(path).problems(saver) == []
            connection.close()
            break
    assert 0 < failures < 999


def test_one_write_of_a_group_that_does_not_fit_does_not_take_the_others_along(
    path: Path,
) -> None:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    saver = SqliteSaver(connection, durability="normal")
    names = ["large", *(f"small-{n}" for n in range(4))]
    for name in names:
        put(saver, {"n": 0}, thread_id=name)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 6}")
    errors: list[Exception] = []

    def attempt(name: str) -> None:
        try:
            put(saver, {"text": "x" * 200_000 if name == "large" else "x"}, thread_id=name)
        except StorageFull as error:
            errors.append(error)

    storage: Any = parts_of(saver).context.storage
    threads = [threading.Thread(target=attempt, args=(name,)) for name in names]
    with storage._transactions._lock.rlock:  # until all of them wait for one commit
        for thread in threads:
            thread.start()
        wait_until(lambda: len(storage._puts._commits._queue) == len(names), "all of them")
    for thread in threads:
        thread.join()

    assert len(errors) == 1
    stored = {
        entry.config["configurable"]["thread_id"]
        for entry in saver.list(None)
        if entry.checkpoint["channel_values"] == {"text": "x"}
    }
    assert stored == set(names[1:])
    assert SqliteStore(path).problems(saver) == []
    connection.close()


# Searching, counting, deleting


def fill(connection: sqlite3.Connection, saver: SqliteSaver) -> None:
    """Leave the database no page that is not used."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    is_full = False
    while not is_full:
        try:
            put(saver, {"n": 1}, thread_id="the last one")
        except StorageFull:
            is_full = True


@pytest.mark.parametrize("is_passed", [True, False])
def test_what_the_index_has_no_room_for_is_searched_and_counted(
    is_passed: bool, path: Path
) -> None:
    passed = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    with SqliteSaver(passed if is_passed else path, durability="normal") as saver:
        catalog = ThreadCatalog(saver)
        for n in range(150):
            put(saver, {"n": n}, thread_id=f"{n}", metadata={"parity": n % 2})
        connection: Any = parts_of(saver).context.storage._connection
        fill(connection, saver)
        settings = ["PRAGMA max_page_count", "PRAGMA cache_spill"]
        before = [connection.execute(setting).fetchone() for setting in settings]
        last = {"the last one"}

        assert catalog.count() == 151
        for order in ("updated_at", "thread_id"):
            thread_ids: list[str] = []
            cursor = None
            while (cursor is not None or not thread_ids) and len(thread_ids) < 1000:
                page = catalog.search(sort_by=order, limit=60, cursor=cursor)
                thread_ids += [thread.thread_id for thread in page]
                cursor = page.next_cursor
            assert sorted(thread_ids) == sorted({*(f"{n}" for n in range(150)), *last})
        assert len(list(catalog.search(ThreadFilter(ids=["7", "8"])))) == 2
        assert catalog.count(ThreadFilter(metadata={"none": 1})) == 0
        assert ThreadCatalog(saver, owner="somebody").count() == 0

        assert [connection.execute(setting).fetchone() for setting in settings] == before
        assert catalog.bulk_delete(ThreadFilter(ids=[f"{n}" for n in range(100)])) == 100
        assert catalog.count() == 51
        put(saver, {"n": 1}, thread_id="there is room again")
        assert SqliteStore(path).problems(saver) == []
    passed.close()


def test_the_disk_is_that_of_the_file_where_its_name_is_a_link_on_another(path: Path) -> None:
    path.touch()
    with path.open() as file, SqliteSaver(f"/proc/self/fd/{file.fileno()}") as saver:
        put(saver, {"n": 1})  # /proc has no free space


ON_A_SMALL_DISK = """
import os, subprocess, sys
from pathlib import Path
from forkpoint import *
from checking import config, put

directory = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory)], check=True)

def fill():
    with open(directory / "filler", "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass

saver = SqliteSaver(directory / "a.db")
catalog = ThreadCatalog(saver)
for n in range(40):
    put(saver, {"text": os.urandom(4000).hex()}, thread_id=f"{n}")
catalog.count()
"""
SCENES = {
    "a disk that its own puts have filled": "",
    "a log that begins anew": """
connection = saver._context.storage._connection
connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
fill()
""",
    "a log at its end": """
connection = saver._context.storage._connection
connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
for n in range(100):
    catalog.update("0", label=str(n))
fill()
""",
}
GETS_OUT = """
try:
    for n in range(10_000):
        put(saver, {"text": os.urandom(20_000).hex()}, thread_id="no room")
    raise SystemExit("it is not full")
except StorageFull:
    pass
is_there = saver.get_tuple(config("no room")) is not None
assert catalog.count() == 40 + is_there
assert len(list(catalog.search(limit=50))) == 40 + is_there
saver.delete_thread("no room")
for n in range(20):
    saver.delete_thread(f"{n}")
assert catalog.bulk_delete(ThreadFilter(ids=["20", "21"])) == 2
assert catalog.count() == 18
assert sum(1 for _ in saver.list(None)) == 18
if (directory / "filler").exists():
    (directory / "filler").unlink()
put(saver, {"n": 1}, thread_id="there is room again")
"""
OPENED_ANEW = """
saver.close()
fill()
for call in (lambda saver: saver.get_tuple(config("0")), lambda saver: saver.delete_thread("0")):
    try:
        call(SqliteSaver(directory / "a.db"))
        raise SystemExit("it is not full")
    except StorageFull as error:
        assert str(directory) in str(error)
os.truncate(directory / "filler", os.path.getsize(directory / "filler") - 256 * 1024)
saver = SqliteSaver(directory / "a.db")
for n in range(20):
    saver.delete_thread(f"{n}")
assert ThreadCatalog(saver).count() == 20
"""


def scenes() -> Any:
    for scene in (*SCENES, "opened anew"):
        is_often = scene in ("a log at its end", "opened anew")
        yield pytest.param(scene, marks=() if is_often else pytest.mark.slow)


@pytest.mark.parametrize("scene", list(scenes()))
def test_a_full_disk_is_got_out_of_by_deleting(scene: str, tmp_path: Path) -> None:
    """On a real file system, which the process mounts in a name space of its own."""
    script = ON_A_SMALL_DISK + (SCENES[scene] + GETS_OUT if scene in SCENES else OPENED_ANEW)
    process = subprocess.run(
        ["unshare", "--map-root-user", "--mount", sys.executable, "-c", script, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
