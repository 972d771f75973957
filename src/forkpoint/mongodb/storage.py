"""MongoDB: the client, the set-up, and puts that share a bulk."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from bson.objectid import ObjectId
from pymongo import MongoClient, ReadPreference
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from forkpoint.at_fork import renew_in_child
from forkpoint.caches import CacheBudget, Recent
from forkpoint.encoding.hashing import IDENTITY_BYTES
from forkpoint.errors import (
    SaverClosed,
    SchemaVersionError,
    StaleLease,
    StorageBusy,
    StorageReadOnly,
    StorageUnauthorized,
    stale_lease,
)
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import (
    ROWS,
    STORED,
    Document,
    chunks_of,
    record_of,
    row_id,
)
from forkpoint.mongodb.features import check_features
from forkpoint.mongodb.indexes import IN_NO_LOG, complete, indexes_of
from forkpoint.mongodb.log import LOG_INDEX, Tail
from forkpoint.mongodb.put import Bulk, checked_size, store
from forkpoint.mongodb.put_statements import Creation, Intent, record_made, row_ids
from forkpoint.mongodb.session import MongoSession
from forkpoint.mongodb.tombstones import dead_until_of, deletions_of, die_later
from forkpoint.runtime.group_commit import Relay
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import SCHEMA_VERSION, HistoryChanged, Session, Stale, Storage
from forkpoint.storage.rows import PutRequest, ThreadRef
from forkpoint.storage.tombstones import is_deleted_since

SETTINGS = "settings"
"""The id of the document that says which version of the schema there is, and its family."""


class MongoStorage(Storage):
    """A collection of a MongoDB database.

    Args:
        connect: Returns the client. It is called again in a forked child process.
        db_name: The database.
        name: The collection.
        owned: Whether to close the client.
        budget: What it may take to remember things.
        tombstone_ttl: For how many microseconds a deletion is known.
    """

    def __init__(
        self,
        connect: Callable[[], MongoClient[Document]],
        db_name: str,
        name: str,
        *,
        owned: bool,
        budget: CacheBudget,
        tombstone_ttl: int,
    ) -> None:
        self.budget = budget
        self._tombstone_ttl = tombstone_ttl
        self._connect = connect
        self._db_name = db_name
        self._name = name
        self._owned = owned
        self._client: MongoClient[Document] | None = None
        self._session: MongoSession | None = None
        self._commands: MongoCommands | None = None
        self._process = 0
        self._closed = False
        self._history = 0
        self._opening = threading.RLock()  # it knows its thread, so that no other can release it
        self._commits: Relay[Bulk] = Relay(
            self._store, in_flight=_IN_FLIGHT, moment=_MOMENT, patience=_PATIENCE
        )
        self._dead: Recent[ObjectId, str] = Recent(4096)
        renew_in_child(self)

    def _become_child(self) -> None:
        """In a forked child: another thread of the parent may have held a lock."""
        self._opening = threading.RLock()
        self._commits.renew()

    # Opening

    @property
    def history(self) -> int:
        return self._history

    def setup(self) -> None:
        self._open()
        if not self._records_open().is_kept(was_told=False):
            self._open()
        complete(self._records_open())

    def reading(self) -> AbstractContextManager[Session]:
        session = self._open()
        session.turns.begin()
        return nullcontext(session)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def unstored(self) -> AbstractContextManager[Session]:
        return self.writing()  # its searches go on without writing where they cannot

    def save_room(self) -> None:
        """Do nothing: the server has its own log, and room for it."""

    def tidy(self) -> bool:
        """Do nothing: MongoDB uses free space again by itself."""
        return False

    def close(self) -> None:
        with self._locked():
            self._closed = True
            client, self._client, self._session = self._client, None, None
            if client is not None and self._owned and self._process == os.getpid():
                client.close()

    def _open(self) -> MongoSession:
        if self._is_open:
            assert self._session is not None
            return self._session
        with self._locked():
            if not self._is_open:
                if self._closed:
                    raise SaverClosed("the saver is closed")
                if self._client is None or (self._owned and self._process != os.getpid()):
                    self._inherited = self._client  # not to be closed in a forked child
                    self._client = self._connect()
                self._session = None  # of the parent, in a forked child, or of another store
                self._process = os.getpid()
                commands = self._prepare(self._client)
                if self._commands is not None:
                    with suppress(StorageReadOnly, StorageUnauthorized):
                        complete(commands)  # a backup may be restored without its indexes
                    # First: who has the new collection must find that the history is new.
                    self._history += 1
                    self._dead = Recent(4096)
                commands.history = self.history
                self._commands = commands
                self._session = MongoSession(commands)
            assert self._session is not None
            return self._session

    @property
    def _is_open(self) -> bool:
        if self._session is None or self._commands is None or self._process != os.getpid():
            return False
        return self._commands.identity.may_be_kept

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._opening.acquire()
            yield
        finally:
            self.let_go()

    def check_free(self) -> None:
        """Do nothing: a call in the middle of another one opens nothing."""

    def let_go(self) -> None:
        """Release the lock under which the client is opened, if this thread holds it."""
        with suppress(RuntimeError):
            self._opening.release()

    def _prepare(self, client: MongoClient[Document]) -> MongoCommands:
        """Return the collection, with its indexes, and with concerns that lose nothing."""
        patience = client.options.server_selection_timeout
        theirs = client.write_concern.document.get("wtimeout")
        collection = client[self._db_name].get_collection(
            self._name,
            codec_options=STORED,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", wtimeout=theirs or int(1000 * patience), j=True),
        )
        commands = MongoCommands(collection, patience, self.budget)
        commands.tombstone_ttl = self._tombstone_ttl
        settings = {"_id": SETTINGS, "family": SETTINGS}
        found = commands.latest(settings)
        commands.look_at_cluster()
        if not found:
            check_features(commands, collection)
            commands.create_indexes(indexes_of(commands))
            commands.insert({**settings, "schema_version": SCHEMA_VERSION})
            found = commands.latest(settings)
        commands.retrying(commands.identity.look)
        commands.look_for_index(LOG_INDEX, IN_NO_LOG)
        version = found[0]["schema_version"]
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"the database has forkpoint's schema version {version}, and this forkpoint knows "
                f"{SCHEMA_VERSION}; upgrade forkpoint"
            )
        commands.read_store_key()
        commands.clock.now()  # so that no put has to ask first
        return commands

    # Putting

    def put(self, put: PutRequest) -> Steps[ThreadRef | None]:
        session = self._open()
        if put.history != self.history:
            raise HistoryChanged
        put = put._replace(now=self._records_open().clock.now())
        size = checked_size(put)
        thread = put.expected
        creation: Creation | None = None
        dead_until: str | None = None
        if thread is None:
            key = ObjectId()
            thread = _new_thread(put, key, key)
            creation = Creation(self._records_open().name_of(put.thread_id), None, None)
        else:
            tail = session.logs.tail(thread)
            dead_until = self._dead.get(thread.key) if tail is None else tail.dead_until
        intent = Intent(put, thread, creation, dead_until, self._records_open().is_sharded)
        is_unsure = False  # whether its checkpoint may have been counted before it was stored
        for attempt in range(_ATTEMPTS):
            if attempt > 2:  # others put to the thread at the same time: let one be the first
                time.sleep(random.random() * _MOMENT * attempt)
            _, thread, _, dead_until, *_ = intent
            died = self._dead_until(put, dead_until)
            if died is not None and self._is_late(put, thread, died):
                self._remove_traces(put, thread)
                return None
            bulk = Bulk(self._commits, session, intent, size)
            yield bulk
            bulk.check()
            intent, failed = bulk.sent, bulk.collided
            _, thread, creation, *_ = intent
            is_unsure = is_unsure or (
                not session.logs.keeps_logs and (intent.replace or bulk.is_repeated)
            )
            if failed is None:
                if creation is not None and creation.dead_until is not None:
                    self._dead.put(thread.key, creation.dead_until)
                if put.row is not None and is_unsure:
                    session.locks.count_again(thread)
                if put.row is not None:
                    session.checkpoints.remember_newest(
                        thread, put.checkpoint_ns, put.checkpoint_id
                    )
                session.chunks.remember(thread.family, put.chunks)
                return thread
            if failed in ("row", "once"):
                is_counted = put.row is not None and self._is_visible(put, thread)
                intent = intent._replace(replace=True, is_counted=is_counted)
                if bulk.entries:
                    session.logs.end_log(thread)
            elif creation is None:
                record = self._look_again(put, thread, bulk.own_tail)
                is_newest = record["status_for"] < put.checkpoint_id
                is_put = record["status_for"] == put.checkpoint_id
                is_unsure = is_unsure or (is_put and not session.logs.keeps_logs)
                intent = intent._replace(dead_until=record["dead_until"], is_newest=is_newest)
            else:
                successor = self._succeed(put, thread, creation)
                if successor is None:
                    return None
                thread, creation = successor
                intent = intent._replace(thread=thread, creation=creation)
        raise StorageBusy(f"thread {put.thread_id!r} changed {_ATTEMPTS} times in a row")

    def _look_again(self, put: PutRequest, thread: ThreadRef, own: Tail | None) -> Document:
        """Return the record of a thread, once nobody locks it any more.

        Args:
            put: What is to be put.
            thread: The thread.
            own: The end of one's own log, if it has one, as far as is known.

        Raises:
            Rewound: The thread is not there any more, or its log did not end as logs do.
            Stale: The thread is not what it was.
            StaleLease: The run does not hold the lease any more.
        """
        session = self._open()
        while True:
            try:
                record = session.locks.await_unlocked(thread)
            except Stale:
                raise self._rewound() if put.expected == thread else Stale from None
            if own is not None and own.log != record["log"]:
                if not session.logs.has_gone_on(thread, own):
                    raise self._rewound()
                own = None
            if record["deleted_at"] is not None:
                # A row may have arrived after the others were removed.
                ids = {"$in": row_ids(put, thread)}
                self._records_open().delete({"_id": ids, "family": thread.family})
            if record["deleted_at"] is not None or record["epoch"] != thread.epoch:
                session.known.forget(put.thread_id)
                raise Stale
            if put.fence not in (None, record["fence"]):
                raise StaleLease(stale_lease(put.thread_id))
            if record["dead_until"] is not None:
                self._dead.put(thread.key, record["dead_until"])
            if record["log"] is None:
                session.logs.look_at_tail(thread, record, ())
                return record
            if session.logs.owns_log(thread, record["log"]):
                return record
            session.logs.end_log(thread)

    def _succeed(
        self, put: PutRequest, thread: ThreadRef, creation: Creation
    ) -> tuple[ThreadRef, Creation | None] | None:
        """Return how to make a thread of an id that was used before, or None if it is late.

        Raises:
            Stale: There is another thread of this id.
        """
        commands = self._records_open()
        name, marks = commands.name_of(put.thread_id), commands.marks(put.thread_id)
        names = commands.latest(name)
        if not names:
            return thread, creation  # nothing was done by an attempt whose answer was lost
        (named,) = names
        old = _new_thread(put, named["key"], named["home"])
        found = commands.latest(record_of(old))
        if found and found[0]["deleted_at"] is None:
            if old.key == thread.key:
                return thread, None  # it was made by an attempt whose answer was lost
            raise Stale
        deletion, deletions = named.get("deletion"), deletions_of(named, marks, put.owner)
        if put.began is not None and is_deleted_since(put.began.deletion, deletions):
            return None
        dead_until = dead_until_of(named, marks, put.owner)
        if dead_until is not None and put.began is None:
            if self._is_late(put, None, dead_until):
                self._note_late(put)
                return None
            if put.row is None and not put.is_announced:
                return None  # where a thread was deleted, the next one begins with a checkpoint
        if found:
            key = ObjectId()
            thread = _new_thread(put, key, key)
        else:
            thread = old  # who was to make it ended in between, or there never was one
        of_all = dead_until_of(named, marks, None)
        if thread is old:
            # Who else makes it gives it another salt: the rows of one of the two would not fit.
            commands.bulk([record_made(put, thread, of_all)])
            if not commands.exists({**record_of(thread), "epoch": thread.epoch}):
                raise Stale
        return thread, Creation(name, old.key, of_all, deletion, deletions)

    def _dead_until(self, put: PutRequest, dead_until: str | None) -> str | None:
        """Return up to which checkpoint those of deleted threads are late, as far as is told.

        Args:
            put: What is put.
            dead_until: What the thread's record says, of all owners.
        """
        if dead_until is None or put.began is not None or put.owner is None:
            return None if put.began is not None else dead_until
        commands = self._records_open()
        name = commands.name_of(put.thread_id)
        named = commands.latest(name)
        marks = commands.marks(put.thread_id)
        return dead_until_of(named[0], marks, put.owner) if named else None

    def _note_late(self, put: PutRequest) -> None:
        """Note that a checkpoint that came late was one of a deleted thread."""
        commands = self._records_open()
        name = commands.name_of(put.thread_id)
        change = die_later(commands.marks(put.thread_id), put.owner, put.checkpoint_id)
        commands.update(name, change)

    def _rewound(self) -> HistoryChanged:
        """Return what is raised where the store turns out to have gone back."""
        self._records_open().identity.lose()
        return HistoryChanged()

    def _is_late(self, put: PutRequest, thread: ThreadRef | None, dead_until: str) -> bool:
        """Return whether a write comes after a checkpoint that went with its thread."""
        dead = [place for place in put.ancestry if place[1] <= dead_until]
        if thread is None:
            return bool(dead)
        return any(not self._exists(thread, *place) for place in dead)

    def _exists(self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str) -> bool:
        id_ = row_id(thread, checkpoint_ns, checkpoint_id)
        wanted = {"_id": id_, "family": thread.family, "content": {"$exists": True}}
        return self._records_open().exists(wanted)

    def _is_visible(self, put: PutRequest, thread: ThreadRef) -> bool:
        """Return whether there is a checkpoint in the place of a put, which is counted then."""
        id_ = row_id(thread, put.checkpoint_ns, put.checkpoint_id)
        return self._records_open().exists({"_id": id_, "family": thread.family, "visible": True})

    def _remove_traces(self, put: PutRequest, thread: ThreadRef) -> None:
        """Remove writes that came before the late checkpoint they belong to, and expect more."""
        commands = self._records_open()
        self._open().logs.without_log(
            thread, record_of(thread), lambda wanted: commands.update(wanted, _die_later(put))
        )
        if self._exists(thread, put.checkpoint_ns, put.checkpoint_id):
            return
        rows = {"family": thread.family, "thread": thread.key}
        place = {"checkpoint_ns": put.checkpoint_ns, "checkpoint_id": put.checkpoint_id}
        commands.delete({**rows, **place, "kind": "write"})
        if commands.exists({**record_of(thread), "provisional": True}) and not commands.exists(
            {**rows, "kind": ROWS}
        ):
            self._open().threads.delete(thread, as_late=True)
            commands.delete(chunks_of(thread.family))

    def _records_open(self) -> MongoCommands:
        assert self._commands is not None
        return self._commands

    def _store(self, batch: Sequence[Bulk]) -> None:
        store(self._records_open(), batch)


def _new_thread(put: PutRequest, key: ObjectId, family: ObjectId) -> ThreadRef:
    """Return the thread that a put makes."""
    identity = put.owner, put.thread_id, put.salt, put.checksums[:IDENTITY_BYTES]
    return ThreadRef(key, family, ObjectId(), *identity)


_ATTEMPTS = 100
_IN_FLIGHT = 2  # bulks on their way: while one is executed, the next is prepared
_MOMENT = 0.001  # for which writes wait for the checkpoint that follows, as a rule
_PATIENCE = 0.02  # after which puts do not wait for the bulks before any longer


def _die_later(put: PutRequest) -> list[Document]:
    later = {"$max": ["$dead_until", {"$literal": put.checkpoint_id}]}
    return [{"$set": {"dead_until": later}}]
