"""Pictures of a family, and of what differs between two states: text, Mermaid, SVG, HTML. Pure.

A family is drawn with one thread to a row, like a log of commits, for that is what stays legible
with hundreds of forks. No family is walked by recursion, as a fork of a fork of a fork can be
thousands of levels deep. Ids, keys and values come from anywhere, so each is made printable,
shortened and escaped.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from forkpoint.types import ChannelDiff, FamilyNode, LineageEntry

_DEEP = 12
"""How many levels are indented each. In a deeper family that would leave no room for the ids."""

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


def _origin(entry: LineageEntry, forked: str, *cloned: str) -> list[str]:
    """Return how a thread was made, such as `forked at step 4` and the time of the checkpoint."""
    if entry.edge is None:
        return []
    if entry.edge == "clone":
        return list(cloned)
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
    """Return a family as lines, one to a thread, with box-drawing characters.

    In a deep family, an arrow leads from a thread down to the one that goes on in its lane.
    """
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
        dot = "↓ " if row.is_heir else "● " if is_deep and row.node.entry.exists else ""
        lines.append(f"{branch}{dot}{_said(row.node)}")
    return "\n".join(lines)


def _said(node: FamilyNode) -> str:
    entry = node.entry
    origin = ", ".join(_origin(entry, "forked", "cloned", _time(entry.created_at)))
    parts = [
        "† " * (not entry.exists)
        + _short(entry.thread_id, _TEXT_ID)
        + " ← this thread" * node.is_current,
        "" if entry.exists else "purged",
        origin + " UTC" * _names_time(entry),
        f"({_count(entry.checkpoint_count, 'checkpoint')})" if entry.exists else "",
    ]
    return "  ".join(part for part in parts if part)


def _names_time(entry: LineageEntry) -> bool:
    return entry.edge == "clone" or (entry.edge == "fork" and entry.forked_from is not None)


# Mermaid

_UNSAFE = re.compile(
    r"(?<![A-Za-z0-9])[._-]|[._-](?![A-Za-z0-9])|(?<!\d):|:(?!\d)|[!-+/;-@\[-^`{-~]|[ﬂ°¶ß]"
)
"""What a label has as entity codes: syntax of Mermaid, HTML and Markdown, and what Mermaid itself
has in place of entity codes while it parses."""

_UNSAFE_DECODED = "\\:$ﬂ¶"
"""Beginnings of what Mermaid looks for after it has decoded them: a line break, an icon, a formula,
an entity code. A joiner of no width behind them hides it."""

_MERMAID_ID = 40


def mermaid(root: FamilyNode) -> str:
    """Return a family as a Mermaid flowchart.

    Its direction is the one in which the family is less wide. Threads differ by their shapes and
    words, not by colors, as those are the theme's. For more than some 200 threads, Mermaid's
    limits have to be raised: `maxTextSize` is 50,000 characters, and `maxEdges` 500, by default.
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
    lines += [
        f"    {_arrow(number, row)}" for number, row in enumerate(rows) if row.parent is not None
    ]
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
    words = _origin(entry, "forked", "cloned", _time(entry.created_at))
    said = "<br/>".join(map(_coded, words)) + " UTC" * _names_time(entry)
    return f'n{row.parent} {"-.->" if entry.edge == "clone" else "-->"}|"{said}"| n{number}'


def _coded(text: str) -> str:
    return _UNSAFE.sub(lambda match: _code(match[0]), text)


def _code(char: str) -> str:
    return f"#{ord(char)};" + "#8288;" * (char in _UNSAFE_DECODED)


# SVG, with sizes in pixels

_WIDEST = 1100
_MARGIN = 20
_GAP = 28
_TAG_GAP = 10
_TOP = 124
_ROW = 26
_BASE = 17
"""Where in a row the text stands."""

_LANE = 22
_TURN = 8
_DOT = 5

_NAME = 48
"""How many columns of an id are shown, if the lanes leave the room."""

_LETTER = 7.9
_SMALL = 6.8
_TITLE_LETTER = 9.0
_LEGEND_GAP = 22
_LEGEND_LETTER = 6.3
_LAST_LETTER = "\u0530"
_OTHER_LETTERS = 0.5
"""How much wider letters may be behind Latin, Greek and Cyrillic, as other fonts have them."""

