"""The workloads: each builds a graph, runs it on the savers in turns, and returns results."""

from __future__ import annotations

import asyncio
import operator
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypedDict, TypeVar, cast
from zlib import crc32

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.report import Curve, Result
from benchmarks.savers import MEMORY, Backend, Contender, Graph, Subject, opened

_Item = TypeVar("_Item")

MESSAGE_BYTES = 540
DOCUMENT_BYTES = 2048
BLOCK_TURNS = 10
"""How many turns a saver has before it is the next one's turn."""


@dataclass(frozen=True)
class Sizes:
    """How much each workload does."""

    chat_turns: int = 500
    edge_turns: int = 50
    fresh_repetitions: int = 12
    history_repetitions: int = 15
    history_limit: int = 20
    window_turns: int = 300
    window_messages: int = 100
    agent_turns: int = 60
    agent_files: int = 200
    delta_turns: int = 200
    growth_turns: int = 1500
    growth_early_turn: int = 1000
    growth_span: int = 200
    throughput_repetitions: int = 9
    throughput_turns: int = 200
    throughput_threads: int = 50
    throughput_thread_turns: int = 10
    overhead_repetitions: int = 7
    overhead_messages: tuple[int, ...] = (2, 20, 200, 1000)
    overhead_calls: int = 200
    overhead_threads: int = 50
    overhead_turns: int = 100


DEFAULT = Sizes()
FULL = Sizes(growth_turns=4000)
QUICK = Sizes(
    chat_turns=4,
    edge_turns=2,
    fresh_repetitions=1,
    history_repetitions=1,
    history_limit=8,
    window_turns=4,
    window_messages=6,
    agent_turns=2,
    agent_files=20,
    delta_turns=2,
    growth_turns=8,
    growth_early_turn=4,
    growth_span=2,
    throughput_repetitions=1,
    throughput_turns=2,
    throughput_threads=2,
    throughput_thread_turns=2,
    overhead_repetitions=1,
    overhead_messages=(2,),
    overhead_calls=5,
    overhead_threads=2,
    overhead_turns=2,
)


# Text

_VOCABULARY = """
a about account after again agree all already also amount an and answer any appear apply are area
as ask at available back base be because become before begin better between bill board book both
bring budget build but by call can case cause change charge check choose city clear close code
come common compare complete condition confirm consider contain continue contract copy cost could
country course cover create current customer data date day decide deliver depend describe design
detail develop different document does done down draft during each early edit effect email end
enough entire error even every example except expect explain fact far few field figure file final
find first follow for form former found from full further general get give go good great group
grow had half hand happen has have he help her here high him his hold hour house how however idea
if important in include increase inform instead interest into invoice is issue it item its job
just keep kind know large last late later lead learn least leave less let letter level like limit
line list little local long look lose low made main make manage many mark matter may me mean meet
member message method might minute month more most move much must my name near need never new
next no not note nothing notice now number of offer office often old on once one only open option
or order other our out over own page paper part pass past pay people per period person place plan
point policy position possible present price problem process produce program project provide
public purpose put quarter question quite rate rather reach read ready real reason receive record
reduce region remain remember report request require result return review right room rule run
same say schedule second section see seem send service set several shall she short should show
side since size small so some soon source space staff stage standard start state step still stop
such suggest supply support sure system table take team tell term test than that the their them
then there these they thing think this those though three through time to today together too
total toward train travel true try turn two type under until up update upon us use value version
very view visit wait want was way we week well were what when where whether which while who whole
why will with within without word work would write year yes yet you your
"""
_WORDS = _VOCABULARY.split()


