"""The events of LangGraph's streaming protocol: what a graph streams, as clients expect it. Pure.

Its types are those of the package `langchain-protocol`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from langgraph.stream import StreamTransformer
from pydantic import Field

from forkpoint.server.as_json import as_json
from forkpoint.server.bodies import Body, Json

CHANNELS = frozenset(
    [
        "values",
        "updates",
        "messages",
        "tools",
        "lifecycle",
        "input",
        "checkpoints",
        "tasks",
        "custom",
    ]
)


class Event(NamedTuple):
    """An event, before it has a number."""

    method: str
    namespace: Sequence[str]
    data: Any
    node: str | None = None

    @property
    def channels(self) -> set[str]:
        """The channels that it is sent on."""
        if self.method == "input.requested":
            return {"input"}
        name = self.data.get("name") if self.method == "custom" else None
        return {self.method} if name is None else {self.method, f"custom:{name}"}

    @property
    def is_end(self) -> bool:
        """Whether it is the end of a run that does not wait for an answer."""
        ends = self.method == "lifecycle" and self.data["event"] in ("completed", "failed")
        return ends and not self.namespace

    def shown(self, run_id: str, number: int, milliseconds: int) -> Json:
        """Return it as it is sent."""
        params: Json = {
            "namespace": list(self.namespace),
            "timestamp": milliseconds,
            "data": self.data,
        }
        if self.node is not None:
            params["node"] = self.node
        return {
            "type": "event",
            "event_id": f"{run_id}:{number}",
            "seq": number,
            "method": self.method,
            "params": params,
        }


class EventRequest(Body):
    """Which events of a thread a client asks for."""

    channels: Annotated[list[str], Field(default_factory=list)]
    namespaces: list[list[str]] | None = None
    depth: Annotated[int, Field(ge=0)] | None = None
    since: Annotated[int, Field(ge=0)] | None = None

    @property
    def is_watch(self) -> bool:
        """Whether the client asks how runs begin, wait and end, and for nothing else."""
        return {*self.channels} <= {"lifecycle", "input"}

    def matches(self, event: Event) -> bool:
        """Return whether an event is asked for."""
        if event.channels.isdisjoint(self.channels):
            return False
        if not self.namespaces:
            return True
        return any(_is_below(event.namespace, part, self.depth) for part in self.namespaces)


def _is_below(namespace: Sequence[str], prefix: Sequence[str], depth: int | None) -> bool:
    """Return whether a namespace begins with a prefix. One without an id stands for any task."""
    below = len(namespace) - len(prefix)
    if below < 0 or (depth is not None and below > depth):
        return False
    pairs = zip(namespace, prefix, strict=False)
    return all(part in (given, given.partition(":")[0]) for given, part in pairs)


class AllModes(StreamTransformer):
    """Has a graph stream what clients may ask for, beside what LangGraph itself asks for."""

    required_stream_modes = ("updates", "custom", "checkpoints", "tools")

    def init(self) -> Json:
        return {}

    def process(self, _: Any) -> bool:
        return True


def events_of(streamed: Mapping[str, Any], asked: set[str]) -> Iterator[Event]:
    """Return what clients are sent of an event that a graph streams.

    Args:
        streamed: An event of `graph.astream_events(version="v3")`.
        asked: The ids of the interrupts that clients have been asked for an answer to, which
            grows: an interrupt is streamed at each level of a graph, and asked once.
    """
    method, params = streamed["method"], streamed["params"]
    namespace, data = list(params["namespace"]), params["data"]
    if method == "values":
        for interrupt in params.get("interrupts") or ():
            if interrupt.id not in asked:
                asked.add(interrupt.id)
                yield request_of(namespace, interrupt.id, as_json(interrupt.value))
        yield Event("values", namespace, as_json(data))
    elif method == "lifecycle":
        yield Event("lifecycle", list(data["namespace"]), as_json(data))
    elif method == "messages":
        part = data[0] if isinstance(data, tuple) else data
        if isinstance(part, Mapping):  # what is none is of the older protocol
            yield Event("messages", namespace, as_json(part))
    elif method == "updates":
        yield from _updates(namespace, data)
    elif method == "checkpoints":
        yield Event("checkpoints", namespace, _checkpoint(data))
    elif method == "custom":
        yield Event("custom", namespace, {"payload": as_json(data)})
    elif method.startswith("custom:"):
        name = method.partition(":")[2]
        yield Event("custom", namespace, {"name": name, "payload": as_json(data)})
    elif method == "tools":
        shown = as_json(data)
        node = shown.pop("__node", None)
        yield Event("tools", namespace, shown, node)


def request_of(namespace: Sequence[str], interrupt_id: str, value: Any) -> Event:
    """Return the event that asks for the answer to an interrupt."""
    # The protocol has a payload. The client in Python reads a value.
    data = {"interrupt_id": interrupt_id, "payload": value, "value": value}
    return Event("input.requested", namespace, data)


def _updates(namespace: Sequence[str], data: Mapping[str, Any]) -> Iterator[Event]:
    for node, values in data.items():
        if node != "__interrupt__":
            shown = as_json(values)
            update = shown if isinstance(shown, dict) else {"value": shown}
            yield Event("updates", namespace, {"node": node, "values": update}, node)


def _checkpoint(data: Mapping[str, Any]) -> Json:
    parent = (data.get("parent_config") or {}).get("configurable", {}).get("checkpoint_id")
    metadata = data.get("metadata") or {}
    shown: Json = {
        "id": data["config"]["configurable"]["checkpoint_id"],
        "step": metadata.get("step"),
        "source": metadata.get("source"),
    }
    return shown if parent is None else {**shown, "parent_id": parent}
