"""What others disturb each time that it is tried ends with an error, and has written nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from checking import config, put, value_of
from forkpoint import StorageBusy, ThreadCatalog
from forkpoint.storage.retry import attempts
from stores import MongoStore

READS = ("find", "aggregate", "getMore")


def labelled(other: ThreadCatalog, number: int) -> None:
    """Change the record of the thread."""
    other.update("thread", label=f"{number}")


def remade(other: ThreadCatalog, number: int) -> None:
    """Put another thread in its place."""
    other.delete("thread")
    put(other.saver, {"n": number, "text": "x" * 3000})


Change = Callable[[ThreadCatalog], Any]
CASES: dict[str, tuple[Callable[[ThreadCatalog, int], None], Change]] = {
    "update": (labelled, lambda catalog: catalog.update("thread", metadata={"a": 1})),
    "handover": (labelled, lambda catalog: catalog.update("thread", owner="ann")),
    "rollover": (remade, lambda catalog: catalog.rollover("thread", "new")),
    "fork": (remade, lambda catalog: catalog.saver.fork("thread", new_thread_id="new")),
    "put": (remade, lambda catalog: put(catalog.saver, {"n": "mine"})),
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_disturbed_each_time_is_told(
    case: str, mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "__defaults__", (3,))  # each of them takes long here
    disturb, change = CASES[case]
    own = mongo_store.saver()
    other = ThreadCatalog(own)
    put(own, {"n": -1, "text": "x" * 3000})
    numbers = count()
    is_disturbed = False

    def before(command: str) -> None:
        nonlocal is_disturbed
        if is_disturbed and command not in READS:
            is_disturbed = False
            disturb(other, next(numbers))
            is_disturbed = True

    catalog = ThreadCatalog(mongo_store.watched(before))
    is_disturbed = True
    with pytest.raises(StorageBusy, match="thread 'thread' changed 20 times in a row"):
        change(catalog)
    is_disturbed = False
    last = next(numbers) - 1
    (thread,) = other.search()
    assert (thread.thread_id, thread.metadata, thread.owner) == ("thread", {}, None)
    if disturb is labelled:
        assert thread.label == f"{last}"
    else:
        assert value_of(own.get_tuple(config()))["n"] == last
    change(catalog)
    assert mongo_store.problems(own) == []
