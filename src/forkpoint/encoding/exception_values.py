"""Exceptions: LangGraph stores those of its tasks.

Neither the traceback nor the cause of one is stored. What it holds that cannot be stored is stored
as the text that represents it.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from contextlib import suppress
from operator import is_
from typing import Any, get_args

import pydantic_core
from pydantic_core import PydanticCustomError, ValidationError, core_schema

from forkpoint.encoding.contents import (
    Attributes,
    CannotStore,
    attributes_of,
    builtin_slots,
    is_of_module,
    only,
    set_attributes,
)

_GROUPS: tuple[type, ...] = tuple(
    kind for name, kind in vars(builtins).items() if name == "BaseExceptionGroup"
)
_UNSTORED = ("obj", "message", "exceptions")  # the last two of a group are what it is made of


def dump_exception(value: BaseException) -> list[Any]:
    """Return the content of an exception.

    It is what Python's own type makes one of and the attributes; and the arguments, where these are
    others.
    """
    kind = type(value)
    base = _builtin_base(kind)
    # Python's own type knows what it was made of, which `args` does not always say.
    _, arguments, *state = base.__reduce__(value)
    attributes: Attributes = {}
    with suppress(CannotStore):
        attributes = attributes_of(value)
    for each in state:
        attributes |= {name: own for name, own in (each or {}).items() if name != "args"}
    content = [list(arguments), attributes]
    if hasattr(kind, "__del__"):  # of the one that would be made to compare
        return content
    of_text = [slot.__get__(value) for slot in _text_slots(kind).values()]
    if of_text and None not in of_text:
        content[0] = of_text
    probe = _made(kind, content[0])
    if isinstance(value, _GROUPS) and not _is_same_group(probe, value):
        content[0] = [value.message, list(value.exceptions)]  # type: ignore[attr-defined]
        probe = _made(kind, content[0])
    if probe is None:  # its arguments were changed
        probe = _made(kind, [])
        if probe is None:
            return content
        content[0] = []
    for name, slot in builtin_slots(kind).items():
        if not name.startswith("__") and name not in _UNSTORED:
            own = slot.__get__(value)
            if own is not slot.__get__(probe):
                attributes[name] = own
    own_arguments, others = _arguments_of(value), _arguments_of(probe)
    is_same = len(own_arguments) == len(others) and all(map(is_, own_arguments, others))
    return content if is_same else [*content, list(own_arguments)]


def _made(kind: type, arguments: Iterable[Any]) -> BaseException | None:
    """Return an exception as Python's own type makes it, or None if that takes other arguments."""
    base = _builtin_base(kind)
    try:
        made: BaseException = base.__new__(kind, *arguments)
        base.__init__(made, *arguments)
    except Exception:  # noqa: BLE001 - what a group says, say
        return None
    return made


def _is_same_group(one: Any, other: Any) -> bool:
    return (
        one is not None
        and one.message == other.message
        and len(one.exceptions) == len(other.exceptions)
        and all(map(is_, one.exceptions, other.exceptions))
    )


def _arguments_of(value: BaseException) -> tuple[Any, ...]:
    arguments: tuple[Any, ...] = vars(BaseException)["args"].__get__(value)
    return arguments


def _builtin_base(kind: type) -> Any:
    return next(
        each
        for each in kind.__mro__
        if is_of_module(each, "builtins") or any(each is known for known in _OF_PYDANTIC)
    )


# They make their objects themselves, and run nothing of anyone else's.
_OF_PYDANTIC = [
    kind
    for name, kind in vars(pydantic_core).items()
    if name in pydantic_core.__all__ and isinstance(kind, type) and issubclass(kind, Exception)
]


def load_exception(kind: Any, content: list[Any]) -> Any:
    """Return the exception of this content. No code of its class runs."""
    arguments, attributes, *own_arguments = content
    base = _builtin_base(kind)
    instance = base.__new__(kind, *only(arguments, list))
    base.__init__(instance, *arguments)
    check_text_error(instance)
    if not only(attributes, dict).keys().isdisjoint(_text_slots(kind)):
        raise ValueError("it has other attributes than it is made of")
    if own_arguments:
        vars(BaseException)["args"].__set__(instance, only(own_arguments[0], list))
    slots = builtin_slots(kind)
    for name in [name for name, each in attributes.items() if each is None and name in slots]:
        slots[name].__delete__(instance)  # an `OSError` says that it has None where it has nothing
        del attributes[name]
    return set_attributes(instance, attributes)


# Printing a `UnicodeError` reads the memory that its attributes point to, whatever that is.
_TEXT_SLOTS = ("encoding", "object", "start", "end", "reason")  # as its arguments are ordered


def _text_slots(kind: type) -> dict[str, Any]:
    if not issubclass(kind, UnicodeError):
        return {}
    slots = builtin_slots(kind)
    names = _TEXT_SLOTS[1:] if issubclass(kind, UnicodeTranslateError) else _TEXT_SLOTS
    return {name: slots[name] for name in names if name in slots}


def check_text_error(value: object) -> None:
    """Refuse an exception that says it is about what comes before a text.

    Raises:
        ValueError: It does.
    """
    start = _text_slots(type(value)).get("start")
    if start is not None and start.__get__(value) < 0:
        raise ValueError("it begins before its text")


def show_exception(content: list[Any]) -> tuple[Attributes, Any]:
    """Return the fields in the content of an exception."""
    arguments, attributes, *own_arguments = content
    return {"args": own_arguments[0] if own_arguments else arguments, **attributes}, None


# Pydantic's ValidationError, which is made of what it says of each error


def dump_validation_error(value: ValidationError) -> list[Any]:
    """Return the content: the title, the errors, how the input was given, if inputs are hidden."""
    reduced: Any = value.__reduce__()
    title, errors, input_type, hides_input = reduced[1]
    details = [
        {
            "type": getattr(error["type"], "type", error["type"]),  # of the application: an error
            **{name: error[name] for name in ("loc", "msg", "input")},
        }
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
