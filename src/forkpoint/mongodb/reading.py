"""MongoDB: how checkpoints, their writes and chunks, and threads are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from bson.objectid import ObjectId

from forkpoint.caches import ENTRY_BYTES, Cache, Recent, size_of_text
from forkpoint.encoding.codec import Chunk, Chunks
from forkpoint.errors import CorruptChunk, lost_checkpoint
from forkpoint.filters import may_contain_json
from forkpoint.mongodb.commands import (
    Document,
    Records,
    bytes_of,
    chunk_id,
    digest_of,
    family_of,
    in_batches,
    record_of,
)
from forkpoint.mongodb.documents import (
    ROWS,
    checkpoint_row,
    refs_in,
    refs_of,
    thread_record,
    write_row,
)
from forkpoint.mongodb.log import STATE
from forkpoint.mongodb.pages import page_filters, page_order
from forkpoint.mongodb.search import IDENTITY, MongoCatalog, said_in, thread_ref
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import CheckpointQuery, Span, in_order, span_of
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    FamilyMember,
    Moment,
    StoredCheckpoint,
    ThreadRef,
    WriteRow,
)

_LIVING = {"deleted_at": None, "building": None}
_NO_TERMS = {"terms": 0}
_STATE = {**IDENTITY, **dict.fromkeys(STATE, 1)}
_NEWEST: list[Document] = [{"$sort": {"checkpoint_id": -1}}, {"$limit": 1}]
_OF_RECORD = ("kind", "checksums", "source", *Description._fields)
_ANCESTORS = 50  # read at once
_SINCE = 1000  # rows after a checkpoint, at most, for which it counts as one of the newest
_REF_BYTES = 90  # what it takes to remember a ref
_CHUNK = {"refs": 1, "content": 1}


class MongoReading(MongoCatalog):
    """The primitives of `forkpoint.storage.interface.Session` that read."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._known: Cache[str, ThreadRef] = Cache(records.budget, size_of_text)
        self._newest: Cache[tuple[ObjectId, str], str] = Cache(
            records.budget, lambda place, newest: ENTRY_BYTES + len(place[1]) + len(newest)
        )
        self.made_after: Recent[ObjectId, Set[Any]] = Recent(4096)
        """The deletions of their ids before, of threads that were made here."""
        self._trees: Cache[bytes, list[bytes]] = Cache(
            records.budget, lambda _, below: ENTRY_BYTES + _REF_BYTES * len(below)
        )

    def remember(self, thread_id: str, thread: ThreadRef) -> None:
        """Remember which thread an id meant, so that it need not be looked for first."""
        self._known.put(thread_id, thread)

    def known(self, thread_id: str) -> ThreadRef | None:
        """Return which thread an id meant when it was last looked at."""
        return self._known.get(thread_id)

    def forget(self, thread_id: str) -> None:
        """Remember no longer which thread an id meant."""
        self._known.pop(thread_id)

    def remember_newest(self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str) -> None:
        """Remember a checkpoint that has hardly any after it, so that these need not be sorted."""
        self._newest.put((thread.key, checkpoint_ns), checkpoint_id)

    def remember_chunks(self, family: ObjectId, chunks: Chunks) -> None:
        """Remember what is below chunks, so that they can be read without being followed."""
        for digest, (refs, _) in chunks.items():
            self._trees.put(chunk_id(family, digest), refs_of(family, refs))

    def thread(self, thread_id: str) -> ThreadRef | None:
        found = self._records.aggregate(
            [
                *self._named(thread_id),
                {"$replaceWith": "$record"},
                {"$project": _STATE},
                self.newest_entry("log", "$family"),
            ]
        )
        if not found:
            self.forget(thread_id)
            return None
        thread = _named_ref(found[0], thread_id)
        self.look_at_tail(thread, found[0], found[0]["newest"])
        self.remember(thread_id, thread)
        return thread

    def checkpoint(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
    ) -> StoredCheckpoint | None:
        known = self.known(thread_id)
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
        named = self._named(thread_id, owner)
        begin = [*named, self._rows("row", wanted, _NEWEST), {"$unwind": row}]
        fields = {**IDENTITY, "metadata": 1}
        end = [
            self.newest_entry("record.log", "$home"),
            self._join("still", "key", "_id", {"deleted_at": None}, [{"$project": _STATE}]),
            {"$project": {"record": fields, "row": 1, "writes": 1, "newest": 1, "still": 1}},
        ]
        since = {"$ifNull": ["$row.checkpoint_id", ""]} if checkpoint_id is None else None
        with_writes = self._rows("writes", writes, [], since=since)
        read = self._records.aggregate_if_it_fits([*begin, with_writes, *end])
        if read is None:  # more writes than fit into one document
            read = self._records.aggregate([*begin, *end])
        if not read:
            return None, None
        one = read[0]
        thread = _named_ref(one["record"], thread_id)
        if [thread_ref(record) for record in one["still"]] != [thread]:
            raise Stale  # something was removed while this was read
        row_id = one["row"]["checkpoint_id"] if "row" in one else None
        lost = _receipt_without(row_id, one.get("writes", ()))
        if row_id is None or lost is not None:
            return None, lost
        self.remember(thread_id, thread)
        self.look_at_tail(thread, one["still"][0], one["newest"])
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
        read = self._records.find_together({"family": thread.family, "$or": [same, rows]}, _SINCE)
        kinds: dict[str, list[Document]] = {"thread": [], "checkpoint": [], "write": []}
        for one in read:
            kinds[one["kind"]].append(one)
        if not kinds["thread"] or not kinds["checkpoint"]:
            self.forget(thread_id)
            return None
        self.look_at_tail(thread, kinds["thread"][0], read)
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
                thread = _named_ref(one["record"], query.thread_id)
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
            return self._records.aggregate([*self._page_of_thread(query, order), fields])
        limit: list[Document] = [{"$skip": query.offset}] if query.offset else []
        limit.append({"$limit": query.limit})
        seen = {**_LIVING, **({"owner": query.owner} if query.owner is not None else {})}
        record = self._join("record", "row.thread", "_id", seen, [], "$row.family")
        return self._records.aggregate(
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
        named = self._named(query.thread_id)
        most = [order, {"$limit": query.offset + query.limit}, {"$project": _NO_TERMS}]
        first, *others = (
            [*named, self._rows("row", conditions, most), {"$unwind": "$row"}]
            for conditions in page_filters(query)
        )
        stages: list[Document] = [*first]
        for other in others:
            stages.append({"$unionWith": {"coll": self._records.name, "pipeline": other}})
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
        rows = self._records.find(
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

    def chunks(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        return self._chunks({family: digests}, follow)[family]

    def chunks_of(
        self, wanted: Mapping[Any, Collection[bytes]], *, follow: bool = True
    ) -> Mapping[Any, Mapping[bytes, Chunk]]:
        return self._chunks(wanted, follow=follow)

    def _chunks(
        self, wanted: Mapping[Any, Collection[bytes]], follow: bool
    ) -> dict[Any, dict[bytes, Chunk]]:
        ids = [chunk_id(family, digest) for family in wanted for digest in wanted[family]]
        families = {"$in": list(wanted)}
        found: list[Document] = []
        is_all = True
        if follow:
            ids, is_all = self._expanded(ids)
        if not is_all:
            found = self._closure(families, ids) or []
        if not found:  # too much for the server to follow, or the first one is missing
            for batch in in_batches(ids):
                found += self._records.find({"_id": {"$in": batch}, "family": families}, _CHUNK)
        chunks: dict[bytes, dict[bytes, Chunk]] = {family.binary: {} for family in wanted}
        for chunk in found:
            id_ = chunk["_id"]
            chunks[family_of(id_)][digest_of(id_)] = refs_in(chunk), chunk["content"]
        if not is_all:
            for family in wanted:
                self.remember_chunks(family, chunks[family.binary])
        return {family: chunks[family.binary] for family in wanted}

    def _expanded(self, ids: list[bytes]) -> tuple[list[bytes], bool]:
        """Return chunks and what is known to be below them, and whether that is everything."""
        found = dict.fromkeys(ids)
        waiting = ids
        is_all = True
        while waiting:
            below = [self._trees.get(id_) for id_ in waiting]
            is_all = is_all and None not in below
            waiting = [ref for refs in below for ref in refs or () if ref not in found]
            found.update(dict.fromkeys(waiting))
        return list(found), is_all

    def _closure(self, families: Document, ids: list[bytes]) -> list[Document] | None:
        """Return chunks and all that they lead to: trees of any height in one round trip."""
        follow = {
            "from": self._records.name,
            "startWith": {"$literal": ids},
            "connectFromField": "refs",
            "connectToField": "_id",
            "restrictSearchWithMatch": {"family": families},
            "as": "chunk",
        }
        return self._records.aggregate_if_it_fits(
            [
                {"$match": {"_id": ids[0], "family": families}},
                {"$project": {"_id": 1}},
                {"$graphLookup": follow},
                {"$unwind": "$chunk"},
                {"$replaceWith": "$chunk"},
                {"$project": _CHUNK},
            ]
        )

    def rows(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        shown = {"$or": [{"visible": True}, {"hidden": True}]}
        wanted = {"family": thread.family, "thread": thread.key, "kind": "checkpoint", **shown}
        for found in self._records.latest(wanted, _NO_TERMS):
            yield checkpoint_row(found)

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        read: dict[str, Document] = {}
        following: str | None = checkpoint_id
        while following is not None:
            if following not in read:
                wanted = {
                    "family": thread.family,
                    "thread": thread.key,
                    "checkpoint_ns": checkpoint_ns,
                    "kind": "checkpoint",
                    "checkpoint_id": {"$lte": following},
                    "$or": [{"visible": True}, {"hidden": True}],
                }
                # Ancestors are older, as a rule, and not far.
                rows = self._records.find(
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
                "family": thread.family,
                "thread": thread.key,
                "checkpoint_ns": checkpoint_ns,
                "kind": "write",
                "checkpoint_id": {"$in": batch},
                "channel": {"$in": list(channels)},
                "visible": True,
            }
            found += self._records.find(wanted)
        return [write_row(row) for row in found]

    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
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
        together = {"coll": self._records.name}
        found = self._records.aggregate(
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
                "family": thread.family,
                "thread": thread.key,
                "checkpoint_ns": {"$in": list({place[0] for place in batch})},
                "kind": "write",
                "checkpoint_id": {"$in": list({place[1] for place in batch})},
                "visible": True,
            }
            found += [write_row(row) for row in self._records.find(rows)]
        return [row for row in found if (row.checkpoint_ns, row.checkpoint_id) in wanted]

    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        follow = {
            "from": self._records.name,
            "startWith": "$_id",
            "connectFromField": "parent",
            "connectToField": "_id",
            "restrictSearchWithMatch": {"family": thread.family},
            "as": "record",
            "depthField": "height",
        }
        found = self._records.aggregate(
            [
                {"$match": record_of(thread)},
                {"$project": {"_id": 1}},
                {"$graphLookup": follow},
                {"$unwind": "$record"},
                {"$replaceWith": "$record"},
                {"$sort": {"height": 1}},
                *self.up_to_date(),
                *self._forked_from(thread.family),
            ]
        )
        return [thread_record(record) for record in found]

    def family(self, family: Any) -> list[FamilyMember]:
        wanted = {"family": family, "kind": "thread", "building": None, "thread_id": {"$ne": ""}}
        return [
            thread_record(record)
            for record in self._records.aggregate(
                [{"$match": wanted}, *self.up_to_date(), *self._forked_from(family)]
            )
        ]

    def _forked_from(self, family: Any) -> list[Document]:
        """Return the stages that find the metadata of the checkpoint a thread was forked from."""
        stages: list[Document] = []
        for name, key in (("own", "_id"), ("parents", "parent")):
            wanted = {
                "family": family,
                "kind": "checkpoint",
                "thread": {"$exists": True},  # the first thread has no parent to look for
                "checkpoint_ns": "",
                "$expr": {"$eq": ["$checkpoint_id", "$$forked"]},
            }
            stages.append(
                {
                    "$lookup": {
                        "from": self._records.name,
                        "localField": key,
                        "foreignField": "thread",
                        "let": {"forked": "$parent_checkpoint_id"},
                        "pipeline": [{"$match": wanted}, {"$project": {"metadata": 1}}],
                        "as": name,
                    }
                }
            )
        return stages

    def threads_of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        keys: dict[ObjectId, ObjectId] = {}
        for batch in in_batches(run_ids):
            for group in self._records.aggregate(
                [
                    {"$match": {"run_id": {"$in": batch}}},
                    {"$group": {"_id": {"thread": "$thread", "family": "$family"}}},
                ]
            ):
                keys[group["_id"]["thread"]] = group["_id"]["family"]
        wanted = {
            "_id": {"$in": list(keys)},
            "family": {"$in": list(set(keys.values()))},
            "deleted_at": None,
        }
        return [thread_ref(record) for record in self._records.find(wanted, IDENTITY)]

    # Pipelines: from the name of a thread to its record and its rows

    def _named(self, thread_id: str, owner: str | None = None) -> list[Document]:
        """Return the stages that find the record of a thread that is not deleted, and is theirs."""
        name = self._records.name_id(thread_id)
        seen = _LIVING if owner is None else {**_LIVING, "owner": owner}
        return [
            {"$match": {"_id": name, "family": name}},
            self._join("record", "key", "_id", seen, []),
            {"$unwind": "$record"},
        ]

    def _rows(
        self, name: str, wanted: Document, stages: Sequence[Document], since: Any = None
    ) -> Document:
        """Return the stage that finds rows of the thread, from a checkpoint on if given."""
        variables = {"home": "$home"} if since is None else {"home": "$home", "since": since}
        same: Document = {"$eq": ["$family", "$$home"]}
        if since is not None:
            same = {"$and": [same, {"$gte": ["$checkpoint_id", "$$since"]}]}
        return {
            "$lookup": {
                "from": self._records.name,
                "localField": "key",
                "foreignField": "thread",
                "let": variables,
                "pipeline": [{"$match": {"$expr": same, **wanted}}, *stages],
                "as": name,
            }
        }

    def _join(
        self,
        name: str,
        local: str,
        foreign: str,
        wanted: Document,
        stages: Sequence[Document],
        family: str = "$home",
    ) -> Document:
        same = {"$expr": {"$eq": ["$family", "$$home"]}}
        return {
            "$lookup": {
                "from": self._records.name,
                "localField": local,
                "foreignField": foreign,
                "let": {"home": family},
                "pipeline": [{"$match": {**same, **wanted}}, *stages],
                "as": name,
            }
        }


def _named_ref(record: Document, thread_id: str | None) -> ThreadRef:
    """Return which thread a record is that of, if it is that which an id means.

    Raises:
        CorruptChunk: It is another one: the document that says what the id means was changed.
    """
    thread = thread_ref(record)
    if thread_id not in (None, thread.thread_id):
        raise CorruptChunk(f"the record of thread {thread_id!r} is that of another thread")
    return thread


def _receipt_without(checkpoint_id: str | None, writes: Iterable[Document]) -> str | None:
    """Return which checkpoint other than this has a receipt among the writes that were read."""
    for write in writes:
        if write.get("idx") == RECEIPT and write["checkpoint_id"] != checkpoint_id:
            return str(write["checkpoint_id"])
    return None
