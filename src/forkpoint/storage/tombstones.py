"""What is kept of a deleted thread, so that late writes of its runs are known.

It is kept for an id and an owner, and names both by keyed digests only.
"""

from __future__ import annotations

import hmac
from collections.abc import Set
from datetime import timedelta
from hashlib import sha256
from typing import Any

import ormsgpack

TOMBSTONE_TTL = timedelta(days=1)
TOMBSTONE_MICROSECONDS = 24 * 3600 * 1_000_000
"""How long it is kept, by default. What a run stores later than that may make a thread of the id
again."""

_MARK_BYTES = 16


class Marks:
    """The digests under which the deletions of a thread id are kept.

    Args:
        key: The store's key.
        thread_id: The id.
    """

    def __init__(self, key: bytes, thread_id: str) -> None:
        self._key = key
        self._thread_id = thread_id

    def _mark(self, *named: str | None) -> bytes:
        message = ormsgpack.packb([self._thread_id, *named])
        return hmac.new(self._key, message, sha256).digest()[:_MARK_BYTES]

    @property
    def of_id(self) -> bytes:
        """That of the id, whoever's thread it was."""
        return self._mark()

    def of_owner(self, owner: str | None) -> bytes:
        """Return that of a deleted thread, or of what an owner deleted without having it."""
        return self._mark("owner", owner)

    @property
    def for_all(self) -> bytes:
        """That of a deletion, by nobody in particular, of an id that meant no thread."""
        return self._mark("all")

    def seen_by(self, owner: str) -> Set[bytes]:
        """Return those that count for an owner."""
        return {self.of_owner(owner), self.for_all}


def is_deleted_since(before: Any, now: Set[Any]) -> bool:
    """Return whether a thread id was deleted since.

    Args:
        before: The tombstones that `Threads.deletions` returned then; None if not known.
        now: The tombstones that it returns now.
    """
    return before is None or bool(now - before)
