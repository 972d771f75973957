"""No row is lost or damaged without being noticed where it decides what is read."""

from __future__ import annotations

from typing import Any

import pytest

from forkpoint import CorruptChunk
from stores import Store
from support import config, put


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("checkpoints", "parent_checkpoint_id", "other"),
        ("checkpoints", "parent_checkpoint_id", None),
        ("checkpoints", "restarts", 1),
        ("checkpoints", "run_id", "other"),
        ("writes", "task_path", "other"),
        ("writes", "channel", "other"),
        ("writes", "task_id", "other"),
    ],
)
def test_a_field_that_decides_what_is_read_is_covered_by_a_checksum(
    store: Store, kind: str, field: str, value: Any
) -> None:
    with store.saver() as saver:
        first = put(saver, {"n": 1}, metadata={"run_id": "run"})
        second = put(saver, {"n": 2}, parent=first, metadata={"run_id": "run"})
        saver.put_writes(second, [("n", 3)], "task", "path")
        store.change(kind, store.rows(kind)[-1].key, **{field: value})
        with pytest.raises(CorruptChunk, match="thread 'thread'"):
            saver.get_tuple(config())
        with pytest.raises(CorruptChunk, match="thread 'thread'"):
            list(saver.list(config()))
