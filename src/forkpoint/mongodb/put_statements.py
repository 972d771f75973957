"""MongoDB: the statements of a put, in the order that makes it one.

1. Where the thread is made, its name and its record come first. Else, where anything would be
   written for nothing, the *guard* ends the bulk if the thread is not as it is known to be.
2. Chunks.
3. The rows, in one of two ways.

Into a log (see `forkpoint.mongodb.log`) go rows that are visible at once: none of them arrives
after something happened that the put does not know of. Where the log is to begin, the *check*
comes before the chunks, and names the log in the thread's record. So a record and its checkpoints
agree wherever a bulk stops.

Into a log that goes on, rows and chunks are inserted, as one command, if nothing is replaced: for a
server that is much less work than a statement for each. There is no guard, which would be such a
statement: the first of the chunks has the next slot of the log instead, and so is not inserted if
the log has ended. If a chunk is there already, it may be about to be collected, and needs its new
epoch: the put is sent again as statements.

What does not count, and everything where there are no logs, is stored without one. What such a row
says is under `next`, and not visible yet. Then the *check* ends the bulk if the thread changed
since the guard, and keeps its record up. Then what is under `next` becomes visible.

A collection first changes the epoch of all threads, and then reads all rows. If the check passed
before, the rows are there to be read. If it comes later, it fails, and nothing became visible.

A guard and a check fail if there is no record, too, and make none: then the store went back.

Whoever knows what a replaced row led to must not rely on it any more, so a put that replaces rows
gives the thread a new epoch. In a log it does so as it begins the log, which a collection has to
end. Without a log it does so in the end, and until then the row keeps its old refs, as `replaced`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any, Literal, NamedTuple

from bson.objectid import ObjectId

from forkpoint.mongodb.documents import (
    NOW,
    Document,
    checkpoint_document,
    chunk_documents,
    chunk_statement,
    record_of,
    row_id,
    write_document,
)
from forkpoint.mongodb.statements import Statement, expect, insert_entry, replace_one, update_one
from forkpoint.mongodb.tail import Tail, end_of, new_tail
from forkpoint.mongodb.thread_documents import new_record
from forkpoint.mongodb.tombstones import naming
from forkpoint.storage.receipts import RECEIPT, is_receipt, replaces
from forkpoint.storage.rows import PutRequest, ThreadRef

Role = Literal["name", "end", "guard", "chunk", "entry", "row", "check", "show"]


class Step(NamedTuple):
    """A part of a put, and what it is for: that says what it means if it collides with a document.

    Args:
        role: What it is for.
        action: A statement, or a document that is to be inserted.
    """

    role: Role
    action: Statement | Document

    @property
    def statement(self) -> Statement:
        """The statement, or that which inserts the document, for a bulk that has statements."""
        if isinstance(self.action, Statement):
            return self.action
        if "slot" in self.action:
            return insert_entry(self.action)
        return chunk_statement(self.action, is_sharded=False)  # a router has no logs


class Creation(NamedTuple):
    """A thread that a put makes."""

    name: Document
    """A filter for the document that says what the thread's id means."""
    old_key: ObjectId | None
    """What the thread's id meant before."""
    watermark: str | None
    """The highest checkpoint id of deleted threads of this id."""
    deletion: ObjectId | None = None
    """The last deletion of the id."""
    deletions: Set[Any] = frozenset()
    """Those that count for the run; see `forkpoint.storage.interface.Threads.deletions`."""

    def naming(self, thread: ThreadRef) -> Statement:
        """Return the statement that lets the id mean a thread, and no longer expire."""
        name = {**self.name, "key": self.old_key, "deletion": self.deletion}
        return naming(name, thread.key, thread.family)


class Beginning(NamedTuple):
    """A log that a put begins: the tail that it continues, and the new log's id."""

    before: Tail
    log: ObjectId


