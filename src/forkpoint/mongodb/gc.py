"""MongoDB: how what nobody needs any more is deleted, some at a time: rows, copies and chunks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from bson.objectid import ObjectId

from forkpoint.mongodb.commands import IN_ONE_COMMAND, MongoCommands
from forkpoint.mongodb.documents import (
    NOW,
    Document,
    chunk_id,
    chunk_size,
    chunks_of,
    digest_of,
    family_rows,
    record_of,
    refs_in,
)
from forkpoint.mongodb.locks import LOCK_SECONDS, NOT_EXPIRED
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.thread_documents import HAS_LOG, IDENTITY, KINSHIP, NO_LOG, thread_ref
from forkpoint.mongodb.thread_rows import ThreadRows
from forkpoint.mongodb.tombstones import ancestors_of_living, expiry_after
from forkpoint.mongodb.turns import Turns
from forkpoint.storage import interface
from forkpoint.storage.interface import MOST_UNCOLLECTED
from forkpoint.storage.queries import Batch
from forkpoint.storage.rows import Counts, ThreadRef
from forkpoint.storage.shared import batches

_READ_AT_ONCE = 10  # turns' rows, where nobody waits for what is read


_COLLECTED = {"$unset": {"removed_at": "", "uncollected": ""}}


class _Place(NamedTuple):
    """Up to which place the rows of a family are read."""

    row: bytes
    dead: frozenset[ObjectId]
    """The threads that were already deleted when the reading began."""


class MongoCollections(interface.Collections):
    """Finds and deletes what nothing refers to.

    Args:
        commands: Those of the collection.
        logs: The logs of threads, which a collection ends.
        rows: The rows of threads.
        turns: What a turn has read and deleted.
    """

    def __init__(self, commands: MongoCommands, logs: Logs, rows: ThreadRows, turns: Turns) -> None:
        self._commands = commands
        self._logs = logs
        self._rows = rows
        self._turns = turns

    def pending(self) -> list[Any]:
        long_ago = {"$subtract": [NOW, 1_000_000 * LOCK_SECONDS]}
        removed = {"removed_at": {"$gt": 0}, "$expr": {"$lt": ["$removed_at", long_ago]}}
        documents = self._commands.latest(removed, {"family": 1})
        return list(dict.fromkeys(record["family"] for record in documents))

    def is_due(self, family: Any) -> bool:
        removed, stored = ({"$sum": f"${name}"} for name in ("uncollected", "checkpoint_count"))
        threads = {"$match": {"family": family, "kind": "thread"}}
        total = {"$group": {"_id": None, "removed": removed, "stored": stored}}
        sums = self._commands.aggregate_latest([threads, total])
        return any(MOST_UNCOLLECTED * each["removed"] >= each["stored"] for each in sums)

    def clear(self, family: Any) -> bool:
        dead = {"family": family, "kind": "thread", "deleted_at": {"$ne": None}}
        for record in self._commands.latest({**dead, "removed_at": {"$gt": 0}}, IDENTITY):
            if not self._clear_rows(thread_ref(record)):
                return True
        copies = {"family": family, "kind": "thread", "building": {"$exists": True}}
        for unfinished in self._commands.latest(copies):
            target = thread_ref(unfinished)
            if not self._is_abandoned(unfinished):
                continue
            same = {**record_of(target), "building": unfinished["building"]}
            # Unless it was finished just now. Who makes it cannot show it any more.
            if not self._commands.update(same, {"$set": {"building": ObjectId(), "lock": None}}):
                continue
            if not self._clear_rows(target):
                return True
            self._commands.delete(record_of(target))
        return False

    def _is_abandoned(self, unfinished: Document) -> bool:
        """Return whether the process that made a copy has stopped."""
        source = {"_id": unfinished["parent"], "family": unfinished["family"], "deleted_at": None}
        target = {"_id": unfinished["_id"], "family": unfinished["family"]}
        by = {**NOT_EXPIRED, "lock.by": unfinished["building"]}
        return not any(self._commands.exists({**record, **by}) for record in (source, target))

    def _clear_rows(self, thread: ThreadRef) -> bool:
        """Delete some rows of an invisible thread, and return whether these were all."""
        number = self._rows.delete_some(thread, self._turns.turn_rows)
        self._turns.count_changed(number)
        return number < self._turns.turn_rows

    def is_overtaken(self, family: Any, collection: ObjectId) -> bool:
        return False  # collections at the same time disturb each other, and each begins again

    def begin(self, family: Any) -> ObjectId:
        epoch = ObjectId()
        threads = {"family": family, "kind": "thread"}
        begun = {"$set": {"epoch": epoch}}
        self._commands.update_all({**threads, **NO_LOG}, begun)
        others = {**threads, "epoch": {"$ne": epoch}}
        while self._commands.exists({**others, **HAS_LOG}):
            self._logs.end_logs({"family": family})
            self._commands.update_all({**others, **NO_LOG}, begun)
        return epoch

    def is_undisturbed(self, family: Any, collection: ObjectId) -> bool:
        disturbed = {"family": family, "kind": "thread", "epoch": {"$ne": collection}}
        return not self._commands.exists(disturbed)

    def references(self, family: Any, after: Any = None) -> Batch[tuple[Any, bytes]]:
        deleted = {"family": family, "kind": "thread", "deleted_at": {"$ne": None}}
        if after is None:
            dead = frozenset(record["_id"] for record in self._commands.latest(deleted, {"_id": 1}))
            after = _Place(b"", dead)
        fields = {"thread": 1, "refs": 1, "next.refs": 1, "before.refs": 1}
        fields |= {"replaced": 1, "doomed": 1}
        documents, last = self._documents_after(family_rows(family), after.row, fields)
        items: list[tuple[Any, bytes]] = []
        doomed = []
        for row in documents:
            # A row that says no thread is nobody's to remove.
            thread = key if isinstance(key := row.get("thread"), ObjectId) else None
            if thread in after.dead or "doomed" in row:
                doomed.append(row["_id"])  # it came late, or the removal was not finished
                continue
            items.append((thread, row.get("refs", b"")))
            for other in ("next", "before"):
                refs = row[other].get("refs") if isinstance(row.get(other), dict) else None
                if isinstance(refs, bytes):
                    items.append((thread, refs))
            replaced = row.get("replaced")
            if isinstance(replaced, list):
                items += [(thread, refs) for refs in replaced if isinstance(refs, bytes)]
        for batch in batches(doomed, IN_ONE_COMMAND):
            gone = [{"doomed": True}, {"thread": {"$in": list(after.dead)}}]
            self._commands.delete({"_id": {"$in": batch}, "family": family, "$or": gone})
        return Batch(items, None if last is None else after._replace(row=last))

    def links(self, family: Any, after: Any = None) -> Batch[tuple[bytes, bytes]]:
        match = {**chunks_of(family), "refs": {"$exists": True}}
        documents, last = self._documents_after(match, after, {"refs": 1})
        return Batch([(digest_of(chunk["_id"]), refs_in(chunk)) for chunk in documents], last)

    def digests(self, family: Any, after: Any = None) -> Batch[bytes]:
        documents, last = self._documents_after(chunks_of(family), after, {"_id": 1})
        return Batch([digest_of(chunk["_id"]) for chunk in documents], last)

    def _documents_after(
        self, match: Document, after: bytes | None, fields: dict[str, int]
    ) -> tuple[list[Document], bytes | None]:
        """Return documents in the order of `_id`, and the last `_id` if there may be more."""
        limit = _READ_AT_ONCE * self._turns.turn_rows
        if after:
            match = {**match, "_id": {**match["_id"], "$gt": after}}
            del match["_id"]["$gte"]
        documents = self._commands.latest(match, fields, sort=[("_id", 1)], limit=limit)
        self._turns.count_read(len(documents))
        return documents, documents[-1]["_id"] if len(documents) == limit else None

    def chunks_at_once(self) -> int:
        return self._turns.turn_rows

    def delete_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: ObjectId
    ) -> Counts | None:
        older_only = {"epochs": {"$ne": collection}}
        if digests is None:
            rest = {**chunks_of(family), **older_only}
            some = self._commands.latest(rest, {"_id": 1}, limit=self.chunks_at_once())
            ids = [chunk["_id"] for chunk in some]
        else:
            ids = [chunk_id(family, digest) for digest in digests]
        chunks = {"_id": {"$in": ids}, "family": family}
        total = {"_id": "$epochs", "number": {"$sum": 1}, "size": {"$sum": chunk_size()}}
        groups = self._commands.aggregate([{"$match": {**chunks, **older_only}}, {"$group": total}])
        # If nobody was here since, these epochs are older than this collection. Later ones are not
        # among them: what is written from now on stays, also if another collection begins.
        if not self.is_undisturbed(family, collection):
            return None
        each = (group["_id"] for group in groups if isinstance(group["_id"], list))
        older = {epoch for epochs in each for epoch in epochs if isinstance(epoch, ObjectId)}
        if groups:
            later = {"$elemMatch": {"$nin": list(older)}}
            self._commands.delete({**chunks, "epochs": {"$not": later}})
        number = sum(group["number"] for group in groups)
        self._turns.count_changed(number)
        return Counts(number, sum(group["size"] for group in groups))

    def end(self, family: Any, collection: ObjectId) -> bool:
        # But for those of which somebody removes at the moment, and for copies that are made.
        done = {"family": family, "kind": "thread", "epoch": collection, "removed_at": {"$gt": 0}}
        self._commands.update_all({**done, "building": None}, _COLLECTED)
        threads = self._commands.latest({"family": family, "kind": "thread"}, KINSHIP)
        needed = ancestors_of_living(threads)
        useless = [
            record["_id"]
            for record in threads
            if record["deleted_at"] is not None
            and record["_id"] not in needed
            and "expires" not in record
        ]
        for batch in batches(useless, IN_ONE_COMMAND):
            match = {"_id": {"$in": batch}, "family": family, "removed_at": None}
            forgotten = {"thread_id": "", "expires": expiry_after(2 * self._commands.tombstone_ttl)}
            self._commands.update_all(match, [{"$set": forgotten}])
        return True
