"""Objects that hold data: how they are stored, and restored without running code of their class.

An object is the MessagePack extension of code 40: an array of one of the kinds below, the name of
its type (see `forkpoint.encoding.type_names`), and what its kind says.

===========  ======================================================================================
kind         content
===========  ======================================================================================
enum         the name of the member; of a flag that is none, the array of the names of its members
             and an integer with the bits that none of them has
namedtuple   the elements; and the map of further attributes
dataclass    the map of its attributes: fields, and whatever else it has. If fields with defaults
             are absent, the array of their names
attrs        the same
pydantic     the map of the fields' values; an integer with a bit for each of these, in order, that
             was given; the map of extra fields, or nil; the map of private attributes, or nil. If
             there is any, the map of what is in slots of the class, with the names of such fields
             under `.absent`, and those of no field that were given under `.given`
pydantic1    the same, with extra fields among the fields, and private attributes as a map
slots        the map of its attributes
subclass     the name of the built-in type that it derives from, a value of that, and the map of its
             attributes
exception    what Python's own type makes it of; the map of its attributes; and its arguments if
             these are others. What of these cannot be stored is there as the text that represents
             it
validation   of Pydantic's `ValidationError`: the title, the errors, how the input was given, and
             whether inputs are hidden
===========  ======================================================================================
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, Flag
from functools import lru_cache, partial, reduce
from operator import or_
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import pydantic.networks
from pydantic_core import ValidationError

from forkpoint.encoding import pydantic_values
from forkpoint.encoding.base_values import BASES, base_of
from forkpoint.encoding.contents import (
    TYPES_MAX,
    Attributes,
    CannotStore,
    attributes_of,
    bare,
    has_slot,
    only,
    set_attributes,
)
from forkpoint.encoding.exception_values import (
    dump_exception,
    dump_validation_error,
    load_exception,
    load_validation_error,
    show_exception,
    show_validation_error,
)
from forkpoint.encoding.pydantic_values import (
    dump_pydantic,
    dump_pydantic1,
    is_pydantic,
    is_pydantic1,
    load_pydantic,
    load_pydantic1,
    show_pydantic,
    show_pydantic1,
)
from forkpoint.encoding.type_names import as_list, name_of
from forkpoint.untrusted import message

OBJECT = 40


class Kind(NamedTuple):
    """A kind of objects.

    Args:
        fits: Whether a type is of this kind.
        dump: Returns the content of an object, as in the table above.
        load: Returns the object of a type that has a content.
        shown: Returns the fields and the value in a content, for whoever does not know the type.
    """

    fits: Callable[[type], bool]
    dump: Callable[[Any], list[Any]]
    load: Callable[[Any, Any], Any]
    show: Callable[[list[Any]], tuple[Attributes, Any]]


# Enums


def _dump_enum(value: Enum) -> list[Any]:
    name = value._name_
    if isinstance(name, str) and type(value).__members__.get(name) is value:
        return [name]
    if not isinstance(value, Flag):
        raise CannotStore("is no member of its enum")
    parts = {
        name: member._value_
        for name, member in type(value).__members__.items()
        if member._value_ and member._value_ & value._value_ == member._value_
    }
    return [list(parts), value._value_ & ~reduce(or_, parts.values(), 0)]


def _load_enum(kind: Any, content: list[Any]) -> Any:
    members = kind._member_map_
    if isinstance(content[0], str):
        return members[content[0]]
    if not issubclass(kind, Flag):
        raise ValueError("it is no flag any more")
    names, rest = content
    bits = [members[name]._value_ for name in only(names, list)]
    return _flag(kind, reduce(or_, bits, only(rest, int)))


def _flag(kind: Any, value: int) -> Any:
    """Return the flag of these bits, as Python's own classes make it."""
    known = kind._value2member_map_.get(value)
    if known is not None:
        return known
    make = next(
        vars(each)["_missing_"]
        for each in kind.__mro__
        if each.__module__ == "enum" and "_missing_" in vars(each)
    )
    return make.__get__(None, kind)(value)


def _show_enum(content: list[Any]) -> tuple[Attributes, Any]:
    return {}, content[0]


# Tuples with names


def _is_namedtuple(kind: type) -> bool:
    return issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple)


def _dump_namedtuple(value: Any) -> list[Any]:
    elements, names = list(tuple.__iter__(value)), list(type(value)._fields)
    if len(elements) != len(names):
        raise CannotStore(f"has {len(elements)} elements, and names for {len(names)}")
    return [elements, {**attributes_of(value), "_fields": names}]


