"""A value of anyone's in one line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from forkpoint.pictures.text import printable, truncate
from forkpoint.untrusted import attribute

VALUE_COLUMNS = 100
"""How many columns of a value are shown."""

_LEVELS = 4
"""How deep lists and dicts are followed."""

_BRACKETS: Mapping[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), dict: ("{", "}")}

_CONTENT = 1000
"""How much of a message's text is looked at: more than is shown, as runs of spaces become one."""


def one_line(value: Any, start: int = 0) -> str:
    """Return a value in one line, a text or message from a place on."""
    try:
        text = _representation(value, start, _LEVELS)
    except Exception:  # noqa: BLE001 - what a value's own methods raise must not hide the rest
        text = f"<{type(value).__name__}>"
    return truncate(printable(text), VALUE_COLUMNS)


def _representation(value: Any, start: int, levels: int) -> str:
    """Return the beginning, at least, of what is to be shown of a value."""
    if isinstance(value, (str, bytes)):
        return "…" * (start > 0) + repr(value[start : start + VALUE_COLUMNS + 1])
    kind, content = attribute(value, "type"), attribute(value, "content")
    if isinstance(kind, str) and isinstance(content, (str, list)):
        return f"{kind}: {_of_message(value, content, start, levels)}"
    brackets = _BRACKETS.get(type(value))
    if brackets is None:
        return " ".join(repr(value).split())
    opening, closing = brackets
    if value and levels == 0:
        return f"{opening}…{closing}"
    parts = (_representation(part, 0, levels - 1) for part in value)
    if isinstance(value, dict):
        parts = (
            f"{_representation(key, 0, levels - 1)}: {_representation(part, 0, levels - 1)}"
            for key, part in value.items()
        )
    comma = "," * (type(value) is tuple and len(value) == 1)
    return f"{opening}{_join(parts)}{comma}{closing}"


def _of_message(message: Any, content: str | list[Any], start: int, levels: int) -> str:
    """Return a message's text, or what tools it calls if it has none."""
    calls = attribute(message, "tool_calls")
    if not content and isinstance(calls, list) and calls and levels:
        return _join(
            f"{call['name']}({_representation(call['args'], 0, levels - 1)})" for call in calls
        )
    text = content if isinstance(content, str) else _join(map(_of_block, content))
    return "…" * (start > 0) + " ".join(text[start : start + _CONTENT].split())


def _of_block(block: Any) -> str:
    """Return a part of a message: its text, or what it is, such as `<image>`."""
    if isinstance(block, dict):
        text = block.get("text")
        return text[:_CONTENT] if isinstance(text, str) else f"<{block.get('type')}>"
    return str(block)


def _join(parts: Iterable[str]) -> str:
    """Return as many parts as can be shown, and no more: there may be thousands."""
    texts: list[str] = []
    length = 0
    for part in parts:
        if length > VALUE_COLUMNS:
            texts.append("…")
            break
        texts.append(part)
        length += len(part)
    return ", ".join(texts)
