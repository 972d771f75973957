"""Archives that are damaged: what is damaged is named, and the rest is restored."""

from __future__ import annotations

import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from checking import id_of, one_by_one
from forkpoint import (
    DamagedArchive,
    InvalidInput,
    SqliteSaver,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.archive import file
from forkpoint.archive.file import lines_in
from forkpoint.transfer import (
    archive_threads,
    restore_threads,
)
from stores import SqliteStore
from transferring import NAMES, messages, tuples


@pytest.fixture
def second(path: Path) -> SqliteSaver:
    return SqliteSaver(path)


def test_a_damaged_line_is_named_and_skipped(second: SqliteSaver, tmp_path: Path) -> None:
    saver = SqliteSaver(tmp_path / "source.db")
    whole, path = tmp_path / "whole", tmp_path / "archive"
    for name in ("a", "b"):
        messages(saver, name, 4)
    archive_threads(saver, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    kinds = [next(iter(json.loads(line))) for line in lines]
    assert [kind for kind in kinds if kind != "chunks"] == (
        ["thread", *["checkpoint"] * 4, "end"] * 2
    )
    rng = random.Random(1)
    for number, (kind, line) in enumerate(zip(kinds, lines, strict=True), 1):
        at = rng.randrange(len(BEGINS[kind]), len(line) - 60)
        other = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
        path.write_bytes(b"".join(lines[: number - 1]) + other + b"".join(lines[number:]))
        report = restore_threads(second, path)
        named = [(damaged.line, damaged.thread_id) for damaged in report.damaged]
        is_of_a = number <= len(lines) // 2
        assert named[0] == (number, None if kind == "thread" else "a" if is_of_a else "b")
        assert all(isinstance(damaged, DamagedArchive) for damaged in report.damaged)
        there = "b" if is_of_a else "a"
        assert tuples(second, there) == tuples(saver, there)
        hurt = tuples(second, "a" if is_of_a else "b")
        assert len(hurt) == {"thread": 0, "checkpoint": 3, "end": 4}.get(kind, len(hurt))
        theirs = {id_of(found): found for found in tuples(saver, "a" if is_of_a else "b")}
        assert all(found == theirs[id_of(found)] for found in hurt)
        for thread in ThreadCatalog(second).walk():
            second.purge(thread.thread_id)


BEGINS = {kind: f'{{"{kind}": ' for kind in ("thread", "chunks", "checkpoint", "end")}


def test_lines_that_are_missing_are_noticed(
    path: Path, second: SqliteSaver, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "archive"
    messages(second, "thread", 3)
    archive_threads(second, whole)
    second.purge("thread")
    lines = whole.read_bytes().splitlines(keepends=True)
    for number, left in {
        "without the end": lines[:-1],
        "without a checkpoint": [line for n, line in enumerate(lines) if n != len(lines) - 2],
        "cut off": [*lines[:-1], lines[-1][:-9]],
        "without its record": lines[1:],
    }.items():
        cut.write_bytes(b"".join(left))
        report = restore_threads(second, cut)
        assert len(report.damaged) == 1, number
        assert len(tuples(second)) == {"without a checkpoint": 2, "without its record": 0}.get(
            number, 3
        )
        if report.threads:
            second.purge("thread")


@pytest.mark.parametrize("name", NAMES[1:])
def test_what_follows_a_damaged_compressed_thread_is_restored(
    name: str, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / name
    for thread_id in ("a", "b", "c"):
        messages(second, thread_id, 3)
    archive_threads(second, path, ThreadFilter(ids=["a"]))
    end_of_first = path.stat().st_size
    archive_threads(second, path, ThreadFilter(ids=["b"]))
    end_of_second = path.stat().st_size
    archive_threads(second, path, ThreadFilter(ids=["c"]))
    content = bytearray(path.read_bytes())
    for at in range(end_of_first + 40, end_of_first + 80):
        content[at] ^= 255
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="damaged"):
        archive_threads(second, path)
    assert path.read_bytes() == content
    with SqliteSaver(tmp_path / "restored.db") as saver:
        report = restore_threads(saver, path)
        assert report.damaged
        assert tuples(saver, "a") == tuples(second, "a")
        assert tuples(saver, "c") == tuples(second, "c")
    path.write_bytes(content[: end_of_second - 10])
    assert not restore_threads(second, path).is_complete


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_compressed_thread_that_was_not_finished_is_replaced(
    name: str, second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / name
    messages(second, "a", 3)
    messages(second, "b", 3)
    archive_threads(second, path, ThreadFilter(ids=["a"]))
    whole = path.read_bytes()
    archive_threads(second, path, ThreadFilter(ids=["b"]))
    path.write_bytes(path.read_bytes()[:-20])
    archive_threads(second, path, ThreadFilter(ids=["b"]))
    assert path.read_bytes().startswith(whole)
    with SqliteSaver(tmp_path / "restored.db") as saver:
        assert restore_threads(saver, path).is_complete
        assert tuples(saver, "b") == tuples(second, "b")


def test_a_damaged_thread_is_not_archived(second: SqliteSaver, path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    messages(second, "good", 2)
    messages(second, "bad", 2)
    rows = [row for row in store.rows("chunks") if row.family == store.thread("bad").family]
    store.change("chunks", rows[0].key, content=b"\0damaged")
    report = archive_threads(second, tmp_path / "archive")
    assert (report.threads, list(report.failed)) == (1, ["bad"])
    assert {line.content[:10] for line in lines_in(str(tmp_path / "archive"))} >= {b'{"thread":'}
    second.purge("good")
    assert restore_threads(second, tmp_path / "archive").is_complete


def forged(line: bytes, kind: str, **fields: Any) -> bytes:
    """Return a line with other fields, and a hash that fits."""
    part = {**json.loads(line)[kind], **fields}
    written = json.dumps(part).encode()
    digest = sha256(written).hexdigest()[:32].encode()
    return b'{"' + kind.encode() + b'": ' + written + b', "sha256": "' + digest + b'"}\n'


FORGED: list[tuple[str, dict[str, Any]]] = [
    ("thread", {"thread_id": 1}),
    ("thread", {"thread_id": ["a"]}),
    ("thread", {"thread_id": "a\0b"}),
    ("thread", {"owner": ["x"]}),
    ("thread", {"tags": [1]}),
    ("thread", {"metadata": []}),
    ("thread", {"metadata": {"n": "x" * 5_000_000}}),
    ("thread", {"format": 2}),
    ("thread", {"status": "gone"}),
    ("thread", {"created_at": "in the year 3"}),
    ("thread", {"updated_at": "9999-01-01T00:00:00+00:00"}),
    ("thread", {"ttl_seconds": "x"}),
    ("thread", {"lineage": [{"thread_id": "a"}]}),
    ("chunks", {"chunks": [["AA==", "x"]]}),
    ("chunks", {"chunks": [1]}),
    ("chunks", {"first": "x"}),
    ("chunks", {"first": 10_000}),
    ("checkpoint", {"id": ""}),
    ("checkpoint", {"id": {"$ne": ""}}),
    ("checkpoint", {"ns": None}),
    ("checkpoint", {"parent": 1}),
    ("checkpoint", {"run_id": "another"}),
    ("checkpoint", {"metadata": "text"}),
    ("checkpoint", {"body": ["msgpack"]}),
    ("checkpoint", {"body": [1, "AA=="]}),
    ("checkpoint", {"channels": {"messages": [9, "", "AA=="]}}),
    ("checkpoint", {"channels": {"messages": [2, "", 0, 99_999]}}),
    ("checkpoint", {"channels": {"messages": [2, "", 0, "x"]}}),
    ("checkpoint", {"channels": {"messages": [2, "", 1e9, 0]}}),
    ("checkpoint", {"channels": [1]}),
    ("checkpoint", {"writes": [["t", -1000, "", "c", 0, "msgpack", "AMA="]]}),
    ("checkpoint", {"writes": [["t", "0", "", "c", 0, "msgpack", "AMA="]]}),
    ("checkpoint", {"writes": [["t", 0, 1, "c", 0, "msgpack", "AMA="]]}),
    ("checkpoint", {"writes": 1}),
    ("checkpoint", {"hidden": 1}),
    ("checkpoint", {"preview": 1}),
    ("end", {"checkpoints": "x"}),
    ("end", {"checkpoints": 3}),
]


@one_by_one("kind, fields", FORGED)
def test_a_line_that_somebody_forged_is_refused(
    kind: str, fields: Any, second: SqliteSaver, tmp_path: Path
) -> None:
    whole, path = tmp_path / "whole", tmp_path / "archive"
    messages(second, "thread", 2)
    archive_threads(second, whole)
    second.purge("thread")
    lines = whole.read_bytes().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if line.startswith(BEGINS[kind].encode()))
    path.write_bytes(
        b"".join([*lines[:number], forged(lines[number], kind, **fields), *lines[number + 1 :]])
    )
    whole.unlink()

    report = restore_threads(second, path)

    assert not report.is_complete
    left = tuples(second)
    assert len(left) == {"thread": 0, "checkpoint": 1}.get(kind, len(left))
    if report.threads:
        second.purge("thread")


def test_a_line_that_is_too_long_is_not_read(
    second: SqliteSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "LONGEST_LINE", 1000)
    (tmp_path / "archive").write_bytes(b" " * 100_000)
    with pytest.raises(InvalidInput, match="longer than any"):
        restore_threads(second, tmp_path / "archive")
