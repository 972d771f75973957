"""MongoDB: how threads are made, as they are or of others.

There are no transactions. What must happen together happens in one bulk of statements, in order,
that begins with one on the record of the thread: an upsert, whose filter says how the record must
be. If it is not so, the upsert collides with the record's own `_id`, and the bulk ends there.
"""

from __future__ import annotations

from bson.objectid import ObjectId

from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import ThreadExists
from forkpoint.filters import stored_value_terms
from forkpoint.mongodb.commands import Document, record_of, row_id
from forkpoint.mongodb.copies import name_statement, show_statement
from forkpoint.mongodb.documents import (
    checkpoint_document,
    chunk_statement,
    write_document,
)
from forkpoint.mongodb.handover import MongoGiving
from forkpoint.mongodb.search import (
    checksums_of,
    fields_of,
    new_record,
    terms_of,
)
from forkpoint.mongodb.statements import Statement, expect, update_one
from forkpoint.storage.interface import Stale
from forkpoint.storage.plan import newest
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import CheckpointRow, Description, ForkRequest, ThreadRef, WriteRow


class MongoSession(MongoGiving):
    """The primitives of `forkpoint.storage.interface.Session`, each atomic by itself."""

    # Making

    def graft(self, graft: ForkRequest) -> None:
        source = graft.source
        old = self.deleted_before(graft.target_id)
        target = ThreadRef(ObjectId(), source.family, source.epoch)
        head = newest(row[:2] for row in graft.rows if not row.hidden)
        receipts = (row for row in graft.writes if row.idx == RECEIPT and row[:2] == head)
        preview = next((row.content for row in receipts), b"")
        made = new_record(
            graft.target_id,
            source.epoch,
            **record_of(target),
            edge=graft.edge,
            parent=source.key,
            parent_checkpoint_id=graft.parent_checkpoint_id,
            source=graft.source_id,
            owner=graft.owner,
            **fields_of(graft.described),
            status=graft.status,
            status_for=head[1] if head else "",
            state_updated_at=1 if graft.rows else 0,
            value_terms=stored_value_terms(graft.owner, preview),
            checkpoint_count=sum(not row.hidden for row in graft.rows),
            provisional=False,
            dead_until=old["dead_until"] if old else None,
            building=ObjectId(),
            salt=graft.salt,
        )
        made["checksums"] = checksums_of(made, graft.hashing)
        unchanged = expect(
            {**record_of(source), "epoch": source.epoch, "deleted_at": None, "lock": None},
            {"$set": {"kind": "thread"}},
        )
        statements = [
            unchanged,
            update_one(record_of(target), {"$setOnInsert": made}, upsert=True),
            *(
                chunk_statement(source, digest, *chunk, is_sharded=self._records.is_sharded)
                for digest, chunk in graft.chunks.items()
            ),
            *(_grafted(target, *checkpoint_document(target, row), row) for row in graft.rows),
            *(_grafted(target, *write_document(target, row), row) for row in graft.writes),
            unchanged,
            name_statement(target, self._records.name_id(graft.target_id), old),
            show_statement(target, made["building"]),
        ]
        outcome = self._records.bulk(statements)
        if outcome.hits < len(statements) and not self.is_shown({**record_of(target), **made}, old):
            self.discard(target)
            if outcome.error is not None:
                raise outcome.error
            if outcome.failed == len(statements) - 2:
                raise ThreadExists(f"there is a thread {graft.target_id!r} already")
            self.await_unlocked(source)
            raise Stale

    def add(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        try:
            old = self.deleted_before(thread_id)
        except ThreadExists:
            return self._adopt(thread_id, owner, described, hashing)
        key = ObjectId()
        target = ThreadRef(key, key, ObjectId())
        made = new_record(
            thread_id,
            target.epoch,
            **record_of(target),
            owner=owner,
            **fields_of(described),
            provisional=False,
            dead_until=old["dead_until"] if old else None,
            building=ObjectId(),
            salt=new_salt(),
        )
        made["checksums"] = checksums_of(made, hashing)
        statements = [
            update_one(record_of(target), {"$setOnInsert": made}, upsert=True),
            name_statement(target, self._records.name_id(thread_id), old),
            show_statement(target, made["building"]),
        ]
        outcome = self._records.bulk(statements)
        if outcome.hits == len(statements) or self.is_shown(made, old):
            return True
        self.discard(target)
        return False

    def _adopt(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        """Describe a thread that has writes, but no checkpoint yet, if that is what an id means."""
        thread = self.thread(thread_id)
        if thread is None or thread.owner != owner:
            return False
        fields = {**fields_of(described), "owner": owner, "source": None}
        identity = thread_id, owner, thread.salt
        checksums = hashing.checksums(identity, described)
        fields["checksums"] = checksums
        made = {**fields, "terms": terms_of(fields), "provisional": False, "unlisted": True}
        new = {**record_of(thread), "provisional": True, "deleted_at": None}
        return self._records.update(new, {"$set": made})

    # Secrets

    def store_key(self) -> bytes | None:
        return self._records.store_key

    def add_store_key(self, key: bytes) -> None:
        pass  # it was made when the store was set up

    def secrets(self) -> list[bytes]:
        wanted = {"_id": {"$gte": "secret:", "$lt": "secret;"}, "family": "settings"}
        found = self._records.latest(wanted)
        return [secret["value"] for secret in sorted(found, key=lambda one: str(one["_id"]))]

    def add_secret(self, stored: bytes) -> None:
        number = len(self.secrets()) + 1
        self._records.insert({"_id": f"secret:{number:04}", "family": "settings", "value": stored})


def _grafted(
    target: ThreadRef, place: Document, said: Document, row: CheckpointRow | WriteRow
) -> Statement:
    """Return the statement that gives a row to a thread that nobody knows yet."""
    at = [row.checkpoint_ns, row.checkpoint_id]
    if isinstance(row, WriteRow):
        id_ = row_id(target, *at, row.task_id, row.idx)
        shown = {"visible": True}
    else:
        id_ = row_id(target, *at)
        shown = {"hidden" if row.hidden else "visible": True}
    return update_one(
        {"_id": id_, "family": target.family},
        {"$setOnInsert": {**place, **said, **shown}},
        upsert=True,
    )
