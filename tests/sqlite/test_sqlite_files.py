"""SQLite: a database file that others open, close, remove, replace and restore meanwhile."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import sqlite3
import textwrap
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.sqlite import SqliteSaver as OfficialSaver

from checking import checkpoint, config, counts_of, put, value_of
from children import Child
from forkpoint import (
    CorruptChunk,
    InvalidInput,
    RetentionPolicy,
    SqliteSaver,
    StaleLease,
    StorageError,
    StorageReplaced,
    ThreadCatalog,
    ThreadDeleted,
)
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import import_threads
from processes import fork_server
from stores import SqliteStore

LOG = "-wal", "-shm"


def put_many(saver: ForkpointSaver, thread_id: str, count: int) -> None:
    for n in range(count):
        put(saver, {"n": n, "text": f"{thread_id}-{n} " * 300}, thread_id=thread_id)


def stored(path: Path) -> dict[str, int]:
    """Return how many checkpoints another process reads of each thread, all of them intact."""
    store = SqliteStore(path)
    with store.saver() as saver:
        assert store.problems(saver) == []
        counts = counts_of(saver)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    return counts


def in_another_process(work: Callable[[], Any]) -> None:
    Child(work).join()


def command(path: Path, code: str) -> None:
    """Run Python code with `path` in a process that was not forked from this one."""
    process = fork_server().Process(target=run, args=(str(path), code))
    process.start()
    process.join()
    assert process.exitcode == 0


def run(path: str, code: str) -> None:
    exec(code, {"path": path, "os": os, "shutil": shutil, "sqlite3": sqlite3})


USE = "c = sqlite3.connect(path); c.execute('SELECT * FROM sqlite_master').fetchall(); c.close()"
COUNT = (
    "c = sqlite3.connect(path)\n"
    "(count,) = c.execute('SELECT count(*) FROM forkpoint_checkpoints').fetchone()\n"
    "c.close()\n"
)


# Several savers, several names


def test_a_second_saver_that_closes_costs_the_first_nothing(path: Path) -> None:
    first = SqliteSaver(path)
    put_many(first, "first", 5)
    with SqliteSaver(path) as second:
        put_many(second, "second", 5)
    command(path, USE)
    put_many(first, "first", 6)
    command(path, COUNT + "assert count == 16")  # as others see it, before it is closed
    first.close()
    assert stored(path) == {"first": 11, "second": 5}


@pytest.mark.parametrize(
    "attempt",
    [
        lambda path: SqliteSaver(path),
        lambda path: SqliteSaver(path).close(),
        lambda path: SqliteSaver(f"file:{path}").close(),
        lambda path: SqliteSaver(path).setup(),
        lambda path: is_refused_as_archive(path),
    ],
    ids=["made", "made and closed", "by URI", "set up", "as an archive"],
)
def test_nothing_that_is_done_with_the_file_drops_the_locks_of_a_saver(
    path: Path, attempt: Callable[[Path], Any]
) -> None:
    saver = SqliteSaver(path)
    put_many(saver, "thread", 3)
    log = os.stat(f"{path}-wal").st_ino
    attempt(path)
    command(path, USE)  # it takes itself for the last one, and removes the log, if there is no lock
    assert os.stat(f"{path}-wal").st_ino == log
    put_many(saver, "thread", 3)
    saver.close()
    assert stored(path) == {"thread": 6}


def is_refused_as_archive(path: Path) -> None:
    with SqliteSaver(path) as saver:
        catalog = ThreadCatalog(saver)
        put(saver, {"n": 1}, thread_id="old")
        policy = RetentionPolicy(max_age=timedelta(microseconds=1))
        for name in (path, f"{path}-wal", path.parent / "." / path.name):
            with pytest.raises(InvalidInput, match="archive"):
                catalog.apply_retention(policy, archive=name)
        assert saver.get_tuple(config("old")) is not None
        saver.delete_thread("old")


def test_many_savers_that_come_and_go_and_other_processes_lose_nothing(path: Path) -> None:
    saver = SqliteSaver(path)
    saver.setup()
    is_over = threading.Event()
    acknowledged = {"stays": 0}

    def stay() -> None:
        while not is_over.is_set():
            put_many(saver, "stays", 1)
            acknowledged["stays"] += 1

    def come_and_go(name: str) -> None:
        for _ in range(10):
            with SqliteSaver(path) as other:
                put_many(other, name, 3)
        acknowledged[name] = 30

    staying = threading.Thread(target=stay)
    others = [threading.Thread(target=come_and_go, args=(name,)) for name in "ab"]
    for thread in (staying, *others):
        thread.start()
    for _ in range(3):
        command(path, USE)
    for thread in others:
        thread.join()
    is_over.set()
    staying.join()
    saver.close()
    assert stored(path) == acknowledged


def symbolic(path: Path) -> Path:
    other = path.with_name("symbolic.db")
    other.symlink_to(path)
    return other


def hard(path: Path) -> Path:
    other = path.with_name("hard.db")
    other.hardlink_to(path)
    return other


def uri(path: Path) -> str:
    return f"file:{os.path.relpath(path).replace('c', '%63')}?mode=rwc"


@pytest.mark.parametrize("name_of", [symbolic, hard, uri, os.path.relpath])
def test_two_names_of_a_file_are_one_file(path: Path, name_of: Callable[[Path], Any]) -> None:
    first = SqliteSaver(path)
    put_many(first, "first", 3)
    second = SqliteSaver(name_of(path))
    put_many(second, "second", 3)
    put_many(first, "first", 3)
    assert len(list(first.list(None))) == len(list(second.list(None))) == 9
    first.close()
    put_many(second, "second", 3)
    second.close()
    path.with_name("hard.db").unlink(missing_ok=True)
    assert stored(path) == {"first": 6, "second": 6}


def test_a_file_whose_name_is_no_unicode_is_opened(path: Path) -> None:
    name = os.fsdecode(os.fsencode(path) + b"\xff")
    try:
        connection = sqlite3.connect(name, check_same_thread=False)
    except sqlite3.OperationalError:
        pytest.skip("no such names here")
    with closing(connection):
        passed = SqliteSaver(connection)
        put(passed, {"n": 1})
        with SqliteSaver(name) as saver:
            assert value_of(saver.get_tuple(config())) == {"n": 1}
            os.rename(name, path)
            put(saver, {"n": 2})
        with pytest.raises(StorageReplaced):
            put(passed, {"n": 2})


def test_a_hard_link_is_not_opened_beside_the_file_by_another_process(path: Path) -> None:
    code = """
        import pytest
        from forkpoint import SqliteSaver, StorageError
        with pytest.raises(StorageError, match="more than one name"):
            SqliteSaver(path)
    """
    saver = SqliteSaver(path)
    put_many(saver, "first", 3)
    other = hard(path)
    command(other, textwrap.dedent(code))
    put_many(saver, "first", 3)  # the link may be somebody's backup: who is there goes on
    saver.close()
    other.unlink()
    assert stored(path) == {"first": 6}


@pytest.mark.parametrize("name", ["relative.db", "file:relative.db", "file:./relative.db?mode=rwc"])
def test_a_relative_path_is_resolved_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in ("here", "there"):
        (tmp_path / directory).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    saver = SqliteSaver(name)
    monkeypatch.chdir(tmp_path / "there")
    put_many(saver, "thread", 1)
    in_another_process(partial(put_many, saver, "child", 1))
    monkeypatch.chdir(tmp_path)
    put_many(saver, "thread", 1)
    saver.close()
    assert os.listdir(tmp_path / "there") == []
    assert stored(tmp_path / "here" / "relative.db") == {"thread": 2, "child": 1}


@pytest.mark.parametrize(
    "content", [b"x", b"x" * 15, b"text" * 20, b"SQLite format 3\0" + b"?" * 999]
)
def test_what_is_no_database_stays_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="no SQLite database"):
        SqliteSaver(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_database_that_cannot_be_opened_is_a_typed_error(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put_many(saver, "thread", 1)

    def work() -> None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))  # no file can be opened any more
        with pytest.raises(StorageError, match="unable to open database file"):
            SqliteSaver(path)

    in_another_process(work)


@pytest.mark.parametrize("name", ["file:", "file:?mode=rwc", "file://elsewhere/x.db", "file:a%00b"])
def test_a_uri_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        SqliteSaver(name)


# A file that is removed, replaced or restored


def copy_of(path: Path) -> Path:
    """Return a backup of the database as it is now."""
    backup = path.with_name("backup.db")
    with sqlite3.connect(path) as source, sqlite3.connect(backup) as target:
        source.backup(target)
    source.close()
    target.close()
    return backup


def restore_by_rename(path: Path, backup: Path) -> None:
    command(path, f"os.rename({str(backup)!r}, path)")


def restore_by_rename_and_remove_log(path: Path, backup: Path) -> None:
    command(
        path,
        f"os.remove(path + '-wal'); os.remove(path + '-shm'); os.rename({str(backup)!r}, path)",
    )


def restore_in_place(path: Path, backup: Path) -> None:
    command(
        path,
        f"shutil.copyfile({str(backup)!r}, path)\n"
        "os.remove(path + '-wal'); os.remove(path + '-shm')",
    )


def restore_by_backup(path: Path, backup: Path) -> None:
    """What `.restore` of the SQLite shell does."""
    command(
        path,
        f"s = sqlite3.connect({str(backup)!r}); t = sqlite3.connect(path); s.backup(t); t.close()",
    )


def restore_with_others(path: Path, backup: Path) -> None:
    """Others have gone on with what was restored before the saver looks."""
    restore_by_backup(path, backup)
    command(
        path,
        "from contextlib import suppress\n"
        "from forkpoint import EncryptionMismatch, SqliteSaver\n"
        "from langgraph.checkpoint.base import empty_checkpoint\n"
        "from langgraph.checkpoint.serde.encrypted import EncryptedSerializer\n"
        "for serde in (None, EncryptedSerializer.from_pycryptodome_aes(key=b'k' * 16)):\n"
        "    with suppress(EncryptionMismatch), SqliteSaver(path, serde=serde) as s:\n"
        "        for n in range(30):\n"
        "            s.put({'configurable': {'thread_id': f'other-{n}', 'checkpoint_ns': ''}},"
        " empty_checkpoint(), {}, {})\n",
    )


RESTORES = [
    restore_by_rename,
    restore_by_rename_and_remove_log,
    restore_in_place,
    restore_by_backup,
    restore_with_others,
]


def with_shared_text(saver: ForkpointSaver, n: int, text: str, thread_id: str, after: Any) -> Any:
    values = {"n": n, "text": text}
    versions = {"n": n, "text": 1}
    new = checkpoint(values, versions)
    return saver.put(after or config(thread_id), new, {}, versions if after is None else {"n": n})


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("restore", RESTORES)
def test_puts_to_a_restored_store_are_there_and_whole(
    path: Path, restore: Callable[[Path, Path], None], is_encrypted: bool
) -> None:
    """Of threads older than the backup and newer, with values that only the saver remembers."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"k" * 16) if is_encrypted else None
    saver = SqliteSaver(path, serde=serde)
    big = "remembered " * 2000
    old = with_shared_text(saver, 1, "in the backup " * 2000, "old", None)
    backup = copy_of(path)
    old = with_shared_text(saver, 2, big, "old", None)
    new = with_shared_text(saver, 1, big, "new", None)

    restore(path, backup)
    old = with_shared_text(saver, 3, big, "old", old)
    new = with_shared_text(saver, 2, big, "new", new)
    with_shared_text(saver, 1, big, "newer", None)
    saver.put_writes(new, [("c", big)], "task")
    saver.close()

    with SqliteSaver(path, serde=serde) as reader:
        for thread_id, n in {"old": 3, "new": 2, "newer": 1}.items():
            entry = reader.get_tuple(config(thread_id))
            assert value_of(entry) == {"n": n, "text": big}, thread_id
        entry = reader.get_tuple(new)
        assert entry is not None
        assert [value for _, _, value in entry.pending_writes or []] == [big]
        assert len(list(reader.list(config("old")))) == 2  # that of the backup, and the new one
        assert SqliteStore(path).problems(reader) == []


