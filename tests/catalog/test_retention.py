"""What retention deletes and trims, and what it leaves alone."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from catalogs import HOUR, HOURS, content, fill, ids
from checking import Api, config, one_by_one, put, value_of
from forkpoint import (
    CorruptChunk,
    InvalidInput,
    RetentionPolicy,
    RetentionResult,
    Thread,
    ThreadCatalog,
    ThreadFilter,
)
from forkpoint.catalog import retention_pass
from forkpoint.catalog.retention import Rules
from forkpoint.storage.rows import Description, ThreadRef, ThreadRow
from graphs import SHAPES
from stores import Store


@pytest.mark.parametrize(
    ("policy", "deleted"),
    [
        (RetentionPolicy(max_age=3 * HOUR), {"made 4, idle 0", "made 4, idle 2", "made 4, idle 4"}),
        (RetentionPolicy(max_idle=3 * HOUR), {"made 4, idle 4"}),
        (
            RetentionPolicy(max_idle=HOUR, keep_tags={"idle 4"}),
            {"made 2, idle 2", "made 4, idle 2"},
        ),
        (
            RetentionPolicy(max_age=3 * HOUR, max_idle=HOUR),
            {"made 4, idle 0", "made 4, idle 2", "made 4, idle 4", "made 2, idle 2"},
        ),
        (RetentionPolicy(max_age=9 * HOUR), set()),
    ],
)
async def test_threads_are_deleted_by_age_and_by_idle_time(
    policy: RetentionPolicy, deleted: set[str], catalog: Api, api: Api, store: Store
) -> None:
    await fill(catalog, store)
    everything = ids(api.saver)
    before = content(store)
    plan = await catalog.apply_retention(policy, dry_run=True)
    assert content(store) == before
    assert set(plan.deleted) == deleted
    assert plan.dry_run
    steps: list[RetentionResult] = []
    result = await catalog.apply_retention(policy, on_progress=steps.append)
    assert (set(result.deleted), result.trimmed, result.busy) == (deleted, (), ())
    assert not result.dry_run
    assert steps[-1] == result
    assert ids(api.saver) == everything - deleted
    assert (await catalog.apply_retention(policy)).deleted == ()
    assert store.problems(api.saver) == []


async def test_a_filter_limits_a_policy(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)
    old = RetentionPolicy(max_idle=HOUR)
    thread_filter = ThreadFilter(tags={"idle 2"})
    assert len((await catalog.apply_retention(old, thread_filter)).deleted) == 2
    acme = ThreadCatalog(api.saver, owner="acme")
    assert acme.apply_retention(old).deleted == ()
    recent = ThreadFilter(created_after=datetime.now(timezone.utc) - 3 * HOUR)
    assert (await catalog.apply_retention(old, recent)).deleted == ()
    assert (await catalog.apply_retention(old)).deleted == ("made 4, idle 4",)


@pytest.mark.in_turns
async def test_a_filter_by_time_limits_every_rule(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)
    for thread_id in ids(api.saver):
        put(api.saver, {"n": 9}, thread_id=thread_id)
        await catalog.update(thread_id, ttl=HOUR)
        store.age(thread_id, updated_at=(9 if "idle 0" in thread_id else 2) * HOURS)
    policy = RetentionPolicy(max_checkpoints_per_thread=1, expired=True)
    now = datetime.now(timezone.utc)
    thread_filter = ThreadFilter(created_before=now - HOUR, updated_after=now - 5 * HOUR)
    result = await catalog.apply_retention(policy, thread_filter)
    assert set(result.deleted) == {"made 2, idle 2", "made 4, idle 2", "made 4, idle 4"}
    long = RetentionPolicy(max_checkpoints_per_thread=1)
    new = ThreadFilter(created_after=now - HOUR)
    for options in ({"dry_run": True}, {}):
        assert (await catalog.apply_retention(long, new, **options)).trimmed == ("made 0, idle 0",)
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_threads_that_stay_do_not_stop_the_batches(
    catalog: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_pass, "_BATCH", 5)
    number = 40
    for n in range(number):
        await catalog.create(f"t{n:02}", tags=["keep"] if n % 8 else [], ttl=HOUR)
    store.be_old("updated_at")  # all of them at the same moment
    policy = RetentionPolicy(expired=True, keep_tags={"keep"})
    expected = {f"t{n:02}" for n in range(0, number, 8)}
    plan = await catalog.apply_retention(policy, dry_run=True)
    assert sorted(plan.deleted) == sorted(expected)
    steps: list[RetentionResult] = []

    def archive(thread: Thread, _: Any) -> None:
        if thread.thread_id == "t00":
            raise OSError("never")

    result = await catalog.apply_retention(policy, archive=archive, on_progress=steps.append)
    assert set(result.deleted) == expected - {"t00"}
    assert list(result.failed) == ["t00"]
    assert len(steps) <= number / 5 + 1
    assert (await catalog.apply_retention(policy)).deleted == ("t00",)


async def test_removing_is_no_activity(catalog: Api, api: Api, store: Store) -> None:
    await catalog.create("thread", ttl=5 * HOUR)
    for n in range(3):
        put(api.saver, {"n": n})
    store.age("thread", updated_at=2 * HOURS)
    before = await catalog.get("thread")
    trimmed = await catalog.apply_retention(RetentionPolicy(max_checkpoints_per_thread=1))
    assert trimmed.trimmed == ("thread",)
    after = await catalog.get("thread")
    assert (after.updated_at, after.expires_at) == (before.updated_at, before.expires_at)
    assert after.checkpoint_count == 1
    assert (await catalog.apply_retention(RetentionPolicy(max_idle=HOUR))).deleted == ("thread",)


async def test_the_rest_of_a_family_keeps_its_state(catalog: Api, api: Api, store: Store) -> None:
    messages = [HumanMessage("text " * 100, id=str(n)) for n in range(40)]
    put(api.saver, {"messages": messages})
    for n in range(10):
        await catalog.clone("thread", f"t{n}", tags=["go"] if n % 2 else [])
        head = api.saver.get_tuple(config(f"t{n}"))
        more = [*messages, HumanMessage(f"own {n} " * 90, id="own")]
        put(api.saver, {"messages": more}, parent=head.config, thread_id=f"t{n}")  # type: ignore[union-attr]
    before = {
        thread_id: value_of(api.saver.get_tuple(config(thread_id))) for thread_id in ids(api.saver)
    }
    assert await catalog.bulk_delete(ThreadFilter(tags=["go"])) == 5
    assert ids(api.saver) == {"thread", *(f"t{n}" for n in range(0, 10, 2))}
    for thread_id in ids(api.saver):
        assert value_of(api.saver.get_tuple(config(thread_id))) == before[thread_id]
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_long_threads_are_trimmed_and_keep_their_state(
    catalog: Api, api: Api, store: Store
) -> None:
    policy = RetentionPolicy(max_checkpoints_per_thread=2)
    states = {}
    for name in ("chat", "deltas", "snapshots", "stateful subgraphs"):
        graph = SHAPES[name].build(api.saver)
        for graph_input in SHAPES[name].inputs:
            graph.invoke(graph_input, {"configurable": {"thread_id": name}})
        states[name] = graph.get_state({"configurable": {"thread_id": name}}, subgraphs=True)
    put(api.saver, {"n": 1}, thread_id="short")
    plan = await catalog.apply_retention(policy, dry_run=True)
    result = await catalog.apply_retention(policy)
    assert set(result.trimmed) == set(plan.trimmed) == states.keys()
    assert result.deleted == ()
    for name, state in states.items():
        graph = SHAPES[name].build(api.saver)
        snapshot = graph.get_state({"configurable": {"thread_id": name}}, subgraphs=True)
        assert (snapshot.values, snapshot.next, snapshot.config) == (
            state.values,
            state.next,
            state.config,
        )
        assert repr(snapshot.tasks) == repr(state.tasks)
        assert len(list(api.saver.history(name))) == 2
    assert (await catalog.apply_retention(policy)).trimmed == ()
    assert store.problems(api.saver) == []


async def test_an_expired_thread_is_swept_unless_it_was_active(
    catalog: Api, api: Api, store: Store
) -> None:
    for name in ("expired", "active", "updated", "busy"):
        await catalog.create(name, ttl=HOUR)
        put(api.saver, {"n": 1}, thread_id=name)
        store.age(name, updated_at=2 * HOURS)
    await catalog.create("for ever")
    store.age("for ever", updated_at=2 * HOURS)
    put(api.saver, {"n": 2}, thread_id="active")
    await catalog.update("updated", label="x")
    with ThreadCatalog(api.saver).run("busy"):
        result = await catalog.sweep()
        assert (result.deleted, result.busy) == (("expired",), ("busy",))
    assert ids(api.saver) == {"active", "updated", "for ever"}  # its time is up without the lease
    assert (await catalog.sweep()).deleted == ("busy",)
    assert store.problems(api.saver) == []


async def test_a_busy_thread_is_left_alone_and_reported(
    catalog: Api, api: Api, store: Store
) -> None:
    await fill(catalog, store)
    policy = RetentionPolicy(max_idle=HOUR, max_checkpoints_per_thread=1)
    with (
        ThreadCatalog(api.saver).run("made 4, idle 4"),
        ThreadCatalog(api.saver).run("made 0, idle 0"),
    ):
        for options in ({"dry_run": True}, {"archive": lambda *_: None}):
            result = await catalog.apply_retention(policy, **options)
            assert set(result.busy) == {"made 4, idle 4", "made 0, idle 0"}
        assert await catalog.bulk_delete(ThreadFilter(tags=["idle 4"])) == 0
    result = await catalog.apply_retention(policy)
    assert (result.deleted, result.trimmed) == (("made 4, idle 4",), ("made 0, idle 0",))


async def test_bulk_delete_deletes_what_matches(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)
    thread_filter = ThreadFilter(tags=["idle 0"])
    before = content(store)
    assert await catalog.bulk_delete(thread_filter, dry_run=True) == 3
    for empty in (ThreadFilter(), None, ThreadFilter(tags=set(), metadata={}, any_tags=[])):
        with pytest.raises(InvalidInput, match="empty"):
            await catalog.bulk_delete(empty)
    assert content(store) == before
    assert await catalog.bulk_delete(thread_filter) == 3
    assert ids(api.saver) == {"made 2, idle 2", "made 4, idle 2", "made 4, idle 4"}
    assert store.problems(api.saver) == []


@pytest.mark.parametrize("by", ["count", "expiry", "age"])
async def test_a_damaged_thread_keeps_no_other_from_being_deleted_or_trimmed(
    by: str, api: Api, store: Store
) -> None:
    saver = api.saver
    policies = {
        "count": RetentionPolicy(max_checkpoints_per_thread=1),
        "expiry": RetentionPolicy(expired=True),
        "age": RetentionPolicy(max_age=HOUR),
    }
    for name in ("damaged", "sound"):
        parent = put(saver, {"n": 0, "long": ["text " * 300]}, thread_id=name)
        put(saver, {"n": 1, "long": ["text " * 300]}, parent=parent, thread_id=name)
    if by == "expiry":
        for name in ("damaged", "sound"):
            ThreadCatalog(saver).update(name, ttl=HOUR, on_expiry="keep_latest")
    saver.copy_thread("damaged", "relative")
    key = store.thread("damaged").key
    row = next(row for row in store.rows("checkpoints") if row.thread == key)
    if by == "age":
        store.change("checkpoints", row.key, refs="damaged")
    else:
        store.change("checkpoints", row.key, metadata="damaged")
    for name in ("relative", "sound") if by == "age" else ("damaged", "sound"):
        store.age(name, created_at=2 * HOURS, updated_at=2 * HOURS)
    catalog = Api(ThreadCatalog(saver), api.world)
    steps: list[RetentionResult] = []
    # What was deleted may be gone, and its chunks not collected.
    with contextlib.suppress(CorruptChunk):
        await catalog.apply_retention(policies[by], on_progress=steps.append)
    done = steps[-1]
    assert "sound" in (done.deleted if by == "age" else done.trimmed)
    if by != "age":
        assert list(done.failed) == ["damaged"]
        assert "metadata" in str(done.failed["damaged"])
    assert (await catalog.get("damaged")).checkpoint_count == 2
    store.outlast()
    put(saver, {"n": 1}, thread_id="later")
    store.age("later", created_at=2 * HOURS)
    assert "later" in (await catalog.apply_retention(RetentionPolicy(max_age=HOUR))).deleted


NOW = 1000
ROWS = st.builds(
    lambda tags, ttl, age, idle, count: ThreadRow(
        ThreadRef(1, 1, 1),
        "thread",
        Description(None, sorted(tags), "{}", ttl),
        "idle",
        NOW - age,
        NOW - idle,
        None,
        None,
        count,
        None,
    ),
    st.sets(st.sampled_from("ab")),
    st.none() | st.integers(1, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 5),
)
RULES = st.builds(
    Rules,
    max_age=st.none() | st.integers(1, 9),
    max_idle=st.none() | st.integers(1, 9),
    max_checkpoints=st.none() | st.integers(1, 5),
    expired=st.booleans(),
    keep_tags=st.frozensets(st.sampled_from("ab")),
    everything=st.just(False),
    max_checkpoint_age=st.none(),
)


@given(row=ROWS, rules=RULES)
def test_the_rules_decide_as_documented(row: ThreadRow, rules: Rules) -> None:
    action = rules.action(row, NOW)
    age, idle, ttl = NOW - row.created_at, NOW - row.updated_at, row.described.ttl
    most = rules.max_checkpoints
    is_to_go = (
        (rules.max_age is not None and age > rules.max_age)
        or (rules.max_idle is not None and idle > rules.max_idle)
        or (rules.expired and ttl is not None and idle >= ttl)
    )
    if set(row.described.tags) & rules.keep_tags:
        assert action is None
    elif is_to_go:
        assert action == "delete"
    else:
        assert action == ("trim" if most is not None and row.checkpoint_count > most else None)


@pytest.fixture
async def filled(catalog: Api, store: Store) -> Any:
    await fill(catalog, store)
    return content(store)


@one_by_one(
    "method, args, options, name",
    [
        ("apply_retention", [{}], {}, "policy"),
        ("apply_retention", [RetentionPolicy()], {}, "no rule"),
        ("apply_retention", [RetentionPolicy(keep_tags={"a"})], {}, "no rule"),
        ("apply_retention", [RetentionPolicy(max_age=5)], {}, "max_age"),
        ("apply_retention", [RetentionPolicy(max_idle=-HOUR)], {}, "max_idle"),
        ("apply_retention", [RetentionPolicy(max_checkpoints_per_thread=0)], {}, "max_checkpoints"),
        ("apply_retention", [RetentionPolicy(expired=1)], {}, "expired"),
        ("apply_retention", [RetentionPolicy(HOUR, keep_tags="ab")], {}, "keep_tags"),
        ("apply_retention", [RetentionPolicy(HOUR), {"owner": "x"}], {}, "filter"),
        ("apply_retention", [RetentionPolicy(HOUR)], {"dry_run": 1}, "dry_run"),
        ("apply_retention", [RetentionPolicy(HOUR)], {"archive": 1}, "archive"),
        ("apply_retention", [RetentionPolicy(HOUR)], {"on_progress": "x"}, "on_progress"),
        ("bulk_delete", [ThreadFilter(owner="x")], {"dry_run": "no"}, "dry_run"),
        ("sweep", [], {"archive": 1}, "archive"),
    ],
)
async def test_invalid_arguments_of_a_fork_are_named_and_change_nothing(
    method: str, args: list[Any], options: Any, name: str, catalog: Api, store: Store, filled: Any
) -> None:
    with pytest.raises(InvalidInput, match=name):
        await getattr(catalog, method)(*args, **options)
    for interval in (5, timedelta(0)):
        with pytest.raises(InvalidInput, match="interval"):
            catalog.saver.sweeper(interval)
    with pytest.raises(InvalidInput, match="archive"):
        catalog.saver.sweeper(HOUR, archive=1)
    assert content(store) == filled
