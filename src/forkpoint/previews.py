"""Previews: what a thread's record shows of its state, as JSON of a bounded size. Pure.

A preview has the values of chosen channels: a short JSON value as it is, the beginning of a longer
text, and the type and the text of a message, or of the last one of a list. A text or a number of
any class counts as one, and so does the text of a time. Any other value is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from forkpoint.json_values import short_scalar

PREVIEW_CHANNELS = 16
"""How many channels may be chosen."""
PREVIEW_CHARACTERS = 200
"""How many characters of a text are shown."""
PREVIEW_BYTES = 1000
"""How many bytes any other value may take as JSON."""
PREVIEW_PARTS = 64
"""How many values there may be within a value, itself included."""

_LEFT_OUT = object()
_CUT = "…"


def preview_of(values: Mapping[str, Any], channels: Sequence[str]) -> str:
    """Return the preview of a state, as the JSON of a mapping from channel to value."""
    shown = {
        channel: _shown_or_left_out(values[channel]) for channel in channels if channel in values
    }
    return _as_json({name: value for name, value in shown.items() if value is not _LEFT_OUT})


def preview_after(
    before: str | None, values: Mapping[str, Any], channels: Sequence[str]
) -> str | None:
    """Return the preview of a state in which some channels have new values.

    Args:
        before: The preview before; None if there is none.
        values: The new values by channel.
        channels: The channels that previews show.

    Returns:
        The preview; None if there was none, and no channels are chosen.
    """
    if before is None and not channels:
        return None
    shown = json.loads(before or "{}")
    kept = {name: value for name, value in shown.items() if name not in values}
    return _as_json(kept | json.loads(preview_of(values, channels)))


def part_of(preview: str | None, channels: Sequence[str]) -> str | None:
    """Return the part of a preview that shows some channels."""
    if preview is None:
        return None
    shown = json.loads(preview)
    return json.dumps({name: shown[name] for name in channels if name in shown})


def joined(before: str | None, preview: str) -> str:
    """Return a preview that also shows the channels of another one, if there is one."""
    return _as_json(json.loads(before or "{}") | json.loads(preview))


def _as_json(preview: Mapping[str, Any]) -> str:
    return json.dumps(preview, separators=(",", ":"))


def _shown_or_left_out(value: Any) -> Any:
    try:
        return _shown(value)
    except Exception:  # noqa: BLE001 - a message of anyone's may raise anything
        return _LEFT_OUT


def _shown(value: Any) -> Any:
    value = short_scalar(value)
    if type(value) is str:
        return _beginning(value)
    last = value[-1] if type(value) is list and value else value
    if isinstance(last, BaseMessage):
        return {"type": _beginning(str(last.type)), "content": _beginning(_text(last.content))}
    if not _is_plain(value):
        return _LEFT_OUT
    encoded = json.dumps(value, separators=(",", ":"), default=short_scalar)
    return json.loads(encoded) if len(encoded) <= PREVIEW_BYTES else _LEFT_OUT


def _beginning(text: str) -> str:
    return text if len(text) <= PREVIEW_CHARACTERS else text[: PREVIEW_CHARACTERS - 1] + _CUT


def _text(content: Any) -> str:
    """Return the text of a message's content, which may be a list of blocks."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _is_plain(value: Any) -> bool:
    """Return whether a value is a small one that JSON gives back as it is."""
    waiting, parts = [value], 0
    while waiting:
        part = short_scalar(waiting.pop())
        parts += 1
        if type(part) is dict:
            if len(part) > PREVIEW_PARTS or not all(isinstance(key, str) for key in part):
                return False
            waiting += part.values()
        elif type(part) is list:
            if len(part) > PREVIEW_PARTS:
                return False
            waiting += part
        elif not _is_short_scalar(part):
            return False
        if parts > PREVIEW_PARTS:
            return False
    return True


def _is_short_scalar(value: Any) -> bool:
    if type(value) is str:
        return len(value) <= PREVIEW_BYTES
    if type(value) is int:
        return value.bit_length() <= 64
    return value is None or type(value) is bool or (type(value) is float and math.isfinite(value))
