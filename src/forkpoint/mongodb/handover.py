"""MongoDB: how a thread is given to another owner."""

from __future__ import annotations

from bson.objectid import ObjectId

from forkpoint.filters import stored_value_terms, thread_terms
from forkpoint.mongodb.commands import NOW, Document, record_of
from forkpoint.mongodb.documents import ROWS
from forkpoint.mongodb.heads import MongoHeads
from forkpoint.mongodb.log import NO_LOG
from forkpoint.mongodb.search import SEEN, fields_of
from forkpoint.mongodb.tombstones import entomb
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import Description, FamilyMember, ThreadRef, ThreadRow

_NOT_MADE_OF: Document = dict.fromkeys(("edge", "parent", "parent_checkpoint_id", "source"))


class MongoGiving(MongoHeads):
    """The primitives of `forkpoint.storage.interface.Session` that change a thread's owner."""

    def give(
        self, seen: ThreadRow, described: Description, owner: str | None, checksums: bytes
    ) -> bool:
        self.end_log(seen.thread)
        if seen.thread.owner is not None:
            self._entomb_for(seen)
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
        wanted = {**record_of(seen.thread), **SEEN, **NO_LOG, "lock": None}
        return self._records.update(
            {**wanted, "checksums": seen.checksums, "updated_at": seen.updated_at},
            [
                {"$set": {name: {"$literal": value} for name, value in fields.items()}},
                {"$set": {"updated_at": later, "unlisted": True}},
                {"$unset": "listed_values"},
            ],
        )

    def _entomb_for(self, seen: ThreadRow) -> None:
        """Let a thread be as if it had been deleted for the runs of its owner."""
        rows = {"family": seen.thread.family, "thread": seen.thread.key, "kind": ROWS}
        ids = [row["checkpoint_id"] for row in self._records.latest(rows, {"checkpoint_id": 1})]
        mark = self._records.marks(seen.thread_id).of_owner(seen.thread.owner)
        name = self._records.name_id(seen.thread_id)
        dead_until, ttl = max(ids, default=None), self._records.tombstone_ttl
        self._records.bulk([entomb(name, mark, dead_until, ObjectId(), ttl, is_given=True)])

    def detach(
        self, parent: ThreadRef, kin: FamilyMember, row: ThreadRow | None, checksums: bytes
    ) -> bool:
        fields: Document = {**_NOT_MADE_OF, "checksums": checksums}
        change: Document = {"$set": fields}
        if row is not None:
            fields |= {"terms": _terms(row.thread.owner, row.described), "unlisted": True}
            change["$unset"] = {"listed_values": ""}
        wanted: Document = {"_id": kin.key, "family": parent.family, "checksums": kin.checksums}
        return self._records.update(wanted, change)


def _terms(owner: str | None, described: Description) -> list[int]:
    said = described.label, described.tags, described.metadata
    return thread_terms(owner, *said, None)
