"""SQLite: what tells that a thread of an id was deleted."""

from __future__ import annotations

import os

from forkpoint.sqlite_statements import Statements, time_now
from forkpoint.storage import STORE_KEY_BYTES
from forkpoint.tombstones import Marks

_KEY_IF_NEEDED = (
    "SELECT value FROM forkpoint_settings WHERE name = 'store_key'"
    " AND EXISTS (SELECT 1 FROM forkpoint_tombstones)"
)


class SqliteTombstones(Statements):
    """The primitives of `forkpoint.storage.Session` for the deletions of an id.

    Given an owner, those of others do not count. Without, all do.
    """

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
        self._add_tombstone(marks, mark, None)

    def entomb(self, thread_id: str, owner: str | None, dead_until: str | None) -> None:
        """Note that an owner's thread was deleted.

        Args:
            thread_id: Its id.
            owner: Whose it was.
            dead_until: The highest id of its checkpoints.
        """
        marks = self._marks(thread_id)
        self._add_tombstone(marks, marks.of_owner(owner), dead_until)

    def _marks(self, thread_id: str) -> Marks:
        key = self.store_key()
        if key is None:
            key = os.urandom(STORE_KEY_BYTES)
            self.add_store_key(key)
        return Marks(key, thread_id)

    def _add_tombstone(self, marks: Marks, mark: bytes, dead_until: str | None) -> None:
        of_owner = "forkpoint_tombstones WHERE id_mark = ? AND owner_mark = ?"
        before = self.one(f"SELECT dead_until FROM {of_owner}", marks.of_id, mark)
        ids = [one for one in (dead_until, before and before[0]) if one is not None]
        self.run(f"DELETE FROM {of_owner}", marks.of_id, mark)
        self.run(  # with a key that there was never before: it is another deletion
            "INSERT INTO forkpoint_tombstones (id_mark, owner_mark, dead_until, made_at)"
            " VALUES (?, ?, ?, ?)",
            marks.of_id,
            mark,
            max(ids, default=None),
            time_now(),
        )

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
