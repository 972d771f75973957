"""MongoDB: how a thread is copied, at once or in turns while others write.

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
from forkpoint.errors import ForkpointError, StorageBusy, ThreadExists
from forkpoint.mongodb.collecting import MongoCollecting
from forkpoint.mongodb.commands import NOW, Document, in_batches, record_of, row_id
from forkpoint.mongodb.documents import ROWS, place_in
from forkpoint.mongodb.locks import locked_until
from forkpoint.mongodb.search import (
    LISTED_PLACE,
    checksums_of,
    fields_of,
    new_record,
    said_in,
    terms_of,
)
from forkpoint.mongodb.statements import Statement, update_one
from forkpoint.mongodb.tombstones import dead_until_of
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import Description, ThreadRef

ABANDONED_SECONDS = 60
"""After which time a copy is taken for abandoned whose process did nothing for it."""

_COPIED_TOO_LONG = "copying took too long, and others have written since; try again"
_TOO_LONG_AGO = "copying took too long, and was taken for abandoned; try again"


_MISSING = object()


class _Copying(NamedTuple):
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
        return ThreadRef(self.made["_id"], self.made["family"], self.made["epoch"])

    def copied(self, row: Document) -> Statement:
        """Return the statement that writes a copy of a row of the source."""
        # The copies do not belong to the runs that made the originals: deleting those leaves them.
        left_out = ("_id", "run_id", "next", "log", "slot", "record", "fence", "before")
        copy = {field: value for field, value in row.items() if field not in left_out}
        stored = row.get("checksum"), row.get("binding")
        copy["binding"] = self.hashing.rebound(self.source.salt, self.made["salt"], *stored)
        return update_one(
            {"_id": row_id(self.target, *place_in(row)), "family": self.target.family},
            {"$setOnInsert": {**copy, "thread": self.target.key}},
            upsert=True,
        )


class MongoCopying(MongoCollecting):
    """The primitives of `Session` that copy threads, and how copies are shown."""

    def copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> None:
        if self.thread(target_id) is not None:
            raise ThreadExists(f"there is a thread {target_id!r} already")
        with self.locked(source, {}) as guard:
            old = self.deleted_before(target_id)
            record = self._locked_record(source)
            made = _record_of_copy(
                source, record, target_id, old, hashing, described, self._records.clock.now()
            )
            self._records.insert(made)
            copying = _Copying(source, hashing, made, old, iter(()))
            rows = self._records.latest(_rows_of(source))
            for batch in in_batches((row for row in rows if "content" in row), 1000):
                self._records.bulk([guard, *map(copying.copied, batch)])
            try:
                self._show(copying, guard, _COPIED_TOO_LONG)
            except ForkpointError:
                self.discard(copying.target)
                raise

    def begin_copy(
        self,
        source: ThreadRef,
        target_id: str,
        hashing: Hashing,
        described: Description | None = None,
    ) -> _Copying | None:
        if self.thread(target_id) is not None:
            raise ThreadExists(f"there is a thread {target_id!r} already")
        old = self.deleted_before(target_id)
        with self.locked(source, {}):  # so that the record says what there is at the moment
            record = self._locked_record(source)
            rows = self._records.open_moment(_rows_of(source), self.turn_rows)
        if rows is None:
            return None
        made = _record_of_copy(
            source, record, target_id, old, hashing, described, self._records.clock.now()
        )
        now = datetime.fromtimestamp(made["removed_at"] / 1e6, timezone.utc)
        until = now + timedelta(seconds=ABANDONED_SECONDS)
        made["lock"] = {"by": made["building"], "until": until}
        self._records.insert(made)
        return _Copying(source, hashing, made, old, rows)

    def copy_part(self, copying: Any) -> bool:
        assert isinstance(copying, _Copying)
        rows = self._records.read_on(copying.rows, self.turn_rows)
        target, token = copying.target, copying.made["building"]
        guard = update_one(
            {**record_of(target), "building": token},
            [{"$set": {**locked_until(token, ABANDONED_SECONDS), "removed_at": NOW}}],
            upsert=True,
        )
        if not rows:
            self._show(copying, guard, _TOO_LONG_AGO)
            return False
        stored = [row for row in rows if "content" in row]
        outcome = self._records.bulk([guard, *map(copying.copied, stored)])
        if outcome.error is not None:
            raise outcome.error
        if outcome.failed is not None:
            raise StorageBusy(_TOO_LONG_AGO)
        self._check_same(copying.source, stored)
        self.count_changed(len(rows))
        return True

    def _check_same(self, source: ThreadRef, rows: Sequence[Document]) -> None:
        """Make sure that a thread still has what was copied of it.

        Raises:
            Stale: It has not.
        """
        its = {"_id": {"$in": [row["_id"] for row in rows]}, "family": source.family}
        found = self._records.latest({**its, "doomed": None}, {"checksum": 1})
        there = {row["_id"]: row.get("checksum") for row in found}
        if any(there.get(row["_id"], _MISSING) != row.get("checksum") for row in rows):
            raise Stale
        if not self._records.exists({**record_of(source), "deleted_at": None}):
            raise Stale

    def abandon_copy(self, copying: Any) -> None:
        assert isinstance(copying, _Copying)
        building = {**record_of(copying.target), "building": copying.made["building"]}
        self._records.update(building, {"$set": {"lock": None}})

    def discard(self, unfinished: ThreadRef) -> None:
        """Remove a copy that nobody has seen."""
        rows = {"family": unfinished.family, "thread": unfinished.key, "kind": ROWS}
        self._records.delete(rows)
        self._records.delete(record_of(unfinished))

    def _locked_record(self, source: ThreadRef) -> Document:
        (record,) = self._records.latest(record_of(source))
        if record["lock"] is None:  # it was lost, and whoever had it next is done
            raise StorageBusy(_COPIED_TOO_LONG)
        return record

    def _show(self, copying: _Copying, guard: Statement, too_late: str) -> None:
        """Let a copy be seen that is complete."""
        target, made, old = copying.target, copying.made, copying.old
        end = [
            guard,
            name_statement(target, self._records.name_id(made["thread_id"]), old),
            show_statement(target, made["building"]),
        ]
        outcome = self._records.bulk(end)
        if outcome.hits < len(end) and not self.is_shown(made, old):
            if outcome.error is not None:
                raise outcome.error
            if outcome.failed == 1:
                raise ThreadExists(f"there is a thread {made['thread_id']!r} already")
            raise StorageBusy(too_late)

    def deleted_before(self, thread_id: str) -> Document | None:
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

    def is_shown(self, made: Document, old: Document | None) -> bool:
        """Return whether a copy can be seen although the command for it was not done in full.

        If not, its id means again what it meant before.
        """
        target = ThreadRef(made["_id"], made["family"], made["epoch"])
        name = self._records.name_id(made["thread_id"])
        named = {"_id": name, "family": name, "key": target.key}
        if not self._records.exists(named):
            return False
        # By a command whose answer was lost, and which may have ended in between.
        self._records.bulk([show_statement(target, made["building"])])
        if self._records.exists({**record_of(target), "building": None}):
            return True
        if old is None:
            self._records.delete(named)
        else:
            self._records.update(named, {"$set": {"key": old["_id"], "home": old["family"]}})
        return False


def name_statement(target: ThreadRef, name: str, old: Document | None) -> Statement:
    """Return the statement that gives an id to a copy that is ready to be shown."""
    return update_one(
        {"_id": name, "family": name, "key": old["_id"] if old else None},
        {"$set": {"key": target.key, "home": target.family}, "$unset": {"expires": ""}},
        upsert=True,
    )


def show_statement(target: ThreadRef, building: ObjectId) -> Statement:
    """Return the statement that shows a copy, unless a collection took it for abandoned."""
    stored = {"$cond": [{"$gt": ["$state_updated_at", 0]}, NOW, 0]}
    times = {"created_at": NOW, "updated_at": NOW, "state_updated_at": stored}
    return update_one(
        {**record_of(target), "building": building},
        [
            {"$set": {**times, "unlisted": True, "lock": None}},
            {"$unset": ["building", "removed_at"]},
        ],
    )


def _rows_of(source: ThreadRef) -> Document:
    """Return a filter for what is copied of a thread."""
    return {"family": source.family, "thread": source.key, "kind": ROWS, "doomed": None}


def _record_of_copy(
    source: ThreadRef,
    record: Document,
    target_id: str,
    old: Document | None,
    hashing: Hashing,
    described: Description | None,
    now: int,
) -> Document:
    """Return the record of a copy that is not complete."""
    made: Document = {
        **record,
        "_id": ObjectId(),
        "thread_id": target_id,
        "edge": "clone",
        "parent": record["_id"],
        "parent_checkpoint_id": None,
        "lock": None,
        "fence": 0,
        "removals": 0,
        "dead_until": old["dead_until"] if old else None,
        "building": record["lock"]["by"],
        **dict.fromkeys(("lease_holder", "lease_since", "lease_until")),
        "waiting": [],
        "swept_at": None,
        "rollback_from": None,
        "source": record["thread_id"],
        **(fields_of(described) if described is not None else {}),
    }
    for of_source in ("unlisted", "awaited", *LISTED_PLACE):
        made.pop(of_source, None)
    if described is None:
        said = record["checksums"], record["source"], said_in(record)
        hashing.check_description(source.thread_id, source.salt, *said)
    made["salt"] = new_salt(source.salt)
    made["checksums"] = checksums_of(made, hashing)
    # So that it is found if nobody comes to its end.
    return {**made, "terms": terms_of(made), "removed_at": now}
