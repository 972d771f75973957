"""The look at a store from outside, on which the other tests rely, sees what is broken."""

from __future__ import annotations

from checking import put
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from stores import KINDS, Store


def fill(saver: ForkpointSaver) -> None:
    stored = put(saver, {"text": "text " * 500, "list": [f"{n} " * 300 for n in range(60)]})
    saver.put_writes(stored, [("c", "write " * 500)], "task")


def test_a_whole_store_has_no_problems(store: Store, saver: ForkpointSaver) -> None:
    fill(saver)
    assert store.problems(saver) == []
    assert [store.count(kind) > 0 for kind in KINDS] == [True] * 4
    assert b"text text" in store.content()


def test_each_row_that_is_missing_is_a_problem(store: Store, saver: ForkpointSaver) -> None:
    fill(saver)
    seen = set()
    for kind in ("checkpoints", "writes", "chunks"):
        for row in store.rows(kind):
            taken = store.take(kind, row.key)
            found = store.problems()
            store.give_back(kind, taken)
            assert found, f"nobody misses {row}"
            seen.update(" ".join(problem.split()[:2]) for problem in found)
    assert {"dangling chunk", "orphaned chunk"} < seen
    assert store.problems(saver) == []


def test_rows_of_no_thread_are_a_problem(store: Store, saver: ForkpointSaver) -> None:
    fill(saver)
    (checkpoint,), (write,) = store.rows("checkpoints"), store.rows("writes")
    taken = [store.take("checkpoints", checkpoint.key), store.take("writes", write.key)]
    saver.delete_thread("thread")
    assert store.problems() == []
    for kind, row in zip(("checkpoints", "writes"), taken, strict=True):
        store.give_back(kind, row)
        assert any(kind in problem for problem in store.problems())


def test_a_thread_that_searches_find_as_what_it_is_not_is_a_problem(
    store: Store, saver: ForkpointSaver
) -> None:
    fill(saver)
    assert ThreadCatalog(saver).count() == 1
    assert store.problems(saver) == []
    store.mislist("thread")
    assert any("listed" in problem for problem in store.problems())
