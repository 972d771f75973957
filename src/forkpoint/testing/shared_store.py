"""Several savers for one store, as several processes have: none relies on what is not true now.

This part is for backends whose store can be opened more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions

from forkpoint.errors import StaleLease, ThreadBusy, ThreadDeleted, ThreadExists
from forkpoint.langgraph_rules import INTERRUPT
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, checkpoint, config, fill, id_of, put, value_of
from forkpoint.testing.invariants import chunks_of, problems

LONG = [{"id": str(n), "text": f"element {n} " * 40} for n in range(300)]


class SharedStoreContract(Contract):
    """What one saver remembers of a store is right, whatever others do there.

    A subclass says how a second saver for the same store is made: by `make_peer`, or by a fixture
    `peer` of its own.
    """

    make_peer: Callable[[ForkpointSaver], ForkpointSaver]
    """Returns another saver for the store of a saver, which shares nothing else with it."""

    @pytest.fixture
    def peer(self, saver: ForkpointSaver) -> Iterator[ForkpointSaver]:
        """Another saver for the same store, closed at the end."""
        with type(self).make_peer(saver) as peer:
            yield peer

    def test_one_goes_on_where_the_other_stopped(self, api: Api, peer: ForkpointSaver) -> None:
        first = put(peer, {"long": LONG, "n": 1})
        second = put(api.saver, {"long": LONG, "n": 2}, parent=first)
        put(peer, {"long": [*LONG, LONG[0]], "n": 3}, parent=second)
        assert [value_of(result)["n"] for result in api.history("thread")] == [1, 2, 3]
        assert problems(api.saver) == []

    def test_chunks_that_another_has_collected_are_stored_again(
        self, api: Api, peer: ForkpointSaver
    ) -> None:
        first = put(api.saver, {"long": LONG})
        second = put(api.saver, {"n": 1}, parent=first)
        peer.trim("thread", 1)  # the list is in no checkpoint any more
        api.put(second, checkpoint({"long": LONG}), {}, {"long": 1})
        assert value_of(api.get_tuple(config()))["long"] == LONG
        assert problems(api.saver) == []

    def test_a_thread_that_another_has_deleted_is_gone(
        self, api: Api, peer: ForkpointSaver
    ) -> None:
        head = fill(api.saver, 2)[-1]
        peer.delete_thread("thread")
        for _ in range(2):
            with pytest.raises(ThreadDeleted):
                api.put(head, checkpoint({"n": 9}), {}, {"n": 1})
            with pytest.raises(ThreadDeleted):
                api.put_writes(head, [("n", 9)], "late")
            put(peer, {"n": "new"})
        assert {value_of(result)["n"] for result in api.list(config())} == {"new"}
        assert problems(api.saver) == []

    def test_a_thread_is_made_once(self, api: Api, peer: ForkpointSaver) -> None:
        assert api.get_tuple(config()) is None
        theirs = put(peer, {"n": 1})
        put(api.saver, {"n": 2}, parent=theirs)
        assert api.catalog().get("thread").checkpoint_count == 2
        with pytest.raises(ThreadExists):
            api.catalog().create("thread")
        with pytest.raises(ThreadExists):
            peer.fork("thread", new_thread_id="thread")

    def test_a_lease_is_one_for_all(self, api: Api, peer: ForkpointSaver) -> None:
        mine, theirs = api.catalog(), api.of(peer).catalog()
        with theirs.run() as lease:
            with pytest.raises(ThreadBusy, match=lease.holder):
                mine.run().__enter__()
            with mine.run(if_busy="cancel"), pytest.raises(StaleLease):
                theirs.of(peer).put(lease.config, checkpoint({"n": 1}), {}, {"n": 1})
        assert api.get_tuple(config()) is None

    def test_all_that_several_store_at_once_is_there(self, api: Api, peer: ForkpointSaver) -> None:
        failures: list[BaseException] = []

        def store(saver: ForkpointSaver, name: str) -> None:
            try:
                for n in range(10):
                    stored: Any = put(saver, {"of": name, "text": f"{name} {n} " * 200})
                    saver.put_writes(stored, [("c", n)], "task")
                    put(saver, {"n": n}, thread_id=f"thread of {name}")
            except BaseException as error:  # noqa: BLE001 - it is raised below
                failures.append(error)

        savers = {"a": api.saver, "b": peer, "c": api.saver, "d": peer}
        storing = [Thread(target=store, args=(savers[name], name)) for name in savers]
        for thread in storing:
            thread.start()
        for thread in storing:
            thread.join()
        assert failures == []
        listed = [value_of(result)["of"] for result in api.list(config())]
        assert sorted(listed) == sorted("abcd" * 10)
        assert api.catalog().get("thread").checkpoint_count == 40
        assert problems(api.saver) == []

    def test_what_a_replaced_checkpoint_led_to_is_not_relied_on_any_more(
        self, api: Api, peer: ForkpointSaver
    ) -> None:
        first = put(api.saver, {"long": LONG})
        replacement = {**checkpoint({"n": 1}), "id": id_of(first)}
        self._check_that_is_not_relied_on(
            api, peer, first, lambda: api.put(config(), replacement, {}, {"n": 1}), {"n": 2}
        )

    def test_what_a_replaced_write_led_to_is_not_relied_on_any_more(
        self, api: Api, peer: ForkpointSaver
    ) -> None:
        first = put(api.saver, {"n": 1})
        api.put_writes(first, [(INTERRUPT, LONG)], "task")

        def replace() -> None:
            api.put_writes(first, [(INTERRUPT, "short")], "task")

        self._check_that_is_not_relied_on(api, peer, first, replace, {"long": 1, "n": 2})

    def _check_that_is_not_relied_on(
        self,
        api: Api,
        peer: ForkpointSaver,
        first: RunnableConfig,
        replace: Callable[[], object],
        new_versions: ChannelVersions,
    ) -> None:
        """Let a peer put what it has read, and that was replaced while others collect."""
        storage = parts_of(api.saver).context.storage
        with storage.writing() as session:
            thread = session.threads.find("thread")
            assert thread is not None
            collection = session.collections.begin(thread.family)
        assert peer.get_tuple(first) is not None  # now it knows what the checkpoint leads to
        replace()
        with storage.reading() as session:
            live = [refs for _, refs in session.collections.references(thread.family).items if refs]
        assert live == []
        dead = list(chunks_of(api.saver, "thread"))
        assert dead
        following = checkpoint({"long": LONG, "n": 2}, {"long": 1, "n": 2})
        peer.put(first, following, {}, new_versions)
        with storage.writing() as session:
            session.collections.delete_chunks(thread.family, dead, collection)
        assert value_of(api.get_tuple(config())) == {"long": LONG, "n": 2}
