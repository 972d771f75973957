"""The attributes of objects: how they are read, and set without running code of a class."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from forkpoint.encoding.builtin_values import only

Attributes = dict[str, Any]

TYPES_MAX = 1024
"""Of how many types it is remembered what they are like. Some programs make types all the time."""


class _Layout(NamedTuple):
    """Where objects of a type have their attributes.

    Args:
        slots: The slots by the names of the attributes in them, those of the base types first.
        own: Those of them that Python's own types do not have.
        cached: Names in `__dict__` that can be computed again, and typing's own.
    """

    slots: dict[str, Any]
    own: dict[str, Any]
    cached: frozenset[str]


@lru_cache(TYPES_MAX)
def _layout_of(kind: type) -> _Layout:
    members = [(name, each) for base in reversed(kind.__mro__) for name, each in vars(base).items()]
    slots = {name: each for name, each in members if type(each).__name__ == "member_descriptor"}
    cached = {name for name, each in dict(members).items() if isinstance(each, cached_property)}
    return _Layout(
        slots,
        {name: each for name, each in slots.items() if each.__objclass__.__module__ != "builtins"},
        frozenset({*cached, "__orig_class__"}),
    )


def attributes_of(value: object) -> Attributes:
    """Return the attributes of an object, those in slots as well, and no cached properties."""
    kind: Any = type(value)
    attributes: Attributes = {}
    for name, slot in _layout_of(kind).own.items():
        try:
            attributes[name] = slot.__get__(value)
        except AttributeError:
            continue  # it was never set
    own = getattr(value, "__dict__", None)
    return {**attributes, **without_cached(kind, own)} if own else attributes


def without_cached(kind: type, own: Attributes) -> Attributes:
    """Return attributes without those that can be computed again, and typing's own."""
    cached = _layout_of(kind).cached
    if cached.isdisjoint(own):
        return own
    return {name: each for name, each in own.items() if name not in cached}


def set_attributes(value: Any, attributes: Any) -> Any:
    """Give an object its attributes, as no `__setattr__` of its class would."""
    own = getattr(value, "__dict__", None)
    kind: Any = type(value)
    slots = _layout_of(kind).slots
    for name, each in only(attributes, dict).items():
        if name in slots:
            slots[name].__set__(value, each)
        elif own is not None:
            own[only(name, str)] = each
        else:
            raise ValueError(f"it has no attribute {name!r} any more")
    return value


def has_slot(kind: type, name: str) -> bool:
    """Return whether an attribute of this name has a slot in objects of a type."""
    return name in _layout_of(kind).slots


def bare(kind: type) -> Any:
    """Return an object of a type that has no attributes yet. Nothing of the type runs."""
    return object.__new__(kind)
