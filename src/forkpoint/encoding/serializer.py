"""The default serializer: what it stores comes back as it was, and nothing that is read is trusted.

Values are MessagePack. What MessagePack does not have is an extension of forkpoint's own (see
`builtin_values`, `object_values` and `array_values` beside this file and, for types of the user's,
`packing`). What LangGraph's own `JsonPlusSerializer` has written is read as well. `SafeSerializer`
restores only

- values of Python's own types, and arrays of NumPy,
- LangChain's and LangGraph's own messages, documents and commands,
- objects that hold data (dataclasses, Pydantic models, enums, named tuples, exceptions, ...) of
  types that this process has stored itself, or of modules that it has imported already, and
- types that the user allowed.

No code of a type runs on the way back, and nothing is imported because a row names it, but for what
the user allowed. Any other object comes back as a `StoredObject`.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import re
import threading
from collections.abc import Iterable
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from forkpoint import untrusted
from forkpoint.encoding import (
    array_values,
    builtin_values,
    langgraph_values,
    object_values,
    type_names,
)
from forkpoint.encoding.contents import LARGE, takes_too_much
from forkpoint.encoding.packing import Packer
from forkpoint.encoding.stored_object import StoredObject, outline_of
from forkpoint.encoding.type_codecs import CUSTOM, Alias, TypeCodec, entries_of
from forkpoint.encoding.type_names import TypeName
from forkpoint.errors import ForkpointError, InvalidInput, UnreadableValue
from forkpoint.options import choice

# Modules that may be imported because a row names them: they define data, and loading them does
# nothing else.
_IMPORTABLE = re.compile(
    r"langchain_core\.(messages|documents)\.\w+|langgraph\.types|langgraph\.store\.base"
    r"|pathlib\._local"
)

_TYPES_MAX = 1000  # generics made by rows: of those that are forged, each could name another
_REMEMBERED_MAX = 4096  # names: some programs make types by the request

_DEEPEST = 400  # more than is written

_log = logging.getLogger("forkpoint")

AllowedType = tuple[str, ...] | type


# What an EncryptedSerializer has inside where nobody said what.
_LANGGRAPH_DEFAULTS = [
    default
    for function in (EncryptedSerializer.__init__, EncryptedSerializer.from_pycryptodome_aes)
    for default in function.__defaults__ or ()
]


def serializer_of(
    serde: SerializerProtocol | None, types: Iterable[TypeCodec | Alias]
) -> SerializerProtocol:
    """Return the serializer of a saver that was given these.

    An `EncryptedSerializer` that was given no other serializer encrypts what the default one
    writes, for LangGraph's own would lose types.

    Raises:
        InvalidInput: It was given a serializer of its own, and types.
    """
    if serde is None:
        return SafeSerializer(types=types)
    if type(serde) is EncryptedSerializer and any(
        serde.serde is default for default in _LANGGRAPH_DEFAULTS
    ):
        return EncryptedSerializer(serde.cipher, SafeSerializer(types=types))
    if types:
        raise InvalidInput(
            "types= belongs to the default serializer; pass serde=SafeSerializer(types=...), or "
            "an EncryptedSerializer around it"
        )
    return serde


def strict_mode() -> bool:
    """Return whether LangGraph's strict mode is set in the environment."""
    return os.getenv("LANGGRAPH_STRICT_MSGPACK", "false").lower() in ("1", "true", "yes")


class _Thread(threading.local):
    """What each thread that restores keeps.

    Attributes:
        depth: In how many extensions it is.
        outer_bytes: How many bytes those have that are large.
        outermost_bytes: How many the first of these has.
        error: What was raised within ormsgpack, which replaces it.
    """

    depth = 0
    outer_bytes = outermost_bytes = 0
    error: BaseException | None = None


