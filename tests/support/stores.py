"""Where the tests keep checkpoints: one way to look at a store and to damage it, two backends.

A test of the contract knows its store only as a `Store`. It is passed to other processes as it is.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import signal
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pymongo
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.write_concern import WriteConcern

from commands import Started, untargeted
from forkpoint import SqliteSaver
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.encryption import open_secret
from forkpoint.encoding.hashing import FLAG_BITS, Hashing, new_salt
from forkpoint.filters import packed, thread_terms, unpacked
from forkpoint.mongodb.thread_documents import new_record
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.rows import Description
from forkpoint.storage.tombstones import Marks
from servers import wait_until

KINDS = ("threads", "checkpoints", "writes", "chunks")


class Thread(NamedTuple):
    """The record of a thread, or what is left of a deleted one.

    It is settled unless a process removes from the thread, or was killed as it did, and collected
    if nothing was removed from it since the chunks of the family were collected.
    """

    key: Any
    thread_id: str
    family: Any
    is_live: bool
    is_provisional: bool
    checkpoint_count: int
    status: str
    metadata: str
    created_at: int
    updated_at: int
    is_settled: bool = True
    is_collected: bool = True


class Known(NamedTuple):
    """A thread, as it is when a graph has run on it and the catalog knows what it is about."""

    thread_id: str
    owner: str | None
    tags: list[str]
    metadata: dict[str, Any]
    status: str
    created_at: int
    updated_at: int
    label: str | None = None


def checksums(known: Known, hashing: Hashing) -> tuple[bytes, bytes]:
    """Return the salt of a thread, and the checksums of its record."""
    salt = new_salt()
    said = Description(known.label, tuple(known.tags), json.dumps(known.metadata))
    return salt, hashing.checksums((known.thread_id, known.owner, salt), said)


class Row(NamedTuple):
    """A checkpoint, a write or a chunk. Of `refs`, `links` are the digests, joined."""

    key: Any
    refs: bytes
    links: bytes
    content: bytes
    checksum: bytes = b""
    thread: Any = None
    is_visible: bool = True
    family: Any = None
    digest: bytes = b""


class Store(ABC):
    """Where checkpoints are kept, as a test sees it from outside of the saver."""

    has_transactions = True

    @abstractmethod
    def saver(self, **options: Any) -> ForkpointSaver:
        """Return another saver, with a connection of its own, as another process would have."""

    @abstractmethod
    def watched(self, before: Callable[[str], None], **options: Any) -> ForkpointSaver:
        """Return a saver that calls this before each statement, or command, that it sends."""

    def mortal(self, commands: int, **options: Any) -> ForkpointSaver:
        """Return a saver that kills this process before it sends more than so many commands."""
        left = math.inf  # while it is opened

        def before(_: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        saver = self.watched(before, **options)
        left = commands
        return saver

    @property
    @abstractmethod
    def script(self) -> str:
        """Python code that opens `saver`, for a process that is not a child of this one."""

    @abstractmethod
    def times(self, count: int) -> int:
        """Return how often to do what is to be done this often where a call costs nothing."""

    @abstractmethod
    def threads(self) -> list[Thread]:
        """Return the records of all threads, of those that were deleted too."""

    @abstractmethod
    def rows(self, kind: str) -> list[Row]:
        """Return all checkpoints, hidden ones too, or all writes, or all chunks."""

    @abstractmethod
    def change(self, kind: str, key: Any, **fields: bytes | str | int | None) -> None:
        """Change a row behind the saver's back."""

    def binding(self, row: Row, checksum: bytes) -> int:
        """Return what binds a visible row to its thread if it has this checksum."""
        return self.hashing().binding(self._salt_of(row.thread), checksum) << FLAG_BITS

    def hashing(self) -> Hashing:
        """Return the hashes of the store, which is not encrypted."""
        (secret,) = self.secrets()
        return Hashing(open_secret(None, secret))

    @abstractmethod
    def take_secret(self) -> Any:
        """Remove the secret of a store that has one, and return what `give_back` takes."""

    @abstractmethod
    def secrets(self) -> list[bytes]:
        """Return the secret of the digests, as often as it is stored."""

    def codec(self, saver: ForkpointSaver, thread_id: str = "thread") -> Codec:
        """Return the codec for what is stored of a thread."""
        context = parts_of(saver).context
        context.prepare()
        with context.storage.reading() as session:
            thread = session.threads.find(thread_id)
        assert thread is not None
        return context.codec_of(thread)

    @abstractmethod
    def _salt_of(self, thread: Any) -> bytes:
        """Return the salt of the thread of this key."""

    @abstractmethod
    def age(self, thread_id: str, **microseconds: int) -> None:
        """Make a thread older: move its `created_at` or `updated_at` back by so much."""

    def be_old(self, field: str) -> None:
        """Let all threads have the same time, that of long ago."""
        for thread in self.threads():
            self.age(thread.thread_id, **{field: getattr(thread, field) - 1_000_000})

    @abstractmethod
    def stored(self, kind: str) -> dict[Any, dict[str, Any]]:
        """Return all rows of a kind by key, receipts and all fields included."""

    @abstractmethod
    def take(self, kind: str, key: Any) -> Any:
        """Remove a row, and return it."""

    @abstractmethod
    def give_back(self, kind: str, taken: Any) -> None:
        """Add a row that was taken."""

    @abstractmethod
    def put_back(self, kind: str, key: Any, fields: Mapping[str, Any]) -> None:
        """Let a row be as it was `stored`, whatever has become of it."""

    @abstractmethod
    def let_mean(self, thread_id: str, thread: Thread) -> None:
        """Let an id mean another thread, where that is said anywhere but in the thread's record."""

    @abstractmethod
    def add_threads(self, threads: Sequence[Known]) -> None:
        """Store the records of many threads, as searches find them before they are listed."""

    @abstractmethod
    def mislist(self, thread_id: str) -> None:
        """Let searches find a thread as one that failed."""

    @abstractmethod
    def outlast(self) -> None:
        """Let the time pass after which nobody waits for a process that was killed."""

    @abstractmethod
    def await_end_of(self, process: int) -> None:
        """Wait until nothing is done any more that a process, killed by now, had asked for."""

    @abstractmethod
    def set_schema_version(self, version: int) -> None:
        """Make the store one of another version."""

    @abstractmethod
    def content(self) -> bytes:
        """Return everything that is stored, as bytes in which to search."""

    @abstractmethod
    def close(self) -> None:
        """Remove the store."""

    def thread(self, thread_id: str) -> Thread:
        """Return the one thread of this id that is not deleted."""
        (found,) = [one for one in self.threads() if one.is_live and one.thread_id == thread_id]
        return found

    def count(self, kind: str) -> int:
        """Return how many rows there are of a kind, or threads that are not deleted."""
        if kind == "threads":
            return sum(thread.is_live for thread in self.threads())
        return len(self.rows(kind))

    def problems(
        self, saver: ForkpointSaver | None = None, *, after_crash: bool = False
    ) -> list[str]:
        """Return where an invariant is broken: dangling or orphaned rows, wrong records.

        With a saver, what is stored is read, too, which verifies each row and each chunk. A process
        that was killed may leave orphaned chunks, and the rows of a thread that it was deleting, to
        the next collection of their family, and, where the backend has no transactions, a count to
        the next one who writes to the thread.
        """
        is_exact = self.has_transactions or not after_crash
        threads = {thread.key: thread for thread in self.threads()}
        unfinished = {
            thread.family
            for thread in threads.values()
            if after_crash and not (self.has_transactions and thread.is_collected)
        }
        found = self._faults()
        roots: dict[Any, set[bytes]] = defaultdict(set)
        counted: Counter[Any] = Counter()
        for kind in ("checkpoints", "writes"):
            for row in self.rows(kind):
                thread = threads.get(row.thread)
                if thread is None or not thread.is_live:
                    if thread is None or thread.family not in unfinished:
                        found.append(f"one of the {kind} is of thread {row.thread}, which is gone")
                    continue
                roots[thread.family].update(_split(row.links))
                counted[row.thread] += kind == "checkpoints" and row.is_visible
        links: dict[Any, dict[bytes, bytes]] = defaultdict(dict)
        for row in self.rows("chunks"):
            links[row.family][row.digest] = row.links
        kept = self._unfinished()
        for family in roots.keys() | links.keys():
            stored = links[family]
            live = _reachable(roots[family], stored)
            found += [f"dangling chunk {digest.hex()}" for digest in live - stored.keys()]
            live |= _reachable(kept.get(family, set()), stored)
            if is_exact and family not in unfinished:
                found += [f"orphaned chunk {digest.hex()}" for digest in stored.keys() - live]
        for thread in threads.values():
            if thread.checkpoint_count != counted[thread.key] and (is_exact or thread.is_settled):
                found.append(f"{thread} has {counted[thread.key]} checkpoints")
            if saver is not None and thread.is_live and thread.checkpoint_count:
                one: Any = {"configurable": {"thread_id": thread.thread_id}}
                if not list(saver.list(one)):
                    found.append(f"{thread} has no checkpoint that can be read")
        return found

    def _faults(self) -> list[str]:
        """Return what is wrong in a way that only this backend knows."""
        return []

    def _unfinished(self) -> Mapping[Any, set[bytes]]:
        """Return the digests, by family, that only a write leads to that was never finished."""
        return {}


