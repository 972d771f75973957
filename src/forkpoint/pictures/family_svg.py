"""A picture of a family as SVG, with sizes in pixels. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from forkpoint.pictures.family import Row, counts_of, description_of, origin_of, rows_of, time_text
from forkpoint.pictures.text import columns_of, columns_taken, printable, short
from forkpoint.results import FamilyNode, LineageEntry

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
    rows = rows_of(root)
    title = f"Family of {short(root.entry.thread_id, _NAME)}"
    summary = " · ".join([*counts_of(rows), "times in UTC"])
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


def _description(rows: Sequence[Row]) -> str:
    summary = f"A tree, one row for each thread: {', '.join(counts_of(rows))}."
    here = [row.node for row in rows if row.node.is_current]
    return " ".join([summary, *(f"This thread: {description_of(node)}." for node in here)])


def _x(lane: int) -> int:
    return _MARGIN + 11 + lane * _LANE


def _y(number: int) -> int:
    return _TOP + number * _ROW + _ROW // 2


def _wide(text: str, letter: float) -> float:
    """Return how many pixels a text takes at most, or about that: fonts differ."""
    others = sum(char > _LAST_LETTER and columns_of(char) == 1 for char in text)
    return round(letter * (columns_taken(text) + _OTHER_LETTERS * others), 1)


def _table(rows: Sequence[Row], least: float) -> tuple[list[_Name], list[_Column]]:
    """Return what each row says, and where; the last column ends at `least` or right of it.

    The ids get what room the other columns leave.
    """
    entries = [row.node.entry for row in rows]
    cells = {
        "Origin": [
            " · ".join(origin_of(each, "fork", "clone")) or "first thread" for each in entries
        ],
        "Created": [time_text(each.created_at) for each in entries],
        "Checkpoints": [str(each.checkpoint_count) if each.exists else "-" for each in entries],
    }
    widths = [
        max(_wide(content, _SMALL) for content in [top, *below]) for top, below in cells.items()
    ]
    others = sum(widths) + len(widths) * _GAP
    names = [_name(row, _WIDEST - _MARGIN - others) for row in rows]
    right = max(least, others + max(name.right for name in names))
    starts = [right - sum(widths[n:]) - _GAP * (len(widths) - 1 - n) for n in range(len(widths))]
    styles = ["fp-text", "fp-text", "fp-number"]
    ends = [*starts[:-1], right]  # numbers are aligned at their right
    return names, list(map(_Column, cells, cells.values(), ends, styles))


def _name(row: Row, right: float) -> _Name:
    """Return the id of a row's thread, no wider than up to `right`."""
    kind = _kind(row.node)
    tag = "" if kind == "thread" else kind
    x = _x(row.lane) + 14
    room = right - x - _tag_width(tag) - _LETTER  # the ellipsis may be wider than a letter
    id_ = row.node.entry.thread_id
    most = min(_NAME, int(room / _LETTER))
    label = short(id_, most)
    if _wide(label, _LETTER) > room:
        label = short(id_, int(most / (1 + _OTHER_LETTERS)))
    return _Name(label, x, _wide(label, _LETTER) + 2, tag)


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
    lines = [printable(entry.thread_id)]
    if entry.parent_thread_id is not None:
        lines.append(f"made from {printable(entry.parent_thread_id)}")
    if entry.parent_checkpoint_id is not None:
        lines.append(f"at checkpoint {printable(entry.parent_checkpoint_id)}")
    return "\n".join(lines)


def _text(x: float, y: float, content: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" class="{style.strip()}">{escape(content)}</text>'


def _lines(rows: Sequence[Row]) -> list[str]:
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


def _way(rows: Sequence[Row]) -> set[int]:
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


def _legend(rows: Sequence[Row]) -> tuple[list[str], float]:
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
