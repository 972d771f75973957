"""Answering tool calls that a run left without an answer.

A run that is cancelled between a model's tool calls and their answers leaves a state whose messages
end with the calls. Models refuse a conversation that goes on with anything but answers. So the
calls are answered in a checkpoint on top: with what the tools returned, if that was stored, and
otherwise with an error. The tasks that were to run next are dropped: they would answer again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain
from typing import Any
from uuid import UUID, uuid5

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from forkpoint import inputs, langgraph_rules
from forkpoint.encoding.langgraph_values import DeltaSnapshot
from forkpoint.operations import delta_channels
from forkpoint.operations.context import Context
from forkpoint.operations.fork_parts import NextVersion
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
from forkpoint.untrusted import field

_CONTENT = "This call was cancelled: its run ended before there was an answer."
_LAST_PATH = "~~"  # sorts behind the paths of all tasks: writes apply in the order of the paths
_TASK = UUID("7a3b7d0c-2f0e-4b2e-9d0c-6d2f7a6f1c55")  # the namespace of ids that are made here


def answer_tool_calls(
    context: Context, config: RunnableConfig, next_version: NextVersion
) -> Steps[list[str]]:
    """Answer the tool calls that a thread's newest checkpoint leaves open, and return their ids.

    A thread that waits for a person's answer is left alone: its calls go on with that answer.
    """
    head = get_tuple(context, inputs.address(config), config)
    if head is None:
        return []
    waiting = (channel for _, channel, _ in head.pending_writes or ())
    if langgraph_rules.INTERRUPT in waiting:
        return []
    stored = _stored_answers(head)
    rebuilt = _rebuilt_answers(context, head)
    if not stored and not rebuilt:
        return []
    place = config_of(head.config["configurable"]["thread_id"], "", head.checkpoint["id"])
    place["configurable"] = {**config["configurable"], **place["configurable"]}
    if rebuilt:
        yield from _put_writes(context, place, head, list(rebuilt.items()))
    yield from _put(context, place, head, stored, rebuilt, next_version)
    answers = chain(*stored.values(), *rebuilt.values())
    return list(dict.fromkeys(field(answer, "tool_call_id") for answer in answers))


def _stored_answers(head: CheckpointTuple) -> dict[str, list[Any]]:
    """Return the missing answers, by channel, where the checkpoint has the channel's value."""
    answers = {}
    for channel, value in head.checkpoint["channel_values"].items():
        messages = _list_of(value)
        returned = {
            _text_of(message, "tool_call_id"): message
            for _, name, written in head.pending_writes or ()
            if name == channel
            for message in _messages(written)
            if _kind(message) == "tool"
        }
        missing = [
            returned.get(call_id) or _error(message, call_id, name)
            for message, call_id, name in unanswered(messages)
        ]
        if missing:
            answers[channel] = missing
    return answers


def _rebuilt_answers(context: Context, head: CheckpointTuple) -> dict[str, list[Any]]:
    """Return the missing answers, by channel, where the value is rebuilt (`DeltaChannel`)."""
    checkpoint = head.checkpoint
    versions, values = checkpoint["channel_versions"], checkpoint["channel_values"]
    channels = sorted(langgraph_rules.rebuilt_channels(head.metadata, versions, values))
    histories = delta_channels.delta_channel_history(context, inputs.address(head.config), channels)
    answers = {}
    for channel, history in histories.items():
        written = [*history["writes"], *(head.pending_writes or ())]
        writes = [value for _, name, value in written if name == channel]
        messages = [
            *_list_of(history.get("seed")),
            *(message for value in writes for message in _messages(value)),
        ]
        missing = [_error(*call) for call in unanswered(messages)]
        if missing:
            answers[channel] = missing
    return answers


