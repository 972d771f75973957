"""A check of a store names what was changed or lost in it, and nothing else."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph

from checking import Api, checkpoint, config, encrypted_serde, put
from forkpoint import CheckReport, CorruptChunk, InvalidInput, SafeSerializer
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.receipts import RECEIPT
from graphs import SHAPES, append_all
from stores import Store

TEXTS = [f"text {n} " * 80 for n in range(60)]


def fill(saver: ForkpointSaver, thread_id: str) -> None:
    first = put(saver, {"texts": TEXTS[:40], "n": 1}, thread_id=thread_id)
    second = put(saver, {"texts": TEXTS, "n": 2}, thread_id=thread_id, parent=first)
    saver.put_writes(second, [("c", TEXTS), ("d", 1)], "task")


def run_graphs(saver: ForkpointSaver, names: list[str]) -> None:
    for name in names:
        shape = SHAPES[name]
        graph = shape.build(saver)
        for value in shape.inputs:
            graph.invoke(value, config(name), **shape.options)
        saver.fork(name, new_thread_id=f"{name}, forked", history="path")
        saver.copy_thread(name, f"{name}, copied")
        saver.trim(f"{name}, copied", 1)


@pytest.mark.parametrize("serde", [SafeSerializer, encrypted_serde], ids=["plain", "encrypted"])
@pytest.mark.in_turns
def test_a_clean_store_has_no_problems(store: Store, serde: Any) -> None:
    with store.saver(serde=serde()) as saver:
        assert saver.check() == CheckReport()
        names = ["chat", "deltas", "interrupts", "stateful subgraphs"]
        run_graphs(saver, names)
        saver.delete_thread("chat")
        report = saver.check()
        assert report.problems == ()
        assert report.is_clean
        assert report.threads == 3 * len(names) - 1
        assert report.checkpoints == len(store.rows("checkpoints"))


class Logs(TypedDict, total=False):
    often: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=3)]
    seldom: Annotated[list[Any], DeltaChannel(append_all, snapshot_frequency=4)]


def test_what_a_hidden_checkpoint_is_not_kept_for_is_no_problem(
    saver: ForkpointSaver, store: Store
) -> None:
    """One stores a channel for those that are seen, and another channel is rebuilt at it."""
    builder = StateGraph(Logs)
    builder.add_node("step", lambda _: {"often": ["step"], "seldom": ["step"]})
    builder.add_edge(START, "step")
    graph = builder.compile(checkpointer=saver)
    hidden = 0
    for number in range(6):
        graph.invoke({"often": [number], "seldom": [number]}, config())
        before = graph.get_state(config()).values
        saver.prune(["thread"])
        assert graph.get_state(config()).values == before
        hidden += store.count("checkpoints") - 1
        assert saver.check().problems == ()
    assert hidden > 6


async def test_the_async_twin_tells_its_progress(api: Api) -> None:
    for n in range(3):
        fill(api.saver, f"t{n}")
    seen: list[CheckReport] = []
    report = await api.check(on_progress=seen.append)
    assert (report.threads, report.checkpoints, report.writes) == (3, 6, 6)
    assert seen[-1] == report
    with pytest.raises(InvalidInput):
        await api.check(on_progress="nothing")


def test_only_an_owners_threads_are_checked(saver: ForkpointSaver) -> None:
    fill(saver.for_owner("a"), "mine")
    fill(saver.for_owner("b"), "theirs")
    assert saver.for_owner("a").check().threads == 1
    assert saver.check().threads == 2


@pytest.mark.parametrize("kind", ["checkpoints", "writes", "chunks"])
@pytest.mark.parametrize(
    ("serde", "share"),
    [
        pytest.param(SafeSerializer, 0.15, id="plain"),
        pytest.param(encrypted_serde, 0.1, id="encrypted"),
        pytest.param(SafeSerializer, 1, id="plain-all", marks=pytest.mark.slow),
        pytest.param(encrypted_serde, 1, id="encrypted-all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.in_turns
def test_each_row_that_was_changed_or_lost_is_named(
    kind: str, serde: Any, share: float, store: Store
) -> None:
    rng = random.Random(1)
    with store.saver(serde=serde()) as saver:
        fill(saver, "thread")
        fill(saver, "other")
        thread = store.thread("thread")
        rows = [row for row in store.rows(kind) if kind == "chunks" or row.thread == thread.key]
        rows = [row for row in rows if kind != "chunks" or row.family == thread.family]
        fields = ["content", *(["checksum"] if kind != "chunks" else [])]
        for number, row in enumerate(rows):
            for field in [None, *fields]:
                if number and rng.random() > share:
                    continue
                if field is None:
                    taken = store.take(kind, row.key)
                else:
                    content = getattr(row, field) or b"x"
                    changed = bytes([content[0] ^ 1]) + content[1:]
                    store.change(kind, row.key, **{field: changed})

                report = saver.check()
                named = {problem.thread_id for problem in report.problems}
                assert named == {"thread"}, (field, row)
                assert any(problem.checkpoint_id for problem in report.problems)

                if field is None:
                    store.give_back(kind, taken)
                else:
                    store.change(kind, row.key, **{field: getattr(row, field)})
        assert saver.check().is_clean


def test_a_record_that_counts_wrong_is_named(store: Store) -> None:
    with store.saver() as saver:
        fill(saver, "other")
        saver.copy_thread("other", "thread")
        key = store.thread("thread").key
        store.change("threads", key, checkpoint_count=7)
        (problem,) = saver.check().problems
        assert problem.thread_id == "thread"
        assert problem.checkpoint_id is None
        assert "counts 7 checkpoints, and it has 2" in problem.reason
        store.change("threads", key, checkpoint_count=2, label="another")
        (problem,) = saver.check().problems
        assert "is not what was written" in problem.reason


@pytest.mark.parametrize("swapped", ["root", "fork"])
@pytest.mark.parametrize("size", [1, 40])
def test_a_record_that_says_another_family_is_named(store: Store, swapped: str, size: int) -> None:
    """Also where no value is so long that the thread would miss chunks there."""
    with store.saver() as saver:
        for thread_id in ("root", "other"):
            values = {"texts": TEXTS[:size] if size > 1 else "short"}
            head = put(saver, values, thread_id=thread_id)
            saver.put_writes(head, [("c", 1)], "task")
        saver.fork("root", new_thread_id="fork")
        saver.fork("other", new_thread_id="other, forked")
        assert saver.check().is_clean
        thread, other = store.thread(swapped), store.thread("other")
        store.change("threads", thread.key, family=other.family)
        report = saver.check()
        assert {problem.thread_id for problem in report.problems} == {swapped}
        assert {problem.checkpoint_id for problem in report.problems} == {None}
        store.change("threads", thread.key, family=thread.family)
        assert saver.check().is_clean


def test_what_others_write_meanwhile_is_no_problem(store: Store) -> None:
    """Four writers put, fork, trim and delete while the store is checked."""
    over = threading.Event()
    failed: list[Exception] = []

    def write(number: int) -> None:
        try:
            with store.saver() as saver:
                turn = 0
                while not over.is_set():
                    turn += 1
                    thread_id = f"{number}-{turn % 3}"
                    place = put(saver, {"texts": TEXTS[: turn % 60]}, thread_id=thread_id)
                    saver.put(place, checkpoint({"texts": TEXTS[turn % 30 :]}), {}, {"texts": 2})
                    if turn % 3 == 0:
                        saver.trim(thread_id, 1)
                    if turn % 7 == 0:
                        saver.delete_thread(thread_id)
        except Exception as error:  # noqa: BLE001  # it is raised in a thread of its own
            failed.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    with store.saver() as saver:
        for writer in writers:
            writer.start()
        try:
            reports = [saver.check() for _ in range(store.times(4))]
        finally:
            over.set()
            for writer in writers:
                writer.join()
        assert not failed
        assert [report.problems for report in reports] == [()] * len(reports)
        assert saver.check().is_clean


@pytest.mark.in_turns
def test_all_threads_of_a_large_store_are_checked(
    saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.operations.check._THREADS_AT_ONCE", 2)
    for n in range(5):
        put(saver, {"n": n}, thread_id=f"t{n}")
    seen: list[CheckReport] = []
    assert saver.check(on_progress=seen.append).threads == 5
    assert [report.threads for report in seen] == [2, 4, 5]


def test_a_checkpoint_that_says_another_run_is_named(store: Store, saver: ForkpointSaver) -> None:
    put(saver, {"n": 1}, metadata={"run_id": "mine"})
    (row,) = store.rows("checkpoints")
    store.change("checkpoints", row.key, run_id="theirs")
    (problem,) = saver.check().problems
    assert "the run of the checkpoint" in problem.reason


def test_a_hidden_checkpoint_with_the_receipt_of_one_that_is_seen_is_named_and_repaired(
    saver: ForkpointSaver, store: Store, tmp_path: Path
) -> None:
    run_graphs(saver, ["deltas"])
    before = list(saver.list(config("deltas, copied")))
    source, copy = (store.thread(name).key for name in ("deltas", "deltas, copied"))
    hidden = {
        row["checkpoint_id"]
        for row in store.stored("checkpoints").values()
        if row["thread"] == copy and row.get("hidden")
    }
    receipt, named = next(
        (key, row["checkpoint_id"])
        for key, row in store.stored("writes").items()
        if row["thread"] == source and row["idx"] == RECEIPT and row["checkpoint_id"] in hidden
    )
    store.change("writes", receipt, thread=copy)
    with pytest.raises(CorruptChunk, match=named):
        list(saver.list(config("deltas, copied")))
    found = {(each.thread_id, each.checkpoint_id) for each in saver.check().problems}
    assert ("deltas, copied", named) in found
    saver.repair(quarantine=tmp_path / "quarantine")
    assert list(saver.list(config("deltas, copied"))) == before
    assert not any(each.thread_id == "deltas, copied" for each in saver.check().problems)
