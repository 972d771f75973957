"""What a process remembers of a store, so that a write need not read it first.

What is remembered may be out of date. So every write names the thread, the epoch and the history of
the store that it was prepared for, and the store refuses it if they no longer hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from forkpoint.caches import ENTRY_BYTES, Cache, CacheBudget, size_of_text
from forkpoint.encoding.chunk import Chunks
from forkpoint.encoding.manifest import Manifest
from forkpoint.storage.plan import Place
from forkpoint.storage.rows import RunStart, ThreadRef

_RUNS_BYTES = 4 * 1024 * 1024  # of their own: what they hold cannot be read again
_RECENT_DIGESTS = 8192  # in each family
_CHANNEL_BYTES = 400  # what a channel takes in a manifest and its versions, beside what is packed
_DIGEST_BYTES = 140  # what a digest takes in a set


class KnownManifest(NamedTuple):
    """The manifest of a checkpoint, and the epoch at which the store had all chunks of it."""

    epoch: int
    manifest: Manifest
    versions: Mapping[str, Any]
    packed_bytes: int
    """How many bytes it takes as it is stored, with its refs."""
    counters: Mapping[str, Any]
    """What its metadata count for each `DeltaChannel` that it does not store."""


class _KnownChunks(NamedTuple):
    epoch: int
    digests: set[bytes]


class Announced:
    """The checkpoints that this process is about to put.

    Where a thread was deleted, writes of a task belong to a new run if their checkpoint is among
    these, and else are late. No write waits for its checkpoint: if that is refused, the writes that
    were stored for it are removed.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[str, str]] = {}

    def add(self, ticket: int, thread_id: str, checkpoint_id: str) -> None:
        """Announce a checkpoint until the ticket is removed."""
        self._places[ticket] = (thread_id, checkpoint_id)

    def remove(self, ticket: int) -> None:
        """End an announcement, if there is one."""
        self._places.pop(ticket, None)

    def has(self, thread_id: str, checkpoint_id: str) -> bool:
        """Return whether a checkpoint is announced."""
        return (thread_id, checkpoint_id) in list(self._places.values())


class Runs:
    """What thread ids meant when the runs of this process began.

    A run first looks for its thread. LangGraph passes one object, the run, to that look and to
    everything that the run and its subgraphs store. So it is known whether a thread was deleted, or
    made, since a run of it began.
    """

    def __init__(self) -> None:
        self._beginnings: Cache[tuple[str, int], tuple[object, RunStart]]
        self._beginnings = Cache(
            CacheBudget(_RUNS_BYTES), lambda place, _: ENTRY_BYTES + len(place[0])
        )

    def begin(self, thread_id: str, run: object, beginning: RunStart) -> None:
        """Remember what a thread id means as a run begins, or which thread the run has made."""
        # With the object, so that its id stays its own.
        self._beginnings.put((thread_id, id(run)), (run, beginning))

    def note(self, thread_id: str, run: object, start: RunStart | None) -> None:
        """Remember what a thread id meant when a run began, or nothing if that is not known."""
        if start is None:
            self._beginnings.pop((thread_id, id(run)))
        else:
            self.begin(thread_id, run, start)

    def beginning(self, thread_id: str, run: object) -> RunStart | None:
        """Return what a thread id meant when a run began; None if that is not known."""
        known = None if run is None else self._beginnings.get((thread_id, id(run)))
        return None if known is None else known[1]


class Described(NamedTuple):
    """The metadata of a thread's record, as JSON, and where this process knows them from."""

    run: object
    """The run that merged its metadata into them; None if they were read."""
    metadata: str


class Memory:
    """Threads, manifests and chunks that were read or written lately.

    Args:
        history: The history of the store that they belong to.
        announced: The checkpoints that are about to be put. They belong to no history.
        runs: What thread ids meant when runs began, in whichever history that was.
        budget: How many bytes all but `runs` may take, together with other caches.
    """

    def __init__(self, history: int, announced: Announced, runs: Runs, budget: CacheBudget) -> None:
        self.history = history
        self.announced = announced
        self.runs = runs
        self.threads: Cache[str, ThreadRef] = Cache(budget, size_of_text)
        self.missing: Cache[str, bool] = Cache(budget, size_of_text)
        """The ids that meant no thread when they were looked for. The next write may make one."""
        self.salts: Cache[str, bytes] = Cache(budget, size_of_text)
        """The salts of threads that this process is about to make: one for all puts of an id."""
        self.described: Cache[Any, Described] = Cache(
            budget, lambda _, described: ENTRY_BYTES + len(described.metadata)
        )
        """The metadata of threads, by the key of a thread."""
        self._manifests: Cache[tuple[Any, str, str], KnownManifest]
        self._manifests = Cache(budget, _size_of_manifest)
        self._chunks: Cache[Any, _KnownChunks] = Cache(
            budget, lambda _, known: ENTRY_BYTES + _DIGEST_BYTES * len(known.digests)
        )
        self._budget = budget

    def forget(self, thread_id: str) -> None:
        """Forget which thread an id means."""
        self.threads.pop(thread_id)
        self.missing.pop(thread_id)
        self.salts.pop(thread_id)

    def manifest(self, thread: ThreadRef, place: tuple[str, str]) -> KnownManifest | None:
        """Return a checkpoint's manifest, if its chunks were there at this epoch."""
        known = self._manifests.get((thread.key, *place))
        return known if known is not None and known.epoch == thread.epoch else None

    def add_manifest(self, thread: ThreadRef, place: Place, known: KnownManifest) -> None:
        """Remember the manifest of a checkpoint."""
        self._manifests.put((thread.key, *place), known)

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
            self._chunks.put(thread.family, _KnownChunks(thread.epoch, set(digests)))
            return
        before = len(known.digests)
        known.digests.update(digests)
        self._budget.add(_DIGEST_BYTES * (len(known.digests) - before))


def _size_of_manifest(place: tuple[Any, str, str], known: KnownManifest) -> int:
    channels = max(len(known.manifest), len(known.versions))
    return ENTRY_BYTES + len(place[1]) + known.packed_bytes + _CHANNEL_BYTES * channels


class Memories:
    """The memory of a store's present history.

    Args:
        budget: How many bytes it may take.
    """

    def __init__(self, budget: CacheBudget) -> None:
        self.budget = budget
        self._memory = Memory(0, Announced(), Runs(), budget)

    def of(self, history: int) -> Memory:
        """Return the memory for a history; that of the ones before is forgotten."""
        memory = self._memory
        if memory.history != history:
            memory = Memory(history, memory.announced, memory.runs, self.budget)
            self._memory = memory
        return memory