def unanswered(messages: Sequence[Any]) -> list[tuple[Any, str, str | None]]:
    """Return the calls that a list of messages ends with and does not answer.

    Returns:
        For each call, the message that makes it, its id, and the name of the tool.
    """
    answered = set()
    for message in reversed(messages):
        kind = _kind(message)
        if kind == "ai":
            made = field(message, "tool_calls")
            calls = [_call(call) for call in (made if isinstance(made, (list, tuple)) else ())]
            return [(message, id_, name) for id_, name in calls if id_ and id_ not in answered]
        if kind != "tool":
            break
        answered.add(_text_of(message, "tool_call_id"))
    return []


def _call(call: Any) -> tuple[str | None, str | None]:
    function = field(call, "function")  # as OpenAI has it
    return _text_of(call, "id"), _text_of(call if function is None else function, "name")


def _error(source: Any, call_id: str, name: str | None) -> Any:
    """Return an error as the answer to a call, in the form of the message that makes the call."""
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
    kind = _text_of(message, "type") or _text_of(message, "role")
    return "ai" if kind == "assistant" else kind


def _text_of(message: Any, name: str) -> str | None:
    """Return a field that is a text. What is no message may have anything there."""
    text = field(message, name)
    return text if isinstance(text, str) else None


def _list_of(value: Any) -> Sequence[Any]:
    if DeltaSnapshot is not None and isinstance(value, DeltaSnapshot):
        value = value.value
    return value if isinstance(value, list) else ()


def _messages(written: Any) -> Iterable[Any]:
    return written if isinstance(written, (list, tuple)) else [written]


def _put_writes(
    context: Context,
    config: RunnableConfig,
    head: CheckpointTuple,
    writes: Sequence[tuple[str, Any]],
) -> Steps[None]:
    """Store answers as writes of the checkpoint, from which its children rebuild channels."""
    address = inputs.address(config)
    task_id = str(uuid5(_TASK, head.checkpoint["id"]))
    origin, place = inputs.origin(config, address), inputs.place(address)
    new = NewWrites(
        config, address, origin, place, langgraph_rules.by_idx(writes), task_id, _LAST_PATH
    )
    yield from put_writes(context, capture_writes(context, new))


def _put(
    context: Context,
    config: RunnableConfig,
    head: CheckpointTuple,
    stored: Mapping[str, list[Any]],
    rebuilt: Iterable[str],
    next_version: NextVersion,
) -> Steps[None]:
    """Store a checkpoint on top, with the answers, from which nothing is to run."""
    versions = dict(head.checkpoint["channel_versions"])
    values, metadata = _answered_state(head, stored)
    planned = [channel for channel in values if langgraph_rules.starts_tasks(channel)]
    for channel in planned:
        del values[channel]
    changed = {
        channel: next_version(versions.get(channel), None)
        for channel in (*stored, *rebuilt, *planned)
    }
    checkpoint = {
        **head.checkpoint,
        "id": langgraph_rules.new_checkpoint_id(),
        "ts": datetime.now(timezone.utc).isoformat(),
        "channel_values": values,
        "channel_versions": {**versions, **changed},
        "updated_channels": sorted([*stored, *rebuilt]),
    }
    address = inputs.address(config)
    origin, encoded = inputs.origin(config, address), inputs.as_json(metadata, "metadata")
    new = NewCheckpoint(config, address, origin, checkpoint, encoded, None, changed)
    yield from put_checkpoint(context, capture_checkpoint(context, new))


def _answered_state(
    head: CheckpointTuple, stored: Mapping[str, list[Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the channel values and the metadata of a checkpoint with the answers."""
    metadata = langgraph_rules.update_metadata(head.metadata)
    metadata.pop("run_id", None)
    counters = langgraph_rules.delta_counters(metadata)
    values = dict(head.checkpoint["channel_values"])
    for channel, answers in stored.items():
        value = values[channel]
        values[channel] = [*_list_of(value), *answers]
        if not isinstance(value, list):
            values[channel] = DeltaSnapshot(values[channel])
            counters.pop(channel, None)
    return values, langgraph_rules.with_counters(metadata, counters)
