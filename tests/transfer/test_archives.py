"""Archives: what is in them, what is refused, what is damaged."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import resource
import threading
from base64 import b64encode
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from checking import Api, encrypted_serde, id_of, put, value_of
from forkpoint import (
    EncryptionMismatch,
    InvalidInput,
    SafeSerializer,
    SqliteSaver,
    StorageFull,
    StoredObject,
    ThreadCatalog,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.archive.file import ArchiveFile, lines_in
from forkpoint.archive.parts import ChunkPart, Numbering
from forkpoint.archive.reading import read_thread
from forkpoint.encoding.entries import Entry
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import (
    TransferProgress,
    aarchive_threads,
    archive_threads,
    arestore_threads,
    restore_threads,
)
from stores import Store
from transferring import NAMES, messages, tuples


@pytest.fixture
def second(path: Path) -> SqliteSaver:
    return SqliteSaver(path)


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_archived_is_restored(
    name: str, api: Api, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / name
    saver = api.saver
    catalog = ThreadCatalog(saver)
    catalog.create("thread", label="Ä label", tags=["x"], metadata={"n": 1}, ttl=timedelta(days=9))
    messages(saver, "thread", 5)
    messages(saver, "other", 3)
    steps: list[TransferProgress] = []
    if api.world == "sync":
        archived = archive_threads(saver, path, on_progress=steps.append)
        restored = restore_threads(ThreadCatalog(second), path, on_progress=steps.append)
    else:
        archived = await aarchive_threads(saver, path, on_progress=steps.append)
        restored = await arestore_threads(ThreadCatalog(second), path, on_progress=steps.append)
    assert archived == replace(restored)
    assert restored.is_complete
    assert (restored.threads, restored.checkpoints, restored.writes) == (2, 8, 16)
    for thread_id in ("thread", "other"):
        assert tuples(second, thread_id) == tuples(saver, thread_id)
        assert ThreadCatalog(second).get(thread_id) == catalog.get(thread_id)
    shown = [(step.threads, step.total, step.checkpoints) for step in steps]
    assert shown[0] == (0, 2, 1)
    assert shown[-1] == (2, 2, 8)
    rows = [
        {(row[2], row[3], row[4]) for row in writes_of(each, "thread")} for each in (saver, second)
    ]
    assert rows[0] == rows[1]
    assert ("t1", 0, "~path, 1") in rows[0]


def writes_of(saver: ForkpointSaver, thread_id: str) -> list[Any]:
    places = [("", id_of(found)) for found in tuples(saver, thread_id)]
    with parts_of(saver).context.storage.reading() as session:
        thread = session.threads.find(thread_id)
        assert thread is not None
        return session.checkpoints.writes(thread, places)


@pytest.mark.in_turns
def test_a_filter_chooses_and_rename_gives_other_ids(saver: ForkpointSaver, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    for name in ("a", "b", "c"):
        messages(saver, name, 2)
    saver.fork("a", new_thread_id="fork")
    catalog = ThreadCatalog(saver)
    catalog.update("b", tags=["kept"])
    assert archive_threads(saver, path, ThreadFilter(ids=["a", "b", "fork"])).threads == 3
    assert archive_threads(catalog, path, ThreadFilter(tags=["kept"])).threads == 1

    report = restore_threads(saver, path, threads=["a", "fork"], rename=lambda name: name + "-2")

    assert report.is_complete
    assert report.threads == 2
    assert value_of(tuples(saver, "a-2")[0]) == value_of(tuples(saver, "a")[0])
    parent = saver.lineage("fork-2")[1]
    assert (parent.thread_id, parent.exists) == ("a-2", True)
    mistyped = restore_threads(saver, path, threads=["mistyped"])
    assert (mistyped.threads, mistyped.is_complete) == (0, False)
    assert "there is no thread 'mistyped' in the archive" in str(mistyped.failed["mistyped"])
    report = restore_threads(saver, path, rename={"b": "b-2", "mistyped": "d"})
    assert report.threads == 1
    assert {id_: type(error) for id_, error in report.failed.items()} == {
        "a": ThreadExists,
        "fork": ThreadExists,
        "mistyped": ThreadNotFound,
    }
    assert restore_threads(saver, path, threads=["a"], rename={"a": "a-3", "b": "b-3"}).is_complete
    assert len(tuples(saver, "a")) == 2


@pytest.mark.in_turns
def test_of_a_thread_that_is_in_an_archive_twice_the_last_time_counts(
    saver: ForkpointSaver, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "archive.gz"
    messages(saver, "thread", 2)
    archive_threads(saver, path)
    put(saver, {"n": 3}, parent=tuples(saver)[0].config)
    archive_threads(saver, path)
    assert restore_threads(second, path).threads == 1
    assert tuples(second) == tuples(saver)


@pytest.mark.in_turns
def test_a_child_in_front_of_its_parent_is_restored_after_it(
    saver: ForkpointSaver, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    messages(saver, "a", 2)
    saver.fork("a", new_thread_id="b")
    saver.fork("b", new_thread_id="c")
    for name in ("c", "b", "a"):
        archive_threads(saver, path, ThreadFilter(ids=[name]))
    assert restore_threads(second, path).is_complete
    assert second.lineage("c") == saver.lineage("c")
    assert str(second.family("a")) == str(saver.family("a"))


def test_the_owner_of_a_catalog_gets_what_it_restores(
    saver: ForkpointSaver, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    messages(saver.for_owner("alice"), "thread", 2)
    messages(saver, "nobody's", 1)
    assert archive_threads(saver.for_owner("alice"), path).threads == 1
    assert restore_threads(second, path).is_complete
    thread = ThreadCatalog(second).get("thread")
    assert thread is not None
    assert thread.owner == "alice"
    second.purge("thread")
    assert restore_threads(ThreadCatalog(second, owner="bob"), path).is_complete
    thread = ThreadCatalog(second).get("thread")
    assert thread is not None
    assert thread.owner == "bob"
    report = restore_threads(ThreadCatalog(second, owner="carol"), path)
    assert isinstance(report.failed["thread"], ThreadExists)


@pytest.mark.in_turns
def test_from_an_encrypted_store_nothing_is_in_the_clear(
    store: Store, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    with store.saver(serde=encrypted_serde(), preview=["secret"]) as saver:
        messages(saver, "thread", 3)
        first = put(saver, {"secret": "of the state"}, thread_id="small")
        saver.put_writes(first, [("c", "of a write")], "task")
        archive_threads(saver, path)
        content = path.read_bytes()
        for plain in ("thread 0", "of the state", "of a write"):
            assert plain.encode() not in content
            assert not any(encoded in content for encoded in base64_of(plain))
        report = restore_threads(second, path)
        assert {type(error) for error in report.failed.values()} == {EncryptionMismatch}
        assert list(second.list(None)) == []
        with SqliteSaver(tmp_path / "third.db", serde=encrypted_serde()) as third:
            assert restore_threads(third, path).is_complete
            assert tuples(third) == tuples(saver)
            assert ThreadCatalog(third).get("small") == ThreadCatalog(saver).get("small")


def base64_of(plain: str) -> list[bytes]:
    """Return what a text contributes to the base64 of what it is in, wherever it begins."""
    return [b64encode(b"\0" * shift + plain.encode())[4:-4] for shift in range(3)]


@dataclass
class Order:
    number: int
    items: list[str]


@pytest.mark.parametrize("name", ["archive.jsonl", "archive.jsonl.gz"])
def test_a_thread_that_there_is_no_room_for_is_named_and_the_others_are_archived(
    name: str, second: SqliteSaver, tmp_path: Path
) -> None:
    for thread_id, length in (("large", 3_000_000), ("small", 10)):
        put(second, {"n": random.Random(0).randbytes(length)}, thread_id=thread_id)
    assert ThreadCatalog(second).count() == 2
    path = tmp_path / name
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        report = archive_threads(second, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (report.threads, report.checkpoints, list(report.failed)) == (1, 1, ["large"])
    assert isinstance(report.failed["large"], StorageFull)
    assert f"the archive {str(path)!r} cannot be written: " in str(report.failed["large"])
    with SqliteSaver(tmp_path / "restored.db") as other:
        restored = restore_threads(other, path)
        assert (restored.is_complete, restored.threads) == (True, 1)
        assert archive_threads(second, path, ThreadFilter(ids=["large"])).is_complete
        restored = restore_threads(other, path, threads=["large"])
        assert (restored.is_complete, restored.threads) == (True, 1)
        assert tuples(other, "large") == tuples(second, "large")


def test_of_a_class_that_is_not_known_the_bytes_are_restored(path: Path, tmp_path: Path) -> None:
    archived, restored = tmp_path / "archive", tmp_path / "restored.db"
    with SqliteSaver(path) as saver:
        put(saver, {"order": Order(1, ["item " * 200] * 10), "small": Order(2, [])})
        expected = value_of(tuples(saver)[0])
    strict = SafeSerializer(strict=True)
    with (
        SqliteSaver(path, serde=strict) as saver,
        SqliteSaver(restored, serde=strict) as other,
    ):
        archive_threads(saver, archived)
        assert restore_threads(other, archived).is_complete
        assert isinstance(value_of(tuples(other)[0])["order"], StoredObject)
        assert value_of(tuples(other)[0]) == value_of(tuples(saver)[0])
    with SqliteSaver(restored) as other:
        assert value_of(tuples(other)[0]) == expected


def test_chunks_are_in_an_archive_once_and_many_are_forgotten(second: SqliteSaver) -> None:
    messages(second, "thread", 6)
    parts = list(read_thread(parts_of(second).context, "thread"))
    contents = [chunk for part in parts if isinstance(part, ChunkPart) for chunk in part.chunks]
    assert len({content for _, content in contents}) == len(contents) > 6

    few = Numbering(limit=2)
    entry = Entry(1, "bytes", b"", b"a" * 32 + b"b" * 32, 0)
    for oldest in (0, 2, 4):
        few.begin_checkpoint()
        value = few.value(entry, lambda digest: (b"", digest))
        assert value.chunks == (oldest, oldest + 1)
        assert [(part.first, part.oldest) for part in few.take()] == [(oldest, oldest)]


@pytest.mark.in_turns
def test_many_chunks_are_restored_after_some_were_forgotten(
    saver: ForkpointSaver,
    second: SqliteSaver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Numbering.__init__, "__defaults__", (3,))
    messages(saver, "thread", 45)
    archive_threads(saver, tmp_path / "archive")
    oldest = [
        json.loads(line.content)["chunks"]["oldest"]
        for line in lines_in(str(tmp_path / "archive"))
        if line.content.startswith(b'{"chunks"')
    ]
    assert len(set(oldest)) == 3  # once for each page
    assert restore_threads(second, tmp_path / "archive").is_complete
    assert tuples(second) == tuples(saver)


def test_a_thread_that_is_written_to_while_it_is_read_is_read_again(
    second: SqliteSaver, tmp_path: Path
) -> None:
    messages(second, "thread", 2)
    writes = iter(range(100))
    limit = 2

    def write(progress: TransferProgress) -> None:
        if next(writes) < limit:
            head = tuples(second)[0]
            second.put_writes(head.config, [("late", progress.checkpoints)], f"late {next(writes)}")

    report = archive_threads(second, tmp_path / "archive", on_progress=write)
    assert (report.threads, report.checkpoints) == (1, 2)
    with SqliteSaver(tmp_path / "restored.db") as saver:
        assert restore_threads(saver, tmp_path / "archive").is_complete
        assert tuples(saver) == tuples(second)
    limit = 100
    report = archive_threads(second, tmp_path / "archive", on_progress=write)
    assert "written to all the time" in str(report.failed["thread"])


async def test_a_restore_that_is_cancelled_goes_on_where_it_was(
    saver: ForkpointSaver, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    messages(saver, "thread", 6)
    archive_threads(saver, path)
    reached = threading.Event()

    def wait(progress: TransferProgress) -> None:
        if progress.checkpoints == 2:
            reached.set()
            assert cancelled.wait(60)

    cancelled = threading.Event()
    task = asyncio.create_task(arestore_threads(second, path, on_progress=wait))
    await asyncio.to_thread(reached.wait, 60)
    task.cancel()
    await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    written = len(tuples(second))
    assert 2 <= written < 6
    thread = ThreadCatalog(second).get("thread")
    assert thread is not None
    assert "__forkpoint_incoming" in thread.metadata
    report = await arestore_threads(second, path)
    assert report.checkpoints == 6 - written
    assert tuples(second) == tuples(saver)
    assert ThreadCatalog(second).get("thread") == ThreadCatalog(saver).get("thread")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["no saver", "archive"], {}, "target must be"),
        ([None, "missing"], {}, "cannot be read"),
        ([None, 1], {}, "path"),
        ([None, "archive"], {"rename": 1}, "rename"),
        ([None, "archive"], {"rename": {"a": 1}}, "new id"),
        ([None, "archive"], {"threads": [1]}, "thread_id"),
        ([None, "archive"], {"on_progress": 1}, "on_progress"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[Any], options: Any, message: str, second: SqliteSaver, tmp_path: Path
) -> None:
    target, path = arguments
    path = str(tmp_path / path) if isinstance(path, str) else path
    with pytest.raises(InvalidInput, match=message):
        restore_threads(target or second, path, **options)


def test_a_database_is_no_archive_to_read(second: SqliteSaver, path: Path) -> None:
    put(second, {"n": 1})
    with pytest.raises(InvalidInput, match="a file of a store"):
        restore_threads(second, path)
    with pytest.raises(InvalidInput):
        archive_threads(second, path)
    assert len(tuples(second)) == 1


def test_the_file_of_another_kind_is_refused(second: SqliteSaver, tmp_path: Path) -> None:
    for name, content in {"a.gz": b"text", "b": gzip.compress(b"text"), "c.zst": b"{}"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match="no archive"):
            ArchiveFile(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    report = restore_threads(second, tmp_path / "b")
    assert [damaged.line for damaged in report.damaged] == [1]


def test_a_search_finds_what_was_restored_by_its_times(
    saver: ForkpointSaver, second: SqliteSaver, store: Store, tmp_path: Path
) -> None:
    messages(saver, "old", 1)
    store.age("old", created_at=10**13, updated_at=10**12)
    archive_threads(saver, tmp_path / "archive")
    messages(second, "new", 1)
    restore_threads(second, tmp_path / "archive")
    catalog = ThreadCatalog(second)
    assert [thread.thread_id for thread in catalog.search()] == ["new", "old"]
    day_before = datetime.now(timezone.utc) - timedelta(days=1)
    found = catalog.search(ThreadFilter(updated_before=day_before))
    assert [thread.thread_id for thread in found] == ["old"]
    assert [thread.thread_id for thread in catalog.search(sort_by="created_at")] == ["new", "old"]
