"""MongoDB: what keeps others out of a thread for a while.

Who removes or copies locks the thread, by its record: puts wait until the lock is gone, and leases
are renewed all the while. Work on a long thread takes the lock anew for each of its parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bson.objectid import ObjectId

from forkpoint.errors import StorageBusy
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document, record_of
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.statements import IF_THERE, Statement, update_one
from forkpoint.mongodb.tail import check_state
from forkpoint.mongodb.thread_documents import HAS_LOG
from forkpoint.mongodb.thread_rows import ThreadRows
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import ThreadRef

LOCK_SECONDS = 5
"""How long a removal or a copy keeps others out of a thread if its process ends in the middle."""

_LOCK_PAUSE_SECONDS = 0.005
_GIVE_WAY_SECONDS = 0.5  # at most, to those who waited for a lock
_EXPIRED = {"$lt": ["$lock.until", "$$NOW"]}
NOT_EXPIRED: Document = {"lock.by": {"$exists": True}, "$nor": [{"$expr": _EXPIRED}]}
"""Of the record of a thread: that somebody locks it who may still be there."""


def locked_until(token: ObjectId, seconds: float) -> Document:
    """Return the fields that lock a thread for some seconds from now on."""
    return {"lock": {"by": token, "until": {"$add": ["$$NOW", int(1000 * seconds)]}}}


class Locks:
    """Locks of threads.

    Args:
        commands: Those of the collection.
        logs: The logs of threads.
        rows: The rows of threads.
    """

    def __init__(self, commands: MongoCommands, logs: Logs, rows: ThreadRows) -> None:
        self._commands = commands
        self._logs = logs
        self._rows = rows

    @contextmanager
    def locked(
        self,
        thread: ThreadRef,
        change: Document,
        *,
        same: Document = {},  # noqa: B006 - never changed
        count: bool = False,
    ) -> Iterator[Statement]:
        """Lock a thread: nobody else writes to it, or removes from it.

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
        lock = locked_until(token, LOCK_SECONDS)
        living = {**record_of(thread), "deleted_at": None, **same}
        if same and self._commands.exists({**record_of(thread), **HAS_LOG}):
            self._logs.end_log(thread)  # else the record does not say what it would
        count = self._take(thread, living, token, {**lock, **change}) or count
        try:
            yield update_one(
                {**living, "lock.by": token}, [{"$set": {**lock, **IF_THERE}}], upsert=True
            )
        except Stale:  # before anything was done
            raise
        except BaseException:
            count = True  # it may be done in part
            raise
        finally:
            unlocked: Document = {"lock": None, **(self._rows.counts_now(thread) if count else {})}
            self._commands.update({**record_of(thread), "lock.by": token}, {"$set": unlocked})

    def _take(self, thread: ThreadRef, living: Document, token: ObjectId, change: Document) -> bool:
        """Take a lock, and return whether it was taken from a process that has stopped."""
        free = {**living, "$or": [{"lock": None}, {"lock.by": token}]}
        expired = {**living, "lock": {"$ne": None}, "$expr": _EXPIRED}
        stages = [{"$set": change}]
        give_up = time.monotonic() + 10 * LOCK_SECONDS
        while not self._logs.without_log(
            thread, free, lambda match: self._commands.update(match, stages)
        ):
            is_taken = self._commands.update(expired, stages)
            if not is_taken:
                if not (records := self._commands.latest(living)):
                    raise Stale
                check_state(records[0])
                lock = records[0]["lock"]
                is_taken = lock is not None and lock["by"] == token  # though no answer came
            if is_taken:
                self._rows.delete_rows(thread, {"doomed": True})  # what the one before left
                return True
            if time.monotonic() > give_up:
                raise StorageBusy("other processes keep removing from the same thread")
            time.sleep(_LOCK_PAUSE_SECONDS)
        return False

    def count_again(self, thread: ThreadRef) -> None:
        """Count the checkpoints of a thread again, and correct its record."""
        with suppress(Stale), self.locked(thread, {}, count=True):
            self._rows.forget_terms(thread)

    def await_unlocked(self, thread: ThreadRef) -> Document:
        """Wait until nobody locks a thread, and return its record.

        Raises:
            Stale: There is none: who was to make it failed.
        """
        while True:
            records = self._commands.latest(record_of(thread))
            if not records:
                raise Stale
            (record,) = records
            check_state(record)
            if record["lock"] is None:
                return record
            expired = {"lock.by": record["lock"]["by"], "$expr": _EXPIRED}
            if self._commands.exists({**record_of(thread), **expired}):
                with suppress(Stale), self.locked(thread, {"epoch": ObjectId()}):
                    continue  # what was begun under the lock is not done, or done as a whole
            if not record.get("awaited"):
                same = {"lock.by": record["lock"]["by"]}
                self._commands.update({**record_of(thread), **same}, {"$set": {"awaited": True}})
            time.sleep(_LOCK_PAUSE_SECONDS)

    def give_way(self, thread: ThreadRef) -> None:
        """Wait until somebody has written to a thread who waited for its lock, if anybody did."""
        until = time.monotonic() + _GIVE_WAY_SECONDS
        waited: Any = self._commands.latest({**record_of(thread), "awaited": True})
        seen = ("log", "lock", "epoch", "checkpoint_count", "updated_at", "status")
        while waited and time.monotonic() < until:
            same = {name: waited[0][name] for name in seen}
            if not self._commands.exists({**record_of(thread), **same}):
                break
            time.sleep(_LOCK_PAUSE_SECONDS)
        if waited:
            self._commands.update(
                {**record_of(thread), "awaited": True}, {"$unset": {"awaited": 1}}
            )
