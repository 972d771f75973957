"""MongoDB: the saver, and every way to give it a database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError

from forkpoint import inputs
from forkpoint.caches import CACHE_BYTES, CacheBudget
from forkpoint.encoding.serializer import serializer_of
from forkpoint.encoding.type_codecs import Alias, TypeCodec
from forkpoint.errors import InvalidInput
from forkpoint.mongodb.errors import typed_error
from forkpoint.mongodb.storage import SETTINGS, MongoStorage
from forkpoint.results import OnExpiry
from forkpoint.runtime.runner import WorkerRunner
from forkpoint.runtime.workers import workers_of
from forkpoint.saver.arguments import expiry
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.tombstones import TOMBSTONE_TTL
from forkpoint.untrusted import message

DATABASE, COLLECTION = "forkpoint", "forkpoint_store"
"""The defaults."""

_WORKERS = 64  # at most: most of the time they wait for the server, or to be taken along


class MongoDBSaver(ForkpointSaver):
    """Keep LangGraph checkpoints in MongoDB, 5.0 or later.

    One object serves `invoke` and `ainvoke`, from any thread and any event loop. It works under
    `with`, under `async with`, and plain, with `close` or `aclose` at the end.

    What was acknowledged is in the journal of a majority of the replica set, and survives the loss
    of its primary, whatever the client's own concerns and read preference say. On a standalone
    server it is in the server's journal. Nothing needs transactions.

    Args:
        client: A `pymongo.MongoClient`; a `motor.motor_asyncio.AsyncIOMotorClient`, whose pool of
            connections then serves sync calls too; or a `pymongo.AsyncMongoClient`. Such a client
            serves one event loop only, so the saver makes a `MongoClient` of the same options
            beside it, with a pool of its own, which `close` closes. What was passed stays the
            caller's to close.
        db_name: The database. By default that of the client's connection string, unless it names
            none, or one of the server's own (`admin`, `config`, `local`); then `forkpoint`.
        collection: The collection that has everything, made on first use with its indexes.
        serde: The serializer. By default `SafeSerializer`, which imports and calls nothing that
            a stored row names, and restores what it knows to be data.
        types: How types are stored that forkpoint does not know (`TypeCodec`), and which types the
            names in the store mean now: `{("old.module", "Old"): New}`, or with `(New, function)` a
            function from the stored fields to the new ones. Only without `serde`, which may be a
            `SafeSerializer(types=...)`.
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
        InvalidInput: `client` is none of these, or `db_name` or `collection` cannot be a name.
    """

    def __init__(
        self,
        client: Any,
        db_name: str | None = None,
        *,
        collection: str = COLLECTION,
        serde: SerializerProtocol | None = None,
        types: Iterable[TypeCodec | Alias] = (),
        ttl: timedelta | None = None,
        on_expiry: OnExpiry = "delete",
        preview: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        tombstone_ttl: timedelta = TOMBSTONE_TTL,
    ) -> None:
        known: MongoClient[Any] | AsyncMongoClient[Any]
        if isinstance(client, _OwnClient):
            connect, owned, known = client.connect, True, client.example
        elif isinstance(client, AsyncMongoClient):
            connect, owned, known = _sync_twin(client), True, client
        else:
            passed = _pymongo_client(client)
            connect, owned, known = (lambda: passed), False, passed
        default = _default_database(known)
        names = _database_name(default if db_name is None else db_name), _collection(collection)
        self._store_name = repr(".".join(names))
        budget = CacheBudget(inputs.size(cache_bytes, "cache_bytes"))
        late = inputs.duration(tombstone_ttl, "tombstone_ttl")
        storage = MongoStorage(connect, *names, owned=owned, budget=budget, tombstone_ttl=late)
        runner = WorkerRunner(workers_of(client, _limit(known)), storage)
        serializer, expires = serializer_of(serde, types), expiry(ttl, on_expiry)
        super().__init__(
            storage, runner, serializer, expiry=expires, budget=budget, preview=preview
        )

    _database_system = "mongodb"

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        db_name: str | None = None,
        *,
        collection: str = COLLECTION,
        serde: SerializerProtocol | None = None,
        types: Iterable[TypeCodec | Alias] = (),
        ttl: timedelta | None = None,
        on_expiry: OnExpiry = "delete",
        preview: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        tombstone_ttl: timedelta = TOMBSTONE_TTL,
        **client_options: Any,
    ) -> MongoDBSaver:
        """Return a saver with a client of its own, which `close` closes.

        Args:
            conn_string: A `mongodb://` or `mongodb+srv://` URI.
            db_name: As above.
            collection: As above.
            serde: As above.
            types: As above.
            ttl: As above.
            on_expiry: As above.
            preview: As above.
            cache_bytes: As above.
            tombstone_ttl: As above.
            client_options: Passed to `pymongo.MongoClient`, such as `serverSelectionTimeoutMS`.
        """
        if not isinstance(conn_string, str):
            raise InvalidInput(f"conn_string must be a string, not {type(conn_string).__name__}")
        return cls(
            _OwnClient(conn_string, client_options),
            db_name,
            collection=collection,
            serde=serde,
            types=types,
            ttl=ttl,
            on_expiry=on_expiry,
            preview=preview,
            cache_bytes=cache_bytes,
            tombstone_ttl=tombstone_ttl,
        )

    @staticmethod
    def exists(
        conn_string: str,
        db_name: str | None = None,
        *,
        collection: str = COLLECTION,
        **client_options: Any,
    ) -> bool:
        """Return whether a collection has checkpoints of forkpoint. Makes nothing.

        Args:
            conn_string: As in `from_conn_string`.
            db_name: As above.
            collection: As above.
            client_options: As in `from_conn_string`.

        Raises:
            InvalidInput: No client can be made of this.
            StorageError: The server cannot be asked.
        """
        with _OwnClient(conn_string, client_options).connect() as client:
            name = _database_name(_default_database(client) if db_name is None else db_name)
            try:
                settings = client[name][_collection(collection)].find_one({"_id": SETTINGS})
            except PyMongoError as error:
                raise typed_error(error) from error
        return settings is not None


class _OwnClient:
    """A client that a saver makes itself.

    Args:
        conn_string: Its URI.
        options: Its options.

    Attributes:
        connect: Makes it.
        example: One like it, which is closed, and has never connected.

    Raises:
        InvalidInput: No client can be made of this.
    """

    def __init__(self, conn_string: str, options: Mapping[str, Any]) -> None:
        self.connect: Callable[[], MongoClient[dict[str, Any]]] = lambda: MongoClient(
            conn_string, **{"connect": False, **options}
        )
        try:
            self.example = self.connect()
            _default_database(self.example)
        except Exception as error:
            raise InvalidInput(
                f"no MongoDB client can be made of this: {message(error)}"
            ) from error
        self.example.close()


def _sync_twin(client: AsyncMongoClient[Any]) -> Callable[[], MongoClient[dict[str, Any]]]:
    """Return what makes a client for all threads of the options that an async one has."""
    # PyMongo has no public way to them.
    options: dict[str, Any] = {**client._init_kwargs, "document_class": dict, "connect": False}
    return lambda: MongoClient(**options)


def _limit(client: MongoClient[Any] | AsyncMongoClient[Any]) -> int:
    """Return how many worker threads serve a client. More than its connections would only wait."""
    connections = client.options.pool_options.max_pool_size or _WORKERS  # 0: no limit
    return min(_WORKERS, int(connections))


def _default_database(client: MongoClient[Any] | AsyncMongoClient[Any]) -> str:
    named: str = client.get_default_database(DATABASE).name
    return DATABASE if named in _DATABASES_OF_SERVERS else named


def _pymongo_client(client: object) -> MongoClient[dict[str, Any]]:
    """Return the PyMongo client that a client is, or that Motor wraps."""
    if isinstance(client, MongoClient):
        return client
    kind = type(client)
    wrapped = getattr(client, "delegate", None)
    if kind.__module__.startswith("motor.") and isinstance(wrapped, MongoClient):
        return wrapped
    advice = "; from_conn_string takes a connection string" if isinstance(client, str) else ""
    raise InvalidInput(
        "client must be a pymongo.MongoClient, a pymongo.AsyncMongoClient or a "
        f"motor.motor_asyncio.AsyncIOMotorClient, not {kind.__name__}{advice}"
    )


def _database_name(db_name: object) -> str:
    name = inputs.identifier(db_name, "db_name")
    if len(name.encode()) > _NAME_BYTES:
        raise InvalidInput(f"db_name has more than {_NAME_BYTES} bytes: {name!r:.80}")
    if any(character in '/\\. "$*<>:|?' for character in name):
        raise InvalidInput(f"{name!r:.80} cannot be the name of a MongoDB database")
    if name in _DATABASES_OF_SERVERS:
        raise InvalidInput(f"the database {name!r} is the server's own; give db_name another one")
    return name


def _collection(value: object) -> str:
    name = inputs.identifier(value, "collection")
    if len(name.encode()) > _COLLECTION_BYTES:
        raise InvalidInput(f"collection has more than {_COLLECTION_BYTES} bytes: {name!r:.80}")
    if "$" in name or ".." in name or name.startswith((".", "system.")) or name.endswith("."):
        raise InvalidInput(f"{name!r:.80} cannot be the name of a MongoDB collection")
    return name


_DATABASES_OF_SERVERS = ("admin", "config", "local")
_NAME_BYTES = 63
_COLLECTION_BYTES = 180  # with the database's name and a dot, 255
