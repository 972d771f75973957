"""Long work in turns: several transactions, between which others read and write.

Such work is a generator, which yields wherever it may be stopped: every invariant holds there, and
the store shows what is left to do. Where it yields and its transaction has done enough, this is
committed, and the next turn begins with a new one. Short work is one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from forkpoint.runtime.steps import Caller, Patience, Retry, Steps, Waiting, running
from forkpoint.storage.interface import Session, Storage

_T = TypeVar("_T")
# Shares of the time that a transaction took. A process that waits to write tries now and then;
# reading keeps only the other threads of this process waiting.
_REST, _REST_AFTER_READING = 0.5, 0.1
_LONGEST_REST_SECONDS = 0.05

Work = Generator[None, None, _T]
"""Work that is done in turns, and what it returns at its end."""


class Rest(Waiting):
    """A pause between two turns, in which others may use the store and the worker thread.

    Args:
        seconds: How long it is.
        has_begun: Whether a turn was committed: then the work has to be finished.
    """

    def __init__(self, seconds: float, *, has_begun: bool = True) -> None:
        super().__init__()
        self._seconds = seconds
        self._has_begun = has_begun

    def wait(self) -> None:
        rest(self._seconds)
        self.done = True

    def submit(self, caller: Caller) -> Sequence[Waiting]:
        self.caller = caller
        caller.wake_later(self, self._seconds)
        return ()

    def resume(self) -> Sequence[Waiting]:
        self.done = True
        return [self]

    def attempt(self) -> float | None:
        if self.done:
            return None
        self.done = True
        return self._seconds

    def withdraw(self) -> bool:
        return not self._has_begun


class Turns:
    """The turn that some work is in.

    Attributes:
        session: The session of the turn. After each yield it may be another one.
        only_reads: Whether the next turns only read. Then writers of other processes need not wait.
        is_over: Set it to end the turn at the next yield.
    """

    session: Session

    def __init__(self, *, only_reads: bool = False) -> None:
        self.only_reads = only_reads
        self.is_over = False
        self._has_rested = False
        self._apart: Callable[[], Any] | None = None
        self._outcome: Any = None

    def apart(self, compute: Callable[[], _T]) -> Work[_T]:
        """Call a function that may take long between two turns, and return what it returns."""
        if not self._has_rested:
            return compute()  # there is little, so far
        self._apart = compute
        self.is_over = True
        yield
        return cast("_T", self._outcome)

    def rest(self) -> None:
        """Do what `apart` was given, after the end of a turn."""
        self._has_rested = True
        if self._apart is not None:
            compute, self._apart = self._apart, None
            self._outcome = compute()


def in_turns(
    storage: Storage, work: Callable[[Turns], Work[_T]], *, only_reads: bool = False
) -> Steps[_T]:
    """Do work in turns, and return what it returns.

    Args:
        storage: The store.
        work: Makes the generator.
        only_reads: Whether it only reads.
    """
    storage.save_room()
    turns = Turns(only_reads=only_reads)
    steps = work(turns)
    patience = Patience()
    has_begun = False
    while True:
        began = time.monotonic()
        share = _REST_AFTER_READING if turns.only_reads else _REST
        try:
            outcome = _turn(storage, turns, steps)
        except Retry as retry:  # somebody else has the store, and nothing was done
            pause = patience.pause(retry.locked.timeout)
            if pause is None:
                raise retry.locked.error from None
        else:
            if outcome is not None:
                return outcome.value
            if not turns.only_reads:
                storage.tidy()  # SQLite looks for each page among all that are free
            patience = Patience()
            has_begun = True
            pause = min(share * (time.monotonic() - began), _LONGEST_REST_SECONDS)
            turns.rest()
        yield Rest(pause, has_begun=has_begun)


def _turn(storage: Storage, turns: Turns, steps: Work[_T]) -> _Outcome[_T] | None:
    """Do one turn. Return what the work returns, or None if it has not ended."""
    is_reading = turns.only_reads
    running.may_leave = True
    try:
        with storage.reading() if is_reading else storage.writing() as turns.session:
            running.may_leave = False
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    return _Outcome(cast("_T", end.value))
                is_over, turns.is_over = turns.is_over, False
                if is_over or turns.session.is_spent() or is_reading > turns.only_reads:
                    return None
    finally:
        running.may_leave = False


@dataclass(frozen=True)
class _Outcome(Generic[_T]):
    value: _T


def rest(seconds: float) -> None:
    """Leave the store to others for a while."""
    time.sleep(seconds)
