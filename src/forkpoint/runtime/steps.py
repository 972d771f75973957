"""Operations that stop wherever they have to wait, and what they wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar, cast

_T = TypeVar("_T")


class Caller(Protocol):
    """A suspended operation that blocks no thread."""

    def step(self) -> Sequence[Waiting]:
        """Run up to where it waits again, and return what this thread is to go on with."""
        ...

    def wake(self, waiting: Waiting) -> None:
        """Have some thread resume what it waits for, soon."""
        ...

    def wake_later(self, waiting: Waiting, seconds: float) -> None:
        """Have some thread resume what it waits for, after some time."""
        ...


class Claim:
    """One-shot flag: `take` returns True once."""

    def __init__(self) -> None:
        self._unclaimed = [True]

    def take(self) -> bool:
        """Return True for the first thread that asks."""
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False


class Waiting:
    """Something on its way into the store, and whether it arrived."""

    done = False
    error: Exception | None = None
    caller: Caller | None = None
    """The operation that waits for it, if no thread does."""

    def __init__(self) -> None:
        self.claim = Claim()
        """Of the thread that goes on with the caller."""

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        """Return when it is stored, or could not be."""
        raise NotImplementedError

    def submit(self, caller: Caller) -> Sequence[Waiting]:
        """Have it stored, and return what this thread is to go on with."""
        raise NotImplementedError

    def resume(self) -> Sequence[Waiting]:
        """Go on storing it, after `Caller.wake`, and return what this thread is to go on with."""
        raise NotImplementedError

    def attempt(self) -> float | None:
        """Try to store it, and return for how long to wait before the next attempt, if not done."""
        self.wait()
        return None

    def withdraw(self) -> bool:
        """Have it not stored, and return whether that was still possible."""
        return False


Steps = Generator[Waiting, None, _T]
"""An operation that stops wherever something is to be stored, and goes on when that is done."""


def finish(steps: Steps[_T]) -> _T:
    """Return what an operation returns, and wait wherever it does."""
    while True:
        try:
            waiting = next(steps)
        except StopIteration as end:
            return cast("_T", end.value)
        waiting.wait()


# A store that is locked


class Locked(Exception):
    """Another process, or another connection, has the store's write lock.

    Attributes:
        error: What to raise when the call has waited for long enough.
        timeout: How many seconds that is.
    """

    def __init__(self, error: Exception, timeout: float) -> None:
        super().__init__()
        self.error = error
        self.timeout = timeout


class Retry(BaseException):
    """Leaves an operation that needs a locked store and has written nothing: it runs again later.

    So the thread that ran it can serve others meanwhile. No `Exception`: nothing on the way takes
    it for a failure.
    """

    def __init__(self, locked: Locked) -> None:
        super().__init__()
        self.locked = locked


class Again(Exception):
    """Leaves an operation that looked at a store which is another one by now: it runs again."""


class _Running(threading.local):
    may_leave = False


running = _Running()
"""Of the operation that this thread runs: whether `Retry` may leave it."""


def begin(operation: Callable[..., _T], args: tuple[Any, ...]) -> _T:
    """Return what an operation returns, or begins with, for a caller that can run it again.

    Raises:
        Retry: It needs a locked store, and has written nothing.
    """
    running.may_leave = True
    try:
        return operation(*args)
    finally:
        running.may_leave = False


class Patience:
    """How long a call waits for a locked store, in pauses that become longer."""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self._pause = _SHORTEST_SECONDS

    def pause(self, timeout: float) -> float | None:
        """Return how long to wait before the next attempt, or None if the time is over.

        Args:
            timeout: For how many seconds to wait in all, counted from the first pause.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + timeout
        left = self._deadline - now
        if left <= 0:
            return None
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_SECONDS)
        return min(pause, left)


_SHORTEST_SECONDS = 0.001
_LONGEST_SECONDS = 0.05
