"""Copies of what is in a value: while it is serialized, other threads may change that.

MessagePack's library goes through lists and dicts where they are, and runs Python code in between.
It does not survive that another thread empties one meanwhile. LangGraph's own serializer has it do
so with those in a tuple, in a data class or in a `Send`, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from typing import Any

from forkpoint.encoding.contents import TYPES_MAX
from forkpoint.encoding.object_values import KINDS, kind_of

_CONTAINERS = frozenset({list, dict})
_DEEPEST = 255  # as deep as MessagePack's library goes
_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})
_OBJECTS = ("namedtuple", "dataclass", "slots")
"""The kinds of objects whose attributes LangGraph's serializer reads. Pydantic's models give it
copies."""


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


def copy_for_langgraph(value: Any, depth: int = 0) -> Any:
    """Return a value that LangGraph's serializer writes as it does this one.

    Raises:
        RecursionError: It is nested too deep.
        TypeError: It has a class that cannot be compared.
    """
    kind: Any = type(value)
    name = _name_of(kind)
    if name is None:
        return value
    if depth > _DEEPEST:
        raise RecursionError
    if name == "dict":
        copy = value.copy() if kind is dict else dict(list(dict.items(value)))
        if not _SCALARS.issuperset(map(type, copy.values())):
            for key, part in copy.items():
                copy[key] = copy_for_langgraph(part, depth + 1)
        return copy
    if name == "list":
        return _copies(list.copy(value), depth)
    if name == "sequence":
        return kind(_copies(list(value), depth))
    return _copy_of_object(value, name, depth)


@lru_cache(TYPES_MAX)
def _name_of(kind: type) -> str | None:
    """Return as what values of a type are copied; None if they are not."""
    if kind is tuple or kind is deque:
        return "sequence"
    for container in (list, dict):  # it takes any for one of Python's own, whatever the class says
        if issubclass(kind, container) and not issubclass(kind, Enum):
            return container.__name__
    if kind.__module__ == "builtins" or hasattr(kind, "__del__"):
        return None
    name = kind_of(kind)
    return name if name in _OBJECTS else None


def _copies(parts: list[Any], depth: int) -> list[Any]:
    if _SCALARS.issuperset(map(type, parts)):
        return parts
    return [copy_for_langgraph(each, depth + 1) for each in parts]


def _copy_of_object(value: Any, name: str, depth: int) -> Any:
    """Return an object like this one, with copies of what is in it; itself if none can be made."""
    kind = KINDS[name]
    try:
        content = kind.dump(value)
    except Exception:  # noqa: BLE001 - of a class of anyone's
        return value
    copies = _copies(content, depth)
    try:
        return kind.load(type(value), copies)
    except Exception:  # noqa: BLE001 - the same
        return value
