"""MongoDB: the document of a thread: how it is made, and the records that are read of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson.objectid import ObjectId

from forkpoint.encoding.hashing import IDENTITY_BYTES, Hashing
from forkpoint.errors import CorruptChunk, damaged_record
from forkpoint.filters import folded, thread_terms
from forkpoint.mongodb.documents import NOW, Document, bytes_of
from forkpoint.storage.rows import Description, FamilyMember, LeaseRow, ThreadRef, ThreadRow

NO_LOG: Document = {"log": None}
"""Of the document of a thread: that it is up to date."""

HAS_LOG: Document = {"log": {"$gt": ObjectId("0" * 24)}}

VISIBLE: Document = {"kind": "thread", "deleted_at": None, "provisional": False, "building": None}
"""Of the document of a thread: that the catalog shows it."""

IDENTITY = dict.fromkeys(("_id", "family", "epoch", "owner", "thread_id", "salt", "checksums"), 1)
"""The fields of a record that a `ThreadRef` is made of."""

KINSHIP = {"parent": 1, "deleted_at": 1, "thread_id": 1, "owner": 1, "expires": 1}
"""The fields of records that tell how the threads of a family are related."""

LISTED_PLACE = ("listed_at", "listed_status", "listed_state_at", "listed_values")
"""What a record has once it is listed: what a search sorts by, and the terms of the state."""

_READ_FIELDS = {
    *IDENTITY,
    *Description._fields,
    *("status", "status_for", "created_at", "updated_at", "state_updated_at", "swept_at", "source"),
    *("edge", "parent", "parent_checkpoint_id", "checkpoint_count", "fence"),
}
_NO_FAMILY = ObjectId("0" * 24)

NOT_LEASED: Document = {"lease_holder": None, "lease_since": None, "lease_until": None}
LEASED = {"$gt": ["$lease_until", NOW]}
EXPIRED = {
    "$and": [
        {"$isNumber": "$ttl"},  # a damaged record keeps nobody from reading the others
        {"$isNumber": "$updated_at"},
        {"$gt": ["$ttl", 0]},
        {"$eq": ["$on_expiry", "delete"]},
        {"$lte": [{"$add": ["$updated_at", "$ttl"]}, NOW]},
        {"$not": [LEASED]},
    ]
}
WITH_LEASE = {"$set": {"is_leased": LEASED, "is_expired": EXPIRED}}
"""The stage that lets `thread_row` know the server's time."""


def thread_ref(record: Document) -> ThreadRef:
    """Return the thread of a record.

    If a field is of a type that none is written with, no checksum fits the thread: whoever uses it
    says that its record is damaged.
    """
    family, owner, thread_id = record["family"], record["owner"], record["thread_id"]
    checksum = bytes_of(record, "checksums")[:IDENTITY_BYTES]
    if not (
        isinstance(family, ObjectId)
        and (owner is None or isinstance(owner, str))
        and isinstance(thread_id, str)
    ):
        family, owner, thread_id, checksum = _NO_FAMILY, None, f"{thread_id!s:.80}", b""
    salt = bytes_of(record, "salt")
    return ThreadRef(record["_id"], family, record["epoch"], owner, thread_id, salt, checksum)


def named_ref(record: Document, thread_id: str | None) -> ThreadRef:
    """Return the thread of a record, which must have this id.

    Raises:
        CorruptChunk: It is another one: the document that says what the id means was changed.
    """
    thread = thread_ref(record)
    if thread_id not in (None, thread.thread_id):
        raise CorruptChunk(f"the record of thread {thread_id!r} is that of another thread")
    return thread


def checked_name(name: Document, thread_id: str) -> Document:
    """Return the document that says what a thread id means.

    Raises:
        CorruptChunk: A field is of another type.
    """
    if not all(isinstance(name.get(field), ObjectId) for field in ("key", "home")):
        raise damaged_record(thread_id)
    return name


def new_record(thread_id: str, epoch: ObjectId, **fields: Any) -> Document:
    """Return the record of a new thread, without `_id`, family and times."""
    record = {
        "kind": "thread",
        "thread_id": thread_id,
        "epoch": epoch,
        "edge": None,
        "parent": None,
        "parent_checkpoint_id": None,
        "source": None,
        "owner": None,
        "salt": b"",
        "checksums": b"",
        "label": None,
        "folded_label": None,
        "tags": [],
        "metadata": "{}",
        "fixed_keys": [],
        "ttl": None,
        "on_expiry": "delete",
        "swept_at": None,
        "status": "idle",
        "status_for": "",
        "state_updated_at": 0,
        "value_terms": None,
        "checkpoint_count": 0,
        **NOT_LEASED,
        "fence": 0,
        "rollback_from": None,
        "lease_queue": [],
        "provisional": True,
        "removals": 0,
        "deleted_at": None,
        "watermark": None,
        "lock": None,
        **NO_LOG,
        "unlisted": True,
        **fields,
    }
    return {**record, "terms": terms_of(record)}


