"""The report: the table, the JSON and the plots."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.savers import CONTENDERS, MEMORY, OFFICIAL, OFFICIAL_ASYNC, OURS, OURS_ASYNC

_PAIRS = ((OURS.name, OFFICIAL.name), (OURS_ASYNC.name, OFFICIAL_ASYNC.name))

_PACKAGES = ("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-sqlite", "forkpoint")


@dataclass(frozen=True)
class AtMost:
    """A bar that a ratio must not exceed."""

    limit: float

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.limit

    def __str__(self) -> str:
        return f"≤ {_ratio(self.limit)}"


@dataclass(frozen=True)
class AtLeast:
    """A bar that a ratio must reach."""

    limit: float

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.limit

    def __str__(self) -> str:
        return f"≥ {_ratio(self.limit)}"


@dataclass(frozen=True)
class Result:
    """What a workload measured, for each saver by name."""

    workload: str
    measured: str
    unit: str
    values: Mapping[str, float]
    bar: AtMost | AtLeast | None = None

    def judged(self, bar: AtMost | AtLeast) -> Result:
        """Return the result with a bar for its ratios."""
        return replace(self, bar=bar)

    @property
    def ratios(self) -> dict[str, float]:
        """Ours over the official one, for the sync pair and the async pair."""
        return {
            f"{ours} / {official}": self.values[ours] / self.values[official]
            for ours, official in _PAIRS
            if ours in self.values and official in self.values
        }

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is met by each ratio, or by the value itself if it is one."""
        if self.bar is None:
            return None
        return all(map(self.bar.is_met, self.ratios.values() or self.values.values()))


@dataclass(frozen=True)
class Curve:
    """A thread of a saver over its length."""

    saver: str
    turns: Sequence[int]
    stored_bytes: Sequence[int | None]
    milliseconds: Sequence[float]


def versions() -> dict[str, str]:
    """Return what the results depend on."""
    return {
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **{package: version(package) for package in _PACKAGES},
        "system": platform.system(),
        "cores": str(os.cpu_count()),
    }


# Table


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table that is legible as it is."""
    savers = [contender.name for contender in CONTENDERS]
    header = ["workload", "measured", *savers, "ratio", "ratio, async", "bar", "met"]
    rows = [header, *(_cells(result, savers) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    rule = [
        "-" * width if column < 2 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join(
        "| " + " | ".join(_aligned(row, widths)) + " |" for row in [header, rule, *rows[1:]]
    )


def _cells(result: Result, savers: Sequence[str]) -> list[str]:
    values = [
        _amount(result.values[name], result.unit) if name in result.values else ""
        for name in savers
    ]
    ratios = [
        _ratio(result.ratios[key]) if (key := f"{ours} / {official}") in result.ratios else ""
        for ours, official in _PAIRS
    ]
    met = {None: "", True: "yes", False: "NO"}[result.is_met]
    bar = "" if result.bar is None else str(result.bar)
    return [result.workload, result.measured, *values, *ratios, bar, met]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return _bytes(value)
    return f"{_digits(value)} {unit}".rstrip()


def _bytes(value: float, _: object = None) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{_digits(value)} B"


def _digits(value: float) -> str:
    """Return three digits, or more if there are more before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ratio(value: float) -> str:
    return f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.3g}"


# Files


def write(
    directory: Path,
    results: Sequence[Result],
    curves: Sequence[Curve],
    sync_milliseconds: Sequence[float],
) -> None:
    """Write the table, the figures, and the plots of those curves that there are.

    Args:
        directory: Where to write, made if need be.
        results: What the workloads returned.
        curves: The chat of each saver.
        sync_milliseconds: How long the disk took to confirm a page, each time it was tried.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = versions()
    least, most = min(sync_milliseconds), max(sync_milliseconds)
    found["fsync of a page"] = f"{_digits(least)} to {_digits(most)} ms"
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    (directory / "results.md").write_text(f"{table(results)}\n\n{listed}\n", encoding="utf-8")
    figures = {
        "setting": found,
        "results": [_as_json(result) for result in results],
        "chat": [asdict(curve) for curve in curves],
    }
    (directory / "results.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if curves:
        _plot_stored(curves).savefig(directory / "chat-stored.png")
        _plot_time(curves).savefig(directory / "chat-time.png")


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "workload": result.workload,
        "measured": result.measured,
        "unit": result.unit,
        "values": dict(result.values),
        "ratios": result.ratios,
        "bar": None if result.bar is None else str(result.bar),
        "met": result.is_met,
    }


# Plots: the palette of Okabe and Ito, which colour-blind readers can tell apart.

_STYLES: dict[str, dict[str, Any]] = {
    OFFICIAL.name: {"color": "#D55E00"},
    OFFICIAL_ASYNC.name: {"color": "#E69F00", "linestyle": (0, (4, 2))},
    MEMORY.name: {"color": "#777777"},
    OURS.name: {"color": "#0072B2"},
    OURS_ASYNC.name: {"color": "#56B4E9", "linestyle": (0, (4, 2))},
}
_LABEL_DISTANCE = 0.055  # of the height of the plot


def _plot_stored(curves: Sequence[Curve]) -> Figure:
    figure, axes = _axes("Stored bytes of a chat, by its length")
    axes.set_yscale("log")
    axes.set_ylabel("database file (log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(_bytes))
    on_disk = [curve for curve in curves if None not in curve.stored_bytes]
    _draw(axes, on_disk, lambda curve: curve.stored_bytes)
    return figure


def _plot_time(curves: Sequence[Curve]) -> Figure:
    figure, axes = _axes("Time per turn of a chat, by its length")
    axes.set_ylabel("ms per turn (running median)")
    _draw(axes, curves, lambda curve: curve.milliseconds)
    axes.set_ylim(bottom=0)
    return figure


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("turns in the thread")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _draw(axes: Axes, curves: Sequence[Curve], values: Callable[[Curve], Sequence[Any]]) -> None:
    for curve in curves:
        axes.plot(curve.turns, values(curve), linewidth=2, **_STYLES[curve.saver])
    axes.set_xlim(0, max(curve.turns[-1] for curve in curves))
    axes.set_ylim(axes.get_ylim())
    _label(axes, {curve.saver: values(curve)[-1] for curve in curves})


def _label(axes: Axes, ends: Mapping[str, float]) -> None:
    """Write the names at the ends of the lines, moved apart where those are close."""
    to_axes = axes.transData + axes.transAxes.inverted()
    names = sorted(ends, key=lambda name: ends[name])
    heights = [float(to_axes.transform((0, ends[name]))[1]) for name in names]
    for name, height in zip(names, _apart(heights), strict=True):
        axes.annotate(
            name,
            (1.01, height),
            xycoords="axes fraction",
            verticalalignment="center",
            fontsize=9.5,
            color=_STYLES[name]["color"],
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """Return ascending heights a label apart, each group of them centred where it was."""
    groups: list[list[float]] = []
    for index, height in enumerate(heights):
        groups.append([height - index * _LABEL_DISTANCE])
        while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    centred = [mean(group) for group in groups for _ in group]
    return [height + index * _LABEL_DISTANCE for index, height in enumerate(centred)]
