"""MongoDB: where the log of a thread ends, and what the thread's record would say there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bson.objectid import ObjectId

from forkpoint.clocks import elapsed_microseconds
from forkpoint.errors import CorruptChunk
from forkpoint.mongodb.documents import Document
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.storage.rows import PutRequest, ThreadRef

LOG_SECONDS = 1800
"""For how long a saver begins puts by a log; it believes what it is told for twice as long."""

END_SECONDS = 4 * LOG_SECONDS
"""For how long the end of a log is kept."""

EXPIRY = {"$add": ["$$NOW", 1000 * END_SECONDS]}
"""The expression for when an end that is stored now expires."""

_NUMBERS = ("checkpoint_count", "updated_at", "state_updated_at")
_IN_LOG = (*_NUMBERS, "status", "status_for")
"""The fields of a record that the documents of a log say."""

SAID = (*_IN_LOG, "value_terms")
"""These, and one that they may say, too."""

STATE = ("log", "fence", "lock", "watermark", "provisional", *SAID)
"""The fields of a record that tell how to go on with its thread."""


class Tail(NamedTuple):
    """Where a thread's log ends, and the state of its record there.

    It is that of a log of one's own, or what was read of somebody else's, or of a record that has
    none. From those one may go on by a log of one's own.
    """

    epoch: ObjectId
    fence: int
    watermark: str | None
    """The tombstone watermark of the thread's id."""
    log: ObjectId | None
    slot: int
    record: Document
    """What the thread's record would say, of the fields that a log has."""
    began: int | None = None
    """When one's own log began, by `elapsed_microseconds`: others end it while a machine sleeps."""
    is_provisional: bool = False
    """Whether the thread has no checkpoint yet: then only a checkpoint begins a log."""

    def holds(self, request: PutRequest, thread: ThreadRef, watermark: str | None) -> bool:
        """Return whether a put was prepared for the state that this tail was read in."""
        is_same = self.epoch == thread.epoch and self.watermark == watermark
        return is_same and request.fence in (None, self.fence)

    def is_younger_than(self, seconds: float) -> bool:
        """Return whether it is the tail of a log that this saver began less than so long ago."""
        age = None if self.began is None else elapsed_microseconds() - self.began
        return age is not None and age < 1_000_000 * seconds

    def goes_on_after(self, other: Tail) -> bool:
        """Return whether both are of the same log, and the other one is not later."""
        return self.log is not None and self.log == other.log and self.slot >= other.slot

    def after(self, request: PutRequest, *, is_counted: bool = False) -> Document:
        """Return the state of the record after a put.

        Args:
            request: The request.
            is_counted: Whether its checkpoint replaces one that is counted already.
        """
        record = dict(self.record)
        is_head = request.status is not None and record["status_for"] <= request.checkpoint_id
        if request.row is not None and is_head:
            if request.value_terms is not None:
                record["value_terms"] = list(request.value_terms)
            elif "value_terms" in record:
                record["value_terms"] = None
        changes_status = request.status is not None and is_newest(request, record)
        if changes_status:
            record |= {"status": request.status, "status_for": request.checkpoint_id}
        if request.row is not None and not is_counted:
            record["checkpoint_count"] += 1
        if request.row is not None or changes_status:
            record["updated_at"] = max(record["updated_at"], request.now)
        if changes_status:
            record["state_updated_at"] = record["updated_at"]
        return record

    def with_status(self, request: PutRequest) -> Tail:
        """Return the tail after writes that change the record itself."""
        return self._replace(record=self.after(request))

    def begin(self) -> Tail:
        """Return the tail of a new, empty log of this saver that continues this one."""
        return self._replace(
            log=ObjectId(), slot=0, began=elapsed_microseconds(), is_provisional=False
        )

    def take_slot(self, document: Document) -> Tail:
        """Give a document the next slot of the log, without a change, and return the tail."""
        tail = self._replace(slot=self.slot + 1)
        document |= {"log": self.log, "slot": tail.slot, "record": self.record}
        return tail

    def follow(
        self, request: PutRequest, documents: Sequence[Document], *, is_counted: bool
    ) -> Tail:
        """Give documents the next slots of the log, and return the tail after them."""
        record, log, slot = self.after(request, is_counted=is_counted), self.log, self.slot
        for document in documents:
            slot += 1
            document["log"], document["slot"], document["record"] = log, slot, record
        return self._replace(slot=slot, record=record)


