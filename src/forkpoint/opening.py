"""Opening the store that a text names: a path, `sqlite:///path`, or a MongoDB connection string."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

import forkpoint
from forkpoint.encoding.encryption import key_ring
from forkpoint.encoding.serializer import SafeSerializer
from forkpoint.errors import InvalidInput
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.untrusted import location

STORE_VARIABLE = "FORKPOINT_STORE"
"""The environment variable that names a store."""
KEY_VARIABLE = "LANGGRAPH_AES_KEY"
"""The environment variable that has the key of an encrypted store, as LangGraph has it."""
OLD_KEY_VARIABLE = "FORKPOINT_OLD_AES_KEY"
"""The environment variable that has another key, which only reads."""
NO_KEY = "none"
"""What one of these has while a store is encrypted for the first time, or stored without it."""

_MONGODB = ("mongodb://", "mongodb+srv://")
_SQLITE = "sqlite:///"


class Address(NamedTuple):
    """Where a store is."""

    place: str
    """The path of a file, or the name of a database."""
    is_on_server: bool
    """Whether it is a database of a MongoDB server."""


def address_of(store: str) -> Address:
    """Return where a store is that a text names; see `open_store`.

    Raises:
        InvalidInput: It names no store.
    """
    if store.startswith(_MONGODB):
        database = store.partition("://")[2].partition("?")[0].partition("/")[2].strip("/")
        if not database:
            raise InvalidInput("the connection string names no database: mongodb://host/DATABASE")
        return Address(database, True)
    path = store.removeprefix(_SQLITE)
    if "://" in path or path.startswith("file:"):
        raise no_store(store)
    return Address(path, False)


def no_store(store: str) -> InvalidInput:
    """Return the error of a text that names no store."""
    return InvalidInput(
        f"the store {location(store)} is no path, sqlite:///path or mongodb://host/database"
    )


def mongodb_saver_type() -> type[forkpoint.MongoDBSaver]:
    """Return the saver for MongoDB.

    Raises:
        InvalidInput: Its driver is not installed.
    """
    try:
        return forkpoint.MongoDBSaver
    except ImportError as error:
        raise InvalidInput(str(error)) from error


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
    place, is_on_server = address_of(store)
    if is_on_server:
        saver_type = mongodb_saver_type()
        return saver_type.from_conn_string(store, place, serde=serde, **options)
    if not place:
        raise no_store(store)
    return forkpoint.SqliteSaver(place, serde=serde, **options)


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

    With `FORKPOINT_OLD_AES_KEY` it also reads what was encrypted with that key. Either of them, if
    the other one is a key, may be `none`: without encryption.

    Raises:
        InvalidInput: It is no key, or pycryptodome is not installed.
    """
    serde = _serializer_with(KEY_VARIABLE)
    old = _serializer_with(OLD_KEY_VARIABLE)
    if isinstance(serde, SafeSerializer) and old is None:
        raise InvalidInput(
            f"{KEY_VARIABLE} is {NO_KEY!r}: then {OLD_KEY_VARIABLE} must have the key of the store"
        )
    if serde is not None and old is not None:
        return key_ring(serde, old)
    return serde if isinstance(serde, EncryptedSerializer) else None


def _serializer_with(variable: str) -> EncryptedSerializer | SafeSerializer | None:
    key = os.environ.get(variable)
    if not key:
        return None
    if key == NO_KEY:
        return SafeSerializer()
    try:
        serde = EncryptedSerializer.from_pycryptodome_aes(SafeSerializer(), key=key.encode())
        serde.dumps_typed(None)  # a key of the wrong length is refused only now
    except ImportError as error:
        raise InvalidInput(f"an encrypted store needs pycryptodome: {error}") from error
    except ValueError as error:
        raise InvalidInput(f"{variable} is no key: {error}") from error
    return serde