_LINES = ("fp-line", "fp-line fp-clone", "fp-way", "fp-way fp-clone")

_STYLE = """
.fp-family{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.fp-family text{fill:#1f2328;white-space:pre;font-variant-numeric:tabular-nums}
.fp-family .fp-panel{fill:#fff;stroke:#d1d9e0}
.fp-family .fp-row{fill:#818b98;fill-opacity:0}
.fp-family .fp-odd{fill-opacity:.07}
.fp-family .fp-here{fill:#0969da;fill-opacity:.13}
.fp-family g:hover>.fp-row{fill-opacity:.2}
.fp-family .fp-title{font-size:15px;font-weight:600}
.fp-family .fp-name{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.fp-family .fp-dim{fill:#59636e}
.fp-family .fp-bold{font-weight:700}
.fp-family .fp-gone{fill:#59636e;font-style:italic;text-decoration:line-through}
.fp-family .fp-number{text-anchor:end}
.fp-family .fp-rule{stroke:#d1d9e0}
.fp-family .fp-line{fill:none;stroke:#818b98;stroke-width:1.5}
.fp-family .fp-way{fill:none;stroke:#0969da;stroke-width:3}
.fp-family .fp-clone{stroke-dasharray:3 2.5}
.fp-family .fp-mark{fill:#fff;stroke:#59636e;stroke-width:1.5}
.fp-family .fp-dot{fill:#59636e}
.fp-family .fp-ring{fill:#fff;stroke:#0969da;stroke-width:2.5}
.fp-family .fp-core{fill:#0969da}
.fp-family .fp-middle{text-anchor:middle;font-size:11px}
.fp-family .fp-graph{pointer-events:none}
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


class _Column(NamedTuple):
    """A column right of the graph."""

    heading: str
    cells: list[str]
    x: float
    style: str


class _Name(NamedTuple):
    """The id of a thread, as far as there is room for it."""

    text: str
    x: float
    width: float
    tag: str

    @property
    def right(self) -> float:
        return self.x + self.width + _tag_width(self.tag)


def svg(root: FamilyNode) -> str:
    """Return a family as an SVG document: a row for each thread, with the lines between them left.

    It has a background of its own, since a notebook's need not be what the system prefers.
    """
    rows = _rows(root)
    title = f"Family of {_short(root.entry.thread_id, _NAME)}"
    summary = " · ".join([*_summary(rows), "times in UTC"])
    legend, legend_right = _legend(rows)
    header = max(_wide(title, _TITLE_LETTER), _wide(summary, _SMALL))
    names, columns = _table(rows, max(_MARGIN + header, legend_right))
    right = columns[-1].x
    width, height = round(right + _MARGIN), _TOP + len(rows) * _ROW + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="fp-family" role="img" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_description(rows))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="fp-panel" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        _text(_MARGIN, 32, title, "fp-title"),
        _text(_MARGIN, 53, summary, "fp-dim"),
        *legend,
        _text(names[0].x, _TOP - 11, "Thread", "fp-dim"),
        *(
            _text(round(each.x, 1), _TOP - 11, each.heading, f"{each.style} fp-dim")
            for each in columns
        ),
        f'<path class="fp-rule" d="M{_MARGIN} {_TOP - 2.5}H{width - _MARGIN}"/>',
        *(_svg_row(n, row.node, names[n], columns, width) for n, row in enumerate(rows)),
        '<g class="fp-graph">',
        *_lines(rows),
        *(_dot(_x(row.lane), _y(n), _kind(row.node)) for n, row in enumerate(rows)),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts)


def _description(rows: Sequence[_Row]) -> str:
    said = f"A tree, one row for each thread: {', '.join(_summary(rows))}."
    here = [row.node for row in rows if row.node.is_current]
    return " ".join([said, *(f"This thread: {_said(node)}." for node in here)])


def _x(lane: int) -> int:
    return _MARGIN + 11 + lane * _LANE


def _y(number: int) -> int:
    return _TOP + number * _ROW + _ROW // 2


def _wide(text: str, letter: float) -> float:
    """Return how many pixels a text takes at most, or about that: fonts differ."""
    others = sum(char > _LAST_LETTER and _columns_of(char) == 1 for char in text)
    return round(letter * (_columns(text) + _OTHER_LETTERS * others), 1)


def _table(rows: Sequence[_Row], least: float) -> tuple[list[_Name], list[_Column]]:
    """Return what each row says, and where; the last column ends at `least` or right of it.

    The ids get what room the other columns leave.
    """
    entries = [row.node.entry for row in rows]
    cells = {
        "Origin": [
            " · ".join(_origin(each, "fork", "clone")) or "first thread" for each in entries
        ],
        "Created": [_time(each.created_at) for each in entries],
        "Checkpoints": [str(each.checkpoint_count) if each.exists else "-" for each in entries],
    }
    widths = [max(_wide(said, _SMALL) for said in [top, *below]) for top, below in cells.items()]
    others = sum(widths) + len(widths) * _GAP
    names = [_name(row, _WIDEST - _MARGIN - others) for row in rows]
    right = max(least, others + max(name.right for name in names))
    starts = [right - sum(widths[n:]) - _GAP * (len(widths) - 1 - n) for n in range(len(widths))]
    styles = ["fp-text", "fp-text", "fp-number"]
    ends = [*starts[:-1], right]  # numbers are aligned at their right
    return names, list(map(_Column, cells, cells.values(), ends, styles))


def _name(row: _Row, right: float) -> _Name:
    """Return the id of a row's thread, no wider than up to `right`."""
    kind = _kind(row.node)
    tag = "" if kind == "thread" else kind
    x = _x(row.lane) + 14
    room = right - x - _tag_width(tag) - _LETTER  # the ellipsis may be wider than a letter
    id_ = row.node.entry.thread_id
    most = min(_NAME, int(room / _LETTER))
    shown = _short(id_, most)
    if _wide(shown, _LETTER) > room:
        shown = _short(id_, int(most / (1 + _OTHER_LETTERS)))
    return _Name(shown, x, _wide(shown, _LETTER) + 2, tag)


