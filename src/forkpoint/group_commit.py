"""Puts that are waiting at the same time share the cost of one commit, in one of two ways."""

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


class Rider(Waiting):
    """Something that waits for a `Relay` to store it.

    Args:
        is_patient: Whether it had better wait a moment for another one that is not.
    """

    def __init__(self, *, is_patient: bool) -> None:
        super().__init__()
        self.is_patient = is_patient
        self._turn = threading.Lock()
        self._turn.acquire()

    def wait(self, seconds: float) -> None:
        """Return after `wake`, or after some time."""
        self._turn.acquire(timeout=seconds)

    def wake(self) -> None:
        if self._turn.locked():
            self._turn.release()


_R = TypeVar("_R", bound=Rider)


class Relay(Generic[_R]):
    """A queue of what is to be stored. One at a time, the leader, stores all that has come by then.

    Then it appoints the next leader, and wakes those that it took along: they need not wait for the
    batch after theirs, as they would for a lock.

    Args:
        store: Stores a batch, and marks each of it as done.
        moment: For how many seconds the patient wait for one that is not.
        patience: After how many seconds in the queue nobody waits for the batch before: that one
            may be large, or the way to the store long.
    """

    def __init__(
        self, store: Callable[[list[_R]], None], *, moment: float, patience: float
    ) -> None:
        self._store = store
        self._moment = moment
        self._patience = patience
        self.renew()

    def renew(self) -> None:
        """In a forked child: the other threads are gone."""
        self._lock = threading.Lock()
        self._queue: deque[_R] = deque()
        self._leader: _R | None = None  # while it is in the queue, it has not begun

    def put(self, rider: _R) -> None:
        """Return when it is stored, or raise what went wrong."""
        batch: list[_R] = []
        try:
            self._join(rider)
            while not rider.done:
                if self._leader is not rider:
                    rider.wait(self._patience)
                if self._leader is rider and rider.is_patient:
                    rider.wait(self._moment)
                batch = self._batch_of(rider)
                if batch:
                    self._store(batch)
        finally:
            self._leave(rider, batch)
        rider.check()

    def _join(self, rider: _R) -> None:
        with self._lock:
            self._queue.append(rider)
            leader = self._leader
            if leader is None or (
                leader.is_patient and not rider.is_patient and leader in self._queue
            ):
                self._leader = rider

    def _batch_of(self, rider: _R) -> list[_R]:
        """Return all that are in the queue, if it is for this one to store them."""
        with self._lock:
            if self._leader is not rider and (
                rider not in self._queue or self._leader in self._queue
            ):
                return []
            batch = list(self._queue)
            self._queue.clear()
            return batch

    def _leave(self, rider: _R, batch: list[_R]) -> None:
        with self._lock:
            if not rider.done and rider in self._queue:  # an interrupt of this thread
                self._queue.remove(rider)
            others = [one for one in batch if not one.done and one is not rider]
            self._queue.extendleft(reversed(others))
            if self._leader is rider or self._leader is None:
                urgent = (one for one in self._queue if not one.is_patient)
                self._leader = next(urgent, self._queue[0] if self._queue else None)
                if self._leader is not None:
                    self._leader.wake()
            for one in batch:
                if one.done:
                    one.wake()
