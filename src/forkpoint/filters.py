"""Whether metadata matches a filter: exactly, and by type. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any
from unicodedata import normalize
from zlib import crc32


def contains(stored: Any, wanted: Any) -> bool:
    """Return whether a JSON value contains another.

    A mapping contains another that has some of its keys, with values that theirs contain. A list
    contains another each of whose items is contained in one of its own. Everything else contains
    what equals it: `1` and `1.0` are equal numbers, while `1`, `True` and `"1"` are three values.
    """
    if isinstance(wanted, dict):
        return isinstance(stored, dict) and all(
            key in stored and contains(stored[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(stored, list) and all(
            any(contains(candidate, value) for candidate in stored) for value in wanted
        )
    if isinstance(wanted, bool) or isinstance(stored, bool):
        return wanted is stored
    return bool(stored == wanted)


def contains_json(stored: str, wanted: Any) -> bool:
    """Return whether a JSON text contains a value; see `contains`."""
    return contains(json.loads(stored), wanted)


def may_contain_json(stored: Any, wanted: Any) -> bool:
    """Return whether a JSON text contains a value, or was damaged: who reads it is told."""
    try:
        return contains_json(stored, wanted)
    except (TypeError, ValueError, RecursionError):
        return True


def terms(value: Any) -> set[int]:
    """Return what a database can hold of a JSON value: 32 bits for each scalar and its path.

    If one value contains another, it has all terms of that; the reverse need not be so. A database
    can find candidates by them, whatever keys there are, and takes no value for an operator.

    Args:
        value: A JSON value, or a JSON text.
    """
    if isinstance(value, str):
        value = json.loads(value)
    return {_hash(repr(leaf)) for leaf in leaves(value, ())}


def _hash(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass")) - 2**31  # signed


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield each scalar of a JSON value, behind its path."""
    waiting = [(value, path)]
    while waiting:
        one, at = waiting.pop()
        if isinstance(one, dict):
            waiting += ((inner, (*at, "." + key)) for key, inner in one.items())
        elif isinstance(one, list):
            waiting += ((inner, (*at, "[]")) for inner in one)
        elif isinstance(one, float) and one.is_integer():
            yield *at, int(one)  # 1.0 equals 1
        else:
            yield *at, one


# What threads are found by: 64 bits for each thing that can be asked for, once for those who look
# at all threads and once for those who look at their owner's.

_TERM_BYTES = 8


def thread_terms(
    owner: str | None,
    label: str | None,
    tags: Iterable[str],
    metadata: str,
    source: str | None,
) -> list[int]:
    """Return the terms of a thread, in order.

    A term is the first 8 bytes, as a signed big-endian integer, of the BLAKE2b hash of the
    representation, in Python, of a tuple of whose threads are looked at (an owner, or None for
    all), what of a thread, and its value; see `search_terms`.
    """
    found: list[tuple[Any, ...]] = [("all",)]
    found += [("label", label)] if label is not None else []
    found += [("tag", tag) for tag in tags]
    found += [("metadata", *leaf) for leaf in leaves(_loaded(metadata), ())]
    found += [("source", source)] if source is not None else []
    whose = (None,) if owner is None else (None, owner)
    return sorted({_term(one, *what) for one in whose for what in found})


def _loaded(metadata: Any) -> Any:
    """Return metadata, or none if they were damaged: who reads the record is told."""
    try:
        return json.loads(metadata)
    except (TypeError, ValueError, RecursionError):
        return {}


def folded(text: str) -> str:
    """Return a text as it is compared where case does not count (Unicode, section 3.13, D145)."""
    return normalize("NFC", normalize("NFD", text).casefold())


def value_terms(owner: str | None, values: str) -> list[int]:
    """Return the terms of what a thread's record shows of its state, the JSON of a mapping."""
    whose = (None,) if owner is None else (None, owner)
    found = [("value", *leaf) for leaf in leaves(json.loads(values), ())]
    return sorted({_term(one, *what) for one in whose for what in found})


def stored_value_terms(owner: str | None, preview: bytes) -> list[int] | None:
    """Return the same of a preview as it is stored: none if it is encrypted, None if it is empty.

    What was changed since it was stored has no terms either.
    """
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


def _term(owner: str | None, *what: Any) -> int:
    text = repr((owner, *what)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=_TERM_BYTES).digest(), "big", signed=True)


ALL_TERM = _term(None, "all")
"""The term of all threads, whoever owns them."""


def packed(terms: Sequence[int]) -> bytes:
    """Return terms as bytes, 8 for each."""
    return b"".join(term.to_bytes(_TERM_BYTES, "big", signed=True) for term in terms)


def unpacked(terms: bytes) -> list[int]:
    """Return the terms that were packed; none if that was damaged."""
    if type(terms) is not bytes:
        return []
    return [
        int.from_bytes(terms[at : at + _TERM_BYTES], "big", signed=True)
        for at in range(0, len(terms), _TERM_BYTES)
    ]


def is_told_by_terms(wanted: Any) -> bool:
    """Return whether a value has these terms only if it contains what is wanted.

    Not where a list is wanted, for the terms do not tell which of its items they are of, nor where
    something empty is, which has none, nor where something is that does not equal itself.
    """
    if isinstance(wanted, dict):
        return bool(wanted) and all(is_told_by_terms(inner) for inner in wanted.values())
    return not isinstance(wanted, list) and bool(wanted == wanted)
