"""An interrupt at any point of an operation leaves a saver that works, and all or nothing of it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import apart, checkpoint, config, put
from forkpoint import SafeSerializer, SqliteSaver, ThreadCatalog
from forkpoint.errors import ThreadExists
from forkpoint.saver.saver import ForkpointSaver
from interrupting import EachInstruction, InterruptAt
from servers import PATIENCE_SECONDS, wait_until
from stores import SqliteStore, Store

TEXTS = ["x" * 300 + str(n) for n in range(30)]


def fill(saver: ForkpointSaver, thread_id: str) -> Any:
    first = put(saver, {"texts": TEXTS[:20]}, thread_id=thread_id, metadata={"run_id": thread_id})
    second = put(saver, {"texts": TEXTS}, thread_id=thread_id, parent=first)
    saver.put_writes(second, [("c", "x" * 2000)], "task")
    return second


def run_graph(saver: ForkpointSaver, head: Any) -> None:
    with ThreadCatalog(saver).run(id_of(head), ttl=timedelta(seconds=0.5)):
        pass


def id_of(head: Any) -> str:
    return str(head["configurable"]["thread_id"])


NEW = {"texts": [*TEXTS, "new"], "n": 1}
OPERATIONS: dict[str, Callable[[ForkpointSaver, Any], Any]] = {
    "put": lambda saver, head: put(saver, NEW, parent=head),
    "put of a new thread": lambda saver, head: put(saver, NEW, thread_id=id_of(head) + "-copy"),
    "put_writes": lambda saver, head: saver.put_writes(head, [("c", "x" * 2000), ("d", 1)], "two"),
    "get_tuple": lambda saver, head: saver.get_tuple(head),
    "list": lambda saver, head: list(saver.list(config(id_of(head)))),
    "list with a filter": lambda saver, head: list(
        saver.list(config(id_of(head)), filter={"run_id": id_of(head)})
    ),
    "delete_thread": lambda saver, head: saver.delete_thread(id_of(head)),
    "fork": lambda saver, head: saver.fork(head, new_thread_id=id_of(head) + "-copy"),
    "copy_thread": lambda saver, head: saver.copy_thread(id_of(head), id_of(head) + "-copy"),
    "prune": lambda saver, head: saver.prune([id_of(head)]),
    "catalog": lambda saver, head: ThreadCatalog(saver).update(id_of(head), label="new"),
    "lease": run_graph,
}


class Lab:
    """A saver, and what can be seen of a thread by another one, and from another thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.saver = store.saver(**({"busy_timeout": 30} if isinstance(store, SqliteStore) else {}))
        self.other = store.saver(**({"busy_timeout": 0} if isinstance(store, SqliteStore) else {}))
        self.names = (f"thread-{n}" for n in itertools.count())
        self.executor = ThreadPoolExecutor(4)

    def close(self) -> None:
        self.executor.shutdown()
        self.saver.close()
        self.other.close()

    def seen(self, name: str) -> Any:
        """Return all that the store holds of a thread and its copy, whatever their names are."""
        catalog = ThreadCatalog(self.other)
        seen: list[Any] = []
        for thread_id in (name, name + "-copy"):
            thread = catalog.get(thread_id)
            seen.append(thread and (thread.label, thread.checkpoint_count, thread.status))
            seen += [
                (one.checkpoint["channel_values"], one.pending_writes)
                for one in self.other.list(config(thread_id))
            ]
        return seen

    def outcomes(self, operation: str) -> tuple[Any, Any]:
        """Return what is seen before and after an operation that nothing interrupts."""
        name = next(self.names)
        head = fill(self.saver, name)
        before = self.seen(name)
        OPERATIONS[operation](self.saver, head)
        return before, self.seen(name)

    def check_usable(self, name: str) -> None:
        """Use the saver from here, from another thread and from a loop, and the store elsewhere."""
        put(self.other, {"n": 1}, thread_id="by another")  # waits for no lock at all
        put(self.saver, {"n": 1}, thread_id="from here")
        for call in (
            lambda: put(self.saver, {"n": 2}, thread_id="from a thread"),
            lambda: asyncio.run(self.in_loop()),
        ):
            self.executor.submit(call).result(PATIENCE_SECONDS)

    async def in_loop(self) -> None:
        assert await self.saver.aget_tuple(config("from here")) is not None
        made = checkpoint({"n": 3})
        await self.saver.aput(config("from a loop"), made, {}, {"n": 1})


@pytest.fixture
def lab(store: Store) -> Iterator[Lab]:
    with closing(Lab(store)) as lab:
        yield lab


@apart
def interrupt(lab: Lab, operation: str, at: InterruptAt, outcomes: tuple[Any, Any]) -> None:
    """Interrupt an operation at an instruction and look at what is left."""
    name = next(lab.names)
    head = fill(lab.saver, name)
    act = OPERATIONS[operation]
    with at:
        try:
            act(lab.saver, head)
        except KeyboardInterrupt:
            pass
        else:
            assert at.is_over, f"the interrupt at {at} was swallowed"
    lab.check_usable(name)
    if operation == "lease" and ThreadCatalog(lab.other).is_busy(name):
        gc.collect()  # a lease that nobody has is not renewed any more
        wait_until(lambda: not ThreadCatalog(lab.other).is_busy(name), f"the lease, {at}")
    seen = lab.seen(name)
    assert seen in outcomes, at
    if seen == outcomes[0]:
        try:
            act(lab.saver, head)
        except ThreadExists:
            pytest.fail(f"{operation} cannot be repeated after an interrupt at {at}")
        assert lab.seen(name) == outcomes[1]


