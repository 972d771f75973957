"""Confining a saver to the threads of one owner.

Everything that is done to a thread begins with finding it, by its id or by what it contains. Here
that finds the owner's threads only, so those of others cannot be reached. What is made is the
owner's. Forks and clones belong to the owner of their source, and a thread that is given to another
owner is known no longer as made of others, or they of it. So those that know each other have one
owner; a family, which shares chunks, may have several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, cast

from forkpoint.encoding.hashing import Hashing
from forkpoint.errors import ThreadExists
from forkpoint.filters import wanted_terms
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import (
    Description,
    Found,
    Put,
    Query,
    Selected,
    Selection,
    Session,
    Stale,
    Storage,
    ThreadRef,
    ThreadRow,
)


class ConfinedStorage:
    """A store in which there are an owner's threads only."""

    def __init__(self, storage: Storage, owner: str) -> None:
        self._storage = storage
        self._owner = owner

    @property
    def history(self) -> int:
        return self._storage.history

    def setup(self) -> None:
        self._storage.setup()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._storage.reading() as session:
            yield self._confined(session)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self._storage.writing() as session:
            yield self._confined(session)

    @contextmanager
    def unstored(self) -> Iterator[Session]:
        with self._storage.unstored() as session:
            yield self._confined(session)

    def save_room(self) -> None:
        self._storage.save_room()

    def _confined(self, session: Session) -> Session:
        return cast(Session, _ConfinedSession(session, self._owner))

    def put(self, put: Put) -> Steps[ThreadRef | None]:
        try:
            return (yield from self._storage.put(put._replace(owner=self._owner)))
        except Stale:
            with self._storage.reading() as session:
                thread = session.thread(put.thread_id)
            is_known = put.expected is not None  # then it was given to somebody else
            if thread is not None and thread.owner != self._owner and not is_known:
                raise taken(put.thread_id) from None
            raise

    def tidy(self) -> bool:
        return self._storage.tidy()

    def close(self) -> None:
        self._storage.close()


class _ConfinedSession:
    """The primitives, but that those that find a thread find an owner's only.

    The others are given what these found.
    """

    def __init__(self, session: Session, owner: str) -> None:
        self._session = session
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def _is_ours(self, thread: ThreadRef) -> bool:
        return thread.owner == self._owner

    def thread(self, thread_id: str) -> ThreadRef | None:
        thread = self._session.thread(thread_id)
        return thread if thread is not None and self._is_ours(thread) else None

    def last_deletion(self, thread_id: str) -> Set[Any]:
        return self._session.last_deletion(thread_id, self._owner)

    def note_deletion(self, thread_id: str) -> None:
        self._session.note_deletion(thread_id, self._owner)

    def buried(self, thread_id: str) -> ThreadRef | None:
        return self._session.buried(thread_id, self._owner)

    def checkpoint(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None
    ) -> Found | None:
        return self._session.checkpoint(thread_id, checkpoint_ns, checkpoint_id, self._owner)

    def page(self, query: Query) -> list[Found]:
        if query.thread_id is not None and self.thread(query.thread_id) is None:
            return []
        page = self._session.page(query._replace(owner=self._owner))
        return [found for found in page if self._is_ours(found.thread)]

    def threads_of_runs(self, run_ids: Sequence[str]) -> list[ThreadRef]:
        return [one for one in self._session.threads_of_runs(run_ids) if self._is_ours(one)]

    def record(self, thread_id: str) -> ThreadRow | None:
        row = self._session.record(thread_id)
        return row if row is not None and self._is_ours(row.thread) else None

    def select(self, selection: Selection) -> Selected:
        selected = self._session.select(self._ours(selection))
        rows = [row if row and self._is_ours(row.thread) else None for row in selected.rows]
        return selected._replace(rows=rows)

    def count(self, selection: Selection) -> int:
        return self._session.count(self._ours(selection))

    def _ours(self, selection: Selection) -> Selection:
        if selection.owner == self._owner:
            return selection  # all terms are of the owner's threads
        return selection._replace(terms=[*selection.terms, *wanted_terms(self._owner)])

    def expired(self, after: tuple[int, Any] | None, limit: int) -> list[ThreadRow]:
        return self._session.expired(after, limit, self._owner)

    def grown(self, more_than: int, after: Any, limit: int) -> list[ThreadRow]:
        return self._session.grown(more_than, after, limit, self._owner)

    def add(
        self, thread_id: str, owner: str | None, described: Description, hashing: Hashing
    ) -> bool:
        if self._session.add(thread_id, self._owner, described, hashing):
            return True
        thread = self._session.thread(thread_id)
        if thread is not None and not self._is_ours(thread):
            raise taken(thread_id)
        return False


def taken(thread_id: str) -> ThreadExists:
    """Return the error that says that an id cannot be used, whoever uses it."""
    return ThreadExists(f"there is a thread {thread_id!r} already")
