"""Threads on which async operations run: started as they are needed, shared by savers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from forkpoint.at_fork import renew_in_child
from forkpoint.errors import NoWorkerThread

Job = Callable[[], None]


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        NoWorkerThread: The system or the interpreter lets none be started.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise not_started(error) from error


def not_started(error: RuntimeError) -> NoWorkerThread:
    """Return the typed error for a thread that cannot be started, or raise what else it is."""
    if "new thread" not in str(error):
        raise error
    return NoWorkerThread(
        f"no thread can be started ({error}): the process, its user or its container has as many "
        "as it may, or lacks memory for another; close what is not used, or allow more"
    )


class Workers:
    """Threads that take jobs from one queue. Each is started when no other is free.

    They take their work from a `SimpleQueue`: a hop costs a third of what it costs through a
    `concurrent.futures` executor. They do not keep the process from ending. They have no lock,
    which an interrupt might leave locked, or a fork take along. What is counted is what is there.

    Args:
        limit: How many there are at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._members: list[None] = []
        self._become_child()
        renew_in_child(self)

    def _become_child(self) -> None:
        """In a forked child: threads end where forks begin."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: dict[threading.Thread, None] = {}
        self._free: dict[threading.Thread, None] = {}
        """Those that wait for a job, or are about to."""

    def join(self) -> None:
        """Let the threads stay for one more that uses them."""
        self._members.append(None)

    def leave(self) -> None:
        """Let the threads end when they have nothing to do, once all that joined have left."""
        with suppress(IndexError):  # interrupted before it joined
            self._members.pop()
        if not self._members and self._threads:
            self._jobs.put(None)  # one ends, and tells the next

    def submit(self, job: Job) -> None:
        """Have a thread do something. Also when all have left: a call may be on its way then.

        Raises:
            NoWorkerThread: There is no thread, and none can be started.
        """
        if not self._threads:
            self._start()
        self._jobs.put(job)
        self._grow()

    def _grow(self) -> None:
        """Start a thread, if there are more jobs than threads to take them."""
        if self._jobs.qsize() > len(self._free) and len(self._threads) < self._limit:
            with suppress(NoWorkerThread):  # then those that are there do more
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="forkpoint", daemon=True)
        try:
            self._threads[thread] = self._free[thread] = None
            # Of those that start one at once, the last ones may be too many.
            if list(self._threads).index(thread) < self._limit:
                start_thread(thread)
                return
        except BaseException:
            self._forget(thread)
            raise
        self._forget(thread)

    def _forget(self, thread: threading.Thread) -> None:
        self._threads.pop(thread, None)
        self._free.pop(thread, None)

    def _work(self) -> None:
        thread = threading.current_thread()
        try:
            is_over = False
            while not is_over:
                self._free[thread] = None
                job = self._jobs.get()
                del self._free[thread]
                if job is not None:
                    self._grow()  # who put another job may have taken this thread for a free one
                    job()
                del job  # it has what was read, and maybe an error, which has its caller
                is_over = self._is_over(thread)
        finally:
            self._forget(thread)

    def _is_over(self, thread: threading.Thread) -> bool:
        if self._members or not self._jobs.empty():
            return False
        self._threads.pop(thread, None)
        if self._jobs.empty():
            if self._threads:
                self._jobs.put(None)
            return True
        self._threads[thread] = None  # for a job of one who counted on this thread
        return False


_shared: dict[int, tuple[weakref.ref[Any], Workers]] = {}


def workers_of(client: object, limit: int) -> Workers:
    """Return the threads that all who use the same client share, whatever it is equal to."""
    number = id(client)
    reference = weakref.ref(client, lambda _: _shared.pop(number, None))
    return _shared.setdefault(number, (reference, Workers(limit)))[1]
