"""What a saver itself costs: the time of calls and of short chats above that of `InMemorySaver`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from benchmarks.report import Result
from benchmarks.savers import MEMORY, Graph, Saver, Subject
from benchmarks.workloads import Bench, chat_graph, chat_input, progress, shuffled, text

_MEMORY_ASYNC = MEMORY._replace(name=f"{MEMORY.name}, async", is_async=True)
_STEPS = 5
"""How many checkpoints follow each other, each with a message more."""


class Cost(NamedTuple):
    """What a call or a turn took, in milliseconds."""

    processor: float
    wall: float


Costs = dict[str, dict[str, list[Cost]]]
"""Those of each repetition, by what was done and by the name of the saver."""


async def overhead(bench: Bench) -> list[Result]:
    """Call savers as graphs do, with 2 to 1,000 messages, and run short chats."""
    sizes = bench.sizes
    costs: Costs = {}
    with progress("overhead", sizes.overhead_repetitions + 1) as bar:
        for repetition in range(sizes.overhead_repetitions + 1):
            async with bench.opened(*bench.backend.contenders, _MEMORY_ASYNC) as subjects:
                for subject in shuffled(subjects):
                    for what, cost in await _measured(bench, subject):
                        if repetition:  # the first one makes the tables, and fills caches
                            costs.setdefault(what, {}).setdefault(subject.name, []).append(cost)
            bar.update()
    return [
        _result(bench, what, kind, by_saver)
        for what, by_saver in costs.items()
        for kind in Cost._fields
    ]


def _result(bench: Bench, what: str, kind: str, by_saver: dict[str, list[Cost]]) -> Result:
    """Return the medians above those of `InMemorySaver`, whose own is given as it is."""
    medians = {
        name: median(getattr(cost, kind) for cost in taken) for name, taken in by_saver.items()
    }
    values = {MEMORY.name: medians.get(MEMORY.name, medians[_MEMORY_ASYNC.name])}
    for contender in bench.backend.contenders:
        memory = _MEMORY_ASYNC if contender.is_async else MEMORY
        if contender != MEMORY and contender.name in medians:
            values[contender.name] = max(medians[contender.name] - medians[memory.name], 0.001)
    bar = bench.backend.bars.overhead.get((what, kind))
    return Result("overhead", f"{what}, {kind} time above memory's", "ms", values, bar)


async def _measured(bench: Bench, subject: Subject) -> list[tuple[str, Cost]]:
    sizes = bench.sizes
    measured: list[tuple[str, Cost]] = []
    for messages in sizes.overhead_messages:
        calls = max(_STEPS, sizes.overhead_calls // (1 + messages // 20) // _STEPS * _STEPS)
        for name, cost in await _call_costs(subject, messages, calls):
            measured.append((f"{name}, {messages} messages", cost))
    for threads in (1, sizes.overhead_threads):
        if threads == 1 or subject.contender.is_async:
            cost = await _turn_cost(subject, threads, sizes.overhead_turns)
            measured.append((f"turn of a short chat, {threads} at once", cost))
    return measured


# Calls


async def _call_costs(subject: Subject, messages: int, calls: int) -> list[tuple[str, Cost]]:
    """Return what a call of each kind costs, of so many in as many short threads as that takes."""
    saver = _Calls(subject)
    chats = [_chat(messages) for _ in range(calls // _STEPS)]
    heads: list[RunnableConfig] = []

    async def put() -> None:
        for thread_id, checkpoints in chats:
            at = _config(thread_id)
            for step, checkpoint in enumerate(checkpoints):
                metadata: CheckpointMetadata = {"source": "loop", "step": step, "parents": {}}
                at = await saver.put(at, checkpoint, metadata, {"messages": step + 1})
            heads.append(at)

    written = [HumanMessage(text(f"write {number}")) for number in range(calls)]

    async def put_writes() -> None:
        for number, message in enumerate(written):
            at = heads[number % len(heads)]
            await saver.put_writes(at, [("messages", [message])], f"task {number}")

    async def get_tuple() -> None:
        for number in range(calls):
            await saver.get_tuple(_config(chats[number % len(chats)][0]))

    done = (put, get_tuple, put_writes)
    return [(one.__name__, await _cost(one, calls)) for one in done]


def _chat(messages: int) -> tuple[str, list[Checkpoint]]:
    """Return a new thread's id, and its checkpoints."""
    seed = uuid4().hex
    whole: list[AnyMessage] = [
        (AIMessage if number % 2 else HumanMessage)(text(f"{seed} {number}"), id=str(uuid4()))
        for number in range(messages + _STEPS)
    ]
    return seed, [_checkpoint(whole[: messages + step], step + 1) for step in range(_STEPS)]


def _checkpoint(messages: Sequence[AnyMessage], version: int) -> Checkpoint:
    return {
        **empty_checkpoint(),
        "id": str(uuid6()),
        "channel_values": {"messages": list(messages)},
        "channel_versions": {"messages": version},
    }


def _config(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


class _Calls:
    """The methods of a saver, or their async twins, to be awaited alike."""

    def __init__(self, subject: Subject) -> None:
        saver: Saver = subject.saver
        if subject.contender.is_async:
            self.put: Any = saver.aput
            self.put_writes: Any = saver.aput_writes
            self.get_tuple: Any = saver.aget_tuple
        else:
            self.put = _awaited(saver.put)
            self.put_writes = _awaited(saver.put_writes)
            self.get_tuple = _awaited(saver.get_tuple)


def _awaited(method: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any) -> Any:
        return method(*args)

    return call


# Turns


async def _turn_cost(subject: Subject, threads: int, turns: int) -> Cost:
    graph: Graph = chat_graph().compile(checkpointer=subject.saver)
    number = max(1, turns // threads)

    async def play() -> None:
        config = _config(uuid4().hex)
        for turn in range(number):
            await subject.turn(graph, config, chat_input(turn))

    async def play_all() -> None:
        await asyncio.gather(*(play() for _ in range(threads)))

    return await _cost(play_all, threads * number)


async def _cost(work: Callable[[], Awaitable[None]], times: int) -> Cost:
    """Return what one of so many costs, that are done by this work."""
    processor, wall = time.process_time(), time.perf_counter()
    await work()
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    return Cost(1000 * processor / times, 1000 * wall / times)
