"""Nothing that one owner does changes, or reveals anything in, what another is answered.

The same calls of one owner are made in three stores. In the first, another owner calls every method
in between, with the same thread ids; in the second, it does so with other ids; and in the third,
there is no other owner. All answers are the same, errors included. So are the numbers of statements
in the first two: whether an id was never used, or is another's, or was, cannot be told from how
long it takes. There is one exception, which the documentation names: ids are one space, so an id
that somebody else uses cannot be used.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from langchain_core.messages import HumanMessage

from forkpoint import ForkpointError, Lease, RetentionPolicy, ThreadCatalog, ThreadFilter
from forkpoint.inputs import LEASE
from forkpoint.saver import ForkpointSaver
from interface import Method, Outcome, acalled, called, comparable, methods
from stores import Store

OURS, THEIRS = "ours", "theirs"
_examples = itertools.count()
finished: Counter[str] = Counter()
"""How many examples came to their end."""


class Picks:
    """Choices that a number stands for."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)

    def of(self, options: Sequence[Any]) -> Any:
        return options[int(self._random.random() * len(options))]


class Runtime:
    """What LangGraph says of a run: all its calls have the same `control`."""

    def __init__(self) -> None:
        self.control = object()


class World:
    """A store, and how many statements were sent to it."""

    def __init__(self, new_store: Callable[[], Store]) -> None:
        self.store = new_store()
        self.sent: list[str] = []
        self.saver = self.store.watched(self.sent.append)


class Caller:
    """An owner in a world, or an administrator, and what it knows."""

    def __init__(self, world: World, prefix: str, owner: str | None, elsewhere: str = "") -> None:
        self.world, self.prefix = world, prefix
        self.thread_prefix = prefix + elsewhere
        self.owner = None if owner is None else prefix + owner
        self.saver: ForkpointSaver = world.saver
        if self.owner is not None:
            self.saver = world.saver.for_owner(self.owner)
        self.catalog = ThreadCatalog(self.saver)
        self.cursors: list[str] = []
        self.leases: list[Lease] = []
        self.runtimes = [Runtime(), Runtime()]
        self.uuids: dict[str, str] = {}

    def call(self, method: Method, arguments: Any, loop: Any) -> tuple[Outcome, list[str]]:
        """Return what came of a call, and the statements that it took."""
        caller = self.saver if method.part == "saver" else self.catalog
        self.world.sent.clear()
        try:
            if loop is None:
                answer = called(caller, method, arguments)
            else:
                answer = loop.run_until_complete(acalled(caller, method, arguments))
        except ForkpointError as error:
            outcome = Outcome(type(error).__name__, self.plain(str(error)))
        else:
            if getattr(answer, "next_cursor", None):
                self.cursors.append(answer.next_cursor)
            outcome = Outcome(None, self.plain(comparable(answer)))
        return outcome, list(self.world.sent)

    def plain(self, answer: Any) -> str:
        """Return an answer as text, in which generated ids and times have been replaced."""
        text = _TIME.sub("a time", repr(answer))
        return _UUID.sub(lambda id_: self.uuids.setdefault(id_[0], f"#{len(self.uuids)}"), text)


_UUID = re.compile(r"(?!1ef00000)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*|[\w.-]+:\d+:[0-9a-f]{12}")


