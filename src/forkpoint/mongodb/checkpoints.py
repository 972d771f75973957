"""MongoDB: how checkpoints and their writes are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from forkpoint.filters import may_contain_json, terms
from forkpoint.mongodb.commands import IN_ONE_COMMAND, MongoCommands
from forkpoint.mongodb.documents import (
    Document,
    bytes_of,
    checkpoint_row,
    record_of,
    rows_of,
    write_row,
)
from forkpoint.mongodb.lookup import Lookup
from forkpoint.mongodb.pipelines import LIVING, join, joined_rows, named_record
from forkpoint.mongodb.thread_documents import IDENTITY, description_in, named_ref
from forkpoint.mongodb.turns import Turns
from forkpoint.storage import interface
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import Batch, CheckpointQuery, Span, in_order, span_of
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    Moment,
    StoredCheckpoint,
    ThreadRef,
    Usage,
    WriteRow,
)
from forkpoint.storage.shared import ancestors_of, batches

_NO_TERMS = {"terms": 0}
_OUTLINE = {"terms": 0, "refs": 0, "content": 0, "checksum": 0, "record": 0}
_STORED = {"$or": [{"visible": True}, {"hidden": True}]}
_OF_RECORD = ("kind", "checksums", "source", *Description._fields)
_ANCESTORS = 50  # read at once


class MongoCheckpoints(interface.Checkpoints):
    """Reads checkpoints and writes.

    Args:
        commands: Those of the collection.
        lookup: Looks for a single checkpoint.
        turns: What a turn has read.
    """

    def __init__(self, commands: MongoCommands, lookup: Lookup, turns: Turns) -> None:
        self._commands = commands
        self._lookup = lookup
        self._turns = turns

    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
        *,
        with_chunks: bool = False,
    ) -> StoredCheckpoint | None:
        place = thread_id, checkpoint_ns, checkpoint_id
        return self._lookup.get(*place, owner, with_chunks=with_chunks)

    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        first_query = query
        checkpoints: list[StoredCheckpoint] = []
        while len(checkpoints) < query.limit:
            rows = self._page(query)
            for document in rows:
                if "record" not in document:
                    continue  # its thread is being deleted, made as a copy, or somebody else's
                if query.filter and not may_contain_json(document["row"]["metadata"], query.filter):
                    continue  # two values had the same term
                thread = named_ref(document["record"], query.thread_id)
                row = checkpoint_row(document["row"])
                checkpoints.append(StoredCheckpoint(thread.thread_id, thread, row, []))
            if len(rows) < query.limit:
                break
            last = rows[-1]["row"]
            place = (last["checkpoint_id"], last["thread"], last["checkpoint_ns"])
            query = query._replace(after=place, offset=0)
        page = checkpoints[: query.limit]
        span = span_of(first_query, page)
        lost = self._add_writes(page, span)
        return in_order(first_query, page + lost) if lost else page

    def _page(self, query: CheckpointQuery) -> list[Document]:
        order = _page_order(query)
        fields = {"$project": {"record": IDENTITY, "row": 1}}
        if query.thread_id is not None:
            return self._commands.aggregate([*self._page_of_thread(query, order), fields])
        limit: list[Document] = [{"$skip": query.offset}] if query.offset else []
        limit.append({"$limit": query.limit})
        seen = {**LIVING, **({"owner": query.owner} if query.owner is not None else {})}
        record = join(self._commands, "record", ("row.thread", "_id"), seen, family="$row.family")
        return self._commands.aggregate(
            [
                {"$match": _page_filters(query)[0]},
                order,
                *limit,  # here, for later stages read ahead
                {"$project": {"row": "$$ROOT"}},
                record,
                {"$unwind": {"path": "$record", "preserveNullAndEmptyArrays": True}},
                fields,
            ]
        )

    def _page_of_thread(self, query: CheckpointQuery, order: Document) -> list[Document]:
        assert query.thread_id is not None
        named = named_record(self._commands, query.thread_id)
        most = [order, {"$limit": query.offset + query.limit}, {"$project": _NO_TERMS}]
        first, *others = (
            [*named, joined_rows(self._commands, "row", conditions, most), {"$unwind": "$row"}]
            for conditions in _page_filters(query)
        )
        stages: list[Document] = [*first]
        for other in others:
            stages.append({"$unionWith": {"coll": self._commands.name, "pipeline": other}})
        if others:
            stages.append({"$sort": {f"row.{name}": way for name, way in order["$sort"].items()}})
        return [*stages, {"$skip": query.offset}, {"$limit": query.limit}]

    def _add_writes(
        self, page: list[StoredCheckpoint], span: Span | None = None
    ) -> list[StoredCheckpoint]:
        """Add their writes to checkpoints, and return the lost checkpoints of a span."""
        places = {
            (stored.thread.key, stored.row.checkpoint_ns, stored.row.checkpoint_id): stored
            for stored in page
        }
        if not places:
            return []
        ids: Document = {"$in": list({stored.row.checkpoint_id for stored in page})}
        if span is not None:
            ids = {"$gte": span.low, **({"$lte": span.high} if span.high is not None else {})}
        rows = self._commands.find(
            {
                "family": {"$in": list({stored.thread.family for stored in page})},
                "thread": {"$in": list({stored.thread.key for stored in page})},
                "checkpoint_ns": {"$in": list({stored.row.checkpoint_ns for stored in page})},
                "kind": "write",
                "checkpoint_id": ids,
                "visible": True,
            }
        )
        for row in rows:
            place = row["thread"], row["checkpoint_ns"], row["checkpoint_id"]
            if place in places:
                places[place].writes.append(write_row(row))
        return span.lost(page, map(write_row, rows)) if span is not None else []

    def all(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        match = {**rows_of(thread, "checkpoint"), **_STORED}
        return map(checkpoint_row, self._commands.latest(match, _NO_TERMS))

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        read: dict[str, Document] = {}

        def checkpoint(id_: str) -> CheckpointRow | None:
            nonlocal read
            if id_ not in read:
                match = {
                    **rows_of(thread, "checkpoint"),
                    "checkpoint_ns": checkpoint_ns,
                    "checkpoint_id": {"$lte": id_},
                    **_STORED,
                }
                # Ancestors are older, as a rule, and not far.
                newest = [("checkpoint_id", -1)]
                rows = self._commands.find(match, _NO_TERMS, sort=newest, limit=_ANCESTORS)
                read = {row["checkpoint_id"]: row for row in rows}
            return checkpoint_row(read[id_]) if id_ in read else None

        return ancestors_of(checkpoint, checkpoint_id)

    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        rows = []
        for batch in batches(checkpoint_ids, IN_ONE_COMMAND):
            match = {
                **rows_of(thread, "write"),
                "checkpoint_ns": checkpoint_ns,
                "checkpoint_id": {"$in": batch},
                "channel": {"$in": list(channels)},
                "visible": True,
            }
            rows += self._commands.find(match)
        return [write_row(row) for row in rows]

    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        rows = rows_of(thread, "checkpoint")
        newer = {**rows, "checkpoint_ns": "", "checkpoint_id": {"$gt": checkpoint_id}}
        group = {
            "_id": {
                "checkpoint_ns": "$checkpoint_ns",
                "is_before": {"$lt": ["$checkpoint_id", {"$literal": before}]},
            },
            "head": {"$first": "$$ROOT"},
        }
        heads = [
            {"$match": {**rows, "checkpoint_ns": {"$gt": ""}, "visible": True}},
            {"$sort": {"checkpoint_ns": 1, "checkpoint_id": -1}},
            {"$group": group},
            {"$replaceWith": "$head"},
            {"$project": _NO_TERMS},
        ]
        newest = [
            {"$match": {**newer, "visible": True}},
            {"$limit": 1},
            {"$project": {"kind": "newer"}},
        ]
        together = {"coll": self._commands.name}
        documents = self._commands.aggregate(
            [
                {"$match": record_of(thread)},
                {"$project": dict.fromkeys(_OF_RECORD, 1)},
                {"$unionWith": {**together, "pipeline": newest}},
                {"$unionWith": {**together, "pipeline": heads}},
            ]
        )
        (record,) = [row for row in documents if row["kind"] == "thread"]
        return Moment(
            not any(row["kind"] == "newer" for row in documents),
            [checkpoint_row(row) for row in documents if row["kind"] == "checkpoint"],
            Description._make(description_in(record)),
            bytes_of(record, "checksums"),
            record["source"],
        )

    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        chosen = set(places)
        rows = []
        for batch in batches(chosen, IN_ONE_COMMAND):
            match = {
                **rows_of(thread, "write"),
                "checkpoint_ns": {"$in": list({place[0] for place in batch})},
                "checkpoint_id": {"$in": list({place[1] for place in batch})},
                "visible": True,
            }
            rows += [write_row(row) for row in self._commands.find(match)]
        return [row for row in rows if (row.checkpoint_ns, row.checkpoint_id) in chosen]

    def batch(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        rows = {**rows_of(thread, "checkpoint"), **_STORED}
        namespaces: list[Document] = [{}]
        if after is not None:
            checkpoint_ns, checkpoint_id = after
            rest = {"checkpoint_ns": checkpoint_ns, "checkpoint_id": {"$lt": checkpoint_id}}
            namespaces = [rest, {"checkpoint_ns": {"$gt": checkpoint_ns}}]
        documents: list[Document] = []
        for namespace in namespaces:  # each is read in the order of the index
            documents += self._commands.latest(
                {**rows, **namespace},
                {"terms": 0} if with_content else _OUTLINE,
                sort=[("checkpoint_ns", 1), ("checkpoint_id", -1)],
                limit=max(1, self._turns.turn_rows - len(documents)),
            )
            if len(documents) >= self._turns.turn_rows:
                break
        self._turns.count_read(len(documents))
        last = documents[-1] if len(documents) >= self._turns.turn_rows else None
        following = None if last is None else (last["checkpoint_ns"], last["checkpoint_id"])
        made = checkpoint_row if with_content else _outline_row
        return Batch(list(map(made, documents)), following)

    def since(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        rows: Document = rows_of(thread, "checkpoint")
        rows |= {"checkpoint_id": {"$gte": checkpoint_id}, "visible": True}
        documents: list[Document] = []
        for namespace in ("", {"$gt": ""}):  # each has an index
            documents += self._commands.latest({**rows, "checkpoint_ns": namespace}, _OUTLINE)
        return list(map(_outline_row, documents))

    def older(self, thread: ThreadRef, checkpoint_id: str, limit: int) -> list[str]:
        rows: Document = rows_of(thread, "checkpoint")
        rows |= {"checkpoint_ns": "", "checkpoint_id": {"$lt": checkpoint_id}, "visible": True}
        newest = [("checkpoint_id", -1)]
        documents = self._commands.latest(rows, {"checkpoint_id": 1}, sort=newest, limit=limit)
        return [row["checkpoint_id"] for row in documents]

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        rows = rows_of(thread, "checkpoint")
        documents = self._commands.latest({**rows, "fence": fence_range(fences)})
        return [(row["checkpoint_ns"], row["checkpoint_id"]) for row in documents]

    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        rows = {"family": thread.family, "thread": thread.key}
        number = {"$sum": {"$cond": [{"$gt": ["$idx", RECEIPT]}, 1, 0]}}
        seen = {"$and": [{"$eq": ["$kind", "checkpoint"]}, {"$eq": ["$visible", True]}]}
        sums = {
            "_id": None,
            "checkpoints": {"$sum": {"$cond": [seen, 1, 0]}},
            "writes": number,
            "runs": {"$addToSet": "$run_id"},
            "bytes": {"$sum": {"$bsonSize": "$$ROOT"}},
        }
        documents = self._commands.aggregate([{"$match": rows}, {"$group": sums}])
        return Batch(
            [
                Usage(
                    sums["checkpoints"],
                    sums["writes"],
                    frozenset(run for run in sums["runs"] if isinstance(run, str)),
                    sums["bytes"],
                )
                for sums in documents
            ],
            None,
        )


def _outline_row(document: Document) -> CheckpointRow:
    """Return a checkpoint without its values: as much as is needed to choose what to remove."""
    return checkpoint_row({**document, **dict.fromkeys(("refs", "content", "checksum"), b"")})


def fence_range(fences: range) -> Document:
    """Return the condition that a fence is in a range."""
    return {"$gte": fences.start, "$lt": fences.stop}


# Pages: which rows one is of, in the order of an index


def _page_filters(query: CheckpointQuery) -> list[Document]:
    """Return the filters of a listing, one for each index that has a part of it in order.

    A thread's checkpoints in all namespaces are in two indexes: those of the graph itself in that
    of the places, and those of subgraphs in one of their own.
    """
    conditions = _conditions(query)
    if not query.is_of_all_namespaces:
        return [conditions]
    return [{**conditions, "checkpoint_ns": namespace} for namespace in ("", {"$gt": ""})]


def _page_order(query: CheckpointQuery) -> Document:
    """Return the stage that sorts the rows of a listing."""
    return {"$sort": dict.fromkeys(query.order, 1 if query.oldest_first else -1)}


def _conditions(query: CheckpointQuery) -> Document:
    conditions: Document = {"kind": "checkpoint", "visible": True}
    if query.with_hidden:
        conditions = {"kind": "checkpoint", "$and": [_STORED]}
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
    if query.filter and (terms_of_filter := sorted(terms(query.filter))):
        conditions["terms"] = {"$all": terms_of_filter}
    return conditions


def _after(passed: dict[str, Any], after: str) -> list[Document]:
    """Return conditions of which exactly one holds for each row after a place."""
    fields = list(passed.items())
    return [
        {**dict(fields[:length]), field: {after: value}}
        for length, (field, value) in enumerate(fields)
    ]