class SafeSerializer(JsonPlusSerializer):
    """Store values such that they come back equal and of the same type, and trust no row.

    Args:
        allowed: Further types that may be restored, as types or as `(module, name)`. Their
            modules are imported when a row names them.
        strict: Restore no objects but LangChain's, LangGraph's and those of `allowed` types. By
            default, what the environment variable `LANGGRAPH_STRICT_MSGPACK` says.
        types: How types are stored that forkpoint does not know (`TypeCodec`), and which types
            stored names mean now (`Alias`).
        unknown: What an object comes back as whose type is not known or not allowed: `"stored"`, a
            `StoredObject`; or `"raise"`, an `UnreadableValue`.
    """

    def __init__(
        self,
        allowed: Iterable[AllowedType] = (),
        *,
        strict: bool | None = None,
        types: Iterable[TypeCodec | Alias] = (),
        unknown: str = "stored",
    ) -> None:
        super().__init__(__unpack_ext_hook__=self._restore)
        self._strict = strict_mode() if strict is None else strict
        self._allowed = frozenset(map(_name, untrusted.reading("allowed", list, allowed)))
        self._types = entries_of(types)
        self._unknown = choice(unknown, "unknown", ("stored", "raise"))
        self._codecs: dict[str, TypeCodec] = {}
        self._aliases: dict[tuple[str, str], Any] = {}
        for entry in self._types:
            if isinstance(entry, TypeCodec):
                self._codecs[entry.name] = entry
            else:
                self._aliases.update(entry)
        self._packer = Packer(self._codecs.values(), self._allows)
        self._framework: dict[TypeName, type] = {}
        self._permitted: dict[TypeName, type] = {}
        self._generics: set[TypeName] = set()
        self._warned: set[str] = set()
        self._thread = _Thread()

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[AllowedType]) -> SafeSerializer:
        """Return a serializer that restores these types too."""
        extra: list[AllowedType] = untrusted.reading("extra_allowlist", list, extra_allowlist)
        allowed = self._allowed | set(map(_name, extra))
        if allowed == self._allowed:
            return self
        return self._with(allowed)

    def _with(self, allowed: Iterable[AllowedType]) -> SafeSerializer:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)  # a subclass may have attributes of its own
        SafeSerializer.__init__(
            other, allowed, strict=self._strict, types=self._types, unknown=self._unknown
        )
        return other

    def __copy__(self) -> SafeSerializer:
        return self._with(self._allowed)

    def __deepcopy__(self, memo: dict[int, Any]) -> SafeSerializer:
        return copy.copy(self)

    # Writing

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Serialize a value.

        Raises:
            NotStorable: Something in it cannot be stored; the message says where it is.
        """
        if obj is None:
            return "null", b""
        if type(obj) is bytes or type(obj) is bytearray:
            return type(obj).__name__, bytes(obj)
        return "msgpack", self._packer.pack(obj)

    # Reading

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Restore a value.

        Raises:
            UnreadableValue: It is not what any serializer writes; or, with `unknown="raise"`, it
                names a type that may not, or cannot, be restored.
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
            failure = self._thread.error or error
            self._thread.error = None
            if isinstance(failure, ForkpointError) or not isinstance(failure, Exception):
                raise failure from failure.__cause__
            if _is_interrupt(failure):
                raise KeyboardInterrupt from None
            raise UnreadableValue(f"a stored value is not MessagePack: {failure}") from failure

    def _restore(self, code: int, content: bytes) -> Any:
        thread = self._thread
        depth, outer_bytes = thread.depth, thread.outer_bytes
        try:  # all in one function: where a value was packed, it must not be too deep to be read
            thread.depth = depth + 1
            if code in builtin_values.RAW:
                return builtin_values.RESTORERS[code](content)
            if depth > _DEEPEST:
                raise UnreadableValue(f"a stored value is nested more than {_DEEPEST} levels deep")
            if len(content) > LARGE:
                self._count(len(content))
            option = ormsgpack.OPT_NON_STR_KEYS
            fields = ormsgpack.unpackb(content, ext_hook=self._restore, option=option)
            return self._build(code, fields, content)
        except BaseException as error:
            thread.error = thread.error or error
            raise
        finally:
            thread.depth, thread.outer_bytes = depth, outer_bytes

    def _count(self, size: int) -> None:
        """Count an object that is held in memory once more for each object that it stands in."""
        thread = self._thread
        if not thread.outer_bytes:
            thread.outermost_bytes = size
        thread.outer_bytes += size
        if takes_too_much(thread.outer_bytes, thread.outermost_bytes):
            raise UnreadableValue("a stored value is too large for how deep it is nested")

    def _build(self, code: int, fields: Any, content: bytes) -> Any:
        try:
            if code == object_values.OBJECT:
                return self._object(fields)
            if code == CUSTOM:
                return self._custom(fields)
            if code == array_values.ARRAY:
                return array_values.restore(fields)
            restore = builtin_values.RESTORERS.get(code)
            if restore is not None:
                return restore(fields)
            return langgraph_values.restore(code, fields, self._resolve)
        except UnreadableValue as error:
            reason: Exception = error
        except (RecursionError, MemoryError) as error:  # which may not be so the next time
            raise UnreadableValue(f"a stored value is too deep or too large: {error}") from error
        except Exception as error:  # noqa: BLE001 - what is stored may be anything
            reason = error
        return self._stand_in(code, fields, content, reason)

    def _object(self, fields: Any) -> Any:
        kind, name, *content = fields
        name = type_names.from_stored(name)
        target = self._framework.get(name)
        if target is None:
            target = self._class(name)
            alias = self._aliases.get(name[:2])
            if isinstance(alias, tuple):
                content = object_values.change_fields(kind, content, alias[1])
            if alias is not None:
                kind, content = object_values.converted(kind, content, target)
        if not (object_values.fits(kind, target) or self._allows(target)):
            raise UnreadableValue(f"{type_names.text(name)} is stored as a {kind}, and is none now")
        return object_values.KINDS[kind].load(target, content)

    def _allows(self, kind: type) -> bool:
        return self._allows_name(kind.__module__, kind.__qualname__)

    def _allows_name(self, module: str, qualified: str) -> bool:
        """Return whether a type is allowed, qualified or not, as LangGraph names it."""
        unqualified = qualified.rpartition(".")[2]
        return not self._allowed.isdisjoint([(module, qualified), (module, unqualified)])

    def _custom(self, fields: Any) -> Any:
        name, value = fields
        codec = self._codecs.get(name)
        if codec is None:
            raise UnreadableValue(f"a value of the type {name!r} is stored, which types= must name")
        return codec.decode(value)

    def _stand_in(self, code: int, fields: Any, content: bytes, reason: Exception) -> StoredObject:
        """Return what stands for an object that cannot be restored."""
        outline = outline_of(code, fields)
        if isinstance(reason, UnreadableValue) and (outline is None or self._unknown == "raise"):
            raise reason
        if outline is None:
            raise UnreadableValue(f"a stored value could not be restored: {reason}") from reason
        name, attributes, value = outline
        if self._unknown == "raise":
            raise UnreadableValue(
                f"{name} could not be restored from what was stored: "
                f"{type(reason).__name__}: {untrusted.message(reason)}"
            ) from reason
        if name not in self._warned:
            if len(self._warned) >= _REMEMBERED_MAX:
                self._warned = set()
            self._warned.add(name)
            said = untrusted.message(reason)
            _log.warning("%s is stored, and comes back as a StoredObject: %s", name, said)
        return StoredObject(name, attributes, value, code, content)

    def _resolve(self, module: str, name: str) -> type:
        target = self._framework.get((module, name))
        return self._class((module, name), is_last_part=True) if target is None else target

    def _class(self, name: TypeName, is_last_part: bool = False) -> type:
        """Return the type that a row names, if it may be restored.

        Args:
            name: The name.
            is_last_part: Whether it may be the last part of the name of a nested class.

        Raises:
            UnreadableValue: It may not, or it is not known here.
        """
        permitted = self._permitted.get(name)
        if permitted is None:
            return self._target(name, is_last_part)
        # A class may be made again under its name: a notebook's, say.
        is_current = name in self._aliases or type_names.is_current(name, permitted)
        return permitted if is_current else self._target(name, is_last_part)

    def _target(self, name: TypeName, is_last_part: bool) -> type:
        module, qualified = name[:2]
        is_allowed = self._allows_name(module, qualified)
        is_importable = _IMPORTABLE.fullmatch(module) is not None
        kind = self._find(name)
        if kind is None and is_last_part:
            kind = type_names.find_elsewhere(name, is_last_part)
        how = f"saver.with_allowlist([({module!r}, {qualified!r})])"
        if kind is None:
            raise UnreadableValue(
                f"{type_names.text(name)} is stored, and this process has neither stored one nor "
                f"imported a module {module} with it; import it first, or allow it with {how}"
            )
        is_allowed = is_allowed or name[:2] in self._aliases
        if not is_allowed and object_values.kind_of(kind) is None and not _is_value(kind):
            raise UnreadableValue(
                f"{type_names.text(name)} is stored, and is not known to hold nothing but data; "
                f"if it may be called, allow it with {how}"
            )
        is_own = is_importable or module.startswith("pydantic")
        if self._strict and not (is_own or is_allowed or _is_value(kind)):
            raise UnreadableValue(
                f"{type_names.text(name)} is stored, and strict mode (LANGGRAPH_STRICT_MSGPACK) "
                f"does not allow it; allow it with {how}"
            )
        is_ever = is_importable and name[:2] not in self._aliases
        if len(self._permitted) >= _REMEMBERED_MAX:
            self._permitted = {}
        (self._framework if is_ever else self._permitted)[name] = kind
        return kind

    def _find(self, name: TypeName) -> type | None:
        """Return the type that a name means here, aliases considered."""
        if len(name) == 2:
            return self._find_class(name)
        if name not in self._generics:
            if len(self._generics) >= _TYPES_MAX:  # Pydantic makes a class of each
                return None if self._aliases else type_names.seen(name)
            self._generics.add(name)
        return type_names.generic(name, self._find_class)

    def _find_class(self, name: TypeName) -> type | None:
        alias = self._aliases.get(name)
        if alias is not None:
            kind: type = alias[0] if isinstance(alias, tuple) else alias
            return kind
        module, qualified = name
        if self._allows_name(module, qualified) or _IMPORTABLE.fullmatch(module):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UnreadableValue(f"{module} cannot be imported: {error}") from error
        found = type_names.find(name)
        return type_names.find_elsewhere(name) if found is None else found


def packer_of(serde: SafeSerializer) -> Packer:
    """Return what packs the values that a serializer stores."""
    return serde._packer


def _is_value(kind: type) -> bool:
    return kind in builtin_values.DESCRIBERS


def _is_interrupt(failure: Exception) -> bool:
    """Return whether the hook raised something before it could note what.

    Only a signal handler does, as the hook is entered, and those run on the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and str(failure) == "ext_hook failed"


def _name(entry: AllowedType) -> tuple[str, str]:
    if isinstance(entry, type):
        type_names.name_of(entry)  # wherever it was made, it is known now
        return entry.__module__, entry.__qualname__
    if not isinstance(entry, tuple) or not entry or not all(type(part) is str for part in entry):
        raise InvalidInput(
            f"an allowed type must be a type or (module, name), not {untrusted.shown(entry)}"
        )
    return ".".join(entry[:-1]), entry[-1]
