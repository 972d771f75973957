"""A full disk is a typed error; what was being written is gone, and the rest still works."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from forkpoint import SqliteSaver, StorageFull
from servers import wait_until
from stores import SqliteStore
from support import config, put

MESSAGES = [HumanMessage(f"{n} " * 200, id=str(n)) for n in range(80)]


def write(saver: SqliteSaver, parent: Any) -> None:
    put(saver, {"messages": MESSAGES, "text": "new " * 3000}, parent=parent)


def put_writes(saver: SqliteSaver, parent: Any) -> None:
    saver.put_writes(parent, [("c", MESSAGES), ("d", "x" * 900)], "late task")


def copy(saver: SqliteSaver, _: Any) -> None:
    for n in range(40):
        saver.copy_thread("thread", f"copy-{n}")


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", [write, put_writes, copy], ids=lambda one: one.__name__)
def test_at_every_page_count_a_write_that_does_not_fit_leaves_no_trace(
    tmp_path: Path, operation: Callable[[SqliteSaver, Any], None], every: int
) -> None:
    failures = 0
    for spare in range(0, 1000, every):
        path = tmp_path / f"{spare}.db"
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        saver = SqliteSaver(connection, durability="normal")
        first = put(saver, {"messages": MESSAGES[:20]})
        saver.put_writes(first, [("c", "y" * 3000)], "task")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + spare}")
        before = len(list(saver.list(None)))

        try:
            operation(saver, first)
        except StorageFull:
            failures += 1
            if operation is not copy:  # which is forty operations, of which some had room
                assert len(list(saver.list(None))) == before
                found = saver.get_tuple(config())
                assert found is not None
                assert found.checkpoint["channel_values"] == {"messages": MESSAGES[:20]}
                assert found.pending_writes == [("task", "c", "y" * 3000)]
            assert SqliteStore(path).problems(saver) == []
            saver.delete_thread("thread")
            assert saver.get_tuple(config()) is None
            assert SqliteStore(path).problems(saver) == []
            connection.close()
            path.unlink()
        else:
            assert SqliteStore(path).problems(saver) == []
            connection.close()
            break
    assert 0 < failures < 999


def test_one_write_of_a_group_that_does_not_fit_does_not_take_the_others_along(
    path: Path,
) -> None:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    saver = SqliteSaver(connection, durability="normal")
    names = ["large", *(f"small-{n}" for n in range(4))]
    for name in names:
        put(saver, {"n": 0}, thread_id=name)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 6}")
    errors: list[Exception] = []

    def attempt(name: str) -> None:
        try:
            put(saver, {"text": "x" * 200_000 if name == "large" else "x"}, thread_id=name)
        except StorageFull as error:
            errors.append(error)

    storage: Any = saver._context.storage
    threads = [threading.Thread(target=attempt, args=(name,)) for name in names]
    with storage._transactions._lock:  # until all of them wait for one commit
        for thread in threads:
            thread.start()
        wait_until(lambda: len(storage._commits._queue) == len(names), "all of them")
    for thread in threads:
        thread.join()

    assert len(errors) == 1
    stored = {
        found.config["configurable"]["thread_id"]
        for found in saver.list(None)
        if found.checkpoint["channel_values"] == {"text": "x"}
    }
    assert stored == set(names[1:])
    assert SqliteStore(path).problems(saver) == []
    connection.close()
