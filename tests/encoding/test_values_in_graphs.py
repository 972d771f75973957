"""Classes made within a function serve as the state of a graph as with LangGraph's own saver."""

# Without postponed annotations: those of local classes cannot be evaluated later.

import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Any, Optional

import pydantic
import pytest
from langgraph.checkpoint.sqlite import SqliteSaver as OfficialSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from checking import encrypted_serde
from forkpoint import SqliteSaver

THREAD: Any = {"configurable": {"thread_id": "t"}}


def run(saver: Any) -> list[Any]:
    """Return what a graph says whose state and classes are local to this function."""

    class Kind(enum.Enum):
        A = "a"

    @dataclasses.dataclass
    class Line:
        text: str

    class Item(pydantic.BaseModel):
        kind: Kind
        lines: list[Line] = []
        size: int = 0

        @pydantic.field_validator("size")
        @classmethod
        def grow(cls, size: int) -> int:
            return size if size > 9 else size + 10

    class State(pydantic.BaseModel):
        item: Item
        items: Annotated[list[Item], lambda old, new: old + new] = []
        best: Optional[Item] = None  # noqa: UP045
        answer: str = ""

    def first(state: State) -> Any:
        assert type(state.item) is Item
        return {"items": [state.item], "best": state.item}

    def ask(state: State) -> Any:
        assert type(state.items[0]) is Item
        assert type(state.best) is Item
        assert type(state.item.lines[0]) is Line
        assert state.item.kind is Kind.A
        return {"answer": interrupt({"item": state.item}), "items": [Item(kind=Kind.A)]}

    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_node("ask", ask)
    builder.add_edge(START, "first")
    builder.add_edge("first", "ask")
    graph = builder.compile(checkpointer=saver)
    item = Item(kind=Kind.A, lines=[Line("x")], size=3)
    outcomes = [
        graph.invoke({"item": item}, THREAD),
        graph.invoke(Command(resume="yes"), THREAD),
        graph.update_state(THREAD, {"items": [item]}) and graph.invoke(None, THREAD),
    ]
    return [plain(each) for each in outcomes]


def plain(value: Any) -> Any:
    """Return a value as mappings and texts, since each run has other classes."""
    if isinstance(value, pydantic.BaseModel):
        return plain(dict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value)) if hasattr(value, "__dict__") else plain(value.value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.value if isinstance(value, enum.Enum) else getattr(value, "value", value)


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_state_of_local_classes_is_as_with_the_official_saver(
    is_encrypted: bool, tmp_path: Path
) -> None:
    with OfficialSaver.from_conn_string(str(tmp_path / "official.db")) as official:
        expected = run(official)
    serde = encrypted_serde() if is_encrypted else None
    with SqliteSaver(tmp_path / "ours.db", serde=serde) as saver:
        assert run(saver) == expected
