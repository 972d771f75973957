"""State types of an application, in a module that it has imported."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, NamedTuple

import pydantic
import pydantic.v1


@dataclasses.dataclass
class Order:
    name: str
    lines: list[Line]


@dataclasses.dataclass(frozen=True)
class Line:
    text: str
    amount: int


@dataclasses.dataclass
class Counted:
    name: str
    count: int = dataclasses.field(init=False, default=0)


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int


class Customer(pydantic.BaseModel):
    name: str
    tags: set[str] = set()
    parent: Customer | None = None


class Strict(pydantic.BaseModel):
    n: int = pydantic.Field(gt=0)


class Old(pydantic.v1.BaseModel):
    name: str


class Outer:
    class Inner(pydantic.BaseModel):
        n: int


class Plain:
    """No data class: it does something, and happens to have a `dict` method."""

    calls: list[Any] = []  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        Plain.calls.append(kwargs)

    def dict(self) -> dict[str, Any]:
        return {"n": 1}


def side_effect(*args: Any, **kwargs: Any) -> None:
    Plain.calls.append((args, kwargs))
