"""A damaged record of a thread is noticed by whoever reads it, and others are read meanwhile."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from checking import Api, config, encrypted_serde, one_by_one, put
from forkpoint import CorruptChunk, SafeSerializer, ThreadCatalog, ThreadFilter
from stores import Store

pytestmark = pytest.mark.in_turns


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
SAID = [
    ("label", "another"),
    ("label", None),
    ("tags", '["another"]'),
    ("tags", "no JSON"),
    ("tags", None),
    ("metadata", '{"user": "another"}'),
    ("metadata", "no JSON"),
    ("metadata", "[]"),
    ("metadata", DEEP),
    ("metadata", b"\xff"),
    ("fixed_keys", "[]"),
    ("fixed_keys", "no JSON"),
    ("ttl", 3_000_000_000),
    ("checksums", b""),
    ("checksums", b"\0" * 49),
    ("salt", b""),
    ("salt", b"x" * 32),
    ("owner", "another"),
    ("owner", None),
    ("edge", "fork"),
    ("parent_checkpoint_id", None),
    ("parent", None),
]
WHOSE = [case for case in SAID if case[0] in ("owner", "salt", "checksums")]
"""What of a record decides what is read of a thread's checkpoints, too."""


def changed(store: Store, thread_id: str, field: str, value: Any) -> tuple[Any, dict[str, Any]]:
    """Damage a record, and return how to mend it."""
    key = store.thread(thread_id).key
    before = store.stored("threads")[key]
    if before[field] == value:
        value = 1
    if isinstance(before[field], list):  # MongoDB has lists
        value = [1] if value is None else [value]
    try:
        store.change("threads", key, **{field: value})
    except sqlite3.IntegrityError:  # a column that is never null
        store.change("threads", key, **{field: b"\xff"})
    return key, before


@pytest.mark.parametrize("serde", [SafeSerializer, encrypted_serde], ids=["plain", "encrypted"])
def test_a_damaged_record_is_named_by_get_and_search(store: Store, serde: Any) -> None:
    with store.saver(serde=serde()) as saver:
        catalog = ThreadCatalog(saver)
        catalog.create("a", label="label", tags=["tag"], metadata={"user": "u1"})
        for thread_id in ("b", "c"):
            catalog.clone("a", thread_id, label="label")
        put(saver.for_owner("somebody"), {"n": 1}, thread_id="d")
        before = [catalog.get(thread_id) for thread_id in "abcd"]
        for field, value in SAID:
            key, record = changed(store, "b", field, value)
            with pytest.raises(CorruptChunk, match="'b'"):
                catalog.get("b")
            for wanted in (None, ThreadFilter(ids=["a", "b", "c", "d"])):
                page = catalog.search(wanted)
                assert sorted(found.thread_id for found in page) == ["a", "c", "d"], (field, value)
                (damage,) = page.damaged
                assert "'b'" in str(damage)
            with pytest.raises(CorruptChunk, match="'b'"):
                catalog.update("b", label="mended")
            with pytest.raises(CorruptChunk, match="'b'"):
                catalog.clone("b", "copy")
            store.put_back("threads", key, record)
        assert [catalog.get(thread_id) for thread_id in "abcd"] == before


@pytest.mark.parametrize("serde", [SafeSerializer, encrypted_serde], ids=["plain", "encrypted"])
def test_a_thread_that_says_another_owner_is_not_read(store: Store, serde: Any) -> None:
    with store.saver(serde=serde()) as saver:
        put(saver, {"n": 1}, thread_id="a")
        put(saver, {"n": 1}, thread_id="b")
        for field, value in WHOSE:
            key, record = changed(store, "b", field, value)
            with store.saver(serde=serde()) as reader:
                for read in (
                    lambda reader=reader: reader.get_tuple(config("b")),
                    lambda reader=reader: list(reader.list(config("b"))),
                    lambda reader=reader: reader.fork("b", new_thread_id="fork"),
                    lambda reader=reader: reader.copy_thread("b", "copy"),
                    lambda reader=reader: put(reader, {"n": 2}, thread_id="b"),
                ):
                    with pytest.raises(CorruptChunk, match="'b'"):
                        read()
                assert reader.get_tuple(config("a")) is not None
            store.put_back("threads", key, record)
        assert saver.get_tuple(config("b")) is not None
        assert store.problems(saver) == []


@one_by_one("field", ["parent", "parent_checkpoint_id", "edge"])
def test_a_lineage_that_was_damaged_is_noticed(store: Store, field: str) -> None:
    name = f"{field} of root"
    with store.saver() as saver:
        put(saver, {"n": 1}, thread_id=name)
        saver.fork(name, new_thread_id=f"{field} of fork")
        saver.fork(f"{field} of fork", new_thread_id=f"{field} of last")
        changed(store, f"{field} of fork", field, None)
        for read in (saver.lineage, saver.family):
            with pytest.raises(CorruptChunk, match=f"'{field} of fork'"):
                read(f"{field} of last")


def test_a_relative_with_another_id_or_owner_is_named(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"n": 1}, thread_id="root")
        saver.fork("root", new_thread_id="fork")
        saver.fork("root", new_thread_id="other")
        for field, value in (("thread_id", "changed"), ("owner", "changed")):
            key, record = changed(store, "root", field, value)
            for read in (saver.lineage, saver.family):
                with pytest.raises(CorruptChunk, match="record of thread"):
                    read("fork")
            store.put_back("threads", key, record)
        saver.delete_thread("root")  # which takes its owner out of its record
        assert len(saver.lineage("fork")) == 2
        assert "other" in str(saver.family("fork"))


def test_a_lineage_in_a_circle_ends(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"n": 1}, thread_id="root")
        saver.fork("root", new_thread_id="fork")
        store.change("threads", store.thread("root").key, parent=store.thread("fork").key)
        with pytest.raises(CorruptChunk, match="'root'"):
            saver.lineage("fork")


async def test_the_async_world_notices_it_as_well(store: Store, api: Api) -> None:
    put(api.saver, {"n": 1}, thread_id="b")
    changed(store, "b", "owner", "another")
    catalog: Any = Api(ThreadCatalog(api.saver), api.world)
    with pytest.raises(CorruptChunk, match="'b'"):
        await catalog.get("b")
    assert len((await catalog.search()).damaged) == 1
