"""Nothing that removes ever changes what stays.

Each graph is run in a thread. Whatever is then removed, from the thread, from copies of it, or with
its relatives: each checkpoint that is still there says what it said before, to the graph (which
rebuilds channels, prepares tasks and looks into subgraphs) and as the saver returns it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME
from langgraph.types import Command, StateSnapshot

from checking import config, id_of
from forkpoint import ThreadNotFound
from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.saver.saver import ForkpointSaver
from graphs import MORE_SHAPES, SHAPES, Shape, error_text
from stores import Store

Place = tuple[str, str]
"""A namespace, and the id of a checkpoint in it."""

# How often what is written is flushed matters to nothing here, but for what is never written.
ALL_SHAPES = {
    name: shape
    for name, shape in {**SHAPES, **MORE_SHAPES}.items()
    if not name.endswith(("durability sync", "durability async"))
}
RELATED_SHAPES = ("chat", "interrupts", "snapshots", "deltas with questions", "remembering")
# Those in which a removal has the most to keep: backends differ in how they hide and reopen.
TELLING_SHAPES = ("interrupts", "snapshots", "deltas, durability exit", "stateful subgraphs")
each_shape = pytest.mark.parametrize(
    "shape",
    [
        pytest.param(name, marks=() if name in TELLING_SHAPES else pytest.mark.slow)
        for name in ALL_SHAPES
    ],
)


class Seen(NamedTuple):
    """A checkpoint as it is seen, without the id of its thread."""

    raw: Any
    writes: Any
    state: Any
    tasks: Any
    results: Any
    """What its tasks have come to."""
    subgraphs: Any
    """The states of the subgraphs of its tasks."""
    shown: frozenset[Place]
    """The checkpoints of subgraphs that these states are those of."""


def see(graph: Any, saver: ForkpointSaver, at: Any) -> Seen:
    found = saver.get_tuple(at)
    assert found is not None
    state = graph.get_state(at, subgraphs=True)
    below = [(task.name, task.state) for task in state.tasks if task.state is not None]
    return Seen(
        (found.checkpoint, found.metadata, found.parent_config and id_of(found.parent_config)),
        [(*place, error_text(value)) for *place, value in found.pending_writes or []],
        outlined(state),
        [(task.id, task.name, task.path, task.interrupts) for task in state.tasks],
        [(error_text(task.error), task.result) for task in state.tasks],
        [(name, described(one)) for name, one in below],
        frozenset(place for _, one in below for place in places_in(one)),
    )


def outlined(state: StateSnapshot) -> Any:
    return state.values, state.next, state.metadata, state.created_at, state.interrupts


def described(state: StateSnapshot) -> Any:
    """Return all that the state of a subgraph says, with that of those below it."""
    tasks = [
        (
            one.id,
            one.name,
            error_text(one.error),
            one.interrupts,
            one.result,
            one.state and described(one.state),
        )
        for one in state.tasks
    ]
    return outlined(state), tasks


def places_in(state: StateSnapshot) -> Iterator[Place]:
    if state.metadata is not None:
        yield place_of(state)
    for task in state.tasks:
        if task.state is not None:
            yield from places_in(task.state)


def place_of(found: Any) -> Place:
    at = found.config["configurable"]
    return at["checkpoint_ns"], at["checkpoint_id"]


class Lab:
    """A graph that has been run in a thread, and what there is to see of it."""

    def __init__(self, shape: Shape, saver: ForkpointSaver) -> None:
        self.graph, self.saver = shape.build(saver), saver
        self.runs = 0
        for given in shape.inputs:
            if given is None or (isinstance(given, Command) and given.resume is not None):
                continue  # the graph says itself what it waits for
            self._run(shape, given)
            for _ in range(20):
                state = self.graph.get_state(config())
                answers = {one.id: f"to {one.value}" for one in state.interrupts}
                if answers:
                    self._run(shape, Command(resume=answers, **shape.said))
                elif state.next:
                    self._run(shape, None)
                else:
                    break
        self.before = self.see("thread")

    def _run(self, shape: Shape, given: Any) -> None:
        """Run the graph as a run of its own."""
        run: Any = {"configurable": {"thread_id": "thread"}, "metadata": {"run_id": f"{self.runs}"}}
        self.runs += 1
        with suppress(RuntimeError):  # of the node that fails at first
            self.graph.invoke(given, run, **shape.options)

    def places(self, thread_id: str) -> set[Place]:
        whole: Any = {"configurable": {"thread_id": thread_id}}
        return {place_of(found) for found in self.saver.list(whole)}

    def see(self, thread_id: str) -> dict[Place, Seen]:
        """Return all checkpoints of a thread, by their places."""
        return {
            (ns, id_): see(self.graph, self.saver, config(thread_id, id_, ns))
            for ns, id_ in self.places(thread_id)
        }

    def heads(self) -> list[Place]:
        """Return the places of the graph's own checkpoints, oldest first."""
        return sorted(place for place in self.before if place[0] == "")

    def copy(self, thread_id: str) -> str:
        self.saver.copy_thread("thread", thread_id)
        assert self.places(thread_id) == self.before.keys()
        return thread_id

    def check(
        self, thread_id: str, staying: Collection[Place], reopened: Place | None = None
    ) -> None:
        """Check that these checkpoints are still there, no others, and that they say the same."""
        after = self.see(thread_id)
        assert after.keys() == set(staying)
        for place, seen in after.items():
            before = self.before[place]
            if place == reopened:
                before = before._replace(writes=left_by_reopening(before.writes))
                seen, before = (one._replace(results=None) for one in (seen, before))
            if not before.shown <= after.keys():
                # What is to see of the subgraphs was removed itself.
                seen, before = (one._replace(subgraphs=(), shown=None) for one in (seen, before))
            assert seen == before


