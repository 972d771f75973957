"""Threads that expire: which time to live they have, and what becomes of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from forkpoint import InvalidInput, ThreadCatalog
from graphs import SHAPES
from stores import Store
from support import Api, config, put

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def catalog(store: Store, api: Api) -> Any:
    with store.saver(ttl=DAY) as saver:
        yield Api(ThreadCatalog(saver), api.world)


async def lives(catalog: Api, thread_id: str) -> timedelta | None:
    """Return how long after its last activity a thread expires."""
    thread = await catalog.get(thread_id)
    return None if thread.expires_at is None else thread.expires_at - thread.updated_at


async def test_a_thread_that_a_graph_makes_has_the_saver_s_time_to_live(catalog: Api) -> None:
    saver = catalog.saver.saver
    graph = SHAPES["chat"].build(saver)
    graph.invoke({"messages": [HumanMessage("Hello")]}, config())
    assert await lives(catalog, "thread") == DAY
    before = await catalog.get("thread")
    graph.invoke({"messages": [HumanMessage("Again")]}, config())
    assert (await catalog.get("thread")).expires_at > before.expires_at


async def test_what_is_said_of_a_thread_goes_before_the_default(catalog: Api) -> None:
    await catalog.create("default")
    await catalog.get_or_create("default too", label="L")
    await catalog.create("short", ttl=HOUR)
    await catalog.create("endless", ttl=None)
    with catalog.saver.run("leased"):
        pass
    saver = catalog.saver.saver
    for name in ("default", "short", "endless"):
        put(saver, {"n": 1}, thread_id=name)
    expected = {"default": DAY, "default too": DAY, "short": HOUR, "endless": None, "leased": DAY}
    assert {name: await lives(catalog, name) for name in expected} == expected
    await catalog.update("default", ttl=None)
    put(saver, {"n": 2}, thread_id="default")
    assert await lives(catalog, "default") is None


async def test_a_fork_and_a_copy_have_the_time_to_live_of_their_source(catalog: Api) -> None:
    saver = catalog.saver.saver
    for name, ttl in (("short", HOUR), ("endless", None)):
        await catalog.create(name, ttl=ttl)
        put(saver, {"n": 1}, thread_id=name)
        saver.fork(name, new_thread_id=f"{name} fork")
        saver.fork(name, new_thread_id=f"{name} with values", values={"n": 2})
        saver.copy_thread(name, f"{name} copy")
        await catalog.clone(name, f"{name} clone")
        await catalog.clone(name, f"{name} empty", checkpoints=False)
        await catalog.rollover(name, f"{name} next")
        for kind in ("fork", "with values", "copy", "clone", "empty", "next"):
            assert await lives(catalog, f"{name} {kind}") == ttl, kind


async def test_a_new_thread_of_a_deleted_one_s_id_begins_with_the_default(catalog: Api) -> None:
    saver = catalog.saver.saver
    await catalog.create("thread", ttl=HOUR)
    await catalog.delete("thread")
    put(saver, {"n": 1})
    assert await lives(catalog, "thread") == DAY


async def test_every_saver_for_the_store_has_its_own_default(catalog: Api, store: Store) -> None:
    confined = catalog.saver.saver.for_owner("acme")
    put(confined, {"n": 1}, thread_id="confined")
    assert await lives(catalog, "confined") == DAY
    with store.saver() as other:
        put(other, {"n": 1}, thread_id="other")
        put(other, {"n": 1}, thread_id="confined too")
    assert await lives(catalog, "other") is None


@pytest.mark.parametrize("ttl", [0, "1d", timedelta(0), timedelta(seconds=-1)])
def test_a_time_to_live_that_is_none_is_refused(store: Store, ttl: Any) -> None:
    with pytest.raises(InvalidInput, match="ttl"):
        store.saver(ttl=ttl)
