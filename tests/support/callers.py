"""Owners who call any method with arguments that a number stands for, and what they are told."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from forkpoint import (
    ForkpointError,
    Lease,
    NewThread,
    RetentionPolicy,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.inputs import LEASE
from forkpoint.saver.saver import ForkpointSaver
from interface import LIVE, Method, Outcome, answer_of, comparable
from stores import Store

OURS, THEIRS = "ours", "theirs"
LETTERS, OUR_LETTERS = "abcdefgh", "abcdef"
"""Of the ids that they use, and of those of them with which we make threads."""
MAKING = {"create", "get_or_create", "put", "put_writes", "run"}
"""The methods that may make a thread of an id that is not there."""


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
        self.saver = self.store.watched(self._note)

    def _note(self, statement: str) -> None:
        if "VALUES ('clock'" not in statement:  # it is sent when a while has passed
            self.sent.append(statement)


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
            answer = answer_of(caller, method, arguments, loop)
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
    letters: str = LETTERS
    """What may come last in a thread id."""

    def thread_id(self, picks: Picks) -> str:
        return self.caller.thread_prefix + picks.of(self.letters)

    def new_id(self, picks: Picks) -> str:
        return self.caller.thread_prefix + picks.of(OUR_LETTERS)

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
            label_contains=picks.of([None, None, "abe"]),
            values=picks.of([{}, {}, {"n": 1}]),
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
    return {prefix + letter for letter in re.findall(rf"'{prefix}([a-h])'", repr(arguments))}


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
    "quarantine": lambda here, picks: None,
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
    "if_busy": lambda here, picks: picks.of(["raise", "cancel", "rollback"]),
    "if_exists": lambda here, picks: picks.of(["raise", "do_nothing"]),
    "index": lambda here, picks: picks.of([0, -1, 1]),
    "interval": lambda here, picks: timedelta(days=1),
    "keep": lambda here, picks: picks.of([1, 2]),
    "keep_last": lambda here, picks: picks.of([None, 1]),
    "label": lambda here, picks: picks.of(["label", None]),
    "limit": lambda here, picks: picks.of([1, 2, 50]),
    "message_id": lambda here, picks: picks.of(["m0", "m1", "m2"]),
    "metadata": lambda here, picks: {"run_id": picks.of(RUNS), "k": picks.of([1, 2])},
    "must_exist": lambda here, picks: picks.of([True, False]),
    "new_thread_id": Here.new_id,
    "new_versions": lambda here, picks: picks.of([{}, {"messages": 1}, {"messages": 1, "n": 1}]),
    "offset": lambda here, picks: picks.of([0, 1, 5]),
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
    "target_thread_id": Here.new_id,
    "task_id": lambda here, picks: picks.of(["task", "other task"]),
    "task_path": lambda here, picks: "",
    "thread_id": Here.thread_id,
    "thread_ids": lambda here, picks: [here.thread_id(picks), here.thread_id(picks)],
    "threads": lambda here, picks: [
        NewThread(thread_id, tags=picks.of([[], ["s"]]))
        for thread_id in dict.fromkeys([here.new_id(picks), here.new_id(picks)])
    ],
    "timeout": lambda here, picks: timedelta(milliseconds=1),
    "ttl": lambda here, picks: timedelta(days=1),
    "values": lambda here, picks: picks.of([{}, {"n": 3}]),
    "saver.at.values": lambda here, picks: picks.of([True, False]),
    "saver.history.values": lambda here, picks: picks.of([True, False]),
    "saver.list.values": lambda here, picks: picks.of([True, False]),
    "writes": lambda here, picks: [(picks.of(["n", "__interrupt__", "__error__"]), 1)],
}
"""What is passed for each argument of any method, by its name."""
ALWAYS = {"metadata": ["put"], "timeout": ["run"]}
"""Arguments that are passed though they need not be."""
OFTEN = {"put": 8, "create": 3, "put_writes": 3, "fork": 3, "clone": 2, "run": 2, "get_tuple": 2}
CALLS = st.tuples(
    st.sampled_from([method for method in LIVE for _ in range(OFTEN.get(method.name, 1))]),
    st.integers(0, 2**32),
    st.booleans(),
)
Call = tuple[Method, int, bool]


def drawn_for(method: Method, parameter: str) -> Callable[[Here, Picks], Any]:
    return DRAWN[method.key(parameter, DRAWN)]
