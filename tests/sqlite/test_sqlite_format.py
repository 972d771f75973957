"""Databases of every version of the stored format are read, for ever.

A golden database is made once, by `python tests/sqlite/test_sqlite_format.py`, and never changed.
"""

from __future__ import annotations

import datetime
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

import value_types
from checking import config
from forkpoint import SafeSerializer, SqliteSaver
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.storage.interface import SCHEMA_VERSION
from forkpoint.transfer import restore_threads
from stores import SqliteStore

GOLDEN = Path(__file__).parent / "golden"
VALUES: dict[str, Any] = {
    "messages": [
        kind(f"message {n} " * 20, id=f"{n}")
        for n in range(40)
        for kind in (HumanMessage, AIMessage)
    ],
    "files": {f"{n}.txt": {"text": f"file {n} " * 90, "n": n} for n in range(15)},
    "nested": {"list": [{"text": f"deep {n} " * 100} for n in range(8)]},
    "blob": bytes(range(256)) * 300,
    "small": {"when": datetime.datetime(2024, 5, 6, 7, 8, 9), "none": None, "set": {1, 2}},
    "snapshot": DeltaSnapshot([f"log {n} " * 20 for n in range(50)]),
}
OBJECTS: dict[str, Any] = {**value_types.VALUES, "list": list(value_types.VALUES.values()) * 3}
"""Of classes of every kind that an application may have."""
WRITES: list[tuple[str, Any]] = [("c", "small"), ("d", VALUES["messages"]), ("__error__", "no")]
METADATA: Any = {
    "source": "loop",
    "step": 1,
    "user.id": "u1",
    "text": "ü \ud800",
    "said by a server": {"permission": [f"threads:{n}" for n in range(40)]},
}


def serializer(encrypted: bool) -> SerializerProtocol | None:
    if not encrypted:
        return None
    return EncryptedSerializer.from_pycryptodome_aes(SafeSerializer(), key=b"golden-key-01234")


def name(version: int, encrypted: bool) -> str:
    return f"version-{version}{'-encrypted' if encrypted else ''}.db"


def body(checkpoint_id: str) -> Any:
    return {
        "v": 4,
        "id": checkpoint_id,
        "ts": "2024-05-06T07:08:09+00:00",
        "channel_versions": dict.fromkeys(VALUES, 1),
        "versions_seen": {"node": {"messages": 1}},
        "updated_channels": ["messages"],
    }


def objects_body() -> Any:
    versions = dict.fromkeys(OBJECTS, 1)
    return {**body("1"), "channel_versions": versions, "channel_values": OBJECTS}


def make(version: int, encrypted: bool) -> None:
    path = GOLDEN / name(version, encrypted)
    with SqliteSaver(path, serde=serializer(encrypted)) as saver:
        first = saver.put(
            config(), {**body("1"), "channel_values": VALUES}, METADATA, dict.fromkeys(VALUES, 1)
        )
        saver.put_writes(first, WRITES, "task", "~path")
        saver.put(first, {**body("2"), "channel_values": {"small": 1}}, METADATA, {"small": 2})
        saver.copy_thread("thread", "copy")
        objects = saver.put(config("objects"), objects_body(), METADATA, {})
        saver.put_writes(objects, list(OBJECTS.items()), "task")
        saver.put(config("deleted"), {**body("1"), "channel_values": {"n": 1}}, METADATA, {})
        saver.delete_thread("deleted")


def check_objects(saver: SqliteSaver, thread_id: str) -> None:
    """Check that the objects come back as they were put, from the state and from the writes."""
    found = saver.get_tuple(config(thread_id))
    assert found is not None
    written = {channel: value for _, channel, value in found.pending_writes or ()}
    for name, value in OBJECTS.items():
        assert value_types.is_same(found.checkpoint["channel_values"][name], value), name
        assert value_types.is_same(written[name], value), name


