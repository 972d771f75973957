"""Serializing and restoring chat messages faster the second time.

Chat history is what most threads consist of, and each turn serializes and restores all of it
again. For a message of LangChain's own classes both are functions of its fields alone. So its
serialized form is remembered by a fingerprint of the fields, which costs a fraction to take, and
what a run of messages was restored to is remembered by the run's digest.

Nothing is shared: a remembered form is bytes, and each restored message is a new object, equal to
the one that the serializer would have made. A message that was changed in place has another
fingerprint. One with fields that are not plain values is not remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import ormsgpack
from langchain_core.messages import BaseMessage

from forkpoint.caches import ENTRY_BYTES, Cache, CacheBudget
from forkpoint.encoding.builtin_values import PLAIN_ONLY, holds_buffer, holds_bytes, may_hold_bytes
from forkpoint.encoding.contents import TYPES_MAX
from forkpoint.encoding.pydantic_values import set_extra, set_fields, set_given_names, set_private

_MESSAGE_BYTES = 150  # what a message of a run takes beside its fields


class _Classes(dict[type, bool]):
    def __missing__(self, kind: type) -> bool:
        known = issubclass(kind, BaseMessage) and str(kind.__module__).startswith(
            "langchain_core.messages."
        )
        if len(self) >= TYPES_MAX:
            self.clear()
        self[kind] = known
        return known


class _Run(NamedTuple):
    """Messages: their classes, which of their fields were given, and packed the fields."""

    classes: list[type[BaseMessage]]
    given_names: list[frozenset[str]]
    fields: bytes


class MessageMemo:
    """Remembers serialized messages by their fields, and restored ones by their run's digest.

    Args:
        budget: What it may take, together with others.
    """

    def __init__(self, budget: CacheBudget) -> None:
        self._packed: Cache[tuple[type, bytes], bytes] = Cache(
            budget, lambda key, content: ENTRY_BYTES + len(key[1]) + len(content)
        )
        self._runs: Cache[bytes, _Run] = Cache(
            budget,
            lambda _, run: ENTRY_BYTES + _MESSAGE_BYTES * len(run.classes) + len(run.fields),
        )
        self.knows = _Classes()
        """Whether values of a class are remembered: of LangChain's own messages they are."""

    def pack(self, message: BaseMessage, pack_anew: Callable[[Any], bytes | None]) -> bytes | None:
        """Return a message as MessagePack, by `pack_anew` if it is not remembered."""
        fields = _fingerprint(message)
        if fields is None:
            return pack_anew(message)
        key = (type(message), fields)
        content = self._packed.get(key)
        if content is not None:
            return content
        if may_hold_bytes(fields) and holds_bytes([message.__dict__, message.__pydantic_extra__]):
            return pack_anew(message)  # a `bytearray` has the same fingerprint as `bytes`
        content = pack_anew(message)
        # Unless another thread has changed the message meanwhile: it is not what had these fields.
        if content is not None and _fingerprint(message) == fields:
            self._packed.put(key, content)
        return content

    def restore(self, digest: bytes) -> list[BaseMessage] | None:
        """Return the messages of a run as new objects, if they are remembered."""
        run = self._runs.get(digest)
        if run is None:
            return None
        messages = []
        for kind, given_names, fields in zip(
            run.classes, run.given_names, ormsgpack.unpackb(run.fields), strict=True
        ):
            message = kind.__new__(kind)
            set_fields(message, fields)
            set_given_names(message, set(given_names))
            set_extra(message, {})
            set_private(message, None)
            messages.append(message)
        return messages

    def remember_run(self, digest: bytes, messages: Sequence[Any]) -> None:
        """Remember the messages of a run, if they are all plain."""
        if not all(
            self.knows[type(message)]
            and message.__pydantic_private__ is None
            and message.__pydantic_extra__ == {}
            for message in messages
        ):
            return
        fields = [message.__dict__ for message in messages]
        try:
            packed = ormsgpack.packb(fields, option=PLAIN_ONLY)
        except ormsgpack.MsgpackEncodeError:
            return
        if ormsgpack.unpackb(packed) == fields and not holds_buffer(fields):
            classes = [type(message) for message in messages]
            given_names = [
                _shared(frozenset(message.__pydantic_fields_set__)) for message in messages
            ]
            self._runs.put(digest, _Run(classes, given_names, packed))


def _fingerprint(message: BaseMessage) -> bytes | None:
    """Return the fields of a message, packed at once; None if some field is no plain value."""
    given_names = message.__pydantic_fields_set__  # in another order, another fingerprint
    try:
        return ormsgpack.packb(
            [message.__dict__, message.__pydantic_extra__, *given_names], option=PLAIN_ONLY
        )
    except ormsgpack.MsgpackEncodeError:
        return None


@cache
def _shared(names: frozenset[str]) -> frozenset[str]:
    """Return the same object for equal sets of field names, of which there are few."""
    return names