def _tag_width(tag: str) -> float:
    return _TAG_GAP + 14 + _wide(tag, _SMALL) if tag else 0


def _svg_row(
    number: int, node: FamilyNode, name: _Name, columns: Sequence[_Column], width: int
) -> str:
    """Return a row but for its lines. Its tooltip has the ids in full."""
    top = _TOP + number * _ROW
    kind = "fp-here" if node.is_current else "fp-odd" if number % 2 else ""
    style = "fp-gone" if not node.entry.exists else "fp-bold" if node.is_current else ""
    parts = [
        f"<g><title>{escape(_tooltip(node.entry))}</title>",
        f'<rect class="fp-row {kind}" x="{_MARGIN - 10}" y="{top}" '
        f'width="{width - 2 * _MARGIN + 20}" height="{_ROW}" rx="4"/>',
        # Clipped, as fonts may draw it wider, and marks higher, than any estimate.
        f'<svg x="{name.x}" y="{top}" width="{name.width}" height="{_ROW}" overflow="hidden">',
        _text(0, _BASE, name.text, f"fp-name {style}"),
        "</svg>",
    ]
    if name.tag:
        parts += _tag(name, top, "fp-pill" if node.is_current else "fp-tag")
    for column in columns:
        parts.append(_text(round(column.x, 1), top + _BASE, column.cells[number], column.style))
    return "".join([*parts, "</g>"])


def _tag(name: _Name, top: int, style: str) -> list[str]:
    x, width = name.x + name.width + _TAG_GAP, _tag_width(name.tag) - _TAG_GAP
    return [
        f'<rect class="{style}" x="{x:.1f}" y="{top + 4}" width="{width:.1f}" height="18" rx="9"/>',
        _text(round(x + width / 2, 1), top + _BASE, name.tag, "fp-middle"),
    ]


def _tooltip(entry: LineageEntry) -> str:
    said = [_printable(entry.thread_id)]
    if entry.parent_thread_id is not None:
        said.append(f"made from {_printable(entry.parent_thread_id)}")
    if entry.parent_checkpoint_id is not None:
        said.append(f"at checkpoint {_printable(entry.parent_checkpoint_id)}")
    return "\n".join(said)


