"""What is sent to clients, kept for those who come back, and followed by those who are there."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

KEPT = 10_000
"""How many entries of a log are kept at least, once there are as many, if they are small."""
KEPT_CHARACTERS = 16 * 1024 * 1024
"""How much text of a log is kept at least, once there is as much: states may be large."""

_T = TypeVar("_T")


class Log(Generic[_T]):
    """Numbered entries. Each is sent to all who follow the log, until it ends.

    Their numbers grow, not always by one. It belongs to one event loop, and changes at once: nobody
    can be cancelled in between.

    Attributes:
        characters: How much text its entries have.
        last: The number of the last entry, or before there is one, of the one before the first.
        has_ended: Whether nothing is added any more.

    Args:
        first: The number of its first entry.
    """

    def __init__(self, first: int = 1) -> None:
        self.characters = 0
        self.last = first - 1
        self.has_ended = False
        self._least = first
        self._entries: list[_T] = []
        self._numbers: list[int] = []
        self._sizes: list[int] = []
        self._change = asyncio.Event()

    def skip_to(self, number: int) -> None:
        """Have the next entry a number after this one."""
        self._least = max(self._least, number + 1)

    def append(self, entry: _T, characters: int) -> None:
        """Add an entry, which has so much text."""
        self.last = max(self.last + 1, self._least)
        self._numbers.append(self.last)
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
        del self._entries[:count], self._numbers[:count], self._sizes[:count]
        self.characters = left

    def end(self) -> None:
        """Let those who follow the log leave it, once they have its last entry."""
        self.has_ended = True
        self._changed()

    async def ended(self) -> None:
        """Wait until the log ends."""
        while not self.has_ended:
            await self._change.wait()

    def has_after(self, number: int) -> bool:
        """Return whether there is an entry after a number."""
        return bool(self._numbers) and self._numbers[-1] > number

    async def follow(self, after: int = 0) -> AsyncIterator[tuple[int, _T]]:
        """Return the entries after a number, those that are added included, until the log ends."""
        while True:
            place = bisect_right(self._numbers, after)
            numbers, entries = self._numbers[place:], self._entries[place:]
            for after, entry in zip(numbers, entries, strict=True):
                yield after, entry
            if not self.has_after(after):
                if self.has_ended:
                    return
                await self._change.wait()

    def _changed(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()
