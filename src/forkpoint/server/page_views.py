"""What pages show of states and histories: messages, trees, lines of a time line. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.catalog.threads import Thread
from forkpoint.langgraph_rules import ERROR, INTERRUPT
from forkpoint.outline import changed_channels, next_nodes
from forkpoint.pictures.text import short

TEXT_SHOWN = 20_000
"""How many characters of a text are shown."""
MESSAGES_SHOWN = 100
"""How many messages of a conversation are shown: the last ones, unless all are asked for."""
_NODES = 2_000
_CHILDREN = 200
_DEPTH = 12
_LANES = 6
_ROLES = {
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
    "AIMessageChunk": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "remove": "remove",
    "chat": "chat",
}


class Node(NamedTuple):
    """A part of a value, as a tree shows it."""

    name: str
    text: str
    """The value itself, or of a list or a mapping what it is."""
    children: Sequence[Node] = ()
    left_out: int = 0
    """How many parts are not shown."""


class Message(NamedTuple):
    """A message of a conversation."""

    role: str
    name: str
    text: str
    other: Sequence[Node]
    """Tool calls, and the parts of the content that are no text."""
    is_new: bool = False
    """Whether it is not in the state that it is compared with."""


class Conversation(NamedTuple):
    """A channel that is a list of messages."""

    channel: str
    messages: Sequence[Message]
    left_out: int
    """How many messages before these are not shown."""


class StateView(NamedTuple):
    """A state: what people say in it, and all else."""

    conversations: Sequence[Conversation]
    channels: Sequence[Node]


class Tree:
    """Makes trees of values, of a bounded size together."""

    def __init__(self) -> None:
        self._left = _NODES

    def node(self, name: str, value: Any, depth: int = 0) -> Node:
        """Return a tree of a value of JSON."""
        self._left -= 1
        if isinstance(value, Mapping):
            items = [(str(key), part) for key, part in value.items()]
            text = _told(value) or _counted(len(items), "entry", "entries")
            return self._branch(name, text, items, depth)
        if isinstance(value, list):
            items = [(str(index), part) for index, part in enumerate(value)]
            return self._branch(name, _counted(len(items), "element", "elements"), items, depth)
        return Node(name, _cut(value if isinstance(value, str) else json.dumps(value)))

    def _branch(self, name: str, text: str, items: Sequence[tuple[str, Any]], depth: int) -> Node:
        if not items:
            return Node(name, text)
        if depth >= _DEPTH:
            return Node(name, _cut(json.dumps(dict(items), ensure_ascii=False)))
        children = []
        for key, part in items[:_CHILDREN]:
            if self._left <= 0:
                break
            children.append(self.node(key, part, depth + 1))
        return Node(name, text, children, len(items) - len(children))


def state_view(values: Any, *, all_messages: bool = False, other: Any = None) -> StateView:
    """Return how a state is shown.

    Args:
        values: The state as JSON: its channels.
        all_messages: Whether conversations are shown from their beginnings.
        other: A state that this one is compared with: only the messages that it does not have are
            marked as new.
    """
    if not isinstance(values, Mapping):
        values = {"state": values} if values is not None else {}
    compared = other if isinstance(other, Mapping) else {}
    tree = Tree()
    conversations, channels = [], []
    for channel, value in values.items():
        if not is_conversation(value):
            channels.append(tree.node(channel, value))
            continue
        shown = value if all_messages else value[-MESSAGES_SHOWN:]
        known = compared.get(channel) if other is not None else value
        messages = [
            message_view(message, tree, is_new=not isinstance(known, list) or message not in known)
            for message in shown
        ]
        conversations.append(Conversation(channel, messages, len(value) - len(shown)))
    return StateView(conversations, channels)


def is_conversation(value: Any) -> bool:
    """Return whether a value of JSON is a list of messages."""
    return isinstance(value, list) and bool(value) and all(_role_of(each) for each in value)


def message_view(message: Mapping[str, Any], tree: Tree, *, is_new: bool = False) -> Message:
    """Return how a message is shown."""
    content = message.get("content")
    texts, other = [], []
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        text = part.get("text") if isinstance(part, Mapping) and "text" in part else part
        if isinstance(text, str):
            texts.append(text)
        elif part is not None:
            other.append(tree.node(f"part {number + 1}", part))
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        name = call.get("name") if isinstance(call, Mapping) else None
        shown = call.get("args") if isinstance(call, Mapping) else call
        other.append(tree.node(f"calls {name}", shown))
    name = message.get("name")
    return Message(
        _role_of(message) or "",
        name if isinstance(name, str) else "",
        _cut("\n".join(texts)),
        other,
        is_new,
    )


def told(value: Any) -> str:
    """Return a value in words: what a message says, a text itself, and all else as JSON."""
    said = _told(value) if isinstance(value, Mapping) else value
    if isinstance(said, str):
        return said
    return json.dumps(value, ensure_ascii=False, default=str)


def _told(value: Mapping[str, Any]) -> str | None:
    """Return what a message says, shortly; None of what is no message."""
    role, content = _role_of(value), value.get("content")
    return f"{role}: {short(content, 100)}" if role and isinstance(content, str) else None


def _role_of(value: Any) -> str | None:
    if not isinstance(value, Mapping) or "content" not in value:
        return None
    kind = value.get("type", value.get("role"))
    return _ROLES.get(kind) if isinstance(kind, str) else None


class TaskView(NamedTuple):
    """What is stored of a task of a checkpoint, without its values."""

    task_id: str
    outcome: str


class Row(NamedTuple):
    """A checkpoint on the time line."""

    checkpoint_id: str
    step: Any
    source: str
    created_at: str
    next: Sequence[str]
    changed: Sequence[str]
    tasks: Sequence[TaskView]
    parent_id: str | None
    lane: int
    """On which of the parallel lines it stands. Those of other branches stand beside the first."""
    is_branch: bool
    """Whether a branch that does not lead to the newest checkpoint ends here."""
    parent_follows: bool
    """Whether the next row is the checkpoint that it was made from."""
    forks: Sequence[Thread]


def timeline(
    checkpoints: Sequence[CheckpointTuple], forks: Iterable[Thread], *, is_newest: bool
) -> list[Row]:
    """Return the lines of a history, newest first.

    Args:
        checkpoints: A page of it, newest first. Their values need not be read.
        forks: Threads that were made from the thread.
        is_newest: Whether the page begins with the newest checkpoint.
    """
    made: dict[str | None, list[Thread]] = {}
    for thread in forks:
        made.setdefault(thread.source_checkpoint_id, []).append(thread)
    rows: list[Row] = []
    awaited: list[str | None] = []  # of each lane, the checkpoint that comes next on it
    for number, item in enumerate(checkpoints):
        id_, parent_id = _id_of(item.config), _id_of(item.parent_config)
        lane, is_tip = _lane(awaited, id_)
        awaited[lane] = parent_id
        following = checkpoints[number + 1] if number + 1 < len(checkpoints) else None
        rows.append(
            Row(
                checkpoint_id=id_ or "",
                step=item.metadata.get("step", "?"),
                source=str(item.metadata.get("source", "")),
                created_at=str(item.checkpoint.get("ts", "")),
                next=next_nodes(item),
                changed=changed_channels(item),
                tasks=_tasks(item),
                parent_id=parent_id,
                lane=min(lane, _LANES - 1),
                is_branch=is_tip and (number > 0 or not is_newest) and lane > 0,
                parent_follows=following is None or parent_id == _id_of(following.config),
                forks=made.get(id_, []),
            )
        )
    return rows


def _lane(awaited: list[str | None], checkpoint_id: str | None) -> tuple[int, bool]:
    """Return on which lane a checkpoint stands, and whether it is the first there."""
    lanes = [lane for lane, id_ in enumerate(awaited) if id_ == checkpoint_id]
    for lane in lanes[1:]:  # branches come together here
        awaited[lane] = None
    if lanes:
        return lanes[0], False
    free = next((lane for lane, id_ in enumerate(awaited) if lane and id_ is None), len(awaited))
    if free == len(awaited):
        awaited.append(None)
    return free, True


def _tasks(item: CheckpointTuple) -> list[TaskView]:
    kinds: dict[str, set[str]] = {}
    for task_id, channel, _ in item.pending_writes or ():
        kinds.setdefault(task_id, set()).add(channel)
    return [TaskView(task_id, _outcome(channels)) for task_id, channels in kinds.items()]


def _outcome(channels: set[str]) -> str:
    if ERROR in channels:
        return "failed"
    return "waits for an answer" if INTERRUPT in channels else "finished"


def outcomes_of(row: Row) -> Mapping[str, int]:
    """Return how many tasks of a checkpoint came to which outcome."""
    return Counter(task.outcome for task in row.tasks)


def _id_of(config: Mapping[str, Any] | None) -> str | None:
    return None if config is None else config["configurable"]["checkpoint_id"]


def moment(value: str) -> str:
    """Return a time as people read it, in UTC; what is none, as it is."""
    try:
        time = datetime.fromisoformat(value.replace("Z", "+00:00"))
        return f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return value


def _counted(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def _cut(text: str) -> str:
    if len(text) <= TEXT_SHOWN:
        return text
    return f"{text[:TEXT_SHOWN]}… ({len(text) - TEXT_SHOWN:,} characters more)"
