"""The official savers, each with a database of its own, as threads are imported from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver

Opened = tuple[Any, Any]
"""A saver, and what names its threads as a source."""


@contextlib.contextmanager
def official(kind: str, directory: Path, server: Callable[[str], Any]) -> Iterator[Opened]:
    """Open an official saver.

    Args:
        kind: The kind of source that it is.
        directory: Where to put a file.
        server: Returns a server by the name of a fixture.
    """
    if kind == "langgraph-sqlite":
        path = str(directory / "official.db")
        with SqliteSaver.from_conn_string(path) as saver:
            yield saver, path
    elif kind == "langgraph-mongodb":
        uri, name = server("mongo_server").uri, f"official-{uuid4().hex}"
        host, _, options = uri.removeprefix("mongodb://").partition("/")
        with MongoDBSaver.from_conn_string(uri, name) as saver:
            yield saver, f"mongodb://{host}/{name}{options}"
            saver.client.drop_database(name)
    elif kind == "langgraph-postgres":
        name = f"official{uuid4().hex}"
        with psycopg.connect(server("postgres_server").uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        uri = server("postgres_server").uri(name)
        with PostgresSaver.from_conn_string(uri) as saver:
            saver.setup()
            yield saver, uri
    else:
        saver = InMemorySaver()
        yield saver, saver