class SqliteStore(Store):
    """A database file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def saver(self, **options: Any) -> SqliteSaver:
        return SqliteSaver.from_conn_string(str(self.path), **{"durability": "normal", **options})

    def watched(self, before: Callable[[str], None], **options: Any) -> SqliteSaver:
        saver = self.saver(**options)
        saver.setup()
        connection: sqlite3.Connection = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
        connection.set_trace_callback(before)
        return saver

    @property
    def script(self) -> str:
        return f"from forkpoint import SqliteSaver\nsaver = SqliteSaver({str(self.path)!r})\n"

    def times(self, count: int) -> int:
        return count

    def threads(self) -> list[Thread]:
        with self.connection() as connection:
            rows = connection.execute(
                "SELECT key, thread_id, family, deleted_at IS NULL, provisional,"
                " CASE WHEN copy_deadline IS NULL THEN checkpoint_count ELSE 0 END, status,"
                " metadata, created_at, updated_at, 1, removed_at IS NULL"
                " FROM forkpoint_threads"
            )
            return [Thread(*row) for row in rows]

    def rows(self, kind: str) -> list[Row]:
        columns = {
            "checkpoints": "refs, refs, content, checksum, thread, NOT hidden",
            "writes": "refs, refs, content, checksum, thread",
            "chunks": "refs, refs, content, x'', NULL, 1, family, digest",
        }[kind]
        with self.connection() as connection:
            which = "WHERE idx > -1000" if kind == "writes" else ""  # receipts are no writes
            rows = connection.execute(f"SELECT id, {columns} FROM forkpoint_{kind} {which}")
            return [Row(*row) for row in rows]

    def change(self, kind: str, key: Any, **fields: bytes | str | int | None) -> None:
        assignments = ", ".join(f"{field} = ?" for field in fields)
        with self.connection() as connection:
            connection.execute(
                f"UPDATE forkpoint_{kind} SET {assignments} WHERE {_name_of_key(kind)} = ?",
                (*fields.values(), key),
            )

    def _salt_of(self, thread: Any) -> bytes:
        with self.connection() as connection:
            salt = "SELECT salt FROM forkpoint_threads WHERE key = ?"
            return bytes(connection.execute(salt, (thread,)).fetchone()[0])

    def age(self, thread_id: str, **microseconds: int) -> None:
        fields = ", ".join(f"{field} = {field} - ?" for field in microseconds)
        with self.connection() as connection:
            connection.execute(
                f"UPDATE forkpoint_threads SET {fields} WHERE thread_id = ?",
                (*microseconds.values(), thread_id),
            )

    def stored(self, kind: str) -> dict[Any, dict[str, Any]]:
        with self.connection() as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute(f"SELECT * FROM forkpoint_{kind}")
            key = _name_of_key(kind)
            return {row[key]: {name: row[name] for name in row.keys()[1:]} for row in rows}

    def take(self, kind: str, key: Any) -> Any:
        with self.connection() as connection:
            which = f"forkpoint_{kind} WHERE {_name_of_key(kind)} = ?"
            taken = connection.execute(f"SELECT * FROM {which}", (key,)).fetchone()
            connection.execute(f"DELETE FROM {which}", (key,))
        return taken

    def give_back(self, kind: str, taken: Any) -> None:
        with self.connection() as connection:
            marks = ", ".join("?" * len(taken))
            connection.execute(f"INSERT INTO forkpoint_{kind} VALUES ({marks})", taken)

    def put_back(self, kind: str, key: Any, fields: Mapping[str, Any]) -> None:
        name = _name_of_key(kind)
        marks = ", ".join("?" * (len(fields) + 1))
        with self.connection() as connection:
            connection.execute(f"DELETE FROM forkpoint_{kind} WHERE {name} = ?", (key,))
            connection.execute(
                f"INSERT INTO forkpoint_{kind} ({name}, {', '.join(fields)}) VALUES ({marks})",
                (key, *fields.values()),
            )

    def take_secret(self) -> Any:
        return self.take("settings", "secret:1")

    def secrets(self) -> list[bytes]:
        with self.connection() as connection:
            rows = connection.execute(
                "SELECT value FROM forkpoint_settings WHERE name LIKE 'secret:%'"
            )
            return [value for (value,) in rows]

    def add_threads(self, threads: Sequence[Known]) -> None:
        hashing = self.hashing()
        with self.connection() as connection:
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO forkpoint_threads (thread_id, family, owner, tags, metadata, status,"
                " created_at, updated_at, label, salt, checksums)"
                " VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *one._replace(tags=json.dumps(one.tags), metadata=json.dumps(one.metadata)),
                        *checksums(one, hashing),
                    )
                    for one in threads
                ],
            )
            connection.execute("UPDATE forkpoint_threads SET family = key WHERE family = 0")
            connection.execute("COMMIT")

    def let_mean(self, thread_id: str, thread: Thread) -> None:
        pass  # the record says it

    def mislist(self, thread_id: str) -> None:
        with self.connection() as connection:
            connection.execute(
                "UPDATE forkpoint_listing SET status = 'error' WHERE thread_id = ?", (thread_id,)
            )

    def outlast(self) -> None:
        with self.connection() as connection:
            connection.execute("UPDATE forkpoint_threads SET removed_at = 1 WHERE removed_at > 1")
            connection.execute(
                "UPDATE forkpoint_threads SET copy_deadline = 1 WHERE copy_deadline > 1"
            )

    def await_end_of(self, process: int) -> None:
        pass  # whatever it did, it did itself

    def set_schema_version(self, version: int) -> None:
        with self.connection() as connection:
            connection.execute(
                "UPDATE forkpoint_settings SET value = ? WHERE name = 'schema_version'", (version,)
            )

    def content(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.path.parent.glob(self.path.name + "*"))

    def close(self) -> None:
        pass  # the directory is removed

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()

    def _faults(self) -> list[str]:
        with self.connection() as connection:
            (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
            found = [] if integrity == "ok" else [f"integrity_check: {integrity}"]
            rows = connection.execute(
                "SELECT key, parent, deleted_at IS NULL OR copy_deadline > 0, thread_id, owner,"
                " removed_at IS NULL FROM forkpoint_threads WHERE coalesce(copy_deadline, 1) > 0"
            )
            found += _traces(rows.fetchall(), keeps_records=False)
            return found + self._listing_faults(connection)

    def _listing_faults(self, connection: sqlite3.Connection) -> list[str]:
        """Return where the search index does not say what it said when it was made."""
        found: list[str] = []
        expected: set[tuple[Any, ...]] = set()
        for is_seen, at, status, now, terms, values, thread_id, *said in connection.execute(
            "SELECT t.deleted_at IS NULL AND NOT t.provisional, t.listed_at, t.listed_status,"
            " t.listed_at IS t.updated_at AND t.listed_status IS"
            " CASE WHEN t.lease_until IS NULL THEN t.status ELSE 'busy' END, t.terms,"
            " t.value_terms, t.thread_id,"
            " t.owner, t.label, t.tags, t.metadata, s.thread_id FROM forkpoint_threads AS t"
            " LEFT JOIN forkpoint_threads AS s ON s.key = t.parent"
        ):
            if at is None:
                found += [f"{thread_id} has terms, and is not listed"] * (terms is not None)
                continue
            owner, label, tags, metadata, source = said
            listed = thread_terms(owner, label, json.loads(tags), metadata, source)
            if not is_seen or packed(listed) != terms:
                found.append(f"{thread_id} is listed as what it is not, up to date: {now}")
            expected |= {(term, status, at, thread_id) for term in unpacked(terms + values)}
        rows = connection.execute(
            "SELECT term, status, listed_at, thread_id FROM forkpoint_listing"
            " WHERE valid_to IS NULL"
        ).fetchall()
        found += [f"listed twice: {row}" for row, number in Counter(rows).items() if number > 1]
        found += [f"listed, and not known to be: {row}" for row in set(rows) - expected]
        return found + [f"known to be listed, and not: {row}" for row in expected - set(rows)]


def _name_of_key(kind: str) -> str:
    return {"threads": "key", "settings": "name"}.get(kind, "id")


class MongoStore(Store):
    """A database on a server."""

    has_transactions = False

    def __init__(self, uri: str, database: str) -> None:
        self.uri = uri
        self.name = database
        self._opened: list[pymongo.MongoClient[Any]] = []
        self._untargeted: list[str] = []
        self._read: dict[str, list[Any]] | None = None

    def __reduce__(self) -> Any:
        return MongoStore, (self.uri, self.name)

    def saver(self, **options: Any) -> ForkpointSaver:
        from forkpoint.mongodb.saver import MongoDBSaver

        # Whatever a test does: each command could be sent to one shard of a cluster.
        listeners = [Started(lambda sent: self._untargeted.extend(untargeted(sent)))]
        listeners += options.pop("event_listeners", [])
        options = {"appname": self._client_of(os.getpid()), **options}
        return MongoDBSaver.from_conn_string(
            self.uri, db_name=self.name, event_listeners=listeners, **options
        )

    def watched(self, before: Callable[[str], None], **options: Any) -> ForkpointSaver:
        from forkpoint.mongodb.saver import MongoDBSaver

        client: pymongo.MongoClient[Any] = pymongo.MongoClient(
            self.uri,
            appname=self._client_of(os.getpid()),
            event_listeners=[Started(lambda sent: before(sent.command_name))],
        )
        self._opened.append(client)
        saver = MongoDBSaver(client, db_name=self.name, **options)
        saver.setup()
        return saver

    @property
    def script(self) -> str:
        return (
            "from forkpoint.mongodb.saver import MongoDBSaver\n"
            f"saver = MongoDBSaver.from_conn_string({self.uri!r}, db_name={self.name!r})\n"
        )

    def times(self, count: int) -> int:
        return max(count // 4, 1)

    @property
    def collection(self) -> Any:
        return _client(self.uri, os.getpid())[self.name]["forkpoint_store"]

    def threads(self) -> list[Thread]:
        return [
            Thread(
                found["_id"],
                found["thread_id"],
                found["family"],
                found.get("deleted_at") is None,
                found.get("provisional", False),
                found["checkpoint_count"],
                found["status"],
                found["metadata"],
                found["created_at"],
                found["updated_at"],
                found["lock"] is None,
            )
            for found in self._records()
        ]

    def problems(
        self, saver: ForkpointSaver | None = None, *, after_crash: bool = False
    ) -> list[str]:
        self._await_majority()
        self._read = {}  # once, and not for each thing that may be wrong with it
        try:
            return super().problems(saver, after_crash=after_crash)
        finally:
            self._read = None

    def _find(self, query: Mapping[str, Any]) -> list[Any]:
        """Return the documents that match; while problems are looked for, as they were first."""
        if self._read is None:
            return list(self.collection.find(query))
        name = repr(query)
        if name not in self._read:
            self._read[name] = list(self.collection.find(query))
        return self._read[name]

    def _await_majority(self) -> None:
        """Wait until savers read all that is stored. Nobody has, for a write that was stopped."""
        by_majority = self.collection.with_options(write_concern=WriteConcern("majority"))
        by_majority.delete_one({"_id": "absent", "family": "absent"})  # waits for all before it

    def restore_dump(
        self, documents: Sequence[Mapping[str, Any]], indexes: Mapping[str, Any] | None = None
    ) -> None:
        """Do what `mongorestore --drop` does, with the indexes that are given."""
        self.collection.drop()
        if documents:
            self.collection.insert_many(documents)
        for name, index in (indexes or {}).items():
            if name != "_id_":
                options = {key: index[key] for key in index if key not in ("v", "key", "ns")}
                self.collection.create_index(index["key"], name=name, **options)

    def restore(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Let the store have these documents, all that one had before, and nothing else."""
        self.collection.delete_many({})
        self.collection.insert_many(documents)

    def _records(self) -> Iterator[Mapping[str, Any]]:
        """Yield the records of all threads, and what their logs say about them."""
        records = [record for record in self._find(_RECORDS) if "building" not in record]
        said: dict[Any, Mapping[str, Any]] = {}
        for entry in sorted(self._find({"slot": {"$gt": 0}}), key=itemgetter("slot")):
            said[entry["log"]] = entry["record"]
        for record in records:
            newest = said.get(record["log"], {})
            later = max(record["updated_at"], newest.get("updated_at", 0))
            yield {**record, **newest, "updated_at": later}

    def rows(self, kind: str) -> list[Row]:
        if kind == "chunks":
            return [
                Row(
                    found["_id"],
                    b"".join(found.get("refs", ())),
                    b"".join(ref[_FAMILY_BYTES:] for ref in found.get("refs", ())),
                    found["content"],
                    family=found["family"],
                    digest=found["_id"][_FAMILY_BYTES:],
                )
                for found in self.collection.find(_CHUNKS)
            ]
        query = {
            "kind": kind.removesuffix("s"),
            "thread": {"$nin": self._building()},
            "$or": [{"visible": True}, {"hidden": True}],
            "idx": {"$not": {"$lte": -1000}},  # receipts are no writes
        }
        return [
            Row(
                found["_id"],
                found["refs"],
                found["refs"],
                found["content"],
                found["checksum"],
                found["thread"],
                found.get("visible", False),
            )
            for found in self._find(query)
        ]

    def change(self, kind: str, key: Any, **fields: Any) -> None:
        if kind == "chunks" and "refs" in fields:
            joined = fields["refs"]
            starts = range(0, len(joined), _REF_BYTES)
            fields["refs"] = [joined[start : start + _REF_BYTES] for start in starts]
        changed = self.collection.update_one({"_id": key}, {"$set": fields})
        assert changed.matched_count == 1

    def _salt_of(self, thread: Any) -> bytes:
        return bytes(self.collection.find_one({"_id": thread})["salt"])

    def age(self, thread_id: str, **microseconds: int) -> None:
        older = {field: {"$subtract": [f"${field}", by]} for field, by in microseconds.items()}
        wanted = {"kind": "thread", "thread_id": thread_id}
        keys = [record["_id"] for record in self.collection.find(wanted)]
        self.collection.update_many(wanted, [{"$set": {**older, "unlisted": True}}])
        in_log = {"thread": {"$in": keys}, "slot": {"$exists": True}}
        by = microseconds.get("updated_at", 0)
        self.collection.update_many(in_log, {"$inc": {"record.updated_at": -by}})

    def stored(self, kind: str) -> dict[Any, dict[str, Any]]:
        found = self.collection.find({"kind": kind.removesuffix("s")})
        return {row.pop("_id"): row for row in found}

    def take(self, kind: str, key: Any) -> Any:
        return self.collection.find_one_and_delete({"_id": key})

    def give_back(self, kind: str, taken: Any) -> None:
        in_log = () if kind in ("threads", "settings") else ("log", "slot", "record")
        self.collection.insert_one({name: taken[name] for name in taken if name not in in_log})

    def put_back(self, kind: str, key: Any, fields: Mapping[str, Any]) -> None:
        self.collection.replace_one({"_id": key}, dict(fields), upsert=True)

    def take_secret(self) -> Any:
        return self.take("settings", "secret:0001")

    def secrets(self) -> list[bytes]:
        return [found["value"] for found in self.collection.find({"_id": {"$regex": "^secret:"}})]

    def add_threads(self, threads: Sequence[Known]) -> None:
        documents = []
        hashing = self.hashing()
        name_id = self.names()
        for one in threads:
            key = ObjectId()
            name = name_id(one.thread_id)
            said = {**one._asdict(), "metadata": json.dumps(one.metadata), "provisional": False}
            said["salt"], said["checksums"] = checksums(one, hashing)
            documents += [
                {"_id": key, "family": key, **new_record(epoch=ObjectId(), **said)},
                {"_id": name, "family": name, "key": key, "home": key},
            ]
        self.collection.insert_many(documents, ordered=False)

    def names(self) -> Callable[[str], str]:
        """Return what tells the `_id` of the document that says what a thread id means."""
        settings = self.collection.find_one({"_id": "store_key"})
        key = settings["value"] if settings else b""
        return lambda thread_id: f"name:{Marks(key, thread_id).of_id.hex()}"

    def let_mean(self, thread_id: str, thread: Thread) -> None:
        name = self.names()(thread_id)
        meant = {"key": thread.key, "home": thread.family}
        assert self.collection.update_one({"_id": name}, {"$set": meant}).matched_count == 1

    def mislist(self, thread_id: str) -> None:
        named = {"kind": "thread", "thread_id": thread_id}
        self.collection.update_one(named, {"$set": {"listed_status": "error"}})

    def outlast(self) -> None:
        long_ago = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)
        self.collection.update_many(
            {"lock.by": {"$exists": True}}, {"$set": {"lock.until": long_ago}}
        )
        self.collection.update_many({"removed_at": {"$gt": 0}}, {"$set": {"removed_at": 1}})

    def await_end_of(self, process: int) -> None:
        # The server does all that it was sent before it finds that a connection is closed.
        connections = [
            {"$currentOp": {"idleConnections": True}},
            {"$match": {"appName": self._client_of(process)}},
            {"$limit": 1},
        ]
        admin = self.collection.database.client.admin
        wait_until(lambda: not list(admin.aggregate(connections)), "a killed process's commands")

    def _client_of(self, process: int) -> str:
        """Return what the clients of a process call themselves on the server."""
        return f"{self.name} {process}"

    def set_schema_version(self, version: int) -> None:
        self.collection.update_one({"_id": "settings"}, {"$set": {"schema_version": version}})

    def content(self) -> bytes:
        raw = self.collection.with_options(
            codec_options=self.collection.codec_options.with_options(document_class=RawBSONDocument)
        )
        return b"".join(found.raw for found in raw.find())

    def close(self) -> None:
        for client in self._opened:
            client.close()
        self.collection.drop()  # first: it takes the server long to drop them with their database
        self.collection.database.client.drop_database(self.name)
        assert self._untargeted == [], self._untargeted[:2]

    def _faults(self) -> list[str]:
        threads = {thread.key: thread for thread in self.threads()}
        name_id = self.names()
        names = {
            found["_id"]: found for found in self.collection.find({"_id": {"$regex": "^name:"}})
        }
        found = [
            f"{thread} is not what its id means"
            for thread in threads.values()
            if thread.is_live
            and not thread.is_provisional
            and names.get(name_id(thread.thread_id), {}).get("key") != thread.key
        ]
        found += [
            f"{thread} is there, and the server is to delete what its id means"
            for thread in threads.values()
            if thread.is_live and "expires" in names.get(name_id(thread.thread_id), {})
        ]
        fields = ("_id", "parent", "deleted_at", "thread_id", "owner")
        records = [
            [*(record[field] for field in fields), "removed_at" not in record]
            for record in self._find(_RECORDS)
        ]
        kin = [(one[0], one[1], one[2] is None, *one[3:]) for one in records]
        found += _traces(kin, keeps_records=True)
        return found + self._listing_faults()

    def _listing_faults(self) -> list[str]:
        """Return where searches find a thread as what it is not."""
        found = []
        for record in self._find(_RECORDS):
            if "building" in record:
                continue
            is_listed = "listed_at" in record
            if record["deleted_at"] is not None:
                found += [f"{record} is deleted, and listed"] * (is_listed or "terms" in record)
                continue
            said = (record[name] for name in ("owner", "label", "tags", "metadata", "source"))
            listed = {*thread_terms(*said), *record.get("listed_values", ())}
            if set(record["terms"]) != listed or len(record["terms"]) != len(listed):
                found.append(f"{record} is listed as what it is not")
            # A lease that ended by itself is not seen to have ended before the next search.
            leased = {"busy"} if record["lease_until"] is not None else set()
            place = record.get("listed_at"), record.get("listed_status")
            now = {(record["updated_at"], one) for one in {record["status"], *leased}}
            if "unlisted" not in record and not record["provisional"] and place not in now:
                found.append(f"{record} is listed at {place}, and not known to be out of date")
        return found

    def _unfinished(self) -> Mapping[Any, set[bytes]]:
        kept: dict[Any, set[bytes]] = defaultdict(set)
        for found in self.collection.find({"next": {"$exists": True}}):
            kept[found["family"]].update(_split(found["next"]["refs"]))
        building = self._building()
        for found in self._find({"thread": {"$in": building}}) if building else ():
            kept[found["family"]].update(_split(found["refs"]))
        return kept

    def _building(self) -> list[Any]:
        """Return the keys of the threads that are copies which were never finished."""
        return [record["_id"] for record in self._find(_RECORDS) if "building" in record]


