"""MongoDB: how checkpoints, threads and chunks are removed while others read and write."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bson.objectid import ObjectId

from forkpoint import removal
from forkpoint.errors import StorageBusy, damaged_row
from forkpoint.filters import stored_value_terms
from forkpoint.hashing import Hashing
from forkpoint.mongodb_catalog import IDENTITY, LISTED_PLACE, thread_ref
from forkpoint.mongodb_documents import ROWS, refs_in
from forkpoint.mongodb_log import HAS_LOG, NO_LOG, check_state
from forkpoint.mongodb_reading import MongoReading
from forkpoint.mongodb_records import (
    NOW,
    Document,
    chunk_id,
    chunk_size,
    chunks_of,
    digest_of,
    in_batches,
    record_of,
    rows_of,
)
from forkpoint.mongodb_statements import Statement, update_many, update_one
from forkpoint.mongodb_tombstones import deletions_of, entomb, expiry_after, needed_in
from forkpoint.receipts import RECEIPT, is_receipt
from forkpoint.removal import DROPPED, KEPT, NULL_TASK_ID, Place, Plan
from forkpoint.storage import (
    CHUNKS_AT_ONCE,
    HIDDEN,
    RESTARTS,
    CheckpointRow,
    Choose,
    Counts,
    Description,
    Extent,
    Part,
    RemovalPart,
    Removed,
    Stale,
    ThreadRef,
    ThreadRow,
)

LOCK_SECONDS = 5
"""How long a removal or a copy keeps others out of a thread if its process ends in the middle."""

_LOCK_PAUSE_SECONDS = 0.005
_KINSHIP = {"parent": 1, "deleted_at": 1, "thread_id": 1, "owner": 1, "expires": 1}
_EXPIRED = {"$lt": ["$lock.until", "$$NOW"]}


class MongoRemoving(MongoReading):
    """The primitives of `forkpoint.storage.Session` that remove, and what keeps others out."""

    def is_spent(self) -> bool:
        return False

    def is_long(self, thread: ThreadRef) -> bool:
        return False

    def extent(self, thread: ThreadRef) -> Extent:
        raise NotImplementedError  # no thread is long

    def rows_from(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        raise NotImplementedError

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
        found = self._records.latest({**rows, "fence": _within(fences)})
        return [(row["checkpoint_ns"], row["checkpoint_id"]) for row in found]

    def remove_part(self, thread: ThreadRef, plan: RemovalPart, *, whole: bool) -> Removed:
        raise NotImplementedError

    def begin_copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> Any:
        raise NotImplementedError

    def copy_part(self, copying: Any) -> bool:
        raise NotImplementedError

    def abandon_copy(self, copying: Any) -> None:
        raise NotImplementedError

    def rows_after(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Part[CheckpointRow]:
        return Part(self.rows(thread), None)

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        try:
            # A new epoch: who counts on what the thread stores now has to look again.
            with self._locked(thread, {"epoch": ObjectId()}) as guard:
                rows = list(self.rows(thread))
                plan = choose(rows)
                seen = {(row.checkpoint_ns, row.checkpoint_id) for row in rows if not row.hidden}
                head = removal.newest(seen - plan.removed - plan.hidden)
                is_reopened = bool(plan.reopened) or plan.withdrawn is not None
                is_moved = is_reopened or head != removal.newest(seen)
                self._doom(thread, rows, plan, guard, is_moved=is_moved)
                counts = self._delete_rows(thread, {"doomed": True})
                if is_moved:
                    self._records.update(record_of(thread), {"$set": self._status(thread, head)})
            return counts
        except Stale:
            return Counts(0, 0)  # the thread is deleted, and with it what was to go

    def _doom(
        self,
        thread: ThreadRef,
        rows: Sequence[CheckpointRow],
        plan: Plan,
        guard: Statement,
        *,
        is_moved: bool,
    ) -> None:
        """Take out of sight what is to be removed or hidden."""
        going = plan.removed | plan.hidden
        gone = sum(
            (row.checkpoint_ns, row.checkpoint_id) in going for row in rows if not row.hidden
        )
        # Not counted again: where there are no logs, a checkpoint that the record counts already
        # may be about to arrive. Nor taken off twice, if the bulk is sent again.
        epoch = ObjectId()
        left = {
            "$subtract": ["$checkpoint_count", {"$cond": [{"$eq": ["$epoch", epoch]}, 0, gone]}]
        }
        touched: Document = {
            "checkpoint_count": left,
            "epoch": epoch,
            "unlisted": True,
            "removed_at": NOW,
        }
        if plan.reopened:
            touched["updated_at"] = {"$max": ["$updated_at", NOW]}
        if is_moved:
            touched["state_updated_at"] = {"$max": ["$state_updated_at", NOW]}
        statements: list[Statement] = [guard, update_one(record_of(thread), [{"$set": touched}])]
        # Once each: the binding goes up with the flag.
        # Receipts first: else somebody might miss what they are for.
        receipts: Document = {"kind": "write", "idx": {"$lte": RECEIPT}}
        doom = {"$set": {"doomed": True}, "$unset": {"visible": 1, "hidden": 1}}
        done: Document = {
            "kind": "write",
            "idx": {"$nin": KEPT},
            "$or": [{"task_id": {"$ne": NULL_TASK_ID}}, {"idx": {"$in": DROPPED}}],
        }
        statements += _of_places(thread, plan.removed, receipts, doom)
        statements += _of_places(thread, plan.hidden, {**receipts, "idx": RECEIPT}, doom)
        statements += _of_places(thread, plan.reopened, {"$and": [receipts, done]}, doom)
        hide = {"$set": {"hidden": True}, "$unset": {"visible": 1}, "$inc": {"binding": HIDDEN}}
        shown = {"kind": "checkpoint", "hidden": None}
        statements += _of_places(thread, plan.hidden, shown, hide)
        restart = {"$set": {"restarts": True}, "$inc": {"binding": RESTARTS}}
        others = {"kind": "checkpoint", "restarts": None}
        statements += _of_places(thread, plan.restarted, others, restart)
        statements += _of_places(thread, plan.removed, {"kind": ROWS}, doom)
        statements += _of_places(thread, plan.reopened, done, doom)
        if plan.withdrawn is not None:
            writes = {"family": thread.family, "thread": thread.key, "kind": "write"}
            under = {**writes, "fence": _within(plan.withdrawn)}
            statements.append(update_many({**under, **_IS_WHOLE}, _RESTORE))
            for which in ({**under, "idx": receipts["idx"]}, under):
                statements.append(update_many(which, doom))
        outcome = self._records.bulk(statements)
        if outcome.error is not None:
            raise outcome.error
        if outcome.failed is not None:
            raise StorageBusy("removing took too long, and others have written since; try again")

    def _status(self, thread: ThreadRef, head: Place | None) -> Document:
        """Return the fields for a thread's status: what its newest checkpoint waits for."""
        writes = self.writes(thread, [head]) if head else []
        status = removal.status_of({write.idx for write in writes})
        preview = next((write.content for write in writes if write.idx == RECEIPT), b"")
        return {
            "status": status,
            "status_for": head[1] if head else "",
            "value_terms": stored_value_terms(thread.owner, preview),
            "unlisted": True,
        }

    def _delete_rows(self, thread: ThreadRef, which: Document) -> Counts:
        rows = {"family": thread.family, "thread": thread.key, **which}
        writes = self._records.count({**rows, "kind": "write", "idx": {"$gt": RECEIPT}})
        checkpoints = self._records.count({**rows, "kind": "checkpoint"})
        self._records.delete({**rows, "kind": ROWS})
        return Counts(checkpoints, writes)

    def bury(
        self, thread: ThreadRef, seen: ThreadRow | None = None, *, as_late: bool = False
    ) -> Counts:
        same = {} if seen is None else {"updated_at": seen.updated_at, "fence": seen.fence}
        try:
            with self._locked(thread, {}, same=same) as guard:
                return self._bury(thread, guard, seen, as_late=as_late)
        except Stale:
            if seen is not None:
                raise
            return Counts(0, 0)  # somebody else was faster

    def _bury(
        self, thread: ThreadRef, guard: Statement, seen: ThreadRow | None, *, as_late: bool
    ) -> Counts:
        rows = {"family": thread.family, "thread": thread.key, "kind": ROWS}
        found = self._records.latest(rows, {"checkpoint_id": 1, "kind": 1, "idx": 1})
        ids = [row["checkpoint_id"] for row in found]
        checkpoints = sum(row["kind"] == "checkpoint" for row in found)
        threads = self._records.latest({"family": thread.family, "kind": "thread"}, _KINSHIP)
        (record,) = (one for one in threads if one["_id"] == thread.key)
        others = [one for one in threads if one is not record]
        said = {} if thread.key in needed_in(others) else {"thread_id": ""}
        buried: Document = {
            **said,
            **dict.fromkeys(("owner", "source")),
            "deleted_at": NOW,
            "removed_at": NOW,
            "dead_until": None,
            "epoch": ObjectId(),
            **dict.fromkeys(("lock", "label", "folded_label", "ttl", "swept_at", "lease_holder")),
            **dict.fromkeys(("lease_since", "lease_until")),
            "tags": [],
            "metadata": "{}",
            "fixed_keys": [],
            "waiting": [],
            "status": "idle",
            "checkpoint_count": 0,
            "state_updated_at": 0,
            "value_terms": None,
        }
        unlisted = {"$unset": ["terms", "unlisted", *LISTED_PLACE]}
        statements: list[Statement] = [guard]
        if not as_late:  # what came late is no thread
            statements.append(
                self._entombed(
                    record, max((id_ for id_ in ids if isinstance(id_, str)), default=None)
                )
            )
        statements.append(update_one(record_of(thread), [{"$set": buried}, unlisted]))
        done = self._records.bulk(statements)
        dead = {**record_of(thread), "deleted_at": {"$ne": None}}
        # Unless it was done by an attempt whose answer was lost.
        if done.failed is not None and not (done.is_repeated and self._records.exists(dead)):
            if seen is not None:
                raise Stale
            raise StorageBusy("deleting took too long, and others have written since; try again")
        for _ in range(2):  # what was on its way when the thread was marked arrives after the first
            self._records.delete(rows)
        receipts = sum(is_receipt(row.get("idx", 0)) for row in found)
        return Counts(checkpoints, len(found) - checkpoints - receipts)

    def _entombed(self, record: Document, dead_until: str | None) -> Statement:
        """Return the statement that notes the deletion of a thread with the name."""
        marks = self._records.marks(record["thread_id"])
        name = self._records.name_id(record["thread_id"])
        mark, ttl = marks.of_owner(record["owner"]), self._records.tombstone_ttl
        return entomb(name, mark, dead_until, ObjectId(), ttl)

    def last_deletion(self, thread_id: str, owner: str | None = None) -> frozenset[ObjectId]:
        name = self._records.name_id(thread_id)
        named = self._records.find({"_id": name, "family": name})
        marks = self._records.marks(thread_id)
        return deletions_of(named[0], marks, owner) if named else frozenset()

    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        marks = self._records.marks(thread_id)
        mark = marks.for_all if owner is None else marks.of_owner(owner)
        name, ttl = self._records.name_id(thread_id), self._records.tombstone_ttl
        self._records.bulk([entomb(name, mark, None, ObjectId(), ttl)])

    def forget_deletions(self) -> bool:
        # Names that mean no thread are deleted by the server.
        older = {"$lt": self._records.clock.now() - self._records.tombstone_ttl}
        wanted = {"tombstones.made_at": {"$gt": 0, **older}}
        change = {"$pull": {"tombstones": {"made_at": older}}}
        self._records.update_all(wanted, change)
        return False

    def buried(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        name = self._records.name_id(thread_id)
        for named in self._records.latest({"_id": name, "family": name}):
            if not deletions_of(named, self._records.marks(thread_id), owner):
                continue
            wanted = {"_id": named["key"], "family": named["home"], "deleted_at": {"$ne": None}}
            for record in self._records.latest({**wanted, "removed_at": {"$gt": 0}}, IDENTITY):
                return thread_ref(record)
        return None

    def _discard(self, unfinished: ThreadRef) -> None:
        """Remove a copy that nobody has seen."""
        rows = {"family": unfinished.family, "thread": unfinished.key, "kind": ROWS}
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
    ) -> Iterator[Statement]:
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
        if same and self._records.exists({**record_of(thread), **HAS_LOG}):
            self.end_log(thread)  # else the record does not say what it would
        while not self.without_log(
            thread, {**living, **free}, lambda wanted: self._records.update(wanted, locked)
        ):
            if self._records.update({**living, **expired}, locked):
                self._delete_rows(thread, {"doomed": True})  # what the one before left
                count = True
                break
            if not (found := self._records.latest(living)):
                raise Stale
            check_state(found[0])
            if time.monotonic() > give_up:
                raise StorageBusy("other processes keep removing from the same thread")
            time.sleep(_LOCK_PAUSE_SECONDS)
        try:
            yield update_one({**living, "lock.by": token}, [{"$set": lock}], upsert=True)
        except BaseException:
            count = True  # it may be done in part
            raise
        finally:
            unlocked: Document = {"lock": None, **(self._counted(thread) if count else {})}
            self._records.update({**record_of(thread), "lock.by": token}, {"$set": unlocked})

    def _counted(self, thread: ThreadRef) -> Document:
        """Return what the record of a thread is to say of the checkpoints that there are."""
        rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
        fields = {"checkpoint_ns": 1, "checkpoint_id": 1}
        shown = self._records.latest({**rows, "visible": True}, fields)
        places = [(row.get("checkpoint_ns"), row.get("checkpoint_id")) for row in shown]
        head = removal.newest(
            (ns, id_) for ns, id_ in places if isinstance(ns, str) and isinstance(id_, str)
        )
        return {"checkpoint_count": len(shown), **self._status(thread, head)}

    def count_again(self, thread: ThreadRef) -> None:
        """Set right how many checkpoints a thread's record says that there are."""
        with suppress(Stale), self._locked(thread, {}, count=True):
            pass

    def await_unlocked(self, thread: ThreadRef) -> Document:
        """Return the record of a thread, once nobody locks it any more.

        Raises:
            Stale: There is none: who was to make it failed.
        """
        while True:
            found = self._records.latest(record_of(thread))
            if not found:
                raise Stale
            (record,) = found
            check_state(record)
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

    def clear(self, family: Any) -> bool:
        return False

    def is_overtaken(self, family: Any, collection: ObjectId) -> bool:
        return False  # those that meet begin anew, and the last of them collects for all

    def begin_collection(self, family: Any) -> ObjectId:
        epoch = ObjectId()
        threads = {"family": family, "kind": "thread"}
        begun = {"$set": {"epoch": epoch}}
        self._records.update_all({**threads, **NO_LOG}, begun)
        others = {**threads, "epoch": {"$ne": epoch}}
        while self._records.exists({**others, **HAS_LOG}):
            self.end_logs({"family": family})
            self._records.update_all({**others, **NO_LOG}, begun)
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

    def references(self, family: Any, after: Any = None) -> Part[tuple[Any, bytes]]:
        return Part(self._references(family), None)

    def _references(self, family: Any) -> Iterator[tuple[Any, bytes]]:
        deleted = {"family": family, "kind": "thread", "deleted_at": {"$ne": None}}
        dead = {record["_id"] for record in self._records.latest(deleted, {"_id": 1})}
        fields = {"thread": 1, "refs": 1, "next.refs": 1, "before.refs": 1, "doomed": 1}
        doomed = []
        for row in self._records.latest(rows_of(family), fields):
            if not isinstance(row["thread"], ObjectId):
                raise damaged_row(row.get("kind", "row"), row["_id"])
            if row["thread"] in dead or "doomed" in row:
                doomed.append(row["_id"])  # it came late, or the removal was not finished
                continue
            yield row["thread"], row.get("refs", b"")
            for other in ("next", "before"):
                refs = row[other].get("refs") if isinstance(row.get(other), dict) else None
                if isinstance(refs, bytes):
                    yield row["thread"], refs
        for batch in in_batches(doomed):
            gone = [{"doomed": True}, {"thread": {"$in": list(dead)}}]
            self._records.delete({"_id": {"$in": batch}, "family": family, "$or": gone})

    def links(self, family: Any, after: Any = None) -> Part[tuple[bytes, bytes]]:
        wanted = {**chunks_of(family), "refs": {"$exists": True}}
        found = self._records.latest(wanted, {"refs": 1})
        return Part(((digest_of(chunk["_id"]), refs_in(chunk)) for chunk in found), None)

    def digests(self, family: Any, after: Any = None) -> Part[bytes]:
        found = self._records.latest(chunks_of(family), {"_id": 1})
        return Part((digest_of(chunk["_id"]) for chunk in found), None)

    def chunks_at_once(self) -> int:
        return CHUNKS_AT_ONCE

    def drop_chunks(
        self, family: Any, digests: Collection[bytes] | None, collection: ObjectId
    ) -> Counts | None:
        total = {"_id": "$epoch", "number": {"$sum": 1}, "size": {"$sum": chunk_size()}}
        chunks = chunks_of(family)
        if digests is not None:
            ids = [chunk_id(family, digest) for digest in digests]
            chunks = {"_id": {"$in": ids}, "family": family}
        older = {**chunks, "epoch": {"$ne": collection}}
        epochs = self._records.aggregate([{"$match": older}, {"$group": total}])
        # If nobody was here since, these epochs are older than this collection. Later ones are not
        # among them: what is written from now on stays, also if another collection begins.
        if not self.is_undisturbed(family, collection):
            return None
        for batch in in_batches(epoch["_id"] for epoch in epochs):
            self._records.delete({**chunks, "epoch": {"$in": batch}})
        return Counts(
            sum(epoch["number"] for epoch in epochs), sum(epoch["size"] for epoch in epochs)
        )

    def end_collection(self, family: Any, collection: ObjectId) -> bool:
        # But for those of which somebody removes at the moment.
        done = {"family": family, "kind": "thread", "epoch": collection, "removed_at": {"$gt": 0}}
        self._records.update_all(done, {"$unset": {"removed_at": ""}})
        threads = self._records.latest({"family": family, "kind": "thread"}, _KINSHIP)
        needed = needed_in(threads)
        useless = [
            one["_id"]
            for one in threads
            if one["deleted_at"] is not None and one["_id"] not in needed and "expires" not in one
        ]
        for batch in in_batches(useless):
            wanted = {"_id": {"$in": batch}, "family": family, "removed_at": None}
            forgotten = {"thread_id": "", "expires": expiry_after(2 * self._records.tombstone_ttl)}
            self._records.update_all(wanted, [{"$set": forgotten}])
        return True


def _of_places(
    thread: ThreadRef, places: Collection[Place], which: Document, change: Document
) -> Iterator[Statement]:
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
            yield update_many(wanted, change)


_IS_WHOLE = {
    f"before.{field}": {"$type": type_}
    for type_, fields in {
        "binData": ("refs", "content", "checksum"),
        "string": ("task_path", "channel"),
    }.items()
    for field in fields
}
"""What has to be there to be restored; where it is damaged, a receipt tells that it is missing."""
_RESTORE: list[Document] = [
    {"$unset": "fence"},
    {"$replaceWith": {"$mergeObjects": ["$$ROOT", "$before"]}},
    {"$unset": "before"},
]
"""Lets a write be what it was before a run replaced it."""


def _within(fences: range) -> Document:
    return {"$gte": fences.start, "$lt": fences.stop}
