"""SQLite: each saver has a file of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import aiosqlite
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

import forkpoint
from benchmarks.bars import AtLeast, AtMost, Bars
from benchmarks.savers import Backend, Contender, Opened, Saver

# What SQLite does by default; a build of it may have another default.
_FULL = "PRAGMA synchronous = FULL"


@asynccontextmanager
async def _official(path: Path) -> AsyncIterator[Opened]:
    with _removed(path), closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        connection.execute(_FULL)
        yield _measured(SqliteSaver(connection), path)


@asynccontextmanager
async def _official_async(path: Path) -> AsyncIterator[Opened]:
    with _removed(path):
        async with aiosqlite.connect(path) as connection:
            await connection.execute(_FULL)
            yield _measured(AsyncSqliteSaver(connection), path)


@asynccontextmanager
async def _ours(
    path: Path, durability: Literal["full", "normal"] = "full"
) -> AsyncIterator[Opened]:
    with _removed(path):
        async with forkpoint.SqliteSaver(path, durability=durability) as saver:
            yield _measured(saver, path)


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _measured(saver: Saver, path: Path) -> Opened:
    return Opened(saver, partial(_file_bytes, path))


def _file_bytes(path: Path) -> int:
    """Return how large the database file is once the WAL is in it."""
    with closing(sqlite3.connect(path)) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages * page_bytes)


SQLITE = Backend(
    name="sqlite",
    title="SQLite",
    stored="database file",
    official=Contender("SqliteSaver", _official),
    official_async=Contender("AsyncSqliteSaver", _official_async, is_async=True),
    ours=Contender("forkpoint", _ours),
    ours_async=Contender("forkpoint, async", _ours, is_async=True),
    ours_in_haste=Contender("forkpoint", partial(_ours, durability="normal")),
    bars=Bars(
        chat_stored=AtMost(1 / 60),
        chat_time=AtMost(0.6),
        fresh_time=AtMost(1.05),
        history_time=AtMost(1),
        alone_rate=AtLeast(1.2),
        together_rate=AtLeast(1.5),
        growth=AtMost(1.3),
        overhead={("turn of a short chat, 1 at once", "processor"): AtMost(0.6)},
    ),
    versions={
        "SQLite": sqlite3.sqlite_version,
        "langgraph-checkpoint-sqlite": version("langgraph-checkpoint-sqlite"),
    },
)