@pytest.mark.parametrize("restore", RESTORES)
def test_a_restored_store_is_what_is_read(
    path: Path, restore: Callable[[Path, Path], None]
) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
        backup = copy_of(path)
        put(saver, {"n": 2})
        restore(path, backup)
        assert value_of(saver.get_tuple(config())) == {"n": 1}
    assert stored(path)["thread"] == 1


@pytest.mark.parametrize("restore", RESTORES)
@pytest.mark.parametrize("event", ["close", "fork", "collection"])
def test_a_saver_that_closes_leaves_a_restored_store_alone(
    path: Path, restore: Callable[[Path, Path], None], event: str
) -> None:
    """SQLite would write its log into the file at the end."""
    saver = SqliteSaver(path)
    put(saver, {"n": 1})
    backup = copy_of(path)
    put_many(saver, "gone", 5)
    restore(path, backup)
    if event == "close":
        saver.close()
    elif event == "fork":
        in_another_process(lambda: None)
    else:
        del saver
        gc.collect()
    counts = stored(path)
    assert counts["thread"] == 1
    assert "gone" not in counts


def test_what_was_put_before_the_file_was_moved_is_in_the_file_that_was_moved(path: Path) -> None:
    moved = path.with_name("moved.db")
    with SqliteSaver(path) as saver, SqliteSaver(path) as other:
        put_many(saver, "before", 5)
        command(path, f"os.rename(path, {str(moved)!r})")
        put_many(saver, "after", 5)
        put_many(other, "after", 5)
    assert stored(moved) == {"before": 5}
    assert stored(path) == {"after": 10}


