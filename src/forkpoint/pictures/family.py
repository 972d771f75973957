"""Pictures of a family as text and as Mermaid. Pure.

A family is drawn with one thread to a row, like a log of commits, for that is what stays legible
with hundreds of forks. No family is walked by recursion, as a fork of a fork of a fork can be
thousands of levels deep. Ids, keys and values come from anywhere, so each is made printable,
shortened and escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from forkpoint.pictures.text import count_of, short
from forkpoint.results import FamilyNode, LineageEntry

_DEEP = 12
"""How many levels are indented each. In a deeper family that would leave no room for the ids."""

_TEXT_ID = 60
_CHECKPOINT_ID = 20
_STEP = 12


# The order and the place of each thread


class Row(NamedTuple):
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


def rows_of(root: FamilyNode) -> list[Row]:
    """Return the threads from top to bottom, each before its children.

    In a deep family, the child from which most threads descend goes on in the lane of its parent,
    so that a chain is a straight line, and n threads need no more than log2(n) lanes and one.
    """
    heirs = _heirs(root)
    rows: list[Row] = []
    pending: list[tuple[FamilyNode, int | None, int, bool, bool]] = [(root, None, 0, False, True)]
    while pending:
        row = Row(*pending.pop())
        heir = heirs.get(id(row.node))
        placed = [child for child in row.node.children if child is not heir]
        below = [(child, len(rows), row.lane + 1, False, False) for child in placed]
        if heir is not None:
            below.append((heir, len(rows), row.lane, True, True))
        elif below:
            below[-1] = (*below[-1][:-1], True)
        pending += reversed(below)
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


# The words on a thread


def origin_of(entry: LineageEntry, forked: str, *cloned: str) -> list[str]:
    """Return how a thread was made, such as `forked at step 4` and the time of the checkpoint."""
    if entry.edge is None:
        return []
    if entry.edge == "clone":
        return list(cloned)
    parts = []
    if entry.step is not None:
        parts.append(f"step {short(str(entry.step), _STEP)}")
    if entry.forked_from is not None:
        parts.append(time_text(entry.forked_from))
    if not parts and entry.parent_checkpoint_id:
        parts.append(f"checkpoint {short(entry.parent_checkpoint_id, _CHECKPOINT_ID)}")
    if parts:
        parts[0] = f"{forked} at {parts[0]}"
    return parts or [forked]


def time_text(moment: datetime) -> str:
    """Return a time in UTC, to the minute."""
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M}"


def counts_of(rows: Sequence[Row]) -> list[str]:
    """Return how many threads of each kind there are."""
    entries = [row.node.entry for row in rows]
    counts = [
        count_of(len(entries), "thread"),
        count_of(sum(entry.edge == "fork" for entry in entries), "fork"),
        count_of(sum(entry.edge == "clone" for entry in entries), "clone"),
        f"{sum(not entry.exists for entry in entries)} purged",
    ]
    return [count for count in counts if not count.startswith("0 ")]


# Text


def text(root: FamilyNode) -> str:
    """Return a family as lines, one to a thread, with box-drawing characters.

    In a deep family, an arrow leads from a thread down to the one that goes on in its lane.
    """
    rows = rows_of(root)
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
        lines.append(f"{branch}{dot}{description_of(row.node)}")
    return "\n".join(lines)


def description_of(node: FamilyNode) -> str:
    """Return a thread in one line: its id, how it was made, and how many checkpoints it has."""
    entry = node.entry
    origin = ", ".join(origin_of(entry, "forked", "cloned", time_text(entry.created_at)))
    parts = [
        "† " * (not entry.exists)
        + short(entry.thread_id, _TEXT_ID)
        + " ← this thread" * node.is_current,
        "" if entry.exists else "purged",
        origin + " UTC" * _names_time(entry),
        f"({count_of(entry.checkpoint_count, 'checkpoint')})" if entry.exists else "",
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
    rows = rows_of(root)
    levels = _levels(root)
    is_long = len(levels) > max(map(len, levels))
    lines = [
        f"flowchart {'TD' if is_long else 'LR'}",
        "    accTitle: Family of a thread",
        f"    accDescr: {', '.join(counts_of(rows))}",
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
    lines = [_coded(short(entry.thread_id, _MERMAID_ID))]
    if node.is_current:
        lines.append("← this thread")
    lines.append(count_of(entry.checkpoint_count, "checkpoint") if entry.exists else "purged")
    label = "<br/>".join(lines)
    if not entry.exists:
        return f'["† {label}"]:::purged'
    return f'(["{label}"]):::current' if node.is_current else f'["{label}"]'


def _arrow(number: int, row: Row) -> str:
    entry = row.node.entry
    words = origin_of(entry, "forked", "cloned", time_text(entry.created_at))
    label = "<br/>".join(map(_coded, words)) + " UTC" * _names_time(entry)
    return f'n{row.parent} {"-.->" if entry.edge == "clone" else "-->"}|"{label}"| n{number}'


def _coded(text: str) -> str:
    return _UNSAFE.sub(lambda match: _code(match[0]), text)


def _code(char: str) -> str:
    return f"#{ord(char)};" + "#8288;" * (char in _UNSAFE_DECODED)
