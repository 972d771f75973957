"""Whether metadata matches a filter: exactly, and by type. Pure."""

from __future__ import annotations

from typing import Any


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
