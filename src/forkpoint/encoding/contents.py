"""What the modules of values share: what is refused, when it is written and when it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, TypeVar

Described = tuple[int, Any]
"""An extension code, and what is to be packed under it."""


class CannotStore(TypeError):
    """A value cannot be stored. The message says why, after the name of its type."""


_V = TypeVar("_V")


def only(content: Any, kind: type[_V]) -> _V:
    """Return what was read if it is of exactly this type.

    Whatever else it is may be what takes for ever to go through: an IP network, say.
    """
    if type(content) is not kind:
        raise ValueError(f"it is stored as a {type(content).__name__}, not a {kind.__name__}")
    return content


def only_int(content: Any) -> int:
    """Return what was read if it is an integer."""
    return only(content, int)


_SAME_HASHES = 64  # elements of a set, at most


def check_hashes(elements: Collection[Any]) -> None:
    """Refuse elements that were chosen to have the same hash: a set of n takes n * n steps."""
    if len(elements) > _SAME_HASHES:
        (_, most), *_ = Counter(map(hash, elements)).most_common(1)
        if most > _SAME_HASHES:
            raise ValueError("too many of its elements have the same hash")


def check_storable(elements: Collection[Any]) -> None:
    """Refuse elements that are not restored.

    Raises:
        CannotStore: Too many have the same hash.
    """
    if len(elements) > _SAME_HASHES:
        try:
            check_hashes(elements)
        except ValueError as error:
            raise CannotStore(f"cannot be read back: {error}") from None
