"""Receipts: rows that say which other rows a put stored, so that a lost row is noticed.

A receipt stands among the writes of its checkpoint, under an `idx` that no write has. It is copied,
removed and read together with them. It is stored after the rows that it names, so that it never
names a row that is not there yet, also where there are no transactions. A receipt that is lost
itself is not missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import ormsgpack

RECEIPT = -1000
"""The `idx` of the receipt of a checkpoint. All receipts have this `idx` or a lower one."""
WRITES = -2000
"""The highest `idx` of the receipts of those writes of a task that are stored once."""

NO_CHANNEL = ""
"""The channel of a receipt."""


def is_receipt(idx: int) -> bool:
    """Return whether a row among the writes is a receipt."""
    return idx <= RECEIPT


def is_encrypted(idx: Any, content: Any) -> bool:
    """Return whether the content of a write or a receipt is one that the serializer encrypts."""
    return bool(content) and not (isinstance(idx, int) and idx < RECEIPT)


def receipt_of(idx: int) -> int:
    """Return the `idx` of the receipt of one of the writes that replace each other."""
    return RECEIPT + idx


def replaces(idx: int) -> bool:
    """Return whether a write, or a receipt, replaces what its task stored under the same `idx`."""
    return RECEIPT < idx < 0 or WRITES < idx < RECEIPT


def receipts_of(writes: Sequence[tuple[int, str]]) -> list[tuple[int, bytes]]:
    """Return the receipts of a task's writes: the `idx` of each, and its content.

    Args:
        writes: The `idx` of each write, and its channel.
    """
    runs: list[list[str | int]] = []  # channel, first idx, number
    receipts = [
        (receipt_of(idx), b"") for idx in dict.fromkeys(idx for idx, _ in writes if idx < 0)
    ]
    for idx, channel in writes:
        if idx < 0:
            continue
        last = runs[-1] if runs else ["", 0, 0]
        if last[0] == channel and last[1] + last[2] == idx:  # type: ignore[operator]
            last[2] += 1  # type: ignore[operator]
        else:
            runs.append([channel, idx, 1])
    if runs:
        content = ormsgpack.packb(runs)
        receipts.append((WRITES - (crc32(content) >> 2), content))
    return receipts


def writes_of(receipt: int, content: bytes) -> Iterable[tuple[int, str | None]]:
    """Return the `idx` of the writes that a receipt is of, each with its channel.

    Args:
        receipt: Its own `idx`, less than that of the receipt of a checkpoint.
        content: Its content. It names no channel of writes that replace each other.
    """
    if receipt > WRITES:
        return ((receipt - RECEIPT, None),)
    return [
        (idx, channel)
        for channel, first, number in ormsgpack.unpackb(content)
        for idx in range(first, first + number)
    ]
