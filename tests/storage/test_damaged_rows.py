"""Whatever is lost or damaged in a store: what is read is right, or an error."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pymongo.errors
import pytest

from checking import Api, config, encrypted_serde, put
from forkpoint import CorruptChunk, SafeSerializer, ThreadCatalog, UnreadableValue
from forkpoint.langgraph_rules import COUNTERS
from forkpoint.saver.saver import ForkpointSaver
from graphs import MORE_SHAPES, SHAPES
from stores import Store


def run(saver: ForkpointSaver, name: str, thread_id: str) -> Any:
    """Run a graph of some shape, and return it."""
    shape = ALL_SHAPES[name]
    graph = shape.build(saver)
    for value in shape.inputs:
        with contextlib.suppress(RuntimeError):  # one of the shapes fails
            graph.invoke(value, config(thread_id), **shape.options)
    return graph


class Threads:
    """Threads of several graphs, and all that can be read of them."""

    def __init__(self, saver: ForkpointSaver, names: Sequence[str]) -> None:
        self.saver = saver
        self.graphs: dict[str, Any] = {}
        for name in names:
            graph = self.graphs[name] = run(saver, name, name)
            middle = list(saver.list(config(name)))[2]
            saver.copy_thread(name, f"{name}, copied")
            saver.fork(name, new_thread_id=f"{name}, forked")
            saver.fork(middle.config, new_thread_id=f"{name}, earlier", history="path")
            saver.copy_thread(name, f"{name}, trimmed")
            saver.trim(f"{name}, trimmed", 1)
            for what in ("copied", "forked", "earlier", "trimmed"):
                self.graphs[f"{name}, {what}"] = graph
        self.checkpoints = {
            thread_id: [
                found.config for found in saver.list({"configurable": {"thread_id": thread_id}})
            ]
            for thread_id in self.graphs
        }
        self.expected = {thread_id: list(self.reads(thread_id)) for thread_id in self.graphs}

    def reads(self, thread_id: str) -> Iterator[tuple[str, Any]]:
        """Yield what each read returns, or which error it raises."""
        saver, graph = self.saver, self.graphs[thread_id]

        def read(what: str, call: Callable[[], Any]) -> tuple[str, Any]:
            try:
                return what, call()
            except (CorruptChunk, UnreadableValue) as error:
                return what, error

        yield read("head", lambda: pending_sorted(saver.get_tuple(config(thread_id))))
        yield read(
            "list", lambda: [pending_sorted(found) for found in saver.list(config(thread_id))]
        )
        yield read("state", lambda: graph.get_state(config(thread_id), subgraphs=True))
        yield read("fork", lambda: self.fork(thread_id))
        for stored in self.checkpoints[thread_id]:
            yield read("tuple", lambda stored=stored: pending_sorted(saver.get_tuple(stored)))
            if stored["configurable"]["checkpoint_ns"] == "":
                yield read("earlier state", lambda stored=stored: graph.get_state(stored))

    def fork(self, thread_id: str) -> Any:
        forked = self.saver.fork(thread_id, new_thread_id="probe")
        try:
            state = self.graphs[thread_id].get_state(forked)
            return state.values, state.next, state.interrupts
        finally:
            self.saver.delete_thread("probe")

    def fails(self, thread_id: str) -> bool:
        """Return whether something cannot be read."""
        return any(isinstance(now, Exception) for _, now in self.reads(thread_id))

    def wrong(self, thread_id: str) -> list[str]:
        """Return what is read that is neither right nor an error."""
        return [
            f"{what} of {thread_id} is {now!r:.400}, and was {before!r:.400}"
            for (what, before), (_, now) in zip(
                self.expected[thread_id], self.reads(thread_id), strict=True
            )
            # Exceptions that were stored are equal to no other ones.
            if now != before and repr(now) != repr(before) and not isinstance(now, Exception)
        ]


def pending_sorted(found: Any) -> Any:
    return found and found._replace(pending_writes=sorted(found.pending_writes, key=repr))


def damages(
    row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what may become of the fields of a row."""
    for field, value in row.items():
        if field in UNREAD:
            continue
        if isinstance(value, bool):
            yield {field: not value}
        elif isinstance(value, int):
            yield {field: value ^ 1}
        elif isinstance(value, bytes) and value:
            yield {field: bytes([value[0] ^ 1]) + value[1:]}
            yield {field: value[:-1]}
        elif isinstance(value, str) and value:
            yield {field: value[:-1] + chr(ord(value[-1]) ^ 1)}
        yield {field: None}
        for other in others[:3]:
            if other.get(field) != value:
                yield {field: other.get(field)}