def _text(x: float, y: float, said: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" class="{style.strip()}">{escape(said)}</text>'


def _lines(rows: Sequence[_Row]) -> list[str]:
    """Return the lines from threads to those made from them.

    Those of a fork begin with a ring, those of a clone are dashed and begin with a square. Those
    that lead to the current thread are thick.
    """
    way = _way(rows)
    paths: dict[str, list[str]] = {style: [] for style in _LINES}
    marks = []
    ends: dict[int, int] = {}
    for number, row in enumerate(rows):
        if row.parent is None:
            continue
        kind = "fp-clone" if row.node.entry.edge == "clone" else ""
        x, y = _x(rows[row.parent].lane), _y(number)
        parent_end = _y(row.parent) + _DOT
        end = ends.get(row.parent, parent_end)
        turn = y - _ROW // 2 if row.is_heir else y - _TURN
        ends[row.parent] = turn
        onwards = (
            f"M{x} {turn}V{y - _DOT}"
            if row.is_heir
            else f"M{x} {turn}q0 {_TURN} {_TURN} {_TURN}H{_x(row.lane) - _DOT}"
        )
        paths["fp-line"].append(f"M{x} {end}V{turn}")
        paths[f"fp-line {kind}".strip()].append(onwards)
        if number in way:
            paths["fp-way"].append(f"M{x} {parent_end}V{turn}")
            paths[f"fp-way {kind}".strip()].append(onwards)
        marks.append(_mark(x, turn, bool(kind)))
    drawn = [f'<path class="{style}" d="{"".join(d)}"/>' for style, d in paths.items() if d]
    return drawn + marks


def _mark(x: float, y: float, is_clone: bool) -> str:
    """Return what is where a line branches off: the checkpoint of a fork, or a square."""
    if is_clone:
        return f'<rect class="fp-dot" x="{x - 2.5:g}" y="{y - 2.5:g}" width="5" height="5"/>'
    return f'<circle class="fp-mark" cx="{x:g}" cy="{y:g}" r="2.5"/>'


def _way(rows: Sequence[_Row]) -> set[int]:
    """Return the rows of the current thread and its ancestors."""
    way: set[int] = set()
    for number in (number for number, row in enumerate(rows) if row.node.is_current):
        at: int | None = number
        while at is not None:
            way.add(at)
            at = rows[at].parent
    return way


def _kind(node: FamilyNode) -> str:
    if node.is_current:
        return "this thread"
    return "thread" if node.entry.exists else "purged"


def _dot(x: int, y: int, kind: str) -> str:
    if kind == "this thread":
        return (
            f'<circle class="fp-ring" cx="{x}" cy="{y}" r="6"/>'
            f'<circle class="fp-core" cx="{x}" cy="{y}" r="3"/>'
        )
    if kind == "purged":
        return (
            f'<circle class="fp-cross" cx="{x}" cy="{y}" r="5"/>'
            f'<path class="fp-cross" d="M{x - 2} {y - 2}l4 4m0 -4l-4 4"/>'
        )
    return f'<circle class="fp-dot" cx="{x}" cy="{y}" r="5"/>'


def _legend(rows: Sequence[_Row]) -> tuple[list[str], float]:
    """Return what the marks that occur mean, and where that ends."""
    kinds = {_kind(row.node) for row in rows}
    edges = {row.node.entry.edge for row in rows}
    y = 76
    x = _MARGIN
    parts = []
    for label in ("thread", "this thread", "purged"):
        if label in kinds:
            parts += [_dot(x + 7, y, label), _text(x + 20, y + 4, label, "fp-dim")]
            x += 20 + round(_wide(label, _LEGEND_LETTER)) + _LEGEND_GAP
    for style, label, occurs in (
        ("fp-line", "fork of a checkpoint", "fork" in edges),
        ("fp-line fp-clone", "clone of a thread", "clone" in edges),
        ("fp-way", "ancestors of this thread", len(_way(rows)) > 1),
    ):
        if occurs:
            parts.append(f'<path class="{style}" d="M{x:g} {y}h26"/>')
            if style != "fp-way":
                parts.append(_mark(x + 3, y, "clone" in style))
            parts.append(_text(x + 33, y + 4, label, "fp-dim"))
            x += 33 + round(_wide(label, _LEGEND_LETTER)) + _LEGEND_GAP
    return ['<g class="fp-graph">', *parts, "</g>"], x - _LEGEND_GAP


# Differences

_VALUE = 100
"""How many columns of a value are shown."""

_KEY = 40
_SHOWN = 20
"""How many additions, removals and changes of a channel are shown, of each."""

_LEVELS = 4
"""How deep lists and dicts are followed."""

_BRACKETS: Mapping[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), dict: ("{", "}")}

