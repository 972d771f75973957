"""Reading what the default serializer has stored, where a saver is given LangGraph's own now.

Both write MessagePack, under one name. LangGraph's reads what it does not know of it as None.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from forkpoint.encoding import array_values, builtin_values, object_values
from forkpoint.encoding.encryption import is_unchanged
from forkpoint.encoding.serializer import SafeSerializer
from forkpoint.encoding.type_codecs import CUSTOM

_OWN_CODES = frozenset(
    {*builtin_values.RESTORERS, object_values.OBJECT, array_values.ARRAY, CUSTOM}
)
_OWN_EXTENSION = re.compile(
    rb"(?:[\xd4-\xd8]|\xc7.|\xc8..|\xc9....)[%s]" % re.escape(bytes(sorted(_OWN_CODES))), re.DOTALL
)


def reader_beside(serde: SerializerProtocol) -> SafeSerializer | None:
    """Return what reads what a `SafeSerializer` wrote, if a serializer is LangGraph's own.

    Of any other one nobody can tell what it reads. It would store a `StoredObject` as a dict, so
    what this process does not know is an error.
    """
    is_own = isinstance(serde, SafeSerializer) or not is_unchanged(serde, JsonPlusSerializer)
    if is_own or getattr(serde, "_custom_unpack_ext_hook", False):
        return None
    allowed: Any = getattr(serde, "_allowed_msgpack_modules", True)
    if allowed is True:
        return SafeSerializer(unknown="raise")
    return SafeSerializer(allowed or (), strict=True, unknown="raise")


def is_of_default_serializer(content: bytes) -> bool:
    """Return whether MessagePack has one of the extensions that only a `SafeSerializer` writes."""
    if _OWN_EXTENSION.search(content) is None:  # it may stand in a text, too
        return False
    has_own = False

    def look(code: int, inner: bytes) -> None:
        nonlocal has_own
        has_own = has_own or code in _OWN_CODES
        if not has_own:
            has_own = is_of_default_serializer(inner)

    with suppress(ValueError):  # what is in an extension of NumPy's is none
        ormsgpack.unpackb(content, ext_hook=look, option=ormsgpack.OPT_NON_STR_KEYS)
    return has_own
