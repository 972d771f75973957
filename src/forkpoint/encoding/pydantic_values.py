"""Pydantic models, of either version: their content, and how one is made of it without its code."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from itertools import compress
from typing import Any

from pydantic import BaseModel

from forkpoint.encoding.attributes import TYPES_MAX, Attributes, bare, without_cached
from forkpoint.encoding.builtin_values import only


def is_pydantic(kind: type) -> bool:
    """Return whether a type is a model of Pydantic 2, told by what its metaclass leaves on it."""
    return "__pydantic_validator__" in vars(kind) and hasattr(kind, "model_fields")


def dump_pydantic(value: Any) -> list[Any]:
    """Return the content of a model: fields, bits of those given, extra fields, private ones."""
    fields = without_cached(type(value), value.__dict__)
    extra = value.__pydantic_extra__
    names = [*fields, *extra] if extra else fields
    bits = _bits(names, value.__pydantic_fields_set__)
    return [fields, bits, extra, value.__pydantic_private__]


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
    fields, bits, extra, private = content
    given_names = _named([*only(fields, dict), *(extra or ())], only(bits, int))
    optional = _optional_fields(kind)
    if not optional.keys() <= fields.keys():
        for name, field in optional.items():
            if name not in fields:
                fields[name] = _default_of(field, fields)
    value = bare(kind)
    set_fields(value, fields)
    set_given_names(value, given_names)
    set_extra(value, None if extra is None else only(extra, dict))
    set_private(value, None if private is None else only(private, dict))
    return value


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
    fields, _, extra, _ = content
    return {**fields, **(extra or {})}, None


def is_pydantic1(kind: type) -> bool:
    """Return whether a type is a model of Pydantic 1. One of Pydantic 2 looks like that too."""
    return hasattr(kind, "__fields__") and hasattr(kind, "__private_attributes__")


def dump_pydantic1(value: Any) -> list[Any]:
    """Return the content of a model: fields, bits of those given, private attributes."""
    fields = value.__dict__
    bits = _bits(fields, value.__fields_set__)
    names = type(value).__private_attributes__
    return [fields, bits, {name: getattr(value, name) for name in names if hasattr(value, name)}]


def load_pydantic1(kind: Any, content: list[Any]) -> Any:
    """Return the model of this content, as `load_pydantic` does."""
    fields, bits, private = content
    given_names = _named(only(fields, dict), only(bits, int))
    for name, field in kind.__fields__.items():
        if name not in fields and not field.required:
            fields[name] = field.get_default()
    value = bare(kind)
    object.__setattr__(value, "__dict__", fields)
    object.__setattr__(value, "__fields_set__", given_names)
    for name, each in only(private, dict).items():
        object.__setattr__(value, name, each)
    return value


def show_pydantic1(content: list[Any]) -> tuple[Attributes, Any]:
    """Return the fields in the content of a model."""
    return content[0], None


def change_fields(kind: str, content: list[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Return the content of an object whose fields a function has changed."""
    before, *rest = content
    after = change(dict(only(before, dict)))
    if kind in ("pydantic", "pydantic1"):
        given_names = _named(before, rest[0] & (1 << len(before)) - 1) | (
            after.keys() - before.keys()
        )
        rest[0] = _bits(after, given_names)
    return [after, *rest]