_CONTENT = 1000
"""How much of a message's text is looked at: more than is shown, as runs of spaces become one."""

_BEFORE = 20
"""How much of what two long values have in common is shown before what differs."""


def diff(channels: Mapping[str, ChannelDiff]) -> str:
    """Return how states differ as lines, one channel after the other."""
    lines = []
    for name, channel in _differing(channels):
        lines.append(f"{_short(name, _KEY)}: {_verdict(channel)}")
        lines += [f"  {sign} {said}" if sign else f"  {said}" for sign, said in _changes(channel)]
    return "\n".join([*lines, *_rest(channels)])


_CELL = (
    "text-align:left;vertical-align:top;padding:4px 12px;border-top:1px solid rgba(128,128,128,.3)"
)
_LINE = (
    "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;"
    "padding:0 4px 0 calc(4px + 2ch);text-indent:-2ch"
)
_COLORS = {"+": "rgba(46,160,67,.18)", "-": "rgba(248,81,73,.18)", "~": "rgba(187,128,9,.18)"}


def diff_html(channels: Mapping[str, ChannelDiff]) -> str:
    """Return how states differ as a table.

    Its text has the color of the notebook's, and its tints let the notebook's background through.
    Styles are inline, for notebooks remove style sheets from what they do not trust.
    """
    rows = [
        f'<tr><th style="{_CELL};white-space:nowrap">{html.escape(_short(name, _KEY))}</th>'
        f'<td style="{_CELL};white-space:nowrap">{html.escape(_verdict(channel))}</td>'
        f'<td style="{_CELL}">{"".join(map(_html_line, _changes(channel)))}</td></tr>'
        for name, channel in _differing(channels)
    ]
    rows += [
        f'<tr><td colspan="3" style="{_CELL};opacity:.75">{html.escape(line)}</td></tr>'
        for line in _rest(channels)
    ]
    return f'<table style="border-collapse:collapse">{"".join(rows)}</table>'


def _html_line(change: tuple[str, str]) -> str:
    sign, said = change
    tint = f";background:{_COLORS[sign]}" if sign else ""
    return f'<div style="{_LINE}{tint}">{sign or " "} {html.escape(said)}</div>'


def _differing(channels: Mapping[str, ChannelDiff]) -> list[tuple[str, ChannelDiff]]:
    return [(name, channel) for name, channel in channels.items() if channel.status != "unchanged"]


def _rest(channels: Mapping[str, ChannelDiff]) -> list[str]:
    """Return the line on channels that do not differ."""
    names = [name for name, channel in channels.items() if channel.status == "unchanged"]
    if names:
        said = ", ".join(_short(name, _KEY) for name in islice(names, _VALUE))
        return [_cut(f"{_count(len(names), 'channel')} unchanged: {said}", _VALUE)]
    return [] if channels else ["no channels"]


