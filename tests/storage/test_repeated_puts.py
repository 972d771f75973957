"""What is put again: the chunks that nothing leads to then are collected, if not at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from checking import Api, checkpoint, put
from forkpoint import ThreadCatalog
from stores import Store

TEXTS = ["first " * 900, "second " * 900, "third " * 900]

Call = Callable[[Any, Any], Any]


async def a_task_that_ran_before(api: Any, at: Any) -> None:
    """As in `update_state` with a node that ran already: what it wrote first counts."""
    await api.put_writes(at, [("a", TEXTS[0])], "task")
    await api.put_writes(at, [("a", TEXTS[1]), ("b", TEXTS[2])], "task")


async def another_answer(api: Any, at: Any) -> None:
    for text in TEXTS:
        await api.put_writes(at, [("__resume__", [text])], "task")


async def a_checkpoint(api: Any, at: Any) -> None:
    new = checkpoint({"text": TEXTS[0]})
    for text in TEXTS:
        values = {**new, "channel_values": {"text": text}}
        await api.put(at, values, {}, new["channel_versions"])


@pytest.mark.parametrize("repeat", [a_task_that_ran_before, another_answer, a_checkpoint])
async def test_a_sweep_collects_what_is_put_for_nothing(
    repeat: Call, api: Api, store: Store
) -> None:
    at = put(api.saver, {"n": 1})
    for _ in range(2):
        await repeat(api, at)
        found = await api.list(None)
        store.outlast()
        ThreadCatalog(api.saver).sweep()
        assert store.problems(api.saver) == []
        assert await api.list(None) == found
