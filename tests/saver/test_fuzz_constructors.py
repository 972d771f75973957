"""Whatever is passed to a constructor, only a typed error or what it constructs comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pymongo
import pytest
from hypothesis import strategies as st

from checking import checkpoint, config, drawn
from forkpoint import ForkpointError, SqliteSaver, ThreadCatalog
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.saver.saver import ForkpointSaver
from hostile import ANYTHING, Named

NOWHERE = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1&connect=false"
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "SqliteSaver": SqliteSaver,
    "SqliteSaver.from_conn_string": SqliteSaver.from_conn_string,
    "MongoDBSaver": MongoDBSaver,
    "MongoDBSaver.from_conn_string": MongoDBSaver.from_conn_string,
    "ThreadCatalog": ThreadCatalog,
}
NEEDED: dict[str, Callable[[str], Any]] = {
    "client": lambda of: pymongo.MongoClient(NOWHERE),
    "conn_string": lambda of: NOWHERE if of.startswith("MongoDB") else ":memory:",
    "database": lambda of: ":memory:",
    "saver": lambda of: SqliteSaver(":memory:"),
}
"""What must be passed, by the name of the argument."""


class Place(NamedTuple):
    """An argument of a constructor."""

    of: str
    parameter: str

    def construct(self, value: Any) -> Any:
        """Call the constructor with a value there."""
        parameters = inspect.signature(CONSTRUCTORS[self.of]).parameters
        given = {name: make(self.of) for name, make in NEEDED.items() if name in parameters}
        if self.parameter == "client_options":
            return CONSTRUCTORS[self.of](**given, appname=value)
        return CONSTRUCTORS[self.of](**{**given, self.parameter: value})


PLACES = [
    Place(name, parameter)
    for name, construct in CONSTRUCTORS.items()
    for parameter in inspect.signature(construct).parameters
]


def used(saver: Any) -> None:
    """Use what was constructed, if it needs no server."""
    if isinstance(saver, SqliteSaver):
        stored = saver.put(config(), checkpoint({"n": 1}), {"k": 1}, {"n": 1})
        assert saver.get_tuple(stored) is not None
    if isinstance(saver, ForkpointSaver):
        saver.close()


def passed(place: Place, value: Any, directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(ForkpointError):
        patch.chdir(directory)
        used(place.construct(value))


@drawn(few=60, many=6_000, place=st.sampled_from(PLACES), value=ANYTHING)
def test_only_typed_errors_come_out_of_constructors(
    tmp_path: Path, place: Place, value: Named
) -> None:
    passed(place, value.value, tmp_path)
