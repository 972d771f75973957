"""Pictures of a family, and of what differs between two states: text, Mermaid, SVG, HTML. Pure.

A family is drawn with one thread to a row, like a log of commits, for that is what stays legible
with hundreds of forks. Nothing recurses, since a fork of a fork can be thousands of levels deep.
Ids, keys and values come from anywhere, so each is made printable, shortened and escaped first.
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from forkpoint.types import ChannelDiff, FamilyNode, LineageEntry

_DEEP = 16
"""From how many levels on a family is drawn with lanes, as indenting each would leave no room."""

_TEXT_ID = 60
_CHECKPOINT_ID = 20
_STEP = 12


# The order and the place of each thread


class _Row(NamedTuple):
    """A thread, as all pictures place it.

    Attributes:
        node: The thread.
        parent: The number of the row of its parent.
        lane: How far it is indented.
        is_heir: Whether it goes on in the lane of its parent, below it.
        is_last: Whether no sibling follows.
    """

    node: FamilyNode
    parent: int | None
    lane: int
    is_heir: bool
    is_last: bool


def _rows(root: FamilyNode) -> list[_Row]:
    """Return the threads from top to bottom, each before its children.

    In a deep family, the child from which most threads descend goes on in the lane of its parent,
    so that a chain is a straight line, and n threads need no more than log2(n) lanes and one.
    """
    heirs = _heirs(root)
    rows: list[_Row] = []
    waiting: list[tuple[FamilyNode, int | None, int, bool, bool]] = [(root, None, 0, False, True)]
    while waiting:
        row = _Row(*waiting.pop())
        heir = heirs.get(id(row.node))
        placed = [child for child in row.node.children if child is not heir]
        below = [(child, len(rows), row.lane + 1, False, False) for child in placed]
        if heir is not None:
            below.append((heir, len(rows), row.lane, True, True))
        elif below:
            below[-1] = (*below[-1][:-1], True)
        waiting += reversed(below)
        rows.append(row)
    return rows


def _heirs(root: FamilyNode) -> dict[int, FamilyNode]:
    """Return which child goes on in the lane of its parent, by the parent; none if not deep."""
    levels = _levels(root)
    if len(levels) <= _DEEP:
        return {}
    sizes: dict[int, int] = {}
    heirs: dict[int, FamilyNode] = {}
    for level in reversed(levels):
        for node in level:
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in node.children)
            heir = max(node.children, key=lambda child: sizes[id(child)], default=None)
            # Siblings without children look alike: none of them is drawn as the heir.
            if heir is not None and (heir.children or len(node.children) == 1):
                heirs[id(node)] = heir
    return heirs


def _levels(root: FamilyNode) -> list[list[FamilyNode]]:
    levels = [[root]]
    while below := [child for node in levels[-1] for child in node.children]:
        levels.append(below)
    return levels


# What is said of a thread


def _origin(entry: LineageEntry, forked: str, cloned: str) -> list[str]:
    """Return how a thread was made, such as `forked at step 4` and the time of the checkpoint."""
    if entry.edge is None:
        return []
    if entry.edge == "clone":
        return [cloned]
    known = []
    if entry.step is not None:
        known.append(f"step {_short(str(entry.step), _STEP)}")
    if entry.forked_from is not None:
        known.append(_time(entry.forked_from))
    if not known and entry.parent_checkpoint_id:
        known.append(f"checkpoint {_short(entry.parent_checkpoint_id, _CHECKPOINT_ID)}")
    if known:
        known[0] = f"{forked} at {known[0]}"
    return known or [forked]


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M}"


def _summary(rows: Sequence[_Row]) -> list[str]:
    """Return how many threads of each kind there are."""
    entries = [row.node.entry for row in rows]
    counts = [
        _count(len(entries), "thread"),
        _count(sum(entry.edge == "fork" for entry in entries), "fork"),
        _count(sum(entry.edge == "clone" for entry in entries), "clone"),
        f"{sum(not entry.exists for entry in entries)} purged",
    ]
    return [count for count in counts if not count.startswith("0 ")]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# Strings from anywhere

_JOINER = "\u200d"  # it makes one emoji of several
_MARKS = 4
"""How many combining characters may follow each other: as many as languages need."""


def _printable(text: str) -> str:
    """Return a text in one line, with escapes for what controls a terminal or breaks XML."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if (char.isprintable() or char == _JOINER) and not excess else _escaped(char)
        for char, excess in _with_excess(text)
    )


