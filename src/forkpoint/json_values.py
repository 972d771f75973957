"""Values of anyone's as JSON can have them. Pure."""

from __future__ import annotations

import base64
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from forkpoint.results import NotRead
from forkpoint.untrusted import attribute, characters

MAX_DEPTH = 200
"""How deep a value is followed. What is deeper is shown as text."""
_LONG_BITS = 2048  # Python may refuse to write longer integers with decimal digits
_NO_LISTS = (str, bytes, bytearray, memoryview, range, Enum)

Simplify = Callable[[Any], Any]


def json_value(value: Any, simplify: Simplify, depth: int = 0) -> Any:
    """Return a value as JSON can have it, and what JSON does not have as text.

    Bytes are base64, times ISO 8601, lengths of time seconds, very long integers hexadecimal.
    Objects are mappings of their fields, and NumPy's arrays are lists. Nothing of a value is called
    but what its library offers for that.

    Args:
        value: The value.
        simplify: Returns what stands for a part of the value, or the part as it is. It decides on
            numbers that are none, and on texts that are not to be shown as they are.
        depth: How deep the value is in what is shown.
    """
    try:
        value = simplify(value)
        if type(value) is int and value.bit_length() > _LONG_BITS:
            return hex(value)
        if value is None or type(value) in (bool, int, float, str):
            return value
        if depth >= MAX_DEPTH:
            return f"({type(value).__name__}, too deep to be shown)"
        return _inside(value, simplify, depth + 1)
    except Exception:  # noqa: BLE001 - a value of anyone's may raise anything
        return simplify(_text(value))


def _inside(value: Any, simplify: Simplify, depth: int) -> Any:
    if isinstance(value, BaseModel):
        fields = _fields(value, list(type(value).model_fields), simplify, depth)
        extra = _items(attribute(value, "__pydantic_extra__") or {}, simplify, depth)
        return fields | extra
    if isinstance(value, Mapping):
        return _items(value, simplify, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return _fields(value, names, simplify, depth)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _fields(value, value._fields, simplify, depth)
    if isinstance(value, Sequence | Set) and not isinstance(value, _NO_LISTS):
        return [json_value(part, simplify, depth) for part in value]
    return json_value(_scalar(value), simplify, depth)


def _items(value: Mapping[Any, Any], simplify: Simplify, depth: int) -> Any:
    return {_key(key, simplify): json_value(part, simplify, depth) for key, part in value.items()}


def _fields(value: Any, names: Sequence[str], simplify: Simplify, depth: int) -> Any:
    return {name: json_value(attribute(value, name), simplify, depth) for name in names}


def _scalar(value: Any) -> Any:
    """Return a value without parts as one that JSON has, or as the value of an enum."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, NotRead):
        return None
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {_text(value)}"
    if _is_of_numpy(value, "ndarray", "biufU"):
        return value.tolist()
    short = short_scalar(value)
    return _text(value) if short is value else short


def short_scalar(value: Any) -> Any:
    """Return what JSON has of a text, a number, a time or an id of any class, or the value itself.

    For a member of an enum, that is its value.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return short_scalar(value.value)
    if isinstance(value, str):
        return characters(value)
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID | Decimal):
        return str(value)
    return value.item() if _is_of_numpy(value, "generic", "biuf") else value


def _is_of_numpy(value: Any, name: str, kinds: str) -> bool:
    """Return whether a value is of a class of NumPy, with numbers or texts that Python has."""
    kind = attribute(sys.modules.get("numpy"), name)
    if not (isinstance(kind, type) and isinstance(value, kind)):
        return False
    dtype = attribute(value, "dtype")
    return dtype.kind in kinds and dtype.char != "g"  # a long double stays what it is


def _key(key: Any, simplify: Simplify) -> str:
    if isinstance(key, Enum):
        return _key(key.value, simplify)
    return str(simplify(characters(key) if isinstance(key, str) else _text(key)))


def _text(value: Any) -> str:
    try:
        return characters(str(value))
    except Exception:  # noqa: BLE001 - a value of anyone's may raise anything
        return f"<{type(value).__name__}>"
