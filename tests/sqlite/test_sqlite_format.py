"""Databases of every version of the stored format are read, for ever.

A golden database is made once, by `python tests/sqlite/test_sqlite_format.py`, and never changed.
"""

from __future__ import annotations

import datetime
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from checking import config
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from stores import SqliteStore

from forkpoint import SafeSerializer, SqliteSaver
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.storage.interface import SCHEMA_VERSION

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
WRITES: list[tuple[str, Any]] = [("c", "small"), ("d", VALUES["messages"]), ("__error__", "no")]
METADATA: Any = {"source": "loop", "step": 1, "user.id": "u1", "text": "ü \ud800"}


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


def make(version: int, encrypted: bool) -> None:
    path = GOLDEN / name(version, encrypted)
    with SqliteSaver(path, serde=serializer(encrypted)) as saver:
        first = saver.put(
            config(), {**body("1"), "channel_values": VALUES}, METADATA, dict.fromkeys(VALUES, 1)
        )
        saver.put_writes(first, WRITES, "task", "~path")
        saver.put(first, {**body("2"), "channel_values": {"small": 1}}, METADATA, {"small": 2})
        saver.copy_thread("thread", "copy")
        saver.put(config("deleted"), {**body("1"), "channel_values": {"n": 1}}, METADATA, {})
        saver.delete_thread("deleted")


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_a_golden_database_is_read_and_written(
    version: int, encrypted: bool, tmp_path: Path
) -> None:
    path = tmp_path / "golden.db"
    shutil.copy(GOLDEN / name(version, encrypted), path)
    with SqliteSaver(path, serde=serializer(encrypted)) as saver:
        for thread_id in ("thread", "copy"):
            found = saver.get_tuple(config(thread_id, "1"))
            assert found is not None
            assert found.checkpoint == {**body("1"), "channel_values": VALUES}
            assert found.metadata == METADATA
            assert sorted(found.pending_writes or []) == sorted(
                [("task", channel, value) for channel, value in WRITES]
            )
            newest = saver.get_tuple(config(thread_id))
            assert newest is not None
            assert newest.parent_config == config(thread_id, "1")
        assert saver.get_tuple(config("deleted")) is None
        assert len(list(saver.list(None, filter={"user.id": "u1"}))) == 4
        assert SqliteStore(path).problems(saver) == []
        saver.put(newest.config, {**body("3"), "channel_values": VALUES}, METADATA, {"small": 3})
        saver.delete_thread("thread")
        assert SqliteStore(path).problems(saver) == []


def test_what_is_stored_today_is_what_this_version_stored_first(tmp_path: Path) -> None:
    """A change of the format would go unnoticed if it could still read what is old."""

    def chunks(path: Path) -> set[Any]:
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT digest, refs, content FROM forkpoint_chunks").fetchall()
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
