"""What several test modules share: building checkpoints, and the store's invariants."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from forkpoint import SqliteSaver
from forkpoint.codec import split_refs
from forkpoint.collect import reachable


def config(thread_id: str = "thread", checkpoint_id: str | None = None, ns: str = "") -> Any:
    part: dict[str, Any] = {"thread_id": thread_id, "checkpoint_ns": ns}
    if checkpoint_id is not None:
        part["checkpoint_id"] = checkpoint_id
    return {"configurable": part}


def id_of(found: Any) -> str:
    return str(getattr(found, "config", found)["configurable"]["checkpoint_id"])


def checkpoint(values: Mapping[str, Any], versions: Mapping[str, Any] | None = None) -> Any:
    made = empty_checkpoint()
    made["id"] = str(uuid6())
    made["channel_values"] = dict(values)
    made["channel_versions"] = dict(versions if versions is not None else dict.fromkeys(values, 1))
    return made


def put(
    saver: SqliteSaver,
    values: Mapping[str, Any],
    *,
    parent: Any = None,
    thread_id: str = "thread",
    ns: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Put a checkpoint with these values, all of them new, after `parent`."""
    made = checkpoint(values)
    after = parent or config(thread_id, ns=ns)
    return saver.put(after, made, dict(metadata or {}), made["channel_versions"])


class Api:
    """A saver as tests call it: the same test drives its sync methods or their async twins.

    In the sync world the calls are made on the event loop's own thread, as in a notebook.
    """

    def __init__(self, saver: SqliteSaver, world: str) -> None:
        self.saver = saver
        self.world = world

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.world == "sync":
                return getattr(self.saver, name)(*args, **kwargs)
            return await getattr(self.saver, "a" + name)(*args, **kwargs)

        return call

    async def list(self, *args: Any, **kwargs: Any) -> list[Any]:
        if self.world == "sync":
            return list(self.saver.list(*args, **kwargs))
        return [found async for found in self.saver.alist(*args, **kwargs)]


def problems(path: Path | str, saver: SqliteSaver | None = None) -> list[str]:
    """Return where a database breaks an invariant: dangling or orphaned rows, wrong records."""
    connection = sqlite3.connect(path)
    try:
        found = _problems(connection, saver)
    finally:
        connection.close()
    return found


def _problems(connection: sqlite3.Connection, saver: SqliteSaver | None) -> list[str]:
    found = []
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    if integrity != "ok":
        found.append(f"integrity_check: {integrity}")
    for (family,) in connection.execute("SELECT DISTINCT family FROM forkpoint_threads").fetchall():
        chunks = "SELECT digest, refs FROM forkpoint_chunks WHERE family = ?"
        stored: dict[bytes, bytes] = dict(connection.execute(chunks, (family,)))
        roots = {
            digest
            for table in ("checkpoints", "writes")
            for (refs,) in connection.execute(
                f"SELECT refs FROM forkpoint_{table} JOIN forkpoint_threads"
                " ON key = thread WHERE family = ?",
                (family,),
            )
            for digest in split_refs(refs)
        }
        live = reachable(roots, stored)
        found += [f"dangling chunk {digest.hex()}" for digest in live - stored.keys()]
        found += [f"orphaned chunk {digest.hex()}" for digest in stored.keys() - live]
    for table in ("checkpoints", "writes"):
        found += [
            f"a row of {table} belongs to thread {key}, which is not there"
            for (key,) in connection.execute(
                f"SELECT DISTINCT thread FROM forkpoint_{table} WHERE thread NOT IN"
                " (SELECT key FROM forkpoint_threads WHERE deleted_at IS NULL)"
            )
        ]
    found += [
        f"thread {thread_id} has {count} checkpoints and its record says {said}"
        for thread_id, said, count in connection.execute(
            "SELECT thread_id, checkpoint_count, (SELECT count(*) FROM forkpoint_checkpoints"
            " WHERE thread = key AND NOT hidden) AS counted FROM forkpoint_threads"
            " WHERE checkpoint_count != counted"
        )
    ]
    if saver is not None:
        for (thread_id,) in connection.execute(
            "SELECT thread_id FROM forkpoint_threads WHERE deleted_at IS NULL"
        ).fetchall():
            # Reading verifies every chunk and every row.
            count = sum(1 for _ in saver.list({"configurable": {"thread_id": thread_id}}))
            found += [] if count else [f"thread {thread_id} has no checkpoints"]
    return found


def chunks_of(path: Path | str) -> int:
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT count(*) FROM forkpoint_chunks").fetchone()
    connection.close()
    return int(count)


__all__ = ["Api", "checkpoint", "chunks_of", "config", "id_of", "problems", "put"]
