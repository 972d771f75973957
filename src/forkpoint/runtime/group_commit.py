"""Puts that are waiting at the same time share the cost of one commit, in one of two ways.

An interrupt of one that stores for others loses none of them: what is not done stays in the queue,
or comes back to it. Each method can be left at any point, and `let_go` or `_leave` be called after
it as often as one likes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from forkpoint.errors import StorageBusy
from forkpoint.runtime.steps import Caller, Locked, Patience, Waiting


class Turn(Protocol):
    """A lock that an exception at any point leaves usable."""

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for it, or raise a `StorageBusy` after some time."""
        ...

    def let_go(self) -> None:
        """Release it, if this thread holds it, and undo what was begun under it."""
        ...


class Pending(Waiting):
    """Something that a `GroupCommit` is to store.

    Args:
        commits: What stores it.
    """

    is_queued = False
    is_taken = False
    """Whether it is in a batch, or was: that one may be about to be stored."""
    is_withdrawn = False
    patience: Patience | None = None
    """Once it waits for the store."""

    def __init__(self, commits: GroupCommit[Any]) -> None:
        super().__init__()
        self._commits = commits

    def wait(self) -> None:
        self._commits.put(self)

    def submit(self, caller: Caller) -> Sequence[Waiting]:
        self.caller = caller
        return self.resume()

    def resume(self) -> Sequence[Waiting]:
        pause = None if self.done else self.attempt()
        if pause is None:
            return [self]
        assert self.caller is not None
        # Many take turns: each attempt is one for all of them.
        self.caller.wake_later(self, pause * self._commits.turns)
        return ()

    def attempt(self) -> float | None:
        return self._commits.attempt(self)

    def withdraw(self) -> bool:
        return self._commits.withdraw(self)


_P = TypeVar("_P", bound=Pending)


class GroupCommit(Generic[_P]):
    """A queue of what is to be stored. Whoever holds the lock stores all that has come by then.

    Nothing leaves the queue before it is done. So a leader may be interrupted at any point: the
    next one who gets the lock stores what is left.

    Args:
        turn: The lock.
        store: Stores a batch, and marks each of it as done. It is called with the lock held, and
            raises `Locked`, before it stores anything, if another process holds the store.
    """

    def __init__(self, turn: Turn, store: Callable[[Sequence[_P]], None]) -> None:
        self._turn = turn
        self._store = store
        self.renew()

    def renew(self) -> None:
        """In a forked child: the other threads are gone."""
        self._queue: deque[_P] = deque()

    @property
    def turns(self) -> int:
        """How many attempts there are for each of those that wait, if each makes one."""
        return 1 + len(self._queue) // _AT_ONCE

    def put(self, pending: _P) -> None:
        """Return when it is stored, or could not be."""
        try:
            while (pause := self.attempt(pending)) is not None:
                time.sleep(pause)
        except BaseException:
            self._turn.let_go()
            self._remove(pending)
            raise

    def attempt(self, pending: _P) -> float | None:
        """Store all that is waiting, unless somebody has, or the store is locked.

        Returns:
            None if it is done, or how many seconds to wait before the next attempt.
        """
        pause = None
        try:
            if not pending.is_queued:
                self._queue.append(pending)
                pending.is_queued = True
            self._acquire(pending)
            if not pending.done:
                try:
                    self._lead()
                except Locked as locked:
                    pause = self._pause(pending, locked)
            self._turn.let_go()
        except BaseException:
            self._turn.let_go()
            self._remove(pending)
            raise
        return pause

    def withdraw(self, pending: _P) -> bool:
        """Have it not stored, and return whether that was still possible."""
        try:
            self._turn.acquire(threading.TIMEOUT_MAX)
            self._remove(pending)
        finally:
            self._turn.let_go()
        return not pending.done

    def _acquire(self, pending: _P) -> None:
        """Wait for the lock; what is not in a batch is given up after some time."""
        try:
            self._turn.acquire()
        except StorageBusy as error:
            pending.is_withdrawn = True  # first: who puts it into a batch looks at that afterwards
            if pending.is_taken:  # it is being stored, or was not
                self._turn.acquire(threading.TIMEOUT_MAX)
            if not pending.done:
                self._fail(pending, error)

    def _lead(self) -> None:
        taken = self._queue.copy()
        batch = []
        for pending in taken:
            pending.is_taken = True
            if not pending.is_withdrawn and not pending.done:
                batch.append(pending)
        self._store(batch)
        for pending in taken:
            self._remove(pending)
            if pending.patience is not None and pending.caller is not None:
                pending.caller.wake(pending)  # it might sleep for longer

    def _pause(self, pending: _P, locked: Locked) -> float | None:
        if pending.done:  # it was alone in a batch before
            return None
        if pending.patience is None:
            pending.patience = Patience()
        pause = pending.patience.pause(locked.timeout)
        if pause is None:
            self._fail(pending, locked.error)
        return pause

    def _fail(self, pending: _P, error: Exception) -> None:
        pending.error, pending.done = error, True
        self._remove(pending)

    def _remove(self, pending: _P) -> None:
        try:  # noqa: SIM105 - `contextlib.suppress` takes longer than the rest
            self._queue.remove(pending)
        except ValueError:
            pass  # it is not there any more


