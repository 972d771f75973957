"""Listings: in which order, which pages, and what a filter on metadata matches."""

from __future__ import annotations

from typing import Any

from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, checkpoint, config, id_of, put

METADATA: list[dict[str, Any]] = [
    {"k": 1},
    {"k": True},
    {"k": "1"},
    {"k": 1.5},
    {"k": None},
    {"k": [1, 2, 3]},
    {"k": {"a": 1, "b": {"c": "d"}}},
    {"user.id": "u1"},
    {"user": {"id": "u1"}},
    {"$.k": 1, 'quo"te': "it's", "": "empty key"},
    {"k": "\ud800 lone"},
    {"k": "true"},
    {"k": 2**60},
]
FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"k": 1}, [0]),
    ({"k": 1.0}, [0]),
    ({"k": True}, [1]),
    ({"k": "1"}, [2]),
    ({"k": 1.5}, [3]),
    ({"k": None}, [4]),
    ({"k": [2]}, [5]),
    ({"k": [1, 2, 3]}, [5]),
    ({"k": [4]}, []),
    ({"k": {"a": 1}}, [6]),
    ({"k": {"b": {"c": "d"}}}, [6]),
    ({"k": {"b": {"c": "e"}}}, []),
    ({"k": {}}, [6]),
    ({"user.id": "u1"}, [7]),
    ({"user": {"id": "u1"}}, [8]),
    ({"$.k": 1}, [9]),
    ({'quo"te': "it's"}, [9]),
    ({"": "empty key"}, [9]),
    ({"k": "\ud800 lone"}, [10]),
    ({"k": "\ufffd lone"}, []),
    ({"k": "true"}, [11]),
    ({"k": 2**60}, [12]),
    ({"k": 2**60 + 1}, []),
    ({"missing": None}, []),
    ({"k": 1, "user.id": "u1"}, []),
    ({}, list(range(13))),
]
"""Filters, and which of these metadata they match."""


class ListingContract(Contract):
    """Checkpoints are listed newest first, all of them, and those that a filter matches."""

    def test_listing_goes_from_new_to_old_in_pages(self, api: Api) -> None:
        parent, ids = None, []
        for step in range(53):
            parent = put(api.saver, {"n": step}, parent=parent, metadata={"step": step})
            ids.append(id_of(parent))

        result = api.list(config())
        assert [id_of(item) for item in result] == ids[::-1]
        assert [item.checkpoint["channel_values"]["n"] for item in result] == list(range(53))[::-1]
        for limit in (0, 1, 20, 21, 53, 99):
            assert [id_of(item) for item in api.list(config(), limit=limit)] == ids[::-1][:limit]
        before = config(checkpoint_id=ids[30])
        assert [id_of(item) for item in api.list(config(), before=before)] == ids[:30][::-1]
        assert [id_of(item) for item in api.list(config(), before=before, limit=25)] == (
            ids[5:30][::-1]
        )
        (item,) = api.list(config(checkpoint_id=ids[7]))
        assert id_of(item) == ids[7]

    def test_listing_without_a_config_covers_all_threads_and_namespaces(self, api: Api) -> None:
        stored = [
            put(api.saver, {"n": n}, thread_id=f"thread-{n % 3}", ns="" if n % 2 else "child")
            for n in range(45)
        ]
        everything = api.list(None)

        assert [id_of(item) for item in everything] == [id_of(item) for item in reversed(stored)]
        one_thread = api.list({"configurable": {"thread_id": "thread-1"}})
        assert len(one_thread) == 15
        assert {item.config["configurable"]["checkpoint_ns"] for item in one_thread} == {
            "",
            "child",
        }

    def test_equal_ids_in_several_threads_are_all_listed(self, api: Api) -> None:
        made = checkpoint({"n": 1})
        for n in range(45):
            api.put(config(f"thread-{n:02}"), made, {}, {"n": 1})

        result = api.list(None)
        assert (
            len({item.config["configurable"]["thread_id"] for item in result}) == len(result) == 45
        )

    def test_filters_are_exact_and_typed(self, api: Api) -> None:
        stored = [id_of(put(api.saver, {}, metadata=metadata)) for metadata in METADATA]
        for metadata, matches in FILTERS:
            result = [stored.index(id_of(item)) for item in api.list(config(), filter=metadata)]
            assert sorted(result) == matches, metadata
