"""Bars: what a ratio is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AtMost:
    """A bar that a ratio must not exceed."""

    limit: float

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.limit

    def __str__(self) -> str:
        return f"≤ {ratio_text(self.limit)}"


@dataclass(frozen=True)
class AtLeast:
    """A bar that a ratio must reach."""

    limit: float

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.limit

    def __str__(self) -> str:
        return f"≥ {ratio_text(self.limit)}"


Bar = AtMost | AtLeast


@dataclass(frozen=True)
class Bars:
    """The bars of a backend, None where it has none."""

    chat_stored: Bar | None = None
    chat_time: Bar | None = None
    fresh_time: Bar | None = None
    history_time: Bar | None = None
    alone_rate: Bar | None = None
    alone_time: Bar | None = None
    together_rate: Bar | None = None
    growth: Bar | None = None
    overhead: Mapping[tuple[str, str], Bar] = field(default_factory=dict)
    """By what was done, and the kind of time."""


def ratio_text(value: float) -> str:
    """Return three digits, or a fraction where it is small."""
    return f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.3g}"