UNREAD = {"terms", "log", "slot", "record", "kind"}
ALL_SHAPES = {**SHAPES, **MORE_SHAPES}
MANY = [name for name in SHAPES if "durability" not in name]
MANY += ["deltas with questions", "remembering", "called, stateful"]


@pytest.mark.parametrize(
    ("kind", "serde"),
    [
        pytest.param("checkpoints", SafeSerializer, id="checkpoints, plain"),
        pytest.param("writes", encrypted_serde, id="writes, encrypted"),
        pytest.param(
            "checkpoints", encrypted_serde, id="checkpoints, encrypted", marks=pytest.mark.slow
        ),
        pytest.param("writes", SafeSerializer, id="writes, plain", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("names", "share"),
    [
        (["deltas with questions"], 0.005),
        pytest.param(MANY, 0.02, marks=pytest.mark.slow),
    ],
)
def test_what_is_read_of_a_damaged_store_is_right_or_an_error(
    store: Store, kind: str, serde: Any, names: list[str], share: float
) -> None:
    rng = random.Random(1)
    with store.saver(serde=serde()) as saver:
        threads = Threads(saver, names)
        ids = {thread.key: thread.thread_id for thread in store.threads()}
        rows = store.stored(kind)
        for key, row in rows.items():
            others = rng.sample(list(rows.values()), 3)
            for fields in [None, *damages(row, others)]:
                if rng.random() > share * (4 if fields is None else 1):
                    continue
                try:
                    change(store, kind, key, fields)
                except REFUSED:
                    continue
                affected = {ids[row["thread"]]} & threads.graphs.keys()
                moved = (fields or {}).get("thread")
                affected |= {ids[moved]} & threads.graphs.keys() if moved in ids else set()
                for thread_id in affected:
                    assert threads.wrong(thread_id) == [], (fields, row)
                is_noticed = any(map(threads.fails, affected))
                assert not is_noticed or saver.check().problems, (fields, row)
                store.put_back(kind, key, row)
        assert all(threads.wrong(thread_id) == [] for thread_id in threads.graphs)
        assert not any(
            isinstance(now, Exception)
            for thread_id in threads.graphs
            for _, now in threads.reads(thread_id)
        )


def change(store: Store, kind: str, key: Any, fields: dict[str, Any] | None) -> None:
    if fields is None:
        store.take(kind, key)
    else:
        store.change(kind, key, **fields)


REFUSED = (sqlite3.IntegrityError, pymongo.errors.WriteError)
"""What the database does not let happen to a row."""


async def test_a_damaged_thread_keeps_no_other_from_being_pruned(api: Api, store: Store) -> None:
    for thread_id in "abc":
        head: Any = None
        for n in range(3):
            texts = [f"{thread_id} {n} {m} " * 90 for m in range(9)]
            head = put(api.saver, {"texts": texts}, thread_id=thread_id, parent=head)
    await api.copy_thread("a", "copy of a")
    await api.copy_thread("b", "copy of b")
    for thread_id in "ab":
        family = store.thread(thread_id).family
        store.take("chunks", next(row.key for row in store.rows("chunks") if row.family == family))
    with pytest.raises(CorruptChunk, match="not collected"):
        await api.prune(["a", "c"])
    with pytest.raises(CorruptChunk, match="not collected"):
        await api.prune(["b", "c"], strategy="delete")
    threads = ThreadCatalog(api.saver).search().items
    counts = {thread.thread_id: thread.checkpoint_count for thread in threads}
    assert counts == {"a": 1, "copy of a": 3, "copy of b": 3}


async def test_runs_are_removed_from_all_threads_but_those_that_are_damaged(
    api: Api, store: Store
) -> None:
    metadata = {"run_id": "run", COUNTERS: {"n": [1, 1]}}
    for thread_id in ("a", "b", "c"):
        put(api.saver, {"n": 1}, thread_id=thread_id, metadata=metadata)
        put(api.saver, {"n": 2}, thread_id=thread_id)
    key = store.thread("b").key
    row = next(row for row in store.rows("checkpoints") if row.thread == key)
    store.change("checkpoints", row.key, content=b"x" + row.content[1:])
    with pytest.raises(CorruptChunk):
        await api.delete_for_runs(["run"])
    threads = ThreadCatalog(api.saver).search().items
    counts = {thread.thread_id: thread.checkpoint_count for thread in threads}
    assert counts == {"a": 1, "b": 2, "c": 1}
