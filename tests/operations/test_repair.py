"""A repair leaves a store clean, and all that could be read before as it was."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from checking import Api, config, encrypted_serde, put
from forkpoint import (
    CorruptChunk,
    InvalidInput,
    SafeSerializer,
    SqliteSaver,
    StorageError,
    ThreadCatalog,
)
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES
from stores import SqliteStore, Store

TEXTS = [f"text {n} " * 80 for n in range(60)]


def fill(saver: ForkpointSaver, thread_id: str) -> None:
    place: Any = None
    for n in range(4):
        texts = [*TEXTS[:20], *(f"{n}: {text}" for text in TEXTS[20:30])]
        place = put(saver, {"texts": texts, "n": n}, thread_id=thread_id, parent=place)
        saver.put_writes(place, [("c", [f"{n} {text}" for text in TEXTS[:9]])], "task")


def readable(saver: ForkpointSaver, places: list[Any]) -> dict[str, Any]:
    """Return what can be read of checkpoints, by their ids."""
    states = {}
    for place in places:
        try:
            item = saver.get_tuple(place)
        except CorruptChunk:
            continue
        if item is not None:
            configurable = item.config["configurable"]
            key = f"{configurable['thread_id']} {configurable['checkpoint_id']}"
            states[key] = (item.checkpoint, item.metadata, repr(item.pending_writes))
    return states


@pytest.mark.parametrize("kind", ["checkpoints", "writes", "chunks"])
@pytest.mark.parametrize(
    ("serde", "share"),
    [
        pytest.param(SafeSerializer, 0.2, id="plain"),
        pytest.param(encrypted_serde, 0.1, id="encrypted"),
        pytest.param(SafeSerializer, 1, id="plain-all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.in_turns
def test_what_could_be_read_is_as_it_was_and_the_rest_is_in_quarantine(
    kind: str, serde: Any, share: float, store: Store, tmp_path: Path
) -> None:
    rng = random.Random(1)
    file = tmp_path / "quarantine.jsonl"
    with store.saver(serde=serde()) as saver:
        fill(saver, "whole")
        fill(saver, "thread")
        saver.copy_thread("thread", "copy")
        places = [item.config for item in saver.list(None)]
        key = store.thread("thread").key
        rows = [row for row in store.rows(kind) if kind == "chunks" or row.thread == key]
        chosen = [row for row in rows if rng.random() < share] or rows[:1]
        for row in chosen[:6]:
            if rng.random() < 0.5:
                store.take(kind, row.key)
            else:
                content = row.content or b"x"
                store.change(kind, row.key, content=bytes([content[0] ^ 1]) + content[1:])

        before = readable(saver, places)
        would = saver.repair(quarantine=file, dry_run=True)
        assert would.check.problems
        assert not would.left
        assert not file.exists()
        assert saver.repair().left == would.check.problems  # no file is named

        report = saver.repair(quarantine=file)
        assert report.repaired == report.check.problems == would.repaired
        assert saver.check().problems == ()
        assert store.problems(saver) == []
        assert readable(saver, places) == before
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        removed = {(line["thread_id"], line["checkpoint_id"]) for line in lines}
        assert removed == {(p.thread_id, p.checkpoint_id) for p in report.repaired}
        assert all(line["reasons"] for line in lines)
        for thread_id in ("whole", "thread", "copy"):
            thread = ThreadCatalog(saver).get(thread_id)
            ids = [name for name in before if name.startswith(f"{thread_id} ")]
            assert (thread.checkpoint_count if thread else 0) == len(ids)


async def test_a_thread_with_deltas_goes_on_from_its_newest_readable_checkpoint(
    api: Api, store: Store, tmp_path: Path
) -> None:
    shape = SHAPES["deltas"]
    graph = shape.build(api.saver)
    at: Any = {"configurable": {"thread_id": "thread"}}
    for value in shape.inputs:
        graph.invoke(value, at, **shape.options)
    before = [item.config for item in api.saver.list(at)]
    newest = max(store.stored("checkpoints").items(), key=lambda item: item[1]["checkpoint_id"])
    store.take("checkpoints", newest[0])
    with pytest.raises(CorruptChunk):
        graph.get_state(at)

    report = await api.repair(quarantine=str(tmp_path / "quarantine.jsonl"))
    assert {problem.kind for problem in report.repaired} == {"checkpoint"}
    assert (await api.check()).is_clean
    assert graph.get_state(at).config == before[1]
    graph.invoke(shape.inputs[-1], at, **shape.options)


def test_a_count_and_the_index_are_made_anew(store: Store) -> None:
    with store.saver() as saver:
        fill(saver, "other")
        saver.copy_thread("other", "thread")
        store.change("threads", store.thread("thread").key, checkpoint_count=7)
        report = saver.repair()
        assert [problem.kind for problem in report.repaired] == ["count"]
        assert saver.check().is_clean
        thread = ThreadCatalog(saver).get("thread")
        assert thread is not None
        assert thread.checkpoint_count == 4


@pytest.mark.parametrize("new_store", ["sqlite"], indirect=True)
def test_a_thread_that_searches_have_lost_is_listed_again(new_store: Any) -> None:
    store = new_store()
    with store.saver() as saver:
        fill(saver, "thread")
        catalog = ThreadCatalog(saver)
        assert catalog.count() == 1
        with store.connection() as connection:
            connection.execute("DELETE FROM forkpoint_listing")
        assert [problem.kind for problem in saver.check().problems] == ["index"]
        assert [problem.kind for problem in saver.repair().repaired] == ["index"]
        assert saver.check().is_clean
        assert [thread.thread_id for thread in catalog.search()] == ["thread"]


def test_a_thread_that_is_deleted_meanwhile_is_not_repaired(store: Store) -> None:
    with store.saver() as saver:
        fill(saver, "thread")
        fill(saver, "other")
        store.change("threads", store.thread("thread").key, checkpoint_count=7)
        saver.repair(on_progress=lambda _: saver.delete_thread("thread"))
        assert saver.get_tuple(config("thread")) is None
        assert saver.check().is_clean
        assert store.problems(saver) == []


def test_a_record_that_says_what_nobody_said_stays(store: Store) -> None:
    with store.saver() as saver:
        fill(saver, "thread")
        store.change("threads", store.thread("thread").key, label="another")
        report = saver.repair()
        assert [problem.kind for problem in report.left] == ["record"]
        assert not report.repaired


def test_what_is_removed_is_not_written_to_a_database_or_another_file(
    store: Store, path: Path, tmp_path: Path
) -> None:
    other, compressed, text = (tmp_path / name for name in ("other.db", "a.jsonl.gz", "text"))
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE a (b)")
    compressed.write_bytes(gzip.compress(b'{"'))
    text.write_text("Dear diary")
    with SqliteSaver(path) as second, store.saver() as saver:
        put(second, {"a": 1})
        fill(saver, "thread")
        row = store.rows("checkpoints")[-1]
        store.change("checkpoints", row.key, content=b"x" + row.content[1:])
        own = [path, Path(f"{path}-wal")]
        if isinstance(store, SqliteStore):
            own += [store.path, Path(f"{store.path}-shm")]
        for place in (*own, other, compressed, text):
            before = place.read_bytes() if place not in own else None
            with pytest.raises(InvalidInput, match="quarantine"):
                saver.repair(quarantine=place)
            assert before is None or place.read_bytes() == before
        assert store.count("checkpoints") == 4


def test_a_line_that_was_not_finished_is_no_part_of_the_next(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    file.write_text('{"thread_id": "some')
    with store.saver() as saver:
        fill(saver, "thread")
        row = store.rows("checkpoints")[-1]
        store.change("checkpoints", row.key, content=b"x" + row.content[1:])
        assert len(saver.repair(quarantine=file).repaired) == 1
    _, line = file.read_text().splitlines()
    assert json.loads(line)["thread_id"] == "thread"


def test_nothing_is_removed_if_it_cannot_be_written_down(store: Store, tmp_path: Path) -> None:
    with store.saver() as saver:
        fill(saver, "thread")
        row = store.rows("checkpoints")[-1]
        store.change("checkpoints", row.key, content=b"x" + row.content[1:])
        with pytest.raises(StorageError, match="quarantine"):
            saver.repair(quarantine=tmp_path / "no such folder" / "file")
        assert store.count("checkpoints") == 4
        for bad in (1, "\0"):
            with pytest.raises(InvalidInput):
                saver.repair(quarantine=bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            saver.repair(dry_run=1)  # type: ignore[arg-type]
        assert len(saver.repair(quarantine=tmp_path / "file").repaired) == 1
        assert saver.check().is_clean
        assert store.count("checkpoints") == 3
