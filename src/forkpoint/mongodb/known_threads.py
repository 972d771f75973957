"""MongoDB: which threads the ids meant that were read or written lately."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

from bson.objectid import ObjectId

from forkpoint.caches import Cache, CacheBudget, Recent, size_of_text
from forkpoint.storage.rows import ThreadRef


class Made(NamedTuple):
    """What a thread was made with."""

    deletions: Set[Any]
    """Those of its id before."""
    metadata: str


class KnownThreads:
    """Remembers which thread an id meant, and what else is known of threads.

    Args:
        budget: What it may take to remember them.
    """

    def __init__(self, budget: CacheBudget) -> None:
        self._threads: Cache[str, ThreadRef] = Cache(budget, size_of_text)
        self.made: Recent[ObjectId, Made] = Recent(4096)
        """The threads that were made here, by their keys."""
        self._watermarks: Recent[ObjectId, str] = Recent(4096)

    def get(self, thread_id: str) -> ThreadRef | None:
        """Return which thread an id meant when it was last looked at."""
        return self._threads.get(thread_id)

    def remember(self, thread_id: str, thread: ThreadRef) -> None:
        """Remember which thread an id means."""
        self._threads.put(thread_id, thread)

    def forget(self, thread_id: str) -> None:
        """Forget which thread an id meant."""
        self._threads.pop(thread_id)

    def watermark(self, key: ObjectId) -> str | None:
        """Return the tombstone watermark in the record of a thread, if it is known to have one."""
        return self._watermarks.get(key)

    def remember_watermark(self, key: ObjectId, watermark: str) -> None:
        """Remember the tombstone watermark in the record of a thread."""
        self._watermarks.put(key, watermark)
