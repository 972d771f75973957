"""Chunks: values are shared in a family, and go with the last checkpoint that leads to them."""

from __future__ import annotations

from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, config, put, value_of
from forkpoint.testing.invariants import chunks_of, problems

LONG = [{"id": str(n), "text": f"element {n} " * 40} for n in range(300)]


class ChunkContract(Contract):
    """What several checkpoints have in common is stored once, and collected when none has it."""

    def test_a_longer_list_shares_most_of_what_is_stored(self, api: Api) -> None:
        first = put(api.saver, {"long": LONG})
        before = chunks_of(api.saver, "thread")
        put(api.saver, {"long": [*LONG, {"id": "new"}]}, parent=first)
        assert len(chunks_of(api.saver, "thread") - before) <= 3
        assert value_of(api.get_tuple(config()))["long"] == [*LONG, {"id": "new"}]

    def test_forks_copies_and_clones_write_no_chunk(self, api: Api) -> None:
        put(api.saver, {"long": LONG})
        before = chunks_of(api.saver, "thread")
        api.fork("thread", new_thread_id="fork")
        api.copy_thread("thread", "copy")
        api.catalog().clone("thread", "clone")
        assert chunks_of(api.saver, "thread") == before
        for thread_id in ("fork", "copy", "clone"):
            assert value_of(api.get_tuple(config(thread_id)))["long"] == LONG
        assert problems(api.saver) == []

    def test_chunks_stay_as_long_as_one_of_the_family_needs_them(self, api: Api) -> None:
        first = put(api.saver, {"long": LONG})
        put(api.saver, {"long": LONG, "more": "more " * 9000}, parent=first)
        api.fork(first, new_thread_id="fork")
        before = chunks_of(api.saver, "fork")
        report = api.purge("thread")
        left = chunks_of(api.saver, "fork")
        assert report.chunks == len(before - left) > 0
        assert value_of(api.get_tuple(config("fork")))["long"] == LONG
        assert problems(api.saver) == []
        assert api.purge("fork").chunks == len(left)

    def test_threads_that_are_no_family_share_nothing(self, api: Api) -> None:
        for thread_id in ("a", "b"):
            put(api.saver, {"long": LONG}, thread_id=thread_id)
        a, b = (chunks_of(api.saver, thread_id) for thread_id in ("a", "b"))
        assert api.purge("a").chunks == len(a)
        assert chunks_of(api.saver, "b") == b
        assert value_of(api.get_tuple(config("b")))["long"] == LONG
        assert problems(api.saver) == []
