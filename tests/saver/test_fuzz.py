"""Whatever is passed to a public method, only a typed error or an answer comes out.

Every argument of every method, read from the signatures, is replaced by whatever Python allows.
After that the store is clean, other threads are as they were, and both backends have said the same.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from checking import checkpoint, config, drawn, put
from forkpoint import (
    ForkpointError,
    NewThread,
    RetentionPolicy,
    ThreadCatalog,
    ThreadFilter,
    UnreadableValue,
)
from forkpoint.inputs import LEASE
from forkpoint.saver.saver import ForkpointSaver
from hostile import ANYTHING, VALUES, Named
from interface import LIVE, Method, Outcome, answer_of, comparable
from servers import ReplicaSet
from stores import MongoStore, SqliteStore, Store

_numbers = itertools.count()


class Scene(NamedTuple):
    """What there is when a method is called."""

    thread_id: str
    head: Any
    new_id: str
    directory: Path


VALID: dict[str, Callable[[Scene], Any]] = {
    "a": lambda scene: scene.thread_id,
    "quarantine": lambda scene: None,
    "archive": lambda scene: None,
    "b": lambda scene: scene.head,
    "before": lambda scene: scene.head,
    "channel": lambda scene: "messages",
    "channels": lambda scene: ["n"],
    "checkpoint": lambda scene: checkpoint({"n": 3, "text": "text " * 500}),
    "checkpoints": lambda scene: True,
    "config": lambda scene: scene.head,
    "current": lambda scene: 1,
    "cursor": lambda scene: None,
    "descending": lambda scene: True,
    "dry_run": lambda scene: False,
    "extra_allowlist": lambda scene: [("collections", "Counter")],
    "filter": lambda scene: {"k": 1},
    "catalog.filter": lambda scene: ThreadFilter(ids=[scene.thread_id]),
    "history": lambda scene: "head",
    "if_busy": lambda scene: "raise",
    "if_exists": lambda scene: "raise",
    "index": lambda scene: 0,
    "interval": lambda scene: timedelta(days=1),
    "keep": lambda scene: 1,
    "keep_last": lambda scene: None,
    "label": lambda scene: "label",
    "limit": lambda scene: 2,
    "message_id": lambda scene: "m",
    "metadata": lambda scene: {"k": 1},
    "must_exist": lambda scene: False,
    "new_thread_id": lambda scene: scene.new_id,
    "new_versions": lambda scene: {"n": 1, "text": 1},
    "offset": lambda scene: 0,
    "on_expiry": lambda scene: "delete",
    "on_progress": lambda scene: None,
    "owner": lambda scene: "acme",
    "policy": lambda scene: RetentionPolicy(expired=True),
    "run_ids": lambda scene: ["run"],
    "sort_by": lambda scene: "updated_at",
    "source": lambda scene: scene.thread_id,
    "source_thread_id": lambda scene: scene.thread_id,
    "steps": lambda scene: 1,
    "strategy": lambda scene: "keep_latest",
    "tags": lambda scene: ["tag"],
    "target_thread_id": lambda scene: scene.new_id,
    "task_id": lambda scene: "other task",  # that of a task that has put is ignored
    "task_path": lambda scene: "",
    "thread_id": lambda scene: scene.thread_id,
    "threads": lambda scene: [NewThread(scene.new_id, tags=["tag"])],
    "thread_ids": lambda scene: [scene.thread_id],
    "timeout": lambda scene: None,
    "ttl": lambda scene: timedelta(days=1),
    "values": lambda scene: {"n": 2},
    "saver.at.values": lambda scene: False,
    "saver.history.values": lambda scene: False,
    "saver.list.values": lambda scene: True,
    "writes": lambda scene: [("n", 1)],
}
"""What can be passed for each argument of any method, by its name."""

CONFIG_KEYS = ("thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint_map", LEASE, "run_id", "")
CHECKPOINT_KEYS = (
    "v",
    "id",
    "ts",
    "channel_values",
    "channel_versions",
    "versions_seen",
    "updated_channels",
    "pending_sends",
    "odd",
)

Spoil = Callable[[Scene, Any], Any]


def _in_config(key: str) -> Spoil:
    return lambda scene, value: {"configurable": {**scene.head["configurable"], key: value}}


def _in_checkpoint(key: str) -> Spoil:
    return lambda scene, value: {**VALID["checkpoint"](scene), key: value}


def _in(kind: Any, name: str) -> Spoil:
    return lambda scene, value: kind(**{name: value})


_CONFIG: dict[str, Spoil] = {
    **{f"['configurable'][{key!r}]": _in_config(key) for key in CONFIG_KEYS},
    "['configurable']": lambda scene, value: {"configurable": value},
    "['metadata']": lambda scene, value: {**scene.head, "metadata": value},
    "['metadata']['k']": lambda scene, value: {**scene.head, "metadata": {"k": value}},
    "[...]": lambda scene, value: {**scene.head, "odd": value},
}
_OF_MAPPING: dict[str, Spoil] = {"['k']": lambda scene, value: {"k": value}}
_OF_LIST: dict[str, Spoil] = {"[0]": lambda scene, value: [value]}
INSIDE: dict[str, dict[str, Spoil]] = {
    "config": _CONFIG,
    "before": _CONFIG,
    "source": _CONFIG,
    "a": _CONFIG,
    "b": _CONFIG,
    "metadata": _OF_MAPPING,
    "filter": _OF_MAPPING,
    "new_versions": {"['n']": lambda scene, value: {"n": value}},
    "values": {"['n']": lambda scene, value: {"n": value}},
    "checkpoint": {
        **{f"[{key!r}]": _in_checkpoint(key) for key in CHECKPOINT_KEYS},
        "['channel_values']['n']": lambda scene, value: checkpoint({"n": value}),
        "['channel_versions']['n']": lambda scene, value: checkpoint({"n": 1}, {"n": value}),
        "['versions_seen']['node']['n']": lambda scene, value: {
            **VALID["checkpoint"](scene),
            "versions_seen": {"node": {"n": value}},
        },
    },
    "writes": {
        **_OF_LIST,
        "[0][0]": lambda scene, value: [(value, 1)],
        "[0][1]": lambda scene, value: [("n", value)],
    },
    "channels": _OF_LIST,
    "extra_allowlist": {**_OF_LIST, "[0][0]": lambda scene, value: [(value, "a")]},
    "run_ids": _OF_LIST,
    "tags": _OF_LIST,
    "thread_ids": _OF_LIST,
    "catalog.filter": {
        f".{field.name}": _in(ThreadFilter, field.name)
        for field in dataclasses.fields(ThreadFilter)
    },
    "policy": {
        f".{field.name}": _in(RetentionPolicy, field.name)
        for field in dataclasses.fields(RetentionPolicy)
    },
}
"""The places within an argument, and what the argument is with a value there."""


def _key(method: Method, parameter: str) -> str:
    return method.key(parameter, VALID)


class Place(NamedTuple):
    """Where something is passed: an argument of a method, or a place within it."""

    method: Method
    parameter: str
    inside: str

    def __repr__(self) -> str:
        return f"{self.method}({self.parameter}{self.inside})"

    def arguments(self, scene: Scene, value: Any) -> dict[str, Any]:
        spoil = INSIDE[_key(self.method, self.parameter)][self.inside] if self.inside else None
        given = value if spoil is None else spoil(scene, value)
        return {**valid(self.method, scene), self.parameter: given}


def valid(method: Method, scene: Scene) -> dict[str, Any]:
    """Return arguments that a method can be called with."""
    return {name: VALID[_key(method, name)](scene) for name in method.parameters}


PLACES = [
    Place(method, parameter, inside)
    for method in LIVE
    for parameter in method.parameters
    for inside in ["", *INSIDE.get(_key(method, parameter), ())]
]


_ROUNDS = 100  # of a store


class World:
    """A store with a thread that nobody means, and who calls its methods.

    Now and then it is a new one: what is left of deleted threads is checked again and again.
    """

    def __init__(self, new_store: Callable[[], Store]) -> None:
        self._new_store = new_store
        self._begin()

    def _begin(self) -> None:
        self._rounds = 0
        self.store = self._new_store()
        self.saver = self.store.saver()
        put(self.saver, {"n": 1, "text": "text " * 500}, thread_id="bystander")
        self.bystander = self.look("bystander")

    def look(self, thread_id: str) -> Any:
        at = config(thread_id)
        return repr([ThreadCatalog(self.saver).get(thread_id), list(self.saver.list(at))])

    def scene(self, owner: str | None, directory: Path, number: int) -> tuple[Scene, Any]:
        """Return who calls, and the thread that there is."""
        saver = self.saver if owner is None else self.saver.for_owner(owner)
        thread_id = f"mine {number}"
        first = put(saver, {"n": 0, "text": "text " * 500}, thread_id=thread_id)
        head = put(saver, {"n": 1}, parent=first, metadata={"run_id": "run", "k": 1})
        saver.put_writes(head, [("n", 1)], "task")
        return Scene(thread_id, head, f"new {number}", directory), saver

    def clear(self) -> None:
        """Remove all threads but that which nobody means."""
        self._rounds += 1
        if self._rounds == _ROUNDS:
            self.close()
            self._begin()
            return
        for thread in ThreadCatalog(self.saver).walk():
            if thread.thread_id != "bystander":
                self.saver.delete_thread(thread.thread_id)
        for thread in self.store.threads():
            if thread.is_live and thread.thread_id != "bystander":
                self.saver.delete_thread(thread.thread_id)

    def close(self) -> None:
        self.saver.close()
        self.store.close()

    def check(self) -> None:
        with suppress(UnreadableValue):  # a value is there, and of a type that cannot be restored
            assert self.store.problems(self.saver) == []
        assert self.store.problems() == []
        assert self.look("bystander") == self.bystander


@pytest.fixture
def worlds(tmp_path: Path, mongo_server: ReplicaSet) -> Iterator[list[World]]:
    """A world on each backend."""
    stores: list[Callable[[], Store]] = [
        lambda: SqliteStore(tmp_path / f"fuzz {next(_numbers)}.db"),
        lambda: MongoStore(mongo_server.uri, f"test-fuzz-{next(_numbers)}"),
    ]
    with ExitStack() as opened:
        made = []
        for new_store in stores:
            made.append(World(new_store))
            opened.callback(made[-1].close)
        yield made


def outcome(
    saver: ForkpointSaver, method: Method, arguments: Mapping[str, Any], loop: Any
) -> Outcome:
    """Call a method, or its async twin in an event loop, and return what came of it."""
    caller = saver if method.part == "saver" else ThreadCatalog(saver)
    try:
        answer = answer_of(caller, method, arguments, loop)
    except ForkpointError as error:
        return Outcome(type(error).__name__, str(error))
    return Outcome(None, comparable(answer))


def explore(
    worlds: list[World],
    place: Place,
    value: Any,
    after: Method,
    owner: str | None,
    in_loop: bool,
    directory: Path,
) -> None:
    number = next(_numbers)
    loop = asyncio.new_event_loop() if in_loop else None
    said = []
    try:
        for world in worlds:
            scene, saver = world.scene(owner, directory, number)
            spoilt = outcome(saver, place.method, place.arguments(scene, value), loop)
            following = outcome(saver, after, valid(after, scene), loop)
            world.check()
            world.clear()
            said.append((spoilt.error, following.error))
    finally:
        if loop is not None:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
    assert said[0] == said[-1]


@drawn(
    few=8,
    many=6_000,
    place=st.sampled_from(PLACES),
    value=ANYTHING,
    after=st.sampled_from(LIVE),
    owner=st.sampled_from([None, "acme"]),
    in_loop=st.booleans(),
)
def test_only_typed_errors_and_answers_come_out(
    worlds: list[World],
    tmp_path: Path,
    place: Place,
    value: Named,
    after: Method,
    owner: str | None,
    in_loop: bool,
) -> None:
    assume(place.parameter != "on_progress" or not callable(value.value))  # what it raises is its
    explore(worlds, place, value.value, after, owner, in_loop, tmp_path)


KNOWN = {
    "saver.put_writes(task_id)": "10**5000",  # which Python cannot print
    "saver.trim(keep)": "-10**5000",
    "saver.at(index)": "10**5000",
    "saver.purge(thread_id)": "1,000 dicts",
    "catalog.update(ttl)": "100,000 tuples",
    "saver.fork(new_thread_id)": "Unspeakable",
    "saver.put(config['configurable'])": "Raising",
    "saver.put(config['metadata'])": "{'a': Unspeakable}",
    "saver.put(config['configurable']['checkpoint_map'])": "numpy.array",
    "saver.prune(strategy)": "numpy.array of strings",
    "saver.fork(history)": "Loud",  # which is equal to everything
    "catalog.search(sort_by)": "Word.CREATED",
    "catalog.count(filter.status)": "numpy.array of objects",
    "catalog.count(filter.created_after)": "raising time zone",
    "saver.with_allowlist(extra_allowlist[0])": "[1]",
    "saver.get_next_version(current)": "' '",
    "catalog.sweep(archive)": "only NUL",
    "catalog.apply_retention(archive)": "100,000 emoji",
    "saver.put(checkpoint['channel_versions'])": "a day",  # after which nobody could read it
    "saver.put(checkpoint['channel_versions']['n'])": "{}",
    "saver.put_writes(writes[0])": "RaisingSequence",
    "saver.list(limit)": "[Unspeakable]",
}
"""Places, and values that once led to an error without a type, or to what could not be read."""


def test_earlier_findings_of_the_fuzzer_raise_typed_errors(
    worlds: list[World], tmp_path: Path
) -> None:
    by_name = {repr(place): place for place in PLACES}
    for number, (name, value) in enumerate(KNOWN.items()):
        world, after = worlds[number % 2], by_name["catalog.stats(thread_id)"].method
        explore([world], by_name[name], VALUES[value](), after, None, False, tmp_path)
    worlds[0].check()


def test_the_fuzzer_knows_values_for_each_argument() -> None:
    assert {_key(method, name) for method in LIVE for name in method.parameters} == VALID.keys()
    assert INSIDE.keys() <= VALID.keys()