def left_by_reopening(writes: Any) -> Any:
    """Return the writes of a checkpoint that stay when the step after it is to run again."""
    return [
        (task_id, channel, value)
        for task_id, channel, value in writes
        if channel == INTERRUPT or (task_id == NULL_TASK_ID and channel != RESUME)
    ]


@pytest.fixture
def lab(request: pytest.FixtureRequest, saver: ForkpointSaver) -> Lab:
    return Lab(ALL_SHAPES[request.param], saver)


def of(shapes: Collection[str], on_mongodb: Collection[str], *, half: int | None = None) -> Any:
    """Run a test with these shapes on each backend, in every run on MongoDB only with some.

    Of two tests with a `half`, a shape goes through one on SQLite in every run.
    """
    cases = []
    for number, name in enumerate(shapes):
        is_run = {"sqlite": half is None or number % 2 == half, "mongodb": name in on_mongodb}
        for backend, is_in_every_run in is_run.items():
            marks = () if is_in_every_run else pytest.mark.slow
            cases.append(pytest.param(backend, name, id=f"{backend}-{name}", marks=marks))
    return pytest.mark.parametrize(("new_store", "lab"), cases, indirect=True)


def by_namespace(places: Collection[Place]) -> Mapping[str, list[str]]:
    """Return the ids of checkpoints by namespace, oldest first."""
    ids: dict[str, list[str]] = {}
    for checkpoint_ns, checkpoint_id in sorted(places):
        ids.setdefault(checkpoint_ns, []).append(checkpoint_id)
    return ids


def newest(places: Collection[Place], keep: int) -> set[Place]:
    return {(ns, id_) for ns, ids in by_namespace(places).items() for id_ in ids[-keep:]}


def returned_to(before: Mapping[Place, Seen], staying: Collection[Place]) -> set[Place]:
    """Return what a time travel finds of those subgraphs that keep their state.

    That is the newest from before the checkpoint, or from before its parent, if an update made it.
    """
    found: set[Place] = set()
    for place in staying:
        _, metadata, parent = before[place].raw
        is_update = metadata.get("source") in ("update", "fork") and parent
        bound = parent if is_update else place[1]
        for ns, ids in by_namespace(before).items():
            older = [id_ for id_ in ids if id_ < bound]
            if place[0] == "" and ns and ":" not in ns and older:
                found.add((ns, older[-1]))
    return found


