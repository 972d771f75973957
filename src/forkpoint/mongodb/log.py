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

Without the index there are no logs, and none behind a router: a collection that has it cannot be
sharded by a hash of the family.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from itertools import count
from typing import Any, NamedTuple, TypeVar

from bson.objectid import ObjectId

from forkpoint.caches import Recent
from forkpoint.errors import CorruptChunk, StorageBusy
from forkpoint.mongodb.commands import MongoCommands, in_batches
from forkpoint.mongodb.documents import Document, record_of
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.mongodb.thread_documents import HAS_LOG, NO_LOG
from forkpoint.storage.rows import PutRequest, ThreadRef

LOG_INDEX = "forkpoint_log"
"""The name of the index by which each slot is taken once."""

LOG_SECONDS = 1800
"""For how long a saver begins puts by a log; it believes what it is told for twice as long."""

_END_SECONDS = 4 * LOG_SECONDS
_SAID = ("checkpoint_count", "updated_at", "state_updated_at", "status", "status_for")
_T = TypeVar("_T")

STATE = ("log", "fence", "lock", "dead_until", "provisional", "value_terms", *_SAID)
"""The fields of a record that tell how to go on with its thread."""

_ENTRY = dict.fromkeys(("kind", "log", "slot", "record"), 1)
_ATTEMPTS = 100  # to end a log that its saver goes on with: each comes in between by chance only


class Tail(NamedTuple):
    """Where a thread's log ends, and what its record would say there.

    It is that of a log of one's own, or what was read of somebody else's, or of a record that has
    none. From those one may go on by a log of one's own.
    """

    epoch: ObjectId
    fence: int
    dead_until: str | None
    log: ObjectId | None
    slot: int
    said: Document
    began: float | None = None
    """When one's own log began, by `time.monotonic`."""
    is_provisional: bool = False
    """Whether the thread has no checkpoint yet: then only a checkpoint begins a log."""

    def holds(self, put: PutRequest, thread: ThreadRef, dead_until: str | None) -> bool:
        """Return whether a put was prepared for what this was read of."""
        is_same = self.epoch == thread.epoch and self.dead_until == dead_until
        return is_same and put.fence in (None, self.fence)

    def is_younger_than(self, seconds: float) -> bool:
        """Return whether it is that of one's own log, and of which age."""
        return self.began is not None and time.monotonic() - self.began < seconds

    def goes_on_after(self, other: Tail) -> bool:
        """Return whether both are of the same log, and the other one says nothing that is new."""
        return self.log is not None and self.log == other.log and self.slot >= other.slot

    def is_newest(self, put: PutRequest) -> bool:
        """Return whether nothing newer than what is put decided about the thread's status."""
        if put.row is not None:
            return bool(self.said["status_for"] < put.checkpoint_id)
        return bool(self.said["status_for"] <= put.checkpoint_id)

    def after(self, put: PutRequest, *, is_counted: bool = False) -> Document:
        """Return what the record would say after a put.

        Args:
            put: The put.
            is_counted: Whether its checkpoint replaces one that is counted already.
        """
        said = dict(self.said)
        is_head = put.status is not None and said["status_for"] <= put.checkpoint_id
        if put.row is not None and is_head:
            if put.value_terms is not None:
                said["value_terms"] = list(put.value_terms)
            elif "value_terms" in said:
                said["value_terms"] = None
        changes_status = put.status is not None and self.is_newest(put)
        if changes_status:
            said |= {"status": put.status, "status_for": put.checkpoint_id}
        if put.row is not None and not is_counted:
            said["checkpoint_count"] += 1
        if put.row is not None or changes_status:
            said["updated_at"] = max(said["updated_at"], put.now)
        if changes_status:
            said["state_updated_at"] = said["updated_at"]
        return said

    def with_status(self, put: PutRequest) -> Tail:
        """Return the tail after writes that change the record itself."""
        return self._replace(said=self.after(put))

    def begin(self) -> Tail:
        """Return the tail of a log of one's own that goes on from here, and is empty yet."""
        return self._replace(log=ObjectId(), slot=0, began=time.monotonic(), is_provisional=False)

    def follow(
        self, put: PutRequest, documents: Sequence[Document], *, is_counted: bool
    ) -> tuple[list[Document], Tail]:
        """Return documents as the next ones in the log, and the log's tail then."""
        said = self.after(put, is_counted=is_counted)
        placed = [
            {**document, "log": self.log, "slot": slot, "record": said}
            for document, slot in zip(documents, count(self.slot + 1))
        ]
        return placed, self._replace(slot=self.slot + len(placed), said=said)


