"""What an operation may cost, counted: hops, transactions, statements, rows, chunks."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from langchain_core.messages import HumanMessage

from checking import checkpoint, config, put
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.runtime.workers import Workers
from forkpoint.saver import parts_of
from forkpoint.sqlite.metadata import add_functions
from stores import SqliteStore


def message(n: int) -> HumanMessage:
    return HumanMessage(random.Random(n).randbytes(270).hex(), id=str(n))


@pytest.fixture
def store(path: Path) -> SqliteStore:
    return SqliteStore(path)


@pytest.fixture
def statements(saver: SqliteSaver) -> Iterator[list[str]]:
    saver.setup()
    seen: list[str] = []
    connection = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
    connection.set_trace_callback(seen.append)
    yield seen
    connection.set_trace_callback(None)


async def one_page(saver: SqliteSaver) -> None:
    async for _ in saver.alist(config(), limit=20):
        pass


CALLS: dict[str, Callable[[SqliteSaver, Any], Awaitable[Any]]] = {
    "aput": lambda saver, head: saver.aput(
        head, checkpoint({"messages": [message(n) for n in range(61)]}), {}, {"messages": 2}
    ),
    "aput of an unchanged value": lambda saver, head: saver.aput(
        head, checkpoint({"messages": None, "n": 1}, {"messages": 1, "n": 2}), {}, {"n": 2}
    ),
    "aput_writes": lambda saver, head: saver.aput_writes(
        head, [(f"c{n}", "x" * 2000) for n in range(5)], "other"
    ),
    "aget_tuple": lambda saver, _: saver.aget_tuple(config()),
    "alist": lambda saver, _: one_page(saver),
    "adelete_thread": lambda saver, _: saver.adelete_thread("thread"),
    "adelete_for_runs": lambda saver, _: saver.adelete_for_runs(["run"]),
    "acopy_thread": lambda saver, _: saver.acopy_thread("thread", "copy"),
    "aprune": lambda saver, _: saver.aprune(["thread"]),
    "aget_delta_channel_history": lambda saver, _: saver.aget_delta_channel_history(
        config=config(), channels=["c"]
    ),
}


def fill(saver: SqliteSaver) -> Any:
    parent = None
    for n in range(25):
        parent = put(
            saver,
            {"messages": [message(m) for m in range(36 + n)]},
            parent=parent,
            metadata={"run_id": "run"} if n == 3 else {},
        )
        saver.put_writes(parent, [("c", n)], "task")
    return parent


@pytest.mark.parametrize("call", CALLS)
async def test_an_async_operation_is_one_hop_and_one_transaction(
    call: str, saver: SqliteSaver, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = fill(saver)
    hops = []
    submit = Workers.submit

    def counted(self: Workers, job: Any) -> None:
        hops.append(job)
        submit(self, job)

    monkeypatch.setattr(Workers, "submit", counted)
    statements.clear()
    await CALLS[call](saver, head)

    assert len(hops) == 1
    assert sum(statement.startswith("BEGIN") for statement in statements) == 1
    assert sum(statement.startswith("COMMIT") for statement in statements) == 1


async def test_an_operation_on_an_aiosqlite_connection_is_one_hop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aiosqlite.connect(path) as connection:
        saver = SqliteSaver(connection)
        await saver.asetup()
        hops = []
        execute = aiosqlite.Connection._execute

        async def counted(self: aiosqlite.Connection, *args: Any, **kwargs: Any) -> Any:
            hops.append(args)
            return await execute(self, *args, **kwargs)  # type: ignore[no-untyped-call]

        monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
        await saver.aput(config(), checkpoint({"n": 1}), {}, {"n": 1})
        assert len(hops) == 1
        await saver.aget_tuple(config())
        assert len(hops) == 2


def test_a_small_state_is_put_in_six_statements(saver: SqliteSaver, statements: list[str]) -> None:
    """Begin, whether the tables are as they were, the record, the checkpoint, its receipt, commit.

    No chunk is written, and no row is read.
    """
    first = saver.put(config(), checkpoint({"n": 1}), {}, {"n": 1})
    statements.clear()
    second = saver.put(first, checkpoint({"n": 2, "m": 1}), {}, {"n": 2})
    assert len(statements) == 6

    statements.clear()
    saver.put_writes(second, [("c", 1)], "task")
    assert len(statements) == 5


def test_one_more_message_writes_as_many_chunks_to_a_long_list_as_to_a_short_one(
    saver: SqliteSaver, statements: list[str]
) -> None:
    def written(length: int) -> int:
        thread_id = f"thread-{length}"
        head = put(saver, {"messages": [message(n) for n in range(length)]}, thread_id=thread_id)
        counts = []
        for more in range(1, 13):
            statements.clear()
            values = {"messages": [message(n) for n in range(length + more)]}
            head = put(saver, values, parent=head, thread_id=thread_id)
            counts.append(sum("INTO forkpoint_chunks" in statement for statement in statements))
        return sum(counts)

    assert written(3000) <= written(300) + 12  # a level of nodes more, at most


def test_stored_bytes_grow_by_the_same_amount_at_the_end_as_at_the_start(path: Path) -> None:
    messages = [message(n) for n in range(3000)]

    def growth(length: int, saver: SqliteSaver, connection: sqlite3.Connection) -> int:
        """Return the growth of several threads: where a list is cut is random in each of them."""
        heads = {
            f"{length}-{n}": put(
                saver, {"messages": messages[: length - 20]}, thread_id=f"{length}-{n}"
            )
            for n in range(5)
        }
        before = stored_bytes(connection)
        for thread_id, head in heads.items():
            for count in range(length - 19, length + 1):
                values = {"messages": messages[:count]}
                head = put(saver, values, parent=head, thread_id=thread_id)
        return stored_bytes(connection) - before

    with SqliteSaver(path, durability="normal") as saver:
        saver.setup()
        connection = sqlite3.connect(path)
        start, end = growth(1000, saver, connection), growth(3000, saver, connection)
        connection.close()
    assert end <= 1.7 * start


def stored_bytes(connection: sqlite3.Connection) -> int:
    return sum(
        connection.execute(f"SELECT sum({columns}) FROM forkpoint_{table}").fetchone()[0] or 0
        for table, columns in (
            ("chunks", "length(refs) + length(content)"),
            ("checkpoints", "length(refs) + length(content)"),
        )
    )


@pytest.mark.parametrize("rows", [5, 20])
def test_a_page_takes_as_many_statements_whatever_its_length(
    saver: SqliteSaver, statements: list[str], rows: int
) -> None:
    fill(saver)
    statements.clear()
    assert len(list(saver.list(config(), limit=rows))) == rows
    assert len(statements) <= 8  # begin, thread, rows, writes, two or three levels, commit


def test_a_copy_writes_no_chunk(
    saver: SqliteSaver, store: SqliteStore, statements: list[str]
) -> None:
    fill(saver)
    before = store.count("chunks")
    statements.clear()
    saver.copy_thread("thread", "copy")
    assert store.count("chunks") == before
    assert not any("forkpoint_chunks" in statement for statement in statements)


QUERIES = {
    "the newest checkpoint": (
        lambda saver: saver.get_tuple(config()),
        "forkpoint_checkpoints_place",
    ),
    "a page of a thread": (
        lambda saver: list(saver.list(config(), limit=5)),
        "forkpoint_checkpoints_place",
    ),
    "a page of all threads": (
        lambda saver: list(saver.list(None, limit=5)),
        "forkpoint_checkpoints_order",
    ),
    "chunks": (lambda saver: saver.get_tuple(config()), "forkpoint_chunks_digest"),
    "writes": (lambda saver: saver.get_tuple(config()), "forkpoint_writes_place"),
    "writes of a page": (lambda saver: list(saver.list(None, limit=5)), "forkpoint_writes_place"),
    "checkpoints of runs": (
        lambda saver: saver.delete_for_runs(["run"]),
        "forkpoint_checkpoints_run",
    ),
}


def instructions(saver: SqliteSaver, call: Callable[[], Any]) -> int:
    """Return how many instructions of SQLite's machine a call takes."""
    connection = parts_of(saver).context.storage._connection  # type: ignore[attr-defined]
    number = 0

    def count() -> None:
        nonlocal number
        number += 1

    connection.set_progress_handler(count, 1)
    call()
    connection.set_progress_handler(None, 1)
    return number


