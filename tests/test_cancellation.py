"""A cancelled call has run entirely or not at all, and the next call works."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from forkpoint import SqliteSaver
from support import checkpoint, config, problems, put

MESSAGES = [HumanMessage("x" * 500, id=str(n)) for n in range(60)]


def fill(saver: SqliteSaver) -> Any:
    first = put(saver, {"messages": MESSAGES[:50]}, metadata={"run_id": "one"})
    second = put(saver, {"messages": MESSAGES}, parent=first, metadata={"run_id": "two"})
    saver.put_writes(second, [("c", "x" * 5000)], "task")
    return second


async def listed(saver: SqliteSaver) -> Any:
    return [found.metadata async for found in saver.alist(None)]


def seen(saver: SqliteSaver) -> Any:
    """Return everything that the store holds, in a form that can be compared."""
    return [
        (found.config, found.checkpoint["channel_values"], found.pending_writes)
        for found in saver.list(None)
    ]


NEW = checkpoint({"messages": [*MESSAGES, HumanMessage("new", id="new")]})
OPERATIONS: dict[str, Callable[[SqliteSaver, Any], Awaitable[Any]]] = {
    "aput": lambda saver, head: saver.aput(head, NEW, {}, {"messages": 2}),
    "aput_writes": lambda saver, head: saver.aput_writes(
        head, [("c", "x" * 5000), ("d", 1)], "other"
    ),
    "aget_tuple": lambda saver, head: saver.aget_tuple(head),
    "alist": lambda saver, _: listed(saver),
    "aget_delta_channel_history": lambda saver, head: saver.aget_delta_channel_history(
        config=head, channels=["c"]
    ),
    "adelete_thread": lambda saver, _: saver.adelete_thread("thread"),
    "adelete_for_runs": lambda saver, _: saver.adelete_for_runs(["one"]),
    "acopy_thread": lambda saver, _: saver.acopy_thread("thread", "copy"),
    "aprune": lambda saver, _: saver.aprune(["thread"]),
    "aprune delete": lambda saver, _: saver.aprune(["thread"], strategy="delete"),
    "asetup": lambda saver, _: saver.asetup(),
}


@pytest.fixture
def gate(saver: SqliteSaver) -> Iterator[Gate]:
    """Stop the saver's connection before each SQL statement."""
    gate = Gate()
    saver.setup()
    connection = saver._context.storage._connection  # type: ignore[attr-defined]
    connection.set_trace_callback(gate.pass_through)
    yield gate
    gate.stop_at = -1
    gate.open.set()
    connection.set_trace_callback(None)


class Gate:
    """Lets statements pass, up to the one at which a test wants to cancel."""

    def __init__(self) -> None:
        self.stop_at = -1
        self.passed = 0
        self.reached = threading.Event()
        self.open = threading.Event()

    def arm(self, stop_at: int) -> None:
        self.stop_at, self.passed = stop_at, 0
        self.reached.clear()
        self.open.clear()

    def pass_through(self, _: str) -> None:
        self.passed += 1
        if self.passed - 1 == self.stop_at:
            self.reached.set()
            assert self.open.wait(30)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelling_at_every_statement_leaves_all_or_nothing(
    operation: str, saver: SqliteSaver, path: Path, gate: Gate
) -> None:
    head = fill(saver)
    before = seen(saver)
    gate.arm(10_000)
    await OPERATIONS[operation](saver, head)
    statements, after = gate.passed, seen(saver)
    for thread_id in ("thread", "copy"):
        saver.delete_thread(thread_id)

    for stop_at in range(statements):
        head = fill_again(saver, before)
        gate.arm(stop_at)
        task = asyncio.ensure_future(OPERATIONS[operation](saver, head))
        assert await asyncio.to_thread(gate.reached.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()  # a running operation is not torn: it is waited for
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.stop_at = -1

        assert seen(saver) == after  # it had begun, so it has run entirely
        assert problems(path, saver) == []
        await saver.aput(config("next"), checkpoint({"n": 1}), {}, {"n": 1})
        for thread_id in ("thread", "copy", "next"):
            saver.delete_thread(thread_id)


def fill_again(saver: SqliteSaver, before: Any) -> Any:
    """Put the same checkpoints under the same ids."""
    parent = None
    for n, (stored, values, writes) in enumerate(reversed(before)):
        made = {**checkpoint(values), "id": stored["configurable"]["checkpoint_id"]}
        metadata: Any = {"run_id": ("one", "two")[n]}
        parent = saver.put(parent or config(), made, metadata, {"messages": 1})
        for task, channel, value in writes:
            saver.put_writes(parent, [(channel, value)], task)
    return parent


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelling_while_an_operation_waits_its_turn_leaves_nothing(
    operation: str, saver: SqliteSaver, path: Path, gate: Gate
) -> None:
    head = fill(saver)
    before = seen(saver)
    gate.arm(0)
    busy = [asyncio.ensure_future(saver.aget_tuple(config())) for _ in range(8)]  # all workers
    assert await asyncio.to_thread(gate.reached.wait, 30)
    task = asyncio.ensure_future(OPERATIONS[operation](saver, head))
    await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    await asyncio.gather(*busy)

    assert seen(saver) == before
    assert problems(path, saver) == []


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelling_before_an_operation_starts_leaves_nothing(
    operation: str, saver: SqliteSaver, path: Path
) -> None:
    head = fill(saver)
    before = seen(saver)
    task = asyncio.ensure_future(OPERATIONS[operation](saver, head))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert seen(saver) == before
    assert problems(path, saver) == []


async def test_five_hundred_cancellations_at_random_times_break_nothing(
    saver: SqliteSaver, path: Path
) -> None:
    rng = random.Random(1)
    cancelled = 0
    for round_ in range(500):
        head = saver.get_tuple(config())
        at = fill(saver) if head is None else head.config
        names = rng.choices(list(OPERATIONS), k=3)
        made = checkpoint({"messages": MESSAGES, "n": round_})
        tasks = [asyncio.ensure_future(OPERATIONS[name](saver, at)) for name in names]
        tasks.append(asyncio.ensure_future(saver.aput(at, made, {}, {"messages": 2})))
        await asyncio.sleep(rng.random() * 0.004)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled += sum(isinstance(result, asyncio.CancelledError) for result in results)
        if round_ % 20 == 0:
            assert problems(path, saver) == []
            await saver.adelete_thread("copy")
    assert problems(path, saver) == []
    assert cancelled > 100


async def test_cancelling_twice_still_waits_for_what_is_running(
    saver: SqliteSaver, path: Path, gate: Gate
) -> None:
    head = fill(saver)
    gate.arm(2)
    task = asyncio.ensure_future(OPERATIONS["aput"](saver, head))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(list(saver.list(None))) == 3
    assert problems(path, saver) == []
