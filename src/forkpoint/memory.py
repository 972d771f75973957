"""What a process remembers of a store, to be spared reading it again before each write.

Nothing here is trusted for long: every write names the thread and the epoch that it was prepared
for, and is refused if they no longer hold.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

from forkpoint.codec import Chunks, Manifest
from forkpoint.storage import ThreadRef

_RECENT_THREADS = 4096
_RECENT_MANIFESTS = 4096
_RECENT_FAMILIES = 128
_RECENT_DIGESTS = 8192  # in each of these families

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """A mapping that forgets the entries that were put longest ago."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[_K, _V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _K) -> _V | None:
        return self._entries.get(key)

    def put(self, key: _K, value: _V) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)

    def pop(self, key: _K) -> _V | None:
        with self._lock:
            return self._entries.pop(key, None)


class KnownManifest(NamedTuple):
    epoch: int
    manifest: Manifest
    versions: Mapping[str, Any]


class _KnownChunks(NamedTuple):
    epoch: int
    digests: set[bytes]


class Announced:
    """The threads for which checkpoints are on their way into the store.

    LangGraph stores the writes of a task while it is still storing the checkpoints before. Where a
    thread was deleted, its first checkpoint tells whether they belong to a new run.
    """

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def put(self, thread_id: str) -> Iterator[None]:
        """Announce that a checkpoint of a thread is on its way, until the end of the block."""
        with self._changed:
            self._numbers[thread_id] += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._numbers[thread_id] -= 1
                if not self._numbers[thread_id]:
                    del self._numbers[thread_id]
                self._changed.notify_all()

    def await_put(self, thread_id: str, again: bool) -> bool:
        """Wait until no checkpoint of a thread is on its way; return whether one was."""
        with self._changed:
            # It may be about to be announced: whoever does so may have begun before.
            patience = 0 if again else _MOMENT
            was_announced = self._changed.wait_for(lambda: thread_id in self._numbers, patience)
            self._changed.wait_for(lambda: thread_id not in self._numbers)
            return was_announced


_MOMENT = 0.1  # seconds: long enough for a thread that is about to run


class Memory:
    """Threads, manifests and chunks that were read or written lately."""

    def __init__(self) -> None:
        self.announced = Announced()
        self.threads: Recent[str, ThreadRef] = Recent(_RECENT_THREADS)
        self.missing: Recent[str, bool] = Recent(_RECENT_THREADS)
        """Threads that were looked for in vain: what is written next may make them."""
        self._manifests: Recent[tuple[Any, str, str], KnownManifest] = Recent(_RECENT_MANIFESTS)
        self._chunks: Recent[Any, _KnownChunks] = Recent(_RECENT_FAMILIES)

    def forget(self, thread_id: str) -> None:
        """Remember no longer what an id meant."""
        self.threads.pop(thread_id)
        self.missing.pop(thread_id)

    def manifest(self, thread: ThreadRef, place: tuple[str, str]) -> KnownManifest | None:
        """Return a checkpoint's manifest, if its chunks were there at this epoch."""
        known = self._manifests.get((thread.key, *place))
        return known if known is not None and known.epoch == thread.epoch else None

    def add_manifest(
        self,
        thread: ThreadRef,
        place: tuple[str, str],
        manifest: Manifest,
        versions: Mapping[str, Any],
    ) -> None:
        self._manifests.put((thread.key, *place), KnownManifest(thread.epoch, manifest, versions))

    def unknown(self, thread: ThreadRef | None, chunks: Chunks) -> Chunks:
        """Return those chunks that are not known to be in the store at this epoch."""
        known = None if thread is None or not chunks else self._chunks.get(thread.family)
        if known is None or thread is None or known.epoch != thread.epoch:
            return chunks
        there = known.digests
        return {digest: chunk for digest, chunk in chunks.items() if digest not in there}

    def add_chunks(self, thread: ThreadRef, digests: Iterable[bytes]) -> None:
        """Remember that these chunks are in the store at this epoch."""
        known = self._chunks.get(thread.family)
        if known is None or known.epoch != thread.epoch or len(known.digests) > _RECENT_DIGESTS:
            known = _KnownChunks(thread.epoch, set())
        known.digests.update(digests)
        self._chunks.put(thread.family, known)