def test_a_checkpoint_that_is_not_there_is_looked_for_in_one_place(saver: SqliteSaver) -> None:
    head = put(saver, {"n": 1})

    def look() -> None:
        assert saver.get_tuple(config(checkpoint_id="no checkpoint")) is None

    look()
    before = instructions(saver, look)
    saver.put_writes(head, [(f"c{n}", n) for n in range(300)], "task")
    assert instructions(saver, look) == before


def test_a_page_of_a_thread_with_its_subgraphs_costs_the_same_however_many_there_are(
    saver: SqliteSaver,
) -> None:
    put(saver, {"n": 1})

    def put_subgraphs(numbers: range) -> None:
        for n in numbers:
            at: Any = {"configurable": {"thread_id": "thread", "checkpoint_ns": f"sub:{n:05}"}}
            put(saver, {"n": n}, parent=at)

    def page() -> None:
        everywhere: Any = {"configurable": {"thread_id": "thread"}}
        assert len(list(saver.list(everywhere, limit=2))) == 2

    put_subgraphs(range(20))
    before = instructions(saver, page)
    put_subgraphs(range(20, 120))
    assert instructions(saver, page) < 1.2 * before


def test_a_fork_does_not_look_at_old_calls_of_subgraphs(saver: SqliteSaver) -> None:
    def put_in(ns: str, n: int) -> Any:
        at: Any = {"configurable": {"thread_id": "thread", "checkpoint_ns": ns}}
        return put(saver, {"n": n}, parent=at)

    def put_calls(numbers: range) -> None:
        for n in numbers:
            put_in(f"state|sub:{n:05}", n)
            put_in("state", n)
            put_in(f"sub:{n:05}", n)
            put_in(f"waiting|sub:{n:05}", n)
            saver.put_writes(put_in("waiting", n), [("__interrupt__", n)], "task")
            put(saver, {"n": n})

    put_calls(range(20))
    before = instructions(saver, lambda: saver.fork("thread"))
    put_calls(range(20, 120))
    assert instructions(saver, lambda: saver.fork("thread")) < 1.2 * before
    put_in("waiting", 0)
    for n in range(100):  # since what keeps its state has ended
        put_in(f"sub:{n}", n)
        put(saver, {"n": n})
    assert instructions(saver, lambda: saver.fork("thread")) < 1.2 * before


