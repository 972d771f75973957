"""State as JSON, as LangGraph's clients expect it: messages as mappings, times as text."""

from __future__ import annotations

import math
from typing import Any

from langgraph.types import Interrupt

from forkpoint.encoding.stored_object import StoredObject
from forkpoint.json_values import json_value


def as_json(value: Any) -> Any:
    """Return a value of a state as JSON can have it; see `forkpoint.json_values`.

    A number that is none is null, as the Platform has it, and half a character a question mark.
    """
    return json_value(value, _simplified)


def without_internals(streamed: Any) -> Any:
    """Return what is streamed of a checkpoint without what its configs have for the graph alone.

    Args:
        streamed: An event of the mode `checkpoints` or `debug`, as JSON.
    """
    data = streamed.get("payload", streamed)
    configs = [data.get("config"), data.get("parent_config")]
    configs += [task.get("state") for task in data.get("tasks") or ()]
    for config in configs:
        if isinstance(config, dict) and isinstance(given := config.get("configurable"), dict):
            kept = {name: value for name, value in given.items() if not name.startswith("__")}
            config["configurable"] = kept
    return streamed


def _simplified(value: Any) -> Any:
    if type(value) is str:
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, StoredObject) and not value:
        return value.value  # the name of an enum's member, say
    if isinstance(value, Interrupt):
        shown = {"value": value.value, "id": value.id}
        schema = getattr(value, "response_schema", None)  # since LangGraph 1.2
        return shown if schema is None else {**shown, "response_schema": schema}
    return value
