"""A thread may be given to another owner, and then it is that one's alone."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from checking import Api, config, id_of, put
from forkpoint import (
    CorruptChunk,
    ForkpointError,
    InvalidInput,
    PurgeReport,
    RetentionPolicy,
    ThreadCatalog,
    ThreadDeleted,
    ThreadExists,
    ThreadFilter,
    ThreadNotFound,
)
from forkpoint.mongodb.locks import Locks
from forkpoint.mongodb.turns import Turns
from forkpoint.operations import fork as forking
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from gates import call_between_turns
from graphs import MORE_SHAPES, call
from stores import Store


def thread(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id}}


async def test_a_thread_is_its_new_owners_alone_and_forks_stay(api: Api, store: Store) -> None:
    store_saver = store.saver(preview=["items"])
    everybody = Api(ThreadCatalog(store_saver), api.world)
    ann, bob = (ThreadCatalog(store_saver, owner=name) for name in ("ann", "bob"))
    graphs = {
        who: MORE_SHAPES["question"].build(catalog.saver)
        for who, catalog in {"ann": ann, "bob": bob}.items()
    }
    await call(graphs["ann"], api.world, {"items": ["x" * 2000]}, {}, thread("root"))
    ann.saver.fork("root", new_thread_id="given")
    ann.saver.fork("given", new_thread_id="fork")
    ann.clone("fork", "leaf")
    state = graphs["ann"].get_state(thread("given"))

    updated = await everybody.update("given", owner="bob", label="For Bob", metadata={"k": 1})
    assert (updated.owner, updated.label, updated.metadata["k"]) == ("bob", "For Bob", 1)
    assert updated.source_thread_id is None
    assert updated == bob.get("given")
    assert ann.get("given") is None
    assert sorted(thread.thread_id for thread in ann.search()) == ["fork", "leaf", "root"]
    assert [thread.thread_id for thread in bob.search(ThreadFilter(label_contains="bob"))] == [
        "given"
    ]
    assert await everybody.count(ThreadFilter(owner="bob")) == bob.count() == 1
    check_absent(ann)

    check_kinship(ann, bob)

    # All go on as they were, and so do those that share chunks with what is deleted.
    assert graphs["bob"].get_state(thread("given")).values == state.values
    ann.delete("root")
    await everybody.update("fork", owner="bob")
    ann.delete("leaf")
    for thread_id in ("given", "fork"):
        outcome = graphs["bob"].invoke({"items": ["more"]}, thread(thread_id))
        assert outcome["items"][0] == "x" * 2000
    bob.delete("given")
    assert store.problems(store_saver) == []


async def test_what_a_former_owner_counts_tells_nothing_of_a_thread_given_away(
    store: Store, api: Api
) -> None:
    everybody = ThreadCatalog(api.saver)
    ann, bob = (ThreadCatalog(api.saver, owner=name) for name in ("ann", "bob"))
    put(ann.saver, {"items": ["x" * 2000] * 10}, thread_id="given")
    for thread_id in ("fork", "other"):
        ann.saver.fork("given", new_thread_id=thread_id)
    assert ann.stats("fork").bytes_shared > 2000
    everybody.update("given", owner="bob")
    ann.delete("other")
    seen = await Api(ann, api.world).stats("fork")
    assert (seen.bytes_shared, bob.stats("given").bytes_shared) == (0, 0)
    assert everybody.stats("fork").bytes_shared > 2000
    bob.delete("given")
    assert ann.stats("fork") == seen


async def test_what_a_former_owner_removes_tells_nothing_of_a_thread_given_away(
    store: Store, api: Api
) -> None:
    everybody = ThreadCatalog(api.saver)
    ann = ThreadCatalog(api.saver, owner="ann")

    def fill(given: str, *others: str) -> None:
        for number in range(3):
            put(ann.saver, {"text": f"{number}" * 3000}, thread_id=given)
        for thread_id in others:
            ann.clone(given, thread_id)

    async def reports(*threads: str) -> list[PurgeReport]:
        trimmed = await Api(ann.saver, api.world).trim(threads[0], 1)
        return [trimmed, *[await Api(ann.saver, api.world).purge(id_) for id_ in threads]]

    fill("deleted", "a", "b")
    ann.delete("deleted")
    expected = await reports("a", "b")
    assert [report.chunks for report in expected] == [0, 0, 3]
    fill("given", "c", "d")
    everybody.update("given", owner="bob")
    assert await reports("c", "d") == expected
    assert everybody.saver.purge("given").chunks >= expected[-1].chunks
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_deleted_child_forgets_what_it_was_made_of(api: Api, store: Store) -> None:
    everybody, ann = ThreadCatalog(api.saver), ThreadCatalog(api.saver, owner="ann")
    put(ann.saver, {"text": "x" * 3000}, thread_id="given")
    ann.clone("given", "deleted")
    ann.clone("deleted", "below")
    ann.delete("deleted")
    await Api(everybody, api.world).update("given", owner="bob")
    line = await Api(ann.saver, api.world).lineage("below")
    assert [(entry.thread_id, entry.edge) for entry in line] == [
        ("below", "clone"),
        ("deleted", None),
    ]
    assert set(_ids(ann.saver.family("below").root)) == {"below", "deleted"}
    assert store.problems(api.saver) == []


def check_absent(ann: ThreadCatalog) -> None:
    """Check that a thread of another owner does not exist, and that its id is taken."""
    for refused in (ann.delete, ann.update, ann.clone, ann.saver.fork, ann.saver.lineage):
        with pytest.raises(ThreadNotFound):
            refused("given")
    with pytest.raises(ThreadExists):
        ann.create("given")
    assert ann.saver.get_tuple(config("given")) is None


def check_kinship(ann: ThreadCatalog, bob: ThreadCatalog) -> None:
    """Check that the thread that was given away is alone, and who is related to whom then."""
    for owner, thread_id, line, tree in (
        (bob, "given", ["given"], {"given"}),
        (ann, "fork", ["fork"], {"fork", "leaf"}),
        (ann, "leaf", ["leaf", "fork"], {"fork", "leaf"}),
        (ann, "root", ["root"], {"root"}),
    ):
        assert [entry.thread_id for entry in owner.saver.lineage(thread_id)] == line
        assert set(_ids(owner.saver.family(thread_id).root)) == tree
        kin = owner.get(thread_id)
        assert kin is not None
        assert kin.source_thread_id == (line[1] if len(line) > 1 else None)


def _ids(node: Any) -> list[str]:
    return [
        node.entry.thread_id,
        *(thread_id for child in node.children for thread_id in _ids(child)),
    ]


async def test_late_writes_of_the_former_owner_are_refused(api: Api, store: Store) -> None:
    ann = api.saver.for_owner("ann")
    cold = store.saver().for_owner("ann")
    head = put(ann, {"n": 1})
    ThreadCatalog(api.saver).update("thread", owner="bob")
    for saver in (ann, cold):
        late = Api(saver, api.world)
        with pytest.raises((ThreadDeleted, ThreadExists)):
            await late.put_writes(head, [("n", 2)], "task")
        with pytest.raises((ThreadDeleted, ThreadExists)):
            put(saver, {"n": 2}, parent=head)
    bob = api.saver.for_owner("bob")
    checkpoint_tuple = bob.get_tuple(config())
    assert checkpoint_tuple is not None
    assert (id_of(checkpoint_tuple), checkpoint_tuple.pending_writes) == (id_of(head), [])
    put(bob, {"n": 3}, parent=head)
    ThreadCatalog(bob).delete("thread")
    with pytest.raises(ForkpointError):  # as if it had been deleted when it was given away
        put(cold, {"n": 2}, parent=head)
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_run_without_an_owner_goes_on_when_its_thread_gets_one(api: Api) -> None:
    head = put(api.saver, {"n": 1})
    catalog = Api(ThreadCatalog(api.saver), api.world)
    with catalog.saver.run("thread") as lease:
        await catalog.update("thread", owner="ann")
        at = {"configurable": {**lease.config["configurable"], **head["configurable"]}}
        await api.put_writes(at, [("n", 2)], "task")
    owned = ThreadCatalog(api.saver, owner="ann").get("thread")
    assert owned is not None
    assert (await catalog.update("thread", owner=None)).owner is None
    assert ThreadCatalog(api.saver, owner="ann").get("thread") is None
    same = await catalog.update("thread", owner=None, label="x")
    assert (same.owner, same.label) == (None, "x")


@pytest.mark.in_turns
async def test_a_catalog_of_one_owner_gives_nothing_away(api: Api) -> None:
    put(api.saver.for_owner("ann"), {"n": 1})
    confined = Api(ThreadCatalog(api.saver, owner="ann"), api.world)
    catalog = Api(ThreadCatalog(api.saver), api.world)
    for owner in ("ann", "bob", None):
        with pytest.raises(InvalidInput, match="confined"):
            await confined.update("thread", owner=owner)
    for wrong in ("", 5, "a\0", "\ud800", ["bob"]):
        with pytest.raises(InvalidInput, match="owner"):
            await catalog.update("thread", owner=wrong)
    with pytest.raises(ThreadNotFound):
        await catalog.update("missing", owner="bob")
    (thread,) = await catalog.search()
    assert thread.owner == "ann"


@pytest.mark.in_turns
async def test_the_state_is_searched_by_with_the_new_owner(api: Api, store: Store) -> None:
    saver = store.saver(preview=["title"])
    put(saver.for_owner("ann"), {"title": "Hello"})
    await Api(ThreadCatalog(saver), api.world).update("thread", owner="bob")
    hello = ThreadFilter(values={"title": "Hello"})
    assert ThreadCatalog(saver, owner="ann").count(hello) == 0
    (thread,) = ThreadCatalog(saver, owner="bob").search(hello)
    assert thread.values == {"title": "Hello"}
    assert store.problems(saver) == []


ATTEMPTS: dict[str, Callable[[ThreadCatalog, Any], Any]] = {
    "fork": lambda catalog, at: catalog.saver.fork("tried"),
    "copy": lambda catalog, at: catalog.saver.copy_thread("tried", "copy"),
    "get": lambda catalog, at: catalog.saver.get_tuple(at),
    "list": lambda catalog, at: list(catalog.saver.list(at)),
    "lineage": lambda catalog, at: catalog.saver.lineage("tried"),
    "put_writes": lambda catalog, at: catalog.saver.put_writes(at, [("c", 1)], "task"),
    "put": lambda catalog, at: put(catalog.saver, {"items": ["y"]}, thread_id="tried"),
    "create": lambda catalog, at: catalog.create("tried"),
    "stats": lambda catalog, at: catalog.stats("tried"),
    "delete": lambda catalog, at: catalog.delete("tried"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("new_store", ["mongodb"], indirect=True)
def test_what_another_owner_tries_with_a_thread_leaves_no_trace_in_it(
    attempt: str, store: Store
) -> None:
    """A saver that knows how a thread goes on stores its writes in another way."""
    with store.saver() as saver:
        ours, theirs = (ThreadCatalog(saver, owner=name) for name in ("ann", "bob"))
        names = ("other", "tried")  # of one length
        head = {name: put(ours.saver, {"items": ["x"]}, thread_id=name) for name in names}
        with parts_of(saver).context.storage.reading() as session:
            for name in names:
                session.logs.end_log(session.threads.find(name))  # type: ignore[attr-defined]
        with contextlib.suppress(ForkpointError):
            ATTEMPTS[attempt](theirs, head["tried"])
        for name in names:
            ours.saver.put_writes(head[name], [("c", 1)], "task")
        other, tried = ours.stats("other"), ours.stats("tried")
    assert (other.writes, other.bytes_stored) == (tried.writes, tried.bytes_stored)


@pytest.mark.parametrize("is_of_all", [True, False])
async def test_a_thread_that_is_given_away_stays_in_searches_of_all_owners_alone(
    is_of_all: bool, api: Api, store: Store
) -> None:
    ann, everybody = ThreadCatalog(api.saver, owner="ann"), ThreadCatalog(api.saver)
    thread_ids = {f"t{number}" for number in range(5)}
    for thread_id in thread_ids:
        put(ann.saver, {"n": 1}, thread_id=thread_id)
    catalog = Api(everybody if is_of_all else ann, api.world)
    met: list[str] = []
    cursor: str | None = None
    for _ in range(2):
        page = await catalog.search(limit=2, cursor=cursor)
        met += (thread.thread_id for thread in page)
        cursor = page.next_cursor
    (last,) = thread_ids - set(met)
    everybody.update(last, owner="bob")
    page = await catalog.search(limit=2, cursor=cursor)
    assert [thread.thread_id for thread in page] == ([last] if is_of_all else [])
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_cursor_does_not_tell_how_much_others_search(api: Api) -> None:
    ann, bob = (ThreadCatalog(api.saver, owner=name) for name in ("ann", "bob"))
    for name, catalog in (("ann", ann), ("bob", bob)):
        for number in range(4):
            catalog.create(f"{name}-{number}")

    async def second_cursor(catalog: ThreadCatalog) -> str:
        first = await Api(catalog, api.world).search(limit=1)
        second = await Api(catalog, api.world).search(limit=1, cursor=first.next_cursor)
        assert second.next_cursor is not None
        third = await Api(catalog, api.world).search(limit=2, cursor=second.next_cursor)
        assert (len(third), third.next_cursor) == (2, None)
        return str(second.next_cursor)

    cursors = [await second_cursor(catalog) for catalog in (ann, bob, ann)]
    for cursor in cursors:
        content = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        assert b"ann-" not in content
        assert b"bob-" not in content
    changed = cursors[0][:-2] + ("A" if cursors[0][-2] != "A" else "B") + cursors[0][-1]
    with pytest.raises(InvalidInput, match="none that a search has returned"):
        ann.search(limit=1, cursor=changed)


@pytest.mark.in_turns
async def test_a_former_owner_keeps_no_lease(api: Api, store: Store) -> None:
    ann, everybody = ThreadCatalog(api.saver, owner="ann"), ThreadCatalog(api.saver)
    put(ann.saver, {"n": 1})
    with ann.run("thread") as lease:
        assert lease.renew()
        everybody.update("thread", owner="bob")
        assert not lease.renew()
        assert lease.is_lost
    bob = Api(ThreadCatalog(api.saver, owner="bob"), api.world)
    assert not await bob.is_busy("thread")
    with bob.saver.run("thread") as its_own:
        assert its_own.renew()


async def test_a_damaged_thread_of_another_owner_is_no_relative(api: Api, store: Store) -> None:
    ann, everybody = ThreadCatalog(api.saver, owner="ann"), ThreadCatalog(api.saver)
    put(ann.saver, {"n": 1}, thread_id="root")
    for thread_id in ("given", "kept"):
        ann.saver.fork("root", new_thread_id=thread_id)
    everybody.update("given", owner="bob")
    store.change("threads", store.thread("given").key, checksums=b"damaged")
    for thread_id in ("root", "kept"):
        tree = await Api(ann.saver, api.world).family(thread_id)
        assert set(_ids(tree.root)) == {"root", "kept"}
    store.change("threads", store.thread("kept").key, checksums=b"damaged")
    with pytest.raises(CorruptChunk, match="kept"):
        await Api(ann.saver, api.world).family("root")


ENDS: dict[str, Callable[[ThreadCatalog], Any]] = {
    "delete": lambda ann: ann.delete("thread"),
    "delete_thread": lambda ann: ann.saver.delete_thread("thread"),
    "delete_for_runs": lambda ann: ann.saver.delete_for_runs(["run"]),
    "trim": lambda ann: ann.saver.trim("thread", 1),
    "rollback": lambda ann: ann.saver.rollback("thread"),
    "clone": lambda ann: ann.clone("thread", "made"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("new_store", ["mongodb"], indirect=True)
def test_a_former_owner_who_has_just_found_a_thread_removes_nothing_of_it(
    end: str, new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no transactions, it may be given away just then."""
    store = new_store()
    saver, everybody = store.saver(), ThreadCatalog(store.saver())
    ann = ThreadCatalog(saver, owner="ann")
    parent = put(ann.saver, {"n": 1}, metadata={"run_id": "run"})
    put(ann.saver, {"n": 2}, parent=parent, metadata={"run_id": "run"})
    before = _content(saver)
    locked = Locks.locked

    def meanwhile(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        everybody.update("thread", owner="bob")
        return locked(*args, **options)

    monkeypatch.setattr(Locks, "locked", meanwhile)
    with contextlib.suppress(ForkpointError):
        ENDS[end](ann)
    assert _content(saver) == before
    assert [(thread.thread_id, thread.owner) for thread in everybody.search()] == [
        ("thread", "bob")
    ]
    assert store.problems(saver) == []


IN_TURNS: dict[str, Callable[[ThreadCatalog], Any]] = {
    "trim": lambda ann: ann.saver.trim("thread", 3),
    "trim to what is rebuilt": lambda ann: ann.saver.prune(["thread"], keep_last=3),
    "rollback": lambda ann: ann.saver.rollback("thread", 15),
    "delete_for_runs": lambda ann: ann.saver.delete_for_runs(["run"]),
    "retention": lambda ann: ann.apply_retention(RetentionPolicy(max_checkpoints_per_thread=3)),
    "copy": lambda ann: ann.saver.copy_thread("thread", "made"),
    "clone": lambda ann: ann.clone("thread", "made"),
    "fork": lambda ann: ann.saver.fork("thread", new_thread_id="made", history="path"),
}


@pytest.mark.parametrize("work", IN_TURNS)
def test_what_a_former_owner_does_in_turns_ends_with_the_thread(
    work: str, new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (Statements, "default_turn_rows"), (Turns, "turn_rows"):
        monkeypatch.setattr(module, name, 8)
    monkeypatch.setattr(forking, "_COPIED_AT_ONCE", 4)
    store = new_store()
    saver = store.saver()
    ann, everybody = ThreadCatalog(saver, owner="ann"), ThreadCatalog(store.saver())
    parent: Any = None
    for n in range(20):
        metadata = {"run_id": "run"} if n < 12 else None
        parent = put(ann.saver, {"n": n}, parent=parent, metadata=metadata)
    seen: list[Any] = []

    def give_away(turn: int) -> None:
        if turn == 3:
            everybody.update("thread", owner="bob")
            seen.append(_content(everybody.saver))

    call_between_turns(monkeypatch, give_away)
    with contextlib.suppress(ForkpointError):
        IN_TURNS[work](ann)
    assert seen == [_content(everybody.saver)]
    for thread in ann.search():
        assert thread.source_thread_id is None
        assert [entry.thread_id for entry in ann.saver.lineage(thread.thread_id)] == ["made"]
    assert [thread.thread_id for thread in ThreadCatalog(saver, owner="bob").search()] == ["thread"]
    assert store.problems(saver) == []


def _content(saver: ForkpointSaver) -> Any:
    return [(each.config, each.checkpoint, each.metadata) for each in saver.history("thread")]


def test_a_thread_is_given_away_though_one_that_was_made_of_it_is_deleted(
    store: Store, saver: ForkpointSaver
) -> None:
    """That is still in the lineage of another one."""
    put(saver.for_owner("ann"), {"n": 1}, thread_id="root")
    saver.fork("root", new_thread_id="child")
    saver.fork("child", new_thread_id="grandchild")
    saver.delete_thread("child")
    ThreadCatalog(saver).update("root", owner="bob")
    bob, ann = (ThreadCatalog(saver, owner=owner) for owner in ("bob", "ann"))
    assert [thread.thread_id for thread in bob.search()] == ["root"]
    assert [thread.thread_id for thread in ann.search()] == ["grandchild"]
    assert "root" not in [entry.thread_id for entry in saver.lineage("grandchild")]
    assert store.problems(saver) == []
