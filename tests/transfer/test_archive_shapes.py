"""Archived, purged and restored, on either backend, a thread of every shape is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import archive_threads, restore_threads
from graphs import MORE_SHAPES, SHAPES, THREAD, call
from servers import ReplicaSet
from stores import MongoStore, SqliteStore, Store
from transferring import outcome, plain

ALL_SHAPES = {**SHAPES, **MORE_SHAPES}
DIRECTIONS = ["sqlite to mongodb", "mongodb to sqlite"]
QUICK = {("interrupts", "sqlite to mongodb"), ("deltas", "mongodb to sqlite")}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in product(ALL_SHAPES, DIRECTIONS)
]


@pytest.fixture
def both(tmp_path: Path, mongo_server: ReplicaSet) -> Iterator[dict[str, Store]]:
    stores = {
        "sqlite": SqliteStore(tmp_path / "checkpoints.db"),
        "mongodb": MongoStore(mongo_server.uri, f"test-{uuid4().hex}"),
    }
    yield stores
    for store in stores.values():
        store.close()


def told(saver: ForkpointSaver, build: Any) -> dict[str, Any]:
    """Return all that is told of each thread: its record, lineage, checkpoints and states."""
    catalog, graph = ThreadCatalog(saver), build(saver)
    return {
        thread.thread_id: (
            thread,
            saver.lineage(thread.thread_id),
            sorted(saver.list(of(thread.thread_id)), key=lambda found: str(found.config)),
            list(graph.get_state_history(of(thread.thread_id))),
        )
        for thread in catalog.walk()
    }


def of(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


@pytest.mark.parametrize(("name", "direction"), CASES)
async def test_a_restored_thread_is_as_it_was_and_goes_on(
    name: str, direction: str, both: dict[str, Store], tmp_path: Path
) -> None:
    shape, path = ALL_SHAPES[name], tmp_path / "archive.jsonl.gz"
    source, target = (both[backend] for backend in direction.split(" to "))
    with source.saver() as saver, target.saver() as other:
        graph = shape.build(saver)
        for given in shape.inputs[:-1]:
            await call(graph, "sync", given, shape.options)
        catalog = ThreadCatalog(saver)
        catalog.update("thread", label="L", tags=["a", "b"], metadata={"n": 1})
        saver.fork("thread", new_thread_id="fork")
        saver.fork(saver.at("fork", 0).config, new_thread_id="fork of the fork", history="path")
        catalog.clone("thread", "clone")
        saver.trim("clone", 2)
        expected = told(saver, shape.build)

        assert archive_threads(saver, path).threads == 4
        report = restore_threads(other, path)

        assert report.is_complete
        assert report.threads == 4
        assert told(other, shape.build) == expected
        if name != "failing":  # whose node counts its attempts
            last = shape.inputs[-1], shape.options
            outputs = [await outcome(shape.build(each), *last) for each in (saver, other)]
            assert outputs[0] == outputs[1]
            states = [shape.build(each).get_state(THREAD) for each in (saver, other)]
            assert plain(states[0].values) == plain(states[1].values)
            assert states[0].next == states[1].next

        for thread_id in expected:
            saver.purge(thread_id)
        assert restore_threads(saver, path).is_complete
        assert told(saver, shape.build) == expected
        assert source.problems(saver) == []
        assert target.problems(other) == []
