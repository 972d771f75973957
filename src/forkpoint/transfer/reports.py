"""What moving threads tells: how far it is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from forkpoint.errors import DamagedArchive


@dataclass(frozen=True)
class TransferProgress:
    """How far moving threads is.

    Attributes:
        thread_id: The thread that is being moved, as the source calls it.
        threads: How many threads are dealt with.
        total: How many there are, if that is known.
        checkpoints: How many checkpoints were read, of all threads so far.
        is_verifying: Whether what is read is compared with what is stored.
    """

    thread_id: str
    threads: int
    total: int | None
    checkpoints: int
    is_verifying: bool = False


OnProgress = Callable[[TransferProgress], object]
"""Is called after each checkpoint that was read, and after each thread."""


@dataclass(frozen=True)
class Difference:
    """Something that is not in the target as it is in the source.

    Attributes:
        thread_id: The thread, as the target calls it.
        checkpoint_ns: The namespace of the checkpoint.
        checkpoint_id: The checkpoint.
        what: What differs, such as `channel 'messages'`, or `it is missing`.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    what: str


@dataclass(frozen=True)
class TransferReport:
    """What came of moving threads.

    Attributes:
        threads: How many threads were moved, or brought up to date.
        unchanged: How many were there already, with all that the source has.
        checkpoints: How many checkpoints were written.
        writes: How many writes of tasks were written.
        failed: The ids of threads that were not moved, or not to the end, and why.
        damaged: The lines of an archive that were skipped.
        verified: How many checkpoints were compared.
        differences: What differs, if it was verified: 1,000 at most.
    """

    threads: int = 0
    unchanged: int = 0
    checkpoints: int = 0
    writes: int = 0
    failed: Mapping[str, Exception] = field(default_factory=dict)
    damaged: Sequence[DamagedArchive] = ()
    verified: int = 0
    differences: Sequence[Difference] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing failed, was damaged or differs."""
        return not (self.failed or self.damaged or self.differences)