class Preparation(NamedTuple):
    """What is to be put, and the state of its thread that the put relies on.

    Args:
        request: What is to be stored.
        thread: The thread that it is prepared for, or that it makes.
        creation: How it makes the thread, if it does.
        watermark: The tombstone watermark that the thread's record has.
        is_sharded: Whether statements must name the family.
        is_newest: Whether no newer checkpoint has set the thread's status, as is usual.
        is_counted: Whether the checkpoint in its place is counted already, if there is one.
        next_epoch: The epoch that the thread has once it is stored, if it may replace rows.
    """

    request: PutRequest
    thread: ThreadRef
    creation: Creation | None
    watermark: str | None
    is_sharded: bool
    is_newest: bool = True
    is_counted: bool = False
    next_epoch: ObjectId | None = None

    @property
    def is_repeated(self) -> bool:
        """Whether there may be a checkpoint in its place, or pending writes of its task."""
        return self.next_epoch is not None

    def log_tail(self, known: Tail | None) -> Tail | None:
        """Return the tail after which this goes into a log; None if it must not go into one.

        Args:
            known: The tail of the thread, as far as it is known.
        """
        is_checkpoint = self.request.row is not None
        if self.is_repeated and not is_checkpoint:
            return None
        if self.creation is not None:
            made = new_tail(self.thread.epoch, self.creation.watermark)
            return made if is_checkpoint else None
        if known is None or not known.holds(self.request, self.thread, self.watermark):
            return None
        return known if is_checkpoint or not known.is_provisional else None

    def tail_without_log(self, known: Tail | None) -> Tail | None:
        """Return the tail after writes to a thread that has no checkpoint yet, if it is known."""
        if self.creation is not None:
            made = new_tail(self.thread.epoch, self.creation.watermark)
            return made.with_status(self.request)
        if known is None or not known.is_provisional or self.is_repeated:
            return None
        if not known.holds(self.request, self.thread, self.watermark):
            return None
        return known.with_status(self.request)


def steps_without_log(preparation: Preparation) -> list[Step]:
    """Return the statements of a put that does not go into a log."""
    if preparation.creation is not None:
        begin = _creation_steps(preparation)
        preparation = preparation._replace(watermark=preparation.creation.watermark)
    else:
        begin = [Step("guard", _guard(preparation))]
    rows, shown = _pending_rows(preparation)
    check = Step("check", _check(preparation))
    end = _end_of_replacement(preparation)
    return [*begin, *_chunks(preparation), *_replacement(preparation), *rows, check, *shown, *end]


def may_insert(preparation: Preparation) -> bool:
    """Return whether rows and chunks can be inserted into a log: if nothing is replaced.

    Chunks only by a run, which began by a look for its thread. Any other put has to name the
    record: else nobody notices that documents were taken away since.
    """
    request = preparation.request
    if preparation.is_repeated or (request.chunks and request.began is None):
        return False
    return not any(replaces(write.idx) for write in request.writes)


def insertions(chunks: Sequence[Document], entries: Sequence[Document]) -> list[Step]:
    """Return the steps of a put into a log that goes on, of which nothing may be there."""
    steps = [Step("chunk", chunk) for chunk in chunks]
    return [*steps, *(Step("entry", entry) for entry in entries)]


def steps_with_log(
    preparation: Preparation, entries: Sequence[Document], beginning: Beginning | None = None
) -> list[Step]:
    """Return the statements of a put into a log, with those that begin the log if it is to begin.

    An entry leaves a document of its `_id` as it is, but for a checkpoint that is put again, and
    for what replaces what a task wrote.
    """
    steps = [*_chunks(preparation), *_replacement(preparation)]
    for entry in entries:
        match: Document = {"_id": entry["_id"]}
        idx = entry.get("idx", 0)
        if preparation.is_repeated:
            if not preparation.is_counted and not is_receipt(idx):
                match |= {"family": entry["family"], "visible": {"$ne": True}}
            steps.append(Step("row", replace_one(match, entry, upsert=True)))
        elif replaces(idx):
            match |= {"family": entry["family"], **_replaceable_by(entry)}
            steps.append(Step("row", _replacement_of_write(preparation.request, match, entry)))
        else:
            steps.append(Step("entry", entry))
    if beginning is None:
        guard = [Step("guard", _guard(preparation, entries[0]["log"]))]
        return [*(guard if preparation.request.chunks else ()), *steps]
    begin: list[Step] = []
    if preparation.creation is not None:
        begin = _creation_steps(preparation)
    elif beginning.before.log is not None:
        begin = [Step("end", end_of(preparation.thread, beginning.before))]
    return [*begin, Step("check", _log_beginning(preparation, beginning)), *steps]


def entries_of(request: PutRequest, thread: ThreadRef) -> list[Document]:
    """Return the rows of a put as new documents of a log, without their slots."""
    return [
        {"_id": id_, **place, **content, "visible": True}
        for id_, place, content in _documents(request, thread)
    ]


def row_ids(request: PutRequest, thread: ThreadRef) -> list[bytes]:
    """Return the `_id` of each row of a put."""
    return [id_ for id_, _, _ in _documents(request, thread)]


