"""MongoDB: how threads are made, as they are or of others.

There are no transactions. What must happen together happens in one bulk of statements, in order,
that begins with one on the record of the thread: an upsert, whose filter says how the record must
be. If it is not so, the upsert collides with the record's own `_id`, and the bulk ends there.

A thread that is made is not seen before it is *shown*: its id means it, and its record is not
`building` any more.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from bson.objectid import ObjectId

from forkpoint.errors import ThreadExists
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import NOW, Document, record_of, rows_of
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.mongodb.thread_documents import new_record
from forkpoint.mongodb.tombstones import dead_until_of
from forkpoint.storage.rows import ThreadRef


class NewThreads:
    """Gives an id to a thread that is complete.

    Args:
        commands: Those of the collection.
    """

    def __init__(self, commands: MongoCommands) -> None:
        self._commands = commands

    def deleted_before(self, thread_id: str) -> Document | None:
        """Return what is left of the thread that an id meant before.

        Raises:
            ThreadExists: There is one.
        """
        name = self._commands.name_of(thread_id)
        named = self._commands.latest(name)
        if not named:
            return None
        old = {"_id": named[0]["key"], "family": named[0]["home"]}
        # If its record is missing, somebody is about to make it, or ended just before.
        now = datetime.fromtimestamp(self._commands.clock.now() / 1e6, timezone.utc)
        expiry = now + timedelta(microseconds=2 * self._commands.tombstone_ttl)
        times = {"created_at": 0, "updated_at": 0, "deleted_at": 0, "expires": expiry}
        record = {**old, **new_record("", ObjectId()), **times}
        for of_living in ("unlisted", "terms"):
            del record[of_living]
        self._commands.insert(record)
        (record,) = self._commands.latest(old)
        if record["deleted_at"] is None:
            raise ThreadExists(f"there is a thread {thread_id!r} already")
        return {
            **record,
            "dead_until": dead_until_of(named[0], self._commands.marks(thread_id), None),
        }

    def is_shown(self, made: Document, old: Document | None) -> bool:
        """Return whether a copy can be seen although the command for it was not done in full.

        If not, its id means again what it meant before.
        """
        target = ThreadRef(made["_id"], made["family"], made["epoch"])
        name = self._commands.name_of(made["thread_id"])
        named = {**name, "key": target.key}
        if not self._commands.exists(named):
            return False
        # By a command whose answer was lost, and which may have ended in between.
        self._commands.bulk([show_statement(target, made["building"])])
        if self._commands.exists({**record_of(target), "building": None}):
            return True
        if old is None:
            self._commands.delete(named)
        else:
            self._commands.update(named, {"$set": {"key": old["_id"], "home": old["family"]}})
        return False

    def discard(self, unfinished: ThreadRef) -> None:
        """Remove a copy that nobody has seen."""
        rows = rows_of(unfinished)
        self._commands.delete(rows)
        self._commands.delete(record_of(unfinished))


def name_statement(target: ThreadRef, name: Document, old: Document | None) -> Statement:
    """Return the statement that gives an id to a copy that is ready to be shown."""
    return update_one(
        {**name, "key": old["_id"] if old else None},
        {"$set": {"key": target.key, "home": target.family}, "$unset": {"expires": ""}},
        upsert=True,
    )


def show_statement(target: ThreadRef, building: ObjectId) -> Statement:
    """Return the statement that shows a copy, unless a collection took it for abandoned."""
    stored = {"$cond": [{"$gt": ["$state_updated_at", 0]}, NOW, 0]}
    times = {"created_at": NOW, "updated_at": NOW, "state_updated_at": stored}
    return update_one(
        {**record_of(target), "building": building},
        [
            {"$set": {**times, "unlisted": True, "lock": None}},
            {"$unset": ["building", "removed_at"]},
        ],
    )
