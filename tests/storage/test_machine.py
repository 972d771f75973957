"""A family of threads under everything that can be done to it, in any order.

Hypothesis makes up the orders. A model keeps a full copy of each checkpoint, as it was seen when
it was made, and knows of each operation which checkpoints come and go. Whatever happens, those that
stay are as they were, there are no others, and the store keeps nothing that none of them needs.
"""

from __future__ import annotations

import itertools
import operator
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypedDict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

from checking import config, explore, id_of
from forkpoint import ThreadCatalog, ThreadNotFound
from forkpoint.langgraph_rules import COUNTERS, NULL_TASK_ID
from forkpoint.saver.saver import ForkpointSaver
from graphs import append_all
from stores import Store

# The graphs


def prose(seed: int, length: int) -> str:
    return " ".join(random.Random(seed).choices(("fork", "thread", "state", "chunk"), k=length))


# Few, so that chunks die with a thread and come back with another; three of more than 2 KB, of
# which two have a beginning in common.
TEXTS = ["a", "b", prose(0, 40), prose(1, 600), prose(2, 900), prose(2, 900)[:-5] + " changed"]


class Chat(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    document: str


def chat() -> Any:
    def answer(state: Chat) -> dict[str, Any]:
        count = len(state["messages"])
        return {"messages": [AIMessage(TEXTS[count % len(TEXTS)], id=f"answer-{count}")]}

    builder = StateGraph(Chat)
    builder.add_node(answer)
    builder.add_edge(START, "answer")
    return builder.compile()


class Log(TypedDict, total=False):
    often: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=2)]
    seldom: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=1000)]
    asks: bool
    said: str


def log() -> Any:
    """What is pending at a question is for channels that are rebuilt."""

    def write(state: Log) -> dict[str, Any]:
        count = len(state["often"])
        return {"often": [TEXTS[count % len(TEXTS)]], "seldom": [count]}

    def ask(state: Log) -> dict[str, Any]:
        return {"said": interrupt("what?") if state["asks"] else "nothing"}

    builder = StateGraph(Log)
    builder.add_node(write)
    builder.add_node(ask)
    builder.add_node("last", lambda state: {"seldom": [state["said"]]})
    builder.add_edge(START, "write")
    builder.add_edge(START, "ask")
    builder.add_edge(["write", "ask"], "last")
    return builder.compile()


class Outer(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]
    asks: bool


# The subgraphs give back only what is new: with all that they are given, the state would become
# more than four times as long with each turn.


class Asking(TypedDict, total=False):
    items: list[Any]
    asks: bool


class Keeping(TypedDict, total=False):
    items: list[Any]
    seen: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=3)]


def nested() -> Any:
    """A subgraph that asks, and one that keeps its state, in which a channel is rebuilt."""

    def ask(state: Asking) -> dict[str, Any]:
        answer = interrupt("what?") if state["asks"] else "-"
        return {"items": [*state["items"], answer]}

    asking = StateGraph(Asking)
    asking.add_node("before", lambda state: {"items": [len(state["items"])]})
    asking.add_node(ask)
    asking.add_edge(START, "before")
    asking.add_edge("before", "ask")
    keeping = StateGraph(Keeping)
    keeping.add_node("look", lambda state: {"seen": [TEXTS[len(state["items"]) % len(TEXTS)]]})
    keeping.add_node("tell", lambda state: {"seen": ["told"], "items": [len(state["seen"])]})
    keeping.add_edge(START, "look")
    keeping.add_edge("look", "tell")
    builder = StateGraph(Outer)
    builder.add_node("asking", asking.compile())
    builder.add_node("keeping", keeping.compile(checkpointer=True))
    builder.add_node("last", lambda _: {"items": ["last"]})
    builder.add_edge(START, "keeping")
    builder.add_edge("keeping", "asking")
    builder.add_edge("asking", "last")
    return builder.compile()


class Kind(NamedTuple):
    """A graph, and what is said to it."""

    graph: Any
    input: Callable[[str, bool], dict[str, Any]]
    update: Callable[[str], tuple[dict[str, Any], str]]
    """Values, and the node that they count as written by."""
    has_deltas: bool


KINDS = {
    "chat": Kind(
        chat(),
        lambda text, flag: {
            "messages": [HumanMessage(text)],
            **({"document": text} if flag else {}),
        },
        lambda text: ({"document": text}, "answer"),
        False,
    ),
    "log": Kind(
        log(),
        lambda text, flag: {"often": [text], "asks": flag},
        lambda text: ({"often": [text], "seldom": [text]}, "write"),
        True,
    ),
    "nested": Kind(
        nested(),
        lambda text, flag: {"items": [text], "asks": flag},
        lambda text: ({"items": [text]}, "last"),
        True,
    ),
}