def new_tail(epoch: ObjectId, dead_until: str | None) -> Tail:
    """Return the tail of a thread that is about to be made."""
    times = {"updated_at": 0, "state_updated_at": 0}
    said = {"checkpoint_count": 0, **times, "status": "idle", "status_for": ""}
    return Tail(epoch, 0, dead_until, None, 0, said, is_provisional=True)


def check_state(record: Document) -> None:
    """Check that a record says of the thread's state what can be gone on with.

    Raises:
        CorruptChunk: A field is of another type.
    """
    state = tuple(record[field] for field in ("checkpoint_count", "updated_at", "fence"))
    if not (
        all(isinstance(number, int) for number in state)
        and isinstance(record["status_for"], str)
        and isinstance(record["dead_until"], (str, type(None)))
        and isinstance(record["lock"], (dict, type(None)))
        and isinstance(record["log"], (ObjectId, type(None)))
    ):
        raise CorruptChunk(f"the record of thread {record['_id']} is not what was written")


def tail_of(record: Document, rows: Iterable[Document]) -> Tail | None:
    """Return the tail of a thread whose log ends with one of these rows, if one may go on there.

    If it ends with another one, whoever takes the slot after it collides.
    """
    check_state(record)
    if record["lock"] is not None:
        return None
    log, slot = record["log"], 0
    said = {name: record[name] for name in _SAID}
    if record.get("value_terms") is not None:  # else each row of the log would say so
        said["value_terms"] = record["value_terms"]
    if log is not None:
        for row in rows:
            if row.get("log") == log and row.get("slot", 0) > slot:
                if row["kind"] == "end":
                    return None
                slot, said = row["slot"], row["record"]
    return Tail(
        record["epoch"],
        record["fence"],
        record["dead_until"],
        log,
        slot,
        said,
        is_provisional=record["provisional"],
    )


def end_of(thread: ThreadRef, tail: Tail) -> Statement:
    """Return the statement that ends a log, and collides if it goes on, or has ended, elsewhere."""
    assert tail.log is not None
    slot = tail.slot + 1
    end = {**_end(thread.family, tail.log, slot, {"$literal": tail.said}), "expires": _EXPIRY}
    found = {"_id": tail.log, "family": thread.family, "slot": slot}
    return update_one(found, [{"$replaceWith": end}], upsert=True)


