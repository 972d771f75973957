"""What a backend does with its secrets, and with all that is encrypted by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from forkpoint.storage.queries import Batch
from forkpoint.storage.rows import StoredContent


class Secrets(ABC):
    """What the store keeps to compute MACs and digests with."""

    @abstractmethod
    def store_key(self) -> bytes | None:
        """Return the random bytes by which this store knows again what it gave away."""

    @abstractmethod
    def add_store_key(self, key: bytes) -> None:
        """Set the store's key. Atomic: the first one that is set stays."""

    @abstractmethod
    def all(self) -> list[bytes]:
        """Return the encrypted keys of digests."""

    @abstractmethod
    def add(self, stored: bytes, seen: Sequence[bytes]) -> None:
        """Add an encrypted key of digests, if there still are those that were seen, and no others.

        Atomic: of two who have seen the same, one succeeds.

        Raises:
            CorruptChunk: There is none, and there are threads: that of these is lost.
        """

    @abstractmethod
    def remove(self, stored: bytes) -> None:
        """Remove an encrypted key of digests. Nothing is done if it is not there."""


class Contents(ABC):
    """All that is encrypted in a store, whosever it is, so that another key can encrypt it."""

    @abstractmethod
    def batch(self, after: Any = None) -> Batch[StoredContent]:
        """Return some contents of checkpoints, writes and chunks, and what writes have replaced.

        See `receipts.is_encrypted`. Together the batches have all but what is stored while they
        are read. Those of hidden and of deleted checkpoints are included while they are there.
        """

    @abstractmethod
    def replace(self, changes: Sequence[tuple[StoredContent, bytes]]) -> None:
        """Replace contents where they are, each unless it was changed since it was read."""