@pytest.mark.parametrize("is_passed", [False, True])
def test_a_file_that_was_moved_is_opened_under_its_new_name(path: Path, is_passed: bool) -> None:
    moved = path.with_name("moved.db")
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection if is_passed else path)
    put_many(saver, "before", 2)
    connection.close()
    os.rename(path, moved)
    with SqliteSaver(moved) as other:
        put_many(other, "other", 2)
        if not is_passed:
            put_many(saver, "after", 2)
    saver.close()
    assert stored(moved) == {"before": 2, "other": 2}
    assert path.exists() != is_passed


@pytest.mark.parametrize("files", [("",), ("", "-wal", "-shm"), ("-wal",), ("-wal", "-shm")])
def test_a_removed_file_is_made_again(path: Path, files: tuple[str, ...]) -> None:
    with SqliteSaver(path) as saver, SqliteSaver(path) as other:
        put_many(saver, "before", 2)
        put_many(other, "before", 2)
        command(path, f"for name in {files!r}: os.remove(path + name)")
        put_many(saver, "after", 3)
        put_many(other, "after", 3)
        assert len(list(saver.list(config("after")))) == 6
    assert stored(path)["after"] == 6


def test_an_index_of_the_log_that_was_removed_costs_nobody_a_write(path: Path) -> None:
    """The next process makes another one, and with it other locks."""
    write = (
        "c = sqlite3.connect(path, isolation_level=None)\n"
        "for n in range(3): c.execute('INSERT INTO mine VALUES (?)', (n,))\n"
        "c.close()\n"
    )
    with SqliteSaver(path) as saver:
        put_many(saver, "before", 2)
        command(path, "sqlite3.connect(path).execute('CREATE TABLE mine (n)')")
        command(path, f"os.remove(path + '-shm')\n{write}")
        put_many(saver, "after", 2)
        command(path, write)
    assert stored(path) == {"before": 2, "after": 2}
    command(path, COUNT.replace("forkpoint_checkpoints", "mine") + "assert count == 6")


