"""Chunks: values are shared in a family, and go with the last checkpoint that leads to them.

How a collection and writers come in between each other is tried step by step, through the storage
interface.
"""

from __future__ import annotations

from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.storage.plan import Plan
from forkpoint.storage.rows import ThreadRef
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, config, fill, id_of, put, value_of
from forkpoint.testing.invariants import chunks_of, problems

LONG = [{"id": str(n), "text": f"element {n} " * 40} for n in range(300)]


def ref_of(saver: ForkpointSaver) -> ThreadRef:
    """Return the thread as a write would be prepared for it now."""
    with parts_of(saver).context.storage.reading() as session:
        thread = session.threads.find("thread")
        assert thread is not None
        return thread


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

    def test_a_collection_leaves_what_was_written_since_it_began(self, api: Api) -> None:
        storage = parts_of(api.saver).context.storage
        put(api.saver, {"long": LONG, "other": "other " * 9000})
        family, before = ref_of(api.saver).family, chunks_of(api.saver, "thread")
        with storage.writing() as session:
            collection = session.collections.begin(family)
        put(api.saver, {"long": LONG})  # relies on no chunk of before
        since = chunks_of(api.saver, "thread")
        assert since == before
        with storage.writing() as session:
            assert session.collections.is_undisturbed(family, collection)
            removed = session.collections.delete_chunks(family, list(before), collection)
        assert removed is not None
        assert 0 < removed.number < len(before)
        assert value_of(api.get_tuple(config())) == {"long": LONG}

    def test_a_removal_makes_prepared_writes_stale_and_disturbs_collections(self, api: Api) -> None:
        storage = parts_of(api.saver).context.storage
        oldest, *_ = fill(api.saver, 3)
        family = ref_of(api.saver).family
        with storage.writing() as session:
            collection = session.collections.begin(family)
            assert session.collections.is_undisturbed(family, collection)
            assert not session.collections.is_overtaken(family, collection)
        before, chunks = ref_of(api.saver), chunks_of(api.saver, "thread")
        with storage.writing() as session:
            counts = session.removals.remove(
                before, lambda rows: Plan({("", id_of(oldest))}, set())
            )
        assert counts == (1, 2)
        assert ref_of(api.saver) != before
        with storage.writing() as session:
            assert not session.collections.is_undisturbed(family, collection)
            assert session.collections.delete_chunks(family, list(chunks), collection) is None
        assert chunks_of(api.saver, "thread") == chunks
        api.trim("thread", 1)  # collects what was left
        assert chunks_of(api.saver, "thread") < chunks
        assert problems(api.saver) == []
