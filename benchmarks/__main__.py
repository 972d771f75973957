"""Run the workloads against all savers, print the table, and write the results."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.report import Result
from benchmarks.savers import sync_milliseconds
from benchmarks.workloads import DEFAULT, FULL, QUICK, WORKLOADS, Bench


def main() -> None:
    """Do what the command line says."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="forkpoint-") as directory:
        sizes = arguments.sizes or DEFAULT
        asyncio.run(_run(Bench(sizes, Path(directory)), arguments.only, arguments.out))


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


async def _run(bench: Bench, names: Sequence[str], out: Path) -> None:
    results: list[Result] = []
    syncs: list[float] = []
    async with bench:
        for name in names:
            syncs.append(sync_milliseconds(bench.directory))
            start = time.perf_counter()
            gc.collect()
            gc.freeze()  # what a workload leaves behind is not the next one's to walk through
            results += await WORKLOADS[name](bench)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if bench.sizes is QUICK:
        results = [replace(result, bar=None) for result in results]
    print(report.table(results))
    report.write(out, results, bench.curves, syncs)


if __name__ == "__main__":
    main()
