"""Many threads, and how many rows, keys and documents a store looks at to find some of them."""

from __future__ import annotations

import random
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from commands import Commands
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from stores import Known, MongoStore, SqliteStore, Store

WORK = 20
"""How many rows, or keys, or documents, may be looked at for each that is returned."""
FEW = 10
"""A page with fewer may cost as much as one with this many."""

START = 1_700_000_000_000_000  # microseconds since 1970
DAY = 86_400_000_000
TAGS = {"frequent": 0.6, "common": 0.1, "rare": 0.002}
OWNERS = {"acme": 50, "one": 20, "two": 10, "three": 10, None: 10}
STATUSES = {"idle": 85, "interrupted": 10, "error": 5}


def many(count: int) -> list[Known]:
    """Return threads of several owners, with tags and metadata that are frequent and rare."""
    rng = random.Random(1)
    threads = []
    for n in range(count):
        created_at = START + rng.randrange(30 * DAY)
        threads.append(
            Known(
                f"t{n:06}",
                rng.choices(list(OWNERS), list(OWNERS.values()))[0],
                [tag for tag, share in TAGS.items() if rng.random() < share],
                {
                    "user_id": f"u{rng.randrange(count // 20)}",
                    "plan": {"name": rng.choice(["free", "free", "pro"]), "seats": n % 7},
                    "n": n,
                },
                rng.choices(list(STATUSES), list(STATUSES.values()))[0],
                created_at,
                created_at + rng.randrange(DAY),
                f"label {n % 500}",
            )
        )
    return threads


class Looked(ABC):
    """What a backend looks at, for all that a call asks of it."""

    @abstractmethod
    def watching(self) -> AbstractContextManager[Callable[[], int]]:
        """Note the searches that are made, and give what returns how much these look at.

        It counts rows, or keys and documents. The plans are checked on the way: each goes through a
        range of an index.
        """

    def work(self, call: Callable[[], Any]) -> int:
        """Return how much the searches of a call look at."""
        with self.watching() as work:
            call()
        return work()


class SqliteLooked(Looked):
    """It counts how often a statement asks whether a row of the search index is still meant."""

    def __init__(self, store: SqliteStore, saver: ForkpointSaver) -> None:
        self._store = store
        self._connection: sqlite3.Connection = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]

    @contextmanager
    def watching(self) -> Iterator[Callable[[], int]]:
        sent: list[str] = []
        self._connection.set_trace_callback(sent.append)
        try:
            yield lambda: sum(
                self._looked(each) for each in sent if "FROM forkpoint_listing" in each
            )
        finally:
            self._connection.set_trace_callback(None)

    def _looked(self, statement: str) -> int:
        looked = rows = 0

        def is_current(valid_to: int | None) -> bool:
            nonlocal looked
            looked += 1
            return valid_to is None

        if statement.startswith("DELETE"):
            return 0  # of what no search reads any more
        counted = re.sub(r"(\w+\.)?\bvalid_to IS NULL", r"is_current(\1valid_to)", statement)
        assert counted != statement
        with self._store.connection() as connection:
            connection.create_function("is_current", 1, is_current)
            plan, counted_plan = (
                [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {each}")]
                for each in (statement, counted)
            )
            rows = len(connection.execute(counted).fetchall())
        assert plan == counted_plan
        for step in plan:
            if re.match(r"(SEARCH|SCAN) [to]\b", step):
                assert re.search(r"SEARCH . (EXISTS )?USING (PRIMARY KEY|INDEX) .*\(", step), step
        assert looked >= rows
        return looked


class MongoLooked(Looked):
    """It asks the server to explain."""

    def __init__(self, store: MongoStore, commands: Commands) -> None:
        self._store = store
        self._commands = commands

    @contextmanager
    def watching(self) -> Iterator[Callable[[], int]]:
        self._commands.clear()
        yield self._sum

    def _sum(self) -> int:
        finds = [sent.command for sent in self._commands.sent if sent.command_name == "find"]
        searches = [find for find in finds if "sort" in find]  # not what asks if there is a log
        assert searches
        return sum(self._looked(search) for search in searches)

    def _looked(self, search: Any) -> int:
        options = ("find", "filter", "projection", "sort", "limit", "batchSize", "singleBatch")
        explained = self._store.collection.database.command(
            "explain", {name: search[name] for name in options}, verbosity="executionStats"
        )
        stages = list(_stages(explained["executionStats"]["executionStages"]))
        assert {"SORT", "COLLSCAN"}.isdisjoint(stage["stage"] for stage in stages)
        indexes = {stage["indexName"] for stage in stages if "indexName" in stage}
        assert indexes == {"forkpoint_listing"}
        total = explained["executionStats"]
        return int(max(total["totalKeysExamined"], total["totalDocsExamined"]))


def _stages(stage: Any) -> Iterator[Any]:
    yield stage
    for name in ("inputStage", "outerStage", "innerStage"):
        if name in stage:
            yield from _stages(stage[name])
    for inner in stage.get("inputStages", ()):
        yield from _stages(inner)


def looked_at_by(saver: ForkpointSaver, store: Store, commands: Commands) -> Looked:
    """Return what a store looks at for a saver, whose client keeps its commands."""
    if isinstance(store, MongoStore):
        return MongoLooked(store, commands)
    assert isinstance(store, SqliteStore)
    return SqliteLooked(store, saver)
