"""Pictures of a family, and of what differs between two states: text, Mermaid, SVG, HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkpoint.types import ChannelDiff, FamilyNode


def text(root: FamilyNode) -> str:
    raise NotImplementedError


def mermaid(root: FamilyNode) -> str:
    raise NotImplementedError


def svg(root: FamilyNode) -> str:
    raise NotImplementedError


def diff(channels: Mapping[str, ChannelDiff]) -> str:
    raise NotImplementedError


def diff_html(channels: Mapping[str, ChannelDiff]) -> str:
    raise NotImplementedError
