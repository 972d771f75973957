"""What stands in for an object whose type this process does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from forkpoint.encoding import (
    array_values,
    builtin_values,
    langgraph_values,
    object_values,
    type_names,
)
from forkpoint.encoding.type_codecs import CUSTOM
from forkpoint.errors import UnreadableValue


class StoredObject(dict[str, Any]):
    """An object as it was stored: its fields, and the name of its type. It cannot be changed.

    It is equal to another of the same content, and is stored again byte for byte as it was.

    Attributes:
        type_name: The name of its type, such as `"shop.models.Order"`.
        value: Its value, if it is no object with fields: the name of an enum's member, say.
    """

    __slots__ = ("_code", "_content", "type_name", "value")

    def __init__(
        self, type_name: str, fields: Mapping[str, Any], value: Any, code: int, content: bytes
    ) -> None:
        super().__init__(fields)
        self.type_name = type_name
        self.value = value
        self._code = code
        self._content = content

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredObject):
            return NotImplemented
        return self._key() == other._key()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self._key())

    def __repr__(self) -> str:
        content = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"<stored {self.type_name}: {content or repr(self.value)}>"

    def __copy__(self) -> StoredObject:
        return self

    def __deepcopy__(self, memo: Any) -> StoredObject:
        return self

    def __reduce__(self) -> Any:
        return StoredObject, (self.type_name, dict(self), self.value, *self._key())

    def _key(self) -> tuple[int, bytes]:
        return self._code, self._content

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            f"a stored {self.type_name} cannot be changed where its type is not known; take "
            "dict(value)"
        )

    __setitem__ = __delitem__ = _refuse
    clear = pop = popitem = setdefault = update = __ior__ = _refuse


def stored_as(value: StoredObject) -> tuple[int, bytes]:
    """Return the extension code of a stored object, and its content."""
    return value._key()


def outline_of(code: int, fields: Any) -> tuple[str, Mapping[str, Any], Any] | None:
    """Return the name of a stored object's type, its fields, and its value; None if it is none."""
    try:
        if code == object_values.OBJECT:
            kind, name, *content = fields
            attributes, value = object_values.KINDS[kind].show(content)
            return type_names.text(type_names.from_stored(name)), dict(attributes), value
        if code == CUSTOM:
            name, value = fields
            return str(name), {}, value
        if code == array_values.ARRAY:
            return str(fields[0]), {}, fields[1:]
        if code == builtin_values.VALUE:
            return str(fields[0]), {}, fields[1]
        if code in _COLLECTIONS and type(fields) is list:
            return _COLLECTIONS[code], {}, fields
        if langgraph_values.names_a_type(code, fields):
            attributes = fields[2] if isinstance(fields[2], dict) else {}
            if all(isinstance(key, str) for key in attributes):
                return f"{fields[0]}.{fields[1]}", attributes, fields[2]
    except (ValueError, TypeError, KeyError, IndexError, UnreadableValue):
        return None
    return None


_COLLECTIONS = {
    builtin_values.SET: "builtins.set",
    builtin_values.FROZENSET: "builtins.frozenset",
    builtin_values.ITEMS: "builtins.dict",
}
"""Of elements that may be equal to others in one process only."""