# The model

Place = tuple[str, str]
"""A namespace, and the id of a checkpoint in it."""


class Kept(NamedTuple):
    """A checkpoint as it was seen when it was made."""

    checkpoint: Mapping[str, Any]
    """As it is stored: without what is rebuilt."""
    values: Any
    metadata: Mapping[str, Any]
    parent: str | None
    writes: list[Any]
    run: str | None
    """The run that it goes with."""

    @property
    def replays_before(self) -> str:
        """The id that a time travel looks for the state of subgraphs before."""
        is_update = self.metadata.get("source") in ("update", "fork")
        return self.parent if is_update and self.parent else str(self.checkpoint["id"])


class Thread:
    """A thread, or what is known of one that is gone."""

    def __init__(
        self,
        thread_id: str,
        kind: Kind,
        edge: str | None = None,
        parent: Thread | None = None,
        parent_checkpoint_id: str | None = None,
    ) -> None:
        self.thread_id, self.kind, self.edge, self.parent = thread_id, kind, edge, parent
        self.parent_checkpoint_id = parent_checkpoint_id
        self.checkpoints: dict[Place, Kept] = {}

    @property
    def is_live(self) -> bool:
        return bool(self.checkpoints)

    @property
    def heads(self) -> list[Place]:
        """The places of the graph's own checkpoints, oldest first."""
        return sorted(place for place in self.checkpoints if place[0] == "")

    @property
    def namespaces(self) -> dict[str, list[str]]:
        """The ids by namespace, oldest first."""
        ids: dict[str, list[str]] = {}
        for checkpoint_ns, checkpoint_id in sorted(self.checkpoints):
            ids.setdefault(checkpoint_ns, []).append(checkpoint_id)
        return ids

    @property
    def line(self) -> list[Thread]:
        """This thread, the one that it was made from, and so on."""
        return [self, *(self.parent.line if self.parent else [])]

    def path(self, place: Place) -> list[Place]:
        """Return the ancestors of a checkpoint, up to the first that was removed."""
        found: list[Place] = []
        parent = self.checkpoints[place].parent
        while parent is not None and (place[0], parent) in self.checkpoints:
            found.append((place[0], parent))
            parent = self.checkpoints[found[-1]].parent
        return found

    def keep(self, staying: Iterable[Place]) -> None:
        self.checkpoints = {place: self.checkpoints[place] for place in staying}


def is_stateful(checkpoint_ns: str) -> bool:
    return checkpoint_ns != "" and ":" not in checkpoint_ns


def newest(thread: Thread, keep: int) -> set[Place]:
    """Return the newest checkpoints of each namespace."""
    return {(ns, id_) for ns, ids in thread.namespaces.items() for id_ in ids[-keep:]}


def trimmed(thread: Thread, keep: int) -> set[Place]:
    """Return what a trim keeps: what time travels go back to in subgraphs stays, too."""
    staying = newest(thread, keep)
    for place in [place for place in staying if place[0] == ""]:
        bound = thread.checkpoints[place].replays_before
        for ns, ids in thread.namespaces.items():
            older = [id_ for id_ in ids if id_ < bound]
            if is_stateful(ns) and older:
                staying.add((ns, older[-1]))
    return staying


def forked(thread: Thread, place: Place, goes_on: bool) -> set[Place]:
    """Return a checkpoint of a graph, and those of its subgraphs that come along in a fork.

    Where it does not go on, the step after the checkpoint runs again, or runs on other values.
    """
    taken = {place}
    for ns, ids in thread.namespaces.items():
        if goes_on:
            if is_stateful(ns) or (ns and ids[-1] > place[1]):
                taken.add((ns, ids[-1]))
        elif is_stateful(ns):
            bound = thread.checkpoints[place].replays_before
            taken |= {(ns, id_) for id_ in [id_ for id_ in ids if id_ < bound][-1:]}
    return taken


def reopened(kept: Kept) -> Kept:
    """Return a checkpoint whose step is to run again: questions stay, answers and results go."""
    return kept._replace(
        writes=[
            (task_id, channel, value)
            for task_id, channel, value in kept.writes
            if channel == INTERRUPT or (task_id == NULL_TASK_ID and channel != RESUME)
        ]
    )


