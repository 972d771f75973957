"""MongoDB: the records of threads, how they are searched, and leases.

A search sorts by `listed_at` and `listed_status`, which the first page of each search brings up to
date, and not each put: then a put changes no index. The other pages are read as of the moment of
the first, as long as the server keeps that: five minutes, unless it is told otherwise. A standalone
server keeps none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bson.objectid import ObjectId
from bson.timestamp import Timestamp

from forkpoint.encoding.hashing import IDENTITY_BYTES, Hashing
from forkpoint.errors import StorageFull, StorageReadOnly, StorageUnauthorized
from forkpoint.filters import ALL_TERM, folded, thread_terms
from forkpoint.mongodb.commands import (
    NOW,
    Document,
    Records,
    bytes_of,
    chunk_id,
    chunk_size,
    in_batches,
    record_of,
)
from forkpoint.mongodb.log import NO_LOG, MongoLogs
from forkpoint.storage.interface import Stale
from forkpoint.storage.queries import Batch, Condition, ThreadQuery, ThreadRowPage
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    Description,
    LeaseRow,
    RecordTimes,
    ThreadRef,
    ThreadRow,
    Usage,
)

IDENTITY = dict.fromkeys(("_id", "family", "epoch", "owner", "thread_id", "salt", "checksums"), 1)
"""The fields of a record that a `ThreadRef` is made of."""

_LISTED = {"listed_at": {"$gt": 0}}  # without it, a partial index is not used
_LEASED = {"$gt": ["$lease_until", NOW]}
# Who waits for a lease, the first one first, without those who have not asked again in time.
_QUEUE = {
    "$filter": {"input": {"$ifNull": ["$waiting", []]}, "cond": {"$gt": ["$$this.until", NOW]}}
}
_QUEUE_NAMES = {"$map": {"input": _QUEUE, "in": "$$this.by"}}
_EXPIRED = {
    "$and": [
        {"$gt": ["$ttl", 0]},
        {"$eq": ["$on_expiry", "delete"]},
        {"$lte": [{"$add": ["$updated_at", "$ttl"]}, NOW]},
        {"$not": [_LEASED]},
    ]
}
_STATUS_NOW = {"$cond": [_LEASED, "busy", "$status"]}
LISTED_PLACE = ("listed_at", "listed_status", "listed_state_at", "listed_values")
"""What a record has once it is listed: what a search sorts by, and the terms of the state."""
_VALUE_TERMS = {"$ifNull": ["$value_terms", []]}
_LISTED_VALUES = {"$ifNull": ["$listed_values", []]}
_TERMS = {
    "$cond": [
        {"$eq": [_VALUE_TERMS, _LISTED_VALUES]},
        "$terms",
        {"$setUnion": [{"$setDifference": ["$terms", _LISTED_VALUES]}, _VALUE_TERMS]},
    ]
}
_PLACE = {
    "listed_at": "$updated_at",
    "listed_state_at": "$state_updated_at",
    "listed_values": _VALUE_TERMS,
    "terms": _TERMS,
}
_UNLEASED = {"lease_holder": None, "lease_since": None, "lease_until": None}
_SORTED = {
    "updated_at": "listed_at",
    "status": "listed_status",
    "created_at": "created_at",
    "thread_id": "thread_id",
    "state_updated_at": "listed_state_at",
}


def thread_ref(record: Document) -> ThreadRef:
    """Return which thread a record is that of."""
    return ThreadRef(
        record["_id"],
        record["family"],
        record["epoch"],
        record["owner"],
        record["thread_id"],
        bytes_of(record, "salt"),
        bytes_of(record, "checksums")[:IDENTITY_BYTES],
    )


def new_record(thread_id: str, epoch: ObjectId, **fields: Any) -> Document:
    """Return the record of a new thread, but for its name and its times."""
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
        **_UNLEASED,
        "fence": 0,
        "rollback_from": None,
        "waiting": [],
        "provisional": True,
        "removals": 0,
        "deleted_at": None,
        "dead_until": None,
        "lock": None,
        **NO_LOG,
        "unlisted": True,
        **fields,
    }
    return {**record, "terms": terms_of(record)}


def terms_of(record: Mapping[str, Any]) -> list[int]:
    """Return what a thread is found by."""
    return thread_terms(
        record["owner"], record["label"], record["tags"], record["metadata"], record["source"]
    )


def fields_of(described: Description) -> Document:
    """Return what a thread's record says of it that its runs do not change."""
    lists = {"tags": list(described.tags), "fixed_keys": list(described.fixed_keys)}
    label = None if described.label is None else folded(described.label)
    return {**described._asdict(), **lists, "folded_label": label}


