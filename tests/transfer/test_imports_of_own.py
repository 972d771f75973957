"""What is imported from a store of forkpoint's own has its record, too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checking import id_of, put
from forkpoint import (
    SqliteSaver,
    ThreadCatalog,
    ThreadExists,
    ThreadFilter,
)
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.transfer import (
    TransferProgress,
    aimport_threads,
    import_threads,
)
from graphs import SHAPES
from transferring import told


@pytest.fixture
def second(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(path) as saver:
        yield saver


def run(saver: Any, *thread_ids: str, shape: str = "loop", user: str = "u1") -> None:
    graph = SHAPES[shape].build(saver)
    for thread_id in thread_ids:
        named: Any = {"configurable": {"thread_id": thread_id, "user_id": user}}
        graph.invoke(SHAPES[shape].inputs[0], named)


@pytest.mark.in_turns
def test_records_and_lineage_come_along(saver: ForkpointSaver, second: SqliteSaver) -> None:
    run(saver.for_owner("alice"), "a")
    catalog = ThreadCatalog(saver)
    catalog.update("a", label="L", tags=["x"], metadata={"n": 1}, ttl=timedelta(days=1))
    saver.fork("a", new_thread_id="b")
    saver.fork("b", new_thread_id="c", values={"total": 5})
    catalog.create("empty", label="nothing yet")
    report = import_threads(catalog, second, kind="forkpoint", verify=True)
    assert report.is_complete
    assert report.threads == 4
    for thread in catalog.walk():
        assert ThreadCatalog(second).get(thread.thread_id) == thread
        assert second.lineage(thread.thread_id) == saver.lineage(thread.thread_id)
        assert told(second, thread.thread_id) == told(saver, thread.thread_id)
    mine = ThreadFilter(owner="alice", label="L")
    report = import_threads(saver, second, kind="forkpoint", threads=mine)
    assert (report.threads, report.unchanged) == (0, 1)
    run(saver, "a", user="u2")
    report = import_threads(saver, second, kind="forkpoint", verify=True)
    assert (report.threads, report.unchanged) == (1, 3)
    assert told(second, "a") == told(saver, "a")
    saver.trim("a", 1)
    run(saver, "a")
    before = len(told(second, "a"))
    report = import_threads(saver, second, kind="forkpoint")
    assert report.threads == 1
    assert len(told(second, "a")) == before + report.checkpoints  # what it had stays
    run(second, "a")
    run(saver, "a")
    report = import_threads(saver, second, kind="forkpoint")
    assert isinstance(report.failed["a"], ThreadExists)


@pytest.mark.in_turns
def test_all_kinds_of_catalogs_are_sources(saver: ForkpointSaver, second: SqliteSaver) -> None:
    run(saver.for_owner("alice"), "hers")
    run(saver, "nobody's")
    report = import_threads(saver.for_owner("alice"), second, kind="forkpoint")
    assert report.threads == 1
    bobs = ThreadCatalog(second, owner="bob")
    assert import_threads(saver, bobs, kind="forkpoint", threads=["nobody's"]).threads == 1
    owners = {thread.thread_id: thread.owner for thread in ThreadCatalog(second).walk()}
    assert owners == {"hers": "alice", "nobody's": "bob"}


def test_what_the_serializer_of_the_target_cannot_read_is_named(
    second: SqliteSaver, tmp_path: Path
) -> None:
    pickling = JsonPlusSerializer(pickle_fallback=True)
    with SqliteSaver(tmp_path / "pickling.db", serde=pickling) as source:
        made = put(source, {"n": threading.Event})
        put(source, {"n": 1}, parent=made)
        report = import_threads(source, second, kind="forkpoint", verify=True)
    (difference,) = report.differences
    assert difference.checkpoint_id == id_of(made)
    assert "pickle" in difference.what


async def test_an_async_import_shows_how_far_it_is(second: SqliteSaver) -> None:
    theirs = InMemorySaver()
    run(theirs, "a", "b")
    steps: list[TransferProgress] = []
    report = await aimport_threads(
        theirs, second, kind="saver", verify=True, on_progress=steps.append
    )
    assert report.is_complete
    assert {step.total for step in steps} == {2}
    assert steps[-1].threads == 2
    assert sum(step.is_verifying for step in steps) == report.verified == report.checkpoints
    cancelled = asyncio.create_task(
        aimport_threads(theirs, second, kind="saver", on_progress=lambda _: cancelled.cancel())
    )
    with pytest.raises(asyncio.CancelledError):
        await cancelled
