"""SQLite: the schema, the SQL, and the saver."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.codec import Chunk
from forkpoint.errors import (
    CorruptChunk,
    ForkpointError,
    InvalidInput,
    SaverClosed,
    SchemaVersionError,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageReadOnly,
    ThreadExists,
)
from forkpoint.filters import contains
from forkpoint.runner import AiosqliteRunner, WorkerRunner
from forkpoint.saver import ForkpointSaver, durability_of
from forkpoint.storage import (
    SCHEMA_VERSION,
    CheckpointRow,
    Found,
    Put,
    Query,
    Stale,
    ThreadRef,
    WriteRow,
)

BUSY_TIMEOUT_SECONDS = 60.0
"""How long to wait for another process's write transaction."""

_BATCH = 500  # values bound in one statement; SQLite's own limit was 999 once

_SCHEMA = """
CREATE TABLE IF NOT EXISTS forkpoint_settings (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS forkpoint_threads (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    thread_id TEXT NOT NULL,
    family INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    edge TEXT,
    parent INTEGER,
    parent_checkpoint_id TEXT,
    owner TEXT,
    label TEXT,
    tags TEXT NOT NULL DEFAULT '[]',
    metadata TEXT NOT NULL DEFAULT '{}',
    status TEXT NOT NULL DEFAULT 'idle',
    checkpoint_count INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    expires_at INTEGER,
    lease_holder TEXT,
    lease_since INTEGER,
    lease_until INTEGER,
    fence INTEGER NOT NULL DEFAULT 0,
    provisional INTEGER NOT NULL DEFAULT 0,
    deleted_at INTEGER,
    dead_until TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_threads_live
    ON forkpoint_threads (thread_id) WHERE deleted_at IS NULL;
CREATE INDEX IF NOT EXISTS forkpoint_threads_deleted
    ON forkpoint_threads (thread_id) WHERE deleted_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS forkpoint_threads_family ON forkpoint_threads (family);

CREATE TABLE IF NOT EXISTS forkpoint_checkpoints (
    id INTEGER PRIMARY KEY,
    thread INTEGER NOT NULL,
    checkpoint_ns TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    parent_checkpoint_id TEXT,
    run_id TEXT,
    metadata TEXT NOT NULL,
    refs BLOB NOT NULL,
    content BLOB NOT NULL,
    seal BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_checkpoints_place
    ON forkpoint_checkpoints (thread, checkpoint_ns, checkpoint_id);
CREATE INDEX IF NOT EXISTS forkpoint_checkpoints_order
    ON forkpoint_checkpoints (checkpoint_id, thread, checkpoint_ns);
CREATE INDEX IF NOT EXISTS forkpoint_checkpoints_run
    ON forkpoint_checkpoints (run_id) WHERE run_id IS NOT NULL;

CREATE TABLE IF NOT EXISTS forkpoint_writes (
    id INTEGER PRIMARY KEY,
    thread INTEGER NOT NULL,
    checkpoint_ns TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    idx INTEGER NOT NULL,
    task_path TEXT NOT NULL,
    channel TEXT NOT NULL,
    refs BLOB NOT NULL,
    content BLOB NOT NULL,
    seal BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_writes_place
    ON forkpoint_writes (thread, checkpoint_ns, checkpoint_id, task_id, idx);

CREATE TABLE IF NOT EXISTS forkpoint_chunks (
    id INTEGER PRIMARY KEY,
    family INTEGER NOT NULL,
    digest BLOB NOT NULL,
    refs BLOB NOT NULL,
    content BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS forkpoint_chunks_digest
    ON forkpoint_chunks (family, digest);
"""

_CHECKPOINT = (
    "checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id, metadata, refs, content, seal"
)
_WRITE = "checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, refs, content, seal"

