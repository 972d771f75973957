"""A fork goes on exactly as its thread would, or as LangGraph's own time travel would.

Each graph is run in a thread. For each of its checkpoints there is then a full copy of the thread,
in which LangGraph goes on or travels, and there are forks. They are given the same, and must do the
same, in the same order. `test_graphs` shows that LangGraph does in a copy what it does elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import EmptyInputError, InvalidUpdateError
from langgraph.types import Command

from checking import Api, config, id_of
from forkpoint.saver.saver import ForkpointSaver
from graphs import MORE_SHAPES, RAN, SHAPES, Shape, error_text
from stateful_graphs import STATEFUL_SHAPES
from stores import Store

ALL_SHAPES = {**SHAPES, **MORE_SHAPES, **STATEFUL_SHAPES}
# LangGraph's `interrupt` needs Python 3.11 under asyncio.
WORLDS = ("sync", "async") if sys.version_info >= (3, 11) else ("sync",)
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, EmptyInputError)
"""What a graph raises where it fails on purpose, or where an input does not fit to its state."""


class Outcome(NamedTuple):
    """What there is to see after a call of a graph."""

    output: Any
    ran: Any = ()
    next: tuple[str, ...] = ()
    tasks: Any = ()
    values: Any = None
    has_failed: bool = False


class Thread:
    """A thread of a graph, as a test drives it."""

    def __init__(self, shape: Shape, saver: ForkpointSaver, world: str, thread_id: str) -> None:
        self.shape = shape
        self.graph = shape.build(saver)  # anew, so that what a node counts begins anew, too
        self.world = world
        self.thread_id = thread_id
        self.answer = "to {}"
        self.config: Any = {"configurable": {"thread_id": thread_id}}
        self._left: Any = None  # the state that the last call left

    async def state(self, at: Any = None) -> Any:
        """Return the state of the thread, or that of one of its checkpoints."""
        if self.world == "sync":
            return self.graph.get_state(at or self.config)
        return await self.graph.aget_state(at or self.config)

    async def call(self, given: Any, at: Any = None, **options: Any) -> Outcome:
        """Call the graph, at a checkpoint or where the thread is, and return what came of it."""
        RAN.clear()
        options = {**self.shape.options, **options}
        try:
            if self.world == "sync":
                output = self.graph.invoke(given, at or self.config, **options)
            else:
                output = await self.graph.ainvoke(given, at or self.config, **options)
        except FAILURES as error:
            output = error
        ran = list(ran_in_order())
        state = self._left = await self.state()
        has_failed = isinstance(output, Exception)
        return Outcome(
            repr(output) if has_failed else plain(output),
            ran,
            state.next,
            tasks_of(state),
            values_of(state),
            has_failed,
        )

    async def update(self, at: Any) -> Any:
        """Update the state at a checkpoint, and return the config that names the new one."""
        given = self.shape.inputs[0]
        if self.world == "sync":
            return self.graph.update_state(at, given)
        return await self.graph.aupdate_state(at, given)

    async def finish(self, *inputs: Any) -> list[Outcome]:
        """Answer and go on until there is nothing to do; then with each of these inputs again."""
        outcomes: list[Outcome] = []
        waiting = list(inputs)
        while len(outcomes) < 20:
            given = await self.wanted()
            if given is NOTHING:
                if not waiting:
                    return outcomes
                given = waiting.pop(0)
            outcomes.append(await self.call(given))
            if len(outcomes) > 1 and outcomes[-1].has_failed and outcomes[-2].has_failed:
                return outcomes  # it fails each time
        raise AssertionError("there is no end to it")

    async def wanted(self) -> Any:
        """Return what the graph waits for: answers, or to go on, or nothing."""
        state = self._left or await self.state()
        answers = {one.id: self.answer.format(one.value) for one in state.interrupts}
        if not answers:
            return None if state.next else NOTHING
        only = next(iter(answers.values()))
        return Command(resume=only if len(answers) == 1 else answers, **self.shape.said)


NOTHING = object()


def ran_in_order() -> Iterator[list[str]]:
    """Return the names of the nodes that ran, step by step: those of one step in any order."""
    for _, step in itertools.groupby(RAN, key=lambda ran: ran[0]):
        yield sorted(name for _, name in step)


def plain(value: Any) -> Any:
    """Return a value without what is random: ids that are made up, and the order of questions."""
    if isinstance(value, dict):
        asked = sorted(one.value for one in value.get("__interrupt__", ()))
        known = {key: plain(item) for key, item in value.items() if key != "__interrupt__"}
        return {**known, "asked": asked} if asked else known
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, BaseMessage) and (value.id is None or is_uuid(value.id)):
        return value.model_copy(update={"id": None})
    return value


def is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def values_of(state: Any) -> Any:
    """Return what a thread's state says, without what `invoke` adds to it.

    LangGraph adds the questions to the very dict that is the state of a functional workflow, and
    if it is stored thereafter, they are stored.
    """
    values = state.values
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key != "__interrupt__"}
    return plain(values)


def tasks_of(state: Any) -> list[Any]:
    return [
        (task.name, [one.value for one in task.interrupts], error_text(task.error))
        for task in state.tasks
    ]


class Lab:
    """A thread that was run, and copies and forks of it to be compared."""

    def __init__(self, name: str, store: Store, saver: ForkpointSaver, world: str) -> None:
        self.shape = ALL_SHAPES[name]
        self.store, self.saver, self.world = store, saver, world
        self.api = Api(saver, world)
        self.thread = self.named("thread")
        self._names = (f"thread {n}" for n in itertools.count())

    def named(self, thread_id: str) -> Thread:
        return Thread(self.shape, self.saver, self.world, thread_id)

    async def live(self, *, abandoning: bool = False, **options: Any) -> AsyncIterator[None]:
        """Run the graph in the thread, and pause after each call.

        Abandoning, go back after each input, in all the ways there are. That leaves branches, and
        checkpoints with more than one child.
        """
        for given in self.shape.inputs:
            if given is None or (isinstance(given, Command) and given.resume is not None):
                continue
            while given is not NOTHING:
                await self.thread.call(given, **options)
                yield
                given = await self.thread.wanted()
            for begin in BEGINNINGS if abandoning else ():
                ids = [id_of(found) for found in self.saver.history("thread")]
                await begin(self.thread, config("thread", ids[len(ids) // 2]))
                yield
                await self.thread.finish()
                yield

    async def copy(self) -> Thread:
        copy = self.named(next(self._names))
        await self.api.copy_thread("thread", copy.thread_id)
        return copy

    async def fork(self, source: Any) -> Thread:
        fork = self.named(next(self._names))
        assert await self.api.fork(source, new_thread_id=fork.thread_id) == fork.config
        return fork

    def source(self) -> Any:
        """Return everything that is stored for the thread, as it is stored."""
        thread = self.store.thread("thread")
        rows = {
            kind: sorted(row for row in self.store.rows(kind) if row.thread == thread.key)
            for kind in ("checkpoints", "writes")
        }
        found = self.saver.list(self.thread.config)
        return thread, rows, [(one.config, one.parent_config, one.metadata) for one in found]

    def subgraphs(self, thread: Thread, before: str | None = None) -> set[tuple[str, str]]:
        """Return the newest checkpoint of each subgraph that keeps its state, before an id."""
        bound = None if before is None else config(checkpoint_id=before)
        return {
            (namespace, id_of(one))
            for namespace in self._stateful_namespaces
            for one in self.saver.list(
                config(thread.thread_id, ns=namespace), before=bound, limit=1
            )
        }

    @functools.cached_property
    def _stateful_namespaces(self) -> set[str]:
        """The namespaces of subgraphs that keep their state, once the thread has been run."""
        found = self.saver.list(self.thread.config)
        namespaces = {one.config["configurable"]["checkpoint_ns"] for one in found}
        return {namespace for namespace in namespaces if namespace and ":" not in namespace}


# Ways to begin at a checkpoint. Where it is not the newest, each is a time travel.

Begin = Callable[[Thread, Any], Awaitable[Outcome]]


async def go_on(thread: Thread, at: Any) -> Outcome:
    return await thread.call(None, at)


async def give_input(thread: Thread, at: Any) -> Outcome:
    return await thread.call(thread.shape.inputs[0], at)


async def update(thread: Thread, at: Any) -> Outcome:
    if not isinstance(thread.shape.inputs[0], dict):
        return Outcome("is not updated")
    try:
        updated = await thread.update(at)
    except (InvalidUpdateError, *FAILURES) as error:
        return Outcome(repr(error))
    return await thread.call(None, None if at is thread.config else updated)


BEGINNINGS = (go_on, give_input, update)


def stores_at_end(lab: Lab) -> bool:
    """Return whether a call of the graph stores nothing before its end."""
    return lab.shape.options.get("durability") == "exit"


def bound_of(lab: Lab, begin: Begin, found: Any) -> str | None:
    """Return before which id LangGraph looks for the state of subgraphs; None for the newest.

    Going on, it does so as of the checkpoint. But a new input, or an update of a checkpoint that
    was made by a time travel, finds what was stored on branches that the checkpoint knows nothing
    of, because it was made later, or elsewhere. And going on in a call that stores nothing before
    its end finds what was stored before the parent, or the newest where there is none: see
    `test_a_time_travel_that_stores_at_its_end_misses_the_state_of_subgraphs`.
    """
    if begin is give_input:
        return None
    if begin is go_on and stores_at_end(lab):
        return id_of(found.parent_config) if found.parent_config else None
    is_made = begin is go_on and found.metadata.get("source") in ("update", "fork")
    return id_of(found.parent_config if is_made and found.parent_config else found)


def described(state: Any, *, live: bool = True) -> Any:
    """Return what a thread's state says; errors only where it is about the thread as it is."""
    ids = [task.id for task in state.tasks]
    tasks = [task if live else task[:2] for task in tasks_of(state)]
    return id_of(state), state.next, state.metadata, ids, tasks, values_of(state)