def _with_excess(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each character, and whether it is a combining one that is piled too high."""
    for is_mark, run in groupby(text, lambda char: unicodedata.category(char) in ("Mn", "Me")):
        for number, char in enumerate(run):
            yield char, is_mark and number >= _MARKS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _columns(text: str) -> int:
    """Return how many columns a printable text takes where each character takes one or two."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(char: str) -> int:
    if char == _JOINER or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _short(text: str, columns: int) -> str:
    """Return a text made printable, without its middle if it takes more columns than that."""
    text = _printable(text)
    if _columns(text) <= columns:
        return text
    head = _fitting(text, columns // 2)
    tail = _fitting(text[::-1], columns - 1 - columns // 2)[::-1]
    return f"{head}…{tail}"


def _cut(text: str, columns: int) -> str:
    """Return a printable text without its end if it takes more columns than that."""
    return text if _columns(text) <= columns else f"{_fitting(text, columns - 1)}…"


def _fitting(text: str, columns: int) -> str:
    """Return as much of a text's beginning as fits."""
    for end, char in enumerate(text):
        columns -= _columns_of(char)
        if columns < 0:
            return text[:end]
    return text


# Text


def text(root: FamilyNode) -> str:
    """Return a family as lines, one to a thread, with box-drawing characters."""
    rows = _rows(root)
    is_deep = any(row.is_heir for row in rows)
    indents: list[str] = []
    lines = []
    for row in rows:
        if row.parent is None or row.is_heir:
            indent = branch = "" if row.parent is None else indents[row.parent]
        else:
            above = indents[row.parent]
            branch = above + ("└─ " if row.is_last else "├─ ")
            indent = above + ("   " if row.is_last else "│  ")
        indents.append(indent)
        dot = "" if row.node.entry.exists else "† "
        lines.append(f"{branch}{dot or '● ' * is_deep}{_said(row.node)}")
    return "\n".join(lines)


def _said(node: FamilyNode) -> str:
    entry = node.entry
    origin = ", ".join(_origin(entry, "forked", f"cloned {_time(entry.created_at)}"))
    parts = [
        _short(entry.thread_id, _TEXT_ID) + " ← this thread" * node.is_current,
        "" if entry.exists else "purged",
        origin + " UTC" * _names_time(entry),
        f"({_count(entry.checkpoint_count, 'checkpoint')})" if entry.exists else "",
    ]
    return "  ".join(part for part in parts if part)


def _names_time(entry: LineageEntry) -> bool:
    return entry.edge == "clone" or (entry.edge == "fork" and entry.forked_from is not None)


# Mermaid

_UNSAFE = re.compile(r"(?<![A-Za-z0-9])[._-]|[._-](?![A-Za-z0-9])|(?<!\d):|:(?!\d)|[^\w .,:-]|[ﬂ°¶ß]")
"""What a label has as entity codes: syntax of Mermaid, HTML and Markdown, and what Mermaid itself
has in place of entity codes while it parses."""

_MERMAID_ID = 40


def mermaid(root: FamilyNode) -> str:
    """Return a family as a Mermaid flowchart.

    Its direction is the one in which the family is less wide. Threads differ by their shapes and
    words, not by colours, as those are the theme's. Mermaid draws no more than 500 edges unless
    its `maxEdges` says otherwise.
    """
    rows = _rows(root)
    levels = _levels(root)
    is_long = len(levels) > max(map(len, levels))
    lines = [
        f"flowchart {'TD' if is_long else 'LR'}",
        "    accTitle: Family of a thread",
        f"    accDescr: {', '.join(_summary(rows))}",
    ]
    lines += [f"    n{number}{_vertex(row.node)}" for number, row in enumerate(rows)]
    lines += [f"    {_arrow(number, row)}" for number, row in enumerate(rows) if row.parent is not None]
    if any(row.node.is_current for row in rows):
        lines.append("    classDef current stroke-width:4px,font-weight:bold")
    if not all(row.node.entry.exists for row in rows):
        lines.append("    classDef purged stroke-dasharray:5 5,font-style:italic")
    return "\n".join(lines)


def _vertex(node: FamilyNode) -> str:
    entry = node.entry
    label = [_coded(_short(entry.thread_id, _MERMAID_ID))]
    if node.is_current:
        label.append("← this thread")
    label.append(_count(entry.checkpoint_count, "checkpoint") if entry.exists else "purged")
    said = "<br/>".join(label)
    if not entry.exists:
        return f'["† {said}"]:::purged'
    return f'(["{said}"]):::current' if node.is_current else f'["{said}"]'


def _arrow(number: int, row: _Row) -> str:
    entry = row.node.entry
    words = _origin(entry, "forked", f"cloned {_time(entry.created_at)}")
    said = "<br/>".join(map(_coded, words)) + " UTC" * _names_time(entry)
    return f'n{row.parent} {"-.->" if entry.edge == "clone" else "-->"}|"{said}"| n{number}'


def _coded(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"#{ord(match[0])};", text)


# SVG: sizes in pixels

_WIDEST = 1100
_MARGIN = 20
_GAP = 28
_ROW = 26
_LANE = 24
_TURN = 8
_DOT = 7
_TOP = 118
_LETTER = 7.9
"""How wide a letter of an id is. Other letters are less."""
_SMALL_LETTER = 6.9
_NAME = 48
"""How many columns of an id there is room for, if lanes leave it."""

_STYLE = """
.fp-family{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.fp-family text{fill:#1f2328;white-space:pre}
.fp-family .fp-panel{fill:#fff;stroke:#d1d9e0}
.fp-family .fp-row{fill:#818b98;fill-opacity:0}
.fp-family .fp-odd{fill-opacity:.07}
.fp-family .fp-here{fill:#0969da;fill-opacity:.13}
.fp-family g:hover>.fp-row{fill-opacity:.2}
.fp-family .fp-title{font-size:15px;font-weight:600}
.fp-family .fp-name{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.fp-family .fp-dim{fill:#59636e}
.fp-family .fp-bold{font-weight:700}
.fp-family .fp-gone{fill:#59636e;font-style:italic;text-decoration:line-through}
.fp-family .fp-number{text-anchor:end}
.fp-family .fp-rule{stroke:#d1d9e0}
.fp-family .fp-line{fill:none;stroke:#818b98;stroke-width:1.5}
.fp-family .fp-way{fill:none;stroke:#0969da;stroke-width:3}
.fp-family .fp-clone{stroke-dasharray:4 3}
.fp-family .fp-mark{fill:#fff;stroke:#59636e;stroke-width:1.5}
.fp-family .fp-dot{fill:#59636e}
.fp-family .fp-ring{fill:#fff;stroke:#0969da;stroke-width:2.5}
.fp-family .fp-core{fill:#0969da}
.fp-family .fp-cross{fill:#fff;stroke:#59636e;stroke-width:1.5}
.fp-family .fp-pill{fill:#0969da}
.fp-family .fp-pill+text{fill:#fff;font-weight:600}
.fp-family .fp-tag{fill:none;stroke:#818b98;stroke-dasharray:3 2}
@media (prefers-color-scheme:dark){
.fp-family text{fill:#e6edf3}
.fp-family .fp-panel{fill:#0d1117;stroke:#3d444d}
.fp-family .fp-here{fill:#4493f8;fill-opacity:.2}
.fp-family .fp-dim,.fp-family .fp-gone{fill:#9198a1}
.fp-family .fp-rule{stroke:#3d444d}
.fp-family .fp-line{stroke:#767f8a}
.fp-family .fp-way{stroke:#4493f8}
.fp-family .fp-mark,.fp-family .fp-cross{fill:#0d1117;stroke:#9198a1}
.fp-family .fp-dot{fill:#9198a1}
.fp-family .fp-ring{fill:#0d1117;stroke:#4493f8}
.fp-family .fp-core{fill:#4493f8}
.fp-family .fp-pill{fill:#1f6feb}
}
"""


class _Table(NamedTuple):
    """Where the columns right of the graph are, and what they say."""

    names: list[str]
    columns: list[tuple[float, str, list[str]]]
    right: float


def svg(root: FamilyNode) -> str:
    """Return a family as an SVG document: a row for each thread, the graph of their lines left.

    It has a background of its own, since a notebook's need not be what the system prefers.
    """
    rows = _rows(root)
    table = _table(rows)
    title = f"Family of {_short(root.entry.thread_id, _NAME)}"
    legend, legend_width = _legend(rows)
    width = round(max(table.right, legend_width, _MARGIN + _columns(title) * 9) + _MARGIN)
    height = _TOP + len(rows) * _ROW + 12
    summary = " · ".join([*_summary(rows), "times are UTC"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="fp-family" role="img" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_description(rows))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="fp-panel" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        _text(_MARGIN, 32, title, "fp-title"),
        _text(_MARGIN, 52, summary, "fp-dim"),
        legend,
        _text(_MARGIN, _TOP - 12, "Thread", "fp-dim"),
        *(_text(x, _TOP - 12, heading, _classes("fp-dim", x, table)) for x, heading, _ in table.columns),
        f'<path class="fp-rule" d="M{_MARGIN} {_TOP - 3.5}H{width - _MARGIN}"/>',
        *(_svg_row(number, row, table, width) for number, row in enumerate(rows)),
        *_lines(rows),
        *(_dot(_x(row.lane), _y(number), row.node) for number, row in enumerate(rows)),
        "</svg>",
    ]
    return "\n".join(parts)


def _description(rows: Sequence[_Row]) -> str:
    said = f"A tree, one row for each thread: {', '.join(_summary(rows))}."
    here = [row.node for row in rows if row.node.is_current]
    return " ".join([said, *(f"This thread: {_said(node)}." for node in here)])


def _x(lane: int) -> float:
    return _MARGIN + _DOT + 4 + lane * _LANE


def _y(number: int) -> float:
    return _TOP + number * _ROW + _ROW / 2