_CHECKPOINT_OF = [
    "SELECT t.key, t.family, t.epoch, "
    + ", ".join(f"c.{column}" for column in _CHECKPOINT.split(", "))
    + " FROM forkpoint_threads AS t JOIN forkpoint_checkpoints AS c ON c.thread = t.key"
    " WHERE t.thread_id = ? AND t.deleted_at IS NULL AND c.checkpoint_ns = ?" + which
    for which in (" ORDER BY c.checkpoint_id DESC LIMIT 1", " AND c.checkpoint_id = ?")
]
_WRITES_OF = (
    f"SELECT {_WRITE} FROM forkpoint_writes"
    " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
)
_UPDATE_THREAD = (
    "UPDATE forkpoint_threads SET checkpoint_count = checkpoint_count + ?,"
    " updated_at = max(updated_at, ?), status = coalesce(?, status),"
    " provisional = provisional AND ?"
    " WHERE key = ? AND epoch = ? AND deleted_at IS NULL AND dead_until IS ?"
)
_PUT = (
    f"INSERT OR IGNORE INTO forkpoint_checkpoints (thread, {_CHECKPOINT})"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REPLACE = (
    "UPDATE forkpoint_checkpoints SET parent_checkpoint_id = ?, run_id = ?,"
    " metadata = ?, refs = ?, content = ?, seal = ?"
    " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
)
# A task's writes are stored once; its error, interrupt and resume replace each other.
_PUT_WRITE, _REPLACE_WRITE = (
    f"INSERT OR {verb} INTO forkpoint_writes (thread, {_WRITE})"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    for verb in ("IGNORE", "REPLACE")
)
_PUT_CHUNK = (
    "INSERT OR IGNORE INTO forkpoint_chunks (family, digest, refs, content) VALUES (?, ?, ?, ?)"
)


class SqliteSession:
    """The primitives of `forkpoint.storage.Session` within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # Reading

    def thread(self, thread_id: str) -> ThreadRef | None:
        row = self._one(
            "SELECT key, family, epoch FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            thread_id,
        )
        return ThreadRef(*row) if row else None

    def checkpoint(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None
    ) -> Found | None:
        row = self._one(
            _CHECKPOINT_OF[checkpoint_id is not None],
            thread_id,
            checkpoint_ns,
            *(() if checkpoint_id is None else (checkpoint_id,)),
        )
        if row is None:
            return None
        thread, found = ThreadRef(*row[:3]), CheckpointRow(*row[3:])
        writes = self._all(_WRITES_OF, thread.key, checkpoint_ns, found.checkpoint_id)
        return Found(thread_id, thread, found, [WriteRow(*write) for write in writes])

    def page(self, query: Query) -> list[Found]:
        conditions: dict[str, Sequence[Any]] = {}
        if query.thread_id is not None:
            thread = self.thread(query.thread_id)
            if thread is None:
                return []
            conditions["c.thread = ?"] = (thread.key,)
        if query.checkpoint_ns is not None:
            conditions["c.checkpoint_ns = ?"] = (query.checkpoint_ns,)
        if query.checkpoint_id is not None:
            conditions["c.checkpoint_id = ?"] = (query.checkpoint_id,)
        if query.before is not None:
            conditions["c.checkpoint_id < ?"] = (query.before,)
        if query.after is not None:
            conditions["(c.checkpoint_id, c.thread, c.checkpoint_ns) < (?, ?, ?)"] = query.after
        if query.filter:
            conditions["forkpoint_contains(c.metadata, ?)"] = (json.dumps(query.filter),)
        columns = ", ".join(f"c.{column}" for column in _CHECKPOINT.split(", "))
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._all(
            f"SELECT t.thread_id, t.key, t.family, t.epoch, {columns}"
            " FROM forkpoint_checkpoints AS c JOIN forkpoint_threads AS t ON t.key = c.thread"
            f" {where} ORDER BY c.checkpoint_id DESC, c.thread DESC, c.checkpoint_ns DESC LIMIT ?",
            *(value for values in conditions.values() for value in values),
            query.limit,
        )
        found = [Found(row[0], ThreadRef(*row[1:4]), CheckpointRow(*row[4:]), []) for row in rows]
        self._add_writes(found)
        return found

    def _add_writes(self, page: list[Found]) -> None:
        places = {(f.thread.key, f.row.checkpoint_ns, f.row.checkpoint_id): f for f in page}
        if not places:
            return
        columns = ", ".join(f"w.{column}" for column in _WRITE.split(", "))
        rows = self._all(
            f"WITH wanted (thread, checkpoint_ns, checkpoint_id) AS"
            f" (VALUES {', '.join(['(?, ?, ?)'] * len(places))})"
            f" SELECT w.thread, {columns} FROM wanted JOIN forkpoint_writes AS w"
            " USING (thread, checkpoint_ns, checkpoint_id)",
            *(value for place in places for value in place),
        )
        for key, *columns_ in rows:
            write = WriteRow(*columns_)
            places[key, write.checkpoint_ns, write.checkpoint_id].writes.append(write)

    def chunks(self, family: Any, digests: Collection[bytes]) -> Mapping[bytes, Chunk]:
        found: dict[bytes, Chunk] = {}
        for batch in _batches(digests):
            rows = self._all(
                "SELECT digest, refs, content FROM forkpoint_chunks"
                f" WHERE family = ? AND digest IN ({_marks(batch)})",
                family,
                *batch,
            )
            for digest, refs, content in rows:
                found[digest] = Chunk(refs, content)
        return found

    def rows(self, thread: Any) -> Iterator[CheckpointRow]:
        for row in self._run(
            f"SELECT {_CHECKPOINT} FROM forkpoint_checkpoints WHERE thread = ?", thread
        ):
            yield CheckpointRow(*row)

    def ancestors(
        self, thread: Any, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        following: str | None = checkpoint_id
        while following is not None:
            row = self._one(
                f"SELECT {_CHECKPOINT} FROM forkpoint_checkpoints"
                " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
                thread,
                checkpoint_ns,
                following,
            )
            if row is None:
                return
            found = CheckpointRow(*row)
            yield found
            following = found.parent_checkpoint_id

    def channel_writes(
        self,
        thread: Any,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        found = []
        for batch in _batches(checkpoint_ids):
            found += self._all(
                f"SELECT {_WRITE} FROM forkpoint_writes WHERE thread = ? AND checkpoint_ns = ?"
                f" AND checkpoint_id IN ({_marks(batch)})"
                " AND channel IN (SELECT value FROM json_each(?))",
                thread,
                checkpoint_ns,
                *batch,
                json.dumps(list(channels)),
            )
        return [WriteRow(*row) for row in found]

    def threads_of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        found: dict[Any, ThreadRef] = {}
        for batch in _batches(run_ids):
            for row in self._all(
                "SELECT key, family, epoch FROM forkpoint_threads WHERE key IN"
                " (SELECT thread FROM forkpoint_checkpoints"
                f" WHERE run_id IS NOT NULL AND run_id IN ({_marks(batch)}))",
                *batch,
            ):
                found[row[0]] = ThreadRef(*row)
        return list(found.values())

    # Writing

    def put(self, put: Put) -> ThreadRef | None:
        thread = put.expected
        now = _now()
        if thread is None or not self._update_thread(thread, put, now, None):
            thread = self._admit(put, now)
            if thread is None:
                return None
        for digest, chunk in put.chunks.items():
            self._run(_PUT_CHUNK, thread.family, digest, *chunk)
        if put.row is not None and not self._run(_PUT, thread.key, *put.row).rowcount:
            self._replace(thread.key, put.row)
        for write in put.writes:
            self._run(_PUT_WRITE if write.idx >= 0 else _REPLACE_WRITE, thread.key, *write)
        return thread

    def _replace(self, thread: int, row: CheckpointRow) -> None:
        self._run(_REPLACE, *row[2:], thread, *row[:2])
        self._run(
            "UPDATE forkpoint_threads SET checkpoint_count = checkpoint_count - 1 WHERE key = ?",
            thread,
        )

    def _update_thread(self, thread: ThreadRef, put: Put, now: int, dead_until: str | None) -> bool:
        """Keep the record of a thread up, if it still is as it is known to be."""
        updated = self._run(
            _UPDATE_THREAD,
            put.row is not None,
            now,
            put.status,
            put.row is None,
            thread.key,
            thread.epoch,
            dead_until,
        )
        return updated.rowcount == 1

    def _admit(self, put: Put, now: int) -> ThreadRef | None:
        """Return the thread to write to, made if need be, where more than one look is needed."""
        row = self._one(
            "SELECT key, family, epoch, dead_until FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NULL",
            put.thread_id,
        )
        thread = ThreadRef(*row[:3]) if row else None
        if thread != put.expected:
            raise Stale
        dead_until = row[3] if row else self._dead_until(put.thread_id)
        if dead_until is not None and self._is_late(put, thread, dead_until):
            self._remove_traces(put, thread)
            return None
        if thread is None:
            thread = self._add_thread(put, dead_until, now)
        self._update_thread(thread, put, now, dead_until)
        return thread

    def _add_thread(self, put: Put, dead_until: str | None, now: int) -> ThreadRef:
        key = self._run(
            "INSERT INTO forkpoint_threads (thread_id, family, metadata, created_at, updated_at,"
            " provisional, dead_until) VALUES (?, 0, ?, ?, ?, 1, ?)",
            put.thread_id,
            put.metadata,
            now,
            now,
            dead_until,
        ).lastrowid
        self._run("UPDATE forkpoint_threads SET family = key WHERE key = ?", key)
        return ThreadRef(key, key, 0)

    def _dead_until(self, thread_id: str) -> str | None:
        row = self._one(
            "SELECT max(dead_until) FROM forkpoint_threads"
            " WHERE thread_id = ? AND deleted_at IS NOT NULL",
            thread_id,
        )
        return row[0] if row else None

    def _is_late(self, put: Put, thread: ThreadRef | None, dead_until: str) -> bool:
        """Return whether a write comes after a checkpoint that went with its thread."""
        return any(
            checkpoint_id <= dead_until
            and (thread is None or not self._exists(thread.key, checkpoint_ns, checkpoint_id))
            for checkpoint_ns, checkpoint_id in put.ancestry
        )

    def _exists(self, thread: int, checkpoint_ns: str, checkpoint_id: str) -> bool:
        return bool(
            self._one(
                "SELECT 1 FROM forkpoint_checkpoints"
                " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
                thread,
                checkpoint_ns,
                checkpoint_id,
            )
        )

    def _remove_traces(self, put: Put, thread: ThreadRef | None) -> None:
        """Remove writes that came before the late checkpoint they belong to, and expect more."""
        self._run(
            "UPDATE forkpoint_threads SET dead_until = max(dead_until, ?)"
            " WHERE thread_id = ? AND dead_until IS NOT NULL",
            put.checkpoint_id,
            put.thread_id,
        )
        if thread is None or self._exists(thread.key, put.checkpoint_ns, put.checkpoint_id):
            return
        self._run(
            "DELETE FROM forkpoint_writes"
            " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
            thread.key,
            put.checkpoint_ns,
            put.checkpoint_id,
        )
        provisional = self._run(
            "DELETE FROM forkpoint_threads WHERE key = ? AND provisional"
            " AND NOT EXISTS (SELECT 1 FROM forkpoint_writes WHERE thread = ?)",
            thread.key,
            thread.key,
        ).rowcount
        if provisional:
            self._run("DELETE FROM forkpoint_chunks WHERE family = ?", thread.family)

    def copy(self, source: ThreadRef, target_id: str) -> None:
        if self.thread(target_id) is not None:
            raise ThreadExists(f"there is a thread {target_id!r} already")
        now = _now()
        key = self._run(
            "INSERT INTO forkpoint_threads (thread_id, family, epoch, edge, parent, owner, label,"
            " tags, metadata, status, checkpoint_count, created_at, updated_at, dead_until)"
            " SELECT ?, family, epoch, 'clone', key, owner, label, tags, metadata, status,"
            " checkpoint_count, ?, ?, ? FROM forkpoint_threads WHERE key = ?",
            target_id,
            now,
            now,
            self._dead_until(target_id),
            source.key,
        ).lastrowid
        # The copies do not belong to the runs that made the originals: deleting those leaves them.
        columns = _CHECKPOINT.replace("run_id", "NULL")
        self._run(
            f"INSERT INTO forkpoint_checkpoints (thread, {_CHECKPOINT})"
            f" SELECT ?, {columns} FROM forkpoint_checkpoints WHERE thread = ?",
            key,
            source.key,
        )
        self._run(
            f"INSERT INTO forkpoint_writes (thread, {_WRITE})"
            f" SELECT ?, {_WRITE} FROM forkpoint_writes WHERE thread = ?",
            key,
            source.key,
        )

    def remove(self, thread: Any, checkpoints: Collection[tuple[str, str]]) -> None:
        for table in ("writes", "checkpoints"):
            self._many(
                f"DELETE FROM forkpoint_{table}"
                " WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
                ((thread, *place) for place in checkpoints),
            )
        self._run(
            "UPDATE forkpoint_threads SET updated_at = max(updated_at, ?), checkpoint_count ="
            " (SELECT count(*) FROM forkpoint_checkpoints WHERE thread = ?) WHERE key = ?",
            _now(),
            thread,
            thread,
        )

    def bury(self, thread: Any) -> None:
        dead_until = self._one(
            "SELECT max(id) FROM ("
            " SELECT max(checkpoint_id) AS id FROM forkpoint_checkpoints WHERE thread = ?"
            " UNION ALL SELECT max(checkpoint_id) FROM forkpoint_writes WHERE thread = ?"
            " UNION ALL SELECT dead_until FROM forkpoint_threads WHERE key = ?)",
            thread,
            thread,
            thread,
        )
        for table in ("writes", "checkpoints"):
            self._run(f"DELETE FROM forkpoint_{table} WHERE thread = ?", thread)
        self._run(
            "UPDATE forkpoint_threads SET deleted_at = ?, dead_until = ?, label = NULL,"
            " tags = '[]', metadata = '{}', status = 'idle', checkpoint_count = 0,"
            " expires_at = NULL, lease_holder = NULL, lease_since = NULL, lease_until = NULL"
            " WHERE key = ?",
            _now(),
            dead_until[0] if dead_until else None,
            thread,
        )

    # Collecting

    def raise_epoch(self, family: Any) -> None:
        self._run("UPDATE forkpoint_threads SET epoch = epoch + 1 WHERE family = ?", family)

    def references(self, family: Any) -> Iterator[bytes]:
        for table in ("checkpoints", "writes"):
            for (refs,) in self._run(
                f"SELECT refs FROM forkpoint_{table} WHERE refs != x'' AND thread IN"
                " (SELECT key FROM forkpoint_threads WHERE family = ?)",
                family,
            ):
                yield refs

    def links(self, family: Any) -> Iterator[tuple[bytes, bytes]]:
        yield from self._run(
            "SELECT digest, refs FROM forkpoint_chunks WHERE family = ? AND refs != x''", family
        )

    def digests(self, family: Any) -> Iterator[bytes]:
        for (digest,) in self._run("SELECT digest FROM forkpoint_chunks WHERE family = ?", family):
            yield digest

    def drop_chunks(self, family: Any, digests: Iterable[bytes]) -> None:
        self._many(
            "DELETE FROM forkpoint_chunks WHERE family = ? AND digest = ?",
            ((family, digest) for digest in digests),
        )

    # Secrets

    def secrets(self) -> list[bytes]:
        rows = self._all("SELECT value FROM forkpoint_settings WHERE name LIKE 'secret:%'")
        return [value for (value,) in rows]

    def add_secret(self, stored: bytes) -> None:
        self._run(
            "INSERT INTO forkpoint_settings (name, value) VALUES (?, ?)",
            f"secret:{len(self.secrets()) + 1}",
            stored,
        )

    # Running SQL

    def _run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        cursor.row_factory = None  # a connection that was passed may have one
        return cursor.execute(sql, values)

    def _many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def _one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._run(sql, *values).fetchone()
        return row

    def _all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._run(sql, *values).fetchall()


def _now() -> int:
    return time.time_ns() // 1000


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


_T = TypeVar("_T")


def _batches(values: Collection[_T]) -> Iterator[list[_T]]:
    listed = list(values)
    for start in range(0, len(listed), _BATCH):
        yield listed[start : start + _BATCH]


class SqliteStorage:
    """One SQLite connection, shared by all threads of a process under a lock.

    Args:
        connect: Opens the connection. It is called again in a forked child process, where a
            connection of the parent must not be used.
        owned: Whether to close the connection.
        durability: `"full"` or `"normal"`; see `SqliteSaver`.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], *, owned: bool, durability: str
    ) -> None:
        self._connect = connect
        self._owned = owned
        self._durability = durability
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._closed = False
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        _renew_after_fork(self)

    def setup(self) -> None:
        with self._lock, _typed_errors():
            self._open()

    def reading(self) -> _Transaction:
        return _Transaction(self, "BEGIN")

    def writing(self) -> _Transaction:
        return _Transaction(self, "BEGIN IMMEDIATE")

    def put(self, put: Put) -> ThreadRef | None:
        waiting = _Waiting(put)
        self._queue.append(waiting)
        with self._lock:
            if not waiting.done:  # else the one who held the lock before took it along
                batch = [self._queue.popleft() for _ in range(len(self._queue))]
                try:
                    self._put_all(batch)
                except BaseException:
                    self._queue.extendleft(reversed([one for one in batch if not one.done]))
                    raise
        return waiting.result()

    def _put_all(self, batch: list[_Waiting]) -> None:
        """Put what is waiting in one transaction, so that many share the cost of one commit."""
        try:
            with _typed_errors():
                connection = self._open()
                _begin(connection, "BEGIN IMMEDIATE")
                try:
                    session = SqliteSession(connection)
                    for waiting in batch:
                        waiting.put_by(session)
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        except ForkpointError as error:
            if len(batch) == 1:
                batch[0].error = error
            else:  # one of them may be what failed
                for waiting in batch:
                    self._put_all([waiting])
        for waiting in batch:
            waiting.done = True

    def tidy(self) -> None:
        with self._lock, _typed_errors():
            connection = self._open()
            if _pragma(connection, "auto_vacuum") != _INCREMENTAL:
                return
            if _pragma(connection, "freelist_count") < _TIDY_PAGES:
                return
            # Space that a busy database keeps now is given back after the next deletion.
            with contextlib.suppress(sqlite3.OperationalError):
                # As a script: `execute` would stop after the first page.
                connection.executescript("PRAGMA incremental_vacuum")
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
            if connection is not None and self._owned and self._process == os.getpid():
                connection.close()

    def _open(self) -> sqlite3.Connection:
        """Return the connection, ready for use. The caller holds the lock."""
        if self._connection is None or self._process != os.getpid():
            if self._closed:
                raise SaverClosed("the saver is closed")
            # A connection that a forked child inherits must be neither used nor closed there: that
            # would release the parent's locks on the file.
            self._inherited = self._connection
            connection = self._connect()
            _prepare(connection, self._durability)
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def _renew_lock(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._queue.clear()


class _Waiting:
    """A `Put` on its way into the database, and what became of it."""

    def __init__(self, put: Put) -> None:
        self.put = put
        self.done = False
        self.written: ThreadRef | None = None
        self.error: Exception | None = None

    def put_by(self, session: SqliteSession) -> None:
        try:
            self.written, self.error = session.put(self.put), None
        except Stale as stale:  # raised before anything is written
            self.error = stale

    def result(self) -> ThreadRef | None:
        if self.error is not None:
            raise self.error
        return self.written


class _Transaction:
    """A transaction, from its beginning to its commit, or to its rollback after an exception."""

    def __init__(self, storage: SqliteStorage, begin: str) -> None:
        self._storage = storage
        self._begin = begin

    def __enter__(self) -> SqliteSession:
        self._lock = self._storage._lock
        self._lock.acquire()
        try:
            with _typed_errors():
                self._connection = self._storage._open()
                _begin(self._connection, self._begin)
        except BaseException:
            self._lock.release()
            raise
        return SqliteSession(self._connection)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None:
                self._connection.execute("COMMIT")
        except sqlite3.Error as failure:
            error = failure
        finally:
            try:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            finally:
                self._lock.release()
        if isinstance(error, sqlite3.Error):
            raise _typed(error) from error


def _begin(connection: sqlite3.Connection, begin: str) -> None:
    if connection.in_transaction:
        raise InvalidInput(
            "the connection that was passed has an open transaction; commit it or roll it back "
            "first"
        )
    connection.execute(begin)


def _renew_after_fork(storage: SqliteStorage) -> None:
    if hasattr(os, "register_at_fork"):
        reference = weakref.ref(storage)

        def renew() -> None:
            alive = reference()
            if alive is not None:
                alive._renew_lock()

        os.register_at_fork(after_in_child=renew)


_INCREMENTAL = 2  # the value of PRAGMA auto_vacuum
_TIDY_PAGES = 64  # free pages, of 4 KB as a rule, that are worth giving back
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}