# The machine

IDS = "abcdef"
RUNS = ("r1", "r2", "r3", "r4")
SAMPLE = 3

picks = st.integers(min_value=0, max_value=30)
texts = st.integers(min_value=0, max_value=len(TEXTS) - 1)
runs = st.sampled_from(RUNS)
durabilities = st.sampled_from(["async", "sync", "exit"])
# Backwards from the newest, which is the one that is forked and traveled to most.
backs = st.one_of(st.just(0), st.integers(min_value=0, max_value=12))

_examples = itertools.count()
finished: Counter[str] = Counter()
"""How many examples came to their end, and how many steps they had."""


class Family(RuleBasedStateMachine):
    """One example: a store, or ids in it that no other example uses."""

    def __init__(self, new_store: Callable[[], Store]) -> None:
        super().__init__()
        self.prefix = f"{next(_examples)}-"
        self.store = new_store()
        self.savers = [self.store.saver(), self.store.saver()]
        self.threads: list[Thread] = []  # those that are gone, too
        self.touched: list[Thread] = []
        self.random = random.Random(0)
        self.steps = 0

    # What there is

    @property
    def saver(self) -> ForkpointSaver:
        return self.savers[0]

    @property
    def live(self) -> list[Thread]:
        return [thread for thread in self.threads if thread.is_live]

    @property
    def free(self) -> list[str]:
        """The ids that no thread has."""
        taken = {thread.thread_id for thread in self.live}
        return [id_ for id_ in (self.prefix + letter for letter in IDS) if id_ not in taken]

    @property
    def with_heads(self) -> list[Thread]:
        """The threads of which more is left than states of subgraphs."""
        return [thread for thread in self.live if thread.heads]

    def picked(self, pick: int, threads: list[Thread] | None = None) -> Thread:
        threads = threads or self.live
        thread = threads[pick % len(threads)]
        self.touched.append(thread)
        return thread

    def add(self, thread: Thread) -> Thread:
        self.threads.append(thread)
        self.touched.append(thread)
        return thread

    def graph(self, thread: Thread) -> Any:
        graph = thread.kind.graph
        graph.checkpointer = self.saver
        return graph

    # Looking

    def read(self, thread: Thread) -> dict[Place, Any]:
        """Return all checkpoints of a thread, as the saver lists them."""
        whole: Any = {"configurable": {"thread_id": thread.thread_id}}
        return {place_of(found): found for found in self.saver.list(whole)}

    def seen(self, thread: Thread, place: Place, found: Any, run: str | None = None) -> Kept:
        at = config(thread.thread_id, place[1], place[0])
        return Kept(
            found.checkpoint,
            self.graph(thread).get_state(at).values,
            found.metadata,
            found.parent_config and id_of(found.parent_config),
            found.pending_writes,
            run,
        )

    def check(self, thread: Thread, places: Iterable[Place]) -> None:
        """Check that checkpoints are as they were."""
        for place in places:
            kept = thread.checkpoints[place]
            found = self.saver.get_tuple(config(thread.thread_id, place[1], place[0]))
            assert found is not None
            seen = self.seen(thread, place, found, kept.run)
            for field in Kept._fields:
                assert getattr(seen, field) == getattr(kept, field), (thread.thread_id, place)

    def check_related(self, thread: Thread) -> None:
        """Check where a thread comes from, and its family."""
        entries = self.saver.lineage(thread.thread_id)
        assert [described(entry) for entry in entries] == [edge_of(one) for one in thread.line]
        for entry, one in zip(entries, thread.line, strict=True):
            at = ("", one.parent_checkpoint_id or "")
            origin = one.parent and (one.checkpoints.get(at) or one.parent.checkpoints.get(at))
            assert entry.checkpoint_count == len(one.checkpoints)
            assert not origin or entry.step == origin.metadata.get("step")
        needed = {id(ancestor) for one in self.live for ancestor in one.line}
        family = [
            edge_of(one)
            for one in self.threads
            if id(one) in needed and one.line[-1] is thread.line[-1]
        ]
        nodes = [described(node.entry) for node in self.saver.family(thread.thread_id)]
        assert sorted(nodes, key=str) == sorted(family, key=str)

    def check_store(self) -> None:
        """Check that nothing dangles, and that there is no row that no checkpoint needs.

        Chunks of writes that did not count, or were replaced, are there until a sweep.
        """
        self.store.outlast()
        ThreadCatalog(self.saver).sweep()
        assert self.store.problems(self.saver) == []
        records = {one.key: one.thread_id for one in self.store.threads() if one.is_live}
        assert sorted(records.values()) == sorted(thread.thread_id for thread in self.live)
        rows = {kind: self.store.rows(kind) for kind in ("checkpoints", "writes")}
        for thread in self.live:
            (key,) = [key for key, thread_id in records.items() if thread_id == thread.thread_id]
            mine = {kind: [row for row in rows[kind] if row.thread == key] for kind in rows}
            hidden = len(mine["checkpoints"]) - len(thread.checkpoints)
            writes = sum(len(kept.writes) for kept in thread.checkpoints.values())
            assert hidden == 0 or (thread.kind.has_deltas and hidden > 0)
            assert len(mine["writes"]) == writes or (hidden and len(mine["writes"]) > writes)

    @invariant()
    def what_stays_is_as_it_was(self) -> None:
        """Look at the threads of the last operation as a whole, and into the others."""
        self.steps += 1
        for thread in self.live:
            if thread in self.touched:
                assert self.read(thread).keys() == thread.checkpoints.keys()
                self.check_related(thread)
            sample = self.random.choices(sorted(thread.checkpoints), k=SAMPLE)
            self.check(thread, {*sample, *thread.heads[-1:]})
        for thread in self.touched:
            if not thread.is_live and thread.thread_id in self.free:
                assert self.read(thread) == {}
                with pytest.raises(ThreadNotFound):
                    self.saver.lineage(thread.thread_id)
        self.touched.clear()

    def check_all(self) -> None:
        everything = {
            (found.config["configurable"]["thread_id"], *place_of(found))
            for found in self.saver.list(None)
        }
        assert everything == {
            (thread.thread_id, *place) for thread in self.live for place in thread.checkpoints
        }
        for thread in self.live:
            self.check(thread, thread.checkpoints)
            self.check_related(thread)
        self.check_store()

    # Running

    def run(self, thread: Thread, given: Any, run: str, durability: str, at: Place | None) -> None:
        run_id = self.prefix + run
        where = config(thread.thread_id, at[1]) if at else config(thread.thread_id)
        output = self.graph(thread).invoke(
            given, {**where, "metadata": {"run_id": run_id}}, durability=durability
        )
        self.record(thread, at)
        state = self.graph(thread).get_state(config(thread.thread_id))
        if not state.next and output is not None:
            assert output == state.values

    def record(self, thread: Thread, at: Place | None) -> None:
        """Add what a run, or an update, of a thread has made."""
        start = at or (thread.heads[-1] if thread.heads else None)
        for place, found in self.read(thread).items():
            kept = thread.checkpoints.get(place)
            if kept is None:
                run = found.metadata.get("run_id")
                thread.checkpoints[place] = self.seen(thread, place, found, run)
            elif place == start or place[0]:
                # The step that followed it left its writes, and answers in place of older ones.
                for write in kept.writes:
                    assert write in found.pending_writes or write[1] in (ERROR, INTERRUPT, RESUME)
                thread.checkpoints[place] = kept._replace(writes=found.pending_writes)

    @initialize(kind=st.sampled_from(sorted(KINDS)), text=texts, run=runs)
    def begin_the_family(self, kind: str, text: int, run: str) -> None:
        self.begin(kind, text, False, run, "async", 0)

    @precondition(lambda self: self.free)
    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        text=texts,
        flag=st.booleans(),
        run=runs,
        durability=durabilities,
        pick=picks,
    )
    def begin(self, kind: str, text: int, flag: bool, run: str, durability: str, pick: int) -> None:
        """Begin a thread that is related to none, under an id that others may have had."""
        thread = self.add(Thread(self.free[pick % len(self.free)], KINDS[kind]))
        self.run(thread, thread.kind.input(TEXTS[text], flag), run, durability, None)

    @precondition(lambda self: self.live)
    @rule(pick=picks, text=texts, flag=st.booleans(), run=runs, durability=durabilities)
    def go_on(self, pick: int, text: int, flag: bool, run: str, durability: str) -> None:
        """Answer, if the graph asks, or go on where it was left, or give it another input."""
        thread = self.picked(pick)
        state = self.graph(thread).get_state(config(thread.thread_id))
        if state.interrupts:
            given: Any = Command(resume=TEXTS[text])
        else:
            given = None if state.next else thread.kind.input(TEXTS[text], flag)
        self.run(thread, given, run, durability, None)

    @precondition(lambda self: self.with_heads)
    @rule(
        pick=picks,
        back=backs,
        text=st.none() | texts,
        flag=st.booleans(),
        run=runs,
        durability=durabilities,
    )
    def travel(
        self, pick: int, back: int, text: int | None, flag: bool, run: str, durability: str
    ) -> None:
        """Run again from a checkpoint, or with another input."""
        thread = self.picked(pick, self.with_heads)
        at = thread.heads[-1 - back % len(thread.heads)]
        if not thread.checkpoints[at].checkpoint["channel_versions"]:
            text = text or 0  # there is nothing to run: it was made to come before an input
        given = None if text is None else thread.kind.input(TEXTS[text], flag)
        self.run(thread, given, run, durability, at)

    @precondition(lambda self: self.with_heads)
    @rule(pick=picks, back=st.none() | backs, text=texts)
    def update(self, pick: int, back: int | None, text: int) -> None:
        thread = self.picked(pick, self.with_heads)
        at = None if back is None else thread.heads[-1 - back % len(thread.heads)]
        where = config(thread.thread_id, at[1]) if at else config(thread.thread_id)
        values, node = thread.kind.update(TEXTS[text])
        self.graph(thread).update_state(where, values, as_node=node)
        self.record(thread, at)

    # Forking

    @precondition(lambda self: self.with_heads and self.free)
    @rule(pick=picks, new=picks, back=st.none() | backs, text=st.none() | texts, path=st.booleans())
    def fork(self, pick: int, new: int, back: int | None, text: int | None, path: bool) -> None:
        source = self.picked(pick, self.with_heads)
        place = source.heads[-1 - (back or 0) % len(source.heads)]
        origin = source.checkpoints[place]
        values = {}
        if text is not None:
            changed, _ = source.kind.update(TEXTS[text])
            # Of channels that nothing was ever written to, the saver does not know.
            values = {name: value for name, value in changed.items() if origin.values.get(name)}
        thread_id = self.free[new % len(self.free)]
        made = self.saver.fork(
            source.thread_id if back is None else config(source.thread_id, place[1]),
            new_thread_id=thread_id,
            values=values,
            history="path" if path else "head",
        )
        assert made == {"configurable": {"thread_id": thread_id}}
        fork = self.add(Thread(thread_id, source.kind, "fork", source, place[1]))
        goes_on = place == source.heads[-1] and not values
        ends = forked(source, place, goes_on)
        for end in ends:
            kept = source.checkpoints[end]._replace(run=None)
            fork.checkpoints[end] = kept if goes_on else reopened(kept)
        found = self.read(fork)
        if path:
            sure = {ancestor for end in ends for ancestor in source.path(end)}
            assert sure <= found.keys()
            # What there is on the path beyond a gap may come along as well.
            for one in found.keys() & source.checkpoints.keys() - ends:
                assert one[1] < max(id_ for ns, id_ in ends if ns == one[0])
                fork.checkpoints[one] = source.checkpoints[one]._replace(run=None)
        if values:
            self.check_top(fork, place, values, found)

    def check_top(
        self, fork: Thread, place: Place, values: Mapping[str, Any], found: Mapping[Place, Any]
    ) -> None:
        """Check and add the checkpoint in which a fork has other values."""
        (top,) = found.keys() - fork.checkpoints.keys()
        kept, base = self.seen(fork, top, found[top]), fork.checkpoints[place]
        assert (top[0], kept.parent, kept.writes) == ("", place[1], [])
        assert kept.values == {**base.values, **values}
        step = base.metadata.get("step", -1) + 1
        expected = {**base.metadata, "source": "update", "step": step}
        assert {**kept.metadata, COUNTERS: None} == {**expected, COUNTERS: None}
        assert fork.heads[-1] < top
        fork.checkpoints[top] = kept

    @precondition(lambda self: self.live and self.free)
    @rule(pick=picks, new=picks)
    def clone(self, pick: int, new: int) -> None:
        source = self.picked(pick)
        thread_id = self.free[new % len(self.free)]
        self.saver.copy_thread(source.thread_id, thread_id)
        clone = self.add(Thread(thread_id, source.kind, "clone", source))
        clone.checkpoints = {
            place: kept._replace(run=None) for place, kept in source.checkpoints.items()
        }

    # Removing

    @precondition(lambda self: self.live)
    @rule(pick=picks, keep=st.none() | st.integers(min_value=1, max_value=6))
    def trim_or_prune(self, pick: int, keep: int | None) -> None:
        thread = self.picked(pick)
        if keep is None:
            self.saver.prune([thread.thread_id])
            thread.keep(newest(thread, 1))
        else:
            self.saver.trim(thread.thread_id, keep)
            thread.keep(trimmed(thread, keep))

    @precondition(lambda self: self.with_heads)
    @rule(pick=picks, steps=st.integers(min_value=1, max_value=5))
    def rollback(self, pick: int, steps: int) -> None:
        thread = self.picked(pick, self.with_heads)
        heads = thread.heads
        steps = min(steps, len(heads))
        left = self.saver.rollback(thread.thread_id, steps)
        if steps == len(heads):
            assert left is None
            thread.keep([])
            return
        assert left == {"configurable": {"thread_id": thread.thread_id}}
        head = heads[-1 - steps]
        thread.keep([place for place in thread.checkpoints if place[1] <= head[1]])
        thread.checkpoints[head] = reopened(thread.checkpoints[head])

    @rule(doomed=st.sets(runs, min_size=1, max_size=2))
    def delete_for_runs(self, doomed: set[str]) -> None:
        run_ids = {self.prefix + run for run in doomed}
        self.saver.delete_for_runs(sorted(run_ids))
        for thread in self.live:
            staying = [
                place for place, kept in thread.checkpoints.items() if kept.run not in run_ids
            ]
            if len(staying) < len(thread.checkpoints):
                self.touched.append(thread)
                thread.keep(staying)

    @precondition(lambda self: self.live)
    @rule(pick=picks, how=st.sampled_from(["purge", "delete_thread", "prune"]))
    def remove(self, pick: int, how: str) -> None:
        thread = self.picked(pick)
        if how == "purge":
            report = self.saver.purge(thread.thread_id)
            assert report.checkpoints >= len(thread.checkpoints)
        elif how == "prune":
            self.saver.prune([thread.thread_id], strategy="delete")
        else:
            self.saver.delete_thread(thread.thread_id)
        thread.keep([])

    # Processes

    @rule(anew=st.booleans())
    def use_another_saver(self, anew: bool) -> None:
        """Go on with a saver that remembers nothing, or one that knows nothing of the latest."""
        self.savers.reverse()
        if anew:
            self.savers[0].close()
            self.savers[0] = self.store.saver()

    @rule()
    def look_at_everything(self) -> None:
        self.check_all()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.check_all()
                for thread in self.live:
                    self.saver.purge(thread.thread_id)
                    thread.keep([])
                    self.check_store()
                left = {
                    kind: self.store.count(kind) for kind in ("checkpoints", "writes", "chunks")
                }
                assert set(left.values()) == {0}, left
                finished.update(examples=1, steps=self.steps)
            else:  # given up, by Hypothesis too: what comes next may be in the same store
                for thread in self.live:
                    self.saver.delete_thread(thread.thread_id)
        finally:
            for saver in self.savers:
                saver.close()


