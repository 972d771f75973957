"""What forkpoint knows of LangGraph: its special names, its ids and its rules.

A change of them in LangGraph touches this file, and no other but
`forkpoint.encoding.langgraph_values`, which knows the types that LangGraph's serializer writes.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.base import get_checkpoint_metadata as get_checkpoint_metadata
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import ERROR as ERROR
from langgraph.checkpoint.serde.types import INTERRUPT as INTERRUPT
from langgraph.checkpoint.serde.types import RESUME as RESUME

# Writes

INTERRUPT_IDX, RESUME_IDX, ERROR_IDX = (WRITES_IDX_MAP[kind] for kind in (INTERRUPT, RESUME, ERROR))
"""The `idx` of a task's interrupt, of its resume value and of its error. A task has one of each at
most: a later one replaces the one before."""

NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"
"""The task of writes that belong to a checkpoint itself, such as those of a `Command`."""


STRICT_RESUME = "__pregel_strict_resume"
"""The key of a config that has a run fail whose answer is to an interrupt that does not wait."""


def write_idx(channel: str, position: int) -> int:
    """Return the `idx` of a write: that of its special channel, or its position in the task."""
    return WRITES_IDX_MAP.get(channel, position)


def by_idx(writes: Iterable[tuple[str, Any]]) -> dict[int, tuple[str, Any]]:
    """Return the writes of a task by their `idx`. Of those that have the same, the last counts."""
    return {write_idx(write[0], position): write for position, write in enumerate(writes)}


def status_of(kinds: Collection[int], recorded: str | None = None) -> str:
    """Return the status of a thread whose newest checkpoint has writes of these `idx`.

    Args:
        kinds: The `idx` of the writes.
        recorded: What a record says that was kept up with them, or with those that they are copies
            of: it knows which came last, where there are an interrupt and an error.
    """
    if is_ambiguous(kinds) and recorded == "error":
        return "error"
    if INTERRUPT_IDX in kinds:
        return "interrupted"
    return "error" if ERROR_IDX in kinds else "idle"


def is_ambiguous(kinds: Collection[int]) -> bool:
    """Return whether writes of these `idx` say two things of the status: the last one counts.

    So it is after a task has failed with the answer to its interrupt.
    """
    return INTERRUPT_IDX in kinds and ERROR_IDX in kinds


# Channels

COUNTERS = "counters_since_delta_snapshot"
"""The key of a checkpoint's metadata under which LangGraph counts, for each `DeltaChannel`, the
steps since it was stored."""


def rebuilt_channels(
    metadata: Mapping[str, Any], versions: Mapping[str, Any], stored: Collection[str]
) -> set[str]:
    """Return the `DeltaChannel`s of a checkpoint whose values are rebuilt from its ancestors.

    Args:
        metadata: The metadata of the checkpoint.
        versions: Its `channel_versions`.
        stored: The channels whose values are stored with the checkpoint.
    """
    counters = delta_counters(metadata)
    return {channel for channel in counters if channel in versions and channel not in stored}


def delta_counters(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what metadata count for each `DeltaChannel`.

    A run's config may have something else under the same key, which LangGraph adds to them.
    """
    counters = metadata.get(COUNTERS)
    return dict(counters) if isinstance(counters, Mapping) else {}


