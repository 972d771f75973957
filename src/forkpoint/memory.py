"""What a process remembers of a store, to be spared reading it again before each write.

Nothing here is trusted for long: every write names the thread, the epoch and the store's history
that it was prepared for, and is refused if they no longer hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from forkpoint.codec import Chunks, Manifest
from forkpoint.storage import Beginning, ThreadRef

_RECENT_THREADS = 4096
_RECENT_MANIFESTS = 4096
_RECENT_RUNS = 4096
_RECENT_FAMILIES = 128
_RECENT_DIGESTS = 8192  # in each of these families

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """A mapping that forgets the entries that were put longest ago.

    It has no lock, which an interrupt might leave locked, and a fork might take along. Each step is
    one of a dict: what happens between two steps costs an entry or two at most.

    Args:
        limit: How many entries it has at most. It forgets half of them at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit // 2
        self._new: dict[_K, _V] = {}
        self._old: dict[_K, _V] = {}

    def get(self, key: _K) -> _V | None:
        value = self._new.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: _K, value: _V) -> None:
        self._new[key] = value
        if len(self._new) > self._limit:
            self._old = self._new
            self._new = {}

    def pop(self, key: _K) -> _V | None:
        new = self._new.pop(key, None)  # first: meanwhile the new ones may become the old ones
        old = self._old.pop(key, None)
        return old if new is None else new


class KnownManifest(NamedTuple):
    epoch: int
    manifest: Manifest
    versions: Mapping[str, Any]


class _KnownChunks(NamedTuple):
    epoch: int
    digests: set[bytes]


class Announced:
    """The checkpoints that are on their way into the store.

    Where a thread was deleted, they tell whether writes belong to a new run of which nothing is
    stored yet. Nobody waits for them: should such a checkpoint be refused, its writes go with it.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[str, str]] = {}

    def add(self, ticket: int, thread_id: str, checkpoint_id: str) -> None:
        """Announce a checkpoint until the ticket is removed."""
        self._places[ticket] = (thread_id, checkpoint_id)

    def remove(self, ticket: int) -> None:
        self._places.pop(ticket, None)

    def has(self, thread_id: str, checkpoint_id: str) -> bool:
        return (thread_id, checkpoint_id) in list(self._places.values())


class Runs:
    """What thread ids meant when the runs of this process began.

    A run looks for its thread before it does anything else, and LangGraph passes the same object
    to that look and to all that the run and its subgraphs store. So what is deleted, or made, in
    between is told from what was there before, whatever the ids of the checkpoints are.
    """

    def __init__(self) -> None:
        self._beginnings: Recent[tuple[str, int], tuple[object, Beginning]] = Recent(_RECENT_RUNS)

    def begin(self, thread_id: str, run: object, beginning: Beginning) -> None:
        """Remember what a run that begins found, or that it made the thread itself."""
        # With the object, so that its id stays its own.
        self._beginnings.put((thread_id, id(run)), (run, beginning))

    def forget(self, thread_id: str, run: object) -> None:
        self._beginnings.pop((thread_id, id(run)))

    def beginning(self, thread_id: str, run: object) -> Beginning | None:
        """Return what a run found; None if that is not known."""
        known = None if run is None else self._beginnings.get((thread_id, id(run)))
        return None if known is None else known[1]


class Described(NamedTuple):
    """What the record of a thread says: its metadata, as JSON."""

    run: object
    """The run that had it say so; None if it was read."""
    metadata: str


class Memory:
    """Threads, manifests and chunks that were read or written lately.

    Args:
        history: The store's history that they are of.
        announced: What is on its way into the store, whichever that is.
    """

    def __init__(self, history: int, announced: Announced) -> None:
        self.history = history
        self.announced = announced
        self.runs = Runs()
        self.threads: Recent[str, ThreadRef] = Recent(_RECENT_THREADS)
        self.missing: Recent[str, bool] = Recent(_RECENT_THREADS)
        """Threads that were looked for in vain: what is written next may make them."""
        self.described: Recent[Any, Described] = Recent(_RECENT_THREADS)
        """What the records of threads said last, by the key of a thread."""
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


class Memories:
    """What is remembered of a store, for its present history only."""

    def __init__(self) -> None:
        self._memory = Memory(0, Announced())

    def of(self, history: int) -> Memory:
        """Return the memory for a history; that of the ones before is forgotten."""
        memory = self._memory
        if memory.history != history:
            memory = self._memory = Memory(history, memory.announced)
        return memory
