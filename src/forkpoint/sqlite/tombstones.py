"""SQLite: the table of tombstones, by which it is known that a thread of an id was deleted."""

from __future__ import annotations

import os
from collections.abc import Collection

from forkpoint.sqlite.rows import THREAD_OF
from forkpoint.sqlite.secrets import SqliteSecrets, checked_key
from forkpoint.sqlite.statements import Statements
from forkpoint.storage.interface import STORE_KEY_BYTES
from forkpoint.storage.rows import ThreadRef
from forkpoint.storage.tombstones import Marks

_KEY_IF_NEEDED = (
    "SELECT value FROM forkpoint_settings WHERE name = 'store_key'"
    " AND EXISTS (SELECT 1 FROM forkpoint_tombstones)"
)


class Tombstones:
    """The tombstones of all ids.

    Where a method takes an owner, only deletions by or of this owner count; without one, all do.

    Args:
        sql: The statements of the connection.
        secrets: Where the store's key is.
        ttl: For how many microseconds a tombstone is kept.
    """

    def __init__(self, sql: Statements, secrets: SqliteSecrets, ttl: int) -> None:
        self._sql = sql
        self._secrets = secrets
        self._ttl = ttl

    def deletions(self, thread_id: str, owner: str | None = None) -> frozenset[int]:
        """Return the keys of an id's tombstones."""
        return frozenset(key for key, _ in self._tombstones(thread_id, owner))

    def watermark(self, thread_id: str, owner: str | None = None) -> str | None:
        """Return the highest checkpoint id that a deleted thread of this id is known to have."""
        ids = (watermark for _, watermark in self._tombstones(thread_id, owner))
        return max((id_ for id_ in ids if id_ is not None), default=None)

    def watermarks(self, thread_ids: Collection[str]) -> dict[str, str | None]:
        """Return what `watermark` does, for several ids."""
        if self._sql.row(_KEY_IF_NEEDED) is None:
            return dict.fromkeys(thread_ids)
        return {thread_id: self.watermark(thread_id) for thread_id in thread_ids}

    def _tombstones(self, thread_id: str, owner: str | None) -> list[tuple[int, str | None]]:
        secret = self._sql.row(_KEY_IF_NEEDED)
        if secret is None:
            return []
        marks = Marks(checked_key(secret[0]), thread_id)
        rows = self._sql.rows(
            "SELECT key, watermark, owner_mark FROM forkpoint_tombstones WHERE id_mark = ?",
            (marks.of_id,),
        )
        visible = None if owner is None else marks.seen_by(owner)
        return [row[:2] for row in rows if visible is None or row[2] in visible]

    def deleted_thread(self, thread_id: str, owner: str | None) -> ThreadRef | None:
        """Return a deleted thread of an id that rows may be left of."""
        for tombstone, _ in self._tombstones(thread_id, owner):
            row = self._sql.row(
                f"SELECT {THREAD_OF} FROM forkpoint_threads AS t JOIN"
                " forkpoint_tombstones AS d ON d.thread = t.key"
                " WHERE d.key = ? AND t.deleted_at IS NOT NULL AND t.removed_at IS NOT NULL",
                (tombstone,),
            )
            if row is not None:
                return ThreadRef(*row)
        return None

    def add(self, thread: int, thread_id: str, owner: str | None, watermark: str | None) -> None:
        """Note that an owner's thread was deleted.

        Args:
            thread: Its key.
            thread_id: Its id.
            owner: Its owner.
            watermark: The highest id of its checkpoints.
        """
        marks = self._marks(thread_id)
        self._add(marks, marks.of_owner(owner), thread, watermark)

    def add_unknown(self, thread_id: str, owner: str | None) -> None:
        """Note that an owner, or the saver of all owners, deleted an id that meant no thread."""
        marks = self._marks(thread_id)
        mark = marks.for_all if owner is None else marks.of_owner(owner)
        self._add(marks, mark, None, None)

    def _marks(self, thread_id: str) -> Marks:
        key = self._secrets.store_key()
        if key is None:
            key = os.urandom(STORE_KEY_BYTES)
            self._secrets.add_store_key(key)
        return Marks(key, thread_id)

    def _add(self, marks: Marks, mark: bytes, thread: int | None, watermark: str | None) -> None:
        now = self._sql.now()
        self.forget_old()
        of_owner = "forkpoint_tombstones WHERE id_mark = ? AND owner_mark = ?"
        before = self._sql.row(f"SELECT watermark, thread FROM {of_owner}", (marks.of_id, mark))
        ids = [id_ for id_ in (watermark, before and before[0]) if id_ is not None]
        self._sql.run(f"DELETE FROM {of_owner}", (marks.of_id, mark))
        self._sql.run(  # with a key that was never used before: it is another deletion
            "INSERT INTO forkpoint_tombstones (id_mark, owner_mark, thread, watermark, made_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (marks.of_id, mark, thread or (before and before[1]), max(ids, default=None), now),
        )

    def forget_old(self) -> bool:
        """Remove some tombstones whose time is over, and return whether there may be more."""
        removed = self._sql.run(
            "DELETE FROM forkpoint_tombstones WHERE key IN"
            " (SELECT key FROM forkpoint_tombstones WHERE made_at < ? LIMIT ?)",
            (self._sql.now() - self._ttl, self._sql.turn_rows),
        )
        return removed.rowcount == self._sql.turn_rows

    def raise_watermark(self, thread_id: str, owner: str | None, checkpoint_id: str) -> None:
        """Note that a checkpoint turned out to be one of a deleted thread."""
        keys = self.deletions(thread_id, owner)
        self._sql.run_each(
            "UPDATE forkpoint_tombstones SET watermark = max(watermark, ?) WHERE key = ?",
            [(checkpoint_id, key) for key in keys],
        )
