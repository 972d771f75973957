"""MongoDB: the collection, and commands with typed errors.

Everything is in one collection, so that a put is one command. Each document has the field `family`,
which is the shard key, and each command that may go to a router of shards names it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import timezone
from typing import Any, TypeVar

from bson.errors import InvalidDocument
from pymongo import IndexModel, ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern

from forkpoint.caches import CacheBudget
from forkpoint.clocks import ServerClock
from forkpoint.errors import damaged_settings
from forkpoint.mongodb.documents import Document
from forkpoint.mongodb.errors import UNAUTHORIZED, is_transient, typed_error
from forkpoint.mongodb.identity import UUID_DIFFERS, Identity
from forkpoint.mongodb.snapshots import Snapshots
from forkpoint.mongodb.statements import Outcome, Statement
from forkpoint.runtime.workers import not_started
from forkpoint.storage.interface import STORE_KEY_BYTES, HistoryChanged
from forkpoint.storage.tombstones import TOMBSTONE_MICROSECONDS, Marks

IN_ONE_COMMAND = 10_000
"""How many values fit into one command."""

_T = TypeVar("_T")


class MongoCommands:
    """Commands on the collection, which are repeated while the server changes its primary.

    Every command may be sent twice without doing more than once.

    Args:
        collection: With the concerns that it is to be read and written with.
        patience_seconds: For how long to try.
        budget: What it may take to remember what was read.
    """

    def __init__(
        self, collection: Collection[Document], patience_seconds: float, budget: CacheBudget
    ) -> None:
        self.budget = budget
        self.clock = ServerClock(self.now)
        self.tombstone_ttl = TOMBSTONE_MICROSECONDS
        """For how many microseconds a deletion is known."""
        self.is_sharded = True
        """Whether commands may go to the router of a sharded cluster."""
        self.keeps_logs = False
        """Whether there is the index that logs need."""
        self.has_made_indexes = False
        """Whether all indexes were created when it was opened."""
        self.identity = Identity(collection)
        self.history = 0
        """The history of the store that it is of; see `Storage.history`."""
        self._collection = collection
        self._latest = collection.with_options(read_concern=ReadConcern("local"))
        self.snapshots = Snapshots(collection, self.identity, self.retrying)
        self._patience_seconds = patience_seconds
        self.store_key = b""
        """The store's key, once it is read."""

    def read_store_key(self) -> None:
        """Read the store's key, or make it.

        Raises:
            CorruptChunk: What is stored is no key.
        """
        key = {"_id": "store_key", "family": "settings"}
        stored = self.latest(key)
        for _ in range(3):  # it may be dropped meanwhile, or its document may say another family
            if stored:
                break
            made = {**key, "value": os.urandom(STORE_KEY_BYTES)}
            stored = [made] if self.insert(made) else self.latest(key)
        value = stored[0].get("value") if stored else None
        if not isinstance(value, bytes):
            raise damaged_settings("key")
        self.store_key = value

    def marks(self, thread_id: str) -> Marks:
        """Return the digests under which the store knows a thread id."""
        return Marks(self.store_key, thread_id)

    def name_of(self, thread_id: str) -> Document:
        """Return a filter for the document that says what a thread id means."""
        name = f"name:{self.marks(thread_id).of_id.hex()}"
        return {"_id": name, "family": name}

    @property
    def name(self) -> str:
        return self._collection.name

    @property
    def database(self) -> str:
        return self._collection.database.name

    def aggregate(self, pipeline: Sequence[Document]) -> list[Document]:
        return self.retrying(lambda: self._aggregate(self._collection, pipeline))

    def aggregate_latest(self, pipeline: Sequence[Document]) -> list[Document]:
        """Return what `aggregate` does, of the newest data that the primary has."""
        return self.retrying(lambda: self._aggregate(self._latest, pipeline))

    def _aggregate(
        self, collection: Collection[Document], pipeline: Sequence[Document]
    ) -> list[Document]:
        return collection.aggregate(
            pipeline, batchSize=_AT_ONCE, **self.identity.uuid_option
        ).to_list()

    def aggregate_if_it_fits(self, pipeline: Sequence[Document]) -> list[Document] | None:
        """Return what `aggregate` does, or None if it is more than the server can hold."""

        def aggregate() -> list[Document] | None:
            try:
                return self._aggregate(self._collection, pipeline)
            except OperationFailure as error:
                if error.code not in _TOO_MUCH:
                    raise
                return None

        return self.retrying(aggregate)

    def find(
        self,
        match: Document,
        fields: Mapping[str, int] | None = None,
        sort: Sequence[tuple[str, int]] | None = None,
        limit: int = 0,
    ) -> list[Document]:
        """Return documents of a majority, which no failover undoes."""
        return self._find(self._collection, match, fields, sort=sort, limit=limit)

    def latest(
        self,
        match: Document,
        fields: Mapping[str, int] | None = None,
        sort: Sequence[tuple[str, int]] | None = None,
        limit: int = 0,
    ) -> list[Document]:
        """Return the newest documents that the primary has, which a failover may undo."""
        return self._find(self._latest, match, fields, sort=sort, limit=limit)

    def _find(
        self, collection: Collection[Document], *query: Any, **options: Any
    ) -> list[Document]:
        return self.retrying(
            lambda: collection.find(*query, **options, batch_size=_AT_ONCE).to_list()
        )

    def look_at_cluster(self) -> None:
        """Find out what kind of server it is that answered."""
        client = self._collection.database.client
        is_balanced = client.topology_description.topology_type_name == "LoadBalanced"
        self.is_sharded = self.retrying(lambda: client.is_mongos) or is_balanced

    def create_indexes(self, indexes: Sequence[IndexModel]) -> None:
        self.retrying(lambda: self._collection.create_indexes(indexes))

    def lacks_indexes(self, indexes: Iterable[IndexModel]) -> bool:
        """Return whether an index is missing, as far as the user has the right to know."""

        def names() -> Set[str]:
            try:
                return self._collection.index_information().keys()
            except OperationFailure as error:
                if error.code != UNAUTHORIZED:
                    raise
                return {index.document["name"] for index in indexes}

        known = self.retrying(names)
        return any(index.document["name"] not in known for index in indexes)

    def look_for_index(self, name: str, match: Document) -> None:
        """Find out if there is the index that logs need: it may have been lost by a restore.

        By its use, for which a user needs no more rights than to read.
        """
        find = self._collection.find

        def is_there() -> bool:
            try:
                find(match, hint=name, limit=1).to_list()
            except OperationFailure as error:
                if error.code not in _NO_SUCH_INDEX:
                    raise
                return False
            return True

        self.keeps_logs = not self.is_sharded and self.retrying(is_there)

    def find_and_update(self, match: Document, change: Sequence[Document]) -> Document | None:
        """Change a document, and return its new version, or None if no document matches."""
        update = self._collection.find_one_and_update
        return self.retrying(lambda: update(match, change, return_document=ReturnDocument.AFTER))

    def distinct(self, field: str, match: Document) -> list[Any]:
        """Return the distinct values of a field, by a command of MongoDB's Stable API."""
        group: Document = {"$group": {"_id": f"${field}"}}
        return [group["_id"] for group in self.aggregate([{"$match": match}, group])]

    def now(self) -> int:
        """Return the server's time, in microseconds since 1970."""
        hello = self.retrying(lambda: self._collection.database.command("hello"))
        return int(hello["localTime"].replace(tzinfo=timezone.utc).timestamp() * 1_000_000)

    def exists(self, match: Document) -> bool:
        """Return whether the primary has a document that matches."""
        return self.retrying(lambda: self._latest.find_one(match, {"_id": 1}) is not None)

    def count(self, match: Document) -> int:
        return self.retrying(lambda: self._latest.count_documents(match))

    def update(self, match: Document, change: Document | Sequence[Document]) -> bool:
        """Change a document, and return whether one matches."""
        update = self._collection.update_one
        return self.retrying(lambda: update(match, change).matched_count == 1)

    def update_all(self, match: Document, change: Document | Sequence[Document]) -> None:
        self.retrying(lambda: self._collection.update_many(match, change))

    def delete(self, match: Document) -> None:
        self.retrying(lambda: self._collection.delete_many(match))

    def insert(self, document: Document) -> bool:
        """Insert a document, unless there is one of its `_id`, and return whether there was none.

        If it had to be tried again, the one that there is may be this one.
        """

        def insert() -> bool:
            try:
                self._collection.insert_one(document)
            except DuplicateKeyError:
                return False
            return True

        return self.retrying(insert)

    def insert_once(self, documents: Sequence[Document]) -> Outcome:
        """Insert documents in order, up to the first that collides or fails, in one attempt.

        As a plain command, of 16 MB at most: the server need not be able to repeat it.
        """

        def attempt() -> Outcome:
            reply = self._command({"insert": self.name, "documents": documents})
            made = range(reply["n"])
            if "writeErrors" in reply:
                return self._failed(reply["writeErrors"][0], len(made), set(made))
            return Outcome(len(made), set(made))

        return self._once(attempt)

    def _command(self, command: Document) -> Document:
        """Send a command of 16 MB at most, which the server refuses if the store is another one."""
        command["writeConcern"] = self._collection.write_concern.document
        reply: Document = self._collection.database.command(
            {**command, **self.identity.uuid_option}
        )
        if "writeConcernError" in reply:
            unsure = reply["writeConcernError"]
            raise WriteConcernError(unsure["errmsg"], unsure["code"], unsure)
        return reply

    def _once(self, command: Callable[[], Outcome]) -> Outcome:
        try:
            return command()
        except (PyMongoError, InvalidDocument) as error:
            if is_transient(error):
                return Outcome(0, set(), is_lost=True)
            raise typed_error(error) from error

    def insert_free(self, documents: Sequence[Document]) -> Set[int]:
        """Insert the documents that collide with no other, and return the indexes of the rest."""
        if not documents:
            return frozenset()
        insert = self._collection.insert_many

        def attempt() -> Set[int]:
            try:
                insert(documents, ordered=False)
            except BulkWriteError as bulk:
                errors = _confirmed_details(bulk)["writeErrors"]
                for error in errors:
                    if error["code"] != _DUPLICATE_KEY:
                        raise OperationFailure(error["errmsg"], error["code"], error) from bulk
                return {error["index"] for error in errors}
            return frozenset()

        return self.retrying(attempt)

    def merge(self, pipeline: Sequence[Document]) -> bool:
        """Execute a pipeline that ends by `$merge`, and return whether it came to its end.

        It does not if a document collides with another one.
        """

        def merge() -> bool:
            try:
                self._latest.aggregate(pipeline)
            except OperationFailure as error:
                if error.code != _DUPLICATE_KEY:
                    raise
                return False
            return True

        return self.retrying(merge)

    def bulk(
        self, statements: Sequence[Statement], *, once: bool = False, is_small: bool = False
    ) -> Outcome:
        """Execute statements in order, up to the first that collides or fails.

        Args:
            statements: They are to mean the same if they are executed again, if they may be.
            once: Whether to make one attempt only.
            is_small: Whether they fit into one command of 16 MB. Then nothing is done if the store
                is another one.
        """
        if once:
            return self._once(lambda: self._bulk(statements, is_small))
        attempts = 0

        def attempt() -> Outcome:
            nonlocal attempts
            attempts += 1
            return self._bulk(statements, is_small)

        return self.retrying(attempt)._replace(is_repeated=attempts > 1)

    def change(self, statements: Sequence[Statement]) -> Outcome:
        """Execute statements as `bulk` does.

        Raises:
            ForkpointError: One of them failed, and did not merely collide. Those before it have had
                their effect.
        """
        outcome = self.bulk(statements)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def _bulk(self, statements: Sequence[Statement], is_small: bool) -> Outcome:
        if is_small:
            updates = [statement.document for statement in statements]
            reply = self._command({"update": self.name, "updates": updates})
            indexes = {upserted["index"] for upserted in reply.get("upserted", ())}
            if "writeErrors" in reply:
                return self._failed(reply["writeErrors"][0], reply["n"], indexes)
            return Outcome(reply["n"], indexes)
        try:
            result = self._collection.bulk_write([statement.operation for statement in statements])
        except BulkWriteError as bulk:
            details = _confirmed_details(bulk)
            hits = details["nMatched"] + details["nUpserted"]
            made: Set[int] = {upserted["index"] for upserted in details["upserted"]}
            return self._failed(details["writeErrors"][0], hits, made)
        made = (result.upserted_ids or {}).keys()
        return Outcome(result.matched_count + len(made), made)

    def _failed(self, failed: Document, hits: int, made: Set[int]) -> Outcome:
        """Return the outcome of a bulk of which the server reports that a statement failed.

        Raises:
            OperationFailure: It may help to try again.
        """
        if failed["code"] in _COLLIDED:
            is_taken = "slot" in failed.get("keyPattern", ())
            return Outcome(hits, made, failed["index"], is_taken=is_taken)
        if failed["code"] == UUID_DIFFERS:
            self.identity.lose()
        error = OperationFailure(failed["errmsg"], failed["code"], failed)
        if is_transient(error):
            raise error
        return Outcome(hits, made, failed["index"], typed_error(error))

    def is_same_store(self, *, was_named: bool) -> bool:
        """Return whether the store is still the same, and no restored or other one.

        Args:
            was_told: Whether the command before named the store, so that there is no need to ask.
        """
        if not was_named:
            self.retrying(self.identity.ask)
        return self.identity.is_same_store

    def retrying(self, command: Callable[[], _T]) -> _T:
        """Call a command until it succeeds, for as long as its error is transient.

        Raises:
            Rewound: It names the store, which is another one by now.
        """
        until = time.monotonic() + self._patience_seconds
        pause = 0.01
        while True:
            try:
                return command()
            except (PyMongoError, InvalidDocument) as error:
                if isinstance(error, OperationFailure) and error.code == UUID_DIFFERS:
                    self.identity.lose()
                    raise HistoryChanged from error
                if not is_transient(error) or time.monotonic() + pause > until:
                    raise typed_error(error) from error
            except RuntimeError as error:  # the driver has threads that watch the servers
                raise not_started(error) from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)


_AT_ONCE = 1_000_000  # documents in one answer, as far as they fit into 16 MB; else it is 101
_DUPLICATE_KEY = 11000
_COLLIDED = {
    _DUPLICATE_KEY,
    66,  # ImmutableField: what a statement expects is not so; see `statements.expect`
}
_TOO_MUCH = {
    40099,  # $graphLookup reached its limit of 100 MB
    292,  # QueryExceededMemoryLimitNoDiskUseAllowed
    10334,  # BSONObjectTooLarge
    4568,  # $lookup's documents exceed the size of one
}
_NO_SUCH_INDEX = {2}  # BadValue: the hint does not correspond to an index


def _confirmed_details(bulk: BulkWriteError) -> Document:
    """Return the details of a bulk's result, if a majority confirmed what was written."""
    details: Any = bulk.details
    for concern in details["writeConcernErrors"]:
        raise WriteConcernError(concern["errmsg"], concern["code"], concern) from bulk
    return dict(details)
