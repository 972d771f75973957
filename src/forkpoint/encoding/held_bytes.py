"""How many bytes are held at once to restore an object: it, and each that it stands in.

So many more than are stored: an object of n bytes within k others, which hold little else, takes
n * k. What is too much is not read, and not written either. Pure.
"""

from __future__ import annotations

LARGE = 64 * 1024
"""How many bytes an object has at least that counts."""

MUCH = 512 * 1024 * 1024
"""How many may be held, whatever is stored."""
TIMES = 64
"""How many times as many as an object has may be held."""


def is_too_much(held: int, whole: int) -> bool:
    """Return whether an object of so many bytes is not read, as so many are held."""
    return held > max(MUCH, TIMES * whole)


def is_much(held: int, whole: int) -> bool:
    """Return whether it is not written: not all that will be around it may be known by then."""
    return is_too_much(held + held // 8, whole)
