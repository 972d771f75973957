"""Values to MessagePack: in one go where it has all that is in them, and else piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.encoding import array_values, builtin_values, chunking, object_values
from forkpoint.encoding.builtin_values import (
    PLAIN_ONLY,
    CannotStore,
    Described,
    holds_buffer,
    may_hold_bytes,
)
from forkpoint.encoding.langgraph_values import DELTA_SNAPSHOT, DeltaSnapshot
from forkpoint.encoding.stored_object import StoredObject, stored_as
from forkpoint.encoding.type_codecs import TypeCodec
from forkpoint.errors import NotStorable
from forkpoint.untrusted import shown

CUSTOM = 41
"""The extension code of a type of `types=`: an array of its name, and what was made of a value."""

_PIECEWISE = PLAIN_ONLY | ormsgpack.OPT_NON_STR_KEYS
_KEYS = frozenset({str, int, float, bool, bytes, type(None)})  # that a map can hold
_KNOWN_TYPES = 4096
_DEEPEST = 250  # so deep does MessagePack's library go


class Packer:
    """Packs values.

    Args:
        codecs: Of types that forkpoint does not know.
        allows: Whether objects of a type may be stored that may be more than data.
    """

    def __init__(self, codecs: Iterable[TypeCodec], allows: Callable[[type], bool]) -> None:
        self._codecs = tuple(codecs)
        self._allows = allows
        self._describers = self._describers_of_values()
        self._failure = threading.local()

    def _describers_of_values(self) -> dict[type, Callable[[Any], Described]]:
        custom = {codec.type: _custom(codec) for codec in self._codecs}
        return {**builtin_values.DESCRIBERS, StoredObject: stored_as, **custom}

    def pack(self, value: Any) -> bytes:
        """Return a value as MessagePack.

        Raises:
            NotStorable: Something in it cannot be stored; it says where that is.
        """
        try:
            packed = ormsgpack.packb(value, default=self._extension, option=PLAIN_ONLY)
        except TypeError:  # a key that is no string, say; or something that cannot be stored
            interrupt: BaseException | None = self._failure.__dict__.pop("interrupt", None)
            if interrupt is not None:
                raise interrupt from None
            return self._pack_piecewise(value, "", 0)
        if may_hold_bytes(packed) and holds_buffer(value):
            return self._pack_piecewise(value, "", 0)
        return packed

    def _extension(self, value: Any) -> Any:
        try:
            if type(value) is tuple:  # as `_describe` says, without the detour
                return ormsgpack.Ext(builtin_values.TUPLE, self.pack(list(value)))
            code, content = self._describe(value)
            return _extension(code, content, self.pack)
        except BaseException as error:
            if not isinstance(error, Exception):  # ormsgpack would replace it
                self._failure.interrupt = error
            raise

    def _describe(self, value: Any) -> Described:
        kind = type(value)
        describer = self._describers.get(kind)
        if describer is None:
            if len(self._describers) > _KNOWN_TYPES:  # some programs make types by the request
                self._describers = self._describers_of_values()
            describer = self._describers[kind] = self._describer_of(kind)
        return describer(value)

    def _describer_of(self, kind: type) -> Callable[[Any], Described]:
        if kind is DeltaSnapshot:
            return lambda value: (DELTA_SNAPSHOT, value.value)
        describer = array_values.describer_of(kind)
        if describer is not None:
            return describer
        name = object_values.kind_of(kind) or ("slots" if self._allows(kind) else None)
        if name is None:
            raise CannotStore("is not known to hold nothing but data")
        describer = object_values.describer_of(name, kind)
        if name == "exception":
            return lambda value: self._storable(*describer(value))
        return describer

    def _storable(self, code: int, content: list[Any]) -> Described:
        """Return what is stored of an exception, whatever it holds."""
        kind, name, arguments, attributes = content
        arguments = [self._or_text(argument) for argument in arguments]
        attributes = {key: self._or_text(each) for key, each in attributes.items()}
        return code, [kind, name, arguments, attributes]

    def _or_text(self, value: Any) -> Any:
        """Return a value, or the text that represents it if it cannot be stored."""
        try:
            self.pack(value)
        except NotStorable:
            try:
                return repr(value)
            except Exception as error:  # noqa: BLE001 - whatever its class does
                return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
        return value

    def _pack_piecewise(self, value: Any, path: str, depth: int) -> bytes:
        tree = self._tree(value, path, depth)
        return ormsgpack.packb(tree, option=_PIECEWISE)

    def _tree(self, value: Any, path: str, depth: int) -> Any:
        """Return a value that packs as this one, made of what MessagePack has."""
        kind = type(value)
        if depth > _DEEPEST:
            raise _refused(path[:80], value, f"is nested more than {_DEEPEST} levels deep")
        if _is_plain(value):
            return value
        if kind is list:
            return [self._tree(each, f"{path}[{at}]", depth + 1) for at, each in enumerate(value)]
        if kind is dict and _KEYS.issuperset(map(type, value)) and not _is_odd(value):
            return {
                key: self._tree(each, f"{path}[{shown(key)}]", depth + 1)
                for key, each in list(value.items())
            }
        try:
            code, content = self._describe(value)
        except CannotStore as error:
            raise _refused(path, value, str(error)) from None
        except NotStorable:
            raise
        except Exception as error:
            raise _refused(path, value, f"could not be read: {error}") from error
        return _extension(
            code, content, lambda part: self._pack_part(code, part, content, path, depth + 1)
        )

    def _pack_part(self, code: int, part: Any, whole: Any, path: str, depth: int) -> bytes:
        if part is not whole or type(part) is not list:  # an element of a set
            return self._pack_piecewise(part, f"{path}{{...}}", depth)
        trees = []
        for at, each in enumerate(part):
            if type(each) is dict and code == object_values.OBJECT and at:
                trees.append(
                    {
                        name: self._tree(inner, f"{path}.{name}", depth)
                        for name, inner in each.items()
                    }
                )
            else:
                trees.append(self._tree(each, _path_in(code, path, part, at), depth))
        return ormsgpack.packb(trees, option=_PIECEWISE)


def _custom(codec: TypeCodec) -> Callable[[Any], Described]:
    return lambda value: (CUSTOM, [codec.name, codec.encode(value)])


def _extension(code: int, content: Any, pack: Callable[[Any], bytes]) -> Any:
    if code in builtin_values.RAW or isinstance(content, bytes):
        return ormsgpack.Ext(code, content)
    if code in (builtin_values.SET, builtin_values.FROZENSET):
        elements = sorted(map(pack, content))
        return ormsgpack.Ext(code, chunking.array_header(len(elements)) + b"".join(elements))
    return ormsgpack.Ext(code, pack(content))


def _is_plain(value: Any) -> bool:
    """Return whether MessagePack has this as it is."""
    if type(value) is list:
        parts: set[type] = set(map(type, value))
    elif type(value) is dict:
        parts = {*map(type, value), *map(type, value.values())}
    else:
        parts = {type(value)}
    if not parts <= _KEYS:
        return False
    try:
        ormsgpack.packb(value, option=_PIECEWISE)
    except TypeError:  # a long integer, or a lone surrogate
        return False
    return True


def _is_odd(value: dict[Any, Any]) -> bool:
    """Return whether a map cannot hold the keys of a dict."""
    return any(
        _has_surrogates(key)
        if type(key) is str
        else type(key) is int and not -(2**63) <= key < 2**64
        for key in value
    )


def _has_surrogates(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _path_in(code: int, path: str, parts: list[Any], at: int) -> str:
    if code == builtin_values.ITEMS:
        return f"{path}[{shown(parts[at - 1])}]" if at % 2 else f"{path}.keys()"
    if code == builtin_values.TUPLE:
        return f"{path}[{at}]"
    return path


def _refused(path: str, value: Any, reason: str) -> NotStorable:
    kind = type(value)
    return NotStorable(path, f"a {kind.__module__}.{kind.__qualname__} {reason}")
