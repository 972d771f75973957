"""What moving threads must stand: many of them, killed anywhere, in little memory."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.sqlite import SqliteSaver as OfficialSaver

from checking import config
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.archive.parts import CheckpointPart
from forkpoint.transfer import archive_threads, import_threads, restore_threads
from graphs import SHAPES
from officials import official
from processes import fork_server
from stores import Store

THREADS, CHECKPOINTS = 200, 50
"""How many threads of how many checkpoints each are moved."""
KILLS = 20


def message(number: int) -> Any:
    kind = HumanMessage if number % 2 else AIMessage
    return kind(f"message {number} " * 30, id=f"m-{number}")


def fill(saver: Any, threads: int, checkpoints: int) -> None:
    """Store threads as graphs do: a chat, with the writes of a task after each checkpoint."""
    for thread in range(threads):
        parent: Any = config(f"thread-{thread:04}")
        for step in range(checkpoints):
            made: Any = {**empty_checkpoint(), "id": str(uuid6())}
            values = {"messages": [message(n) for n in range(step + 1)], "n": step}
            made["channel_values"] = values
            made["channel_versions"] = dict.fromkeys(values, step + 1)
            metadata: Any = {"source": "loop", "step": step, "user_id": f"u{thread % 7}"}
            parent = saver.put(parent, made, metadata, made["channel_versions"])
            writes = [("messages", message(step + 1)), ("n", step + 1)]
            saver.put_writes(parent, writes, f"task-{step}", f"~__pregel_pull, {step}")
        saver.put_writes(parent, [("__interrupt__", ["go on?"])], "asking", "~__pregel_pull, ask")


def told(saver: Any, thread_id: str) -> list[Any]:
    found = [
        (
            each.config,
            each.parent_config,
            each.checkpoint,
            dict(each.metadata),
            sorted(each.pending_writes, key=lambda write: (write[0], write[1])),
        )
        for each in saver.list({"configurable": {"thread_id": thread_id}})
    ]
    return sorted(found, key=lambda one: str(one[0]))


def content_of(store: Store) -> Any:
    """Return all rows of a store, but for what is others in each: keys, salts, digests, times."""
    threads = {thread.key: thread.thread_id for thread in store.threads() if thread.is_live}
    return {
        kind: Counter(
            (threads.get(row.thread), len(row.links), row.content) for row in store.rows(kind)
        )
        for kind in ("checkpoints", "writes")
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["langgraph-sqlite", "langgraph-mongodb", "langgraph-postgres"])
def test_an_import_that_is_killed_again_and_again_is_as_one_that_was_not(
    kind: Any, store: Store, new_store: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rng = random.Random(kind)
    total = THREADS * CHECKPOINTS
    with official(kind, tmp_path, request.getfixturevalue) as (theirs, source):
        fill(theirs, THREADS, CHECKPOINTS)
        put = 0
        for point in sorted(rng.sample(range(total), KILLS)):
            ready = fork_server().Event()
            process = fork_server().Process(
                target=import_until, args=(store, source, kind, point - put, ready)
            )
            process.start()
            process.join(600)
            assert process.exitcode == -signal.SIGKILL
            store.await_end_of(process.pid)
            with store.saver() as saver:
                put = sum(thread.checkpoint_count for thread in ThreadCatalog(saver).walk())
            assert put >= point
        store.outlast()
        with store.saver() as saver:
            report = import_threads(source, saver, kind=kind, verify=True)
            assert report.is_complete
            assert report.checkpoints == total - put  # none twice
            assert report.verified == total
            for thread in range(THREADS):
                name = f"thread-{thread:04}"
                assert told(saver, name) == told(theirs, name)
            statuses = Counter(thread.status for thread in ThreadCatalog(saver).walk())
            assert statuses == {"interrupted": THREADS}
            assert store.problems(saver) == []
        whole = new_store()
        with whole.saver() as saver:
            assert import_threads(source, saver, kind=kind).checkpoints == total
        assert content_of(whole) == content_of(store)


def import_until(store: Store, source: str, kind: Any, checkpoints: int, ready: Any) -> None:
    """Import, and be killed after so many checkpoints, at some moment of the next one."""
    left = checkpoints
    with store.saver() as saver:
        writer_put = saver._context.storage.put

        def put(request: Any) -> Iterator[Any]:
            if request.row is not None:
                nonlocal left
                left -= 1
                if left < 0:
                    steps = writer_put(request)
                    if random.random() < 0.5:
                        next(steps)
                    os.kill(os.getpid(), signal.SIGKILL)
            return (yield from writer_put(request))

        saver._context.storage.put = put
        ready.set()
        import_threads(source, saver, kind=kind)


@pytest.mark.slow
def test_a_restore_that_is_killed_again_and_again_is_as_one_that_was_not(
    store: Store, new_store: Any, path: Path, tmp_path: Path
) -> None:
    archive, rng = tmp_path / "archive.jsonl.gz", random.Random(1)
    with SqliteSaver(path) as source:
        fill(source, 20, 20)
        archive_threads(source, archive)
        whole = new_store()
        with whole.saver() as saver:
            assert restore_threads(saver, archive).is_complete
        for _ in range(KILLS):
            process = fork_server().Process(
                target=restore_until, args=(store, str(archive), rng.randrange(5, 25))
            )
            process.start()
            process.join(600)
            store.await_end_of(process.pid)
        store.outlast()
        with store.saver() as saver:
            report = restore_threads(saver, archive)
            assert report.threads + len(report.failed) == 20  # those that are complete are taken
            for thread in ThreadCatalog(source).walk():
                assert ThreadCatalog(saver).get(thread.thread_id) == thread
                assert told(saver, thread.thread_id) == told(source, thread.thread_id)
            assert store.problems(saver) == []
        assert content_of(whole) == content_of(store)


def restore_until(store: Store, path: str, checkpoints: int) -> None:
    def count(progress: Any) -> None:
        nonlocal checkpoints
        checkpoints -= 1
        if checkpoints == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with store.saver() as saver:
        restore_threads(saver, path, on_progress=count)


@pytest.mark.slow
def test_a_long_chat_takes_a_fortieth_of_the_room(tmp_path: Path) -> None:
    turns = 500
    official_path, path = tmp_path / "official.db", tmp_path / "checkpoints.db"
    with OfficialSaver.from_conn_string(str(official_path)) as theirs:
        graph = SHAPES["chat"].build(theirs)
        for turn in range(turns):
            given: dict[str, Any] = {
                "messages": [HumanMessage(f"question {turn} " * 20, id=f"human-{turn}")]
            }
            if turn == 0:
                given["document"] = "text " * 400
            graph.invoke(given, config())
    before = official_path.stat().st_size
    with SqliteSaver(path) as saver:
        report = import_threads(official_path, saver, kind="langgraph-sqlite", verify=True)
        assert report.is_complete
        archive_threads(saver, tmp_path / "archive.jsonl")
        archive_threads(saver, tmp_path / "archive.jsonl.gz")
    after = path.stat().st_size
    sizes = {name.name: name.stat().st_size for name in tmp_path.glob("archive*")}
    print(f"{report.checkpoints} checkpoints: {before} bytes, and {after}; {before / after:.1f} x")
    print(f"archives: {sizes}")
    assert before >= 40 * after


@pytest.mark.parametrize("checkpoints", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_no_more_than_a_page_of_checkpoints_is_in_memory(checkpoints: int, tmp_path: Path) -> None:
    """Counted as objects, by what the garbage collector knows."""
    most: Counter[str] = Counter()

    def count(_: object) -> None:
        if rng.random() < 0.1:
            alive = Counter(type(each).__name__ for each in gc.get_objects()) - before
            for name in ("CheckpointPart", "StoredState", "CheckpointTuple", "CheckpointRow"):
                most[name] = max(most[name], alive[name])

    gc.collect()  # what tests before have left
    before = Counter(type(each).__name__ for each in gc.get_objects())
    rng = random.Random(1)
    with OfficialSaver.from_conn_string(str(tmp_path / "official.db")) as theirs:
        fill_small(theirs, checkpoints)
    with SqliteSaver(tmp_path / "a.db") as first, SqliteSaver(tmp_path / "b.db") as second:
        source = tmp_path / "official.db"
        import_threads(source, first, kind="langgraph-sqlite", verify=True, on_progress=count)
        import_threads(first, second, kind="forkpoint", verify=True, on_progress=count)
        second.purge("thread")
        archive_threads(first, tmp_path / "archive", on_progress=count)
        restore_threads(second, tmp_path / "archive", on_progress=count)
    assert CheckpointPart.__name__ in most
    assert most["CheckpointPart"] <= 4
    assert most["StoredState"] <= 4
    assert most["CheckpointRow"] < 5 * 20  # pages of two stores, and the next ones
    assert most["CheckpointTuple"] == 0


def fill_small(saver: Any, checkpoints: int) -> None:
    parent: Any = config()
    for step in range(checkpoints):
        made: Any = {**empty_checkpoint(), "id": str(uuid6())}
        made["channel_values"] = {"n": json.dumps(step)}
        made["channel_versions"] = {"n": step + 1}
        parent = saver.put(parent, made, {"source": "loop", "step": step}, {"n": step + 1})
