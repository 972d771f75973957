"""Reading what the official savers store, from their own tables and collections.

Their public interface leaves out where among the writes of a task one is, and the task's path.
"""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, PendingWrite
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.errors import MissingLibrary, SourceError
from forkpoint.langgraph_rules import SENT_TASKS, write_idx
from forkpoint.storage.plan import Place
from forkpoint.transfer.sources import Reader, StoredState, StoredWrite
from forkpoint.untrusted import location

_SENT_IN_A_CHANNEL = 4
"""The format of checkpoints from which on the tasks of `Send` are the value of a channel."""


_NO_STRING = "the connection string is none of Postgres; %2F and %40 are / and @ in a password"


class SqliteReader(Reader):
    """The database of `langgraph-checkpoint-sqlite`.

    Args:
        path: The file.
        serde: The serializer that the values were written with.

    Raises:
        SourceError: It is none.
    """

    def __init__(self, path: str, serde: SerializerProtocol) -> None:
        self._serde = serde
        self._file = _DatabaseFile(path)
        self._connection = self._file.open(is_quiet=self._file.is_quiet())
        try:
            columns = {
                table: {row[1] for row in self._run(f"PRAGMA table_info({table})")}
                for table in ("checkpoints", "writes")
            }
            has_columns = {"checkpoint_ns", "checkpoint"} <= columns["checkpoints"]
            if not has_columns or not columns["writes"]:
                raise SourceError(
                    f"{path!r} is no database of langgraph-checkpoint-sqlite: it has no tables "
                    "'checkpoints' and 'writes', or those of another version"
                )
        except BaseException:
            self._connection.close()
            raise
        self._path_column = "task_path" if "task_path" in columns["writes"] else "''"

    def _run(self, sql: str, *values: Any) -> list[Any]:
        try:
            while True:
                rows = self._connection.execute(sql, values).fetchall()
                if self._file.is_as_opened():
                    return rows
                # Somebody writes: from now on their locks count.
                self._connection.close()
                self._connection = self._file.open(is_quiet=False)
        except sqlite3.Error as error:
            raise SourceError(f"the source cannot be read: {error}") from error

    def thread_ids(self) -> Iterator[str]:
        last = ""
        following = "SELECT min(thread_id) FROM checkpoints WHERE thread_id > ?"
        if self._run("SELECT 1 FROM checkpoints WHERE thread_id = '' LIMIT 1"):
            yield ""
        while (last := self._run(following, last)[0][0]) is not None:
            yield last

    def places(self, thread_id: str) -> list[tuple[str, str, str | None]]:
        return self._run(
            "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id FROM checkpoints"
            " WHERE thread_id = ?",
            thread_id,
        )

    def state(self, thread_id: str, place: Place) -> StoredState | None:
        at = "WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
        rows = self._run(
            f"SELECT type, checkpoint, metadata, parent_checkpoint_id FROM checkpoints {at}",
            *(thread_id, *place),
        )
        if not rows:
            return None
        writes = self._run(
            f"SELECT task_id, idx, {self._path_column}, channel, type, value FROM writes {at}",
            *(thread_id, *place),
        )
        kind, checkpoint, metadata, parent = rows[0]
        return StoredState(
            self._serde.loads_typed((kind, checkpoint)),
            {} if metadata is None else json.loads(metadata),
            parent or None,
            [_write(row, self._serde.loads_typed(row[4:])) for row in writes],
        )

    def close(self) -> None:
        self._connection.close()


def _write(row: Sequence[Any], value: Any) -> StoredWrite:
    task_id, idx, task_path, channel, *_ = row
    return StoredWrite(task_id, idx, task_path, channel, value)