async def compare(lab: Lab, found: Any, begin: Begin, *, thoroughly: bool = True) -> None:
    """Compare a time travel to a checkpoint, and all that follows, with what forks of it do.

    Thoroughly, the graph is given an input at the end of it all.
    """
    inputs = [lab.shape.inputs[0]] if thoroughly else []
    copy = await lab.copy()
    there = config(copy.thread_id, id_of(found))
    expected = await copy.state(there)
    head = id_of(await copy.state())
    known = lab.subgraphs(copy, bound_of(lab, begin, found))
    newest = lab.subgraphs(copy)
    first = await begin(copy, there)
    # What LangGraph did not come to at once, it will find in a state that is not of this branch.
    left = lab.subgraphs(copy) & newest
    is_branch = id_of(await copy.state()) != head
    following = await copy.finish(*inputs) if is_branch else []
    fork = await lab.fork(found.config)
    where = (begin.__name__, found.metadata)
    assert described(await fork.state(), live=False) == described(expected, live=False), where
    own = lab.subgraphs(fork)
    if not known <= own or (stores_at_end(lab) and known < own):
        return  # LangGraph goes on with the state of subgraphs from another moment
    forked = await begin(fork, fork.config)
    if not is_branch:  # LangGraph had nothing to do, and made no checkpoint for it
        assert forked[:2] == first[:2], where
        return
    assert forked == first, where
    if left <= own:
        assert await fork.finish(*inputs) == following, where


