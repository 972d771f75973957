"""MongoDB: the statements of a put, in the order that makes it one.

Into a log (see `forkpoint.mongodb.log`) go the rows, each of them visible at once: none of them
arrives after something happened that the put does not know of. Where there are chunks, these come
before, and before them the *guard*, so that none is written for nothing. Where the log is to begin,
the *check* comes first, which names it in the thread's record. So a record and its checkpoints
agree wherever a bulk stops.

This is so for what does not count, or where there are no logs, if no row refers to chunks:

1. The *check* ends the bulk if the thread is not as it is known to be, and keeps its record up.
2. Rows; and where there are many, another check, which finds out if they came too late.

Where one does:

1. The *guard* ends the bulk if the thread is not as it is known to be.
2. Chunks.
3. Rows. What one that refers to chunks says is under `next`, and not visible yet.
4. The *check* ends the bulk if the thread changed since the guard, and keeps its record up.
5. What is under `next` becomes visible.

A collection first changes the epoch of all threads, and then reads all rows. If the check passed
before, the rows are there to be read. If it comes later, it fails, and nothing became visible.

A guard and a check fail if there is no record, too, and make none: then the store went back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any, Literal, NamedTuple

from bson.objectid import ObjectId

from forkpoint.mongodb.documents import (
    NOW,
    Document,
    checkpoint_document,
    chunk_statement,
    found_by,
    record_of,
    row_id,
    write_document,
)
from forkpoint.mongodb.log import Tail, end_of, new_tail
from forkpoint.mongodb.statements import Statement, expect, insert_entry, replace_one, update_one
from forkpoint.mongodb.thread_documents import new_record
from forkpoint.storage.receipts import RECEIPT, is_receipt, replaces
from forkpoint.storage.rows import PutRequest, ThreadRef

Role = Literal["name", "end", "guard", "chunk", "entry", "row", "once", "check", "show"]


class Step(NamedTuple):
    """A statement, and what it means if it collides with a document that exists.

    A row that is stored `once` does not collide. It leaves a document that exists as it is, which
    may be one that was never to be seen: then the put is repeated, so as to `replace` that.
    """

    role: Role
    statement: Statement


class Creation(NamedTuple):
    """A thread that a put makes."""

    name: Document
    """A filter for the document that says what the thread's id means."""
    old_key: ObjectId | None
    """What the thread's id meant before."""
    dead_until: str | None
    deletion: ObjectId | None = None
    """The last deletion of the id."""
    deletions: Set[Any] = frozenset()
    """Those that count for the run; see `forkpoint.storage.interface.Session.last_deletion`."""


class Beginning(NamedTuple):
    """A log that a put begins: what it goes on from, which must be as it is said, and its id."""

    before: Tail
    log: ObjectId


class Intent(NamedTuple):
    """What is to be put, and how.

    Args:
        put: What is to be stored.
        thread: The thread that it is prepared for, or that it makes.
        creation: How it makes the thread, if it does.
        dead_until: What the thread's record says of the deleted ones before it.
        is_sharded: Whether each statement has to name the family.
        replace: Whether there may be a checkpoint in its place, or pending writes of its task.
        is_newest: Whether the thread's status is that of an older checkpoint, as a rule it is.
        is_counted: Whether the checkpoint in its place is counted already, if there is one.
    """

    put: PutRequest
    thread: ThreadRef
    creation: Creation | None
    dead_until: str | None
    is_sharded: bool
    replace: bool = False
    is_newest: bool = True
    is_counted: bool = False

    def usable(self, known: Tail | None) -> Tail | None:
        """Return the tail from which to go on in the thread's log, or to begin one, if it may be.

        Args:
            known: What is known of it.
        """
        is_checkpoint = self.put.row is not None
        if self.replace and not is_checkpoint:
            return None
        if self.creation is not None:
            made = new_tail(self.thread.epoch, self.creation.dead_until)
            return made if is_checkpoint else None
        if known is None or not known.holds(self.put, self.thread, self.dead_until):
            return None
        return known if is_checkpoint or not known.is_provisional else None

    def left(self, known: Tail | None) -> Tail | None:
        """Return the tail after writes to a thread that has no checkpoint yet, if it is known."""
        if self.creation is not None:
            return new_tail(self.thread.epoch, self.creation.dead_until).with_status(self.put)
        if known is None or not known.is_provisional or self.replace:
            return None
        if not known.holds(self.put, self.thread, self.dead_until):
            return None
        return known.with_status(self.put)


