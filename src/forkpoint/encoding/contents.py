"""What the modules of values share: what is refused, and the attributes of objects.

These are read, and set, without running code of a class.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

Described = tuple[int, Any]
"""An extension code, and what is to be packed under it."""


class CannotStore(TypeError):
    """A value cannot be stored. The message says why, after the name of its type."""


_V = TypeVar("_V")


def only(content: Any, kind: type[_V]) -> _V:
    """Return what was read if it is of exactly this type.

    Whatever else it is may be what takes for ever to go through: an IP network, say.
    """
    if type(content) is not kind:
        raise ValueError(f"it is stored as a {type(content).__name__}, not a {kind.__name__}")
    return content


def only_int(content: Any) -> int:
    """Return what was read if it is an integer."""
    return only(content, int)


def imported_member(module: str, name: str) -> Any:
    """Return what a module defines, or None if nobody has imported that.

    It may be there in part only, while another thread imports it. Then no value is of its types.
    """
    return getattr(sys.modules.get(module), name, None)


_SAME_HASHES = 64  # elements of a set, at most


def check_hashes(elements: Collection[Any]) -> None:
    """Refuse elements that were chosen to have the same hash: a set of n takes n * n steps."""
    if len(elements) > _SAME_HASHES:
        (_, most), *_ = Counter(map(hash, elements)).most_common(1)
        if most > _SAME_HASHES:
            raise ValueError("too many of its elements have the same hash")


def check_storable(elements: Collection[Any]) -> None:
    """Refuse elements that are not restored.

    Raises:
        CannotStore: Too many have the same hash.
    """
    if len(elements) > _SAME_HASHES:
        try:
            check_hashes(elements)
        except ValueError as error:
            raise CannotStore(f"cannot be read back: {error}") from None


# How many bytes are held at once to restore an object: it, and each that it stands in. So one of n
# bytes within k others, which hold little else, takes n * k.

LARGE = 64 * 1024
"""How many bytes an object has at least that counts."""
HELD_BYTES = 512 * 1024 * 1024
"""How many may be held, whatever is stored."""
HELD_TIMES = 64
"""How many times as many as an object has may be held."""


def takes_too_much(held: int, whole: int) -> bool:
    """Return whether an object of so many bytes is not read, as so many are held."""
    return held > max(HELD_BYTES, HELD_TIMES * whole)


def takes_much(held: int, whole: int) -> bool:
    """Return whether it is not written: not all that will be around it may be known by then."""
    return takes_too_much(held + held // 8, whole)


# The attributes of objects

Attributes = dict[str, Any]

TYPES_MAX = 1024
"""Of how many types it is remembered what they are like. Some programs make types all the time."""


class _Layout(NamedTuple):
    """Where objects of a type have their attributes.

    Args:
        slots: The slots by the names of the attributes in them, those of the base types first.
        own: Those of them that Python's own types do not have, and Pydantic's models.
        hidden: Those that another one of the same name hides.
        cached: Names in `__dict__` that can be computed again, and typing's own.
        is_veiled: Whether a class says itself what `__dict__` is.
    """

    slots: dict[str, Any]
    own: dict[str, Any]
    hidden: list[Any]
    cached: frozenset[str]
    is_veiled: bool


_DESCRIPTORS = ("getset_descriptor", "member_descriptor")  # of Python's own


@lru_cache(TYPES_MAX)
def _layout_of(kind: type) -> _Layout:
    members = [(name, each) for base in reversed(kind.__mro__) for name, each in vars(base).items()]
    slots = {name: each for name, each in members if type(each).__name__ == "member_descriptor"}
    names = dict(members)
    cached = {name for name, each in names.items() if isinstance(each, cached_property)}
    own = [
        (name, each)
        for name, each in members
        if type(each).__name__ == "member_descriptor"
        and not any(is_of_module(each.__objclass__, module) for module in _OTHERS)
    ]
    return _Layout(
        slots,
        dict(own),
        [each for name, each in own if each is not slots[name]],
        frozenset({*cached, "__orig_class__"}) - _field_names(kind),
        "__dict__" in names and type(names["__dict__"]).__name__ not in _DESCRIPTORS,
    )


def is_of_module(kind: type, module: str) -> bool:
    """Return whether a module defines a type.

    Of what `exec` makes, the `__module__` may be `"builtins"`.
    """
    if kind.__module__ != module:
        return False
    return vars(sys.modules.get(module, object)).get(kind.__name__) is kind


# Modules whose types have slots for what is stored of them otherwise.
_OTHERS = (
    *("builtins", "collections", "datetime", "fractions", "pathlib", "pathlib._local"),
    *("pydantic.main", "pydantic.v1.main", "uuid", "zoneinfo"),
)


def _field_names(kind: Any) -> set[str]:
    """Return the names of a type's fields, which may stand where a base type computes something."""
    names = {each.name for each in vars(kind).get("__attrs_attrs__", ())}
    if dataclasses.is_dataclass(kind):
        names |= {each.name for each in dataclasses.fields(kind)}
    for fields in ("__pydantic_fields__", "model_fields", "__fields__"):
        own = vars(kind).get(fields)
        names |= own.keys() if isinstance(own, dict) else set()
    return names


