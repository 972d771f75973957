"""MongoDB: all that is encrypted in a store, in the order of `_id`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document
from forkpoint.mongodb.statements import update_one
from forkpoint.mongodb.turns import Turns
from forkpoint.storage import interface
from forkpoint.storage.queries import Batch
from forkpoint.storage.receipts import RECEIPT, is_encrypted
from forkpoint.storage.rows import StoredContent

_PARTS = ("next", "before")  # what a document has of another version of its row
_FIELDS = {"family": 1, "idx": 1, "content": 1, "next.content": 1, "before.content": 1}
_ROWS_AT_ONCE = 200


class MongoContents(interface.Contents):
    """The role `Contents`. A place is an `_id`, a family, and the name of the field.

    Args:
        commands: Those of the collection.
        turns: What a turn has read and changed.
    """

    def __init__(self, commands: MongoCommands, turns: Turns) -> None:
        self._commands = commands
        self._turns = turns

    def batch(self, after: Any = None) -> Batch[StoredContent]:
        # Only rows and chunks have an `_id` of bytes, and a comparison is with its own type.
        documents = self._commands.latest(
            {"_id": {"$gt": after or b""}}, _FIELDS, sort=[("_id", 1)], limit=_ROWS_AT_ONCE
        )
        self._turns.count_read(len(documents))
        contents: list[StoredContent] = []
        for document in documents:
            for field, content in _contents_of(document):
                if is_encrypted(document.get("idx", RECEIPT), content):
                    place = document["_id"], document["family"], field
                    contents.append(StoredContent(place, content))
        is_last = len(documents) < _ROWS_AT_ONCE
        return Batch(contents, None if is_last else documents[-1]["_id"])

    def replace(self, changes: Sequence[tuple[StoredContent, bytes]]) -> None:
        statements = [
            update_one({"_id": id_, "family": family, field: content}, {"$set": {field: new}})
            for ((id_, family, field), content), new in changes
        ]
        if statements:
            self._commands.change(statements)
            self._turns.count_changed(len(statements))


def _contents_of(document: Document) -> list[tuple[str, Any]]:
    contents = [("content", document.get("content"))]
    for part in _PARTS:
        version = document.get(part)
        if isinstance(version, dict):
            contents.append((f"{part}.content", version.get("content")))
    return contents