class Here(NamedTuple):
    """Who calls, and what has been said and made so far by anybody."""

    caller: Caller
    cursors: Sequence[str]
    leases: Sequence[Any]
    made: int

    def thread_id(self, picks: Picks) -> str:
        return self.caller.thread_prefix + picks.of("abcdef")

    def checkpoint_id(self, picks: Picks) -> str:
        return id_of_checkpoint(picks.of(range(self.made)))

    def config(self, picks: Picks) -> Any:
        part: dict[str, Any] = {"thread_id": self.thread_id(picks)}
        if picks.of([True, False, False]):
            part["checkpoint_id"] = self.checkpoint_id(picks)
        part["checkpoint_ns"] = picks.of(["", "", "sub"])
        if picks.of([False, False, True]):
            part["__pregel_runtime"] = picks.of(self.caller.runtimes)
        if self.leases and picks.of([False, False, True]):
            part[LEASE] = picks.of(self.leases)
        return {"configurable": part, "metadata": {"user": picks.of(["u", "v"])}}

    def source(self, picks: Picks) -> Any:
        return self.thread_id(picks) if picks.of([True, False]) else self.config(picks)

    def thread_filter(self, picks: Picks) -> ThreadFilter:
        return ThreadFilter(
            ids=picks.of([None, None, [self.thread_id(picks), self.thread_id(picks)]]),
            label=picks.of([None, None, "label"]),
            tags=picks.of([[], [], ["s"]]),
            any_tags=picks.of([[], [], ["s", "t"]]),
            metadata=picks.of([{}, {}, {"user": "u"}]),
            owner=picks.of([None, None, self.caller.prefix + picks.of([OURS, THEIRS])]),
            status=picks.of([None, None, "busy", ["idle", "error"]]),
            source_thread_id=picks.of([None, None, self.thread_id(picks)]),
        )

    def checkpoint(self, picks: Picks) -> Any:
        count = picks.of(range(1, 4))
        return {
            "v": 4,
            "id": id_of_checkpoint(self.made),
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": {
                "messages": [HumanMessage("text " * 300, id=f"m{n}") for n in range(count)],
                "n": picks.of([1, 2]),
            },
            "channel_versions": {"messages": count, "n": 1},
            "versions_seen": {},
        }


def id_of_checkpoint(number: int) -> str:
    return f"1ef00000-0000-6000-8000-{number:012x}"


def ids_in(arguments: Any, prefix: str) -> set[str]:
    """Return the thread ids that are among arguments."""
    return {prefix + letter for letter in re.findall(rf"'{prefix}([a-f])'", repr(arguments))}


def policy(picks: Picks) -> RetentionPolicy:
    return picks.of(
        [
            RetentionPolicy(expired=True),
            RetentionPolicy(max_checkpoints_per_thread=1),
            RetentionPolicy(max_idle=timedelta(days=2), keep_tags=["s"]),
            RetentionPolicy(max_age=timedelta(days=2)),
            RetentionPolicy(max_checkpoint_age=timedelta(days=2)),
        ]
    )


