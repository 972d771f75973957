"""MongoDB: how long work is cut into turns, between which others have theirs."""

from __future__ import annotations

import threading


class Turns(threading.local):
    """Counts how much each thread of this process has done in its turn.

    Attributes:
        turn_rows: How many rows long work changes, or a quarter of those it reads, in a turn.
    """

    turn_rows = 1000
    _rows = 0

    def begin(self) -> None:
        """Begin another turn."""
        self._rows = 0

    def is_spent(self) -> bool:
        """Return whether the turn has done so much that others should have theirs."""
        return self._rows >= self.turn_rows

    def count_changed(self, rows: int) -> None:
        """Count rows that were changed."""
        self._rows += rows

    def count_read(self, rows: int) -> None:
        """Count rows that were read."""
        self._rows += rows // _READ_PER_CHANGE


_READ_PER_CHANGE = 4  # rows that are read in the time in which one is changed, or in less
