"""Roles over a session that has all primitives itself."""

from __future__ import annotations

from typing import Any

from forkpoint.storage import interface


class _Threads(interface.Threads):
    def __init__(self, session: Any) -> None:
        self._session = session

    def find(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.thread(*args, **kwargs)

    def deletions(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.last_deletion(*args, **kwargs)

    def note_deletion(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.note_deletion(*args, **kwargs)

    def forget_deletions(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.forget_deletions(*args, **kwargs)

    def find_deleted(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.buried(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.bury(*args, **kwargs)

    def lineage(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.lineage(*args, **kwargs)

    def family(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.family(*args, **kwargs)

    def of_runs(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.threads_of_runs(*args, **kwargs)


class _Checkpoints(interface.Checkpoints):
    def __init__(self, session: Any) -> None:
        self._session = session

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.checkpoint(*args, **kwargs)

    def page(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.page(*args, **kwargs)

    def all(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.rows(*args, **kwargs)

    def ancestors(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.ancestors(*args, **kwargs)

    def channel_writes(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.channel_writes(*args, **kwargs)

    def moment(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.moment(*args, **kwargs)

    def writes(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.writes(*args, **kwargs)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.rows_after(*args, **kwargs)

    def since(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.rows_from(*args, **kwargs)

    def stored_under(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.stored_under(*args, **kwargs)

    def usage(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.usage(*args, **kwargs)


class _Records(interface.Records):
    def __init__(self, session: Any) -> None:
        self._session = session

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.record(*args, **kwargs)

    def with_heads(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.with_heads(*args, **kwargs)

    def create(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.add(*args, **kwargs)

    def describe(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.describe(*args, **kwargs)

    def hand_over(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.give(*args, **kwargs)

    def detach(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.detach(*args, **kwargs)

    def note_sweep(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.note_sweep(*args, **kwargs)


class _Search(interface.Search):
    def __init__(self, session: Any) -> None:
        self._session = session

    def page(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.select(*args, **kwargs)

    def begin_snapshot(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.begin_walk(*args, **kwargs)

    def end_snapshot(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.end_walk(*args, **kwargs)

    def count(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.count(*args, **kwargs)

    def expired(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.expired(*args, **kwargs)

    def larger_than(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.grown(*args, **kwargs)


class _Leases(interface.Leases):
    def __init__(self, session: Any) -> None:
        self._session = session

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.lease(*args, **kwargs)

    def renew(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.renew(*args, **kwargs)

    def release(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.release(*args, **kwargs)

    def leave_queue(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.leave_queue(*args, **kwargs)

    def end_rollback(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.end_rollback(*args, **kwargs)


class _Copies(interface.Copies):
    def __init__(self, session: Any) -> None:
        self._session = session

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.copy(*args, **kwargs)

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.begin_copy(*args, **kwargs)

    def copy_more(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.copy_part(*args, **kwargs)

    def abandon(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.abandon_copy(*args, **kwargs)

    def fork(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.graft(*args, **kwargs)


class _Removals(interface.Removals):
    def __init__(self, session: Any) -> None:
        self._session = session

    def remove(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.remove(*args, **kwargs)

    def is_long(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.is_long(*args, **kwargs)

    def extent(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.extent(*args, **kwargs)

    def remove_batch(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.remove_part(*args, **kwargs)


class _ChunkReads(interface.ChunkReads):
    def __init__(self, session: Any) -> None:
        self._session = session

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.chunks(*args, **kwargs)

    def of_families(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.chunks_of(*args, **kwargs)

    def total_bytes(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.sizes(*args, **kwargs)


class _Collections(interface.Collections):
    def __init__(self, session: Any) -> None:
        self._session = session

    def pending(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.uncollected(*args, **kwargs)

    def clear(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.clear(*args, **kwargs)

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.begin_collection(*args, **kwargs)

    def is_undisturbed(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.is_undisturbed(*args, **kwargs)

    def is_overtaken(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.is_overtaken(*args, **kwargs)

    def references(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.references(*args, **kwargs)

    def links(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.links(*args, **kwargs)

    def digests(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.digests(*args, **kwargs)

    def chunks_at_once(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.chunks_at_once(*args, **kwargs)

    def delete_chunks(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.drop_chunks(*args, **kwargs)

    def end(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.end_collection(*args, **kwargs)


class _Secrets(interface.Secrets):
    def __init__(self, session: Any) -> None:
        self._session = session

    def store_key(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.store_key(*args, **kwargs)

    def add_store_key(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.add_store_key(*args, **kwargs)

    def all(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.secrets(*args, **kwargs)

    def add(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.add_secret(*args, **kwargs)


class ChainedSession(interface.Session):
    def __init__(self, session: Any) -> None:
        self.chained = session
        self.threads = _Threads(session)
        self.checkpoints = _Checkpoints(session)
        self.records = _Records(session)
        self.search = _Search(session)
        self.leases = _Leases(session)
        self.copies = _Copies(session)
        self.removals = _Removals(session)
        self.chunks = _ChunkReads(session)
        self.collections = _Collections(session)
        self.secrets = _Secrets(session)

    def now(self) -> int:
        return int(self.chained.now())

    def is_spent(self) -> bool:
        return bool(self.chained.is_spent())
