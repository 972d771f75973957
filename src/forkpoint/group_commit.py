"""Puts that are waiting at the same time share the cost of one commit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar


class Waiting:
    """Something on its way into the store, and whether it arrived."""

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.error is not None:
            raise self.error


_W = TypeVar("_W", bound=Waiting)


class GroupCommit(Generic[_W]):
    """A queue of what is to be stored. Whoever holds the lock stores all that has come by then.

    Args:
        store: Stores a batch, and marks each of it as done. It is called with the lock held.
    """

    def __init__(self, store: Callable[[list[_W]], None]) -> None:
        self.lock = threading.Lock()
        self._store = store
        self._queue: deque[_W] = deque()

    def put(self, waiting: _W) -> None:
        """Return when it is stored, or raise what went wrong."""
        self._queue.append(waiting)
        with self.lock:
            if not waiting.done:  # else the one who held the lock before took it along
                batch = [self._queue.popleft() for _ in range(len(self._queue))]
                try:
                    self._store(batch)
                except BaseException:  # an interrupt of this thread, not of the others
                    others = [one for one in batch if not one.done and one is not waiting]
                    self._queue.extendleft(reversed(others))
                    raise
        waiting.check()

    def renew(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self.lock = threading.Lock()
        self._queue.clear()


class Lanes(Generic[_W]):
    """Several queues, for a store that commits several batches at once.

    Args:
        store: As above, but called by several threads at once.
        number: How many batches are on their way at most.
    """

    def __init__(self, store: Callable[[list[_W]], None], number: int) -> None:
        self.lanes = [GroupCommit(store) for _ in range(number)]
        self._turn = 0

    def put(self, waiting: _W) -> None:
        """Return when it is stored, or raise what went wrong."""
        free = next((lane for lane in self.lanes if not lane.lock.locked()), None)
        if free is None:
            self._turn = (self._turn + 1) % len(self.lanes)
            free = self.lanes[self._turn]
        free.put(waiting)

    def renew(self) -> None:
        """In a forked child, see `GroupCommit.renew`."""
        for lane in self.lanes:
            lane.renew()
