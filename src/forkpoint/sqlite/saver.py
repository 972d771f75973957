"""SQLite: the saver, and every way to give it a database."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import timedelta

import aiosqlite
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint import inputs
from forkpoint.caches import CACHE_BYTES, CacheBudget
from forkpoint.encoding.serializer import serializer_of
from forkpoint.encoding.type_codecs import Alias, TypeCodec
from forkpoint.errors import InvalidInput
from forkpoint.results import OnExpiry
from forkpoint.runtime.runner import WorkerRunner
from forkpoint.runtime.workers import Workers
from forkpoint.saver.arguments import expiry
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.aiosqlite_runner import AiosqliteRunner
from forkpoint.sqlite.connections import Connector, Opener, PassedConnection
from forkpoint.sqlite.setup import BUSY_TIMEOUT_SECONDS, has_tables
from forkpoint.sqlite.storage import SqliteStorage
from forkpoint.storage.tombstones import TOMBSTONE_TTL
from forkpoint.untrusted import shown

_WORKERS = 4  # while one commits, the others prepare


class SqliteSaver(ForkpointSaver):
    """Keep LangGraph checkpoints in SQLite.

    One object serves `invoke` and `ainvoke`, from any thread and any event loop. It works under
    `with`, under `async with`, and plain, with `close` or `aclose` at the end.

    Args:
        database: A path, `":memory:"`, a `file:` URI, an open `sqlite3.Connection` (opened with
            `check_same_thread=False`), or an open `aiosqlite.Connection`. A connection that is
            passed stays the caller's to close. A relative path is resolved here, once.
        serde: The serializer. By default `SafeSerializer`, which imports and calls nothing that
            a stored row names, and restores what it knows to be data.
        types: How types are stored that forkpoint does not know (`TypeCodec`), and which types the
            names in the store mean now: `{("old.module", "Old"): New}`, or with `(New, function)` a
            function from the stored fields to the new ones. Only without `serde`, which may be a
            `SafeSerializer(types=...)`.
        durability: With `"full"`, a write that was acknowledged survives the loss of power; with
            `"normal"`, the crash of the process.
        busy_timeout: For how many seconds a call waits while another process or connection writes,
            before it raises `StorageBusy`. By default 60, or what a connection that is passed has
            as its own. Reads do not wait for those who write. For other calls of this process on
            its connection it waits as long, but for 10 seconds at least.
        ttl: How long after its last activity a thread expires that is made without saying so, as
            graphs make them. By default, and with None, never. See `ThreadCatalog.sweep`.
        on_expiry: What a sweep does with such a thread then: `"delete"` it, or `"keep_latest"`.
        preview: Channels whose values are kept with a thread's record, as `Thread.values`, for
            lists of threads and to search by: 16 at most, and of each what is short; see there.
        cache_bytes: How much memory may be taken to remember manifests, messages and ids, to be
            spared reading or serializing them again. Savers for an owner share that of this one.
        tombstone_ttl: For how long it is known that a thread was deleted, so that late writes of
            its runs are refused. By default a day. What is kept for that names nothing in the
            clear; the next deletion or `ThreadCatalog.sweep` after that time removes it.

    Raises:
        InvalidInput: `database` is none of these, or a file that is no SQLite database.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | sqlite3.Connection | aiosqlite.Connection,
        *,
        serde: SerializerProtocol | None = None,
        types: Iterable[TypeCodec | Alias] = (),
        durability: str = "full",
        busy_timeout: float | None = None,
        ttl: timedelta | None = None,
        on_expiry: OnExpiry = "delete",
        preview: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        tombstone_ttl: timedelta = TOMBSTONE_TTL,
    ) -> None:
        inputs.choice(durability, "durability", ("full", "normal"))
        budget = CacheBudget(inputs.size(cache_bytes, "cache_bytes"))
        timeout = None if busy_timeout is None else _seconds(busy_timeout)
        connector, timeout = _connector_of(database, timeout)
        self._store_name = "<an open connection>"
        if connector.is_owned:
            self._store_name = repr(connector.path or ":memory:")
        storage = SqliteStorage(
            connector,
            durability=durability,
            busy_timeout=timeout,
            tombstone_ttl=inputs.duration(tombstone_ttl, "tombstone_ttl"),
        )
        runner = (
            AiosqliteRunner(database)
            if isinstance(database, aiosqlite.Connection)
            else WorkerRunner(Workers(_WORKERS), storage)
        )
        serializer, expires = serializer_of(serde, types), expiry(ttl, on_expiry)
        super().__init__(
            storage, runner, serializer, expiry=expires, budget=budget, preview=preview
        )

    _database_system = "sqlite"

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        serde: SerializerProtocol | None = None,
        types: Iterable[TypeCodec | Alias] = (),
        durability: str = "full",
        busy_timeout: float | None = None,
        ttl: timedelta | None = None,
        on_expiry: OnExpiry = "delete",
        preview: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        tombstone_ttl: timedelta = TOMBSTONE_TTL,
    ) -> SqliteSaver:
        """Return a saver for a path, `":memory:"` or a `file:` URI."""
        if not isinstance(conn_string, str):
            raise InvalidInput(f"conn_string must be a string, not {type(conn_string).__name__}")
        return cls(
            conn_string,
            serde=serde,
            types=types,
            durability=durability,
            busy_timeout=busy_timeout,
            ttl=ttl,
            on_expiry=on_expiry,
            preview=preview,
            cache_bytes=cache_bytes,
            tombstone_ttl=tombstone_ttl,
        )

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Return whether a file is a database that has checkpoints of forkpoint. Makes nothing.

        Raises:
            InvalidInput: The path can be none of a file.
            StorageError: The file cannot be looked into.
        """
        return has_tables(inputs.path(path, "path"))


def _seconds(busy_timeout: object) -> float:
    """Return a busy timeout that SQLite can keep.

    Raises:
        InvalidInput: It is none.
    """
    is_number = isinstance(busy_timeout, (int, float)) and not isinstance(busy_timeout, bool)
    if not is_number or not 0 <= busy_timeout <= _LONGEST_TIMEOUT:  # type: ignore[operator]
        raise InvalidInput(
            f"busy_timeout must be a number of seconds from 0 to {_LONGEST_TIMEOUT}, not "
            f"{shown(busy_timeout)}"
        )
    return float(busy_timeout)  # type: ignore[arg-type]


_LONGEST_TIMEOUT = 2_000_000


def _connector_of(database: object, timeout: float | None) -> tuple[Connector, float | None]:
    """Return where the connection comes from, and for how long calls wait that was given no time.

    None if a connection that was passed says it.
    """
    if isinstance(database, aiosqlite.Connection):
        return PassedConnection(_of_aiosqlite(database)), timeout
    if isinstance(database, sqlite3.Connection):
        return PassedConnection(database), timeout
    timeout = BUSY_TIMEOUT_SECONDS if timeout is None else timeout
    return Opener(database, timeout), timeout


def _of_aiosqlite(connection: aiosqlite.Connection) -> sqlite3.Connection:
    try:
        return connection._conn  # aiosqlite has no public way to what it wraps
    except ValueError:
        raise InvalidInput(
            "the aiosqlite.Connection is not open; await it, or enter it with async with, first"
        ) from None
