"""State as JSON, as LangGraph's clients expect it: messages as mappings, times as text."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any

from langgraph.types import Interrupt, StateSnapshot
from pydantic import BaseModel

MAX_DEPTH = 200
"""How deep a value is followed. What is deeper is shown as text."""


def as_json(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can have it. What JSON does not have is shown as text.

    Args:
        value: Any value of a state. Nothing of it is called but what Pydantic models and data
            classes are asked for by their libraries.
        depth: How deep the value is in what is shown.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return as_json(value.value, depth + 1)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        return f"({type(value).__name__}, too deep to be shown)"
    return _structure(value, depth + 1)


def _structure(value: Any, depth: int) -> Any:
    if isinstance(value, Interrupt):
        return {"value": as_json(value.value, depth), "id": value.id}
    if isinstance(value, StateSnapshot):
        return as_json(value._asdict(), depth)
    if isinstance(value, BaseModel):
        return {str(name): as_json(part, depth) for name, part in _model(value).items()}
    if isinstance(value, Mapping):
        return {_key(key): as_json(part, depth) for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {part.name: as_json(getattr(value, part.name, None), depth) for part in fields}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict(), depth)
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray | memoryview):
        return [as_json(part, depth) for part in value]
    return _text(value)


def _model(value: BaseModel) -> Mapping[str, Any]:
    """Return the fields of a model, not copied. A message says what type it is among them."""
    return {**{name: getattr(value, name, None) for name in type(value).model_fields}}


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str(as_json(key))
    if isinstance(key, Enum):
        return _key(key.value)
    return str(as_json(str(key)))


def _text(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, BaseException):
        return as_json(f"{type(value).__name__}: {value}")
    return as_json(str(value))


def contains(value: Any, part: Any) -> bool:
    """Return whether JSON contains other JSON: mappings key by key, all else exactly, by type."""
    if isinstance(part, Mapping):
        return isinstance(value, Mapping) and all(
            key in value and contains(value[key], asked) for key, asked in part.items()
        )
    return type(value) is type(part) and bool(value == part)
