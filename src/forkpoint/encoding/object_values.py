"""Objects that hold data: how they are stored, and restored without running code of their class.

An object is the MessagePack extension of code 40: an array of one of the kinds below, the name of
its type (see `forkpoint.encoding.type_names`), and what its kind says.

===========  ======================================================================================
kind         content
===========  ======================================================================================
enum         the name of the member, or of a flag with several the array of their names
namedtuple   the elements; and the map of further attributes
dataclass    the map of its attributes: fields, and whatever else it has
attrs        the same
pydantic     the map of the fields' values; an integer with a bit for each of these, in order, that
             was given; the map of extra fields, or nil; the map of private attributes, or nil
pydantic1    the same, with extra fields among the fields, and private attributes as a map
slots        the map of its attributes
subclass     the name of the built-in type that it derives from, a value of that, and the map of its
             attributes
exception    its arguments; and the map of its attributes. What of these cannot be stored is there
             as the text that represents it
===========  ======================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum, Flag
from functools import cached_property, reduce
from operator import or_
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from pydantic import BaseModel

from forkpoint.encoding.base_values import BASES, base_of
from forkpoint.encoding.builtin_values import CannotStore, only
from forkpoint.encoding.type_names import as_list, name_of

OBJECT = 40

Attributes = dict[str, Any]


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
    shown: Callable[[list[Any]], tuple[Attributes, Any]]


def attributes_of(value: object) -> Attributes:
    """Return the attributes of an object, those in slots as well, and no cached properties."""
    kind = type(value)
    found: Attributes = {}
    for each in reversed(kind.__mro__):
        slots = vars(each).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name in ("__dict__", "__weakref__"):
                continue
            plain = f"_{each.__name__.lstrip('_')}{name}" if _is_private(name) else name
            try:
                found[plain] = vars(each)[plain].__get__(value)
            except AttributeError:
                continue  # it was never set
    own = getattr(value, "__dict__", None)
    return {**found, **_without_cached(kind, own)} if own else found


def _is_private(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")


def _without_cached(kind: type, own: Attributes) -> Attributes:
    """Return attributes without those that can be computed again, and typing's own."""
    cached = _cached.get(kind)
    if cached is None:
        members = {
            name: each for base in reversed(kind.__mro__) for name, each in vars(base).items()
        }
        cached = {name for name, each in members.items() if isinstance(each, cached_property)}
        cached.add("__orig_class__")
        _cached[kind] = cached
    if cached.isdisjoint(own):
        return own
    return {name: each for name, each in own.items() if name not in cached}


_cached: WeakKeyDictionary[type, set[str]] = WeakKeyDictionary()


def set_attributes(value: Any, attributes: Any) -> Any:
    """Give an object its attributes, as no `__setattr__` of its class would."""
    own = getattr(value, "__dict__", None)
    slots = {
        name for each in type(value).__mro__ for name in vars(each) if _is_slot(vars(each)[name])
    }
    for name, each in only(attributes, dict).items():
        if name in slots:
            object.__setattr__(value, name, each)
        elif own is not None:
            own[only(name, str)] = each
        else:
            raise ValueError(f"it has no attribute {name!r} any more")
    return value


def _is_slot(member: Any) -> bool:
    return type(member).__name__ == "member_descriptor"


def _bare(kind: type) -> Any:
    return object.__new__(kind)


# Enums


def _dump_enum(value: Enum) -> list[Any]:
    name = value._name_
    if isinstance(name, str) and name in type(value).__members__:
        return [name]
    if not isinstance(value, Flag):
        raise CannotStore("is no member of its enum")
    parts = {
        name: member._value_
        for name, member in type(value).__members__.items()
        if member._value_ and member._value_ & value._value_ == member._value_
    }
    if reduce(or_, parts.values(), 0) != value._value_:
        raise CannotStore("has bits that no member has")
    return [list(parts)]


def _load_enum(kind: Any, content: list[Any]) -> Any:
    (names,) = content
    members = kind._member_map_
    if isinstance(names, str):
        return members[names]
    if not names:
        return kind(0)
    return reduce(or_, (members[name] for name in only(names, list)))


