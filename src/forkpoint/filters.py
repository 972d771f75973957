"""Whether metadata matches a filter: exactly, and by type. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from zlib import crc32


def contains(stored: Any, wanted: Any) -> bool:
    """Return whether a JSON value contains another.

    A mapping contains another that has some of its keys, with values that theirs contain. A list
    contains another each of whose items is contained in one of its own. Everything else contains
    what equals it: `1` and `1.0` are equal numbers, while `1`, `True` and `"1"` are three values.
    """
    if isinstance(wanted, dict):
        return isinstance(stored, dict) and all(
            key in stored and contains(stored[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(stored, list) and all(
            any(contains(candidate, value) for candidate in stored) for value in wanted
        )
    if isinstance(wanted, bool) or isinstance(stored, bool):
        return wanted is stored
    return bool(stored == wanted)


def contains_json(stored: str, wanted: Any) -> bool:
    """Return whether a JSON text contains a value; see `contains`."""
    return contains(json.loads(stored), wanted)


def terms(value: Any) -> set[int]:
    """Return what a database can hold of a JSON value: 32 bits for each scalar and its path.

    If one value contains another, it has all terms of that; the reverse need not be so. A database
    can find candidates by them, whatever keys there are, and takes no value for an operator.

    Args:
        value: A JSON value, or a JSON text.
    """
    if isinstance(value, str):
        value = json.loads(value)
    return {_hash(repr(leaf)) for leaf in _leaves(value, ())}


def _hash(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass")) - 2**31  # signed


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, "." + key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    elif isinstance(value, float) and value.is_integer():
        yield *path, int(value)  # 1.0 equals 1
    else:
        yield *path, value
