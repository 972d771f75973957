"""MongoDB: the saver, and every way to give it a database."""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from forkpoint import inputs
from forkpoint.errors import InvalidInput
from forkpoint.mongodb_storage import MongoStorage
from forkpoint.runner import WorkerRunner
from forkpoint.saver import ForkpointSaver

_WORKERS = 64  # most of the time they wait for the server, or to be taken along


class MongoDBSaver(ForkpointSaver):
    """Keep LangGraph checkpoints in MongoDB, 5.0 or later.

    One object serves `invoke` and `ainvoke`, from any thread and any event loop. It works under
    `with`, under `async with`, and plain, with `close` or `aclose` at the end.

    What was acknowledged is in the journal of a majority of the replica set, and survives the loss
    of its primary, whatever the client's own concerns and read preference say. On a standalone
    server it is in the server's journal. Nothing needs transactions.

    Args:
        client: A `pymongo.MongoClient`, or a `motor.motor_asyncio.AsyncIOMotorClient`, whose pool
            of connections then serves sync calls too. It stays the caller's to close.
        db_name: The database. Everything is in its collection `forkpoint_store`, made on first
            use with its indexes.
        serde: The serializer. By default `SafeSerializer`, which imports and calls nothing that
            a stored row names, data classes of modules that are already imported aside.

    Raises:
        InvalidInput: `client` is neither of these, or `db_name` cannot be a database's name.
    """

    def __init__(
        self,
        client: Any,
        db_name: str = "forkpoint",
        *,
        serde: SerializerProtocol | None = None,
    ) -> None:
        passed = _pymongo_client(client)
        self._keep_in(MongoStorage(lambda: passed, _checked(db_name), owned=False), serde)

    def _keep_in(self, storage: MongoStorage, serde: SerializerProtocol | None) -> None:
        super().__init__(storage, WorkerRunner(_WORKERS), serde)

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        db_name: str = "forkpoint",
        *,
        serde: SerializerProtocol | None = None,
        **client_options: Any,
    ) -> MongoDBSaver:
        """Return a saver with a client of its own, which `close` closes.

        Args:
            conn_string: A `mongodb://` or `mongodb+srv://` URI.
            db_name: As above.
            serde: As above.
            client_options: Passed to `pymongo.MongoClient`, such as `serverSelectionTimeoutMS`.
        """
        if not isinstance(conn_string, str):
            raise InvalidInput(f"conn_string must be a string, not {type(conn_string).__name__}")

        def connect() -> MongoClient[dict[str, Any]]:
            return MongoClient(conn_string, **{"connect": False, **client_options})

        try:
            connect().close()  # it has not connected yet
        except (PyMongoError, ValueError, TypeError) as error:
            raise InvalidInput(f"no MongoDB client can be made of this: {error}") from error
        saver = cls.__new__(cls)
        saver._keep_in(MongoStorage(connect, _checked(db_name), owned=True), serde)
        return saver


def _pymongo_client(client: object) -> MongoClient[dict[str, Any]]:
    """Return the PyMongo client that a client is, or that Motor wraps."""
    if isinstance(client, MongoClient):
        return client
    kind = type(client)
    wrapped = getattr(client, "delegate", None)
    if kind.__module__.startswith("motor.") and isinstance(wrapped, MongoClient):
        return wrapped
    if kind.__name__ == "AsyncMongoClient":
        raise InvalidInput(
            "an AsyncMongoClient serves async calls in one event loop only; pass a "
            "pymongo.MongoClient (its pool serves sync and async calls alike), or the connection "
            "string to MongoDBSaver.from_conn_string"
        )
    raise InvalidInput(
        "client must be a pymongo.MongoClient or a motor.motor_asyncio.AsyncIOMotorClient, not "
        f"{kind.__name__}"
    )


def _checked(db_name: object) -> str:
    name = inputs.identifier(db_name, "db_name")
    if len(name.encode()) > _NAME_BYTES:
        raise InvalidInput(f"db_name has more than {_NAME_BYTES} bytes: {name!r:.80}")
    if any(character in '/\\. "$*<>:|?' for character in name):
        raise InvalidInput(f"{name!r:.80} cannot be the name of a MongoDB database")
    return name


_NAME_BYTES = 63
