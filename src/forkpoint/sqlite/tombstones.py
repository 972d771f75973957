"""SQLite: what tells that a thread of an id was deleted."""

from __future__ import annotations

import os

from forkpoint.sqlite.rows import THREAD_OF
from forkpoint.sqlite.statements import Statements
from forkpoint.storage.interface import STORE_KEY_BYTES
from forkpoint.storage.rows import ThreadRef
from forkpoint.storage.tombstones import TOMBSTONE_MICROSECONDS, Marks

_KEY_IF_NEEDED = (
    "SELECT value FROM forkpoint_settings WHERE name = 'store_key'"
    " AND EXISTS (SELECT 1 FROM forkpoint_tombstones)"
)

# The ancestors of the threads of a family that are there, or are being copied.
_NEEDED = (
    "WITH RECURSIVE needed (key) AS (SELECT parent FROM forkpoint_threads WHERE family = :family"
    " AND parent IS NOT NULL AND (deleted_at IS NULL OR building > 0)"
    " UNION SELECT t.parent FROM needed JOIN forkpoint_threads AS t USING (key)"
    " WHERE t.parent IS NOT NULL)"
)
_USELESS = (
    "family = :family AND deleted_at IS NOT NULL AND building IS NULL"
    " AND key NOT IN (SELECT key FROM needed)"
)


class SqliteTombstones(Statements):
    """The primitives of `forkpoint.storage.interface.Session` for the deletions of an id.

    Given an owner, those of others do not count. Without, all do.

    Attributes:
        tombstone_ttl: For how many microseconds a deletion is known.
    """

    tombstone_ttl = TOMBSTONE_MICROSECONDS

    def last_deletion(self, thread_id: str, owner: str | None = None) -> frozenset[int]:
        return frozenset(key for key, _ in self._tombstones(thread_id, owner))

    def dead_until(self, thread_id: str, owner: str | None = None) -> str | None:
        """Return the highest checkpoint id that is known to be of a deleted thread of this id."""
        ids = (checkpoint_id for _, checkpoint_id in self._tombstones(thread_id, owner))
        return max((one for one in ids if one is not None), default=None)

    def _tombstones(self, thread_id: str, owner: str | None) -> list[tuple[int, str | None]]:
        secret = self.one(_KEY_IF_NEEDED)
        if secret is None:
            return []
        marks = Marks(bytes(secret[0]), thread_id)
        rows = self.all(
            "SELECT key, dead_until, owner_mark FROM forkpoint_tombstones WHERE id_mark = ?",
            marks.of_id,
        )
        seen = None if owner is None else marks.seen_by(owner)
        return [(row[0], row[1]) for row in rows if seen is None or row[2] in seen]

    def note_deletion(self, thread_id: str, owner: str | None = None) -> None:
        marks = self._marks(thread_id)
        mark = marks.for_all if owner is None else marks.of_owner(owner)
        self._add_tombstone(marks, mark, None, None)

    def entomb(
        self, thread: int, thread_id: str, owner: str | None, dead_until: str | None
    ) -> None:
        """Note that an owner's thread was deleted.

        Args:
            thread: Its key.
            thread_id: Its id.
            owner: Whose it was.
            dead_until: The highest id of its checkpoints.
        """
        marks = self._marks(thread_id)
        self._add_tombstone(marks, marks.of_owner(owner), thread, dead_until)

    def buried(self, thread_id: str, owner: str | None = None) -> ThreadRef | None:
        for tombstone, _ in self._tombstones(thread_id, owner):
            row = self.one(
                f"SELECT {THREAD_OF} FROM forkpoint_threads AS t JOIN"
                " forkpoint_tombstones AS d ON d.thread = t.key"
                " WHERE d.key = ? AND t.deleted_at IS NOT NULL AND t.removed_at IS NOT NULL",
                tombstone,
            )
            if row is not None:
                return ThreadRef(*row)
        return None

    def forget_ids(self, family: int) -> None:
        """Leave no id of a deleted thread, but for ancestors of those that are there."""
        self.run(
            f"{_NEEDED} UPDATE forkpoint_threads SET thread_id = ''"
            f" WHERE {_USELESS} AND thread_id != ''",
            family=family,
        )

    def forget_threads(self, family: int) -> None:
        """Remove what is left of deleted threads that are no ancestors of those that are there."""
        self.run(
            f"{_NEEDED} DELETE FROM forkpoint_threads WHERE {_USELESS} AND removed_at IS NULL",
            family=family,
        )

    def _marks(self, thread_id: str) -> Marks:
        key = self.store_key()
        if key is None:
            key = os.urandom(STORE_KEY_BYTES)
            self.add_store_key(key)
        return Marks(key, thread_id)

    def _add_tombstone(
        self, marks: Marks, mark: bytes, thread: int | None, dead_until: str | None
    ) -> None:
        now = self.now()
        self.forget_deletions()
        of_owner = "forkpoint_tombstones WHERE id_mark = ? AND owner_mark = ?"
        before = self.one(f"SELECT dead_until, thread FROM {of_owner}", marks.of_id, mark)
        ids = [one for one in (dead_until, before and before[0]) if one is not None]
        self.run(f"DELETE FROM {of_owner}", marks.of_id, mark)
        self.run(  # with a key that there was never before: it is another deletion
            "INSERT INTO forkpoint_tombstones (id_mark, owner_mark, thread, dead_until, made_at)"
            " VALUES (?, ?, ?, ?, ?)",
            marks.of_id,
            mark,
            thread or (before and before[1]),
            max(ids, default=None),
            now,
        )

    def forget_deletions(self) -> bool:
        forgotten = self.run(
            "DELETE FROM forkpoint_tombstones WHERE key IN"
            " (SELECT key FROM forkpoint_tombstones WHERE made_at < ? LIMIT ?)",
            self.now() - self.tombstone_ttl,
            self.turn_rows,
        )
        return forgotten.rowcount == self.turn_rows

    def die_later(self, thread_id: str, owner: str | None, checkpoint_id: str) -> None:
        """Note that a checkpoint was found to be of a deleted thread, if any counts."""
        keys = self.last_deletion(thread_id, owner)
        self.many(
            "UPDATE forkpoint_tombstones SET dead_until = max(dead_until, ?) WHERE key = ?",
            [(checkpoint_id, key) for key in keys],
        )

    # The store's key

    def store_key(self) -> bytes | None:
        row = self.one("SELECT value FROM forkpoint_settings WHERE name = 'store_key'")
        return bytes(row[0]) if row else None

    def add_store_key(self, key: bytes) -> None:
        self.run(
            "INSERT OR IGNORE INTO forkpoint_settings (name, value) VALUES ('store_key', ?)", key
        )
