"""MongoDB: how threads are made, as they are or of others.

There are no transactions. What must happen together happens in one bulk of statements, in order,
that begins with one on the record of the thread: an upsert, whose filter says how the record must
be. If it is not so, the upsert collides with the record's own `_id`, and the bulk ends there.

A thread that is made is not seen before it is *shown*: its id means it, and its record is not
`building` any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from bson.objectid import ObjectId

from forkpoint.encoding.hashing import Hashing
from forkpoint.errors import damaged_record
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import NOW, Document, record_of, rows_of
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.mongodb.thread_documents import checked_name, checksums_of, new_record
from forkpoint.mongodb.tombstones import expiry_after, naming, watermark_of
from forkpoint.storage.rows import ThreadRef
from forkpoint.storage.shared import thread_exists


class NewThreads:
    """Makes the records of threads, and gives them their ids.

    Args:
        commands: Those of the collection.
    """

    def __init__(self, commands: MongoCommands) -> None:
        self._commands = commands

    def record(
        self,
        thread_id: str,
        target: ThreadRef,
        old: Document | None,
        hashing: Hashing,
        **fields: Any,
    ) -> Document:
        """Return the record of a thread that is not visible yet.

        Args:
            thread_id: Its id.
            target: Its key, family and epoch.
            old: What `deleted_before` returned.
            hashing: What its checksums are made by.
            fields: What else it says.
        """
        made = new_record(
            thread_id,
            target.epoch,
            **record_of(target),
            provisional=False,
            watermark=old["watermark"] if old else None,
            building=ObjectId(),
            **fields,
        )
        return {**made, "checksums": checksums_of(made, hashing)}

    def show(self, made: Document, old: Document | None, before: Sequence[Statement]) -> bool:
        """Make a thread visible, and return whether it is.

        Args:
            made: Its record.
            old: What `deleted_before` returned.
            before: What is to be done first, each with an effect, or the thread is not shown.

        Raises:
            ThreadExists: There is a thread of its id by now.
        """
        statements = [*before, self._naming(made, old), _show_statement(made)]
        outcome = self._commands.bulk(statements)
        if outcome.hits == len(statements) or self._is_shown(made, old):
            return True
        if outcome.error is not None:
            raise outcome.error
        if outcome.failed == len(before):
            raise thread_exists(made["thread_id"])
        return False

    def show_many(self, records: Sequence[Document]) -> set[str]:
        """Insert the records of threads, make these visible, and return the ids of those that are.

        Args:
            records: The records, of threads whose ids meant none before.
        """
        statements = [
            statement
            for made in records
            for statement in (insertion_of(made), self._naming(made, None), _show_statement(made))
        ]
        if not statements or self._commands.bulk(statements).hits == len(statements):
            return {made["thread_id"] for made in records}
        shown = set()
        for made in records:  # somebody else made one of them meanwhile
            if self._is_shown(made, None):
                shown.add(made["thread_id"])
            else:
                self.discard(made)
        return shown

    def _naming(self, made: Document, old: Document | None) -> Statement:
        """Return the statement that lets a thread's id mean it, if it means what it meant."""
        name = {**self._commands.name_of(made["thread_id"]), "key": old["_id"] if old else None}
        return naming(name, made["_id"], made["family"])

    def deleted_before(self, thread_id: str) -> Document | None:
        """Return what is left of the thread that an id meant before.

        Raises:
            ThreadExists: There is one.
        """
        name_documents = self._commands.latest(self._commands.name_of(thread_id))
        if not name_documents:
            return None
        name = checked_name(name_documents[0], thread_id)
        old = {"_id": name["key"], "family": name["home"]}
        # If its record is missing, somebody is about to make it, or ended just before.
        now = datetime.fromtimestamp(self._commands.clock.now() / 1e6, timezone.utc)
        expiry = now + timedelta(microseconds=2 * self._commands.tombstone_ttl)
        times = {"created_at": 0, "updated_at": 0, "deleted_at": 0, "expires": expiry}
        record = {**old, **new_record("", ObjectId()), **times}
        for of_living in ("unlisted", "terms"):
            del record[of_living]
        self._commands.insert(record)
        records = self._commands.latest(old)
        if records and is_unfinished(records[0]):
            self.discard(records[0])
            self._commands.insert(record)
            records = self._commands.latest(old)
        if not records:
            raise damaged_record(thread_id)
        record = records[0]
        if record["deleted_at"] is None:
            raise thread_exists(thread_id)
        watermark = watermark_of(name, self._commands.marks(thread_id), None)
        return {**record, "watermark": watermark}

    def discard(self, unfinished: Document) -> None:
        """Remove a thread that was not shown.

        Where no answer came, it may have been shown, and others may have written to it: it stays.
        """
        target = made_ref(unfinished)
        record = record_of(target)
        # Who makes it cannot show it any more.
        taken = {"$set": {"building": ObjectId(), "lock": None}}
        self._commands.update({**record, "building": {"$ne": None}}, taken)
        if not self._commands.exists({**record, "building": None}):
            # A collection may have removed its record, and rows have come since.
            self._commands.delete(rows_of(target))
            self._commands.delete(record)
            if unfinished["parent"] is not None:
                # Who has deleted it meanwhile left its id for this one: it is looked at again.
                parent = {**record, "_id": unfinished["parent"]}
                dead = {**parent, "deleted_at": {"$ne": None}, "expires": None}
                self._commands.update(dead, [{"$set": {"removed_at": NOW}}])

    def _is_shown(self, made: Document, old: Document | None) -> bool:
        """Return whether a thread is visible although the command for it seemed to fail.

        If not, its id means again what it meant before.
        """
        target = made_ref(made)
        means = {**self._commands.name_of(made["thread_id"]), "key": target.key}
        if not self._commands.exists(means):
            return False
        # By a command whose answer was lost, and which may have ended in between.
        self._commands.bulk([_show_statement(made)])
        if self._commands.exists({**record_of(target), "building": None}):
            return True
        if old is None:
            self._commands.delete(means)
        else:
            before = {"key": old["_id"], "home": old["family"]}
            expires = expiry_after(self._commands.tombstone_ttl)
            self._commands.update(means, [{"$set": {**before, "expires": expires}}])
        return False


def insertion_of(made: Document) -> Statement:
    """Return the statement that inserts the record of a new thread."""
    return update_one(record_of(made_ref(made)), {"$setOnInsert": made}, upsert=True)


def is_unfinished(record: Document) -> bool:
    """Return whether the record that a name leads to is of a thread that was not shown.

    The server, and who made the thread, ended between the last two statements of a bulk.
    """
    return record["deleted_at"] is None and record.get("building") is not None


def made_ref(made: Document) -> ThreadRef:
    """Return a thread that is made, given its record: its key, family and epoch."""
    return ThreadRef(made["_id"], made["family"], made["epoch"])


def _show_statement(made: Document) -> Statement:
    """Return the statement that makes a thread visible, unless it was taken for abandoned."""
    stored = {"$cond": [{"$gt": ["$state_updated_at", 0]}, NOW, 0]}
    times = {"created_at": NOW, "updated_at": NOW, "state_updated_at": stored}
    return update_one(
        {**record_of(made_ref(made)), "building": made["building"]},
        [
            {"$set": {**times, "unlisted": True, "lock": None}},
            {"$unset": ["building", "removed_at"]},
        ],
    )
