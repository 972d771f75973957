"""What users say of types: how to store one, and what a stored name means now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from forkpoint import untrusted
from forkpoint.errors import InvalidInput

CUSTOM = 41
"""The extension code of a type of `types=`: an array of its name, and what was made of a value."""


@dataclass(frozen=True)
class TypeCodec:
    """How values of a type are stored that forkpoint does not know.

    Args:
        type: The type; values of exactly this type are stored so.
        name: What it is called in the store, for good: it may move and be renamed.
        encode: Takes a value, and returns one that can be stored.
        decode: Takes what `encode` returned, and returns the value.
    """

    type: type
    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


Alias = Mapping[tuple[str, str], Any]
"""The types that stored names mean now: `{("old.module", "Old"): New}`, or `(New, function)` with a
function from the stored fields to the new ones."""


def entries_of(types: object) -> tuple[TypeCodec | Alias, ...]:
    """Return what `types=` says.

    Raises:
        InvalidInput: It is none of what it may be.
    """
    if isinstance(types, (str, Mapping, TypeCodec)) or not isinstance(types, Iterable):
        raise InvalidInput(f"types must be a list, not {type(types).__name__}")
    entries = untrusted.reading("types", tuple, types)
    for entry in entries:
        if isinstance(entry, TypeCodec):
            is_known = isinstance(entry.type, type) and isinstance(entry.name, str)
            if not (is_known and callable(entry.encode) and callable(entry.decode)):
                raise InvalidInput("a TypeCodec needs a type, a name and two functions")
            if entry.type in _PLAIN:
                raise InvalidInput(
                    f"values of {entry.type.__name__} are stored as they are, and need no TypeCodec"
                )
        elif not (type(entry) is dict and all(map(_is_alias, entry.items()))):
            raise InvalidInput(
                "types must have TypeCodecs, and dicts of the form {(module, name): type}, or "
                f"{{(module, name): (type, function)}}; not {untrusted.shown(entry)}"
            )
    names = Counter(entry.name for entry in entries if isinstance(entry, TypeCodec))
    for name, count in names.items():
        if count > 1:
            raise InvalidInput(f"{count} TypeCodecs have the name {untrusted.shown(name)}")
    return entries


# MessagePack has these, or their elements are looked at first.
_PLAIN = (type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict)


def _is_alias(item: tuple[Any, Any]) -> bool:
    name, target = item
    if type(target) is tuple and len(target) == 2 and callable(target[1]):
        target = target[0]
    is_name = type(name) is tuple and len(name) == 2 and all(isinstance(part, str) for part in name)
    return is_name and isinstance(target, type)
