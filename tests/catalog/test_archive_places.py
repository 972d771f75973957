"""Where an archive may be: what is refused loses nothing, and nothing is deleted for it."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from checking import put
from forkpoint import InvalidInput, RetentionPolicy, SqliteSaver, ThreadCatalog, transfer
from forkpoint.archive.file import ArchiveFile
from forkpoint.saver.saver import ForkpointSaver
from stores import SqliteStore, Store

LIMIT_SECONDS = 60
IDLE = RetentionPolicy(max_idle=timedelta(hours=1))


def unrelated(content: bytes) -> Callable[[Path, Path], Path]:
    def make(directory: Path, _: Path) -> Path:
        (directory / "notes").write_bytes(content)
        return directory / "notes"

    return make


def linked(link: Callable[[Path, Path], object], ending: str = "") -> Callable[[Path, Path], Path]:
    def make(directory: Path, database: Path) -> Path:
        link(Path(f"{database}{ending}"), directory / "linked")
        return directory / "linked"

    return make


def symlink(target: Path, name: Path) -> None:
    name.symlink_to(target)


def hard_link(target: Path, name: Path) -> None:
    name.hardlink_to(target)


def another_database(directory: Path, _: Path) -> Path:
    path = directory / "another.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    return path


def beside_another(ending: str) -> Callable[[Path, Path], Path]:
    return lambda *given: Path(f"{another_database(*given)}{ending}")


def pipe(directory: Path, _: Path) -> Path:
    os.mkfifo(directory / "pipe")
    return directory / "pipe"


def below_a_file(directory: Path, _: Path) -> Path:
    (directory / "file").touch()
    return directory / "file" / "archive"


OF_THE_DATABASE: dict[str, Callable[[Path, Path], Any]] = {
    "the database": lambda _, database: database,
    "its log": lambda _, database: Path(f"{database}-wal"),
    "the index of its log": lambda _, database: Path(f"{database}-shm"),
    "its journal, which is not there": lambda _, database: Path(f"{database}-journal"),
    "a relative path": lambda _, database: os.path.relpath(database),
    "a path through a directory": lambda _, database: database.parent / "." / database.name,
    "a symbolic link": linked(symlink),
    "a hard link": linked(hard_link),
    "a symbolic link to its log": linked(symlink, "-wal"),
    "a hard link to its log": linked(hard_link, "-wal"),
    "a symbolic link to its journal": linked(symlink, "-journal"),
}
OTHERS: dict[str, Callable[[Path, Path], Any]] = {
    "another database": another_database,
    "the log of another database": beside_another("-wal"),
    "the journal of another database": beside_another("-journal"),
    "text without a last newline": unrelated(b"notes\nand more notes"),
    "one line without a newline": unrelated(b"notes"),
    "text": unrelated(b"notes\n"),
    "lines of other JSON": unrelated(b'{"user": 1}\n'),
    "an archive with a line of something else": unrelated(b'{"thread": {}}\nnotes'),
    "a directory": lambda directory, _: directory,
    "no such directory": lambda directory, _: directory / "none" / "archive",
    "a path below a file": below_a_file,
    "a pipe": pipe,
    "a device": lambda *_: "/dev/null",
    "a name with a NUL": lambda directory, _: f"{directory}/a\0b",
    "a name that is too long": lambda directory, _: directory / ("x" * 300),
    "a path that is too long": lambda directory, _: directory / ("x/" * 5000),
    "nothing": lambda *_: "",
}


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["path", "sqlite3"])
def test_an_archive_is_not_the_database_or_what_belongs_to_it(
    kind: str, path: Path, tmp_path: Path
) -> None:
    passed = sqlite3.connect(path, check_same_thread=False)
    passed.execute("PRAGMA journal_mode = wal")
    with SqliteSaver(passed if kind == "sqlite3" else path) as saver:
        put(saver, {"n": 1})
        store = SqliteStore(path)
        store.be_old("updated_at")
        for number, place in enumerate(OF_THE_DATABASE.values()):
            directory = tmp_path / f"{number}"
            directory.mkdir()
            archive = place(directory, path)
            with pytest.raises(InvalidInput, match="archive"):
                ThreadCatalog(saver).apply_retention(IDLE, archive=archive)

        assert len(list(saver.list(None))) == 1
        assert store.problems(saver) == []
    passed.close()


def test_what_is_no_path_is_called_none(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1})
        with pytest.raises(InvalidInput, match="archive must be a path or a function, not 5"):
            ThreadCatalog(saver).apply_retention(IDLE, archive=5)  # type: ignore[arg-type]
        for refused in (
            lambda: transfer.archive_threads(saver, 5),  # type: ignore[arg-type]
            lambda: transfer.restore_threads(saver, 5),  # type: ignore[arg-type]
            lambda: saver.repair(quarantine=5),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidInput, match="must be a path, not 5"):
                refused()


@pytest.mark.in_turns
def test_a_file_that_is_no_archive_is_refused(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    put(saver, {"n": 1})
    store.be_old("updated_at")
    catalog = ThreadCatalog(saver)
    for number, place in enumerate(OTHERS.values()):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        archive = place(directory, directory / "checkpoints.db")
        before = files(directory)
        for call in (
            partial(catalog.apply_retention, IDLE, archive=archive),
            partial(catalog.sweep, archive=archive),
            partial(catalog.sweeper, timedelta(hours=1), archive=archive),
        ):
            with pytest.raises(InvalidInput, match="archive"):
                call()
        assert files(directory) == before

    assert len(list(saver.list(None))) == 1


@pytest.mark.in_turns
def test_an_archive_that_became_something_else_stays_and_so_do_the_threads(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    archive = ArchiveFile(path)
    path.write_bytes(b"notes")
    put(saver, {"n": 1})
    store.be_old("updated_at")

    result = ThreadCatalog(saver).apply_retention(IDLE, archive=archive)

    assert isinstance(result.failed["thread"], InvalidInput)
    assert path.read_bytes() == b"notes"
    assert len(list(saver.list(None))) == 1


@pytest.mark.in_turns
@pytest.mark.parametrize(
    "unfinished", [b'{"th', b'{"thread": {"thread_id": "b", "che', b'{"ch', b""]
)
def test_a_line_that_was_not_finished_is_replaced(
    unfinished: bytes, saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b'{"thread": {}}\n' + unfinished)
    put(saver, {"n": 1})
    store.be_old("updated_at")

    result = ThreadCatalog(saver).apply_retention(IDLE, archive=path)

    assert result.deleted == ("thread",)
    first, second, *_ = path.read_bytes().splitlines()
    assert first == b'{"thread": {}}'
    assert json.loads(second)["thread"]["thread_id"] == "thread"


def archive_threads(store: Store, path: Path) -> None:
    with store.saver() as saver:
        ThreadCatalog(saver).apply_retention(IDLE, archive=path)


@pytest.mark.slow
def test_an_archive_that_another_process_moves_away_loses_nothing(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    """As a rotation of logs does: one who waited for the file writes to the new one."""
    fcntl = pytest.importorskip("fcntl")
    path, moved = tmp_path / "archive", tmp_path / "archive.1"
    put(saver, {"n": 1})
    store.be_old("updated_at")
    with path.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = get_context("spawn").Process(target=archive_threads, args=(store, path))
        process.start()
        waits_for(path)
        path.rename(moved)
    process.join(LIMIT_SECONDS)

    assert process.exitcode == 0
    assert moved.read_bytes() == b""
    assert path.read_bytes().count(b'{"thread": ') == 1
    assert list(saver.list(None)) == []


def waits_for(path: Path) -> None:
    """Return when a process waits for the lock of a file, as the kernel says, or may do so."""
    number, ended = str(path.stat().st_ino), threading.Event()
    for _ in range(int(LIMIT_SECONDS / 0.05)):
        locks = Path("/proc/locks")
        if not locks.exists():
            return
        if any("->" in line and f":{number} " in line for line in locks.read_text().splitlines()):
            return
        ended.wait(0.05)
    raise TimeoutError("nobody waits for the archive")