async def compare_heads(lab: Lab, *, at_once: bool) -> None:
    """Compare going on in a copy of a thread with a fork of it.

    At once they are given what they wait for, and then an input; otherwise they are called first.
    """
    copy, fork = await lab.copy(), await lab.fork("thread")
    assert described(await fork.state()) == described(await copy.state())
    if at_once:
        inputs = [lab.shape.inputs[0]]
        assert await fork.finish(*inputs) == await copy.finish(*inputs)
    else:
        assert await fork.call(None) == await copy.call(None)
        assert await fork.finish() == await copy.finish()


async def kinds(lab: Lab) -> list[Any]:
    """Return the older checkpoints of the thread, but of those that are alike only one."""
    found: dict[Any, Any] = {}
    for one in older(lab):
        state = await lab.thread.state(one.config)
        found[one.metadata.get("source"), state.next, bool(state.interrupts)] = one
    return list(found.values())


def older(lab: Lab) -> list[Any]:
    """Return the checkpoints of the thread but the newest, oldest first."""
    return list(lab.saver.history("thread"))[:-1]


_STATEFUL_AT_END = ("stateful in a node, durability exit",)
SHAPE_NAMES = [
    name
    for name in ALL_SHAPES
    if not name.endswith("durability async")  # the default
    and ("durability" not in name or name not in STATEFUL_SHAPES or name in _STATEFUL_AT_END)
]
PLAIN_SHAPES = [name for name in SHAPE_NAMES if "durability" not in name]
ABANDONING = ("deltas", "snapshots", "deltas with questions", "deltas, durability exit")
STORED_AT_THE_END = [name for name in ALL_SHAPES if name.endswith("durability exit")]
TELLING_SHAPES = ("interrupts", "snapshots", "stateful in a loop", "deltas with questions")
"""Those in which the most can go wrong."""


