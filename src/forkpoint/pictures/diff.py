"""What differs between two states, as text and as HTML. Pure."""

from __future__ import annotations

import html
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from forkpoint.pictures.text import counted, cut, printable, short
from forkpoint.results import ChannelDiff

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
        lines.append(f"{short(name, _KEY)}: {_verdict(channel)}")
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
    sign, said = change
    tint = f";background:{_COLORS[sign]}" if sign else ""
    return f'<div style="{_LINE}{tint}">{sign or " "} {html.escape(said)}</div>'


def _differing(channels: Mapping[str, ChannelDiff]) -> list[tuple[str, ChannelDiff]]:
    return [(name, channel) for name, channel in channels.items() if channel.status != "unchanged"]


def _rest(channels: Mapping[str, ChannelDiff]) -> list[str]:
    """Return the line on channels that do not differ."""
    names = [name for name, channel in channels.items() if channel.status == "unchanged"]
    if names:
        said = ", ".join(short(name, _KEY) for name in islice(names, _VALUE))
        return [cut(f"{counted(len(names), 'channel')} unchanged: {said}", _VALUE)]
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
    return short(key if isinstance(key, str) else _one_line(key), _KEY)


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
    return cut(printable(said), _VALUE)


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
