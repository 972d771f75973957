"""Nothing that one owner does changes, or reveals anything in, what another is answered.

The same calls of one owner are made in three stores. In the first, another owner calls every method
in between, with the same thread ids; in the second, it does so with other ids; and in the third,
there is no other owner. All answers are the same, errors included. So are the numbers of statements
in the first two for what is not there: whether an id was never used, or is another's, or was,
cannot be told from how long it takes to find nothing. There is one exception, which the
documentation names: ids are one space, so an id that somebody else uses cannot be used, and to make
a thread of one that somebody else used may take longer.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from callers import (
    ALWAYS,
    CALLS,
    DRAWN,
    LETTERS,
    MAKING,
    OUR_LETTERS,
    OURS,
    THEIRS,
    Call,
    Caller,
    Here,
    Picks,
    World,
    drawn_for,
    ids_in,
)
from checking import explore
from forkpoint import ForkpointError, Lease
from forkpoint.encoding import chunking
from forkpoint.saver import parts_of
from forkpoint.storage.shared import batches
from interface import LIVE, Method, Outcome
from stores import Store

_examples = itertools.count()
finished: Counter[str] = Counter()
"""How many examples came to their end."""


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
        self.never_ours = {self.prefix + letter for letter in LETTERS if letter not in OUR_LETTERS}
        self.loop = asyncio.new_event_loop()

    def arguments(self, caller: Caller, method: Method, number: int) -> Any:
        """Return what a number stands for."""
        cursors = [*self.theirs[0].cursors, *caller.cursors]
        leases = [self.shown(lease) for lease in caller.leases]
        is_shared = caller.world is self.worlds[0]  # elsewhere, the key may be one of ours
        theirs = [self.shown(lease) for lease in self.theirs[0].leases]
        leases += theirs if is_shared else ["nobody's:1" for _ in theirs]
        letters = OUR_LETTERS if caller in self.ours and method.name in MAKING else LETTERS
        here, picks, given = Here(caller, cursors, leases, self.made, letters), Picks(number), {}
        chosen = Picks(number + 1)
        for name, parameter in method.parameters.items():
            is_needed = parameter.default is parameter.empty or method.name in ALWAYS.get(name, ())
            if is_needed or chosen.of([True, False]):
                given[name] = drawn_for(method, name)(here, picks)
        if method.name == "create_many":  # of several, some may be made before one is found taken
            used = self.used_here()
            given["threads"] = [new for new in given["threads"] if new.thread_id not in used]
        if given.get("sort_by", "updated_at") in ("updated_at", "created_at"):
            for name in ("limit", "cursor", "offset"):  # two threads may have the same time
                given.pop(name, None) if method.name == "search" else None
        return given

    def shown(self, lease: Lease) -> Any:
        grant = lease._grant
        assert grant is not None
        return f"{grant.thread.key}:{grant.lease.fence}"

    @initialize()
    def begin(self) -> None:
        """Let each have threads, and an id that was deleted."""
        for caller in (*self.theirs, *self.ours):
            letters = "abghd" if caller in self.theirs else "efc"
            self.made = 1 if caller in self.theirs else 10
            for letter in letters:
                self.put(caller, letter)
            for letter in letters[-2:]:
                caller.saver.delete_thread(caller.thread_prefix + letter)

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
        self.made += method.name == "put"

    @rule(call=CALLS)
    def we_call(self, call: Call) -> None:
        method, number, in_loop = call
        made = [self.arguments(caller, method, number) for caller in self.ours]
        self.compare(method, made, self.loop if in_loop else None)
        self.made += method.name == "put"

    def compare(self, method: Method, made: Sequence[Any], loop: Any) -> None:
        """Make our call in all worlds, and compare the answers."""
        for caller in self.ours:  # a set-up forgets the secret, and a lease of theirs reads it here
            parts_of(caller.saver).context.prepare()
        answers = []
        for caller, arguments in zip(self.ours, made, strict=True):
            answers.append(caller.call(method, arguments, loop))
            if self.is_taken(answers[0][0]):
                return
        outcomes = [outcome for outcome, _ in answers]
        if made[0].get("cursor") in self.theirs[0].cursors:
            outcomes = [outcome._replace(answer=None) for outcome in outcomes]
        if not outcomes[0] == outcomes[1] == outcomes[2]:
            raise AssertionError(f"{method} with {made[0]}: {first_difference(outcomes)}")
        if self.is_counted(method, made[0]):
            steps = [_counted(statements) for _, statements in answers]
            assert len(steps[0]) == len(steps[1]), (str(method), made[0], answers)

    @rule(number=st.integers(0, 2**32), holds=st.booleans())
    def they_hold_a_lease(self, number: int, holds: bool) -> None:
        for caller in self.theirs:
            self.hold(caller, number) if holds else self.let_go(caller)

    @rule(number=st.integers(0, 2**32), holds=st.booleans())
    def we_hold_a_lease(self, number: int, holds: bool) -> None:
        answers = []
        for caller in self.ours:
            answers.append(self.hold(caller, number) if holds else self.let_go(caller))
            if answers[0] is not None and self.is_taken(answers[0]):
                return
        assert answers[0] == answers[1] == answers[2]

    def hold(self, caller: Caller, number: int) -> Outcome | None:
        picks = Picks(number)
        thread_id = caller.thread_prefix + picks.of(OUR_LETTERS)
        if_busy = picks.of(["raise", "cancel", "rollback"])
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
        """Do something with our threads, or with all that there are.

        Whoever is not confined is late if the thread of any owner was deleted since, so what an
        administrator puts depends on the others.
        """
        method, number, in_loop = call
        if method.name in ("put", "put_writes"):
            return
        made = [self.arguments(caller, method, number) for caller in self.admins]
        if ids_in(made[0], self.prefix) <= self.ids_of_ours():
            for caller, arguments in zip(self.admins, made, strict=True):
                caller.call(method, arguments, self.loop if in_loop else None)

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
        return ids_in(arguments, self.prefix) <= self.never_ours

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


def first_difference(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what each outcome is where they begin to differ."""
    texts = [repr(outcome) for outcome in outcomes]
    letters = enumerate(itertools.zip_longest(*texts))
    begin = next((at for at, each in letters if len(set(each)) > 1), 0)
    return [text[max(0, begin - 200) : begin + 400] for text in texts]


