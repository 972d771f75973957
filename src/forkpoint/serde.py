"""The default serializer: LangGraph's own format, read back without trusting what a row names.

`JsonPlusSerializer` writes an object as a MessagePack extension that names its module and type,
and on reading imports the one and calls the other. Whoever can write to the database can thus run
code. `SafeSerializer` writes the same bytes, and on reading restores only

- values of Python's own types (sets, dates, UUIDs, paths, ...),
- LangChain's and LangGraph's own messages, documents and commands,
- data classes (dataclasses, Pydantic models, enums, named tuples, and subclasses of the value
  types above) of modules that the application has already imported, and
- types that the user allowed.

Anything else raises `UnreadableValue`; it never turns into `None` or into a bare dict.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import importlib
import ipaddress
import os
import pathlib
import re
import sys
import threading
import uuid
import zoneinfo
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint, whose format this is
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from forkpoint.errors import ForkpointError, UnreadableValue

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
_DELTA_SNAPSHOT = 7

_VALUE_TYPES: tuple[type, ...] = (
    set,
    frozenset,
    deque,
    datetime.date,  # and datetime.datetime, which derives from it
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    zoneinfo.ZoneInfo,
    uuid.UUID,
    decimal.Decimal,
    pathlib.PurePath,
    ipaddress.IPv4Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Address,
    ipaddress.IPv6Interface,
    ipaddress.IPv6Network,
)

# Modules that may be imported because a row names them: they define data, and loading them does
# nothing else. The modules of `_VALUE_TYPES` are imported above.
_IMPORTABLE = re.compile(
    r"langchain_core\.(messages|documents)\.\w+|langgraph\.types|langgraph\.store\.base"
    r"|pathlib\._local"
)

# Callables and types that are not data classes by their shape, and yet hold nothing but data.
_KNOWN = frozenset(
    {
        ("re", "compile"),
        ("langgraph.types", "Send"),
        ("langgraph.store.base", "Item"),
        ("pydantic.types", "SecretStr"),
        ("pydantic.types", "SecretBytes"),
        ("pydantic.v1.types", "SecretStr"),
        ("pydantic.v1.types", "SecretBytes"),
    }
)

_SAME_HASHES = 64  # elements of a set, at most

AllowedType = tuple[str, ...] | type


def strict_mode() -> bool:
    """Return whether LangGraph's strict mode is set in the environment."""
    return os.getenv("LANGGRAPH_STRICT_MSGPACK", "false").lower() in ("1", "true", "yes")


