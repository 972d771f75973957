"""The savers: how each is opened, run and measured."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiosqlite
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph.state import CompiledStateGraph

import forkpoint

Saver = BaseCheckpointSaver[Any]
Graph = CompiledStateGraph[Any, Any, Any, Any]

# What SQLite does by default; a build of it may have another default.
_FULL = "PRAGMA synchronous = FULL"


@asynccontextmanager
async def _official(path: Path) -> AsyncIterator[Saver]:
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        connection.execute(_FULL)
        yield SqliteSaver(connection)


@asynccontextmanager
async def _official_async(path: Path) -> AsyncIterator[Saver]:
    async with aiosqlite.connect(path) as connection:
        await connection.execute(_FULL)
        yield AsyncSqliteSaver(connection)


@asynccontextmanager
async def _memory(_: Path) -> AsyncIterator[Saver]:
    yield InMemorySaver()


@asynccontextmanager
async def _ours(path: Path) -> AsyncIterator[Saver]:
    async with forkpoint.SqliteSaver(path, durability="full") as saver:
        yield saver


@asynccontextmanager
async def _ours_in_haste(path: Path) -> AsyncIterator[Saver]:
    async with forkpoint.SqliteSaver(path, durability="normal") as saver:
        yield saver


class Contender(NamedTuple):
    """A saver by name, how to open it, and whether graphs run on it by `ainvoke`."""

    name: str
    open: Callable[[Path], AbstractAsyncContextManager[Saver]]
    is_async: bool = False


OFFICIAL = Contender("SqliteSaver", _official)
OFFICIAL_ASYNC = Contender("AsyncSqliteSaver", _official_async, is_async=True)
MEMORY = Contender("InMemorySaver", _memory)
OURS = Contender("forkpoint", _ours)
OURS_ASYNC = Contender("forkpoint, async", _ours, is_async=True)

CONTENDERS = (OFFICIAL, OFFICIAL_ASYNC, MEMORY, OURS, OURS_ASYNC)

OURS_IN_HASTE = Contender(OURS.name, _ours_in_haste)
"""For what counts bytes only: it stores the same without waiting for the disk."""


class Subject(NamedTuple):
    """A contender's saver on a database of its own."""

    contender: Contender
    saver: Saver
    path: Path

    @property
    def name(self) -> str:
        return self.contender.name

    async def turn(self, graph: Graph, config: RunnableConfig, given: Any) -> float:
        """Run a graph once, and return the seconds it took."""
        start = time.perf_counter()
        if self.contender.is_async:
            await graph.ainvoke(given, config)
        else:
            graph.invoke(given, config)
        return time.perf_counter() - start

    async def page(self, config: RunnableConfig, limit: int) -> float:
        """List the newest checkpoints, as `get_state_history` does, and return the seconds."""
        start = time.perf_counter()
        if self.contender.is_async:
            found = [one async for one in self.saver.alist(config, limit=limit)]
        else:
            found = list(self.saver.list(config, limit=limit))
        seconds = time.perf_counter() - start
        if len(found) != limit:
            raise RuntimeError(f"{self.name} lists {len(found)} checkpoints instead of {limit}")
        return seconds

    def stored_bytes(self) -> int | None:
        """Return how large the database file is once the WAL is in it; None without a file."""
        if not self.path.exists():
            return None
        with closing(sqlite3.connect(self.path)) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        return int(pages * page_bytes)


def sync_milliseconds(directory: Path, times: int = 30) -> float:
    """Return how long the disk takes to confirm a page, which is what a commit waits for."""
    path = directory / "page"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(bytes(4096))
            start = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(1000 * (time.perf_counter() - start))
    path.unlink()
    return median(taken)


@asynccontextmanager
async def opened(contenders: Iterable[Contender], directory: Path) -> AsyncIterator[list[Subject]]:
    """Open each contender on a new database, and remove the databases at the end."""
    async with AsyncExitStack() as stack:
        subjects = []
        for number, contender in enumerate(contenders):
            path = directory / f"{number}.db"
            stack.callback(path.unlink, missing_ok=True)
            saver = await stack.enter_async_context(contender.open(path))
            subjects.append(Subject(contender, saver, path))
        yield subjects
