"""What is sent to clients, kept for those who come back, and followed by those who are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

KEPT = 10_000
"""How many entries of a log are kept at least, once there are as many, if they are small."""
KEPT_CHARACTERS = 16 * 1024 * 1024
"""How much text of a log is kept at least, once there is as much: states may be large."""

_T = TypeVar("_T")


class Log(Generic[_T]):
    """Numbered entries. Each is sent to all who follow the log, until it ends.

    It belongs to one event loop, and changes at once: nobody can be cancelled in between.

    Attributes:
        characters: How much text its entries have.

    Args:
        first: The number of its first entry.
    """

    def __init__(self, first: int = 1) -> None:
        self.characters = 0
        self._entries: list[_T] = []
        self._sizes: list[int] = []
        self._first = first
        self._has_ended = False
        self._change = asyncio.Event()

    @property
    def last(self) -> int:
        """The number of the last entry, or of the one before the first."""
        return self._first + len(self._entries) - 1

    def append(self, entry: _T, characters: int) -> None:
        """Add an entry, which has so much text."""
        self._entries.append(entry)
        self._sizes.append(characters)
        self.characters += characters
        if len(self._entries) > 2 * KEPT or self.characters > 2 * KEPT_CHARACTERS:
            self._forget()
        self._changed()

    def _forget(self) -> None:
        """Forget the oldest entries, but the last one never."""
        count = max(len(self._entries) - KEPT, 0)
        left = self.characters - sum(self._sizes[:count])
        while left > KEPT_CHARACTERS and count < len(self._entries) - 1:
            left -= self._sizes[count]
            count += 1
        del self._entries[:count], self._sizes[:count]
        self._first += count
        self.characters = left

    def end(self) -> None:
        """Let those who follow the log leave it, once they have its last entry."""
        self._has_ended = True
        self._changed()

    async def ended(self) -> None:
        """Wait until the log ends."""
        while not self._has_ended:
            await self._change.wait()

    async def follow(self, after: int = 0) -> AsyncIterator[tuple[int, _T]]:
        """Return the entries after a number, those that are added included, until the log ends."""
        while True:
            after = max(after, self._first - 1)
            for entry in self._entries[after + 1 - self._first :]:
                after += 1
                yield after, entry
            if after >= self.last:
                if self._has_ended:
                    return
                await self._change.wait()

    def _changed(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()
