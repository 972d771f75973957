"""MongoDB: the indexes of the collection, and what a server must be able to do.

Servers that speak MongoDB's protocol without being MongoDB lack some of it. It is better to be told
so at the set-up, by name, than by the first put.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pymongo import IndexModel
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from forkpoint.errors import MissingFeature
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document
from forkpoint.mongodb.log import LOG_INDEX

IN_NO_LOG = {"log": "none", "slot": {"$gt": 0}, "family": "settings"}
"""A filter for no document, for which the index of logs can be used."""


def indexes_of(commands: MongoCommands) -> list[IndexModel]:
    """Return the indexes that a collection is to have."""
    return [*_INDEXES, *([] if commands.is_sharded else [_LOG_INDEX])]


def complete(commands: MongoCommands) -> None:
    """Create the indexes that are missing."""
    indexes = indexes_of(commands)
    if commands.lacks_indexes(indexes):
        commands.create_indexes(indexes)
        commands.look_for_index(LOG_INDEX, IN_NO_LOG)


def _index(name: str, fields: str, partial_filter: Document, **options: Any) -> IndexModel:
    """Return an index.

    Args:
        name: Its name.
        fields: Its fields, each with a minus before it if its order is descending.
        partial_filter: The documents that are in it.
        options: Further options.
    """
    keys = [(field.lstrip("-"), -1 if field.startswith("-") else 1) for field in fields.split()]
    return IndexModel(keys, name=name, partialFilterExpression=partial_filter, **options)


_IS_LISTED = {"listed_at": {"$gt": 0}}
_INDEXES = [
    _index(
        "forkpoint_place",
        "thread checkpoint_ns kind -checkpoint_id",
        {"thread": {"$exists": True}},
    ),
    _index(
        "forkpoint_order",
        "-checkpoint_id -thread -checkpoint_ns",
        {"kind": "checkpoint", "visible": True},
    ),
    _index(
        "forkpoint_nested",
        "-thread -checkpoint_id -checkpoint_ns",
        {"kind": "checkpoint", "checkpoint_ns": {"$gt": ""}},
    ),
    _index("forkpoint_expires", "expires", {"expires": {"$exists": True}}, expireAfterSeconds=0),
    _index("forkpoint_tombstones", "tombstones.made_at", {"tombstones.made_at": {"$gt": 0}}),
    _index("forkpoint_run", "run_id", {"run_id": {"$exists": True}}),
    _index("forkpoint_irregular", "thread", {"irregular": True}),
    _index("forkpoint_doomed", "thread", {"doomed": True}),
    _index("forkpoint_family", "family", {"kind": "thread"}),
    _index("forkpoint_listing", "terms listed_status -listed_at -thread_id", _IS_LISTED),
    _index("forkpoint_created", "-created_at -thread_id", _IS_LISTED),
    _index("forkpoint_thread_id", "thread_id", _IS_LISTED),
    _index("forkpoint_unlisted", "unlisted", {"unlisted": True}),
    _index("forkpoint_expiry", "ttl updated_at _id", {"ttl": {"$gt": 0}}),
    _index("forkpoint_removed", "removed_at", {"removed_at": {"$gt": 0}}),
]
_LOG_INDEX = _index(LOG_INDEX, "log slot", {"slot": {"$gt": 0}}, unique=True)


# Features


_NOTHING: Document = {"_id": "no such document", "family": "settings"}


def check_features(commands: MongoCommands, collection: Collection[Document]) -> None:
    """Try everything that a server may lack, on no document.

    Raises:
        MissingFeature: The server refuses something because it does not know it.
    """

    def update(*change: Document) -> None:
        collection.update_one(_NOTHING, list(change))

    def aggregate(*stages: Document) -> None:
        collection.aggregate([{"$match": _NOTHING}, *stages]).to_list()

    for attempt, features in (update, _CHANGES), (aggregate, _stages(collection.name)):
        # All in one command, and one after the other to find out what it is that it lacks.
        if commands.retrying(partial(_refusal, attempt, *features.values())) is not None:
            for feature, stage in features.items():
                error = commands.retrying(partial(_refusal, attempt, stage))
                if error is not None:
                    raise MissingFeature(
                        "the server cannot do what forkpoint needs: "
                        f"{feature} ({error.details or error}); "
                        "forkpoint needs MongoDB 5.0 or later"
                    ) from error


def _refusal(attempt: Callable[..., None], *stages: Document) -> OperationFailure | None:
    """Return the error by which the server refuses what it does not know, or None."""
    try:
        attempt(*stages)
    except OperationFailure as error:
        if error.code not in _UNKNOWN:
            raise
        return error
    return None


_UNKNOWN = {
    2,  # BadValue
    9,  # FailedToParse
    14,  # TypeMismatch
    40,  # ConflictingUpdateOperators
    59,  # CommandNotFound
    72,  # InvalidOptions
    115,  # CommandNotSupported
    168,  # InvalidPipelineOperator
    238,  # NotImplemented
    303,  # "Feature not supported", of servers that are not MongoDB
    304,
    17276,  # use of an undefined variable
    31325,  # unknown expression
    40324,  # unrecognized pipeline stage
}


_CHANGES: Mapping[str, Document] = {
    "updates by an aggregation pipeline": {"$set": {"family": "settings"}},
    "the variable $$NOW": {"$set": {"at": {"$toLong": "$$NOW"}}},
}


def _stages(name: str) -> Mapping[str, Document]:
    """Return stages on a collection of this name, which may follow each other."""
    same = {"$match": {"$expr": {"$eq": ["$family", "$$home"]}}}
    lookup: Document = {"from": name, "localField": "key", "foreignField": "_id", "as": "documents"}
    graph: Document = {
        "from": name,
        "startWith": "$refs",
        "connectFromField": "refs",
        "connectToField": "_id",
        "restrictSearchWithMatch": {"family": "settings"},
        "as": "documents",
    }
    return {
        "$lookup by a field and a pipeline": {
            "$lookup": {**lookup, "let": {"home": "$family"}, "pipeline": [same]}
        },
        "$graphLookup": {"$graphLookup": graph},
        "$unionWith": {"$unionWith": {"coll": name, "pipeline": [{"$match": _NOTHING}]}},
        "$merge with a pipeline": {"$merge": {"into": name, "whenMatched": [{"$set": {"at": 0}}]}},
    }
