"""Group commits: what several threads put at the same time is stored with one commit.

The thread that stores a batch is its leader; the threads whose puts are in the batch follow it.
In a `GroupCommit`, which SQLite uses, the leader holds a lock of the store, and other threads wait
for that lock. In a `Relay`, which MongoDB uses, it wakes the others.

An interrupt of a leader loses no put: what is not stored stays in the queue, or is returned to it.
An exception may leave each method at any point; `let_go` and `_leave` clean up afterwards, and may
be called any number of times.
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
    """The lock of a store. An exception at any point leaves it usable."""

    def acquire(self, timeout: float | None = None, *, since: float | None = None) -> None:
        """Wait for the lock.

        Args:
            timeout: For how many seconds; None for as long as calls wait for each other.
            since: When that time began, by `time.monotonic`; now by default.

        Raises:
            StorageBusy: The time is over.
        """
        ...

    def let_go(self) -> None:
        """Release the lock, if this thread holds it, and roll back what was begun under it."""
        ...


class Pending(Waiting):
    """A put that waits for a `GroupCommit` to store it.

    Args:
        commits: The group commit.
    """

    is_queued = False
    is_taken = False
    """Whether it is, or was, in a batch: it may be stored at any moment."""
    is_withdrawn = False
    is_paused = False
    """Whether its suspended operation attempts to store it after a pause."""
    patience: Patience | None = None
    """How long it still waits for a locked store; None before it has met one."""

    def __init__(self, commits: GroupCommit[Any]) -> None:
        super().__init__()
        self.since = time.monotonic()
        self._commits = commits

    def wait(self) -> None:
        self._commits.put(self)

    def submit(self, caller: Caller) -> Sequence[Waiting]:
        self.caller = caller
        return self.resume()

    def resume(self) -> Sequence[Waiting]:
        self.is_paused = False
        return self._commits.resume(self)

    def attempt(self) -> float | None:
        return self._commits.attempt(self)

    def withdraw(self) -> bool:
        return self._commits.withdraw(self)


_P = TypeVar("_P", bound=Pending)


class GroupCommit(Generic[_P]):
    """A queue of puts. The thread that gets the lock leads: it stores all that are in the queue.

    Threads that wait for their own puts each wait for the lock. Of the worker threads, which put
    for suspended operations, one does, for all of these.

    A put leaves the queue when it is stored, and the operation that waits for it is resumed or
    woken, and not before. So a leader may be interrupted at any point: the next one stores what is
    left.

    Args:
        turn: The lock.
        store: Stores a batch, and marks each put of it as done. It is called with the lock held. If
            another process has locked the store, it raises `Locked` and has stored nothing.
    """

    def __init__(self, turn: Turn, store: Callable[[Sequence[_P]], None]) -> None:
        self._turn = turn
        self._store = store
        self.renew()

    def renew(self) -> None:
        """Empty the queue, in a forked child: the threads that waited are not in it."""
        self._queue: deque[_P] = deque()
        self._worker = threading.Lock()
        """Held by the worker thread that waits for the lock of the store."""

    # For a thread that waits

    def put(self, pending: _P) -> None:
        """Return when a put is stored, or has failed."""
        try:
            while (pause := self.attempt(pending)) is not None:
                time.sleep(pause)
            self.wake_stored()
        except BaseException:
            self._turn.let_go()
            self._remove(pending)
            self.wake_stored()
            raise

    def attempt(self, pending: _P) -> float | None:
        """Store all puts of the queue, unless another leader has, or the store is locked.

        Returns:
            None if the put is done, or how many seconds to wait before the next attempt.
        """
        pause = None
        try:
            self._join(pending)
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

    def wake_stored(self) -> None:
        """Wake the suspended operations whose puts are done. It may be called at any time."""
        for pending in self._queue.copy():
            if pending.done and pending.caller is not None:
                pending.caller.wake(pending)
                self._remove(pending)

    # For an operation that is suspended meanwhile

    def resume(self, pending: _P) -> Sequence[_P]:
        """Attempt to store a put, unless another worker thread is about to.

        Returns:
            The puts whose operations this thread is to resume.
        """
        if pending.done:
            self._remove(pending)
            return [pending]
        self._join(pending)
        if not self._worker.acquire(blocking=False):
            return ()  # who holds it stores this one, or wakes it
        pause = None
        try:
            pause = self.attempt(pending)
            pending.is_paused = pause is not None
        except BaseException:
            self.wake_stored()
            raise
        finally:
            self._worker.release()
            self._wake_next()
        if pause is not None and pending.caller is not None:
            # Many wait, and each attempt stores all of them: each makes fewer.
            pending.caller.wake_later(pending, pause * self._groups)
        return self._take_stored()

    def withdraw(self, pending: _P) -> bool:
        """Take a put out of the queue, and return whether it was not stored yet."""
        try:
            self._turn.acquire(threading.TIMEOUT_MAX)
            self._remove(pending)
        finally:
            self._turn.let_go()
        self._wake_next()
        return not pending.done

    @property
    def _groups(self) -> int:
        """How many groups the waiting puts make, one of which attempts to store at a time."""
        return 1 + len(self._queue) // _AT_ONCE

    def _wake_next(self) -> None:
        """Wake a suspended operation whose put came while a worker was storing others."""
        for pending in self._queue.copy():
            if pending.caller is not None and not (pending.done or pending.is_paused):
                pending.caller.wake(pending)
                return

    def _take_stored(self) -> Sequence[_P]:
        stored = [one for one in self._queue.copy() if one.done and one.caller is not None]
        for pending in stored:
            self._remove(pending)
        return stored

    # For both

    def _join(self, pending: _P) -> None:
        if not pending.is_queued:
            self._queue.append(pending)
            pending.is_queued = True

    def _acquire(self, pending: _P) -> None:
        """Wait for the lock; when the time is over, fail a put that is in no batch."""
        try:
            self._turn.acquire(since=pending.since)
        except StorageBusy as error:
            pending.is_withdrawn = (
                True  # first: a leader sets `is_taken`, and looks at this afterwards
            )
            if pending.is_taken:  # a leader may be storing it
                self._turn.acquire(threading.TIMEOUT_MAX)
            if not pending.done:
                self._fail(pending, error)

    def _lead(self) -> None:
        queue = self._queue.copy()
        batch = []
        for pending in queue:
            pending.is_taken = True
            if not pending.is_withdrawn and not pending.done:
                batch.append(pending)
        self._store(batch)
        for pending in batch:
            if pending.caller is None:
                self._remove(pending)

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
        if pending.caller is None:
            self._remove(pending)

    def _remove(self, pending: _P) -> None:
        try:  # noqa: SIM105 - `contextlib.suppress` takes longer than the rest
            self._queue.remove(pending)
        except ValueError:
            pass  # it is not there any more


_AT_ONCE = 8  # puts that wait for a locked store with attempts of their own


class Submission(Waiting):
    """A put that waits for a `Relay` to store it.

    Args:
        relay: The relay.
        may_wait: Whether, as the leader, it waits a moment for a put that does not.
    """

    def __init__(self, relay: Relay[Any], *, may_wait: bool = False) -> None:
        super().__init__()
        self.may_wait = may_wait
        self.batch: Sequence[Any] = ()
        """The puts that it leads, and none in the end: it is one of them itself, and what refers to
        itself stays, with all that it stored, until the collector of cycles finds it."""
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
        """Whether its operation goes on without waiting again."""
        return self.error is None

    def sleep(self, seconds: float = -1) -> None:
        """Wait for `wake`, but not longer than this; by default for as long as it takes."""
        self._wake_up.acquire(timeout=seconds)

    def wake(self) -> None:
        """Let the thread, or the suspended operation, that waits for it go on."""
        if self.caller is not None:
            self.caller.wake(self)
        else:
            with contextlib.suppress(RuntimeError):  # it is awake
                self._wake_up.release()


_S = TypeVar("_S", bound=Submission)


class Relay(Generic[_S]):
    """A queue of puts. One put of it, the leader, stores all that are in the queue.

    One batch is in flight at a time. Its followers are woken as soon as they are stored. If they
    waited for a lock instead, they would get it only after leaders of later batches.

    Args:
        store: Stores a batch, and marks each put of it as done.
        moment: For how many seconds a leader that may wait does so.
    """

    def __init__(self, store: Callable[[Sequence[_S]], None], *, moment: float = 0) -> None:
        self._store = store
        self._moment = moment
        self.renew()

    def renew(self) -> None:
        """Empty the queue, in a forked child: the threads that waited are not in it."""
        self._lock = threading.RLock()  # it knows its thread, so that no other can release it
        self._queue: deque[_S] = deque()
        self._leader: _S | None = None  # in the queue, or storing its batch

    # For a thread that waits

    def put(self, submission: _S) -> None:
        """Return when a put is stored, or has failed."""
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
            submission.batch = ()
        except BaseException:
            self._let_go(submission)
            raise

    # For an operation that is suspended meanwhile

    def submit(self, submission: _S) -> Sequence[_S]:
        """Add a put to the queue, and return which puts' operations this thread is to resume."""
        self._join(submission)
        return self.lead(submission)

    def lead(self, submission: _S) -> Sequence[_S]:
        """Store all puts of the queue, if this one is their leader.

        Returns:
            The puts whose operations this thread is to resume. All other threads and operations are
            woken.
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
        resumable = []
        for stored in self._leave(submission):
            if stored.caller is not None and stored.is_settled:
                resumable.append(stored)
            else:
                stored.wake()
        submission.batch = ()
        return resumable

    def _join(self, submission: _S) -> None:
        """Add a put to the queue. It leads if there is no leader, or one that waits for it."""
        with self._lock:
            self._queue.append(submission)
            leader = self._leader
            if leader is None or (
                leader.may_wait and not submission.may_wait and leader in self._queue
            ):
                self._leader = submission

    def _begins(self, submission: _S) -> bool:
        """Make a batch of the queue, and return True, if this put is its leader."""
        with self._lock:
            if self._leader is not submission or submission not in self._queue:
                return False
            submission.batch = list(self._queue)
            self._queue.clear()
            return True

    def _let_go(self, submission: _S) -> None:
        """Leave the relay after an exception, which may have come at any point."""
        with contextlib.suppress(RuntimeError):  # this thread does not hold it
            self._lock.release()
        for stored in self._leave(submission):
            stored.wake()
        if (leader := self._leader) is not None:  # it may have been appointed and not woken
            leader.wake()

    def _leave(self, submission: _S) -> Sequence[_S]:
        """Appoint the next leader, and return the puts of this one's batch that are done."""
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
        """Return the followers of a leader that are neither stored nor in the queue again."""
        others = [other for other in leader.batch if other is not leader and not other.done]
        return [other for other in others if other not in self._queue]
