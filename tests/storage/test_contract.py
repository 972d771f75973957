"""What every backend must do, on SQLite and MongoDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checking import put
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.sqlite.statements import Statements
from forkpoint.testing import (
    DamageContract,
    EncryptionContract,
    SaverContract,
    SharedStoreContract,
    encrypting,
)
from forkpoint.testing.invariants import chunks_of, problems
from stores import SqliteStore, Store


class TestContract(SaverContract):
    @pytest.fixture
    def saver(self, saver: ForkpointSaver) -> ForkpointSaver:
        return saver


@pytest.mark.in_turns
class TestSharedStore(SharedStoreContract, DamageContract):
    @pytest.fixture
    def saver(self, saver: ForkpointSaver) -> ForkpointSaver:
        return saver

    @pytest.fixture
    def peer(self, store: Store) -> Iterator[ForkpointSaver]:
        with store.saver() as peer:
            yield peer

    @pytest.fixture
    def rewrite(self, store: Store) -> Callable[[str, Callable[[bytes], bytes]], None]:
        def rewrite(kind: str, change: Callable[[bytes], bytes]) -> None:
            for row in store.rows(kind):
                if row.content:
                    store.change(kind, row.key, content=change(row.content))

        return rewrite


@pytest.mark.in_turns
class TestEncryption(EncryptionContract):
    @pytest.fixture
    def saver(self, store: Store) -> Iterator[ForkpointSaver]:
        with store.saver(serde=encrypting()) as saver:
            yield saver

    @pytest.fixture
    def peer(self, store: Store) -> Iterator[ForkpointSaver]:
        with store.saver() as peer:
            yield peer


def test_the_suite_finds_what_is_wrong_in_a_store(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Statements, "default_turn_rows", 2)  # it reads all parts
    store = SqliteStore(path)
    with store.saver() as saver:
        for n in range(5):
            put(saver, {"n": n, "text": f"{n}" * 3000})
        assert problems(saver) == []
        assert chunks_of(saver, "nobody") == set() != chunks_of(saver, "thread")
        with store.connection() as connection:
            connection.execute("UPDATE forkpoint_threads SET checkpoint_count = 7")
        assert problems(saver) == [
            "thread 'thread' has 5 checkpoints, not 7",
            "of thread 'thread' 5 checkpoints can be read",
        ]
