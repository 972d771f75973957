"""Values that have some of what messages have, and are none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy
import pytest
from langchain_core.messages import AIMessage

from checking import config, put
from forkpoint import SqliteSaver, ThreadCatalog


@dataclasses.dataclass
class Shy:
    number: int

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


@dataclasses.dataclass
class Vague:
    id: Any
    type: Any


class Loud(AIMessage):
    def __getattribute__(self, name: str) -> Any:
        if name == "content":
            raise RuntimeError
        return super().__getattribute__(name)


VALUES: dict[str, Any] = {
    "no calls": [{"type": "ai", "tool_calls": 5}],
    "calls without an id": [{"type": "ai", "tool_calls": [5, {"id": ["a"]}]}],
    "answer without an id": [{"type": "tool", "tool_call_id": ["a"]}],
    "object that raises": [Shy(1)],
    "single object that raises": Shy(1),
    "arrays": [Vague(numpy.arange(2), numpy.arange(2))],
    "message that raises": [Loud.model_construct(id="m")],
}


@pytest.mark.parametrize("name", VALUES)
def test_what_is_no_message_is_left_alone(name: str, tmp_path: Path) -> None:
    with SqliteSaver(tmp_path / "values.db", preview=["messages"]) as saver:
        head = put(saver, {"messages": VALUES[name]})
        saver.put_writes(head, [("messages", VALUES[name])], "task")
        with ThreadCatalog(saver).run("thread") as lease:
            assert lease.answer_tool_calls() == []
        assert saver.find_message("thread", "x") is None
        (thread,) = ThreadCatalog(saver).search()
        assert thread.thread_id == "thread"
        found = saver.get_tuple(config())
        assert found is not None
        assert type(found.checkpoint["channel_values"]["messages"]) is type(VALUES[name])
