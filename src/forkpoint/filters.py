"""Filters on metadata, and the terms by which an index finds what may match. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any
from unicodedata import normalize
from zlib import crc32


def contains(stored: Any, part: Any) -> bool:
    """Return whether a JSON value contains another.

    A mapping contains a part if it has each key of the part, and its value there contains that of
    the part. A list contains a part if each item of the part is contained in one of its own. Any
    other value contains what equals it: `1` and `1.0` are equal numbers, while `1`, `True` and
    `"1"` are three values.
    """
    if isinstance(part, dict):
        return isinstance(stored, dict) and all(
            key in stored and contains(stored[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(stored, list) and all(
            any(contains(candidate, value) for candidate in stored) for value in part
        )
    if isinstance(part, bool) or isinstance(stored, bool):
        return part is stored
    return bool(stored == part)


def contains_json(stored: str, part: Any) -> bool:
    """Return whether a JSON text contains a value; see `contains`."""
    return contains(json.loads(stored), part)


def may_contain_json(stored: Any, part: Any) -> bool:
    """Return whether a JSON text contains a value, or is damaged, which a later read reports."""
    try:
        return contains_json(stored, part)
    except (TypeError, ValueError, RecursionError):
        return True


def terms(value: Any) -> set[int]:
    """Return the terms of a JSON value: a hash of 32 bits for each scalar with its path.

    A value that contains another has all of its terms; the reverse need not hold. So an index on
    terms finds candidates, whatever keys there are, and never takes a value for an operator.

    Args:
        value: A JSON value, or a JSON text.
    """
    if isinstance(value, str):
        value = json.loads(value)
    return {_hash(repr(leaf)) for leaf in leaves(value, ())}


def _hash(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass")) - 2**31  # signed


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield each scalar of a JSON value, as a tuple that begins with its path."""
    waiting = [(value, path)]
    while waiting:
        outer, place = waiting.pop()
        if isinstance(outer, dict):
            waiting += ((inner, (*place, "." + key)) for key, inner in outer.items())
        elif isinstance(outer, list):
            waiting += ((inner, (*place, "[]")) for inner in outer)
        elif isinstance(outer, float) and outer.is_integer():
            yield *place, int(outer)  # 1.0 equals 1
        else:
            yield *place, outer


# The terms of threads: 64 bits for each property that a search can ask for, once for searches of
# all threads, and once for searches of the threads of their owner.

_TERM_BYTES = 8


def thread_terms(
    owner: str | None,
    label: str | None,
    tags: Iterable[str],
    metadata: str,
    source: str | None,
) -> list[int]:
    """Return the terms of a thread, sorted.

    A term is the 8-byte BLAKE2b hash, as a signed big-endian integer, of the Python representation
    of a tuple: whose threads are searched (an owner, or None for all), the kind of property, and
    its value. A search looks for those of `search_terms`.
    """
    properties: list[tuple[Any, ...]] = [("all",)]
    properties += [("label", label)] if label is not None else []
    properties += [("tag", tag) for tag in tags]
    properties += [("metadata", *leaf) for leaf in leaves(_loaded(metadata), ())]
    properties += [("source", source)] if source is not None else []
    viewers = (None,) if owner is None else (None, owner)
    return sorted({_term(viewer, *property) for viewer in viewers for property in properties})


def _loaded(metadata: Any) -> Any:
    """Return metadata, or none if they are damaged: which a later read reports."""
    try:
        return json.loads(metadata)
    except (TypeError, ValueError, RecursionError):
        return {}


def folded(text: str) -> str:
    """Return a text for a comparison that ignores case (Unicode, section 3.13, D145)."""
    return normalize("NFC", normalize("NFD", text).casefold())


def value_terms(owner: str | None, values: str) -> list[int]:
    """Return the terms of a preview, which is the JSON of a mapping from channel to value."""
    viewers = (None,) if owner is None else (None, owner)
    properties = [("value", *leaf) for leaf in leaves(json.loads(values), ())]
    return sorted({_term(viewer, *property) for viewer in viewers for property in properties})


def stored_value_terms(owner: str | None, preview: bytes) -> list[int] | None:
    """Return the terms of a preview as it is stored.

    Returns:
        None if there is no preview; no terms if it is encrypted, or damaged.
    """
    if type(preview) is not bytes:
        return []
    if not preview:
        return None
    if preview[0]:
        return []
    try:
        return value_terms(owner, preview[1:].decode())
    except (ValueError, RecursionError):
        return []


def search_terms(owner: str | None, parts: Iterable[tuple[Any, ...]] = ()) -> list[int]:
    """Return the terms that a thread must have to match; at least that of all threads.

    Args:
        owner: Whose threads are searched; None for those of all owners.
        parts: Pairs such as `("label", "mine")`, as `thread_terms` hashes them.
    """
    return list(dict.fromkeys(_term(owner, *part) for part in parts or [("all",)]))


def _term(viewer: str | None, *property: Any) -> int:
    text = repr((viewer, *property)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=_TERM_BYTES).digest(), "big", signed=True)


ALL_TERM = _term(None, "all")
"""The term of all threads, whoever owns them."""


def packed(terms: Sequence[int]) -> bytes:
    """Return terms as bytes, 8 for each."""
    return b"".join(term.to_bytes(_TERM_BYTES, "big", signed=True) for term in terms)


def unpacked(terms: bytes) -> list[int]:
    """Return the terms of packed bytes; none if these are damaged."""
    if type(terms) is not bytes:
        return []
    return [
        int.from_bytes(terms[at : at + _TERM_BYTES], "big", signed=True)
        for at in range(0, len(terms), _TERM_BYTES)
    ]


def is_told_by_terms(part: Any) -> bool:
    """Return whether each value that has the terms of a part contains the part.

    It is False for a list, as terms do not tell which of its items they come from; for an empty
    mapping, which has no terms; and for a scalar that does not equal itself.
    """
    if isinstance(part, dict):
        return bool(part) and all(is_told_by_terms(inner) for inner in part.values())
    return not isinstance(part, list) and bool(part == part)
