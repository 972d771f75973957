"""Opening the store that a text names: a path, `sqlite:///path`, or a MongoDB connection string."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

import forkpoint
from forkpoint.encoding.encryption import key_ring
from forkpoint.encoding.serializer import SafeSerializer
from forkpoint.errors import InvalidInput
from forkpoint.saver.saver import ForkpointSaver

STORE_VARIABLE = "FORKPOINT_STORE"
"""The environment variable that names a store."""
KEY_VARIABLE = "LANGGRAPH_AES_KEY"
"""The environment variable that has the key of an encrypted store, as LangGraph has it."""
OLD_KEY_VARIABLE = "FORKPOINT_OLD_AES_KEY"
"""The environment variable that has another key, which only reads."""

_MONGODB = ("mongodb://", "mongodb+srv://")
_SQLITE = "sqlite:///"


def open_store(
    store: str, *, serde: SerializerProtocol | None = None, **options: Any
) -> ForkpointSaver:
    """Return a saver for a store.

    Args:
        store: A path, `sqlite:///path`, or a connection string that names a database,
            `mongodb://host/database`.
        serde: The serializer; by default, the saver's own.
        options: More for `SqliteSaver`, or for `MongoDBSaver.from_conn_string`.

    Raises:
        InvalidInput: It names no store, or the MongoDB driver is not installed.
    """
    if store.startswith(_MONGODB):
        database = urlsplit(store).path.strip("/")
        if not database:
            raise InvalidInput("the connection string names no database: mongodb://host/DATABASE")
        try:
            saver_type = forkpoint.MongoDBSaver
        except ImportError as error:
            raise InvalidInput(str(error)) from error
        return saver_type.from_conn_string(store, database, serde=serde, **options)
    path = store.removeprefix(_SQLITE)
    if not path or "://" in path or path.startswith("file:"):
        raise InvalidInput(f"the store {store!r} is no path, sqlite:///path or mongodb://host/db")
    return forkpoint.SqliteSaver(path, serde=serde, **options)


def store_of_environment(store: str | None = None) -> ForkpointSaver:
    """Return a saver for the store that the environment names.

    `FORKPOINT_STORE` is the store. With `LANGGRAPH_AES_KEY`, it is encrypted with that key, and
    read with `FORKPOINT_OLD_AES_KEY` as well.

    Args:
        store: The store, whatever the environment names.

    Raises:
        InvalidInput: No store is named, or the key is none.
    """
    if store is None:
        store = os.environ.get(STORE_VARIABLE)
    if not store:
        raise InvalidInput(f"which store? Set the environment variable {STORE_VARIABLE}")
    return open_store(store, serde=serializer_of_environment())


def serializer_of_environment() -> EncryptedSerializer | None:
    """Return the serializer that encrypts with the environment's key, if it has one.

    With `FORKPOINT_OLD_AES_KEY` it also reads what was encrypted with that key.

    Raises:
        InvalidInput: It is no key, or pycryptodome is not installed.
    """
    serde = _serializer_with(KEY_VARIABLE)
    old = _serializer_with(OLD_KEY_VARIABLE)
    return serde if serde is None or old is None else key_ring(serde, old)


def _serializer_with(variable: str) -> EncryptedSerializer | None:
    key = os.environ.get(variable)
    if not key:
        return None
    try:
        serde = EncryptedSerializer.from_pycryptodome_aes(SafeSerializer(), key=key.encode())
        serde.dumps_typed(None)  # a key of the wrong length is refused only now
    except ImportError as error:
        raise InvalidInput(f"an encrypted store needs pycryptodome: {error}") from error
    except ValueError as error:
        raise InvalidInput(f"{variable} is no key: {error}") from error
    return serde