_AT_ONCE = 8  # of those that wait for a locked store: more attempts than that help nobody


class Submission(Waiting):
    """Something that waits for a `Relay` to store it.

    Args:
        relay: What stores it.
        is_patient: Whether it had better wait a moment for another one that is not.
        key: What it is about. No two batches with the same key are in flight.
    """

    def __init__(self, relay: Relay[Any], *, is_patient: bool, key: object = None) -> None:
        super().__init__()
        self.is_patient = is_patient
        self.key = self if key is None else key
        self.began = 0.0  # when it began to lead, if it did
        self.batch: Sequence[Any] = ()
        """What it has stored, or is storing, as a leader."""
        self._relay = relay
        self._turn = threading.Lock()
        self._turn.acquire()

    def wait(self) -> None:
        self._relay.put(self)

    def submit(self, caller: Caller) -> Sequence[Waiting]:
        self.caller = caller
        return self._relay.submit(self)

    def resume(self) -> Sequence[Waiting]:
        return [self] if self.done else self._relay.lead(self)

    @property
    def is_settled(self) -> bool:
        """Whether its caller has nothing more to do than to return."""
        return self.error is None

    def sleep(self, seconds: float) -> bool:
        """Return after `wake`, or False after some time."""
        return self._turn.acquire(timeout=seconds)

    def wake(self) -> None:
        if self.caller is not None:
            self.caller.wake(self)
        else:
            with contextlib.suppress(RuntimeError):  # it is awake
                self._turn.release()


_S = TypeVar("_S", bound=Submission)


