"""What retention writes to an archive before it deletes a thread."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from langchain_core.messages import HumanMessage

from catalogs import HOUR, HOURS, archived_in, fill, ids
from checking import Api, config, encrypted_serde, put
from forkpoint import (
    InvalidInput,
    RetentionPolicy,
    SafeSerializer,
    SqliteSaver,
    Thread,
    ThreadCatalog,
)
from forkpoint.archive import reading
from forkpoint.transfer import restore_threads
from graphs import SHAPES
from stores import SqliteStore, Store


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_a_thread_is_in_the_archive_before_it_goes(
    is_encrypted: bool, store: Store, tmp_path: Path
) -> None:
    serde = encrypted_serde() if is_encrypted else SafeSerializer()
    path = tmp_path / "archive.jsonl"
    path.write_text('{"thread": {}, "sha256": "of an earlier one"}\n{"thread": {"not fin')
    with store.saver(serde=serde) as saver:
        catalog = ThreadCatalog(saver)
        messages = [HumanMessage(f"secret {n}", id=str(n)) for n in range(50)]
        first = put(saver, {"messages": messages[:25]}, metadata={"k": "v"})
        put(saver, {"messages": messages}, parent=first)
        saver.put_writes(first, [("c", "secret")], "task")
        catalog.update("thread", label="L", ttl=HOUR)
        expected = list(saver.list(config()))
        store.age("thread", updated_at=2 * HOURS)
        assert catalog.sweep(archive=path).deleted == ("thread",)
        earlier, *lines = path.read_bytes().splitlines()
        assert earlier == b'{"thread": {}, "sha256": "of an earlier one"}'
        encoded = base64.b64encode(b"secret 2")[:-4]
        assert (encoded in b"".join(lines)) is not is_encrypted

        report = restore_threads(saver, path)

        assert [damaged.line for damaged in report.damaged] == [1]
        assert list(saver.list(config())) == expected
        assert catalog.get("thread") is None  # its time is over all the same
        assert catalog.sweep().deleted == ("thread",)


async def test_a_trimmed_thread_is_restored_from_the_archive(
    catalog: Api, api: Api, store: Store, new_store: Callable[[], Store], tmp_path: Path
) -> None:
    graph = SHAPES["deltas"].build(api.saver)
    thread: Any = {"configurable": {"thread_id": "thread"}}
    for graph_input in SHAPES["deltas"].inputs:
        graph.invoke(graph_input, thread)
    await catalog.apply_retention(RetentionPolicy(max_checkpoints_per_thread=2))
    expected = graph.get_state(thread)
    path = tmp_path / "archive.jsonl"
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    assert (await catalog.apply_retention(idle, archive=path)).deleted == ("thread",)

    with new_store().saver() as saver:
        assert restore_threads(saver, path).is_complete
        snapshot = SHAPES["deltas"].build(saver).get_state(thread)
        assert len(list(saver.history("thread"))) == 2
    assert (snapshot.values, snapshot.next) == (expected.values, expected.next)


@pytest.mark.in_turns
async def test_a_thread_that_somebody_writes_to_meanwhile_stays(
    catalog: Api, api: Api, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lease, which would keep the archive from it."""
    path = tmp_path / "archive.jsonl"
    heads = {name: put(api.saver, {"n": 1}, thread_id=name) for name in ("a", "b")}
    store.be_old("updated_at")
    read = reading._read

    def disturbed(*arguments: Any) -> Any:
        page = read(*arguments)
        if arguments[2].thread_id == "b":
            put(api.saver, {"n": 2}, parent=heads["b"])
        return page

    monkeypatch.setattr(reading, "_read", disturbed)
    result = await catalog.apply_retention(RetentionPolicy(max_idle=HOUR), archive=path)
    assert (result.deleted, result.failed, ids(api.saver)) == (("a",), {}, {"b"})
    assert archived_in(path) == ["a"]