def is_newest(request: PutRequest, record: Document) -> bool:
    """Return whether no newer checkpoint than that of a put has set the status in a record."""
    if request.row is not None:
        return bool(record["status_for"] < request.checkpoint_id)
    return bool(record["status_for"] <= request.checkpoint_id)


def new_tail(epoch: ObjectId, watermark: str | None) -> Tail:
    """Return the tail of a thread that is about to be made."""
    times = {"updated_at": 0, "state_updated_at": 0}
    record = {"checkpoint_count": 0, **times, "status": "idle", "status_for": ""}
    return Tail(epoch, 0, watermark, None, 0, record, is_provisional=True)


def check_state(record: Document) -> None:
    """Check the types of the fields of a record that puts depend on.

    Raises:
        CorruptChunk: A field is of another type.
    """
    state = tuple(record[field] for field in ("checkpoint_count", "updated_at", "fence"))
    if not (
        all(isinstance(number, int) for number in state)
        and isinstance(record["status_for"], str)
        and isinstance(record["watermark"], (str, type(None)))
        and isinstance(record["lock"], (dict, type(None)))
        and isinstance(record["log"], (ObjectId, type(None)))
    ):
        raise CorruptChunk(f"the record of thread {record['_id']} is not what was written")


def _is_sound(said: Any) -> bool:
    """Return whether what a row of a log says of the record is of the types that are written."""
    return (
        isinstance(said, dict)
        and said.keys() <= set(SAID)
        and all(isinstance(said.get(name), int) for name in _NUMBERS)
        and all(isinstance(said.get(name), str) for name in ("status", "status_for"))
        and isinstance(said.get("value_terms"), (list, type(None)))
    )


def tail_of(record: Document, rows: Iterable[Document]) -> Tail | None:
    """Return the tail of a thread whose log ends with one of these rows.

    None if it has ended, or if that row is damaged. If it ends with another one, whoever takes the
    slot after it collides.
    """
    check_state(record)
    if record["lock"] is not None:
        return None
    log, slot = record["log"], 0
    latest = {name: record[name] for name in _IN_LOG}
    if record.get("value_terms") is not None:  # else each row of the log would say so
        latest["value_terms"] = record["value_terms"]
    if log is not None:
        for row in rows:
            if row.get("log") == log and row.get("slot", 0) > slot:
                if row.get("kind") == "end" or not _is_sound(row.get("record")):
                    return None
                slot, latest = row["slot"], row["record"]
    return Tail(
        record["epoch"],
        record["fence"],
        record["watermark"],
        log,
        slot,
        latest,
        is_provisional=record["provisional"],
    )


def end_of(thread: ThreadRef, tail: Tail) -> Statement:
    """Return the statement that ends a log; it collides if somebody else wrote to the log."""
    assert tail.log is not None
    slot = tail.slot + 1
    end = {**log_end(thread.family, tail.log, slot, {"$literal": tail.record}), "expires": EXPIRY}
    match = {"_id": tail.log, "family": thread.family, "slot": slot}
    return update_one(match, [{"$replaceWith": end}], upsert=True)


def log_end(family: Any, log: Any, slot: Any, record: Any) -> Document:
    """Return the document that ends a log, or the expression for it."""
    place = {"_id": log, "family": family, "kind": "end", "log": log, "slot": slot}
    return {**place, "record": record}


def latest_time(at: Any) -> Document:
    """Return the field `updated_at`: that of the record, or of its log if that is later."""
    return {"updated_at": {"$max": ["$updated_at", at]}}
