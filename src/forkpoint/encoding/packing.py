"""Values to MessagePack: in one go where it has all that is in them, and else piece by piece."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.encoding import array_values, builtin_values, chunking, object_values
from forkpoint.encoding.builtin_values import PLAIN_ONLY, holds_buffer, may_hold_bytes
from forkpoint.encoding.contents import (
    LARGE,
    CannotStore,
    Described,
    attributes_of,
    takes_much,
)
from forkpoint.encoding.copies import copied, holds_no_others
from forkpoint.encoding.langgraph_values import DELTA_SNAPSHOT, DeltaSnapshot
from forkpoint.encoding.stored_object import StoredObject, stored_as
from forkpoint.encoding.type_codecs import CUSTOM, TypeCodec
from forkpoint.errors import NotStorable
from forkpoint.untrusted import characters, message, shown

_PIECEWISE = PLAIN_ONLY | ormsgpack.OPT_NON_STR_KEYS
_KEYS = frozenset({str, int, float, bool, bytes, type(None)})  # that a map can hold
_KNOWN_TYPES = 4096
_DEEPEST = 250  # less than MessagePack's library goes
_TOO_LARGE = "is too large for how deep it is nested"
_LEVELS_OF_EXCEPTIONS = 4  # within what they hold, texts stand for what cannot be stored


class _Packing:
    """How far a thread is that packs.

    Attributes:
        depth: In how many extensions it is.
        interrupt: What was raised within ormsgpack and is no `Exception`.
        exceptions: The ids of the exceptions that it is in.
        objects: How many objects it is in, of whatever kind.
        held: How many bytes will be held at once to restore what is in the last of them.
    """

    __slots__ = ("depth", "exceptions", "held", "interrupt", "objects")

    def __init__(self) -> None:
        self.depth = self.objects = self.held = 0
        self.interrupt: BaseException | None = None
        self.exceptions: frozenset[int] = frozenset()


class _Thread(threading.local):
    """What each thread that packs keeps. It is looked up once for each object."""

    def __init__(self) -> None:
        self.packing = _Packing()


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
        self._thread = _Thread()

    def _describers_of_values(self) -> dict[type, Callable[[Any], Described]]:
        custom = {codec.type: _custom(codec) for codec in self._codecs}
        kinds: tuple[type, ...] = (Counter, OrderedDict)
        with_attributes = {kind: _with_attributes(kind) for kind in kinds}
        return {**builtin_values.DESCRIBERS, **with_attributes, StoredObject: stored_as, **custom}

    def pack(self, value: Any, is_own: bool = False) -> bytes:
        """Return a value as MessagePack.

        Where it has something that MessagePack has not, Python code runs, and other threads with
        it: they might empty a list that ormsgpack is reading, which it does not survive. So it is
        given copies of lists and dicts then.

        Args:
            value: The value.
            is_own: Whether its lists and dicts are nobody else's.

        Raises:
            NotStorable: Something in it cannot be stored; it says where that is.
        """
        own = value  # all in one function, for values may be nested as deep as Python goes
        packed = None
        if not is_own and (type(value) is list or type(value) is dict):
            try:
                packed = ormsgpack.packb(value, option=PLAIN_ONLY)
            except TypeError:
                try:
                    own = copied(value)
                except Exception:  # noqa: BLE001 - of a metaclass, or of a key
                    return self._pack_piecewise(value, "", self._thread.packing.depth)
        try:
            if packed is None:
                packed = ormsgpack.packb(own, default=self._extension, option=PLAIN_ONLY)
        except TypeError:  # a key that is no string, say; or something that cannot be stored
            interrupt = self._thread.packing.interrupt
            if interrupt is not None:
                self._thread.packing.interrupt = None
                raise interrupt from None
            return self._pack_piecewise(value, "", self._thread.packing.depth)
        if may_hold_bytes(packed) and holds_buffer(own):
            # By its marks it may hold bytes, and it does.
            return self._pack_piecewise(value, "", self._thread.packing.depth)
        return packed

    def pack_object(self, value: Any) -> bytes:
        """Return an object as `pack` does, in fewer steps."""
        try:
            code, content = self._describe(value)
        except Exception:  # noqa: BLE001 - `pack` says where
            return self.pack(value)
        if code != object_values.OBJECT:
            return self.pack(value)
        packed = self.pack(content)
        return chunking.extension_header(code, len(packed)) + packed

    def _extension(self, value: Any) -> Any:
        thread = self._thread.packing
        depth, objects, beside = thread.depth, thread.objects, thread.held
        try:
            thread.depth = depth + 1
            if depth > _DEEPEST:
                raise CannotStore(f"is nested more than {_DEEPEST} levels deep")
            if issubclass(type(value), BaseException):  # whatever it says of its class
                return self._tree(value, "", 0)
            thread.objects, thread.held = objects + 1, 0
            if type(value) is tuple:  # as `_describe` says, without the detour
                elements, code = list(value), builtin_values.TUPLE
                packed = self.pack(elements, holds_no_others(elements))
            else:
                code, content = self._describe(value)
                packed = _packed(code, content, self.pack)
            if len(packed) <= LARGE:  # as is what it holds: `_is_too_large` would say no
                thread.held = beside
            elif self._is_too_large(packed, (objects, beside)):
                raise CannotStore(_TOO_LARGE)
            return ormsgpack.Ext(code, packed)
        except BaseException as error:
            if not isinstance(error, Exception):  # ormsgpack would replace it
                thread.interrupt = error
            raise
        finally:
            thread.depth, thread.objects = depth, objects

    def _begin_object(self) -> tuple[int, int]:
        """Begin to pack an object, and return what `_is_too_large` is given after that."""
        thread = self._thread.packing
        before = thread.objects, thread.held
        thread.objects, thread.held = thread.objects + 1, 0
        return before

    def _is_too_large(self, packed: bytes, before: tuple[int, int]) -> bool:
        """Return whether too much is held to restore an object of this content.

        If the object is in another one, that is seen at the end of that.
        """
        thread = self._thread.packing
        held = thread.held + (len(packed) if len(packed) > LARGE else 0)
        thread.objects, beside = before
        thread.held = max(beside, held) if thread.objects else 0
        return not thread.objects and takes_much(held, len(packed))

    def _describe(self, value: Any) -> Described:
        kind = type(value)
        describer = self._describers.get(kind)
        if describer is None:
            if len(self._describers) > _KNOWN_TYPES:  # some programs make types by the request
                self._describers = self._describers_of_values()
            describer = self._describers[kind] = self._describer_of(value)
        return describer(value)

    def _describer_of(self, value: Any) -> Callable[[Any], Described]:
        kind = type(value)
        if kind is DeltaSnapshot:
            return lambda value: (DELTA_SNAPSHOT, value.value)
        describer = array_values.describer_of(kind)
        if describer is not None:
            return describer
        name = object_values.kind_of(kind) or ("slots" if self._allows(kind) else None)
        if name is None:
            raise CannotStore("is not known to hold nothing but data")
        if not issubclass(kind, BaseException):  # those are stored in any case
            object_values.check_restorable(name, value)
        return object_values.describer_of(name, kind)

    def _pack_piecewise(self, value: Any, path: str, depth: int) -> bytes:
        objects = self._thread.packing.objects
        try:
            tree = self._tree(value, path, depth)
            return ormsgpack.packb(tree, option=_PIECEWISE)
        except RecursionError:
            raise _refused(path[:80], value, "is nested too deep") from None
        finally:
            self._thread.packing.objects = objects

    def _tree(self, value: Any, path: str, depth: int) -> Any:
        """Return a value that packs as this one, made of what MessagePack has."""
        kind = type(value)
        if kind is _Placed:
            return [self._tree(each, path + place, depth) for place, each in value]
        if kind is _Fields:
            return {name: self._tree(each, f"{path}.{name}", depth) for name, each in value.items()}
        if depth > _DEEPEST:
            raise _refused(path[:80], value, f"is nested more than {_DEEPEST} levels deep")
        if kind is list or kind is dict:
            value = value.copy()  # a codec may do anything to it, and so may other threads
        if _is_plain(value):
            return value
        if kind is list:
            return [self._tree(each, f"{path}[{at}]", depth + 1) for at, each in enumerate(value)]
        if kind is dict and _KEYS.issuperset(map(type, value)) and not _is_odd(value):
            return {
                key: self._tree(each, f"{path}[{shown(key)}]", depth + 1)
                for key, each in value.items()
            }
        code, content = self._described(value, path)
        if _is_whole(code, content):
            return ormsgpack.Ext(code, content)
        if id(value) in self._thread.packing.exceptions:  # it holds itself
            return self._text_of(value)
        before = self._begin_object()
        if issubclass(kind, BaseException) and code == object_values.OBJECT:
            packed = self._exception(value, content, depth)
        elif code in _SETS:
            place = f"{path}{{...}}"
            packed = _set_of([self._pack_piecewise(each, place, depth + 1) for each in content])
        else:
            placed = _placed(code, content)
            if type(placed) is _Placed:
                tree = [self._tree(each, path + place, depth + 1) for place, each in placed]
            else:
                tree = self._tree(placed, path, depth + 1)
            packed = ormsgpack.packb(tree, option=_PIECEWISE)
        if self._is_too_large(packed, before):
            raise _refused(path[:80], value, _TOO_LARGE)
        return ormsgpack.Ext(code, packed)

    def _described(self, value: Any, path: str) -> Described:
        try:
            return self._describe(value)
        except CannotStore as error:
            raise _refused(path, value, str(error)) from None
        except NotStorable as error:  # from a codec that serializes by itself
            raise NotStorable(path + error.path, error.reason) from None
        except RecursionError:
            raise _refused(path[:80], value, "is nested too deep") from None
        except Exception as error:
            raise _refused(path, value, f"could not be read: {message(error)}") from error

    def _exception(self, value: BaseException, content: list[Any], depth: int) -> bytes:
        """Return the content of an exception, packed, whatever it holds."""
        outer = self._thread.packing.exceptions
        try:
            self._thread.packing.exceptions = outer | {id(value)}
            kind, name, *parts = content
            trees = [self._tree_or_text(part, depth + 1, _LEVELS_OF_EXCEPTIONS) for part in parts]
        finally:
            self._thread.packing.exceptions = outer
        return ormsgpack.packb([kind, name, *trees], option=_PIECEWISE)

    def _tree_or_text(self, value: Any, depth: int, levels: int) -> Any:
        """Return the tree of a value, with texts in the place of what cannot be stored."""
        objects = self._thread.packing.objects
        try:
            return self._tree(value, "", depth)
        except (NotStorable, RecursionError):
            self._thread.packing.objects = objects
            if levels and type(value) is list:
                return [self._tree_or_text(each, depth, levels - 1) for each in value]
            if levels and type(value) is dict and all(type(key) is str for key in value):
                return {
                    key: self._tree_or_text(each, depth, levels - 1) for key, each in value.items()
                }
            return self._text_of(value)

    def _text_of(self, value: Any) -> Any:
        try:
            text = "".join(repr(value))
        except Exception as error:  # noqa: BLE001 - whatever its class does
            text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
        return self._tree(text, "", 0)


class _Placed(list[tuple[str, Any]]):
    """Parts, and before each where it is in what they are parts of."""


class _Fields(dict[str, Any]):
    """The attributes of an object."""


def _placed(code: int, content: Any) -> Any:
    """Return the content of an extension, such that each part says where it is."""
    if type(content) is not list:
        return content
    if code == builtin_values.TUPLE:
        return _Placed([(f"[{at}]", part) for at, part in enumerate(content)])
    if code == builtin_values.ITEMS:
        return _placed_pairs(content)
    parts = content
    if code == builtin_values.VALUE:
        name, inner = content
        parts = [name, _placed_value(name, inner)]
    elif code == object_values.OBJECT:
        parts = [_fields(part) if type(part) is dict else part for part in content]
        if parts[0] == "subclass" and parts[2] in _OF_PAIRS:
            parts[3] = _placed_pairs(parts[3])
    elif code == array_values.ARRAY and content[0] in _PLACES:
        return _Placed(zip(_PLACES[content[0]], map(_unplaced, content), strict=True))
    return _Placed([("", part) for part in parts])


def _placed_value(name: str, content: Any) -> Any:
    """Return the same of a value of one of Python's own types."""
    if type(content) is not list or _is_plain(content):
        return _fields(content) if name == "namespace" else content
    if name in _OF_PAIRS:
        return _placed_pairs(content)
    if name == "defaultdict":
        factory, pairs = content
        return _Placed([("", factory), ("", pairs if _is_plain(pairs) else _placed_pairs(pairs))])
    if name in _PLACES:
        return _Placed(zip(_PLACES[name], content, strict=True))
    if name == "chainmap":
        return _Placed((f".maps[{at}]", part) for at, part in enumerate(content))
    return content


