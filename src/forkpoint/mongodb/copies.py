"""MongoDB: how a thread is copied, at once or in turns while others write, and how it is forked.

A copy in turns is that of a moment, which the server keeps. What is removed from the source while
it is made makes no difference to what is copied already. What is copied is compared with what the
source has after it was stored: so a collection finds what refers to its chunks in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from bson.objectid import ObjectId

from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import ForkpointError, StorageBusy, damaged_row
from forkpoint.filters import stored_value_terms
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import (
    Document,
    checkpoint_document,
    chunk_documents,
    chunk_statement,
    place_in,
    record_of,
    row_id,
    rows_of,
    write_document,
)
from forkpoint.mongodb.locks import Locks
from forkpoint.mongodb.new_threads import NewThreads, made_ref
from forkpoint.mongodb.statements import Statement, expect, update_one
from forkpoint.mongodb.thread_documents import (
    LISTED_PLACE,
    NOT_LEASED,
    checksums_of,
    description_in,
    fields_of,
    terms_of,
)
from forkpoint.mongodb.turns import Turns
from forkpoint.storage import interface
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import newest
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import CheckpointRow, Description, ForkRequest, ThreadRef, WriteRow
from forkpoint.storage.shared import ABANDONED_SECONDS, batches

_COPIED_TOO_LONG = "copying took too long, and others have written since; try again"
_TOO_LONG_AGO = "copying took too long, and was taken for abandoned; try again"


_MISSING = object()


class _UnfinishedCopy(NamedTuple):
    """A copy that is not complete."""

    source: ThreadRef
    hashing: Hashing
    made: Document
    """The record of the copy."""
    old: Document | None
    """What is left of the thread that its id meant before."""
    rows: Iterator[Document]
    """What is to be copied yet."""

    @property
    def target(self) -> ThreadRef:
        return made_ref(self.made)

    def copy_of(self, row: Document) -> Statement:
        """Return the statement that writes a copy of a row of the source."""
        place = place_in(row)
        if not all(isinstance(each, (str, int, type(None))) for each in place):
            raise damaged_row(row.get("kind", "row"), row.get("checkpoint_id"))
        # The copies do not belong to the runs that made the originals: deleting those leaves them.
        left_out = ("_id", "run_id", "next", "log", "slot", "record", "fence", "before", "replaced")
        copy = {field: value for field, value in row.items() if field not in left_out}
        stored = row.get("checksum"), row.get("binding")
        copy["binding"] = self.hashing.rebind(self.source.salt, self.made["salt"], *stored)
        return update_one(
            {"_id": row_id(self.target, *place), "family": self.target.family},
            {"$setOnInsert": {**copy, "thread": self.target.key}},
            upsert=True,
        )


class _UnfinishedFork(NamedTuple):
    """A fork that is not complete."""

    source: ThreadRef
    made: Document
    """The record of the fork."""
    old: Document | None
    """What is left of the thread that its id meant before."""

    @property
    def target(self) -> ThreadRef:
        return made_ref(self.made)


class MongoCopies(interface.Copies):
    """Makes clones and forks of threads.

    Args:
        commands: Those of the collection.
        locks: The locks of threads.
        new_threads: How threads are made.
        turns: What a turn has copied.
    """

    def __init__(
        self,
        commands: MongoCommands,
        locks: Locks,
        new_threads: NewThreads,
        turns: Turns,
    ) -> None:
        self._commands = commands
        self._locks = locks
        self._new_threads = new_threads
        self._turns = turns

    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        old = self._new_threads.deleted_before(target_id)
        with self._locks.locked(source, {}) as guard:
            made = self._record(source, target_id, old, hashing, described)
            self._commands.insert(made)
            copying = _UnfinishedCopy(source, hashing, made, old, iter(()))
            rows = self._commands.latest(_rows_of(source))
            try:
                for batch in batches([row for row in rows if "content" in row], 1000):
                    self._commands.change([guard, *map(copying.copy_of, batch)])
                self._show(copying, guard, _COPIED_TOO_LONG)
            except ForkpointError:
                self._new_threads.discard(made)
                raise

    def begin(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> _UnfinishedCopy | None:
        old = self._new_threads.deleted_before(target_id)
        with self._locks.locked(source, {}) as guard:
            made = self._record(source, target_id, old, hashing, described)
            rows = self._commands.snapshots.open(_rows_of(source), self._turns.turn_rows)
            if self._commands.change([guard]).failed is not None:
                raise StorageBusy(_COPIED_TOO_LONG)  # the record may not say what the rows are
        if rows is None:
            return None
        self._hold(made)
        self._commands.insert(made)
        return _UnfinishedCopy(source, hashing, made, old, rows)

    def copy_more(self, copying: Any) -> bool:
        assert isinstance(copying, _UnfinishedCopy)
        rows = self._commands.snapshots.read_on(copying.rows, self._turns.turn_rows)
        guard = self._going_on(copying.made)
        if not rows:
            self._show(copying, guard, _TOO_LONG_AGO)
            return False
        stored = [row for row in rows if "content" in row]
        outcome = self._commands.change([guard, *map(copying.copy_of, stored)])
        if outcome.failed is not None:
            raise self._too_late(copying.source, _TOO_LONG_AGO)
        self._check_same(copying.source, stored)
        self._turns.count_changed(len(rows))
        return True

    def abandon(self, copying: Any) -> None:
        assert isinstance(copying, (_UnfinishedCopy, _UnfinishedFork))
        building = {**record_of(copying.target), "building": copying.made["building"]}
        self._commands.update(building, {"$set": {"lock": None}})

    def fork(self, request: ForkRequest) -> None:
        old = self._new_threads.deleted_before(request.target_id)
        made = self._record_of_fork(request, old)
        try:
            if self._new_threads.show(made, old, self._begun(made, request)):
                return
        except ForkpointError:
            self._new_threads.discard(made)
            raise
        self._new_threads.discard(made)
        self._locks.await_unlocked(request.source)
        raise Stale

    def begin_fork(self, graft: ForkRequest) -> _UnfinishedFork:
        old = self._new_threads.deleted_before(graft.target_id)
        made = self._record_of_fork(graft, old)
        self._hold(made)
        statements = self._begun(made, graft)
        outcome = self._commands.bulk(statements)
        if outcome.hits < len(statements):
            self._new_threads.discard(made)
            if outcome.error is not None:
                raise outcome.error
            self._locks.await_unlocked(graft.source)
            raise Stale
        return _UnfinishedFork(graft.source, made, old)

    def fork_more(
        self, forking: Any, rows: Sequence[CheckpointRow], writes: Sequence[WriteRow]
    ) -> None:
        assert isinstance(forking, _UnfinishedFork)
        forking.made["checkpoint_count"] += sum(not row.hidden for row in rows)
        statements = [
            self._going_on(forking.made),
            *_forked_rows(forking.target, rows, writes),
            _unchanged(forking.source),
        ]
        outcome = self._commands.change(statements)
        if outcome.failed is not None:
            raise Stale if outcome.failed else self._too_late(forking.source, _TOO_LONG_AGO)
        self._turns.count_changed(len(rows) + len(writes))

    def end_fork(self, forking: Any) -> None:
        assert isinstance(forking, _UnfinishedFork)
        before = [self._going_on(forking.made), _unchanged(forking.source)]
        if not self._new_threads.show(forking.made, forking.old, before):
            raise Stale

    def _record_of_fork(self, request: ForkRequest, old: Document | None) -> Document:
        source = request.source
        target = ThreadRef(ObjectId(), source.family, source.epoch)
        fields = _fields_of_fork(request)
        return self._new_threads.record(request.target_id, target, old, request.hashing, **fields)

    def _begun(self, made: Document, request: ForkRequest) -> list[Statement]:
        """Return the statements that insert a fork with the rows that are known."""
        source, target = request.source, made_ref(made)
        return [
            _unchanged(source),
            update_one(record_of(target), {"$setOnInsert": made}, upsert=True),
            *(
                chunk_statement(chunk, is_sharded=self._commands.is_sharded)
                for chunk in chunk_documents(source, request.chunks)
            ),
            *_forked_rows(target, request.rows, request.writes),
            _unchanged(source),
        ]

    # What is not complete

    def _hold(self, made: Document) -> None:
        """Have a thread that is made in turns found, and removed, if nobody comes to its end."""
        made["removed_at"] = now = self._commands.clock.now()
        until = datetime.fromtimestamp(now / 1e6, timezone.utc)
        until += timedelta(seconds=ABANDONED_SECONDS)
        made["lock"] = {"by": made["building"], "until": until}

    def _going_on(self, made: Document) -> Statement:
        """Return the statement that fails where what is made in turns was taken for abandoned."""
        self._hold(made)
        changes = {field: made[field] for field in ("lock", "removed_at", "checkpoint_count")}
        # One that was removed since is not made anew.
        return expect(
            {**record_of(made_ref(made)), "building": made["building"]}, {"$set": changes}
        )

    def _check_same(self, source: ThreadRef, rows: Sequence[Document]) -> None:
        """Check that a thread still has the rows that were copied.

        Raises:
            Stale: It has not.
        """
        match = {"_id": {"$in": [row["_id"] for row in rows]}, "family": source.family}
        documents = self._commands.latest({**match, "doomed": None}, {"checksum": 1})
        there = {row["_id"]: row.get("checksum") for row in documents}
        if any(there.get(row["_id"], _MISSING) != row.get("checksum") for row in rows):
            raise Stale
        if not self._commands.exists({**record_of(source), "deleted_at": None}):
            raise Stale

    def _show(self, copying: _UnfinishedCopy, guard: Statement, too_late: str) -> None:
        """Make a complete copy visible, unless its source was given to another owner."""
        before = [guard, expect(_same_owner(copying.source), {"$set": {"kind": "thread"}})]
        if not self._new_threads.show(copying.made, copying.old, before):
            raise self._too_late(copying.source, too_late)

    def _too_late(self, source: ThreadRef, message: str) -> Exception:
        """Return the error of who cannot go on: also where the source was given away meanwhile."""
        return StorageBusy(message) if self._commands.exists(_same_owner(source)) else Stale()

    def _record(
        self,
        source: ThreadRef,
        target_id: str,
        old: Document | None,
        hashing: Hashing,
        described: Description | None,
    ) -> Document:
        """Return the record of a copy, made of that of its source, which is locked."""
        (record,) = self._commands.latest(record_of(source))
        if record["lock"] is None:  # it was lost, and whoever had it next is done
            raise StorageBusy(_COPIED_TOO_LONG)
        if record["owner"] != source.owner:
            raise Stale
        if described is None:
            content = record["checksums"], record["source"], description_in(record)
            hashing.check_description(source.thread_id, source.salt, *content)
        made: Document = {
            **record,
            **_OF_COPY,
            "_id": ObjectId(),
            "thread_id": target_id,
            "parent": record["_id"],
            "source": record["thread_id"],
            "watermark": old["watermark"] if old else None,
            "building": record["lock"]["by"],
            "salt": new_salt(source.salt),
            **(fields_of(described) if described is not None else {}),
        }
        for of_source in ("unlisted", "awaited", "uncollected", *LISTED_PLACE):
            made.pop(of_source, None)
        made["checksums"] = checksums_of(made, hashing)
        # So that it is found if nobody comes to its end.
        made["removed_at"] = self._commands.clock.now()
        return {**made, "terms": terms_of(made)}


_OF_COPY: Document = {
    "edge": "clone",
    "lease_queue": [],
    "fence": 0,
    "removals": 0,
    **NOT_LEASED,
    **dict.fromkeys(("parent_checkpoint_id", "lock", "swept_at", "rollback_from")),
}


def _same_owner(source: ThreadRef) -> Document:
    """Return a filter for the record of a thread, if it was not given away since."""
    return {**record_of(source), "owner": source.owner}


def _rows_of(source: ThreadRef) -> Document:
    """Return a filter for the rows that are copied of a thread."""
    return {**rows_of(source), "doomed": None}


def _fields_of_fork(request: ForkRequest) -> Document:
    """Return the fields of the record of a fork."""
    head = newest(row[:2] for row in request.rows if not row.hidden)
    receipts = (row for row in request.writes if row.idx == RECEIPT and row[:2] == head)
    preview = next((row.content for row in receipts), b"")
    return {
        **fields_of(request.described),
        "edge": request.edge,
        "parent": request.source.key,
        "parent_checkpoint_id": request.parent_checkpoint_id,
        "source": request.source_id,
        "owner": request.owner,
        "status": request.status,
        "status_for": head[1] if head else "",
        "state_updated_at": 1 if request.rows else 0,
        "value_terms": stored_value_terms(request.owner, preview),
        "checkpoint_count": sum(not row.hidden for row in request.rows),
        "salt": request.salt,
    }


def _unchanged(source: ThreadRef) -> Statement:
    """Return the statement that fails where something was removed from the source of a fork."""
    return expect(
        {**record_of(source), "epoch": source.epoch, "deleted_at": None, "lock": None},
        {"$set": {"kind": "thread"}},
    )


def _forked_rows(
    target: ThreadRef, rows: Sequence[CheckpointRow], writes: Sequence[WriteRow]
) -> list[Statement]:
    return [
        *(_forked(target, *checkpoint_document(target, row), row) for row in rows),
        *(_forked(target, *write_document(target, row), row) for row in writes),
    ]


def _forked(
    target: ThreadRef, place: Document, content: Document, row: CheckpointRow | WriteRow
) -> Statement:
    """Return the statement that inserts a row of a fork that is not visible yet."""
    at = [row.checkpoint_ns, row.checkpoint_id]
    if isinstance(row, WriteRow):
        id_ = row_id(target, *at, row.task_id, row.idx)
        shown = {"visible": True}
    else:
        id_ = row_id(target, *at)
        shown = {"hidden" if row.hidden else "visible": True}
    return update_one(
        {"_id": id_, "family": target.family},
        {"$setOnInsert": {**place, **content, **shown}},
        upsert=True,
    )