def test_a_directory_that_was_removed_is_a_typed_error_until_it_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    with SqliteSaver(directory / "x.db") as saver:
        put_many(saver, "before", 1)
        shutil.rmtree(directory)
        with pytest.raises(OSError, match=r"unable to open.*: its directory must be there"):
            put_many(saver, "after", 1)
        directory.mkdir()
        put_many(saver, "after", 1)
    assert stored(directory / "x.db") == {"after": 1}


@pytest.mark.parametrize("is_passed", [False, True])
def test_a_name_that_leads_nowhere_is_a_typed_error_until_it_leads_back(
    path: Path, is_passed: bool
) -> None:
    passed = sqlite3.connect(path, check_same_thread=False)
    moved = path.with_name("moved.db")
    with SqliteSaver(passed if is_passed else path) as saver:
        put_many(saver, "thread", 1)
        os.rename(path, moved)
        path.symlink_to(path)  # nobody can follow it
        with pytest.raises(StorageError, match=r"cannot be opened: Too many|was removed, replaced"):
            put_many(saver, "thread", 1)
        os.rename(moved, path)
        put_many(saver, "thread", 1)
        os.rename(path, moved)
        path.symlink_to(path)
    os.rename(moved, path)
    passed.close()
    assert stored(path) == {"thread": 2}


