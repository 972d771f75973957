"""The report: the table, the JSON and the plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.bars import Bar, ratio_text
from benchmarks.savers import Backend

HISTORY = "history.jsonl"
"""The file with a line for each run."""

_PACKAGES = ("langgraph", "langgraph-checkpoint")


@dataclass(frozen=True)
class Result:
    """What a workload measured, for each saver by name."""

    workload: str
    measured: str
    unit: str
    values: Mapping[str, float]
    bar: Bar | None = None

    def judged(self, bar: Bar | None) -> Result:
        """Return the result with a bar for its ratios."""
        return replace(self, bar=bar)

    def ratios(self, backend: Backend) -> dict[str, float]:
        """Ours over the official one, for the sync pair and the async pair."""
        return {
            f"{ours} / {official}": self.values[ours] / self.values[official]
            for ours, official in backend.pairs
            if ours in self.values and official in self.values
        }

    def is_met(self, backend: Backend) -> bool | None:
        """Whether the bar is met by each ratio, or by the value itself if it is one."""
        if self.bar is None:
            return None
        return all(map(self.bar.is_met, self.ratios(backend).values() or self.values.values()))


@dataclass(frozen=True)
class Curve:
    """A thread of a saver over its length."""

    saver: str
    turns: Sequence[int]
    stored_bytes: Sequence[int | None]
    milliseconds: Sequence[float]


@dataclass(frozen=True)
class Measured:
    """All that was measured on a backend."""

    backend: Backend
    results: Sequence[Result]
    curves: Sequence[Curve]


def versions(backends: Sequence[Backend]) -> dict[str, str]:
    """Return what the results depend on."""
    return {
        "Python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        **{name: number for backend in backends for name, number in backend.versions.items()},
        "forkpoint": version("forkpoint"),
        "system": platform.system(),
        "cores": str(os.cpu_count()),
    }


# Table


def table(measured: Measured, before: Mapping[str, float]) -> str:
    """Return the results as a Markdown table that is legible as it is.

    Args:
        measured: What was measured.
        before: The ratios of the run before, as `ratios_before` returns them.
    """
    savers = [contender.name for contender in measured.backend.contenders]
    ratios = ["ratio", "before", "ratio, async", "before"]
    header = ["workload", "measured", *savers, *ratios, "bar", "met"]
    rows = [header, *(_cells(result, measured.backend, before) for result in measured.results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    rule = [
        "-" * width if column < 2 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in [header, rule, *rows[1:]]]
    return "\n".join([f"## {measured.backend.title}", "", *lines])


def _cells(result: Result, backend: Backend, before: Mapping[str, float]) -> list[str]:
    values = [
        _amount(result.values[one.name], result.unit) if one.name in result.values else ""
        for one in backend.contenders
    ]
    found = result.ratios(backend)
    ratios = [
        ratio_text(values[key]) if key in values else ""
        for ours, official in backend.pairs
        for values, key in (
            (found, f"{ours} / {official}"),
            (before, _name(backend, result, f"{ours} / {official}")),
        )
    ]
    met = {None: "", True: "yes", False: "NO"}[result.is_met(backend)]
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


# History


def ratios_before(directory: Path) -> dict[str, float]:
    """Return the latest ratio of each result in the history of earlier runs."""
    path = directory / HISTORY
    ratios: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        ratios |= json.loads(line)["ratios"]
    return ratios


def add_to_history(
    directory: Path, measurements: Sequence[Measured], setting: Mapping[str, str]
) -> None:
    """Add a line with the ratios of a run, which the next run is compared with."""
    ratios = {
        _name(measured.backend, result, pair): ratio
        for measured in measurements
        for result in measured.results
        for pair, ratio in result.ratios(measured.backend).items()
    }
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = json.dumps({"at": at, "setting": setting, "ratios": ratios})
    with (directory / HISTORY).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _name(backend: Backend, result: Result, pair: str) -> str:
    return f"{backend.name}: {result.workload}: {result.measured}: {pair}"


# Files


def write(
    directory: Path, measurements: Sequence[Measured], sync_milliseconds: Sequence[float]
) -> None:
    """Write the tables, the figures, and the plots of those curves that there are.

    The history of the directory gets a line more.

    Args:
        directory: Where to write, made if need be.
        measurements: What was measured on each backend.
        sync_milliseconds: How long the disk took to confirm a page, each time it was tried.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = versions([measured.backend for measured in measurements])
    least, most = min(sync_milliseconds), max(sync_milliseconds)
    found["fsync of a page"] = f"{_digits(least)} to {_digits(most)} ms"
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    before = ratios_before(directory)
    parts = [*(table(measured, before) for measured in measurements), listed]
    add_to_history(directory, measurements, found)
    (directory / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    figures = {"setting": found, **{one.backend.name: _as_json(one) for one in measurements}}
    (directory / "results.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for measured in measurements:
        if measured.curves:
            suffix = "" if measured.backend.name == "sqlite" else f"-{measured.backend.name}"
            _plot_stored(measured).savefig(directory / f"chat-stored{suffix}.png")
            _plot_time(measured).savefig(directory / f"chat-time{suffix}.png")


def _as_json(measured: Measured) -> dict[str, Any]:
    return {
        "results": [_result_as_json(result, measured.backend) for result in measured.results],
        "chat": [asdict(curve) for curve in measured.curves],
    }


def _result_as_json(result: Result, backend: Backend) -> dict[str, Any]:
    return {
        "workload": result.workload,
        "measured": result.measured,
        "unit": result.unit,
        "values": dict(result.values),
        "ratios": result.ratios(backend),
        "bar": None if result.bar is None else str(result.bar),
        "met": result.is_met(backend),
    }


# Plots: the palette of Okabe and Ito, which colour-blind readers can tell apart.

_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00"},
    {"color": "#E69F00", "linestyle": (0, (4, 2))},
    {"color": "#777777"},
    {"color": "#0072B2"},
    {"color": "#56B4E9", "linestyle": (0, (4, 2))},
)
"""In the order of a backend's contenders."""

_LABEL_DISTANCE = 0.055  # of the height of the plot


def _plot_stored(measured: Measured) -> Figure:
    figure, axes = _axes(f"{measured.backend.title}: stored bytes of a chat, by its length")
    axes.set_yscale("log")
    axes.set_ylabel(f"{measured.backend.stored} (log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(_bytes))
    _draw(axes, measured, lambda curve: curve.stored_bytes)
    return figure


def _plot_time(measured: Measured) -> Figure:
    figure, axes = _axes(f"{measured.backend.title}: time per turn of a chat, by its length")
    axes.set_ylabel("ms per turn (running median)")
    _draw(axes, measured, lambda curve: curve.milliseconds)
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


def _draw(axes: Axes, measured: Measured, values: Callable[[Curve], Sequence[Any]]) -> None:
    names = [contender.name for contender in measured.backend.contenders]
    styles = dict(zip(names, _STYLES, strict=True))
    curves = [curve for curve in measured.curves if None not in values(curve)]
    for curve in curves:
        axes.plot(curve.turns, values(curve), linewidth=2, **styles[curve.saver])
    axes.set_xlim(0, max(curve.turns[-1] for curve in curves))
    axes.set_ylim(axes.get_ylim())
    _label(axes, styles, {curve.saver: values(curve)[-1] for curve in curves})


def _label(axes: Axes, styles: Mapping[str, dict[str, Any]], ends: Mapping[str, float]) -> None:
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
            color=styles[name]["color"],
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
