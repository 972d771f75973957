"""A state as JSON: whatever it has, clients get JSON, and one form with the command line."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import numpy
import pytest
from langchain_core.messages import HumanMessage
from langgraph.types import Interrupt
from pydantic import BaseModel

from forkpoint import StoredObject
from forkpoint.cli.json_values import json_value
from forkpoint.results import NOT_READ
from forkpoint.server.as_json import as_json


class Colour(str, Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Place(NamedTuple):
    x: Any


@dataclass
class Held:
    place: Place


class Broken:
    def __str__(self) -> str:
        raise RuntimeError


class Unreadable(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise RuntimeError


class Ratio(float):
    pass


class Text(str):
    pass


class Number(int):
    pass


class Open(BaseModel, extra="allow"):
    n: int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({Colour.RED: Level.LOW, 1: None}, {"red": 1, "1": None}),
        (Held(Place({"x"})), {"place": {"x": ["x"]}}),
        (deque([b"\x01", Ratio(0.5)]), ["AQ==", 0.5]),
        ([ValueError("no"), Broken(), NOT_READ], ["ValueError: no", "<Broken>", None]),
        ([Text("x"), Number(5), timedelta(seconds=90)], ["x", 5, 90.0]),
        (range(10**12), "range(0, 1000000000000)"),
        ({"n": [1 << 20_000]}, {"n": [hex(1 << 20_000)]}),
        ([Unreadable(a=1)], ["{'a': 1}"]),
        ([numpy.int64(3), numpy.bool_(True), numpy.float32(0.5)], [3, True, 0.5]),
        ([numpy.arange(4).reshape(2, 2), numpy.array(["a"])], [[[0, 1], [2, 3]], ["a"]]),
        ([numpy.longdouble(1), numpy.datetime64("2024-01-01")], ["1.0", "2024-01-01"]),
        (Open(n=1, more={"x"}, copy=2), {"n": 1, "more": ["x"], "copy": 2}),  # type: ignore[call-arg]
    ],
)
def test_values_have_one_form(value: Any, expected: Any) -> None:
    assert as_json(value) == json_value(value) == expected


def test_clients_get_what_http_can_carry() -> None:
    assert as_json({"\ud800": float("inf")}) == {"?": None}
    assert as_json(Interrupt("sure?", id="i")) == {"value": "sure?", "id": "i"}
    assert as_json(HumanMessage("Hello"))["type"] == "human"
    assert as_json(StoredObject("shop.Colour", {}, "RED", 40, b"")) == "RED"


def test_what_is_very_deep_is_cut() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    assert "too deep" in json.dumps(as_json(value))