def _placed_pairs(pairs: list[Any]) -> _Placed:
    places = [place for key in pairs[::2] for place in (".keys()", f"[{shown(key)}]")]
    return _Placed(zip(places, pairs, strict=True))


def _fields(attributes: dict[Any, Any]) -> dict[Any, Any]:
    fields = _Fields(attributes)
    if not all(type(name) is str for name in fields) or _is_odd(fields):
        return attributes
    return fields


def _unplaced(part: Any) -> Any:
    return _Placed(("", each) for each in part) if type(part) is list else part


_OF_PAIRS = frozenset({"counter", "dict", "ordereddict"})
"""What is stored as keys and values by turns."""
_PLACES = {
    "deque": ("", ""),
    **dict.fromkeys(("range", "slice"), (".start", ".stop", ".step")),
    **dict.fromkeys(("datetime", "time"), ("", ".fold", ".tzinfo")),
    "timestamp": ("", "", "", ".tz", ""),
    "masked": ("", "", ".mask", ".fill_value", ""),
}
"""Where the parts are of what some values have."""
_SETS = frozenset({builtin_values.SET, builtin_values.FROZENSET})


def _with_attributes(kind: type) -> Callable[[Any], Described]:
    """Return how values are stored that may have attributes beside what is in them."""
    as_value = builtin_values.DESCRIBERS[kind]
    as_object = object_values.describer_of("subclass", kind)
    return lambda value: as_object(value) if attributes_of(value) else as_value(value)