def steps_of(intent: Intent) -> list[Step]:
    """Return the statements of a put that does not go into a log."""
    put, thread, creation, dead_until, is_sharded, replace, is_newest, _ = intent
    begin: list[Step] = []
    if creation is not None:
        dead_until = creation.dead_until
        begin = _creating(put, thread, creation)
    check = Step("check", _check(put, thread, dead_until, replace, is_newest))
    # Then the check makes sure that there is no such checkpoint yet.
    is_new = put.status is not None and is_newest and not replace
    rows, shown = _rows(put, thread, replace, is_new, is_sharded)
    rows = [*_noting_replacement(intent), *rows]
    if not shown and not put.chunks:
        # Many rows take so long that the thread may be deleted on the way.
        again = [Step("check", _touch(put, thread, dead_until))] if len(rows) > _FEW else []
        return [*begin, check, *rows, *again]
    if creation is None:
        begin.append(Step("guard", _touch(put, thread, dead_until)))
    return [*begin, *_chunks(put, thread, is_sharded), *rows, check, *shown]


_FEW = 10


def entries_of(put: PutRequest, thread: ThreadRef) -> list[Document]:
    """Return the rows of a put, as they go into a log."""
    return [
        {"_id": id_, **place, **said, "visible": True}
        for id_, place, said in _documents(put, thread)
    ]


def row_ids(put: PutRequest, thread: ThreadRef) -> list[bytes]:
    """Return the `_id` of each row of a put."""
    return [id_ for id_, _, _ in _documents(put, thread)]


def _documents(put: PutRequest, thread: ThreadRef) -> Iterator[tuple[bytes, Document, Document]]:
    """Yield the `_id` of each row of a put, where it is, and what it says there."""
    under: Document = {} if put.fence is None else {"fence": put.fence}
    if put.row is not None:
        id_ = row_id(thread, put.row.checkpoint_ns, put.row.checkpoint_id)
        place, said = checkpoint_document(thread, put.row)
        yield id_, place, {**said, **under}
    for write in put.writes:
        id_ = row_id(thread, write.checkpoint_ns, write.checkpoint_id, write.task_id, write.idx)
        place, said = write_document(thread, write)
        yield id_, place, {**said, **under}


def steps_of_entries(
    intent: Intent, entries: Sequence[Document], beginning: Beginning | None = None
) -> list[Step]:
    """Return the statements of a put into a log, with those that begin the log if it is to begin.

    An entry leaves a document of its `_id` as it is, but for a checkpoint that is put again, and
    for what replaces what a task wrote.
    """
    put, thread, creation, dead_until, *_ = intent
    steps = []
    for entry in entries:
        place: Document = {"_id": entry["_id"]}
        idx = entry.get("idx", 0)
        if intent.replace:
            if not intent.is_counted and not is_receipt(idx):
                place["visible"] = {"$ne": True}
            steps.append(Step("row", replace_one(place, entry, upsert=True)))
        elif replaces(idx):
            steps.append(Step("row", _replacing(put, place, entry)))
        else:
            steps.append(Step("entry", insert_entry(entry)))
    steps = [*_chunks(put, thread, is_sharded=False), *_noting_replacement(intent), *steps]
    if beginning is None:
        touch = [Step("guard", _touch(put, thread, dead_until, entries[0]["log"]))]
        return [*(touch if put.chunks else ()), *steps]
    begin: list[Step] = []
    if creation is not None:
        begin = _creating(put, thread, creation)
    elif beginning.before.log is not None:
        begin = [Step("end", end_of(thread, beginning.before))]
    return [*begin, Step("check", _begin(put, thread, beginning)), *steps]