RUNS = ["r", "s"]
DRAWN: dict[str, Callable[[Here, Picks], Any]] = {
    "a": Here.source,
    "archive": lambda here, picks: picks.of([None, lambda thread, checkpoints: [*checkpoints]]),
    "b": Here.source,
    "before": lambda here, picks: picks.of([None, here.config(picks)]),
    "channel": lambda here, picks: picks.of(["messages", "n"]),
    "channels": lambda here, picks: picks.of([["messages"], ["n"], [], ["unknown"]]),
    "checkpoint": Here.checkpoint,
    "checkpoints": lambda here, picks: picks.of([True, False]),
    "config": Here.config,
    "current": lambda here, picks: picks.of([None, 1]),
    "cursor": lambda here, picks: picks.of([None, None, *here.cursors]),
    "descending": lambda here, picks: picks.of([True, False]),
    "dry_run": lambda here, picks: picks.of([True, False]),
    "extra_allowlist": lambda here, picks: [("collections", "Counter")],
    "filter": lambda here, picks: picks.of([None, {"run_id": "r"}, {"user": "u"}]),
    "catalog.filter": Here.thread_filter,
    "history": lambda here, picks: picks.of(["head", "path"]),
    "if_busy": lambda here, picks: picks.of(["raise", "cancel"]),
    "if_exists": lambda here, picks: picks.of(["raise", "do_nothing"]),
    "index": lambda here, picks: picks.of([0, -1, 1]),
    "interval": lambda here, picks: timedelta(days=1),
    "keep": lambda here, picks: picks.of([1, 2]),
    "keep_last": lambda here, picks: picks.of([None, 1]),
    "label": lambda here, picks: picks.of(["label", None]),
    "limit": lambda here, picks: picks.of([1, 2, 50]),
    "message_id": lambda here, picks: picks.of(["m0", "m1", "m2"]),
    "metadata": lambda here, picks: {"run_id": picks.of(RUNS), "k": picks.of([1, 2])},
    "new_thread_id": Here.thread_id,
    "new_versions": lambda here, picks: picks.of([{}, {"messages": 1}, {"messages": 1, "n": 1}]),
    "on_expiry": lambda here, picks: picks.of(["delete", "keep_latest"]),
    "on_progress": lambda here, picks: None,
    "owner": lambda here, picks: here.caller.prefix + picks.of([OURS, THEIRS]),
    "policy": lambda here, picks: policy(picks),
    "run_ids": lambda here, picks: picks.of([["r"], ["s"], RUNS]),
    "sort_by": lambda here, picks: picks.of(["thread_id", "status", "updated_at", "created_at"]),
    "source": Here.source,
    "source_thread_id": Here.thread_id,
    "steps": lambda here, picks: picks.of([1, 2]),
    "strategy": lambda here, picks: picks.of(["keep_latest", "delete", "delete_all"]),
    "tags": lambda here, picks: picks.of([[], ["s"], ["s", "t"]]),
    "target_thread_id": Here.thread_id,
    "task_id": lambda here, picks: picks.of(["task", "other task"]),
    "task_path": lambda here, picks: "",
    "thread_id": Here.thread_id,
    "thread_ids": lambda here, picks: [here.thread_id(picks), here.thread_id(picks)],
    "timeout": lambda here, picks: timedelta(milliseconds=1),
    "ttl": lambda here, picks: timedelta(days=1),
    "values": lambda here, picks: picks.of([{}, {"n": 3}]),
    "writes": lambda here, picks: [(picks.of(["n", "__interrupt__", "__error__"]), 1)],
}
"""What is passed for each argument of any method, by its name."""
ALWAYS = {"metadata": ["put"], "timeout": ["run"]}
"""Arguments that are passed though they need not be."""
LIVE = [method for method in methods() if method.name != "close"]
OFTEN = {"put": 8, "create": 3, "put_writes": 3, "fork": 3, "clone": 2, "run": 2, "get_tuple": 2}
CALLS = st.tuples(
    st.sampled_from([method for method in LIVE for _ in range(OFTEN.get(method.name, 1))]),
    st.integers(0, 2**32),
    st.booleans(),
)
Call = tuple[Method, int, bool]


def _drawn(method: Method, parameter: str) -> Callable[[Here, Picks], Any]:
    return DRAWN.get(f"{method.part}.{parameter}") or DRAWN[parameter]