def test_the_log_is_known_where_another_process_has_turned_it_on(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put_many(saver, "before", 1)
    journal = "sqlite3.connect(path).execute('PRAGMA journal_mode = {}').fetchone()"
    command(path, journal.format("DELETE"))
    backup = copy_of(path)
    with SqliteSaver(path) as saver:
        put_many(saver, "before", 1)
        command(path, journal.format("WAL"))
        put_many(saver, "before", 1)
        restore_in_place(path, backup)
        put_many(saver, "after", 2)
    assert stored(path) == {"before": 1, "after": 2}


def test_a_link_that_is_turned_to_another_file_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "current.db"
    link.symlink_to(tmp_path / "1.db")
    with SqliteSaver(link) as saver:
        put_many(saver, "first", 2)
        link.unlink()
        link.symlink_to(tmp_path / "2.db")
        put_many(saver, "second", 2)
    assert stored(tmp_path / "1.db") == {"first": 2}
    assert stored(tmp_path / "2.db") == {"second": 2}


@pytest.mark.parametrize("restore", RESTORES)
def test_a_connection_that_was_passed_never_writes_into_nothing(
    path: Path, restore: Callable[[Path, Path], None]
) -> None:
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection)
    put(saver, {"n": 1})
    backup = copy_of(path)
    put(saver, {"n": 2, "text": "x" * 9000})
    restore(path, backup)
    if restore in (restore_by_backup, restore_with_others):
        put(saver, {"n": 3, "text": "x" * 9000})
        assert value_of(saver.get_tuple(config()))["n"] == 3
        connection.close()
        assert stored(path)["thread"] == 2
    else:
        for call in (lambda: put(saver, {"n": 3}), lambda: saver.get_tuple(config())):
            with pytest.raises(StorageReplaced, match="removed, replaced or restored"):
                call()


@pytest.mark.parametrize("is_removed", [False, True])
@pytest.mark.parametrize("was_read", [False, True])
def test_a_connection_whose_file_was_replaced_before_a_saver_had_it_is_refused(
    path: Path, was_read: bool, is_removed: bool
) -> None:
    """It would write to the file that is gone, by way of the log of the other one."""
    other = path.with_name("other.db")
    for name in (path, other):
        with SqliteSaver(name) as saver:
            put_many(saver, name.stem, 3)
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        if was_read:
            connection.execute("SELECT * FROM sqlite_master").fetchall()
        os.remove(path) if is_removed else os.rename(other, path)
        passed = SqliteSaver(connection)
        for _ in range(2):
            with pytest.raises(StorageReplaced, match="removed, replaced or restored"):
                put(passed, {"n": 1})
    if not is_removed:
        assert stored(path) == {"other": 3}


def test_a_backup_that_is_restored_into_memory_is_noticed(path: Path) -> None:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    backup = sqlite3.connect(":memory:")
    saver = SqliteSaver(connection)
    put(saver, {"n": 1})
    connection.backup(backup)
    big = "x" * 9000
    first = put(saver, {"n": 2, "text": big})
    backup.backup(connection)
    put(saver, {"n": 3, "text": big}, parent=first)
    assert value_of(saver.get_tuple(config())) == {"n": 3, "text": big}
    connection.close()
    backup.close()


def test_a_run_whose_thread_the_backup_does_not_have_goes_on_under_a_lease_no_more(
    path: Path,
) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1}, thread_id="old")
        backup = copy_of(path)
        with ThreadCatalog(saver).run("new", ttl=timedelta(hours=1)) as lease:
            saver.put(lease.config, checkpoint({"n": 1}), {}, {"n": 1})
            restore_by_backup(path, backup)
            with pytest.raises(ThreadDeleted):
                saver.put(lease.config, checkpoint({"n": 2}), {}, {"n": 1})
    assert stored(path) == {"old": 1}


def test_a_lease_of_a_store_that_was_replaced_is_none_of_the_thread_with_the_same_key(
    path: Path,
) -> None:
    other = path.with_name("other.db")
    with SqliteSaver(other) as saver:
        lease = ThreadCatalog(saver).run("other", ttl=timedelta(hours=1))
        lease.__enter__()
    with SqliteSaver(path) as saver:
        with ThreadCatalog(saver).run("thread", ttl=timedelta(hours=1)) as mine:
            os.replace(other, path)
            assert not mine.renew()
            assert mine.is_lost
        thread = ThreadCatalog(saver).get("other")
        assert thread is not None
        assert thread.status == "busy"


