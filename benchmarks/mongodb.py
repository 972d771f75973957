"""MongoDB: each saver has a database of its own on one server, and a client of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from langgraph.checkpoint.mongodb import MongoDBSaver
from pymongo import MongoClient
from pymongo.database import Database

import forkpoint
from benchmarks.bars import AtLeast, AtMost, Bars
from benchmarks.savers import Backend, Contender, Opened, Saver


@asynccontextmanager
async def _official(uri: str, _: Path) -> AsyncIterator[Opened]:
    with _new_database(uri) as database:
        yield _measured(MongoDBSaver(database.client, database.name), database)


@asynccontextmanager
async def _ours(uri: str, _: Path) -> AsyncIterator[Opened]:
    with _new_database(uri) as database:
        async with forkpoint.MongoDBSaver(database.client, database.name) as saver:
            yield _measured(saver, database)


@contextmanager
def _new_database(uri: str) -> Iterator[Database[Any]]:
    # What forkpoint asks for whatever its client says, so that the official saver does too.
    with MongoClient[Any](uri, w="majority", journal=True) as client:
        database = client[f"benchmark-{uuid4().hex}"]
        try:
            yield database
        finally:
            client.drop_database(database)


def _measured(saver: Saver, database: Database[Any]) -> Opened:
    return Opened(saver, partial(_data_bytes, database), partial(_file_bytes, database))


def _data_bytes(database: Database[Any]) -> int:
    return int(database.command("dbStats")["dataSize"])


def _file_bytes(database: Database[Any]) -> int:
    """Return what the files of collections and indexes take once all data are in them."""
    database.client.admin.command("fsync")
    return int(database.command("dbStats")["totalSize"])


def mongodb(uri: str) -> Backend:
    """Return the backend on the server with this URI."""
    official, ours = partial(_official, uri), partial(_ours, uri)
    with MongoClient[Any](uri) as client:
        server_version = str(client.server_info()["version"])
        members = len(client.admin.command("hello").get("hosts", [uri]))
    is_alone = members == 1
    return Backend(
        name="mongodb" if is_alone else f"mongodb-{members}",
        title="MongoDB" if is_alone else f"MongoDB, {members} members",
        stored="documents, uncompressed",
        official=Contender("MongoDBSaver", official),
        official_async=Contender("MongoDBSaver, async", official, is_async=True),
        ours=Contender("forkpoint", ours),
        ours_async=Contender("forkpoint, async", ours, is_async=True),
        ours_in_haste=Contender("forkpoint", ours),
        bars=Bars(
            chat_stored=AtMost(1 / 40),
            chat_time=AtMost(0.65),
            alone_time=AtMost(1.1),
            together_rate=AtLeast(1.3),
        ),
        versions={
            "MongoDB": server_version,
            "pymongo": version("pymongo"),
            "langgraph-checkpoint-mongodb": version("langgraph-checkpoint-mongodb"),
        },
    )
