"""Answering calls of tools that a run left without an answer.

A run that is cancelled between a model's calls of tools and their answers leaves a state whose
messages end with the calls. Models refuse a conversation that goes on with anything but answers. So
the calls are answered, in a checkpoint on top: with what the tools had returned, as far as it was
stored, and else with an error. What was to run next is dropped, for it would answer them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from uuid import UUID, uuid5

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from forkpoint import inputs, langgraph_rules
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.operations import delta_channels
from forkpoint.operations.context import Context
from forkpoint.operations.places import config_of
from forkpoint.operations.put import (
    NewCheckpoint,
    NewWrites,
    capture_checkpoint,
    capture_writes,
    put_checkpoint,
    put_writes,
)
from forkpoint.operations.read import get_tuple
from forkpoint.runtime.steps import Steps

NextVersion = Callable[[Any, None], Any]
_CONTENT = "This call was cancelled: its run ended before there was an answer."
_LAST_PATH = "~~"  # comes after the paths of all tasks, in the order of which writes apply
_TASK = UUID("7a3b7d0c-2f0e-4b2e-9d0c-6d2f7a6f1c55")  # of writes that are made here


def answer_tool_calls(
    context: Context, config: RunnableConfig, next_version: NextVersion
) -> Steps[list[str]]:
    """Answer what a thread's newest checkpoint leaves without an answer; return which calls.

    A thread that waits for a person's answer is left alone: its calls go on with that.
    """
    found = get_tuple(context, inputs.address(config), config)
    if found is None or any(
        channel == langgraph_rules.INTERRUPT for _, channel, _ in found.pending_writes or ()
    ):
        return []
    stored = _stored_answers(found)
    rebuilt = _rebuilt_answers(context, found)
    if not stored and not rebuilt:
        return []
    named = config_of(found.config["configurable"]["thread_id"], "", found.checkpoint["id"])
    named["configurable"].update(config["configurable"])
    named["configurable"]["checkpoint_id"] = found.checkpoint["id"]
    if rebuilt:
        yield from _put_writes(context, named, found, list(rebuilt.items()))
    yield from _put(context, named, found, stored, rebuilt, next_version)
    answers = [*stored.values(), *rebuilt.values()]
    return list(dict.fromkeys(_field(one, "tool_call_id") for each in answers for one in each))


def _stored_answers(found: CheckpointTuple) -> dict[str, list[Any]]:
    """Return the answers that are missing in each channel whose value the checkpoint has."""
    answers = {}
    for channel, value in found.checkpoint["channel_values"].items():
        messages = _list_of(value)
        returned = {
            _field(message, "tool_call_id"): message
            for _, name, written in found.pending_writes or ()
            if name == channel
            for message in _messages(written)
            if _kind(message) == "tool"
        }
        missing = [
            returned.get(call_id) or _error(source, call_id, name)
            for source, call_id, name in unanswered(messages)
        ]
        if missing:
            answers[channel] = missing
    return answers


def _rebuilt_answers(context: Context, found: CheckpointTuple) -> dict[str, list[Any]]:
    """Return the answers that are missing in each `DeltaChannel`, with what its tasks wrote."""
    checkpoint = found.checkpoint
    versions, values = checkpoint["channel_versions"], checkpoint["channel_values"]
    channels = sorted(langgraph_rules.rebuilt_channels(found.metadata, versions, values))
    histories = delta_channels.delta_channel_history(
        context, inputs.address(found.config), channels
    )
    answers = {}
    for channel, history in histories.items():
        written = [*history["writes"], *(found.pending_writes or ())]
        writes = [value for _, name, value in written if name == channel]
        messages = [
            *_list_of(history.get("seed")),
            *(one for each in writes for one in _messages(each)),
        ]
        missing = [_error(*call) for call in unanswered(messages)]
        if missing:
            answers[channel] = missing
    return answers


def unanswered(messages: Sequence[Any]) -> list[tuple[Any, str, str | None]]:
    """Return the calls that a list of messages ends with and does not answer.

    Returns:
        For each the message that makes it, its id, and the name of the tool.
    """
    answered = set()
    for message in reversed(messages):
        kind = _kind(message)
        if kind == "ai":
            calls = [_call(call) for call in _field(message, "tool_calls") or ()]
            return [(message, id_, name) for id_, name in calls if id_ and id_ not in answered]
        if kind != "tool":
            break
        answered.add(_field(message, "tool_call_id"))
    return []


def _call(call: Any) -> tuple[str | None, str | None]:
    function = _field(call, "function") or call  # as OpenAI has it
    return _field(call, "id"), _field(function, "name")


def _error(source: Any, call_id: str, name: str | None) -> Any:
    """Return an answer to a call, of the same form as the message that made it."""
    if not isinstance(source, Mapping):
        from langchain_core.messages import ToolMessage

        return ToolMessage(
            _CONTENT,
            tool_call_id=call_id,
            name=name,
            status="error",
            id=str(uuid5(_TASK, call_id)),
        )
    answer = {"content": _CONTENT, "tool_call_id": call_id}
    if "role" in source:
        return {"role": "tool", **answer}
    return {"type": "tool", **answer, "name": name, "status": "error"}


def _kind(message: Any) -> str | None:
    kind = _field(message, "type") or _field(message, "role")
    return "ai" if kind == "assistant" else kind


def _field(message: Any, name: str) -> Any:
    if isinstance(message, Mapping):
        return message.get(name)
    return getattr(message, name, None)


def _list_of(value: Any) -> Sequence[Any]:
    if DeltaSnapshot is not None and isinstance(value, DeltaSnapshot):
        value = value.value
    return value if isinstance(value, list) else ()


def _messages(written: Any) -> Iterable[Any]:
    return written if isinstance(written, (list, tuple)) else [written]


def _put_writes(
    context: Context,
    config: RunnableConfig,
    found: CheckpointTuple,
    writes: Sequence[tuple[str, Any]],
) -> Steps[None]:
    """Store writes of the checkpoint, from which its children rebuild channels."""
    address = inputs.address(config)
    task_id = str(uuid5(_TASK, found.checkpoint["id"]))
    new = NewWrites(
        config,
        address,
        inputs.origin(config, address),
        inputs.place(address),
        writes,
        task_id,
        _LAST_PATH,
    )
    yield from put_writes(context, capture_writes(context, new))


def _put(
    context: Context,
    config: RunnableConfig,
    found: CheckpointTuple,
    stored: Mapping[str, list[Any]],
    rebuilt: Iterable[str],
    next_version: NextVersion,
) -> Steps[None]:
    """Store a checkpoint on top, with the answers, from which nothing is to run."""
    checkpoint = found.checkpoint
    versions = dict(checkpoint["channel_versions"])
    metadata = langgraph_rules.update_metadata(found.metadata)
    metadata.pop("run_id", None)
    counters = dict(metadata.pop(langgraph_rules.COUNTERS, None) or {})
    values = dict(checkpoint["channel_values"])
    for channel, answers in stored.items():
        value = values[channel]
        values[channel] = [*_list_of(value), *answers]
        if not isinstance(value, list):
            values[channel] = DeltaSnapshot(values[channel])
            counters.pop(channel, None)
    if counters:
        metadata[langgraph_rules.COUNTERS] = counters
    ended = [channel for channel in values if langgraph_rules.starts_tasks(channel)]
    for channel in ended:
        del values[channel]
    changed = {
        channel: next_version(versions.get(channel), None)
        for channel in (*stored, *rebuilt, *ended)
    }
    made = {
        **checkpoint,
        "id": langgraph_rules.new_checkpoint_id(),
        "ts": datetime.now(timezone.utc).isoformat(),
        "channel_values": values,
        "channel_versions": {**versions, **changed},
        "updated_channels": sorted([*stored, *rebuilt]),
    }
    address = inputs.address(config)
    written = inputs.as_json(metadata, "metadata")
    origin = inputs.origin(config, address)
    new = NewCheckpoint(config, address, origin, made, written, None, changed)
    yield from put_checkpoint(context, capture_checkpoint(context, new))
