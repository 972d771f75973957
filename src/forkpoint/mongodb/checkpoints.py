"""MongoDB: how checkpoints and their writes are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bson.objectid import ObjectId

from forkpoint.caches import ENTRY_BYTES, Cache
from forkpoint.errors import lost_checkpoint
from forkpoint.filters import may_contain_json
from forkpoint.mongodb.commands import MongoCommands, in_batches
from forkpoint.mongodb.documents import (
    ROWS,
    Document,
    bytes_of,
    checkpoint_row,
    record_of,
    rows_of,
    write_row,
)
from forkpoint.mongodb.known_threads import KnownThreads
from forkpoint.mongodb.log import STATE, Logs
from forkpoint.mongodb.pages import page_filters, page_order
from forkpoint.mongodb.pipelines import LIVING, join, joined_rows, named_record
from forkpoint.mongodb.thread_documents import IDENTITY, named_ref, said_in, thread_ref
from forkpoint.mongodb.turns import Turns
from forkpoint.storage import interface
from forkpoint.storage.interface import Stale
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

_NO_TERMS = {"terms": 0}
_OUTLINE = {"terms": 0, "refs": 0, "content": 0, "checksum": 0, "record": 0}
_THERE = {"$or": [{"visible": True}, {"hidden": True}]}
_STATE = {**IDENTITY, **dict.fromkeys(STATE, 1)}
_NEWEST: list[Document] = [{"$sort": {"checkpoint_id": -1}}, {"$limit": 1}]
_OF_RECORD = ("kind", "checksums", "source", *Description._fields)
_ANCESTORS = 50  # read at once
_SINCE = 1000  # rows after a checkpoint, at most, for which it counts as one of the newest


class MongoCheckpoints(interface.Checkpoints):
    """Reads checkpoints and writes.

    Args:
        commands: Those of the collection.
        logs: The logs of threads.
        known: Which threads ids meant.
        turns: What a turn has read.
    """

    def __init__(
        self, commands: MongoCommands, logs: Logs, known: KnownThreads, turns: Turns
    ) -> None:
        self._commands = commands
        self._logs = logs
        self._known = known
        self._turns = turns
        self._newest: Cache[tuple[ObjectId, str], str] = Cache(
            commands.budget, lambda place, newest: ENTRY_BYTES + len(place[1]) + len(newest)
        )

    def remember_newest(self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str) -> None:
        """Remember a checkpoint that has hardly any after it, so that these need not be sorted."""
        self._newest.put((thread.key, checkpoint_ns), checkpoint_id)

    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
    ) -> StoredCheckpoint | None:
        known = self._known.get(thread_id)
        if known is not None and owner in (None, known.owner):
            found = self._checkpoint_of(thread_id, known, checkpoint_ns, checkpoint_id)
            if found is not None:
                return found
        missed: str | None = None
        while True:
            found, lost = self._look_up(thread_id, checkpoint_ns, checkpoint_id, owner)
            if lost is None:
                return found
            if lost == missed:
                raise lost_checkpoint(thread_id, checkpoint_ns, lost)
            missed = lost  # somebody may have put it, or removed it, while this was read

    def _look_up(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, owner: str | None
    ) -> tuple[StoredCheckpoint | None, str | None]:
        """Return a checkpoint, and the id of one whose receipt alone is there, in its place."""
        wanted = {"kind": "checkpoint", "checkpoint_ns": checkpoint_ns, "visible": True}
        writes = {"kind": "write", "checkpoint_ns": checkpoint_ns, "visible": True}
        if checkpoint_id is not None:
            wanted["checkpoint_id"] = writes["checkpoint_id"] = checkpoint_id
        row = {"path": "$row", "preserveNullAndEmptyArrays": True}
        named = named_record(self._commands, thread_id, owner)
        begin = [*named, joined_rows(self._commands, "row", wanted, _NEWEST), {"$unwind": row}]
        fields = {**IDENTITY, "metadata": 1}
        end = [
            self._logs.newest_entry("record.log", "$home"),
            join(
                self._commands,
                "still",
                ("key", "_id"),
                {"deleted_at": None},
                [{"$project": _STATE}],
            ),
            {"$project": {"record": fields, "row": 1, "writes": 1, "newest": 1, "still": 1}},
        ]
        since = {"$ifNull": ["$row.checkpoint_id", ""]} if checkpoint_id is None else None
        with_writes = joined_rows(self._commands, "writes", writes, [], since=since)
        read = self._commands.aggregate_if_it_fits([*begin, with_writes, *end])
        if read is None:  # more writes than fit into one document
            read = self._commands.aggregate([*begin, *end])
        if not read:
            return None, None
        one = read[0]
        thread = named_ref(one["record"], thread_id)
        if [thread_ref(record) for record in one["still"]] != [thread]:
            raise Stale  # something was removed while this was read
        row_id = one["row"]["checkpoint_id"] if "row" in one else None
        lost = _receipt_without(row_id, one.get("writes", ()))
        if row_id is None or lost is not None:
            return None, lost
        self._known.remember(thread_id, thread)
        self._logs.look_at_tail(thread, one["still"][0], one["newest"])
        if checkpoint_id is None:
            self.remember_newest(thread, checkpoint_ns, row_id)
        its: list[Document] | None = one.get("writes")
        if its is not None:
            its = [write for write in its if write["checkpoint_id"] == row_id]
        found = self._found(thread_id, thread, one["row"], its)
        return found._replace(metadata=one["record"]["metadata"]), None

    def _checkpoint_of(
        self, thread_id: str, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str | None
    ) -> StoredCheckpoint | None:
        """Return what `checkpoint` does, if the thread and its newest are about what is remembered.

        With the thread's record, and the rows from there on, the server need not look for either.
        """
        since = checkpoint_id or self._newest.get((thread.key, checkpoint_ns))
        if since is None:
            return None
        same = {"_id": thread.key, "epoch": thread.epoch, "deleted_at": None}
        rows = {
            "thread": thread.key,
            "checkpoint_ns": checkpoint_ns,
            "kind": ROWS,
            "checkpoint_id": {"$gte": since} if checkpoint_id is None else checkpoint_id,
            "visible": True,
        }
        read = self._commands.find_together({"family": thread.family, "$or": [same, rows]}, _SINCE)
        kinds: dict[str, list[Document]] = {"thread": [], "checkpoint": [], "write": []}
        for one in read:
            kinds[one["kind"]].append(one)
        if not kinds["thread"] or not kinds["checkpoint"]:
            self._known.forget(thread_id)
            return None
        self._logs.look_at_tail(thread, kinds["thread"][0], read)
        row = max(kinds["checkpoint"], key=lambda one: str(one["checkpoint_id"]))
        if checkpoint_id is None:
            self.remember_newest(thread, checkpoint_ns, row["checkpoint_id"])
        if _receipt_without(row["checkpoint_id"], kinds["write"]) is not None:
            return None  # it is to be seen whether it was put or removed just now
        writes = [one for one in kinds["write"] if one["checkpoint_id"] == row["checkpoint_id"]]
        found = self._found(thread_id, thread, row, writes)
        return found._replace(metadata=kinds["thread"][0]["metadata"])

    def _found(
        self, thread_id: str, thread: ThreadRef, row: Document, writes: list[Document] | None
    ) -> StoredCheckpoint:
        found = StoredCheckpoint(thread_id, thread, checkpoint_row(row), [])
        if writes is None:
            self._add_writes([found])
        else:
            found.writes.extend(write_row(write) for write in writes)
        return found

    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        asked = query
        found: list[StoredCheckpoint] = []
        while len(found) < query.limit:
            rows = self._page(query)
            for one in rows:
                if "record" not in one:
                    continue  # its thread is being deleted, made as a copy, or somebody else's
                if query.filter and not may_contain_json(one["row"]["metadata"], query.filter):
                    continue  # two values had the same term
                thread = named_ref(one["record"], query.thread_id)
                row = checkpoint_row(one["row"])
                found.append(StoredCheckpoint(thread.thread_id, thread, row, []))
            if len(rows) < query.limit:
                break
            last = rows[-1]["row"]
            place = (last["checkpoint_id"], last["thread"], last["checkpoint_ns"])
            query = query._replace(after=place, offset=0)
        page = found[: query.limit]
        span = span_of(asked, page)
        lost = self._add_writes(page, span)
        return in_order(asked, page + lost) if lost else page

    def _page(self, query: CheckpointQuery) -> list[Document]:
        order = page_order(query)
        fields = {"$project": {"record": IDENTITY, "row": 1}}
        if query.thread_id is not None:
            return self._commands.aggregate([*self._page_of_thread(query, order), fields])
        limit: list[Document] = [{"$skip": query.offset}] if query.offset else []
        limit.append({"$limit": query.limit})
        seen = {**LIVING, **({"owner": query.owner} if query.owner is not None else {})}
        record = join(self._commands, "record", ("row.thread", "_id"), seen, family="$row.family")
        return self._commands.aggregate(
            [
                {"$match": page_filters(query)[0]},
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
            for conditions in page_filters(query)
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
        """Add the writes of checkpoints, and return those of a span that are lost."""
        places = {(f.thread.key, f.row.checkpoint_ns, f.row.checkpoint_id): f for f in page}
        if not places:
            return []
        ids: Document = {"$in": list({found.row.checkpoint_id for found in page})}
        if span is not None:
            ids = {"$gte": span.low, **({"$lte": span.high} if span.high is not None else {})}
        rows = self._commands.find(
            {
                "family": {"$in": list({found.thread.family for found in page})},
                "thread": {"$in": list({found.thread.key for found in page})},
                "checkpoint_ns": {"$in": list({found.row.checkpoint_ns for found in page})},
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
        shown = {"$or": [{"visible": True}, {"hidden": True}]}
        wanted = {**rows_of(thread, "checkpoint"), **shown}
        for found in self._commands.latest(wanted, _NO_TERMS):
            yield checkpoint_row(found)

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        read: dict[str, Document] = {}
        following: str | None = checkpoint_id
        while following is not None:
            if following not in read:
                wanted = {
                    **rows_of(thread, "checkpoint"),
                    "checkpoint_ns": checkpoint_ns,
                    "checkpoint_id": {"$lte": following},
                    "$or": [{"visible": True}, {"hidden": True}],
                }
                # Ancestors are older, as a rule, and not far.
                rows = self._commands.find(
                    wanted, _NO_TERMS, sort=[("checkpoint_id", -1)], limit=_ANCESTORS
                )
                read = {row["checkpoint_id"]: row for row in rows}
                if following not in read:
                    return
            found = checkpoint_row(read[following])
            yield found
            following = found.parent_checkpoint_id

    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        found = []
        for batch in in_batches(checkpoint_ids):
            wanted = {
                **rows_of(thread, "write"),
                "checkpoint_ns": checkpoint_ns,
                "checkpoint_id": {"$in": batch},
                "channel": {"$in": list(channels)},
                "visible": True,
            }
            found += self._commands.find(wanted)
        return [write_row(row) for row in found]

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
        found = self._commands.aggregate(
            [
                {"$match": record_of(thread)},
                {"$project": dict.fromkeys(_OF_RECORD, 1)},
                {"$unionWith": {**together, "pipeline": newest}},
                {"$unionWith": {**together, "pipeline": heads}},
            ]
        )
        (record,) = [one for one in found if one["kind"] == "thread"]
        return Moment(
            not any(one["kind"] == "newer" for one in found),
            [checkpoint_row(one) for one in found if one["kind"] == "checkpoint"],
            Description._make(said_in(record)),
            bytes_of(record, "checksums"),
            record["source"],
        )

    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        wanted = set(places)
        found = []
        for batch in in_batches(wanted):
            rows = {
                **rows_of(thread, "write"),
                "checkpoint_ns": {"$in": list({place[0] for place in batch})},
                "checkpoint_id": {"$in": list({place[1] for place in batch})},
                "visible": True,
            }
            found += [write_row(row) for row in self._commands.find(rows)]
        return [row for row in found if (row.checkpoint_ns, row.checkpoint_id) in wanted]

    def batch(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        rows = {**rows_of(thread, "checkpoint"), **_THERE}
        namespaces: list[Document] = [{}]
        if after is not None:
            checkpoint_ns, checkpoint_id = after
            rest = {"checkpoint_ns": checkpoint_ns, "checkpoint_id": {"$lt": checkpoint_id}}
            namespaces = [rest, {"checkpoint_ns": {"$gt": checkpoint_ns}}]
        found: list[Document] = []
        for namespace in namespaces:  # each is read in the order of the index
            found += self._commands.latest(
                {**rows, **namespace},
                {"terms": 0} if with_content else _OUTLINE,
                sort=[("checkpoint_ns", 1), ("checkpoint_id", -1)],
                limit=max(1, self._turns.turn_rows - len(found)),
            )
            if len(found) >= self._turns.turn_rows:
                break
        self._turns.count_read(len(found))
        last = found[-1] if len(found) >= self._turns.turn_rows else None
        following = None if last is None else (last["checkpoint_ns"], last["checkpoint_id"])
        made = checkpoint_row if with_content else _outline_row
        return Batch(list(map(made, found)), following)

    def since(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        rows: Document = rows_of(thread, "checkpoint")
        rows |= {"checkpoint_id": {"$gte": checkpoint_id}, "visible": True}
        found: list[Document] = []
        for namespace in ("", {"$gt": ""}):  # each has an index
            found += self._commands.latest({**rows, "checkpoint_ns": namespace}, _OUTLINE)
        return list(map(_outline_row, found))

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        rows = rows_of(thread, "checkpoint")
        found = self._commands.latest({**rows, "fence": within(fences)})
        return [(row["checkpoint_ns"], row["checkpoint_id"]) for row in found]

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
        found = self._commands.aggregate([{"$match": rows}, {"$group": total}])
        return Batch(
            [
                Usage(one["checkpoints"], one["writes"], frozenset(one["runs"]), one["bytes"])
                for one in found
            ],
            None,
        )


def _receipt_without(checkpoint_id: str | None, writes: Iterable[Document]) -> str | None:
    """Return which checkpoint other than this has a receipt among the writes that were read."""
    for write in writes:
        if write.get("idx") == RECEIPT and write["checkpoint_id"] != checkpoint_id:
            return str(write["checkpoint_id"])
    return None


def _outline_row(found: Document) -> CheckpointRow:
    """Return as much of a checkpoint as a choice may depend on."""
    return checkpoint_row({**found, **dict.fromkeys(("refs", "content", "checksum"), b"")})


def within(fences: range) -> Document:
    """Return the condition for a fence."""
    return {"$gte": fences.start, "$lt": fences.stop}
