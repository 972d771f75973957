"""A cancelled call has run entirely or not at all, and the next call works."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import checkpoint, config, put
from forkpoint.saver.saver import ForkpointSaver
from gates import Gate
from stores import SqliteStore, Store

MESSAGES = [HumanMessage("x" * 500, id=str(n)) for n in range(60)]


def fill(saver: ForkpointSaver) -> Any:
    first = put(saver, {"messages": MESSAGES[:50]}, metadata={"run_id": "one"})
    second = put(saver, {"messages": MESSAGES}, parent=first, metadata={"run_id": "two"})
    saver.put_writes(second, [("c", "x" * 5000)], "task")
    return second


async def listed(saver: ForkpointSaver) -> Any:
    return [found.metadata async for found in saver.alist(None)]


def seen(saver: ForkpointSaver) -> Any:
    """Return everything that the store holds, in a form that can be compared."""
    return [
        (found.config, found.checkpoint["channel_values"], found.pending_writes)
        for found in saver.list(None)
    ]


NEW = checkpoint({"messages": [*MESSAGES, HumanMessage("new", id="new")]})
OPERATIONS: dict[str, Callable[[ForkpointSaver, Any], Awaitable[Any]]] = {
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
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def saver(store: Store, gate: Gate) -> Iterator[ForkpointSaver]:
    with store.watched(gate.pass_through) as saver:
        yield saver


@pytest.mark.by_halves
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelling_at_every_statement_leaves_all_or_nothing(
    operation: str, every: int, saver: ForkpointSaver, store: Store, gate: Gate
) -> None:
    head = fill(saver)
    before = seen(saver)
    await OPERATIONS[operation](saver, head)
    after = seen(saver)

    for stop_at in itertools.count(0, every):
        for thread_id in ("thread", "copy", "next"):
            saver.delete_thread(thread_id)
        head = fill_again(saver, before)
        gate.close(stop_at)
        task = asyncio.ensure_future(OPERATIONS[operation](saver, head))
        if not await gate.is_reached(task):
            gate.open()
            break
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()  # a running operation is not torn: it is waited for
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert seen(saver) == after  # it had begun, so it has run entirely
        assert store.problems(saver) == []
        await saver.aput(config("next"), checkpoint({"n": 1}), {}, {"n": 1})
    assert task.exception() is None
    assert stop_at > 0 or operation == "asetup"


def fill_again(saver: ForkpointSaver, before: Any) -> Any:
    """Put the same checkpoints under the same ids."""
    parent = None
    for n, (stored, values, writes) in enumerate(reversed(before)):
        made = {**checkpoint(values), "id": stored["configurable"]["checkpoint_id"]}
        metadata: Any = {"run_id": ("one", "two")[n]}
        parent = saver.put(parent or config(), made, metadata, {"messages": 1})
        for task, channel, value in writes:
            saver.put_writes(parent, [(channel, value)], task)
    return parent


@pytest.mark.by_halves
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.in_turns
async def test_cancelling_while_an_operation_waits_its_turn_leaves_nothing(
    operation: str, saver: ForkpointSaver, store: Store, gate: Gate
) -> None:
    head = fill(saver)
    before = seen(saver)
    gate.close(0)
    workers = 4 if isinstance(store, SqliteStore) else 64
    busy = [asyncio.ensure_future(saver.aget_tuple(config())) for _ in range(workers + 2)]
    assert await gate.is_reached(busy[0])
    task = asyncio.ensure_future(OPERATIONS[operation](saver, head))
    await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    await asyncio.gather(*busy)

    assert seen(saver) == before
    assert store.problems(saver) == []


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.in_turns
async def test_cancelling_before_an_operation_starts_leaves_nothing(
    operation: str, saver: ForkpointSaver, store: Store
) -> None:
    head = fill(saver)
    before = seen(saver)
    task = asyncio.ensure_future(OPERATIONS[operation](saver, head))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert seen(saver) == before
    assert store.problems(saver) == []


@pytest.mark.parametrize("rounds", [60, pytest.param(300, marks=pytest.mark.slow)])
async def test_cancellations_at_random_times_break_nothing(
    rounds: int, saver: ForkpointSaver, store: Store
) -> None:
    rng = random.Random(1)
    rounds = store.times(rounds)
    cancelled = 0
    for round_ in range(rounds):
        head = saver.get_tuple(config())
        at = fill(saver) if head is None else head.config
        names = rng.choices(list(OPERATIONS), k=3)
        made = checkpoint({"messages": MESSAGES, "n": round_})
        tasks = [asyncio.ensure_future(OPERATIONS[name](saver, at)) for name in names]
        tasks.append(asyncio.ensure_future(saver.aput(at, made, {}, {"messages": 2})))
        pause = rng.choice([0, rng.random() * 0.004])  # without one, no call can have ended
        await asyncio.sleep(pause)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled += sum(isinstance(result, asyncio.CancelledError) for result in results)
        if round_ % 20 == 0:
            assert store.problems(saver) == []
            await saver.adelete_thread("copy")
    assert store.problems(saver) == []
    assert cancelled > 0


async def test_cancelling_twice_still_waits_for_what_is_running(
    saver: ForkpointSaver, store: Store, gate: Gate
) -> None:
    head = fill(saver)
    gate.close(0)
    task = asyncio.ensure_future(OPERATIONS["aput"](saver, head))
    assert await gate.is_reached(task)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(list(saver.list(None))) == 3
    assert store.problems(saver) == []