THREE_DAYS = 3 * 24 * 3600 * 1_000_000
OF_ALL_THREADS = {
    "apply_retention",
    "bulk_delete",
    "check",
    "count",
    "delete_for_runs",
    "latest",
    "rekey",
    "repair",
    "search",
    "store_stats",
    "sweep",
    "sweeper",
    "walk",
}
"""The methods that name no thread: what they take depends on all that there are."""


@pytest.fixture
def equal_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the nodes of long values as long in each store.

    Digests decide about them, which are random in each: so would be how much is stored.
    """
    monkeypatch.setattr(chunking, "nodes", lambda digests: batches(digests, 16))


def _counted(statements: Sequence[str]) -> list[str]:
    """Return the statements but for those that look for the time of the store, now and then."""
    return [statement for statement in statements if "'clock'" not in statement]


@pytest.mark.parametrize(
    ("new_store", "examples", "steps"),
    [
        pytest.param("sqlite", 2, 25),
        pytest.param("sqlite", 1500, 50, marks=pytest.mark.slow),
        pytest.param("mongodb", 1, 20),
        pytest.param("mongodb", 300, 40, marks=pytest.mark.slow),
    ],
    indirect=["new_store"],
)
def test_an_owner_cannot_change_or_learn_anything_of_another(
    new_store: Callable[[], Store], examples: int, steps: int, equal_nodes: None
) -> None:
    finished.clear()
    worlds = [World(new_store) for _ in range(3)]
    explore(lambda: Owners(worlds), examples, steps)
    assert finished["examples"] >= examples


def test_it_is_said_of_each_argument_what_is_passed() -> None:
    named = {method.key(name, DRAWN) for method in LIVE for name in method.parameters}
    assert named == DRAWN.keys()