def creation_of_record(request: PutRequest, thread: ThreadRef, watermark: str | None) -> Statement:
    """Return the statement that makes the record of a thread, unless there is one."""
    record = new_record(
        request.thread_id,
        thread.epoch,
        owner=request.owner,
        metadata=request.metadata,
        **request.expiry._asdict(),
        salt=request.salt,
        checksums=request.checksums,
        watermark=watermark,
    )
    times = {"created_at": NOW, "updated_at": NOW}
    made = {"$mergeObjects": ["$$ROOT", {"$literal": record}, times]}
    change = [{"$replaceWith": {"$cond": [_is_missing("kind"), made, "$$ROOT"]}}]
    return update_one(record_of(thread), change, upsert=True)


# Rows


def _documents(
    request: PutRequest, thread: ThreadRef
) -> Iterator[tuple[bytes, Document, Document]]:
    """Yield the `_id` of each row of a put, its place, and its content."""
    fence = request.fence
    if request.row is not None:
        id_ = row_id(thread, request.row.checkpoint_ns, request.row.checkpoint_id)
        place, content = checkpoint_document(thread, request.row)
        if fence is not None:
            content["fence"] = fence
        yield id_, place, content
    for write in request.writes:
        id_ = row_id(thread, write.checkpoint_ns, write.checkpoint_id, write.task_id, write.idx)
        place, content = write_document(thread, write)
        if fence is not None:
            content["fence"] = fence
        yield id_, place, content


def _pending_rows(preparation: Preparation) -> tuple[list[Step], list[Step]]:
    """Return the statements that store invisible rows, and those that make them visible."""
    request, thread = preparation.request, preparation.thread
    rows: list[Step] = []
    shown: list[Step] = []
    for id_, place, content in _documents(request, thread):
        match: Document = {"_id": id_, "family": thread.family}
        is_write = place["kind"] == "write"
        if not preparation.is_repeated:
            if not is_write:
                match["content"] = {"$exists": False}
            elif replaces(place["idx"]):
                match |= _replaceable_by(content)
        rows.append(Step("row", update_one(match, {"$set": {**place, "next": content}}, True)))
        stays = is_write and not replaces(place["idx"])
        if preparation.is_repeated and place.get("idx") == RECEIPT:
            stays = False  # it may show another state
        keeps = request.fence if is_write and not stays else None
        is_kept = preparation.is_repeated and not stays
        show = _show(id_, thread, stays=stays, keeps=keeps, keeps_refs=is_kept)
        shown.append(Step("show", show))
    return rows, shown


def _show(
    id_: bytes, thread: ThreadRef, *, stays: bool, keeps: int | None, keeps_refs: bool
) -> Statement:
    """Return the statement that makes visible what is under `next`.

    Args:
        id_: Of the row.
        thread: The thread.
        stays: Whether a row that is there already stays as it is.
        keeps: The fence of a run for which that is kept which was there before.
        keeps_refs: Whether the refs that were there before are kept for now.
    """
    parts: list[Any] = ["$$ROOT", "$next", {"visible": True}]
    if keeps_refs:
        refs = {"$ifNull": ["$refs", b""]}
        parts.append({"replaced": {"$concatArrays": [{"$ifNull": ["$replaced", []]}, [refs]]}})
    shown: Any = {"$mergeObjects": parts if keeps is None else [*parts, _before(keeps)]}
    if stays:
        shown = {"$cond": [_is_missing("content"), shown, "$$ROOT"]}
    removed = ["next"] if stays else ["next", "hidden", "restarts"]
    return update_one(
        {"_id": id_, "family": thread.family, "next": {"$exists": True}},
        [{"$replaceWith": shown}, {"$unset": removed}],
    )


def _replaceable_by(row: Document) -> Document:
    """Return a filter for a row that leads nowhere else: else others may know where to."""
    return {"refs": {"$in": [None, b"", row["refs"]]}}


def _replacement_of_write(request: PutRequest, match: Document, entry: Document) -> Statement:
    """Return the statement that replaces a write, and keeps the write of before the run."""
    if request.fence is None:
        return replace_one(match, {k: v for k, v in entry.items() if k != "_id"}, upsert=True)
    made = {"$mergeObjects": [{"$literal": entry}, _before(request.fence)]}
    return update_one(match, [{"$replaceWith": made}], upsert=True)


_RESTORED = ("task_path", "channel", "refs", "content", "checksum", "binding", "fence")


def _before(fence: int) -> Document:
    """Return the field `before`: the write as it was before the run with a fence, if any."""
    old = {name: f"${name}" for name in _RESTORED}
    before = {"$cond": [{"$eq": ["$fence", fence]}, "$before", old]}
    return {"$cond": [_is_missing("content"), {}, {"before": before}]}