def attributes_of(value: object) -> Attributes:
    """Return the attributes of an object, those in slots as well, and no cached properties.

    Raises:
        CannotStore: It has two of one name.
    """
    kind: Any = type(value)
    layout = _layout_of(kind)
    attributes = slots_of(value) if layout.own else {}
    if layout.is_veiled:
        raise CannotStore("says itself what its __dict__ is")
    own = _dict_of(value)
    if not own:
        return attributes
    if not layout.cached.isdisjoint(own):
        own = without_cached(kind, own)
    if layout.own and not layout.own.keys().isdisjoint(own):
        raise CannotStore("has two attributes of one name")
    return {**attributes, **own}


def slots_of(value: object) -> Attributes:
    """Return the attributes of an object that are in slots, as `attributes_of` does."""
    kind: Any = type(value)
    layout = _layout_of(kind)
    attributes: Attributes = {}
    for name, slot in layout.own.items():
        with suppress(AttributeError):  # it was never set
            attributes[name] = slot.__get__(value)
    for slot in layout.hidden:
        with suppress(AttributeError):
            slot.__get__(value)
            raise CannotStore("has two attributes of one name")
    return attributes


def _dict_of(value: object) -> Attributes | None:
    """Return the `__dict__` of an object, whatever its class says of attributes."""
    try:
        own: Attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return own


def without_cached(kind: type, own: Attributes) -> Attributes:
    """Return attributes without those that can be computed again, and typing's own."""
    cached = _layout_of(kind).cached
    # Another thread may compute one at the moment.
    return {name: each for name, each in own.copy().items() if name not in cached}


def cached_names(kind: type) -> frozenset[str]:
    """Return the names of attributes that can be computed again, and typing's own."""
    return _layout_of(kind).cached


def set_attributes(value: Any, attributes: Any) -> Any:
    """Give an object its attributes, as no `__setattr__` of its class would."""
    kind: Any = type(value)
    layout = _layout_of(kind)
    own, slots = None if layout.is_veiled else _dict_of(value), layout.slots
    for name, each in only(attributes, dict).items():
        if name in slots:
            slots[name].__set__(value, each)
        elif own is not None:
            own[name] = each
        else:
            raise ValueError(f"it has no attribute {name!r} any more")
    return value


def has_slot(kind: type, name: str) -> bool:
    """Return whether an attribute of this name has a slot in objects of a type."""
    return name in _layout_of(kind).slots


def has_slots(kind: type) -> bool:
    """Return whether objects of a type have slots of which `slots_of` returns the attributes."""
    return bool(_layout_of(kind).own)


def builtin_slots(kind: type) -> dict[str, Any]:
    """Return the slots of a type that those have of Python's own that it derives from."""
    layout = _layout_of(kind)
    return {name: slot for name, slot in layout.slots.items() if name not in layout.own}


def bare(kind: type) -> Any:
    """Return an object of a type that has no attributes yet. Nothing of the type runs."""
    return object.__new__(kind)
