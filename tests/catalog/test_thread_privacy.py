"""What is another owner's does not exist, and cannot be changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example
from hypothesis import strategies as st

from catalogs import FILTERS, WORDS, content
from checking import Api, config, drawn, put
from forkpoint import (
    ForkpointError,
    ThreadCatalog,
    ThreadExists,
    ThreadFilter,
)
from forkpoint.saver.saver import ForkpointSaver
from graphs import MORE_SHAPES, SHAPES
from stores import Store


def thread(thread_id: str, **configurable: Any) -> Any:
    return {"configurable": {"thread_id": thread_id, **configurable}}


IDS = st.sampled_from(["theirs", "theirs-2", "new", "$ne", "theirs\x1f", "Theirs"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8
)


@drawn(
    6,
    40,
    thread_id=IDS,
    thread_filter=FILTERS,
    owner=st.none() | st.sampled_from(["acme", "other"]),
)
@example(thread_id="secret", thread_filter=ThreadFilter(), owner=None)
@example(thread_id="acme", thread_filter=ThreadFilter(), owner=None)
def test_threads_of_other_owners_do_not_exist(
    thread_id: str,
    thread_filter: ThreadFilter,
    owner: str | None,
    saver: ForkpointSaver,
    store: Store,
) -> None:
    for thread in list(ThreadCatalog(saver).walk()):
        saver.delete_thread(thread.thread_id)
    acme = ThreadCatalog(saver, owner="acme")
    other = ThreadCatalog(saver, owner="other")
    for name in ("theirs", "theirs-2"):
        acme.create(name, label="a", tags=WORDS, metadata=dict.fromkeys(WORDS, 1))
        put(acme.saver, {"secret": name}, thread_id=name, metadata={"run_id": "run"})
    before = content(store)
    threads = list(acme.walk())

    thread_filter = dataclasses.replace(thread_filter, owner=owner)
    assert len(other.search(thread_filter)) == other.count(thread_filter) == 0
    assert other.bulk_delete(dataclasses.replace(thread_filter, tags=["a"])) == 0
    assert other.get(thread_id) is None
    for call in READS:
        check_refusal(call, other, thread_id)
    assert other.saver.get_tuple(config(thread_id)) is None
    assert list(other.saver.list(config(thread_id))) == list(other.saver.list(None)) == []
    assert other.saver.latest({}) is None
    other.saver.delete_thread(thread_id)
    other.saver.delete_for_runs(["run"])
    other.saver.prune([thread_id])
    if thread_id in ("theirs", "theirs-2"):
        for make in MAKES:
            with pytest.raises(ThreadExists) as error:
                make(other, thread_id)
            assert str(error.value) == f"there is a thread {thread_id!r} already"
    assert content(store) == before
    assert list(acme.walk()) == threads


def check_refusal(
    call: Callable[[ThreadCatalog, str], Any], catalog: ThreadCatalog, thread_id: str
) -> None:
    """Check that a call is refused with an error that gives nothing of the thread away."""
    with pytest.raises(ForkpointError) as error:
        list(call(catalog, thread_id) or [])
    assert not isinstance(error.value, ThreadExists)
    message = str(error.value).replace(repr(thread_id), "")
    assert "secret" not in message
    assert "acme" not in message


READS: list[Callable[[ThreadCatalog, str], Any]] = [
    lambda catalog, id_: catalog.update(id_, label="x"),
    lambda catalog, id_: catalog.delete(id_),
    lambda catalog, id_: catalog.clone(id_, "copied"),
    lambda catalog, id_: catalog.rollover(id_, "copied"),
    lambda catalog, id_: catalog.stats(id_),
    lambda catalog, id_: catalog.lease(id_),
    lambda catalog, id_: catalog.is_busy(id_),
    lambda catalog, id_: catalog.saver.fork(id_),
    lambda catalog, id_: catalog.saver.copy_thread(id_, "copied"),
    lambda catalog, id_: catalog.saver.purge(id_),
    lambda catalog, id_: catalog.saver.trim(id_, 1),
    lambda catalog, id_: catalog.saver.rollback(id_),
    lambda catalog, id_: catalog.saver.lineage(id_),
    lambda catalog, id_: catalog.saver.family(id_),
    lambda catalog, id_: catalog.saver.history(id_),
    lambda catalog, id_: catalog.saver.at(id_, 0),
    lambda catalog, id_: catalog.saver.diff(id_, id_),
]
MAKES: list[Callable[[ThreadCatalog, str], Any]] = [
    lambda catalog, id_: catalog.create(id_),
    lambda catalog, id_: catalog.create(id_, if_exists="do_nothing"),
    lambda catalog, id_: catalog.get_or_create(id_),
    lambda catalog, id_: put(catalog.saver, {"a": 1}, thread_id=id_),
    lambda catalog, id_: catalog.saver.put_writes(config(id_, "c"), [("a", 1)], "task"),
    lambda catalog, id_: catalog.run(id_).__enter__(),
]


async def test_what_an_owner_creates_belongs_to_the_owner(api: Api, store: Store) -> None:
    saver = api.saver
    confined = saver.for_owner("acme")
    graph = SHAPES["chat"].build(confined)
    graph.invoke(SHAPES["chat"].inputs[0], thread("chat"))
    catalog = ThreadCatalog(saver, owner="acme")
    catalog.clone("chat", "clone")
    confined.fork("chat", new_thread_id="fork")
    confined.copy_thread("chat", "copy")
    catalog.rollover("chat", "next", channels=["messages"])
    catalog.create("made")
    with catalog.run("leased"):
        pass
    ids = {"chat", "clone", "fork", "copy", "next", "made", "leased"}
    assert {thread.thread_id for thread in catalog.walk()} == ids
    assert {thread.owner for thread in ThreadCatalog(saver).walk()} == {"acme"}
    assert ThreadCatalog(saver).count(ThreadFilter(owner="acme")) == len(ids)
    assert ThreadCatalog(saver).count(ThreadFilter(owner="other")) == 0

    theirs = MORE_SHAPES["question"].build(saver.for_owner("other"))
    assert theirs.get_state(thread("chat")).values == {}
    assert list(theirs.get_state_history(thread("chat"))) == []
    with pytest.raises(ThreadExists):
        theirs.invoke(MORE_SHAPES["question"].inputs[0], thread("chat"))
    assert len(graph.get_state(thread("chat")).values["messages"]) == 2
    assert store.problems(saver) == []
