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
    """A queue of what is to be stored. One of those in it, the leader, stores all that has come.

    While it does so, the next one may be appointed, up to as many as there are lanes: while the
    store is busy with one batch, the next is prepared. Those that were taken along are woken when
    they are stored: they need not wait for the batch after theirs, as they would for a lock.

    Args:
        store: Stores a batch, and marks each of it as done. It is called by several threads.
        lanes: How many batches are on their way at once.
        moment: For how many seconds the patient wait for one that is not.
        patience: After how many seconds in the queue nobody waits for the batches before: those
            may be large, or the way to the store long.
    """

    def __init__(
        self, store: Callable[[list[_R]], None], *, lanes: int, moment: float, patience: float
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._moment = moment
        self._patience = patience
        self.renew()

    def renew(self) -> None:
        """In a forked child: the other threads are gone."""
        self._lock = threading.Lock()
        self._queue: deque[_R] = deque()
        self._leader: _R | None = None  # in the queue, about to begin
        self._batches: dict[_R, list[_R]] = {}  # on their way, by who leads them

    def put(self, rider: _R) -> None:
        """Return when it is stored, or raise what went wrong."""
        try:
            self._join(rider)
            while not rider.done:
                if self._leader is not rider:
                    rider.wait(self._patience)
                if self._leader is rider and rider.is_patient:
                    rider.wait(self._moment)
                if self._begins(rider):
                    self._store(self._batches[rider])
        finally:
            self._leave(rider)
        rider.check()

    def _join(self, rider: _R) -> None:
        with self._lock:
            self._queue.append(rider)
            if self._leader is None or (self._leader.is_patient and not rider.is_patient):
                self._appoint(rider)

    def _appoint(self, rider: _R) -> None:
        # Only who is in a hurry needs another lane.
        if len(self._batches) < (1 if rider.is_patient else self._lanes):
            self._leader = rider

    def _begins(self, rider: _R) -> bool:
        """Return whether it is for this one to store all that are in the queue."""
        with self._lock:
            has_waited = self._leader is None and rider in self._queue
            if self._leader is not rider and not has_waited:
                return False
            self._leader = None
            self._batches[rider] = list(self._queue)
            self._queue.clear()
            return True

    def _leave(self, rider: _R) -> None:
        with self._lock:
            batch = self._batches.pop(rider, [])
            if not rider.done and rider in self._queue:  # an interrupt of this thread
                self._queue.remove(rider)
            others = [one for one in batch if not one.done and one is not rider]
            self._queue.extendleft(reversed(others))
            if self._leader is rider:
                self._leader = None
            if self._leader is None and self._queue:
                urgent = (one for one in self._queue if not one.is_patient)
                self._appoint(next(urgent, self._queue[0]))
                if self._leader is not None:
                    self._leader.wake()
            for one in batch:
                if one.done:
                    one.wake()