class Logs:
    """What is known of logs, and how they are ended."""

    def __init__(self, commands: MongoCommands) -> None:
        self._commands = commands
        # Not within the budget of caches: what is looked at must be known until it is used.
        self._tails: Recent[ObjectId, Tail] = Recent(4096)

    @property
    def keeps_logs(self) -> bool:
        """Whether logs may be begun in this store."""
        return self._commands.keeps_logs

    def tail(self, thread: ThreadRef) -> Tail | None:
        """Return the tail of a thread's log, as far as it is known."""
        return self._tails.get(thread.key)

    def remember_tail(self, thread: ThreadRef, tail: Tail | None) -> None:
        """Remember where a thread's log ends."""
        if tail is None:
            self._tails.pop(thread.key)
        else:
            self._tails.put(thread.key, tail)

    def owns_log(self, thread: ThreadRef, log: ObjectId) -> bool:
        """Return whether a thread's log is one's own, as far as it is known."""
        known = self._tails.get(thread.key)
        return known is not None and known.began is not None and known.log == log

    def has_gone_on(self, thread: ThreadRef, tail: Tail) -> bool:
        """Return whether one's own log, which the record does not name any more, ended properly.

        Its end comes after all that went into it, and lasts for longer than the log is used.
        """
        assert tail.log is not None
        ends = self._commands.latest({"_id": tail.log, "family": thread.family}, {"slot": 1})
        is_used = tail.is_younger_than(2 * LOG_SECONDS)
        return not is_used or any(end["slot"] > tail.slot for end in ends)

    def look_at_tail(self, thread: ThreadRef, record: Document, rows: Iterable[Document]) -> None:
        """Remember where a thread's log ends, unless it is known to go on after these rows."""
        known, tail = self._tails.get(thread.key), tail_of(record, rows)
        if known is None or tail is None or not known.goes_on_after(tail):
            self.remember_tail(thread, tail)

    def without_log(
        self, thread: ThreadRef, wanted: Document, change: Callable[[Document], _T]
    ) -> _T:
        """Return what a change of a thread's record returns, once it has no log any more.

        Args:
            thread: The thread.
            wanted: What the record must say.
            change: Changes a record that a filter finds, and returns something true if it did.
        """
        while not (done := change({**wanted, **NO_LOG})):
            if not self._commands.exists({**wanted, **HAS_LOG}):
                break
            self.end_log(thread)
        return done

    def end_log(self, thread: ThreadRef) -> None:
        """Bring a thread's record up to date, and let nobody go on with its log, if it has one.

        Raises:
            StorageBusy: Somebody went on with it again and again.
        """
        self._tails.pop(thread.key)
        for _ in range(_ATTEMPTS):
            if self.end_logs(record_of(thread)):
                return
        raise StorageBusy("a thread was written to again and again while its log was to be ended")

    def end_logs(self, which: Document) -> bool:
        """Do so for some threads, and return whether it could be done for all.

        The records of the others are brought up to date only. The server does it by itself, so that
        there is hardly any time for others to come in between, however far it is.
        """
        wanted = {"$match": {**which, "kind": "thread", **HAS_LOG}}
        newest = self.newest_entry("log", "$family")
        is_over = {"$eq": [{"$first": "$newest.kind"}, "end"]}
        said = {"$ifNull": [{"$first": "$newest.record"}, {}]}
        slot = {"$add": [{"$ifNull": [{"$first": "$newest.slot"}, 0]}, 1]}
        going_on = {"$match": {"$expr": {"$not": is_over}}}
        end = {"$replaceWith": {**_end("$family", "$log", slot, said), "expires": _EXPIRY}}
        merge = self._merge("keepExisting", "insert")
        ended = self._commands.merge([wanted, newest, going_on, end, merge])

        known = {"$project": {"family": 1, "log": 1, "said": said, "is_over": is_over}}
        log = {"log": {"$cond": ["$$new.is_over", None, "$log"]}}
        latest = _latest("$$new.said.updated_at")
        changed = {"$mergeObjects": ["$$ROOT", "$$new.said", latest, log]}
        same = {"$eq": ["$log", "$$new.log"]}
        merge = self._merge([{"$replaceWith": {"$cond": [same, changed, "$$ROOT"]}}], "discard")
        self._commands.merge([wanted, newest, known, merge])
        return ended

    def end_many_logs(self, which: Document) -> None:
        """Do so for many threads, in a fifth of the time, and leave alone what goes on."""
        behind = {**which, "kind": "thread", **HAS_LOG}
        for records in in_batches(self._commands.latest(behind, {"family": 1, "log": 1}), 1000):
            newest = self._newest_entries(records)
            expires = datetime.fromtimestamp(
                self._commands.now() / 1e6 + _END_SECONDS, timezone.utc
            )
            ends = [
                {**_end(one["family"], one["log"], slot + 1, said), "expires": expires}
                for one in records
                for kind, slot, said in [newest.get(one["log"], _NO_ENTRY)]
                if kind != "end"
            ]
            going_on = {ends[index]["log"] for index in self._commands.insert_free(ends)}
            statements = []
            for one in records:
                said = dict(newest.get(one["log"], _NO_ENTRY)[2])
                changed: Document = {"$max": {"updated_at": said.pop("updated_at", 0)}}
                over = {} if one["log"] in going_on else NO_LOG
                if over:
                    self._tails.pop(one["_id"])
                changed["$set"] = {**said, **over, "unlisted": True}
                statements.append(update_one(one, changed))
            self._commands.bulk(statements)

    def _newest_entries(self, records: Sequence[Document]) -> dict[ObjectId, Sequence[Any]]:
        """Return the kind of the newest document of each log, its slot, and what it says."""
        fields = ("kind", "slot", "record")
        entries = {
            "family": {"$in": list({record["family"] for record in records})},
            "log": {"$in": [record["log"] for record in records]},
            "slot": {"$gt": 0},
        }
        first = {field: {"$first": f"${field}"} for field in fields}
        found = self._commands.aggregate(
            [
                {"$match": entries},
                {"$sort": {"log": -1, "slot": -1}},
                {"$group": {"_id": "$log", **first}},
            ]
        )
        return {one["_id"]: [one[field] for field in fields] for one in found}

    def up_to_date(self) -> list[Document]:
        """Return the stages that let records say what they would if there were no logs."""
        said, at = {"$first": "$newest.record"}, {"$first": "$newest.record.updated_at"}
        return [
            self.newest_entry("log", "$family"),
            {"$replaceWith": {"$mergeObjects": ["$$ROOT", said, _latest(at)]}},
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


_EXPIRY = {"$add": ["$$NOW", 1000 * _END_SECONDS]}
_NO_ENTRY: Sequence[Any] = (None, 0, {})


def _end(family: Any, log: Any, slot: Any, said: Any) -> Document:
    """Return the end of a log, or the expression for it."""
    place = {"_id": log, "family": family, "kind": "end", "log": log, "slot": slot}
    return {**place, "record": said}


def _latest(at: Any) -> Document:
    """Return the time of a record that may have changed since it was written to at another."""
    return {"updated_at": {"$max": ["$updated_at", at]}}
