"""Caches that together take a bounded number of bytes.

They have no lock, which an interrupt or a process fork might leave locked. They change a dict by
single operations: what another thread does between two of them may lose an entry, and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from forkpoint.at_fork import Living

CACHE_BYTES = 64 * 1024 * 1024
"""What the caches of a saver may take, by default."""

ENTRY_BYTES = 400
"""How many bytes an entry takes for its key, its place in a dict and a few small values."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class CacheBudget:
    """How many bytes some caches may take in all.

    Each cache has two generations of entries. When the newer generations of all caches take half of
    the bytes, they become the older ones. What was in the older ones, and was not used since, is
    forgotten.

    Args:
        limit: The bytes. If they are few, only what was put last is remembered.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._half = limit // 2
        self._new_bytes = self._old_bytes = 0
        self._caches: Living[Cache[Any, Any]] = Living()

    @property
    def held_bytes(self) -> int:
        """How many bytes the caches take, by their own account."""
        return self._new_bytes + self._old_bytes

    def include(self, cache: Cache[Any, Any]) -> None:
        """Count a cache in."""
        self._caches.add(cache)

    def fits(self, size: int) -> bool:
        """Return whether an entry leaves anything for others."""
        return size <= self._half

    def add(self, size: int) -> None:
        """Count bytes of a newer generation, or fewer bytes if it is negative."""
        self._new_bytes += size
        if self._new_bytes > self._half:
            self._old_bytes, self._new_bytes = self._new_bytes - size, size
            for cache in self._caches.members():
                cache.become_old()

    def take_old(self, size: int) -> None:
        """Count bytes of an older generation that are in it no longer."""
        self._old_bytes = max(self._old_bytes - size, 0)


class Cache(Generic[_K, _V]):
    """A mapping that forgets the entries that were not used for long.

    Args:
        budget: How many bytes it may take, together with other caches.
        size_of: How many bytes an entry takes. It is asked again when the entry moves or goes.
    """

    def __init__(self, budget: CacheBudget, size_of: Callable[[_K, _V], int]) -> None:
        self._budget = budget
        self._size_of = size_of
        self._new: dict[_K, _V] = {}
        self._old: dict[_K, _V] = {}
        budget.include(self)

    def get(self, key: _K) -> _V | None:
        value = self._new.get(key)
        if value is None and self._old:
            value = self._old.pop(key, None)
            if value is not None:
                self._budget.take_old(self._size_of(key, value))
                self.put(key, value)
        return value

    def put(self, key: _K, value: _V) -> None:
        if self._new.get(key) is value:
            return
        before = self._new.pop(key, None)
        if before is not None:
            self._budget.add(-self._size_of(key, before))
        size = self._size_of(key, value)
        if not self._budget.fits(size):
            self.pop(key)  # what was is not true any more
            return
        self._budget.add(size)  # first: it may make room
        self._new[key] = value

    def pop(self, key: _K) -> _V | None:
        new = self._new.pop(key, None)  # first: meanwhile the new ones may become the old ones
        old = self._old.pop(key, None)
        if new is not None:
            self._budget.add(-self._size_of(key, new))
        if old is not None:
            self._budget.take_old(self._size_of(key, old))
        return old if new is None else new

    def become_old(self) -> None:
        """Forget the older generation, and begin a new one."""
        self._old, self._new = self._new, {}


def size_of_text(key: str, value: object) -> int:
    """Return how many bytes an entry takes that is small but for its key."""
    return ENTRY_BYTES + len(key)


def size_of_entry(key: object, value: object) -> int:
    """Return how many bytes a small entry takes."""
    return ENTRY_BYTES


class Recent(Generic[_K, _V]):
    """A mapping of small entries that forgets those that were put longest ago.

    Args:
        limit: How many entries it has at most. It forgets half of them at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit // 2
        self._new: dict[_K, _V] = {}
        self._old: dict[_K, _V] = {}

    def get(self, key: _K) -> _V | None:
        value = self._new.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: _K, value: _V) -> None:
        self._new[key] = value
        if len(self._new) > self._limit:
            self._old = self._new
            self._new = {}

    def pop(self, key: _K) -> _V | None:
        new = self._new.pop(key, None)  # first: meanwhile the new ones may become the old ones
        old = self._old.pop(key, None)
        return old if new is None else new