def on_backends(
    shapes: Collection[str], on_mongodb: Collection[str], *, third: int | None = None
) -> Any:
    """Run a test with these shapes on each backend, in every run on MongoDB only with some.

    In every run, a shape goes on SQLite through one or two of the tests that each have a `third`:
    these differ in what they do with a fork, and not in what a shape does.

    A shape is called in one world on the one, and in the other on the other.
    """
    cases = []
    for number, (name, backend) in enumerate(itertools.product(shapes, ("sqlite", "mongodb"))):
        world = WORLDS[(number + number // 2) % len(WORLDS)]
        if backend == "mongodb":
            is_left_out = name not in on_mongodb
        else:
            is_left_out = third is not None and list(ALL_SHAPES).index(name) % 3 != third
        marks = pytest.mark.slow if is_left_out else ()
        id_ = f"{backend}-{name}-{world}"
        cases.append(pytest.param(backend, name, world, id=id_, marks=marks))
    return pytest.mark.parametrize(("new_store", "name", "world"), cases, indirect=["new_store"])


@on_backends(SHAPE_NAMES, TELLING_SHAPES[:1], third=0)
async def test_a_fork_of_the_head_goes_on_as_the_thread_would(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    """After each call of the graph."""
    lab = Lab(name, store, saver, world)
    at_once = True
    async for _ in lab.live():
        before = lab.source()
        await compare_heads(lab, at_once=at_once)
        assert lab.source() == before
        at_once = not at_once
    assert store.problems(saver) == []


@on_backends(SHAPE_NAMES, TELLING_SHAPES[1:3], third=1)
async def test_a_fork_of_an_older_checkpoint_goes_on_as_a_time_travel_would(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    lab = Lab(name, store, saver, world)
    async for _ in lab.live():
        pass
    before = lab.source()
    for found in await kinds(lab):
        await compare(lab, found, go_on, thoroughly=False)
    assert lab.source() == before
    assert store.problems(saver) == []


@on_backends(STORED_AT_THE_END, ["deltas, durability exit"], third=2)
async def test_a_fork_of_what_was_stored_at_the_end_of_a_call_goes_on_as_a_time_travel_would(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    """As a time travel that stores as it goes: one that does not may miss the state of subgraphs.

    The other tests make all calls of a thread in the same way.
    """
    lab = Lab(name, store, saver, world)
    async for _ in lab.live():
        pass
    lab.shape = dataclasses.replace(lab.shape, options={})
    before = lab.source()
    for found in older(lab):
        await compare(lab, found, go_on)
    assert lab.source() == before
    assert store.problems(saver) == []


@on_backends(ABANDONING, ["snapshots"], third=0)
async def test_a_fork_knows_nothing_of_branches_that_were_abandoned(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    lab = Lab(name, store, saver, world)
    async for _ in lab.live(abandoning=True):
        pass
    before = lab.source()
    for found in await kinds(lab):
        await compare(lab, found, go_on)
    assert lab.source() == before
    assert store.problems(saver) == []


@pytest.mark.slow
@pytest.mark.parametrize("abandoning", [False, True])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ALL_SHAPES)
async def test_forks_of_all_checkpoints_do_what_a_time_travel_does_in_all_ways(
    name: str, world: str, abandoning: bool, store: Store, saver: ForkpointSaver
) -> None:
    lab = Lab(name, store, saver, world)
    async for _ in lab.live(abandoning=abandoning):
        pass
    before = lab.source()
    for found in older(lab):
        for begin in BEGINNINGS:
            await compare(lab, found, begin)
    assert lab.source() == before
    assert store.problems(saver) == []


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ALL_SHAPES)
async def test_a_fork_of_the_head_goes_on_wherever_the_thread_was_stopped(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    """Before each node, and on branches."""
    lab = Lab(name, store, saver, world)
    async for _ in lab.live(abandoning=True, interrupt_before="*"):
        before = lab.source()
        for at_once in (False, True):
            await compare_heads(lab, at_once=at_once)
        assert lab.source() == before
    assert store.problems(saver) == []


# Other ways to the same


@on_backends(SHAPE_NAMES, TELLING_SHAPES[1:2], third=2)
async def test_a_fork_of_the_end_of_a_turn_knows_nothing_of_what_came_later(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    """It goes on as another thread does that had no more turns."""
    lab = Lab(name, store, saver, world)
    first = lab.shape.inputs[0]
    for thread in (lab.thread, lab.named("twin")):
        await thread.finish(first)
    end = (await lab.thread.state()).config
    await lab.thread.finish(first)

    fork = await lab.fork(end)
    assert await fork.finish(first) == await lab.named("twin").finish(first)


@on_backends(PLAIN_SHAPES, TELLING_SHAPES[:1], third=1)
async def test_an_old_question_is_answered_differently(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    """At once: the fork need not be called before, to ask again.

    But it must be the first question of its node: the others are asked again after that one.
    """
    lab = Lab(name, store, saver, world)
    async for _ in lab.live():
        pass
    for found in await kinds(lab):
        fork = await lab.fork(found.config)
        state = await fork.state()
        if not state.interrupts:
            continue
        copy = await lab.copy()
        asked = await copy.call(None, config(copy.thread_id, id_of(found)))
        if asked.tasks != tasks_of(state):
            continue
        for thread in (copy, fork):
            thread.answer = "otherwise to {}"
        expected = await copy.finish()
        answered = await fork.finish()
        assert "otherwise" in str(answered[-1].values)
        assert answered[-1][2:] == expected[-1][2:]


@on_backends(PLAIN_SHAPES, TELLING_SHAPES[3:], third=2)
async def test_a_thread_that_was_rolled_back_goes_on_as_a_fork(
    name: str, world: str, store: Store, saver: ForkpointSaver
) -> None:
    lab = Lab(name, store, saver, world)
    async for _ in lab.live():
        pass
    ids = [id_of(found) for found in saver.history("thread")]
    for found in await kinds(lab):
        copy, fork = await lab.copy(), await lab.fork(found.config)
        saver.rollback(copy.thread_id, len(ids) - 1 - ids.index(id_of(found)))
        assert described(await copy.state()) == described(await fork.state())
        went = [await copy.call(None), *await copy.finish(lab.shape.inputs[0])]
        assert [await fork.call(None), *await fork.finish(lab.shape.inputs[0])] == went
    assert store.problems(saver) == []


# What LangGraph does, whatever the saver


async def test_a_time_travel_that_stores_at_its_end_misses_the_state_of_subgraphs() -> None:
    """With `durability="exit"`, LangGraph looks for it before the parent of the checkpoint.

    It takes the checkpoint for the one with which a time travel begins, whose parent is the one
    traveled to; but that is not stored yet. Where there is no parent, it takes the newest state in
    the thread. A fork does not know how it will be called. It has the state from before the
    checkpoint, as any other time travel does.
    """
    saver: Any = InMemorySaver()
    thread = Thread(ALL_SHAPES["remembering, durability exit"], saver, "sync", "thread")
    await thread.call({"items": []}, interrupt_before=["inner"])
    first = (await thread.state()).config
    await thread.call(None, interrupt_before=["inner"])
    second = (await thread.state()).config

    async def runs(stop: Any, durability: str) -> int:
        """Travel to a stop, and return how many runs the subgraph then knows of, with its own."""
        went = await thread.call(None, stop, durability=durability, interrupt_before=["inner"])
        count: int = went.output["items"][-1][0]
        return count

    assert [await runs(stop, "sync") for stop in (first, second)] == [1, 2]
    assert [await runs(stop, "exit") for stop in (first, second)] == [3, 1]


async def test_a_time_travel_meets_the_state_of_subgraphs_from_after_it_and_a_fork_does_not(
    saver: ForkpointSaver, store: Store
) -> None:
    """Where the subgraph does not run at once: LangGraph takes its newest state in the thread."""
    in_memory: Any = InMemorySaver()
    shape = ALL_SHAPES["remembering"]

    async def turns(saver: Any, thread_id: str, count: int) -> tuple[Thread, Any]:
        thread = Thread(shape, saver, "sync", thread_id)
        for _ in range(count):
            await thread.call({"items": []})
        return thread, (await thread.state()).config

    fresh, _ = await turns(in_memory, "fresh", 1)
    expected = await fresh.call({"items": []})

    thread, end = await turns(in_memory, "thread", 1)
    await thread.call({"items": []})
    assert (await thread.call({"items": []}, end)).values != expected.values

    lab = Lab("remembering", store, saver, "sync")
    lab.thread, end = await turns(saver, "thread", 1)
    await lab.thread.call({"items": []})
    fork = await lab.fork(end)
    assert await fork.call({"items": []}) == expected
