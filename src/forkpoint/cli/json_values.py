"""Whatever a store has as JSON. Pure."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from datetime import date, time, timedelta
from enum import Enum
from typing import Any

from pydantic import BaseModel

from forkpoint.encoding.stored_object import StoredObject
from forkpoint.pictures.values import attribute
from forkpoint.results import NotRead

_DEPTH = 100
"""How deep a value is followed. What is deeper is shown as text."""


def json_value(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can have it, and what JSON does not have as text.

    Bytes are base64, times ISO 8601, lengths of time seconds, and a number that is none is text.
    Objects are mappings of their fields; that of one whose type this process does not know has
    the name of it under `type`. Nothing of a value is called but what its library offers for that.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if depth >= _DEPTH:
        return "…"
    return _inside(value, depth + 1)


def _inside(value: Any, depth: int) -> Any:
    if isinstance(value, StoredObject):
        content = {"value": value.value} if value.value is not None else {"fields": dict(value)}
        return {"type": value.type_name, **json_value(content, depth)}
    if isinstance(value, Mapping):
        return {_key(key): json_value(part, depth) for key, part in value.items()}
    if isinstance(value, BaseModel):
        return _fields(value, list(type(value).model_fields), depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, [field.name for field in dataclasses.fields(value)], depth)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _fields(value, value._fields, depth)
    if isinstance(value, list | tuple | Set):
        return [json_value(part, depth) for part in value]
    return _scalar(value, depth)


def _fields(value: Any, names: Sequence[str], depth: int) -> Any:
    return {name: json_value(attribute(value, name), depth) for name in names}


def _scalar(value: Any, depth: int) -> Any:
    if isinstance(value, Enum):
        return json_value(value.value, depth)
    if isinstance(value, bool | int | str):
        return json_value(int(value) if isinstance(value, int) else str.__str__(value))
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, NotRead):
        return None
    return _text(value)


def _key(key: Any) -> str:
    return key if type(key) is str else _text(key)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a value of anyone's may raise anything
        return f"<{type(value).__name__}>"
