"""SQLite stores once what repeats in the metadata of a thread's checkpoints."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.runnables import RunnableConfig

from checking import config, put
from forkpoint import CorruptChunk, SqliteSaver

SERVER = {
    "graph_id": "agent",
    "assistant_id": str(uuid4()),
    "user_id": "ada@example.org",
    "auth": {
        "permissions": ["threads:read", "threads:write"],
        "scopes": [f"s{n}" for n in range(40)],
    },
    "versions": {"api": "0.16.7", "graph": "1.2.24", "host": "self-hosted", "plan": "developer"},
}
"""What a server of graphs says with each run: some 500 bytes."""


@pytest.fixture
def saver(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(str(path), durability="normal") as saver:
        yield saver


def metadata(step: int, **more: Any) -> dict[str, Any]:
    return {
        "source": "loop",
        "step": step,
        "parents": {},
        **SERVER,
        "run_id": f"run {step // 3}",
        **more,
    }


def fill(saver: SqliteSaver, length: int = 12, thread_id: str = "thread") -> list[RunnableConfig]:
    """Put checkpoints one after the other."""
    configs: list[RunnableConfig] = []
    for step in range(length):
        parent = configs[-1] if configs else None
        configs.append(
            put(saver, {"n": step}, thread_id=thread_id, parent=parent, metadata=metadata(step))
        )
    return configs


def stored(path: Path, column: str = "metadata", table: str = "checkpoints") -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute(f"SELECT {column} FROM forkpoint_{table}")]


def change(path: Path, sql: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql, values)


def test_what_repeats_is_stored_once(saver: SqliteSaver, path: Path) -> None:
    fill(saver, 100)
    assert len(json.dumps(metadata(0))) > 500
    assert sum(map(len, stored(path))) / 100 < 40
    assert stored(path, "dictionary", "dictionaries") == [
        json.dumps(metadata(0), separators=(",", ":"))
    ]
    found = list(saver.list(config()))
    assert [each.metadata for each in found] == [metadata(step) for step in reversed(range(100))]
    assert list(found[0].metadata) == list(metadata(99))  # in the same order


def test_metadata_that_are_packed_are_searched(saver: SqliteSaver) -> None:
    configs = fill(saver, 9)
    fill(saver, 3, thread_id="other")
    of_run = {"run_id": "run 1", "auth": {"permissions": ["threads:read"]}}
    assert [each.metadata["step"] for each in saver.list(config(), filter=of_run)] == [5, 4, 3]
    assert not list(saver.list(None, filter={"user_id": "bob@example.org"}))
    assert len(list(saver.list(None, filter={"user_id": SERVER["user_id"]}))) == 12
    newest = saver.latest({"graph_id": "agent", "run_id": "run 2"})
    assert newest is not None
    assert newest.config == configs[-1]
    saver.delete_for_runs(["run 1"])
    assert [each.metadata["step"] for each in saver.list(config())] == [8, 7, 6, 2, 1, 0]


LENGTHS = [255, 256, 257, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 1_000_000]


@pytest.mark.parametrize("first", LENGTHS)
def test_metadata_of_any_length_come_back(first: int, saver: SqliteSaver) -> None:
    expected = []
    for number, length in enumerate([first, *LENGTHS, 40, first]):
        texts: dict[str, Any] = {"é\ud800\0": "\N{SNAKE}'", "text": ""}
        texts["text"] = "x" * (length - len(json.dumps(texts))) if length > 99 else str(number)
        put(saver, {"n": number}, metadata=texts)
        expected.append(texts)
    assert [each.metadata for each in saver.list(config())] == expected[::-1]


@pytest.mark.parametrize("make", ["copy", "fork", "path", "rollback", "trim"])
def test_what_is_made_of_a_thread_has_its_metadata(
    make: str, saver: SqliteSaver, path: Path
) -> None:
    configs = fill(saver)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: saver.copy_thread("thread", "made"),
        "fork": lambda: saver.fork("thread", new_thread_id="made"),
        "path": lambda: saver.fork(configs[5], new_thread_id="made", history="path"),
        "rollback": lambda: saver.rollback("thread", 3),
        "trim": lambda: saver.trim("thread", 3),
    }
    calls[make]()
    made = "thread" if make in ("rollback", "trim") else "made"
    fill(saver, 15, thread_id=made)
    steps = [each.metadata for each in saver.list(config(made))]
    kept = {"copy": range(12), "fork": [11], "path": range(6), "rollback": range(9)}
    before = list(kept.get(make, range(9, 12)))
    after = [metadata(step) for step in reversed(range(15))]
    assert steps[:15] == after
    assert [each["step"] for each in steps[15:]][-len(before) :] == before[::-1]
    assert all(each["user_id"] == SERVER["user_id"] for each in steps)
    assert max(len(each) for each in stored(path) if isinstance(each, bytes)) < 100
    assert saver.check().is_clean


def test_the_dictionary_goes_with_its_thread(saver: SqliteSaver, path: Path) -> None:
    fill(saver)
    saver.copy_thread("thread", "copy")
    saver.purge("thread")
    assert len(list(saver.list(config("copy"), filter={"user_id": SERVER["user_id"]}))) == 12
    saver.purge("copy")
    assert stored(path, "dictionary", "dictionaries") == []
    change(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"ada@example.org" not in path.read_bytes()


def _bomb() -> bytes:
    compressor = zlib.compressobj(wbits=-13)
    return compressor.compress(b"[" * 50_000_000) + compressor.flush()


DAMAGE = {
    "cut": lambda metadata: metadata[:-1],
    "longer": lambda metadata: metadata + b"\0",
    "empty": lambda metadata: b"",
    "a number": lambda metadata: 7,
    "a bomb": lambda metadata: _bomb(),
    "not packed": lambda metadata: b'{"source": "loop"}',
    "of another": lambda metadata: json.dumps({"source": "loop"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_metadata_raise_a_typed_error(damage: str, saver: SqliteSaver, path: Path) -> None:
    configs = fill(saver)
    with closing(sqlite3.connect(path)) as connection, connection:
        select = "SELECT id, metadata FROM forkpoint_checkpoints ORDER BY id LIMIT 1 OFFSET 5"
        key, packed = connection.execute(select).fetchone()
        update = "UPDATE forkpoint_checkpoints SET metadata = ? WHERE id = ?"
        connection.execute(update, (DAMAGE[damage](packed), key))
    with pytest.raises(CorruptChunk):
        saver.get_tuple(configs[5])
    assert saver.get_tuple(configs[4]) is not None
    assert saver.get_tuple(configs[6]) is not None
    with pytest.raises(CorruptChunk):
        list(saver.list(config()))


@pytest.mark.parametrize(
    "lost",
    [
        "DELETE FROM forkpoint_dictionaries",
        "UPDATE forkpoint_dictionaries SET dictionary = '{}'",
        "UPDATE forkpoint_dictionaries SET dictionary = x'00'",
    ],
)
def test_without_its_dictionary_a_thread_is_damaged(
    lost: str, saver: SqliteSaver, path: Path
) -> None:
    configs = fill(saver)
    put(saver, {"n": 1}, thread_id="short", metadata={"source": "loop"})
    change(path, lost)
    for each in configs:
        with pytest.raises(CorruptChunk):
            saver.get_tuple(each)
    assert saver.get_tuple(config("short")) is not None
    assert {each.thread_id for each in saver.check().problems} == {"thread"}
    saver.delete_thread("thread")
    assert saver.check().problems == ()


def test_metadata_are_stored_as_they_are_where_the_dictionary_is_none(
    saver: SqliteSaver, path: Path
) -> None:
    fill(saver)
    change(path, "UPDATE forkpoint_dictionaries SET dictionary = x'00'")
    head = put(saver, {"n": 1}, metadata={"source": "loop", "more": "x" * 300})
    found = saver.get_tuple(head)
    assert found is not None
    assert found.metadata["more"] == "x" * 300  # type: ignore[typeddict-item]
