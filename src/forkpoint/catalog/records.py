"""The records of threads: reading, making, changing, cloning and measuring them.

Each function that takes a `Context` first is one operation; see `forkpoint.operations`.
None of them decodes a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from forkpoint.catalog.heads import thread_of, threads_of
from forkpoint.catalog.threads import Thread
from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import (
    StorageBusy,
    StorageReplaced,
    ThreadExists,
    ThreadNotFound,
)
from forkpoint.inputs import merged_description
from forkpoint.operations.context import Context
from forkpoint.operations.copy import copy
from forkpoint.operations.turns import Turns, Work, in_turns
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import Session
from forkpoint.storage.record_checksums import check_record, checksums_with_description
from forkpoint.storage.retry import attempts, busy, retry_steps
from forkpoint.storage.rows import Description, ForkRequest, ThreadRow
from forkpoint.storage.shared import batches, thread_exists

CREATED_AT_ONCE = 500
"""How many threads are created in one transaction."""


class Changes(NamedTuple):
    """Changes of a thread's description. None leaves a field as it is, unless it is in `cleared`.

    Metadata are merged into those of the thread, key by key.
    """

    label: str | None = None
    tags: Sequence[str] | None = None
    metadata: Mapping[str, Any] = {}
    ttl: int | None = None
    on_expiry: str | None = None
    cleared: frozenset[str] = frozenset()

    def applied(self, before: Description) -> Description:
        """Return the description after these changes.

        Raises:
            InvalidInput: The merged metadata are too long.
        """
        return Description(
            None if "label" in self.cleared else self.label or before.label,
            before.tags if self.tags is None else self.tags,
            merged_description(before.metadata, self.metadata),
            None if "ttl" in self.cleared else self.ttl or before.ttl,
            sorted({*before.fixed_keys, *self.metadata}),
            self.on_expiry or before.on_expiry,
        )


def get(context: Context, thread_id: str) -> Thread | None:
    """Return a thread, if there is one that has not expired."""
    hashing = context.prepare().hashing
    with context.storage.reading() as session:
        row = session.records.get(thread_id)
        if row is not None:
            check_record(hashing, row)
        return None if row is None or row.is_expired else thread_of(context, session, row)


def create(context: Context, thread_id: str, changes: Changes, may_exist: bool) -> Thread:
    """Make a thread, or return the existing one if `may_exist`.

    Raises:
        ThreadExists: There is such a thread, or another owner has one.
    """
    description = changes.applied(Description(**context.expiry._asdict()))
    for _ in attempts():
        hashing, history = context.prepare().hashing, context.storage.history
        with context.storage.writing() as session:
            if context.storage.history != history:  # the secret may be that of another store
                continue
            row = session.records.get(thread_id) if may_exist else None
            if row is None:
                if not session.records.create(thread_id, context.owner, description, hashing):
                    if not may_exist:
                        raise thread_exists(thread_id)
                    continue  # somebody made it meanwhile, and may have deleted it by now
                context.memory.threads.pop(thread_id)
                row = session.records.get(thread_id)
            elif row.is_expired:
                check_record(hashing, row)
                checksums = checksums_with_description(hashing, row, row.described)
                if not session.records.describe(row, row.described, checksums):  # which is activity
                    continue
                row = session.records.get(thread_id)
            if row is not None:
                return thread_of(context, session, row)
    with context.storage.reading() as session:
        if session.threads.find(thread_id) is not None:
            raise thread_exists(thread_id)  # an owner is about to put its first checkpoint
    raise StorageBusy(f"thread {thread_id!r} is made and deleted again and again")


def create_many(
    context: Context, threads: Mapping[str, Changes], may_exist: bool
) -> Steps[list[Thread]]:
    """Make threads, `CREATED_AT_ONCE` in a transaction, and return all of them in order.

    Raises:
        ThreadExists: There is one of them, or another owner has one.
    """
    hashing, history = context.prepare().hashing, context.storage.history
    default = Description(**context.expiry._asdict())
    new = {thread_id: changes.applied(default) for thread_id, changes in threads.items()}
    parts = list(batches(new, CREATED_AT_ONCE))

    def work(turns: Turns) -> Work[dict[str, ThreadRow]]:
        if not may_exist:  # before the first one is made
            for part in parts:
                for thread_id in turns.session.records.get_many(part):
                    raise thread_exists(thread_id)
                yield
            turns.only_reads = False
            yield
        rows: dict[str, ThreadRow] = {}
        for part in parts:
            described = {thread_id: new[thread_id] for thread_id in part}
            if context.storage.history != history:  # the secret may be that of another store
                raise StorageReplaced("the store was replaced meanwhile; call create_many again")
            rows.update(_made(context, turns.session, described, hashing, may_exist))
            turns.is_over = True
            yield
        return rows

    rows = yield from in_turns(context.storage, work, only_reads=not may_exist)
    for row in rows.values():
        check_record(hashing, row)
    living = [row for row in rows.values() if not row.is_expired]
    made = {thread.thread_id: thread for thread in threads_of(context, living)}
    return [
        # One that has expired is renewed, and one that somebody is about to make is waited for.
        made.get(thread_id) or create(context, thread_id, changes, may_exist=True)
        for thread_id, changes in threads.items()
    ]


def _made(
    context: Context,
    session: Session,
    new: Mapping[str, Description],
    hashing: Hashing,
    may_exist: bool,
) -> dict[str, ThreadRow]:
    """Make threads, and return their records."""
    made = session.records.create_many(new, context.owner, hashing)
    if not may_exist:
        for thread_id in new.keys() - made:
            raise thread_exists(thread_id)
    for thread_id in made:
        context.memory.threads.pop(thread_id)
    stored = session.records.get_many(new)
    rows = session.records.with_heads(list(stored.values()))
    return {row.thread_id: row for row in rows if row is not None}


def update(context: Context, thread_id: str, changes: Changes) -> Thread:
    """Change the description of a thread.

    Raises:
        ThreadNotFound: There is no such thread.
    """
    hashing = context.prepare().hashing
    return change(
        context,
        thread_id,
        changes,
        lambda session, row, description: session.records.describe(
            row, description, checksums_with_description(hashing, row, description)
        ),
    )


def change(
    context: Context,
    thread_id: str,
    changes: Changes,
    store: Callable[[Session, ThreadRow, Description], bool],
) -> Thread:
    """Change the record of a thread; try again when others change it at the same moment.

    Args:
        context: The store.
        thread_id: The thread.
        changes: The changes of its description.
        store: Takes the record and the new description. Returns whether it stored that: not if
            somebody changed the record after it was read.
    """
    hashing = context.prepare().hashing
    for _ in attempts():
        with context.storage.writing() as session:
            row = existing_record(session, thread_id)
            check_record(hashing, row)
            if store(session, row, changes.applied(row.described)):
                return thread_of(context, session, existing_record(session, thread_id))
    raise busy(f"thread {thread_id!r} changed")


def clone(
    context: Context, source_id: str, target_id: str, changes: Changes, checkpoints: bool
) -> Steps[Thread]:
    """Make a thread like another, with its checkpoints or without."""
    if source_id == target_id:
        raise ThreadExists(f"thread {target_id!r} cannot be cloned onto itself")
    hashing = context.prepare().hashing

    def work(turns: Turns) -> Work[Thread]:
        source = existing_record(turns.session, source_id)
        check_record(hashing, source)
        description = changes.applied(source.described)
        if checkpoints:
            yield from copy(turns, hashing, source.thread, target_id, description)
        else:
            turns.session.copies.fork(_without_checkpoints(hashing, source, target_id, description))
        context.memory.threads.pop(target_id)
        return thread_of(context, turns.session, existing_record(turns.session, target_id))

    steps = retry_steps(lambda: in_turns(context.storage, work), f"thread {source_id!r} changed")
    return (yield from steps)


def _without_checkpoints(
    hashing: Hashing, source: ThreadRow, target_id: str, description: Description
) -> ForkRequest:
    return ForkRequest(
        source.thread,
        source.thread_id,
        target_id,
        None,
        source.thread.owner,
        description,
        "idle",
        [],
        [],
        {},
        hashing,
        new_salt(source.thread.salt),
        edge="clone",
    )


def existing_record(session: Session, thread_id: str) -> ThreadRow:
    """Return the record of a thread.

    Raises:
        ThreadNotFound: There is no such thread.
    """
    row = session.records.get(thread_id)
    if row is None:
        raise ThreadNotFound(f"there is no thread {thread_id!r}")
    return row
