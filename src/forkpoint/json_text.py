"""JSON as metadata and filters have it: bounded in its length and its depth. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from forkpoint.errors import InvalidInput
from forkpoint.untrusted import shown

METADATA_BYTES = 4 * 1024 * 1024
"""How long metadata may be as JSON: a quarter of what fits into a document of MongoDB."""
DEPTH = 100
"""How many levels deep metadata, and filters on them, may be nested."""

_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def as_json(value: Mapping[str, Any], what: str) -> str:
    """Return a mapping as JSON. ASCII, so that lone surrogates come back as they were."""
    try:
        encoded = _ENCODER.encode(dict(value))
    except Exception as error:
        raise InvalidInput(f"{what} cannot be written as JSON: {shown(error)}") from error
    if encoded.count("{") + encoded.count("[") >= DEPTH:
        shallow(decoded(encoded, what), what)
    if len(encoded) > METADATA_BYTES:
        raise InvalidInput(
            f"{what} takes {len(encoded)} bytes as JSON, and {METADATA_BYTES} at most are stored; "
            "keep what is large in the state"
        )
    return encoded


def decoded(encoded: str, what: str) -> Any:
    try:
        return json.loads(encoded)
    except RecursionError:
        raise InvalidInput(f"{what} is nested more than {DEPTH} levels deep") from None


def shallow(value: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a JSON value that is not nested deeper than a comparison can follow."""
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise InvalidInput(f"{what} is nested more than {DEPTH} levels deep")
    return value
