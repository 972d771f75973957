"""Reading objects of callers, which may raise anything when they are read or printed.

What they raise becomes `InvalidInput`. A subclass of a built-in type is read by the methods of the
built-in type, whatever the subclass overrides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from forkpoint.errors import InvalidInput

_SHOWN = 80  # characters
_URL = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+]+://")
_T = TypeVar("_T")


def shown(value: object, characters: int = _SHOWN) -> str:
    """Return the beginning of an object's representation, or its type if it has none."""
    try:
        text = f"{value!r:.{characters}}"
    except Exception:  # noqa: BLE001 - it may raise anything; a deep one does, and a long integer
        return f"a value of type {type(value).__name__}"
    return text if text.isprintable() else ascii(text)


def url_start(text: str) -> str | None:
    """Return the scheme that a URL begins with, `scheme://`; None for a path or a `file:` URI."""
    found = _URL.match(text)
    return None if found is None else found[0]


def location(text: str) -> str:
    """Return what an error calls a store by: of a URL, which may have a password, the scheme."""
    start = url_start(text)
    return shown(text) if start is None else f"{start}..."


def reading(what: str, read: Callable[..., _T], *arguments: Any) -> _T:
    """Return what a function reads from an object.

    Raises:
        InvalidInput: The object raised something.
    """
    try:
        return read(*arguments)
    except InvalidInput:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {message(error, _SHOWN)}"
        raise InvalidInput(f"{what} cannot be read: {reason}") from error


def message(error: BaseException, characters: int = 1000) -> str:
    """Return the beginning of what an exception says, or a question mark if that raises."""
    try:
        text = f"{error!s:.{characters}}"
    except Exception:  # noqa: BLE001 - as in `shown`
        return "?"
    return text if text.isprintable() else ascii(text)


def mapping(value: object, what: str) -> Mapping[Any, Any]:
    """Return a mapping: a dict as it is, and the content of any other."""
    if type(value) is dict:
        return value
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{what} must be a mapping, not {type(value).__name__}")
    return reading(what, dict, value)


def items(value: Collection[Any], what: str) -> list[Any]:
    """Return the items of a collection as a list."""
    return value if type(value) is list else reading(what, list, value)


def integer(value: object) -> int | None:
    """Return an integer; None for any other value, `True` and `False` included."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if type(value) is int else int.__int__(value)


def characters(value: str) -> str:
    """Return a string of type `str` with the same characters.

    A subclass may compare and print differently, as an enum does, and a driver may store it as
    something else than a string, as MongoDB's does with `bson.Code`.
    """
    return value if type(value) is str else str.__str__(value)


def field(value: Any, name: str) -> Any:
    """Return a field of an object, or of a mapping of its fields; None if there is none."""
    if issubclass(type(value), dict):
        return dict.get(value, name)
    return attribute(value, name)


def attribute(value: Any, name: str) -> Any:
    """Return an attribute, or None if there is none, or it cannot be read."""
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - a property of anyone's may raise anything
        return None
