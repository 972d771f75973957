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
        may_wait: Whether it had better wait a moment for another one that may not.
    """

    def __init__(self, relay: Relay[Any], *, may_wait: bool = False) -> None:
        super().__init__()
        self.may_wait = may_wait
        self.batch: Sequence[Any] = ()
        """What it has stored, or is storing, as a leader."""
        self._relay = relay
        self._wake_up = threading.Lock()
        self._wake_up.acquire()

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

    def sleep(self, seconds: float = -1) -> None:
        """Return after `wake`, or after some time if given."""
        self._wake_up.acquire(timeout=seconds)

    def wake(self) -> None:
        """Have its caller look whether it is stored, or leads."""
        if self.caller is not None:
            self.caller.wake(self)
        else:
            with contextlib.suppress(RuntimeError):  # it is awake
                self._wake_up.release()


_S = TypeVar("_S", bound=Submission)


class Relay(Generic[_S]):
    """A queue of what is to be stored. One of those in it, the leader, stores all that has come.

    One batch is in flight at a time. The others, the followers, are woken when they are stored:
    they need not wait for the batch after theirs, as they would for a lock.

    Args:
        store: Stores a batch, and marks each of it as done.
        moment: For how many seconds those that may wait do so for one that may not.
    """

    def __init__(self, store: Callable[[Sequence[_S]], None], *, moment: float = 0) -> None:
        self._store = store
        self._moment = moment
        self.renew()

    def renew(self) -> None:
        """In a forked child: the other threads are gone."""
        self._lock = threading.RLock()  # it knows its thread, so that no other can release it
        self._queue: deque[_S] = deque()
        self._leader: _S | None = None  # in the queue, or storing its batch

    # For a caller that waits

    def put(self, submission: _S) -> None:
        """Return when it is stored, or could not be."""
        try:
            self._join(submission)
            while not submission.done:
                if self._leader is not submission:
                    submission.sleep()
                if self._leader is submission and submission.may_wait:
                    submission.sleep(self._moment)
                if self._begins(submission):
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
        if self._leader is submission and submission.may_wait:
            time.sleep(self._moment)
        if not self._begins(submission):
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
        """Enter the queue, as the leader if there is none, or one that waits for such as this."""
        with self._lock:
            self._queue.append(submission)
            leader = self._leader
            if leader is None or (
                leader.may_wait and not submission.may_wait and leader in self._queue
            ):
                self._leader = submission

    def _begins(self, submission: _S) -> bool:
        """Return whether it is for this one to store all that are in the queue."""
        with self._lock:
            if self._leader is not submission or submission not in self._queue:
                return False
            submission.batch = list(self._queue)
            self._queue.clear()
            return True

    def _let_go(self, submission: _S) -> None:
        """Leave after an exception, which may have come at any point."""
        with contextlib.suppress(RuntimeError):  # this thread does not hold it
            self._lock.release()
        for stored in self._leave(submission):
            stored.wake()
        if (leader := self._leader) is not None:  # it may have been appointed and not woken
            leader.wake()

    def _leave(self, submission: _S) -> Sequence[_S]:
        """Let another one lead, and return those that were stored."""
        with self._lock:
            if self._leader is submission:
                self._queue.extendleft(reversed(self._missing(submission)))
            if not submission.done and submission in self._queue:
                self._queue.remove(submission)
            if self._leader is submission:
                urgent = (other for other in self._queue if not other.may_wait)
                self._leader = next(urgent, self._queue[0] if self._queue else None)
                if self._leader is not None:
                    self._leader.wake()
            return [other for other in submission.batch if other.done]

    def _missing(self, leader: _S) -> Sequence[_S]:
        """Return those of a leader's batch that are not stored, and not in the queue again."""
        others = [other for other in leader.batch if other is not leader and not other.done]
        return [other for other in others if other not in self._queue]
