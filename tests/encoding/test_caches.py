"""What a saver remembers takes no more memory than it may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from checking import config, drawn, put, value_of
from forkpoint import InvalidInput, SqliteSaver
from forkpoint.caches import Cache, CacheBudget, Recent
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from processes import environment
from stores import Store

LIMIT = 1024 * 1024
KEYS = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 1), KEYS, st.integers(0, 60)),
        st.tuples(st.just("get"), st.integers(0, 1), KEYS, st.none()),
        st.tuples(st.just("pop"), st.integers(0, 1), KEYS, st.none()),
    ),
    max_size=40,
)


@drawn(12, 1000, steps=STEPS)
def test_caches_know_what_they_hold_and_what_was_put_last(steps: list[Any]) -> None:
    budget = CacheBudget(100)
    caches: list[Cache[str, str]] = [Cache(budget, lambda _, text: len(text)) for _ in range(2)]
    expected: list[dict[str, str]] = [{}, {}]
    for number, (step, which, key, length) in enumerate(steps):
        cache, last = caches[which], expected[which]
        if step == "put":
            last[key] = f"{number:02}".ljust(length, ".")
            cache.put(key, last[key])
            assert cache.get(key) == (last[key] if len(last[key]) <= 50 else None)
        elif step == "get":
            assert cache.get(key) in (None, last.get(key))
        else:
            cache.pop(key)
            last.pop(key, None)
            assert cache.get(key) is None
        held = sum(
            len(text)
            for cache in caches
            for generation in (cache._new, cache._old)
            for text in generation.values()
        )
        assert held == budget.held_bytes <= 100


def test_what_is_used_again_and_again_stays() -> None:
    budget = CacheBudget(100)
    cache: Cache[int, str] = Cache(budget, lambda _, text: len(text))
    cache.put(-1, "x" * 10)
    for n in range(100):
        cache.put(n, "y" * 10)
        assert cache.get(-1) == "x" * 10
    assert cache.get(0) is None


def held_bytes(saver: ForkpointSaver) -> int:
    return parts_of(saver).context.cached_bytes


WIDE: dict[str, Callable[[int], Any]] = {
    "channels": lambda n: {f"channel {c}": f"{n} {c}" * 20 for c in range(300)},
    "long lists": lambda n: {"list": [f"{n} {i}" * 40 for i in range(200)]},
    "messages": lambda n: {"messages": [HumanMessage(f"{n} {i}" * 40) for i in range(100)]},
    "one large value": lambda n: {"text": f"{n}" * (2 * LIMIT)},
}


@pytest.mark.in_turns
@pytest.mark.parametrize("state", WIDE)
def test_caches_of_a_saver_stay_within_their_bytes(state: str, store: Store) -> None:
    with store.saver(cache_bytes=LIMIT) as saver:
        savers = [
            saver,
            saver.for_owner("a"),
            saver.for_owner("b"),
            saver.with_allowlist([("a", "B")]),
        ]
        rounds = 4 if state == "one large value" else 10
        for n in range(rounds):
            used = savers[n % len(savers)]
            first = put(used, WIDE[state](n), thread_id=f"{n}")
            put(used, WIDE[state](n + 1000), thread_id=f"{n}", parent=first)
            assert 0 < held_bytes(saver) <= LIMIT
        for n in range(rounds):
            found = savers[n % len(savers)].get_tuple(config(f"{n}"))
            assert value_of(found) == WIDE[state](n + 1000)
            assert held_bytes(saver) <= LIMIT
        assert {held_bytes(other) for other in savers} == {held_bytes(saver)}
        assert store.problems(saver) == []


def test_a_saver_without_caches_stores_and_reads_the_same(store: Store) -> None:
    with store.saver(cache_bytes=0) as saver:
        last = None
        for n in range(3):
            last = put(saver, {"a": n, "b": ["x" * 300] * 30}, parent=last)
        assert [value_of(found)["a"] for found in saver.list(config())] == [2, 1, 0]
        assert held_bytes(saver) == 0
        assert store.problems(saver) == []


def test_what_was_put_last_is_remembered() -> None:
    recent: Recent[int, str] = Recent(4)
    for key in range(5):
        recent.put(key, str(key))
    assert [recent.get(key) for key in (2, 3, 4)] == ["2", "3", "4"]
    for key in range(5, 100):
        recent.put(key, str(key))
    assert sum(recent.get(key) is not None for key in range(100)) <= 4


@pytest.mark.parametrize("value", [-1, True, 1.5, "64 MiB", None])
def test_a_size_of_caches_that_is_none_is_refused(value: Any, path: Path) -> None:
    with pytest.raises(InvalidInput, match="cache_bytes"):
        SqliteSaver(path, cache_bytes=value)
    with pytest.raises(InvalidInput, match="cache_bytes"):
        MongoDBSaver.from_conn_string("mongodb://localhost", cache_bytes=value)
    assert not path.exists()


PROCESS = """
import resource
from checking import put
{script}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for n in range(300):
    put(saver, {{f"channel {{c}}": f"{{n}} {{c}}" for c in range(2000)}}, thread_id=f"{{n}}")
    if n == 60:
        before = peak()
print(peak() - before)
"""


@pytest.mark.slow
def test_a_process_does_not_grow_with_the_threads_it_has_seen(store: Store) -> None:
    """In 240 checkpoints of 2,000 channels there are 480,000 entries, of 150 MB or more."""
    process = subprocess.run(
        [sys.executable, "-c", PROCESS.format(script=store.script)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(process.stdout) < 40  # MB
