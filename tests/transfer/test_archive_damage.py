"""Archives that are damaged: what is damaged is named, and the rest is restored."""

from __future__ import annotations

import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from checking import config, counts_of, id_of, one_by_one, put, value_of
from forkpoint import (
    DamagedArchive,
    InvalidInput,
    SqliteSaver,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.archive import file
from forkpoint.archive.file import lines_in
from forkpoint.mongodb import put_size
from forkpoint.transfer import (
    archive_threads,
    restore_threads,
)
from stores import MongoStore, SqliteStore
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


def two_archives(second: SqliteSaver, directory: Path, size: int, ending: str = "") -> list[bytes]:
    """Return an archive of a thread `a` and one of a thread `b`."""
    archives = []
    for thread_id in "ab":
        head: Any = None
        for n in range(3):
            head = put(second, {"texts": [f"{n}" * size]}, thread_id=thread_id, parent=head)
        path = directory / f"{thread_id}{ending}"
        archive_threads(second, path, ThreadFilter(ids=[thread_id]))
        archives.append(path.read_bytes())
        second.purge(thread_id)
    return archives


@pytest.mark.parametrize("lost", [1, 30, 200])
def test_of_archives_that_were_joined_none_is_restored_as_a_part_of_another(
    lost: int, second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = two_archives(second, tmp_path, 9)
    (tmp_path / "joined").write_bytes(first[:-lost] + last)
    report = restore_threads(second, tmp_path / "joined")
    assert (report.threads, len(report.damaged)) == (2, lost > 1)
    assert counts_of(second) == {"a": 2 if lost == 200 else 3, "b": 3}


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_thread_behind_a_first_line_that_was_cut_off_is_restored(
    before: int, cut: int, second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = two_archives(second, tmp_path, 9)
    (tmp_path / "joined").write_bytes(first * before + first[:200] * cut + last)
    report = restore_threads(second, tmp_path / "joined")
    reason = "it is cut off; its thread is left out"
    assert [str(damage).endswith(reason) for damage in report.damaged] == [True]
    assert (report.threads, report.failed) == (1 + before, {})
    assert counts_of(second) == {"a": 3, "b": 3} if before else {"b": 3}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damaged", [slice(0, 5), slice(-9, None)])
def test_damage_at_an_end_of_a_thread_keeps_no_other_from_being_restored(
    damaged: slice, name: str, second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = two_archives(second, tmp_path, 9, Path(name).suffix)
    content = bytearray(first)
    content[damaged] = b"\0" * len(content[damaged])
    (tmp_path / name).write_bytes(content + last)
    report = restore_threads(second, tmp_path / name)
    assert report.damaged
    assert counts_of(second)["b"] == 3


def test_a_thread_is_restored_that_has_something_else_before_it(
    second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = two_archives(second, tmp_path, 9)
    (tmp_path / "joined").write_bytes(first + b"else" + last)
    report = restore_threads(second, tmp_path / "joined")
    assert (report.threads, len(report.damaged)) == (2, 1)
    assert counts_of(second) == {"a": 3, "b": 3}


def test_what_follows_a_checkpoint_that_the_store_cannot_hold_is_whole(
    mongo_store: MongoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = random.Random(1).randbytes(5000)
    with SqliteSaver(tmp_path / "source.db") as source, mongo_store.saver() as target:
        many = {f"channel {number}": number for number in range(500)}
        large = put(source, {**many, "value": shared})
        last = put(source, {"value": shared}, parent=large)
        archive_threads(source, tmp_path / "archive")
        monkeypatch.setattr(put_size, "LARGE", 10_000)
        monkeypatch.setattr(put_size, "MAX_BSON_SIZE", 10_000)
        (damaged,) = restore_threads(target, tmp_path / "archive").damaged
        assert "cannot hold this as one document" in str(damaged)
        assert [id_of(found.config) for found in target.list(config())] == [id_of(last)]
        assert mongo_store.problems(target) == []


def test_a_last_line_without_its_newline_stays(second: SqliteSaver, tmp_path: Path) -> None:
    first, last = two_archives(second, tmp_path, 9)
    (tmp_path / "joined").write_bytes(first[:-1])  # as "\n".join(lines) leaves it
    assert restore_threads(second, tmp_path / "b").is_complete
    archive_threads(second, tmp_path / "joined")
    content = (tmp_path / "joined").read_bytes()
    assert content.startswith(first)
    assert len(content) == len(first + last)


@pytest.mark.parametrize("size", [9, 9000])
def test_a_thread_whose_beginning_is_lost_is_no_part_of_the_one_before(
    size: int, second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = two_archives(second, tmp_path, size)
    joined = first[:-200] + bytes(270) + last[70:]  # such as a block that a disk has lost
    (tmp_path / "joined").write_bytes(joined)
    report = restore_threads(second, tmp_path / "joined")
    assert [str(damage).endswith(OF_ANOTHER) for damage in report.damaged] == [False, True]
    assert counts_of(second) == {"a": 2}


OF_ANOTHER = "it is of another thread, as the line that begins that is damaged"


@pytest.mark.parametrize("size", [9, 9000])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_whatever_is_lost_between_two_threads_neither_gets_lines_of_the_other(
    is_damaged: bool, size: int, second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = (
        archive.splitlines(keepends=True) for archive in two_archives(second, tmp_path, size)
    )
    between = b"\0\n" * is_damaged
    for of_last in range(1, len(last)):
        lost = [*first[:-2], between, *last[of_last:]]
        (tmp_path / "joined").write_bytes(b"".join(lost))
        report = restore_threads(second, tmp_path / "joined")
        are_of_another = [str(damage).endswith(OF_ANOTHER) for damage in report.damaged]
        assert are_of_another == [False] * is_damaged + [True]
        assert counts_of(second) == {"a": 2}
        assert all(value_of(found)["texts"][0][0] in "01" for found in tuples(second, "a"))
        second.purge("a")


def test_a_lost_thread_is_named_also_behind_a_copy_that_does_not_count(
    second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = (
        archive.splitlines(keepends=True) for archive in two_archives(second, tmp_path, 9)
    )
    (tmp_path / "joined").write_bytes(b"".join([*first[:-1], *last[1:], *first]))
    report = restore_threads(second, tmp_path / "joined")
    assert [damage.line for damage in report.damaged] == [len(first)]
    assert counts_of(second) == {"a": 3}


def test_of_two_copies_of_a_thread_neither_gets_lines_of_the_other(
    second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    head: Any = None
    for n in range(3):
        head = put(second, {"texts": [f"{n}" * 9000]}, parent=head)
    archive_threads(second, path)
    first = path.read_bytes().splitlines(keepends=True)
    second.trim("thread", 2)  # which its record does not tell
    archive_threads(second, path)
    last = path.read_bytes().splitlines(keepends=True)[len(first) :]
    path.write_bytes(b"".join(first[:3] + last[2:]))
    second.purge("thread")
    report = restore_threads(second, path)
    assert [str(damage).endswith(OF_ANOTHER) for damage in report.damaged] == [True]
    (found,) = tuples(second)
    assert value_of(found) == {"texts": ["0" * 9000]}


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("size", [9, 90_000])
def test_of_compressed_archives_that_were_joined_the_last_one_is_restored_and_kept(
    name: str, size: int, second: SqliteSaver, tmp_path: Path
) -> None:
    first, last = two_archives(second, tmp_path, size, Path(name).suffix)
    cut_off = first[:-30] + last  # for what is missing, Zstandard takes what follows
    (tmp_path / name).write_bytes(cut_off)
    report = restore_threads(second, tmp_path / name)
    assert report.damaged
    assert counts_of(second)["b"] == 3
    messages(second, "another", 1)
    (tmp_path / name).write_bytes(last + cut_off)
    with pytest.raises(InvalidInput, match="damaged"):
        archive_threads(second, tmp_path / name, ThreadFilter(ids=["another"]))
    assert (tmp_path / name).read_bytes() == last + cut_off


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
    for begun in (1, 10, 40):  # as a process leaves it that is stopped in the first one
        path.write_bytes(whole[:begun])
        archive_threads(second, path, ThreadFilter(ids=["a"]))
        with SqliteSaver(tmp_path / f"{begun}.db") as saver:
            assert restore_threads(saver, path).is_complete
            assert tuples(saver, "a") == tuples(second, "a")


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
    whole = json.loads(line)
    written = json.dumps({**whole[kind], **fields}).encode() + f', "of": "{whole["of"]}"'.encode()
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
    ("thread", {"ttl_seconds": float("inf")}),
    ("thread", {"ttl_seconds": 1e30}),
    ("thread", {"ttl_seconds": -1}),
    ("thread", {"lineage": [{"thread_id": "a"}]}),
    ("thread", {"lineage": [{"thread_id": "a", "edge": "x", "parent_checkpoint_id": None,
                             "created_at": None}]}),
    ("chunks", {"chunks": [["AA==", "x"]]}),
    ("chunks", {"chunks": [1]}),
    ("chunks", {"chunks": [["AA==", 77]]}),
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
    ("end", {"checkpoints": float("inf")}),
    ("end", {"checkpoints": 3}),
]  # fmt: skip


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


def test_a_line_that_does_not_begin_as_it_is_written_is_damaged(
    second: SqliteSaver, tmp_path: Path
) -> None:
    whole, path = tmp_path / "whole", tmp_path / "archive"
    messages(second, "thread", 2)
    archive_threads(second, whole)
    second.purge("thread")
    first, *lines = whole.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, first.removeprefix(b'{"'), *lines]))
    report = restore_threads(second, path)
    assert [(damaged.line, damaged.thread_id) for damaged in report.damaged] == [(2, "thread")]
    assert len(tuples(second)) == 2


def test_threads_that_say_to_be_made_of_each_other_are_restored(
    second: SqliteSaver, tmp_path: Path
) -> None:
    whole, path = tmp_path / "whole", tmp_path / "archive"
    messages(second, "a", 2)
    second.fork("a", new_thread_id="b")
    archive_threads(second, whole)
    expected = {name: tuples(second, name) for name in ("a", "b")}
    lines = whole.read_bytes().splitlines(keepends=True)
    (line_age,) = [json.loads(line)["thread"]["lineage"] for line in lines if b'"fork"' in line]
    of_each_other = {**line_age[1], "edge": "fork"}, line_age[0]
    path.write_bytes(forged(lines[0], "thread", lineage=of_each_other) + b"".join(lines[1:]))
    for name in ("b", "a"):
        second.purge(name)
    assert restore_threads(second, path).is_complete
    for name in ("a", "b"):
        assert tuples(second, name) == expected[name]
        assert len(second.lineage(name)) <= 2


def test_of_a_thread_that_is_in_an_archive_twice_that_which_is_whole_counts(
    second: SqliteSaver, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    messages(second, "thread", 2)
    expected = tuples(second)
    archive_threads(second, path)
    put(second, {"large": random.Random(1).randbytes(100_000)}, parent=expected[0].config)
    archive_threads(second, path)
    longest = max(path.read_bytes().splitlines(), key=len)
    assert longest.startswith(b'{"chunks": ')
    path.write_bytes(path.read_bytes().partition(longest)[0] + longest[:-100])
    second.purge("thread")
    report = restore_threads(second, path)
    assert (report.threads, tuples(second)) == (1, expected)

    archive_threads(second, path)  # what was not finished is removed first
    assert [line.content[:2] for line in lines_in(str(path))] == [b'{"'] * len(
        path.read_bytes().splitlines()
    )


@pytest.mark.parametrize("name", NAMES[1:])
def test_of_a_long_compressed_thread_what_is_before_the_damage_is_restored(
    name: str, second: SqliteSaver, tmp_path: Path
) -> None:
    """And what is in the threads that follow."""
    path = tmp_path / name
    parent: Any = None
    rng = random.Random(1)
    for number in range(12):
        values = {f"c{number}": rng.randbytes(50_000).hex()}
        parent = put(second, values, parent=parent, thread_id="long")
    archive_threads(second, path)
    middle = path.stat().st_size // 2
    messages(second, "short", 2)
    archive_threads(second, path, ThreadFilter(ids=["short"]))
    content = bytearray(path.read_bytes())
    content[middle : middle + 1000] = bytes(1000)
    path.write_bytes(content)
    with SqliteSaver(tmp_path / "restored.db") as saver:
        report = restore_threads(saver, path)
        assert {damaged.thread_id for damaged in report.damaged} == {"long"}
        assert tuples(saver, "short") == tuples(second, "short")
        restored, expected = tuples(saver, "long"), tuples(second, "long")
        assert 4 < len(restored) < 12
        assert restored == [found for found in expected if found in restored]
        assert restored[-4:] == expected[-4:]