def text(seed: str, size: int = MESSAGE_BYTES) -> str:
    """Return ordinary words of `size` bytes in all, always the same ones for a seed."""
    words = random.Random(crc32(seed.encode())).choices(_WORDS, k=size // 4 + 10)
    return " ".join(words)[: size - 1] + "."


def lines(seed: str, size: int = DOCUMENT_BYTES) -> str:
    """Return a text of `size` bytes in lines."""
    words = text(seed, size)
    return "\n".join(words[start : start + 79] for start in range(0, size, 80)).ljust(size)


# Running


@dataclass
class Bench:
    """What the workloads share: the savers, how much to do, and the chat that history rereads."""

    backend: Backend
    sizes: Sizes
    directory: Path
    curves: list[Curve] = field(default_factory=list)
    _chats: list[Thread] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def chats(self) -> list[Thread]:
        """Return the long chat of each saver, which the first call brings about."""
        if not self._chats:
            directory = self.directory / "chat"
            directory.mkdir()
            contenders = self.backend.contenders
            subjects = await self._stack.enter_async_context(opened(contenders, directory))
            self._chats = [Thread(subject, chat_graph(), chat_input) for subject in subjects]
            await interleave("chat", self._chats, self.sizes.chat_turns)
        return self._chats

    def opened(self, *contenders: Contender) -> AbstractAsyncContextManager[list[Subject]]:
        """Open contenders, by default all of them, on new databases."""
        return opened(contenders or self.backend.contenders, self.directory)


class Thread:
    """A thread of one saver as it grows: how long each turn took, and what is stored since.

    Args:
        subject: The saver.
        builder: The graph.
        given: Returns the input of a turn by its number, counted from 0.
    """

    def __init__(
        self, subject: Subject, builder: StateGraph[Any], given: Callable[[int], Any]
    ) -> None:
        self.subject = subject
        self.seconds: list[float] = []
        self.stored: dict[int, int | None] = {}
        self.config: RunnableConfig = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
        self._graph: Graph = builder.compile(checkpointer=subject.saver)
        self._given = given

    async def play(self, turns: int) -> None:
        """Go on until the thread has this many turns."""
        while len(self.seconds) < turns:
            given = self._given(len(self.seconds))
            self.seconds.append(await self.subject.turn(self._graph, self.config, given))
        self.stored[turns] = self.subject.opened.stored_bytes()

    def curve(self, span: int) -> Curve:
        """Return the thread over its length, the time as the median of `span` turns."""
        return Curve(
            self.subject.name,
            list(self.stored),
            list(self.stored.values()),
            [1000 * median(self.seconds[max(0, turn - span) : turn]) for turn in self.stored],
        )


async def interleave(description: str, threads: Sequence[Thread], turns: int) -> None:
    """Play threads to this length in small blocks by turns, in another order each round."""
    with progress(description, turns * len(threads)) as bar:
        for start in range(0, turns, BLOCK_TURNS):
            end = min(start + BLOCK_TURNS, turns)
            for thread in shuffled(threads):
                await thread.play(end)
                bar.update(end - start)


def progress(description: str, total: int) -> tqdm[Any]:
    return tqdm(total=total, desc=description, leave=False, unit="turn", disable=None)


_order = random.Random(0)


def shuffled(items: Sequence[_Item]) -> list[_Item]:
    """Return the items in another order each time, so that none profits from its place."""
    return _order.sample(items, len(items))


def tail_results(workload: str, threads: Sequence[Thread], span: int) -> list[Result]:
    """Return what threads store in the end, and how long their last turns took."""
    turns = len(threads[0].seconds)
    stored = {thread.subject.name: thread.stored[turns] for thread in threads}
    in_files = {thread.subject.name: thread.subject.opened.file_bytes() for thread in threads}
    milliseconds = {
        thread.subject.name: 1000 * median(thread.seconds[-span:]) for thread in threads
    }
    results = [
        Result(workload, f"stored after {turns} turns", "bytes", _known(stored)),
        Result(workload, f"time per turn, last {span} of {turns}", "ms", milliseconds),
    ]
    if found := _known(in_files):
        results.append(Result(workload, f"files and indexes after {turns} turns", "bytes", found))
    return results


def _known(sizes: Mapping[str, int | None]) -> dict[str, float]:
    return {name: size for name, size in sizes.items() if size is not None}


async def threads_results(
    bench: Bench,
    workload: str,
    builder: StateGraph[Any],
    given: Callable[[int], Any],
    turns: int,
) -> list[Result]:
    """Run a graph on all savers for so many turns."""
    async with bench.opened() as subjects:
        threads = [Thread(subject, builder, given) for subject in subjects]
        await interleave(workload, threads, turns)
        return tail_results(workload, threads, min(bench.sizes.edge_turns, turns // 2))


# Chat


class ChatState(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    document: str


def answer(state: Any) -> dict[str, Any]:
    return {"messages": [AIMessage(text(str(state["messages"][-1].content)))]}


def chat_graph() -> StateGraph[Any]:
    builder = StateGraph(ChatState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return cast("StateGraph[Any]", builder)


def chat_input(turn: int) -> dict[str, Any]:
    given: dict[str, Any] = {"messages": [HumanMessage(text(f"question {turn}"))]}
    if turn == 0:
        given["document"] = lines("document")
    return given


async def chat(bench: Bench) -> list[Result]:
    """Chat in one long thread, and in short new ones."""
    threads = await bench.chats()
    bench.curves += [thread.curve(bench.sizes.edge_turns // 2) for thread in threads]
    stored, last, *others = tail_results("chat", threads, bench.sizes.edge_turns)
    bars = bench.backend.bars
    return [
        stored.judged(bars.chat_stored),
        last.judged(bars.chat_time),
        *others,
        (await _fresh_chats(bench)).judged(bars.fresh_time),
    ]


async def _fresh_chats(bench: Bench) -> Result:
    turns, repetitions = bench.sizes.edge_turns, bench.sizes.fresh_repetitions
    seconds: dict[str, list[float]] = {one.name: [] for one in bench.backend.contenders}
    for repetition in range(repetitions):
        async with bench.opened() as subjects:
            threads = [Thread(subject, chat_graph(), chat_input) for subject in subjects]
            await interleave(f"new chat {repetition + 1} of {repetitions}", threads, turns)
            for thread in threads:
                seconds[thread.subject.name] += thread.seconds
    return Result(
        "chat",
        f"time per turn, first {turns}",
        "ms",
        {name: 1000 * median(taken) for name, taken in seconds.items()},
    )


async def history(bench: Bench) -> list[Result]:
    """Read the newest page of the history of the long chat."""
    threads, sizes = await bench.chats(), bench.sizes
    seconds: dict[str, list[float]] = {thread.subject.name: [] for thread in threads}
    with progress("history", sizes.history_repetitions * len(threads)) as bar:
        for _ in range(sizes.history_repetitions):
            for thread in shuffled(threads):
                taken = await thread.subject.page(thread.config, sizes.history_limit)
                seconds[thread.subject.name].append(taken)
                bar.update()
    result = Result(
        "history",
        f"list {sizes.history_limit} checkpoints at turn {sizes.chat_turns}",
        "ms",
        {name: 1000 * median(taken) for name, taken in seconds.items()},
    )
    return [result.judged(bench.backend.bars.history_time)]


async def growth(bench: Bench) -> list[Result]:
    """Chat on and on, to see whether a late turn stores more than an early one."""
    sizes = bench.sizes
    middle, span = sizes.growth_early_turn, sizes.growth_span
    early = (middle - span // 2, middle + span // 2)
    late = (sizes.growth_turns - span, sizes.growth_turns)
    async with bench.opened(bench.backend.ours_in_haste) as (subject,):
        thread = Thread(subject, chat_graph(), chat_input)
        with progress("growth", sizes.growth_turns) as bar:
            for turns in sorted({*range(0, late[1], BLOCK_TURNS), *early, *late}):
                await thread.play(turns)
                bar.update(turns - bar.n)
    added = [
        ((thread.stored[end] or 0) - (thread.stored[start] or 0)) / span
        for start, end in (early, late)
    ]
    name = subject.name
    return [
        Result(
            "growth", f"stored per turn, turns {early[0]}-{early[1]}", "bytes", {name: added[0]}
        ),
        Result("growth", f"stored per turn, turns {late[0]}-{late[1]}", "bytes", {name: added[1]}),
        Result("growth", "the latter / the former", "", {name: added[1] / added[0]}).judged(
            bench.backend.bars.growth
        ),
    ]


async def window(bench: Bench) -> list[Result]:
    """Chat with a sliding window: once it is full, the oldest messages go."""
    kept = bench.sizes.window_messages

    def trim(state: ChatState) -> dict[str, Any]:
        surplus = state["messages"][:-kept]
        return {"messages": [RemoveMessage(id=str(message.id)) for message in surplus]}

    builder = StateGraph(ChatState)
    builder.add_node("answer", answer)
    builder.add_node("trim", trim)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", "trim")
    builder.add_edge("trim", END)
    return await threads_results(bench, "window", builder, chat_input, bench.sizes.window_turns)


# Agent


class AgentState(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    files: Annotated[dict[str, str], operator.or_]


def scripted_model(state: AgentState) -> dict[str, Any]:
    last = state["messages"][-1]
    if isinstance(last, ToolMessage):
        return {"messages": [AIMessage(text(str(last.content)))]}
    number = crc32(str(last.content).encode())
    arguments = {"path": file_path(number % len(state["files"])), "line": text(str(number), 79)}
    call = {"name": "edit_file", "args": arguments, "id": f"call_{number}"}
    return {"messages": [AIMessage("", tool_calls=[call])]}


def edit_file(state: AgentState) -> dict[str, Any]:
    (call,) = cast("AIMessage", state["messages"][-1]).tool_calls
    path, line = call["args"]["path"], call["args"]["line"]
    first, *others = state["files"][path].split("\n")
    reply = f"Replaced the first line of {path}, which was: {first}"
    return {
        "messages": [ToolMessage(reply, tool_call_id=str(call["id"]))],
        "files": {path: "\n".join([line, *others])},
    }


def next_node(state: AgentState) -> str:
    return "tools" if cast("AIMessage", state["messages"][-1]).tool_calls else END


def file_path(number: int) -> str:
    return f"notes/chapter-{number:03}.md"


async def agent(bench: Bench) -> list[Result]:
    """Let an agent edit one of many files with a tool in each turn."""
    builder = StateGraph(AgentState)
    builder.add_node("model", scripted_model)
    builder.add_node("tools", edit_file)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", next_node, ["tools", END])
    builder.add_edge("tools", "model")

    def given(turn: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"messages": [HumanMessage(text(f"task {turn}"))]}
        if turn == 0:
            paths = map(file_path, range(bench.sizes.agent_files))
            asked["files"] = {path: lines(path) for path in paths}
        return asked

    return await threads_results(bench, "agent", builder, given, bench.sizes.agent_turns)


# Delta channel


def append(messages: list[AnyMessage], writes: Sequence[list[AnyMessage]]) -> list[AnyMessage]:
    return [*messages, *(message for write in writes for message in write)]


class DeltaState(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(append)]


async def delta(bench: Bench) -> list[Result]:
    """Chat with the messages in a `DeltaChannel`, which savers rebuild from writes."""
    builder = StateGraph(DeltaState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)

    def given(turn: int) -> dict[str, Any]:
        return {"messages": [HumanMessage(text(f"question {turn}"))]}

    return await threads_results(bench, "delta", builder, given, bench.sizes.delta_turns)


# Throughput


class CountState(TypedDict):
    count: int


def count_up(state: CountState) -> dict[str, int]:
    return {"count": state["count"] + 1}


async def count_up_async(state: CountState) -> dict[str, int]:
    return count_up(state)


async def throughput(bench: Bench) -> list[Result]:
    """Run small turns, one after another, and by `ainvoke` in many threads at once."""
    sizes, backend = bench.sizes, bench.backend
    asyncs = (backend.official_async, MEMORY._replace(is_async=True), backend.ours_async)
    alone: dict[str, list[float]] = {}
    together: dict[str, list[float]] = {}
    with progress("throughput", sizes.throughput_repetitions) as bar:
        for _ in range(sizes.throughput_repetitions):
            async with bench.opened(backend.official, backend.ours, *asyncs) as subjects:
                for subject in shuffled(subjects):
                    rate = await _turns_per_second(subject, 1, sizes.throughput_turns)
                    alone.setdefault(subject.name, []).append(rate)
                for subject in shuffled(subjects[2:]):
                    rate = await _turns_per_second(
                        subject, sizes.throughput_threads, sizes.throughput_thread_turns
                    )
                    together.setdefault(subject.name, []).append(rate)
            bar.update()
    rates = {name: median(found) for name, found in alone.items()}
    rates_together = {name: median(found) for name, found in together.items()}
    times = {name: 1000 / rate for name, rate in rates.items()}
    bars, many = backend.bars, f"{sizes.throughput_threads} threads at once"
    return [
        Result(
            "throughput", "1 thread", "turns/s", {name: rates[name] for name in together}
        ).judged(bars.alone_rate),
        Result("throughput", many, "turns/s", rates_together).judged(bars.together_rate),
        Result("throughput", "time per turn, 1 thread", "ms", times).judged(bars.alone_time),
    ]


async def _turns_per_second(subject: Subject, threads: int, turns: int) -> float:
    node: Any = count_up_async if subject.contender.is_async else count_up
    builder = StateGraph(CountState)
    builder.add_node("count_up", node)
    builder.add_edge(START, "count_up")
    builder.add_edge("count_up", END)
    graph: Graph = builder.compile(checkpointer=subject.saver)

    async def play(thread_id: str, turns: int) -> None:
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        for _ in range(turns):
            await subject.turn(graph, config, {"count": 0})

    await play("that makes the tables", 1)
    start = time.perf_counter()
    await asyncio.gather(*(play(f"{threads}-{number}", turns) for number in range(threads)))
    return threads * turns / (time.perf_counter() - start)
