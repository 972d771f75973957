"""MongoDB: the statements of a put, in the order that makes it one.

1. The *guard* ends the bulk if the thread is not as it is known to be.
2. Chunks.
3. Rows. One that refers to chunks is not visible yet: what it says is under `next`.
4. The *check* ends the bulk if the thread changed since the guard, and keeps its record up.
5. What is under `next` becomes visible.

A collection first changes the epoch of all threads, and then reads all rows. If the check passed
before, the rows are there to be read. If it comes later, it fails, and nothing became visible.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from bson.objectid import ObjectId
from pymongo import UpdateOne

from forkpoint.mongodb_records import NOW, Document, name_id, record_of, row_id
from forkpoint.mongodb_session import (
    checkpoint_document,
    chunk_statement,
    new_record,
    write_document,
)
from forkpoint.storage import Put, ThreadRef

Role = Literal["name", "guard", "chunk", "row", "check", "show"]


class Step(NamedTuple):
    """A statement, and what it means if it collides with a document that exists."""

    role: Role
    statement: UpdateOne


class Creation(NamedTuple):
    """A thread that a put makes."""

    old_key: ObjectId | None
    """What the thread's id meant before."""
    dead_until: str | None


def steps_of(
    put: Put,
    thread: ThreadRef,
    *,
    creation: Creation | None = None,
    dead_until: str | None = None,
    replace: bool = False,
) -> list[Step]:
    """Return the statements of a put.

    Args:
        put: What is to be stored.
        thread: The thread that it is prepared for, or that it makes.
        creation: How it makes the thread, if it does.
        dead_until: What the thread's record says of the deleted ones before it.
        replace: Whether there may be a checkpoint in its place, or pending writes of its task.
    """
    if creation is None:
        steps = [Step("guard", _touch(thread, dead_until))]
    else:
        dead_until = creation.dead_until
        steps = _creating(put, thread, creation)
    steps += [
        Step("chunk", chunk_statement(thread, digest, *chunk))
        for digest, chunk in put.chunks.items()
    ]
    shown: list[Step] = []
    if put.row is not None:
        id_ = row_id(thread, put.row.checkpoint_ns, put.row.checkpoint_id)
        place, said = checkpoint_document(thread, put.row)
        wanted = {"_id": id_, "family": thread.family}
        if not replace:
            wanted["content"] = {"$exists": False}
        steps.append(Step("row", _row(wanted, place, said)))
        if put.row.refs:
            shown.append(Step("show", _show(wanted["_id"], thread, once=False)))
    for write in put.writes:
        id_ = row_id(thread, write.checkpoint_ns, write.checkpoint_id, write.task_id, write.idx)
        place, said = write_document(thread, write)
        wanted = {"_id": id_, "family": thread.family}
        once = write.idx >= 0  # the others replace what the task wrote before
        if write.refs:
            steps.append(Step("row", _row(wanted, place, said)))
            shown.append(Step("show", _show(id_, thread, once=once)))
        elif not once:
            steps.append(Step("row", _row(wanted, place, said)))
        elif replace:
            steps.append(Step("row", UpdateOne(wanted, _unless_there({**place, **said}), True)))
        else:
            wanted["next"] = {"$exists": False}
            document = {**place, **said, "visible": True}
            steps.append(Step("row", UpdateOne(wanted, {"$setOnInsert": document}, upsert=True)))
    return [*steps, Step("check", _check(put, thread, dead_until, replace)), *shown]


def _creating(put: Put, thread: ThreadRef, creation: Creation) -> list[Step]:
    name = name_id(put.thread_id)
    record = {
        **new_record(put.thread_id, thread.epoch),
        "metadata": put.metadata,
        "dead_until": creation.dead_until,
    }
    named = UpdateOne(
        {"_id": name, "family": name, "key": creation.old_key},
        {"$set": {"key": thread.key, "home": thread.family}},
        upsert=True,
    )
    times = {"created_at": NOW, "updated_at": NOW}
    made = UpdateOne(record_of(thread), _unless_there(record, times, "kind"), upsert=True)
    return [Step("name", named), Step("guard", made)]


def _same(thread: ThreadRef, dead_until: str | None) -> Document:
    return {
        **record_of(thread),
        "epoch": thread.epoch,
        "deleted_at": None,
        "lock": None,
        "dead_until": dead_until,
    }


def _touch(thread: ThreadRef, dead_until: str | None) -> UpdateOne:
    """Return a statement that changes nothing, and collides if the thread is another by now."""
    return UpdateOne(_same(thread, dead_until), {"$set": {"kind": "thread"}}, upsert=True)


def _check(put: Put, thread: ThreadRef, dead_until: str | None, replace: bool) -> UpdateOne:
    if put.row is None and put.status is None:
        return _touch(thread, dead_until)
    id_ = {"$literal": put.checkpoint_id}
    changes: Document = {"updated_at": {"$max": ["$updated_at", NOW]}}
    if put.row is not None:
        changes["provisional"] = False
        changes["checkpoint_count"] = {"$add": ["$checkpoint_count", 0 if replace else 1]}
    if put.status is not None:
        # That of the newest checkpoint holds. A new one makes a thread idle, unless a task's
        # interrupt or error came before it.
        newer = "$gt" if put.row is not None else "$gte"
        is_newer = {newer: [id_, "$status_for"]}
        changes["status"] = {"$cond": [is_newer, put.status, "$status"]}
        changes["status_for"] = {"$max": [id_, "$status_for"]}
    return UpdateOne(_same(thread, dead_until), [{"$set": changes}], upsert=True)


def _row(wanted: Document, place: Document, said: Document) -> UpdateOne:
    """Return the statement that stores a row, or what it is to say once the check passed."""
    if said["refs"]:
        return UpdateOne(wanted, {"$set": {**place, "next": said}}, upsert=True)
    shown = {**place, **said, "visible": True}
    return UpdateOne(wanted, {"$set": shown, "$unset": {"next": 1, "hidden": 1}}, upsert=True)


def _show(id_: bytes, thread: ThreadRef, *, once: bool) -> UpdateOne:
    """Return the statement that makes visible what is under `next`."""
    shown: Any = {"$mergeObjects": ["$$ROOT", "$next", {"visible": True}]}
    if once:
        shown = {"$cond": [_is_missing("content"), shown, "$$ROOT"]}
    return UpdateOne(
        {"_id": id_, "family": thread.family, "next": {"$exists": True}},
        [{"$replaceWith": shown}, {"$unset": ["next", "hidden"] if not once else "next"}],
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
