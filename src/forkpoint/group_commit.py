"""Puts that are waiting at the same time share the cost of one commit, in one of two ways."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

_T = TypeVar("_T")


class Caller(Protocol):
    """An operation that no thread waits with while something of it is on its way."""

    def step(self) -> Sequence[Waiting]:
        """Run up to where it waits again, and return what is for this thread to go on with."""
        ...

    def wake(self, rider: Rider) -> None:
        """Have some thread go on with it, or lead the others, soon."""
        ...


class Claim:
    """What one thread may have: the first that asks for it."""

    def __init__(self) -> None:
        self._unclaimed = [True]

    def take(self) -> bool:
        """Return True once."""
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False


class Waiting:
    """Something on its way into the store, and whether it arrived."""

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None
        self.caller: Caller | None = None
        """Who is to go on then, if no thread waits."""
        self.claim = Claim()
        """Of the thread that is to go on with the caller."""

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.error is not None:
            raise self.error

    def ride(self) -> None:
        """Return when it is stored, or could not be."""
        raise NotImplementedError

    def board(self, caller: Caller) -> Sequence[Waiting]:
        """Have it stored, and return what is for this thread to go on with."""
        self.caller = caller
        self.ride()
        return [self]


Steps = Generator[Waiting, None, _T]
"""An operation that stops wherever something is to be stored, and goes on when that is done."""


def finish(steps: Steps[_T]) -> _T:
    """Return what an operation returns, and wait wherever it does."""
    while True:
        try:
            waiting = next(steps)
        except StopIteration as end:
            return cast("_T", end.value)
        waiting.ride()


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
        """Return when it is stored, or could not be."""
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

    def renew(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self.lock = threading.Lock()
        self._queue.clear()


class Rider(Waiting):
    """Something that waits for a `Relay` to store it.

    Args:
        relay: What stores it.
        is_patient: Whether it had better wait a moment for another one that is not.
        key: What it is about: it waits for those of the same key, unless it goes with them.
    """

    def __init__(self, relay: Relay[Any], *, is_patient: bool, key: object = None) -> None:
        super().__init__()
        self.is_patient = is_patient
        self.key = self if key is None else key
        self.began = 0.0  # when it began to lead, if it did
        self._relay = relay
        self._turn = threading.Lock()
        self._turn.acquire()

    def ride(self) -> None:
        self._relay.put(self)

    def board(self, caller: Caller) -> Sequence[Waiting]:
        self.caller = caller
        return self._relay.board(self)

    def lead(self) -> Sequence[Waiting]:
        """Store all that is waiting, if it is for this one to do; see `Relay.lead`."""
        return self._relay.lead(self)

    @property
    def is_settled(self) -> bool:
        """Whether its caller has nothing more to do than to return."""
        return self.error is None

    def wait(self, seconds: float) -> bool:
        """Return after `wake`, or False after some time."""
        return self._turn.acquire(timeout=seconds)

    def wake(self) -> None:
        if self.caller is not None:
            self.caller.wake(self)
        elif self._turn.locked():
            self._turn.release()


_R = TypeVar("_R", bound=Rider)


_CROWD = 8  # on their way: a store that is busy with more gains nothing by another batch


class Relay(Generic[_R]):
    """A queue of what is to be stored. One of those in it, the leader, stores all that has come.

    While it does so, the next one may be appointed, up to as many as there are lanes: while the
    store is busy with one batch, the next is prepared. Those that were taken along are woken when
    they are stored: they need not wait for the batch after theirs, as they would for a lock.

    Args:
        store: Stores a batch, and marks each of it as done. It is called by several threads.
        lanes: How many batches are on their way at once, while they are small.
        moment: For how many seconds the patient wait for one that is not.
        patience: After how many seconds nobody waits for the batches before: those may be large,
            or the way to the store long.
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

    # For a caller that waits

    def put(self, rider: _R) -> None:
        """Return when it is stored, or could not be."""
        try:
            self._join(rider)
            while not rider.done:
                has_waited = self._leader is not rider and not rider.wait(self._patience)
                if self._leader is rider and rider.is_patient:
                    rider.wait(self._moment)
                if self._begins(rider, has_waited):
                    self._store(self._batches[rider])
        finally:
            for one in self._leave(rider):
                one.wake()

    # For a caller that does something else in the meantime

    def board(self, rider: _R) -> list[_R]:
        """Have it stored, and return what is for this thread to go on with."""
        self._join(rider)
        return self.lead(rider)

    def lead(self, rider: _R) -> list[_R]:
        """Store all that is waiting, if it is for this one to do.

        Returns:
            What is for this thread to go on with. The others are woken: threads that wait, and
            callers that may take long.
        """
        if self._leader is rider and rider.is_patient:
            time.sleep(self._moment)
        if not self._begins(rider, has_waited=False):
            return []
        try:
            self._store(self._batches[rider])
        except BaseException:
            for one in self._leave(rider):
                one.wake()
            raise
        mine = []
        for one in self._leave(rider):
            if one.caller is not None and one.is_settled:
                mine.append(one)
            else:
                one.wake()
        return mine

    def _join(self, rider: _R) -> None:
        with self._lock:
            self._queue.append(rider)
            is_next = self._leader is None or (self._leader.is_patient and not rider.is_patient)
            if is_next and rider.key not in self._busy():
                self._appoint(rider)

    def _appoint(self, rider: _R) -> None:
        # Only who is in a hurry needs another lane, and only if the store is not busy with many.
        is_crowded = sum(map(len, self._batches.values())) > _CROWD
        lanes = 1 if rider.is_patient or is_crowded else self._lanes
        long_ago = time.monotonic() - self._patience
        if len(self._batches) < lanes or any(one.began < long_ago for one in self._batches):
            self._leader = rider

    def _begins(self, rider: _R, has_waited: bool) -> bool:
        """Return whether it is for this one to store all that are in the queue."""
        with self._lock:
            busy = self._busy()
            if self._leader is not rider and not (has_waited and rider in self._queue):
                return False
            if rider.key in busy:
                return False
            self._leader = None
            self._batches[rider] = [one for one in self._queue if one.key not in busy]
            rider.began = time.monotonic()
            self._queue = deque(one for one in self._queue if one.key in busy)
            return True

    def _busy(self) -> set[object]:
        """Return the keys of those that are on their way."""
        return {one.key for batch in self._batches.values() for one in batch}

    def _leave(self, rider: _R) -> list[_R]:
        """Let another one lead, and return those that were stored."""
        with self._lock:
            batch = self._batches.pop(rider, [])
            if not rider.done and rider in self._queue:  # an interrupt of this thread
                self._queue.remove(rider)
            others = [one for one in batch if not one.done and one is not rider]
            self._queue.extendleft(reversed(others))
            if self._leader is rider:
                self._leader = None
            busy = self._busy()
            ready = [one for one in self._queue if one.key not in busy]
            if self._leader is None and ready:
                urgent = (one for one in ready if not one.is_patient)
                self._appoint(next(urgent, ready[0]))
                if self._leader is not None:
                    self._leader.wake()
            return [one for one in batch if one.done]