def _load_namedtuple(kind: Any, content: list[Any]) -> Any:
    elements, attributes = content
    own = dict(only(attributes, dict))
    names = own.pop("_fields")
    if list(kind._fields) != names:  # the class was changed since
        elements = _elements_by_name(kind, dict(zip(names, elements, strict=True)))
    if len(only(elements, list)) != len(kind._fields):
        raise ValueError(f"it has {len(elements)} elements")
    return set_attributes(tuple.__new__(kind, elements), own)


def _elements_by_name(kind: Any, stored: Attributes) -> list[Any]:
    if not stored.keys() <= set(kind._fields):
        raise ValueError("it has elements of other names")
    return [stored[name] if name in stored else kind._field_defaults[name] for name in kind._fields]


def _show_namedtuple(content: list[Any]) -> tuple[Attributes, Any]:
    elements, attributes = content
    return dict(zip(attributes["_fields"], elements, strict=True)), tuple(elements)


# Data classes, and attrs


def _is_attrs(kind: type) -> bool:
    return "__attrs_attrs__" in vars(kind)


def _dump_attributes(value: Any) -> list[Any]:
    attributes = attributes_of(value)
    if _CACHED_HASH in attributes:  # that of this process
        attributes = {**attributes, _CACHED_HASH: None}
    kind: Any = type(value)
    optional = _optional(kind)
    if not attributes.keys() >= optional:
        return [attributes, sorted(optional - attributes.keys())]
    return [attributes]


_CACHED_HASH = "_attrs_cached_hash"


def _load_attributes(kind: Any, content: list[Any]) -> Any:
    attributes, *absent = content
    value = set_attributes(bare(kind), attributes)
    if attributes.keys() >= _optional(kind):
        return value
    known = {*attributes, *(only(absent[0], list) if absent else ())}
    missing = {name: default() for name, default in _defaults(kind, value) if name not in known}
    return set_attributes(value, missing) if missing else value


@lru_cache(TYPES_MAX)
def _optional(kind: type) -> frozenset[str]:
    return frozenset(name for name, _ in _defaults(kind, None))


def _defaults(kind: type, value: Any) -> Iterable[tuple[str, Callable[[], Any]]]:
    """Yield the fields that have defaults: an object that was stored before a field was made."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.default_factory is not dataclasses.MISSING:
                yield field.name, field.default_factory
            elif field.default is not dataclasses.MISSING and has_slot(kind, field.name):
                # Elsewhere the class has the default as an attribute.
                yield field.name, lambda field=field: field.default  # type: ignore[misc]
    for field in vars(kind).get("__attrs_attrs__", ()):
        default = field.default
        if hasattr(default, "takes_self"):
            yield field.name, partial(default.factory, *([value] if default.takes_self else []))
        elif default is not sys.modules["attr"].NOTHING:
            yield field.name, lambda default=default: default  # type: ignore[misc]


def _show_attributes(content: list[Any]) -> tuple[Attributes, Any]:
    return content[0], None


# What LangGraph and Pydantic have that is nothing else

_PLAIN = {
    ("langgraph.types", "Send"),
    ("langgraph.store.base", "Item"),
    ("langgraph.store.base", "SearchItem"),
    ("pydantic.types", "SecretStr"),
    ("pydantic.types", "SecretBytes"),
    ("pydantic.types", "Secret"),
    ("pydantic.networks", "NameEmail"),
    ("pydantic.v1.types", "SecretStr"),
    ("pydantic.v1.types", "SecretBytes"),
}
# What Pydantic's URLs derive from, in versions where they are classes.
_URLS = tuple(
    kind
    for name, kind in vars(pydantic.networks).items()
    if name in ("_BaseUrl", "_BaseMultiHostUrl")
)


def _is_plain(kind: type) -> bool:
    return (kind.__module__, kind.__name__) in _PLAIN or issubclass(kind, _URLS)


# What derives from a type of Python's own


def _dump_subclass(value: Any) -> list[Any]:
    known = base_of(type(value))
    assert known is not None
    name, base = known
    return [name, base.dump(value), attributes_of(value)]


def _load_subclass(kind: Any, content: list[Any]) -> Any:
    name, value, attributes = content
    base = BASES[name]
    if not issubclass(kind, base.kind):
        raise ValueError(f"it does not derive from {base.kind.__name__} any more")
    if issubclass(kind, Enum) or _is_namedtuple(kind):
        raise ValueError(f"it does more than derive from {base.kind.__name__} now")
    return set_attributes(base.make(kind, value), attributes)


def _show_subclass(content: list[Any]) -> tuple[Attributes, Any]:
    _, value, attributes = content
    return attributes, value


def change_fields(kind: str, content: list[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Return the content of an object whose fields a function has changed.

    Raises:
        ValueError: Objects of this kind have no fields.
    """
    if kind == "namedtuple":
        elements, attributes = content
        after = change(dict(zip(attributes["_fields"], elements, strict=True)))
        return [list(after.values()), {**attributes, "_fields": list(after)}]
    if kind in ("enum", "exception", "validation", "subclass"):
        raise ValueError(f"its alias has a function for its fields, and a stored {kind} has none")
    return pydantic_values.change_fields(kind, content, change)