def _noting_replacement(intent: Intent) -> list[Step]:
    """Return the statement by which a removal in turns notices that a checkpoint is another now."""
    if intent.put.row is None or not intent.replace:
        return []
    return [Step("guard", update_one(record_of(intent.thread), {"$inc": {"removals": 1}}))]


def _chunks(put: PutRequest, thread: ThreadRef, is_sharded: bool) -> list[Step]:
    return [
        Step("chunk", chunk_statement(thread, digest, *chunk, is_sharded=is_sharded))
        for digest, chunk in put.chunks.items()
    ]


def _rows(
    put: PutRequest, thread: ThreadRef, replace: bool, is_new: bool, is_sharded: bool
) -> tuple[list[Step], list[Step]]:
    """Return the statements that store the rows of a put, and those that make them visible."""
    rows: list[Step] = []
    shown: list[Step] = []
    is_late = bool(put.chunks) or any(row.refs for row in (put.row, *put.writes) if row)
    for id_, place, said in _documents(put, thread):
        is_write = place["kind"] == "write"
        once = is_write and not replaces(place["idx"])  # which it does with what the task wrote
        if replace and place.get("idx") == RECEIPT:
            once = False  # it may show another state
        wanted = {} if is_write or replace or is_new else {"content": {"$exists": False}}
        found = found_by(id_, thread.family, is_sharded=is_sharded or bool(wanted)) | wanted
        document = {**place, **said, "visible": True}
        # A receipt is not there before what it is for.
        if said["refs"] or (is_late and is_receipt(place.get("idx", 0))):
            rows.append(Step("row", update_one(found, {"$set": {**place, "next": said}}, True)))
            keeps = put.fence if is_write and not once else None
            shown.append(Step("show", _show(id_, thread, once=once, keeps=keeps)))
        elif once and replace:
            found["family"] = thread.family
            rows.append(Step("row", update_one(found, _unless_there(document), True)))
        elif once:
            rows.append(Step("once", update_one(found, {"$setOnInsert": document}, True)))
        elif is_write:
            rows.append(Step("row", _replacing(put, found, {"_id": id_, **document})))
        else:
            rows.append(Step("row", replace_one(found, document, True)))
    return rows, shown


def _replacing(put: PutRequest, found: Document, document: Document) -> Statement:
    """Return the statement that replaces a write, and keeps what was before the run if it must."""
    if put.fence is None:
        return replace_one(found, {k: v for k, v in document.items() if k != "_id"}, upsert=True)
    made = {"$mergeObjects": [{"$literal": document}, _before(put.fence)]}
    targeted = {**found, "family": document["family"]}
    return update_one(targeted, [{"$replaceWith": made}], upsert=True)


_RESTORED = ("task_path", "channel", "refs", "content", "checksum", "binding", "fence")


def _before(fence: int) -> Document:
    """Return, as `before`, what a write was before the run that has a fence, if it was anything."""
    replaced = {name: f"${name}" for name in _RESTORED}
    before = {"$cond": [{"$eq": ["$fence", fence]}, "$before", replaced]}
    return {"$cond": [_is_missing("content"), {}, {"before": before}]}


def _creating(put: PutRequest, thread: ThreadRef, creation: Creation) -> list[Step]:
    name = creation.name
    named = update_one(
        {**name, "key": creation.old_key, "deletion": creation.deletion},
        {"$set": {"key": thread.key, "home": thread.family}, "$unset": {"expires": ""}},
        upsert=True,
    )
    return [
        Step("name", named),
        Step("guard", record_made(put, thread, creation.dead_until)),
    ]


def record_made(put: PutRequest, thread: ThreadRef, dead_until: str | None) -> Statement:
    """Return the statement that makes the record of a thread, unless there is one."""
    record = new_record(
        put.thread_id,
        thread.epoch,
        owner=put.owner,
        metadata=put.metadata,
        **put.expiry._asdict(),
        salt=put.salt,
        checksums=put.checksums,
        dead_until=dead_until,
    )
    times = {"created_at": NOW, "updated_at": NOW}
    return update_one(record_of(thread), _unless_there(record, times, "kind"), upsert=True)


