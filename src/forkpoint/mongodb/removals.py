"""MongoDB: how checkpoints are removed from a thread while others read and write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from bson.objectid import ObjectId

from forkpoint.errors import StorageBusy
from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.mongodb.checkpoints import fence_range
from forkpoint.mongodb.commands import IN_ONE_COMMAND, MongoCommands
from forkpoint.mongodb.documents import NOW, ROWS, Document, record_of, rows_of
from forkpoint.mongodb.locks import Locks
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.statements import Statement, update_many, update_one
from forkpoint.mongodb.thread_rows import ThreadRows
from forkpoint.mongodb.turns import Turns
from forkpoint.storage import interface
from forkpoint.storage import plan as removal
from forkpoint.storage.interface import Checkpoints, Choose, Stale
from forkpoint.storage.plan import DROPPED, KEPT, Place, Plan
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    HIDDEN,
    RESTARTS,
    ChangeCount,
    Counts,
    RemovalPart,
    RemovalResult,
    ThreadRef,
)
from forkpoint.storage.shared import batches

_PLACES_PER_TURN = 4  # for each checkpoint there are some writes and receipts
_CHANGED_AT_ONCE = 1000  # checkpoints: in less time than a lock lasts
_STUB = dict.fromkeys(("checkpoint_ns", "checkpoint_id", "kind", "visible"), 1)


class MongoRemovals(interface.Removals):
    """Removes checkpoints under the lock of their thread.

    Args:
        commands: Those of the collection.
        logs: The logs of threads.
        checkpoints: Where checkpoints are read.
        rows: The rows of threads.
        locks: The locks of threads.
        turns: What a turn has removed.
    """

    def __init__(
        self,
        commands: MongoCommands,
        logs: Logs,
        checkpoints: Checkpoints,
        rows: ThreadRows,
        locks: Locks,
        turns: Turns,
    ) -> None:
        self._commands = commands
        self._logs = logs
        self._checkpoints = checkpoints
        self._rows = rows
        self._locks = locks
        self._turns = turns

    def remove(self, thread: ThreadRef, choose: Choose) -> Counts:
        try:
            # A new epoch: who counts on what the thread stores now has to look again.
            with self._locks.locked(thread, {"epoch": ObjectId()}) as guard:
                rows = list(self._checkpoints.all(thread))
                plan = choose(rows)
                seen = {(row.checkpoint_ns, row.checkpoint_id) for row in rows if not row.hidden}
                going = seen & (plan.removed | plan.hidden)
                is_other_head = removal.newest(seen) in going
                return self._execute(thread, plan, len(going), guard, is_other_head=is_other_head)
        except Stale:
            return Counts(0, 0)  # the thread is deleted, and with it what was to go

    def recount(self, thread: ThreadRef) -> None:
        self._locks.count_again(thread)

    def is_long(self, thread: ThreadRef) -> bool:
        rows = rows_of(thread)
        return (
            len(self._commands.latest(rows, {"_id": 1}, limit=self._turns.turn_rows))
            == self._turns.turn_rows
        )

    def is_ordered(self, thread: ThreadRef) -> bool:
        return not self._commands.exists({**rows_of(thread, "checkpoint"), "irregular": True})

    def extent(self, thread: ThreadRef) -> ChangeCount:
        living = {**record_of(thread), "deleted_at": None}
        fields = {"checkpoint_count": 1, "removals": 1}
        documents = self._commands.aggregate(
            [{"$match": living}, *self._logs.up_to_date(), {"$project": fields}]
        )
        if not documents:
            raise Stale
        return ChangeCount(documents[0]["checkpoint_count"], documents[0]["removals"])

    def remove_batch(
        self, thread: ThreadRef, part: RemovalPart, check: Callable[[], None]
    ) -> RemovalResult:
        self._locks.give_way(thread)
        with self._locks.locked(thread, {"epoch": ObjectId()}) as guard:
            check()
            places, going = self._next_part(thread, part)
            plan = part.plan._replace(
                removed=part.plan.removed & going.keys(), hidden=part.plan.hidden & going.keys()
            )
            gone = [
                place
                for place, rows in going.items()
                if any(row["kind"] == "checkpoint" and row.get("visible") for row in rows)
            ]
            is_other_head = self._rows.head_of(thread) in gone
            counts = self._execute(thread, plan, len(gone), guard, is_other_head=is_other_head)
            self._turns.count_changed(sum(map(len, going.values())))
            return RemovalResult(counts, places, self.extent(thread))

    def _execute(
        self, thread: ThreadRef, plan: Plan, gone: int, guard: Statement, *, is_other_head: bool
    ) -> Counts:
        is_moved = is_other_head or plan.is_whole
        self._doom(thread, plan, gone, guard, is_moved=is_moved)
        counts = self._rows.delete_rows(thread, {"doomed": True})
        if is_moved:  # whoever has the lock by now, if it is lost, has looked at it after this
            status = update_one(record_of(thread), {"$set": self._rows.status_now(thread)})
            self._commands.change([guard, status])
        return counts

    def _doom(
        self, thread: ThreadRef, plan: Plan, gone: int, guard: Statement, *, is_moved: bool
    ) -> None:
        """Make the rows invisible that are to be removed or hidden.

        Args:
            thread: The thread, which is locked.
            plan: What is to be done.
            gone: How many checkpoints that can be seen are removed or hidden.
            guard: Ends the bulk if the lock is lost, and else keeps it.
            is_moved: Whether the thread goes on from another state then.
        """
        # Not counted again: where there are no logs, a checkpoint that the record counts already
        # may be about to arrive. Nor taken off twice, if the bulk is sent again: the lock says so,
        # as the epoch may be another by then.
        epoch = ObjectId()
        again = {"$cond": [{"$eq": ["$lock.removal", epoch]}, 0, gone]}
        changes: Document = {
            "checkpoint_count": {"$subtract": ["$checkpoint_count", again]},
            "epoch": epoch,
            "lock.removal": epoch,
            "unlisted": True,
            "removed_at": NOW,
            "uncollected": {"$sum": ["$uncollected", {"$max": [1, again]}]},
            "removals": {"$cond": [{"$isNumber": "$removals"}, {"$add": ["$removals", 1]}, 1]},
        }
        if plan.reopened:
            changes["updated_at"] = {"$max": ["$updated_at", NOW]}
        if is_moved:
            changes["state_updated_at"] = {"$max": ["$state_updated_at", NOW]}
        statements = [guard, update_one(record_of(thread), [{"$set": changes}])]
        for change in _changes_of_rows(thread, plan):  # of many rows: each may take its time
            statements += [change, guard]
        outcome = self._commands.change(statements)
        if outcome.failed:  # whoever took the lock may have counted before the last change
            self._locks.count_again(thread)
        if outcome.failed is not None and outcome.failed < len(statements) - 1:
            raise StorageBusy("removing took too long, and others have written since; try again")

    def _next_part(
        self, thread: ThreadRef, part: RemovalPart
    ) -> tuple[int, Mapping[Place, Sequence[Document]]]:
        """Return the number of checkpoints in the next part of a removal, and their rows."""
        is_whole = part.plan.is_whole
        most = len(part.going) if is_whole else max(1, self._turns.turn_rows // _PLACES_PER_TURN)
        rows: dict[Place, list[Document]] = {place: [] for place in part.going[:most]}
        for match in _filters_of(thread, rows):
            for row in self._commands.latest({**match, "kind": ROWS}, _STUB):
                rows[row["checkpoint_ns"], row["checkpoint_id"]].append(row)
        number = 0
        going: dict[Place, Sequence[Document]] = {}
        for place, its in rows.items():
            if number >= self._turns.turn_rows and not is_whole:
                break
            going[place] = its
            number += len(its)
        return len(going), going


def _changes_of_rows(thread: ThreadRef, plan: Plan) -> Iterator[Statement]:
    """Return the statements that make rows invisible, hide checkpoints, or restart them.

    Each once: the binding goes up with the flag. Receipts first: else somebody might miss what they
    are for.
    """
    receipts: Document = {"kind": "write", "idx": {"$lte": RECEIPT}}
    doom = {"$set": {"doomed": True}, "$unset": {"visible": 1, "hidden": 1}}
    done: Document = {
        "kind": "write",
        "idx": {"$nin": KEPT},
        "$or": [{"task_id": {"$ne": NULL_TASK_ID}}, {"idx": {"$in": DROPPED}}],
    }
    yield from _changes_at(thread, plan.removed, receipts, doom)
    yield from _changes_at(thread, plan.hidden, {**receipts, "idx": RECEIPT}, doom)
    yield from _changes_at(thread, plan.reopened, {"$and": [receipts, done]}, doom)
    hidden = {"hidden": True, "irregular": True}
    hide = {"$set": hidden, "$unset": {"visible": 1}, "$inc": {"binding": HIDDEN}}
    yield from _changes_at(thread, plan.hidden, {"kind": "checkpoint", "hidden": None}, hide)
    restart = {"$set": {"restarts": True}, "$inc": {"binding": RESTARTS}}
    others = {"kind": "checkpoint", "restarts": None}
    yield from _changes_at(thread, plan.restarted, others, restart)
    yield from _changes_at(thread, plan.removed, {"kind": ROWS}, doom)
    yield from _changes_at(thread, plan.reopened, done, doom)
    if plan.withdrawn is not None:
        under = {**rows_of(thread, "write"), "fence": fence_range(plan.withdrawn)}
        yield update_many({**under, **_IS_WHOLE}, _RESTORE)
        yield update_many({**under, "idx": receipts["idx"]}, doom)
        yield update_many(under, doom)


def _changes_at(
    thread: ThreadRef, places: Collection[Place], which: Document, change: Document
) -> Iterator[Statement]:
    """Return the statements that change the rows of some checkpoints."""
    for match in _filters_of(thread, places, at_once=_CHANGED_AT_ONCE):
        yield update_many({**match, **which}, change)


def _filters_of(
    thread: ThreadRef, places: Collection[Place], *, at_once: int = IN_ONE_COMMAND
) -> Iterator[Document]:
    """Return filters for the rows of some checkpoints, of so many at most."""
    ids: dict[str, list[str]] = {}
    for checkpoint_ns, checkpoint_id in places:
        ids.setdefault(checkpoint_ns, []).append(checkpoint_id)
    for checkpoint_ns, its in ids.items():
        for batch in batches(its, at_once):
            yield {
                "family": thread.family,
                "thread": thread.key,
                "checkpoint_ns": checkpoint_ns,
                "checkpoint_id": {"$in": batch},
            }


_IS_WHOLE = {
    f"before.{field}": {"$type": type_}
    for type_, fields in {
        "binData": ("refs", "content", "checksum"),
        "string": ("task_path", "channel"),
    }.items()
    for field in fields
}
"""What has to be there to be restored; where it is damaged, a receipt tells that it is missing."""
_RESTORE: list[Document] = [
    {"$unset": "fence"},
    {"$replaceWith": {"$mergeObjects": ["$$ROOT", "$before"]}},
    {"$unset": "before"},
]
"""Lets a write be what it was before a run replaced it."""
