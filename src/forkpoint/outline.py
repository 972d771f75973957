"""What a checkpoint tells without its values: what runs next, and which channels changed. Pure.

LangGraph runs a node when one of its triggers, which are channels, has a value and a newer version
than the node has seen. A checkpoint says which version of which channel each node has seen that
ran already; the triggers of others are known by LangGraph's names for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.errors import InvalidInput
from forkpoint.langgraph_rules import (
    BRANCH_CHANNELS,
    INPUT_CHANNEL,
    JOIN_CHANNELS,
    NOT_NODES,
    SENT_TASKS,
    is_internal,
)
from forkpoint.results import NOT_READ


def next_nodes(checkpoint: CheckpointTuple) -> tuple[str, ...]:
    """Return the names of the nodes that run after a checkpoint, in alphabetical order.

    It needs no graph, and a checkpoint of `history(values=False)` will do. Where that leaves out
    which nodes tasks of `Send` are for, as it does if they take much, `__pregel_tasks` stands for
    them. A graph that was built without `StateGraph` is known by what has run before: for the
    first step of one, there is `__start__`.
    """
    state = _state_of(checkpoint)
    values, versions = state["channel_values"], state["channel_versions"]
    seen = {
        node: channels
        for node, channels in state.get("versions_seen", {}).items()
        if node not in NOT_NODES
    }
    nodes = {
        node
        for node, channel in _triggers(values, seen)
        if _is_ready(channel, values[channel])
        and _is_newer(versions.get(channel), seen.get(node, {}).get(channel))
    }
    return tuple(sorted(nodes.union(_sent_to(values.get(SENT_TASKS)))))


def changed_channels(checkpoint: CheckpointTuple) -> tuple[str, ...]:
    """Return the channels of the state that the step before a checkpoint updated, sorted.

    It is what LangGraph notes in the checkpoint. Where it does not, there are none.
    """
    updated = _state_of(checkpoint).get("updated_channels") or ()
    return tuple(sorted(channel for channel in updated if not is_internal(channel)))


def _state_of(checkpoint: CheckpointTuple) -> Mapping[str, Any]:
    if not isinstance(checkpoint, CheckpointTuple):
        kind = type(checkpoint).__name__
        raise InvalidInput(
            f"checkpoint must be a CheckpointTuple, as history and at return, not {kind}"
        )
    return checkpoint.checkpoint


def _triggers(
    values: Mapping[str, Any], seen: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield each node with each of its triggers that has a value."""
    for node, channels in seen.items():
        yield from ((node, channel) for channel in channels if channel in values)
    for channel in values:
        if channel.startswith(BRANCH_CHANNELS):
            yield channel.removeprefix(BRANCH_CHANNELS), channel
        elif channel.startswith(JOIN_CHANNELS):
            yield channel.rpartition(":")[2], channel
    if INPUT_CHANNEL in values and not any(INPUT_CHANNEL in channels for channels in seen.values()):
        yield INPUT_CHANNEL, INPUT_CHANNEL


def _is_ready(channel: str, value: Any) -> bool:
    """Return whether all has happened that a trigger with a value waits for."""
    if not channel.startswith((BRANCH_CHANNELS, JOIN_CHANNELS)):
        return True
    if isinstance(value, tuple) and len(value) == 2:  # of a deferred node
        return value[1] is True
    if channel.startswith(BRANCH_CHANNELS):
        return True
    awaited = channel.removeprefix(JOIN_CHANNELS).rpartition(":")[0]
    # Each name is there once at most, and any of them may have a plus sign in it.
    return isinstance(value, set) and len("+".join(map(str, value))) == len(awaited)


def _is_newer(version: Any, seen: Any) -> bool:
    if version is None or seen is None:
        return seen is None
    return bool(version > seen)


def _sent_to(tasks: Any) -> Iterable[str]:
    if tasks is NOT_READ:
        return [SENT_TASKS]
    names = (getattr(task, "node", None) for task in tasks or ())
    return [name if isinstance(name, str) else SENT_TASKS for name in names]