def _same(
    put: PutRequest, thread: ThreadRef, dead_until: str | None, log: ObjectId | None = None
) -> Document:
    lease = {} if put.fence is None else {"fence": put.fence}
    return {
        **lease,
        **record_of(thread),
        "epoch": thread.epoch,
        "deleted_at": None,
        "lock": None,
        "dead_until": dead_until,
        "log": log,
    }


def _touch(
    put: PutRequest, thread: ThreadRef, dead_until: str | None, log: ObjectId | None = None
) -> Statement:
    """Return a statement that changes nothing, and collides if the thread is another by now."""
    same = _same(put, thread, dead_until, log)
    return expect(same, {"$set": {"kind": "thread"}})


def _begin(put: PutRequest, thread: ThreadRef, beginning: Beginning) -> Statement:
    """Return the check that begins a log, and brings the record up to where it begins."""
    before, log = beginning
    wanted = _same(put, thread, before.dead_until, before.log)
    if before.log is None:
        seen = {name: before.said[name] for name in ("checkpoint_count", "status", "status_for")}
        wanted |= seen
    said = dict(before.said)
    changes: Document = {"$max": {"updated_at": said.pop("updated_at")}}
    changes["$set"] = {**said, "log": log, "unlisted": True, "provisional": False}
    return expect(wanted, changes)


def _check(
    put: PutRequest, thread: ThreadRef, dead_until: str | None, replace: bool, is_newest: bool
) -> Statement:
    if put.row is None and (put.status is None or not is_newest):
        return _touch(put, thread, dead_until)
    wanted = _same(put, thread, dead_until)
    changes: Document = {
        "$max": {"updated_at": put.now},
        "$set": {"unlisted": True},
    }
    if put.row is not None:
        changes["$inc"] = {"checkpoint_count": 0 if replace else 1}
        changes["$set"]["provisional"] = False
    if put.status is not None and is_newest:
        # A new checkpoint makes a thread idle, unless a task's interrupt or error came before it.
        wanted["status_for"] = {"$lt" if put.row is not None else "$lte": put.checkpoint_id}
        changes["$max"]["state_updated_at"] = put.now
        changes["$set"] |= {"status": put.status, "status_for": put.checkpoint_id}
        if put.row is not None:
            terms = put.value_terms
            changes["$set"]["value_terms"] = None if terms is None else list(terms)
    return expect(wanted, changes)


def _show(id_: bytes, thread: ThreadRef, *, once: bool, keeps: int | None = None) -> Statement:
    """Return the statement that makes visible what is under `next`.

    Args:
        id_: Of the row.
        thread: The thread.
        once: Whether what is there stays.
        keeps: The fence of a run for which that is kept which was there before.
    """
    parts: list[Any] = ["$$ROOT", "$next", {"visible": True}]
    shown: Any = {"$mergeObjects": parts if keeps is None else [*parts, _before(keeps)]}
    if once:
        shown = {"$cond": [_is_missing("content"), shown, "$$ROOT"]}
    replaced = ["next"] if once else ["next", "hidden", "restarts"]
    return update_one(
        {"_id": id_, "family": thread.family, "next": {"$exists": True}},
        [{"$replaceWith": shown}, {"$unset": replaced}],
    )


def _unless_there(
    document: Document, computed: Document | None = None, field: str = "content"
) -> list[Document]:
    """Return the change that makes a document, and leaves one that has the field as it is."""
    made = [{"$literal": {**document, **({} if computed else {"visible": True})}}]
    made += [computed] if computed else []
    return [
        {
            "$replaceWith": {
                "$cond": [_is_missing(field), {"$mergeObjects": ["$$ROOT", *made]}, "$$ROOT"]
            }
        }
    ]


def _is_missing(field: str) -> Document:
    return {"$eq": [{"$type": f"${field}"}, "missing"]}