def deleted_record(thread_id: str) -> Document:
    """Return the fields of a record once its thread is deleted, as an expression.

    Args:
        thread_id: Its id, if it is to be known; else empty.
    """
    empty = new_record(thread_id, ObjectId())
    times = {"deleted_at": NOW, "removed_at": NOW}
    # An id may look like the name of a field.
    return {**{name: {"$literal": empty[name]} for name in _FORGOTTEN}, **times}


_FORGOTTEN = (
    *("thread_id", "epoch", "owner", "source", "watermark", "lock", "swept_at", "ttl"),
    *("label", "folded_label", "tags", "metadata", "fixed_keys", "value_terms"),
    *("status", "checkpoint_count", "state_updated_at", "lease_queue", *NOT_LEASED),
)


def terms_of(record: Mapping[str, Any]) -> list[int]:
    """Return the terms by which searches find a thread."""
    return thread_terms(
        record["owner"], record["label"], record["tags"], record["metadata"], record["source"]
    )


def fields_of(described: Description) -> Document:
    """Return the fields of a record for a description."""
    lists = {"tags": list(described.tags), "fixed_keys": list(described.fixed_keys)}
    label = None if described.label is None else folded(described.label)
    return {**described._asdict(), **lists, "folded_label": label}


def checksums_of(record: Mapping[str, Any], hashing: Hashing) -> bytes:
    """Return the checksums that a record is to have."""
    identity = (record["thread_id"], record["owner"], record["salt"])
    return hashing.checksums(
        identity, description_in(record), lineage_of(record)[:-1], record["source"]
    )


def description_in(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the description in a record, as its checksum was computed."""
    return tuple(record[name] for name in Description._fields)


def lineage_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the edge, the parent's key as text, its checkpoint, and its id."""
    parent = record["parent"]
    named = parent if parent is None else str(parent)
    return record["edge"], named, record["parent_checkpoint_id"], record["source"]


def thread_row(record: Document) -> ThreadRow:
    """Return the record of a thread. If a field is missing, no checksum fits what is returned."""
    missing = _READ_FIELDS - record.keys()
    if missing:
        record = {**record, **dict.fromkeys(missing), "checksums": None}
    is_leased = record["is_leased"]
    is_shown = record["status"] != "idle" or record.get("value_terms") is not None
    thread = thread_ref(record)
    return ThreadRow(
        thread,
        thread.thread_id,
        Description(
            record["label"],
            _list_of(record["tags"]),
            record["metadata"],
            record["ttl"],
            _list_of(record["fixed_keys"]),
            record["on_expiry"],
        ),
        "busy" if is_leased else record["status"],
        record["created_at"],
        record["updated_at"],
        record["source"],
        record["parent_checkpoint_id"],
        record["checkpoint_count"],
        lease_row(record) if is_leased else None,
        record["fence"],
        record["is_expired"],
        record["swept_at"] == record["updated_at"],
        record["state_updated_at"],
        record["status_for"] if is_shown and isinstance(record["status_for"], str) else None,
        checksums=bytes_of(record, "checksums") if thread.checksum else b"",
        lineage=lineage_of(record),
    )


def lease_row(record: Document) -> LeaseRow:
    names = ("lease_holder", "lease_since", "lease_until", "fence", "rollback_from")
    return LeaseRow(*(record[name] for name in names))


def _list_of(value: Any) -> tuple[str, ...]:
    """Return a stored list; if it is damaged, a value that no thread has."""
    return tuple(value) if isinstance(value, list) else (f"damaged: {value!r:.80}",)


def family_member(record: Document) -> FamilyMember:
    """Return a member of a family; of a damaged record, one that `check_kinship` refuses."""
    checkpoints = [*record["own"], *record["parents"]]
    return FamilyMember(
        record["_id"],
        record.get("thread_id"),  # type: ignore[arg-type]
        record.get("edge"),
        record.get("parent"),
        record.get("parent_checkpoint_id"),
        checkpoints[0]["metadata"] if checkpoints else None,
        record.get("checkpoint_count", False),
        record.get("created_at", False),
        record.get("deleted_at", False),
        record.get("salt", b""),
        record.get("checksums", b""),
        record.get("owner"),
    )
