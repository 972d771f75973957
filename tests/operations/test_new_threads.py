"""A new thread is made by whichever put of a run comes first: the others are prepared once, too."""

from __future__ import annotations

import pytest

from checking import checkpoint, config
from forkpoint.operations.put import (
    _prepare,
    _prepare_writes,
    capture_checkpoint,
    capture_writes,
)
from forkpoint.runtime.steps import finish
from forkpoint.saver import arguments, parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.interface import Stale
from forkpoint.storage.rows import PutRequest


def requests_of(saver: ForkpointSaver, user: str) -> tuple[PutRequest, PutRequest]:
    """Return the first checkpoint of a thread and writes of its task, before either is stored."""
    context = parts_of(saver).context
    made = checkpoint({"n": 1})
    in_run = {**config(checkpoint_id=None), "metadata": {"user": user}}
    at = {**config(checkpoint_id=made["id"]), "metadata": {"user": user}}
    new = arguments.new_checkpoint(in_run, made, {"user": user}, {"n": 1})
    writes = arguments.new_writes(at, [("n", 2)], "task", "")
    return (
        _prepare(context, capture_checkpoint(context, new), None).request,
        _prepare_writes(context, capture_writes(context, writes), None).request,
    )


@pytest.mark.parametrize("is_checkpoint_first", [True, False])
def test_the_puts_of_a_run_that_race_for_a_new_thread_are_stored_at_once(
    is_checkpoint_first: bool, saver: ForkpointSaver
) -> None:
    saver.setup()
    requests = requests_of(saver, "a")
    storage = parts_of(saver).context.storage
    order = requests if is_checkpoint_first else requests[::-1]
    first, second = (finish(storage.put(request)) for request in order)
    assert first is not None
    assert first == second
    stored = saver.get_tuple(config())
    assert stored is not None
    assert stored.pending_writes == [("task", "n", 2)]


def test_what_says_something_else_of_the_thread_is_prepared_again(saver: ForkpointSaver) -> None:
    saver.setup()
    storage = parts_of(saver).context.storage
    (first, _), (_, other) = requests_of(saver, "a"), requests_of(saver, "b")
    assert finish(storage.put(first)) is not None
    with pytest.raises(Stale):
        finish(storage.put(other))
