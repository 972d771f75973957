"""MongoDB: how threads are searched.

A search sorts by `listed_at` and `listed_status`, which the first page of each search brings up to
date, and not each put: then a put changes no index. The other pages are read as of the moment of
the first, as long as the server keeps that: five minutes, unless it is told otherwise. A standalone
server keeps none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bson.decimal128 import Decimal128
from bson.objectid import ObjectId
from bson.timestamp import Timestamp

from forkpoint.errors import StorageFull, StorageReadOnly, StorageUnauthorized
from forkpoint.filters import ALL_TERM
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document, array_of
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.thread_documents import (
    EXPIRED,
    LEASED,
    NO_LOG,
    NOT_LEASED,
    VISIBLE,
    WITH_LEASE,
    thread_row,
)
from forkpoint.storage import interface
from forkpoint.storage.queries import Condition, ThreadQuery, ThreadRowPage
from forkpoint.storage.rows import ThreadRow

_LISTED = {"listed_at": {"$gt": 0}}  # without it, a partial index is not used
_STATUS_NOW = {"$cond": [LEASED, "busy", "$status"]}
_VALUE_TERMS, _LISTED_VALUES = array_of("$value_terms"), array_of("$listed_values")
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
_CAN_BE_LISTED = {
    field: {"$not": {"$type": "array"}} for field in ("status", "updated_at", "thread_id")
}
"""Of a record: that its place is none that no index takes, as that of a damaged one may be."""
_IS_TIME = {"$in": [{"$type": "$updated_at"}, ["int", "long", "double"]]}
_SORTED = {
    "updated_at": "listed_at",
    "status": "listed_status",
    "created_at": "created_at",
    "thread_id": "thread_id",
    "state_updated_at": "listed_state_at",
}


class MongoSearch(interface.Search):
    """Searches threads, and first brings the index up to date.

    Args:
        commands: Those of the collection.
        logs: The logs of threads, which a search ends.
    """

    def __init__(self, commands: MongoCommands, logs: Logs) -> None:
        self._commands = commands
        self._logs = logs
        self._may_write = True  # until the server says that the user may not write

    def page(self, query: ThreadQuery) -> ThreadRowPage:
        is_updated = query.after is not None or self._update_index_if_allowed()
        field = _SORTED[query.sort_by]
        direction = -1 if query.descending else 1
        sort = {field: direction, "thread_id": direction}
        fields = {"thread_id": 1, "family": 1, field: 1}
        limit = query.limit + 1
        if is_updated and self._may_write:
            documents, moment = self._commands.snapshots.find_at(
                _timestamp(query.snapshot), _filter_of(query), fields, sort, limit
            )
        else:
            page: list[Document] = [{"$sort": sort}, {"$limit": limit}, {"$project": fields}]
            documents, moment = self._commands.aggregate([*self._without_index(query), *page]), None
        is_last = len(documents) <= query.limit and not _may_be_cut(documents)
        documents = documents[: query.limit]
        rows = self._rows_of(documents)
        return ThreadRowPage(
            [rows.get(document["_id"]) for document in documents],
            [_place_of(document, field) for document in documents],
            None if moment is None else [moment.time, moment.inc],
            is_last,
        )

    def begin_snapshot(self) -> None:
        """Do nothing: the server keeps the past by itself."""

    def end_snapshot(self, snapshot: Any) -> None:
        """Do nothing: see `begin_snapshot`."""

    def count(self, query: ThreadQuery) -> int:
        if self._update_index_if_allowed():
            return self._commands.count(_filter_of(query)) - self._count_expired(query)
        alive = {"$match": {"$nor": [{"$expr": EXPIRED}]}}
        stages = [*self._without_index(query), alive, {"$count": "threads"}]
        counts = self._commands.aggregate(stages)
        return int(counts[0]["threads"]) if counts else 0

    def expired(
        self, after: tuple[int, Any] | None, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        self._end_logs_of_changed()
        now = self._commands.now()
        records: list[Document] = []
        oldest: list[Document] = [{"$sort": {"updated_at": 1, "_id": 1}}, {"$limit": limit}]
        for ttl in self._ttls():
            over: Document = {
                "ttl": ttl,
                "updated_at": {"$lte": now - ttl},
                **VISIBLE,
                **_owned_by(owner),
            }
            over["$expr"] = {"$and": [_IS_TIME, {"$ne": ["$swept_at", "$updated_at"]}]}
            if after is not None:
                since, key = after[0] - ttl, after[1]
                over["updated_at"]["$gte"] = since
                over["$or"] = [{"updated_at": {"$gt": since}}, {"_id": {"$gt": key}}]
            records += self._read([{"$match": over}, *oldest])
        records.sort(key=lambda record: (record["updated_at"] + record["ttl"], record["_id"]))
        return [thread_row(record) for record in records[:limit]]

    def larger_than(
        self, more_than: int, after: Any, limit: int, owner: str | None = None
    ) -> list[ThreadRow]:
        self._end_logs_of_changed()
        match: Document = {"checkpoint_count": {"$gt": more_than}, **VISIBLE, **_owned_by(owner)}
        # Only threads have such names.
        match["_id"] = {"$gt": after or ObjectId("0" * 24)}
        records = self._read([{"$match": match}, {"$sort": {"_id": 1}}, {"$limit": limit}])
        return [thread_row(record) for record in records]

    def _count_expired(self, query: ThreadQuery) -> int:
        """Return how many of the threads that match have expired."""
        ttls = self._ttls()
        now = self._commands.now() if ttls else 0
        over: list[Document] = [
            {
                "ttl": ttl,
                "updated_at": {"$lte": now - ttl},
                "on_expiry": "delete",
                "listed_status": {"$ne": "busy"},
            }
            for ttl in ttls
        ]
        listed = _filter_of(query)["$and"]
        return sum(self._commands.count({"$and": [*listed, each]}) for each in over)

    def _ttls(self) -> list[int]:
        ttls = self._commands.distinct("ttl", {"ttl": {"$gt": 0}})
        return [ttl for ttl in ttls if isinstance(ttl, int)]  # a damaged one is none

    def _rows_of(self, documents: Sequence[Document]) -> dict[Any, ThreadRow]:
        if not documents:
            return {}
        match = {
            "_id": {"$in": [document["_id"] for document in documents]},
            "family": {"$in": [document.get("family") for document in documents]},
            **VISIBLE,
        }
        return {
            document["_id"]: thread_row(document) for document in self._read([{"$match": match}])
        }

    def _read(self, stages: list[Document]) -> list[Document]:
        return self._commands.aggregate([*stages, *self._logs.up_to_date(), WITH_LEASE])

    def _update_index_if_allowed(self) -> bool:
        """Bring the index up to date, and return whether the user may do so."""
        if self._may_write:
            try:
                self._update_index()
            except (StorageReadOnly, StorageUnauthorized):
                self._may_write = False
            except StorageFull:
                return False
        return self._may_write

    def _without_index(self, query: ThreadQuery) -> list[Document]:
        """Return the stages that find threads where the index cannot be brought up to date.

        Those that changed since it was, and those whose lease may be over, are looked at one by
        one; the others are found through the index.
        """
        match = _filter_of(query)
        listed = {"unlisted": {"$ne": True}, "listed_status": {"$ne": "busy"}}
        busy = {"$and": [{"terms": ALL_TERM}, {"listed_status": "busy"}, _LISTED]}
        now: list[Document] = [
            *self._logs.up_to_date(),
            {"$set": {**_PLACE, "listed_status": _STATUS_NOW}},
            {"$match": match},
        ]
        changed: list[Document] = [
            {"$match": {"unlisted": True, **VISIBLE}},
            {"$match": {**busy, "unlisted": {"$ne": True}, **VISIBLE}},
        ]
        unions = [
            {"$unionWith": {"coll": self._commands.name, "pipeline": [match, *now]}}
            for match in changed
        ]
        return [{"$match": {**match, **listed}}, *unions]

    def _update_index(self) -> None:
        """Bring the index up to date."""
        self._end_logs_of_changed()
        still = {"$cond": [{"$eq": ["$log", None]}, "$$REMOVE", True]}
        listed: list[Document] = [
            {"$set": {**_PLACE, "listed_status": _STATUS_NOW, "unlisted": still}}
        ]
        self._commands.update_all({"unlisted": True, **VISIBLE, **_CAN_BE_LISTED}, listed)
        ended: list[Document] = [
            {"$set": {**NOT_LEASED, "fence": {"$add": ["$fence", 1]}, "listed_status": "$status"}}
        ]
        busy = {"terms": ALL_TERM, "listed_status": "busy", **_LISTED, **NO_LOG}
        self._commands.update_all({**busy, "$nor": [{"$expr": LEASED}]}, ended)

    def _end_logs_of_changed(self) -> None:
        """End the logs of all threads that changed since the index was brought up to date."""
        self._logs.end_many_logs({"unlisted": True})


def _owned_by(owner: str | None) -> Document:
    return {} if owner is None else {"owner": owner}


def _timestamp(snapshot: Any) -> Timestamp | None:
    return None if snapshot is None else Timestamp(*snapshot)


def _filter_of(query: ThreadQuery) -> Document:
    """Return the filter that selects threads."""
    conditions: list[Document] = [{"terms": term} for term in query.terms]
    if query.any_terms:
        conditions.append({"terms": {"$in": list(query.any_terms)}})
    # With all of them, an index that has the status before the time is in order, too.
    conditions.append({"listed_status": {"$in": list(query.statuses)}})
    conditions.append(_LISTED)
    conditions += (_compared(each) for each in query.conditions if each.field != "status")
    field = _SORTED[query.sort_by]
    if field in ("created_at", "listed_state_at"):
        conditions.append({field: {"$not": {"$type": "array"}}})  # it would be in several places
    if query.after is not None:
        beyond = "$lt" if query.descending else "$gt"
        place, thread_id = query.after
        if field == "thread_id":
            conditions.append({"thread_id": {beyond: thread_id}})
        else:
            conditions.append({field: {f"{beyond}e": place}})
            same = {field: place, "thread_id": {beyond: thread_id}}
            conditions.append({"$or": [{field: {beyond: place}}, same]})
    return {"$and": conditions}


def _place_of(document: Document, field: str) -> tuple[Any, str]:
    """Return the place of a thread; of a damaged one, a place with as much before and behind it.

    A condition compares a value with those of its own type only. In the order of an index, values
    of other types come before all of these, or behind all.
    """
    thread_id, place = document.get("thread_id"), document.get(field)
    if not isinstance(thread_id, str):
        thread_id = "" if thread_id is None or _is_number(thread_id) else _LAST_ID
    if field == "thread_id":
        place = thread_id
    elif field in _TIMES and (not _is_number(place) or place != place):  # or NaN
        place = -1 if place is None or _is_number(place) else 2**62
    return place, thread_id


def _may_be_cut(documents: Sequence[Document]) -> bool:
    """Return whether a page may be less than was asked for, as its ids are too long for one."""
    return sum(len(str(document.get("thread_id"))) for document in documents) > _CUT_CHARACTERS


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal128)) and not isinstance(value, bool)


_TIMES = ("listed_at", "listed_state_at", "created_at")
_CUT_CHARACTERS = 3_000_000  # of four bytes at most; an answer has 16 MB
_LAST_ID = "\U0010ffff"


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
