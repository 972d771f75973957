"""Which checkpoints may go, so that what stays keeps its state. Pure.

A checkpoint's values are its own, but for those of a `DeltaChannel`: these are rebuilt from the
writes of its ancestors, back to the nearest that stores the channel. Such ancestors stay in the
store, hidden from view, for as long as a checkpoint needs them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

COUNTERS = "counters_since_delta_snapshot"
"""Where LangGraph counts, in a checkpoint's metadata, the steps since a channel was stored."""

Place = tuple[str, str]
"""A checkpoint within its thread: namespace and id."""


class Header(NamedTuple):
    """What decides about a checkpoint's removal."""

    parent: Place | None
    stored: Collection[str]
    """The channels that it stores."""
    rebuilt: Collection[str]
    """The channels that are rebuilt from its ancestors."""


def rebuilt_channels(
    metadata: Mapping[str, Any], versions: Mapping[str, Any], stored: Collection[str]
) -> set[str]:
    """Return the channels of a checkpoint that are rebuilt from its ancestors."""
    counters = metadata.get(COUNTERS) or {}
    return {channel for channel in counters if channel in versions and channel not in stored}


class Plan(NamedTuple):
    """What a removal does: some checkpoints are removed, and some hidden."""

    removed: set[Place]
    hidden: set[Place]


def plan(headers: Mapping[Place, Header], doomed: Iterable[Place]) -> Plan:
    """Return what to do so that the doomed checkpoints are gone, and all others are as before.

    Args:
        headers: All checkpoints of a thread. Those that are hidden already are doomed too.
        doomed: Those that are to go.
    """
    going = set(doomed)
    needed: set[tuple[Place, str]] = set()
    for place in headers.keys() - going:
        for channel in headers[place].rebuilt:
            ancestor = headers[place].parent
            while ancestor is not None and ancestor in headers:
                if (ancestor, channel) in needed:
                    break
                needed.add((ancestor, channel))
                if channel in headers[ancestor].stored:
                    break
                ancestor = headers[ancestor].parent
    hidden = {place for place, _ in needed} & going
    return Plan(going - hidden, hidden)


def latest(places: Iterable[Place]) -> set[Place]:
    """Return the newest checkpoint of each namespace."""
    newest: dict[str, str] = {}
    for checkpoint_ns, checkpoint_id in places:
        newest[checkpoint_ns] = max(checkpoint_id, newest.get(checkpoint_ns, ""))
    return set(newest.items())