def _replacement(preparation: Preparation) -> list[Step]:
    """Return the statement that tells removals that a checkpoint is replaced, if one is."""
    if preparation.request.row is None or not preparation.is_repeated:
        return []
    return [Step("guard", update_one(record_of(preparation.thread), {"$inc": {"removals": 1}}))]


def _end_of_replacement(preparation: Preparation) -> list[Step]:
    """Return the statements that set the new epoch, and then let go of the old refs."""
    if not preparation.is_repeated:
        return []
    request, thread = preparation.request, preparation.thread
    # A sweep collects what nothing leads to any more, or does not, as a write was there already.
    end = [update_one(record_of(thread), {"$set": {"removed_at": request.now}})]
    same = {**record_of(thread), "epoch": thread.epoch}  # else it has a new one, by somebody else
    end.append(update_one(same, {"$set": {"epoch": preparation.next_epoch}}))
    for id_ in row_ids(request, thread):
        end.append(update_one({"_id": id_, "family": thread.family}, {"$unset": {"replaced": ""}}))
    return [Step("show", statement) for statement in end]


def _chunks(preparation: Preparation) -> list[Step]:
    chunks = chunk_documents(preparation.thread, preparation.request.chunks)
    is_sharded = preparation.is_sharded
    return [Step("chunk", chunk_statement(chunk, is_sharded=is_sharded)) for chunk in chunks]


def _is_missing(field: str) -> Document:
    return {"$eq": [{"$type": f"${field}"}, "missing"]}


# The record of the thread


def _creation_steps(preparation: Preparation) -> list[Step]:
    creation, thread = preparation.creation, preparation.thread
    assert creation is not None
    record = creation_of_record(preparation.request, thread, creation.watermark)
    return [Step("name", creation.naming(thread)), Step("guard", record)]


def _same(preparation: Preparation, log: ObjectId | None) -> Document:
    """Return a filter for the record of the thread in the state that the put relies on."""
    fence = preparation.request.fence
    return {
        **({} if fence is None else {"fence": fence}),
        **record_of(preparation.thread),
        "epoch": preparation.thread.epoch,
        "deleted_at": None,
        "lock": None,
        "watermark": preparation.watermark,
        "log": log,
    }


def _guard(preparation: Preparation, log: ObjectId | None = None) -> Statement:
    """Return a statement that changes nothing, and collides if the thread has changed."""
    return expect(_same(preparation, log), {"$set": {"kind": "thread"}})


def _log_beginning(preparation: Preparation, beginning: Beginning) -> Statement:
    """Return the check that names a new log in the record, and brings the record up to date."""
    before, log = beginning
    match = _same(preparation._replace(watermark=before.watermark), before.log)
    match["fence"] = before.fence  # also of a put without a lease: those that follow may have one
    if before.log is None:
        match |= {name: before.record.get(name) for name in _SAME}
    record = dict(before.record)
    changes: Document = {"$max": {"updated_at": record.pop("updated_at")}}
    changes["$set"] = {**record, "log": log, "unlisted": True, "provisional": False}
    if preparation.next_epoch is not None:
        changes["$set"] |= {"epoch": preparation.next_epoch, "removed_at": preparation.request.now}
    return expect(match, changes)


_SAME = ("checkpoint_count", "status", "status_for", "value_terms")


def _check(preparation: Preparation) -> Statement:
    """Return the check of a put without a log, which also updates the record."""
    request, is_newest = preparation.request, preparation.is_newest
    if request.row is None and (request.status is None or not is_newest):
        return _guard(preparation)
    match = _same(preparation, None)
    changes: Document = {"$max": {"updated_at": request.now}, "$set": {"unlisted": True}}
    if request.row is not None:
        changes["$inc"] = {"checkpoint_count": 0 if preparation.is_repeated else 1}
        changes["$set"]["provisional"] = False
    if request.status is not None and is_newest:
        # A new checkpoint makes a thread idle, unless a task's interrupt or error came before it.
        sign = "$lt" if request.row is not None else "$lte"
        match["status_for"] = {sign: request.checkpoint_id}
        changes["$max"]["state_updated_at"] = request.now
        changes["$set"] |= {"status": request.status, "status_for": request.checkpoint_id}
        if request.row is not None:
            terms = request.value_terms
            changes["$set"]["value_terms"] = None if terms is None else list(terms)
    return expect(match, changes)
