"""MongoDB: what tells that a thread of an id was deleted. It is in the document of the name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bson.objectid import ObjectId

from forkpoint.mongodb.documents import NOW, Document
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.storage.tombstones import Marks


def expiry_after(microseconds: int) -> Document:
    """Return the expression for when the server is to delete a document.

    A name that means no thread any more goes as its tombstones do. What is left of a deleted thread
    goes in twice the time: not before the name that may tell of it.
    """
    return {"$add": ["$$NOW", microseconds // 1000]}


def deletions_of(name: Document, marks: Marks, owner: str | None) -> frozenset[ObjectId]:
    """Return the ids of the deletions of a thread id, as far as an owner may know them."""
    return frozenset(tombstone["deletion"] for tombstone in _visible(name, marks, owner))


def watermark_of(name: Document, marks: Marks, owner: str | None) -> str | None:
    """Return the highest checkpoint id that is known to be of a deleted thread of an id."""
    ids = (tombstone["watermark"] for tombstone in _visible(name, marks, owner))
    return max((tombstone for tombstone in ids if tombstone is not None), default=None)


def _visible(name: Document, marks: Marks, owner: str | None) -> list[Any]:
    seen = None if owner is None else marks.seen_by(owner)
    tombstones: list[Any] = name.get("tombstones", [])
    return [tombstone for tombstone in tombstones if seen is None or tombstone["mark"] in seen]


def naming(name: Document, key: ObjectId, home: ObjectId) -> Statement:
    """Return the statement that lets a name mean a thread, and no longer expire.

    Args:
        name: A filter for the document of the name as it was. It is made, if there is none.
        key: The key of the thread.
        home: Its family.
    """
    meaning = {"$set": {"key": key, "home": home}, "$unset": {"expires": ""}}
    return update_one(name, meaning, upsert=True)


def expiry_of_name(name: Document, key: ObjectId, ttl: int) -> Statement:
    """Return the statement that has a name expire, if it still means a thread that is deleted.

    Args:
        name: A filter for the document of the name.
        key: The key of the thread.
        ttl: For how many microseconds deletions are known.
    """
    return update_one({**name, "key": key}, [{"$set": {"expires": expiry_after(ttl)}}])


def tombstone_statement(
    name: Document, mark: bytes, watermark: str | None, deletion: ObjectId, ttl: int
) -> Statement:
    """Return the statement that adds a tombstone. Sent twice, it adds one.

    A name that means a thread goes on meaning it, and does not expire: it may be another owner's.

    Args:
        name: A filter for the document of the name. It is made, if there is none.
        mark: Whose thread it was.
        watermark: The highest id of its checkpoints, if there is one.
        deletion: What tells it from others.
        ttl: For how many microseconds deletions are known.
    """
    there = {"$ifNull": ["$tombstones", []]}
    same = {"$eq": ["$$this.mark", mark]}
    of_mark = {"$filter": {"input": there, "cond": same}}
    oldest = {"$subtract": [NOW, ttl]}
    stays = {"$and": [{"$not": same}, {"$gt": ["$$this.made_at", oldest]}]}
    others = {"$filter": {"input": there, "cond": stays}}
    latest = {"$max": [{"$max": "$$before.watermark"}, {"$literal": watermark}]}
    made = {"mark": mark, "deletion": deletion, "watermark": latest, "made_at": NOW}
    changed = {"$let": {"vars": {"before": of_mark}, "in": {"$concatArrays": [others, [made]]}}}
    unused = ObjectId()  # no record has it: it is as if somebody had ended before making it
    means_none = {"$or": [_is("$key", "missing"), {"$not": [_is("$expires", "missing")]}]}
    fields = {
        "tombstones": changed,
        "expires": {"$cond": [means_none, expiry_after(ttl), "$$REMOVE"]},
        "deletion": deletion,
        "key": {"$ifNull": ["$key", unused]},
        "home": {"$ifNull": ["$home", unused]},
    }
    return update_one(name, [{"$set": fields}], upsert=True)


def _is(field: str, kind: str) -> Document:
    return {"$eq": [{"$type": field}, kind]}


def ancestors_of_living(threads: Sequence[Document]) -> set[Any]:
    """Return the keys of the ancestors of all threads of a family that are not deleted."""
    parents = {record["_id"]: _parent_in(record) for record in threads}
    needed: set[Any] = set()
    for record in threads:
        parent = _parent_in(record) if record["deleted_at"] is None else None
        while parent is not None and parent not in needed:
            needed.add(parent)
            parent = parents.get(parent)
    return needed


def _parent_in(record: Document) -> ObjectId | None:
    """Return the key of the parent of a thread; None if it has none, or if that is damaged."""
    parent = record["parent"]
    return parent if isinstance(parent, ObjectId) else None


def raise_watermark(marks: Marks, owner: str | None, checkpoint_id: str) -> list[Document]:
    """Return the change that raises the watermark to a checkpoint of a deleted thread."""
    later = {"watermark": {"$max": ["$$this.watermark", {"$literal": checkpoint_id}]}}
    raised: Document = {"$mergeObjects": ["$$this", later]}
    if owner is not None:
        counts = {"$in": ["$$this.mark", sorted(marks.seen_by(owner))]}
        raised = {"$cond": [counts, raised, "$$this"]}
    there = {"$ifNull": ["$tombstones", []]}
    return [{"$set": {"tombstones": {"$map": {"input": there, "in": raised}}}}]