STRANGER = """
import sys
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from forkpoint import SqliteSaver, StoredObject
from forkpoint.transfer import archive_threads
path, is_encrypted, archive = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
key = b"golden-key-01234"
serde = EncryptedSerializer.from_pycryptodome_aes(key=key) if is_encrypted else None
with SqliteSaver(path, serde=serde) as saver:
    ids = {each.config["configurable"]["thread_id"] for each in saver.list(None)}
    for thread_id in sorted(ids):
        for found in saver.history(thread_id):
            values = found.checkpoint["channel_values"]
        last = saver.get_tuple({"configurable": {"thread_id": thread_id}})
        config = saver.fork(thread_id, new_thread_id=f"fork of {thread_id}")
        saver.copy_thread(thread_id, f"copy of {thread_id}")
        assert not saver.diff(thread_id, f"copy of {thread_id}")
        again = {**last.checkpoint, "id": empty_checkpoint()["id"]}
        versions = again["channel_versions"]
        written = [(channel, value) for _, channel, value in last.pending_writes or ()]
        thread = {"configurable": {"thread_id": f"put of {thread_id}", "checkpoint_ns": ""}}
        saver.put_writes(saver.put(thread, again, {}, versions), written, "task")
        assert not saver.diff(thread_id, f"put of {thread_id}")
        str(saver.diff("objects", thread_id))
        saver.trim(f"copy of {thread_id}", 1)
    objects = saver.get_tuple({"configurable": {"thread_id": "objects"}})
    values = objects.checkpoint["channel_values"]
    assert isinstance(values["dataclass"], StoredObject) and values["dataclass"]["amount"] == 150.0
    assert values["functional enum"].value == "B"
    assert values["root model"].type_name == "value_types.Names"
    archive_threads(saver, archive)
    assert not {"value_types", "attrs", "pandas"} & sys.modules.keys()
"""


@pytest.mark.parametrize(
    "encrypted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "encrypted"]
)
def test_a_process_without_the_classes_does_all_that_they_are_not_needed_for(
    encrypted: bool, tmp_path: Path
) -> None:
    """It reads, diffs, forks, copies, puts, trims and archives; the application reads the same."""
    path, archive = tmp_path / "golden.db", tmp_path / "archive"
    shutil.copy(GOLDEN / name(SCHEMA_VERSION, encrypted), path)
    tests = str(Path(value_types.__file__).parent)
    known = [each for each in sys.path if each != tests and not each.startswith(tests)]
    subprocess.run(
        [sys.executable, "-c", STRANGER, str(path), str(encrypted), str(archive)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, known))},
        cwd=tmp_path,
    )
    with SqliteSaver(path, serde=serializer(encrypted)) as saver:
        for how in ("", "fork of ", "copy of ", "put of "):
            check_objects(saver, f"{how}objects")
        assert SqliteStore(path).problems(saver) == []
    with SqliteSaver(tmp_path / "restored.db", serde=serializer(encrypted)) as saver:
        assert restore_threads(saver, archive).failed == {}
        for how in ("", "fork of ", "copy of ", "put of "):
            check_objects(saver, f"{how}objects")


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_a_golden_database_is_read_and_written(
    version: int, encrypted: bool, tmp_path: Path
) -> None:
    path = tmp_path / "golden.db"
    shutil.copy(GOLDEN / name(version, encrypted), path)
    with SqliteSaver(path, serde=serializer(encrypted)) as saver:
        for thread_id in ("thread", "copy"):
            entry = saver.get_tuple(config(thread_id, "1"))
            assert entry is not None
            assert entry.checkpoint == {**body("1"), "channel_values": VALUES}
            assert entry.metadata == METADATA
            assert sorted(entry.pending_writes or []) == sorted(
                [("task", channel, value) for channel, value in WRITES]
            )
            newest = saver.get_tuple(config(thread_id))
            assert newest is not None
            assert newest.parent_config == config(thread_id, "1")
        check_objects(saver, "objects")
        assert saver.get_tuple(config("deleted")) is None
        assert len(list(saver.list(None, filter={"user.id": "u1"}))) == 5
        assert SqliteStore(path).problems(saver) == []
        saver.put(newest.config, {**body("3"), "channel_values": VALUES}, METADATA, {"small": 3})
        saver.delete_thread("thread")
        assert SqliteStore(path).problems(saver) == []


def test_what_is_stored_today_is_what_this_version_stored_first(tmp_path: Path) -> None:
    """A change of the format would go unnoticed if it could still read what is old."""

    def chunks(path: Path) -> set[Any]:
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT length(refs), content FROM forkpoint_chunks").fetchall()
        connection.close()
        return set(rows)

    path = tmp_path / "today.db"
    # Messages are left out: what they serialize to changes with LangChain.
    values = {channel: VALUES[channel] for channel in ("files", "nested", "blob", "snapshot")}
    with SqliteSaver(path) as saver:
        saver.put(config(), {**body("1"), "channel_values": values}, METADATA, {})
    assert len(chunks(path)) > 10
    assert chunks(path) <= chunks(GOLDEN / name(SCHEMA_VERSION, encrypted=False))


if __name__ == "__main__":
    for _encrypted in (False, True):
        if (GOLDEN / name(SCHEMA_VERSION, _encrypted)).exists():
            sys.exit("a golden database is made once, and never changed")
        make(SCHEMA_VERSION, _encrypted)
