"""The report on how costs grow: tables, a JSON file with all that was measured, and curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.report import versions

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
_LINES = ("-", "--", ":")
_UNITS = {
    "threads": "threads in the catalog",
    "checkpoints": "checkpoints in the thread",
    "family": "threads in the family",
}
_TITLES = {"sqlite": "SQLite, processor time", "mongodb": "MongoDB, time"}


class Point(NamedTuple):
    """What an operation took at one size."""

    workload: str
    operation: str
    size: int
    milliseconds: float
    peak_bytes: int | None = None
    """The peak of Python's memory, if it was measured."""


def curves(points: Iterable[Point]) -> dict[str, dict[str, list[Point]]]:
    """Return the points by workload and operation, in order of size."""
    found: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        found.setdefault(point.workload, {}).setdefault(point.operation, []).append(point)
    return found


def growth(curve: Sequence[Point]) -> float:
    """Return by which power of the size an operation grew in the last step: 0 flat, 1 linear."""
    *_, before, last = curve
    if before.size == last.size or before.milliseconds <= 0:
        return 0.0
    return math.log(last.milliseconds / before.milliseconds) / math.log(last.size / before.size)


def tables(points: Sequence[Point]) -> str:
    """Return a Markdown table for each workload."""
    parts = []
    for workload, operations in curves(points).items():
        sizes = [point.size for point in next(iter(operations.values()))]
        with_memory = any(point.peak_bytes is not None for point in points)
        header = [_UNITS[workload], *(f"{size:,}" for size in sizes), "grows with"]
        header += ["peak memory"] if with_memory else []
        rows = [
            [name, *(_time(point.milliseconds) for point in curve), f"N^{growth(curve):.1f}"]
            + ([f"{(curve[-1].peak_bytes or 0) / 1e6:.1f} MB"] if with_memory else [])
            for name, curve in operations.items()
        ]
        rule = ["---", *["--:"] * (len(header) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in [header, rule, *rows]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _time(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms"


def write(directory: Path, backend: str, points: Sequence[Point], sync_milliseconds: float) -> None:
    """Write what was measured on a backend, beside what the files say of others.

    Args:
        directory: Where to write, made if need be.
        backend: Its name.
        points: What was measured.
        sync_milliseconds: How long the disk takes to confirm a page.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "scale.json"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    known = [Point(*values) for values in stored.get(backend, {}).get("points", [])]
    measured = {point.workload for point in points}
    merged = [point for point in known if point.workload not in measured] + list(points)
    setting = {**versions([]), "fsync of a page": f"{sync_milliseconds:.3g} ms"}
    stored[backend] = {"setting": setting, "points": merged}
    file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (directory / "scale.md").write_text(_text(stored), encoding="utf-8")
    for workload, operations in curves(merged).items():
        suffix = "" if backend == "sqlite" else f"-{backend}"
        _plot(_TITLES[backend], workload, operations).savefig(
            directory / f"scale-{workload}{suffix}.png"
        )


def _text(stored: Mapping[str, Any]) -> str:
    parts = []
    for backend, report in stored.items():
        points = [Point(*values) for values in report["points"]]
        setting = ", ".join(f"{name} {value}" for name, value in report["setting"].items())
        parts += [f"## {_TITLES[backend]}", tables(points), setting]
    return "\n\n".join(parts) + "\n"


def _plot(title: str, workload: str, operations: Mapping[str, Sequence[Point]]) -> Figure:
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{title}, by {_UNITS[workload]}", loc="left", fontweight="bold")
    axes.set_xlabel(f"{_UNITS[workload]} (log scale)")
    axes.set_ylabel("ms (log scale)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    for number, (name, curve) in enumerate(operations.items()):
        axes.plot(
            [point.size for point in curve],
            [point.milliseconds for point in curve],
            color=_COLORS[number % len(_COLORS)],
            linestyle=_LINES[number // len(_COLORS)],
            marker="o",
            markersize=3,
            label=name,
        )
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