def _verdict(channel: ChannelDiff) -> str:
    """Return how a channel differs, in two or three words."""
    counts = {
        "added": len(channel.added),
        "removed": len(channel.removed),
        "changed": len(channel.changed),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return said or channel.status


def _changes(channel: ChannelDiff) -> list[tuple[str, str]]:
    """Return the lines on a channel, each with the sign `+`, `-`, `~` or none."""
    if channel.is_rebuilt:
        return [("", "graph.get_state shows its value")]
    if channel.status == "added":
        return [("+", _one_line(channel.after))]
    if channel.status == "removed":
        return [("-", _one_line(channel.before))]
    if not (channel.added or channel.removed or channel.changed):
        if channel.before is None and channel.after is None:
            return [("", "the same elements in another order")]
        return [("", _versions(channel.before, channel.after))]
    return [
        *_signed("-", _elements(channel.removed), len(channel.removed)),
        *_signed("~", _pairs(channel.changed), len(channel.changed)),
        *_signed("+", _elements(channel.added), len(channel.added)),
    ]


def _signed(sign: str, said: Iterator[str], count: int) -> list[tuple[str, str]]:
    lines = [(sign, line) for line in islice(said, _SHOWN)]
    if count > _SHOWN:
        lines.append((sign, f"… and {count - _SHOWN} more"))
    return lines


def _elements(elements: Sequence[Any] | Mapping[Any, Any]) -> Iterator[str]:
    if isinstance(elements, Mapping):
        return (f"{_key(key)}: {_one_line(value)}" for key, value in elements.items())
    return map(_one_line, elements)


def _pairs(changed: Mapping[Any, tuple[Any, Any]]) -> Iterator[str]:
    return (f"{_key(key)}: {_versions(*pair)}" for key, pair in changed.items())


def _key(key: Any) -> str:
    return _short(key if isinstance(key, str) else _one_line(key), _KEY)


def _versions(old: Any, new: Any) -> str:
    """Return two values of which the first became the second, from shortly before they differ."""
    start = _start(old, new)
    first, second = _one_line(old, start), _one_line(new, start)
    return f"{first} (changed in what is not shown)" if first == second else f"{first} -> {second}"


def _start(old: Any, new: Any) -> int:
    """Return how much of two long texts to leave out because it is the same."""
    first, second = _content(old), _content(new)
    if first is None or second is None or max(len(first), len(second)) <= _VALUE:
        return 0
    ends = range(1, min(len(first), len(second)) + 1)
    common = bisect(ends, False, key=lambda end: first[:end] != second[:end])
    return max(common - _BEFORE, 0)


def _content(value: Any) -> str | None:
    text = value if isinstance(value, str) else _attribute(value, "content")
    return text if isinstance(text, str) else None


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - a property of anyone's may raise anything
        return None


def _one_line(value: Any, start: int = 0) -> str:
    """Return a value in one line, a text or message from a place on."""
    try:
        said = _represented(value, start, _LEVELS)
    except Exception:  # noqa: BLE001 - what a value's own methods raise must not hide the rest
        said = f"<{type(value).__name__}>"
    return _cut(_printable(said), _VALUE)


def _represented(value: Any, start: int, levels: int) -> str:
    """Return the beginning, at least, of what is to be shown of a value."""
    if isinstance(value, (str, bytes)):
        return "…" * (start > 0) + repr(value[start : start + _VALUE + 1])
    kind, content = _attribute(value, "type"), _attribute(value, "content")
    if isinstance(kind, str) and isinstance(content, (str, list)):
        return f"{kind}: {_of_message(value, content, start, levels)}"
    brackets = _BRACKETS.get(type(value))
    if brackets is None:
        return " ".join(repr(value).split())
    opening, closing = brackets
    if value and levels == 0:
        return f"{opening}…{closing}"
    parts = (_represented(part, 0, levels - 1) for part in value)
    if isinstance(value, dict):
        parts = (
            f"{_represented(key, 0, levels - 1)}: {_represented(part, 0, levels - 1)}"
            for key, part in value.items()
        )
    comma = "," * (type(value) is tuple and len(value) == 1)
    return f"{opening}{_joined(parts)}{comma}{closing}"


def _of_message(message: Any, content: str | list[Any], start: int, levels: int) -> str:
    """Return a message's text, or what tools it calls if it has none."""
    calls = _attribute(message, "tool_calls")
    if not content and isinstance(calls, list) and calls and levels:
        return _joined(
            f"{call['name']}({_represented(call['args'], 0, levels - 1)})" for call in calls
        )
    said = content if isinstance(content, str) else _joined(map(_of_block, content))
    return "…" * (start > 0) + " ".join(said[start : start + _CONTENT].split())


def _of_block(block: Any) -> str:
    """Return a part of a message: its text, or what it is, such as `<image>`."""
    if isinstance(block, dict):
        said = block.get("text")
        return said[:_CONTENT] if isinstance(said, str) else f"<{block.get('type')}>"
    return str(block)


def _joined(parts: Iterable[str]) -> str:
    """Return as many parts as can be shown, and no more: there may be thousands."""
    taken: list[str] = []
    length = 0
    for part in parts:
        if length > _VALUE:
            taken.append("…")
            break
        taken.append(part)
        length += len(part)
    return ", ".join(taken)