class _DatabaseFile:
    """A file that is opened such that nothing is written to it, nor beside it if nobody uses it.

    To read a database that has a write-ahead log, SQLite makes two files beside it, and who only
    reads leaves them there. So as long as nobody has it open, it is read as one that never changes.
    """

    def __init__(self, path: str) -> None:
        self._shown = path
        self._path = os.path.abspath(path)
        if not os.path.isfile(self._path):
            raise SourceError(f"there is no file {location(path)} to import from")
        self._state: Any = None

    def is_quiet(self) -> bool:
        """Return whether nobody has it open, and nothing is left to be done in it."""
        return not any(os.path.exists(self._path + ending) for ending in ("-wal", "-journal"))

    def open(self, *, is_quiet: bool) -> sqlite3.Connection:
        """Return a connection. One to a file that is quiet holds for as long as it is."""
        self._state = self._status() if is_quiet else None
        uri = f"{Path(self._path).as_uri()}?mode=ro" + "&immutable=1" * is_quiet
        try:
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            raise SourceError(
                f"{self._shown!r} cannot be opened as a SQLite database: {error}"
            ) from error
        return connection

    def is_as_opened(self) -> bool:
        """Return whether what was read since it was opened is what there is."""
        return self._state is None or (self.is_quiet() and self._status() == self._state)

    def _status(self) -> Any:
        status = os.stat(self._path)
        return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _typed(failure: type[Exception], what: str = "the source cannot be read") -> Iterator[None]:
    """Raise a driver's failure as a `SourceError`, in one line."""
    try:
        yield
    except failure as error:
        # MongoDB's driver adds all that it knows of its servers, and that of Postgres an advice.
        reason = str(error).partition(" (configured timeouts:")[0].partition("\n")[0]
        raise SourceError(f"{what}: {reason}") from error


_NO_TEXT = ["null", "bool", "int", "long", "double", "decimal", "date", "objectId", "binData"]
"""Types that ids of threads may have which are no strings."""


class MongoReader(Reader):
    """The collections of `langgraph-checkpoint-mongodb`.

    Args:
        uri: The connection string. The database is that which it names, or the saver's default.
        serde: The serializer that the values were written with.

    Raises:
        SourceError: There are none.
        MissingLibrary: PyMongo is not installed.
    """

    def __init__(self, uri: str, serde: SerializerProtocol) -> None:
        try:
            pymongo = importlib.import_module("pymongo")
            failures = importlib.import_module("pymongo.errors")
        except ModuleNotFoundError as error:
            raise MissingLibrary("pip install 'forkpoint[mongodb]' to read MongoDB") from error
        self._serde = serde
        self._failure = failures.PyMongoError
        with _typed(self._failure, "the connection string cannot be used"):
            self._client = pymongo.MongoClient(uri, tz_aware=True)
            database = self._client.get_default_database("checkpointing_db")
            names = database.list_collection_names()
        if "checkpoints" not in names:
            self._client.close()
            raise SourceError(
                f"the database {database.name!r} has no collection 'checkpoints' of "
                "langgraph-checkpoint-mongodb; name the database in the connection string"
            )
        self._checkpoints = database["checkpoints"]
        self._writes = database["checkpoint_writes"]

    def thread_ids(self) -> Iterator[str]:
        last: dict[str, Any] = {"thread_id": {"$type": "string"}}
        while True:
            with _typed(self._failure):
                rows = list(
                    self._checkpoints.find(last, {"thread_id": 1, "_id": 0})
                    .sort("thread_id", 1)
                    .limit(1)
                )
            if not rows:
                break
            last = {"thread_id": {"$type": "string", "$gt": rows[0]["thread_id"]}}
            yield rows[0]["thread_id"]
        with _typed(self._failure):  # which older versions took
            yield from self._checkpoints.distinct("thread_id", {"thread_id": {"$type": _NO_TEXT}})

    def places(self, thread_id: str) -> list[tuple[str, str, str | None]]:
        fields = {"checkpoint_ns": 1, "checkpoint_id": 1, "parent_checkpoint_id": 1, "_id": 0}
        with _typed(self._failure):
            rows = list(self._checkpoints.find({"thread_id": thread_id}, fields))
        return [
            (row["checkpoint_ns"], row["checkpoint_id"], row.get("parent_checkpoint_id"))
            for row in rows
        ]

    def state(self, thread_id: str, place: Place) -> StoredState | None:
        at = {"thread_id": thread_id, "checkpoint_ns": place[0], "checkpoint_id": place[1]}
        with _typed(self._failure):
            row = self._checkpoints.find_one(at)
            writes = list(self._writes.find(at))
        if row is None:
            return None
        return StoredState(
            self._serde.loads_typed((row["type"], row["checkpoint"])),
            self._metadata(row.get("metadata") or {}),
            row.get("parent_checkpoint_id") or None,
            [
                StoredWrite(
                    write["task_id"],
                    write["idx"],
                    write.get("task_path", ""),
                    write["channel"],
                    self._serde.loads_typed((write["type"], write["value"])),
                )
                for write in writes
            ],
        )

    def _metadata(self, stored: Any) -> Any:
        """Return metadata, which are stored as a document whose values are serialized."""
        if isinstance(stored, Mapping):
            return {name: self._metadata(value) for name, value in stored.items()}
        return self._serde.loads_typed(tuple(stored))

    def close(self) -> None:
        self._client.close()