class SafeSerializer(JsonPlusSerializer):
    """Read and write LangGraph's MessagePack format, without trusting what a row names.

    Args:
        allowed: Further types that may be restored, as types or as `(module, name)`. Their
            modules are imported when a row names them.
        strict: Restore no data classes but LangChain's, LangGraph's and the `allowed` ones. By
            default, what the environment variable `LANGGRAPH_STRICT_MSGPACK` says.
    """

    def __init__(self, allowed: Iterable[AllowedType] = (), *, strict: bool | None = None) -> None:
        super().__init__(__unpack_ext_hook__=self._restore)
        self._strict = strict_mode() if strict is None else strict
        self._allowed = frozenset(_name(entry) for entry in allowed)
        self._resolved: dict[tuple[str, str], Callable[..., Any]] = {}
        self._failure = threading.local()

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[AllowedType]) -> SafeSerializer:
        """Return a serializer that restores these types too."""
        allowed = self._allowed | {_name(entry) for entry in extra_allowlist}
        if allowed == self._allowed:
            return self
        return SafeSerializer(allowed, strict=self._strict)

    def __copy__(self) -> SafeSerializer:
        return SafeSerializer(self._allowed, strict=self._strict)

    def __deepcopy__(self, memo: dict[int, Any]) -> SafeSerializer:
        return copy.copy(self)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Restore a value.

        Raises:
            UnreadableValue: The value names a type that may not, or cannot, be restored.
        """
        kind = data[0]
        if kind not in ("null", "bytes", "bytearray", "msgpack"):
            raise UnreadableValue(
                f"a value of the serialisation type {kind!r} is not read: forkpoint's default "
                "serializer never writes it; pass the serializer that wrote it as serde="
            )
        try:
            return super().loads_typed(data)
        except ValueError as error:
            # ormsgpack replaces what its hook raises by a ValueError of its own.
            failure: BaseException = self._failure.__dict__.pop("error", error)
            if isinstance(failure, ForkpointError) or not isinstance(failure, Exception):
                raise failure from failure.__cause__
            if _is_interrupt(failure):
                raise KeyboardInterrupt from None
            raise UnreadableValue(f"a stored value is not MessagePack: {error}") from error

    def _restore(self, code: int, content: bytes) -> Any:
        try:
            return self._build(code, self._unpack(content))
        except BaseException as error:
            self._failure.__dict__.setdefault("error", error)
            raise

    def _unpack(self, content: bytes) -> Any:
        return ormsgpack.unpackb(content, ext_hook=self._restore, option=ormsgpack.OPT_NON_STR_KEYS)

    def _build(self, code: int, fields: Any) -> Any:
        if code == _DELTA_SNAPSHOT and DeltaSnapshot is not None:
            return DeltaSnapshot(fields)
        if code == _NUMPY_ARRAY:
            return _numpy_array(fields)
        if not (
            _CONSTRUCTOR_ONE_ARGUMENT <= code <= _PYDANTIC_2
            and isinstance(fields, list)
            and len(fields) >= 3
            and isinstance(fields[0], str)
            and isinstance(fields[1], str)
        ):
            raise UnreadableValue(f"a stored value has the unknown extension type {code}")
        module, name, content = fields[:3]
        target = self._resolved.get((module, name)) or self._resolve(module, name)
        _check_arguments(code, target, content)
        try:
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
            return _from_method(target, content, fields[3:])
        except UnreadableValue:
            raise
        except Exception as error:
            raise UnreadableValue(
                f"{module}.{name} could not be restored from what was stored: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _resolve(self, module: str, name: str) -> Callable[..., Any]:
        """Return the type that a row names, if it may be restored."""
        known = (module, name) in _KNOWN
        allowed = (module, name) in self._allowed
        own = known or _IMPORTABLE.fullmatch(module) is not None
        if own or allowed:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UnreadableValue(
                    f"{module}.{name} is stored, but {module} cannot be imported: {error}"
                ) from error
        found = _find(module, name)
        if found is None:
            raise UnreadableValue(
                f"{module}.{name} is stored, but the application has not imported a module "
                f"{module} with a type {name} in it (a type that is defined inside a function "
                f"cannot be found); import it first, or allow it with "
                f"saver.with_allowlist([({module!r}, {name!r})])"
            )
        if not (known or allowed):
            if not (isinstance(found, type) and _is_data_class(found)):
                raise UnreadableValue(
                    f"{module}.{name} is stored, and is not a data class; if it may be called, "
                    f"allow it with saver.with_allowlist([({module!r}, {name!r})])"
                )
            if self._strict and not own and not _is_value_class(found):
                raise UnreadableValue(
                    f"{module}.{name} is stored, and strict mode (LANGGRAPH_STRICT_MSGPACK) does "
                    f"not allow it; allow it with "
                    f"saver.with_allowlist([({module!r}, {name!r})])"
                )
        target: Callable[..., Any] = found
        self._resolved[module, name] = target
        return target


def _is_interrupt(failure: Exception) -> bool:
    """Return whether the hook raised something before it could note what.

    Only a signal handler does, as the hook is entered, and those run on the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and str(failure) == "ext_hook failed"


def _name(entry: AllowedType) -> tuple[str, str]:
    if isinstance(entry, type):
        return entry.__module__, entry.__name__
    return ".".join(entry[:-1]), entry[-1]


def _find(module: str, name: str) -> Any:
    """Return what an imported module defines under a name, without running any of its code.

    A type that is nested in another is stored under its own name only, so it is looked for there.
    """
    imported = sys.modules.get(module)
    if imported is None:
        return None
    found = vars(imported).get(name)
    if found is not None:
        return found
    nested = [
        inner
        for outer in _nested(vars(imported).values(), module)
        for inner in vars(outer).values()
        if isinstance(inner, type) and inner.__name__ == name and inner.__module__ == module
    ]
    return nested[0] if len(set(nested)) == 1 else None


def _nested(values: Iterable[Any], module: str) -> list[type]:
    found: list[type] = []
    waiting = [value for value in values if isinstance(value, type)]
    while waiting:
        outer = waiting.pop()
        if outer.__module__ == module and outer not in found:
            found.append(outer)
            waiting.extend(value for value in vars(outer).values() if isinstance(value, type))
    return found


def _is_value_class(found: type) -> bool:
    package = found.__module__.partition(".")[0]
    return package in sys.stdlib_module_names and issubclass(found, _VALUE_TYPES)


def _is_data_class(found: type) -> bool:
    """Return whether a type is one that only holds data."""
    return (
        dataclasses.is_dataclass(found)
        or issubclass(found, (Enum, *_VALUE_TYPES))
        or (issubclass(found, tuple) and hasattr(found, "_fields"))
        # Pydantic 2 and 1, told by what their metaclasses leave on a model
        or "__pydantic_validator__" in vars(found)
        or (hasattr(found, "__fields__") and hasattr(found, "construct"))
    )


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
            _check_hashes(elements)


def _check_hashes(elements: Collection[Any]) -> None:
    """Refuse elements that were chosen to have the same hash: a set of n takes n * n steps."""
    if len(elements) <= _SAME_HASHES:
        return
    try:
        (_, most), *_ = Counter(map(hash, elements)).most_common(1)
    except TypeError as error:
        raise UnreadableValue(f"a stored set has an element that cannot be: {error}") from error
    if most > _SAME_HASHES:
        raise UnreadableValue("a stored set has too many elements with one hash")


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
