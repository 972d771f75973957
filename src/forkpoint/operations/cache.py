"""What a process remembers of a store, to be spared reading it again before each write.

Nothing here is trusted for long: every write names the thread, the epoch and the store's history
that it was prepared for, and is refused if they no longer hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from forkpoint.caches import ENTRY_BYTES, Cache, CacheBudget, size_of_text
from forkpoint.encoding.codec import Chunks, Manifest
from forkpoint.storage.plan import Place
from forkpoint.storage.rows import RunStart, ThreadRef

_RUNS_BYTES = 4 * 1024 * 1024  # of their own: what they say, nothing else may say later
_RECENT_DIGESTS = 8192  # in each family
_CHANNEL_BYTES = 400  # what a channel takes in a manifest and its versions, beside what is packed
_DIGEST_BYTES = 140  # what a digest takes in a set


class KnownManifest(NamedTuple):
    epoch: int
    manifest: Manifest
    versions: Mapping[str, Any]
    packed_bytes: int
    """What it takes as it is stored, with its refs."""


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
        self._beginnings: Cache[tuple[str, int], tuple[object, RunStart]]
        self._beginnings = Cache(
            CacheBudget(_RUNS_BYTES), lambda place, _: ENTRY_BYTES + len(place[0])
        )

    def begin(self, thread_id: str, run: object, beginning: RunStart) -> None:
        """Remember what a run that begins found, or that it made the thread itself."""
        # With the object, so that its id stays its own.
        self._beginnings.put((thread_id, id(run)), (run, beginning))

    def note(self, thread_id: str, run: object, start: RunStart | None) -> None:
        """Remember what a thread id meant when a run began, or nothing if that is not known."""
        if start is None:
            self._beginnings.pop((thread_id, id(run)))
        else:
            self.begin(thread_id, run, start)

    def beginning(self, thread_id: str, run: object) -> RunStart | None:
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
        runs: What runs found, in whichever history they began: what is gone then is deleted.
        budget: What all this may take, together with others, but for what runs found.
    """

    def __init__(self, history: int, announced: Announced, runs: Runs, budget: CacheBudget) -> None:
        self.history = history
        self.announced = announced
        self.runs = runs
        self.threads: Cache[str, ThreadRef] = Cache(budget, size_of_text)
        self.missing: Cache[str, bool] = Cache(budget, size_of_text)
        """Threads that were looked for in vain: what is written next may make them."""
        self.salts: Cache[str, bytes] = Cache(budget, size_of_text)
        """The salts of threads that this process is about to make, whichever put is the first."""
        self.described: Cache[Any, Described] = Cache(
            budget, lambda _, described: ENTRY_BYTES + len(described.metadata)
        )
        """What the records of threads said last, by the key of a thread."""
        self._manifests: Cache[tuple[Any, str, str], KnownManifest]
        self._manifests = Cache(budget, _size_of_manifest)
        self._chunks: Cache[Any, _KnownChunks] = Cache(
            budget, lambda _, known: ENTRY_BYTES + _DIGEST_BYTES * len(known.digests)
        )
        self._budget = budget

    def forget(self, thread_id: str) -> None:
        """Remember no longer what an id meant."""
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
    """What is remembered of a store: but for what runs found, for its present history only.

    Args:
        budget: What it may take.
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
