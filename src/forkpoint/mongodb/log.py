"""MongoDB: the log of a thread, which makes of a put one insert.

A put keeps up the record of its thread, and so has to change two documents, one after the other.
What stops between the two leaves a record that counts a checkpoint which is not there. So a saver
that puts to a thread begins a *log*, whose id the record has from then on. What it puts goes into
the log: each document says at which `slot`, consecutive numbers from 1, and under `record` what the
thread's record would say. Nothing else counts checkpoints, where there are logs. While one saver
alone puts to the thread, as is the rule, it goes on with its log.

A unique index sees to it that each slot is taken once. Whatever changes what puts depend on (a
lease, a removal, a collection), and every other saver that puts to the thread, first ends the log:
it takes the next slot for a document of the kind `end`, brings the record up to date, and takes the
log's id out of it. So the saver whose log it was collides with the end, and looks again. It cannot
miss it. It alone adds to its log, one put after the other, and so knows of all slots that were
taken, but for the end. For the same reason it does not repeat a put whose answer was lost.

Ends expire. A saver stops using a log, and takes no word of success for it, long before that.

Of the chunks of a put, the first is in the log, too, before the rows, and leaves the record as it
is. So nothing of the put is stored once the log has ended.

Without the index there are no logs, and none behind a router: a collection that has it cannot be
sharded by a hash of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any, TypeVar

from bson.objectid import ObjectId

from forkpoint.caches import Recent
from forkpoint.errors import StorageBusy, damaged_record
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document, record_of
from forkpoint.mongodb.statements import update_one
from forkpoint.mongodb.tail import (
    END_SECONDS,
    EXPIRY,
    LOG_SECONDS,
    SAID,
    Tail,
    latest_time,
    log_end,
    tail_of,
)
from forkpoint.mongodb.thread_documents import HAS_LOG, NO_LOG
from forkpoint.storage.rows import ThreadRef
from forkpoint.storage.shared import batches

LOG_INDEX = "forkpoint_log"
"""The name of the index by which each slot is taken once."""

_T = TypeVar("_T")

_NO_ENTRY: Document = {"kind": None, "slot": 0, "record": {}}
_LOGS_AT_ONCE = 1000
_IS_SAID = {"$eq": [{"$type": "$record"}, "object"]}
_SAID = {field: f"$record.{field}" for field in SAID}
_ENTRY: Document = {"kind": 1, "log": 1, "slot": 1, "record": {"$cond": [_IS_SAID, _SAID, {}]}}
"""What is read of an entry: nothing else, so that damage of one keeps nobody from the others."""
_ATTEMPTS = 100  # to end a log that its saver goes on with: each comes in between by chance only


class Logs:
    """Remembers the tails of logs, and ends logs.

    Args:
        commands: Those of the collection.
    """

    def __init__(self, commands: MongoCommands) -> None:
        self._commands = commands
        # Not within the budget of caches: what is looked at must be known until it is used.
        self._tails: Recent[ObjectId, Tail] = Recent(4096)

    @property
    def keeps_logs(self) -> bool:
        """Whether logs may be begun in this store."""
        return self._commands.keeps_logs

    def tail(self, thread: ThreadRef) -> Tail | None:
        """Return where a thread's log ends, if that is known."""
        return self._tails.get(thread.key)

    def remember_tail(self, thread: ThreadRef, tail: Tail | None) -> None:
        """Remember where a thread's log ends."""
        if tail is None:
            self._tails.pop(thread.key)
        else:
            self._tails.put(thread.key, tail)

    def owns_log(self, thread: ThreadRef, log: ObjectId) -> bool:
        """Return whether this saver began a thread's log, as far as it is known."""
        known = self._tails.get(thread.key)
        return known is not None and known.began is not None and known.log == log

    def has_gone_on(self, thread: ThreadRef, tail: Tail) -> bool:
        """Return whether a log of this saver ended as logs do, and was not lost with the store.

        Its end comes after all that went into it, and lasts for longer than the log is used.
        """
        assert tail.log is not None
        ends = self._commands.latest({"_id": tail.log, "family": thread.family}, {"slot": 1})
        is_used = tail.is_younger_than(2 * LOG_SECONDS)
        return not is_used or any(end["slot"] > tail.slot for end in ends)

    def look_at_tail(self, thread: ThreadRef, record: Document, rows: Iterable[Document]) -> None:
        """Remember where a thread's log ends, unless later documents of it are known."""
        known, tail = self._tails.get(thread.key), tail_of(record, rows)
        if known is None or tail is None or not known.goes_on_after(tail):
            self.remember_tail(thread, tail)

    def without_log(
        self, thread: ThreadRef, match: Document, change: Callable[[Document], _T]
    ) -> _T:
        """Change the record of a thread, after ending its log if it has one.

        Args:
            thread: The thread.
            match: What the record must say.
            change: Changes a record that a filter matches, and returns something true if it did.
        """
        for _ in range(_ATTEMPTS):
            if result := change({**match, **NO_LOG}):
                return result
            records = self._commands.latest(match, {"log": 1})
            if not records:
                return result
            log = records[0].get("log")
            if log is None:
                continue  # somebody has ended the log in between, or it matches only now
            if not isinstance(log, ObjectId):
                raise damaged_record(thread.thread_id)
            self.end_log(thread)
        raise _written_to_again_and_again()

    def end_log(self, thread: ThreadRef) -> None:
        """End the log of a thread, if it has one, and bring its record up to date.

        Raises:
            StorageBusy: Somebody went on with it again and again.
        """
        self._tails.pop(thread.key)
        for _ in range(_ATTEMPTS):
            if self.end_logs(record_of(thread)):
                return
        raise _written_to_again_and_again()

    def end_logs(self, which: Document) -> bool:
        """End the logs of some threads, and return whether all have ended.

        The records of the others are brought up to date only. The server does it by itself, so that
        there is hardly any time for others to come in between, however far it is.
        """
        match = {"$match": {**which, "kind": "thread", **HAS_LOG}}
        newest = self.newest_entry("log", "$family")
        is_over = {"$eq": [{"$first": "$newest.kind"}, "end"]}
        record = {"$ifNull": [{"$first": "$newest.record"}, {}]}
        slot = {"$add": [{"$ifNull": [{"$first": "$newest.slot"}, 0]}, 1]}
        goes_on = {"$match": {"$expr": {"$not": is_over}}}
        end = {"$replaceWith": {**log_end("$family", "$log", slot, record), "expires": EXPIRY}}
        merge = self._merge("keepExisting", "insert")
        is_ended = self._commands.merge([match, newest, goes_on, end, merge])

        state = {"$project": {"family": 1, "log": 1, "record": record, "is_over": is_over}}
        log = {"log": {"$cond": ["$$new.is_over", None, "$log"]}}
        time = latest_time("$$new.record.updated_at")
        changed = {"$mergeObjects": ["$$ROOT", "$$new.record", time, log]}
        same = {"$eq": ["$log", "$$new.log"]}
        merge = self._merge([{"$replaceWith": {"$cond": [same, changed, "$$ROOT"]}}], "discard")
        self._commands.merge([match, newest, state, merge])
        return is_ended

    def end_many_logs(self, which: Document) -> None:
        """End the logs of many threads, faster, but not those that are written to meanwhile."""
        stages = [
            {"$match": {**which, "kind": "thread", "family": {"$type": "objectId"}, **HAS_LOG}},
            self.newest_entry("log", "$family"),
            {"$project": {"family": 1, "log": 1, "newest": {"$first": "$newest"}}},
        ]
        for records in batches(self._commands.aggregate_latest(stages), _LOGS_AT_ONCE):
            over = self._commands.clock.now() / 1e6 + END_SECONDS
            expiry = {"expires": datetime.fromtimestamp(over, timezone.utc)}
            entries = [record.pop("newest", _NO_ENTRY) for record in records]
            ends = [
                {**log_end(at["family"], at["log"], entry["slot"] + 1, entry["record"]), **expiry}
                for at, entry in zip(records, entries, strict=True)
                if entry.get("kind") != "end"
            ]
            going_on = {ends[index]["log"] for index in self._commands.insert_free(ends)}
            statements = []
            for at, entry in zip(records, entries, strict=True):
                fields = dict(entry["record"])
                changes: Document = {"$max": {"updated_at": fields.pop("updated_at", 0)}}
                if at["log"] not in going_on:
                    fields |= NO_LOG
                    self._tails.pop(at["_id"])
                changes["$set"] = {**fields, "unlisted": True}
                statements.append(update_one(at, changes))
            self._commands.change(statements)

    def up_to_date(self) -> list[Document]:
        """Return the stages that merge the newest document of its log into each record."""
        record, at = {"$first": "$newest.record"}, {"$first": "$newest.record.updated_at"}
        return [
            self.newest_entry("log", "$family"),
            {"$replaceWith": {"$mergeObjects": ["$$ROOT", record, latest_time(at)]}},
            {"$unset": "newest"},
        ]

    def newest_entry(self, log: str, home: str) -> Document:
        """Return the stage that finds the newest document of a log, as `newest`."""
        same = {"$expr": {"$eq": ["$family", "$$home"]}, "slot": {"$gt": 0}}
        newest: list[Document] = [{"$sort": {"slot": -1}}, {"$limit": 1}, {"$project": _ENTRY}]
        return {
            "$lookup": {
                "from": self._commands.name,
                "localField": log,
                "foreignField": "log",
                "let": {"home": home},
                "pipeline": [{"$match": same}, *newest],
                "as": "newest",
            }
        }

    def _merge(self, matched: str | list[Document], not_matched: str) -> Document:
        into: Any = {"into": self._commands.name, "whenMatched": matched}
        return {"$merge": {**into, "whenNotMatched": not_matched}}


def _written_to_again_and_again() -> StorageBusy:
    return StorageBusy("a thread was written to again and again while its log was to be ended")
