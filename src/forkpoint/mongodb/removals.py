"""MongoDB: how checkpoints and threads are removed while others read and write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from bson.objectid import ObjectId

from forkpoint.errors import StorageBusy
from forkpoint.mongodb.commands import NOW, Document, in_batches, record_of
from forkpoint.mongodb.documents import ROWS, checkpoint_row
from forkpoint.mongodb.locks import MongoLocks
from forkpoint.mongodb.search import IDENTITY, LISTED_PLACE, thread_ref
from forkpoint.mongodb.statements import Statement, update_many, update_one
from forkpoint.mongodb.tombstones import deletions_of, entomb, needed_in
from forkpoint.storage import plan as removal
from forkpoint.storage.interface import Choose, Stale
from forkpoint.storage.plan import DROPPED, KEPT, NULL_TASK_ID, Place, Plan
from forkpoint.storage.queries import Batch
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    HIDDEN,
    RESTARTS,
    ChangeCount,
    CheckpointRow,
    Counts,
    RemovalPart,
    RemovalResult,
    ThreadRef,
    ThreadRow,
)

KINSHIP = {"parent": 1, "deleted_at": 1, "thread_id": 1, "owner": 1, "expires": 1}
"""The fields of records that tell how the threads of a family are related."""

_PLACES_PER_TURN = 4  # for each checkpoint there are some writes and receipts
_THERE = {"$or": [{"visible": True}, {"hidden": True}]}
_OUTLINE = {"terms": 0, "refs": 0, "content": 0, "checksum": 0, "record": 0}
_STUB = dict.fromkeys(("checkpoint_ns", "checkpoint_id", "kind", "visible"), 1)


class MongoRemoving(MongoLocks):
    """The primitives of `forkpoint.storage.interface.Session` that remove."""

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        try:
            # A new epoch: who counts on what the thread stores now has to look again.
            with self.locked(thread, {"epoch": ObjectId()}) as guard:
                rows = list(self.rows(thread))
                plan = choose(rows)
                seen = {(row.checkpoint_ns, row.checkpoint_id) for row in rows if not row.hidden}
                going = seen & (plan.removed | plan.hidden)
                is_other_head = removal.newest(seen) in going
                return self._execute(thread, plan, len(going), guard, is_other_head=is_other_head)
        except Stale:
            return Counts(0, 0)  # the thread is deleted, and with it what was to go

    def _execute(
        self, thread: ThreadRef, plan: Plan, gone: int, guard: Statement, *, is_other_head: bool
    ) -> Counts:
        is_moved = is_other_head or plan.is_whole
        self._doom(thread, plan, gone, guard, is_moved=is_moved)
        counts = self.delete_rows(thread, {"doomed": True})
        if is_moved:
            self._records.update(record_of(thread), {"$set": self.status_now(thread)})
        return counts

    def _doom(
        self, thread: ThreadRef, plan: Plan, gone: int, guard: Statement, *, is_moved: bool
    ) -> None:
        """Take out of sight what is to be removed or hidden.

        Args:
            thread: The thread, which is locked.
            plan: What is to be done.
            gone: How many checkpoints that can be seen are removed or hidden.
            guard: Ends the bulk if the lock is lost.
            is_moved: Whether the thread goes on from another state then.
        """
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
            "removals": {"$cond": [{"$isNumber": "$removals"}, {"$add": ["$removals", 1]}, 1]},
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

    # Removing in turns

    def extent(self, thread: ThreadRef) -> ChangeCount:
        living = {**record_of(thread), "deleted_at": None}
        fields = {"checkpoint_count": 1, "removals": 1}
        found = self._records.aggregate(
            [{"$match": living}, *self.up_to_date(), {"$project": fields}]
        )
        if not found:
            raise Stale
        return ChangeCount(found[0]["checkpoint_count"], found[0]["removals"])

    def rows_after(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint", **_THERE}
        namespaces: list[Document] = [{}]
        if after is not None:
            checkpoint_ns, checkpoint_id = after
            rest = {"checkpoint_ns": checkpoint_ns, "checkpoint_id": {"$lt": checkpoint_id}}
            namespaces = [rest, {"checkpoint_ns": {"$gt": checkpoint_ns}}]
        found: list[Document] = []
        for namespace in namespaces:  # each is read in the order of the index
            found += self._records.latest(
                {**rows, **namespace},
                {"terms": 0} if with_content else _OUTLINE,
                sort=[("checkpoint_ns", 1), ("checkpoint_id", -1)],
                limit=max(1, self.turn_rows - len(found)),
            )
            if len(found) >= self.turn_rows:
                break
        self.count_read(len(found))
        last = found[-1] if len(found) >= self.turn_rows else None
        following = None if last is None else (last["checkpoint_ns"], last["checkpoint_id"])
        made = checkpoint_row if with_content else _outline_row
        return Batch(list(map(made, found)), following)

    def rows_from(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        rows: Document = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
        rows |= {"checkpoint_id": {"$gte": checkpoint_id}, "visible": True}
        found: list[Document] = []
        for namespace in ("", {"$gt": ""}):  # each has an index
            found += self._records.latest({**rows, "checkpoint_ns": namespace}, _OUTLINE)
        return list(map(_outline_row, found))

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
        found = self._records.latest({**rows, "fence": _within(fences)})
        return [(row["checkpoint_ns"], row["checkpoint_id"]) for row in found]

    def remove_part(
        self, thread: ThreadRef, part: RemovalPart, check: Callable[[], None]
    ) -> RemovalResult:
        self.give_way(thread)
        with self.locked(thread, {"epoch": ObjectId()}) as guard:
            check()
            places, going = self._first_of(thread, part)
            plan = part.plan._replace(
                removed=part.plan.removed & going.keys(), hidden=part.plan.hidden & going.keys()
            )
            gone = [
                place
                for place, rows in going.items()
                if any(row["kind"] == "checkpoint" and row.get("visible") for row in rows)
            ]
            is_other_head = self.head_of(thread) in gone
            counts = self._execute(thread, plan, len(gone), guard, is_other_head=is_other_head)
            self.count_changed(sum(map(len, going.values())))
            return RemovalResult(counts, places, self.extent(thread))

    def _first_of(
        self, thread: ThreadRef, part: RemovalPart
    ) -> tuple[int, Mapping[Place, Sequence[Document]]]:
        """Return how many checkpoints are the next part of a removal, and the rows of each."""
        is_whole = part.plan.is_whole
        most = len(part.going) if is_whole else max(1, self.turn_rows // _PLACES_PER_TURN)
        rows: dict[Place, list[Document]] = {place: [] for place in part.going[:most]}
        for wanted in _wanted_of(thread, rows):
            for row in self._records.latest({**wanted, "kind": ROWS}, _STUB):
                rows[row["checkpoint_ns"], row["checkpoint_id"]].append(row)
        number = 0
        going: dict[Place, Sequence[Document]] = {}
        for place, its in rows.items():
            if number >= self.turn_rows and not is_whole:
                break
            going[place] = its
            number += len(its)
        return len(going), going

    # Deleting threads

    def bury(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
        as_late: bool = False,
    ) -> Counts:
        same = {} if seen is None else {"updated_at": seen.updated_at, "fence": seen.fence}
        newest = self._newest_id(thread, "")  # of most of them, before others have to wait
        try:
            with self.locked(thread, {}, same=same) as guard:
                if check is not None:
                    check()
                newest = max(newest, self._newest_id(thread, newest))
                self._bury(thread, guard, seen, None if as_late else newest)
        except Stale:
            if seen is not None or check is not None:
                raise
            return Counts(0, 0)  # somebody else was faster
        return self.count_rows(thread, {})

    def _newest_id(self, thread: ThreadRef, after: str) -> str:
        """Return the highest checkpoint id of a thread's rows, or nothing if none is as high."""
        rows: Document = {"thread": thread.key, "kind": ROWS, "checkpoint_id": {"$gt": after}}
        newest = {"$group": {"_id": None, "newest": {"$max": "$checkpoint_id"}}}
        # Those that are no text are damaged.
        stages = [{"$match": {"family": thread.family, **rows}}, newest]
        found = self._records.aggregate_latest(stages)
        return str(found[0]["newest"]) if found else ""

    def _bury(
        self, thread: ThreadRef, guard: Statement, seen: ThreadRow | None, newest: str | None
    ) -> None:
        """Mark a thread as deleted.

        Args:
            thread: The thread, which is locked.
            guard: Ends the bulk if the lock is lost.
            seen: What it must be as.
            newest: The highest id of its checkpoints. None if it came late, and is no thread.
        """
        threads = self._records.latest({"family": thread.family, "kind": "thread"}, KINSHIP)
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
        unlisted = {"$unset": ["terms", "unlisted", "awaited", *LISTED_PLACE]}
        statements: list[Statement] = [guard]
        if newest is not None:
            statements.append(self._entombed(record, newest or None))
        statements.append(update_one(record_of(thread), [{"$set": buried}, unlisted]))
        done = self._records.bulk(statements)
        dead = {**record_of(thread), "deleted_at": {"$ne": None}}
        # Unless it was done by an attempt whose answer was lost.
        if done.failed is not None and not (done.is_repeated and self._records.exists(dead)):
            if seen is not None:
                raise Stale
            raise StorageBusy("deleting took too long, and others have written since; try again")

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


def _outline_row(found: Document) -> CheckpointRow:
    """Return as much of a checkpoint as a choice may depend on."""
    return checkpoint_row({**found, **dict.fromkeys(("refs", "content", "checksum"), b"")})


def _of_places(
    thread: ThreadRef, places: Collection[Place], which: Document, change: Document
) -> Iterator[Statement]:
    """Return the statements that change the rows of some checkpoints."""
    for wanted in _wanted_of(thread, places):
        yield update_many({**wanted, **which}, change)


def _wanted_of(thread: ThreadRef, places: Collection[Place]) -> Iterator[Document]:
    """Return filters for the rows of some checkpoints."""
    ids: dict[str, list[str]] = {}
    for checkpoint_ns, checkpoint_id in places:
        ids.setdefault(checkpoint_ns, []).append(checkpoint_id)
    for checkpoint_ns, its in ids.items():
        for batch in in_batches(its):
            yield {
                "family": thread.family,
                "thread": thread.key,
                "checkpoint_ns": checkpoint_ns,
                "checkpoint_id": {"$in": batch},
            }


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
