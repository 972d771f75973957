"""Operations as generators: they yield what they wait for, and block no thread meanwhile."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar, cast

_T = TypeVar("_T")


class Caller(Protocol):
    """A suspended operation that blocks no thread."""

    def step(self) -> Sequence[Waiting]:
        """Resume the operation until it waits again. Return what this thread is to resume next."""
        ...

    def wake(self, waiting: Waiting) -> None:
        """Have a worker thread call `waiting.resume`."""
        ...

    def wake_later(self, waiting: Waiting, seconds: float) -> None:
        """Have a worker thread call `waiting.resume` after some seconds."""
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


class Waiting(ABC):
    """Something that an operation waits for, such as a put that is to be stored."""

    done = False
    error: Exception | None = None
    caller: Caller | None = None
    """The suspended operation that waits for it; None if a thread does."""

    def __init__(self) -> None:
        self.claim = Claim()
        """Taken by the thread that resumes the caller."""

    def check(self) -> None:
        """Raise the error, if it has failed."""
        if self.error is not None:
            raise self.error

    @abstractmethod
    def wait(self) -> None:
        """Block until it is done, or has failed."""

    @abstractmethod
    def submit(self, caller: Caller) -> Sequence[Waiting]:
        """Begin it for a suspended operation, and return what this thread is to resume next."""

    @abstractmethod
    def resume(self) -> Sequence[Waiting]:
        """Go on with it after `Caller.wake`, and return what this thread is to resume next."""

    def attempt(self) -> float | None:
        """Try to do it. Return None, or how many seconds to wait before the next attempt."""
        self.wait()
        return None

    def withdraw(self) -> bool:
        """Cancel it, and return whether it was not done yet."""
        return False


Steps = Generator[Waiting, None, _T]
"""An operation that yields whatever it waits for, and is resumed when that is done."""


def finish(steps: Steps[_T]) -> _T:
    """Run an operation to its end in this thread, which blocks wherever it waits."""
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
        error: What to raise when the call has waited too long.
        timeout: After how many seconds that is.
    """

    def __init__(self, error: Exception, timeout: float) -> None:
        super().__init__()
        self.error = error
        self.timeout = timeout


class Retry(BaseException):
    """Ends an operation that met a locked store and has written nothing: it runs again later.

    Meanwhile its thread can run others. It is no `Exception`, so that no handler of errors on the
    way catches it.
    """

    def __init__(self, locked: Locked) -> None:
        super().__init__()
        self.locked = locked


class Again(Exception):
    """Ends an operation whose store was replaced meanwhile: it runs again from its start."""


class _Running(threading.local):
    may_leave = False


running = _Running()
"""Whether `Retry` may end the operation that this thread runs."""


def begin(operation: Callable[..., _T], args: tuple[Any, ...]) -> _T:
    """Call an operation, for a caller that can call it again later.

    Returns:
        What the operation returns: for a generator, its steps.

    Raises:
        Retry: The store is locked, and nothing was written.
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
