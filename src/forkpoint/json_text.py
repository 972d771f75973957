"""JSON of metadata and filters, of bounded length and depth. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from forkpoint.errors import InvalidInput
from forkpoint.untrusted import shown

METADATA_BYTES = 4 * 1024 * 1024
"""How many bytes metadata may take as JSON: a quarter of what fits into a MongoDB document."""
DEPTH = 100
"""How many levels deep metadata, and filters on them, may be nested."""

_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def as_json(value: Mapping[str, Any], what: str) -> str:
    """Return a mapping as JSON, in ASCII, so that lone surrogates come back as they were.

    Args:
        value: The mapping.
        what: What errors call it.

    Raises:
        InvalidInput: It is no JSON, or is too long or nested too deep.
    """
    try:
        encoded = _ENCODER.encode(dict(value))
    except Exception as error:
        raise InvalidInput(f"{what} cannot be written as JSON: {shown(error)}") from error
    if encoded.count("{") + encoded.count("[") >= DEPTH:
        shallow(from_json(encoded, what), what)
    if len(encoded) > METADATA_BYTES:
        raise InvalidInput(
            f"{what} takes {len(encoded)} bytes as JSON, and {METADATA_BYTES} at most are stored; "
            "keep what is large in the state"
        )
    return encoded


def from_json(encoded: str, what: str) -> Any:
    """Return the value of a JSON text; see `as_json`."""
    try:
        return json.loads(encoded)
    except RecursionError:
        raise InvalidInput(f"{what} is nested more than {DEPTH} levels deep") from None


def shallow(value: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a JSON value, unless it is nested more than `DEPTH` levels deep."""
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise InvalidInput(f"{what} is nested more than {DEPTH} levels deep")
    return value
