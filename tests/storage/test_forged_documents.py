"""Whatever a field of a stored row or record is changed to: what is read is typed, or right."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pymongo.errors
import pytest

from checking import config, put, repeated
from forkpoint import ForkpointError, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from stores import MongoStore, Store

GONE = object()
"""The field is removed."""
FORGED: list[Any] = [GONE, None, 0, -1, 2**62, 1.5, "", "x", "\x00", b"", b"\xff" * 60, [], [1], {}]
FORGED += [{"a": 1}, [[]], True, "[" * 10_000]
REFUSED = (sqlite3.Error, pymongo.errors.WriteError)
"""What the database, or its client, does not let happen."""


def fill(saver: ForkpointSaver) -> None:
    ThreadCatalog(saver).create("a", label="label", tags=["tag"], metadata={"user": "u"})
    first = put(saver, {"list": ["text " * 50] * 40}, thread_id="a", metadata={"run_id": "run"})
    saver.put_writes(first, [("list", "write " * 300)], "task")
    put(saver, {"n": 2}, thread_id="a", parent=first)
    put(saver, {"n": 2}, thread_id="a", ns="sub:1")
    saver.copy_thread("a", "b")
    saver.fork("b", new_thread_id="c")


def calls(saver: ForkpointSaver) -> Iterator[Callable[[], Any]]:
    catalog = ThreadCatalog(saver)
    for thread_id in "abc":
        yield lambda thread_id=thread_id: saver.get_tuple(config(thread_id))
        yield lambda thread_id=thread_id: list(
            saver.list({"configurable": config(thread_id)["configurable"]})
        )
        yield lambda thread_id=thread_id: catalog.get(thread_id)
        yield lambda thread_id=thread_id: catalog.stats(thread_id)
        yield lambda thread_id=thread_id: saver.lineage(thread_id)
    yield lambda: saver.family("c")
    yield lambda: list(saver.list(None, filter={"user": "u"}))
    yield lambda: saver.at("a", 0)
    yield lambda: saver.latest({"run_id": "run"})
    yield catalog.search
    yield catalog.count
    yield lambda: saver.diff("a", "b")
    yield lambda: saver.copy_thread("b", "copy")
    yield lambda: saver.fork("a", new_thread_id="fork")
    yield lambda: put(saver, {"n": 3}, thread_id="b")
    yield lambda: saver.put_writes(
        config("c", "1f000000-0000-6000-8000-000000000001"), [("n", 1)], "t"
    )
    yield lambda: catalog.update("b", label="other")
    yield lambda: saver.delete_for_runs(["run"])
    yield lambda: saver.trim("b", 1)
    yield catalog.sweep
    yield lambda: catalog.get("a")


def forge(store: Store, kind: str, key: Any, field: str, value: Any) -> bool:
    """Change a field, and return whether that is possible."""
    try:
        if isinstance(store, MongoStore):
            change = {"$unset": {field: ""}} if value is GONE else {"$set": {field: value}}
            store.collection.update_one({"_id": key}, change)
        elif value is GONE:
            return False
        else:
            store.change(kind, key, **{field: value})
    except REFUSED:
        return False
    return True


@repeated(1, 60)
@pytest.mark.in_turns
@pytest.mark.parametrize("kind", ["threads", "checkpoints", "writes"])
def test_whatever_a_field_is_changed_to_the_error_is_typed(
    new_store: Callable[[], Store], kind: str, times: int
) -> None:
    rng = random.Random(f"{kind} {times}")
    for _ in range(times):
        store = new_store()
        with store.saver() as saver:
            fill(saver)
            rows = store.stored(kind)
            key = rng.choice(list(rows))
            field = rng.choice(list(rows[key]))
            value = rng.choice(FORGED)
        if not forge(store, kind, key, field, value):
            continue
        with store.saver() as saver:
            for number, call in enumerate(calls(saver)):
                try:
                    call()
                except ForkpointError:
                    pass
                except Exception as error:
                    raise AssertionError(
                        f"{kind}.{field} = {value!r:.40}, call {number}"
                    ) from error
