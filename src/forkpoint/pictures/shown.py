"""Results that show themselves: in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkpoint.imports import ModuleWhenUsed
from forkpoint.results import ChannelDiff, ChannelStatus, FamilyNode

if TYPE_CHECKING:
    from forkpoint.pictures import diff as render_diff
    from forkpoint.pictures import family as render
    from forkpoint.pictures import family_svg as render_svg
else:  # few programs show any
    render_diff = ModuleWhenUsed("forkpoint.pictures.diff")
    render = ModuleWhenUsed("forkpoint.pictures.family")
    render_svg = ModuleWhenUsed("forkpoint.pictures.family_svg")


@dataclass(frozen=True)
class FamilyTree:
    """A family: all threads that forks and clones join, as a tree. In a notebook it shows itself.

    Threads that were deleted are in it as long as there are descendants of theirs.
    """

    root: FamilyNode

    def __iter__(self) -> Iterator[FamilyNode]:
        return iter(self.root)

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """Return the tree as lines of text for a terminal."""
        return render.text(self.root)

    def mermaid(self) -> str:
        """Return the tree as a Mermaid flowchart."""
        return render.mermaid(self.root)

    def svg(self) -> str:
        """Return the tree as a picture, an SVG document."""
        return render_svg.svg(self.root)

    def _repr_svg_(self) -> str:
        return self.svg()


@dataclass(frozen=True)
class StateDiff:
    """How the state differs between two checkpoints, by channel."""

    channels: Mapping[str, ChannelDiff]

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return any(channel.status != "unchanged" for channel in self.channels.values())

    def __getitem__(self, channel: str) -> ChannelDiff:
        return self.channels[channel]

    def __iter__(self) -> Iterator[str]:
        return iter(self.channels)

    def of(self, status: ChannelStatus) -> list[str]:
        """Return the channels of a status."""
        return [name for name, channel in self.channels.items() if channel.status == status]

    def __str__(self) -> str:
        return render_diff.diff(self.channels)

    def _repr_html_(self) -> str:
        return render_diff.diff_html(self.channels)