def _prepare(connection: sqlite3.Connection, durability: str) -> None:
    """Make the tables if they are missing, and set what holds for a connection."""
    connection.create_function("forkpoint_contains", 2, _contains, deterministic=True)
    version = _version(connection)
    if version is None:
        if not _pragma(connection, "page_count"):
            connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        _retry_while_locked(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchall())
        _create(connection)
        version = _version(connection)
    if version is not None and version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has forkpoint's schema version {version}, and this forkpoint knows "
            f"{SCHEMA_VERSION}; upgrade forkpoint"
        )
    connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(
            "INSERT OR IGNORE INTO forkpoint_settings (name, value) VALUES ('schema_version', ?)",
            (SCHEMA_VERSION,),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int | None:
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'forkpoint_settings'"
    if _scalar(connection, known) is None:
        return None
    return _scalar(connection, "SELECT value FROM forkpoint_settings WHERE name = 'schema_version'")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return _scalar(connection, f"PRAGMA {name}") or 0


def _scalar(connection: sqlite3.Connection, sql: str) -> int | None:
    cursor = connection.cursor()
    cursor.row_factory = None  # a connection that was passed may have one
    row = cursor.execute(sql).fetchone()
    return None if row is None else int(row[0])


def _contains(stored: str, wanted: str) -> bool:
    return contains(json.loads(stored), json.loads(wanted))


def _retry_while_locked(action: Callable[[], object]) -> None:
    """Switching to WAL does not wait for other connections by itself."""
    until = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


class _typed_errors:
    """Turn what SQLite raises into a `ForkpointError`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise _typed(error) from error


def _typed(error: sqlite3.Error) -> Exception:
    """Return the `ForkpointError` for what SQLite reports.

    By message: Python 3.10 does not give the error's code.
    """
    message = str(error)
    if "is full" in message:
        return StorageFull(f"{message}; nothing was written")
    if "readonly" in message:
        return StorageReadOnly(f"the database is read-only: {message}")
    if "locked" in message:
        return StorageBusy(f"{message}: another process or connection holds a transaction open")
    if "not a database" in message or "file is encrypted" in message:
        return InvalidInput(f"the file is no SQLite database: {message}")
    if "decode to UTF-8" in message:
        return CorruptChunk(f"a stored value is not of the type that was written: {message}")
    if "closed" in message:
        return SaverClosed(message)
    if "created in a thread" in message:
        return InvalidInput(
            "the sqlite3.Connection may be used in one thread only; open it with "
            "check_same_thread=False"
        )
    return StorageError(f"SQLite failed: {message}")


class SqliteSaver(ForkpointSaver):
    """Keep LangGraph checkpoints in SQLite.

    One object serves `invoke` and `ainvoke`, from any thread and any event loop. It works under
    `with`, under `async with`, and plain, with `close` or `aclose` at the end.

    Args:
        database: A path, `":memory:"`, a `file:` URI, an open `sqlite3.Connection` (opened with
            `check_same_thread=False`), or an open `aiosqlite.Connection`. A connection that is
            passed stays the caller's to close.
        serde: The serializer. By default `SafeSerializer`, which imports and calls nothing that
            a stored row names, data classes of modules that are already imported aside.
        durability: With `"full"`, a write that was acknowledged survives the loss of power; with
            `"normal"`, the crash of the process.

    Raises:
        InvalidInput: `database` is none of these, or a file that is no SQLite database.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | sqlite3.Connection | aiosqlite.Connection,
        *,
        serde: SerializerProtocol | None = None,
        durability: str = "full",
    ) -> None:
        durability = durability_of(durability)
        runner: WorkerRunner | AiosqliteRunner = WorkerRunner()
        if isinstance(database, aiosqlite.Connection):
            runner = AiosqliteRunner(database)
            connect, owned = _passed(_of_aiosqlite(database)), False
        elif isinstance(database, sqlite3.Connection):
            connect, owned = _passed(database), False
        else:
            connect, owned = _opener(database), True
        storage = SqliteStorage(connect, owned=owned, durability=durability)
        super().__init__(storage, runner, serde)

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        serde: SerializerProtocol | None = None,
        durability: str = "full",
    ) -> SqliteSaver:
        """Return a saver for a path, `":memory:"` or a `file:` URI."""
        if not isinstance(conn_string, str):
            raise InvalidInput(f"conn_string must be a string, not {type(conn_string).__name__}")
        return cls(conn_string, serde=serde, durability=durability)


