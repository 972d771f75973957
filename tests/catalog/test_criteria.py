"""The fields of a search: each is known once, and a new one takes two places."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from checking import put
from forkpoint import InvalidInput, ThreadCatalog, ThreadFilter, inputs
from forkpoint.catalog.criteria import (
    SEARCH_FIELDS,
    SORT_KEYS,
    criteria_of,
    record_field,
)
from forkpoint.saver.saver import ForkpointSaver


@dataclasses.dataclass(frozen=True)
class WiderFilter(ThreadFilter):
    """The first place of three new search fields: the attributes."""

    checkpoints_from: int = 0
    checkpoints_below: int = 1000
    on_expiry: Sequence[str] = ("delete", "keep_latest")


# The second place: their lines.
NEW_FIELDS = {
    "checkpoints_from": record_field(
        lambda value, name: inputs.count(value, name, 0), "checkpoint_count", ">="
    ),
    "checkpoints_below": record_field(
        lambda value, name: inputs.count(value, name, 0), "checkpoint_count", "<"
    ),
    "on_expiry": record_field(inputs.tags, "on_expiry", "in"),
}


def test_each_field_of_a_filter_is_a_search_field() -> None:
    assert SEARCH_FIELDS.keys() == {field.name for field in dataclasses.fields(ThreadFilter)}


def test_a_filter_without_values_asks_for_nothing() -> None:
    assert criteria_of(None) == criteria_of(ThreadFilter()) == {}
    with pytest.raises(InvalidInput, match="status must be one of"):
        criteria_of(ThreadFilter(status=[]))


@pytest.mark.on_each_backend
@pytest.mark.parametrize("sort_by", SORT_KEYS)
def test_a_new_search_field_takes_two_places(
    sort_by: str, saver: ForkpointSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, field in NEW_FIELDS.items():
        monkeypatch.setitem(SEARCH_FIELDS, name, field)
    catalog = ThreadCatalog(saver)
    for checkpoints in range(4):
        thread_id = f"t{checkpoints}"
        catalog.create(
            thread_id, tags=["a"], on_expiry="keep_latest" if checkpoints % 2 else "delete"
        )
        for n in range(checkpoints):
            put(saver, {"n": n}, thread_id=thread_id)

    def ids(**fields: Any) -> list[str]:
        wider_filter = WiderFilter(**fields)
        threads = [thread.thread_id for thread in catalog.walk(wider_filter, sort_by=sort_by)]
        assert catalog.count(wider_filter) == len(threads)
        return sorted(threads)

    assert ids(checkpoints_from=2) == ["t2", "t3"]
    assert ids(checkpoints_from=1, checkpoints_below=3, tags=["a"]) == ["t1", "t2"]
    assert ids(on_expiry=["keep_latest"]) == ["t1", "t3"]
    assert ids(on_expiry=["delete"], checkpoints_from=1, ids=["t0", "t1", "t2"]) == ["t2"]
    assert ids(any_tags=["a", "b"], checkpoints_below=2) == ["t0", "t1"]