class Owners(RuleBasedStateMachine):
    """The calls of two owners and of an administrator."""

    def __init__(self, worlds: Sequence[World]) -> None:
        super().__init__()
        self.prefix = f"{next(_examples)}-"
        self.worlds = worlds
        self.theirs = [
            Caller(self.worlds[0], self.prefix, THEIRS),
            Caller(self.worlds[1], self.prefix, THEIRS, "elsewhere-"),
        ]
        self.ours = [Caller(world, self.prefix, OURS) for world in self.worlds]
        self.admins = [Caller(world, self.prefix, None) for world in self.worlds]
        self.made = 1
        self.used_by_them = {self.prefix + letter for letter in "abd"}
        self.loop = asyncio.new_event_loop()

    def arguments(self, caller: Caller, method: Method, number: int) -> Any:
        """Return what a number stands for."""
        cursors = [*self.theirs[0].cursors, *caller.cursors]
        leases = [self.shown(lease) for lease in (*self.theirs[0].leases, *caller.leases)]
        here, picks, given = Here(caller, cursors, leases, self.made), Picks(number), {}
        chosen = Picks(number + 1)
        for name, parameter in method.parameters.items():
            is_needed = parameter.default is parameter.empty or method.name in ALWAYS.get(name, ())
            if is_needed or chosen.of([True, False]):
                given[name] = _drawn(method, name)(here, picks)
        if given.get("sort_by", "updated_at") in ("updated_at", "created_at"):
            for name in ("limit", "cursor"):  # two threads may have the same time
                given.pop(name, None) if method.name == "search" else None
        return given

    def shown(self, lease: Lease) -> Any:
        held = lease._held
        assert held is not None
        return f"{held.thread.key}:{held.lease.fence}"

    @initialize()
    def begin(self) -> None:
        """Let each have threads, and an id that was deleted."""
        for caller in (*self.theirs, *self.ours):
            letters = "abd" if caller in self.theirs else "efe"
            self.made = 1 if caller in self.theirs else 10
            for letter in letters:
                self.put(caller, letter)
            caller.saver.delete_thread(caller.thread_prefix + letters[-1])

    def put(self, caller: Caller, letter: str) -> None:
        at = {"thread_id": caller.thread_prefix + letter, "checkpoint_ns": ""}
        here = Here(caller, [], [], self.made)
        for number in (1, 2):
            made = here._replace(made=self.made).checkpoint(Picks(number))
            caller.saver.put({"configurable": at}, made, {"run_id": "r"}, {})
            self.made += 1

    @rule(call=CALLS)
    def they_call(self, call: Call) -> None:
        method, number, in_loop = call
        for caller in self.theirs:
            arguments = self.arguments(caller, method, number)
            caller.call(method, arguments, self.loop if in_loop else None)
            if method.name in MAKING:
                self.used_by_them |= ids_in(arguments, self.prefix)
        self.made += method.name == "put"

    @rule(call=CALLS)
    def we_call(self, call: Call) -> None:
        method, number, in_loop = call
        made = [self.arguments(caller, method, number) for caller in self.ours]
        self.compare(method, made, self.loop if in_loop else None)
        self.made += method.name == "put"

    def compare(self, method: Method, made: Sequence[Any], loop: Any) -> None:
        """Make our call in all worlds, and compare the answers."""
        answers = []
        for caller, arguments in zip(self.ours, made, strict=True):
            answers.append(caller.call(method, arguments, loop))
            if self.is_taken(answers[0][0]):
                return
        outcomes = [outcome for outcome, _ in answers]
        if made[0].get("cursor") in self.theirs[0].cursors:
            outcomes = [outcome._replace(answer=None) for outcome in outcomes]
        assert outcomes[0] == outcomes[1] == outcomes[2], (str(method), made[0], answers)
        if self.is_counted(method, made[0]):
            assert len(answers[0][1]) == len(answers[1][1]), (str(method), made[0], answers)

    @rule(number=st.integers(0, 2**32), holds=st.booleans())
    def they_hold_a_lease(self, number: int, holds: bool) -> None:
        for caller in self.theirs:
            self.hold(caller, number) if holds else self.let_go(caller)

    @rule(number=st.integers(0, 2**32), holds=st.booleans())
    def we_hold_a_lease(self, number: int, holds: bool) -> None:
        said = []
        for caller in self.ours:
            said.append(self.hold(caller, number) if holds else self.let_go(caller))
            if said[0] is not None and self.is_taken(said[0]):
                return
        assert said[0] == said[1] == said[2]

    def hold(self, caller: Caller, number: int) -> Outcome | None:
        picks = Picks(number)
        thread_id = caller.thread_prefix + picks.of("abcdef")
        if_busy = picks.of(["raise", "cancel"])
        try:  # so long that nobody renews it meanwhile
            lease = caller.catalog.run(thread_id, if_busy=if_busy, ttl=timedelta(days=1))
            caller.leases.append(lease.__enter__())
        except ForkpointError as error:
            return Outcome(type(error).__name__, caller.plain(str(error)))
        return None

    def let_go(self, caller: Caller) -> Outcome | None:
        if caller.leases:
            caller.leases.pop(0).__exit__(None, None, None)
        return None

    @rule(call=CALLS)
    def an_administrator_calls(self, call: Call) -> None:
        """Do something with our threads, or with all that there are."""
        method, number, in_loop = call
        made = [self.arguments(caller, method, number) for caller in self.admins]
        if ids_in(made[0], self.prefix) <= self.ids_of_ours():
            for caller, arguments in zip(self.admins, made, strict=True):
                caller.call(method, arguments, self.loop if in_loop else None)
            self.made += method.name == "put"

    def ids_of_ours(self) -> set[str]:
        return {thread.thread_id for thread in self.worlds[2].store.threads() if thread.is_live}

    @rule()
    def time_passes(self) -> None:
        """Let the time pass after which threads expire, and are too old."""
        for world in self.worlds:
            for thread in world.store.threads():
                if thread.is_live:
                    age = dict.fromkeys(("created_at", "updated_at"), THREE_DAYS)
                    world.store.age(thread.thread_id, **age)

    def look_at_everything(self) -> None:
        """Compare all that we have."""
        walk, everything = Method("catalog", "walk"), Method("saver", "list")
        self.compare(walk, [{"sort_by": "thread_id"}] * 3, None)
        self.compare(everything, [{"config": None}] * 3, self.loop)
        for thread_id in sorted(self.ids_of_ours()):
            if thread_id.startswith(self.prefix):
                for name in ("get", "stats"):
                    self.compare(Method("catalog", name), [{"thread_id": thread_id}] * 3, None)
                for name in ("lineage", "family", "history"):
                    self.compare(Method("saver", name), [{"thread_id": thread_id}] * 3, None)

    def is_counted(self, method: Method, arguments: Any) -> bool:
        """Return whether a call is to take as many statements if the ids in it are theirs."""
        if method.name in OF_ALL_THREADS or arguments.get("config", arguments) is None:
            return False
        is_used = not self.used_by_them.isdisjoint(ids_in(arguments, self.prefix))
        return method.name not in MAKING or not is_used

    def is_taken(self, outcome: Outcome) -> bool:
        """Return whether an id could not be used because it is theirs."""
        if outcome.error != "ThreadExists":
            return False
        (thread_id,) = re.findall(r"'([^']*)'", outcome.answer)
        return thread_id in self.used_here()

    def used_here(self) -> set[str]:
        """Return the ids that they use, and we do not."""
        used, used_alone = (
            {thread.thread_id for thread in world.store.threads() if thread.is_live}
            for world in (self.worlds[0], self.worlds[2])
        )
        return used - used_alone

    def teardown(self) -> None:
        for caller in (*self.theirs, *self.ours):
            while caller.leases:
                self.let_go(caller)
        if sys.exc_info()[0] is None:
            self.look_at_everything()
            finished["examples"] += 1
        self.loop.close()
        for world in self.worlds:
            for thread in world.store.threads():
                if thread.is_live:
                    world.saver.delete_thread(thread.thread_id)
            assert world.store.problems(world.saver) == []