def with_counters(metadata: Mapping[str, Any], counters: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata that count this, and nothing else."""
    rest = {key: value for key, value in metadata.items() if key != COUNTERS}
    return {**rest, COUNTERS: counters} if counters else rest


INPUT_CHANNEL = "__start__"
"""The channel of the input of a run."""

SENT_TASKS = "__pregel_tasks"
"""The channel of tasks that were made by `Send`."""

BRANCH_CHANNELS, JOIN_CHANNELS = "branch:to:", "join:"
"""What the names of channels begin with that trigger a node: which has one predecessor, or waits
for several."""

NOT_NODES = ("__input__", "__interrupt__")
"""The keys of `versions_seen` that are no names of nodes."""


def is_internal(channel: str) -> bool:
    """Return whether a channel says what is to run next, and is no part of the state."""
    return channel.startswith(("branch:", JOIN_CHANNELS, INPUT_CHANNEL, "__pregel_"))


def says_next(channel: str) -> bool:
    """Return whether the value of a channel says which nodes run next."""
    return channel.startswith((BRANCH_CHANNELS, JOIN_CHANNELS)) or channel == SENT_TASKS


def starts_tasks(channel: str) -> bool:
    """Return whether tasks run in the next step because a channel has a value."""
    return channel.startswith(("branch:", SENT_TASKS))


# Namespaces


def is_stateful(checkpoint_ns: str) -> bool:
    """Return whether a subgraph keeps its state from one call to the next.

    The namespace of a subgraph that does not has the id of its task in it, after a colon.
    """
    return ":" not in checkpoint_ns


def state_around(checkpoint_ns: str) -> str:
    """Return the namespace of the nearest graph around a subgraph that keeps its state."""
    return checkpoint_ns.partition(":")[0].rpartition("|")[0]


def depth_of(checkpoint_ns: str) -> int:
    """Return how many graphs there are around that of a namespace; 0 for the outermost."""
    return checkpoint_ns.count("|") + 1 if checkpoint_ns else 0


# Ids


def new_checkpoint_id() -> str:
    """Return an id for a new checkpoint. It comes after those that were made before it."""
    return str(uuid6())


def made_at(checkpoint_id: str) -> int | None:
    """Return when a checkpoint was made, in microseconds since 1970, if its id says so.

    The ids of LangGraph do: they are UUIDs of version 6 (RFC 9562, section 5.6).
    """
    try:
        uuid = UUID(checkpoint_id)
    except ValueError:
        return None
    if uuid.version != 6:
        return None
    ticks = uuid.int >> 80 << 12 | uuid.int >> 64 & 0xFFF
    return (ticks - _TICKS_TO_1970) // 10


_TICKS_TO_1970 = 0x01B21DD213814000  # of 100 nanoseconds, since 15 October 1582


# Metadata


def is_update(metadata: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was made by `update_state`, after the tasks of its parent."""
    return metadata.get("source") in ("update", "fork")


def is_fork(metadata: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint begins a branch, with the state of its parent or of another."""
    return metadata.get("source") == "fork"


def is_input(metadata: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint holds the input of a run, of which no task has run yet."""
    return metadata.get("source") == "input"


def update_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an update on top of a checkpoint with these metadata."""
    step = metadata.get("step")
    return {**metadata, "source": "update", "step": step + 1 if isinstance(step, int) else 0}


# Configs

_RESUMING = "__pregel_resuming"  # CONFIG_KEY_RESUMING


def is_resuming(configurable: Mapping[str, Any]) -> bool:
    """Return whether a config is that of a run that LangGraph resumes."""
    return configurable.get(_RESUMING) is True


def stop_resuming(configurable: dict[str, Any]) -> None:
    """Have LangGraph apply the input of a subgraph, although the run around it is resumed."""
    del configurable[_RESUMING]


def run_of(configurable: Mapping[str, Any]) -> object:
    """Return the object that a run and its subgraphs have in common; None if there is none."""
    return getattr(configurable.get("__pregel_runtime"), "control", None)


def is_of_task(configurable: Mapping[str, Any]) -> bool:
    """Return whether a config is that of a task, and not of the run around it."""
    return "__pregel_task_id" in configurable


# Messages and updates of channels

REMOVE_ALL_MESSAGES = "__remove_all__"
"""The id of a `RemoveMessage` that removes all messages before it."""

OVERWRITE = "__overwrite__"
"""The key of a dict that is written to a channel to replace its value, as `Overwrite` does."""


# Versions of channels

_DIGITS = 32


def version_number(version: str) -> int | None:
    """Return the number that a version begins with; None if it begins with none."""
    number, _, _ = version.partition(".")
    try:
        return int(number)
    except ValueError:
        return None


def is_text_version(version: str) -> bool:
    """Return whether a version is of the kind that `text_version` returns."""
    number, point, _ = version.partition(".")
    return point == "." and len(number) == _DIGITS and number.isdecimal()


def text_version(number: int) -> str:
    """Return a version as those savers write it whose versions are strings."""
    return f"{number:0{_DIGITS}}.{random.random():016}"
