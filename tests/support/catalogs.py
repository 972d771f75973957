"""What tests of the catalog share: what is stored, who is in a catalog, and random filters."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from checking import Api, put
from forkpoint import Lease, ThreadCatalog, ThreadFilter
from forkpoint.saver.saver import ForkpointSaver
from servers import PATIENCE_SECONDS
from stores import KINDS, Store

HOUR = timedelta(hours=1)
HOURS = 3600 * 1_000_000
"""An hour in microseconds."""
PATIENCE = timedelta(seconds=PATIENCE_SECONDS)


def stored_rows(store: Store) -> Any:
    """Return all rows that are stored, to compare them with those of another time."""
    return [sorted(map(repr, store.rows(kind))) for kind in KINDS[1:]]


def content(store: Store) -> Any:
    """Return all rows and threads that are stored, to compare them with those of another time."""
    return stored_rows(store), sorted(map(repr, store.threads()))


def ids(saver: ForkpointSaver) -> set[str]:
    """Return the ids of all threads."""
    return {thread.thread_id for thread in ThreadCatalog(saver).walk()}


async def fill(catalog: Api, store: Store) -> None:
    """Create threads such as `made 4, idle 2`: created 4 hours ago, and last active 2 hours ago."""
    saver = catalog.saver.saver
    for made in (0, 2, 4):
        for idle in range(0, made + 1, 2):
            thread_id = f"made {made}, idle {idle}"
            await catalog.create(thread_id, tags=[f"idle {idle}"])
            for n in range(3):
                put(saver, {"n": n, "long": ["text " * 300]}, thread_id=thread_id)
            store.age(thread_id, created_at=made * HOURS, updated_at=idle * HOURS)


def archived_in(path: Path) -> list[str]:
    """Return the ids of the threads in an archive."""
    lines = map(json.loads, path.read_text().splitlines())
    return [line["thread"]["thread_id"] for line in lines if "thread" in line]


def at(lease: Lease, **part: Any) -> Any:
    """Return the config of a lease, with more that is put into its `configurable`."""
    return {"configurable": {**lease.config["configurable"], "checkpoint_ns": "", **part}}


# Random threads and filters


WORDS = ["a", "b", "c", "$ne", "x' OR '1'='1", "é", "a.b"]
VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 1.0, 1.5, "1", "", "a"]),
    st.lists(st.sampled_from([1, True, "a", {"k": 1}, {"k": 1, "l": 2}]), max_size=2),
    st.dictionaries(st.sampled_from(WORDS), st.sampled_from([1, True, "a", {}]), max_size=2),
)
METADATA = st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=2)
TAGS = st.sets(st.sampled_from(WORDS), max_size=3)
THREADS = st.lists(
    st.tuples(st.sampled_from([None, *WORDS[:3]]), TAGS, METADATA), min_size=1, max_size=8
)
FILTERS = st.builds(
    ThreadFilter,
    ids=st.none() | st.lists(st.sampled_from([f"t{n}" for n in range(8)]), max_size=4),
    label=st.none() | st.sampled_from(WORDS[:3]),
    tags=st.sets(st.sampled_from(WORDS), max_size=2),
    any_tags=st.sets(st.sampled_from(WORDS), max_size=2),
    metadata=METADATA,
    status=st.none() | st.sampled_from(["idle", "busy", "error"]),
)
