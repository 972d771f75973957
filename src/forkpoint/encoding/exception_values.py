"""Exceptions: LangGraph stores those of its tasks.

Neither the traceback nor the cause of one is stored. What it holds that cannot be stored is stored
as the text that represents it.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic_core import PydanticCustomError, ValidationError, core_schema

from forkpoint.encoding.attributes import Attributes, attributes_of, set_attributes
from forkpoint.encoding.builtin_values import only

# What Python sets on some exceptions of its own, and neither their arguments nor a copy has.
_NAMED = (AttributeError, NameError)


def dump_exception(value: BaseException) -> list[Any]:
    """Return the content of an exception: its arguments and its attributes."""
    # Python's own type knows what it was made of, which `args` does not always say.
    _, arguments, *state = _builtin_base(type(value)).__reduce__(value)
    attributes = attributes_of(value)
    for each in state:
        attributes |= each or {}
    if isinstance(value, _NAMED) and value.name is not None:
        attributes["name"] = value.name
    return [list(arguments), attributes]


def _builtin_base(kind: type) -> Any:
    return next(each for each in kind.__mro__ if each.__module__ == "builtins")


def load_exception(kind: Any, content: list[Any]) -> Any:
    """Return the exception of this content. No code of its class runs."""
    arguments, attributes = content
    base = _builtin_base(kind)
    instance = base.__new__(kind, *only(arguments, list))
    base.__init__(instance, *arguments)
    return set_attributes(instance, attributes)


def show_exception(content: list[Any]) -> tuple[Attributes, Any]:
    """Return the fields in the content of an exception."""
    arguments, attributes = content
    return {"args": arguments, **attributes}, None


# Pydantic's ValidationError, which is made of what it says of each error


def dump_validation_error(value: ValidationError) -> list[Any]:
    """Return the content: the title, the errors, how the input was given, if inputs are hidden."""
    reduced: Any = value.__reduce__()
    title, errors, input_type, hides_input = reduced[1]
    details = [
        {name: error[name] for name in ("type", "loc", "msg", "input")}
        | ({"ctx": error["ctx"]} if error.get("ctx") else {})
        for error in errors
    ]
    return [[title, details, input_type, hides_input]]


def load_validation_error(kind: Any, content: list[Any]) -> Any:
    """Return the `ValidationError` of this content."""
    ((title, errors, input_type, hides_input),) = content
    details = [_error_details(**error) for error in only(errors, list)]
    instance = ValidationError.from_exception_data(title, details, input_type, hides_input)
    instance.args = ()  # as where Pydantic raises it
    return instance


def _error_details(
    type: str, loc: Any, msg: str, input: Any = None, ctx: Any = None
) -> Any:  # as Pydantic names them
    context = {} if ctx is None else ctx
    if type in _ERROR_TYPES:
        return {"type": type, "loc": loc, "input": input, "ctx": context}
    custom = PydanticCustomError(type, msg, ctx)  # of the application
    return {"type": custom, "loc": loc, "input": input}


_ERROR_TYPES = frozenset(get_args(core_schema.ErrorType))


def show_validation_error(content: list[Any]) -> tuple[Attributes, Any]:
    """Return the fields in the content of a `ValidationError`."""
    ((title, errors, *_),) = content
    return {"title": title, "errors": errors}, None