_FAMILY_BYTES = 12
_REF_BYTES = _FAMILY_BYTES + 32
_RECORDS = {"kind": "thread"}
_CHUNKS = {"kind": {"$exists": False}, "_id": {"$type": "binData"}}


@functools.cache
def _client(uri: str, process: int) -> pymongo.MongoClient[Any]:
    """Return a client to look at stores with, one for all tests of a process."""
    return pymongo.MongoClient(uri)


def _traces(threads: Sequence[Any], *, keeps_records: bool) -> list[str]:
    """Return what is left of deleted threads, and should not be.

    Args:
        threads: Of each thread its key, its parent, whether it is there, its id, its owner, and
            whether it is collected.
        keeps_records: Whether records stay for a while after that, with nothing in them.
    """
    parents = {key: parent for key, parent, *_ in threads}
    needed = set()
    for _, parent, is_there, *_ in threads:
        while is_there and parent is not None and parent not in needed:
            needed.add(parent)
            parent = parents.get(parent)
    found = []
    for key, _, is_there, thread_id, owner, is_collected in threads:
        if is_there:
            continue
        if owner is not None:
            found.append(f"the deleted thread {key} says whose it was")
        if key not in needed and is_collected and (thread_id or not keeps_records):
            found.append(f"the thread {thread_id!r} was deleted, and its record is left")
    return found


def _split(digests: bytes) -> list[bytes]:
    return [digests[start : start + 32] for start in range(0, len(digests), 32)]


def _reachable(roots: set[bytes], links: Mapping[bytes, bytes]) -> set[bytes]:
    """Return the digests that these lead to, themselves included."""
    live: set[bytes] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in live:
            live.add(digest)
            waiting += _split(links.get(digest, b""))
    return live
