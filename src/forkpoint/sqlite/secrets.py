"""SQLite: the keys that the store keeps in its settings."""

from __future__ import annotations

from collections.abc import Sequence

from forkpoint.errors import damaged_settings, lost_secret
from forkpoint.sqlite.schema import LIVING
from forkpoint.sqlite.statements import Statements
from forkpoint.storage.interface import Secrets


def checked_key(value: object) -> bytes:
    """Return a key that was read.

    Raises:
        CorruptChunk: It is none.
    """
    if not isinstance(value, bytes):
        raise damaged_settings("key")
    return value


class SqliteSecrets(Secrets):
    """The role `Secrets`."""

    def __init__(self, sql: Statements) -> None:
        self._sql = sql

    def store_key(self) -> bytes | None:
        row = self._sql.row("SELECT value FROM forkpoint_settings WHERE name = 'store_key'")
        return checked_key(row[0]) if row else None

    def add_store_key(self, key: bytes) -> None:
        self._sql.run(
            "INSERT OR IGNORE INTO forkpoint_settings (name, value) VALUES ('store_key', ?)", (key,)
        )

    def all(self) -> list[bytes]:
        rows = self._sql.rows("SELECT value FROM forkpoint_settings WHERE name LIKE 'secret:%'")
        return [checked_key(value) for (value,) in rows]

    def add(self, stored: bytes, seen: Sequence[bytes]) -> None:
        if self.all() != seen:
            return
        if not seen and self._sql.row(f"SELECT 1 FROM forkpoint_threads WHERE {LIVING} LIMIT 1"):
            raise lost_secret()
        rows = self._sql.rows("SELECT name FROM forkpoint_settings WHERE name LIKE 'secret:%'")
        number = max((int(name.removeprefix("secret:")) for (name,) in rows), default=0) + 1
        self._sql.run(
            "INSERT INTO forkpoint_settings (name, value) VALUES (?, ?)",
            (f"secret:{number}", stored),
        )

    def remove(self, stored: bytes) -> None:
        self._sql.run(
            "DELETE FROM forkpoint_settings WHERE name LIKE 'secret:%' AND value = ?", (stored,)
        )
