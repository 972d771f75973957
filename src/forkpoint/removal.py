"""Which checkpoints may go, so that what stays keeps its state. Pure.

A checkpoint's values are its own, but for those of a `DeltaChannel`: these are rebuilt from the
writes of its ancestors, back to the nearest that stores the channel. Such ancestors stay as long
as a checkpoint needs them.
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


def removable(headers: Mapping[Place, Header], doomed: Iterable[Place]) -> set[Place]:
    """Return those of the doomed checkpoints that no surviving one needs."""
    removed = set(doomed)
    for place, header in headers.items():
        if place in removed:
            continue
        needed = set(header.rebuilt)
        ancestor = header.parent
        while needed and ancestor is not None and ancestor in headers:
            removed.discard(ancestor)
            needed.difference_update(headers[ancestor].stored)
            ancestor = headers[ancestor].parent
    return removed


def all_but_latest(places: Iterable[Place]) -> set[Place]:
    """Return all checkpoints but the newest of each namespace."""
    places = set(places)
    latest: dict[str, str] = {}
    for checkpoint_ns, checkpoint_id in places:
        latest[checkpoint_ns] = max(checkpoint_id, latest.get(checkpoint_ns, ""))
    return places - set(latest.items())
