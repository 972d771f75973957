"""Lists and dicts of plain scalars: packed and cut many elements at a time. Pure.

`chunking.runs` takes each element in turn, which for a million integers takes far longer than to
pack and to store them. Here all elements are packed in one piece, and hashes that decide about the
cuts are computed of all bytes at once. Only around a cut are elements looked at one by one.

As there, a run ends after an element by what the last bytes are, wherever they stand. A run that
would be very short goes on, and one that would be very long ends where a part of the hash fits.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from hashlib import sha256
from itertools import accumulate
from typing import Any, NamedTuple

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.encoding import chunking
from forkpoint.encoding.builtin_values import PLAIN_ONLY

_RUN_BYTES_MIN = 1024
_RUN_BYTES_MAX = 16 * 1024

_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})
_GROUP = 64  # elements: in fewer it takes longer to pack all, in more to look for one of them

_TABLE = bytes(sorted(range(256), key=lambda byte: sha256(bytes([byte])).digest()))
_SHIFTS = (8 + 1, 16 + 5, 32 + 3, 64 + 7, 128 + 2)  # bits
_WINDOW_BYTES = 64  # more than there are in a hash
_SLAB_BYTES = 64 * 1024  # so many are hashed at once: they stay in the cache of a processor
_MARK = re.compile(rb"\0(?=[\0-\x0f])")  # in random bytes, one of 4096
_MARK_BYTES = 2
_LESSER_MARK = b"\0"


class PlainRun(NamedTuple):
    """Consecutive elements of a list, or items of a dict."""

    length: int
    content: memoryview
    """The elements as they are packed, without a header."""
    decisive: int
    """How many bytes, from its first one on, decide where it ends: some may come after it."""


class PlainItems:
    """The elements of a list, or the items of a dict with strings for keys, all of them scalars.

    Args:
        packed: They as they are packed, with the header.
        columns: The elements; or the keys, and the values.
    """

    def __init__(self, packed: bytes, columns: list[list[Any]]) -> None:
        self.packed = packed
        self._columns = columns
        # Those of arrays and maps are equally long.
        self._header_bytes = len(chunking.array_header(len(columns[0])))

    @property
    def length(self) -> int:
        """How many items there are."""
        return len(self._columns[0])

    @property
    def content(self) -> memoryview:
        """The items as they are packed, without the header."""
        return memoryview(self.packed)[self._header_bytes :]

    def begin_with(self, content: memoryview) -> bool:
        """Return whether these bytes are the first ones, but for the header."""
        # As `bytes`: views are compared one byte at a time.
        return self.packed.startswith(bytes(content), self._header_bytes)

    def runs(self, start: int = 0, index: int = 0) -> list[PlainRun] | None:
        """Return the runs that they are cut into; None if one takes more than a chunk is to.

        Args:
            start: The byte of the content at which the first run begins that is to be returned.
            index: How many items there are before it.
        """
        content = self.content[start:]
        columns = [column[index:] for column in self._columns] if index else self._columns
        if len(content) <= _RUN_BYTES_MIN:
            return [PlainRun(len(columns[0]), content, _RUN_BYTES_MAX)]
        groups = _Groups(columns)
        if groups.have_large_item():
            return None
        hashes = content_hashes(self.packed, self._header_bytes + start)
        marks = [mark.start() for mark in _MARK.finditer(hashes)]
        runs = []
        begin = first = 0
        while begin < len(content):
            cut, decisive = _next_cut(hashes, marks, begin)
            end, last = groups.end_of_item(cut)
            runs.append(PlainRun(last - first, content[begin:end], decisive))
            begin, first = end, last
        return runs


def plain_items(value: list[Any] | dict[Any, Any]) -> PlainItems | None:
    """Return what is in a list or a dict, packed; None if not all of it is as `PlainItems` says."""
    snapshot = value.copy()  # what is in it does not change any more, while `value` may
    elements = snapshot if isinstance(snapshot, list) else list(snapshot.values())
    if elements and type(elements[-1]) not in _SCALARS:  # as a rule, that tells
        return None
    if not _SCALARS.issuperset(map(type, elements)):
        return None
    try:
        packed = ormsgpack.packb(snapshot, option=PLAIN_ONLY)
    except ormsgpack.MsgpackEncodeError:  # a long integer, a lone surrogate, a key that is no text
        return None
    return PlainItems(packed, [elements] if elements is snapshot else [list(snapshot), elements])


class _Groups:
    """Items in groups, and how long each group is when it is packed.

    Args:
        columns: The elements; or the keys, and the values.
    """

    def __init__(self, columns: list[list[Any]]) -> None:
        self._columns = columns
        self._count = len(columns[0])
        whole = self._count - self._count % _GROUP
        pack = ormsgpack.packb
        sizes = [
            [len(pack(column[start : start + _GROUP])) for start in range(0, whole, _GROUP)]
            for column in columns
        ]
        headers = len(chunking.array_header(_GROUP)) * len(columns)
        self._sizes = [sum(group) - headers for group in zip(*sizes, strict=True)]
        self._sizes.append(self._size(whole, self._count))
        self._ends = list(accumulate(self._sizes))

    def have_large_item(self) -> bool:
        """Return whether an element is so long that it is to be cut itself."""
        large = chunking.PIECE_BYTES
        return any(
            self._size(index, index + 1) > large
            for group, size in enumerate(self._sizes)
            if size > large
            for index in range(group * _GROUP, min((group + 1) * _GROUP, self._count))
        )

    def end_of_item(self, position: int) -> tuple[int, int]:
        """Return where the item with a byte ends, and how many there are up to that."""
        if position >= self._ends[-1]:
            return self._ends[-1], self._count
        group = bisect_right(self._ends, position)
        size, first = self._sizes[group], group * _GROUP
        start, count = self._ends[group] - size, min(_GROUP, self._count - first)
        index = first + (position - start) * count // size + 1  # if all were equally long
        end = start + self._size(first, index)
        while end <= position:
            end += self._size(index, index + 1)
            index += 1
        while (before := end - self._size(index - 1, index)) > position:
            end = before
            index -= 1
        return end, index

    def _size(self, start: int, stop: int) -> int:
        header = len(chunking.array_header(stop - start))
        size = 0
        for column in self._columns:
            size += len(ormsgpack.packb(column[start:stop])) - header
        return size


def count_settled(runs: list[PlainRun]) -> int:
    """Return how many of the runs end where they do whatever comes after these."""
    ends = list(accumulate(len(run.content) for run in runs))
    settled = len(runs) - 1  # the last one ends with the items
    for index in reversed(range(settled)):
        begin, end = ends[index] - len(runs[index].content), ends[settled - 1]
        if begin + _RUN_BYTES_MAX <= end:
            break
        if begin + runs[index].decisive > end:
            settled = index
    return settled


def _next_cut(hashes: bytes, marks: list[int], start: int) -> tuple[int, int]:
    """Return a byte of the last item of the run that begins at `start`, or the end.

    And how many bytes from there on decided about it.
    """
    earliest, latest = start + _RUN_BYTES_MIN, start + _RUN_BYTES_MAX
    place = bisect_left(marks, earliest)
    if place < len(marks) and marks[place] < latest:
        return marks[place], marks[place] + _MARK_BYTES - start
    if len(hashes) < latest:
        return len(hashes), _RUN_BYTES_MAX
    lesser = hashes.rfind(_LESSER_MARK, earliest, latest)
    return latest if lesser < 0 else lesser, _RUN_BYTES_MAX


def content_hashes(content: bytes, start: int = 0) -> bytes:
    """Return a byte for each byte from `start` on: a hash of that one and the 31 before it.

    Each byte is replaced by another one, by a table. Then to each is added, by exclusive or, what
    stands one byte before, then two before, then four, and so on, and each time shifted by some
    more bits, so that it counts in which order they stand. A long integer does that to all at once.
    """
    hashes = []
    for begin in range(start, len(content), _SLAB_BYTES):
        before = max(0, begin - _WINDOW_BYTES)
        slab = content[before : begin + _SLAB_BYTES]
        number = int.from_bytes(slab.translate(_TABLE), "little")
        for shift in _SHIFTS:
            number ^= number << shift
        hashed = number.to_bytes(len(slab) + _WINDOW_BYTES, "little")
        hashes.append(hashed[begin - before : len(slab)])
    return b"".join(hashes)
