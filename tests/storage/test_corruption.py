"""Damaged rows are noticed, always: never a wrong value, never a partial one."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from bson.objectid import ObjectId
from langchain_core.messages import HumanMessage

from checking import config, encrypted_serde, id_of, put
from forkpoint import CorruptChunk, SafeSerializer, ThreadCatalog, ThreadFilter
from forkpoint.saver.saver import ForkpointSaver
from stores import SqliteStore, Store


def fill(saver: ForkpointSaver) -> None:
    rng = random.Random(1)
    values: dict[str, Any] = {
        "messages": [HumanMessage(rng.randbytes(300).hex(), id=str(n)) for n in range(300)],
        "files": {f"{n}": {"text": rng.randbytes(400).hex()} for n in range(60)},
        "nested": {"list": [{"text": rng.randbytes(900).hex()} for _ in range(40)]},
        "blob": rng.randbytes(200_000),
        "small": 1,
    }
    stored = put(saver, values)
    saver.put_writes(stored, [("c", rng.randbytes(90_000)), ("d", "small")], "task")


def damage(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    position = rng.randrange(len(content)) if content else 0
    match rng.randrange(4):
        case 0 if content:
            flipped = content[position] ^ (1 << rng.randrange(8))
            return content[:position] + bytes([flipped]) + content[position + 1 :]
        case 1 if content:
            return content[:position]
        case 2:
            return content + rng.randbytes(1)
        case _:
            return rng.choice([other for other in others if other != content])


@pytest.mark.parametrize(
    ("serde", "rounds"),
    [
        pytest.param(SafeSerializer, 40, id="plain"),
        pytest.param(encrypted_serde, 8, id="encrypted"),
        pytest.param(SafeSerializer, 1000, id="plain-all", marks=pytest.mark.slow),
        pytest.param(encrypted_serde, 150, id="encrypted-all", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_cut_swapped_or_deleted_chunk_is_always_noticed(
    store: Store, serde: Any, rounds: int
) -> None:
    rng = random.Random(2)
    with store.saver(serde=serde()) as saver:
        fill(saver)
        chunks = store.rows("chunks")
        for _ in range(store.times(rounds)):
            chunk = rng.choice(chunks)
            which = rng.randrange(5)
            taken = None
            if which == 0:
                taken = store.take("chunks", chunk.key)
            elif which == 1 and chunk.refs:
                damaged = damage(rng, chunk.refs, [other.refs for other in chunks])
                store.change("chunks", chunk.key, refs=damaged)
            else:
                damaged = damage(rng, chunk.content, [other.content for other in chunks])
                store.change("chunks", chunk.key, content=damaged)

            with pytest.raises(CorruptChunk, match="thread 'thread'"):
                saver.get_tuple(config())
            with pytest.raises(CorruptChunk):
                list(saver.list(None))

            if taken is not None:
                store.give_back("chunks", taken)
            else:
                store.change("chunks", chunk.key, refs=chunk.refs, content=chunk.content)
        assert saver.get_tuple(config()) is not None


@pytest.mark.parametrize("kind", ["checkpoints", "writes"])
@pytest.mark.parametrize("serde", [SafeSerializer, encrypted_serde], ids=["plain", "encrypted"])
@pytest.mark.parametrize("rounds", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_damaged_row_is_always_noticed(store: Store, kind: str, serde: Any, rounds: int) -> None:
    rng = random.Random(3)
    with store.saver(serde=serde()) as saver:
        fill(saver)
        thread = store.thread("thread").key
        put(saver, {"other": "thread"}, thread_id="other")
        rows = [row for row in store.rows(kind) if row.thread == thread]
        for _ in range(store.times(rounds)):
            row = rng.choice(rows)
            field = rng.choice(["content", "checksum", *(["refs"] if row.refs else [])])
            damaged = damage(rng, getattr(row, field), [rng.randbytes(40)])
            store.change(kind, row.key, **{field: damaged})

            with pytest.raises(CorruptChunk):
                saver.get_tuple(config())

            store.change(kind, row.key, **{field: getattr(row, field)})
        assert saver.get_tuple(config()) is not None


def test_metadata_that_were_changed_behind_the_saver_are_noticed(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"n": 1}, metadata={"step": 1})
        (row,) = store.rows("checkpoints")
        store.change("checkpoints", row.key, metadata='{"step":2}')

        with pytest.raises(CorruptChunk):
            saver.get_tuple(config())


REMOVALS: dict[str, Callable[[ForkpointSaver], Any]] = {
    "deletion": lambda saver: saver.delete_thread("thread"),
    "bulk deletion": lambda saver: ThreadCatalog(saver).bulk_delete(ThreadFilter(ids=["thread"])),
}


@pytest.mark.parametrize("damage", ["chunk", "refs"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_a_removal_never_collects_where_it_is_not_known_what_is_needed(
    removal: str, damage: str, store: Store
) -> None:
    with store.saver() as saver:
        fill(saver)
        saver.copy_thread("thread", "copy")
        put(saver, {"text": "only here " * 500})
        if damage == "chunk":
            store.take("chunks", [row for row in store.rows("chunks") if row.refs][-1].key)
        else:
            copy = store.thread("copy").key
            of_copy = (row for row in store.rows("checkpoints") if row.thread == copy)
            store.change("checkpoints", next(of_copy).key, refs="damaged")
        before = store.count("chunks")

        with pytest.raises(CorruptChunk, match="was removed, but unused chunks were not collected"):
            REMOVALS[removal](saver)

        assert saver.get_tuple(config()) is None  # the removal itself was done
        assert store.count("chunks") == before


@pytest.mark.parametrize("removal", ["purge", "trim"])
def test_an_owner_removes_of_a_thread_though_a_relative_of_another_one_is_damaged(
    removal: str, store: Store
) -> None:
    with store.saver() as saver:
        ann = saver.for_owner("ann")
        head = put(ann, {"text": "before " * 500}, parent=put(ann, {"text": "first " * 500}))
        ann.copy_thread("thread", "copy")
        ThreadCatalog(saver).update("copy", owner="bob")
        copy = store.thread("copy").key
        of_copy = (row for row in store.rows("checkpoints") if row.thread == copy)
        store.change("checkpoints", next(of_copy).key, refs="damaged")
        before = store.count("chunks")

        with pytest.raises(CorruptChunk, match="was removed, but unused chunks were not collected"):
            ann.purge("thread") if removal == "purge" else ann.trim("thread", 1)

        left = [id_of(each) for each in ann.list(config())]
        assert left == ([] if removal == "purge" else [id_of(head)])
        assert store.count("chunks") == before


@pytest.mark.on_each_backend
@pytest.mark.parametrize("field", ["binding", "checksum", "parent_checkpoint_id"])
def test_a_field_of_another_type_is_damage_in_a_copy_too(
    field: str, store: Store, saver: ForkpointSaver
) -> None:
    head = put(saver, {"n": 1}, parent=put(saver, {"n": 0}), metadata={"run_id": "run"})
    stored = store.stored("checkpoints")
    key = next(key for key, row in stored.items() if row["checkpoint_id"] == id_of(head))
    odd = b"\xff" if isinstance(store, SqliteStore) else ObjectId("0" * 24)
    store.change("checkpoints", key, **{field: "x" if field in ("binding", "checksum") else odd})
    with suppress(CorruptChunk):
        saver.copy_thread("thread", "copy")
        with pytest.raises(CorruptChunk):
            saver.get_tuple(config("copy"))
    with pytest.raises(CorruptChunk):
        saver.get_tuple(config())


def test_damage_in_a_subgraph_is_named_with_its_namespace(
    store: Store, saver: ForkpointSaver
) -> None:
    put(saver, {"n": 1}, ns="child:1")
    (row,) = store.rows("checkpoints")
    store.change("checkpoints", row.key, content=row.content[:-1])
    with pytest.raises(CorruptChunk, match=r"thread 'thread', .* of namespace 'child:1'"):
        saver.get_tuple(config(ns="child:1"))


def test_retention_leaves_alone_what_is_damaged(store: Store, saver: ForkpointSaver) -> None:
    catalog = ThreadCatalog(saver)
    for thread_id in ("whole", "damaged"):
        catalog.create(thread_id, ttl=timedelta(hours=1))
        store.age(thread_id, updated_at=3 * 3600 * 1_000_000)
    store.change("threads", store.thread("damaged").key, label="what nobody said")
    assert catalog.sweep().deleted == ("whole",)
    with pytest.raises(CorruptChunk):
        catalog.get("damaged")