_OF_FIELDS = ("namedtuple", "pydantic", "pydantic1", "dataclass", "attrs")


def converted(kind: str, content: list[Any], target: type) -> tuple[str, list[Any]]:
    """Return the content of an object for a type of another kind, if both kinds have fields.

    Raises:
        ValueError: It has a field that a model of Pydantic has not.
    """
    new = kind_of(target)
    if new is None or new == kind or not {kind, new} <= set(_OF_FIELDS):
        return kind, content
    fields = dict(KINDS[kind].show(content)[0])
    if new == "namedtuple":
        return new, [list(fields.values()), {"_fields": list(fields)}]
    if new in ("dataclass", "attrs"):
        return new, [fields]
    known: Any = target.model_fields if new == "pydantic" else target.__fields__  # type: ignore[attr-defined]
    if not fields.keys() <= known.keys():
        raise ValueError(f"it has no field {sorted(fields.keys() - known.keys())[0]!r} any more")
    of_version: list[Any] = [None, None] if new == "pydantic" else [{}]
    return new, [fields, (1 << len(fields)) - 1, *of_version]


KINDS: Mapping[str, Kind] = {
    "enum": Kind(lambda kind: issubclass(kind, Enum), _dump_enum, _load_enum, _show_enum),
    "validation": Kind(
        lambda kind: kind is ValidationError,
        dump_validation_error,
        load_validation_error,
        show_validation_error,
    ),
    "exception": Kind(
        lambda kind: issubclass(kind, BaseException),
        dump_exception,
        load_exception,
        show_exception,
    ),
    "namedtuple": Kind(_is_namedtuple, _dump_namedtuple, _load_namedtuple, _show_namedtuple),
    "subclass": Kind(
        lambda kind: base_of(kind) is not None, _dump_subclass, _load_subclass, _show_subclass
    ),
    "pydantic": Kind(is_pydantic, dump_pydantic, load_pydantic, show_pydantic),
    "pydantic1": Kind(is_pydantic1, dump_pydantic1, load_pydantic1, show_pydantic1),
    "dataclass": Kind(
        dataclasses.is_dataclass, _dump_attributes, _load_attributes, _show_attributes
    ),
    "attrs": Kind(_is_attrs, _dump_attributes, _load_attributes, _show_attributes),
    "slots": Kind(_is_plain, _dump_attributes, _load_attributes, _show_attributes),
}
"""The kinds of objects, the first that fits a type."""


def kind_of(kind: type) -> str | None:
    """Return the kind of a type's objects, or None if they are not known to hold data only."""
    return next((name for name, each in KINDS.items() if each.fits(kind)), None)


@lru_cache(TYPES_MAX)
def fits(name: str, kind: type) -> bool:
    """Return whether a type is of the kind of this name."""
    return KINDS[name].fits(kind)


def check_restorable(name: str, value: Any) -> None:
    """Refuse a value, the first of its type, that could not be restored: types of C may forbid it.

    Raises:
        CannotStore: It could not.
    """
    kind = type(value)
    if hasattr(kind, "__del__"):  # another object would end what this one stands for
        if name in _BARE and _maker(kind) is not object:
            raise CannotStore(f"could not be restored: it derives from {_maker(kind).__name__}")
        return
    content = [dict(part) if type(part) is dict else part for part in KINDS[name].dump(value)]
    try:
        restored = KINDS[name].load(kind, content)
    except Exception as error:
        raise CannotStore(f"could not be restored: {message(error)}") from error
    if type(restored) is not kind:
        raise CannotStore(f"would be restored as a {type(restored).__name__}")


_BARE = frozenset({"pydantic", "pydantic1", "dataclass", "attrs", "slots"})


def _maker(kind: type) -> type:
    """Return the type, of Python's own or of C, that makes the objects of a type."""
    while "__new__" not in vars(kind) or not isinstance(vars(kind)["__new__"], BuiltinFunctionType):
        kind = kind.__base__  # type: ignore[assignment] # `object` has one
    return kind


def describer_of(name: str, kind: type) -> Callable[[Any], tuple[int, list[Any]]]:
    """Return how objects of a type are stored, which is of this kind."""
    header = [name, as_list(name_of(kind))]
    dump = KINDS[name].dump
    return lambda value: (OBJECT, [*header, *dump(value)])
