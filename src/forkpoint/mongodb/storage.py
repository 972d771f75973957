"""MongoDB: the client, the set-up, and puts that share a bulk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from pymongo import MongoClient, ReadPreference, timeout
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from forkpoint.at_fork import renew_in_child
from forkpoint.caches import CacheBudget
from forkpoint.errors import (
    SaverClosed,
    StorageReadOnly,
    StorageUnauthorized,
    StorageUnavailable,
)
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import (
    STORED,
    Document,
)
from forkpoint.mongodb.log import LOG_INDEX
from forkpoint.mongodb.put import Put
from forkpoint.mongodb.put_batch import Attempt, Relays, send
from forkpoint.mongodb.schema import IN_NO_LOG, check_features, complete, indexes_of
from forkpoint.mongodb.session import MongoSession
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import SCHEMA_VERSION, HistoryChanged, Session, Storage
from forkpoint.storage.rows import PutRequest, ThreadRef
from forkpoint.storage.shared import check_schema_version

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
        self._attempts = 0
        self._failed: tuple[int, StorageUnavailable] | None = None
        self._relays = Relays(self._send, moment=_MOMENT_SECONDS)
        renew_in_child(self)

    def _become_child(self) -> None:
        """In a forked child: another thread of the parent may have held a lock."""
        self._opening = threading.RLock()
        self._relays.renew()

    # Opening

    @property
    def history(self) -> int:
        return self._history

    def setup(self) -> None:
        is_open = self._is_open
        session = self._open()
        if is_open and not session.commands.is_same_store(was_named=False):
            session = self._open()
        if is_open or not session.commands.has_made_indexes:
            complete(session.commands)

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
        attempts = self._attempts
        with self._locked():
            if not self._is_open:
                if self._closed:
                    raise SaverClosed("the saver is closed")
                # Many calls wait for a server that does not answer: together, not one by one.
                if self._failed is not None and self._failed[0] > attempts:
                    raise StorageUnavailable(str(self._failed[1])) from self._failed[1]
                self._attempts += 1
                try:
                    self._attempt()
                except StorageUnavailable as error:
                    self._failed = self._attempts, error
                    raise
            assert self._session is not None
            return self._session

    def _attempt(self) -> None:
        """Open the collection, or open it again."""
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
        commands.history = self.history
        self._commands = commands
        self._session = MongoSession(commands)

    @property
    def _is_open(self) -> bool:
        if self._session is None or self._commands is None or self._process != os.getpid():
            return False
        return self._commands.identity.may_be_same

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
        documents = commands.latest(settings)
        commands.look_at_cluster()
        if not documents:
            check_features(commands, collection)
            commands.create_indexes(indexes_of(commands))
            commands.has_made_indexes = True
            made = {**settings, "schema_version": SCHEMA_VERSION}
            documents = [made] if commands.insert(made) else commands.latest(settings)
        commands.retrying(commands.identity.look)
        commands.look_for_index(LOG_INDEX, IN_NO_LOG)
        check_schema_version(documents[0].get("schema_version", "") if documents else "")
        commands.read_store_key()
        commands.clock.now()  # so that no put has to ask first
        return commands

    # Putting

    def put(self, put: PutRequest) -> Steps[ThreadRef | None]:
        session = self._open()
        if put.history != self.history:
            raise HistoryChanged
        request = put._replace(now=session.commands.clock.now())
        return (yield from Put(session, self._relays, request).steps())

    def _send(self, batch: Sequence[Attempt]) -> None:
        assert self._commands is not None
        # Who sends the puts of others may have less time than these.
        with nullcontext() if len(batch) == 1 else timeout(None):
            send(self._commands, batch)


_MOMENT_SECONDS = 0.001
"""For which writes wait for the checkpoint that follows, as a rule: then both are sent at once."""