class PostgresReader(Reader):
    """The tables of `langgraph-checkpoint-postgres`.

    Args:
        uri: The connection string.
        serde: The serializer that the values were written with.

    Raises:
        SourceError: There are none.
        MissingLibrary: psycopg is not installed.
    """

    def __init__(self, uri: str, serde: SerializerProtocol) -> None:
        try:
            psycopg = importlib.import_module("psycopg")
        except ImportError as error:
            raise MissingLibrary("pip install 'forkpoint[postgres]' to read Postgres") from error
        self._serde = serde
        self._failure = psycopg.Error
        with _typed(self._failure, "the database cannot be reached"):
            try:
                self._connection = psycopg.connect(uri, autocommit=True)
            except psycopg.ProgrammingError:  # it says what it did not understand: of a password
                raise SourceError(_NO_STRING) from None
            self._connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        try:
            tables = "checkpoints", "checkpoint_blobs", "checkpoint_writes"
            if any(self._run("SELECT to_regclass(%s)", table)[0][0] is None for table in tables):
                raise SourceError(
                    f"the database has no tables {', '.join(tables)} of "
                    "langgraph-checkpoint-postgres"
                )
            columns = self._run(
                "SELECT column_name FROM information_schema.columns"
                " WHERE table_name = 'checkpoint_writes'"
            )
        except BaseException:
            self._connection.close()
            raise
        self._path_column = "task_path" if ("task_path",) in columns else "''"

    def _run(self, sql: str, *values: Any) -> list[Any]:
        with _typed(self._failure):
            return list(self._connection.execute(sql, values).fetchall())

    def thread_ids(self) -> Iterator[str]:
        rows = self._run("SELECT min(thread_id) FROM checkpoints")
        while rows[0][0] is not None:
            yield rows[0][0]
            rows = self._run(
                "SELECT min(thread_id) FROM checkpoints WHERE thread_id > %s", rows[0][0]
            )

    def places(self, thread_id: str) -> list[tuple[str, str, str | None]]:
        return self._run(
            "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id FROM checkpoints"
            " WHERE thread_id = %s",
            thread_id,
        )

    def state(self, thread_id: str, place: Place) -> StoredState | None:
        at = "thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s"
        rows = self._run(
            "SELECT checkpoint, metadata, parent_checkpoint_id FROM checkpoints WHERE " + at,
            *(thread_id, *place),
        )
        if not rows:
            return None
        checkpoint, metadata, parent = rows[0]
        blobs = self._run(
            "SELECT b.channel, b.type, b.blob FROM checkpoints AS c"
            " CROSS JOIN LATERAL jsonb_each_text(c.checkpoint -> 'channel_versions') AS v"
            " JOIN checkpoint_blobs AS b ON b.thread_id = c.thread_id"
            " AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key AND b.version = v.value"
            " WHERE c.thread_id = %s AND c.checkpoint_ns = %s AND c.checkpoint_id = %s"
            " AND b.type != 'empty'",
            *(thread_id, *place),
        )
        values = dict(checkpoint.get("channel_values") or {})
        values.update({name: self._load(kind, blob) for name, kind, blob in blobs})
        versions = dict(checkpoint.get("channel_versions") or {})
        if checkpoint.get("v", 1) < _SENT_IN_A_CHANNEL and (sent := self._sent(thread_id, parent)):
            values[SENT_TASKS] = sent
            versions[SENT_TASKS] = max(versions.values(), default=1)
        writes = self._run(
            f"SELECT task_id, idx, {self._path_column}, channel, type, blob"
            f" FROM checkpoint_writes WHERE {at}",
            *(thread_id, *place),
        )
        return StoredState(
            {**checkpoint, "channel_values": values, "channel_versions": versions},
            metadata or {},
            parent or None,
            [_write(row, self._load(*row[4:])) for row in writes],
        )

    def _sent(self, thread_id: str, parent: str | None) -> list[Any]:
        """Return the tasks of `Send` that wait at a checkpoint: what its parent's tasks wrote."""
        rows = self._run(
            f"SELECT {self._path_column}, task_id, idx, type, blob FROM checkpoint_writes"
            " WHERE thread_id = %s AND checkpoint_id = %s AND channel = %s",
            *(thread_id, parent, SENT_TASKS),
        )
        return [self._load(*row[3:]) for row in sorted(rows, key=lambda row: row[:3])]

    def _load(self, kind: str, content: Any) -> Any:
        return self._serde.loads_typed((kind, bytes(content or b"")))

    def close(self) -> None:
        self._connection.close()


