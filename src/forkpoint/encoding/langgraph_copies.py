"""What LangGraph's own serializer is given in the place of a value: copies of what it reads.

It goes through lists and dicts where they are, and runs Python code in between. It does not survive
that another thread empties one meanwhile: also one in a tuple, in a data class or in a `Send`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

from forkpoint.encoding.object_values import KINDS, kind_of

_DEEPEST = 255  # as deep as MessagePack's library goes
_OBJECTS = ("namedtuple", "dataclass", "slots")
"""The kinds of objects whose attributes it reads. Pydantic's models give it copies."""


def copy_for_langgraph(value: Any, depth: int = 0) -> Any:
    """Return a value that LangGraph's serializer writes as it does this one.

    Raises:
        RecursionError: It is nested too deep.
    """
    kind = type(value)
    if depth > _DEEPEST:
        raise RecursionError
    if kind is tuple or kind is deque:
        return kind(copy_for_langgraph(each, depth + 1) for each in list(value))
    if issubclass(kind, (list, dict)) and not issubclass(kind, Enum):
        # It takes any for one of Python's own, whatever the class says.
        if issubclass(kind, list):
            return [copy_for_langgraph(each, depth + 1) for each in list.copy(value)]
        items = list(dict.items(value))
        return {key: copy_for_langgraph(each, depth + 1) for key, each in items}
    if kind.__module__ == "builtins" or hasattr(kind, "__del__"):
        return value
    name = kind_of(kind)
    return _copy_of_object(value, name, depth + 1) if name in _OBJECTS else value


def _copy_of_object(value: Any, name: str, depth: int) -> Any:
    """Return an object like this one, with copies of what is in it; itself if none can be made."""
    kind = KINDS[name]
    try:
        content = kind.dump(value)
    except Exception:  # noqa: BLE001 - of a class of anyone's
        return value
    copies = copy_for_langgraph(content, depth)
    try:
        return kind.load(type(value), copies)
    except Exception:  # noqa: BLE001 - the same
        return value
