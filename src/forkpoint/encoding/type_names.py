"""How a stored value names its type, and how the type is found again. Nothing is imported.

A name is a list: the module, the qualified name, and for a generic of Pydantic the names of its
arguments as a third item.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

TypeName = tuple[Any, ...]
"""`(module, qualified name)`, or with the names of a generic's arguments behind it."""

_seen: WeakValueDictionary[TypeName, type] = WeakValueDictionary()
"""The types that this process has stored values of, wherever they were made."""


def name_of(kind: type) -> TypeName:
    """Return the name of a type. From now on this process finds the type under it."""
    name = _name_of(kind)
    _seen[name] = kind
    return name


def _name_of(kind: type) -> TypeName:
    generic = vars(kind).get("__pydantic_generic_metadata__")
    if generic and generic["origin"] is not None:
        arguments = tuple(generic["args"])
        if all(isinstance(argument, type) for argument in arguments):
            return (*_name_of(generic["origin"]), tuple(map(_name_of, arguments)))
    return kind.__module__, kind.__qualname__


def as_list(name: TypeName) -> list[Any]:
    """Return a name as it is stored."""
    module, qualified, *arguments = name
    return [module, qualified, *([as_list(each) for each in inner] for inner in arguments)]


def is_name(value: Any) -> bool:
    """Return whether this has the shape of a name."""
    return (
        isinstance(value, (list, tuple))
        and 2 <= len(value) <= 3
        and all(isinstance(part, str) for part in value[:2])
        and (
            len(value) == 2 or (isinstance(value[2], (list, tuple)) and all(map(is_name, value[2])))
        )
    )


def frozen(name: Any) -> TypeName:
    """Return a name that was read as one that can be a key."""
    module, qualified, *arguments = name
    return (module, qualified, *(tuple(map(frozen, each)) for each in arguments))


def text(name: TypeName) -> str:
    """Return a name as people write it."""
    module, qualified, *arguments = name
    inner = ", ".join(map(text, arguments[0])) if arguments else ""
    return f"{module}.{qualified}[{inner}]" if arguments else f"{module}.{qualified}"


def find(name: TypeName) -> type | None:
    """Return the type that a name means in this process, if it is known here."""
    known = _seen.get(name)
    if known is not None:
        return known
    module, qualified, *arguments = name
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = None if found is None else _member(found, part)
    if not isinstance(found, type):
        return None
    if not arguments:
        return found
    kinds = [find(argument) for argument in arguments[0]]
    if None in kinds or "__pydantic_generic_metadata__" not in vars(found):
        return None
    generic: type = found[tuple(kinds)]  # type: ignore[index] # Pydantic makes each once
    return generic


def _member(of: Any, name: str) -> Any:
    """Return what a module or a class defines under a name, without running any of its code."""
    members: Mapping[str, Any] = vars(of) if hasattr(of, "__dict__") else {}
    return members.get(name)


def find_nested(named: TypeName) -> type | None:
    """Return the one type of this name that is nested in another of an imported module.

    LangGraph's serializer stores no more than the last part of a type's name.
    """
    module, name, *arguments = named
    if arguments or "." in name or module not in sys.modules:
        return None
    nested: set[type] = set()
    seen: set[type] = set()
    members = list(vars(sys.modules[module]).values())  # it may be imported at the moment
    waiting = [value for value in members if isinstance(value, type)]
    while waiting:
        outer = waiting.pop()
        if outer.__module__ != module or outer in seen:
            continue
        seen.add(outer)
        waiting += [value for value in vars(outer).values() if isinstance(value, type)]
        if outer.__name__ == name:
            nested.add(outer)
    return nested.pop() if len(nested) == 1 else None