def test_a_deletion_does_not_look_at_what_snapshots_see_of_other_threads(
    saver: SqliteSaver,
) -> None:
    catalog = ThreadCatalog(saver)
    storage = parts_of(saver).context.storage

    def change(number: int) -> None:
        for n in range(number):
            catalog.get_or_create(f"thread-{n}", tags=["a", "b"])
        with storage.writing() as session:
            session.search.begin_snapshot()
        for n in range(number):
            catalog.update(f"thread-{n}", label="new")

    def delete() -> None:
        catalog.create("goes")
        catalog.delete("goes")

    change(5)
    delete()
    before = instructions(saver, delete)
    change(100)
    assert instructions(saver, delete) < 1.2 * before


@pytest.mark.parametrize("query", QUERIES)
def test_queries_are_answered_from_an_index(
    query: str, saver: SqliteSaver, path: Path, statements: list[str]
) -> None:
    fill(saver)
    statements.clear()
    call, index = QUERIES[query]
    call(saver)

    connection = sqlite3.connect(path)
    connection.create_function("forkpoint_contains", 2, lambda *_: True)
    add_functions(connection)
    plans = [
        " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))
        for statement in statements
        if statement.startswith(("SELECT", "WITH"))
    ]
    connection.close()
    assert any(index in plan for plan in plans)
    assert not any(re.search(r"SCAN [tcw] (?!USING)|SCAN forkpoint_", plan) for plan in plans)
