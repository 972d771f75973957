"""Deletions count for the owner whose thread it was, and for nobody else."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from forkpoint import ThreadCatalog, ThreadDeleted, ThreadExists
from forkpoint.saver import ForkpointSaver
from stores import Store
from support import Api, checkpoint, config, id_of

LAST = "ffffffff-ffff-6fff-bfff-ffffffffffff"
FIRST = "00000000-0000-6000-8000-000000000000"

OLD: dict[str, Callable[[ForkpointSaver], object]] = {
    "deleted": lambda saver: saver.delete_thread("thread"),
    "purged": lambda saver: saver.purge("thread"),
    "deleted by its catalog": lambda saver: ThreadCatalog(saver, owner="acme").delete("thread"),
    "emptied": lambda saver: saver.delete_for_runs(["run"]),
    "pruned": lambda saver: saver.prune(["thread"], strategy="delete_all"),
}


@pytest.fixture
def savers(api: Api) -> tuple[Api, Api]:
    """The savers of two owners."""
    acme, other = (Api(api.saver.for_owner(owner), api.world) for owner in ("acme", "other"))
    return acme, other


async def outcome(made: Any) -> Any:
    """Return the kind of error that a call raised, or what it returned."""
    try:
        return await made
    except (ThreadDeleted, ThreadExists) as error:
        return type(error)


def put_of(api: Api, at: Any, made: Any) -> Any:
    return api.put(at, made, {"run_id": "run"}, {})


@pytest.mark.parametrize("how", OLD)
@pytest.mark.parametrize("bound", [FIRST, "its own", LAST])
@pytest.mark.in_turns
async def test_an_id_that_another_owner_has_deleted_is_as_one_never_used(
    bound: str, how: str, api: Api, savers: tuple[Api, Api], store: Store
) -> None:
    acme, other = savers
    first = await put_of(acme, config(), checkpoint({"n": 1}))
    await acme.put_writes(first, [("c", 1)], "task")
    OLD[how](acme.saver)

    # Below, at and beyond the checkpoint that was deleted: a search by halves learns nothing.
    parent = id_of(first) if bound == "its own" else bound
    for thread_id in ("thread", f"never used, {bound}"):
        assert await stored(other, config(thread_id, parent)) == ["checkpoint", "writes"]

    # The owner's own late writes are known as before.
    assert await outcome(put_of(acme, first, checkpoint({"n": 3}))) is ThreadExists
    await other.delete_thread("thread")
    assert await outcome(put_of(acme, first, checkpoint({"n": 3}))) is ThreadDeleted
    assert await outcome(acme.put_writes(first, [("c", 2)], "late")) is ThreadDeleted
    assert store.problems(api.saver) == []


async def stored(api: Api, at: Any) -> list[str]:
    """Store a checkpoint and writes after one that is not there; return what was stored."""
    made = checkpoint({"n": 2})
    config_ = await put_of(api, at, made)
    assert id_of(config_) == made["id"]
    await api.put_writes(config_, [("c", 1)], "task")
    found = await api.get_tuple(config_)
    return ["checkpoint"] + ["writes"] * (found.pending_writes == [("task", "c", 1)])


async def test_what_an_owner_deletes_makes_no_writes_of_others_late(
    api: Api, savers: tuple[Api, Api], store: Store
) -> None:
    acme, other = savers
    await put_of(other, config(), {**checkpoint({"n": 1}), "id": LAST})
    await other.delete_thread("thread")
    assert await outcome(put_of(other, config(checkpoint_id=LAST), checkpoint({}))) is ThreadDeleted

    first = await put_of(acme, config(), checkpoint({"n": 1}))
    second = await put_of(acme, first, checkpoint({"n": 2}))
    await acme.put_writes(second, [("c", 1)], "task")
    # What the other one stores late meanwhile changes nothing either.
    for at in (config(checkpoint_id=LAST), config(checkpoint_id=id_of(first))):
        made = {**checkpoint({}), "id": LAST[:-1] + "e"}
        assert await outcome(put_of(other, at, made)) is ThreadExists
    third = await put_of(acme, second, checkpoint({"n": 3}))
    assert id_of(await acme.get_tuple(config())) == id_of(third)
    assert store.problems(api.saver) == []


async def test_late_writes_are_refused_while_another_owner_has_the_id(
    api: Api, savers: tuple[Api, Api], store: Store
) -> None:
    acme, other = savers
    first = await put_of(acme, config(), checkpoint({"n": 1}))
    await acme.delete_thread("thread")
    theirs = await put_of(other, config(), checkpoint({"n": "theirs"}))
    assert await outcome(put_of(acme, config(), checkpoint({}))) is ThreadExists
    assert await outcome(put_of(acme, first, checkpoint({"n": 2}))) in (ThreadExists, ThreadDeleted)
    assert await outcome(acme.put_writes(first, [("c", 2)], "t")) in (ThreadExists, ThreadDeleted)

    await other.delete_thread("thread")
    assert await outcome(put_of(acme, first, checkpoint({"n": 2}))) is ThreadDeleted
    assert await outcome(put_of(other, theirs, checkpoint({"n": 2}))) is ThreadDeleted
    again = await put_of(acme, config(), checkpoint({"n": "again"}))
    assert id_of(await acme.get_tuple(config())) == id_of(again)
    assert store.problems(api.saver) == []


async def test_who_is_confined_to_nobody_knows_all_deletions(
    api: Api, savers: tuple[Api, Api], store: Store
) -> None:
    acme, other = savers
    first = await put_of(acme, config(), checkpoint({"n": 1}))
    await acme.delete_thread("thread")
    assert await outcome(put_of(api, first, checkpoint({"n": 2}))) is ThreadDeleted
    await put_of(other, config(), checkpoint({"n": "theirs"}))
    assert await outcome(put_of(api, first, checkpoint({"n": 2}))) is ThreadDeleted
    assert len(await other.list(config())) == 1
    assert store.problems(api.saver) == []


@pytest.mark.parametrize("deletes", ["other", "acme", None])
async def test_a_run_that_has_stored_nothing_ends_by_its_owners_deletions_only(
    deletes: str | None, api: Api, savers: tuple[Api, Api], store: Store
) -> None:
    acme, _ = savers
    run = SimpleNamespace(control=object())
    at = {"configurable": {"thread_id": "thread", "checkpoint_ns": "", "__pregel_runtime": run}}
    assert await acme.get_tuple(at) is None
    deleter = api.saver if deletes is None else api.saver.for_owner(deletes)
    deleter.delete_thread("thread")
    made = await outcome(put_of(acme, at, checkpoint({"n": 1})))
    assert (made is ThreadDeleted) == (deletes != "other")
    assert store.problems(api.saver) == []
