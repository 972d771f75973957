"""A backend in dictionaries, written only against `forkpoint.storage`, makes a correct saver."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from memory_backend import Database, MemorySaver

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


@pytest.mark.in_turns
class TestMemorySaver(SaverContract, SharedStoreContract, DamageContract):
    @pytest.fixture
    def database(self) -> Database:
        return Database()

    @pytest.fixture
    def saver(self, database: Database) -> Iterator[ForkpointSaver]:
        with MemorySaver(database) as saver:
            yield saver

    @pytest.fixture
    def peer(self, database: Database) -> Iterator[ForkpointSaver]:
        with MemorySaver(database) as peer:
            yield peer

    @pytest.fixture
    def rewrite(self, database: Database) -> Callable[[str, Callable[[bytes], bytes]], None]:
        return database.rewrite


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
