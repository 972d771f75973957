"""MongoDB: the records of threads: what the catalog shows of them, and who owns them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import suppress

from bson.objectid import ObjectId

from forkpoint.encoding.hashing import Hashing, new_salt
from forkpoint.errors import CorruptChunk, ThreadExists
from forkpoint.filters import stored_value_terms, thread_terms
from forkpoint.mongodb.commands import IN_ONE_COMMAND, MongoCommands
from forkpoint.mongodb.documents import NOW, ROWS, Document, record_of, write_row
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.new_threads import NewThreads, insertion_of
from forkpoint.mongodb.pipelines import join
from forkpoint.mongodb.thread_documents import (
    NO_LOG,
    VISIBLE,
    WITH_LEASE,
    fields_of,
    terms_of,
    thread_row,
)
from forkpoint.mongodb.tombstones import tombstone_statement
from forkpoint.storage import interface
from forkpoint.storage.interface import Threads
from forkpoint.storage.plan import HEAD_ROWS
from forkpoint.storage.receipts import RECEIPT, WRITES
from forkpoint.storage.rows import (
    Description,
    FamilyMember,
    RecordTimes,
    ThreadRef,
    ThreadRow,
    WriteRow,
)
from forkpoint.storage.shared import batches

_NOT_MADE_OF: Document = dict.fromkeys(("edge", "parent", "parent_checkpoint_id", "source"))
_THREADS = 1000  # of which rows are read at once


class MongoRecords(interface.Records):
    """Reads and changes the records of threads.

    Args:
        commands: Those of the collection.
        logs: The logs of threads.
        threads: Which threads ids mean.
        new_threads: How threads are made.
    """

    def __init__(
        self, commands: MongoCommands, logs: Logs, threads: Threads, new_threads: NewThreads
    ) -> None:
        self._commands = commands
        self._logs = logs
        self._threads = threads
        self._new_threads = new_threads

    def get(self, thread_id: str) -> ThreadRow | None:
        records = self._commands.aggregate(self._records_of(self._commands.name_of(thread_id)))
        return thread_row(records[0]) if records else None

    def get_many(self, thread_ids: Collection[str]) -> Mapping[str, ThreadRow]:
        rows: dict[str, ThreadRow] = {}
        for batch in batches(thread_ids, IN_ONE_COMMAND):
            names = [self._commands.name_of(thread_id)["_id"] for thread_id in batch]
            match = {"_id": {"$in": names}, "family": {"$in": names}}
            for record in self._commands.aggregate(self._records_of(match)):
                row = thread_row(record)
                rows[row.thread_id] = row
        return rows

    def _records_of(self, names: Document) -> list[Document]:
        """Return the stages that find the records of the threads that some names mean."""
        stages = [*self._logs.up_to_date(), WITH_LEASE]
        return [
            {"$match": names},
            join(self._commands, "record", ("key", "_id"), VISIBLE, stages),
            {"$unwind": "$record"},
            {"$replaceWith": "$record"},
        ]

    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        # Where the record says that there is nothing to be seen, nothing is read.
        looked_at = [row for row in rows if row is not None and row.shown_at]
        at = {(row.thread.key, row.shown_at) for row in looked_at}
        heads: dict[object, list[WriteRow]] = {}
        for batch in batches(looked_at, _THREADS):
            writes = self._commands.find(
                {
                    "family": {"$in": list({row.thread.family for row in batch})},
                    "thread": {"$in": [row.thread.key for row in batch]},
                    "checkpoint_ns": "",
                    "kind": "write",
                    "checkpoint_id": {"$in": list({row.shown_at for row in batch})},
                    "$or": [{"idx": {"$in": list(HEAD_ROWS)}}, {"idx": {"$lte": WRITES}}],
                    "visible": True,
                }
            )
            for write in writes:
                if (write["thread"], write["checkpoint_id"]) in at:
                    with suppress(CorruptChunk):  # it is not shown, and keeps nobody from the rest
                        heads.setdefault(write["thread"], []).append(write_row(write))
        return [row and row._replace(head=heads.get(row.thread.key, ())) for row in rows]

    def create(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        try:
            old = self._new_threads.deleted_before(thread_id)
        except ThreadExists:
            return self._adopt(thread_id, owner, described, hashing)
        made = self._new_record(thread_id, old, owner, described, hashing)
        try:
            if self._new_threads.show(made, old, [insertion_of(made)]):
                return True
        except ThreadExists:
            pass  # somebody else has made one meanwhile
        self._new_threads.discard(made)
        return False

    def create_many(
        self, new: Mapping[str, Description], owner: str | None, hashing: Hashing
    ) -> Set[str]:
        names = {self._commands.name_of(thread_id)["_id"]: thread_id for thread_id in new}
        which = {"$in": list(names)}
        named = self._commands.latest({"_id": which, "family": which}, {"_id": 1})
        others = {names[document["_id"]] for document in named}
        made = [
            self._new_record(id_, None, owner, described, hashing)
            for id_, described in new.items()
            if id_ not in others
        ]
        created = self._new_threads.show_many(made)
        for thread_id in new.keys() - created:  # by itself, as it is not made for the first time
            if self.create(thread_id, owner, new[thread_id], hashing):
                created.add(thread_id)
        return created

    def _new_record(
        self,
        thread_id: str,
        old: Document | None,
        owner: str | None,
        described: Description,
        hashing: Hashing,
    ) -> Document:
        """Return the record of a new thread that is not visible yet; see `NewThreads.record`."""
        key = ObjectId()
        fields = {"owner": owner, **fields_of(described), "salt": new_salt()}
        target = ThreadRef(key, key, ObjectId())
        return self._new_threads.record(thread_id, target, old, hashing, **fields)

    def describe(
        self,
        seen: ThreadRow,
        described: Description,
        checksums: bytes,
        times: RecordTimes | None = None,
    ) -> bool:
        fields = {**fields_of(described), "checksums": checksums}
        terms = thread_terms(
            seen.thread.owner,
            described.label,
            described.tags,
            described.metadata,
            seen.source_thread_id,
        )
        later = {"$max": [NOW, {"$add": ["$updated_at", 1]}, seen.updated_at + 1]}
        active = {"updated_at": later} if times is None else times._asdict()
        same = {
            **record_of(seen.thread),
            **VISIBLE,
            **fields_of(seen.described),
            "checksums": seen.checksums,
        }
        change: list[Document] = [
            {"$set": {name: {"$literal": value} for name, value in fields.items()}},
            {"$set": {"terms": {"$literal": terms}, **active, "unlisted": True}},
            {"$unset": "listed_values"},
        ]
        if times is None:
            return self._commands.update(same, change)
        # What is in a log says when it was stored.
        return self._logs.without_log(
            seen.thread, same, lambda match: self._commands.update(match, change)
        )

    def hand_over(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        self._logs.end_log(seen.thread)
        if seen.thread.owner is not None:
            self._add_tombstone(seen)
        whole = self.with_heads([seen])[0] or seen
        preview = next((row.content for row in whole.head if row.idx == RECEIPT), b"")
        fields: Document = {
            **fields_of(described),
            **_NOT_MADE_OF,
            "checksums": checksums,
            "owner": owner,
            "epoch": ObjectId(),
            "terms": _terms(owner, described),
            "value_terms": stored_value_terms(owner, preview),
        }
        later = {"$max": [NOW, {"$add": ["$updated_at", 1]}, seen.updated_at + 1]}
        match = {**record_of(seen.thread), **VISIBLE, **NO_LOG, "lock": None}
        is_given = self._commands.update(
            {**match, "checksums": seen.checksums, "updated_at": seen.updated_at},
            [
                {"$set": {name: {"$literal": value} for name, value in fields.items()}},
                {"$set": {"updated_at": later, "unlisted": True}},
                {"$unset": "listed_values"},
            ],
        )
        if is_given:  # who makes a fork or a copy of it at the moment cannot show it any more
            family, key = seen.thread.family, seen.thread.key
            made = {"family": family, "kind": "thread", "parent": key, "building": {"$ne": None}}
            self._commands.update_all(made, {"$set": {"building": ObjectId(), "lock": None}})
        return is_given

    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        fields: Document = {**_NOT_MADE_OF, "checksums": checksums}
        change: Document = {"$set": fields}
        if row is not None:
            fields |= {"terms": _terms(row.thread.owner, row.described), "unlisted": True}
            change["$unset"] = {"listed_values": ""}
        match: Document = {"_id": kin.key, "family": parent.family, "checksums": kin.checksums}
        return self._commands.update(match, change)

    def note_sweep(self, seen: ThreadRow) -> None:
        self._commands.update(record_of(seen.thread), {"$set": {"swept_at": seen.updated_at}})

    def _adopt(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        """Describe the thread of an id that has writes, but no checkpoint yet."""
        thread = self._threads.find(thread_id, owner)
        if thread is None or thread.owner != owner:
            return False
        fields = {**fields_of(described), "owner": owner, "source": None}
        identity = thread_id, owner, thread.salt
        checksums = hashing.checksums(identity, described)
        fields["checksums"] = checksums
        made = {**fields, "terms": terms_of(fields), "provisional": False, "unlisted": True}
        new = {**record_of(thread), "provisional": True, "deleted_at": None}
        return self._commands.update(new, {"$set": made})

    def _add_tombstone(self, seen: ThreadRow) -> None:
        """Add a tombstone, so that runs of the owner before are refused as after a deletion."""
        rows: Document = {"family": seen.thread.family, "thread": seen.thread.key, "kind": ROWS}
        rows["checkpoint_id"] = {"$gt": ""}  # those that are no text are damaged
        ids = [row["checkpoint_id"] for row in self._commands.latest(rows, {"checkpoint_id": 1})]
        mark = self._commands.marks(seen.thread_id).of_owner(seen.thread.owner)
        name = self._commands.name_of(seen.thread_id)
        watermark, ttl = max(ids, default=None), self._commands.tombstone_ttl
        self._commands.change([tombstone_statement(name, mark, watermark, ObjectId(), ttl)])


def _terms(owner: str | None, described: Description) -> list[int]:
    fields = described.label, described.tags, described.metadata
    return thread_terms(owner, *fields, None)