class SaverReader(Reader):
    """Any saver, by its public interface, which does not tell the paths of tasks.

    Args:
        saver: The saver.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self._saver = saver

    def thread_ids(self) -> Iterator[str]:
        with _typed_saver():
            ids = {_part(item.config)["thread_id"] for item in self._saver.list(None)}
        yield from sorted(ids, key=str)

    def places(self, thread_id: str) -> list[tuple[str, str, str | None]]:
        config: Any = {"configurable": {"thread_id": thread_id}}
        with _typed_saver():
            return [
                (
                    _part(item.config).get("checkpoint_ns", ""),
                    _part(item.config)["checkpoint_id"],
                    _parent_of(item),
                )
                for item in self._saver.list(config)
            ]

    def state(self, thread_id: str, place: Place) -> StoredState | None:
        named = {"thread_id": thread_id, "checkpoint_ns": place[0], "checkpoint_id": place[1]}
        with _typed_saver():
            item = self._saver.get_tuple({"configurable": named})
        if item is None:
            return None
        writes = _in_given_order(item.pending_writes or ())
        return StoredState(item.checkpoint, item.metadata, _parent_of(item), writes)


def _in_given_order(pending: Sequence[PendingWrite]) -> list[StoredWrite]:
    """Return writes such that they are read in the order in which another saver returns them.

    Those of a task come in the order in which it wrote them. That of the tasks is the order of
    their paths, which are not told: where it is not that of the tasks' ids, paths are made up.
    """
    numbers: dict[str, int] = {}
    writes = []
    for task_id, channel, value in pending:
        position = numbers.get(task_id, 0)
        idx = write_idx(channel, position)
        numbers[task_id] = position + (idx == position)
        writes.append(StoredWrite(task_id, idx, "", channel, value))
    if writes == sorted(writes, key=lambda write: write[:2]):
        return writes
    return [write._replace(task_path=f"{place:09}") for place, write in enumerate(writes)]


def _parent_of(item: CheckpointTuple) -> str | None:
    return _part(item.parent_config)["checkpoint_id"] if item.parent_config else None


def _part(config: Any) -> Mapping[str, Any]:
    part: Mapping[str, Any] = config["configurable"]
    return part


@contextmanager
def _typed_saver() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise SourceError(f"the saver cannot be read: {type(error).__name__}: {error}") from error