@of(ALL_SHAPES, TELLING_SHAPES[:2], half=0)
def test_removing_checkpoints_changes_none_of_the_others(lab: Lab, store: Store) -> None:
    heads = lab.heads()
    for keep in (1, 2, len(heads) - 1, len(heads) + 1):
        trimmed = lab.copy(f"trim {keep}")
        report = lab.saver.trim(trimmed, keep)
        staying = newest(lab.before, keep)
        staying |= returned_to(lab.before, staying)
        lab.check(trimmed, staying)
        assert report.checkpoints <= len(lab.before) - len(staying)  # some are out of sight only
        lab.saver.purge(trimmed)

    lab.saver.prune([lab.copy("prune")])
    lab.check("prune", newest(lab.before, 1))
    lab.saver.prune(["prune"], strategy="delete")
    assert lab.places("prune") == set()

    for steps in {1, 2, len(heads) // 2, len(heads) - 1} & set(range(1, len(heads))):
        rolled = lab.copy(f"rollback {steps}")
        lab.saver.rollback(rolled, steps)
        head = heads[-1 - steps]
        lab.check(rolled, {place for place in lab.before if place[1] <= head[1]}, head)
        lab.saver.delete_thread(rolled)
    assert lab.saver.rollback(lab.copy("undone"), len(heads)) is None
    with pytest.raises(ThreadNotFound):
        lab.saver.lineage("undone")

    assert store.problems(lab.saver) == []
    lab.check("thread", lab.before)


@of(ALL_SHAPES, TELLING_SHAPES[2:], half=1)
def test_removing_runs_changes_nothing_of_other_runs(lab: Lab, store: Store) -> None:
    """In the only thread that has the runs, run by run: the odd ones first, then the older ones."""
    doomed: set[str] = set()
    for run in (*range(1, lab.runs - 1, 2), *range(0, lab.runs - 1, 2)):
        doomed.add(str(run))
        lab.saver.delete_for_runs([str(run)])
        staying = {
            place for place, seen in lab.before.items() if seen.raw[1]["run_id"] not in doomed
        }
        lab.check("thread", staying)
    assert store.problems(lab.saver) == []


@of(RELATED_SHAPES, ["deltas with questions"])
def test_removals_change_no_other_thread_of_the_family(lab: Lab, store: Store) -> None:
    saver = lab.saver
    heads = lab.heads()
    saver.copy_thread("thread", "clone")
    saver.fork("thread", new_thread_id="fork")
    saver.fork(config("thread", heads[-2][1]), new_thread_id="older", history="path")
    saver.fork(config("clone", heads[len(heads) // 2][1]), new_thread_id="of the clone")
    saver.fork("fork", new_thread_id="changed", values=changed(lab))
    others = {name: lab.see(name) for name in ("clone", "fork", "older", "of the clone", "changed")}

    ancestors = ("fork", "clone", "older")
    for removals in (
        (
            lambda: saver.rollback("thread", 1),
            lambda: saver.delete_for_runs(["0"]),
            lambda: saver.trim("thread", 2),
            lambda: saver.prune(["thread"]),
            lambda: saver.purge("thread"),
        ),
        [lambda name=name: saver.purge(name) for name in ancestors],
    ):
        for remove in removals:
            remove()
            assert store.problems(saver) == []
        others = {name: before for name, before in others.items() if lab.places(name)}
        assert {name: lab.see(name) for name in others} == others
    assert sorted(others) == ["changed", "of the clone"]


def changed(lab: Lab) -> dict[str, Any]:
    """Return other values for some channels of the graph."""
    values = lab.graph.get_state(config()).values
    return {name: value[:1] for name, value in values.items() if isinstance(value, list) and value}
