"""MongoDB: which rows a page of checkpoints is of, in the order of an index."""

from __future__ import annotations

from typing import Any

from forkpoint.filters import terms
from forkpoint.mongodb.documents import Document
from forkpoint.storage.queries import CheckpointQuery


def page_filters(query: CheckpointQuery) -> list[Document]:
    """Return a filter for each part of a listing that an index has in the right order.

    A thread's checkpoints in all namespaces are in two indexes: those of the graph itself in that
    of the places, and those of subgraphs in one of their own.
    """
    conditions = _conditions(query)
    if not query.is_of_all_namespaces:
        return [conditions]
    return [{**conditions, "checkpoint_ns": namespace} for namespace in ("", {"$gt": ""})]


def page_order(query: CheckpointQuery) -> Document:
    """Return the stage that puts the rows of a part, or of all parts, in order."""
    return {"$sort": dict.fromkeys(query.order, 1 if query.oldest_first else -1)}


def _conditions(query: CheckpointQuery) -> Document:
    conditions: Document = {"kind": "checkpoint", "visible": True}
    if query.with_hidden:
        conditions = {"kind": "checkpoint", "content": {"$exists": True}, "doomed": None}
    if query.checkpoint_ns is not None:
        conditions["checkpoint_ns"] = query.checkpoint_ns
    ids: Document = {"$gte": ""}  # any; without it, a partial index is not used
    if query.checkpoint_id is not None:
        ids["$eq"] = query.checkpoint_id
    if query.before is not None:
        ids["$lt"] = query.before
    if passed := query.passed:
        after = "$gt" if query.oldest_first else "$lt"
        ids[f"{after}e"] = passed["checkpoint_id"]
        conditions["$or"] = _after(passed, after)
    conditions["checkpoint_id"] = ids
    if query.filter and (asked := sorted(terms(query.filter))):
        conditions["terms"] = {"$all": asked}
    return conditions


def _after(passed: dict[str, Any], after: str) -> list[Document]:
    """Return the conditions, one of which holds for what comes after a place."""
    fields = list(passed.items())
    return [
        {**dict(fields[:length]), field: {after: value}}
        for length, (field, value) in enumerate(fields)
    ]
