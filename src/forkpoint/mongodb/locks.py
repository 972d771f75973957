"""MongoDB: what keeps others out of a thread for a while, and how long work is cut into turns.

Who removes or copies locks the thread, by its record: puts wait until the lock is gone, and leases
are renewed all the while. Work on a long thread takes the lock anew for each of its parts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bson.objectid import ObjectId

from forkpoint.errors import StorageBusy
from forkpoint.filters import stored_value_terms
from forkpoint.mongodb.commands import Document, Records, record_of
from forkpoint.mongodb.documents import ROWS
from forkpoint.mongodb.log import HAS_LOG, check_state
from forkpoint.mongodb.reading import MongoReading
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.storage import plan as removal
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import Place
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import Counts, ThreadRef

LOCK_SECONDS = 5
"""How long a removal or a copy keeps others out of a thread if its process ends in the middle."""

_READ_PER_CHANGE = 4  # rows that are read in the time in which one is changed, or in less
_LOCK_PAUSE_SECONDS = 0.005
_GIVE_WAY_SECONDS = 0.5  # at most, to those who waited for a lock
_EXPIRED = {"$lt": ["$lock.until", "$$NOW"]}
NOT_EXPIRED: Document = {"lock.by": {"$exists": True}, "$nor": [{"$expr": _EXPIRED}]}
"""Of the record of a thread: that somebody locks it who may still be there."""


class _Turn(threading.local):
    """What a thread has done in its turn."""

    rows = 0


def locked_until(token: ObjectId, seconds: float) -> Document:
    """Return the fields of a record by which somebody locks a thread for some time from now on."""
    return {"lock": {"by": token, "until": {"$add": ["$$NOW", int(1000 * seconds)]}}}


class MongoLocks(MongoReading):
    """Locks of threads, and the primitives of `forkpoint.storage.interface.Session` about turns.

    Attributes:
        turn_rows: How many rows long work changes, or a quarter of those it reads, in a turn.
    """

    turn_rows = 1000

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self._turn = _Turn()

    def begin_turn(self) -> None:
        """Note that what this thread does next is in another turn."""
        self._turn.rows = 0

    def is_spent(self) -> bool:
        return self._turn.rows >= self.turn_rows

    def count_changed(self, rows: int) -> None:
        """Let rows that were changed count for what a turn has done."""
        self._turn.rows += rows

    def count_read(self, rows: int) -> None:
        """Let rows that were read count for what a turn has done."""
        self._turn.rows += rows // _READ_PER_CHANGE

    def is_long(self, thread: ThreadRef) -> bool:
        rows = {"family": thread.family, "thread": thread.key, "kind": ROWS}
        return len(self._records.latest(rows, {"_id": 1}, limit=self.turn_rows)) == self.turn_rows

    @contextmanager
    def locked(
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
        lock = locked_until(token, LOCK_SECONDS)
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
                self.delete_rows(thread, {"doomed": True})  # what the one before left
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
        except Stale:  # before anything was done
            raise
        except BaseException:
            count = True  # it may be done in part
            raise
        finally:
            unlocked: Document = {"lock": None, **(self._counted(thread) if count else {})}
            self._records.update({**record_of(thread), "lock.by": token}, {"$set": unlocked})

    def _counted(self, thread: ThreadRef) -> Document:
        """Return what the record of a thread is to say of the checkpoints that there are."""
        rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
        shown = self._records.count({**rows, "visible": True})
        return {"checkpoint_count": shown, **self.status_now(thread)}

    def status_now(self, thread: ThreadRef) -> Document:
        """Return the fields for a thread's status: what its newest checkpoint waits for."""
        head = self.head_of(thread)
        writes = self.writes(thread, [head]) if head else []
        status = removal.status_of({write.idx for write in writes})
        preview = next((write.content for write in writes if write.idx == RECEIPT), b"")
        return {
            "status": status,
            "status_for": head[1] if head else "",
            "value_terms": stored_value_terms(thread.owner, preview),
            "unlisted": True,
        }

    def head_of(self, thread: ThreadRef) -> Place | None:
        """Return the newest checkpoint of a thread's own graph."""
        rows = {"family": thread.family, "thread": thread.key, "kind": "checkpoint"}
        newest = self._records.latest(
            {**rows, "checkpoint_ns": "", "checkpoint_id": {"$gte": ""}, "visible": True},
            {"checkpoint_id": 1},
            sort=[("checkpoint_id", -1)],
            limit=1,
        )
        return ("", newest[0]["checkpoint_id"]) if newest else None

    def delete_rows(self, thread: ThreadRef, which: Document) -> Counts:
        """Delete rows of a thread, and return how many checkpoints and writes there were."""
        counts = self.count_rows(thread, which)
        rows = {"family": thread.family, "thread": thread.key, **which, "kind": ROWS}
        self._records.delete(rows)
        return counts

    def count_rows(self, thread: ThreadRef, which: Document) -> Counts:
        """Return how many checkpoints and writes of a thread there are."""
        rows = {"family": thread.family, "thread": thread.key, **which, "kind": ROWS}
        is_checkpoint, is_write = {"$eq": ["$kind", "checkpoint"]}, {"$gt": ["$idx", RECEIPT]}
        total = {
            "_id": None,
            "checkpoints": {"$sum": {"$cond": [is_checkpoint, 1, 0]}},
            "writes": {"$sum": {"$cond": [is_write, 1, 0]}},
        }
        counted = self._records.aggregate_latest([{"$match": rows}, {"$group": total}])
        return Counts(counted[0]["checkpoints"], counted[0]["writes"]) if counted else Counts(0, 0)

    def count_again(self, thread: ThreadRef) -> None:
        """Set right how many checkpoints a thread's record says that there are."""
        with suppress(Stale), self.locked(thread, {}, count=True):
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
                with suppress(Stale), self.locked(thread, {"epoch": ObjectId()}):
                    continue  # what was begun under the lock is not done, or done as a whole
            if not record.get("awaited"):
                same = {"lock.by": record["lock"]["by"]}
                self._records.update({**record_of(thread), **same}, {"$set": {"awaited": True}})
            time.sleep(_LOCK_PAUSE_SECONDS)

    def give_way(self, thread: ThreadRef) -> None:
        """Let those write to a thread who waited while it was locked."""
        until = time.monotonic() + _GIVE_WAY_SECONDS
        waited: Any = self._records.latest({**record_of(thread), "awaited": True})
        seen = ("log", "lock", "epoch", "checkpoint_count", "updated_at", "status")
        while waited and time.monotonic() < until:
            same = {name: waited[0][name] for name in seen}
            if not self._records.exists({**record_of(thread), **same}):
                break
            time.sleep(_LOCK_PAUSE_SECONDS)
        if waited:
            self._records.update({**record_of(thread), "awaited": True}, {"$unset": {"awaited": 1}})
