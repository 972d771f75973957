"""MongoDB: the statements of a bulk, for the driver's or a plain command, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from pymongo import ReplaceOne, UpdateMany, UpdateOne

_Change = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Statement(NamedTuple):
    """A change of the documents that a filter finds."""

    match: Mapping[str, Any]
    change: Any
    upsert: bool = False
    is_of_many: bool = False
    is_replacement: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """The statement as a part of the command `update`."""
        document: dict[str, Any] = {"q": self.match, "u": self.change}
        if self.upsert:
            document["upsert"] = True
        if self.is_of_many:
            document["multi"] = True
        return document

    @property
    def operation(self) -> ReplaceOne[Any] | UpdateOne | UpdateMany:
        """The statement as a part of the driver's bulks."""
        if self.is_replacement:
            return ReplaceOne(self.match, self.change, upsert=self.upsert)
        kind = UpdateMany if self.is_of_many else UpdateOne
        return kind(self.match, self.change, upsert=self.upsert)


class Outcome(NamedTuple):
    """The result of a bulk: how many statements matched a document, and which one failed."""

    hits: int
    made: Set[int]
    """Which statements made a document, where there was none."""
    failed: int | None = None
    error: Exception | None = None
    """None where the failed one collided with a document that exists."""
    is_repeated: bool = False
    """Whether an attempt before may have had an effect."""
    is_lost: bool = False
    """Whether it is unknown what became of any of them."""
    is_taken: bool = False
    """Whether it was a slot of a log that the failed one collided over."""


def update_one(match: Mapping[str, Any], change: _Change, upsert: bool = False) -> Statement:
    return Statement(match, change, upsert)


def update_many(match: Mapping[str, Any], change: _Change) -> Statement:
    return Statement(match, change, is_of_many=True)


def replace_one(match: Mapping[str, Any], document: Mapping[str, Any], upsert: bool) -> Statement:
    return Statement(match, document, upsert, is_replacement=True)


def insert_entry(entry: Mapping[str, Any]) -> Statement:
    """Return the insertion of a document of a log, which collides with any other of its `_id`."""
    place = {name: entry[name] for name in ("_id", "family", "log", "slot")}
    return Statement(place, {"$setOnInsert": entry}, upsert=True)


IF_THERE: Mapping[str, Any] = {
    "_id": {"$cond": [{"$eq": [{"$type": "$kind"}, "missing"]}, 0, "$_id"]}
}
"""Has a change by a pipeline, which would make a document if none matches, fail as `expect`."""


def expect(match: Mapping[str, Any], change: Mapping[str, Any]) -> Statement:
    """Return the change of a document that must match the filter; else the bulk ends.

    A server does not insert a document under another `_id` than that of the filter: so it fails
    where there is none, and where there is one that is different. Only of many documents, of which
    there is one, the driver does not ask the server to be able to repeat the statement.
    """
    return Statement(match, {**change, "$setOnInsert": {"_id": 0}}, True, is_of_many=True)
