"""MongoDB: the documents of rows, and the commands of each primitive.

There are no transactions. What must happen together happens in one bulk of statements, in order,
that begins with one on the record of the thread: an upsert, whose filter says how the record must
be. If it is not so, the upsert collides with the record's own `_id`, and the bulk ends there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bson.objectid import ObjectId
from pymongo import UpdateMany, UpdateOne

from forkpoint import removal
from forkpoint.codec import Chunk, Chunks, split_refs
from forkpoint.errors import StorageBusy, ThreadExists
from forkpoint.filters import contains_json, terms
from forkpoint.memory import Recent
from forkpoint.mongodb_catalog import (
    IDENTITY,
    MongoCatalog,
    fields_of,
    new_record,
    terms_of,
    thread_ref,
)
from forkpoint.mongodb_records import (
    DIGEST_BYTES,
    NOW,
    Document,
    Outcome,
    Records,
    Statement,
    chunk_id,
    chunk_size,
    chunks_of,
    digest_of,
    family_of,
    in_batches,
    name_id,
    record_of,
    row_id,
    rows_of,
)
from forkpoint.removal import INTERRUPT_IDX, NULL_TASK_ID, RESUME_IDX, Place, Plan
from forkpoint.storage import (
    CheckpointRow,
    Choose,
    Counts,
    Description,
    Found,
    Graft,
    Moment,
    Query,
    Stale,
    ThreadRecord,
    ThreadRef,
    ThreadRow,
    WriteRow,
)

LOCK_SECONDS = 5
"""How long a removal or a copy keeps others out of a thread if its process ends in the middle."""

_ROWS = {"$in": ["checkpoint", "write"]}
_LIVING = {"deleted_at": None, "building": None}
_LOCK_PAUSE_SECONDS = 0.005
_EXPIRED = {"$lt": ["$lock.until", "$$NOW"]}
_COPIED_TOO_LONG = "copying took too long, and others have written since; try again"


# Documents


def checkpoint_document(thread: ThreadRef, row: CheckpointRow) -> tuple[Document, Document]:
    """Return where a checkpoint is, and what it says there."""
    place = {
        "kind": "checkpoint",
        "thread": thread.key,
        "checkpoint_ns": row.checkpoint_ns,
        "checkpoint_id": row.checkpoint_id,
    }
    said: Document = {
        "parent_checkpoint_id": row.parent_checkpoint_id,
        "metadata": row.metadata,
        "terms": sorted(terms(row.metadata)),
        "refs": row.refs,
        "content": row.content,
        "seal": row.seal,
    }
    if row.run_id is not None:
        said["run_id"] = row.run_id
    return place, said


def write_document(thread: ThreadRef, row: WriteRow) -> tuple[Document, Document]:
    """Return where a write is, and what it says there."""
    place = {
        "kind": "write",
        "thread": thread.key,
        "checkpoint_ns": row.checkpoint_ns,
        "checkpoint_id": row.checkpoint_id,
        "task_id": row.task_id,
        "idx": row.idx,
    }
    said = {
        "task_path": row.task_path,
        "channel": row.channel,
        "refs": row.refs,
        "content": row.content,
        "seal": row.seal,
    }
    return place, said


def _checkpoint_row(found: Document) -> CheckpointRow:
    return CheckpointRow(
        found["checkpoint_ns"],
        found["checkpoint_id"],
        found["parent_checkpoint_id"],
        found.get("run_id"),
        found["metadata"],
        found["refs"],
        found["content"],
        found["seal"],
        found.get("hidden", False),
    )


def _write_row(found: Document) -> WriteRow:
    return WriteRow(*(found[field] for field in WriteRow._fields))


_NO_TERMS = {"terms": 0}
_NEWEST: list[Document] = [{"$sort": {"checkpoint_id": -1}}, {"$limit": 1}]


class MongoSession(MongoCatalog):
    """The primitives of `forkpoint.storage.Session`, each atomic by itself."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._known: Recent[str, ThreadRef] = Recent(4096)
        self._trees: Recent[bytes, list[bytes]] = Recent(_TREES)

    def remember(self, thread_id: str, thread: ThreadRef) -> None:
        """Remember which thread an id meant, so that it need not be looked for first."""
        self._known.put(thread_id, thread)

    def remember_chunks(self, family: ObjectId, chunks: Chunks) -> None:
        """Remember what is below chunks, so that they can be read without being followed."""
        for digest, (refs, _) in chunks.items():
            self._trees.put(chunk_id(family, digest), refs_of(family, refs))

    # Reading

    def thread(self, thread_id: str) -> ThreadRef | None:
        found = self._records.aggregate(
            [*self._named(thread_id), {"$replaceWith": "$record"}, {"$project": IDENTITY}]
        )
        if not found:
            return None
        thread = thread_ref(found[0])
        self.remember(thread_id, thread)
        return thread

    def checkpoint(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None
    ) -> Found | None:
        known = self._known.get(thread_id)
        if known is not None:
            found = self._checkpoint_of(thread_id, known, checkpoint_ns, checkpoint_id)
            if found is not None:
                return found
        wanted = {"kind": "checkpoint", "checkpoint_ns": checkpoint_ns, "visible": True}
        if checkpoint_id is not None:
            wanted["checkpoint_id"] = checkpoint_id
        writes = {"kind": "write", "checkpoint_ns": checkpoint_ns, "visible": True}
        begin = [*self._named(thread_id), self._rows("row", wanted, _NEWEST), {"$unwind": "$row"}]
        end = [
            self._join("still", "key", "_id", {"deleted_at": None}, [{"$project": IDENTITY}]),
            {"$project": {"record": IDENTITY, "row": 1, "writes": 1, "still": 1}},
        ]
        with_writes = self._rows("writes", writes, [], at="$row.checkpoint_id")
        read = self._records.aggregate_if_it_fits([*begin, with_writes, *end])
        if read is None:  # more writes than fit into one document
            read = self._records.aggregate([*begin, *end])
        if not read:
            return None
        one = read[0]
        thread = thread_ref(one["record"])
        if [thread_ref(record) for record in one["still"]] != [thread]:
            raise Stale  # something was removed while this was read
        self.remember(thread_id, thread)
        return self._found(thread_id, thread, one["row"], one.get("writes"))

    def _checkpoint_of(
        self, thread_id: str, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str | None
    ) -> Found | None:
        """Return what `checkpoint` does, if the thread is still the one that is remembered.

        Since its epoch is still the same, nothing was removed in between.
        """
        place = {"family": thread.family, "thread": thread.key, "checkpoint_ns": checkpoint_ns}
        wanted = {**place, "kind": "checkpoint", "visible": True}
        if checkpoint_id is not None:
            wanted["checkpoint_id"] = checkpoint_id
        writes = {
            "from": self._records.name,
            "let": {"at": "$checkpoint_id"},
            "pipeline": [
                {
                    "$match": {
                        **place,
                        "kind": "write",
                        "visible": True,
                        "$expr": {"$eq": ["$checkpoint_id", "$$at"]},
                    }
                }
            ],
            "as": "writes",
        }
        same = {**record_of(thread), "epoch": thread.epoch, "deleted_at": None}
        record = [{"$match": same}, {"$project": {"kind": 1}}]
        read = self._records.aggregate_if_it_fits(
            [
                {"$match": wanted},
                *_NEWEST,
                {"$lookup": writes},
                {"$unionWith": {"coll": self._records.name, "pipeline": record}},
            ]
        )
        if read is None or len(read) != 2:
            self._known.pop(thread_id)
            return None
        return self._found(thread_id, thread, read[0], read[0]["writes"])

    def _found(
        self, thread_id: str, thread: ThreadRef, row: Document, writes: list[Document] | None
    ) -> Found:
        found = Found(thread_id, thread, _checkpoint_row(row), [])
        if writes is None:
            self._add_writes([found])
        else:
            found.writes.extend(_write_row(write) for write in writes)
        return found

    def page(self, query: Query) -> list[Found]:
        found: list[Found] = []
        while len(found) < query.limit:
            rows = self._page(query)
            for one in rows:
                if "record" not in one:
                    continue  # its thread is being deleted, made as a copy, or somebody else's
                if query.filter and not contains_json(one["row"]["metadata"], query.filter):
                    continue  # two values had the same term
                thread = thread_ref(one["record"])
                row = _checkpoint_row(one["row"])
                found.append(Found(one["record"]["thread_id"], thread, row, []))
            if len(rows) < query.limit:
                break
            last = rows[-1]["row"]
            place = (last["checkpoint_id"], last["thread"], last["checkpoint_ns"])
            query = query._replace(after=place, offset=0)
        page = found[: query.limit]
        self._add_writes(page)
        return page

    def _page(self, query: Query) -> list[Document]:
        wanted: Document = {"kind": "checkpoint", "visible": True}
        if query.with_hidden:
            wanted = {"kind": "checkpoint", "content": {"$exists": True}, "doomed": None}
        if query.checkpoint_ns is not None:
            wanted["checkpoint_ns"] = query.checkpoint_ns
        ids: Document = {"$gte": ""}  # any; without it, a partial index is not used
        if query.checkpoint_id is not None:
            ids["$eq"] = query.checkpoint_id
        if query.before is not None:
            ids["$lt"] = query.before
        after, direction = ("$gt", 1) if query.oldest_first else ("$lt", -1)
        if query.after is not None:
            checkpoint_id, key, checkpoint_ns = query.after
            ids[f"{after}e"] = checkpoint_id
            same = {"checkpoint_id": checkpoint_id}
            wanted["$or"] = [
                {"checkpoint_id": {after: checkpoint_id}},
                {**same, "thread": {after: key}},
                {**same, "thread": key, "checkpoint_ns": {after: checkpoint_ns}},
            ]
        wanted["checkpoint_id"] = ids
        if query.filter:
            wanted_terms = sorted(terms(query.filter))
            if wanted_terms:
                wanted["terms"] = {"$all": wanted_terms}
        order = {
            "$sort": {
                "checkpoint_id": direction,
                "thread": direction,
                "checkpoint_ns": direction,
            }
        }
        limit = [{"$skip": query.offset}] if query.offset else []
        limit.append({"$limit": query.limit})
        fields = {"$project": {"record": {**IDENTITY, "thread_id": 1}, "row": 1}}
        if query.thread_id is not None:
            return self._records.aggregate(
                [
                    *self._named(query.thread_id),
                    self._rows("row", wanted, [order, *limit, {"$project": _NO_TERMS}]),
                    {"$unwind": "$row"},
                    fields,
                ]
            )
        seen = {**_LIVING, **({"owner": query.owner} if query.owner is not None else {})}
        record = self._join("record", "row.thread", "_id", seen, [], "$row.family")
        return self._records.aggregate(
            [
                {"$match": wanted},
                order,
                *limit,  # here, for later stages read ahead
                {"$project": {"row": "$$ROOT"}},
                record,
                {"$unwind": {"path": "$record", "preserveNullAndEmptyArrays": True}},
                fields,
            ]
        )

    def _add_writes(self, page: list[Found]) -> None:
        places = {(f.thread.key, f.row.checkpoint_ns, f.row.checkpoint_id): f for f in page}
        if not places:
            return
        rows = self._records.find(
            {
                "family": {"$in": list({found.thread.family for found in page})},
                "thread": {"$in": list({found.thread.key for found in page})},
                "checkpoint_ns": {"$in": list({found.row.checkpoint_ns for found in page})},
                "kind": "write",
                "checkpoint_id": {"$in": list({found.row.checkpoint_id for found in page})},
                "visible": True,
            }
        )
        for row in rows:
            place = row["thread"], row["checkpoint_ns"], row["checkpoint_id"]
            if place in places:
                places[place].writes.append(_write_row(row))

    def chunks(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        return self._chunks({family: digests}, follow)[family]

    def chunks_of(
        self, wanted: Mapping[Any, Collection[bytes]]
    ) -> Mapping[Any, Mapping[bytes, Chunk]]:
        return self._chunks(wanted, follow=True)

    def _chunks(
        self, wanted: Mapping[Any, Collection[bytes]], follow: bool
    ) -> dict[Any, dict[bytes, Chunk]]:
        ids = [chunk_id(family, digest) for family in wanted for digest in wanted[family]]
        families = {"$in": list(wanted)}
        found: list[Document] = []
        if follow:
            ids, is_all = self._expanded(ids)
            if not is_all:
                found = self._closure(families, ids) or []
        if not found:  # too much for the server to follow, or the first one is missing
            for batch in in_batches(ids):
                found += self._records.find({"_id": {"$in": batch}, "family": families}, _CHUNK)
        chunks: dict[Any, dict[bytes, Chunk]] = {family: {} for family in wanted}
        for chunk in found:
            id_ = chunk["_id"]
            if self._trees.get(id_) is None:
                self._trees.put(id_, chunk.get("refs", []))
            chunks[family_of(id_)][digest_of(id_)] = _refs(chunk), chunk["content"]
        return chunks

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
            yield _checkpoint_row(found)

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
            found = _checkpoint_row(read[following])
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
        return [_write_row(row) for row in found]

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
                {"$project": {"kind": 1, "metadata": 1, "owner": 1}},
                {"$unionWith": {**together, "pipeline": newest}},
                {"$unionWith": {**together, "pipeline": heads}},
            ]
        )
        (record,) = [one for one in found if one["kind"] == "thread"]
        return Moment(
            not any(one["kind"] == "newer" for one in found),
            [_checkpoint_row(one) for one in found if one["kind"] == "checkpoint"],
            record["metadata"],
            record["owner"],
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
            found += [_write_row(row) for row in self._records.find(rows)]
        return [row for row in found if (row.checkpoint_ns, row.checkpoint_id) in wanted]

    def lineage(self, thread: ThreadRef) -> list[ThreadRecord]:
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
                *self._forked_from(thread.family),
            ]
        )
        return [_thread_record(record) for record in found]

    def family(self, family: Any) -> list[ThreadRecord]:
        wanted = {"family": family, "kind": "thread", "building": None, "provisional": False}
        return [
            _thread_record(record)
            for record in self._records.aggregate([{"$match": wanted}, *self._forked_from(family)])
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

    def _named(self, thread_id: str) -> list[Document]:
        """Return the stages that find the record of a thread that is not deleted."""
        name = name_id(thread_id)
        return [
            {"$match": {"_id": name, "family": name}},
            self._join("record", "key", "_id", _LIVING, []),
            {"$unwind": "$record"},
        ]

    def _rows(
        self, name: str, wanted: Document, stages: Sequence[Document], at: str | None = None
    ) -> Document:
        """Return the stage that finds rows of the thread, of the checkpoint `at` if given."""
        variables = {"home": "$home"} if at is None else {"home": "$home", "at": at}
        same: Document = {"$eq": ["$family", "$$home"]}
        if at is not None:
            same = {"$and": [same, {"$eq": ["$checkpoint_id", "$$at"]}]}
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

    # Writing

    def graft(self, graft: Graft) -> None:
        source = graft.source
        old = self._deleted_before(graft.target_id)
        target = ThreadRef(ObjectId(), source.family, source.epoch)
        described = graft.described or Description(metadata=graft.metadata)
        made = new_record(
            graft.target_id,
            source.epoch,
            **record_of(target),
            edge=graft.edge,
            parent=source.key,
            parent_checkpoint_id=graft.parent_checkpoint_id,
            source=graft.source_id,
            owner=graft.owner,
            **fields_of(described),
            status=graft.status,
            status_for=max((row.checkpoint_id for row in graft.rows), default=""),
            checkpoint_count=sum(not row.hidden for row in graft.rows),
            provisional=False,
            dead_until=old["dead_until"] if old else None,
            building=ObjectId(),
        )
        unchanged = UpdateOne(
            {**record_of(source), "epoch": source.epoch, "deleted_at": None, "lock": None},
            {"$set": {"kind": "thread"}},
            upsert=True,
        )
        statements = [
            unchanged,
            UpdateOne(record_of(target), {"$setOnInsert": made}, upsert=True),
            *(chunk_statement(source, digest, *chunk) for digest, chunk in graft.chunks.items()),
            *(_grafted(target, *checkpoint_document(target, row), row) for row in graft.rows),
            *(_grafted(target, *write_document(target, row), row) for row in graft.writes),
            unchanged,
            _name(target, graft.target_id, old),
            _show(target, made["building"]),
        ]
        outcome = self._records.bulk(statements)
        if outcome.hits < len(statements) and not self._is_shown(
            {**record_of(target), **made}, old
        ):
            self._discard(target)
            if outcome.error is not None:
                raise outcome.error
            if outcome.failed == len(statements) - 2:
                raise ThreadExists(f"there is a thread {graft.target_id!r} already")
            self.await_unlocked(source)
            raise Stale

    def add(self, thread_id: str, owner: str | None, described: Description) -> bool:
        try:
            old = self._deleted_before(thread_id)
        except ThreadExists:
            return self._adopt(thread_id, owner, described)
        key = ObjectId()
        target = ThreadRef(key, key, ObjectId())
        made = new_record(
            thread_id,
            target.epoch,
            **record_of(target),
            owner=owner,
            **fields_of(described),
            provisional=False,
            dead_until=old["dead_until"] if old else None,
            building=ObjectId(),
        )
        statements = [
            UpdateOne(record_of(target), {"$setOnInsert": made}, upsert=True),
            _name(target, thread_id, old),
            _show(target, made["building"]),
        ]
        outcome = self._records.bulk(statements)
        if outcome.hits == len(statements) or self._is_shown(made, old):
            return True
        self._discard(target)
        return False

    def _adopt(self, thread_id: str, owner: str | None, described: Description) -> bool:
        """Describe a thread that has writes, but no checkpoint yet, if that is what an id means."""
        thread = self.thread(thread_id)
        if thread is None or thread.owner != owner:
            return False
        fields = {**fields_of(described), "owner": owner, "source": None}
        made = {**fields, "terms": terms_of(fields), "provisional": False, "unlisted": True}
        new = {**record_of(thread), "provisional": True, "deleted_at": None}
        return self._records.update(new, {"$set": made})

    def _is_shown(self, made: Document, old: Document | None) -> bool:
        """Return whether a copy can be seen although the command for it was not done in full.

        If not, its id means again what it meant before.
        """
        target = ThreadRef(made["_id"], made["family"], made["epoch"])
        name = name_id(made["thread_id"])
        named = {"_id": name, "family": name, "key": target.key}
        if not self._records.exists(named):
            return False
        # By a command whose answer was lost, and which may have ended in between.
        self._records.bulk([_show(target, made["building"])])
        if self._records.exists({**record_of(target), "building": None}):
            return True
        if old is None:
            self._records.delete(named)
        else:
            self._records.update(named, {"$set": {"key": old["_id"], "home": old["family"]}})
        return False

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        try:
            # A new epoch: who counts on what the thread stores now has to look again.
            with self._locked(thread, {"epoch": ObjectId()}) as guard:
                rows = list(self.rows(thread))
                plan = choose(rows)
                outcome = self._doom(thread, rows, plan, guard)
                counts = self._delete_rows(thread, {"doomed": True})
                seen = {(row.checkpoint_ns, row.checkpoint_id) for row in rows if not row.hidden}
                head = removal.newest(seen - plan.removed - plan.hidden)
                if plan.reopened or head != removal.newest(seen):
                    self._update_status(thread, head)
            if outcome.is_repeated:
                self.count_again(thread)
            return counts
        except Stale:
            return Counts(0, 0)  # the thread is deleted, and with it what was to go

    def _doom(
        self, thread: ThreadRef, rows: Sequence[CheckpointRow], plan: Plan, guard: UpdateOne
    ) -> Outcome:
        """Take out of sight what is to be removed or hidden."""
        going = plan.removed | plan.hidden
        gone = sum(
            (row.checkpoint_ns, row.checkpoint_id) in going for row in rows if not row.hidden
        )
        # Not counted again: a checkpoint that the record counts already may be about to arrive.
        left = {"$subtract": ["$checkpoint_count", gone]}
        touched: Document = {"checkpoint_count": left, "unlisted": True, "removed_at": NOW}
        if plan.reopened:
            touched["updated_at"] = {"$max": ["$updated_at", NOW]}
        statements: list[Statement] = [guard, UpdateOne(record_of(thread), [{"$set": touched}])]
        hide = {"$set": {"hidden": True}, "$unset": {"visible": 1}}
        statements += _of_places(thread, plan.hidden, {"kind": "checkpoint"}, hide)
        doom = {"$set": {"doomed": True}, "$unset": {"visible": 1, "hidden": 1}}
        statements += _of_places(thread, plan.removed, {"kind": _ROWS}, doom)
        done = {
            "kind": "write",
            "idx": {"$ne": INTERRUPT_IDX},
            "$or": [{"task_id": {"$ne": NULL_TASK_ID}}, {"idx": RESUME_IDX}],
        }
        statements += _of_places(thread, plan.reopened, done, doom)
        outcome = self._records.bulk(statements)
        if outcome.failed is not None:
            raise StorageBusy("removing took too long, and others have written since; try again")
        return outcome

    def _update_status(self, thread: ThreadRef, head: Place | None) -> None:
        """Set a thread's status to what its newest checkpoint waits for."""
        kinds = {write.idx for write in self.writes(thread, [head])} if head else set()
        status = {"status": removal.status_of(kinds), "status_for": head[1] if head else ""}
        self._records.update(record_of(thread), {"$set": {**status, "unlisted": True}})

    def _delete_rows(self, thread: ThreadRef, which: Document) -> Counts:
        rows = {"family": thread.family, "thread": thread.key, **which}
        writes = self._records.count({**rows, "kind": "write"})
        checkpoints = self._records.count({**rows, "kind": "checkpoint"})
        self._records.delete({**rows, "kind": _ROWS})
        return Counts(checkpoints, writes)

    def bury(self, thread: ThreadRef, seen: ThreadRow | None = None) -> Counts:
        same = {} if seen is None else {"updated_at": seen.updated_at, "fence": seen.fence}
        try:
            with self._locked(thread, {}, same=same) as guard:
                return self._bury(thread, guard, seen)
        except Stale:
            if seen is not None:
                raise
            return Counts(0, 0)  # somebody else was faster

    def _bury(self, thread: ThreadRef, guard: UpdateOne, seen: ThreadRow | None) -> Counts:
        rows = {"family": thread.family, "thread": thread.key, "kind": _ROWS}
        found = self._records.latest(rows, {"checkpoint_id": 1, "kind": 1})
        ids = [row["checkpoint_id"] for row in found]
        checkpoints = sum(row["kind"] == "checkpoint" for row in found)
        buried: Document = {
            "deleted_at": NOW,
            "removed_at": NOW,
            "dead_until": {"$max": ["$dead_until", {"$literal": max(ids, default=None)}]},
            "epoch": ObjectId(),
            **dict.fromkeys(("lock", "label", "ttl", "lease_holder")),
            **dict.fromkeys(("lease_since", "lease_until")),
            "tags": [],
            "metadata": "{}",
            "status": "idle",
            "checkpoint_count": 0,
        }
        unlisted = {"$unset": ["listed_at", "listed_status", "terms", "unlisted"]}
        done = self._records.bulk(
            [guard, UpdateOne(record_of(thread), [{"$set": buried}, unlisted])]
        )
        if done.failed is not None and seen is not None:
            raise Stale
        if done.failed is not None:
            raise StorageBusy("deleting took too long, and others have written since; try again")
        for _ in range(2):  # what was on its way when the thread was marked arrives after the first
            self._records.delete(rows)
        return Counts(checkpoints, len(found) - checkpoints)

    def buried(self, thread_id: str) -> ThreadRef | None:
        name = name_id(thread_id)
        named = {"$match": {"_id": name, "family": name}}
        record = self._join("record", "key", "_id", {"deleted_at": {"$ne": None}}, [])
        unwind: list[Document] = [
            {"$unwind": "$record"},
            {"$replaceWith": "$record"},
            {"$project": IDENTITY},
        ]
        found = self._records.aggregate([named, record, *unwind])
        return thread_ref(found[0]) if found else None

    def copy(self, source: ThreadRef, target_id: str, described: Description | None = None) -> None:
        if self.thread(target_id) is not None:
            raise ThreadExists(f"there is a thread {target_id!r} already")
        with self._locked(source, {}) as guard:
            self._copy(source, target_id, described, guard)

    def _copy(
        self,
        source: ThreadRef,
        target_id: str,
        described: Description | None,
        guard: UpdateOne,
    ) -> None:
        old = self._deleted_before(target_id)
        (record,) = self._records.latest(record_of(source))
        if record["lock"] is None:  # it was lost, and whoever had it next is done
            raise StorageBusy(_COPIED_TOO_LONG)
        target = ThreadRef(ObjectId(), source.family, record["epoch"])
        made: Document = {
            **record,
            "_id": target.key,
            "thread_id": target_id,
            "edge": "clone",
            "parent": source.key,
            "parent_checkpoint_id": None,
            "lock": None,
            "fence": 0,
            "dead_until": old["dead_until"] if old else None,
            "building": record["lock"]["by"],
            **dict.fromkeys(("lease_holder", "lease_since", "lease_until")),
            "source": record["thread_id"],
            **(fields_of(described) if described is not None else {}),
        }
        for of_source in ("unlisted", "listed_at", "listed_status", "removed_at"):
            made.pop(of_source, None)
        made["terms"] = terms_of(made)
        self._records.insert(made)
        rows = self._records.latest(
            {"family": source.family, "thread": source.key, "kind": _ROWS, "doomed": None}
        )
        for batch in in_batches((row for row in rows if "content" in row), 1000):
            self._records.bulk([guard, *(_copied(target, row) for row in batch)])
        end = [guard, _name(target, target_id, old), _show(target, made["building"])]
        outcome = self._records.bulk(end)
        if outcome.hits < len(end) and not self._is_shown(made, old):
            self._discard(target)
            if outcome.error is not None:
                raise outcome.error
            if outcome.failed == 1:
                raise ThreadExists(f"there is a thread {target_id!r} already")
            raise StorageBusy(_COPIED_TOO_LONG)

    def _deleted_before(self, thread_id: str) -> Document | None:
        """Return what is left of the thread that an id meant before.

        Raises:
            ThreadExists: There is one.
        """
        name = name_id(thread_id)
        named = self._records.latest({"_id": name, "family": name})
        if not named:
            return None
        old = {"_id": named[0]["key"], "family": named[0]["home"]}
        # If its record is missing, somebody is about to make it, or ended just before.
        times = {"created_at": 0, "updated_at": 0, "deleted_at": 0}
        self._records.insert({**old, **new_record(thread_id, ObjectId()), **times})
        (record,) = self._records.latest(old)
        if record["deleted_at"] is None:
            raise ThreadExists(f"there is a thread {thread_id!r} already")
        return record

    def _discard(self, unfinished: ThreadRef) -> None:
        """Remove a copy that nobody has seen."""
        rows = {"family": unfinished.family, "thread": unfinished.key, "kind": _ROWS}
        self._records.delete(rows)
        self._records.delete(record_of(unfinished))

    # Locks

    @contextmanager
    def _locked(
        self,
        thread: ThreadRef,
        change: Document,
        *,
        same: Document = {},  # noqa: B006 - never changed
        count: bool = False,
    ) -> Iterator[UpdateOne]:
        """Keep others from writing to a thread, and from removing of it.

        Yields a statement that ends a bulk if the lock is lost, and else keeps it for longer.

        Args:
            thread: The thread.
            change: What else to change in its record.
            same: What its record must say, from the beginning to the end.
            count: Whether to count its checkpoints in the end, as is done after one who locked it
                and did not come to an end.

        Raises:
            Stale: The thread is deleted, or not the same.
        """
        token = ObjectId()
        lock = {"lock": {"by": token, "until": {"$add": ["$$NOW", 1000 * LOCK_SECONDS]}}}
        free = {"$or": [{"lock": None}, {"lock.by": token}]}
        expired = {"lock": {"$ne": None}, "$expr": _EXPIRED}
        living = {**record_of(thread), "deleted_at": None, **same}
        locked = [{"$set": {**lock, **change}}]
        give_up = time.monotonic() + 10 * LOCK_SECONDS
        while not self._records.update({**living, **free}, locked):
            if self._records.update({**living, **expired}, locked):
                self._delete_rows(thread, {"doomed": True})  # what the one before left
                count = True
                break
            if not self._records.exists(living):
                raise Stale
            if time.monotonic() > give_up:
                raise StorageBusy("other processes keep removing from the same thread")
            time.sleep(_LOCK_PAUSE_SECONDS)
        try:
            yield UpdateOne({**living, "lock.by": token}, [{"$set": lock}], upsert=True)
        finally:
            unlocked: Document = {"lock": None}
            if count:
                rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
                unlocked["checkpoint_count"] = self._records.count({**rows, "visible": True})
            self._records.update({**record_of(thread), "lock.by": token}, {"$set": unlocked})

    def count_again(self, thread: ThreadRef) -> None:
        """Set right how many checkpoints a thread's record says that there are."""
        with suppress(Stale), self._locked(thread, {}, count=True):
            pass

    def await_unlocked(self, thread: ThreadRef) -> Document:
        """Return the record of a thread, once nobody locks it any more."""
        while True:
            (record,) = self._records.latest(record_of(thread))
            if record["lock"] is None:
                return record
            expired = {"lock.by": record["lock"]["by"], "$expr": _EXPIRED}
            if self._records.exists({**record_of(thread), **expired}):
                with suppress(Stale), self._locked(thread, {"epoch": ObjectId()}):
                    continue  # what was begun under the lock is not done, or done as a whole
            time.sleep(_LOCK_PAUSE_SECONDS)

    # Collecting

    def uncollected(self) -> list[Any]:
        long_ago = {"$subtract": [NOW, 1_000_000 * LOCK_SECONDS]}
        removed = {"removed_at": {"$gt": 0}, "$expr": {"$lt": ["$removed_at", long_ago]}}
        found = self._records.latest(removed, {"family": 1})
        return list(dict.fromkeys(record["family"] for record in found))

    def begin_collection(self, family: Any) -> ObjectId:
        epoch = ObjectId()
        threads = {"family": family, "kind": "thread"}
        self._records.update_all(threads, {"$set": {"epoch": epoch}})
        for unfinished in self._records.latest({**threads, "building": {"$exists": True}}):
            source = {"_id": unfinished["parent"], "family": family, "deleted_at": None}
            lock = {"lock.by": unfinished["building"], "$nor": [{"$expr": _EXPIRED}]}
            if not self._records.exists({**source, **lock}):
                # Unless it was finished just now.
                still = {**record_of(thread_ref(unfinished)), "building": unfinished["building"]}
                if self._records.update(still, {"$set": {"building": epoch}}):
                    self._discard(thread_ref(unfinished))
        return epoch

    def is_undisturbed(self, family: Any, collection: ObjectId) -> bool:
        disturbed = {"family": family, "kind": "thread", "epoch": {"$ne": collection}}
        return not self._records.exists(disturbed)

    def references(self, family: Any) -> Iterator[tuple[Any, bytes]]:
        deleted = {"family": family, "kind": "thread", "deleted_at": {"$ne": None}}
        dead = {record["_id"] for record in self._records.latest(deleted, {"_id": 1})}
        fields = {"thread": 1, "refs": 1, "next.refs": 1, "doomed": 1}
        doomed = []
        for row in self._records.latest(rows_of(family), fields):
            if row["thread"] in dead or "doomed" in row:
                doomed.append(row["_id"])  # it came late, or the removal was not finished
                continue
            yield row["thread"], row.get("refs", b"")
            if "next" in row:
                yield row["thread"], row["next"]["refs"]
        for batch in in_batches(doomed):
            gone = [{"doomed": True}, {"thread": {"$in": list(dead)}}]
            self._records.delete({"_id": {"$in": batch}, "family": family, "$or": gone})

    def links(self, family: Any) -> Iterator[tuple[bytes, bytes]]:
        wanted = {**chunks_of(family), "refs": {"$exists": True}}
        for chunk in self._records.latest(wanted, {"refs": 1}):
            yield digest_of(chunk["_id"]), _refs(chunk)

    def digests(self, family: Any) -> Iterator[bytes]:
        for chunk in self._records.latest(chunks_of(family), {"_id": 1}):
            yield digest_of(chunk["_id"])

    def drop_chunks(
        self, family: Any, digests: Iterable[bytes] | None, collection: ObjectId
    ) -> Counts | None:
        total = {"_id": "$epoch", "number": {"$sum": 1}, "size": {"$sum": chunk_size()}}
        which = [chunks_of(family)]
        if digests is not None:
            ids = in_batches(chunk_id(family, digest) for digest in digests)
            which = [{"_id": {"$in": batch}, "family": family} for batch in ids]
        dropped = []
        number = amount = 0
        for chunks in which:
            older = {**chunks, "epoch": {"$ne": collection}}
            epochs = self._records.aggregate([{"$match": older}, {"$group": total}])
            dropped += [
                {**chunks, "epoch": {"$in": batch}}
                for batch in in_batches(epoch["_id"] for epoch in epochs)
            ]
            number += sum(epoch["number"] for epoch in epochs)
            amount += sum(epoch["size"] for epoch in epochs)
        # If nobody was here since, these epochs are older than this collection. Later ones are not
        # among them: what is written from now on stays, also if another collection begins.
        if not self.is_undisturbed(family, collection):
            return None
        for chunks in dropped:
            self._records.delete(chunks)
        # But for those of which somebody removes at the moment.
        done = {"family": family, "kind": "thread", "epoch": collection, "removed_at": {"$gt": 0}}
        self._records.update_all(done, {"$unset": {"removed_at": ""}})
        return Counts(number, amount)

    # Secrets

    def secrets(self) -> list[bytes]:
        wanted = {"_id": {"$gte": "secret:", "$lt": "secret;"}, "family": "settings"}
        found = self._records.latest(wanted)
        return [secret["value"] for secret in sorted(found, key=lambda one: str(one["_id"]))]

    def add_secret(self, stored: bytes) -> None:
        number = len(self.secrets()) + 1
        self._records.insert({"_id": f"secret:{number:04}", "family": "settings", "value": stored})


_ANCESTORS = 50  # read at once
_TREES = 32_768  # chunks of which it is remembered what is below them
_CHUNK = {"refs": 1, "content": 1}


def _refs(chunk: Document) -> bytes:
    """Return the refs of a chunk as they are hashed: without the family."""
    refs = chunk.get("refs", ())
    family = chunk["_id"][:-DIGEST_BYTES]
    if all(len(ref) == len(chunk["_id"]) and ref.startswith(family) for ref in refs):
        return b"".join(digest_of(ref) for ref in refs)
    return b"".join(refs)  # damaged: nothing that the digest could match


def refs_of(family: ObjectId, refs: bytes) -> list[bytes]:
    """Return the refs of a chunk as they are stored: each the `_id` of another."""
    return [chunk_id(family, digest) for digest in split_refs(refs)]


def _thread_record(found: Document) -> ThreadRecord:
    forked = [*found["own"], *found["parents"]]
    return ThreadRecord(
        found["_id"],
        found["thread_id"],
        found["edge"],
        found["parent"],
        found["parent_checkpoint_id"],
        forked[0]["metadata"] if forked else None,
        found["checkpoint_count"],
        found["created_at"],
        found["deleted_at"],
    )


def chunk_statement(thread: ThreadRef, digest: bytes, refs: bytes, content: bytes) -> UpdateOne:
    """Return the statement that stores a chunk, if it is not there."""
    inserted: Document = {"content": content}
    if refs:
        inserted["refs"] = refs_of(thread.family, refs)
    return UpdateOne(
        {"_id": chunk_id(thread.family, digest), "family": thread.family},
        # The epoch protects it from a collection that goes on at this moment.
        {"$setOnInsert": inserted, "$set": {"epoch": thread.epoch}},
        upsert=True,
    )


def _name(target: ThreadRef, thread_id: str, old: Document | None) -> UpdateOne:
    """Return the statement that gives an id to a copy that is ready to be shown."""
    name = name_id(thread_id)
    return UpdateOne(
        {"_id": name, "family": name, "key": old["_id"] if old else None},
        {"$set": {"key": target.key, "home": target.family}},
        upsert=True,
    )


def _show(target: ThreadRef, building: ObjectId) -> UpdateOne:
    """Return the statement that shows a copy, unless a collection took it for abandoned."""
    times = {"created_at": NOW, "updated_at": NOW, "unlisted": True}
    return UpdateOne(
        {**record_of(target), "building": building}, [{"$set": times}, {"$unset": "building"}]
    )


def _grafted(
    target: ThreadRef, place: Document, said: Document, row: CheckpointRow | WriteRow
) -> UpdateOne:
    """Return the statement that gives a row to a thread that nobody knows yet."""
    at = [row.checkpoint_ns, row.checkpoint_id]
    if isinstance(row, WriteRow):
        id_ = row_id(target, *at, row.task_id, row.idx)
        shown = {"visible": True}
    else:
        id_ = row_id(target, *at)
        shown = {"hidden" if row.hidden else "visible": True}
    return UpdateOne(
        {"_id": id_, "family": target.family},
        {"$setOnInsert": {**place, **said, **shown}},
        upsert=True,
    )


def _copied(target: ThreadRef, row: Document) -> UpdateOne:
    """Return the statement that writes a copy of a row for another thread of the family."""
    # The copies do not belong to the runs that made the originals: deleting those leaves them.
    left_out = ("_id", "run_id", "next")
    copy = {field: value for field, value in row.items() if field not in left_out}
    place = [row["checkpoint_ns"], row["checkpoint_id"]]
    if row["kind"] == "write":
        place += [row["task_id"], row["idx"]]
    return UpdateOne(
        {"_id": row_id(target, *place), "family": target.family},
        {"$setOnInsert": {**copy, "thread": target.key}},
        upsert=True,
    )


def _of_places(
    thread: ThreadRef, places: Collection[Place], which: Document, change: Document
) -> Iterator[UpdateMany]:
    """Return the statements that change the rows of some checkpoints."""
    for checkpoint_ns in {checkpoint_ns for checkpoint_ns, _ in places}:
        for batch in in_batches(place[1] for place in places if place[0] == checkpoint_ns):
            wanted = {
                "family": thread.family,
                "thread": thread.key,
                "checkpoint_ns": checkpoint_ns,
                "checkpoint_id": {"$in": batch},
                **which,
            }
            yield UpdateMany(wanted, change)
