"""Copies of the lists and dicts in a value: while it is packed, other threads may change them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_CONTAINERS = frozenset({list, dict})
_DEEPEST = 255  # as deep as MessagePack's library goes


def holds_no_others(parts: Iterable[Any]) -> bool:
    """Return whether there is no list and no dict among the parts of one."""
    return _CONTAINERS.isdisjoint(map(type, parts))


def copied(value: Any, depth: int = 0) -> Any:
    """Return a value with copies of the lists and dicts in it.

    Raises:
        RecursionError: It is nested too deep.
    """
    if type(value) not in _CONTAINERS:
        return value
    if depth > _DEEPEST:
        raise RecursionError
    copy = value.copy()
    is_list = type(copy) is list
    if holds_no_others(copy if is_list else copy.values()):
        return copy
    for place, part in enumerate(copy) if is_list else copy.items():
        if type(part) in _CONTAINERS:
            copy[place] = copied(part, depth + 1)
    return copy
