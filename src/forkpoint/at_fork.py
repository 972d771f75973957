"""Locks and connections when the process is forked.

A child has one thread and a copy of everything else: of locks that other threads held, which nobody
will release, and of connections, which it must not use. So connections are closed before a fork,
once nobody uses them, and both processes open them again when they need them. Locks are made anew
in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import methodcaller
from typing import Any, Generic, Protocol, TypeVar


class Renewed(Protocol):
    """An object with locks, or with work that other threads were about to do."""

    def _become_child(self) -> None:
        """Become usable in a forked child. No other thread runs there."""


class Closed(Protocol):
    """An object that has a connection open."""

    def before_fork(self) -> None:
        """Wait until nobody uses the connection, keep others from it, and close it.

        An interrupt may leave it at any point, and `after_fork` is called all the same.
        """

    def after_fork(self) -> None:
        """Let others use it again, in the parent, on the thread that forks; any number of times."""


_T = TypeVar("_T")


class Living(Generic[_T]):
    """The objects that were added and still exist.

    Unlike a `WeakSet` it may be read while other threads add to it.
    """

    def __init__(self) -> None:
        self._by_id: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def add(self, member: _T) -> None:
        self._by_id[id(member)] = member

    def members(self) -> list[_T]:
        """Return them, in the order in which they were added."""
        members = [reference() for reference in self._by_id.valuerefs()]
        return [member for member in members if member is not None]


_renewed: Living[Renewed] = Living()
_closed: Living[Closed] = Living()


def renew_in_child(member: Renewed) -> None:
    """Have `_become_child` called in every forked child, while the object exists."""
    _renewed.add(member)


def close_at_fork(member: Closed) -> None:
    """Have `before_fork` and `after_fork` called around every fork, while the object exists."""
    _closed.add(member)


class _Forking:
    """The hooks. Of two threads that fork at once, one waits for the other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        """As long as a thread holds it, no other forks."""
        self._waiting: list[Closed] = []

    @contextmanager
    def kept_out(self) -> Iterator[None]:
        with self._lock:
            yield

    def before(self) -> None:
        self._lock.acquire()
        self._waiting = _closed.members()
        _call_all(self._waiting, methodcaller("before_fork"), until_done=False)

    def after_in_parent(self) -> None:
        try:
            _call_all(self._waiting, methodcaller("after_fork"))
        finally:
            self._waiting = []
            self._lock.release()

    def after_in_child(self) -> None:
        self._lock = threading.RLock()
        self._waiting = []
        _call_all(_renewed.members(), methodcaller("_become_child"))


def _call_all(
    members: Iterable[_T], method: Callable[[_T], object], *, until_done: bool = True
) -> None:
    """Call a method of each object, whatever that of another raises.

    Python reports what is raised at the end, and forks all the same.

    Args:
        members: The objects.
        method: Calls the method.
        until_done: Whether to call it again if it is interrupted.
    """
    errors: list[BaseException] = []
    for member in members:
        is_over = False
        while not is_over:
            try:
                method(member)
                is_over = True
            except BaseException as error:  # noqa: BLE001 - the first one is raised at the end
                errors.append(error)
                is_over = not (until_done and isinstance(error, KeyboardInterrupt))
    if errors:
        raise errors[0]


_forking = _Forking()


def no_fork() -> AbstractContextManager[None]:
    """Return a context during which no other thread forks the process."""
    return _forking.kept_out()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forking.before,
        after_in_parent=_forking.after_in_parent,
        after_in_child=_forking.after_in_child,
    )