def count_instructions(lab: Lab, operation: str) -> int:
    head = fill(lab.saver, next(lab.names))
    with InterruptAt(0) as interrupt:
        OPERATIONS[operation](lab.saver, head)
    return interrupt.passed


@pytest.mark.by_halves
@pytest.mark.parametrize("count", [10, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interrupt_leaves_all_or_nothing_and_a_saver_that_works(
    operation: str, count: int, lab: Lab
) -> None:
    outcomes = lab.outcomes(operation)
    instructions = count_instructions(lab, operation)
    # A step that has no factor in common with the length of a loop or of a block.
    for number in range(1, instructions + 1, max(1, instructions // lab.store.times(count)) | 1):
        interrupt(lab, operation, InterruptAt(number), outcomes)
    assert lab.store.problems(lab.other, after_crash=True) == []


@apart
def test_an_interrupt_while_a_connection_is_prepared_leaves_it_its_busy_timeout(path: Path) -> None:
    with sqlite3.connect(path, check_same_thread=False, timeout=7) as connection:
        put(SqliteSaver(connection), {"n": 1})
        for number in itertools.count(1):
            saver = SqliteSaver(connection)
            interrupt = InterruptAt(number, modules={"sqlite/transactions"})
            with suppress(KeyboardInterrupt), interrupt:
                saver.get_tuple(config())
            assert saver.get_tuple(config()) is not None
            assert connection.execute("PRAGMA busy_timeout").fetchone() == (7000,), number
            if interrupt.is_over:
                break
    connection.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the hooks
@apart
def test_an_interrupt_at_a_fork_leaves_savers_that_other_threads_can_use(tmp_path: Path) -> None:
    savers = [SqliteSaver(tmp_path / f"{n}.db") for n in range(2)]
    with ThreadPoolExecutor(1) as executor, savers[0], savers[1]:
        for number in itertools.count(1, 29):
            for saver in savers:
                put(saver, {"n": number})
            with InterruptAt(number, modules={"sqlite/storage", "sqlite/transactions"}) as found:
                process = os.fork()
                if process == 0:
                    os._exit(0)
            os.waitpid(process, 0)
            for saver in savers:
                executor.submit(put, saver, {"n": number}).result(PATIENCE_SECONDS)
            if found.is_over:
                break


@apart
def test_an_interrupt_while_a_value_is_restored_is_no_unreadable_value() -> None:
    """The library that calls the hooks replaces what they raise."""
    serde = SafeSerializer()
    stored = serde.dumps_typed([HumanMessage("text", id="1"), {"set": {1, Path("a")}}])
    interrupted = 0
    for number in itertools.count(1):
        with InterruptAt(number, modules={"encoding/serializer"}) as interrupt:
            try:
                serde.loads_typed(stored)
            except KeyboardInterrupt:
                interrupted += 1
            else:
                assert interrupt.is_over, f"the interrupt at {number} was swallowed"
                break
    assert interrupted == number - 1 > 100


def follow(lab: Lab, name: str) -> list[Any]:
    """Put to some threads at once, from other threads and from a loop."""

    async def puts() -> list[Any]:
        made = checkpoint({"n": 1})
        return await asyncio.gather(
            *(lab.saver.aput(config(f"{name}-{n}"), made, {}, {"n": 1}) for n in range(6))
        )

    others = [
        lab.executor.submit(put, lab.saver, {"n": n}, thread_id=f"{name}-other-{n}")
        for n in range(2)
    ]
    return [lab.executor.submit(asyncio.run, puts()), *others]


@pytest.mark.parametrize("count", [3, pytest.param(200, marks=pytest.mark.slow)])
@apart
def test_puts_in_a_batch_with_an_interrupted_put_return(count: int, lab: Lab) -> None:
    head = fill(lab.saver, "thread")
    instructions = count_instructions(lab, "put_writes")
    for number in range(1, instructions, max(1, instructions // count)):
        name = next(lab.names)
        others = follow(lab, name)
        with InterruptAt(number), suppress(KeyboardInterrupt):
            lab.saver.put_writes(head, [("c", number)], f"task-{number}")
        for other in others:
            other.result(PATIENCE_SECONDS)
        found = {id_of(one.config) for one in lab.other.list(None) if name in id_of(one.config)}
        assert len(found) == 8
        for thread_id in found:
            lab.saver.delete_thread(thread_id)
    assert lab.store.problems(lab.other, after_crash=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interrupt_at_each_instruction_leaves_all_or_nothing(
    operation: str, new_store: Callable[[], Store]
) -> None:
    """At what is come by more than once, it comes the first time, and the last."""
    with closing(Lab(new_store())) as lab:
        outcomes = lab.outcomes(operation)
        head = fill(lab.saver, next(lab.names))
        with EachInstruction() as each:
            OPERATIONS[operation](lab.saver, head)
    moments = [
        InterruptAt(number, instruction=instruction)
        for instruction, times in each.times.items()
        for number in {1, times}
    ]
    for first in range(0, len(moments), INTERRUPTS_PER_STORE):
        with closing(Lab(new_store())) as lab:
            assert lab.outcomes(operation) == outcomes
            for at in moments[first : first + INTERRUPTS_PER_STORE]:
                interrupt(lab, operation, at, outcomes)
            assert lab.store.problems(lab.other, after_crash=True) == []


INTERRUPTS_PER_STORE = 200
"""After how many a store is checked, which takes the longer the more is in it."""