def place_of(found: Any) -> Place:
    at = found.config["configurable"]
    return at["checkpoint_ns"], at["checkpoint_id"]


def edge_of(thread: Thread) -> Any:
    """Return what there is to know of a thread's place in its family."""
    parent = thread.parent and thread.parent.thread_id
    return thread.thread_id, thread.is_live, thread.edge, parent, thread.parent_checkpoint_id


def described(entry: Any) -> Any:
    parent = entry.parent_thread_id
    return entry.thread_id, entry.exists, entry.edge, parent, entry.parent_checkpoint_id


def explore_families(new_store: Callable[[], Store], examples: int, steps: int) -> None:
    finished.clear()
    explore(lambda: Family(new_store), examples, steps)
    assert finished["examples"] >= examples


@pytest.mark.parametrize(
    ("new_store", "examples", "steps"),
    [
        pytest.param("sqlite", 6, 25),
        pytest.param("sqlite", 1000, 50, marks=pytest.mark.slow),
    ],
    indirect=["new_store"],
)
def test_a_family_in_a_file(new_store: Callable[[], Store], examples: int, steps: int) -> None:
    explore_families(new_store, examples, steps)


@pytest.mark.parametrize(
    ("new_store", "examples", "steps"),
    [
        pytest.param("mongodb", 2, 20),
        pytest.param("mongodb", 200, 50, marks=pytest.mark.slow),
    ],
    indirect=["new_store"],
)
def test_families_on_a_server(new_store: Callable[[], Store], examples: int, steps: int) -> None:
    """In one database, for the server takes long to make another."""
    store = new_store()
    explore_families(lambda: store, examples, steps)
