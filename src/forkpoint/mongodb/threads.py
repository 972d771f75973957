"""MongoDB: which thread an id means, what it descends from, and its deletion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bson.objectid import ObjectId

from forkpoint.errors import StorageBusy
from forkpoint.mongodb.commands import IN_ONE_COMMAND, MongoCommands
from forkpoint.mongodb.documents import ROWS, Document, record_of, rows_of
from forkpoint.mongodb.known_threads import KnownThreads
from forkpoint.mongodb.locks import Locks
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.pipelines import named_record
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.mongodb.tail import STATE
from forkpoint.mongodb.thread_documents import (
    IDENTITY,
    KINSHIP,
    LISTED_PLACE,
    deleted_record,
    family_member,
    named_ref,
    thread_ref,
)
from forkpoint.mongodb.thread_rows import ThreadRows
from forkpoint.mongodb.tombstones import (
    ancestors_of_living,
    deletions_of,
    expiry_of_name,
    tombstone_statement,
)
from forkpoint.storage import interface
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import Counts, FamilyMember, ThreadRef, ThreadRow
from forkpoint.storage.shared import batches

_STATE = {**IDENTITY, **dict.fromkeys(STATE, 1)}


class MongoThreads(interface.Threads):
    """Finds threads, and marks them as deleted.

    Args:
        commands: Those of the collection.
        logs: The logs of threads.
        known: Which threads ids meant.
        locks: The locks of threads.
        rows: The rows of threads.
    """

    def __init__(
        self,
        commands: MongoCommands,
        logs: Logs,
        known: KnownThreads,
        locks: Locks,
        rows: ThreadRows,
    ) -> None:
        self._commands = commands
        self._logs = logs
        self._known = known
        self._locks = locks
        self._rows = rows

    def find(self, thread_id: str, viewer: str | None = None) -> ThreadRef | None:
        records = self._commands.aggregate(
            [
                *named_record(self._commands, thread_id),
                {"$replaceWith": "$record"},
                {"$project": _STATE},
                self._logs.newest_entry("log", "$family"),
            ]
        )
        if not records:
            self._known.forget(thread_id)
            return None
        thread = named_ref(records[0], thread_id)
        if viewer in (None, thread.owner):
            self._logs.look_at_tail(thread, records[0], records[0]["newest"])
            self._known.remember(thread_id, thread)
        return thread

    def deletions(self, thread_id: str, owner: str | None = None) -> frozenset[ObjectId]:
        names = self._commands.find(self._commands.name_of(thread_id))
        marks = self._commands.marks(thread_id)
        return deletions_of(names[0], marks, owner) if names else frozenset()

    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        marks = self._commands.marks(thread_id)
        mark = marks.for_all if owner is None else marks.of_owner(owner)
        name, ttl = self._commands.name_of(thread_id), self._commands.tombstone_ttl
        statement = tombstone_statement(name, mark, None, ObjectId(), ttl)
        if self._commands.change([statement]).failed is not None:
            # Somebody else made the document of the name at the same moment.
            self._commands.change([statement])

    def forget_deletions(self) -> bool:
        # Names that mean no thread are deleted by the server.
        older = {"$lt": self._commands.clock.now() - self._commands.tombstone_ttl}
        match = {"tombstones.made_at": {"$gt": 0, **older}}
        change = {"$pull": {"tombstones": {"made_at": older}}}
        self._commands.update_all(match, change)
        return False

    def find_deleted(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        for name in self._commands.latest(self._commands.name_of(thread_id)):
            if not deletions_of(name, self._commands.marks(thread_id), owner):
                continue
            match = {"_id": name["key"], "family": name["home"], "deleted_at": {"$ne": None}}
            for record in self._commands.latest({**match, "removed_at": {"$gt": 0}}, IDENTITY):
                return thread_ref(record)
        return None

    def delete(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> Counts:
        return self._delete(thread, seen, check, is_late=False)

    def delete_late(self, thread: ThreadRef) -> bool:
        """Mark a thread as deleted that has no checkpoint yet, and no writes, without a tombstone.

        Returns whether it was so: somebody may have put to it.
        """

        def check() -> None:
            new = {**record_of(thread), "provisional": True}
            if self._commands.exists(rows_of(thread)) or not self._commands.exists(new):
                raise Stale

        try:
            self._delete(thread, None, check, is_late=True)
        except Stale:
            return False
        return True

    def _delete(
        self,
        thread: ThreadRef,
        seen: ThreadRow | None,
        check: Callable[[], None] | None,
        *,
        is_late: bool,
    ) -> Counts:
        same = {} if seen is None else {"updated_at": seen.updated_at, "fence": seen.fence}
        newest = self._newest_id(thread, "")  # of most of them, before others have to wait
        try:
            with self._locks.locked(thread, {}, same=same) as guard:
                if check is not None:
                    check()
                newest = max(newest, self._newest_id(thread, newest))
                self._mark_deleted(thread, guard, seen, None if is_late else newest)
        except Stale:
            if seen is not None or check is not None:
                raise
            return Counts(0, 0)  # somebody else was faster
        return self._rows.count_rows(thread, {})

    def lineage(self, thread: ThreadRef) -> list[FamilyMember]:
        follow = {
            "from": self._commands.name,
            "startWith": "$_id",
            "connectFromField": "parent",
            "connectToField": "_id",
            "restrictSearchWithMatch": {"family": thread.family},
            "as": "record",
            "depthField": "height",
        }
        records = self._commands.aggregate(
            [
                {"$match": record_of(thread)},
                {"$project": {"_id": 1}},
                {"$graphLookup": follow},
                {"$unwind": "$record"},
                {"$replaceWith": "$record"},
                {"$sort": {"height": 1}},
                *self._logs.up_to_date(),
                *self._forked_from(thread.family),
            ]
        )
        return [family_member(record) for record in records]

    def family(self, family: Any) -> list[FamilyMember]:
        match = {"family": family, "kind": "thread", "building": None, "thread_id": {"$ne": ""}}
        return [
            family_member(record)
            for record in self._commands.aggregate(
                [{"$match": match}, *self._logs.up_to_date(), *self._forked_from(family)]
            )
        ]

    def of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        keys: dict[ObjectId, ObjectId] = {}
        for batch in batches(run_ids, IN_ONE_COMMAND):
            for group in self._commands.aggregate(
                [
                    {"$match": {"run_id": {"$in": batch}}},
                    {"$group": {"_id": {"thread": "$thread", "family": "$family"}}},
                ]
            ):
                thread, family = group["_id"].get("thread"), group["_id"].get("family")
                if isinstance(thread, ObjectId) and isinstance(family, ObjectId):  # not damaged
                    keys[thread] = family
        match = {
            "_id": {"$in": list(keys)},
            "family": {"$in": list(set(keys.values()))},
            "deleted_at": None,
        }
        return [thread_ref(record) for record in self._commands.find(match, IDENTITY)]

    def _forked_from(self, family: Any) -> list[Document]:
        """Return the stages that find the metadata of the checkpoint a thread was forked from."""
        stages: list[Document] = []
        for name, key in (("own", "_id"), ("parents", "parent")):
            match = {
                "family": family,
                "kind": "checkpoint",
                "thread": {"$exists": True},  # the first thread has no parent to look for
                "checkpoint_ns": "",
                "$expr": {"$eq": ["$checkpoint_id", "$$forked"]},
            }
            stages.append(
                {
                    "$lookup": {
                        "from": self._commands.name,
                        "localField": key,
                        "foreignField": "thread",
                        "let": {"forked": "$parent_checkpoint_id"},
                        "pipeline": [{"$match": match}, {"$project": {"metadata": 1}}],
                        "as": name,
                    }
                }
            )
        return stages

    def _newest_id(self, thread: ThreadRef, after: str) -> str:
        """Return the highest checkpoint id of a thread that is above another; empty if none is."""
        rows: Document = {"thread": thread.key, "kind": ROWS, "checkpoint_id": {"$gt": after}}
        newest = {"$group": {"_id": None, "newest": {"$max": "$checkpoint_id"}}}
        # Those that are no text are damaged.
        stages = [{"$match": {"family": thread.family, **rows}}, newest]
        groups = self._commands.aggregate_latest(stages)
        return str(groups[0]["newest"]) if groups else ""

    def _mark_deleted(
        self, thread: ThreadRef, guard: Statement, seen: ThreadRow | None, newest: str | None
    ) -> None:
        """Mark a thread as deleted.

        Args:
            thread: The thread, which is locked.
            guard: Ends the bulk if the lock is lost.
            seen: What it must be as.
            newest: The highest id of its checkpoints. None if it came late, and is no thread.
        """
        threads = self._commands.latest({"family": thread.family, "kind": "thread"}, KINSHIP)
        (record,) = (other for other in threads if other["_id"] == thread.key)
        is_needed = thread.key in ancestors_of_living(
            [other for other in threads if other is not record]
        )
        deleted = deleted_record(record["thread_id"] if is_needed else "")
        unlisted = {"$unset": ["terms", "unlisted", "awaited", *LISTED_PLACE]}
        statements: list[Statement] = [guard]
        if newest is not None:
            statements.append(self._tombstone_of(record, newest or None))
        statements.append(update_one(record_of(thread), [{"$set": deleted}, unlisted]))
        # Last: else a thread might be there whose name expires.
        name, ttl = self._commands.name_of(record["thread_id"]), self._commands.tombstone_ttl
        expiry = expiry_of_name(name, thread.key, ttl)
        statements.append(expiry)
        done = self._commands.change(statements)
        dead = {**record_of(thread), "deleted_at": {"$ne": None}}
        if done.failed is None:
            return
        # Unless it was done by an attempt whose answer was lost.
        if not (done.is_repeated and self._commands.exists(dead)):
            if seen is not None:
                raise Stale
            raise StorageBusy("deleting took too long, and others have written since; try again")
        self._commands.change([expiry])

    def _tombstone_of(self, record: Document, watermark: str | None) -> Statement:
        """Return the statement that adds the tombstone of a thread."""
        marks = self._commands.marks(record["thread_id"])
        name = self._commands.name_of(record["thread_id"])
        mark, ttl = marks.of_owner(record["owner"]), self._commands.tombstone_ttl
        return tombstone_statement(name, mark, watermark, ObjectId(), ttl)