class Relay(Generic[_S]):
    """A queue of what is to be stored. One of those in it, the leader, stores all that has come.

    While it does so, the next leader may be appointed, up to as many as may be in flight: while
    the store is busy with one batch, the next is prepared. The followers are woken when they are
    stored: they need not wait for the batch after theirs, as they would for a lock.

    Args:
        store: Stores a batch, and marks each of it as done. It is called by several threads.
        in_flight: How many batches are in flight at once, while they are small.
        moment: For how many seconds the patient wait for one that is not.
        patience: After how many seconds nobody waits for the batches before: those may be large,
            or the way to the store long.
    """

    def __init__(
        self,
        store: Callable[[Sequence[_S]], None],
        *,
        in_flight: int,
        moment: float,
        patience: float,
    ) -> None:
        self._store = store
        self._in_flight = in_flight
        self._moment = moment
        self._patience = patience
        self.renew()

    def renew(self) -> None:
        """In a forked child: the other threads are gone."""
        self._lock = threading.RLock()  # it knows its thread, so that no other can release it
        self._queue: deque[_S] = deque()
        self._leader: _S | None = None  # in the queue, about to begin
        self._batches: dict[_S, Sequence[_S]] = {}  # in flight, by who leads them

    # For a caller that waits

    def put(self, submission: _S) -> None:
        """Return when it is stored, or could not be."""
        try:
            self._join(submission)
            while not submission.done:
                has_waited = self._leader is not submission and not submission.sleep(self._patience)
                if self._leader is submission and submission.is_patient:
                    submission.sleep(self._moment)
                if self._begins(submission, has_waited):
                    self._store(submission.batch)
            for stored in self._leave(submission):
                stored.wake()
        except BaseException:
            self._let_go(submission)
            raise

    # For a caller that does something else in the meantime

    def submit(self, submission: _S) -> Sequence[_S]:
        """Have it stored, and return what this thread is to go on with."""
        self._join(submission)
        return self.lead(submission)

    def lead(self, submission: _S) -> Sequence[_S]:
        """Store all that is waiting, if that is for this one to do.

        Returns:
            What this thread is to go on with. The others are woken: threads that wait, and callers
            that may take long.
        """
        if self._leader is submission and submission.is_patient:
            time.sleep(self._moment)
        if not self._begins(submission, has_waited=False):
            return []
        try:
            self._store(submission.batch)
        except BaseException:
            self._let_go(submission)
            raise
        mine = []
        for stored in self._leave(submission):
            if stored.caller is not None and stored.is_settled:
                mine.append(stored)
            else:
                stored.wake()
        return mine

    def _join(self, submission: _S) -> None:
        with self._lock:
            self._queue.append(submission)
            leader = self._leader
            is_next = leader is None or (leader.is_patient and not submission.is_patient)
            if is_next and submission.key not in self._busy():
                self._appoint(submission)

    def _appoint(self, submission: _S) -> None:
        # Only who is in a hurry needs a second batch, and only if the store is not busy with many.
        is_busy = sum(map(len, self._batches.values())) > _MANY
        limit = 1 if submission.is_patient or is_busy else self._in_flight
        long_ago = time.monotonic() - self._patience
        if len(self._batches) < limit or any(one.began < long_ago for one in self._batches):
            self._leader = submission

    def _begins(self, submission: _S, has_waited: bool) -> bool:
        """Return whether it is for this one to store all that are in the queue."""
        with self._lock:
            busy = self._busy()
            is_leader = self._leader is submission
            if not is_leader and not (has_waited and submission in self._queue):
                return False
            if submission.key in busy:
                return False
            self._leader = None
            submission.began = time.monotonic()
            batch = [other for other in self._queue if other.key not in busy]
            submission.batch = self._batches[submission] = batch
            self._queue = deque(other for other in self._queue if other.key in busy)
            return True

    def _busy(self) -> set[object]:
        """Return the keys of those that are in flight."""
        return {one.key for batch in self._batches.values() for one in batch}

    def _let_go(self, submission: _S) -> None:
        """Leave after an exception, which may have come at any point."""
        with contextlib.suppress(RuntimeError):  # this thread does not hold it
            self._lock.release()
        for stored in self._leave(submission, is_interrupted=True):
            stored.wake()

    def _leave(self, submission: _S, *, is_interrupted: bool = False) -> Sequence[_S]:
        """Let another one lead, and return those that were stored."""
        with self._lock:
            if submission in self._batches:
                self._take_back(submission)
            if not submission.done and submission in self._queue:
                self._queue.remove(submission)
            if self._leader is submission:
                self._leader = None
            busy = self._busy()
            ready = [other for other in self._queue if other.key not in busy]
            is_new = self._leader is None and bool(ready)
            if is_new:
                urgent = (other for other in ready if not other.is_patient)
                self._appoint(next(urgent, ready[0]))
            if self._leader is not None and (is_new or is_interrupted):
                self._leader.wake()
            return [other for other in submission.batch if other.done]

    def _take_back(self, submission: _S) -> None:
        """Put what a leader has not stored into the queue again, and end its batch.

        While that is in flight, nobody else takes those of its keys.
        """
        missing = [
            other
            for other in submission.batch
            if not other.done and other is not submission and other not in self._queue
        ]
        self._queue.extendleft(reversed(missing))
        del self._batches[submission]


_MANY = 8  # in flight: a store that is busy with more gains nothing by another batch
