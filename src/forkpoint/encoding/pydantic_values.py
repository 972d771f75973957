"""Pydantic models, of either version: their content, and how one is made of it without its code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from functools import lru_cache
from itertools import compress
from typing import Any

from pydantic import BaseModel

from forkpoint.encoding.contents import (
    TYPES_MAX,
    Attributes,
    bare,
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
    fields = without_cached(kind, value.__dict__)
    extra = value.__pydantic_extra__
    names = [*fields, *extra] if extra else fields
    given_names = value.__pydantic_fields_set__
    content = [fields, _bits(names, given_names), extra, value.__pydantic_private__]
    known = fields.keys() | extra.keys() if extra else fields.keys()
    odd = _odd(fields.keys(), _optional_fields(kind).keys(), known, given_names)
    if odd or has_slots(kind):
        odd |= slots_of(value)
    return [*content, odd] if odd else content


def _odd(
    fields: Set[str], optional: Set[str], known: Set[str], given_names: Set[str]
) -> Attributes:
    """Return what models seldom have: fields that were deleted, and names of none that were given.

    Each is under a name that no attribute has.
    """
    odd: Attributes = {}
    if not fields >= optional:
        odd[_ABSENT] = sorted(optional - fields)
    if not given_names <= known:
        odd[_GIVEN] = sorted(given_names - known)
    return odd


_ABSENT, _GIVEN = ".absent", ".given"


def _bits(names: Collection[str], given_names: Collection[str]) -> int:
    if len(names) > len(_POWERS):
        return sum(1 << at for at, name in enumerate(names) if name in given_names)
    return sum(compress(_POWERS, map(given_names.__contains__, names)))


_POWERS = [1 << at for at in range(64)]


def _named(names: Collection[str], bits: int) -> set[str]:
    if bits >> len(names):  # each look at a bit goes through all
        raise ValueError("it says more of its fields than it has")
    return {name for at, name in enumerate(names) if bits >> at & 1}


def load_pydantic(kind: Any, content: list[Any]) -> Any:
    """Return the model of this content. Fields that it does not have get their defaults."""
    fields, bits, extra, private, *odd = content
    given_names = _named([*only(fields, dict), *(extra or ())], only(bits, int))
    absent, attributes = _read_odd(odd, given_names)
    optional = _optional_fields(kind)
    if not optional.keys() <= fields.keys():
        for name, field in optional.items():
            if name not in fields and name not in absent:
                fields[name] = _default_of(field, fields)
    value = bare(kind)
    set_fields(value, fields)
    set_given_names(value, given_names)
    set_extra(value, None if extra is None else only(extra, dict))
    set_private(value, None if private is None else only(private, dict))
    return set_attributes(value, attributes) if attributes else value


def _read_odd(odd: list[Any], given_names: set[str]) -> tuple[Collection[str], Attributes]:
    """Return the names of fields that were deleted, and the attributes in slots."""
    if not odd:
        return (), {}
    attributes = dict(only(odd[0], dict))
    given_names.update(only(attributes.pop(_GIVEN, []), list))
    return only(attributes.pop(_ABSENT, []), list), attributes


@lru_cache(TYPES_MAX)
def _optional_fields(kind: Any) -> dict[str, Any]:
    return {name: field for name, field in kind.model_fields.items() if not field.is_required()}


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
    fields, given_names = value.__dict__, value.__fields_set__
    names = kind.__private_attributes__
    private = {name: getattr(value, name) for name in names if hasattr(value, name)}
    content = [fields, _bits(fields, given_names), private]
    odd = _odd(fields.keys(), _optional_fields1(kind).keys(), fields.keys(), given_names)
    odd |= {name: each for name, each in slots_of(value).items() if name not in names}
    return [*content, odd] if odd else content


@lru_cache(TYPES_MAX)
def _optional_fields1(kind: Any) -> dict[str, Any]:
    return {name: field for name, field in kind.__fields__.items() if not field.required}


def load_pydantic1(kind: Any, content: list[Any]) -> Any:
    """Return the model of this content, as `load_pydantic` does."""
    fields, bits, private, *odd = content
    given_names = _named(only(fields, dict), only(bits, int))
    absent, attributes = _read_odd(odd, given_names)
    for name, field in _optional_fields1(kind).items():
        if name not in fields and name not in absent:
            fields[name] = field.get_default()
    value = bare(kind)
    object.__setattr__(value, "__dict__", fields)
    object.__setattr__(value, "__fields_set__", given_names)
    for name, each in only(private, dict).items():
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
