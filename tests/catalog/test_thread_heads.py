"""A list of threads shows what each waits for, why it failed, and when its state changed last."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.types import Command, Interrupt

from checking import Api, checkpoint, config, id_of, put
from forkpoint import CorruptChunk, Thread, ThreadCatalog
from graphs import MORE_SHAPES, SHAPES, THREAD, call
from stores import Store

THREAD_ID = THREAD["configurable"]["thread_id"]


async def listed(api: Api, thread_id: str = THREAD_ID) -> Thread:
    """Return a thread as it is in a list, where it is the same as by its id."""
    catalog = Api(ThreadCatalog(api.saver), api.world)
    page = await catalog.search()
    (thread,) = [thread for thread in page if thread.thread_id == thread_id]
    assert thread == await catalog.get(thread_id)
    return thread  # type: ignore[no-any-return]


def pending_questions(graph: Any, thread_id: str = THREAD_ID) -> list[tuple[str, Any]]:
    state = graph.get_state({"configurable": {"thread_id": thread_id}})
    return sorted((waiting.id, waiting.value) for waiting in state.interrupts)


def shown(thread: Thread) -> list[tuple[Any, Any]]:
    return sorted((waiting.id, waiting.value) for waiting in thread.interrupts)


@pytest.mark.in_turns
async def test_a_list_has_the_interrupts_that_the_state_has(api: Api) -> None:
    graph = MORE_SHAPES["questions"].build(api.saver)
    given: Any = {"items": []}
    numbers = []
    while not numbers or numbers[-1]:
        await call(graph, api.world, given, {})
        thread = await listed(api)
        assert shown(thread) == pending_questions(graph)
        assert (thread.status == "interrupted") == bool(thread.interrupts)
        numbers.append(len(thread.interrupts))
        given = Command(resume={waiting.id: "yes" for waiting in thread.interrupts[:2]})
    assert max(numbers) > 1


async def test_interrupts_are_right_after_each_change_of_the_head(api: Api, store: Store) -> None:
    graph = MORE_SHAPES["question"].build(api.saver)
    await call(graph, api.world, {"items": ["a"]}, {})
    first = await listed(api)
    assert [interrupt.value for interrupt in first.interrupts] == ["after ['a', 'before']"]
    catalog = ThreadCatalog(api.saver)
    await api.fork(THREAD_ID, new_thread_id="fork")
    await api.copy_thread(THREAD_ID, "copy")
    catalog.clone(THREAD_ID, "clone")
    for target in ("fork", "copy", "clone"):
        assert shown(await listed(api, target)) == pending_questions(graph, target) == shown(first)
    catalog.clone(THREAD_ID, "empty", checkpoints=False)
    assert (await listed(api, "empty")).interrupts == ()
    await call(graph, api.world, Command(resume="yes"), {})
    assert (await listed(api)).interrupts == ()
    assert shown(await listed(api, "fork")) == shown(first)
    await api.rollback(THREAD_ID, 2)
    assert shown(await listed(api)) == pending_questions(graph) == shown(first)
    await api.trim(THREAD_ID, 1)
    assert shown(await listed(api)) == shown(first)
    await api.rollback("clone")
    assert shown(await listed(api, "clone")) == pending_questions(graph, "clone") == []
    await api.purge(THREAD_ID)
    assert store.problems(api.saver) == []


@pytest.mark.in_turns
async def test_a_failed_task_is_shown_by_its_error_until_it_succeeds(api: Api) -> None:
    shape = SHAPES["failing"]
    graph = shape.build(api.saver)
    await call(graph, api.world, {"items": []}, shape.options)
    thread = await listed(api)
    assert (thread.status, thread.error) == ("error", "Failure('the first time')")
    await call(graph, api.world, None, shape.options)
    thread = await listed(api)
    assert (thread.status, thread.error) == ("idle", None)


@pytest.mark.in_turns
async def test_an_interrupt_is_shown_up_to_64_kib_and_a_longer_one_as_unknown(api: Api) -> None:
    values = ["x" * 2000, {"y": "z" * 60_000}, "x" * 70_000, "x" * 3_000_000]
    for n, value in enumerate(values):
        at = put(api.saver, {"a": 1}, thread_id=f"t{n}")
        written = _interrupt(value)
        await api.put_writes(at, [("__interrupt__", written)], "task")
        (waiting,) = (await listed(api, f"t{n}")).interrupts
        is_shown = n < 2
        assert (waiting.id, waiting.value) == (("id", value) if is_shown else (None, None))
        assert waiting.task_id == "task"


def _interrupt(value: Any) -> Any:
    return [Interrupt(value=value, id="id")]


@pytest.mark.in_turns
async def test_an_interrupt_that_cannot_be_read_hides_no_other(api: Api, store: Store) -> None:
    for thread_id in ("whole", "damaged"):
        at = put(api.saver, {"a": 1}, thread_id=thread_id)
        await api.put_writes(at, [("__interrupt__", _interrupt("?"))], "task")
    damaged = store.thread("damaged").key
    (row,) = [
        row
        for row in store.rows("writes")
        if row.thread == damaged and row.content and not row.links
    ]
    store.change("writes", row.key, content=row.content[:-3] + b"abc")
    assert [interrupt.value for interrupt in (await listed(api, "damaged")).interrupts] == [None]
    assert [interrupt.value for interrupt in (await listed(api, "whole")).interrupts] == ["?"]


@pytest.mark.in_turns
async def test_a_write_with_a_field_of_another_type_hides_no_other_thread(
    api: Api, store: Store
) -> None:
    for thread_id in ("whole", "damaged"):
        at = put(api.saver, {"a": 1}, thread_id=thread_id)
        await api.put_writes(at, [("__interrupt__", _interrupt("?"))], "task")
    damaged = store.thread("damaged").key
    for row in store.rows("writes"):
        if row.thread == damaged:
            store.change("writes", row.key, content=7)
    assert (await listed(api, "damaged")).interrupts == ()
    assert [interrupt.value for interrupt in (await listed(api, "whole")).interrupts] == ["?"]
    with pytest.raises(CorruptChunk):
        await api.get_tuple(config("damaged"))


async def test_the_state_changes_with_its_head_and_not_with_the_record(api: Api) -> None:
    catalog = ThreadCatalog(api.saver)
    catalog.create("thread")
    assert (await listed(api, "thread")).state_updated_at is None
    first = put(api.saver, {"a": 1})
    changed = (await listed(api, "thread")).state_updated_at
    assert changed is not None
    updated = catalog.update("thread", label="x")
    assert (updated.state_updated_at, updated.updated_at > changed) == (changed, True)
    await api.put_writes(first, [("a", 2)], "task")
    put(api.saver, {"b": 1}, ns="child:1")
    assert (await listed(api, "thread")).state_updated_at == changed
    await api.put_writes(first, [("__interrupt__", _interrupt("?"))], "task")
    asked_at = (await listed(api, "thread")).state_updated_at
    assert asked_at is not None
    assert asked_at > changed
    put(api.saver, {"a": 2}, parent=first)
    second_at = (await listed(api, "thread")).state_updated_at
    assert second_at is not None
    await api.put_writes(config("thread", id_of(first)), [("a", 3)], "task")
    assert (await listed(api, "thread")).state_updated_at == second_at
    catalog.clone("thread", "clone")
    cloned = await listed(api, "clone")
    assert cloned.state_updated_at == cloned.created_at
    await api.rollback("thread")
    rolled_back = (await listed(api, "thread")).state_updated_at
    assert rolled_back is not None
    assert rolled_back > second_at


@pytest.mark.in_turns
async def test_an_interrupt_of_an_older_checkpoint_does_not_count(api: Api) -> None:
    first = put(api.saver, {"a": 1})
    put(api.saver, {"a": 2}, parent=first)
    await api.put_writes(first, [("__interrupt__", _interrupt("?"))], "task")
    thread = await listed(api, "thread")
    assert (thread.status, thread.interrupts) == ("idle", ())


@pytest.mark.in_turns
async def test_threads_are_sorted_by_when_their_state_changed(api: Api) -> None:
    catalog = Api(ThreadCatalog(api.saver), api.world)
    for n in range(7):
        put(api.saver, {"a": 1}, thread_id=f"t{n}")
    for n in (5, 3, 1):
        put(api.saver, {"a": 2}, thread_id=f"t{n}")
    await catalog.create("new")
    for n in range(7):
        await catalog.update(f"t{n}", label="x")
    expected = ["t1", "t3", "t5", "t6", "t4", "t2", "t0", "new"]
    for descending in (True, False):
        thread_ids: list[str] = []
        cursor = None
        while True:
            page = await catalog.search(
                sort_by="state_updated_at", descending=descending, limit=3, cursor=cursor
            )
            thread_ids += [thread.thread_id for thread in page]
            cursor = page.next_cursor
            if cursor is None:
                break
            if len(thread_ids) == 6:  # the order is that of the second page
                put(api.saver, {"a": 3}, thread_id="t4")
        assert thread_ids == (expected if descending else expected[::-1])
        expected = ["t4", *(thread_id for thread_id in expected if thread_id != "t4")]


def test_a_checkpoint_that_is_put_into_a_thread_at_work_clears_what_waited(store: Store) -> None:
    saver = store.saver()
    at = put(saver, {"a": 1})
    saver.put_writes(at, [("__interrupt__", _interrupt("?"))], "task")
    catalog = ThreadCatalog(saver)
    with catalog.run("thread") as lease:
        (thread,) = catalog.search()
        assert (thread.status, len(thread.interrupts)) == ("busy", 1)
        checkpoint_ = checkpoint({"a": 2})
        saver.put({**config(), **lease.config, **at}, checkpoint_, {}, {"a": 2})
        (thread,) = catalog.search()
        assert (thread.status, thread.interrupts) == ("busy", ())
