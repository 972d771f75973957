"""Pydantic models, of either version: their content, and how one is made of it without its code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

from pydantic import BaseModel

from forkpoint.encoding.contents import (
    TYPES_MAX,
    Attributes,
    bare,
    cached_names,
    has_slots,
    only,
    set_attributes,
    slots_of,
    without_cached,
)


def is_pydantic(kind: type) -> bool:
    """Return whether a type is a model of Pydantic 2, told by what its metaclass leaves on it."""
    return "__pydantic_validator__" in vars(kind) and hasattr(kind, "model_fields")


def dump_pydantic(value: Any) -> list[Any]:
    """Return the content of a model: fields, bits of those given, extra fields, private ones.

    And, if there is any, what models seldom have.
    """
    kind: Any = type(value)
    shape = _shape_of(kind)
    # Other threads may change the model: what the bits say is of these fields.
    fields = value.__dict__.copy()
    if not shape.cached.isdisjoint(fields):
        fields = without_cached(kind, fields)
    extra, private = value.__pydantic_extra__, value.__pydantic_private__
    extra = None if extra is None else extra.copy()
    given_names = value.__pydantic_fields_set__
    names = [*fields, *extra] if extra else fields
    content = [fields, _bits(names, given_names), extra, private]
    known = fields.keys()
    present = known | private.keys() if private else known
    if extra:
        known = known | extra.keys()
    if present >= shape.optional and known >= given_names and not shape.has_slots:
        return content
    odd = _odd(present, shape.optional, known, given_names) | slots_of(value)
    return [*content, odd] if odd else content


def _odd(
    present: Set[str], optional: Set[str], known: Set[str], given_names: Set[str]
) -> Attributes:
    """Return what models seldom have: fields that were deleted, and names of none that were given.

    Each is under a name that no attribute has.
    """
    odd: Attributes = {}
    if not present >= optional:
        odd[_ABSENT] = sorted(optional - present)
    if not given_names <= known:
        odd[_GIVEN] = sorted(given_names - known)
    return odd


_ABSENT, _GIVEN = ".absent", ".given"


def _bits(names: Collection[str], given_names: Collection[str]) -> int:
    if len(names) > len(_POWERS):
        return sum(1 << at for at, name in enumerate(names) if name in given_names)
    return sum(compress(_POWERS, map(given_names.__contains__, names))) if given_names else 0


_POWERS = [1 << at for at in range(64)]


def _named(names: Collection[str], bits: int) -> set[str]:
    if bits >> len(names):  # each look at a bit goes through all
        raise ValueError("it says more of its fields than it has")
    if not bits:
        return set()
    return {name for at, name in enumerate(names) if bits >> at & 1}


def load_pydantic(kind: Any, content: list[Any]) -> Any:
    """Return the model of this content. Fields that it does not have get their defaults."""
    fields, bits, extra, private, *odd = content
    names = [*only(fields, dict), *extra] if extra else only(fields, dict)
    given_names = _named(names, only(bits, int))
    absent, attributes = _read_odd(odd, given_names) if odd else ((), {})
    shape = _shape_of(kind)
    if not fields.keys() >= shape.fields.keys():
        for name, field in shape.fields.items():
            if name not in fields and name not in absent:
                fields[name] = _default_of(field, fields)
    if private is None and shape.has_private:
        private = {}
    if extra is None and shape.is_open:
        extra = {}
    value = bare(kind)
    set_fields(value, fields)
    set_given_names(value, given_names)
    set_extra(value, None if extra is None else only(extra, dict))
    set_private(value, None if private is None else _completed(private, shape, absent, fields))
    return set_attributes(value, attributes) if attributes else value


def _completed(
    private: Any, shape: _Shape, absent: Collection[str], fields: Attributes
) -> Attributes:
    """Return the private attributes of a model, with the defaults of those it does not have."""
    attributes = only(private, dict)
    for name, attribute in shape.private.items():
        if name not in attributes and name not in absent:
            factory = attribute.default_factory
            if factory is None:
                attributes[name] = attribute.get_default()
            elif getattr(attribute, "default_factory_takes_validated_data", False):
                attributes[name] = factory({**fields, **attributes})
            else:
                attributes[name] = factory()
    return attributes


def _read_odd(odd: list[Any], given_names: set[str]) -> tuple[Collection[str], Attributes]:
    """Return the names of fields that were deleted, and the attributes in slots."""
    attributes = dict(only(odd[0], dict))
    given_names.update(only(attributes.pop(_GIVEN, []), list))
    return only(attributes.pop(_ABSENT, []), list), attributes


class _Shape(NamedTuple):
    """What the models of a class have.

    Args:
        fields: The fields with defaults.
        private: The private attributes with defaults.
        optional: The names of both.
        has_private: Whether there are private attributes.
        is_open: Whether extra fields are kept.
        has_slots: Whether a class has slots of its own.
        cached: The names of what can be computed again.
    """

    fields: dict[str, Any]
    private: dict[str, Any]
    optional: frozenset[str]
    has_private: bool = False
    is_open: bool = False
    has_slots: bool = False
    cached: frozenset[str] = frozenset()


@lru_cache(TYPES_MAX)
def _shape_of(kind: Any) -> _Shape:
    fields = {name: field for name, field in kind.model_fields.items() if not field.is_required()}
    private = _private_with_defaults(kind)
    return _Shape(
        fields,
        private,
        frozenset({*fields, *private}),
        bool(kind.__private_attributes__),
        kind.model_config.get("extra") == "allow",
        has_slots(kind),
        cached_names(kind),
    )


def _private_with_defaults(kind: Any) -> dict[str, Any]:
    return {
        name: each
        for name, each in kind.__private_attributes__.items()
        if each.default_factory is not None or type(each.default).__name__ not in _NO_DEFAULT
    }


_NO_DEFAULT = ("PydanticUndefinedType", "UndefinedType")  # of either version


def _default_of(field: Any, fields: Attributes) -> Any:
    if getattr(field, "default_factory_takes_validated_data", False):
        return field.get_default(call_default_factory=True, validated_data=fields)
    return field.get_default(call_default_factory=True)


# What Pydantic assigns to copy a model, each slot without looking for its name: a subclass may hide
# them behind attributes of its own.
set_fields, set_given_names, set_extra, set_private = (
    vars(BaseModel)[slot].__set__
    for slot in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)


def show_pydantic(content: list[Any]) -> tuple[Attributes, Any]:
    """Return the fields in the content of a model."""
    fields, _, extra, *_ = content
    return {**fields, **(extra or {})}, None


def is_pydantic1(kind: type) -> bool:
    """Return whether a type is a model of Pydantic 1. One of Pydantic 2 looks like that too."""
    return hasattr(kind, "__fields__") and hasattr(kind, "__private_attributes__")


def dump_pydantic1(value: Any) -> list[Any]:
    """Return the content of a model: fields, bits of those given, private attributes.

    And, if there is any, what models seldom have.
    """
    kind: Any = type(value)
    fields, given_names = value.__dict__.copy(), value.__fields_set__
    names = kind.__private_attributes__
    private = {name: getattr(value, name) for name in names if hasattr(value, name)}
    content = [fields, _bits(fields, given_names), private]
    present = fields.keys() | private.keys()
    odd = _odd(present, _shape_of1(kind).optional, fields.keys(), given_names)
    odd |= {name: each for name, each in slots_of(value).items() if name not in names}
    return [*content, odd] if odd else content


@lru_cache(TYPES_MAX)
def _shape_of1(kind: Any) -> _Shape:
    fields = {name: field for name, field in kind.__fields__.items() if not field.required}
    private = _private_with_defaults(kind)
    return _Shape(fields, private, frozenset({*fields, *private}))


def load_pydantic1(kind: Any, content: list[Any]) -> Any:
    """Return the model of this content, as `load_pydantic` does."""
    fields, bits, private, *odd = content
    given_names = _named(only(fields, dict), only(bits, int))
    absent, attributes = _read_odd(odd, given_names) if odd else ((), {})
    shape = _shape_of1(kind)
    for name, field in shape.fields.items():
        if name not in fields and name not in absent:
            fields[name] = field.get_default()
    value = bare(kind)
    object.__setattr__(value, "__dict__", fields)
    object.__setattr__(value, "__fields_set__", given_names)
    for name, each in _completed(private, shape, absent, fields).items():
        object.__setattr__(value, name, each)
    return set_attributes(value, attributes) if attributes else value


def show_pydantic1(content: list[Any]) -> tuple[Attributes, Any]:
    """Return the fields in the content of a model."""
    return content[0], None


def change_fields(kind: str, content: list[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Return the content of an object whose fields a function has changed."""
    before, *rest = content
    after = change(dict(only(before, dict)))
    if kind in ("pydantic", "pydantic1"):
        bits = rest[0]
        given_names = _named(before, bits & (1 << len(before)) - 1) | (after.keys() - before.keys())
        of_extra = bits >> len(before)
        rest[0] = _bits(after, given_names) | of_extra << len(after)
    return [after, *rest]
