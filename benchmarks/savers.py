"""The savers of a backend: how each is opened, run and measured."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph

from benchmarks.bars import Bars

Saver = BaseCheckpointSaver[Any]
Graph = CompiledStateGraph[Any, Any, Any, Any]


def _not_measured() -> None:
    return None


class Opened(NamedTuple):
    """A saver on a database of its own, and how large that is.

    `file_bytes` is for a database whose files are compressed. It may take long, and have the
    server write what it would have written later.
    """

    saver: Saver
    stored_bytes: Callable[[], int | None] = _not_measured
    file_bytes: Callable[[], int | None] = _not_measured


class Contender(NamedTuple):
    """A saver by name, how to open it, and whether graphs run on it by `ainvoke`.

    `open` is given a path where there is nothing yet, for a database that is a file. It leaves
    nothing behind.
    """

    name: str
    open: Callable[[Path], AbstractAsyncContextManager[Opened]]
    is_async: bool = False


@asynccontextmanager
async def _memory(_: Path) -> AsyncIterator[Opened]:
    yield Opened(InMemorySaver())


MEMORY = Contender("InMemorySaver", _memory)


@dataclass(frozen=True)
class Backend:
    """A kind of database: the savers that are compared on it, and the bars.

    Args:
        name: As in the command line.
        title: As in headings.
        stored: What `Opened.stored_bytes` counts.
        official: The official saver, run by `invoke`.
        official_async: The same or another one, run by `ainvoke`.
        ours: Forkpoint's saver, run by `invoke`.
        ours_async: The same, run by `ainvoke`.
        ours_in_haste: The same for what counts bytes only: it need not wait for the disk.
        bars: What forkpoint's ratios are compared with.
        versions: What the figures depend on.
    """

    name: str
    title: str
    stored: str
    official: Contender
    official_async: Contender
    ours: Contender
    ours_async: Contender
    ours_in_haste: Contender
    bars: Bars
    versions: Mapping[str, str]

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return (self.official, self.official_async, MEMORY, self.ours, self.ours_async)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The names of ours and the official one, sync and async."""
        return (
            (self.ours.name, self.official.name),
            (self.ours_async.name, self.official_async.name),
        )


class Subject(NamedTuple):
    """A contender, open."""

    contender: Contender
    opened: Opened

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def saver(self) -> Saver:
        return self.opened.saver

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
    """Open each contender on a new database."""
    async with AsyncExitStack() as stack:
        yield [
            Subject(one, await stack.enter_async_context(one.open(directory / f"{number}.db")))
            for number, one in enumerate(contenders)
        ]
