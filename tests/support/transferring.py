"""Threads to be moved, and what is told of them before and afterwards."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint

from checking import config, id_of, put
from forkpoint.saver.saver import ForkpointSaver
from graphs import call

NAMES = ["archive.jsonl", "archive.jsonl.gz", "archive.jsonl.zst"]
"""Archives, one of each compression."""


def plain(value: Any) -> Any:
    """Return a value without what differs in each run: the ids and the order of interrupts."""
    if isinstance(value, dict):
        parts = {key: plain(item) for key, item in value.items()}
        if "__interrupt__" in parts:
            parts["__interrupt__"] = sorted(parts["__interrupt__"])
        return parts
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, BaseException):
        return repr(value)  # LangGraph's own serializer makes a text of it
    return ("interrupt", value.value) if type(value).__name__ == "Interrupt" else value


async def outcome(graph: Any, *given: Any) -> Any:
    try:
        return plain(await call(graph, "sync", *given))
    except ValueError as error:  # such as of an agent whose tools were not answered
        return str(error).partition("During task")[0]


def numbers(versions: dict[str, Any]) -> dict[str, int]:
    """Return versions of channels as an import brings those of the official savers."""
    return {name: int(str(version)[:32]) for name, version in versions.items()}


def told(saver: Any, thread_id: str = "thread") -> list[Any]:
    """Return what a saver tells of each checkpoint of a thread, with the writes of each task."""
    found = []
    for each in saver.list({"configurable": {"thread_id": thread_id}}):
        writes: dict[str, list[Any]] = {}
        for task_id, channel, value in each.pending_writes:
            writes.setdefault(task_id, []).append((channel, plain(value)))
        seen = each.checkpoint["versions_seen"]
        checkpoint = {
            **plain(each.checkpoint),
            "channel_versions": numbers(each.checkpoint["channel_versions"]),
            "versions_seen": {node: numbers(versions) for node, versions in seen.items()},
        }
        found.append(
            (
                each.config["configurable"].get("checkpoint_ns", ""),
                id_of(each),
                each.parent_config and id_of(each.parent_config),
                checkpoint,
                plain(dict(each.metadata)),
                {task: sorted(of_task, key=repr) for task, of_task in writes.items()},
            )
        )
    return sorted(found, key=lambda one: one[:2])


def tuples(saver: ForkpointSaver, thread_id: str = "thread") -> list[Any]:
    return list(saver.list(config(thread_id)))


def messages(saver: ForkpointSaver, thread_id: str, number: int) -> None:
    parent: Any = None
    texts = [HumanMessage(f"{thread_id} {n} " * 100, id=str(n)) for n in range(number)]
    for count in range(1, number + 1):
        parent = put(saver, {"messages": texts[:count]}, parent=parent, thread_id=thread_id)
        saver.put_writes(parent, [("a", count), ("b", texts[count - 1])], f"t{count}", "~path, 1")


def checkpoint_in(saver: Any, thread_id: str = "thread", **values: Any) -> Any:
    """Store a checkpoint with another saver, and return where it is."""
    made: Any = {**empty_checkpoint(), "channel_values": values}
    made["channel_versions"] = dict.fromkeys(values, 1)
    return saver.put(config(thread_id), made, {"source": "input", "step": -1}, values)