def _show_enum(content: list[Any]) -> tuple[Attributes, Any]:
    return {}, content[0]


# Tuples with names


def _is_namedtuple(kind: type) -> bool:
    return issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple)


def _dump_namedtuple(value: Any) -> list[Any]:
    return [list(tuple.__iter__(value)), {**attributes_of(value), "_fields": list(value._fields)}]


def _load_namedtuple(kind: Any, content: list[Any]) -> Any:
    elements, attributes = content
    own = {name: each for name, each in only(attributes, dict).items() if name != "_fields"}
    if len(only(elements, list)) != len(kind._fields):
        raise ValueError(f"it has {len(elements)} elements")
    return set_attributes(tuple.__new__(kind, elements), own)


def _show_namedtuple(content: list[Any]) -> tuple[Attributes, Any]:
    elements, attributes = content
    return dict(zip(attributes["_fields"], elements, strict=True)), tuple(elements)


# Data classes, and attrs


def _is_attrs(kind: type) -> bool:
    return "__attrs_attrs__" in vars(kind)


def _dump_attributes(value: Any) -> list[Any]:
    return [attributes_of(value)]


def _load_attributes(kind: Any, content: list[Any]) -> Any:
    (attributes,) = content
    value = set_attributes(_bare(kind), attributes)
    for name, default in _defaults(kind):
        if not hasattr(value, name):
            object.__setattr__(value, name, default())
    return value


