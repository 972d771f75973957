"""A backend in dictionaries, written only against `forkpoint.storage`, makes a correct saver."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from memory_backend import Database, MemorySaver, MemoryStorage
from memory_backend.storage import MemorySession
from memory_backend.tables import Tables

from forkpoint.clocks import StoreClock
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing import (
    DamageContract,
    EncryptionContract,
    SaverContract,
    SharedStoreContract,
    encrypting,
)

FOLDER = Path(__file__).parent / "memory_backend"
BELOW = (
    *("runtime", "encoding", "storage", "saver"),
    *("at_fork", "clocks", "errors", "filters", "langgraph_rules"),
)


def test_it_is_written_against_the_storage_interface_alone() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forkpoint"):
                names = [node.module] if "." in node.module else [a.name for a in node.names]
                assert all(name.removeprefix("forkpoint.").startswith(BELOW) for name in names)


def test_a_checkpoint_comes_back() -> None:
    with MemorySaver() as saver:
        assert saver.get_tuple({"configurable": {"thread_id": "nobody"}}) is None


def test_what_a_backend_may_leave_out_is_for_long_threads_only() -> None:
    clock = StoreClock()
    session, nothing = MemorySession(Tables(), clock), cast(Any, None)
    assert not session.removals.is_long(nothing)
    assert not session.removals.is_ordered(nothing)
    assert session.copies.begin(nothing, "copy", nothing) is None
    assert session.collections.is_due(nothing)
    for left_out in (
        lambda: session.checkpoints.since(nothing, ""),
        lambda: session.checkpoints.older(nothing, "", 1),
        lambda: session.copies.copy_more(nothing),
        lambda: session.copies.abandon(nothing),
        lambda: session.copies.begin_fork(nothing),
        lambda: session.copies.fork_more(nothing, [], []),
        lambda: session.copies.end_fork(nothing),
        lambda: session.removals.extent(nothing),
        lambda: session.removals.remove_batch(nothing, nothing, nothing),
        MemoryStorage(Database()).unstored,
    ):
        with pytest.raises(NotImplementedError):
            left_out()


def database_of(saver: ForkpointSaver) -> Database:
    storage = parts_of(saver).context.storage
    assert isinstance(storage, MemoryStorage)
    return storage._database


@pytest.mark.in_turns
class TestMemorySaver(SaverContract, SharedStoreContract, DamageContract):
    make_saver = MemorySaver

    @staticmethod
    def make_peer(saver: ForkpointSaver) -> ForkpointSaver:
        return MemorySaver(database_of(saver))

    @pytest.fixture
    def rewrite(self, saver: ForkpointSaver) -> Callable[[str, Callable[[bytes], bytes]], None]:
        return database_of(saver).rewrite


@pytest.mark.in_turns
class TestEncryptedMemory(EncryptionContract):
    @pytest.fixture
    def database(self) -> Database:
        return Database()

    @pytest.fixture
    def saver(self, database: Database) -> Iterator[ForkpointSaver]:
        with MemorySaver(database, serde=encrypting()) as saver:
            yield saver

    @pytest.fixture
    def peer(self, database: Database) -> Iterator[ForkpointSaver]:
        with MemorySaver(database) as peer:
            yield peer
