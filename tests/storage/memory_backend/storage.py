"""The transactions of a store in memory, and its saver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from forkpoint.at_fork import renew_in_child
from forkpoint.clocks import StoreClock
from forkpoint.errors import SaverClosed
from forkpoint.runtime.runner import WorkerRunner
from forkpoint.runtime.steps import Steps
from forkpoint.runtime.workers import Workers
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.interface import Session, Storage
from forkpoint.storage.rows import PutRequest, ThreadRef

from .checkpoints import (
    MemoryCheckpoints,
    MemoryChunks,
    MemoryCollections,
    MemoryContents,
    MemorySecrets,
)
from .puts import MemoryCopies, MemoryRemovals, put
from .search import MemorySearch
from .tables import Tables
from .threads import MemoryLeases, MemoryRecords, MemoryThreads


class MemorySession(Session):
    """One state of the store, and all that can be done with it."""

    def __init__(self, tables: Tables, clock: StoreClock) -> None:
        self._clock = clock
        self.tables = tables
        self.threads = MemoryThreads(tables, clock)
        self.checkpoints = MemoryCheckpoints(tables)
        self.records = MemoryRecords(tables, clock)
        self.search = MemorySearch(tables, clock)
        self.leases = MemoryLeases(tables, clock)
        self.copies = MemoryCopies(tables, clock)
        self.removals = MemoryRemovals(tables, clock)
        self.chunks = MemoryChunks(tables)
        self.collections = MemoryCollections(tables, clock)
        self.secrets = MemorySecrets(tables)
        self.contents = MemoryContents(tables)

    def now(self) -> int:
        return self._clock.now()


class Database:
    """What several savers may share: a state, and a lock for those who change it."""

    def __init__(self) -> None:
        self.clock = StoreClock()
        self.tables = Tables()
        self._become_child()
        renew_in_child(self)

    def _become_child(self) -> None:
        self.lock = threading.Lock()

    def rewrite(self, kind: str, change: Callable[[bytes], bytes]) -> None:
        """Change the content of all rows of a kind behind the savers' backs, for tests."""
        self.tables = self.tables.copied()
        for table in getattr(self.tables, kind).values():
            for key, value in table.items():
                if kind == "chunks":
                    refs, content, epoch = value
                    table[key] = (refs, change(content) if content else content, epoch)
                elif value.row.content:
                    row = value.row._replace(content=change(value.row.content))
                    table[key] = replace(value, row=row)


class MemoryStorage(Storage):
    """A store in dictionaries. Who reads has a state that never changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_closed = False

    def setup(self) -> None:
        self._check_open()

    def _check_open(self) -> None:
        if self._is_closed:
            raise SaverClosed("the saver is closed")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        self._check_open()
        yield MemorySession(self._database.tables, self._database.clock)

    @contextmanager
    def writing(self) -> Iterator[MemorySession]:
        self._check_open()
        with self._database.lock:
            session = MemorySession(self._database.tables.copied(), self._database.clock)
            yield session
            self._database.tables = session.tables

    def put(self, put_: PutRequest) -> Steps[ThreadRef | None]:
        yield from ()
        with self.writing() as session:
            return put(session.tables, self._database.clock, put_)

    def close(self) -> None:
        self._is_closed = True


class MemorySaver(ForkpointSaver):
    """Keeps checkpoints in dictionaries, for as long as the process lives."""

    def __init__(self, database: Database | None = None, **options: Any) -> None:
        storage = MemoryStorage(database or Database())
        super().__init__(storage, WorkerRunner(Workers(4)), options.pop("serde", None), **options)