def test_a_lease_that_the_backup_does_not_have_is_not_that_which_begins_next(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
        backup = copy_of(path)
        with ThreadCatalog(saver).run("thread", ttl=timedelta(hours=1)) as lost:
            restore_by_backup(path, backup)
            with ThreadCatalog(saver).run("thread", ttl=timedelta(hours=1)) as lease:
                with pytest.raises(StaleLease):
                    saver.put(lost.config, checkpoint({"n": 2}), {}, {"n": 1})
                assert not lost.renew()
                saver.put(lease.config, checkpoint({"n": 3}), {}, {"n": 1})
    assert stored(path) == {"thread": 2}


# Tables that were dropped

TABLES = ["settings", "threads", "tombstones", "listing", "snapshots"]
TABLES += ["checkpoints", "dictionaries", "writes", "chunks"]


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("kept", [[], ["settings"]], ids=["all", "all but the settings"])
@pytest.mark.parametrize("with_setup", [True, False])
def test_tables_that_were_dropped_are_made_again(
    path: Path, kept: list[str], with_setup: bool
) -> None:
    with SqliteSaver(path) as saver:
        put_many(saver, "before", 2)
        change(path, *(f"DROP TABLE forkpoint_{table}" for table in TABLES if table not in kept))
        if with_setup:
            saver.setup()
        put_many(saver, "after", 2)
        values = [value_of(entry) for entry in saver.list(config("after"))]
        assert [value["n"] for value in values] == [1, 0]
        assert all(value["text"].startswith("after-") for value in values)
        ThreadCatalog(saver).search()


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_lost_is_an_error_where_others_have_their_rows(
    path: Path, table: str
) -> None:
    """An empty one in its place would say that there is no thread, or that nobody deleted one."""
    lost = f"forkpoint_{table}"
    with SqliteSaver(path) as saver:
        put_many(saver, "before", 2)
        change(path, f"ALTER TABLE {lost} RENAME TO elsewhere")
        for use in (
            lambda: saver.get_tuple(config("before")),
            lambda: list(saver.list(None)),
            partial(put_many, saver, "before", 1),
            partial(put_many, saver, "new", 1),
            saver.setup,
            SqliteSaver(path).setup,
        ):
            with pytest.raises(CorruptChunk, match=f"has lost {lost}, and has rows in forkpoint_"):
                use()
        assert SqliteSaver.exists(path)
        change(path, f"ALTER TABLE elsewhere RENAME TO {lost}")
        put_many(saver, "before", 1)
    assert stored(path) == {"before": 3}


def test_tables_that_were_all_renamed_do_not_keep_the_indexes(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put_many(saver, "before", 2)
        change(path, *(f"ALTER TABLE forkpoint_{name} RENAME TO old_{name}" for name in TABLES))
        with pytest.raises(StorageError, match="another table has the index forkpoint_"):
            put_many(saver, "after", 1)
        change(path, *(f"ALTER TABLE old_{name} RENAME TO forkpoint_{name}" for name in TABLES))
    assert stored(path) == {"before": 2}


def test_setup_makes_an_index_that_was_dropped(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put_many(saver, "thread", 1)
        with sqlite3.connect(path) as connection:
            connection.execute("DROP INDEX forkpoint_checkpoints_place")
        saver.setup()
        names = connection.execute("SELECT name FROM sqlite_master").fetchall()
        connection.close()
        assert ("forkpoint_checkpoints_place",) in names


def test_whoever_replaces_langgraphs_saver_is_told_where_its_threads_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "agent.db"
    with OfficialSaver.from_conn_string(str(path)) as official:
        official.put(config(ns=""), checkpoint({"n": 1}), {}, {"n": 1})
    for number in range(2):  # and only once
        with SqliteSaver(path) as saver:
            assert (saver.get_tuple(config()) is None) == (number == 0)
            told = [record.message for record in caplog.records]
            assert len(told) == 1
            assert "import_threads" in told[0]
            assert import_threads(path, saver, kind="langgraph-sqlite").checkpoints == 1 - number
    with OfficialSaver.from_conn_string(str(path)) as official:
        assert official.get_tuple(config(ns="")) is not None