def checksums_of(record: Mapping[str, Any], hashing: Hashing) -> bytes:
    """Return the checksums that a record is to have."""
    identity = (record["thread_id"], record["owner"], record["salt"])
    return hashing.checksums(identity, said_in(record), lineage_of(record)[:-1], record["source"])


def said_in(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what of a record the checksum of its description is of."""
    return tuple(record[name] for name in Description._fields)


def lineage_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a thread was made of."""
    parent = record["parent"]
    named = parent if parent is None else str(parent)
    return record["edge"], named, record["parent_checkpoint_id"], record["source"]


class MongoCatalog(MongoLogs):
    """The primitives of `forkpoint.storage.interface.Session` for the catalog."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._may_list = True  # until the server says that the user may not write

    def now(self) -> int:
        return self._records.now()

    def record(self, thread_id: str) -> ThreadRow | None:
        name = self._records.name_id(thread_id)
        record = {
            "from": self._records.name,
            "localField": "key",
            "foreignField": "_id",
            "let": {"home": "$home"},
            "pipeline": [
                {"$match": {"$expr": {"$eq": ["$family", "$$home"]}, **SEEN}},
                *self.up_to_date(),
                _WITH_LEASE,
            ],
            "as": "record",
        }
        found = self._records.aggregate(
            [
                {"$match": {"_id": name, "family": name}},
                {"$lookup": record},
                {"$unwind": "$record"},
                {"$replaceWith": "$record"},
            ]
        )
        return _thread_row(found[0]) if found else None

    # Searching

    def select(self, selection: ThreadQuery) -> ThreadRowPage:
        is_listed = selection.after is not None or self._list_if_allowed()
        field = _SORTED[selection.sort_by]
        direction = -1 if selection.descending else 1
        sort = {field: direction, "thread_id": direction}
        fields = {"thread_id": 1, "family": 1, field: 1}
        limit = selection.limit + 1
        if is_listed and self._may_list:
            found, moment = self._records.find_at(
                _moment(selection.snapshot), _wanted(selection), fields, sort, limit
            )
        else:
            page: list[Document] = [{"$sort": sort}, {"$limit": limit}, {"$project": fields}]
            found, moment = self._records.aggregate([*self._as_they_are(selection), *page]), None
        is_last = len(found) <= selection.limit
        found = found[: selection.limit]
        rows = self._rows_of(found)
        return ThreadRowPage(
            [rows.get(one["_id"]) for one in found],
            [(one[field], one["thread_id"]) for one in found],
            None if moment is None else [moment.time, moment.inc],
            is_last,
        )

    def begin_walk(self) -> None:
        """Do nothing: the server keeps the past by itself."""

    def end_walk(self, walk: Any) -> None:
        """Do nothing: see `begin_walk`."""

    def count(self, selection: ThreadQuery) -> int:
        if self._list_if_allowed():
            return self._records.count(_wanted(selection)) - self._count_expired(selection)
        alive = {"$match": {"$nor": [{"$expr": _EXPIRED}]}}
        found = [*self._as_they_are(selection), alive, {"$count": "threads"}]
        counted = self._records.aggregate(found)
        return int(counted[0]["threads"]) if counted else 0

    def _count_expired(self, selection: ThreadQuery) -> int:
        """Return how many of those that are listed have expired."""
        ttls = self._records.distinct("ttl", {"ttl": {"$gt": 0}})
        now = self.now() if ttls else 0
        over: list[Document] = [
            {
                "ttl": ttl,
                "updated_at": {"$lte": now - ttl},
                "on_expiry": "delete",
                "listed_status": {"$ne": "busy"},
            }
            for ttl in ttls
        ]
        listed = _wanted(selection)["$and"]
        return sum(self._records.count({"$and": [*listed, each]}) for each in over)

    def _rows_of(self, found: Sequence[Document]) -> dict[Any, ThreadRow]:
        if not found:
            return {}
        wanted = {
            "_id": {"$in": [one["_id"] for one in found]},
            "family": {"$in": list({one["family"] for one in found})},
            **SEEN,
        }
        return {one["_id"]: _thread_row(one) for one in self._read([{"$match": wanted}])}

    def _read(self, stages: list[Document]) -> list[Document]:
        return self._records.aggregate([*stages, *self.up_to_date(), _WITH_LEASE])

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        self._end_unlisted()
        now = self.now()
        found: list[Document] = []
        oldest: list[Document] = [{"$sort": {"updated_at": 1, "_id": 1}}, {"$limit": limit}]
        for ttl in self._records.distinct("ttl", {"ttl": {"$gt": 0}}):
            over: Document = {"ttl": ttl, "updated_at": {"$lte": now - ttl}, **SEEN, **_of(owner)}
            over["$expr"] = {"$ne": ["$swept_at", "$updated_at"]}
            if after is not None:
                since, key = after[0] - ttl, after[1]
                over["updated_at"]["$gte"] = since
                over["$or"] = [{"updated_at": {"$gt": since}}, {"_id": {"$gt": key}}]
            found += self._read([{"$match": over}, *oldest])
        found.sort(key=lambda record: (record["updated_at"] + record["ttl"], record["_id"]))
        return [_thread_row(record) for record in found[:limit]]

    def note_sweep(self, seen: ThreadRow) -> None:
        self._records.update(record_of(seen.thread), {"$set": {"swept_at": seen.updated_at}})

    def grown(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        self._end_unlisted()
        wanted: Document = {"checkpoint_count": {"$gt": more_than}, **SEEN, **_of(owner)}
        # Only threads have such names.
        wanted["_id"] = {"$gt": after or ObjectId("0" * 24)}
        found = self._read([{"$match": wanted}, {"$sort": {"_id": 1}}, {"$limit": limit}])
        return [_thread_row(record) for record in found]

    def _list_if_allowed(self) -> bool:
        """Let searches find threads by what they are, if that can be written; return whether."""
        if self._may_list:
            try:
                self._list_anew()
            except (StorageReadOnly, StorageUnauthorized):
                self._may_list = False
            except StorageFull:
                return False
        return self._may_list

    def _as_they_are(self, selection: ThreadQuery) -> list[Document]:
        """Return the stages that find threads for a user who may not bring the index up to date.

        Those that changed since it was, and those whose lease may be over, are looked at one by
        one; the others are found through the index.
        """
        wanted = _wanted(selection)
        listed = {"unlisted": {"$ne": True}, "listed_status": {"$ne": "busy"}}
        busy = {"$and": [{"terms": ALL_TERM}, {"listed_status": "busy"}, _LISTED]}
        now: list[Document] = [
            *self.up_to_date(),
            {"$set": {**_PLACE, "listed_status": _STATUS_NOW}},
            {"$match": wanted},
        ]
        changed: list[Document] = [
            {"$match": {"unlisted": True, **SEEN}},
            {"$match": {**busy, "unlisted": {"$ne": True}, **SEEN}},
        ]
        unions = [
            {"$unionWith": {"coll": self._records.name, "pipeline": [match, *now]}}
            for match in changed
        ]
        return [{"$match": {**wanted, **listed}}, *unions]

    def _list_anew(self) -> None:
        """Let searches find threads by what they are at the moment."""
        self._end_unlisted()
        still = {"$cond": [{"$eq": ["$log", None]}, "$$REMOVE", True]}
        listed: list[Document] = [
            {"$set": {**_PLACE, "listed_status": _STATUS_NOW, "unlisted": still}}
        ]
        self._records.update_all({"unlisted": True, **SEEN}, listed)
        ended: list[Document] = [
            {"$set": {**_UNLEASED, "fence": {"$add": ["$fence", 1]}, "listed_status": "$status"}}
        ]
        busy = {"terms": ALL_TERM, "listed_status": "busy", **_LISTED, **NO_LOG}
        self._records.update_all({**busy, "$nor": [{"$expr": _LEASED}]}, ended)

    def _end_unlisted(self) -> None:
        """Bring up to date what searches are to look at."""
        self.end_many_logs({"unlisted": True})

    # Describing

    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        fields = {**fields_of(described), "checksums": checksums}
        terms = thread_terms(
            seen.thread.owner,
            described.label,
            described.tags,
            described.metadata,
            seen.source_thread_id,
        )
        later = {"$max": [NOW, {"$add": ["$updated_at", 1]}, seen.updated_at + 1]}
        active = {"updated_at": later} if times is None else times._asdict()
        same = {
            **record_of(seen.thread),
            **SEEN,
            **fields_of(seen.described),
            "checksums": seen.checksums,
        }
        change: list[Document] = [
            {"$set": {name: {"$literal": value} for name, value in fields.items()}},
            {"$set": {"terms": {"$literal": terms}, **active, "unlisted": True}},
            {"$unset": "listed_values"},
        ]
        if times is None:
            return self._records.update(same, change)
        # What is in a log says when it was stored.
        return self.without_log(seen.thread, same, lambda its: self._records.update(its, change))

    # Leases

    def lease(
        self,
        thread: ThreadRef,
        holder: str,
        ttl: int,
        *,
        take_over: bool,
        waits: bool,
        rolls_back: bool = False,
    ) -> LeaseRow | None:
        living = {**record_of(thread), "deleted_at": None}
        name = {"$literal": holder}
        theirs = {"$eq": ["$lease_holder", name]}  # by a command sent twice
        is_next = {"$in": [{"$ifNull": [{"$first": _QUEUE_NAMES}, name]}, [name]]}
        is_free = {"$and": [{"$not": [_LEASED]}, is_next if waits else True]}
        free = [{"$expr": theirs}, {"$expr": is_free}]
        change: Document = {
            "fence": {"$cond": [theirs, "$fence", {"$add": ["$fence", 1]}]},
            "lease_since": NOW,
            "lease_until": {"$add": [NOW, ttl]},
            "lease_holder": name,
            "waiting": _queue_without(name),
            "unlisted": True,
        }
        if rolls_back:
            taken = {"$cond": [_LEASED, "$fence", None]}
            change["rollback_from"] = {"$ifNull": ["$rollback_from", taken]}
        leased = self.without_log(
            thread,
            living if take_over else {**living, "$or": free},
            lambda wanted: self._records.find_and_update(wanted, [{"$set": change}]),
        )
        if leased is not None:
            return _lease_row(leased)
        last = {"by": name, "until": {"$add": [NOW, ttl]}}
        kept = {"$cond": [{"$eq": ["$$this.by", name]}, last, "$$this"]}
        queued = {
            "$cond": [
                {"$in": [name, _QUEUE_NAMES]},
                {"$map": {"input": _QUEUE, "in": kept}},
                {"$concatArrays": [_QUEUE, [last]]},
            ]
        }
        queue = [{"$set": {"waiting": queued}}]
        if not (self._records.update(living, queue) if waits else self._records.exists(living)):
            raise Stale
        return None

    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        change = [{"$set": {"waiting": _queue_without({"$literal": holder})}}]
        self._records.update({**record_of(thread), "deleted_at": None}, change)

    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        held = {**record_of(thread), "fence": fence}
        self._records.update(held, {"$set": {"rollback_from": None}})

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        held = {**record_of(thread), "deleted_at": None, "fence": fence}
        renewed = {
            "lease_until": {"$max": ["$lease_until", {"$add": [NOW, ttl]}]},
            "unlisted": {"$cond": [_LEASED, "$unlisted", True]},  # it may be listed as ended
        }
        return self._records.update({**held, "lease_until": {"$gt": 0}}, [{"$set": renewed}])

    def release(self, thread: ThreadRef, fence: int) -> None:
        ended = {**_UNLEASED, "fence": fence + 1, "unlisted": True}
        self.without_log(
            thread,
            {**record_of(thread), "deleted_at": None, "fence": fence},
            lambda wanted: self._records.update(wanted, {"$set": ended}),
        )

    # What a thread takes

    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        rows = {"family": thread.family, "thread": thread.key}
        number = {"$sum": {"$cond": [{"$gt": ["$idx", RECEIPT]}, 1, 0]}}
        seen = {"$and": [{"$eq": ["$kind", "checkpoint"]}, {"$eq": ["$visible", True]}]}
        total = {
            "_id": None,
            "checkpoints": {"$sum": {"$cond": [seen, 1, 0]}},
            "writes": number,
            "runs": {"$addToSet": "$run_id"},
            "bytes": {"$sum": {"$bsonSize": "$$ROOT"}},
        }
        found = self._records.aggregate([{"$match": rows}, {"$group": total}])
        return Batch(
            [
                Usage(one["checkpoints"], one["writes"], frozenset(one["runs"]), one["bytes"])
                for one in found
            ],
            None,
        )

    def sizes(self, family: Any, digests: Collection[bytes]) -> int:
        size = 0
        for batch in in_batches(digests):
            ids = [chunk_id(family, digest) for digest in batch]
            total = {"$group": {"_id": None, "size": {"$sum": chunk_size()}}}
            found = self._records.aggregate(
                [{"$match": {"_id": {"$in": ids}, "family": family}}, total]
            )
            size += found[0]["size"] if found else 0
        return size


SEEN: Document = {"kind": "thread", "deleted_at": None, "provisional": False, "building": None}
_WITH_LEASE = {"$set": {"is_leased": _LEASED, "is_expired": _EXPIRED}}


def _queue_without(name: Document) -> Document:
    return {"$filter": {"input": _QUEUE, "cond": {"$ne": ["$$this.by", name]}}}


def _of(owner: str | None) -> Document:
    return {} if owner is None else {"owner": owner}


def _moment(walk: Any) -> Timestamp | None:
    return None if walk is None else Timestamp(*walk)


def _wanted(selection: ThreadQuery) -> Document:
    """Return the filter that selects threads."""
    conditions: list[Document] = [{"terms": term} for term in selection.terms]
    if selection.any_terms:
        conditions.append({"terms": {"$in": list(selection.any_terms)}})
    # With all of them, an index that has the status before the time is in order, too.
    conditions.append({"listed_status": {"$in": list(selection.statuses)}})
    conditions.append(_LISTED)
    conditions += (_compared(each) for each in selection.conditions if each.field != "status")
    if selection.after is not None:
        field, beyond = _SORTED[selection.sort_by], "$lt" if selection.descending else "$gt"
        place, thread_id = selection.after
        if field == "thread_id":
            conditions.append({"thread_id": {beyond: thread_id}})
        else:
            conditions.append({field: {f"{beyond}e": place}})
            same = {field: place, "thread_id": {beyond: thread_id}}
            conditions.append({"$or": [{field: {beyond: place}}, same]})
    return {"$and": conditions}


def _compared(condition: Condition) -> Document:
    """Return the filter for a condition on the record."""
    field, value = _SORTED.get(condition.field, condition.field), condition.value
    if condition.operator == "in":
        return {field: {"$in": list(value)}}
    if condition.operator != "contains":
        return {field: {_OPERATORS[condition.operator]: value}}
    is_text = {"$eq": [{"$type": f"${field}"}, "string"]}
    text = {"$cond": [is_text, f"${field}", ""]}
    return {"$expr": {"$gte": [{"$indexOfBytes": [text, {"$literal": value}]}, 0]}}


_OPERATORS = {">=": "$gte", "<": "$lt"}


def _lease_row(record: Document) -> LeaseRow:
    names = ("lease_holder", "lease_since", "lease_until", "fence", "rollback_from")
    return LeaseRow(*(record[name] for name in names))


def _listed(value: Any) -> tuple[str, ...]:
    """Return a list that is stored, and what no thread has if it was damaged."""
    return tuple(value) if isinstance(value, list) else (f"damaged: {value!r:.80}",)


def _thread_row(record: Document) -> ThreadRow:
    is_leased = record["is_leased"]
    is_shown = record["status"] != "idle" or record.get("value_terms") is not None
    return ThreadRow(
        thread_ref(record),
        record["thread_id"],
        Description(
            record["label"],
            _listed(record["tags"]),
            record["metadata"],
            record["ttl"],
            _listed(record["fixed_keys"]),
            record["on_expiry"],
        ),
        "busy" if is_leased else record["status"],
        record["created_at"],
        record["updated_at"],
        record["source"],
        record["parent_checkpoint_id"],
        record["checkpoint_count"],
        _lease_row(record) if is_leased else None,
        record["fence"],
        record["is_expired"],
        record["swept_at"] == record["updated_at"],
        record["state_updated_at"],
        record["status_for"] if is_shown else None,
        checksums=bytes_of(record, "checksums"),
        lineage=lineage_of(record),
    )