def _custom(codec: TypeCodec) -> Callable[[Any], Described]:
    name = characters(codec.name)
    return lambda value: (CUSTOM, [name, codec.encode(value)])


def _packed(code: int, content: Any, pack: Callable[[Any], bytes]) -> bytes:
    if _is_whole(code, content):
        packed: bytes = content
        return packed
    return _set_of(list(map(pack, content))) if code in _SETS else pack(content)


def _is_whole(code: int, content: Any) -> bool:
    """Return whether a content is packed already."""
    return code in builtin_values.RAW or (type(content) is bytes and code != DELTA_SNAPSHOT)


def _set_of(elements: list[bytes]) -> bytes:
    return chunking.array_header(len(elements)) + b"".join(sorted(elements))


def _is_plain(value: Any) -> bool:
    """Return whether MessagePack has this as it is."""
    try:
        if type(value) is list:
            parts: set[type] = set(map(type, value))
        elif type(value) is dict:
            parts = {*map(type, value), *map(type, value.values())}
        else:
            parts = {type(value)}
        if not parts <= _KEYS:
            return False
    except Exception:  # noqa: BLE001 - of a metaclass, which may raise anything
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


def _refused(path: str, value: Any, reason: str) -> NotStorable:
    kind = type(value)
    return NotStorable(path, f"a {kind.__module__}.{kind.__qualname__} {reason}")
