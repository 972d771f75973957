"""Archives that are damaged: what is damaged is named, and the rest is restored."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from checking import config, id_of, put
from langchain_core.messages import HumanMessage
from stores import SqliteStore

from forkpoint import (
    DamagedArchive,
    InvalidInput,
    SqliteSaver,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.archive.file import lines_in
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import (
    archive_threads,
    restore_threads,
)

NAMES = ["archive.jsonl", "archive.jsonl.gz", "archive.jsonl.zst"]


@pytest.fixture
def second(path: Path) -> SqliteSaver:
    return SqliteSaver(path)


def tuples(saver: ForkpointSaver, thread_id: str = "thread") -> list[Any]:
    return list(saver.list(config(thread_id)))


def messages(saver: ForkpointSaver, thread_id: str, number: int) -> None:
    parent: Any = None
    texts = [HumanMessage(f"{thread_id} {n} " * 100, id=str(n)) for n in range(number)]
    for count in range(1, number + 1):
        parent = put(saver, {"messages": texts[:count]}, parent=parent, thread_id=thread_id)
        saver.put_writes(parent, [("a", count), ("b", texts[count - 1])], f"t{count}", "~path, 1")


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
