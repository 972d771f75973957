"""MongoDB: the indexes of the collection."""

from __future__ import annotations

from pymongo import ASCENDING, DESCENDING, IndexModel

from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.log import LOG_INDEX

_INDEXES = [
    IndexModel(
        [
            ("thread", ASCENDING),
            ("checkpoint_ns", ASCENDING),
            ("kind", ASCENDING),
            ("checkpoint_id", DESCENDING),
        ],
        name="forkpoint_place",
        partialFilterExpression={"thread": {"$exists": True}},
    ),
    IndexModel(
        [("checkpoint_id", DESCENDING), ("thread", DESCENDING), ("checkpoint_ns", DESCENDING)],
        name="forkpoint_order",
        partialFilterExpression={"kind": "checkpoint", "visible": True},
    ),
    IndexModel(
        [("thread", DESCENDING), ("checkpoint_id", DESCENDING), ("checkpoint_ns", DESCENDING)],
        name="forkpoint_nested",
        partialFilterExpression={"kind": "checkpoint", "checkpoint_ns": {"$gt": ""}},
    ),
    IndexModel(
        [("expires", ASCENDING)],
        name="forkpoint_expires",
        expireAfterSeconds=0,
        partialFilterExpression={"expires": {"$exists": True}},
    ),
    IndexModel(
        [("tombstones.made_at", ASCENDING)],
        name="forkpoint_tombstones",
        partialFilterExpression={"tombstones.made_at": {"$gt": 0}},
    ),
    IndexModel(
        [("run_id", ASCENDING)],
        name="forkpoint_run",
        partialFilterExpression={"run_id": {"$exists": True}},
    ),
    IndexModel(
        [("thread", ASCENDING)],
        name="forkpoint_doomed",
        partialFilterExpression={"doomed": True},
    ),
    IndexModel(
        [("family", ASCENDING)],
        name="forkpoint_family",
        partialFilterExpression={"kind": "thread"},
    ),
    IndexModel(
        [
            ("terms", ASCENDING),
            ("listed_status", ASCENDING),
            ("listed_at", DESCENDING),
            ("thread_id", DESCENDING),
        ],
        name="forkpoint_listing",
        partialFilterExpression={"listed_at": {"$gt": 0}},
    ),
    IndexModel(
        [("created_at", DESCENDING), ("thread_id", DESCENDING)],
        name="forkpoint_created",
        partialFilterExpression={"listed_at": {"$gt": 0}},
    ),
    IndexModel(
        [("thread_id", ASCENDING)],
        name="forkpoint_thread_id",
        partialFilterExpression={"listed_at": {"$gt": 0}},
    ),
    IndexModel(
        [("unlisted", ASCENDING)],
        name="forkpoint_unlisted",
        partialFilterExpression={"unlisted": True},
    ),
    IndexModel(
        [("ttl", ASCENDING), ("updated_at", ASCENDING), ("_id", ASCENDING)],
        name="forkpoint_expiry",
        partialFilterExpression={"ttl": {"$gt": 0}},
    ),
    IndexModel(
        [("removed_at", ASCENDING)],
        name="forkpoint_removed",
        partialFilterExpression={"removed_at": {"$gt": 0}},
    ),
]
_LOG_INDEX = IndexModel(
    [("log", ASCENDING), ("slot", ASCENDING)],
    name=LOG_INDEX,
    unique=True,
    partialFilterExpression={"slot": {"$gt": 0}},
)


def indexes_of(commands: MongoCommands) -> list[IndexModel]:
    return [*_INDEXES, *([] if commands.is_sharded else [_LOG_INDEX])]


def complete(commands: MongoCommands) -> None:
    """Create the indexes that are missing."""
    indexes = indexes_of(commands)
    if commands.lacks_indexes(indexes):
        commands.create_indexes(indexes)
        commands.look_for_index(LOG_INDEX, IN_NO_LOG)


IN_NO_LOG = {"log": "none", "slot": {"$gt": 0}, "family": "settings"}
