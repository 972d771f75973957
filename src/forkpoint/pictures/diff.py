"""What differs between two states, as text and as HTML. Pure."""

from __future__ import annotations

import html
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from forkpoint.pictures.text import count_of, short, truncate
from forkpoint.pictures.values import VALUE_COLUMNS, one_line
from forkpoint.results import ChannelDiff
from forkpoint.untrusted import attribute

_KEY = 40
_SHOWN = 20
"""How many additions, removals and changes of a channel are shown, of each."""

_BEFORE = 20
"""How much of what two long values have in common is shown before what differs."""


def diff(channels: Mapping[str, ChannelDiff]) -> str:
    """Return how states differ as lines, one channel after the other."""
    lines = []
    for name, channel in _differing(channels):
        lines.append(f"{short(name, _KEY)}: {_verdict(channel)}")
        lines += [f"  {sign} {text}" if sign else f"  {text}" for sign, text in _changes(channel)]
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
        f'<tr><th style="{_CELL};white-space:nowrap">{html.escape(short(name, _KEY))}</th>'
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
    sign, text = change
    tint = f";background:{_COLORS[sign]}" if sign else ""
    return f'<div style="{_LINE}{tint}">{sign or " "} {html.escape(text)}</div>'


def _differing(channels: Mapping[str, ChannelDiff]) -> list[tuple[str, ChannelDiff]]:
    return [(name, channel) for name, channel in channels.items() if channel.status != "unchanged"]


def _rest(channels: Mapping[str, ChannelDiff]) -> list[str]:
    """Return the line on channels that do not differ."""
    names = [name for name, channel in channels.items() if channel.status == "unchanged"]
    if names:
        text = ", ".join(short(name, _KEY) for name in islice(names, VALUE_COLUMNS))
        return [truncate(f"{count_of(len(names), 'channel')} unchanged: {text}", VALUE_COLUMNS)]
    return [] if channels else ["no channels"]


def _verdict(channel: ChannelDiff) -> str:
    """Return how a channel differs, in two or three words."""
    counts = {
        "added": len(channel.added),
        "removed": len(channel.removed),
        "changed": len(channel.changed),
    }
    text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return text or channel.status


def _changes(channel: ChannelDiff) -> list[tuple[str, str]]:
    """Return the lines on a channel, each with the sign `+`, `-`, `~` or none."""
    if channel.is_rebuilt:
        return [("", "graph.get_state shows its value")]
    if channel.status == "added":
        return [("+", one_line(channel.after))]
    if channel.status == "removed":
        return [("-", one_line(channel.before))]
    if not (channel.added or channel.removed or channel.changed):
        if channel.before is None and channel.after is None:
            return [("", "the same elements in another order")]
        return [("", _versions(channel.before, channel.after))]
    return [
        *_with_sign("-", _elements(channel.removed), len(channel.removed)),
        *_with_sign("~", _pairs(channel.changed), len(channel.changed)),
        *_with_sign("+", _elements(channel.added), len(channel.added)),
    ]


def _with_sign(sign: str, texts: Iterator[str], count: int) -> list[tuple[str, str]]:
    lines = [(sign, line) for line in islice(texts, _SHOWN)]
    if count > _SHOWN:
        lines.append((sign, f"… and {count - _SHOWN} more"))
    return lines


def _elements(elements: Sequence[Any] | Mapping[Any, Any]) -> Iterator[str]:
    if isinstance(elements, Mapping):
        return (f"{_key(key)}: {one_line(value)}" for key, value in elements.items())
    return map(one_line, elements)


def _pairs(pairs: Mapping[Any, tuple[Any, Any]]) -> Iterator[str]:
    return (f"{_key(key)}: {_versions(*pair)}" for key, pair in pairs.items())


def _key(key: Any) -> str:
    return short(key if isinstance(key, str) else one_line(key), _KEY)


def _versions(old: Any, new: Any) -> str:
    """Return two values of which the first became the second, from shortly before they differ."""
    start = _start(old, new)
    first, second = one_line(old, start), one_line(new, start)
    return f"{first} (changed in what is not shown)" if first == second else f"{first} -> {second}"


def _start(old: Any, new: Any) -> int:
    """Return how much of two long texts to leave out because it is the same."""
    first, second = _content(old), _content(new)
    if first is None or second is None or max(len(first), len(second)) <= VALUE_COLUMNS:
        return 0
    ends = range(1, min(len(first), len(second)) + 1)
    common = bisect(ends, False, key=lambda end: first[:end] != second[:end])
    return max(common - _BEFORE, 0)


def _content(value: Any) -> str | None:
    text = value if isinstance(value, str) else attribute(value, "content")
    return text if isinstance(text, str) else None
