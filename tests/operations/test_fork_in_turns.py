"""A fork with a long path is made in turns, and is seen when it is complete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from test_removals import ALL_SHAPES, Lab, each_shape

from checking import checkpoint, config, id_of, put, value_of
from forkpoint import CorruptChunk, ThreadCatalog, ThreadExists
from forkpoint.mongodb.turns import Turns
from forkpoint.operations import fork as forking
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from gates import call_between_turns
from stores import Store

ROWS = 20
TEXTS = [f"{n} " * 800 for n in range(7)]


class Ended(BaseException):
    """The end of a process, as far as its transactions are concerned."""


def shorten_turns(patch: pytest.MonkeyPatch, rows: int) -> None:
    patch.setattr(Statements, "default_turn_rows", rows)
    patch.setattr(Turns, "turn_rows", rows)
    patch.setattr(forking, "_COPIED_AT_ONCE", max(1, rows // 4))


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Have a function called between two turns, with how many there were; turns are short."""
    shorten_turns(monkeypatch, ROWS)
    return partial(call_between_turns, monkeypatch)


def fill(saver: ForkpointSaver, length: int = 40) -> list[Any]:
    configs: list[Any] = []
    for n in range(length):
        parent = configs[-1] if configs else None
        configs.append(put(saver, {"text": TEXTS[n % 7], "n": n}, parent=parent))
        saver.put_writes(configs[-1], [("c", TEXTS[-n % 7]), ("d", n)], "task")
    return configs


def forked(saver: ForkpointSaver) -> None:
    saver.fork("thread", new_thread_id="fork", history="path")


def content(saver: ForkpointSaver, thread_id: str) -> list[Any]:
    """Return all that there is to read of a thread, without its id."""
    whole: Any = {"configurable": {"thread_id": thread_id}}
    return [
        (
            one.config["configurable"]["checkpoint_ns"],
            id_of(one),
            one.checkpoint,
            one.metadata,
            one.parent_config and id_of(one.parent_config),
            sorted(one.pending_writes or (), key=repr),
        )
        for one in saver.list(whole)
    ]


@each_shape
def test_it_is_the_same_as_in_one_turn(
    shape: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.saver() as saver:
        heads = Lab(ALL_SHAPES[shape], saver).heads()
        chosen = heads[:: max(1, len(heads) // 3)] + heads[-1:]
        for number, place in enumerate(chosen):
            at = config("thread", place[1])
            for way in "whole", "cut":
                if way == "cut":
                    shorten_turns(monkeypatch, 2)
                    monkeypatch.setattr(forking, "_fork", None)
                saver.fork(at, new_thread_id=f"{way} {number}", history="path")
                monkeypatch.undo()
            assert content(saver, f"cut {number}") == content(saver, f"whole {number}")
            cut, whole = (store.thread(f"{way} {number}") for way in ("cut", "whole"))
            assert (cut.checkpoint_count, cut.status) == (whole.checkpoint_count, whole.status)
        assert store.problems(saver) == []


@pytest.mark.in_turns
def test_others_write_meanwhile_and_a_turn_changes_a_bounded_number_of_rows(
    store: Store, at_rest: Any
) -> None:
    def rows() -> int:
        return sum(len(store.stored(kind)) for kind in ("checkpoints", "writes"))

    with store.saver() as saver:
        head = fill(saver)[-1]
        before = content(saver, "thread")
        numbers = [rows()]

        def hook(number: int) -> None:
            numbers.append(rows())
            with store.saver() as other:
                put(other, {"n": number}, parent=head)
                assert other.get_tuple(config("fork")) is None

        at_rest(hook)
        forked(saver)
        at_rest(lambda _: None)
        in_each = [after - before for before, after in pairwise(numbers)]
        assert (len(in_each) > 4, max(in_each) < 3 * ROWS) == (True, True)
        assert content(saver, "fork") == before
        assert store.thread("fork").checkpoint_count == len(before)
        (root,) = [entry for entry in saver.lineage("fork") if entry.thread_id == "thread"]
        assert root.exists
        saver.purge("thread")
        assert content(saver, "fork") == before
        assert store.problems(saver) == []


@pytest.mark.parametrize("ends", [1, 100])
def test_what_is_removed_meanwhile_is_not_half_in_it(ends: int, store: Store, at_rest: Any) -> None:
    with store.saver() as saver:
        fill(saver)
        seen = [content(saver, "thread")]

        def hook(number: int) -> None:
            if 3 <= number < 3 + ends and len(seen) < 8:
                at_rest(lambda _: None)
                saver.rollback("thread")
                seen.append(content(saver, "thread"))
                at_rest(lambda more: hook(number + more))

        at_rest(hook)
        forked(saver)
        at_rest(lambda _: None)
        assert len(seen) > 1
        assert content(saver, "fork") in seen
        assert store.problems(saver) == []


@pytest.mark.parametrize("end", [1, 2, 3, 4])
def test_one_that_ended_after_any_turn_is_not_there(end: int, store: Store, at_rest: Any) -> None:
    def hook(number: int) -> None:
        if number == end:
            raise Ended

    with store.saver() as saver:
        fill(saver, 20)
        at_rest(hook)
        with pytest.raises(Ended):
            forked(saver)
    at_rest(lambda _: None)
    assert store.problems(after_crash=True) == []
    with store.saver() as saver:
        assert ThreadCatalog(saver).get("fork") is None
        forked(saver)
        assert content(saver, "fork") == content(saver, "thread")
        store.outlast()
        ThreadCatalog(saver).sweep()
        assert store.problems(saver) == []


def test_an_id_that_is_taken_meanwhile_is_refused(store: Store, at_rest: Any) -> None:
    with store.saver() as saver:
        fill(saver)
        at_rest(lambda number: put(saver, {"n": 7}, thread_id="fork") if number == 4 else None)
        with pytest.raises(ThreadExists):
            forked(saver)
        at_rest(lambda _: None)
        found = saver.get_tuple(config("fork"))
        assert found is not None
        assert value_of(found) == {"n": 7}
        assert store.problems(saver) == []


def test_a_damaged_ancestor_is_named_and_nothing_is_left(store: Store, at_rest: Any) -> None:
    at_rest(lambda _: None)
    with store.saver() as saver:
        damaged = fill(saver)[3]
        rows = store.stored("checkpoints")
        (key,) = (key for key, row in rows.items() if row["checkpoint_id"] == id_of(damaged))
        store.change("checkpoints", key, content=b"\0" + checkpoint({})["id"].encode())
        with pytest.raises(CorruptChunk, match=id_of(damaged)):
            forked(saver)
        assert len(store.stored("checkpoints")) == len(rows)
        assert {thread.thread_id for thread in store.threads()} == {"thread"}
