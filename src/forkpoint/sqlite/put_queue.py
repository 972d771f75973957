"""SQLite: puts that wait at the same time share one transaction, and so the cost of one commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forkpoint.errors import ForkpointError, StaleLease
from forkpoint.runtime.group_commit import GroupCommit, Pending
from forkpoint.runtime.steps import Steps
from forkpoint.sqlite.connections import Connector
from forkpoint.sqlite.errors import typed_errors
from forkpoint.sqlite.full_disk import Reserve
from forkpoint.sqlite.session import SqliteSession
from forkpoint.sqlite.transactions import Transactions
from forkpoint.storage.interface import HistoryChanged, Stale
from forkpoint.storage.rows import PutRequest, ThreadRef


class PutQueue:
    """The puts of a storage that are to be stored.

    Args:
        transactions: The transactions of the connection.
        connector: Where the connection comes from.
        history: Returns the history of the store; see `Storage.history`.
    """

    def __init__(
        self, transactions: Transactions, connector: Connector, history: Callable[[], int]
    ) -> None:
        self._transactions = transactions
        self._connector = connector
        self._history = history
        self._reserve = Reserve()
        self._commits = GroupCommit(transactions, self._store)

    def renew(self) -> None:
        """In a forked child: the other threads are gone."""
        self._commits.renew()

    def let_go(self) -> None:
        """Wake who waits for what this thread has stored before it was interrupted."""
        self._commits.wake_stored()

    def put(self, request: PutRequest) -> Steps[ThreadRef | None]:
        """Store a put; see `Storage.put`."""
        pending = _PendingPut(request, self._commits)
        yield pending
        pending.check()
        return pending.thread

    def _store(self, batch: Sequence[_PendingPut]) -> None:
        transactions = self._transactions
        session = transactions.begin(is_write=True)
        try:
            with typed_errors():
                self._reserve.check(self._connector.path)
                for pending in batch:
                    self._store_put(session, pending)
                transactions.commit()
                if not self._connector.is_current():  # it was written to a file that is gone
                    for pending in batch:
                        pending.error = HistoryChanged()
        except ForkpointError as error:
            transactions.roll_back()
            if len(batch) > 1:  # one of them may be what failed
                for pending in batch:
                    self._store([pending])
                return
            batch[0].error = error
        for pending in batch:
            pending.done = True

    def _store_put(self, session: SqliteSession, pending: _PendingPut) -> None:
        try:
            if pending.request.history != self._history():
                raise HistoryChanged
            pending.thread, pending.error = session.puts.store(pending.request), None
        except (Stale, StaleLease) as error:  # raised before anything is written
            pending.error = error


class _PendingPut(Pending):
    """A put that waits to be stored.

    Attributes:
        request: What is to be stored.
        thread: The thread that it was stored in, once it is.
    """

    def __init__(self, request: PutRequest, commits: GroupCommit[_PendingPut]) -> None:
        super().__init__(commits)
        self.request = request
        self.thread: ThreadRef | None = None
