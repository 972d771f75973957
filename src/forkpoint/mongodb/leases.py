"""MongoDB: the leases of threads, and who waits for them."""

from __future__ import annotations

from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import NOW, Document, array_of, record_of
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.thread_documents import LEASED, NOT_LEASED, lease_row
from forkpoint.storage import interface
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import LeaseRow, ThreadRef
from forkpoint.storage.shared import fence_step

# Who waits for a lease, the first one first, without those who have not asked again in time.
_QUEUE = {"$filter": {"input": array_of("$lease_queue"), "cond": {"$gt": ["$$this.until", NOW]}}}
_QUEUE_NAMES = {"$map": {"input": _QUEUE, "in": "$$this.by"}}


class MongoLeases(interface.Leases):
    """Grants leases, each by one change of a thread's record.

    Args:
        commands: Those of the collection.
        logs: The logs of threads, which a lease ends.
    """

    def __init__(self, commands: MongoCommands, logs: Logs) -> None:
        self._commands = commands
        self._logs = logs

    def acquire(
        self,
        thread: ThreadRef,
        holder: str,
        ttl: int,
        *,
        take_over: bool,
        waits: bool,
        rolls_back: bool = False,
    ) -> LeaseRow | None:
        living = {**record_of(thread), "deleted_at": None}
        if thread.owner is not None:
            living["owner"] = thread.owner  # it may have been given away since it was looked for
        name = {"$literal": holder}
        is_held = {"$eq": ["$lease_holder", name]}  # by a command sent twice
        is_next = {"$in": [{"$ifNull": [{"$first": _QUEUE_NAMES}, name]}, [name]]}
        is_free = {"$and": [{"$not": [LEASED]}, is_next if waits else True]}
        free = [{"$expr": is_held}, {"$expr": is_free}]
        change: Document = {
            "fence": {"$cond": [is_held, "$fence", {"$add": ["$fence", fence_step()]}]},
            "lease_since": NOW,
            "lease_until": {"$add": [NOW, ttl]},
            "lease_holder": name,
            "lease_queue": _queue_without(name),
            "unlisted": True,
        }
        if rolls_back:
            taken = {"$cond": [LEASED, "$fence", None]}
            change["rollback_from"] = {"$ifNull": ["$rollback_from", taken]}
        leased = self._logs.without_log(
            thread,
            living if take_over else {**living, "$or": free},
            lambda match: self._commands.find_and_update(match, [{"$set": change}]),
        )
        if leased is not None:
            return lease_row(leased)
        queue = _queue_with(name, ttl)
        if not (self._commands.update(living, queue) if waits else self._commands.exists(living)):
            raise Stale
        return None

    def leave_queue(self, thread: ThreadRef, holder: str) -> None:
        change = [{"$set": {"lease_queue": _queue_without({"$literal": holder})}}]
        self._commands.update({**record_of(thread), "deleted_at": None}, change)

    def end_rollback(self, thread: ThreadRef, fence: int) -> None:
        held = {**record_of(thread), "fence": fence}
        self._commands.update(held, {"$set": {"rollback_from": None}})

    def renew(self, thread: ThreadRef, fence: int, ttl: int) -> bool:
        held = {**record_of(thread), "deleted_at": None, "fence": fence}
        renewed = {
            "lease_until": {"$max": ["$lease_until", {"$add": [NOW, ttl]}]},
            "unlisted": {"$cond": [LEASED, "$unlisted", True]},  # it may be listed as ended
        }
        return self._commands.update({**held, "lease_until": {"$gt": 0}}, [{"$set": renewed}])

    def release(self, thread: ThreadRef, fence: int) -> None:
        ended = {**NOT_LEASED, "fence": fence + 1, "unlisted": True}
        self._logs.without_log(
            thread,
            {**record_of(thread), "deleted_at": None, "fence": fence},
            lambda match: self._commands.update(match, {"$set": ended}),
        )


def _queue_without(name: Document) -> Document:
    return {"$filter": {"input": _QUEUE, "cond": {"$ne": ["$$this.by", name]}}}


def _queue_with(name: Document, ttl: int) -> list[Document]:
    """Return the change that puts a holder into the queue, or keeps its place there."""
    last = {"by": name, "until": {"$add": [NOW, ttl]}}
    kept = {"$cond": [{"$eq": ["$$this.by", name]}, last, "$$this"]}
    queued = {
        "$cond": [
            {"$in": [name, _QUEUE_NAMES]},
            {"$map": {"input": _QUEUE, "in": kept}},
            {"$concatArrays": [_QUEUE, [last]]},
        ]
    }
    return [{"$set": {"lease_queue": queued}}]
