"""MongoDB: others write to a thread, and renew its lease, between two parts of long work on it.

What holds on both backends is in `test_turns`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from checking import config, id_of, put, value_of
from forkpoint import CheckpointNotFound, ThreadCatalog, ThreadNotFound
from forkpoint.catalog.lease_operations import renew
from forkpoint.catalog.leases import Lease
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.mongodb.thread_rows import ThreadRows
from forkpoint.mongodb.turns import Turns
from forkpoint.operations import turns
from forkpoint.saver import parts_of
from gates import call_between_turns
from servers import PATIENCE_SECONDS
from stores import MongoStore

LENGTH = 12
WORK: dict[str, Callable[[Any], object]] = {
    "trim": lambda saver: saver.trim("long", 2),
    "copy_thread": lambda saver: saver.copy_thread("long", "copy"),
}


class Ended(BaseException):
    """The end of a process, as far as the store is concerned."""


@pytest.fixture
def head(mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The newest checkpoint of a thread that takes several turns."""
    monkeypatch.setattr(Turns, "turn_rows", 8)
    parent = None
    with mongo_store.saver() as saver:
        for n in range(LENGTH):
            parent = put(saver, {"n": n}, parent=parent, thread_id="long")
            saver.put_writes(parent, [("c", n)], "task")
    return parent


@pytest.mark.parametrize("work", WORK)
def test_a_thread_is_written_to_and_its_lease_renewed_between_two_parts_of_work_on_it(
    work: str, head: Any, mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By others, while who does the work waits for them."""
    rests: list[bool] = []
    stored: list[str] = []
    with mongo_store.saver() as saver, mongo_store.saver() as other:
        rows = len(mongo_store.stored("checkpoints"))

        def write(lease: Lease) -> None:
            assert lease._grant is not None
            assert renew(parts_of(other).context, lease._grant, 60_000_000)
            other.put_writes(head, [("c", len(stored))], f"task {len(stored)}")
            stored.append(id_of(put(other, {"n": len(stored)}, parent=head, thread_id="long")))

        with ThreadCatalog(other).run("long") as lease:

            def rest(_: float) -> None:
                rests.append(True)
                if len(mongo_store.stored("checkpoints")) == rows or len(stored) > 1:
                    return  # nothing is removed or copied yet
                others = threading.Thread(target=write, args=(lease,))
                others.start()
                others.join(PATIENCE_SECONDS)
                assert not others.is_alive()

            monkeypatch.setattr(turns, "rest", rest)
            WORK[work](saver)
        assert len(stored) == 2
        ids = [id_of(item) for item in saver.list(config("long"))]
        assert set(stored) < set(ids)
        if work == "copy_thread":
            assert len(list(saver.list(config("copy")))) == LENGTH
        assert mongo_store.problems(saver) == []


def test_who_waited_for_a_part_has_its_turn_before_the_next(
    head: Any, mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short the time between two parts is."""
    with mongo_store.saver() as saver, mongo_store.saver() as other:
        other.get_tuple(config("long"))
        remove = MongoDBSaver.trim
        doomed = ThreadRows.delete_rows
        writer = threading.Thread(target=lambda: put(other, {"n": 1}, parent=head))
        parts = 0
        stored_at: list[int] = []

        def delete_rows(self: Any, thread: Any, which: Any) -> Any:
            nonlocal parts
            parts += 1
            if parts == 1:
                writer.start()
                while not mongo_store.collection.find_one({"awaited": True}):
                    assert writer.is_alive()
            if not writer.is_alive():
                stored_at.append(parts)
            return doomed(self, thread, which)

        monkeypatch.setattr(turns, "rest", lambda _: None)
        monkeypatch.setattr(ThreadRows, "delete_rows", delete_rows)
        monkeypatch.setattr("forkpoint.mongodb.locks._GIVE_WAY_SECONDS", PATIENCE_SECONDS)
        remove(saver, "long", 2)
        writer.join(PATIENCE_SECONDS)
        assert stored_at, "the put came after all parts"
        item = saver.get_tuple(config("long"))
        assert item is not None
        assert value_of(item) == {"n": 1}
        assert mongo_store.problems(saver) == []


@pytest.mark.parametrize("work", ["trim", pytest.param("copy_thread", marks=pytest.mark.slow)])
def test_work_that_ended_after_a_part_is_done_by_its_repetition(
    work: str, head: Any, mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = len(mongo_store.stored("checkpoints"))

    def rest(_: float) -> None:
        if len(mongo_store.stored("checkpoints")) != rows:
            raise Ended

    with mongo_store.saver() as saver:
        monkeypatch.setattr(turns, "rest", rest)
        with pytest.raises(Ended):
            WORK[work](saver)
        monkeypatch.setattr(turns, "rest", lambda _: None)
        assert mongo_store.problems(saver, after_crash=True) == []
        assert saver.get_tuple(config("copy")) is None
        put(saver, {"n": LENGTH}, parent=head, thread_id="long")
        mongo_store.outlast()
        WORK[work](saver)
        its = {name: len(list(saver.list(config(name)))) for name in ("long", "copy")}
        assert its == ({"long": 2, "copy": 0} if work == "trim" else {"long": 13, "copy": 13})
        ThreadCatalog(saver).sweep()
        assert mongo_store.problems(saver) == []


REMOVALS: dict[str, Callable[[Any], object]] = {
    "trim": lambda saver: saver.trim("long", 2),
    "delete_thread": lambda saver: saver.delete_thread("long"),
}


@pytest.mark.parametrize(
    ("work", "removal", "left"),
    [
        ("copy_thread", "trim", 2),
        ("copy_thread", "delete_thread", 0),
        ("fork", "trim", 2),
        ("fork", "delete_thread", 0),
    ],
)
def test_what_is_removed_between_two_parts_of_a_copy_is_not_in_it(
    work: str,
    removal: str,
    left: int,
    head: Any,
    mongo_store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mongo_store.saver() as saver, mongo_store.saver() as other:
        call_between_turns(
            monkeypatch, lambda turn: turn == (2 if work == "copy_thread" else 1) and remove()
        )

        def remove() -> None:
            monkeypatch.setattr(turns, "rest", lambda _: None)
            REMOVALS[removal](other)

        with nullcontext() if left else pytest.raises((ThreadNotFound, CheckpointNotFound)):
            if work == "fork":
                saver.fork(head, new_thread_id="copy", history="path")
            else:
                saver.copy_thread("long", "copy")
        assert len(list(saver.list(config("long")))) == left
        assert len(list(saver.list(config("copy")))) == left
        assert mongo_store.problems(saver, after_crash=True) == []


def test_a_part_has_as_many_rows_as_it_may_also_where_these_are_of_few_checkpoints(
    head: Any, mongo_store: MongoStore
) -> None:
    with mongo_store.saver() as saver:
        for item in saver.list(config("long")):
            for number in range(8):
                saver.put_writes(item.config, [("c", number)], f"task {number}")
        saver.trim("long", 2)
        assert len(list(saver.list(config("long")))) == 2
        assert mongo_store.problems(saver) == []
