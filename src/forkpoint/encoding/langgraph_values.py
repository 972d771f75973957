"""Values as LangGraph's own serializer writes them: how they are restored without trusting them.

`JsonPlusSerializer` writes an object as a MessagePack extension that names its module and type,
and on reading imports the one and calls the other. Here only what may be restored is called, and
never with arguments that no value is written with.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from forkpoint.encoding.contents import check_hashes
from forkpoint.encoding.exception_values import check_text_error
from forkpoint.errors import UnreadableValue

try:  # names a private type of langgraph-checkpoint, which the format needs
    from langgraph.checkpoint.serde.types import _DeltaSnapshot

    DeltaSnapshot: Any = _DeltaSnapshot
except ImportError:  # pragma: no cover - before DeltaChannel existed
    DeltaSnapshot = None

# The extension codes of langgraph.checkpoint.serde.jsonplus. They are part of what it stores.
_CONSTRUCTOR_ONE_ARGUMENT = 0
_CONSTRUCTOR_ARGUMENTS = 1
_CONSTRUCTOR_KEYWORDS = 2
_METHOD_ONE_ARGUMENT = 3
_PYDANTIC_1 = 4
_PYDANTIC_2 = 5
_NUMPY_ARRAY = 6
DELTA_SNAPSHOT = 7


def restore(code: int, fields: Any, resolve: Callable[[str, str], Callable[..., Any]]) -> Any:
    """Return the value that was stored under one of LangGraph's codes.

    Args:
        code: The code.
        fields: What was unpacked of the content.
        resolve: Returns the type of a module and a name, or raises an `UnreadableValue`.

    Raises:
        UnreadableValue: It names a type that may not, or cannot, be restored.
    """
    if code == DELTA_SNAPSHOT and DeltaSnapshot is not None:
        return DeltaSnapshot(fields)
    if code == _NUMPY_ARRAY:
        return _numpy_array(fields)
    if not names_a_type(code, fields):
        raise UnreadableValue(f"a stored value has the unknown extension type {code}")
    module, name, content = fields[:3]
    target = re.compile if (module, name) == ("re", "compile") else resolve(module, name)
    _check_arguments(code, target, content)
    try:
        value = _restored(code, target, content, fields[3:])
        check_text_error(value)
        return value
    except UnreadableValue:
        raise
    except Exception as error:
        raise UnreadableValue(
            f"{module}.{name} could not be restored from what was stored: "
            f"{type(error).__name__}: {error}"
        ) from error


def names_a_type(code: int, fields: Any) -> bool:
    """Return whether this is an object, with the name of its module and that of its type."""
    return (
        _CONSTRUCTOR_ONE_ARGUMENT <= code <= _PYDANTIC_2
        and isinstance(fields, list)
        and len(fields) >= 3
        and isinstance(fields[0], str)
        and isinstance(fields[1], str)
    )


def _restored(code: int, target: Callable[..., Any], content: Any, method: Collection[str]) -> Any:
    if code == _PYDANTIC_2:
        return _pydantic(target, content, "model_construct")
    if code == _CONSTRUCTOR_ONE_ARGUMENT:
        return target(content)
    if code == _CONSTRUCTOR_ARGUMENTS:
        return _positional(target, content)
    if code == _CONSTRUCTOR_KEYWORDS:
        return _keywords(target, content)
    if code == _PYDANTIC_1:
        return _pydantic(target, content, "construct")
    return _from_method(target, content, method)


def _check_arguments(code: int, target: Callable[..., Any], content: Any) -> None:
    """Refuse what no value is written with, and what would take for ever to go through.

    Raises:
        UnreadableValue: The arguments are of another shape.
    """
    fits = True
    if code == _CONSTRUCTOR_ARGUMENTS:
        fits = isinstance(content, (list, tuple))
    elif code in (_CONSTRUCTOR_KEYWORDS, _PYDANTIC_1, _PYDANTIC_2):
        fits = isinstance(content, dict) and all(isinstance(key, str) for key in content)
    is_collection = isinstance(target, type) and issubclass(target, (set, frozenset, deque))
    if is_collection and code == _CONSTRUCTOR_ONE_ARGUMENT:
        # An IP network, for one, is a few bytes, and has up to 2**128 addresses.
        fits = isinstance(content, (list, tuple, set, frozenset, deque))
    elif is_collection and code == _CONSTRUCTOR_ARGUMENTS and fits:
        fits = all(isinstance(each, (list, tuple)) for each in content)
    if not fits:
        raise UnreadableValue(
            f"{getattr(target, '__name__', target)} is stored with arguments that it is never "
            "written with"
        )
    if is_collection and not issubclass(target, deque):  # type: ignore[arg-type]
        for elements in [content] if code == _CONSTRUCTOR_ONE_ARGUMENT else content:
            try:
                check_hashes(elements)
            except (TypeError, ValueError) as error:
                raise UnreadableValue(f"a stored set cannot be: {error}") from error


def _positional(target: Callable[..., Any], content: Any) -> Any:
    if (
        getattr(target, "__name__", "") == "Send"
        and target.__module__ == "langgraph.types"
        and len(content) == 3
    ):
        return target(content[0], content[1], timeout=content[2])
    return target(*content)


def _keywords(target: Callable[..., Any], content: dict[str, Any]) -> Any:
    try:
        return target(**content)
    except TypeError:
        # A dataclass may have fields that its constructor does not take; all of them are stored.
        if not (isinstance(target, type) and dataclasses.is_dataclass(target)):
            raise
        if content.keys() != {field.name for field in dataclasses.fields(target)}:
            raise
        instance = object.__new__(target)
        for name, value in content.items():
            object.__setattr__(instance, name, value)
        return instance


def _pydantic(target: Callable[..., Any], content: dict[str, Any], unchecked: str) -> Any:
    try:
        return target(**content)
    except Exception as error:
        # A model that was valid by the rules of another day; LangGraph restores it unchecked too.
        construct = getattr(target, unchecked, None)
        if construct is None:
            raise error
        return construct(**content)


def _from_method(target: Callable[..., Any], content: Any, method: Collection[str]) -> Any:
    is_datetime = isinstance(target, type) and issubclass(target, datetime.datetime)
    if list(method) != ["fromisoformat"] or not is_datetime:
        raise UnreadableValue(
            f"a stored value asks to call {getattr(target, '__name__', target)}."
            f"{'.'.join(map(str, method))}, which is never done"
        )
    return target.fromisoformat(content)  # type: ignore[attr-defined]


def _numpy_array(fields: Any) -> Any:
    try:
        import numpy

        dtype, shape, order, content = fields
        if not (isinstance(shape, (list, tuple)) and isinstance(content, bytes)):
            raise TypeError("its shape or its content is of the wrong type")
        return numpy.frombuffer(content, dtype=numpy.dtype(dtype)).reshape(shape, order=order)
    except Exception as error:
        raise UnreadableValue(f"a stored NumPy array could not be restored: {error}") from error
