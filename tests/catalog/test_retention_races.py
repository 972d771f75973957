"""Retention that others disturb, or that is killed."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from catalogs import HOUR, HOURS, archived_in, ids
from checking import put, value_of
from forkpoint import (
    RetentionPolicy,
    ThreadCatalog,
    ThreadDeleted,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.operations import remove as removing
from forkpoint.saver.saver import ForkpointSaver
from gates import Gate
from processes import fork_server
from servers import PATIENCE_SECONDS
from stores import Store


def check_outcome(
    change: str, error: BaseException | None, deleted: bool, catalog: ThreadCatalog
) -> None:
    """Check that the thread was deleted as a whole, or changed and stayed."""
    assert error is None or isinstance(error, (ThreadDeleted, ThreadNotFound))
    thread = catalog.get("thread")
    if change == "delete":
        assert thread is None
        assert deleted or error is None
    elif change == "lease":
        # The lease is that of the old thread, or of a new one after it.
        assert error is None
        assert thread is not None
        assert thread.checkpoint_count == 1 - deleted
        catalog.delete("thread")
    elif deleted:  # after the change, if that came before all, or without it
        assert thread is None
    else:
        assert error is None
        assert thread is not None


@pytest.mark.by_halves
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", ["lease", "put", "update", "delete"])
def test_a_thread_that_changes_at_the_last_moment_is_deleted_whole_or_stays(
    change: str, every: int, store: Store
) -> None:
    changes: dict[str, Callable[[ThreadCatalog], Any]] = {
        "lease": lambda other: other.run("thread", if_busy="wait").__enter__(),
        "put": lambda other: put(other.saver, {"n": 2}, parent=head),
        "update": lambda other: other.update("thread", label="x"),
        "delete": lambda other: other.delete("thread"),
    }
    gate = Gate()
    with (
        store.watched(gate.pass_through) as saver,
        store.saver() as own,
        ThreadPoolExecutor(2) as pool,
    ):
        catalog, other = ThreadCatalog(saver), ThreadCatalog(own)
        for stop_at in itertools.count(0, every):
            head = put(own, {"n": 1, "text": "text " * 300})
            gate.close(stop_at)
            deleting = pool.submit(catalog.bulk_delete, ThreadFilter(ids=["thread"]))
            is_reached = gate.wait(deleting)
            if is_reached:
                changing = pool.submit(changes[change], other)
                wait([changing], 0.05)  # else it waits for the deletion to end
            gate.open()
            deleted = deleting.result()
            if not is_reached:
                break
            check_outcome(change, changing.exception(), bool(deleted), other)
            assert store.problems(own) == []
            own.delete_thread("thread")
        assert stop_at > 3
        assert deleted == 1


@pytest.mark.parametrize("event", ["kept", "owner", "values", "lease", "anew", "activity"])
def test_what_changes_at_the_last_moment_is_trimmed_only_if_a_rule_says_so(
    event: str, new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()
    saver, other = store.saver(preview=["of"]), store.saver(preview=["of"])
    own, catalog = saver.for_owner("ann"), ThreadCatalog(other)
    parent = put(own, {"of": "x", "n": 1})
    parent = put(own, {"of": "x", "n": 2}, parent=parent)
    lease = catalog.run("thread")
    trim = removing.trim

    def anew() -> None:
        catalog.delete("thread")
        catalog.create("thread", tags=["keep"])
        catalog.update("thread", owner="ann")
        for number in range(2):
            put(other, {"of": "x", "n": number})

    events: dict[str, Callable[[], Any]] = {
        "kept": lambda: catalog.update("thread", tags=["keep"]),
        "owner": lambda: catalog.update("thread", owner="bob"),
        "values": lambda: put(other, {"of": "y", "n": 3}, parent=parent),
        "lease": lease.__enter__,
        "anew": anew,
        "activity": lambda: put(other, {"of": "x", "n": 3}, parent=parent),
    }

    def meanwhile(*args: Any, **options: Any) -> Any:
        events[event]()
        return trim(*args, **options)

    monkeypatch.setattr(removing, "trim", meanwhile)
    policy = RetentionPolicy(max_checkpoints_per_thread=1, keep_tags={"keep"})
    chosen = ThreadFilter(owner="ann", values={"of": "x"})
    done = ThreadCatalog(saver).apply_retention(policy, chosen)
    assert (done.deleted, done.failed) == ((), {})
    assert done.trimmed == (("thread",) if event == "activity" else ())
    assert done.busy == (("thread",) if event == "lease" else ())
    expected = {"activity": 1, "values": 3}
    assert len(list(saver.history("thread"))) == expected.get(event, 2)
    if event == "lease":
        lease.__exit__(None, None, None)
    assert store.problems(saver) == []


POLICY = RetentionPolicy(max_idle=HOUR, max_checkpoints_per_thread=1, keep_tags={"keep"})


def retain(store: Store, path: str | None, ready: Any) -> None:
    with store.saver() as saver:
        ready.set()
        ThreadCatalog(saver).apply_retention(POLICY, archive=path)


def retain_until_killed(store: Store, path: str | None, seconds: float) -> None:
    """Run retention in another process, which is killed after some time."""
    ready = fork_server().Event()
    process = fork_server().Process(target=retain, args=(store, path, ready))
    process.start()
    assert ready.wait(PATIENCE_SECONDS)
    time.sleep(seconds)
    process.kill()
    process.join()
    store.await_end_of(process.pid)


@pytest.mark.parametrize("is_archived", [False, True])
@pytest.mark.parametrize(
    ("number", "kills"),
    [(45, 2), pytest.param(10_000, 20, marks=pytest.mark.slow)],
)
def test_retention_that_is_killed_is_done_by_the_next(
    number: int, kills: int, is_archived: bool, store: Store, saver: ForkpointSaver, tmp_path: Path
) -> None:
    catalog = ThreadCatalog(saver)
    long = ["text " * 300]
    for n in range(number):
        put(saver, {"n": n, "long": long}, thread_id=f"t{n}")
        if n % 3 == 0:
            store.age(f"t{n}", updated_at=2 * HOURS)
        elif n % 3 == 1:
            put(saver, {"n": -n}, thread_id=f"t{n}")
        if n % 9 == 0:
            catalog.update(f"t{n}", tags=["keep"])
            store.age(f"t{n}", updated_at=2 * HOURS)
    rng = random.Random(1)
    path = str(tmp_path / "archive.jsonl") if is_archived else None
    for _ in range(kills):
        retain_until_killed(store, path, rng.random() * number / 4000)
    store.outlast()
    until = time.monotonic() + 300
    while True:
        result = catalog.apply_retention(POLICY, archive=path)
        if not result.busy or time.monotonic() > until:
            break  # a killed one's leases last for a minute
        time.sleep(1)

    expected = {f"t{n}" for n in range(number) if n % 3 or n % 9 == 0}
    assert ids(saver) == expected
    for n in range(1, number, 3):
        (only,) = saver.history(f"t{n}")
        assert value_of(only) == {"n": -n}
    if path is not None:
        assert set(archived_in(Path(path))) == {f"t{n}" for n in range(number)} - expected
    assert store.problems(saver) == []


def delete_until_killed(store: Store, commands: int) -> None:
    policy = RetentionPolicy(max_age=HOUR, max_checkpoints_per_thread=1)
    ThreadCatalog(store.mortal(commands)).apply_retention(policy)


@pytest.mark.parametrize("every", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_the_next_retention_finishes_what_a_killed_one_began(
    every: int, store: Store, saver: ForkpointSaver
) -> None:
    catalog = ThreadCatalog(saver)
    for commands in itertools.count(0, every):
        for name in ("old", "long"):
            put(saver, {"text": "old text " * 300}, thread_id=name)
            put(saver, {"text": "text " * 300}, thread_id=name)
        store.age("old", created_at=2 * HOURS)
        process = fork_server().Process(target=delete_until_killed, args=(store, commands))
        process.start()
        process.join()
        assert process.pid is not None
        store.await_end_of(process.pid)
        store.outlast()
        catalog.apply_retention(RetentionPolicy(max_age=HOUR, max_checkpoints_per_thread=1))
        assert ids(saver) == {"long"}
        assert len(list(saver.history("long"))) == 1
        assert store.problems(saver) == [], commands
        saver.delete_thread("long")
        if process.exitcode == 0:
            break
    assert commands > 10
