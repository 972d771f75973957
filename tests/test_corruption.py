"""Damaged rows are noticed, always: never a wrong value, never a partial one."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint import CorruptChunk, SafeSerializer, SqliteSaver
from support import config, put


def encrypted() -> SerializerProtocol:
    return EncryptedSerializer.from_pycryptodome_aes(SafeSerializer(), key=b"0123456789abcdef")


def fill(saver: SqliteSaver) -> None:
    rng = random.Random(1)
    values: dict[str, Any] = {
        "messages": [HumanMessage(rng.randbytes(300).hex(), id=str(n)) for n in range(300)],
        "files": {f"{n}": {"text": rng.randbytes(400).hex()} for n in range(60)},
        "nested": {"list": [{"text": rng.randbytes(900).hex()} for _ in range(40)]},
        "blob": rng.randbytes(200_000),
        "small": 1,
    }
    stored = put(saver, values)
    saver.put_writes(stored, [("c", rng.randbytes(90_000)), ("d", "small")], "task")


def damage(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    position = rng.randrange(len(content)) if content else 0
    match rng.randrange(4):
        case 0 if content:
            flipped = content[position] ^ (1 << rng.randrange(8))
            return content[:position] + bytes([flipped]) + content[position + 1 :]
        case 1 if content:
            return content[:position]
        case 2:
            return content + rng.randbytes(1)
        case _:
            return rng.choice([other for other in others if other != content])


@pytest.mark.parametrize(
    ("serde", "rounds"), [(SafeSerializer, 1000), (encrypted, 150)], ids=["plain", "encrypted"]
)
def test_a_flipped_cut_swapped_or_deleted_chunk_is_always_noticed(
    path: Path, serde: Any, rounds: int
) -> None:
    rng = random.Random(2)
    with SqliteSaver(path, serde=serde()) as saver:
        fill(saver)
        connection = sqlite3.connect(path, isolation_level=None)
        chunks = connection.execute("SELECT id, refs, content FROM forkpoint_chunks").fetchall()
        for _ in range(rounds):
            key, refs, content = rng.choice(chunks)
            which = rng.randrange(5)
            if which == 0:
                connection.execute("UPDATE forkpoint_chunks SET family = -1 WHERE id = ?", (key,))
            elif which == 1 and refs:
                damaged = damage(rng, refs, [chunk[1] for chunk in chunks])
                connection.execute(
                    "UPDATE forkpoint_chunks SET refs = ? WHERE id = ?", (damaged, key)
                )
            else:
                damaged = damage(rng, content, [chunk[2] for chunk in chunks])
                connection.execute(
                    "UPDATE forkpoint_chunks SET content = ? WHERE id = ?", (damaged, key)
                )

            with pytest.raises(CorruptChunk, match="thread 'thread'"):
                saver.get_tuple(config())
            with pytest.raises(CorruptChunk):
                list(saver.list(None))

            connection.execute(
                "UPDATE forkpoint_chunks SET family = 1, refs = ?, content = ? WHERE id = ?",
                (refs, content, key),
            )
        connection.close()
        assert saver.get_tuple(config()) is not None


@pytest.mark.parametrize("table", ["checkpoints", "writes"])
@pytest.mark.parametrize("serde", [SafeSerializer, encrypted], ids=["plain", "encrypted"])
def test_a_damaged_row_is_always_noticed(path: Path, table: str, serde: Any) -> None:
    rng = random.Random(3)
    with SqliteSaver(path, serde=serde()) as saver:
        fill(saver)
        put(saver, {"other": "thread"}, thread_id="other")
        connection = sqlite3.connect(path, isolation_level=None)
        rows = connection.execute(
            f"SELECT id, refs, content, seal FROM forkpoint_{table} WHERE thread = 1"
        ).fetchall()
        for _ in range(200):
            key, *whole = rng.choice(rows)
            which = rng.choice([1, 2] if whole[0] else [1, 2, 0])
            column = ("refs", "content", "seal")[which]
            damaged = damage(rng, whole[which], [rng.randbytes(40)])
            connection.execute(
                f"UPDATE forkpoint_{table} SET {column} = ? WHERE id = ?", (damaged, key)
            )

            with pytest.raises(CorruptChunk):
                saver.get_tuple(config())

            connection.execute(
                f"UPDATE forkpoint_{table} SET refs = ?, content = ?, seal = ? WHERE id = ?",
                (*whole, key),
            )
        connection.close()
        assert saver.get_tuple(config()) is not None


def test_metadata_that_were_changed_behind_the_saver_are_noticed(path: Path) -> None:
    with SqliteSaver(path) as saver:
        put(saver, {"n": 1}, metadata={"step": 1})
        connection = sqlite3.connect(path)
        connection.execute("UPDATE forkpoint_checkpoints SET metadata = '{\"step\":2}'")
        connection.commit()
        connection.close()

        with pytest.raises(CorruptChunk):
            saver.get_tuple(config())


def test_a_removal_never_collects_where_a_needed_chunk_is_missing(path: Path) -> None:
    with SqliteSaver(path) as saver:
        fill(saver)
        saver.copy_thread("thread", "copy")
        put(saver, {"text": "only here " * 500})
        connection = sqlite3.connect(path)
        connection.execute(
            "DELETE FROM forkpoint_chunks WHERE id ="
            " (SELECT max(id) FROM forkpoint_chunks WHERE refs != x'')"
        )
        connection.commit()
        (before,) = connection.execute("SELECT count(*) FROM forkpoint_chunks").fetchone()

        with pytest.raises(CorruptChunk, match="was removed, but unused chunks were not collected"):
            saver.delete_thread("thread")

        assert saver.get_tuple(config()) is None  # the removal itself was done
        (after,) = connection.execute("SELECT count(*) FROM forkpoint_chunks").fetchone()
        connection.close()
        assert after == before
