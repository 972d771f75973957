"""MongoDB: what a server must be able to do, tried before a store is made on it.

Servers that speak MongoDB's protocol without being MongoDB lack some of it. It is better to be told
so at the set-up, by name, than by the first put.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from forkpoint.errors import MissingFeature
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document

_NOTHING: Document = {"_id": "no such document", "family": "settings"}


def check_features(commands: MongoCommands, collection: Collection[Document]) -> None:
    """Try everything that a server may lack, on no document.

    Raises:
        MissingFeature: The server refuses something because it does not know it.
    """
    for feature, attempt in _attempts(collection).items():
        commands.retrying(partial(_try, feature, attempt))


def _try(feature: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OperationFailure as error:
        if error.code not in _UNKNOWN:
            raise
        raise MissingFeature(
            f"the server cannot do what forkpoint needs: {feature} ({error.details or error}); "
            "forkpoint needs MongoDB 5.0 or later"
        ) from error


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


def _attempts(collection: Collection[Document]) -> Mapping[str, Callable[[], object]]:
    name = collection.name
    same = {"$match": {"$expr": {"$eq": ["$family", "$$home"]}}}
    lookup: Document = {"from": name, "localField": "key", "foreignField": "_id", "as": "found"}
    graph: Document = {
        "from": name,
        "startWith": "$refs",
        "connectFromField": "refs",
        "connectToField": "_id",
        "restrictSearchWithMatch": {"family": "settings"},
        "as": "found",
    }

    def aggregate(*stages: Any) -> Callable[[], object]:
        return lambda: collection.aggregate([{"$match": _NOTHING}, *stages]).to_list()

    def update(change: Any, **options: Any) -> Callable[[], object]:
        return lambda: collection.update_one(_NOTHING, change, **options)

    return {
        "updates by an aggregation pipeline": update([{"$set": {"family": "settings"}}]),
        "the variable $$NOW": update([{"$set": {"at": {"$toLong": "$$NOW"}}}]),
        "$lookup by a field and a pipeline": aggregate(
            {"$lookup": {**lookup, "let": {"home": "$family"}, "pipeline": [same]}}
        ),
        "$graphLookup": aggregate({"$graphLookup": graph}),
        "$unionWith": aggregate({"$unionWith": {"coll": name, "pipeline": [{"$match": _NOTHING}]}}),
        "$merge with a pipeline": aggregate(
            {"$merge": {"into": name, "whenMatched": [{"$set": {"at": 0}}]}}
        ),
    }
