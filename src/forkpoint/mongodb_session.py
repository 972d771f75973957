"""MongoDB: how threads are made, as they are or of others.

There are no transactions. What must happen together happens in one bulk of statements, in order,
that begins with one on the record of the thread: an upsert, whose filter says how the record must
be. If it is not so, the upsert collides with the record's own `_id`, and the bulk ends there.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from bson.objectid import ObjectId

from forkpoint.errors import StorageBusy, ThreadExists
from forkpoint.filters import stored_value_terms
from forkpoint.hashing import Hashing, new_salt
from forkpoint.mongodb_catalog import (
    LISTED_PLACE,
    checksums_of,
    fields_of,
    new_record,
    said_in,
    terms_of,
)
from forkpoint.mongodb_documents import (
    ROWS,
    checkpoint_document,
    chunk_statement,
    place_in,
    write_document,
)
from forkpoint.mongodb_giving import MongoGiving
from forkpoint.mongodb_records import NOW, Document, in_batches, record_of, row_id
from forkpoint.mongodb_statements import Statement, expect, update_one
from forkpoint.mongodb_tombstones import dead_until_of
from forkpoint.receipts import RECEIPT
from forkpoint.removal import newest
from forkpoint.storage import CheckpointRow, Description, Graft, Stale, ThreadRef, WriteRow

_COPIED_TOO_LONG = "copying took too long, and others have written since; try again"


class MongoSession(MongoGiving):
    """The primitives of `forkpoint.storage.Session`, each atomic by itself."""

    # Making

    def graft(self, graft: Graft) -> None:
        source = graft.source
        old = self._deleted_before(graft.target_id)
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
            _name(target, self._records.name_id(graft.target_id), old),
            _show(target, made["building"]),
        ]
        outcome = self._records.bulk(statements)
        if outcome.hits < len(statements) and not self._is_shown(
            {**record_of(target), **made}, old
        ):
            self._discard(target)
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
            old = self._deleted_before(thread_id)
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
            _name(target, self._records.name_id(thread_id), old),
            _show(target, made["building"]),
        ]
        outcome = self._records.bulk(statements)
        if outcome.hits == len(statements) or self._is_shown(made, old):
            return True
        self._discard(target)
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

    def _is_shown(self, made: Document, old: Document | None) -> bool:
        """Return whether a copy can be seen although the command for it was not done in full.

        If not, its id means again what it meant before.
        """
        target = ThreadRef(made["_id"], made["family"], made["epoch"])
        name = self._records.name_id(made["thread_id"])
        named = {"_id": name, "family": name, "key": target.key}
        if not self._records.exists(named):
            return False
        # By a command whose answer was lost, and which may have ended in between.
        self._records.bulk([_show(target, made["building"])])
        if self._records.exists({**record_of(target), "building": None}):
            return True
        if old is None:
            self._records.delete(named)
        else:
            self._records.update(named, {"$set": {"key": old["_id"], "home": old["family"]}})
        return False

    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        if self.thread(target_id) is not None:
            raise ThreadExists(f"there is a thread {target_id!r} already")
        with self._locked(source, {}) as guard:
            self._copy(source, target_id, hashing, described, guard)

    def _copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None,
        guard: Statement,
    ) -> None:
        old = self._deleted_before(target_id)
        (record,) = self._records.latest(record_of(source))
        if record["lock"] is None:  # it was lost, and whoever had it next is done
            raise StorageBusy(_COPIED_TOO_LONG)
        target = ThreadRef(ObjectId(), source.family, record["epoch"])
        made: Document = {
            **record,
            "_id": target.key,
            "thread_id": target_id,
            "edge": "clone",
            "parent": source.key,
            "parent_checkpoint_id": None,
            "lock": None,
            "fence": 0,
            "dead_until": old["dead_until"] if old else None,
            "building": record["lock"]["by"],
            **dict.fromkeys(("lease_holder", "lease_since", "lease_until")),
            "waiting": [],
            "swept_at": None,
            "rollback_from": None,
            "source": record["thread_id"],
            **(fields_of(described) if described is not None else {}),
        }
        for of_source in ("unlisted", "removed_at", *LISTED_PLACE):
            made.pop(of_source, None)
        if described is None:
            said = said_in(record)
            hashing.check_description(
                source.thread_id, source.salt, record["checksums"], record["source"], said
            )
        made["salt"] = new_salt(source.salt)
        made["checksums"] = checksums_of(made, hashing)
        made["terms"] = terms_of(made)
        self._records.insert(made)
        rows = self._records.latest(
            {"family": source.family, "thread": source.key, "kind": ROWS, "doomed": None}
        )
        for batch in in_batches((row for row in rows if "content" in row), 1000):
            self._records.bulk(
                [
                    guard,
                    *(_copied(target, row, hashing, source.salt, made["salt"]) for row in batch),
                ]
            )
        end = [
            guard,
            _name(target, self._records.name_id(target_id), old),
            _show(target, made["building"]),
        ]
        outcome = self._records.bulk(end)
        if outcome.hits < len(end) and not self._is_shown(made, old):
            self._discard(target)
            if outcome.error is not None:
                raise outcome.error
            if outcome.failed == 1:
                raise ThreadExists(f"there is a thread {target_id!r} already")
            raise StorageBusy(_COPIED_TOO_LONG)

    def _deleted_before(self, thread_id: str) -> Document | None:
        """Return what is left of the thread that an id meant before.

        Raises:
            ThreadExists: There is one.
        """
        name = self._records.name_id(thread_id)
        named = self._records.latest({"_id": name, "family": name})
        if not named:
            return None
        old = {"_id": named[0]["key"], "family": named[0]["home"]}
        # If its record is missing, somebody is about to make it, or ended just before.
        now = datetime.fromtimestamp(self._records.clock.now() / 1e6, timezone.utc)
        expiry = now + timedelta(microseconds=2 * self._records.tombstone_ttl)
        times = {"created_at": 0, "updated_at": 0, "deleted_at": 0, "expires": expiry}
        record = {**old, **new_record("", ObjectId()), **times}
        for of_living in ("unlisted", "terms"):
            del record[of_living]
        self._records.insert(record)
        (record,) = self._records.latest(old)
        if record["deleted_at"] is None:
            raise ThreadExists(f"there is a thread {thread_id!r} already")
        return {
            **record,
            "dead_until": dead_until_of(named[0], self._records.marks(thread_id), None),
        }

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


def _name(target: ThreadRef, name: str, old: Document | None) -> Statement:
    """Return the statement that gives an id to a copy that is ready to be shown."""
    return update_one(
        {"_id": name, "family": name, "key": old["_id"] if old else None},
        {"$set": {"key": target.key, "home": target.family}, "$unset": {"expires": ""}},
        upsert=True,
    )


def _show(target: ThreadRef, building: ObjectId) -> Statement:
    """Return the statement that shows a copy, unless a collection took it for abandoned."""
    stored = {"$cond": [{"$gt": ["$state_updated_at", 0]}, NOW, 0]}
    times = {"created_at": NOW, "updated_at": NOW, "state_updated_at": stored, "unlisted": True}
    return update_one(
        {**record_of(target), "building": building}, [{"$set": times}, {"$unset": "building"}]
    )


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


def _copied(
    target: ThreadRef, row: Document, hashing: Hashing, source_salt: bytes, salt: bytes
) -> Statement:
    """Return the statement that writes a copy of a row for another thread of the family."""
    # The copies do not belong to the runs that made the originals: deleting those leaves them.
    left_out = ("_id", "run_id", "next", "log", "slot", "record", "fence", "before")
    copy = {field: value for field, value in row.items() if field not in left_out}
    copy["binding"] = hashing.rebound(source_salt, salt, row.get("checksum"), row.get("binding"))
    return update_one(
        {"_id": row_id(target, *place_in(row)), "family": target.family},
        {"$setOnInsert": {**copy, "thread": target.key}},
        upsert=True,
    )