def _passed(connection: sqlite3.Connection) -> Callable[[], sqlite3.Connection]:
    """Return how to get at a connection that the caller opened, if it can be used."""
    if getattr(connection, "autocommit", -1) is False:
        raise InvalidInput(
            "the sqlite3.Connection was opened with autocommit=False, so a transaction is always "
            "open; open it with autocommit=True, or without"
        )
    process = os.getpid()

    def connect() -> sqlite3.Connection:
        if os.getpid() != process:
            raise SaverClosed(
                "the connection that was passed cannot be used in a forked process; make a saver "
                "from the path there"
            )
        return connection

    return connect


def _of_aiosqlite(connection: aiosqlite.Connection) -> sqlite3.Connection:
    try:
        return connection._conn  # aiosqlite has no public way to what it wraps
    except ValueError:
        raise InvalidInput(
            "the aiosqlite.Connection is not open; await it, or enter it with async with, first"
        ) from None


def _opener(database: object) -> Callable[[], sqlite3.Connection]:
    """Return what opens a database, after a look at whether it can be one."""
    if not isinstance(database, (str, os.PathLike)):
        raise InvalidInput(
            "database must be a path, a sqlite3.Connection or an aiosqlite.Connection, not "
            f"{type(database).__name__}"
        )
    name = os.fspath(database)
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidInput(f"database must be a path, not {name!r:.80}")
    is_uri = name.startswith("file:")
    if not is_uri and name != ":memory:":
        _check_path(Path(name))

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            name,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            uri=is_uri,
        )

    return connect


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise InvalidInput(f"{path} is a directory; give the path of a file in it")
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no directory {path.parent}")
    if path.exists():
        with path.open("rb") as file:
            header = file.read(len(_SQLITE_HEADER))
        if header not in (b"", _SQLITE_HEADER):
            raise InvalidInput(f"{path} is no SQLite database")


_SQLITE_HEADER = b"SQLite format 3\0"