async def test_an_unreadable_thread_leaves_no_part_in_the_archive(
    catalog: Api, api: Api, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "archive.jsonl"
    for name in ("a", "b", "c"):
        put(api.saver, {"n": 1}, thread_id=name)
        put(api.saver, {"n": name}, thread_id=name)
    rows = [row for row in store.rows("checkpoints") if row.thread == store.thread("b").key]
    store.change("checkpoints", rows[-1].key, content=b"\0damaged")
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    result = await catalog.apply_retention(idle, archive=path)
    assert set(result.deleted) == {"a", "c"}
    assert list(result.failed) == ["b"]
    assert sorted(archived_in(path)) == ["a", "c"]
    assert ids(api.saver) == {"b"}


async def test_the_file_is_on_the_disk_before_the_thread_goes(
    catalog: Api, api: Api, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "archive.jsonl"
    put(api.saver, {"n": 1})
    synced: list[tuple[bytes, set[str]]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        fsync(file)
        synced.append((path.read_bytes(), ids(api.saver)))

    monkeypatch.setattr(os, "fsync", watched)
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    assert (await catalog.apply_retention(idle, archive=path)).deleted == ("thread",)
    assert len(synced) == 2  # the file and its name
    for content_, there in synced:
        assert content_ == path.read_bytes()
        assert there == {"thread"}


async def test_an_archive_that_nobody_awaits_deletes_nothing(
    catalog: Api, api: Api, store: Store
) -> None:
    async def archive(*_: Any) -> None:
        pass

    put(api.saver, {"n": 1})
    store.be_old("updated_at")
    idle = RetentionPolicy(max_idle=HOUR)
    for options in ({"archive": archive}, {"on_progress": archive}):
        with pytest.raises(InvalidInput, match=f"{next(iter(options))} must not be async"):
            await catalog.apply_retention(idle, **options)
    awaitable = asyncio.get_running_loop().create_future()
    result = await catalog.apply_retention(idle, archive=lambda *_: awaitable)
    assert isinstance(result.failed["thread"], TypeError)
    assert ids(api.saver) == {"thread"}


@pytest.mark.parametrize("world", ["sync", "async"])
async def test_callbacks_may_use_the_saver(world: str, tmp_path: Path) -> None:
    """Also where all operations run on the one thread of a connection that was passed."""
    async with aiosqlite.connect(tmp_path / "passed.db") as connection:
        saver = SqliteSaver(connection)
        catalog = ThreadCatalog(saver)
        counts: list[Any] = []

        def archive(thread: Thread, checkpoints: Any) -> None:
            for checkpoint_tuple in checkpoints:
                counts.append(
                    (checkpoint_tuple.checkpoint["id"], catalog.stats(thread.thread_id).checkpoints)
                )
                assert saver.get_tuple(checkpoint_tuple.config) == checkpoint_tuple

        for name in ("a", "b"):
            put(saver, {"n": 1}, thread_id=name)
        SqliteStore(tmp_path / "passed.db").be_old("updated_at")
        policy = RetentionPolicy(max_idle=HOUR)
        options: Any = {"archive": archive, "on_progress": lambda _: catalog.count()}
        if world == "sync":
            result = catalog.apply_retention(policy, **options)
        else:
            result = await catalog.aapply_retention(policy, **options)
        assert set(result.deleted) == {"a", "b"}
        assert [number for _, number in counts] == [1, 1]
        async with catalog.sweeper(HOUR):
            await catalog.acount()


@pytest.mark.in_turns
async def test_what_a_callback_does_to_other_threads_is_seen(
    catalog: Api, api: Api, store: Store
) -> None:
    for name in ("a", "b", "c"):
        put(api.saver, {"n": 1}, parent=put(api.saver, {"n": 0}, thread_id=name))
        store.age(name, updated_at=2 * HOURS)
    seen: list[str] = []

    def archive(thread: Thread, checkpoints: Any) -> None:
        seen.append(thread.thread_id)
        others = [name for name in ("a", "b", "c") if name not in seen]
        if len(others) == 2:
            put(api.saver, {"n": 2}, thread_id=others[0])
            ThreadCatalog(api.saver).delete(others[1])

    result = await catalog.apply_retention(RetentionPolicy(max_idle=HOUR), archive=archive)
    (deleted,) = seen
    assert (result.deleted, result.failed, result.busy) == ((deleted,), {}, ())
    assert len(ids(api.saver)) == 1
    assert store.problems(api.saver) == []


async def test_a_thread_that_cannot_be_archived_stays(catalog: Api, api: Api, store: Store) -> None:
    await fill(catalog, store)

    def archive(thread: Thread, checkpoints: Any) -> None:
        assert len(list(checkpoints)) == thread.checkpoint_count == 3
        if thread.thread_id == "made 4, idle 2":
            raise OSError("no space left")
        if thread.thread_id == "made 4, idle 4":
            put(api.saver, {"n": 9}, thread_id=thread.thread_id)  # it is active again

    policy = RetentionPolicy(max_idle=HOUR)
    result = await catalog.apply_retention(policy, archive=archive)
    assert result.deleted == ("made 2, idle 2",)
    assert list(result.failed) == ["made 4, idle 2"]
    assert "no space" in str(result.failed["made 4, idle 2"])
    assert {"made 4, idle 2", "made 4, idle 4"} <= ids(api.saver)
    assert not await catalog.is_busy("made 4, idle 2")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if api.world == "sync":
        with pytest.raises(KeyboardInterrupt):
            await catalog.apply_retention(policy, archive=interrupt)
    assert not await catalog.is_busy("made 4, idle 2")
    assert store.problems(api.saver) == []