THREE_DAYS = 3 * 24 * 3600 * 1_000_000
OF_ALL_THREADS = {
    "apply_retention",
    "bulk_delete",
    "count",
    "delete_for_runs",
    "latest",
    "search",
    "sweep",
    "sweeper",
    "walk",
}
"""The methods that name no thread: what they take depends on all that there are."""
MAKING = {
    "clone",
    "copy_thread",
    "create",
    "fork",
    "get_or_create",
    "put",
    "put_writes",
    "rollover",
    "run",
}
"""The methods that may make a thread: of one that is made, it is looked whether its id was used."""


def explore(new_store: Callable[[], Store], examples: int, steps: int, *phases: Phase) -> None:
    finished.clear()
    worlds = [World(new_store) for _ in range(3)]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Owners(worlds),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, *phases],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert finished["examples"] >= examples


@pytest.mark.parametrize(
    ("new_store", "examples", "steps"),
    [
        pytest.param("sqlite", 2, 25),
        pytest.param("sqlite", 1500, 50, marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
        pytest.param("mongodb", 1, 20),
        pytest.param("mongodb", 300, 40, marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
    indirect=["new_store"],
)
def test_an_owner_cannot_change_or_learn_anything_of_another(
    new_store: Callable[[], Store], examples: int, steps: int
) -> None:
    explore(new_store, examples, steps)


def test_it_is_said_of_each_argument_what_is_passed() -> None:
    named = {
        f"{method.part}.{name}" if f"{method.part}.{name}" in DRAWN else name
        for method in LIVE
        for name in method.parameters
    }
    assert named == DRAWN.keys()
