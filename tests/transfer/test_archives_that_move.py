"""Archives where threads and files change meanwhile, or where something is there already."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from checking import encrypted_serde, put, value_of
from forkpoint import (
    CorruptChunk,
    DamagedArchive,
    EncryptionMismatch,
    InvalidInput,
    MissingLibrary,
    SqliteSaver,
    StorageError,
    ThreadCatalog,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
    key_ring,
)
from forkpoint.archive.file import ArchiveFile
from forkpoint.archive.lines import BEGIN
from forkpoint.archive.parts import Part
from forkpoint.archive.reading import read_thread
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import (
    TransferProgress,
    TransferReport,
    archive_threads,
    restore_threads,
)
from servers import PATIENCE_SECONDS, wait_until
from stores import SqliteStore, Store
from transferring import NAMES, messages, tuples

HOUR = timedelta(hours=1)


@pytest.fixture
def second(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(path) as saver:
        yield saver


@pytest.mark.in_turns
def test_what_the_catalog_knows_of_odd_threads_comes_along(
    saver: ForkpointSaver, store: Store, second: SqliteSaver, tmp_path: Path
) -> None:
    catalog, other = ThreadCatalog(saver), ThreadCatalog(second)
    catalog.create("empty", label="L")
    catalog.create("swept", ttl=HOUR, on_expiry="keep_latest")
    messages(saver, "swept", 3)
    store.age("swept", updated_at=2 * 3600 * 1_000_000)
    assert catalog.sweep().trimmed == ("swept",)
    archive_threads(saver, tmp_path / "archive")
    assert restore_threads(second, tmp_path / "archive").is_complete
    for name in ("empty", "swept"):
        assert other.get(name) == catalog.get(name)
        assert other.get(name) is not None
    assert other.sweep().trimmed == ()  # it was trimmed already


def test_a_fork_is_no_child_of_another_thread_that_has_the_id_of_its_parent(
    second: SqliteSaver, tmp_path: Path
) -> None:
    with SqliteSaver(tmp_path / "source.db") as source:
        messages(source, "parent", 2)
        source.fork("parent", new_thread_id="fork")
        archive_threads(source, tmp_path / "archive", ThreadFilter(ids=["fork"]))
        messages(second, "parent", 1)
        assert restore_threads(second, tmp_path / "archive").is_complete
        assert tuples(second, "fork") == tuples(source, "fork")
    assert [entry.thread_id for entry in second.lineage("fork")] == ["fork"]


@pytest.mark.in_turns
def test_a_fork_is_no_child_of_a_thread_that_was_given_to_another_owner(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    own, catalog = saver.for_owner("acme"), ThreadCatalog(saver)
    messages(own, "parent", 2)
    own.fork("parent", new_thread_id="fork")
    archive_threads(saver, tmp_path / "archive", ThreadFilter(ids=["fork"]))
    own.purge("fork")
    catalog.update("parent", owner="other")
    assert restore_threads(saver, tmp_path / "archive").is_complete
    assert [entry.thread_id for entry in own.lineage("fork")] == ["fork"]
    assert len(list(saver.for_owner("other").family("parent"))) == 1
    assert store.problems(saver) == []


def test_a_thread_that_somebody_makes_meanwhile_stays(second: SqliteSaver, tmp_path: Path) -> None:
    messages(second, "parent", 2)
    second.fork("parent", new_thread_id="fork")
    archive_threads(second, tmp_path / "archive", ThreadFilter(ids=["fork"]))
    second.purge("fork")

    def make(name: str) -> str:
        if name == "parent":  # which is asked for when the fork is known not to be there
            put(second, {"n": 1}, thread_id="fork")
        return name if name == "fork" else "another"

    report = restore_threads(second, tmp_path / "archive", rename=make)
    assert isinstance(report.failed["fork"], ThreadExists)
    assert value_of(tuples(second, "fork")[0]) == {"n": 1}


def test_with_another_key_the_rest_of_a_thread_is_not_restored(tmp_path: Path, path: Path) -> None:
    archive = tmp_path / "archive"
    old, new = encrypted_serde(), encrypted_serde(b"fedcba9876543210")

    class Ended(Exception):
        pass

    def end(progress: TransferProgress) -> None:
        if progress.checkpoints == 2:
            raise Ended

    with SqliteSaver(tmp_path / "source.db", serde=old) as source:
        messages(source, "thread", 4)
        archive_threads(source, archive)
        with SqliteSaver(path, serde=key_ring(new, old)) as saver:
            with pytest.raises(Ended):
                restore_threads(saver, archive, on_progress=end)
            saver.rekey()
        with SqliteSaver(path, serde=new) as saver:
            report = restore_threads(saver, archive)
            assert isinstance(report.failed["thread"], EncryptionMismatch)
            assert len(tuples(saver)) == 2
        with SqliteSaver(path, serde=key_ring(new, old)) as saver:
            assert restore_threads(saver, archive).is_complete
            assert tuples(saver) == tuples(source)


def test_threads_that_are_changed_while_they_are_archived(
    second: SqliteSaver, path: Path, tmp_path: Path
) -> None:
    for name in ("a", "damaged", "deleted", "replaced"):
        messages(second, name, 22 if name == "replaced" else 2)
    store = SqliteStore(path)
    family = store.thread("damaged").family
    store.take("chunks", next(row.key for row in store.rows("chunks") if row.family == family))
    changes: dict[str, Callable[[], object]] = {
        "a": lambda: second.delete_thread("deleted"),
        "replaced": lambda: (second.delete_thread("replaced"), messages(second, "replaced", 1)),
    }

    def change(progress: TransferProgress) -> None:
        changes.pop(progress.thread_id, lambda: None)()

    report = archive_threads(second, tmp_path / "archive", on_progress=change)
    assert {name: type(error) for name, error in report.failed.items()} == {
        "damaged": CorruptChunk,
        "deleted": ThreadNotFound,
    }
    assert report.threads == 2
    with SqliteSaver(tmp_path / "restored.db") as saver:
        assert restore_threads(saver, tmp_path / "archive").is_complete
        for name in ("a", "replaced"):
            assert tuples(saver, name) == tuples(second, name)
        assert ThreadCatalog(saver).count() == 2


# The file


def test_an_archive_that_is_moved_while_somebody_waits_for_it_is_made_anew(
    second: SqliteSaver, tmp_path: Path
) -> None:
    path, moved = tmp_path / "archive", tmp_path / "moved"
    messages(second, "first", 2)
    messages(second, "second", 2)
    context = parts_of(second).context
    encrypt = context.codec.encrypt
    waiting = threading.Thread(
        target=lambda: ArchiveFile(path).append(read_thread(context, "second"), encrypt)
    )

    def parts() -> Iterator[Part]:
        yield from read_thread(context, "first")
        waiting.start()
        wait_until(lambda: open_files(path) == 2, "the other one to have the file open")
        path.rename(moved)

    ArchiveFile(path).append(parts(), encrypt)
    waiting.join(PATIENCE_SECONDS)
    for archive, name in ((moved, "first"), (path, "second")):
        with SqliteSaver(tmp_path / f"{name}.db") as saver:
            assert restore_threads(saver, archive).is_complete
            assert [thread.thread_id for thread in ThreadCatalog(saver).walk()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_of_an_archive_no_half_of_a_thread_is_restored_that_is_just_being_appended(
    name: str, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / name
    messages(second, "first", 2)
    messages(second, "second", 2)
    context = parts_of(second).context
    archive_threads(second, path, ThreadFilter(ids=["first"]))
    reports: list[TransferReport] = []

    def restore() -> None:
        with SqliteSaver(tmp_path / "restored.db") as saver:
            reports.append(restore_threads(saver, path))

    restoring = threading.Thread(target=restore)

    def parts() -> Iterator[Part]:
        *most, end = read_thread(context, "second")
        yield from most
        restoring.start()
        wait_until(lambda: bool(reports) or open_files(path) == 2, "the archive to be read")
        yield end

    ArchiveFile(path).append(parts(), context.codec.encrypt)
    restoring.join(PATIENCE_SECONDS)
    assert (reports[0].is_complete, reports[0].threads) == (True, 2)


def open_files(path: Path) -> int:
    """Return how many descriptors of this process are of a file."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue  # that of the list itself
    return links.count(str(path.resolve()))


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Have permissions count, which do not stop the superuser."""
    is_root = os.getuid() == 0
    if is_root:
        os.setreuid(65534, -1)
    try:
        yield
    finally:
        if is_root:
            os.setreuid(0, -1)


@pytest.mark.parametrize("left", ["nothing", "another thread"])
def test_an_archive_that_is_replaced_while_it_is_restored_is_no_endless_one(
    left: str, second: SqliteSaver, tmp_path: Path
) -> None:
    path, other = tmp_path / "archive", tmp_path / "other"
    with SqliteSaver(tmp_path / "source.db") as source:
        messages(source, "parent", 1)
        source.fork("parent", new_thread_id="fork")
        messages(source, "another", 1)
        for name in ("fork", "parent"):
            archive_threads(source, path, ThreadFilter(ids=[name]))
        ids = ["another"] if left == "another thread" else []
        archive_threads(source, other, ThreadFilter(ids=ids))

    def replace(progress: TransferProgress) -> None:
        if progress.thread_id == "parent" and other.exists():
            other.replace(path)

    report = restore_threads(second, path, on_progress=replace)
    assert report.threads == 1
    assert isinstance(report.failed["fork"], DamagedArchive)
    assert "changed while it was read" in str(report.failed["fork"])
    assert [thread.thread_id for thread in ThreadCatalog(second).walk()] == ["parent"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_an_archive_that_can_be_read_once_only_is_refused(
    second: SqliteSaver, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDWR), "wb", buffering=0) as pipe:
        pipe.write(BEGIN)
        with pytest.raises(StorageError, match="cannot be read"):
            restore_threads(second, tmp_path / "pipe")


def test_where_nobody_may_write_no_archive_is_made(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    archive = kept / "archive"
    archive.write_bytes(b"")
    archive.chmod(0o444)
    kept.chmod(0o555)
    try:
        with as_an_ordinary_user():
            for path in (archive, kept / "another"):
                with pytest.raises(InvalidInput, match="cannot be written to"):
                    ArchiveFile(path)
    finally:
        kept.chmod(0o755)
    assert [file.name for file in kept.iterdir()] == ["archive"]


@pytest.mark.parametrize("ending", ["-wal", "-journal"])
def test_a_database_that_is_in_use_elsewhere_is_no_archive(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b"")
    (tmp_path / f"archive{ending}").write_bytes(b"")
    with pytest.raises(InvalidInput, match=f"is a database: there is a {ending} file"):
        ArchiveFile(path)


def test_a_compression_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibrary, match=r"pip install 'forkpoint\[zstd\]'"):
        ArchiveFile(tmp_path / "archive.zst")
    assert list(tmp_path.iterdir()) == []
