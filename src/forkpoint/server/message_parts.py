"""Messages as clients see them come: whole as far as they are, where a graph streams parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import BaseMessage, BaseMessageChunk, message_chunk_to_message

from forkpoint.server.as_json import as_json


class MessageParts:
    """Adds up the parts of the messages of a run."""

    def __init__(self) -> None:
        self._messages: dict[str, BaseMessage] = {}

    def shown(self, message: Any, metadata: Any) -> Iterator[tuple[str, Any]]:
        """Return the names and data of the events that show a message as far as it has come.

        The names are those of all subgraphs, as the Platform has it.
        """
        before = self._messages.get(message.id)
        if before is None:
            yield "messages/metadata", {message.id: {"metadata": as_json(metadata)}}
        elif isinstance(before, BaseMessageChunk) and isinstance(message, BaseMessageChunk):
            message = before + message
        self._messages[message.id] = message
        is_part = isinstance(message, BaseMessageChunk)
        whole = message_chunk_to_message(message) if is_part else message
        yield f"messages/{'partial' if is_part else 'complete'}", [as_json(whole)]

    def clear(self) -> None:
        """Forget the messages of a run that has ended."""
        self._messages.clear()
