"""MongoDB: the rows of one thread, as they are counted and deleted."""

from __future__ import annotations

from typing import Any

from forkpoint.filters import stored_value_terms
from forkpoint.langgraph_rules import is_ambiguous, status_of
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import Document, chunks_of, record_of, rows_of
from forkpoint.mongodb.thread_documents import VISIBLE
from forkpoint.storage.plan import Place
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import Counts, ThreadRef


class ThreadRows:
    """Counts and deletes rows, and computes the fields of the record that depend on them.

    Args:
        commands: Those of the collection.
    """

    def __init__(self, commands: MongoCommands) -> None:
        self._commands = commands

    def counts_now(self, thread: ThreadRef) -> Document:
        """Return the fields of the record for the number of checkpoints and the status."""
        rows = rows_of(thread, "checkpoint")
        shown = self._commands.count({**rows, "visible": True})
        return {"checkpoint_count": shown, **self.status_now(thread, is_known=True)}

    def status_now(self, thread: ThreadRef, *, is_known: bool = False) -> Document:
        """Return the fields of the record for the status, computed from the newest checkpoint.

        Args:
            thread: The thread, which is locked.
            is_known: Whether the record was kept up with what that has.
        """
        head = self.head_of(thread)
        contents = self._contents_at(thread, head) if head else {}
        kinds = contents.keys()
        recorded = None
        if is_known and is_ambiguous(kinds):
            (record,) = self._commands.latest(record_of(thread), {"status": 1}) or ({},)
            recorded = record.get("status")
        status = status_of(kinds, recorded)
        return {
            "status": status,
            "status_for": head[1] if head else "",
            "value_terms": stored_value_terms(thread.owner, contents.get(RECEIPT, b"")),
            "unlisted": True,
        }

    def _contents_at(self, thread: ThreadRef, place: Place) -> dict[Any, Any]:
        """Return the contents of writes of a checkpoint by `idx`, of which any may be damaged."""
        at = {"checkpoint_ns": place[0], "checkpoint_id": place[1], "visible": True}
        rows = self._commands.latest({**rows_of(thread, "write"), **at}, {"idx": 1, "content": 1})
        idx = ((row.get("idx"), row.get("content")) for row in rows)
        return {each: content for each, content in idx if isinstance(each, int)}

    def forget_terms(self, thread: ThreadRef) -> None:
        """Remove what logs that have ended say of values. The values may be encrypted by now."""
        said = {"record.value_terms.0": {"$exists": True}}
        forgotten: Document = {"$set": {"record.value_terms": []}}
        self._commands.update_all({**rows_of(thread), **said}, forgotten)
        # Chunks are the family's: they are looked at once, after the rows of all its threads.
        later = {"family": thread.family, "_id": {"$gt": thread.key}, **VISIBLE}
        if not self._commands.exists(later):
            self._commands.update_all({**chunks_of(thread.family), **said}, forgotten)

    def head_of(self, thread: ThreadRef) -> Place | None:
        """Return the newest checkpoint of a thread's own graph."""
        rows = rows_of(thread, "checkpoint")
        newest = self._commands.latest(
            {**rows, "checkpoint_ns": "", "checkpoint_id": {"$gte": ""}, "visible": True},
            {"checkpoint_id": 1},
            sort=[("checkpoint_id", -1)],
            limit=1,
        )
        return ("", newest[0]["checkpoint_id"]) if newest else None

    def delete_rows(self, thread: ThreadRef, which: Document) -> Counts:
        """Delete rows of a thread, and return how many checkpoints and writes there were."""
        counts = self.count_rows(thread, which)
        rows = {**rows_of(thread), **which}
        self._commands.delete(rows)
        return counts

    def count_rows(self, thread: ThreadRef, which: Document) -> Counts:
        """Return how many checkpoints and writes of a thread there are."""
        rows = {**rows_of(thread), **which}
        is_checkpoint, is_write = {"$eq": ["$kind", "checkpoint"]}, {"$gt": ["$idx", RECEIPT]}
        total = {
            "_id": None,
            "checkpoints": {"$sum": {"$cond": [is_checkpoint, 1, 0]}},
            "writes": {"$sum": {"$cond": [is_write, 1, 0]}},
        }
        sums = self._commands.aggregate_latest([{"$match": rows}, {"$group": total}])
        return Counts(sums[0]["checkpoints"], sums[0]["writes"]) if sums else Counts(0, 0)

    def delete_some(self, thread: ThreadRef, limit: int) -> int:
        """Delete rows of a thread that nobody sees, and return how many: fewer than the limit if
        these were all."""
        documents = self._commands.latest(rows_of(thread), {"_id": 1}, limit=limit)
        if documents:
            ids = [row["_id"] for row in documents]
            self._commands.delete({"_id": {"$in": ids}, "family": thread.family})
        return len(documents)
