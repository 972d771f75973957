"""The worker threads that run async operations: started when needed, shared by savers."""

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
    """Return the typed error of a thread that cannot be started; raise any other error again."""
    reason: BaseException | None = error
    while reason is not None and "new thread" not in str(reason):
        reason = reason.__context__  # a driver may have tried to start it once more
    if reason is None:
        raise error
    return NoWorkerThread(
        f"no thread can be started ({reason}): the process, its user or its container has as many "
        "as it may, or lacks memory for another; close what is not used, or allow more"
    )


class Workers:
    """Threads that take jobs from one queue. One is started when none is free.

    The queue is a `SimpleQueue`: a job costs a third of what it costs with an executor of
    `concurrent.futures`. The threads are daemons: they do not keep the process from ending. There
    is no lock, which an interrupt or a process fork might leave locked.

    Args:
        limit: How many there are at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._members: list[None] = []
        self._become_child()
        renew_in_child(self)

    def _become_child(self) -> None:
        """Forget the threads, in a forked child: they do not run there."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: dict[threading.Thread, None] = {}
        self._free: dict[threading.Thread, None] = {}
        """The threads that wait for a job, or are about to."""

    def join(self) -> None:
        """Count one more user of the threads."""
        self._members.append(None)

    def leave(self) -> None:
        """Count one user less. After the last, each thread ends when there are no more jobs."""
        with suppress(IndexError):  # interrupted before it joined
            self._members.pop()
        if not self._members and self._threads:
            self._jobs.put(None)  # one ends, and tells the next

    def submit(self, job: Job) -> None:
        """Have a thread do a job, even after all users have left: a call may be going on.

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
    """Return the threads that all users of the same client object share.

    Args:
        client: The client. It is compared by identity.
        limit: How many threads there are at most.
    """
    number = id(client)
    reference = weakref.ref(client, lambda _: _shared.pop(number, None))
    return _shared.setdefault(number, (reference, Workers(limit)))[1]
