"""Strings from anywhere, made fit to be shown: in one line, of a known width. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import groupby


def count_of(number: int, what: str) -> str:
    """Return a number of things, such as `2 threads`."""
    return f"{number} {what}{'s' * (number != 1)}"


_JOINER = "\u200d"  # it makes one emoji of several
_MARKS = 4
"""How many combining characters may follow each other: as many as languages need."""


def printable(text: str) -> str:
    """Return a text in one line, with escapes for what controls a terminal or breaks XML."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if (char.isprintable() or char == _JOINER) and not excess else _escaped(char)
        for char, excess in _with_excess(text)
    )


def _with_excess(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each character, and whether it is a combining one that is piled too high."""
    for is_mark, run in groupby(text, lambda char: unicodedata.category(char) in ("Mn", "Me")):
        for number, char in enumerate(run):
            yield char, is_mark and number >= _MARKS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def columns_taken(text: str) -> int:
    """Return how many columns a printable text takes where each character takes one or two."""
    return len(text) if text.isascii() else sum(map(columns_of, text))


def columns_of(char: str) -> int:
    """Return how many columns a character takes in a terminal: none, one or two."""
    if char == _JOINER or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def short(text: str, columns: int) -> str:
    """Return a text made printable, without its middle if it takes more columns than that."""
    text = printable(text)
    if columns_taken(text) <= columns:
        return text
    head = _fitting(text, columns // 2)
    tail = _fitting(text[::-1], columns - 1 - columns // 2)[::-1]
    return f"{head}…{tail}"


def truncate(text: str, columns: int) -> str:
    """Return a printable text without its end if it takes more columns than that."""
    return text if columns_taken(text) <= columns else f"{_fitting(text, columns - 1)}…"


def padded(text: str, columns: int) -> str:
    """Return a printable text with spaces behind it, so that it takes so many columns."""
    return text + " " * (columns - columns_taken(text))


def folded(text: str, columns: int) -> list[str]:
    """Return a printable text in parts, one at least, of which none takes more columns."""
    parts = []
    while True:
        part = _fitting(text, columns) or text[:1]
        parts.append(part)
        text = text[len(part) :]
        if not text:
            return parts


def _fitting(text: str, columns: int) -> str:
    """Return as much of a text's beginning as fits."""
    for end, char in enumerate(text):
        columns -= columns_of(char)
        if columns < 0:
            return text[:end]
    return text
