"""MongoDB: what tells that a thread of an id was deleted. It is in the document of the name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bson.objectid import ObjectId

from forkpoint.mongodb.documents import NOW, Document
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.storage.tombstones import Marks


def expiry_after(microseconds: int) -> Document:
    """Return the expression for when the server is to delete something.

    A name that means no thread any more goes as its tombstones do. What is left of a deleted thread
    goes in twice the time: not before the name that may tell of it.
    """
    return {"$add": ["$$NOW", microseconds // 1000]}


def deletions_of(named: Document, marks: Marks, owner: str | None) -> frozenset[ObjectId]:
    """Return what tells the deletions of an id from those before; those that an owner may know."""
    return frozenset(one["deletion"] for one in _seen(named, marks, owner))


def watermark_of(named: Document, marks: Marks, owner: str | None) -> str | None:
    """Return the highest checkpoint id that is known to be of a deleted thread of an id."""
    ids = (one["dead_until"] for one in _seen(named, marks, owner))
    return max((one for one in ids if one is not None), default=None)


def _seen(named: Document, marks: Marks, owner: str | None) -> list[Any]:
    seen = None if owner is None else marks.seen_by(owner)
    tombstones: list[Any] = named.get("tombstones", [])
    return [one for one in tombstones if seen is None or one["mark"] in seen]


def entomb(
    name: Document,
    mark: bytes,
    dead_until: str | None,
    deletion: ObjectId,
    ttl: int,
    *,
    is_given: bool = False,
) -> Statement:
    """Return the statement that notes a deletion, once if it is sent twice.

    Args:
        name: A filter for the document of the name. It is made, if there is none.
        mark: Whose thread it was.
        dead_until: The highest id of its checkpoints, if there is one.
        deletion: What tells it from others.
        ttl: For how many microseconds deletions are known.
        is_given: Whether the thread is there, and another owner's.
    """
    there = {"$ifNull": ["$tombstones", []]}
    same = {"$eq": ["$$one.mark", mark]}
    of_mark = {"$filter": {"input": there, "as": "one", "cond": same}}
    oldest = {"$subtract": [NOW, ttl]}
    stays = {"$and": [{"$not": same}, {"$gt": ["$$one.made_at", oldest]}]}
    others = {"$filter": {"input": there, "as": "one", "cond": stays}}
    latest = {"$max": [{"$max": "$$before.dead_until"}, {"$literal": dead_until}]}
    made = {"mark": mark, "deletion": deletion, "dead_until": latest, "made_at": NOW}
    changed = {"$let": {"vars": {"before": of_mark}, "in": {"$concatArrays": [others, [made]]}}}
    unused = ObjectId()  # no record has it: it is as if somebody had ended before making it
    fields = {
        "tombstones": changed,
        "expires": expiry_after(ttl),
        "deletion": deletion,
        "key": {"$ifNull": ["$key", unused]},
        "home": {"$ifNull": ["$home", unused]},
    }
    if is_given:
        del fields["expires"]
    return update_one(name, [{"$set": fields}], upsert=True)


def needed_in(threads: Sequence[Document]) -> set[Any]:
    """Return the keys of the ancestors of the threads of a family that are there."""
    parents = {one["_id"]: one["parent"] for one in threads}
    needed: set[Any] = set()
    for one in threads:
        parent = one["parent"] if one["deleted_at"] is None else None
        while parent is not None and parent not in needed:
            needed.add(parent)
            parent = parents.get(parent)
    return needed


def raise_watermark(marks: Marks, owner: str | None, checkpoint_id: str) -> list[Document]:
    """Return how to note that a checkpoint was found to be of a deleted thread."""
    later = {"dead_until": {"$max": ["$$one.dead_until", {"$literal": checkpoint_id}]}}
    raised: Document = {"$mergeObjects": ["$$one", later]}
    if owner is not None:
        counts = {"$in": ["$$one.mark", sorted(marks.seen_by(owner))]}
        raised = {"$cond": [counts, raised, "$$one"]}
    there = {"$ifNull": ["$tombstones", []]}
    return [{"$set": {"tombstones": {"$map": {"input": there, "as": "one", "in": raised}}}}]
