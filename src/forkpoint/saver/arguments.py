"""Checking the arguments of the saver's methods: what comes in is anything, what goes on is typed.

Each function raises `InvalidInput` before anything is read or written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint import inputs, langgraph_rules
from forkpoint.encoding.encryption import encrypts_by_itself
from forkpoint.errors import InvalidInput
from forkpoint.operations.fork_parts import NewFork
from forkpoint.operations.listing import PAGE_ROWS
from forkpoint.operations.put import NewCheckpoint, NewWrites
from forkpoint.storage.plan import Kept
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.rows import Expiry


def expiry(ttl: object, on_expiry: object) -> Expiry:
    """Return when threads expire that are made without an expiry of their own."""
    microseconds = None if ttl is None else inputs.duration(ttl, "ttl")
    return Expiry(microseconds, inputs.choice(on_expiry, "on_expiry", ("delete", "keep_latest")))


def preview(value: object, serde: SerializerProtocol) -> tuple[str, ...]:
    """Return the channels whose values are shown with a thread's record."""
    channels = inputs.preview(value)
    if channels and encrypts_by_itself(serde):
        raise InvalidInput(
            f"preview= would store values unencrypted: {type(serde).__name__} overrides how an "
            "EncryptedSerializer encrypts; give that a cipher of your own instead"
        )
    return channels


# Writing


def new_checkpoint(
    config: RunnableConfig, checkpoint: object, metadata: object, new_versions: object
) -> NewCheckpoint:
    """Return the arguments of `put`."""
    address = inputs.address(config)
    merged = inputs.checkpoint_metadata(config, metadata)
    return NewCheckpoint(
        config,
        address,
        inputs.origin(config, address),
        inputs.checkpoint(checkpoint),
        inputs.as_json(merged, "metadata"),
        inputs.run_id(merged),
        inputs.versions(new_versions),
        langgraph_rules.is_fork(merged),
    )


def new_writes(
    config: RunnableConfig, writes: object, task_id: object, task_path: object
) -> NewWrites:
    """Return the arguments of `put_writes`."""
    address = inputs.address(config)
    return NewWrites(
        config,
        address,
        inputs.origin(config, address),
        inputs.place(address),
        langgraph_rules.by_idx(inputs.writes(writes)),
        inputs.identifier(task_id, "task_id"),
        inputs.text(task_path, "task_path"),
    )


# Reading


def list_query(config: object, filter: object, before: object, values: object) -> CheckpointQuery:
    """Return the query of `list`."""
    return CheckpointQuery(
        *inputs.list_scope(config),
        before=inputs.before(before),
        filter=inputs.metadata_filter(filter),
        after=None,
        limit=PAGE_ROWS,
        values=inputs.flag(values, "values"),
    )


def history_query(thread_id: object, values: object = True) -> CheckpointQuery:
    """Return the query of `history`."""
    return CheckpointQuery(
        inputs.identifier(thread_id, "thread_id"),
        checkpoint_ns="",
        checkpoint_id=None,
        before=None,
        filter=None,
        after=None,
        limit=PAGE_ROWS,
        oldest_first=True,
        must_exist=True,
        values=inputs.flag(values, "values"),
    )


def at_query(thread_id: object, index: object, values: object) -> CheckpointQuery:
    """Return the query of `at`."""
    position = inputs.index(index)
    offset = position if position >= 0 else -1 - position
    query = history_query(thread_id, values)
    return query._replace(limit=1, offset=offset, oldest_first=position >= 0)


def latest_query(metadata: object) -> CheckpointQuery:
    """Return the query of `latest`."""
    filter = inputs.metadata_filter({} if metadata is None else metadata)
    return CheckpointQuery(None, None, None, None, filter, None, 1)


def message(thread_id: object, message_id: object, channel: object) -> tuple[str, str, str]:
    """Return the arguments of `find_message`."""
    return (
        inputs.identifier(thread_id, "thread_id"),
        inputs.identifier(message_id, "message_id"),
        inputs.identifier(channel, "channel"),
    )


def channel(source: object, name: object) -> tuple[inputs.Address, str]:
    """Return the arguments of `value`. A subgraph's checkpoint has channels, too."""
    address = inputs.source(source) if isinstance(source, str) else inputs.address(source)
    return address, inputs.identifier(name, "channel")


# Forking


def new_fork(
    source: object,
    new_thread_id: object,
    values: object,
    metadata: object,
    history: object,
    next_version: Callable[[Any, None], Any],
) -> NewFork:
    """Return the arguments of `fork`.

    Args:
        source: As `fork` takes it, as the others are.
        new_thread_id: The id of the fork; a new one for None.
        values: Values by channel.
        metadata: Metadata of the thread.
        history: `"head"` or `"path"`.
        next_version: The saver's `get_next_version`.
    """
    choice = inputs.choice(history, "history", ("head", "path"))
    target = langgraph_rules.new_checkpoint_id() if new_thread_id is None else new_thread_id
    return NewFork(
        inputs.source(source),
        inputs.identifier(target, "new_thread_id"),
        inputs.named_values(values, "values"),
        inputs.thread_description(metadata),
        choice == "path",
        next_version,
    )


# Removing


def kept(keep: object) -> Kept:
    """Return the argument of `trim`."""
    return Kept(inputs.count(keep, "keep", 1))


def prune(
    thread_ids: object, strategy: object, keep_last: object
) -> tuple[list[str], str, int | None]:
    """Return the arguments of `prune`."""
    checked = inputs.identifiers(thread_ids, "thread_id")
    choice = inputs.choice(strategy, "strategy", ("keep_latest", "delete", "delete_all"))
    if keep_last is None:
        return checked, choice, None
    if choice != "keep_latest":
        raise InvalidInput(f"keep_last goes with strategy 'keep_latest', not {choice!r}")
    return checked, "keep_latest", inputs.count(keep_last, "keep_last", 1)


def progress(value: Callable[[Any], object] | None) -> Callable[[Any], object]:
    """Return what is called with the progress of a check."""
    if value is None:
        return lambda _: None
    inputs.callback(value, "on_progress")
    return value


def repair(
    quarantine: str | os.PathLike[str] | None,
    dry_run: object,
    on_progress: Callable[[Any], object] | None,
) -> tuple[str | None, bool, Callable[[Any], object]]:
    """Return the arguments of `repair`."""
    path = None if quarantine is None else inputs.path(quarantine, "quarantine")
    return path, inputs.flag(dry_run, "dry_run"), progress(on_progress)
