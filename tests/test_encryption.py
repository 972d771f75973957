"""With an encrypting serializer, what is stored is unreadable, shared, and verified."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint import CorruptChunk, EncryptionMismatch, SafeSerializer, SqliteSaver
from support import config, problems, put

SECRET = "the-secret-text"


def serde(key: bytes = b"0123456789abcdef") -> EncryptedSerializer:
    return EncryptedSerializer.from_pycryptodome_aes(SafeSerializer(), key=key)


def values(count: int = 200) -> dict[str, Any]:
    return {
        "messages": [HumanMessage(f"{SECRET} {n} " * 30, id=str(n)) for n in range(count)],
        "small": SECRET,
    }


def test_no_value_is_readable_in_the_file(path: Path) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        stored = put(saver, values())
        saver.put_writes(stored, [("c", SECRET), ("d", SECRET * 1000)], "task")

    assert SECRET.encode() not in path.read_bytes()


def test_values_come_back_in_another_process_with_the_key(path: Path) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        put(saver, values())
    with SqliteSaver(path, serde=serde()) as saver:
        found = saver.get_tuple(config())
        assert found is not None
        assert found.checkpoint["channel_values"] == values()
        assert problems(path, saver) == []


def test_chunks_are_shared_between_checkpoints_and_processes(path: Path) -> None:
    def count() -> int:
        connection = sqlite3.connect(path)
        (chunks,) = connection.execute("SELECT count(*) FROM forkpoint_chunks").fetchone()
        connection.close()
        return int(chunks)

    with SqliteSaver(path, serde=serde()) as saver:
        put(saver, values(200))
        before = count()
    with SqliteSaver(path, serde=serde()) as saver:
        put(saver, values(201))
    assert count() - before <= 4


def test_another_key_reads_nothing(path: Path) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        put(saver, values(), thread_id="one")
    with SqliteSaver(path, serde=serde(b"another-key-0123")) as other:
        with pytest.raises(CorruptChunk, match="another key"):
            other.get_tuple(config("one"))
        put(other, values(), thread_id="other")
        assert other.get_tuple(config("other")) is not None


def test_an_unencrypted_row_is_refused(path: Path) -> None:
    with SqliteSaver(path) as plain:
        stored = put(plain, values(), thread_id="plain")
        plain.put_writes(stored, [("c", 1)], "task")
    with SqliteSaver(path, serde=serde()) as saver:
        with pytest.raises(EncryptionMismatch, match="not encrypted"):
            saver.get_tuple(config("plain"))
        with pytest.raises(EncryptionMismatch):
            list(saver.list(None))


@pytest.mark.parametrize("table", ["checkpoints", "writes", "chunks"])
def test_a_row_that_was_replaced_by_an_unencrypted_one_is_refused(path: Path, table: str) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        stored = put(saver, values())
        saver.put_writes(stored, [("c", 1)], "task")
        connection = sqlite3.connect(path)
        connection.execute(f"UPDATE forkpoint_{table} SET content = CAST(x'00' || content AS BLOB)")
        connection.commit()
        connection.close()
        with pytest.raises(EncryptionMismatch):
            saver.get_tuple(config())


def test_an_encrypted_row_needs_the_serializer(path: Path) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        put(saver, values())
    with (
        SqliteSaver(path) as plain,
        pytest.raises(EncryptionMismatch, match="EncryptedSerializer"),
    ):
        plain.get_tuple(config())


def test_a_row_copied_from_another_checkpoint_is_refused(path: Path) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        first = put(saver, {"approved": False})
        put(saver, {"approved": True}, parent=first)
        connection = sqlite3.connect(path)
        connection.execute(
            "UPDATE forkpoint_checkpoints SET (content, seal) = (SELECT content, seal FROM"
            " forkpoint_checkpoints ORDER BY checkpoint_id DESC LIMIT 1)"
        )
        connection.commit()
        connection.close()
        with pytest.raises(CorruptChunk):
            saver.get_tuple(first)


def test_metadata_can_be_searched(path: Path) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        put(saver, values(), metadata={"user.id": "u1"})
        assert len(list(saver.list(None, filter={"user.id": "u1"}))) == 1
        assert list(saver.list(None, filter={"user.id": "u2"})) == []


def test_a_store_can_be_cleaned_without_the_key(path: Path) -> None:
    with SqliteSaver(path, serde=serde()) as saver:
        put(saver, values(), thread_id="one")
        saver.copy_thread("one", "two")
        put(saver, values(100), thread_id="one")
    with SqliteSaver(path) as plain:
        plain.delete_thread("one")
    with SqliteSaver(path, serde=serde()) as saver:
        assert saver.get_tuple(config("two")) is not None
        assert problems(path, saver) == []