def _defaults(kind: type) -> Iterable[tuple[str, Callable[[], Any]]]:
    """Yield the fields that have defaults: an object that was stored before a field was made."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING:
                yield field.name, lambda field=field: field.default  # type: ignore[misc]
            elif field.default_factory is not dataclasses.MISSING:
                yield field.name, field.default_factory


def _show_attributes(content: list[Any]) -> tuple[Attributes, Any]:
    return content[0], None


# Pydantic, told by what its metaclasses leave on a model


def _is_pydantic(kind: type) -> bool:
    return "__pydantic_validator__" in vars(kind) and hasattr(kind, "model_fields")


def _dump_pydantic(value: Any) -> list[Any]:
    fields = _without_cached(type(value), value.__dict__)
    extra = value.__pydantic_extra__
    bits = _bits([*fields, *(extra or ())], value.__pydantic_fields_set__)
    return [fields, bits, extra, value.__pydantic_private__]


def _bits(names: Iterable[str], given: Collection[str]) -> int:
    bits = 0
    for at, name in enumerate(names):
        if name in given:
            bits |= 1 << at
    return bits


def _named(names: Iterable[str], bits: int) -> set[str]:
    return {name for at, name in enumerate(names) if bits >> at & 1}


def _load_pydantic(kind: Any, content: list[Any]) -> Any:
    fields, bits, extra, private = content
    given = _named([*only(fields, dict), *(extra or ())], only(bits, int))
    for name, field in kind.model_fields.items():
        if name not in fields and not field.is_required():
            fields[name] = field.get_default(call_default_factory=True)
    value = _bare(kind)
    set_fields(value, fields)
    set_given(value, given)
    set_extra(value, extra)
    set_private(value, private)
    return value


# What Pydantic assigns to copy a model, each slot without looking for its name: a subclass may hide
# them behind attributes of its own.
set_fields, set_given, set_extra, set_private = (
    vars(BaseModel)[slot].__set__
    for slot in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)


def _show_pydantic(content: list[Any]) -> tuple[Attributes, Any]:
    fields, _, extra, _ = content
    return {**fields, **(extra or {})}, None


def _is_pydantic1(kind: type) -> bool:
    return hasattr(kind, "__fields__") and hasattr(kind, "__private_attributes__")


def _dump_pydantic1(value: Any) -> list[Any]:
    fields = value.__dict__
    bits = _bits(fields, value.__fields_set__)
    names = type(value).__private_attributes__
    return [fields, bits, {name: getattr(value, name) for name in names if hasattr(value, name)}]


def _load_pydantic1(kind: Any, content: list[Any]) -> Any:
    fields, bits, private = content
    given = _named(only(fields, dict), only(bits, int))
    for name, field in kind.__fields__.items():
        if name not in fields and not field.required:
            fields[name] = field.get_default()
    value = _bare(kind)
    object.__setattr__(value, "__dict__", fields)
    object.__setattr__(value, "__fields_set__", given)
    for name, each in only(private, dict).items():
        object.__setattr__(value, name, each)
    return value


def _show_pydantic1(content: list[Any]) -> tuple[Attributes, Any]:
    return content[0], None


# What LangGraph and Pydantic have that is nothing else

_PLAIN = {
    ("langgraph.types", "Send"),
    ("langgraph.store.base", "Item"),
    ("langgraph.store.base", "SearchItem"),
    ("pydantic.types", "SecretStr"),
    ("pydantic.types", "SecretBytes"),
    ("pydantic.v1.types", "SecretStr"),
    ("pydantic.v1.types", "SecretBytes"),
}


def _is_plain(kind: type) -> bool:
    return (kind.__module__, kind.__name__) in _PLAIN


# What derives from a type of Python's own


def _dump_subclass(value: Any) -> list[Any]:
    found = base_of(type(value))
    assert found is not None
    name, base = found
    own = attributes_of(value) if name not in ("uuid", "path", "zoneinfo", "fraction") else {}
    return [name, base.dump(value), own]


def _load_subclass(kind: Any, content: list[Any]) -> Any:
    name, value, attributes = content
    base = BASES[name]
    if not issubclass(kind, base.kind):
        raise ValueError(f"it does not derive from {base.kind.__name__} any more")
    return set_attributes(base.make(kind, value), attributes)


def _show_subclass(content: list[Any]) -> tuple[Attributes, Any]:
    _, value, attributes = content
    return attributes, value


# Exceptions: LangGraph stores those of its tasks


def _dump_exception(value: BaseException) -> list[Any]:
    # Python's own type knows what it was made of, which `args` does not always say.
    _, arguments, *state = _own_exception(type(value)).__reduce__(value)
    attributes = dict(vars(value))
    for each in state:
        attributes |= each or {}
    return [list(arguments), attributes]


def _own_exception(kind: type) -> Any:
    return next(each for each in kind.__mro__ if each.__module__ == "builtins")


def _load_exception(kind: Any, content: list[Any]) -> Any:
    arguments, attributes = content
    own = _own_exception(kind)
    made = own.__new__(kind, *only(arguments, list))
    own.__init__(made, *arguments)
    return set_attributes(made, attributes)


def _show_exception(content: list[Any]) -> tuple[Attributes, Any]:
    arguments, attributes = content
    return {"args": arguments, **attributes}, None


def changed(kind: str, content: list[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Return the content of an object whose fields a function has changed."""
    before, *rest = content
    after = change(dict(only(before, dict)))
    if kind in ("pydantic", "pydantic1"):
        given = _named(before, rest[0]) | (after.keys() - before.keys())
        rest[0] = _bits(after, given)
    return [after, *rest]


KINDS: Mapping[str, Kind] = {
    "enum": Kind(lambda kind: issubclass(kind, Enum), _dump_enum, _load_enum, _show_enum),
    "exception": Kind(
        lambda kind: issubclass(kind, BaseException),
        _dump_exception,
        _load_exception,
        _show_exception,
    ),
    "namedtuple": Kind(_is_namedtuple, _dump_namedtuple, _load_namedtuple, _show_namedtuple),
    "subclass": Kind(
        lambda kind: base_of(kind) is not None, _dump_subclass, _load_subclass, _show_subclass
    ),
    "pydantic": Kind(_is_pydantic, _dump_pydantic, _load_pydantic, _show_pydantic),
    "pydantic1": Kind(_is_pydantic1, _dump_pydantic1, _load_pydantic1, _show_pydantic1),
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


def describer_of(name: str, kind: type) -> Callable[[Any], tuple[int, list[Any]]]:
    """Return how objects of a type are stored, which is of this kind."""
    header = [name, as_list(name_of(kind))]
    dump = KINDS[name].dump
    return lambda value: (OBJECT, [*header, *dump(value)])
